"""What a result is a result of: hashes of the benchmark's content and of the files that decide a model's scores."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from rmtrl.evaluation.benchmarks.base import Item
from rmtrl.io import blocks
from rmtrl.types import Chat, checkpoint_of, is_url

_DECISIVE = (
    "*.safetensors", "*.bin", "*.model", "*.py", "config.json", "adapter_config.json", "tokenizer*", "vocab*",
    "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*",
)  # fmt: skip


def items_fingerprint(items: Sequence[Item]) -> str:
    """Returns the sha256 of a benchmark's content: ids, prompts, subsets, conversations, facts, in order.

    Example:

    ```python
    >>> items_fingerprint([Item("a", "a", "all", ("x", "y"))])[:12]
    'a48a53746b29'
    ```
    """
    digest = hashlib.sha256()
    for item in items:
        texts = [[c, vars(c)] if isinstance(c, Chat) else c for c in item.candidates]  # tools and template variables
        row = [item.id, item.prompt_id, item.subset, texts, dict(item.facts), item.excluded]
        digest.update((json.dumps(row, sort_keys=True, separators=(",", ":"), default=repr) + "\n").encode())
    return digest.hexdigest()


def model_fingerprint(model: str | Path) -> dict[str, Any]:
    """Returns what decides a model's scores, wherever it stands: a hash of its files, or the revision on the hub.

    Args:
        model (`str` or `Path`): Checkpoint folder, hub id of a model that was loaded before, or URL of a server.

    Returns:
        `dict[str, Any]`: `sha256` over the names and contents of a folder's files and the head in its `rmtrl.json`,
        `None` for a hub id;
        `revision`, the commit of a hub id on this machine, else `None`; for an adapter also the `base`, in this form,
        both `None` where it is not named. Of a URL what `rmtrl serve` says of its model; of
        other servers that of the checkpoint named behind the `#`, else the `url`.

    Example:

    ```python
    >>> model_fingerprint("outputs/tiny/rm")["sha256"][:12]
    'a3d5c2ac1b0e'
    ```
    """
    if is_url(model):
        from rmtrl.reward.remote import RemoteScorer

        named = checkpoint_of(model)
        other = model_fingerprint(named) if named else {"sha256": None, "revision": None, "url": model}
        return RemoteScorer(str(model)).info.get("fingerprint") or other
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
        result["base"] = model_fingerprint(json.loads(adapter.read_text()).get("base_model_name_or_path") or "")
    return result


def _folder(model: str | Path) -> Path | None:
    """Returns where a model's files stand on this machine: its folder, or the cached one of a loaded hub id."""
    if not str(model):  # an adapter's base that has no name; as a path it would be the working directory
        return None
    if Path(model).is_dir():
        return Path(model)
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


def stored_fingerprint(stored: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Returns the fingerprint of the model that a file of figures names, None where it names none."""
    model = stored.get("model")
    nested = model.get("fingerprint") if isinstance(model, Mapping) else None
    for found in (stored.get("model_fingerprint"), nested, model):
        if isinstance(found, Mapping) and (found.get("sha256") or found.get("revision")):
            return found
    return None


def is_same_model(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool | None:
    """Returns whether two fingerprints are of one model; None where they have nothing in common to compare."""
    keys = [key for key in ("sha256", "revision") if one.get(key) and other.get(key)]
    own = all(one[key] == other[key] for key in keys) if keys else None
    bases = one.get("base"), other.get("base")
    if own and all(isinstance(base, Mapping) for base in bases):
        return is_same_model(*bases) is not False  # type: ignore[arg-type]
    return own
