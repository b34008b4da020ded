"""Calibrates a finished reward model on the calibration split of its own run, which nothing else has read.

    python recipes/calibrate_rm.py
    python recipes/calibrate_rm.py --config recipes/configs/tiny/calibrate.yaml --run outputs/my/rm

The splits are rebuilt from the run's `rmtrl.json` and compared with the fingerprints there. Fits on calibration,
reports on test, and writes `calibration.json` and `plots/reliability.png` into the run's folder; `--export FOLDER`
also writes the model with its temperature in the head's weights.
"""

import rmtrl.quiet  # isort: skip  # noqa: F401
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from scipy.special import expit

from rmtrl import RewardScorer
from rmtrl.calibration.calibration import FILE, calibrate, summary
from rmtrl.calibration.export import export_temperature
from rmtrl.data.provenance import made_by
from rmtrl.errors import exit_on_error
from rmtrl.evaluation.fingerprints import model_fingerprint
from rmtrl.evaluation.scoring import SIDES, conversation
from rmtrl.io import write_json
from rmtrl.launch import parse_recipe, report_run
from rmtrl.launch.pairs import held_out, read_record
from rmtrl.metrics import reliability_curve
from rmtrl.reporting.plots import reliability_diagram, save_figure
from rmtrl.reporting.tables import table

TINY = Path(__file__).parent / "configs" / "tiny" / "calibrate.yaml"


@dataclass
class CalibrationRecipeArguments:
    run: str = field(default="outputs/tiny/rm", metadata={"help": "Folder that recipes/rm_llama.py wrote."})
    export: str | None = field(default=None, metadata={"help": "Folder for the model with calibrated scores."})
    use_cpu: bool = field(default=False, metadata={"help": "Score on the CPU."})
    bf16: bool = field(default=False, metadata={"help": "Score in bf16 instead of the checkpoint's own precision."})


def scored(scorer: RewardScorer, rows: Dataset) -> tuple[np.ndarray, np.ndarray]:
    conversations = [conversation(row, side) for side in SIDES for row in rows]
    return tuple(scorer.score(conversations).reshape(2, -1).astype(np.float64))


def columns(rows: Dataset) -> dict[str, Any]:
    return {"prompt_ids": rows["prompt_id"], "labels": rows["preference"] if "preference" in rows.features else None}


def main() -> None:
    disable_progress_bars()
    warnings.filterwarnings("ignore", "`gradient_checkpointing", FutureWarning)  # TRL's own default
    (recipe,) = parse_recipe((CalibrationRecipeArguments,), TINY)
    run = Path(recipe.run)
    record = read_record(run)
    settings = {"dtype": torch.bfloat16} if recipe.bf16 else {}
    scorer = RewardScorer.from_pretrained(run, device="cpu" if recipe.use_cpu else None, **settings)
    calibration, test = held_out(record, scorer.tokenizer, run)

    chosen, rejected = scored(scorer, calibration)
    result = calibrate(chosen, rejected, domains=calibration["domain"], **columns(calibration))
    chosen, rejected = scored(scorer, test)
    result = result.with_test(chosen, rejected, **columns(test))
    known = {name: record["splits"][name] for name in ("calibration", "test")}
    result = result.with_data(known, model_fingerprint(run))

    margins, labels, groups = chosen - rejected, columns(test)["labels"], test["prompt_id"]
    probabilities = {"before": expit(margins)}
    if result.is_measured:
        probabilities["after"] = result.calibrator.predict_proba(margins)
    curves = {n: reliability_curve(p, labels, groups, equal_mass=True) for n, p in probabilities.items()}
    png = run / "plots" / "reliability.png"
    save_figure(reliability_diagram(curves, title=f"{len(test):,} test pairs"), png, dpi=150)
    write_json(run / FILE, result.as_dict() | {"made": made_by(vars(recipe))})
    if recipe.export:
        export_temperature(run, recipe.export, calibration=result)
    print(table(summary(result) | {"written to": f"{run / FILE}, {png}"}))
    for warning in result.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    report_run(run)


if __name__ == "__main__":
    with exit_on_error("calibrate_rm"):
        main()
