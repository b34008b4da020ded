"""The steps of a composed reward: filters, a length penalty, running moments."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from rmtrl.errors import RewardError, UsageError
from rmtrl.ppo.reward_calls import Conversations, Floats, call_step, shown, text_of
from rmtrl.types import Conversation


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
                f"{shown(prompts[index], completions[index])}"
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
