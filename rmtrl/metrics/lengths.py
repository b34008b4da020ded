"""How far rewards follow response length: shares, correlations, regressions and a curve, of scores and lengths alone.

[`~rmtrl.evaluation.audit`] says what each figure is for and what they amount to.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from rmtrl.metrics.estimates import (
    Floats,
    bootstrap_estimate,
    bootstrap_estimates,
    clustered_covariance,
    combined_estimate,
    mean_by_group,
    mean_estimate,
    mean_estimates,
)  # fmt: skip
from rmtrl.metrics.ranks import correlation_estimate, pair_wins, spearman
from rmtrl.types import Estimate

MATCHED = 0.1
"""Sides of a matched pair differ in length by at most this share of the longer one."""
Groups = NDArray[np.int64]

_RANK_RESAMPLES = 200  # each resample is ranked anew


@dataclass(frozen=True)
class LengthCurve:
    """Mean reward by response length, in bins of about equally many responses.

    Args:
        length (`(B,)` array): Mean length of the responses in the bin.
        reward, low, high (`(B,)` arrays): Their mean reward and its interval by prompt.
        count (`(B,)` array): Responses in the bin.
    """

    length: Floats
    reward: Floats
    low: Floats
    high: Floats
    count: NDArray[np.int64]


def length_bias(
    chosen: ArrayLike, rejected: ArrayLike, chosen_length: ArrayLike, rejected_length: ArrayLike
) -> dict[str, float]:
    """Returns how far rewards follow response length, from the rewards and lengths of N pairs, without intervals.

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
    _, prefers, sides = _accuracies(margin, longer)
    every = np.full(len(margin), True)
    parts = {**sides, "length_accuracy": (prefers, every), "chosen_longer": (longer > 0, every)}
    found = {name: float(values[rows].mean()) for name, (values, rows) in parts.items() if rows.any()}
    found["length_gap"] = found.get("accuracy_chosen_longer", np.nan) - found.get("accuracy_chosen_shorter", np.nan)
    found["length_spearman"] = spearman(np.append(margin, -margin), np.append(longer, -longer))
    return {name: value for name, value in found.items() if np.isfinite(value)}


def _accuracies(margin: Floats, longer: Floats) -> tuple[Floats, Floats, dict[str, Any]]:
    """Returns whether reward, and length, prefer chosen; and the credits and pairs behind accuracies by length."""
    wins, prefers = (pair_wins(values, np.zeros(len(values))) for values in (margin, longer))
    return wins, prefers, {"accuracy_chosen_longer": (wins, longer > 0), "accuracy_chosen_shorter": (wins, longer < 0)}


def length_shares(
    margin: Floats, longer: Floats, length: Floats, group: Groups, **settings: Any
) -> dict[str, Estimate]:
    """Returns accuracies by length and how often the longer side wins and is preferred."""
    wins, prefers, sides = _accuracies(margin, longer)
    under = np.where(longer > 0, wins, 1 - wins)
    every, unequal, longest = np.full(len(margin), True), longer != 0, length.reshape(2, -1).max(axis=0)
    shares = {
        "accuracy": (wins, every),
        "length_only_accuracy": (prefers, every),
        **sides,
        "accuracy_matched": (wins, np.abs(longer) <= MATCHED * longest),
        "longer_wins": (under, unequal),
        "longer_preferred": (prefers, unequal),
        "longer_excess": (under - prefers, unequal),
    }
    figures = {}
    for name, (values, rows) in shares.items():
        if rows.any():
            proportion = name != "longer_excess"
            figures[name] = mean_estimate(values[rows], group[rows], proportion=proportion, **settings)
    return figures | _between(wins, longer, group, figures, **settings)


def _between(
    wins: Floats, longer: Floats, group: Groups, known: Mapping[str, Estimate], **settings: Any
) -> dict[str, Estimate]:
    """Returns gap and mean of the two accuracies; where one has no spread, intervals are added up instead."""
    sides = [known[name] for name in ("accuracy_chosen_longer", "accuracy_chosen_shorter") if name in known]
    factors = {"length_gap": (1.0, -1.0), "balanced_accuracy": (0.5, 0.5)}
    if len(sides) < 2:
        return {}
    method = "ends of the intervals of the two accuracies"
    found = {name: combined_estimate(sides, own, independent=False, method=method) for name, own in factors.items()}
    if not all("bootstrap" in side.method for side in sides):
        return found

    def statistics(weights: Floats) -> dict[str, Floats]:  # NaN where a resample has no pairs of a kind
        means = [weights[:, rows] @ wins[rows] / weights[:, rows].sum(1) for rows in (longer > 0, longer < 0)]
        return {name: one * means[0] + other * means[1] for name, (one, other) in factors.items()}

    drawn = bootstrap_estimates(statistics, len(wins), group, bounds=(-1.0, 1.0), **settings)
    return {name: replace(estimate, n=found[name].n) for name, estimate in drawn.items()}


def length_correlations(
    reward: Floats, length: Floats, group: Groups, worth: Floats | None, *, n_resamples: int, seed: int
) -> dict[str, Estimate]:
    """Returns the rank correlations of reward and length, `(2, N)`, chosen first."""
    both = np.tile(group, 2)
    settings: dict[str, Any] = {"n_resamples": min(n_resamples, _RANK_RESAMPLES), "seed": seed}
    own_reward, own_length = (_centred(values.ravel(), both) for values in (reward, length))
    margin, longer = (np.append(own, -own) for own in (reward[0] - reward[1], length[0] - length[1]))
    found = {
        "within_spearman": correlation_estimate(own_reward, own_length, both, **settings),
        "pooled_spearman": correlation_estimate(reward.ravel(), length.ravel(), both, **settings),
        "margin_spearman": replace(correlation_estimate(margin, longer, both, **settings), n=len(group)),
    }
    figures = {name: estimate for name, estimate in found.items() if np.isfinite(estimate.value)}
    if worth is None:
        return figures
    columns = np.stack([reward.ravel(), length.ravel(), worth.ravel()])

    def statistic(weights: Floats) -> Floats:
        return np.array([partial_spearman(*np.repeat(columns, row.astype(np.int64), axis=1)) for row in weights])

    return figures | {"partial_spearman": bootstrap_estimate(statistic, len(both), both, bounds=(-1, 1), **settings)}


def _centred(values: Floats, group: Groups) -> Floats:
    """Returns the values less their group's mean, on a scale of their own; ties stay ties whatever the rounding."""
    return np.round((values - mean_by_group(values, group)[group]) / max(np.abs(values).max(), 1e-300), 12)


def length_regressions(
    margin: Floats, longer: Floats, group: Groups, quality_gap: Floats | None = None
) -> dict[str, Estimate]:
    """Returns the two readings of the length-controlled model: labels on margin and length, margin on length."""
    if np.std(longer) == 0 or np.std(margin) == 0:
        return {}
    scaled, bent = margin / np.std(margin), np.tanh(longer / np.std(longer))
    held = np.column_stack([np.ones(len(margin)), *([] if quality_gap is None else [quality_gap]), bent])
    of_labels, of_margin = _label_model(np.column_stack([scaled, bent]), group), _margin_model(held, scaled, group)
    figures = dict(zip(("logit_margin", "logit_length"), of_labels, strict=False))  # none where there is no model
    return figures | ({"margin_length": of_margin[-1]} if of_margin else {})


def _label_model(x: Floats, group: Groups) -> list[Estimate]:
    """Returns the coefficients of P(first preferred) = σ(x·β) on pairs in both orders; none where they have no end."""
    if _separated(x) or np.linalg.matrix_rank(x) < x.shape[1]:
        return []

    def loss(beta: Floats) -> tuple[float, Floats]:
        return -float(special.log_expit(x @ beta).mean()), -x.T @ special.expit(-x @ beta) / len(x)

    start = np.zeros(x.shape[1])
    beta: Floats = optimize.minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-10}).x
    p = special.expit(x @ beta)
    return _wald(beta, x * (1 - p)[:, None], (x * (p * (1 - p))[:, None]).T @ x, group)


def _separated(x: Floats) -> bool:
    """Whether some direction ranks every pair rightly, so that the likelihood has no maximum.

    With two columns: the pairs, as directions in the plane, lie within a half circle.
    """
    angles = np.sort(np.arctan2(x[:, 1], x[:, 0])[(x != 0).any(axis=1)])
    gaps = np.diff(angles, append=angles[:1] + 2 * np.pi)
    return len(angles) == 0 or bool(gaps.max() >= np.pi)


def _margin_model(x: Floats, y: Floats, group: Groups) -> list[Estimate]:
    """Returns the least-squares coefficients of y on x, empty where they are not determined."""
    if len(x) <= x.shape[1] or np.linalg.matrix_rank(x) < x.shape[1]:
        return []
    beta: Floats = np.linalg.lstsq(x, y, rcond=None)[0].astype(np.float64)
    return _wald(beta, x * (y - x @ beta)[:, None], x.T @ x, group)


def _wald(beta: Floats, scores: Floats, information: Floats, group: Groups) -> list[Estimate]:
    """Returns the coefficients with intervals of standard errors by prompt; see [`clustered_covariance`]."""
    half = special.ndtri(0.975) * np.sqrt(np.diag(clustered_covariance(scores, information, group)))
    n, method = len(scores), "Wald, standard error clustered by prompt"
    rows = np.stack([beta, beta - half, beta + half], axis=1).tolist()
    return [Estimate(value, low, high, n, method=method) for value, low, high in rows]


def partial_spearman(x: ArrayLike, y: ArrayLike, held: ArrayLike) -> float:
    """Returns Spearman's correlation of x and y with a third held: (ρ_xy − ρ_xz ρ_yz) / √((1 − ρ_xz²)(1 − ρ_yz²)).

    The same as ranking all three, taking the regression on `held` off the other two and correlating what is left.
    Where `held` is constant there is nothing to hold; NaN where it determines x or y.

    Example:

    ```python
    >>> round(partial_spearman([1, 2, 3, 4], [1, 3, 2, 4], [2, 1, 4, 3]), 6)
    1.0
    ```
    """
    xy, xz, yz = spearman(x, y), spearman(x, held), spearman(y, held)
    xz, yz = (0.0, 0.0) if np.ptp(np.asarray(held, float)) == 0 else (xz, yz)
    scale = (1 - xz**2) * (1 - yz**2)
    return float((xy - xz * yz) / np.sqrt(scale)) if scale > 1e-12 else float("nan")


def length_curve(
    scores: ArrayLike, lengths: ArrayLike, prompts: ArrayLike | None = None, *, bins: int = 10, seed: int = 0
) -> LengthCurve:
    """Returns the mean reward by length, with an interval by prompt for each bin.

    Args:
        scores, lengths (`(N,)` arrays): Reward and length of each response.
        prompts (`(N,)` array, *optional*): Prompt of each response; every response its own when absent.
        bins (`int`): Bins of about equally many responses; fewer where lengths are equal.
        seed (`int`): Seed of the resampling.

    Example:

    ```python
    >>> length_curve([0.0, 1.0, 2.0, 3.0], [5, 6, 50, 60], bins=2).reward.tolist()
    [0.5, 2.5]
    ```
    """
    scores, lengths = np.asarray(scores, float), np.asarray(lengths, float)
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, bins + 1)[1:-1]))
    index = np.searchsorted(edges, lengths, side="left")
    found = mean_estimates(scores, index, prompts, proportion=False, seed=seed).values()
    parts = (np.array([getattr(e, part) for e in found]) for part in ("value", "low", "high", "n"))
    return LengthCurve(mean_by_group(lengths, index), *parts)
