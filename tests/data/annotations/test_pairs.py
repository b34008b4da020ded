"""Preference pairs from votes and ratings: labels, routing, policies, texts."""

import json
from pathlib import Path

import pytest

from rmtrl.data.annotations.aggregation import aggregate
from rmtrl.data.annotations.pairs import pairs_from_ratings, pairs_from_votes
from rmtrl.data.annotations.reading import read_annotations
from rmtrl.data.preferences import read_preferences
from rmtrl.data.validation import validate
from rmtrl.errors import DataError, UsageError
from rmtrl.metrics.ceiling import Votes, accuracy_ceiling, ceiling_of_cells

EXAMPLE = Path(__file__).parents[3] / "examples" / "annotations.jsonl"
NAMES = ("ann", "bo", "chi", "di")


def votes_on(pair, *choices, **more):
    texts = {"prompt": f"What is {pair}?", "response_a": f"{pair} is small", "response_b": f"{pair} is large"}
    line = {"prompt_id": pair, "a": "x", "b": "y"} | texts | more
    return [line | {"annotator": name, "choice": choice} for name, choice in zip(NAMES, choices, strict=False)]


VOTES = [
    *votes_on("clear", "b", "b", "b", domain="law"),
    *votes_on("most", "a", "a", "b"),
    *votes_on("none", "a", "b", "tie"),
    *votes_on("half", "a", "b"),
    *votes_on("tied", "tie", "tie"),
    *votes_on("one", "a"),
]


@pytest.fixture
def read(tmp_path):
    def write_and_read(rows):
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return read_annotations([tmp_path / "rows.jsonl"])

    return write_and_read


def by_prompt(dataset):
    return {row["prompt_id"]: row for row in dataset}


@pytest.mark.parametrize(
    ("votes", "agreement", "route"),
    [
        (["a", "a", "a"], 1.0, "train"),
        (["a", "b", "a"], 0.67, "review_or_hold_out"),
        (["a", "b", "tie"], 0.33, "review_or_hold_out"),
        (["tie", "tie"], 1.0, "tie"),
        (["tie", "tie", "a"], 0.67, "review_or_hold_out"),
        (["b"], 1.0, "train"),
    ],
)
def test_the_agreement_on_a_pair_is_the_share_of_the_largest_group_of_votes(read, votes, agreement, route):
    for order in (votes, votes[::-1]):
        row = pairs_from_votes(read(votes_on("pair", *order)), disputed="weight", min_votes=1).pairs[0]
        assert (round(row["agreement"], 2), row["route"]) == (agreement, route)


def test_weighted_pairs_carry_the_vote_share(read):
    made = pairs_from_votes(read(VOTES), disputed="weight", min_votes=1)
    rows = by_prompt(made.pairs)
    assert {name: (round(row["preference"], 3), row["weight"]) for name, row in rows.items()} == {
        "clear": (1, 3), "most": (0.667, 3), "none": (0.5, 3), "half": (0.5, 2), "tied": (0.5, 2), "one": (1, 1)
    }  # fmt: skip
    clear = rows["clear"]
    assert (clear["chosen"], clear["rejected"], clear["domain"]) == ("clear is large", "clear is small", "law")
    assert (rows["most"]["chosen"], rows["most"]["prompt"]) == ("most is small", "What is most?")
    assert rows["none"]["route"] == "review_or_hold_out" and rows["none"]["agreement"] == pytest.approx(1 / 3)
    assert len(made.review) == 0 and made.counts == {
        "n": 6, "kept": 6, "review": 0, "train": 2, "review_or_hold_out": 3, "tie": 1, "too_few_votes": 0,
        "missing_text": 0}  # fmt: skip


def test_pairs_that_keep_the_disputed_ones_say_who_voted_for_what(read, tmp_path):
    rows = by_prompt(pairs_from_votes(read(VOTES), disputed="weight").pairs)
    assert json.loads(rows["most"]["votes_by_annotator"]) == {"ann": 1, "bo": 1, "chi": 0}
    assert json.loads(rows["none"]["votes_by_annotator"]) == {"ann": 1, "bo": 0, "chi": 0.5}
    for disputed in ("adjudicate", "slice"):  # unanimous pairs alone would say that nobody ever disagrees
        assert "votes_by_annotator" not in pairs_from_votes(read(VOTES), disputed=disputed).pairs.column_names
    weighted = pairs_from_votes(read(VOTES), disputed="weight", annotator_weights={"bo": 0}, min_votes=1).pairs
    assert json.loads(by_prompt(weighted)["most"]["votes_by_annotator"]) == {"ann": 1, "chi": 0}


def test_a_file_of_pairs_has_the_ceiling_of_its_votes(read, tmp_path):
    choices = [("a", "a", "a")] * 60 + [("a", "b", "a"), ("b", "b", "a"), ("tie", "a", "a")] * 15
    annotations = read([vote for i, own in enumerate(choices) for vote in votes_on(f"pair {i}", *own)])
    pairs_from_votes(annotations, disputed="weight").pairs.to_json(tmp_path / "pairs.jsonl")
    pairs, votes = read_preferences(tmp_path / "pairs.jsonl"), annotations.votes
    found = ceiling_of_cells(pairs["votes_by_annotator"], pairs["prompt_id"])
    wanted = accuracy_ceiling(Votes.of(votes.pair, votes.annotator, votes.choice))
    assert found.majority.value == pytest.approx(wanted.majority.value) and found.votes_a_pair == {3: 105}


def test_adjudicated_pairs_are_set_apart_without_a_label(read):
    made = pairs_from_votes(read(VOTES))
    assert set(by_prompt(made.pairs)) == {"clear", "tied"} and made.counts["too_few_votes"] == 1
    review = by_prompt(made.review)
    assert set(review) == {"most", "none", "half"} and "chosen" not in made.review.column_names
    assert [review["most"][name] for name in ("votes_a", "votes_b", "votes_tie")] == [2, 1, 0]
    assert review["none"]["response_b"] == "none is large"


def test_a_slice_of_disputed_pairs_can_be_evaluated_on(read, tmp_path):
    made = pairs_from_votes(read(VOTES), disputed="slice")
    assert set(by_prompt(made.pairs)) == {"clear", "tied"}
    made.review.to_json(tmp_path / "slice.jsonl")
    held_out = read_preferences(tmp_path / "slice.jsonl")
    assert sorted(held_out["preference"]) == pytest.approx([0.5, 0.5, 2 / 3])


@pytest.mark.parametrize("disputed", ["adjudicate", "weight", "slice"])
def test_every_pair_is_kept_or_counted(read, disputed):
    textless = [vote | {"response_b": None} for vote in votes_on("lost", "a", "b")]
    made = pairs_from_votes(read([*VOTES, *textless]), disputed=disputed, min_votes=2)
    counts = made.counts
    assert (counts["too_few_votes"], counts["missing_text"], counts["n"]) == (1, 1, 7)
    assert counts["n"] == len(made.pairs) + len(made.review) + counts["too_few_votes"] + counts["missing_text"]
    assert counts["n"] == sum(counts[name] for name in ("train", "review_or_hold_out", "tie", "too_few_votes"))
    assert (counts["kept"], counts["review"]) == (len(made.pairs), len(made.review))


def test_vote_weights_enter_preference_and_weight(read):
    first, second = votes_on("pair", "a", "b")
    row = pairs_from_votes(read([first, second | {"weight": 3}]), disputed="weight").pairs[0]
    assert (row["chosen"], row["preference"], row["weight"], row["agreement"]) == ("pair is large", 0.75, 4, 0.5)


def test_annotator_weights_enter_preference_and_weight_and_zero_leaves_out(read):
    annotations = read(votes_on("pair", "a", "b", "b"))
    row = pairs_from_votes(annotations, disputed="weight", annotator_weights={"ann": 6}).pairs[0]
    assert (row["chosen"], row["preference"], row["weight"]) == ("pair is small", 0.75, 8)
    row = pairs_from_votes(annotations, annotator_weights={"ann": 0}).pairs[0]
    assert (row["chosen"], row["weight"], row["route"]) == ("pair is large", 2, "train")
    nobody = dict.fromkeys(annotations.annotators, 0.0)
    assert pairs_from_votes(annotations, annotator_weights=nobody).counts["too_few_votes"] == 1
    with pytest.raises(UsageError, match="no judgments by eve"):
        pairs_from_votes(annotations, annotator_weights={"eve": 1})


def test_turning_the_sides_of_a_vote_changes_nothing(read):
    turned = [
        vote | {"a": "y", "b": "x", "response_a": vote["response_b"], "response_b": vote["response_a"],
                "choice": {"a": "b", "b": "a"}.get(vote["choice"], vote["choice"])}
        for vote in VOTES
    ]  # fmt: skip
    one, other = (pairs_from_votes(read(rows), disputed="weight").pairs for rows in (VOTES, turned))
    assert one.to_list() == other.to_list()


@pytest.mark.parametrize("disputed", ["adjudicate", "weight", "slice"])
def test_pairs_are_valid_preference_data(read, tmp_path, disputed):
    made = pairs_from_votes(read(VOTES), disputed=disputed)
    made.pairs.to_json(tmp_path / "pairs.jsonl")
    pairs = read_preferences(tmp_path / "pairs.jsonl")
    assert len(validate(pairs, ties="keep").rejects) == 0
    assert set(validate(pairs).rejects["reason"]) <= {"tie_or_abstention"}
    for name in ("preference", "weight"):
        assert list(pairs[name]) == pytest.approx(list(made.pairs[name]))


def ratings_of(prompt, **scores):
    return [
        {"item_id": item, "prompt_id": prompt, "annotator": "ann", "prompt": "Why?", "response": item, "safety": score}
        for item, score in scores.items()
    ]


def test_pairs_of_ratings_have_the_gap(read, tmp_path):
    annotations = read(ratings_of("p", low=2, high=4, same=4.1))
    made = pairs_from_ratings(annotations, aggregate(annotations), min_gap=0.05)
    rows = {frozenset((row["chosen"], row["rejected"])): row for row in made.pairs}
    clear, tie = rows[frozenset(("low", "high"))], rows[frozenset(("high", "same"))]
    assert (clear["chosen"], clear["rating_gap"], clear["preference"], clear["route"]) == ("high", 0.5, 1, "train")
    assert (tie["preference"], tie["route"]) == (0.5, "tie") and tie["rating_gap"] == pytest.approx(0.025)
    assert {name: made.counts[name] for name in ("n", "kept", "train", "tie")} == {
        "n": 3, "kept": 3, "train": 2, "tie": 1}  # fmt: skip
    made.pairs.to_json(tmp_path / "pairs.jsonl")
    pairs = read_preferences(tmp_path / "pairs.jsonl")
    assert len(validate(pairs, ties="keep").rejects) == 0
    assert list(pairs["rating_gap"]) == pytest.approx(list(made.pairs["rating_gap"]))


def test_disputed_ratings_are_routed_as_disputed_votes_are(read, tmp_path):
    second = [row | {"annotator": "bo", "safety": 1} for row in ratings_of("p", wide=5)]
    annotations = read([*ratings_of("p", wide=5, high=5, low=1), *second])
    scores = aggregate(annotations)
    made = pairs_from_ratings(annotations, scores)
    assert {name: made.counts[name] for name in ("n", "kept", "review", "train", "review_or_hold_out", "tie")} == {
        "n": 3, "kept": 1, "review": 2, "train": 1, "review_or_hold_out": 2, "tie": 0}  # fmt: skip
    assert {row["chosen"] for row in made.pairs} == {"high"} and "chosen" not in made.review.column_names
    assert set(made.review["route"]) == {"review_or_hold_out"}
    kept = pairs_from_ratings(annotations, scores, disputed="weight").pairs
    assert sorted(kept["route"]) == ["review_or_hold_out", "review_or_hold_out", "train"]
    held_out = pairs_from_ratings(annotations, scores, disputed="slice").review
    held_out.to_json(tmp_path / "slice.jsonl")
    assert len(validate(read_preferences(tmp_path / "slice.jsonl")).kept) == 2
    with pytest.raises(UsageError, match="adjudicate, weight, slice"):
        pairs_from_ratings(annotations, scores, disputed="drop")


def test_a_difference_of_the_minimum_gap_is_a_preference(read):
    annotations = read(ratings_of("p", x=2.2, y=2.4))  # 0.05 on 0–1, up to rounding
    assert pairs_from_ratings(annotations, aggregate(annotations), min_gap=0.05).counts["train"] == 1
    assert pairs_from_ratings(annotations, aggregate(annotations), min_gap=0.051).counts["tie"] == 1


def test_equal_scores_are_a_tie_without_a_minimum_gap(read):
    annotations = read(ratings_of("p", x=2, y=2))
    assert pairs_from_ratings(annotations, aggregate(annotations), min_gap=0).counts["tie"] == 1


def test_pairs_of_ratings_may_leave_votes_aside(read):
    vote = {"prompt_id": "p", "annotator": "bo", "a": "high", "b": "low", "choice": "b"}
    annotations = read([*ratings_of("p", low=3, high=4), vote])
    scores = aggregate(annotations)
    assert pairs_from_ratings(annotations, scores).pairs[0]["chosen"] == "low"
    assert pairs_from_ratings(annotations, scores, score="criterion").pairs[0]["chosen"] == "high"


def test_items_under_the_quorum_and_items_of_other_prompts_make_no_pair(read):
    annotations = read([*ratings_of("p", x=1, y=5), *ratings_of("q", z=3)])
    assert pairs_from_ratings(annotations, aggregate(annotations)).counts["n"] == 1
    made = pairs_from_ratings(annotations, aggregate(annotations, quorum=2))
    assert (made.counts["n"], made.counts["items_left_out"], len(made.pairs)) == (0, 3, 0)


def test_message_lists_and_strings_become_message_lists(read):
    vote = votes_on("pair", "a")[0] | {"prompt": [{"role": "user", "content": "Why?"}]}
    row = pairs_from_votes(read([vote]), min_votes=1).pairs[0]
    assert row["prompt"] == [{"role": "user", "content": "Why?"}]
    assert row["chosen"] == [{"role": "assistant", "content": "pair is small"}]


def test_settings_out_of_range_and_missing_judgments_raise(read):
    votes, ratings = read(VOTES), read(ratings_of("p", x=1, y=5))
    with pytest.raises(UsageError, match="adjudicate, weight, slice"):
        pairs_from_votes(votes, disputed="drop")
    with pytest.raises(UsageError, match="1 or more"):
        pairs_from_votes(votes, min_votes=0)
    with pytest.raises(DataError, match="no votes"):
        pairs_from_votes(ratings)
    with pytest.raises(UsageError, match="final or criterion"):
        pairs_from_ratings(ratings, aggregate(ratings), score="borda")
    with pytest.raises(UsageError, match="0 to 1"):
        pairs_from_ratings(ratings, aggregate(ratings), min_gap=2)


def test_example_pairs():
    annotations = read_annotations([EXAMPLE])
    assert pairs_from_votes(annotations).counts["train"] == 2
    made = pairs_from_ratings(annotations, aggregate(annotations))
    assert {row["prompt_id"]: row["chosen"] for row in made.pairs}["geo-1"] == "Paris. Any school globe shows it."


def test_pandalm_votes_are_routed(real_data):
    annotations = read_annotations([real_data / "pandalm" / "testset-v1-first500.json"])
    made = pairs_from_votes(annotations)
    rows = json.loads((real_data / "pandalm" / "testset-v1-first500.json").read_text())
    votes = [[row[f"annotator{k}"] for k in (1, 2, 3)] for row in rows]
    unanimous = [set(three) for three in votes if len(set(three)) == 1]
    assert made.counts["train"] == sum(one != {0} for one in unanimous)
    assert made.counts["tie"] == sum(one == {0} for one in unanimous)
    assert made.counts["review_or_hold_out"] == made.counts["review"] == 500 - len(unanimous)
    assert made.counts["missing_text"] == 0
