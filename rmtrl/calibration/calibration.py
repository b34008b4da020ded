"""Calibrates a reward model from the scores of its calibration split, and keeps what that is worth.

`calibration.json` holds it whole: both calibrators, the one chosen, and the figures behind it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import special

from rmtrl.calibration.calibrators import (
    Calibrator,
    IsotonicCalibrator,
    TemperatureCalibrator,
    calibrator_from_dict,
    checked_pairs,
    select_calibrator,
    temperature_estimate,
)
from rmtrl.calibration.rewards import AffineReward, ReferenceReward
from rmtrl.errors import DataError
from rmtrl.io import read_object
from rmtrl.metrics import Floats, bootstrap_estimate, calibration_metrics, mean_estimate, scaled
from rmtrl.metrics.probabilities import finite, log_losses, margin_losses
from rmtrl.types import Estimate, json_ready

SCHEMA = "rmtrl/calibration/1"
FILE = "calibration.json"

Figures = dict[str, Estimate]

_ENOUGH_PROMPTS = 20  # below which nothing is sure
_NAMED = 3  # domains that a warning names


@dataclass(frozen=True)
class DomainCalibration:
    """How one domain stands under the common calibrator.

    Args:
        ece ([`Estimate`]): Calibration error of the common calibrator's (cross-fitted) probabilities.
        null_ece ([`Estimate`]): What it would be at this n were they true.
        temperature ([`Estimate`]): The domain's own temperature.
        offset ([`Estimate`]): Mean reward of the domain minus that of all.
    """

    ece: Estimate
    null_ece: Estimate
    temperature: Estimate
    offset: Estimate


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
        found = [] if self.is_measured else [_bound_warning(self.temperature)]
        if self.made_worse:
            rises = f"calibration made the {self.judged_on} surely worse: NLL rises by {self.nll_change}"
            found.append(f"{rises}; use the scores as they are, or calibrate on pairs like these")
        if self.is_measured and (apart := _apart(self.domains, self.temperature.temperature_)):
            found.append(apart)
        return tuple(found)

    @property
    def made_worse(self) -> bool:
        """Whether the probabilities are surely worse after than before: the interval of `nll_change` is above 0."""
        return self.nll_change is not None and self.nll_change.low > 0

    @property
    def judged(self) -> tuple[Figures, Figures | None]:
        """The figures before and after calibration that count: those of the test pairs where there are any."""
        return (self.test_before, self.test_after) if self.test_before else (self.before, self.after)

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
            chosen, rejected, prompt_ids, labels: As in [`calibrate`].
        """
        pairs = _scored(chosen, rejected, prompt_ids, labels)
        probabilities = self.calibrator.predict_proba(pairs["margin"]) if self.is_measured else None
        before, after, change = _judged(pairs, probabilities)
        return replace(self, test_before=before, test_after=after, nll_change=change)

    def with_data(self, data: Mapping[str, Any], model_fingerprint: Mapping[str, Any] | None = None) -> "Calibration":
        """Returns the calibration with a note of what its pairs and its model were.

        Args:
            data (`Mapping[str, Any]`): Of `calibration` and `test`: names, counts, fingerprints.
            model_fingerprint (`Mapping[str, Any]`, *optional*): From `rmtrl.evaluation.fingerprints`.
        """
        return replace(self, data=dict(data), model_fingerprint=dict(model_fingerprint) if model_fingerprint else None)

    def rescaled(self, scale: float, shift: float = 0.0) -> "Calibration":
        """Returns the calibration of the same model once its rewards are `scale · r + shift`."""
        low, high = self.reward_range
        before, domains = self.exported or {"scale": 1.0, "shift": 0.0}, {}
        for name, own in self.domains.items():
            domains[name] = replace(own, temperature=scaled(own.temperature, scale), offset=scaled(own.offset, scale))
        return replace(
            self, temperature=self.temperature.rescaled(scale), isotonic=self.isotonic.rescaled(scale),
            temperature_estimate=scaled(self.temperature_estimate, scale),
            mean_reward=self.mean_reward * scale + shift,
            reward_range=(low * scale + shift, high * scale + shift), domains=domains,
            within_prompt_std=scaled(self.within_prompt_std, scale),
            exported={"scale": before["scale"] * scale, "shift": before["shift"] * scale + shift},
            model_fingerprint=None,  # the weights are others
        )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """Returns the content of `calibration.json`; numbers that are not finite are None."""
        calibrators = {name: getattr(self, name).as_dict() for name in _CALIBRATORS}
        made = {name: getattr(self, name) for name in _MADE}
        return json_ready({"schema": SCHEMA, **vars(self), **calibrators, **made})

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
            own: dict[str, Any] = {k: _estimates(v) for k, v in stored.items() if k not in ("schema", "made", *_MADE)}
            own |= {name: calibrator_from_dict(stored[name]) for name in _CALIBRATORS}
            domains = {name: DomainCalibration(**figures) for name, figures in own["domains"].items()}
            return cls(**own | {"domains": domains, "reward_range": tuple(own["reward_range"])})
        except (KeyError, TypeError, IndexError) as error:
            raise DataError(f"the calibration is not whole ({error}); run rmtrl calibrate again") from error


_MADE = ("made_worse", "warnings")
_CALIBRATORS = ("temperature", "isotonic")


def _estimates(stored: Any) -> Any:
    """Returns a value from JSON in which every estimate is one again."""
    if not isinstance(stored, dict):
        return stored
    if isinstance(stored.get("method"), str):
        known: dict[str, Any] = {name: float("nan") if value is None else value for name, value in stored.items()}
        return Estimate(**known)
    return {name: _estimates(value) for name, value in stored.items()}


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


def calibrate(
    chosen: ArrayLike,
    rejected: ArrayLike,
    prompt_ids: Sequence[str] | None = None,
    domains: Sequence[str] | None = None,
    *,
    labels: ArrayLike | None = None,
) -> Calibration:
    """Returns a calibration fitted on scored pairs that the model was neither trained nor selected on.

    Args:
        chosen (`(N,)` array): Scores of the chosen responses.
        rejected (`(N,)` array): Scores of the rejected responses.
        prompt_ids (`Sequence[str]`, *optional*): Prompt of each pair, which folds and resamples keep whole; every
            pair its own prompt when absent.
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
    pairs = _scored(chosen, rejected, prompt_ids, labels)
    margins, groups, labels = pairs["margin"], pairs["prompt"], pairs["label"]
    rewards = pairs[["chosen", "rejected"]].to_numpy()
    selection = select_calibrator(margins, groups, labels)
    temperature = TemperatureCalibrator().fit(margins, labels)
    before, after, change = _judged(pairs, None if temperature.at_bound_ else selection.probabilities)
    low, high = np.quantile(rewards, [0.01, 0.99]).tolist()
    domains = [""] * len(pairs) if domains is None else domains
    return Calibration(
        kind=selection.kind, reason=selection.reason, temperature=temperature,
        isotonic=IsotonicCalibrator().fit(margins, labels),
        temperature_estimate=temperature_estimate(margins, groups, labels),
        mean_reward=float(rewards.mean()), reward_range=(low, high), within_prompt_std=_within_prompt_std(pairs),
        n=len(pairs), prompts=groups.nunique(), before=before, after=after,
        after_is="cross-fitted" if selection.cross_fitted else "in-sample", nll_change=change,
        domains=_by_domain(pairs.assign(p=selection.probabilities, domain=np.asarray(domains, str))),
    )  # fmt: skip


def _scored(
    chosen: ArrayLike, rejected: ArrayLike, given: Sequence[str] | None, labels: ArrayLike | None
) -> pd.DataFrame:
    """Returns scored pairs, checked, a row each: chosen, rejected, their margin and mean, prompt and label."""
    first, second = finite("score", chosen), finite("score", rejected)
    prompt_ids = range(len(first)) if given is None else given
    if not len(first) == len(second) == len(prompt_ids):
        got = f"{len(first)} chosen and {len(second)} rejected scores of {len(prompt_ids)} prompts"
        raise DataError(f"got {got}; wanted one each a pair")
    margins, q = checked_pairs(first - second, labels)
    sides = {"chosen": first, "rejected": second, "mean": (first + second) / 2}
    return pd.DataFrame(sides | {"margin": margins, "prompt": np.asarray(prompt_ids), "label": q})


def _figures(pairs: pd.DataFrame, probabilities: ArrayLike | None) -> Figures:
    return calibration_metrics(pairs["margin"], probabilities, pairs["prompt"], labels=pairs["label"])


def _judged(pairs: pd.DataFrame, probabilities: Floats | None) -> tuple[Figures, Figures | None, Estimate | None]:
    """Returns the figures of σ(m) and of the probabilities, and the change of NLL, without interval of few prompts."""
    before = _figures(pairs, None)
    if probabilities is None:
        return before, None, None
    margins, labels = pairs["margin"].to_numpy(), pairs["label"].to_numpy()
    change = log_losses(probabilities, labels) - margin_losses(margins, labels)
    found = bootstrap_estimate(lambda w: w @ change / w.sum(axis=1), len(change), pairs["prompt"])
    if pairs["prompt"].nunique() < _ENOUGH_PROMPTS:
        said = f"fewer than {_ENOUGH_PROMPTS} prompts: no interval"
        found = replace(found, low=-np.inf, high=np.inf, method=said)
    return before, _figures(pairs, probabilities), found


def _within_prompt_std(pairs: pd.DataFrame) -> Estimate:
    """Returns √(Σ (r − mean of the prompt)² / number of rewards)."""
    means = pairs.groupby("prompt")["mean"].transform("mean")
    squares = sum((pairs[side] - means) ** 2 for side in ("chosen", "rejected")).to_numpy() / 2
    options: dict[str, Any] = {"bounds": (0.0, np.inf)}
    return bootstrap_estimate(lambda w: np.sqrt(w @ squares / w.sum(axis=1)), len(pairs), pairs["prompt"], **options)


def _by_domain(pairs: pd.DataFrame) -> dict[str, DomainCalibration]:
    """Returns how each of two or more domains stands under the common calibrator."""
    found, overall = {}, pairs["mean"].mean()
    for name, own in pairs.groupby("domain") if pairs["domain"].nunique() > 1 else ():
        errors = _figures(own, own["p"])
        temperature = temperature_estimate(own["margin"], own["prompt"], own["label"])
        offset = mean_estimate(own["mean"] - overall, own["prompt"], proportion=False)
        found[str(name)] = DomainCalibration(errors["ece"], errors["null_ece"], temperature, offset)
    return found


def _apart(domains: Mapping[str, DomainCalibration], t: float) -> str:
    """Returns, in words, which domains have a temperature of their own beyond their intervals; empty where none.

    The intervals are widened to hold for all K domains together (Bonferroni).
    """
    wider = special.ndtri(1 - 0.025 / max(len(domains), 1)) / special.ndtri(0.975)
    apart = {}
    for name, own in domains.items():
        estimate = own.temperature
        value, low, high = np.log([estimate.value, estimate.low, estimate.high]) - np.log(t)
        known = not estimate.method.startswith("bounds")
        if known and not value - wider * (value - low) <= 0 <= value + wider * (high - value):
            apart[name] = float(value)
    if not apart:
        return ""
    largest = sorted(apart, key=lambda name: -abs(apart[name]))[:_NAMED]
    said = ", ".join(f"{name} {domains[name].temperature.value:.3g}" for name in largest)
    return (
        f"{len(apart)} of {len(domains)} domains have a temperature of their own (all {t:.3g}; {said}): above it the "
        "model is too sure there, below it not sure enough; calibrate such a domain apart"
    )


def _bound_warning(temperature: TemperatureCalibrator) -> str:
    t, (low, high) = temperature.temperature_, temperature.bounds_
    why = "all pairs are ranked rightly" if t == low else "pairs are ranked no better than by chance"
    why = "no margin differs from 0" if low == high else why
    return (
        f"the temperature {t:.3g} is a bound, not a measurement: {why}; T = 1 is used instead, which leaves scores as "
        "they are; use more or other calibration pairs"
    )


_SHOWN = {"ece": "ECE", "nll": "NLL", "brier": "Brier", "overconfidence": "overconfidence"}


def summary(result: Calibration) -> dict[str, Any]:
    """Returns the lines that people read: the calibrator, and each figure before and after."""
    (before, after), change, unknown = result.judged, result.nll_change, "not measured"
    shown = {key: f"{after[key]:.3f}" if after else unknown for key in _SHOWN}
    return {
        "calibrator": f"{result.kind} ({result.reason})",
        "temperature": result.temperature_estimate if result.is_measured else unknown,
        "fitted on": f"{result.n:,} pairs of {result.prompts:,} prompts; figures on {result.judged_on}",
        "agreement": before["agreement"],
        **{name: f"{before[key]:.3f} -> {shown[key]}" for key, name in _SHOWN.items()},
        "NLL change": f"{change:.3f}{', surely worse' * result.made_worse}" if change else unknown,
        "ECE if calibrated": f"{(after or before)['null_ece']:.3f} at this n",
    }
