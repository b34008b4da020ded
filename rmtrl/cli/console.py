"""What the commands share: how they read input, what they may write, and the one way a result is shown."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmtrl.errors import UsageError
from rmtrl.io import read_sound_rows
from rmtrl.types import json_ready

if TYPE_CHECKING:
    from datasets import Dataset

    from rmtrl.data.preferences import Faulty


# ---- input


def renames(columns: list[str] | None, *, example: str = "chosen=good_answer") -> dict[str, str]:
    """Returns the old name of each new one that `--map` gives."""
    wrong = [entry for entry in columns or () if not all(entry.partition("="))]
    if wrong:
        raise UsageError(f"got --map {wrong[0]}; wanted new=old, for example --map {example}")
    return dict(entry.split("=", 1) for entry in columns or ())


def read_pairs(data: str, split: str, columns: list[str] | None, *, faulty: "Faulty" = "raise") -> "Dataset":
    from rmtrl.data.preferences import read_preferences

    return read_preferences(data, split=split, columns=renames(columns), faulty=faulty)


def notes_of(pairs: "Dataset") -> list[str]:
    """Returns what was said of the file when pairs were read, for the record."""
    return list(filter(None, (pairs.info.description or "").split("\n")))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the JSON objects of a file, one a line."""
    return [row for _, row in read_sound_rows(path)]


def words(text: str) -> list[str]:
    """Returns the names of an option of the form name,name."""
    return [name.strip() for name in text.split(",") if name.strip()]


def check_model_or_scores(model: Any, scores: Any) -> None:
    if (model is None) == (scores is None):
        raise UsageError("wanted either --model or --scores, and one of them")


def check_outputs(inputs: Iterable[str | Path | None], outputs: Mapping[str, Path | None]) -> None:
    """Raises where an output, by its flag, would replace an input, a file of an input folder or another output.

    An output that is a folder with an input in it is one that is replaced whole.
    """
    read = {Path(name).expanduser().resolve(): name for name in inputs if name is not None}
    taken: dict[Path, str] = {}
    for flag, given in outputs.items():
        if given is None:
            continue
        path = given.resolve()
        places = (path, *path.parents) if given.exists() else (path,)
        inside = [name for own, name in read.items() if path in own.parents]
        if source := next((read[own] for own in places if own in read), next(iter(inside), None)):
            raise UsageError(f"got {flag} {given}, which is read as input {source}; give another file")
        if (other := taken.setdefault(path, flag)) != flag:
            raise UsageError(f"got {given} for both {other} and {flag}; give two files")


# ---- output


_MOST_ROWS = 20
_WIDEST = 140
_LABELS = {"out": "written to", "exact": "exact duplicates", "near": "near-duplicates"}
_FOR_PROGRAMS = {"schema", "fingerprint", "model_fingerprint", "hash", "environment", "prompt_ids", "warnings"}


def show(
    result: Mapping[str, Any],
    as_json: bool,
    *,
    words: str | Mapping[str, Any] | None = None,
    warnings: Iterable[str] = (),
) -> None:
    """Prints a result, as JSON or as a table of the same values, then the warnings on stderr.

    Args:
        result (`Mapping[str, Any]`): What `json_ready` takes.
        as_json (`bool`): Whether to print JSON.
        words (`str` or `Mapping`, *optional*): For people in place of the whole: a report, or some of the values.
        warnings (`Iterable[str]`): What to know before use.
    """
    if as_json:
        print(json.dumps(json_ready(result), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print(words if isinstance(words, str) else "\n".join(_table(json_ready(words or result))))
    for warning in warnings:
        print(f"rmtrl: warning: {warning}", file=sys.stderr)


def _table(values: Mapping[str, Any]) -> Iterator[str]:
    """Yields the values that fit a line, then each other one under its name; what is empty is left out."""
    cells = {name: _cell(value) for name, value in values.items() if name not in _FOR_PROGRAMS}
    yield from _aligned([(_label(name), cell) for name, cell in cells.items() if cell])
    for name in (name for name, cell in cells.items() if cell is None):
        part = list(_part(values[name]))
        yield from ("", _label(name), *part) if part else ()


def _part(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping) and not all(map(_is_nested, value.values())):
        are_counts = all(type(item) is int for item in value.values())
        yield from _table({name: item for name, item in value.items() if item or not are_counts})
        return
    items = [{"": name, **item} for name, item in value.items()] if isinstance(value, Mapping) else value
    shown = items[:_MOST_ROWS]
    if all(map(_is_nested, shown)):
        grid = _grid(shown)
        blocks = (line for item in shown for line in ("", *_table(item)))
        yield from grid if grid and max(map(len, grid)) <= _WIDEST else blocks
    else:
        yield from (f"- {item if isinstance(item, str) else ' | '.join(map(str, item))}" for item in shown)
    if len(items) > len(shown):
        yield f"{len(items) - len(shown):,} more; see --out or --json"


def _grid(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns a line a row under a line of names; empty where a value does not fit a cell."""
    names = [name for name in rows[0] if name not in _FOR_PROGRAMS]
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    if any(cell is None for row in cells for cell in row):
        return []
    return _aligned([list(map(_label, names)), *cells])


def _aligned(rows: Sequence[Sequence[str | None]]) -> list[str]:
    """Returns the rows as lines with their cells one under the other."""
    widths = [max(len(cell or "") for cell in column) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{cell or '':<{n}}" for cell, n in zip(row, widths, strict=True)) for row in rows)
    return [line.rstrip() for line in lines]


def _cell(value: Any) -> str | None:
    """Returns a value in a few words, "" for one that is empty; None where it needs lines of its own."""
    if value is None or value in ([], {}):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3f}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.3g}"
    if isinstance(value, Mapping):
        low, high = (_cell(value.get(end)) or "?" for end in ("low", "high"))
        return None if _is_nested(value) else f"{_cell(value['value'])} [{low}, {high}] (n = {value['n']:,})"
    if isinstance(value, list):
        joined = ", ".join(map(str, value))
        return None if len(joined) > 60 or any(isinstance(item, list | Mapping) for item in value) else joined
    return str(value)


def _is_nested(value: Any) -> bool:
    """Returns whether a value has named parts; an estimate counts as one value."""
    return isinstance(value, Mapping) and not {"value", "low", "high", "n"} <= set(value)


def _label(name: str) -> str:
    return _LABELS.get(name, str(name).replace("_", " "))
