"""A/B tests of two policies: a plan fixed in advance and a random assignment, then judged by it.

The plan states what counts as success and as unsafe, the sample size, alpha and the looks, and its hash goes with
every assignment: results are judged by the plan under which they were collected, or not at all.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import count, islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from scipy import stats

from rmtrl.errors import DataError, UsageError
from rmtrl.io import read_sound_rows, read_text
from rmtrl.metrics import binomial_estimate, combined_estimate, trials
from rmtrl.types import Estimate

SCHEMA = "rmtrl/abtest-plan/1"
CONTROL, TREATMENT = ARMS = ("control", "treatment")


@dataclass(frozen=True)
class Plan:
    """What an experiment will do and how it will be judged; see [`make_plan`].

    Args:
        baseline (`float`): Success rate expected of the control.
        effect (`float`): Gain to find: the treatment is expected to succeed at `baseline + effect`.
        n (`int`): Units of each arm at the last look; pairs where they are paired.
        critical_values (`tuple[float, ...]`): What |z| must reach at each look.
        paired (`bool`): Whether both arms answer every unit.
        discordant (`float`, *optional*): Share of pairs on which the arms are expected to differ.
        alpha (`float`): Chance of a difference found where there is none, all looks together, two-sided.
        power (`float`): Chance of finding the effect.
        bounds (`str`): How alpha is spread over the looks.
        safety_maximum (`float`, *optional*): Highest tolerated rate of violations of the treatment.
        safety_alpha (`float`): Significance at which a higher rate stops the experiment, at every analysis.
        block (`int`): Units in which both arms come equally often; even.
        seed (`int`): Seed of the assignment.
    """

    schema: ClassVar = SCHEMA
    json_also: ClassVar = ("hash",)

    baseline: float
    effect: float
    n: int
    critical_values: tuple[float, ...]
    paired: bool = False
    discordant: float | None = None
    alpha: float = 0.05
    power: float = 0.8
    bounds: trials.Bounds = "obrien-fleming"
    safety_maximum: float | None = None
    safety_alpha: float = 0.05
    block: int = 10
    seed: int = 0

    @property
    def hash(self) -> str:
        """The sha256 of everything that the plan says."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def column(self) -> str:
        """Name of the arm in an assignment: in a paired experiment it is the one to show first."""
        return "first" if self.paired else "arm"

    @property
    def look_sizes(self) -> tuple[int, ...]:
        """Units of each arm at each look."""
        looks = len(self.critical_values)
        return tuple(math.ceil(self.n * k / looks) for k in range(1, looks + 1))

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Plan":
        """Returns the plan of a file, of what `json_ready` makes of one.

        Raises:
            DataError: If it is no plan, or was changed since it was made.
        """
        if stored.get("schema") != SCHEMA:
            raise DataError(f"got the schema {stored.get('schema')!r}; wanted {SCHEMA!r}, as rmtrl abtest plan writes")
        given = {name: value for name, value in stored.items() if name not in ("schema", "hash")}
        known = {field.name for field in fields(cls)}
        if set(given) != known or not isinstance(given["critical_values"], list):
            raise DataError(f"the plan lacks or adds {', '.join(sorted(set(given) ^ known))}; make a new plan")
        plan = cls(**{**given, "critical_values": tuple(given["critical_values"])})
        if plan.hash != stored.get("hash"):
            raise DataError(
                f"the plan was changed after it was made (hash {plan.hash[:12]}, stored {str(stored.get('hash'))[:12]}"
                "); restore it, or make a new plan and collect new data"
            )
        return plan


def make_plan(baseline: float, effect: float, *, looks: int = 1, **settings: Any) -> Plan:
    """Returns the plan of an experiment, with the sample size that its power needs at this number of looks.

    Args:
        baseline, effect (`float`): As in [`Plan`].
        looks (`int`): Equally spaced analyses, the last included.
        settings: As in [`Plan`]. `discordant` defaults to that of independent arms, which is on the safe side.

    Raises:
        UsageError: If a rate, a size or a chance cannot be used.

    Example:

    ```python
    >>> make_plan(0.5, 0.05).n
    1565
    ```
    """
    plan = Plan(baseline, effect, n=looks, critical_values=(), **settings)
    _check(plan)
    chances: dict[str, float] = {"alpha": plan.alpha, "power": plan.power}
    single = trials.two_proportion_n(baseline, effect, **chances)  # checks the rates of a paired test too
    if plan.paired:
        independent = trials.independent_discordance(baseline, effect)
        plan = replace(plan, discordant=independent if plan.discordant is None else plan.discordant)
        single = trials.paired_n(plan.discordant or 0.0, effect, **chances)
    n = math.ceil(single * trials.inflation(looks, kind=plan.bounds, **chances))
    bounds = trials.critical_values(looks, kind=plan.bounds, alpha=plan.alpha)
    return replace(plan, n=max(n, looks), critical_values=tuple(bounds.tolist()))


def _check(plan: Plan) -> None:
    """Raises where a plan asks for what cannot be; what sizes need is checked with them."""
    most, block = plan.safety_maximum, plan.block
    if plan.effect <= 0:
        raise UsageError(
            f"got the effect {plan.effect:g}; wanted a gain above 0: count what the treatment does more of"
        )
    if most is not None and not 0 <= most < 1:
        raise UsageError(f"got the safety maximum {most:g}; wanted a rate from 0 to below 1")
    if not 0 < plan.safety_alpha < 1:
        raise UsageError(f"got the safety alpha {plan.safety_alpha:g}; wanted a number between 0 and 1")
    if block < 2 or block % 2:
        raise UsageError(f"got blocks of {block}; wanted an even number, so that both arms come equally often")
    if plan.discordant is not None and not plan.paired:
        raise UsageError("got a share of discordant pairs for unpaired arms; leave it out, or plan a paired test")


def assign(units: Iterable[str], plan: Plan, assigned: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns the arm of every unit: of those assigned before the same one, of new ones by permuted blocks.

    New units are ordered by a hash of seed and id, not by where they stand, and take the next places of a sequence in
    which every block of `plan.block` places holds both arms equally often. In a paired experiment the arm is the one
    to show first.

    Args:
        units (`Iterable[str]`): Ids; one that occurs several times is assigned once.
        plan ([`Plan`]): Gives seed and block.
        assigned (`Mapping[str, str]`, *optional*): Earlier assignments, in the order in which they were made.

    Example:

    ```python
    >>> sorted(assign("abcd", make_plan(0.5, 0.1, block=2)).values())
    ['control', 'control', 'treatment', 'treatment']
    ```
    """
    found = dict(assigned or {})
    new = sorted(set(units) - set(found), key=lambda unit: _digest(plan.seed, "unit", unit))
    return found | dict(zip(new, islice(_sequence(plan), len(found), None), strict=False))


def assignment_rows(assigned: Mapping[str, str], plan: Plan) -> Iterator[dict[str, str]]:
    """Yields the line of each assignment, with a seal: a hash of it, of the plan and of all assignments before it.

    Example:

    ```python
    >>> plan = make_plan(0.5, 0.1)
    >>> [row["seal"][:6] for row in assignment_rows(assign("ab", plan), plan)]
    ['746749', 'bef874']
    ```
    """
    seal = plan.hash
    for unit, arm in assigned.items():
        seal = hashlib.sha256(json.dumps([seal, unit, arm]).encode()).hexdigest()
        yield {"unit": unit, plan.column: arm, "plan": plan.hash, "seal": seal}


def read_assignments(rows: Sequence[Mapping[str, Any]], plan: Plan, *, source: str) -> dict[str, str]:
    """Returns the arm of each unit, checked to be as it was assigned under the plan.

    An arm set after the fact would let the outcomes choose their arm. The sequence of arms follows from the plan, so
    each is made again; that no unit has taken another's place is what the seals hold.

    Args:
        rows (`Sequence[Mapping]`): Lines of [`assignment_rows`], in their order.
        plan ([`Plan`]): The plan.
        source (`str`): Their file, for errors.

    Raises:
        DataError: If a line is no assignment, of another plan, of a unit named before, or changed since it was made.
    """
    found: dict[str, str] = {}
    for row in rows:
        unit, arm, made_under = row.get("unit"), row.get(plan.column), row.get("plan")
        if isinstance(unit, str) and isinstance(made_under, str) and made_under != plan.hash:
            raise DataError(
                f"{source} was assigned under the plan {made_under[:12]}, not {plan.hash[:12]}: criteria may not "
                "change after data exist; take the plan of the assignments, or a new file"
            )
        if not isinstance(unit, str) or made_under != plan.hash or arm not in ARMS:
            raise DataError(f"{source}: got {str(row)[:60]}; wanted assignments, as rmtrl abtest assign writes them")
        if unit in found:
            raise DataError(f"{source} assigns {unit!r} twice; wanted one line a unit")
        found[unit] = arm
    planned = assignment_rows(dict(zip(found, _sequence(plan), strict=False)), plan)
    for place, (row, made) in enumerate(zip(rows, planned, strict=True), 1):
        if any(row.get(name) != value for name, value in made.items()):
            raise DataError(
                f"the assignments were changed after they were made, from line {place} on (unit {row['unit']!r}); "
                "restore them, or assign new units and collect new data"
            )
    return found


def read_units(path: Path) -> list[str]:
    """Returns the ids of a file: `unit` of a JSON line, or the line itself.

    Raises:
        DataError: If it cannot be read, is empty, mixes the two, or a line has no unit.
    """
    lines = [line.strip() for line in read_text(path).split("\n") if line.strip()]
    wanted = 'wanted {"unit": id} in every line, or an id a line'
    if not lines:
        raise DataError(f"{path} is empty; wanted an id a line")
    if not all(line.startswith("{") for line in lines):
        if mixed := [line for line in lines if line.startswith(("{", "[", '"'))]:
            raise DataError(f"{path} has the line {mixed[0][:40]!r} among ids; {wanted}")
        return lines
    ids = [row.get("unit") for _, row in read_sound_rows(path)]
    for number, id in enumerate(ids, 1):
        if type(id) not in (str, int) or not str(id).strip():
            raise DataError(f"{path}: row {number} has no unit; {wanted}")
    return [str(id) for id in ids]


def _sequence(plan: Plan) -> Iterator[str]:
    """Yields the arm of each place, block by block, without end."""
    for index in count():
        order = sorted(range(plan.block), key=lambda place: _digest(plan.seed, "block", f"{index}:{place}"))  # noqa: B023
        yield from (ARMS[position % 2] for position in order)


def _digest(seed: int, kind: str, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{kind}:{name}".encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True)
class Outcome:
    """What came of one unit under one arm.

    Args:
        unit (`str`): Its id.
        success (`bool`): Whether it counts as a success.
        violation (`bool`, *optional*): Whether it broke the safety rules; None where nobody looked.
        arm (`str`, *optional*): The arm; needed where both arms answer every unit.
    """

    unit: str
    success: bool
    violation: bool | None = None
    arm: str | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any], *, source: str) -> "Outcome":
        """Returns the outcome in a line of a file; `source` names it in the error that another form raises."""
        unit, arm, success, violation = (row.get(name) for name in ("unit", "arm", "success", "violation"))
        if type(unit) not in (str, int) or success not in (0, 1) or violation not in (None, 0, 1):
            form = "unit, success (0 or 1) and, if known, violation (0 or 1)"
            raise DataError(f"{source}: got {str(row)[:80]}; wanted {form}")
        if not isinstance(arm, str | None):
            raise DataError(f"{source}: the outcome of {unit!r} has the arm {arm!r}; wanted its name, or none")
        return cls(str(unit), bool(success), None if violation is None else bool(violation), arm)


@dataclass(frozen=True)
class Look:
    """One planned look: the statistic, the bound and the difference, treatment minus control.

    The interval of the difference is a repeated one: its level is that of the look's bound, so that the intervals of
    all looks together hold the true difference as often as one interval of level 1 − alpha would.
    """

    look: int
    n_per_arm: int
    z: float
    bound: float
    difference: Estimate
    method: str

    @property
    def crossed(self) -> bool:
        """Whether the statistic reached the bound."""
        return abs(self.z) >= self.bound


@dataclass(frozen=True)
class Analysis:
    """What an experiment shows so far.

    Args:
        decision (`str`): `"stop: safety"`, `"success"`, `"no success"`, `"no difference shown"` or `"go on"`.
        reason (`str`): Why, in one line.
        looks (`tuple[Look, ...]`): The looks that were due, up to the one that decided.
        rates (`dict[str, Estimate]`): Success rate of each arm, of all outcomes.
        violations (`dict[str, Estimate]`): Rate of violations of each arm, of all outcomes.
        counts (`dict[str, int]`): Units assigned and with outcome, by arm; `pending` pairs lack one side.
        balance_p (`float`, *optional*): Chance of arms this unequal under a fair assignment, of the units with an
            outcome; below 0.001 outcomes were lost by arm and the comparison cannot be trusted. None where paired.
    """

    decision: str
    reason: str
    looks: tuple[Look, ...]
    rates: dict[str, Estimate]
    violations: dict[str, Estimate]
    counts: dict[str, int] = field(default_factory=dict)
    balance_p: float | None = None


def analyse(plan: Plan, assigned: Mapping[str, str], outcomes: Sequence[Outcome]) -> Analysis:
    """Returns what the outcomes show under the plan, and whether to stop.

    The looks are those of the plan whenever the analysis is run: look k is of the first n·k/K outcomes of each arm, in
    the order given, and the first look to cross its bound decides. Unpaired arms are compared by the pooled z test,
    paired ones by McNemar's z = (b − c) / √(b + c). Safety is judged on all outcomes, at every analysis and without
    allowance for their number, since a needless stop is the smaller error: the experiment stops where the treatment's
    violations are more than the tolerated rate explains (exact binomial test, one-sided), and a treatment whose rate
    is above the tolerated one is no success.

    Args:
        plan ([`Plan`]): The plan.
        assigned (`Mapping[str, str]`): Arm of each unit, from [`assign`].
        outcomes (`Sequence[Outcome]`): In the order in which they came in.

    Raises:
        DataError: If an outcome is of no assigned unit, of the other arm, given twice, or lacks what the plan needs.
    """
    by_arm = _by_arm(plan, assigned, outcomes)
    known = {arm: [o.violation for o in own.values() if o.violation is not None] for arm, own in by_arm.items()}
    rates = _rates({arm: [o.success for o in own.values()] for arm, own in by_arm.items()})
    counts = {f"assigned {arm}": list(assigned.values()).count(arm) for arm in ARMS if not plan.paired}
    counts |= {"assigned": len(assigned)} | {f"outcomes {arm}": len(own) for arm, own in by_arm.items()}
    if plan.paired:
        counts["pending"] = len(by_arm[CONTROL].keys() ^ by_arm[TREATMENT].keys())
    looks = _looks(plan, by_arm, outcomes)
    decided = _decide(plan, looks, sum(known[TREATMENT]), len(known[TREATMENT]))
    return Analysis(*decided, looks, rates, _rates(known), counts, _balance(counts))


def _balance(counts: Mapping[str, int]) -> float | None:
    assigned, observed = (
        np.array([counts.get(f"{kind} {arm}", 0) for arm in ARMS]) for kind in ("assigned", "outcomes")
    )
    if not assigned.all():  # nor are arms assigned where they are paired
        return None
    return float(stats.chisquare(observed, assigned / counts["assigned"] * observed.sum()).pvalue)


def _by_arm(plan: Plan, assigned: Mapping[str, str], outcomes: Sequence[Outcome]) -> dict[str, dict[str, Outcome]]:
    by_arm: dict[str, dict[str, Outcome]] = {arm: {} for arm in ARMS}
    if not outcomes:
        raise DataError("got no outcomes; wanted a line a unit with unit and success")
    for outcome in outcomes:
        expected = assigned.get(outcome.unit)
        if expected is None:
            raise DataError(f"the unit {outcome.unit!r} has an outcome but was not assigned; assign before collecting")
        arm = outcome.arm if plan.paired else outcome.arm or expected
        if arm not in ARMS:
            raise DataError(f"the outcome of {outcome.unit!r} is of the arm {arm!r}; wanted {' or '.join(ARMS)}")
        if not plan.paired and arm != expected:
            raise DataError(f"the unit {outcome.unit!r} was assigned to {expected}, its outcome is of {arm}")
        if outcome.unit in by_arm[arm]:
            raise DataError(f"the unit {outcome.unit!r} has two outcomes of {arm}; wanted one")
        if plan.safety_maximum is not None and outcome.violation is None:
            raise DataError(f"the outcome of {outcome.unit!r} lacks violation, and the plan has a limit for it")
        by_arm[arm][outcome.unit] = outcome
    return by_arm


def _rates(by_arm: Mapping[str, Sequence[bool]]) -> dict[str, Estimate]:
    return {arm: binomial_estimate(sum(own), len(own), kind="wilson") for arm, own in by_arm.items() if own}


def _looks(plan: Plan, by_arm: Mapping[str, Mapping[str, Outcome]], outcomes: Sequence[Outcome]) -> tuple[Look, ...]:
    """Returns the looks that are due, up to the first that crosses its bound."""
    units = {arm: list(own) for arm, own in by_arm.items()}
    if plan.paired:
        # a pair takes its place with the outcome that completes it, so the last mention of a unit orders it
        order = dict.fromkeys(outcome.unit for outcome in reversed(outcomes))
        both = [unit for unit in reversed(order) if all(unit in own for own in by_arm.values())]
        units = dict.fromkeys(ARMS, both)
    control, treatment = (np.array([by_arm[arm][unit].success for unit in units[arm]], bool) for arm in ARMS)
    found: list[Look] = []
    for number, (n, bound) in enumerate(zip(plan.look_sizes, plan.critical_values, strict=True), 1):
        if min(len(control), len(treatment)) < n or (found and found[-1].crossed):
            break
        level, (ours, theirs) = float(2 * stats.norm.cdf(bound) - 1), (treatment[:n], control[:n])
        if plan.paired:
            changed = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
            z, difference = trials.mcnemar_z(*changed), trials.paired_difference(*changed, n, level=level)
        else:
            hits = int(ours.sum()), int(theirs.sum())
            rates = [binomial_estimate(k, n, level=level, kind="wilson") for k in hits]
            z, difference = (
                trials.two_proportion_z(hits[0], n, hits[1], n),
                combined_estimate(rates, (1, -1), method="Newcombe"),
            )
        found.append(Look(number, n, z, bound, difference, "McNemar" if plan.paired else "two proportions, pooled z"))
    return tuple(found)


def _decide(plan: Plan, looks: Sequence[Look], violations: int, n: int) -> tuple[str, str]:
    most = plan.safety_maximum
    unsafe = most is not None and n > 0 and violations / n > most
    if most is not None and unsafe:
        p = stats.binomtest(violations, n, most, alternative="greater").pvalue
        if p < plan.safety_alpha:
            return "stop: safety", f"{violations:,} violations in {n:,}, more than {most:g} explains (p = {p:.2g})"
    last = looks[-1] if looks else None
    if last is None or (not last.crossed and last.look < len(plan.look_sizes)):
        wanted = plan.look_sizes[last.look if last else 0]
        return "go on", f"the next look is due at {wanted:,} {'pairs' if plan.paired else 'outcomes of each arm'}"
    said = f"look {last.look}: z = {last.z:.3f}, bound {last.bound:.3f}, difference {last.difference}"
    if not last.crossed:
        return "no difference shown", said
    if last.z < 0:
        return "no success", f"the control is better; {said}"
    if unsafe:
        return "no success", f"better, but {violations:,} violations in {n:,} are above {most:g}; {said}"
    return "success", said
