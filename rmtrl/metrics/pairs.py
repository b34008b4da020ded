"""Statistics of scored pairs: who wins, by domain and at worst, and how far length decides."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rmtrl.metrics.estimates import mean_estimate
from rmtrl.metrics.ranks import spearman
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


def domain_accuracy(
    wins: ArrayLike, domains: ArrayLike, groups: ArrayLike | None = None, **options: Any
) -> dict[str, Estimate]:
    """Returns the accuracy of each domain, in alphabetical order.

    Args:
        wins (`(N,)` array): From [`pair_wins`].
        domains (`(N,)` array of `str`): Domain of each pair.
        groups (`(N,)` array, *optional*): Prompt of each pair; every pair its own group when absent.
        options: `level`, `n_resamples` and `seed` of [`mean_estimate`].

    Example:

    ```python
    >>> {name: e.value for name, e in domain_accuracy([1, 0, 1], ["maths", "maths", "chat"]).items()}
    {'chat': 1.0, 'maths': 0.5}
    ```
    """
    wins, domains = np.asarray(wins, float), np.asarray(domains, str)
    groups = np.arange(len(wins)) if groups is None else np.asarray(groups)
    members = {str(name): domains == name for name in np.unique(domains)}
    return {name: mean_estimate(wins[own], groups[own], **options) for name, own in members.items()}


def worst_group_accuracy(
    wins: ArrayLike, domains: ArrayLike, groups: ArrayLike | None = None, *, level: float = 0.95, seed: int = 0
) -> tuple[str, Estimate]:
    """Returns the domain of lowest accuracy, and that accuracy with an interval for the lowest TRUE accuracy.

    The smallest of K noisy figures is too small on average, and the interval of that one domain does not know that it
    was picked. So each domain gets an interval at level 1 − (1 − level) / K (Bonferroni): together they hold all true
    accuracies, and the lowest of those lies between the smallest lower and the smallest upper end.

    Args:
        wins (`(N,)` array): From [`pair_wins`].
        domains (`(N,)` array of `str`): Domain of each pair.
        groups (`(N,)` array, *optional*): Prompt of each pair; every pair its own group when absent.
        level (`float`): Coverage of the interval.
        seed (`int`): Seed of the resampling.

    Returns:
        `tuple[str, Estimate]`: The domain, and the estimate; its `n` is that of the domain.

    Example:

    ```python
    >>> worst_group_accuracy([1, 1, 0, 1, 1, 1], ["maths"] * 3 + ["chat"] * 3)[0]
    'maths'
    ```
    """
    n_domains = len(np.unique(np.asarray(domains, str)))
    each = 1 - (1 - level) / n_domains
    found = domain_accuracy(wins, domains, groups, level=each, n_resamples=10_000, seed=seed)
    worst = min(found, key=lambda name: found[name].value)
    low, high = min(e.low for e in found.values()), min(e.high for e in found.values())
    method = f"lowest of {n_domains} simultaneous intervals (Bonferroni); {found[worst].method}"
    value = found[worst].value
    return worst, Estimate(value, low, max(high, value), found[worst].n, level, method)


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
