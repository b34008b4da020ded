import json
import math
from importlib import resources

import numpy as np
import pytest
import yaml
from scipy import stats

from rmtrl.errors import DataError
from rmtrl.evaluation.benchmarks import NAMES, benchmark
from rmtrl.evaluation.benchmarks.base import Benchmark, Figure, Item, average, pooled
from rmtrl.evaluation.benchmarks.results import result_of
from rmtrl.types import json_ready

RIGHT, WRONG = np.array([1.0, 0.0]), np.array([0.0, 1.0])


def items_of(**rows):
    """LLMBar items, `n` a set, the first output right, each its own prompt."""
    return [
        Item(f"{name}/{i}", f"{name} {i}", name, ("a", "b"), {"correct": (0,)})
        for name, n in rows.items()
        for i in range(n)
    ]


def test_hand_computed_figures():
    items = items_of(natural=2, manual=4)
    result = result_of(benchmark("llmbar"), items, [RIGHT, WRONG, RIGHT, RIGHT, RIGHT, WRONG])
    assert result.overall.value == pytest.approx(4 / 6)
    assert result.others["macro"].value == pytest.approx((1 / 2 + 3 / 4) / 2)
    assert {name: each.value for name, each in result.sections.items()} == {"natural": 0.5, "adversarial": 0.75}
    assert (result.overall.n, result.sections["adversarial"].n, result.subsets["natural"].n) == (6, 4, 2)
    assert (result.n_rows, result.n_scored, result.n_missing) == (6, 6, 0)


def test_absent_subsets_are_listed_and_never_zero():
    result = result_of(benchmark("llmbar"), items_of(natural=100), [RIGHT] * 99 + [WRONG])
    assert set(result.sections) == {"natural"}
    assert result.others["macro"].value == 0.99
    assert result.missing_parts["manual"] == {"expected": 46, "got": 0, "scored": 0}
    assert "natural" not in result.missing_parts


def test_a_subset_without_scores_is_listed_too():
    items = items_of(natural=100, manual=46)
    result = result_of(benchmark("llmbar"), items, [RIGHT] * 100 + [None] * 46)
    assert result.missing_parts["manual"] == {"expected": 46, "got": 46, "scored": 0}
    assert "manual" not in result.subsets
    assert result.overall.value == 1.0


def test_more_rows_than_the_benchmark_has_are_named():
    result = result_of(benchmark("llmbar"), items_of(natural=101), [RIGHT] * 100 + [WRONG])
    assert result.missing_parts["natural"] == {"expected": 100, "got": 101, "scored": 101}


def test_bounds_take_the_missing_as_all_wrong_and_all_right():
    items = items_of(natural=4, manual=4)
    result = result_of(benchmark("llmbar"), items, [RIGHT, WRONG, None, None, RIGHT, RIGHT, RIGHT, None])
    assert result.overall.value == pytest.approx(4 / 5)
    assert result.bounds == pytest.approx((4 / 8, 7 / 8))
    assert (result.n_missing, result.missing_ids) == (3, ("natural/2", "natural/3", "manual/3"))


def test_the_interval_is_that_of_another_bootstrap():
    rng = np.random.default_rng(0)
    wins = rng.random(300) < 0.7
    result = result_of(
        benchmark("llmbar"), items_of(natural=300), [RIGHT if win else WRONG for win in wins], n_resamples=4000
    )
    other = stats.bootstrap((wins.astype(float),), np.mean, method="percentile", n_resamples=4000, rng=rng)
    assert result.overall.low == pytest.approx(other.confidence_interval.low, abs=0.01)
    assert result.overall.high == pytest.approx(other.confidence_interval.high, abs=0.01)


def test_the_macro_interval_is_that_of_a_stratified_bootstrap():
    rng = np.random.default_rng(0)
    natural, manual = rng.random(100) < 0.8, rng.random(46) < 0.4
    scores = [RIGHT if win else WRONG for win in (*natural, *manual)]
    estimate = result_of(benchmark("llmbar"), items_of(natural=100, manual=46), scores, n_resamples=4000).others[
        "macro"
    ]
    drawn = [(rng.choice(natural, 100).mean() + rng.choice(manual, 46).mean()) / 2 for _ in range(4000)]
    assert (estimate.low, estimate.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.012)


def test_items_of_one_prompt_are_resampled_together():
    rng = np.random.default_rng(0)
    wins = np.repeat(rng.random(40) < 0.5, 10)
    items = [Item(str(i), str(i // 10), "natural", ("a", "b"), {"correct": (0,)}) for i in range(400)]
    scores = [RIGHT if win else WRONG for win in wins]
    alone = [Item(item.id, item.id, item.subset, item.candidates, item.facts) for item in items]
    together, apart = (result_of(benchmark("llmbar"), each, scores).overall for each in (items, alone))
    ratio = (together.high - together.low) / (apart.high - apart.low)
    assert ratio == pytest.approx(math.sqrt(10), rel=0.15)  # ten equal items a prompt are one


@pytest.mark.parametrize("n", [1, 5, 40])
def test_all_right_and_all_wrong_have_exact_binomial_bounds(n):
    items = items_of(natural=n)
    for scores, hits in ((RIGHT, n), (WRONG, 0)):
        exact = stats.binomtest(hits, n).proportion_ci()
        result = result_of(benchmark("llmbar"), items, [scores] * n)
        subset, overall = result.subsets["natural"], result.overall
        assert (subset.low, subset.high) == pytest.approx((exact.low, exact.high))
        assert (overall.low, overall.high) == pytest.approx((exact.low, exact.high), abs=0.006)
        assert subset.method == "exact bound by prompt"


def test_a_perfect_subset_does_not_narrow_the_whole_to_a_point():
    result = result_of(benchmark("llmbar"), items_of(natural=20, manual=20), [RIGHT] * 40)
    assert result.overall.value == result.overall.high == 1.0
    assert 0.85 < result.overall.low < 0.99


def misses(benchmark, sizes, accuracy, runs=200, n_resamples=200):
    """Shares of runs whose interval of `overall` lies above, and below, the true accuracy of every subset."""
    rng = np.random.default_rng(0)
    items, found, known = items_of(**sizes), [], {}
    starts = np.cumsum([0, *sizes.values()])[:-1]
    for _ in range(runs):
        wins = rng.random(len(items)) < accuracy
        hits = tuple(np.add.reduceat(wins, starts, dtype=int))  # which rows of a subset are right is no matter
        if hits not in known:
            scores = [RIGHT if win else WRONG for win in wins]
            known[hits] = result_of(benchmark, items, scores, n_resamples=n_resamples).overall
        found.append((known[hits].low > accuracy, known[hits].high < accuracy))
    return np.mean(found, axis=0)


@pytest.mark.parametrize(("n", "accuracy"), [(10, 0.99), (10, 0.9)])
def test_the_interval_covers_with_many_perfect_parts(n, accuracy):
    sizes = dict.fromkeys(benchmark("rewardbench").expected, n)
    assert (misses(benchmark("rewardbench"), sizes, accuracy) <= 0.06).all()


@pytest.mark.parametrize(("n", "accuracy"), [(5, 0.5), (30, 0.95)])
def test_the_interval_of_one_part_covers(n, accuracy):
    assert (misses(benchmark("llmbar"), {"natural": n}, accuracy, n_resamples=4000) <= 0.06).all()


@pytest.mark.parametrize(("hits", "n"), [(1, 4), (9, 10), (70, 100)])
def test_the_interval_of_right_and_wrong_rows_is_clopper_and_pearson_s(hits, n):
    exact = stats.binomtest(hits, n).proportion_ci()
    overall = result_of(
        benchmark("llmbar"), items_of(natural=n), [RIGHT] * hits + [WRONG] * (n - hits), n_resamples=8000
    ).overall
    assert (overall.low, overall.high) == pytest.approx((exact.low, exact.high), abs=0.01)


def test_perfect_parts_of_equal_weight_are_one_perfect_whole():
    sizes = dict.fromkeys(benchmark("llmbar").expected, 10)
    macro = result_of(benchmark("llmbar"), items_of(**sizes), [RIGHT] * 50).others["macro"]
    assert (macro.low, macro.high) == pytest.approx((stats.binomtest(50, 50).proportion_ci().low, 1.0))


def test_no_interval_has_width_zero():
    one_prompt = [Item(str(i), "p", "natural", ("a", "b"), {"correct": (0,)}) for i in range(4)]
    overall = result_of(benchmark("llmbar"), one_prompt, [RIGHT, RIGHT, WRONG, WRONG]).overall
    assert (overall.low, overall.value, overall.high) == pytest.approx((0.0125, 0.5, 0.9875))
    constant = [Item(str(i), str(i), "Focus", ("a",) * 4) for i in range(40)]
    overall = result_of(benchmark("rewardbench2"), constant, [np.zeros(4)] * 40).overall
    assert 0.2 < overall.low < overall.value == 0.25 < overall.high < 0.35


def test_a_resample_follows_from_its_seed():
    items, scores = items_of(natural=9), [RIGHT, WRONG, RIGHT] * 3
    assert result_of(benchmark("llmbar"), items, scores, seed=1) == result_of(
        benchmark("llmbar"), items, scores, seed=1
    )
    assert result_of(benchmark("llmbar"), items, scores, seed=1) != result_of(
        benchmark("llmbar"), items, scores, seed=2
    )


def test_a_result_is_json_without_nan():
    found = json_ready(result_of(benchmark("llmbar"), items_of(natural=3), [RIGHT, WRONG, None]))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["overall"]["value"] == 0.5
    assert found["bounds"] == pytest.approx([1 / 3, 2 / 3])
    assert found["rule"] and found["ties"] and found["kind"] == "instruction following"


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([RIGHT], "has 2 items, but scores for 1"),
        ([RIGHT, np.array([1.0, 2.0, 3.0])], r"'natural/1' of llmbar has 2 candidates, but scores of shape \(3,\)"),
        ([RIGHT, np.array([1.0, math.nan])], "'natural/1' of llmbar has the score nan"),
        ([RIGHT, np.array([1.0, -math.inf])], "has the score -inf"),
        ([None, None], "none of the 2 rows of llmbar has scores"),
    ],
)
def test_scores_that_do_not_fit_are_refused(scores, message):
    with pytest.raises(DataError, match=message):
        result_of(benchmark("llmbar"), items_of(natural=2), scores)


def test_an_id_that_stands_twice_is_refused():
    items = [Item("a", "p", "natural", ("x", "y"), {"correct": (0,)})] * 2
    with pytest.raises(DataError, match="has item 'a' twice"):
        result_of(benchmark("llmbar"), items, [RIGHT, RIGHT])


def test_averages():
    figures = {"a": Figure(1.0, 30), "b": Figure(0.5, 10)}
    assert average(figures.values()) == Figure(0.75, 40)
    assert pooled(figures, ["a", "b", "absent"]) == Figure(0.875, 40)
    assert average([]) is None and pooled(figures, ["absent"]) is None


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_says_what_a_report_needs(name):
    found = benchmark(name)
    assert found.name == name
    assert found.rule and found.ties and found.source and sum(found.expected.values()) > 250
    assert found.kind in ("instruction following", "verified correctness", "human preference", "safety", "mixed")
    assert found.figures({}).overall is None
    assert found.figures({}).sections == {}


@pytest.mark.parametrize("name", NAMES)
def test_what_a_benchmark_declares_is_what_its_class_reads(name):
    file = resources.files("rmtrl.evaluation") / "benchmarks.yaml"
    known = {key for kind in type(benchmark(name)).__mro__ for key in vars(kind).get("__annotations__", {})}
    assert set(yaml.safe_load(file.read_text())[name]) <= known


def test_row_counts_are_the_published_ones():
    counts = {name: sum(benchmark(name).expected.values()) for name in NAMES}
    assert counts == {
        "rewardbench": 2985, "rewardbench-prior": 2985 + 17154, "rewardbench2": 1865, "rewardbench2-0.1.4": 1865,
        "rm-bench": 1327, "rmb": 17131 + 3786, "judgebench": 350,
        "judgebench-claude": 270, "ppe-preference": 16038, "ppe-correctness": 2555, "llmbar": 419,
    }  # fmt: skip


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="no benchmark 'rewardbanch'; wanted rewardbench, rewardbench-prior, "):
        benchmark("rewardbanch")


def test_a_key_that_no_benchmark_has_is_refused():
    with pytest.raises(DataError, match="the benchmark mine declares sectoins; it has no such key"):
        Benchmark(name="mine", sectoins={})
