"""Recipes on several processes: what they check before they train, and the engines behind `accelerate launch`."""

import json
import os
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import processes
import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.integration, pytest.mark.engines]
needs_deepspeed = pytest.mark.skipif(not find_spec("deepspeed"), reason="deepspeed is not installed")

USUAL = dict(report_to="none", disable_tqdm="true", bf16="false", logging_steps=1)
SMALL = {
    "sft": USUAL | dict(n_demonstrations=64, max_steps=2, per_device_train_batch_size=2),
    "rm": USUAL | dict(n_prompts=60, max_steps=2, eval_steps=1, save_steps=1, per_device_train_batch_size=2),
    "calibrate": {},
    "ppo": USUAL | dict(
        n_prompts=20, n_validation=4, n_test=4, max_steps=2, eval_steps=1, save_steps=1, per_device_train_batch_size=2,
        gradient_accumulation_steps=2, num_mini_batches=2, response_length=6, per_device_eval_batch_size=4,
    ),
    "eval": dict(n_prompts=60, n_unseen=40),
}  # fmt: skip
FILES = {"sft": "sft_llama", "rm": "rm_llama", "calibrate": "calibrate_rm", "ppo": "ppo_llama", "eval": "eval_rm"}


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
    assert [read(tiny / stage / "rmtrl.json")["processes"] for stage in ("sft", "rm", "ppo")] == [n_processes] * 3
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
