"""`rmtrl audit`: from a model, from scores, and input it cannot use."""

import hashlib
import json
import re

import numpy as np
import pytest

from rmtrl import RewardScorer
from rmtrl.data.preferences import read_preferences
from rmtrl.data.provenance import fingerprint
from rmtrl.evaluation.fingerprints import model_fingerprint

ROWS = 240


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pair(i):
    """Pairs of two to a prompt whose chosen side is longer one time in two."""
    words = [" ".join(["good"] * (1 + i % 5)), " ".join(["bad"] * (1 + (i + 1 + i // 5) % 5))]
    return {"id": f"id-{i}", "prompt_id": f"p{i // 2}", "prompt": f"red {i // 2} ?", "chosen": f" {words[0]} {i}",
            "rejected": f" {words[1]} {i}"}  # fmt: skip


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "pairs.jsonl", [pair(i) for i in range(ROWS)])


def scored(tmp_path, reward):
    rng = np.random.default_rng(0)
    rows = [
        {"id": f"id-{i}", "scores": [reward(pair(i)[s], rng) for s in ("chosen", "rejected")]} for i in range(ROWS)
    ]
    return write(tmp_path / "scores.jsonl", rows)


@pytest.fixture
def by_length(tmp_path):
    return scored(tmp_path, lambda text, rng: len(text) + rng.normal())


@pytest.fixture
def by_worth(tmp_path):
    return scored(tmp_path, lambda text, rng: ("good" in text) + 0.2 * rng.normal())


def test_a_length_meter_is_convicted_from_its_scores_alone(rmtrl, data, by_length, tmp_path):
    code, out, err = rmtrl("audit", data, "--scores", by_length, "--out", tmp_path / "a" / "b", "--json", "--strict")
    assert code == 1 and not err
    found = json.loads(out)
    assert (found["schema"], found["verdict"], found["unit"]) == ("rmtrl/audit/1", "convicted", "characters")
    assert (found["n"], found["prompts"], found["probes"]) == (ROWS, ROWS // 2, [])
    assert json.loads((tmp_path / "a" / "b" / "audit.json").read_text()) == found
    plots = sorted(path.name for path in (tmp_path / "a" / "b" / "plots").iterdir())
    assert plots == ["margin_against_length.png", "reward_against_length.png"]
    scores = {row["id"]: row["scores"] for row in map(json.loads, by_length.read_text().splitlines())}
    worst = [json.loads(line) for line in (tmp_path / "a" / "b" / "worst_pairs.jsonl").read_text().splitlines()]
    margins = sorted(chosen - rejected for chosen, rejected in scores.values() if chosen < rejected)
    assert [row["scores"][0] - row["scores"][1] for row in worst] == pytest.approx(margins[:100])
    assert all(row["scores"] == scores[row["id"]] and {"prompt", "chosen", "rejected"} <= set(row) for row in worst)


def test_a_fair_model_is_acquitted_and_strict_is_content(rmtrl, data, by_worth):
    code, out, _ = rmtrl("audit", data, "--scores", by_worth, "--strict")
    assert code == 0 and "length: acquitted" in out
    for line in ("lengths in", "accuracy chosen longer", "length only accuracy", "within spearman", "- accuracy"):
        assert line in out


def test_pairs_without_scores_and_ties_are_left_out_and_counted(rmtrl, tmp_path, by_worth):
    rows = [pair(i) | {"preference": 0.5 if i < 3 else 1.0, "domain": "ab"[i % 4 // 2]} for i in range(ROWS)]
    lines = by_worth.read_text().splitlines(keepends=True)
    lines[10] = json.dumps({"id": "id-10", "scores": [None, None]}) + "\n"
    by_worth.write_text("".join(lines[:-1]))
    code, out, err = rmtrl("audit", write(tmp_path / "ties.jsonl", rows), "--scores", by_worth, "--json")
    found = json.loads(out)
    assert code == 0 and (found["without_scores"], found["ties_left_out"], found["n"]) == (2, 3, ROWS - 5)
    assert found["unscored"] == {"not_in_file": 1, "null_in_file": 1}
    assert "pairs without scores are left out: 1 not in the file of scores: score them too" in err
    assert {name: found["domains"][name]["n"] for name in "ab"} == {"a": 118, "b": 117}


def test_accuracy_is_reweighted_to_a_target_mix_of_domains(rmtrl, tmp_path):
    rows = [pair(i) | {"domain": "maths" if i % 4 < 2 else "chat"} for i in range(ROWS)]
    data = write(tmp_path / "domains.jsonl", rows)
    right = {"maths": 4, "chat": 2}  # of 4 pairs
    lines = [
        {"id": row["id"], "scores": [float(i // 4 % 4 < right[row["domain"]]), 0.5]} for i, row in enumerate(rows)
    ]
    scores = write(tmp_path / "s.jsonl", lines)
    code, out, _ = rmtrl("audit", data, "--scores", scores, "--target-mix", "maths=3,chat=1", "--json")
    found = json.loads(out)
    assert code == 0 and found["figures"]["accuracy"]["value"] == 0.75
    reweighted = found["reweighted"]["accuracy"]
    assert reweighted["value"] == pytest.approx(0.75 * 1 + 0.25 * 0.5) and reweighted["n"] == ROWS
    assert reweighted["low"] < reweighted["value"] < reweighted["high"]
    (tmp_path / "mix.json").write_text('{"maths": 0.75, "chat": 0.25}')
    code, out, _ = rmtrl("audit", data, "--scores", scores, "--target-mix", tmp_path / "mix.json")
    assert code == 0 and re.search(r"^accuracy, target mix +0\.875 \[", out, re.M)
    assert json.loads(rmtrl("audit", data, "--scores", scores, "--json")[1])["reweighted"] is None
    for mix, said in (("maths", "name=number"), ("maths=-1", "0 or more"), ("maths=nan", "0 or more"),
                      ("law=1", "no pair is of law"), ("maths=0", "not all 0")):  # fmt: skip
        code, out, err = rmtrl("audit", data, "--scores", scores, "--target-mix", mix)
        assert code == 2 and not out and "--target-mix" in err and said in err and len(err.splitlines()) == 1


def test_three_pairs_say_what_to_build(rmtrl, tmp_path):
    lengths = [(36, 19), (58, 22), (33, 14)]
    rows = [{"id": f"{i}", "prompt": f"red {i} ?", "chosen": "a" * c, "rejected": "b" * r} for i, (c, r) in
            enumerate(lengths)]  # fmt: skip
    scores = [{"id": f"{i}", "scores": s} for i, s in enumerate([[1.8, 0.7], [2.4, 1.1], [1.6, 0.3]])]
    data, path = write(tmp_path / "three.jsonl", rows), write(tmp_path / "s.jsonl", scores)
    code, out, _ = rmtrl("audit", data, "--scores", path)
    assert code == 0 and "length: not enough evidence" in out and "- build length-matched pairs" in out
    assert re.search(r"^accuracy +1\.000 ", out, re.M) and re.search(r"^mean margin +1\.233 ", out, re.M)


def test_a_model_is_scored_in_tokens_and_probed(rmtrl, data, checkpoint):
    code, out, err = rmtrl("audit", data, "--model", checkpoint, "--probe-rows", 20, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["unit"] == "tokens" and found["n"] == ROWS
    assert (found["without_scores"], found["unscored"]) == (0, {})
    names = [one["name"] for one in found["probes"]]
    assert names[0] == "bold" and names[-1] == "missing end token" and len(names) == 19
    scorer, first = RewardScorer.from_pretrained(checkpoint), [pair(i) for i in range(ROWS)]
    margin = np.subtract(*(scorer.score([p["prompt"] + p[side] for p in first]) for side in ("chosen", "rejected")))
    assert found["figures"]["mean_margin"]["value"] == pytest.approx(float(margin.mean()), abs=1e-5)


def test_pairs_longer_than_the_model_are_counted_as_such(rmtrl, tmp_path, checkpoint):
    rows = [pair(i) for i in range(40)]
    rows[3]["chosen"] = " good" * 5000
    code, out, err = rmtrl("audit", write(tmp_path / "long.jsonl", rows), "--model", checkpoint, "--no-probes")
    assert code == 0 and "pairs without scores are left out: 1 longer than the model takes: shorten" in err
    assert re.search(r"^without scores +1 longer than the model takes: shorten them", out, re.M)


def test_probes_are_shown_in_words_and_can_be_left_out(rmtrl, data, checkpoint):
    code, out, _ = rmtrl("audit", data, "--model", checkpoint, "--probe-rows", 10)
    assert code == 0 and "not sure: 10 conversations" in out and "sycophantic opener" in out
    code, out, _ = rmtrl("audit", data, "--model", checkpoint, "--no-probes")
    assert code == 0 and "sycophantic opener" not in out


def test_the_evidence_names_its_data_and_its_model(rmtrl, data, by_worth, checkpoint, tmp_path):
    found = json.loads(rmtrl("audit", data, "--model", checkpoint, "--no-probes", "--json")[1])
    assert found["model"] == {"name": str(checkpoint), **model_fingerprint(checkpoint)}
    assert found["model"]["sha256"] and found["scores"] is None
    assert found["data"] == {"source": str(data), "split": None, "rows": ROWS,
                             "fingerprint": fingerprint(read_preferences(data))}  # fmt: skip
    again = json.loads(rmtrl("audit", data, "--scores", by_worth, "--json")[1])
    assert again["model"] is None and again["data"] == found["data"]
    assert again["scores"] == {"source": str(by_worth), "sha256": hashlib.sha256(by_worth.read_bytes()).hexdigest()}
    other = write(tmp_path / "other.jsonl", [pair(i) | {"chosen": " good sea"} for i in range(ROWS)])
    found = json.loads(rmtrl("audit", other, "--scores", by_worth, "--json")[1])
    assert found["data"]["fingerprint"] != again["data"]["fingerprint"]


def test_training_pairs_are_audited_only_where_they_are_asked_for(rmtrl, by_worth, tmp_path):
    write(tmp_path / "train.jsonl", [pair(i) for i in range(ROWS)])
    folder = tmp_path / "set"
    folder.mkdir()
    (tmp_path / "train.jsonl").rename(folder / "train.jsonl")
    code, _, err = rmtrl("audit", folder, "--scores", by_worth)
    assert code == 2 and "no split test; it has train" in err and len(err.splitlines()) == 1
    code, out, _ = rmtrl("audit", folder, "--scores", by_worth, "--split", "train", "--json")
    assert code == 0 and json.loads(out)["data"]["split"] == "train"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "either --model or --scores"),
        (("--model", "x", "--scores", "x"), "either --model or --scores"),
        (("--scores", "missing.jsonl"), "cannot be read"),
        (("--model", "missing"), "no reward model at missing"),
        (("--model", "missing", "--out", __file__), f"{__file__} is no folder to write in"),  # before it is loaded
    ],
)
def test_usage_that_cannot_be_is_one_line_and_exit_code_2(rmtrl, data, arguments, said):
    code, out, err = rmtrl("audit", data, *arguments)
    assert code == 2 and not out and len(err.splitlines()) == 1
    assert err.startswith("rmtrl: error:") and said in err


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([[1, 1], [1, 1], [1, 1]], "all 6 scores are 1"),
        ([[1, float("nan")], [1, 2], [2, 3]], "finite or null"),
        ([[None, None]] * 3, "none of the 3 pairs can be audited"),
        ([[1, 2], [2, 1], [0, 1], [0, 1]], "'3', which is none of the pairs"),
        ([], "is empty"),
    ],
)
def test_scores_that_cannot_be_used_are_one_line_and_exit_code_2(rmtrl, tmp_path, scores, said):
    data = write(tmp_path / "p.jsonl", [{"id": f"{i}", **{k: v for k, v in pair(2 * i).items() if k not in (
        "id", "prompt_id")}} for i in range(3)])  # fmt: skip
    path = write(tmp_path / "s.jsonl", [{"id": f"{i}", "scores": s} for i, s in enumerate(scores)])
    code, out, err = rmtrl("audit", data, "--scores", path)
    assert code == 2 and not out and len(err.splitlines()) == 1 and said in err


def test_pairs_of_one_prompt_or_with_one_id_are_one_line_and_exit_code_2(rmtrl, tmp_path, by_worth):
    one = write(tmp_path / "one.jsonl", [pair(i) | {"prompt_id": "p"} for i in range(ROWS)])
    twice = write(tmp_path / "twice.jsonl", [pair(i) | {"id": "id-0"} for i in range(ROWS)])
    for path, said in ((one, f"{ROWS} pairs and 1 prompt"), (twice, "ids of the pairs are not unique")):
        code, out, err = rmtrl("audit", path, "--scores", by_worth)
        assert code == 2 and not out and len(err.splitlines()) == 1 and said in err


def test_an_audit_says_the_ceiling_of_pairs_whose_votes_are_known(rmtrl, tmp_path, by_worth):
    cells = ['{"ann": 1, "bo": 1, "cy": 1}', '{"ann": 1, "bo": 0, "cy": 1}', '{"ann": 1, "bo": 1, "cy": 1}', None]
    known = write(tmp_path / "known.jsonl", [pair(i) | {"votes_by_annotator": cells[i % 4]} for i in range(ROWS)])
    report = json.loads(rmtrl("audit", known, "--scores", by_worth, "--json")[1])
    assert (
        report["ceiling"]["votes_a_pair"] == {"0": 60, "3": 180} and 0.5 < report["ceiling"]["majority"]["value"] < 1
    )
    assert "against the majority of" in rmtrl("audit", known, "--scores", by_worth)[1]


def test_an_audit_without_votes_says_nothing_of_a_ceiling(rmtrl, data, by_worth):
    assert json.loads(rmtrl("audit", data, "--scores", by_worth, "--json")[1])["ceiling"] is None
    assert "ceiling" not in rmtrl("audit", data, "--scores", by_worth)[1]
