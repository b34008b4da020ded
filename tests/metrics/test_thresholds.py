"""Thresholds fitted by a false-positive rate: the order statistic, the promise for new rows, what is refused."""

import numpy as np
import pytest
from scipy import stats

from rmtrl.metrics.thresholds import fit_threshold


def test_the_threshold_is_the_order_statistic_of_split_conformal_prediction():
    fit = fit_threshold(np.arange(99), [97.5, 98, 50], 0.02)
    assert fit.threshold == 97  # ⌈100 · 0.98⌉ = 98th smallest of 0 … 98
    assert (fit.false_positive_rate.value, fit.false_positive_rate.n) == (1 / 99, 99)
    assert (fit.sensitivity.value, fit.sensitivity.n) == (2 / 3, 3)
    assert fit.at_most == pytest.approx(stats.beta(2, 98).ppf(0.95))


def test_one_row_fewer_than_the_rate_needs_is_refused_in_one_line():
    assert fit_threshold(range(49), [], 0.02).threshold == 48
    with pytest.raises(
        ValueError, match=r"48 harmless prompts cannot hold .* 0\.02; wanted 49 or more, or .* 0\.0205"
    ):
        fit_threshold(range(48), [], 0.02)
    with pytest.raises(ValueError, match="wanted 49 or more$"):
        fit_threshold([], [1.0], 0.02)


@pytest.mark.parametrize("rate", [0, 1, -0.1, float("nan")])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(ValueError, match="above 0 and below 1"):
        fit_threshold(range(99), [], rate)


@pytest.mark.parametrize("ties", [False, True])
def test_the_promise_holds_for_new_rows(ties):
    """Over 2,000 fits on 60 rows the mean rate of new rows is at most what was asked, and 95 % are under `at_most`."""
    rng, rates = np.random.default_rng(0), []
    for _ in range(2000):
        scores = rng.uniform(size=60)  # rounded to tenths, 0.95 − t is the share of new ones above t
        fit = fit_threshold(np.round(scores, 1) if ties else scores, [], 0.05)
        rates.append(max(0.95 - fit.threshold, 0) if ties else 1 - fit.threshold)
    rates = np.array(rates)
    if not ties:
        assert rates.mean() == pytest.approx(1 - 58 / 61, abs=0.002)
        assert (rates <= fit.at_most).mean() == pytest.approx(0.95, abs=0.015)
    assert rates.mean() <= 0.05


def test_of_one_prompt_the_highest_score_counts():
    scores = np.concatenate([np.arange(50), np.zeros(50)])
    fit = fit_threshold(scores, [], 0.02, np.tile(np.arange(50), 2))
    assert (fit.threshold, fit.false_positive_rate.n) == (49, 50)


def test_a_score_that_never_varies_flags_nothing_and_says_so():
    fit = fit_threshold(np.ones(60), np.ones(5), 0.05)
    assert (fit.threshold, fit.sensitivity.value, fit.false_positive_rate.value) == (1, 0, 0)
