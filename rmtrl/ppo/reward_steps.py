"""How a reward of any kind is called and checked, and the steps of a composed one: filters, a length penalty, moments.

A failing reward stops training and shows the sample: an exception is never a number.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from rmtrl.errors import RewardError, UsageError
from rmtrl.types import Conversation

Floats = NDArray[np.float64]
Conversations = Sequence[Conversation]

RewardFunction = Callable[..., Any]
"""TRL's form: `f(prompts=, completions=, **columns) -> list[float]`; every `Scorer` is one."""

_SHOWN = 80  # characters of a prompt, a completion or a value in a message


def call_reward(
    reward: RewardFunction, prompts: Conversations, completions: Conversations, /, **columns: Any
) -> Floats:
    """Returns what a reward function gives each completion, checked, `(N,)` float64; of none, it is not called.

    Where it raises, halves of the batch are tried until the sample that fails alone is found.

    Args:
        reward (`Callable`): A scorer or a function in TRL's form.
        prompts, completions (`Sequence[Conversation]`): N of each.
        columns: Passed on; lists, arrays and tensors of length N are taken for one entry a completion.

    Raises:
        RewardError: If the reward raises, or returns anything but one finite number a completion.
        UsageError: If the reward says that a setting cannot be used.

    Example:

    ```python
    >>> def brevity(completions, **columns):
    ...     return [-len(completion) for completion in completions]
    >>> call_reward(brevity, ["Hi. "], ["Hello!"]).tolist()
    [-6.0]
    ```
    """
    name = f"reward {getattr(reward, '__name__', type(reward).__name__)!r}"
    return call_step(reward, prompts, completions, columns, name=name)


def checked_rewards(values: Any, prompts: Conversations, completions: Conversations, *, name: str) -> Floats:
    """Returns the values as `(N,)` float64.

    Args:
        values (`Sequence[float]`, array or tensor): One number a completion.
        prompts, completions (`Sequence[Conversation]`): N of each, to show where a value cannot be used.
        name (`str`): What returned them, as it follows "the" in the message.

    Raises:
        RewardError: If there are not N, or one is None, not a number, NaN or infinite.

    Example:

    ```python
    >>> checked_rewards([1, 0.5], ["a", "b"], ["c", "d"], name="reward model").tolist()
    [1.0, 0.5]
    ```
    """
    items = values.tolist() if isinstance(values, np.ndarray | torch.Tensor) else values
    n = len(completions)
    if not isinstance(items, Sequence) or isinstance(items, str) or len(items) != n:
        sized = isinstance(items, Sequence) and not isinstance(items, str)
        got = f"{len(items)} values" if sized else type(values).__name__
        raise RewardError(f"the {name} returned {got} for {n} completions; wanted a list of one number each")
    rewards = np.array([_number(item) for item in items], dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(rewards))
    if len(bad):
        index = int(bad[0])
        raise RewardError(
            f"the {name} returned {_cut(repr(items[index]))} for completion {index}; wanted one finite number: "
            f"{_shown(prompts[index], completions[index])}"
        )
    return rewards


def call_step(
    step: RewardFunction, prompts: Conversations, completions: Conversations, columns: Mapping[str, Any], *, name: str
) -> Floats:
    """Returns what [`call_reward`] does; `name` says in errors what the step is, as it follows "the"."""
    n = len(completions)
    if not n:
        return np.zeros(0)

    def run(part: slice) -> Any:
        own = {key: value[part] if _is_column(value, n) else value for key, value in columns.items()}
        return step(prompts=prompts[part], completions=completions[part], **own)

    return checked_rewards(attributed(run, prompts, completions, name=name), prompts, completions, name=name)


def attributed(run: Callable[[slice], Any], prompts: Conversations, completions: Conversations, *, name: str) -> Any:
    """Returns `run` of all N; where it raises, the [`RewardError`] shows a sample that fails alone."""
    n = len(completions)
    if len(prompts) != n:
        raise RewardError(f"got {len(prompts)} prompts and {n} completions for the {name}; wanted as many of each")
    try:
        return run(slice(0, n))
    except (RewardError, UsageError):
        raise
    except Exception as error:
        first, stop, found = _first_failing(run, n, error)
        alone = f"completion {first} (of {n}, called alone)"
        together = f"completions {first} to {stop - 1} (not for either half of them; out of memory?)"
        which = alone if stop - first == 1 else together
        raise RewardError(
            f"the {name} failed for {which}: {type(found).__name__}: {' '.join(str(found).split())}: "
            f"{_shown(prompts[first], completions[first])}"
        ) from found


def _first_failing(run: Callable[[slice], Any], stop: int, error: Exception) -> tuple[int, int, Exception]:
    """Returns the ends of a part that fails though neither half of it does, of one sample where there is one."""
    start = 0
    while stop - start > 1:
        middle = (start + stop) // 2
        for half in (slice(start, middle), slice(middle, stop)):
            try:
                run(half)
            except Exception as found:
                start, stop, error = half.start, half.stop, found
                break
        else:
            break
    return start, stop, error


def _is_column(value: Any, n: int) -> bool:
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.ndim > 0 and len(value) == n
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == n


def _number(value: Any) -> float:
    """Returns the value as a float; NaN where it is no number."""
    if isinstance(value, np.generic | np.ndarray | torch.Tensor):
        value = value.item() if math.prod(value.shape) == 1 else None
    return float(value) if isinstance(value, Real) else float("nan")


def _shown(prompt: Conversation, completion: Conversation) -> str:
    return f"prompt {_cut(text_of(prompt))!r}, completion {_cut(text_of(completion))!r}"


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"


def text_of(conversation: Conversation) -> str:
    """Returns the text of a conversation, without roles; a tool call counts as text."""
    if isinstance(conversation, str):
        return conversation
    return " ".join(str(message.get("content") or message.get("tool_calls") or "") for message in conversation)


@dataclass(frozen=True)
class Filter:
    """A fixed reward for the completions that a function blocks, such as a safety rule.

    Args:
        name (`str`): Key under which the blocked completions stand in [`~rmtrl.ppo.rewards.ComposedReward.parts_`].
        blocked (`Callable`): `f(prompts=, completions=, **columns)`, one bool a completion: whether it is blocked.
        reward (`float`, *optional*, defaults to `-1.0`): What a blocked completion gets in place of its score, in
            units after calibration. It must lie below what ordinary answers get, or being blocked pays.

    Raises:
        UsageError: If the reward is not finite.

    Example:

    ```python
    >>> Filter("links", lambda completions, **columns: ["http" in text for text in completions], reward=-2.0)
    ```
    """

    name: str
    blocked: Callable[..., Sequence[bool]]
    reward: float = -1.0

    def __post_init__(self) -> None:
        if not np.isfinite(self.reward):
            raise UsageError(f"got the reward {self.reward} of the filter {self.name!r}; wanted a finite number")

    def __call__(self, prompts: Conversations, completions: Conversations, columns: Mapping[str, Any]) -> Floats:
        """Returns 1 where the filter blocks and 0 elsewhere, `(N,)`.

        Raises:
            RewardError: If `blocked` fails or returns anything but one bool a completion.
        """
        name = f"filter {self.name!r}"
        blocked = call_step(self.blocked, prompts, completions, columns, name=name)
        wrong = np.flatnonzero((blocked != 0) & (blocked != 1))
        if len(wrong):
            index = int(wrong[0])
            raise RewardError(
                f"the {name} returned {blocked[index]:g} for completion {index}; wanted True (blocked) or False: "
                f"{_shown(prompts[index], completions[index])}"
            )
        return blocked


def truncated_filter(reward: float = -1.0, *, end_token_ids: Sequence[int] = ()) -> Filter:
    """Returns the filter of completions that were cut off before their end, the EOS trick.

    OpenAI's summarisation reward replaces the score by −1 (Huang et al. 2024, https://huggingface.co/papers/2403.17031).

    Args:
        reward (`float`, *optional*, defaults to `-1.0`): What a completion without an end gets.
        end_token_ids (`Sequence[int]`, *optional*): Ids that end a completion. Needed with GRPOTrainer and
            RLOOTrainer, which pass `completion_ids` but do not say what was `truncated`.

    Example:

    ```python
    >>> ended = truncated_filter(end_token_ids=[2])
    >>> ended.blocked(prompts=["", ""], completions=["a", "b"], completion_ids=[[5, 2], [5, 6]])
    [False, True]
    ```
    """
    return Filter("truncated", partial(_truncated, end_token_ids=tuple(end_token_ids)), reward)


def empty_filter(reward: float = -1.0) -> Filter:
    """Returns the filter of completions without text.

    Example:

    ```python
    >>> empty_filter().blocked(prompts=["", ""], completions=["a", " "])
    [False, True]
    ```
    """
    return Filter("empty", _empty, reward)


def _truncated(*, end_token_ids: tuple[int, ...], **columns: Any) -> list[bool]:
    truncated, completion_ids = columns.get("truncated"), columns.get("completion_ids")
    if truncated is not None:
        return [bool(value) for value in truncated]
    if completion_ids is None or not end_token_ids:
        raise UsageError(
            "the filter 'truncated' was not told what was cut off; pass truncated, or completion_ids with "
            "truncated_filter(end_token_ids=[tokenizer.eos_token_id])"
        )
    return [not len(ids) or int(ids[-1]) not in end_token_ids for ids in completion_ids]


def _empty(*, completions: Sequence[Conversation], **columns: Any) -> list[bool]:
    return [not text_of(completion).strip() for completion in completions]


@dataclass(frozen=True)
class LengthPenalty:
    """What is taken off a completion's reward for its length: min(`per_token` · max(0, length − free), `most`).

    DAPO's soft overlong punishment with L_max = 100 and L_cache = 20 (Yu et al. 2025,
    https://huggingface.co/papers/2503.14476) is `LengthPenalty(80, 1 / 20, most=1.0)`.

    Args:
        free_tokens (`int`): Length up to which nothing is taken off.
        per_token (`float`): What each further token costs, in units of the calibrated reward.
        most (`float`, *optional*, defaults to `inf`): Largest penalty.

    Raises:
        UsageError: If a number is negative or not finite.

    Example:

    ```python
    >>> LengthPenalty(free_tokens=2, per_token=0.5)([1, 2, 4]).tolist()
    [0.0, 0.0, 1.0]
    ```
    """

    free_tokens: int
    per_token: float
    most: float = np.inf

    def __post_init__(self) -> None:
        if not (0 <= self.free_tokens < np.inf and 0 <= self.per_token < np.inf and self.most >= 0):
            raise UsageError(
                f"got LengthPenalty({self.free_tokens}, {self.per_token}, most={self.most}); wanted numbers from 0"
            )

    def __call__(self, length_tokens: ArrayLike) -> Floats:
        """Returns the penalties, `(N,)`, of lengths `(N,)`."""
        over = np.asarray(length_tokens, dtype=np.float64) - self.free_tokens
        return np.minimum(self.per_token * over.clip(min=0.0), self.most)


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of numbers, which merge exactly.

    Example:

    ```python
    >>> Moments.of([1.0, 2.0]).merged(Moments.of([3.0])).mean
    2.0
    ```
    """

    count: float = 0.0
    mean: float = 0.0
    sum_squares: float = 0.0

    @classmethod
    def of(cls, values: ArrayLike) -> "Moments":
        """Returns the moments of `values`, `(N,)`; of none, those that change nothing."""
        array = np.asarray(values, dtype=np.float64)
        if not array.size:
            return cls()
        mean = float(array.mean())
        return cls(float(array.size), mean, float(((array - mean) ** 2).sum()))

    def merged(self, other: "Moments") -> "Moments":
        """Returns the moments of both sets of numbers together (Chan, Golub and LeVeque 1983)."""
        count = self.count + other.count
        if not count:
            return self
        delta = other.mean - self.mean
        between = delta**2 * self.count * other.count / count
        return Moments(count, self.mean + delta * other.count / count, self.sum_squares + other.sum_squares + between)

    def over_processes(self) -> "Moments":
        """Returns the moments of all processes' numbers, the same on each; every process has to call it."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, self)
        total = Moments()
        for own in gathered:
            total = total.merged(own)
        return total

    @property
    def std(self) -> float:
        """Standard deviation (divisor N); 0 where the numbers differ by rounding alone."""
        std = float(np.sqrt(self.sum_squares / self.count)) if self.count else 0.0
        return std if std > 1e-6 * abs(self.mean) else 0.0
