"""From scores and divergences to advantages: pure functions on padded responses, row by row.

`B` responses of at most `R` tokens; a mask is true for the first tokens of each row, as many as the response has.
"""

import torch

from rmtrl.errors import DataError


def shaped_rewards(scores: torch.Tensor, kl: torch.Tensor, mask: torch.Tensor, kl_coef: float) -> torch.Tensor:
    """Returns the reward of every token, `(B, R)`: −β KL, and the score on top at the last one; 0 after it.

    Args:
        scores (`(B,)` tensor): Score of each response.
        kl (`(B, R)` tensor): From [`kl_terms`], in nats.
        mask (`(B, R)` bool tensor): True for the tokens of the response.
        kl_coef (`float`): β, reward lost a nat.

    Raises:
        DataError: If a row of the mask has no token or a gap, so that its score would have no place.

    Example:

    ```python
    >>> shaped_rewards(torch.tensor([1.0]), torch.tensor([[2.0, 4.0, 9.0]]), torch.tensor([[True, True, False]]), 0.5)
    tensor([[-1., -1.,  0.]])
    ```
    """
    if not (mask.shape[1] and mask[:, 0].all() and (mask[:, 1:] <= mask[:, :-1]).all()):
        raise DataError("got a response mask with an empty row or a gap; wanted its first tokens true, one at least")
    last = mask & ~_shifted(mask)
    return (-kl_coef * kl).masked_fill(~mask, 0) + torch.where(last, scores[:, None], 0)


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns advantages and returns, each `(B, R)` and 0 outside the mask.

    δ_t = r_t + γ V_{t+1} − V_t and A_t = δ_t + γ λ A_{t+1}, with V = 0 after the last token, where the episode ends;
    the returns are A + V (Schulman et al. 2016, https://huggingface.co/papers/1506.02438).

    Args:
        rewards (`(B, R)` tensor): From [`shaped_rewards`].
        values (`(B, R)` tensor): Value of the state each token was drawn in.
        mask (`(B, R)` bool tensor): True for the tokens of the response.
        gamma (`float`): Discount γ.
        lam (`float`): Trace decay λ; 1 makes the returns the sums of the rewards to come.

    Example:

    ```python
    >>> rewards, values, mask = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]]), torch.ones(1, 2).bool()
    >>> gae(rewards, values, mask, gamma=1.0, lam=1.0)
    (tensor([[0.5000, 0.5000]]), tensor([[1., 1.]]))
    ```
    """
    rewards, values = rewards.masked_fill(~mask, 0), values.masked_fill(~mask, 0)
    deltas = rewards + gamma * _shifted(values) - values
    advantages, following = torch.empty_like(deltas), deltas.new_zeros(len(deltas))
    for t in reversed(range(deltas.shape[1])):
        following = deltas[:, t] + gamma * lam * following
        advantages[:, t] = following
    return advantages, advantages + values


def whiten(values: torch.Tensor, mask: torch.Tensor, shift_mean: bool = True) -> torch.Tensor:
    """Returns the values scaled to variance 1 over the mask, with mean 0 or their own; 0 outside the mask.

    The variance divides by the number of tokens, so a single one is finite (TRL's divides by one less).

    Args:
        values (`(B, R)` tensor): Advantages or rewards.
        mask (`(B, R)` bool tensor): True for the tokens that count.
        shift_mean (`bool`, *optional*, defaults to `True`): Whether the mean becomes 0; without, it stays.

    Example:

    ```python
    >>> whiten(torch.tensor([[1.0, 3.0, 7.0]]), torch.tensor([[True, True, False]]))
    tensor([[-1.,  1.,  0.]])
    ```
    """
    values, n = values.masked_fill(~mask, 0), mask.sum().clamp(min=1)
    mean = values.sum() / n
    centred = (values - mean).masked_fill(~mask, 0)
    whitened = centred * torch.rsqrt(centred.square().sum() / n + 1e-8)
    return whitened if shift_mean else (whitened + mean).masked_fill(~mask, 0)


def _shifted(x: torch.Tensor) -> torch.Tensor:
    """Returns `(B, R)` whose column t is the next one of `x`, 0 or false in the last."""
    return torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], dim=1)
