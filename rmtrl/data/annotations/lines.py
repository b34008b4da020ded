"""The lines of an annotation file, each as an object, or as None where it is broken."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rmtrl.data.reading.loading import load_rows
from rmtrl.errors import DataError

_TEXT_CELLS = {"id", "idx", "item_id", "prompt_id", "annotator", "domain", "source", "a", "b", "choice", "prompt",
               "instruction", "input", "response", "response_a", "response_b", "response1", "response2"}  # fmt: skip


def read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields the text of each line and what it holds: an object, or None where it is broken."""
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if not path.is_file() or suffix not in (".jsonl", ".ndjson", ".json"):
        for row in _table(path):
            row = {name: _cell(name, value) for name, value in row.items() if value is not None and value != ""}
            yield json.dumps(row, default=str), row
        return
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            if suffix == ".json" and (whole := _array(path, file.read())) is not None:
                yield from ((json.dumps(row), _writable(row)) for row in whole)
                return
            file.seek(0)
            for line in file:
                if line.strip():
                    yield line.decode("utf-8", "replace").strip(), _parsed(line)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _array(path: Path, text: bytes) -> list[Any] | None:
    if not text.lstrip().startswith(b"["):
        return None
    try:
        return list(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}); mend it or give one object a line as .jsonl") from error


def _table(path: Path) -> Iterator[dict[str, Any]]:
    try:
        yield from load_rows(path)
    except UnicodeDecodeError as error:  # text is decoded as rows are read
        raise DataError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from error


def _parsed(line: bytes) -> Any:
    try:
        value = json.loads(line.decode("utf-8-sig"))
        return _writable(value) if b"\\u" in line else value
    except (ValueError, RecursionError):
        return None


def _writable(value: Any) -> Any:
    """Returns the value, or None where it holds half a surrogate pair, which no file can."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return None
    return value


def _cell(name: str, value: Any) -> Any:
    """Returns a number where the text of a csv cell is one: a column that also has empty cells is read as text."""
    if isinstance(value, str) and name not in _TEXT_CELLS and re.fullmatch(r"[+-]?\d+(\.\d*)?", value):
        return int(value) if value.isdecimal() and len(value) < 19 else float(value)
    return value
