"""Losses and calibration errors of probabilities, against other implementations, on both orders of every pair."""

import math

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.metrics import brier_score_loss, log_loss

from rmtrl.errors import DataError
from rmtrl.metrics import (
    calibration_metrics,
    nll,
    pair_wins,
    reliability_curve,
)
from rmtrl.metrics.probabilities import margin_losses


def figure(name, p, q=None, n_resamples=2):
    return calibration_metrics(np.zeros(len(p)), p, labels=q, n_resamples=n_resamples)[name]


def brier(p, q=None):
    return figure("brier", p, q).value


def overconfidence(p, q=None):
    return figure("overconfidence", p, q).value


def ece(p, q=None, name="ece"):
    return figure(name, p, q).value


def mce(p, q=None):
    return figure("mce", p, q).value


def test_losses_by_hand():
    p = [0.8, 0.5]
    assert nll(p) == pytest.approx(-(np.log(0.8) + np.log(0.5)) / 2)
    assert brier(p) == pytest.approx((0.04 + 0.25) / 2)
    assert nll(p, [0.5, 1.0]) == pytest.approx(-(0.5 * np.log(0.8) + 0.5 * np.log(0.2) + np.log(0.5)) / 2)
    assert brier(p, [0.5, 1.0]) == pytest.approx((0.5 * 0.04 + 0.5 * 0.64 + 0.25) / 2)
    assert overconfidence([0.9, 0.9, 0.1, 0.1]) == pytest.approx(0.4)


def test_losses_are_sklearns_on_both_orders():
    p = np.random.default_rng(0).random(200)
    both, labels = np.concatenate([p, 1 - p]), np.repeat([1, 0], 200)
    assert nll(p) == pytest.approx(log_loss(labels, both))
    assert brier(p) == pytest.approx(brier_score_loss(labels, both))


def test_swapping_the_two_sides_and_the_label_changes_nothing():
    rng = np.random.default_rng(1)
    p, q = rng.random(100), rng.random(100)
    for function in (nll, brier, overconfidence):
        assert function(1 - p, 1 - q) == pytest.approx(function(p, q))


def test_the_loss_of_margins_is_that_of_probabilities_and_holds_for_large_ones():
    m = np.random.default_rng(2).normal(0, 3, 50)
    assert margin_losses(m / 2, np.ones(50)).mean() == pytest.approx(nll(1 / (1 + np.exp(-m / 2))))
    assert margin_losses(np.array([-2000.0, 2000.0]), np.ones(2)).tolist() == [2000, 0]
    assert nll([0.0]) == np.inf


@pytest.mark.parametrize(
    ("p", "q", "said"),
    [([], None, "shape"), ([np.nan], None, "not finite"), ([1.5], None, "in \\[0, 1\\]"), ([0.5], [-0.1], "label"),
     ([0.5], [0.1, 0.2], "one a pair")],
)  # fmt: skip
def test_values_that_are_no_probabilities_are_an_error(p, q, said):
    with pytest.raises(DataError, match=said):
        nll(p, q)


def drawn_pairs(n, temperature, seed=0):
    """Margins of a model whose probabilities are true once divided by the temperature."""
    rng = np.random.default_rng(seed)
    log_odds = rng.normal(0, 1.2, n)
    return np.where(rng.random(n) < expit(log_odds), log_odds, -log_odds) * temperature


def both_orders(p):
    return np.concatenate([p, 1 - p]), np.repeat([1, 0], len(p))


def test_errors_by_hand():
    assert ece([0.8] * 4) == pytest.approx(0.2)
    # two bins: 0.8 is always right, 0.6 one time in two
    assert ece([0.8, 0.8, 0.6, 0.4]) == pytest.approx(0.5 * 0.2 + 0.5 * 0.1)
    assert mce([0.8, 0.8, 0.6, 0.4]) == pytest.approx(0.2)
    assert ece([0.5, 0.5]) == 0  # a tie is half right


def test_errors_are_torchmetrics_on_both_orders():
    from torchmetrics.functional.classification import binary_calibration_error

    p = expit(drawn_pairs(3000, 2.5))
    both, labels = map(torch.tensor, both_orders(p))
    for norm, function in (("l1", ece), ("max", mce)):
        theirs = float(binary_calibration_error(both, labels, n_bins=20, norm=norm))
        assert function(p) == pytest.approx(theirs, abs=1e-6)


def test_equal_mass_bins_hold_equally_many():
    p = expit(drawn_pairs(2000, 2.5))
    curve = reliability_curve(p, equal_mass=True)
    assert set(curve.count) == {200}
    edges = np.quantile(np.maximum(p, 1 - p), np.linspace(0, 1, 11))[1:-1]
    bins = np.searchsorted(edges, np.maximum(p, 1 - p))
    gaps = [abs((p[bins == b] > 0.5).mean() - np.maximum(p, 1 - p)[bins == b].mean()) / 10 for b in range(10)]
    assert ece(p, name="ece_equal_mass") == pytest.approx(sum(gaps))


def test_one_order_alone_would_call_a_calibrated_model_wrong():
    p = expit(drawn_pairs(20_000, 1.0))
    bins = np.digitize(p, np.linspace(0, 1, 21))
    one_order = sum((bins == b).mean() * abs(1 - p[bins == b].mean()) for b in np.unique(bins))
    assert one_order > 0.33 and ece(p) < 0.02


def test_swapping_sides_changes_nothing_and_a_probability_of_one_half_no_bin():
    p = np.append(expit(drawn_pairs(500, 2.5)), 0.5)
    q = np.random.default_rng(0).random(501)
    for function in (ece, mce):
        assert function(1 - p, 1 - q) == pytest.approx(function(p, q))


def test_a_calibrated_model_shows_what_the_null_says():
    null = figure("null_ece", expit(drawn_pairs(500, 1.0)), n_resamples=1000)
    assert null.value == pytest.approx(0.046, abs=0.002)
    measured = [ece(expit(drawn_pairs(500, 1.0, seed))) for seed in range(200)]
    assert np.mean(measured) == pytest.approx(null.value, abs=0.003)
    assert np.mean([null.low <= value <= null.high for value in measured]) > 0.9


def test_the_interval_holds_the_true_error_with_and_without_one():
    for temperature in (1.0, 2.5):
        truth = ece(expit(drawn_pairs(400_000, temperature, 99)))
        found = [
            calibration_metrics(drawn_pairs(500, temperature, seed), n_resamples=200)["ece"] for seed in range(60)
        ]
        assert sum(e.low <= truth <= e.high for e in found) >= 51
        assert all(e.low <= e.value <= e.high for e in found)


def test_figures_of_a_model_that_is_too_sure_by_a_factor_of_two_and_a_half():
    m = drawn_pairs(4000, 2.5)
    raw, true = calibration_metrics(m), calibration_metrics(m, expit(m / 2.5))
    assert raw["nll"].value == pytest.approx(0.6996, abs=5e-4)
    assert raw["ece"].value == pytest.approx(0.143, abs=5e-4)
    assert raw["brier"].value == pytest.approx(0.2174, abs=5e-4)
    assert raw["ece"].low > raw["null_ece"].high and true["ece"].low == 0
    assert raw["overconfidence"].low > 0 and true["overconfidence"].low < 0 < true["overconfidence"].high
    assert raw["agreement"] == true["agreement"]


def test_pairs_of_one_prompt_widen_every_interval():
    m = np.repeat(drawn_pairs(200, 2.5), 5)
    alone, grouped = calibration_metrics(m), calibration_metrics(m, None, np.repeat(np.arange(200), 5))
    for name in ("agreement", "nll", "brier", "ece", "overconfidence"):
        assert grouped[name].high - grouped[name].low > 1.3 * (alone[name].high - alone[name].low), name


def test_all_right_with_no_doubt_has_an_interval_of_some_width():
    found = calibration_metrics(np.full(20, 900.0))
    assert found["ece"].value == 0 and found["ece"].high == pytest.approx(1 - 0.05 ** (1 / 20))
    assert found["nll"].value == 0 and found["agreement"].low < 0.9


def test_tied_votes_do_not_count_for_agreement_but_for_calibration():
    found = calibration_metrics([1.0, 1.0, -1.0], labels=[1.0, 0.5, 0.75])
    assert found["agreement"].value == pytest.approx((1 + 0.25) / 2) and found["agreement"].n == 2
    assert found["nll"].n == 3


def test_with_labels_of_one_the_agreement_is_the_pairwise_accuracy():
    m = np.array([1.0, 0.0, -2.0, 0.5])
    found = calibration_metrics(m)
    assert found["agreement"].value == pair_wins(m, np.zeros(4)).mean() and "accuracy" not in found


def test_the_curve_mirrors_about_one_half_and_its_intervals_hold_the_diagonal():
    m = drawn_pairs(4000, 1.0)
    curve = reliability_curve(expit(m))
    np.testing.assert_allclose(curve.probability + curve.probability[::-1], 1)
    np.testing.assert_allclose(curve.low + curve.high[::-1], 1)
    inside = (curve.low <= curve.probability) & (curve.probability <= curve.high)
    assert inside.mean() >= 0.8 and curve.count.sum() == 2 * 4000
    raw = reliability_curve(expit(3 * m))
    assert not ((raw.low <= raw.probability) & (raw.probability <= raw.high)).all()


def test_margins_that_are_no_numbers_are_an_error():
    with pytest.raises(DataError, match="1 of 2 margins are not finite"):
        calibration_metrics([1.0, math.nan])
    with pytest.raises(DataError, match="one a pair"):
        calibration_metrics([1.0], [0.5, 0.5])
    assert overconfidence([0.5]) == 0
