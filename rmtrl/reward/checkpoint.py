"""Loads reward models and what is stored beside them; a head without trained weights is refused."""

import json
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from peft.utils.save_and_load import load_peft_weights
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers import logging as transformers_logging
from transformers.utils import cached_file

from rmtrl.errors import FreshHeadError, ModelError
from rmtrl.reward.heads import head_layers
from rmtrl.reward.rendering import Rendering


def stored_rendering(path: str | Path) -> Rendering | None:
    """Returns the rendering stored in a checkpoint folder, `None` where none is (a model from elsewhere)."""
    file = _file_of(path, "rmtrl.json")
    stored = json.loads(Path(file).read_text(encoding="utf-8")) if file else {}
    return Rendering(**stored["rendering"]) if "rendering" in stored else None


def _file_of(path: str | Path, name: str) -> str | None:
    """Returns where a file of a checkpoint folder or hub id stands on this machine, `None` where it has none."""
    found: str | None = cached_file(
        str(path), name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    return found


def load_model(path: str, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> PreTrainedModel | PeftModel:
    """Returns the reward model at `path`, whole or base and adapter, with its trained head.

    Raises:
        ModelError: If it does not have one label, or the base of an adapter cannot be loaded.
        FreshHeadError: If the checkpoint holds no trained score head.
    """
    if _file_of(path, "adapter_config.json"):
        return _load_adapter(path, tokenizer, **settings)
    model, info = _from_pretrained(path, **settings)
    heads = [f"{name}.weight" for name, _ in head_layers(model)]
    for key, *shapes in info["mismatched_keys"]:
        raise ModelError(f"{path} has {shapes[0][0]} labels ({key}); a reward model has one")
    fresh = sorted(set(heads) & set(info["missing_keys"]))
    if fresh:
        raise FreshHeadError(
            f"{path} holds no trained score head ({fresh[0]} is missing), so its scores would be random; give a "
            "reward model, or train one with recipes/rm_llama.py"
        )
    return model


def _load_adapter(path: str, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> PeftModel:
    base = str(PeftConfig.from_pretrained(path).base_model_name_or_path)
    try:
        model, info = _from_pretrained(base, **settings)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"the base model {base} of the adapter at {path} cannot be loaded: {reason}") from error
    saved = load_peft_weights(path, device="cpu")
    fresh = [key for key in sorted(info["missing_keys"]) if not any(name.endswith(f".{key}") for name in saved)]
    if fresh:
        raise FreshHeadError(
            f"the adapter at {path} holds no trained score head ({fresh[0]} is missing), so its scores would be "
            "random; train it with rmtrl.RewardTrainer, which saves the head"
        )
    embeddings: Any = model.get_input_embeddings()
    if any("embed" in name or ".wte." in name for name in saved) and len(tokenizer) > embeddings.num_embeddings:
        model.resize_token_embeddings(len(tokenizer))  # training added a token
    return PeftModel.from_pretrained(model, path)


def _from_pretrained(path: str, **settings: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # a missing head is an error of ours, not a table of keys
    try:
        loaded = AutoModelForSequenceClassification.from_pretrained(
            path, num_labels=1, output_loading_info=True, ignore_mismatched_sizes=True, **settings
        )
    finally:
        transformers_logging.set_verbosity(verbosity)
    return loaded[0], loaded[1]
