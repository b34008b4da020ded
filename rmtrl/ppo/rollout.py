"""Responses sampled and looked at: their log probabilities under policy and reference, their values and scores."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.logging import get_logger
from trl.models import unwrap_model_for_generation

from rmtrl.errors import ModelError
from rmtrl.generation import sampling_key
from rmtrl.ppo.batches import make_plan
from rmtrl.ppo.episodes import Episodes, Rollout, Scores
from rmtrl.ppo.logprobs import response_logits, token_logprobs
from rmtrl.ppo.prompts import Prompts
from rmtrl.ppo.reward_model import closes_cut_turns, score_episodes

logger = get_logger(__name__)


class PPORollout:
    """The part of [`PPOTrainer`] that makes episodes and scores them."""

    def rollout(self: Any, prompts: Prompts, indices: Sequence[int], keys: Sequence[int], *, step: int = 0) -> Rollout:
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
        self.check_finite(
            logprobs, "log probabilities of the policy are", ref_logprobs, "log probabilities of the reference are",
            values, "values of the value model are",
        )  # fmt: skip
        mask = episodes.mask.to(self.accelerator.device)
        return Rollout(episodes, plan, mask, logprobs, ref_logprobs, values)

    def sample(self: Any, prompts: Prompts, indices: Sequence[int], keys: Sequence[int]) -> Episodes:
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

    def generate(self: Any, prompt_ids: list[list[int]], keys: list[int]) -> list[list[int]]:
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
        self: Any, episodes: Episodes, plan: Any, *, reference: bool = False
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
        self: Any, episodes: Episodes, rows: Sequence[int], *, reference: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch = [part.to(self.accelerator.device) for part in episodes.batch(rows)]
        with self.accelerator.autocast():  # the model's own wrapper does so from the start of training only
            if reference and self.ref_model is not None:
                logits = response_logits(self.ref_model, batch[0], batch[1], batch[2], batch[3] - 1)
                return token_logprobs(logits, batch[0][batch[2], batch[3]], self.args.temperature)[0], None
            logprobs, _, values = self.model_wrapped(*batch, self.args.temperature, reference=reference)
        return logprobs, values

    def score(self: Any, rollout: Rollout) -> Scores:
        """Returns the score of each response, over all processes.

        Raises:
            RewardError: If the reward fails, or returns something else than a finite number a response.
        """
        self._warn_of_cut_turns(rollout.episodes)
        scores, parts = self.score_with(self.reward, self.train_prompts, rollout.episodes)
        return Scores(self.with_missing_eos(scores, rollout.episodes), parts)

    def _warn_of_cut_turns(self: Any, episodes: Episodes) -> None:
        handled = self.args.missing_eos_penalty is not None or self.args.missing_eos_score is not None
        if any(episodes.truncated) and not handled and closes_cut_turns(self.reward):
            logger.warning_once(
                "a response was cut off at response_length, and the reward reads text, in which its turn is closed "
                "as if it had ended; set missing_eos_penalty or missing_eos_score, or add a truncated_filter()"
            )

    def with_missing_eos(self: Any, scores: torch.Tensor, episodes: Episodes) -> torch.Tensor:
        """Returns the scores, `(B,)`, with what the settings say of responses that were cut off."""
        cut = torch.tensor(episodes.truncated, device=scores.device)
        if self.args.missing_eos_penalty is not None:
            return scores - self.args.missing_eos_penalty * cut
        if self.args.missing_eos_score is not None:
            return scores.masked_fill(cut, self.args.missing_eos_score)
        return scores

    def score_with(
        self: Any, reward: Callable[..., Any], prompts: Prompts, episodes: Episodes
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Returns what a reward gives each response, `(B,)`, and its parts, each process scoring its own rows."""
        own = self._own_rows(len(episodes))
        values, parts = score_episodes(reward, self.processing_class, prompts, episodes, own)
        scores = self._shared(own, torch.tensor(values), len(episodes)).float()
        shared = {n: self._shared(own, torch.tensor(part), len(episodes)).cpu().numpy() for n, part in parts.items()}
        return scores, shared

    def _own_rows(self: Any, n: int) -> list[int]:
        """Returns the rows of n that this process generates and scores: a run of them."""
        rank, world_size = self.accelerator.process_index, self.accelerator.num_processes
        return list(range(rank * n // world_size, (rank + 1) * n // world_size))

    def _shared(
        self: Any, rows: Sequence[int], values: torch.Tensor, n: int, *, largest: bool = False
    ) -> torch.Tensor:
        """Returns `(n, …)` on every process from the rows that each has; every row is some one process's."""
        if largest:
            return self.accelerator.gather(values.to(self.accelerator.device)).max()[None]
        whole = torch.zeros(n, *values.shape[1:], dtype=values.dtype, device=self.accelerator.device)
        whole[list(rows)] = values.to(self.accelerator.device)
        return self.accelerator.reduce(whole, "sum")

    def _count_stops(self: Any, episodes: Episodes) -> float:
        ends = set(self.generator.end_token_ids)
        return float(sum(token in ends for ids in episodes.completion_ids for token in ids))
