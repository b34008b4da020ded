"""Pairs, correlations, AUC and best of n: a value by hand, one of another implementation, a property, a failure."""

import gzip
import json
import math
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from rmtrl.errors import DataError, UsageError
from rmtrl.metrics import (
    best_of_n_curve,
    correlation_estimate,
    kendall,
    mean_estimate,
    mean_estimates,
    pair_wins,
    pearson,
    reweighted_estimate,
    spearman,
    step_rewards,
    worst_group_accuracy,
)
from rmtrl.metrics.ranks import _weighted_ranks


def test_accuracy_by_hand():
    assert round(pair_wins([2.1, 0.8, 1.9], [0.4, 1.0, 1.2]).mean(), 4) == 0.6667
    assert pair_wins([1, 1, 0], [0, 1, 1]).tolist() == [1.0, 0.5, 0.0]


def test_accuracy_of_the_swapped_pairs_is_the_complement():
    a, b = np.random.default_rng(0).integers(0, 4, (2, 200))
    assert (pair_wins(a, b) + pair_wins(b, a) == 1).all()


def test_spearman_is_scipys_and_undefined_for_constants():
    x, y = np.random.default_rng(1).normal(size=(2, 50))
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3])) and math.isnan(spearman([1], [2]))


def test_interval_is_that_of_the_normal_approximation_on_many_independent_values():
    values = np.random.default_rng(2).random(4000) < 0.7
    estimate = mean_estimate(values)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.002)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.002)


def test_pairs_of_one_prompt_widen_the_interval():
    values = np.repeat(np.random.default_rng(3).random(50) < 0.6, 8)
    alone, grouped = mean_estimate(values), mean_estimate(values, np.repeat(np.arange(50), 8))
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)
    assert alone.value == grouped.value and alone.n == grouped.n == 400


def test_all_right_has_an_exact_interval_and_equal_margins_have_none():
    perfect = mean_estimate(np.ones(20))
    assert perfect.high == 1.0 and perfect.low == pytest.approx(stats.binomtest(20, 20).proportion_ci().low)
    assert mean_estimate(np.zeros(20), proportion=False).high == 0.0


def test_no_values_is_an_error():
    with pytest.raises(ValueError, match="no values"):
        mean_estimate([])


def test_reweighting_by_hand_and_to_its_own_mix():
    values, strata = [1, 1, 0, 0], ["a", "a", "a", "b"]
    assert reweighted_estimate(values, strata, {"a": 1, "b": 1}).value == pytest.approx((2 / 3 + 0) / 2)
    assert reweighted_estimate(values, strata, {"a": 3, "b": 1}).value == pytest.approx(0.5)
    assert reweighted_estimate(values, strata, {"a": 1}).n == 3


def test_the_reweighted_interval_is_that_of_scipy_for_one_stratum():
    values = np.random.default_rng(0).integers(0, 2, 200).astype(float)
    ours = reweighted_estimate(values, ["a"] * 200, {"a": 2.0}, n_resamples=4000)
    theirs = mean_estimate(values, n_resamples=4000)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_the_reweighted_interval_resamples_whole_prompts():
    rng = np.random.default_rng(1)
    prompts = np.repeat(np.arange(50), 4)
    values = np.repeat(rng.integers(0, 2, 50), 4).astype(float)
    by_prompt = reweighted_estimate(values, ["a"] * 200, {"a": 1}, prompts)
    by_row = reweighted_estimate(values, ["a"] * 200, {"a": 1})
    assert by_prompt.high - by_prompt.low > 1.6 * (by_row.high - by_row.low)


@pytest.mark.parametrize("target", [{}, {"a": 0.0}, {"a": -1.0}, {"a": 1, "c": 1}])
def test_a_target_mix_that_cannot_be_used_is_an_error(target):
    with pytest.raises(ValueError, match="wanted weights|no pair is of c"):
        reweighted_estimate([1, 0], ["a", "b"], target)


def test_domain_accuracy_by_hand():
    found = mean_estimates([1, 0, 1, 0.5], ["maths", "maths", "chat", "chat"])
    assert {name: e.value for name, e in found.items()} == {"chat": 0.75, "maths": 0.5}
    assert [e.n for e in found.values()] == [2, 2]


def test_the_worst_of_one_domain_is_that_domain():
    wins = np.random.default_rng(0).integers(0, 2, 100)
    name, worst = worst_group_accuracy(wins, ["a"] * 100)
    plain = mean_estimate(wins, n_resamples=10_000)
    assert name == "a" and (worst.low, worst.high) == pytest.approx((plain.low, plain.high))


def test_the_interval_of_the_worst_domain_holds_the_lowest_true_accuracy():
    rng = np.random.default_rng(0)
    domains = np.repeat([f"d{i}" for i in range(10)], 60)
    truth, held, value = 0.7, 0, []
    for _ in range(40):
        _, worst = worst_group_accuracy(rng.random(600) < truth, domains)
        held += worst.low <= truth <= worst.high
        value.append(worst.value)
    assert held >= 38
    assert np.mean(value) < 0.64  # the smallest of ten is far below what each truly is


def test_a_domain_of_one_pair_widens_the_interval_of_the_worst():
    wins, domains = [1] * 50 + [0], ["a"] * 50 + ["b"]
    name, worst = worst_group_accuracy(wins, domains)
    assert name == "b" and worst.value == 0 and worst.high > 0.95


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


def test_steps_become_a_reward_by_minimum_product_or_last():
    steps = [[0.9, 0.5, 0.8], [0.7]]
    assert step_rewards(steps, "min").tolist() == [0.5, 0.7]
    assert step_rewards(steps, "product") == pytest.approx([0.36, 0.7])
    assert step_rewards(steps, "last").tolist() == [0.8, 0.7]
    assert np.isnan(step_rewards([[0.1, float("nan"), 0.2], [None, 0.4]], "last")).all()
    with pytest.raises(DataError, match="answer 1 has .* as its steps"):
        step_rewards([[0.1], []], "min")
    with pytest.raises(UsageError, match="wanted min, product, last"):
        step_rewards(steps, "mean")


AGGREGATIONS = {"min": (74, 371, min), "product": (83, 422, math.prod), "last": (88, 294, lambda own: own[-1])}


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_stored_step_scores_of_math_shepherd_rank_answers_by_each_aggregation(aggregation, real_data):
    best, pairs, plain = AGGREGATIONS[aggregation]

    def rows(name):
        with gzip.open(real_data / "rewardmath" / name / "Math_Shepherd.json.gz") as file:
            return json.load(file)

    tens = [row["score"] for row in rows("rewardmath")]  # the right answer first, nine wrong ones after it
    rewards = [step_rewards(own, aggregation) for own in tens]
    assert rewards[0].tolist() == pytest.approx([plain(steps) for steps in tens[0]], rel=1e-12)
    assert (sum(own[0] > own[1:].max() for own in rewards), len(rewards)) == (best, 483)
    sides = {"chosen": [], "rejected": []}
    for row in rows("rewardbench-math"):
        sides[row["solution_type"]].append(row["output"]["step_scores"])
    chosen, rejected = (step_rewards(own, aggregation) for own in sides.values())
    assert (int((chosen > rejected).sum()), len(chosen)) == (pairs, 447)
