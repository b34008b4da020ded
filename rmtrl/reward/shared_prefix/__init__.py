"""Each shared prompt computed once and almost no padding: plan, masks, forward, and the trainer's switch."""

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
from rmtrl.reward.shared_prefix.forward import cell_cost, packs_without_mask, rewards_at, why_not_exact, why_not_shared
from rmtrl.reward.shared_prefix.plan import make_rows

logger = get_logger(__name__)

Collator = Callable[[list[dict[str, Any]]], dict[str, Any]]


class SharedPrefixCollator:
    """Adds to the wrapped collator's batch the rows that hold each shared prefix once, next to almost no padding.

    The batch keeps TRL's `input_ids` and `attention_mask`, which the host counts tokens by and which a model that
    cannot take rows is given. `rows` is a list of [`Rows`], one a forward pass, with two-dimensional tensors only,
    which pass through workers and processes as they are; `ends` `(2B,)` says where the rewards of the chosen and then
    of the rejected sides stand among the tokens of all passes, one row after another.

    Args:
        collator (`Callable`): TRL's `DataCollatorForPreference`.
        pad_token_id (`int`): Fills rows; a model never reads a reward at it.
        cell_cost (`float`): See [`pair_units`].
        one_call (`bool`): See [`plan_calls`].
        share (`bool`): `False` for kernels that take no mask: sides stand one after another in a single row.

    Example:

    ```python
    >>> from trl.trainer.reward_trainer import DataCollatorForPreference
    >>> collator = SharedPrefixCollator(DataCollatorForPreference(pad_token_id=0), pad_token_id=0)
    >>> batch = collator([{"chosen_ids": [7, 8, 1], "rejected_ids": [7, 8, 2, 3]}])
    >>> batch["rows"][0]["input_ids"].tolist(), batch["ends"].tolist()
    ([[7, 8, 1, 2, 3]], [2, 4])
    ```
    """

    def __init__(
        self, collator: Collator, *, pad_token_id: int, cell_cost: float = 0.0, one_call: bool = True,
        share: bool = True,
    ) -> None:  # fmt: skip
        self.collator = collator
        self.pad_token_id = pad_token_id
        self.settings: dict[str, Any] = {"cell_cost": cell_cost, "one_call": one_call, "share": share}

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns the wrapped batch plus `rows` and `ends`."""
        batch = self.collator(examples)
        pairs = [(example["chosen_ids"], example["rejected_ids"]) for example in examples]
        batch["rows"], batch["ends"] = make_rows(pairs, pad_token_id=self.pad_token_id, **self.settings)
        return batch


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
            collator, pad_token_id=collator.pad_token_id, cell_cost=cell_cost(self.model), share=self.share,  # type: ignore[attr-defined]
            one_call=self.accelerator.device.type != "cpu" or self.accelerator.num_processes > 1,
        )  # fmt: skip

    def rewards(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor | None:
        """Returns the head's outputs, `(2B, n_outputs)`, chosen first; `None` where TRL's way is to be taken."""
        if "rows" not in inputs or self.exact is False:
            return None
        if self.exact is None:
            self._probe(model)
        return rewards_at(model, inputs["rows"], inputs["ends"]) if self.exact else None

    def _probe(self, model: nn.Module) -> None:
        """Compares packed rows with separate passes, once."""
        tf32 = self.accelerator.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
        low = self.args.bf16 or self.args.fp16 or tf32 or bool(getattr(self.model, "is_quantized", False))
        reason = why_not_exact(
            model, self.accelerator, max_length=self.args.max_length, share=self.share, low_precision=low
        )
        self.exact = reason is None
        if reason:
            self._give_up(reason)

    def _why_not_packed(self, collator: Collator) -> str | None:
        """Returns what of the set-up rules packed rows out."""
        if type(collator) is not DataCollatorForPreference:
            return f"batches are built by {type(collator).__name__}, not by TRL's collator"
        pad = base_model(self.model).config.get_text_config().pad_token_id
        ruled_out = {
            "several GPUs in one process split every batch by rows; start one process a GPU": self.args.n_gpu > 1,
            "NEFTune scales its noise by the length of a row": self.args.neftune_noise_alpha,
            "dropout is on, and both sides would share its draw": has_dropout(self.model),
            f"the collator pads with token {collator.pad_token_id}, the model's pad token is {pad}":
                pad != collator.pad_token_id,
            "a compiled model does not hand over what enters its head": self.args.torch_compile,
            "dispatch_batches=True cuts batches by rows": self.accelerator.dispatch_batches,
        }  # fmt: skip
        return next((reason for reason, holds in ruled_out.items() if holds), None)

    def _give_up(self, reason: str) -> None:
        """Raises or warns, by the setting."""
        if self.setting is True:
            raise ModelError(f"shared_prefix=True cannot be had: {reason}; set shared_prefix to 'auto' or False")
        logger.warning(
            f"shared prompts are computed twice, as in TRL: {reason} (shared_prefix=False says no more of it)"
        )


def has_dropout(model: nn.Module) -> bool:
    """Returns whether two training passes of a backbone differ: by dropout of any kind, or by jitter of a router.

    Much dropout has no module of its own: its share is a number that a layer or the configuration keeps.
    """
    chances = [getattr(base_model(model).config.get_text_config(), "attention_dropout", 0.0)]
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            chances.append(module.p)
        elif not isinstance(module, Float32Linear):  # the head's own, of which every side has a draw
            chances += [value for name, value in vars(module).items() if "drop" in name or "jitter" in name]
    return any(type(value) in (int, float) and value > 0 for value in chances)
