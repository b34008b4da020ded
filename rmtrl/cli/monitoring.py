"""`rmtrl guard`, `drift` and `redteam`: what is screened, watched and attacked once a policy is out."""

import sys
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmtrl.cli import options as opt
from rmtrl.cli.console import check_outputs, renames, show
from rmtrl.errors import DataError, UsageError
from rmtrl.io import append_row, file_sha256, read_text, write_json, write_rows
from rmtrl.types import Guard, json_ready

if TYPE_CHECKING:
    from rmtrl.monitoring.redteam import RedTeamPrompt


def drift(
    reference: Annotated[str, typer.Argument(help="Pairs or scored rows of a good period: file, folder or hub id.")],
    current: Annotated[str, typer.Argument(help="Pairs or scored rows of now, in the same form.")],
    scores: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="Two files: scores of the REFERENCE pairs and of CURRENT."),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="calibration.json or its folder, for expected accuracy without labels.")
    ] = None,
    watch: Annotated[
        list[str] | None, typer.Option(help="One more column to watch, numbers or true and false; may be repeated.")
    ] = None,
    held_out: Annotated[
        list[str] | None, typer.Option(help="Domain to watch accuracy on, all by default; may be repeated.")
    ] = None,
    labels: Annotated[bool, typer.Option(help="Whether the first answer is known to be the better one.")] = True,
    history: Annotated[Path | None, typer.Option(help="Add the result to this file, a line a run.")] = None,
    alpha: Annotated[float, typer.Option(help="Share of false alarms to accept.", min=1e-4, max=0.5)] = 0.05,
    permutations: Annotated[int, typer.Option(help="Random permutations behind each p-value.", min=19)] = 999,
    seed: opt.RandomSeed = 0,
    as_json: opt.Json = False,
) -> None:
    """Say whether scores, lengths, domains and guards are still what they were; exit code 1 on alarm."""
    from rmtrl.metrics.drift import known_values
    from rmtrl.monitoring.drift import drift as compared
    from rmtrl.monitoring.drift import read_watched

    check_outputs([reference, current, *(scores or ()), calibration], {"--history": history})
    same_scores = scores is None or scores[0] == scores[1]
    if same_scores and Path(reference).resolve() == Path(current).resolve():
        raise UsageError(f"reference and current are the same, {reference}; wanted two times, or two --scores")
    if history is not None:
        append_row(history)  # tried before the work
    fitted = None
    if calibration is not None:
        from rmtrl.calibration import read_calibration

        fitted = read_calibration(calibration)
    given = zip((reference, current), scores or (None, None), strict=True)
    sides = [read_watched(source, own, watch=watch or (), labels=labels) for source, own in given]
    for name in watch or ():
        if not any(known_values(own[name]).any() for own in sides):
            raise UsageError(f"--watch {name}: {name} has no values on either side")
    settings: dict[str, Any] = {"alpha": alpha, "n_permutations": permutations, "seed": seed}
    found = compared(sides[0], sides[1], calibration=fitted, held_out=held_out or (), **settings)
    files = [reference, current, *map(str, scores or ())]
    data = {name: file_sha256(Path(name)) if Path(name).is_file() else None for name in files}
    whole = {**json_ready(found), "data": data, "seed": seed, "time": datetime.now(timezone.utc).isoformat()}
    notes = [*found.warnings]
    if fitted and not found.expected_accuracy:
        notes.append("--calibration says nothing: no row has a margin, so there is no expected accuracy")
    if held_out and not found.accuracy:
        notes.append("--held-out says nothing: no pair of it has a label, so there is no accuracy")
    show(whole, as_json, words=found.words | {"history": history}, warnings=notes)
    try:  # shown before: a history that cannot be written hides no alarm
        if history is not None:
            append_row(history, whole)
    except DataError as error:
        if not found.alarm:
            raise
        print(f"rmtrl: warning: {error}", file=sys.stderr)
    if found.alarm:
        raise typer.Exit(1)


def guard(
    responses: Annotated[
        str,
        typer.Argument(help="Answers, one a row: prompt and response or completion, or messages (file, folder, id)."),
    ],
    rules: Annotated[Path, typer.Option(help="YAML file of guards; examples/guardrails/policy.yaml is one.")],
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
    columns: opt.Map = None,
    as_json: opt.Json = False,
) -> None:
    """Screen answers by the guards of a policy: what was found where, rates with exact intervals by domain."""
    from rmtrl.monitoring.guardrails import fit_policy, fit_warnings, overlap, read_answers, screen
    from rmtrl.monitoring.rules import Policy

    check_outputs([responses, rules, fit], {"--fitted": fitted, "--out": out})
    if (fit is None) != (false_positive_rate is None):
        raise UsageError("wanted --fit and --false-positive-rate together: labelled answers, and the rate to hold")
    if fitted is not None and fit is None:
        raise UsageError("got --fitted without --fit; there are no thresholds to write")
    named = renames(columns, example="response=chosen")
    fits, notes, skipped = dict[str, Any](), list[str](), list[dict[str, str]]()
    used, answers = Policy.from_yaml(read_text(rules)), read_answers(responses, columns=named, skipped=skipped)
    notes += [f"{len(skipped):,} rows were skipped, first {own['place']}: {own['reason']}" for own in skipped[:1]]
    if fit is not None and false_positive_rate is not None:
        labelled = read_answers(fit, list(used.guards), columns=named)
        used, fits = fit_policy(used, labelled, false_positive_rate)
        notes += [f"{name} has no labels in {fit} and keeps its threshold" for name in used.guards if name not in fits]
        notes += fit_warnings(fits)
        if n := overlap(labelled, answers):
            notes.append(f"{n:,} answers have prompts of {fit}, for which the fitted rate is no promise")
    found = screen(used.guards, answers, limit=limit)
    if fitted is not None:
        write_json(fitted, used.stored)
    if out is not None:
        write_rows(out, found.findings)
    origin = {
        "passed": found.passed,
        "responses": responses,
        "policy": str(rules),
        "fit": fit,
        "fits": fits,
        "skipped": skipped,
    }
    places = {"found": found.lines} if out is None else {"out": out}
    words = {**found.words, "skipped": len(skipped) or None, "fitted": fits, "fitted policy": fitted, **places}
    show({**json_ready(found), **origin}, as_json, words=words, warnings=[*notes, *found.warnings])
    if not found.passed:
        raise typer.Exit(1)


def redteam(
    policy: Annotated[
        str | None, typer.Option(help="Checkpoint folder or hub id of the policy, or a file of its answers.")
    ] = None,
    before: Annotated[str | None, typer.Option(help="The policy as it was, in the same forms, to compare.")] = None,
    prompts: Annotated[
        str | None, typer.Option(help="File of prompts to ask, also in XSTest's form; the package's own by default.")
    ] = None,
    attack: Annotated[
        list[str] | None, typer.Option(help="An attack to use, all by default; may be repeated.")
    ] = None,
    requests: Annotated[int | None, typer.Option(help="Requests of each category; all by default.", min=1)] = None,
    guard: Annotated[
        Path | None, typer.Option(help="Policy file of guards: an attack succeeds where one flags the answer.")
    ] = None,
    judge_labels: Annotated[
        str | None,
        typer.Option(help="Answers of --policy with people's `refused` (`harmful` with --guard), to correct by."),
    ] = None,
    k: Annotated[
        int | None,
        typer.Option("--k", help="Tries at each prompt; by default 1, or the fewest answers in a file.", min=1),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the prompts with the answers here, as jsonl.")] = None,
    max_new_tokens: opt.NewTokens = 256,
    temperature: Annotated[
        float | None,
        typer.Option(help="Temperature of sampling; by default 0 with one try, 1 with several.", min=0),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Answers to sample at a time.", min=1)] = 32,
    seed: opt.RandomSeed = 0,
    strict: Annotated[bool, typer.Option(help="Exit with code 1 if a rate surely rose since --before.")] = False,
    as_json: opt.Json = False,
) -> None:
    """Attack a policy: how often attacks succeed and harmless look-alikes are refused, and what changed."""
    from rmtrl.monitoring import redteam as team
    from rmtrl.monitoring.refusals import RefusalScorer
    from rmtrl.monitoring.rules import Policy

    check_outputs([policy, before, prompts, guard, judge_labels], {"--out": out})
    if temperature == 0 and (k or 1) > 1:
        raise UsageError(f"got --temperature 0 with --k {k}: all tries would be equal; wanted a temperature above 0")
    stored = policy if policy and Path(policy).is_file() else None
    asked = _asked(prompts or stored, attack, requests)
    if policy is None:
        if out is None or before is not None:
            raise UsageError("wanted --policy, or --out alone to write the prompts for a policy elsewhere to answer")
        counts = {"prompts": write_rows(out, map(asdict, asked)), "out": str(out)}
        return show({"schema": "rmtrl/redteam-prompts/1", **counts}, as_json)
    refusals = Guard(RefusalScorer(), 0.5, name="refusals")
    guards = list(Policy.from_yaml(read_text(guard)).guards.values()) if guard else []
    known = team.read_judge(judge_labels, refusals, guards) if judge_labels else None
    sampling: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "temperature": temperature}
    sides, k = _answered([own for own in (policy, before) if own is not None], asked, k, seed, sampling)
    if out is not None:
        rows = [asdict(own) for own in sides[0]]
        if before:
            rows = [own | {"before": old.completions} for own, old in zip(rows, sides[1], strict=True)]
        write_rows(out, rows)
    found = team.red_team(sides[0], refusals, before=sides[1] if before else None, guards=guards, judge=known, k=k)
    warnings = team.red_team_warnings(found)
    read = [Path(name) for name in (policy, before, prompts, guard, judge_labels) if name and Path(name).is_file()]
    origin: dict[str, Any] = {"policies": [policy, before], "data": {str(own): file_sha256(own) for own in read}}
    origin |= {"seed": seed, "sampling": sampling, "warnings": warnings}
    show(found | origin, as_json, words=team.red_team_words(found) | {"out": out}, warnings=warnings)
    if strict and team.surely_rose(found):
        raise typer.Exit(1)


def _asked(source: str | None, attacks: list[str] | None, n_requests: int | None) -> list["RedTeamPrompt"]:
    """Returns what to ask: the prompts of a file, or those that come along."""
    from rmtrl.monitoring.redteam import read_red_team, written_prompts

    if source is None:
        return written_prompts(attacks, n_requests)
    if attacks or n_requests:
        raise UsageError(f"got --attack or --requests with {source}; they choose among the prompts that come along")
    return [replace(one, completions=()) for one in read_red_team(source)]


def _answered(
    policies: list[str], asked: list["RedTeamPrompt"], k: int | None, seed: int, sampling: dict[str, Any]
) -> tuple[list[list["RedTeamPrompt"]], int]:
    """Returns the prompts with the answers of each policy, a file of them or a model, and the tries at a prompt."""
    from rmtrl.monitoring import redteam as team

    models = [own for own in policies if not Path(own).is_file()]
    if models:
        from rmtrl.generation import TransformersGenerator
        from rmtrl.models import load_tokenizer
    for own in models:
        load_tokenizer(own)  # one that is no model either is said before files are read
    sides = {own: team.stored_answers(own, asked) for own in policies if own not in models}
    k = k or team.fewest_tries(sides.values())
    if sampling["temperature"] is None:
        sampling["temperature"] = float(k > 1)
    for own in models:
        generator = TransformersGenerator.from_pretrained(own, **sampling)
        sides[own] = team.ask(generator, asked, k, seed=seed, chat=bool(generator.tokenizer.chat_template))
    return [sides[own] for own in policies], k
