"""A function at the root and the command of its name say the same."""

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

import rmtrl as root
from rmtrl.errors import DataError, UsageError
from rmtrl.types import json_ready

EXAMPLES = Path(__file__).parents[1] / "examples"


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def said(rmtrl):
    def run(*arguments):
        return json.loads(rmtrl(*arguments, "--json")[1])

    return run


def test_evaluate(said, checkpoint, tmp_path):
    kitchen = str(EXAMPLES / "benchmark")
    (model,) = said("evaluate", "--benchmark", kitchen, "--model", checkpoint)["models"]
    run = root.evaluate(checkpoint, kitchen)
    assert json_ready(run.results["kitchen"].overall) == model["benchmarks"]["kitchen"]["overall"]
    again = root.evaluate(str(checkpoint), [kitchen], str(tmp_path / "out"))
    assert again.results == run.results and (tmp_path / "out" / "kitchen" / "result.json").is_file()
    with pytest.raises(UsageError, match="got a RewardScorer; wanted the folder, hub id or URL"):
        root.evaluate(root.RewardScorer(checkpoint), kitchen)


def test_audit(said, checkpoint, rows, tmp_path):
    given = [row | {"prompt_id": f"p{i}"} for i, row in enumerate(rows(30))]
    pairs = written(tmp_path / "pairs.jsonl", given)
    found = said("audit", pairs, "--model", checkpoint, "--probe-rows", 5)
    for model, data in ((checkpoint, pairs), (root.RewardScorer(checkpoint), Dataset.from_list(given))):
        own = root.audit(model, data, probe_rows=5)
        assert own.verdict == found["verdict"] and len(own.probes) == len(found["probes"]) > 0
        accuracy = json_ready(own.figures["accuracy"])
        assert accuracy == {name: pytest.approx(value) for name, value in found["figures"]["accuracy"].items()}


def test_gate(said, tmp_path):
    evidence = {"schema": "rmtrl/evidence/1", "test_accuracy": {"value": 0.9, "n": 200}}
    file = written(tmp_path / "evidence.json", [evidence])
    found, decision = said("gate", file), root.gate(file)
    assert decision.ready is found["ready"] is False
    assert json_ready(decision)["reasons"] == found["reasons"]


def test_overoptimization(said, tmp_path):
    rng = np.random.default_rng(0)
    gold = rng.normal(size=400)
    proxy = gold + rng.normal(size=400)
    samples = [{"prompt_id": f"p{i // 8}", "proxy": proxy[i], "gold": gold[i]} for i in range(400)]
    file = written(tmp_path / "samples.jsonl", samples)
    assert json_ready(root.overoptimization(str(file)).whole.gamma) == said("overopt", file)["whole"]["gamma"]


def test_calibrate(said, tmp_path):
    rng = np.random.default_rng(0)
    scores = np.stack([rng.normal(1, 2, 80), rng.normal(0, 2, 80)])
    rows = [{"id": f"p{i}", "scores": scores[:, i].tolist()} for i in range(80)]
    found = said("calibrate", "--scores", written(tmp_path / "scores.jsonl", rows))
    own = root.calibrate(*scores, [row["id"] for row in rows]).as_dict()
    assert own["temperature"] == found["temperature"]
    assert root.calibrate(*scores).as_dict()["temperature"] == found["temperature"]  # every pair its own prompt


@pytest.mark.parametrize("read", [root.validate, root.make_splits])
def test_a_file_in_place_of_pairs_is_answered_with_what_reads_it(read):
    with pytest.raises(DataError, match=r"got a str; wanted a data set of pairs: read_preferences\('pairs.jsonl'\)"):
        read("pairs.jsonl")
    with pytest.raises(DataError, match="got a list; wanted a data set of pairs"):
        read([{"prompt": "a"}])
