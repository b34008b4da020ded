"""`rmtrl evaluate`: benchmarks scored with reward models, or judged from stored scores."""

import hashlib
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmtrl.cli.console import Json, print_json
from rmtrl.errors import DataError, UsageError
from rmtrl.io import write_json, write_rows

if TYPE_CHECKING:
    from rmtrl.evaluation.benchmarks.base import Benchmark, Item
    from rmtrl.evaluation.benchmarks.results import BenchmarkResult
    from rmtrl.evaluation.items import ItemScores
    from rmtrl.reward.scorer import RewardScorer


def evaluate(
    benchmark: Annotated[list[str], typer.Option(help="NAME or NAME=PATH; may be repeated.")],
    model: Annotated[
        list[str] | None, typer.Option(help="Checkpoint folder or hub id of a reward model; may be repeated.")
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(help="Scores instead of a model: a line `id`, `scores` an item.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for scores and results; a killed run goes on there.")
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="For a model without chat template: `plain` or `transcript` text.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Device; the accelerator by default.")] = None,
    batch_tokens: Annotated[int, typer.Option(help="Tokens in one forward pass.", min=1)] = 8192,
    as_json: Json = False,
) -> None:
    """Score benchmarks and report their figures with intervals; several models make a table."""
    started = time.time()
    if bool(model) == bool(scores):
        raise UsageError("give --model (once or more) or --scores FILE, one of the two")
    if scores and (text or device):
        raise UsageError(f"got {'--text' if text else '--device'} with --scores; there is no model to use it for")
    if scores and len(benchmark) > 1:
        raise UsageError(f"got --scores and {len(benchmark)} benchmarks; a file of scores is of one")
    tasks = read_tasks(benchmark)
    if scores:
        runs = [judge_scores(scores, tasks[0], out)]
    else:
        names = list(dict.fromkeys(model or ()))
        folders = _folders(names, out)
        settings = {"device": device, "batch_tokens": batch_tokens}
        runs = [evaluate_model(name, tasks, folders[name], text=text, **settings) for name in names]
    finish(runs, out, started=started, as_json=as_json)


@dataclass(frozen=True)
class Task:
    """A benchmark and its rows, read; `source` is where from."""

    benchmark: "Benchmark"
    items: "list[Item]"
    source: str
    fingerprint: str


@dataclass(frozen=True)
class Run:
    """The results of one model, by benchmark, what goes with each into its file, and why others have none."""

    model: dict[str, Any]
    results: "dict[str, BenchmarkResult]"
    records: dict[str, dict[str, Any]]
    unscored: dict[str, str]
    selected_on: tuple[str, ...] = ()


def read_tasks(named: Sequence[str]) -> list[Task]:
    """Returns the benchmarks of `NAME` or `NAME=PATH` with their rows; all are read before a model is loaded."""
    from rmtrl.evaluation.benchmarks import benchmark

    tasks = []
    for entry in named:
        name, _, path = entry.partition("=")
        if "=" in entry and not path:
            raise UsageError(f"got --benchmark {entry}; wanted NAME or NAME=PATH")
        tasks.append(make_task(benchmark(name), path or None))
    names = [task.benchmark.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            given = " and ".join(entry for entry, own in zip(named, names, strict=True) if own == name)
            raise UsageError(f"the benchmark {name} is given twice, as {given}; its figure would count twice")
    return tasks


def make_task(benchmark: "Benchmark", path: str | None = None) -> Task:
    """Returns a benchmark with its rows."""
    from rmtrl.evaluation.fingerprints import items_fingerprint

    items = benchmark.read(path)
    return Task(benchmark, items, path or benchmark.source, items_fingerprint(items))


def evaluate_model(
    model: str, tasks: Sequence[Task], out: Path | None, *, text: str | None = None, **settings: Any
) -> Run:
    """Returns the results of one model; with `out`, scores and results stand there, and a killed run goes on.

    Args:
        model (`str`): Checkpoint folder or hub id.
        tasks (`Sequence[Task]`): The benchmarks.
        out (`Path`, *optional*): Folder for one folder a benchmark.
        text (`str`, *optional*): Form of the text for a model without chat template; see [`as_text`].
        settings: As in [`RewardScorer.from_pretrained`].
    """
    from rmtrl.evaluation.fingerprints import model_fingerprint
    from rmtrl.evaluation.items import as_text, missing_reasons
    from rmtrl.reward.rendering import Rendering
    from rmtrl.reward.scorer import RewardScorer

    _check_device(settings.get("device"))
    items = [as_text(task.items, text) if text else task.items for task in tasks]
    scorer = RewardScorer.from_pretrained(model, progress=False, **settings)
    if not text and not scorer.tokenizer.chat_template:
        raise UsageError(f"{model} has no chat template; say how its training text looked: text plain or transcript")
    fingerprint = model_fingerprint(model)
    chosen = selected_on(model, tasks)
    rendering = {**Rendering.of(scorer.tokenizer, max_length=None).as_dict(), "text": text}
    dtype = str(scorer.model.dtype).removeprefix("torch.")
    run = Run({"name": model, **fingerprint, "dtype": dtype}, {}, {}, {}, chosen)
    for task, own in zip(tasks, items, strict=True):
        started = time.time()
        key = {"model": fingerprint, "benchmark": task.fingerprint, "rendering": rendering, "dtype": dtype}
        scores = _score(task.benchmark.name, scorer, own, key, out)
        more = {"rendering": rendering, "selected_on": task.benchmark.name in chosen}
        try:
            why = missing_reasons(scorer, own, scores, scorer.most_tokens)
            _add(run, task, scores, out, started=started, more=more, missing_reasons=why)
        except DataError as error:  # the other benchmarks stand
            _add_unscored(run, task, str(error), out)
    return run


def _check_device(device: str | None) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"no device {device}: {str(error).splitlines()[0]}; wanted one such as cpu or cuda"
        ) from error


def judge_scores(path: Path, task: Task, out: Path | None) -> Run:
    """Returns the result of stored scores."""
    from rmtrl.evaluation.items import disown, read_scores, score_lines

    started = time.time()
    scores = read_scores(path, task.items)
    run = Run({"name": str(path), "scores_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}, {}, {}, {})
    _add(run, task, scores, out, started=started, more={})
    if out:
        path = out / _slug(task.benchmark.name) / "scores.jsonl"
        disown(path)
        write_rows(path, score_lines(task.items, scores))
    return run


def _score(
    name: str, scorer: "RewardScorer", items: "Sequence[Item]", key: Mapping[str, Any], out: Path | None
) -> "list[ItemScores]":
    from rmtrl.evaluation.items import score_into, score_items

    if out is None:
        return [scores for window in score_items(scorer, items, name=name) for scores in window]
    path = out / _slug(name) / "scores.jsonl"
    return score_into(path, scorer, items, key=key, name=name, say=_say)


def _add(
    run: Run, task: Task, scores: "Sequence[ItemScores]", out: Path | None, *, started: float, more: dict[str, Any],
    missing_reasons: Mapping[str, int] | None = None,
) -> None:  # fmt: skip
    """Adds the result of one benchmark to the run and, with `out`, writes it."""
    from rmtrl.data.provenance import environment
    from rmtrl.evaluation.benchmarks.results import result_of

    name = task.benchmark.name
    run.results[name] = result = result_of(task.benchmark, task.items, scores, missing_reasons=missing_reasons)
    run.records[name] = {
        **result.as_dict(),
        "model": run.model,
        "data": {"source": task.source, "rows": len(task.items), "fingerprint": task.fingerprint},
        **more,
        **_times(started),
        "environment": environment(),
    }
    if out:
        write_json(out / _slug(name) / "result.json", run.records[name])


def _add_unscored(run: Run, task: Task, why: str, out: Path | None) -> None:
    name = task.benchmark.name
    run.unscored[name] = why
    if out:  # in place of the result of an earlier run
        record = {"schema": "rmtrl/benchmark-result/1", "name": name, "overall": None, "not_scorable": why}
        write_json(out / _slug(name) / "result.json", record | {"model": run.model})


def finish(runs: Sequence[Run], out: Path | None, *, started: float, as_json: bool) -> None:
    """Prints the report, or JSON, of all runs and with `out` writes `results.json` there.

    Raises:
        DataError: If no model could be scored on any benchmark.
    """
    from rmtrl.evaluation.report import report

    results = {run.model["name"]: run.results for run in runs}
    chosen = {run.model["name"]: run.selected_on for run in runs}
    unscored = {run.model["name"]: run.unscored for run in runs}
    if not any(results.values()):
        raise DataError("; ".join(why for own in unscored.values() for why in own.values()))
    whole = _whole(runs, results, chosen, unscored) | _times(started)
    if out:
        write_json(out / "results.json", whole)
    if as_json:
        print_json(whole)
    else:
        print(report(results, chosen, unscored))


def _whole(runs: Sequence[Run], results: Any, chosen: Mapping[str, Sequence[str]], unscored: Any) -> dict[str, Any]:
    from rmtrl.evaluation.report import averages, published_rows, warnings

    common, means = averages(results)
    return {
        "schema": "rmtrl/evaluation/1",
        "models": [
            {"model": run.model, "selected_on": list(run.selected_on), "benchmarks": run.records,
             "not_scorable": run.unscored,
             "average": means[run.model["name"]].as_dict() if means else None}
            for run in runs
        ],
        "average_over": common if means else [],
        "warnings": warnings(results, chosen, unscored),
        "published": [asdict(row) for row in published_rows(results)],
    }  # fmt: skip


def selected_on(model: str, tasks: Sequence[Task]) -> tuple[str, ...]:
    """Returns those of the benchmarks that chose a checkpoint, by its `rmtrl.json` and those of the checkpoints in it.

    A benchmark is known by its content, or by its name at the end of the metric: `eval_<name>`, `eval_<set>_<name>`.
    """
    from rmtrl.reward.checkpoint import stored_record

    folders = [model, *(str(file.parent) for file in Path(model).glob("checkpoint-*/rmtrl.json"))]
    records = [stored_record(folder) for folder in folders]
    entries = [entry for record in records for entry in record.get("selected_on", [])]
    chose = {entry["benchmark"] for entry in entries} | {entry["fingerprint"] for entry in entries}
    metrics = [str((record.get("config") or {}).get("metric_for_best_model") or "") for record in records]
    metrics = [f"_{metric.split('/')[0]}" for metric in metrics]
    return tuple(
        name
        for name, fingerprint in ((task.benchmark.name, task.fingerprint) for task in tasks)
        if chose & {name, fingerprint} or any(metric.endswith(f"_{name}") for metric in metrics)
    )


def _times(started: float) -> dict[str, Any]:
    begun = datetime.fromtimestamp(started, timezone.utc).isoformat(timespec="seconds")
    return {"started": begun, "seconds": round(time.time() - started, 1)}


def _folders(names: Sequence[str], out: Path | None) -> dict[str, Path | None]:
    """Returns where the results of each model go: with several models, a folder each."""
    if out is None or len(names) < 2:
        return dict.fromkeys(names, out)
    slugs = Counter(map(_slug, names))
    return {
        name: out / (slug if slugs[slug := _slug(name)] == 1 and slug else f"{slug or 'model'}-{_short_hash(name)}")
        for name in names
    }


def _short_hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "--", name.strip("/."))


def _say(line: str) -> None:
    print(f"rmtrl: {line}", file=sys.stderr)
