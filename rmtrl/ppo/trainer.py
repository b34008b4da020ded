"""PPO for language models: TRL's constructor, configuration and log keys over a loop of small methods."""

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import TrainOutput
from trl.models import unwrap_model_for_generation

from rmtrl.errors import DataError, ModelError, UsageError
from rmtrl.generation import TransformersGenerator, sampling_key
from rmtrl.ppo import checkpoint
from rmtrl.ppo._base import PPOBase, init_trainer
from rmtrl.ppo.advantages import gae, shaped_rewards, whiten
from rmtrl.ppo.backbone import SharedValue, check_adapter
from rmtrl.ppo.batches import make_plan
from rmtrl.ppo.config import PPOConfig
from rmtrl.ppo.episodes import Episodes, Experience, Rollout, Scores, rollout_metrics
from rmtrl.ppo.evaluation import PPOEvaluation
from rmtrl.ppo.kl import AdaptiveKLController, FixedKLController, kl_terms
from rmtrl.ppo.logprobs import response_logits, token_logprobs
from rmtrl.ppo.losses import policy_loss, value_loss
from rmtrl.ppo.models import PolicyAndValue, SequenceValue, add_reference_adapter, disable_dropout, make_value_model
from rmtrl.ppo.prompts import Prompts, read_prompts
from rmtrl.ppo.reward_model import as_reward, as_rewards, score_episodes
from rmtrl.ppo.rewards import ComposedReward
from rmtrl.ppo.shared_reward import share_reward
from rmtrl.reward.rendering import choose_pad_token

logger = get_logger(__name__)

_LAST = ("eps", "episode", "lr", "objective/kl_coef", "tokens_per_second")  # logged as they stand, not as a mean


class PPOTrainer(PPOEvaluation, PPOBase):
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
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy.
        ref_model (`str` or [`~transformers.PreTrainedModel`], *optional*):
            The reference. Where absent: the policy as it is now, by switching its adapter if it has one, else a copy.
        reward_model:
            A sequence classification model with the policy's tokenizer; a folder or hub id, with its own tokenizer
            and template; any [`Scorer`]; or a function `f(prompts, completions, **columns) -> list[float]`, which
            also receives `prompt_ids`, `completion_ids` and `truncated`.
        train_dataset ([`~datasets.Dataset`]):
            Prompts, see [`~rmtrl.ppo.prompts.read_prompts`].
        value_model (*optional*):
            A sequence classification model with one label, or any module `(input_ids, attention_mask) -> (B, T)`.
            Where absent: the reward model's backbone if it is a model with the policy's tokenizer, else the policy's,
            with a head of zeros.
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

    def __init__(
        self,
        args: PPOConfig,
        processing_class: PreTrainedTokenizerBase,
        model: "str | PreTrainedModel | PeftModel",
        ref_model: "str | PreTrainedModel | None" = None,
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
        _check_roles(model, ref_model, reward_model, value_model)
        policy = _with_adapter(_loaded(model), peft_config, args.model_adapter_name)
        _give_pad_token(processing_class, policy)
        self.generator = _generator(policy, processing_class, args)
        self.max_prompt_length = limit = _prompt_limit(policy, args)
        self.train_prompts = read_prompts(train_dataset, processing_class, max_length=limit)
        sets = eval_dataset if isinstance(eval_dataset, dict) else {"eval": eval_dataset} if eval_dataset else {}
        self.eval_prompts = {n: read_prompts(d, processing_class, max_length=limit, name=n) for n, d in sets.items()}

        if args.one_backbone:
            check_adapter(policy)
            reward_model = share_reward(policy, reward_model)
        self.reward, reward_network = as_reward(reward_model, processing_class)
        if args.reward_clip_range or args.normalize_rewards:
            low, high = args.reward_clip_range or (0.0, 0.0)
            self.reward = ComposedReward(
                self.reward, clip=(low, high) if low < high else None,
                normalise="mean_std" if args.normalize_rewards else False,
            )  # fmt: skip
        self.eval_scorers = as_rewards(eval_scorers or {}, processing_class)
        self.ref_model, reference_adapter = _reference(policy, _loaded(ref_model), peft_config, args)
        shares = args.one_backbone and value_model is None
        value = SharedValue(policy) if shares else _value_model(value_model, reward_network, policy, peft_config)
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
        if self.args.auto_find_batch_size:
            self._update_auto_batch_size(batch_size)
        max_steps, per_epoch = self.num_total_batches, max(1, len(self.train_prompts) // self.prompts_per_batch)
        epochs = -(-max_steps // per_epoch)
        self._init_training_state(max_steps, per_epoch, epochs, resume_from_checkpoint, trial)
        self._prepare_for_training(max_steps, None, resume_from_checkpoint)
        self._start_time, self._initial_global_step = time.time(), self.state.global_step
        self._initial_num_input_tokens_seen = self.state.num_input_tokens_seen
        self._tr_loss, self._total_loss_scalar = torch.tensor(0.0, device=self.args.device), 0.0
        self._globalstep_last_logged = self.state.global_step
        self._metrics.clear()
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

    def rollout(self, prompts: Prompts, indices: Sequence[int], keys: Sequence[int], *, step: int = 0) -> Rollout:
        """Returns a response to each prompt, with the log probabilities and values of its tokens.

        Args:
            prompts ([`Prompts`]): The data set.
            indices (`Sequence[int]`): Which of its prompts, over all processes.
            keys (`Sequence[int]`): A [`~rmtrl.generation.sampling_key`] each.
            step (`int`): The update, which the deal into mini-batches follows from.
        """
        episodes = self.sample(prompts, indices, keys)
        plan = make_plan(
            episodes.lengths, self.args.num_mini_batches, rows_per_pass=self._train_batch_size,
            world_size=self.accelerator.num_processes, seed=sampling_key(self.args.seed, "mini-batches", step),
            device_type=self.accelerator.device.type,
        )  # fmt: skip
        logprobs, values = self.token_figures(episodes, plan)
        ref_logprobs, _ = self.token_figures(episodes, plan, reference=True)
        mask = episodes.mask.to(self.accelerator.device)
        return Rollout(episodes, plan, mask, logprobs, ref_logprobs, values)

    def sample(self, prompts: Prompts, indices: Sequence[int], keys: Sequence[int]) -> Episodes:
        """Returns the episodes of all processes, each having generated its share of the rows."""
        own = self._own_rows(len(indices))
        prompt_ids = [prompts.ids[index] for index in indices]
        made = self.generate([prompt_ids[row] for row in own], [keys[row] for row in own])
        empty = next((row for row, ids in zip(own, made, strict=True) if not ids), None)
        if empty is not None:
            raise ModelError(f"generate() returned no token for prompt {indices[empty]}; wanted one at least")
        longest = int(self._shared([0], torch.tensor([max(map(len, made), default=0)]), 1, largest=True)[0])
        ids = torch.zeros(len(own), longest + 1, dtype=torch.long)
        for row, tokens in zip(ids, made, strict=True):
            row[0], row[1 : len(tokens) + 1] = len(tokens), torch.tensor(tokens)
        everything = self._shared(own, ids, len(indices)).tolist()
        completion_ids = [row[1 : row[0] + 1] for row in everything]
        ends = set(self.generator.end_token_ids)
        truncated = [bool(ends) and ids[-1] not in ends for ids in completion_ids]
        return Episodes(list(indices), prompt_ids, completion_ids, truncated)

    def generate(self, prompt_ids: list[list[int]], keys: list[int]) -> list[list[int]]:
        """Returns the token ids of a response to each prompt, at most `response_length`, its stop token included.

        The one method to override for another way of generating, such as vLLM.

        Args:
            prompt_ids (`list[list[int]]`): Token ids of this process's prompts.
            keys (`list[int]`): What each sample's randomness should follow from.
        """
        unwrapped: Any = nullcontext(self.accelerator.unwrap_model(self.model_wrapped))
        if self.is_deepspeed_enabled:
            gather = self.args.ds3_gather_for_generation
            unwrapped = unwrap_model_for_generation(self.model_wrapped, self.accelerator, gather)
        with torch.no_grad(), self.accelerator.autocast(), unwrapped as model:
            self.generator.model = model.policy
            return [list(made.token_ids) for made in self.generator.complete(prompt_ids, keys)]

    @torch.no_grad()
    def token_figures(
        self, episodes: Episodes, plan: Any, *, reference: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns log probability of each response token and value of the state before it, `(B, R)`, 0 elsewhere."""
        mask = episodes.mask
        logprobs, values = torch.zeros(2, *mask.shape, device=self.accelerator.device)
        self.model_wrapped.train()  # as in the update: dropout is off, and the same kernels run
        mine: list[int] = []
        for mini_batch in range(len(plan.mini_batches)):
            for rows in plan.own(mini_batch, self.accelerator.process_index, self.accelerator.num_processes):
                own, own_values = self._forward(episodes, rows, reference=reference)
                place = torch.tensor(rows)[:, None].expand(-1, mask.shape[1])[mask[rows]]
                column = torch.arange(mask.shape[1]).expand(len(rows), -1)[mask[rows]]
                logprobs[place, column] = own
                if own_values is not None:
                    values[place, column] = own_values
                mine += rows
        return self._shared(mine, logprobs[mine], len(episodes)), self._shared(mine, values[mine], len(episodes))

    def _forward(
        self, episodes: Episodes, rows: Sequence[int], *, reference: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch = [part.to(self.accelerator.device) for part in episodes.batch(rows)]
        with self.accelerator.autocast():  # the model's own wrapper does so from the start of training only
            if reference and self.ref_model is not None:
                logits = response_logits(self.ref_model, batch[0], batch[1], batch[2], batch[3] - 1)
                return token_logprobs(logits, batch[0][batch[2], batch[3]], self.args.temperature)[0], None
            logprobs, _, values = self.model_wrapped(*batch, self.args.temperature, reference=reference)
        return logprobs, values

    def score(self, rollout: Rollout) -> Scores:
        """Returns the score of each response, over all processes.

        Raises:
            RewardError: If the reward fails, or returns something else than a finite number a response.
        """
        scores, parts = self.score_with(self.reward, self.train_prompts, rollout.episodes)
        return Scores(self.with_missing_eos(scores, rollout.episodes), parts)

    def with_missing_eos(self, scores: torch.Tensor, episodes: Episodes) -> torch.Tensor:
        """Returns the scores, `(B,)`, with what the settings say of responses that were cut off."""
        cut = torch.tensor(episodes.truncated, device=scores.device)
        if self.args.missing_eos_penalty is not None:
            return scores - self.args.missing_eos_penalty * cut
        if self.args.missing_eos_score is not None:
            return scores.masked_fill(cut, self.args.missing_eos_score)
        return scores

    def score_with(
        self, reward: Callable[..., Any], prompts: Prompts, episodes: Episodes
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Returns what a reward gives each response, `(B,)`, and its parts, each process scoring its own rows."""
        own = self._own_rows(len(episodes))
        values, parts = score_episodes(reward, self.processing_class, prompts, episodes, own)
        scores = self._shared(own, torch.tensor(values), len(episodes)).float()
        shared = {n: self._shared(own, torch.tensor(part), len(episodes)).cpu().numpy() for n, part in parts.items()}
        return scores, shared

    def advantages(self, rollout: Rollout, scores: Scores) -> Experience:
        """Returns the episodes with rewards by token, whitened advantages and returns."""
        args, mask = self.args, rollout.mask
        kl = kl_terms(rollout.logprobs, rollout.ref_logprobs, args.kl_estimator) * mask
        kl_coef = self.kl_controller.kl_coef
        rewards = shaped_rewards(scores.scores, kl, mask, kl_coef)
        if args.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False)
        advantages, returns = gae(rewards, rollout.values, mask, args.gamma, args.lam)
        return Experience(rollout, scores, kl, kl_coef, rewards, whiten(advantages, mask), returns)

    def update(self, experience: Experience, *, step: int = 0) -> dict[str, float]:
        """Returns the figures of `num_ppo_epochs` passes over a batch, `num_mini_batches` optimizer steps each."""
        totals: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=self.accelerator.device))
        grad_norms = []
        for epoch in range(self.args.num_ppo_epochs):
            generator = torch.Generator().manual_seed(sampling_key(self.args.seed, "order", step, epoch))
            for mini_batch in torch.randperm(self.args.num_mini_batches, generator=generator).tolist():
                sums, grad_norm = self.optimize(experience, mini_batch)
                grad_norms.append(grad_norm)
                for name, value in sums.items():
                    totals[name] += value
                if self.args.max_approx_kl is not None and self._too_far(sums):
                    return self._update_metrics(totals, grad_norms)
        return self._update_metrics(totals, grad_norms)

    def optimize(self, experience: Experience, mini_batch: int) -> tuple[dict[str, torch.Tensor], float]:
        """Takes one optimizer step on a mini-batch; returns sums over this process's tokens and the gradient norm."""
        rollout, world_size = experience.rollout, self.accelerator.num_processes
        passes = rollout.plan.own(mini_batch, self.accelerator.process_index, world_size)
        n_tokens = rollout.mask[rollout.plan.rows(mini_batch)].sum()
        totals: dict[str, torch.Tensor] = {}
        for number, rows in enumerate(passes, 1):
            last = number == len(passes)
            self.accelerator.sync_gradients = last
            with nullcontext() if last else self.accelerator.no_sync(self.model_wrapped):
                loss, sums = self.token_losses(experience, rows)
                # a mean over all tokens of the mini-batch, though processes average their gradients
                self.accelerator.backward(loss * (world_size / n_tokens))
            totals = {name: totals.get(name, 0) + value for name, value in sums.items()}
        grad_norm = self._clip_grad_norm(self.model_wrapped) if self.args.max_grad_norm > 0 else None
        grad_norm = self._get_grad_norm(self.model_wrapped, grad_norm=grad_norm)
        self.control = self.callback_handler.on_pre_optimizer_step(self.args, self.state, self.control)
        self.optimizer.step()  # type: ignore[union-attr]
        self.control = self.callback_handler.on_optimizer_step(self.args, self.state, self.control)
        self.model_wrapped.zero_grad()
        return totals, float(grad_norm)

    def token_losses(
        self, experience: Experience, rows: Sequence[int]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Returns the loss of some rows, summed over their tokens, and the sums that are logged."""
        args, rollout = self.args, experience.rollout
        mask = rollout.mask[rows]

        def at(tensor: torch.Tensor) -> torch.Tensor:
            return tensor[rows][mask]

        batch = [part.to(self.accelerator.device) for part in rollout.episodes.batch(rows)]
        logprobs, entropy, values = self.model_wrapped(*batch, args.temperature)
        old = at(rollout.logprobs)
        policy = policy_loss(logprobs, old, at(experience.advantages), args.cliprange)
        value = value_loss(values, at(rollout.values), at(experience.returns), args.cliprange_value)
        loss = policy.loss.sum() + args.vf_coef * value.loss.sum()
        if args.entropy_coef:
            loss = loss - args.entropy_coef * entropy.sum()
        sums = {
            "n": mask.sum(),
            "policy/approxkl_avg": 0.5 * (logprobs - old).square().sum(),
            "policy/clipfrac_avg": policy.clipped.sum(),
            "policy/entropy_avg": entropy.sum(),
            "loss/policy_avg": policy.loss.sum(),
            "loss/value_avg": value.loss.sum(),
            "val/clipfrac_avg": value.clipped.sum(),
            "val/ratio": policy.ratio.sum(),
            "val/ratio_var": (policy.ratio - 1).square().sum(),
        }
        return loss, {name: value.detach() for name, value in sums.items()}

    def _too_far(self, sums: dict[str, torch.Tensor]) -> bool:
        both = torch.stack([sums["policy/approxkl_avg"].float(), sums["n"].float()])
        kl, n = self.accelerator.reduce(both, "sum")
        return bool(kl / n > self.args.max_approx_kl)

    def _update_metrics(self, totals: dict[str, torch.Tensor], grad_norms: list[float]) -> dict[str, float]:
        names = list(totals)
        sums = self.accelerator.reduce(torch.stack([totals[name].double() for name in names]), "sum").tolist()
        figures = dict(zip(names, sums, strict=True))
        n = figures.pop("n")
        figures = {name: value / n for name, value in figures.items()}
        figures["val/ratio_var"] -= (figures["val/ratio"] - 1) ** 2
        return figures | {
            "policy/grad_norm": sum(grad_norms) / len(grad_norms),
            "policy/optimizer_steps": float(len(grad_norms)),
        }

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs, with the means of what the updates since the last log came to."""
        if self._metrics and "loss" in logs:
            logs = logs | {
                name: values[-1] if name in _LAST else sum(values) / len(values)
                for name, values in self._metrics.items()
            }
            self._metrics.clear()
        super().log(logs, start_time)

    # what processes share

    def _own_rows(self, n: int) -> list[int]:
        """Returns the rows of n that this process generates and scores: a run of them."""
        rank, world_size = self.accelerator.process_index, self.accelerator.num_processes
        return list(range(rank * n // world_size, (rank + 1) * n // world_size))

    def _shared(self, rows: Sequence[int], values: torch.Tensor, n: int, *, largest: bool = False) -> torch.Tensor:
        """Returns `(n, …)` on every process from the rows that each has; every row is some one process's."""
        if largest:
            return self.accelerator.gather(values.to(self.accelerator.device)).max()[None]
        whole = torch.zeros(n, *values.shape[1:], dtype=values.dtype, device=self.accelerator.device)
        whole[list(rows)] = values.to(self.accelerator.device)
        return self.accelerator.reduce(whole, "sum")

    def _count_stops(self, episodes: Episodes) -> float:
        ends = set(self.generator.end_token_ids)
        return float(sum(token in ends for ids in episodes.completion_ids for token in ids))

    # checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the policy for inference, and the value model in the folder `value_model` beside it."""
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


def _loaded(model: Any) -> Any:
    if not isinstance(model, str):
        return model
    try:
        return AutoModelForCausalLM.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"no language model at {model}: {str(error).splitlines()[0]}; give a folder or hub id"
        ) from error


def _check_roles(model: Any, ref_model: Any, reward_model: Any, value_model: Any) -> None:
    for name, given in (("model", model), ("ref_model", model if ref_model is None else ref_model)):
        speaks = isinstance(given, PreTrainedModel | PeftModel) and given.get_output_embeddings() is not None
        if not speaks and not isinstance(given, str):
            raise ModelError(
                f"got {type(given).__name__} as {name}; wanted a causal language model, its folder or hub id"
            )
    if not isinstance(value_model, nn.Module | None):
        raise ModelError(f"got {type(value_model).__name__} as value_model; wanted a model, or nothing")
    if ref_model is model and not isinstance(model, str):
        raise UsageError("`model` and `ref_model` are the same object and would train together; leave ref_model out")
    if value_model is not None and value_model is reward_model:
        raise UsageError("`value_model` and `reward_model` are the same object: the reward would train; leave one out")
    if value_model is not None and value_model is model:
        raise UsageError("`value_model` and `model` are the same object; leave value_model out")


def _with_adapter(model: Any, peft_config: PeftConfig | None, name: str | None) -> Any:
    if not isinstance(peft_config, PeftConfig | None):
        raise UsageError(f"got {type(peft_config).__name__} as peft_config; wanted one of PEFT's, such as LoraConfig")
    if peft_config is not None and isinstance(model, PeftModel):
        raise UsageError("got a PeftModel and a peft_config; merge the adapter first, or leave peft_config out")
    model = model if peft_config is None else get_peft_model(model, peft_config)
    if name is not None:
        adapters = getattr(model, "peft_config", {})
        if name not in adapters:
            raise UsageError(f"model_adapter_name is {name!r}; the policy has {', '.join(adapters) or 'no adapter'}")
        model.set_adapter(name)
    return model


def _give_pad_token(tokenizer: PreTrainedTokenizerBase, policy: Any) -> None:
    """Gives a tokenizer without pad token one that the policy has an embedding of; padding is masked everywhere."""
    if tokenizer.pad_token is None:
        found = choose_pad_token(copy.deepcopy(tokenizer))
        tokenizer.pad_token = found if found in tokenizer.get_vocab() else tokenizer.eos_token
    rows = policy.get_input_embeddings().weight.shape[0]
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= rows:
        raise ModelError(
            f"the pad token {tokenizer.pad_token!r} is number {tokenizer.pad_token_id} and the policy has {rows} "
            "embeddings; call model.resize_token_embeddings(len(tokenizer)), or set another pad token"
        )


def _generator(policy: Any, tokenizer: PreTrainedTokenizerBase, args: PPOConfig) -> TransformersGenerator:
    if args.stop_token_id is not None and not 0 <= args.stop_token_id < len(tokenizer):
        raise UsageError(f"stop_token_id {args.stop_token_id} is none of the tokenizer's {len(tokenizer)} tokens")
    ends = [args.stop_token_id] if args.stop_token_id is not None else None if args.stop_token else []
    return TransformersGenerator(
        policy, tokenizer, max_new_tokens=args.response_length, temperature=args.temperature, top_p=args.top_p,
        batch_size=args.local_rollout_forward_batch_size, end_token_ids=ends,
        generation_kwargs=args.generation_kwargs, progress=False,  # type: ignore[arg-type]
    )  # fmt: skip


def _prompt_limit(policy: Any, args: PPOConfig) -> int | None:
    positions = getattr(policy.config.get_text_config(), "max_position_embeddings", None)
    room = None if positions is None else positions - args.response_length
    if room is not None and room < 1:
        raise UsageError(f"response_length {args.response_length} leaves no room in {positions} positions; lower it")
    limits = [limit for limit in (args.max_prompt_length, room) if limit is not None]
    return min(limits, default=None)


def _reference(policy: Any, ref_model: Any, peft_config: PeftConfig | None, args: PPOConfig) -> tuple[Any, str | None]:
    """Returns the reference model, or none and the adapter of the policy that stands for it."""
    if ref_model is not None:
        return ref_model.eval().requires_grad_(False), None
    if not isinstance(policy, PeftModel):
        return copy.deepcopy(policy).eval().requires_grad_(False), None
    if args.ref_adapter_name is not None:
        if args.ref_adapter_name not in policy.peft_config:
            raise UsageError(
                f"ref_adapter_name is {args.ref_adapter_name!r}; the policy has {', '.join(policy.peft_config)}"
            )
        return None, args.ref_adapter_name
    return None, "" if peft_config is not None else add_reference_adapter(policy)


def _value_model(given: Any, reward_network: Any, policy: Any, peft_config: PeftConfig | None) -> nn.Module:
    if given is None:
        own = getattr(policy, "peft_config", {}).get(getattr(policy, "active_adapter", None), peft_config)
        source = policy if reward_network is None or own is not None else reward_network
        return make_value_model(source, own)
    return SequenceValue(given) if isinstance(given, PreTrainedModel | PeftModel) else given
