"""The refusal guard on people's labels, and the table that reports it."""

import re
from pathlib import Path

import pytest
from refusals import MODELS, measure, table

README = Path(__file__).parents[2] / "examples" / "guardrails" / "README.md"


@pytest.fixture(scope="module")
def measured(real_data):
    return measure(real_data)


def test_the_guard_finds_refusals_of_models_it_was_not_fitted_on(measured):
    for model in MODELS:
        guard, matching = (measured[f"{model}/all"][name] for name in ("guard", "string_matching"))
        assert guard["balanced_accuracy"].n == matching["balanced_accuracy"].n == 450
        assert guard["balanced_accuracy"].value > matching["balanced_accuracy"].value + 0.03
        assert guard["sensitivity"].value > 0.8
    assert measured["mistralinstruct/all"]["string_matching"]["sensitivity"].value < 0.3


def test_the_table_says_what_is_measured(measured):
    reported = README.read_text(encoding="utf-8").splitlines()
    for row in table(measured):
        (told,) = [line for line in reported if line.startswith(row.split("|")[1].join("||"))]
        numbers = [
            [float(number) for number in re.findall(r"\d+\.?\d*", line.split("|", 2)[2])] for line in (row, told)
        ]
        assert numbers[0] == pytest.approx(numbers[1], abs=0.01)
