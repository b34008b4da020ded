"""Scores that mean what they say: probabilities of preference, and rewards on a known scale."""

from rmtrl.calibration.calibration import Calibration, calibrate, read_calibration
from rmtrl.calibration.calibrators import IsotonicCalibrator, TemperatureCalibrator
from rmtrl.calibration.export import export_temperature
from rmtrl.calibration.rewards import AffineReward, CalibratedScorer, ReferenceReward
