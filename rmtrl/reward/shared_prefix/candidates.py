"""How sequences are scored in the least modelled time: which share a prefix, and how each group is computed.

Pure functions of token ids. A token in the linear layers takes 1, a cell of an attention matrix `cell_cost`, a forward
pass `call_cost` before its first token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rmtrl.reward.collator import shared_prefix_length
from rmtrl.reward.shared_prefix.batches import Costs, like_lengths
from rmtrl.reward.shared_prefix.plan import last_token

Method = Literal["plain", "packed", "cached"]

_MOST_CANDIDATES = 64  # a group is searched among this many neighbours in sorted order


@dataclass(frozen=True)
class Group:
    """Sequences that start with the same `prefix` tokens, and how they are computed.

    Attributes:
        members (`list[int]`): Indices of the sequences.
        prefix (`int`): Tokens they share, 0 where each is computed alone.
        method (`str`):
            `"plain"`: each in a row of its own. `"packed"`: two in one row with the prefix once, behind a mask.
            `"cached"`: the prefix in one pass, then the rests over its cache.
    """

    members: list[int]
    prefix: int
    method: Method


def plan_groups(sequences: Sequence[Sequence[int]], *, pad_token_id: int | None, costs: Costs) -> list[Group]:
    """Returns groups that hold every sequence once, with the most tokens shared, each by its fastest method.

    In sorted order, siblings stand side by side. The cuts between groups maximise `Σ (members − 1) · prefix`.

    Example:

    ```python
    >>> costs = Costs(cell=0.0, call=0.0, most_tokens=8192)
    >>> plan_groups([[7, 8, 9, 1], [5, 5], [7, 8, 9, 2]], pad_token_id=0, costs=costs)
    [Group(members=[1], prefix=0, method='plain'), Group(members=[0, 2], prefix=3, method='packed')]
    ```
    """
    order = sorted(range(len(sequences)), key=lambda i: list(sequences[i]))
    # the position a reward is read at stays out of the prefix, so that every rest has a token
    ends = [last_token(sequences[i], pad_token_id) for i in order]
    common = [shared_prefix_length(sequences[a], sequences[b]) for a, b in zip(order, order[1:], strict=False)]
    groups = []
    for start, stop in _merged(_cuts(ends, common), ends, common):
        members = order[start:stop]
        prefix = min([*ends[start:stop], *common[start : stop - 1]]) if stop - start > 1 else 0
        groups += _by_fastest_method([len(sequences[i]) for i in members], members, prefix, costs)
    return groups


def _cuts(ends: Sequence[int], common: Sequence[int]) -> list[tuple[int, int]]:
    """Returns the segments of the sorted sequences that share the most tokens."""
    best: list[tuple[int, int]] = [(0, 0)]  # most tokens shared by the first n sequences, and where their last cut is
    for stop in range(1, len(ends) + 1):
        found, prefix = (best[stop - 1][0], stop - 1), ends[stop - 1]
        for start in range(stop - 2, max(stop - 1 - _MOST_CANDIDATES, -1), -1):
            prefix = min(prefix, ends[start], common[start])
            if prefix == 0:
                break
            found = max(found, (best[start][0] + (stop - start - 1) * prefix, start))
        best.append(found)
    segments, stop = [], len(ends)
    while stop:
        segments.append((best[stop][1], stop))
        stop = best[stop][1]
    return segments[::-1]


def _merged(segments: list[tuple[int, int]], ends: Sequence[int], common: Sequence[int]) -> list[tuple[int, int]]:
    """Joins neighbours that share their whole prefixes: more candidates of one prompt than are searched at once."""

    def prefix(start: int, stop: int) -> int:
        return min([*ends[start:stop], *common[start : stop - 1]])

    merged: list[tuple[int, int]] = []
    for start, stop in segments:
        full = merged and merged[-1][1] - merged[-1][0] >= _MOST_CANDIDATES
        if full and prefix(merged[-1][0], stop) == prefix(*merged[-1]) <= prefix(start, stop):
            start = merged.pop()[0]
        merged.append((start, stop))
    return merged


def _by_fastest_method(lengths: Sequence[int], members: list[int], prefix: int, costs: Costs) -> list[Group]:
    times: dict[Method, float] = {"plain": sum(costs.rows(1, n) - costs.call for n in lengths)}
    if prefix and len(members) == 2:
        times["packed"] = costs.rows(1, sum(lengths) - prefix, masked=True) - costs.call
    if prefix:
        rests = [n - prefix for n in lengths]
        times["cached"] = costs.rows(1, prefix) + sum(
            costs.rows(len(batch), max(rests[i] for i in batch), prefix)
            for batch in like_lengths(rests, costs, prefix)
        )
    method = min(times, key=lambda name: times[name])
    if method == "plain":
        return [Group([member], 0, "plain") for member in members]
    return [Group(members, prefix, method)]
