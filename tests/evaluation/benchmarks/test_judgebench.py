import json

import numpy as np
import pytest

from rmtrl.errors import DataError
from rmtrl.evaluation.benchmarks import benchmark
from rmtrl.evaluation.benchmarks.base import Figure
from rmtrl.evaluation.benchmarks.results import result_of

SECTIONS = ["knowledge", "reasoning", "math", "coding"]


def row(id, source, label):
    return {"pair_id": id, "source": source, "question": "Q", "response_A": "a", "response_B": "b", "label": label}


# what the authors' own code reports for the scores that they stored
STORED = {
    "Skywork-Reward-Llama-3.1-8B": ([59.09, 64.29, 76.79, 50.00], 62.29),
    "internlm2-7b-reward": ([56.49, 61.22, 71.43, 50.00], 59.43),
}


@pytest.mark.parametrize("model", STORED)
def test_stored_scores_give_the_published_table(real_data, model):
    items = benchmark("judgebench").read(str(real_data / "judgebench" / "gpt.jsonl.gz"))
    lines = (real_data / "judgebench" / f"scores-{model}.jsonl").read_text().splitlines()
    stored = {row["pair_id"]: np.array([row["score_A"], row["score_B"]]) for row in map(json.loads, lines)}
    result = result_of(benchmark("judgebench"), items, [stored[item.id] for item in items])
    sections, overall = STORED[model]
    assert [round(100 * result.sections[name].value, 2) for name in SECTIONS] == sections
    assert round(100 * result.overall.value, 2) == overall
    assert result.others["macro"].value == pytest.approx(np.mean(sections) / 100, abs=5e-5)
    assert (result.n_rows, result.n_missing, result.missing_parts) == (350, 0, {})
    assert result.overall.low < result.overall.value < result.overall.high


def test_the_file_is_found_in_its_folder(real_data):
    assert len(benchmark("judgebench").read(str(real_data / "judgebench"))) == 350


def test_a_tie_is_wrong_whichever_side_is_right(write, scored):
    rows = [row("1", "mmlu-pro-law", "A>B"), row("2", "mmlu-pro-law", "B>A"), row("3", "livecodebench", "B>A")]
    items = benchmark("judgebench").read(str(write("gpt.jsonl", rows)))
    result = result_of(benchmark("judgebench"), items, scored([1, 1], [1, 1], [0, 1]))
    assert result.overall.value == pytest.approx(1 / 3)
    assert result.others["macro"].value == pytest.approx((0 + 1) / 2)


# Skywork-Reward-V2 report, Table 2: knowledge, reasoning, math, coding and their mean
@pytest.mark.parametrize(
    ("sections", "macro"),
    [([62.3, 66.3, 82.1, 59.5], 67.6), ([66.9, 69.4, 83.9, 71.4], 72.9), ([61.0, 66.3, 73.2, 59.5], 65.0),
     ([76.6, 75.5, 89.3, 78.6], 80.0)],
)  # fmt: skip
def test_published_macro_averages(sections, macro):
    bench = benchmark("judgebench")
    parts = {name: Figure(value, bench.expected[name]) for name, value in zip(SECTIONS, sections, strict=True)}
    found = bench.figures(parts)
    assert found.others["macro"].value == pytest.approx(macro, abs=0.06)
    assert found.overall.value == pytest.approx(np.average(sections, weights=[154, 98, 56, 42]))
    assert found.overall.n == 350


def test_the_claude_split_is_a_benchmark_of_its_own(write):
    claude = benchmark("judgebench-claude")
    assert (claude.name, sum(claude.expected.values())) == ("judgebench-claude", 270)
    write("data/dataset=judgebench,response_model=gpt-4o.jsonl", [row("g", "livecodebench", "A>B")])
    path = write("data/dataset=judgebench,response_model=claude-3-5.jsonl", [row("c", "livecodebench", "A>B")])
    assert [item.id for item in claude.read(str(path.parent))] == ["c"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row("1", "poetry", "A>B"), "row 1: source is 'poetry'; wanted one that starts with mmlu-pro"),
        (row("1", "livecodebench", "A=B"), "row 1: label is 'A=B'; wanted A>B or B>A"),
        ({"pair_id": "1", "source": "livecodebench", "label": "A>B"}, "row 1 has no question; it has pair_id, source"),
    ],
)
def test_a_row_that_does_not_fit_is_named(write, bad, message):
    with pytest.raises(DataError, match=message):
        benchmark("judgebench").read(str(write("gpt.jsonl", [bad])))
