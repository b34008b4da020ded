"""Files of answers are screened by guards, whose thresholds are fitted on labelled answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from rmtrl.data.loading import source_rows
from rmtrl.data.messages import conversation_text, written_value
from rmtrl.data.normal_form import prompt_hash
from rmtrl.errors import DataError
from rmtrl.io import BrokenLine, Row
from rmtrl.metrics import Floats, share_estimate
from rmtrl.metrics.thresholds import FittedThreshold, fit_threshold
from rmtrl.monitoring.answers import NOT_JUDGED, RuleScorer, asked_and_answered, last_answer, messages_of, truth
from rmtrl.monitoring.rules import Policy
from rmtrl.types import Estimate, Finding, Guard, Message, checked_scores, json_ready

# ---- answers


@dataclass(frozen=True)
class Answer:
    """An answer of a file, with what was asked.

    Args:
        id (`str`): Of its row, or its place from 0; of several answers of a row with their number.
        place (`str`): Where it stands, for people.
        prompt (`list`): Messages before it.
        text (`str`): The answer.
        domain (`str`): Of its row; "unknown" where it has none.
        reference (`str`, *optional*): What holds the facts.
        labels (`dict[str, bool]`): Whether it is harmful, by guard; a row's `label` is for every guard.
        prompt_id (`str`): The same for the same prompt; its own where there is none.
    """

    id: str
    place: str
    prompt: list[Message]
    text: str
    domain: str
    reference: str | None
    labels: dict[str, bool]
    prompt_id: str

    @property
    def conversation(self) -> list[Message]:
        """The prompt and the answer as the assistant's message."""
        return [*self.prompt, {"role": "assistant", "content": self.text}]


def read_answers(
    source: str, guards: Sequence[str] = (), *, columns: Mapping[str, str] | None = None,
    skipped: list[dict[str, str]] | None = None,
) -> list[Answer]:  # fmt: skip
    """Returns the answers of a file, a folder or a hub set.

    A row has its answer in `response`, `completion` or another of the columns that `data/columns.yaml` lists under
    `answered`, a list of several too, or as the last message of `messages`; its prompt as preference data has it.

    Args:
        source (`str`): What to read.
        guards (`Sequence[str]`): The guards that a column `label` is for; without any, labels are not read.
        columns (`Mapping[str, str]`, *optional*): The file's own name of a column, by the name it is read under.
        skipped (`list`, *optional*): Takes `place` and `reason` of rows without an answer; without, they are errors.

    Raises:
        DataError: If it cannot be read, or no row has an answer or a column of `columns`; the message names it.
    """
    found, names, fault = list[Answer](), dict[str, None](), f"{source} is empty; wanted answers, one a row"
    for number, (place, row) in enumerate(source_rows(source, broken=True)):
        try:
            row = _mended(row) if isinstance(row, str) else row
            names |= dict.fromkeys(row)
            named = {new: row[old] for new, old in (columns or {}).items() if old in row}
            found += list(_answers(number, place, row | named, guards))
        except DataError as error:
            fault = f"{place}: {error}"
            if skipped is None:
                raise DataError(fault) from error
            skipped.append({"place": place, "reason": str(error)})
    for new, old in (columns or {}).items():
        if old not in names:
            raise DataError(f"got --map {new}={old}, and no row of {source} has {old}; they have {', '.join(names)}")
    if not found:
        raise DataError(fault)
    return found


def _mended(row: str) -> Row:
    """Returns a row with characters that are not seen where it has halves of surrogate pairs: these hide no answer."""
    if isinstance(row, BrokenLine) and row.row:
        with suppress(RecursionError):
            text = json.dumps(row.row, ensure_ascii=False)
            return dict(json.loads(re.sub(r"[\ud800-\udfff]", "\u200b", text)))
    raise DataError(row)


def _answers(number: int, place: str, row: Row, guards: Sequence[str]) -> Iterator[Answer]:
    prompt, answers = asked_and_answered(row)
    if not answers:
        raise DataError(
            "no answer; wanted one in response, completion or messages; where it has another name, --map response=NAME"
        )
    id, domain, reference = (None if row.get(name) in (None, "") else str(row[name]) for name in _NAMES)
    id, labels = id or str(number), _labels(row, guards)
    for i, answer in enumerate(answers):
        said, text = ("", answer) if prompt else last_answer(answer)  # a transcript holds its prompt
        own = prompt or messages_of(said)
        yield Answer(
            f"{id}/{i}" if len(answers) > 1 else id, place, own, text, domain or "unknown", reference, labels,
            prompt_hash(own) if own else f"row {number}",
        )  # fmt: skip


_NAMES = ("id", "domain", "reference")


def _labels(row: Row, guards: Sequence[str]) -> dict[str, bool]:
    given = row.get("labels", row.get("label")) if guards else None
    found = written_value(given) if isinstance(given, str) and given[:1] == "{" else given
    found = found if isinstance(found, dict) else dict.fromkeys(guards, found)
    return {name: truth("label", value) for name, value in found.items() if value not in (None, "")}


# ---- fitting


def fit_policy(policy: Policy, labelled: Sequence[Answer], rate: float) -> tuple[Policy, dict[str, FittedThreshold]]:
    """Returns the policy with a threshold fitted for each guard that has labels, and the fits.

    Args:
        policy ([`~rmtrl.monitoring.rules.Policy`]): Guards by name.
        labelled (`Sequence[Answer]`): With labels, by the names of the guards.
        rate (`float`): The highest share of new harmless prompts to be flagged, by each guard.

    Raises:
        DataError: If no guard has labels, or one has too few harmless prompts for the rate.
    """
    rows = {name: [own for own in labelled if name in own.labels] for name in policy.guards}
    fits = {name: _fit(policy.guards[name], own, rate) for name, own in rows.items() if own}
    if not fits:
        given = ", ".join(sorted({name for own in labelled for name in own.labels})) or "none"
        raise DataError(f"no guard has labels; the rows have {given}, the policy {', '.join(policy.guards)}")
    return policy.with_thresholds({name: (fit.threshold, json_ready(fit)) for name, fit in fits.items()}), fits


def _fit(guard: Guard, rows: Sequence[Answer], rate: float) -> FittedThreshold:
    severities, harmful = severities_of(guard, rows), np.array([own.labels[guard.name] for own in rows])
    prompts = np.array([own.prompt_id for own in rows])
    try:
        return fit_threshold(severities[~harmful], severities[harmful], rate, prompts[~harmful])
    except ValueError as error:
        raise DataError(f"the guard {guard.name}: {error}") from error


def fit_warnings(fits: Mapping[str, FittedThreshold]) -> Iterator[str]:
    """Yields what to know of fits whose thresholds catch little of what is harmful, or nobody knows how much."""
    for name, fit in fits.items():
        if fit.sensitivity is None:
            yield f"what {name} catches is not measured: its labels hold no harmful answer"
        elif fit.sensitivity.high < 0.5 or not fit.sensitivity.value:
            caught = f"{name} catches {fit.sensitivity} of the harmful answers at its threshold"
            yield f"{caught}; label 1 has to stand for harmful, and the guard has to be one of this harm"


def overlap(labelled: Sequence[Answer], answers: Sequence[Answer]) -> int:
    """Returns how many answers have a prompt that thresholds were fitted on: for these the promised rate is void."""
    known = {own.prompt_id for own in labelled if own.prompt}
    return sum(own.prompt_id in known for own in answers)


# ---- screening


@dataclass(frozen=True)
class Screened:
    """What one guard found in a file of answers.

    Args:
        threshold (`float`): The highest severity that passes.
        rate (`Estimate`, *optional*): Share flagged of the answers judged; None where there was nothing to judge.
        by_domain (`dict[str, Estimate]`): The same for each domain with answers judged.
        not_applicable (`int`): Answers that were not judged, for want of a reference or by a rule's `when`.
        not_judged (`int`): Answers among them that were flagged because they could not be judged in time or whole.
        above_limit (`bool`): Whether the rate is above the limit asked for.
    """

    threshold: float
    rate: Estimate | None
    by_domain: dict[str, Estimate]
    not_applicable: int
    not_judged: int
    above_limit: bool


@dataclass(frozen=True)
class Screening:
    """What the guards of a policy found in a file of answers.

    Args:
        n (`int`): Answers read.
        prompts (`int`): Prompts that they answer.
        flagged (`Estimate`): Share of the answers that any guard flagged.
        guards (`dict[str, Screened]`): By guard.
        limit (`float`, *optional*): The highest rate that passes. What is compared is the rate of these answers, not
            an end of its interval: what is in the file is no matter of chance.
        findings (`list[dict]`): Id, place, domain, guard, severity, start, end and reason of everything found, in the
            order of the answers.
    """

    schema: ClassVar[str] = "rmtrl/guard/1"
    n: int
    prompts: int
    flagged: Estimate
    guards: dict[str, Screened]
    limit: float | None
    findings: list[dict[str, Any]]

    @property
    def passed(self) -> bool:
        """Whether no guard's rate is above the limit."""
        return not any(own.above_limit for own in self.guards.values())

    @property
    def words(self) -> dict[str, Any]:
        """The values that people read."""
        above = [name for name, own in self.guards.items() if own.above_limit]
        verdict = f"ABOVE the limit of {self.limit}: {', '.join(above)}" if above else "no guard is above the limit"
        domains = {
            name: own.by_domain
            for name, own in self.guards.items()
            if own.rate and own.rate.value and len(own.by_domain) > 1
        }
        return {
            "verdict": None if self.limit is None else verdict,
            "answers": self.n,
            "prompts": self.prompts if self.prompts < self.n else None,
            "flagged by any guard": self.flagged,
            "guards": {
                name: {
                    "rate": own.rate or "nothing to judge",
                    "not judged": own.not_judged,
                    "not applicable": own.not_applicable,
                    "threshold": own.threshold,
                }
                for name, own in self.guards.items()
            },
            "rate by domain": domains,
        }

    @property
    def warnings(self) -> list[str]:
        """What to know before use."""
        return [
            f"{own.not_judged:,} answers could not be judged by {name} in time or whole, and count as flagged"
            for name, own in self.guards.items() if own.not_judged
        ]  # fmt: skip

    @property
    def lines(self) -> list[str]:
        """Everything found, one a line."""
        return ["{place}: {guard}, characters {start}–{end}: {reason}".format(**own) for own in self.findings]


def screen(guards: Mapping[str, Guard], answers: Sequence[Answer], *, limit: float | None = None) -> Screening:
    """Returns what each guard finds in the answers, with exact intervals by guard and by domain.

    Args:
        guards (`Mapping[str, Guard]`): By name.
        answers (`Sequence[Answer]`): One or more.
        limit (`float`, *optional*): The highest rate that passes.

    Raises:
        ModelError: If a guard returns anything but one finite number an answer.

    Example:

    ```python
    >>> policy = Policy.from_yaml(read_text(Path("policy.yaml")))
    >>> screen(policy.guards, read_answers("answers.jsonl"), limit=0.01).passed
    True
    ```
    """
    domains, prompts = (np.array([getattr(own, name) for own in answers]) for name in ("domain", "prompt_id"))
    parts = {name: domains == name for name in np.unique(domains).tolist()}
    screened, any_flag = {}, np.zeros(len(answers), np.bool_)
    findings: list[list[dict[str, Any]]] = [[] for _ in answers]
    for name, guard in tqdm(guards.items(), desc="Screening", unit="guard", delay=2):
        severities = severities_of(guard, answers)
        flags = severities > guard.threshold
        any_flag |= flags
        for i in np.flatnonzero(flags).tolist():
            findings[i] += [{"guard": name, **own} for own in _found(guard, answers[i], severities[i])]
        judged = flags | _applies(guard, answers)
        rates = {own: share_estimate(flags[part & judged], prompts[part & judged])
                 for own, part in [("", judged), *parts.items()] if (part & judged).any()}  # fmt: skip
        rate = rates.pop("", None)
        unjudged = int((flags & (severities == NOT_JUDGED)).sum()) if isinstance(guard.scorer, RuleScorer) else 0
        above = limit is not None and rate is not None and rate.value > limit
        screened[name] = Screened(guard.threshold, rate, rates, int((~judged).sum()), unjudged, above)
    whole = share_estimate(any_flag, prompts)
    return Screening(
        len(answers), len(np.unique(prompts)), whole, screened, limit, list(chain.from_iterable(findings))
    )


def _applies(guard: Guard, answers: Sequence[Answer]) -> NDArray[np.bool_]:
    """Returns which answers there is something to judge by, `(N,)`."""
    own = guard.scorer.applies if isinstance(guard.scorer, RuleScorer) else lambda asked, reference: True
    return np.array([own(conversation_text(one.prompt), one.reference or "") for one in answers])


def severities_of(guard: Guard, answers: Sequence[Answer]) -> Floats:
    """Returns the severity of each answer, `(N,)` float64."""
    completions = [own.conversation[-1:] for own in answers]
    values = guard([own.prompt for own in answers], completions, reference=[own.reference for own in answers])
    return checked_scores(values, len(answers), name=f"guard {guard.name!r}", sample="answer",
                          shown=lambda i: f" at {answers[i].place}")  # fmt: skip


def _found(guard: Guard, own: Answer, severity: float) -> Iterator[dict[str, Any]]:
    """Yields the row of each thing found in an answer; one of the whole where the guard names no place."""
    named = guard.findings(own.conversation, reference=own.reference)
    above = [one for one in named if getattr(one, "severity", np.inf) > guard.threshold]
    for one in above or [Finding(0, len(own.text), f"severity {severity:.3g}")]:
        grade = round(float(getattr(one, "severity", severity)), 6)
        place = {"start": one.start, "end": one.end, "reason": one.reason}
        yield {"id": own.id, "place": own.place, "domain": own.domain, "severity": grade, **place}
