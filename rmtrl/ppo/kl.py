"""The divergence of a policy from its reference, a token, and the coefficient it is charged at."""

import math
from typing import Literal

import torch

from rmtrl.errors import UsageError

_LARGEST_ERROR = 0.2


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
        """Returns what a resumed run needs, ready for JSON."""
        return {"kl_coef": self.kl_coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Leaves the coefficient as it is: a fixed one is the configuration's."""


class AdaptiveKLController:
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

    def state_dict(self) -> dict[str, float]:
        """Returns what a resumed run needs, ready for JSON; target and horizon are the configuration's."""
        return {"kl_coef": self.kl_coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Goes on from a coefficient that [`~AdaptiveKLController.state_dict`] returned.

        Raises:
            UsageError: If the state holds no coefficient above 0.
        """
        kl_coef = state.get("kl_coef", math.nan)
        if not (math.isfinite(kl_coef) and kl_coef > 0):
            raise UsageError(f"got {state} as the state of the adaptive KL coefficient; wanted a kl_coef above 0")
        self.kl_coef = float(kl_coef)
