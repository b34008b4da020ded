"""PPO: `rmtrl.PPOTrainer` against TRL's on the same prompts, in one run, interleaved.

    RMTRL_DATA=… python tests/benchmarks/bench_ppo.py [--updates 4] [--repeats 3] [--save]
    RMTRL_DATA=… python tests/benchmarks/bench_ppo.py --quick     # two small updates, to see that it runs

Four Llamas with hidden 256, 4 layers and 32,000 tokens (policy, reference, value and reward model), in float32 on a
CPU; hh-rlhf prompts of up to 256 tokens in the same order for both, 64 new tokens without a stop token, 8 × 4 episodes
an update, 4 mini-batches, 4 epochs. Each training has a process of its own, which ends with it. Timed are the updates
after the first; memory is the most that the process held while it trained (resident, read every 10 ms) over what it
held before `trainer.train()`, with all models there and neither gradients nor optimizer. Of TRL's micro-batches only
every fourth takes an optimizer step, of rmtrl's mini-batches every one.
"""

import argparse
import multiprocessing
import os
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, TrainerCallback
from workloads import SIZES, append_results, human_pairs, machine, make_tokenizer, spread

VOCAB_SIZE = 32_000
PROMPT_TOKENS = 256
BATCH_SIZE = 8 * 4
PHASES = {"generate": "generate", "token_figures": "log probabilities", "score": "reward", "update": "update"}


class Updates(TrainerCallback):
    """When each update ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.ends.append(time.perf_counter())


class PeakMemory(threading.Thread):
    """Most resident memory of this process over what it was at the start, in MiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.start_mib = self.peak_mib = resident_mib()
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.01):
            self.peak_mib = max(self.peak_mib, resident_mib())

    def growth(self) -> float:
        self.over.set()
        self.join()
        return self.peak_mib - self.start_mib


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def prompts_of(arguments, tokenizer) -> Dataset:
    """As many prompts as the updates take, none too long."""
    texts = (row["prompt"] for row in human_pairs())
    ids = [own for own in (tokenizer(text)["input_ids"] for text in texts) if len(own) <= PROMPT_TOKENS]
    return Dataset.from_dict({"input_ids": ids[: BATCH_SIZE * (1 + arguments.updates)]})


def models_of(tokenizer) -> dict[str, torch.nn.Module]:
    """Policy, reference, reward and value model, the same on every call."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCAB_SIZE, max_position_embeddings=512, num_labels=1, bos_token_id=None,
                         pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
                         **SIZES["small"])  # fmt: skip
    policy = LlamaForCausalLM(config)
    reference = LlamaForCausalLM(config)
    reference.load_state_dict(policy.state_dict())
    reward, value = LlamaForSequenceClassification(config), LlamaForSequenceClassification(config)
    return {"model": policy, "ref_model": reference, "reward_model": reward, "value_model": value}


def make_trainer(kind: str, arguments, folder: str):
    """Returns a trainer that takes the prompts in their order, and the seconds of its phases, if it is ours."""
    if kind == "trl":
        from trl.experimental.ppo import PPOConfig, PPOTrainer
    else:
        from rmtrl import PPOConfig, PPOTrainer
    tokenizer = make_tokenizer(human_pairs(), VOCAB_SIZE)
    tokenizer.padding_side = "left"  # as TRL needs it
    prompts, seconds = prompts_of(arguments, tokenizer), defaultdict(list)
    args = PPOConfig(
        folder, per_device_train_batch_size=8, gradient_accumulation_steps=4, num_mini_batches=4, num_ppo_epochs=4,
        response_length=arguments.new_tokens, stop_token=None, total_episodes=len(prompts), learning_rate=1e-5,
        bf16=False, use_cpu=True, gradient_checkpointing=False, report_to="none", num_sample_generations=0,
        save_strategy="no", logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    trainer = PPOTrainer(args, tokenizer, train_dataset=prompts, eval_dataset=prompts, **models_of(tokenizer))
    if kind == "trl":
        trainer.dataloader = torch.utils.data.DataLoader(prompts, BATCH_SIZE, collate_fn=trainer.data_collator)
    else:
        next_prompts = trainer.next_prompts
        trainer.next_prompts = lambda step: in_order(*next_prompts(step), step)
        for method in PHASES:
            setattr(trainer, method, timed(getattr(trainer, method), seconds[method]))
    return trainer, seconds


def in_order(prompts, indices: list[int], keys: list[int], step: int):
    return prompts, list(range(step * BATCH_SIZE, (step + 1) * BATCH_SIZE)), keys


def timed(method, seconds: list[float]):
    def run(*args, **kwargs):
        start = time.perf_counter()
        result = method(*args, **kwargs)
        seconds.append(time.perf_counter() - start)
        return result

    return run


def train(connection, kind: str, arguments) -> None:
    """Trains once and answers with the seconds of each update and phase, and the growth of memory."""
    torch.set_num_threads(arguments.threads)
    updates, optimizer_steps = Updates(), []
    with tempfile.TemporaryDirectory() as folder:
        trainer, seconds = make_trainer(kind, arguments, folder)
        trainer.add_callback(updates)
        register_optimizer_step_post_hook(lambda *_: optimizer_steps.append(1))
        memory = PeakMemory()
        memory.start()
        trainer.train()
        growth = memory.growth()
    taken = np.diff(updates.ends).tolist()
    share = arguments.updates / (1 + arguments.updates)  # of each phase's calls, those after the first update
    phases = {PHASES[name]: sum(own[-round(len(own) * share) :]) / len(taken) for name, own in seconds.items()}
    lengths = [len(ids) for ids in trainer.train_dataset["input_ids"]]
    connection.send({"seconds": taken, "phases": phases, "growth": growth, "before": memory.start_mib,
                     "prompt_tokens": float(np.mean(lengths)), "steps": len(optimizer_steps) / len(updates.ends),
                     "parameters": trainer.model.policy.num_parameters()})  # fmt: skip


def in_a_process(kind: str, arguments) -> dict:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=train, args=(theirs, kind, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        process.join()
        raise SystemExit(f"{kind} ended with {process.exitcode}") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=4, help="timed updates, after one that is not")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--only", choices=["rmtrl", "trl"], help="one trainer alone, such as to profile it")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--quick", action="store_true", help="one repeat of one update with 8 new tokens")
    parser.add_argument("--save", action="store_true", help="append the table to RESULTS.md")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.repeats, arguments.updates, arguments.new_tokens = 1, 1, 8
    torch.set_num_threads(arguments.threads)
    results: dict[str, list[dict]] = {kind: [] for kind in ("rmtrl", "trl") if arguments.only in (None, kind)}
    for repeat in range(arguments.repeats):
        for kind, runs in results.items():
            runs.append(in_a_process(kind, arguments))
            rate = BATCH_SIZE / np.mean(runs[-1]["seconds"])
            print(f"{repeat + 1}: {kind}: {rate:.2f} episodes a second, {runs[-1]['growth']:,.0f} MiB", flush=True)
    report(arguments, results)


def report(arguments, results: dict[str, list[dict]]) -> None:
    first = next(iter(results.values()))[0]
    lines = ["### PPO", "",
             f"{machine()}; a policy of {first['parameters'] / 1e6:.1f} million parameters, prompts of "
             f"{first['prompt_tokens']:.0f} tokens on average, {arguments.new_tokens} new ones, {BATCH_SIZE} episodes "
             f"an update; median and range of {arguments.repeats} interleaved repeats of {arguments.updates} updates.",
             "",
             "| trainer | episodes a second | rmtrl is faster by | growth of memory, MiB | over rmtrl's "
             "| held before, MiB | optimizer steps an update |", "|---|---|---|---|---|---|---|"]  # fmt: skip
    for kind, runs in results.items():
        rates = [BATCH_SIZE / np.mean(run["seconds"]) for run in runs]
        own = results.get("rmtrl", runs)
        faster = [np.mean(run["seconds"]) / np.mean(mine["seconds"]) for run, mine in zip(runs, own, strict=True)]
        more = [run["growth"] / mine["growth"] for run, mine in zip(runs, own, strict=True)]
        lines.append(
            f"| {kind} | {spread(rates)} | {spread(faster)} | {spread([run['growth'] for run in runs], 0)} "
            f"| {spread(more)} | {np.median([run['before'] for run in runs]):,.0f} | {runs[0]['steps']:.0f} |"
        )
    if "rmtrl" in results:
        parts = [f"{name} {spread([run['phases'][name] for run in results['rmtrl']])}" for name in PHASES.values()]
        lines += ["", f"Seconds of an update of rmtrl's: {', '.join(parts)}."]
    if arguments.save:
        append_results(lines)
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
