"""What a result is a result of: hashes of the benchmark's content and of the files that decide a model's scores."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rmtrl.data.provenance import checkpoint_fingerprint
from rmtrl.evaluation.benchmarks.base import Item
from rmtrl.types import Chat, checkpoint_of, is_url


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
    return checkpoint_fingerprint(model)


def stored_fingerprint(stored: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Returns the fingerprint of the model that a file of figures names, None where it names none."""
    model = stored.get("model")
    nested = model.get("fingerprint") if isinstance(model, Mapping) else None
    for found in (stored.get("model_fingerprint"), nested, model):
        if isinstance(found, Mapping) and (found.get("sha256") or found.get("revision")):
            return found
    return None
