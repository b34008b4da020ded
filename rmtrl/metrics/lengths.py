"""How far rewards follow response length: shares, correlations, regressions and a curve, of scores and lengths alone.

[`~rmtrl.evaluation.audit`] says what each figure is for and what they amount to.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats
from sklearn.linear_model import LogisticRegression

from rmtrl.metrics.estimates import (
    Floats,
    bootstrap_estimate,
    bootstrap_estimates,
    clustered_covariance,
    combined_estimate,
    mean_by_group,
    mean_estimate,
    mean_estimates,
)
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


def length_shares(
    margin: Floats, longer: Floats, length: Floats, group: Groups, **settings: Any
) -> dict[str, Estimate]:
    """Returns accuracies by length and how often the longer side wins and is preferred."""
    wins, prefers = (pair_wins(values, np.zeros(len(values))) for values in (margin, longer))
    under = np.where(longer > 0, wins, 1 - wins)
    every, longest = np.ones(len(margin), dtype=np.bool_), length.reshape(2, -1).max(axis=0)
    shares = {
        "accuracy": (wins, every),
        "length_only_accuracy": (prefers, every),
        "accuracy_chosen_longer": (wins, longer > 0),
        "accuracy_chosen_shorter": (wins, longer < 0),
        "accuracy_matched": (wins, np.abs(longer) <= MATCHED * longest),
        "longer_wins": (under, longer != 0),
        "longer_preferred": (prefers, longer != 0),
    }
    figures = {
        name: mean_estimate(values[rows], group[rows], **settings)
        for name, (values, rows) in shares.items()
        if rows.any()
    }
    if (rows := longer != 0).any():
        excess = mean_estimate((under - prefers)[rows], group[rows], proportion=False, **settings)
        figures["longer_excess"] = excess
    return figures | _between(wins, longer, group, figures, **settings)


def _between(
    wins: Floats, longer: Floats, group: Groups, known: Mapping[str, Estimate], **settings: Any
) -> dict[str, Estimate]:
    """Returns gap and mean of the two accuracies; where one has no spread, intervals are added up instead."""
    sides = [known[name] for name in ("accuracy_chosen_longer", "accuracy_chosen_shorter") if name in known]
    factors = {"length_gap": (1.0, -1.0), "balanced_accuracy": (0.5, 0.5)}
    if len(sides) < 2:
        return {}
    if not all("bootstrap" in side.method for side in sides):
        options: dict[str, Any] = {"independent": False, "method": "ends of the intervals of the two accuracies"}
        return {name: combined_estimate(sides, pair, **options) for name, pair in factors.items()}

    def statistics(weights: Floats) -> dict[str, Floats]:  # NaN where a resample has no pairs of a kind
        means = [weights[:, rows] @ wins[rows] / weights[:, rows].sum(1) for rows in (longer > 0, longer < 0)]
        return {name: one * means[0] + other * means[1] for name, (one, other) in factors.items()}

    found = bootstrap_estimates(statistics, len(wins), group, bounds=(-1.0, 1.0), **settings)
    return {name: replace(estimate, n=sides[0].n + sides[1].n) for name, estimate in found.items()}


def length_correlations(
    reward: Floats, length: Floats, group: Groups, worth: Floats | None, *, n_resamples: int, seed: int
) -> dict[str, Estimate]:
    """Returns the rank correlations of reward and length, `(2, N)`, chosen first."""
    both = np.tile(group, 2)
    settings: dict[str, Any] = {"n_resamples": min(n_resamples, _RANK_RESAMPLES), "seed": seed}
    own_reward, own_length = (_centred(values.ravel(), both) for values in (reward, length))
    margin, longer = (np.concatenate([values[0] - values[1], values[1] - values[0]]) for values in (reward, length))
    found = {
        "within_spearman": correlation_estimate(own_reward, own_length, both, **settings),
        "pooled_spearman": correlation_estimate(reward.ravel(), length.ravel(), both, **settings),
        "margin_spearman": replace(correlation_estimate(margin, longer, both, **settings), n=len(group)),
    }
    figures = {name: estimate for name, estimate in found.items() if np.isfinite(estimate.value)}
    if worth is None:
        return figures

    def statistic(weights: Floats) -> Floats:
        drawn = (np.repeat(np.arange(len(both)), row.astype(np.int64)) for row in weights)
        return np.array([partial_spearman(*(values.ravel()[i] for values in (reward, length, worth))) for i in drawn])

    return figures | {"partial_spearman": bootstrap_estimate(statistic, len(both), both, bounds=(-1, 1), **settings)}


def _centred(values: Floats, group: Groups) -> Floats:
    """Returns the values less their group's mean, on a scale of their own; ties stay ties whatever the rounding."""
    means = np.bincount(group, weights=values) / np.bincount(group)
    return np.round((values - means[group]) / max(np.abs(values).max(), 1e-300), 12)


def length_regressions(
    margin: Floats, longer: Floats, group: Groups, quality_gap: Floats | None = None
) -> dict[str, Estimate]:
    """Returns the two readings of the length-controlled model: labels on margin and length, margin on length."""
    if np.std(longer) == 0 or np.std(margin) == 0:
        return {}
    scaled, bent = margin / np.std(margin), np.tanh(longer / np.std(longer))
    x = np.column_stack([scaled, bent])
    held = np.column_stack([np.ones(len(margin)), *([] if quality_gap is None else [quality_gap]), bent])
    figures: dict[str, Estimate] = {}
    if (slopes := _label_model(x, group)) is not None:
        figures |= dict(zip(("logit_margin", "logit_length"), slopes, strict=True))
    if (slopes := _margin_model(held, scaled, group)) is not None:
        figures["margin_length"] = slopes[-1]
    return figures


def _label_model(x: Floats, group: Groups) -> list[Estimate] | None:
    """Returns the coefficients of P(first preferred) = σ(x·β) on pairs in both orders; None where they have no end."""
    symmetric = np.concatenate([x, -x])
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-8, max_iter=1000)
    if _separated(x) or np.linalg.matrix_rank(x) < x.shape[1]:
        return None
    beta = model.fit(symmetric, np.repeat([1, 0], len(x))).coef_[0]
    p = special.expit(x @ beta)
    return _wald(beta, x * (1 - p)[:, None], (x * (p * (1 - p))[:, None]).T @ x, group)


def _separated(x: Floats) -> bool:
    """Whether some direction ranks every pair rightly, so that the likelihood has no maximum.

    With two columns: the pairs, as directions in the plane, lie within a half circle.
    """
    angles = np.sort(np.arctan2(x[:, 1], x[:, 0])[(x != 0).any(axis=1)])
    gaps = np.diff(angles, append=angles[:1] + 2 * np.pi)
    return len(angles) == 0 or bool(gaps.max() >= np.pi)


def _margin_model(x: Floats, y: Floats, group: Groups) -> list[Estimate] | None:
    """Returns the least-squares coefficients of y on x, None where they are not determined."""
    if len(x) <= x.shape[1] or np.linalg.matrix_rank(x) < x.shape[1]:
        return None
    beta: Floats = np.linalg.lstsq(x, y, rcond=None)[0].astype(np.float64)
    return _wald(beta, x * (y - x @ beta)[:, None], x.T @ x, group)


def _wald(beta: Floats, scores: Floats, information: Floats, group: Groups) -> list[Estimate]:
    """Returns the coefficients with intervals of standard errors by prompt; see [`clustered_covariance`]."""
    half = stats.norm.ppf(0.975) * np.sqrt(np.diag(clustered_covariance(scores, information, group)))
    method = "Wald, standard error clustered by prompt"
    return [
        Estimate(float(b), float(b - h), float(b + h), len(scores), method=method)
        for b, h in zip(beta, half, strict=True)
    ]


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
