"""A policy file becomes guards: the embedded ones, classifiers, and rules of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import regex

from rmtrl.errors import DataError, UsageError
from rmtrl.io import parsed_yaml
from rmtrl.monitoring.answers import LONGEST_CHARS, WORDS, Clock, Graded, Pattern, Reading, RuleScorer, readings
from rmtrl.monitoring.embedded import Factuality, PersonalData, Secrets, Toxicity
from rmtrl.monitoring.refusals import RefusalScorer
from rmtrl.types import Guard, Scorer

SCHEMA = "rmtrl/guard-policy/1"
DEFAULT_THRESHOLD = 0.5


# ---- rules of one's own


class PolicyRules(RuleScorer):
    """Rules of a policy file: what an answer must not say or match, when it must cite and when it must refuse.

    Args:
        rules (`Sequence[Mapping]`): Each has a `name` and one of `must_not_say` (phrases, in any case), `pattern` (one
            or several of the `regex` package, in any case), `must_cite` (`true`, or patterns of what counts as a
            citation) and `must_refuse: true`; `when`, a pattern of what was asked, says where it holds, and `severity`
            how grave a breach is, 1 by default.

    Raises:
        UsageError: If a rule is of another form; the message names it.

    Example:

    ```python
    >>> rules = PolicyRules([{"name": "no promises", "must_not_say": ["guaranteed profit"]}])
    >>> rules.findings("A GUARANTEED  profit!")
    [Graded(start=2, end=20, reason='no promises', severity=1.0)]
    ```
    """

    def __init__(self, rules: Sequence[Mapping[str, Any]]) -> None:
        if not isinstance(rules, list | tuple) or not rules:
            raise UsageError(f"the rules are {str(rules)[:60]!r}; wanted a list of them, one or more")
        self.refusals = Guard(RefusalScorer(), DEFAULT_THRESHOLD)
        self.rules = [_rule(number, rule) for number, rule in enumerate(rules, 1)]

    def applies(self, asked: str, reference: str) -> bool:
        question, clock = readings(asked), Clock()
        return any(rule.holds(asked, question, clock) for rule in self.rules)

    def found(self, asked: str, answer: str, reference: str, clock: Clock) -> Iterator[Graded]:
        read, question = readings(answer), readings(asked)
        for rule in self.rules:
            if not rule.holds(asked, question, clock):
                continue
            if rule.kind == "must_refuse":
                if answer.strip() and not self.refusals.flags([asked], [answer])[0]:
                    yield Graded(0, len(answer), rule.name, rule.severity)
                continue
            spans = [span for pattern in rule.patterns for span in pattern.spans(read, clock)]
            if rule.kind != "must_cite":
                yield from (Graded(*span, rule.name, rule.severity) for span in spans)
            elif answer.strip() and not spans and not set(rule.patterns) & set(clock.ran_out):
                yield Graded(0, len(answer), rule.name, rule.severity)


@dataclass(frozen=True)
class _Rule:
    """One rule, its patterns compiled."""

    name: str
    kind: str
    patterns: list[Pattern]
    when: Pattern | None
    severity: float

    def holds(self, asked: str, question: Sequence[Reading], clock: Clock) -> bool:
        return self.when is None or bool(self.when.spans(question, clock)) or len(asked) > LONGEST_CHARS


_RULES = ("must_not_say", "pattern", "must_cite", "must_refuse")


def _rule(number: int, rule: Any) -> _Rule:
    kinds = [kind for kind in _RULES if isinstance(rule, Mapping) and kind in rule]
    known = isinstance(rule, Mapping) and set(rule) <= {"name", "when", "severity", *_RULES}
    if not known or len(kinds) != 1 or not rule.get("name"):
        wanted = f"a name, one of {', '.join(_RULES)}, and when or severity where needed"
        raise UsageError(f"rule {number} is {str(rule)[:80]!r}; wanted {wanted}")
    name, kind, severity, value = str(rule["name"]), kinds[0], rule.get("severity", 1.0), rule[kinds[0]]
    if type(severity) not in (int, float) or not 0 < severity <= 1:
        raise UsageError(f"the rule {name} has the severity {severity!r}; wanted a number above 0, 1 at most")
    listed = [value] if isinstance(value, str) else value
    if value is True and kind in ("must_cite", "must_refuse"):
        patterns = [WORDS["citation"]] if kind == "must_cite" else []
    elif (
        kind != "must_refuse"
        and isinstance(listed, list)
        and listed
        and all(isinstance(one, str) and one.strip() for one in listed)
    ):
        patterns = [_phrase(one) for one in listed] if kind == "must_not_say" else listed
    else:
        raise UsageError(
            f"the rule {name} has {kind}: {str(value)[:60]!r}; wanted texts" + " or true" * ("must_" in kind)
        )
    when = rule.get("when")
    named = None if when is None else Pattern(f"rule {name} (when)", when)
    return _Rule(name, kind, [Pattern(f"rule {name}", one) for one in patterns], named, float(severity))


def _phrase(text: str) -> str:
    return r"(?<!\w)" + r"\s+".join(map(regex.escape, text.split())) + r"(?!\w)"


# ---- the policy file


def _classifier(settings: Mapping[str, Any]) -> Any:
    from rmtrl.monitoring.classifier import Classifier

    return Classifier.from_pretrained(settings["model"], str(settings["label"]))


KINDS: dict[str, tuple[Callable[[Mapping[str, Any]], Scorer], tuple[str, ...]]] = {
    "secrets": (lambda settings: Secrets(), ()),
    "personal data": (lambda settings: PersonalData(), ()),
    "toxicity": (lambda own: _classifier(own) if own.get("model") else Toxicity(), ("model", "label")),
    "factuality": (lambda own: Factuality(_classifier(own) if own.get("model") else None), ("model", "label")),
    "refusals": (lambda settings: RefusalScorer(), ()),
    "rules": (lambda settings: PolicyRules(settings.get("rules", ())), ("rules",)),
    "classifier": (_classifier, ("model", "label")),
}
"""The kinds of guard a policy file knows: what makes one from its settings, and what these may be."""


@dataclass(frozen=True)
class Policy:
    """The guards of a policy file, by name, and the file's own form of them.

    Args:
        guards (`dict[str, Guard]`): In the order of the file.
        stored (`dict`): What the file holds.
    """

    guards: dict[str, Guard]
    stored: dict[str, Any] = field(repr=False)

    @classmethod
    def from_yaml(cls, text: str) -> Policy:
        """Returns the guards of a policy file's text, YAML or JSON.

        Raises:
            UsageError: If it is no policy, or a guard has a kind, setting, threshold or pattern that cannot be used.
            ModelError: If there is no classifier where one is named.

        Example:

        ```python
        >>> list(Policy.from_yaml("{schema: rmtrl/guard-policy/1, guards: {secrets: {}}}").guards)
        ['secrets']
        ```
        """
        try:
            stored = parsed_yaml(text)
        except DataError as error:
            raise UsageError(f"the policy {error}") from error
        if not isinstance(stored, dict) or stored.get("schema") != SCHEMA:
            raise UsageError(
                f"the policy does not say its form; add schema: {SCHEMA}, see examples/guardrails/policy.yaml"
            )
        guards, unknown = stored.get("guards"), sorted(map(str, set(stored) - {"schema", "guards"}))
        if unknown or not isinstance(guards, dict) or not guards:
            raise UsageError(f"the policy has {', '.join(unknown) or 'no guards'}; wanted schema and guards, by name")
        return cls({str(name): _guard(str(name), settings) for name, settings in guards.items()}, stored)

    def with_thresholds(self, fitted: Mapping[str, tuple[float, Any]]) -> Policy:
        """Returns the policy with other thresholds of some guards, each with the record of its fit."""
        guards, stored = dict(self.guards), dict(self.stored["guards"])
        for name, (threshold, record) in fitted.items():
            guards[name] = Guard(guards[name].scorer, threshold, name=name)
            given = stored[name] if isinstance(stored[name], dict) else {"kind": stored[name] or name}
            stored[name] = {**given, "threshold": threshold, "fit": record}
        return Policy(guards, {**self.stored, "guards": stored})


def _guard(name: str, settings: Any) -> Guard:
    settings = {} if settings is None else settings
    kind = settings.get("kind", name) if isinstance(settings, dict) else settings
    if not isinstance(kind, str) or kind not in KINDS:
        raise UsageError(f"the guard {name} is of the kind {str(kind)[:60]!r}; known are {', '.join(KINDS)}")
    make, names = KINDS[kind]
    unknown = sorted(map(str, set(settings) - {"kind", "threshold", "fit", *names}))
    lacks = [one for one in ("model", "label") if one in names and one not in settings]
    if unknown or lacks and (kind == "classifier" or len(lacks) == 1):
        said = f"has {', '.join(unknown)}" if unknown else f"lacks {', '.join(lacks)}"
        raise UsageError(f"the guard {name} {said}; wanted {', '.join([*names, 'threshold'])}")
    threshold = settings.get("threshold", DEFAULT_THRESHOLD)
    if type(threshold) not in (int, float):
        raise UsageError(f"the guard {name} has the threshold {threshold!r}; wanted a number")
    scorer = make(settings)
    most = max((rule.severity for rule in getattr(scorer, "rules", ())), default=1)
    if "fit" not in settings and not 0 <= threshold < most:
        wanted = f"wanted a number from 0 to below {most}, or it never or always finds something"
        raise UsageError(f"the guard {name} has the threshold {threshold}; {wanted}")
    return Guard(scorer, threshold, name=name)
