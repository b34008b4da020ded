"""`rmtrl drift`: one verdict over columns, expected accuracy without labels, files, history."""

import gzip
import json

import numpy as np
import pytest
from scipy.special import expit

from rmtrl.calibration import calibrate
from rmtrl.errors import DataError, UsageError
from rmtrl.monitoring.drift import drift, expected_accuracy, read_watched


def labelled(n_prompts, *, seed=0, temperature=2.0, believed=2.0, prefix="p"):
    """Pairs of prompts of 1 to 4 rows whose labels follow σ(m / temperature), as columns."""
    rng = np.random.default_rng(seed)
    prompts = np.repeat(np.arange(n_prompts), rng.integers(1, 5, size=n_prompts))
    n = len(prompts)
    size = np.abs(rng.normal(0, 3, n_prompts)[prompts] + rng.normal(0, 1, n))
    right = rng.random(n) < expit(size / temperature)
    domains = np.array(["chat", "code"])[prompts % 2]
    names = np.array([f"{prefix}{p}" for p in prompts])
    return {"prompt_id": names, "margin": np.where(right, size, -size), "preference": np.ones(n), "domain": domains}


def fitted(n_prompts=1000, *, seed=100, **settings):
    own = labelled(n_prompts, seed=seed, prefix="fit", **settings)
    return calibrate(own["margin"], np.zeros(len(own["margin"])), own["prompt_id"])


def test_expected_accuracy_is_accuracy_where_the_world_is_calibrated():
    held = covered = 0
    for seed in range(25):
        truth = labelled(4000, seed=1000 + seed)  # as good as the population
        expected = float(expit(np.abs(truth["margin"]) / 2.0).mean())
        own = labelled(150, seed=seed)
        found = drift(own, own, calibration=fitted(200, seed=500 + seed), n_permutations=19)
        held += found.expected_accuracy["current"].low <= expected <= found.expected_accuracy["current"].high
        true, said = found.accuracy["current"], found.expected_accuracy["current"]
        covered += true.low <= said.value <= true.high
        assert found.warnings == ()
    assert held >= 21 and covered >= 21


def test_the_interval_of_the_calibration_is_in_that_of_expected_accuracy():
    own = labelled(2000)
    few, many = fitted(40), fitted(4000)
    narrow = expected_accuracy(own["margin"], own["prompt_id"], many)
    wide = expected_accuracy(own["margin"], own["prompt_id"], few)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low) and "MOVER" in wide.method
    assert narrow.n == len(own["margin"])
    assert expected_accuracy([0.0, np.nan, 0.0], ["a", "b", "c"], many).value == 0.5


def test_a_calibration_that_broke_is_said_where_there_are_labels_and_unseen_where_not():
    reference, current = labelled(500), labelled(500, seed=1, temperature=100.0, prefix="q")
    found = drift(reference, current, calibration=fitted())
    assert found.alarm and {own.name: own for own in found.columns}["accuracy"].test.adjusted_p < 0.01
    assert len(found.warnings) == 1 and "does not hold on the current side" in found.warnings[0]
    unlabelled = {name: values for name, values in current.items() if name != "preference"}
    unseen = drift(reference, unlabelled, calibration=fitted())
    assert not unseen.alarm and "accuracy" in unseen.not_compared
    assert unseen.expected_accuracy["current"].low > found.accuracy["current"].high + 0.1  # confidently wrong
    assert list(unseen.accuracy) == ["reference"]


def test_columns_carry_effect_counts_and_psi_with_the_threshold_of_their_prompts():
    rng = np.random.default_rng(0)
    sides = []
    for shift, prefix in ((0.0, "a"), (0.8, "b")):
        prompts = np.repeat([f"{prefix}{i}" for i in range(150)], 2)
        score = rng.normal(shift, 1, 300)
        flagged = rng.random(300) < 0.1
        score[:20] = np.nan
        sides.append(
            {"prompt_id": prompts, "score": score, "flagged": flagged, "domain": np.tile(["x", "y", "z"], 100)}
        )
    found = drift(*sides)
    score, flagged, domain, missing = found.columns
    assert missing.effect.value == 0 and missing.test.adjusted_p > 0.05
    assert score.effect.low < 0.8 < score.effect.high and score.effect.low > 0.4
    assert score.rows == {"reference": 280, "current": 280} and score.missing == {"reference": 20, "current": 20}
    assert score.prompts == {"reference": 140, "current": 140} and flagged.prompts["current"] == 150
    assert score.psi > score.psi_threshold == pytest.approx(16.919 * 2 / 140, abs=1e-3)
    assert flagged.reference.value == pytest.approx(sides[0]["flagged"].mean()) and flagged.distances["KS"] < 0.1
    assert domain.reference["x"].value == pytest.approx(1 / 3) and domain.psi < domain.psi_threshold
    assert score.test.adjusted_p == found.p == 0.001 and found.alarm
    assert flagged.test.adjusted_p > 0.05 and found.shared_prompts == 0


def scored(n, *, prefix="p", missing=0, seed=0):
    score = np.random.default_rng(seed).normal(size=n)
    score[:missing] = np.nan
    return {"prompt_id": np.array([f"{prefix}{i}" for i in range(n)]), "score": score, "length": np.ones(n)}


@pytest.mark.parametrize("gone", ["null", "absent"])
def test_a_column_with_values_on_one_side_alone_is_an_alarm(gone):
    own, other = scored(100), scored(100, prefix="q", missing=100)
    if gone == "absent":
        del other["score"]
    for found in (drift(own, other), drift(other, own)):
        assert found.alarm and found.not_compared == ("score",)
        assert "score (values on one side alone)" in found.words["verdict"]
        assert {w.name: w.test.adjusted_p for w in found.columns}["score missing"] <= 0.05
    few = drift(scored(8), scored(8, prefix="q", missing=8), alpha=0.05)
    assert few.alarm


def test_missing_values_are_watched_in_the_same_verdict():
    found = drift(scored(200, missing=10), scored(200, prefix="q", missing=60, seed=1))
    watched = {own.name: own for own in found.columns}
    assert list(watched) == ["score", "length", "score missing"] and found.alarm
    assert "score missing" in found.words["verdict"] and watched["score missing"].test.adjusted_p == found.p
    assert watched["score missing"].reference.value == 0.05 and watched["score missing"].current.value == 0.3
    same = drift(scored(200, missing=10), scored(200, prefix="q", missing=10, seed=1))
    assert not same.alarm and [own.name for own in same.columns] == ["score", "length", "score missing"]
    assert [own.name for own in drift(scored(50), scored(50, prefix="q", seed=1)).columns] == ["score", "length"]


def test_values_that_are_missing_together_are_one_column():
    own, other = (
        {**side, "margin": side["score"], "preference": np.ones(100)}
        for side in (scored(100, missing=5), scored(100, prefix="q", missing=6))
    )
    names = [column.name for column in drift(own, other, calibration=fitted()).columns]
    assert names == ["score", "length", "margin", "accuracy", "expected accuracy", "score missing"]


def test_means_and_effect_have_the_same_rows_weights():
    """Simpson: each prompt's current rows are higher, but most of them are of the prompts that are low."""
    prompts = np.arange(40)
    low = prompts % 2 == 0
    first, second = np.repeat(prompts, np.where(low, 1, 5)), np.repeat(prompts, np.where(low, 5, 1))
    rng = np.random.default_rng(0)
    reference, current = (
        {"prompt_id": own, "score": 10.0 * (own % 2) + shift + rng.normal(0, 0.1, len(own))}
        for own, shift in ((first, 0.0), (second, 1.0))
    )
    (score,) = drift(reference, current).columns
    assert current["score"].mean() < reference["score"].mean()
    assert score.effect.value > 0 and score.reference.low <= score.reference.value <= score.reference.high
    assert score.current.value - score.reference.value == pytest.approx(1.0, abs=0.1)
    assert score.current.n == len(second)


def test_accuracy_is_of_the_held_out_domains():
    own, other = labelled(300), labelled(300, seed=1, prefix="q")
    other["margin"] = np.where(other["domain"] == "code", -np.abs(other["margin"]), np.abs(other["margin"]))
    code = drift(own, other, held_out=["code"])
    assert code.accuracy["current"].value == 0 and drift(own, other, held_out=["chat"]).accuracy["current"].value == 1
    assert 0.4 < drift(own, other).accuracy["current"].value < 0.6


def test_sides_that_have_nothing_in_common_are_an_error():
    own = {"prompt_id": np.arange(20), "score": np.arange(20.0)}
    with pytest.raises(UsageError, match="no column in common"):
        drift(own, {"prompt_id": np.arange(20), "length_chars": np.arange(20)})
    with pytest.raises(UsageError, match="0 of them prompt_id"):
        drift({"score": np.arange(20.0)}, own)


# ---- files


def rows_of(n_prompts, *, shift=0.0, seed=0, per_prompt=3):
    rng = np.random.default_rng(seed)
    return [
        {"prompt": f"What is {prompt}?", "completion": "yes " * int(rng.integers(1, 9)), "domain": "ab"[prompt % 2],
         "score": float(rng.normal(shift)), "refused": bool(rng.random() < 0.2)}
        for prompt in range(n_prompts) for _ in range(per_prompt)
    ]  # fmt: skip


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_command_alarms_with_exit_code_1_and_keeps_a_history(rmtrl, tmp_path):
    first, same = write(tmp_path / "a.jsonl", rows_of(60)), write(tmp_path / "b.jsonl", rows_of(60, seed=1))
    other, history = write(tmp_path / "c.jsonl", rows_of(60, shift=1.0, seed=2)), tmp_path / "history.jsonl"
    code, out, err = rmtrl("drift", first, same, "--watch", "refused", "--history", history, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["schema"] == "rmtrl/drift/1" and not found["alarm"] and found["shared_prompts"] == 60
    assert [own["name"] for own in found["columns"]] == ["domain", "length_chars", "score", "refused"]
    assert found["n_permutations"] == 999 and found["columns"][2]["reference"]["n"] == 180
    code, out, _ = rmtrl("drift", first, other, "--watch", "refused", "--history", history)
    assert code == 1 and "DRIFT in score" in out and "999 permutations of prompts, 60 exchanged within" in out
    kept = [json.loads(line) for line in history.read_text().splitlines()]
    assert [own["alarm"] for own in kept] == [False, True]
    assert {name: kept[0][name] for name in ("p", "columns", "data")} == {
        n: found[n] for n in ("p", "columns", "data")
    }


def test_an_unfinished_write_leaves_the_history_and_a_broken_one_is_no_input(rmtrl, tmp_path, monkeypatch):
    first, history = write(tmp_path / "a.jsonl", rows_of(40)), tmp_path / "history.jsonl"
    same = write(tmp_path / "c.jsonl", rows_of(40))
    other = write(tmp_path / "b.jsonl", rows_of(40, shift=3.0, seed=1))
    assert rmtrl("drift", first, same, "--history", history)[0] == 0
    before = history.read_bytes()

    def killed(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr("os.write", killed)
        code, _, err = rmtrl("drift", first, same, "--history", history)
        assert code == 2 and "cannot write" in err and history.read_bytes() == before
        code, out, err = rmtrl("drift", first, other, "--history", history)
    assert code == 1 and "DRIFT" in out and "warning: cannot write" in err and history.read_bytes() == before
    assert rmtrl("drift", first, same, "--history", history)[0] == 0
    assert history.read_bytes().startswith(before) and len(history.read_text().splitlines()) == 2
    history.write_text("{half")
    code, out, err = rmtrl("drift", first, other, "--history", history)
    assert code == 2 and "history.jsonl row 1" in err and history.read_text() == "{half" and not out
    code, _, err = rmtrl("drift", first, same, "--history", first)
    assert code == 2 and "read as input" in err


def pair_files(tmp_path, name, *, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    pairs = [
        {"id": f"{i}", "prompt": f"What is {i}? ", "chosen": "yes " * (i % 5 + 1), "rejected": "no", "domain": "q"}
        for i in range(120)
    ]
    scores = [
        {"id": f"{i}", "scores": [scale * float(rng.normal(1.5)), scale * float(rng.normal())]} for i in range(119)
    ]
    files = write(tmp_path / f"{name}.jsonl", pairs), write(tmp_path / f"{name}-scores.jsonl", scores)
    return files


def test_pairs_with_scores_and_a_calibration(rmtrl, tmp_path):
    (first, scores), (other, others) = pair_files(tmp_path, "a"), pair_files(tmp_path, "b", seed=1)
    stored = tmp_path / "calibration.json"
    assert rmtrl("calibrate", first, "--scores", scores, "--out", stored)[0] == 0
    code, out, err = rmtrl("drift", first, other, "--scores", scores, others, "--calibration", stored, "--json")
    found = json.loads(out)
    assert code == 0 and {own["name"] for own in found["columns"]} == {
        "domain", "length_chars", "score", "margin", "accuracy", "expected accuracy", "score missing"
    }  # fmt: skip
    assert found["columns"][-1]["reference"]["value"] == pytest.approx(1 / 120)  # a pair without scores is one
    assert found["accuracy"]["current"]["n"] == 119 == found["expected_accuracy"]["reference"]["n"]
    code, out, _ = rmtrl("drift", first, other, "--scores", scores, others, "--no-labels", "--json")
    assert "accuracy" not in {own["name"] for own in json.loads(out)["columns"]}
    code, out, _ = rmtrl("drift", scores, others, "--json")  # files of scores alone: each pair a prompt
    assert {own["name"] for own in json.loads(out)["columns"]} == {"score", "margin", "accuracy"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"score": 1.0}, "no prompt"),
        ({"prompt_id": "a", "refused": 1, "score": "high"}, "score is of type str ('high')"),
        ({"prompt_id": "a", "refused": None, "scores": [1.0]}, "scores is '[1.0]'"),
        ({"prompt_id": "a", "score": 1.0}, "no refused"),
        ({"prompt_id": "a", "refused": "no"}, "refused is of type str ('no')"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(tmp_path, row, said):
    file = write(tmp_path / "rows.jsonl", [{"prompt_id": "a", "score": 0.5, "refused": None}, row])
    with pytest.raises(DataError, match="rows.jsonl row 2") as raised:
        read_watched(str(file), watch=["refused"])
    assert said in str(raised.value)


def test_a_csv_file_says_numbers_in_words(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("prompt_id,score,refused,domain\na,0.5,true,x\nb,,false,\n")
    found = read_watched(str(file), watch=["refused"])
    assert found["refused"].tolist() == [1.0, 0.0] and found["domain"].tolist() == ["x", ""]
    assert found["score"][0] == 0.5 and np.isnan(found["score"][1])


def test_a_scorer_that_dies_is_an_alarm_and_a_column_that_never_was_bad_usage(rmtrl, tmp_path):
    first = write(tmp_path / "a.jsonl", rows_of(60))
    dead = write(tmp_path / "b.jsonl", [row | {"score": None, "refused": None} for row in rows_of(60, seed=1)])
    code, out, _ = rmtrl("drift", first, dead, "--watch", "refused")
    assert code == 1 and "score (values on one side alone)" in out and "refused (values on one side alone)" in out
    other = write(tmp_path / "b.jsonl", rows_of(60, seed=2))
    code, _, err = rmtrl("drift", first, other, "--watch", "helpful")
    assert code == 2 and "no helpful" in err and len(err.splitlines()) == 1
    empty = [write(tmp_path / n, [r | {"refused": None} for r in rows_of(60, seed=3)]) for n in ("d.jsonl", "e.jsonl")]
    code, _, err = rmtrl("drift", *empty, "--watch", "refused")
    assert code == 2 and "refused has no values on either side" in err


def test_pairs_that_lost_their_scores_are_an_alarm(rmtrl, tmp_path):
    (first, scores), (other, others) = pair_files(tmp_path, "a"), pair_files(tmp_path, "b", seed=1)
    others.write_text("".join(others.read_text().splitlines(keepends=True)[:60]))
    code, out, _ = rmtrl("drift", first, other, "--scores", scores, others, "--json")
    found = {own["name"]: own for own in json.loads(out)["columns"]}
    assert code == 1 and found["score missing"]["current"]["value"] == 0.5
    assert (
        found["score"]["missing"] == {"reference": 1, "current": 60}
        and found["length_chars"]["rows"]["current"] == 120
    )


def test_samples_have_no_accuracy(tmp_path):
    samples = {"prompt_id": "a", "completions": ["yes", "no"], "scores": [1.0, 2.0]}
    assert "margin" in (found := read_watched(str(write(tmp_path / "a.jsonl", [samples]))))
    assert np.isnan(found["preference"]).all()
    found = read_watched(str(write(tmp_path / "b.jsonl", [samples | {"preference": 0.0}])))
    assert found["preference"].tolist() == [0.0]


def test_settings_that_say_nothing_are_said_and_a_file_is_not_compared_with_itself(rmtrl, tmp_path):
    first, other = write(tmp_path / "a.jsonl", rows_of(60)), write(tmp_path / "b.jsonl", rows_of(60, seed=1))
    pairs, scores = pair_files(tmp_path, "p")
    stored = tmp_path / "calibration.json"
    assert rmtrl("calibrate", pairs, "--scores", scores, "--out", stored)[0] == 0
    code, _, err = rmtrl("drift", first, other, "--calibration", stored, "--no-labels", "--held-out", "a")
    assert code == 0 and [line.split()[2] for line in err.splitlines()] == ["--calibration", "--held-out"]
    for same in (first, tmp_path / "." / "a.jsonl"):
        code, _, err = rmtrl("drift", first, same)
        assert code == 2 and "reference and current are the same" in err and len(err.splitlines()) == 1
    later = write(tmp_path / "later.jsonl", map(json.loads, scores.read_text().splitlines()))
    assert rmtrl("drift", pairs, pairs, "--scores", scores, later)[0] == 0  # another time's scores of the same pairs


def test_scores_without_pairs_are_refused(rmtrl, tmp_path):
    (_, scores), rows = pair_files(tmp_path, "a"), write(tmp_path / "rows.jsonl", rows_of(10))
    code, _, err = rmtrl("drift", rows, write(tmp_path / "b.jsonl", rows_of(10)), "--scores", scores, scores)
    assert code == 2 and "holds no pairs" in err and len(err.splitlines()) == 1


# ---- stored scores of real models


@pytest.mark.parametrize(("model", "accuracy"), [("internlm2", 0.93), ("grm_gemma", 0.93)])
def test_a_calibration_of_easy_pairs_is_believed_on_hard_ones(real_data, model, accuracy):
    easy, hard = (
        {r["problem"]: r["score"] for r in json.loads(gzip.decompress((real_data / "rewardmath" / f).read_bytes()))}
        for f in (f"rewardbench-math/{model}.json.gz", f"rewardmath/{model}.json.gz")
    )
    half = set(sorted(easy | hard)[::2])
    known = [(prompt, *easy[prompt]) for prompt in easy if prompt in half]
    other = [(prompt, *hard[prompt][:2]) for prompt in hard if prompt not in half]
    sides = [
        {"prompt_id": np.array([p for p, _, _ in own]), "margin": np.array([a - b for _, a, b in own]),
         "preference": np.ones(len(own))}
        for own in (known, other)
    ]  # fmt: skip
    fitted = calibrate(*zip(*[(a, b, p) for p, a, b in known], strict=True))
    found = drift(*sides, calibration=fitted)
    assert found.alarm and found.accuracy["reference"].value == pytest.approx(accuracy, abs=0.03)
    assert found.accuracy["current"].value < 0.85
