"""Statistics of rewards and preferences: pure functions of numpy arrays, each with n and an interval.

Every statistic of the library lives here once; stages import it and add nothing of their own. scipy.stats takes half a
second to import: functions that need it import it, the others take scipy.special's, which it calls itself.
"""

from rmtrl.metrics.estimates import (
    Floats, binomial_estimate, bootstrap_estimate, bootstrap_estimates, change_estimate, clustered_covariance,
    combined_estimate, corrected_rate, defined, effective_n, mean_by_group, mean_estimate, mean_estimates,
    ratio_estimate, resamples, reweighted_estimate, scaled, share_estimate, too_few,
)  # fmt: skip
from rmtrl.metrics.lengths import length_bias
from rmtrl.metrics.probabilities import (
    ReliabilityCurve, calibration_metrics, nll, reliability_curve,
)  # fmt: skip
from rmtrl.metrics.ranks import (
    best_of_n_curve, best_of_n_curves, best_of_n_kl, best_of_n_weights, correlation_estimate,
    kendall, pair_wins, pearson, reward_metrics, spearman, step_rewards,
    worst_group_accuracy,
)  # fmt: skip
