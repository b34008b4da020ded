import pytest

from rmtrl.errors import DataError
from rmtrl.evaluation.benchmarks import benchmark
from rmtrl.evaluation.benchmarks.base import Figure
from rmtrl.evaluation.benchmarks.results import result_of

TURNS = [
    {"content": "hi", "language": "English", "role": "user"},
    {"content": "hello", "role": "assistant"},
    {"content": "which?", "language": "English", "role": "user"},
]


def answer(text):
    return {"llm_name": "a-model", "answer": text}


def pair(uid, category):
    sides = {"chosen": answer("good"), "reject": answer("bad")}
    return {"pair_uid": uid, "conversation_input": TURNS, **sides, "category_path": f"Pairwise_set/{category}"}


def best_of(uid, category, losers):
    sides = {"bon_best": answer("best"), "loser_list": [answer(f"loser {i}") for i in range(losers)]}
    return {"bon_uid": uid, "conversation_input": TURNS, **sides, "category_path": f"BoN_set/{category}"}


@pytest.fixture
def folder(write):
    write("RMB/Pairwise_set/Helpfulness/Chat/Discussion.json", [pair("1", "Helpfulness/Chat/Discussion")] * 3)
    write("RMB/Pairwise_set/Helpfulness/Code/Review.json", [pair("7", "Helpfulness/Code/Review")])
    write("RMB/Pairwise_set/Harmlessness/S1.json", [pair("2", "Harmlessness/S1")])
    write("RMB/BoN_set/Helpfulness/Chat/Discussion.json", [best_of("1", "Helpfulness/Chat/Discussion", 2)])
    return write(
        "RMB/BoN_set/Harmlessness/multi.json", [best_of(str(n), "Harmlessness/multi", n) for n in (2, 6)]
    ).parents[2]


def test_the_folder_tree_is_read(folder):
    items = {item.id: item for item in benchmark("rmb").read(str(folder))}
    assert set(items) == {
        "pairs/1", "pairs/1#2", "pairs/1#3", "pairs/7", "pairs/2", "best-of-n/1", "best-of-n/2", "best-of-n/6"
    }  # fmt: skip
    assert {items[id].own_id for id in ("pairs/1", "pairs/1#2", "best-of-n/1")} == {"1"}
    assert len(items["best-of-n/6"].candidates) == 7
    assert items["best-of-n/2"].candidates[0] == [
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "which?"}, {"role": "assistant", "content": "best"},
    ]  # fmt: skip


def test_four_means_over_rows_and_their_mean(folder, scored):
    items = benchmark("rmb").read(str(folder))
    wins = {"pairs/1": [1, 0], "pairs/1#2": [1, 1], "pairs/1#3": [1, 0], "pairs/7": [0, 1], "pairs/2": [1, 0],
            "best-of-n/1": [3, 2, 1], "best-of-n/2": [3, 3, 1], "best-of-n/6": [3, 1, 1, 1, 2, 1, 1]}  # fmt: skip
    result = result_of(benchmark("rmb"), items, scored(*(wins[item.id] for item in items)))
    assert {name: each.value for name, each in result.sections.items()} == {
        "pairs helpfulness": 0.5, "pairs harmlessness": 1.0, "best-of-n helpfulness": 1.0,
        "best-of-n harmlessness": 0.5,
    }  # fmt: skip
    assert result.overall.value == 0.75
    assert result.subsets["pairs helpfulness/Chat/Discussion"].value == pytest.approx(2 / 3)
    assert result.missing_parts["best-of-n harmlessness"] == {"expected": 1677, "got": 2, "scored": 2}


@pytest.mark.parametrize(
    ("scores", "right"),
    [([3, 2, 1], 1), ([3, 3, 1], 0), ([3, 1, 3], 0), ([1, 2, 0], 0), ([3, 3, 3], 0), ([-1, -2, -3], 1)],
)
def test_the_best_must_beat_every_loser(write, scored, scores, right):
    items = benchmark("rmb").read(str(write("multi.json", [best_of("1", "Harmlessness/multi", 2)])))
    assert result_of(benchmark("rmb"), items, scored(scores)).overall.value == right


def test_published_micro_means_give_their_mean():
    # https://github.com/RM-R1-UIUC/RM-R1, eval/result: right rows of each of the four sets
    counts = [(8071, 10067), (5692, 7064), (1372, 2109), (1111, 1677)]
    names = list(benchmark("rmb").expected)
    parts = {f"{name}/all": Figure(hits / n, n) for name, (hits, n) in zip(names, counts, strict=True)}
    found = benchmark("rmb").figures(parts)
    assert [found.sections[name].value for name in names] == pytest.approx(
        [0.801728, 0.805776, 0.650545, 0.662493], abs=5e-7
    )
    assert found.overall.value == pytest.approx(0.730136, abs=5e-7)


def test_categories_weigh_by_their_rows():
    parts = {"pairs harmlessness/S1": Figure(1.0, 30), "pairs harmlessness/S2": Figure(0.0, 10)}
    assert benchmark("rmb").figures(parts).sections["pairs harmlessness"] == Figure(0.75, 40)


def test_what_cannot_be_read_is_named(write):
    with pytest.raises(DataError, match="RMB is not on the hub; clone https://github.com/Zhou-Zoey"):
        benchmark("rmb").read()
    with pytest.raises(
        DataError,
        match="category_path is 'Triple_set/Harmlessness/S1'; wanted one that starts with Pairwise_set/Helpfulness/",
    ):
        benchmark("rmb").read(str(write("a.json", [{**pair("1", ""), "category_path": "Triple_set/Harmlessness/S1"}])))
    with pytest.raises(DataError, match="wanted two or more with llm_name and answer"):
        benchmark("rmb").read(str(write("b.json", [best_of("1", "Harmlessness/S1", 0)])))
    with pytest.raises(DataError, match="b2.json row 1 has no answer; it has llm_name"):
        benchmark("rmb").read(str(write("b2.json", [{**pair("1", "Harmlessness/S1"), "reject": {"llm_name": "x"}}])))


def test_items_of_a_prompt_share_their_name_over_pairs_and_best_of_n(folder):
    assert len({item.prompt_id for item in benchmark("rmb").read(str(folder))}) == 1
