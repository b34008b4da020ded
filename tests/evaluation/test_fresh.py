"""The fresh-policy loop: blind pairs, verdicts that belong to them, accuracy against people."""

import copy

import numpy as np
import pytest

from rmtrl.errors import DataError
from rmtrl.evaluation.fresh import generated, import_verdicts, sample_review, score_verdicts
from rmtrl.generation import Completion, Generator
from rmtrl.metrics import mean_estimate

GENERATIONS = [{"prompt": f"question {i}", "completions": [f"best {i}", f"good {i}", f"bad {i}"]} for i in range(60)]


@pytest.fixture
def review():
    return sample_review(GENERATIONS, 40, seed=1, policy="sft")


def judged(review, verdict="a", reviewer="ann"):
    return [{**row, "verdict": verdict, "reviewer": reviewer} for row in review.rows]


def test_a_review_shows_text_alone_and_the_key_tells_what_stood_where(review):
    assert len(review.rows) == 40 and review.key["policy"] == "sft"
    by_prompt = {row["prompt"]: row["completions"] for row in GENERATIONS}
    for row, pair in zip(review.rows, review.key["pairs"], strict=True):
        assert set(row) == {"id", "prompt", "a", "b", "verdict", "reviewer"} and row["verdict"] == ""
        completions = by_prompt[row["prompt"]]
        assert (row["a"], row["b"]) == (completions[pair["a"]], completions[pair["b"]]) and pair["a"] != pair["b"]


def test_sides_and_order_are_random_and_seeded(review):
    sides = [pair["a"] < pair["b"] for pair in review.key["pairs"]]
    assert 10 < sum(sides) < 30  # 40 fair draws fall outside once in a thousand
    assert [row["prompt"] for row in review.rows] != sorted(row["prompt"] for row in review.rows)
    assert {pair[side] for pair in review.key["pairs"] for side in "ab"} == {0, 1, 2}
    assert sample_review(GENERATIONS, 40, seed=1, policy="sft") == review
    assert sample_review(GENERATIONS, 40, seed=2).rows != review.rows
    assert sample_review(GENERATIONS[::-1], 40, seed=1, policy="sft") == review  # not where a prompt stands


def test_prompts_without_two_different_completions_are_counted():
    rows = [*GENERATIONS[:3], {"prompt": "same", "completions": ["x", "x"]}, {"prompt": "one", "completions": ["x"]},
            GENERATIONS[0]]  # fmt: skip
    review = sample_review(rows, 3)
    assert review.key["skipped"] == {"fewer than two different completions": 2, "repeated prompt": 1}
    with pytest.raises(DataError, match="wanted 1 to 3"):
        sample_review(rows, 4)


@pytest.mark.parametrize("row", [{}, {"prompt": "x"}, {"prompt": 3, "completions": []}])
def test_rows_that_are_no_generations_are_refused(row):
    with pytest.raises(DataError, match="row 1 is no generation"):
        sample_review([row], 1)


def test_a_policy_can_write_the_pairs():
    class Echo(Generator):
        def generate(self, prompts, n=1, *, seed=0):
            return [[Completion(f"{prompt} {seed} {k}") for k in range(n)] for prompt in prompts]

    rows = generated(Echo(), ["p", "q"], seed=7)
    assert rows[1] == {"prompt": "q", "completions": ["q 7 0", "q 7 1"], "truncated": [False, False]}
    assert len(sample_review(rows, 2).rows) == 2


def test_what_was_cut_off_is_said_through_to_the_result():
    cut = [{**row, "truncated": [False, True, True]} for row in GENERATIONS]
    review = sample_review(cut, 40, seed=1)
    for row, pair in zip(review.rows, review.key["pairs"], strict=True):
        assert (row["truncated_a"], row["truncated_b"]) == (pair["a"] > 0, pair["b"] > 0)
    found = import_verdicts(judged(review), review.key, reviewed_by="human")
    assert [row["truncated_a"] for row in found.rows] == [row["truncated_a"] for row in review.rows]
    assert score_verdicts(found.rows, [1] * 40, [0] * 40).truncated == 40  # one side at least is not the first
    for wrong in ("yes", [True], [0, 1, 0]):
        with pytest.raises(DataError, match="row 1 has truncated"):
            sample_review([GENERATIONS[0] | {"truncated": wrong}], 1)


def test_verdicts_come_back_in_order_with_who_judged(review):
    rows = judged(review, "A ")[::-1]
    found = import_verdicts(rows, review.key, reviewed_by="human")
    assert [row["id"] for row in found.rows] == [row["id"] for row in review.rows] and found.missing == 0
    first = found.rows[0]
    assert (first["verdict"], first["reviewer"], first["reviewed_by"], first["policy"]) == ("a", "ann", "human", "sft")
    assert first["prompt_id"] == review.key["pairs"][0]["prompt_id"]


def test_ratings_count_as_verdicts(review):
    rows = [{**row, "rating_a": i % 3, "rating_b": 1} for i, row in enumerate(review.rows)]
    found = import_verdicts(rows, review.key, reviewed_by="human", reviewer="bo")
    assert [row["verdict"] for row in found.rows[:3]] == ["b", "tie", "a"] and found.rows[0]["reviewer"] == "bo"


def test_missing_verdicts_are_an_error_or_counted(review):
    rows = judged(review)
    rows[4]["verdict"] = ""
    with pytest.raises(DataError, match=rf"1 of 40 pairs have no verdict, the first is '{rows[4]['id']}'"):
        import_verdicts(rows, review.key, reviewed_by="human")
    assert import_verdicts(rows[1:], review.key, reviewed_by="human", allow_missing=True).missing == 2
    with pytest.raises(DataError, match="40 of 40"):
        import_verdicts([], review.key, reviewed_by="human", allow_missing=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "fresh-9999"}, "does not know"),
        ({"id": "fresh-0002"}, "twice|not the one"),
        ({"a": "something nicer"}, "not the one that was sampled"),
        ({"verdict": "both"}, "wanted a, b, tie"),
        ({"reviewer": " "}, "no reviewer"),
        ({"verdict": "", "rating_a": "high", "rating_b": 1}, "two finite numbers"),
        ({"verdict": "", "rating_a": np.nan, "rating_b": 1}, "two finite numbers"),
        ({"verdict": "", "rating_a": 1, "rating_b": np.inf}, "two finite numbers"),
        ({"verdict": "", "rating_a": 10**400, "rating_b": 1}, "two finite numbers"),
        ({"verdict": "", "rating_a": True, "rating_b": 0}, "two finite numbers"),
        ({"verdict": "a", "rating_a": 4, "rating_b": None}, "two finite numbers"),
        ({"verdict": "a", "rating_a": 1, "rating_b": 5}, "wanted one answer"),
        ({"verdict": "tie", "rating_a": 1, "rating_b": 5}, "wanted one answer"),
    ],
)
def test_reviews_that_do_not_fit_their_key_are_refused(review, change, message):
    rows = judged(review)
    rows[0] |= change
    with pytest.raises(DataError, match=message):
        import_verdicts(rows, review.key, reviewed_by="human")


def test_a_repeated_line_another_key_and_an_unknown_judge_are_refused(review):
    rows = judged(review)
    with pytest.raises(DataError, match="twice"):
        import_verdicts([*rows, rows[0]], review.key, reviewed_by="human")
    with pytest.raises(DataError, match="not the one that was sampled"):
        import_verdicts(rows, sample_review(GENERATIONS, 40, seed=2).key, reviewed_by="human")
    with pytest.raises(DataError, match="human or model"):
        import_verdicts(rows, review.key, reviewed_by="cat")
    with pytest.raises(DataError, match="schema"):
        import_verdicts(rows, {}, reviewed_by="human")


def test_ratings_that_agree_with_the_verdict_are_taken(review):
    rows = [row | {"rating_a": 5, "rating_b": 1} for row in judged(review)]
    assert {row["verdict"] for row in import_verdicts(rows, review.key, reviewed_by="human").rows} == {"a"}


def test_a_key_that_is_not_whole_is_refused(review):
    for pairs in ([3], [{"id": "x"}]):
        with pytest.raises(DataError, match="key has a pair without"):
            import_verdicts(judged(review), review.key | {"pairs": pairs}, reviewed_by="human")


def verdicts(*given, prompts=None, start=0, **more):
    row = {"reviewer": "ann", "reviewed_by": "human", "policy": "sft"}
    names = prompts or range(len(given))
    return [
        {
            **row,
            "id": f"v{i}",
            "prompt_id": f"p{p}",
            "prompt": f"q{p}",
            "a": f"a{i}",
            "b": f"b{i}",
            "verdict": v,
            **more,
        }
        for i, (p, v) in enumerate(zip(names, given, strict=True), start)
    ]


def test_a_pair_counts_once_however_many_judge_it():
    rows = [row for who, given in {"ann": "aab", "bo": "abb", "cy": "atb"}.items()
            for row in verdicts(*(v.replace("t", "tie") for v in given), reviewer=who)]  # fmt: skip
    found = score_verdicts(rows, [1] * 9, [0] * 9)
    # a by three; a, b and a tie: no majority; b by three
    assert (found.accuracy.value, found.accuracy.n, found.pairs, found.ties) == (0.5, 2, 3, 1)
    assert found.reviewers == {"ann": 3, "bo": 3, "cy": 3}
    two = [*verdicts("a"), *verdicts("tie", reviewer="bo")]  # who sees no difference does not outvote who sees one
    assert score_verdicts(two, [1, 1], [0, 0]).accuracy.n == 1


def test_the_order_of_the_verdicts_does_not_matter():
    rng = np.random.default_rng(0)
    rows = [row for who in ("ann", "bo", "cy") for row in verdicts(*rng.choice(["a", "b"], 20), reviewer=who)]
    a = np.tile(rng.normal(size=20), 3)
    order = rng.permutation(60)
    found, other = (score_verdicts([rows[i] for i in o], a[o], -a[o]) for o in (np.arange(60), order))
    assert found.accuracy.value == other.accuracy.value and found.a_preferred == other.a_preferred


def test_a_file_of_verdicts_joined_with_itself_is_refused():
    rows = verdicts(*"ab" * 10)
    with pytest.raises(DataError, match="'v0' by 'ann' twice"):
        score_verdicts(rows * 5, [1] * 100, [0] * 100)
    with pytest.raises(DataError, match="twice"):
        score_verdicts([*rows, rows[0] | {"reviewer": " Ann"}], [1] * 21, [0] * 21)
    again = [row | {"id": f"again-{i}"} for i, row in enumerate(rows)]
    with pytest.raises(DataError, match="are the same pair"):
        score_verdicts(rows + again, [1] * 40, [0] * 40)
    swapped = [row | {"id": f"again-{i}", "a": row["b"], "b": row["a"]} for i, row in enumerate(rows)]
    with pytest.raises(DataError, match="are the same pair"):
        score_verdicts(rows + swapped, [1] * 40, [0] * 40)
    with pytest.raises(DataError, match="two texts under the id 'v0'"):
        score_verdicts([*rows, rows[0] | {"a": "other", "reviewer": "bo"}], [1] * 21, [0] * 21)


@pytest.mark.parametrize("name", ["id", "prompt_id", "prompt", "a", "b", "reviewer"])
@pytest.mark.parametrize("value", [None, {"x": 1}])
def test_verdicts_that_are_not_whole_are_refused(name, value):
    rows = verdicts("a", "b")
    rows[1][name] = value
    with pytest.raises(DataError, match=f"without {name}"):
        score_verdicts(rows, [1, 1], [0, 0])


def test_accuracy_by_hand():
    found = score_verdicts(verdicts("a", "b", "a", "b", "tie"), [2, 0, 0, 1, 5], [1, 1, 1, 1, 0])
    # right, right, wrong, a tie of scores; the pair judged a tie has no better side
    assert found.accuracy.value == 2.5 / 4 and found.accuracy.n == 4
    assert (found.pairs, found.ties, found.tied_scores, found.a_preferred) == (5, 1, 1, 0.5)
    assert found.reviewers == {"ann": 5}


def test_the_interval_is_by_prompt():
    rng = np.random.default_rng(0)
    prompts = np.repeat(range(10), 6).tolist()
    right = np.repeat(rng.random(10) < 0.6, 6)
    rows = verdicts(*["a"] * 60, prompts=prompts)
    found = score_verdicts(rows, right.astype(float), 1.0 - right).accuracy
    expected = mean_estimate(right.astype(float), prompts)
    assert (found.low, found.high) == (expected.low, expected.high)
    alone = score_verdicts(verdicts(*["a"] * 60), right.astype(float), 1.0 - right).accuracy
    assert found.high - found.low > 1.5 * (alone.high - alone.low)


def test_exchanging_the_sides_changes_nothing():
    rng = np.random.default_rng(0)
    given, a, b = rng.choice(["a", "b", "tie"], 50), rng.normal(size=50), rng.normal(size=50)
    swapped = [{"a": "b", "b": "a"}.get(v, v) for v in given]
    assert score_verdicts(verdicts(*given), a, b).accuracy == score_verdicts(verdicts(*swapped), b, a).accuracy


@pytest.mark.parametrize(
    ("rows", "a", "message"),
    [
        (verdicts("a", "b"), [1, np.nan], "scores of 'v1' are nan and 0"),
        (verdicts("a", "b"), [1], "finite"),
        (verdicts("tie", "tie"), [1, 2], "none of the 2 pairs is decided"),
        (verdicts("a", "yes"), [1, 2], "'yes'"),
        (verdicts("a") + verdicts("b", reviewed_by="model", start=1), [1, 2], "mix reviewed_by human and model"),
        (verdicts("a") + verdicts("b", policy="ppo", start=1), [1, 2], "mix policy ppo and sft"),
    ],
)
def test_verdicts_that_cannot_be_scored_are_refused(rows, a, message):
    with pytest.raises(DataError, match=message):
        score_verdicts(copy.deepcopy(rows), a, [0, 0])
