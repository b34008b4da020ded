"""What a model takes and what it must give, checked before it does harm."""

import re
import sys
from collections.abc import Sequence
from typing import Any

from torch import Tensor, isfinite, nn
from transformers import PreTrainedTokenizerBase

from rmtrl.errors import DataError, ModelError

_TABLE = re.compile(r"(^|\.)(wpe|positions_embed|pos_encoding|embed_positions|\w*position_embeddings?)$")


def position_limit(model: Any) -> int | None:
    """Returns the most tokens a model takes, `None` where nothing limits it.

    A table of positions ends, and positions that turn with rotary embeddings are known up to those of the training;
    relative ones, ALiBi and recurrent layers know no end. RoBERTa's first positions, up to its padding index, are
    never used.
    """
    config = model.config.get_text_config()
    tables = [module for name, module in model.named_modules() if _TABLE.search(name)]
    for table in tables:
        if getattr(table, "padding_idx", None) is not None and hasattr(table, "weight"):
            return int(len(table.weight) - table.padding_idx - 1)
    rotates = any(value and re.search("rope|rotary", name) for name, value in config.to_dict().items())
    known = tables or any(_TABLE.search(name) for name, _ in model.named_buffers())
    limit = getattr(config, "max_position_embeddings", None) or 0
    return limit if limit > 0 and (known or (rotates and not getattr(config, "alibi", False))) else None


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


def n_embeddings(model: Any) -> int:
    """Returns how many tokens the model has embeddings of; one without a table of them, as CANINE is, takes any."""
    try:
        return int(model.get_input_embeddings().num_embeddings)
    except (NotImplementedError, AttributeError):
        return sys.maxsize


def inside(model: Any, pad_token_id: int) -> int:
    """Returns a token to fill rows with that the model has an embedding of: the pad token, where it is one."""
    if pad_token_id < n_embeddings(model):
        return pad_token_id
    return int(model.config.get_text_config().eos_token_id == 0)  # the first that is not the end


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
        if len(ids) and (highest := max(ids)) >= n:
            raise DataError(
                f"{what} {index} has token {int(highest):,} ({tokenizer.convert_ids_to_tokens(int(highest))!r}), the "
                f"model has {n:,} embeddings; take the tokenizer that it was trained with"
            )
