"""A result as people read it: the table of the values that its JSON has."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rmtrl.types import json_ready, with_interval

_MOST_ROWS = 20
_WIDEST = 200
_LABELS = {"out": "written to", "exact": "exact duplicates", "near": "near-duplicates"}
_FOR_PROGRAMS = {"schema", "fingerprint", "model_fingerprint", "hash", "environment", "prompt_ids", "warnings"}


def table(values: Mapping[str, Any]) -> str:
    """Returns the values that fit a line, then each other one under its name; what is empty is left out.

    Args:
        values (`Mapping[str, Any]`): What `json_ready` takes.

    Example:

    ```python
    >>> print(table({"pairs": 1200, "accuracy": Estimate(0.75, 0.7, 0.8, 300)}))
    pairs     1,200
    accuracy  0.750 [0.700, 0.800] (n = 300)
    ```
    """
    return "\n".join(_lines(json_ready(values))).lstrip("\n")


def _lines(values: Mapping[str, Any]) -> Iterator[str]:
    cells = {name: cell(value) for name, value in values.items() if name not in _FOR_PROGRAMS}
    yield from _aligned([(label(name), cell) for name, cell in cells.items() if cell])
    for name in (name for name, cell in cells.items() if cell is None):
        part = list(_part(values[name]))
        yield from ("", label(name), *part) if part else ()


def _part(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping) and not all(map(_is_nested, value.values())):
        are_counts = all(type(item) is int for item in value.values())
        yield from _lines({name: item for name, item in value.items() if item or not are_counts})
        return
    items = [{"": name, **item} for name, item in value.items()] if isinstance(value, Mapping) else value
    shown = items[:_MOST_ROWS]
    if all(map(_is_nested, shown)):
        grid = _grid(shown)
        blocks = (line for item in shown for line in ("", *_lines(item)))
        yield from grid if grid and max(map(len, grid)) <= _WIDEST else blocks
    else:
        yield from (f"- {item if isinstance(item, str) else ' | '.join(map(str, item))}" for item in shown)
    if len(items) > len(shown):
        yield f"{len(items) - len(shown):,} more; see --json"


def _grid(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns a line a row under a line of names, without columns that are empty; none where a value fits no cell."""
    names = [name for name in rows[0] if name not in _FOR_PROGRAMS and any(cell(row.get(name)) != "" for row in rows)]
    cells = [[cell(row.get(name)) for name in names] for row in rows]
    if any(cell is None for row in cells for cell in row):
        return []
    return _aligned([list(map(label, names)), *cells])


def _aligned(rows: Sequence[Sequence[str | None]]) -> list[str]:
    """Returns the rows as lines with their cells one under the other."""
    widths = [max(len(cell or "") for cell in column) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{cell or '':<{n}}" for cell, n in zip(row, widths, strict=True)) for row in rows)
    return [line.rstrip() for line in lines]


def cell(value: Any) -> str | None:
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
        return None if _is_nested(value) else _estimate(**value)
    if isinstance(value, list):
        joined = ", ".join(map(str, value))
        return None if len(joined) > 60 or any(isinstance(item, list | Mapping) for item in value) else joined
    return str(value)


def _estimate(value: float | None, low: float | None, high: float | None, n: int, **_: Any) -> str:
    return f"{with_interval(cell(value) or 'unknown', low, high, lambda end: str(cell(end)))} (n = {n:,})"


def _is_nested(value: Any) -> bool:
    """Returns whether a value has named parts; an estimate counts as one value."""
    return isinstance(value, Mapping) and not {"value", "low", "high", "n"} <= set(value)


def label(name: str) -> str:
    return _LABELS.get(name, str(name).replace("_", " "))
