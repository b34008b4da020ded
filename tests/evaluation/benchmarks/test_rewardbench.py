import pytest

from rmtrl.errors import DataError
from rmtrl.evaluation.benchmarks import benchmark
from rmtrl.evaluation.benchmarks.base import Figure
from rmtrl.evaluation.benchmarks.results import result_of

SECTIONS = benchmark("rewardbench").sections
PRIOR = [name for name in benchmark("rewardbench-prior").hub if name]

SUBSETS = [
    "alpacaeval-easy", "alpacaeval-hard", "alpacaeval-length", "donotanswer", "hep-cpp", "hep-go", "hep-java",
    "hep-js", "hep-python", "hep-rust", "llmbar-adver-GPTInst", "llmbar-adver-GPTOut", "llmbar-adver-manual",
    "llmbar-adver-neighbor", "llmbar-natural", "math-prm", "mt-bench-easy", "mt-bench-hard", "mt-bench-med",
    "refusals-dangerous", "refusals-offensive", "xstest-should-refuse", "xstest-should-respond",
]  # fmt: skip

# accuracies of the 23 subsets in that order, the four sections and, where it is known, their mean
PUBLISHED = {
    # https://github.com/RM-R1-UIUC/RM-R1, eval/result
    "RM-R1-Qwen2.5-Instruct-32B": (
        [0.94, 0.9578947368421052, 0.9578947368421052, 0.75, 0.9878048780487805, 0.9695121951219512,
         0.9573170731707317, 0.9817073170731707, 0.975609756097561, 0.9695121951219512, 0.8478260869565217,
         0.723404255319149, 0.8043478260869565, 0.7761194029850746, 0.95, 0.930648769574944, 0.9285714285714286,
         0.8378378378378378, 0.975, 0.93, 0.98, 0.987012987012987, 0.94],
        [0.952513966, 0.831140351, 0.918918919, 0.952113003], 0.913671560,
    ),
    "RM-R1-DeepSeek-Distilled-Qwen-32B": (
        [0.96, 0.9368421052631579, 0.9263157894736842, 0.7132352941176471, 0.9817073170731707, 0.9573170731707317,
         0.9512195121951219, 0.9390243902439024, 0.9695121951219512, 0.9390243902439024, 0.7934782608695652,
         0.723404255319149, 0.8695652173913043, 0.746268656716418, 0.93, 0.9798657718120806, 1.0,
         0.7027027027027027, 1.0, 0.91, 0.99, 0.987012987012987, 0.94],
        [0.952513966, 0.802631579, 0.910810811, 0.968083292], 0.908509912,
    ),
    # https://github.com/allenai/reward-bench/pull/215
    "LDL-Reward-Gemma-2-27B-v0.1": (
        [0.99, 0.9473684210526315, 0.9368421052631579, 0.8161764705882353, 0.9817073170731707, 0.9817073170731707,
         0.9939024390243902, 0.9939024390243902, 0.975609756097561, 0.9573170731707317, 0.9565217391304348,
         0.8297872340425532, 0.8478260869565217, 0.9104477611940298, 0.94, 1.0, 1.0, 0.8648648648648649, 0.975,
         0.97, 0.99, 0.948051948051948, 0.964],
        [0.9636871508379888, 0.9078947368421053, 0.9378378378378378, 0.9903455284552846], None,
    ),
    # README of https://github.com/allenai/reward-bench; its own code prints these sections
    "beaver-7b-v1.0-cost": (
        [0.5, 0.7052631578947368, 0.5894736842105263, 0.8235294117647058, 0.6280487804878049, 0.6341463414634146,
         0.7073170731707317, 0.6646341463414634, 0.5487804878048781, 0.6463414634146342, 0.391304347826087,
         0.46808510638297873, 0.3695652173913043, 0.43283582089552236, 0.52, 0.2953020134228188,
         0.5714285714285714, 0.5405405405405406, 0.725, 0.97, 1, 1, 0.284],
        [0.6089385475, 0.4495614035, 0.7216216216, 0.4667566978], None,
    ),
    # https://github.com/allenai/reward-bench/pull/223
    "Selene-1": (
        [0.96, 0.9789473684210527, 0.9789473684210527, 0.8235294117647058, 0.9695121951219512, 0.9908536585365854,
         0.9939024390243902, 0.9695121951219512, 0.9634146341463414, 0.975609756097561, 0.8586956521739131,
         0.7446808510638298, 0.7391304347826086, 0.7985074626865671, 0.98, 0.9373601789709173, 1.0,
         0.8108108108108109, 1.0, 0.96, 0.99, 1.0, 0.884],
        [0.9776536312849162, 0.8399122807017544, 0.9216216216216216, 0.9572471626561904], None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_subsets_give_the_published_sections(model):
    accuracies, sections, overall = PUBLISHED[model]
    expected = benchmark("rewardbench").expected
    parts = {name: Figure(value, expected[name]) for name, value in zip(SUBSETS, accuracies, strict=True)}
    found = benchmark("rewardbench").figures(parts)
    assert [found.sections[name].value for name in SECTIONS] == pytest.approx(sections, abs=1e-9)
    assert found.overall.value == pytest.approx(overall or sum(sections) / 4, abs=1e-9)
    assert found.overall.n == 2985


def test_absent_subsets_leave_their_section_to_the_others():
    parts = {"math-prm": Figure(0.5, 447), "hep-go": Figure(1.0, 164), "alpacaeval-easy": Figure(0.9, 100)}
    found = benchmark("rewardbench").figures(parts)
    assert set(found.sections) == {"Chat", "Reasoning"}
    assert found.sections["Reasoning"].value == pytest.approx((984 * 0.5 + 164) / (984 + 164))
    assert found.overall.value == pytest.approx((0.9 + found.sections["Reasoning"].value) / 2)


def test_prior_sets_have_half_a_section_s_weight():
    parts = {name: Figure(0.8, 1) for weights in SECTIONS.values() for name in weights}
    parts |= {"anthropic_helpful": Figure(0.4, 1), "shp": Figure(0.6, 1), "anthropic_harmless": Figure(0.0, 1)}
    found = benchmark("rewardbench-prior").figures(parts)
    assert found.sections["Prior Sets"].value == pytest.approx(0.5)
    assert found.overall.value == pytest.approx((2 * 4 * 0.8 + 0.5) / 9)
    assert found.others["mean of the four sections"].value == pytest.approx(0.8)


def row(subset, id, **more):
    return {"prompt": f"question {id}", "chosen": "good", "rejected": "bad", "subset": subset, "id": id, **more}


def test_a_tie_is_wrong(write, scored):
    path = write("filtered.jsonl.gz", [row("hep-go", 1), row("hep-go", 2), row("hep-go", 3)])
    items = benchmark("rewardbench").read(str(path))
    assert items[0].candidates[0] == [
        {"role": "user", "content": "question 1"}, {"role": "assistant", "content": "good"}
    ]  # fmt: skip
    result = result_of(benchmark("rewardbench"), items, scored([2, 1], [1, 1], [0, 1]))
    assert result.overall.value == pytest.approx(1 / 3)
    assert result.missing_parts["hep-go"] == {"expected": 164, "got": 3, "scored": 3}
    assert len(result.missing_parts) == 23


def test_prior_sets_are_read_with_their_turns(write, scored):
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "?"},
    ]
    path = write("filtered.json", [row("hep-go", 1)])
    for name in PRIOR:
        write(f"prior/{name}-00000-of-00001.jsonl", [{"prompt": turns, "chosen": "yes", "rejected": "no"}])
    bench = benchmark("rewardbench-prior")
    items = bench.read(str(path.parent))
    assert [item.subset for item in items] == ["hep-go", *PRIOR]
    assert items[1].candidates[1] == [*turns, {"role": "assistant", "content": "no"}]
    result = result_of(bench, items, scored([1, 0], [1, 0], [0, 1], [1, 0], [1, 0]))
    assert result.overall.value == pytest.approx((2 * 1 + 0.75) / 3)


def test_prior_sets_alone_are_not_rewardbench(write, tmp_path):
    for name in PRIOR:
        write(f"{name}.jsonl", [{"prompt": "p", "chosen": "yes", "rejected": "no"}])
    with pytest.raises(DataError, match="is or holds no file named after filtered; give NAME=PATH"):
        benchmark("rewardbench-prior").read(str(tmp_path))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [row("hep-go", 1), {"prompt": "p", "chosen": "c", "subset": "hep-go", "id": 2}],
            "row 2 has no rejected; it has",
        ),
        ([row("hep-perl", 1)], "row 1: rewardbench has no subset 'hep-perl', but alpacaeval-easy"),
        ([row("hep-go", 1, chosen=["c"])], r"row 1: chosen is \"\['c'\]\"; wanted text"),
        ([row("hep-go", 1, prompt=["c"])], "row 1: prompt is .* wanted text or messages"),
    ],
)
def test_a_row_that_does_not_fit_is_named(write, rows, message):
    with pytest.raises(DataError, match=message):
        benchmark("rewardbench").read(str(write("rows.jsonl", rows)))


def test_without_a_file_and_without_the_hub_one_line_says_what_to_do():
    with pytest.raises(DataError, match=r"allenai/reward-bench cannot be loaded from the hub .*NAME=PATH") as error:
        benchmark("rewardbench").read()
    assert "\n" not in str(error.value)


def test_repeated_ids_are_told_apart(write):
    items = benchmark("rewardbench").read(str(write("rows.jsonl", [row("hep-go", 1), row("hep-js", 1)])))
    assert [item.id for item in items] == ["1", "1#2"]
