"""What the commands share: the arguments they take, how they read input and how they print a result."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmtrl.errors import UsageError
from rmtrl.io import read_sound_rows

if TYPE_CHECKING:
    from datasets import Dataset

    from rmtrl.data.reading.row_reader import Faulty

Data = Annotated[str, typer.Argument(help="File (jsonl, json, parquet, csv, also .gz), folder or hub id.")]
Map = Annotated[list[str] | None, typer.Option("--map", help="Rename a column: new=old; may be repeated.")]
Split = Annotated[str, typer.Option(help="Split to read, where the data has several.")]
Model = Annotated[str, typer.Option(help="Checkpoint folder or hub id of a reward model or adapter.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def read_pairs(data: str, split: str, columns: list[str] | None, *, faulty: "Faulty" = "raise") -> "Dataset":
    from rmtrl.data.preferences import read_preferences

    wrong = [entry for entry in columns or () if "=" not in entry]
    if wrong:
        raise UsageError(f"got --map {wrong[0]}; wanted new=old, for example --map chosen=good_answer")
    renamed = dict(entry.split("=", 1) for entry in columns or ())
    return read_preferences(data, split=split, columns=renamed, faulty=faulty)


def source_rows(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields where each row of a file, a folder or a hub set stands, and the row to the letter where it is text."""
    from rmtrl.data.reading.loading import load_rows, text_files

    files = text_files(source)
    if not files:
        yield from ((f"{source} row {number}", row) for number, row in enumerate(load_rows(source), 1))
    for file in files:
        yield from read_sound_rows(file)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the JSON objects of a file, one a line."""
    return [row for _, row in read_sound_rows(path)]


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
