"""How far rewards follow length, by hand; tests/evaluation/test_audit.py holds the figures with intervals."""

import pytest
from scipy import stats

from rmtrl.metrics import length_bias


def test_length_bias_of_the_three_pair_example():
    bias = length_bias([1.8, 2.4, 1.6], [0.7, 1.1, 0.3], [36, 58, 33], [19, 22, 14])
    assert bias["length_accuracy"] == bias["chosen_longer"] == 1.0
    assert "accuracy_chosen_shorter" not in bias and "length_gap" not in bias


def test_length_bias_where_each_side_is_the_longer_one():
    # the longer side is chosen in 0, 1, 4 (won 0, 1), the shorter in 2, 3 (won 3); 4 is a tie
    bias = length_bias([3, 2, 0, 1, 1], [1, 1, 1, 0, 1], [40, 30, 10, 20, 100], [10, 20, 20, 40, 95])
    both_orders = [2, 1, -1, 1, 0, -2, -1, 1, -1, 0], [30, 10, -10, -20, 5, -30, -10, 10, 20, -5]
    assert bias.pop("length_spearman") == pytest.approx(stats.spearmanr(*both_orders).statistic)
    assert bias == pytest.approx({
        "accuracy_chosen_longer": 2.5 / 3, "accuracy_chosen_shorter": 0.5, "length_gap": 1 / 3,
        "length_accuracy": 3 / 5, "chosen_longer": 3 / 5,
    })  # fmt: skip
