"""The tensors of packed rows: two-dimensional ones only, which pass through workers and processes as they are."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from rmtrl.reward.shared_prefix.masks import PADDING
from rmtrl.reward.shared_prefix.plan import BRANCHES, Call, Unit, pair_units, plan_calls, row_tokens

Rows = dict[str, torch.Tensor]
"""One forward pass: `input_ids`, and `position_ids` and `segments` where its rows need them, all `(R, L)`."""


class SharedPrefixCollator:
    """Adds to the wrapped collator's batch the rows that hold each shared prefix once, next to almost no padding.

    The batch keeps TRL's `input_ids` and `attention_mask`, which the host counts tokens by and which a model that
    cannot take rows is given. `rows` is a list of [`Rows`], one a forward pass; `ends` `(2B,)` says where the rewards
    of the chosen and then of the rejected sides stand among the tokens of all passes, one row after another.

    Args:
        collator (`Callable`): TRL's `DataCollatorForPreference`.
        pad_token_id (`int`): Fills rows; a model never reads a reward at it.
        cell_cost (`float`): See [`pair_units`].
        one_call (`bool`): See [`plan_calls`].
        share (`bool`): `False` for kernels that take no mask: sides stand one after another in a single row.

    Example:

    ```python
    >>> from trl.trainer.reward_trainer import DataCollatorForPreference
    >>> collator = SharedPrefixCollator(DataCollatorForPreference(pad_token_id=0), pad_token_id=0)
    >>> batch = collator([{"chosen_ids": [7, 8, 1], "rejected_ids": [7, 8, 2, 3]}])
    >>> batch["rows"][0]["input_ids"].tolist(), batch["ends"].tolist()
    ([[7, 8, 1, 2, 3]], [2, 4])
    ```
    """

    def __init__(
        self,
        collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
        *,
        pad_token_id: int,
        cell_cost: float = 0.0,
        one_call: bool = True,
        share: bool = True,
    ) -> None:
        self.collator = collator
        self.pad_token_id = pad_token_id
        self.settings: dict[str, Any] = {"cell_cost": cell_cost, "one_call": one_call, "share": share}

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns the wrapped batch plus `rows` and `ends`."""
        batch = self.collator(examples)
        pairs = [(example["chosen_ids"], example["rejected_ids"]) for example in examples]
        batch["rows"], batch["ends"] = make_rows(pairs, pad_token_id=self.pad_token_id, **self.settings)
        return batch


def make_rows(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    pad_token_id: int,
    cell_cost: float,
    one_call: bool,
    share: bool = True,
) -> tuple[list[Rows], torch.Tensor]:
    """Returns the forward passes over pairs of token ids, and where the reward of each side stands, `(2B,)`."""
    lists = [tuple(ids.tolist() if isinstance(ids, torch.Tensor) else ids for ids in pair) for pair in pairs]
    units = [
        unit
        for i, (chosen, rejected) in enumerate(lists)
        for unit in pair_units(
            chosen,
            rejected,
            sides=(i, i + len(pairs)),
            pad_token_id=pad_token_id,
            cell_cost=cell_cost,
            share=share,
        )
    ]
    lengths = [len(unit.ids) for unit in units]
    calls: list[Call] = [[list(range(len(units)))]]
    if share:
        calls = plan_calls(lengths, cell_cost=cell_cost, one_call=one_call)
    ends = torch.zeros(2 * len(pairs), dtype=torch.long)
    rows, start = [], 0
    for call in calls:
        width = row_tokens(call, lengths)
        for row in call:
            find_ends(ends, [units[i] for i in row], start)
            start += width
        rows.append(unit_tensors([[units[i] for i in row] for row in call], width, pad_token_id, masked=share))
    return rows, ends


def find_ends(ends: torch.Tensor, row: list[Unit], start: int) -> None:
    """Writes into `ends`, by side, where the rewards of a row stand that begins at token `start` of all."""
    for unit in row:
        for side, end in unit.ends.items():
            ends[side] = start + end
        start += len(unit.ids)


def unit_tensors(call: list[list[Unit]], width: int, pad_token_id: int, *, masked: bool) -> Rows:
    """Returns the tensors of one forward pass over rows of units, each row filled up to `width` tokens."""
    rows = {"input_ids": _padded([[t for unit in row for t in unit.ids] for row in call], width, pad_token_id)}
    if all(len(row) == 1 and not any(row[0].branches) for row in call):
        return rows  # plain causal rows, padded behind: the fastest kernels take no mask
    rows["position_ids"] = _padded([[p for unit in row for p in unit.positions] for row in call], width, 0)
    if masked:
        segments = [[BRANCHES * i + branch for i, unit in enumerate(row) for branch in unit.branches] for row in call]
        rows["segments"] = _padded(segments, width, PADDING)
    return rows


def _padded(rows: list[list[int]], width: int, value: int) -> torch.Tensor:
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])
