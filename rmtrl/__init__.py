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
    from rmtrl.reward.collator import PreferencePairValidatorCollator
    from rmtrl.reward.config import RewardConfig
    from rmtrl.reward.dpo_scorer import DPOScorer
    from rmtrl.reward.ensemble import EnsembleScorer, HeadEnsembleScorer, MCDropoutScorer
    from rmtrl.reward.laplace import LaplaceScorer
    from rmtrl.reward.scorer import RewardScorer
    from rmtrl.reward.trainer import RewardTrainer
    from rmtrl.types import Estimate, PairRewards, Scorer

__version__ = "0.1.0"

_HOMES = {
    "BenchmarkCallback": "rmtrl.evaluation.callback",
    "CalibrationCallback": "rmtrl.calibration.callback",
    "CenterRewardCallback": "rmtrl.reward.callbacks",
    "ComposedReward": "rmtrl.ppo.rewards",
    "DPOScorer": "rmtrl.reward.dpo_scorer",
    "EnsembleScorer": "rmtrl.reward.ensemble",
    "Estimate": "rmtrl.types",
    "HeadEnsembleScorer": "rmtrl.reward.ensemble",
    "LaplaceScorer": "rmtrl.reward.laplace",
    "LengthBiasCallback": "rmtrl.reward.callbacks",
    "MCDropoutScorer": "rmtrl.reward.ensemble",
    "MarginCallback": "rmtrl.reward.callbacks",
    "OveroptimizationCallback": "rmtrl.ppo.overoptimization",
    "PPOCallback": "rmtrl.ppo.evaluation",
    "PPOConfig": "rmtrl.ppo.config",
    "PPOTrainer": "rmtrl.ppo.trainer",
    "PairRewards": "rmtrl.types",
    "PreferencePairValidatorCollator": "rmtrl.reward.collator",
    "RewardCallback": "rmtrl.reward.callbacks",
    "RewardConfig": "rmtrl.reward.config",
    "RewardScorer": "rmtrl.reward.scorer",
    "RewardTrainer": "rmtrl.reward.trainer",
    "Scorer": "rmtrl.types",
}

__all__ = [
    "BenchmarkCallback",
    "CalibrationCallback",
    "CenterRewardCallback",
    "ComposedReward",
    "DPOScorer",
    "EnsembleScorer",
    "Estimate",
    "HeadEnsembleScorer",
    "LaplaceScorer",
    "LengthBiasCallback",
    "MCDropoutScorer",
    "MarginCallback",
    "OveroptimizationCallback",
    "PPOCallback",
    "PPOConfig",
    "PPOTrainer",
    "PairRewards",
    "PreferencePairValidatorCollator",
    "RewardCallback",
    "RewardConfig",
    "RewardScorer",
    "RewardTrainer",
    "Scorer",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'rmtrl' has no attribute '{name}'; it exports {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
