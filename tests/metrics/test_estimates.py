"""The bootstrap by prompt, against other implementations and against what it is for: coverage."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from rmtrl.errors import UsageError
from rmtrl.metrics import (
    binomial_estimate,
    bootstrap_estimate,
    bootstrap_estimates,
    change_estimate,
    clustered_covariance,
    combined_estimate,
    corrected_rate,
    effective_n,
    mean_by_group,
    mean_estimate,
    mean_estimates,
    resamples,
    share_estimate,
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


# rates near 0, of prompts that belong together, and corrected for a judge's errors


def test_nothing_in_a_hundred_is_the_rule_of_three():
    """Two-sided, as every interval here, 3.6 %; the rule of three is the one-sided bound, 1 − .05^(1/100)."""
    assert binomial_estimate(0, 100).high == pytest.approx(1 - 0.025 ** (1 / 100)) == pytest.approx(0.0362, abs=5e-5)
    one_sided = binomial_estimate(0, 100, level=0.9).high
    assert one_sided == pytest.approx(1 - 0.05 ** (1 / 100)) == pytest.approx(0.0295, abs=5e-5)
    assert one_sided == pytest.approx(3 / 100, rel=0.02)


def test_effective_n_of_single_prompts_is_their_number_and_of_equal_ones_that_of_groups():
    values = [0, 1, 1, 0, 1, 0, 0]
    assert effective_n(values) == 7 == effective_n(values, list("abcdefg"))
    assert effective_n([0] * 12, np.repeat([0, 1, 2], 4)) == 3
    assert effective_n([0, 0, 0, 1, 1, 1, 0, 0, 0], list("aaabbbccc")) == 3
    assert 1 <= effective_n([0, 1], ["a", "a"]) < 1.5
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(200), 5)
    assert effective_n(np.repeat(rng.random(200) < 0.3, 5), groups) == 200
    assert effective_n(rng.random(1000) < 0.3, groups) == pytest.approx(1000, rel=0.15)
    assert 36 / 26 <= effective_n([0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1]) < 2  # one group of five, one of one


def test_a_share_in_groups_has_the_exact_interval_of_what_they_are_worth():
    single, events = binomial_estimate(3, 10), [True] * 3 + [False] * 7
    alike = share_estimate(np.repeat(events, 5), np.repeat(range(10), 5))
    assert share_estimate(events, range(10)) == single
    assert (alike.low, alike.high) == pytest.approx((single.low, single.high)) and alike.n == 50
    assert "worth 10.0 prompts" in alike.method


def test_effective_n_does_not_leap_where_the_first_event_appears():
    """Of 10 groups of 15, all alike but for a few rows: few events say little of how groups differ."""
    groups, found = np.repeat(np.arange(10), 15), []
    for n_events in (0, 1, 2, 5):
        values = np.zeros(150)
        values[15 * np.arange(n_events)] = 1
        n = effective_n(values, groups)
        found.append(binomial_estimate(values.mean() * n, n).high)
    assert np.abs(np.diff(found)).max() < 0.02  # and not from 0.31 to 0.04
    assert effective_n(values, groups, bounds=(-1, 1)) <= effective_n(values, groups) < 75


def test_the_interval_of_the_effective_n_holds_the_rate_of_prompts_that_belong_together():
    """10 requests in 12 wordings, of which some requests mostly succeed: 95 % by request, not by row."""
    rng, groups, held = np.random.default_rng(0), np.repeat(np.arange(10), 12), np.zeros(2)
    for _ in range(400):
        events = rng.random(120) < np.repeat(rng.beta(0.3, 0.7, 10), 12)
        for index, n in enumerate((effective_n(events, groups), 120)):
            found = binomial_estimate(events.mean() * n, n)
            held[index] += found.low <= 0.3 <= found.high
    assert held[0] >= 0.93 * 400 and held[1] < 0.75 * 400


def judge(sensitivity, specificity, n=200):
    return binomial_estimate(sensitivity * n, n), binomial_estimate(specificity * n, n)


def test_corrected_rate_of_a_known_judge():
    found = corrected_rate(binomial_estimate(40, 100), *judge(0.9, 0.7))
    assert found.value == pytest.approx(1 / 6)
    assert found.low < found.value < found.high and found.n == 100 and "Lang and Reiczigel" in found.method


def test_corrected_rate_is_clipped_and_its_interval_holds_it():
    sure = judge(0.9, 0.7)
    assert (
        corrected_rate(binomial_estimate(10, 100), *sure).value
        == 0
        == corrected_rate(binomial_estimate(10, 100), *sure).low
    )
    full = corrected_rate(binomial_estimate(100, 100), *sure)
    assert full.value == 1 == full.high
    few = corrected_rate(binomial_estimate(0, 3), *judge(1, 1, 2))
    assert few.low <= few.value <= few.high


def test_a_judge_that_never_errs_leaves_agresti_and_coull():
    found = corrected_rate(binomial_estimate(30, 100), *judge(1, 1, 10**9))
    assert (found.low, found.high) == pytest.approx(proportion_confint(30, 100, method="agresti_coull"), abs=1e-6)
    assert found.value == pytest.approx(0.3)


def test_corrected_rate_is_wider_where_the_judge_is_less_known():
    rate = binomial_estimate(400, 1000)
    few, many = (corrected_rate(rate, *judge(0.9, 0.7, n)) for n in (20, 2000))
    assert few.high - few.low > 2 * (many.high - many.low)
    assert corrected_rate(rate, *judge(0.9, 0.7, 2000), n=50).high > many.high


def test_no_corrected_rate_by_a_judge_that_knows_nothing():
    with pytest.raises(UsageError, match=r"sensitivity 0.600 and specificity 0.400.*sum is above 1"):
        corrected_rate(binomial_estimate(4, 10), *judge(0.6, 0.4))


def test_a_judge_hardly_known_to_know_anything_leaves_all_rates():
    """0.9 of 10 + 0.15 of 1,000 is above 1, but not once each judge is pulled towards ½."""
    found = corrected_rate(binomial_estimate(5, 10), binomial_estimate(9, 10), binomial_estimate(150, 1000))
    assert (found.low, found.high) == (0, 1)


JUDGES = ((0.95, 0.95), (0.9, 0.7))
CASES = [
    (share, n, *own, m) for share in (0, 0.02, 0.1, 0.5, 1) for n in (50, 500) for own in JUDGES for m in (20, 100)
]


def test_corrected_intervals_hold_the_true_rate():
    """Where sensitivity and specificity are estimated too; taken as known they would hold it far less often."""
    rng, draws, held, held_known = np.random.default_rng(0), 200, [], []
    for share, n, se, sp, m in CASES:
        counts = zip(*(rng.binomial(own, p, draws) for own, p in (
            (n, share * se + (1 - share) * (1 - sp)), (m, se), (m, sp))), strict=True)  # fmt: skip
        found = [(binomial_estimate(k, n), Estimate(a / m, 0, 1, m), Estimate(b / m, 0, 1, m)) for k, a, b in counts]
        intervals = [corrected_rate(*own) for own in found]
        held.append(np.mean([own.low <= share <= own.high for own in intervals]))
        ends = [
            [(end + sp.value - 1) / (se.value + sp.value - 1) for end in (rate.low, rate.high)]
            for rate, se, sp in found
        ]
        held_known.append(np.mean([low <= share <= high for low, high in np.clip(ends, 0, 1)]))
    assert 0.945 < np.mean(held) < 0.98 and min(held) > 0.91
    assert np.mean(held_known) < 0.85


@pytest.mark.parametrize(("successes", "n"), [(1, 3), (17, 40), (999, 1000), (12.5, 30.2), (0, 7), (7, 7)])
def test_the_exact_interval_is_scipys_to_the_last_digit(successes, n):
    found, tail = binomial_estimate(successes, n), (1 - 0.95) / 2
    assert successes == 0 or found.low == stats.beta.ppf(tail, successes, n - successes + 1)
    assert successes == n or found.high == stats.beta.ppf(1 - tail, successes + 1, n - successes)


def test_the_paired_t_interval_is_scipys():
    changes = np.random.default_rng(0).normal(1, 2, 23)
    theirs = stats.t.interval(0.95, 22, changes.mean(), stats.sem(changes))
    found = change_estimate(changes)
    assert (found.low, found.high) == pytest.approx(theirs, rel=1e-14)
