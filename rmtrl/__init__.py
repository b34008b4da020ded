"""rmtrl: reward models you can trust, on top of TRL.

Data   read_preferences, validate, make_splits
Train  RewardTrainer, RewardConfig, PreferencePairValidatorCollator, RewardCallback, MarginCallback,
       LengthBiasCallback, CenterRewardCallback, CalibrationCallback, BenchmarkCallback, PairRewards
Judge  Scorer, RewardScorer, EnsembleScorer, HeadEnsembleScorer, MCDropoutScorer, LaplaceScorer, DPOScorer,
       JudgeScorer, RemoteScorer, evaluate, calibrate, TemperatureCalibrator, IsotonicCalibrator, audit,
       overoptimization, gate, Estimate
Use    CalibratedScorer, ComposedReward, PPOTrainer, PPOConfig, PPOCallback, Generator, TransformersGenerator,
       best_of_n, evaluate_policies, compare_policies
Watch  Guard, OveroptimizationCallback

Names are imported when first used, so `import rmtrl` is quick and loads no torch; stages are modules: `rmtrl.data`, …
On the command line: `rmtrl --help`.
"""

import logging
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rmtrl.calibration.calibration import calibrate
    from rmtrl.calibration.calibrators import IsotonicCalibrator, TemperatureCalibrator
    from rmtrl.calibration.callback import CalibrationCallback
    from rmtrl.calibration.rewards import CalibratedScorer
    from rmtrl.data.preferences import read_preferences
    from rmtrl.data.splits import make_splits
    from rmtrl.data.validation import validate
    from rmtrl.evaluation.audit import audit
    from rmtrl.evaluation.callback import BenchmarkCallback
    from rmtrl.evaluation.gate import gate
    from rmtrl.evaluation.overoptimization.measure import measure_overoptimization as overoptimization
    from rmtrl.evaluation.policy import best_of_n, compare_policies, evaluate_policies
    from rmtrl.evaluation.run import evaluate
    from rmtrl.generation import Generator, TransformersGenerator
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


def _leave_out(logger: str, words: str) -> None:
    """Keeps a line that nobody can act on out of a host's log."""
    logging.getLogger(logger).addFilter(lambda said: words not in said.getMessage())


_leave_out("bitsandbytes.backends.cpu.ops", "gemm_4bit_forward")  # no kernel of 4 bits for the CPU
_leave_out("DeepSpeed", "Setting accelerator to CPU")  # no accelerator

_EXPORTS = {
    "calibration.calibration": "calibrate",
    "calibration.calibrators": "IsotonicCalibrator TemperatureCalibrator",
    "calibration.callback": "CalibrationCallback", "calibration.rewards": "CalibratedScorer",
    "data.preferences": "read_preferences", "data.splits": "make_splits", "data.validation": "validate",
    "evaluation.audit": "audit", "evaluation.callback": "BenchmarkCallback", "evaluation.gate": "gate",
    "evaluation.overoptimization.measure": "overoptimization",
    "evaluation.policy": "best_of_n compare_policies evaluate_policies", "evaluation.run": "evaluate",
    "generation": "Generator TransformersGenerator", "ppo.config": "PPOConfig", "ppo.evaluation": "PPOCallback",
    "ppo.overoptimization": "OveroptimizationCallback", "ppo.rewards": "ComposedReward",
    "ppo.trainer": "PPOTrainer",
    "reward.callbacks": "CenterRewardCallback LengthBiasCallback MarginCallback RewardCallback",
    "reward.config": "RewardConfig", "reward.dpo_scorer": "DPOScorer", "reward.judge": "JudgeScorer",
    "reward.laplace": "LaplaceScorer", "reward.pairs": "PreferencePairValidatorCollator",
    "reward.remote": "RemoteScorer", "reward.scorer": "RewardScorer", "reward.trainer": "RewardTrainer",
    "reward.uncertainty": "EnsembleScorer HeadEnsembleScorer MCDropoutScorer",
    "types": "Estimate Guard PairRewards Scorer",
}  # fmt: skip
_HOMES = {name: home for home, names in _EXPORTS.items() for name in names.split()}
_NAMED = {"overoptimization": "measure_overoptimization"}  # at home
_ELSEWHERE = {
    "load_pairs": "read_preferences", "load_dataset": "read_preferences", "score": "RewardScorer",
    "compare": "compare_policies",
}  # fmt: skip

__all__ = [
    "BenchmarkCallback", "CalibratedScorer", "CalibrationCallback", "CenterRewardCallback", "ComposedReward",
    "DPOScorer", "EnsembleScorer", "Estimate", "Generator", "Guard", "HeadEnsembleScorer", "IsotonicCalibrator",
    "JudgeScorer", "LaplaceScorer", "LengthBiasCallback", "MCDropoutScorer", "MarginCallback",
    "OveroptimizationCallback", "PPOCallback", "PPOConfig", "PPOTrainer", "PairRewards",
    "PreferencePairValidatorCollator", "RemoteScorer", "RewardCallback", "RewardConfig", "RewardScorer",
    "RewardTrainer", "Scorer", "TemperatureCalibrator", "TransformersGenerator", "audit", "best_of_n",
    "calibrate", "compare_policies", "evaluate", "evaluate_policies", "gate", "make_splits", "overoptimization",
    "read_preferences", "validate",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(f"rmtrl.{_HOMES[name]}"), _NAMED.get(name, name))
    if not name.startswith("_") and find_spec(f"rmtrl.{name}"):
        return import_module(f"rmtrl.{name}")
    from dis import opname

    from rmtrl.errors import near

    meant = [_ELSEWHERE[name]] if name in _ELSEWHERE else near(name, __all__)
    said = f"did you mean {' or '.join(meant)}?" if meant else "help(rmtrl) lists its names"
    if name[0].isupper() and name in dir(import_module("trl")):
        said = f"rmtrl does not change this one: from trl import {name}"
    importing = sys._getframe(1)
    if opname[importing.f_code.co_code[importing.f_lasti]] == "IMPORT_FROM":  # which would not say what is near
        raise ImportError(f"cannot import name {name!r} from 'rmtrl'; {said}", name=name)
    raise AttributeError(f"module 'rmtrl' has no attribute {name!r}; {said}", name=name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
