"""`rmtrl drift`: what is watched once a policy is out."""

from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import typer

from rmtrl.cli import options as opt
from rmtrl.cli.console import check_outputs, show
from rmtrl.io import append_row, file_sha256
from rmtrl.types import json_ready


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
