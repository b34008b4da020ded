"""The readiness gate: the worked examples, what counts as evidence, and thresholds that cannot be used."""

import dataclasses
import json
import math

import pytest

from rmtrl.errors import DataError, UsageError
from rmtrl.evaluation.evidence import NAMES, Evidence, Figure, Finding, collect
from rmtrl.evaluation.gate import Thresholds, default_thresholds, judge
from rmtrl.metrics import mean_estimate
from rmtrl.types import Estimate, json_ready

N = 200


def accuracy(value, n=N, **conditions):
    return {"value": value, "n": n, **conditions}


def figure(value, n=N, half=0.02):
    return {"value": value, "low": value - half, "high": value + half, "n": n}


READY = {
    "schema": "rmtrl/evidence/1",
    "overlap": figure(0, half=0),
    "test_accuracy": accuracy(0.85),
    "length_matched_accuracy": accuracy(0.82),
    "fresh_accuracy": accuracy(0.81, reviewed_by="human"),
    "ece": figure(0.03),
    "nll_gain": figure(0.02),
    "gamma": figure(0.4) | {"convention": "gold", "n_max": 1024},
    "spillover_accuracy": accuracy(0.75),
    "length_audit": {"passed": True, "said": "acquitted"},
    "lineage": {"passed": True, "said": "same"},
}


def thresholds(checks, **more):
    return Thresholds.from_yaml(json.dumps({"schema": "rmtrl/thresholds/1", "checks": checks, **more}))


STOPS = {name for name, check in default_thresholds().checks.items() if check.otherwise == "stop"}


def failed(decision):
    return [reason.check for reason in decision.reasons if not reason.passed]


def test_a_good_static_figure_does_not_make_up_for_a_poor_fresh_one():
    evidence = Evidence.from_dict(
        {"schema": "rmtrl/evidence/1", "test_accuracy": accuracy(0.92),
         "fresh_accuracy": accuracy(0.64, reviewed_by="human")}
    )  # fmt: skip
    decision = judge(evidence, thresholds({"test_accuracy": {"minimum": 0.8}, "fresh_accuracy": {"minimum": 0.8}}))
    assert not decision.ready and failed(decision) == ["fresh_accuracy"]
    assert decision.reasons[1].line == (
        "NO       accuracy on the policy's own answers, judged by people: 0.640 [0.571, 0.703] (n = 200) (reviewed by "
        "human); wanted at least 0.8"
    )


def test_an_overlap_free_split_and_a_good_matched_figure_do_not_either():
    evidence = Evidence.from_dict(
        {"schema": "rmtrl/evidence/1", "overlap": figure(0, half=0), "length_matched_accuracy": accuracy(0.84),
         "fresh_accuracy": accuracy(0.78, reviewed_by="human")}
    )  # fmt: skip
    checks = {
        "overlap": {"maximum": 0}, "length_matched_accuracy": {"minimum": 0.8}, "fresh_accuracy": {"minimum": 0.8}
    }  # fmt: skip
    decision = judge(evidence, thresholds(checks))
    assert not decision.ready and failed(decision) == ["fresh_accuracy"]


def test_all_evidence_in_order_is_ready():
    decision = judge(Evidence.from_dict(READY))
    assert decision.ready and failed(decision) == [] and decision.not_asked == ()


def test_what_foretold_a_policy_stops_and_the_rest_warns():
    assert {"overlap", "fresh_accuracy", "gamma", "length_audit"} == STOPS


@pytest.mark.parametrize("name", sorted(NAMES))
def test_no_evidence_is_not_ready_where_the_check_stops(name):
    decision = judge(Evidence.from_dict({key: item for key, item in READY.items() if key != name}))
    assert decision.ready == (name not in STOPS) and failed(decision) == [name]
    assert "no evidence" in next(reason.got for reason in decision.reasons if reason.check == name)


@pytest.mark.parametrize(
    ("name", "item"),
    [
        ("overlap", figure(3, half=0)),
        ("test_accuracy", accuracy(0.79)),
        ("ece", figure(0.06)),
        ("nll_gain", figure(-0.02)),
        ("gamma", figure(0.9)),
        ("spillover_accuracy", accuracy(0.6)),
        ("length_audit", {"passed": False, "said": "convicted"}),
        ("length_audit", {"passed": None, "said": "not enough evidence"}),
    ],
)
def test_one_failed_check_is_not_ready_where_it_stops_and_else_a_warning(name, item):
    decision = judge(Evidence.from_dict(READY | {name: item}))
    assert decision.ready == (name not in STOPS) and failed(decision) == [name]
    (reason,) = [reason for reason in decision.reasons if not reason.passed]
    assert reason.line.startswith("warning") == (name not in STOPS)


def test_another_lineage_warns():
    decision = judge(Evidence.from_dict(READY | {"lineage": {"passed": False, "said": "differ"}}))
    assert decision.ready and failed(decision) == ["lineage"]
    assert decision.reasons[-1].line.startswith("warning  common origin with the policy: differ")


@pytest.mark.parametrize("conditions", [{"reviewed_by": "model"}, {}])
def test_a_fresh_figure_that_no_human_reviewed_is_no_evidence_whatever_the_thresholds_say(conditions):
    evidence = Evidence.from_dict(READY | {"fresh_accuracy": accuracy(0.99, **conditions)})
    for wanted in (None, thresholds({"fresh_accuracy": {"minimum": 0.5, "where": {"reviewed_by": "model"}}})):
        decision = judge(evidence, wanted)
        assert not decision.ready
        (reason,) = [reason for reason in decision.reasons if not reason.passed]
        assert reason.check == "fresh_accuracy" and reason.got.startswith("no evidence: reviewed by ")


def test_too_few_pairs_are_no_evidence():
    decision = judge(Evidence.from_dict(READY | {"fresh_accuracy": accuracy(0.99, n=99, reviewed_by="human")}))
    assert failed(decision) == ["fresh_accuracy"]
    assert "no evidence: too few: n = 99, wanted 100 or more" in decision.reasons[3].got


def test_gamma_of_another_convention_is_no_evidence_where_one_is_asked_for():
    wanted = thresholds({"gamma": {"maximum": 0.7, "where": {"convention": "gold", "n_max": 1024}}})
    evidence = Evidence.from_dict(READY)
    assert judge(evidence, wanted).ready
    other = dataclasses.replace(
        evidence, gamma=Figure(evidence.gamma.estimate, "", {"convention": "gold", "n_max": 64})
    )
    assert not judge(other, wanted).ready and "best of up to 64, wanted 1024" in judge(other, wanted).reasons[0].got


def test_the_unfavourable_end_counts_where_it_is_asked_for():
    evidence = Evidence.from_dict(READY)
    assert failed(judge(evidence, thresholds({"test_accuracy": {"minimum": 0.8}}, compare="interval")))
    assert not failed(judge(evidence, thresholds({"test_accuracy": {"minimum": 0.79}}, compare="interval")))
    mixed = {"ece": {"maximum": 0.04, "compare": "interval"}, "test_accuracy": {"minimum": 0.85}}
    assert failed(judge(evidence, thresholds(mixed))) == ["ece"]  # 0.03 + 0.02


def test_the_threshold_itself_passes_and_an_unknown_end_does_not():
    assert judge(Evidence(ece=Figure(Estimate(0.05, 0, math.nan, 9))), thresholds({"ece": {"maximum": 0.05}})).ready
    wanted = thresholds({"ece": {"maximum": 0.05}}, compare="interval")
    decision = judge(Evidence(ece=Figure(Estimate(0.01, 0, math.nan, 9))), wanted)
    assert not decision.ready and decision.reasons[0].high is None
    json.dumps(json_ready(decision), allow_nan=False)


def test_what_is_not_asked_is_named():
    assert judge(Evidence.from_dict(READY), thresholds({"ece": {"maximum": 0.1}})).not_asked == tuple(
        sorted(NAMES - {"ece"})
    )


def test_the_default_asks_for_everything():
    assert set(default_thresholds().checks) == NAMES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not YAML"),
        ("[1]", "schema"),
        ("{schema: rmtrl/thresholds/1}", "no checks"),
        ("{schema: rmtrl/thresholds/1, checks: {}}", "no checks"),
        ("{schema: rmtrl/thresholds/1, compare: both, checks: {ece: {maximum: 1}}}", "compare"),
        ("{schema: rmtrl/thresholds/1, check: {}, checks: {ece: {maximum: 1}}}", "check"),
        ("{schema: rmtrl/thresholds/1, checks: {mood: {minimum: 1}}}", "mood"),
        ("{schema: rmtrl/thresholds/1, checks: {ece: {max: 1}}}", "knows"),
        ("{schema: rmtrl/thresholds/1, checks: {ece: {}}}", "wanted a minimum"),
        ("{schema: rmtrl/thresholds/1, checks: {ece: {maximum: low}}}", "wanted a minimum"),
        ("{schema: rmtrl/thresholds/1, checks: {ece: {maximum: 1, otherwise: shrug}}}", "stop or warn"),
        ("{schema: rmtrl/thresholds/1, checks: {ece: {maximum: .inf}}}", "finite"),
        ("{schema: rmtrl/thresholds/1, checks: {test_accuracy: {minimum: .nan}}}", "finite"),
        ("{schema: rmtrl/thresholds/1, checks: {test_accuracy: {minimum: true}}}", "finite"),
        ("{schema: rmtrl/thresholds/1, checks: {ece: {minimum: 0.9, maximum: 0.1}}}", "finite"),
        ("{schema: rmtrl/thresholds/1, checks: {ece: {maximum: 1, n: true}}}", "n a count above 0"),
        ("{schema: rmtrl/thresholds/1, checks: {ece: {maximum: 1, n: -5}}}", "n a count above 0"),
        ("{schema: rmtrl/thresholds/1, checks: {ece: {maximum: 1, n: 0}}}", "n a count above 0"),
        ("{schema: rmtrl/thresholds/1, 7: {}, checks: {ece: {maximum: 1}}}", "have 7"),
        ("{schema: rmtrl/thresholds/1, checks: {lineage: {passed: false}}}", "passed: true"),
    ],
)
def test_thresholds_that_cannot_be_used_are_refused(text, message):
    with pytest.raises(UsageError, match=message):
        Thresholds.from_yaml(text)


# evidence


def test_evidence_comes_back_from_json():
    evidence = Evidence.from_dict(READY)
    assert Evidence.from_dict(json.loads(json.dumps(evidence.as_dict(), allow_nan=False))) == evidence
    assert evidence.gamma.conditions == {"convention": "gold", "n_max": 1024}
    assert evidence.length_audit == Finding(True, "acquitted")


def test_an_accuracy_without_interval_gets_wilsons():
    estimate = Evidence.from_dict(READY | {"test_accuracy": accuracy(81 / 263, n=263)}).test_accuracy.estimate
    assert (round(estimate.low, 3), round(estimate.high, 3)) == (0.255, 0.366)  # Wilson 1927's example


@pytest.mark.parametrize(
    ("name", "item", "message"),
    [
        ("test_accuracy", 0.9, "wanted"),
        ("test_accuracy", {"value": 0.9}, "count above 0"),
        ("test_accuracy", {"value": 0.9, "n": 0}, "count above 0"),
        ("test_accuracy", {"value": math.nan, "n": 5}, "a number"),
        ("test_accuracy", {"value": 92, "n": 5}, "from 0 to 1"),
        ("gamma", figure(-3), "0 or more"),
        ("ece", figure(-1), "from 0 to 1"),
        ("ece", figure(1.5), "from 0 to 1"),
        ("overlap", figure(-2, half=0), "0 or more"),
        ("test_accuracy", accuracy(0.9, low=-0.5, high=0.95), "wanted 0 to 1"),
        ("fresh_accuracy", accuracy(0.9, low=0.8, high=7), "wanted 0 to 1"),
        ("nll_gain", {"value": 10**400, "low": 0, "high": 1, "n": 5}, "a number"),
        ("nll_gain", {"value": 0, "low": -(10**400), "high": 1, "n": 5}, "no interval"),
        ("nll_gain", figure(0.1) | {"level": "x"}, "level 'x'"),
        ("nll_gain", figure(0.1) | {"level": None}, "level None"),
        ("nll_gain", figure(0.1) | {"level": 95}, "level 95"),
        ("ece", {"value": 0.1, "n": 5}, "no interval"),
        ("ece", {"value": 0.1, "low": 0.2, "high": 0.3, "n": 5}, "outside its interval"),
        ("length_audit", "fine", "passed"),
        ("lineage", {"said": "fine", "passed": "yes"}, "passed"),
        ("mood", {}, "does not know mood"),
    ],
)
def test_evidence_that_is_not_whole_is_refused(name, item, message):
    with pytest.raises(DataError, match=message):
        Evidence.from_dict(READY | {name: item})


def test_files_of_a_run_are_read_as_they_are():
    estimate = json_ready(mean_estimate([1, 0, 1, 1] * 50))
    found = collect(
        {
            "metrics.json": {"validation": {}, "test": {"accuracy": estimate}, "spillover": {"accuracy": estimate}},
            "rmtrl.json": {"schema": "rmtrl/reward-model/1", "splits": {"test": {"pairs": 9}}, "data": {"groups": 70}},
            "calibration.json": {"after_is": "cross-fitted", "nll_change": figure(-0.1, half=0.04),
                                 "after": {"ece": figure(0.04), "null_ece": figure(0.051)}},
            "fresh.json": {"accuracy": estimate, "reviewed_by": "human"},
        }
    )  # fmt: skip
    assert json_ready(found.test_accuracy.estimate) == estimate and found.spillover_accuracy.source == "metrics.json"
    assert found.overlap.estimate == Estimate(0.0, 0.0, 0.0, 70, method="counted")
    assert found.ece.source == "calibration.json, cross-fitted; names no model" and found.ece.conditions == {
        "null_ece": 0.051
    }
    gain = found.nll_gain.estimate
    assert (gain.value, gain.low, gain.high) == pytest.approx((0.1, 0.06, 0.14))
    assert found.fresh_accuracy.conditions == {"reviewed_by": "human"}
    assert found.gamma is found.length_audit is found.lineage is None


def test_figures_in_sample_are_no_evidence_and_those_on_test_come_first():
    own = {"nll": figure(0.5), "ece": figure(0.0, half=0)}
    assert collect({"calibration.json": {"after_is": "in-sample", "before": own, "after": own}}).ece is None
    test = {"nll": figure(0.4), "ece": figure(0.03)}
    stored = {"after_is": "cross-fitted", "before": own, "after": own, "test_before": test, "test_after": test}
    assert collect({"calibration.json": stored}).ece.estimate.value == 0.03


def test_audit_and_overoptimization_are_read_as_their_stages_write_them():
    import numpy as np

    from rmtrl.evaluation.audit import ACQUITTED, CONVICTED, audit_length
    from rmtrl.evaluation.overoptimization import measure_overoptimization, scored_samples

    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 100, (2, 300))
    audit = json_ready(audit_length(*lengths.astype(float), *lengths, n_resamples=50))  # length is all it pays for
    gold = rng.normal(size=(40, 16))
    proxy = 0.8 * gold + 0.6 * rng.normal(size=gold.shape)
    samples = scored_samples(np.repeat(np.arange(40), 16), proxy.ravel(), gold.ravel())
    over = json_ready(measure_overoptimization(samples, n_resamples=50))
    found = collect(json.loads(json.dumps({"audit.json": audit, "overoptimization.json": over})))
    assert found.length_audit.passed is {ACQUITTED: True, CONVICTED: False}.get(audit["verdict"])
    assert found.length_audit.said == "; ".join([audit["verdict"], *audit["reasons"]])
    assert found.length_matched_accuracy.estimate.n == audit["figures"]["accuracy_matched"]["n"]
    assert found.gamma.conditions["n_max"] == 16 and "gold" in found.gamma.conditions["convention"]
    assert found.gamma.estimate.value == over["whole"]["gamma"]["value"]


# whose figures they are

MODEL = {"sha256": "a" * 64, "revision": None}
FIGURES = {"figures": {"accuracy_matched": accuracy(0.9)}, "verdict": "acquitted", "reasons": ["flat"]}


def measured(named, data=None):
    """The files of a run that were measured on the model named."""
    data = {} if data is None else {"data": {"fingerprint": data}}
    return {
        "audit.json": FIGURES | data | {"model": {"name": "rm", "fingerprint": named}},
        "fresh.json": {"accuracy": accuracy(0.9), "reviewed_by": "human", "model": "rm", "model_fingerprint": named},
        "overoptimization.json": {"whole": {"gamma": figure(0.2)}, "model": {"name": "rm"} | (named or {})},
        "calibration.json": {"model_fingerprint": named, "after_is": "cross-fitted", "nll_change": figure(-0.1),
                             "after": {"ece": figure(0.04)}},
        "rmtrl.json": {"splits": {"train": {"fingerprint": "t"}, "test": {"fingerprint": "h"}}},
    }  # fmt: skip


NAMES_MEASURED = ("length_matched_accuracy", "length_audit", "fresh_accuracy", "gamma", "ece", "nll_gain")


@pytest.mark.parametrize("name", NAMES_MEASURED)
def test_figures_of_another_model_are_no_evidence(name):
    checks = {name: {"passed": True} if name == "length_audit" else {"minimum": 0}}
    own = collect(measured(MODEL), MODEL)
    assert judge(own, thresholds(checks)).ready and "model" not in getattr(own, name).source
    decision = judge(collect(measured(MODEL), {"sha256": "b" * 64, "revision": None}), thresholds(checks))
    assert not decision.ready and decision.reasons[0].got.startswith("no evidence: of another model, got ")


def test_the_mark_of_another_model_is_kept_in_an_evidence_file():
    found = collect(measured(MODEL), {"sha256": "b" * 64})
    assert Evidence.from_dict(json.loads(json.dumps(found.as_dict()))) == found


@pytest.mark.parametrize("name", NAMES_MEASURED)
def test_figures_of_no_named_model_count_and_say_so(name):
    assert getattr(collect(measured(None), MODEL), name).source.endswith("; names no model")
    assert getattr(collect(measured(MODEL)), name).source.endswith("; model not compared")
    hub = {"sha256": None, "revision": "abc"}  # a folder has no revision: nothing to compare
    assert getattr(collect(measured(hub), MODEL), name).source.endswith("; model not compared")


def test_an_adapter_on_another_base_is_another_model():
    named, other, unknown = ({**MODEL, "base": {"sha256": None, "revision": r}} for r in ("abc", "def", None))
    assert collect(measured(named), named).gamma.conditions == {}
    assert collect(measured(named), unknown).gamma.conditions == {}
    assert collect(measured(named), other).gamma.conditions == {"model": "another"}


def test_an_audit_of_the_training_pairs_is_no_evidence():
    checks = {"length_matched_accuracy": {"minimum": 0.5}, "length_audit": {"passed": True}}
    decision = judge(collect(measured(MODEL, "t"), MODEL), thresholds(checks))
    assert failed(decision) == list(checks)
    assert all(reason.got.startswith("no evidence: of the training pairs") for reason in decision.reasons)
    found = collect(measured(MODEL, "h"), MODEL)
    assert judge(found, thresholds(checks)).ready
    assert found.length_audit.source == "audit.json; test pairs of the run"


@pytest.mark.parametrize(
    "files",
    [
        {"calibration.json": {"test_after": 3, "test_before": []}},
        {"calibration.json": {"test_after": {"null_ece": {"value": "x"}}}},
        {"audit.json": {"verdict": ["x"], "reasons": 3, "model": 3, "data": 4}},
        {"rmtrl.json": {"schema": "rmtrl/reward-model/1", "data": {"groups": 3}, "splits": {"test": {"pairs": "x"}}}},
    ],
)
def test_files_of_other_forms_are_no_traceback(files):
    assert not judge(collect(files)).ready


# the score


def scored(checks, **items):
    return judge(Evidence.from_dict({"schema": "rmtrl/evidence/1", **items}), thresholds(checks))


@pytest.mark.parametrize(
    ("check", "item", "distance"),
    [
        ({"minimum": 0.8}, {"value": 0.9, "low": 0.85, "high": 0.92}, 2.0),  # the side towards the threshold
        ({"minimum": 0.8}, {"value": 0.7, "low": 0.5, "high": 0.74}, -2.5),
        ({"maximum": 0.05}, {"value": 0.04, "low": 0.03, "high": 0.06}, 0.5),
        ({"maximum": 0.05}, {"value": 0.08, "low": 0.06, "high": 0.2}, -1.5),
        ({"minimum": 0.2, "maximum": 0.9}, {"value": 0.8, "low": 0.7, "high": 0.85}, 2.0),  # the nearer of two
        ({"minimum": 0.8}, {"value": 1.0, "low": 0.9, "high": 1.0}, 2.0),
        ({"maximum": 0.5}, {"value": 0.4, "low": 0.2, "high": 0.4}, 1.0),  # no width on that side: half of the whole
    ],
)
def test_a_distance_counts_half_widths_of_the_figures_own_interval(check, item, distance):
    decision = scored({"ece": check}, ece=item | {"n": 100})
    assert decision.reasons[0].distance == pytest.approx(distance) and decision.score == pytest.approx(distance)
    assert decision.ready == (distance >= 0)


def test_the_score_is_the_smallest_distance_of_the_figures_that_stop():
    checks = {
        "test_accuracy": {"minimum": 0.8},
        "ece": {"maximum": 0.05},
        "gamma": {"maximum": 0.1, "otherwise": "warn"},
    }
    decision = scored(checks, test_accuracy=accuracy(0.9), ece=figure(0.03), gamma=figure(0.4))
    assert decision.score == decision.reasons[1].distance == pytest.approx(1.0)
    assert decision.reasons[2].distance == pytest.approx(-15.0) and decision.ready  # it warns, no more
    assert json_ready(decision)["score"] == pytest.approx(1.0)
    assert str(decision).splitlines()[-1] == "ready (score +1.00)"


def test_without_one_of_the_figures_asked_for_there_is_no_score():
    checks = {"test_accuracy": {"minimum": 0.8}, "ece": {"maximum": 0.05, "n": 1000}}
    for items in ({}, {"ece": figure(0.03)}):  # missing; of too few pairs
        decision = scored(checks, test_accuracy=accuracy(0.9), **items)
        assert decision.score is None and decision.reasons[1].distance is None
        assert str(decision).splitlines()[-1] == "not ready"
    assert scored({"length_audit": {"passed": True}}, length_audit=READY["length_audit"]).score is None


def test_exact_counts_and_findings_decide_the_verdict_and_not_the_score():
    checks = {"overlap": {"maximum": 0}, "length_audit": {"passed": True}, "ece": {"maximum": 0.05}}
    items = {"overlap": figure(3, half=0), "length_audit": {"passed": False, "said": "convicted"}}
    decision = scored(checks, **items, ece=figure(0.03))
    assert not decision.ready and decision.score == pytest.approx(1.0)
    assert json_ready(decision)["reasons"][0]["distance"] is None
    json.dumps(json_ready(decision), allow_nan=False)


def test_an_interval_that_is_not_known_gives_no_score():
    for low, high in ((0.0, math.nan), (-math.inf, math.inf)):
        evidence = Evidence(nll_gain=Figure(Estimate(0.05, low, high, 200)))
        assert judge(evidence, thresholds({"nll_gain": {"minimum": -0.01}})).score is None


def test_an_audit_without_a_pair_of_like_length_says_so_and_how_to_mend_it():
    audit = {"schema": "rmtrl/audit/1", "verdict": "acquitted", "reasons": [], "figures": {"accuracy": figure(0.9)}}
    for found in (collect({"audit.json": audit}), Evidence.from_dict(collect({"audit.json": audit}).as_dict())):
        reason = judge(found, thresholds({"length_matched_accuracy": {"minimum": 0.8}})).reasons[0]
        assert (reason.passed, reason.unknown, reason.value) == (False, True, None)
        assert "no pair has answers of like length; build length-matched pairs: have answers judged" in reason.got
        assert reason.lacking == "not enough evidence: no pair has answers of like length"
    with pytest.raises(DataError, match="has value None"):  # passed is no word for a figure
        Evidence.from_dict({"schema": "rmtrl/evidence/1", "test_accuracy": {"passed": True, "said": "good"}})
