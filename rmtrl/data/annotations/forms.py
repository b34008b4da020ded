"""Reads judgments, ratings of single answers and votes between two, into columns; counts every line it cannot use.

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
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rmtrl.data.annotations.tables import Annotations, Item, Rating, rating_columns, vote_columns
from rmtrl.data.annotations.texts import as_text
from rmtrl.data.reading.loading import is_text, load_rows
from rmtrl.data.reading.normal_form import prompt_hash
from rmtrl.errors import DataError, UsageError
from rmtrl.io import Row, read_rows, suffix_of
from rmtrl.types import Conversation

REASONS = (
    "broken_json",
    "unknown_form",
    "missing_field",
    "wrong_type",
    "unknown_choice",
    "same_item",
    "bad_weight",
    "non_numeric_score",
    "non_finite_score",
    "score_off_scale",
    "no_score",
    "abstention",
    "duplicate_judgment",
)
"""Why a judgment can be left out; the first fault found counts."""

Where = tuple[str, int, Row | str]
"""File, number and content of a row; of a broken one, what is wrong with it."""

CHOICES = ("a", "b", "tie")
_NOT_CRITERIA = {"id", "item_id", "prompt_id", "annotator", "domain", "source", "prompt", "response", "weight"}
_ASIDE = {"seconds", "duration", "time", "timestamp", "line", "row", "index", "idx", "confidence", "version"}
_PANDALM = {"instruction", "response1", "response2"}
_ANSWERS = ("response1", "response2", "response_a", "response_b")
_TEXT_CELLS = {"id", "idx", "item_id", "prompt_id", "annotator", "domain", "source", "a", "b", "choice", "prompt",
               "instruction", "input", "response", "response_a", "response_b", "response1", "response2"}  # fmt: skip


def read_annotations(
    paths: Sequence[str | Path],
    *,
    likert: tuple[float, float] = (1.0, 5.0),
    criteria: Sequence[str] | None = None,
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
    >>> annotations.kept, annotations.ratings.criteria
    (30, ('factuality', 'usefulness'))
    ```
    """
    if not (math.isfinite(likert[0]) and math.isfinite(likert[1]) and likert[0] < likert[1]):
        raise UsageError(
            f"the rating scale is {likert[0]:g} to {likert[1]:g}; wanted two numbers, the lower one first"
        )
    reader = _Reader(likert, criteria)
    for path in map(Path, paths):
        number = 0
        for number, row in enumerate(_rows(path), 1):
            reader.read(path.name, number, row)
        if not number:
            raise DataError(f"{path} is empty; wanted one judgment a line")
    return reader.annotations()


def _rows(path: Path) -> Iterator[Row | str]:
    """Yields the rows of a file, or what is wrong with one; a table has numbers where the text of a cell is one."""
    if path.is_file() and suffix_of(path) in (".jsonl", ".ndjson", ".json"):
        yield from (row for _, row in read_rows([path]))
        return
    table = (row for _, row in read_rows([path])) if path.is_file() and is_text(path) else load_rows(path)
    for row in table:
        if isinstance(row, str):
            yield row
            continue
        # an empty cell is no value, but an empty answer beside another one was judged
        answers = _ANSWERS if any(row.get(name) for name in _ANSWERS) else ()
        filled = {name: value for name, value in row.items() if value not in (None, "") or name in answers}
        yield {name: _cell(name, value) for name, value in filled.items()}


def _cell(name: str, value: Any) -> Any:
    if isinstance(value, str) and name not in _TEXT_CELLS and re.fullmatch(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", value):
        return int(value) if value.isdecimal() and len(value) < 19 else float(value)
    return value


class _Fault(Exception):
    """A judgment that cannot be used; the argument is a reason of `REASONS`."""


@dataclass
class _Reader:
    """Gathers judgments line by line; whether a rating is sound shows at the end, when the criteria are known."""

    likert: tuple[float, float]
    criteria: Sequence[str] | None = None
    n: int = 0
    rejects: list[dict[str, Any]] = field(default_factory=list)
    conflicts: int = 0
    ratings: list[Rating] = field(default_factory=list)
    origins: list[Where] = field(default_factory=list)
    votes: dict[tuple[str, str, str, str], tuple[int, float, bool]] = field(default_factory=dict)
    known: dict[str, dict[Any, Any]] = field(default_factory=lambda: {
        "domain": {}, "source": {}, "file": {}, "prompt": {}, "response": {}})  # fmt: skip

    def read(self, file: str, number: int, value: Row | str) -> None:
        where = (file, number, value)
        if isinstance(value, str):
            self._reject(where, "broken_json")
        elif set(value) >= _PANDALM:
            votes = _pandalm_votes(value)
            for vote in votes:
                self._try(self._vote, vote, where)
            if not votes:
                self._reject(where, "missing_field")
        elif "choice" in value or {"a", "b"} <= set(value):
            self._try(self._vote, value, where)
        elif "item_id" in value:
            self._try(self._rating, value, where)
        else:
            self._reject(where, "unknown_form")

    def _try(self, judgment: Any, value: Mapping[str, Any], where: Where) -> None:
        try:
            judgment(value, where)
            self.n += 1
        except _Fault as fault:
            self._reject(where, str(fault))

    def _reject(self, where: Where, reason: str, already_counted: bool = False) -> None:
        self.n += not already_counted
        file, number, value = where
        line = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        self.rejects.append({"file": file, "row": number, "reason": reason, "line": line})

    def _vote(self, value: Mapping[str, Any], where: Where) -> None:
        prompt_id, annotator, a, b = (_id(value.get(name)) for name in ("prompt_id", "annotator", "a", "b"))
        weight, choice = _weight(value), value.get("choice")
        if choice is None or choice == "":
            raise _Fault("missing_field")
        choice = _side(choice, a, b) if isinstance(choice, str) else choice
        if choice == "abstain":
            raise _Fault("abstention")
        if choice not in CHOICES:
            raise _Fault("unknown_choice")
        if a == b:
            raise _Fault("same_item")
        code = CHOICES.index(choice)
        key = (prompt_id, *sorted((a, b)), annotator)
        texts = {(prompt_id, a): _text(value, "response_a"), (prompt_id, b): _text(value, "response_b")}
        prompt = _text(value, "prompt")
        if key in self.votes:
            raise _Fault("duplicate_judgment")
        self.votes[key] = (code if a < b or code == 2 else 1 - code, weight, a > b)  # type: ignore[index]
        self._remember(value, prompt_id, prompt, texts, where[0])

    def _rating(self, value: Mapping[str, Any], where: Where) -> None:
        prompt_id, item_id, annotator = (_id(value.get(name)) for name in ("prompt_id", "item_id", "annotator"))
        weight, prompt, response = _weight(value), _text(value, "prompt"), _text(value, "response")
        scores = {name: score for name, score in value.items() if name not in _NOT_CRITERIA and score is not None}
        self.ratings.append(((prompt_id, item_id), annotator, weight, scores))
        self.origins.append(where)
        self._remember(value, prompt_id, prompt, {(prompt_id, item_id): response}, where[0])

    def _remember(
        self, value: Mapping[str, Any], prompt_id: str, prompt: Any, texts: Mapping[Item, Any], file: str
    ) -> None:
        facts: list[tuple[str, Any, Any]] = [
            ("domain", prompt_id, _name(value.get("domain"))),
            ("prompt", prompt_id, prompt),
            *(("response", item, text) for item, text in texts.items()),
        ]
        self.known["file"].setdefault(prompt_id, file)
        source = _name(value.get("source"))
        if source is not None:  # answers to one prompt may come from several sources
            self.known["source"][prompt_id] = min(source, self.known["source"].get(prompt_id, source))
        self.conflicts += any(
            fact is not None and self.known[kind].setdefault(key, fact) != fact for kind, key, fact in facts
        )

    def annotations(self) -> Annotations:
        ratings, criteria = self._sound_ratings()
        votes = sorted(self.votes.items())
        items = sorted({item for item, *_ in ratings} | {(key[0], side) for key, _ in votes for side in key[1:3]})
        annotators = sorted({annotator for _, annotator, *_ in ratings} | {key[3] for key, _ in votes})
        item_codes = {item: k for k, item in enumerate(items)}
        annotator_codes = {name: k for k, name in enumerate(annotators)}
        prompt_ids = dict.fromkeys(prompt_id for prompt_id, _ in items)
        reasons = Counter(reject["reason"] for reject in self.rejects)
        return Annotations(
            ratings=rating_columns(ratings, criteria, item_codes, annotator_codes),
            votes=vote_columns(votes, item_codes, annotator_codes),
            items=tuple(items),
            annotators=tuple(annotators),
            domains={prompt_id: self.known["domain"].get(prompt_id, "unknown") for prompt_id in prompt_ids},
            sources={p: self.known["source"].get(p, self.known["file"][p]) for p in prompt_ids},
            prompts=self.known["prompt"],
            responses=self.known["response"],
            n=self.n,
            reasons={reason: reasons[reason] for reason in REASONS},
            rejects=tuple(self.rejects),
            conflicts=self.conflicts,
            likert=self.likert,
        )

    def _sound_ratings(self) -> tuple[list[Rating], list[str]]:
        """Returns the ratings whose scores can be used. A column is a criterion if any rating has a number there."""
        rated = {name for *_, scores in self.ratings for name, score in scores.items() if _is_number(score)}
        if unknown := [name for name in self.criteria or () if name not in rated]:
            found = ", ".join(sorted(rated)) or "none"
            raise UsageError(f"no ratings of {', '.join(unknown)}; columns with numbers are {found}")
        criteria = rated - _ASIDE if self.criteria is None else set(self.criteria)
        seen: dict[tuple[Item, str], set[str]] = {}
        sound = []
        for (item, annotator, weight, scores), where in zip(self.ratings, self.origins, strict=True):
            scores = {name: score for name, score in scores.items() if name in criteria}
            before = seen.setdefault((item, annotator), set())
            reason = self._score_fault(scores) or ("duplicate_judgment" if before & scores.keys() else None)
            if reason:
                self._reject(where, reason, already_counted=True)
            else:
                before.update(scores)
                sound.append((item, annotator, weight, scores))
        used = {name for *_, scores in sound for name in scores}
        return sorted(sound, key=lambda rating: (*rating[:2], sorted(rating[3]))), sorted(used)

    def _score_fault(self, scores: Mapping[str, Any]) -> str | None:
        if not scores:
            return "no_score"
        if not all(_is_number(score) for score in scores.values()):
            return "non_numeric_score"
        if not all(_is_finite(score) for score in scores.values()):
            return "non_finite_score"
        return None if all(self.likert[0] <= s <= self.likert[1] for s in scores.values()) else "score_off_scale"


def _pandalm_votes(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns a vote an annotator of one line of PandaLM's layout; what is missing there is missing here too."""
    annotators = [name for name in row if re.fullmatch(r"annotator\d+", name)]
    prompt = "\n\n".join(str(row[name]) for name in ("instruction", "input") if row.get(name))
    shared = {name: row.get(name) for name in ("domain", "source", "weight")}
    shared |= {"prompt": prompt, "prompt_id": row.get("prompt_id") or prompt_hash(prompt)}
    idx = row.get("idx")
    if idx is not None:
        shared |= {"a": f"{idx}-1", "b": f"{idx}-2"}
    shared |= {"response_a": row["response1"], "response_b": row["response2"]}
    choices = {"0": "tie", "1": "a", "2": "b"}
    return [
        shared | {"annotator": name, "choice": None if row[name] is None else choices.get(str(row[name]), row[name])}
        for name in annotators
    ]


def _side(choice: str, a: str, b: str) -> str:
    """Returns the choice as a side. The documented words come first, so that items may be called "a" and "b"."""
    if choice in (*CHOICES, "abstain"):
        return choice
    return {a: "a", b: "b"}.get(choice) or choice.strip().lower()


def _id(value: Any) -> str:
    if value is None or value == "":
        raise _Fault("missing_field")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _Fault("wrong_type")
    return str(value)


def _name(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


def _text(value: Mapping[str, Any], name: str) -> Conversation | None:
    try:
        return as_text(value.get(name))
    except DataError as error:
        raise _Fault("wrong_type") from error


def _weight(value: Mapping[str, Any]) -> float:
    weight = value.get("weight", 1.0)
    weight = 1.0 if weight is None else weight
    if not _is_number(weight) or not _is_finite(weight) or weight <= 0:
        raise _Fault("bad_weight")
    return float(weight)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond floats
        return False
