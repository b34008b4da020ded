"""The worlds of the ceiling's benchmark: their truth by hand and by drawing, and a small part of what they measure."""

import ceiling
import numpy as np
import pytest

from rmtrl.metrics import binomial_estimate


def test_truth_of_one_skill_is_the_arctangent():
    # without ties and habits a vote is right with ½ + arctan(a)/π; a tied pair is a coin
    share = (1 - ceiling.TIED) * (1 - ceiling.TIE)
    decided = share + ceiling.TIED * (1 - ceiling.TIE_IF_TIED)
    right = share * np.mean(0.5 + np.arctan(ceiling.skills_of(5, "unequal")) / np.pi) + (decided - share) / 2
    assert ceiling.truth("shares", ceiling.skills_of(5, "unequal"))[0] == pytest.approx(right / decided, abs=2e-4)


@pytest.mark.parametrize("family", ["shares", "sides", "ordered", "habit"])
def test_truth_is_what_many_draws_show(family):
    skills, n = ceiling.skills_of(3, "unequal"), 200_000
    states = ceiling.drawn(np.random.default_rng(1), n, family)
    a, b, _ = ceiling.chances(family, skills, states)
    u = np.random.default_rng(2).random(a.shape)
    votes = (u < a).astype(int) - ((u >= a) & (u < a + b))
    side = np.where(a.sum(1) >= b.sum(1), 1, -1)
    lead = votes.sum(1)
    one, majority = ceiling.truth(family, skills)
    assert (votes * side[:, None] > 0).sum() / (votes != 0).sum() == pytest.approx(one, abs=0.003)
    assert (lead * side > 0).sum() / (lead != 0).sum() == pytest.approx(majority, abs=0.003)


def test_intervals_of_the_fitted_family_hold_the_truth():
    """60 worlds: fewer than 51 held would have a chance of 1 in 10,000 at a coverage of 95 %."""
    result = ceiling.run_cell(0, ceiling.FITTED, 3, "unequal", 300, 60)
    for own in ceiling.figures(("shares", 3, "unequal", 300), result).values():
        assert own["coverage"].value >= 51 / 60
        assert own["bias"].low < ceiling.BIAS and own["bias"].high > -ceiling.BIAS


def test_a_miss_is_named():
    own = {"bias": binomial_estimate(2, 100), "rmse": 0.02, "coverage": binomial_estimate(90, 100)}
    assert ceiling.missed(5000, own) == ["bias", "RMSE", "coverage"] and ceiling.missed(300, own) == [
        "bias",
        "coverage",
    ]


def test_real_votes_and_those_of_the_embedded_world_have_ceilings(real_data):
    rows = ceiling.panda_rows() + ceiling.embedded_rows()
    assert [row[-1] for row in rows] == ["500", "500", *[rows[-1][-1]] * 3]
    assert 0.9 < float(rows[0][2].split()[0]) <= float(rows[1][2].split()[0]) < 1
    ahead = [float(row[1].split()[0]) for row in ceiling.panda_models() + ceiling.embedded_models()]
    assert ahead[0] < 0.9 and ahead[1] > 0.9  # length is far from PandaLM's ceiling, gold is near the embedded one
