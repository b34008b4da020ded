"""Near-duplicate search: seconds, memory and recall by number of prompts.

    python tests/benchmarks/near_duplicates.py [size …]

Makes prompts of 10 to 60 words from a Zipf-like vocabulary; 5 in 100 are near-duplicates of another (one word added,
left out or replaced; Jaccard at least 0.8). Every size runs three times, each in a process of its own, and the
quickest counts. Prints one JSON object a size: `ratio` is the processor time over that of the size before (so that
other work on the machine counts less), `recall` the share of planted pairs that share a cluster.
"""

import json
import resource
import subprocess
import sys
import time

import numpy as np

from rmtrl.data.clusters import find_duplicates

SIZES = (50_000, 100_000, 200_000)
VOCABULARY = 50_000
SHARE = 0.05
REPEATS = 3


def bigrams(words: list[str]) -> set[tuple[str, str]]:
    return set(zip(words, words[1:], strict=False))


def disguised(rng: np.random.Generator, words: list[str]) -> list[str]:
    """Returns the words with one added, left out or replaced, so that the Jaccard index stays at 0.8 or more."""
    while True:
        place, kind = int(rng.integers(len(words))), int(rng.integers(3))
        new = words[:place] + [f"w{rng.integers(VOCABULARY)}"] * (kind < 2) + words[place + (kind > 0) :]
        a, b = bigrams(words), bigrams(new)
        if 5 * len(a & b) >= 4 * len(a | b):
            return new


def make_prompts(n: int, seed: int = 0) -> tuple[list[str], list[tuple[int, int]]]:
    """Returns n prompts and the planted pairs, as positions."""
    rng = np.random.default_rng(seed)
    weights = 1 / (np.arange(VOCABULARY) + 2.7)
    n_planted = int(SHARE * n)
    lengths = rng.integers(10, 61, n - n_planted)
    words = rng.choice(VOCABULARY, lengths.sum(), p=weights / weights.sum())
    prompts = [[f"w{word}" for word in part] for part in np.split(words, np.cumsum(lengths)[:-1])]
    originals = rng.choice(len(prompts), n_planted, replace=False)
    pairs = [(int(original), len(prompts) + k) for k, original in enumerate(originals)]
    prompts += [disguised(rng, prompts[original]) for original in originals]
    return [" ".join(prompt) for prompt in prompts], pairs


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(n: int) -> dict:
    prompts, pairs = make_prompts(n)
    before = peak_mib()
    start, cpu_start = time.perf_counter(), time.process_time()
    found = find_duplicates(prompts)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    recall = sum(found.cluster[a] == found.cluster[b] for a, b in pairs) / len(pairs)
    return {
        "prompts": n, "words": round(sum(prompt.count(" ") + 1 for prompt in prompts) / n, 1),
        "seconds": round(seconds, 2), "cpu_seconds": round(cpu_seconds, 2),
        "peak_mib": round(peak_mib()), "peak_mib_before": round(before),
        "recall": recall, "planted": len(pairs), "near": found.near, "skipped": found.skipped,
    }  # fmt: skip


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(int(sys.argv[2]))))
        return
    last = None
    for n in [int(size) for size in sys.argv[1:]] or SIZES:
        command = [sys.executable, __file__, "--one", str(n)]
        runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(REPEATS)]
        result = min((json.loads(run.stdout) for run in runs), key=lambda run: run["cpu_seconds"])
        ratio = None if last is None else round(result["cpu_seconds"] / last, 2)
        print(json.dumps({**result, "ratio": ratio}), flush=True)
        last = result["cpu_seconds"]


if __name__ == "__main__":
    main()
