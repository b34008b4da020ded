"""A run of benchmarks: a model, or stored scores, on each; in its folder all is written, and a killed run goes on."""

import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rmtrl.data.provenance import environment
from rmtrl.errors import DataError, UsageError
from rmtrl.evaluation.benchmarks import benchmark as known_benchmark
from rmtrl.evaluation.benchmarks.base import Benchmark, Item
from rmtrl.evaluation.benchmarks.results import BenchmarkResult, result_of
from rmtrl.evaluation.fingerprints import items_fingerprint, model_fingerprint
from rmtrl.evaluation.items import (
    ItemScores,
    as_text,
    missing_reasons,
    read_scores,
    score_into,
    score_items,
    score_lines,
)  # fmt: skip
from rmtrl.evaluation.report import averages, published_rows, report, warnings
from rmtrl.io import file_sha256, write_json, write_rows
from rmtrl.processes import ALONE, Process
from rmtrl.types import checkpoint_of, json_ready

RESULT = "rmtrl/benchmark-result/1"
WRITTEN = ("scores.jsonl", "result.json")
"""What stands in the folder of a benchmark."""


@dataclass(frozen=True)
class Task:
    """A benchmark and its rows, read; `source` is where from."""

    benchmark: Benchmark
    items: list[Item]
    source: str
    fingerprint: str

    @classmethod
    def of(cls, benchmark: Benchmark, path: str | None = None) -> "Task":
        """Returns a benchmark with its rows, read from `path` or from where it has them."""
        items = benchmark.read(path)
        return cls(benchmark, items, path or benchmark.source, items_fingerprint(items))

    @property
    def name(self) -> str:
        """Name of the benchmark."""
        return self.benchmark.name

    def folder(self, out: Path) -> Path:
        """Returns the benchmark's own folder in that of a run."""
        return out / _slug(self.name)


@dataclass(frozen=True)
class Run:
    """What came of one model: results by benchmark, what goes with each into its file, and why others have none."""

    model: dict[str, Any]
    selected_on: tuple[str, ...] = ()
    results: dict[str, BenchmarkResult] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    unscored: dict[str, str] = field(default_factory=dict)

    def add(
        self, task: Task, scores: Sequence[ItemScores], out: Path | None, *, started: float,
        missing_reasons: dict[str, int] | None = None, **more: Any,
    ) -> None:  # fmt: skip
        """Adds the result of one benchmark, or why it has none; with `out`, in place of that of an earlier run."""
        data = {"source": task.source, "rows": len(task.items), "fingerprint": task.fingerprint}
        about = {"model": self.model, "data": data, **more}
        try:
            result = result_of(task.benchmark, task.items, scores, missing_reasons=missing_reasons)
        except DataError as error:  # the other benchmarks stand
            self.unscored[task.name] = str(error)
            record = {"schema": RESULT, "name": task.name, "overall": None, "not_scorable": str(error), **about}
        else:
            self.results[task.name] = result
            record = {"schema": RESULT, **json_ready(result), **about, **_times(started), "environment": environment()}
            self.records[task.name] = record
        if out:
            write_json(task.folder(out) / "result.json", record)


def read_tasks(named: Sequence[str | Task]) -> list[Task]:
    """Returns the benchmarks of `NAME` or `NAME=PATH` with their rows; those that are read stay.

    Raises:
        UsageError: If a path is empty, or a benchmark is given twice.
    """
    tasks = []
    for entry in named:
        if isinstance(entry, Task):
            tasks.append(entry)
            continue
        name, _, path = entry.partition("=")
        if "=" in entry and not path:
            raise UsageError(f"got --benchmark {entry}; wanted NAME or NAME=PATH")
        tasks.append(Task.of(known_benchmark(name), path or None))
    name, count = Counter(task.name for task in tasks).most_common(1)[0] if tasks else ("", 0)
    if count > 1:
        given = " and ".join(str(entry) for entry, task in zip(named, tasks, strict=True) if task.name == name)
        raise UsageError(f"the benchmark {name} is given twice, as {given}; its figure would count twice")
    return tasks


def evaluate(
    model: str | Path, benchmarks: str | Sequence[str | Task], out: str | Path | None = None, *,
    text: str | None = None, process: Process = ALONE, **settings: Any,
) -> Run:  # fmt: skip
    """Returns the results of one model; with `out`, scores and results stand there, and a killed run goes on.

    Args:
        model (`str` or `Path`): Checkpoint folder, hub id or URL: figures go with the fingerprint of what was scored.
        benchmarks (`str` or `Sequence`): `NAME` or `NAME=PATH`, as `rmtrl evaluate` takes them, or tasks.
        out (`str` or `Path`, *optional*): Folder for one folder a benchmark.
        text (`str`, *optional*): Form of the text for a model without chat template; see [`as_text`].
        process ([`~rmtrl.processes.Process`]): This one of those that share the work, in `out`; the first has results.
        settings: As in [`RewardScorer.from_pretrained`].

    Raises:
        UsageError: If a benchmark is not known, or the model has no chat template and there is no `text`.

    Example:

    ```python
    >>> run = evaluate("outputs/tiny/rm", "examples/benchmark")
    >>> run.results["kitchen"].overall.n
    7
    ```
    """
    if not isinstance(model, str | Path):
        raise UsageError(f"got a {type(model).__name__}; wanted the folder, hub id or URL of the model that is scored")
    model, out = str(model), Path(out) if out else None
    tasks = read_tasks([benchmarks] if isinstance(benchmarks, str) else benchmarks)
    from rmtrl.reward.remote import load_scorer

    items = [as_text(task.items, text) if text else task.items for task in tasks]
    scorer = load_scorer(model, progress=False, **settings)
    renders = scorer.renders
    if not text and not renders["chat_template_sha256"]:
        raise UsageError(f"{model} has no chat template; say how its training text looked: text plain or transcript")
    fingerprint = model_fingerprint(model)
    rendering, dtype = {**renders, "text": text}, scorer.dtype
    run = Run({"name": model, **fingerprint, "dtype": dtype}, selected_on(model, tasks))
    for task, own in zip(tasks, items, strict=True):
        started = time.time()
        key = {"model": fingerprint, "benchmark": task.fingerprint, "rendering": rendering, "dtype": dtype}
        if out is None:
            scores = [scores for window in score_items(scorer, own, name=task.name) for scores in window]
        else:
            file = task.folder(out) / "scores.jsonl"
            scores = score_into(file, scorer, own, key=key, name=task.name, process=process)
        if process.rank:
            continue
        why, chose = missing_reasons(scorer, own, scores, scorer.most_tokens), task.name in run.selected_on
        run.add(task, scores, out, started=started, missing_reasons=why, rendering=rendering, selected_on=chose)
    return run


def judge_scores(path: Path, task: Task, out: Path | None) -> Run:
    """Returns the result of stored scores; with `out`, they and it are written there."""
    started = time.time()
    scores = read_scores(path, task.items)
    run = Run({"name": str(path), "scores_sha256": file_sha256(path)})
    run.add(task, scores, out, started=started)
    if out:
        write_rows(task.folder(out) / "scores.jsonl", score_lines(task.items, scores))
    return run


def run_folders(models: Sequence[str], out: Path | None) -> dict[str, Path | None]:
    """Returns where the results of each model go: with several models, a folder each.

    Raises:
        UsageError: If two would go into one folder.
    """
    if out is None or len(models) < 2:
        return dict.fromkeys(models, out)
    folders: dict[str, Path | None] = {name: out / (_slug(name) or "model") for name in models}
    if len(set(folders.values())) < len(models):
        raise UsageError(
            f"got the models {', '.join(models)}, two of which would have one folder in --out; name each once"
        )
    return folders


def summary(runs: Sequence[Run], out: Path | None, *, started: float) -> dict[str, Any]:
    """Returns what `results.json` holds of all runs, and with `out` writes it there.

    Raises:
        DataError: If no model could be scored on any benchmark.
    """
    results, chosen, unscored = _by_model(runs)
    if not any(results.values()):
        raise DataError("; ".join(why for run in runs for why in run.unscored.values()))
    common, means = averages(results)
    whole = {
        "schema": "rmtrl/evaluation/1",
        "models": [
            {"model": run.model, "selected_on": list(run.selected_on), "benchmarks": run.records,
             "not_scorable": run.unscored, "average": asdict(means[run.model["name"]]) if means else None}
            for run in runs
        ],
        "average_over": common if means else [],
        "warnings": warnings(results, chosen, unscored),
        "published": [asdict(row) for row in published_rows(results)],
        **_times(started),
    }  # fmt: skip
    if out:
        write_json(out / "results.json", whole)
    return whole


def in_words(runs: Sequence[Run]) -> dict[str, Any]:
    """Returns what people read of all runs, for [`~rmtrl.reporting.tables.table`]."""
    return report(*_by_model(runs))


def _by_model(runs: Sequence[Run]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    names = ("results", "selected_on", "unscored")
    results, chosen, unscored = ({run.model["name"]: getattr(run, name) for run in runs} for name in names)
    return results, chosen, unscored


def selected_on(model: str, tasks: Sequence[Task]) -> tuple[str, ...]:
    """Returns those of the benchmarks that chose a checkpoint, by its `rmtrl.json` and those of the checkpoints in it.

    A benchmark is known by its content, or by its name at the end of the metric: `eval_<name>`, `eval_<set>_<name>`.
    """
    from rmtrl.reward.checkpoint import stored_record

    model = checkpoint_of(model)
    folders = [model, *(str(file.parent) for file in Path(model).glob("checkpoint-*/rmtrl.json"))] if model else []
    records = [stored_record(folder) for folder in folders]
    entries = [entry for record in records for entry in record.get("selected_on", [])]
    chose = {entry["benchmark"] for entry in entries} | {entry["fingerprint"] for entry in entries}
    metrics = [str((record.get("config") or {}).get("metric_for_best_model") or "") for record in records]
    ends = [f"_{metric.split('/')[0]}" for metric in metrics]
    return tuple(
        task.name
        for task in tasks
        if chose & {task.name, task.fingerprint} or any(end.endswith(f"_{task.name}") for end in ends)
    )


def _times(started: float) -> dict[str, Any]:
    begun = datetime.fromtimestamp(started, timezone.utc).isoformat(timespec="seconds")
    return {"started": begun, "seconds": round(time.time() - started, 1)}


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "--", name.strip("/."))
