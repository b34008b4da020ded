"""What the commands share: the arguments they take, how they read input and how they print a result."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmtrl.errors import DataError, UsageError
from rmtrl.io import read_object as read_object
from rmtrl.io import write_row_files, write_rows

if TYPE_CHECKING:
    from datasets import Dataset

    from rmtrl.data.reading.row_reader import Faulty

Data = Annotated[str, typer.Argument(help="File (jsonl, json, parquet, csv, also .gz), folder or hub id.")]
Map = Annotated[list[str] | None, typer.Option("--map", help="Rename a column: new=old; may be repeated.")]
Split = Annotated[str, typer.Option(help="Split to read, where the data has several.")]
Model = Annotated[str, typer.Option(help="Checkpoint folder or hub id of a reward model or adapter.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

_SCORES = 'wanted {"id": "a", "scores": [1.5, 0.2]} a line, chosen first, both finite or null'
_LARGEST = sys.float_info.max
write_jsonl, write_jsonl_files = write_rows, write_row_files


def read_pairs(data: str, split: str, columns: list[str] | None, *, faulty: "Faulty" = "raise") -> "Dataset":
    from rmtrl.data.preferences import read_preferences

    wrong = [entry for entry in columns or () if "=" not in entry]
    if wrong:
        raise UsageError(f"got --map {wrong[0]}; wanted new=old, for example --map chosen=good_answer")
    renamed = dict(entry.split("=", 1) for entry in columns or ())
    return read_preferences(data, split=split, columns=renamed, faulty=faulty)


def read_pair_scores(path: Path) -> dict[str, list[float | None]]:
    """Returns the scores of chosen and rejected by id, both None for a pair without, as `rmtrl score` writes them.

    Raises:
        DataError: If the file cannot be read or is empty, a line is of another form, or an id stands twice.
    """
    found: dict[str, list[float | None]] = {}
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    id, scores = _pair_scores(f"{path}, line {number}", line)
                    if id in found:
                        raise DataError(f"{path}, line {number}: {id!r} stands twice; wanted a line a pair")
                    found[id] = scores
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}; {_SCORES}") from error
    if not found:
        raise DataError(f"{path} is empty; {_SCORES}")
    return found


def _pair_scores(place: str, line: str) -> tuple[str, list[float | None]]:
    wrong = DataError(f"{place}: {line.strip()[:60]!r} is no line of scores; {_SCORES}")
    try:
        row = json.loads(line)
        id, scores = row["id"], row["scores"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise wrong from error
    if scores in (None, [None, None]) and type(id) in (str, int):
        return str(id), [None, None]
    if type(id) not in (str, int) or not isinstance(scores, list) or len(scores) != 2:
        raise wrong
    # compared, not converted: an integer may be too large for a float
    if not all(type(score) in (int, float) and -_LARGEST <= score <= _LARGEST for score in scores):
        raise wrong
    return str(id), [float(score) for score in scores]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the JSON objects of a file, one a line; empty lines do not count."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{path} line {number} is {line[:40]!r}; wanted a JSON object a line")
        rows.append(row)
    if not rows:
        raise DataError(f"{path} is empty; wanted a JSON object a line")
    return rows


def read_text(path: Path) -> str:
    """Returns the text of a file; one that cannot be read is an input error."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise DataError(f"{path} cannot be read: {reason}; give an existing text file") from error


def named_numbers(flag: str, text: str | None) -> dict[str, float] | None:
    """Returns the numbers of an option of the form name=number,name=number; None where it is not given."""
    if text is None:
        return None
    try:
        return {name.strip(): float(value) for name, value in (part.rsplit("=", 1) for part in text.split(","))}
    except ValueError as error:
        raise UsageError(f"got {flag} {text}; wanted name=number,name=number") from error


def load_tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"no tokenizer at {path}: {str(error).splitlines()[0]}") from error


def print_json(value: Mapping[str, Any]) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def print_table(rows: Mapping[str, Any]) -> None:
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {f'{value:,}' if isinstance(value, int) else value}")
