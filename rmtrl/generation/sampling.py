"""Gumbel-max sampling whose noise follows from what is sampled, not from when.

The same key gives the same sample whatever the batch, the order, the number of processes or a resume in between.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor


def sampling_key(*parts: Any) -> int:
    """Returns a 64-bit key that follows from the parts alone, on every machine: what a sample's noise is made from.

    Args:
        parts: What names the sample, such as seed, prompt tokens and sample number; compared by `repr`.

    Example:

    ```python
    >>> sampling_key(0, [5, 7], 1) == sampling_key(0, [5, 7], 1) != sampling_key(0, [5, 7], 2)
    True
    ```
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


_GOLDEN, _FIRST, _SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def _mix(x: torch.Tensor) -> torch.Tensor:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014); int64 wraps round, and its shifts keep the sign."""
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * _FIRST
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * _SECOND
    return x ^ (x >> 31 & (1 << 33) - 1)


def gumbel_noise(keys: torch.Tensor, positions: torch.Tensor | int, size: int) -> torch.Tensor:
    """Returns standard Gumbel noise that follows from key and position alone, `(B, size)` float32.

    Counter-based: the same on CPU and GPU up to the rounding of a logarithm, with no state to save or resume.

    Args:
        keys (`(B,)` int64 tensor): From [`sampling_key`].
        positions (`(B,)` int64 tensor or `int`): Position of the token within the completion.
        size (`int`): Noise values a row: the vocabulary.

    Example:

    ```python
    >>> gumbel_noise(torch.tensor([1, 2]), 0, 4).shape
    torch.Size([2, 4])
    ```
    """
    rows = _mix(_mix(keys) + torch.as_tensor(positions, dtype=torch.int64, device=keys.device) * _GOLDEN)
    bits = _mix(rows[:, None] + torch.arange(1, size + 1, device=keys.device) * _GOLDEN)
    # 32 bits, finest near 0, which is where the largest noise comes from; never 0 and never 1
    uniform = ((bits >> 32 & 0xFFFFFFFF).float() + 0.5) * 2**-32
    return -torch.log(-torch.log1p(-uniform.clamp(max=1 - 2**-24)))


def gumbel_max(scores: torch.Tensor, keys: torch.Tensor, positions: torch.Tensor | int) -> torch.Tensor:
    """Returns a sample of softmax(scores) a row, `(B,)` int64, that follows from scores, key and position alone.

    Drawn in two stages, each by Gumbel-max and together exact: a block of about √V tokens by its share of the
    probability, then a token within it. That takes 2 √V noise values a row instead of V.

    Args:
        scores (`(B, V)` float tensor): Logits; −∞ is a token that cannot be drawn.
        keys (`(B,)` int64 tensor): From [`sampling_key`].
        positions (`(B,)` int64 tensor or `int`): Position of the token within the completion.

    Example:

    ```python
    >>> gumbel_max(torch.tensor([[0.0, 9.0, -float("inf")]]), torch.tensor([1]), 0)
    tensor([1])
    ```
    """
    size = math.isqrt(scores.shape[1] - 1) + 1
    blocks = torch.nn.functional.pad(scores, (0, -scores.shape[1] % size), value=-torch.inf).unflatten(1, (-1, size))
    of_blocks, within = gumbel_noise(keys, positions, blocks.shape[1] + size).split([blocks.shape[1], size], dim=1)
    block = (blocks.logsumexp(dim=2) + of_blocks).argmax(dim=1)
    chosen = blocks[torch.arange(len(block), device=block.device), block]
    return block * size + (chosen + within).argmax(dim=1)


class SeededSampling(LogitsProcessor):
    """Leaves a score of 0 at a sample of softmax(scores), [`gumbel_max`], and −∞ at every other token.

    Stands last among the processors, with `do_sample=False`. The sample of a row follows from its scores, its key and
    the position, not from the rows beside it.

    Args:
        keys (`Sequence[int]` or `(B,)` int64 tensor): One [`sampling_key`] a row.
        prompt_length_tokens (`int`): Width of the prompts, padding included: where position 0 is.

    Example:

    ```python
    >>> keys = [sampling_key(seed, episode) for episode in episodes]
    >>> sampling = SeededSampling(keys, prompt_length_tokens=input_ids.shape[1])
    >>> model.generate(input_ids, do_sample=False, logits_processor=LogitsProcessorList([sampling]))
    ```
    """

    def __init__(self, keys: Sequence[int] | torch.Tensor, prompt_length_tokens: int) -> None:
        self.keys = torch.as_tensor(keys, dtype=torch.int64)
        self.prompt_length_tokens = prompt_length_tokens

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Returns 0 at the token drawn and −∞ elsewhere, `(B, V)` float32."""
        self.keys = self.keys.to(scores.device)
        tokens = gumbel_max(scores.float(), self.keys, input_ids.shape[1] - self.prompt_length_tokens)
        only = torch.full_like(scores, -torch.inf, dtype=torch.float32)
        return only.scatter_(1, tokens[:, None], 0)  # type: ignore[return-value]
