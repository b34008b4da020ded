"""A pair: its columns, whether a loss can use them, and the tensors that a batch and a step carry of it."""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from rmtrl.data.messages import shared_prefix_length
from rmtrl.data.normal_form import SCORES, criterion_scores
from rmtrl.errors import DataError, InvalidPairError
from rmtrl.reward.config import RewardConfig
from rmtrl.reward.heads import Head
from rmtrl.reward.losses import TIE_LOSSES
from rmtrl.types import PairRewards

Collator = Callable[[list[dict[str, Any]]], dict[str, Any]]

REASONS = (
    "identical_candidates", "no_shared_prompt", "empty_response", "missing_eos", "too_long", "non_finite_margin",
)  # fmt: skip
"""Why a pair cannot teach a preference. The collator's code 0 is a sound pair, code `1 + i` is `REASONS[i]`."""

BATCH = ("reason", "length_tokens", "domain_id", "label", "weight", "margin", "targets", "bootstrap", "starts",
         "rows", "ends")  # fmt: skip
"""Tensors of a batch that are not the model's."""

# what a step hands over of each pair, and what stands for a column that a batch lacks
_DEFAULTS = {"reason": 0.0, "domain_id": -1.0, "label": 1.0, "weight": 1.0}
_COUNTS = ("chosen_length_tokens", "rejected_length_tokens", "reason", "domain")


class Column(NamedTuple):
    """A column of a prepared set besides TRL's: what a cell holds, whether the loss needs it, its least and most."""

    kind: str
    needed: bool = False
    low: float = -math.inf
    high: float = math.inf


def pair_columns(settings: RewardConfig) -> dict[str, Column]:
    """Returns the columns that some loss reads, or the trainer, and what this configuration needs of them."""
    votes = settings.soft_labels or settings.loss_type in TIE_LOSSES
    criteria, averages = settings.loss_type == "attributes", settings.pooling == "mean"
    return {
        "preference": Column("share of votes", votes, 0.0, 1.0),
        "weight": Column("number", settings.use_weights, 0.0, 1e12),
        "rating_gap": Column("number", settings.margin_per_rating is not None, -1e6, 1e6),
        "chosen_scores": Column("scores by criterion", criteria),
        "rejected_scores": Column("scores by criterion", criteria),
        "chosen_start": Column("first token of the answer", averages),
        "rejected_start": Column("first token of the answer", averages),
        "domain_id": Column("class"),
        "_empty_response": Column("truth"),
        "_own_prompts": Column("first tokens of answers to different prompts, else -1"),
    }


def check_columns(settings: RewardConfig, dataset: Any, names: Sequence[str], dataset_name: str) -> list[str]:
    """Returns what is noteworthy about a set's columns, whose numbers are read once.

    Args:
        settings ([`RewardConfig`]): The configuration.
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]): The set.
        names (`Sequence[str]`): Its columns.
        dataset_name (`str`): Its name, for the message.

    Raises:
        DataError: If a column that the loss reads is absent, two stand for the same thing, a streamed set cannot
            serve, a number is missing or out of range, or no response is judged on some criterion.
    """
    if not any({f"chosen{end}", f"rejected{end}"} <= set(names) for end in ("", "_ids")):
        raise DataError(
            f"the {dataset_name} set has the columns {', '.join(names)}; wanted prompt, chosen and rejected: "
            'dataset.rename_columns({"YOURS": "chosen", …})'
        )
    columns, whole = pair_columns(settings), isinstance(dataset, Dataset)
    absent = [name for name, column in columns.items() if column.needed and name not in names]
    if "chosen_ids" not in names:  # what is still text gets its starts
        absent = [name for name in absent if not name.endswith("_start")]
    if "chosen_start" in absent:
        raise DataError(
            f"the {dataset_name} set holds tokens, and pooling='mean' has to know where the last message starts; give "
            "the messages or the text"
        )
    if absent:
        raise DataError(
            f"the {dataset_name} set has no column {' or '.join(absent)}, which loss_type={settings.loss_type!r} "
            "reads as configured; add it, or change loss_type, soft_labels, use_weights or margin_per_rating"
        )
    if "margin" in names and settings.margin_per_rating is not None:
        raise DataError(f"the {dataset_name} set has the column margin, and margin_per_rating makes another; drop one")
    if not whole and (settings.use_weights or (settings.ties == "raise" and not settings.knows_ties)):
        raise DataError(
            f"the {dataset_name} set is streamed: its mean weight and its ties are not known before the end; load it "
            "whole, or leave use_weights and ties='raise'"
        )
    if whole:
        _check_values(dataset, columns, settings, dataset_name)
    if "margin" in names and settings.loss_type != "bradley_terry":
        return [f"the column margin is not used: loss_type is {settings.loss_type!r}"]
    return []


def _check_values(dataset: Dataset, columns: Mapping[str, Column], settings: RewardConfig, dataset_name: str) -> None:
    """Raises for the first number of a column in use that is missing or out of range."""
    for name in [name for name in columns if name in dataset.column_names]:
        kind, needed, low, high = columns[name]
        if not (math.isfinite(low) and (needed or name == "preference" and settings.knows_ties)):
            continue
        values = _numbers(dataset[name])
        for index in np.flatnonzero(~((values >= low) & (values <= high))).tolist():
            raise DataError(
                f"{name} of pair {index} of the {dataset_name} set is {dataset[index][name]!r}; wanted a number from "
                f"{low:g} to {high:g}"
            )
    margins = dataset["margin"] if "margin" in dataset.column_names else []
    if n := sum(not isinstance(margin, float | int) for margin in margins):
        raise DataError(f"column margin of the {dataset_name} set holds what is no number {n} times; mend or drop it")
    if settings.attribute_weights:
        _check_scores(dataset, list(settings.attribute_weights), dataset_name)


def _check_scores(dataset: Dataset, criteria: Sequence[str], dataset_name: str) -> None:
    """Raises for scores that are out of range, and for a criterion that no response is judged on."""
    judged: set[str] = set()
    for side in SCORES:
        for index, given in enumerate(dataset[side]):
            scores = {name: score for name, score in criterion_scores(side, given).items() if score is not None}
            judged.update(scores)
            for name in criteria:
                score = scores.get(name, 0)
                if not (isinstance(score, int | float) and 0 <= score <= 1):
                    raise DataError(
                        f"{side} of pair {index} of the {dataset_name} set has {name} {score!r}; wanted numbers from "
                        "0 to 1"
                    )
    absent = [name for name in criteria if name not in judged]
    if absent:
        raise DataError(
            f"no response of the {dataset_name} set is judged on {', '.join(absent)} (found: "
            f"{', '.join(sorted(judged)) or 'nothing'}); attribute_weights names what is in the data"
        )


def without_ties(
    dataset: Dataset | IterableDataset, settings: RewardConfig, dataset_name: str
) -> tuple[Dataset | IterableDataset, int, list[str]]:
    """Returns the set without the pairs that the loss has no place for, how many there were, and what is noteworthy.

    Under plain Bradley–Terry a column `preference` that is no share of votes is left out.

    Raises:
        DataError: If there are ties and `ties` is `"raise"`, if nothing else is left, or if votes favour rejected.
    """
    if settings.knows_ties:
        return dataset, 0, []
    if not isinstance(dataset, Dataset):
        return dataset.filter(lambda pair: pair["preference"] != 0.5), 0, []
    votes = _numbers(dataset["preference"])
    for wrong in np.flatnonzero(~((votes >= 0) & (votes <= 1))).tolist():
        found = dataset[wrong]["preference"]
        note = f"the column preference of the {dataset_name} set is no share of votes ({found!r}) and is not read"
        return dataset.remove_columns("preference"), 0, [note]
    for turned in np.flatnonzero(votes < 0.5).tolist():
        raise DataError(
            f"preference of pair {turned} of the {dataset_name} set is below ½, so most votes are for rejected; "
            "exchange the sides (reading with rmtrl.data does), or set soft_labels=True"
        )
    ties = int((votes == 0.5).sum())
    if not ties:
        return dataset, 0, []
    if settings.ties == "raise" or ties == len(votes):
        raise DataError(
            f"{ties:,} of {len(votes):,} pairs of the {dataset_name} set are ties (preference ½), which "
            "loss_type='bradley_terry' has no place for; leave them out (ties='drop'), set soft_labels=True, or take "
            "loss_type='davidson'"
        )
    note = (
        f"{ties:,} ties (preference ½) of the {dataset_name} set are left out: plain Bradley–Terry has no place for "
        "them (soft_labels, davidson and rao_kupper have)"
    )
    return dataset.select(np.flatnonzero(votes != 0.5)), ties, [note]


def mean_weight(dataset: Dataset, dataset_name: str) -> float:
    """Returns the mean of the column `weight`.

    Raises:
        DataError: If all are 0.
    """
    mean = float(_numbers(dataset["weight"]).mean())
    if not mean > 0:
        raise DataError(f"all weights of the {dataset_name} set are 0; nothing would be trained on")
    return mean


def _numbers(values: Sequence[Any]) -> NDArray[np.float64]:
    """Returns the values as numbers, NaN where one is none."""
    return np.array([value if isinstance(value, int | float) else np.nan for value in values], dtype=np.float64)


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
        self, collator: Collator, *, policy: str = "warn", bos_token_id: int | None = None,
        eos_token_id: int | None = None, max_length: int | None = None,
    ) -> None:  # fmt: skip
        self.collator = collator
        self.policy = policy
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.max_length = max_length

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns the wrapped batch plus `reason` (B,), `length_tokens` (B, 2) and `domain_id` (B,), int64."""
        reasons, lengths = [], []
        for example in examples:
            chosen, rejected = _sides(example)
            shared = shared_prefix_length(chosen, rejected)
            starts = example["_own_prompts"] if _has_own_prompts(example) else (shared, shared)
            lengths.append((len(chosen) - starts[0], len(rejected) - starts[1]))
            reason = self.reason(example)
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

    def reason(self, example: Mapping[str, Any]) -> str | None:
        """Returns why a pair cannot teach a preference, `None` for a sound one."""
        chosen, rejected = _sides(example)
        if chosen == rejected:
            return "identical_candidates"
        shared = shared_prefix_length(chosen, rejected)
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
        return None if math.isfinite(example.get("margin", 0.0)) else "non_finite_margin"


def validating(
    collator: Any, wrap: Callable[[Collator], Collator], tokenizer: PreTrainedTokenizerBase, max_length: int | None,
    policy: str,
) -> PreferencePairValidatorCollator:  # fmt: skip
    """Returns the collator where it validates already, else one that does around what `wrap` makes of it."""
    if isinstance(collator, PreferencePairValidatorCollator):
        return collator
    start = tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return PreferencePairValidatorCollator(
        wrap(collator), policy=policy, bos_token_id=start, eos_token_id=tokenizer.eos_token_id, max_length=max_length
    )


def check_some_sound(dataset: Dataset, collator: PreferencePairValidatorCollator) -> None:
    """Raises where every pair of a training set is invalid, so that nothing would be left to train on.

    Raises:
        DataError: With the reasons.
    """
    reasons: dict[str, int] = {}
    for example in dataset:
        reason = collator.reason(example)
        if reason is None:
            return
        reasons[reason] = reasons.get(reason, 0) + 1
    counts = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
    raise DataError(
        f"pair_validation='drop' leaves nothing to train on: all {len(dataset):,} pairs of the train set are invalid "
        f"({counts}); clean the data with `rmtrl data validate`, or set pair_validation='warn'"
    )


def _sides(example: Mapping[str, Any]) -> list[list[int]]:
    sides = (example["chosen_ids"], example["rejected_ids"])
    return [ids.tolist() if isinstance(ids, torch.Tensor) else ids for ids in sides]


def _has_own_prompts(example: Mapping[str, Any]) -> bool:
    return min(example.get("_own_prompts") or (-1,)) >= 0


def _excerpt(ids: Sequence[int]) -> str:
    return f"{list(ids[:8])}{'…' if len(ids) > 8 else ''}"


class LabelCollator:
    """
    Adds what an [`Objective`] reads to the batches of another collator.

    `label` `(B,)`, `weight` `(B,)`, `margin` `(B,)`, `targets` `(2B, C)`, `starts` `(2B,)` (first token that a mean
    is taken over) and `bootstrap` `(B, K)`: exponential weights drawn for each pair from its own tokens, so that a
    member sees the same sample in every epoch, on every machine.
    """

    def __init__(self, collator: Collator, settings: RewardConfig, head: Head) -> None:
        self.collator = collator
        self.head = head
        self.seed = settings.seed
        self.soft_labels = settings.soft_labels
        self.use_weights = settings.use_weights
        self.margin_per_rating = settings.margin_per_rating

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns the wrapped batch and the tensors named above."""
        batch = self.collator(examples)
        given = examples[0].keys()  # rewards are predicted of sets without labels too
        if "preference" in given:
            batch["label"] = torch.tensor([self._label(example["preference"]) for example in examples])
        if self.use_weights and "weight" in given:
            batch["weight"] = torch.tensor([float(example["weight"]) for example in examples])
        if self.margin_per_rating is not None and "rating_gap" in given:
            batch["margin"] = self.margin_per_rating * torch.tensor([float(e["rating_gap"]) for e in examples])
        if self.head.criteria and "chosen_scores" in given:
            sides = [criterion_scores(side, e[side]) for side in SCORES for e in examples]
            rows = [[float("nan") if s.get(name) is None else s[name] for name in self.head.criteria] for s in sides]
            batch["targets"] = torch.tensor(rows, dtype=torch.float32)
        if self.head.members > 1:
            batch["bootstrap"] = torch.stack([self._bootstrap(example) for example in examples])
        if self.head.pooling == "mean":
            starts = [example[f"{side}_start"] for side in ("chosen", "rejected") for example in examples]
            batch["starts"] = torch.tensor(starts)
        return batch

    def _label(self, preference: Any) -> float:
        (share,) = _numbers([preference])
        if not 0 <= share <= 1:
            raise DataError(f"got a pair with the preference {preference!r}; wanted a number from 0 to 1")
        return float(share if self.soft_labels else (np.sign(share - 0.5) + 1) / 2)

    def _bootstrap(self, example: dict[str, Any]) -> torch.Tensor:
        key = np.array([self.seed, *example["chosen_ids"], -1, *example["rejected_ids"]], dtype=np.int64)
        draw = np.random.default_rng(zlib.crc32(key.tobytes())).exponential(size=self.head.members)
        return torch.tensor(draw, dtype=torch.float32)


def step_columns(
    inputs: Mapping[str, Any], chosen: torch.Tensor, rejected: torch.Tensor, losses: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Returns what a step knows of its pairs, `(B,)` each: those of [`PairRewards`], `weight`, and `tokens`."""
    tokens = inputs["attention_mask"].sum(dim=1).view(2, -1).sum(dim=0)
    lengths = inputs.get("length_tokens", torch.zeros_like(tokens)[:, None].expand(-1, 2))
    given = {name: inputs.get(name, torch.full_like(losses, value)) for name, value in _DEFAULTS.items()}
    given["domain"] = given.pop("domain_id")
    sides = {"chosen_length_tokens": lengths[:, 0], "rejected_length_tokens": lengths[:, 1]}
    return {"chosen": chosen, "rejected": rejected, "loss": losses, "tokens": tokens, **sides, **given}


def pair_rewards(steps: Sequence[Mapping[str, torch.Tensor]]) -> PairRewards:
    """Returns the pairs of some steps, see [`step_columns`], one after another."""
    columns: dict[str, Any] = {}
    for name in PairRewards.__dataclass_fields__:
        column = torch.cat([step[name] for step in steps]).cpu().double().numpy()
        columns[name] = column.astype(np.int64) if name in _COUNTS else column
    return PairRewards(**columns)
