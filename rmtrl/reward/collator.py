"""Checks every preference pair as its batch is built, and measures what the trainer reports about it."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from rmtrl.errors import InvalidPairError

REASONS = (
    "identical_candidates",
    "no_shared_prompt",
    "empty_response",
    "missing_eos",
    "too_long",
    "non_finite_margin",
)
"""Why a pair cannot teach a preference. The collator's code 0 is a sound pair, code `1 + i` is `REASONS[i]`."""


def shared_prefix_length(chosen_ids: Sequence[int], rejected_ids: Sequence[int]) -> int:
    """Returns how many tokens the two sequences share from their start.

    Example:

    ```python
    >>> shared_prefix_length([1, 2, 3, 4], [1, 2, 5])
    2
    ```
    """
    if isinstance(chosen_ids, torch.Tensor) and isinstance(rejected_ids, torch.Tensor):
        chosen_ids, rejected_ids = chosen_ids.tolist(), rejected_ids.tolist()
    shortest = min(len(chosen_ids), len(rejected_ids))
    low, high = 0, shortest
    while low < high:  # bisection on slice equality runs at C speed, a loop over tokens does not
        middle = (low + high + 1) // 2
        if chosen_ids[low:middle] == rejected_ids[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class PreferencePairValidatorCollator:
    """Builds a batch with the wrapped collator and adds a reason code and the response lengths of every pair.

    The reasons are both sides identical; no token shared but the first special one, or no turn (the sides answer
    different prompts, and the example of chats, which all begin alike, says in `_own_prompts` where the answers
    start); an empty response (the example says so in `_empty_response`, or nothing is left of a side after the
    shared tokens although there is an end token); an end token on one side only; a side over `max_length`; a margin
    that is not finite. The collator drops nothing and keeps no state, so it counts right in any number of worker
    processes: the trainer counts the codes, and under `"drop"` gives the pair weight 0 with its row kept, so that
    ranks stay even.

    Args:
        collator (`Callable`):
            The collator that builds the batch, TRL's `DataCollatorForPreference` or another over its columns.
        policy (`str`, *optional*, defaults to `"warn"`):
            `"warn"` and `"drop"` hand the codes to the trainer, `"raise"` raises on the first bad pair.
        bos_token_id (`int`, *optional*):
            Token that opens every sequence; sharing it alone is not sharing a prompt.
        eos_token_id (`int`, *optional*):
            End token; without it, `missing_eos` is not checked.
        max_length (`int`, *optional*):
            Largest number of tokens a side may have; without it, `too_long` is not checked.

    Raises:
        InvalidPairError: Under `"raise"`, naming the reason and the tokens of the pair.

    Example:

    ```python
    >>> from trl.trainer.reward_trainer import DataCollatorForPreference
    >>> collator = PreferencePairValidatorCollator(DataCollatorForPreference(pad_token_id=0), eos_token_id=9)
    >>> batch = collator([{"chosen_ids": [1, 2, 9], "rejected_ids": [1, 2, 9]}])
    >>> REASONS[batch["reason"][0] - 1]
    'identical_candidates'
    ```
    """

    def __init__(
        self,
        collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
        *,
        policy: str = "warn",
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        max_length: int | None = None,
    ) -> None:
        self.collator = collator
        self.policy = policy
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.max_length = max_length

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns the wrapped batch plus `reason` (B,), `length_tokens` (B, 2) and `domain_id` (B,), int64."""
        reasons, lengths = [], []
        for example in examples:
            chosen, rejected = example["chosen_ids"], example["rejected_ids"]
            shared = shared_prefix_length(chosen, rejected)
            starts = example["_own_prompts"] if _has_own_prompts(example) else (shared, shared)
            lengths.append((len(chosen) - starts[0], len(rejected) - starts[1]))
            reason = self._reason(example, shared)
            reasons.append(1 + REASONS.index(reason) if reason else 0)
            if self.policy == "raise" and reason:
                raise InvalidPairError(
                    f"got a pair with {reason} (chosen tokens {_excerpt(chosen)}, rejected tokens "
                    f"{_excerpt(rejected)}); clean the data with `rmtrl data validate`, or set pair_validation to "
                    "'drop' or 'warn'"
                )
        batch = self.collator(examples)
        batch["reason"] = torch.tensor(reasons)
        batch["length_tokens"] = torch.tensor(lengths)
        batch["domain_id"] = torch.tensor([example.get("domain_id", -1) for example in examples])
        return batch

    def _reason(self, example: dict[str, Any], shared: int) -> str | None:
        chosen, rejected = example["chosen_ids"], example["rejected_ids"]
        if chosen == rejected:
            return "identical_candidates"
        if shared == 0 or chosen[:shared] == [self.bos_token_id] or _has_own_prompts(example):
            return "no_shared_prompt"
        # without an end token one sound answer may be the start of the other
        ends_inside = self.eos_token_id is not None and shared in (len(chosen), len(rejected))
        if example.get("_empty_response") or ends_inside:
            return "empty_response"
        if (self.eos_token_id in chosen[shared:]) != (self.eos_token_id in rejected[shared:]):
            return "missing_eos"
        if self.max_length is not None and max(len(chosen), len(rejected)) > self.max_length:
            return "too_long"
        if not math.isfinite(example.get("margin", 0.0)):
            return "non_finite_margin"
        return None


def _has_own_prompts(example: dict[str, Any]) -> bool:
    return min(example.get("_own_prompts") or (-1,)) >= 0


def _excerpt(ids: Sequence[int]) -> str:
    return f"{list(ids[:8])}{'…' if len(ids) > 8 else ''}"
