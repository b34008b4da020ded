"""Intervals: every way the library has of saying how sure a number is.

A resample is a row of weights, how often each row was drawn. A statistic is a function of such rows, so the number
itself (all weights 1) and a thousand resamples of it come from one formula and mostly from one matrix product.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from rmtrl.errors import UsageError
from rmtrl.types import Estimate

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""A function of row weights `(R, N)` that returns one value a resample, `(R,)`; all weights 1 is the sample itself."""

_FEW_GROUPS = 30  # under which the bootstrap of a share is too narrow
_CELLS = 4_000_000  # of a weight matrix held at a time: 32 MB


def resamples(
    n: int,
    n_resamples: int = 1000,
    *,
    counts: ArrayLike | None = None,
    bayesian: bool = False,
    width: int = 0,
    seed: int | np.random.Generator = 0,
) -> Iterator[Floats]:
    """Yields the weights of n units in bootstrap resamples, blocks of `(R, n)` with `n_resamples` rows in all.

    Args:
        n (`int`): Units.
        n_resamples (`int`): Resamples.
        counts (`(n,)` array of `int`, *optional*): Units that each row stands for, where equal ones were put together.
        bayesian (`bool`): Weights from Exp(1) in place of counts, so that no unit ever vanishes (Rubin 1981,
            https://doi.org/10.1214/aos/1176345338).
        width (`int`): Numbers that one resample takes, where that is more than n; it bounds the blocks.
        seed (`int` or `Generator`): Of the resampling.

    Example:

    ```python
    >>> [weights.sum(axis=1).tolist() for weights in resamples(4, 2)]
    [[4.0, 4.0]]
    ```
    """
    rng = np.random.default_rng(seed)
    number = np.ones(n, np.int64) if counts is None else np.asarray(counts, np.int64)
    total, unit = int(number.sum()), np.repeat(np.arange(n), number)
    block = max(1, _CELLS // max(n, width, 1))
    for start in range(0, n_resamples, block):
        size = min(block, n_resamples - start)
        if bayesian:
            yield rng.standard_exponential((size, n))
        elif 8 * n < total:
            yield rng.multinomial(total, number / total, size=size).astype(np.float64)
        else:
            cells = unit[rng.integers(total, size=(size, total))] + n * np.arange(size)[:, None]
            yield np.bincount(cells.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)


def bootstrap_estimates(
    statistics: Callable[[Floats], Mapping[str, Floats]],
    n: int,
    groups: ArrayLike | None = None,
    *,
    counts: ArrayLike | None = None,
    kind: Literal["percentile", "basic"] = "percentile",
    bounds: tuple[float, float] = (-np.inf, np.inf),
    level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
    by: str = "",
    width: int = 0,
) -> dict[str, Estimate]:
    """Returns an estimate of each statistic from the same bootstrap resamples of whole groups.

    With fewer than two groups there is nothing to resample and the interval is `bounds`.

    Args:
        statistics (`Callable`): Function of weights `(R, n)` that returns `(R,)` values by name. Values that are NaN,
            where a resample leaves the statistic undefined, are left out of the interval; where all are, so is the
            interval.
        n (`int`): Number of rows.
        groups (`(n,)` array, *optional*): Prompt of each row; every row its own group when absent.
        counts (`(n,)` array of `int`, *optional*): How many equal units each row stands for, without groups; the
            sample itself has these weights then.
        kind (`str`): `"percentile"`; or `"basic"`, the percentile interval reflected at the value, for statistics that
            noise can only raise, such as ECE: resampling raises them once more, and the reflection takes both off. It
            is widened to hold the value where it does not.
        bounds (`tuple[float, float]`): Smallest and largest possible value.
        level (`float`): Coverage of the interval.
        n_resamples (`int`): Bootstrap resamples.
        seed (`int`): Seed of the resampling.
        by (`str`): What is resampled, in words; "prompt", or "row" without groups.
        width (`int`): As in [`resamples`].

    Raises:
        ValueError: If there are no rows.

    Example:

    ```python
    >>> x = np.array([1.0, 2.0, 4.0, 9.0])
    >>> bootstrap_estimates(lambda w: {"mean": w @ x / w.sum(1)}, 4)["mean"].value
    4.0
    ```
    """
    if n == 0:
        raise ValueError("got no values; an estimate needs at least one")
    number = np.ones(n) if counts is None else np.asarray(counts, np.float64)
    index = None if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    n_groups = int(number.sum()) if index is None else int(index.max()) + 1
    with np.errstate(divide="ignore", invalid="ignore"):
        values = {name: float(value[0]) for name, value in statistics(number[None]).items()}
        if n_groups < 2:
            return {name: Estimate(v, *bounds, n, level, "one prompt: no interval") for name, v in values.items()}
        rows = n if index is None else n_groups
        drawn = resamples(rows, n_resamples, counts=counts, seed=seed, width=max(n, width))
        blocks = [statistics(weights if index is None else weights[:, index]) for weights in drawn]
    method = f"{kind} bootstrap by {by or ('row' if groups is None else 'prompt')}, {n_resamples} resamples"
    result = {}
    for name, value in values.items():
        low, high = _interval(value, np.concatenate([block[name] for block in blocks]), kind, level)
        result[name] = Estimate(value, max(low, bounds[0]), min(high, bounds[1]), n, level, method)
    return result


def bootstrap_estimate(statistic: Statistic, n: int, groups: ArrayLike | None = None, **options: Any) -> Estimate:
    """Returns one statistic with a bootstrap interval that resamples whole groups.

    Args:
        statistic (`Callable`): Function of weights `(R, n)` that returns `(R,)`.
        n, groups, options: As in [`bootstrap_estimates`].

    Example:

    ```python
    >>> wins = np.array([1.0, 1.0, 0.0, 1.0])
    >>> bootstrap_estimate(lambda w: w @ wins / w.sum(1), 4, ["a", "a", "b", "c"], bounds=(0, 1)).value
    0.75
    ```
    """
    return bootstrap_estimates(lambda weights: {"": statistic(weights)}, n, groups, **options)[""]


def _interval(value: float, drawn: Floats, kind: str, level: float) -> tuple[float, float]:
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn) or np.isnan(value):
        return float("nan"), float("nan")
    low, high = map(float, np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]))
    if kind == "basic":
        return min(value, 2 * value - high), max(value, 2 * value - low)
    return low, high


def defined(estimate: Estimate) -> Estimate | None:
    """Returns the estimate, None where its value or an end of its interval is NaN."""
    return None if np.isnan([estimate.value, estimate.low, estimate.high]).any() else estimate


def mean_estimate(
    values: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    weights: ArrayLike | None = None,
    proportion: bool = True,
    level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Returns the mean of `values` with a bootstrap interval that resamples whole groups.

    Pairs of one prompt are not independent, so the prompt is what is resampled (percentile bootstrap of the ratio
    Σ values / Σ counts over groups). Where every group has the same mean the bootstrap would report an interval of
    width zero; for a proportion the exact binomial interval over the groups is reported instead. Under 30 groups the
    bootstrap of a proportion is too narrow, and the interval holds the exact one too, ties counting ½.

    Args:
        values (`(N,)` array): One value a pair, for example from [`pair_wins`].
        groups (`(N,)` array, *optional*): Prompt of each pair; every pair its own group when absent.
        weights (`(N,)` array, *optional*): Of the values; all equal when absent.
        proportion (`bool`): Whether the values are shares in [0, 1]; not so for margins, losses and differences.
        level (`float`): Coverage of the interval.
        n_resamples (`int`): Bootstrap resamples.
        seed (`int`): Seed of the resampling.

    Raises:
        ValueError: If `values` is empty.

    Example:

    ```python
    >>> print(mean_estimate([1, 1, 0, 1, 0.5, 1, 0, 1]))
    0.688 [0.295, 0.944] (n = 8)
    ```
    """
    values = np.asarray(values, float)
    if len(values) == 0:
        raise ValueError("got no values; an estimate needs at least one")
    w = np.ones(len(values)) if weights is None else np.asarray(weights, float)
    (totals, _), (counts, _) = _sums(values * w, groups), _sums(w, groups)
    mean, n = float(np.average(values, weights=w)), len(values)
    exact = Estimate(mean, mean, mean, n, level, "all groups equal")
    if proportion:
        own = binomial_estimate(mean * len(counts), len(counts), level=level)
        exact = replace(own, value=mean, n=n, method="exact binomial by group")
    if np.ptp(totals / counts) == 0:
        return exact
    options: dict[str, Any] = {"level": level, "n_resamples": n_resamples, "seed": seed, "by": "group"}
    found = replace(bootstrap_estimate(lambda w: w @ totals / (w @ counts), len(counts), **options), value=mean, n=n)
    if not proportion or len(counts) >= _FEW_GROUPS:
        return found
    method = f"{found.method}, no narrower than the exact binomial"
    return replace(found, low=min(found.low, exact.low), high=max(found.high, exact.high), method=method)


def mean_estimates(
    values: ArrayLike, by: ArrayLike, groups: ArrayLike | None = None, **options: Any
) -> dict[Any, Estimate]:
    """Returns the [`mean_estimate`] of the values of each kind, in the order of the sorted kinds.

    Args:
        values (`(N,)` array): One value a pair.
        by (`(N,)` array): Kind of each pair: its domain, its bin.
        groups, options: As in [`mean_estimate`].

    Example:

    ```python
    >>> {name: e.value for name, e in mean_estimates([1, 0, 1], ["maths", "maths", "chat"]).items()}
    {'chat': 1.0, 'maths': 0.5}
    ```
    """
    values, by = np.asarray(values, float), np.asarray(by)
    groups = np.arange(len(values)) if groups is None else np.asarray(groups)
    members = {kind: by == kind for kind in np.unique(by).tolist()}
    return {kind: mean_estimate(values[own], groups[own], **options) for kind, own in members.items()}


def mean_by_group(values: ArrayLike, groups: ArrayLike) -> Floats:
    """Returns the mean of each group, in the order of their sorted names, `(G,)`.

    Example:

    ```python
    >>> mean_by_group([1.0, 3.0, 5.0], ["b", "b", "a"]).tolist()
    [5.0, 2.0]
    ```
    """
    totals, counts = _sums(np.asarray(values, float), groups)
    return totals / counts


def _sums(values: Floats, groups: ArrayLike | None) -> tuple[Floats, Floats]:
    """Returns the sum and the number of values of each group, `(G,)`."""
    if groups is None:
        return values, np.ones(len(values))
    index = np.unique(np.asarray(groups), return_inverse=True)[1]
    return np.bincount(index, weights=values).astype(np.float64), np.bincount(index).astype(np.float64)


def reweighted_estimate(
    values: ArrayLike,
    strata: ArrayLike,
    target: Mapping[str, float],
    groups: ArrayLike | None = None,
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Returns the mean that `values` would have if the strata were mixed as in `target`: Σ_s w_s · mean_s.

    The interval resamples whole groups within each stratum.

    Args:
        values (`(N,)` array): One value a pair, for example from [`pair_wins`].
        strata (`(N,)` array of `str`): Domain of each pair; pairs of strata without a weight do not count.
        target (`Mapping[str, float]`): Weight of each stratum, of any sum.
        groups (`(N,)` array, *optional*): Prompt of each pair; every pair its own group when absent.
        n_resamples, seed: As in [`mean_estimate`].

    Raises:
        ValueError: If a stratum with a weight has no pair, or the weights are not positive numbers.

    Example:

    ```python
    >>> reweighted_estimate([1, 1, 0, 0], ["a", "a", "a", "b"], {"a": 1, "b": 1}).value
    0.3333333333333333
    ```
    """
    values, strata = np.asarray(values, float), np.asarray(strata, str)
    groups = np.arange(len(values)) if groups is None else np.asarray(groups)
    if not all(type(weight) in (int, float) and 0 <= weight < np.inf for weight in target.values()):
        raise ValueError(f"got the target {dict(target)}; wanted weights of 0 or more, finite numbers")
    if not sum(target.values()) > 0:
        raise ValueError(f"got the target {dict(target)}; wanted weights that are not all 0")
    shares = {name: weight / sum(target.values()) for name, weight in target.items() if weight}
    if absent := [name for name in shares if not (strata == name).any()]:
        raise ValueError(f"no pair is of {', '.join(absent)}; leave it out of the target mix")
    rng = np.random.default_rng(seed)
    value, drawn, n = 0.0, np.zeros(n_resamples), 0
    for name, share in shares.items():
        totals, counts = _sums(values[strata == name], groups[strata == name])
        value, n = value + share * float(totals.sum() / counts.sum()), n + int(counts.sum())
        blocks = resamples(len(counts), n_resamples, seed=rng)
        drawn += share * np.concatenate([w @ totals / (w @ counts) for w in blocks])
    method = f"stratified percentile bootstrap by group, {n_resamples} resamples"
    return Estimate(value, *_interval(value, drawn, "percentile", 0.95), n, method=method)


def binomial_estimate(
    successes: float, n: float, *, level: float = 0.95, kind: Literal["exact", "wilson"] = "exact"
) -> Estimate:
    """Returns a success rate with its binomial interval.

    Args:
        successes (`float`): Successes; the exact interval takes a number that is no whole one too.
        n (`float`): Units, 1 or more; for the exact interval an [`effective_n`] too.
        level (`float`): Coverage of the interval.
        kind (`str`): `"exact"` (Clopper and Pearson 1934) or `"wilson"`, the score interval (Wilson 1927).

    Example:

    ```python
    >>> print(binomial_estimate(81, 263, kind="wilson"))
    0.308 [0.255, 0.366] (n = 263)
    ```
    """
    if kind == "wilson":
        from scipy.stats import binomtest

        found = binomtest(int(successes), int(n)).proportion_ci(level, method="wilson")
        return Estimate(successes / n, float(found.low), float(found.high), int(n), level, "Wilson")
    tail = (1 - level) / 2
    low = special.betaincinv(successes, n - successes + 1, tail) if successes > 0 else 0.0
    high = special.betaincinv(successes + 1, n - successes, 1 - tail) if successes < n else 1.0
    return Estimate(successes / n, float(low), float(high), int(n), level, "exact binomial")


def effective_n(values: ArrayLike, groups: ArrayLike | None = None, *, bounds: tuple[float, float] = (0, 1)) -> float:
    """Returns how many independent values N values in groups are worth.

    A binomial interval of so many is one by group (Korn and Graubard 1998). It is N over the design effect, the
    variance of the mean by group over that of as many single values, at most N, and at least N² / Σ n_g², which values
    are worth that are alike within their groups: G groups of one size are worth G. Few events say little of how groups
    differ; so a group of the lowest and one of the highest value, of mean size, are taken to stand beside the others.

    Args:
        values (`(N,)` array): One value a row.
        groups (`(N,)` array, *optional*): Group of each row, one of G; every row its own where absent.
        bounds (`tuple[float, float]`): Lowest and highest possible value.

    Example:

    ```python
    >>> round(effective_n([1, 1, 1, 0, 0, 0, 1, 0, 1, 0], [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]), 1)
    8.1
    ```
    """
    values = np.asarray(values, float)
    totals, counts = _sums(values, groups)
    n, size = len(values), len(values) / len(counts)
    if size == 1:
        return float(n)
    totals, counts = np.append(totals, np.multiply(bounds, size)), np.append(counts, [size, size])
    n_all, n_groups, mean = n + 2 * size, len(counts), totals.sum() / (n + 2 * size)
    by_row = float(((values - mean) ** 2).sum() + size * ((np.array(bounds) - mean) ** 2).sum()) / (n_all - 1)
    by_group = float(((totals - mean * counts) ** 2).sum()) / n_all * n_groups / (n_groups - 1)
    return float(np.clip(n * by_row / by_group, n**2 / float((counts[:-2] ** 2).sum()), n))


def share_estimate(events: ArrayLike, groups: ArrayLike, *, level: float = 0.95) -> Estimate:
    """Returns the share of events in groups, with the exact interval of as many as they are worth by [`effective_n`].

    Args:
        events (`(N,)` array): Whether each row is one.
        groups (`(N,)` array): Prompt of each row.
        level (`float`): Coverage of the interval.

    Example:

    ```python
    >>> share_estimate([True, True, False, False], ["a", "a", "b", "b"]).method
    'exact binomial, worth 2.0 prompts (Korn and Graubard)'
    ```
    """
    events, n = np.asarray(events, float), effective_n(events, groups)
    found = binomial_estimate(float(events.mean()) * n, n, level=level)
    by = "" if n == len(events) else f", worth {n:.1f} prompts (Korn and Graubard)"
    return replace(found, n=len(events), method=found.method + by)


def corrected_rate(
    rate: Estimate, sensitivity: Estimate, specificity: Estimate, *, n: float | None = None
) -> Estimate:
    """Returns the true rate behind the one that an imperfect judge counted, (p + sp − 1) / (se + sp − 1), in 0..1.

    Rogan and Gladen's estimator (1978, https://doi.org/10.1093/oxfordjournals.aje.a112510) with the interval of Lang
    and Reiczigel (2014, https://doi.org/10.1016/j.prevetmed.2013.09.015), which carries how surely sensitivity and
    specificity are known: each was measured on its own labelled answers, which are like those judged here.

    Args:
        rate (`Estimate`): Share p of its n units that the judge counts.
        sensitivity (`Estimate`): Share se of what is truly so that the judge counts, with its n.
        specificity (`Estimate`): Share sp of what is truly not so that the judge leaves, with its n.
        n (`float`, *optional*): Independent units that the rate is worth, see [`effective_n`]; its own n by default.

    Raises:
        UsageError: If se + sp is 1 or less: such a judge says nothing of the true rate.

    Example:

    ```python
    >>> judge = binomial_estimate(90, 100), binomial_estimate(70, 100)
    >>> print(corrected_rate(binomial_estimate(40, 100), *judge))
    0.167 [0.000, 0.362] (n = 100)
    ```
    """
    se, sp = sensitivity.value, specificity.value
    if se + sp <= 1:
        raise UsageError(
            f"the judge has sensitivity {se:.3f} and specificity {sp:.3f}; wanted two whose sum is above 1, or the "
            "rate cannot be corrected: use a better judge or more labels"
        )
    value = float(np.clip((rate.value + sp - 1) / (se + sp - 1), 0, 1))
    low, high = _lang_reiczigel(rate, rate.n if n is None else n, sensitivity, specificity)
    method = "Rogan and Gladen, interval of Lang and Reiczigel"
    return Estimate(value, min(low, value), max(high, value), rate.n, rate.level, method)


def _lang_reiczigel(rate: Estimate, n: float, sensitivity: Estimate, specificity: Estimate) -> tuple[float, float]:
    """Wald's interval once each share is pulled towards ½, shifted by what the pull does to the ratio."""
    z = float(special.ndtri((1 + rate.level) / 2))
    p, n_p = (rate.value * n + z**2 / 2) / (n + z**2), n + z**2
    se, sp = ((own.value * own.n + 1) / (own.n + 2) for own in (sensitivity, specificity))
    if se + sp <= 1:
        return 0.0, 1.0
    of_se, of_sp = se * (1 - se) / (sensitivity.n + 2), sp * (1 - sp) / (specificity.n + 2)
    true = (p + sp - 1) / (se + sp - 1)
    middle = true + 2 * z**2 * (true * of_se - (1 - true) * of_sp)
    variance = p * (1 - p) / n_p + true**2 * of_se + (1 - true) ** 2 * of_sp
    half = z * float(np.sqrt(variance)) / (se + sp - 1)
    return float(np.clip(middle - half, 0, 1)), float(np.clip(middle + half, 0, 1))


def scaled(estimate: Estimate, factor: float) -> Estimate:
    """Returns an estimate times a number; below 0 its ends change places."""
    low, high = (estimate.low, estimate.high) if factor >= 0 else (estimate.high, estimate.low)
    return replace(estimate, value=factor * estimate.value, low=factor * low, high=factor * high)


def combined_estimate(
    estimates: Sequence[Estimate], weights: Sequence[float], *, independent: bool = True, method: str = "MOVER"
) -> Estimate:
    """Returns the weighted sum of estimates with an interval from theirs (MOVER, Zou and Donner 2008).

    The distances from value to end add in squares on each side; with `weights` (1, −1) of two rates with Wilson's
    intervals that is Newcombe's interval of their difference. Of figures that depend on one another the distances add
    up as they are, which holds whatever the dependence.

    Args:
        estimates (`Sequence[Estimate]`): Of one level.
        weights (`Sequence[float]`): One an estimate: (1, −1) for a difference, 1/k each for a mean.
        independent (`bool`): Whether they come from samples that have nothing in common.
        method (`str`): What the result says of its interval.

    Example:

    ```python
    >>> rates = [binomial_estimate(k, n, kind="wilson") for k, n in ((56, 70), (48, 80))]
    >>> print(combined_estimate(rates, (1, -1)))
    0.200 [0.052, 0.334] (n = 150)
    ```
    """
    factors = np.asarray(weights, float)
    values, lows, highs = (factors * [getattr(e, end) for e in estimates] for end in ("value", "low", "high"))
    below, above = values - np.minimum(lows, highs), np.maximum(lows, highs) - values
    low, high = (float(np.sqrt((part**2).sum()) if independent else part.sum()) for part in (below, above))
    value, n = float(values.sum()), sum(estimate.n for estimate in estimates)
    return Estimate(value, value - low, value + high, n, estimates[0].level, method)


def ratio_estimate(numerator: Estimate, denominator: Estimate) -> Estimate:
    """Returns the ratio of two independent estimates, with an interval from theirs (MOVER-R, Donner and Zou 2012).

    The interval is all numbers where that of the denominator reaches 0, or twice its value.

    Args:
        numerator (`Estimate`): Of any sign.
        denominator (`Estimate`): Above 0; of the same level.

    Example:

    ```python
    >>> print(ratio_estimate(Estimate(2.0, 1.0, 3.0, 50), Estimate(4.0, 4.0, 4.0, 50)))
    0.500 [0.250, 0.750] (n = 50)
    ```
    """
    x, y = numerator.value, denominator.value
    low, high, n = -np.inf, np.inf, numerator.n
    if 0 < denominator.low <= denominator.high < 2 * y:
        for_low, for_high = (y_end * (2 * y - y_end) for y_end in (denominator.high, denominator.low))
        low = (x * y - np.sqrt((x * y) ** 2 - numerator.low * (2 * x - numerator.low) * for_low)) / for_low
        high = (x * y + np.sqrt((x * y) ** 2 - numerator.high * (2 * x - numerator.high) * for_high)) / for_high
    return Estimate(x / y, float(low), float(high), n, numerator.level, "MOVER-R")


def clustered_covariance(scores: ArrayLike, information: ArrayLike, groups: ArrayLike) -> Floats:
    """Returns the sandwich covariance by group, I⁻¹ (Σ_g s_g s_gᵀ) I⁻¹ · G / (G − 1), `(K, K)` (Liang and Zeger 1986).

    Args:
        scores (`(N, K)` array): Each row's part of the gradient of the log-likelihood.
        information (`(K, K)` array): Minus its Hessian.
        groups (`(N,)` array): Prompt of each row, two or more.

    Example:

    ```python
    >>> clustered_covariance([[1.0], [-1.0], [1.0]], [[2.0]], ["a", "a", "b"]).tolist()
    [[0.5]]
    ```
    """
    sums = np.stack([_sums(column, groups)[0] for column in np.asarray(scores, float).T], axis=1)
    inverse = np.linalg.inv(np.asarray(information, float))
    return inverse @ (sums.T @ sums) @ inverse * len(sums) / (len(sums) - 1)


def too_few(n_prompts: int, level: float) -> bool:
    """Returns whether no change could show at this level: if not even a sign test of equal changes would reach it.

    Example:

    ```python
    >>> too_few(5, 0.95), too_few(6, 0.95)
    (True, False)
    ```
    """
    return 2.0 ** (1 - n_prompts) > 1 - level


def change_estimate(changes: ArrayLike, *, level: float = 0.95) -> Estimate:
    """Returns the mean change over prompts with Student's interval, which holds at levels no bootstrap reaches.

    With [`too_few`] prompts the interval is all numbers.

    Args:
        changes (`(P,)` array): Change of each prompt's mean.
        level (`float`): Coverage of the interval.

    Example:

    ```python
    >>> print(change_estimate([0.5, 1.0, 0.0, 1.5, 1.0, 0.5]))
    0.750 [0.200, 1.300] (n = 6)
    ```
    """
    changes = np.asarray(changes, float)
    n, mean = len(changes), float(changes.mean())
    if too_few(n, level):
        return Estimate(mean, -np.inf, np.inf, n, level, "too few prompts")
    half = float(special.stdtrit(n - 1, (1 + level) / 2) * changes.std(ddof=1) / np.sqrt(n))
    return Estimate(mean, mean - half, mean + half, n, level, "paired t")
