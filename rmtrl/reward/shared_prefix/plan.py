"""Which tokens stand together: units of attention, rows of units, calls of rows. Pure functions of token ids."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from rmtrl.reward.collator import shared_prefix_length
from rmtrl.reward.shared_prefix.batches import MASKED_CELL, Costs, like_lengths

SHARED, CHOSEN, REJECTED = range(BRANCHES := 3)
"""The branches of a unit. A token sees the shared ones and its own, up to itself."""

_CALL_TOKENS = 32  # what a forward and backward pass costs before its first token; measured on two CPU cores
_MOST_ROWS = 64  # of one length in a pass; more gain nothing

Call = list[list[int]]
"""The rows of one forward pass, each a list of indices of units."""


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


def last_token(ids: Sequence[int], pad_token_id: int | None) -> int:
    """Returns the position transformers reads a reward at: the last token that is not the pad token, else 0."""
    return next((i for i in range(len(ids) - 1, 0, -1) if ids[i] != pad_token_id), 0)


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
    prefix = shared_prefix_length(chosen, rejected)
    end = last_token(rejected, pad_token_id)
    return Unit(
        ids=[*chosen, *rejected[prefix:]],
        positions=[*range(len(chosen)), *range(prefix, len(rejected))],
        branches=[SHARED] * prefix + [CHOSEN] * (len(chosen) - prefix) + [REJECTED] * (len(rejected) - prefix),
        ends={
            sides[0]: last_token(chosen, pad_token_id),
            sides[1]: end if end < prefix else len(chosen) + end - prefix,
        },
    )


def plain_unit(ids: Sequence[int], *, side: int = 0, pad_token_id: int | None = None) -> Unit:
    """Returns the unit of one side alone."""
    return Unit(list(ids), list(range(len(ids))), [SHARED] * len(ids), {side: last_token(ids, pad_token_id)})


def pair_units(
    chosen: Sequence[int],
    rejected: Sequence[int],
    *,
    sides: tuple[int, int],
    pad_token_id: int | None,
    cell_cost: float,
    share: bool = True,
) -> list[Unit]:
    """Returns the pair as one shared unit, or as two plain ones where that takes less time.

    A shared unit spends attention on pairs of tokens that do not see each other, so a short prefix before long
    answers does not pay.

    Args:
        chosen (`Sequence[int]`): Tokens of the chosen side.
        rejected (`Sequence[int]`): Tokens of the rejected side.
        sides (`tuple[int, int]`): Names of the two sides in `Unit.ends`.
        pad_token_id (`int`, *optional*): Token that a model never reads a reward at.
        cell_cost (`float`): Time of one cell of the attention matrix, where a token in the linear layers takes 1.
        share (`bool`): `False` for kernels that take no mask.
    """
    sequences = [list(ids) or [pad_token_id or 0] for ids in (chosen, rejected)]
    shared = shared_unit(*sequences, sides=sides, pad_token_id=pad_token_id)
    apart = sum(_row_time(len(ids), cell_cost) for ids in sequences)
    if share and _row_time(len(shared.ids), MASKED_CELL * cell_cost) <= apart:
        return [shared]
    return [plain_unit(ids, side=s, pad_token_id=pad_token_id) for ids, s in zip(sequences, sides, strict=True)]


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
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    costs = Costs(cell_cost, _CALL_TOKENS, most_tokens=1 << 40, most_rows=_MOST_ROWS)
    plans = [[_pack(order, lengths, n_rows)] for n_rows in _row_counts(len(order))]
    if not one_call:
        plans.append([[[i] for i in batch] for batch in like_lengths(lengths, costs)])
    return min(plans, key=lambda plan: sum(costs.rows(len(call), row_tokens(call, lengths)) for call in plan))


def _row_counts(n: int) -> list[int]:
    counts = list(range(1, min(n, 32) + 1))
    while counts[-1] < n:
        counts.append(min(n, counts[-1] * 5 // 4))
    return counts


def row_tokens(call: Call, lengths: Sequence[int]) -> int:
    """Returns the tokens of a call's longest row, to which the others are padded."""
    return max(sum(lengths[i] for i in row) for row in call)


def _pack(order: Sequence[int], lengths: Sequence[int], n_rows: int) -> Call:
    """Longest first into the row with most room, which keeps the longest row within 4/3 of the best (Graham 1969)."""
    rows: Call = [[] for _ in range(n_rows)]
    loads = [(0, row) for row in range(n_rows)]
    for i in order:
        load, row = heapq.heappop(loads)
        rows[row].append(i)
        heapq.heappush(loads, (load + lengths[i], row))
    return rows


def _row_time(n_tokens: int, cell_cost: float) -> float:
    return n_tokens + cell_cost * n_tokens**2
