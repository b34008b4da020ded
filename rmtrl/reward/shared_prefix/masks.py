"""The attention mask of packed rows, built on the model's device from tensors of shape (R, L)."""

from typing import Any

import torch
from torch.nn.attention.flex_attention import create_block_mask

from rmtrl.reward.shared_prefix.plan import BRANCHES, SHARED

MASK_TYPES = ("sdpa", "eager", "flex_attention")
"""The attention implementations of transformers that take a mask of any form."""


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
    allowed = _same_or_shared(segments[:, :, None], segments[:, None, :])
    allowed &= torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    if window is not None:
        allowed &= positions[:, :, None] - positions[:, None, :] < window
    return allowed[:, None]


def attention_mask(config: Any, segments: torch.Tensor, positions: torch.Tensor, dtype: torch.dtype) -> Any:
    """Returns the mask in the form the model takes: one, or one for each type of layer.

    SDPA takes it boolean, eager attention as numbers to add, FlexAttention as a block mask.

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
    if implementation == "flex_attention":
        return _block_mask(segments, positions, window)
    allowed = visible(segments, positions, window)
    if implementation == "eager":
        return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(
            ~allowed, torch.finfo(dtype).min
        )
    return allowed


def _same_or_shared(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return (query == key) | (query - query.remainder(BRANCHES) + SHARED == key)


def _block_mask(segments: torch.Tensor, positions: torch.Tensor, window: int | None) -> Any:
    def mask(row: torch.Tensor, head: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        allowed = (q >= k) & _same_or_shared(segments[row, q], segments[row, k])
        if window is not None:
            allowed = allowed & (positions[row, q] - positions[row, k] < window)
        return allowed

    n_rows, length = segments.shape
    return create_block_mask(mask, n_rows, None, length, length, device=segments.device)
