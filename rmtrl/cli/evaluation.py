"""`rmtrl evaluate`, `calibrate`, `audit` and `overopt`: what a reward model's scores are worth."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rmtrl.cli import options as opt
from rmtrl.cli.console import check_model_or_scores, check_outputs, read_pairs, renames, show
from rmtrl.errors import DataError, UsageError
from rmtrl.io import file_sha256, write_json, write_rows
from rmtrl.processes import all_processes
from rmtrl.types import is_url, json_ready

if TYPE_CHECKING:
    from datasets import Dataset

    from rmtrl.evaluation.audit import Audit
    from rmtrl.evaluation.scoring import ScoredPairs


def evaluate(
    benchmark: Annotated[
        list[str], typer.Option(help="NAME (a wrong one lists all), NAME=PATH or folder; repeatable.")
    ],
    model: Annotated[
        list[str] | None, typer.Option(help="Checkpoint folder or hub id of a reward model; may be repeated.")
    ] = None,
    scores: opt.Scores = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for scores and results; an interrupted run goes on there.")
    ] = None,
    text: Annotated[
        Literal["plain", "transcript"] | None,
        typer.Option(help="How to write messages where a model has no template."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="Device, such as cuda:0; the accelerator by default.")] = None,
    batch_tokens: Annotated[int, typer.Option(help="Most tokens in one forward pass.", min=1)] = 8192,
    as_json: opt.Json = False,
) -> None:
    """Score benchmarks and report their figures with intervals; several models make a table."""
    from rmtrl.evaluation.run import WRITTEN, in_words, judge_scores, read_tasks, run_folders, summary
    from rmtrl.evaluation.run import evaluate as evaluate_model

    started = time.time()
    if bool(model) == bool(scores):
        raise UsageError("give --model (once or more) or --scores FILE, one of the two")
    if scores and (text or device):
        raise UsageError(f"got {'--text' if text else '--device'} with --scores; there is no model to use it for")
    if scores and len(benchmark) > 1:
        raise UsageError(f"got --scores and {len(benchmark)} benchmarks; a file of scores is of one")
    tasks = read_tasks(benchmark)
    if len(set(model or ())) < len(model or ()):
        raise UsageError(f"got --model {' --model '.join(model or ())}; name each model once")
    folders = run_folders(model or [str(scores)], out)
    own = [task.folder(folder) / name for folder in folders.values() if folder for task in tasks for name in WRITTEN]
    for file in [*own, out / "results.json"] if out else []:
        check_outputs([scores, *(task.source for task in tasks)], {"--out": file})
    if model:
        from rmtrl.models import load_tokenizer

        for name in model:  # each is there before the first is scored
            if not is_url(name):
                load_tokenizer(name, kind="reward model")
    with all_processes() as process:
        if process.world > 1 and not (model and out):
            raise UsageError("several processes share the rows of a --model in one --out; give both, or start one")
        settings: dict[str, Any] = {"text": text, "device": device, "batch_tokens": batch_tokens, "process": process}
        runs = [evaluate_model(name, tasks, folder, **settings) for name, folder in folders.items() if model]
        runs = runs or [judge_scores(Path(str(scores)), tasks[0], out)]
        if process.rank == 0:
            show(summary(runs, out, started=started), as_json, words=in_words(runs))


def calibrate(
    data: Annotated[
        str | None,
        typer.Argument(help="Pairs to calibrate on, unseen in training; with --scores, those scored."),
    ] = None,
    model: opt.AnyModel = None,
    scores: opt.Scores = None,
    test: Annotated[
        str | None, typer.Option(help="Other unseen pairs to report figures on; with --scores, the scores of these.")
    ] = None,
    test_data: Annotated[str | None, typer.Option(help="With --scores: the pairs that --test has scores of.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write calibration.json here.")] = None,
    export: Annotated[
        Path | None, typer.Option(help="Write the model here with its temperature in the head's weights.")
    ] = None,
    columns: opt.Map = None,
    split: opt.Split = "train",
    as_json: opt.Json = False,
) -> None:
    """Turn score differences into honest probabilities: fit two curves on unseen pairs, keep the one that holds."""
    from rmtrl.calibration.calibration import calibrate as fit
    from rmtrl.calibration.calibration import summary
    from rmtrl.calibration.export import check_export, export_temperature
    from rmtrl.data.provenance import made_by
    from rmtrl.data.splits import check_overlap
    from rmtrl.evaluation.audit import UNSCORED
    from rmtrl.evaluation.fingerprints import model_fingerprint

    check_model_or_scores(model, scores)
    if model is not None and data is None:
        raise UsageError("got --model without pairs to score; name the calibration pairs")
    if export is not None and (model is None or is_url(model)):
        raise UsageError("got --export without the folder of a --model; there is no model to export")
    if test_data is not None and (scores is None or test is None):
        raise UsageError("got --test-data, the pairs of test scores, without --scores and --test; name these too")
    check_outputs([data, scores, test, test_data], {"--out": out, "--export": export}, into="--export")
    if export is not None:
        check_export(export)
    given = {"calibration": (data if model else scores, data), "test": (test, test if model else test_data)}
    sources = {name: str(source) for name, (source, _) in given.items() if source is not None}
    pairs = {name: read_pairs(rows, split, columns) for name, (_, rows) in given.items() if rows is not None}
    sets = _scored(model, sources, pairs)
    kept = {name: _with_scores(own, sources[name]) for name, own in sets.items()}
    check_overlap({name: own.pairs for name, own in kept.items() if own.named})
    first = kept["calibration"]
    chosen, rejected = first.scores.T
    labels = first.column("preference")
    result = fit(chosen, rejected, first.pairs["prompt_id"], first.column("domain"), labels=labels)
    if tested := kept.get("test"):
        chosen, rejected = tested.scores.T
        result = result.with_test(chosen, rejected, tested.pairs["prompt_id"], labels=tested.column("preference"))
    known = {name: {"name": sources[name], "pairs": len(kept[name]), **own.fingerprint} for name, own in sets.items()}
    result = result.with_data(known, None if model is None else model_fingerprint(model))
    asked = {"model": model, "data": data, "scores": scores and str(scores), "test": test, "split": split}
    whole = result.as_dict() | {"made": made_by(asked)}
    if out is not None:
        write_json(out, whole)
    if export is not None:
        export_temperature(str(model), export, calibration=result)
    dropped = sum(len(own) for own in sets.values()) - sum(len(own) for own in kept.values())
    unscored = f"{dropped:,} {UNSCORED['too_long' if model else 'null_in_file']}" if dropped else 0
    words = {**summary(result), "pairs without scores": unscored, "out": out, "exported to": export}
    warnings = (*result.warnings, *_unknown_prompts(sets))
    show({**whole, "model": model, "dropped": dropped}, as_json, words=words, warnings=warnings)


def _scored(model: str | None, sources: dict[str, str], pairs: "dict[str, Dataset]") -> "dict[str, ScoredPairs]":
    """Returns sets of pairs with the scores of a model, or without one with those that the sources are."""
    from rmtrl.data.splits import check_overlap
    from rmtrl.evaluation.scoring import ScoredPairs

    if model is None:
        return {name: ScoredPairs.of_file(Path(source), pairs.get(name)) for name, source in sources.items()}
    from rmtrl.reward.remote import load_scorer

    check_overlap(pairs)
    scorer = load_scorer(model, progress=False)
    return {name: ScoredPairs.of_model(scorer, rows, sources[name]) for name, rows in pairs.items()}


def _with_scores(scored: "ScoredPairs", source: str) -> "ScoredPairs":
    if not scored.whole.any():
        raise DataError(f"none of the {len(scored):,} pairs of {source} has scores; are all over the model's length?")
    return scored.where(scored.whole)


def _unknown_prompts(sets: "dict[str, ScoredPairs]") -> list[str]:
    unknown = " and ".join(name for name, own in sets.items() if not own.named)
    said = f"the pairs of the {unknown} scores were not named, so each counts as a prompt of its own: "
    unseen = ", and prompts in both sets go unseen; name them as DATA and --test-data" if len(sets) > 1 else ""
    return [f"{said}intervals may be too small{unseen}"] if unknown else []


def audit(
    data: opt.Data,
    model: opt.AnyModel = None,
    scores: opt.Scores = None,
    out: Annotated[Path | None, typer.Option(help="Folder for audit.json, plots and the worst pairs.")] = None,
    probes: Annotated[bool, typer.Option(help="Also edit answers and see what rewards do; needs --model.")] = True,
    probe_rows: Annotated[int, typer.Option(help="Chosen answers to edit, drawn at random.", min=2)] = 200,
    target_mix: Annotated[
        opt.Numbers | None, opt.numbers("Mix of domains to report accuracy for, as weights, or a JSON file of them.")
    ] = None,
    strict: Annotated[bool, typer.Option(help="Exit with code 1 if it surely pays for length.")] = False,
    seed: opt.RandomSeed = 0,
    columns: opt.Map = None,
    split: opt.Split = "test",
    as_json: opt.Json = False,
) -> None:
    """Say whether a reward model pays for length, and what edits that improve nothing do to its rewards."""
    from rmtrl.data.provenance import fingerprint
    from rmtrl.evaluation.audit import CONVICTED, audit_pairs
    from rmtrl.evaluation.fingerprints import model_fingerprint
    from rmtrl.evaluation.scoring import WORST, ScoredPairs

    check_model_or_scores(model, scores)
    for name in ("audit.json", WORST):
        check_outputs([data, scores], {"--out": out and out / name})
    pairs = read_pairs(data, split, columns)
    scorer, known_model, known_scores = None, None, None
    if scores is not None:
        scored = ScoredPairs.of_file(scores, pairs)
        known_scores = {"source": str(scores), "sha256": file_sha256(scores)}
    else:
        from rmtrl.reward.remote import load_scorer

        scorer, known_model = load_scorer(str(model), progress=False), {"name": model}
        scored = ScoredPairs.of_model(scorer, pairs, data)
        known_model |= model_fingerprint(str(model))
    n_probes = probe_rows if probes else 0
    found = audit_pairs(scored, len(pairs), scorer=scorer, target_mix=target_mix, probe_rows=n_probes, seed=seed)
    named = None if Path(data).is_file() else split  # a file is one split by any name
    known_data = {"source": data, "split": named, "rows": len(pairs), "fingerprint": fingerprint(pairs)}
    origin = {"model": known_model, "scores": known_scores, "data": known_data, "seed": seed}
    whole = {**json_ready(found), **origin}
    if out is not None:
        _write_audit(out, whole, found, scored)
    warnings = [f"pairs without scores are left out: {found.why_unscored}"] if found.unscored else []
    show(whole, as_json, words=found.words | {"out": out}, warnings=warnings)
    if strict and found.verdict == CONVICTED:
        raise typer.Exit(1)


def _write_audit(out: Path, whole: dict[str, Any], found: "Audit", scored: "ScoredPairs") -> None:
    from rmtrl.evaluation.scoring import WORST
    from rmtrl.reporting.plots import margin_against_length, reward_against_length, save_figure

    scores, lengths, unit = found.scores, found.lengths, found.unit
    rewards = reward_against_length(found.curve, scores.ravel(), lengths.ravel(), unit=unit)
    save_figure(rewards, out / "plots" / "reward_against_length.png")
    margins = margin_against_length(scores[0] - scores[1], lengths[0] - lengths[1], unit=unit)
    save_figure(margins, out / "plots" / "margin_against_length.png")
    write_rows(out / WORST, scored.worst())
    write_json(out / "audit.json", whole)


def overopt(
    samples: Annotated[
        str, typer.Argument(help="Samples, one a line: prompt_id, proxy, gold, and domain, step, kl if known.")
    ],
    n_max: Annotated[int | None, typer.Option(help="Largest n; by default the fewest samples a prompt has.")] = None,
    held_out: Annotated[
        list[str] | None, typer.Option(help="A domain the proxy was not trained on; may be repeated.")
    ] = None,
    n_resamples: Annotated[int, typer.Option(help="Bootstrap resamples over prompts.", min=100)] = 1000,
    seed: opt.RandomSeed = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for overoptimization.json and .png.")] = None,
    columns: opt.Map = None,
    as_json: opt.Json = False,
) -> None:
    """Measure what is left when a reward (proxy) is pushed: how much gain in true score (gold) best of n loses."""
    from rmtrl.data.provenance import environment, fingerprint
    from rmtrl.evaluation.overoptimization import measure_overoptimization
    from rmtrl.evaluation.overoptimization.measure import read_samples, report, samples_of, verdict

    check_outputs([samples], {"--out": out and out / "overoptimization.json"})
    rows = read_samples(samples, renames(columns, example="proxy=score"))
    settings: dict[str, Any] = {"held_out": held_out or [], "n_resamples": n_resamples, "seed": seed}
    result = measure_overoptimization(samples_of(rows, samples), n_max=n_max, **settings)
    data = {"source": samples, "rows": len(rows), "fingerprint": fingerprint(rows)}
    whole = {**json_ready(result), "verdict": verdict(result.whole), "data": data, "settings": settings}
    whole["environment"] = environment()
    if out is not None:
        from rmtrl.reporting.plots import overoptimization_plot, save_figure

        save_figure(overoptimization_plot(result.whole), out / "overoptimization.png", dpi=150)
        write_json(out / "overoptimization.json", whole)
    show(whole, as_json, words=report(result))
