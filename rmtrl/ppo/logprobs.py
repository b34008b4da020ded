"""Log probabilities and entropies of sampled tokens, with logits only where they are needed and kept only once."""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel

from rmtrl.errors import ModelError

# e^z is 0 in float64 too: a cut there changes nothing, and keeps 0 · (−∞) out
_NOTHING = -1e4


class _TokenLogprobs(torch.autograd.Function):
    """Keeps the logits in their own dtype and two numbers a row; works in float32 (float64 for float64), by chunks."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, tokens: torch.Tensor, temperature: float, chunk: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        lse, entropy, logprobs = (logits.new_empty(len(logits), dtype=dtype) for _ in range(3))
        for rows in _chunks(len(logits), chunk):
            z = logits[rows].to(dtype)
            z = z / temperature if temperature != 1 else z
            high = z.amax(dim=-1, keepdim=True)
            of_token = z.gather(1, tokens[rows, None])
            z = (z - high).clamp_(min=_NOTHING)
            weights = z.exp()
            total = weights.sum(dim=-1)
            log_total = total.log()
            entropy[rows] = log_total - weights.mul_(z).sum(dim=-1) / total
            lse[rows] = high[:, 0] + log_total
            logprobs[rows] = of_token[:, 0] - high[:, 0] - log_total
        ctx.save_for_backward(logits, tokens, lse, entropy)
        ctx.set_materialize_grads(False)
        ctx.temperature, ctx.chunk = temperature, chunk
        return logprobs, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, None, None, None]:
        logits, tokens, lse, entropy = ctx.saved_tensors
        of_logprobs, of_entropy = grads
        if of_logprobs is None:
            of_logprobs = torch.zeros_like(lse)
        grad = torch.empty_like(logits)
        for rows in _chunks(len(logits), ctx.chunk):
            z = logits[rows].to(lse.dtype) / ctx.temperature
            z.sub_(lse[rows, None]).clamp_(min=_NOTHING)
            p = z.exp()
            if of_entropy is None:
                p.mul_(-of_logprobs[rows, None])
            else:
                p.mul_(z.add_(entropy[rows, None]).mul_(of_entropy[rows, None]).add_(of_logprobs[rows, None])).neg_()
            p.scatter_add_(1, tokens[rows, None], of_logprobs[rows, None])
            grad[rows] = p.div_(ctx.temperature)
        return grad, None, None, None


def _chunks(n: int, chunk: int) -> Iterator[slice]:
    return (slice(start, start + chunk) for start in range(0, n, chunk))


def token_logprobs(
    logits: torch.Tensor, tokens: torch.Tensor, temperature: float = 1.0, chunk: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the log probability of each token and the entropy of its distribution, in nats, each `(n,)` float32.

    Both are those of softmax(logits / temperature) and have gradients. Beside the logits, which stay in their own
    dtype, and their gradient, only a chunk of rows is ever held; float64 logits give float64.

    Args:
        logits (`(n, V)` tensor): Logits of `n` places; −∞ is a token that cannot be drawn.
        tokens (`(n,)` int64 tensor): The token at each place.
        temperature (`float`, *optional*, defaults to 1.0): What the logits are divided by, above 0.
        chunk (`int`, *optional*): Rows at a time; by default as many as stay in a processor's cache, or 64 MiB of a
            GPU. The result does not depend on it.

    Example:

    ```python
    >>> logprobs, entropy = token_logprobs(torch.zeros(1, 4), torch.tensor([2]))
    >>> logprobs.exp(), entropy.exp()
    (tensor([0.2500]), tensor([4.]))
    ```
    """
    if chunk is None:
        chunk = max(1, (2**18 if logits.device.type == "cpu" else 2**24) // logits.shape[1])
    return _TokenLogprobs.apply(logits, tokens, temperature, chunk)


def response_logits(
    policy: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor,
) -> torch.Tensor:
    """Returns the logits at the places asked for, `(n, V)`: those of one ordinary forward, computed only there.

    A hook hands the head only the hidden states wanted, so whatever the model does after its head (capping, scaling)
    is done, and the logits of prompts and padding never exist. Positions are counted over the attention mask.

    Args:
        policy (`PreTrainedModel` or `PeftModel`): A causal language model.
        input_ids (`(B, W)` int64 tensor): Tokens, padded on either side.
        attention_mask (`(B, W)` tensor): 1 for tokens, 0 for padding.
        rows (`(n,)` int64 tensor): Row of each place.
        columns (`(n,)` int64 tensor): Column of each place: one left of the token that the logits are of.

    Raises:
        ModelError: If the model has no output embeddings, or its forward does not run them over all of the sequence.

    Example:

    ```python
    >>> rows, columns = response_mask.nonzero(as_tuple=True)
    >>> logits = response_logits(policy, input_ids, attention_mask, rows, columns - 1)
    >>> logprobs, entropy = token_logprobs(logits, input_ids[rows, columns])
    ```
    """
    head = policy.get_output_embeddings()
    if head is None:
        raise ModelError(f"got a {type(policy).__name__} without output embeddings; wanted a causal language model")
    shapes: list[torch.Size] = []

    def pick(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        shapes.append(args[0].shape[:2])
        return (args[0][rows, columns][None],)

    position_ids = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
    hook = head.register_forward_pre_hook(pick)
    try:
        logits = policy(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        ).logits
    finally:
        hook.remove()
    if shapes != [input_ids.shape]:
        raise ModelError(
            f"got hidden states {[tuple(shape) for shape in shapes]} at the head of {type(policy).__name__}; wanted "
            f"one of {tuple(input_ids.shape)}: virtual tokens and heads applied otherwise do not serve here"
        )
    return logits.squeeze(0)  # a view back too: an index would fill and copy a gradient of all logits
