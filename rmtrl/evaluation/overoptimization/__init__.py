"""Overoptimization: what choosing hard by a proxy does to the gold score."""

from rmtrl.evaluation.overoptimization.curves import Part, PromptCurves, ScalingFit, degree, fit_scaling, measure_part
from rmtrl.evaluation.overoptimization.curves import n_grid as n_grid
from rmtrl.evaluation.overoptimization.measure import Overoptimization, Samples, measure_overoptimization
from rmtrl.metrics import best_of_n_curve, best_of_n_curves, best_of_n_kl

__all__ = [
    "Overoptimization", "Part", "PromptCurves", "Samples", "ScalingFit", "best_of_n_curve", "best_of_n_curves",
    "best_of_n_kl", "degree", "fit_scaling", "measure_overoptimization", "measure_part", "n_grid",
]  # fmt: skip
