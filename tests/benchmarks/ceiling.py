"""Is the ceiling of accuracy what it says? Worlds of known truth, then real votes and those of the embedded world.

    OMP_NUM_THREADS=1 python tests/benchmarks/ceiling.py worlds [--worlds 1000] [--out outputs/ceiling] [--save]
    RMTRL_DATA=… OMP_NUM_THREADS=1 python tests/benchmarks/ceiling.py votes [--save]

What is varied, what counts as a miss and why stands in PROTOCOL.md. A cell that is finished is a file in `--out`; a
run that was stopped goes on with the next one. World w of a cell has the seed (1, cell's number, w).
"""

import argparse
import os
import sys
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).parent))
from worlds import over_seeds, say, short, table, write_section  # noqa: E402

from rmtrl.data.annotations.reading import read_annotations  # noqa: E402
from rmtrl.data.synthetic.gold import gold_score  # noqa: E402
from rmtrl.data.synthetic.world import _CLOSE, ANNOTATORS, make_world  # noqa: E402
from rmtrl.io import read_object, write_json  # noqa: E402
from rmtrl.metrics import binomial_estimate, mean_estimate, pair_wins  # noqa: E402
from rmtrl.metrics.ceiling import Votes, accuracy_ceiling, better_family  # noqa: E402

NUMBERS, SIZES, SKILLS = (3, 5, 7), (300, 5000), ("equal", "unequal")
FITTED, OTHERS = "shares", ("sides", "ordered", "habit")
FEW = 300  # worlds of a cell of the two families that are neither
TIED, TIE, TIE_IF_TIED = 0.15, 0.05, 0.7
EDGE, HABIT = 0.3, 0.7
BIAS, RMSE, COVERAGE = 0.01, 0.01, (0.92, 0.98)


@dataclass(frozen=True)
class States:
    """What pairs are: how much better a is, whether they are ties, how much they please a habit; weights of a grid."""

    theta: np.ndarray
    tied: np.ndarray
    habit: np.ndarray
    weight: np.ndarray


def drawn(rng, n, family):
    """States of n pairs."""
    theta = rng.choice([-1.0, 1.0], n) if family == "sides" else rng.standard_normal(n)
    tied = rng.random(n) < (0 if family == "ordered" else TIED)
    return States(theta, tied, rng.standard_normal(n) * (family == "habit"), np.full(n, 1 / n))


def grid(family):
    """All states with their weights: midpoints of 400 equal shares of each normal law, 60 where there are two."""
    size = 60 if family == "habit" else 400
    normal = stats.norm.ppf((np.arange(size) + 0.5) / size)
    thetas = np.array([-1.0, 1.0]) if family == "sides" else normal
    ties = {False: 1.0} if family == "ordered" else {False: 1 - TIED, True: TIED}
    rows = list(product(thetas, ties, normal if family == "habit" else [0.0]))
    weight = np.array([ties[tied] for _, tied, _ in rows])
    return States(*map(np.array, zip(*rows, strict=True)), weight / weight.sum())


def skills_of(number, kind):
    """Skills: all 1, or from ½ to 2 in equal steps of their logarithm."""
    return np.ones(number) if kind == "equal" else np.geomspace(0.5, 2, number)


def chances(family, skills, states):
    """Chances of a, b and a tie, `(3, states, annotators)`."""
    theta = np.where(states.tied, 0, states.theta)[:, None] * skills
    if family == "ordered":  # a tie is what is heard as nearly equal
        for_a, for_b = stats.norm.cdf(theta - EDGE), stats.norm.cdf(-theta - EDGE)
    else:  # the last annotators, fewer than half, share a habit
        theta = theta + HABIT * np.outer(states.habit, np.arange(len(skills)) > len(skills) / 2)
        decided = 1 - np.where(states.tied, TIE_IF_TIED, TIE)[:, None]
        for_a, for_b = decided * stats.norm.cdf(theta), decided * stats.norm.cdf(-theta)
    return np.stack([for_a, for_b, 1 - for_a - for_b])


def draw_votes(rng, n, family, skills):
    """Votes of n pairs, `(n, annotators)`."""
    for_a, for_b, _ = chances(family, skills, drawn(rng, n, family))
    u = rng.random(for_a.shape)
    return np.where(u < for_a, 0, np.where(u < for_a + for_b, 1, 2))


def truth(family, skills):
    """The highest accuracies, one vote and majority: those of a model that knows the state, over a fine grid of it."""
    states = grid(family)
    own = chances(family, skills, states)
    lead = np.zeros((len(states.weight), 2 * len(skills) + 1))
    lead[:, len(skills)] = 1
    for a, b, tie in np.moveaxis(own, 2, 0)[..., None]:
        lead = tie * lead + a * np.roll(lead, 1, axis=1) + b * np.roll(lead, -1, axis=1)
    majority = lead[:, len(skills) + 1 :].sum(1), lead[:, : len(skills)].sum(1)
    return [
        float(states.weight @ np.maximum(a, b) / (states.weight @ (a + b)))
        for a, b in ((own[0].sum(1), own[1].sum(1)), majority)
    ]


def fitted(choices, **options):
    """The ceiling of a table of votes."""
    n, number = choices.shape
    return accuracy_ceiling(Votes.of(np.repeat(np.arange(n), number), np.tile(np.arange(number), n), choices.ravel()),
                            **options)  # fmt: skip


def cells(worlds):
    """Number, family, annotators, skills, pairs and worlds of each cell."""
    all_cells = product((FITTED, *OTHERS), NUMBERS, SKILLS, SIZES)
    return [
        (i, *cell, worlds if cell[0] in (FITTED, "sides") else min(worlds, FEW)) for i, cell in enumerate(all_cells)
    ]


def run_cell(index, family, number, kind, n, worlds):
    """Estimates `(worlds, 2, 3)` of one cell and how often the right family is the likelier, with the truth."""
    skills, found, likelier = skills_of(number, kind), [], 0
    for world in range(worlds):
        votes = draw_votes(np.random.default_rng([1, index, world]), n, family, skills)
        ceiling = fitted(votes)
        found.append([[e.value, e.low, e.high] for e in (ceiling.one_vote, ceiling.majority)])
        if family == "sides" and world < FEW:
            likelier += bool(better_family(ceiling, fitted(votes, family="sides")))
    return {"truth": truth(family, skills), "estimates": found, "warned": likelier}


def figures(cell, result):
    """Bias, RMSE, coverage and width of one vote and majority of a cell."""
    estimates, lines = np.array(result["estimates"]), {}
    for name, true, own in zip(("one vote", "majority"), result["truth"], np.moveaxis(estimates, 1, 0), strict=True):
        error = own[:, 0] - true
        held = int(((own[:, 1] <= true) & (true <= own[:, 2])).sum())
        lines[name] = {
            "truth": true, "bias": over_seeds(error), "rmse": float(np.sqrt((error**2).mean())),
            "coverage": binomial_estimate(held, len(own), kind="wilson"),
            "width": float((own[:, 2] - own[:, 1]).mean()),
        }  # fmt: skip
    return lines


def missed(n, own):
    """What a figure misses of what was asked for."""
    low, high = COVERAGE
    return [name for name, bad in {
        "bias": abs(own["bias"].value) > BIAS, "RMSE": n == max(SIZES) and own["rmse"] > RMSE,
        "coverage": not low <= own["coverage"].value <= high,
    }.items() if bad]  # fmt: skip


def simulate(options):
    started, rows = time.time(), {family: [] for family in (FITTED, *OTHERS)}
    asked, wrong, warned = 0, [], [0, 0]
    for index, *cell, worlds in cells(options.worlds):
        family, number, kind, n = cell
        path = options.out / f"{family}-{number}-{kind}-{n}-{worlds}.json"
        if not path.exists():
            before = time.time()
            write_json(path, run_cell(index, *cell, worlds) | {"seconds": time.time() - before})
            say(f"{path.name}: {time.time() - before:.0f} s")
        result = read_object(path)
        if family == "sides":
            warned = [warned[0] + result["warned"], warned[1] + min(worlds, FEW)]
        for name, own in figures(cell, result).items():
            misses = missed(n, own)
            if family == FITTED:
                asked, wrong = asked + 1, wrong + [f"{number} {kind} {n:,} {name}: {', '.join(misses)}"] * bool(misses)
            rows[family].append([
                str(number), kind, f"{n:,}", name, f"{own['truth']:.4f}", short(own["bias"], sign=True, digits=4),
                f"{own['rmse']:.4f}", short(own["coverage"]), f"{own['width']:.3f}", ", ".join(misses),
            ])  # fmt: skip
    seconds = sum(read_object(path)["seconds"] for path in options.out.glob("*.json"))
    header = [
        "annotators",
        "skills",
        "pairs",
        "against",
        "truth",
        "bias",
        "RMSE",
        "coverage of 95 %",
        "mean width",
        "missed",
    ]
    said = {
        FITTED: "The fitted family: each pair has its own clearness, θ ~ N(0, 1).",
        "sides": "Worlds in which all pairs are equally clear, θ = ±1. The other ceiling was offered as "
        f"the likelier one in {binomial_estimate(*warned, kind='wilson')} of them.",
        "ordered": "Worlds in which a tie is what an annotator hears as nearly equal.",
        "habit": "Worlds in which fewer than half of the annotators share a habit, which a model could learn.",
    }
    lines = [
        f"`tests/benchmarks/ceiling.py worlds --worlds {options.worlds}`, {seconds / 60:.0f} minutes by the clock, "
        f"with other work beside it. In {asked - len(wrong)} of the {asked} rows of the fitted family nothing is "
        f"missed{': ' * bool(wrong)}{'; '.join(wrong)}.", "",
    ]  # fmt: skip
    for family, own in rows.items():
        lines += [said[family], "", *table(header, own), ""]
    write_section("The ceiling of accuracy: worlds of known truth", lines, save=options.save)
    say(f"{time.time() - started:.0f} s")


# ---- votes of people and of the embedded world


def votes_section(options):
    rows = [*panda_rows(), *embedded_rows()]
    header = ["votes", "ceiling", "against one vote", "against the majority", "log likelihood", "n"]
    said = "PandaLM's makers had left out pairs on which their people differed much."
    lines = [f"`tests/benchmarks/ceiling.py votes`. Intervals by prompt. {said}", "", *table(header, rows), ""]
    lines += ["Beside it, against the majority of the votes; a tied label is no label:", ""]
    lines += table(
        ["model", "accuracy", "of the way from a coin to the ceiling", "n"], [*panda_models(), *embedded_models()]
    )
    write_section("The ceiling of accuracy: votes of people and of the embedded world", lines, save=options.save)


def both(name, votes, prompts):
    """A row a family."""
    rows = []
    for family in (FITTED, "sides"):
        found = accuracy_ceiling(votes, prompts, family=family)
        rows.append([name, found.assumed, short(found.one_vote), short(found.majority), f"{found.log_likelihood:,.1f}",
                     f"{found.n:,}"])  # fmt: skip
    return rows


def panda():
    """The votes of PandaLM's three annotators."""
    return read_annotations([Path(os.environ["RMTRL_DATA"]) / "pandalm" / "testset-v1-first500.json"])


def panda_rows():
    """Ceilings of PandaLM's pairs."""
    votes = panda().votes
    prompts = votes.groupby("pair").prompt_id.first()
    return both("PandaLM, three people", Votes.of(votes.pair, votes.annotator, votes.choice), prompts)


def beside(name, wins, prompts, limit):
    """A row of a model: accuracy on labels that are no ties, and how far it has gone."""
    own = mean_estimate(wins, prompts)
    return [name, short(own), short(limit.closed_by(own)), f"{own.n:,}"]


def panda_models():
    """The longer answer as a model of PandaLM's majority."""
    annotations = panda()
    votes = annotations.votes.assign(lead=2 * annotations.votes.points - 1)
    pairs = votes.groupby("pair").agg(
        prompt_id=("prompt_id", "first"), a=("a", "first"), b=("b", "first"), lead=("lead", "sum")
    )
    limit = accuracy_ceiling(Votes.of(votes.pair, votes.annotator, votes.choice), pairs.prompt_id)
    lengths = [
        [len(annotations.responses[own.prompt_id, side]) for side in (own.a, own.b)] for own in pairs.itertuples()
    ]
    longer = pairs.assign(wins=pair_wins(*np.transpose(lengths)))[pairs.lead != 0]
    return [
        beside(
            "PandaLM, the longer answer",
            np.where(longer.lead > 0, longer.wins, 1 - longer.wins),
            longer.prompt_id,
            limit,
        )
    ]


def embedded():
    """The embedded world: votes `(n, 5)`, prompts, gold differences and extra words of a."""
    world = make_world(2000)
    codes, choices, about = {"a": 0, "b": 1, "tie": 2}, {}, {}
    for vote in world.votes:
        key = vote["prompt_id"], vote["a"], vote["b"]
        choices.setdefault(key, {})[vote["annotator"]] = codes[vote["choice"]]
    texts = {row["item_id"]: row["response"] for row in world.responses}
    asked = {row["prompt_id"]: row["prompt"] for row in world.prompts}
    for prompt, a, b in choices:
        golds = [gold_score(asked[prompt], texts[side]) for side in (a, b)]
        about[prompt, a, b] = golds[0] - golds[1], len(texts[a].split()) - len(texts[b].split())
    names = [judge.name for judge in ANNOTATORS]
    table_of = np.array([[own[name] for name in names] for own in choices.values()])
    return table_of, np.array([prompt for prompt, *_ in choices]), *np.transpose(list(about.values()))


def embedded_truth(gap, words, draws=1000):
    """The highest accuracies of a model that knows gold and length, from many draws of each annotator."""
    rng, points = np.random.default_rng(0), []
    for judge in ANNOTATORS:
        liking = (gap + judge.length_preference * words)[:, None] + rng.normal(0, judge.noise, (len(gap), draws))
        close = (np.abs(gap) < _CLOSE)[:, None] & (judge.length_preference == 0)
        points.append(np.where(close | (np.abs(liking) < _CLOSE), 0, np.sign(liking)))
    points = np.array(points)
    both_sides = [[(own > 0).mean(axis=-1), (own < 0).mean(axis=-1)] for own in (points, points.sum(axis=0))]
    (one_a, one_b), (a, b) = both_sides
    one_a, one_b = one_a.sum(axis=0), one_b.sum(axis=0)
    return [float(np.maximum(x, y).sum() / (x + y).sum()) for x, y in ((one_a, one_b), (a, b))]


def embedded_rows():
    """Ceilings of the embedded world, and the true ones."""
    choices, prompts, gap, words = embedded()
    n, number = choices.shape
    votes = Votes.of(np.repeat(np.arange(n), number), np.tile(np.arange(number), n), choices.ravel())
    known = [f"{value:.3f}" for value in embedded_truth(gap, words)]
    return [*both("embedded world, five simulated annotators", votes, prompts),
            ["the same", "the truth: 1,000 draws of each annotator", *known, "", f"{n:,}"]]  # fmt: skip


def embedded_models():
    """Gold, the longer answer and the reward model of `make rm` as models of the embedded majority."""
    choices, prompts, gap, words = embedded()
    limit = fitted(choices, groups=prompts)
    lead = (choices == 0).sum(axis=1) - (choices == 1).sum(axis=1)
    kept, rows = lead != 0, []
    for name, margin in {"the gold score": gap, "the longer answer": words}.items():
        wins = (np.sign(margin * lead)[kept] + 1) / 2
        rows.append(beside(f"embedded world, {name}", wins, prompts[kept], limit))
    path = Path(__file__).parents[2] / "outputs" / "tiny" / "rm" / "metrics.json"
    test = read_object(path)["test"] if path.exists() else {}
    if "closed" in test:
        cells = [
            f"{own['value']:.3f} [{own['low']:.3f}, {own['high']:.3f}]" for own in (test["accuracy"], test["closed"])
        ]
        rows.append(["embedded world, the reward model of `make rm`", *cells, f"{test['accuracy']['n']:,}"])
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["worlds", "votes"])
    parser.add_argument("--worlds", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("outputs/ceiling"))
    parser.add_argument("--save", action="store_true", help="Put the section into RESULTS.md.")
    options = parser.parse_args()
    simulate(options) if options.part == "worlds" else votes_section(options)


if __name__ == "__main__":
    main()
