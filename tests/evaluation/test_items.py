"""Scoring the items of a benchmark: whole or not at all, window by window, never a score for an error."""

import numpy as np
import pytest

from rmtrl import RewardScorer, Scorer
from rmtrl.errors import DataError, ModelError, RenderingError, UsageError
from rmtrl.evaluation.benchmarks.base import Item
from rmtrl.evaluation.items import as_text, score_items, windows


class Length(Scorer):
    """The length of a text; holds texts of up to `limit` characters."""

    def __init__(self, limit=1000):
        self.limit, self.calls = limit, []

    def holds(self, conversations):
        return np.array([len(text) <= self.limit for text in conversations], dtype=bool)

    def score(self, conversations):
        self.calls.append(list(conversations))
        return np.array([len(text) for text in conversations], dtype=np.float32)


def item(id, *candidates, **settings):
    return Item(id, id, "all", candidates, **settings)


def all_scores(*arguments, **settings):
    return [scores for window in score_items(*arguments, **settings) for scores in window]


def plain(scores):
    return [None if own is None else own.tolist() for own in scores]


def test_scores_come_in_the_order_of_items_and_candidates():
    items = [item("a", "xxx", "x"), item("b", "xx", "xxxxx", "x"), item("c", "xxxx")]
    assert plain(all_scores(Length(), items)) == [[3, 1], [2, 5, 1], [4]]


def test_an_item_with_one_candidate_too_long_is_missing_and_none_of_it_is_scored():
    scorer = Length(limit=4)
    items = [item("a", "xxxxx", "x"), item("b", "xx", "x"), item("c", "x", "xxxxx")]
    assert plain(all_scores(scorer, items)) == [None, [2, 1], None]
    assert scorer.calls == [["xx", "x"]]


def test_a_window_without_an_item_that_fits_is_missing_as_a_whole():
    assert plain(all_scores(Length(limit=1), [item("a", "xx", "xx")] * 2)) == [None, None]


def test_what_the_rule_leaves_out_is_not_scored():
    scorer = Length()
    assert plain(all_scores(scorer, [item("a", "x", "xx", excluded="tie"), item("b", "x", "x")])) == [None, [1, 1]]
    assert scorer.calls == [["x", "x"]]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_windows_cover_every_item_once_and_hold_whole_items(size):
    items = [item(str(i), *["x"] * (1 + i % 4)) for i in range(11)]
    parts = windows(items, size)
    assert [i for part in parts for i in part] == list(range(11))
    assert all(sum(len(items[i].candidates) for i in part) >= size for part in parts[:-1])


def test_no_items_have_no_windows():
    assert windows([]) == [] and all_scores(Length(), []) == []


class Failing(Length):
    def __init__(self, error, on):
        super().__init__()
        self.error, self.on, self.failures = error, on, 0

    def score(self, conversations):
        if self.on in conversations:
            self.failures += 1
            raise self.error
        return super().score(conversations)


ITEMS = [item("a", "x", "xx"), item("b", "x", "bad"), item("c", "x", "x")]


def test_an_error_that_says_where_names_its_item_and_keeps_its_kind():
    with pytest.raises(RenderingError, match="^item b: no template$"):
        all_scores(Failing(RenderingError("no template", index=3), "bad"), ITEMS)


@pytest.mark.parametrize(
    ("error", "raised", "says"),
    [(RenderingError("no template"), RenderingError, "^one of the items a to c: no template$"),
     (KeyError("oops"), RuntimeError, "stopped at one of the items a to c: KeyError: 'oops'"),
     (MemoryError("too much"), RuntimeError, "stopped at one of the items a to c: MemoryError: too much"),
     (DataError("too long", index=99), DataError, "^one of the items a to c: too long$")],
)  # fmt: skip
def test_a_scorer_that_fails_is_not_called_again(error, raised, says):
    scorer = Failing(error, "bad")
    with pytest.raises(raised, match=says) as stop:
        all_scores(scorer, ITEMS)
    assert scorer.failures == 1 and not scorer.calls and stop.value.__cause__ is error


@pytest.mark.parametrize(
    ("returned", "says"),
    [([np.nan, 1.0], "item a: the scorer returned nan for conversation 0; wanted one finite number"),
     ([1.0, None], "item a: the scorer returned None for conversation 1"),
     ([1.0], "item a: the scorer returned 1 values for 2 conversations"),
     ([[1.0], [2.0]], r"item a: the scorer returned \[1.0\]")],
)  # fmt: skip
def test_what_is_no_score_is_an_error_and_the_scorer_is_not_called_again(returned, says):
    class Wrong(Length):
        def score(self, conversations):
            self.calls.append(conversations)
            return returned if None in returned else np.array(returned, dtype=np.float32)

    scorer = Wrong()
    with pytest.raises(ModelError, match=says):
        all_scores(scorer, [item("a", "x", "xx")])
    assert len(scorer.calls) == 1


def test_a_reward_model_scores_items_as_it_scores_conversations(model, tokenizer):
    scorer = RewardScorer(model, tokenizer, progress=False)
    items = [item("a", "red ? good", "red ? bad one"), item("long", "one " * 400, "x"), item("b", "sun ?", "moon ?")]
    first, long, second = all_scores(scorer, items)
    assert long is None
    np.testing.assert_allclose(
        [*first, *second], scorer.score([*items[0].candidates, *items[2].candidates]), atol=1e-5
    )


def test_conversations_become_text_in_the_form_asked_for():
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    (chat,) = as_text([item("a", turns, "as it is")], "plain")
    assert chat.candidates == ("Hi\n\nYes?", "as it is")
    assert as_text([item("a", turns)], "transcript")[0].candidates == ("\n\nHuman: Hi\n\nAssistant: Yes?",)
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, {"role": "assistant", "content": None}]
    assert as_text([item("a", parts)], "plain")[0].candidates == ("Hi\n\n",)
    with pytest.raises(UsageError, match="wanted plain or transcript"):
        as_text([item("a", turns)], "markdown")
    with pytest.raises(UsageError, match="item a has a turn of the role 'tool'"):
        as_text([item("a", [{"role": "tool", "content": "x"}])], "plain")
