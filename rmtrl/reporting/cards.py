"""The card of a reward model: its figures as metadata that hubs read, the gate's verdict, its use and its origin."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmtrl.data.provenance import CARD_MARK
from rmtrl.io import replacing
from rmtrl.reporting.report import Run, render

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

FILE = "README.md"
_DRAFT = "It has been trained using [TRL]"


def write_card(run: Run) -> Path | None:
    """Writes the card of the reward model in a run and returns its path; None where there is none, or one of others.

    A draft of TRL and an earlier card of ours are replaced; what a person wrote stays.

    Args:
        run ([`~rmtrl.reporting.report.Run`]): What stands.

    Raises:
        DataError: If it cannot be written.

    Example:

    ```python
    >>> write_card(read_run(Path("outputs/tiny")))
    PosixPath('outputs/tiny/rm/README.md')
    ```
    """
    path = run.model / FILE
    record = _stored(run, "reward-model", "rmtrl.json")
    before = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else CARD_MARK
    if record is None or not (CARD_MARK in before or _DRAFT in before):
        return None
    text = model_card(run, record)
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8", errors="replace")
    return path


def model_card(run: Run, record: Mapping[str, Any]) -> str:
    """Returns the text of a card.

    Args:
        run ([`~rmtrl.reporting.report.Run`]): What stands.
        record (`Mapping[str, Any]`): The `rmtrl.json` of the reward model.
    """
    from huggingface_hub import ModelCardData

    base = str((record.get("model") or {}).get("model_name_or_path"))
    title = "-".join(dict.fromkeys([run.folder.resolve().name, run.model.resolve().name]))
    figures = list(_figures(run, str((record.get("data") or {}).get("name"))))
    known: dict[str, Any] = {"base_model": base} if not Path(base).exists() and base.count("/") == 1 else {}
    data = ModelCardData(
        library_name="transformers", pipeline_tag="text-classification", tags=["reward-model", "rmtrl", "trl"],
        model_name=title, eval_results=figures or None, **known,
    )  # fmt: skip
    calibrations = [own] if (own := _stored(run, "calibration", "calibration.json")) else []
    more = {"title": title, "record": record, "figures": figures, "calibrations": calibrations}
    return render("model_card.md", run, metadata=data.to_yaml(), mark=CARD_MARK, **more)


def _stored(run: Run, kind: str, name: str) -> Mapping[str, Any] | None:
    """Returns what a file of the reward model's own folder holds."""
    own = (run.model / name).relative_to(run.folder)
    return next((found.stored for found in run.results[kind] if Path(found.place) == own), None)


def _figures(run: Run, data: str) -> Iterator["EvalResult"]:
    """Yields the figures of a reward model: of the splits of its data, of calibration, of benchmarks."""
    metrics = _stored(run, "reward-metrics", "metrics.json") or {}
    calibration = _stored(run, "calibration", "calibration.json") or {}
    for split in ("test", "spillover"):
        yield from _figure(data, split, "accuracy", (metrics.get(split) or {}).get("accuracy"))
    for when in ("test_before", "test_after"):
        figures = calibration.get(when) or {}
        yield from _figure(data, "test", f"ece {when.removeprefix('test_')} calibration", figures.get("ece"))
    for own in (
        own for found in run.results["evaluation"] for own in found.stored.get("models") or () if run.is_of(own)
    ):
        for name, benchmark in (own.get("benchmarks") or {}).items():
            yield from _figure(name, None, "accuracy", benchmark["overall"])


def _figure(dataset: str, split: str | None, name: str, estimate: Mapping[str, Any] | None) -> Iterator["EvalResult"]:
    from huggingface_hub import EvalResult

    if estimate:
        yield EvalResult(
            "text-classification", dataset, dataset, name.split()[0], estimate["value"], dataset_split=split,
            metric_name=name, metric_args={end: estimate.get(end) for end in ("low", "high", "n", "level")},
        )  # fmt: skip
