"""The whole calibration: known temperatures, domains that agree and that do not, storage, and sets of few pairs."""

import gzip
import json

import numpy as np
import pytest
from scipy.special import expit

from rmtrl.calibration.calibration import Calibration, calibrate, read_calibration, summary
from rmtrl.calibration.calibrators import temperature_estimate
from rmtrl.errors import DataError


def drawn_scores(n, temperature=2.5, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    log_odds = rng.normal(0, 1.2, n)
    margin = np.where(rng.random(n) < expit(log_odds), log_odds, -log_odds) * temperature
    middle = rng.normal(offset, 1, n)
    return middle + margin / 2, middle - margin / 2


def prompts(n, each=4):
    return [f"prompt {i // each}" for i in range(n)]


@pytest.fixture(scope="module")
def calibration():
    domains = np.random.default_rng(5).choice(["chat", "code", "maths", "safety"], 4000)
    fitted = calibrate(*drawn_scores(4000), prompts(4000), domains)
    return fitted.with_test(*drawn_scores(4000, seed=1), [f"test {p}" for p in prompts(4000)])


def test_a_model_that_is_too_sure_is_mended(calibration):
    t = calibration.temperature_estimate
    assert t.value == pytest.approx(2.5, rel=0.05) and t.low < 2.5 < t.high
    assert calibration.before["ece"].low > calibration.before["null_ece"].high
    for figures in (calibration.after, calibration.test_after):
        assert figures["ece"].value <= 0.02 and figures["ece"].value <= figures["null_ece"].high
        assert figures["nll"].value < 0.6 and figures["agreement"].n == 4000
    assert calibration.after_is == "cross-fitted"


def test_the_ranking_is_unchanged(calibration):
    chosen, rejected = drawn_scores(500, seed=2)
    wins = chosen > rejected
    assert ((calibration.calibrator.predict_proba(chosen - rejected) > 0.5) == wins).all()
    assert ((calibration.reward(chosen) > calibration.reward(rejected)) == wins).all()
    assert calibration.test_before["agreement"] == calibration.test_after["agreement"]


def test_domains_that_agree_give_no_warning(calibration):
    assert calibration.warnings == () and set(calibration.domains) == {"chat", "code", "maths", "safety"}
    found = calibration.domains.values()  # of four intervals at 95 % one may miss, without a warning
    assert sum(domain.temperature.low < 2.5 < domain.temperature.high for domain in found) >= 3
    assert all(domain.offset.low < 0 < domain.offset.high and domain.ece.low == 0 for domain in found)


def test_a_calibration_that_surely_makes_the_test_pairs_worse_says_so():
    unsure = calibrate(*drawn_scores(2000, temperature=0.4), prompts(2000))
    assert not unsure.made_worse and unsure.nll_change.high < 0 and unsure.warnings == ()
    tested = unsure.with_test(*drawn_scores(2000, temperature=2.5, seed=1), prompts(2000))
    change = tested.nll_change
    assert change.value == pytest.approx(tested.test_after["nll"].value - tested.test_before["nll"].value)
    assert tested.made_worse and change.low > 0.1 and change.n == 2000
    assert [line.partition(":")[0] for line in tested.warnings] == ["calibration made the test pairs surely worse"]
    assert str(change) in tested.warnings[0] and "surely worse" in summary(tested)["NLL change"]
    stored = tested.as_dict()
    assert stored["made_worse"] is True and stored["nll_change"]["low"] > 0.1
    again = Calibration.from_dict(json.loads(json.dumps(stored)))
    assert again.made_worse and again.as_dict() == stored
    few = unsure.with_test(*drawn_scores(60, temperature=2.5, seed=1), prompts(60))  # of 15 prompts nothing is sure
    assert few.nll_change.value > 0 and not few.made_worse and few.warnings == ()


@pytest.mark.parametrize(("model", "worse"), [("internlm2", True), ("skywork_llama3", False), ("grm_gemma", False)])
def test_what_other_pairs_do_to_a_calibration_of_public_scores(real_data, model, worse):
    easy, hard = (
        {
            row["problem"]: row["score"]
            for row in json.loads(gzip.decompress((real_data / "rewardmath" / name).read_bytes()))
        }
        for name in (f"rewardbench-math/{model}.json.gz", f"rewardmath/{model}.json.gz")
    )
    half = set(sorted(easy | hard)[::2])
    known = [(*easy[prompt], prompt) for prompt in easy if prompt in half]
    unseen = [(hard[prompt][0], wrong, prompt) for prompt in hard if prompt not in half for wrong in hard[prompt][1:]]
    fitted = calibrate(*zip(*known, strict=True)).with_test(*zip(*unseen, strict=True))
    assert fitted.made_worse is worse and fitted.nll_change.n == 2169
    assert any("made the test pairs surely worse" in line for line in fitted.warnings) is worse
    assert (fitted.nll_change.low > 0.1) is worse and (fitted.nll_change.high < 0) is not worse


def test_domains_that_disagree_are_named():
    sets = [drawn_scores(1500, 2.5, 0), drawn_scores(1500, 6.0, 1), drawn_scores(1500, 2.5, 2, offset=1.0)]
    chosen, rejected = (np.concatenate(side) for side in zip(*sets, strict=True))
    fitted = calibrate(chosen, rejected, prompts(4500), np.repeat(["chat", "code", "maths"], 1500))
    (hot,) = fitted.warnings  # another mean reward says nothing of calibration
    assert "temperature of their own" in hot and ("code 5" in hot or "code 6" in hot)
    assert fitted.domains["maths"].offset.low > 0.5
    (moved,) = fitted.rescaled(0.1).warnings
    assert "code 0.5" in moved or "code 0.6" in moved
    code = fitted.domains["code"]
    assert code.ece.low > 0 and code.temperature.low > fitted.temperature.temperature_


def test_domain_offsets_sum_to_nothing():
    chosen, rejected = drawn_scores(300)
    fitted = calibrate(chosen, rejected, prompts(300), ["a"] * 100 + ["b"] * 200)
    offsets = [fitted.domains[name].offset for name in "ab"]
    assert sum(e.value * e.n for e in offsets) == pytest.approx(0, abs=1e-9)


def test_the_interval_of_the_temperature_holds_the_truth_and_is_wider_by_prompt():
    held = 0
    for seed in range(100):
        chosen, rejected = drawn_scores(400, seed=seed)
        found = temperature_estimate(chosen - rejected, range(400))
        held += found.low < 2.5 < found.high
    assert held >= 89
    margins = np.repeat(chosen - rejected, 5)
    alone = temperature_estimate(margins, range(2000))
    grouped = temperature_estimate(margins, np.repeat(np.arange(400), 5))
    assert np.log(grouped.high / grouped.low) == pytest.approx(np.log(found.high / found.low), rel=1e-3)
    assert np.log(alone.high / alone.low) < 0.5 * np.log(found.high / found.low)


def test_the_spread_within_prompts_is_that_of_rewards_around_their_prompts_mean():
    fitted = calibrate([1.0, 5.0], [3.0, 5.0], ["a", "b"])
    assert fitted.within_prompt_std.value == pytest.approx(np.sqrt((1 + 1 + 0 + 0) / 4))


def test_votes_change_the_temperature():
    chosen, rejected = drawn_scores(1000)
    hard = calibrate(chosen, rejected, prompts(1000))
    split = calibrate(chosen, rejected, prompts(1000), labels=np.full(1000, 0.6))
    assert split.temperature.temperature_ > hard.temperature.temperature_


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_pairs_are_calibrated_with_a_warning_and_can_be_stored(n):
    fitted = calibrate(np.arange(n) + 1.0, np.arange(n), [f"p{i}" for i in range(n)], ["a"] * n)
    assert "is a bound, not a measurement: all pairs are ranked rightly" in fitted.warnings[0]
    stored = json.dumps(fitted.as_dict(), allow_nan=False)
    assert Calibration.from_dict(json.loads(stored)).as_dict() == fitted.as_dict()
    assert fitted.before["ece"].high > 0.4


@pytest.mark.parametrize("sign", [1, -1])
def test_where_no_temperature_is_measured_scores_stay_as_they_are_and_no_figure_is_shown(sign):
    rewards = sign * np.linspace(1, 3, 200)
    fitted = calibrate(rewards, np.zeros(200), prompts(200), ["a", "b"] * 100)
    fitted = fitted.with_test(rewards, np.zeros(200), prompts(200))
    assert fitted.reward.scale == 1 and not fitted.is_measured and "T = 1 is used instead" in fitted.warnings[0]
    assert fitted.after is None and fitted.test_after is None and len(fitted.warnings) == 1
    assert fitted.as_dict()["temperature_estimate"]["value"] is None
    said = summary(fitted)
    assert said["temperature"] == "not measured"
    assert all(said[name].endswith("-> not measured") for name in ("ECE", "NLL", "Brier", "overconfidence"))
    np.testing.assert_allclose(fitted.calibrator.predict_proba([0.5]), expit(0.5))


def test_constant_scores_are_calibrated_with_a_warning():
    fitted = calibrate(np.ones(20), np.ones(20), prompts(20))
    assert "no margin differs from 0" in fitted.warnings[0]
    assert fitted.calibrator.predict_proba([0.0]).item() == 0.5


def test_a_stored_calibration_is_the_same(calibration, tmp_path):
    (tmp_path / "calibration.json").write_text(json.dumps(calibration.as_dict(), allow_nan=False))
    again = read_calibration(tmp_path)
    assert again.as_dict() == calibration.as_dict() and again.as_dict()["schema"] == "rmtrl/calibration/1"
    margins = np.linspace(-5, 5, 11)
    assert (again.calibrator.predict_proba(margins) == calibration.calibrator.predict_proba(margins)).all()
    assert again.reward == calibration.reward and again.test_after == calibration.test_after


def test_a_calibration_follows_its_rewards_to_another_scale(calibration):
    moved = calibration.rescaled(0.4, -1.0)
    rewards = np.linspace(-5, 5, 11)
    np.testing.assert_allclose(moved.reward(0.4 * rewards - 1.0), calibration.reward(rewards))
    np.testing.assert_allclose(
        moved.isotonic.predict_proba(0.4 * rewards), calibration.isotonic.predict_proba(rewards)
    )
    np.testing.assert_allclose(moved.display(0, 100)(0.4 * rewards - 1), calibration.display(0, 100)(rewards))
    assert moved.exported == {"scale": 0.4, "shift": -1.0}
    again = moved.rescaled(0.5, 3.0)
    assert again.exported == {"scale": 0.2, "shift": 2.5}
    np.testing.assert_allclose(again.reward(0.2 * rewards + 2.5), calibration.reward(rewards))


def test_a_calibration_of_other_weights_is_an_error(calibration, tmp_path):
    own = {"sha256": "a", "revision": None}
    for known in (own, None):
        stored = calibration.with_data({}, known).as_dict()
        (tmp_path / "calibration.json").write_text(json.dumps(stored))
        assert read_calibration(tmp_path, model_fingerprint=own).model_fingerprint == known
    (tmp_path / "calibration.json").write_text(json.dumps(calibration.with_data({}, own).as_dict()))
    with pytest.raises(DataError, match="of another model"):
        read_calibration(tmp_path, model_fingerprint={"sha256": "b", "revision": None})


def test_the_summary_has_before_after_and_what_calibration_would_show(calibration):
    said = summary(calibration)
    assert " -> " in said["ECE"] and "0.143" not in said["agreement"].method
    assert "figures on test" in said["fitted on"] and "at this n" in said["ECE if calibrated"]


def test_scores_that_cannot_be_used_are_an_error():
    with pytest.raises(DataError, match="1 of 2 scores are not finite"):
        calibrate([1.0, np.nan], [0.0, 0.0], ["a", "b"])
    with pytest.raises(DataError, match="one each a pair"):
        calibrate([1.0], [0.0, 1.0], ["a"])
    with pytest.raises(DataError, match="at least one"):
        calibrate([], [], [])


def test_a_file_that_is_no_calibration_is_an_error(tmp_path, calibration):
    with pytest.raises(DataError, match="no calibration: .* cannot be read"):
        read_calibration(tmp_path)
    file = tmp_path / "calibration.json"
    for text, said in (("{", "no calibration"), ("[]", "no JSON object"), ('{"schema": "other"}', "schema 'other'")):
        file.write_text(text)
        with pytest.raises(DataError, match=said):
            read_calibration(file)
    stored = calibration.as_dict()
    del stored["isotonic"]
    file.write_text(json.dumps(stored))
    with pytest.raises(DataError, match="not whole"):
        read_calibration(file)
