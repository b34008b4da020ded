"""Which tokens of pairs stand together: units of attention, rows of units, calls of rows, and their tensors."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rmtrl.data.messages import shared_prefix_length
from rmtrl.reward.batching import Costs, last_token, like_lengths

SHARED, CHOSEN, REJECTED = range(BRANCHES := 3)
"""The branches of a unit. A token sees the shared ones and its own, up to itself."""

PADDING = -BRANCHES  # a unit of its own, which sees itself: a row of a softmax without any entry is no number

_CALL_TOKENS = 32  # what a forward and backward pass costs before its first token; measured on two CPU cores
_MOST_ROWS = 64  # of one length in a pass; more gain nothing

Call = list[list[int]]
"""The rows of one forward pass, each a list of indices of units."""

Rows = dict[str, torch.Tensor]
"""One forward pass: `input_ids`, and `position_ids` and `segments` where its rows need them, all `(R, L)`."""


@dataclass(frozen=True)
class Unit:
    """Tokens that attend to each other: a pair with its prefix once, or one side alone.

    Attributes:
        ids (`list[int]`): The tokens, `(n,)`.
        positions (`list[int]`): Position of each token in its own side, `(n,)`.
        branches (`list[int]`): `SHARED`, `CHOSEN` or `REJECTED` for each token, `(n,)`.
        ends (`dict[int, int]`): For each side in the unit, the index of the token that its reward is read at.
    """

    ids: list[int]
    positions: list[int]
    branches: list[int]
    ends: dict[int, int]


def shared_unit(
    chosen: Sequence[int], rejected: Sequence[int], *, sides: tuple[int, int] = (0, 1), pad_token_id: int | None = None
) -> Unit:
    """Returns the unit `[prefix | chosen rest | rejected rest]`; positions restart after the prefix.

    Example:

    ```python
    >>> unit = shared_unit([7, 8, 1], [7, 8, 2, 3])
    >>> unit.ids, unit.positions, unit.branches, unit.ends
    ([7, 8, 1, 2, 3], [0, 1, 2, 2, 3], [0, 0, 1, 2, 2], {0: 2, 1: 4})
    ```
    """
    prefix, n_chosen, n_rejected = shared_prefix_length(chosen, rejected), len(chosen), len(rejected)
    end = last_token(rejected, pad_token_id)
    return Unit(
        ids=[*chosen, *rejected[prefix:]],
        positions=[*range(n_chosen), *range(prefix, n_rejected)],
        branches=[SHARED] * prefix + [CHOSEN] * (n_chosen - prefix) + [REJECTED] * (n_rejected - prefix),
        ends={sides[0]: last_token(chosen, pad_token_id), sides[1]: end if end < prefix else n_chosen + end - prefix},
    )


def pair_units(
    chosen: Sequence[int], rejected: Sequence[int], *, sides: tuple[int, int], pad_token_id: int | None,
    cell_cost: float, share: bool = True,
) -> list[Unit]:  # fmt: skip
    """Returns the pair as one shared unit, or as two plain ones where that takes less time.

    A shared unit spends attention on pairs of tokens that do not see each other, so a short prefix before long
    answers does not pay.

    Args:
        chosen, rejected (`Sequence[int]`): Tokens of the two sides.
        sides (`tuple[int, int]`): Names of the two sides in `Unit.ends`.
        pad_token_id (`int`, *optional*): Token that a model never reads a reward at.
        cell_cost (`float`): Time of one cell of the attention matrix, where a token in the linear layers takes 1.
        share (`bool`): `False` for kernels that take no mask.
    """
    both = [list(ids) or [pad_token_id or 0] for ids in (chosen, rejected)]
    costs = Costs(cell_cost, call=0.0, most_tokens=0)
    if share:
        shared = shared_unit(*both, sides=sides, pad_token_id=pad_token_id)
        if costs.rows(1, len(shared.ids), masked=True) <= sum(costs.rows(1, len(ids)) for ids in both):
            return [shared]
    return [
        Unit(ids, list(range(len(ids))), [SHARED] * len(ids), {side: last_token(ids, pad_token_id)})
        for ids, side in zip(both, sides, strict=True)
    ]


def plan_calls(lengths: Sequence[int], *, cell_cost: float, one_call: bool) -> list[Call]:
    """Returns the forward passes over units of these lengths that take the least modelled time.

    A pass of R rows of L tokens, padding included, takes `32 + R·L + cell_cost·R·L²`. Two kinds of plan compete: all
    units packed into R rows of one pass, for R up to 32 and then in steps of a quarter; and units one a row, rows of
    like length in one pass.

    Args:
        lengths (`Sequence[int]`): Tokens of each unit.
        cell_cost (`float`): See [`pair_units`].
        one_call (`bool`):
            Whether everything must stand in one pass: on an accelerator, where small passes leave it idle, and with
            several processes, which must all make the same number of passes.
    """
    costs = Costs(cell_cost, _CALL_TOKENS, most_tokens=1 << 40, most_rows=_MOST_ROWS)
    counts = list(range(1, min(len(lengths), 32) + 1))
    while counts[-1] < len(lengths):
        counts.append(min(len(lengths), counts[-1] * 5 // 4))
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    plans = [[_pack(order, lengths, n_rows)] for n_rows in counts]
    if not one_call:
        plans.append([[[i] for i in batch] for batch in like_lengths(lengths, costs)])
    return min(plans, key=lambda plan: sum(costs.rows(len(call), row_tokens(call, lengths)) for call in plan))


def row_tokens(call: Call, lengths: Sequence[int]) -> int:
    """Returns the tokens of a call's longest row, to which the others are padded."""
    return max(sum(lengths[i] for i in row) for row in call)


def _pack(order: Sequence[int], lengths: Sequence[int], n_rows: int) -> Call:
    """Longest first into the row with most room, which keeps the longest row within 4/3 of the best (Graham 1969)."""
    rows: Call = [[] for _ in range(n_rows)]
    loads = [(0, row) for row in range(n_rows)]
    for i in order:
        load, row = loads[0]
        rows[row].append(i)
        heapq.heapreplace(loads, (load + lengths[i], row))
    return rows


def make_rows(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]], *, pad_token_id: int, cell_cost: float, one_call: bool,
    share: bool = True,
) -> tuple[list[Rows], torch.Tensor]:  # fmt: skip
    """Returns the forward passes over pairs of token ids, and where the reward of each side stands, `(2B,)`."""
    units: list[Unit] = []
    for i, pair in enumerate(pairs):
        chosen, rejected = (ids.tolist() if isinstance(ids, torch.Tensor) else ids for ids in pair)
        units += pair_units(
            chosen, rejected, sides=(i, i + len(pairs)), pad_token_id=pad_token_id, cell_cost=cell_cost, share=share
        )
    lengths = [len(unit.ids) for unit in units]
    calls: list[Call] = [[list(range(len(units)))]]
    if share:
        calls = plan_calls(lengths, cell_cost=cell_cost, one_call=one_call)
    ends = torch.zeros(2 * len(pairs), dtype=torch.long)
    rows, start = [], 0
    for call in calls:
        chosen_units = [[units[i] for i in row] for row in call]
        rows.append(unit_tensors(chosen_units, ends, start, pad_token_id, masked=share))
        start += rows[-1]["input_ids"].numel()
    return rows, ends


def unit_tensors(
    call: list[list[Unit]], ends: torch.Tensor, start: int, pad_token_id: int, *, masked: bool = True
) -> Rows:
    """Returns the tensors of one forward pass over rows of units, filled up to the longest.

    Writes into `ends`, by side, where their rewards stand, when the pass begins at token `start` of all.
    """
    width = max(sum(len(unit.ids) for unit in row) for row in call)
    for number, row in enumerate(call):
        before = start + number * width
        for unit in row:
            for side, end in unit.ends.items():
                ends[side] = before + end
            before += len(unit.ids)
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
