"""An update of policy and value model from scored episodes: advantages, passes over the batch, optimizer steps."""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch

from rmtrl.generation import sampling_key
from rmtrl.models import check_finite
from rmtrl.ppo.advantages import gae, shaped_rewards, whiten
from rmtrl.ppo.episodes import Experience, Rollout, Scores
from rmtrl.ppo.kl import kl_terms
from rmtrl.ppo.losses import policy_loss, value_loss


class PPOUpdate:
    """The part of [`PPOTrainer`] that learns."""

    def advantages(self: Any, rollout: Rollout, scores: Scores) -> Experience:
        """Returns the episodes with rewards by token, whitened advantages and returns."""
        args, mask = self.args, rollout.mask
        kl = kl_terms(rollout.logprobs, rollout.ref_logprobs, args.kl_estimator) * mask
        kl_coef = self.kl_controller.kl_coef
        rewards = shaped_rewards(scores.scores, kl, mask, kl_coef)
        if args.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False)
        advantages, returns = gae(rewards, rollout.values, mask, args.gamma, args.lam)
        return Experience(rollout, scores, kl, kl_coef, rewards, whiten(advantages, mask), returns)

    def update(self: Any, experience: Experience, *, step: int = 0) -> dict[str, float]:
        """Returns the figures of `num_ppo_epochs` passes over a batch, `num_mini_batches` optimizer steps each."""
        totals: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=self.accelerator.device))
        grad_norms = []
        for epoch in range(self.args.num_ppo_epochs):
            generator = torch.Generator().manual_seed(sampling_key(self.args.seed, "order", step, epoch))
            for mini_batch in torch.randperm(self.args.num_mini_batches, generator=generator).tolist():
                sums, grad_norm = self.optimize(experience, mini_batch)
                grad_norms.append(grad_norm)
                for name, value in sums.items():
                    totals[name] += value
                if self.args.max_approx_kl is not None and self._too_far(sums):
                    return self._update_metrics(totals, grad_norms)
        return self._update_metrics(totals, grad_norms)

    def optimize(self: Any, experience: Experience, mini_batch: int) -> tuple[dict[str, torch.Tensor], float]:
        """Takes one optimizer step on a mini-batch; returns sums over this process's tokens and the gradient norm."""
        rollout, world_size = experience.rollout, self.accelerator.num_processes
        passes = rollout.plan.own(mini_batch, self.accelerator.process_index, world_size)
        n_tokens = rollout.mask[rollout.plan.rows(mini_batch)].sum()
        totals: dict[str, torch.Tensor] = {}
        for number, rows in enumerate(passes, 1):
            last = number == len(passes)
            self.accelerator.sync_gradients = last
            with nullcontext() if last else self.accelerator.no_sync(self.model_wrapped):
                loss, sums = self.token_losses(experience, rows)
                # a mean over all tokens of the mini-batch, though processes average their gradients
                self.accelerator.backward(loss * (world_size / n_tokens))
            totals = {name: totals.get(name, 0) + value for name, value in sums.items()}
        grad_norm = self._clip_grad_norm(self.model_wrapped) if self.args.max_grad_norm > 0 else None
        grad_norm = self._get_grad_norm(self.model_wrapped, grad_norm=grad_norm)
        self.check_finite(loss.detach(), "the loss is")
        if self.accelerator.scaler is None:  # with one the step is left out, and its scale lowered
            self.check_finite(torch.as_tensor(grad_norm), "the gradient norm is")
        self.control = self.callback_handler.on_pre_optimizer_step(self.args, self.state, self.control)
        self.optimizer.step()
        self.control = self.callback_handler.on_optimizer_step(self.args, self.state, self.control)
        self.model_wrapped.zero_grad()
        return totals, float(grad_norm)

    def check_finite(self: Any, *named: Any) -> None:
        """Passes tensors, each followed by its name and verb, all of whose numbers are finite.

        Raises:
            ModelError: If a number is not.
        """
        for tensor, name in zip(named[::2], named[1::2], strict=True):
            check_finite(f"update {self.state.global_step + 1}", tensor, name)

    def token_losses(
        self: Any, experience: Experience, rows: Sequence[int]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Returns the loss of some rows, summed over their tokens, and the sums that are logged."""
        args, rollout = self.args, experience.rollout
        mask = rollout.mask[rows]

        def at(tensor: torch.Tensor) -> torch.Tensor:
            return tensor[rows][mask]

        batch = [part.to(self.accelerator.device) for part in rollout.episodes.batch(rows)]
        logprobs, entropy, values = self.model_wrapped(*batch, args.temperature)
        old = at(rollout.logprobs)
        policy = policy_loss(logprobs, old, at(experience.advantages), args.cliprange)
        value = value_loss(values, at(rollout.values), at(experience.returns), args.cliprange_value)
        loss = policy.loss.sum() + args.vf_coef * value.loss.sum()
        if args.entropy_coef:
            loss = loss - args.entropy_coef * entropy.sum()
        sums = {
            "n": mask.sum(),
            "policy/approxkl_avg": 0.5 * (logprobs - old).square().sum(),
            "policy/clipfrac_avg": policy.clipped.sum(),
            "policy/entropy_avg": entropy.sum(),
            "loss/policy_avg": policy.loss.sum(),
            "loss/value_avg": value.loss.sum(),
            "val/clipfrac_avg": value.clipped.sum(),
            "val/ratio": policy.ratio.sum(),
            "val/ratio_var": (policy.ratio - 1).square().sum(),
        }
        return loss, {name: value.detach() for name, value in sums.items()}

    def _too_far(self: Any, sums: dict[str, torch.Tensor]) -> bool:
        both = torch.stack([sums["policy/approxkl_avg"].float(), sums["n"].float()])
        kl, n = self.accelerator.reduce(both, "sum")
        return bool(kl / n > self.args.max_approx_kl)

    def _update_metrics(self: Any, totals: dict[str, torch.Tensor], grad_norms: list[float]) -> dict[str, float]:
        names = list(totals)
        sums = self.accelerator.reduce(torch.stack([totals[name].float() for name in names]), "sum").tolist()
        figures = dict(zip(names, sums, strict=True))
        n = figures.pop("n")
        figures = {name: value / n for name, value in figures.items()}
        figures["val/ratio_var"] -= (figures["val/ratio"] - 1) ** 2
        return figures | {
            "policy/grad_norm": sum(grad_norms) / len(grad_norms),
            "policy/optimizer_steps": float(len(grad_norms)),
        }
