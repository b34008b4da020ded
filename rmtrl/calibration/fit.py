"""Calibrates a reward model from the scores of its calibration split, and says what that is worth."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rmtrl.calibration.calibrators import IsotonicCalibrator, TemperatureCalibrator
from rmtrl.calibration.domains import DomainCalibration, calibrate_domains, temperature_estimate
from rmtrl.calibration.report import Calibration, pair_margins, paired_nll_change
from rmtrl.calibration.selection import select_calibrator
from rmtrl.metrics import bootstrap_estimate, calibration_metrics
from rmtrl.types import Estimate


def calibrate(
    chosen: ArrayLike,
    rejected: ArrayLike,
    prompt_ids: Sequence[str],
    domains: Sequence[str] | None = None,
    *,
    labels: ArrayLike | None = None,
) -> Calibration:
    """Returns a calibration fitted on scored pairs that the model was neither trained nor selected on.

    Args:
        chosen (`(N,)` array): Scores of the chosen responses.
        rejected (`(N,)` array): Scores of the rejected responses.
        prompt_ids (`Sequence[str]`): Prompt of each pair; folds and resamples keep a prompt whole.
        domains (`Sequence[str]`, *optional*): Domain of each pair; two or more are compared.
        labels (`(N,)` array, *optional*): Share of votes for chosen, in [0, 1]; 1 when absent.

    Raises:
        DataError: If there is no pair, or a score is not finite.

    Example:

    ```python
    >>> rng = np.random.default_rng(0)
    >>> scores = rng.normal(1, 2, 400), rng.normal(0, 2, 400)
    >>> calibrate(*scores, [f"prompt {i}" for i in range(400)]).kind
    'temperature'
    ```
    """
    margins = pair_margins(chosen, rejected, prompt_ids)
    groups = np.asarray(prompt_ids)
    selection = select_calibrator(margins, groups, labels)
    temperature = TemperatureCalibrator().fit(margins, labels)
    rewards = np.concatenate([np.asarray(chosen, float), np.asarray(rejected, float)])
    low, high = np.quantile(rewards, [0.01, 0.99])
    estimate = temperature_estimate(margins, groups, labels)
    after = change = None
    if not temperature.at_bound_:
        after = calibration_metrics(margins, selection.probabilities, groups, labels=labels)
        change = paired_nll_change(margins, selection.probabilities, groups, labels)
    by_domain: dict[str, DomainCalibration] = {}
    if domains is not None and len(set(domains)) > 1:
        by_domain = calibrate_domains(margins, rewards, groups, domains, selection.probabilities, labels)
    return Calibration(
        kind=selection.kind,
        reason=selection.reason,
        temperature=temperature,
        isotonic=IsotonicCalibrator().fit(margins, labels),
        temperature_estimate=estimate,
        mean_reward=float(rewards.mean()),
        reward_range=(float(low), float(high)),
        within_prompt_std=_within_prompt_std(rewards, groups),
        n=len(margins),
        prompts=len(np.unique(groups)),
        before=calibration_metrics(margins, None, groups, labels=labels),
        after=after,
        after_is="cross-fitted" if selection.cross_fitted else "in-sample",
        nll_change=change,
        domains=by_domain,
    )


def _within_prompt_std(rewards: NDArray[np.float64], groups: NDArray[Any]) -> Estimate:
    """Returns √(Σ (r − mean of the prompt)² / number of rewards)."""
    both = np.concatenate([groups, groups])
    index = np.unique(both, return_inverse=True)[1]
    mean = np.bincount(index, weights=rewards) / np.bincount(index)
    squares = (rewards - mean[index]) ** 2
    found = bootstrap_estimate(
        lambda w: np.sqrt(w @ squares / w.sum(axis=1)), len(squares), both, bounds=(0.0, float("inf"))
    )
    return replace(found, n=len(groups))
