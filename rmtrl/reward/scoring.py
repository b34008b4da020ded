"""Computes rewards of token sequences in the fewest tokens: shared prefixes once, rows of like length together."""

import copy
from collections.abc import Hashable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rmtrl.models import CACHE, base_model, inside
from rmtrl.reward.collator import shared_prefix_length
from rmtrl.reward.heads import pool_over, reads_last_token
from rmtrl.reward.shared_prefix.batches import Costs, like_lengths
from rmtrl.reward.shared_prefix.candidates import Group, plan_groups
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
from rmtrl.reward.shared_prefix.plan import Unit, last_token, shared_unit
from rmtrl.reward.shared_prefix.rows import find_ends, unit_tensors

Job = tuple[str, list[Group]]
"""One step of work: a method of [`Group`] and the groups that go through it together."""


def plan_jobs(
    sequences: Sequence[Sequence[int]],
    *,
    pad_token_id: int,
    costs: Costs,
    share: bool,
    kinds: Sequence[Hashable] | None = None,
) -> list[Job]:
    """Returns the steps that score every sequence once.

    Args:
        sequences (`Sequence[Sequence[int]]`): Token ids.
        pad_token_id (`int`): Token that a model never reads a reward at.
        costs ([`Costs`]): What a pass takes on this device and model.
        share (`bool`): Whether the model can compute a shared prefix once.
        kinds (`Sequence[Hashable]`, *optional*): See [`kinds_of_rows`]; plain rows of one kind stand together.
    """
    if share:
        groups = plan_groups(sequences, pad_token_id=pad_token_id, costs=costs)
    else:
        groups = [Group([index], 0, "plain") for index in range(len(sequences))]
    jobs: list[Job] = [("cached", [group]) for group in groups if group.method == "cached"]
    alike: dict[tuple[str, Hashable], list[Group]] = {}
    for method in ("packed", "plain"):
        for group in (group for group in groups if group.method == method):
            kind = kinds[group.members[0]] if kinds is not None and method == "plain" else None
            alike.setdefault((method, kind), []).append(group)
    for (method, _), chosen in alike.items():
        lengths = [_row_length(group, sequences) for group in chosen]
        jobs += [(method, [chosen[i] for i in batch]) for batch in like_lengths(lengths, costs)]
    return jobs


def _row_length(group: Group, sequences: Sequence[Sequence[int]]) -> int:
    return sum(len(sequences[i]) for i in group.members) - group.prefix * (len(group.members) - 1)


def n_tokens(jobs: Sequence[Job], sequences: Sequence[Sequence[int]], costs: Costs) -> int:
    """Returns the tokens that the steps compute, padding included."""
    total = 0
    for method, groups in jobs:
        if method == "cached":
            (group,) = groups
            rests = [len(sequences[i]) - group.prefix for i in group.members]
            total += group.prefix
            total += sum(len(b) * max(rests[i] for i in b) for b in like_lengths(rests, costs, group.prefix))
        else:
            total += len(groups) * max(_row_length(group, sequences) for group in groups)
    return total


@torch.inference_mode()
def run_job(
    model: nn.Module,
    job: Job,
    sequences: Sequence[Sequence[int]],
    *,
    pad_token_id: int,
    costs: Costs,
    starts: Sequence[int] | None = None,
) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
    """Yields the indices of sequences and the outputs of their heads, `(n, n_outputs)` float32, pass by pass.

    `starts`, the first token that a mean is taken over, belongs to heads that average.
    """
    method, groups = job
    members = [index for group in groups for index in group.members]
    if method == "plain":
        if starts is not None:
            _pool(model, [starts[i] for i in members], [len(sequences[i]) for i in members])
        yield members, _values(_logits(model, [sequences[i] for i in members], pad_token_id))
    elif method == "packed":
        yield members, _packed(model, [[sequences[i] for i in group.members] for group in groups], pad_token_id)
    else:
        for indices, call, ends in _cached(model, groups[0], sequences, pad_token_id, costs):
            yield indices, _values(rewards_at(model, [call], ends))


def _pool(model: nn.Module, starts: Sequence[int], lengths: Sequence[int]) -> None:
    position = torch.arange(max(lengths))
    pool_over(model, (position >= torch.tensor(starts)[:, None]) & (position < torch.tensor(lengths)[:, None]))


def _logits(model: Any, rows: Sequence[Sequence[int]], pad_token_id: int) -> torch.Tensor:
    """Returns the outputs of the head for rows of any lengths, each in a row of its own, `(B, n_outputs)`."""
    ids, mask = _padded(rows, pad_token_id, model)
    if not reads_last_token(model):
        logits: torch.Tensor = model(input_ids=ids, attention_mask=mask).logits
        return logits
    # causal: padding behind a row is never seen, and without a mask the fastest kernel runs
    return rewards_at(model, [{"input_ids": ids}], _ends(rows, ids, pad_token_id))


def _ends(rows: Sequence[Sequence[int]], ids: torch.Tensor, pad_token_id: int) -> torch.Tensor:
    """Returns where the rewards of padded rows stand among their tokens."""
    return torch.tensor([i * ids.shape[1] + last_token(row, pad_token_id) for i, row in enumerate(rows)])


def _packed(model: Any, pairs: Sequence[Sequence[Sequence[int]]], pad_token_id: int) -> NDArray[np.float32]:
    units: list[list[Unit]] = [
        [shared_unit(first, second, sides=(2 * i, 2 * i + 1), pad_token_id=pad_token_id)]
        for i, (first, second) in enumerate(pairs)
    ]
    width = max(len(unit.ids) for (unit,) in units)
    ends = torch.zeros(2 * len(pairs), dtype=torch.long)
    for number, row in enumerate(units):
        find_ends(ends, row, number * width)
    fill = inside(model, pad_token_id)
    rows = {name: t.to(model.device) for name, t in unit_tensors(units, width, fill, masked=True).items()}
    return _values(rewards_at(model, [rows], ends.to(model.device)))


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
        ids, mask = _padded(rows, pad_token_id, model)
        expanded = cache if number == len(batches) - 1 else copy.deepcopy(cache)  # a pass adds to its cache
        expanded.batch_repeat_interleave(len(batch))
        seen = torch.ones(len(batch), group.prefix, dtype=mask.dtype, device=mask.device)
        call = {
            "input_ids": ids,
            "attention_mask": torch.cat([seen, mask], dim=1),
            "position_ids": torch.arange(group.prefix, group.prefix + ids.shape[1], device=ids.device)[None],
            CACHE: expanded,
            "use_cache": True,
        }
        yield [group.members[i] for i in batch], call, _ends(rows, ids, pad_token_id)


# What a model allows, found out on a fixed probe


def why_sharing_differs(model: Any, pad_token_id: int) -> str | None:
    """Returns why a model's shared prefixes do not give the rewards of plain rows, `None` where they do."""
    ways: dict[str, Way] = {"packed": packed_states, "cached": partial(_cached_states, pad_token_id=pad_token_id)}
    pairs = probe_pairs(base_model(model))
    return why_not_known(model) or why_differs(model, ways, alone=separate_states, pairs=pairs)


def _cached_states(model: Any, pairs: Pairs, *, pad_token_id: int) -> torch.Tensor:
    """Returns what enters the head for each side, `(2B, d)`, each pair over the cache of its prefix."""
    costs = Costs(cell=0.0, call=0.0, most_tokens=1 << 20)
    found: list[torch.Tensor] = [torch.empty(0)] * (2 * len(pairs))
    for i, pair in enumerate(pairs):
        prefix = min(shared_prefix_length(*pair), *(len(side) - 1 for side in pair))
        for members, call, ends in _cached(model, Group([0, 1], prefix, "cached"), pair, pad_token_id, costs):
            for member, state in zip(members, states_at(model, [call], ends), strict=True):
                found[i + member * len(pairs)] = state
    return torch.stack(found)


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
    pairs = [([*longer, *ends], [*shorter[: len(shorter) // 3], *ends])]

    def rewards(*rows: list[int]) -> torch.Tensor:
        _pool(model, [0] * len(rows), [len(ids) for ids in rows])
        return _logits(model, rows, pad_token_id)

    def padded(model: Any, pairs: Pairs) -> torch.Tensor:
        return rewards(*pairs[0])

    def alone(model: Any, pairs: Pairs) -> torch.Tensor:
        return torch.cat([rewards(ids) for ids in pairs[0]])

    return why_differs(model, {"padded": padded}, alone=alone, pairs=pairs)


def _padded(rows: Sequence[Sequence[int]], pad_token_id: int, model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    width, fill = max(map(len, rows)), inside(model, pad_token_id)
    ids = torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    return ids, mask


def _values(rewards: torch.Tensor) -> NDArray[np.float32]:
    values: NDArray[np.float32] = rewards.float().cpu().numpy()
    return values
