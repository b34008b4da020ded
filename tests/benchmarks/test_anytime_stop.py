"""The simulated runs and the ways to look that the figures of the stop rest on."""

import anytime_stop as study
import numpy as np
import pytest


@pytest.mark.parametrize("make", [study.flat, study.drifting, study.gain_then_plateau])
@pytest.mark.parametrize("ties", [0.0, 0.5])
def test_a_run_that_never_falls_is_never_worse_whatever_came_before(make, ties):
    verdicts = make(np.random.default_rng(0), 4000, 40, ties)
    assert verdicts.shape == (4000, 40) and set(np.unique(verdicts)) <= {0.0, 0.5, 1.0}
    assert abs((verdicts == 0.5).mean() - ties) < 0.02
    for before in (0.0, 0.5, 1.0):
        after = verdicts[:, 1:][verdicts[:, :-1] == before]
        assert len(after) == 0 or after.mean() > 0.5 - 4 * 0.5 / np.sqrt(len(after))


def test_a_false_stop_is_one_at_any_look():
    up, down = np.ones((2, 300)), np.zeros((2, 300))
    runs = np.concatenate([up, np.concatenate([down[:, :20], up[:, :280]], axis=1)])
    assert study.ever(runs).tolist() == [False, False, True, True]


def bank(quality, n=300):
    """A bank whose answers to a prompt have the quality of their look, and lose or win by it all."""
    looks = [{"step": 2 * k, "gold": [own] * n, "reward": [float(k)] * n, "texts": [f"{own}"] * n}
             for k, own in enumerate(quality)]  # fmt: skip
    return study.Drawn(looks)


RISE_AND_FALL = [0.5, 0.6, 0.7, 0.8, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]


def test_the_share_lost_is_of_the_gain_of_the_peak():
    made = bank(RISE_AND_FALL)
    assert made.peak == 3 and made.gain == pytest.approx(0.3)
    assert [made.lost(look) for look in (0, 3, 5, 9)] == pytest.approx([1.0, 0.0, 1 / 3, 5 / 3])


def test_the_ways_to_look_stop_after_the_peak_and_count_their_labels():
    made = bank(RISE_AND_FALL)
    look, stopped, labels, reference = study.trickle(made, 300, 0, references=(2, 4, 6))
    assert stopped and made.peak < look <= 6 and 0 < labels <= 300 and reference == 3
    # looks at 3, 6 and 9: ahead, then behind it on all of 100 prompts
    assert study.fixed_looks(made, 300, 0, 3) == (6, True, 200, 3)
    assert study.trickle(bank([0.5] * 9), 300, 0)[1:3] == (False, 0)  # equal answers ask nobody


def test_todays_callback_is_given_the_looks_and_prompts_that_the_labels_allow():
    made = bank(RISE_AND_FALL)
    look, stopped, labels, best = study.todays(made, 200, 0, 1)
    assert stopped and (look, best) == (5, 3) and labels == 6 * 20
    assert study.todays(made, 30, 0, 1)[1:3] == (False, 30)  # three prompts are too few to find anything


def test_the_labels_that_would_tell_a_loss_are_those_of_a_sign_test():
    made = bank(RISE_AND_FALL)
    assert study.needed(made) == "3 at 12"  # all lost: z² = 2.7; a third is gone at 10, two thirds at 12
    even = study.Drawn([{"step": k, "gold": gold, "reward": [0.0, 0.0], "texts": ["a", str(k)]}
                        for k, gold in enumerate([[0.0, 0.0], [1.0, 0.0], [0.0, 0.4]])])  # fmt: skip
    assert study.needed(even) == "no number, at 2"  # as many wins as losses
    assert study.needed(bank([0.5, 0.6])) == "-"
