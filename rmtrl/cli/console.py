"""What the commands share: how they read input, what they may write, and the one way a result is shown."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rmtrl.errors import DataError, UsageError
from rmtrl.io import read_sound_rows
from rmtrl.reporting.tables import table
from rmtrl.types import json_ready

if TYPE_CHECKING:
    from datasets import Dataset

    from rmtrl.data.preferences import Faulty


# ---- input


def renames(columns: list[str] | None, *, example: str = "chosen=good_answer") -> dict[str, str]:
    """Returns the old name of each new one that `--map` gives."""
    several = [entry for entry in columns or () if re.fullmatch(r"\w+=[^=,]+(,\w+=[^=,]+)+", entry)]
    if several:
        raise UsageError(f"got --map {several[0]}; repeat it: --map {several[0].replace(',', ' --map ')}")
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


def check_outputs(inputs: Iterable[str | Path | None], outputs: Mapping[str, Path | None], *, into: str = "") -> None:
    """Raises where an output, by its flag, is an input, in an input folder or another output, or cannot be written.

    An output that is a folder with an input in it is one that is replaced whole. All are files but that of `into`.
    """
    places = {name: Path(name).expanduser().resolve() for name in inputs if name is not None}
    taken: dict[Path, str] = {}
    for flag, given in outputs.items():
        if given is None:
            continue
        path = given.resolve()
        for name, own in places.items():
            if own == path or own.is_dir() and own in path.parents or path in own.parents:
                raise UsageError(f"got {flag} {given}, which is read as input {name}; give another file")
        if (other := taken.setdefault(path, flag)) != flag:
            raise UsageError(f"got {given} for both {other} and {flag}; give two files")
        if flag != into and path.exists() and not path.is_file():
            raise UsageError(f"cannot write {flag} {given}: it exists and is not a file; name another")
        above = next(place for place in path.parents if place.exists())
        if not (above.is_dir() and os.access(above, os.W_OK)):
            raise UsageError(f"cannot write {flag} {given}: {above} is no folder to write in; name another place")


# ---- output

_results: list[TextIO] = []  # where results go while a command runs


def results_alone(command: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the command with stdout kept for what it shows; what a library prints goes to stderr."""

    @wraps(command)
    def run(**given: Any) -> None:
        _results.append(sys.stdout)
        try:
            with redirect_stdout(sys.stderr):
                command(**given)
        finally:
            _results.pop()

    return run


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
        text = json.dumps(json_ready(result), indent=2, ensure_ascii=False, allow_nan=False)
    else:
        text = words if isinstance(words, str) else table(words or result)
    try:
        print(text, file=_results[-1] if _results else sys.stdout, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise DataError(f"cannot write the result: {error.strerror}; give another place to write to") from error
    for warning in warnings:
        print(f"rmtrl: warning: {warning}", file=sys.stderr)
