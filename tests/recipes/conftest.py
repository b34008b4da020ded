"""A small reward-model run: pairs in a file, a tiny pretrained start in a folder, and ways to run a recipe."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from rmtrl.data.synthetic import make_preferences
from rmtrl.tiny import make_tiny_tokenizer

ROOT = Path(__file__).parents[2]

FLAGS = {
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "logging_steps": 1,
    "eval_steps": 2,
    "save_steps": 2,
    "disable_tqdm": "true",
    "n_prompts": 60,
    "bf16": "false",  # which rounds by the batch, where a processor is fast at it and the recipe takes it
}


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """Folders of a tiny causal model (`sft`) and of a tiny reward model with a trained-like head (`rm`)."""
    folder = tmp_path_factory.mktemp("start")
    pairs = make_preferences(40, 0)
    tokenizer = make_tiny_tokenizer([m["content"] for row in pairs for m in row["prompt"] + row["chosen"]], 600)
    torch.manual_seed(0)
    shape = dict(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=512, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None, initializer_range=0.1,
    )  # fmt: skip
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(folder / "sft")
    LlamaForSequenceClassification(LlamaConfig(**shape, num_labels=1)).save_pretrained(folder / "rm")
    for name in ("sft", "rm"):
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def pairs_file(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = make_preferences(60, 0).to_list()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def flags_of(flags):
    return [part for name, value in flags.items() for part in (f"--{name}", str(value))]


@pytest.fixture
def recipe(monkeypatch, start, tmp_path):
    """Runs `recipes/rm_llama.py` in this process with a small run's flags; returns the output folder."""

    def run(**flags):
        output = tmp_path / "outputs" / "rm"
        flags = FLAGS | {"model_name_or_path": start / "sft", "output_dir": output} | flags
        monkeypatch.setattr(sys, "argv", ["rm_llama.py", *flags_of(flags)])
        monkeypatch.chdir(ROOT)
        runpy.run_path(str(ROOT / "recipes" / "rm_llama.py"), run_name="__main__")
        return output

    return run


@pytest.fixture
def launch(start, tmp_path):
    """Starts the recipe as a process, under any launcher; returns the `Popen`."""

    def run(*, launcher=(sys.executable,), **flags):
        flags = FLAGS | {"model_name_or_path": start / "sft", "output_dir": tmp_path / "rm"} | flags
        command = [*launcher, str(ROOT / "recipes" / "rm_llama.py"), *flags_of(flags)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return run
