"""Losses that know ties, and labels that know noise, on the embedded world.

    OMP_NUM_THREADS=1 python tests/benchmarks/losses.py ties [--seeds 11 12 13 14 15 16] [--small] [--save]
    OMP_NUM_THREADS=1 python tests/benchmarks/losses.py noise|first-vote [--seeds 1 2 3 4 5] [--small] [--save]

Fixed before any of the reported test pairs was looked at: each seed has its own prompts, one pair of different answers
a prompt, its own votes and its own models; all models of a seed start from the same supervised start and train on the
same pairs with `recipes/configs/tiny/rm.yaml`, without early stopping. Temperatures are fitted on a calibration split,
all figures are of the test split.

Ties. A pair has one vote: gold gap + noise of standard deviation 0.2, a tie where that is nearer to 0 than a
threshold, set so that 30 % of the training pairs are ties; a fifth of the pairs have no gold gap at all. Compared:
plain Bradley–Terry, which drops ties; Bradley–Terry with ties as soft labels of ½; Davidson; Rao–Kupper. Measured:
soft NLL of σ(m / T) with a tie as ½, T fitted to that NLL; differences to dropping ties are paired. One epoch
of 2,000 pairs: a first run on seeds 1 to 3 had two epochs of 1,000, where models differed more from seed to seed than
between losses, so the seeds here start at 11.

Noise. Pairs have a gold gap of at least 0.09. A pair has three votes, each wrong with probability 0.25 whatever the
gap, so that a majority is wrong with probability 0.156. Compared: the majority as a hard label, also with label
smoothing of 0.1 and of 0.156; the share of votes as a soft label. And apart, the first vote alone, also with
label smoothing of 0.25. Measured against three fresh votes a pair, whose share is the label, and against the gold
order; σ(m) as trained, and σ(m / T) with T fitted to labels of the same kind.
"""

import argparse
import time

import numpy as np
import torch
from worlds import (
    Floats,
    Pair,
    gaps,
    make_world,
    margins,
    over_seeds,
    paired,
    preference_rows,
    quiet,
    say,
    short,
    table,
    train,
    write_section,
)

from rmtrl.calibration.calibrators import TemperatureCalibrator
from rmtrl.metrics import calibration_metrics, pair_wins
from rmtrl.reward.losses import davidson_log_probabilities, rao_kupper_log_probabilities

TIE_NOISE, TIE_SHARE, WRONG, LEAST_GAP = 0.2, 0.3, 0.25, 0.09
MAJORITY_WRONG = 3 * WRONG**2 * (1 - WRONG) + WRONG**3
TIE_ARMS = {
    "ties dropped": {},
    "ties as ½": {"soft_labels": True},
    "davidson": {"loss_type": "davidson"},
    "rao_kupper": {"loss_type": "rao_kupper"},
}
NOISE_ARMS = {  # labels, settings, what it is compared with
    "majority": ("majority", {}, None),
    "majority, smoothing 0.1": ("majority", {"label_smoothing": 0.1}, "majority"),
    "majority, smoothing 0.156": ("majority", {"label_smoothing": MAJORITY_WRONG}, "majority"),
    "share of votes": ("share", {"soft_labels": True}, "majority"),
}
FIRST_VOTE_ARMS = {
    "first vote": ("first", {}, None),
    "first vote, smoothing 0.25": ("first", {"label_smoothing": WRONG}, "first vote"),
}
HEADINGS = {"ties": "Ties in the labels", "noise": "Noise in the labels", "first-vote": "Noise in single votes"}
FIGURES = ("NLL", "Brier", "ECE", "NLL, T", "Brier, T", "ECE, T")


def ties_of_seed(seed: int, sizes: tuple[int, int, int]) -> dict:
    """Margins, temperatures and labels of one seed."""
    world, rng = make_world(f"ties {seed}", sizes), np.random.default_rng(seed)
    votes = [gaps(part) + rng.normal(0, TIE_NOISE, len(part)) for part in (world.train, world.calibration, world.test)]
    threshold = np.quantile(np.abs(votes[0]), TIE_SHARE)
    labels = [np.where(np.abs(vote) < threshold, 0.5, vote > 0) for vote in votes]
    rows = preference_rows(world.train, labels[0], rng)
    found = {"labels": labels[2], "arms": {}, "temperature": {}, "tie_parameter": {}}
    for name, settings in TIE_ARMS.items():
        started = time.time()
        scorer, found["tie_parameter"][name] = train(rows, seed, num_train_epochs=1, **settings)
        calibrator = TemperatureCalibrator().fit(margins(scorer, world.calibration), labels[1])
        found["temperature"][name] = calibrator.temperature_
        found["arms"][name] = margins(scorer, world.test)
        say(f"ties {seed}, {name}: {time.time() - started:.0f} s")
    return found


def compare_ties(seeds: list[int], sizes: tuple[int, int, int]) -> dict:
    """Returns soft NLL and accuracy of each arm, paired differences to dropping ties, and checks of the tie models."""
    runs = [ties_of_seed(seed, sizes) for seed in seeds]
    counts = [len(run["labels"]) for run in runs]
    losses = {
        name: [_soft_losses(run["arms"][name] / run["temperature"][name], run["labels"]) for run in runs]
        for name in TIE_ARMS
    }

    def mean_of(values: list[Floats]):
        return paired(lambda rows: float(np.mean([v[r].mean() for v, r in zip(values, rows, strict=True)])), counts)

    result = {"nll": {}, "difference": {}, "accuracy": {}, "accuracy_difference": {}}
    wins = {name: [_wins(run["arms"][name], run["labels"]) for run in runs] for name in TIE_ARMS}
    decided = [int((run["labels"] != 0.5).sum()) for run in runs]
    for name in TIE_ARMS:
        dropped = losses["ties dropped"], wins["ties dropped"]
        result["nll"][name] = mean_of(losses[name])
        result["difference"][name] = mean_of([a - b for a, b in zip(losses[name], dropped[0], strict=True)])
        for key, values in (
            ("accuracy", wins[name]),
            ("accuracy_difference", [a - b for a, b in zip(wins[name], dropped[1], strict=True)]),
        ):
            result[key][name] = paired(
                lambda rows, values=values: float(np.mean([v[r].mean() for v, r in zip(values, rows, strict=True)])),
                decided,
            )
    result |= {"n": sum(counts), "tie_share": float(np.mean([(run["labels"] == 0.5).mean() for run in runs]))}
    result["per_seed"] = [
        {name: float(losses[name][i].mean() - losses["ties dropped"][i].mean()) for name in TIE_ARMS}
        for i in range(len(runs))
    ]
    result["over_seeds"] = {name: over_seeds([seed[name] for seed in result["per_seed"]]) for name in TIE_ARMS}
    result["checks"] = {name: _checks(name, runs) for name in ("davidson", "rao_kupper")}
    return result


def _soft_losses(z: Floats, labels: Floats) -> Floats:
    return labels * np.logaddexp(0, -z) + (1 - labels) * np.logaddexp(0, z)


def _wins(m: Floats, labels: Floats) -> Floats:
    decided = labels != 0.5
    return (m[decided] * (2 * labels[decided] - 1) > 0).astype(float)


def _checks(name: str, runs: list[dict]) -> dict:
    """How the tie model's own probabilities stand: identity of its log-odds, their slope, its share of ties."""
    kind = {"davidson": davidson_log_probabilities, "rao_kupper": rao_kupper_log_probabilities}[name]
    off, slopes, ties, nlls = [], [], [], []
    for run in runs:
        m, labels = run["arms"][name], run["labels"]
        win, tie, loss = kind(torch.tensor(m), run["tie_parameter"][name]).numpy().T
        decided = labels != 0.5
        off.append(float(np.abs(win - loss - m).max()))
        slopes.append(1 / TemperatureCalibrator().fit((win - loss)[decided], labels[decided]).temperature_)
        ties.append(float(np.exp(tie).mean()))
        nlls.append(float(-np.where(labels == 0.5, tie, np.where(labels == 1, win, loss)).mean()))
    parameters = [run["tie_parameter"][name] for run in runs]
    return {"off": max(off), "slope": slopes, "tie_share": ties, "nll": nlls, "parameter": parameters}


def noise_of_seed(seed: int, sizes: tuple[int, int, int], arms: dict) -> dict:
    """Returns the figures of one seed: `[arm][target]` holds accuracy and those of `FIGURES`."""
    world, rng = make_world(f"noise {seed}", sizes, least_gap=LEAST_GAP), np.random.default_rng(seed)
    votes = _votes(world.train, rng)
    labels = {"share": votes.mean(axis=1), "first": votes[:, 0]}
    labels["majority"] = (labels["share"] > 0.5).astype(float)
    held_out = (world.calibration, world.test)
    targets = {
        "fresh votes": [_votes(part, rng).mean(axis=1) for part in held_out],
        "gold order": [(gaps(part) > 0).astype(float) for part in held_out],
    }
    rows = {kind: preference_rows(world.train, label, rng) for kind, label in labels.items()}
    found: dict = {}
    for name, (kind, settings, _) in arms.items():
        started = time.time()
        scorer, _ = train(rows[kind], seed, **settings)
        m = [margins(scorer, part) for part in held_out]
        found[name] = {target: _figures(m, label) for target, label in targets.items()}
        say(f"noise {seed}, {name}: {time.time() - started:.0f} s")
    return found


def _votes(pairs: list[Pair], rng: np.random.Generator) -> Floats:
    """Three votes a pair, `(N, 3)`, 1 for the first answer."""
    right = rng.random((len(pairs), 3)) >= WRONG
    return np.where((gaps(pairs) > 0)[:, None], right, ~right).astype(float)


def _figures(m: list[Floats], labels: list[Floats]) -> dict:
    temperature = TemperatureCalibrator().fit(m[0], labels[0]).temperature_
    found = {"accuracy": pair_wins(m[1] * np.sign(2 * labels[1] - 1), np.zeros(len(m[1]))).mean()}
    for suffix, z in (("", m[1]), (", T", m[1] / temperature)):
        figures = calibration_metrics(z, labels=labels[1], n_resamples=200)
        found |= {f"{name}{suffix}": figures[name.lower()].value for name in ("NLL", "Brier", "ECE")}
    return found | {"T": temperature, "null": figures["null_ece"].value}


def compare_noise(seeds: list[int], sizes: tuple[int, int, int], arms: dict) -> dict:
    """Returns each figure of each arm over seeds, `[target][arm]`, and its paired difference."""
    runs = [noise_of_seed(seed, sizes, arms) for seed in seeds]
    result: dict = {}
    for target in ("fresh votes", "gold order"):
        values = {name: {f: [run[name][target][f] for run in runs] for f in runs[0][name][target]} for name in runs[0]}
        result[target] = {
            name: {
                "base": base,
                "value": {f: over_seeds(v) for f, v in values[name].items()},
                "difference": None
                if base is None
                else {f: over_seeds(np.subtract(v, values[base][f])) for f, v in values[name].items()},
            }
            for name, (_, _, base) in arms.items()
        }
    return result


def ties_lines(result: dict, seeds: list[int], sizes: tuple[int, int, int], seconds: float) -> list[str]:
    """The section's text."""
    rows = [
        [
            name, short(result["nll"][name], digits=4),
            "" if name == "ties dropped" else short(result["difference"][name], sign=True, digits=4),
            "" if name == "ties dropped" else short(result["over_seeds"][name], sign=True, digits=4),
            "" if name == "ties dropped" else ", ".join(f"{seed[name]:+.3f}" for seed in result["per_seed"]),
            short(result["accuracy"][name]),
            "" if name == "ties dropped" else short(result["accuracy_difference"][name], sign=True),
        ]
        for name in TIE_ARMS
    ]  # fmt: skip
    lines = [
        f"`tests/benchmarks/losses.py ties --seeds {' '.join(map(str, seeds))}`, two cores, float32, "
        f"{seconds / 60:.0f} minutes of one core. Each seed: {sizes[0]:,} pairs to train of which 30 % are ties, "
        f"{sizes[1]:,} to calibrate, {sizes[2]:,} to test; n = {result['n']:,} in all, "
        f"{result['tie_share']:.3f} ties. Soft NLL after a temperature, a tie as ½; accuracy on decided pairs. "
        "Differences are paired. 95 % intervals: prompts resampled within seeds, which says what other prompts would "
        "have given these models; and Student's over seeds, which says what other models and worlds would.",
        "",
        *table(
            ["loss", "soft NLL", "− ties dropped", "the same, over seeds", "by seed", "accuracy, decided",
             "− ties dropped"],
            rows,
        ),
        "",
        *table(
            ["tie model", "parameter", "largest \\|log-odds − m\\|", "slope of its log-odds on decided test pairs",
             "tie share predicted", "NLL of three outcomes"],
            [
                [name, _list(c["parameter"]), f"{c['off']:.1e}", _list(c["slope"]), _list(c["tie_share"], 3),
                 _list(c["nll"], 3)]
                for name, c in result["checks"].items()
            ],
        ),
    ]  # fmt: skip
    return lines


def noise_lines(what: str, result: dict, seeds: list[int], sizes: tuple[int, int, int], seconds: float) -> list[str]:
    """The section's text."""
    null = next(iter(result["fresh votes"].values()))["value"]["null"].value
    lines = [
        f"`tests/benchmarks/losses.py {what} --seeds {' '.join(map(str, seeds))}`, two cores, float32, "
        f"{seconds / 60:.0f} minutes of one core. Three votes a pair, each wrong with probability 0.25; each seed: "
        f"{sizes[0]:,} pairs to train, {sizes[1]:,} to calibrate, {sizes[2]:,} to test. Mean over {len(seeds)} seeds "
        f"with Student's 95 % interval. NLL, Brier and ECE (20 bins) of σ(m), then of σ(m / T); a calibrated model "
        f"shows an ECE of about {null:.3f} at one vote a pair and this n.",
    ]
    for target, arms in result.items():
        header = ["labels", "accuracy", *FIGURES, "T"]
        lines += ["", f"Against {'three fresh votes a pair' if target == 'fresh votes' else 'the gold order'}:", ""]
        lines += table(
            header,
            [[name, *(short(arm["value"][f]) for f in ["accuracy", *FIGURES, "T"])] for name, arm in arms.items()],
        )
        lines += ["", "Paired difference:", ""]
        lines += table(
            header[:-1],
            [
                [f"{name} − {arm['base']}",
                 *(short(arm["difference"][f], sign=True) for f in ["accuracy", *FIGURES])]
                for name, arm in arms.items() if arm["difference"]
            ],
        )  # fmt: skip
    return lines


def _list(values: list[float], digits: int = 2) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=list(HEADINGS))
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--small", action="store_true", help="a size that shows only that it runs")
    parser.add_argument("--save", action="store_true", help="write the section of RESULTS.md")
    args = parser.parse_args()
    quiet()
    if args.what == "ties":
        seeds, sizes = args.seeds or list(range(11, 17)), (120, 60, 200) if args.small else (2000, 600, 1500)
        lines = ties_lines(compare_ties(seeds, sizes), seeds, sizes, time.process_time())
    else:
        seeds, sizes = args.seeds or [1, 2, 3, 4, 5], (120, 60, 200) if args.small else (800, 400, 800)
        arms = NOISE_ARMS if args.what == "noise" else FIRST_VOTE_ARMS
        lines = noise_lines(args.what, compare_noise(seeds, sizes, arms), seeds, sizes, time.process_time())
    write_section(HEADINGS[args.what], lines, save=args.save)


if __name__ == "__main__":
    main()
