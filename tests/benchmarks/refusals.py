"""The refusal guard on people's labels: XSTest's 450 prompts, each answered by three models.

    RMTRL_DATA=… python tests/benchmarks/refusals.py [--table] [--write]

Cross-fitted with prompt and model held out: an answer is judged by weights fitted on other models' answers to other
prompts. A prompt goes with its twins (XSTest's contrasts), so 200 groups stand in five folds. Intervals resample
groups. While the signs and features were written, the answers to a third of the groups were not read (`unread`).
Prints one JSON object; `--write` fits the weights on all answers and writes them into the guard's YAML.
"""

import argparse
import hashlib
import json
import os
import re
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

from rmtrl.metrics import bootstrap_estimates, mean_estimate
from rmtrl.monitoring.refusals import features
from rmtrl.types import Estimate, json_ready

MODELS = ("gpt4", "llama2orig", "mistralinstruct")
FAMILIES = {
    "nons_group_real_discr": "discr", "real_group_nons_discr": "discr",
    "privacy_public": "privacy", "privacy_fictional": "privacy",
}  # fmt: skip
FOLDS, STRENGTH = 5, 0.1
YAML = Path(__file__).parents[2] / "rmtrl" / "monitoring" / "refusals.yaml"


def read_answers(data: Path) -> pd.DataFrame:
    """Returns the answers with their labels (1 answer, 2 full refusal, 3 partial), twins, folds and features."""
    tables = []
    for model in MODELS:
        table, matched = (pd.read_csv(data / "xstest" / f"{model}{end}.csv.gz") for end in ("", "-stringmatch"))
        assert (table.id == matched.id).all() and len(table) == 450
        tables.append(table.assign(model=model, matched=matched.strmatch_label))
    rows = pd.concat(tables, ignore_index=True)
    place = rows.groupby(["model", "type"]).cumcount()
    family = [FAMILIES.get(kind, kind.removeprefix("contrast_")) for kind in rows.type]
    rows["twins"] = [f"{name}-{number}" for name, number in zip(family, place, strict=True)]
    rows["fold"] = [digest("f" + twins) % FOLDS for twins in rows.twins]
    rows["unread"] = [digest(twins) % 3 == 0 for twins in rows.twins]
    for column in ("final_label", "annotation_1", "annotation_2", "matched"):
        rows[column] = rows[column].str[0].astype(int)
    return rows


def digest(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)


def targets(rows: pd.DataFrame) -> dict[str, tuple[np.ndarray, pd.Series]]:
    """Returns what the two regressions predict and the cells that weigh the same: a partial refusal is no full one."""
    some = rows.final_label != 1
    return {
        "full": ((rows.final_label == 2).to_numpy(), rows.model + rows.final_label.astype(str)),
        "any": (some.to_numpy(), rows.model + some.astype(str)),
    }


def fit(x: np.ndarray, positive: np.ndarray, cells: pd.Series) -> LogisticRegression:
    """Returns a logistic regression in which refusals weigh as much as the rest, and each cell of a side the same."""
    weight = 1 / cells.map(cells.value_counts()).to_numpy(float)
    for side in (positive, ~positive):
        weight[side] /= weight[side].sum()
    return LogisticRegression(C=STRENGTH, max_iter=5000).fit(x, positive, sample_weight=weight * len(x) / 2)


def cross_fit(x: np.ndarray, positive: np.ndarray, cells: pd.Series, rows: pd.DataFrame) -> np.ndarray:
    """Returns the probability of each answer by weights of other models and other prompts, `(N,)`."""
    result = np.full(len(rows), np.nan)
    for model in MODELS:
        for fold in range(FOLDS):
            train = ((rows.model != model) & (rows.fold != fold)).to_numpy()
            test = ((rows.model == model) & (rows.fold == fold)).to_numpy()
            fitted = fit(x[train], positive[train], cells[train])
            result[test] = fitted.predict_proba(x[test])[:, 1]
    return result


def judged(data: Path) -> pd.DataFrame:
    """Returns the answers with verdicts, `full` and `any`, by weights that saw neither the prompt nor the model."""
    rows = read_answers(data)
    start = time.perf_counter()
    found = [features(prompt, answer) for prompt, answer in zip(rows.prompt, rows.completion, strict=True)]
    print(f"{1000 * (time.perf_counter() - start) / len(rows):.2f} ms an answer", file=sys.stderr)
    x = pd.DataFrame(found).fillna(0.0).to_numpy()
    return rows.assign(**{name: cross_fit(x, *target, rows) > 0.5 for name, target in targets(rows).items()})


def rates(truth: np.ndarray, flagged: np.ndarray, groups: np.ndarray) -> dict[str, Estimate]:
    """Returns sensitivity, specificity and their mean, with intervals by group of prompts."""

    def statistics(weights: np.ndarray) -> dict[str, np.ndarray]:
        sensitivity = weights @ (truth & flagged) / (weights @ truth)
        specificity = weights @ (~truth & ~flagged) / (weights @ ~truth)
        both = (sensitivity + specificity) / 2
        return {"balanced_accuracy": both, "sensitivity": sensitivity, "specificity": specificity}

    return bootstrap_estimates(statistics, len(truth), groups, bounds=(0, 1), by="twin prompts")


def measure(data: Path) -> dict:
    """Returns the figures of the guard and of string matching, by model, on all prompts and on the unread ones."""
    rows = judged(data)
    full, kinds = (rows.final_label == 2).to_numpy(), np.where(rows.full, 2, np.where(rows["any"], 3, 1))
    result = {}
    for model in MODELS:
        for name, chosen in (("all", rows.model == model), ("unread", (rows.model == model) & rows.unread)):
            own, k = rows[chosen], chosen.to_numpy()
            groups = own.twins.to_numpy()
            result[f"{model}/{name}"] = {
                "guard": rates(full[k], own.full.to_numpy(), groups),
                "string_matching": rates(full[k], own.matched.to_numpy() == 2, groups),
                "three_way": mean_estimate(kinds[k] == own.final_label, groups),
                "annotators": mean_estimate((own.annotation_1 == own.annotation_2).to_numpy(), groups),
            }
    return result


def table(result: dict) -> list[str]:
    """Returns the rows of the table in `examples/guardrails/README.md`."""
    rows = []
    for name, found in result.items():
        guard, matching = found["guard"], found["string_matching"]
        figures = [
            f"{guard['balanced_accuracy']:.3f}", f"{guard['sensitivity'].value:.3f}",
            f"{guard['specificity'].value:.3f}", f"{matching['balanced_accuracy']:.3f}",
            f"{matching['sensitivity'].value:.3f}", f"{matching['specificity'].value:.3f}",
            f"{found['three_way']:.3f}", f"{found['annotators'].value:.3f}", str(guard["sensitivity"].n),
        ]  # fmt: skip
        rows.append(f"| {name.replace('/', ', ')} | {' | '.join(figures)} |")
    return rows


def write(data: Path) -> None:
    """Fits the weights on all answers and puts them in the place of those in the guard's YAML."""
    rows = read_answers(data)
    table = pd.DataFrame([features(p, a) for p, a in zip(rows.prompt, rows.completion, strict=True)]).fillna(0.0)
    lines = ["weights:"]
    for name, target in targets(rows).items():
        fitted = fit(table.to_numpy(), *target)
        numbers = {"bias": fitted.intercept_[0], **dict(zip(table.columns, fitted.coef_[0], strict=True))}
        lines += [f"  {name}:", *(f"    {feature}: {value:.3f}" for feature, value in numbers.items())]
    kept = re.split(r"^weights:", YAML.read_text(encoding="utf-8"), flags=re.MULTILINE)[0]
    YAML.write_text(kept + "\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the rows of the table in place of JSON")
    parser.add_argument("--write", action="store_true", help="fit the shipped weights and write them")
    if "RMTRL_DATA" not in os.environ:
        raise SystemExit("set RMTRL_DATA to the folder of public data sets")
    data = Path(os.environ["RMTRL_DATA"])
    chosen = parser.parse_args()
    if chosen.write:
        write(data)
    result = measure(data)
    print("\n".join(table(result)) if chosen.table else json.dumps(json_ready(result), indent=1))


if __name__ == "__main__":
    main()
