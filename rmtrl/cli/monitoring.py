"""`rmtrl guard` and `rmtrl drift`: what is screened and watched once a policy is out."""

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmtrl.cli import options as opt
from rmtrl.cli.console import check_outputs, show
from rmtrl.errors import UsageError
from rmtrl.io import append_row, file_sha256, read_text, write_json, write_rows
from rmtrl.types import json_ready

if TYPE_CHECKING:
    from rmtrl.metrics.thresholds import FittedThreshold


def drift(
    reference: Annotated[str, typer.Argument(help="Pairs or scored rows of a time that was good: file, folder, id.")],
    current: Annotated[str, typer.Argument(help="The same of now.")],
    scores: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Scores of the pairs of reference and of current, two files.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="calibration.json or its folder, for expected accuracy without labels.")
    ] = None,
    watch: Annotated[
        list[str] | None, typer.Option(help="One more column to watch, numbers or true and false; may be repeated.")
    ] = None,
    held_out: Annotated[
        list[str] | None, typer.Option(help="A domain that accuracy is of, all by default; may be repeated.")
    ] = None,
    labels: Annotated[bool, typer.Option(help="Whether the first answer is known to be the better one.")] = True,
    history: Annotated[Path | None, typer.Option(help="Add the result to this file, a line a run.")] = None,
    alpha: Annotated[float, typer.Option(help="Rate of false alarms.", min=1e-4, max=0.5)] = 0.05,
    permutations: Annotated[int, typer.Option(help="Permutations of prompts.", min=19)] = 999,
    seed: opt.RandomSeed = 0,
    as_json: opt.Json = False,
) -> None:
    """Say whether scores, lengths, domains and guards are still what they were; exit code 1 on alarm."""
    from rmtrl.calibration import read_calibration
    from rmtrl.monitoring.drift import drift as compared
    from rmtrl.monitoring.drift import read_watched

    check_outputs([reference, current, *(scores or ()), calibration], {"--history": history})
    fitted = read_calibration(calibration) if calibration else None
    given = zip((reference, current), scores or (None, None), strict=True)
    sides = [read_watched(source, own, watch=watch or (), labels=labels) for source, own in given]
    settings: dict[str, Any] = {"alpha": alpha, "n_permutations": permutations, "seed": seed}
    found = compared(sides[0], sides[1], calibration=fitted, held_out=held_out or (), **settings)
    files = [reference, current, *map(str, scores or ())]
    data = {name: file_sha256(Path(name)) if Path(name).is_file() else None for name in files}
    whole = {**json_ready(found), "data": data, "seed": seed, "time": datetime.now(timezone.utc).isoformat()}
    show(whole, as_json, words=found.words | {"history": history}, warnings=found.warnings)
    if history is not None:  # shown before: a history that cannot be written hides no alarm
        append_row(history, whole)
    if found.alarm:
        raise typer.Exit(1)


def guard(
    responses: Annotated[
        str,
        typer.Argument(help="Answers, one a row: prompt and response or completion, or messages (file, folder, id)."),
    ],
    policy: Annotated[Path, typer.Option(help="YAML file of guards; examples/guardrails/policy.yaml is one.")],
    fit: Annotated[
        str | None, typer.Option(help="Labelled answers to fit thresholds on: rows with labels or label beside.")
    ] = None,
    false_positive_rate: Annotated[
        float | None, typer.Option(help="Share of new harmless prompts that each fitted guard may flag.")
    ] = None,
    fitted: Annotated[Path | None, typer.Option(help="Write the policy with its fitted thresholds here.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write what was found here, as jsonl: row, span, reason.")] = None,
    limit: Annotated[
        float | None,
        typer.Option(help="Exit with 1 if a guard flags more than this share of the answers.", min=0, max=1),
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Screen answers by the guards of a policy: what was found where, rates with exact intervals by domain."""
    from rmtrl.monitoring.guardrails import fit_policy, overlap, read_answers, screen
    from rmtrl.monitoring.rules import Policy

    check_outputs([responses, policy, fit], {"--fitted": fitted, "--out": out})
    if (fit is None) != (false_positive_rate is None):
        raise UsageError("wanted --fit and --false-positive-rate together: labelled answers, and the rate to hold")
    if fitted is not None and fit is None:
        raise UsageError("got --fitted without --fit; there are no thresholds to write")
    used, answers = Policy.from_yaml(read_text(policy)), read_answers(responses)
    fits, notes = dict[str, "FittedThreshold"](), list[str]()
    if fit is not None and false_positive_rate is not None:
        labelled = read_answers(fit, list(used.guards))
        used, fits = fit_policy(used, labelled, false_positive_rate)
        notes += [f"{name} has no labels in {fit} and keeps its threshold" for name in used.guards if name not in fits]
        if n := overlap(labelled, answers):
            notes.append(f"{n:,} answers have prompts of {fit}, for which the fitted rate is no promise")
    found = screen(used.guards, answers, limit=limit)
    if fitted is not None:
        write_json(fitted, used.stored)
    if out is not None:
        write_rows(out, found.findings)
    origin = {"passed": found.passed, "responses": responses, "policy": str(policy), "fit": fit, "fits": fits}
    words = {**found.words, "fitted": fits, "fitted policy": fitted, "found": out or found.lines}
    show({**json_ready(found), **origin}, as_json, words=words, warnings=[*notes, *found.warnings])
    if not found.passed:
        raise typer.Exit(1)
