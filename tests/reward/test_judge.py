"""A judge's ratings and preferences: replies read strictly, abstentions that are no numbers, both orders."""

import asyncio
import re

import numpy as np
import pytest

from rmtrl import ComposedReward, JudgeScorer
from rmtrl.errors import ModelError, UsageError

FAST = {"attempts": 2, "most_wait": 0.01, "timeout": 5.0}


def saying(reply):
    """Answers chat completions with what `reply` makes of the text that the judge is told."""
    return lambda path, body: {"choices": [{"message": {"content": reply(body["messages"][0]["content"])}}]}


def length(text):
    """Rates an answer by its characters."""
    answer = re.search(r"\[Answer\]\n(.*?)\n\nSay", text, re.S)[1]
    return f"Well. [[{len(answer)}]]"


def longer(text):
    """Prefers the longer answer."""
    first, second = re.search(r"\[Answer A\]\n(.*?)\n\n\[Answer B\]\n(.*?)\n\nSay", text, re.S).groups()
    return "I see. [[tie]]" if len(first) == len(second) else f"[[{'A' if len(first) > len(second) else 'B'}]]"


def test_ratings_are_read_and_given_in_trls_form(serve):
    server = serve(saying(length))
    judge = JudgeScorer(f"{server.url}/v1", "big", **FAST)
    chat = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    assert judge.score([chat, "four"]).tolist() == [3.0, 4.0]
    assert judge.score([chat]).dtype == np.float32 and judge.score([]).shape == (0,)
    told = server.calls[0]
    assert told.path == "/v1/chat/completions" and told.body["model"] == "big" and told.body["temperature"] == 0.0
    assert judge(prompts=["{x}"], completions=["{}"], column=[1]) == [2.0]
    assert asyncio.run(judge.reward(["a"], ["b"])) == [1.0]


@pytest.mark.parametrize(
    "reply",
    [
        "7",
        "[[11]]",
        "[[0]]",
        "[[7]] or [[8]]",
        "[[seven]]",
        "[[nan]]",
        "[[7/10]]",
        "[[]]",
        "",
        None,
        "[[٧]]",
        "<think>[[5]]",
        "<think>[[5]]</think>",
    ],
)
def test_a_reply_that_is_not_one_rating_is_an_abstention(reply, serve):
    judge = JudgeScorer(serve(saying(lambda text: reply if "bad" in text else "[[7]]")).url, "m", **FAST)
    assert judge(prompts=["p"] * 3, completions=["good", "bad", "good"]) == [7.0, None, 7.0]
    assert judge.abstained_ == 1
    assert np.isnan(judge.score(["bad"])).tolist() == [True]
    reward = ComposedReward({"judge": judge, "one": lambda completions, **columns: [1.0] * len(completions)})
    assert reward(prompts=["p"] * 2, completions=["good", "bad"]) == [8.0, 1.0]


def test_what_is_thought_is_no_verdict(serve):
    for reply in ("<think>[[5]]</think>[[8]]", "[[5]] or [[6]]</think> So: [[8]]"):  # some templates open it
        assert JudgeScorer(serve(saying(lambda text, reply=reply: reply)).url, "m", **FAST).score(["a"]) == [8.0]


def test_prompts_of_ones_own_may_hold_braces_and_must_show_the_answer(serve):
    server = serve(saying(lambda text: "[[8]]"))
    judge = JudgeScorer(server.url, "m", rating='{prompt}|{answer}|{low:g}-{high}|{"score": 3}|{x}', **FAST)
    judge(prompts=["{answer}"], completions=["B"])
    assert server.calls[0].body["messages"][0]["content"] == '{answer}|B|1-10|{"score": 3}|{x}'
    for own in ({"rating": "{prompt} {reply}"}, {"comparison": "{first}"}):
        with pytest.raises(UsageError, match=r"wanted \{(answer|second)\} in it"):
            JudgeScorer(server.url, "m", **own)


def test_what_a_judge_cannot_be_asked_is_one_line(serve):
    judge = JudgeScorer(serve(saying(lambda text: "[[A]]")).url, "m", **FAST)
    with pytest.raises(UsageError, match="conversation 1 holds half a character"):
        judge.score(["a", "\ud800"])
    with pytest.raises(UsageError, match="conversation 1 holds half a character"):
        judge.compare(["p", "q"], ["a", "b"], ["c", "\ud800"])
    with pytest.raises(UsageError, match="got 1 prompts and 2 completions"):
        judge(prompts=["a"], completions=["b", "c"])
    with pytest.raises(UsageError, match="got 1 prompts and 2 completions"):
        judge.compare(["a"], ["a"], ["b", "c"])


def test_pairs_are_asked_in_both_orders_and_agreement_is_reported(serve):
    prompts = [f"p{n}" for n in range(6)]
    first, second = ["aaa", "a", "aa", "aaaa", "b", "cc"], ["b", "bb", "bb", "b", "aaaa", "cccc"]
    judge = JudgeScorer(serve(saying(longer)).url, "m", **FAST)
    found = judge.compare(prompts, first, second)
    assert found.preferred.tolist() == [1, 0, 0.5, 1, 0, 0] and found.n_abstained == 0
    assert (found.agreement.value, found.agreement.n) == (1.0, 6) and found.first_shown.value == 0.5
    swapped = judge.compare(prompts, second, first)
    assert swapped.preferred.tolist() == [0, 1, 0.5, 0, 1, 1]

    def first_always(text):
        return "no idea" if "p5" in text else "[[tie]]" if "p4" in text else "[[A]]"

    biased = JudgeScorer(serve(saying(first_always)).url, "m", **FAST).compare(prompts, first, second)
    assert biased.preferred[:5].tolist() == [0.5] * 5 and np.isnan(biased.preferred[5])
    assert (biased.agreement.value, biased.agreement.n, biased.n_abstained) == (0.2, 5, 1)
    assert biased.first_shown.value == 0.9  # four times 1 and a tie
    silent = JudgeScorer(serve(saying(lambda text: "?")).url, "m", **FAST).compare(prompts, first, second)
    assert np.isnan(silent.preferred).all() and silent.agreement is None and silent.n_abstained == 6


def test_an_endpoint_that_fails_is_an_error_and_no_abstention(serve):
    judge = JudgeScorer(serve(lambda path, body: (500, {"error": "out of memory"}, {})).url, "m", **FAST)
    with pytest.raises(ModelError, match="in 2 tries, at last HTTP 500: out of memory"):
        judge.score(["text"])
    with pytest.raises(ModelError, match="wanted what chat completions answer"):
        JudgeScorer(serve(lambda path, body: {"scores": [1.0]}).url, "m", **FAST).score(["text"])
    with pytest.raises(UsageError, match="the lower end first"):
        JudgeScorer("http://127.0.0.1:1", "m", low=5, high=5)
