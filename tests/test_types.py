"""Values between stages: what a scorer may return, and whose fault an error is."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pytest
import torch

from rmtrl.errors import DataError, ModelError, RewardError, UsageError
from rmtrl.types import Estimate, Finding, Guard, Scorer, checked_scores, failed_at, json_ready


@pytest.mark.parametrize(
    "values", [[1, 0.5], (True, np.float32(0.5)), np.array([1, 0.5], np.float32), torch.tensor([1, 0.5]),
               [torch.tensor([1.0]), np.array(0.5)]]
)  # fmt: skip
def test_one_number_a_sample_of_any_kind_is_taken(values):
    scores = checked_scores(values, 2)
    assert scores.dtype == np.float64 and scores.tolist() == [1.0, 0.5]


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf"), "1", [1.0], torch.ones(2), 1j])
def test_what_is_no_finite_number_is_named_by_its_place(bad):
    with pytest.raises(ModelError, match="for conversation 1; wanted one finite number") as stop:
        checked_scores([1.0, bad], 2)
    assert stop.value.index == 1
    with pytest.raises(RewardError, match=r"the judge returned .* for answer 1; wanted one finite number, see row 7$"):
        checked_scores(
            [1.0, bad], 2, name="judge", sample="answer", shown=lambda i: f", see row {i + 6}", error=RewardError
        )


@pytest.mark.parametrize("values", [None, 1.0, [1.0], "ab", {0: 1.0, 1: 2.0}, np.zeros((0, 2)), np.array(1.0)])
def test_another_number_of_scores_is_refused(values):
    with pytest.raises(ModelError, match="for 2 conversations; wanted a list of one number each"):
        checked_scores(values, 2)


def test_an_error_is_of_the_sample_it_names_or_of_any():
    assert list(failed_at(DataError("x", index=1), 3)) == [1]
    for error in (DataError("x"), DataError("x", index=3), KeyError(0), DataError("x", index=-1)):
        assert list(failed_at(error, 3)) == [0, 1, 2]


def test_an_estimate_shows_its_interval_in_the_form_asked_for():
    estimate = Estimate(0.5, -0.25, 1.0, 1200)
    assert f"{estimate:+.2f}" == "+0.50 [-0.25, +1.00]" and f"{estimate:,.0f}" == "0 [-0, 1]"
    assert f"{estimate}" == str(estimate) == "0.500 [-0.250, 1.000] (n = 1,200)"


@dataclass(frozen=True)
class Fit:
    json_also: ClassVar = ("peak",)

    alpha: float

    @property
    def peak(self):
        return self.alpha / 0


@dataclass(frozen=True)
class Whole:
    schema: ClassVar = "made/1"

    fits: dict
    drawn: np.ndarray = field(repr=False)
    range: tuple = (0.0, float("inf"))


def test_a_result_is_its_schema_its_fields_and_what_its_class_names_besides():
    class Flat(Fit):
        peak = float("nan")

    whole = Whole({"one": [Flat(2.0)]}, np.ones(3))
    assert json_ready(whole) == {
        "schema": "made/1", "fits": {"one": [{"alpha": 2.0, "peak": None}]}, "range": [0.0, None]
    }  # fmt: skip
    assert list(json_ready(whole))[0] == "schema"
    with pytest.raises(ZeroDivisionError):  # what a property raises is not taken for an absent value
        json_ready(Fit(2.0))


class Marks(Scorer):
    """Counts a mark, by default "!", and says where it stands."""

    def score(self, conversations):
        return np.array([text.count("!") for text in conversations], np.float32)

    def __call__(self, prompts, completions, mark="!", **columns):
        return [float(text.count(mark)) for text in completions]

    def findings(self, conversation, mark="!", **columns):
        return [Finding(i, i + 1, "a mark") for i, own in enumerate(conversation) if own == mark]


def test_a_scorer_is_called_with_conversations_or_in_the_form_of_trl():
    class Length(Scorer):
        def score(self, conversations):
            return np.array([len(own) for own in conversations], np.float32)

    scores = Length()(["a", "abc"])
    assert scores.dtype == np.float32 and scores.tolist() == [1, 3]
    assert (
        Length()(prompts=["a", "b"], completions=["", "cd"], step=3) == [1.0, 3.0] == Length()(["a", "b"], ["", "cd"])
    )
    assert Guard(Length(), 1)(["abc"]).tolist() == [3]
    with pytest.raises(UsageError, match="got 1 prompts and 0 completions"):
        Length()(["a"], [])


def test_a_guard_finds_what_lies_above_its_threshold_and_is_a_scorer_of_severity():
    guard = Guard(Marks(), 1, name="marks")
    asked, answers = ["Hi"] * 3, ["no", "one!", "two!!"]
    assert guard.flags(asked, answers).tolist() == [False, False, True]
    assert guard(prompts=asked, completions=answers) == [0.0, 1.0, 2.0] == guard.score(answers).tolist()
    assert guard.__name__ == "marks" and Guard(Marks(), 1).name == "Marks"
    assert guard.flags(asked, answers, mark="o").tolist() == [False, False, False]
    assert guard.findings("two!!") == [Finding(3, 4, "a mark"), Finding(4, 5, "a mark")]
    assert guard.findings("two", mark="w") == [Finding(1, 2, "a mark")]
    assert guard.holds(answers).all()


def test_a_guard_over_a_scorer_that_names_no_places_finds_none_and_one_without_a_number_raises():
    class Broken(Scorer):
        def score(self, conversations):
            return np.array([np.nan] * len(conversations), np.float32)

    guard = Guard(Broken(), 0.5, name="broken")
    assert guard.findings("text") == []
    with pytest.raises(ModelError, match="the guard 'broken' returned nan for answer 0"):
        guard.flags(["Hi"], [" there"])
    with pytest.raises(UsageError, match="got the threshold nan of a guard; wanted a finite number"):
        Guard(Broken(), float("nan"))
