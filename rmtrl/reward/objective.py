"""What a configuration makes of a batch: the loss of a pair, the reward of a side."""

from collections.abc import Mapping

import torch

from rmtrl.reward.config import RewardConfig
from rmtrl.reward.heads import Head
from rmtrl.reward.losses import (
    TIE_LOSSES,
    attributes_loss,
    bce_loss,
    bradley_terry_loss,
    center_loss,
    fit_tie_parameter,
    mse_loss,
    tie_loss,
)

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
