"""The arithmetic of PPO on tensors: log probabilities, divergence, advantages, losses; and the KL coefficient.

`B` responses of at most `R` tokens; a mask is true for the first tokens of each row, as many as the response has.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from rmtrl.errors import DataError, ModelError, UsageError

_LARGEST_ERROR = 0.2  # of the KL coefficient's controller
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


def kl_terms(
    logprobs: torch.Tensor, ref_logprobs: torch.Tensor, estimator: Literal["k1", "k3"] = "k1"
) -> torch.Tensor:
    """Returns an estimate of KL(policy ‖ reference) at every sampled token, in nats, in the shape given.

    With lr = log π(a) − log π_ref(a): k1 = lr, and k3 = e^(−lr) − 1 + lr, never below 0. Both are unbiased for tokens
    drawn from the policy (Schulman 2020, http://joschu.net/blog/kl-approx.html).

    Args:
        logprobs (`(B, R)` tensor): Log probability of each token under the policy.
        ref_logprobs (`(B, R)` tensor): The same under the reference.
        estimator (`str`, *optional*, defaults to `"k1"`): `"k1"` or `"k3"`.

    Raises:
        UsageError: If the estimator has another name.

    Example:

    ```python
    >>> kl_terms(torch.tensor([[-1.0]]), torch.tensor([[-3.0]]))
    tensor([[2.]])
    ```
    """
    if estimator not in ("k1", "k3"):
        raise UsageError(f"got the KL estimator {estimator!r}; wanted 'k1' or 'k3'")
    log_ratio = logprobs - ref_logprobs
    return log_ratio if estimator == "k1" else torch.expm1(-log_ratio) + log_ratio


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


@dataclass(frozen=True)
class TokenLoss:
    """A clipped loss at `n` tokens, not reduced: the caller knows over how many tokens to average.

    Args:
        loss (`(n,)` tensor): To be averaged and minimised.
        clipped (`(n,)` bool tensor): Where the clip took effect, so that the token has no gradient.
    """

    loss: torch.Tensor
    clipped: torch.Tensor


@dataclass(frozen=True)
class PolicyLoss(TokenLoss):
    """The policy's loss, with π / π_old, `(n,)`, detached."""

    ratio: torch.Tensor


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
) -> TokenLoss:
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
    return TokenLoss(0.5 * torch.maximum(plain, cut), cut > plain)


class FixedKLController:
    """A KL coefficient that stays.

    Args:
        kl_coef (`float`): Reward lost a nat, 0 or above.

    Raises:
        UsageError: If the coefficient is below 0 or not finite.
    """

    def __init__(self, kl_coef: float) -> None:
        if not (math.isfinite(kl_coef) and kl_coef >= 0):
            raise UsageError(f"got kl_coef {kl_coef}; wanted 0 or above")
        self.kl_coef = float(kl_coef)

    def update(self, kl: float, n_episodes: int) -> None:
        """Leaves the coefficient as it is."""

    def state_dict(self) -> dict[str, float]:
        """Returns what a resumed run needs, ready for JSON; the rest is the configuration's."""
        return {"kl_coef": self.kl_coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Leaves the coefficient as it is: a fixed one is the configuration's."""


class AdaptiveKLController(FixedKLController):
    """A KL coefficient that follows the divergence measured: up when it is above the target, down when below.

    β ← β (1 + e n / horizon) with e = clip(KL / target − 1, −0.2, 0.2) and n the episodes since the last update
    (Ziegler et al. 2019, https://huggingface.co/papers/1909.08593, who start from β = 0.15, target 6, horizon 10000).

    Args:
        kl_coef (`float`): β at the start, above 0.
        target (`float`): The divergence to hold, in nats an episode, above 0.
        horizon (`float`): Episodes over which β grows by the share e of itself, above 0.

    Raises:
        UsageError: If one of them is not above 0 or not finite.

    Example:

    ```python
    >>> controller = AdaptiveKLController(0.15, target=6.0, horizon=10_000)
    >>> controller.update(kl=12.0, n_episodes=512)
    >>> round(controller.kl_coef, 6)
    0.151536
    ```
    """

    def __init__(self, kl_coef: float, target: float, horizon: float) -> None:
        for name, value in (("kl_coef", kl_coef), ("target", target), ("horizon", horizon)):
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"got {name} {value} for the adaptive KL coefficient; wanted a number above 0")
        self.kl_coef, self.target, self.horizon = float(kl_coef), float(target), float(horizon)

    def update(self, kl: float, n_episodes: int) -> None:
        """Moves the coefficient after `n_episodes` whose mean divergence was `kl` nats an episode.

        Raises:
            UsageError: If the divergence is not finite, or so many episodes that the coefficient could fall to 0.
        """
        if not math.isfinite(kl):
            raise UsageError(
                f"got a divergence of {kl}; wanted a finite one: look for log probabilities of -inf or NaN"
            )
        if not 0 <= n_episodes < self.horizon / _LARGEST_ERROR:
            raise UsageError(
                f"got {n_episodes} episodes at an update; wanted fewer than {self.horizon / _LARGEST_ERROR:g}: raise "
                f"the horizon, {self.horizon:g}"
            )
        error = min(max(kl / self.target - 1, -_LARGEST_ERROR), _LARGEST_ERROR)
        self.kl_coef *= 1 + error * n_episodes / self.horizon

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Goes on from a coefficient that [`~AdaptiveKLController.state_dict`] returned.

        Raises:
            UsageError: If the state holds no coefficient above 0.
        """
        kl_coef = state.get("kl_coef", math.nan)
        if not (math.isfinite(kl_coef) and kl_coef > 0):
            raise UsageError(f"got {state} as the state of the adaptive KL coefficient; wanted a kl_coef above 0")
        self.kl_coef = float(kl_coef)


def make_kl_controller(kl_coef: float, target: float | None, horizon: float) -> FixedKLController:
    """Returns the controller of a KL coefficient: fixed without a target."""
    return FixedKLController(kl_coef) if target is None else AdaptiveKLController(kl_coef, target, horizon)
