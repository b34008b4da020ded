"""The ceiling of accuracy: hand-computed values, another implementation, known worlds, what votes cannot say."""

import json
from itertools import product

import numpy as np
import pytest
from scipy import stats

from rmtrl.metrics import ratio_estimate
from rmtrl.metrics.ceiling import (
    NO_EVIDENCE,
    Ceiling,
    Votes,
    _differences,
    accuracy_ceiling,
    better_family,
    ceiling_of_cells,
)
from rmtrl.types import Estimate

A, B, TIE = 0, 1, 2


def votes_of(choices):
    """Votes of a table of a row a pair and a column an annotator; −1 where there is none."""
    choices = np.asarray(choices)
    pairs, annotators = np.nonzero(choices >= 0)
    return Votes.of(pairs, annotators, choices[pairs, annotators], n=len(choices))


def table(**numbers):
    """Rows as 'abt' strings, each so many times."""
    return np.concatenate([[["abt".index(v) for v in pattern]] * n for pattern, n in numbers.items()])


def three(unanimous, split):
    return votes_of(table(aaa=unanimous, aab=split, aba=split, baa=split))


def simulated(n, skills, seed, *, family="shares", tie=0.05, tied=0.15, tie_if_tied=0.7):
    rng = np.random.default_rng(seed)
    theta = rng.standard_normal(n) if family == "shares" else rng.choice([-1.0, 1.0], n)
    is_tied = rng.random((n, 1)) < tied
    for_a = stats.norm.cdf(np.where(is_tied, 0, theta[:, None]) * skills)
    ties = rng.random(for_a.shape) < np.where(is_tied, tie_if_tied, tie)
    return np.where(ties, TIE, np.where(rng.random(for_a.shape) < for_a, A, B))


# known values


def test_one_skill_of_one_makes_shares_uniform_so_the_ceilings_are_three_quarters_and_thirteen_sixteenths():
    # a = 1: the share p = Φ(θ) is uniform, three agree with 1 − 3/2 · 1/3 = ½, and 2 ∫ (3p² − 2p³) from ½ is 13/16
    found = accuracy_ceiling(three(30_000, 10_000))
    assert found.one_vote.value == pytest.approx(0.75, abs=1e-4)
    assert found.majority.value == pytest.approx(13 / 16, abs=1e-4)
    assert found.n == 60_000 and found.votes_a_pair == {3: 60_000}


def test_one_coin_of_four_fifths_is_right_in_a_majority_of_three_with_its_binomial_chance():
    # 0.8³ + 0.2³ = 0.52 agree; a majority is right with 0.8³ + 3 · 0.8² · 0.2
    found = accuracy_ceiling(three(52_000, 16_000), family="sides")
    assert found.one_vote.value == pytest.approx(0.8, abs=1e-4)
    assert found.majority.value == pytest.approx(0.896, abs=1e-4)


def test_three_coins_of_unequal_skill_are_those_of_the_moments():
    skills = np.array([0.9, 0.8, 0.7])
    chances = {}
    for pattern in product("ab", repeat=3):
        right = np.array([vote == "a" for vote in pattern])
        own = np.prod(np.where(right, skills, 1 - skills)) / 2
        name = "".join(pattern)
        chances[name] = chances.get(name, 0) + own
        mirrored = name.translate(str.maketrans("ab", "ba"))
        chances[mirrored] = chances.get(mirrored, 0) + own
    found = accuracy_ceiling(votes_of(table(**{k: round(200_000 * v) for k, v in chances.items()})), family="sides")
    majority = sum(
        np.prod([s if r else 1 - s for s, r in zip(skills, right, strict=True)])
        for right in product([True, False], repeat=3) if sum(right) > 1
    )  # fmt: skip
    assert found.one_vote.value == pytest.approx(skills.mean(), abs=2e-4)
    assert found.majority.value == pytest.approx(majority, abs=2e-4)


def em_of_sides(choices, rounds=1500):
    """Dawid and Skene's EM for true answers a, b and tie, tables of annotators symmetric in a and b."""
    n, k = choices.shape
    votes = np.eye(3)[choices]
    right, tie, tied, tie_if_tied = np.full(k, 0.8), np.full(k, 0.1), 0.1, np.full(k, 0.6)
    for _ in range(rounds):
        if_a = np.stack([(1 - tie) * right, (1 - tie) * (1 - right), tie])
        if_tie = np.stack([(1 - tie_if_tied) / 2, (1 - tie_if_tied) / 2, tie_if_tied])
        chances = np.stack(
            [np.prod(np.einsum("nkc,ck->nk", votes, own), axis=1) for own in (if_a, if_a[[1, 0, 2]], if_tie)], axis=1
        ) * [(1 - tied) / 2, (1 - tied) / 2, tied]
        mine = chances / chances.sum(axis=1, keepdims=True)
        sided = mine[:, :1] + mine[:, 1:2]
        right = (mine[:, :1] * votes[..., 0] + mine[:, 1:2] * votes[..., 1]).sum(0) / (
            sided * (1 - votes[..., 2])
        ).sum(0)
        tie, tied = (sided * votes[..., 2]).sum(0) / sided.sum(), float(mine[:, 2].mean())
        tie_if_tied = (mine[:, 2:] * votes[..., 2]).sum(0) / mine[:, 2].sum()
    ceiling = (right * (1 - tie) * (1 - tied) + tied * (1 - tie_if_tied) / 2).sum()
    return ceiling / ((1 - tie) * (1 - tied) + tied * (1 - tie_if_tied)).sum()


def test_one_true_side_agrees_with_dawid_and_skenes_em():
    choices = simulated(6_000, np.array([1.2, 0.8, 1.6, 0.5]), 3, family="sides")
    found = accuracy_ceiling(votes_of(choices), family="sides")
    assert found.one_vote.value == pytest.approx(em_of_sides(choices), abs=0.002)


@pytest.mark.parametrize("family", ["shares", "sides"])
def test_ties_leave_the_ceilings_where_they_are_known_to_be(family):
    skills, n = np.array([0.5, 1.0, 2.0, 1.0, 0.7]), 40_000
    found = accuracy_ceiling(votes_of(simulated(n, skills, 5, family=family)), family=family)
    # the truth, by a grid of θ and all 3⁵ patterns
    grid = np.linspace(0.0005, 7, 4001) if family == "shares" else np.ones(1)
    weight = stats.norm.pdf(grid) if family == "shares" else np.ones(1)
    theta, weight = np.append(grid, 0), np.append(0.85 * weight / weight.sum(), 0.15)
    ties = np.append(np.full(len(grid), 0.05), 0.7)[:, None]
    for_a = stats.norm.cdf(np.multiply.outer(theta, skills)) * (1 - ties)
    chances = np.stack([for_a, 1 - ties - for_a, np.broadcast_to(ties, for_a.shape)])
    right = decided = 0.0
    for pattern in product([A, B, TIE], repeat=5):
        own = weight @ np.prod([chances[vote, :, j] for j, vote in enumerate(pattern)], axis=0)
        lead = pattern.count(A) - pattern.count(B)
        right, decided = right + own * (lead > 0), decided + own * (lead != 0)
    one = (weight @ chances[A]).sum() / (weight @ (chances[A] + chances[B])).sum()
    assert found.one_vote.value == pytest.approx(one, abs=0.006)
    assert found.majority.value == pytest.approx(right / decided, abs=0.006)
    assert (
        found.one_vote.low < one < found.one_vote.high and found.majority.low < right / decided < found.majority.high
    )


# properties


def test_names_of_sides_and_annotators_and_the_order_of_pairs_change_nothing():
    rng = np.random.default_rng(1)
    choices = simulated(400, np.array([0.5, 1.0, 2.0]), 1)
    turned = np.where((rng.random((400, 1)) < 0.5) & (choices != TIE), 1 - choices, choices)
    found, other = (accuracy_ceiling(votes_of(own)) for own in (choices, rng.permutation(turned)[:, [2, 0, 1]]))
    for name in ("one_vote", "majority"):
        ends = [(own.value, own.low, own.high) for own in (getattr(found, name), getattr(other, name))]
        assert ends[0] == pytest.approx(ends[1], abs=1e-5)


def test_one_agreement_makes_the_highest_ceiling_where_all_pairs_are_equally_clear():
    for unanimous, split in ((700, 100), (400, 200), (300, 233)):
        votes = three(unanimous, split)
        shares, sides = accuracy_ceiling(votes), accuracy_ceiling(votes, family="sides")
        assert sides.one_vote.value > shares.one_vote.value and sides.majority.value > shares.majority.value


def test_pairs_that_repeat_under_one_prompt_are_no_more_evidence():
    choices = simulated(300, np.array([1.0, 1.0, 1.0]), 2)
    once, repeated = votes_of(choices), votes_of(np.repeat(choices, 4, axis=0))
    width = {
        name: own.majority.high - own.majority.low
        for name, own in {
            "once": accuracy_ceiling(once),
            "as new": accuracy_ceiling(repeated),
            "by prompt": accuracy_ceiling(repeated, np.repeat(np.arange(300), 4)),
        }.items()
    }
    assert width["as new"] == pytest.approx(width["once"] / 2, rel=0.1)
    assert width["by prompt"] == pytest.approx(width["once"], rel=0.15)


def test_votes_of_many_make_patterns_of_any_panel_and_of_annotators_with_few_votes():
    choices = simulated(600, np.ones(40), 4)
    drawn = np.argsort(np.random.default_rng(4).random(choices.shape), axis=1) < 3
    found = accuracy_ceiling(votes_of(np.where(drawn, choices, -1)))  # some 45 votes an annotator: one skill for all
    assert found.votes_a_pair == {3: 600} and found.one_vote.low < 0.75 < found.one_vote.high + 0.02
    frequent = np.where(np.arange(40) < 3, choices, np.where(drawn, choices, -1))
    assert 0.7 < accuracy_ceiling(votes_of(frequent)).majority.value < 0.95


# what votes cannot say


def test_one_vote_a_pair_is_no_evidence():
    found = accuracy_ceiling(votes_of([[A, -1], [-1, B], [TIE, -1]]))
    assert found.one_vote is found.majority is found.log_likelihood is None
    assert str(found) == found.assumed == NO_EVIDENCE and found.closed_by(Estimate(0.7, 0.6, 0.8, 9)) is None
    assert better_family(found, found) == []


def test_annotators_who_never_differ_leave_a_ceiling_below_one():
    found = accuracy_ceiling(votes_of(table(aaa=60, bbb=60)))
    assert 0.9 < found.majority.low < found.majority.value < found.majority.high < 1


def test_a_saddle_has_a_wide_interval_and_no_missing_one(monkeypatch):
    votes = three(30, 10)
    known = accuracy_ceiling(votes).majority
    monkeypatch.setattr("rmtrl.metrics.ceiling._differences", lambda function, at: -_differences(function, at))
    found = accuracy_ceiling(votes).majority
    assert found.value == known.value and found.low < known.low < known.high < found.high


def test_coins_have_a_ceiling_near_a_half():
    rng = np.random.default_rng(0)
    found = accuracy_ceiling(votes_of(rng.integers(2, size=(3000, 3))))
    assert 0.5 < found.one_vote.value < 0.57


def test_two_annotators_have_one_skill_between_them():
    found = accuracy_ceiling(votes_of(table(aa=2000, ab=1000)))  # two thirds agree, as at a = 1
    assert found.one_vote.value == pytest.approx(0.75, abs=0.002)


def test_votes_that_speak_for_equally_clear_pairs_say_so():
    votes = votes_of(simulated(3000, np.ones(7), 6, family="sides"))
    lines = better_family(accuracy_ceiling(votes), accuracy_ceiling(votes, family="sides"))
    assert len(lines) == 1 and "equally clear" in lines[0] and "nats" in lines[0]
    assert better_family(accuracy_ceiling(votes, family="sides"), accuracy_ceiling(votes)) == []


# votes in a column


def test_cells_are_the_same_votes():
    choices = simulated(200, np.array([1.0, 0.5, 1.5]), 7)
    cells = [json.dumps({f"ann{j}": {A: 1, B: 0, TIE: 0.5}[v] for j, v in enumerate(row)}) for row in choices.tolist()]
    found, wanted = (
        ceiling_of_cells([*cells[:-1], json.loads(cells[-1])], range(200)),
        accuracy_ceiling(votes_of(choices)),
    )
    assert found == wanted
    with_unknown = ceiling_of_cells([*cells, None], range(201))
    assert with_unknown.majority.value == pytest.approx(wanted.majority.value) and with_unknown.votes_a_pair[0] == 1


@pytest.mark.parametrize("cell", ["{", "[1]", '{"ann": 0.7}', '{"ann": [1]}', 3])
def test_a_cell_that_is_no_votes_is_named(cell):
    found = ceiling_of_cells(['{"ann": 1, "bo": 0}', cell], ["p", "q"])
    assert found.majority is None and "pair 1" in str(found) and repr(cell) in str(found) and '{"ann": 1' in str(found)


def test_no_column_is_no_evidence():
    assert ceiling_of_cells(None, []) == Ceiling(0, {}) and str(ceiling_of_cells([None, None], "pq")) == NO_EVIDENCE


# the gap


def test_a_ratio_of_normal_intervals_is_fiellers():
    x, y, se_x, se_y = 0.2, 0.4, 0.03, 0.05
    z = stats.norm.ppf(0.975)
    found = ratio_estimate(Estimate(x, x - z * se_x, x + z * se_x, 9), Estimate(y, y - z * se_y, y + z * se_y, 9))
    # Fieller: the roots of (x − r y)² = z² (se_x² + r² se_y²)
    roots = np.sort(np.roots([y**2 - (z * se_y) ** 2, -2 * x * y, x**2 - (z * se_x) ** 2]))
    assert (found.low, found.high) == pytest.approx(tuple(roots)) and found.value == 0.5


def test_a_ratio_to_what_may_be_nothing_has_no_ends():
    found = ratio_estimate(Estimate(0.1, 0.0, 0.2, 9), Estimate(0.1, -0.01, 0.2, 9))
    assert (found.low, found.high) == (-np.inf, np.inf)


def test_a_model_below_a_coin_has_gone_less_than_none_of_the_way():
    limit = Ceiling(100, {3: 100}, Estimate(0.8, 0.7, 0.9, 100), Estimate(0.9, 0.85, 0.95, 100), -1.0, "")
    found = limit.closed_by(Estimate(0.45, 0.4, 0.5, 50))
    assert found.value == pytest.approx(-0.125) and found.low < found.value < found.high == pytest.approx(0)
