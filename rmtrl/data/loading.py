"""Loads the rows of a file, a folder, a saved dataset or a hub set, and says in one line where a file is broken."""

import gzip
import json
import logging
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError

from rmtrl.errors import DataError

_FORMATS = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
_LOAD_ERRORS = (DatasetsError, OSError, ValueError, EOFError, StopIteration, zlib.error)


def load_rows(source: str | Path, *, split: str = "train", name: str | None = None) -> Dataset:
    """Returns the rows of `source` as they stand there; see [`rmtrl.data.preferences.read_preferences`].

    Raises:
        DataError: If the source is missing, broken or empty; the message names file and row.
    """
    if not str(source).strip():
        raise DataError("got an empty name of a data set; give a path or a hub id of the form owner/name")
    path = Path(source).expanduser()
    try:
        with _datasets_log_off():
            return _load(str(source), path, split, name)
    except _LOAD_ERRORS as error:
        if isinstance(error, DataError):
            raise
        raise DataError(_why_unreadable(source, path, error)) from error


def _load(source: str, path: Path, split: str, name: str | None) -> Dataset:
    if path.is_dir():
        saved = any((path / marker).exists() for marker in ("state.json", "dataset_dict.json"))
        return _saved_split(path, split) if saved else load_dataset(str(path), name, split=split)
    if path.is_file():
        options = {"keep_default_na": False} if _format_of(path) == "csv" else {}  # "NA" and "" are text, not null
        split_name = re.split(r"\W", split)[0]
        return load_dataset(_format_of(path), data_files={split_name: str(path)}, split=split, **options)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and Path(source.removesuffix(".gz")).suffix not in _FORMATS:
        return load_dataset(source, name, split=split)
    raise DataError(f"no such file or folder: {source}; give a path or a hub id of the form owner/name")


def _saved_split(path: Path, split: str) -> Dataset:
    saved = load_from_disk(str(path))
    if isinstance(saved, DatasetDict) and split not in saved:
        raise DataError(f"{path} has no split {split}; it has {', '.join(saved)}")
    return saved[split] if isinstance(saved, DatasetDict) else saved


def _format_of(path: Path) -> str:
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if suffix not in _FORMATS:
        raise DataError(f"{path} is not of a known format; wanted {', '.join(_FORMATS)}, each also .gz")
    return _FORMATS[suffix]


@contextmanager
def _datasets_log_off() -> Iterator[None]:
    """Keeps the datasets library from logging an error that we are about to explain in one line."""
    logger = logging.getLogger("datasets")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _why_unreadable(source: str | Path, path: Path, error: Exception) -> str:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else []
    for file in files:
        if file.stat().st_size == 0:
            return f"{file} is empty; a preference set needs at least one pair"
        fault = _json_fault(file) if ".json" in file.name or ".ndjson" in file.name else None
        if fault:
            return f"{file}, {fault}"
    cause = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
    if files:
        return f"{source} cannot be read: {cause}"
    return f"no such file or folder: {source}, and it cannot be loaded from the hub: {cause}"


def _json_fault(path: Path) -> str | None:
    """Returns where a JSON file first breaks; reads the file once more, so only after a failure."""
    row = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            first = lines.readline()
            if first.lstrip().startswith("["):
                json.loads(first + lines.read())
                return None
            for row, line in enumerate(chain([first], lines), 1):
                if line.strip() and not isinstance(json.loads(line), dict):
                    return f"row {row} is not a JSON object; wanted one object a line"
    except json.JSONDecodeError as error:
        where = f"row {row}" if row else f"line {error.lineno}"
        return f"{where} is not JSON ({error.msg}, column {error.colno}); mend or remove it"
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        return f"after row {row}: {error}"
    return None
