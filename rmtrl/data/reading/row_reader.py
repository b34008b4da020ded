"""Turns raw rows of any known form into the normal form, and rows that cannot be read into rows that say why."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Literal

import pyarrow as pa
from datasets import Dataset

from rmtrl.data.reading.layouts import LAYOUTS, MissingCellError, Row, layout_of
from rmtrl.data.reading.normal_form import OPTIONAL, features, missing, normal_row
from rmtrl.errors import DataError
from rmtrl.io import RawRow
from rmtrl.types import Conversation

Faulty = Literal["raise", "keep"]

_BATCH_ROWS, _BATCH_CHARS = 1000, 2**26  # Arrow text of one batch stays far below its limit of 2³¹ bytes
_FAULTS = (TypeError, LookupError, ValueError, AttributeError, OverflowError, RecursionError)


class RowReader:
    """Reads raw rows one by one and counts their forms.

    Args:
        source (`str`): What to write into `source` where a row has none, and to call the set in errors.
        columns (`Mapping[str, str]`): Columns to rename first, new name to old name.
        faulty (`str`): `"raise"` stops at the first row that cannot be read, `"keep"` returns it with its `fault`.
        conversational (`bool`, *optional*): Whether prompts are message lists; as in the first good row where None.
        with_prompt (`bool`, *optional*): Whether rows of `chosen` and `rejected` must have a prompt; likewise.
    """

    def __init__(
        self,
        source: str,
        columns: Mapping[str, str],
        faulty: Faulty,
        conversational: bool | None = None,
        with_prompt: bool | None = None,
    ):
        self.source, self.columns, self.faulty = source, columns, faulty
        self.conversational, self.with_prompt = conversational, with_prompt
        self.seen: dict[str, None] = {}
        self.n = self.n_known = 0
        self.first_fault: str | None = None
        self._forms: Counter[bool] = Counter()
        self._prompts: Counter[bool] = Counter()

    def read(self, raw: RawRow) -> list[Row]:
        """Returns the pairs of one raw row, or one row of nulls with its fault.

        Raises:
            DataError: If the row cannot be read and `faulty` is `"raise"`.
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
            return [{"id": name, "source": self.source, "fault": f"{reason}: {fault}"}]

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

    def majority(self) -> tuple[bool, bool]:
        """Returns `conversational` and `with_prompt` as most rows have them; the first row decides a tie."""
        ahead = [count[True] - count[False] for count in (self._forms, self._prompts)]
        used = (bool(self.conversational), bool(self.with_prompt))
        return (ahead[0] > 0 or (ahead[0] == 0 and used[0]), ahead[1] > 0 or (ahead[1] == 0 and used[1]))

    def _pairs(self, row: Row | str, index: int) -> list[Row]:
        if isinstance(row, str):
            raise DataError(row)
        self.seen.update(dict.fromkeys(row))
        row = self._renamed(row)
        needed, layout = layout_of(tuple(row))
        if layout is None:
            raise missing(needed)
        self.n_known += 1
        if {"chosen", "rejected"} <= set(needed):
            self._prompts["prompt" in row] += 1
            self.with_prompt = "prompt" in row if self.with_prompt is None else self.with_prompt
            needed = [*needed, "prompt"] if self.with_prompt or "prompt" in row else needed
        null = [name for name in needed if row.get(name) is None]
        if null:
            raise missing(null)
        pairs = layout(row)
        names = [str(index) if len(pairs) == 1 else f"{index}-{k}" for k in range(len(pairs))]
        normal = [normal_row(pair, row, name, self.source) for pair, name in zip(pairs, names, strict=True)]
        form = isinstance(normal[0]["prompt"], list)
        self._forms[form] += 1
        self.conversational = form if self.conversational is None else self.conversational
        if any(isinstance(pair["prompt"], list) != self.conversational for pair in normal):
            raise DataError("text and message lists are mixed; use one form for all rows")
        return normal

    def _renamed(self, row: Row) -> Row:
        if not self.columns:
            return row
        replaced = {*self.columns, *self.columns.values()}
        kept = {name: value for name, value in row.items() if name not in replaced}
        return kept | {new: row[old] for new, old in self.columns.items() if old in row}


def write_normal(reader: RowReader, rows: Iterable[RawRow], path: Path | None) -> Dataset:
    """Returns the normal form of `rows`, held in the Arrow file `path`, or in memory without one.

    Columns that stand in no raw row and hold nothing are left out.

    Raises:
        DataError: If no row is of a known form, or at the first row that cannot be read where `reader` says so.
    """
    beside = None if path is None else path.with_name(f"{path.name}.{os.getpid()}.new")
    filled: set[str] = set()
    try:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        with pa.BufferOutputStream() if beside is None else pa.OSFile(str(beside), "wb") as sink:
            batches = _batches(reader, rows)
            first = next(batches, [])  # from here on the reader knows whether prompts are text or message lists
            schema = features(bool(reader.conversational)).arrow_schema
            with pa.ipc.new_stream(sink, schema) as stream:
                for batch in chain([first], batches):
                    table = pa.table({name: [row.get(name) for row in batch] for name in schema.names}, schema=schema)
                    filled.update(name for name in OPTIONAL if table[name].null_count < len(table))
                    stream.write_table(table)
        reader.check_forms()
        if path is None:
            normal = Dataset.from_buffer(sink.getvalue())
        else:
            os.replace(beside, path)  # type: ignore[arg-type]
            normal = Dataset.from_file(str(path))
    except OSError as error:
        raise DataError(f"cannot write {path} ({error}); HF_DATASETS_CACHE names the folder to use") from error
    finally:
        if beside is not None:
            beside.unlink(missing_ok=True)
    given = {*reader.seen, *reader.columns} - {"fault"}
    return normal.remove_columns([name for name in OPTIONAL if name not in filled | given])


def _batches(reader: RowReader, rows: Iterable[RawRow]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    chars = 0
    for raw in rows:
        pairs = reader.read(raw)
        batch += pairs
        chars += sum(_length(pair.get(side)) for pair in pairs for side in ("prompt", "chosen", "rejected"))
        # what the columns hold is known from the first good row on
        if reader.conversational is not None and (len(batch) >= _BATCH_ROWS or chars > _BATCH_CHARS):
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def _length(side: Conversation | None) -> int:
    return len(side or "") if not isinstance(side, list) else sum(len(message["content"] or "") for message in side)
