"""Prompts as PPO takes them, text, messages or token ids with the columns of its reward, and which an update takes."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import compress, repeat
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase

from rmtrl.data.messages import CALLS, is_blank
from rmtrl.errors import DataError, UsageError
from rmtrl.generation import sampling_key
from rmtrl.ppo.config import PPOConfig
from rmtrl.reward.rendering import encode_prompt, values_of
from rmtrl.types import Conversation, chats

logger = logging.getLogger(__name__)

RESERVED = ("prompts", "completions", "prompt_ids", "completion_ids", "truncated")


@dataclass(frozen=True)
class Prompts:
    """The prompts of one data set, in its order, those over length left out.

    Args:
        ids (`list[list[int]]`): Token ids of each prompt, generation prompt included.
        prompts (`list[Conversation]`): Each prompt as the reward sees it: messages, or text; without the assistant's
            message that is to be continued.
        rows ([`~datasets.Dataset`]): The other columns, a row a prompt.
        begun (`list[str]`): What a completion of each continues, which a reward sees as its beginning.
        tokenised (`bool`): Whether the prompts were given as token ids, of which their text is not all.
    """

    ids: list[list[int]]
    prompts: list[Conversation]
    rows: Dataset
    begun: list[str] = field(default_factory=list)
    tokenised: bool = False

    def answer(self, index: int, completion: str) -> Conversation:
        """Returns a completion of a prompt as the reward sees it: text, or one message of the assistant's."""
        if isinstance(self.prompts[index], str):
            return completion
        return [{"role": "assistant", "content": (self.begun[index] if self.begun else "") + completion}]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def digest(self) -> int:
        """A number that follows from the token ids of all prompts, worked out once."""
        return sampling_key(self.ids)

    def columns(self, indices: Sequence[int]) -> dict[str, list[Any]]:
        """Returns the other columns at these prompts, a list each."""
        if not self.rows.column_names:
            return {}
        return {name: list(values) for name, values in self.rows[list(indices)].items()}


def read_prompts(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None, name: str = "train"
) -> Prompts:
    """Returns the prompts of a data set, tokenised; those over `max_length` tokens are counted and left out.

    A column `prompt` holds text, which is taken as rendered, or messages, which go through the chat template with its
    generation prompt. Without it a column `input_ids` is taken as it stands, less the padding that an
    `attention_mask` shows.

    Args:
        dataset ([`~datasets.Dataset`]): Rows; columns besides the prompt are kept for the reward.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The policy's tokenizer.
        max_length (`int`, *optional*): Most tokens of a prompt.
        name (`str`): What to call the data set in messages.

    Raises:
        DataError: If there is neither column, a prompt is empty, a column has a reserved name, or no prompt is left.
        RenderingError: If messages meet a tokenizer without chat template.

    Example:

    ```python
    >>> read_prompts(Dataset.from_dict({"prompt": ["Hi.", "Why?"]}), tokenizer, max_length=64).ids
    [[17, 4], [23, 9]]
    ```
    """
    if not hasattr(dataset, "column_names") or not hasattr(dataset, "__len__"):
        raise DataError(f"got {type(dataset).__name__} as {name} data; wanted a datasets.Dataset of prompts")
    names, tokenised = dataset.column_names, "prompt" not in dataset.column_names
    if taken := [column for column in RESERVED if column in names]:
        raise DataError(f"the {name} data has a column {taken[0]!r}, which is a reward's own argument; rename it")
    if tokenised and "input_ids" not in names:
        raise DataError(f"the {name} data has the columns {', '.join(names) or 'none'}; wanted `prompt`")
    if not len(dataset):
        raise DataError(f"the {name} data holds no prompt; give one at least")
    prompts, ids = (_decoded if tokenised else _encoded)(dataset, tokenizer)
    for row, own in enumerate(ids):
        if not own:
            raise DataError(f"prompt {row} of the {name} data is empty; a policy has nothing to continue")
    kept = [row for row, own in enumerate(ids) if max_length is None or len(own) <= max_length]
    n_dropped = len(ids) - len(kept)
    if not kept:
        raise DataError(
            f"none of the {len(ids):,} prompts of the {name} data has at most {max_length} tokens; raise "
            "max_prompt_length, or lower response_length where the model's positions are the limit"
        )
    if n_dropped:
        logger.warning("%s of %s %s prompts are over %s tokens and left out", n_dropped, len(ids), name, max_length)
    rest = dataset.remove_columns([column for column in names if column in ("prompt", "input_ids", "attention_mask")])
    if n_dropped and rest.column_names:
        rest = rest.select(kept)
    asked, begun = map(list, zip(*(_cut(prompts[row], row) for row in kept), strict=True))
    return Prompts([ids[row] for row in kept], asked, rest, begun, tokenised)


def _cut(prompt: Conversation, row: int) -> tuple[Conversation, str]:
    """Returns a prompt without the assistant's message that is to be continued, and that message's text."""
    if isinstance(prompt, str) or prompt[-1]["role"] != "assistant":
        return prompt, ""
    begun = prompt[-1].get("content")
    if not isinstance(begun, str) or any(map(prompt[-1].get, CALLS)) or len(prompt) == 1:
        raise DataError(
            f"prompt {row} ends in an assistant's message; wanted its content as text, and messages before"
        )
    return prompt[:-1], begun


def read_sets(
    given: Dataset | dict[str, Dataset], tokenizer: PreTrainedTokenizerBase, *, max_length: int | None
) -> dict[str, Prompts]:
    """Returns the prompts of each evaluation set by its name; that of a single one is `eval`.

    Args:
        given ([`~datasets.Dataset`] or `dict[str, Dataset]`): One set, or several.
        tokenizer, max_length: As in [`read_prompts`].

    Raises:
        As [`read_prompts`].
    """
    sets = given if isinstance(given, dict) else {"eval": given}
    return {name: read_prompts(own, tokenizer, max_length=max_length, name=name) for name, own in sets.items()}


def _encoded(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Conversation], list[list[int]]]:
    """Returns text or messages as they are, and their token ids."""
    columns = [name for name in ("prompt", "tools", "chat_template_kwargs") if name in dataset.column_names]
    given = {name: values_of(dataset, name) for name in columns}
    prompts = chats(given["prompt"], given)
    if 0 < sum(isinstance(prompt, list) for prompt in prompts) < len(prompts):
        raise DataError("some prompts are text and some are messages; give one form")
    for row, prompt in enumerate(prompts):
        _check(prompt, row)
    return prompts, [encode_prompt(tokenizer, own, index=row, continues=True) for row, own in enumerate(prompts)]


def _check(prompt: Any, row: int) -> None:
    turns = prompt if isinstance(prompt, list) else []
    said = all(isinstance(turn, dict) and isinstance(turn.get("role"), str) for turn in turns)
    if not isinstance(prompt, str | list) or not said:
        raise DataError(f"prompt {row} is {str(prompt)[:80]}; wanted text or messages with role and content")
    if isinstance(prompt, str) and not prompt.strip():
        raise DataError(f"prompt {row} is empty; a policy has nothing to continue")
    if isinstance(prompt, list) and all(map(is_blank, turns)):
        raise DataError(f"prompt {row} has no message with content; a policy has nothing to continue")


def _decoded(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Conversation], list[list[int]]]:
    """Returns the texts of the column `input_ids`, and its lists less what a column `attention_mask` takes out."""
    columns, found = dataset.with_format(None), []
    masks = columns["attention_mask"] if "attention_mask" in columns.column_names else repeat(None)
    for row, (ids, mask) in enumerate(zip(columns["input_ids"], masks, strict=False)):
        if not isinstance(ids, list) or not all(isinstance(token, int) for token in ids):
            raise DataError(f"prompt {row} has the input_ids {str(ids)[:80]}; wanted a list of token ids")
        if any(token < 0 for token in ids):
            raise DataError(f"prompt {row} has input_ids below 0; leave labels' -100 out")
        if mask is not None and len(mask) != len(ids):
            raise DataError(f"prompt {row} has {len(ids)} input_ids and an attention_mask of {len(mask)}")
        found.append(ids if mask is None else list(compress(ids, mask)))
    return list(tokenizer.batch_decode(found, skip_special_tokens=True)), found


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
        return torch.randperm(self.n_prompts, generator=generator).tolist()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        step, size = self.present(), self.batch_size // self.args.gradient_accumulation_steps
        epoch = self.epoch_of(step)
        while self.epoch_of(step) == epoch:
            indices, _ = self.episodes(step)
            for start in range(0, len(indices), size):
                # no token for the host to count: an update counts its own
                yield {"index": indices[start : start + size], "input_ids": torch.empty(0)}
            step += 1
