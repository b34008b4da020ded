"""`rmtrl rerank`: the best of given candidates and of sampled ones, and input it cannot use."""

import json

import numpy as np
import pytest

from rmtrl import RewardScorer
from rmtrl.generation import TransformersGenerator


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_best_candidate_is_written_with_all_scores(rmtrl, checkpoint, tmp_path):
    rows = [
        {"id": "a", "prompt": "red ?", "candidates": [" good", " bad one", " sun moon"]},
        {"id": "b", "prompt": "blue ?", "candidates": [" yes"]},
        {"id": "c", "prompt": "sea ?", "candidates": [" one " * 400, " no"]},
        {"id": "d", "prompt": "sea ?", "candidates": [" one " * 400]},
    ]
    data, out = write(tmp_path / "in.jsonl", *rows), tmp_path / "out.jsonl"
    code, stdout, stderr = rmtrl("rerank", data, "--model", checkpoint, "--out", out, "--json")
    assert code == 0, stderr
    got, scorer = lines(out), RewardScorer.from_pretrained(checkpoint, progress=False)
    scores = scorer.score(["red ?" + own for own in rows[0]["candidates"]])
    np.testing.assert_allclose(got[0]["scores"], scores, atol=1e-5)
    assert got[0]["best"] == rows[0]["candidates"][int(scores.argmax())] and got[0]["index"] == int(scores.argmax())
    assert [row["id"] for row in got] == ["a", "b", "c", "d"] and got[1]["best"] == " yes"
    assert got[2]["best"] == " no" and got[2]["scores"][0] is None
    assert (got[3]["best"], got[3]["index"], got[3]["scores"]) == (None, None, [None])
    whole = json.loads(stdout)
    assert whole["schema"] == "rmtrl/rerank/1"
    assert (whole["n"], whole["candidates"], whole["too_long"], whole["unranked"]) == (4, 7, 2, 1)
    assert whole["gain"]["value"] == pytest.approx((scores.max() - scores.mean()) / 3, abs=1e-5)
    assert "1 prompts have no candidate that the model holds" in stderr
    table = rmtrl("rerank", data, "--model", checkpoint, "--out", out)[1]
    assert "best above the mean" in table and str(out) in table


def test_messages_are_rendered_with_the_template(rmtrl, checkpoint, tmp_path):
    prompt = [{"role": "user", "content": "red ?"}]
    answers = [[{"role": "assistant", "content": text}] for text in ("good", "bad")]
    for candidates in (answers, ["good", "bad"]):
        data = write(tmp_path / "in.jsonl", {"prompt": prompt, "candidates": candidates})
        assert rmtrl("rerank", data, "--model", checkpoint, "--out", tmp_path / "out.jsonl")[0] == 0
        wanted = RewardScorer.from_pretrained(checkpoint, progress=False).score([prompt + own for own in answers])
        np.testing.assert_allclose(lines(tmp_path / "out.jsonl")[0]["scores"], wanted, atol=1e-5)


def test_candidates_come_from_a_policy(rmtrl, checkpoint, policy, tmp_path):
    prompts = ["red ?", "one two three ?"]
    data, out = write(tmp_path / "in.jsonl", *({"prompt": prompt} for prompt in prompts)), tmp_path / "out.jsonl"
    command = [
        "rerank",
        data,
        "--model",
        checkpoint,
        "--policy",
        policy,
        "--n",
        2,
        "--max-new-tokens",
        5,
        "--out",
        out,
    ]
    code, _, stderr = rmtrl(*command, "--seed", 4)
    assert code == 0, stderr
    got = lines(out)
    generator = TransformersGenerator.from_pretrained(policy, max_new_tokens=5)
    made = [[one.text for one in own] for own in generator.generate(prompts, 2, seed=4)]
    assert [row["candidates"] for row in got] == made
    assert all(row["best"] == row["candidates"][int(np.argmax(row["scores"]))] for row in got)
    assert rmtrl(*command, "--seed", 4, "--batch-size", 1)[0] == 0 and lines(out) == got


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([{"candidates": ["a"]}], "in.jsonl row 1 has the prompt 'None'"),
        ([{"prompt": "red"}], "wanted a list of texts, or --policy"),
        ([{"prompt": "red", "candidates": []}], "wanted a list of texts"),
        ([{"prompt": "red", "candidates": "text"}], "in.jsonl row 1 has the candidates 'text'"),
        ([{"prompt": "red", "candidates": ["one " * 400]}], "none of the 1 prompts"),
        ([], "empty"),
    ],
)
def test_input_that_cannot_be_used_is_one_line_and_exit_code_2(rmtrl, checkpoint, tmp_path, rows, wanted):
    out = tmp_path / "out.jsonl"
    code, stdout, stderr = rmtrl("rerank", write(tmp_path / "in.jsonl", *rows), "--model", checkpoint, "--out", out)
    *_, last = stderr.splitlines()  # before it may stand the bar of weights being loaded
    assert (code, stdout) == (2, "") and not out.exists()
    assert last.startswith("rmtrl: error: ") and wanted in last and "Traceback" not in stderr, stderr


def test_a_model_that_is_none_is_refused(rmtrl, checkpoint, tmp_path):
    data = write(tmp_path / "in.jsonl", {"prompt": "red", "candidates": ["a"]})
    code, _, stderr = rmtrl("rerank", data, "--model", tmp_path / "none", "--out", tmp_path / "out.jsonl")
    assert code == 2 and "no reward model at" in stderr
    code, _, stderr = rmtrl(
        "rerank", data, "--model", checkpoint, "--policy", checkpoint, "--out", tmp_path / "o.jsonl"
    )
    assert code == 2 and "give a language model" in stderr and not (tmp_path / "o.jsonl").exists()
