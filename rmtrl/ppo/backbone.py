"""One base model for policy, reference and value model: its adapters, one of them active at a time."""

import copy
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import load_peft_weights
from safetensors.torch import save_file
from torch import nn

from rmtrl.errors import UsageError
from rmtrl.models import AdapterSwitch, base_model
from rmtrl.reward.heads import Float32Linear

VALUE = "value"
_HEAD = "base_model.model.score."  # where an adapter's checkpoint holds its score head


def add_adapter(policy: PeftModel, name: str, config: PeftConfig, *, trains: bool) -> None:
    """Adds an adapter to a model; which of the weights already there take gradients stays as it is.

    Args:
        policy ([`~peft.PeftModel`]): The model.
        name (`str`): The adapter's name.
        config ([`~peft.PeftConfig`]): Its configuration.
        trains (`bool`): Whether the new weights take gradients.

    Raises:
        UsageError: If there is one of that name.
    """
    if name in policy.peft_config:
        raise UsageError(f"the policy already has an adapter named {name!r}, which one_backbone adds; rename it")
    before = {id(weight): weight.requires_grad for weight in policy.parameters()}
    policy.add_adapter(name, config)
    head: Any = policy.get_output_embeddings()
    if isinstance(head, BaseTunerLayer):
        head.delete_adapter(name)  # neither values nor rewards pass through the language model's head
    for weight in policy.parameters():
        weight.requires_grad_(before.get(id(weight), trains))


class SharedValue(nn.Module):
    """A value model on the policy's base model: an adapter of its own and a linear head, of zeros at first.

    The adapter starts as a copy of the policy's and is registered there; this module's own weights are the head's.
    Saved, it is the adapter of a sequence classification model, as any separate value model with an adapter is.

    Args:
        policy ([`~peft.PeftModel`]): The policy, with a LoRA adapter.

    Raises:
        UsageError: If the policy has none.
    """

    def __init__(self, policy: PeftModel) -> None:
        super().__init__()
        check_adapter(policy)
        config: Any = copy.deepcopy(policy.active_peft_config)
        config.modules_to_save, config.init_lora_weights, config.inference_mode = None, True, False
        add_adapter(policy, VALUE, config, trains=True)
        mine, theirs = (
            get_peft_model_state_dict(policy, adapter_name=name, save_embedding_layers=False)
            for name in (VALUE, str(policy.active_adapter))
        )
        load_adapter(policy, VALUE, {name: theirs[name] for name in mine}, embeddings=False)
        self._switch = AdapterSwitch(policy)
        inner = base_model(policy)
        self.score = Float32Linear(inner.config.get_text_config().hidden_size, 1, bias=False, device=inner.device)
        nn.init.zeros_(self.score.weight)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Returns the value after each token, `(B, T)`."""
        inner = base_model(self._switch.model)
        backbone = getattr(inner, inner.base_model_prefix)
        with self._switch(VALUE):
            states = backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        values: torch.Tensor = self.score(states)[..., 0]
        return values

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
        folder.mkdir(parents=True, exist_ok=True)
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
