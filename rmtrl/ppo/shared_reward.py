"""The reward model as one more adapter of the policy's base model, with its score head."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger
from numpy.typing import NDArray
from peft import LoraConfig, PeftConfig, PeftModel
from safetensors import safe_open
from transformers import AutoTokenizer

from rmtrl.models import AdapterSwitch, base_model, find_file
from rmtrl.ppo.backbone import adapter_and_head, add_adapter, load_adapter
from rmtrl.ppo.models import with_score_head
from rmtrl.ppo.rewards import ComposedReward
from rmtrl.reward.checkpoint import stored_head, stored_rendering
from rmtrl.reward.heads import Float32Linear
from rmtrl.reward.scorer import RewardScorer

logger = get_logger(__name__)

REWARD = "reward"


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
