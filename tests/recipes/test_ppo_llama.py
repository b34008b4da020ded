"""The policy recipe as people run it: what it writes, resuming, prompts of one's own, input it cannot use."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rmtrl.data.synthetic import make_preferences
from rmtrl.errors import DataError, ModelError, UsageError

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.integration


@pytest.fixture
def policy_recipe(monkeypatch, start, tmp_path):
    """Runs `recipes/ppo_llama.py` in this process with a small run's flags; returns the output folder."""

    def run(**flags):
        small = {
            "model_name_or_path": start / "sft", "reward_model_path": start / "rm", "output_dir": tmp_path / "ppo",
            "max_steps": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "num_mini_batches": 2,
            "response_length": 6, "n_prompts": 20, "n_validation": 4, "n_test": 6, "eval_steps": 1, "save_steps": 1,
            "logging_steps": 1,
        }  # fmt: skip
        arguments = [part for name, value in (small | flags).items() for part in (f"--{name}", str(value))]
        monkeypatch.setattr(sys, "argv", ["ppo_llama.py", *arguments])
        monkeypatch.chdir(ROOT)
        runpy.run_path(str(ROOT / "recipes" / "ppo_llama.py"), run_name="recipe")["main"]()
        return Path(flags.get("output_dir", tmp_path / "ppo"))

    return run


def read(path):
    return json.loads(Path(path).read_text())


def test_a_run_leaves_a_policy_its_record_and_paired_figures(policy_recipe, capsys):
    folder = policy_recipe()
    AutoTokenizer.from_pretrained(folder)
    AutoModelForCausalLM.from_pretrained(folder)
    assert AutoModelForSequenceClassification.from_pretrained(folder / "value_model").config.num_labels == 1
    record = read(folder / "rmtrl.json")
    assert record["schema"] == "rmtrl/ppo/1"
    assert {name: part["prompts"] for name, part in record["data"].items()}.keys() == {"train", "validation", "test"}
    figures = read(folder / "metrics.json")["test"]
    assert figures["gold"]["gain"]["n"] == 6
    assert figures["gold"]["gain"]["value"] == pytest.approx(
        figures["gold"]["end"]["value"] - figures["gold"]["start"]["value"]
    )
    assert figures["kl"]["start"]["value"] == 0
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == 6 * 2 and {"prompt", "completion", "reward", "gold"} <= rows[0].keys()
    assert (folder / "plots" / "training.png").stat().st_size > 10_000
    assert not folder.with_name("ppo.partial").exists()
    said = capsys.readouterr().out
    assert "gold_safety" in said and "n = 6 prompts" in said


def test_an_interrupted_run_ends_as_if_it_had_not_been(policy_recipe, tmp_path, monkeypatch):
    whole = policy_recipe(output_dir=tmp_path / "whole", max_steps=3, lr_scheduler_type="constant")
    policy_recipe(output_dir=tmp_path / "cut", lr_scheduler_type="constant")
    # as a kill would have left it: checkpoints in the folder of an unfinished run
    (tmp_path / "cut").rename(tmp_path / "cut.partial")
    resumed = policy_recipe(
        output_dir=tmp_path / "cut", max_steps=3, lr_scheduler_type="constant", resume_from_checkpoint="true"
    )
    first, second = (read(folder / "metrics.json")["test"] for folder in (whole, resumed))
    assert first == second


def test_guards_of_a_policy_file_penalise_and_are_logged_by_name(policy_recipe, tmp_path, monkeypatch):
    policy = {"wordy": {"kind": "rules", "rules": [{"name": "e", "pattern": "[aeiou]"}]}, "secrets": {}}
    (tmp_path / "policy.yaml").write_text(json.dumps({"schema": "rmtrl/guard-policy/1", "guards": policy}))
    scores = {}
    for penalty in (1.0, 51.0):
        state = policy_recipe(guard_policy=tmp_path / "policy.yaml", guard_penalty=penalty, max_steps=1,
                              output_dir=tmp_path / str(penalty)) / "checkpoint-1" / "trainer_state.json"  # fmt: skip
        logged = next(row for row in read(state)["log_history"] if "reward/wordy" in row)
        assert logged["reward/wordy"] > 0 and logged["reward/secrets"] == 0
        scores[penalty] = logged["objective/scores"]
    assert scores[1.0] - scores[51.0] == pytest.approx(50 * logged["reward/wordy"], rel=1e-4)


def test_prompts_come_from_a_file_and_stand_in_one_split(policy_recipe, tmp_path):
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": row["prompt"], "topic": "any"} for row in make_preferences(30, 3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows + rows))
    figures = read(policy_recipe(dataset_name=path, max_steps=1) / "metrics.json")["test"]
    assert "gold" not in figures and figures["reward"]["gain"]["n"] == 6
    record = read(tmp_path / "ppo" / "rmtrl.json")["data"]
    different = len({json.dumps(row["prompt"]) for row in rows})
    assert sum(part["prompts"] for part in record.values()) == different


def test_too_few_prompts_are_told_before_a_model_is_loaded(policy_recipe, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "One?"}\n{"prompt": "Two?"}\n')
    with pytest.raises(DataError, match="2 different prompts, and 10 are to be held out"):
        policy_recipe(dataset_name=path)


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        ({"reward_model_path": "nowhere"}, ModelError, "no reward model at nowhere"),
        ({"model_name_or_path": "nowhere"}, ModelError, "no model at nowhere"),
        ({"dataset_name": "nowhere.jsonl"}, DataError, "no such file or folder: nowhere.jsonl"),
        ({"gradient_accumulation_steps": 50}, DataError, "a batch takes 200"),
        ({"num_mini_batches": 3}, UsageError, "num_mini_batches 3 does not divide"),
        ({"resume_from_checkpoint": "true"}, DataError, "no finished checkpoint"),
        ({"guard_policy": "nowhere.yaml"}, DataError, "nowhere.yaml cannot be read"),
        ({"temperature": 0}, UsageError, "`temperature` must be above 0"),
    ],
    ids=str,
)
def test_bad_input_is_one_clear_line(policy_recipe, flags, error, message):
    with pytest.raises(error, match=message) as raised:
        policy_recipe(**flags)
    assert "\n" not in str(raised.value)
