"""Which prompts each update takes, and the epochs that updates make."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import IterableDataset

from rmtrl.errors import DataError, UsageError
from rmtrl.generation import sampling_key
from rmtrl.ppo.config import PPOConfig


class Schedule(IterableDataset[dict[str, Any]]):
    """The updates of a run, each of a whole batch of episodes; an epoch need not divide into them.

    Iterated over, it gives the prompts from the run's present update to the end of its epoch, by micro-batch.

    Args:
        args ([`PPOConfig`]): Sizes of a batch, length of the run and seeds.
        n_prompts (`int`): Prompts of the data set.
        world_size (`int`): Processes.
        present (`Callable`): Returns the update that the run is at.

    Raises:
        UsageError: If the sizes do not divide.
        DataError: If there are fewer prompts than an update takes.
    """

    def __init__(self, args: PPOConfig, n_prompts: int, world_size: int, present: Callable[[], int]) -> None:
        if args.auto_find_batch_size:
            raise UsageError(
                "auto_find_batch_size would start the run anew with other batches; give a per_device_train_batch_size "
                "that fits in memory, with gradient_accumulation_steps for the rest of the batch"
            )
        local = args.per_device_train_batch_size * args.gradient_accumulation_steps
        if local % args.num_mini_batches:
            raise UsageError(
                f"num_mini_batches {args.num_mini_batches} does not divide the {local} episodes of a process's batch "
                "(per_device_train_batch_size × gradient_accumulation_steps)"
            )
        self.args, self.n_prompts, self.present, self.batch_size = args, n_prompts, present, local * world_size
        self.prompts_per_batch, rest = divmod(self.batch_size, args.num_generations)
        if rest:
            raise UsageError(f"num_generations {args.num_generations} does not divide a batch of {self.batch_size}")
        if n_prompts < self.prompts_per_batch:
            raise DataError(
                f"got {n_prompts:,} prompts and a batch takes {self.prompts_per_batch:,}; give more prompts, or lower "
                "per_device_train_batch_size or gradient_accumulation_steps"
            )
        n_episodes = int(args.total_episodes or args.num_train_epochs * n_prompts * args.num_generations)
        self.n_updates = args.max_steps if args.max_steps > 0 else -(-n_episodes // self.batch_size)

    def epoch_of(self, step: int) -> int:
        """Returns the pass over the prompts that an update begins in."""
        return step * self.prompts_per_batch // self.n_prompts

    def episodes(self, step: int) -> tuple[list[int], list[int]]:
        """Returns the prompt of each episode of an update, and the key that its sampling follows from.

        They are taken in a new random order on every pass over the data set, which follows from the seed alone.
        """
        first = step * self.prompts_per_batch
        places = range(first, first + self.prompts_per_batch)
        orders = {epoch: self._order(epoch) for epoch in {place // self.n_prompts for place in places}}
        taken = [orders[place // self.n_prompts][place % self.n_prompts] for place in places]
        indices = [index for index in taken for _ in range(self.args.num_generations)]
        first = step * self.batch_size
        return indices, [sampling_key(self.args.seed, "episode", first + row) for row in range(self.batch_size)]

    def _order(self, epoch: int) -> list[int]:
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        generator = torch.Generator().manual_seed(sampling_key(seed, "prompts", epoch))
        order: list[int] = torch.randperm(self.n_prompts, generator=generator).tolist()
        return order

    def __iter__(self) -> Iterator[dict[str, Any]]:
        step, size = self.present(), self.batch_size // self.args.gradient_accumulation_steps
        epoch = self.epoch_of(step)
        while self.epoch_of(step) == epoch:
            indices, _ = self.episodes(step)
            for start in range(0, len(indices), size):
                # no token for the host to count: an update counts its own
                yield {"index": indices[start : start + size], "input_ids": torch.empty(0)}
            step += 1
