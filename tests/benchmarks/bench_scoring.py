"""Scoring: `RewardScorer` against transformers' text-classification pipeline, in one run, interleaved.

    RMTRL_DATA=… python tests/benchmarks/bench_scoring.py [--sets hh-rlhf,llmbar] [--groups 100] [--repeats 3] [--save]
    python tests/benchmarks/bench_scoring.py --flat 1000 100000     # throughput and memory by number of rows

The model is a Llama with hidden 256, 4 layers and a byte-BPE of 4,096 tokens, in float32 on a CPU. The pipeline runs
in data order at batch size 8 and 1. Prints pairs of ratios: of speed, and of tokens (those the pipeline computes,
padding included, over those that are needed with every shared prefix once).
"""

import argparse
import json
import resource
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import pipeline
from workloads import append_results, human_pairs, judged_texts, machine, make_model, make_tokenizer, n_tokens, spread

from rmtrl import RewardScorer
from rmtrl.data.preferences import read_preferences
from rmtrl.evaluation.parts import Parts
from rmtrl.evaluation.scoring import pair_lines, pair_windows
from rmtrl.reward.batching import Costs, plan_jobs

FREE = Costs(cell=0.0, call=0.0, most_tokens=1 << 40)


def candidates(tokenizer, n_prompts: int, n: int = 32, prompt_tokens: int = 512, tokens: int = 64) -> list[str]:
    """Texts of n candidates under long prompts, of single-token words so that lengths are as asked."""
    words = [t for t in tokenizer.get_vocab() if t.startswith("Ġ") and t[1:].isalpha()]
    words = [word for word in words if len(tokenizer(f" {word[1:]}")["input_ids"]) == 1]
    rng = np.random.default_rng(0)

    def text(length: int) -> str:
        return "".join(f" {words[i][1:]}" for i in rng.integers(len(words), size=length))

    return [prompt + text(tokens) for prompt in (text(prompt_tokens) for _ in range(n_prompts)) for _ in range(n)]


def padded_tokens(lengths: list[int], batch: int) -> int:
    """Tokens of batches in data order, each padded to its longest."""
    batches = [lengths[i : i + batch] for i in range(0, len(lengths), batch)]
    return sum(len(part) * max(part) for part in batches)


def compare(texts: list[str], model, tokenizer, repeats: int) -> dict:
    """Returns times of each way, the tokens each computes, and the largest difference of scores."""
    device = model.device
    pipe = pipeline("text-classification", model=model, tokenizer=tokenizer, device=device, function_to_apply="none")
    scorer = RewardScorer(model, tokenizer)
    ended = [text + tokenizer.eos_token for text in texts]
    ways = {
        "rmtrl": lambda: scorer.score(texts),
        "pipeline 8": lambda: np.array([out["score"] for out in pipe(ended, batch_size=8)]),
        "pipeline 1": lambda: np.array([out["score"] for out in pipe(ended, batch_size=1)]),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    scores = {}
    scorer.score(texts[:8]), pipe(ended[:8], batch_size=8)
    for _ in range(repeats):
        for name, run in ways.items():
            start = time.perf_counter()
            scores[name] = run()
            times[name].append(time.perf_counter() - start)
    sequences = [scorer.encode(text) for text in texts]
    lengths = [len(ids) for ids in sequences]
    pad = tokenizer.pad_token_id
    needed = n_tokens(plan_jobs(sequences, pad_token_id=pad, costs=FREE, share=True), sequences, FREE)
    ours = n_tokens(plan_jobs(sequences, pad_token_id=pad, costs=scorer._costs, share=True), sequences, scorer._costs)
    return {
        "n": len(texts),
        "times": times,
        "tokens": {
            "needed": needed,
            "rmtrl": ours,
            "pipeline 8": padded_tokens(lengths, 8),
            "pipeline 1": sum(lengths),
        },
        "difference": max(float(np.abs(scores["rmtrl"] - scores[name]).max()) for name in ways),
    }


def row(name: str, result: dict) -> str:
    tokens, times = result["tokens"], result["times"]
    cells = [name, f"{result['n']:,}", f"{tokens['rmtrl'] / tokens['needed']:.2f}"]
    for other in ("pipeline 8", "pipeline 1"):
        speed = [b / a for a, b in zip(times["rmtrl"], times[other], strict=True)]
        cells += [spread(speed), f"{tokens[other] / tokens['needed']:.2f}"]
    return "| " + " | ".join([*cells, f"{result['difference']:.0e}"]) + " |"


def flat(sizes: list[int], model, tokenizer) -> None:
    """Prints throughput and peak memory of what `rmtrl score` does, by number of rows; give the smallest first."""
    pairs = human_pairs()
    scorer = RewardScorer(model, tokenizer, progress=False)
    for size in [100, *sizes]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pairs.jsonl"
            with path.open("w") as file:
                for number in range(size):  # every row is another text
                    row = pairs[number % len(pairs)]
                    texts = {"prompt": f"{number} {row['prompt'][-200:]}", "chosen": row["chosen"][:200],
                             "rejected": row["rejected"][:200]}  # fmt: skip
                    file.write(json.dumps({"id": str(number), **texts}) + "\n")
            rows = read_preferences(path)
            start = time.perf_counter()
            score = partial(pair_lines, scorer, rows, str(path))
            Parts(Path(folder) / "scores.jsonl", pair_windows(len(rows)), score, {}, str(path)).write()
            seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{size:>9,} rows: {size / seconds:8.1f} pairs a second, peak memory {peak:,.0f} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", default="hh-rlhf,llmbar,rm-bench,judgebench,candidates")
    parser.add_argument("--groups", type=int, default=100, help="pairs (or sets) of each data set")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--size", default="small")
    parser.add_argument("--flat", type=int, nargs="+")
    parser.add_argument("--save", action="store_true", help="append the table to RESULTS.md")
    arguments = parser.parse_args()
    tokenizer = make_tokenizer(human_pairs())
    model = make_model(tokenizer, arguments.size).eval()
    if torch.cuda.is_available():
        model = model.to("cuda", torch.bfloat16)
    if arguments.flat:
        return flat(arguments.flat, model, tokenizer)
    lines = ["### Scoring", "", f"{machine()}; median and range of {arguments.repeats} interleaved repeats.", "",
             "| set | texts | tokens, rmtrl / needed | speed, × pipeline at 8 | tokens, its / needed "
             "| speed, × pipeline at 1 | tokens, its / needed | largest difference |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name in arguments.sets.split(","):
        texts = candidates(tokenizer, 4) if name == "candidates" else judged_texts(name, arguments.groups)
        lines.append(row(name, compare(texts, model, tokenizer, arguments.repeats)))
        print(lines[-1], flush=True)
    if arguments.save:
        append_results(lines)


if __name__ == "__main__":
    main()
