"""Reward training: `rmtrl.RewardTrainer` against TRL's on the same batches, in one run, interleaved.

    RMTRL_DATA=… python tests/benchmarks/bench_reward_training.py [--pairs 160] [--repeats 3] [--save]
    RMTRL_DATA=… python tests/benchmarks/bench_reward_training.py --size 1b --bf16 [--long-prompts]    # a GPU

A step is 16 pairs: TRL at 16 a batch, and at micro-batches of 1 to 8 with accumulation to the same 16. Each way has a
process of its own, so that peak memory is its own; all run in turn, once for warmth and then `--repeats` times. Timed
is the whole of `trainer.train()`. The small model is a Llama with hidden 256, 4 layers and a byte-BPE of 4,096
tokens, in float32. MFU takes 6 operations a parameter and token that is needed, and 989 TFLOP/s as peak.
"""

import argparse
import multiprocessing
import os
import resource
import tempfile
import time

import numpy as np
import torch
from datasets import Dataset
from workloads import append_results, human_pairs, long_prompt_pairs, machine, make_model, make_tokenizer, spread

PAIRS_A_STEP = 16
PEAK_FLOPS = 989e12  # H100 and H200, bf16, dense


def rows_of(arguments, tokenizer) -> Dataset:
    if arguments.long_prompts:
        return Dataset.from_list(long_prompt_pairs(arguments.pairs, 4096, 256, len(tokenizer)))
    if arguments.one_token_prompts:
        return Dataset.from_list(varied_pairs(arguments.pairs, len(tokenizer)))
    return Dataset.from_list(human_pairs(arguments.pairs))


def varied_pairs(n: int, vocab_size: int) -> list[dict[str, list[int]]]:
    """Pairs with nothing to share but one token, of 20 to 200 tokens."""
    rng = np.random.default_rng(0)

    def side() -> list[int]:
        return [7, *rng.integers(10, vocab_size, int(rng.integers(20, 200))).tolist()]

    return [{"chosen_ids": side(), "rejected_ids": side()} for _ in range(n)]


def needed_tokens(trainer) -> int:
    from rmtrl.data.messages import shared_prefix_length

    rows = [(row["chosen_ids"], row["rejected_ids"]) for row in trainer.train_dataset]
    return sum(len(chosen) + len(rejected) - shared_prefix_length(chosen, rejected) for chosen, rejected in rows)


def computed_tokens(trainer) -> int:
    total = 0
    for batch in trainer.get_train_dataloader():
        calls = batch.get("rows") or [batch]
        total += sum(call["input_ids"].numel() for call in calls)
    return total


def worker(connection, kind: str, micro_batch: int, arguments) -> None:
    """Trains once for every message and answers with seconds, losses and peak memory."""
    torch.set_num_threads(arguments.threads)
    if kind == "trl":
        from trl import RewardConfig, RewardTrainer
    else:
        from rmtrl import RewardConfig, RewardTrainer
    tokenizer = make_tokenizer(human_pairs())
    rows = rows_of(arguments, tokenizer)
    gpu = torch.cuda.is_available()
    settings = {"shared_prefix": kind == "rmtrl"} if kind != "trl" else {}
    for _ in iter(connection.recv, None):
        with tempfile.TemporaryDirectory() as folder:
            args = RewardConfig(
                folder, per_device_train_batch_size=micro_batch, max_length=8192, learning_rate=1e-5,
                gradient_accumulation_steps=PAIRS_A_STEP // micro_batch, num_train_epochs=1, report_to="none",
                logging_steps=1, disable_tqdm=True, save_strategy="no", bf16=arguments.bf16, use_cpu=not gpu,
                gradient_checkpointing=False, **settings,
            )  # fmt: skip
            model = make_model(tokenizer, arguments.size, dtype=torch.bfloat16 if arguments.bf16 else torch.float32)
            trainer = RewardTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
            if gpu:
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            trainer.train()
            if gpu:
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
            memory = torch.cuda.max_memory_allocated() / 2**20 if gpu else peak_mib()
            connection.send(
                {"seconds": seconds, "memory": memory, "n": len(trainer.train_dataset),
                 "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
                 "needed": needed_tokens(trainer), "computed": computed_tokens(trainer),
                 "parameters": trainer.model.num_parameters()}
            )  # fmt: skip
            del trainer, model
            if gpu:
                torch.cuda.empty_cache()  # the other processes are on the same card


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--micro-batches", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--size", default="small")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--long-prompts", action="store_true", help="prompts of 4,096 tokens, responses of 256")
    parser.add_argument("--one-token-prompts", action="store_true", help="nothing to share; adds shared_prefix=False")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--save", action="store_true", help="append the table to RESULTS.md")
    arguments = parser.parse_args()
    ways = [("rmtrl", PAIRS_A_STEP), ("trl", PAIRS_A_STEP)] + [("trl", size) for size in arguments.micro_batches]
    if arguments.one_token_prompts:
        ways.insert(1, ("rmtrl, padded", PAIRS_A_STEP))
    context = multiprocessing.get_context("spawn")
    workers, results = {}, {way: [] for way in ways}
    for way in ways:
        ours, theirs = context.Pipe()
        process = context.Process(target=worker, args=(theirs, *way, arguments), daemon=True)
        process.start()
        workers[way] = ours, process
    for repeat in range(arguments.repeats + 1):
        for way, (connection, process) in workers.items():
            connection.send("train")
            while not connection.poll(1):
                if not process.is_alive():
                    raise SystemExit(f"{way} ended with {process.exitcode}")
            result = connection.recv()
            if repeat:
                results[way].append(result)
            print(f"{repeat or 'warm'}: {way[0]} at {way[1]}: {result['seconds']:.1f} s", flush=True)
    for connection, _ in workers.values():
        connection.send(None)
    report(arguments, results)


def report(arguments, results) -> None:
    ours = results["rmtrl", PAIRS_A_STEP]
    kind = "prompts of 4,096 tokens" if arguments.long_prompts else "hh-rlhf, harmless"
    kind = "one-token prompts" if arguments.one_token_prompts else kind
    lines = [f"### Reward training, {kind}, {arguments.size} Llama", "",
             f"{machine()}; {ours[0]['n']} pairs, {PAIRS_A_STEP} a step; median and range of {len(ours)} interleaved "
             "repeats.", "",
             "| trainer, micro-batch | pairs a second | rmtrl is faster by | tokens computed / needed | peak MiB "
             "| largest difference of a loss |", "|---|---|---|---|---|---|"]  # fmt: skip
    for (kind, size), runs in results.items():
        rate = [run["n"] / run["seconds"] for run in runs]
        faster = [run["seconds"] / own["seconds"] for run, own in zip(runs, ours, strict=True)]
        losses, own = np.array(runs[0]["losses"]), np.array(ours[0]["losses"])
        differs = float(np.abs(losses / own - 1).max())
        lines.append(
            f"| {kind}, {size} | {spread(rate, 1)} | {spread(faster)} | {runs[0]['computed'] / runs[0]['needed']:.2f} "
            f"| {max(run['memory'] for run in runs):,.0f} | {differs:.0e} |"
        )
        if torch.cuda.is_available():
            used = 6 * runs[0]["parameters"] * runs[0]["needed"] / np.median([run["seconds"] for run in runs])
            lines[-1] = f"{lines[-1]} MFU {used / PEAK_FLOPS:.1%}"
    print("\n".join(lines))
    if arguments.save:
        append_results(lines)


if __name__ == "__main__":
    main()
