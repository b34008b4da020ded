"""Configuration of the reward trainer: TRL's `RewardConfig` with the fields that rmtrl adds."""

from dataclasses import dataclass, field

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

    def __post_init__(self) -> None:
        if self.pair_validation not in ("warn", "drop", "raise"):
            raise ValueError(f"`pair_validation` must be 'warn', 'drop' or 'raise', got {self.pair_validation!r}")
        if not torch.accelerator.is_available():
            self.use_cpu = True
        elif self.bf16 is None and not self.use_cpu and torch.cuda.is_available():
            self.bf16 = not self.fp16 and is_torch_bf16_gpu_available()
        super().__post_init__()
