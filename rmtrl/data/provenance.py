"""What makes a result repeatable: content hashes, versions, and files that are never half written."""

import hashlib
import json
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from datasets import Dataset

from rmtrl.errors import DataError

PACKAGES = ("rmtrl", "torch", "trl", "transformers", "accelerate", "peft", "datasets", "numpy", "scikit-learn")


def fingerprint(dataset: Dataset) -> str:
    """Returns the sha256 of a data set's content: its column names and its rows, in order.

    Equal content has an equal fingerprint on every machine and however it was loaded, unlike the fingerprint that the
    datasets library keeps of the steps taken. The order of columns does not count, that of rows does. What JSON has no
    form for (dates, bytes) is hashed by its `repr`.

    Args:
        dataset (`Dataset`): Any data set.

    Example:

    ```python
    >>> fingerprint(Dataset.from_dict({"id": ["a", "b"]}))[:12]
    '51d53069fe3e'
    ```
    """
    names = sorted(dataset.column_names)
    digest = hashlib.sha256(json.dumps(names, separators=(",", ":")).encode())
    for batch in dataset.with_format(None).iter(batch_size=1000):
        rows = list(zip(*(batch[name] for name in names), strict=True))
        # no brackets, so that the bytes do not depend on where a batch ends
        text = json.dumps(rows, sort_keys=True, separators=(",", ":"), default=repr)[1:-1] + ","
        digest.update(text.encode())
    return digest.hexdigest()


def environment() -> dict[str, str | None]:
    """Returns the versions that a result depends on: Python, the platform and the packages, None where absent.

    The packages are looked up, not imported.

    Example:

    ```python
    >>> environment()["trl"]
    '1.12.0'
    ```
    """
    versions: dict[str, str | None] = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as JSON so that the file is the old one or the new one, never a part.

    Keys keep their order. The folder is made where it is missing.

    Args:
        path (`str` or `Path`): File to write or replace.
        value (`Any`): What `json` can write.

    Raises:
        ValueError: If `value` holds NaN or an infinity, which JSON has no form for; the old file stays.

    Example:

    ```python
    >>> write_json("metrics.json", {"pairwise_accuracy": 0.65, "n": 505})
    ```
    """
    path = Path(path)
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def replace_folder(new: Path, final: Path) -> None:
    """Puts the finished folder `new` in the place of `final` by renames.

    An interruption leaves the old folder or the new one whole, never a mixture. Folders cannot be exchanged in one
    step: between the two renames `final` is absent for an instant and the old one stands beside it as `.NAME.old`.

    Args:
        new (`Path`): The finished folder, on the same file system as `final`; best written beside it.
        final (`Path`): Where it belongs; an older folder there is deleted once the new one stands.

    Raises:
        DataError: If `new` is not a folder; `final` stays as it was.
        OSError: If a rename fails; `final` is put back.

    Example:

    ```python
    >>> replace_folder(Path("outputs/run/.reward.new"), Path("outputs/run/reward"))
    ```
    """
    new, final = Path(new), Path(final)
    if not new.is_dir():
        raise DataError(f"{new} is not a folder, so it cannot take the place of {final}; write it first")
    old = final.with_name(f".{final.name}.old")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)  # left by an interruption after its successor stood
        os.rename(final, old)
    try:
        os.rename(new, final)
    except OSError:
        if old.exists():
            os.rename(old, final)
        raise
    shutil.rmtree(old, ignore_errors=True)
