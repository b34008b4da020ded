"""What is preferred: rates by domain, language and source, and annotators who judge by length or by position."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset

from rmtrl.data.annotations.reading import Annotations
from rmtrl.data.messages import conversation_text
from rmtrl.data.splits import cells
from rmtrl.metrics import mean_estimate
from rmtrl.types import Estimate

NOTABLE = 0.1
"""A rate that is surely (by its whole interval) ten points from the others' is reported; smaller ones are habits."""


@dataclass(frozen=True)
class AnnotatorBias:
    """How one annotator votes, beside the others on the same pairs.

    Args:
        annotator (`str`): Name.
        votes (`int`): Votes on pairs whose sides differ in length.
        longer (`Estimate`): Share of them for the longer side, a tie counting half.
        longer_excess (`Estimate`, *optional*): How far that share is above the median of the others' votes on the same
            pairs, on average; None where nobody else judged them.
        first (`Estimate`): Share of all votes for the side shown first, a tie counting half.
        ties (`Estimate`): Share of ties.
        agreement (`Estimate`, *optional*): Mean agreement with each other vote on the same pair.
        flags (`tuple[str, ...]`): `prefers_longer`, `prefers_shorter`, `prefers_first`, `prefers_second`.
    """

    annotator: str
    votes: int
    longer: Estimate | None
    longer_excess: Estimate | None
    first: Estimate
    ties: Estimate
    agreement: Estimate | None
    flags: tuple[str, ...]


def annotator_bias(votes: pd.DataFrame) -> list[AnnotatorBias]:
    """Returns how each annotator votes; one who always prefers the longer answer is flagged.

    Length is not held against an annotator for itself: better answers may be longer. What counts is the excess over
    the other annotators on the same pairs, so a habit that all share cannot be seen here; the pairs' own rates
    ([`preference_rates`]) show it.

    Args:
        votes (`DataFrame`): One row a vote: `annotator`; `pair`, whatever the order of its sides; `prompt_id`, which
            intervals resample; `wins`, 1 where the side shown first was chosen, 0 the second, ½ a tie; `longer`, its
            length less that of the second, NaN where it is not known; and perhaps `swapped`, whether the vote saw the
            pair's sides exchanged.

    Example:

    ```python
    >>> [b.annotator for b in annotator_bias(votes) if "prefers_longer" in b.flags]
    ['long-winded']
    ```
    """
    for_longer = votes.wins.where(votes.longer > 0, 1 - votes.wins).where(votes.longer.notna() & (votes.longer != 0))
    # who agrees with whom is seen where the sides of a pair stand alike
    alike = votes.wins.where(~votes.swapped, 1 - votes.wins) if "swapped" in votes else votes.wins
    equal = votes.groupby([votes.pair, alike]).pair.transform("size") - 1
    votes = votes.assign(
        for_longer=for_longer,
        excess=for_longer - _others_median(for_longer, votes.pair),
        agreement=equal / (votes.groupby("pair").pair.transform("size") - 1),
        tie=(votes.wins == 0.5).astype(float),
    )
    return [_bias(str(name), own) for name, own in votes.groupby("annotator")]


def _bias(name: str, own: pd.DataFrame) -> AnnotatorBias:
    found = {column: _estimate(own, column) for column in ("for_longer", "excess", "wins", "tie", "agreement")}
    first, ties, excess = found["wins"], found["tie"], found["excess"]
    assert first is not None and ties is not None  # an annotator is one who voted
    flags = []
    if excess is not None:
        flags += ["prefers_longer"] * (excess.low > NOTABLE) + ["prefers_shorter"] * (excess.high < -NOTABLE)
    flags += ["prefers_first"] * (first.low > 0.5 + NOTABLE) + ["prefers_second"] * (first.high < 0.5 - NOTABLE)
    known = int(own.for_longer.notna().sum())
    return AnnotatorBias(name, known, found["for_longer"], excess, first, ties, found["agreement"], tuple(flags))


def _estimate(rows: pd.DataFrame, column: str) -> Estimate | None:
    rows = rows.dropna(subset=column)
    return mean_estimate(rows[column], rows.prompt_id, proportion=column != "excess") if len(rows) else None


def _others_median(values: pd.Series, pair: pd.Series) -> pd.Series:
    """Returns the median of the other votes on the same pair, NaN where there is none.

    The median, because one annotator with a habit would pull the others' mean and make the rest look odd.
    """
    # how many of the others voted 0 and ½; the rest voted 1
    zeros, halves, others = (
        own.groupby(pair).transform("sum") - own for own in (values.eq(0) * 1, values.eq(0.5) * 1, values.notna() * 1)
    )
    low, high = (
        np.where(middle < zeros, 0.0, np.where(middle < zeros + halves, 0.5, 1.0))
        for middle in ((others - 1) // 2, others // 2)
    )
    return pd.Series((low + high) / 2, values.index).where(others > 0)


def vote_bias(annotations: Annotations) -> list[AnnotatorBias]:
    """Returns how each annotator votes, as [`annotator_bias`] does, where the first side is the one shown first.

    The length of an answer is its characters.

    Args:
        annotations ([`Annotations`]): The judgments.

    Example:

    ```python
    >>> [bias.annotator for bias in vote_bias(read_annotations(["examples/annotations.jsonl"]))]
    ['ann', 'bo', 'chi']
    ```
    """
    votes = annotations.votes
    lengths = {item: len(conversation_text(text)) for item, text in annotations.responses.items()}
    a, b = (
        np.array([lengths.get(item, math.nan) for item in zip(votes.prompt_id, side, strict=True)])
        for side in (votes.a, votes.b)
    )
    wins = votes.points.where(~votes.swapped, 1 - votes.points)
    return annotator_bias(votes.assign(wins=wins, longer=np.where(votes.swapped, b - a, a - b)))


def preference_rates(pairs: Dataset, columns: Sequence[str] = ("domain", "language", "source")) -> dict[str, Any]:
    """Returns, for each value of each column, how often the longer response is chosen and how often there is a tie.

    Args:
        pairs (`Dataset`): Pairs in the normal form; columns that it has not are left out.
        columns (`Sequence[str]`): What to group by.

    Returns:
        `dict`: `{column: {value: {"n", "longer_chosen": Estimate, "ties": Estimate}}}`; lengths are characters of the
        response, pairs of equal length count half.

    Example:

    ```python
    >>> preference_rates(pairs)["domain"]["geography"]["longer_chosen"].value
    0.57
    ```
    """
    names = [column for column in columns if column in pairs.column_names]
    table = pd.DataFrame((map(str, row) for row in cells(pairs, *names, "prompt_id")), columns=[*names, "prompt_id"])
    gaps = [len(conversation_text(a)) - len(conversation_text(b)) for a, b in cells(pairs, "chosen", "rejected")]
    tie = np.asarray(pairs["preference"][:]) == 0.5 if "preference" in pairs.column_names else False
    table = table.assign(longer=(np.sign(gaps) + 1) / 2, tie=tie)
    return {name: {value: _rates(rows) for value, rows in table.groupby(name)} for name in names}


def _rates(rows: pd.DataFrame) -> Mapping[str, Any]:
    decided = rows[~rows.tie]
    return {
        "n": len(rows),
        "longer_chosen": mean_estimate(decided.longer, decided.prompt_id) if len(decided) else None,
        "ties": mean_estimate(rows.tie, rows.prompt_id),
    }
