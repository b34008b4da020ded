"""Rows of like length put into forward passes that take the least modelled time. Pure functions of lengths."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

MASKED_CELL = 1.8
"""Time of a cell behind a mask, where one of a causal row takes 1: a causal kernel skips half of them. Measured with
SDPA on two CPU cores."""


@dataclass(frozen=True)
class Costs:
    """What computing takes, in the time of one token in the linear layers.

    Attributes:
        cell (`float`): One cell of the attention matrix of a plain causal row.
        call (`float`): A forward pass before its first token.
        most_tokens (`int`): Most tokens of one pass, padding included.
        most_rows (`int`, *optional*): Most rows of one pass.
    """

    cell: float
    call: float
    most_tokens: int
    most_rows: int | None = None

    def rows(self, n_rows: int, n_tokens: int, before: int = 0, masked: bool = False) -> float:
        """Returns the time of one pass of rows of `n_tokens` that also see `before` cached ones."""
        cell = self.cell * (MASKED_CELL if masked or before else 1.0)
        return self.call + n_rows * n_tokens * (1 + cell * (n_tokens + before))

    def too_many(self, n_rows: int, n_tokens: int, before: int = 0) -> bool:
        """Returns whether rows do not fit one pass; a single row always does."""
        return n_rows > 1 and (n_rows > (self.most_rows or n_rows) or n_rows * (n_tokens + before) > self.most_tokens)


def like_lengths(lengths: Sequence[int], costs: Costs, before: int = 0) -> list[list[int]]:
    """Returns batches of indices, longest first, whose passes take the least modelled time within the budget.

    A cut among rows of one length only pays where a pass is full, so what is tried for each end is where the length
    changes and the furthest start that fits: quick even for many short rows.

    Args:
        lengths (`Sequence[int]`): Tokens of each row.
        costs ([`Costs`]): What a pass takes; a row longer than the budget has a pass of its own.
        before (`int`): Cached tokens that every row also sees.

    Example:

    ```python
    >>> like_lengths([9, 100, 10, 98], Costs(cell=0.0, call=5.0, most_tokens=8192))
    [[1, 3], [2, 0]]
    ```
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    sizes = [lengths[i] for i in order]
    changes = [i for i in range(len(sizes)) if i == 0 or sizes[i] != sizes[i - 1]]
    best: list[tuple[float, int]] = [(0.0, 0)]
    furthest = 0
    for stop in range(1, len(order) + 1):
        while costs.too_many(stop - furthest, sizes[furthest], before):
            furthest += 1
        starts = {furthest, *changes[bisect_left(changes, furthest) : bisect_left(changes, stop)]}
        best.append(min((best[s][0] + costs.rows(stop - s, sizes[s], before), s) for s in starts))
    batches, stop = [], len(order)
    while stop:
        start = best[stop][1]
        batches.append(order[start:stop])
        stop = start
    return batches[::-1]
