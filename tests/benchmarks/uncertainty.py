"""What uncertainty adds to a reward model trained on noisy votes of the embedded world.

    OMP_NUM_THREADS=1 python tests/benchmarks/uncertainty.py [--seeds 1 2 3] [--small] [--save]

Fixed before any of the reported test pairs was looked at: each seed has its own prompts, one pair a prompt with a gold
gap of at least 0.09, one vote a training pair that is wrong with probability 0.25, and two models from the same
supervised start with the settings of `recipes/configs/tiny/rm.yaml`: the plain one, and one with eight heads. Those
are MLPs: linear heads on one backbone have a convex problem in common and differ by their bootstrap weights alone,
hidden layers of their own let them differ by their start too. Laplace is fitted on the plain model's training pairs.

Pairs. Held-out pairs in gold order; an error is a pair whose margin m has the wrong sign. Compared: σ(m / T) against
the probit-adjusted probability σ(m / (T √(1 + π (s u)² / 8))) of the same model, u the standard deviation of the
margin. Once with s = 1 / T, the spread taken at its word; once with s fitted too, from 25 values and 0, where u says
nothing; Laplace takes its prior precision by evidence in the first case, from that and 0.1, 1, 10 and 100 in the
second. All are fitted to the NLL of a calibration split in gold order. Measured: AUROC of errors by predicted error,
and NLL.

Best of n. 64 of the test prompts, 320 answers each: four fifths by the world's writer; a fifth spoiled, as the
writer's answers alone offer little that a proxy overrates: padded with empty sentences, repeated, spliced with the
answer to another prompt, claiming all answers at once, or with shuffled words, each as likely. Members are centred on
training answers. Measured: gold score by the unbiased estimator; k = 1 and 2 were chosen beforehand.
"""

import argparse
import time
from collections.abc import Callable
from random import Random

import numpy as np
from scipy.special import expit, gammaln
from sklearn.metrics import roc_auc_score
from worlds import (
    Floats,
    Pair,
    World,
    conversation,
    gaps,
    make_world,
    paired,
    preference_rows,
    quiet,
    say,
    short,
    table,
    train,
    write_section,
)

from rmtrl import RewardScorer
from rmtrl.calibration.calibrators import TemperatureCalibrator
from rmtrl.data.synthetic.gold import gold_score
from rmtrl.data.synthetic.writing import WORDS, Prompt, write_answer
from rmtrl.metrics import mean_estimate
from rmtrl.reward.laplace import LaplaceScorer
from rmtrl.reward.uncertainty import HeadEnsembleScorer, UncertainScorer

WRONG, LEAST_GAP, HEADS, SPOILED = 0.25, 0.09, 8, 0.2
SCALES = (0.0, *np.geomspace(0.05, 50, 25))
PRECISIONS = (0.1, 1.0, 10.0, 100.0)
NS = (1, 4, 16, 64, 256)
MODELS = ("head ensemble", "Laplace")
VARIANTS = ("spread as it is", "spread scaled")
PROXIES = {
    "heads, mean": None, "heads, mean − std": "heads, mean", "heads, mean − 2 std": "heads, mean",
    "heads, min": "heads, mean", "plain": None, "Laplace, mean − std": "plain", "Laplace, mean − 2 std": "plain",
}  # fmt: skip


def models_of_seed(seed: int, world: World) -> tuple[HeadEnsembleScorer, Callable[..., LaplaceScorer]]:
    """Returns the ensemble, and what fits a Laplace scorer of the plain model for a prior precision."""
    rng = np.random.default_rng(seed)
    votes = ((gaps(world.train) > 0) ^ (rng.random(len(world.train)) < WRONG)).astype(float)
    rows = preference_rows(world.train, votes, rng)
    chosen, rejected = ([row["prompt"] + row[side] for row in rows] for side in ("chosen", "rejected"))
    started = time.time()
    plain, _ = train(rows, seed)
    heads, _ = train(rows, seed, n_heads=HEADS, head="mlp")
    say(f"{seed}, two models: {time.time() - started:.0f} s")

    remember_features(plain)

    def laplace(precision: float | str) -> LaplaceScorer:
        return LaplaceScorer(plain, precision, centered=True).fit(chosen, rejected)

    return HeadEnsembleScorer(heads).fit(chosen[:200] + rejected[:200]), laplace


def remember_features(scorer: RewardScorer) -> None:
    """Makes a scorer compute the features of a list of conversations once, in place."""
    compute, seen = scorer.features, {}

    def features(conversations: list) -> np.ndarray:
        key = str(conversations)
        if key not in seen:
            seen[key] = compute(conversations)
        return seen[key]

    scorer.features = features


def gold_margins(scorer: UncertainScorer, pairs: list[Pair]) -> tuple[Floats, Floats]:
    """Returns margins in gold order, and their standard deviations."""
    sides = [pair.sides() if pair.gap > 0 else pair.sides()[::-1] for pair in pairs]
    found = scorer.margins(*(list(side) for side in zip(*sides, strict=True)))
    return found.mean, found.std


def margin_nll(m: Floats) -> float:
    """Mean of −log σ(m)."""
    return float(np.logaddexp(0, -m).mean())


def adjusted(m: Floats, u: Floats, scale: float) -> Floats:
    """The margin whose σ is the probit-adjusted probability; `scale` is in units of 1 / u."""
    return m / np.sqrt(1 + np.pi * (scale * u) ** 2 / 8)


def fitted(m: Floats, u: Floats, scales: list[float]) -> tuple[float, float, float]:
    """Returns NLL, scale and temperature of least NLL on calibration pairs."""
    fits = []
    for scale in scales:
        a = adjusted(m, u, scale)
        temperature = TemperatureCalibrator().fit(a).temperature_
        fits.append((margin_nll(a / temperature), scale, temperature))
    return min(fits)


def at_its_word(m: Floats, u: Floats) -> tuple[float, float, float]:
    """As [`fitted`] with s = 1 / T."""

    def of(t: float) -> tuple[float, float, float]:
        return margin_nll(adjusted(m, u, 1 / t) / t), 1 / t, t

    return min(of(t) for t in np.geomspace(0.02, 20, 300) * float(np.sqrt(np.mean(m**2))))


def pairs_of_seed(heads: HeadEnsembleScorer, laplace: Callable[..., LaplaceScorer], world: World) -> dict:
    """Returns calibrated margins of the test pairs, `[model]["margin alone" or variant]`, and what was chosen."""
    found: dict = {}
    scorers = {"head ensemble": [heads], "Laplace": [laplace("auto"), *map(laplace, PRECISIONS)]}
    for name in MODELS:
        held_out = [(gold_margins(s, world.calibration), gold_margins(s, world.test)) for s in scorers[name]]
        fits = [fitted(m, u, [s / float(np.median(u)) for s in SCALES]) for (m, u), _ in held_out]
        best = min(range(len(fits)), key=lambda i: fits[i][0])
        _, scale, temperature = fits[best]
        (m, u), (test_m, test_u) = held_out[0]
        _, own_scale, own_temperature = at_its_word(m, u)
        found[name] = {
            "margin alone": test_m / TemperatureCalibrator().fit(m).temperature_,
            "spread as it is": adjusted(test_m, test_u, own_scale) / own_temperature,
            "spread scaled": adjusted(*held_out[best][1], scale) / temperature,
            "scale": scale * float(np.median(held_out[best][0][1])),
        }
        if name == "Laplace":
            found[name]["precision"] = [scorers[name][i].prior_precision_ for i in (0, best)]
    return found


def best_of_n(proxy: Floats, gold: Floats, n: int) -> float:
    """Returns the expected gold score of the best of n by proxy, over all draws of n of the N answers.

    Σ_i C(i − 1, n − 1) / C(N, n) · gold of the i-th lowest proxy (Nakano et al. 2021,
    https://huggingface.co/papers/2112.09332, appendix I); equal proxies share the mean of their gold scores.
    """
    _, block = np.unique(proxy, return_inverse=True)
    gold = (np.bincount(block, gold) / np.bincount(block))[block][np.argsort(proxy, kind="stable")]
    total = len(gold)
    i = np.arange(n, total + 1)
    logs = gammaln(i) - gammaln(i - n + 1) - gammaln(n) - (
        gammaln(total + 1) - gammaln(n + 1) - gammaln(total - n + 1)
    )  # fmt: skip
    return float(np.exp(logs) @ gold[n - 1 :])


def spoil(rng: Random, prompt: Prompt, answer: str, others: list[Prompt]) -> str:
    """Returns the answer made worse in one of five ways."""
    kind = rng.choice(("padded", "repeated", "spliced", "all answers", "shuffled"))
    if kind == "padded":
        return " ".join([answer, *rng.choices(WORDS["fillers"] + WORDS["polite"], k=rng.randint(3, 8))])
    if kind == "repeated":
        return " ".join([answer] * rng.randint(2, 4))
    if kind == "all answers" and prompt.fact is not None:
        fact, claims = prompt.fact, [prompt.fact.answer, *prompt.fact.wrong]
        rng.shuffle(claims)
        return " ".join(f"{fact.subject[0].upper()}{fact.subject[1:]} is {claim}." for claim in claims)
    if kind == "shuffled":
        words = answer.split()
        rng.shuffle(words)
        return " ".join(words)
    return f"{answer} {write_answer(rng, rng.choice(others))}"


def answers_of(name: str, prompts: list[Prompt], each: int) -> list[list[tuple[str, bool]]]:
    """Returns `each` answers a prompt, and whether they are the writer's own."""
    rng, groups = Random(name), []
    for prompt in prompts:
        answers = [(write_answer(rng, prompt), i >= SPOILED * each) for i in range(each)]
        groups.append([(a if own else spoil(rng, prompt, a, prompts), own) for a, own in answers])
    return groups


def proxies_of(
    heads: HeadEnsembleScorer, laplace: Callable[..., LaplaceScorer], conversations: list
) -> dict[str, Floats]:
    """The scores that answers are chosen by."""
    members = heads.members(conversations) - heads.offsets_
    mean, std = members.mean(axis=1), members.std(axis=1, ddof=1)
    found = {"heads, mean": mean, "heads, mean − std": mean - std, "heads, mean − 2 std": mean - 2 * std}
    last = laplace("auto").distribution(conversations)
    return found | {
        "heads, min": members.min(axis=1), "plain": last.mean,
        "Laplace, mean − std": last.mean - last.std, "Laplace, mean − 2 std": last.mean - 2 * last.std,
    }  # fmt: skip


def best_of_seed(
    seed: int, heads: HeadEnsembleScorer, laplace: Callable[..., LaplaceScorer], prompts: list[Prompt], each: int
) -> dict[bool, dict[str, Floats]]:
    """Returns gold by prompt and n, `(P, len(NS))`, of each proxy: over the writer's own answers, and over all."""
    groups = answers_of(f"best of {seed}", prompts, each)
    texts = list(dict.fromkeys((i, answer) for i, group in enumerate(groups) for answer, _ in group))
    scores = proxies_of(heads, laplace, [conversation(prompts[i], answer) for i, answer in texts])
    where = {text: row for row, text in enumerate(texts)}
    found = {own: {name: np.empty((len(prompts), len(NS))) for name in PROXIES} for own in (True, False)}
    for i, group in enumerate(groups):
        gold = np.array([gold_score(prompts[i].text, answer) for answer, _ in group])
        rows = np.array([where[i, answer] for answer, _ in group])
        mine = np.array([own for _, own in group])
        for only in (True, False):
            kept = mine | (not only)
            for name in PROXIES:
                found[only][name][i] = [best_of_n(scores[name][rows[kept]], gold[kept], n) for n in NS]
    return found


def compare(seeds: list[int], sizes: tuple[int, int, int], prompts: int, each: int) -> dict:
    """Returns all figures of all seeds."""
    runs, bests = [], []
    for seed in seeds:
        started = time.time()
        world = make_world(f"uncertainty {seed}", sizes, least_gap=LEAST_GAP)
        heads, laplace = models_of_seed(seed, world)
        runs.append(pairs_of_seed(heads, laplace, world))
        say(f"{seed}, with pairs: {time.time() - started:.0f} s")
        bests.append(best_of_seed(seed, heads, laplace, [pair.prompt for pair in world.test[:prompts]], each))
        say(f"{seed}, with best of n: {time.time() - started:.0f} s")
    return {"pairs": {name: _pair_figures(name, runs) for name in MODELS}, "best": _best_figures(bests), "runs": runs}


def _pair_figures(name: str, runs: list[dict]) -> dict:
    margins = {kind: [run[name][kind] for run in runs] for kind in ("margin alone", *VARIANTS)}
    base = margins["margin alone"]
    sizes = [len(m) for m in base]

    def over(statistic: Callable[[int, np.ndarray], float]):
        return paired(lambda rows: float(np.mean([statistic(i, r) for i, r in enumerate(rows)])), sizes)

    def foresight(m: Floats) -> float:
        wrong = m < 0
        return np.nan if wrong.all() or not wrong.any() else float(roc_auc_score(wrong, expit(-np.abs(m))))

    figures: dict = {"errors": float(np.mean([(m < 0).mean() for m in base])), "n": sum(sizes)}
    for kind, values in margins.items():
        figures[kind] = {
            "auroc": over(lambda i, r, v=values: foresight(v[i][r])),
            "nll": over(lambda i, r, v=values: margin_nll(v[i][r])),
        }
        if kind != "margin alone":
            figures[kind]["auroc difference"] = over(lambda i, r, v=values: foresight(v[i][r]) - foresight(base[i][r]))
            figures[kind]["nll difference"] = over(lambda i, r, v=values: margin_nll(v[i][r]) - margin_nll(base[i][r]))
            figures[kind]["by seed"] = [
                (foresight(v) - foresight(b), margin_nll(v) - margin_nll(b)) for v, b in zip(values, base, strict=True)
            ]
    return figures


def _best_figures(bests: list[dict[bool, dict[str, Floats]]]) -> dict:
    result: dict = {}
    for only in (True, False):
        gold = {name: np.concatenate([best[only][name] for best in bests]) for name in PROXIES}
        result[only] = {}
        for name, base in PROXIES.items():
            curve, last = gold[name].mean(axis=0), gold[name][:, -1]
            fall = gold[name][:, int(curve.argmax())] - last
            result[only][name] = {
                "curve": curve, "last": mean_estimate(last, proportion=False),
                "fall": mean_estimate(fall, proportion=False),
                "difference": mean_estimate(last - gold[base][:, -1], proportion=False) if base else None,
                "by seed": [float((b[only][name] - b[only][base])[:, -1].mean()) for b in bests] if base else None,
            }  # fmt: skip
    return result


def lines_of(result: dict, seeds: list[int], sizes: tuple[int, int, int], prompts: int, each: int, seconds: float):
    """The section's text."""
    n = result["pairs"]["Laplace"]["n"]
    lines = [
        f"`tests/benchmarks/uncertainty.py --seeds {' '.join(map(str, seeds))}`, two cores, float32, "
        f"{seconds / 60:.0f} minutes of one core. One vote a pair, wrong with probability 0.25; each seed: "
        f"{sizes[0]:,} pairs to train, {sizes[1]:,} to calibrate, {sizes[2]:,} to test (all seeds: n = {n:,}), "
        f"all in gold order but those trained on. {HEADS} MLP heads. Intervals: 95 %, prompts resampled within seeds, "
        "models fixed; differences are paired, to the margin of the same model. AUROC of errors: higher is better; "
        "NLL: lower is better.",
        "",
    ]
    rows = []
    for name, figures in result["pairs"].items():
        for kind in ("margin alone", *VARIANTS):
            f = figures[kind]
            cells = [name, f"{figures['errors']:.3f}", kind, short(f["auroc"]), short(f["nll"], digits=4)]
            if kind == "margin alone":
                rows.append([*cells, "", "", ""])
                continue
            by_seed = ", ".join(f"{a:+.3f} / {n:+.4f}" for a, n in f["by seed"])
            rows.append(
                [*cells, short(f["auroc difference"], sign=True, digits=4),
                 short(f["nll difference"], sign=True, digits=4), by_seed]
            )  # fmt: skip
    header = ["model", "errors", "probability", "AUROC of errors", "NLL", "AUROC, difference", "NLL, difference"]
    lines += table([*header, "both by seed"], rows)
    by_model = {name: [f"{run[name]['scale']:.2f}" for run in result["runs"]] for name in MODELS}
    scales = "; ".join(f"{name} {', '.join(values)}" for name, values in by_model.items())
    precisions = ", ".join(f"{run['Laplace']['precision'][0]:.3g}" for run in result["runs"])
    chosen = ", ".join(f"{run['Laplace']['precision'][1]:g}" for run in result["runs"])
    lines += [
        "", f"Fitted scale times the median spread, by seed: {scales} (0: the spread was not used). Laplace's prior "
        f"precision by evidence: {precisions}; by calibration: {chosen}.",
    ]  # fmt: skip
    for only, title in ((False, "a fifth of the answers spoiled"), (True, "the writer's own answers alone")):
        lines += [
            "", f"Best of n, {title}: {prompts * len(seeds)} prompts ({prompts} a seed), "
            f"{each if not only else round(each * (1 - SPOILED))} answers each; gold score, 95 % intervals by prompt. "
            "Fall: from the best n of the curve to n = 256.", "",
        ]  # fmt: skip
        rows = [
            [name, *(f"{value:.3f}" for value in f["curve"][:-1]), short(f["last"]), short(f["fall"]),
             short(f["difference"], sign=True) if f["difference"] else "",
             ", ".join(f"{value:+.3f}" for value in f["by seed"]) if f["by seed"] else ""]
            for name, f in result["best"][only].items()
        ]  # fmt: skip
        lines += table(
            ["chosen by", *(f"n = {n}" for n in NS), "fall", "at 256 − mean of the same model", "by seed"], rows
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--small", action="store_true", help="a size that shows only that it runs")
    parser.add_argument("--save", action="store_true", help="write the section of RESULTS.md")
    args = parser.parse_args()
    quiet()
    size = ((120, 80, 150), 4, 400) if args.small else ((1000, 500, 1500), 64, 320)
    result = compare(args.seeds, *size)
    lines = lines_of(result, args.seeds, *size, time.process_time())
    write_section("Uncertainty under noisy votes", lines, save=args.save)


if __name__ == "__main__":
    main()
