"""Correlations: published values, scipy's, symmetry, and intervals by prompt."""

import math
from itertools import combinations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from rmtrl.metrics import auroc, best_of_n_curve, correlation_estimate, kendall, pearson, spearman
from rmtrl.metrics.ranks import _weighted_ranks

LSAT = [576, 635, 558, 578, 666, 580, 555, 661, 651, 605, 653, 575, 545, 572, 594]
GPA = [3.39, 3.30, 2.81, 3.03, 3.44, 3.07, 3.00, 3.43, 3.36, 3.13, 3.12, 2.74, 2.76, 2.88, 2.96]


def test_kendall_with_ties_is_the_published_value():
    assert kendall([12, 2, 1, 12, 2], [1, 4, 7, 1, 0]) == pytest.approx(-0.471405, abs=1e-6)


def test_the_law_school_correlation_and_its_bootstrap_interval():
    found = correlation_estimate(LSAT, GPA, kind="pearson", n_resamples=4000)
    assert found.value == pytest.approx(0.776374, abs=1e-6)
    assert (found.low, found.high) == pytest.approx((0.456, 0.962), abs=0.02)


@pytest.mark.parametrize(("ours", "theirs"), [(spearman, stats.spearmanr), (kendall, stats.kendalltau),
                                              (pearson, stats.pearsonr)])  # fmt: skip
def test_values_with_ties_are_scipys(ours, theirs):
    x, y = np.random.default_rng(0).integers(0, 6, (2, 80))
    assert ours(x, y) == pytest.approx(theirs(x, y).statistic)
    assert ours(x, y) == pytest.approx(ours(y, x)) and ours(x, -y) == pytest.approx(-ours(x, y))


@pytest.mark.parametrize("function", [spearman, kendall, pearson])
def test_a_constant_side_has_no_correlation(function):
    assert math.isnan(function([1, 1, 1], [1, 2, 3])) and math.isnan(function([1], [2]))


@pytest.mark.parametrize("kind", ["spearman", "kendall", "pearson"])
def test_items_of_one_prompt_widen_the_interval(kind):
    rng = np.random.default_rng(1)
    x, y = np.repeat(rng.normal(size=(2, 30)), 6, axis=1) + 0.01 * rng.normal(size=(2, 180))
    alone = correlation_estimate(x, y, kind=kind, n_resamples=300)
    grouped = correlation_estimate(x, y, np.repeat(np.arange(30), 6), kind=kind, n_resamples=300)
    assert grouped.high - grouped.low > 1.8 * (alone.high - alone.low)
    assert grouped.value == alone.value and -1 <= grouped.low <= grouped.value <= grouped.high <= 1


def test_an_undefined_correlation_says_so_and_wrong_input_is_an_error():
    found = correlation_estimate([1, 1, 1], [1, 2, 3])
    assert math.isnan(found.value) and (found.low, found.high) == (-1, 1) and "undefined" in found.method
    with pytest.raises(ValueError, match="two scores an item"):
        correlation_estimate([1, 2], [1, 2, 3])


@pytest.mark.parametrize("kind", ["spearman", "pearson"])
def test_the_interval_is_scipys(kind):
    x, y = np.random.default_rng(2).integers(0, 9, (2, 60)) + np.arange(60) / 12
    theirs = stats.bootstrap(
        (x, y), lambda a, b: {"spearman": spearman, "pearson": pearson}[kind](a, b), paired=True, vectorized=False,
        method="percentile", n_resamples=3000, rng=1,
    ).confidence_interval  # fmt: skip
    ours = correlation_estimate(x, y, kind=kind, n_resamples=3000)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)
    assert ours.value == pytest.approx({"spearman": spearman, "pearson": pearson}[kind](x, y))


def test_a_resample_ranks_the_values_it_drew():
    values, weights = np.array([3.0, 1.0, 1.0, 2.0]), np.array([[1.0, 1, 1, 1], [2, 0, 1, 1]])
    ranks = _weighted_ranks(weights, values)
    assert ranks[0].tolist() == [4, 1.5, 1.5, 3] and ranks[1].tolist() == [3.5, 1, 1, 2]


def test_failed_scores_rank_last():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 6, 32).astype(float), rng.permutation(np.arange(32) < 12)
    failed = np.where(scores == 0, -np.inf, scores)
    assert auroc(labels, failed) == pytest.approx(roc_auc_score(labels, scores))
    np.testing.assert_allclose(best_of_n_curve(failed, labels, [1, 5]), best_of_n_curve(scores, labels, [1, 5]))


def test_best_of_n_is_the_mean_over_all_subsets_at_every_n():
    scores, labels = np.array([0.4, 2.0, 1.0, 2.0, -1.0]), np.array([True, True, False, False, True])

    def highest(members):
        top = [i for i in members if scores[i] == scores[list(members)].max()]
        return labels[top].mean()

    expected = [np.mean([highest(m) for m in combinations(range(5), n)]) for n in range(1, 6)]
    assert best_of_n_curve(scores, labels, np.arange(1, 6))[0] == pytest.approx(expected)


def test_best_of_n_of_a_perfect_and_of_a_blind_judge():
    labels, ns = np.arange(32) < 8, np.arange(1, 33)
    perfect = best_of_n_curve(labels, labels, ns)[0]
    assert perfect == pytest.approx([1 - math.comb(24, n) / math.comb(32, n) for n in ns])
    assert best_of_n_curve(np.zeros(32), labels, ns)[0] == pytest.approx(0.25)
