"""PPO for language models: TRL's constructor, configuration and log keys over a loop of small methods."""

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import TrainOutput

from rmtrl.errors import DataError, UsageError
from rmtrl.generation import sampling_key
from rmtrl.models import check_weights
from rmtrl.ppo import checkpoint
from rmtrl.ppo._base import PPOBase, init_trainer
from rmtrl.ppo.assembly import (
    add_policy_adapter,
    check_best_metric,
    check_positions,
    check_roles,
    check_vocabulary,
    choose_reference,
    choose_value_model,
    forget_pad_outside,
    give_pad_token,
    load_policy,
    longest_prompt,
    make_generator,
)
from rmtrl.ppo.backbone import SharedValue, check_adapter
from rmtrl.ppo.config import PPOConfig
from rmtrl.ppo.episodes import rollout_metrics
from rmtrl.ppo.evaluation import PPOEvaluation
from rmtrl.ppo.kl import AdaptiveKLController, FixedKLController
from rmtrl.ppo.models import PolicyAndValue, disable_dropout
from rmtrl.ppo.optimization import PPOUpdate
from rmtrl.ppo.prompts import Prompts, read_prompts, read_sets
from rmtrl.ppo.reward_model import as_reward, as_rewards, training_reward
from rmtrl.ppo.rollout import PPORollout
from rmtrl.ppo.shared_reward import share_reward

logger = get_logger(__name__)

_LAST = ("eps", "episode", "lr", "objective/kl_coef", "tokens_per_second")  # logged as they stand, not as a mean


class PPOTrainer(PPORollout, PPOUpdate, PPOEvaluation, PPOBase):
    """
    Trainer for Proximal Policy Optimization, with TRL's constructor, configuration and log keys.

    TRL's own, where TRL has one, is the parent; the loop is written anew, in methods that can be overridden:
    [`~PPOTrainer.rollout`] ([`~PPOTrainer.generate`] in it), [`~PPOTrainer.score`], [`~PPOTrainer.advantages`],
    [`~PPOTrainer.update`] and [`~PPOTrainer.log`]. `train(resume_from_checkpoint=…)`, `evaluate()`, `save_model()`,
    callbacks and the fields of [`~transformers.TrainingArguments`] work as in any Trainer; a step is one update.

    What differs from TRL's:

    - Prompts are text, messages or token ids; other columns reach the reward. Rewards are any scorer or function.
    - Mixed precision, gradient checkpointing and clipping, `max_steps`, evaluation, early stopping, resuming and
      saving do what their settings say; `num_mini_batches` is the number of optimizer steps a pass over the batch.
    - Every figure is a mean over responses or real tokens, whatever the mini-batches, accumulation and processes.
    - The score stands at a response's last token, its stop token where it has one, which is trained like any other.
    - Sampling follows from seed, episode and position alone; the checkpoint's own generation settings, but for its
      end tokens, play no part.
    - The value model may be left out; it and the KL controller are saved, so that a resumed run is the same run.

    A batch is cut into mini-batches once an update, at random; each pass over it takes them in a new order. Dropout
    is off. `data_collator` is accepted and not used: rows are token lists until the forward pass.

    Args:
        args ([`PPOConfig`]):
            Configuration.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        model (`str`, `Path`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy. A folder or hub id is loaded in float32; one of an adapter goes on being trained.
        ref_model (`str`, `Path` or [`~transformers.PreTrainedModel`], *optional*):
            The reference. Where absent: the policy as it is now, by switching its adapter if it has one, else a copy.
            It is computed with `kl_coef=0` too, for the KL that is logged.
        reward_model:
            A sequence classification model with the policy's tokenizer; a folder or hub id, with its own tokenizer
            and template; any [`Scorer`]; or a function `f(prompts, completions, **columns) -> list[float]`, which
            also receives `prompt_ids`, `completion_ids` and `truncated`. A [`ComposedReward`] is copied: `reward`
            holds the parts and moments of training. In text that scorers render the turn of a truncated response
            is closed, in token ids it is not: see `missing_eos_penalty`.
        train_dataset ([`~datasets.Dataset`]):
            Prompts, see [`~rmtrl.ppo.prompts.read_prompts`].
        value_model (*optional*):
            A sequence classification model with one label, or any module `(input_ids, attention_mask) -> (B, T)`.
            Where absent: the reward model's backbone if it is a model with the policy's tokenizer and the policy has
            no adapter (no `peft_config` either), else the policy's, with a head of zeros.
        eval_dataset ([`~datasets.Dataset`] or `dict[str, Dataset]`, *optional*):
            Prompts to evaluate on.
        optimizers, callbacks, peft_config:
            As in TRL.
        eval_scorers (`dict[str, Scorer or function]`, *optional*):
            Judges that watch evaluations beside the reward, such as a gold scorer.

    Raises:
        DataError: If a prompt is empty, none is short enough, or there are fewer than a batch takes.
        ModelError: If a model, tokenizer or reward cannot be used.
        UsageError: If settings contradict each other.

    Example:

    ```python
    >>> from rmtrl import PPOConfig, PPOTrainer
    >>> trainer = PPOTrainer(
    ...     PPOConfig("outputs/ppo"), tokenizer, policy, reward_model="outputs/tiny/rm", train_dataset=prompts
    ... )
    >>> trainer.train()
    ```
    """

    args: PPOConfig
    model: PolicyAndValue
    processing_class: PreTrainedTokenizerBase
    _carried: dict[str, Any] | None = None  # KL controller and reward as they were before the first run

    def __init__(
        self,
        args: PPOConfig,
        processing_class: PreTrainedTokenizerBase,
        model: "str | Path | PreTrainedModel | PeftModel",
        ref_model: "str | Path | PreTrainedModel | None" = None,
        reward_model: Any = None,
        train_dataset: Dataset | None = None,
        value_model: nn.Module | None = None,
        data_collator: Any = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        callbacks: list[TrainerCallback] | None = None,
        peft_config: PeftConfig | None = None,
        *,
        eval_scorers: "dict[str, Callable[..., Any]] | None" = None,
    ) -> None:
        if reward_model is None or train_dataset is None:
            raise UsageError("PPOTrainer needs a reward_model and a train_dataset")
        check_roles(model, ref_model, reward_model, value_model)
        loading: dict[str, Any] = {"n_tokens": len(processing_class), "adapted": peft_config is not None}
        policy = add_policy_adapter(load_policy(model, **loading), peft_config, args.model_adapter_name)
        give_pad_token(processing_class)
        self.generator = make_generator(policy, processing_class, args)
        self.max_prompt_length = limit = longest_prompt(policy, args)
        self.train_prompts = read_prompts(train_dataset, processing_class, max_length=limit)
        self.eval_prompts = read_sets(eval_dataset, processing_class, max_length=limit) if eval_dataset else {}
        check_best_metric(args, list(self.eval_prompts))

        if args.one_backbone:
            check_adapter(policy)
            reward_model = share_reward(policy, reward_model)
        self.reward, reward_network = as_reward(reward_model, processing_class, self.train_prompts)
        low, high = args.reward_clip_range or (0.0, 0.0)
        self.reward = training_reward(
            self.reward, clip=(low, high) if low < high else None,
            normalise="mean_std" if args.normalize_rewards else False,
        )  # fmt: skip
        self.eval_scorers = as_rewards(eval_scorers or {}, processing_class, self.train_prompts)
        reference = load_policy(ref_model, **loading)
        self.ref_model, reference_adapter = choose_reference(policy, reference, peft_config, args)
        shares = args.one_backbone and value_model is None
        value = SharedValue(policy) if shares else choose_value_model(value_model, reward_network, policy, peft_config)
        models = {"model": policy, "ref_model": reference, "reward_model": reward_network}
        models["value_model"] = getattr(value, "model", value)
        every = [ids for read in (self.train_prompts, *self.eval_prompts.values()) for ids in read.ids]
        check_vocabulary(models, processing_class, every, self.generator.end_token_ids)
        check_positions(models, max(map(len, every)) + args.response_length)
        for module in (policy, value, self.ref_model):
            if module is not None:
                disable_dropout(module)
        init_trainer(
            self, model=PolicyAndValue(policy, value, reference_adapter), args=args, data_collator=lambda rows: rows,
            train_dataset=train_dataset, eval_dataset=eval_dataset, processing_class=processing_class,
            callbacks=callbacks, optimizers=optimizers,
        )  # fmt: skip
        if self.ref_model is not None:
            self.ref_model.to(self.accelerator.device)
        if reward_network is not None:
            reward_network.to(self.accelerator.device)
        self._set_batch_sizes()
        self.kl_controller = (
            FixedKLController(args.kl_coef)
            if args.kl_target is None
            else AdaptiveKLController(args.kl_coef, args.kl_target, args.kl_horizon)
        )
        self._metrics: dict[str, list[float]] = defaultdict(list)
        self.evaluation_: dict[str, Any] = {}
        self.samples_: dict[str, list[dict[str, Any]]] = {}
        self.progress_: dict[str, Any] = {}

    def _set_batch_sizes(self) -> None:
        args, world_size = self.args, self.accelerator.num_processes
        if args.auto_find_batch_size:
            raise UsageError(
                "auto_find_batch_size would start the run anew with other batches; give a per_device_train_batch_size "
                "that fits in memory, with gradient_accumulation_steps for the rest of the batch"
            )
        self.local_batch_size = args.per_device_train_batch_size * args.gradient_accumulation_steps
        self.batch_size = self.local_batch_size * world_size
        if self.local_batch_size % args.num_mini_batches:
            raise UsageError(
                f"num_mini_batches {args.num_mini_batches} does not divide the {self.local_batch_size} episodes of a "
                "process's batch (per_device_train_batch_size × gradient_accumulation_steps)"
            )
        if self.batch_size % args.num_generations:
            raise UsageError(f"num_generations {args.num_generations} does not divide a batch of {self.batch_size}")
        self.prompts_per_batch = self.batch_size // args.num_generations
        if len(self.train_prompts) < self.prompts_per_batch:
            raise DataError(
                f"got {len(self.train_prompts):,} prompts and a batch takes {self.prompts_per_batch:,}; give more "
                "prompts, or lower per_device_train_batch_size or gradient_accumulation_steps"
            )
        episodes = args.total_episodes or args.num_train_epochs * len(self.train_prompts) * args.num_generations
        self.num_total_batches = args.max_steps if args.max_steps > 0 else -(-int(episodes) // self.batch_size)

    # the loop

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, ignore_keys_for_eval: Any = None
    ) -> TrainOutput:
        """Trains, from the start or from a checkpoint.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): A checkpoint of this run; `True` is the newest in
                `output_dir` that was written to its end.
            trial, ignore_keys_for_eval: As in [`~transformers.Trainer`].

        Raises:
            ModelError: If the run cannot go on from the checkpoint.
            RewardError: If a reward fails.
        """
        if resume_from_checkpoint:
            resume_from_checkpoint = checkpoint.to_resume(self, resume_from_checkpoint)
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def _inner_training_loop(
        self, batch_size: int | None = None, args: Any = None, resume_from_checkpoint: str | None = None,
        trial: Any = None, ignore_keys_for_eval: Any = None,
    ) -> TrainOutput:  # fmt: skip
        """Runs the updates: transformers' own loop with one update in place of an epoch's batches."""
        self.accelerator.free_memory()
        forget_pad_outside(self.model.policy)  # transformers has just copied the tokenizer's
        max_steps, per_epoch = self.num_total_batches, max(1, len(self.train_prompts) // self.prompts_per_batch)
        epochs = -(-max_steps // per_epoch)
        self._init_training_state(max_steps, per_epoch, epochs, resume_from_checkpoint, trial)
        self._prepare_for_training(max_steps, None, resume_from_checkpoint)
        self._start_time, self._initial_global_step = time.time(), self.state.global_step
        self._initial_num_input_tokens_seen = self.state.num_input_tokens_seen
        self._tr_loss, self._total_loss_scalar = torch.tensor(0.0, device=self.args.device), 0.0
        self._globalstep_last_logged = self.state.global_step
        self._metrics.clear()
        self._carried = self._carried or checkpoint.carried(self)
        checkpoint.load_carried(self, self._carried)  # a second run starts as the first
        if resume_from_checkpoint is not None:
            checkpoint.load_state(resume_from_checkpoint, self)
            self._load_rng_state(resume_from_checkpoint)
        self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)
        if self.args.eval_on_start:
            self._evaluate(trial, ignore_keys_for_eval, skip_scheduler=True)
        while self.state.global_step < max_steps and not self.control.should_training_stop:
            self._step(trial)
        return self._finalize_training(trial, max_steps * self.batch_size, self._start_time)

    def _step(self, trial: Any) -> None:
        """One update, from prompts to callbacks."""
        step, started = self.state.global_step, time.time()
        if step == self._initial_global_step or self._ends_epoch(step):
            self.control = self.callback_handler.on_epoch_begin(self.args, self.state, self.control)
        self.control = self.callback_handler.on_step_begin(self.args, self.state, self.control)
        rollout = self.rollout(*self.next_prompts(step), step=step)
        experience = self.advantages(rollout, self.score(rollout))
        figures = rollout_metrics(experience, self.args.num_generations) | self.update(experience, step=step)
        learning_rate = self._get_learning_rate()
        if not self.accelerator.optimizer_step_was_skipped:
            self.lr_scheduler.step()  # type: ignore[union-attr]
        self.kl_controller.update(figures["objective/kl"], self.batch_size)

        self.state.global_step = step + 1
        episode = self.state.global_step * self.batch_size
        self.state.episode = episode  # type: ignore[attr-defined]
        self.state.epoch = self.state.global_step * self.prompts_per_batch / len(self.train_prompts)
        tokens = sum(rollout.episodes.lengths)
        self.state.num_input_tokens_seen += tokens
        figures |= {
            "eps": (episode - self._initial_global_step * self.batch_size) / (time.time() - self._start_time),
            "tokens_per_second": tokens / (time.time() - started),
            "val/num_eos_tokens": self._count_stops(rollout.episodes),
            "objective/kl_coef": experience.kl_coef,
            "lr": learning_rate,
            "episode": float(episode),
        }
        for name, value in figures.items():
            self._metrics[name].append(value)
        if self.args.max_kl is not None and figures["objective/kl_k1"] > self.args.max_kl:
            logger.warning(
                f"KL to the reference is {figures['objective/kl_k1']:.2f} nats a response, over max_kl "
                f"{self.args.max_kl}: training ends"
            )
            self.control.should_training_stop = True
        self._tr_loss += figures["loss/policy_avg"] + self.args.vf_coef * figures["loss/value_avg"]
        self.log_samples(experience)
        if self.args.torch_empty_cache_steps and step % self.args.torch_empty_cache_steps == 0:
            clear_device_cache()
        self.control = self.callback_handler.on_step_end(self.args, self.state, self.control)
        self._log_save_evaluate(figures["policy/grad_norm"], trial, learning_rate)
        if self._ends_epoch(step + 1) or self.control.should_training_stop:
            self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
            self._log_save_evaluate(figures["policy/grad_norm"], trial, learning_rate)

    def _ends_epoch(self, step: int) -> bool:
        """Whether the update before this step took the last prompt of a pass over the data set."""
        n, taken = len(self.train_prompts), step * self.prompts_per_batch
        return taken // n > (taken - self.prompts_per_batch) // n

    def _log_save_evaluate(self, grad_norm: float, trial: Any, learning_rate: float) -> None:
        self._maybe_log_save_evaluate(
            self._tr_loss, grad_norm, self.model, trial, self.state.epoch, None, self._start_time, learning_rate
        )

    def next_prompts(self, step: int) -> tuple[Prompts, list[int], list[int]]:
        """Returns the prompts of an update: their data set, which of them, and a sampling key for each episode.

        They are taken in a new random order on every pass over the data set, which follows from the seed alone.
        """
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        n, first = len(self.train_prompts), step * self.prompts_per_batch
        orders = {
            epoch: torch.randperm(n, generator=torch.Generator().manual_seed(sampling_key(seed, "prompts", epoch)))
            for epoch in {first // n, (first + self.prompts_per_batch - 1) // n}
        }
        taken = [int(orders[k // n][k % n]) for k in range(first, first + self.prompts_per_batch)]
        indices = [index for index in taken for _ in range(self.args.num_generations)]
        keys = [sampling_key(self.args.seed, "episode", step * self.batch_size + row) for row in range(len(indices))]
        return self.train_prompts, indices, keys

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs, with the means of what the updates since the last log came to."""
        if self._metrics and "loss" in logs:
            logs = logs | {
                name: values[-1] if name in _LAST else sum(values) / len(values)
                for name, values in self._metrics.items()
            }
            self._metrics.clear()
        super().log(logs, start_time)

    # checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the policy for inference, and the value model in the folder `value_model` beside it.

        Raises:
            ModelError: If their weights are not finite; what stood in the folder is left as it was.
        """
        check_weights(f"after update {self.state.global_step}", self.model)
        checkpoint.save(self, Path(str(output_dir or self.args.output_dir)), with_state=_internal_call)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:  # sharded weights are the host's own
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            checkpoint.load_models(self, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            checkpoint.load_models(self, Path(str(self.state.best_model_checkpoint)))
