"""From scores to a benchmark's result: its figures with intervals, what was missing and what that could change."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from rmtrl.errors import DataError
from rmtrl.evaluation.benchmarks.base import Benchmark, Credit, Figure, Figures, Item, Scores
from rmtrl.types import Estimate, json_ready

Floats = NDArray[np.float64]

_LEVEL = 0.95
_NAMED = 20  # missing ids that a result lists; all are counted
_BLOCK = 2_000_000  # weights held at a time
_NOTHING = 1e-12  # spread of resamples that is rounding
_NUDGE = 1e-6  # of a part's mean, to see what a figure makes of it


@dataclass(frozen=True)
class BenchmarkResult:
    """A benchmark's figures for one set of scores.

    Args:
        name, rule, ties, kind, source (`str`): The benchmark, how it counts, what a tie counts, what decides who is
            right, and the original's hub id or address.
        n_rows (`int`): Rows read.
        n_scored (`int`): Rows that count and have scores.
        n_missing (`int`): Rows that count and have none.
        missing_ids (`tuple[str, ...]`): The first of these.
        missing_reasons (`dict[str, int]`): Why, with the number of rows, where that is known.
        excluded (`dict[str, int]`): Rows that the rule leaves out, by reason.
        missing_parts (`dict[str, dict[str, int]]`): Subsets whose number of rows is not the full
            benchmark's, or of which no row was scored, and sections that have no figure only because rows have no
            score: rows `expected`, `got` and `scored`.
        overall ([`Estimate`]): The number that the benchmark reports.
        bounds (`tuple[float, float]`): The same if the missing rows were all wrong, and all right, wide enough to hold
            the number itself. Parts that were never read are no part of it; they stand in `missing_parts`.
        sections, subsets, others (`dict[str, Estimate]`): The benchmark's sections, the means they are made of, and
            further averages. What has no score is left out.
    """

    name: str
    rule: str
    ties: str
    kind: str
    source: str
    n_rows: int
    n_scored: int
    n_missing: int
    missing_ids: tuple[str, ...]
    missing_parts: dict[str, dict[str, int]]
    overall: Estimate
    bounds: tuple[float, float]
    sections: dict[str, Estimate]
    subsets: dict[str, Estimate]
    others: dict[str, Estimate]
    excluded: dict[str, int] = field(default_factory=dict)
    missing_reasons: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields as a plain dictionary, ready for JSON, with null where a number is not finite."""
        return {"schema": "rmtrl/benchmark-result/1", **json_ready(asdict(self))}


def result_of(
    benchmark: Benchmark,
    items: Sequence[Item],
    scores: Scores,
    *,
    missing_reasons: Mapping[str, int] | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> BenchmarkResult:
    """Returns the benchmark's figures for `scores`, each with its n and a 95 % interval.

    The intervals are a bootstrap over prompts: each resample gives every prompt a weight from Exp(1), all its credits
    the same one, and takes the weighted mean of every part (Rubin 1981, "The Bayesian Bootstrap",
    https://doi.org/10.1214/aos/1176345338). The mix of parts stays as it is, no part vanishes, however small, and
    subsets that share prompts vary together; a figure is taken as linear in its parts.

    Resampling never shows what no prompt showed, so the lower end is that of the sample with one more prompt, of the
    least credit, and the upper end with one more of the most. It weighs in a figure as much as the prompt that weighs
    most there. For the mean of right and wrong rows these are the ends of Clopper and Pearson (1934); for a sum of
    several parts the idea is that of Fay and Feuer (1997, https://doi.org/10.1002/(SICI)1097-0258(19970415)16:7<791).

    Args:
        benchmark ([`Benchmark`]): The rule.
        items (`Sequence[Item]`): Its rows, as [`Benchmark.read`] gives them or some of them.
        scores (`Sequence` of arrays or None): Scores of each item's candidates, in the order of `items`; None where an
            item could not be scored.
        missing_reasons (`Mapping[str, int]`, *optional*): Why items could not be scored, with the number of them.
        n_resamples (`int`): Bootstrap resamples.
        seed (`int`): Seed of the resampling.

    Raises:
        DataError: If scores do not fit the items, or no item has scores.

    Example:

    ```python
    >>> items = LLMBar().read("llmbar")
    >>> result = result_of(LLMBar(), items, [np.array([1.0, 0.0])] * len(items))
    >>> print(result.overall)
    0.492 [0.440, 0.542] (n = 419)
    ```
    """
    _check(benchmark, items, scores)
    counted = [(item, own) for item, own in zip(items, scores, strict=True) if not item.excluded]
    missing = [item.id for item, own in counted if own is None]
    if len(missing) == len(counted):
        why = in_words(missing_reasons)
        raise DataError(
            f"none of the {len(counted):,} rows of {benchmark.name} has scores{why}; there is nothing to report"
        )
    credits = benchmark.credits([item for item, _ in counted], [own for _, own in counted])
    sample = _Sample([credit for credit in credits if not math.isnan(credit.value)])
    sample.resample(n_resamples, seed)
    figures = benchmark.figures(sample.parts())
    if figures.overall is None:
        raise DataError(f"the rows of {benchmark.name} that have scores make up no figure; score more of them")
    estimates = sample.estimates(benchmark)
    worst, best = (_by_kind(benchmark.figures(_Sample(_filled(credits, end)).parts())) for end in ("low", "high"))
    overall = estimates["overall", ""]
    lost = {name: figure.n for (kind, name), figure in worst.items() if kind == "sections"}
    lost = {name: n for name, n in lost.items() if name not in figures.sections}
    return BenchmarkResult(
        name=benchmark.name, rule=benchmark.rule, ties=benchmark.ties, kind=benchmark.kind, source=benchmark.source,
        n_rows=len(items), n_scored=len(counted) - len(missing), n_missing=len(missing),
        missing_ids=tuple(missing[:_NAMED]),
        missing_parts=_missing_parts(benchmark, items, scores, lost),
        excluded=dict(Counter(item.excluded for item in items if item.excluded)),
        missing_reasons=dict(missing_reasons or {}),
        overall=overall,
        bounds=(min(overall.value, worst["overall", ""].value), max(overall.value, best["overall", ""].value)),
        sections={name: estimates["sections", name] for name in figures.sections},
        others={name: estimates["others", name] for name in figures.others},
        subsets={name: sample.estimate(figure, np.eye(len(sample.names))[i])
                 for i, (name, figure) in enumerate(sample.parts().items()) if benchmark.is_subset(name)},
    )  # fmt: skip


def in_words(reasons: Mapping[str, int] | None) -> str:
    """Returns reasons with their counts in words, after a colon; empty without any."""
    listed = "; ".join(f"{count:,} {reason}" for reason, count in (reasons or {}).items())
    return f": {listed}" if listed else ""


def _check(benchmark: Benchmark, items: Sequence[Item], scores: Scores) -> None:
    if len(items) != len(scores):
        raise DataError(f"{benchmark.name} has {len(items):,} items, but scores for {len(scores):,}; give one each")
    twice = [id for id, count in Counter(item.id for item in items).items() if count > 1]
    if twice:
        raise DataError(f"{benchmark.name} has item {twice[0]!r} twice; ids must differ")
    for item, own in zip(items, scores, strict=True):
        if own is None:
            continue
        if np.shape(own) != (len(item.candidates),):
            raise DataError(
                f"item {item.id!r} of {benchmark.name} has {len(item.candidates)} candidates, but scores of shape "
                f"{np.shape(own)}; give one score a candidate"
            )
        bad = ~np.isfinite(own) & ~(benchmark.takes_failed & np.isneginf(own))
        if bad.any():
            raise DataError(
                f"item {item.id!r} of {benchmark.name} has the score {float(np.asarray(own)[bad][0])}; wanted finite "
                "numbers, or null for an item that could not be scored"
            )


def _missing_parts(
    benchmark: Benchmark, items: Sequence[Item], scores: Scores, lost: Mapping[str, int]
) -> dict[str, dict[str, int]]:
    """Returns the rows of subsets that are not complete and of sections that are lost, which `lost` gives."""
    got = Counter(item.subset for item in items)
    scored = Counter(i.subset for i, own in zip(items, scores, strict=True) if own is not None and not i.excluded)
    subsets = {**got, **benchmark.expected}
    short = {name: rows for name, rows in subsets.items() if name in lost or got[name] != rows or not scored[name]}
    return {
        name: {"expected": rows, "got": got[name] if name in subsets else rows, "scored": scored[name]}
        for name, rows in {**lost, **short}.items()
    }


class _Sample:
    """The credits that were earned, as sums by prompt and part, and resamples of them."""

    def __init__(self, credits: Sequence[Credit]) -> None:
        self.names = list(dict.fromkeys(credit.part for credit in credits))
        columns = {name: i for i, name in enumerate(self.names)}
        rows = {prompt: i for i, prompt in enumerate(dict.fromkeys(credit.prompt_id for credit in credits))}
        place = ([rows[c.prompt_id] for c in credits], [columns[c.part] for c in credits])
        values = np.array([credit.value for credit in credits], dtype=np.float64)
        self._totals = sparse.csr_array((values, place), shape=(len(rows), len(columns)))
        self._counts = sparse.csr_array((np.ones_like(values), place), shape=(len(rows), len(columns)))
        self.n = self._counts.sum(axis=0)
        self.means = self._totals.sum(axis=0) / self.n
        self._ends = self.means.copy(), self.means.copy()
        np.minimum.at(self._ends[0], place[1], [credit.low for credit in credits])
        np.maximum.at(self._ends[1], place[1], [credit.high for credit in credits])

    def parts(self, means: Floats | None = None) -> dict[str, Figure]:
        values = (self.means if means is None else means).tolist()
        return {name: Figure(value, int(n)) for name, value, n in zip(self.names, values, self.n, strict=True)}

    def resample(self, n_resamples: int, seed: int) -> None:
        """Draws weights of the prompts: moves of the parts' means and masses of the parts, `(n_resamples, parts)`."""
        rng, moves, masses = np.random.default_rng(seed), [], []
        size = max(1, _BLOCK // self._totals.shape[0])
        for start in range(0, n_resamples, size):
            weights = rng.standard_exponential((min(size, n_resamples - start), self._totals.shape[0]))
            masses.append(weights @ self._counts)
            moves.append((weights @ self._totals) / masses[-1] - self.means)
        self._moves, self._masses = np.concatenate(moves), np.concatenate(masses) / self.n
        # a grid in random order rather than random numbers: its quantiles are those of Exp(1)
        self._added = -np.log((rng.permutation(n_resamples) + 0.5) / n_resamples)

    def estimates(self, benchmark: Benchmark) -> dict[tuple[str, str], Estimate]:
        """Returns the estimate of every figure, by kind and name."""
        whole = _by_kind(benchmark.figures(self.parts()))
        steps = _NUDGE * np.eye(len(self.names))
        nudged = [_by_kind(benchmark.figures(self.parts(self.means + step))) for step in steps]
        return {
            key: self.estimate(figure, np.array([(each[key].value - figure.value) / _NUDGE for each in nudged]))
            for key, figure in whole.items()
        }

    def estimate(self, figure: Figure, slopes: Floats) -> Estimate:
        """Returns the estimate of a figure that changes by `slopes`, `(parts,)`, with the means of the parts."""
        value, tail = figure.value, (1 - _LEVEL) / 2
        shares = np.abs(slopes) / (np.abs(slopes).sum() or 1.0)
        weight = float((self._counts @ (shares / self.n)).max())
        resampled = value + self._moves @ slopes
        reach = [slopes * (ends - self.means) for ends in self._ends]
        worst, best = value + np.minimum(*reach).sum(), value + np.maximum(*reach).sum()
        if np.ptp(resampled) < _NOTHING:  # then the added prompt's share has a closed form, Beta(1, 1 / weight)
            share, method = 1 - tail**weight, "exact bound by prompt"
            low, high = value + (worst - value) * share, value + (best - value) * share
        else:
            pull = weight * self._added / (self._masses @ shares + weight * self._added)
            low = np.quantile(resampled + (worst - resampled) * pull, tail)
            high = np.quantile(resampled + (best - resampled) * pull, 1 - tail)
            method = f"Bayesian bootstrap by prompt, {len(resampled)} resamples"
        return Estimate(value, min(float(low), value), max(float(high), value), figure.n, _LEVEL, method)


def _by_kind(figures: Figures) -> dict[tuple[str, str], Figure]:
    overall = {} if figures.overall is None else {("overall", ""): figures.overall}
    sections = {("sections", name): figure for name, figure in figures.sections.items()}
    return overall | sections | {("others", name): figure for name, figure in figures.others.items()}


def _filled(credits: Sequence[Credit], end: str) -> list[Credit]:
    """Returns the credits, those of rows without scores all wrong (`low`) or all right (`high`)."""
    return [replace(c, value=getattr(c, end)) if math.isnan(c.value) else c for c in credits]
