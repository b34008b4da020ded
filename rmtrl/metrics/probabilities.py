"""Statistics of preference probabilities: how near they are to what was preferred, and how often they come true.

A pair counts in both orders, as {(p, y), (1 − p, 1 − y)}: in one order alone every label of chosen against rejected is
1, and a sound model would look miscalibrated. Probabilities that mirror, p(m) + p(−m) = 1, make that set
point-symmetric about ½, so it is enough to look at the side the model favours: its confidence max(p, 1 − p) and
whether that side was preferred, ½ at p = ½. ECE over 20 bins of [0, 1] is then ECE over 10 bins of [½, 1]. After
Guo et al. 2017 (https://huggingface.co/papers/1706.04599).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from rmtrl.errors import DataError
from rmtrl.metrics.estimates import Floats, bootstrap_estimates, mean_by_group, mean_estimate, mean_estimates
from rmtrl.types import Estimate

_BINS = 10  # of [½, 1]
_CELLS = 4_000_000  # of drawn labels held at a time: 32 MB


def nll(probabilities: ArrayLike, labels: ArrayLike | None = None) -> float:
    """Returns the mean negative log-likelihood, −mean[q log p + (1 − q) log(1 − p)], in nats.

    From margins, the mean of [`margin_losses`] is exact where p rounds to 0 or 1.

    Args:
        probabilities (`(N,)` array): Probability that chosen is preferred.
        labels (`(N,)` array, *optional*): Share of votes for chosen, in [0, 1]; 1 when absent.

    Raises:
        DataError: If there is no pair, or a value is not in [0, 1].

    Example:

    ```python
    >>> round(nll([0.8, 0.5]), 4)
    0.4581
    ```
    """
    p, q = checked_probabilities(probabilities, labels)
    return float(log_losses(p, q).mean())


@dataclass(frozen=True)
class ReliabilityCurve:
    """How often what was given a probability came true, by bin; calibrated points lie on the 45° line.

    Args:
        probability (`(B,)` array): Mean probability of the rows in the bin; empty bins are left out.
        frequency (`(B,)` array): Share of them that were preferred.
        low, high (`(B,)` arrays): Interval of the frequency.
        count (`(B,)` array): Rows in the bin; a pair is a row in each order.
    """

    probability: Floats
    frequency: Floats
    low: Floats
    high: Floats
    count: NDArray[np.int64]


def reliability_curve(
    probabilities: ArrayLike,
    labels: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    *,
    equal_mass: bool = False,
) -> ReliabilityCurve:
    """Returns the reliability curve over [0, 1], point-symmetric about ½, with an interval by prompt for each bin.

    Args:
        probabilities, labels: As in [`nll`].
        groups (`(N,)` array, *optional*): Prompt of each pair; every pair its own group when absent.
        equal_mass (`bool`): Bins of equally many pairs instead of equal width.

    Example:

    ```python
    >>> reliability_curve([0.8, 0.8, 0.8, 0.8]).frequency.tolist()
    [0.0, 1.0]
    ```
    """
    confidence, correct = confidences(probabilities, labels)
    index = _bin_index(confidence, equal_mass)
    mean, found = mean_by_group(confidence, index), mean_estimates(correct, index, groups).values()
    rate, low, high, count = (np.array([getattr(e, part) for e in found]) for part in ("value", "low", "high", "n"))
    return ReliabilityCurve(
        np.concatenate([1 - mean[::-1], mean]), np.concatenate([1 - rate[::-1], rate]),
        np.concatenate([1 - high[::-1], low]), np.concatenate([1 - low[::-1], high]),
        np.concatenate([count[::-1], count]),
    )  # fmt: skip


def calibration_metrics(
    margins: ArrayLike,
    probabilities: Any = None,
    groups: ArrayLike | None = None,
    *,
    labels: ArrayLike | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Returns how well probabilities fit the preferences, each figure with an interval by prompt.

    ECE is Σ_b |B_b|/n · |mean label − mean probability| over both orders, MCE the largest of these gaps. Noise alone
    raises them: a perfectly calibrated model shows an ECE of 0.05 at 500 pairs, which `null_ece` says of these
    probabilities by drawing labels from them. Decide on NLL or Brier.

    Args:
        margins (`(N,)` array): Score of chosen minus score of rejected.
        probabilities (*optional*): Probability that chosen is preferred, `(N,)`, or a calibrator with
            `predict_proba(margins)`; σ(m) when absent.
        groups (`(N,)` array, *optional*): Prompt of each pair; every pair its own group when absent.
        labels (`(N,)` array, *optional*): Share of votes for chosen, in [0, 1]; 1 when absent.
        n_resamples (`int`): Bootstrap resamples.
        seed (`int`): Seed of the resampling.

    Returns:
        `dict[str, Estimate]`: `agreement` (share of the votes that the margins side with, tied votes left out; the
        pairwise accuracy where all labels are 1), `nll`, `brier`, `ece`, `ece_equal_mass`, `mce`, `overconfidence`
        (mean confidence minus accuracy) and `null_ece`, what `ece` would be were the probabilities true. The intervals
        of the three errors over bins are reflected ones, see [`bootstrap_estimates`], and start at 0 where true
        probabilities would show as much; where all prompts are alike they end 1 − 0.05^(1/prompts) higher.

    Raises:
        DataError: If there is no pair, or a value is not finite or not in [0, 1].

    Example:

    ```python
    >>> sorted(calibration_metrics([1.0, 2.0, -0.5, 0.3]))[:3]
    ['agreement', 'brier', 'ece']
    ```
    """
    m = finite("margin", margins)
    if hasattr(probabilities, "predict_proba"):
        probabilities = probabilities.predict_proba(m)
    p, q = checked_probabilities(special.expit(m) if probabilities is None else probabilities, labels)
    if len(p) != len(m):
        raise DataError(f"got {len(p)} probabilities for {len(m)} margins; wanted one a pair")
    confidence, correct = confidences(p, q)
    settings: dict[str, Any] = {"n_resamples": n_resamples, "seed": seed}
    decided = (q != 0.5) | (q == 0.5).all()
    own = None if groups is None else np.asarray(groups)[decided]
    agreed = np.where(m > 0, q, np.where(m < 0, 1 - q, 0.5))[decided]
    found = {"agreement": mean_estimate(agreed, own, **settings)}
    losses = {
        "nll": margin_losses(m, q) if probabilities is None else log_losses(p, q),
        "brier": q * (1 - p) ** 2 + (1 - q) * p**2,
        "overconfidence": confidence - correct,
    }
    found |= {name: mean_estimate(own, groups, proportion=False, **settings) for name, own in losses.items()}
    wide, massed = (_bin_errors(confidence, correct, equal_mass) for equal_mass in (False, True))
    nulls = _null_errors(confidence, False, **settings)
    nulls["ece_equal_mass"] = _null_errors(confidence, True, **settings)["ece"]
    errors = bootstrap_estimates(
        lambda w: wide(w) | {"ece_equal_mass": massed(w)["ece"]}, len(m), groups, kind="basic", bounds=(0.0, 1.0),
        **settings,
    )  # fmt: skip
    unseen = 1 - 0.05 ** (1 / (len(m) if groups is None else len(np.unique(np.asarray(groups)))))
    for name, e in errors.items():
        high = e.high if e.high > e.low else min(1.0, e.value + unseen)
        found[name] = replace(e, low=0.0 if e.value <= nulls[name].high else e.low, high=high)
    return found | {"null_ece": nulls["ece"]}


def _bin_index(confidence: Floats, equal_mass: bool) -> NDArray[np.int64]:
    shares = np.linspace(0, 1, _BINS + 1)[1:-1]
    edges = np.unique(np.quantile(confidence, shares)) if equal_mass else (1 + shares) / 2
    return np.searchsorted(edges, confidence, side="left")


def _null_errors(confidence: Floats, equal_mass: bool, *, n_resamples: int, seed: int) -> dict[str, Estimate]:
    """Returns the errors over bins where labels are drawn from the confidences."""
    index, n = _bin_index(confidence, equal_mass), len(confidence)
    rng, step = np.random.default_rng(seed), max(1, _CELLS // n)
    errors: dict[str, Floats] = {"ece": np.zeros(n_resamples), "mce": np.zeros(n_resamples)}
    for own in (confidence[index == b] for b in np.unique(index)):  # bin by bin: little is held at a time
        sizes = [min(step, n_resamples - start) for start in range(0, n_resamples, step)]
        drawn = np.concatenate([(rng.random((size, len(own))) < own).sum(axis=1) for size in sizes])
        gap = np.abs(drawn - own.sum())
        errors["ece"] += gap / n
        errors["mce"] = np.maximum(errors["mce"], gap / len(own))
    found, method = {}, f"{n_resamples} draws of labels from the probabilities"
    for name, values in errors.items():
        low, high = np.quantile(values, [0.025, 0.975]).tolist()
        found[name] = Estimate(float(values.mean()), low, high, n, method=method)
    return found


def _bin_errors(confidence: Floats, correct: Floats, equal_mass: bool) -> Callable[[Floats], dict[str, Floats]]:
    """Returns ECE and MCE as functions of row weights `(R, N)`; the bins are those of the sample."""
    index = _bin_index(confidence, equal_mass)
    member = (index[:, None] == np.unique(index)).astype(np.float64)
    gaps = member * (correct - confidence)[:, None]

    def errors(weights: Floats) -> dict[str, Floats]:
        sums, counts = np.abs(weights @ gaps), weights @ member
        largest = (sums / np.where(counts, counts, 1)).max(axis=1)
        return {"ece": sums.sum(axis=1) / weights.sum(axis=1), "mce": largest}

    return errors


def finite(name: str, values: ArrayLike) -> Floats:
    """Returns `values` as an array `(N,)`.

    Raises:
        DataError: If there are none, or one is NaN or infinite.
    """
    array = np.asarray(values, float)
    if array.ndim != 1 or not len(array):
        raise DataError(f"got {name}s of shape {array.shape}; wanted a list of at least one number")
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        raise DataError(
            f"{len(bad):,} of {len(array):,} {name}s are not finite (the first is {array[bad[0]]} at {bad[0]}); leave "
            "those pairs out and count them"
        )
    return array


def checked_probabilities(probabilities: ArrayLike, labels: ArrayLike | None) -> tuple[Floats, Floats]:
    p = finite("probability", probabilities)
    q = np.ones(len(p)) if labels is None else finite("label", labels)
    if len(q) != len(p):
        raise DataError(f"got {len(q)} labels for {len(p)} pairs; wanted one a pair")
    for name, values in (("probability", p), ("label", q)):
        if (values < 0).any() or (values > 1).any():
            raise DataError(f"got a {name} of {values[(values < 0) | (values > 1)][0]}; wanted one in [0, 1]")
    return p, q


def log_losses(p: Floats, q: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        return np.asarray(-(special.xlogy(q, p) + special.xlog1py(1 - q, -p)), dtype=np.float64)


def margin_losses(z: Floats, q: Floats) -> Floats:
    return np.asarray(q * np.logaddexp(0, -z) + (1 - q) * np.logaddexp(0, z), dtype=np.float64)


def confidences(probabilities: ArrayLike, labels: ArrayLike | None) -> tuple[Floats, Floats]:
    """Returns the probability of the favoured side, and its label: that side's share of votes, ½ where none is."""
    p, q = checked_probabilities(probabilities, labels)
    return np.maximum(p, 1 - p), np.where(p > 0.5, q, np.where(p < 0.5, 1 - q, 0.5))
