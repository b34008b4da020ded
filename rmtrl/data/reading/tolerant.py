"""Reads text files (JSON and CSV) row by row, so that a row which is broken costs that row and no other.

A row comes as a dictionary, or as a string that says what is wrong with it. Only what makes the whole file
unreadable raises: a missing column of the format, a broken archive, a JSON document cut short.
"""

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from tqdm.auto import tqdm

from rmtrl.data.reading.layouts import Row, layout_of
from rmtrl.errors import DataError

RawRow = tuple[str, Row | str]
"""Where a row stands ("row 3"), and its cells or what is wrong with it."""

LARGE_BYTES, LARGE_ROWS = 20_000_000, 50_000
"""From here on a pass takes long enough to show its progress."""


def text_rows(paths: list[Path]) -> Iterator[RawRow]:
    """Yields every row of JSON and CSV files (also .gz), good or broken; blank lines are not rows.

    Args:
        paths (`list[Path]`): Files to read, in this order; with several, each row is named with its file.

    Raises:
        DataError: If a file cannot be read to its end, or is one JSON document that breaks off.

    Example:

    ```python
    >>> list(text_rows([Path("pairs.jsonl")]))[1]
    ('row 2', "is not JSON (Expecting ',' delimiter, column 41); mend or remove it")
    ```
    """
    total = sum(path.stat().st_size for path in paths)
    with tqdm(total=total, desc="Reading pairs", unit="B", unit_scale=True, disable=total < LARGE_BYTES) as bar:
        for path in paths:
            number, before = 0, bar.n
            try:
                with path.open("rb") as raw, gzip.open(raw) if path.name.lower().endswith(".gz") else raw as lines:
                    rows = _csv_rows(lines) if suffix_of(path) == ".csv" else _json_rows(lines)
                    for number, row in enumerate(rows, 1):
                        yield f"row {number}" if len(paths) == 1 else f"{path.name}, row {number}", row
                        if number % 1000 == 0:
                            bar.update(before + raw.tell() - bar.n)
            except (OSError, EOFError, zlib.error) as error:
                raise DataError(f"{path} cannot be read after row {number}: {error}") from error
            except DataError as error:
                raise DataError(f"{path}, {error}") from error


def suffix_of(path: Path) -> str:
    """Returns what a file's name says of its format, in small letters and without .gz."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


# ---- JSON: one object a line, or one document


def _json_rows(lines: BinaryIO | gzip.GzipFile) -> Iterator[Row | str]:
    first = next(_not_blank(lines), b"").removeprefix(codecs.BOM_UTF8)
    row = _object(first)
    if isinstance(row, dict) and layout_of(tuple(row))[1]:
        yield row
        yield from map(_object, _not_blank(lines))
        return
    # the first line is no pair: broken, or the start of a document that spans lines
    text = first + lines.read()
    try:
        document = _loads(text)
    except DataError as error:
        found = (_object(line) for line in _not_blank(io.BytesIO(text)))
        if text.startswith(b"[") and not any(isinstance(row, dict) and layout_of(tuple(row))[1] for row in found):
            raise DataError(f"a list that {error}") from error
        yield from map(_object, _not_blank(io.BytesIO(text)))
    else:
        yield from (_checked(row) for row in _rows_of(document))


def _rows_of(document: Any) -> list[Any]:
    """Returns the rows of a JSON document: a list of rows, one row, or an object that holds rows."""
    if isinstance(document, list):
        return document
    if isinstance(document, dict) and not layout_of(tuple(document))[1]:
        if document and all(isinstance(value, dict) for value in document.values()):
            return list(document.values())
        lists = [value for value in document.values() if isinstance(value, list)]
        if len(lists) == 1 and any(isinstance(row, dict) for row in lists[0]):
            return lists[0]
    return [document]


def _not_blank(lines: Iterable[bytes]) -> Iterator[bytes]:
    return (line for line in lines if not line.isspace())


def _object(line: bytes) -> Row | str:
    try:
        row = _loads(line)
    except DataError as error:
        return str(error)
    return _checked(row) if b"\\ud" in line.lower() or not isinstance(row, dict) else row


def _checked(row: Any) -> Row | str:
    if not isinstance(row, dict):
        return "is not a JSON object; wanted one object a line"
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return "holds half of a surrogate pair (\\ud800 to \\udfff); mend its text"
    return row


def _loads(text: bytes) -> Any:
    try:
        return _DECODER.decode(text.decode())
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if b"\n" in text.rstrip() else ""
        raise DataError(f"is not JSON ({error.msg}, {line}column {error.colno}); mend or remove it") from None
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets nested without end
        raise DataError(f"is not JSON that can be read ({str(error)[:60]}); mend or remove it") from None


def _distinct(items: list[tuple[str, Any]]) -> Row:
    row = dict(items)
    if len(row) < len(items):
        names = [name for name, _ in items]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:40]!r} stands twice in one object")
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_distinct)  # one for all rows: making it costs as much as a row


# ---- CSV


def _csv_rows(lines: BinaryIO | gzip.GzipFile) -> Iterator[Row | str]:
    """Yields rows whose cells are all text: an empty cell is "", "NA" is a word and 4 is a possible answer."""
    csv.field_size_limit(2**31 - 1)
    first = next(iter(lines), b"").removeprefix(codecs.BOM_UTF8)
    reader = csv.DictReader(line.decode(errors="surrogateescape") for line in chain([first], lines))
    while True:
        try:
            row: dict[Any, Any] = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield f"is not CSV ({error}); mend or remove it"
            continue
        if None in row:
            n = len(reader.fieldnames or ())
            yield f"has {n + len(row[None])} cells where the header has {n}; quote cells that hold a comma"
            continue
        try:
            "".join(chain(row, (cell for cell in row.values() if cell))).encode()
        except UnicodeEncodeError:
            yield "is not UTF-8 text; save it as UTF-8"
            continue
        yield row
