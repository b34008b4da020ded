"""Loads the rows of a file, a folder, a saved dataset or a hub set, and says in one line where a file is broken."""

import gzip
import logging
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset, load_dataset_builder, load_from_disk
from datasets.data_files import _get_data_files_patterns, resolve_pattern
from datasets.exceptions import DatasetsError
from datasets.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from rmtrl.errors import DataError
from rmtrl.io import LARGE_BYTES, TABLES, read_rows, read_sound_rows, separator, suffix_of

_FORMATS = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet"}
_FORMATS |= dict.fromkeys(TABLES, "csv")
_LOAD_ERRORS = (DatasetsError, OSError, ValueError, EOFError, StopIteration, zlib.error)


def load_rows(source: str | Path, *, split: str = "train", name: str | None = None) -> Dataset:
    """Returns the rows of `source` as they stand there; see [`rmtrl.data.preferences.read_preferences`].

    Raises:
        DataError: If the source is missing, broken or empty; the message names file and row.
    """
    path = _path_of(source)
    large = path.is_file() and path.stat().st_size >= LARGE_BYTES
    with _explained(source, path), progress_bars(large or not path.exists()):
        return _load(str(source), path, split, name)


def source_rows(source: str, *, broken: bool = False) -> Iterator[tuple[str, Any]]:
    """Yields where each row of a source stands, and the row to the letter where its files are text.

    Args:
        source (`str`): File, folder or hub id.
        broken (`bool`): Whether a line that is no row is yielded too, as what is wrong with it.

    Raises:
        DataError: If the source is missing, broken or empty.
    """
    files = text_files(source)
    if not files:
        yield from ((f"{source} row {number}", row) for number, row in enumerate(load_rows(source), 1))
    for file in files:
        raw = ((f"{file} {place}", row) for place, row in read_rows([file]))
        yield from raw if broken else read_sound_rows(file)


def text_files(source: str | Path, *, split: str = "train", name: str | None = None) -> list[Path]:
    """Returns the JSON and CSV files that a split of `source` is made of; none where it is stored otherwise.

    Raises:
        DataError: If the source is a file of no known format, or a folder without data or without that split.
    """
    path = _path_of(source)
    if path.is_file():
        return [path] if _format_of(path) != "parquet" else []
    if not path.is_dir() or _is_saved(path):
        return []
    with _explained(source, path), progress_bars(False):
        by_split = _files_by_split(path, split, name)
    files = [Path(file) for own in by_split.values() for file in own]
    return files if all(is_text(file) for file in files) else []


def is_text(path: Path) -> bool:
    """Returns whether a file's name says JSON or CSV."""
    return _FORMATS.get(suffix_of(path)) in ("json", "csv")


def _path_of(source: str | Path) -> Path:
    if not str(source).strip():
        raise DataError("got an empty name of a data set; give a path or a hub id of the form owner/name")
    return Path(source).expanduser()


def _load(source: str, path: Path, split: str, name: str | None) -> Dataset:
    if path.is_dir():
        if _is_saved(path):
            return _saved_split(path, split)
        return _load_files(path, _files_by_split(path, split, name), split)
    if path.is_file():
        return _load_files(path, {re.split(r"\W", split)[0]: [str(path)]}, split)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and suffix_of(Path(source)) not in _FORMATS:
        return load_dataset(source, name, split=split)
    raise DataError(f"no such file or folder: {source}; give a path or a hub id of the form owner/name")


def _load_files(source: Path, by_split: dict[str, list[str]], split: str) -> Dataset:
    files = [Path(file) for own in by_split.values() for file in own]
    first, *others = formats = list(dict.fromkeys(map(_format_of, files)))
    if others:
        beside = [file.name for file in files if _format_of(file) != first]
        raise DataError(
            f"{source} holds files of {' and '.join(formats)} in one split, and {', '.join(beside[:5])} would be left "
            "out; give files of one format"
        )
    options: dict[str, Any] = {}
    if first == "csv":  # "NA" and "" are text, not null
        with gzip.open(files[0]) if files[0].suffix.lower() == ".gz" else files[0].open("rb") as lines:
            options = {"keep_default_na": False, "sep": separator(lines.readline())}
    return load_dataset(first, data_files=by_split, split=split, **options)


def _files_by_split(folder: Path, split: str, name: str | None) -> dict[str, list[str]]:
    """Returns the data files of the splits that are wanted, by the configurations of its README or by their names."""
    if not any(suffix_of(Path(own)) in _FORMATS for *_, names in os.walk(folder) for own in names):
        raise DataError(f"{folder} holds no file of a known format; wanted {', '.join(_FORMATS)}, each also .gz")
    card = folder / "README.md"
    if name or (card.is_file() and "\nconfigs:" in card.read_text(encoding="utf-8", errors="replace")):
        configured = load_dataset_builder(str(folder), name).config.data_files or {}
        by_split = {str(own): list(files) for own, files in configured.items()}
    else:
        patterns = _get_data_files_patterns(lambda pattern: _data_files(folder, pattern))
        by_split = {
            str(own): list(dict.fromkeys(file for pattern in ours for file in _data_files(folder, pattern)))
            for own, ours in patterns.items()
        }
    wanted = [part.split("[")[0].strip() for part in split.split("+")]
    absent = [part for part in wanted if part not in by_split]
    if absent:
        raise DataError(f"{folder} has no split {', '.join(absent)}; it has {', '.join(by_split)}")
    return {part: by_split[part] for part in wanted}


def _data_files(folder: Path, pattern: str) -> list[str]:
    """Returns the files of a pattern that hold rows: a script or a note beside them names no split."""
    try:
        found = resolve_pattern(pattern, folder.resolve().as_posix())
    except FileNotFoundError:
        return []
    return [own for own in found if suffix_of(Path(own)) in _FORMATS and Path(own).name != "dataset_infos.json"]


def _is_saved(path: Path) -> bool:
    return any((path / marker).exists() for marker in ("state.json", "dataset_dict.json"))


def _saved_split(path: Path, split: str) -> Dataset:
    saved = load_from_disk(str(path))
    if isinstance(saved, DatasetDict) and split not in saved:
        raise DataError(f"{path} has no split {split}; it has {', '.join(saved)}")
    return saved[split] if isinstance(saved, DatasetDict) else saved


def _format_of(path: Path) -> str:
    if suffix_of(path) not in _FORMATS:
        raise DataError(f"{path} is not of a known format; wanted {', '.join(_FORMATS)}, each also .gz")
    return _FORMATS[suffix_of(path)]


@contextmanager
def _explained(source: str | Path, path: Path) -> Iterator[None]:
    """Turns what the datasets library raises into one line, and keeps it from logging the same error first."""
    logger = logging.getLogger("datasets")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    except _LOAD_ERRORS as error:
        if isinstance(error, DataError):
            raise
        raise DataError(_why_unreadable(source, path, error)) from error
    finally:
        logger.setLevel(level)


@contextmanager
def progress_bars(shown: bool) -> Iterator[None]:
    """Shows the datasets library's progress bars, or not, and puts back what was set."""
    were_off = are_progress_bars_disabled()
    if not shown:
        disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            enable_progress_bars()


def _why_unreadable(source: str | Path, path: Path, error: Exception) -> str:
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    try:
        for file in filter(is_text, files):
            for _ in read_sound_rows(file, wanted="wanted rows that can be read"):
                pass
    except DataError as fault:
        return str(fault)
    cause = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
    if files:
        return f"{source} cannot be read: {cause}; write or copy it anew"
    return f"no such file or folder: {source}, and it cannot be loaded from the hub: {cause}"
