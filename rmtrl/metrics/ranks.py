"""What the order of scores says: who wins a pair, correlations, best of n."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from rmtrl.errors import DataError, UsageError
from rmtrl.metrics.estimates import Floats, bootstrap_estimate, mean_estimates
from rmtrl.types import Estimate, PairRewards

Ints = NDArray[np.int64]

_OF_STEPS: dict[str, Callable[[Floats], Any]] = {"min": np.min, "product": np.prod, "last": lambda own: own[-1]}


def pair_wins(chosen: ArrayLike, rejected: ArrayLike) -> NDArray[np.float64]:
    """Returns 1 where chosen scores higher, 0 where rejected does and 1/2 for a tie, `(N,)`.

    Args:
        chosen (`(N,)` array): Scores of the chosen responses.
        rejected (`(N,)` array): Scores of the rejected responses.

    Example:

    ```python
    >>> pair_wins([2.0, 1.0, 0.0], [1.0, 1.0, 3.0]).tolist()
    [1.0, 0.5, 0.0]
    ```
    """
    return (np.sign(np.asarray(chosen, float) - np.asarray(rejected, float)) + 1) / 2


def worst_group_accuracy(wins: ArrayLike, domains: ArrayLike, groups: ArrayLike | None = None) -> tuple[str, Estimate]:
    """Returns the domain of lowest accuracy, and that accuracy with an interval for the lowest TRUE accuracy.

    The smallest of K noisy figures is too small on average, and the interval of that one domain does not know that it
    was picked. So each domain gets an interval at level 1 − 0.05 / K (Bonferroni): together they hold all true
    accuracies, and the lowest of those lies between the smallest lower and the smallest upper end.

    Args:
        wins (`(N,)` array): From [`pair_wins`].
        domains (`(N,)` array of `str`): Domain of each pair.
        groups (`(N,)` array, *optional*): Prompt of each pair; every pair its own group when absent.

    Returns:
        `tuple[str, Estimate]`: The domain, and the estimate; its `n` is that of the domain.

    Example:

    ```python
    >>> worst_group_accuracy([1, 1, 0, 1, 1, 1], ["maths"] * 3 + ["chat"] * 3)[0]
    'maths'
    ```
    """
    domains = np.asarray(domains, str)
    n_domains = len(np.unique(domains))
    found = mean_estimates(wins, domains, groups, level=1 - 0.05 / n_domains, n_resamples=10_000)
    worst, own = min(found.items(), key=lambda item: item[1].value)
    low, high = min(e.low for e in found.values()), min(e.high for e in found.values())
    method = f"lowest of {n_domains} simultaneous intervals (Bonferroni); {own.method}"
    return worst, Estimate(own.value, low, max(high, own.value), own.n, method=method)


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Returns Spearman's rank correlation, NaN where one side is constant or there are fewer than two points.

    Example:

    ```python
    >>> spearman([1, 2, 3, 4], [1, 3, 2, 4])
    0.8
    ```
    """
    from scipy.stats import rankdata

    return round(pearson(rankdata(x), rankdata(y)), 12)


def kendall(x: ArrayLike, y: ArrayLike) -> float:
    """Returns Kendall's τ-b, which allows for ties; NaN as in [`spearman`].

    Example:

    ```python
    >>> round(kendall([12, 2, 1, 12, 2], [1, 4, 7, 1, 0]), 6)
    -0.471405
    ```
    """
    from scipy.stats import kendalltau

    return float("nan") if _is_undefined(x, y) else float(kendalltau(x, y).statistic)


def pearson(x: ArrayLike, y: ArrayLike) -> float:
    """Returns the linear correlation; NaN as in [`spearman`].

    Example:

    ```python
    >>> round(pearson([1, 2, 3], [2, 4, 7]), 4)
    0.9934
    ```
    """
    from scipy.stats import pearsonr

    return float("nan") if _is_undefined(x, y) else float(pearsonr(x, y).statistic)


def _is_undefined(x: ArrayLike, y: ArrayLike) -> bool:
    return len(np.asarray(x)) < 2 or bool(np.ptp(x) == 0 or np.ptp(y) == 0)


def correlation_estimate(
    x: ArrayLike,
    y: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    kind: Literal["spearman", "kendall", "pearson"] = "spearman",
    **options: Any,
) -> Estimate:
    """Returns a correlation with a percentile bootstrap interval that resamples whole prompts.

    Args:
        x, y (`(N,)` arrays): The two scores of each item, for example rewards and ratings.
        groups (`(N,)` array, *optional*): Prompt of each item; every item its own group when absent.
        kind (`str`): `"spearman"`, `"kendall"` (τ-b) or `"pearson"`.
        options: `n_resamples` and `seed` of [`bootstrap_estimates`].

    Returns:
        [`Estimate`]: NaN with an interval from −1 to 1 where the correlation is undefined.

    Raises:
        ValueError: If there are no items, or the two are not of one length.

    Example:

    ```python
    >>> correlation_estimate([1, 2, 3, 4], [1, 3, 2, 4], kind="kendall").value
    0.6666666666666669
    ```
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"got {x.shape} and {y.shape} values; a correlation needs two scores an item")
    if len(x) and _is_undefined(x, y):
        return Estimate(float("nan"), -1.0, 1.0, len(x), method="undefined: a side is constant or has one value")

    def statistic(weights: Floats) -> Floats:
        if kind == "pearson":
            return _weighted_pearson(weights, x, y)
        if kind == "spearman":
            return _weighted_pearson(weights, _weighted_ranks(weights, x), _weighted_ranks(weights, y))
        drawn = (np.repeat(np.arange(len(x)), row.astype(np.int64)) for row in weights)
        return np.array([kendall(x[index], y[index]) for index in drawn])

    return bootstrap_estimate(statistic, len(x), groups, bounds=(-1.0, 1.0), **options)


def _weighted_ranks(weights: Floats, values: Floats) -> Floats:
    """Returns the ranks, `(R, N)`, that the values have in each resample; equal ones share their mean rank."""
    levels, level = np.unique(values, return_inverse=True)
    order = np.argsort(level, kind="stable")
    starts = np.searchsorted(level[order], np.arange(len(levels)))
    counts = np.add.reduceat(weights[:, order], starts, axis=1)
    return np.asarray((np.cumsum(counts, axis=1) - (counts - 1) / 2)[:, level], dtype=np.float64)


def _weighted_pearson(weights: Floats, x: Floats, y: Floats) -> Floats:
    """Returns the correlation in each resample, NaN where a side is constant; `x` and `y` are `(N,)` or `(R, N)`."""
    total = weights.sum(axis=1, keepdims=True)
    x = x - (weights * x).sum(axis=1, keepdims=True) / total
    y = y - (weights * y).sum(axis=1, keepdims=True) / total
    spread = (weights * x**2).sum(axis=1) * (weights * y**2).sum(axis=1)
    return np.asarray((weights * x * y).sum(axis=1) / np.sqrt(spread), dtype=np.float64)


def reward_metrics(pairs: PairRewards, domains: Sequence[str] = ()) -> dict[str, float]:
    """Returns TRL's metrics over all pairs, exact: loss, min / mean / max reward, accuracy (ties one half), margin.

    Args:
        pairs ([`PairRewards`]): The pairs, of any one window or evaluation set.
        domains (`Sequence[str]`, *optional*): Names for `pairs.domain`; two or more add `accuracy/<name>` each.
    """
    wins = pair_wins(pairs.chosen, pairs.rejected)
    rewards = np.concatenate([pairs.chosen, pairs.rejected])
    metrics = {
        "min_reward": float(rewards.min()),
        "mean_reward": float(rewards.mean()),
        "max_reward": float(rewards.max()),
        "accuracy": float(wins.mean()),
        "margin": float(pairs.margin.mean()),
    }
    for index, name in enumerate(domains if len(domains) > 1 else ()):
        if (pairs.domain == index).any():
            metrics[f"accuracy/{name}"] = float(wins[pairs.domain == index].mean())
    return metrics


def step_rewards(scores: Sequence[ArrayLike], aggregation: Literal["min", "product", "last"]) -> Floats:
    """Returns the reward of each answer from the scores of its steps, `(N,)`: NaN where one of them is not finite.

    A process reward model scores steps by the chance that they are right. Their product is that of an answer without
    a wrong step (Lightman et al. 2023, https://huggingface.co/papers/2305.20050); the minimum is its worst step (Wang
    et al. 2023, https://huggingface.co/papers/2312.08935), and does not fall with the number of steps.

    Args:
        scores (`Sequence` of `(n_steps,)` arrays): Scores of the steps of N answers, at least one each.
        aggregation (`str`): `"min"`, `"product"` or `"last"`.

    Raises:
        UsageError: If the aggregation is none of these.
        DataError: If an answer has no steps.

    Example:

    ```python
    >>> step_rewards([[0.9, 0.5, 0.8], [0.7]], "min").tolist()
    [0.5, 0.7]
    ```
    """
    if aggregation not in _OF_STEPS:
        raise UsageError(f"got the aggregation {aggregation!r} of steps; wanted {', '.join(_OF_STEPS)}")
    steps = [np.asarray(own, dtype=np.float64) for own in scores]
    for index, own in enumerate(steps):
        if own.ndim != 1 or not own.size:
            raise DataError(f"answer {index} has {own.tolist()!r} as its steps; wanted a list of scores", index=index)
    return np.array([_OF_STEPS[aggregation](own) if np.isfinite(own).all() else np.nan for own in steps])


def best_of_n_kl(n: ArrayLike) -> Floats:
    """Returns the KL divergence of best-of-n sampling from the policy itself, in nats: log n − (n − 1)/n.

    An upper bound where samples can be equal (Beirami et al. 2024, https://huggingface.co/papers/2401.01879).

    Args:
        n (array of `int`): Samples of which the best is taken.

    Example:

    ```python
    >>> best_of_n_kl([1, 2, 1024]).round(6).tolist()
    [0.0, 0.193147, 5.932448]
    ```
    """
    n = np.asarray(n, float)
    return np.asarray(np.log(n) - (n - 1) / n, dtype=np.float64)


def best_of_n_weights(n_samples: int, ns: ArrayLike) -> Floats:
    """Returns the weight of the i-th lowest of N samples in the mean of the best of n, `(G, N)`; rows sum to 1.

    C(i − 1, n − 1) / C(N, n): the share of all subsets of n in which the i-th is the best (Nakano et al. 2021,
    https://huggingface.co/papers/2112.09332, appendix I).

    Args:
        n_samples (`int`): N.
        ns (`(G,)` array of `int`): Values of n, from 1 to N.

    Raises:
        UsageError: If an n is below 1 or above N.

    Example:

    ```python
    >>> best_of_n_weights(4, [1, 2, 4]).round(3).tolist()
    [[0.25, 0.25, 0.25, 0.25], [0.0, 0.167, 0.333, 0.5], [0.0, 0.0, 0.0, 1.0]]
    ```
    """
    n = np.asarray(ns, np.int64)[:, None]
    if n.min() < 1 or n.max() > n_samples:
        raise UsageError(f"got n from {n.min()} to {n.max()} with {n_samples} samples; wanted n from 1 to {n_samples}")
    i = np.arange(1, n_samples + 1)[None, :]
    chosen = i >= n
    below = _log_choose(np.where(chosen, i - 1, n - 1), n - 1)
    return np.where(chosen, np.exp(below - _log_choose(np.asarray(n_samples), n)), 0.0)


def _log_choose(total: Ints, of: Ints) -> Floats:
    return special.gammaln(total + 1) - special.gammaln(of + 1) - special.gammaln(total - of + 1)


def best_of_n_curve(scores: ArrayLike, values: ArrayLike, ns: ArrayLike) -> Floats:
    """Returns the expected value of the sample with the highest score among n, `(P, G)`, one row a prompt.

    Unbiased: the mean over all subsets of n of the prompt's N samples, without drawing any. Samples of equal score are
    chosen with equal chance.

    Args:
        scores (`(P, N)` array): What chooses.
        values (`(P, N)` array): What the choice is worth: the gold score, correctness, or the scores again.
        ns (`(G,)` array of `int`): Values of n, from 1 to N.

    Raises:
        UsageError: If an n is below 1 or above N.

    Example:

    ```python
    >>> best_of_n_curve([[1, 2, 3, 4]], [[10, 20, 30, 40]], [1, 2, 4]).round(4).tolist()
    [[25.0, 33.3333, 40.0]]
    ```
    """
    scores, values = np.atleast_2d(np.asarray(scores, float)), np.atleast_2d(np.asarray(values, float))
    order = np.argsort(scores, axis=1, kind="stable")
    ranked = np.take_along_axis(scores, order, 1)
    sorted_values = _mean_of_ties(ranked, np.take_along_axis(values, order, 1))
    return sorted_values @ best_of_n_weights(scores.shape[1], ns).T


def _mean_of_ties(ranked: Floats, values: Floats) -> Floats:
    starts = np.ones(ranked.shape, dtype=np.bool_)  # of blocks of equal scores; no block goes over two prompts
    starts[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    block = np.cumsum(starts.ravel()) - 1
    means = np.bincount(block, weights=values.ravel()) / np.bincount(block)
    return np.asarray(means[block].reshape(values.shape), dtype=np.float64)


def best_of_n_curves(scores: Sequence[ArrayLike], values: Sequence[ArrayLike], ns: ArrayLike) -> Floats:
    """Returns [`best_of_n_curve`] for prompts that need not have equally many samples, `(P, G)`.

    Every prompt's curve is made from all of its own samples, so each is unbiased.

    Args:
        scores (`Sequence` of `(N_p,)` arrays): What chooses, by prompt.
        values (`Sequence` of `(N_p,)` arrays): What the choice is worth, by prompt.
        ns (`(G,)` array of `int`): Values of n, from 1 to the smallest N_p.

    Raises:
        DataError: If there is no prompt.
        UsageError: If an n is above the samples of a prompt.

    Example:

    ```python
    >>> best_of_n_curves([[1, 2], [1, 2, 3]], [[0, 1], [0, 1, 2]], [1, 2]).round(4).tolist()
    [[0.5, 1.0], [1.0, 1.6667]]
    ```
    """
    scores, values = [[np.asarray(own, float) for own in side] for side in (scores, values)]
    sizes = np.array([len(own) for own in scores])
    if not len(sizes):
        raise DataError("got no prompts; a curve needs at least one")
    curves = np.empty((len(sizes), len(np.asarray(ns))))
    for size in np.unique(sizes):
        rows = np.flatnonzero(sizes == size)
        chosen, read = [np.stack([side[int(row)] for row in rows]) for side in (scores, values)]
        curves[rows] = best_of_n_curve(chosen, read, ns)
    return curves
