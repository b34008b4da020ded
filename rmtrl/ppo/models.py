"""Policy, value model and reference as one module, so that one wrapper serves both and adapters can share a base."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from peft import PeftConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from rmtrl.errors import ModelError, UsageError
from rmtrl.ppo.backbone import AdapterSwitch, SharedValue
from rmtrl.ppo.loss import response_logits, token_logprobs
from rmtrl.reward._hosts import CHECKPOINTING
from rmtrl.reward.heads import base_model, compute_head_in_float32

REFERENCE = "reference"


class PolicyAndValue(nn.Module):
    """The policy and its value model, which are trained together.

    Args:
        policy ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): A causal language model.
        value_model (`nn.Module`): Called `(input_ids, attention_mask) -> (B, T)`.
        reference_adapter (`str`, *optional*): Adapter of the policy that is its reference; `""` is none at all, the
            base model. `None`: the reference is another model.
    """

    # generation runs in eval mode, where nothing is recomputed: there is nothing for TRL to switch off around it
    is_gradient_checkpointing = False

    def __init__(self, policy: Any, value_model: nn.Module, reference_adapter: str | None = None) -> None:
        super().__init__()
        self.policy = policy
        self.value_model = value_model
        self.reference_adapter = reference_adapter
        self._switch = AdapterSwitch(policy)

    @property
    def config(self) -> Any:
        """The policy's configuration, which is what is pushed to the hub."""
        return self.policy.config

    def num_parameters(self) -> int:
        """Returns the number of weights of the policy."""
        return int(self.policy.num_parameters())

    @property
    def generation_config(self) -> Any:
        """The policy's generation settings."""
        return self.policy.generation_config

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor,
        temperature: float, reference: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:  # fmt: skip
        """Returns log probability and entropy of n tokens, and the value of the state before each, `(n,)` float32.

        Args:
            input_ids (`(B, T)` int64 tensor): Prompts and responses, padded on the right.
            attention_mask (`(B, T)` int64 tensor): 1 for tokens.
            rows, columns (`(n,)` int64 tensors): Where the n tokens stand.
            temperature (`float`): Divides the logits.
            reference (`bool`): Whether the reference's log probabilities are wanted, by switching the adapter; the
                values are left out then.
        """
        with self._reference() if reference else nullcontext():
            logits = response_logits(self.policy, input_ids, attention_mask, rows, columns - 1)
        logprobs, entropy = token_logprobs(logits, input_ids[rows, columns], temperature)
        if reference:
            return logprobs, entropy, None
        values: torch.Tensor = self.value_model(input_ids, attention_mask)
        return logprobs, entropy, values[rows, columns - 1].float()

    @contextmanager
    def _reference(self) -> Iterator[None]:
        if self.reference_adapter is None:
            raise ModelError("the reference is another model; there is no adapter to switch")
        with self._switch(self.reference_adapter or None):
            yield

    def _parts(self) -> Iterator[Any]:
        yield self.policy
        if isinstance(own := getattr(self.value_model, "model", None), PreTrainedModel | PeftModel):
            yield own

    def activation_checkpointing_enable(self, **settings: Any) -> None:
        """Recomputes activations in the backward pass, of policy and value model."""
        if isinstance(self.value_model, SharedValue):
            given = settings.get(f"{CHECKPOINTING}_kwargs") or {}
            if given.get("use_reentrant"):
                raise UsageError("`one_backbone` recomputes with use_reentrant=False alone; leave use_reentrant out")
            # policy and value model are recomputed when neither's forward runs any more
            given = {**given, "use_reentrant": False, "context_fn": self._switch.contexts}
            settings[f"{CHECKPOINTING}_kwargs"] = given
        for model in self._parts():
            getattr(base_model(model), f"{CHECKPOINTING}_enable")(**settings)
            base_model(model).enable_input_require_grads()  # frozen embeddings would cut an adapter's graph

    gradient_checkpointing_enable = activation_checkpointing_enable  # what transformers calls up to 5.22

    def activation_checkpointing_disable(self) -> None:
        """Keeps activations again."""
        for model in self._parts():
            getattr(base_model(model), f"{CHECKPOINTING}_disable")()

    @property
    def is_activation_checkpointing(self) -> bool:
        """Whether the policy recomputes activations."""
        return bool(getattr(base_model(self.policy), f"is_{CHECKPOINTING}"))


class SequenceValue(nn.Module):
    """A value model of a sequence classification model with one label: its score at every position.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): With a head named `score`.

    Raises:
        ModelError: If the model has another head or more than one label.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        inner = base_model(model)
        if not hasattr(inner, "score") or inner.config.num_labels != 1:
            raise ModelError(
                f"got {type(inner).__name__} with {getattr(inner.config, 'num_labels', 'no')} labels as value_model; "
                "wanted AutoModelForSequenceClassification of a decoder with num_labels=1, or a module "
                "(input_ids, attention_mask) -> (B, T)"
            )
        compute_head_in_float32(model)
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Returns the value after each token, `(B, T)`."""
        inner = base_model(self.model)
        backbone = getattr(inner, inner.base_model_prefix)
        states = backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        values: torch.Tensor = inner.score(states)[..., 0]
        return values


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


def make_value_model(source: Any, peft_config: PeftConfig | None = None) -> SequenceValue:
    """Returns a value model with the backbone of another model, copied, and a head of zeros.

    A head of zeros predicts 0 at first, whatever the scale of the rewards (Ziegler et al. 2019).

    Args:
        source ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): A decoder with any head; its adapter is
            merged into the copy.
        peft_config ([`~peft.PeftConfig`], *optional*): Trains an adapter and the head in place of all weights.

    Raises:
        ModelError: If its kind has no sequence classification model.
    """
    inner = copy.deepcopy(source)
    inner = inner.merge_and_unload() if isinstance(inner, PeftModel) else inner
    model = with_score_head(inner)
    backbone = getattr(model, model.base_model_prefix).requires_grad_(not getattr(inner, "is_quantized", False))
    like = next(p for p in backbone.parameters() if p.is_floating_point())
    model.score = nn.Linear(model.score.in_features, 1, bias=False, device=like.device, dtype=like.dtype)
    nn.init.zeros_(model.score.weight)
    if peft_config is not None:
        own: Any = copy.deepcopy(peft_config)
        own.task_type, own.modules_to_save = TaskType.SEQ_CLS, ["score"]
        return SequenceValue(get_peft_model(model, own))
    return SequenceValue(model)


def add_reference_adapter(policy: PeftModel) -> str:
    """Returns the name of a frozen copy of a policy's adapter, added to it: the reference of a trained adapter."""
    active = policy.active_adapter
    policy.add_adapter(REFERENCE, copy.deepcopy(policy.peft_config[active]))
    weights = dict(policy.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            if f".{REFERENCE}" in name:
                weight.copy_(weights[name.replace(f".{REFERENCE}", f".{active}")])
                weight.requires_grad_(False)
    return REFERENCE


def disable_dropout(model: nn.Module) -> None:
    """Sets every dropout to 0 in place, those that attention reads from its own attributes too."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
