"""`rmtrl gate` and `rmtrl fresh`: from a run's folder or a file of evidence to an answer, and unusable input."""

import json

import pytest

from rmtrl.evaluation.evidence import NAMES as EVIDENCE
from rmtrl.io import write_json
from rmtrl.metrics import mean_estimate
from rmtrl.types import json_ready

METRICS = {"schema": "rmtrl/reward-metrics/1"}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def accuracy(value, **conditions):
    return {"value": value, "n": 200, **conditions}


@pytest.fixture
def evidence(tmp_path):
    def make(**items):
        path = tmp_path / "evidence.json"
        write_json(path, {"schema": "rmtrl/evidence/1", **items})
        return path

    return make


@pytest.fixture
def lenient(tmp_path):
    path = tmp_path / "thresholds.yaml"
    path.write_text("schema: rmtrl/thresholds/1\nchecks: {fresh_accuracy: {minimum: 0.8}, lineage: {passed: true, "
                    "otherwise: warn}}\n")  # fmt: skip
    return path


def test_not_ready_says_why_and_exits_with_1(rmtrl, evidence, lenient):
    given = evidence(test_accuracy=accuracy(0.92), fresh_accuracy=accuracy(0.64, reviewed_by="human"))
    code, out, err = rmtrl("gate", given, "--thresholds", lenient)
    lines = out.splitlines()
    assert code == 1 and err == "" and lines[-1].startswith("not ready (score -2.5")
    assert lines[0].startswith("NO       accuracy on the policy's own answers") and "0.640 [0.571, 0.703]" in lines[0]
    assert lines[1].startswith("warning  common origin with the policy")
    assert "-        accuracy on pairs it has not seen: not asked" in lines[2:-1]
    assert not [word for word in EVIDENCE if "_" in word and word in out]


def test_a_folder_of_runs_names_them_and_what_is_not_known_is_no_failure(rmtrl, tmp_path, evidence, lenient):
    for name in ("a", "b"):
        (tmp_path / "runs" / name / "rm").mkdir(parents=True)
        write_json(tmp_path / "runs" / name / "rm" / "audit.json", {"schema": "rmtrl/audit/1"})
    code, _, err = rmtrl("gate", tmp_path / "runs")
    assert code == 2 and f"is a folder of runs; give one of them: {tmp_path / 'runs' / 'a'}, " in err
    code, _, err = rmtrl("gate", tmp_path / "runs" / "a" / "rm" / "audit.json")
    assert code == 2 and "or the folder of the run that the file is of" in err
    code, out, _ = rmtrl("gate", evidence(test_accuracy=accuracy(0.92)), "--thresholds", lenient)
    assert code == 1 and out.startswith("?        accuracy on the policy's own answers, judged by people: no evidence")


def test_ready_exits_with_0_and_json_is_whole(rmtrl, evidence, lenient):
    code, out, _ = rmtrl("gate", evidence(fresh_accuracy=accuracy(0.81, reviewed_by="human")), "--thresholds", lenient,
                         "--json")  # fmt: skip
    found = json.loads(out)
    assert code == 0 and found["schema"] == "rmtrl/gate/1" and found["ready"] is True
    first = found["reasons"][0]
    assert (first["check"], first["passed"], first["n"], first["wanted"]) == (
        "fresh_accuracy",
        True,
        200,
        "at least 0.8",
    )
    assert found["evidence"]["fresh_accuracy"]["reviewed_by"] == "human" and "gamma" in found["not_asked"]


def test_the_default_asks_for_everything(rmtrl, evidence):
    code, out, _ = rmtrl("gate", evidence(), "--json")
    found = json.loads(out)
    assert code == 1 and len(found["reasons"]) == 10 and all(r["got"] == "no evidence" for r in found["reasons"])


def run_folder(tmp_path, base="llama"):
    for stage in ("rm", "sft"):
        write_json(tmp_path / "run" / stage / "config.json", {"model_type": "llama", "hidden_size": 8})
    figure = json_ready(mean_estimate([1, 1, 1, 1, 0] * 40))
    write_json(tmp_path / "run" / "rm" / "metrics.json", METRICS | {"test": {"accuracy": figure}})
    model = {"model_name_or_path": str(tmp_path / "run" / base)}
    write_json(tmp_path / "run" / "rm" / "rmtrl.json", {"schema": "rmtrl/reward-model/1", "model": model})
    return tmp_path / "run"


def test_a_run_is_read_from_its_folder_or_its_reward_models(rmtrl, tmp_path):
    run = run_folder(tmp_path, base="sft")
    for folder in (run, run / "rm"):
        code, out, _ = rmtrl("gate", folder, "--json")
        found = json.loads(out)["evidence"]
        assert code == 1 and found["test_accuracy"]["n"] == 200
        assert found["lineage"]["passed"] is True and found["lineage"]["source"].endswith("sft")


def test_a_policy_of_another_base_is_warned_of(rmtrl, tmp_path):
    run = run_folder(tmp_path)
    write_json(tmp_path / "other" / "config.json", {"model_type": "qwen3", "hidden_size": 16})
    _, out, _ = rmtrl("gate", run, "--policy", tmp_path / "other")
    line = next(line for line in out.splitlines() if " common origin " in line)
    assert line.startswith("warning") and "differ in model_type llama and qwen3, hidden_size 8 and 16" in line
    _, out, _ = rmtrl("gate", run)
    assert "name no common base" in out and f"`rmtrl report {run}` says how to measure" in out.splitlines()[-1]


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "cannot be read"), ("{", "not JSON"), ("[]", "no JSON object"),
     ("{}", "schema none; wanted rmtrl/evidence/1"),
     ('{"schema": "rmtrl/evidence/1", "ece": {"value": NaN, "n": 3}}', "a number"),
     ('{"schema": "rmtrl/evidence/1", "ece": 3}', "wanted"),
     ('{"schema": "rmtrl/evidence/1", "ece": {"value": 0, "low": 0, "high": 0, "n": 3, "level": "x"}}', "level"),
     ("[" * 100_000, "not JSON")],
)  # fmt: skip
def test_evidence_that_cannot_be_used_is_one_line(rmtrl, tmp_path, text, message):
    path = tmp_path / "evidence.json"
    if text is not None:
        path.write_text(text)
    code, out, err = rmtrl("gate", path)
    assert (code, out) == (2, "") and message in err and str(path) in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("metrics.json", "rmtrl/reward-metrics/1"), ("rmtrl.json", "rmtrl/reward-model/1"),
     ("calibration.json", "rmtrl/calibration/1"), ("audit.json", "rmtrl/audit/1"), ("fresh.json", "rmtrl/fresh/1"),
     ("overoptimization.json", "rmtrl/overoptimization/1")],
)  # fmt: skip
@pytest.mark.parametrize("stored", [{}, {"schema": "trainer/1"}])
def test_a_file_of_a_run_with_another_schema_is_named_and_no_missing_evidence(rmtrl, tmp_path, name, wanted, stored):
    write_json(run_folder(tmp_path) / "rm" / name, stored)
    code, out, err = rmtrl("gate", tmp_path / "run")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert f"{tmp_path / 'run' / 'rm' / name} has the schema {stored.get('schema', 'none')}; wanted {wanted}" in err


def test_folders_and_thresholds_that_cannot_be_used_are_one_line(rmtrl, tmp_path, evidence):
    (tmp_path / "empty").mkdir()
    (tmp_path / "t.yaml").write_text("checks: [")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    for arguments, message in [
        ((tmp_path / "empty",), "holds none of"),
        ((evidence(), "--thresholds", tmp_path / "t.yaml"), "not YAML"),
        ((evidence(), "--thresholds", tmp_path / "b.yaml"), "not UTF-8"),
        ((evidence(), "--thresholds", tmp_path / "none.yaml"), "cannot be read"),
        ((evidence(), "--policy", "x"), "state the lineage in the file"),
    ]:
        code, out, err = rmtrl("gate", *arguments)
        assert (code, out) == (2, "") and message in err and err.count("\n") == 1


# fresh


@pytest.fixture
def generations(tmp_path):
    rows = [{"prompt": f"red {i} ?", "completions": [" good", " bad", " bad"]} for i in range(130)]
    return write(tmp_path / "generations.jsonl", rows)


def sample(rmtrl, tmp_path, generations, *more):
    return rmtrl("fresh", "sample", generations, "--out", tmp_path / "review.jsonl", "--key", tmp_path / "key.json",
                 "--n", 120, "--policy", "sft", *more)  # fmt: skip


def judge(path, right=1.0):
    """A reviewer who prefers ' good', and is right in this share of the pairs."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for i, row in enumerate(rows):
        better = "a" if row["a"] == " good" else "b"
        row |= {"verdict": better if i < right * len(rows) else "ab".replace(better, ""), "reviewer": "ann"}
    write(path, rows)
    return rows


def test_from_generations_to_the_gate(rmtrl, tmp_path, generations):
    code, out, _ = sample(rmtrl, tmp_path, generations, "--json")
    assert code == 0 and json.loads(out)["pairs"] == 120 and json.loads(out)["skipped"] == 0
    review = tmp_path / "review.jsonl"
    assert "completions" not in review.read_text() and "prompt_id" not in review.read_text()
    judge(review, right=0.9)
    code, out, _ = rmtrl("fresh", "import", review, "--key", tmp_path / "key.json", "--by", "human", "--out",
                         tmp_path / "verdicts.jsonl", "--json")  # fmt: skip
    verdicts = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert code == 0 and json.loads(out)["verdicts"] == len(verdicts) == 120
    scores = write(
        tmp_path / "scores.jsonl",
        [{"id": row["id"], "scores": [float(row[side] == " good") for side in "ab"]} for row in verdicts][::-1],
    )
    run = run_folder(tmp_path)
    code, out, err = rmtrl("fresh", "score", tmp_path / "verdicts.jsonl", "--scores", scores, "--out",
                           run / "rm" / "fresh.json", "--json")  # fmt: skip
    found = json.loads(out)
    assert code == 0 and err == "" and found["schema"] == "rmtrl/fresh/1" and found["policy"] == "sft"
    assert found["accuracy"]["value"] == 108 / 120 and found["accuracy"]["n"] == 120
    _, out, _ = rmtrl("gate", run, "--json")
    fresh = next(reason for reason in json.loads(out)["reasons"] if reason["check"] == "fresh_accuracy")
    assert fresh["passed"] and fresh["value"] == 108 / 120


def test_a_models_verdicts_are_scored_with_a_warning_and_are_no_evidence(rmtrl, tmp_path, generations):
    sample(rmtrl, tmp_path, generations)
    judge(tmp_path / "review.jsonl")
    verdicts, run = tmp_path / "verdicts.jsonl", run_folder(tmp_path)
    rmtrl(
        "fresh",
        "import",
        tmp_path / "review.jsonl",
        "--key",
        tmp_path / "key.json",
        "--by",
        "model",
        "--out",
        verdicts,
    )
    rows = [json.loads(line) for line in verdicts.read_text().splitlines()]
    scores = write(tmp_path / "scores.jsonl", [{"id": r["id"], "scores": [r["a"] == " good", 0.5]} for r in rows])
    assert rmtrl("fresh", "score", verdicts, "--scores", scores)[0] == 2  # true is no number
    scores = write(tmp_path / "scores.jsonl", [{"id": r["id"], "scores": [int(r["a"] == " good"), 0.5]} for r in rows])
    code, out, err = rmtrl("fresh", "score", verdicts, "--scores", scores, "--out", run / "fresh.json")
    assert code == 0 and "accuracy" in out and "no evidence" in err
    _, out, _ = rmtrl("gate", run)
    assert "no evidence: reviewed by model, wanted human" in out


def test_a_reward_model_scores_fresh_pairs(rmtrl, tmp_path, generations, model, tokenizer):
    from rmtrl import RewardScorer

    model.save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    sample(rmtrl, tmp_path, generations)
    rows = judge(tmp_path / "review.jsonl")
    verdicts = tmp_path / "verdicts.jsonl"
    rmtrl(
        "fresh",
        "import",
        tmp_path / "review.jsonl",
        "--key",
        tmp_path / "key.json",
        "--by",
        "human",
        "--out",
        verdicts,
    )
    code, out, _ = rmtrl("fresh", "score", verdicts, "--model", tmp_path / "rm", "--json")
    scorer = RewardScorer.from_pretrained(tmp_path / "rm", progress=False)
    good, bad = (scorer.score([row["prompt"] + side for row in rows]) for side in (" good", " bad"))
    assert code == 0 and json.loads(out)["accuracy"]["value"] == pytest.approx((good > bad).mean())


def test_a_policy_writes_the_pairs(rmtrl, tmp_path, tokenizer):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    LlamaForCausalLM(LlamaConfig(pad_token_id=tokenizer.pad_token_id, **sizes, **settings)).save_pretrained(
        tmp_path / "sft"
    )
    tokenizer.save_pretrained(tmp_path / "sft")
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": f"red {i} ?"} for i in range(4)])
    code, out, _ = rmtrl("fresh", "sample", prompts, "--model", tmp_path / "sft", "--max-new-tokens", 4, "--n", 3,
                         "--out", tmp_path / "r.jsonl", "--key", tmp_path / "k.json", "--json")  # fmt: skip
    assert code == 0 and json.loads(out)["pairs"] == 3
    assert json.loads((tmp_path / "k.json").read_text())["policy"] == str(tmp_path / "sft")


def test_fewer_prompts_than_the_default_are_all_drawn_and_said(rmtrl, tmp_path, generations):
    files = ("--out", tmp_path / "r.jsonl", "--key", tmp_path / "k.json")
    code, out, err = rmtrl("fresh", "sample", generations, *files, "--json")
    assert code == 0 and json.loads(out)["pairs"] == 130
    assert "all 130 prompts with two different completions are drawn, fewer than 200" in err
    many = [{"prompt": f"red {i} ?", "completions": [" good", " bad"]} for i in range(201)]
    code, out, err = rmtrl("fresh", "sample", write(tmp_path / "many.jsonl", many), *files, "--json")
    assert (code, json.loads(out)["pairs"], err) == (0, 200, "")
    alike = write(tmp_path / "alike.jsonl", [{"prompt": "red ?", "completions": [" good", " good"]}])
    code, out, err = rmtrl("fresh", "sample", alike, *files)
    assert (code, out) == (2, "") and "none of the 1 rows has two different completions" in err


def test_a_judged_review_is_not_replaced(rmtrl, tmp_path, generations):
    assert sample(rmtrl, tmp_path, generations)[0] == sample(rmtrl, tmp_path, generations)[0] == 0
    judge(tmp_path / "review.jsonl")
    code, _, err = sample(rmtrl, tmp_path, generations)
    assert code == 2 and "holds 120 verdicts" in err


@pytest.mark.parametrize("judgement", [{"rating_a": 4, "rating_b": 2}, {"rating_a": 0}])
def test_a_review_judged_by_ratings_is_not_replaced(rmtrl, tmp_path, generations, judgement):
    sample(rmtrl, tmp_path, generations)
    review = tmp_path / "review.jsonl"
    rows = [json.loads(line) for line in review.read_text().splitlines()]
    write(review, [rows[0] | judgement, *rows[1:]])
    code, _, err = sample(rmtrl, tmp_path, generations)
    assert code == 2 and "holds 1 verdicts" in err and "rating_a" in review.read_text()


def test_evidence_does_not_outlive_its_model(rmtrl, tmp_path, model, tokenizer):
    run = tmp_path / "run"
    model.save_pretrained(run / "rm")
    tokenizer.save_pretrained(run / "rm")
    row = {"id": "v0", "prompt_id": "p", "prompt": "red", "a": " good", "b": " bad", "verdict": "a",
           "reviewer": "ann", "reviewed_by": "human", "policy": ""}  # fmt: skip
    verdicts = write(tmp_path / "verdicts.jsonl", [row])
    thresholds = tmp_path / "t.yaml"
    thresholds.write_text("{schema: rmtrl/thresholds/1, checks: {fresh_accuracy: {minimum: 0}}}")
    rmtrl("fresh", "score", verdicts, "--model", run / "rm", "--out", run / "fresh.json")
    assert rmtrl("gate", run, "--thresholds", thresholds)[0] == 0
    model.score.weight.data += 1  # trained again
    model.save_pretrained(run / "rm")
    code, out, _ = rmtrl("gate", run, "--thresholds", thresholds)
    assert code == 1 and "no evidence: of another model" in out
    stored = json.loads((run / "fresh.json").read_text())
    write_json(run / "fresh.json", stored | {"model_fingerprint": None})
    code, out, _ = rmtrl("gate", run, "--thresholds", thresholds, "--json")
    assert code == 0 and json.loads(out)["reasons"][0]["source"] == "fresh.json; names no model"


def test_figures_of_training_are_those_beside_the_weights(rmtrl, tmp_path):
    run = run_folder(tmp_path)
    write_json(run / "metrics.json", METRICS | {"test": {"accuracy": json_ready(mean_estimate([1] * 200))}})
    (run / "rm" / "metrics.json").unlink()
    _, out, _ = rmtrl("gate", run, "--json")
    assert "test_accuracy" not in json.loads(out)["evidence"]


def test_fresh_input_that_cannot_be_used_is_one_line(rmtrl, tmp_path, generations):
    sample(rmtrl, tmp_path, generations)
    review, key, out = tmp_path / "review.jsonl", tmp_path / "key.json", tmp_path / "out.jsonl"
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"id": 1}\nnot json\n')
    listed, empty = write(tmp_path / "list.jsonl", [[1]]), write(tmp_path / "empty.jsonl", [])
    taking = ("--out", out)
    verdict = {"id": "v0", "prompt_id": "p", "prompt": "q", "a": "x", "b": "y", "verdict": "a", "reviewer": "ann",
               "reviewed_by": "human", "policy": ""}  # fmt: skip
    verdicts = write(tmp_path / "verdicts.jsonl", [verdict])
    five_times = write(tmp_path / "five_times.jsonl", [verdict] * 5)
    listed_id = write(tmp_path / "listed_id.jsonl", [verdict | {"id": ["v0"]}])

    def scored(id, first=1.0):
        return write(tmp_path / f"scored-{id}-{first}.jsonl", [{"id": id, "scores": [first, 0.0]}])

    for arguments, message in [
        (("sample", generations, "--out", out, "--key", key, "--n", 1000), "wanted 1 to 130"),
        (("sample", generations, "--out", generations, "--key", key), "is read as input"),
        (("sample", generations, "--out", out, "--key", out), "give two files"),
        (("sample", review, "--out", out, "--key", key), "no generation"),
        (("sample", review, "--out", tmp_path, "--key", key), "is read as input"),
        (("import", review, "--key", key, "--by", "human", *taking), "120 of 120 pairs have no verdict"),
        (("import", broken, "--key", key, "--by", "human", *taking), "row 2 is not JSON"),
        (("import", listed, "--key", key, "--by", "human", *taking), "row 1 is not a JSON object"),
        (("import", empty, "--key", key, "--by", "human", *taking), "is empty"),
        (("import", review, "--key", review, "--by", "human", *taking), "not JSON"),
        (("import", review, "--key", key, "--by", "cat", *taking), "human or model"),
        (("score", review), "either --model or --scores"),
        (("score", generations, "--scores", broken), "wanted verdicts"),
        (("score", review, "--scores", broken), "without prompt_id"),
        (("score", verdicts, "--scores", broken), "row 1: '{\"id\": 1}' is no line of scores"),
        (("score", listed_id, "--scores", broken), "without id"),
        (("score", verdicts, "--scores", scored(["v0"])), "is no line of scores"),
        (("score", verdicts, "--scores", scored("v0", float("nan"))), '"v0"'),
        (("score", verdicts, "--scores", scored("v1")), "the first is of 'v0'"),
        (("score", five_times, "--scores", scored("v0")), "'v0' by 'ann' twice"),
    ]:
        code, printed, err = rmtrl("fresh", *arguments)
        assert (code, printed) == (2, ""), arguments
        assert message in err and err.count("\n") == 1 and not out.exists()
