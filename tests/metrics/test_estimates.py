"""The bootstrap by prompt, against other implementations and against what it is for: coverage."""

import math

import numpy as np
import pytest
from scipy import stats

from rmtrl.metrics import (
    binomial_estimate,
    bootstrap_estimate,
    bootstrap_estimates,
    clustered_covariance,
    combined_estimate,
    mean_by_group,
    mean_estimate,
    mean_estimates,
    resamples,
)
from rmtrl.types import Estimate


def mean(values):
    return lambda weights: weights @ values / weights.sum(axis=1)


def test_a_resample_is_a_row_of_weights_that_sum_to_the_groups_drawn():
    seen = []

    def keep(weights):
        seen.append(weights)
        return weights.sum(axis=1)

    bootstrap_estimate(keep, 6, ["a", "a", "b", "b", "c", "c"], n_resamples=50)
    weights = np.concatenate(seen[1:])
    assert (seen[0] == 1).all() and weights.shape == (50, 6)
    assert (weights[:, ::2] == weights[:, 1::2]).all() and (weights.sum(axis=1) == 6).all()


def test_the_interval_of_a_mean_is_scipys():
    values = np.random.default_rng(0).exponential(size=300)
    ours = bootstrap_estimate(mean(values), 300, n_resamples=4000)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=1).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)
    assert ours.value == pytest.approx(values.mean()) and ours.n == 300


def test_the_basic_interval_is_scipys():
    values = np.random.default_rng(0).exponential(size=100)
    ours = bootstrap_estimate(mean(values), 100, kind="basic", n_resamples=4000)
    theirs = stats.bootstrap((values,), np.mean, method="basic", n_resamples=4000, rng=1).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_several_statistics_come_from_the_same_resamples():
    x = np.random.default_rng(0).normal(size=50)
    found = bootstrap_estimates(lambda w: {"mean": mean(x)(w), "twice": mean(2 * x)(w)}, 50)
    assert found["twice"].high == pytest.approx(2 * found["mean"].high)


def test_one_prompt_has_no_interval_but_the_bounds():
    found = bootstrap_estimate(mean(np.array([0.2, 0.4])), 2, ["a", "a"], bounds=(0.0, 1.0))
    assert (found.low, found.high) == (0.0, 1.0) and "no interval" in found.method


def test_chunks_do_not_change_the_interval(monkeypatch):
    values = np.random.default_rng(0).normal(size=200)
    whole = bootstrap_estimate(mean(values), 200)
    monkeypatch.setattr("rmtrl.metrics.estimates._CELLS", 1000)
    assert bootstrap_estimate(mean(values), 200) == whole


def test_undefined_resamples_are_left_out():
    found = bootstrap_estimate(lambda w: np.where(w[:, 0] > 0, w[:, 0], np.nan), 5)
    assert found.low >= 1 and math.isfinite(found.high)


def test_no_rows_is_an_error():
    with pytest.raises(ValueError, match="no values"):
        bootstrap_estimate(mean(np.zeros(0)), 0)


def test_a_share_that_is_the_same_in_all_prompts_still_has_an_interval():
    halves = mean_estimate([1, 0, 1, 0], ["a", "a", "b", "b"])
    theirs = stats.binomtest(1, 2).proportion_ci()
    assert (halves.low, halves.high) == pytest.approx((theirs.low, theirs.high))


def test_the_interval_of_a_share_over_few_prompts_is_no_narrower_than_the_exact_one():
    tie = mean_estimate([1, 1, 1, 1, 1, 0.5])  # 5.5 of 6
    exact = binomial_estimate(5.5, 6)
    assert tie.value == pytest.approx(11 / 12) and (tie.low, tie.high) == (exact.low, 1.0) and tie.low < 0.6
    uneven = mean_estimate([1] * 50 + [0, 0, 1], ["a"] * 50 + ["b", "c", "d"])  # one prompt is most of the rows
    assert uneven.low < binomial_estimate(uneven.value * 4, 4).low


def test_the_interval_of_a_share_over_few_prompts_covers_the_truth():
    draws = np.random.default_rng(0).choice([0.0, 0.5, 1.0], p=[0.05, 0.1, 0.85], size=(400, 8))
    found = [mean_estimate(values, n_resamples=200) for values in draws]
    assert np.mean([own.low <= 0.9 <= own.high for own in found]) >= 0.95


def test_rows_that_stand_for_many_are_resampled_as_the_many():
    x, counts = np.array([0.0, 1.0, 5.0]), np.array([2, 3, 1])
    many = np.repeat(x, counts)
    few = bootstrap_estimate(mean(x), 3, counts=counts)
    whole = bootstrap_estimate(mean(many), 6)
    assert (few.value, few.low, few.high) == pytest.approx((whole.value, whole.low, whole.high))
    often = np.concatenate([*resamples(3, 4000, counts=counts * 100)])  # drawn as multinomial counts
    assert (often.sum(axis=1) == 600).all() and often.mean(axis=0) == pytest.approx(counts * 100, rel=0.02)


def test_bayesian_weights_leave_nobody_out():
    weights = np.concatenate([*resamples(5, 2000, bayesian=True)])
    assert weights.shape == (2000, 5) and weights.min() > 0 and weights.mean() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("successes", [0, 3, 10])
def test_the_exact_interval_is_scipys(successes):
    ours, theirs = binomial_estimate(successes, 10, level=0.9), stats.binomtest(successes, 10).proportion_ci(0.9)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-10)


def test_half_successes_lie_between_whole_ones():
    low, half, high = (binomial_estimate(k, 8) for k in (3, 3.5, 4))
    assert low.low < half.low < high.low and low.high < half.high < high.high


def test_the_difference_of_wilsons_intervals_is_newcombes():
    rates = [binomial_estimate(k, n, kind="wilson") for k, n in ((56, 70), (48, 80))]
    found = combined_estimate(rates, (1, -1))
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=5e-5) and found.n == 150


def test_a_mean_of_independent_estimates_is_as_wide_as_their_root_mean_square():
    one = Estimate(0.5, 0.4, 0.7, 10)
    found = combined_estimate([one, one], (0.5, 0.5))
    assert (found.value - found.low, found.high - found.value) == pytest.approx((0.1 / 2**0.5, 0.2 / 2**0.5))
    ends = combined_estimate([one, one], (1, -1), independent=False)
    assert (ends.low, ends.high) == pytest.approx((0.4 - 0.7, 0.7 - 0.4))


def test_the_sandwich_of_a_mean_is_its_variance_over_prompts():
    x = np.random.default_rng(0).normal(size=40)
    groups = np.repeat(np.arange(20), 2)
    scores = (x - x.mean())[:, None]
    means = mean_by_group(x, groups)
    (found,) = clustered_covariance(scores, [[40.0]], groups).ravel()
    assert found == pytest.approx(means.var(ddof=1) / 20)


def test_the_sandwich_is_that_of_statsmodels():
    sm = pytest.importorskip("statsmodels.api")
    rng = np.random.default_rng(1)
    x, groups = np.column_stack([np.ones(60), rng.normal(size=60)]), np.repeat(np.arange(12), 5)
    y = x @ [1.0, 2.0] + rng.normal(size=12)[groups] + rng.normal(size=60)
    theirs = sm.OLS(y, x).fit(cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False})
    scores = x * (y - x @ theirs.params)[:, None]
    assert clustered_covariance(scores, x.T @ x, groups) * 11 / 12 == pytest.approx(theirs.cov_params())


def test_the_mean_of_each_kind_is_that_of_its_rows():
    values, kinds, groups = np.array([1.0, 0, 1, 0, 1]), np.array([2, 1, 2, 1, 1]), list("aabbc")
    found = mean_estimates(values, kinds, groups, proportion=False)
    assert list(found) == [1, 2] and found[1] == mean_estimate([0, 0, 1], ["a", "b", "c"], proportion=False)
    np.testing.assert_allclose(mean_by_group(values, kinds), [e.value for e in found.values()])
