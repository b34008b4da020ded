"""The reward step of GRPO: TRL's own path for a reward model against `RewardScorer` as a reward function.

    RMTRL_DATA=… .venv-newest/bin/python tests/benchmarks/bench_grpo_rewards.py [--repeats 20] [--save]

Both ways are `GRPOTrainer._calculate_rewards` of the same answers, in one run and interleaved: TRL's with the reward
model as `reward_funcs`, ours with a scorer of it. The model is a Llama with hidden 256 and 4 layers, in float32 on a
CPU and bf16 on a GPU. Prints the ratio of seconds and of CPU seconds, of the growth of peak memory (each way in a
process of its own, after a first small call), and the largest difference of rewards.
"""

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
from workloads import append_results, human_pairs, machine, make_model, make_tokenizer, spread

from rmtrl import ComposedReward, RewardScorer
from rmtrl.tiny import make_tiny_llama

SETS = {  # prompts, their tokens, answers to each, their fewest and most tokens
    "512-token prompts, 8 answers of 64": (4, 512, 8, (64, 64)),
    "512-token prompts, 8 answers of 16 to 64": (4, 512, 8, (16, 64)),
    "16-token prompts, 8 answers of 512": (2, 16, 8, (512, 512)),
    "16-token prompts, 8 answers of 128 to 512": (4, 16, 8, (128, 512)),
    "16-token prompts, 8 answers of 64": (8, 16, 8, (64, 64)),
    "hh-rlhf": None,
}
WAYS = ("trl", "rmtrl")
Answers = tuple[list, list]


def message(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def made_up(tokenizer, n_prompts: int, prompt_tokens: int, n: int, lengths: tuple[int, int]) -> Answers:
    """Prompts and answers of words that are one token each, the answers to one prompt side by side."""
    words = [token[1:] for token in tokenizer.get_vocab() if token.startswith("Ġ") and token[1:].isalpha()]
    words = [word for word in words if len(tokenizer(f" {word}")["input_ids"]) == 1]
    rng = np.random.default_rng(0)

    def text(length: int) -> str:
        return "".join(f" {words[i]}" for i in rng.integers(len(words), size=length))

    asked = [message("user", text(prompt_tokens)) for _ in range(n_prompts) for _ in range(n)]
    prompts = [asked[row - row % n] for row in range(len(asked))]
    return prompts, [message("assistant", text(int(rng.integers(lengths[0], lengths[1] + 1)))) for _ in prompts]


def of_people(n_prompts: int = 8, n: int = 8) -> Answers:
    """Prompts of hh-rlhf, each with answers of that set: lengths as they are there, if not the sense."""
    pairs = human_pairs(n_prompts * n)
    prompts = [message("user", pairs[row - row % n]["prompt"]) for row in range(len(pairs))]
    return prompts, [message("assistant", row["chosen"]) for row in pairs]


def answers(name: str, tokenizer) -> Answers:
    return of_people() if SETS[name] is None else made_up(tokenizer, *SETS[name])


def reward_steps(model, tokenizer, ways=WAYS) -> dict[str, Callable[[Answers], np.ndarray]]:
    """Returns what scores answers as a step of GRPO does, by name."""
    scorer = RewardScorer(model, tokenizer, progress=False)
    found = {}
    for way in ways:
        trainer = GRPOTrainer(
            make_tiny_llama(tokenizer, hidden_size=32, num_hidden_layers=1),
            model if way == "trl" else ComposedReward(scorer),
            GRPOConfig(
                tempfile.mkdtemp(), use_cpu=not torch.cuda.is_available(), bf16=torch.cuda.is_available(),
                report_to="none", num_generations=8, per_device_train_batch_size=8,
            ),
            Dataset.from_list([{"prompt": message("user", "Hi")}]),
            processing_class=tokenizer,
            reward_processing_classes=tokenizer if way == "trl" else None,
        )  # fmt: skip

        def step(given: Answers, trainer: GRPOTrainer = trainer) -> np.ndarray:
            prompts, completions = given
            inputs, ids = [{"prompt": prompt} for prompt in prompts], [[0]] * len(prompts)
            return trainer._calculate_rewards(inputs, prompts, completions, ids)[:, 0].float().cpu().numpy()

        found[way] = step
    return found


def compare(name: str, model, tokenizer, repeats: int) -> list[str]:
    """Returns a row of the table."""
    steps, given = reward_steps(model, tokenizer), answers(name, tokenizer)
    rewards = {way: step(given) for way, step in steps.items()}
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in steps}
    for repeat in range(repeats):
        for way in WAYS[:: 1 if repeat % 2 else -1]:
            start, cpu = time.perf_counter(), time.process_time()
            steps[way](given)
            seconds[way].append((time.perf_counter() - start, time.process_time() - cpu))
    trl, ours = (np.array(seconds[way]) for way in WAYS)
    memory = {way: growth(name, way) for way in WAYS}
    ratio = memory["rmtrl"] / memory["trl"]
    return [
        name, str(len(given[0])), f"{1000 * np.median(trl[:, 0]):.0f}", f"{1000 * np.median(ours[:, 0]):.0f}",
        *(spread((trl[:, i] / ours[:, i]).tolist()) for i in (0, 1)),
        f"{memory['trl']:.0f}", f"{memory['rmtrl']:.0f}", f"{ratio:.2f}",
        f"{np.abs(rewards['trl'] - rewards['rmtrl']).max():.0e}",
    ]  # fmt: skip


def growth(name: str, way: str) -> float:
    """Returns how many MiB a step adds to peak memory, in a process of its own."""
    command = [sys.executable, __file__, "--memory", json.dumps([name, way])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def reset_peak() -> float:
    """Gives back what is free and counts the peak anew; returns the memory in use, in MiB."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> float:
    """Peak memory since it was reset, in MiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--sets", default=";".join(SETS), help="Names, with ; between")
    parser.add_argument("--size", default="small")
    parser.add_argument("--save", action="store_true", help="append the table to RESULTS.md")
    parser.add_argument("--memory", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    tokenizer = make_tokenizer(human_pairs())
    model = make_model(tokenizer, arguments.size).eval()
    if torch.cuda.is_available():
        model = model.to("cuda", torch.bfloat16)
    if arguments.memory:
        name, way = arguments.memory
        step, given = reward_steps(model, tokenizer, [way])[way], answers(name, tokenizer)
        step(made_up(tokenizer, 1, 4, 8, (4, 4)))
        before = reset_peak()
        step(given)
        print(peak() - before)
        return
    lines = [
        "### The reward step of GRPO", "",
        f"{machine()}; median and range of {arguments.repeats} interleaved repeats.", "",
        "| answers | n | TRL, ms | rmtrl, ms | TRL / rmtrl, seconds | CPU seconds | TRL, MiB more | rmtrl, MiB more "
        "| rmtrl / TRL | largest difference |",
        "|---" * 10 + "|",
    ]  # fmt: skip
    for name in arguments.sets.split(";"):
        lines.append("| " + " | ".join(compare(name, model, tokenizer, arguments.repeats)) + " |")
        print(lines[-1], flush=True)
    if arguments.save:
        append_results(lines)


if __name__ == "__main__":
    main()
