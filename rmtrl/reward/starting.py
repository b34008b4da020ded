"""The model a training starts from: its head made, drawn and described, its first layers frozen."""

from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel
from transformers import logging as transformers_logging
from transformers.trainer_utils import set_seed
from trl import RewardConfig as TRLRewardConfig
from trl.trainer.utils import create_model_from_path

from rmtrl.errors import ModelError
from rmtrl.models import base_model
from rmtrl.reward.checkpoint import stored_head
from rmtrl.reward.config import RewardConfig
from rmtrl.reward.heads import (
    Head,
    RewardHead,
    draw_head,
    empty_model,
    install_head,
    set_dropout,
    train_last_layers,
    with_head,
)


def with_custom_head(
    model: "str | PreTrainedModel", head: Head, args: TRLRewardConfig, quantization_config: Any
) -> PreTrainedModel:
    """Returns the model with a head in place of its own, loaded as TRL's reward trainer loads one.

    The weights of such a head are taken from the checkpoint where it has them, as one of an earlier training does.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]): Folder, hub id or model; a model is changed in place.
        head ([`Head`]): The head to make.
        args ([`~trl.RewardConfig`]): The trainer's.
        quantization_config (*optional*): As for TRL's reward trainer.

    Raises:
        ModelError: If the model's own head cannot be replaced.
    """
    set_seed(args.seed)
    if not isinstance(model, str):
        known = _head_of(model)
        if known is None or replace(known, dropout=head.dropout, weights=head.weights) != head:
            install_head(model, head)
        model.config.num_labels = 1  # what TRL wants of a reward model
        return model
    settings: dict[str, Any] = {"trust_remote_code": args.trust_remote_code, "num_labels": 1}
    settings |= dict(args.model_init_kwargs or {})  # type: ignore[arg-type]
    if quantization_config is not None:
        settings["quantization_config"] = quantization_config
    if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        settings["device_map"] = None
    kind = with_head(type(empty_model(model, trust_remote_code=settings["trust_remote_code"])), head)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # that the head is new is known
    try:
        made: PreTrainedModel = create_model_from_path(model, kind, ignore_mismatched_sizes=True, **settings)  # type: ignore[arg-type]
    finally:
        transformers_logging.set_verbosity(verbosity)
    return made


def check_head(model: "str | PreTrainedModel", head: Head) -> None:
    """Raises where the model was trained with another head than the one to train, whose weights would be lost.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]): Folder, hub id or model to start from.
        head ([`Head`]): The head to train.

    Raises:
        ModelError: If the model has a head of our own making and it is not this one.
    """
    known = stored_head(model) if isinstance(model, str) else _head_of(model)
    if known is None or not known.is_custom:
        return
    same = replace(known, dropout=head.dropout, weights=head.weights)  # these may change
    if same != head:
        raise ModelError(
            f"the model to start from has another head ({_said(known)}) than the one to train ({_said(head)}): set "
            "head, pooling, n_heads and attribute_weights (in that order of criteria) as it was trained with"
        )


def _said(head: Head) -> str:
    kind = f"mlp of {head.width}" if head.kind == "mlp" else head.kind
    return ", ".join([kind, head.pooling, f"members {head.members}", *head.criteria])


def _head_of(model: Any) -> Head | None:
    """Returns the head that a model carries, `None` for one that is not of our making."""
    for module in base_model(model).modules():
        if isinstance(module, RewardHead):
            return module.head
    weights = getattr(model.config, "attribute_weights", None)
    if not weights:
        return None
    criteria = tuple(model.config.id2label[index] for index in range(len(weights)))  # a stored dictionary is sorted
    return Head(criteria=criteria, weights=tuple(weights[name] for name in criteria))


def start_head(model: Any, settings: RewardConfig, head: Head) -> list[str]:
    """Draws, drops, freezes and describes what the settings ask for, in place; returns what people should know."""
    if head.dropout:
        set_dropout(model, head.dropout)
    if settings.head_init == "normal":
        draw_head(model)
    if settings.trainable_layers is not None:
        train_last_layers(model, settings.trainable_layers)
    if head.criteria and head.is_standard:
        config = model.config
        config.num_labels = head.n_outputs
        config.id2label = dict(enumerate(head.criteria))
        config.label2id = {name: index for index, name in enumerate(head.criteria)}
        config.attribute_weights = dict(zip(head.criteria, head.weights, strict=True))
    if head.is_standard:
        return []
    members = f", {head.members} members" if head.members > 1 else ""
    return [
        f"the head is not the standard one ({head.kind}, {head.pooling}{members}): the checkpoint loads in "
        "rmtrl.RewardScorer and in no other tool"
    ]
