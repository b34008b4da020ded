"""Evaluation: `score_items` over a `RewardScorer` against the official loop's way of working, interleaved.

    RMTRL_DATA=… python tests/benchmarks/bench_evaluation.py [--sets llmbar,judgebench] [--rows 40] [--save]

The official tool (rewardbench) takes pairs in data order, 8 at a time, and runs chosen and rejected as two forwards,
each padded on the left to the longest of its batch; rows of several candidates are pairs of one prompt, which is
computed anew each time. Both ways tokenise within the time measured, and the model is the same Llama (hidden 256, 4
layers, a byte-BPE of 4,096 tokens), in float32 on a CPU.

Per benchmark: rows a second of both, their ratio, and the ratio of the tokens that each computes, padding included;
the first over the second is what the tokens saved are worth. Accuracies must be equal, or it stops.
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch
from workloads import append_results, data_folder, human_pairs, machine, make_model, make_tokenizer, n_tokens, spread

from rmtrl import RewardScorer
from rmtrl.evaluation.benchmarks import benchmark
from rmtrl.evaluation.benchmarks.base import Item
from rmtrl.evaluation.benchmarks.results import result_of
from rmtrl.evaluation.items import as_text, score_items, windows
from rmtrl.reward.batching import plan_jobs
from rmtrl.reward.rendering import encode_all

FILES = {"llmbar": "llmbar", "judgebench": "judgebench/gpt.jsonl.gz", "rm-bench": "rm-bench/safety-response.json.gz"}
BATCH = 8


def sides(item: Item) -> tuple[list[int], list[int]]:
    """The candidates that the official loop runs as chosen and as rejected, by their places in the item."""
    count = len(item.candidates)
    correct = list(item.facts["correct"]) if "correct" in item.facts else list(range(count // 2))  # RM-Bench: 3 and 3
    return correct, [place for place in range(count) if place not in correct]


class OfficialLoop:
    """Two forwards a batch of pairs, each padded to its longest, in data order."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer, self.tokens = model, tokenizer, 0

    @torch.inference_mode()
    def forward(self, texts: Sequence[str]) -> list[float]:
        ended = [text + self.tokenizer.eos_token for text in texts]
        inputs = self.tokenizer(ended, padding=True, padding_side="left", return_tensors="pt").to(self.model.device)
        self.tokens += inputs["input_ids"].numel()
        return self.model(**inputs).logits[:, 0].float().cpu().tolist()

    def __call__(self, items: Sequence[Item]) -> list[np.ndarray]:
        self.tokens = 0
        scores = [np.empty(len(item.candidates)) for item in items]
        pairs = [(n, *pair) for n, item in enumerate(items) for pair in zip(*sides(item), strict=True)]
        for start in range(0, len(pairs), BATCH):
            batch = pairs[start : start + BATCH]
            for side in (1, 2):
                values = self.forward([items[pair[0]].candidates[pair[side]] for pair in batch])
                for pair, value in zip(batch, values, strict=True):
                    scores[pair[0]][pair[side]] = value
        return scores


def our_tokens(scorer: RewardScorer, items: Sequence[Item]) -> int:
    """Tokens that `score_items` computes: those of the scorer's plan of every window."""
    total = 0
    for window in windows(items):
        texts = [text for i in window for text in items[i].candidates]
        sequences = encode_all(scorer.tokenizer, texts)
        pad = int(scorer.tokenizer.pad_token_id)
        jobs = plan_jobs(sequences, pad_token_id=pad, costs=scorer._costs, share=scorer._shares)
        total += n_tokens(jobs, sequences, scorer._costs)
    return total


def compare(name: str, model, tokenizer, *, rows: int | None, repeats: int) -> str:
    """Runs both ways in turn; returns the line of the table."""
    rule = benchmark(name)
    items = as_text(rule.read(str(data_folder() / FILES[name])), "plain")
    order = np.sort(np.random.default_rng(0).permutation(len(items))[:rows])  # of every section, in data order
    scorer, official = RewardScorer(model, tokenizer, progress=False), OfficialLoop(model, tokenizer)
    items = [items[i] for i in order if scorer.holds(items[i].candidates).all()]
    ways = {
        "rmtrl": lambda: [own for window in score_items(scorer, items, progress=False) for own in window],
        "official": lambda: official(items),
    }
    ways["rmtrl"](), official(items[:BATCH])  # the first pass of each also warms up
    times: dict[str, list[float]] = {way: [] for way in ways}
    scores = {}
    for _ in range(repeats):
        for way, run in ways.items():
            start = time.perf_counter()
            scores[way] = run()
            times[way].append(time.perf_counter() - start)
    results = {way: result_of(rule, items, own, n_resamples=100).overall.value for way, own in scores.items()}
    difference = max(float(np.abs(a - b).max()) for a, b in zip(scores["rmtrl"], scores["official"], strict=True))
    if results["rmtrl"] != results["official"]:
        raise SystemExit(f"{name}: accuracies differ: {results}, largest difference of a score {difference:.1e}")
    tokens = {"rmtrl": our_tokens(scorer, items), "official": official.tokens}
    speed = [b / a for a, b in zip(times["rmtrl"], times["official"], strict=True)]
    ratio = tokens["official"] / tokens["rmtrl"]
    cells = [
        name, f"{len(items):,}", spread([len(items) / t for t in times["rmtrl"]], 1),
        spread([len(items) / t for t in times["official"]], 1), spread(speed), f"{ratio:.2f}",
        f"{np.median(speed) / ratio:.2f}", f"{results['rmtrl']:.4f}", f"{difference:.0e}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", default=",".join(FILES))
    parser.add_argument("--rows", type=int, default=40, help="rows of each benchmark, drawn from all of it")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--size", default="small")
    parser.add_argument("--save", action="store_true", help="append the table to RESULTS.md")
    arguments = parser.parse_args()
    if data_folder() is None:
        raise SystemExit("set RMTRL_DATA to the folder of public data sets")
    tokenizer = make_tokenizer(human_pairs())
    tokenizer.model_max_length = 8192
    model = make_model(tokenizer, arguments.size).eval()
    if torch.cuda.is_available():
        model = model.to("cuda")
    lines = ["### Evaluation", "", f"{machine()}; median and range of {arguments.repeats} interleaved repeats.", "",
             "| benchmark | rows | rows a second, rmtrl | official loop | ratio | ratio of tokens | the first over "
             "the second | accuracy of both | largest difference |",
             "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name in arguments.sets.split(","):
        lines.append(compare(name, model, tokenizer, rows=arguments.rows, repeats=arguments.repeats))
        print(lines[-1], flush=True)
    if arguments.save:
        append_results(lines)


if __name__ == "__main__":
    main()
