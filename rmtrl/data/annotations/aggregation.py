"""Scores of items from ratings and votes: criterion score, Borda score, their blend, and the order within a prompt."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from rmtrl.data.annotations.reading import ITEM, Annotations, Item
from rmtrl.errors import UsageError
from rmtrl.metrics import Floats
from rmtrl.types import json_ready

ALPHA = 0.6
MAX_SPREAD = 0.25  # one step of a five-point scale
_COLUMNS = [
    "criterion", "variance", "borda", "final", "wins", "comparisons", "judgments", "rank", "excluded", "flagged",
]  # fmt: skip

TIE_RULES = ("wins", "top_criterion", "criterion", "variance", "seeded")
"""Rules that can break a tie: more wins, higher score on the criterion of most weight, higher criterion score, lower
variance between annotators, hash of seed and ids (arbitrary, but always the same)."""

TIE_BREAKS = ("wins", "top_criterion", "seeded")
"""Default order of tie-breaks; the other in use is ("criterion", "variance", "seeded")."""


@dataclass(frozen=True)
class ItemScores:
    """Scores of I items, in tables of a row an item under its prompt id and item id; NaN where nothing was judged.

    Args:
        table (`DataFrame`): In this order: `criterion` (weighted sum of the criterion scores), `variance` (weighted
            mean over criteria of the variance between annotators), `borda` ((wins + ½ ties) / comparisons on 0–1),
            `final` (α · criterion + (1 − α) · borda, or the one of the two that there is), `wins` and `comparisons`
            (by weight), `judgments` (annotators who rated the item or voted on it), `rank` (place within the prompt
            from 1 on, 0 for excluded items), `excluded` (fewer judgments than the quorum: not ranked, not paired) and
            `flagged` (ratings spread wider than the limit, or a vote without a majority).
        criteria (`DataFrame`): Mean over annotators of each criterion, on 0–1.
        weights (`dict[str, float]`): Weight of each criterion; they sum to 1.
        counts (`dict[str, int]`): Items by what happened to them.
    """

    table: pd.DataFrame
    criteria: pd.DataFrame
    weights: dict[str, float]
    counts: dict[str, int]

    def rows(self) -> list[dict[str, Any]]:
        """Returns one plain dictionary an item, ready for JSON, None where a score is undefined."""
        criteria = self.criteria.to_dict("index")
        rows = [
            {"item_id": item[1], "prompt_id": item[0], "criteria": criteria[item], **row, "rank": row["rank"] or None}
            for item, row in self.table.to_dict("index").items()
        ]
        return list(json_ready(rows))


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
    tolerance from the best of them are ranked by `tie_breaks`, see [`rank_items`].

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
    items = pd.MultiIndex.from_tuples(annotations.items, names=ITEM)
    shares = pd.Series(_criterion_weights(annotations.criteria, weights), dtype=float)
    trust = annotator_trust(annotations, annotator_weights)
    scores, variances = (table.reindex(items) for table in _criterion_scores(annotations, trust))
    sides = _sides(annotations.votes, trust)
    voted = sides.groupby(ITEM)[["wins", "points", "weight", "split"]].sum()
    table = voted.rename(columns={"weight": "comparisons"}).reindex(items, fill_value=0)
    table["borda"] = table.points / table.comparisons
    table["criterion"], table["variance"] = _weighted(scores, shares), _weighted(variances, shares)
    table["final"] = blend(table.criterion, table.borda, alpha)
    judged = pd.concat([annotations.ratings, sides])[[*ITEM, "annotator"]].drop_duplicates()
    table["judgments"] = judged.groupby(ITEM).size().reindex(items, fill_value=0)
    table["excluded"] = table.judgments < quorum
    counted = shares > 0
    table["flagged"] = (table.split > 0) | (np.sqrt(variances.loc[:, counted]) > max_spread).any(axis=1)
    top = scores[shares.idxmax()] if len(shares) else math.nan
    ranked = table.assign(variance=-table.variance, top_criterion=top)[~table.excluded]
    ranks = rank_items(ranked, tie_breaks, tolerance=tolerance, seed=seed)
    table["rank"] = ranks.reindex(items, fill_value=0)
    incomplete = scores.loc[:, counted].isna().any(axis=1) & table.criterion.notna()
    counts = {"items": len(table), "excluded": table.excluded.sum(), "flagged": table.flagged.sum(),
              "without_ratings": table.criterion.isna().sum(), "without_votes": table.borda.isna().sum(),
              "incomplete": incomplete.sum()}  # fmt: skip
    return ItemScores(table[_COLUMNS], scores, shares.to_dict(), {name: int(n) for name, n in counts.items()})


def _check(alpha: float, quorum: int, tie_breaks: Sequence[str], tolerance: float, seed: int) -> None:
    unknown = [name for name in tie_breaks if name not in TIE_RULES]
    sound = {
        f"alpha is {alpha}; wanted a share from 0 to 1": 0 <= alpha <= 1,
        f"quorum is {quorum}; wanted 1 or more": quorum >= 1,
        f"tolerance is {tolerance}; wanted a difference of scores, 0 or more": tolerance >= 0,
        f"seed is {seed}; wanted 0 or more": seed >= 0,
        f"no tie-break {', '.join(unknown)}; wanted some of {', '.join(TIE_RULES)}": not unknown,
    }
    for said, holds in sound.items():
        if not holds:
            raise UsageError(said)


def _criterion_weights(criteria: Sequence[str], weights: Mapping[str, float] | None) -> dict[str, float]:
    if weights is None:
        return {name: 1 / len(criteria) for name in criteria}
    given = _checked(weights, criteria, "ratings of", "criteria")
    if not math.isclose(sum(given.values()), 1, abs_tol=1e-6):
        raise UsageError(f"the weights sum to {sum(given.values()):g}; wanted 1: divide each by the sum")
    return dict.fromkeys(criteria, 0.0) | given


def annotator_trust(annotations: Annotations, weights: Mapping[str, float] | None) -> dict[str, float]:
    """Returns the weight of each annotator by name, 1 where not named.

    Args:
        annotations ([`Annotations`]): The judgments.
        weights (`Mapping[str, float]`, *optional*): Weight by name, 0 or more.

    Raises:
        UsageError: If a name is unknown or a weight is negative or not finite.
    """
    names = annotations.annotators
    return dict.fromkeys(names, 1.0) | _checked(weights or {}, names, "judgments by", "annotators")


def _checked(weights: Mapping[str, float], names: Sequence[str], judged: str, kind: str) -> dict[str, float]:
    if unknown := [name for name in weights if name not in names]:
        raise UsageError(f"no {judged} {', '.join(unknown)}; the {kind} are {', '.join(names) or 'none'}")
    if not all(0 <= weight < math.inf for weight in weights.values()):
        raise UsageError(f"got weights of {kind} {dict(weights)}; wanted numbers of 0 or more")
    return dict(weights)


def _criterion_scores(annotations: Annotations, trust: Mapping[str, float]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the weighted mean and variance between annotators on 0–1, by item and criterion."""
    ratings, (low, high) = annotations.ratings.set_index(ITEM), annotations.likert
    scores = (ratings[list(annotations.criteria)] - low) / (high - low)
    weight = ratings.weight * ratings.annotator.map(trust)
    total = scores.notna().mul(weight, axis=0).groupby(level=ITEM).sum()
    mean = scores.mul(weight, axis=0).groupby(level=ITEM).sum() / total
    deviation = (scores - mean.reindex(scores.index)) ** 2
    return mean, deviation.mul(weight, axis=0).groupby(level=ITEM).sum() / total


def _weighted(values: pd.DataFrame, shares: pd.Series) -> pd.Series:
    """Returns the mean over the criteria an item has."""
    return values.mul(shares).sum(axis=1) / values.notna().mul(shares).sum(axis=1)


def _sides(votes: pd.DataFrame, trust: Mapping[str, float]) -> pd.DataFrame:
    """Returns one row a vote and item: wins, points and weight, and whether the vote on its pair was split.

    It was where a pair has two or more votes and no choice has more than half of them.
    """
    n = votes.groupby("pair").pair.transform("size")
    largest = votes.groupby(["pair", "choice"]).pair.transform("size").groupby(votes.pair).transform("max")
    weight = votes.weight * votes.annotator.map(trust)
    votes = votes.assign(weight=weight, split=((n > 1) & (2 * largest <= n)).astype(int))
    sides = pd.concat([votes.assign(item_id=votes.a), votes.assign(item_id=votes.b, points=1 - votes.points)])
    return sides.assign(wins=sides.weight * (sides.points == 1), points=sides.weight * sides.points)


def rank_items(table: pd.DataFrame, rules: Sequence[str], *, tolerance: float = 1e-9, seed: int = 0) -> pd.Series:
    """Returns the rank of each item among those of its prompt, from 1 on.

    Items whose score is within the tolerance of the best one not yet placed are tied with it, so the order does not
    depend on that of the input. What no rule tells apart stands in the order of the ids.

    Args:
        table (`DataFrame`): A row an item, under prompt id and item id: `final`, and a column of the name of each
            rule; higher is better, NaN comes last.
        rules (`Sequence[str]`): What breaks ties; "seeded" is the hash of seed and ids.
        tolerance (`float`): Scores this near are a tie.
        seed (`int`): Seed of the hash.

    Example:

    ```python
    >>> items = pd.MultiIndex.from_product([["p"], ["a", "b", "c"]], names=["prompt_id", "item_id"])
    >>> rank_items(pd.DataFrame({"final": [0.5, 0.9, 0.5], "wins": [0, 1, 2]}, items), ["wins"])[items].tolist()
    [3, 1, 2]
    ```
    """
    keys = {name: -table[name].round(9) for name in rules if name != "seeded"}
    keys["seeded"] = pd.Series([_hash(seed, item) for item in table.index], table.index, dtype=object)
    order = pd.DataFrame({"score": -table.final, **keys}).reset_index().sort_values(["prompt_id", "score"])
    best = ("", math.inf)  # prompt and score of the best item of a tie
    ties = []
    for prompt_id, score in zip(order.prompt_id, order.score, strict=True):
        best = best if best[0] == prompt_id and score <= best[1] + tolerance else (prompt_id, score)
        ties.append(best[1])
    order = order.assign(score=ties).sort_values(["prompt_id", "score", *rules, "item_id"])
    return order.set_index(ITEM).groupby(level="prompt_id").cumcount() + 1


def _hash(seed: int, item: Item) -> str:
    return hashlib.sha256("\x1f".join((str(seed), *item)).encode("utf-8", "surrogatepass")).hexdigest()
