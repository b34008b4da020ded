"""rmtrl: reward models you can trust, on top of TRL.

The public names are imported when first used, so `import rmtrl` is quick and loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rmtrl.calibration.callback import CalibrationCallback
    from rmtrl.evaluation.callback import BenchmarkCallback
    from rmtrl.ppo.config import PPOConfig
    from rmtrl.ppo.evaluation import PPOCallback
    from rmtrl.ppo.overoptimization import OveroptimizationCallback
    from rmtrl.ppo.rewards import ComposedReward
    from rmtrl.ppo.trainer import PPOTrainer
    from rmtrl.reward.callbacks import CenterRewardCallback, LengthBiasCallback, MarginCallback, RewardCallback
    from rmtrl.reward.config import RewardConfig
    from rmtrl.reward.dpo_scorer import DPOScorer
    from rmtrl.reward.judge import JudgeScorer
    from rmtrl.reward.laplace import LaplaceScorer
    from rmtrl.reward.pairs import PreferencePairValidatorCollator
    from rmtrl.reward.remote import RemoteScorer
    from rmtrl.reward.scorer import RewardScorer
    from rmtrl.reward.trainer import RewardTrainer
    from rmtrl.reward.uncertainty import EnsembleScorer, HeadEnsembleScorer, MCDropoutScorer
    from rmtrl.types import Estimate, Guard, PairRewards, Scorer

__version__ = "0.1.0"

_EXPORTS = {
    "rmtrl.calibration.callback": ("CalibrationCallback",),
    "rmtrl.evaluation.callback": ("BenchmarkCallback",),
    "rmtrl.ppo.config": ("PPOConfig",),
    "rmtrl.ppo.evaluation": ("PPOCallback",),
    "rmtrl.ppo.overoptimization": ("OveroptimizationCallback",),
    "rmtrl.ppo.rewards": ("ComposedReward",),
    "rmtrl.ppo.trainer": ("PPOTrainer",),
    "rmtrl.reward.callbacks": ("CenterRewardCallback", "LengthBiasCallback", "MarginCallback", "RewardCallback"),
    "rmtrl.reward.config": ("RewardConfig",),
    "rmtrl.reward.dpo_scorer": ("DPOScorer",),
    "rmtrl.reward.uncertainty": ("EnsembleScorer", "HeadEnsembleScorer", "MCDropoutScorer"),
    "rmtrl.reward.judge": ("JudgeScorer",),
    "rmtrl.reward.laplace": ("LaplaceScorer",),
    "rmtrl.reward.pairs": ("PreferencePairValidatorCollator",),
    "rmtrl.reward.remote": ("RemoteScorer",),
    "rmtrl.reward.scorer": ("RewardScorer",),
    "rmtrl.reward.trainer": ("RewardTrainer",),
    "rmtrl.types": ("Estimate", "Guard", "PairRewards", "Scorer"),
}  # fmt: skip
_HOMES = {name: home for home, names in _EXPORTS.items() for name in names}

__all__ = [
    "BenchmarkCallback", "CalibrationCallback", "CenterRewardCallback", "ComposedReward", "DPOScorer",
    "EnsembleScorer", "Estimate", "Guard", "HeadEnsembleScorer", "JudgeScorer", "LaplaceScorer", "LengthBiasCallback",
    "MCDropoutScorer", "MarginCallback", "OveroptimizationCallback", "PPOCallback", "PPOConfig", "PPOTrainer",
    "PairRewards", "PreferencePairValidatorCollator", "RemoteScorer", "RewardCallback", "RewardConfig", "RewardScorer",
    "RewardTrainer", "Scorer",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'rmtrl' has no attribute '{name}'; it exports {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
