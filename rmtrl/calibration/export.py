"""Writes a reward model whose own scores are calibrated, so that any tool that loads it has them."""

from pathlib import Path
from typing import Any

from rmtrl.calibration.calibration import FILE, Calibration, read_calibration
from rmtrl.data.provenance import new_folder
from rmtrl.errors import UsageError
from rmtrl.io import read_object, write_json


def export_temperature(
    folder: str | Path, out: str | Path, *, calibration: Calibration | None = None, centre: bool = False
) -> Calibration:
    """Writes the checkpoint with its temperature in the head's weights, and returns the calibration of its scores.

    The new model's score is score / T, or (score − mean) / T where centred: differences of scores are log-odds, in
    plain transformers, and in vLLM and sentence-transformers, whose sigmoid the configuration of a model with one
    standard score switches off. Tokenizer and `rmtrl.json` go along; its `calibration.json` has T = 1.
    A whole model stays one and an adapter stays an adapter. In float32 the scores are exact to 1e-6; a head stored in
    16 bits rounds its weights once more.

    Args:
        folder (`str` or `Path`): Checkpoint folder of the reward model.
        out (`str` or `Path`): Folder to write, or an earlier export to replace.
        calibration ([`Calibration`], *optional*): Instead of the folder's own `calibration.json`.
        centre (`bool`): Whether to take the mean reward off, which the head needs a bias for.

    Raises:
        DataError: If there is no calibration.
        UsageError: If `out` holds anything but an earlier export, or the temperature is at its bound.
        ModelError: If there is no reward model, or the head has no bias and `centre` is true.

    Example:

    ```python
    export_temperature("outputs/tiny/rm", "outputs/tiny/rm-calibrated")
    ```
    """
    from rmtrl.reward.heads import scale_head
    from rmtrl.reward.scorer import RewardScorer

    source, target = Path(folder), Path(out)
    check_export(target)
    fitted = calibration or read_calibration(source)
    if fitted.temperature.at_bound_:
        raise UsageError(f"{fitted.warnings[0]}; nothing was exported")
    scale = 1 / fitted.temperature.temperature_
    shift = -fitted.mean_reward * scale if centre else 0.0
    scorer = RewardScorer.from_pretrained(source, device="cpu")
    scale_head(scorer.model, scale, shift)
    rescaled = fitted.rescaled(scale, shift)
    with new_folder(target, marker=FILE) as beside:
        scorer.model.save_pretrained(str(beside))
        scorer.tokenizer.save_pretrained(str(beside))
        record = _record(source) | {"calibrated": {"scale": scale, "shift": shift, "from": str(source)}}
        write_json(beside / "rmtrl.json", record)
        write_json(beside / FILE, rescaled.as_dict())
    return rescaled


def check_export(out: Path) -> None:
    """Passes a folder that an export may be written to.

    Raises:
        UsageError: If it holds anything but an earlier export.
    """
    if out.exists() and "calibrated" not in _record(out) and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} holds something other than an earlier export; name a new or an empty folder")


def _record(source: Path) -> dict[str, Any]:
    path = source / "rmtrl.json"
    return read_object(path) if path.exists() else {}  # a model from elsewhere has none
