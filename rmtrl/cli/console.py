"""What the commands share: the arguments they take, how they read input and how they print a result."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmtrl.errors import DataError, UsageError

if TYPE_CHECKING:
    from datasets import Dataset

Data = Annotated[str, typer.Argument(help="File (jsonl, json, parquet, csv, also .gz), folder or hub id.")]
Map = Annotated[list[str] | None, typer.Option("--map", help="Rename a column: new=old; may be repeated.")]
Split = Annotated[str, typer.Option(help="Split to read, where the data has several.")]
Model = Annotated[str, typer.Option(help="Checkpoint folder or hub id of a reward model or adapter.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def read_pairs(data: str, split: str, columns: list[str] | None) -> "Dataset":
    from rmtrl.data.preferences import read_preferences

    wrong = [entry for entry in columns or () if "=" not in entry]
    if wrong:
        raise UsageError(f"got --map {wrong[0]}; wanted new=old, for example --map chosen=good_answer")
    return read_preferences(data, split=split, columns=dict(entry.split("=", 1) for entry in columns or ()))


def load_tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"no tokenizer at {path}: {str(error).splitlines()[0]}") from error


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    beside = path.with_name(f".{path.name}.new")
    try:
        with beside.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        beside.replace(path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error
    finally:
        beside.unlink(missing_ok=True)


def print_json(value: Mapping[str, Any]) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def print_table(rows: Mapping[str, Any]) -> None:
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {f'{value:,}' if isinstance(value, int) else value}")
