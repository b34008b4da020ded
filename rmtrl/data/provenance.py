"""What makes a result repeatable: content hashes, versions, manifests, and folders that hold what they should."""

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmtrl.errors import UsageError
from rmtrl.io import blocks, file_sha256, replacing

if TYPE_CHECKING:
    from datasets import Dataset

CARD_MARK = "<!-- written by rmtrl and replaced by it; take this line out to keep words of your own -->"
PACKAGES = ("rmtrl", "torch", "trl", "transformers", "accelerate", "peft", "datasets", "numpy", "scikit-learn")
_DECISIVE = (
    "*.safetensors", "*.bin", "*.model", "*.py", "config.json", "adapter_config.json", "tokenizer*", "vocab*",
    "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*",
)  # fmt: skip


def fingerprint(dataset: "Dataset") -> str:
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
    installed = {package: next(iter(metadata.distributions(name=package)), None) for package in PACKAGES}
    versions = {package: found.version if found else None for package, found in installed.items()}
    return {"python": platform.python_version(), "platform": platform.platform(), **versions}


def made_by(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a result says of its making: the `time` now, the `settings`, the versions as `environment`.

    Example:

    ```python
    >>> made_by({"seed": 0})["settings"]
    {'seed': 0}
    ```
    """
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"time": now, "settings": dict(settings), "environment": environment()}


def manifest(
    *,
    sources: Sequence[Mapping[str, Any]],
    steps: Sequence[Mapping[str, Any]],
    seeds: Mapping[str, int],
    files: str | Path,
    notes: str = "",
    deduplicated: str = "not checked",
    inputs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns the provenance manifest of a folder of data: what it was made from, how, by which versions, and when.

    Args:
        sources (`Sequence[Mapping]`): Where the data comes from: name, licence, authorship, rows, fingerprint.
        steps (`Sequence[Mapping]`): Sampling decisions and preprocessing, in order, with their settings.
        seeds (`Mapping[str, int]`): Seeds by what they decide.
        files (`str` or `Path`): Folder whose files are listed, each with its size and sha256.
        notes (`str`): Curator's notes.
        deduplicated (`str`): What is known of duplicates.
        inputs (`Mapping`, *optional*): Manifest of what this was made from, carried along whole.

    Example:

    ```python
    >>> manifest(sources=[{"data": "pairs.jsonl"}], steps=[], seeds={"split": 0}, files="splits")["schema"]
    'rmtrl/manifest/1'
    ```
    """
    folder = Path(files)
    return {
        "schema": "rmtrl/manifest/1",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "sources": list(sources),
        "steps": list(steps),
        "seeds": seeds,
        "deduplicated": deduplicated,
        "notes": notes,
        "versions": environment(),
        "files": {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
        "inputs": inputs,
    }


@contextmanager
def new_folder(final: str | Path, *, marker: str) -> Iterator[Path]:
    """Gives a folder to write in, beside `final`, and puts it in the place of `final` when all went well.

    Args:
        final (`str` or `Path`): Folder to write or replace; files in it that the new one lacks are gone afterwards.
        marker (`str`): File that such a folder always holds; a folder with other things in it is not replaced.

    Raises:
        UsageError: If `final` is a file, or a folder with files but without the marker.
        DataError: If it cannot be written.

    Example:

    ```python
    >>> with new_folder("splits", marker="splits.json") as folder:
    ...     write_json(folder / "splits.json", {})
    ```
    """
    final = Path(final)
    if final.exists() and not (final / marker).exists() and (not final.is_dir() or any(final.iterdir())):
        raise UsageError(f"{final} exists and holds no {marker} of an earlier run; name a new or an empty folder")
    with replacing(final, folder=True) as beside:
        yield beside


def checkpoint_fingerprint(model: str | Path) -> dict[str, Any]:
    """Returns [`~rmtrl.evaluation.fingerprints.model_fingerprint`] of a folder or hub id."""
    folder = _folder(model)
    result: dict[str, Any] = {"sha256": None, "revision": None}
    if folder is None:
        return result
    if Path(model).is_dir():
        result["sha256"] = _folder_sha256(folder)
    else:
        result["revision"] = folder.name
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        result["base"] = checkpoint_fingerprint(json.loads(adapter.read_text()).get("base_model_name_or_path") or "")
    return result


def _folder(model: str | Path) -> Path | None:
    """Returns where a model's files stand on this machine: its folder, or the cached one of a loaded hub id."""
    if not str(model):  # an adapter's base that has no name; as a path it would be the working directory
        return None
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import try_to_load_from_cache

    for name in ("adapter_config.json", "config.json"):
        found = try_to_load_from_cache(str(model), name)
        if isinstance(found, str):
            return Path(found).parent
    return None


def _folder_sha256(folder: Path) -> str:
    files = {path for pattern in _DECISIVE for path in folder.glob(pattern) if path.name != "training_args.bin"}
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        for block in blocks(path):
            digest.update(block)
    record = folder / "rmtrl.json"
    head = json.loads(record.read_text(encoding="utf-8")).get("head") if record.is_file() else None
    if head:
        digest.update(json.dumps(head, sort_keys=True).encode())
    return digest.hexdigest()


def is_same_model(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool | None:
    """Returns whether two fingerprints are of one model; None where they have nothing in common to compare."""
    keys = [key for key in ("sha256", "revision") if one.get(key) and other.get(key)]
    own = all(one[key] == other[key] for key in keys) if keys else None
    bases = one.get("base"), other.get("base")
    if own and all(isinstance(base, Mapping) for base in bases):
        return is_same_model(*bases) is not False  # type: ignore[arg-type]
    return own
