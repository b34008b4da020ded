"""From scores to a benchmark's result: its figures with intervals, what was missing and what that could change."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy import sparse

from rmtrl.errors import DataError
from rmtrl.evaluation.benchmarks.base import Benchmark, Figure, Floats, Item, Scores, named
from rmtrl.metrics import resamples
from rmtrl.types import Estimate

_LEVEL = 0.95
_NAMED = 20  # missing ids that a result lists; all are counted
_NOTHING = 1e-12  # spread of resamples that is rounding


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
    subsets that share prompts vary together; the figures of every resample are those of its parts' means.

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
        whole = f"none of the {len(counted):,} rows of {benchmark.name} has scores{in_words(missing_reasons)}"
        raise DataError(f"{whole}; there is nothing to report")
    earned = benchmark.credits([item for item, _ in counted], [own for _, own in counted])
    credits = pd.DataFrame(earned, columns=["part", "prompt_id", "value"])
    figures = benchmark.figures(_parts(credits.dropna()))
    if figures.overall is None:
        raise DataError(f"the rows of {benchmark.name} that have scores make up no figure; score more of them")
    estimates = _estimates(benchmark, credits.dropna(), n_resamples, seed)
    overall = estimates.pop("overall")[""]
    wrong = credits["part"].map(benchmark.lowest).fillna(0.0)
    worst, best = (benchmark.figures(_parts(credits.fillna({"value": end}))) for end in (wrong, 1.0))
    lost = {name: figure.n for name, figure in worst.sections.items() if name not in figures.sections}
    assert worst.overall and best.overall  # they have the parts that the figures have
    return BenchmarkResult(
        name=benchmark.name, rule=benchmark.rule, ties=benchmark.ties, kind=benchmark.kind, source=benchmark.source,
        n_rows=len(items), n_scored=len(counted) - len(missing), n_missing=len(missing),
        missing_ids=tuple(missing[:_NAMED]),
        missing_parts=_missing_parts(benchmark, items, scores, lost),
        excluded=dict(Counter(item.excluded for item in items if item.excluded)),
        missing_reasons=dict(missing_reasons or {}),
        overall=overall,
        bounds=(min(overall.value, float(worst.overall.value)), max(overall.value, float(best.overall.value))),
        **estimates,
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
        if own is not None and (fault := _fault(own, len(item.candidates), benchmark.takes_failed)):
            raise DataError(f"item {item.id!r} of {benchmark.name} has {fault}")


def _fault(scores: Floats, n: int, takes_failed: bool) -> str:
    """Returns what is wrong with the scores of n candidates, if anything is."""
    if np.shape(scores) != (n,):
        return f"{n} candidates, but scores of shape {np.shape(scores)}; give one score a candidate"
    bad = scores[~np.isfinite(scores) & ~(takes_failed & np.isneginf(scores))]
    if not len(bad):
        return ""
    return f"the score {float(bad[0])}; wanted finite numbers, or null for an item that could not be scored"


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


def _parts(credits: pd.DataFrame) -> dict[str, Figure]:
    """Returns the mean and the number of credits of every part."""
    grouped = credits.groupby("part", sort=False)["value"].agg(["mean", "size"])
    return {name: Figure(mean, int(n)) for name, mean, n in grouped.itertuples()}


def _estimates(
    benchmark: Benchmark, credits: pd.DataFrame, n_resamples: int, seed: int
) -> dict[str, dict[str, Estimate]]:
    """Returns the estimate of every figure, by kind and name, see [`result_of`].

    All that an estimate needs are figures of some means of parts, so the benchmark sees one table of them: the sample,
    the least credit everywhere, the most, each prompt's share of each part, and of every resample means and masses.
    """
    parts, names = pd.factorize(credits["part"])
    prompts = pd.factorize(credits["prompt_id"])[0]
    totals, counts = (
        sparse.csr_array((values, (prompts, parts))) for values in (credits["value"].to_numpy(), np.ones(len(credits)))
    )
    n = counts.sum(axis=0)
    rng = np.random.default_rng(seed)
    drawn = resamples(counts.shape[0], n_resamples, bayesian=True, seed=rng)
    mass, total = map(np.concatenate, zip(*((weights @ counts, weights @ totals) for weights in drawn), strict=True))
    # a grid in random order rather than random numbers: its quantiles are those of Exp(1)
    added = -np.log((rng.permutation(n_resamples) + 0.5) / n_resamples)
    worst, best = np.array([benchmark.lowest.get(name, 0.0) for name in names]), np.ones(len(n))
    table = np.vstack([totals.sum(axis=0) / n, worst, best, (counts / n).toarray(), total / mass, mass / n])
    means = {name: Figure(table[:, i], int(n[i])) for i, name in enumerate(names)}
    figures = benchmark.figures(means)
    by_kind = {
        "overall": {"": figures.overall},
        "sections": figures.sections,
        "subsets": {name: figure for name, figure in means.items() if benchmark.is_subset(name)},
        "others": figures.others,
    }
    return {
        kind: {name: _estimate(figure, added) for name, figure in named(own).items()} for kind, own in by_kind.items()
    }


def _estimate(figure: Figure, added: Floats) -> Estimate:
    """Returns the estimate of a figure of the table of [`_estimates`], with what is `added` to each resample."""
    n_resamples, tail = len(added), (1 - _LEVEL) / 2
    (value, worst, best), prompts, resampled, mass = np.split(figure.value, [3, -2 * n_resamples, -n_resamples])
    weight = prompts.max() / best
    if np.ptp(resampled) < _NOTHING:  # then the added prompt's share has a closed form, Beta(1, 1 / weight)
        share, method = 1 - tail**weight, "exact bound by prompt"
        low, high = value + (worst - value) * share, value + (best - value) * share
    else:
        pull = weight * added / (mass / best + weight * added)
        low = np.quantile(resampled + (worst - resampled) * pull, tail)
        high = np.quantile(resampled + (best - resampled) * pull, 1 - tail)
        method = f"Bayesian bootstrap by prompt, {n_resamples} resamples"
    return Estimate(float(value), float(min(low, value)), float(max(high, value)), figure.n, _LEVEL, method)
