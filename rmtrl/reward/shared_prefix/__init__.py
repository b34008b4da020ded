"""Each shared prompt computed once and almost no padding: plan, rows, masks, forward, and the trainer's switch."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from torch import nn
from trl import RewardConfig
from trl.trainer.reward_trainer import DataCollatorForPreference

from rmtrl.errors import ModelError
from rmtrl.models import base_model
from rmtrl.reward.heads import Float32Linear
from rmtrl.reward.shared_prefix.forward import (
    cell_cost,
    packs_without_mask,
    rewards_at,
    why_not_exact,
    why_not_shared,
)
from rmtrl.reward.shared_prefix.rows import SharedPrefixCollator

logger = get_logger(__name__)

Collator = Callable[[list[dict[str, Any]]], dict[str, Any]]


class PrefixSharing:
    """
    Decides once whether a trainer's batches are computed as packed rows, and says why where they are not.

    What the set-up rules out is known from the start; whether a model's rewards are exact shows on its first batch,
    when it stands wrapped as it is trained. Until then batches carry both forms.

    Args:
        setting (`bool` or `str`): [`RewardConfig.shared_prefix`].
        model ([`~torch.nn.Module`]): The model before it is wrapped.
        args ([`~trl.RewardConfig`]): The trainer's.
        accelerator ([`~accelerate.Accelerator`]): The trainer's.

    Raises:
        ModelError: If the setting is `True` and prompts cannot be shared exactly.
    """

    def __init__(self, setting: bool | str, *, model: nn.Module, args: RewardConfig, accelerator: Accelerator) -> None:
        self.setting = setting
        self.model = model
        self.args = args
        self.accelerator = accelerator
        self.share = True
        self.exact: bool | None = None if setting else False

    def wrap(self, collator: Collator) -> Collator:
        """Returns the collator with rows added to its batches, or as it is where rows are ruled out."""
        if not self.setting:
            return collator
        reason = self._why_not_packed(collator)
        if reason is None and packs_without_mask(self.model):
            self.share = False
            self._give_up(f"{why_not_shared(self.model)}; rows still hold no padding")
        elif reason or (reason := why_not_shared(self.model)):
            self.exact = False
            self._give_up(reason)
            return collator
        self.accelerator.dataloader_config.dispatch_batches = False  # dispatching cuts every tensor at the batch size
        return SharedPrefixCollator(
            collator,
            pad_token_id=collator.pad_token_id,  # type: ignore[attr-defined]
            cell_cost=cell_cost(self.model),
            one_call=self.accelerator.device.type != "cpu" or self.accelerator.num_processes > 1,
            share=self.share,
        )

    def rewards(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor | None:
        """Returns the head's outputs, `(2B, n_outputs)`, chosen first; `None` where TRL's way is to be taken."""
        if "rows" not in inputs or self.exact is False:
            return None
        if self.exact is None:
            self._probe(model)
        return rewards_at(model, inputs["rows"], inputs["ends"]) if self.exact else None

    def _probe(self, model: nn.Module) -> None:
        low_precision = (
            self.args.bf16
            or self.args.fp16
            or _has_tf32(self.accelerator.device)
            or bool(getattr(self.model, "is_quantized", False))
        )
        reason = why_not_exact(
            model,
            self.accelerator,
            max_length=self.args.max_length,
            share=self.share,
            low_precision=low_precision,
        )
        self.exact = reason is None
        if reason:
            self._give_up(reason)

    def _why_not_packed(self, collator: Collator) -> str | None:
        if type(collator) is not DataCollatorForPreference:
            return f"batches are built by {type(collator).__name__}, not by TRL's collator"
        if self.args.n_gpu > 1:
            return "several GPUs in one process split every batch by rows; start one process a GPU"
        if self.args.neftune_noise_alpha:
            return "NEFTune scales its noise by the length of a row"
        if has_dropout(self.model):
            return "dropout is on, and both sides would share its draw"
        config = base_model(self.model).config.get_text_config()
        pad = getattr(collator, "pad_token_id", None)
        if pad != config.pad_token_id:
            return f"the collator pads with token {pad}, the model's pad token is {config.pad_token_id}"
        if self.args.torch_compile:
            return "a compiled model does not hand over what enters its head"
        if self.accelerator.dispatch_batches:
            return "dispatch_batches=True cuts batches by rows"
        return None

    def _give_up(self, reason: str) -> None:
        if self.setting is True:
            raise ModelError(f"shared_prefix=True cannot be had: {reason}; set shared_prefix to 'auto' or False")
        logger.warning(
            f"shared prompts are computed twice, as in TRL: {reason} (shared_prefix=False says no more of it)"
        )


def has_dropout(model: nn.Module) -> bool:
    """Returns whether two training passes of a backbone differ: by dropout of any kind, or by jitter of a router.

    Much dropout has no module of its own: its share is a number that a layer or the configuration keeps.
    """
    chances = [value for module in model.modules() for value in _chances(module)]
    chances.append(getattr(base_model(model).config.get_text_config(), "attention_dropout", 0.0))
    return any(type(value) in (int, float) and value > 0 for value in chances)


def _chances(module: nn.Module) -> list[Any]:
    """Returns the numbers of a module that say how often it drops or disturbs what passes it."""
    if isinstance(module, Float32Linear):  # the head's own, of which every side has a draw
        return []
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return [module.p]
    return [value for name, value in vars(module).items() if "drop" in name or "jitter" in name]


def _has_tf32(device: torch.device) -> bool:
    return device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
