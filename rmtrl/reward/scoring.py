"""The forward passes of a plan over token sequences, and what a model allows of them, found out on a fixed probe."""

import copy
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import SequenceClassifierOutput

from rmtrl.data.messages import shared_prefix_length
from rmtrl.models import CACHE, base_model, inside
from rmtrl.reward.batching import Costs, Group, Job, last_token, like_lengths
from rmtrl.reward.heads import pool_over, reads_last_token
from rmtrl.reward.pairs import BATCH
from rmtrl.reward.shared_prefix.forward import (
    Call,
    Pairs,
    Way,
    packed_states,
    probe_pairs,
    rewards_at,
    separate_states,
    states_at,
    why_differs,
    why_not_known,
)
from rmtrl.reward.shared_prefix.plan import shared_unit, unit_tensors


@torch.inference_mode()
def run_job(
    model: nn.Module, job: Job, sequences: Sequence[Sequence[int]], *, pad_token_id: int, costs: Costs,
    starts: Sequence[int] | None = None,
) -> Iterator[tuple[list[int], NDArray[np.float32]]]:  # fmt: skip
    """Yields the indices of sequences and the outputs of their heads, `(n, n_outputs)` float32, pass by pass.

    `starts`, the first token that a mean is taken over, belongs to heads that average.
    """
    method, groups = job
    members = [index for group in groups for index in group.members]
    rows = [sequences[i] for i in members]
    if method == "plain":
        if starts is not None:
            _pool(model, [starts[i] for i in members], [len(row) for row in rows])
        yield members, _values(_logits(model, rows, pad_token_id))
    elif method == "packed":
        yield members, _values(_packed(model, rows, pad_token_id))
    else:
        for indices, call, ends in _cached(model, groups[0], sequences, pad_token_id, costs):
            yield indices, _values(rewards_at(model, [call], ends))


def _pool(model: nn.Module, starts: Sequence[int], lengths: Sequence[int]) -> None:
    """Tells a head that averages which tokens of padded rows to take."""
    position = torch.arange(max(lengths))
    pool_over(model, (position >= torch.tensor(starts)[:, None]) & (position < torch.tensor(lengths)[:, None]))


def _logits(model: Any, rows: Sequence[Sequence[int]], pad_token_id: int) -> torch.Tensor:
    """Returns the outputs of the head for rows of any lengths, each in a row of its own, `(B, n_outputs)`."""
    ids, mask = padded(model, rows, pad_token_id)
    if not reads_last_token(model):
        return model(input_ids=ids, attention_mask=mask).logits
    # causal: padding behind a row is never seen, and without a mask the fastest kernel runs
    return rewards_at(model, [{"input_ids": ids}], _ends(rows, ids, pad_token_id))


def padded(model: Any, rows: Sequence[Sequence[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns rows filled up behind to one length, on the model's device, and the mask of their tokens."""
    lengths = torch.tensor([len(row) for row in rows])
    tensors = [torch.tensor(row) for row in rows]
    ids = pad_sequence(tensors, batch_first=True, padding_value=inside(base_model(model), pad_token_id))
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    return ids.to(model.device), mask.to(model.device)


def _ends(rows: Sequence[Sequence[int]], ids: torch.Tensor, pad_token_id: int) -> torch.Tensor:
    """Returns where the rewards of padded rows stand among their tokens."""
    return torch.tensor([i * ids.shape[1] + last_token(row, pad_token_id) for i, row in enumerate(rows)])


def _packed(model: Any, rows: Sequence[Sequence[int]], pad_token_id: int) -> torch.Tensor:
    """Returns the rewards of sequences of which each two stand in one row, their prefix once."""
    units = [
        [shared_unit(rows[i], rows[i + 1], sides=(i, i + 1), pad_token_id=pad_token_id)]
        for i in range(0, len(rows), 2)
    ]
    ends = torch.zeros(len(rows), dtype=torch.long)
    call = unit_tensors(units, ends, 0, inside(base_model(model), pad_token_id))
    return rewards_at(model, [{name: tensor.to(model.device) for name, tensor in call.items()}], ends)


def _cached(
    model: Any, group: Group, sequences: Sequence[Sequence[int]], pad_token_id: int, costs: Costs
) -> Iterator[tuple[list[int], Call, torch.Tensor]]:
    """Yields members of a group, the pass that computes them over the cache of their prefix, and their ends in it."""
    prefix = torch.tensor([list(sequences[group.members[0]][: group.prefix])], device=model.device)
    cache = base_model(model).base_model(input_ids=prefix, use_cache=True)[CACHE]
    rests = [list(sequences[i][group.prefix :]) for i in group.members]
    batches = like_lengths([len(rest) for rest in rests], costs, group.prefix)
    for number, batch in enumerate(batches):
        rows = [rests[i] for i in batch]
        ids, mask = padded(model, rows, pad_token_id)
        expanded = cache if number == len(batches) - 1 else copy.deepcopy(cache)  # a pass adds to its cache
        expanded.batch_repeat_interleave(len(batch))
        call = {
            "input_ids": ids,
            "attention_mask": torch.cat([mask.new_ones(len(batch), group.prefix), mask], dim=1),
            "position_ids": torch.arange(group.prefix, group.prefix + ids.shape[1], device=ids.device)[None],
            CACHE: expanded,
            "use_cache": True,
        }
        yield [group.members[i] for i in batch], call, _ends(rows, ids, pad_token_id)


def _values(rewards: torch.Tensor) -> NDArray[np.float32]:
    return rewards.float().cpu().numpy()


def batch_outputs(model: Any, inputs: Mapping[str, Any]) -> Any:
    """Returns what a model as it is wrapped for training gives for a padded batch of a trainer.

    An encoder-decoder's pooling wants as many end tokens in every row of a pass, so it takes several.
    """
    inner = base_model(getattr(model, "module", model))
    if inner.config.is_encoder_decoder:
        counts = (inputs["input_ids"] == inner.config.eos_token_id).sum(dim=1)
        groups = [torch.nonzero(counts == n).flatten() for n in counts.unique()]
        passes = [{key: inputs[key][rows] for key in ("input_ids", "attention_mask")} for rows in groups]
        logits = torch.cat([model(**own, use_cache=False).logits for own in passes])
        return SequenceClassifierOutput(logits=logits[torch.cat(groups).argsort()])
    if "starts" in inputs:
        positions = torch.arange(inputs["input_ids"].shape[1], device=inputs["starts"].device)
        pool_over(inner, inputs["attention_mask"].bool() & (positions >= inputs["starts"][:, None]))
    return model(**{key: value for key, value in inputs.items() if key not in BATCH}, use_cache=False)


# What a model allows


def why_sharing_differs(model: Any, pad_token_id: int) -> str | None:
    """Returns why a model's shared prefixes do not give the rewards of plain rows, `None` where they do."""
    ways: dict[str, Way] = {"packed": packed_states, "cached": partial(_cached_states, pad_token_id=pad_token_id)}
    pairs = probe_pairs(base_model(model))
    return why_not_known(model) or why_differs(model, ways, alone=separate_states, pairs=pairs)


def _cached_states(model: Any, pairs: Pairs, *, pad_token_id: int) -> torch.Tensor:
    """Returns what enters the head for each side, `(2B, d)`, each pair over the cache of its prefix."""
    costs = Costs(cell=0.0, call=0.0, most_tokens=1 << 20)
    found: dict[int, torch.Tensor] = {}
    for i, pair in enumerate(pairs):
        prefix = min(shared_prefix_length(*pair), *(len(side) - 1 for side in pair))
        for members, call, ends in _cached(model, Group([0, 1], prefix, "cached"), pair, pad_token_id, costs):
            for member, state in zip(members, states_at(model, [call], ends), strict=True):
                found[i + member * len(pairs)] = state
    return torch.stack([found[side] for side in sorted(found)])


def kinds_of_rows(model: Any, sequences: Sequence[Sequence[int]], pads: bool) -> list[Hashable]:
    """Returns the kind of each sequence: rows of one kind may stand in one pass and keep their scores.

    Encoder-decoders read their last end token and want as many in every row. Some encoders mix a row's padding into
    its tokens, mask or no mask: their rows are of one length.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The model.
        sequences (`Sequence[Sequence[int]]`): Token ids.
        pads (`bool`): Whether padding leaves the model's scores as they are, see [`why_padding_differs`].
    """
    config: Any = base_model(model).config.get_text_config()
    end = config.eos_token_id if config.is_encoder_decoder else -1
    return [(list(ids).count(end), pads or len(ids)) for ids in sequences]


def why_padding_differs(model: Any, pad_token_id: int) -> str | None:
    """Returns why rows padded to one length do not give what rows alone give, `None` where they do."""
    config: Any = base_model(model).config.get_text_config()
    ends = [config.eos_token_id] if config.is_encoder_decoder else []
    (longer, shorter), *_ = probe_pairs(base_model(model))
    pair = ([*longer, *ends], [*shorter[: len(shorter) // 3], *ends])

    def rewards(*rows: list[int]) -> torch.Tensor:
        _pool(model, [0] * len(rows), [len(ids) for ids in rows])
        return _logits(model, rows, pad_token_id)

    def together(model: Any, pairs: Pairs) -> torch.Tensor:
        return rewards(*pairs[0])

    def alone(model: Any, pairs: Pairs) -> torch.Tensor:
        return torch.cat([rewards(ids) for ids in pairs[0]])

    return why_differs(model, {"padded": together}, alone=alone, pairs=[pair])
