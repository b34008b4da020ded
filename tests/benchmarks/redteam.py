"""Corrected rates on people's labels: XSTest's 450 prompts, each answered by three models.

    RMTRL_DATA=… python tests/benchmarks/redteam.py [--splits 400] [--draws 400]

Half of a model's prompts, drawn at random, have people's labels and say how well the judge judges; the other half has
the judge's verdicts alone. What people say of that half is held against the rate that the judge counts there and
against the corrected one, with the interval of each. Judges: the refusal guard, by weights that saw neither prompt nor
model (`refusals.py`), and string matching as XSTest stores it. The second table takes sensitivity and specificity from
the other two models' answers. Prints means over the splits, and how often the intervals hold a true rate that is
known: simulated judges and prompts in 252 settings.
"""

import argparse
import os
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import refusals

from rmtrl.errors import UsageError
from rmtrl.metrics import binomial_estimate, corrected_rate
from rmtrl.monitoring.redteam import REFUSAL, SUCCESS, read_red_team
from rmtrl.types import Estimate

MODELS = ("gpt4", "llama2orig", "mistralinstruct")
JUDGES = {"guard": "the refusal guard", "matching": "string matching"}
FULL = "2_full_refusal"
ERRORS = ("sensitivity", "specificity")


def read_verdicts(data: Path) -> pd.DataFrame:
    """Returns what people, the guard and string matching say of each answer: whether it is the event of its kind."""
    refused, tables = refusals.judged(data), []
    for model in MODELS:
        source = data / "xstest" / f"{model}.csv.gz"
        prompts, rows = read_red_team(str(source)), pd.read_csv(source)
        assert [one.prompt for one in prompts] == rows["prompt"].tolist()
        matched = pd.read_csv(data / "xstest" / f"{model}-stringmatch.csv.gz")["strmatch_label"]
        safe = np.array([one.safe for one in prompts])
        tables.append(pd.DataFrame({
            "model": model, "kind": np.where(safe, REFUSAL, SUCCESS), "row": np.arange(len(rows)),
            "people": (rows["final_label"] == FULL).to_numpy() == safe,
            "guard": refused.full[refused.model == model].to_numpy() == safe,
            "matching": (matched == FULL).to_numpy() == safe,
        }))  # fmt: skip
    return pd.concat(tables, ignore_index=True)


def rate(events: pd.Series) -> Estimate:
    return binomial_estimate(int(events.sum()), len(events))


def judge_of(labelled: pd.DataFrame, judge: str) -> dict[str, Estimate] | None:
    """Returns sensitivity and specificity; None where people found one kind of answer only."""
    positive, negative = labelled[labelled["people"]], labelled[~labelled["people"]]
    if not len(positive) or not len(negative):
        return None
    return {"sensitivity": rate(positive[judge]), "specificity": rate(~negative[judge])}


def one_split(judged: pd.DataFrame, labelled: pd.DataFrame, judge: str) -> dict[str, float]:
    """Returns the rates of the judged answers and whether the intervals hold what people say of them."""
    people, counted = float(judged["people"].mean()), rate(judged[judge])
    found = {"people": people, "counted": counted.value, "counted holds": counted.low <= people <= counted.high}
    errors = judge_of(labelled, judge)
    try:
        fixed = corrected_rate(counted, **errors) if errors else None
    except UsageError:
        fixed = None
    if fixed is not None:
        found |= {"corrected": fixed.value, "low": fixed.low, "high": fixed.high}
        found |= {"corrected holds": fixed.low <= people <= fixed.high}
    return found


def measure(verdicts: pd.DataFrame, splits: int, *, elsewhere: bool = False, seed: int = 0) -> pd.DataFrame:
    """Returns a row a split, model, kind and judge.

    Args:
        verdicts (`DataFrame`): From [`read_verdicts`].
        splits (`int`): Random halves of the prompts.
        elsewhere (`bool`): Whether the judge's errors are those on the labelled half of the other two models.
        seed (`int`): Of the halves.
    """
    rng, found = np.random.default_rng(seed), []
    for _ in range(splits):
        half = (rng.permutation(verdicts["row"].max() + 1) % 2 == 0)[verdicts["row"]]
        kept = verdicts[half]
        for (model, kind), judged in verdicts[~half].groupby(["model", "kind"]):
            labelled = kept[((kept["model"] == model) != elsewhere) & (kept["kind"] == kind)]
            of = {"model": model, "kind": kind}
            found += [of | {"judge": judge} | one_split(judged, labelled, judge) for judge in JUDGES]
    return pd.DataFrame(found)


COLUMNS = (
    "model, event", "judge", "people say", "judge counts", "interval holds people's", "corrected", "its interval",
    "holds people's", "splits with a correction",
)  # fmt: skip


def table(measured: pd.DataFrame) -> str:
    """Returns the means over the splits as markdown."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for (kind, model, judge), own in measured.groupby(["kind", "model", "judge"]):
        mean, used = own.mean(numeric_only=True), own.dropna(subset=["corrected"])
        cells = [f"{model}, {kind.replace('_', ' ')}", JUDGES[judge]]
        cells += [f"{mean['people']:.3f}", f"{mean['counted']:.3f}", f"{own['counted holds'].mean():.0%}"]
        fixed = ["–"] * 3
        if len(used):
            low, high = mean["low"], mean["high"]
            fixed = [f"{mean['corrected']:.3f}", f"{low:.3f} – {high:.3f}", f"{used['corrected holds'].mean():.0%}"]
        lines.append(f"| {' | '.join([*cells, *fixed, f'{len(used)} of {len(own)}'])} |")
    return "\n".join(lines)


def coverage(draws: int, *, seed: int = 0) -> pd.DataFrame:
    """Returns, a row a setting, how often the corrected interval holds the true rate, and would with errors known."""
    rng, found = np.random.default_rng(seed), []
    judges = ((0.95, 0.95), (0.9, 0.7), (0.7, 0.9), (0.6, 0.99))
    for share, n, (se, sp), m in product((0, 0.02, 0.1, 0.3, 0.5, 0.8, 1), (50, 200, 1000), judges, (20, 50, 200)):
        held = {"corrected": 0, "known": 0}
        for _ in range(draws):
            counted = binomial_estimate(rng.binomial(n, share * se + (1 - share) * (1 - sp)), n)
            errors = {
                name: Estimate(rng.binomial(m, p) / m, 0, 1, m) for name, p in zip(ERRORS, (se, sp), strict=True)
            }
            exact = {name: replace(own, n=10**9) for name, own in errors.items()}
            for name, of in (("corrected", errors), ("known", exact)):
                fixed = corrected_rate(counted, **of)
                held[name] += fixed.low <= share <= fixed.high
        found.append({name: own / draws for name, own in held.items()})
    return pd.DataFrame(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=400, help="Random halves of the prompts.")
    parser.add_argument("--draws", type=int, default=400, help="Simulated samples a setting.")
    args = parser.parse_args()
    verdicts = read_verdicts(Path(os.environ["RMTRL_DATA"]))
    print("Labels of the same model's answers:\n")
    print(table(measure(verdicts, args.splits)))
    print("\nLabels of the other two models' answers:\n")
    print(table(measure(verdicts, args.splits, elsewhere=True)))
    print("\nShare of simulated samples whose interval holds the true rate, over 252 settings:\n")
    print(coverage(args.draws).describe().loc[["mean", "min", "max"]].round(3).to_string())


if __name__ == "__main__":
    main()
