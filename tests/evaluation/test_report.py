"""What a person reads of an evaluation: figures, what is missing, tables, published rows and warnings."""

import re

import numpy as np
import pytest

from rmtrl import Estimate
from rmtrl.evaluation.benchmarks import NAMES
from rmtrl.evaluation.benchmarks.base import Benchmark, Figures, Item, average, pooled
from rmtrl.evaluation.benchmarks.results import result_of
from rmtrl.evaluation.report import PUBLISHED, averages, published, published_rows, warnings
from rmtrl.evaluation.report import report as values
from rmtrl.metrics import combined_estimate
from rmtrl.reporting.tables import table as text_of


def report(*results):
    return text_of(values(*results))


class Made(Benchmark):
    rule = "the first must score above the second"

    def __init__(self, name, kind="made up", expected=(), source=None):
        self.name, self.kind, self.expected, self.source = name, kind, dict(expected), source or name

    def figures(self, parts):
        return Figures(pooled(parts, parts), dict(parts), {"macro": average(parts.values())})


def result(name="one", wins=(1, 1, 0, 1), kind="made up", missing=0, reasons=None, **more):
    items = [Item(f"row{n}", str(n), ("a", "b")[n % 2], ("x", "y"), {"correct": (0,)}) for n in range(len(wins))]
    scores = [None if n < missing else np.array([win, 0.5]) for n, win in enumerate(wins)]
    return result_of(Made(name, kind, **more), items, scores, missing_reasons=reasons)


def mean_of(estimates):
    return combined_estimate(estimates, [1 / len(estimates)] * len(estimates))


def test_the_average_adds_half_widths_in_squares():
    mean = mean_of([Estimate(0.8, 0.7, 0.86, 100), Estimate(0.6, 0.36, 0.68, 50)])
    assert mean.value == pytest.approx(0.7) and mean.n == 150
    assert mean.low == pytest.approx(0.7 - 0.26 / 2) and mean.high == pytest.approx(0.7 + 0.1 / 2)


def test_the_interval_of_an_average_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    truth, n = np.array([0.6, 0.8]), 200
    covered = 0
    for _ in range(2000):
        values = rng.binomial(n, truth) / n
        half = 1.96 * np.sqrt(values * (1 - values) / n)
        mean = mean_of([Estimate(v, v - h, v + h, n) for v, h in zip(values, half, strict=True)])
        covered += mean.low <= truth.mean() <= mean.high
    assert 0.93 < covered / 2000 < 0.97


def test_averages_are_over_benchmarks_that_all_models_have():
    one = {name: result(name) for name in ("one", "two", "three")}
    two = {name: result(name) for name in ("three", "one")}
    common, means = averages({"m": one, "k": two})
    assert common == ["one", "three"] and means["m"].value == means["k"].value == 0.75 and means["m"].n == 8
    assert averages({"m": {"one": result("one")}}) == (["one"], {})


def test_missing_rows_are_counted_named_and_bounded():
    reasons = {"longer than the model's 512 tokens": 5, "cannot be rendered: no system role": 3}
    text = report({"m": {"one": result(wins=(1, 1, 0, 1) * 10, missing=8, reasons=reasons)}}, {})
    said = ": 5 longer than the model's 512 tokens; 3 cannot be rendered: no system role\n"
    assert f"missing       8 of 40 rows{said}" in text
    assert "with these all wrong 0.600, all right 0.800" in text
    assert "row0, row1, row2, row3, row4 and 3 more" in text
    assert f"- one, m: 8 of 40 rows have no score{said}" in text + "\n"
    assert "missing       8 of 40 rows\n" in report({"m": {"one": result(wins=(1, 1, 0, 1) * 10, missing=8)}}, {})


def test_every_estimate_of_a_result_is_in_the_text():
    shown = result()
    text = report({"m": {"one": shown}}, {})
    for estimate in (shown.overall, *shown.sections.values(), *shown.others.values()):
        assert str(estimate) in text
    assert shown.rule in text and shown.ties in text


def test_fewer_than_three_benchmarks_and_three_of_a_kind_are_no_shift_of_domain():
    def said(*kinds):
        return warnings({"m": {f"b{n}": result(f"b{n}", kind=kind) for n, kind in enumerate(kinds)}}, {})

    assert "fewer than 3" in said("chat", "safety")[0] and said("chat")[0].startswith("1 benchmark:")
    assert said("chat", "chat", "chat") == ["all 3 benchmarks are of one kind (chat): that is no shift of domain"]
    assert said("chat", "chat", "safety") == [] == said("mixed", "mixed", "mixed")


def test_variants_of_one_benchmark_count_once():
    three = {f"b{n}": result(f"b{n}", kind=kind, source="hub") for n, kind in enumerate(("chat", "safety", "mixed"))}
    assert warnings({"m": three}, {})[0].startswith("1 benchmark: fewer than 3")


def test_an_incomplete_benchmark_is_warned_of_and_marked():
    results = {"m": {"one": result(expected={"a": 2, "b": 2, "c": 9}), "two": result("two")}}
    assert "one, m: incomplete, it lacks rows of c" in warnings(results, {})
    (row,) = [line for line in report(results, {}).splitlines() if line.startswith("m  ")]
    assert row.count("incomplete") == 1 and row.index("incomplete") < row.rindex("[")


def test_a_benchmark_that_could_not_be_scored_has_its_cell_and_reason():
    results = {"m": {"one": result()}, "k": {}}
    unscored = {"k": {"one": "all too long"}, "m": {"two": "none fits"}}
    text = report(results, {}, unscored)
    rows = [re.split(r" {2,}", line) for line in text.splitlines() if line.startswith(("m  ", "k  ", "highest"))]
    assert rows[0][2] == "not scorable" and rows[1][1:] == ["not scorable", "not run"] and rows[2] == ["highest", "m"]
    assert "- one, k: not scorable: all too long" in text and "two, m: not scorable: none fits" in text


def test_a_benchmark_that_chose_the_checkpoint_is_marked():
    results = {"m": {"one": result("one")}, "k": {"one": result("one")}}
    assert [line for line in warnings(results, {"m": ["one"]}) if "chose" in line] == [
        "one chose the checkpoint of m: its figure is too high for a test"
    ]
    assert report(results, {"m": ["one"]}).count("(chose this checkpoint)") == 1


def test_models_stand_in_one_table_and_what_was_not_run_says_so():
    text = report({"m": {"one": result("one"), "two": result("two")}, "k": {"one": result("one")}}, {})
    table = text[text.index("\nmodels\n") + 8 :].splitlines()
    assert table[0].split() == ["model", "one", "two"]
    assert table[1].startswith("m ") and table[2].startswith("k ") and table[2].endswith("not run")


def test_the_highest_model_of_each_column_is_named():
    good, bad = {"one": result(wins=(1, 1)), "two": result("two", (1, 1))}, {"one": result(wins=(1, 0)),
                                                                            "two": result("two", (1, 1))}  # fmt: skip
    text = report({"bad": bad, "good": good}, {})
    (line,) = [line for line in text.splitlines() if line.startswith("highest")]
    assert re.split(r" {2,}", line) == ["highest", "good", "bad, good", "good"]


def test_published_rows_stand_beside_the_same_figure_of_ours():
    ours = result("judgebench", wins=(1, 0, 1, 0, 1))
    text = report({"m": {"judgebench": ours}}, {})
    table = text[text.index("\nmodels\n") + 8 :].splitlines()
    assert re.split(r" {2,}", table[0]) == ["model", "judgebench", "judgebench, macro"]
    assert f"{ours.overall.value:.3f}" in table[1] and f"{ours.others['macro'].value:.3f}" in table[1]
    assert any(line.startswith("Skywork-Reward-V2-Qwen3-0.6B *") and line.endswith("0.676") for line in table)
    assert "\n* published, not run here\n" in text
    assert published_rows({"m": {"one": result()}}) == []


def test_published_figures_are_shares_of_known_benchmarks_with_a_source_each():
    assert {row.benchmark for row in PUBLISHED} <= set(NAMES)
    assert all(0.5 < row.value < 1 and row.source for row in PUBLISHED)
    keys = [(row.model, row.benchmark, row.figure) for row in PUBLISHED]
    assert len(set(keys)) == len(keys)


def test_the_seven_columns_average_to_what_was_printed():
    seven = ["rewardbench", "rewardbench2", "ppe-preference", "ppe-correctness", "rmb", "rm-bench", "judgebench"]
    printed = {"Skywork-Reward-V2-Qwen3-0.6B": 70.9, "Skywork-Reward-V2-Qwen3-1.7B": 75.2,
               "Skywork-Reward-V2-Llama-3.2-1B": 72.3, "ArmoRM-Llama3-8B-v0.1": 67.4,
               "INF-ORM-Llama3.1-70B": 73.5}  # fmt: skip
    for model, mean in printed.items():
        values = [row.value for name in seven for row in published(name) if row.model == model]
        assert len(values) == 7 and 100 * np.mean(values) == pytest.approx(mean, abs=0.051)
