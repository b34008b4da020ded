"""What an update learns from and how: advantages from scores, mini-batches, the losses of a pass, and the figures."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from rmtrl.generation import sampling_key
from rmtrl.ppo.config import PPOConfig
from rmtrl.ppo.loss import gae, kl_terms, policy_loss, shaped_rewards, value_loss, whiten
from rmtrl.ppo.rollout import Rollout, Scores

_UNDEFINED = ("objective/score_length_correlation", "val/explained_variance")  # where one side does not vary


@dataclass(frozen=True)
class Experience:
    """What an update learns from.

    Args:
        rollout ([`Rollout`]): The episodes and their log probabilities.
        scores ([`Scores`]): Their scores.
        kl (`(B, R)` tensor): KL term of each token, by the configured estimator.
        kl_coef (`float`): What it was charged at.
        rewards (`(B, R)` tensor): Score and KL penalty by token.
        advantages (`(B, R)` tensor): Whitened advantages.
        returns (`(B, R)` tensor): What the value model learns.
    """

    rollout: Rollout
    scores: Scores
    kl: torch.Tensor
    kl_coef: float
    rewards: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor


def make_experience(rollout: Rollout, scores: Scores, kl_coef: float, args: PPOConfig) -> Experience:
    """Returns the episodes with rewards by token, whitened advantages and returns."""
    mask = rollout.mask
    kl = kl_terms(rollout.logprobs, rollout.ref_logprobs, args.kl_estimator) * mask
    rewards = shaped_rewards(scores.scores, kl, mask, kl_coef)
    if args.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False)
    advantages, returns = gae(rewards, rollout.values, mask, args.gamma, args.lam)
    return Experience(rollout, scores, kl, kl_coef, rewards, whiten(advantages, mask), returns)


def mini_batches(args: PPOConfig, step: int) -> Iterator[int]:
    """Returns the mini-batch of every optimizer step of an update: all of them a pass, each time in a new order."""
    for epoch in range(args.num_ppo_epochs):
        generator = torch.Generator().manual_seed(sampling_key(args.seed, "order", step, epoch))
        yield from torch.randperm(args.num_mini_batches, generator=generator).tolist()


def backward(
    accelerator: Accelerator, model: Any, experience: Experience, mini_batch: int, args: PPOConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds the gradient of a mini-batch's loss, a mean over all its tokens.

    Returns the loss of this process's last pass and the sums of [`SUMS`] over this process's tokens.

    Args:
        accelerator ([`~accelerate.Accelerator`]): Knows processes and device.
        model ([`PolicyAndValue`]): Policy and value model, in the wrapper they are trained in.
        experience ([`Experience`]): The batch.
        mini_batch (`int`): Which of its mini-batches.
        args ([`PPOConfig`]): The weights of the losses, and their clips.
    """
    rollout, world_size = experience.rollout, accelerator.num_processes
    passes = rollout.plan.own(mini_batch, accelerator.process_index, world_size)
    n_tokens = rollout.mask[rollout.plan.rows(mini_batch)].sum()
    # DeepSpeed would divide by the accumulation steps once more
    settings = {"scale_wrt_gas": False} if accelerator.distributed_type == DistributedType.DEEPSPEED else {}
    totals = torch.zeros(len(SUMS), device=accelerator.device)
    for number, rows in enumerate(passes, 1):
        accelerator.sync_gradients = last = number == len(passes)
        with nullcontext() if last else accelerator.no_sync(model):
            loss, sums = token_losses(accelerator, model, experience, rows, args)
            accelerator.backward(loss * (world_size / n_tokens), **settings)  # processes average their gradients
        totals += sums
    return loss.detach(), totals


SUMS = (
    "n", "policy/approxkl_avg", "policy/clipfrac_avg", "policy/entropy_avg", "loss/policy_avg", "loss/value_avg",
    "val/clipfrac_avg", "val/ratio", "val/ratio_var",
)  # fmt: skip
"""What [`token_losses`] sums over tokens, by the key it is logged under; `n` counts them."""


def token_losses(
    accelerator: Accelerator, model: Any, experience: Experience, rows: Sequence[int], args: PPOConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the loss of some rows, summed over their tokens, and the sums of [`SUMS`]."""
    rollout, mask = experience.rollout, experience.rollout.mask[rows]

    def at(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[rows][mask]

    batch = [part.to(accelerator.device) for part in rollout.episodes.batch(rows)]
    logprobs, entropy, values = model(*batch, args.temperature)
    old = at(rollout.logprobs)
    policy = policy_loss(logprobs, old, at(experience.advantages), args.cliprange)
    value = value_loss(values, at(rollout.values), at(experience.returns), args.cliprange_value)
    loss = policy.loss.sum() + args.vf_coef * value.loss.sum()
    if args.entropy_coef:
        loss = loss - args.entropy_coef * entropy.sum()
    distance = 0.5 * (logprobs - old).square()
    figures = (mask, distance, policy.clipped, entropy, policy.loss, value.loss, value.clipped, policy.ratio,
               (policy.ratio - 1).square())  # fmt: skip
    return loss, torch.stack([figure.detach().sum().float() for figure in figures])


def over_tokens(accelerator: Accelerator, sums: torch.Tensor) -> dict[str, float]:
    """Returns the figures of some steps' sums, means over their tokens on all processes."""
    totals = accelerator.reduce(sums, "sum")
    figures = dict(zip(SUMS[1:], (totals[1:] / totals[0]).tolist(), strict=True))
    figures["val/ratio_var"] -= (figures["val/ratio"] - 1) ** 2
    return figures


def rollout_metrics(experience: Experience, num_generations: int = 1) -> dict[str, float]:
    """Returns the figures of one batch of episodes, each a mean over its responses or their tokens.

    TRL's keys and their meaning, sums over the tokens of a response where TRL sums; and spread, length and their
    correlation with the score.

    Args:
        experience ([`Experience`]): The batch.
        num_generations (`int`): Responses to each prompt, which stand together.
    """
    rollout, scores = experience.rollout, experience.scores.scores
    mask, lengths = rollout.mask, rollout.mask.sum(1).float()
    kl = experience.kl.sum(1)
    penalty = -experience.kl_coef * kl
    values, returns = rollout.values[mask], experience.returns[mask]
    figures: dict[str, Any] = {
        "objective/kl": kl.mean(),
        "objective/kl_k1": (rollout.logprobs - rollout.ref_logprobs).sum(1).mean(),
        "objective/entropy": -rollout.logprobs.sum(1).mean(),
        "objective/non_score_reward": penalty.mean(),
        "objective/rlhf_reward": (penalty + scores).mean(),
        "objective/scores": scores.mean(),
        "objective/scores_std": scores.std(correction=0),
        "objective/response_length_tokens": lengths.mean(),
        "objective/truncated": torch.tensor(rollout.episodes.truncated).float().mean(),
        "objective/score_length_correlation": _correlation(scores, lengths),
        # 1 is a perfect critic, 0 one that knows no more than the mean
        "val/explained_variance": 1 - (returns - values).var(correction=0) / returns.var(correction=0),
    }
    if num_generations > 1:
        within = scores.view(-1, num_generations).std(dim=1, correction=0)
        figures["objective/within_prompt_std"] = within.mean()
    figures |= {f"reward/{name}": part.mean() for name, part in experience.scores.parts.items()}
    return {name: float(value) for name, value in figures.items() if name not in _UNDEFINED or torch.isfinite(value)}


def _correlation(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Returns Pearson's correlation; NaN where either does not vary."""
    x, y = x - x.mean(), y - y.mean()
    return (x * y).sum() / (x.square().sum() * y.square().sum()).sqrt()
