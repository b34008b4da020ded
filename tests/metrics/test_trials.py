"""Two arms of an experiment: tests and sizes against published values and statsmodels, bounds of several looks."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats import contingency_tables, multitest, proportion

from rmtrl.errors import UsageError
from rmtrl.metrics import binomial_estimate, combined_estimate
from rmtrl.metrics.trials import (
    critical_values,
    crossing_probabilities,
    holm,
    independent_discordance,
    inflation,
    mcnemar_z,
    paired_difference,
    paired_n,
    paired_p,
    two_proportion_n,
    two_proportion_z,
)


def newcombe(x, n, y, m):
    return combined_estimate([binomial_estimate(*own, kind="wilson") for own in ((x, n), (y, m))], (1, -1))


# two proportions


def test_z_of_two_proportions_is_the_published_one():
    z = two_proportion_z(5, 83, 12, 99)
    assert z == pytest.approx(-1.40783, abs=5e-6)
    assert 2 * stats.norm.sf(abs(z)) == pytest.approx(0.1591813, abs=5e-8)


@pytest.mark.parametrize("counts", [(5, 83, 12, 99), (56, 70, 48, 80), (0, 10, 3, 12), (7, 7, 2, 9)])
def test_z_and_newcombe_are_those_of_statsmodels(counts):
    x, n, y, m = counts
    assert two_proportion_z(*counts) == pytest.approx(proportion.proportions_ztest([x, y], [n, m])[0])
    expected = proportion.confint_proportions_2indep(x, n, y, m, compare="diff", method="newcomb")
    found = newcombe(*counts)
    assert (found.low, found.high) == pytest.approx(expected)


def test_newcombe_is_the_published_interval():
    found = newcombe(56, 70, 48, 80)
    assert (round(found.value, 4), round(found.low, 4), round(found.high, 4)) == (0.2, 0.0524, 0.3339)


def test_exchanging_the_arms_changes_the_sign_alone():
    one, other = newcombe(56, 70, 48, 80), newcombe(48, 80, 56, 70)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
    assert two_proportion_z(5, 83, 12, 99) == -two_proportion_z(12, 99, 5, 83)


def test_arms_that_are_all_alike_show_no_difference():
    assert two_proportion_z(0, 5, 0, 7) == two_proportion_z(5, 5, 7, 7) == 0


# paired


def test_mcnemar_is_the_published_one_and_that_of_statsmodels():
    assert mcnemar_z(121, 59) ** 2 == pytest.approx(21.3556, abs=5e-5)
    expected = contingency_tables.mcnemar([[101, 121], [59, 33]], exact=False, correction=False)
    assert mcnemar_z(121, 59) ** 2 == pytest.approx(expected.statistic)
    assert mcnemar_z(121, 59) == -mcnemar_z(59, 121) > 0


def test_equal_discordant_counts_show_nothing():
    assert mcnemar_z(7, 7) == mcnemar_z(0, 0) == 0


def test_paired_interval_by_hand_and_against_wald():
    found = paired_difference(150, 86, 1600)
    b, c = 150.5 / 1602, 86.5 / 1602
    half = 1.959964 * np.sqrt((b + c - (b - c) ** 2) / 1602)
    assert (found.value, found.low, found.high) == pytest.approx((0.04, b - c - half, b - c + half), abs=1e-7)
    # the approval ratings of Agresti, Categorical Data Analysis: 0.04 +- 1.96 * 0.0095 by Wald
    assert (found.low, found.high) == pytest.approx((0.0214, 0.0586), abs=5e-4)


def test_paired_interval_covers():
    rng = np.random.default_rng(0)
    cells = rng.multinomial(60, [0.5, 0.2, 0.1, 0.2], size=4000)
    found = [paired_difference(int(b), int(c), 60) for _, b, c, _ in cells]
    assert 0.935 < np.mean([one.low <= 0.1 <= one.high for one in found]) < 0.97


# sizes


def test_sizes_are_the_published_ones():
    assert two_proportion_n(0.5, 0.25, power=0.74017) == pytest.approx(50, abs=5e-4)
    assert two_proportion_n(0.5, 0.25, power=0.9) == pytest.approx(76.707, abs=5e-4)
    assert two_proportion_n(0.5, 0.05) == pytest.approx(1564.7, abs=0.05)


def test_sizes_give_the_power_of_statsmodels():
    n = two_proportion_n(0.3, 0.1, power=0.7)
    assert proportion.power_proportions_2indep(0.1, 0.3, n, alpha=0.025, alternative="larger").power == pytest.approx(
        0.7
    )


def test_paired_size_gives_its_power():
    n = int(np.ceil(paired_n(0.4, 0.1)))
    assert n == 312  # (1.959964 * 0.632456 + 0.841621 * 0.624500)^2 / 0.01 = 311.6
    cells = np.random.default_rng(0).multinomial(n, [0.25, 0.15, 0.6], size=20_000)
    z = (cells[:, 0] - cells[:, 1]) / np.sqrt(cells[:, 0] + cells[:, 1])
    assert np.mean(z > 1.959964) == pytest.approx(0.8, abs=0.012)


def test_independent_arms_are_the_safe_side_of_a_paired_size():
    assert paired_n(independent_discordance(0.5, 0.1), 0.1) > paired_n(0.3, 0.1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: two_proportion_n(0.5, 0.5),
        lambda: two_proportion_n(0.5, 0),
        lambda: two_proportion_n(0.5, 0.1, power=0.01),
        lambda: paired_n(0.05, 0.1),
        lambda: two_proportion_n(0.5, 1e-200),
        lambda: two_proportion_n(0.5, 0.1, alpha=1e-300),
        lambda: paired_n(0.4, 1e-200),
    ],
)
def test_sizes_that_do_not_exist_are_refused(call):
    with pytest.raises(UsageError, match="wanted"):
        call()


# looks


def test_bounds_are_the_published_ones():
    assert critical_values(5, kind="pocock") == pytest.approx([2.4132] * 5, abs=5e-5)
    expected = 2.0401 * np.sqrt(5 / np.arange(1, 6))
    assert critical_values(5) == pytest.approx(expected, abs=2e-4)
    assert critical_values(5)[-1] == pytest.approx(2.0401, abs=5e-5)
    assert critical_values(2, kind="pocock")[0] == pytest.approx(2.178, abs=5e-4)
    assert critical_values(1) == pytest.approx([1.959964], abs=1e-6)


@pytest.mark.parametrize("kind", ["pocock", "obrien-fleming"])
def test_looks_together_cross_as_often_as_scipy_says(kind):
    bounds = critical_values(4, kind=kind)
    k = np.arange(1, 5)
    correlation = np.sqrt(np.minimum.outer(k, k) / np.maximum.outer(k, k))
    stays = stats.multivariate_normal(cov=correlation, seed=0).cdf(bounds, lower_limit=-bounds)
    assert 1 - stays == pytest.approx(0.05, abs=1e-4)
    assert crossing_probabilities(bounds).sum() == pytest.approx(0.05, abs=1e-9)


@pytest.mark.parametrize("kind", ["pocock", "obrien-fleming"])
@pytest.mark.parametrize("power", [0.8, 0.9])
def test_the_inflated_sample_has_its_power_by_scipy(kind, power):
    drift = np.sqrt(inflation(4, kind=kind, power=power)) * (stats.norm.ppf(0.975) + stats.norm.ppf(power))
    bounds, k = critical_values(4, kind=kind), np.arange(1, 5)
    correlation = np.sqrt(np.minimum.outer(k, k) / np.maximum.outer(k, k))
    stays = stats.multivariate_normal(drift * np.sqrt(k / 4), correlation, seed=0).cdf(bounds, lower_limit=-bounds)
    assert 1 - stays == pytest.approx(power, abs=2e-4)


def test_inflation_grows_with_the_looks():
    # computed here, to hold them
    assert inflation(5, kind="pocock", power=0.9) == pytest.approx(1.207, abs=1e-3)
    assert inflation(5) == pytest.approx(1.028, abs=1e-3)
    assert 1 == inflation(1) < inflation(2) < inflation(5)


@pytest.mark.parametrize(
    "settings", [{"looks": 0}, {"looks": 21}, {"looks": 3, "kind": "haybittle"}, {"looks": 3, "alpha": 0}]
)
def test_looks_that_do_not_exist_are_refused(settings):
    with pytest.raises(UsageError, match="wanted"):
        critical_values(**settings)


# several tests, and changes of prompts that belong together


@pytest.mark.parametrize("p_values", [[0.01, 0.04, 0.03, 0.005], [1.0], [0.6, 0.6, 0.02], [1e-9, 0.5, 0.5, 0.5, 0.04]])
def test_holm_is_that_of_statsmodels(p_values):
    np.testing.assert_allclose(holm(p_values), multitest.multipletests(p_values, method="holm")[1], atol=1e-15)


def test_holm_of_no_test_is_empty():
    assert holm([]).tolist() == []


@pytest.mark.parametrize("counts", [(10, 3), (0, 6), (5, 5), (0, 0), (1, 40)])
def test_paired_changes_of_single_prompts_are_mcnemars_exact_test(counts):
    b, c = counts
    changes = [1] * b + [-1] * c + [0] * 17
    wanted = contingency_tables.mcnemar([[9, b], [c, 8]], exact=True).pvalue if b + c else 1.0
    assert paired_p(changes) == pytest.approx(wanted)


def test_changes_of_one_request_are_one_change():
    """Six requests in twelve wordings each: the smallest p that six signs can have, not that of 72."""
    changes, requests = np.ones(72), np.repeat(np.arange(6), 12)
    assert paired_p(changes, requests) == pytest.approx(2 * 0.5**6)
    assert paired_p(changes) == pytest.approx(2 * 0.5**72)


def test_a_hundred_thousand_changes_are_one_binomial():
    changes = np.repeat([1, -1], [50_400, 49_600])
    assert paired_p(changes) == pytest.approx(stats.binomtest(50_400, 100_000).pvalue, rel=1e-9)


def test_paired_p_counts_every_pattern_of_signs():
    sums = [3, -1, 2, 2]
    changes = np.concatenate([np.full(abs(s), np.sign(s)) for s in sums])
    groups = np.repeat(range(4), np.abs(sums))
    signs = np.array(np.meshgrid(*[[-1, 1]] * 4)).reshape(4, -1)
    wanted = (np.abs(np.abs(sums) @ signs) >= abs(sum(sums))).mean()
    assert paired_p(changes, groups) == pytest.approx(wanted)
