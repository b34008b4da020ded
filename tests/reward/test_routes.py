"""One text has one score, whichever way it takes to the reward model, under every chat template in TRL's wheel."""

from pathlib import Path

import numpy as np
import pytest
from routes import conversations, largest_difference, scores
from templates import NAMES, tokenizer_of

from rmtrl.reward.rendering import encode, encode_prompt

README = Path(__file__).parents[2] / "examples" / "templates" / "README.md"


def test_all_templates_are_there():
    assert len(NAMES) >= 63


@pytest.mark.parametrize("name", NAMES)
def test_every_route_gives_the_same_score(name):
    tokenizer = tokenizer_of(name)
    route, found, (adapter, merged) = scores(tokenizer)
    assert largest_difference(found) <= 1e-5, found
    np.testing.assert_allclose(adapter, merged, atol=1e-5)
    assert len(set(np.round(found["RewardScorer"], 3))) == len(found["RewardScorer"]), "answers are told apart"
    # ids exactly where prompt, answer and end, one after the other, are the rendering
    prompt, answer = conversations(tokenizer)[0]
    one_by_one = [*encode_prompt(tokenizer, prompt), *tokenizer(answer[0]["content"])["input_ids"]]
    exact = encode(tokenizer, prompt + answer) == [*one_by_one, tokenizer.eos_token_id]
    assert route == ("ids" if exact else "text")
    if f"| {name} |" in README.read_text(encoding="utf-8"):
        assert f"| {name} | {route} |" in README.read_text(encoding="utf-8")
