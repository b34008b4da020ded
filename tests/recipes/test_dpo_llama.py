"""The DPO recipe as people run it: what it writes, splits shared with the reward recipe, resuming, bad input."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from rmtrl import DPOScorer
from rmtrl.data.synthetic import make_preferences
from rmtrl.errors import DataError, ModelError, UsageError

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.integration


@pytest.fixture
def dpo_recipe(monkeypatch, start, tmp_path):
    """Runs `recipes/dpo_llama.py` in this process with a small run's flags; returns the output folder."""

    def run(**flags):
        small = {
            "model_name_or_path": start / "sft", "output_dir": tmp_path / "dpo", "max_steps": 2, "n_prompts": 60,
            "per_device_train_batch_size": 4, "per_device_eval_batch_size": 64, "response_length": 4,
            "num_eval_generations": 1, "eval_steps": 1, "save_steps": 1, "logging_steps": 1, "bf16": "false",
            "learning_rate": 0.01,
        }  # fmt: skip
        arguments = [part for name, value in (small | flags).items() for part in (f"--{name}", str(value))]
        monkeypatch.setattr(sys, "argv", ["dpo_llama.py", *arguments])
        monkeypatch.chdir(ROOT)
        runpy.run_path(str(ROOT / "recipes" / "dpo_llama.py"), run_name="recipe")["main"]()
        return Path(flags.get("output_dir", tmp_path / "dpo"))

    return run


def read(path):
    return json.loads(Path(path).read_text())


def test_a_run_is_reported_on_the_pairs_and_the_prompts(dpo_recipe, recipe, start, capsys):
    folder = dpo_recipe()
    figures, record = read(folder / "metrics.json"), read(folder / "rmtrl.json")
    assert record["schema"] == "rmtrl/dpo/1" and figures["schema"] == "rmtrl/dpo-metrics/1"
    gold, implied = figures["test"]["gold"], figures["test"]["reward"]
    assert gold["gain"]["n"] == record["prompts"]["test"] == 400
    assert gold["gain"]["value"] == pytest.approx(gold["end"]["value"] - gold["start"]["value"])
    assert implied["start"]["value"] == pytest.approx(0, abs=1e-5), "the policy starts as its reference"
    assert figures["test"]["kl"]["end"]["value"] != 0
    said = capsys.readouterr().out
    assert "n = 400 prompts" in said and "accuracy of the implied reward" in said
    # the splits are those of the reward model, the pairs its test pairs
    rm = read(recipe(max_steps=1, save_steps=1, eval_steps=1) / "rmtrl.json")
    assert record["splits"] == rm["splits"]
    assert figures["pairs"]["accuracy"]["n"] == rm["splits"]["test"]["pairs"]


def test_the_pairs_are_judged_as_the_saved_policy_does(dpo_recipe, start, tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = make_preferences(60, 0, clean=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows.to_list()))
    folder = dpo_recipe(dataset_name=path, reward_model_path=start / "rm")
    figures, record = read(folder / "metrics.json"), read(folder / "rmtrl.json")
    assert "gold" not in figures["test"] and figures["test"]["reward"]["start"]["value"] != 0
    scorer = DPOScorer.from_pretrained(folder, start / "sft", beta=record["config"]["beta"], device="cpu")
    module = runpy.run_path(str(ROOT / "recipes" / "dpo_llama.py"), run_name="recipe")
    from rmtrl import RewardConfig
    from rmtrl.launch.pairs import RewardRecipeArguments, checked_splits, read_pairs

    recipe = RewardRecipeArguments(dataset_name=str(path))
    args = RewardConfig(tmp_path, max_length=record["config"]["max_length"], report_to="none", use_cpu=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    _, splits = checked_splits(read_pairs(recipe, args), recipe, tokenizer, args)
    again = module["pair_figures"](scorer, splits.test)
    assert figures["pairs"]["accuracy"]["value"] == again["accuracy"].value
    assert figures["pairs"]["margin"]["value"] == pytest.approx(again["margin"].value, abs=1e-5) and again["margin"]


def test_an_interrupted_run_ends_as_if_it_had_not_been(dpo_recipe, tmp_path):
    same = {"lr_scheduler_type": "constant", "warmup_steps": 0, "load_best_model_at_end": "false"}
    whole = dpo_recipe(output_dir=tmp_path / "whole", max_steps=3, **same)
    dpo_recipe(output_dir=tmp_path / "cut", **same)
    (tmp_path / "cut").rename(tmp_path / "cut.partial")  # as a kill would have left it
    resumed = dpo_recipe(output_dir=tmp_path / "cut", max_steps=3, resume_from_checkpoint="true", **same)
    first, second = (read(folder / "metrics.json") for folder in (whole, resumed))
    assert first == second


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        ({"model_name_or_path": "nowhere"}, ModelError, "no .* at nowhere"),
        ({"dataset_name": "nowhere.jsonl"}, DataError, "no such file or folder: nowhere.jsonl"),
        ({"resume_from_checkpoint": "true"}, DataError, "no finished checkpoint"),
        ({"split_ratios": 0.5}, UsageError, "wanted four shares"),
    ],
    ids=str,
)
def test_bad_input_is_one_clear_line(dpo_recipe, flags, error, message):
    with pytest.raises(error, match=message) as raised:
        dpo_recipe(**flags)
    assert "\n" not in str(raised.value)
