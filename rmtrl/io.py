"""Files in and out, once for all stages: rows that are read one by one, objects, and files that are replaced whole.

A row of a JSON or CSV file that is broken costs that row and no other: it comes as a string that says what is wrong
with it. Only what makes the whole file unreadable raises: a broken archive, a JSON document cut short.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import json
import os
import shutil
import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from rmtrl.errors import DataError
from rmtrl.types import json_ready

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]
RawRow = tuple[str, Row | str]
"""Where a row stands ("row 3"), and its cells or what is wrong with it."""


class BrokenLine(str):
    """What is wrong with a line of JSON, the line as it stands, and the row if it is whole but for half pairs."""

    line = ""
    row: Row | None = None


LARGE_BYTES, LARGE_ROWS = 20_000_000, 50_000
"""From here on a pass takes long enough to show its progress."""

IsRow = Callable[[Row], bool]


def read_rows(paths: Sequence[Path], *, is_row: IsRow = bool) -> Iterator[RawRow]:
    """Yields every row of JSON and CSV files (also .gz), good or broken; blank lines are not rows.

    A JSON file holds one object a line, or one document: a list of rows, or an object. An object that is no row by
    `is_row` may hold rows: as its values, or as its only list of objects.

    Args:
        paths (`Sequence[Path]`): Files to read, in this order; with several, each row is named with its file.
        is_row (`Callable[[dict], bool]`): Whether an object can be a row; every object that is not empty by default.

    Raises:
        DataError: If a file cannot be read to its end, or is one JSON document that breaks off.

    Example:

    ```python
    >>> list(read_rows([Path("pairs.jsonl")]))[1]
    ('row 2', "is not JSON (Expecting ',' delimiter, column 41); mend or remove it: …")
    ```
    """
    from tqdm.auto import tqdm

    total = sum(path.stat().st_size for path in paths)
    name = paths[0].name if len(paths) == 1 else f"{len(paths)} files"
    with tqdm(total=total, desc=f"Reading {name}", unit="B", unit_scale=True, disable=total < LARGE_BYTES) as bar:
        for path in paths:
            number, before = 0, bar.n
            named = "" if len(paths) == 1 else f"{path.name}, "
            try:
                with path.open("rb") as raw, gzip.open(raw) if path.name.lower().endswith(".gz") else raw as lines:
                    rows = _csv_rows(lines) if suffix_of(path) in TABLES else _json_rows(lines, is_row)
                    for number, row in enumerate(rows, 1):
                        yield f"{named}row {number}", row
                        if number % 1000 == 0:
                            bar.update(before + raw.tell() - bar.n)
            except (OSError, EOFError, zlib.error) as error:
                raise DataError(f"{path} cannot be read after row {number}: {error}; copy it anew") from error
            except DataError as error:
                raise DataError(f"{path}, {error}") from error


def read_sound_rows(path: Path, *, wanted: str = "wanted one JSON object a line") -> Iterator[tuple[str, Row]]:
    """Yields where each row of a file stands and the row, as [`read_rows`] does; none may be broken.

    Args:
        path (`Path`): File to read.
        wanted (`str`): What the file should hold, for errors.

    Raises:
        DataError: If the file cannot be read or has no rows, or at a row that is broken; the message names it.

    Example:

    ```python
    >>> [row["id"] for place, row in read_sound_rows(Path("scores.jsonl"))]
    ['a', 'b']
    ```
    """
    empty = True
    try:
        for place, row in read_rows([path]):
            if isinstance(row, str):
                raise DataError(f"{path} {place} {row.partition('; wanted')[0]}; {wanted}")
            yield f"{path} {place}", row
            empty = False
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}; {wanted}") from error
    if empty:
        raise DataError(f"{path} is empty; {wanted}")


def suffix_of(path: Path) -> str:
    """Returns what a file's name says of its format, in small letters and without .gz."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def blocks(path: Path) -> Iterator[bytes]:
    """Yields the bytes of a file, a megabyte at a time."""
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            yield block


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file of any size."""
    digest = hashlib.sha256()
    for block in blocks(path):
        digest.update(block)
    return digest.hexdigest()


def read_text(path: Path) -> str:
    """Returns the text of a file.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise DataError(f"{path} cannot be read: {reason}; name one that can, or mend it") from error


def read_object(path: Path) -> Row:
    """Returns the JSON object of a file.

    Raises:
        DataError: If the file cannot be read or holds anything else.

    Example:

    ```python
    >>> read_object(Path("plan.json"))["schema"]
    'rmtrl/plan/1'
    ```
    """
    text = read_text(path)
    try:
        stored = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}; wanted one JSON object") from error
    if not isinstance(stored, dict):
        raise DataError(f"{path} holds no JSON object; name a file that is one")
    return stored


# ---- YAML: what comes with the package, and what people write


def packaged(package: str, name: str) -> Any:
    """Returns what a YAML file of a package of this library holds."""
    return parsed_yaml((resources.files(package) / name).read_text(encoding="utf-8"))


def parsed_yaml(text: str) -> Any:
    """Returns what a YAML text holds, read safely.

    Raises:
        DataError: If it is not YAML, or a key stands twice in a mapping.

    Example:

    ```python
    >>> parsed_yaml("guards: {secrets: {}}")
    {'guards': {'secrets': {}}}
    ```
    """
    import yaml

    class Distinct(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if twice := [name for name in names if names.count(name) > 1]:
                raise yaml.YAMLError(f"{twice[0]!r} stands twice in one mapping{node.start_mark}")
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Distinct)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise DataError(f"is not YAML ({' '.join(str(error).split())[:200]})") from error


# ---- JSON: one object a line, or one document


def _json_rows(lines: BinaryIO | gzip.GzipFile, is_row: IsRow) -> Iterator[Row | str]:
    first = next(_not_blank(lines), b"").removeprefix(codecs.BOM_UTF8)
    row = _object(first)
    if isinstance(row, dict) and is_row(row):
        yield row
        yield from map(_object, _not_blank(lines))
        return
    # the first line is no row: broken, or the start of a document that spans lines
    text = first + lines.read()
    try:
        document = _loads(text)
    except DataError as error:
        found = (_object(line) for line in _not_blank(io.BytesIO(text)))
        if text.startswith(b"[") and not any(isinstance(row, dict) and is_row(row) for row in found):
            raise DataError(f"a list that {error}") from error
        yield from map(_object, _not_blank(io.BytesIO(text)))
    else:
        yield from (_checked(row) for row in _rows_of(document, is_row))


def _rows_of(document: Any, is_row: IsRow) -> list[Any]:
    """Returns the rows of a JSON document: a list of rows, one row, or an object that holds rows."""
    if isinstance(document, list):
        return document
    if isinstance(document, dict) and not is_row(document):
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
        row = _checked(row) if b"\\u" in line and b"\\ud" in line.lower() or not isinstance(row, dict) else row
    except DataError as error:
        row = f"{error}: {line[:40].decode(errors='replace').strip()!r}"
    if isinstance(row, str):
        row = row if isinstance(row, BrokenLine) else BrokenLine(row)
        row.line = line.decode(errors="backslashreplace").rstrip("\r\n")
    return row


def _checked(row: Any) -> Row | str:
    if not isinstance(row, dict):
        return "is not a JSON object; wanted one object a line"
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        broken = BrokenLine("holds half of a surrogate pair (\\ud800 to \\udfff); mend its text")
        broken.row = row
        return broken
    return row


def _loads(text: bytes) -> Any:
    try:
        whole = text.decode()
        if whole[:1] == "{":  # decode() looks for spaces around, which costs as much as to read the row
            row, end = _DECODER.raw_decode(whole)
            if whole[end:] in ("", "\n"):
                return row
        return _DECODER.decode(whole)
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

TABLES = (".csv", ".tsv")


def separator(header: bytes) -> str:
    """Returns what stands between the cells of a table of text, by its header.

    Example:

    ```python
    >>> separator(b"prompt;chosen;rejected")
    ';'
    ```
    """
    return next((mark for mark in "\t,;|" if mark.encode() in header), ",")


def _csv_rows(lines: BinaryIO | gzip.GzipFile) -> Iterator[Row | str]:
    """Yields rows whose cells are all text: an empty cell is "", "NA" is a word and 4 is a possible answer."""
    csv.field_size_limit(2**31 - 1)
    first = next(iter(lines), b"").removeprefix(codecs.BOM_UTF8)
    text = (line.decode(errors="surrogateescape") for line in chain([first], lines))
    reader = csv.DictReader(text, delimiter=separator(first))
    while True:
        try:
            row: dict[Any, Any] = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield f"is not CSV ({error}); mend or remove it"
            continue
        if None in row:
            n, mark = len(reader.fieldnames or ()), {",": "comma", "\t": "tab"}.get(separator(first), separator(first))
            yield f"has {n + len(row[None])} cells where the header has {n}; quote cells that hold a {mark}"
            continue
        try:
            "".join(chain(row, (cell for cell in row.values() if cell))).encode()
        except UnicodeEncodeError:
            yield "is not UTF-8 text; save it as UTF-8"
            continue
        yield row


# ---- writing


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as JSON so that the file is the old one or the new one, never a part.

    Keys keep their order. The folder is made where it is missing.

    Args:
        path (`str` or `Path`): File to write or replace.
        value (`Any`): What `json` can write.

    Raises:
        ValueError: If `value` holds NaN or an infinity, which JSON has no form for; the old file stays.
        DataError: If the file cannot be written.

    Example:

    ```python
    >>> write_json("metrics.json", {"pairwise_accuracy": 0.65, "n": 505})
    ```
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with replacing(path) as beside:
        beside.write_text(f"{text}\n", encoding="utf-8")


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes one row a line as [`write_json`] does, compressed for a name in .gz, and returns how many there were.

    NaN and infinities are written as null; the same rows are the same bytes.

    Raises:
        DataError: If the file cannot be written.

    Example:

    ```python
    >>> write_rows("pairs.jsonl", [{"prompt": "Why? ", "chosen": "Because.", "rejected": "No."}])
    1
    ```
    """
    return write_row_files({Path(path): rows})[0]


def append_row(path: str | Path, row: Mapping[str, Any] | None = None) -> None:
    """Adds a row to a file as [`write_rows`] writes it, whole or not at all; writers wait for each other.

    Args:
        path (`str` or `Path`): File of rows; made where there is none.
        row (`Mapping[str, Any]`, *optional*): What to add; without it the file is only tried.

    Raises:
        DataError: If the file cannot be written, holds a row that is broken, or ends within a line.

    Example:

    ```python
    >>> append_row("history.jsonl", {"p": 0.4, "alarm": False})
    ```
    """
    import fcntl  # POSIX has it alone

    file = Path(path)
    _check_row_file(file)
    line = b"" if row is None else f"{_json(row)}\n".encode()
    line = gzip.compress(line, mtime=0) if line and file.suffix == ".gz" else line
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a+b", buffering=0) as to:
            fcntl.flock(to, fcntl.LOCK_EX)
            if size := to.seek(0, os.SEEK_END):
                deque(read_sound_rows(file), 0)
                to.seek(-1, os.SEEK_END)
                if file.suffix != ".gz" and to.read(1) != b"\n":
                    raise DataError(f"{file} ends without a line break: end its last line, or remove it")
            _add(to.fileno(), line, size)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}") from error


def _add(to: int, line: bytes, size: int) -> None:
    """Writes a line at once to the end of a file of a size, or leaves it at that."""
    try:
        if line and os.write(to, line) < len(line):
            raise OSError("the line was written in part, and taken back")
        os.fsync(to)
    except OSError:
        os.ftruncate(to, size)
        raise


def write_row_files(given: Mapping[Path | None, Iterable[Mapping[str, Any]]]) -> list[int]:
    """Writes several files as [`write_rows`] does, where one is named; all are complete before the first stands."""
    files = {path: rows for path, rows in given.items() if path is not None}
    for path in files:
        _check_row_file(path)
    with ExitStack() as complete:  # left in reverse, so that the first file takes its place first
        beside = {path: complete.enter_context(replacing(path)) for path in reversed(files)}
        return [_write_lines(beside[path], path, rows) for path, rows in files.items()]


def _check_row_file(path: Path) -> None:
    if suffix_of(path) in (".parquet", *TABLES):
        raise DataError(f"cannot write {path}: rows are written as JSON, one a line; name it .jsonl or .jsonl.gz")


@contextmanager
def replacing(path: str | Path, *, ending: str = "new", folder: bool = False) -> Iterator[Path]:
    """Yields where to write a file or folder, beside `path`; it takes its place at the end, or goes if that fails.

    Args:
        path (`str` or `Path`): What to write or replace; the folder it is in is made.
        ending (`str`): End of the name beside; what a killed run left under it is overwritten.
        folder (`bool`): Whether it is a folder, which is made; see [`replace_folder`].

    Raises:
        DataError: If it cannot be written.

    Example:

    ```python
    >>> with replacing("plots/margins.png") as beside:
    ...     figure.savefig(beside, format="png")
    ```
    """
    final = Path(path).resolve()  # a link keeps pointing where it points
    beside = final.with_name(f".{final.name}.{ending}")
    try:
        if not folder and final.exists() and not final.is_file():
            raise DataError(f"cannot write {path}: it exists and is not a file")
        final.parent.mkdir(parents=True, exist_ok=True)
        if folder:
            _remove(beside, folder)
            beside.mkdir()
        yield beside
        replace_folder(beside, final) if folder else beside.replace(final)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        _remove(beside, folder)


def _remove(path: Path, folder: bool) -> None:
    if folder:
        shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink()


def replace_folder(new: Path, final: Path, *, keep: bool = False) -> None:
    """Puts the finished folder `new` in the place of `final` by renames.

    An interruption leaves the old folder or the new one whole, never a mixture. Folders cannot be exchanged in one
    step: between the two renames `final` is absent for an instant and the old one stands beside it as `.NAME.old`.

    Args:
        new (`Path`): The finished folder, on the same file system as `final`; best written beside it.
        final (`Path`): Where it belongs; an older folder there is deleted once the new one stands.
        keep (`bool`): Whether the older folder stays beside it, as `.NAME.old`; the one before it does not.

    Raises:
        DataError: If `new` is not a folder; `final` stays as it was.
        OSError: If a rename fails; `final` is put back.

    Example:

    ```python
    >>> replace_folder(Path("outputs/run/.reward.new"), Path("outputs/run/reward"))
    ```
    """
    if not new.is_dir():
        raise DataError(f"{new} is not a folder, so it cannot take the place of {final}; write it first")
    old = former_folder(final)
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)  # left by an interruption after its successor stood
        os.rename(final, old)
    try:
        os.rename(new, final)
    except OSError:
        if old.exists():
            os.rename(old, final)
        raise
    if not keep:
        shutil.rmtree(old, ignore_errors=True)


def former_folder(final: Path) -> Path:
    """Returns where the folder stands that another one took the place of; see [`replace_folder`]."""
    return final.with_name(f".{final.name}.old")


def _write_lines(beside: Path, path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    n = 0
    # no time stamp and no name in the archive, so that the same lines are the same bytes
    with (
        beside.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) if path.suffix == ".gz" else file as to,
    ):
        for lines in _lines(rows):
            to.write("".join(lines).encode())
            n += len(lines)
    return n


def _lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[str]]:
    loaded = sys.modules.get("datasets")  # without which nothing is a data set
    if loaded is None or not isinstance(rows, loaded.Dataset):
        yield from ([f"{_json(row)}\n"] for row in rows)
        return
    for batch in map(table_columns, rows.with_format("arrow").iter(1000)):  # ten times as fast as row by row
        form = ", ".join(f"{_json(name)}: ".replace("%", "%%") + "%s" for name in batch)
        yield [f"{{{form}}}\n" % cells for cells in zip(*map(_cells, batch.values()), strict=True)]


def _cells(values: list[Any]) -> list[str]:
    """Returns the values of a column as JSON, at once where none of them has parts that the line break parts too."""
    cells = _json(values, _BY_LINE)[1:-1].split("\n")
    return cells if len(cells) == len(values) else [_json(value) for value in values]


def _json(value: Any, encoder: json.JSONEncoder | None = None) -> str:
    encoder = encoder or _ENCODER
    try:
        return encoder.encode(value)
    except ValueError:
        return encoder.encode(json_ready(value))


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
_BY_LINE = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=("\n", ": "))


def table_columns(table: pa.Table) -> dict[str, list[Any]]:
    """Returns the columns of an Arrow table as Python values; JSON is read to the letter, 1.7 as 1.7."""
    table = table.combine_chunks()  # rows that were selected come in a chunk each
    return {name: _values(table[name]) for name in table.column_names}


def _values(column: pa.ChunkedArray) -> list[Any]:
    values: list[Any] = column.to_pylist()
    kind = getattr(column.type, "extension_name", None)
    if kind == "arrow.json":
        return _parsed("null" if value is None else value for value in values)
    if getattr(getattr(column.type, "value_type", None), "extension_name", None) == "arrow.json":
        return _parsed("null" if value is None else f"[{','.join(value)}]" for value in values)
    return values


def _parsed(texts: Iterable[str]) -> list[Any]:
    return list(json.loads(f"[{','.join(texts)}]"))  # one text is read several times as fast as many
