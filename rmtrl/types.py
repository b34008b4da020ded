"""The values that stages hand to one another, and `Scorer`, the door through which every judge is used."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from rmtrl.errors import ModelError, RmtrlError, UsageError

if TYPE_CHECKING:
    import numpy as np  # where it is used: a third of the time in which the command line says its help
    from numpy.typing import NDArray

Message = dict[str, Any]
"""One turn of a conversation: `{"role": "user", "content": "…"}`."""

Conversation = str | list[Message]
"""A list of messages, or a string that is already rendered (tokenised as TRL tokenises standard data)."""


class Chat(list[Message]):
    """Messages with what else their chat template reads; else a list, and `chat + answer` is one too.

    Args:
        messages (`Iterable[Message]`): The turns.
        tools (`list`, *optional*): Functions that may be called, as JSON schemas; an empty list: none.
        chat_template_kwargs (`dict`, *optional*): More variables of the template.

    Example:

    ```python
    >>> prompt = Chat([{"role": "user", "content": "Hi"}], chat_template_kwargs={"enable_thinking": False})
    >>> (prompt + [{"role": "assistant", "content": "Hello!"}]).chat_template_kwargs
    {'enable_thinking': False}
    ```
    """

    def __init__(
        self, messages: Iterable[Message] = (), *, tools: list[Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(messages)
        self.tools = tools
        self.chat_template_kwargs = dict(chat_template_kwargs or {})

    @classmethod
    def of(cls, conversation: Conversation, row: Mapping[str, Any]) -> Conversation:
        """Returns a conversation with the columns `tools` and `chat_template_kwargs` of its row, as TRL reads them.

        Text, and messages of a row without these columns, are returned as they are.
        """
        given = [row.get(name) for name in ("tools", "chat_template_kwargs")]
        tools, kwargs = (json.loads(value) if isinstance(value, str) and value else value for value in given)
        if isinstance(conversation, str) or (tools in (None, "") and not kwargs):
            return conversation
        return cls(conversation, tools=None if tools == "" else tools, chat_template_kwargs=kwargs or None)

    def _with(self, messages: Iterable[Message]) -> Chat:
        return Chat(messages, tools=self.tools, chat_template_kwargs=self.chat_template_kwargs)

    def __add__(self, other: list[Message]) -> Chat:  # type: ignore[override]
        return self._with(super().__add__(other))

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return self._with(found) if isinstance(index, slice) else found


def check_pairs(prompts: Sequence[Any], completions: Sequence[Any]) -> None:
    """Raises where there is not one completion a prompt."""
    if len(prompts) != len(completions):
        raise UsageError(f"got {len(prompts)} prompts and {len(completions)} completions; wanted one each")


def chats(prompts: Sequence[Conversation], columns: Mapping[str, Any]) -> list[Conversation]:
    """Returns each prompt with its entry of the columns `tools` and `chat_template_kwargs`, where there are any."""
    given = {name: columns[name] for name in ("tools", "chat_template_kwargs") if columns.get(name) is not None}
    return [Chat.of(own, {name: values[i] for name, values in given.items()}) for i, own in enumerate(prompts)]


@dataclass(frozen=True)
class Estimate:
    """A number with what is needed to believe it: its interval and the sample behind it.

    Args:
        value (`float`): The statistic.
        low (`float`): Lower end of the interval.
        high (`float`): Upper end of the interval.
        n (`int`): Number of pairs (or items) behind the statistic.
        level (`float`): Coverage of the interval.
        method (`str`): How the interval was made.

    Example:

    ```python
    >>> accuracy = Estimate(0.75, 0.7, 0.8, n=300)
    >>> print(accuracy, f"{accuracy:.2f}", sep="; ")
    0.750 [0.700, 0.800] (n = 300); 0.75 [0.70, 0.80]
    ```
    """

    value: float
    low: float
    high: float
    n: int
    level: float = 0.95
    method: str = ""

    def __str__(self) -> str:
        return f"{self:.3f} (n = {self.n:,})"

    def __format__(self, spec: str) -> str:
        """Returns value and interval, each number in the form of `spec`; the text of `str` without one."""
        value = f"{self.value:{spec}}" if math.isfinite(self.value) else "unknown"
        return with_interval(value, self.low, self.high, f"{{:{spec}}}".format) if spec else str(self)


def with_interval(value: str, low: float | None, high: float | None, form: Callable[[float], str]) -> str:
    """Returns a value with its interval, as people read it; ends that nobody knows are no interval.

    Example:

    ```python
    >>> with_interval("0.75", 0.7, 0.8, str), with_interval("0.75", None, None, str)
    ('0.75 [0.7, 0.8]', '0.75, no interval')
    ```
    """
    if low is None or high is None or not math.isfinite(high - low):
        return f"{value}, no interval"
    return f"{value} [{form(low)}, {form(high)}]"


def json_ready(value: Any) -> Any:
    """Returns a value with dataclasses as dictionaries, arrays as lists, and NaN and infinities as None.

    A dataclass gives the `schema` of its class, where that has one, its fields but those of `repr=False`, and the
    properties that its class names in `json_also`.

    Example:

    ```python
    >>> json_ready({"values": (1.0, float("nan"))})
    {'values': [1.0, None]}
    ```
    """
    if is_dataclass(value) and not isinstance(value, type):
        head, shown = (
            ["schema"] * hasattr(type(value), "schema"),
            [field.name for field in fields(value) if field.repr],
        )
        value = {name: getattr(value, name) for name in (*head, *shown, *getattr(value, "json_also", ()))}
    if isinstance(value, Mapping):
        return {name: json_ready(item) for name, item in value.items()}
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class PairRewards:
    """Rewards of N preference pairs, gathered over all processes: what every reward callback receives.

    Args:
        chosen (`(N,)` float64): Reward of the chosen response.
        rejected (`(N,)` float64): Reward of the rejected response.
        loss (`(N,)` float64): Loss of the pair, centre term included.
        chosen_length_tokens (`(N,)` int64): Tokens of the chosen response after the prompt the two sides share.
        rejected_length_tokens (`(N,)` int64): The same for the rejected response.
        reason (`(N,)` int64): 0 for a sound pair, else 1 + the index into `rmtrl.reward.pairs.REASONS`.
        domain (`(N,)` int64): Index of the pair's domain, −1 where it has none.
        label (`(N,)` float64): Share of votes for chosen; 1 where the data does not say.

    Example:

    ```python
    >>> columns = {name: np.zeros(2) for name in PairRewards.__dataclass_fields__} | {"label": np.ones(2)}
    >>> PairRewards(**columns | {"chosen": np.array([2.0, 1.0])}).margin
    array([2., 1.])
    ```
    """

    chosen: NDArray[np.float64]
    rejected: NDArray[np.float64]
    loss: NDArray[np.float64]
    chosen_length_tokens: NDArray[np.int64]
    rejected_length_tokens: NDArray[np.int64]
    reason: NDArray[np.int64]
    domain: NDArray[np.int64]
    label: NDArray[np.float64] = ()  # type: ignore[assignment]

    def __post_init__(self) -> None:
        import numpy as np

        if len(self.label) == 0:
            object.__setattr__(self, "label", np.ones(len(self.chosen)))

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def margin(self) -> NDArray[np.float64]:
        """Chosen minus rejected reward, `(N,)`."""
        return self.chosen - self.rejected

    def where(self, mask: NDArray[np.bool_]) -> PairRewards:
        """Returns the pairs at which `mask` is true."""
        return PairRewards(**{name: column[mask] for name, column in vars(self).items()})

    @property
    def decided(self) -> PairRewards:
        """The pairs that have a better side, as chosen: ties cannot be ranked rightly or wrongly."""
        import numpy as np

        pairs = self.where(self.label != 0.5)
        swapped = pairs.label < 0.5

        def side(name: str, other: str) -> Any:
            return np.where(swapped, getattr(pairs, other), getattr(pairs, name))

        return replace(
            pairs,
            chosen=side("chosen", "rejected"),
            rejected=side("rejected", "chosen"),
            chosen_length_tokens=side("chosen_length_tokens", "rejected_length_tokens"),
            rejected_length_tokens=side("rejected_length_tokens", "chosen_length_tokens"),
            label=np.maximum(pairs.label, 1 - pairs.label),
        )


class Scorer:
    """Turns conversations into scores: a reward model, an ensemble, a judge, a rule.

    Subclasses define [`Scorer.score`], which a call with conversations is short for. Called with prompts and
    completions a scorer is also a TRL reward function, so it can be passed as `reward_funcs` to `GRPOTrainer` and
    `RLOOTrainer`.

    Example:

    ```python
    >>> class Brevity(Scorer):
    ...     def score(self, conversations):
    ...         return np.array([-len(c) for c in conversations], dtype=np.float32)
    >>> Brevity()(["Hi. Hello!"])
    array([-10.], dtype=float32)
    >>> Brevity()(prompts=["Hi. "], completions=["Hello!"])
    [-10.0]
    ```
    """

    @property
    def __name__(self) -> str:  # TRL names the reward in its log by this
        return type(self).__qualname__

    def score(self, conversations: Sequence[Conversation]) -> NDArray[np.float32]:
        """Returns one score a conversation, `(N,)` float32, in the order given."""
        raise NotImplementedError

    def holds(self, conversations: Sequence[Conversation]) -> NDArray[np.bool_]:
        """Returns which conversations can be scored whole, `(N,)`: a model has a limit, a rule has none."""
        import numpy as np

        return np.ones(len(conversations), dtype=np.bool_)

    @overload
    def __call__(self, prompts: Sequence[Conversation]) -> NDArray[np.float32]: ...
    @overload
    def __call__(
        self, prompts: Sequence[Conversation], completions: Sequence[Conversation], **columns: Any
    ) -> Any: ...

    def __call__(
        self, prompts: Sequence[Conversation], completions: Sequence[Conversation] | None = None, **columns: Any
    ) -> Any:
        """Returns the scores of conversations, or of prompts and completions in the form that TRL's trainers take."""
        return self.score(prompts) if completions is None else self.score_completions(prompts, completions, **columns)

    def score_completions(
        self, prompts: Sequence[Conversation], completions: Sequence[Conversation], **columns: Any
    ) -> list[float]:
        """Returns the scores of `prompts[i] + completions[i]`, with what else the trainer knows of them."""
        check_pairs(prompts, completions)
        asked = chats(prompts, columns)
        conversations = [p + c for p, c in zip(asked, completions, strict=True)]  # type: ignore[operator]
        return [float(score) for score in self.score(conversations)]


@dataclass(frozen=True)
class Finding:
    """A place in an answer that a guard objects to: `answer[start:end]`, and why in words."""

    start: int
    end: int
    reason: str


class Guard(Scorer):
    """A scorer of severity and a threshold: what lies above it is found.

    Args:
        scorer ([`Scorer`]): A rule, a classifier, a reward model or a judge whose score rises with what is unwanted.
            Where it can name the places it has a method `findings(conversation, **columns) -> list[Finding]`.
        threshold (`float`): The highest severity that passes.
        name (`str`, *optional*): What reports and logs call it; the scorer's name by default.

    Raises:
        UsageError: If the threshold is no finite number.

    Example:

    ```python
    >>> class Shouting(Scorer):
    ...     def score(self, conversations):
    ...         return np.array([c.count("!") for c in conversations], dtype=np.float32)
    >>> Guard(Shouting(), 1).flags(["Hi. ", "Hi. "], ["Hello!", "HELLO!!!"])
    array([False,  True])
    ```
    """

    def __init__(self, scorer: Scorer, threshold: float, *, name: str = "") -> None:
        if not math.isfinite(threshold):
            raise UsageError(f"got the threshold {threshold} of a guard; wanted a finite number")
        self.scorer, self.threshold, self.name = scorer, float(threshold), name or scorer.__name__

    @property
    def __name__(self) -> str:
        return self.name

    def score(self, conversations: Sequence[Conversation]) -> NDArray[np.float32]:
        """Returns the severity of each conversation, `(N,)` float32, as the scorer gives it."""
        return self.scorer.score(conversations)

    def holds(self, conversations: Sequence[Conversation]) -> NDArray[np.bool_]:
        """Returns which conversations the scorer holds whole, `(N,)`."""
        return self.scorer.holds(conversations)

    def score_completions(
        self, prompts: Sequence[Conversation], completions: Sequence[Conversation], **columns: Any
    ) -> list[float]:
        """Returns the severity of each completion; columns beside them, such as `reference`, reach the scorer."""
        return self.scorer(prompts, completions, **columns)

    def flags(
        self, prompts: Sequence[Conversation], completions: Sequence[Conversation], **columns: Any
    ) -> NDArray[np.bool_]:
        """Returns which completions lie above the threshold, `(N,)`.

        Raises:
            ModelError: If the scorer returns anything but one finite number a completion.
        """
        severities = self(prompts, completions, **columns)
        return (
            checked_scores(severities, len(completions), name=f"guard {self.name!r}", sample="answer") > self.threshold
        )

    def findings(self, conversation: Conversation, **columns: Any) -> list[Finding]:
        """Returns the places that the scorer names in the last answer; none where it names none."""
        named = getattr(self.scorer, "findings", None)
        return [] if named is None else named(conversation, **columns)


_SHOWN = 80  # characters of a value in a message


def checked_scores(
    values: Any, n: int, *, name: str = "scorer", sample: str = "conversation",
    shown: Callable[[int], str] = lambda index: "", error: type[RmtrlError] = ModelError,
) -> NDArray[np.float64]:  # fmt: skip
    """Returns what a scorer returned of N samples, `(N,)` float64. Nothing is called again to find a culprit.

    Args:
        values (`Sequence[float]`, array or tensor): One number a sample.
        n (`int`): N.
        name (`str`): What returned them, as it follows "the" in the message.
        sample (`str`): What is scored, in one word.
        shown (`Callable[[int], str]`): What the message says of the sample at fault, at its end.
        error (`type[RmtrlError]`): What is raised.

    Raises:
        ModelError: Or `error`, if there are not N values, or one is None, no number, NaN or infinite: its `index`.

    Example:

    ```python
    >>> checked_scores([1, np.float32(0.5)], 2).tolist()
    [1.0, 0.5]
    ```
    """
    import numpy as np

    items = values.tolist() if hasattr(values, "tolist") else values
    sized = isinstance(items, Sequence) and not isinstance(items, str)
    if not sized or len(items) != n:
        got = f"{len(items)} values" if sized else type(values).__name__
        raise error(f"the {name} returned {got} for {n} {sample}s; wanted a list of one number each")
    scores = np.array([_number(item) for item in items], dtype=np.float64)
    for index in np.flatnonzero(~np.isfinite(scores)).tolist():
        got = shorten(repr(items[index]))
        said = f"the {name} returned {got} for {sample} {index}; wanted one finite number{shown(index)}"
        raise error(said, index=index)
    return scores


def failed_at(error: Exception, n: int) -> range:
    """Returns which of N samples an error may be of: the one that its `index` names, else all.

    Example:

    ```python
    >>> failed_at(ModelError("…", index=3), 8), failed_at(MemoryError(), 8)
    (range(3, 4), range(0, 8))
    ```
    """
    index = getattr(error, "index", None)
    return range(index, index + 1) if isinstance(index, int) and 0 <= index < n else range(n)


def is_url(model: Any) -> bool:
    """Returns whether a model is named by the URL of a server that has it.

    Example:

    ```python
    >>> is_url("http://127.0.0.1:8000"), is_url("outputs/rm")
    (True, False)
    ```
    """
    return str(model).startswith(("http://", "https://"))


def checkpoint_of(model: str | Path) -> str:
    """Returns the folder or hub id of a model; of a URL what stands behind its `#`, which may be nothing.

    Example:

    ```python
    >>> checkpoint_of("http://127.0.0.1:8000#outputs/rm"), checkpoint_of("outputs/rm")
    ('outputs/rm', 'outputs/rm')
    ```
    """
    return str(model).partition("#")[2] if is_url(model) else str(model)


def shorten(text: str) -> str:
    """Returns a text as one line of at most 80 characters."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"


def _number(value: Any) -> float:
    """Returns the value as a float; NaN where it is no number."""
    if hasattr(value, "item") and hasattr(value, "shape"):  # of numpy or torch
        value = value.item() if math.prod(value.shape) == 1 else None
    return float(value) if isinstance(value, Real) else float("nan")
