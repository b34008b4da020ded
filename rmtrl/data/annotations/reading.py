"""Reads judgments, ratings of single answers and votes between two, into tables; counts every line it cannot use.

One judgment a line. A rating is `{"item_id", "prompt_id", "annotator", "<criterion>": score, …}`, where every column
that holds numbers is a criterion, save those that tell of the judging (`seconds`, `duration`, `time`, `timestamp`,
`line`, `row`, `index`, `idx`, `confidence`, `version`), which are criteria only where asked for by name. A vote is
`{"prompt_id", "annotator", "a", "b", "choice"}` with `choice` one of "a", "b", "tie" and "abstain", or the id of one
of the two items; "A" and "B" are sides unless they are such an id. `a` is the side shown first. Both may carry
`domain`, `source`, `weight`, `prompt` and the texts (`response`, or `response_a` and `response_b`). A file may mix the
two. Lines of PandaLM's layout (`idx`, `instruction`, `input`, `response1`, `response2`, `annotator1` …) are as many
votes as they have annotators.
"""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rmtrl.data.layouts import COLUMNS
from rmtrl.data.loading import is_text, load_rows
from rmtrl.data.messages import read_messages, says
from rmtrl.data.normal_form import as_number, prompt_hash
from rmtrl.errors import DataError, UsageError, placed
from rmtrl.io import Row, read_rows, suffix_of
from rmtrl.types import Conversation

REASONS = (
    "broken_json", "unknown_form", "missing_field", "wrong_type", "unknown_choice", "same_item", "bad_weight",
    "non_numeric_score", "non_finite_score", "score_off_scale", "no_score", "abstention", "duplicate_judgment",
)  # fmt: skip
"""Why a judgment can be left out; the first fault found counts."""

Item = tuple[str, str]
"""An answer: its prompt's id and its own, so that ids like "a" may be used again under another prompt."""

CHOICES = ("a", "b", "tie")
ITEM = ["prompt_id", "item_id"]
PAIR = ["prompt_id", "a", "b"]
_RATER = [*ITEM, "annotator"]
_VOTE = [*PAIR, "annotator", "choice", "weight", "swapped"]
_NOT_CRITERIA = {"id", *ITEM, "annotator", "domain", "source", "prompt", "response", "weight"}
_ASIDE = set(COLUMNS["judging"])
_PANDALM = {"instruction", "response1", "response2"}
_ANSWERS = ("response1", "response2", "response_a", "response_b")
_TEXT_CELLS = {*_NOT_CRITERIA - {"weight"}, *_ANSWERS, "idx", "a", "b", "choice", "instruction", "input"}


@dataclass(frozen=True)
class Annotations:
    """All judgments of some files; equal for every order of the lines, where these do not contradict each other.

    Args:
        ratings (`DataFrame`): One row a rating, sorted by item and annotator: `prompt_id`, `item_id`, `annotator`,
            `weight` (1 where none is given) and, under the name of each criterion, its score or NaN.
        votes (`DataFrame`): One row a vote, sorted by pair and annotator: `prompt_id`, the item ids `a` and `b` (`a`
            sorts first, whatever was shown first), `annotator`, `choice` (0 for `a`, 1 for `b`, 2 for a tie), `points`
            (what that is to `a`: 1, 0, ½), `weight`, `swapped` (`b` was shown first) and `pair`, the pair's number.
        criteria (`tuple[str, ...]`): Names of the criteria, sorted.
        items (`tuple[Item, ...]`): Prompt id and item id of every item, sorted.
        annotators (`tuple[str, ...]`): Names of the annotators, sorted.
        domains (`dict[str, str]`): Domain by prompt id, "unknown" where no line gives one.
        sources (`dict[str, str]`): Source by prompt id, the first by name of several; the file's name where no line
            gives one.
        prompts (`dict[str, Conversation]`): Text by prompt id, where a line has it.
        responses (`dict[Item, Conversation]`): Text by item, where a line has it.
        n (`int`): Judgments read, always `kept + rejected`.
        reasons (`dict[str, int]`): Judgments left out by reason; every reason of `REASONS` is present.
        rejects (`tuple[dict, ...]`): `file`, `row`, `reason` and `line` of each judgment left out.
        conflicts (`int`): Lines whose domain or text differs from what an earlier line gave.
        likert (`tuple[float, float]`): Ends of the rating scale.
    """

    ratings: pd.DataFrame
    votes: pd.DataFrame
    criteria: tuple[str, ...]
    items: tuple[Item, ...]
    annotators: tuple[str, ...]
    domains: dict[str, str]
    sources: dict[str, str]
    prompts: dict[str, Conversation]
    responses: dict[Item, Conversation]
    n: int
    reasons: dict[str, int]
    rejects: tuple[dict[str, Any], ...]
    conflicts: int
    likert: tuple[float, float]

    @property
    def rejected(self) -> int:
        """Judgments left out."""
        return len(self.rejects)

    @property
    def kept(self) -> int:
        """Judgments in use."""
        return self.n - self.rejected

    @property
    def warnings(self) -> list[str]:
        """A line where lines contradict each other."""
        said = f"{self.conflicts:,} lines give another domain or text than an earlier line; the first counts"
        return [said] if self.conflicts else []

    def as_dict(self) -> dict[str, Any]:
        """Returns the counts as a plain dictionary, ready for JSON."""
        sizes = {name: len(getattr(self, name)) for name in ("ratings", "votes", "items")}
        return {
            "n": self.n, "kept": self.kept, "rejected": self.rejected, "reasons": self.reasons, **sizes,
            "pairs": self.votes.pair.nunique(), "annotators": len(self.annotators), "criteria": list(self.criteria),
            "conflicts": self.conflicts,
        }  # fmt: skip


def judgments_per_item(annotations: Annotations) -> list[int]:
    """Returns how many annotators rated each item; of votes alone, how many judged each pair."""
    if len(annotations.ratings):
        return list(annotations.ratings.groupby(ITEM).annotator.nunique())
    return list(annotations.votes.pair.value_counts())


def read_annotations(
    paths: Sequence[str | Path], *, likert: tuple[float, float] = (1.0, 5.0), criteria: Sequence[str] | None = None
) -> Annotations:
    """Returns the judgments of one or several files.

    A faulty line stops nothing: it is counted under its reason and kept in `rejects`. Of a repeated judgment (same
    annotator, same pair, or same item and criterion) the first counts. Several lines may rate different criteria of
    one item.

    Args:
        paths (`Sequence[str | Path]`): Files: jsonl, json, csv or parquet, each also .gz.
        likert (`tuple[float, float]`): Ends of the rating scale; scores outside are left out.
        criteria (`Sequence[str]`, *optional*): Columns that are criteria, and no others. When absent, every column
            that holds numbers, save those named at the head of this module.

    Raises:
        DataError: If a file is missing, unreadable or empty.
        UsageError: If the scale is empty or a criterion has no ratings.

    Example:

    ```python
    >>> annotations = read_annotations(["examples/annotations.jsonl"])
    >>> annotations.kept, annotations.criteria
    (30, ('factuality', 'usefulness'))
    ```
    """
    low, high = likert
    if not -math.inf < low < high < math.inf:
        raise UsageError(f"the rating scale is {low:g} to {high:g}; wanted two numbers, the lower one first")
    reader = _Reader()
    for path in map(Path, paths):
        number = 0
        for number, row in enumerate(_rows(path), 1):
            for judgment in _judgments(row):
                reader.read(judgment, {"file": path.name, "row": number, "line": row})
        if not number:
            raise DataError(f"{path} is empty; wanted one judgment a line")
    return reader.annotations(likert, criteria)


def _rows(path: Path) -> Iterator[Row | str]:
    """Yields the rows of a file, or what is wrong with one; a table has numbers where the text of a cell is one."""
    if not path.exists():
        raise DataError(f"no such file: {path}; give a file of judgments, jsonl, json, csv or parquet")
    rows = (row for _, row in read_rows([path])) if path.is_file() and is_text(path) else iter(load_rows(path))
    return rows if suffix_of(path) in (".jsonl", ".ndjson", ".json") else map(_filled, rows)


def _filled(row: Row | str) -> Row | str:
    if isinstance(row, str):
        return row
    # an empty cell is no value, but an empty answer beside another one was judged
    answers = _ANSWERS if any(row.get(name) for name in _ANSWERS) else ()
    return {name: _cell(name, cell) for name, cell in row.items() if cell not in (None, "") or name in answers}


def _cell(name: str, value: Any) -> Any:
    if isinstance(value, str) and name not in _TEXT_CELLS and re.fullmatch(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", value):
        return int(value) if value.isdecimal() and len(value) < 19 else float(value)
    return value


class _Fault(Exception):
    """A judgment that cannot be used; the argument is a reason of `REASONS`."""


Fact = tuple[str, Any, Any]
"""Kind, id of the prompt or item, and what a line says of it."""


@dataclass
class _Reader:
    """Gathers judgments one by one; whether a rating is sound shows at the end, when the criteria are known."""

    conflicts: int = 0
    rejects: list[Row] = field(default_factory=list)
    ratings: list[tuple[Row, Row, Row]] = field(default_factory=list)  # who rated what, all scores, where it stood
    votes: dict[tuple[str, ...], tuple[int, float, bool]] = field(default_factory=dict)
    facts: dict[str, dict[Any, Any]] = field(default_factory=lambda: defaultdict(dict))  # of a prompt or item, by kind

    def read(self, judgment: Row | str, line: Row) -> None:
        """Takes one judgment; `line` is where it stands."""
        try:
            if isinstance(judgment, str):
                raise _Fault("broken_json")
            if "choice" in judgment or {"a", "b"} <= set(judgment):
                self._vote(judgment, line)
            elif "item_id" in judgment:
                self._rating(judgment, line)
            else:
                raise _Fault("unknown_form")
        except _Fault as fault:
            self._reject(line, str(fault))
        except DataError:  # of a text
            self._reject(line, "wrong_type")

    def _reject(self, line: Row, reason: str) -> None:
        row = line["line"]
        text = row if isinstance(row, str) else json.dumps(row, ensure_ascii=False, default=str)
        self.rejects.append({"file": line["file"], "row": line["row"], "reason": reason, "line": text})

    def _vote(self, row: Row, line: Row) -> None:
        prompt_id, annotator, a, b = (_id(row.get(name)) for name in ("prompt_id", "annotator", "a", "b"))
        weight, choice = _weight(row), _choice(row.get("choice"), a, b)
        if a == b:
            raise _Fault("same_item")
        facts = _facts(row, prompt_id, {a: row.get("response_a"), b: row.get("response_b")})
        key = (prompt_id, min(a, b), max(a, b), annotator)
        if key in self.votes:
            raise _Fault("duplicate_judgment")
        self.votes[key] = (choice if a < b or choice == 2 else 1 - choice, weight, a > b)
        self._remember(prompt_id, facts, row.get("source"), line)

    def _rating(self, row: Row, line: Row) -> None:
        rating: Row = {name: _id(row.get(name)) for name in _RATER} | {"weight": _weight(row)}
        facts = _facts(row, rating["prompt_id"], {rating["item_id"]: row.get("response")})
        scores = {name: score for name, score in row.items() if name not in _NOT_CRITERIA and score is not None}
        self.ratings.append((rating, scores, line))
        self._remember(rating["prompt_id"], facts, row.get("source"), line)

    def _remember(self, prompt_id: str, facts: Iterable[Fact], source: Any, line: Row) -> None:
        """Keeps the first domain and texts, and of the sources, which may be several, the first by name."""
        self.facts["file"].setdefault(prompt_id, line["file"])
        if source not in (None, ""):
            self.facts["source"][prompt_id] = min(str(source), self.facts["source"].get(prompt_id, str(source)))
        self.conflicts += any([self.facts[kind].setdefault(key, fact) != fact for kind, key, fact in facts])

    def annotations(self, likert: tuple[float, float], wanted: Sequence[str] | None) -> Annotations:
        """Returns all that was read, as tables."""
        sound = self._sound_ratings(likert, wanted)
        criteria = sorted({name for _, scores in sound for name in scores})
        ratings = pd.DataFrame([who | scores for who, scores in sound], columns=[*_RATER, "weight", *criteria])
        votes = pd.DataFrame([(*key, *vote) for key, vote in sorted(self.votes.items())], columns=_VOTE)
        votes = votes.astype({"choice": int, "weight": float, "swapped": bool})
        votes = votes.assign(pair=votes.groupby(PAIR).ngroup(), points=votes.choice.map({0: 1.0, 1: 0.0, 2: 0.5}))
        sides = [(prompt_id, side) for prompt_id, *pair, _ in self.votes for side in pair]
        items = sorted({*zip(ratings.prompt_id, ratings.item_id, strict=True), *sides})
        reasons = Counter(reject["reason"] for reject in self.rejects)
        prompt_ids = dict.fromkeys(prompt_id for prompt_id, _ in items)
        domains, sources = self.facts["domain"], self.facts["file"] | self.facts["source"]
        return Annotations(
            ratings=ratings.astype(dict.fromkeys(("weight", *criteria), float)),
            votes=votes,
            criteria=tuple(criteria),
            items=tuple(items),
            annotators=tuple(sorted({*ratings.annotator, *votes.annotator})),
            domains={prompt_id: domains.get(prompt_id, "unknown") for prompt_id in prompt_ids},
            sources={prompt_id: sources[prompt_id] for prompt_id in prompt_ids},
            prompts=self.facts["prompt"],
            responses=self.facts["response"],
            n=len(ratings) + len(votes) + len(self.rejects),
            reasons={reason: reasons[reason] for reason in REASONS},
            rejects=tuple(self.rejects),
            conflicts=self.conflicts,
            likert=likert,
        )

    def _sound_ratings(self, likert: tuple[float, float], wanted: Sequence[str] | None) -> list[tuple[Row, Row]]:
        """Returns the usable ratings, sorted. A column is a criterion if any rating has a number there."""
        rated = {name for _, scores, _ in self.ratings for name, score in scores.items() if _number(score) is not None}
        if unknown := [name for name in wanted or () if name not in rated]:
            found = ", ".join(sorted(rated)) or "none"
            raise UsageError(f"no ratings of {', '.join(unknown)}; columns with numbers are {found}")
        criteria = rated - _ASIDE if wanted is None else set(wanted)
        sound: dict[tuple[Any, ...], tuple[Row, Row]] = {}
        seen: set[tuple[Any, ...]] = set()
        for rating, given, line in self.ratings:
            who = tuple(rating[name] for name in _RATER)
            scores = {name: score for name, score in given.items() if name in criteria}
            judged = {(*who, name) for name in scores}
            if reason := _score_fault(scores, likert) or ("duplicate_judgment" if judged & seen else None):
                self._reject(line, reason)
                continue
            seen |= judged
            sound[(*who, *sorted(scores))] = rating, scores
        return [sound[key] for key in sorted(sound)]


def _facts(row: Row, prompt_id: str, responses: Mapping[str, Any]) -> list[Fact]:
    """Returns what a row says of its prompt and items."""
    domain = None if row.get("domain") in (None, "") else str(row["domain"])
    facts: list[Fact] = [("domain", prompt_id, domain), ("prompt", prompt_id, as_text(row.get("prompt")))]
    facts += [("response", (prompt_id, item_id), as_text(text)) for item_id, text in responses.items()]
    return [fact for fact in facts if fact[2] is not None]


def _score_fault(scores: Row, likert: tuple[float, float]) -> str | None:
    if not scores:
        return "no_score"
    numbers = [number for number in map(_number, scores.values()) if number is not None]
    if len(numbers) < len(scores):
        return "non_numeric_score"
    if not np.isfinite(numbers).all():
        return "non_finite_score"
    return None if likert[0] <= min(numbers) and max(numbers) <= likert[1] else "score_off_scale"


def _judgments(row: Row | str) -> Sequence[Row | str]:
    """Returns the row; of PandaLM's layout a vote an annotator, and where there is none, a vote without a choice."""
    if isinstance(row, str) or not set(row) >= _PANDALM:
        return [row]
    prompt, idx = "\n\n".join(str(row[name]) for name in ("instruction", "input") if row.get(name)), row.get("idx")
    shared = {name: row.get(name) for name in ("domain", "source", "weight")} | {
        "prompt": prompt, "prompt_id": row.get("prompt_id") or prompt_hash(prompt), "choice": None,
        "a": None if idx is None else f"{idx}-1", "response_a": row["response1"],
        "b": None if idx is None else f"{idx}-2", "response_b": row["response2"],
    }  # fmt: skip
    choices = {"0": "tie", "1": "a", "2": "b"}
    annotators = [name for name in row if re.fullmatch(r"annotator\d+", name)]
    votes = [{"annotator": name, "choice": choices.get(str(row[name]), row[name])} for name in annotators]
    return [shared | vote for vote in votes or [{}]]


def _choice(choice: Any, a: str, b: str) -> int:
    """Returns the number of the choice. The documented words come first, so that items may be called "a" and "b"."""
    if choice is None or choice == "":
        raise _Fault("missing_field")
    if isinstance(choice, str) and choice not in (*CHOICES, "abstain"):
        choice = {a: "a", b: "b"}.get(choice) or choice.strip().lower()
    if choice == "abstain":
        raise _Fault("abstention")
    if choice not in CHOICES:
        raise _Fault("unknown_choice")
    return CHOICES.index(choice)


def _id(value: Any) -> str:
    if value is None or value == "":
        raise _Fault("missing_field")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _Fault("wrong_type")
    return str(value)


def _weight(row: Row) -> float:
    weight = 1.0 if row.get("weight") is None else _number(row["weight"])
    if weight is None or not 0 < weight < math.inf:
        raise _Fault("bad_weight")
    return weight


def _number(value: Any) -> float | None:
    """Returns a number as a float, infinite where it is beyond those, and None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return as_number("the score", value) if is_number else None


# ---- texts


def as_text(value: Any) -> Conversation | None:
    """Returns a text or message list as it is, and a number or truth value as its text: "4" and "True" are answers.

    Raises:
        DataError: If it is anything else, or a message has neither content nor calls.

    Example:

    ```python
    >>> as_text(4)
    '4'
    ```
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return str(value)
    messages = read_messages("text", value)
    if not messages or not all(message.get("role") and says(message) for message in messages):
        raise DataError(f"got {str(value)[:40]!r}; wanted text or a list of messages with role and content")
    return messages


def with_texts(annotations: Annotations, *, prompts: Iterable[Any] = (), responses: Iterable[Any] = ()) -> Annotations:
    """Returns the annotations with texts, domains and sources where they lack them.

    Args:
        annotations ([`Annotations`]): The judgments.
        prompts (`Dataset` or `Iterable[dict]`): Rows of `prompt_id`, `prompt` and perhaps `domain` and `source`.
        responses (`Dataset` or `Iterable[dict]`): Rows of `item_id`, `prompt_id` and `response`.

    Raises:
        DataError: If a row lacks one of these, or its text is neither text nor a list of messages.

    Example:

    ```python
    >>> annotations = with_texts(annotations, prompts=load_rows("prompts.jsonl"))
    ```
    """
    texts, answers = dict(annotations.prompts), dict(annotations.responses)
    domains, sources = dict(annotations.domains), dict(annotations.sources)
    for row, text in _texts("prompts", prompts, ["prompt_id", "prompt"]):
        prompt_id = str(row["prompt_id"])
        texts.setdefault(prompt_id, text)
        if domains.get(prompt_id) == "unknown":
            domains[prompt_id] = str(row.get("domain") or "unknown")
        if prompt_id in sources:
            sources[prompt_id] = str(row.get("source") or sources[prompt_id])
    for row, text in _texts("responses", responses, ["item_id", "prompt_id", "response"]):
        answers.setdefault((str(row["prompt_id"]), str(row["item_id"])), text)
    return replace(annotations, prompts=texts, responses=answers, domains=domains, sources=sources)


def _texts(kind: str, rows: Iterable[Any], needed: list[str]) -> Iterator[tuple[Row, Any]]:
    """Yields each row and its text, which stands in the last of the columns it needs."""
    for number, row in enumerate(rows, 1):
        if missing := [name for name in needed if row.get(name) is None]:
            raise DataError(
                f"row {number} of the {kind} has no {', '.join(missing)}; wanted {', '.join(needed)} in every row"
            )
        with placed(f"row {number} of the {kind}"):
            text = as_text(row[needed[-1]])
        yield row, text
