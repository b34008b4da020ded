"""Compares every engine with one process on this machine's GPUs, and prints a table to paste into an issue.

    python tests/benchmarks/verify_gpus.py        # or: make verify-gpus

Small models with random weights train for some steps in float32: a reward model (`rm`), whose saved checkpoint is
loaded again and scores pairs (`score`), and a policy with PPO (`ppo`), each with all weights and as an adapter. A
figure is the largest difference from one process, of losses, gradient norms, metrics and predictions, or that of the
scores before saving. At most 1e-5 on a CPU and 1e-3 on GPUs, whose sums differ in order, is right. Without GPUs two
processes on the CPU rehearse it, which shows nothing of NCCL, CUDA or speed. Exit code 1 if a cell fails.
"""

import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "reward"), str(TESTS / "ppo")]

import numpy as np  # noqa: E402
import ppo_runs  # noqa: E402
import reward_runs  # noqa: E402
import torch  # noqa: E402

from rmtrl import RewardScorer  # noqa: E402

ENGINES = ("ddp", "fsdp2", "zero3")
KINDS = {"full": ({}, {"kind": "full"}), "LoRA with head": ({"lora": True}, {"kind": "lora"})}
N_GPUS = min(torch.accelerator.device_count(), 4)
HOW = {"gpus": N_GPUS > 0, "use_cpu": N_GPUS == 0, "timeout": 600}
TOLERANCE = 1e-3 if N_GPUS else 1e-5


def reward_model(folder, engine, start, settings):
    """Returns the largest differences of a reward model's training and of its scores when it is loaded again."""
    (one,) = reward_runs.result(folder / "one", folder=str(folder / "a"), start=start, **settings, **HOW)
    same = dict(start=start, engine=engine, n_processes=N_GPUS or 2, **settings, **HOW)
    two = reward_runs.result(folder / "two", folder=str(folder / "b"), **same)[0]
    pairs, scorer = reward_runs.pairs("hard"), RewardScorer.from_pretrained(folder / "b", progress=False)
    sides = [scorer.score([row["prompt"] + row[side] for row in pairs]) for side in ("chosen", "rejected")]
    again = float(np.abs(np.stack(sides, axis=1) - np.array(two["predictions"])).max())
    return {"rm": reward_runs.largest_difference(one, two), "score": again}


def policy(folder, engine, settings):
    """Returns the largest difference of a policy's training."""
    n, same = N_GPUS or 2, dict(max_steps=3, learning_rate=1e-3, per_device_train_batch_size=2, **settings, **HOW)
    one = ppo_runs.result(folder / "p1", folder=str(folder / "c"), gradient_accumulation_steps=4, **same)
    same |= dict(engine=engine, n_processes=n, gradient_accumulation_steps=4 // n)
    two = ppo_runs.result(folder / "p2", folder=str(folder / "d"), **same)
    return {"ppo": ppo_runs.largest_difference(one, two)}


def cell(function, names, *arguments):
    """Returns the figures of a function, or how it failed, under each name."""
    try:
        return function(*arguments)
    except Exception as error:  # what a table is for
        lines = [line for line in str(error).replace("\\n", "\n").splitlines() if "Error" in line] or [str(error)]
        return dict.fromkeys(names, f"{type(error).__name__}: {lines[-1][:120]}")


def shown(value):
    if isinstance(value, str):
        return value.replace("|", "/")
    return f"{value:.0e}" + ("" if value <= TOLERANCE else " WRONG")


def main():
    if N_GPUS == 1:
        sys.exit("verify_gpus: error: one GPU; comparing engines needs two or more")
    place = f"{N_GPUS} x {torch.cuda.get_device_name()}" if N_GPUS else f"rehearsed on CPU, {platform.machine()}"
    packages = "torch", "accelerate", "transformers", "trl", "peft", "deepspeed"
    print(f"{place}; " + ", ".join(f"{name} {version(name)}" for name in packages))
    print("\n| engine | weights | rm | score | ppo | seconds |\n|---|---|---|---|---|---|", flush=True)
    right = True
    with tempfile.TemporaryDirectory() as scratch:
        start = reward_runs.make_start(f"{scratch}/start")
        for engine in ENGINES:
            for kind, (rm, ppo) in KINDS.items():
                began, folder = time.time(), Path(tempfile.mkdtemp(dir=scratch))
                figures = cell(reward_model, ("rm", "score"), folder, engine, start, rm)
                figures |= cell(policy, ("ppo",), folder, engine, ppo)
                row = [shown(figures[name]) for name in ("rm", "score", "ppo")]
                print("| " + " | ".join([engine, kind, *row, f"{time.time() - began:.0f}"]) + " |", flush=True)
                right &= all(not isinstance(value, str) and value <= TOLERANCE for value in figures.values())
    sys.exit(not right)


if __name__ == "__main__":
    main()
