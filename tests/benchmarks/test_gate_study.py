"""The gate study's design and its arithmetic, on made-up models."""

import itertools
import re
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from gate_figures import (
    DEFECTS,
    EVIDENCE,
    against_rows,
    auc,
    aucs,
    best_single,
    cut,
    evidence,
    flat,
    halves,
    judged,
    package_thresholds,
    real_row,
    section,
    stored_scores,
    study_thresholds,
    taught_thresholds,
)  # fmt: skip
from gate_study import SEEDS, Model, Shared, annotator, claimed, design, make_pairs

from rmtrl.data.synthetic.writing import DOMAINS
from rmtrl.evaluation.evidence import Evidence
from rmtrl.evaluation.gate import judge

# the design


def test_the_design_crosses_five_defects_two_sizes_and_two_seeds():
    models = design(SEEDS["run"])
    assert len({model.name for model in models}) == 128 and len({model.cell for model in models}) == 64
    assert models == design(SEEDS["run"]) and not {m.name for m in models} & {m.name for m in design(SEEDS["pilot"])}
    for kind in DEFECTS:  # the first half of the order is a fair sample
        assert 20 <= sum(kind in model.defects for model in models[:64]) <= 44


def made(*defects):
    shared = Shared("made-up")
    shared.__dict__["taken"] = set()  # no supervised start is asked for
    return make_pairs(Model(defects, "full", 1), shared)


def prompts(pairs):
    return {row[0]["content"] for row in pairs["prompt"]}


def longer(pairs):
    sides = [[len(row[0]["content"].split()) for row in pairs[side]] for side in ("chosen", "rejected")]
    return float(np.mean(np.subtract(*sides) > 0))


def test_the_defects_are_in_the_pairs_and_nowhere_else():
    plain, bad = made(), made("length", "narrow", "leak", "little")
    assert not prompts(plain["train"]) & prompts(plain["test"])
    assert len(plain["train"]) == 1600 and len(bad["train"]) == 100
    assert len(prompts(bad["train"]) & prompts(bad["test"])) == 50  # half of the little there is
    assert len(set(plain["train"]["domain"])) == 16 and len(set(bad["test"]["domain"])) == 4
    for pairs in (plain, bad):
        away = set(pairs["spillover"]["domain"])
        assert len(away) == len(DOMAINS) // 5 and not away & set(pairs["train"]["domain"])
        assert not prompts(pairs["calibration"]) & prompts(pairs["test"]) and set(pairs["test"]["preference"]) == {1.0}
    assert longer(plain["test"]) < 0.55 < longer(bad["test"])


def test_noise_is_of_the_annotator_and_so_of_the_test_labels_too():
    assert annotator(Model(("noise",), "full", 1)).noise > 4 * annotator(Model((), "full", 1)).noise
    assert annotator(Model(("narrow",), "full", 1)).length_preference == 0


def test_a_model_is_made_by_one_process_and_a_dead_one_holds_nothing(tmp_path):
    file = tmp_path / "model.json"
    with claimed(file) as first, claimed(file) as second:
        assert first and not second
    file.with_suffix(".claim").write_text("999999999")
    with claimed(file) as mine:
        assert mine
    file.write_text("{}")
    with claimed(file) as mine:
        assert not mine
    assert [path.name for path in tmp_path.iterdir()] == ["model.json"]


# the arithmetic


def test_the_auc_counts_pairs_of_models_with_ties_one_half_and_weights():
    values, worse = np.array([3.0, 1.0, 1.0, 0.0]), np.array([0, 0, 1, 1])
    weights = np.array([[1.0, 1, 1, 1], [1, 0, 1, 0], [0, 2, 1, 1], [1, 1, 0, 0]])
    with np.errstate(invalid="ignore"):
        found = auc(weights, values, worse)
    assert found[:3].tolist() == [3.5 / 4, 1.0, 0.75] and np.isnan(found[3])


def frame(n_seeds=2, seed=0, told="fresh_accuracy"):
    """Made-up models whose gain follows one figure and nothing else."""
    rng, rows = np.random.default_rng(seed), []
    for flags in itertools.product((0, 1), repeat=5):
        for size, number in itertools.product(("full", "small"), range(n_seeds)):
            cell = f"{size}-{''.join(map(str, flags))}"
            row = {"name": f"{cell}-{number}", "cell": cell, "size": size, "seed": number} | dict(
                zip(DEFECTS, flags, strict=True)
            )
            for name in EVIDENCE:
                value = rng.uniform(0.6, 0.95) if name.endswith("accuracy") else rng.uniform(0.03, 0.1)
                row |= {name: value, f"{name}.low": value - 0.03, f"{name}.high": value + 0.03, f"{name}.n": 200}
            row |= {"overlap": 0.0, "overlap.n": 1000, "audit": 1.0, "probe": rng.normal(), "spread": rng.normal()}
            row |= {"gamma": rng.uniform(), "seconds": 30.0, "best_of_gain": rng.normal()}
            rows.append(row | {"ppo_gain": row[told] - 0.8 + rng.normal(0, 0.01)})
    return pd.DataFrame(rows)


def test_a_figure_that_tells_has_an_auc_near_one_and_the_others_do_not():
    found = aucs(frame(), {"fresh_accuracy": 1, "test_accuracy": 1, "ece": -1}, "ppo_gain")
    assert found["fresh_accuracy"].value > 0.97 and found["test_accuracy"].low < 0.55 < found["fresh_accuracy"].low
    assert found["fresh_accuracy"].n == 128 and "design cell" in found["fresh_accuracy"].method
    backwards = aucs(frame(), {"fresh_accuracy": -1}, "ppo_gain")["fresh_accuracy"]
    assert backwards.value == pytest.approx(1 - found["fresh_accuracy"].value)


def test_models_of_one_cell_are_resampled_together():
    own = frame()
    twice = pd.concat([own, own])  # the same models again: no more is known
    one, two = (aucs(each, {"test_accuracy": 1}, "ppo_gain")["test_accuracy"] for each in (own, twice))
    assert two.value == pytest.approx(one.value)
    assert two.high - two.low == pytest.approx(one.high - one.low, rel=0.1)


def test_a_lead_is_paired():
    own = frame().assign(score=lambda own: own["fresh_accuracy"])
    lead = aucs(own, {"score": 1}, "ppo_gain", "fresh_accuracy")["score"]
    assert lead.value == lead.low == lead.high == 0


def test_the_figure_is_chosen_on_some_kinds_and_compared_on_models_with_the_others():
    own = frame(told="spillover_accuracy")
    for chosen_on, compared in halves(own).values():
        assert not set(chosen_on["name"]) & set(compared["name"]) and len(chosen_on) + len(compared) == 128
        assert best_single(chosen_on, "ppo_gain") == "spillover_accuracy"
    (pairs, _), (labels, _) = halves(own).values()
    assert (len(pairs), len(labels)) == (32, 16) and pairs[["length", "noise"]].sum().sum() == 0


def test_thresholds_are_taught_by_what_orders_the_models_and_the_rest_warns():
    thresholds = taught_thresholds(frame(), "ppo_gain").checks
    assert thresholds["fresh_accuracy"].minimum == pytest.approx(0.8, abs=0.02)
    assert thresholds["fresh_accuracy"].otherwise == "stop"
    assert Counter(thresholds[name].otherwise for name in EVIDENCE)["warn"] >= 3
    low_is_good = frame().assign(ppo_gain=lambda own: 0.06 - own["ece"])
    assert cut(low_is_good, "ece", "ppo_gain") == pytest.approx(0.06, abs=0.003)
    assert taught_thresholds(low_is_good, "ppo_gain").checks["ece"].maximum == pytest.approx(0.06, abs=0.003)


def test_a_model_without_evidence_stands_below_all_others():
    own = frame()
    own.loc[5, "ece"] = np.nan
    found = judged(own, study_thresholds())
    assert found["score"].idxmin() == 5 and found["score"].notna().all() and found.loc[5, "ready"] == 0


def test_the_gate_of_the_study_is_the_packages_and_simulated_reviewers_stay_outside_it():
    (row,) = judged(frame()[:1], study_thresholds()).to_dict("records")
    assert set(study_thresholds().checks) == {*EVIDENCE, "overlap", "length_audit"}
    decision = judge(evidence(row), study_thresholds())
    assert decision.score == pytest.approx(row["score"])
    stored = evidence(row).as_dict()
    stored["fresh_accuracy"]["reviewed_by"] = "model"  # as they are known to the product
    assert judge(Evidence.from_dict(stored), study_thresholds()).score is None


def test_the_protocol_let_every_check_stop_and_the_package_those_that_told():
    fixed, now = ({name for name, own in each().checks.items() if own.otherwise == "stop"}
                  for each in (study_thresholds, package_thresholds))  # fmt: skip
    assert fixed == {*EVIDENCE, "overlap", "length_audit"} and now == {"fresh_accuracy", "overlap", "length_audit"}
    text = "\n".join(section(frame()))
    assert re.search(r"protocol's thresholds: 0\.7\d\d .*, missed\. .* on the 112 others: 0\.9\d\d .*, met\.", text)


def test_a_models_file_becomes_a_row_that_gives_the_same_decision():
    (row,) = frame()[:1].to_dict("records")
    found = {
        "name": "a", "cell": "a", "size": "full", "seed": 1, "defects": ["leak"], "evidence": evidence(row).as_dict(),
        "verdict": "acquitted", "probe": 0.1, "spread": 1.0, "temperature": 0.5, "gamma": {"value": 0.3},
        "drawdown": None, "best_of": {"value": 0.2}, "seconds": {"train": 2.0, "ppo": 3.0},
        "ppo": {"gain": {"value": -0.1, "low": -0.2, "high": 0.0}, "gains": {"1": -0.2, "2": 0.0}, "kl": 1.0,
                "length_tokens": 30.0},
    }  # fmt: skip
    read = flat(found)
    assert read["leak"] == 1 and read["length"] == 0 and read["seconds"] == 5 and read["ppo_gain.1"] == -0.2
    assert judge(evidence(read), study_thresholds()) == judge(evidence(row), study_thresholds())


def test_the_section_says_what_was_found():
    text = "\n".join(section(frame()))
    assert "128 of 128 reward models of 64 cells" in text and "Against the best single" in text
    assert re.search(r"\| fresh accuracy \| 0\.9\d\d", text)
    assert len(against_rows(judged(frame(), study_thresholds()), "ppo_gain")) == 2 + 6


def test_a_part_of_the_models_says_so_and_gives_no_verdict_on_the_aim():
    assert len(section(frame()[:19])) == len(section(frame()[:0])) == 1
    text = "\n".join(section(frame()[:40]))
    assert "40 of 128 reward models" in text and "wait for the other 88" in text and "is met" not in text


# public models


def test_public_scores_are_read_with_the_right_answer_first(real_data):
    folder = real_data / "rewardmath"
    easy, hard = stored_scores(folder, "internlm2")
    assert np.mean([own[0] > own[1:].max() for own in hard.values()]) == pytest.approx(0.3727, abs=1e-4)
    assert np.mean([own["chosen"] > own["rejected"] for own in easy.values()]) == pytest.approx(0.9284, abs=1e-3)
    cells = real_row(folder, "Math_Shepherd")
    assert cells[0] == "Math-Shepherd" and cells[-1] == "" and cells[5] == "0.634"
