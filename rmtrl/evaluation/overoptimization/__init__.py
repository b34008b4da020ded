"""Overoptimization: what choosing hard by a proxy does to the gold score."""

from rmtrl.evaluation.overoptimization.curves import (
    Part, ScalingFit, degrees, fit_scaling, measure_part, n_grid,
)  # fmt: skip
from rmtrl.evaluation.overoptimization.measure import Overoptimization, measure_overoptimization, scored_samples
