"""Responses of the policy by vLLM, in the process that trains it, and whether the two engines agree."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel

from rmtrl.errors import ModelError, UsageError
from rmtrl.generation import Completion
from rmtrl.models import base_model
from rmtrl.ppo.config import PPOConfig


class VLLMGenerator:
    """Completes token ids with vLLM, whose weights are made those of the model at every call.

    It starts without weights, in the policy's own precision (vLLM's default rounds float32 to float16), and says the
    log probability of every token it draws, so that a trainer can tell where the engines part. Equal keys give equal
    samples of equal weights, but not those of transformers.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The policy.
        args ([`PPOConfig`]): Length, temperature and the share of the accelerator's memory.
        end_token_ids (`Sequence[int]`): Tokens that end a completion.
        max_length (`int`): Most tokens of prompt and completion together.

    Raises:
        UsageError: If vLLM is not installed, or a setting is not vLLM's.
    """

    def __init__(self, model: Any, args: PPOConfig, end_token_ids: Sequence[int], max_length: int) -> None:
        if args.top_p < 1 or args.generation_kwargs:
            raise UsageError("use_vllm samples from the policy itself; leave top_p at 1 and generation_kwargs out")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UsageError("use_vllm runs in one process so far; leave it out, or train with one")
        self.model, inner = model, base_model(model)
        self.args, self.end_token_ids = args, list(end_token_ids)
        self.logprobs_: list[list[float]] = []
        """What vLLM said of the tokens of the last call, a list each completion."""
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # read where vllm is imported: one process
        try:
            import vllm
        except ImportError as error:
            raise UsageError(f"use_vllm needs vLLM, which cannot be imported ({error}); pip install vllm") from error
        if not torch.accelerator.is_available():
            import vllm._custom_ops

            vllm._custom_ops._supports_onednn = False  # packs weights so that no others can be loaded
        with tempfile.TemporaryDirectory() as folder:
            inner.config.save_pretrained(folder)
            self._engine = vllm.LLM(
                folder, load_format="dummy", skip_tokenizer_init=True, dtype=inner.dtype,
                max_model_len=max_length, gpu_memory_utilization=args.vllm_gpu_memory_utilization, enforce_eager=True,
                distributed_executor_backend="uni", logprobs_mode="processed_logprobs", enable_prefix_caching=False,
            )  # fmt: skip
        self._sampling = vllm.SamplingParams

    def complete(self, prompt_ids: Sequence[Sequence[int]], keys: Sequence[int]) -> list[Completion]:
        """Returns one completion of each tokenised prompt, without its text; it follows from weights, prompt and key.

        Args:
            prompt_ids (`Sequence[Sequence[int]]`): Token ids of each prompt.
            keys (`Sequence[int]`): A [`~rmtrl.generation.sampling_key`] each.
        """
        weights = [(name, weight.detach()) for name, weight in merged_weights(self.model)]
        self._engine.apply_model(lambda inner: inner.load_weights(weights) and None)
        prompts = [{"prompt_token_ids": list(ids)} for ids in prompt_ids]
        settings = [
            self._sampling(
                temperature=self.args.temperature, max_tokens=self.args.response_length, seed=key & (1 << 63) - 1,
                stop_token_ids=self.end_token_ids, ignore_eos=True, logprobs=0, detokenize=False,
            )
            for key in keys
        ]  # fmt: skip
        made = [output.outputs[0] for output in self._engine.generate(prompts, settings, use_tqdm=False)]
        self.logprobs_ = [[at[i].logprob for i, at in zip(own.token_ids, own.logprobs, strict=True)] for own in made]
        return [Completion("", tuple(own.token_ids), own.finish_reason == "length") for own in made]


def merged_weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the weights that a language model has with its active adapter, and leaves those it holds alone.

    Raises:
        ModelError: If they cannot be told from its parts, as where its base is quantised.
    """
    inner = base_model(model)
    if getattr(inner, "is_quantized", False):
        raise ModelError("use_vllm needs the policy's weights, and its base is quantised; load it without")
    if not isinstance(model, PeftModel):
        yield from inner.named_parameters()
        return
    active = model.active_adapter
    own, others = f".modules_to_save.{active}.", (model.base_model.prefix, ".original_module.", ".modules_to_save.")
    for name, weight in inner.named_parameters():
        if own in name:
            yield name.replace(own, "."), weight
        elif ".base_layer." in name:
            path, _, rest = name.partition(".base_layer.")
            yield f"{path}.{rest}", _adapted(inner.get_submodule(path), active, weight, rest)
        elif not any(other in name for other in others):
            yield name, weight


def _adapted(layer: Any, adapter: Any, weight: torch.Tensor, kind: str) -> torch.Tensor:
    if kind != "weight" or adapter not in layer._get_available_adapters():
        return weight
    if not hasattr(layer, "get_delta_weight") or getattr(layer, "use_dora", {}).get(adapter):
        raise ModelError(f"use_vllm cannot merge {type(layer).__name__} of the adapter; use LoRA, or leave use_vllm")
    return weight + layer.get_delta_weight(adapter).to(weight.dtype)
