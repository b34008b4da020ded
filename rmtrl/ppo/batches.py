"""Which rows of a batch are computed together: mini-batches drawn once an update, cut into passes of like length."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

_CALL_TOKENS = {"cpu": 96, "accelerator": 2048}  # what a forward takes before its first token, in tokens


@dataclass(frozen=True)
class Plan:
    """Rows of a batch by mini-batch, and by forward pass within one.

    A row stands beside the same rows in the pass that takes its first log probability and in every pass that trains
    on it, so the ratio starts at exactly 1 in any precision.

    Args:
        mini_batches (`tuple[tuple[tuple[int, ...], ...], ...]`): Rows of each forward pass of each mini-batch, over
            all processes; process r of w takes every w-th row from the r-th on.
    """

    mini_batches: tuple[tuple[tuple[int, ...], ...], ...]

    def own(self, mini_batch: int, rank: int, world_size: int) -> list[list[int]]:
        """Returns this process's rows of a mini-batch, a list a forward pass; every process has as many passes."""
        return [list(rows[rank::world_size]) for rows in self.mini_batches[mini_batch]]

    def rows(self, mini_batch: int) -> list[int]:
        """Returns the rows of a mini-batch over all processes."""
        return [row for rows in self.mini_batches[mini_batch] for row in rows]


def make_plan(
    lengths: Sequence[int], n_mini_batches: int, *, rows_per_pass: int, world_size: int, seed: int, device_type: str
) -> Plan:
    """Returns a plan: rows dealt to mini-batches at random, each cut where the least padding is computed.

    Args:
        lengths (`Sequence[int]`): Tokens of each row.
        n_mini_batches (`int`): Divides the number of rows.
        rows_per_pass (`int`): Most rows of one process in a forward pass.
        world_size (`int`): Processes; divides the rows of a mini-batch.
        seed (`int`): Seed of the deal.
        device_type (`str`): `"cpu"` or another: a pass on an accelerator is worth more padding.

    Example:

    ```python
    >>> plan = make_plan([9, 1, 9, 1], 1, rows_per_pass=4, world_size=1, seed=0, device_type="cpu")
    >>> sorted(map(sorted, plan.mini_batches[0]))
    [[0, 1, 2, 3]]
    ```
    """
    call = _CALL_TOKENS["cpu" if device_type == "cpu" else "accelerator"]
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed)).tolist()
    size = len(lengths) // n_mini_batches
    return Plan(
        tuple(
            _cut(
                sorted(order[start : start + size], key=lambda row: lengths[row]),
                lengths,
                rows_per_pass,
                world_size,
                call,
            )
            for start in range(0, len(lengths), size)
        )
    )


def _cut(
    rows: Sequence[int], lengths: Sequence[int], rows_per_pass: int, world_size: int, call: int
) -> tuple[tuple[int, ...], ...]:
    """Cuts rows sorted by length into passes of whole groups of `world_size`, for least padding and calls."""
    steps = len(rows) // world_size
    # least cost of the first n groups of world_size rows, and where its last pass starts
    best: list[tuple[int, int]] = [(0, 0)]
    for end in range(1, steps + 1):
        width = lengths[rows[end * world_size - 1]]
        best.append(
            min(
                (best[start][0] + (end - start) * width + call, start)
                for start in range(max(0, end - rows_per_pass), end)
            )
        )
    passes: list[tuple[int, ...]] = []
    end = steps
    while end:
        start = best[end][1]
        passes.append(tuple(rows[start * world_size : end * world_size]))
        end = start
    return tuple(reversed(passes))
