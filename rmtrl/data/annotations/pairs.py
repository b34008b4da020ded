"""Preference pairs from votes or ratings: unanimous pairs to train on, disputed ones routed apart, all counted."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from datasets import Dataset, Features, List, Value

from rmtrl.data.annotations.aggregation import ItemScores, annotator_trust
from rmtrl.data.annotations.reading import ITEM, PAIR, Annotations
from rmtrl.data.normal_form import ExactJson, dataset_of
from rmtrl.errors import DataError, UsageError
from rmtrl.types import Conversation

Disputed = Literal["adjudicate", "weight", "slice"]

DISPUTED = ("adjudicate", "weight", "slice")
ROUTES = ("train", "review_or_hold_out", "tie")
MIN_GAP = 0.05
MIN_VOTES = 2  # one vote agrees with nothing
_ROUNDING = 1e-9
_VOTES = "votes_by_annotator"
_VOTE_COUNTS = ["votes_a", "votes_b", "votes_tie"]


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

    @property
    def why_none(self) -> str:
        """Returns why there is no pair and none to review, empty where there is one."""
        n, textless, few = (self.counts.get(name, 0) for name in ("n", "missing_text", "too_few_votes"))
        if self.counts["kept"] or self.counts["review"]:
            return ""
        if textless > few:
            return f"{textless:,} of {n:,} have no text; give --prompts and --responses"
        if few:
            return f"{few:,} of {n:,} have too few votes; lower --min-votes or get more votes"
        return "no prompt has two items with a score and the quorum; lower --quorum or give more ratings"

    @property
    def warnings(self) -> list[str]:
        """A line where pairs were left out for want of their text."""
        textless = self.counts["missing_text"]
        said = f"{textless:,} pairs have no text and are left out; give --responses and --prompts"
        return [said] if textless else []


def pairs_from_votes(
    annotations: Annotations,
    *,
    disputed: Disputed = "adjudicate",
    min_votes: int = MIN_VOTES,
    annotator_weights: Mapping[str, float] | None = None,
) -> PairSet:
    """Returns one pair for every two items that were voted on.

    `agreement` is the share of the largest group of equal votes, and `route` says where the pair goes: a unanimous one
    to "train", one on which all voted for a tie is a "tie", every other goes to "review_or_hold_out".

    `preference` is the share of the votes for chosen by weight, a tie counting half; `weight` is the weight of the
    votes, their number where none carries a weight. A share of ½ has the first item as chosen. Ties stay among the
    pairs with preference ½. Where disputed pairs are kept, `votes_by_annotator` is what each annotator gave the first
    item, as JSON, from which [`~rmtrl.metrics.ceiling.ceiling_of_cells`] knows how far a model can get.

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
    if min_votes < 1:
        raise UsageError(f"got min_votes {min_votes}; wanted 1 or more")
    votes = annotations.votes
    if votes.empty:
        raise DataError(
            "got no votes to make pairs from; wanted lines with a, b and choice, or make them from ratings"
        )
    trust = votes.annotator.map(annotator_trust(annotations, annotator_weights))
    weight = votes.weight * trust
    votes = votes.assign(weight=weight, points=weight * votes.points)
    for code, name in enumerate(_VOTE_COUNTS):
        votes[name] = (votes.choice == code) & (trust > 0)
    table = votes.groupby(PAIR)[["weight", "points", *_VOTE_COUNTS]].sum().reset_index()
    number = table[_VOTE_COUNTS].sum(axis=1)
    few = number < min_votes
    counts = {"n": len(table), "too_few_votes": int(few.sum())}
    table = table[~few]
    agreement = table[_VOTE_COUNTS].max(axis=1) / number[~few]
    unanimous = np.where(table.votes_tie > 0, "tie", "train")
    route = np.where(agreement < 1, "review_or_hold_out", unanimous)
    table = table.assign(agreement=agreement, route=route, share=table.points / table.weight)
    if disputed == "weight":  # of unanimous pairs alone they would say that nobody ever disagrees
        given = annotations.votes[trust > 0].groupby(PAIR)
        cells = {pair: json.dumps(dict(zip(own.annotator, own.points, strict=True))) for pair, own in given}
        table[_VOTES] = [cells[pair] for pair in table[PAIR].itertuples(index=False, name=None)]
    return _pair_set(annotations, table, disputed, counts)


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
    if score not in ("final", "criterion"):
        raise UsageError(f"got score {score!r}; wanted final or criterion")
    if not 0 <= min_gap <= 1:
        raise UsageError(f"got min_gap {min_gap}; wanted a difference on 0 to 1")
    items = scores.table.reset_index()[[*ITEM, score, "flagged", "excluded"]].rename(columns={score: "score"})
    if items.score.isna().all():
        raise DataError("no item has a score to make pairs from; wanted lines with item_id and scores")
    usable = items[items.score.notna() & ~items.excluded].rename(columns={"item_id": "a"})
    table = usable.merge(usable.rename(columns={"a": "b"}), on="prompt_id", suffixes=("", "_b"))
    table = table[table.a < table.b]
    gap = table.score - table.score_b
    tie = gap.abs() < max(min_gap - _ROUNDING, _ROUNDING)
    route = np.where(table.flagged | table.flagged_b, "review_or_hold_out", np.where(tie, "tie", "train"))
    table = table.assign(rating_gap=gap.abs(), share=np.where(tie, 0.5, gap > 0), route=route)
    counts = {"items": len(items), "items_left_out": len(items) - len(usable)}
    return _pair_set(annotations, table, disputed, counts)


def _pair_set(annotations: Annotations, table: pd.DataFrame, disputed: str, counts: Mapping[str, int]) -> PairSet:
    """Returns the pairs of a table with `route`, `share`, the preference for `a`, and what else tells of the label."""
    if disputed not in DISPUTED:
        raise UsageError(f"got {disputed!r} for disputed pairs; wanted {', '.join(DISPUTED)}")
    messages = any(isinstance(x, list) for x in (*annotations.prompts.values(), *annotations.responses.values()))
    texts = _with_texts(annotations, table, messages).dropna(subset=["prompt", "response_a", "response_b"])
    first = texts.share >= 0.5
    texts = texts.assign(
        chosen=texts.response_a.where(first, texts.response_b),
        rejected=texts.response_b.where(first, texts.response_a),
        preference=np.maximum(texts.share, 1 - texts.share),
    )
    aside = (texts.route == "review_or_hold_out") & (disputed != "weight")
    pair = ["prompt", "chosen", "rejected", "preference", "rating_gap", "weight", "route", "agreement", _VOTES]
    sides = ["prompt", "a", "b", "response_a", "response_b", "route", "agreement", *_VOTE_COUNTS]
    pairs = _dataset(texts[~aside], pair, messages)
    review = _dataset(texts[aside], sides if disputed == "adjudicate" else pair, messages)
    routes = {route: int((table.route == route).sum()) for route in ROUTES}
    found = {"n": len(table), "kept": len(pairs), "review": len(review), **routes}
    return PairSet(pairs, review, found | {"missing_text": len(table) - len(texts)} | dict(counts))


def _with_texts(annotations: Annotations, table: pd.DataFrame, messages: bool) -> pd.DataFrame:
    """Returns the table with names and texts, None where one is not known; message lists if one of them is."""

    def texts(role: str, found: list[Conversation | None]) -> pd.Series:
        if messages:
            found = [[{"role": role, "content": text}] if isinstance(text, str) else text for text in found]
        return pd.Series(found, table.index, dtype=object)

    prompt_ids, known = table.prompt_id, annotations.responses
    return table.assign(
        id=prompt_ids + ":" + table.a + ":" + table.b,
        domain=prompt_ids.map(annotations.domains),
        source=prompt_ids.map(annotations.sources),
        prompt=texts("user", [annotations.prompts.get(prompt_id) for prompt_id in prompt_ids]),
        response_a=texts("assistant", [known.get(item) for item in zip(prompt_ids, table.a, strict=True)]),
        response_b=texts("assistant", [known.get(item) for item in zip(prompt_ids, table.b, strict=True)]),
    )


def _dataset(table: pd.DataFrame, columns: list[str], messages: bool) -> Dataset:
    """Returns those of the columns that there are, behind the names, texts as message lists or as strings."""
    columns = [name for name in columns if name in table]
    text, number = Value("string"), Value("float64")
    form = List(ExactJson()) if messages else text
    kinds = dict.fromkeys(("prompt", "chosen", "rejected", "response_a", "response_b"), form)
    kinds |= dict.fromkeys(("a", "b", "route", _VOTES), text) | dict.fromkeys(_VOTE_COUNTS, Value("int64"))
    names = ["id", "prompt_id", "domain", "source"]
    features = dict.fromkeys(names, text) | {name: kinds.get(name, number) for name in columns}
    return dataset_of(table[[*names, *columns]].to_dict("records"), Features(features))
