"""Scores of items: known answers, weights, quorum, flags, ties."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rmtrl.data.annotations.aggregation import aggregate, blend, rank_items
from rmtrl.data.annotations.reading import read_annotations
from rmtrl.errors import UsageError

EXAMPLE = Path(__file__).parents[3] / "examples" / "annotations.jsonl"


def rating(item, annotator, prompt="p", **scores):
    return {"item_id": item, "prompt_id": prompt, "annotator": annotator, **scores}


def vote(a, b, choice, annotator, prompt="p", **more):
    return {"prompt_id": prompt, "annotator": annotator, "a": a, "b": b, "choice": choice, **more}


@pytest.fixture
def score(tmp_path):
    """Scores the judgments of some rows; items by id."""

    def run(rows, **options):
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        scores = aggregate(read_annotations([tmp_path / "rows.jsonl"]), **options)
        return scores, {row["item_id"]: row for row in scores.rows()}

    return run


def test_blend_is_as_published():
    final = blend([0.83, 0.68, 0.75], [1.0, 0.5, 0.0], alpha=0.6)
    assert final == pytest.approx([0.898, 0.608, 0.450], abs=1e-12)


def test_scores_by_hand(score):
    rows = [
        rating("x", "ann", usefulness=5, safety=3), rating("x", "bo", usefulness=3, safety=3),
        rating("y", "ann", usefulness=2, safety=5), rating("y", "bo", usefulness=2, safety=4),
        vote("x", "y", "a", "ann"), vote("y", "x", "b", "bo"), vote("x", "y", "tie", "chi"), vote("x", "y", "b", "di"),
    ]  # fmt: skip
    scores, items = score(rows, weights={"usefulness": 0.75, "safety": 0.25})
    assert items["x"]["criteria"] == {"safety": 0.5, "usefulness": 0.75}
    assert items["x"]["criterion"] == 0.6875 and items["y"]["criterion"] == 0.40625
    assert items["x"]["borda"] == 0.625 and items["y"]["borda"] == 0.375  # (2 + ½) / 4, (1 + ½) / 4
    assert items["x"]["final"] == pytest.approx(0.6 * 0.6875 + 0.4 * 0.625)
    assert (items["x"]["wins"], items["x"]["comparisons"], items["x"]["judgments"]) == (2, 4, 4)
    assert items["x"]["variance"] == pytest.approx(0.75 * 0.0625)  # 1 and ½ on usefulness, no spread on safety
    assert [items[name]["rank"] for name in "xy"] == [1, 2]
    assert scores.weights == {"safety": 0.25, "usefulness": 0.75}


def test_weights_are_equal_unless_given(score):
    _, items = score([rating("x", "ann", usefulness=5, safety=1)])
    assert items["x"]["criterion"] == 0.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weights": {"usefulness": 0.5}}, "sum to 0.5"),
        ({"weights": {"usefulness": 1.5, "safety": -0.5}}, "0 or more"),
        ({"weights": {"beauty": 1.0}}, "no ratings of beauty"),
        ({"annotator_weights": {"eve": 1.0}}, "no judgments by eve"),
        ({"annotator_weights": {"ann": -1.0}}, "0 or more"),
        ({"alpha": 1.1}, "0 to 1"),
        ({"quorum": 0}, "1 or more"),
        ({"tie_breaks": ("wins", "length")}, "no tie-break length"),
        ({"tolerance": float("nan")}, "tolerance is nan"),
        ({"tolerance": -0.1}, "0 or more"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_out_of_range_raise(score, options, said):
    with pytest.raises(UsageError, match=said):
        score([rating("x", "ann", usefulness=5, safety=1)], **options)


def test_items_are_scored_by_what_there_is(score):
    rows = [rating("rated", "ann", usefulness=4, safety=5), rating("partly", "ann", usefulness=4),
            vote("voted", "other", "a", "ann")]  # fmt: skip
    scores, items = score(rows)
    assert items["rated"]["final"] == 0.875 and items["rated"]["borda"] is None
    assert items["voted"]["final"] == 1.0 and items["voted"]["criterion"] is None
    assert items["partly"]["criterion"] == 0.75
    assert {name: scores.counts[name] for name in ("items", "without_ratings", "without_votes", "incomplete")} == {
        "items": 4, "without_ratings": 2, "without_votes": 2, "incomplete": 1}  # fmt: skip


def test_items_of_votes_alone_have_no_criteria(score):
    _, items = score([vote("x", "y", "a", "ann")])
    assert items["x"]["criteria"] == {} and items["x"]["criterion"] is None
    assert [items[name]["rank"] for name in "xy"] == [1, 2]


def test_too_few_judgments_exclude_an_item(score):
    rows = [rating("x", name, usefulness=2) for name in ("ann", "bo", "chi")]
    rows += [rating("y", "ann", usefulness=5), vote("y", "z", "a", "bo"), vote("y", "z", "a", "ann")]
    scores, items = score(rows, quorum=3)
    assert scores.counts["excluded"] == 2 and items["y"]["excluded"] and items["y"]["judgments"] == 2
    assert (items["x"]["rank"], items["y"]["rank"]) == (1, None)


def test_disagreement_flags_an_item(score):
    rows = [rating("wide", "ann", safety=1), rating("wide", "bo", safety=5)]
    rows += [rating("step", "ann", safety=3), rating("step", "bo", safety=4)]
    rows += [vote("a", "b", "a", "ann"), vote("a", "b", "b", "bo"), vote("c", "d", "a", "ann")]
    rows += [vote("e", "f", choice, name) for choice, name in (("a", "ann"), ("a", "bo"), ("b", "chi"))]
    scores, items = score(rows)
    assert {name for name, item in items.items() if item["flagged"]} == {"wide", "a", "b"}
    assert scores.counts["flagged"] == 3


def test_judgments_and_annotators_can_be_weighted(score):
    rows = [rating("x", "ann", safety=5), rating("x", "bo", safety=1), vote("x", "y", "a", "ann"),
            vote("x", "y", "b", "bo", weight=3)]  # fmt: skip
    _, items = score(rows)
    assert items["x"]["criterion"] == 0.5 and items["x"]["borda"] == 0.25
    _, items = score(rows, annotator_weights={"ann": 3})
    assert items["x"]["criterion"] == 0.75 and items["x"]["borda"] == 0.5


def test_ties_are_broken_by_the_rules_in_order(score):
    # x: two wins of four, y: one win and two ties of four; x leads on safety, y is the steadier
    rows = [vote("x", "z", "a", "1"), vote("x", "z", "a", "2"), vote("x", "z", "b", "3"), vote("x", "z", "b", "4"),
            vote("y", "z", "a", "1"), vote("y", "z", "tie", "2"), vote("y", "z", "tie", "3"), vote("y", "z", "b", "4"),
            rating("x", "1", safety=5, style=1), rating("x", "2", safety=3, style=3),
            rating("y", "1", safety=3, style=3), rating("y", "2", safety=3, style=3)]  # fmt: skip

    def order(*rules):
        _, items = score(rows, tie_breaks=rules, seed=1)
        return sorted("xy", key=lambda name: items[name]["rank"])

    _, items = score(rows)
    assert items["x"]["final"] == items["y"]["final"]
    assert order("wins", "top_criterion", "seeded") == order("top_criterion") == ["x", "y"]
    assert order("criterion", "variance", "seeded") == ["y", "x"]


def test_the_seeded_order_is_arbitrary_but_fixed(score):
    rows = [rating(name, "ann", safety=3) for name in "abcdefgh"]

    def order(rows, seed):
        _, items = score(rows, seed=seed)
        return sorted(items, key=lambda name: items[name]["rank"])

    assert order(rows, 0) == order(rows[::-1], 0)
    assert order(rows, 0) != order(rows, 1) and order(rows, 0) != sorted("abcdefgh")


def test_scores_within_the_tolerance_of_the_best_are_tied():
    items = pd.MultiIndex.from_product([["p"], list("abcd")], names=["prompt_id", "item_id"])
    table = pd.DataFrame({"final": [0.90, 0.86, 0.82, np.nan], "wins": [0.0, 1.0, 2.0, 3.0]}, items)
    for tolerance, ranks in ((0, [1, 2, 3, 4]), (0.05, [2, 1, 3, 4]), (0.1, [3, 2, 1, 4])):
        assert rank_items(table, ["wins"], tolerance=tolerance)[items].tolist() == ranks


def test_every_prompt_is_ranked_by_itself(score):
    rows = [rating("a", "ann", prompt=prompt, safety=s) for prompt, s in (("p", 2), ("q", 4))]
    rows += [rating("b", "ann", prompt=prompt, safety=3) for prompt in "pq"]
    scores, _ = score(rows)
    assert scores.table["rank"].to_dict() == {
        ("p", "a"): 2, ("p", "b"): 1, ("q", "a"): 1, ("q", "b"): 2}  # fmt: skip


def test_example_is_in_order():
    scores = aggregate(read_annotations([EXAMPLE]), quorum=3)
    first = {item_id for (_, item_id), rank in scores.table["rank"].items() if rank == 1}
    assert {"geo-1-a", "geo-2-b"} < first and scores.counts["excluded"] == 0
