"""The one loader of a model, whole or a base with its adapter; its device, its limits, and which adapter is on."""

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, load_peft_weights
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers import logging as transformers_logging
from transformers.integrations import deepspeed
from transformers.utils import cached_file

from rmtrl.errors import DataError, FreshHeadError, ModelError, UsageError

_TRANSFORMERS = Version(transformers.__version__)

CACHE = "cache" if Version("5.24.dev0") <= _TRANSFORMERS else "past_key_values"
"""Name of the key-value cache in the arguments and outputs of a model; the older one warns from 5.24 on."""

CHECKPOINTING = "activation_checkpointing" if Version("5.23.dev0") <= _TRANSFORMERS else "gradient_checkpointing"
"""How a model's recomputation is called: `{CHECKPOINTING}_enable`, `is_{CHECKPOINTING}`, `{CHECKPOINTING}_kwargs`."""

Check = Callable[[Any, Mapping[str, Any]], None]

_CONFIGS = ("config.json", "adapter_config.json")
_TABLE = re.compile(r"(^|\.)(wpe|positions_embed|pos_encoding|embed_positions|\w*position_embeddings?)$")


def load_tokenizer(path: str | Path, *, kind: str = "model", **settings: Any) -> PreTrainedTokenizerBase:
    """Returns the tokenizer at a folder or hub id.

    Args:
        path (`str` or `Path`): Folder or hub id.
        kind (`str`): What should be there, for the error.
        settings: As in `from_pretrained`.

    Raises:
        ModelError: If there is none.
    """
    with _said(path, kind):
        return AutoTokenizer.from_pretrained(path, **settings)


@contextmanager
def whole() -> Iterator[None]:
    """Models made in this block have all their weights on every process, also where ZeRO-3 would load shares."""
    stored, deepspeed._hf_deepspeed_config_weak_ref = deepspeed._hf_deepspeed_config_weak_ref, None
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = stored


@whole()  # it is copied, or answers at each process's own pace
def load_model(
    path: str | Path, read: Callable[..., Any], check: Check, *, kind: str = "model", n_tokens: int = 0,
    trains: bool = False, **settings: Any,
) -> Any:  # fmt: skip
    """Returns the model at a folder or hub id, whole or its base with the adapter there, all of it on each process.

    Args:
        path (`str` or `Path`): Folder or hub id.
        read (`Callable`): `from_pretrained` of the class, or `Auto` class, of the whole model or of the base.
        check (`Callable`): Given model or base, and transformers' loading information, raises where it cannot serve;
            `missing_keys` are those that an adapter does not hold either.
        kind (`str`): What should be there, for the error.
        n_tokens (`int`): Tokens of the tokenizer: an adapter that holds embeddings may hold more than its base.
        trains (`bool`): Whether an adapter there goes on being trained.
        settings: As in `from_pretrained`.

    Raises:
        ModelError: If there is none, or its base cannot be loaded.
    """
    with _said(path, kind):
        adapter = find_file(path, "adapter_config.json") is not None
        base = str(PeftConfig.from_pretrained(str(path)).base_model_name_or_path) if adapter else str(path)
    with _said(path, kind, f"its base model {base} cannot be loaded: " if adapter else ""), quietly():
        model, info = read(base, output_loading_info=True, **settings)
    held = load_peft_weights(str(path), device="cpu") if adapter else {}
    missing = {key for key in info["missing_keys"] if not any(name.endswith(f".{key}") for name in held)}
    check(model, {**info, "missing_keys": missing, "adapted": adapter})
    if not adapter:
        return model
    embeds = any("embed" in name or ".wte." in name for name in held)
    if embeds and n_tokens > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(n_tokens)  # training added a token
    with _said(path, kind):
        return PeftModel.from_pretrained(model, str(path), is_trainable=trains)


def load_language_model(path: str | Path, **settings: Any) -> Any:
    """Returns the causal language model at a folder or hub id, whole or base and adapter.

    Args:
        path (`str` or `Path`): Folder or hub id.
        settings: As in [`load_model`].

    Raises:
        ModelError: If there is none.
        FreshHeadError: If it holds no language model head, so that its probabilities would be random.
    """

    def check(model: Any, info: Mapping[str, Any]) -> None:
        lacks = sorted(info["missing_keys"])
        if any(name.endswith("ForSequenceClassification") for name in model.config.architectures or ()):
            lacks = ["a trained language model head, as every sequence classification model does"]
        if lacks:
            raise FreshHeadError(
                f"{path} lacks {lacks[0]}, so its probabilities would be random; give a language model (for a reward "
                "model: RewardScorer)"
            )

    return load_model(path, AutoModelForCausalLM.from_pretrained, check, kind="language model", **settings)


def find_file(path: str | Path, name: str) -> str | None:
    """Returns where a file of a checkpoint folder or hub id stands on this machine, `None` where it has none."""
    return cached_file(
        str(path), name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )


def device_or_best(device: str | None = None) -> torch.device:
    """Returns the device of a name, without one the accelerator, else the CPU.

    Raises:
        UsageError: If there is no such device.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    try:
        found = torch.device(device or accelerator or "cpu")
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"no device {device}: {reason}; wanted one such as cpu or cuda") from error
    return found


@contextmanager
def _said(path: str | Path, kind: str, before: str = "") -> Iterator[None]:
    """Turns what loading raises into one line."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        held = sorted({str(own.parent) for own in Path(path).glob("*/*config.json") if own.name in _CONFIGS})
        if reason.startswith(("Repo id must", "Incorrect path_or_model_id")):
            reason = "there is no such folder"
        elif "couldn't connect" in reason and not Path(path).exists():
            reason = "there is no such folder, and the hub cannot be reached"
        elif held and not any((Path(path) / own).exists() for own in _CONFIGS):
            reason = f"the folder has none itself, and {', '.join(held[:3])} has one"
        raise ModelError(f"no {kind} at {path}: {before}{reason}; give a checkpoint folder or a hub id") from error


@contextmanager
def quietly() -> Iterator[None]:
    """Silences transformers: a missing head is an error of ours, not a table of keys."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def keep_outputs(accelerator: Any) -> None:
    """Has FSDP2 return what a model computed, such as float32 scores, which its bf16 policy would round."""
    if accelerator.is_fsdp2 and (plugin := accelerator.state.fsdp_plugin).mixed_precision_policy is not None:
        plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, output_dtype=None)


def inside(model: Any, pad_token_id: int) -> int:
    """Returns a token to fill rows with that the model has an embedding of: the pad token, where it is one."""
    if pad_token_id < n_embeddings(model):
        return pad_token_id
    return int(model.config.get_text_config().eos_token_id == 0)  # the first that is not the end


def base_model(model: Any) -> Any:
    """Returns the model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def position_limit(model: Any) -> int | None:
    """Returns the most tokens a model takes, `None` where nothing limits it.

    A table of positions ends, and positions that turn with rotary embeddings are known up to those of the training;
    relative ones, ALiBi and recurrent layers know no end. RoBERTa's first positions, up to its padding index, are
    never used.
    """
    inner = base_model(model)
    config, tables = inner.config.get_text_config(), position_tables(inner)
    for table in tables:
        if getattr(table, "padding_idx", None) is not None and hasattr(table, "weight"):
            return int(len(table.weight) - table.padding_idx - 1)
    rotates = any(value and re.search("rope|rotary", name) for name, value in config.to_dict().items())
    known = tables or (rotates and not getattr(config, "alibi", False))
    limit = getattr(config, "max_position_embeddings", None) or 0
    return limit if limit > 0 and known else None


def position_tables(model: Any) -> list[Any]:
    """Returns the tables of positions in a model: beyond their end it cannot compute."""
    return [part for name, part in (*model.named_modules(), *model.named_buffers()) if _TABLE.search(name)]


def n_embeddings(model: Any) -> int:
    """Returns how many tokens the model has embeddings of; one without a table of them, as CANINE is, takes any."""
    try:
        return int(model.get_input_embeddings().num_embeddings)
    except (NotImplementedError, AttributeError):
        return sys.maxsize


def beyond_embeddings(model: Any, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Returns what to say of a tokenizer with tokens, but for padding, that the model has no embedding of."""
    n, vocabulary = n_embeddings(model), tokenizer.get_vocab()
    beyond = [token for token, i in vocabulary.items() if i >= n and i != tokenizer.pad_token_id]
    if not beyond:
        return None
    return (
        f"the model has {n:,} embeddings and the tokenizer {len(beyond):,} tokens beyond them, {beyond[0]!r} among "
        "them: no text with one can be used; take the tokenizer that the model was trained with, or call "
        "resize_token_embeddings(len(tokenizer)) before training"
    )


def check_tokens(
    model: Any, sequences: Sequence[Sequence[int]], what: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Passes token ids that the model has embeddings of.

    Raises:
        DataError: Naming the first sequence, which is a `what`, with a token that it has not.
    """
    n = n_embeddings(model)
    for index, ids in enumerate(sequences):
        if len(ids) and min(ids) < 0:
            raise DataError(f"{what} {index} has token {int(min(ids))}; token ids are 0 or more")
        if len(ids) and (highest := max(ids)) >= n:
            raise DataError(
                f"{what} {index} has token {int(highest):,} ({tokenizer.convert_ids_to_tokens(int(highest))!r}), the "
                f"model has {n:,} embeddings; take the tokenizer that it was trained with"
            )


def check_finite(when: str, tensor: torch.Tensor, what: str) -> None:
    """Passes a tensor all of whose numbers are finite.

    Args:
        when (`str`): Where the training stands, such as `"step 3"`; it opens the message.
        tensor ([`~torch.Tensor`]): The numbers.
        what (`str`): Their name and verb, such as `"the loss is"`.

    Raises:
        ModelError: If a number is not.

    Example:

    ```python
    >>> check_finite("step 1", torch.tensor([0.5]), "the loss is")
    ```
    """
    if not torch.isfinite(tensor).all():
        raise ModelError(
            f"{when}: {what} not finite; the run has diverged or started from broken weights: lower learning_rate, "
            "set max_grad_norm, or resume from an earlier checkpoint"
        )


def check_weights(when: str, model: torch.nn.Module) -> None:
    """Passes a model all of whose weights, on this process, are finite.

    Raises:
        ModelError: Naming one that is not: such a model is no result.
    """
    for name, weight in model.named_parameters():
        share = getattr(weight, "ds_tensor", weight)  # ZeRO-3's
        own: torch.Tensor = share.to_local() if hasattr(share, "to_local") else share
        if own.is_floating_point():
            check_finite(when, own.detach(), f"nothing is saved: the weights {name} are")


class AdapterSwitch:
    """Makes another adapter of a model the active one for a while; what takes gradients is not touched.

    PEFT's own `set_adapter` makes the adapter trainable, freezes all others, and walks over every module.

    Args:
        model ([`~peft.PeftModel`]): The model. It is no submodule of what holds the switch.

    Example:

    ```python
    >>> with AdapterSwitch(policy)(None):
    ...     logits = policy(input_ids).logits  # the base model's
    ```
    """

    def __init__(self, model: PeftModel) -> None:
        self.model = model

    @cached_property
    def _layers(self) -> list[Any]:
        # layers that a later adapter adds hold no adapter but that one: they need no switching to any known now
        return [m for m in self.model.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]

    @property
    def active(self) -> str | None:
        """The adapter that is active, `None` if all are switched off."""
        return None if self._layers[0]._disable_adapters else str(self.model.active_adapter)

    @contextmanager
    def __call__(self, adapter: str | None) -> Iterator[None]:
        """Makes an adapter the active one, or none, in a `with` block."""
        if adapter == self.active:
            yield
            return
        name, before = self.model.active_adapter, [(m._active_adapter, m._disable_adapters) for m in self._layers]
        try:
            if adapter is not None:
                self.model.active_adapter = adapter
            for layer in self._layers:
                layer._disable_adapters = adapter is None
                if adapter is not None:
                    layer._active_adapter = [adapter] if adapter in _adapters_of(layer) else []
            yield
        finally:
            self.model.active_adapter = name
            for layer, (active, disabled) in zip(self._layers, before, strict=True):
                layer._active_adapter, layer._disable_adapters = active, disabled

    def contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Returns what [`torch.utils.checkpoint`] takes as `context_fn`: recomputing uses the forward's adapter."""
        return nullcontext(), self(self.active)


def _adapters_of(layer: Any) -> Any:
    return layer._adapters if isinstance(layer, AuxiliaryTrainingWrapper) else layer._get_available_adapters()
