"""PPO for language models: TRL's constructor, configuration and log keys in the loop of transformers' Trainer."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset
from peft import PeftConfig, PeftModel
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import PredictionOutput, TrainOutput, speed_metrics

from rmtrl.errors import DataError, ModelError, UsageError
from rmtrl.generation import sampling_key
from rmtrl.models import check_finite, check_weights, keep_outputs, whole
from rmtrl.ppo import evaluation, models, state
from rmtrl.ppo import rollout as rollouts
from rmtrl.ppo import update as updates
from rmtrl.ppo._base import PPOBase
from rmtrl.ppo.backbone import SharedValue, check_adapter, share_reward
from rmtrl.ppo.config import PPOConfig
from rmtrl.ppo.evaluation import PolicyEvaluation, PPOCallback, Progress, PromptMeans, Rows
from rmtrl.ppo.loss import make_kl_controller
from rmtrl.ppo.prompts import Prompts, Schedule, read_prompts, read_sets
from rmtrl.ppo.reward_model import Reward, as_reward, as_rewards, training_reward, unscaled
from rmtrl.ppo.rollout import Episodes, Rollout, Scores
from rmtrl.ppo.state import RunState
from rmtrl.ppo.update import Experience
from rmtrl.ppo.vllm import VLLMGenerator
from rmtrl.types import Estimate, json_ready

logger = get_logger(__name__)

_LAST = ("eps", "episode", "objective/kl_coef", "tokens_per_second")  # logged as they stand, not as a mean


class PPOTrainer(PPOBase):
    """
    Trainer for Proximal Policy Optimization, with TRL's constructor, configuration and log keys.

    TRL's own, where TRL has one, is the parent; the loop is that of [`~transformers.Trainer`], whose step is one
    update, in methods that can be overridden: [`~PPOTrainer.rollout`] ([`~PPOTrainer.generate`] in it),
    [`~PPOTrainer.score`], [`~PPOTrainer.advantages`], [`~PPOTrainer.update`] and [`~PPOTrainer.log`].
    `train(resume_from_checkpoint=…)`, `evaluate()`, `save_model()`, callbacks and the fields of
    [`~transformers.TrainingArguments`] work as in any Trainer.

    What differs from TRL's:

    - Prompts are text, messages or token ids; other columns reach the reward. Rewards are any scorer or function.
    - Mixed precision, gradient checkpointing and clipping, `max_steps`, evaluation, early stopping, resuming and
      saving do what their settings say; `num_mini_batches` is the number of optimizer steps a pass over the batch.
    - Every figure is a mean over responses or real tokens, whatever the mini-batches, accumulation and processes.
    - The score stands at a response's last token, its stop token where it has one, which is trained like any other.
    - Sampling follows from seed, episode and position alone; the checkpoint's own generation settings, but for its
      end tokens, play no part.
    - The value model may be left out; it and the KL controller are saved, so that a resumed run is the same run.

    [`~PPOTrainer.get_train_dataloader`] yields the prompts of one micro-batch and [`~PPOTrainer.training_step`] is an
    update once the accumulation is complete, up to the clip and step of its last gradient, which are the host's.
    Private methods of the host that are touched: `_init_training_state` (epochs need not divide into updates),
    `_get_grad_norm` (every norm is checked and counted), `_load_from_checkpoint` and `_load_best_model` (two models
    in one).

    Every process loads all models whole, and then holds, by engine (where bf16 is set, FSDP2 computes heads in it too;
    log probabilities and losses are float32):

    | | DDP | ZeRO-2 | FSDP2, ZeRO-3 |
    |---|---|---|---|
    | policy, value model | whole | whole, optimizer in shares | in shares, whole while responses are sampled |
    | reference model | whole | whole | in shares |
    | reward model, `eval_scorers` | whole | whole | whole; on one backbone while they score |

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
    model: models.PolicyAndValue
    processing_class: PreTrainedTokenizerBase

    @whole()
    def __init__(
        self, args: PPOConfig, processing_class: PreTrainedTokenizerBase,
        model: "str | Path | PreTrainedModel | PeftModel", ref_model: "str | Path | PreTrainedModel | None" = None,
        reward_model: Any = None, train_dataset: Dataset | None = None, value_model: nn.Module | None = None,
        data_collator: Any = None, eval_dataset: Dataset | dict[str, Dataset] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        callbacks: list[TrainerCallback] | None = None, peft_config: PeftConfig | None = None, *,
        eval_scorers: dict[str, Callable[..., Any]] | None = None,
    ) -> None:  # fmt: skip
        if reward_model is None or train_dataset is None:
            raise UsageError("PPOTrainer needs a reward_model and a train_dataset")
        models.check_roles(model, ref_model, reward_model, value_model)
        loading: dict[str, Any] = {"n_tokens": len(processing_class), "adapted": peft_config is not None}
        policy = models.add_policy_adapter(models.load_policy(model, **loading), peft_config, args.model_adapter_name)
        models.give_pad_token(processing_class)
        self.generator: Any = models.make_generator(policy, processing_class, args)
        self.max_prompt_length = limit = models.longest_prompt(policy, args)
        self.train_prompts = read_prompts(train_dataset, processing_class, max_length=limit)
        self.eval_prompts = read_sets(eval_dataset, processing_class, max_length=limit) if eval_dataset else {}
        models.check_best_metric(args, list(self.eval_prompts))

        if args.one_backbone:
            check_adapter(policy)
            reward_model = share_reward(policy, reward_model)
        self.reward, reward_network = as_reward(reward_model, processing_class, self.train_prompts)
        normalise: Any = "mean_std" if args.normalize_rewards else False
        self.reward = training_reward(self.reward, clip=args.reward_clip_range, normalise=normalise)
        self.eval_scorers = as_rewards(eval_scorers or {}, processing_class, self.train_prompts)
        reference = models.load_policy(ref_model, **loading)
        self.ref_model, reference_adapter = models.choose_reference(policy, reference, peft_config, args)
        if args.one_backbone and value_model is None:
            value: nn.Module = SharedValue(policy)
        else:
            value = models.choose_value_model(value_model, reward_network, policy, peft_config)
        given = {"model": policy, "ref_model": reference, "reward_model": reward_network,
                 "value_model": getattr(value, "model", value)}  # fmt: skip
        every = [ids for read in (self.train_prompts, *self.eval_prompts.values()) for ids in read.ids]
        models.check_vocabulary(given, processing_class, every, self.generator.end_token_ids)
        longest = max(map(len, every)) + args.response_length
        models.check_positions(given, longest)
        if args.use_vllm:
            self.generator = VLLMGenerator(policy, args, self.generator.end_token_ids, longest)
        models.disable_dropout(policy, value, self.ref_model)
        both = models.PolicyAndValue(policy, value, reference_adapter)
        super().__init__(
            model=both, args=args, train_dataset=train_dataset, eval_dataset=eval_dataset, optimizers=optimizers,
            processing_class=processing_class, callbacks=[_RunEvents(self), *(callbacks or [])],
        )  # fmt: skip
        fsdp = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        if fsdp and (fsdp.fsdp_version != 2 or fsdp.cpu_ram_efficient_loading):
            raise UsageError(
                "PPO needs fsdp_version: 2 and fsdp_cpu_ram_efficient_loading: false in accelerate's file"
            )
        keep_outputs(self.accelerator)
        if reward_network is not None:
            reward_network.to(self.accelerator.device)
        self._reference = state.reference_digest(policy if self.ref_model is None else self.ref_model)
        if self.ref_model is not None:
            self.ref_model = models.shard_reference(self.ref_model, self.accelerator)
        n, world_size = len(self.train_prompts), self.accelerator.num_processes
        self.schedule = Schedule(args, n, world_size, present=lambda: self.state.global_step)
        self.batch_size, self.num_total_batches = self.schedule.batch_size, self.schedule.n_updates
        self.kl_controller = make_kl_controller(args.kl_coef, args.kl_target, args.kl_horizon)
        self._start: RunState | None = None  # as the run was before it was first trained
        self._resumed: tuple[str, RunState] | None = None
        self._began: tuple[float, int] | None = None  # when this process trained first, and the updates before
        self._last_log: dict[str, Any] = {"step": 0, "loss_since": 0.0}
        self._metrics: dict[str, list[float]] = defaultdict(list)
        self._grad_norms: list[float] = []
        self._experience: Experience | None = None  # of the update that is under way
        self.evaluation_: dict[str, Estimate] = {}
        self.samples_: dict[str, Rows] = {}
        self.progress_: dict[str, Progress] = {}

    # the host's loop

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
        self._start = self._start or self._run_state()  # a second run starts as the first
        folder, self._resumed, self._began = None, None, None
        if resume_from_checkpoint:
            folder, stored = state.find_checkpoint(resume_from_checkpoint, str(self.args.output_dir))
            stored.check_same_run(self._start, folder)
            state.check_optimizer(folder)
            self._resumed = folder, stored
        return super().train(folder, trial, ignore_keys_for_eval)

    def get_train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Returns the prompts of the updates of the present epoch still to come, those of a micro-batch at a time."""
        generator = torch.Generator()  # the run's random state is not drawn on
        return DataLoader(self.schedule, batch_size=None, generator=generator)

    def set_initial_training_values(self, args: Any, dataloader: Any) -> tuple[int, int, int, int, int, int, int]:
        """Returns what the host's loop counts by: whole batches, of which some epochs hold one less."""
        schedule, max_steps = self.schedule, self.num_total_batches
        most = -(-schedule.n_prompts // schedule.prompts_per_batch)  # updates in an epoch
        epochs, steps = schedule.epoch_of(max_steps - 1) + 1, most * args.gradient_accumulation_steps
        return epochs, most, schedule.n_prompts, max_steps * self.batch_size, self.batch_size, steps, max_steps

    def _init_training_state(self, max_steps: int, per_epoch: int, epochs: int, *rest: Any) -> tuple[int, int]:
        """Returns the epoch to go on in; the loader begins at the next update, so nothing is skipped in it."""
        super()._init_training_state(max_steps, per_epoch, epochs, *rest)
        step = self.state.global_step
        return (epochs if step >= max_steps else self.schedule.epoch_of(step)), 0

    def _begin(self) -> None:
        """Takes up the run's state, once the models are loaded and before anything is trained."""
        assert self._start is not None
        models.forget_pad_outside(self.accelerator.unwrap_model(self.model).policy)
        stored = self._start
        if self._resumed is not None:
            folder, stored = self._resumed
            stored.check_same_reference(self._start, folder)
        self.kl_controller.load_state_dict(stored.kl_controller)
        if stored.reward:
            self.reward.load_state_dict(stored.reward)  # type: ignore[attr-defined]
        self._last_log, self._grad_norms = dict(stored.last_log), []
        self._metrics = defaultdict(list, {name: list(values) for name, values in stored.metrics.items()})
        self.load_evaluation_state(stored.evaluation)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Returns 0 until the accumulation is complete, then the loss of an update, whose last gradient is left.

        The batch is taken whole, at its last micro-batch: responses of like length are computed together.
        """
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        step, started = self.state.global_step, time.time()
        self._began = self._began or (started, step)
        self._set_optimizer("train")
        rollout = self.rollout(*self.next_prompts(step), step=step)
        gap = self._check_engine(rollout) if self.args.use_vllm else {}
        experience = self._experience = self.advantages(rollout, self.score(rollout))
        figures = updates.rollout_metrics(experience, self.args.num_generations) | self.update(experience, step=step)
        self.kl_controller.update(figures["objective/kl"], self.batch_size)
        episode, tokens = (step + 1) * self.batch_size, sum(rollout.episodes.lengths)
        self.state.episode = episode  # type: ignore[attr-defined]
        self.state.num_input_tokens_seen += tokens
        ends = set(self.generator.end_token_ids)
        figures |= gap | {
            "eps": (episode - self._began[1] * self.batch_size) / (time.time() - self._began[0]),
            "tokens_per_second": tokens / (time.time() - started),
            "val/num_eos_tokens": float(sum(t in ends for ids in rollout.episodes.completion_ids for t in ids)),
            "objective/kl_coef": experience.kl_coef,
            "episode": float(episode),
        }
        for name, value in figures.items():
            self._metrics[name].append(value)
        loss = figures["loss/policy_avg"] + self.args.vf_coef * figures["loss/value_avg"]
        self._last_log["loss_since"] += loss
        return torch.tensor(loss, device=self.args.device)

    def _set_optimizer(self, mode: str) -> None:
        """Brings an optimizer without schedule, which keeps two sets of weights, to those of a mode."""
        if callable(switch := getattr(self.optimizer, mode, None)):
            switch()

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Returns a norm that is finite, and counts it."""
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self.accelerator.scaler is None:  # with one the step is left out, and its scale lowered
            self._check_finite(torch.as_tensor(grad_norm), "the gradient norm is")
        self._grad_norms.append(float(grad_norm))
        return grad_norm

    def _end_update(self) -> None:
        """What is known once the host has taken the update's last step."""
        step, experience = self.state.global_step, self._experience
        if self.args.max_kl is not None and (kl := self._metrics["objective/kl_k1"][-1]) > self.args.max_kl:
            logger.warning(
                f"KL to the reference is {kl:.2f} nats a response, over max_kl {self.args.max_kl}: training ends"
            )
            self.control.should_training_stop = True
        self.state.epoch = step * self.schedule.prompts_per_batch / self.schedule.n_prompts
        self._metrics["policy/grad_norm"].append(sum(self._grad_norms) / len(self._grad_norms))
        self._grad_norms.clear()
        n = self.args.num_sample_generations
        if n > 0 and (step - 1) % max(1, self.num_total_batches // n) == 0 and experience is not None:
            columns, episodes = {"reward": experience.scores.scores.tolist()}, experience.rollout.episodes
            rows = evaluation.response_rows(self.processing_class, self.train_prompts, episodes, columns)
            self.samples_["train"] = rows
            self.log_table(rows, "completions")
        self._experience = None
        if self.args.torch_empty_cache_steps and (step - 1) % self.args.torch_empty_cache_steps == 0:
            clear_device_cache()

    def floating_point_ops(self, inputs: Any) -> int:
        """Returns the operations of an update's passes, 6 a weight and token; those of sampling are not counted."""
        if self._experience is None:
            return 0
        passes = self._metrics["policy/optimizer_steps"][-1] / self.args.num_mini_batches
        tokens = passes * sum(self._experience.rollout.episodes.lengths) / self.accelerator.num_processes
        return int(6 * tokens * sum(getattr(w, "ds_numel", w.numel()) for w in self.model.parameters()))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs, with the means of what the updates since the last log came to."""
        if self._metrics and "loss" in logs:
            figures = {name: of[-1] if name in _LAST else sum(of) / len(of) for name, of in self._metrics.items()}
            n_updates = self.state.global_step - self._last_log["step"]  # the host's own begin with this process
            logs = logs | figures | {"loss": self._last_log["loss_since"] / n_updates, "lr": logs["learning_rate"]}
            logs["grad_norm"] = self._metrics["policy/grad_norm"][-1]
            self._metrics.clear()
            self._last_log = {"step": self.state.global_step, "loss_since": 0.0}
        super().log(logs, start_time)

    # an update

    def next_prompts(self, step: int) -> tuple[Prompts, list[int], list[int]]:
        """Returns the prompts of an update: their data set, which of them, and a sampling key for each episode.

        They are taken in a new random order on every pass over the data set, which follows from the seed alone.
        """
        return self.train_prompts, *self.schedule.episodes(step)

    def rollout(self, prompts: Prompts, indices: Sequence[int], keys: Sequence[int], *, step: int = 0) -> Rollout:
        """Returns a response to each prompt, with the log probabilities and values of its tokens.

        Args:
            prompts ([`Prompts`]): The data set.
            indices (`Sequence[int]`): Which of its prompts, over all processes.
            keys (`Sequence[int]`): A [`~rmtrl.generation.sampling_key`] each.
            step (`int`): The update, which the deal into mini-batches follows from.
        """
        args, episodes = self.args, self.sample(prompts, indices, keys)
        seed = sampling_key(args.seed, "mini-batches", step)
        found = self.token_figures(episodes, args.num_mini_batches, args.per_device_train_batch_size, seed)
        self._check_finite(found.logprobs, "log probabilities of the policy are")
        self._check_finite(found.ref_logprobs, "log probabilities of the reference are")
        self._check_finite(found.values, "values of the value model are")
        return found

    def _check_engine(self, rollout: Rollout) -> dict[str, float]:
        """Returns how far vLLM's log probabilities are from the policy's own, unless they are of other weights."""
        gap, most = (
            rollouts.engine_gap(self.accelerator, rollout, self.generator.logprobs_),
            self.args.vllm_max_logprob_gap,
        )
        if not gap <= most:
            raise ModelError(
                f"step {self.state.global_step + 1}: log probabilities of vLLM and the policy are {gap:.3g} apart a "
                f"token, over vllm_max_logprob_gap {most:g}: responses come from other weights, or in too low a "
                "precision; leave use_vllm out, or load the policy in the dtype it is trained in"
            )
        return {"generation/logprob_gap": gap}

    def sample(self, prompts: Prompts, indices: Sequence[int], keys: Sequence[int]) -> Episodes:
        """Returns a response to each prompt, over all processes, each having generated its share of the rows."""
        own, ends = rollouts.own_rows(self.accelerator, len(indices)), self.generator.end_token_ids
        prompt_ids = [prompts.ids[index] for index in indices]
        made = self.generate([prompt_ids[row] for row in own], [keys[row] for row in own])
        for row, ids in zip(own, made, strict=True):
            if not ids:
                raise ModelError(f"generate() returned no token for prompt {indices[row]}; wanted one at least")
        completion_ids = gather_object(made)
        truncated = [bool(ends) and ids[-1] not in ends for ids in completion_ids]
        return Episodes(list(indices), prompt_ids, completion_ids, truncated)

    def generate(self, prompt_ids: list[list[int]], keys: list[int]) -> list[list[int]]:
        """Returns the token ids of a response to each prompt, at most `response_length`, its stop token included.

        The one method to override for another way of generating; `use_vllm` is one that comes along.

        Args:
            prompt_ids (`list[list[int]]`): Token ids of this process's prompts.
            keys (`list[int]`): What each sample's randomness should follow from.
        """
        unsharded = models.whole_weights(self.accelerator, self.model_wrapped)
        with torch.no_grad(), self.accelerator.autocast(), unsharded as model:
            self.generator.model = model.policy
            return [list(made.token_ids) for made in self.generator.complete(prompt_ids, keys)]

    def token_figures(self, episodes: Episodes, n_mini_batches: int, rows_per_pass: int, seed: int) -> Rollout:
        """Returns the episodes with what policy, reference and value model say of their tokens."""
        plan = rollouts.make_plan(
            episodes.lengths, n_mini_batches, rows_per_pass=rows_per_pass, world_size=self.accelerator.num_processes,
            seed=seed, device_type=self.accelerator.device.type,
        )  # fmt: skip
        models = self.model_wrapped, self.ref_model
        return rollouts.token_figures(self.accelerator, *models, episodes, plan, self.args.temperature)

    def score(self, rollout: Rollout) -> Scores:
        """Returns the score of each response, over all processes.

        Raises:
            RewardError: If the reward fails, or returns something else than a finite number a response.
        """
        truncated = rollout.episodes.truncated
        rollouts.warn_of_cut_turns(self.reward, truncated, self.args)
        scores, parts = self.score_with(self.reward, self.train_prompts, rollout.episodes)
        return Scores(rollouts.with_missing_eos(scores, truncated, self.args), parts)

    def score_with(self, reward: Reward, prompts: Prompts, episodes: Episodes) -> tuple[torch.Tensor, dict[str, Any]]:
        """Returns what a reward gives each response, `(B,)`, and its parts; each process scores its own rows."""
        own = rollouts.own_rows(self.accelerator, len(episodes))
        # a reward on the policy's backbone runs on weights that an engine may have cut
        with models.whole_weights(self.accelerator, self.model_wrapped) if self.args.one_backbone else nullcontext():
            values, parts = rollouts.score_episodes(reward, self.processing_class, prompts, episodes, own)
        scores, *columns = (np.array(gather_object(column.tolist())) for column in (values, *parts.values()))
        return torch.tensor(scores, device=self.args.device).float(), dict(zip(parts, columns, strict=True))

    def advantages(self, rollout: Rollout, scores: Scores) -> Experience:
        """Returns the episodes with rewards by token, whitened advantages and returns."""
        return updates.make_experience(rollout, scores, self.kl_controller.kl_coef, self.args)

    def update(self, experience: Experience, *, step: int = 0) -> dict[str, float]:
        """Returns the figures of `num_ppo_epochs` passes over a batch, `num_mini_batches` optimizer steps each.

        The last step is not taken: its gradient is left to the host.
        """
        limit, sums = self.args.max_approx_kl, list[torch.Tensor]()
        for mini_batch in updates.mini_batches(self.args, step):
            if sums:
                self._step_within()
            loss, own = updates.backward(self.accelerator, self.model_wrapped, experience, mini_batch, self.args)
            self._check_finite(loss, "the loss is")
            sums.append(own)
            if limit is not None and updates.over_tokens(self.accelerator, own)["policy/approxkl_avg"] > limit:
                break
        figures = updates.over_tokens(self.accelerator, torch.stack(sums).sum(0))
        return figures | {"policy/optimizer_steps": float(len(sums))}

    def _step_within(self) -> None:
        """Takes a step of an update that is not its last, with the host's events around it."""
        model, limit = self.model_wrapped, self.args.max_grad_norm
        self._get_grad_norm(model, self.accelerator.clip_grad_norm_(model.parameters(), limit) if limit > 0 else None)
        self.control = self.callback_handler.on_pre_optimizer_step(self.args, self.state, self.control)
        self.optimizer.step()  # type: ignore[union-attr]
        self.control = self.callback_handler.on_optimizer_step(self.args, self.state, self.control)
        model.zero_grad()

    def _check_finite(self, tensor: torch.Tensor, what: str) -> None:
        check_finite(f"update {self.state.global_step + 1}", tensor, what)

    # evaluation

    def evaluate(
        self, eval_dataset: Dataset | dict[str, Dataset] | None = None, ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:  # fmt: skip
        """Returns the figures of `num_eval_generations` responses to each prompt, over all processes.

        `{prefix}_reward` (before normalisation, which moves with training, and clip), `_kl` (nats a response),
        `_length_tokens`, `_truncated`, `_score_length_correlation`, the score of each of `eval_scorers` under
        its name, and the ends of 95 % intervals as `_reward_low` and so on; `evaluation_` holds the same as
        [`Estimate`]s over prompts. The same prompts are always answered with the same noise, so that two evaluations
        differ by the policy alone: `_reward_gain`, `_length_tokens_gain` and that of each scorer are changes since
        the run's first evaluation, their intervals those of the paired differences.

        Args:
            eval_dataset ([`~datasets.Dataset`] or `dict`, *optional*): Replaces the trainer's own.
            ignore_keys: Not used.
            metric_key_prefix (`str`): Opens each key; sets of a dictionary add their name.
        """
        sets = self.eval_prompts if eval_dataset is None else self._read(eval_dataset)
        if not sets:
            raise DataError("there is nothing to evaluate on; give eval_dataset")
        alone, started = set(sets) == {"eval"}, time.time()
        n, scores = self.args.num_eval_generations, ("reward", *self.eval_scorers)
        metrics: dict[str, float] = {}
        tables: dict[str, Rows] = {}
        for name, prompts in sets.items():
            prefix = metric_key_prefix if alone else f"{metric_key_prefix}_{name}"
            figures, rows = self.evaluate_policy(prompts)
            now = PromptMeans.of(self.state.global_step, rows, n)
            key = sampling_key(prompts.digest, n, scores)
            progress = evaluation.next_progress(self.progress_.get(prefix), now, key, scores, prefix)
            answers = [prompts.answer(row // n, rows[row]["completion"]) for row in range(0, len(rows), n)]
            gained = figures | progress.gains(now)
            found = PolicyEvaluation(prefix, gained, now, progress, prompts.prompts, answers)
            self.progress_[prefix] = progress
            self.evaluation_ |= {f"{prefix}_{key}": estimate for key, estimate in found.figures.items()}
            self.samples_[prefix] = tables["eval" if alone else prefix] = rows
            metrics |= evaluation.flat(found.figures, prefix)
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, PPOCallback):
                    scalars = callback.on_policy_evaluation(self.args, self.state, self.control, evaluation=found)
                    metrics |= {f"{prefix}_{key}": value for key, value in scalars.items()}
        metrics |= speed_metrics(metric_key_prefix, started, num_samples=sum(map(len, sets.values())))
        self.log(metrics)
        for name, rows in tables.items():
            self.log_table(rows, f"{name}_completions")
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(
        self, test_dataset: Dataset, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """Returns the responses to each prompt as texts, and their figures; nothing is logged.

        `evaluation_` and, with scores and texts, `samples_` hold them too.

        Args:
            test_dataset ([`~datasets.Dataset`]): Prompts.
            ignore_keys: Not used.
            metric_key_prefix (`str`): Opens each key.

        Raises:
            UsageError: If several sets are given.
        """
        if isinstance(test_dataset, dict):
            raise UsageError(f"predict takes one data set, got a dict of {len(test_dataset)}; call it for each")
        figures, rows = self.evaluate_policy(self._read(test_dataset)["eval"])
        self.evaluation_ |= {f"{metric_key_prefix}_{key}": estimate for key, estimate in figures.items()}
        self.samples_[metric_key_prefix] = rows
        texts = np.array([row["completion"] for row in rows])
        return PredictionOutput(texts, None, evaluation.flat(figures, metric_key_prefix))

    def evaluate_policy(self, prompts: Prompts) -> tuple[dict[str, Estimate], Rows]:
        """Returns the figures of fresh responses to each prompt, with intervals over prompts, and the responses."""
        args, n, world_size = self.args, self.args.num_eval_generations, self.accelerator.num_processes
        self._set_optimizer("eval")
        indices = [index for index in range(len(prompts)) for _ in range(n)]
        filled = indices + indices[:1] * (-len(indices) % world_size)  # a row more for a process that would have none
        keys = [sampling_key(args.seed, "evaluation", row) for row in range(len(filled))]
        episodes = self.sample(prompts, filled, keys)
        found = self.token_figures(episodes, 1, args.per_device_eval_batch_size, 0)
        kl = (found.logprobs - found.ref_logprobs).sum(1)
        judges = {"reward": self.reward} | self.eval_scorers
        scores = {name: self.score_with(unscaled(own), prompts, episodes)[0] for name, own in judges.items()}
        scores["reward"] = rollouts.with_missing_eos(scores["reward"], episodes.truncated, args)
        columns = {name: own.tolist() for name, own in (scores | {"kl": kl}).items()}
        columns |= {"length_tokens": [len(ids) for ids in episodes.completion_ids], "truncated": episodes.truncated}
        rows = evaluation.response_rows(self.processing_class, prompts, episodes, columns)[: len(indices)]
        return evaluation.policy_figures(rows, n), rows

    def evaluation_state(self) -> dict[str, Any]:
        """Returns the evaluations that later ones are compared with, ready for JSON."""
        return dict(json_ready(self.progress_))

    def load_evaluation_state(self, stored: dict[str, Any]) -> None:
        """Restores what `evaluation_state` returned; a set whose prompts or scorers are others by now starts anew."""
        self.progress_ = {prefix: Progress.from_dict(progress) for prefix, progress in stored.items()}

    def _read(self, dataset: Any) -> dict[str, Prompts]:
        return read_sets(dataset, self.processing_class, max_length=self.max_prompt_length)

    def log_table(self, rows: Rows, name: str) -> None:
        """Sends a table of samples to wandb, where it is reported to."""
        if "wandb" in (self.args.report_to or ()) and self.is_world_process_zero():
            evaluation.log_table(rows, name, self.state.global_step)

    def generate_completions(self, sampling: bool = False) -> None:
        """Prints five responses to the evaluation prompts with their rewards, and logs the table of all.

        Args:
            sampling (`bool`): Whether to answer the prompts of one batch alone.
        """
        most = self.args.per_device_eval_batch_size * self.accelerator.num_processes if sampling else None
        for name, prompts in self.eval_prompts.items():
            _, rows = self.evaluate_policy(replace(prompts, ids=prompts.ids[:most]))
            for row in rows[:5] if self.is_world_process_zero() else []:
                print(f"{name}: {row['prompt']!r} -> {row['completion']!r} (reward {row['reward']:.3f})")
            self.log_table(rows, "completions" if name == "eval" else f"{name}_completions")

    # checkpoints

    def _run_state(self) -> RunState:
        """Returns what a resumed run needs beside models and optimizer."""
        run = {name: getattr(self.args, name) for name in ("seed", "data_seed", "num_generations")}
        run["prompts"] = f"{len(self.train_prompts)} ({self.train_prompts.digest:x})"
        run["reference"] = self._reference
        reward: dict[str, Any] = getattr(self.reward, "state_dict", dict)()
        kl_controller, metrics = self.kl_controller.state_dict(), dict(self._metrics)
        return RunState(
            self.batch_size, run, kl_controller, reward, dict(self._last_log), metrics, self.evaluation_state()
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the policy for inference, and the value model in the folder `value_model` beside it.

        Raises:
            ModelError: If their weights are not finite; what stood in the folder is left as it was.
        """
        check_weights(f"after update {self.state.global_step}", self.model)
        weights = self.accelerator.get_state_dict(self.model_wrapped) if self.is_fsdp_enabled else None
        unsharded = models.whole_weights(self.accelerator, self.model_wrapped)
        with nullcontext(self.model) if self.is_fsdp_enabled else unsharded as model:
            if self.args.should_save:
                folder = Path(str(output_dir or self.args.output_dir))
                state.save_models(model, folder, weights)
                self.processing_class.save_pretrained(folder)
                torch.save(self.args, folder / "training_args.bin")
                if _internal_call:
                    self._run_state().write(folder)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:  # sharded weights are the host's own
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            state.load_models(self.accelerator.unwrap_model(self.model), Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(str(self.state.best_model_checkpoint))


class _RunEvents(TrainerCallback):
    """Tells a trainer where the host's loop stands."""

    def __init__(self, trainer: PPOTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer._begin()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.trainer._end_update()
