import numpy as np
import pytest

from rmtrl.metrics import mean_estimate
from rmtrl.metrics.ceiling import Ceiling
from rmtrl.reward.report import overfitting, pair_figures, summary
from rmtrl.types import Estimate, PairRewards


def figures(share, n=500, std=1.0):
    wins = np.arange(n) < round(share * n)
    return {"accuracy": mean_estimate(wins, proportion=True), "reward": {"std": std}}


def test_ninety_two_against_seventy_is_overfitting():
    first, second = overfitting({"train": figures(0.92), "test": figures(0.70), "spillover": figures(0.69)})
    assert "train 0.920" in first and "spillover 0.690" in first
    assert "overfitting: +0.220" in second
    assert "carries over to held-out domains as far as n shows" in second


def test_equal_accuracies_are_no_overfitting_and_a_lost_domain_is_named():
    lines = overfitting({"train": figures(0.80), "test": figures(0.79), "spillover": figures(0.60)})
    assert "no overfitting shown; does not carry over to held-out domains: +0.190" in lines[1]


def test_few_pairs_show_nothing():
    lines = overfitting({"train": figures(0.9, 10), "test": figures(0.7, 10), "spillover": figures(0.7, 10)})
    assert "no overfitting shown" in lines[1]


def test_without_spillover_nothing_is_said():
    assert overfitting({"train": figures(0.9), "test": figures(0.7)}) == []


def test_ties_are_counted_and_rank_nothing():
    ones = np.ones(4, dtype=np.int64)
    pairs = PairRewards(
        np.array([1.0, 0.0, 2.0, 0.0]), np.zeros(4) + 0.5, np.ones(4), 2 * ones, ones, 0 * ones, 0 * ones,
        np.array([1.0, 0.5, 1.0, 0.5]),
    )  # fmt: skip
    found = pair_figures(pairs, ["a", "b", "c", "d"], ["x", "x", "y", "y"])
    assert found["ties"] == 2
    assert found["accuracy"].value == 1.0 and found["accuracy"].n == 2
    assert found["margin"].value == pytest.approx(1.0)


@pytest.mark.parametrize("margins", [[-3.0, -0.5, 0.5, 1.0, 6.0], [1.0, 2.0], [-1.0, -2.0], [0.0, 0.0], [1e-9, 5.0]])
def test_a_histogram_of_margins_counts_every_pair_and_parts_wrong_from_right(margins):
    n, margins = len(margins), np.array(margins)
    ones = np.ones(n, dtype=np.int64)
    pairs = PairRewards(margins, np.zeros(n), np.ones(n), ones, ones, 0 * ones, 0 * ones, np.ones(n))
    found = pair_figures(pairs, list(map(str, range(n))), ["x"] * n)["margin_histogram"]
    edges, counts = np.array(found["edges"]), np.array(found["counts"])
    assert len(edges) == len(counts) + 1 <= 34 and counts.sum() == n
    assert counts[edges[:-1] < -1e-12].sum() == (margins < 0).sum() and np.isclose(edges, 0).any()
    np.testing.assert_allclose(np.diff(edges), edges[1] - edges[0])


def test_a_report_says_how_far_the_ceiling_is():
    rng = np.random.default_rng(0)
    ones = np.ones(400, dtype=np.int64)
    pairs = PairRewards(
        rng.normal(1.0, 1.0, 400), rng.normal(0.0, 1.0, 400), np.ones(400), 2 * ones, ones, 0 * ones, 0 * ones
    )
    names = [f"p{i}" for i in range(400)]
    limit = Ceiling(900, {3: 900}, Estimate(0.8, 0.78, 0.82, 900), Estimate(0.9, 0.88, 0.92, 900), -1.0, "all is well")
    counts = {"kept": 400, "n": 400, "reasons": {}}
    for ceiling, said in ((limit, "against the majority of 3 votes"), (Ceiling(900, {1: 900}), "no evidence")):
        found = pair_figures(pairs, names, ["x"] * 400, ceiling)
        line = next(own for own in summary("rm", counts, {}, {"test": found, "validation": found}).splitlines()
                    if own.startswith("ceiling"))  # fmt: skip
        assert said in line and ("of the way there from a coin" in line) == (ceiling is limit)
    closed = pair_figures(pairs, names, ["x"] * 400, limit)["closed"]
    assert closed.value == pytest.approx((found["accuracy"].value - 0.5) / 0.4)
    assert "ceiling" not in pair_figures(pairs, names, ["x"] * 400)
