"""Episodes of a policy: sampled, cut into passes of like length, and looked at by models and reward.

Every process generates and scores its share of the rows, computes its share of each pass, and knows all results.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from rmtrl.errors import RewardError
from rmtrl.ppo.config import PPOConfig
from rmtrl.ppo.loss import response_logits, token_logprobs
from rmtrl.ppo.prompts import Prompts
from rmtrl.ppo.reward_model import Reward, closes_cut_turns
from rmtrl.ppo.rewards import call_reward, shown
from rmtrl.reward.batching import Costs, like_lengths

logger = get_logger(__name__)

_CALL_TOKENS = {"cpu": 96, "accelerator": 2048}  # what a forward takes before its first token, in tokens


@dataclass(frozen=True)
class Plan:
    """Rows of a batch by mini-batch, and by forward pass within one.

    A row stands beside the same rows in the pass that takes its first log probability and in every pass that trains
    on it, so the ratio starts at exactly 1 in any precision.

    Args:
        mini_batches (`tuple[tuple[tuple[int, ...], ...], ...]`): Rows of each forward pass of each mini-batch, over
            all processes; process r of w takes every w-th row from the r-th on.
    """

    mini_batches: tuple[tuple[tuple[int, ...], ...], ...]

    def own(self, mini_batch: int, rank: int, world_size: int) -> list[list[int]]:
        """Returns this process's rows of a mini-batch, a list a forward pass; every process has as many passes."""
        return [list(rows[rank::world_size]) for rows in self.mini_batches[mini_batch]]

    def rows(self, mini_batch: int) -> list[int]:
        """Returns the rows of a mini-batch over all processes."""
        return [row for rows in self.mini_batches[mini_batch] for row in rows]


def make_plan(
    lengths: Sequence[int], n_mini_batches: int, *, rows_per_pass: int, world_size: int, seed: int, device_type: str
) -> Plan:
    """Returns a plan: rows dealt to mini-batches at random, each cut where the least padding is computed.

    Args:
        lengths (`Sequence[int]`): Tokens of each row.
        n_mini_batches (`int`): Divides the number of rows.
        rows_per_pass (`int`): Most rows of one process in a forward pass.
        world_size (`int`): Processes; divides the rows of a mini-batch.
        seed (`int`): Seed of the deal.
        device_type (`str`): `"cpu"` or another: a pass on an accelerator is worth more padding.

    Example:

    ```python
    >>> plan = make_plan([9, 1, 9, 1], 1, rows_per_pass=4, world_size=1, seed=0, device_type="cpu")
    >>> sorted(map(sorted, plan.mini_batches[0]))
    [[0, 1, 2, 3]]
    ```
    """
    call = _CALL_TOKENS["cpu" if device_type == "cpu" else "accelerator"]
    costs = Costs(cell=0.0, call=call, most_tokens=sys.maxsize, most_rows=rows_per_pass)
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed)).tolist()
    size = len(lengths) // n_mini_batches
    mini_batches = []
    for start in range(0, len(order), size):
        rows = sorted(order[start : start + size], key=lambda row: lengths[row])
        groups = [rows[first : first + world_size] for first in range(0, size, world_size)]  # a row a process
        passes = like_lengths([lengths[group[-1]] for group in reversed(groups)], costs)  # longest first
        places = [[len(groups) - 1 - place for place in reversed(own)] for own in reversed(passes)]
        mini_batches.append(tuple(tuple(row for place in own for row in groups[place]) for own in places))
    return Plan(tuple(mini_batches))


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
        starts = torch.tensor([len(self.prompt_ids[row]) for row in rows])[:, None]
        ends = torch.tensor([self.lengths[row] for row in rows])[:, None]
        places = torch.arange(int(ends.max()))
        at, columns = ((places >= starts) & (places < ends)).nonzero(as_tuple=True)
        return pad_sequence(own, batch_first=True), (places < ends).long(), at, columns

    def texts(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[int]) -> list[str]:
        """Returns the text of some responses, special tokens left out."""
        return list(tokenizer.batch_decode([self.completion_ids[row] for row in rows], skip_special_tokens=True))


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
    parts: dict[str, NDArray[np.float64]]


def own_rows(accelerator: Accelerator, n: int) -> list[int]:
    """Returns the rows of n that this process generates and scores: a run of them, so that all stand in order."""
    rank, world_size = accelerator.process_index, accelerator.num_processes
    return list(range(rank * n // world_size, (rank + 1) * n // world_size))


@torch.no_grad()
def token_figures(
    accelerator: Accelerator, model: Any, ref_model: Any, episodes: Episodes, plan: Plan, temperature: float
) -> Rollout:
    """Returns the episodes with log probability and reference's of each response token, and the value before it.

    Args:
        accelerator ([`~accelerate.Accelerator`]): Knows processes, device and precision.
        model ([`PolicyAndValue`]): Policy and value model, in the wrapper they are trained in.
        ref_model ([`~transformers.PreTrainedModel`]): The reference; `None` where it is an adapter of the policy.
        episodes, plan: The rows and which of them are computed together.
        temperature (`float`): Divides the logits.
    """
    mask, figures = episodes.mask, torch.zeros(3, *episodes.mask.shape, device=accelerator.device)
    model.train()  # as in the update: dropout is off, and the same kernels run
    for mini_batch in range(len(plan.mini_batches)):
        for rows in plan.own(mini_batch, accelerator.process_index, accelerator.num_processes):
            batch = ids, attended, at, columns = [part.to(accelerator.device) for part in episodes.batch(rows)]
            with accelerator.autocast():  # the model's own wrapper does so from the start of training only
                logprobs, _, values = model(*batch, temperature)
                if ref_model is None:
                    ref_logprobs = model(*batch, temperature, reference=True)[0]
                else:
                    logits = response_logits(ref_model, ids, attended, at, columns - 1)
                    ref_logprobs = token_logprobs(logits, ids[at, columns], temperature)[0]
            row, column = mask[rows].nonzero(as_tuple=True)
            figures[:, torch.tensor(rows)[row], column] = torch.stack([logprobs, ref_logprobs, values])
    return Rollout(episodes, plan, mask.to(accelerator.device), *accelerator.reduce(figures, "sum"))


def engine_gap(accelerator: Accelerator, rollout: Rollout, logprobs: Sequence[Sequence[float]]) -> float:
    """Returns the mean absolute difference a token between the policy's log probabilities and another engine's.

    Args:
        accelerator ([`~accelerate.Accelerator`]): Knows processes and device.
        rollout ([`Rollout`]): With the policy's own.
        logprobs (`Sequence[Sequence[float]]`): The engine's, of the tokens of this process's rows.
    """
    own = own_rows(accelerator, len(rollout.episodes))
    theirs = torch.tensor([value for row in logprobs for value in row], device=accelerator.device)
    apart = (rollout.logprobs[own][rollout.mask[own]] - theirs).abs()
    total, n = accelerator.reduce(torch.stack([apart.sum(), torch.ones_like(apart).sum()]), "sum").tolist()
    return float(total / n)


def score_episodes(
    reward: Reward, tokenizer: PreTrainedTokenizerBase, prompts: Prompts, episodes: Episodes, rows: Sequence[int]
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """Returns what a reward gives some episodes, `(n,)`, and what its parts gave, where it has parts.

    Args:
        reward: In TRL's form. It receives messages where the prompt is messages, else text; the other columns of the
            data; and `prompt_ids`, `completion_ids` and `truncated`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Decodes.
        prompts ([`Prompts`]): The data set of the prompts.
        episodes ([`Episodes`]): All episodes.
        rows (`Sequence[int]`): Which of them to score.

    Raises:
        RewardError: If the reward fails, or returns something else than a number an episode that float32 holds.
    """
    indices = [episodes.indices[row] for row in rows]
    texts = episodes.texts(tokenizer, rows)
    given = [prompts.prompts[index] for index in indices]
    answers = [prompts.answer(index, text) for index, text in zip(indices, texts, strict=True)]
    columns = {
        name: [getattr(episodes, name)[row] for row in rows] for name in ("prompt_ids", "completion_ids", "truncated")
    }
    values = call_reward(reward, given, answers, **columns, **prompts.columns(indices))
    too_large = np.flatnonzero(np.abs(values) > np.finfo(np.float32).max)
    if len(too_large):
        row = int(too_large[0])
        raise RewardError(
            f"the reward {getattr(reward, '__name__', type(reward).__name__)!r} gave {values[row]:g} for completion "
            f"{row}; wanted a number that float32 holds (3.4e38 at most): {shown(given[row], texts[row])}"
        )
    parts = getattr(reward, "parts_", {})
    return values, {name: np.asarray(part, dtype=np.float64) for name, part in parts.items()}


def with_missing_eos(scores: torch.Tensor, truncated: Sequence[bool], args: PPOConfig) -> torch.Tensor:
    """Returns the scores, `(B,)`, with what the settings say of responses that were cut off."""
    cut = torch.tensor(truncated, device=scores.device)
    if args.missing_eos_penalty is not None:
        return scores - args.missing_eos_penalty * cut
    if args.missing_eos_score is not None:
        return scores.masked_fill(cut, args.missing_eos_score)
    return scores


def warn_of_cut_turns(reward: Reward, truncated: Sequence[bool], args: PPOConfig) -> None:
    """Says once that a reward reads text, in which responses that were cut off look finished."""
    handled = args.missing_eos_penalty is not None or args.missing_eos_score is not None
    if any(truncated) and not handled and closes_cut_turns(reward):
        logger.warning_once(
            "a response was cut off at response_length, and the reward reads text, in which its turn is closed "
            "as if it had ended; set missing_eos_penalty or missing_eos_score, or add a truncated_filter()"
        )
