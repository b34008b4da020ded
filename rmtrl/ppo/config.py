"""Configuration of the PPO trainer: TRL's `PPOConfig` with the fields that rmtrl adds."""

import json
from dataclasses import dataclass, field
from typing import Any

from transformers import GenerationConfig, TrainingArguments

from rmtrl.errors import UsageError
from rmtrl.ppo._base import PPOBaseConfig
from rmtrl.reward.config import Ranges, check_ranges, set_defaults

_RANGES: Ranges = {
    "1 or more": (
        lambda value: value >= 1,
        "num_mini_batches num_ppo_epochs response_length local_rollout_forward_batch_size num_generations "
        "num_eval_generations total_episodes max_prompt_length",
    ),
    "0 or more": (lambda value: value >= 0, "kl_coef entropy_coef vf_coef"),
    "above 0": (
        lambda value: value > 0,
        "temperature kl_target kl_horizon cliprange cliprange_value max_approx_kl max_kl missing_eos_penalty "
        "vllm_max_logprob_gap",
    ),
    "above 0, up to 1": (lambda value: 0 < value <= 1, "top_p gamma vllm_gpu_memory_utilization"),
    "from 0 to 1": (lambda value: 0 <= value <= 1, "lam"),
    # without it processes whose responses are short would wait for ever for those whose are long
    "true": (bool, "ds3_gather_for_generation"),
    # noise moves log probabilities between passes, every call would be compiled anew, kernels see no language model
    "left out, for it does harm or nothing in PPO": (
        lambda value: not value,
        "neftune_noise_alpha torch_compile torch_compile_backend torch_compile_mode use_liger_kernel",
    ),
}

# settings of generation that have a field of their own
_GENERATION = {
    "max_new_tokens": "response_length", "max_length": "response_length", "temperature": "temperature",
    "top_p": "top_p", "eos_token_id": "stop_token_id",
}  # fmt: skip

# the others that act where samples are drawn one by one, each row by its own noise
_GENERATION_ALLOWED = {
    "min_length", "min_new_tokens", "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "sequence_bias",
    "suppress_tokens", "begin_suppress_tokens", "forced_eos_token_id", "exponential_decay_length_penalty",
    "remove_invalid_values", "use_cache", "cache_implementation", "cache_config",
}  # fmt: skip


@dataclass
class PPOConfig(PPOBaseConfig):
    r"""
    Configuration class for [`PPOTrainer`].

    Only the parameters that rmtrl adds or reads otherwise are listed; all others, and their defaults, are those of
    TRL 1.12's `PPOConfig`, on every TRL. A step is one update: a batch of `per_device_train_batch_size` ×
    `gradient_accumulation_steps` × processes episodes, `num_ppo_epochs` passes over it and `num_mini_batches`
    optimizer steps a pass; `max_steps`, `logging_steps`, `eval_steps`, `save_steps` and `warmup_steps` count updates.
    Usual ranges: learning rate 1e-5 to 5e-5 for adapters (1e-6 to 1e-5 for whole models), 32 to 128 episodes an
    update, `kl_coef` 0.01 to 0.2, 4 to 8 optimizer steps an update.

    Parameters:
        > Parameters that control the data and the generation

        max_prompt_length (`int`, *optional*):
            Longest prompt in tokens; longer ones are dropped and counted. Where absent, what the model's positions
            leave beside `response_length`.
        stop_token (`str`, *optional*, defaults to `"eos"`):
            `"eos"`: the tokenizer's end token and the checkpoint's own end a response. `None` ends none, as in TRL,
            where it is the default and every response runs to `response_length`; a flag says `none`.
            `stop_token_id` replaces it.
        top_p (`float`, *optional*, defaults to `1.0`):
            Probability mass of the likeliest tokens that are sampled from. Below 1 samples are not quite the policy's.
        generation_kwargs (`dict`, *optional*):
            More settings of [`~transformers.GenerationConfig`], such as `min_new_tokens`: those that act on the
            logits or the cache. As JSON in a flag. What changes the distribution makes samples that are not the
            policy's.
        use_vllm (`bool`, *optional*, defaults to `False`):
            Whether vLLM generates, in the process that trains. The gap between its log probabilities and the policy's
            own, which the updates use, is logged as `generation/logprob_gap`: a mean absolute difference a token.
        vllm_gpu_memory_utilization (`float`, *optional*, defaults to `0.3`):
            Share of the accelerator's memory that vLLM takes.
        vllm_max_logprob_gap (`float`, *optional*, defaults to `0.1`):
            Gap that ends the training with an error: samples of other weights are 0.3 and more apart.
        num_generations (`int`, *optional*, defaults to `1`):
            Responses to each prompt in a batch; above 1 the spread of rewards within a prompt is logged.
        num_eval_generations (`int`, *optional*, defaults to `1`):
            Responses to each prompt in an evaluation.

        > Parameters that control the reward

        missing_eos_score (`float`, *optional*):
            Score that replaces that of a response cut off before its stop token (−1 in the N+ details).
            `missing_eos_penalty` is taken off it instead, as in TRL.
        reward_clip_range (`list[float]`, *optional*):
            The two ends at which scores are cut. Narrow ones hide from the policy what is better than good.
        normalize_rewards (`bool`, *optional*, defaults to `False`):
            Whether scores are brought to mean 0 and deviation 1 by their running moments.

        > Parameters that control the training

        metric_for_best_model (`str`, *optional*):
            Where absent and `load_best_model_at_end` is set, `eval_reward`, of which more is better.
        kl_target (`float`, *optional*):
            KL to the reference, in nats a response, that `kl_coef` is adapted to (Ziegler et al. 2019,
            https://huggingface.co/papers/1909.08593); fixed where absent.
        kl_horizon (`int`, *optional*, defaults to `10000`):
            Episodes over which `kl_coef` adapts.
        max_approx_kl (`float`, *optional*):
            Ends the passes over a batch once the policy is further than this from the one that sampled it, in nats a
            token (½ (Δ log p)², usual 0.01 to 0.05).
        max_kl (`float`, *optional*):
            Ends the training once the KL to the reference passes this, in nats a response.
        entropy_coef (`float`, *optional*, defaults to `0.0`):
            Weight of the entropy bonus.
        one_backbone (`bool`, *optional*, defaults to `False`):
            Whether policy, reference, value and reward model are adapters and heads of one base model.

    Example:

    ```python
    >>> from rmtrl import PPOConfig
    >>> PPOConfig("outputs/ppo", kl_target=6.0, num_mini_batches=4).stop_token
    'eos'
    ```
    """

    stop_token: str | None = field(default="eos", metadata={"help": "`eos`, or `none`."})  # type: ignore[assignment]
    max_prompt_length: int | None = field(default=None, metadata={"help": "Longest prompt, in tokens."})
    top_p: float = field(default=1.0, metadata={"help": "Probability mass that is sampled from."})
    generation_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "More generation settings, as JSON: '{\"min_new_tokens\": 4}'."}
    )
    use_vllm: bool = field(default=False, metadata={"help": "Whether vLLM generates."})
    vllm_gpu_memory_utilization: float = field(default=0.3, metadata={"help": "Share of memory that vLLM takes."})
    vllm_max_logprob_gap: float = field(default=0.1, metadata={"help": "Gap between the engines that ends training."})
    num_generations: int = field(default=1, metadata={"help": "Responses to each prompt in a batch."})
    num_eval_generations: int = field(default=1, metadata={"help": "Responses to each prompt in an evaluation."})
    missing_eos_score: float | None = field(default=None, metadata={"help": "Score of a response that is cut off."})
    reward_clip_range: list[float] | None = field(default=None, metadata={"help": "Ends scores are cut at."})
    normalize_rewards: bool = field(default=False, metadata={"help": "Running mean 0 and deviation 1 of scores."})
    kl_target: float | None = field(default=None, metadata={"help": "KL that kl_coef is adapted to; fixed if none."})
    kl_horizon: int = field(default=10_000, metadata={"help": "Episodes over which kl_coef adapts."})
    max_approx_kl: float | None = field(default=None, metadata={"help": "KL of a batch that ends its passes."})
    max_kl: float | None = field(default=None, metadata={"help": "KL to the reference that ends the training."})
    entropy_coef: float = field(default=0.0, metadata={"help": "Weight of the entropy bonus."})
    one_backbone: bool = field(default=False, metadata={"help": "Adapters and heads of one base for all models."})

    def __post_init__(self) -> None:
        if isinstance(self.generation_kwargs, str):
            try:
                self.generation_kwargs = dict(json.loads(self.generation_kwargs))
            except (ValueError, TypeError) as error:
                wanted = "must be JSON such as '{\"min_new_tokens\": 4}'"
                raise UsageError(f"`generation_kwargs` {wanted}, got {self.generation_kwargs!r}") from error
        if str(self.stop_token).lower() in ("none", "null"):  # as flags say it
            self.stop_token = None
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model, self.greater_is_better = "eval_reward", True
        self._check()
        set_defaults(self)
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False  # every update runs all of policy and value model
        super().__post_init__()

    @property
    def stops(self) -> bool:
        """Whether a response has a stop token, so that one without is cut off."""
        return self.stop_token is not None or self.stop_token_id is not None

    def _check(self) -> None:
        """Raises the first setting that cannot be used."""
        check_ranges(self, _RANGES)
        ends, cut_off = self.reward_clip_range, (self.missing_eos_penalty, self.missing_eos_score)
        if self.stop_token not in ("eos", None):
            raise UsageError(f"`stop_token` must be 'eos' or None, got {self.stop_token!r}; or set `stop_token_id`")
        if self.kl_estimator not in ("k1", "k3"):
            raise UsageError(f"`kl_estimator` must be 'k1' or 'k3', got {self.kl_estimator!r}")
        if ends is not None and not (len(ends) == 2 and ends[0] < ends[1]):
            raise UsageError(f"`reward_clip_range` must be two numbers, the lower first, got {ends!r}")
        if not self.stops and cut_off != (None, None):
            raise UsageError("`missing_eos_penalty` and `missing_eos_score` need a stop token; set `stop_token='eos'`")
        if None not in cut_off:
            raise UsageError("`missing_eos_penalty` and `missing_eos_score` exclude each other; set one")
        for name in self.generation_kwargs or {}:
            if name in _GENERATION:
                raise UsageError(f"`generation_kwargs` holds {name!r}; set `{_GENERATION[name]}` instead")
            if not hasattr(GenerationConfig(), name):
                raise UsageError(f"`generation_kwargs` holds {name!r}, which is no setting of a GenerationConfig")
            if name not in _GENERATION_ALLOWED:
                raise UsageError(
                    f"`generation_kwargs` holds {name!r}, which has no effect on samples drawn here or would break "
                    f"them; wanted some of {', '.join(sorted(_GENERATION_ALLOWED))}"
                )


# TRL has a field of this name, whose value would hide the number of processes from transformers
PPOConfig.world_size = property(TrainingArguments.world_size.fget, lambda self, value: None)  # type: ignore
