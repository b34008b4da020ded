"""What a model takes and what it must give, checked before it does harm."""

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor, isfinite, nn
from transformers import PreTrainedTokenizerBase

from rmtrl.errors import DataError, ModelError
from rmtrl.models import n_embeddings, position_limit, position_tables


def check_finite(when: str, tensor: Tensor, what: str) -> None:
    """Passes a tensor all of whose numbers are finite.

    Args:
        when (`str`): Where the training stands, such as `"step 3"`; it opens the message.
        tensor ([`~torch.Tensor`]): The numbers.
        what (`str`): Their name and verb, such as `"the loss is"`.

    Raises:
        ModelError: If a number is not.

    Example:

    ```python
    >>> check_finite("step 1", torch.tensor([0.5]), "the loss is")
    ```
    """
    if not isfinite(tensor).all():
        raise ModelError(
            f"{when}: {what} not finite; the run has diverged or started from broken weights: lower learning_rate, "
            "set max_grad_norm, or resume from an earlier checkpoint"
        )


def check_weights(when: str, model: nn.Module) -> None:
    """Passes a model all of whose weights, on this process, are finite.

    Raises:
        ModelError: Naming one that is not: such a model is no result.
    """
    for name, weight in model.named_parameters():
        own: Tensor = weight.to_local() if hasattr(weight, "to_local") else weight
        if own.is_floating_point():
            check_finite(when, own.detach(), f"nothing is saved: the weights {name} are")


class SetTokens(NamedTuple):
    """What a set of pairs asks of a model: tokens of each pair's longer side, the highest, pairs that start twice."""

    lengths: NDArray[np.int64]
    highest: int
    start_twice: int

    @classmethod
    def of(cls, dataset: Dataset, bos_token_id: int | None) -> "SetTokens":
        """Returns that of the columns `chosen_ids` and `rejected_ids`."""
        lengths, highest, twice = [], 0, 0
        for table in dataset.select_columns(["chosen_ids", "rejected_ids"]).with_format("arrow").iter(10_000):
            starts, sides = [], []
            for column in table.itercolumns():
                ids = column.combine_chunks()
                tokens = np.append(ids.flatten().to_numpy(), [-1, -1])
                offsets = ids.offsets.to_numpy() - ids.offsets[0].as_py()
                highest = max(highest, int(tokens.max()))
                sides.append(np.diff(offsets))
                starts.append((tokens[offsets[:-1]] == bos_token_id) & (tokens[offsets[:-1] + 1] == bos_token_id))
            lengths.append(np.maximum(*sides))
            twice += int((starts[0] | starts[1]).sum())
        return cls(np.concatenate(lengths), highest, twice)


def check_fits(
    model: Any, tokens: SetTokens, name: str, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None
) -> str | None:
    """Returns what to say of pairs that the model was not made for, and whose scores are refused; `None` of others.

    Args:
        model ([`~transformers.PreTrainedModel`]): The model.
        tokens ([`SetTokens`]): What a set asks of it.
        name (`str`): The set's, for the message.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): What the tokens are of.
        max_length (`int`, *optional*): Longer pairs do not reach the model.

    Raises:
        ModelError: If the model has no embedding of a token or of a position.
    """
    if tokens.highest >= n_embeddings(model):
        raise ModelError(
            f"the {name} set has token {tokens.highest:,} ({tokenizer.convert_ids_to_tokens(tokens.highest)!r}), the "
            f"model has {n_embeddings(model):,} embeddings; take the model's own tokenizer, or call its "
            "resize_token_embeddings(len(tokenizer))"
        )
    limit = position_limit(model) or sys.maxsize
    longer = int(((tokens.lengths > limit) & (tokens.lengths <= (max_length or sys.maxsize))).sum())
    if not longer:
        return None
    said = (
        f"{longer:,} of {len(tokens.lengths):,} pairs of the {name} set are longer than the model's {limit:,} "
        f"positions (the longest has {tokens.lengths.max():,} tokens); set max_length={limit}, and they are left out "
        "and counted"
    )
    if position_tables(model):
        raise ModelError(said)
    return said


def beyond_embeddings(model: Any, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Returns what to say of a tokenizer with tokens, but for padding, that the model has no embedding of."""
    n, vocabulary = n_embeddings(model), tokenizer.get_vocab()
    beyond = [token for token, i in vocabulary.items() if i >= n and i != tokenizer.pad_token_id]
    if not beyond:
        return None
    return (
        f"the model has {n:,} embeddings and the tokenizer {len(beyond):,} tokens beyond them, {beyond[0]!r} among "
        "them: no text with one can be used; take the tokenizer that the model was trained with, or call "
        "resize_token_embeddings(len(tokenizer)) before training"
    )


def check_tokens(
    model: Any, sequences: Sequence[Sequence[int]], what: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Passes token ids that the model has embeddings of.

    Raises:
        DataError: Naming the first sequence, which is a `what`, with a token that it has not.
    """
    n = n_embeddings(model)
    for index, ids in enumerate(sequences):
        if len(ids) and min(ids) < 0:
            raise DataError(f"{what} {index} has token {int(min(ids))}; token ids are 0 or more")
        if len(ids) and (highest := max(ids)) >= n:
            raise DataError(
                f"{what} {index} has token {int(highest):,} ({tokenizer.convert_ids_to_tokens(int(highest))!r}), the "
                f"model has {n:,} embeddings; take the tokenizer that it was trained with"
            )
