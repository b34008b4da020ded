"""How a reward of any kind is called and checked.

A failing reward stops training and shows the sample: an exception is never a number.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

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
            f"{shown(prompts[index], completions[index])}"
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
            f"{shown(prompts[first], completions[first])}"
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


def shown(prompt: Conversation, completion: Conversation) -> str:
    return f"prompt {_cut(text_of(prompt))!r}, completion {_cut(text_of(completion))!r}"


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"


def text_of(conversation: Conversation) -> str:
    """Returns the text of a conversation, without roles; a tool call counts as text."""
    if isinstance(conversation, str):
        return conversation
    return " ".join(str(message.get("content") or message.get("tool_calls") or "") for message in conversation)
