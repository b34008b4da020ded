"""Corrected rates against what people say, on XSTest; `tests/benchmarks/redteam.py` prints the whole table."""

import pytest
from redteam import measure, read_verdicts

from rmtrl.monitoring.redteam import REFUSAL, SUCCESS


@pytest.fixture(scope="module")
def verdicts(real_data):
    return read_verdicts(real_data)


def held(measured):
    """Shares of splits in which the judge's and the corrected interval hold what people say."""
    return measured.groupby(["model", "kind", "judge"])[["counted holds", "corrected holds"]].agg(
        lambda own: own.dropna().astype(float).mean()
    )


def test_corrected_rates_hold_what_people_say_and_the_judges_own_do_not(verdicts):
    """Where people found 16 events or more among a model's answers; by chance alone 5 % would be missed."""
    found = held(measure(verdicts, 60))
    enough = [("gpt4", REFUSAL), ("llama2orig", REFUSAL), ("mistralinstruct", SUCCESS)]
    matching, guard = ([found.loc[(*own, judge)] for own in enough] for judge in ("matching", "guard"))
    assert min(own["corrected holds"] for own in matching + guard) >= 0.9
    assert max(own["counted holds"] for own in matching) < 0.6


def test_errors_measured_on_other_models_do_not_correct(verdicts):
    found = held(measure(verdicts, 20, elsewhere=True))
    assert found.loc["llama2orig", REFUSAL, "matching"]["corrected holds"] < 0.5
