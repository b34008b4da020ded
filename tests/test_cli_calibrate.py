"""`rmtrl calibrate`: from a model, from scores, and input it cannot use."""

import json
from pathlib import Path

import numpy as np
import pytest

from rmtrl import RewardScorer
from rmtrl.calibration.calibration import read_calibration
from rmtrl.evaluation.fingerprints import model_fingerprint

ROWS = 40
HERE = Path(__file__).parent


def pair(i, **columns):
    return {"id": f"id-{i}", "prompt_id": f"p{i // 2}", "domain": "ab"[i % 4 // 2], "prompt": "red ?",
            "chosen": f" good {i}", "rejected": f" bad {i}", **columns}  # fmt: skip


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "pairs.jsonl", [pair(i) for i in range(ROWS)])


@pytest.fixture
def scores(tmp_path):
    rng = np.random.default_rng(0)
    rows = [{"id": f"id-{i}", "scores": rng.normal([1.0, 0.0], 2).tolist()} for i in range(ROWS)]
    rows[3]["scores"] = [None, None]
    return write(tmp_path / "scores.jsonl", rows)


@pytest.fixture
def checkpoint(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    return tmp_path / "rm"


def test_scores_with_their_pairs(rmtrl, data, scores, tmp_path):
    code, out, err = rmtrl("calibrate", data, "--scores", scores, "--json", "--out", tmp_path / "new" / "c.json")
    found = json.loads(out)
    assert code == 0 and found["schema"] == "rmtrl/calibration/1" and found["dropped"] == 1
    assert (found["n"], found["prompts"], set(found["domains"])) == (ROWS - 1, ROWS // 2, {"a", "b"})
    assert {"value", "low", "high", "n"} <= set(found["after"]["ece"]) and found["test_after"] is None
    stored = read_calibration(tmp_path / "new" / "c.json")
    assert stored.temperature.temperature_ == found["temperature"]["temperature"]
    assert stored.data["calibration"]["fingerprint"]


def test_scores_alone_count_every_pair_as_a_prompt_and_say_so(rmtrl, scores):
    code, out, err = rmtrl("calibrate", "--scores", scores)
    assert code == 0 and f"{ROWS - 1} pairs of {ROWS - 1} prompts" in out
    assert "pairs of the calibration scores were not named, so each counts as a prompt of its own" in err
    for line in ("temperature", "ECE ", "NLL", "Brier", "ECE if calibrated", "pairs without scores  1"):
        assert line in out


def test_figures_are_reported_on_test_scores(rmtrl, data, scores, tmp_path):
    lines = scores.read_text().splitlines(keepends=True)
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text("".join(lines[:20])), second.write_text("".join(lines[20:]))
    named = ("calibrate", data, "--scores", first, "--test", second)
    code, out, err = rmtrl(*named, "--test-data", data, "--json")
    found = json.loads(out)
    assert code == 0 and found["n"] == 19 and found["test_before"]["nll"]["n"] == 20 and "not named" not in err
    assert found["data"]["test"]["pairs"] == 20
    code, _, err = rmtrl(*named)
    assert code == 0 and "pairs of the test scores were not named" in err and "go unseen" in err


def test_a_calibration_that_surely_makes_the_test_pairs_worse_is_said_and_no_gate_lets_it_pass(rmtrl, data, tmp_path):
    def scored(name, margin):  # one pair in eight is wrong
        rows = [{"id": f"id-{i}", "scores": [margin if i % 8 else -margin, 0]} for i in range(ROWS)]
        return write(tmp_path / f"{name}.jsonl", rows)

    arguments = ("calibrate", "--scores", scored("unsure", 0.2), "--test", scored("sure", 5.0))
    code, out, err = rmtrl(*arguments, "--out", tmp_path / "calibration.json")
    (warning,) = (line for line in err.splitlines() if "worse" in line)
    assert code == 0 and warning.startswith(
        "rmtrl: warning: calibration made the test pairs surely worse: NLL rises by"
    )
    (row,) = (line for line in out.splitlines() if line.startswith("NLL change"))
    assert row.endswith("surely worse")
    code, out, _ = rmtrl(*arguments, "--json")
    found = json.loads(out)
    assert found["made_worse"] is True and found["nll_change"]["low"] > 0
    lax = tmp_path / "lax.yaml"
    lax.write_text("{schema: rmtrl/thresholds/1, checks: {ece: {maximum: 1}, nll_gain: {minimum: -99}}}")
    code, out, _ = rmtrl("gate", tmp_path, "--thresholds", lax)
    assert code == 1
    for line in out.splitlines()[:2]:
        assert line.startswith("NO ") and "calibration made these pairs surely worse" in line


def test_ids_that_are_row_numbers_say_nothing_of_prompts(rmtrl, tmp_path):
    rng = np.random.default_rng(0)
    files = {}
    for name in ("calibration", "test"):
        files[name] = write(tmp_path / f"{name}.jsonl", [
            {"prompt": f"{name} {i} ?", "chosen": " good", "rejected": " bad"} for i in range(ROWS)
        ])  # fmt: skip
        rows = [{"id": str(i), "scores": rng.normal([1.0, 0.0], 2).tolist()} for i in range(ROWS)]
        files[f"{name} scores"] = write(tmp_path / f"{name}_scores.jsonl", rows)
    scored = ("--scores", files["calibration scores"], "--test", files["test scores"])
    code, _, err = rmtrl("calibrate", *scored)
    assert code == 0 and "pairs of the calibration and test scores were not named" in err
    code, out, err = rmtrl("calibrate", files["calibration"], *scored, "--test-data", files["test"], "--json")
    data = json.loads(out)["data"]
    assert code == 0 and not err and data["test"]["fingerprint"] != data["calibration"]["fingerprint"]


def test_a_model_is_scored_calibrated_and_exported(rmtrl, checkpoint, rows, tmp_path):
    made, scorer = rows(30), RewardScorer.from_pretrained(checkpoint)
    for i, row in enumerate(made):  # the model is right two times in three
        first, second = scorer.score([row["prompt"] + row[side] for side in ("chosen", "rejected")])
        if (first > second) != bool(i % 3):
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    data = write(tmp_path / "pairs.jsonl", made)
    code, out, err = rmtrl("calibrate", data, "--model", checkpoint, "--export", tmp_path / "out", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["model_fingerprint"] == model_fingerprint(checkpoint)
    text = made[0]["prompt"] + made[0]["chosen"]
    raw, scaled = (RewardScorer.from_pretrained(path).score([text]).item() for path in (checkpoint, tmp_path / "out"))
    assert scaled == pytest.approx(raw / found["temperature"]["temperature"], abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "either --model or --scores"),
        (("DATA", "--model", "x", "--scores", "SCORES"), "either --model or --scores"),
        (("--model", "x"), "without pairs to score"),
        (("--scores", "SCORES", "--export", "out"), "no model to export"),
        (("--scores", "missing.jsonl"), "cannot be read"),
        (("DATA", "--scores", "SCORES", "--test", "SCORES", "--test-data", "DATA"), "prompts are in both"),
        (("DATA", "--scores", "SCORES", "--test-data", "DATA"), "without --scores and --test"),
        (("DATA", "--model", "RM", "--test", "DATA", "--test-data", "DATA"), "without --scores and --test"),
        (("DATA", "--model", "RM", "--test", "DATA"), "prompts are in both"),
        # before the model is loaded
        (("DATA", "--model", "x", "--out", HERE), f"cannot write --out {HERE}: it exists and is not a file"),
        (("DATA", "--model", "x", "--export", HERE), f"{HERE} holds something other than an earlier export"),
        (("DATA", "--model", "x", "--export", f"{__file__}/rm"), "is no folder to write in"),
    ],
)
def test_usage_that_cannot_be_is_one_line_and_exit_code_2(rmtrl, data, scores, checkpoint, arguments, said):
    names = {"DATA": data, "SCORES": scores, "RM": checkpoint}
    code, out, err = rmtrl("calibrate", *(names.get(argument, argument) for argument in arguments))
    assert code == 2 and not out
    last = err.splitlines()[-1]
    assert last.startswith("rmtrl: error:") and said in last


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "is empty"),
        (["{"], "scores.jsonl row 1 is not JSON"),
        (['{"id": "id-0"}'], "is no line of scores"),
        (['{"id": "id-0", "scores": [1, 2, 3]}'], "chosen first"),
        (['{"id": [1], "scores": [1, 2]}'], "is no line of scores"),
        (['{"id": true, "scores": [1, 2]}'], "is no line of scores"),
        (['{"id": "id-0", "scores": ["1.5", 2]}'], "finite or null"),
        (['{"id": "id-0", "scores": [true, 2]}'], "finite or null"),
        (['{"id": "id-0", "scores": [1, null]}'], "finite or null"),
        (['{"id": "id-0", "scores": {"0": 1, "1": 2}}'], "finite or null"),
        (['{"id": "id-0", "scores": [1, 1%s]}' % ("0" * 400)], "finite or null"),
        (['{"id": "id-0", "scores": [1, 1%s]}' % ("0" * 5000)], "row 1 is not JSON that can be read"),
        (["[" * 100_000 + "]" * 100_000], "is not JSON that can be read"),
        (["1"], 'row 1 is not a JSON object; wanted {"id": "a", "scores"'),
        (['{"id": "id-0", "scores": [1, NaN]}'], "finite or null"),
        (['{"id": "id-0", "scores": [1, 2]}'] * 2, "'id-0' stands twice"),
        (['{"id": "id-0", "scores": null}'], "none of the 1 pairs"),
        (['{"id": "id-0", "scores": [null, null]}'], "none of the 1 pairs"),
        (['{"id": "other", "scores": [1, 2]}'], "'other', which is none of the pairs"),
    ],
)
def test_scores_that_cannot_be_used_are_one_line_and_exit_code_2(rmtrl, data, tmp_path, lines, said):
    path = tmp_path / "scores.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    code, out, err = rmtrl("calibrate", data, "--scores", path)
    assert code == 2 and not out and said in err and len(err.splitlines()) == 1


def test_ids_may_be_integers_and_hold_any_letter(rmtrl, data, tmp_path):
    write(data, [pair(i, id=id) for i, id in enumerate(["1", "a\u2028b", "c\x85d"])])
    rows = [{"id": id, "scores": [i, 1]} for i, id in enumerate([1, "a\u2028b", "c\x85d"])]
    scores = tmp_path / "scores.jsonl"
    scores.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    code, out, _ = rmtrl("calibrate", data, "--scores", scores, "--json")
    assert code == 0 and json.loads(out)["n"] == 3


def test_calibrate_and_audit_refuse_the_same_scores(rmtrl, data, tmp_path):
    scores = tmp_path / "scores.jsonl"
    for line in ('{"id": [1], "scores": [1, 2]}', '{"id": "id-0", "scores": [true, 2]}', "[" * 100_000):
        scores.write_text(line)
        first, second = (rmtrl(command, data, "--scores", scores) for command in ("calibrate", "audit"))
        assert first == second and first[0] == 2
