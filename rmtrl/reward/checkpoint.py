"""Loads reward models and what is stored beside them; a head without trained weights is refused."""

import json
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from rmtrl.errors import FreshHeadError, ModelError
from rmtrl.models import find_file, load_model
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
    file = find_file(path, "rmtrl.json")
    stored: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8")) if file else {}
    return stored


def load_reward_model(path: str | Path, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> Any:
    """Returns the reward model at `path`, whole or base and adapter, with its trained head of any kind.

    Args:
        path (`str` or `Path`): Folder or hub id.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The model's.
        settings: As in `from_pretrained`.

    Raises:
        ModelError: If there is none, or it does not have one label.
        FreshHeadError: If the checkpoint holds no trained score head.
    """
    head = stored_head(path)

    def check(model: Any, info: Mapping[str, Any]) -> None:
        for key, *shapes in [] if info["adapted"] else info["mismatched_keys"]:
            raise ModelError(f"{path} has {shapes[0][0]} labels ({key}); wanted {head.n_outputs}")
        heads = {f"{name}.weight" for name, _ in head_layers(model)}
        fresh = sorted(key for key in info["missing_keys"] if key in heads or info["adapted"])
        if fresh:
            raise FreshHeadError(
                f"{path} holds no trained score head ({fresh[0]} is missing), so its scores would be random; give a "
                "reward model, or train one with rmtrl.RewardTrainer, which saves the head of an adapter too"
            )

    return load_model(
        path, partial(_read, head), check, kind="reward model", n_tokens=len(tokenizer), ignore_mismatched_sizes=True,
        **settings,
    )  # fmt: skip


def _read(head: Head, path: str, **settings: Any) -> Any:
    """Returns a sequence classification model with this head, and what transformers says of its keys."""
    if head.is_standard:
        return AutoModelForSequenceClassification.from_pretrained(path, num_labels=head.n_outputs, **settings)
    trusted = settings.get("trust_remote_code", False)
    model_class = with_head(type(empty_model(path, trust_remote_code=trusted)), head)
    return model_class.from_pretrained(path, num_labels=1, **settings)
