"""Which prompts each update takes, and the epochs that updates make."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import IterableDataset

from rmtrl.errors import DataError, UsageError
from rmtrl.generation import sampling_key
from rmtrl.ppo.config import PPOConfig


@dataclass(frozen=True)
class Schedule:
    """The updates of a run, each of a whole batch of episodes; an epoch need not divide into them.

    Args:
        n_prompts (`int`): Prompts of the data set.
        batch_size (`int`): Episodes of an update, over processes.
        num_generations (`int`): Of which so many answer the same prompt.
        n_updates (`int`): Updates of the run.
        n_micro_batches (`int`): Parts that the host counts a batch by.
        seed, data_seed (`int`): Seeds of the sampling, and of the order of prompts.
    """

    n_prompts: int
    batch_size: int
    num_generations: int
    n_updates: int
    n_micro_batches: int
    seed: int
    data_seed: int

    @property
    def prompts_per_batch(self) -> int:
        """Prompts of an update."""
        return self.batch_size // self.num_generations

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
        indices = [index for index in taken for _ in range(self.num_generations)]
        first = step * self.batch_size
        return indices, [sampling_key(self.seed, "episode", first + row) for row in range(self.batch_size)]

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(sampling_key(self.data_seed, "prompts", epoch))
        order: list[int] = torch.randperm(self.n_prompts, generator=generator).tolist()
        return order


def make_schedule(args: PPOConfig, world_size: int, n_prompts: int) -> Schedule:
    """Returns the schedule of a run.

    Raises:
        UsageError: If the sizes do not divide.
        DataError: If there are fewer prompts than an update takes.
    """
    if args.auto_find_batch_size:
        raise UsageError(
            "auto_find_batch_size would start the run anew with other batches; give a per_device_train_batch_size "
            "that fits in memory, with gradient_accumulation_steps for the rest of the batch"
        )
    local = args.per_device_train_batch_size * args.gradient_accumulation_steps
    batch_size, n = local * world_size, args.num_generations
    if local % args.num_mini_batches:
        raise UsageError(
            f"num_mini_batches {args.num_mini_batches} does not divide the {local} episodes of a process's batch "
            "(per_device_train_batch_size × gradient_accumulation_steps)"
        )
    if batch_size % n:
        raise UsageError(f"num_generations {n} does not divide a batch of {batch_size}")
    if n_prompts < batch_size // n:
        raise DataError(
            f"got {n_prompts:,} prompts and a batch takes {batch_size // n:,}; give more prompts, or lower "
            "per_device_train_batch_size or gradient_accumulation_steps"
        )
    n_episodes = int(args.total_episodes or args.num_train_epochs * n_prompts * n)
    n_updates = args.max_steps if args.max_steps > 0 else -(-n_episodes // batch_size)
    data_seed = args.seed if args.data_seed is None else args.data_seed
    return Schedule(n_prompts, batch_size, n, n_updates, args.gradient_accumulation_steps, args.seed, data_seed)


class RestOfEpoch(IterableDataset[dict[str, list[int]]]):
    """The prompts of the updates from the run's present step to the end of its epoch, by micro-batch.

    Args:
        schedule ([`Schedule`]): The updates.
        present (`Callable`): Returns the step that the run is at.
    """

    def __init__(self, schedule: Schedule, present: Callable[[], int]) -> None:
        self.schedule, self.present = schedule, present

    def __iter__(self) -> Iterator[dict[str, list[int]]]:
        schedule, step = self.schedule, self.present()
        epoch, size = schedule.epoch_of(step), schedule.batch_size // schedule.n_micro_batches
        while schedule.epoch_of(step) == epoch:
            indices, _ = schedule.episodes(step)
            for start in range(0, len(indices), size):
                yield {"index": indices[start : start + size]}
            step += 1
