"""Turns margins into probabilities that hold, by a temperature or by an isotonic curve, and chooses between the two.

Fit on pairs that the model was neither trained nor selected on. Both calibrators are antisymmetric by construction,
p(m) + p(−m) = 1: swapping the two answers swaps the probability.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from rmtrl.errors import DataError
from rmtrl.metrics import Floats, clustered_covariance, nll
from rmtrl.metrics.probabilities import checked_probabilities, finite, margin_losses
from rmtrl.types import Estimate, json_ready

BOUND = 50.0
MIX = 0.1
ENOUGH_PAIRS = 1000
_FOLDS = 5
_STEEPEST = 20  # largest margin fitted over T of the sigmoid: beyond about 36, σ(m / T) is 1 in float64

Self = TypeVar("Self", bound="Calibrator")


class Calibrator:
    """A map from margins to probabilities: fitted, stored, and carried over to another unit of rewards."""

    kind: ClassVar[str]
    _in_units: ClassVar[tuple[str, ...]]  # what of the fitted values is in units of the reward

    n_: int

    def fit(self: Self, margins: ArrayLike, labels: ArrayLike | None = None) -> Self:
        """Fits the map and returns the calibrator.

        Args:
            margins (`(N,)` array): Score of chosen minus score of rejected.
            labels (`(N,)` array, *optional*): Share of votes for chosen, in [0, 1]; 1 when absent.

        Raises:
            DataError: If there is no pair, or a value is not finite or out of range.
        """
        m, q = checked_pairs(margins, labels)
        self.n_ = len(m)
        self._fit(m, q)
        return self

    def _fit(self, m: Floats, q: Floats) -> None:
        raise NotImplementedError

    def predict_proba(self, margins: ArrayLike) -> Floats:
        """Returns the probability that chosen is preferred, `(N,)`."""
        return np.asarray(self._probabilities(finite("margin", margins)), dtype=np.float64)

    def _probabilities(self, m: Floats) -> Floats:
        raise NotImplementedError

    def as_dict(self) -> dict[str, Any]:
        """Returns what [`calibrator_from_dict`] needs, ready for JSON."""
        return dict(json_ready({"kind": self.kind, **{name[:-1]: value for name, value in vars(self).items()}}))

    def rescaled(self: Self, scale: float) -> Self:
        """Returns the calibrator for margins that were multiplied by `scale`."""
        moved = copy.copy(self)
        for name in self._in_units:
            setattr(moved, name, scale * getattr(self, name))
        return moved


class TemperatureCalibrator(Calibrator):
    """
    Calibrates by one number: p = σ(m / T), with the T of least negative log-likelihood.

    The ranking stays, and so does the scalar: r / T is a calibrated reward. T is sought between 1/50 and 50 times the
    root mean square of the margins, so scaling the margins scales T. Where every pair is ranked rightly the best T is
    0, and where no better than by chance it is infinite: `temperature_` is the bound, `at_bound_` is true, and
    probabilities are those of T = 1, since nothing was measured.

    Attributes:
        temperature_ (`float`): T; 1 where all margins are 0, which say nothing about it.
        bounds_ (`(2,)` array): Between which T was sought.
        at_bound_ (`bool`): Whether T stands at a bound, and is no measurement.
        scale_ (`float`): What margins are divided by: T, and 1 where T is no measurement.
        n_ (`int`): Pairs it was fitted on.

    Example:

    ```python
    >>> calibrator = TemperatureCalibrator().fit([2.0, -1.0, 3.0, 1.0])
    >>> calibrator.predict_proba([0.0]).tolist()
    [0.5]
    ```
    """

    kind = "temperature"
    _in_units = ("temperature_", "bounds_")

    temperature_: float
    bounds_: Floats
    at_bound_: bool

    def _fit(self, m: Floats, q: Floats) -> None:
        largest = float(np.abs(m).max())
        scale = largest * float(np.sqrt(np.mean((m / (largest or 1.0)) ** 2)))
        if scale == 0:
            self.temperature_, self.bounds_, self.at_bound_ = 1.0, np.ones(2), True
            return
        unit, end = m / scale, np.log(BOUND)

        def loss(log_temperature: float) -> float:
            return float(margin_losses(unit / np.exp(log_temperature), q).mean())

        found = optimize.minimize_scalar(loss, bounds=(-end, end), method="bounded", options={"xatol": 1e-9})
        self.bounds_ = np.array([scale / BOUND, scale * BOUND])
        self.at_bound_ = bool(end - abs(found.x) < 1e-3)
        self.temperature_ = float(self.bounds_[int(found.x > 0)] if self.at_bound_ else scale * np.exp(found.x))

    @property
    def scale_(self) -> float:
        """What margins are divided by: T, and 1 where T is no measurement."""
        return 1.0 if self.at_bound_ else self.temperature_

    def _probabilities(self, m: Floats) -> Floats:
        return special.expit(m / self.scale_)


class IsotonicCalibrator(Calibrator):
    """
    Calibrates by a rising curve: p = 0.9 · F(m) + 0.1 · σ(m / T).

    F is the least-squares rising curve through both orders of every pair, {(m, q), (−m, 1 − q)}, kept within
    [1/(n + 2), 1 − 1/(n + 2)]. It is drawn straight between the centres of its steps (centred isotonic regression,
    Oron and Flournoy 2017), and the sigmoid keeps it rising at the ends too, so the ranking stays: its T is at least
    1/20 of the largest margin fitted, below which float64 would take unequal large margins for equal. Margins larger
    than any fitted get the end of F. With far fewer than 1,000 pairs it follows noise: see
    [`~rmtrl.calibration.calibrators.select_calibrator`].

    Attributes:
        margins_, probabilities_ (`(B,)` arrays): The curve F for margins of 0 and more; F(−m) = 1 − F(m).
        range_ (`float`): Largest margin fitted, in size.
        temperature_ (`float`): T of the sigmoid: that of [`TemperatureCalibrator`], or its floor.
        n_ (`int`): Pairs it was fitted on.

    Example:

    ```python
    >>> calibrator = IsotonicCalibrator().fit([2.0, -1.0, 3.0, 1.0])
    >>> bool(calibrator.predict_proba([1.5]) > calibrator.predict_proba([0.5]))
    True
    ```
    """

    kind = "isotonic"
    _in_units = ("margins_", "range_", "temperature_")

    margins_: Floats
    probabilities_: Floats
    range_: float
    temperature_: float
    mix_: float

    def _fit(self, m: Floats, q: Floats) -> None:
        from sklearn.isotonic import IsotonicRegression  # half a second, which reading a stored curve does not need

        self.range_, self.mix_ = float(np.abs(m).max()), MIX
        self.temperature_ = max(TemperatureCalibrator().fit(m, q).temperature_, self.range_ / _STEEPEST)
        both = np.concatenate([m, -m])
        curve = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
        fitted = curve.fit(both, np.concatenate([q, 1 - q])).predict(both)
        steps, step = np.unique(np.round(fitted, 12), return_inverse=True)
        centres = np.bincount(step, weights=both) / np.bincount(step)
        above = (steps > 0.5) & (centres > 0)  # the step at ½ has its centre at 0, where the curve starts
        most = 1 - 1 / (self.n_ + 2)
        self.margins_ = np.concatenate([[0.0], centres[above]])
        self.probabilities_ = np.minimum(np.concatenate([[0.5], steps[above]]), most)

    def _probabilities(self, m: Floats) -> Floats:
        above_half = np.sign(m) * (np.interp(np.abs(m), self.margins_, self.probabilities_) - 0.5)
        return (1 - self.mix_) * (0.5 + above_half) + self.mix_ * special.expit(m / self.temperature_)


_KINDS: dict[Any, type[Calibrator]] = {cls.kind: cls for cls in (TemperatureCalibrator, IsotonicCalibrator)}


def calibrator_from_dict(stored: Mapping[str, Any]) -> Any:
    """Returns the calibrator of either kind that `as_dict()` describes.

    Raises:
        DataError: If it is of no known kind.
    """
    kind = _KINDS.get(stored.get("kind"))
    if kind is None:
        raise DataError(f"got a calibrator of kind {stored.get('kind')!r}; wanted one of {', '.join(_KINDS)}")
    made = kind()
    values = {name: np.array(value, float) if isinstance(value, list) else value for name, value in stored.items()}
    vars(made).update({f"{name}_": value for name, value in values.items() if name != "kind"})
    return made


def checked_pairs(margins: ArrayLike, labels: ArrayLike | None) -> tuple[Floats, Floats]:
    m = finite("margin", margins)
    return m, checked_probabilities(np.full(len(m), 0.5), labels)[1]


def temperature_estimate(margins: ArrayLike, groups: ArrayLike, labels: ArrayLike | None = None) -> Estimate:
    """Returns the temperature with an interval that allows for several pairs of one prompt.

    With β = 1/T the score of a pair is m(q − σ(βm)) and the information Σ m²σ(1 − σ); summed by prompt they give the
    cluster-robust variance of β (Liang and Zeger 1986) and, on the scale of log T, a t interval.

    Args:
        margins (`(N,)` array): Score of chosen minus score of rejected.
        groups (`(N,)` array): Prompt of each pair.
        labels (`(N,)` array, *optional*): Share of votes for chosen; 1 when absent.

    Returns:
        [`Estimate`]: With the bounds of the search as interval where T stands at one of them, NaN then, or there is
        one prompt.

    Example:

    ```python
    >>> print(temperature_estimate([2.0, -1.0, 3.0, 1.0, -0.5, 0.2], range(6)))
    1.252 [0.195, 8.014] (n = 6)
    ```
    """
    fitted = TemperatureCalibrator().fit(margins, labels)
    m, q = checked_pairs(margins, labels)
    t, (least, most) = fitted.temperature_, fitted.bounds_.tolist()
    n_groups = len(np.unique(np.asarray(groups)))
    if fitted.at_bound_ or n_groups < 2:
        value = float("nan") if fitted.at_bound_ else t
        return Estimate(value, least, most, len(m), method="bounds of the search: the pairs do not tell")
    p = special.expit(m / t)
    variance = clustered_covariance((m * (q - p))[:, None], [[np.sum(m**2 * p * (1 - p))]], groups).item()
    half = min(float(special.stdtrit(n_groups - 1, 0.975) * t * np.sqrt(variance)), 700.0)
    low, high = max(t * float(np.exp(-half)), least), min(t * float(np.exp(half)), most)
    return Estimate(t, low, high, len(m), method="cluster-robust t interval on log T, by prompt")


@dataclass(frozen=True)
class Selection:
    """Which calibrator was chosen, and why.

    Args:
        kind (`str`): `"temperature"` or `"isotonic"`.
        reason (`str`): Why this kind, in words.
        probabilities (`(N,)` array): Each pair's probability, from a fit without its prompt where `cross_fitted`.
        nll (`dict[str, float]`): Cross-fitted negative log-likelihood of each kind tried; empty where none was.
    """

    kind: str
    reason: str
    probabilities: Floats
    nll: dict[str, float]

    @property
    def cross_fitted(self) -> bool:
        """Whether there were prompts enough to judge on those that were not fitted."""
        return bool(self.nll)


def select_calibrator(
    margins: ArrayLike, groups: ArrayLike | None = None, labels: ArrayLike | None = None
) -> Selection:
    """Returns the kind of calibrator of least negative log-likelihood on prompts it was not fitted on.

    Five folds by prompt. In-sample figures would always prefer the isotonic curve, which follows the noise and
    looks better calibrated than the truth. Below 1,000 pairs the temperature is taken: a curve would follow noise. So
    it is where its bound is reached, and the pairs do not tell how sure to be.

    Args:
        margins (`(N,)` array): Score of chosen minus score of rejected.
        groups (`(N,)` array, *optional*): Prompt of each pair; every pair its own group when absent.
        labels (`(N,)` array, *optional*): Share of votes for chosen, in [0, 1]; 1 when absent.

    Raises:
        DataError: If there is no pair, or a value is not finite or out of range.

    Example:

    ```python
    >>> select_calibrator([2.0, -1.0, 3.0, 1.0]).kind
    'temperature'
    ```
    """
    m, q = checked_pairs(margins, labels)
    groups = np.arange(len(m)) if groups is None else np.asarray(groups)
    fitted = TemperatureCalibrator().fit(m, q)
    if fitted.at_bound_ or len(np.unique(groups)) < 2:
        one = "all pairs are of one prompt: temperature, and figures are in-sample"
        reason = "no temperature could be measured: scores stay as they are, T = 1" if fitted.at_bound_ else one
        return Selection("temperature", reason, fitted.predict_proba(m), {})
    kinds = list(_KINDS) if len(m) >= ENOUGH_PAIRS else ["temperature"]
    crossed = {kind: _cross_fitted(_KINDS[kind], m, q, groups) for kind in kinds}
    losses = {kind: nll(p, q) for kind, p in crossed.items()}
    best = min(losses, key=lambda kind: losses[kind])
    reason = f"least cross-fitted NLL: {', '.join(f'{kind} {loss:.4f}' for kind, loss in losses.items())}"
    if len(kinds) == 1:
        reason = f"{len(m):,} pairs are fewer than {ENOUGH_PAIRS:,}: temperature"
    return Selection(best, reason, crossed[best], losses)


def _cross_fitted(kind: type[Calibrator], m: Floats, q: Floats, groups: NDArray[Any]) -> Floats:
    from sklearn.model_selection import GroupKFold

    p = np.empty(len(m))
    for fit, held_out in GroupKFold(min(_FOLDS, len(np.unique(groups)))).split(m, groups=groups):
        p[held_out] = kind().fit(m[fit], q[fit]).predict_proba(m[held_out])
    return p
