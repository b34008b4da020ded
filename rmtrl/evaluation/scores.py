"""Scores in files: those that somebody hands in, and those of a run, which goes on where it was killed.

One line an item, candidates in the benchmark's order, null where an item was not scored: `{"id": …, "scores": […]}`.
"""

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rmtrl.errors import DataError
from rmtrl.evaluation.benchmarks.base import Item, Scores
from rmtrl.evaluation.runner import ItemScores, score_items, windows
from rmtrl.io import read_sound_rows, write_json
from rmtrl.types import Scorer

_FAILED = "$ERROR$"  # as in PPE's own files
_FORM = 'wanted one line an item, such as {"id": "a", "scores": [1.5, 0.2]}'


def read_scores(path: str | Path, items: Sequence[Item]) -> list[ItemScores]:
    """Returns the scores of a file in the order of the items; an item the file lacks, or has null for, is `None`.

    An item is named by its id, or by its id in the benchmark's own files where only one item has it.

    The word `$ERROR$` stands for a judge's failure on one candidate, −∞, which some benchmarks allow. Lines of
    JudgeBench's own files, `{"pair_id", "score_A", "score_B"}`, are read too.

    Raises:
        DataError: If there is no such file, it is empty, a line is not of the form, an id is unknown or stands twice,
            the number of scores is not that of the candidates, or a score is NaN or beyond a float.

    Example:

    ```python
    >>> scores = read_scores("scores.jsonl", items)
    ```
    """
    known = {item.id: item for item in items}
    bare: dict[str, list[Item]] = {}
    for item in items:
        bare.setdefault(item.own_id or item.id, []).append(item)
    found: dict[str, ItemScores] = {}
    for place, line in read_sound_rows(Path(path), wanted=_FORM):
        row = _row(place, line)
        id = str(row["id"])
        own = [known[id]] if id in known else bare.get(id, [])
        if not own:
            raise DataError(f"{place}: the benchmark has no item {id!r}; its ids are like {items[0].id!r}")
        if len(own) > 1:
            which = " and ".join(item.id for item in own[:3])
            raise DataError(f"{place}: the id {id!r} is of {which}; give the whole id")
        id = own[0].id
        if id in found:
            raise DataError(f"{place}: the item {id!r} stands twice; keep one of the lines")
        found[id] = _scores_in(row, known[id], place)
    return [found.get(item.id) for item in items]


def _scores_in(row: Mapping[str, Any], item: Item, place: str) -> ItemScores:
    values = row["scores"]
    if values is None or (isinstance(values, list) and values and all(value is None for value in values)):
        return None
    if not isinstance(values, list) or len(values) != len(item.candidates):
        got = f"{len(values)} scores" if isinstance(values, list) else f"the scores {str(values)[:40]!r}"
        raise DataError(f"{place}: {got} for {item.id!r}; wanted {len(item.candidates)}, one a candidate, or null")
    numbers = [-math.inf if value == _FAILED else value for value in values]
    if not all(type(value) in (int, float) and _fits(value) for value in numbers):
        raise DataError(f"{place}: the scores of {item.id!r} are {str(values)[:60]}; wanted numbers, or null for all")
    return np.array(numbers, dtype=np.float64)


def _fits(value: float) -> bool:
    """Returns whether a number is a finite float or −∞; integers of JSON can be larger."""
    return value == -math.inf or abs(value) <= sys.float_info.max


def _row(place: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
    if {"pair_id", "score_A", "score_B"} <= set(row):  # JudgeBench's own files
        return {"id": row["pair_id"], "scores": [row["score_A"], row["score_B"]]}
    if not {"id", "scores"} <= set(row):
        raise DataError(f"{place} is {json.dumps(row)[:60]}; {_FORM}")
    return row


def score_lines(items: Sequence[Item], scores: Scores) -> Iterator[dict[str, Any]]:
    """Yields the line of each item as a dictionary, in the form that [`read_scores`] reads."""
    for item, own in zip(items, scores, strict=True):
        values = None if own is None else [score if math.isfinite(score) else _FAILED for score in own.tolist()]
        yield {"id": item.id, "scores": values}


def score_into(
    path: str | Path,
    scorer: Scorer,
    items: Sequence[Item],
    *,
    key: Mapping[str, Any],
    name: str = "items",
    say: Callable[[str], None] = print,
) -> list[ItemScores]:
    """Returns the scores of all items and leaves them in a file; what a killed run left there is not scored again.

    Scores go to `<path>.partial`, window by window, and the file is renamed when complete; `.key` files beside them
    say what they are scores of. Stored scores count only under an equal key, and only whole windows of them, so that
    a resumed run has the numbers of one that was never stopped.

    Args:
        path (`str` or `Path`): File to write.
        scorer ([`~rmtrl.types.Scorer`]): Anything that scores conversations.
        items (`Sequence[Item]`): All items of the benchmark.
        key (`Mapping[str, Any]`): Fingerprints of model and benchmark, rendering; JSON values.
        name (`str`): What is scored, for the bar and for what is said.
        say (`Callable`): Is told in one line what becomes of earlier work.

    Raises:
        DataError: If the file cannot be written.

    Example:

    ```python
    >>> scores = score_into("outputs/eval/llmbar/scores.jsonl", scorer, items, key={"model": "…", "benchmark": "…"})
    ```
    """
    path = Path(path)
    partial = _beside(path, ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if finished := _finished(path, items, key):
            say(f"{name}: all {len(items):,} items were scored by an earlier run, same model and data")
            return finished
        scores = _unfinished(path, items, key, name, say)
        with partial.open("a", encoding="utf-8") as file:
            for window in score_items(scorer, items, done=len(scores), name=name):
                part = items[len(scores) : len(scores) + len(window)]
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in score_lines(part, window))
                file.flush()
                scores += window
        partial.replace(path)
        _beside(partial, ".key").replace(_beside(path, ".key"))
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}; give another folder") from error
    return scores


def _finished(path: Path, items: Sequence[Item], key: Mapping[str, Any]) -> list[ItemScores]:
    """Returns the scores of an earlier run that came to its end under this key; empty where there is none.

    A file that has lost lines since becomes a partial one.
    """
    partial = _beside(path, ".partial")
    if path.exists() and not partial.exists() and _is_key(_beside(partial, ".key"), key):
        _beside(partial, ".key").replace(_beside(path, ".key"))  # killed between the two renames
    if not (path.exists() and _is_key(_beside(path, ".key"), key)):
        return []
    scores, _ = _take_windows(path, items)
    if len(scores) == len(items):
        return scores
    path.replace(partial)
    _beside(path, ".key").replace(_beside(partial, ".key"))
    return []


def _unfinished(
    path: Path, items: Sequence[Item], key: Mapping[str, Any], name: str, say: Callable[[str], None]
) -> list[ItemScores]:
    """Returns the usable scores of a run that was stopped; the rest of its partial file is gone afterwards."""
    partial = _beside(path, ".partial")
    if partial.exists() and _is_key(_beside(partial, ".key"), key):
        scores, n_bytes = _take_windows(partial, items)
        with partial.open("r+b") as file:
            file.truncate(n_bytes)
        say(f"{name}: {len(scores):,} of {len(items):,} items were scored by an earlier run; it goes on from there")
        return scores
    if path.exists() or partial.exists():
        say(f"{name}: the scores in {path.parent} are of another model, rendering or data; scoring starts again")
    # from here on the old file, which stays until the new one is whole, is nobody's
    _beside(path, ".key").unlink(missing_ok=True)
    partial.write_bytes(b"")  # before its key: a key without it says that the file was renamed
    write_json(_beside(partial, ".key"), key)
    return []


def disown(path: Path) -> None:
    """Forgets what the scores at `path` are of, so that no run takes them for its own."""
    for place in (path, _beside(path, ".partial")):
        _beside(place, ".key").unlink(missing_ok=True)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _is_key(path: Path, key: Mapping[str, Any]) -> bool:
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")) == json.loads(json.dumps(key)))
    except (OSError, ValueError):
        return False


def _take_windows(path: Path, items: Sequence[Item]) -> tuple[list[ItemScores], int]:
    """Returns the scores of the whole windows at the start of a file, and the bytes these lines take."""
    scores: list[ItemScores] = []
    ends = [0]
    with path.open("rb") as file:
        for item, line in zip(items, file, strict=False):
            try:
                scores.append(_scores_of(item, line))
            except (ValueError, TypeError, RecursionError):  # torn by the kill
                break
            ends.append(ends[-1] + len(line))
    whole = max((part.stop for part in windows(items) if part.stop <= len(scores)), default=0)
    return scores[:whole], ends[whole]


def _scores_of(item: Item, line: bytes) -> ItemScores:
    """Returns the scores that a line holds for this item; raises where it is another line or a part of one."""
    row = _row(item.id, json.loads(line.decode()))
    if not line.endswith(b"\n") or row["id"] != item.id:
        raise DataError(f"not the line of {item.id}")
    return _scores_in(row, item, item.id)
