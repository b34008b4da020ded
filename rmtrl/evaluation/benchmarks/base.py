"""What a benchmark is: rows read into items, scores of candidates into credits, credits into figures."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtrl.types import Conversation

Scores = Sequence["NDArray[np.float64] | None"]
"""Scores of each item's candidates, in their order; `None` where the item could not be scored."""


@dataclass(frozen=True)
class Item:
    """One row of a benchmark.

    Args:
        id (`str`): Name of the row, of which the benchmark has one.
        prompt_id (`str`): Prompt; items of one prompt are resampled together.
        subset (`str`): The smallest part that the benchmark reports.
        candidates (`tuple[Conversation, ...]`): Whole conversations, prompt included, in the order of their scores.
        facts (`Mapping[str, Any]`): What the rule needs to know besides, such as which candidates are correct.
        excluded (`str`): Why the rule leaves the row out, such as a tie of the annotators; empty where it counts. Such
            a row needs no score.
        own_id (`str`): Name of the row in the benchmark's own files, where that is not `id`; rows may share it.
    """

    id: str
    prompt_id: str
    subset: str
    candidates: tuple[Conversation, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    excluded: str = ""
    own_id: str = ""


@dataclass(frozen=True)
class Credit:
    """What one item adds to the mean of one part.

    Args:
        part (`str`): The mean it enters: a subset, or a subset and what is measured there (`chat/hard`).
        prompt_id (`str`): Prompt, for the bootstrap.
        value (`float`): The credit, NaN where the item was not scored.
        low, high (`float`): The least and the most it can be: the credit of an item all wrong, and all right.
    """

    part: str
    prompt_id: str
    value: float
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True)
class Figure:
    """A mean of credits, or an average of such means.

    Args:
        value (`float`): The number.
        n (`int`): Credits or items behind it.
    """

    value: float
    n: int


@dataclass(frozen=True)
class Figures:
    """The benchmark's own aggregates, from the means of its parts.

    Args:
        overall ([`Figure`], *optional*): The number that the benchmark reports; None where no part has a mean.
        sections (`Mapping[str, Figure]`): Its sections, those without a mean left out.
        others (`Mapping[str, Figure]`): Further averages that readers compare with, by name.
    """

    overall: Figure | None
    sections: Mapping[str, Figure]
    others: Mapping[str, Figure] = field(default_factory=dict)


def average(figures: Iterable[Figure], weights: Iterable[float] | None = None) -> Figure | None:
    """Returns Σ w · value / Σ w with the summed n; equal weights where none are given, None without figures.

    Example:

    ```python
    >>> average([Figure(1.0, 30), Figure(0.5, 10)], weights=[30, 10])
    Figure(value=0.875, n=40)
    ```
    """
    figures = list(figures)
    shares = [1.0] * len(figures) if weights is None else list(weights)
    if not figures:
        return None
    total = sum(share * figure.value for share, figure in zip(shares, figures, strict=True))
    return Figure(total / sum(shares), sum(figure.n for figure in figures))


def pooled(parts: Mapping[str, Figure], names: Iterable[str]) -> Figure | None:
    """Returns the mean over all credits of the named parts (the micro average), those absent left out."""
    present = [parts[name] for name in names if name in parts]
    return average(present, [figure.n for figure in present])


def named(figures: Mapping[str, Figure | None]) -> dict[str, Figure]:
    """Returns the figures that exist."""
    return {name: figure for name, figure in figures.items() if figure is not None}


class Benchmark:
    """A benchmark: how its rows are read and how its scores are turned into figures.

    Subclasses set the attributes and define the three methods. [`rmtrl.evaluation.benchmarks.results.result_of`] adds
    intervals, bounds and what is missing.
    """

    name: str
    rule: str  # the rule in one sentence, with the version of the official code
    ties: str  # what a tie counts
    # What decides who is right. Benchmarks of one kind say nothing of a shift of domain:
    # "instruction following", "verified correctness", "human preference", "safety", "mixed" (several of these)
    kind: str
    source: str  # hub id or address of the original
    expected: Mapping[str, int] = {}  # rows of each subset in the full benchmark
    takes_failed: bool = False  # whether a judge's failure on one candidate, a score of -inf, is allowed

    def read(self, path: str | None = None) -> list[Item]:
        """Returns the items from a local file or folder in the original layout, or from the hub.

        Raises:
            DataError: If the source is missing or a row lacks what the benchmark needs; the message names the row.
        """
        raise NotImplementedError

    def credits(self, items: Sequence[Item], scores: Scores) -> list[Credit]:
        """Returns the credits that the scores earn: items without scores give credits of value NaN."""
        raise NotImplementedError

    def figures(self, parts: Mapping[str, Figure]) -> Figures:
        """Returns the aggregates from the mean and the number of credits of every part that has a credit."""
        raise NotImplementedError

    def is_subset(self, part: str) -> bool:
        """Returns whether a part is reported among the subsets, rather than only used by the figures."""
        return True
