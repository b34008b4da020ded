"""The figures of the length audit, each from scores and lengths alone; `audit.py` says what they amount to."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats
from sklearn.linear_model import LogisticRegression

from rmtrl.metrics import (
    bootstrap_estimate,
    bootstrap_estimates,
    correlation_estimate,
    mean_estimate,
    pair_wins,
    spearman,
)
from rmtrl.types import Estimate

MATCHED = 0.1
"""Sides of a matched pair differ in length by at most this share of the longer one."""

_RANK_RESAMPLES = 200  # each resample is ranked anew

Floats = NDArray[np.float64]
Groups = NDArray[np.int64]


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

    def as_dict(self) -> dict[str, list[float]]:
        """Returns the columns as plain lists, ready for JSON."""
        return {name: column.tolist() for name, column in vars(self).items()}


def twice(values: NDArray[Any]) -> NDArray[Any]:
    """Returns the values of the pairs' first sides and again of their second sides, `(2N,)`."""
    return np.concatenate([values, values])


def length_shares(
    margin: Floats, longer: Floats, length: Floats, group: Groups, **settings: Any
) -> dict[str, Estimate]:
    """Returns accuracies by length and how often the longer side wins and is preferred."""
    n = len(margin)
    wins, prefers = (pair_wins(values, np.zeros(n)) for values in (margin, longer))
    figures = {
        "accuracy": mean_estimate(wins, group, **settings),
        "length_only_accuracy": mean_estimate(prefers, group, **settings),
    }
    matched = np.abs(longer) <= MATCHED * np.maximum(length[:n], length[n:])
    for name, rows in (
        ("accuracy_chosen_longer", longer > 0), ("accuracy_chosen_shorter", longer < 0), ("accuracy_matched", matched)
    ):  # fmt: skip
        if rows.any():
            figures[name] = mean_estimate(wins[rows], group[rows], **settings)
    rows = longer != 0
    if rows.any():
        under = np.where(longer > 0, wins, 1 - wins)[rows]
        figures["longer_wins"] = mean_estimate(under, group[rows], **settings)
        figures["longer_preferred"] = mean_estimate(prefers[rows], group[rows], **settings)
        figures["longer_excess"] = mean_estimate(under - prefers[rows], group[rows], proportion=False, **settings)
    return figures | _between(wins, longer, group, figures, **settings)


def _between(
    wins: Floats, longer: Floats, group: Groups, known: Mapping[str, Estimate], **settings: Any
) -> dict[str, Estimate]:
    """Returns gap and mean of the two accuracies; where one has no spread, intervals are added up instead."""
    if not {"accuracy_chosen_longer", "accuracy_chosen_shorter"} <= known.keys():
        return {}
    first, second = known["accuracy_chosen_longer"], known["accuracy_chosen_shorter"]

    def statistics(weights: Floats) -> dict[str, Floats]:  # NaN where a resample has no pairs of a kind
        means = [weights[:, rows] @ wins[rows] / weights[:, rows].sum(1) for rows in (longer > 0, longer < 0)]
        return {"length_gap": means[0] - means[1], "balanced_accuracy": (means[0] + means[1]) / 2}

    found = bootstrap_estimates(statistics, len(wins), group, bounds=(-1.0, 1.0), **settings)
    n = first.n + second.n
    if all("bootstrap" in side.method for side in (first, second)):
        return {name: replace(estimate, n=n) for name, estimate in found.items()}
    ends = {
        "length_gap": (first.low - second.high, first.high - second.low),
        "balanced_accuracy": ((first.low + second.low) / 2, (first.high + second.high) / 2),
    }
    method = "ends of the intervals of the two accuracies"
    return {name: Estimate(found[name].value, *ends[name], n, method=method) for name in ends}


def length_correlations(
    reward: Floats, length: Floats, margin: Floats, longer: Floats, group: Groups, **settings: Any
) -> dict[str, Estimate]:
    both = twice(group)
    own_reward, own_length = (_centred(values, both) for values in (reward, length))
    few = settings | {"n_resamples": min(settings["n_resamples"], _RANK_RESAMPLES)}
    kinds: tuple[tuple[Literal["pearson", "spearman", "kendall"], dict[str, Any]], ...] = (
        ("pearson", settings), ("spearman", few), ("kendall", few)
    )  # fmt: skip
    figures: dict[str, Estimate] = {}
    for kind, own in kinds:
        figures[f"within_{kind}"] = correlation_estimate(own_reward, own_length, both, kind=kind, **own)
        figures[f"pooled_{kind}"] = correlation_estimate(reward, length, both, kind=kind, **own)
    first, second = (np.concatenate([values, -values]) for values in (margin, longer))
    figures["margin_spearman"] = replace(correlation_estimate(first, second, both, **few), n=len(margin))
    return {name: estimate for name, estimate in figures.items() if np.isfinite(estimate.value)}


def _centred(values: Floats, group: Groups) -> Floats:
    """Returns the values less their group's mean, on a scale of their own; ties stay ties whatever the rounding."""
    means = np.bincount(group, weights=values) / np.bincount(group)
    return np.round((values - means[group]) / max(np.abs(values).max(), 1e-300), 12)


def length_regressions(
    margin: Floats, longer: Floats, group: Groups, quality_gap: Floats | None
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
    return _clustered(beta, x * (1 - p)[:, None], (x * (p * (1 - p))[:, None]).T @ x, group)


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
    return _clustered(beta, x * (y - x @ beta)[:, None], x.T @ x, group)


def _clustered(beta: Floats, scores: Floats, information: Floats, group: Groups) -> list[Estimate]:
    """Returns the coefficients with Wald intervals whose covariance I⁻¹ (Σ_g s_g s_gᵀ) I⁻¹ · G / (G − 1) is by prompt.

    Args:
        beta (`(K,)` array): Coefficients.
        scores (`(N, K)` array): Each pair's part of the gradient.
        information (`(K, K)` array): Minus the Hessian.
        group (`(N,)` array): Prompt of each pair.
    """
    sums = np.stack([np.bincount(group, weights=column) for column in scores.T], axis=1)
    inverse = np.linalg.inv(information)
    covariance = inverse @ (sums.T @ sums) @ inverse * len(sums) / (len(sums) - 1)
    half = stats.norm.ppf(0.975) * np.sqrt(np.diag(covariance))
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


def partial_estimate(
    reward: Floats, length: Floats, quality: Floats, group: Groups, *, n_resamples: int, seed: int
) -> Estimate:
    rows = np.arange(len(reward))

    def statistic(weights: Floats) -> Floats:
        drawn = (np.repeat(rows, row.astype(np.int64)) for row in weights)
        return np.array([partial_spearman(reward[i], length[i], quality[i]) for i in drawn])

    options: dict[str, Any] = {"n_resamples": min(n_resamples, _RANK_RESAMPLES), "seed": seed, "bounds": (-1.0, 1.0)}
    return bootstrap_estimate(statistic, len(rows), twice(group), **options)


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
    prompts = np.arange(len(scores)) if prompts is None else np.asarray(prompts)
    index = _bins(lengths, bins)
    members = [index == b for b in np.unique(index)]
    found = [mean_estimate(scores[rows], prompts[rows], proportion=False, seed=seed) for rows in members]
    reward, low, high = (np.array([getattr(e, end) for e in found]) for end in ("value", "low", "high"))
    count = np.array([rows.sum() for rows in members], dtype=np.int64)
    return LengthCurve(np.array([lengths[rows].mean() for rows in members]), reward, low, high, count)


def _bins(lengths: Floats, bins: int) -> NDArray[np.int64]:
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.searchsorted(edges, lengths, side="left")


def debiased_scores(scores: ArrayLike, lengths: ArrayLike, *, bins: int = 10) -> Floats:
    """Returns r − Ê[r|L], the scores without what their length alone predicts, `(N,)`.

    After Huang et al. 2025 (https://huggingface.co/papers/2409.17407), with straight lines between the means of
    [`length_curve`]'s bins in place of LOWESS. Not for use as a reward without thought: where better answers are
    longer, it takes that off too.

    Args:
        scores, lengths (`(N,)` arrays): Reward and length of each response.
        bins (`int`): Bins of the curve.

    Example:

    ```python
    >>> debiased_scores([1.0, 2.0, 3.0, 4.0], [10, 20, 30, 40], bins=4).tolist()
    [0.0, 0.0, 0.0, 0.0]
    ```
    """
    scores, lengths = np.asarray(scores, float), np.asarray(lengths, float)
    index = _bins(lengths, bins)
    count = np.bincount(index)
    x, y = (np.bincount(index, weights=values)[count > 0] / count[count > 0] for values in (lengths, scores))
    return scores - np.interp(lengths, x, y)


def debiased_figures(
    reward: Floats, length: Floats, longer: Floats, group: Groups, **settings: Any
) -> dict[str, Estimate]:
    remaining = debiased_scores(reward, length)
    n = len(longer)
    shares = length_shares(remaining[:n] - remaining[n:], longer, length, group, **settings)
    figures = {f"debiased_{name}": shares[name] for name in ("accuracy", "length_gap") if name in shares}
    both = twice(group)
    options = settings | {"n_resamples": min(settings["n_resamples"], _RANK_RESAMPLES)}
    within = correlation_estimate(_centred(remaining, both), _centred(length, both), both, **options)
    return figures | ({"debiased_within_spearman": within} if np.isfinite(within.value) else {})
