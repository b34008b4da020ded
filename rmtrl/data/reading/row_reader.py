"""Turns raw rows of any known form into the normal form, and rows that cannot be read into rows that say why."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

from datasets import Value

from rmtrl.data.messages import read_messages, same
from rmtrl.data.reading.labels import has_label, label_code, label_word, verdict
from rmtrl.data.reading.layouts import EXPLICIT, LAYOUTS, Layout, MissingCellError, layout_of
from rmtrl.data.reading.normal_form import NAMES, TEMPLATE, ExactJson, missing, normal_row
from rmtrl.data.reading.prompts import before, prompt_columns, transcript_turns, with_messages
from rmtrl.errors import DataError
from rmtrl.io import RawRow, Row
from rmtrl.types import Message

Faulty = Literal["raise", "keep"]

_FAULTS = (TypeError, LookupError, ValueError, AttributeError, OverflowError, RecursionError)
# words, but no text to be read: columns of these names, or whose names end in one after "_"
_BOOKKEEPING = {
    "annotator", "author", "category", "dataset", "date", "hash", "id", "kind", "label", "lang", "language", "licence",
    "license", "locale", "model", "models", "split", "source", "status", "subset", "tag", "tags", "time", "timestamp",
    "topic", "type", "url", "user", "variant_of", "version",
}  # fmt: skip
# TRL takes these columns for its own
_LEFT_BEHIND = {"messages", "completion", "chosen_ids", "rejected_ids", "chosen_input_ids", "rejected_input_ids"}
_KINDS = {str: "string", bool: "bool", int: "int64", float: "float64"}


@dataclass(frozen=True)
class Facts:
    """What a whole file says and no single row: found in one pass, known in the next.

    Args:
        conversational (`bool`, *optional*): Whether prompts are message lists; as in the first good row where None.
        with_prompt (`bool`, *optional*): Whether rows must have a prompt; likewise.
        chat (`bool`): Whether text becomes messages, because a row has a system message or earlier turns beside it.
        codes (`frozenset[str]`): Numbers in `label`, where they are not to be read.
        judged (`bool`): Whether `label` beside chosen and rejected must be a verdict, because one stands in a row.
        texts (`frozenset[str]`): Unread columns of text, beside which no prompt is made up.
        kinds (`dict[str, frozenset[str]]`): What stands in each column that rides along.
    """

    conversational: bool | None = None
    with_prompt: bool | None = None
    chat: bool = False
    codes: frozenset[str] = frozenset()
    judged: bool = False
    texts: frozenset[str] = frozenset()
    kinds: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Form:
    """What is known of a row by its columns: what reads it, the cells it needs, and the columns nothing reads."""

    layout: Layout | None
    needed: list[str]
    explicit: bool
    asked: bool
    unread: tuple[str, ...]


@lru_cache(maxsize=1024)
def _form(names: tuple[str, ...]) -> _Form:
    needed, layout = layout_of(names)
    asked = prompt_columns(names)
    read = {*NAMES, *needed, *asked, "prompt_left", "prompt_right"}
    explicit = layout is not None and layout in EXPLICIT
    prompts = [name for name in asked if explicit and (name != "input" or len(asked) == 1)]
    prompts += [name for name in names if name == "label" and explicit and "prompt_left" in asked]
    unread = tuple(name for name in names if name not in read)
    return _Form(layout, needed if layout is None else [*needed, *prompts], explicit, bool(asked), unread)


def _is_bookkeeping(name: str) -> bool:
    return not _BOOKKEEPING.isdisjoint((name.lower(), name.lower().rpartition("_")[2]))


class Reread(Exception):
    """Reading must begin again, with what is known now."""

    def __init__(self, facts: Facts):
        self.facts = facts


class RowReader:
    """Reads raw rows one by one and gathers what they say of the whole.

    Args:
        source (`str`): What to write into `source` where a row has none, and to call the set in errors.
        columns (`Mapping[str, str]`): Columns to rename first, new name to old name.
        faulty (`str`): `"raise"` stops at the first row that cannot be read, `"keep"` returns it with its `fault`.
        facts ([`Facts`]): What is known of the file.
    """

    def __init__(self, source: str, columns: Mapping[str, str], faulty: Faulty, facts: Facts = Facts()):  # noqa: B008
        self.source, self.columns, self.faulty, self.facts = source, columns, faulty, facts
        self.conversational, self.with_prompt = facts.conversational, facts.with_prompt
        self.seen: dict[str, None] = {}
        self.n = self.n_known = self.n_invented = 0
        self.first_fault: str | None = None
        self.texts: set[str] = set()
        self._riding: Row = {}
        self.kinds: dict[str, set[str]] = {name: set(kinds) for name, kinds in facts.kinds.items()}
        self.sides: set[str] = set()
        self.judged: set[bool] = set()
        self._codes: set[str] = set()
        self._codes_fit = True
        self._forms: Counter[bool] = Counter()
        self._prompts: Counter[bool] = Counter()

    def read(self, raw: RawRow) -> list[Row]:
        """Returns the pairs of one raw row, or one row of nulls with its fault.

        Raises:
            DataError: If the row cannot be read and `faulty` is `"raise"`.
            Reread: If it shows that the rows before it were read wrongly.
        """
        where, row = raw
        index, self.n = self.n, self.n + 1
        try:
            return self._pairs(row, index)
        except _FAULTS as error:
            said = str(error) if isinstance(error, DataError) else f"cell of the wrong type ({error!r})"
            fault = f"{where}{' ' if isinstance(row, str) else ': '}{' '.join(said[:500].split())}"
            self.first_fault = self.first_fault or fault
            if self.faulty == "raise":
                self.check_forms()
                raise DataError(f"{self.source}, {fault} (rmtrl data validate --out leaves such rows out)") from error
            reason = "missing_field" if isinstance(error, MissingCellError) else "unreadable"
            given = row.get("id") if isinstance(row, dict) else None
            name = str(given) if isinstance(given, str | int) and given != "" else str(index)
            return [{**self._riding, "id": name, "source": self.source, "fault": f"{reason}: {fault}"}]

    def check_forms(self) -> None:
        """Raises if no row was of a known form, or a column to rename stood in none.

        Raises:
            DataError: One line that says what was found and what was wanted.
        """
        if self.n == 0:
            raise DataError(f"{self.source} is empty; a preference set needs at least one pair")
        found = ", ".join(name[:40] for name in list(self.seen)[:20]) or "none"
        absent = [old for old in self.columns.values() if old not in self.seen]
        if self.seen and absent:
            raise DataError(
                f"{self.source} has no column {', '.join(absent)} to rename; it has {found} (--map takes new=old)"
            )
        if self.n_known == 0 and self.seen:
            forms = "; ".join(f"{name} ({', '.join(sorted(columns))})" for name, (columns, _) in LAYOUTS.items())
            raise DataError(
                f"{self.source}: columns {found} fit no known form: {forms}; rename yours with --map new=old"
            )
        if self.n_known == 0:
            raise DataError(f"{self.source}, {self.first_fault}")

    def found(self) -> Facts:
        """Returns what all rows say together: forms as most rows have them, the first row deciding a tie."""
        ahead = [count[True] - count[False] for count in (self._forms, self._prompts)]
        used = (bool(self.conversational), bool(self.with_prompt))
        keep = self.faulty == "keep"
        conversational, with_prompt = (used[k] if ahead[k] == 0 or not keep else ahead[k] > 0 for k in (0, 1))
        return Facts(
            conversational,
            with_prompt,
            chat=self.facts.chat,
            codes=self.facts.codes or frozenset(() if self._codes_fit else self._codes),
            judged=self.facts.judged or True in self.judged,
            texts=self.facts.texts or frozenset(self.texts if self.n_invented else ()),
            kinds={name: frozenset(kinds) for name, kinds in self.kinds.items()},
        )

    def used(self) -> Facts:
        """Returns what the rows were read by."""
        return replace(
            self.facts, conversational=bool(self.conversational), with_prompt=bool(self.with_prompt), kinds={}
        )

    def others(self) -> dict[str, Any]:
        """Returns the columns that ride along, each of one type of value or of JSON."""
        return {
            name: Value(*(kinds or ("string",))) if len(kinds) < 2 and "json" not in kinds else ExactJson()
            for name, kinds in self.kinds.items()
        }

    def _pairs(self, row: Row | str, index: int) -> list[Row]:
        self._riding = {}
        if isinstance(row, str):
            raise DataError(row)
        self.seen.update(dict.fromkeys(row))
        row = with_messages(self._renamed(row))
        form = _form(tuple(row))
        if form.layout is None:
            raise missing(form.needed)
        self.n_known += 1
        if "label" in row and (code := label_code(row)) is not None:
            row = row | {"label": self._word(code, row)}
        if form.unread:
            self._ride(row, form.unread)
        null = [name for name in form.needed if row.get(name) is None]
        if null or (form.explicit and not self._has_prompt(form.asked)):
            raise missing(null or ["prompt"])
        pairs, said = form.layout(row), before(row)
        self._check_invented(pairs)
        fallback = [str(index) if len(pairs) == 1 else f"{index}-{k}" for k in range(len(pairs))]
        normal = [
            self._riding | normal_row(self._in_turns(pair, said), row, name, self.source)
            for pair, name in zip(pairs, fallback, strict=True)
        ]
        if said and not self.facts.chat and isinstance(pairs[0]["prompt"], str):
            raise Reread(replace(self.facts, chat=True))
        chat = isinstance(normal[0]["prompt"], list)
        self._forms[chat] += 1
        self.conversational = chat if self.conversational is None else self.conversational
        if any(isinstance(pair["prompt"], list) != self.conversational for pair in normal):
            raise DataError("text and message lists are mixed; use one form for all rows")
        return normal

    def _renamed(self, row: Row) -> Row:
        if not self.columns:
            return row
        replaced = {*self.columns, *self.columns.values()}
        kept = {name: value for name, value in row.items() if name not in replaced}
        return kept | {new: row[old] for new, old in self.columns.items() if old in row}

    def _word(self, code: str, row: Row) -> str:
        self._codes.add(code)
        try:
            word = label_word(code, self.facts.codes | self._codes, row)
        except DataError:
            self._codes_fit = False
            raise
        self.sides |= set() if "chosen" in row else {code}
        return word

    def _ride(self, row: Row, unread: tuple[str, ...]) -> None:
        """Notes what stands in the columns that no form reads, and which of them are text."""
        read = {name for name, kind in (("system", str), ("history", list)) if isinstance(row.get(name), kind | None)}
        read |= {*TEMPLATE, *(["label"] if self._judged(row) else [])}
        for name in unread:
            value = row[name]
            if "\0" in name:  # Arrow ends the name there
                raise DataError(f"the name of column {name[:40]!r} holds a null character; rename it")
            if name in TEMPLATE:
                self.kinds[name] = {"json"}
            if name in read:
                continue
            if isinstance(value, str) and value.strip() and not _is_bookkeeping(name):
                self.texts.add(name)
            if name not in _LEFT_BEHIND:
                self._riding[name] = value
                kinds = self.kinds.setdefault(name, set())
                if value is not None:
                    kind = _KINDS.get(type(value), "json")
                    kinds.add("json" if kind == "int64" and not -(2**63) <= value < 2**63 else kind)

    def _judged(self, row: Row) -> bool:
        """Returns whether `label` says who won; another column may say it in its place."""
        if row.get("preference") not in (None, ""):
            return verdict(row) is not None
        judged = verdict(row, strict=self.facts.judged) is not None
        if has_label(row) and _form(tuple(row)).explicit:
            self.judged.add(judged)
        return judged

    def _has_prompt(self, asked: bool) -> bool:
        """Returns whether a row has a prompt, or is of a file that has none."""
        self._prompts[asked] += 1
        self.with_prompt = asked if self.with_prompt is None else self.with_prompt
        return asked or not self.with_prompt

    def _check_invented(self, pairs: list[Row]) -> None:
        if not any([pair.pop("invented", False) for pair in pairs]):
            return
        self.n_invented += 1
        if texts := sorted(self.facts.texts | self.texts):
            raise MissingCellError(
                f"no prompt, but text that is not read in {', '.join(texts)}; name the prompt with --map prompt=COLUMN"
            )

    def _in_turns(self, pair: Row, said: list[Message]) -> Row:
        """Returns the pair with what was said before its prompt, all of it as messages."""
        if not (said or self.facts.chat):
            return pair
        turned = dict(pair)
        for name in ("prompt", "prompt_rejected"):
            if (given := pair.get(name)) is not None:
                transcript = transcript_turns(given) if isinstance(given, str) else []
                plain = [{"role": "user", "content": given}] if isinstance(given, str) else read_messages(name, given)
                turns = transcript or plain
                turned[name] = turns if same(turns[: len(said)], said) else said + turns
                answers = {side: pair[side] for side in ("chosen", "rejected") if transcript}
                turned |= {side: text.lstrip() for side, text in answers.items() if isinstance(text, str)}
        return turned
