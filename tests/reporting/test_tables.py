"""The table of a result: one line a value, a part under its name, rows side by side where they fit."""

from rmtrl import Estimate
from rmtrl.reporting.tables import table

ACCURACY = Estimate(0.75, 0.7, 0.8, 1300)


def test_values_that_fit_a_line_come_first_and_parts_under_their_names():
    assert table({"schema": "x/1", "by_domain": {"chat": ACCURACY}, "pairs": 1300, "out": None, "empty": {}}) == (
        "pairs  1,300\n\nby domain\nchat  0.750 [0.700, 0.800] (n = 1,300)"
    )
    assert table({"by_domain": {"chat": ACCURACY}}).startswith("by domain\n")


def test_rows_stand_side_by_side_where_they_fit_and_one_under_the_other_where_not():
    rows = [{"model": "a", "accuracy": ACCURACY}, {"model": "longer", "accuracy": None}]
    assert table({"models": rows}).splitlines()[1:] == [
        "model   accuracy", "a       0.750 [0.700, 0.800] (n = 1,300)", "longer"
    ]  # fmt: skip
    assert "model  " + "m" * 300 in table({"models": [row | {"model": "m" * 300} for row in rows]})


def test_a_long_list_says_how_many_more_there_are():
    assert table({"ids": [f"a long identifier {i}" for i in range(25)]}).splitlines()[-1].startswith("5 more")


def test_an_interval_that_nobody_knows_is_said_in_words_everywhere():
    for low, high in ((float("nan"), float("nan")), (float("-inf"), float("inf")), (0.7, float("inf"))):
        one = Estimate(0.75, low, high, 1)
        assert f"{one}; {one:.2f}" == "0.750, no interval (n = 1); 0.75, no interval"
        assert table({"rows": [{"a": one, "b": 1}]}).splitlines()[-1] == "0.750, no interval (n = 1)  1"
    none = Estimate(float("nan"), float("nan"), float("nan"), 0)
    assert f"a  {none}" == table({"a": none}) == "a  unknown, no interval (n = 0)"


def test_a_column_without_a_value_is_left_out():
    rows = [{"policy": name, "gain": None, "wins": wins} for name, wins in (("a", None), ("b", 3))]
    assert table({"rows": rows}).splitlines()[1:] == ["policy  wins", "a", "b       3"]
