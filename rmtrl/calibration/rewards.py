"""Calibrated scalar rewards, for reinforcement learning and for display: maps of scores, and a scorer that has one.

If σ(h(r_a) − h(r_b)) is to be a calibrated probability for all pairs, h must be affine: only the temperature turns a
calibrated margin into a reward. The isotonic curve does so against a fixed reference answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rmtrl.calibration.calibrators import Calibrator, IsotonicCalibrator
from rmtrl.errors import DataError
from rmtrl.metrics import Floats
from rmtrl.types import Conversation, Scorer


@dataclass(frozen=True)
class AffineReward:
    """The reward r' = (r − shift) / scale; the ranking stays.

    With the mean reward as shift and the temperature as scale, 0 is an average answer and σ(r'_a − r'_b) the
    calibrated probability that a is preferred. Very small spreads slow policies down (Razin et al. 2025,
    https://huggingface.co/papers/2503.15477): compare the spread within a prompt before and after.

    Args:
        shift (`float`): What is taken off, in units of the raw reward.
        scale (`float`): What it is divided by, above 0.
        low, high (`float`): Ends at which r' is cut; −∞ and ∞ leave it whole.

    Raises:
        DataError: If the scale is not above 0 or the ends are not in order.

    Example:

    ```python
    >>> AffineReward(shift=1.0, scale=2.0)([1.0, 5.0]).tolist()
    [0.0, 2.0]
    ```
    """

    shift: float
    scale: float
    low: float = -np.inf
    high: float = np.inf

    def __post_init__(self) -> None:
        if not (np.isfinite(self.shift) and np.isfinite(self.scale) and self.scale > 0):
            raise DataError(f"got shift {self.shift} and scale {self.scale}; wanted finite ones, the scale above 0")
        if not self.low < self.high:
            raise DataError(f"got the range {self.low} to {self.high}; wanted the lower end first")

    @classmethod
    def onto(cls, rewards: tuple[float, float], shown: tuple[float, float] = (-1.0, 1.0)) -> "AffineReward":
        """Returns the map for display that takes one range to another and cuts what is outside.

        Args:
            rewards (`tuple[float, float]`): Range of raw rewards, such as [`Calibration.reward_range`].
            shown (`tuple[float, float]`): Range to show, such as (−1, 1) or (0, 100).

        Example:

        ```python
        >>> AffineReward.onto((-2.0, 6.0), (0, 100))([-3.0, 2.0, 6.0]).tolist()
        [0.0, 50.0, 100.0]
        ```
        """
        (first, last), (low, high) = rewards, shown
        if not (first < last and low < high):
            raise DataError(f"got the ranges {rewards} and {shown}; wanted the lower end first, and unequal ends")
        scale = (last - first) / (high - low)
        return cls(first - low * scale, scale, low, high)

    def __call__(self, rewards: ArrayLike) -> Floats:
        """Returns the rewards mapped, in the shape given."""
        return np.clip(self._whole(rewards), self.low, self.high)

    def fraction_clipped(self, rewards: ArrayLike) -> float:
        """Returns the share of rewards that are cut."""
        mapped = self._whole(rewards)
        return float(((mapped < self.low) | (mapped > self.high)).mean())

    def _whole(self, rewards: ArrayLike) -> Floats:
        return (np.asarray(rewards, dtype=np.float64) - self.shift) / self.scale


@dataclass(frozen=True)
class ReferenceReward:
    """The reward p(r − r_ref): the calibrated probability that an answer beats a fixed one to the same prompt.

    Bounded to (0, 1) and rising in r, so a policy gains little by pushing the raw reward ever higher (preference as
    reward, Fu et al. 2025, https://huggingface.co/papers/2502.18770, with one reference).

    Args:
        calibrator ([`IsotonicCalibrator`] or [`TemperatureCalibrator`]): Fitted on margins of the same model.

    Example:

    ```python
    >>> reward = ReferenceReward(IsotonicCalibrator().fit([2.0, -1.0, 3.0, 1.0]))
    >>> reward([1.5], [1.5]).tolist()
    [0.5]
    ```
    """

    calibrator: Calibrator

    def __call__(self, rewards: ArrayLike, reference_rewards: ArrayLike) -> Floats:
        """Returns the probabilities, `(N,)`, of rewards `(N,)` and the references' rewards `(N,)`."""
        return self.calibrator.predict_proba(_difference(rewards, reference_rewards))

    def fraction_clipped(self, rewards: ArrayLike, reference_rewards: ArrayLike) -> float:
        """Returns the share of differences larger than any the calibrator was fitted on.

        When it grows in training, the policy is going where the reward model was never checked: an early sign of
        overoptimization. A temperature has no such range and returns 0.
        """
        if not isinstance(self.calibrator, IsotonicCalibrator):
            return 0.0
        return float((np.abs(_difference(rewards, reference_rewards)) > self.calibrator.range_).mean())


class CalibratedScorer(Scorer):
    """A scorer whose scores are mapped by an [`AffineReward`].

    Args:
        scorer ([`Scorer`]): Any scorer.
        reward ([`AffineReward`]): The map, such as [`Calibration.reward`].

    Example:

    ```python
    >>> class Length(Scorer):
    ...     def score(self, conversations):
    ...         return np.array([len(c) for c in conversations], dtype=np.float32)
    >>> CalibratedScorer(Length(), AffineReward(2.0, 4.0)).score(["ab", "abcdef"]).tolist()
    [0.0, 1.0]
    ```
    """

    def __init__(self, scorer: Scorer, reward: AffineReward) -> None:
        self.scorer = scorer
        self.reward = reward

    def score(self, conversations: Sequence[Conversation]) -> NDArray[np.float32]:
        """Returns the mapped scores, `(N,)` float32."""
        return self.reward(self.scorer.score(conversations)).astype(np.float32)

    def holds(self, conversations: Sequence[Conversation]) -> NDArray[np.bool_]:
        """Returns which conversations the scorer within can score whole, `(N,)`."""
        return self.scorer.holds(conversations)


def _difference(rewards: ArrayLike, reference_rewards: ArrayLike) -> Floats:
    first, second = np.asarray(rewards, dtype=np.float64), np.asarray(reference_rewards, dtype=np.float64)
    if first.shape != second.shape:
        raise DataError(f"got {first.size} rewards and {second.size} of references; wanted a reference an answer")
    return first - second
