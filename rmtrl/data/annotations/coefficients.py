"""Coefficients of agreement as pure functions of arrays, each with a bootstrap interval.

Every coefficient is computed from weighted units, so the value (all weights 1) and its bootstrap (weights: how often a
unit was drawn) come from one formula and a thousand resamples cost little more than one. The values equal those of
the packages krippendorff, statsmodels, scikit-learn and irrCAC.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse, stats

from rmtrl.types import Estimate

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Scale = Literal["nominal", "ordinal", "interval"]

SCALES = ("nominal", "ordinal", "interval")
_CELLS_AT_ONCE = 4_000_000  # floats of one block of resamples, 32 MB


def count_values(unit: ArrayLike, value: ArrayLike) -> tuple[Ints, Floats]:
    """Returns how often each value was given to each unit, `(U, V)`, and the values, `(V,)` ascending.

    Args:
        unit (`(N,)` array): Unit of each judgment, any integers.
        value (`(N,)` array): What was judged.

    Example:

    ```python
    >>> count_values([0, 0, 1], [1, 3, 3])[0].tolist()
    [[1, 1], [0, 1]]
    ```
    """
    units, rows = np.unique(np.asarray(unit), return_inverse=True)
    values, columns = np.unique(np.asarray(value, float), return_inverse=True)
    counts = np.bincount(rows * len(values) + columns, minlength=len(units) * len(values))
    return counts.reshape(len(units), len(values)), values


def agreement_coefficients(
    counts: ArrayLike,
    values: ArrayLike | None = None,
    *,
    scale: Scale = "nominal",
    n_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Estimate | None]:
    """Returns alpha, Fleiss' kappa, AC1, Brennan-Prediger and raw agreement, None where undefined.

    Units may have any number of judgments. With c_uk judgments of value k among the m_u of unit u:
    `raw` = mean over units with m_u ≥ 2 of Σ_k c_uk (c_uk − 1) / (m_u (m_u − 1)); a kappa is (raw − e) / (1 − e) with
    π_k = mean over all units of c_uk / m_u and e = Σ π_k² (Fleiss), Σ π_k (1 − π_k) / (V − 1) (Gwet's AC1) or 1 / V
    (Brennan and Prediger), as in Gwet, Handbook of Inter-Rater Reliability, 2014. With equal m_u that is Fleiss' own
    kappa. alpha = 1 − D_o / D_e after Krippendorff 2011 (https://repository.upenn.edu/asc_papers/43). The interval is
    a percentile bootstrap over units.

    Args:
        counts (`(U, V)` array): Judgments of each value by unit.
        values (`(V,)` array, *optional*): What the columns stand for, ascending; 0, 1, 2 … when absent.
        scale (`str`): Scale of alpha: "nominal", "ordinal" or "interval".
        n_resamples (`int`): Bootstrap resamples.
        seed (`int`): Seed of the resampling.
        level (`float`): Coverage of the interval.

    Example:

    ```python
    >>> agreement_coefficients([[2, 0], [0, 2], [1, 1], [2, 0]], n_resamples=100)["raw"].value
    0.75
    ```
    """
    counts = np.asarray(counts, np.float64)
    positions = np.arange(counts.shape[1], dtype=float) if values is None else np.asarray(values, float)
    paired = int((counts.sum(1) > 1).sum())
    # units with equal counts behave alike, so only the distinct ones are kept, with their number
    patterns, number = np.unique(counts, axis=0, return_counts=True) if len(counts) else (counts, np.zeros(0, int))
    statistic = _coefficients_of(patterns, positions, scale)
    estimates = _bootstrap(statistic, number, paired, patterns.size, n_resamples, seed, level)
    raw = estimates["raw"]
    if raw is not None and raw.value in (0.0, 1.0):  # every resample agrees, which says nothing of the population
        exact = stats.binomtest(round(raw.value * paired), paired).proportion_ci(level)
        estimates["raw"] = Estimate(raw.value, float(exact.low), float(exact.high), paired, level, "exact binomial")
    return estimates


def _coefficients_of(counts: Floats, values: Floats, scale: str) -> Callable[[Floats], dict[str, Floats]]:
    """Returns the function from weights of units `(B, U)` to coefficients `(B,)` each."""
    judgments = counts.sum(1)
    paired = judgments > 1
    others = np.where(paired, judgments - 1, 1.0)
    agreeing = np.where(paired, (counts * (counts - 1)).sum(1) / (np.maximum(judgments, 1) * others), 0.0)
    shares = counts / np.maximum(judgments, 1)[:, None]

    def coefficients(weights: Floats) -> dict[str, Floats]:
        raw = weights @ agreeing / (weights @ paired)
        pi = weights @ shares / weights.sum(1, keepdims=True)
        chance = {
            "fleiss": (pi**2).sum(1),
            "ac1": (pi * (1 - pi)).sum(1) / (len(values) - 1),
            "brennan_prediger": np.full(len(pi), 1 / max(len(values), 1)),
        }
        # chance agreement of 1 up to rounding: one value only, and nothing to correct for
        kappas = {name: (raw - e) / np.where(e > 1 - 1e-12, np.nan, 1 - e) for name, e in chance.items()}
        return {"alpha": _alpha(counts, weights * paired, others, values, scale), **kappas, "raw": raw}

    return coefficients


def _alpha(counts: Floats, weights: Floats, others: Floats, values: Floats, scale: str) -> Floats:
    """Returns Krippendorff's alpha of each row of weights, `(B,)`, without the matrix of coincidences.

    Interval: δ² = (x_v − x_w)², whose double sums come from first and second moments. Ordinal: the same with x_v the
    mid-rank Σ_{k<v} n_k + n_v / 2. Nominal: δ² = 1 for v ≠ w.
    """
    judgments = others + 1
    scaled = weights / others
    totals = weights @ counts
    n = totals.sum(1)
    if scale == "nominal":
        observed = scaled @ (judgments**2 - (counts**2).sum(1))
        expected = n**2 - (totals**2).sum(1)
    else:
        ranks = np.cumsum(totals, 1) - totals / 2
        x = ranks if scale == "ordinal" else np.broadcast_to(values - values.mean(), totals.shape)
        squares = (((scaled * judgments) @ counts) * x**2).sum(1)
        observed = 2 * (squares - (scaled * (x @ counts.T) ** 2).sum(1))
        expected = 2 * (n * (totals * x**2).sum(1) - (totals * x).sum(1) ** 2)
        expected = np.where((totals > 0).sum(1) > 1, expected, 0.0)
    return 1 - (n - 1) * observed / expected


# ---- pairs of annotators


def cohen_kappas(
    unit: ArrayLike,
    annotator: ArrayLike,
    value: ArrayLike,
    *,
    scale: Scale = "nominal",
    n_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[Estimate | None, dict[tuple[int, int], Estimate | None]]:
    """Returns the mean of Cohen's kappa over pairs of annotators, and each pair's, None where undefined.

    A pair counts with the units both have judged. The weights of disagreement are none (nominal), |i − j| (ordinal) or
    (i − j)² (interval) in positions among the values the two gave there, as in scikit-learn's
    `cohen_kappa_score(a, b, weights=None | "linear" | "quadratic")`.

    Args:
        unit, annotator, value (`(N,)` arrays): Unit, annotator and value of each judgment.
        scale (`str`): "nominal", "ordinal" or "interval".
        n_resamples, seed, level: As in [`agreement_coefficients`].

    Example:

    ```python
    >>> mean, pairs = cohen_kappas([0, 0, 1, 1, 2, 2], [7, 8] * 3, [1, 1, 0, 0, 1, 0])
    >>> round(pairs[7, 8].value, 3)
    0.4
    ```
    """
    rows, annotators, values, first, second = _judged_together(unit, annotator, value)
    if not len(first):
        return None, {}
    pairs, pair = np.unique(np.stack([annotators[first], annotators[second]], 1), axis=0, return_inverse=True)
    size = int(values.max()) + 1
    cell = (pair.reshape(-1) * size + values[first]) * size + values[second]
    kinds = len(pairs) * size**2
    distinct, unit_row = np.unique(rows[first], return_inverse=True)
    table = sparse.csr_array((np.ones(len(cell)), (cell, unit_row)), shape=(kinds, len(distinct)))
    used = np.zeros((len(pairs), size), bool)
    used[pair.reshape(-1), values[first]] = used[pair.reshape(-1), values[second]] = True
    position = np.cumsum(used, 1)
    penalty = np.abs(position[:, :, None] - position[:, None, :]).astype(float)
    penalty = {"nominal": (penalty > 0).astype(float), "ordinal": penalty, "interval": penalty**2}[scale]

    def kappas(weights: Floats) -> dict[str, Floats]:
        tables = (table @ weights.T).T.reshape(len(weights), len(pairs), size, size)
        chance = np.einsum("bpi,bpj,pij->bp", tables.sum(3), tables.sum(2), penalty) / tables.sum((2, 3))
        each = 1 - (tables * penalty).sum((2, 3)) / chance
        defined = np.isfinite(each)
        mean = np.where(defined, each, 0).sum(1) / defined.sum(1)
        return {"mean": mean} | {str(k): each[:, k] for k in range(len(pairs))}

    number = np.ones(len(distinct), int)
    found = _bootstrap(kappas, number, len(distinct), max(kinds, len(distinct)), n_resamples, seed, level)
    names = [(int(a), int(b)) for a, b in np.asarray(pairs)]
    common = np.bincount(pair.reshape(-1))
    each = [found[str(k)] for k in range(len(pairs))]
    return found["mean"], {
        name: estimate and replace(estimate, n=int(n)) for name, estimate, n in zip(names, each, common, strict=True)
    }


def _judged_together(unit: ArrayLike, annotator: ArrayLike, value: ArrayLike) -> tuple[Ints, Ints, Ints, Ints, Ints]:
    """Returns unit, annotator and value sorted, and the rows of every two judgments of one unit."""
    order = np.lexsort((np.asarray(annotator), np.asarray(unit)))
    rows = np.unique(np.asarray(unit)[order], return_inverse=True)[1]
    values = np.unique(np.asarray(value, float)[order], return_inverse=True)[1]
    first, second = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for distance in range(1, int(np.bincount(rows).max(initial=0))):
        start = np.flatnonzero(rows[distance:] == rows[:-distance])
        first.append(start)
        second.append(start + distance)
    return rows, np.asarray(annotator)[order], values, np.concatenate(first), np.concatenate(second)


# ---- intervals


def _bootstrap(
    statistic: Callable[[Floats], Mapping[str, Floats]],
    number: Ints,
    n: int,
    width: int,
    n_resamples: int,
    seed: int,
    level: float,
) -> dict[str, Estimate | None]:
    """Returns each statistic with a percentile interval over resampled units; `number` of them per pattern."""
    with np.errstate(divide="ignore", invalid="ignore"):
        value = {name: float(found[0]) for name, found in statistic(number[None].astype(float)).items()}
        blocks = [statistic(weights) for weights in _resamples(number, width, n_resamples, seed)]
    method = f"percentile bootstrap over units, {n_resamples} resamples"
    estimates: dict[str, Estimate | None] = {}
    for name, point in value.items():
        drawn = np.concatenate([block[name] for block in blocks])
        drawn = drawn[np.isfinite(drawn)]
        estimates[name] = None
        if np.isfinite(point) and len(drawn):
            low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
            used = "all resamples equal" if low == high else method
            estimates[name] = Estimate(point, float(low), float(high), n, level, used)
    return estimates


def _resamples(number: Ints, width: int, n_resamples: int, seed: int) -> Iterator[Floats]:
    rng = np.random.default_rng(seed)
    total = int(number.sum())
    block = max(1, _CELLS_AT_ONCE // max(width, 1))
    for start in range(0, n_resamples, block):
        draws = min(block, n_resamples - start)
        if len(number) * 8 < total:
            yield rng.multinomial(total, number / total, size=draws).astype(float)
        else:
            pattern = np.repeat(np.arange(len(number)), number)
            drawn = pattern[rng.integers(0, total, (draws, total))] + len(number) * np.arange(draws)[:, None]
            yield np.bincount(drawn.ravel(), minlength=draws * len(number)).reshape(draws, -1).astype(float)
