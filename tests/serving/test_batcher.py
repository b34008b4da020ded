"""Requests are scored together up to a budget, each as if it were alone."""

import threading
import time

import pytest

from rmtrl import RewardScorer
from rmtrl.errors import DataError, RenderingError
from rmtrl.serving.batcher import Batcher, Full
from rmtrl.serving.model import ServedModel

TEXTS = ["red green ?", "one two ? bad", "sun moon sea", "good", "yes thanks no blue"]


class Held(ServedModel):
    """A model that scores when it is let, and notes of how many tokens each call was."""

    def __init__(self, scorer):
        super().__init__(scorer)
        self.go, self.calls = threading.Event(), []

    def score(self, encoded):
        assert self.go.wait(30)
        self.calls.append([n for _, n in encoded])
        return super().score(encoded)


@pytest.fixture
def held(model, tokenizer):
    return Held(RewardScorer(model, tokenizer, progress=False))


def test_a_call_is_full_at_its_budget_and_each_gets_its_own(held):
    alone = {text: float(held.scorer.score([text])[0]) for text in TEXTS}
    budget = 8
    with Batcher(held, token_budget=budget, wait_seconds=5) as batcher:
        answers = [batcher.submit([text]) for text in TEXTS * 3]
        held.go.set()
        for answer, text in zip(answers[:-3], TEXTS * 3, strict=False):
            assert answer.result(30).scores[0] == pytest.approx(alone[text], abs=1e-5)
    assert len(held.calls) > 1 and all(sum(call[:-1]) < budget for call in held.calls)
    assert sum(map(len, held.calls)) == len(answers)  # closing it, the last were answered too


def test_the_first_waits_for_others_but_not_for_long(held):
    held.go.set()
    with Batcher(held, wait_seconds=0.5) as batcher:
        start = time.monotonic()
        first = batcher.submit(TEXTS[:1])
        time.sleep(0.1)
        second = batcher.submit(TEXTS[1:])
        assert len(first.result(30).scores) == 1 and len(second.result(30).scores) == 4
        assert time.monotonic() - start >= 0.5
    assert list(map(len, held.calls)) == [5]


def test_what_cannot_be_read_is_told_at_once_and_takes_no_other_with_it(held):
    held.go.set()
    with Batcher(held, wait_seconds=0.2) as batcher:
        answers = [batcher.submit(given) for given in (["red"], [[{"role": "user"}]], [[400_000]], ["blue"])]
        assert [type(answer.exception(30)) for answer in answers] == [
            type(None),
            RenderingError,
            DataError,
            type(None),
        ]
    assert list(map(len, held.calls)) == [2]


def test_a_request_taken_back_is_not_scored(held):
    with Batcher(held, wait_seconds=0) as batcher:
        first, second = batcher.submit(["red"]), None
        while first.running() is False:
            time.sleep(0.01)
        second = batcher.submit(["blue"] * 7)
        assert second.cancel() and batcher.waiting == 1
        held.go.set()
        first.result(30)
    assert list(map(len, held.calls)) == [1] and batcher.waiting == 0


def test_only_so_many_wait(held):
    with Batcher(held, most_waiting=3) as batcher:
        with pytest.raises(DataError, match="got 4 conversations in one request; wanted at most 3"):
            batcher.submit(["red"] * 4)
        batcher.submit(["red"] * 2)
        with pytest.raises(Full, match="2 conversations wait, of at most 3"):
            batcher.submit(["red"] * 2)
        last = batcher.submit(["red"])
        held.go.set()
        assert len(last.result(30).scores) == 1
