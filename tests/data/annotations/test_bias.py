import numpy as np
import pandas as pd
import pytest
from world_votes import judged

from rmtrl.data.annotations.bias import annotator_bias, preference_rates
from rmtrl.data.synthetic.world import make_world


@pytest.fixture(scope="module")
def world():
    return make_world(600)


def test_the_annotator_who_loves_length_is_named_and_nobody_else(world):
    biases = annotator_bias(judged(world))
    assert [b.annotator for b in biases if "prefers_longer" in b.flags] == [world.truth["length_loving_annotator"]]
    assert not any(flag for b in biases for flag in b.flags if flag != "prefers_longer")


def test_nobody_is_named_where_all_judge_by_the_gold_score():
    assert not any(bias.flags for bias in annotator_bias(judged(make_world(300, clean=True))))


def test_an_annotator_who_takes_the_first_side_is_named(world):
    votes = judged(world)
    lazy = votes.assign(wins=votes.wins.where(votes.annotator != "careful", 1.0))
    flagged = {b.annotator: b.flags for b in annotator_bias(lazy)}
    assert flagged["careful"] == ("prefers_first",)


def table(annotators, pairs, wins, longer):
    """Votes on pairs of prompts of their own."""
    columns = {"annotator": list(annotators), "pair": pairs, "prompt_id": pairs, "wins": wins, "longer": longer}
    return pd.DataFrame(columns)


def test_figures_by_hand():
    # two pairs, first side longer in both; x: first, first; y: second, tie
    x, y = annotator_bias(table("xyxy", [0, 0, 1, 1], [1, 0, 1, 0.5], [3, 3, 2, 2]))
    assert (x.longer.value, y.longer.value) == (1.0, 0.25)
    assert (x.longer_excess.value, y.longer_excess.value) == (0.75, -0.75)
    assert (x.ties.value, y.ties.value) == (0.0, 0.5)
    assert x.agreement.value == 0.0


def test_who_votes_alone_is_not_compared():
    (alone,) = annotator_bias(table("xx", [0, 1], [1, 1], [3, np.nan]))
    assert alone.longer_excess is None and alone.agreement is None
    assert alone.votes == 1


def test_rates_by_domain_count_every_row(world):
    rates = preference_rates(world.pairs)
    assert set(rates) == {"domain", "source"}
    assert sum(rate["n"] for rate in rates["domain"].values()) == len(world.pairs)
    human = world.pairs.filter(lambda row: row["source"] == "human" and row["preference"] != 0.5)
    longer = [
        (np.sign(len(row["chosen"][0]["content"]) - len(row["rejected"][0]["content"])) + 1) / 2 for row in human
    ]
    assert rates["source"]["human"]["longer_chosen"].value == pytest.approx(np.mean(longer))
