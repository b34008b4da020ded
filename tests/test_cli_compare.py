"""`rmtrl compare`: policies on the same prompts, by a reward model and by references."""

import json
import shutil

import pytest

from rmtrl import RewardScorer, TransformersGenerator
from rmtrl.evaluation.policy import compare_policies, evaluate_policies

PROMPTS = [{"id": f"p{i}", "prompt": f"red {i} sun ?", "reference": "moon sea"} for i in range(12)]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    return path


@pytest.fixture
def compare(rmtrl, prompts):
    """Runs the command with short answers; returns exit code, result and stderr."""

    def run(*arguments):
        code, out, err = rmtrl("compare", prompts, "--max-new-tokens", 4, "--json", *arguments)
        return code, json.loads(out) if out else None, err

    return run


def test_the_figures_are_those_of_the_library_one_policy_in_memory_at_a_time(compare, policy, checkpoint, tmp_path):
    other = shutil.copytree(policy, tmp_path / "other")
    code, found, _ = compare("--policy", policy, "--policy", other, "--model", checkpoint, "--n", 2, "--seed", 3)
    generators = {str(path): TransformersGenerator.from_pretrained(path, max_new_tokens=4) for path in (policy, other)}
    asked = [row["prompt"] for row in PROMPTS]
    results = evaluate_policies(generators, asked, RewardScorer(checkpoint), n=2, seed=3)
    assert code == 0 and list(found["policies"]) == [str(policy), str(other)]
    for name, own in results.items():
        assert found["policies"][name]["mean"]["value"] == pytest.approx(own.mean.value, abs=1e-6)
        assert set(found["policies"][name]) == {"mean", "truncated", "length_chars"}
    (against,) = found["compared"].values()
    assert found["baseline"] == str(policy) and list(found["compared"]) == [str(other)]
    # the same weights, prompts and seed: the same answers
    assert against["difference"]["value"] == 0 and against["win_rate"]["value"] == 0.5
    assert compare_policies(results)[str(other)].difference.n == against["difference"]["n"] == 12


def test_every_answer_is_a_line_with_its_score(compare, policy, tmp_path):
    out = tmp_path / "answers.jsonl"
    code, found, _ = compare("--policy", policy, "--metric", "word_f1", "--n", 3, "--out", out)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert code == 0 and [line["id"] for line in lines] == [row["id"] for row in PROMPTS]
    assert all(len(line["completions"]) == len(line["scores"]) == 3 for line in lines)
    mean = sum(sum(line["scores"]) / 3 for line in lines) / 12
    assert found["policies"][str(policy)]["mean"]["value"] == pytest.approx(mean)
    assert found["compared"] == {} and found["out"] == str(out)


def test_a_policy_surely_below_the_baseline_is_exit_code_1_where_it_is_asked(compare, policy, tmp_path, monkeypatch):
    from rmtrl.evaluation import policy as harness

    worse = shutil.copytree(policy, tmp_path / "worse")
    given = iter([1.0] * 12 + [0.0] * 12)
    monkeypatch.setitem(harness.METRICS, "exact_match", lambda text, reference: next(given))
    code, found, _ = compare("--policy", policy, "--policy", worse, "--metric", "exact_match", "--strict")
    assert code == 1 and found["compared"][str(worse)]["difference"]["value"] == -1
    given = iter([0.0] * 12 + [1.0] * 12)
    assert compare("--policy", policy, "--policy", worse, "--metric", "exact_match", "--strict")[0] == 0


def test_the_table_has_a_row_a_policy(rmtrl, prompts, policy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(policy, "other")
    given = ("--policy", policy.name, "--policy", "other", "--metric", "word_f1", "--max-new-tokens", 4)
    code, out, _ = rmtrl("compare", prompts, *given, "--baseline", "other")
    assert code == 0 and "above the baseline" in out
    (row,) = [line for line in out.splitlines() if line.startswith("policy  ") and "score" not in line]
    assert "0.500 [" in row and "0.000 [0.000, 0.000]" in row


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--policy", "{policy}"], "wanted either --model or --metric"),
        (["--policy", "{policy}", "--model", "{rm}", "--metric", "word_f1"], "wanted either --model or --metric"),
        (["--policy", "{policy}", "--policy", "{policy}", "--metric", "word_f1"], "twice; name each policy once"),
        (["--policy", "{policy}", "--metric", "word_f1", "--baseline", "x"], "got --baseline x; wanted one of"),
        (["--policy", "{policy}", "--metric", "bleu"], "got --metric bleu; wanted exact_match or word_f1"),
        (["--policy", "{rm}", "--metric", "word_f1"], "lacks a trained language model head"),
        (["--policy", "{policy}", "--metric", "word_f1", "--out", "{prompts}"], "which is read as input"),
    ],
)
def test_what_cannot_be_compared_is_one_line(compare, prompts, policy, checkpoint, given, said):
    places = {"policy": policy, "rm": checkpoint, "prompts": prompts}
    code, found, err = compare(*(own.format(**places) for own in given))
    lines = [line for line in err.splitlines() if line.startswith("rmtrl: error:")]
    assert (code, found, len(lines)) == (2, None, 1) and said in lines[0]


def test_a_metric_needs_a_reference_in_every_row(compare, prompts, policy):
    prompts.write_text(json.dumps(PROMPTS[0]) + "\n" + json.dumps({"prompt": "blue ?"}) + "\n")
    code, _, err = compare("--policy", policy, "--metric", "exact_match")
    assert code == 2 and "1 prompts without reference, first" in err and "row 2" in err
