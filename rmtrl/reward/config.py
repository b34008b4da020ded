"""Configuration of the reward trainer: TRL's `RewardConfig` with the fields that rmtrl adds."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers.utils import is_torch_bf16_gpu_available
from trl import RewardConfig as TRLRewardConfig


@dataclass
class RewardConfig(TRLRewardConfig):
    r"""
    Configuration class for [`RewardTrainer`].

    Only the parameters that rmtrl adds are listed; all others, and their defaults, are those of
    [`~trl.RewardConfig`]. On a machine without accelerator it constructs with `use_cpu=True`, and on a GPU that has
    no bf16 with `bf16=False`, where TRL's raises.

    Parameters:
        > Parameters that control the data preprocessing

        pair_validation (`str`, *optional*, defaults to `"warn"`):
            What the validator does with a pair that cannot teach a preference (see
            [`PreferencePairValidatorCollator`]): `"warn"` counts it and trains on it as TRL does, `"drop"` gives it
            weight 0 in the mean over its batch, `"raise"` stops.

        > Parameters that control the training

        shared_prefix (`bool` or `str`, *optional*, defaults to `"auto"`):
            Whether the tokens that both sides of a pair start with are computed once and rows are packed with hardly
            any padding; pairs, loss and gradient of a step are TRL's. `"auto"` does so where a probe on the first
            batch shows it to be exact and else warns once with the reason, `True` raises there, `False` computes
            padded batches as TRL does.

    Example:

    ```python
    >>> from rmtrl import RewardConfig
    >>> RewardConfig("outputs/rm", pair_validation="drop").pair_validation
    'drop'
    ```
    """

    pair_validation: str = field(
        default="warn",
        metadata={
            "help": "What to do with pairs that cannot teach a preference: `warn` (count, train on them as TRL does), "
            "`drop` (weight 0) or `raise`.",
            "choices": ["warn", "drop", "raise"],
        },
    )
    shared_prefix: Literal["auto", True, False] = field(
        default="auto",
        metadata={
            "help": "Whether the tokens that both sides of a pair start with are computed once, without padding: "
            "`auto` (where that is exact), `True` (else raise) or `False` (padded batches, as in TRL).",
        },
    )

    def __post_init__(self) -> None:
        if self.pair_validation not in ("warn", "drop", "raise"):
            raise ValueError(f"`pair_validation` must be 'warn', 'drop' or 'raise', got {self.pair_validation!r}")
        if self.shared_prefix not in ("auto", True, False):
            raise ValueError(f"`shared_prefix` must be 'auto', True or False, got {self.shared_prefix!r}")
        if not torch.accelerator.is_available():
            self.use_cpu = True
        elif self.bf16 is None and not self.use_cpu and torch.cuda.is_available():
            self.bf16 = not self.fp16 and is_torch_bf16_gpu_available()
        super().__post_init__()
