"""The order of the answers to one prompt: by score, and where scores tie by rules, the same on every machine."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtrl.data.annotations.tables import Item

TIE_RULES = ("wins", "top_criterion", "criterion", "variance", "seeded")
"""Rules that can break a tie: more wins, higher score on the criterion of most weight, higher criterion score, lower
variance between annotators, hash of seed and ids (arbitrary, but always the same)."""

TIE_BREAKS = ("wins", "top_criterion", "seeded")
"""Default order of tie-breaks; the other in use is ("criterion", "variance", "seeded")."""


def rank_items(
    items: Sequence[Item],
    scores: NDArray[np.float64],
    ranked: NDArray[np.bool_],
    rules: Sequence[NDArray[np.float64] | None],
    *,
    tolerance: float = 1e-9,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Returns the rank of each item among those of its prompt, from 1 on, and 0 for items not ranked, `(I,)`.

    Items whose score is within the tolerance of the best one not yet placed are tied with it, so the order does not
    depend on that of the input. What no rule tells apart stands in the order of the ids.

    Args:
        items (`Sequence[Item]`): Prompt id and item id of the I items.
        scores (`(I,)` array): Higher is better; NaN comes last.
        ranked (`(I,)` array): Whether to rank the item.
        rules (`Sequence` of `(I,)` arrays or `None`): Values that break ties, higher is better, NaN last; `None` is
            the hash of seed and ids.
        tolerance (`float`): Scores this near are a tie.
        seed (`int`): Seed of the hash.

    Example:

    ```python
    >>> items = [("p", "a"), ("p", "b"), ("p", "c")]
    >>> rank_items(items, np.array([0.5, 0.9, 0.5]), np.ones(3, bool), [np.array([0.0, 1.0, 2.0])]).tolist()
    [3, 1, 2]
    ```
    """
    scores, keys = _descending(scores), [None if rule is None else _descending(rule).round(9) for rule in rules]
    order = sorted(np.flatnonzero(ranked).tolist(), key=lambda k: (items[k][0], scores[k]))
    leaders: dict[int, int] = {}
    leader = -1
    for k in order:
        if leader < 0 or items[k][0] != items[leader][0] or scores[k] > scores[leader] + tolerance:
            leader = k
        leaders[k] = leader
    tied = Counter(leaders.values())

    def place(k: int) -> tuple[Any, ...]:
        alone = tied[leaders[k]] == 1
        broken = () if alone else (_hash(seed, items[k]) if key is None else key[k] for key in keys)
        return (items[k][0], scores[leaders[k]], *broken, items[k][1])

    ranks, placed = np.zeros(len(items), np.int64), Counter[str]()
    for k in sorted(order, key=place):
        placed[items[k][0]] += 1
        ranks[k] = placed[items[k][0]]
    return ranks


def _descending(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.isnan(values), np.inf, -values)


def _hash(seed: int, item: Item) -> str:
    return hashlib.sha256("\x1f".join((str(seed), *item)).encode("utf-8", "surrogatepass")).hexdigest()
