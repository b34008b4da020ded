"""The clipped losses, by hand, against the textbook form, and where their gradients vanish."""

import pytest
import torch

from rmtrl.ppo.loss import policy_loss, value_loss


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.5, 2.0, -2.4, True), (1.5, -2.0, 3.0, False), (0.5, 2.0, -1.0, False), (0.5, -2.0, 1.6, True),
        (1.1, 2.0, -2.2, False), (1.1, -2.0, 2.2, False), (1.0, 0.0, 0.0, False),
    ],
)  # fmt: skip
def test_policy_loss_by_hand(ratio, advantage, loss, clipped):
    logprobs = (torch.tensor([-3.0]) + torch.tensor([ratio]).log()).requires_grad_()
    got = policy_loss(logprobs, torch.tensor([-3.0]), torch.tensor([advantage]), 0.2)
    assert got.loss.item() == pytest.approx(loss, abs=1e-6) and got.clipped.tolist() == [clipped]
    assert got.ratio.item() == pytest.approx(ratio) and not got.ratio.requires_grad
    got.loss.sum().backward()
    assert logprobs.grad.item() == pytest.approx(0 if clipped else -advantage * ratio, abs=1e-6)


def test_policy_loss_is_the_papers_objective():
    torch.manual_seed(0)
    logprobs, old_logprobs, advantages = torch.randn(3, 500)
    ratio = torch.exp(logprobs - old_logprobs)
    cut = torch.where(ratio < 0.7, 0.7, torch.where(ratio > 1.3, 1.3, ratio))
    wanted = -torch.stack([ratio * advantages, cut * advantages]).min(0).values
    got = policy_loss(logprobs, old_logprobs, advantages, 0.3)
    torch.testing.assert_close(got.loss, wanted)
    assert 0 < got.clipped.sum() < 500
    outside = ((advantages > 0) & (ratio > 1.3)) | ((advantages < 0) & (ratio < 0.7))
    assert torch.equal(got.clipped, outside)


def test_at_the_old_policy_the_gradient_is_the_policy_gradient():
    logprobs = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    advantages = torch.tensor([1.0, -2.0, 0.5])
    got = policy_loss(logprobs, logprobs.detach(), advantages, 0.2)
    got.loss.sum().backward()
    assert torch.equal(logprobs.grad, -advantages)
    assert (got.ratio == 1).all() and not got.clipped.any()


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "clipped"),
    [
        (1.0, 0.0, 2.0, 1.62, True), (1.0, 0.0, 0.5, 0.125, False), (0.1, 0.0, 2.0, 1.805, False),
        (-1.0, 0.0, -2.0, 1.62, True), (2.0, 0.0, 0.0, 2.0, False),
    ],
)  # fmt: skip
def test_value_loss_by_hand(value, old, target, loss, clipped):
    values = torch.tensor([value], requires_grad=True)
    got = value_loss(values, torch.tensor([old]), torch.tensor([target]), 0.2)
    assert got.loss.item() == pytest.approx(loss) and got.clipped.tolist() == [clipped]
    got.loss.sum().backward()
    assert values.grad.item() == pytest.approx(0 if clipped else value - target)


def test_value_loss_is_the_squared_error_near_the_old_value_and_never_below_it():
    torch.manual_seed(0)
    values, old_values, returns = torch.randn(3, 500)
    squared = torch.nn.functional.mse_loss(values, returns, reduction="none") / 2
    torch.testing.assert_close(value_loss(values, old_values, returns, 1e6).loss, squared)
    got = value_loss(values, old_values, returns, 0.5)
    assert (got.loss >= squared).all() and torch.equal(got.loss > squared, got.clipped) and got.clipped.any()
