"""The evaluations of `PPOTrainer` for a policy that another trainer trains, such as TRL's GRPO, RLOO or DPO."""

import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from rmtrl.errors import UsageError
from rmtrl.ppo.config import PPOConfig
from rmtrl.ppo.trainer import PPOTrainer


class _NoValue(nn.Module):
    """Stands where an evaluation has no use for a value model."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(input_ids, dtype=torch.float32)


def evaluation_config(args: TrainingArguments, **settings: Any) -> PPOConfig:
    """Returns how a policy is to be evaluated, by the settings of its trainer; make it before the trainer.

    Args:
        args ([`~transformers.TrainingArguments`]): Seed, precision, batch size and times of evaluation are taken.
        settings: Fields of [`PPOConfig`], such as `response_length`, `temperature` and `num_eval_generations`.
    """
    when = ("eval_strategy", "eval_steps", "eval_on_start")
    same = ("seed", "bf16", "fp16", "use_cpu", "per_device_eval_batch_size", *when)
    own: dict[str, Any] = {name: getattr(args, name) for name in same}
    return PPOConfig(str(args.output_dir), per_device_train_batch_size=1, report_to="none", **own, **settings)


def policy_evaluator(
    trainer: Any, config: PPOConfig, *, reward: Any, eval_dataset: Dataset,
    eval_scorers: Mapping[str, Callable[..., Any]] | None = None,
) -> PPOTrainer:  # fmt: skip
    """Returns a trainer that trains nothing: its `evaluate` and `predict` are those of another trainer's policy.

    The policy is the one in training, its reference is the policy as it is now. The same prompts are always answered
    with the same noise, so evaluations of several trainers from one start are paired as well.

    Args:
        trainer ([`~transformers.Trainer`]): Trains a causal language model, whole in every process (not by FSDP or
            ZeRO-3).
        config ([`PPOConfig`]): As [`evaluation_config`] gives it.
        reward: As `reward_model` of [`PPOTrainer`].
        eval_dataset ([`~datasets.Dataset`]): Prompts.
        eval_scorers (`Mapping`, *optional*): Judges that watch beside the reward.

    Raises:
        UsageError: If the policy's weights lie across processes. Else as [`PPOTrainer`].
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise UsageError("a policy is evaluated in another trainer where each process holds it whole; launch with DDP")
    policy, reference = trainer.accelerator.unwrap_model(trainer.model), trainer.ref_model
    if adapters := getattr(policy, "peft_config", {}):
        config.ref_adapter_name = "ref" if "ref" in adapters else ""  # TRL's own choice
    if getattr(trainer.args, "sync_ref_model", False):
        reference = None  # TRL's moves
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(range(torch.cuda.device_count())):  # a trainer that is made sets the seed
        evaluator = PPOTrainer(
            config, trainer.processing_class, policy, reference, reward, eval_dataset, _NoValue(),
            eval_dataset=eval_dataset, eval_scorers=dict(eval_scorers or {}),
        )  # fmt: skip
    random.setstate(states[0])
    np.random.set_state(states[1])
    return evaluator


class PolicyWatch(TrainerCallback, ExportableState):
    """Makes the evaluations of a trainer, such as TRL's GRPOTrainer or RLOOTrainer, those of [`PPOTrainer`].

    `trainer.evaluate` is replaced: figures, intervals, gains paired by prompt and judges are logged as described at
    [`PPOTrainer.evaluate`], each [`PPOCallback`] of the trainer, such as [`OveroptimizationCallback`], receives them,
    and `metric_for_best_model` may name them. What evaluations are compared with is kept in the checkpoints.

    Args:
        trainer ([`~transformers.Trainer`]), config, reward, eval_dataset, eval_scorers: As in [`policy_evaluator`].

    Example:

    ```python
    >>> evaluation = evaluation_config(args, response_length=args.max_completion_length)
    >>> watch = OveroptimizationCallback("gold", action="stop")
    >>> trainer = GRPOTrainer(model, reward, args, prompts, held_out, callbacks=[watch])
    >>> PolicyWatch(trainer, evaluation, reward=reward, eval_dataset=held_out, eval_scorers={"gold": gold})
    >>> trainer.train()
    ```
    """

    def __init__(self, trainer: Any, config: PPOConfig, **judged: Any) -> None:
        self.trainer, self.evaluator = trainer, policy_evaluator(trainer, config, **judged)
        self.evaluator.callback_handler = trainer.callback_handler
        self.evaluator.log = partial(Trainer.log, trainer)  # type: ignore[method-assign]
        trainer.evaluate = self.evaluate
        trainer.add_callback(self)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluates as [`PPOTrainer.evaluate`] does, at the step where the trainer stands."""
        for name in ("state", "control", "optimizer"):
            setattr(self.evaluator, name, getattr(self.trainer, name))
        metrics = self.evaluator.evaluate(*args, **kwargs)
        self.trainer.control = self.evaluator.control
        return metrics

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps: the evaluations that later ones are compared with."""
        return {"args": {}, "attributes": {"progress": self.evaluator.evaluation_state()}}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *rest: Any, **kwargs: Any) -> None:
        """Takes up what the checkpoint kept that the run goes on from."""
        stored: Any = state.stateful_callbacks
        self.evaluator.load_evaluation_state(stored[type(self).__name__]["attributes"]["progress"])
