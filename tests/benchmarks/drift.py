"""How often `rmtrl drift` alarms where nothing changed, what it finds, and what a real calibration is worth elsewhere.

    OMP_NUM_THREADS=1 python tests/benchmarks/drift.py [--draws 3000] [--save]

Draws. A side has N rows of prompts that have 1 to 8 rows each, as likely. Seven columns, dependent on one another: a
score and a length (log-normal, correlated 0.3 with the score), whose variance is half the prompt's own (intraclass
correlation 0.5); the size of a margin, as clustered; expected accuracy, σ of it; whether the pair is ranked rightly;
whether a guard fires (10 % of rows, by prompt between 0 and 1); one of five domains, by prompt. *Separate*: no prompt
on both sides; *shared*: every prompt on both, with counts of its own on each, but for the last few, which one side
needs to have its N rows; *half*: as many of each kind. Both sides are of the same distribution, or the current score
is higher by a share of its standard deviation over all rows. The number of draws was fixed beforehand: 3,000, at which
a test of exactly 5 % has an upper bound under 7 % nearly always.

Verdict: corrected p <= 0.05, 199 permutations of prompts for the draws (the level is exact at any number n for which
0.05 (n + 1) is whole), 999 for the stored scores, as the command has. Beside it, of the score alone: PSI by deciles
against 0.1, against 0.25, and against the chi-square threshold at n = rows and n = prompts; and scipy's two-sample KS
test on rows, p <= 0.05.

Stored scores (RMTRL_DATA): prompts sorted and every other one taken. A temperature is fitted on the RewardBench-math
pairs of one half, which are the reference; current is RewardMATH on the other half, the right answer against one of
its nine wrong ones, drawn once. Watched: mean score, margin, expected accuracy, and accuracy where labels are given.
"""

import argparse
import gzip
import json
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np
import scipy
from scipy.special import expit
from scipy.stats import ks_2samp

sys.path.insert(0, str(Path(__file__).parent))
from worlds import say, short, table, write_section  # noqa: E402

from rmtrl.calibration import calibrate  # noqa: E402
from rmtrl.metrics import binomial_estimate, mean_estimate, pair_wins  # noqa: E402
from rmtrl.metrics.drift import decile_counts, drift_test, psi, psi_threshold  # noqa: E402
from rmtrl.monitoring.drift import drift  # noqa: E402

ALPHA, PERMUTATIONS, DRAWN, MOST_ROWS, DOMAINS = 0.05, 999, 199, 8, 5
ROWS = (100, 1000, 5000)
SHIFTS = {1000: 0.3, 5000: 0.15}
CHECKS = ("verdict", "PSI > 0.1", "PSI > 0.25", "PSI > χ², n rows", "PSI > χ², n prompts", "KS of rows")
MODELS = {
    "internlm2": "internlm2-7B", "grm_gemma": "GRM-Gemma-2B", "skywork_llama3": "Skywork-Llama-3.1-8B",
    "grm_llama3": "GRM-Llama3-8B", "oasst-rm": "oasst-pythia-1.4B",
}  # fmt: skip


def draw(rng, n_rows, kind, shift=0.0):
    """Returns columns, prompts and side of two sides of `n_rows` each."""
    share = {"separate": 0.0, "half": 0.5, "shared": 1.0}[kind]
    names, side = [], []
    for current in (False, True):
        counts = rng.integers(1, MOST_ROWS + 1, size=n_rows)
        own = np.repeat(np.arange(n_rows), counts)[:n_rows]
        # the first prompts are the shared ones; the others of the current side have names of their own
        n_shared = round(share * 2 * n_rows / (MOST_ROWS + 1))
        names.append(np.where(own < n_shared, own, own + current * n_rows) if share < 1 else own)
        side.append(np.full(n_rows, current))
    prompts, side = np.concatenate(names), np.concatenate(side)
    n, half = len(prompts), np.sqrt(0.5)

    def clustered():
        return half * rng.normal(size=2 * n_rows)[prompts] + half * rng.normal(size=n)

    score = clustered()
    margin = 3 * np.abs(0.5 * score + np.sqrt(0.75) * clustered())
    fires = rng.beta(0.2, 1.8, size=2 * n_rows)[prompts]
    columns = {
        "score": score + shift * side,
        "length": np.round(200 * np.exp(0.7 * (0.3 * score + np.sqrt(0.91) * clustered()))),
        "margin": margin,
        "expected accuracy": expit(margin / 2),
        "accuracy": rng.random(n) < expit(margin / 2),
        "guard": rng.random(n) < fires,
        "domain": rng.choice([f"domain {k}" for k in range(DOMAINS)], size=2 * n_rows)[prompts],
    }
    return columns, prompts, side


def alarms(columns, prompts, side, seed):
    """Returns which checks alarm."""
    found = drift_test(columns, prompts, side, n_permutations=DRAWN, alpha=ALPHA, seed=seed)
    first, second = columns["score"][~side], columns["score"][side]
    counts = decile_counts(first, second)
    value, n_prompts = psi(*counts), [len(np.unique(prompts[own])) for own in (~side, side)]
    return [
        found.p <= ALPHA, value > 0.1, value > 0.25, value > psi_threshold(len(first), len(second), counts.shape[1]),
        value > psi_threshold(*n_prompts, counts.shape[1]),
        ks_2samp(first, second, method="asymp").pvalue <= ALPHA,
    ]  # fmt: skip


def rates(kind, n_rows, draws, shift=0.0):
    """Returns the rate of each check over draws with its exact interval."""
    started = time.time()
    found = []
    for seed in range(draws):
        found.append(alarms(*draw(np.random.default_rng([seed, n_rows, int(100 * shift)]), n_rows, kind, shift), seed))
    say(f"{kind}, {n_rows} rows, shift {shift}: {draws} draws in {time.time() - started:.0f} s")
    return [binomial_estimate(int(hits), draws) for hits in np.sum(found, axis=0)]


def intraclass_correlation(values, prompts):
    """One-way ICC of rows within prompts, by the analysis of variance of unequal groups."""
    index, counts = np.unique(prompts, return_inverse=True, return_counts=True)[1:]
    means = np.bincount(index, values) / counts
    n, k = len(values), len(counts)
    between = (counts * (means - values.mean()) ** 2).sum() / (k - 1)
    within = ((values - means[index]) ** 2).sum() / (n - k)
    size = (n - (counts**2).sum() / n) / (k - 1)
    return (between - within) / (between + (size - 1) * within)


def stored(folder, model):
    """Returns the columns of both sides and the calibration; the wrong answer of RewardMATH is drawn once."""
    easy, hard = (
        {row["problem"]: row["score"] for row in json.loads(gzip.decompress(path.read_bytes()))}
        for path in (folder / name / f"{model}.json.gz" for name in ("rewardbench-math", "rewardmath"))
    )
    half = set(sorted(easy | hard)[::2])
    rng = np.random.default_rng(0)
    sides = [
        {prompt: scores for prompt, scores in easy.items() if prompt in half},
        {prompt: (own[0], own[rng.integers(1, 10)]) for prompt, own in hard.items() if prompt not in half},
    ]
    nine = {prompt: own for prompt, own in hard.items() if prompt not in half}
    columns = [columns_of(own) for own in sides]
    own = sides[0]
    calibration = calibrate([s[0] for s in own.values()], [s[1] for s in own.values()], list(own))
    whole = {prompt: (own[0], own[rng.integers(1, 10)]) for prompt, own in hard.items()}
    wins = np.concatenate([pair_wins(own[0], own[1:]) for own in nine.values()])
    return columns, calibration, columns_of(whole), mean_estimate(wins, np.repeat(np.arange(len(nine)), 9))


def columns_of(pairs):
    scores = np.array(list(pairs.values()), float)
    return {"prompt_id": np.array(list(pairs)), "score": scores.mean(axis=1), "margin": scores[:, 0] - scores[:, 1],
            "preference": np.ones(len(pairs))}  # fmt: skip


def without_labels(columns):
    return {name: values for name, values in columns.items() if name != "preference"}


def real_scores(folder, halves):
    """Returns the lines on the stored scores."""
    rows, control = [], []
    for model, name in MODELS.items():
        (first, second), calibration, whole, nine = stored(folder, model)
        blind = drift(without_labels(first), without_labels(second), calibration=calibration)
        seen = drift(first, second, calibration=calibration)
        rows.append([
            name, f"{calibration.temperature_estimate:.2f}", short(seen.accuracy["reference"]),
            short(blind.expected_accuracy["reference"]), short(blind.expected_accuracy["current"]),
            short(seen.accuracy["current"]), short(nine), f"{blind.p:.3f}", f"{seen.p:.3f}",
            "yes" if seen.warnings else "no",
        ])  # fmt: skip
        hits = 0
        for seed in range(halves):
            side = np.random.default_rng(seed).permutation(len(whole["score"])) % 2 == 1
            own = {"score": whole["score"], "margin": np.abs(whole["margin"]), "accuracy": whole["margin"] > 0}
            own["expected"] = calibration.calibrator.predict_proba(own["margin"])
            hits += drift_test(own, whole["prompt_id"], side, n_permutations=PERMUTATIONS, seed=seed).p <= ALPHA
        control.append([name, str(len(whole["score"])), short(binomial_estimate(hits, halves))])
        say(f"{name}: {rows[-1]}, halves {control[-1]}")
    head = ("model", "temperature", "accuracy, reference", "expected, reference", "expected, current",
            "accuracy, current", "accuracy, current, all nine", "p without labels", "p with labels",
            "calibration said to be broken")  # fmt: skip
    return [
        f"Stored scores of public models: reference RewardBench-math ({len(first['score'])} pairs, a prompt each), "
        f"current RewardMATH on other prompts ({len(second['score'])} pairs); {PERMUTATIONS} permutations.", "",
        *table(head, rows), "",
        f"Negative control: {halves:,} random halves of the prompts of RewardMATH, alarms of the verdict.", "",
        *table(("model", "prompts", "alarms"), control),
    ]  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=3000)
    parser.add_argument("--power-draws", type=int, default=500)
    parser.add_argument("--halves", type=int, default=1000)
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    columns, prompts, side = draw(np.random.default_rng(0), 50_000, "separate")
    icc = {name: intraclass_correlation(columns[name].astype(float), prompts) for name in list(columns)[:6]}
    under = [
        [kind, f"{n:,}", *map(short, rates(kind, n, arguments.draws))]
        for kind, sizes in (("separate", ROWS), ("shared", ROWS), ("half", ROWS[1:2])) for n in sizes
    ]  # fmt: skip
    power = [
        [kind, f"{n:,}", f"{shift:g}", *map(short, rates(kind, n, arguments.power_draws, shift))]
        for kind in ("separate", "shared") for n, shift in SHIFTS.items()
    ]  # fmt: skip
    columns, prompts, side = draw(np.random.default_rng(0), 5000, "separate")
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        drift_test(columns, prompts, side, n_permutations=PERMUTATIONS)
        seconds.append(time.perf_counter() - started)
    lines = [
        f"`tests/benchmarks/drift.py`, {platform.machine()}, Python {platform.python_version()}, numpy "
        f"{np.__version__}, scipy {scipy.__version__}, one thread, other work beside. Intervals of rates are exact "
        "binomial, 95 %.", "",
        f"No change, {arguments.draws:,} draws each, {DRAWN} permutations: share that alarms. Rows are of each side, "
        "prompts have 1 to 8; "
        f"intraclass correlations {', '.join(f'{name} {value:.2f}' for name, value in icc.items())}, domain 1.", "",
        *table(("prompts", "rows a side", *CHECKS), under), "",
        f"The current score higher by a share of its standard deviation, {arguments.power_draws:,} draws each.", "",
        *table(("prompts", "rows a side", "shift", *CHECKS), power), "",
        f"One test of seven columns at 5,000 rows a side, {PERMUTATIONS} permutations: {np.median(seconds):.2f} s.",
    ]  # fmt: skip
    if "RMTRL_DATA" in os.environ:
        lines += ["", *real_scores(Path(os.environ["RMTRL_DATA"]) / "rewardmath", arguments.halves)]
    write_section("Drift", lines, save=arguments.save)


if __name__ == "__main__":
    main()
