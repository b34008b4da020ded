"""The losses of preference learning, as pure functions of reward tensors, and what a configuration makes of a batch.

Written with r_w and r_l for the rewards of the chosen and the rejected response, m = r_w − r_l, σ the logistic
function, and `label` for the share of votes for chosen: 1 where it won, ½ for a tie. Every function is elementwise, so
a last dimension of ensemble members is welcome.
"""

import math
from collections.abc import Mapping

import torch
from torch.nn.functional import logsigmoid, softplus

from rmtrl.reward.config import TIE_LOSSES, RewardConfig
from rmtrl.reward.heads import Head


def bradley_terry_loss(
    margin: torch.Tensor, label: torch.Tensor | None = None, *, shift: torch.Tensor | float = 0.0,
    label_smoothing: float = 0.0,
) -> torch.Tensor:  # fmt: skip
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
    value: float, margin: torch.Tensor, label: torch.Tensor, weight: torch.Tensor | None = None, *, loss_type: str,
    rate: float = 0.5,
) -> float:  # fmt: skip
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


_FIRST_RATE = 0.5
_FIRST_TIE_PARAMETER = {"rao_kupper": 0.5, "davidson": 1.0}


class Objective:
    """
    The loss of a configuration.

    After training, `tie_parameter_` is the fitted η or ν of a loss that knows ties, `None` for another.

    Args:
        settings ([`RewardConfig`]): The configuration.
    """

    def __init__(self, settings: RewardConfig) -> None:
        self.settings = settings
        self.head = Head.of(settings)
        self.tie_parameter_: float | None = None
        if settings.loss_type in TIE_LOSSES:
            self.tie_parameter_ = settings.tie_parameter or _FIRST_TIE_PARAMETER[settings.loss_type]
        self.mean_weight: float | None = None  # of the training set, once it is known
        self._drops = settings.pair_validation == "drop"
        self._unfitted: list[torch.Tensor] = []

    def losses(
        self, outputs: torch.Tensor, inputs: Mapping[str, torch.Tensor], *, sound: torch.Tensor, training: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns rewards of chosen and rejected and the loss of each pair, `(B,)` each.

        Args:
            outputs (`(2B, n_outputs)` float32 tensor): Of the head, chosen before rejected.
            inputs (`Mapping`): The batch.
            sound (`(B,)` tensor): False for pairs whose numbers must not enter the graph.
            training (`bool`): Whether members see their own bootstrap.
        """
        chosen, rejected = outputs.chunk(2)
        rewards = self.head.reward(chosen), self.head.reward(rejected)
        if self.head.criteria and "targets" not in inputs:  # rewards can be predicted without
            losses = torch.full_like(rewards[0], float("nan"))
        elif self.head.criteria:
            wanted = inputs["targets"].chunk(2)
            losses = (attributes_loss(chosen, wanted[0]) + attributes_loss(rejected, wanted[1])) / 2
            losses = losses + self._center(*rewards)
        else:
            members = self._member_losses(chosen, rejected, inputs, sound) + self._center(chosen, rejected)
            if training and "bootstrap" in inputs:
                members = members * inputs["bootstrap"]
            losses = members.mean(dim=-1)
        if "weight" in inputs:
            losses = losses * inputs["weight"] / (self.mean_weight or 1.0)
        return *rewards, losses

    def _member_losses(
        self, chosen: torch.Tensor, rejected: torch.Tensor, inputs: Mapping[str, torch.Tensor], sound: torch.Tensor
    ) -> torch.Tensor:
        """Returns the loss of every member, `(B, K)`."""
        settings, margin = self.settings, chosen - rejected
        label = inputs["label"][:, None].expand_as(margin) if "label" in inputs else None
        if settings.loss_type == "bradley_terry":
            # a margin that is no number must not enter the graph: 0 · NaN is NaN in its gradient
            shift = torch.where(sound, inputs["margin"], 0.0)[:, None] if "margin" in inputs else 0.0
            label = label if settings.soft_labels else None
            return bradley_terry_loss(margin, label, shift=shift, label_smoothing=settings.label_smoothing)
        label = torch.ones_like(margin) if label is None else label
        if settings.loss_type == "mse":
            return mse_loss(chosen, rejected, label)
        if settings.loss_type == "bce":
            return bce_loss(chosen, rejected, label)
        assert self.tie_parameter_ is not None
        return tie_loss(margin, label, loss_type=settings.loss_type, tie_parameter=self.tie_parameter_)

    def _center(self, chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor | float:
        coefficient = self.settings.center_rewards_coefficient
        return 0.0 if coefficient is None else coefficient * center_loss(chosen, rejected)

    @property
    def fits_ties(self) -> bool:
        """Whether a tie parameter is to be fitted."""
        return self.tie_parameter_ is not None and self.settings.tie_parameter is None

    def fit_ties(self, pairs: Mapping[str, torch.Tensor], *, step: int, last: bool) -> None:
        """Moves the tie parameter by one descent step, at the last micro-batch of an optimizer step.

        The size of the step falls with their number, so that the parameter settles.

        Args:
            pairs (`Mapping`): Those of the micro-batch, over all processes; see [`~rmtrl.reward.pairs.step_columns`].
            step (`int`): Optimizer steps so far.
            last (`bool`): Whether the optimizer steps after this micro-batch.
        """
        assert self.tie_parameter_ is not None
        margin = pairs["chosen"] - pairs["rejected"]
        weight = torch.where(pairs["reason"] == 0, pairs["weight"], 0.0) if self._drops else pairs["weight"]
        self._unfitted.append(torch.stack([margin, pairs["label"], weight]))
        if not last:
            return
        margin, label, weight = torch.cat(self._unfitted, dim=1)
        self._unfitted = []
        self.tie_parameter_ = fit_tie_parameter(
            self.tie_parameter_, margin, label, weight, loss_type=self.settings.loss_type,
            rate=max(_FIRST_RATE / (1 + step / 50), _FIRST_RATE / 10),
        )  # fmt: skip
