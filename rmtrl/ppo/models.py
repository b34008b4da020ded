"""The models of a run from what its trainer is given, each checked: policy, reference, value model, generator."""

import copy
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import fsdp2_prepare_model
from peft import PeftConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from trl.models import prepare_deepspeed, unwrap_model_for_generation

from rmtrl.errors import ModelError, UsageError
from rmtrl.generation import TransformersGenerator
from rmtrl.models import (
    CHECKPOINTING,
    AdapterSwitch,
    base_model,
    find_file,
    load_language_model,
    n_embeddings,
    position_limit,
)
from rmtrl.ppo.backbone import SharedValue, copy_adapter, values_of, with_score_head
from rmtrl.ppo.config import PPOConfig
from rmtrl.ppo.loss import response_logits, token_logprobs
from rmtrl.reward.heads import compute_head_in_float32
from rmtrl.reward.rendering import choose_pad_token

logger = logging.getLogger(__name__)

_REFERENCE = "reference"


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
    def _no_split_modules(self) -> list[str]:
        """Layers that an engine gathers one after the other."""
        return sorted({name for part in self._parts() for name in part._no_split_modules or ()})

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

    def _reference(self) -> AbstractContextManager[None]:
        return self._switch(self.reference_adapter or None)

    def _parts(self) -> list[Any]:
        given = (self.policy, getattr(self.value_model, "model", None))
        return [base_model(model) for model in given if isinstance(model, PreTrainedModel | PeftModel)]

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
            getattr(model, f"{CHECKPOINTING}_enable")(**settings)
            model.enable_input_require_grads()  # frozen embeddings would cut an adapter's graph

    gradient_checkpointing_enable = activation_checkpointing_enable  # what transformers calls up to 5.22

    def activation_checkpointing_disable(self) -> None:
        """Keeps activations again."""
        for model in self._parts():
            getattr(model, f"{CHECKPOINTING}_disable")()

    @property
    def is_activation_checkpointing(self) -> bool:
        """Whether the policy recomputes activations."""
        return bool(getattr(base_model(self.policy), f"is_{CHECKPOINTING}"))


@contextmanager
def whole_weights(accelerator: Accelerator, wrapped: Any) -> Iterator[PolicyAndValue]:
    """Yields policy and value model with all their weights, so that each process goes at its own pace.

    Args:
        accelerator ([`~accelerate.Accelerator`]): Knows the engine.
        wrapped ([`PolicyAndValue`]): Both, in the wrapper they are trained in.
    """
    if not hasattr(wrapped, "unshard"):  # FSDP2's, once training has started
        with unwrap_model_for_generation(wrapped, accelerator) as model:
            yield model
        return
    wrapped._get_fsdp_state()._lazy_init()  # else the first of its parts to run would be taken for the whole
    parts = [part for part in wrapped.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield wrapped
    finally:
        for part in parts:
            again = part is not wrapped and accelerator.state.fsdp_plugin.reshard_after_forward
            part.set_reshard_after_forward(again, recurse=False)
            part.reshard()


def shard_reference(model: Any, accelerator: Accelerator) -> Any:
    """Returns the reference in shares where the policy is trained in shares, else on the device of each process."""
    if accelerator.is_fsdp2:
        sharded = fsdp2_prepare_model(accelerator, model)
        sharded.set_reshard_after_forward(True)  # its outermost weights too
        return sharded
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    return prepare_deepspeed(model, accelerator) if plugin and plugin.zero_stage == 3 else model.to(accelerator.device)


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
        return values_of(self.model, base_model(self.model).score, input_ids, attention_mask)


def load_policy(model: Any, *, n_tokens: int = 0, adapted: bool = False, **settings: Any) -> Any:
    """Returns the model given, or the language model at a folder or hub id; an adapter there goes on being trained.

    Weights that are trained are float32, whatever they are stored in: bf16 is for the arithmetic.

    Args:
        model: A model, folder or hub id; nothing stays nothing.
        n_tokens (`int`): Tokens of the tokenizer, which an adapter's training may have added to.
        adapted (`bool`): Whether an adapter is to be made, so that the weights themselves are not trained.
        settings: As in `from_pretrained`; a dtype other than `"auto"` is kept.

    Raises:
        ModelError: If there is no causal language model.
    """
    if isinstance(model, str | Path):
        if settings.get("dtype") in (None, "auto"):
            with suppress(OSError):  # no such place, as the loader says
                adapted = adapted or find_file(model, "adapter_config.json") is not None
            settings["dtype"] = "auto" if adapted else "float32"
        model = load_language_model(model, n_tokens=n_tokens, trains=True, **settings)
    config = getattr(model, "config", None)
    encoder = getattr(config, "model_type", None) in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if getattr(config, "is_encoder_decoder", False) or (encoder and not getattr(config, "is_decoder", False)):
        raise ModelError(f"got {type(base_model(model)).__name__}, which sees more than the tokens before; wanted a "
                         "causal language model")  # fmt: skip
    return model


def check_roles(model: Any, ref_model: Any, reward_model: Any, value_model: Any) -> None:
    """Raises if a model cannot play its part, or one is given two parts that train each other's weights.

    Raises:
        ModelError: If policy or reference is no causal language model.
        UsageError: If one object is given twice.
    """
    for name, given in (("model", model), ("ref_model", ref_model), ("value_model", value_model),
                        ("reward_model", getattr(reward_model, "model", reward_model))):  # fmt: skip
        if isinstance(given, nn.Module) and any(hasattr(weight, "ds_id") for weight in given.parameters()):
            raise ModelError(
                f"{name} was loaded in shares, by ZeRO-3, and is copied or read at each process's own pace; give its "
                "folder or hub id, or load it in a block of `with rmtrl.models.whole():`"
            )
    for name, given in (("model", model), ("ref_model", model if ref_model is None else ref_model)):
        speaks = isinstance(given, PreTrainedModel | PeftModel) and given.get_output_embeddings() is not None
        if not speaks and not isinstance(given, str | Path):
            raise ModelError(
                f"got {type(given).__name__} as {name}; wanted a causal language model, its folder or hub id"
            )
    if not isinstance(value_model, nn.Module | None):
        raise ModelError(f"got {type(value_model).__name__} as value_model; wanted a model, or nothing")
    if ref_model is model and not isinstance(model, str | Path):
        raise UsageError("`model` and `ref_model` are the same object and would train together; leave ref_model out")
    if value_model is not None and value_model is reward_model:
        raise UsageError("`value_model` and `reward_model` are the same object: the reward would train; leave one out")
    if value_model is not None and value_model is model:
        raise UsageError("`value_model` and `model` are the same object; leave value_model out")


def add_policy_adapter(model: Any, peft_config: PeftConfig | None, name: str | None) -> Any:
    """Returns the policy with the adapter that is to be trained made and active.

    Raises:
        UsageError: If there is no such adapter, a model with one is to have another, or nothing would be trained.
    """
    if not isinstance(peft_config, PeftConfig | None):
        raise UsageError(f"got {type(peft_config).__name__} as peft_config; wanted one of PEFT's, such as LoraConfig")
    if peft_config is not None and (isinstance(model, PeftModel) or hasattr(model, "peft_config")):
        raise UsageError(
            "got a model with an adapter and a peft_config; merge the adapter first (merge_and_unload), or leave "
            "peft_config out"
        )
    model = model if peft_config is None else get_peft_model(model, peft_config)
    if name is not None:
        _check_name(model, "model_adapter_name", name)
        model.set_adapter(name)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    if not trained:
        raise UsageError(
            "the policy has no weight that is trained; call model.requires_grad_(True), or load its adapter with "
            "PeftModel.from_pretrained(base, folder, is_trainable=True)"
        )
    half = next((weight.dtype for weight in trained if weight.dtype in (torch.float16, torch.bfloat16)), None)
    if half is not None:
        logger.warning(
            "the policy's trained weights are %s, in which small updates are lost; load it with dtype='float32' and "
            "leave bf16 to the arithmetic", half,
        )  # fmt: skip
    return model


def _check_name(policy: Any, setting: str, name: str) -> None:
    adapters = getattr(policy, "peft_config", {})
    if name not in adapters:
        raise UsageError(f"{setting} is {name!r}; the policy has {', '.join(adapters) or 'no adapter'}")


def choose_reference(
    policy: Any, ref_model: Any, peft_config: PeftConfig | None, args: PPOConfig
) -> tuple[Any, str | None]:
    """Returns the reference model, or none and the adapter of the policy that stands for it.

    Raises:
        UsageError: If the policy has no adapter of the name given.
    """
    if ref_model is not None:
        return ref_model.eval().requires_grad_(False), None
    if not isinstance(policy, PeftModel):
        return copy.deepcopy(policy).eval().requires_grad_(False), None
    if args.ref_adapter_name is not None:
        if args.ref_adapter_name:  # else the base model
            _check_name(policy, "ref_adapter_name", args.ref_adapter_name)
        return None, args.ref_adapter_name
    if peft_config is not None:
        return None, ""
    copy_adapter(policy, _REFERENCE, copy.deepcopy(policy.active_peft_config), trains=False, through_head=True)
    return None, _REFERENCE


def choose_value_model(given: Any, reward_network: Any, policy: Any, peft_config: PeftConfig | None) -> nn.Module:
    """Returns the value model: the one given, else one made of the reward model if it can be, else of the policy."""
    if given is None:
        own = getattr(policy, "peft_config", {}).get(getattr(policy, "active_adapter", None), peft_config)
        of_reward = own is None and hasattr(base_model(reward_network), "score")
        return make_value_model(reward_network if of_reward else policy, own)
    return SequenceValue(given) if isinstance(given, PreTrainedModel | PeftModel) else given


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


def disable_dropout(*models: nn.Module | None) -> None:
    """Sets every dropout to 0 in place, those that attention reads from its own attributes too."""
    for module in (part for model in models if model is not None for part in model.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def make_generator(policy: Any, tokenizer: PreTrainedTokenizerBase, args: PPOConfig) -> TransformersGenerator:
    """Returns what samples from the policy, by the settings.

    Raises:
        UsageError: If the stop token is none of the tokenizer's.
    """
    if args.stop_token_id is not None and not 0 <= args.stop_token_id < len(tokenizer):
        raise UsageError(f"stop_token_id {args.stop_token_id} is none of the tokenizer's {len(tokenizer)} tokens")
    ends = [args.stop_token_id] if args.stop_token_id is not None else None if args.stop_token else []
    return TransformersGenerator(
        policy, tokenizer, max_new_tokens=args.response_length, temperature=args.temperature, top_p=args.top_p,
        batch_size=args.local_rollout_forward_batch_size, end_token_ids=ends,
        generation_kwargs=args.generation_kwargs, progress=False,  # type: ignore[arg-type]
    )  # fmt: skip


def longest_prompt(policy: Any, args: PPOConfig) -> int | None:
    """Returns the most tokens a prompt may have, `None` where nothing limits it.

    Raises:
        UsageError: If the responses leave no room for prompts.
    """
    positions = position_limit(policy)
    room = None if positions is None else positions - args.response_length
    if room is not None and room < 1:
        raise UsageError(f"response_length {args.response_length} leaves no room in {positions} positions; lower it")
    limits = [limit for limit in (args.max_prompt_length, room) if limit is not None]
    return min(limits, default=None)


def give_pad_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Gives a tokenizer without pad token one that it knows; padding is masked everywhere."""
    if tokenizer.pad_token is None:
        found = choose_pad_token(copy.deepcopy(tokenizer))
        tokenizer.pad_token = found if found in tokenizer.get_vocab() else tokenizer.eos_token


def forget_pad_outside(policy: Any) -> None:
    """Takes a tokenizer's pad token out of a policy's configuration where it has no embedding of it.

    Transformers has copied it there, and the policy could not be loaded again.
    """
    for config in (policy.config.get_text_config(), policy.generation_config):
        if config is not None and (config.pad_token_id or 0) >= n_embeddings(policy):
            config.pad_token_id = None


def check_vocabulary(
    models: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, prompt_ids: Iterable[list[int]], ends: list[int]
) -> None:
    """Raises if a model lacks the embedding of a token that it will be given: in prompts, sampled, or an end token.

    Raises:
        ModelError: If one does.
    """
    prompts = max((max(ids) for ids in prompt_ids), default=0)
    sampled = (token for token in tokenizer.get_vocab().values() if token < n_embeddings(models["model"]))
    unpadded = max((token for token in sampled if token != tokenizer.pad_token_id), default=0)
    highest = max(prompts, unpadded, *ends, 0)
    for name, model in models.items():
        rows = n_embeddings(model)
        if highest >= rows:
            raise ModelError(
                f"{name} has {rows:,} embeddings and token {highest:,} is in use; give models of one vocabulary, or "
                "call resize_token_embeddings(len(tokenizer)) on each"
            )


def check_positions(models: Mapping[str, Any], n_tokens: int) -> None:
    """Raises if a model has fewer positions than a prompt with its response takes.

    Raises:
        UsageError: If one has.
    """
    for name, model in models.items():
        limit = position_limit(model) if isinstance(model, PreTrainedModel | PeftModel) else None
        if limit is not None and limit < n_tokens:
            raise UsageError(
                f"{name} has {limit:,} positions and a prompt with its response takes up to {n_tokens:,}; lower "
                "max_prompt_length or response_length"
            )


def check_best_metric(args: PPOConfig, sets: list[str]) -> None:
    """Raises if the best checkpoint is told by a figure that evaluations on several sets do not have.

    Raises:
        UsageError: If `metric_for_best_model` names none of the sets.
    """
    if not args.load_best_model_at_end or not sets or sets == ["eval"]:
        return
    metric = str(args.metric_for_best_model).removeprefix("eval_")
    if not any(metric.startswith(f"{name}_") for name in sets):
        raise UsageError(
            f"metric_for_best_model is {args.metric_for_best_model!r} and there are the evaluation sets "
            f"{', '.join(sets)}; name the figure of one, such as eval_{sets[0]}_reward"
        )
