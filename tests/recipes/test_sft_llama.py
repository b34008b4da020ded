import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

RECIPE = Path(__file__).parents[2] / "recipes" / "sft_llama.py"
pytestmark = pytest.mark.integration


def _run(*arguments, cwd):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(RECIPE), *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sft")
    result = _run("--output_dir", "start", "--max_steps", "3", "--n_demonstrations", "300", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / "start", result.stdout


def test_default_run_writes_a_checkpoint_that_loads_and_generates(start):
    folder, _ = start
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    ids = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert inputs["input_ids"].shape[1] < ids.shape[1] <= inputs["input_ids"].shape[1] + 5
    assert 0.5e6 < model.num_parameters() < 1.5e6
    ends = model.generation_config.eos_token_id  # a list under older transformers
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert ends in (tokenizer.eos_token_id, [tokenizer.eos_token_id])


def test_default_run_writes_its_record_and_says_what_to_run_next(start):
    folder, output = start
    record = json.loads((folder / "rmtrl.json").read_text())
    assert record["schema"] == "rmtrl/sft/1" and record["data"]["rows"] == 300
    assert record["gold"]["n"] == 64 and 0.0 <= record["gold"]["gold"] <= 1.0
    assert record["config"]["max_steps"] == 3 and record["config"]["output_dir"] == "start"
    assert "gold score, 64 held-out prompts: usefulness" in output
    assert "next: accelerate launch recipes/rm_llama.py" in output
    assert [path.name for path in folder.parent.iterdir()] == ["start"]  # nothing half made is left


def test_given_model_and_data_are_trained_on(start, tmp_path):
    row = {
        "prompt": [{"role": "user", "content": "Name a colour."}],
        "completion": [{"role": "assistant", "content": "Blue."}],
    }
    (tmp_path / "rows.jsonl").write_text(8 * (json.dumps(row) + "\n"))
    flags = ["--model_name_or_path", str(start[0]), "--dataset_name", "rows.jsonl", "--dtype", "float32"]
    result = _run(*flags, "--max_steps", "1", "--max_length", "64", "--output_dir", "own", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "own" / "rmtrl.json").read_text())
    assert record["data"]["rows"] == 8 and record["gold"]["n"] == 0
    assert record["config"]["learning_rate"] == 2e-5  # not the embedded model's
    AutoModelForCausalLM.from_pretrained(tmp_path / "own")


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (["--dataset_name", "rows.jsonl"], "--model_name_or_path as well"),
        (["--model_name_or_path", "no/such", "--dataset_name", "none.jsonl"], "none.jsonl"),
        (["--n_demonstrations", "many"], "n_demonstrations"),
    ],
)
def test_unusable_arguments_are_answered_by_exit_code_2(flags, wanted, tmp_path):
    result = _run(*flags, cwd=tmp_path)
    assert result.returncode == 2
    assert wanted in result.stderr.strip().splitlines()[-1]
    assert not list(tmp_path.iterdir())
