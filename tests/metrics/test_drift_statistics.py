"""Two samples compared: distances with known answers, and one corrected test that exchanges whole prompts."""

import time
from itertools import product

import numpy as np
import pytest
from scipy import stats

from rmtrl.errors import UsageError
from rmtrl.metrics.drift import (
    decile_counts,
    distances_of,
    drift_test,
    effect_estimate,
    exchanges,
    psi,
    psi_threshold,
    row_weights,
)


def test_psi_of_known_shares():
    assert psi([0.25] * 4, [0.4, 0.3, 0.2, 0.1]) == pytest.approx(0.228217, abs=5e-7)
    assert psi([25] * 4, [40, 30, 20, 10]) == pytest.approx(0.228217, abs=5e-7)  # counts too
    assert psi([5, 5], [5, 5]) == 0
    assert np.isfinite(psi([0.0, 1.0], [1.0, 0.0]))


def test_what_psi_is_under_no_change_is_what_the_threshold_says():
    assert psi_threshold(100, 100) == pytest.approx(stats.chi2.ppf(0.95, 9) / 50)
    rng = np.random.default_rng(0)
    drawn = [psi(*decile_counts(rng.normal(size=400), rng.normal(size=300))) for _ in range(500)]
    above = np.mean(np.array(drawn) > psi_threshold(400, 300))
    assert 0.02 < above < 0.09
    assert np.mean(np.array(drawn) > 0.1) < 0.05  # and at n = 50 the usual cut-off is another matter
    few = [psi(*decile_counts(rng.normal(size=50), rng.normal(size=50))) for _ in range(200)]
    assert np.mean(np.array(few) > 0.25) > 0.5


def test_bins_are_the_deciles_of_the_reference_and_equal_values_share_one():
    counts = decile_counts(np.arange(100), np.full(10, -5.0))
    assert counts[0].tolist() == [10] * 10 and counts[1].tolist() == [10] + [0] * 9
    assert decile_counts([0, 0, 0, 1], [1, 1]).tolist() == [[3, 1], [0, 2]]
    assert decile_counts([3.0, 3.0], [3.0, 3.0]).tolist() == [[2], [2]]


def test_a_constant_reference_has_a_cell_and_few_values_one_each():
    never, always = np.zeros(200, bool), np.ones(200, bool)
    assert decile_counts(never, always).tolist() == [[200, 0], [0, 200]] and psi(*decile_counts(never, always)) > 10
    assert decile_counts([3.0, 3.0], [3.0, 4.0, 2.0]).tolist() == [[0, 2, 0], [1, 1, 1]]
    assert decile_counts([5, 5], np.arange(20)).tolist() == [[0, 2, 0], [5, 1, 14]]
    assert decile_counts([5, 5], np.arange(5, 25)).tolist() == [[2, 0], [1, 19]]
    assert decile_counts([0, 0, 1], [0, 1, 2]).tolist() == [[2, 1, 0], [1, 1, 1]]


@pytest.mark.parametrize(("reference", "current"), [(0.0, 1.0), (1.0, 0.0), (0.1, 0.7), (1e9, 1e9 + 1)])
def test_the_effect_of_constants_that_differ_is_not_defined_and_never_0(reference, current):
    values, side = np.repeat([reference, current], [67, 201]), np.arange(268) >= 67
    found = effect_estimate(values, np.arange(268), side)
    assert np.isnan([found.value, found.low, found.high]).all()


@pytest.mark.parametrize(
    ("x", "y", "u", "v", "name", "known"),
    [
        ([0], [2], None, None, "energy", 2.0),
        ([0, 8], [0, 8], [3, 1], [2, 2], "energy", 1.0),
        ([0, 1, 3], [5, 6, 8], None, None, "Wasserstein", 5.0),
        ([0, 1, 3], [5, 6, 8], None, None, "KS", 1.0),
    ],
)
def test_distances_of_known_answer(x, y, u, v, name, known):
    assert distances_of(x, y, u, v)[name] == pytest.approx(known)


def test_distances_are_those_of_scipy():
    rng = np.random.default_rng(0)
    for draw in range(20):
        x, y = rng.normal(size=30).round(draw % 3), rng.normal(0.5, 2, size=17).round(draw % 3)
        u, v = rng.random(30) + 0.1, rng.random(17) + 0.1
        found, weighted = distances_of(x, y), distances_of(x, y, u, v)
        assert found["KS"] == pytest.approx(stats.ks_2samp(x, y).statistic)
        assert found["energy"] == pytest.approx(stats.energy_distance(x, y))
        assert found["Wasserstein"] == pytest.approx(stats.wasserstein_distance(x, y))
        assert weighted["energy"] == pytest.approx(stats.energy_distance(x, y, u, v))
        assert weighted["Wasserstein"] == pytest.approx(stats.wasserstein_distance(x, y, u, v))
        scaled = distances_of(3 * x + 1, 3 * y + 1)
        assert scaled["KS"] == pytest.approx(found["KS"])
        assert scaled["Wasserstein"] == pytest.approx(3 * found["Wasserstein"])


def test_the_effect_is_the_difference_over_the_deviation_within_sides():
    side = np.array([False, False, True, True])
    assert effect_estimate([1.0, 3.0, 2.0, 4.0], range(4), side).value == pytest.approx(1.0)
    assert effect_estimate([1.0, 1.0, 1.0, 1.0], range(4), side).value == 0
    assert effect_estimate(["a", "b", "b", "b"], range(4), side).value == pytest.approx(
        np.sqrt(0.25 / 0.25 + 0.25 / 0.75)
    )
    columns, prompts, current = world(300, shift=0.5, seed=1)
    found = effect_estimate(columns["score"], prompts, current)
    assert found.low < 0.5 < found.high and found.n == len(prompts)
    rows = effect_estimate(columns["score"], np.arange(len(prompts)), current)  # as if rows were prompts: too sure
    assert rows.high - rows.low < 0.8 * (found.high - found.low)
    same = world(100, shared=100, seed=2)
    mix = effect_estimate(same[0]["domain"], *same[1:])
    assert mix.value == pytest.approx(0) and mix.high == pytest.approx(0)


def test_rows_of_a_prompt_on_both_sides_weigh_the_same_on_each():
    prompts = np.array(["a", "a", "a", "a", "b", "b", "c"])
    current = np.array([0, 0, 0, 1, 0, 0, 1], bool)
    weights = row_weights(prompts, current)
    assert weights[:3].sum() == pytest.approx(weights[3]) and weights[4:].tolist() == [1, 1, 1]
    both = row_weights(np.array(["a", "a", "b", "b"]), np.array([0, 1, 0, 1], bool))
    assert both.tolist() == [1, 1, 1, 1]


def world(n_prompts, *, shared=0, seed=0, shift=0.0, rows=(1, 9)):
    """Rows of prompts with strong effects of their own: columns, prompts and side."""
    rng = np.random.default_rng(seed)
    names, side = [], []
    for prompt in range(n_prompts):
        for current in (False, True) if prompt < shared else (prompt % 2 == 1,):
            count = rng.integers(*rows)
            names += [prompt] * count
            side += [current] * count
    names, side = np.array(names), np.array(side)
    effect, share = rng.normal(size=n_prompts)[names], rng.random(n_prompts)[names]
    columns = {
        "score": effect + rng.normal(size=len(names)) + shift * np.sqrt(2) * side,
        "length": np.round(20 * np.exp(effect + rng.normal(size=len(names)))),
        "refused": rng.random(len(names)) < share,
        "domain": np.array(["chat", "code", "maths"])[rng.integers(3, size=n_prompts)[names]],
    }
    return columns, names, side


def brute_force(columns, prompts, current, flips):
    """Every rearrangement made by hand: the largest standardised statistic of each column, `(Q, B)`."""
    known, index = np.unique(prompts, return_inverse=True)
    largest = []
    for values in columns.values():
        rows = []
        for flip in flips.T:
            side = current ^ (flip[index] == 1)
            w = row_weights(prompts, side)
            if values.dtype.kind in "US":
                counts = np.array([[w[(side == s) & (values == v)].sum() for v in np.unique(values)] for s in (0, 1)])
                shares, pooled = counts / counts.sum(1, keepdims=True), counts.sum(0) / counts.sum()
                rows.append([np.sqrt(((shares[1] - shares[0]) ** 2 / pooled).sum())])
                continue
            x = values.astype(float)
            x = x / np.sqrt(np.average((x - np.average(x, weights=w)) ** 2, weights=w))
            a, b = x[~side], x[side]
            u, v = w[~side], w[side]
            mean = abs(np.average(b, weights=v) - np.average(a, weights=u))
            grid = np.unique(x)
            ecdf = [
                np.array([weight[part <= at].sum() for at in grid]) / weight.sum() for part, weight in ((a, u), (b, v))
            ]
            ks = np.abs(ecdf[0] - ecdf[1]).max()
            rows.append([mean] if len(grid) == 2 else [mean, ks, stats.energy_distance(a, b, u, v)])
        t = np.array(rows).T
        spread = t.std(axis=1, keepdims=True)
        z = np.where(spread > 1e-9, (t - t.mean(axis=1, keepdims=True)) / np.maximum(spread, 1e-9), 0)
        largest.append(z.max(axis=0))
    return np.array(largest)


@pytest.mark.parametrize("shared", [0, 7, 12])
def test_the_test_is_the_one_that_a_loop_over_rearrangements_gives(shared):
    columns, prompts, current = world(12, shared=shared, seed=3, shift=0.6, rows=(1, 5))
    n = 60
    found = drift_test(columns, prompts, current, n_permutations=n, seed=5)
    flips = np.concatenate(list(exchanges(prompts, current, n, seed=5)), axis=1)
    assert flips.shape == (12, n + 1) and not flips[:, 0].any()
    z = brute_force(columns, prompts, current, flips)
    reached = z >= z[:, :1] - 1e-9
    assert [found.tests[name].p for name in columns] == pytest.approx(reached.mean(axis=1).tolist())
    assert [found.tests[name].statistic for name in columns] == pytest.approx(z[:, 0].tolist())
    assert found.p == pytest.approx((z.max(axis=0) >= z[:, 0].max() - 1e-9).mean())
    # Westfall and Young's step-down: each against the maximum over it and all that are smaller
    order = np.argsort(-z[:, 0], kind="stable")
    steps = [(z[order[j:]].max(axis=0) >= z[order[j], 0] - 1e-9).mean() for j in range(len(order))]
    names = list(columns)
    adjusted = [found.tests[names[j]].adjusted_p for j in order]
    assert adjusted == pytest.approx(np.maximum.accumulate(steps).tolist())
    assert adjusted[0] == found.p == min(adjusted)


def test_p_values_of_three_prompts_are_those_of_all_arrangements():
    x = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 3.0, 1.0, 2.0, 4.0, 5.0, 1.5])
    prompts, current = np.array([*range(6), *range(6)]), np.repeat([False, True], 6)
    found = drift_test({"x": x > 0.5}, prompts, current, n_permutations=4000)
    means = [abs(np.dot(signs, x[6:] > 0.5)) for signs in product((-1, 1), repeat=6)]
    exact = np.mean(np.array(means) >= means[-1])
    assert exact == 2 / 64 and found.p == pytest.approx(exact, abs=0.01)


def test_sides_are_exchanged_within_prompts_that_both_have_and_moved_whole_else():
    _, prompts, current = world(40, shared=10, seed=1)
    flips = np.concatenate(list(exchanges(prompts, current, 500, seed=0)), axis=1)
    assert 0.4 < flips[:10, 1:].mean() < 0.6
    on_current = np.array([current[prompts == p].any() for p in range(10, 40)])
    moved = on_current[:, None] ^ (flips[10:] == 1)
    assert (moved.sum(axis=0) == on_current.sum()).all()  # as many prompts a side in each
    assert np.unique(flips[:, 1:], axis=1).shape[1] > 400


def test_the_answer_does_not_depend_on_order_of_rows_names_or_scale():
    columns, prompts, current = world(40, shared=20, seed=1, shift=0.4)
    order = np.random.default_rng(0).permutation(len(prompts))
    moved = {name: values[order] for name, values in columns.items()}
    moved["score"] = 7 - 100 * moved["score"]
    names = np.array([f"{p:03}" for p in prompts])[order]
    first, second = drift_test(columns, prompts, current, seed=2), drift_test(moved, names, current[order], seed=2)
    assert second.p == first.p
    assert [t.adjusted_p for t in second.tests.values()] == [t.adjusted_p for t in first.tests.values()]


def test_missing_values_are_left_out_and_constant_columns_say_nothing():
    columns, prompts, current = world(60, seed=4)
    columns["score"] = np.where(np.random.default_rng(0).random(len(prompts)) < 0.2, np.nan, columns["score"])
    columns["never"] = np.zeros(len(prompts), bool)
    columns["unknown"] = np.full(len(prompts), np.nan)
    found = drift_test(columns, prompts, current, n_permutations=99)
    assert found.tests["never"].p == found.tests["unknown"].p == 1.0
    assert found.tests["never"].statistic == 0 and found.tests["never"].name == "mean"
    assert 0 < found.p <= 1


def test_values_that_differ_in_their_last_digits_are_told_apart():
    columns, prompts, current = world(60, seed=4)
    far = 1e9 + np.spacing(1e9) * np.random.default_rng(0).integers(0, 400, size=len(prompts))
    near = far - 1e9
    found = drift_test({"far": far, "near": near, "few": 1e9 + np.spacing(1e9) * (near > 0)}, prompts, current)
    assert found.tests["far"].p == pytest.approx(found.tests["near"].p, abs=0.02)


def test_a_change_is_found_and_named():
    columns, prompts, current = world(200, seed=5, shift=1.0)
    found = drift_test(columns, prompts, current, n_permutations=199)
    assert found.p == found.tests["score"].adjusted_p == 1 / 200
    assert min(found.tests[name].adjusted_p for name in ("length", "refused", "domain")) > 0.05
    wider = columns["length"] * np.where(current, 5, 1)
    both = drift_test(columns | {"length": wider}, prompts, current, n_permutations=199)
    assert both.tests["length"].adjusted_p == both.tests["score"].adjusted_p == 1 / 200


def test_too_few_prompts_are_an_error_and_no_pass():
    columns, prompts, current = world(5, shared=5)
    with pytest.raises(UsageError, match=r"no arrangement of 5 prompts .* 0\.0625"):
        drift_test(columns, prompts, current)
    with pytest.raises(UsageError, match="19 or more"):
        drift_test(*world(40), n_permutations=18)
    columns, prompts, current = world(40)
    with pytest.raises(UsageError, match="the column score has infinite values"):
        drift_test(columns | {"score": np.where(prompts == 3, np.inf, 0.0)}, prompts, current)
    with pytest.raises(UsageError, match="both sides"):
        drift_test(columns, prompts, np.zeros_like(current))


def test_false_alarms_of_strongly_clustered_rows_are_those_asked_for():
    """Four columns, 24 prompts a side of 1 to 8 rows; the full table is made by tests/benchmarks/drift.py."""
    for shared in (0, 48):
        alarms = sum(drift_test(*world(48, shared=shared, seed=s), n_permutations=99).p <= 0.05 for s in range(300))
        assert stats.binomtest(alarms, 300, 0.05).pvalue > 0.01, (shared, alarms)


def test_five_thousand_rows_are_quick():
    columns, prompts, current = world(2222, seed=0)
    assert len(prompts) > 9500
    started = time.process_time()
    drift_test(columns, prompts, current, n_permutations=200)
    assert time.process_time() - started < 1.0
