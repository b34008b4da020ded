"""Writes the normal form of raw rows, batch by batch, as they are read."""

import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, DatasetInfo

from rmtrl.data.messages import message_text
from rmtrl.data.reading.normal_form import OPTIONAL, arrow_table, features
from rmtrl.data.reading.row_reader import RowReader
from rmtrl.errors import DataError
from rmtrl.io import RawRow, Row
from rmtrl.types import Conversation

_BATCH_ROWS, _BATCH_CHARS = 1000, 2**26  # Arrow text of one batch stays far below its limit of 2³¹ bytes


def write_normal(reader: RowReader, rows: Iterable[RawRow], path: Path | None) -> Dataset | None:
    """Returns the normal form of `rows`, held in the Arrow file `path`, or in memory without one.

    None where a row had another type of value in a column that rides along than the first rows, or another column.
    Columns that stand in no raw row and hold nothing are left out.

    Raises:
        DataError: If no row is of a known form, or at the first row that cannot be read where `reader` says so.
        Reread: As `reader` does.
    """
    beside = None if path is None else path.with_name(f"{path.name}.{os.getpid()}.new")
    filled: set[str] = set()
    try:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        with pa.BufferOutputStream() if beside is None else pa.OSFile(str(beside), "wb") as sink:
            batches = _batches(reader, rows)
            first = next(batches, [])  # from here on the reader knows whether prompts are text or message lists
            others = reader.others()
            columns = features(bool(reader.conversational), others)
            with pa.ipc.new_stream(sink, columns.arrow_schema) as stream:
                for batch in chain([first], batches):
                    if reader.others() == others:  # else the rest is read to know its types
                        table = arrow_table(batch, columns)
                        filled.update(name for name in OPTIONAL if table[name].null_count < len(table))
                        stream.write_table(table)
        reader.check_forms()
        if reader.others() != others:
            return None
        info = DatasetInfo(features=columns)
        if path is None:
            normal = Dataset.from_buffer(sink.getvalue(), info=info)
        else:
            os.replace(beside, path)  # type: ignore[arg-type]
            normal = Dataset.from_file(str(path), info=info)
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
    return len(side or "") if not isinstance(side, list) else sum(map(len, map(message_text, side)))
