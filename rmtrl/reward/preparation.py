"""A data set of pairs as token ids, rendered as whoever scores renders them, so that no row is lost in silence."""

import json
import sys
from collections.abc import Mapping
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
from accelerate import PartialState
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from rmtrl.data.messages import is_blank, is_filled, shared_prefix_length, without_fillings
from rmtrl.errors import DataError, ModelError, RenderingError
from rmtrl.models import n_embeddings, position_limit, position_tables
from rmtrl.reward.rendering import completion_starts, starts_twice, try_encode, values_of
from rmtrl.types import Conversation, chats

logger = get_logger(__name__)


def prepare_text(
    dataset: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase, *, constants: Mapping[str, Any],
    starts: bool = False, num_proc: int | None = None,
) -> Dataset | IterableDataset:  # fmt: skip
    """Returns pairs with `chosen_ids` and `rejected_ids`, rendered as whoever scores will render them.

    `_empty_response` marks pairs with a blank response, and `_own_prompts` those whose sides are chats that share no
    turn: it holds the first token of each answer, −1 where a prompt is shared. A string column `domain` becomes the
    class label `domain_id`, but for streamed sets.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]): Pairs of text or messages.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Renders.
        constants (`Mapping[str, Any]`): Tools and template variables of pairs without such columns.
        starts (`bool`): Whether to add `chosen_start` and `rejected_start`, the first token of each last message.
        num_proc (`int`, *optional*): Processes that render.

    Raises:
        RenderingError: If a pair cannot be rendered, with its number.
    """
    whole = isinstance(dataset, Dataset)
    features = dataset.features or {}
    settings: dict[str, Any] = {"num_proc": num_proc, "desc": "Tokenizing pairs"} if whole else {}
    ours: dict[str, Any] = {"tokenizer": tokenizer, "constants": dict(constants), "starts": starts}
    ours["filled"] = {name: feature for name, feature in features.items() if is_filled(feature)}
    with PartialState().main_process_first():
        dataset = dataset.map(_tokenized, batched=True, with_indices=True, fn_kwargs=ours, **settings)
    if not isinstance(dataset, Dataset):
        return dataset
    if "domain" in dataset.column_names and dataset.features["domain"].dtype in ("string", "large_string"):
        domains = ["unknown" if domain is None else domain for domain in dataset["domain"]]
        dataset = dataset.remove_columns("domain").add_column("domain_id", domains).class_encode_column("domain_id")
    return dataset


def constants_of(dataset: Dataset | IterableDataset) -> dict[str, Any]:
    """Returns the tools and template variables that every pair of a set has alike; of a streamed set, none."""
    if not isinstance(dataset, Dataset):
        return {}
    columns = {
        name: values_of(dataset, name) for name in ("tools", "chat_template_kwargs") if name in dataset.column_names
    }
    columns = {name: [json.loads(v) if isinstance(v, str) else v for v in own] for name, own in columns.items()}
    return {name: own[0] for name, own in columns.items() if own[0] and all(value == own[0] for value in own)}


def _tokenized(
    batch: dict[str, list[Any]], indices: list[int], *, tokenizer: PreTrainedTokenizerBase,
    constants: Mapping[str, Any], starts: bool, filled: Mapping[str, Any],
) -> dict[str, list[Any]]:  # fmt: skip
    columns = {name: without_fillings(own, [filled[name]]) if name in filled else own for name, own in batch.items()}
    columns |= {name: [value] * len(indices) for name, value in constants.items() if name not in columns}
    made: dict[str, list[Any]] = {"_empty_response": [False] * len(indices)}
    sides: list[list[Conversation]] = []
    for side in ("chosen", "rejected"):
        answers = columns[side]
        prompts = columns.get("prompt") or [type(answer)() for answer in answers]
        whole = chats([p + a for p, a in zip(prompts, answers, strict=True)], columns)
        encoded: Any = try_encode(tokenizer, whole, start_twice=True)
        for index, ids in zip(indices, encoded, strict=True):
            if isinstance(ids, RenderingError):
                raise RenderingError(f"{side} of pair {index}: {ids}", index=index)
        made[f"{side}_ids"] = encoded
        sides.append(whole)
        if starts:
            made[f"{side}_start"] = completion_starts(tokenizer, whole, encoded)
        made["_empty_response"] = [
            blank or _is_blank(a) for blank, a in zip(made["_empty_response"], answers, strict=True)
        ]
    pairs = zip(*sides, made["chosen_ids"], made["rejected_ids"], strict=True)
    made["_own_prompts"] = [
        [-1, -1] if _shares_prompt(c, r) else _answer_starts(tokenizer, [c, r], ids) for c, r, *ids in pairs
    ]
    return made


def _shares_prompt(chosen: Conversation, rejected: Conversation) -> bool:
    """Whether two chats have a turn in common before their answers, beside a system message; of text, tokens tell."""
    if isinstance(chosen, str) or isinstance(rejected, str):
        return True
    shared = takewhile(lambda turns: turns[0] == turns[1], zip(chosen[:-1], rejected[:-1], strict=False))
    return any(turn.get("role") not in ("system", "developer") for turn, _ in shared)


def _answer_starts(tokenizer: PreTrainedTokenizerBase, sides: list[Any], ids: list[list[int]]) -> list[int]:
    """Returns where each side's answer starts: where the other's, in its place, would be told from it."""
    exchanged = [own[:-1] + other[-1:] for own, other in zip(sides, reversed(sides), strict=True)]
    encoded = try_encode(tokenizer, exchanged, start_twice=True)
    if sides[0][-1] == sides[1][-1] or any(isinstance(own, RenderingError) for own in encoded):
        return completion_starts(tokenizer, sides, ids)
    return [shared_prefix_length(own, other) for own, other in zip(ids, encoded, strict=True)]  # type: ignore[arg-type]


def count_too_long(tokenized: Dataset, kept: Dataset, name: str, max_length: int | None) -> int:
    """Returns how many pairs TRL left out for their length, and says so.

    Raises:
        DataError: If none is left.
    """
    dropped = len(tokenized) - len(kept)
    if len(kept) == 0:
        raise DataError(
            f"all {len(tokenized):,} pairs of the {name} set are longer than max_length = {max_length} tokens "
            f"(the shortest needs {SetTokens.of(tokenized).lengths.min()}); raise max_length"
        )
    if dropped:
        logger.warning(
            f"{dropped:,} of {len(tokenized):,} pairs of the {name} set are longer than max_length = {max_length} "
            "tokens and are left out whole"
        )
    return dropped


def _is_blank(response: Any) -> bool:
    if isinstance(response, str):
        return not response.strip()
    return not response or is_blank(response[-1])


class SetTokens(NamedTuple):
    """What a set of pairs asks of a model: tokens of each pair's longer side, the highest, pairs that start twice."""

    lengths: NDArray[np.int64]
    highest: int
    start_twice: int

    @classmethod
    def of(cls, dataset: Dataset, bos_token_id: int | None = None) -> "SetTokens":
        """Returns that of the columns `chosen_ids` and `rejected_ids`."""
        lengths, highest, twice = [], 0, 0
        for table in dataset.select_columns(["chosen_ids", "rejected_ids"]).with_format("arrow").iter(10_000):
            sides = [column.combine_chunks() for column in table.itercolumns()]
            lengths.append(np.maximum(*(pc.list_value_length(ids).to_numpy() for ids in sides)))
            highest = max(highest, *(pc.max(ids.flatten()).as_py() or 0 for ids in sides))
            starts = zip(*(pc.list_slice(ids, 0, 2).to_pylist() for ids in sides), strict=True)
            twice += sum([bos_token_id] * 2 in both for both in starts)
        return cls(np.concatenate(lengths), highest, twice)


def check_fits(
    model: Any, tokens: SetTokens, name: str, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None,
    strict: bool,
) -> None:  # fmt: skip
    """Warns of a set's pairs that the model was not made for, or that a scorer of it will refuse.

    Args:
        model ([`~transformers.PreTrainedModel`]): The model.
        tokens ([`SetTokens`]): What the set asks of it.
        name (`str`): The set's, for the message.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): What the tokens are of.
        max_length (`int`, *optional*): Longer pairs do not reach the model.
        strict (`bool`): Whether a second start token raises.

    Raises:
        ModelError: If the model has no embedding of a token or of a position.
        RenderingError: If sequences start with the start token twice.
    """
    if tokens.highest >= n_embeddings(model):
        raise ModelError(
            f"the {name} set has token {tokens.highest:,} ({tokenizer.convert_ids_to_tokens(tokens.highest)!r}), the "
            f"model has {n_embeddings(model):,} embeddings; take the model's own tokenizer, or call its "
            "resize_token_embeddings(len(tokenizer))"
        )
    limit = position_limit(model) or sys.maxsize
    longer = int(((tokens.lengths > limit) & (tokens.lengths <= (max_length or sys.maxsize))).sum())
    if longer:
        said = (
            f"{longer:,} of {len(tokens.lengths):,} pairs of the {name} set are longer than the model's {limit:,} "
            f"positions (the longest has {tokens.lengths.max():,} tokens); set max_length={limit}, and they are left "
            "out and counted"
        )
        if position_tables(model):
            raise ModelError(said)
        logger.warning(said)
    if tokens.start_twice:
        said = starts_twice(tokenizer, f"{tokens.start_twice:,} pairs of the {name} set start")
        if strict:
            raise RenderingError(said)
        logger.warning(said)
