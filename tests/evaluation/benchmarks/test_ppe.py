import itertools
import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from rmtrl.errors import DataError
from rmtrl.evaluation.benchmarks import benchmark
from rmtrl.evaluation.benchmarks.base import Figure, Item
from rmtrl.evaluation.benchmarks.results import result_of
from rmtrl.metrics import best_of_n_curve


def preference(id, winner):
    texts = {"response_1": "one", "response_2": "two"}
    return {"question_id": id, "prompt": f"question {id}", **texts, "winner": winner, "language": "English"}


def correctness(id, scores, pairs):
    responses = {f"response_{i}": f"response {i}" for i in range(1, len(scores) + 1)}
    return {
        "question_id": id,
        "prompt": f"question {id}",
        "scores": scores,
        "sampled_conflict_pairs": pairs,
        **responses,
    }


def test_ties_of_the_human_are_left_out_and_counted(write, scored):
    rows = [
        preference(i, winner) for i, winner in enumerate(["model_a", "model_b", "tie", "tie (bothbad)", "model_a"])
    ]
    items = benchmark("ppe-preference").read(str(write("test.jsonl", rows)))
    result = result_of(benchmark("ppe-preference"), items, scored([1, 0], [0, 1], None, [1, 0], [1, 1]))
    assert result.overall.value == pytest.approx(2 / 3)  # a tie of the scores is wrong
    assert (result.overall.n, result.n_rows, result.n_scored, result.n_missing) == (3, 5, 3, 0)
    assert result.excluded == {"tied by the human": 2}
    assert result.missing_parts == {"human preference": {"expected": 16038, "got": 5, "scored": 3}}


def test_a_failed_judgment_ranks_last(write, scored):
    items = benchmark("ppe-preference").read(str(write("test.jsonl", [preference(i, "model_a") for i in range(3)])))
    result = result_of(
        benchmark("ppe-preference"), items, scored([0, -math.inf], [-math.inf, 0], [-math.inf, -math.inf])
    )
    assert result.overall.value == pytest.approx(1 / 3)
    with pytest.raises(DataError, match="has the score inf"):
        result_of(benchmark("ppe-preference"), items, scored([0, math.inf], [1, 0], [1, 0]))


def test_conflict_pairs_by_hand(write, scored):
    labels = [True, False, True, False]
    # indices from 0; the right one may stand second; a pair that stands twice counts twice
    pairs = [[0, 1], [3, 2], [0, 3], [0, 3], [2, 1]]
    items = benchmark("ppe-correctness").read(
        str(write("PPE-MATH-Best-of-K.jsonl", [correctness("q", labels, pairs)]))
    )
    assert items[0].id.endswith("/q") and items[0].own_id == "q"
    assert items[0].facts["pairs"] == [(0, 1), (2, 3), (0, 3), (0, 3), (2, 1)]
    result = result_of(benchmark("ppe-correctness"), items, scored([3, 1, 2, 3]))  # 3>1, 2<3, 3=3 twice, 2>1
    assert result.overall.value == pytest.approx(2 / 5)
    assert (result.overall.n, result.sections["MATH"].n) == (5, 5)


def test_a_missing_prompt_moves_the_bounds_by_all_of_its_pairs(write, scored):
    rows = [correctness("a", [True, False], [[0, 1]]), correctness("b", [False, True], [[0, 1]] * 3)]
    items = benchmark("ppe-correctness").read(str(write("math.jsonl", rows)))
    result = result_of(benchmark("ppe-correctness"), items, scored([1, 0], None))
    assert (result.overall.value, result.bounds) == (1.0, (0.25, 1.0))


def test_a_failed_response_loses_against_any_other(write, scored):
    rows = [correctness("a", [True, False, True], [[0, 1], [2, 1]])]
    items = benchmark("ppe-correctness").read(str(write("gpqa.jsonl", rows)))
    result = result_of(benchmark("ppe-correctness"), items, scored([0.0, -math.inf, -math.inf]))
    assert result.overall.value == 0.5


def test_domains_are_averaged_unweighted(write, scored):
    write("data/PPE-MATH-Best-of-K/train.jsonl", [correctness("a", [True, False], [[0, 1]] * 3)])
    path = write("data/mbpp_plus.json", [correctness("b", [True, False], [[0, 1]])])
    items = benchmark("ppe-correctness").read(str(path.parent))
    assert [item.subset for item in items] == ["MATH", "MBPP-Plus"]
    result = result_of(benchmark("ppe-correctness"), items, scored([1, 0], [0, 1]))
    assert result.overall.value == 0.5
    assert set(result.subsets) == {"MATH", "MBPP-Plus"}
    assert result.others["MATH auc"].value == 1.0
    assert result.others["auc"].value == 0.5


def test_published_domain_means():
    # https://github.com/lmarena/lmarena.github.io, preference proxy evaluations: accuracy by domain and its mean
    for rows, mean in (([0.66, 0.71, 0.57, 0.54, 0.58], 0.61), ([0.62, 0.68, 0.55, 0.74, 0.62], 0.64)):
        parts = {
            name: Figure(value, 1) for name, value in zip(benchmark("ppe-correctness").expected, rows, strict=True)
        }
        assert benchmark("ppe-correctness").figures(parts).overall.value == pytest.approx(mean, abs=0.006)


def test_auc_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, labels = rng.integers(0, 6, 32).astype(float), rng.permutation(np.arange(32) < 12)
        item = Item("q", "q", "MATH", ("x",) * 32, {"labels": labels, "pairs": []})
        assert dict(benchmark("ppe-correctness").earned(item, scores))["MATH/auc"] == pytest.approx(
            roc_auc_score(labels, scores)
        )


def test_best_of_k_is_the_mean_over_all_subsets():
    scores, labels = np.array([0.4, 2.0, 1.0, 2.0, -1.0]), np.array([True, True, False, False, True])

    def highest(members):
        top = [i for i in members if scores[i] == scores[list(members)].max()]
        return labels[top].mean()

    expected = [np.mean([highest(m) for m in itertools.combinations(range(5), k)]) for k in range(1, 6)]
    assert best_of_n_curve(scores, labels, np.arange(1, 6))[0] == pytest.approx(expected)


def test_best_of_k_of_a_perfect_and_of_a_blind_judge():
    labels = np.arange(32) < 8
    perfect = best_of_n_curve(labels.astype(float), labels, np.arange(1, 33))[0]
    assert perfect == pytest.approx([1 - math.comb(24, k) / math.comb(32, k) for k in range(1, 33)])
    assert best_of_n_curve(np.zeros(32), labels, np.arange(1, 33))[0] == pytest.approx(0.25)


def test_the_curve_s_maximum_and_end(write, scored):
    items = benchmark("ppe-correctness").read(
        str(write("ifeval.jsonl", [correctness("a", [True, True, False], [[0, 2]])]))
    )
    result = result_of(benchmark("ppe-correctness"), items, scored([1, 0, 2]))  # the highest of all three is wrong
    assert result.others["IFEval best of k, end"].value == 0.0
    assert result.others["IFEval best of k, max"].value == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("poems.jsonl", correctness("a", [True, False], [[0, 1]]), "poems.jsonl is not named after a domain of PPE"),
        ("math.jsonl", correctness("a", [True, False], [[1, 2]]), r"the conflict pair \[1, 2\] is not two indices"),
        (
            "math.jsonl",
            correctness("a", [True, False], [[0.0, 1]]),
            r"conflict pair \[0.0, 1\] is not two indices",
        ),
        ("math.jsonl", correctness("a", [True, False], 5), "sampled_conflict_pairs is '5'; wanted a list of pairs"),
        ("math.jsonl", correctness("a", [True, True], [[0, 1]]), r"the conflict pair \[0, 1\] is of two right ones"),
        ("math.jsonl", {**correctness("a", [True], []), "response_2": "x"}, "has 2 responses and 1 scores"),
        ("math.jsonl", {**correctness("a", [True], []), "scores": "10"}, "row 1: scores is '10'; wanted a list"),
    ],
)
def test_correctness_rows_that_do_not_fit_are_named(write, name, row, message):
    with pytest.raises(DataError, match=message):
        benchmark("ppe-correctness").read(str(write(name, [row])))


def test_an_unknown_winner_is_named(write):
    with pytest.raises(DataError, match=r"row 1: winner is 'both'; wanted model_a, model_b, tie or tie \(bothbad\)"):
        benchmark("ppe-preference").read(str(write("test.jsonl", [preference(1, "both")])))
