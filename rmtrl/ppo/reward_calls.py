"""How a reward of any kind is called and checked.

A failing reward stops training and shows the sample: an exception is never a number.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtrl.data.messages import message_text
from rmtrl.errors import RewardError, UsageError
from rmtrl.types import Conversation, checked_scores, failed_at, shorten

Floats = NDArray[np.float64]
Conversations = Sequence[Conversation]

RewardFunction = Callable[..., Any]
"""TRL's form: `f(prompts=, completions=, **columns) -> list[float]`; every `Scorer` is one."""


def call_reward(
    reward: RewardFunction, prompts: Conversations, completions: Conversations, /, **columns: Any
) -> Floats:
    """Returns what a reward function gives each completion, checked, `(N,)` float64; of none, it is not called.

    It is called once. Where it raises, the error names the sample by its `index` where it has one, else the batch.

    Args:
        reward (`Callable`): A scorer or a function in TRL's form.
        prompts, completions (`Sequence[Conversation]`): N of each.
        columns: Passed on.

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
    return checked_scores(
        values, len(completions), name=name, sample="completion", error=RewardError,
        shown=lambda index: f": {shown(prompts[index], completions[index])}",
    )  # fmt: skip


def call_step(
    step: RewardFunction, prompts: Conversations, completions: Conversations, columns: Mapping[str, Any], *, name: str
) -> Floats:
    """Returns what [`call_reward`] does; `name` says in errors what the step is, as it follows "the"."""
    if not len(completions):
        return np.zeros(0)
    values = attributed(
        lambda: step(prompts=prompts, completions=completions, **columns), prompts, completions, name=name
    )
    return checked_rewards(values, prompts, completions, name=name)


def attributed(run: Callable[[], Any], prompts: Conversations, completions: Conversations, *, name: str) -> Any:
    """Returns what `run` does; where it raises, the [`RewardError`] shows the sample that the error is of."""
    n = len(completions)
    if len(prompts) != n:
        raise RewardError(f"got {len(prompts)} prompts and {n} completions for the {name}; wanted as many of each")
    try:
        return run()
    except (RewardError, UsageError):
        raise
    except Exception as error:
        own = failed_at(error, n)
        which = f"completion {own[0]} of {n}" if len(own) == 1 else f"one of completions 0 to {n - 1}"
        first = "" if len(own) == 1 else "the first is "
        raise RewardError(
            f"the {name} failed for {which}: {type(error).__name__}: {' '.join(str(error).split())}: "
            f"{first}{shown(prompts[own[0]], completions[own[0]])}",
            index=own[0] if len(own) == 1 else None,
        ) from error


def shown(prompt: Conversation, completion: Conversation) -> str:
    return f"prompt {shorten(text_of(prompt))!r}, completion {shorten(text_of(completion))!r}"


def text_of(conversation: Conversation) -> str:
    """Returns the text of a conversation, without roles; a tool call counts as text."""
    if isinstance(conversation, str):
        return conversation
    return " ".join(message_text(message) or str(message.get("tool_calls") or "") for message in conversation)
