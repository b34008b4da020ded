from pathlib import Path

import pytest
import yaml

from rmtrl.errors import DataError
from rmtrl.evaluation.benchmarks import benchmark
from rmtrl.evaluation.benchmarks.results import result_of
from rmtrl.evaluation.fingerprints import items_fingerprint

EXAMPLE = Path(__file__).parents[3] / "examples" / "benchmark"
PAIRS = [{"prompt": f"question {i}", "chosen": "good", "rejected": "bad"} for i in range(3)]
SETTINGS = {"name": "mine", "kind": "safety", "rule": "pairs", "subsets": {"one": "one.jsonl", "two": "two.jsonl"}}


@pytest.fixture
def make(write, tmp_path):
    """A function that writes a benchmark: its settings, and the rows of its subsets."""

    def make_benchmark(settings, one=PAIRS, two=PAIRS[:1]):
        (tmp_path / "benchmark.yaml").write_text(yaml.safe_dump(settings))
        write("one.jsonl", one)
        write("two.jsonl", two)
        return benchmark(str(tmp_path))

    return make_benchmark


def test_the_example_is_a_benchmark(scored):
    found = benchmark(str(EXAMPLE))
    items = found.read()
    assert [item.id for item in items] == ["boiling", "yeast", "rice", "grams", "three", "one-word", "steps"]
    assert len(items[3].candidates[0]) == 4  # a prompt of three turns
    result = result_of(found, items, scored([1, 0], [1, 0], [1, 0], [0, 0], [0, 1], [0, 1], [1, 0]))
    assert {name: each.value for name, each in result.sections.items()} == {
        "correct": 0.75, "follows": pytest.approx(1 / 3)
    }  # fmt: skip
    assert result.overall.value == pytest.approx((0.75 + 1 / 3) / 2)
    assert result.others["all rows"].value == pytest.approx(4 / 7)


def test_without_sections_overall_is_the_mean_over_rows(make, scored):
    found = make(SETTINGS)
    items = found.read()
    assert [item.id for item in items] == ["one/1", "one/2", "one/3", "two/1"]
    result = result_of(found, items, scored([1, 0], [1, 0], [1, 0], [0, 1]))
    assert result.overall.value == 0.75
    assert (result.name, result.kind, result.sections) == ("mine", "safety", {})
    assert "overall is the mean over all rows" in result.rule


def test_sections_weigh_their_subsets(make, scored):
    found = make({**SETTINGS, "sections": {"both": {"one": 1, "two": 3}, "first": {"one": 1}}})
    result = result_of(found, found.read(), scored([1, 0], [1, 0], [1, 0], [0, 1]))
    assert result.sections["both"].value == 0.25
    assert result.overall.value == pytest.approx((0.25 + 1.0) / 2)


def test_best_of_rows(make, scored):
    row = {"prompt": "p", "candidates": ["a", "b", "c"], "correct": [2]}
    found = make({**SETTINGS, "rule": "best_of"}, one=[row, row], two=[{**row, "correct": [0, 1], "id": "two right"}])
    items = found.read()
    assert items[2].id == "two right"
    result = result_of(found, items, scored([0, 1, 2], [0, 2, 2], [0, 3, 1]))
    assert {name: each.value for name, each in result.subsets.items()} == {"one": 0.5, "two": 1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "my/own"}, "name is 'my/own'; wanted letters and digits"),
        ({"name": ".."}, "name is '..'; wanted letters and digits"),
        ({"name": "rm-bench"}, "is named rm-bench, which is another benchmark"),
        (
            {"subsets": {1: "one.jsonl"}},
            r"subsets is \{1: 'one.jsonl'\}; wanted a file for every subset, both as",
        ),
        ({"sections": {1: {"one": 1}}}, "section 1 is"),
        ({"rule": "triples"}, "rule is 'triples'; wanted pairs or best_of"),
        ({"subset": {}}, "has the key 'subset'; wanted name, kind, rule, subsets, sections"),
        ({"kind": 3}, "kind is '3'; wanted a str"),
        ({"subsets": {}}, r"subsets is \{\}; wanted a file for every subset"),
        (
            {"sections": {"s": {"three": 1}}},
            r"section s is \{'three': 1\}; wanted a number above 0 for each of some of \['one', 'two'\]",
        ),
        ({"sections": {"s": {"one": 0}}}, r"section s is \{'one': 0\}; wanted a number above 0"),
        ({"sections": {"s": ["one"]}}, r"section s is \['one'\]; wanted a number above 0"),
    ],
)
def test_settings_that_do_not_fit_are_named(make, change, message):
    with pytest.raises(DataError, match=message):
        make({**SETTINGS, **change})


def test_a_key_that_stands_twice_is_refused(make, tmp_path):
    make(SETTINGS)
    with (tmp_path / "benchmark.yaml").open("a") as file:
        file.write("name: other\n")
    with pytest.raises(DataError, match="benchmark.yaml: is not YAML .'name' stands twice"):
        benchmark(str(tmp_path))


def test_an_absent_setting_is_named(make):
    with pytest.raises(DataError, match="has no name, kind; wanted keys name, kind"):
        make({key: SETTINGS[key] for key in ("rule", "subsets")})


def best_of(candidates, correct):
    return [{"prompt": "p", "candidates": candidates, "correct": correct}]


@pytest.mark.parametrize(
    ("rule", "rows", "message"),
    [
        ("pairs", [{**PAIRS[0], "id": "a"}] * 2, "one.jsonl row 2: the id 'a' stands twice"),
        ("pairs", [{"prompt": "p", "chosen": "c"}], "one.jsonl row 1 has no rejected; it has prompt, chosen"),
        ("best_of", best_of(["a", "b"], [2]), "correct is .*; wanted indices from 0 to 1"),
        ("best_of", best_of(["a", "b"], [0, 1]), "one at least and not all of them"),
        ("best_of", best_of(["a", "b"], []), "one at least and not all of them"),
        ("best_of", best_of(["a", 3], [0]), "candidates is .* wanted a list of texts"),
    ],
)
def test_rows_that_do_not_fit_are_named(make, rule, rows, message):
    found = make({**SETTINGS, "rule": rule}, one=rows)
    with pytest.raises(DataError, match=message):
        found.read()


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]


def call(city):
    return [{"role": "assistant", "content": None, "tool_calls": [
        {"type": "function", "function": {"name": "weather", "arguments": {"city": city}}}
    ]}]  # fmt: skip


def test_tools_calls_and_template_variables_of_a_row_reach_its_conversations(make):
    prompt = [{"role": "user", "content": [{"type": "text", "text": "Rain?"}], "name": "ann"}]
    row = {"prompt": prompt, "chosen": call("Rome"), "rejected": call("Oslo"), "tools": TOOLS,
           "chat_template_kwargs": {"enable_thinking": False}}  # fmt: skip
    plain = {"prompt": "Rain?", "chosen": "Yes.", "rejected": "No.", "tools": None}
    items = make(SETTINGS, one=[row, plain]).read()
    chosen, rejected = items[0].candidates
    assert chosen == prompt + call("Rome") and rejected == prompt + call("Oslo")
    for own in (chosen, rejected):
        assert own.tools == TOOLS and own.chat_template_kwargs == {"enable_thinking": False}
    assert type(items[1].candidates[0]) is list
    others = make(SETTINGS, one=[{**row, "tools": TOOLS * 2}, plain]).read()
    assert items_fingerprint(items) != items_fingerprint(others) and items[0].prompt_id != others[0].prompt_id


@pytest.mark.parametrize("chosen", [3, [], [{"content": "x"}], [{"role": "assistant"}], [{"role": "a", "content": 3}]])
def test_an_answer_is_text_or_messages(make, chosen):
    found = make(SETTINGS, one=[{**PAIRS[0], "chosen": chosen}])
    with pytest.raises(DataError, match="one.jsonl row 1: chosen is .* wanted text or messages with role and content"):
        found.read()
