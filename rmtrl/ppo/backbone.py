"""One base model for policy, reference, value and reward model: adapters and heads, one of them active at a time."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate.logging import get_logger
from numpy.typing import NDArray
from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import load_peft_weights
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rmtrl.errors import ModelError, UsageError
from rmtrl.models import AdapterSwitch, base_model, find_file
from rmtrl.ppo.rewards import ComposedReward
from rmtrl.reward.checkpoint import stored_head, stored_rendering
from rmtrl.reward.heads import Float32Linear
from rmtrl.reward.scorer import RewardScorer

logger = get_logger(__name__)

VALUE, REWARD = "value", "reward"
_HEAD = "base_model.model.score."  # where an adapter's checkpoint holds its score head


def add_adapter(policy: PeftModel, name: str, config: PeftConfig, *, trains: bool, through_head: bool = False) -> None:
    """Adds an adapter to a model; which of the weights already there take gradients stays as it is.

    Args:
        policy ([`~peft.PeftModel`]): The model.
        name (`str`): The adapter's name.
        config ([`~peft.PeftConfig`]): Its configuration.
        trains (`bool`): Whether the new weights take gradients.
        through_head (`bool`): Whether the language model's head is adapted too; values and rewards do not pass it.

    Raises:
        UsageError: If there is one of that name.
    """
    if name in policy.peft_config:
        raise UsageError(f"the policy already has an adapter named {name!r}, which one_backbone adds; rename it")
    before = {id(weight): weight.requires_grad for weight in policy.parameters()}
    policy.add_adapter(name, config)
    head: Any = policy.get_output_embeddings()
    if isinstance(head, BaseTunerLayer) and not through_head:
        head.delete_adapter(name)
    for weight in policy.parameters():
        weight.requires_grad_(before.get(id(weight), trains))


def copy_adapter(policy: PeftModel, name: str, config: PeftConfig, **settings: bool) -> None:
    """Adds an adapter with the weights of the active one, as far as it has them; settings as in [`add_adapter`]."""
    add_adapter(policy, name, config, **settings)
    mine, theirs = (
        get_peft_model_state_dict(policy, adapter_name=own, save_embedding_layers=False)
        for own in (name, str(policy.active_adapter))
    )
    load_adapter(policy, name, {own: theirs[own] for own in mine}, embeddings=False)


def values_of(model: Any, score: nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Returns what a score head makes of a model's last hidden states, `(B, T)`."""
    inner = base_model(model)
    backbone = getattr(inner, inner.base_model_prefix)
    states = backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
    return score(states)[..., 0]


class SharedValue(nn.Module):
    """A value model on the policy's base model: an adapter of its own and a linear head, of zeros at first.

    The adapter starts as a copy of the policy's and is registered there; this module's own weights are the head's.
    Saved, it is the adapter of a sequence classification model, as any separate value model with an adapter is.

    Args:
        policy ([`~peft.PeftModel`]): The policy, with a LoRA adapter, see [`check_adapter`].
    """

    def __init__(self, policy: PeftModel) -> None:
        super().__init__()
        config: Any = copy.deepcopy(policy.active_peft_config)
        config.modules_to_save, config.init_lora_weights, config.inference_mode = None, True, False
        copy_adapter(policy, VALUE, config, trains=True)
        self._switch = AdapterSwitch(policy)
        inner = base_model(policy)
        self.score = Float32Linear(inner.config.get_text_config().hidden_size, 1, bias=False, device=inner.device)
        nn.init.zeros_(self.score.weight)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Returns the value after each token, `(B, T)`."""
        with self._switch(VALUE):
            return values_of(self._switch.model, self.score, input_ids, attention_mask)

    def save_pretrained(self, folder: Path, weights: dict[str, Any] | None = None) -> None:
        """Writes the adapter and its head; `weights` are the whole state of policy and value model, if gathered."""
        policy = self._switch.model
        gathered = under(weights, "policy.")
        adapter = get_peft_model_state_dict(
            policy, state_dict=gathered, adapter_name=VALUE, save_embedding_layers=False
        )
        head = self.score.state_dict() if weights is None else under(weights, "value_model.score.")
        whole = {**adapter, **{_HEAD + name: weight for name, weight in (head or {}).items()}}
        config: Any = copy.deepcopy(policy.peft_config[VALUE])
        config.task_type, config.modules_to_save, config.inference_mode = TaskType.SEQ_CLS, ["score"], True
        config.save_pretrained(str(folder))
        save_file({name: weight.detach().cpu().contiguous() for name, weight in whole.items()},
                  folder / "adapter_model.safetensors", metadata={"format": "pt"})  # fmt: skip

    def load_pretrained(self, folder: Path) -> None:
        """Loads the adapter and its head.

        Raises:
            OSError or ValueError: If they are not there, or are others.
        """
        if not (folder / "adapter_config.json").is_file():
            raise OSError(f"no adapter in {folder}")
        adapter, head = adapter_and_head(folder)
        if "weight" not in head:
            raise ValueError(f"no value head in {folder}")
        load_adapter(self._switch.model, VALUE, adapter, embeddings=False)
        self.score.load_state_dict(head)


class SharedScorer(RewardScorer):
    """A reward model that is an adapter and a head on the policy's base model; see [`share_reward`].

    Args:
        policy ([`~peft.PeftModel`]): The policy, with the adapter `reward`.
        model ([`~transformers.PreTrainedModel`]): A sequence classification model around the policy's backbone.
        tokenizer, settings: As in [`RewardScorer`].
    """

    def __init__(self, policy: PeftModel, model: Any, tokenizer: Any, **settings: Any) -> None:
        super().__init__(model, tokenizer, **settings)
        self._switch = AdapterSwitch(policy)

    def _run(self, sequences: Sequence[Sequence[int]], starts: Sequence[int] | None) -> NDArray[np.float32]:
        policy = self._switch.model
        training = policy.training
        self.model.eval()
        try:
            with self._switch(REWARD):
                return super()._run(sequences, starts)
        finally:
            policy.train(training)


def share_reward(policy: PeftModel, reward_model: Any) -> Any:
    """Returns a scorer on the policy's base model if `reward_model` is an adapter of it; else it, and logs why.

    Args:
        policy ([`~peft.PeftModel`]): The policy; the adapter `reward` is added to it.
        reward_model: What [`PPOTrainer`] takes. The folder or hub id of a LoRA adapter with a linear head can share,
            alone or as the scorer of a [`ComposedReward`].
    """
    if isinstance(reward_model, ComposedReward):
        composed = copy.copy(reward_model)
        composed.scorer = share_reward(policy, reward_model.scorer)
        return composed
    reason = why_separate(policy, reward_model)
    if reason is not None:
        logger.warning(f"the reward model does not share the policy's base model: {reason}")
        return reward_model
    weights, head = adapter_and_head(reward_model)
    config: Any = PeftConfig.from_pretrained(str(reward_model))
    config.modules_to_save, config.task_type = None, policy.active_peft_config.task_type
    add_adapter(policy, REWARD, config, trains=False)
    load_adapter(policy, REWARD, weights, embeddings=False)
    inner = base_model(policy)
    model = with_score_head(inner, len(head["weight"]))
    model.score = Float32Linear(head["weight"].shape[1], len(head["weight"]), bias="bias" in head, device=inner.device)
    model.score.load_state_dict(head)
    model.score.requires_grad_(False)
    return SharedScorer(
        policy, model, AutoTokenizer.from_pretrained(reward_model),
        rendering=stored_rendering(reward_model), head=stored_head(reward_model), progress=False,
    )  # fmt: skip


def why_separate(policy: PeftModel, reward_model: Any) -> str | None:
    """Returns why a reward model cannot be an adapter of the policy's base model, `None` if it can."""
    if not isinstance(reward_model, str | Path):
        return f"it is a {type(reward_model).__name__}, not the folder or hub id of an adapter"
    if find_file(reward_model, "adapter_config.json") is None:
        return f"{reward_model} holds no adapter"
    config: Any = PeftConfig.from_pretrained(str(reward_model))
    if not isinstance(config, LoraConfig) or config.init_lora_weights not in (True, False, "gaussian"):
        return f"its adapter is not plain LoRA ({config.peft_type.value}, {getattr(config, 'init_lora_weights', '')})"
    adapter, head = adapter_and_head(reward_model)
    backbone = f"base_model.model.{base_model(policy).base_model_prefix}."
    other = [name for name in adapter if not name.startswith(backbone) or ".lora_" not in name]
    if not stored_head(reward_model).is_standard or other or "weight" not in head:
        return f"it is not LoRA weights and a linear head alone ({[*other, 'its head'][0]})"
    return _difference(base_model(policy), str(config.base_model_name_or_path))


def _difference(inner: Any, path: str) -> str | None:
    """Returns which weight of the backbone is not the checkpoint's at `path`; quantised ones cannot be compared.

    One weight at a time is read, so that a second base model is never held.
    """
    index = find_file(path, "model.safetensors.index.json")
    shards = set(json.loads(Path(index).read_text())["weight_map"].values()) if index else {"model.safetensors"}
    places: dict[str, str] = {}
    for shard in shards:
        if (file := find_file(path, shard)) is None:
            return f"its base model {path} has no {shard} to compare with"
        with safe_open(file, "pt") as stored:
            places |= {name: file for name in stored.keys()}  # noqa: SIM118
    prefix = f"{inner.base_model_prefix}."
    for name, weight in inner.named_parameters():
        plain = name.replace(".base_layer.", ".").replace(".original_module.", ".")
        if not name.startswith(prefix) or _is_adapters(name) or not weight.is_floating_point():
            continue
        found = next((key for key in (plain, plain.removeprefix(prefix)) if key in places), None)
        if found is None:
            return f"its base model {path} has no {plain}"
        with safe_open(places[found], "pt") as stored:
            theirs = stored.get_tensor(found)
        if theirs.shape != weight.shape or not torch.equal(theirs.to(weight.device, weight.dtype), weight):
            return f"its base model {path} has another {plain} than the policy's"
    return None


def _is_adapters(name: str) -> bool:
    return ".lora_" in name or ".modules_to_save." in name or ".token_adapter." in name


def with_score_head(inner: Any, num_labels: int = 1) -> Any:
    """Returns a sequence classification model around a language model's own backbone; its head has no weights yet.

    Args:
        inner ([`~transformers.PreTrainedModel`]): A decoder with any head.
        num_labels (`int`): Outputs of the head.

    Raises:
        ModelError: If its kind has no sequence classification model.
    """
    config = copy.deepcopy(inner.config)
    config.num_labels = num_labels
    try:
        with torch.device("meta"):
            model: Any = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise ModelError(f"{type(inner).__name__} has no model with a score head; give value_model") from error
    if not hasattr(model, "score"):
        raise ModelError(f"{type(model).__name__} has no head at every position; give value_model")
    setattr(model, model.base_model_prefix, getattr(inner, inner.base_model_prefix))
    return model


def under(weights: dict[str, Any] | None, prefix: str) -> dict[str, Any] | None:
    """Returns the weights whose names begin with a prefix, without it; `None` for none."""
    if weights is None:
        return None
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}


def adapter_and_head(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the weights of an adapter's checkpoint without those of its score head, and these by themselves."""
    weights = load_peft_weights(str(path), device="cpu")
    head = under(weights, _HEAD) or {}
    return {name: weight for name, weight in weights.items() if not name.startswith(_HEAD)}, head


def load_adapter(
    model: PeftModel, name: str, weights: dict[str, Any], *, embeddings: Literal["auto", False] = "auto"
) -> None:
    """Gives an adapter its weights.

    Args:
        model ([`~peft.PeftModel`]): The model.
        name (`str`): The adapter's name.
        weights (`dict`): Its weights by PEFT's names.
        embeddings (`"auto"` or `False`): Whether PEFT may store the base's own embeddings with the adapter.

    Raises:
        ValueError: If there are more or fewer than it has.
    """
    other = weights.keys() ^ get_peft_model_state_dict(model, None, name, save_embedding_layers=embeddings).keys()
    if other:
        raise ValueError(f"{sorted(other)[0]} is in one of the two adapters alone")
    set_peft_model_state_dict(model, weights, adapter_name=name)


def check_adapter(policy: Any) -> None:
    """Raises `UsageError` if a policy has no LoRA adapter, so that nothing could share its base model."""
    if not isinstance(policy, PeftModel) or not isinstance(policy.active_peft_config, LoraConfig):
        raise UsageError("`one_backbone` needs a policy with a LoRA adapter; give peft_config=LoraConfig(...)")
