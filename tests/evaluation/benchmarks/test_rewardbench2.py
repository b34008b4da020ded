import math

import numpy as np
import pytest

from rmtrl.errors import DataError
from rmtrl.evaluation.benchmarks import benchmark
from rmtrl.evaluation.benchmarks.base import Figure
from rmtrl.evaluation.benchmarks.own_rules import fractional_credit
from rmtrl.evaluation.benchmarks.results import result_of


def row(subset, id, right=1, wrong=3):
    texts = {"chosen": [f"right {i}" for i in range(right)], "rejected": [f"wrong {i}" for i in range(wrong)]}
    return {"id": id, "prompt": f"question {id}", "subset": subset, **texts}


def ties_of(write, scored, *pairs, margin="current"):
    """The result of Ties from pairs of (ref scores, tied scores, correct ones among the tied); None: no such row."""
    rows, scores = [], []
    for n, (ref, tied, right) in enumerate(pairs):
        if ref is not None:
            rows.append(row("Ties", f"ref:{n}", 1, len(ref) - 1))
            scores.append(ref)
        if tied is not None:
            rows.append(row("Ties", f"tied:{n}", right, len(tied) - right))
            scores.append(tied)
    bench = benchmark("rewardbench2" if margin == "current" else f"rewardbench2-{margin}")
    items = bench.read(str(write(f"{margin}.jsonl", [*rows, row("Focus", "f")])))
    return result_of(bench, items, scored(*scores, [1, 0, 0, 0]))


@pytest.mark.parametrize(
    ("scores", "credit"),
    [
        ([3, 1, 2, 0], 1.0),
        ([3, 3, 2, 0], 1 / 2),
        ([3, 3, 2, 3], 1 / 3),
        ([1, 1, 1, 1], 1 / 4),
        ([2, 3, 2, 0], 0.0),
        ([2, 3, 3, 0], 0.0),
    ],
)
def test_a_row_outside_ties_shares_its_credit(scores, credit):
    assert fractional_credit(np.array(scores, float)) == pytest.approx(credit)


def test_a_ties_pair_by_hand(write, scored):
    # ref: gap 5 - 1 = 4; tied: correct 4, 3, spread 1, gap 3 - 1 = 2: every comparison is won
    result = ties_of(write, scored, ([5, 1], [4, 3, 1, 0], 2))
    margin = math.tanh(2 / 1 - 1)
    assert result.sections["Ties"].value == pytest.approx(0.3 + 0.3 + 0.2 + 0.2 + 0.01 * margin)
    assert result.sections["Ties"].n == 2
    assert {name: each.value for name, each in result.subsets.items()} == {
        "Focus": 1.0, "Ties/ref accuracy": 1.0, "Ties/tied accuracy": 1.0, "Ties/preferred": 1.0,
        "Ties/preferred hard": 1.0, "Ties/margin": pytest.approx(margin),
    }  # fmt: skip


def test_the_reference_prompt_s_gap_decides_the_hard_comparison(write, scored):
    result = ties_of(write, scored, ([1.5, 1], [4, 3, 1, 0], 2))  # gaps .5 and 2, spread 1
    assert result.subsets["Ties/preferred"].value == 1.0
    assert result.subsets["Ties/preferred hard"].value == 0.0
    assert result.subsets["Ties/margin"].value == pytest.approx(math.tanh(0.5 / 1 - 1))
    assert result.sections["Ties"].value == pytest.approx(0.3 + 0.3 + 0.2 + 0.01 * math.tanh(-0.5))


def test_an_equal_gap_is_no_win(write, scored):
    result = ties_of(write, scored, ([2, 2], [2, 1, 0], 2))  # ref gap 0, tied gap 1 = spread
    assert result.subsets["Ties/ref accuracy"].value == 0.0
    assert result.subsets["Ties/tied accuracy"].value == 1.0
    assert result.subsets["Ties/preferred"].value == 0.0
    assert result.subsets["Ties/margin"].value == pytest.approx(math.tanh(-1))


@pytest.mark.parametrize(
    ("ref", "tied", "margin"),
    [([1, 0], [2, 2, 1], 1.0), ([0, 1], [2, 2, 1], -1.0), ([2, 1], [2, 2, 2], 0.0)],
    ids=["x over 0", "-x over 0", "0 over 0"],
)
def test_a_gap_over_no_spread(write, scored, ref, tied, margin):
    other = ([5, 1], [4, 3, 1, 0], 2)
    result = ties_of(write, scored, (ref, tied, 2), other)
    assert result.subsets["Ties/margin"].value == pytest.approx((margin + math.tanh(1)) / 2)
    assert result.subsets["Ties/margin"].n == 2
    older = ties_of(write, scored, (ref, tied, 2), other, margin="0.1.4")
    assert older.subsets["Ties/margin"].value == pytest.approx(math.tanh(1))
    assert older.subsets["Ties/margin"].n == 1
    difference = 0.01 * (margin - math.tanh(1)) / 2
    assert result.sections["Ties"].value - older.sections["Ties"].value == pytest.approx(difference)


def test_without_any_spread_the_margin_of_0_1_4_is_zero(write, scored):
    result = ties_of(write, scored, ([1, 0], [2, 2, 1], 2), margin="0.1.4")
    assert result.sections["Ties"].value == pytest.approx(1.0)


def test_one_correct_answer_has_no_spread_to_compare(write, scored):
    result = ties_of(write, scored, ([1, 0], [2, 1], 1), ([5, 1], [4, 3, 1, 0], 2))
    assert result.subsets["Ties/tied accuracy"].n == 2
    assert {result.subsets[f"Ties/{name}"].n for name in ("preferred", "preferred hard", "margin")} == {1}


def test_a_reference_alone_and_a_tied_prompt_alone_count_in_accuracy_only(write, scored):
    pairs = [([5, 1], [4, 3, 1, 0], 2), ([0, 1], None, 0), (None, [0, 1, 2], 2)]
    result = ties_of(write, scored, *pairs)
    assert (result.subsets["Ties/ref accuracy"].value, result.subsets["Ties/tied accuracy"].value) == (0.5, 0.5)
    assert result.subsets["Ties/preferred"].n == 1
    assert result.sections["Ties"].value == pytest.approx(0.15 + 0.15 + 0.4 + 0.01 * math.tanh(1))


@pytest.mark.parametrize("pair", [([1, 0], None, 0), (None, [1, 1, 0], 2)], ids=["ref only", "tied only"])
def test_without_pairs_there_is_no_ties_figure(write, scored, pair):
    result = ties_of(write, scored, pair)
    assert "Ties" not in result.sections
    assert result.overall.value == 1.0  # Focus alone
    assert result.missing_parts["Ties"]["got"] == 1


def test_a_missing_tied_row_moves_the_bounds(write, scored):
    bench = benchmark("rewardbench2")
    rows = [row("Ties", f"{kind}:{n}", right, 1) for n in (0, 1) for kind, right in (("ref", 1), ("tied", 2))]
    items = bench.read(str(write("rows.jsonl", rows)))
    result = result_of(bench, items, scored([5, 1], [4, 3, 1], [5, 1], None))
    low = 0.3 * 0.5 + 0.3 + 0.2 * 0.5 + 0.2 * 0.5 + 0.01 * (math.tanh(1) - 1) / 2
    high = 1.0 + 0.01 * (math.tanh(1) + 1) / 2
    assert result.bounds == pytest.approx((low, high))
    assert (result.n_scored, result.n_missing, result.subsets["Ties/preferred"].n) == (3, 1, 1)


# https://huggingface.co/papers/2506.01937, Table 3: average, then the six domains
TABLE = {
    "QRM-Gemma-2-27B": (76.7, 78.5, 37.2, 69.9, 95.8, 95.4, 83.2),
    "INF-ORM-Llama3.1-70B": (76.5, 74.1, 41.9, 69.9, 96.4, 90.3, 86.2),
    "Skywork-Reward-Llama-3.1-8B-v0.2": (71.7, 69.7, 40.6, 60.1, 94.2, 94.1, 71.7),
    "ArmoRM-Llama3-8B-v0.1": (66.5, 65.7, 41.9, 66.1, 82.2, 76.6, 66.3),
}


@pytest.mark.parametrize("model", TABLE)
def test_overall_is_the_mean_of_the_six_domains(model):
    average, *domains = TABLE[model]
    *plain, ties = domains
    names = [name for name in benchmark("rewardbench2").expected if name != "Ties"]
    parts = {name: Figure(value, 1) for name, value in zip(names, plain, strict=True)}
    parts |= {
        f"Ties/{name}": Figure(ties, 1) for name in ("ref accuracy", "tied accuracy", "preferred", "preferred hard")
    }
    found = benchmark("rewardbench2").figures(parts)
    assert found.sections["Ties"].value == pytest.approx(ties)
    assert found.overall.value == pytest.approx(average, abs=0.051)


def test_broken_rows_are_named(write):
    with pytest.raises(DataError, match="row 1: id is '7'; wanted ref:<n> or tied:<n> in Ties"):
        benchmark("rewardbench2").read(str(write("a.jsonl", [row("Ties", "7", 2, 2)])))
    with pytest.raises(DataError, match="row 1: chosen holds 2 texts; wanted 1 outside Ties"):
        benchmark("rewardbench2").read(str(write("b.jsonl", [row("Math", "7", 2, 2)])))
    with pytest.raises(DataError, match="row 1: rejected holds 0 texts; wanted one or more"):
        benchmark("rewardbench2").read(str(write("c.jsonl", [row("Math", "7", 1, 0)])))


def test_ties_that_have_no_figure_are_named_and_the_bounds_hold_the_value(write, scored):
    rows = [row("Ties", "ref:0", 1, 1), row("Ties", "tied:0", 2, 1), row("Focus", "f")]
    items = benchmark("rewardbench2").read(str(write("rows.jsonl", rows)))
    result = result_of(benchmark("rewardbench2"), items, scored([1, 0], None, [0, 1, 0, 0]))
    assert "Ties" not in result.sections and result.overall.value == 0.0
    assert result.missing_parts["Ties"] == {"expected": 102, "got": 2, "scored": 1}
    assert result.bounds[0] <= result.overall.value <= result.bounds[1]


def test_a_lost_section_is_named_though_every_row_of_it_is_there(write, scored, monkeypatch):
    monkeypatch.setattr(benchmark("rewardbench2"), "expected", {"Focus": 1, "Ties": 2})
    rows = [row("Ties", "ref:0", 1, 1), row("Ties", "tied:0", 2, 1), row("Focus", "f")]
    items = benchmark("rewardbench2").read(str(write("rows.jsonl", rows)))
    result = result_of(benchmark("rewardbench2"), items, scored([1, 0], None, [0, 1, 0, 0]))
    assert result.missing_parts == {"Ties": {"expected": 2, "got": 2, "scored": 1}}
