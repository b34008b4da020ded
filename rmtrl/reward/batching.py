"""How sequences are computed in the least modelled time: which share a prefix, which rows stand in one forward pass.

Pure functions of token ids and lengths. A token in the linear layers takes 1, a cell of an attention matrix
`Costs.cell`, a forward pass `Costs.call` before its first token.
"""

from bisect import bisect_left
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

from rmtrl.data.messages import shared_prefix_length

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


def last_token(ids: Sequence[int], pad_token_id: int | None) -> int:
    """Returns the position transformers reads a reward at: the last token that is not the pad token, else 0."""
    return next((i for i in range(len(ids) - 1, 0, -1) if ids[i] != pad_token_id), 0)


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


Job = tuple[str, list[Group]]
"""One step of work: a method of [`Group`] and the groups that go through it together."""


def plan_jobs(
    sequences: Sequence[Sequence[int]], *, pad_token_id: int, costs: Costs, share: bool,
    kinds: Sequence[Hashable] | None = None,
) -> list[Job]:  # fmt: skip
    """Returns the steps that score every sequence once.

    Args:
        sequences (`Sequence[Sequence[int]]`): Token ids.
        pad_token_id (`int`): Token that a model never reads a reward at.
        costs ([`Costs`]): What a pass takes on this device and model.
        share (`bool`): Whether the model can compute a shared prefix once.
        kinds (`Sequence[Hashable]`, *optional*): See [`kinds_of_rows`]; plain rows of one kind stand together.
    """
    groups = [Group([index], 0, "plain") for index in range(len(sequences))]
    if share:
        groups = plan_groups(sequences, pad_token_id=pad_token_id, costs=costs)
    jobs: list[Job] = [("cached", [group]) for group in groups if group.method == "cached"]
    alike: dict[tuple[str, Hashable], list[Group]] = {}
    for group in groups:
        if group.method != "cached":
            kind = kinds[group.members[0]] if kinds is not None and group.method == "plain" else None
            alike.setdefault((group.method, kind), []).append(group)
    for method, kind in sorted(alike, key=lambda key: key[0]):  # packed rows first
        rows = alike[method, kind]
        lengths = [row_length(group, sequences) for group in rows]
        jobs += [(method, [rows[i] for i in batch]) for batch in like_lengths(lengths, costs)]
    return jobs


def row_length(group: Group, sequences: Sequence[Sequence[int]]) -> int:
    """Returns the tokens of the row in which a group that is not cached stands."""
    return sum(len(sequences[i]) for i in group.members) - group.prefix * (len(group.members) - 1)
