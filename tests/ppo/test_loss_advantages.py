"""Rewards a token, advantages and whitening, against hand computation, brute force and other definitions."""

import pytest
import torch

from rmtrl.errors import DataError
from rmtrl.ppo.loss import gae, shaped_rewards, whiten

LENGTHS = torch.tensor([1, 4, 7, 2])
MASK = torch.arange(7) < LENGTHS[:, None]


@pytest.fixture
def padded():
    """Rewards and values whose padding is NaN: whatever looks at it shows."""
    torch.manual_seed(0)
    return [torch.randn(4, 7, dtype=torch.float64).masked_fill(~MASK, torch.nan) for _ in range(2)]


def test_rewards_by_hand():
    scores, kl = torch.tensor([1.0, -2.0]), torch.tensor([[2.0, 4.0, torch.nan], [1.0, 0.0, -2.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert shaped_rewards(scores, kl, mask, 0.5).tolist() == [[-1.0, -1.0, 0.0], [-0.5, 0.0, -1.0]]


def test_rewards_sum_to_score_minus_the_divergence(padded):
    scores = torch.randn(4).double()
    total = shaped_rewards(scores, padded[0], MASK, 0.3).sum(1)
    torch.testing.assert_close(total, scores - 0.3 * padded[0].nansum(1))
    at_last = shaped_rewards(scores, torch.zeros(4, 7), MASK, 0.3)
    assert (at_last != 0).nonzero()[:, 1].tolist() == (LENGTHS - 1).tolist()


@pytest.mark.parametrize("row", [[False, False], [False, True]])
def test_a_response_whose_score_has_no_place_is_refused(row):
    with pytest.raises(DataError, match="empty row or a gap"):
        shaped_rewards(torch.zeros(2), torch.zeros(2, 2), torch.tensor([[True, True], row]), 0.1)


def test_advantages_by_hand():
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.25, 0.5]])
    # the last differences are 1 - .5 = .5, .5 * .5 - .25 = 0 and .5 * .25 - .5 = -.375
    advantages, returns = gae(rewards, values, torch.ones(1, 3).bool(), gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[-0.375 + 0.25 * 0.125, 0.125, 0.5]]
    assert returns.tolist() == [[0.15625, 0.375, 1.0]]


def test_advantages_are_the_defining_sums_row_by_row(padded):
    gamma, lam = 0.9, 0.8
    advantages, returns = gae(*padded, MASK, gamma, lam)
    for row, length in enumerate(LENGTHS.tolist()):
        r, v = (x[row, :length].tolist() for x in padded)
        deltas = [r[t] + (gamma * v[t + 1] if t + 1 < length else 0) - v[t] for t in range(length)]
        for t in range(length):
            wanted = sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, length))
            assert advantages[row, t].item() == pytest.approx(wanted)
            assert returns[row, t].item() == pytest.approx(wanted + v[t])
    assert (advantages[~MASK] == 0).all() and (returns[~MASK] == 0).all()


def test_the_ends_of_lambda_are_monte_carlo_and_one_step(padded):
    rewards, values = padded
    returns = gae(rewards, values, MASK, 1.0, 1.0)[1]
    to_come = rewards.nan_to_num().flip(1).cumsum(1).flip(1).masked_fill(~MASK, 0)
    torch.testing.assert_close(returns, to_come)
    following = torch.cat([values.nan_to_num()[:, 1:], torch.zeros(4, 1)], 1)
    torch.testing.assert_close(gae(rewards, values, MASK, 1.0, 0.0)[1][MASK], (rewards + following)[MASK])


def test_padding_changes_no_advantage(padded):
    wide = [torch.cat([x, torch.full((4, 3), 9.0)], 1) for x in padded]
    mask = torch.cat([MASK, torch.zeros(4, 3).bool()], 1)
    for narrow, padded_wide in zip(gae(*padded, MASK, 0.9, 0.8), gae(*wide, mask, 0.9, 0.8), strict=True):
        assert torch.equal(narrow, padded_wide[:, :7]) and (padded_wide[:, 7:] == 0).all()


def test_whitening_is_that_of_the_n_implementation_details():
    wanted = [0.0508, 0.4381, 0.8254, 1.2127, 1.6000, 1.9873, 2.3746, 2.7619, 3.1492]
    values = torch.arange(12, 21).double()[None] / 10
    got = whiten(values, torch.ones(1, 9).bool(), shift_mean=False)
    torch.testing.assert_close(got[0], torch.tensor(wanted).double(), rtol=0, atol=5e-5)


def test_whitening_sees_the_mask_alone(padded):
    whitened = whiten(padded[0], MASK)
    valid = padded[0][MASK]
    torch.testing.assert_close(whitened[MASK], (valid - valid.mean()) / valid.std(correction=0))
    assert (whitened[~MASK] == 0).all() and (whiten(padded[0], MASK, shift_mean=False)[~MASK] == 0).all()


def test_whitening_forgets_scale_and_shift(padded):
    torch.testing.assert_close(whiten(3 * padded[0] + 5, MASK), whiten(padded[0], MASK))


def test_a_single_token_whitens_to_its_mean():
    mask = torch.tensor([[True, False]])
    assert whiten(torch.tensor([[3.0, torch.nan]]), mask).tolist() == [[0.0, 0.0]]
    assert whiten(torch.tensor([[3.0, torch.nan]]), mask, shift_mean=False).tolist() == [[3.0, 0.0]]
