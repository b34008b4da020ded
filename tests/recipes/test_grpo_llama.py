"""The GRPO recipe as people run it: both algorithms, what it writes, the watch, a kill, two processes, bad input."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from rmtrl.errors import ModelError, UsageError

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.integration


@pytest.fixture
def small(start, tmp_path):
    """The flags of a small run, others in their place."""

    def flags(**others):
        own = {
            "model_name_or_path": start / "sft", "reward_model_path": start / "rm", "output_dir": tmp_path / "grpo",
            "max_steps": 2, "per_device_train_batch_size": 4, "steps_per_generation": 1, "num_iterations": 1,
            "num_generations": 4, "max_completion_length": 6, "n_prompts": 20, "n_validation": 4, "n_test": 6,
            "per_device_eval_batch_size": 4, "eval_steps": 1, "save_steps": 1, "logging_steps": 1, "bf16": "false",
            "learning_rate": 0.01, "lr_scheduler_type": "constant",
        }  # fmt: skip
        return [part for name, value in (own | others).items() for part in (f"--{name}", str(value))]

    return flags


@pytest.fixture
def grpo_recipe(monkeypatch, small, tmp_path):
    """Runs `recipes/grpo_llama.py` in this process with a small run's flags; returns the output folder."""

    def run(**flags):
        monkeypatch.setattr(sys, "argv", ["grpo_llama.py", *small(**flags)])
        monkeypatch.chdir(ROOT)
        runpy.run_path(str(ROOT / "recipes" / "grpo_llama.py"), run_name="recipe")["main"]()
        return Path(flags.get("output_dir", tmp_path / "grpo"))

    return run


def read(path):
    return json.loads(Path(path).read_text())


def evaluations(folder):
    log = read(folder / "trainer_state.json")["log_history"]
    return [row for row in log if "eval_gold" in row]


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_a_run_leaves_a_policy_its_record_and_paired_figures(grpo_recipe, capsys, algorithm):
    folder = grpo_recipe(algorithm=algorithm)
    AutoModelForCausalLM.from_pretrained(folder)
    record, figures = read(folder / "rmtrl.json"), read(folder / "metrics.json")["test"]
    assert (record["schema"], record["recipe"]["algorithm"]) == ("rmtrl/grpo/1", algorithm)
    assert record["data"].keys() == {"train", "validation", "test"}
    assert figures["gold"]["gain"]["n"] == 6 and figures["kl"]["start"]["value"] == 0
    assert figures["kl"]["end"]["value"] != 0 and figures["truncated"]["start"]["value"] > 0
    assert (folder / "plots" / "training.png").stat().st_size > 10_000
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == 6 * 2 and {"prompt", "completion", "reward", "gold"} <= rows[0].keys()
    seen = evaluations(folder)
    assert [row["step"] for row in seen] == [0, 1, 2]
    assert all(row["eval_overoptimization_alarm"] == 0 for row in seen)
    assert seen[0]["eval_gold_gain"] == 0 and seen[2]["eval_reward_gain"] != 0
    updates = [row for row in read(folder / "trainer_state.json")["log_history"] if "loss" in row]
    assert [row["step"] for row in updates] == [1, 2] and all("reward" in row for row in updates)
    assert "n = 6 prompts" in capsys.readouterr().out


def test_a_policy_starts_as_it_does_in_ppo(grpo_recipe, monkeypatch, start, tmp_path):
    folder = grpo_recipe(max_steps=1, learning_rate=0.0)
    flags = {
        "model_name_or_path": start / "sft", "reward_model_path": start / "rm", "output_dir": tmp_path / "ppo",
        "max_steps": 1, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "num_mini_batches": 1,
        "response_length": 6, "n_prompts": 20, "n_validation": 4, "n_test": 6, "bf16": "false", "learning_rate": 0.0,
    }  # fmt: skip
    arguments = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["ppo_llama.py", *arguments])
    runpy.run_path(str(ROOT / "recipes" / "ppo_llama.py"), run_name="recipe")["main"]()
    grpo, ppo = (read(tmp_path / name / "metrics.json")["test"] for name in ("grpo", "ppo"))
    assert folder == tmp_path / "grpo"
    for name in ("reward", "gold", "length_tokens", "truncated"):
        assert grpo[name]["start"] == pytest.approx(ppo[name]["start"], abs=1e-5)


def test_the_reward_takes_off_what_ppo_takes_off_and_keeps_silence():
    module = runpy.run_path(str(ROOT / "recipes" / "grpo_llama.py"), run_name="recipe")

    def rewards(completions, **columns):
        return [None if text == "?" else 1.0 for text in completions]

    reward = module["with_missing_eos"](rewards, 0.5, 2)
    given = {"prompts": ["p"] * 3, "completions": ["a", "b", "?"], "completion_ids": [[5, 2], [5], [5]]}
    assert reward(**given) == [1.0, 0.5, None] and reward.__name__ == "rewards"
    assert module["with_missing_eos"](rewards, None, 2) is rewards


def test_a_killed_run_ends_as_if_it_had_not_been(small, tmp_path):
    flags = {"max_steps": 6, "save_steps": 2, "eval_steps": 2}
    runs = {name: tmp_path / name for name in ("whole", "killed")}
    started = {name: launch([sys.executable], small(**flags, output_dir=folder)) for name, folder in runs.items()}
    wait_for(tmp_path / "killed.partial" / "checkpoint-2" / "trainer_state.json", started["killed"])
    os.kill(started["killed"].pid, signal.SIGKILL)
    started["killed"].communicate()
    assert not runs["killed"].exists()
    more = small(**flags, output_dir=runs["killed"], resume_from_checkpoint="true")
    for run in (started["whole"], launch([sys.executable], more)):
        _, err = run.communicate(timeout=600)
        assert run.returncode == 0, err[-2000:]
    whole, killed = (read(folder / "metrics.json")["test"] for folder in runs.values())
    assert whole == killed
    # a resumed run evaluates where it starts, which is one comparison more
    expected, got = ({row["step"]: row for row in evaluations(folder)} for folder in runs.values())
    assert list(got) == list(expected) == [0, 2, 4, 6]
    timed = ("runtime", "per_second", "since_best_low", "since_best_high")
    for step, row in expected.items():
        same = {key: value for key, value in row.items() if not key.endswith(timed)}
        assert {"eval_reward_gain_low", "eval_gold_since_best"} <= set(same)
        assert same == {key: got[step][key] for key in same}


@pytest.mark.parametrize("algorithm", ["grpo", pytest.param("rloo", marks=pytest.mark.slow)])
def test_two_processes_evaluate_as_one_does(small, tmp_path, algorithm):
    accelerate = [str(Path(sys.executable).parent / "accelerate"), "launch", "--config_file",
                  str(ROOT / "recipes" / "accelerate" / "cpu_2proc.yaml")]  # fmt: skip
    flags = {"max_steps": 1, "learning_rate": 0.0, "per_device_train_batch_size": 2, "algorithm": algorithm}
    two = launch(accelerate, small(**flags, output_dir=tmp_path / "two"))
    one = launch([sys.executable], small(**flags | {"per_device_train_batch_size": 4}, output_dir=tmp_path / "one"))
    for run in (two, one):
        _, err = run.communicate(timeout=600)
        assert run.returncode == 0, err[-3000:]
    assert read(tmp_path / "two" / "rmtrl.json")["processes"] == 2
    figures = [read(tmp_path / name / "metrics.json")["test"] for name in ("one", "two")]
    for name in figures[0]:
        for which in ("start", "end", "gain"):
            assert figures[0][name][which] == pytest.approx(figures[1][name][which], abs=1e-5), name


def launch(launcher, flags):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [*launcher, str(ROOT / "recipes" / "grpo_llama.py"), *flags]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(path, process, seconds=600):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1][-2000:]
        time.sleep(0.02)


def test_an_adapter_starts_from_its_base(grpo_recipe):
    folder = grpo_recipe(use_peft="true", lora_r=4, max_steps=1)
    beside = {path.parent.name for path in folder.rglob("adapter_config.json")}
    assert beside == {"grpo", "checkpoint-1"}, "one adapter, no reference beside it"
    figures = read(folder / "metrics.json")["test"]
    assert figures["kl"]["start"]["value"] == 0 and figures["kl"]["end"]["value"] != 0


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        ({"reward_model_path": "nowhere"}, ModelError, "no reward model at nowhere"),
        ({"model_name_or_path": "nowhere"}, ModelError, "no .* at nowhere"),
        ({"algorithm": "ppo"}, UsageError, "invalid choice: 'ppo'"),
        ({"algorithm": "rloo", "scale_rewards": "none"}, UsageError, "scale_rewards"),
    ],
    ids=str,
)
def test_bad_input_is_one_clear_line(grpo_recipe, flags, error, message):
    with pytest.raises(error, match=message) as raised:
        grpo_recipe(**flags)
    assert "\n" not in str(raised.value)
