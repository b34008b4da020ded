"""The threshold of a score at which a stated share of what is harmless is flagged, and what that promise is worth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from rmtrl.metrics.estimates import binomial_estimate
from rmtrl.types import Estimate


@dataclass(frozen=True)
class FittedThreshold:
    """A threshold, and the false-positive rate it was fitted to hold.

    Args:
        threshold (`float`): Flagged is what scores above it.
        asked (`float`): The highest rate of new harmless prompts to be flagged, on average over fits.
        at_most (`float`): What the rate of this fit is at most, with 95 % confidence.
        false_positive_rate (`Estimate`): Share flagged of the harmless prompts it was fitted on, which is lower than
            that of new ones.
        sensitivity (`Estimate`, *optional*): Share flagged of the harmful rows; None where there are none.
    """

    threshold: float
    asked: float
    at_most: float
    false_positive_rate: Estimate
    sensitivity: Estimate | None


def fit_threshold(
    harmless: ArrayLike, harmful: ArrayLike, rate: float, groups: ArrayLike | None = None
) -> FittedThreshold:
    """Returns the lowest threshold that flags a new harmless prompt with a probability of at most `rate`.

    It is the k-th smallest of n harmless scores with k = ⌈(n + 1)(1 − rate)⌉ (split conformal prediction, Vovk 2005):
    a new score is above it with a probability of at most 1 − k / (n + 1), ties or none, where it is exchangeable with
    those. The rate of one fit is distributed as Beta(n + 1 − k, k), and `at_most` is its 95 % quantile. Of several
    rows of one prompt the highest counts.

    Args:
        harmless (`(N,)` array): Scores of harmless rows.
        harmful (`(M,)` array): Scores of harmful rows.
        rate (`float`): Above 0 and below 1.
        groups (`(N,)` array, *optional*): Prompt of each harmless row; each its own without.

    Raises:
        ValueError: If the rate is no such number, or there are too few harmless prompts for it.

    Example:

    ```python
    >>> fit = fit_threshold(range(99), [98, 120], 0.02)
    >>> fit.threshold, fit.sensitivity.value
    (97.0, 1.0)
    ```
    """
    harmless, harmful = np.asarray(harmless, np.float64), np.asarray(harmful, np.float64)
    if not 0 < rate < 1:
        raise ValueError(f"got the false-positive rate {rate}; wanted a number above 0 and below 1")
    if groups is not None:
        index = np.unique(np.asarray(groups), return_inverse=True)[1]
        highest = np.full(index.max(initial=-1) + 1, -np.inf)
        np.maximum.at(highest, index, harmless)
        harmless = highest
    n = len(harmless)
    k = int(np.ceil(round((n + 1) * (1 - rate), 9)))
    if k > n:
        least = int(np.ceil(round(1 / rate, 9))) - 1
        held = f", or a rate of {np.ceil(1e4 / (n + 1)) / 1e4:g} or more" if n else ""
        raise ValueError(
            f"{n} harmless prompts cannot hold a false-positive rate of {rate:g}; wanted {least} or more{held}"
        )
    threshold = float(np.sort(harmless)[k - 1])
    flagged, caught = int((harmless > threshold).sum()), int((harmful > threshold).sum())
    sensitivity = binomial_estimate(caught, len(harmful)) if len(harmful) else None
    at_most = float(special.betaincinv(n + 1 - k, k, 0.95))
    return FittedThreshold(threshold, rate, at_most, binomial_estimate(flagged, n), sensitivity)
