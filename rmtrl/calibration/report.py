"""The calibration of a reward model as it is stored: `calibration.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rmtrl.calibration.calibrators import (
    Calibrator,
    IsotonicCalibrator,
    TemperatureCalibrator,
    calibrator_from_dict,
)
from rmtrl.calibration.domains import DomainCalibration, disagreements
from rmtrl.calibration.rewards import AffineReward, ReferenceReward
from rmtrl.errors import DataError
from rmtrl.io import read_object
from rmtrl.metrics import bootstrap_estimate, calibration_metrics
from rmtrl.metrics.probabilities import checked_probabilities, finite, log_losses, margin_losses
from rmtrl.types import Estimate, json_ready

SCHEMA = "rmtrl/calibration/1"
FILE = "calibration.json"

Figures = dict[str, Estimate]

_ENOUGH_PROMPTS = 20  # below which nothing is sure
_WORSE_MEND = "use the scores as they are, or calibrate on pairs like these"


@dataclass(frozen=True)
class Calibration:
    """Everything that `calibration.json` holds: both calibrators, the one chosen, and the figures behind it.

    Args:
        kind (`str`): Calibrator chosen, `"temperature"` or `"isotonic"`.
        reason (`str`): Why, in words.
        temperature ([`TemperatureCalibrator`]): Fitted on all calibration pairs.
        isotonic ([`IsotonicCalibrator`]): Fitted on all calibration pairs.
        temperature_estimate ([`Estimate`]): The temperature with its interval; NaN where it was not measured.
        mean_reward (`float`): Mean reward of the calibration split's answers.
        reward_range (`tuple[float, float]`): 1 % and 99 % quantiles of those rewards.
        within_prompt_std ([`Estimate`]): Spread of raw rewards around the mean of their prompt; that of the calibrated
            scalar is it over the temperature.
        n, prompts (`int`): Pairs and prompts of the calibration split.
        before (`dict[str, Estimate]`): [`~rmtrl.metrics.calibration_metrics`] of σ(m) on the calibration split.
        after (`dict[str, Estimate]`, *optional*): The same of the chosen calibrator, from fits without the pair's
            prompt; None where no temperature could be measured.
        after_is (`str`): `"cross-fitted"`, or `"in-sample"` where all pairs are of one prompt.
        domains (`dict[str, DomainCalibration]`): Per domain, where there are two or more.
        test_before, test_after (`dict[str, Estimate]`, *optional*): Figures on a test split.
        nll_change ([`Estimate`], *optional*): NLL after minus before, paired, by prompt: on the test split where there
            is one, else as `after` is measured.
        exported (`dict[str, float]`, *optional*): By what the scores were scaled and shifted since, over all exports;
            the figures are those of the scores before.
        data (`dict[str, Any]`): What the pairs of `calibration` and `test` were: names, counts, fingerprints.
        model_fingerprint (`dict[str, Any]`, *optional*): What the model was, where that is known.
    """

    kind: str
    reason: str
    temperature: TemperatureCalibrator
    isotonic: IsotonicCalibrator
    temperature_estimate: Estimate
    mean_reward: float
    reward_range: tuple[float, float]
    within_prompt_std: Estimate
    n: int
    prompts: int
    before: Figures
    after: Figures | None
    after_is: str
    domains: dict[str, DomainCalibration] = field(default_factory=dict)
    test_before: Figures | None = None
    test_after: Figures | None = None
    nll_change: Estimate | None = None
    exported: dict[str, float] | None = None
    data: dict[str, Any] = field(default_factory=dict)
    model_fingerprint: dict[str, Any] | None = None

    @property
    def is_measured(self) -> bool:
        """Whether the pairs tell a temperature; where not, rewards and probabilities are those of T = 1."""
        return not self.temperature.at_bound_

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know before use, in words."""
        worse = [f"calibration made the {self.judged_on} surely worse: NLL rises by {self.nll_change}; {_WORSE_MEND}"]
        bound, domains = _bound_warning(self.temperature), disagreements(self.domains, self.temperature)
        return (*bound, *(worse if self.made_worse else ()), *domains)

    @property
    def made_worse(self) -> bool:
        """Whether the probabilities are surely worse after than before: the interval of `nll_change` is above 0."""
        return self.nll_change is not None and self.nll_change.low > 0

    @property
    def judged_on(self) -> str:
        """What the figures after calibration are of, in words."""
        return "test pairs" if self.test_before else f"calibration pairs, {self.after_is}"

    @property
    def calibrator(self) -> Calibrator:
        """The calibrator chosen."""
        return self.isotonic if self.kind == "isotonic" else self.temperature

    @property
    def reward(self) -> AffineReward:
        """The calibrated scalar reward (r − mean) / T; always by temperature, see [`rmtrl.calibration.rewards`].

        T is 1 where no temperature could be measured.
        """
        return AffineReward(self.mean_reward, self.temperature.scale_)

    @property
    def reference_reward(self) -> ReferenceReward:
        """The bounded reward against a reference answer, by the isotonic curve."""
        return ReferenceReward(self.isotonic)

    def display(self, low: float = -1.0, high: float = 1.0) -> AffineReward:
        """Returns the map that shows the middle 98 % of rewards between `low` and `high` and cuts the rest."""
        return AffineReward.onto(self.reward_range, (low, high))

    def with_test(
        self, chosen: ArrayLike, rejected: ArrayLike, prompt_ids: Sequence[str], *, labels: ArrayLike | None = None
    ) -> "Calibration":
        """Returns the calibration with its figures on pairs that neither training nor fitting has seen.

        There is no `test_after` where no temperature could be measured.

        Args:
            chosen, rejected, prompt_ids, labels: As in [`~rmtrl.calibration.fit.calibrate`].
        """
        margins = pair_margins(chosen, rejected, prompt_ids)
        groups = np.asarray(prompt_ids)
        tested = replace(
            self,
            test_before=calibration_metrics(margins, None, groups, labels=labels),
            test_after=None,
            nll_change=None,
        )
        if not self.is_measured:
            return tested
        probabilities = self.calibrator.predict_proba(margins)
        return replace(
            tested,
            test_after=calibration_metrics(margins, probabilities, groups, labels=labels),
            nll_change=paired_nll_change(margins, probabilities, groups, labels),
        )

    def with_data(self, data: Mapping[str, Any], model_fingerprint: Mapping[str, Any] | None = None) -> "Calibration":
        """Returns the calibration with a note of what its pairs and its model were.

        Args:
            data (`Mapping[str, Any]`): Of `calibration` and `test`: names, counts, fingerprints.
            model_fingerprint (`Mapping[str, Any]`, *optional*): From `rmtrl.evaluation.fingerprints`.
        """
        model = None if model_fingerprint is None else dict(model_fingerprint)
        return replace(self, data=dict(data), model_fingerprint=model)

    def rescaled(self, scale: float, shift: float = 0.0) -> "Calibration":
        """Returns the calibration of the same model once its rewards are `scale · r + shift`."""
        low, high = self.reward_range
        before = self.exported or {"scale": 1.0, "shift": 0.0}
        return replace(
            self,
            temperature=self.temperature.rescaled(scale),
            isotonic=self.isotonic.rescaled(scale),
            temperature_estimate=_times(self.temperature_estimate, scale),
            mean_reward=self.mean_reward * scale + shift,
            reward_range=(low * scale + shift, high * scale + shift),
            within_prompt_std=_times(self.within_prompt_std, scale),
            domains={name: domain.rescaled(scale) for name, domain in self.domains.items()},
            exported={"scale": before["scale"] * scale, "shift": before["shift"] * scale + shift},
            model_fingerprint=None,  # the weights are others
        )

    def as_dict(self) -> dict[str, Any]:
        """Returns the content of `calibration.json`; numbers that are not finite are None."""
        fields: dict[str, Any] = {name: value for name, value in vars(self).items() if name not in _CALIBRATORS}
        parts = {name: getattr(self, name).as_dict() for name in _CALIBRATORS}
        return json_ready({"schema": SCHEMA, **fields, **parts, **{name: getattr(self, name) for name in _MADE}})

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Calibration":
        """Returns the calibration that [`Calibration.as_dict`] describes.

        Raises:
            DataError: If it is of another schema, or a part is missing.
        """
        if stored.get("schema") != SCHEMA:
            raise DataError(
                f"got the schema {stored.get('schema')!r}; wanted {SCHEMA!r}, as rmtrl calibrate writes it"
            )
        try:
            return cls(
                **{name: _read(name, value) for name, value in stored.items() if name not in ("schema", *_MADE)}
            )
        except (KeyError, TypeError, IndexError) as error:
            raise DataError(f"the calibration is not whole ({error}); run rmtrl calibrate again") from error


_MADE = ("made_worse", "warnings")
_CALIBRATORS = ("temperature", "isotonic")
_FIGURES = ("before", "after", "test_before", "test_after")


def read_calibration(folder: str | Path, *, model_fingerprint: Mapping[str, Any] | None = None) -> Calibration:
    """Returns the calibration in a checkpoint folder's `calibration.json`, or in the file named.

    Args:
        folder (`str` or `Path`): Checkpoint folder, or the file.
        model_fingerprint (`Mapping[str, Any]`, *optional*): What the model is now, from
            `rmtrl.evaluation.fingerprints`; compared where the calibration says what it was.

    Raises:
        DataError: If there is none, it cannot be read, or it is of another model.

    Example:

    ```python
    read_calibration("outputs/tiny/rm").reward([1.0, 2.0])
    ```
    """
    path = Path(folder)
    path = path / FILE if path.is_dir() else path
    try:
        stored = read_object(path)
    except DataError as error:
        raise DataError(f"no calibration: {error}; write one with rmtrl calibrate --out {path}") from error
    found = Calibration.from_dict(stored)
    if model_fingerprint is not None and found.model_fingerprint not in (None, dict(model_fingerprint)):
        raise DataError(f"{path} is of another model or of earlier weights; calibrate again with rmtrl calibrate")
    return found


def pair_margins(chosen: ArrayLike, rejected: ArrayLike, prompt_ids: Sequence[str]) -> NDArray[np.float64]:
    """Returns chosen minus rejected scores, checked: finite, and one of each a pair."""
    first, second = finite("score", chosen), finite("score", rejected)
    if not len(first) == len(second) == len(prompt_ids):
        raise DataError(
            f"got {len(first)} chosen and {len(second)} rejected scores of {len(prompt_ids)} prompts; wanted one "
            "each a pair"
        )
    return first - second


def paired_nll_change(
    margins: NDArray[np.float64], probabilities: ArrayLike, groups: NDArray[Any], labels: ArrayLike | None = None
) -> Estimate:
    """Returns the NLL of probabilities minus that of σ(m), paired; of fewer than 20 prompts without an interval."""
    p, q = checked_probabilities(probabilities, labels)
    change = log_losses(p, q) - margin_losses(margins, q)
    found = bootstrap_estimate(lambda w: w @ change / w.sum(axis=1), len(change), groups)
    if len(np.unique(groups)) >= _ENOUGH_PROMPTS:
        return found
    return replace(found, low=-np.inf, high=np.inf, method=f"fewer than {_ENOUGH_PROMPTS} prompts: no interval")


def _bound_warning(temperature: TemperatureCalibrator) -> list[str]:
    if not temperature.at_bound_:
        return []
    t, (low, high) = temperature.temperature_, temperature.bounds_
    why = "no margin differs from 0" if low == high else (
        "all pairs are ranked rightly" if t == low else "pairs are ranked no better than by chance"
    )  # fmt: skip
    return [
        f"the temperature {t:.3g} is a bound, not a measurement: {why}; T = 1 is used instead, which leaves scores as "
        "they are; use more or other calibration pairs"
    ]


def _times(estimate: Estimate, scale: float) -> Estimate:
    return replace(estimate, value=estimate.value * scale, low=estimate.low * scale, high=estimate.high * scale)


def _estimate(stored: Mapping[str, Any]) -> Estimate:
    whole: dict[str, Any] = {name: float("nan") if value is None else value for name, value in stored.items()}
    return Estimate(**whole)


def _read(name: str, value: Any) -> Any:
    if name in _CALIBRATORS:
        return calibrator_from_dict(value)
    if name in _FIGURES:
        return None if value is None else {key: _estimate(stored) for key, stored in value.items()}
    if name == "domains":
        return {key: DomainCalibration(**{part: _estimate(e) for part, e in d.items()}) for key, d in value.items()}
    if name in ("temperature_estimate", "within_prompt_std", "nll_change"):
        return value and _estimate(value)
    return tuple(value) if isinstance(value, list) else value
