"""Rewards of packed rows through the model's ordinary forward: their masks, and the probe that they are right."""

import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn

from rmtrl.models import base_model, n_embeddings, position_limit
from rmtrl.reward.heads import RewardHead, reads_last_token
from rmtrl.reward.shared_prefix.plan import BRANCHES, SHARED, make_rows

Call = Mapping[str, Any]
"""The inputs of one forward pass; `segments` stand for a mask."""
Pairs = list[tuple[list[int], list[int]]]
Way = Callable[[Any, Pairs], torch.Tensor]

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
KNOWN_EXACT = frozenset(
    {"gemma", "gemma2", "gemma3", "gemma3_text", "gpt_neox", "llama", "mistral", "mixtral", "olmo2", "opt", "phi",
     "phi3", "qwen2", "qwen3", "smollm3"}
)  # fmt: skip
"""Architectures whose rewards were compared in float32; rounding of 16 bits would hide what is wrong with another."""


MASK_TYPES = ("sdpa", "eager")
"""The attention implementations of transformers that take any mask; FlexAttention compiles one for each length."""

_LOCAL = ("window_size", "attention_window", "attention_chunk_size", "chunk_size", "local_attention", "block_size")
_ROPE_BY_LENGTH = ("longrope", "dynamic")


def why_not_shared(model: nn.Module) -> str | None:
    """Returns why a model's prompts cannot be shared, as far as its architecture says; `None` where they may be."""
    inner = base_model(model)
    if not reads_last_token(inner):
        return f"{type(inner).__name__} has no head named `score` that reads one token"
    if any(isinstance(module, RewardHead) and module.head.pooling == "mean" for module in inner.modules()):
        return "the head averages over the tokens of an answer"
    config = inner.config.get_text_config()
    if config._attn_implementation not in MASK_TYPES:
        return f"attention {config._attn_implementation!r} takes no mask of any form and length"
    other = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"})
    if other:
        return f"{type(inner).__name__} has layers of {', '.join(other)}, which know no branches"
    settings = config.to_dict()
    local = [name for name, value in settings.items() if name in _LOCAL and value]
    if local:
        return f"{type(inner).__name__} cuts its attention by {local[0]}, counted in rows and not in positions"
    if any(kind in str(settings.get("rope_parameters") or settings.get("rope_scaling")) for kind in _ROPE_BY_LENGTH):
        return f"{type(inner).__name__} rotates its positions by the length of the row (longrope or dynamic)"
    return None


def why_not_known(model: nn.Module, *, low_precision: bool = False) -> str | None:
    """Returns why a probe in 16 bits cannot tell that a model is exact; `None` where float32 tells, or has told."""
    if not low_precision and base_model(model).dtype not in (torch.float16, torch.bfloat16):
        return None
    kind = base_model(model).config.get_text_config().model_type
    return None if kind in KNOWN_EXACT else f"{kind} was not compared in float32, and 16 bits cannot tell"


def packs_without_mask(model: nn.Module) -> bool:
    """Returns whether the attention finds the sequences of a row by their positions, as FlashAttention does."""
    return "flash" in str(base_model(model).config.get_text_config()._attn_implementation)


def cell_cost(model: nn.Module) -> float:
    """Returns the time of one cell of an attention matrix, where a token in the linear layers takes 1.

    A layer of width d spends about 24·d² operations on a token and 4·d on a cell.
    """
    return 1 / (6 * base_model(model).config.get_text_config().hidden_size)


def rewards_at(model: nn.Module, calls: Iterable[Call], ends: torch.Tensor) -> torch.Tensor:
    """Returns what the head gives at `ends`, `(2B, n_outputs)`, with gradients, from one pass for each of `calls`.

    Args:
        model ([`~torch.nn.Module`]): The model, as wrapped for training.
        calls (`Iterable[dict]`): The inputs of each pass; [`Rows`] are some.
        ends (`torch.Tensor`): See [`SharedPrefixCollator`].
    """
    return torch.cat([reward.flatten(0, 1) for _, reward in _head_calls(model, calls)])[ends]


def states_at(model: nn.Module, calls: Iterable[Call], ends: torch.Tensor) -> torch.Tensor:
    """Returns what enters the head where [`rewards_at`] reads what leaves it, `(2B, d)`."""
    return torch.cat([state.flatten(0, 1) for state, _ in _head_calls(model, calls)])[ends]


def _head_calls(model: nn.Module, calls: Iterable[Call]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields what enters the head and what leaves it in each pass, `(R, L, d)` and `(R, L, n_outputs)`."""
    inner = base_model(getattr(model, "module", model))
    config = inner.config.get_text_config()
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    handle = inner.score.register_forward_hook(lambda head, args, output: seen.append((args[0], output)))
    try:
        for call in calls:
            inputs: dict[str, Any] = {"use_cache": False}
            inputs |= {key: value for key, value in call.items() if key != "segments"}
            if "segments" in call:
                inputs["attention_mask"] = attention_mask(config, call["segments"], call["position_ids"], inner.dtype)
            model(**inputs)
            yield seen.pop()
    finally:
        handle.remove()


# The mask, built on the model's device from tensors of shape (R, L)


def visible(segments: torch.Tensor, positions: torch.Tensor, window: int | None = None) -> torch.Tensor:
    """Returns which token sees which, `(R, 1, L, L)` boolean: its unit's shared tokens and its own branch, up to it.

    Args:
        segments (`torch.Tensor`): `BRANCHES · unit + branch` of each token, `PADDING` after the last, `(R, L)`.
        positions (`torch.Tensor`): Position of each token in its side, `(R, L)`.
        window (`int`, *optional*): Tokens of a sliding window; a token sees those fewer than `window` positions back.

    Example:

    ```python
    >>> visible(torch.tensor([[0, 1, 2]]), torch.tensor([[0, 1, 1]]))[0, 0].int().tolist()
    [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
    ```
    """
    length = segments.shape[1]
    query, key = segments[:, :, None], segments[:, None, :]
    allowed = (query == key) | (query - query.remainder(BRANCHES) + SHARED == key)
    allowed &= torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    if window is not None:
        allowed &= positions[:, :, None] - positions[:, None, :] < window
    return allowed[:, None]


def attention_mask(config: Any, segments: torch.Tensor, positions: torch.Tensor, dtype: torch.dtype) -> Any:
    """Returns the mask in the form the model takes: one, or one for each type of layer.

    SDPA takes it boolean, eager attention as numbers to add.

    Args:
        config ([`~transformers.PretrainedConfig`]): The text model's.
        segments (`torch.Tensor`): See [`visible`].
        positions (`torch.Tensor`): See [`visible`].
        dtype (`torch.dtype`): The model's, for numbers to add.
    """
    windows = layer_windows(config)
    masks = {
        kind: _as_taken(config._attn_implementation, segments, positions, window, dtype)
        for kind, window in windows.items()
    }
    return masks if len(masks) > 1 else next(iter(masks.values()))


def layer_windows(config: Any) -> dict[str, int | None]:
    """Returns the sliding window of each type of layer; a model without types has one."""
    window: int | None = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        return {"all": window}
    return {kind: window if kind == "sliding_attention" else None for kind in sorted(set(kinds))}


def _as_taken(
    implementation: str, segments: torch.Tensor, positions: torch.Tensor, window: int | None, dtype: torch.dtype
) -> Any:
    allowed = visible(segments, positions, window)
    if implementation == "eager":
        return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(
            ~allowed, torch.finfo(dtype).min
        )
    return allowed


# The probe


def why_not_exact(
    model: nn.Module, accelerator: Accelerator, *, max_length: int | None, share: bool, low_precision: bool
) -> str | None:
    """Returns why packed rows do not give what separate passes do, `None` where they do; all processes say the same.

    Args:
        model ([`~torch.nn.Module`]): The model, as wrapped for training.
        accelerator ([`~accelerate.Accelerator`]): Tells the processes' answers to each other.
        max_length (`int`, *optional*): Most tokens a side of the data may have.
        share (`bool`): See [`SharedPrefixCollator`].
        low_precision (`bool`): Whether the model computes with fewer bits than its weights have.
    """
    inner = base_model(getattr(model, "module", model))
    reason = why_not_known(inner, low_precision=low_precision) or why_differs(
        model,
        {"packed": partial(packed_states, share=share)},
        alone=separate_states,
        pairs=probe_pairs(inner, max_length),
        tolerance=TOLERANCE[torch.bfloat16] if low_precision else None,
    )
    failed = accelerator.gather(torch.tensor([reason is not None], device=accelerator.device))
    if failed.any() and reason is None:
        return "another process found it inexact"
    return reason


def why_differs(
    model: nn.Module, ways: Mapping[str, Way], *, alone: Way, pairs: Pairs, tolerance: float | None = None
) -> str | None:
    """Returns why a way of computing rows together does not give what rows alone give; `None` where all do.

    The fixed rows of the probe run once each way in evaluation mode.

    Args:
        model ([`~torch.nn.Module`]): The model, as it is used.
        ways (`Mapping[str, Callable]`): By name, functions of model and pairs; the sides' vectors, chosen first.
        alone (`Callable`): The same, computed row by row.
        pairs (`list`): See [`probe_pairs`].
        tolerance (`float`, *optional*): Largest relative difference; by default rounding in the model's precision.
    """
    tolerance = tolerance or TOLERANCE.get(base_model(getattr(model, "module", model)).dtype, 5e-2)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    name = "separate"
    try:
        with torch.no_grad():
            wanted = alone(model, pairs).float()
            scale = wanted.norm(dim=-1).max().clamp_min(1e-2)
            for name, way in ways.items():
                apart = float((way(model, pairs).float() - wanted).norm(dim=-1).max() / scale)
                if not apart <= tolerance:
                    return (
                        f"scores of {name} rows differ from those of separate passes, by {apart:.1g} of their size "
                        f"(at most {tolerance:.0e} is rounding)"
                    )
    except Exception as error:  # a model of any make may refuse a mask, positions or a cache in its own way
        return _said(name, error)
    finally:
        for module, training in modes:
            module.training = training
    return None


def _said(name: str, error: Exception) -> str:
    """Returns what stopped the probe; a mistake of our own is raised, for it says nothing of the model."""
    *_, (last, _) = traceback.walk_tb(error.__traceback__)
    if isinstance(error, TypeError | AttributeError | NameError) and last.f_globals["__name__"].startswith("rmtrl."):
        raise error
    what = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or should_reduce_batch_size(error):
        return f"memory ran out in the probe, so whether {name} rows are exact is not known ({what})"
    return f"{name} rows raise {what}"


def packed_states(model: nn.Module, pairs: Pairs, *, share: bool = True) -> torch.Tensor:
    """Returns what enters the head for each side, `(2B, d)`, all in one row."""
    inner = base_model(getattr(model, "module", model))
    pad = inner.config.get_text_config().pad_token_id
    rows, ends = make_rows(pairs, pad_token_id=pad, cell_cost=0.0, one_call=True, share=share)
    return states_at(model, [{key: value.to(inner.device) for key, value in call.items()} for call in rows], ends)


def separate_states(model: nn.Module, pairs: Pairs) -> torch.Tensor:
    """Returns what enters the head for each side, `(2B, d)`, a pass each."""
    device = base_model(getattr(model, "module", model)).device
    sides = [ids for side in zip(*pairs, strict=True) for ids in side]
    calls = [{"input_ids": torch.tensor([ids], device=device)} for ids in sides]
    return states_at(model, calls, torch.tensor([len(ids) for ids in sides]).cumsum(0) - 1)


def probe_pairs(model: Any, max_length: int | None = None) -> Pairs:
    """Returns pairs of token ids without the pad token; the longest fills a sliding window if the data can."""
    config = model.config.get_text_config()
    limit = min(max_length or 1024, position_limit(model) or 1024)
    windows = [window for window in layer_windows(config).values() if window is not None and window < limit]
    prefix = min(max([48, *(window + 8 for window in windows)]), max(limit - 16, 1))
    tokens = [token for token in range(1, min(n_embeddings(model), 997)) if token != config.pad_token_id]

    def ids(start: int, n: int) -> list[int]:
        return [tokens[(start + 7 * i) % len(tokens)] for i in range(n)]

    long, short = ids(0, prefix), ids(3, 5)
    return [
        ([*long, *ids(11, 9)], [*long, *ids(12, 5)]),
        ([*short, *ids(21, 3)], [*short, *ids(22, 8)]),
        ([*short, *ids(31, 4)], short),
    ]
