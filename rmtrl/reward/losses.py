"""The losses of preference learning, as pure functions of reward tensors: one number a pair, no state.

Written with r_w and r_l for the rewards of the chosen and the rejected response, m = r_w − r_l, σ the logistic
function, and `label` for the share of votes for chosen: 1 where it won, ½ for a tie. Every function is elementwise, so
a last dimension of ensemble members is welcome.
"""

import math
from typing import Literal

import torch
from torch.nn.functional import logsigmoid, softplus

LossType = Literal["bradley_terry", "rao_kupper", "davidson", "mse", "bce", "attributes"]
TIE_LOSSES = ("rao_kupper", "davidson")
"""Losses that give a tie a probability of its own."""


def bradley_terry_loss(
    margin: torch.Tensor,
    label: torch.Tensor | None = None,
    *,
    shift: torch.Tensor | float = 0.0,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Returns −q log σ(m − s) − (1 − q) log σ(s − m), with q the smoothed label: the loss of reward modelling.

    Bradley and Terry (1952). With label smoothing ε the label q becomes (1 − ε)·q + ε·(1 − q), whose best margin has
    size log((1 − ε)/ε). The shift s is Llama 2's margin (https://huggingface.co/papers/2307.09288, Eq. 2); it moves
    the optimum, so that σ(m) is no longer a probability before calibration.

    Args:
        margin (`(...)` tensor): Chosen minus rejected reward.
        label (`(...)` tensor, *optional*): Share of votes for chosen; 1 throughout when absent.
        shift (`(...)` tensor or `float`): By how much chosen should win.
        label_smoothing (`float`): Share of labels taken to be wrong, from 0 to ½.

    Example:

    ```python
    >>> bradley_terry_loss(torch.tensor([2.1 - 0.4, 0.8 - 1.0, 1.9 - 1.2])).mean()
    tensor(0.4564)
    ```
    """
    margin = margin - shift
    if label is None and not label_smoothing:
        return -logsigmoid(margin)
    label = torch.ones_like(margin) if label is None else label
    label = (1 - label_smoothing) * label + label_smoothing * (1 - label)
    return -label * logsigmoid(margin) - (1 - label) * logsigmoid(-margin)


def rao_kupper_log_probabilities(margin: torch.Tensor, eta: torch.Tensor | float) -> torch.Tensor:
    """Returns the logarithms of P(chosen wins), P(tie) and P(rejected wins), `(..., 3)`.

    Rao and Kupper (1967), with threshold η ≥ 0: a side wins with σ(±m − η), else it is a tie.

    Args:
        margin (`(...)` tensor): Chosen minus rejected reward.
        eta (`(...)` tensor or `float`): Threshold; 0 leaves ties no probability.

    Example:

    ```python
    >>> rao_kupper_log_probabilities(torch.tensor(0.7), 0.4).exp()
    tensor([0.5744, 0.1758, 0.2497])
    ```
    """
    eta = torch.as_tensor(eta, dtype=margin.dtype, device=margin.device)
    win, loss = logsigmoid(margin - eta), logsigmoid(-margin - eta)
    return torch.stack([win, torch.log(torch.expm1(2 * eta)) + win + loss, loss], dim=-1)


def davidson_log_probabilities(margin: torch.Tensor, nu: torch.Tensor | float) -> torch.Tensor:
    """Returns the logarithms of P(chosen wins), P(tie) and P(rejected wins), `(..., 3)`.

    Davidson (1970), with ν ≥ 0: e^{m/2} : ν : e^{−m/2}. The log-odds of winning against losing stay m, so margins
    read as under Bradley–Terry.

    Args:
        margin (`(...)` tensor): Chosen minus rejected reward.
        nu (`(...)` tensor or `float`): Weight of ties; 0 leaves them no probability.

    Example:

    ```python
    >>> davidson_log_probabilities(torch.tensor(0.7), 0.8).exp()
    tensor([0.4854, 0.2736, 0.2410])
    ```
    """
    nu = torch.as_tensor(nu, dtype=margin.dtype, device=margin.device)
    logits = torch.stack([margin / 2, torch.log(nu).expand_as(margin), -margin / 2], dim=-1)
    return torch.log_softmax(logits, dim=-1)


def outcome_shares(label: torch.Tensor) -> torch.Tensor:
    """Returns the shares of chosen winning, tie and rejected winning that a label stands for, `(..., 3)`.

    A label of exactly ½ is a tie; any other is a share of votes for one side or the other.

    Example:

    ```python
    >>> outcome_shares(torch.tensor([1.0, 0.5, 0.75]))
    tensor([[1.0000, 0.0000, 0.0000],
            [0.0000, 1.0000, 0.0000],
            [0.7500, 0.0000, 0.2500]])
    ```
    """
    tie = (label == 0.5).to(label.dtype)
    return torch.stack([label * (1 - tie), tie, (1 - label) * (1 - tie)], dim=-1)


def tie_loss(
    margin: torch.Tensor, label: torch.Tensor, *, loss_type: str, tie_parameter: torch.Tensor | float
) -> torch.Tensor:
    """Returns −Σ share · log P over the three outcomes of a pair, under Rao–Kupper or Davidson.

    Args:
        margin (`(...)` tensor): Chosen minus rejected reward.
        label (`(...)` tensor): Share of votes for chosen, exactly ½ for a tie.
        loss_type (`str`): `"rao_kupper"` or `"davidson"`.
        tie_parameter (`float` or tensor): η or ν, above 0.

    Example:

    ```python
    >>> tie_loss(torch.tensor([0.0]), torch.tensor([0.5]), loss_type="davidson", tie_parameter=0.8).exp()
    tensor([3.5000])
    ```
    """
    kinds = {"rao_kupper": rao_kupper_log_probabilities, "davidson": davidson_log_probabilities}
    shares = outcome_shares(label)
    logs = kinds[loss_type](margin, tie_parameter)
    return -torch.where(shares > 0, shares * logs, 0.0).sum(dim=-1)


def fit_tie_parameter(
    value: float,
    margin: torch.Tensor,
    label: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    loss_type: str,
    rate: float = 0.5,
) -> float:
    """Returns the tie parameter after one step of gradient descent on the tie loss of a batch.

    The step is taken on softplus⁻¹ of the parameter, which keeps it above 0.

    Args:
        value (`float`): η or ν so far, above 0.
        margin, label (`(N,)` tensors): Of the batch, over all processes; pairs without a finite margin do not count.
        weight (`(N,)` tensor, *optional*): Weights of the pairs; equal when absent.
        loss_type (`str`): `"rao_kupper"` or `"davidson"`.
        rate (`float`): Size of the step.

    Example:

    ```python
    >>> fit_tie_parameter(1.0, torch.zeros(8), torch.full((8,), 0.5), loss_type="davidson") > 1.0
    True
    ```
    """
    with torch.enable_grad(), torch.autocast(margin.device.type, enabled=False):
        raw = torch.tensor(math.log(math.expm1(value)), dtype=torch.float64, requires_grad=True)
        weight = torch.ones_like(margin) if weight is None else weight
        finite = torch.isfinite(margin) & (weight > 0)
        if not finite.any():
            return value
        margin, label, weight = (column[finite].detach().cpu().double() for column in (margin, label, weight))
        losses = tie_loss(margin, label, loss_type=loss_type, tie_parameter=softplus(raw))
        loss = (losses * weight).sum() / weight.sum()
        (gradient,) = torch.autograd.grad(loss, raw)
    return max(float(softplus(raw.detach() - rate * gradient)), 1e-6)


def mse_loss(chosen: torch.Tensor, rejected: torch.Tensor, label: torch.Tensor | float = 1.0) -> torch.Tensor:
    """Returns ½·(r_w − q)² + ½·(r_l − (1 − q))²: rewards regressed on 1, 0 and, for a tie, ½.

    Args:
        chosen, rejected (`(...)` tensors): Rewards.
        label (`(...)` tensor or `float`): Share of votes for chosen, q.

    Example:

    ```python
    >>> mse_loss(torch.tensor([0.8]), torch.tensor([0.4]))
    tensor([0.1000])
    ```
    """
    return ((chosen - label) ** 2 + (rejected - (1 - label)) ** 2) / 2


def bce_loss(chosen: torch.Tensor, rejected: torch.Tensor, label: torch.Tensor | float = 1.0) -> torch.Tensor:
    """Returns the mean binary cross-entropy of the two sides: is this response a good one?

    Args:
        chosen, rejected (`(...)` tensors): Rewards, read as logits.
        label (`(...)` tensor or `float`): Share of votes for chosen, the target of chosen; 1 − label is rejected's.

    Example:

    ```python
    >>> bce_loss(torch.tensor([2.0]), torch.tensor([-1.0]))
    tensor([0.2201])
    ```
    """
    return (bradley_terry_loss(chosen, label * torch.ones_like(chosen)) + bradley_terry_loss(
        -rejected, label * torch.ones_like(rejected)
    )) / 2  # fmt: skip


def attributes_loss(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns the mean squared error over the criteria that were judged; a response judged on none gives 0.

    Args:
        scores (`(..., C)` tensor): One output a criterion.
        targets (`(..., C)` tensor): Scores from 0 to 1, NaN where a criterion was not judged.

    Example:

    ```python
    >>> attributes_loss(torch.tensor([[0.5, 0.9]]), torch.tensor([[1.0, float("nan")]]))
    tensor([0.2500])
    ```
    """
    judged = torch.isfinite(targets)
    errors = torch.where(judged, scores - torch.where(judged, targets, 0.0), 0.0) ** 2
    return errors.sum(dim=-1) / judged.sum(dim=-1).clamp_min(1)


def center_loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """Returns (r_w + r_l)², which holds rewards near 0 (Eisenstein et al. 2023, https://huggingface.co/papers/2312.09244).

    Bradley–Terry does not care where rewards stand; members of an ensemble then differ by constants that mean nothing.

    Args:
        chosen, rejected (`(...)` tensors): Rewards.

    Example:

    ```python
    >>> center_loss(torch.tensor([2.0]), torch.tensor([-1.0]))
    tensor([1.])
    ```
    """
    return (chosen + rejected) ** 2
