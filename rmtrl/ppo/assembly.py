"""The models of a run from what its trainer is given, each checked: policy, reference, value model, generator."""

import copy
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from rmtrl.errors import ModelError, UsageError
from rmtrl.generation import TransformersGenerator
from rmtrl.ppo.config import PPOConfig
from rmtrl.ppo.models import SequenceValue, add_reference_adapter, make_value_model
from rmtrl.reward.heads import base_model
from rmtrl.reward.rendering import choose_pad_token


def load_policy(model: Any) -> Any:
    """Returns the model given, or the language model at a folder or hub id.

    Raises:
        ModelError: If there is none.
    """
    if not isinstance(model, str):
        return model
    try:
        return AutoModelForCausalLM.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"no language model at {model}: {str(error).splitlines()[0]}; give a folder or hub id"
        ) from error


def check_roles(model: Any, ref_model: Any, reward_model: Any, value_model: Any) -> None:
    """Raises if a model cannot play its part, or one is given two parts that train each other's weights.

    Raises:
        ModelError: If policy or reference is no causal language model.
        UsageError: If one object is given twice.
    """
    for name, given in (("model", model), ("ref_model", model if ref_model is None else ref_model)):
        speaks = isinstance(given, PreTrainedModel | PeftModel) and given.get_output_embeddings() is not None
        if not speaks and not isinstance(given, str):
            raise ModelError(
                f"got {type(given).__name__} as {name}; wanted a causal language model, its folder or hub id"
            )
    if not isinstance(value_model, nn.Module | None):
        raise ModelError(f"got {type(value_model).__name__} as value_model; wanted a model, or nothing")
    if ref_model is model and not isinstance(model, str):
        raise UsageError("`model` and `ref_model` are the same object and would train together; leave ref_model out")
    if value_model is not None and value_model is reward_model:
        raise UsageError("`value_model` and `reward_model` are the same object: the reward would train; leave one out")
    if value_model is not None and value_model is model:
        raise UsageError("`value_model` and `model` are the same object; leave value_model out")


def add_policy_adapter(model: Any, peft_config: PeftConfig | None, name: str | None) -> Any:
    """Returns the policy with the adapter that is to be trained made and active.

    Raises:
        UsageError: If there is no such adapter, or a model with one is to have another.
    """
    if not isinstance(peft_config, PeftConfig | None):
        raise UsageError(f"got {type(peft_config).__name__} as peft_config; wanted one of PEFT's, such as LoraConfig")
    if peft_config is not None and isinstance(model, PeftModel):
        raise UsageError("got a PeftModel and a peft_config; merge the adapter first, or leave peft_config out")
    model = model if peft_config is None else get_peft_model(model, peft_config)
    if name is not None:
        adapters = getattr(model, "peft_config", {})
        if name not in adapters:
            raise UsageError(f"model_adapter_name is {name!r}; the policy has {', '.join(adapters) or 'no adapter'}")
        model.set_adapter(name)
    return model


def give_pad_token(tokenizer: PreTrainedTokenizerBase, policy: Any) -> None:
    """Gives a tokenizer without pad token one that the policy has an embedding of; padding is masked everywhere."""
    if tokenizer.pad_token is None:
        found = choose_pad_token(copy.deepcopy(tokenizer))
        tokenizer.pad_token = found if found in tokenizer.get_vocab() else tokenizer.eos_token
    rows = policy.get_input_embeddings().weight.shape[0]
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= rows:
        raise ModelError(
            f"the pad token {tokenizer.pad_token!r} is number {tokenizer.pad_token_id} and the policy has {rows} "
            "embeddings; call model.resize_token_embeddings(len(tokenizer)), or set another pad token"
        )


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
    positions = getattr(policy.config.get_text_config(), "max_position_embeddings", None)
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
