"""Preference pairs from votes or ratings: unanimous pairs to train on, disputed ones routed apart, all counted."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from rmtrl.data.annotations.aggregation import ItemScores, annotator_trust
from rmtrl.data.annotations.tables import Annotations
from rmtrl.data.annotations.texts import VOTE_COUNTS, PairWriter
from rmtrl.data.reading.normal_form import dataset_of
from rmtrl.errors import DataError, UsageError

Disputed = Literal["adjudicate", "weight", "slice"]

DISPUTED = ("adjudicate", "weight", "slice")
ROUTES = ("train", "review_or_hold_out", "tie")
MIN_GAP = 0.05
MIN_VOTES = 2  # one vote agrees with nothing
_ROUNDING = 1e-9


@dataclass(frozen=True)
class VoteAgreement:
    """Share of the largest group of votes, and where the pair goes: one of `ROUTES`."""

    agreement: float
    route: str


@dataclass(frozen=True)
class PairSet:
    """Pairs and what became of the others.

    Args:
        pairs (`Dataset`): Pairs in the normal form, with `route` and, from votes, `agreement`.
        review (`Dataset`): Disputed pairs that are not in `pairs`. With "slice" an evaluation set in the normal form;
            with "adjudicate" the two answers side by side, with their votes if from votes, and no label.
        counts (`dict[str, int]`): Pairs judged (`n`), by route, and by what became of them.
    """

    pairs: Dataset
    review: Dataset
    counts: dict[str, int]


def vote_agreement(votes: Sequence[str]) -> VoteAgreement:
    """Returns how far the votes on one pair agree and where it goes.

    The agreement is the share of the largest group of equal votes. A unanimous pair goes to "train", one on which all
    voted "tie" is a "tie", every other goes to "review_or_hold_out".

    Args:
        votes (`Sequence[str]`): Votes, any labels; "tie" for a tie.

    Raises:
        UsageError: If there are no votes.

    Example:

    ```python
    >>> vote_agreement(["chosen", "rejected", "tie"])
    VoteAgreement(agreement=0.3333333333333333, route='review_or_hold_out')
    ```
    """
    if not votes:
        raise UsageError("got no votes; an agreement needs at least one")
    (label, largest), *_ = Counter(votes).most_common()
    if largest < len(votes):
        return VoteAgreement(largest / len(votes), "review_or_hold_out")
    return VoteAgreement(1.0, "tie" if label == "tie" else "train")


def pairs_from_votes(
    annotations: Annotations,
    *,
    disputed: Disputed = "adjudicate",
    min_votes: int = MIN_VOTES,
    annotator_weights: Mapping[str, float] | None = None,
) -> PairSet:
    """Returns one pair for every two items that were voted on.

    `preference` is the share of the votes for chosen by weight, a tie counting half; `weight` is the weight of the
    votes, their number where none carries a weight. A share of ½ has the first item as chosen. Ties stay among the
    pairs with preference ½.

    Args:
        annotations ([`Annotations`]): The judgments.
        disputed (`str`): What becomes of pairs on which votes differ: "adjudicate" (set aside for a person), "weight"
            (kept, with the vote share) or "slice" (set aside as an evaluation set).
        min_votes (`int`): Pairs with fewer votes are counted as `too_few_votes` and left out.
        annotator_weights (`Mapping[str, float]`, *optional*): Weight by annotator, 1 when not named; multiplies the
            weight a vote carries. Votes of annotators of weight 0 do not count.

    Raises:
        DataError: If there are no votes.
        UsageError: If a setting is out of range.

    Example:

    ```python
    >>> result = pairs_from_votes(read_annotations(["examples/annotations.jsonl"]), disputed="weight")
    >>> round(result.pairs[0]["preference"], 2), result.pairs[0]["weight"]
    (0.67, 3.0)
    ```
    """
    _check_disputed(disputed)
    if min_votes < 1:
        raise UsageError(f"got min_votes {min_votes}; wanted 1 or more")
    votes = annotations.votes
    if not len(votes.pair):
        raise DataError(
            "got no votes to make pairs from; wanted lines with a, b and choice, or make them from ratings"
        )
    trust = annotator_trust(annotations.annotators, annotator_weights)[votes.annotator]
    cell, size = votes.pair * 3 + votes.choice, 3 * len(votes.first)
    numbers = np.bincount(cell[trust > 0], minlength=size).reshape(-1, 3)
    weights = np.bincount(cell, votes.weight * trust, size).reshape(-1, 3)
    writer = PairWriter(annotations)
    counts = Counter(n=len(numbers))
    kept: list[dict[str, Any]] = []
    review: list[dict[str, Any]] = []
    for first, second, number, weight in zip(votes.first, votes.second, numbers, weights, strict=True):
        if number.sum() < min_votes:
            counts["too_few_votes"] += 1
            continue
        found = vote_agreement([*["a"] * number[0], *["b"] * number[1], *["tie"] * number[2]])
        counts[found.route] += 1
        sides = annotations.items[first], annotations.items[second]
        if not writer.has(*sides):
            counts["missing_text"] += 1
            continue
        label = {"route": found.route, "agreement": found.agreement}
        aside = found.route == "review_or_hold_out" and disputed != "weight"
        if aside and disputed == "adjudicate":
            review.append(writer.side_by_side(*sides) | label | dict(zip(VOTE_COUNTS, number.tolist(), strict=True)))
        else:
            share = float((weight[0] + weight[2] / 2) / weight.sum())
            row = writer.pair(*sides, share) | {"weight": float(weight.sum())} | label
            (review if aside else kept).append(row)
    form = writer.review_features if disputed == "adjudicate" else writer.vote_features
    names = (*ROUTES, "too_few_votes", "missing_text")
    return PairSet(
        dataset_of(kept, writer.vote_features),
        dataset_of(review, form),
        {"n": counts["n"], "kept": len(kept), "review": len(review)} | {name: counts[name] for name in names},
    )


def pairs_from_ratings(
    annotations: Annotations,
    scores: ItemScores,
    *,
    score: Literal["final", "criterion"] = "final",
    min_gap: float = MIN_GAP,
    disputed: Disputed = "adjudicate",
) -> PairSet:
    """Returns one pair for every two rated items of a prompt, the higher score as chosen.

    `rating_gap` is the difference of the scores on 0–1. Under the minimum gap a pair is a tie, with `preference` ½;
    else `preference` is 1. Items without a score or under the quorum make no pair. A pair with a flagged item, over
    which annotators differ, goes to "review_or_hold_out".

    Args:
        annotations ([`Annotations`]): The judgments.
        scores ([`ItemScores`]): Their scores, from [`aggregate`].
        score (`str`): "final" or "criterion", which leaves votes aside.
        min_gap (`float`): Smallest difference that is a preference.
        disputed (`str`): What becomes of pairs with a flagged item, as in [`pairs_from_votes`].

    Raises:
        DataError: If no item has a score.
        UsageError: If a setting is out of range.

    Example:

    ```python
    >>> annotations = read_annotations(["examples/annotations.jsonl"])
    >>> round(pairs_from_ratings(annotations, aggregate(annotations)).pairs[0]["rating_gap"], 3)
    0.108
    ```
    """
    _check_disputed(disputed)
    if score not in ("final", "criterion"):
        raise UsageError(f"got score {score!r}; wanted final or criterion")
    if not 0 <= min_gap <= 1:
        raise UsageError(f"got min_gap {min_gap}; wanted a difference on 0 to 1")
    values: NDArray[np.float64] = getattr(scores, score)
    usable = np.isfinite(values) & ~scores.excluded
    if not np.isfinite(values).any():
        raise DataError("no item has a score to make pairs from; wanted lines with item_id and scores")
    writer = PairWriter(annotations)
    counts = Counter(items=len(usable), items_left_out=int((~usable).sum()))
    kept: list[dict[str, Any]] = []
    review: list[dict[str, Any]] = []
    for _, group in groupby(np.flatnonzero(usable).tolist(), key=lambda k: annotations.items[k][0]):
        for first, second in combinations(group, 2):
            gap = float(values[first] - values[second])
            tie = abs(gap) < max(min_gap - _ROUNDING, _ROUNDING)
            flagged = scores.flagged[first] or scores.flagged[second]
            route = "review_or_hold_out" if flagged else "tie" if tie else "train"
            counts["n"] += 1
            counts[route] += 1
            sides = annotations.items[first], annotations.items[second]
            if not writer.has(*sides):
                counts["missing_text"] += 1
                continue
            aside = flagged and disputed != "weight"
            if aside and disputed == "adjudicate":
                review.append(writer.side_by_side(*sides) | {"route": route})
            else:
                row = writer.pair(*sides, 0.5 if tie else float(gap > 0)) | {"rating_gap": abs(gap), "route": route}
                (review if aside else kept).append(row)
    names = (*ROUTES, "missing_text", "items", "items_left_out")
    return PairSet(
        dataset_of(kept, writer.rating_features),
        dataset_of(review, writer.rated_review_features if disputed == "adjudicate" else writer.rating_features),
        {"n": counts["n"], "kept": len(kept), "review": len(review)} | {name: counts[name] for name in names},
    )


def _check_disputed(disputed: str) -> None:
    if disputed not in DISPUTED:
        raise UsageError(f"got {disputed!r} for disputed pairs; wanted {', '.join(DISPUTED)}")
