"""Statistics of rewards and preferences: pure functions of numpy arrays, each with n and an interval.

Every statistic of the library lives here once; stages import it and add nothing of their own.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from rmtrl.types import Estimate, PairRewards


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


def pairwise_accuracy(chosen: ArrayLike, rejected: ArrayLike) -> float:
    """Returns the share of pairs in which chosen scores higher; a tie counts one half.

    Example:

    ```python
    >>> round(pairwise_accuracy([2.1, 0.8, 1.9], [0.4, 1.0, 1.2]), 4)
    0.6667
    ```
    """
    return float(pair_wins(chosen, rejected).mean())


def mean_estimate(
    values: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    proportion: bool = True,
    level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Returns the mean of `values` with a bootstrap interval that resamples whole groups.

    Pairs of one prompt are not independent, so the prompt is what is resampled (percentile bootstrap of the ratio
    Σ values / Σ counts over groups). Where every group has the same mean the bootstrap would report an interval of
    width zero; where all values of a proportion are 0 or all are 1, the exact binomial interval over the groups is
    reported instead.

    Args:
        values (`(N,)` array): One value a pair, for example from [`pair_wins`].
        groups (`(N,)` array, *optional*): Prompt of each pair; every pair its own group when absent.
        proportion (`bool`): Whether the values are shares in [0, 1]; not so for margins, losses and differences.
        level (`float`): Coverage of the interval.
        n_resamples (`int`): Bootstrap resamples.
        seed (`int`): Seed of the resampling.

    Raises:
        ValueError: If `values` is empty.

    Example:

    ```python
    >>> print(mean_estimate([1, 1, 0, 1, 0.5, 1, 0, 1]))
    0.688 [0.438, 0.938] (n = 8)
    ```
    """
    values = np.asarray(values, float)
    if len(values) == 0:
        raise ValueError("got no values; an estimate needs at least one")
    index = np.arange(len(values)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    totals = np.bincount(index, weights=values).astype(np.float64)
    counts = np.bincount(index).astype(np.float64)
    mean = float(values.mean())
    if np.ptp(totals / counts) == 0:
        if proportion and mean in (0.0, 1.0):
            exact = stats.binomtest(round(mean * len(counts)), len(counts)).proportion_ci(level)
            return Estimate(mean, float(exact.low), float(exact.high), len(values), level, "exact binomial by group")
        return Estimate(mean, mean, mean, len(values), level, "all groups equal")
    low, high = _ratio_interval(totals, counts, level, n_resamples, seed)
    return Estimate(mean, low, high, len(values), level, f"percentile bootstrap by group, {n_resamples} resamples")


def _ratio_interval(
    totals: NDArray[np.float64], counts: NDArray[np.float64], level: float, n_resamples: int, seed: int
) -> tuple[float, float]:
    def ratio(total: Any, count: Any, axis: int = -1) -> Any:
        return total.sum(axis) / count.sum(axis)

    result = stats.bootstrap(
        (totals, counts), ratio, paired=True, confidence_level=level, n_resamples=n_resamples,
        method="percentile", rng=np.random.default_rng(seed), batch=max(1, 2_000_000 // len(totals)),
    )  # fmt: skip
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def reweighted_estimate(
    values: ArrayLike,
    strata: ArrayLike,
    target: Mapping[str, float],
    groups: ArrayLike | None = None,
    *,
    level: float = 0.95,
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
        level (`float`): Coverage of the interval.
        n_resamples (`int`): Bootstrap resamples.
        seed (`int`): Seed of the resampling.

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
    weights = {name: float(weight) for name, weight in target.items()}
    if not weights or not all(weight >= 0 for weight in weights.values()) or not sum(weights.values()) > 0:
        raise ValueError(f"got the target {dict(target)}; wanted weights of 0 or more, not all 0")
    absent = [name for name, weight in weights.items() if weight and not (strata == name).any()]
    if absent:
        raise ValueError(f"no pair is of {', '.join(absent)}; leave it out of the target mix")
    rng = np.random.default_rng(seed)
    value, resampled, n = 0.0, np.zeros(n_resamples), 0
    for name, weight in weights.items():
        own, share = strata == name, weight / sum(weights.values())
        if not weight:
            continue
        index = np.unique(groups[own], return_inverse=True)[1]
        totals, counts = np.bincount(index, weights=values[own]), np.bincount(index)
        value, n = value + share * float(values[own].mean()), n + int(own.sum())
        for resample in range(n_resamples):
            drawn = rng.integers(len(counts), size=len(counts))
            resampled[resample] += share * totals[drawn].sum() / counts[drawn].sum()
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    method = f"stratified percentile bootstrap by group, {n_resamples} resamples"
    return Estimate(value, float(low), float(high), n, level, method)


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Returns Spearman's rank correlation, NaN where one side is constant or there are fewer than two points.

    Example:

    ```python
    >>> spearman([1, 2, 3, 4], [1, 3, 2, 4])
    0.8
    ```
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    if len(x) < 2:
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        return round(float(stats.spearmanr(x, y).statistic), 12)


def length_bias(
    chosen: ArrayLike, rejected: ArrayLike, chosen_length: ArrayLike, rejected_length: ArrayLike
) -> dict[str, float]:
    """Returns how far rewards follow response length, from the rewards and lengths of N pairs.

    Reward and length are centred within the pair and pooled before ranking: on two answers a rank correlation per
    prompt would only be a sign. After ODIN (Chen et al. 2024, https://huggingface.co/papers/2402.07319), Table 1.

    Args:
        chosen, rejected (`(N,)` arrays): Rewards.
        chosen_length, rejected_length (`(N,)` arrays): Response lengths, in any one unit.

    Returns:
        `dict[str, float]`: `length_spearman`, `accuracy_chosen_longer`, `accuracy_chosen_shorter`, `length_gap` (the
        difference of the two), `length_accuracy` (accuracy of length alone, ties one half) and `chosen_longer` (share
        of pairs). A key whose pairs are missing is left out.

    Example:

    ```python
    >>> length_bias([1.8, 2.4, 1.6], [0.7, 1.1, 0.3], [36, 58, 33], [19, 22, 14])["length_accuracy"]
    1.0
    ```
    """
    margin = np.asarray(chosen, float) - np.asarray(rejected, float)
    longer = np.asarray(chosen_length, float) - np.asarray(rejected_length, float)
    wins = pair_wins(margin, np.zeros_like(margin))
    result = {
        "length_spearman": spearman(np.concatenate([margin, -margin]), np.concatenate([longer, -longer])),
        "length_accuracy": pairwise_accuracy(longer, np.zeros_like(longer)) if len(longer) else float("nan"),
        "chosen_longer": float((longer > 0).mean()) if len(longer) else float("nan"),
        "accuracy_chosen_longer": float(wins[longer > 0].mean()) if (longer > 0).any() else float("nan"),
        "accuracy_chosen_shorter": float(wins[longer < 0].mean()) if (longer < 0).any() else float("nan"),
    }
    result["length_gap"] = result["accuracy_chosen_longer"] - result["accuracy_chosen_shorter"]
    return {key: value for key, value in result.items() if np.isfinite(value)}


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
