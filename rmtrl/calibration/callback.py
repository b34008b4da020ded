"""Calibration as the last act of training."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rmtrl.calibration.calibration import FILE, Calibration, calibrate
from rmtrl.data.provenance import fingerprint
from rmtrl.errors import DataError
from rmtrl.io import write_json

if TYPE_CHECKING:
    from rmtrl.reward.trainer import RewardTrainer

logger = logging.getLogger(__name__)


class CalibrationCallback(TrainerCallback):
    """
    Calibrates the reward model when training ends, and writes `calibration.json` into `args.output_dir`.

    Fits on a split that nothing else reads. With `load_best_model_at_end` it is the best checkpoint that is
    calibrated: transformers loads it before this event. Logged are `calibration/temperature`, and
    `calibration/{ece,nll,brier}_{before,after}`: on the test set where one is given, else cross-fitted on the
    calibration set; where no temperature could be measured the first is 1 and the figures after are left out. Pairs
    over `max_length` have no score; they are counted in `dropped_` and left out. The result is in `calibration_`.

    Args:
        trainer ([`RewardTrainer`]): The trainer, which the callback is then added to.
        calibration_dataset ([`~datasets.Dataset`]): Pairs that the model is neither trained nor selected on, with
            `prompt_id`, `domain` and `preference` where they have them.
        test_dataset ([`~datasets.Dataset`], *optional*): Pairs for the figures.

    Raises:
        DataError: If a prompt stands in both sets, or no pair of a set has a score.

    Example:

    ```python
    >>> trainer = RewardTrainer("outputs/tiny/sft", train_dataset=splits.train)
    >>> trainer.add_callback(CalibrationCallback(trainer, splits.calibration, splits.test))
    >>> trainer.train()
    ```
    """

    def __init__(
        self, trainer: "RewardTrainer", calibration_dataset: Dataset, test_dataset: Dataset | None = None
    ) -> None:
        shared = set(_column(calibration_dataset, "prompt_id") or ()) & set(_column(test_dataset, "prompt_id") or ())
        if shared:
            raise DataError(f"{len(shared)} prompts are in both calibration and test; split with make_splits(...)")
        self.trainer = trainer
        self.calibration_dataset = calibration_dataset
        self.test_dataset = test_dataset
        self.dropped_: dict[str, int] = {}
        self.calibration_: Calibration | None = None

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Scores the sets on all processes, fits, writes and logs."""
        chosen, rejected, rows = self._scores(self.calibration_dataset, "calibration")
        result = calibrate(chosen, rejected, domains=_column(rows, "domain"), **_known(rows))
        if self.test_dataset is not None:
            chosen, rejected, rows = self._scores(self.test_dataset, "calibration_test")
            result = result.with_test(chosen, rejected, **_known(rows))
        sets = {"calibration": self.calibration_dataset, "test": self.test_dataset}
        result = result.with_data(
            {k: {"pairs": len(rows), "fingerprint": fingerprint(rows)} for k, rows in sets.items() if rows is not None}
        )
        self.calibration_ = result
        if state.is_world_process_zero:
            write_json(Path(str(args.output_dir)) / FILE, result.as_dict())
            for warning in result.warnings:
                logger.warning(warning)
        logs = {"calibration/temperature": result.temperature.scale_}
        for when, figures in zip(("before", "after"), result.judged, strict=True):
            logs |= {f"calibration/{k}_{when}": figures[k].value for k in ("ece", "nll", "brier") if figures}
        self.trainer.log(logs)

    def _scores(self, dataset: Dataset, name: str) -> tuple[Any, Any, Dataset]:
        pairs = getattr(self.trainer, "pairs_", None)
        rewards = np.asarray(self.trainer.predict(dataset, metric_key_prefix=name).predictions, dtype=np.float64)
        if pairs is not None:
            self.trainer.pairs_ = pairs  # what the last evaluation left there
        scored = np.isfinite(rewards.sum(axis=1))
        self.dropped_[name] = int((~scored).sum())
        if not scored.any():
            raise DataError(f"none of the {len(scored):,} {name} pairs has a finite score; check the model")
        return rewards[scored, 0], rewards[scored, 1], dataset.select(np.flatnonzero(scored))


def _known(rows: Dataset) -> dict[str, Any]:
    """Returns the prompts and, where they were voted on, the labels of the pairs."""
    return {"prompt_ids": _column(rows, "prompt_id") or range(len(rows)), "labels": _column(rows, "preference")}


def _column(rows: Dataset | None, name: str) -> list[Any] | None:
    return list(rows[name]) if rows is not None and name in rows.column_names else None
