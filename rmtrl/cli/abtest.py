"""`rmtrl abtest …`: plan, assign and analyse an A/B test of two policies."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from rmtrl.cli import options as opt
from rmtrl.cli.console import check_outputs, read_rows, show
from rmtrl.errors import UsageError
from rmtrl.io import read_object, write_json, write_rows
from rmtrl.types import json_ready

app = typer.Typer(name="abtest", help="Compare two policies by a planned experiment.", no_args_is_help=True)

PlanFile = Annotated[Path, typer.Argument(help="Plan, as `rmtrl abtest plan` writes it.")]
UNBALANCED = 0.001


@app.command()
def plan(
    baseline: Annotated[float, typer.Option(help="Success rate expected of the control.")],
    effect: Annotated[float, typer.Option(help="Gain to find, as a difference of rates.")],
    out: Annotated[Path | None, typer.Option(help="Write the plan here; an existing plan is not replaced.")] = None,
    paired: Annotated[bool, typer.Option(help="Both arms answer every unit.")] = False,
    discordant: Annotated[float | None, typer.Option(help="Paired: share of units on which the arms differ.")] = None,
    alpha: Annotated[float, typer.Option(help="Chance of a false find, two-sided, all looks together.")] = 0.05,
    power: Annotated[float, typer.Option(help="Chance of finding the gain.")] = 0.8,
    looks: Annotated[int, typer.Option(help="Analyses, equally spaced, the last included.")] = 1,
    bounds: Annotated[
        Literal["pocock", "obrien-fleming"], typer.Option(help="How alpha is spread over the looks.")
    ] = "obrien-fleming",
    safety_maximum: Annotated[
        float | None, typer.Option(help="Highest tolerated rate of violations of the treatment.")
    ] = None,
    safety_alpha: Annotated[float, typer.Option(help="Significance at which a higher rate stops the test.")] = 0.05,
    block: Annotated[int, typer.Option(help="Units in which both arms come equally often.")] = 10,
    seed: opt.RandomSeed = 0,
    as_json: opt.Json = False,
) -> None:
    """Fix sample size, looks, and what counts as success and as unsafe, before there are data."""
    from rmtrl.evaluation.abtest import make_plan

    made = make_plan(
        baseline, effect, paired=paired, discordant=discordant, alpha=alpha, power=power, looks=looks, bounds=bounds,
        safety_maximum=safety_maximum, safety_alpha=safety_alpha, block=block, seed=seed,
    )  # fmt: skip
    whole = json_ready(made)
    if out is not None:
        if out.exists() and (not out.is_file() or read_object(out) != whole):
            raise UsageError(f"{out} exists and is another plan; a plan is not changed: name a new file")
        write_json(out, whole)
    each = ", ".join(f"{n:,} (|z| {z:.3f})" for n, z in zip(made.look_sizes, made.critical_values, strict=True))
    words = {"pairs" if paired else "units of each arm": made.n, "looks at": each, "plan": made.hash[:12], "out": out}
    show(whole, as_json, words=words)


@app.command()
def assign(
    plan: PlanFile,
    units: Annotated[Path, typer.Argument(help="Ids of units: one a line, or jsonl with `unit`.")],
    out: Annotated[Path, typer.Option(help="Write assignments here; units that stand there keep their arm.")],
    as_json: opt.Json = False,
) -> None:
    """Assign units to arms at random, in balanced blocks; the same unit always gets the same arm."""
    from rmtrl.evaluation.abtest import ARMS, Plan, assignment_rows, read_assignments, read_units
    from rmtrl.evaluation.abtest import assign as assign_units

    check_outputs([plan, units], {"--out": out})
    made = Plan.from_dict(read_object(plan))
    before = read_assignments(read_rows(out), made, source=str(out)) if out.exists() else {}
    given = read_units(units)
    found = assign_units(given, made, before)
    write_rows(out, assignment_rows(found, made))
    counts: dict[str, Any] = {"units": len(found), "new": len(found) - len(before)}
    counts |= {"repeated_ids": len(given) - len(set(given)), **{arm: list(found.values()).count(arm) for arm in ARMS}}
    show({"schema": "rmtrl/abtest-assignment/1", **counts, "plan": made.hash, "out": str(out)}, as_json)


@app.command()
def analyse(
    plan: PlanFile,
    assignments: Annotated[Path, typer.Argument(help="As `rmtrl abtest assign` writes them.")],
    outcomes: Annotated[
        Path, typer.Argument(help="In order of arrival, a line `unit`, `success`, `violation` (paired: and `arm`).")
    ],
    as_json: opt.Json = False,
) -> None:
    """Judge the outcomes by the plan; exit code 1 when safety stops the test."""
    from rmtrl.evaluation.abtest import Outcome, Plan, read_assignments
    from rmtrl.evaluation.abtest import analyse as judge

    made = Plan.from_dict(read_object(plan))
    assigned = read_assignments(read_rows(assignments), made, source=str(assignments))
    given = [Outcome.of(row, source=str(outcomes)) for row in read_rows(outcomes)]
    found = judge(made, assigned, given)
    unequal = "outcomes are missing unequally from the arms (p = {:.2g}); find out why before believing"
    unbalanced = found.balance_p is not None and found.balance_p < UNBALANCED
    warnings = [unequal.format(found.balance_p)] if unbalanced else []
    show({"schema": "rmtrl/abtest/1", **asdict(found), "plan": made.hash}, as_json, warnings=warnings)
    if found.decision == "stop: safety":
        raise typer.Exit(1)
