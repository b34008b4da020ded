"""The clipped losses of policy and value, a token, not reduced: the caller knows over how many tokens to average."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PolicyLoss:
    """The policy's loss at `n` tokens.

    Args:
        loss (`(n,)` tensor): To be averaged and minimised.
        clipped (`(n,)` bool tensor): Where the clip took effect, so that the token has no gradient.
        ratio (`(n,)` tensor): π / π_old, detached.
    """

    loss: torch.Tensor
    clipped: torch.Tensor
    ratio: torch.Tensor


@dataclass(frozen=True)
class ValueLoss:
    """The value's loss at `n` tokens.

    Args:
        loss (`(n,)` tensor): To be averaged and minimised.
        clipped (`(n,)` bool tensor): Where the clip took effect.
    """

    loss: torch.Tensor
    clipped: torch.Tensor


def policy_loss(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, cliprange: float
) -> PolicyLoss:
    """Returns PPO's loss max(−A ρ, −A clip(ρ, 1 − ε, 1 + ε)) of every token, with ρ = π / π_old.

    From Schulman et al. 2017, https://huggingface.co/papers/1707.06347, eq. 7.

    Args:
        logprobs (`(n,)` tensor): Log probability of each token under the policy, with its gradient.
        old_logprobs (`(n,)` tensor): The same when the tokens were drawn.
        advantages (`(n,)` tensor): A, without gradient.
        cliprange (`float`): ε.

    Example:

    ```python
    >>> policy_loss(torch.tensor([0.0]), torch.tensor([-1.0]), torch.tensor([2.0]), 0.2).loss
    tensor([-2.4000])
    ```
    """
    ratio = torch.exp(logprobs - old_logprobs)
    plain, cut = -advantages * ratio, -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return PolicyLoss(torch.maximum(plain, cut), cut > plain, ratio.detach())


def value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, cliprange_value: float
) -> ValueLoss:
    """Returns ½ max((V − G)², (V_clip − G)²) of every token, with V_clip at most `cliprange_value` from the old V.

    Args:
        values (`(n,)` tensor): V, with its gradient.
        old_values (`(n,)` tensor): V when the tokens were drawn.
        returns (`(n,)` tensor): G, from [`gae`].
        cliprange_value (`float`): How far V may move from the old one before it has no gradient.

    Example:

    ```python
    >>> value_loss(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([2.0]), 0.2).loss
    tensor([1.6200])
    ```
    """
    near = torch.clamp(values, old_values - cliprange_value, old_values + cliprange_value)
    plain, cut = (values - returns).square(), (near - returns).square()
    return ValueLoss(0.5 * torch.maximum(plain, cut), cut > plain)
