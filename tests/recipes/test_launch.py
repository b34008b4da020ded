"""Recipes on several processes: what they check before they train, and the engines behind `accelerate launch`."""

import json
import os
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import processes
import pytest

from rmtrl import RewardScorer

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.integration, pytest.mark.engines]
needs_deepspeed = pytest.mark.skipif(not find_spec("deepspeed"), reason="deepspeed is not installed")
ZERO = [pytest.param(engine, marks=needs_deepspeed) for engine in ("zero2", "zero3")]

USUAL = dict(report_to="none", disable_tqdm="true", bf16="false", logging_steps=1)
SMALL = {
    "sft": USUAL | dict(n_demonstrations=64, max_steps=2, per_device_train_batch_size=2),
    "rm": USUAL | dict(n_prompts=60, max_steps=2, eval_steps=1, save_steps=1, per_device_train_batch_size=2),
    "calibrate": {},
    "ppo": USUAL | dict(
        n_prompts=20, n_validation=4, n_test=4, max_steps=2, eval_steps=1, save_steps=1, per_device_train_batch_size=2,
        gradient_accumulation_steps=2, num_mini_batches=2, response_length=6, per_device_eval_batch_size=4,
    ),
    "dpo": USUAL | dict(
        n_prompts=60, max_steps=2, eval_steps=1, save_steps=1, per_device_train_batch_size=2, response_length=6,
    ),
    "grpo": USUAL | dict(
        n_prompts=20, n_validation=4, n_test=4, max_steps=2, eval_steps=1, save_steps=1, per_device_train_batch_size=4,
        steps_per_generation=1, num_iterations=1, num_generations=4, max_completion_length=6,
        per_device_eval_batch_size=4,
    ),
    "eval": dict(n_prompts=60, n_unseen=40),
}  # fmt: skip
FILES = {"sft": "sft_llama", "rm": "rm_llama", "calibrate": "calibrate_rm", "ppo": "ppo_llama", "eval": "eval_rm"}
FILES |= {"dpo": "dpo_llama", "grpo": "grpo_llama"}


def run_recipe(stage, folder, environment=None, own_folders=False, **flags):
    """Runs a recipe in this process, in a folder, with a small run's flags."""
    os.environ.update(environment or {})
    os.chdir(folder)
    if own_folders:
        flags["output_dir"] = f"outputs-{os.environ['RANK']}/rm"
    given = [part for name, value in (SMALL[stage] | flags).items() for part in (f"--{name}", str(value))]
    sys.argv = [f"{FILES[stage]}.py", *given]
    runpy.run_path(str(ROOT / "recipes" / f"{FILES[stage]}.py"), run_name="__main__")


def read(path):
    return json.loads(Path(path).read_text())


@pytest.mark.parametrize("n_processes", [1, 2])
def test_every_recipe_runs_with_no_argument(tmp_path, n_processes):
    engine = "cpu_2proc" if n_processes == 2 else None
    for stage in SMALL:
        how = {} if stage == "calibrate" else dict(n_processes=n_processes, engine=engine)
        codes, _, printed = processes.run(tmp_path / stage, run_recipe, stage=stage, folder=str(tmp_path), **how)
        assert set(codes) == {0}, [text[-3000:] for text in printed]
    tiny = tmp_path / "outputs" / "tiny"
    trained = ("sft", "rm", "ppo", "dpo", "grpo")
    assert [read(tiny / stage / "rmtrl.json")["processes"] for stage in trained] == [n_processes] * 5
    assert read(tiny / "rm" / "metrics.json")["test"]["accuracy"]["n"] > 0
    assert read(tiny / "sft" / "rmtrl.json")["gold"]["n"] == 64
    assert (tiny / "rm" / "calibration.json").is_file() and (tiny / "eval" / "results.json").is_file()


@pytest.mark.parametrize(
    ("engine", "settings", "says"),
    [
        ("fsdp2", {"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}, "set fsdp_state_dict_type to FULL_STATE_DICT"),
        pytest.param("zero3", {"ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "false"},
                     "set zero3_save_16bit_model to true", marks=needs_deepspeed),
        ("two_machines", {}, "1 of 2 processes see output_dir"),
    ],
    ids=["fsdp2", "zero3", "two_machines"],
)  # fmt: skip
def test_what_could_not_be_saved_is_refused_before_training(start, tmp_path, engine, settings, says):
    folders = engine == "two_machines"
    codes, _, printed = processes.run(
        tmp_path / "run", run_recipe, engine=engine, n_processes=2, n_machines=1 + folders, stage="rm",
        folder=str(tmp_path), environment=settings, own_folders=folders, model_name_or_path=str(start / "sft"),
    )  # fmt: skip
    assert codes == [2, 2], printed
    for text in printed:
        (line,) = [line for line in text.splitlines() if line.startswith("rm_llama")]
        assert "error: " in line and says in line


def logged(folder):
    """The losses and gradient norms of a run, whose last checkpoint holds its log."""
    (state,) = sorted(Path(folder).glob("checkpoint-*/trainer_state.json"))[-1:]
    return [row[name] for row in read(state)["log_history"] for name in ("loss", "grad_norm") if name in row]


def alone(tmp_path, **settings):
    codes, _, printed = processes.run(tmp_path / "one", run_recipe, folder=str(tmp_path), **settings)
    assert codes == [0], printed


@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "two_machines", *ZERO])
def test_supervised_start_learns_on_two_processes_what_it_learns_on_one(tmp_path, engine):
    same = dict(stage="sft", save_strategy="steps", save_steps=2, max_steps=4)
    same["train_sampling_strategy"] = "random"  # grouping by length orders the rows by batch size
    alone(tmp_path, output_dir="one", **same | dict(per_device_train_batch_size=4))
    codes, _, printed = processes.run(
        tmp_path / "two", run_recipe, engine=engine, n_processes=2, n_machines=1 + (engine == "two_machines"),
        folder=str(tmp_path), output_dir="both", per_device_train_batch_size=2, **same,
    )  # fmt: skip
    assert codes == [0, 0], printed
    assert len(logged(tmp_path / "one")) == 8
    assert logged(tmp_path / "both") == pytest.approx(logged(tmp_path / "one"), rel=1e-5, abs=1e-5)
    one, both = (read(tmp_path / name / "rmtrl.json") for name in ("one", "both"))
    assert (one["processes"], both["processes"]) == (1, 2)
    assert both["model"]["parameters"] == one["model"]["parameters"] > 5e5
    assert both["gold"] == pytest.approx(one["gold"], abs=1e-3)


def test_dpo_learns_on_two_processes_what_it_learns_on_one(start, tmp_path):
    same = dict(
        stage="dpo", model_name_or_path=str(start / "sft"), n_prompts=100, max_steps=3, eval_steps=3, save_steps=3,
        per_device_eval_batch_size=64,
    )  # fmt: skip
    alone(tmp_path, output_dir="one", **same | dict(per_device_train_batch_size=4))
    codes, _, printed = processes.run(
        tmp_path / "two", run_recipe, engine="ddp", n_processes=2, folder=str(tmp_path), output_dir="both",
        timeout=300, **same,
    )  # fmt: skip
    assert codes == [0, 0], printed
    assert [read(tmp_path / name / "rmtrl.json")["processes"] for name in ("one", "both")] == [1, 2]
    assert len(logged(tmp_path / "one")) == 6
    assert logged(tmp_path / "both") == pytest.approx(logged(tmp_path / "one"), rel=1e-5, abs=1e-5)


# `accelerate launch` itself, with the files of recipes/accelerate


@pytest.fixture
def accelerate(tmp_path):
    """Runs a recipe as two processes of an engine by `accelerate launch`; the CPU stands for accelerators."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'LOCAL_RANK' in os.environ:\n"
        f"    sys.path.append({str(ROOT / 'tests')!r})\n"
        "    __import__('processes').take_cpu_for_accelerator()\n"
    )

    def run(engine, stage, **flags):
        given = [part for name, value in (SMALL[stage] | flags).items() for part in (f"--{name}", str(value))]
        file = ROOT / "recipes" / "accelerate" / f"{engine}.yaml"
        command = [str(Path(sys.executable).parent / "accelerate"), "launch", "--config_file", str(file)]
        command += f"--num_processes 2 --mixed_precision no --main_process_port {processes.free_port()}".split()
        environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "DS_ACCELERATOR": "cpu"}
        done = subprocess.run(
            [*command, str(ROOT / "recipes" / f"{FILES[stage]}.py"), *given], cwd=tmp_path, env=environment,
            capture_output=True, text=True, timeout=400,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return tmp_path / flags["output_dir"]

    return run


LORA = dict(use_peft="true", lora_r=2, lora_target_modules="all-linear")


@pytest.mark.parametrize(
    ("engine", "settings"),
    [pytest.param("zero3", LORA, marks=needs_deepspeed), ("fsdp2", {"head": "mlp"})],
    ids=["zero3-lora", "fsdp2-mlp"],
)
def test_accelerate_launches_a_reward_model(accelerate, start, tmp_path, engine, settings):
    same = settings | dict(model_name_or_path=start / "sft", max_steps=3, train_sampling_strategy="random")
    alone(tmp_path, stage="rm", output_dir="one", **same | dict(per_device_train_batch_size=4))
    out = accelerate(engine, "rm", output_dir="both", **same)
    assert read(out / "rmtrl.json")["processes"] == 2
    assert logged(out) == pytest.approx(logged(tmp_path / "one"), abs=1e-5)
    scorers = [RewardScorer.from_pretrained(tmp_path / name, progress=False) for name in ("one", "both")]
    one, both = (scorer.score(["What is this? Good.", "Bad answer"]) for scorer in scorers)
    assert both == pytest.approx(one, abs=1e-5)


@pytest.mark.parametrize(
    ("engine", "settings"),
    [pytest.param("zero2", {}, marks=needs_deepspeed), ("fsdp2", LORA | {"one_backbone": "true"})],
    ids=["zero2-full", "fsdp2-one-backbone"],
)
def test_accelerate_launches_a_policy(accelerate, start, tmp_path, engine, settings):
    same = settings | dict(model_name_or_path=start / "sft", reward_model_path=start / "rm")
    if settings:  # the reward is an adapter of the same base
        alone(tmp_path, stage="rm", output_dir="reward", model_name_or_path=start / "sft", **LORA)
        same["reward_model_path"] = tmp_path / "reward"
    alone(tmp_path, stage="ppo", output_dir="one", **same | dict(gradient_accumulation_steps=4))
    out = accelerate(engine, "ppo", output_dir="both", **same)
    one, both = (read(folder / "metrics.json")["test"] for folder in (tmp_path / "one", out))
    assert read(out / "rmtrl.json")["processes"] == 2 and one.keys() == both.keys() and "gold" in one
    for name, figure in one.items():
        for when in ("start", "end"):
            assert both[name][when]["value"] == pytest.approx(figure[when]["value"], abs=1e-4), name
