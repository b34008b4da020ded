"""The models of a run from what its trainer is given, each checked: policy, reference, value model, generator."""

import copy
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from rmtrl.errors import ModelError, UsageError
from rmtrl.generation import TransformersGenerator
from rmtrl.models import base_model, find_file, load_language_model, position_limit
from rmtrl.ppo.config import PPOConfig
from rmtrl.ppo.models import SequenceValue, add_reference_adapter, make_value_model
from rmtrl.reward.rendering import choose_pad_token

logger = logging.getLogger(__name__)


def load_policy(model: Any, *, n_tokens: int = 0, adapted: bool = False) -> Any:
    """Returns the model given, or the language model at a folder or hub id; an adapter there goes on being trained.

    Args:
        model: A model, folder or hub id; nothing stays nothing.
        n_tokens (`int`): Tokens of the tokenizer, which an adapter's training may have added to.
        adapted (`bool`): Whether an adapter is to be made, so that the weights themselves are not trained.

    Raises:
        ModelError: If there is no causal language model.
    """
    if isinstance(model, str | Path):
        model = read_language_model(str(model), n_tokens=n_tokens, adapted=adapted)
    config = getattr(model, "config", None)
    encoder = getattr(config, "model_type", None) in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if getattr(config, "is_encoder_decoder", False) or (encoder and not getattr(config, "is_decoder", False)):
        raise ModelError(f"got {type(base_model(model)).__name__}, which sees more than the tokens before; wanted a "
                         "causal language model")  # fmt: skip
    return model


def read_language_model(path: str, *, n_tokens: int = 0, adapted: bool = False, **settings: Any) -> Any:
    """Returns the language model at a folder or hub id, or its base with the adapter there, ready to be trained.

    Weights that are trained are float32, whatever they are stored in: bf16 is for the arithmetic.

    Args:
        path (`str`): Folder or hub id.
        n_tokens (`int`): Tokens of the tokenizer, which an adapter's training may have added to.
        adapted (`bool`): Whether an adapter is to be made, so that the weights themselves are not trained.
        settings: As in `from_pretrained`; a dtype other than `"auto"` is kept.

    Raises:
        ModelError: If there is none.
    """
    if settings.get("dtype") in (None, "auto"):
        settings["dtype"] = "auto" if adapted or find_file(path, "adapter_config.json") else "float32"
    return load_language_model(path, n_tokens=n_tokens, trains=True, **settings)


def check_roles(model: Any, ref_model: Any, reward_model: Any, value_model: Any) -> None:
    """Raises if a model cannot play its part, or one is given two parts that train each other's weights.

    Raises:
        ModelError: If policy or reference is no causal language model.
        UsageError: If one object is given twice.
    """
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
        adapters = getattr(model, "peft_config", {})
        if name not in adapters:
            raise UsageError(f"model_adapter_name is {name!r}; the policy has {', '.join(adapters) or 'no adapter'}")
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


def give_pad_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Gives a tokenizer without pad token one that it knows; padding is masked everywhere."""
    if tokenizer.pad_token is None:
        found = choose_pad_token(copy.deepcopy(tokenizer))
        tokenizer.pad_token = found if found in tokenizer.get_vocab() else tokenizer.eos_token


def forget_pad_outside(policy: Any) -> None:
    """Takes a pad token that the policy has no embedding of out of its configuration: it could not be loaded again."""
    for config in (policy.config.get_text_config(), policy.generation_config):
        if config is not None and (config.pad_token_id or 0) >= _rows(policy):
            config.pad_token_id = None


def check_vocabulary(
    models: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, prompt_ids: Iterable[list[int]], ends: list[int]
) -> None:
    """Raises if a model lacks the embedding of a token that it will be given: in prompts, sampled, or an end token.

    Raises:
        ModelError: If one does.
    """
    prompts = max((max(ids) for ids in prompt_ids), default=0)
    sampled = (token for token in tokenizer.get_vocab().values() if token < _rows(models["model"]))
    unpadded = max((token for token in sampled if token != tokenizer.pad_token_id), default=0)
    highest = max(prompts, unpadded, *ends, 0)
    for name, model in models.items():
        rows = _rows(model)
        if rows is not None and highest >= rows:
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


def _rows(model: Any) -> Any:
    """Returns the number of embeddings, `None` where a module has none that are known."""
    known = isinstance(model, PreTrainedModel | PeftModel)
    return model.get_input_embeddings().num_embeddings if known else None


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
        if args.ref_adapter_name not in policy.peft_config:
            raise UsageError(
                f"ref_adapter_name is {args.ref_adapter_name!r}; the policy has {', '.join(policy.peft_config)}"
            )
        return None, args.ref_adapter_name
    return None, "" if peft_config is not None else add_reference_adapter(policy)


def choose_value_model(given: Any, reward_network: Any, policy: Any, peft_config: PeftConfig | None) -> nn.Module:
    """Returns the value model: the one given, else one made of the reward model if it can be, else of the policy."""
    if given is None:
        own = getattr(policy, "peft_config", {}).get(getattr(policy, "active_adapter", None), peft_config)
        of_reward = own is None and hasattr(base_model(reward_network), "score")
        return make_value_model(reward_network if of_reward else policy, own)
    return SequenceValue(given) if isinstance(given, PreTrainedModel | PeftModel) else given
