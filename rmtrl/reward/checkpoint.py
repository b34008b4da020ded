"""Loads reward models and what is stored beside them; a head without trained weights is refused."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from peft.utils.save_and_load import load_peft_weights
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers import logging as transformers_logging
from transformers.utils import cached_file

from rmtrl.errors import FreshHeadError, ModelError
from rmtrl.reward.heads import Head, empty_model, head_layers, with_head
from rmtrl.reward.rendering import Rendering


def stored_rendering(path: str | Path) -> Rendering | None:
    """Returns the rendering stored in a checkpoint folder, `None` where none is (a model from elsewhere)."""
    stored = stored_record(path).get("rendering")
    known = {field.name for field in fields(Rendering)}  # a record of another version may say more
    return Rendering(**{name: value for name, value in stored.items() if name in known}) if stored else None


def stored_head(path: str | Path) -> Head:
    """Returns the head stored in a checkpoint folder; the standard one where none is."""
    stored = stored_record(path).get("head")
    return Head.from_dict(stored) if stored else Head()


def stored_record(path: str | Path) -> dict[str, Any]:
    """Returns the `rmtrl.json` of a checkpoint folder or hub id, empty where it has none."""
    file = file_of(path, "rmtrl.json")
    stored: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8")) if file else {}
    return stored


def file_of(path: str | Path, name: str) -> str | None:
    """Returns where a file of a checkpoint folder or hub id stands on this machine, `None` where it has none."""
    found: str | None = cached_file(
        str(path), name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    return found


def load_model(path: str, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> PreTrainedModel | PeftModel:
    """Returns the reward model at `path`, whole or base and adapter, with its trained head of any kind.

    Raises:
        ModelError: If it does not have one label, or the base of an adapter cannot be loaded.
        FreshHeadError: If the checkpoint holds no trained score head.
    """
    head = stored_head(path)
    if file_of(path, "adapter_config.json"):
        return _load_adapter(path, head, tokenizer, **settings)
    model, info = from_pretrained(path, head, **settings)
    heads = [f"{name}.weight" for name, _ in head_layers(model)]
    for key, *shapes in info["mismatched_keys"]:
        raise ModelError(f"{path} has {shapes[0][0]} labels ({key}); wanted {head.n_outputs}")
    fresh = sorted(set(heads) & set(info["missing_keys"]))
    if fresh:
        raise FreshHeadError(
            f"{path} holds no trained score head ({fresh[0]} is missing), so its scores would be random; give a "
            "reward model, or train one with recipes/rm_llama.py"
        )
    return model


def _load_adapter(path: str, head: Head, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> PeftModel:
    base = str(PeftConfig.from_pretrained(path).base_model_name_or_path)
    try:
        model, info = from_pretrained(base, head, **settings)
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


def from_pretrained(path: str, head: Head, **settings: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Returns a sequence classification model with this head, and what transformers says of its keys."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # a missing head is an error of ours, not a table of keys
    try:
        if head.is_standard:
            model_class: Any = AutoModelForSequenceClassification
            settings["num_labels"] = head.n_outputs
        else:
            trusted = settings.get("trust_remote_code", False)
            model_class = with_head(type(empty_model(path, trust_remote_code=trusted)), head)
            settings["num_labels"] = 1
        loaded = model_class.from_pretrained(path, output_loading_info=True, ignore_mismatched_sizes=True, **settings)
    finally:
        transformers_logging.set_verbosity(verbosity)
    return loaded[0], loaded[1]
