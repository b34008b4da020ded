"""Rows of a benchmark from local files or the hub, and their cells made into conversations."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rmtrl.data.reading.loading import load_rows
from rmtrl.data.reading.normal_form import prompt_hash
from rmtrl.errors import DataError
from rmtrl.evaluation.scoring import joined
from rmtrl.io import read_sound_rows, suffix_of
from rmtrl.types import Chat, Conversation, Message

Row = dict[str, Any]
Placed = tuple[str, Row]
"""Where a row stands, for messages, and its cells."""

_JSON = (".json", ".jsonl", ".ndjson")


def hub_rows(source: str, *, split: str, name: str | None = None) -> list[Placed]:
    """Returns the rows of a split on the hub.

    Raises:
        DataError: If it cannot be loaded; the message says how to give a local file.
    """
    try:
        rows = load_rows(source, split=split, name=name)
    except DataError as error:
        why = str(error).rpartition("from the hub: ")[2]
        raise DataError(f"{source} cannot be loaded from the hub ({why}); download it and give NAME=PATH") from error
    return [(f"{source} row {number}", row) for number, row in enumerate(rows.to_list(), 1)]


def file_rows(path: Path) -> list[Placed]:
    """Returns the rows of one file: a JSON list, JSON lines, parquet or CSV.

    Raises:
        DataError: If there is no such file, or a line of it is broken.
    """
    if not path.is_file():
        raise DataError(f"no such file: {path}; give a benchmark as NAME=PATH")
    if suffix_of(path) not in _JSON:
        return [(f"{path} row {number}", row) for number, row in enumerate(load_rows(path).to_list(), 1)]
    return list(read_sound_rows(path, wanted="give the benchmark's own file"))


def folder_files(path: Path, ignore: Iterable[str] = ()) -> list[Path]:
    """Returns the data files of a folder and of the folders in it, sorted; `path` itself where it is a file.

    Raises:
        DataError: If there is neither, or the folder holds no data.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"no such file or folder: {path}; give a benchmark as NAME=PATH")
    known = (*_JSON, ".parquet", ".csv")
    skipped = set(ignore)
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and suffix_of(file) in known]
    files = [file for file in files if file.name.lower().removesuffix(".gz") not in skipped]
    if not files:
        raise DataError(f"{path} holds no file of a known format; wanted {', '.join(known)}, each also .gz")
    return files


def local_rows(path: str, split: str) -> list[Placed]:
    """Returns the rows of a file, or of a split of a folder that was downloaded from the hub or saved."""
    place = Path(path).expanduser()
    if place.is_dir():
        rows = load_rows(place, split=split)
        return [(f"{place} row {number}", row) for number, row in enumerate(rows.to_list(), 1)]
    return file_rows(place)


# ---- cells


def cell(placed: Placed, name: str) -> Any:
    """Returns a cell that the benchmark needs.

    Raises:
        DataError: If the row has no such column, or null in it.
    """
    place, row = placed
    if row.get(name) is None:
        has = ", ".join(key for key, value in row.items() if value is not None) or "nothing"
        raise DataError(f"{place} has no {name}; it has {has[:200]}")
    return row[name]


def text(placed: Placed, name: str) -> str:
    """Returns a cell that must be text."""
    value = cell(placed, name)
    if not isinstance(value, str):
        raise DataError(f"{placed[0]}: {name} is {str(value)[:40]!r}; wanted text")
    return value


def texts(placed: Placed, name: str, count: int | None = None) -> list[str]:
    """Returns a cell that must be a list of texts, of `count` of them where that is given."""
    value = cell(placed, name)
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise DataError(f"{placed[0]}: {name} is {str(value)[:40]!r}; wanted a list of texts")
    if not value or count not in (None, len(value)):
        raise DataError(f"{placed[0]}: {name} holds {len(value)} texts; wanted {count or 'one or more'}")
    return value


def prompt_of(placed: Placed, name: str = "prompt") -> list[Message]:
    """Returns a prompt as messages: one user turn where it is text, the turns as they stand where it is a list.

    It is a [`~rmtrl.types.Chat`] where the row has `tools` or `chat_template_kwargs`.
    """
    value = cell(placed, name)
    asked: Any = [{"role": "user", "content": value}] if isinstance(value, str) else _messages(value)
    if not asked:
        raise DataError(f"{placed[0]}: {name} is {str(value)[:40]!r}; wanted text or messages with role and content")
    return Chat.of(asked, placed[1])  # type: ignore[return-value]


def reply(placed: Placed, name: str) -> Conversation:
    """Returns a cell that must be an answer: text, or messages."""
    value = cell(placed, name)
    found = value if isinstance(value, str) else _messages(value)
    if not isinstance(value, str) and not found:
        raise DataError(f"{placed[0]}: {name} is {str(value)[:40]!r}; wanted text or messages with role and content")
    return found


def _messages(value: Any) -> list[Message]:
    """Returns a list of messages without the keys that are null for other rows' sake; empty where it is none."""
    if not isinstance(value, list) or not all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in value):
        return []
    if not all("content" in message and isinstance(message["content"], str | list | None) for message in value):
        return []
    return [{key: cell for key, cell in m.items() if cell is not None or key == "content"} for m in value]


def answered(prompt: list[Message], responses: Iterable[Conversation]) -> tuple[Conversation, ...]:
    """Returns one conversation a response, the prompt before it."""
    return tuple(joined(prompt, response) for response in responses)


def prompt_key(prompt: list[Message]) -> str:
    """Returns the name of a prompt, by which its items are resampled together."""
    return prompt_hash(prompt)


def distinct(ids: Sequence[str]) -> list[str]:
    """Returns the ids, repeated ones with `#2`, `#3`, … behind them, since a published file is not ours to mend.

    Example:

    ```python
    >>> distinct(["7", "8", "7"])
    ['7', '8', '7#2']
    ```
    """
    seen: dict[str, int] = {}
    found = []
    for id in ids:
        seen[id] = seen.get(id, 0) + 1
        found.append(id if seen[id] == 1 else f"{id}#{seen[id]}")
    return found
