"""A reward model trained as an adapter, as a plain checkpoint that every tool loads."""

from pathlib import Path
from typing import Any

import numpy as np

from rmtrl.data.provenance import new_folder
from rmtrl.errors import ModelError
from rmtrl.io import write_json
from rmtrl.models import base_model
from rmtrl.reward.checkpoint import stored_record
from rmtrl.reward.scorer import RewardScorer
from rmtrl.reward.shared_prefix.forward import probe_pairs


def merge_adapter(adapter: str | Path, out: str | Path, *, tolerance: float = 1e-4, **settings: Any) -> float:
    """Writes base and adapter as one checkpoint, head, tokenizer and record with it; returns how far scores are off.

    The merged model is loaded from what was written and scores token sequences before the folder is put in place.

    Args:
        adapter (`str` or `Path`): Folder or hub id.
        out (`str` or `Path`): Folder to write, or an earlier merge to replace.
        tolerance (`float`): Largest difference of scores, relative above 1. Weights in 16 bits round once more.
        settings: As in [`RewardScorer.from_pretrained`].

    Raises:
        ModelError: If there is no adapter, it or its base cannot be merged, or the scores are not equal: nothing is
            written then.
        UsageError: If `out` holds anything but an earlier merge.

    Example:

    ```python
    >>> merge_adapter("outputs/rm-lora", "outputs/rm-merged")
    2.4e-07
    ```
    """
    with new_folder(out, marker="merged.json") as beside:
        scorer = RewardScorer.from_pretrained(adapter, progress=False, **settings)
        model: Any = scorer.model
        _check_mergeable(model, adapter)
        probes = [ids for pair in probe_pairs(base_model(model)) for ids in pair]
        before = scorer.score_ids(probes)
        merged, record = model.merge_and_unload(safe_merge=True), stored_record(adapter)
        merged.save_pretrained(beside)
        scorer.tokenizer.save_pretrained(beside)
        if record:
            write_json(beside / "rmtrl.json", record)
        after = RewardScorer.from_pretrained(beside, progress=False, **settings).score_ids(probes)
        off = float((np.abs(after - before) / np.maximum(1.0, np.abs(before))).max())
        if off > tolerance:
            raise ModelError(
                f"the merged model's scores are off by {off:.1g}, more than {tolerance:g}; nothing was written: merge "
                f"in float32 (weights are {scorer.dtype}), or allow what 16 bits round"
            )
        write_json(beside / "merged.json", {"schema": "rmtrl/merged/1", "adapter": str(adapter), "difference": off})
    return off


def _check_mergeable(model: Any, adapter: str | Path) -> None:
    """Raises where an adapter has no weights of its base's form to add to it."""
    if not hasattr(model, "peft_config"):
        raise ModelError(f"{adapter} is a whole model; there is no adapter to merge")
    kind = model.peft_config[model.active_adapter].peft_type.value
    if not hasattr(model.base_model, "merge_and_unload"):
        raise ModelError(f"{adapter} is an adapter of the kind {kind}, which cannot be merged; wanted LoRA's like")
    if getattr(base_model(model).config, "quantization_config", None) is not None:
        raise ModelError(f"the base of {adapter} is quantised, and merging would round it; load it in 16 or 32")
