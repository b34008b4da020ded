"""`rmtrl abtest …`: plan, assign and analyse an A/B test of two policies."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmtrl.cli.console import Json, print_json, print_table, read_rows, read_text
from rmtrl.errors import DataError, UsageError
from rmtrl.io import read_object, write_json, write_rows

if TYPE_CHECKING:
    from rmtrl.evaluation.abtest import Analysis, Outcome, Plan

app = typer.Typer(help="Compare two policies by a planned experiment.", no_args_is_help=True)

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
    bounds: Annotated[str, typer.Option(help="obrien-fleming or pocock.")] = "obrien-fleming",
    safety_maximum: Annotated[
        float | None, typer.Option(help="Highest tolerated rate of violations of the treatment.")
    ] = None,
    safety_alpha: Annotated[float, typer.Option(help="Significance at which a higher rate stops the test.")] = 0.05,
    block: Annotated[int, typer.Option(help="Units in which both arms come equally often.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the assignment.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Fix sample size, looks, and what counts as success and as unsafe, before there are data."""
    from rmtrl.evaluation.abtest import make_plan

    made = make_plan(
        baseline, effect, paired=paired, discordant=discordant, alpha=alpha, power=power, looks=looks,
        bounds=bounds, safety_maximum=safety_maximum, safety_alpha=safety_alpha, block=block, seed=seed,  # type: ignore[arg-type]
    )  # fmt: skip
    if out is not None:
        if out.exists() and (not out.is_file() or read_object(out) != made.as_dict()):
            raise UsageError(f"{out} exists and is another plan; a plan is not changed: name a new file")
        write_json(out, made.as_dict())
    if as_json:
        print_json(made.as_dict())
        return
    each = ", ".join(f"{n:,} (|z| {z:.3f})" for n, z in zip(made.look_sizes, made.critical_values, strict=True))
    safety = "no limit" if safety_maximum is None else f"violations at most {safety_maximum:g}"
    rows: dict[str, Any] = {"pairs" if paired else "units of each arm": made.n, "looks at": each, "safety": safety}
    print_table(rows | {"hash": made.hash[:12]} | ({"written to": out} if out else {}))


@app.command()
def assign(
    plan: PlanFile,
    units: Annotated[Path, typer.Argument(help="Ids of units: one a line, or jsonl with `unit`.")],
    out: Annotated[Path, typer.Option(help="Write assignments here; units that stand there keep their arm.")],
    as_json: Json = False,
) -> None:
    """Assign units to arms at random, in balanced blocks; the same unit always gets the same arm."""
    from rmtrl.evaluation.abtest import ARMS, assignment_seals
    from rmtrl.evaluation.abtest import assign as assign_units

    made = _read_plan(plan)
    if out.resolve() in (plan.resolve(), units.resolve()):
        raise UsageError(f"{out} is also an input; name another file for the assignments")
    before = _read_assignments(out, made) if out.exists() else {}
    given = _read_units(units)
    found = assign_units(given, made, before)
    column = "first" if made.paired else "arm"
    sealed = zip(found.items(), assignment_seals(found, made), strict=True)
    write_rows(out, ({"unit": unit, column: arm, "plan": made.hash, "seal": s} for (unit, arm), s in sealed))
    counts: dict[str, Any] = {"units": len(found), "new": len(found) - len(before)}
    counts |= {"repeated ids": len(given) - len(set(given)), **{arm: list(found.values()).count(arm) for arm in ARMS}}
    if as_json:
        print_json({"schema": "rmtrl/abtest-assignment/1", **counts, "plan": made.hash, "out": str(out)})
    else:
        print_table({**counts, "written to": out})


@app.command()
def analyse(
    plan: PlanFile,
    assignments: Annotated[Path, typer.Argument(help="As `rmtrl abtest assign` writes them.")],
    outcomes: Annotated[
        Path, typer.Argument(help="In order of arrival, a line `unit`, `success`, `violation` (paired: and `arm`).")
    ],
    as_json: Json = False,
) -> None:
    """Judge the outcomes by the plan; exit code 1 when safety stops the test."""
    from rmtrl.evaluation.abtest import analyse as judge

    made = _read_plan(plan)
    assigned = _read_assignments(assignments, made)
    found = judge(made, assigned, [_outcome(outcomes, row) for row in read_rows(outcomes)], hashes={made.hash})
    if as_json:
        print_json({**found.as_dict(), "plan": made.hash})
    else:
        _print(found)
    if found.balance_p is not None and found.balance_p < UNBALANCED:
        said = (
            f"outcomes are missing unequally from the arms (p = {found.balance_p:.2g}); find out why before believing"
        )
        print(f"rmtrl: warning: {said}", file=sys.stderr)
    if found.decision == "stop: safety":
        raise typer.Exit(1)


def _print(found: "Analysis") -> None:
    rows: dict[str, Any] = {"decision": f"{found.decision} ({found.reason})"}
    rows |= {f"success, {arm}": rate for arm, rate in found.rates.items()}
    rows |= {f"violations, {arm}": rate for arm, rate in found.violations.items()}
    for look in found.looks:
        rows[f"look {look.look}"] = (
            f"z {look.z:.3f}, bound {look.bound:.3f}, difference {look.difference}, level {look.difference.level:.4f}"
        )
    print_table(rows | found.counts)


def _read_plan(path: Path) -> "Plan":
    from rmtrl.evaluation.abtest import Plan

    return Plan.from_dict(read_object(path))


def _read_assignments(path: Path, plan: "Plan") -> dict[str, str]:
    """Returns the arm of each unit of a file, checked to be as it was assigned under the plan."""
    from rmtrl.evaluation.abtest import ARMS, check_assignments

    found: dict[str, str] = {}
    rows = read_rows(path)
    for row in rows:
        unit, arm = row.get("unit"), row.get("first" if plan.paired else "arm")
        if not isinstance(unit, str) or not isinstance(row.get("plan"), str):
            raise DataError(f"{path}: got {str(row)[:60]}; wanted assignments, as rmtrl abtest assign writes them")
        if row["plan"] != plan.hash:
            raise DataError(
                f"{path} was assigned under the plan {row['plan'][:12]}, not {plan.hash[:12]}: criteria may not "
                "change after data exist; take the plan of the assignments, or a new file"
            )
        if arm not in ARMS:
            raise DataError(f"{path}: got {str(row)[:60]}; wanted assignments, as rmtrl abtest assign writes them")
        if unit in found:
            raise DataError(f"{path} assigns {unit!r} twice; wanted one line a unit")
        found[unit] = arm
    check_assignments(found, plan, [row.get("seal") for row in rows])
    return found


def _read_units(path: Path) -> list[str]:
    """Returns the ids of a file: `unit` of a JSON line, or the line itself."""
    lines = [line.strip() for line in read_text(path).split("\n") if line.strip()]
    wanted = 'wanted {"unit": id} in every line, or an id a line'
    if not lines:
        raise DataError(f"{path} is empty; wanted an id a line")
    if all(line.startswith("{") for line in lines):
        ids = [row.get("unit") for row in read_rows(path)]
        wrong = [number for number, id in enumerate(ids, 1) if type(id) not in (str, int) or not str(id).strip()]
        if wrong:
            raise DataError(f"{path}: row {wrong[0]} has no unit; {wanted}")
        return [str(id) for id in ids]
    mixed = [line for line in lines if line.startswith(("{", "[", '"'))]
    if mixed:
        raise DataError(f"{path} has the line {mixed[0][:40]!r} among ids; {wanted}")
    return lines


def _outcome(path: Path, row: dict[str, Any]) -> "Outcome":
    from rmtrl.evaluation.abtest import Outcome

    unit, arm, success, violation = (row.get(name) for name in ("unit", "arm", "success", "violation"))
    if type(unit) not in (str, int) or success not in (0, 1) or violation not in (None, 0, 1):
        raise DataError(
            f"{path}: got {str(row)[:80]}; wanted unit, success (0 or 1) and, if known, violation (0 or 1)"
        )
    if not isinstance(arm, str | None):
        raise DataError(f"{path}: the outcome of {unit!r} has the arm {arm!r}; wanted its name, or none")
    return Outcome(str(unit), bool(success), None if violation is None else bool(violation), arm)
