"""Both calibrators on margins whose true temperature is known, and on sets too small to tell."""

import json

import numpy as np
import pytest
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from rmtrl.calibration.calibrators import (
    IsotonicCalibrator,
    TemperatureCalibrator,
    calibrator_from_dict,
    select_calibrator,
)
from rmtrl.errors import DataError
from rmtrl.metrics import calibration_metrics, nll

KINDS = [TemperatureCalibrator, IsotonicCalibrator]
GRID = np.linspace(-40, 40, 20_001)


def ece(p):
    return calibration_metrics(np.zeros(len(p)), p, n_resamples=2)["ece"].value


def drawn_pairs(n, temperature=2.5, seed=0):
    rng = np.random.default_rng(seed)
    log_odds = rng.normal(0, 1.2, n)
    return np.where(rng.random(n) < expit(log_odds), log_odds, -log_odds) * temperature


def test_the_true_temperature_is_found():
    m = drawn_pairs(4000)
    fitted = TemperatureCalibrator().fit(m)
    assert fitted.temperature_ == pytest.approx(2.5, rel=0.05) and not fitted.at_bound_
    assert ece(fitted.predict_proba(m)) <= 0.02
    assert nll(fitted.predict_proba(m)) == pytest.approx(0.5714, abs=5e-4)


def test_the_temperature_is_that_of_a_logistic_regression_without_intercept():
    m = drawn_pairs(1000)
    both, labels = np.concatenate([m, -m])[:, None], np.repeat([1, 0], 1000)
    theirs = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(both, labels)
    assert TemperatureCalibrator().fit(m).temperature_ == pytest.approx(1 / theirs.coef_.item(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_votes_are_repeated_pairs(kind):
    m, votes = drawn_pairs(300), np.random.default_rng(1).integers(0, 4, 300)
    as_votes = kind().fit(np.repeat(m, 3), np.repeat(votes / 3, 3))
    as_pairs = kind().fit(np.concatenate([np.repeat(m, votes), np.repeat(-m, 3 - votes)]))
    assert as_votes.temperature_ == pytest.approx(as_pairs.temperature_, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_mirror_and_rise_with_the_margin(kind):
    fitted = kind().fit(drawn_pairs(4000))
    p = fitted.predict_proba(GRID)
    assert np.abs(p + fitted.predict_proba(-GRID) - 1).max() < 1e-12
    assert (np.diff(p) > 0).all() and fitted.predict_proba([0.0]).item() == 0.5
    assert p.min() > 0 and p.max() < 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_unit_of_the_margins_does_not_matter(kind):
    m = drawn_pairs(500)
    one, other = kind().fit(m), kind().fit(1000 * m)
    np.testing.assert_allclose(one.predict_proba(m), other.predict_proba(1000 * m), rtol=1e-5)
    np.testing.assert_allclose(one.rescaled(1000).predict_proba(1000 * m), one.predict_proba(m), rtol=1e-12)


def test_the_curve_goes_through_the_steps_of_sklearns():
    m = drawn_pairs(4000)
    fitted = IsotonicCalibrator().fit(m)
    both = np.concatenate([m, -m])
    theirs = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(both, np.repeat([1, 0], 4000))
    inner = fitted.margins_[1:-1]
    np.testing.assert_allclose(theirs.predict(inner), fitted.probabilities_[1:-1], atol=1e-9)


def test_the_ends_of_the_curve_know_how_few_pairs_there_were():
    fitted = IsotonicCalibrator().fit([1.0, 2.0, 3.0])
    assert fitted.probabilities_.max() == pytest.approx(1 - 1 / 5) and fitted.range_ == 3


def test_in_sample_a_curve_looks_better_than_it_is():
    m = drawn_pairs(500)
    in_sample = IsotonicCalibrator().fit(m).predict_proba(m)
    fresh = IsotonicCalibrator().fit(m).predict_proba(drawn_pairs(20_000, seed=1))
    assert nll(in_sample) < nll(TemperatureCalibrator().fit(m).predict_proba(m))
    assert nll(fresh) > nll(TemperatureCalibrator().fit(m).predict_proba(drawn_pairs(20_000, seed=1)))


def test_in_sample_the_calibration_error_of_a_curve_says_nothing():
    inside, outside = [], []
    for seed in range(10):
        m = drawn_pairs(2000, seed=seed)
        fitted = IsotonicCalibrator().fit(m)
        inside.append(ece(fitted.predict_proba(m)))
        outside.append(ece(fitted.predict_proba(drawn_pairs(2000, seed=100 + seed))))
    assert np.mean(inside) < 0.6 * np.mean(outside)
    assert np.mean(inside) < np.mean([ece(expit(drawn_pairs(2000, 1.0, seed))) for seed in range(10)])


def test_the_choice_is_made_on_prompts_that_were_not_fitted():
    m = drawn_pairs(4000)
    groups = np.repeat(np.arange(1000), 4)
    chosen = select_calibrator(m, groups)
    assert chosen.kind == "temperature" and "least cross-fitted NLL" in chosen.reason and chosen.cross_fitted
    assert chosen.nll["temperature"] == pytest.approx(nll(chosen.probabilities))
    assert chosen.nll["isotonic"] > nll(IsotonicCalibrator().fit(m).predict_proba(m))
    # what every pair of a prompt gets comes from fits without it
    one = select_calibrator(np.where(groups == 7, 100.0, m), groups)
    fold = np.flatnonzero(groups == 7)
    np.testing.assert_allclose(
        one.probabilities[fold], expit(100 / (m / np.log(chosen.probabilities / (1 - chosen.probabilities)))[fold])
    )


def test_a_curve_is_chosen_where_no_temperature_fits():
    rng = np.random.default_rng(0)
    size = rng.uniform(0, 10, 4000)
    right = rng.random(4000) < np.where(size < 5, 0.55, 0.95)
    assert select_calibrator(np.where(right, size, -size)).kind == "isotonic"


def test_few_pairs_take_the_temperature_and_say_so():
    chosen = select_calibrator(drawn_pairs(999))
    assert chosen.kind == "temperature" and "fewer than 1,000" in chosen.reason and chosen.cross_fitted
    alone = select_calibrator([1.0, 2.0, -1.0], ["a", "a", "a"])
    assert not alone.cross_fitted and "in-sample" in alone.reason


@pytest.mark.parametrize(
    "margins", [np.linspace(0.1, 5, 200), [3.0], [-1.0, -5.0], [0.01] * 50 + [-0.01] * 10 + [5.0, -5.0]]
)
def test_a_curve_rises_over_the_margins_seen_and_beyond_whatever_its_temperature(margins):
    fitted = IsotonicCalibrator().fit(margins)
    within = np.linspace(-1.5, 1.5, 301) * fitted.range_
    assert (np.diff(fitted.predict_proba(within)) > 0).all()


@pytest.mark.parametrize("margins", [[3.0, 1.0], [-3.0, -1.0], [0.0, 0.0]])
def test_a_temperature_at_its_bound_is_not_used(margins):
    fitted = TemperatureCalibrator().fit(margins)
    assert fitted.at_bound_ and fitted.scale_ == 1
    np.testing.assert_allclose(fitted.predict_proba([2.0, -1.0]), expit([2.0, -1.0]))
    chosen = select_calibrator(np.resize(margins, 2000))
    assert chosen.kind == "temperature" and "could be measured" in chosen.reason and not chosen.cross_fitted


@pytest.mark.parametrize("n", [1, 2, 5])
def test_perfect_accuracy_gives_the_stated_bound(n):
    fitted = TemperatureCalibrator().fit(np.full(n, 3.0))
    assert fitted.at_bound_ and fitted.temperature_ == fitted.bounds_[0] == pytest.approx(3 / 50)
    p = IsotonicCalibrator().fit(np.full(n, 3.0)).predict_proba([3.0, -3.0])
    assert p.sum() == pytest.approx(1) and p[0] == pytest.approx(0.9 * (1 - 1 / (n + 2)) + 0.1)


def test_a_model_that_is_always_wrong_gives_the_other_bound():
    fitted = TemperatureCalibrator().fit([-3.0, -2.0])
    assert fitted.at_bound_ and fitted.temperature_ == fitted.bounds_[1]


def test_constant_margins_leave_a_temperature_that_gives_their_accuracy():
    fitted = TemperatureCalibrator().fit([2.0] * 4 + [-2.0])
    assert fitted.predict_proba([2.0]).item() == pytest.approx(0.8)
    equal = TemperatureCalibrator().fit(np.zeros(10))
    assert equal.temperature_ == 1 and equal.at_bound_
    assert IsotonicCalibrator().fit(np.zeros(10)).predict_proba([0.0]).item() == 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_margins_and_labels_that_cannot_be_used_are_an_error(kind):
    for margins, labels, said in (
        ([1.0, np.nan], None, "1 of 2 margins are not finite"), ([], None, "at least one"), ([1.0], [2.0], "label"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=said):
            kind().fit(margins, labels)
    with pytest.raises(DataError, match="not finite"):
        kind().fit([1.0]).predict_proba([np.inf])


@pytest.mark.parametrize("kind", KINDS)
def test_a_stored_calibrator_is_the_same_calibrator(kind):
    fitted = kind().fit(drawn_pairs(200))
    stored = json.loads(json.dumps(fitted.as_dict()))
    again = calibrator_from_dict(stored)
    assert type(again) is kind and again.as_dict() == fitted.as_dict()
    assert (again.predict_proba(GRID) == fitted.predict_proba(GRID)).all()
    with pytest.raises(DataError, match="kind 'platt'"):
        calibrator_from_dict({"kind": "platt"})


def test_the_folds_are_those_of_scikit_learn():
    groups = np.random.default_rng(0).permutation(np.repeat(np.arange(30), np.arange(1, 31)))
    m, theirs = drawn_pairs(len(groups)), np.empty(len(groups))
    for fit, held_out in GroupKFold(5).split(m, groups=groups):
        theirs[held_out] = TemperatureCalibrator().fit(m[fit]).predict_proba(m[held_out])
    assert (select_calibrator(m, groups).probabilities == theirs).all()
