"""Reads preference data, in TRL's forms and in those of common public sets, into one normal form.

The normal form has the columns `id`, `prompt_id`, `domain`, `source`, `prompt`, `chosen` and `rejected`; the last
three are all strings or all message lists. `preference` (1: chosen wins, ½: tie, or a vote share), `weight` (votes),
`rating_gap` and `margin` stand beside them where the input has them, so do `chosen_scores` and `rejected_scores` (0–1
by criterion, as a list of `criterion` and `score`), `prompt_rejected` where the two sides of a pair
answer different prompts, `fault` where rows that cannot be read are kept. Messages keep every field, as JSON; `tools`
and `chat_template_kwargs` go with their row, and so does every column that no form reads.
"""

import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from datasets import Dataset, DatasetInfo, Features, ReadInstruction, Value, config
from datasets.arrow_writer import ArrowWriter
from tqdm.auto import tqdm

from rmtrl.data import layouts
from rmtrl.data.layouts import COLUMNS, HUMAN, TALKS, Form, how_to_rename
from rmtrl.data.loading import load_rows, text_files
from rmtrl.data.messages import is_filled, without_fillings
from rmtrl.data.normal_form import (
    OPTIONAL,
    ROW_GIVEN,
    TEMPLATE,
    ExactJson,
    MissingCellError,
    arrow_table,
    features,
    normal_row,
    text_row,
)
from rmtrl.errors import DataError, UsageError
from rmtrl.io import LARGE_ROWS, BrokenLine, RawRow, Row, read_rows, replacing, table_columns
from rmtrl.types import Conversation

Faulty = Literal["raise", "keep"]

logger = logging.getLogger(__name__)

_FAULTS = (TypeError, LookupError, ValueError, AttributeError, OverflowError, RecursionError)
_BOOKKEEPING, _LEFT_BEHIND = set(COLUMNS["bookkeeping"]), set(COLUMNS["left_behind"])
_ASIDE: dict[str, str] = COLUMNS["aside"]
_FAULT = re.compile(r"(unreadable|missing_field|unrenderable): ")
_KINDS = {str: "string", bool: "bool", int: "int64", float: "float64"}
_HEAD_ROWS, _BATCH_ROWS = 200, 1000


def read_preferences(
    source: str | Path,
    *,
    split: str = "train",
    name: str | None = None,
    columns: Mapping[str, str] | None = None,
    faulty: Faulty = "raise",
) -> Dataset:
    """Returns the preference pairs of a file, a folder, a saved dataset or a hub set, in the normal form.

    JSON and CSV files are read row by row: a broken row is one row, whatever is wrong with it. A JSON file holds one
    object a line, or one document: a list of rows or an object that holds them.

    Args:
        source (`str` or `Path`): A jsonl, json, parquet, csv or tsv file (also .gz), a folder of such files, a folder
            written by `save_to_disk`, or a hub id of the form `owner/name`.
        split (`str`): Split to read where the source has several; a single file is one split by any name.
        name (`str`, *optional*): Configuration of a hub set.
        columns (`Mapping[str, str]`, *optional*): Columns to rename before reading, new name to old name.
        faulty (`str`): What becomes of a row that cannot be read: `"raise"` names the first; `"keep"` returns it as a
            row of nulls whose `fault` says why and where, for [`~rmtrl.data.validation.validate`] to count. What is to
            be said of the file stands in `info.description`, and is logged as a warning under `"raise"`.

    Raises:
        DataError: If the source is missing, unreadable as a whole, empty or of no known form, or under `"raise"` has
            a row that cannot be read; the message names file and row.

    Example:

    ```python
    >>> pairs = read_preferences("pairs.jsonl", columns={"prompt": "question"})
    >>> pairs.column_names[:4]
    ['id', 'prompt_id', 'domain', 'source']
    ```
    """
    files = text_files(source, split=split, name=name)
    if not files:
        called = Path(source).name if Path(source).expanduser().exists() else str(source)
        return to_normal_form(load_rows(source, split=split, name=name), columns, source=called, faulty=faulty)
    called = Path(source).expanduser().name.encode(errors="replace").decode()
    state = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    path = _cache_file(state, columns, called, faulty)
    pairs = _normal_form(
        lambda: read_rows(files, is_row=layouts.is_pair), columns, source=called, faulty=faulty, path=path
    )
    return _sliced(pairs, split) if "[" in split else pairs


def to_normal_form(
    dataset: Dataset, columns: Mapping[str, str] | None = None, *, source: str = "unknown", faulty: Faulty = "raise"
) -> Dataset:
    """Returns the pairs of `dataset` in the normal form; the form of the input is recognised by its columns.

    Accepts TRL's standard, conversational and implicit-prompt forms, the annotation form (`left`, `right`, `label`)
    and the public sets listed in `rmtrl.data.layouts.LAYOUTS`. `prompt + chosen` is the chosen text of the
    input, byte for byte. `id` falls back to the row number, `domain` to "unknown", `prompt_id` to a hash of the prompt
    without case and spacing. Where text and message lists are mixed, rows of the rarer form cannot be read.

    Args:
        dataset (`Dataset`): Pairs in any of the accepted forms.
        columns (`Mapping[str, str]`, *optional*): Columns to rename first, new name to old name.
        source (`str`): What to write into `source` where the input has no such column, and to call it in errors.
        faulty (`str`): What becomes of a row that cannot be read, as in [`read_preferences`].

    Raises:
        DataError: If the set is empty or its columns fit no known form, or under `"raise"` if a cell is null or of
            the wrong type.

    Example:

    ```python
    >>> to_normal_form(Dataset.from_list([{"chosen": "The sky is blue.", "rejected": "The sky is green."}]))[0]
    {'id': '0', 'prompt_id': '…', 'prompt': 'The sky is', 'chosen': ' blue.', 'rejected': ' green.', …}
    ```
    """

    filled = {name: feature for name, feature in dataset.features.items() if name in TALKS and is_filled(feature)}

    def told(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return batch | {name: without_fillings(batch[name], [own]) for name, own in filled.items()}

    def rows() -> Iterator[RawRow]:
        batches = map(told, dataset.with_format(None).iter(1000))
        cells = (dict(zip(batch, row, strict=True)) for batch in batches for row in zip(*batch.values(), strict=True))
        shown = tqdm(cells, "Reading pairs", len(dataset), disable=len(dataset) < LARGE_ROWS)
        return ((f"row {number}", row) for number, row in enumerate(shown, 1))

    # what is held in memory stays there
    path = _cache_file(dataset._fingerprint, columns, source, faulty) if dataset.cache_files else None
    try:
        return _normal_form(rows, columns, source=source, faulty=faulty, path=path)
    except UnicodeDecodeError as error:  # text is decoded as rows are read
        raise DataError(f"{source} is not UTF-8 text ({error.reason}); save it as UTF-8") from error


def _cache_file(*state: object) -> Path:
    """Returns where the normal form of a source in this state is kept; it is written anew at every reading."""
    return Path(config.HF_DATASETS_CACHE) / "rmtrl" / f"{hashlib.sha256(repr(state).encode()).hexdigest()[:16]}.arrow"


def _normal_form(
    rows: Callable[[], Iterator[RawRow]],
    columns: Mapping[str, str] | None,
    *,
    source: str,
    faulty: Faulty,
    path: Path | None,
) -> Dataset:
    """Reads by what the first rows say of the file, and again where all of them say otherwise."""
    if faulty not in ("raise", "keep"):
        raise UsageError(f"faulty is {faulty!r}; wanted 'raise' or 'keep'")
    stream = rows()
    head = list(islice(stream, _HEAD_ROWS))
    survey = _Reader(source, columns or {}, _Facts())
    for raw in head:
        survey.read(raw)
    reader, pairs = _read(survey, chain(head, stream), path)
    while not reader.agrees():
        reader, pairs = _read(reader, rows(), path)
    pairs.info.description = "\n".join(reader.notes())
    if faulty == "keep":
        return pairs
    if reader.first_fault:
        raise DataError(f"{source}, {reader.first_fault} (rmtrl data validate --out leaves such rows out)")
    for note in reader.notes():
        logger.warning(note)
    return pairs


def _sliced(pairs: Dataset, split: str) -> Dataset:
    name = split.split("[")[0]
    try:
        (part,) = ReadInstruction.from_spec(split).to_absolute({name: len(pairs)})
    except (AssertionError, ValueError) as error:
        raise UsageError(f"got split {split}; wanted one slice such as {name}[:1000] or {name}[:10%]") from error
    return pairs.select(range(*slice(part.from_, part.to).indices(len(pairs))))


def with_given_names(dataset: Dataset) -> Dataset:
    """Returns rows to be written, the columns that ride along under another name under their own where it is free."""
    names = {aside: name for name, aside in _ASIDE.items() if aside in dataset.column_names}
    return dataset.rename_columns({aside: own for aside, own in names.items() if own not in dataset.column_names})


def as_given(rejects: Dataset) -> Iterable[Row]:
    """Returns rejected rows to be written: those that could not be read with the cells that were given."""
    rows = with_given_names(rejects)
    return map(_as_given, rows) if ROW_GIVEN in rejects.column_names else rows


def _as_given(row: Row) -> Row:
    given, ours = row.pop(ROW_GIVEN), {name: row.get(name) for name in ("fault", "reason")}
    if given is None:
        return row
    given = given if isinstance(given, dict) else {ROW_GIVEN: given}
    return {"id": row["id"], **{f"{name}_given": given[name] for name in ours if name in given}, **given, **ours}


def last_turn_only(dataset: Dataset) -> Dataset:
    """Returns the pairs with each prompt cut to its last human turn; ids and `prompt_id` stay as they were.

    Transcripts are cut to the last `Human:` turn, message lists to the last user message and what follows it, with a
    leading system message kept. A prompt without such a turn stays whole.

    Args:
        dataset (`Dataset`): Pairs in the normal form.

    Example:

    ```python
    >>> last_turn_only(pairs)[0]["prompt"]
    '\\n\\nHuman: And in French?\\n\\nAssistant:'
    ```
    """
    table: pa.Table = dataset.with_format("arrow")[:]
    cut = [{"prompt": _last_turn(prompt)} for prompt in table_columns(table.select(["prompt"]))["prompt"]]
    column = arrow_table(cut, Features({"prompt": dataset.features["prompt"]}))["prompt"]
    return Dataset(table.set_column(table.column_names.index("prompt"), "prompt", column), info=dataset.info)


def _last_turn(prompt: Conversation | None) -> Conversation | None:
    if prompt is None:  # a row that could not be read
        return None
    if isinstance(prompt, str):
        return prompt[max(prompt.rfind(HUMAN), 0) :]
    users = [index for index, message in enumerate(prompt) if message.get("role") == "user"]
    start = users[-1] if users else 0
    return [m for m in prompt[:start][:1] if m.get("role") in ("system", "developer")] + prompt[start:]


# ---- rows to the normal form


@dataclass(frozen=True)
class _Facts:
    """What a whole file says and no single row: found in one pass, known in the next.

    Args:
        conversational (`bool`): Whether prompts are message lists, as in most good rows; the first decides a tie.
        with_prompt (`bool`): Whether rows must have a prompt; likewise.
        chat (`bool`): Whether text becomes messages, because a row has a system message or earlier turns beside it.
        codes (`frozenset[str]`): Numbers in `label`.
        judged (`bool`): Whether `label` beside chosen and rejected must be a verdict, because one stands in a row.
        texts (`frozenset[str]`): Unread columns of text, beside which no prompt is made up.
        kinds (`dict[str, str | None]`): What stands in each column that rides along, None where nothing does.
    """

    conversational: bool = False
    with_prompt: bool = False
    chat: bool = False
    codes: frozenset[str] = frozenset()
    judged: bool = False
    texts: frozenset[str] = frozenset()
    kinds: Mapping[str, str | None] = field(default_factory=dict, compare=False)

    def columns(self) -> Features:
        """Returns the columns of the normal form, those that ride along each of one type of value or of JSON."""
        kinds = self.kinds.items()
        others = {name: ExactJson() if kind == "json" else Value(kind or "string") for name, kind in kinds}
        return features(self.conversational, others)


class _Reader:
    """Reads raw rows one by one by what is known of the file, and gathers what they say of it.

    Args:
        source (`str`): What to write into `source` where a row has none, and to call the set in errors.
        columns (`Mapping[str, str]`): Columns to rename first, new name to old name.
        facts ([`_Facts`]): What is known of the file.
    """

    def __init__(self, source: str, columns: Mapping[str, str], facts: _Facts):
        self.source, self.columns, self.facts = source, columns, facts
        self.seen: dict[str, None] = {}
        self.first_fault: str | None = None
        self._n = 0
        self._any_known = self._invented = self._chat = False
        self._kinds: dict[str, str | None] = {}
        self._texts: set[str] = set()
        self._judged: set[bool] = set()
        self._codes: set[tuple[str, bool]] = set()  # and whether they stand beside chosen
        self._names: tuple[str, ...] = ()
        self._forms: Counter[bool] = Counter()
        self._prompts: Counter[bool] = Counter()

    def read(self, raw: RawRow) -> list[Row]:
        """Returns the pairs of one raw row, or one row of nulls with its fault."""
        where, row = raw
        index, self._n = self._n, self._n + 1
        riding: Row = {}
        try:
            return self._pairs(row, index, riding)
        except _FAULTS as error:
            said = str(error) if isinstance(error, DataError) else f"cell of the wrong type ({error!r})"
            fault = f"{where}{' ' if isinstance(row, str) else ': '}{' '.join(said[:500].split())}"
            self.first_fault = self.first_fault or fault
            reason = "missing_field" if isinstance(error, MissingCellError) else "unreadable"
            given = row.get("id") if isinstance(row, dict) else None
            name = str(given) if isinstance(given, str | int) and given != "" else str(index)
            self._kinds[ROW_GIVEN] = "json"
            cells = row.line if isinstance(row, BrokenLine) else row
            return [{**riding, "id": name, "source": self.source, "fault": f"{reason}: {fault}", ROW_GIVEN: cells}]

    def check_forms(self) -> None:
        """Raises if no row was of a known form, or a column to rename stood in none.

        Raises:
            DataError: One line that says what was found and what was wanted.
        """
        if not self.seen:
            why = f", {self.first_fault}" if self._n else " is empty; a preference set needs at least one pair"
            raise DataError(f"{self.source}{why}")
        found = ", ".join(name[:40] for name in list(self.seen)[:20])
        if absent := [old for old in self.columns.values() if old not in self.seen]:
            turned = [
                f"--map {old}={new}" for new, old in self.columns.items() if {new, old} - self.seen.keys() == {old}
            ]
            raise DataError(
                f"{self.source} has no column {', '.join(absent)} to rename; it has {found} (--map takes new=old"
                f"{': ' if turned else ''}{' '.join(turned)})"
            )
        if not self._any_known:
            raise DataError(f"{self.source}: columns {found} fit no known form; {how_to_rename(tuple(self.seen))}")

    def found(self) -> _Facts:
        """Returns what all rows say together."""
        chat, asked = (bool(count) and count.most_common(1)[0][0] for count in (self._forms, self._prompts))
        codes, texts = frozenset(code for code, _ in self._codes), frozenset(self._texts if self._invented else ())
        return _Facts(chat, asked, self._chat, codes, True in self._judged, texts, self._kinds)

    def fits(self) -> bool:
        """Returns whether the columns that ride along hold so far what is known of them."""
        known = self.facts.kinds
        return all(
            name in known and (known[name] == "json" or kind in (None, known[name] or "string"))
            for name, kind in self._kinds.items()
        )

    def agrees(self) -> bool:
        """Returns whether the rows say what they were read by."""
        found = self.found()
        return found == self.facts and found.columns() == self.facts.columns()

    def notes(self) -> list[str]:
        """Returns what a person would not expect: prompts that stand in no column, and text that nothing reads."""
        notes = layouts.label_notes(self.source, self._codes, self._judged)
        if self._invented and not self.facts.texts:
            notes.append(f"{self.source} has no prompts: what both sides of a pair begin with is taken for the prompt")
        if self._texts:
            unread = ", ".join(sorted(self._texts))
            notes.append(f"{self.source}, unread columns: {unread} (text; --map prompt=COLUMN where it is the prompt)")
        return notes

    def _pairs(self, row: Row | str, index: int, riding: Row) -> list[Row]:
        if isinstance(row, str):
            raise DataError(row)
        row, form = self._known(row)
        plain = text_row(row, str(index), self.source) if form.plain and not self.facts.chat else None
        if plain is not None:
            self._prompts[True] += 1
        else:
            row = layouts.with_messages(row, form.talks)
            if "label" in row and (code := layouts.label_code(row)) is not None:
                self._codes.add((code, "chosen" in row))
                row = row | {"label": layouts.label_word(code, self.facts.codes | {code}, row)}
        if form.unread:
            self._ride(row, form, riding)
        pairs = self._by_layout(row, form, str(index)) if plain is None else [plain]
        chat = isinstance(pairs[0]["prompt"], list)
        self._forms[chat] += 1
        if any(isinstance(pair["prompt"], list) != self.facts.conversational for pair in pairs):
            raise DataError("text and message lists are mixed; use one form for all rows")
        return [riding | pair for pair in pairs] if riding else pairs

    def _by_layout(self, row: Row, form: Form, index: str) -> list[Row]:
        null = [name for name in form.needed if row.get(name) is None or layouts.is_unjudged(name, row[name])]
        if null:
            raise MissingCellError.of(null)
        self._prompts[form.asked] += form.explicit
        if form.explicit and self.facts.with_prompt and not form.asked:
            raise MissingCellError.of(["prompt"])
        assert form.layout is not None
        pairs, said = form.layout(row), layouts.before(row)
        self._check_invented(pairs)
        turned = [layouts.in_turns(pair, said) for pair in pairs] if said or self.facts.chat else pairs
        ids = [index] if len(pairs) == 1 else [f"{index}-{k}" for k in range(len(pairs))]
        normal = [normal_row(pair, row, name, self.source) for pair, name in zip(turned, ids, strict=True)]
        self._chat |= bool(said) and isinstance(pairs[0]["prompt"], str)
        return normal

    def _known(self, row: Row) -> tuple[Row, Form]:
        """Returns a row, renamed, and its form."""
        names = tuple(row)
        if names != self._names:
            self._names = names
            self.seen.update(dict.fromkeys(names))
        if self.columns:
            replaced = {*self.columns, *self.columns.values()}
            kept = {name: value for name, value in row.items() if name not in replaced}
            row = kept | {new: row[old] for new, old in self.columns.items() if old in row}
            names = tuple(row)
        form = layouts.form_of(names)
        if form.layout is None:
            raise MissingCellError.of(form.needed)
        self._any_known = True
        return row, form

    def _ride(self, row: Row, form: Form, riding: Row) -> None:
        """Notes what stands in the columns that no form reads, and which of them are text."""
        kinds = ((layouts.system_column(row), str), ("history", list))
        read = {name for name, kind in kinds if isinstance(row.get(name), kind | None)}
        read |= {"input"} if form.reads_asked and layouts.joins_input(row) else set()
        read |= {*TEMPLATE, *(["label"] if self._is_judged(row, form) else [])}
        for name in form.unread:
            value = row[name]
            if "\0" in name:  # Arrow ends the name there
                raise DataError(f"the name of column {name[:40]!r} holds a null character; rename it")
            if name in TEMPLATE:
                self._kinds[name] = "json"
            if name in read:
                continue
            if name in _ASIDE and _is_repeated(value, row):
                continue
            if _is_text(value) and not _is_bookkeeping(name):
                self._texts.add(name)
            if name not in _LEFT_BEHIND:
                name = _ASIDE.get(name, name)
                riding[name] = value
                known, kind = self._kinds.get(name), _kind(value)
                self._kinds[name] = known if kind in (None, known) else kind if known is None else "json"

    def _is_judged(self, row: Row, form: Form) -> bool:
        """Returns whether `label` says who won; another column may say it in its place."""
        if row.get("preference") not in (None, ""):
            return layouts.verdict(row) is not None
        judged = layouts.verdict(row, strict=self.facts.judged) is not None
        if form.explicit and not layouts.is_unjudged("label", row.get("label")):
            self._judged.add(judged)
        return judged

    def _check_invented(self, pairs: list[Row]) -> None:
        if not pairs[0].pop("invented", False):
            return
        self._invented = True
        if texts := sorted(self.facts.texts):
            raise MissingCellError(
                f"no prompt, but text that is not read in {', '.join(texts)}; name the prompt with --map prompt=COLUMN"
            )


def _kind(value: Any) -> str | None:
    """Returns the type of column that holds a value to the letter, None where there is none."""
    fits = type(value) is not int or -(2**63) <= value < 2**63
    return None if value is None else _KINDS.get(type(value), "json") if fits else "json"


def _is_text(value: Any) -> bool:
    """Returns whether a cell holds text, or messages."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(m, dict) and ({"role", "from"} & m.keys()) for m in value)
    return isinstance(value, str) and not value.isspace() and value != ""


def _is_repeated(value: Any, row: Row) -> bool:
    """Returns whether a cell says what the row says elsewhere, or is the fault that an earlier reading wrote there."""
    if value is None or isinstance(value, str):
        return value is None or _FAULT.match(value) is not None
    return value in (row.get("prompt"), row.get("chosen"), row.get("rejected"))


def _is_bookkeeping(name: str) -> bool:
    return not _BOOKKEEPING.isdisjoint((name.lower(), name.lower().rpartition("_")[2]))


def _read(before: _Reader, rows: Iterable[RawRow], path: Path | None) -> tuple[_Reader, Dataset]:
    """Returns who read `rows` by what another found, and their normal form.

    It is held in the Arrow file `path`, or in memory without one. Columns that stand in no raw row and hold nothing
    are left out. Where a column that rides along proves to hold another type of value, the rest is read only.
    """
    reader = _Reader(before.source, before.columns, before.found())
    columns = reader.facts.columns()
    with ExitStack() as stack:
        sink: dict[str, Any] = {"stream": pa.BufferOutputStream()}
        if path is not None:
            sink = {"path": str(stack.enter_context(replacing(path, ending=str(os.getpid()))))}
        with ArrowWriter(features=columns, **sink) as writer:
            pairs = chain.from_iterable(map(reader.read, rows))
            while batch := list(islice(pairs, _BATCH_ROWS)):
                if reader.fits():
                    writer.write_table(arrow_table(batch, columns))
            reader.check_forms()
            writer.finalize()
    info = DatasetInfo(features=columns)
    normal = Dataset.from_file(str(path), info=info) if path else Dataset.from_buffer(sink["stream"].getvalue(), info)
    given = {*reader.seen, *reader.columns} - {"fault"}
    empty = [name for name in OPTIONAL if normal.data[name].null_count == len(normal)]
    return reader, normal.remove_columns([name for name in empty if name not in given])
