"""What passes from step to step of an update: episodes sampled, their log probabilities, their advantages."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence

from rmtrl.ppo.batches import Plan


@dataclass(frozen=True)
class Episodes:
    """B prompts and their responses, over all processes.

    Args:
        indices (`list[int]`): Which prompt of its data set each row continues.
        prompt_ids (`list[list[int]]`): Token ids of each prompt.
        completion_ids (`list[list[int]]`): Token ids of each response, the stop token included.
        truncated (`list[bool]`): Whether the response was cut off before a stop token.
    """

    indices: list[int]
    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    truncated: list[bool]

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each row, prompt and response."""
        return [len(p) + len(c) for p, c in zip(self.prompt_ids, self.completion_ids, strict=True)]

    @cached_property
    def mask(self) -> torch.Tensor:
        """Where there is a response token, `(B, R)` bool, on the CPU."""
        lengths = torch.tensor([len(ids) for ids in self.completion_ids])
        return torch.arange(int(lengths.max())) < lengths[:, None]

    def batch(self, rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns token ids and attention mask of some rows, `(b, T)`, and row and column of each response token.

        Rows are padded on the right; the response tokens come in the order of `mask[rows]`.
        """
        own = [torch.tensor(self.prompt_ids[row] + self.completion_ids[row]) for row in rows]
        lengths = torch.tensor([len(ids) for ids in own])
        starts = torch.tensor([len(self.prompt_ids[row]) for row in rows])
        places = torch.arange(int(lengths.max()))
        response = (places >= starts[:, None]) & (places < lengths[:, None])
        at, columns = response.nonzero(as_tuple=True)
        return pad_sequence(own, batch_first=True), (places < lengths[:, None]).long(), at, columns


@dataclass(frozen=True)
class Rollout:
    """Episodes with what policy, reference and value model make of them, on the accelerator.

    Args:
        episodes ([`Episodes`]): What was sampled.
        plan ([`Plan`]): Which rows are computed together.
        mask (`(B, R)` bool tensor): Where there is a response token.
        logprobs, ref_logprobs (`(B, R)` float32 tensors): Log probability of each token; 0 outside the mask.
        values (`(B, R)` float32 tensor): Value of the state before each token; 0 outside the mask.
    """

    episodes: Episodes
    plan: Plan
    mask: torch.Tensor
    logprobs: torch.Tensor
    ref_logprobs: torch.Tensor
    values: torch.Tensor


@dataclass(frozen=True)
class Scores:
    """What the reward gave.

    Args:
        scores (`(B,)` float32 tensor): Score of each response.
        parts (`dict[str, (B,) array]`): What a composed reward's steps gave.
    """

    scores: torch.Tensor
    parts: dict[str, NDArray]  # type: ignore[type-arg]


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


def rollout_metrics(experience: Experience, num_generations: int = 1) -> dict[str, float]:
    """Returns the figures of one batch of episodes, each a mean over its responses or their tokens.

    TRL's keys and their meaning, sums over the tokens of a response where TRL sums; and spread, length and their
    correlation with the score.

    Args:
        experience ([`Experience`]): The batch.
        num_generations (`int`): Responses to each prompt, which stand together.
    """
    rollout, scores = experience.rollout, experience.scores.scores
    mask, kl = rollout.mask, experience.kl.sum(1)
    lengths = mask.sum(1).float()
    penalty = -experience.kl_coef * kl
    log_ratio = (rollout.logprobs - rollout.ref_logprobs).sum(1)
    figures = {
        "objective/kl": kl.mean(),
        "objective/kl_k1": log_ratio.mean(),
        "objective/entropy": -rollout.logprobs.sum(1).mean(),
        "objective/non_score_reward": penalty.mean(),
        "objective/rlhf_reward": (penalty + scores).mean(),
        "objective/scores": scores.mean(),
        "objective/scores_std": scores.std(correction=0),
        "objective/response_length_tokens": lengths.mean(),
        "objective/truncated": torch.tensor(rollout.episodes.truncated).float().mean(),
        "objective/score_length_correlation": _correlation(scores, lengths),
        "val/explained_variance": _explained_variance(rollout.values[mask], experience.returns[mask]),
    }
    if num_generations > 1:
        within = scores.view(-1, num_generations).std(dim=1, correction=0)
        figures["objective/within_prompt_std"] = within.mean()
    figures |= {f"reward/{name}": torch.as_tensor(part, dtype=torch.float64).mean() for name, part in
                experience.scores.parts.items()}  # fmt: skip
    return {name: float(value) for name, value in figures.items() if name not in _UNDEFINED or torch.isfinite(value)}


_UNDEFINED = ("objective/score_length_correlation", "val/explained_variance")  # where one side does not vary


def _correlation(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Pearson's correlation; NaN where either does not vary."""
    x, y = x - x.mean(), y - y.mean()
    return (x * y).sum() / (x.square().sum() * y.square().sum()).sqrt()


def _explained_variance(values: torch.Tensor, returns: torch.Tensor) -> torch.Tensor:
    """1 − Var(G − V) / Var(G): 1 is a perfect critic, 0 one that knows no more than the mean."""
    return 1 - (returns - values).var(correction=0) / returns.var(correction=0)
