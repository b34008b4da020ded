"""The parents of `PPOTrainer` and `PPOConfig`: TRL's up to 1.12, the last with PPO; transformers' Trainer after it.

Every branch on TRL's version that PPO needs stands here.
"""

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import trl
from packaging.version import Version
from transformers import Trainer, TrainingArguments

TRL_HAS_PPO = Version(trl.__version__) < Version("1.13.dev0")


@dataclass
class _PPOFields(TrainingArguments):
    """TRL 1.12's `PPOConfig`: the same fields with the same defaults."""

    logging_steps: float = field(default=10, metadata={"help": "Log every so many updates; below 1, a share."})
    gradient_checkpointing: bool = field(default=True, metadata={"help": "Trade compute for memory."})
    bf16: bool | None = field(default=None, metadata={"help": "bf16 mixed precision; else fp16."})  # type: ignore[assignment]
    learning_rate: float = field(default=3e-6, metadata={"help": "The initial learning rate for AdamW."})
    dataset_num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenise the data."})
    num_mini_batches: int = field(default=1, metadata={"help": "Mini-batches a batch is split into."})
    total_episodes: int | None = field(default=None, metadata={"help": "Episodes to train on."})
    local_rollout_forward_batch_size: int = field(default=64, metadata={"help": "Rows generated at a time."})
    num_sample_generations: int = field(default=10, metadata={"help": "Sample tables over the run."})
    response_length: int = field(default=53, metadata={"help": "Longest response, in tokens."})
    stop_token: Literal["eos"] | None = field(default=None, metadata={"help": "`eos`, or none."})
    stop_token_id: int | None = field(default=None, metadata={"help": "Token that ends a response."})
    temperature: float = field(default=0.7, metadata={"help": "Sampling temperature."})
    missing_eos_penalty: float | None = field(default=None, metadata={"help": "Taken off a response cut off."})
    sft_model_path: str = field(default="EleutherAI/pythia-160m", metadata={"help": "Path to the SFT model."})
    world_size: int | None = field(default=None, metadata={"help": "Number of processes."})
    num_total_batches: int | None = field(default=None, metadata={"help": "Number of updates."})
    micro_batch_size: int | None = field(default=None, metadata={"help": "Rows a forward, over processes."})
    local_batch_size: int | None = field(default=None, metadata={"help": "Rows an update, a process."})
    batch_size: int | None = field(default=None, metadata={"help": "Rows an update, over processes."})
    local_mini_batch_size: int | None = field(default=None, metadata={"help": "Rows a step, a process."})
    mini_batch_size: int | None = field(default=None, metadata={"help": "Rows a step, over processes."})
    reward_model_path: str = field(default="EleutherAI/pythia-160m", metadata={"help": "Path to the reward model."})
    model_adapter_name: str | None = field(default=None, metadata={"help": "Name of the adapter to train."})
    ref_adapter_name: str | None = field(default=None, metadata={"help": "Name of the reference adapter."})
    num_ppo_epochs: int = field(default=4, metadata={"help": "Passes over a batch."})
    whiten_rewards: bool = field(default=False, metadata={"help": "Whether to whiten the rewards."})
    kl_coef: float = field(default=0.05, metadata={"help": "KL coefficient."})
    kl_estimator: Literal["k1", "k3"] = field(default="k1", metadata={"help": "Estimator of the KL penalty."})
    cliprange: float = field(default=0.2, metadata={"help": "Clip range of the ratio."})
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    cliprange_value: float = field(default=0.2, metadata={"help": "Clip range of the value."})
    gamma: float = field(default=1.0, metadata={"help": "Discount factor."})
    lam: float = field(default=0.95, metadata={"help": "λ of GAE."})
    ds3_gather_for_generation: bool = field(default=True, metadata={"help": "Gather ZeRO-3 weights to generate."})

    def __post_init__(self) -> None:
        self.bf16 = not self.fp16 if self.bf16 is None else self.bf16
        super().__post_init__()


if TYPE_CHECKING:
    PPOBaseConfig = _PPOFields
    PPOBase = Trainer
elif TRL_HAS_PPO:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the module is experimental; it is the last of its kind
        from trl.experimental.ppo import PPOConfig as PPOBaseConfig
        from trl.experimental.ppo import PPOTrainer as _TRLPPOTrainer

    class PPOBase(_TRLPPOTrainer):
        """TRL's `PPOTrainer` with transformers' construction, training, saving and data methods back in place."""

        __init__ = Trainer.__init__  # TRL's own builds an accelerator without mixed precision
        train = Trainer.train
        save_model = Trainer.save_model
        get_train_dataloader = Trainer.get_train_dataloader
        get_eval_dataloader = Trainer.get_eval_dataloader
        _save_checkpoint = Trainer._save_checkpoint

else:
    PPOBaseConfig = _PPOFields
    PPOBase = Trainer
