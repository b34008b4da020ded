"""The e-process by betting: against confseq 0.0.11, by hand, and what makes it valid."""

import itertools

import numpy as np
import pytest

from rmtrl.errors import UsageError
from rmtrl.metrics.anytime import STAKES, WEIGHTS, spread, wagered

VERDICTS = [1, 0, 0.5, 0, 0, 1, 0, 0, 0.5, 0, 0.25, 0]


def test_each_stake_is_confseqs_betting_martingale():
    # betting_mart(x, 1/2, theta=0, lambdas_fn_negative=λ, trunc_scale=1), after 4 and after 12 verdicts
    expected = {0.25: (1.10742188, 1.85529384), 0.5: (1.171875, 3.01748514), 1.0: (1.125, 5.33935547),
                1.5: (0.765625, 4.31965494)}  # fmt: skip
    path = wagered(np.ones(4), VERDICTS, stakes=list(expected), weights=np.ones(4) / 4, share=0.0)
    np.testing.assert_allclose(path[[3, 11]].T, list(expected.values()), rtol=1e-8)


def test_several_stakes_are_confseqs_diversified_martingale():
    # diversified_betting_mart with the same five constant bets and theta=0
    expected = [0.675, 0.821875, 0.821875, 1.03398438, 1.34760742, 0.87349243, 1.0902962, 1.40411005, 1.40411005,
                1.8681491, 2.21821655, 3.10635779]  # fmt: skip
    even = np.full(5, 0.2)
    path = wagered(even, VERDICTS, stakes=[0, 0.25, 0.5, 1, 1.5], weights=even, share=0.0)
    np.testing.assert_allclose(path.sum(-1), expected, rtol=1e-7)


def test_a_share_is_spread_anew_after_each_decided_verdict():
    path = wagered([0.5, 0.5], [0, 0.5, 1], stakes=[0, 1], weights=[0.8, 0.2], share=0.1)
    # 0.5 and 0.75 after a loss: a tenth of 1.25 is spread anew, 0.8 of it to the first; a tie; a win
    first = [0.9 * 0.5 + 0.1, 0.9 * 0.75 + 0.025]
    bet = [first[0], first[1] / 2]
    last = [0.9 * bet[0] + 0.08 * sum(bet), 0.9 * bet[1] + 0.02 * sum(bet)]
    np.testing.assert_allclose(path, [first, first, last])


def test_capital_is_fair_where_either_verdict_is_as_likely():
    """Over all 2^10 orders of wins and losses its mean is 1 at every time, and Ville's bound holds."""
    orders = np.array(list(itertools.product([0, 1], repeat=10)))
    capital = wagered(spread(), orders).sum(-1)
    np.testing.assert_allclose(capital.mean(0), 1.0)
    for alpha in (0.5, 0.2, 0.1):
        assert 0 < (capital.max(1) >= 1 / alpha).mean() <= alpha


def test_capital_shrinks_in_the_mean_where_wins_are_likelier():
    orders = np.array(list(itertools.product([0, 1], repeat=10)))
    chances = np.prod(np.where(orders == 1, 0.6, 0.4), axis=1)
    means = chances @ wagered(spread(), orders).sum(-1)
    assert (np.diff(means) < 0).all() and means[0] < 1


def test_the_whole_capital_lies_on_stakes_that_cannot_lose_it():
    assert len(STAKES) == len(WEIGHTS) and sum(WEIGHTS) == sum(spread()) == 1.0
    assert all(0 <= stake < 2 for stake in STAKES)


def test_it_goes_on_from_where_it_stood():
    whole = wagered(spread(), VERDICTS)
    first = wagered(spread(), VERDICTS[:5])
    np.testing.assert_array_equal(wagered(first[-1], VERDICTS[5:]), whole[5:])
    assert wagered(spread(), []).shape == (0, len(STAKES))


def test_many_runs_are_each_as_alone():
    runs = np.random.default_rng(0).choice([0, 0.5, 1], size=(3, 20))
    together = wagered(spread(), runs)
    assert together.shape == (3, 20, len(STAKES))
    for alone, run in zip(together, runs, strict=True):
        np.testing.assert_array_equal(alone, wagered(spread(), run))


def test_a_fall_after_a_long_gain_is_found_where_one_stake_has_lost_all():
    gain_then_fall = np.r_[np.ones(200), np.zeros(30)]
    capital = wagered(spread(), gain_then_fall).sum(-1)
    assert capital[199] < 1 < 20 < capital[-1]
    assert wagered([1.0], gain_then_fall, stakes=[1.0], weights=[1.0], share=0.0)[-1].sum() < 1e-30
    assert (wagered(spread(), gain_then_fall, share=0.0).sum(-1) < 20).all()


@pytest.mark.parametrize("bad", [1.5, -0.1, float("nan")])
def test_a_verdict_out_of_range_is_named(bad):
    with pytest.raises(UsageError, match=f"got the verdict {bad:g}; wanted 1 for better, 0 for worse, 0.5 for a tie"):
        wagered(spread(), [1, bad])
