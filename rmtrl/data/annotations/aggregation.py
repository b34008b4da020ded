"""Scores of items from ratings and votes: criterion score, Borda score, their blend, and the order within a prompt."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtrl.data.annotations.ranking import TIE_BREAKS, TIE_RULES, rank_items
from rmtrl.data.annotations.tables import Annotations, Item
from rmtrl.errors import UsageError

Floats = NDArray[np.float64]

ALPHA = 0.6
MAX_SPREAD = 0.25  # one step of a five-point scale


@dataclass(frozen=True)
class ItemScores:
    """Scores of I items; NaN where nothing was judged.

    Args:
        items (`tuple[Item, ...]`): Prompt id and item id of every item, as in the annotations.
        criteria (`tuple[str, ...]`): Names of the C criteria.
        weights (`dict[str, float]`): Weight of each criterion; they sum to 1.
        criterion_scores (`(I, C)` float64): Mean over annotators on 0–1.
        criterion (`(I,)` float64): Weighted sum of the criterion scores.
        variance (`(I,)` float64): Weighted mean over criteria of the variance between annotators.
        borda (`(I,)` float64): (wins + ½ ties) / comparisons on 0–1.
        wins (`(I,)` float64): Wins by weight.
        comparisons (`(I,)` float64): Votes by weight.
        final (`(I,)` float64): α · criterion + (1 − α) · borda, or the one of the two that there is.
        judgments (`(I,)` int64): Annotators who rated the item or voted on it.
        excluded (`(I,)` bool): Fewer judgments than the quorum: not ranked, not paired.
        flagged (`(I,)` bool): Ratings spread wider than the limit, or a vote without a majority.
        rank (`(I,)` int64): Place within the prompt from 1 on, 0 for excluded items.
        counts (`dict[str, int]`): Items by what happened to them.
    """

    items: tuple[Item, ...]
    criteria: tuple[str, ...]
    weights: dict[str, float]
    criterion_scores: Floats
    criterion: Floats
    variance: Floats
    borda: Floats
    wins: Floats
    comparisons: Floats
    final: Floats
    judgments: NDArray[np.int64]
    excluded: NDArray[np.bool_]
    flagged: NDArray[np.bool_]
    rank: NDArray[np.int64]
    counts: dict[str, int]

    def rows(self) -> list[dict[str, Any]]:
        """Returns one plain dictionary an item, ready for JSON, None where a score is undefined."""

        def plain(value: float) -> float | None:
            return float(value) if math.isfinite(value) else None

        return [
            {
                "item_id": item_id,
                "prompt_id": prompt_id,
                "criteria": {n: plain(s) for n, s in zip(self.criteria, self.criterion_scores[k], strict=True)},
                **{name: plain(getattr(self, name)[k]) for name in ("criterion", "variance", "borda", "final")},
                "wins": float(self.wins[k]),
                "comparisons": float(self.comparisons[k]),
                "judgments": int(self.judgments[k]),
                "rank": int(self.rank[k]) or None,
                "excluded": bool(self.excluded[k]),
                "flagged": bool(self.flagged[k]),
            }
            for k, (prompt_id, item_id) in enumerate(self.items)
        ]


def blend(criterion: Any, borda: Any, alpha: float = ALPHA) -> Floats:
    """Returns α · criterion + (1 − α) · borda, or the one of the two that is not NaN.

    Example:

    ```python
    >>> blend([0.83, 0.68, 0.75], [1.0, 0.5, 0.0]).round(3).tolist()
    [0.898, 0.608, 0.45]
    ```
    """
    criterion, borda = np.asarray(criterion, float), np.asarray(borda, float)
    both = alpha * criterion + (1 - alpha) * borda
    return np.where(np.isnan(criterion), borda, np.where(np.isnan(borda), criterion, both))


def aggregate(
    annotations: Annotations,
    *,
    weights: Mapping[str, float] | None = None,
    alpha: float = ALPHA,
    quorum: int = 1,
    annotator_weights: Mapping[str, float] | None = None,
    max_spread: float = MAX_SPREAD,
    tie_breaks: Sequence[str] = TIE_BREAKS,
    tolerance: float = 1e-9,
    seed: int = 0,
) -> ItemScores:
    """Returns the scores of every item and its rank among the answers to its prompt.

    A rating x becomes (x − low) / (high − low). An item that lacks a criterion is scored by those it has, their
    weights scaled up to sum to 1, and counted as incomplete. Items whose final scores differ by no more than the
    tolerance from the best of them are ranked by `tie_breaks`, see [`rmtrl.data.annotations.ranking`].

    Args:
        annotations ([`Annotations`]): The judgments.
        weights (`Mapping[str, float]`, *optional*): Weight by criterion, not negative, of sum 1; equal when absent.
            Criteria not named have weight 0.
        alpha (`float`): Share of the criterion score in the final score.
        quorum (`int`): Fewest annotators an item needs.
        annotator_weights (`Mapping[str, float]`, *optional*): Weight by annotator, 1 when not named; multiplies the
            weight a judgment carries.
        max_spread (`float`): Standard deviation between annotators, on 0–1, above which an item is flagged.
        tie_breaks (`Sequence[str]`): Rules, the first that tells two items apart decides.
        tolerance (`float`): Final scores this near are a tie.
        seed (`int`): Seed of the rule "seeded".

    Raises:
        UsageError: If a setting is out of range or names what there is not.

    Example:

    ```python
    >>> scores = aggregate(read_annotations(["examples/annotations.jsonl"]), quorum=3)
    >>> round(scores.rows()[0]["final"], 3)
    0.658
    ```
    """
    _check(alpha, quorum, tie_breaks, tolerance, seed)
    criteria, n_items = annotations.ratings.criteria, len(annotations.items)
    shares = _criterion_weights(criteria, weights)
    trust = annotator_trust(annotations.annotators, annotator_weights)
    scores, variances = _criterion_scores(annotations, trust)
    wins, comparisons, borda = _borda(annotations, trust)
    criterion = _weighted(scores, shares)
    judgments = _judgments(annotations)
    spread = (np.sqrt(variances) > max_spread) & (shares > 0)
    excluded = judgments < quorum
    flagged = spread.any(axis=1) | _on_split_votes(annotations)
    final = blend(criterion, borda, alpha)
    incomplete = (np.isnan(scores) & (shares > 0)).any(axis=1) & np.isfinite(criterion)
    top = scores[:, np.argmax(shares)] if len(criteria) else np.full(n_items, np.nan)
    variance = _weighted(variances, shares)
    better = {"wins": wins, "top_criterion": top, "criterion": criterion, "variance": -variance}
    rules = [better.get(name) for name in tie_breaks]
    return ItemScores(
        annotations.items, criteria, dict(zip(criteria, shares.tolist(), strict=True)), scores, criterion, variance,
        borda, wins, comparisons, final, judgments, excluded, flagged,
        rank_items(annotations.items, final, ~excluded, rules, tolerance=tolerance, seed=seed),
        {
            "items": n_items,
            "excluded": int(excluded.sum()),
            "flagged": int(flagged.sum()),
            "without_ratings": int(np.isnan(criterion).sum()),
            "without_votes": int(np.isnan(borda).sum()),
            "incomplete": int(incomplete.sum()),
        },
    )  # fmt: skip


def _check(alpha: float, quorum: int, tie_breaks: Sequence[str], tolerance: float, seed: int) -> None:
    if not 0 <= alpha <= 1:
        raise UsageError(f"alpha is {alpha}; wanted a share from 0 to 1")
    if quorum < 1:
        raise UsageError(f"quorum is {quorum}; wanted 1 or more")
    if not tolerance >= 0:
        raise UsageError(f"tolerance is {tolerance}; wanted a difference of scores, 0 or more")
    if seed < 0:
        raise UsageError(f"seed is {seed}; wanted 0 or more")
    unknown = [name for name in tie_breaks if name not in TIE_RULES]
    if unknown:
        raise UsageError(f"no tie-break {', '.join(unknown)}; wanted some of {', '.join(TIE_RULES)}")


def _criterion_weights(criteria: Sequence[str], weights: Mapping[str, float] | None) -> Floats:
    if weights is None:
        return np.full(len(criteria), 1 / max(len(criteria), 1))
    unknown = [name for name in weights if name not in criteria]
    if unknown:
        raise UsageError(f"no ratings of {', '.join(unknown)}; the criteria are {', '.join(criteria) or 'none'}")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights.values()):
        raise UsageError(f"got weights {dict(weights)}; wanted numbers of 0 or more")
    if not math.isclose(sum(weights.values()), 1, abs_tol=1e-6):
        raise UsageError(f"the weights sum to {sum(weights.values()):g}; wanted 1: divide each by the sum")
    return np.array([weights.get(name, 0.0) for name in criteria])


def annotator_trust(annotators: Sequence[str], weights: Mapping[str, float] | None) -> Floats:
    """Returns the weight of each annotator, `(A,)`, 1 where not named.

    Args:
        annotators (`Sequence[str]`): Names of the A annotators.
        weights (`Mapping[str, float]`, *optional*): Weight by name, 0 or more.

    Raises:
        UsageError: If a name is unknown or a weight is negative or not finite.

    Example:

    ```python
    >>> annotator_trust(["ann", "bo"], {"bo": 0.5}).tolist()
    [1.0, 0.5]
    ```
    """
    weights = weights or {}
    unknown = [name for name in weights if name not in annotators]
    if unknown:
        raise UsageError(f"no judgments by {', '.join(unknown)}; the annotators are {', '.join(annotators)}")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights.values()):
        raise UsageError(f"got annotator weights {dict(weights)}; wanted numbers of 0 or more")
    return np.array([weights.get(name, 1.0) for name in annotators])


def _criterion_scores(annotations: Annotations, trust: Floats) -> tuple[Floats, Floats]:
    """Returns the weighted mean and variance between annotators on 0–1, `(I, C)` each."""
    ratings, n_items = annotations.ratings, len(annotations.items)
    low, high = annotations.likert
    scores = (ratings.scores - low) / (high - low)
    means = np.full((n_items, len(ratings.criteria)), np.nan)
    variances = means.copy()
    for column, score in enumerate(scores.T):
        known = np.isfinite(score)
        item, score = ratings.item[known], score[known]
        weight = ratings.weight[known] * trust[ratings.annotator[known]]
        total = np.bincount(item, weight, n_items)
        with np.errstate(invalid="ignore", divide="ignore"):
            means[:, column] = np.bincount(item, weight * score, n_items) / total
            deviation = (score - means[item, column]) ** 2
            variances[:, column] = np.bincount(item, weight * deviation, n_items) / total
    return means, variances


def _weighted(values: Floats, shares: Floats) -> Floats:
    """Returns the mean over the criteria an item has, `(I,)`."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known, values, 0.0) @ shares / (known @ shares)


def _borda(annotations: Annotations, trust: Floats) -> tuple[Floats, Floats, Floats]:
    votes, n_items = annotations.votes, len(annotations.items)
    weight = votes.weight * trust[votes.annotator]
    wins, ties, comparisons = np.zeros(n_items), np.zeros(n_items), np.zeros(n_items)
    for choice, side in ((0, votes.first), (1, votes.second)):
        item = side[votes.pair]
        wins += np.bincount(item, weight * (votes.choice == choice), n_items)
        ties += np.bincount(item, weight * (votes.choice == 2), n_items)
        comparisons += np.bincount(item, weight, n_items)
    with np.errstate(invalid="ignore"):
        return wins, comparisons, (wins + ties / 2) / comparisons


def _judgments(annotations: Annotations) -> NDArray[np.int64]:
    """Returns how many annotators judged each item in either way, `(I,)`."""
    ratings, votes = annotations.ratings, annotations.votes
    items = np.concatenate([ratings.item, votes.first[votes.pair], votes.second[votes.pair]])
    annotators = np.concatenate([ratings.annotator, votes.annotator, votes.annotator])
    distinct = np.unique(items * len(annotations.annotators) + annotators)
    return np.bincount(distinct // len(annotations.annotators), minlength=len(annotations.items))


def _on_split_votes(annotations: Annotations) -> NDArray[np.bool_]:
    """Returns which items stand in a pair of two or more votes where no choice has more than half of them."""
    votes = annotations.votes
    counts = np.bincount(votes.pair * 3 + votes.choice, minlength=3 * len(votes.first)).reshape(-1, 3)
    split = (counts.sum(1) > 1) & (counts.max(1, initial=0) * 2 <= counts.sum(1))
    flagged = np.zeros(len(annotations.items), bool)
    flagged[votes.first[split]] = flagged[votes.second[split]] = True
    return flagged
