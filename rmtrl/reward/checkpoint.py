"""Reward models loaded to score and to train, and what is stored beside them; a head without weights is refused."""

import copy
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftConfig, TaskType
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import set_seed
from trl import RewardConfig as TRLRewardConfig
from trl.trainer.utils import create_model_from_path

from rmtrl.errors import FreshHeadError, ModelError
from rmtrl.io import read_object, write_json
from rmtrl.models import base_model, find_file, load_model, n_embeddings, quietly
from rmtrl.reward.config import RewardConfig
from rmtrl.reward.heads import (
    Head,
    RewardHead,
    draw_head,
    empty_model,
    head_layers,
    head_modules,
    install_head,
    set_dropout,
    train_last_layers,
    with_head,
)
from rmtrl.reward.rendering import Rendering, choose_pad_token


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
    return read_object(Path(file)) if file else {}


def write_record(
    folder: str | Path, head: Head, tie_parameter: float | None, rendering: Rendering, *, chosen_by: str | None
) -> None:
    """Writes `rmtrl.json` beside a model's weights.

    Args:
        folder (`str` or `Path`): Where the weights are.
        head ([`Head`]): The model's.
        tie_parameter (`float`, *optional*): Of a loss that knows ties.
        rendering ([`Rendering`]): How its training data was rendered.
        chosen_by (`str`, *optional*): The figure that the checkpoint is chosen by, which an evaluator must know.
    """
    record: dict[str, Any] = {"schema": "rmtrl/checkpoint/1", "rendering": asdict(rendering)}
    record |= {"head": asdict(head), "tie_parameter": tie_parameter}
    if chosen_by is not None:
        record["config"] = {"metric_for_best_model": chosen_by}
    write_json(Path(folder) / "rmtrl.json", record)


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
        own = AutoModelForSequenceClassification.from_pretrained(path, num_labels=head.n_outputs, **settings)
        mark_raw((own[0] if isinstance(own, tuple) else own).config, head)
        return own
    trusted = settings.get("trust_remote_code", False)
    model_class = with_head(type(empty_model(path, trust_remote_code=trusted)), head)
    return model_class.from_pretrained(path, num_labels=1, **settings)


def mark_raw(config: Any, head: Head) -> None:
    """Writes into a model's configuration that its one score is a reward, of which servers make no sigmoid.

    vLLM and transformers' pipelines read `problem_type`, CrossEncoder of sentence-transformers its own entry. Several
    labels stay as they are, and so does a head that these tools cannot load.

    Args:
        config ([`~transformers.PretrainedConfig`]): The model's.
        head ([`Head`]): The model's.
    """
    if head.is_standard and head.n_outputs == 1:
        config.problem_type = "regression"
        known = getattr(config, "sentence_transformers", None) or {}
        config.sentence_transformers = {**known, "activation_fn": "torch.nn.modules.linear.Identity"}


# The model that a training starts from


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
        if known is None or not _is_same(known, head):
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
    with quietly():  # that the head is new is known
        return create_model_from_path(model, kind, ignore_mismatched_sizes=True, **settings)  # type: ignore[arg-type]


def check_head(model: "str | PreTrainedModel", head: Head) -> None:
    """Raises where the model was trained with another head than the one to train, whose weights would be lost.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]): Folder, hub id or model to start from.
        head ([`Head`]): The head to train.

    Raises:
        ModelError: If the model has a head of our own making and it is not this one.
    """
    known = stored_head(model) if isinstance(model, str) else _head_of(model)
    if known is not None and known.is_custom and not _is_same(known, head):
        raise ModelError(
            f"the model to start from has another head ({_described(known)}) than the one to train "
            f"({_described(head)}): set head, pooling, n_heads and attribute_weights (in that order of criteria) as "
            "it was trained with"
        )


def _is_same(known: Head, head: Head) -> bool:
    """Whether a head's weights serve another; dropout and weights of criteria may change."""
    return replace(known, dropout=head.dropout, weights=head.weights) == head


def _described(head: Head) -> str:
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


def check_loaded(model: Any, accelerator: Accelerator) -> None:
    """Raises where FSDP would never train weights that are new, or would keep those of 4 bits whole.

    Raises:
        ModelError: On every process: it loaded on the first alone, and the model has a head of our own making or two
            or more new weights; or 4-bit weights are stored as integers.
    """
    plugin: Any = getattr(accelerator.state, "fsdp_plugin", None)
    quantized = getattr(model.config, "quantization_config", None)
    if plugin is not None and getattr(quantized, "bnb_4bit_quant_storage", None) == torch.uint8:
        raise ModelError(
            "FSDP spreads no weights of 4 bits that are stored as uint8: every GPU would hold all of them; set "
            "bnb_4bit_quant_storage to bfloat16"
        )
    if plugin is None or not plugin.cpu_ram_efficient_loading:
        return
    n_empty = torch.tensor([sum(weight.is_meta for weight in model.parameters())], device=accelerator.device)
    n_new = int(accelerator.gather(n_empty).max())
    if n_new > 1 or _head_of(model) is not None:
        raise ModelError(
            f"fsdp_cpu_ram_efficient_loading is true and {n_new} weights are new: they would stay empty on all "
            "processes but the first; set it to false in the file given to accelerate launch --config_file"
        )


def start_head(model: Any, settings: RewardConfig, head: Head) -> list[str]:
    """Draws, drops, freezes and describes what the settings ask for, in place; returns what people should know."""
    if head.dropout:
        set_dropout(model, head.dropout)
    if settings.head_init == "normal":
        draw_head(model)
    if settings.trainable_layers is not None:
        train_last_layers(model, settings.trainable_layers)
    if not head.is_standard:
        members = f", {head.members} members" if head.members > 1 else ""
        return [
            f"the head is not the standard one ({head.kind}, {head.pooling}{members}): the checkpoint loads in "
            "rmtrl.RewardScorer and in no other tool"
        ]
    if head.criteria:
        config = model.config
        config.num_labels = head.n_outputs
        config.id2label = dict(enumerate(head.criteria))
        config.label2id = {name: index for index, name in enumerate(head.criteria)}
        config.attribute_weights = dict(zip(head.criteria, head.weights, strict=True))
    mark_raw(model.config, head)
    return []


def with_trained_head(peft_config: PeftConfig, model: "str | PreTrainedModel", *, trust_remote_code: bool) -> Any:
    """Returns a copy of an adapter's configuration that trains and saves the whole head, whatever its task type."""
    adapter: Any = copy.copy(peft_config)
    adapter.task_type = TaskType.SEQ_CLS  # this is what makes PEFT train and save `score` or `classifier`
    given = getattr(adapter, "modules_to_save", None) or []
    more = head_modules(model, trust_remote_code=trust_remote_code) - {"score", "classifier", *given}
    if more:
        adapter.modules_to_save = [*given, *sorted(more)]
    return adapter


def replace_pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Gives model and tokenizer a pad token that hides nothing and has an embedding; returns why, `None` if it had.

    Args:
        model ([`~transformers.PreTrainedModel`]): Its embeddings grow where the tokenizer has no such token.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Has a pad token.
    """
    n, why = n_embeddings(model), f"the model has no embedding of {tokenizer.pad_token!r}"
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        why = f"it was the end token {tokenizer.eos_token!r}, which the model then could not see"
    elif int(tokenizer.pad_token_id) < n:
        return None
    tokenizer.pad_token = choose_pad_token(tokenizer, below=n)
    if len(tokenizer) > n and int(tokenizer.pad_token_id) >= n:
        model.resize_token_embeddings(len(tokenizer))
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return f"pad token is {tokenizer.pad_token!r}: {why}"
