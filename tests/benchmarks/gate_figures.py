"""What the gate study says: how well each figure, and the gate, foretell what a policy does with a reward model.

    python tests/benchmarks/gate_figures.py --collect        # outputs/gate_study/run/*.json into gate_study.csv
    python tests/benchmarks/gate_figures.py [--save]         # the tables, from gate_study.csv alone: half a minute

PROTOCOL.md fixes what is computed here. Intervals resample the cells of the design: the models of one cell differ by
their seed alone.
"""

import argparse
import gzip
import json
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from workloads import machine
from worlds import ROOT, Floats, short, table, write_section

from rmtrl.calibration.calibration import calibrate
from rmtrl.evaluation.audit import ACQUITTED, CONVICTED
from rmtrl.evaluation.evidence import SCHEMA, Evidence
from rmtrl.evaluation.gate import Thresholds, default_thresholds, judge
from rmtrl.metrics import (
    bootstrap_estimates,
    correlation_estimate,
    mean_estimate,
    pair_wins,
    share_estimate,
    step_rewards,
)  # fmt: skip
from rmtrl.types import Estimate

CSV = Path(__file__).with_name("gate_study.csv")
OUTPUTS = ROOT / "outputs" / "gate_study" / "run"
DEFECTS = ("length", "noise", "narrow", "leak", "little")
OF_LABELS, OF_PAIRS = ("length", "noise"), ("narrow", "leak", "little")
EVIDENCE = ("test_accuracy", "length_matched_accuracy", "spillover_accuracy", "fresh_accuracy", "ece", "nll_gain")
DEPLOYABLE = {  # 1: more is better, -1: less is
    **dict.fromkeys(EVIDENCE, 1), "ece": -1, "probe": -1, "spread": 1, "overlap": -1, "audit": 1,
}  # fmt: skip
GATE = {"score": 1, "ready": 1, "now": 1}
GOLD = {"gamma": -1}
OUTCOMES = {"PPO": "ppo_gain", "best of 256": "best_of_gain"}
AIM, LEAST = 0.80, 0.70
ALL, FEW = 128, 20


# ---- models as rows


def flat(found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a model's file as a row: its place in the design, its figures with their intervals, its outcomes."""
    row = {name: found[name] for name in ("name", "cell", "size", "seed")}
    row |= {kind: int(kind in found["defects"]) for kind in DEFECTS}
    for name in EVIDENCE:
        item = found["evidence"].get(name) or {}
        row |= {f"{name}{end}": item.get(key) for end, key in _ENDS.items()}
    row |= {"overlap": found["evidence"]["overlap"]["value"], "overlap.n": found["evidence"]["overlap"]["n"]}
    row |= {"audit": {ACQUITTED: 1.0, CONVICTED: 0.0}.get(found["verdict"], 0.5)}
    row |= {name: found[name] for name in ("probe", "spread", "temperature")}
    row |= {name: (found[name] or {}).get("value") for name in ("gamma", "drawdown")}
    ppo, best = found["ppo"], found["best_of"]
    row |= {"ppo_gain": ppo["gain"]["value"], "ppo_gain.low": ppo["gain"]["low"], "ppo_gain.high": ppo["gain"]["high"]}
    row |= {f"ppo_gain.{seed}": gain for seed, gain in ppo["gains"].items()}
    row |= {"kl": ppo["kl"], "length_tokens": ppo["length_tokens"], "best_of_gain": best["value"]}
    return row | {"seconds": sum(found["seconds"].values())}


_ENDS = {"": "value", ".low": "low", ".high": "high", ".n": "n"}


def collect(folder: Path) -> pd.DataFrame:
    """Returns the rows of all models of a folder."""
    files = sorted(folder.glob("*.json"))
    return pd.DataFrame([flat(json.loads(file.read_text())) for file in files]).round(5)


def evidence(row: Mapping[str, Any]) -> Evidence:
    """Returns what the gate is told of a model; simulated reviewers pass for people, as in the protocol."""
    items: dict[str, Any] = {
        name: {key: row[f"{name}{end}"] for end, key in _ENDS.items()} | {"n": int(row[f"{name}.n"])}
        for name in EVIDENCE
        if not math.isnan(row[name])
    }
    items["fresh_accuracy"]["reviewed_by"] = "human"
    items["overlap"] = {key: row["overlap"] for key in ("value", "low", "high")} | {"n": int(row["overlap.n"])}
    items["length_audit"] = {"passed": {1.0: True, 0.0: False}.get(row["audit"]), "said": "the study's"}
    return Evidence.from_dict({"schema": SCHEMA, **items})


def package_thresholds() -> Thresholds:
    """Returns the package's thresholds without γ, which only gold knows, and lineage, which is one for all models."""
    checks = default_thresholds().checks
    return Thresholds({name: own for name, own in checks.items() if name not in ("gamma", "lineage")})


def study_thresholds() -> Thresholds:
    """Returns those that the protocol fixed: the same, as they were when every one of them stopped."""
    return Thresholds({name: replace(own, otherwise="stop") for name, own in package_thresholds().checks.items()})


def judged(frame: pd.DataFrame, thresholds: Thresholds) -> pd.DataFrame:
    """Returns the models with the gate's `score` and verdict; one without a score stands below all others."""
    decisions = [judge(evidence(row), thresholds) for row in frame.to_dict("records")]
    scores = np.array([np.nan if own.score is None else own.score for own in decisions])
    lowest = (np.nanmin(scores) if np.isfinite(scores).any() else 0.0) - 1
    return frame.assign(
        score=np.where(np.isnan(scores), lowest, scores), ready=[float(own.ready) for own in decisions]
    )


# ---- how well a figure foretells


def auc(weights: Floats, values: Floats, worse: Floats) -> Floats:
    """Returns the chance that a model that is not worse has the higher value of two, ties one half, `(R,)`.

    NaN where a resample has no model of one of the kinds.
    """
    kind = worse.astype(bool)
    wins = pair_wins(values[~kind][:, None], values[kind][None, :])
    good, bad = weights[:, ~kind], weights[:, kind]
    return np.einsum("rg,gb,rb->r", good, wins, bad) / (good.sum(1) * bad.sum(1))


def aucs(frame: pd.DataFrame, signs: Mapping[str, int], gain: str, minus: str = "") -> dict[str, Estimate]:
    """Returns the AUC of each figure for "the policy ends no worse", or its lead over the figure `minus`, paired."""
    worse = frame[gain].to_numpy() < 0
    columns = {
        name: _signed(frame, name, sign)
        for name, sign in (signs | ({minus: DEPLOYABLE[minus]} if minus else {})).items()
    }

    def statistics(weights: Floats) -> dict[str, Floats]:
        found = {name: auc(weights, values, worse) for name, values in columns.items()}
        return {name: found[name] - found[minus] if minus else found[name] for name in signs}

    return bootstrap_estimates(statistics, len(frame), frame["cell"], n_resamples=2000, by="design cell")


def _signed(frame: pd.DataFrame, name: str, sign: int) -> Floats:
    """Returns a figure so that more is better; where it is missing, below all others."""
    values = sign * frame[name].to_numpy(float)
    return np.where(np.isnan(values), np.nanmin(values) - 1, values)


def best_single(frame: pd.DataFrame, gain: str) -> str:
    """Returns the deployable figure of the highest AUC; the first of equal ones."""
    found = aucs(frame, DEPLOYABLE, gain)
    return max(DEPLOYABLE, key=lambda name: -1.0 if math.isnan(found[name].value) else found[name].value)


def halves(frame: pd.DataFrame) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """Returns, for each half of the kinds, the models with no defect of the other half, and all the others."""
    found = {}
    for name, other in (("pairs", OF_LABELS), ("labels", OF_PAIRS)):
        without = frame[list(other)].sum(axis=1) == 0
        found[name] = frame[without], frame[~without]
    return found


def taught_thresholds(frame: pd.DataFrame, gain: str) -> Thresholds:
    """Returns the package's thresholds, moved to where each figure parts the models of these kinds best.

    Best is the largest share of not-worse models that pass plus share of worse models that fail. A figure that does
    not surely order the models (the interval of its AUC reaches one half) warns and no longer stops.
    """
    found, checks = aucs(frame, dict.fromkeys(EVIDENCE, 1) | {"ece": -1}, gain), {}
    for name, check in study_thresholds().checks.items():
        if name not in EVIDENCE:
            checks[name] = check
            continue
        end = "maximum" if check.maximum is not None else "minimum"
        told = found[name].low > 0.5
        checks[name] = replace(check, **({end: cut(frame, name, gain)} if told else {"otherwise": "warn"}))
    return Thresholds(checks)


def cut(frame: pd.DataFrame, name: str, gain: str) -> float:
    """Returns the value, halfway between two models, that parts those that end worse from the others best."""
    values, worse = _signed(frame, name, DEPLOYABLE[name]), frame[gain].to_numpy() < 0
    levels = np.unique(values)
    between = (levels[1:] + levels[:-1]) / 2
    shares = [(values[~worse] >= at).mean() + (values[worse] < at).mean() for at in between]
    return round(DEPLOYABLE[name] * float(between[int(np.argmax(shares))]), 3)


# ---- tables

NAMES = {
    "score": "gate: score", "now": "gate: score, thresholds now", "ready": "gate: verdict", "gamma": "γ, by gold",
    "probe": "largest effect of a probe", "spread": "spread of rewards within a prompt", "audit": "audit's verdict",
}  # fmt: skip


def shown(name: str) -> str:
    return NAMES.get(name, name.replace("_", " "))


def main_rows(frame: pd.DataFrame) -> list[str]:
    """Lines of the table of every figure: AUC for both outcomes, rank correlation with PPO's gain."""
    signs = GATE | DEPLOYABLE | GOLD
    found = {name: aucs(frame, signs, gain) for name, gain in OUTCOMES.items()}
    body = []
    for name, sign in signs.items():
        rank = [
            correlation_estimate(_signed(frame, name, sign), frame[gain], frame["cell"]) for gain in OUTCOMES.values()
        ]
        ranked = ["none" if math.isnan(own.value) else short(own, sign=True) for own in rank]  # of a constant figure
        cells = [short(own[name]) for own in found.values()]
        body.append([shown(name), cells[0], ranked[0], cells[1], ranked[1]])
    heading = ["figure"]
    for name in OUTCOMES:
        heading += [f"AUC, {name}", f"Spearman with the gain, {name}"]
    return table(heading, body)


def left_out_rows(frame: pd.DataFrame, gain: str) -> list[str]:
    """Lines of the table of the gate and the best figure without the models of one kind of defect."""
    body = []
    for kind in DEFECTS:
        kept = frame[frame[kind] == 0]
        best = best_single(kept, gain)
        found = aucs(kept, GATE | DEPLOYABLE, gain)
        n = f"{len(kept)}, {int((kept[gain] < 0).sum())}"
        told = [short(found[name]) for name in GATE]
        body.append([kind, n, *told, shown(best), short(found[best])])
    return table(["without", "models, worse", *map(shown, GATE), "best single figure", "its AUC"], body)


def against_rows(frame: pd.DataFrame, gain: str) -> list[str]:
    """Lines of the table of the gate against the single figure that the other half of the kinds would choose."""
    body = []
    for name, (chosen_on, compared) in halves(frame).items():
        best = best_single(chosen_on, gain)
        taught = taught_thresholds(chosen_on, gain)
        told = {"protocol": study_thresholds(), "taught": taught, "now": package_thresholds()}
        for said, thresholds in told.items():
            own = judged(compared, thresholds)
            found, lead = aucs(own, {"score": 1} | DEPLOYABLE, gain), aucs(own, {"score": 1}, gain, best)["score"]
            body.append([f"{name}, {len(chosen_on)}", f"{len(own)}", said, short(found["score"]), shown(best),
                         short(found[best]), short(lead, sign=True)])  # fmt: skip
    return table(["chosen on defects of", "compared on", "thresholds", "gate: score", "figure chosen", "its AUC",
                  "gate's lead, paired"], body)  # fmt: skip


def taught_lines(frame: pd.DataFrame, gain: str) -> list[str]:
    """Lines on the thresholds that each half teaches."""
    lines = []
    for name, (half, _) in halves(frame).items():
        checks = taught_thresholds(half, gain).checks
        said = [f"{shown(own)} {check.wanted if check.otherwise == 'stop' else 'warns'}"
                for own, check in checks.items() if own in EVIDENCE]  # fmt: skip
        lines.append(f"Taught by the models with defects of {name} alone: {', '.join(said)}.")
    return lines


def defect_rows(frame: pd.DataFrame) -> list[str]:
    """Lines of the table of what each defect does to the outcomes and to the figures."""
    body = []
    for kind in (*DEFECTS, "small"):
        has = frame["size"] == "small" if kind == "small" else frame[kind] == 1
        cells = [kind]
        for gain in OUTCOMES.values():
            cells += [f"{own[gain].mean():+.3f}" for own in (frame[~has], frame[has])]
        cells += [
            short(share_estimate(own["ppo_gain"] < 0, own["cell"]), digits=2) for own in (frame[~has], frame[has])
        ]
        body.append(cells)
    heading = ["defect", *(f"{name} gain, {which}" for name in OUTCOMES for which in ("without", "with"))]
    return table([*heading, "share worse, without", "with"], body)


# ---- real models

PUBLISHED = {  # arXiv 2505.12763, Tables 10 to 12: γ by gold, γ by the right answer, best of 64 and PPO on MATH500
    "internlm2": ("internlm2-7b", 0.510, 0.598, 46.0, 29.4),
    "Math_Shepherd": ("Math-Shepherd", 0.634, 0.757, 37.4, None),
    "skywork_llama3": ("Skywork-Llama-8B", 0.663, 0.752, 39.4, 28.8),
    "grm_llama3": ("GRM-llama3-8B", 0.667, 0.736, 39.6, 28.0),
    "grm_gemma": ("GRM-Gemma-2B", 0.886, 0.924, 29.6, None),
    "oasst-rm": ("oasst-pythia-1.4b", 0.994, 0.994, 26.2, 26.0),
}


def stored_scores(folder: Path, model: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns a public model's scores by prompt: of right and wrong, and of one right and nine wrong answers."""
    sets = [json.loads(gzip.decompress((folder / name / f"{model}.json.gz").read_bytes()))
            for name in ("rewardbench-math", "rewardmath")]  # fmt: skip
    easy: dict[str, Any] = {}
    for row in sets[0]:
        if "output" in row:  # of steps, a side a row
            (score,) = step_rewards([row["output"]["step_scores"]], "product")
            easy.setdefault(row["problem"], {})[row["solution_type"]] = float(score)
        else:
            easy[row["problem"]] = dict(zip(("chosen", "rejected"), row["score"], strict=True))
    steps = model == "Math_Shepherd"
    hard = {
        row["problem"]: step_rewards(row["score"], "product") if steps else np.array(row["score"]) for row in sets[1]
    }
    return easy, hard


def real_row(folder: Path, model: str) -> list[str]:
    """Cells of a public model: its figures from stored scores, beside what was published of it."""
    easy, hard = stored_scores(folder, model)
    half = set(sorted(easy.keys() | hard.keys())[::2])
    known = [(own["chosen"], own["rejected"], prompt) for prompt, own in easy.items() if prompt in half]
    unseen = [(own[0], wrong, prompt) for prompt, own in hard.items() if prompt not in half for wrong in own[1:]]
    fitted = calibrate(*zip(*known, strict=True)).with_test(*zip(*unseen, strict=True))
    chosen, rejected = (np.array([own[side] for own in easy.values()]) for side in ("chosen", "rejected"))
    top = [float(own[0] > own[1:].max()) for own in hard.values()]
    name, gamma, oracle, best, ppo = PUBLISHED[model]
    figures = [mean_estimate(pair_wins(chosen, rejected), list(easy)), mean_estimate(top),
               (fitted.test_after or fitted.test_before)["ece"]]  # fmt: skip
    published = [f"{gamma:.3f}", f"{oracle:.3f}", f"{best:.1f}", "" if ppo is None else f"{ppo:.1f}"]
    return [name, *map(short, figures), f"{-fitted.nll_change.value:+.3f}" if fitted.nll_change else "", *published]


def real_rows(folder: Path) -> list[str]:
    heading = ["model", "accuracy, RewardBench math", "right answer above nine, RewardMATH", "ECE there",
               "gain in NLL there", "γ, gold", "γ, right answer", "best of 64", "PPO"]  # fmt: skip
    return table(heading, [real_row(folder, model) for model in PUBLISHED])


# ---- the section


def aim_lines(frame: pd.DataFrame, gain: str) -> list[str]:
    """Lines on the aim: with the protocol's thresholds, and with those of now on models that did not choose them."""
    _, others = halves(frame)["labels"]
    whole, rest = aucs(frame, {"score": 1}, gain)["score"], aucs(others, {"now": 1}, gain)["now"]
    told = ("met" if own.value >= AIM and own.low > LEAST else "missed" for own in (whole, rest))
    first, second = (f"{short(own)}, {said}" for own, said in zip((whole, rest), told, strict=True))
    return [
        f"The aim is an AUC of {AIM:.2f} for PPO, its interval above {LEAST:.2f}. The gate's score by the protocol's "
        f"thresholds: {first}. By those of now, where of these figures the fresh accuracy alone stops, as the models "
        f"with defects of labels alone would have it, on the {len(others)} others: {second}."
    ]


def section(frame: pd.DataFrame) -> list[str]:
    """Lines of the study's section; no table of few models, and no word on the aim before all are there."""
    seconds = f", {frame['seconds'].median():.0f} s each (median)" if len(frame) else ""
    head = f"`tests/benchmarks/gate_study.py run`, `gate_figures.py`; {machine()}. {len(frame)} of {ALL} reward models"
    goes_on = f"The aim and the comparisons wait for the other {ALL - len(frame)}: `gate_study.py run` goes on."
    if len(frame) < FEW:
        return [f"{head}{seconds}. {goes_on}"]
    now = judged(frame, package_thresholds())["score"]
    frame, gain = judged(frame, study_thresholds()).assign(now=now), OUTCOMES["PPO"]
    ppo, best = (short(share_estimate(frame[own] < 0, frame["cell"]), digits=2) for own in OUTCOMES.values())
    lines = [
        f"{head} of {frame['cell'].nunique()} cells{seconds}. Under PPO the policy ends worse than its start with "
        f"{ppo} of them, under best of 256 with {best}. An AUC above one half, a correlation above 0: the figure "
        "foretells a policy that ends no worse. 95 % intervals resample cells.",
        "", *main_rows(frame), "",
    ]  # fmt: skip
    if len(frame) < ALL:
        return [*lines, goes_on]
    return [
        *lines, *aim_lines(frame, gain),
        "", "Without the models of one kind of defect:", "", *left_out_rows(frame, gain),
        "", "Against the best single deployable figure, chosen on other kinds of defects:", "",
        *against_rows(frame, gain), "", *taught_lines(frame, gain),
        "", "What each defect does:", "", *defect_rows(frame),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--collect", action="store_true", help="write gate_study.csv from the models' files")
    parser.add_argument("--folder", type=Path, default=OUTPUTS, help="where those are")
    parser.add_argument("--save", action="store_true", help="put the tables into RESULTS.md")
    arguments = parser.parse_args()
    if arguments.collect:
        collect(arguments.folder).to_csv(CSV, index=False)
    lines = section(pd.read_csv(CSV) if CSV.exists() else pd.DataFrame())
    if "RMTRL_DATA" in os.environ:
        lines += ["", "Public models, from stored scores, beside what was published of them (arXiv 2505.12763; "
                  "versions may differ; MATH500, the policy MetaMATH-Mistral-7B). ECE and NLL: a calibrator fitted on "
                  "RewardBench math, on other prompts of RewardMATH.", "",
                  *real_rows(Path(os.environ["RMTRL_DATA"]) / "rewardmath")]  # fmt: skip
    write_section("The gate against what a policy does", lines, save=arguments.save)


if __name__ == "__main__":
    main()
