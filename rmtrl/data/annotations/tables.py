"""The judgments of annotators as columns: ratings of single answers and votes between two."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtrl.types import Conversation

Item = tuple[str, str]
"""An answer: its prompt's id and its own, so that ids like "a" may be used again under another prompt."""

Rating = tuple[Item, str, float, dict[str, Any]]
"""One rating: item, annotator, weight, score by criterion."""

Vote = tuple[tuple[str, str, str, str], tuple[int, float, bool]]
"""One vote: (prompt id, the two item ids in order, annotator), (choice, weight, whether shown in the other order)."""


@dataclass(frozen=True)
class Ratings:
    """N ratings, sorted by item and annotator.

    Args:
        item (`(N,)` int64): Index into `Annotations.items`.
        annotator (`(N,)` int64): Index into `Annotations.annotators`.
        weight (`(N,)` float64): Weight of the judgment, 1 where none is given.
        scores (`(N, C)` float64): Score by criterion, NaN where not rated.
        criteria (`tuple[str, ...]`): Names of the C criteria, sorted.
    """

    item: NDArray[np.int64]
    annotator: NDArray[np.int64]
    weight: NDArray[np.float64]
    scores: NDArray[np.float64]
    criteria: tuple[str, ...]


@dataclass(frozen=True)
class Votes:
    """N votes on P pairs, sorted by pair and annotator. The first item of a pair is the one whose id sorts first.

    Args:
        pair (`(N,)` int64): Index of the pair.
        annotator (`(N,)` int64): Index into `Annotations.annotators`.
        weight (`(N,)` float64): Weight of the vote, 1 where none is given.
        choice (`(N,)` int64): 0 for the first item, 1 for the second, 2 for a tie.
        swapped (`(N,)` bool): The second item was shown first: it is the line's `a`.
        first (`(P,)` int64): First item of each pair, an index into `Annotations.items`.
        second (`(P,)` int64): Second item of each pair.
    """

    pair: NDArray[np.int64]
    annotator: NDArray[np.int64]
    weight: NDArray[np.float64]
    choice: NDArray[np.int64]
    swapped: NDArray[np.bool_]
    first: NDArray[np.int64]
    second: NDArray[np.int64]


@dataclass(frozen=True)
class Annotations:
    """All judgments of some files; equal for every order of the lines, where these do not contradict each other.

    Args:
        ratings ([`Ratings`]): The ratings.
        votes ([`Votes`]): The votes.
        items (`tuple[Item, ...]`): Prompt id and item id of every item, sorted.
        annotators (`tuple[str, ...]`): Names of the annotators, sorted.
        domains (`dict[str, str]`): Domain by prompt id, "unknown" where no line gives one.
        sources (`dict[str, str]`): Source by prompt id, the first by name of several; the file's name where no line
            gives one.
        prompts (`dict[str, Conversation]`): Text by prompt id, where a line has it.
        responses (`dict[Item, Conversation]`): Text by item, where a line has it.
        n (`int`): Judgments read, always `kept + rejected`.
        reasons (`dict[str, int]`): Judgments left out by reason; every reason of `REASONS` is present.
        rejects (`tuple[dict, ...]`): `file`, `row`, `reason` and `line` of each judgment left out.
        conflicts (`int`): Lines whose domain or text differs from what an earlier line gave.
        likert (`tuple[float, float]`): Ends of the rating scale.
    """

    ratings: Ratings
    votes: Votes
    items: tuple[Item, ...]
    annotators: tuple[str, ...]
    domains: dict[str, str]
    sources: dict[str, str]
    prompts: dict[str, Conversation]
    responses: dict[Item, Conversation]
    n: int
    reasons: dict[str, int]
    rejects: tuple[dict[str, Any], ...]
    conflicts: int
    likert: tuple[float, float]

    @property
    def rejected(self) -> int:
        """Judgments left out."""
        return len(self.rejects)

    @property
    def kept(self) -> int:
        """Judgments in use."""
        return self.n - self.rejected

    @property
    def item_domains(self) -> NDArray[np.str_]:
        """Domain of every item, `(I,)`."""
        return np.array([self.domains[prompt_id] for prompt_id, _ in self.items], dtype=np.str_)

    def as_dict(self) -> dict[str, Any]:
        """Returns the counts as a plain dictionary, ready for JSON."""
        return {
            "n": self.n,
            "kept": self.kept,
            "rejected": self.rejected,
            "reasons": self.reasons,
            "ratings": len(self.ratings.item),
            "votes": len(self.votes.pair),
            "items": len(self.items),
            "pairs": len(self.votes.first),
            "annotators": len(self.annotators),
            "criteria": list(self.ratings.criteria),
            "conflicts": self.conflicts,
        }


def rating_columns(
    ratings: Sequence[Rating],
    criteria: Sequence[str],
    items: Mapping[Item, int],
    annotators: Mapping[str, int],
) -> Ratings:
    scores = [[rating[3].get(name, math.nan) for name in criteria] for rating in ratings]
    return Ratings(
        item=np.array([items[rating[0]] for rating in ratings], np.int64),
        annotator=np.array([annotators[rating[1]] for rating in ratings], np.int64),
        weight=np.array([rating[2] for rating in ratings], np.float64),
        scores=np.array(scores, np.float64).reshape(len(ratings), len(criteria)),
        criteria=tuple(criteria),
    )


def vote_columns(
    votes: Sequence[Vote],
    items: Mapping[Item, int],
    annotators: Mapping[str, int],
) -> Votes:
    pairs = {pair: k for k, pair in enumerate(dict.fromkeys(key[:3] for key, _ in votes))}
    sides = [np.array([items[prompt_id, side[k]] for prompt_id, *side in pairs], np.int64) for k in (0, 1)]
    return Votes(
        pair=np.array([pairs[key[:3]] for key, _ in votes], np.int64),
        annotator=np.array([annotators[key[3]] for key, _ in votes], np.int64),
        weight=np.array([weight for _, (_, weight, _) in votes], np.float64),
        choice=np.array([choice for _, (choice, _, _) in votes], np.int64),
        swapped=np.array([swapped for _, (_, _, swapped) in votes], np.bool_),
        first=sides[0],
        second=sides[1],
    )
