"""The readiness gate: whether a reward model is fit to train a policy on, and why not."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import yaml

from rmtrl.errors import UsageError
from rmtrl.evaluation.audit import UNDECIDED
from rmtrl.evaluation.evidence import (
    FINDINGS,
    KNOWN,
    NAMES,
    OTHER_MODEL,
    WORSENED,
    Evidence,
    Figure,
    Finding,
    condition,
    gather,
)
from rmtrl.evaluation.scoring import is_number
from rmtrl.types import Estimate, json_ready

SCHEMA = "rmtrl/thresholds/1"
Compare = Literal["value", "interval"]
_COMPARE = get_args(Compare)

# whatever a thresholds file says: a model's opinion of the policy's answers is no human's
_ALWAYS: dict[str, dict[str, Any]] = {"fresh_accuracy": {"reviewed_by": "human"}}


@dataclass(frozen=True)
class Check:
    """What one item of evidence must show.

    Args:
        minimum, maximum (`float`, *optional*): Bounds of a figure, themselves allowed.
        n (`int`): Fewest pairs behind it.
        where (`dict[str, Any]`): Conditions that the figure must have been measured under.
        compare (`str`, *optional*): `"value"` or `"interval"`; the file's own when absent.
        otherwise (`str`): `"stop"` or `"warn"`.
        passed (`bool`, *optional*): Of a finding, which must be passed.
    """

    minimum: float | None = None
    maximum: float | None = None
    n: int = 1
    where: Mapping[str, Any] = field(default_factory=dict)
    compare: Compare | None = None
    otherwise: Literal["stop", "warn"] = "stop"
    passed: bool | None = None

    @property
    def wanted(self) -> str:
        """The bounds in words."""
        ends = {"at least": self.minimum, "at most": self.maximum}
        return " and ".join(f"{word} {end:g}" for word, end in ends.items() if end is not None) or "passed"


@dataclass(frozen=True)
class Thresholds:
    """The checks of a gate.

    Args:
        checks (`dict[str, Check]`): By name of the evidence.
        compare (`str`): Whether the figure or the unfavourable end of its interval must pass.
    """

    checks: Mapping[str, Check]
    compare: Compare = "value"

    @classmethod
    def from_yaml(cls, text: str) -> "Thresholds":
        """Returns the thresholds of a YAML file's text; `rmtrl/evaluation/thresholds.yaml` documents the form.

        Raises:
            UsageError: If it is no YAML, asks nothing, or has a name or value that no check knows.

        Example:

        ```python
        >>> Thresholds.from_yaml("{schema: rmtrl/thresholds/1, checks: {ece: {maximum: 0.05}}}").checks["ece"].wanted
        'at most 0.05'
        ```
        """
        try:
            stored = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(f"the thresholds are not YAML ({' '.join(str(error).split())})") from error
        if not isinstance(stored, dict) or stored.get("schema") != SCHEMA:
            raise UsageError(f"the thresholds are not of the schema {SCHEMA}; copy rmtrl/evaluation/thresholds.yaml")
        unknown = sorted(map(str, set(stored) - {"schema", "compare", "checks"}))
        checks, compare = stored.get("checks"), stored.get("compare", "value")
        if unknown or not isinstance(checks, dict) or not checks or compare not in _COMPARE:
            has = ", ".join(unknown) or "no checks, or a compare other than value or interval"
            raise UsageError(f"the thresholds have {has}; wanted schema, compare and checks")
        return cls({name: _check(name, settings) for name, settings in checks.items()}, compare)


def default_thresholds() -> Thresholds:
    """Returns the thresholds that ship with the package; each has its source in the file."""
    return Thresholds.from_yaml((resources.files("rmtrl.evaluation") / "thresholds.yaml").read_text(encoding="utf-8"))


def _check(name: str, settings: Any) -> Check:
    """Returns the check of a thresholds file; raises where it asks for what no check knows."""
    if name not in NAMES:
        raise UsageError(f"the thresholds ask for {name}; known are {', '.join(sorted(NAMES))}")
    finding = name in FINDINGS
    known = {"passed", "otherwise"} if finding else {field.name for field in fields(Check)} - {"passed"}
    if not isinstance(settings, dict) or not set(settings) <= known:
        raise UsageError(f"the check {name} is {settings}; it knows {', '.join(sorted(known))}")
    check = Check(**settings)
    ends = [end for end in (check.minimum, check.maximum) if end is not None]
    asks = check.passed is True if finding else bool(ends) and all(map(is_number, ends)) and ends == sorted(ends)
    counts = type(check.n) is int and check.n >= 1 and isinstance(check.where, dict)
    if not (asks and counts and check.compare in (None, *_COMPARE) and check.otherwise in ("stop", "warn")):
        wanted = "a minimum or maximum, finite numbers, n a count above 0, where a mapping"
        wanted = "passed: true" if finding else wanted
        raise UsageError(f"the check {name} is {settings}; wanted {wanted}, otherwise stop or warn")
    return check


@dataclass(frozen=True)
class Reason:
    """The outcome of one check.

    Args:
        check (`str`): Name of the evidence.
        passed (`bool`): Whether it was passed.
        stops (`bool`): Whether failing it makes the model not ready.
        got, wanted (`str`): In words, with n and interval.
        value, low, high (`float`, *optional*): The figure.
        n (`int`, *optional*): Pairs behind it.
        source (`str`): Where it is from.
        distance (`float`, *optional*): How far the figure is on the good side of its thresholds, below 0 on the bad
            side, in units of the half of its interval that points towards the threshold. 1: the end of the interval
            stands on it. None without evidence; NaN of an exact count, which has no interval to measure by.
        unknown (`bool`): Whether it is not passed for want of evidence.
        lacking (`str`): Why evidence that stands does not count.
    """

    check: str
    passed: bool
    stops: bool
    got: str
    wanted: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    source: str = ""
    distance: float | None = None
    unknown: bool = field(default=False, repr=False)
    lacking: str = field(default="", repr=False)

    json_also: ClassVar = ("line",)

    @property
    def line(self) -> str:
        """The outcome as a line of the report."""
        mark = "ok" if self.passed else "warning" if not self.stops else "?" if self.unknown else "NO"
        return f"{mark:<8} {self.asks}: {self.got}; wanted {self.wanted}"

    @property
    def asks(self) -> str:
        """What the check asks for, in words."""
        return str(KNOWN[self.check]["words"])


@dataclass(frozen=True)
class Decision:
    """The answer of the gate.

    Args:
        ready (`bool`): Whether every check that stops was passed.
        reasons (`tuple[Reason, ...]`): One a check, in the order of the thresholds.
        not_asked (`tuple[str, ...]`): Evidence that the thresholds do not ask for.
    """

    json_also: ClassVar = ("score",)
    schema: ClassVar = "rmtrl/gate/1"

    ready: bool
    reasons: tuple[Reason, ...]
    not_asked: tuple[str, ...] = ()

    @property
    def score(self) -> float | None:
        """The smallest distance of the figures whose checks stop; None where one of them has no evidence.

        It orders models; the verdict is not its sign. Exact counts, such as overlap, and findings have no distance:
        they decide the verdict only.
        """
        asked = [reason.distance for reason in self.reasons if reason.stops and reason.check not in FINDINGS]
        known = [distance for distance in asked if distance is not None and not math.isnan(distance)]
        return min(known) if known and None not in asked else None

    def __str__(self) -> str:
        unasked = (f"{'-':<8} {KNOWN[name]['words']}: not asked" for name in self.not_asked)
        said = ("ready" if self.ready else "not ready") + ("" if self.score is None else f" (score {self.score:+.2f})")
        return "\n".join([*(reason.line for reason in self.reasons), *unasked, said])


def gate(run: str | Path, policy: str | None = None, *, thresholds: Thresholds | None = None) -> Decision:
    """Returns whether a reward model is fit to train a policy on, from what its run has measured; see [`judge`].

    Args:
        run (`str` or `Path`): Folder of a run or of a reward model, or a file of evidence.
        policy (`str`, *optional*): Policy to train: folder or hub id; the run's own `sft` folder by default.
        thresholds ([`Thresholds`], *optional*): What must be shown; those of the package by default.

    Raises:
        DataError: If there is no evidence.

    Example:

    ```python
    >>> gate("outputs/tiny").ready
    False
    ```
    """
    return judge(gather(Path(run), policy), thresholds)


def judge(evidence: Evidence, thresholds: Thresholds | None = None) -> Decision:
    """Returns whether the evidence meets the thresholds, with one reason a check.

    Evidence that is missing, of too few pairs, of another model, of the training pairs, or measured under other
    conditions than asked fails its check, and so does what a calibration shows that made the pairs surely worse. A
    fresh-policy accuracy counts only where a human reviewed the pairs.

    Args:
        evidence ([`~rmtrl.evaluation.evidence.Evidence`]): What is known.
        thresholds ([`Thresholds`], *optional*): What must be shown; those of the package by default.

    Example:

    ```python
    >>> print(judge(Evidence()).reasons[0].line)
    ?        prompts in both training and test: no evidence; wanted at most 0
    ```
    """
    thresholds = thresholds or default_thresholds()
    reasons = tuple(
        _judge(name, getattr(evidence, name), check, check.compare or thresholds.compare)
        for name, check in thresholds.checks.items()
    )
    not_asked = tuple(sorted(NAMES - set(thresholds.checks)))
    return Decision(all(reason.passed or not reason.stops for reason in reasons), reasons, not_asked)


def _judge(name: str, item: Figure | Finding | None, check: Check, compare: Compare) -> Reason:
    """Returns the outcome of one check."""
    stops, wanted = check.otherwise == "stop", check.wanted
    if item is None:
        return Reason(name, False, stops, "no evidence", wanted, unknown=True)
    if isinstance(item, Finding):
        passed, said = item.passed is True, item.said or "no word of it"
        lacking = said.split("; ")[0] if not passed and said.startswith(UNDECIDED) else ""
        unknown = bool(lacking) or not (passed or item.said)
        return Reason(name, passed, stops, said, wanted, source=item.source, unknown=unknown, lacking=lacking)
    estimate, got = item.estimate, str(item)
    low, high = (estimate.low, estimate.high) if compare == "interval" else (estimate.value, estimate.value)
    passed = (check.minimum is None or low >= check.minimum) and (check.maximum is None or high <= check.maximum)
    distance = _distance(estimate, check)
    if lacking := _lacking(item, check.n, {**check.where, **_ALWAYS.get(name, {})}):
        passed, got, distance = False, f"no evidence: {lacking}, got {item}", None
    elif compare == "interval":
        wanted += " at the unfavourable end"
    passed = passed and item.conditions.get("calibration") != WORSENED
    value, low, high = (json_ready(end) for end in (estimate.value, estimate.low, estimate.high))  # unknown: None
    known = (value, low, high, estimate.n, item.source, distance)
    return Reason(name, passed, stops, got, wanted, *known, unknown=bool(lacking), lacking=lacking)


def _distance(estimate: Estimate, check: Check) -> float | None:
    """Returns the [`Reason.distance`] of a figure; None where its interval is not known."""
    below, above = estimate.value - estimate.low, estimate.high - estimate.value
    if not math.isfinite(below + above):
        return None
    bounds = ((check.minimum, 1, below, above), (check.maximum, -1, above, below))
    gaps = [(sign * (estimate.value - end), *sides) for end, sign, *sides in bounds if end is not None]
    halves = [(gap, (good if gap >= 0 else bad) or (below + above) / 2) for gap, good, bad in gaps]
    return min(gap / half if half else math.nan for gap, half in halves)


def _lacking(figure: Figure, n: int, where: Mapping[str, Any]) -> str:
    """Returns why a figure does not count; empty where it does."""
    if figure.conditions.get("model") == OTHER_MODEL:
        return "of another model"
    if figure.conditions.get("data") == "train":
        return "of the training pairs"
    for name, value in where.items():
        got = figure.conditions.get(name)
        if got != value:
            return f"{condition(name, 'not said' if got is None else got)}, wanted {value}"
    return f"too few: n = {figure.estimate.n:,}, wanted {n:,} or more" if figure.estimate.n < n else ""
