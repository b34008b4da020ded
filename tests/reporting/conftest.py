"""A run's folder as its stages leave it, made by their own functions in a second, without a model."""

import json
import shutil

import numpy as np
import pytest
from datasets import Dataset

from rmtrl.calibration.calibration import calibrate
from rmtrl.evaluation.audit import audit_pairs
from rmtrl.evaluation.overoptimization import measure_overoptimization, scored_samples
from rmtrl.evaluation.overoptimization.measure import verdict
from rmtrl.evaluation.probes import Probe
from rmtrl.evaluation.scoring import WORST, ScoredPairs
from rmtrl.io import write_json, write_rows
from rmtrl.launch.policy import paired_figures
from rmtrl.metrics import mean_estimate
from rmtrl.metrics.ceiling import Ceiling
from rmtrl.monitoring.drift import drift
from rmtrl.monitoring.guardrails import read_answers, screen
from rmtrl.monitoring.rules import Policy
from rmtrl.reporting.plots import reliability_diagram, save_figure
from rmtrl.reward.report import pair_figures
from rmtrl.types import Estimate, PairRewards, json_ready

N = 240
LIMIT = Ceiling(900, {3: 900}, Estimate(0.8, 0.78, 0.82, 900), Estimate(0.913, 0.88, 0.92, 900), -1.0, "all is well")
POLICY = "{schema: rmtrl/guard-policy/1, guards: {secrets: {}, refusals: {}}}"


def scored_pairs(seed=0, accuracy=0.85):
    """Pairs of three domains, half of them with the longer answer chosen, and scores right so often."""
    rng = np.random.default_rng(seed)
    rows = [
        {"id": f"pair-{i}", "prompt_id": f"prompt-{i}", "domain": ["cooking", "law", "sports"][i % 3],
         "prompt": f"What is {i}?", "chosen": f"It is {i}." + " Yes." * (i % 2),
         "rejected": f"It is {i + 1}." + " No." * (1 - i % 2)}
        for i in range(N)
    ]  # fmt: skip
    margins = np.where(rng.random(N) < accuracy, 1, -1) * rng.exponential(2, N)
    rejected = rng.normal(size=N)
    return ScoredPairs(Dataset.from_list(rows), np.stack([rejected + margins, rejected], axis=1))


def rewards(scored):
    """What a trainer hands over of scored pairs."""
    chosen, rejected = scored.scores.T
    lengths = [np.array([len(text) for text in scored.pairs[side]]) for side in ("chosen", "rejected")]
    zeros = np.zeros(len(scored), np.int64)
    return PairRewards(chosen, rejected, np.log1p(np.exp(rejected - chosen)), *lengths, zeros, zeros, zeros + 1.0)


def record(schema, **more):
    return {
        "schema": schema, "model": {"model_name_or_path": "base/model", "parameters": 912_000}, "seeds": {"split": 0},
        "recipe": {"dataset_name": "pairs.jsonl"}, "config": {}, "started": "2026-01-01T00:00:00+00:00",
        "seconds": 12.5, "environment": {"rmtrl": "0.1.0", "trl": "1.12.0"},
        "figures": {"chosen on": "validation", "reported on": "test"}, **more,
    }  # fmt: skip


def write_run(folder):
    """Writes every result that a report knows."""
    scored = scored_pairs()
    ids, domains, (chosen, rejected) = scored.pairs["prompt_id"], scored.pairs["domain"], scored.scores.T
    splits = {name: {"pairs": N, "fingerprint": name * 3} for name in ("train", "validation", "calibration", "test")}
    data = {"name": "pairs.jsonl", "fingerprint": "f" * 64, "n": 1000, "kept": 960, "rejected": 40, "groups": 480}
    data |= {"reasons": {"duplicate_pair": 40, "too_long": 0}, "domains": {"cooking": 80, "law": 80, "sports": 80}}
    write_json(folder / "sft/rmtrl.json", record("rmtrl/sft/1", data={"name": "embedded", "rows": 7000}))
    write_json(folder / "rm/rmtrl.json", record("rmtrl/reward-model/1", data=data, splits=splits))
    test = json_ready(pair_figures(rewards(scored), ids, domains, LIMIT))
    write_json(folder / "rm/metrics.json", {"schema": "rmtrl/reward-metrics/1", "validation": test, "test": test})
    fitted = calibrate(chosen, rejected, ids, domains).with_test(*scored_pairs(1).scores.T, ids)
    write_json(folder / "rm/calibration.json", fitted.as_dict())
    save_figure(reliability_diagram({}), folder / "rm/plots/reliability.png")
    one = mean_estimate(np.random.default_rng(0).normal(size=50), proportion=False)
    probe = Probe("filler", "not rise", one, mean_estimate(np.arange(50) % 2), 0, 0, True, "sound")
    audit = json_ready(audit_pairs(scored, N)) | {"probes": [json_ready(probe)], "model": None}
    write_json(folder / "rm/audit.json", audit)
    write_rows(folder / "rm" / WORST, scored.worst())
    rng = np.random.default_rng(0)
    gold = rng.normal(size=1600)
    found = measure_overoptimization(
        scored_samples(np.repeat(np.arange(50), 32), gold + rng.normal(size=1600), gold), n_resamples=100
    )
    write_json(folder / "rm/overoptimization.json", json_ready(found) | {"verdict": verdict(found.whole)})
    benchmark = {
        "kind": "chat",
        "rule": "the better answer scores higher",
        "overall": mean_estimate(np.arange(90) % 3 > 0),
    }
    evaluated = [{"model": {"name": "rm"}, "benchmarks": {"llmbar": benchmark}}]
    write_json(
        folder / "eval/results.json", json_ready({"schema": "rmtrl/evaluation/1", "models": evaluated, "warnings": []})
    )
    start, end = (
        [{"gold": float(x), "reward": float(2 * x), "kl": k} for x in rng.normal(m, 1, 64)]
        for m, k in ((0, 0.0), (1, 2.0))
    )
    write_json(folder / "ppo/rmtrl.json", record("rmtrl/ppo/1", config={"reward_model_path": "rm"}))
    write_json(
        folder / "ppo/metrics.json",
        {"schema": "rmtrl/ppo-metrics/1", "test": json_ready(paired_figures(start, end, 1))},
    )
    write_rows(folder / "answers.jsonl", [{"prompt": f"{i}?", "response": f"It is {i}."} for i in range(40)])
    screened = screen(Policy.from_yaml(POLICY).guards, read_answers(str(folder / "answers.jsonl")), limit=0.5)
    write_json(folder / "guard.json", json_ready(screened))
    sides = [{"prompt_id": np.arange(60), "score": rng.normal(m, 1, 60)} for m in (0, 1)]
    write_json(folder / "drift.json", json_ready(drift(*sides, n_permutations=99)))
    return folder


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory):
    """The folder of a run in which every stage has left its results."""
    return write_run(tmp_path_factory.mktemp("runs") / "mine")


@pytest.fixture
def run_folder(whole_run, tmp_path):
    """A copy of that folder, to change."""
    return shutil.copytree(whole_run, tmp_path / "mine")


@pytest.fixture
def edit():
    """Changes the JSON object of a file by a function."""

    def edited(path, change):
        stored = json.loads(path.read_text())
        change(stored)
        path.write_text(json.dumps(stored))

    return edited
