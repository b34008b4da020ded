import json
import logging
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.rewards import get_soft_overlong_punishment

from rmtrl.calibration.calibration import calibrate
from rmtrl.calibration.rewards import AffineReward, CalibratedScorer
from rmtrl.errors import DataError, RewardError, UsageError
from rmtrl.ppo.reward_model import training_reward
from rmtrl.ppo.rewards import (
    ComposedReward,
    Filter,
    LengthPenalty,
    Moments,
    Samples,
    call_reward,
    empty_filter,
    truncated_filter,
)
from rmtrl.reward.scorer import RewardScorer
from rmtrl.reward.uncertainty import MemberScorer
from rmtrl.tiny import make_tiny_llama, make_tiny_tokenizer
from rmtrl.types import Guard, Scorer

WORDS = ("red", "green one", "blue two three")


class Length(Scorer):
    def score(self, conversations):
        return np.array([len(conversation) for conversation in conversations], dtype=np.float32)


class TwoHeads(MemberScorer):
    """Members that say length and twice the length."""

    def members(self, conversations):
        lengths = np.array([len(conversation) for conversation in conversations], dtype=np.float64)
        return np.stack([lengths, 2 * lengths], axis=1)


class Short(Scorer):
    def score(self, conversations):
        raise DataError("conversation 0 has 600 tokens, the model holds 512")


class Broken(TwoHeads):
    def members(self, conversations):
        raise OSError("down")


def values(scores, **columns):
    return [float(score) for score in scores]


class Rudeness(Scorer):
    """The number of times an answer says "rude"."""

    def score(self, conversations):
        return np.array([conversation.count("rude") for conversation in conversations], dtype=np.float32)


def texts(n):
    return {"prompts": [f"p{i}" for i in range(n)], "completions": [f"c{i}" for i in range(n)]}


def test_the_steps_run_in_order_by_hand():
    reward = ComposedReward(
        values,
        calibration=AffineReward(shift=1.0, scale=2.0),
        filters=[Filter("rude", lambda completions, **columns: ["rude" in text for text in completions], -2.0)],
        length_penalty=LengthPenalty(free_tokens=2, per_token=0.5),
        clip=(-2.25, 0.75),
    )
    got = reward(
        prompts=["a", "b", "c", "d"],
        completions=["good", "rude", "ok", "rude"],
        scores=[3.0, 9.0, 5.0, 1.0],
        completion_ids=[[1], [1, 2, 3], [1, 2, 3, 4, 5], [1]],
        trainer_state=object(),
    )
    # (r - 1) / 2 = 1, 4, 2, 0; rude is -2; penalty 0, 0.5, 1.5, 0; cut
    assert got == [0.75, -2.25, 0.5, -2.0]
    parts = {name: part.tolist() for name, part in reward.parts_.items()}
    assert parts == {
        "score": [3.0, 9.0, 5.0, 1.0],
        "calibrated": [1.0, 4.0, 2.0, 0.0],
        "rude": [0.0, 1.0, 0.0, 1.0],
        "length_penalty": [0.0, 0.5, 1.5, 0.0],
        "clipped": [1.0, 1.0, 0.0, 0.0],
        "reward": [0.75, -2.25, 0.5, -2.0],
    }


def test_normalisation_comes_before_the_clip():
    reward = ComposedReward(values, normalise="std", clip=(-1.5, 1.5))
    assert reward(**texts(2), scores=[10.0, 30.0]) == [1.0, 1.5]  # standard deviation 10
    assert reward.parts_["normalised"].tolist() == [1.0, 3.0]
    assert reward.parts_["clipped"].tolist() == [0.0, 1.0]


def test_the_lowest_of_several_filters_counts_whatever_their_order():
    def every(completions, **columns):
        return [True] * len(completions)

    filters = [Filter("a", every, -1.0), Filter("b", every, -3.0)]
    for order in (filters, filters[::-1]):
        assert ComposedReward(values, filters=order)(**texts(1), scores=[5.0]) == [-3.0]


ANSWERS = {"prompts": ["p"] * 4, "completions": ["good", "rude", "rude rude", "rude link"]}


def rude(action, reward=-1.0):
    return Filter("rude", Guard(Rudeness(), 0.5).flags, reward, action)


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        ([rude("replace", -3.0)], [1.0, -3.0, -3.0, -3.0]),
        ([rude("penalise", -3.0)], [1.0, -1.0, 0.0, 1.0]),
        ([rude("block", -3.0)], [1.0, None, None, None]),
        ([Guard(Rudeness(), 0.5, name="rude")], [1.0, -1.0, -1.0, -1.0]),
        ([Guard(Rudeness(), 1.0, name="rude")], [1.0, 2.0, -1.0, 4.0]),  # above the threshold, not at it
    ],
)
def test_a_filter_replaces_penalises_or_blocks_and_is_logged_by_its_name(filters, wanted):
    logged = {}
    reward = ComposedReward(values, filters=filters)
    assert reward(**ANSWERS, scores=[1.0, 2.0, 3.0, 4.0], log_metric=logged.__setitem__) == wanted
    flagged = [float(got != score) for got, score in zip(wanted, (1.0, 2.0, 3.0, 4.0), strict=True)]
    assert reward.parts_["rude"].tolist() == flagged and logged["ComposedReward/rude"] == np.mean(flagged)
    assert reward.parts_["score"].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert logged["ComposedReward/reward"] == np.mean([value for value in wanted if value is not None])


def test_several_filters_act_on_one_completion_alike_in_any_order():
    link = Filter("link", lambda completions, **columns: ["link" in text for text in completions], -0.5, "penalise")
    for action, wanted in (("replace", -3.5), ("penalise", 0.5), ("block", None)):
        filters = [rude(action, -3.0), link]
        for order in (filters, filters[::-1]):
            assert ComposedReward(values, filters=order)(**ANSWERS, scores=[4.0] * 4)[3] == wanted


def test_what_a_filter_blocks_has_no_part_in_the_rest():
    reward = ComposedReward(
        values, filters=[rude("block")], length_penalty=LengthPenalty(0, 1.0), normalise="std", clip=(-9.0, 9.0)
    )
    got = reward(**ANSWERS, scores=[3.0, 99.0, 99.0, 99.0], completion_ids=[[1], [1], [1], [1]])
    assert got == [2.0, None, None, None]
    assert (reward.moments_.count, reward.moments_.mean) == (1, 2.0)


def test_a_guard_is_told_the_columns_and_its_scorers_error_names_it():
    class Cited(Rudeness):
        def __call__(self, prompts, completions, *, reference, **columns):
            return [float(wanted not in text) for wanted, text in zip(reference, completions, strict=True)]

    reward = ComposedReward(values, filters=[Guard(Cited(), 0.5, name="cited")])
    asked = {"prompts": ["p"] * 2, "completions": ["see A", "see B"], "scores": [1.0, 1.0]}
    assert reward(**asked, reference=["A", "A"]) == [1.0, -1.0]
    with pytest.raises(RewardError, match=r"the filter 'cited' failed for one of completions 0 to 1: TypeError"):
        reward(**asked)


@pytest.mark.parametrize("normalise", ["std", "mean_std"])
@pytest.mark.parametrize("ends", [[7, 20], [1, 2, 3, 20], [20]])
def test_running_moments_are_those_of_all_rewards_so_far(normalise, ends):
    scores = np.random.default_rng(0).normal(1e3, 2.0, 20)
    reward = ComposedReward(values, normalise=normalise)
    for start, end in zip([0, *ends], ends, strict=False):
        got = reward(**texts(end - start), scores=list(scores[start:end]))
        seen = scores[:end]
        mean, std = (seen.mean() if normalise == "mean_std" else 0.0), np.std(seen) or 1.0
        np.testing.assert_allclose(got, (scores[start:end] - mean) / std, rtol=1e-9, atol=1e-9)
    assert (reward.moments_.count, reward.moments_.mean) == (20, pytest.approx(scores.mean(), rel=1e-14))


def test_moments_by_hand():
    moments = Moments.of([1.0, 2.0]).merged(Moments.of([6.0])).merged(Moments.of([]))
    assert (moments.count, moments.mean) == (3, 3.0)
    assert moments.std == pytest.approx(np.sqrt(14 / 3), rel=1e-15)
    assert Moments().merged(Moments()) == Moments()


def test_rewards_all_alike_are_not_blown_up_by_rounding():
    reward = ComposedReward(values, normalise="std")
    for _ in range(3):
        assert reward(**texts(7), scores=[0.1] * 7) == [0.1] * 7


def test_evaluation_leaves_the_moments_as_they_are():
    reward = ComposedReward(values, normalise="std")
    reward(**texts(2), scores=[10.0, 30.0])
    before = reward.state_dict()
    reward.update_moments = False
    assert reward(**texts(1), scores=[500.0]) == [50.0]
    assert reward.state_dict() == before


def test_the_state_goes_through_json_unchanged():
    first, second = ComposedReward(values, normalise="mean_std"), ComposedReward(values, normalise="mean_std")
    generator = np.random.default_rng(1)
    first(**texts(11), scores=list(generator.normal(0.1, 1 / 3, 11)))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.moments_ == first.moments_
    more = {**texts(5), "scores": list(generator.normal(0.1, 1 / 3, 5))}
    assert second(**more) == first(**more)
    with pytest.raises(UsageError, match=r"got a reward state with \['mean'\]; wanted \['count', 'mean'"):
        second.load_state_dict({"mean": 0.0})


def test_no_completions_change_nothing():
    reward = ComposedReward(
        TwoHeads(), pessimism=1.0, calibration=AffineReward(0.0, 1.0), filters=[empty_filter()],
        length_penalty=LengthPenalty(0, 1.0), normalise="std", clip=(-1, 1),
    )  # fmt: skip
    assert reward(prompts=[], completions=[], completion_ids=[]) == []
    assert reward.moments_ == Moments()


def test_a_scorer_scores_prompt_and_completion_as_the_calibrated_scorer_does():
    prompts, completions = ["abc", "d"], ["ef", "ghijk"]
    affine = AffineReward(0.3, 1.7)
    for scorer in (Length(), TwoHeads()):
        expected = CalibratedScorer(scorer, affine)(prompts=prompts, completions=completions)
        got = ComposedReward(scorer, calibration=affine)(prompts=prompts, completions=completions)
        np.testing.assert_allclose(got, expected, rtol=1e-6)
    chats = [[{"role": "user", "content": "Hi"}]], [[{"role": "assistant", "content": "Ho"}]]
    assert ComposedReward(Length())(*chats) == [2.0]  # messages


def test_a_whole_calibration_is_taken_by_its_affine_reward():
    generator = np.random.default_rng(0)
    rejected = generator.normal(0, 1, 200)
    chosen = rejected + generator.normal(1, 2, 200)
    calibration = calibrate(chosen, rejected, [str(i) for i in range(200)])
    got = ComposedReward(values, calibration=calibration)(**texts(2), scores=[0.0, 1.0])
    assert got == calibration.reward([0.0, 1.0]).tolist()
    assert got[1] - got[0] == pytest.approx(1 / calibration.temperature.scale_)


def test_pessimism_takes_off_standard_deviations_over_the_scale(caplog):
    with caplog.at_level(logging.ERROR):
        reward = ComposedReward(TwoHeads(), calibration=AffineReward(3.0, 2.0), pessimism=1.5)
        got = reward(prompts=["ab"], completions=["cd"])
    # members 4 and 8: mean 6, standard deviation √8
    assert reward.parts_["score"].tolist() == [6.0]
    np.testing.assert_allclose(reward.parts_["score_std"], [np.sqrt(8)], rtol=1e-15)
    np.testing.assert_allclose(reward.parts_["uncertainty"], [1.5 * np.sqrt(8) / 2], rtol=1e-15)
    np.testing.assert_allclose(got, [(6 - 3) / 2 - 1.5 * np.sqrt(8) / 2], rtol=1e-15)
    plain = ComposedReward(TwoHeads())
    assert plain(prompts=["ab"], completions=["cd"]) == [6.0]
    assert plain.parts_["uncertainty"].tolist() == [0.0]


def test_pessimism_is_the_lower_bound_through_a_curve():
    reward = ComposedReward(TwoHeads(), calibration=np.tanh, pessimism=1.0)
    np.testing.assert_allclose(reward([""], ["a"]), [np.tanh(1.5 - np.sqrt(0.5))], rtol=1e-15)


def test_an_aggregation_that_lowers_is_taken_as_it_is():
    got = ComposedReward(TwoHeads(aggregation="min"))(prompts=[""], completions=["abcd"])
    assert got == [4.0]


def test_several_scorers_are_summed_with_their_weights():
    inner = ComposedReward(values, calibration=AffineReward(0.0, 2.0))
    reward = ComposedReward({"rm": inner, "length": Length()}, weights={"rm": 0.5, "length": -1.0})
    assert reward(prompts=["", ""], completions=["a", "abc"], scores=[8.0, 4.0]) == [1.0, -2.0]
    assert reward.parts_["rm"].tolist() == [4.0, 2.0]
    assert reward.parts_["length"].tolist() == [1.0, 3.0]
    assert reward.parts_["score"].tolist() == [1.0, -2.0]
    unweighted = ComposedReward({"rm": inner, "length": Length()})
    assert unweighted(prompts=[""], completions=["abc"], scores=[8.0]) == [7.0]


def test_truncated_is_told_or_read_from_the_ids():
    reward = ComposedReward(values, filters=[truncated_filter(-4.0, end_token_ids=[2, 3])])
    ids = [[5, 2], [5, 6], [3], []]
    assert reward(**texts(4), scores=[1.0] * 4, completion_ids=ids) == [1.0, -4.0, 1.0, -4.0]
    told = torch.tensor([True, False, False, True])
    assert reward(**texts(4), scores=[1.0] * 4, completion_ids=ids, truncated=told) == [-4.0, 1.0, 1.0, -4.0]
    with pytest.raises(UsageError, match="pass truncated, or completion_ids with"):
        reward(**texts(1), scores=[1.0])


def test_empty_is_without_text_in_either_form():
    reward = ComposedReward(values, filters=[empty_filter(-3.0)])
    assert reward(["", "", ""], ["", " \n", "a"], scores=[1.0] * 3) == [-3.0, -3.0, 1.0]
    messages = [{"role": "assistant", "content": None, "tool_calls": ["call"]}, {"role": "assistant", "content": None}]
    assert reward([[], []], [[message] for message in messages], scores=[1.0] * 2) == [1.0, -3.0]


@pytest.mark.parametrize("length", [0, 79, 80, 81, 95, 100, 101, 500])
def test_length_penalty_with_a_most_is_the_soft_overlong_punishment(length):
    theirs = get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)
    penalty = LengthPenalty(80, 1 / 20, most=1.0)([length])
    np.testing.assert_allclose(-penalty, theirs(completion_ids=[[1] * length]), rtol=1e-12)


def test_means_of_the_parts_are_logged_where_the_trainer_can():
    logged = {}
    reward = ComposedReward(values, clip=(0.0, 1.0))
    reward.__name__ = "helpful"
    reward(**texts(2), scores=[0.5, 3.0], log_metric=logged.__setitem__)
    assert logged == {"helpful/score": 1.75, "helpful/clipped": 0.5, "helpful/reward": 0.75}


def test_a_composed_reward_can_be_pickled():
    reward = ComposedReward(Length(), filters=[truncated_filter(), empty_filter()], normalise="std")
    again = pickle.loads(pickle.dumps(reward))
    assert again([""], ["abc"], truncated=[False]) == [3.0]
    assert again.__name__ == "ComposedReward"


# errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scorer": 3}, "got int as scorer; wanted a Scorer, such as RewardScorer"),
        ({"scorer": torch.nn.Linear(1, 1)}, "got Linear as scorer; wanted a Scorer"),
        ({"scorer": {}}, "got no scorers; wanted at least one"),
        ({"scorer": values, "pessimism": 1.0}, "pessimism=1.0 needs a scorer with an uncertainty.*; got function"),
        ({"scorer": TwoHeads(aggregation="lower"), "pessimism": 1.0}, "aggregation='mean'"),
        ({"scorer": TwoHeads(), "pessimism": -1.0}, "got pessimism=-1.0; wanted a finite number from 0"),
        ({"scorer": values, "normalise": True}, "got normalise=True; wanted 'std', 'mean_std' or False"),
        ({"scorer": values, "clip": (1, -1)}, r"got clip=\(1, -1\); wanted the lower end first"),
        ({"scorer": values, "weights": {"a": 1}}, r"got weights for \['a'\]"),
        ({"scorer": {"a": values}, "weights": {"b": 1}}, r"got weights for \['b'\]"),
        ({"scorer": {"a": values}, "weights": {"a": float("nan")}}, "wanted finite numbers"),
        ({"scorer": {"score": values}}, "got the name 'score' twice"),
        ({"scorer": values, "filters": [empty_filter(), empty_filter()]}, "got the name 'empty' twice"),
        ({"scorer": values, "filters": [Guard(Length(), 1.0), Guard(Length(), 2.0)]}, "got the name 'Length' twice"),
        ({"scorer": {"a": ComposedReward(values, normalise="std")}}, "normalise the outer one alone"),
    ],
)
def test_a_setting_that_cannot_be_used_is_one_line_at_construction(settings, message):
    with pytest.raises(UsageError, match=message) as stop:
        ComposedReward(**settings)
    assert "\n" not in str(stop.value)


def test_a_step_that_cannot_be_used_is_one_line_at_construction():
    with pytest.raises(UsageError, match="got the reward nan of the filter 'empty'"):
        empty_filter(float("nan"))
    with pytest.raises(UsageError, match="got the action 'drop' of the filter 'a'; wanted 'replace', 'penalise' or"):
        Filter("a", values, action="drop")
    with pytest.raises(UsageError, match="got the reward 1.0 of the filter 'a', which penalises; wanted a number bel"):
        Filter("a", values, 1.0, "penalise")
    with pytest.raises(UsageError, match=r"got LengthPenalty\(-1, 0.5, most=inf\); wanted numbers from 0"):
        LengthPenalty(-1, 0.5)
    with pytest.raises(UsageError, match="wanted numbers from 0"):
        LengthPenalty(1, float("nan"))


def test_the_length_penalty_counts_tokens_not_characters():
    reward = ComposedReward(values, length_penalty=LengthPenalty(0, 1.0))
    with pytest.raises(UsageError, match="the length penalty counts tokens; pass completion_ids"):
        reward(**texts(1), scores=[1.0])
    with pytest.raises(RewardError, match="got completion_ids of 2 for 1 completions"):
        reward(**texts(1), scores=[1.0], completion_ids=[[1], [2]])


class Failing:
    """A reward that raises and counts how often it was asked."""

    def __init__(self, error):
        self.error, self.calls = error, 0

    def __call__(self, completions, **columns):
        self.calls += 1
        raise self.error


@pytest.mark.parametrize("error", [KeyError("no mark\namong 7"), MemoryError("too many")])
def test_a_reward_that_fails_is_not_called_again(error):
    reward = Failing(error)
    with pytest.raises(RewardError) as stop:
        call_reward(reward, *texts(7).values(), state=object())
    said = " ".join(str(error).split())
    assert str(stop.value) == (
        f"the reward 'Failing' failed for one of completions 0 to 6: {type(error).__name__}: {said}: the first is "
        "prompt 'p0', completion 'c0'"
    )
    assert reward.calls == 1 and stop.value.__cause__ is error and stop.value.index is None


@pytest.mark.parametrize("index", range(7))
def test_the_sample_that_an_error_names_is_shown(index):
    reward = Failing(DataError("too long", index=index))
    with pytest.raises(RewardError) as stop:
        call_reward(reward, *texts(7).values())
    assert str(stop.value) == (
        f"the reward 'Failing' failed for completion {index} of 7: DataError: too long: prompt 'p{index}', "
        f"completion 'c{index}'"
    )
    assert reward.calls == 1 and stop.value.index == index


def test_an_index_beyond_the_batch_is_nobodys():
    with pytest.raises(RewardError, match="one of completions 0 to 1: DataError"):
        call_reward(Failing(DataError("too long", index=2)), *texts(2).values())


def test_the_message_of_a_scorer_is_kept_and_long_texts_are_cut():
    with pytest.raises(RewardError) as stop:
        ComposedReward(Short())(["p\n" * 200], ["c" * 200])
    assert str(stop.value) == (
        "the reward 'Short' failed for completion 0 of 1: DataError: conversation 0 has 600 tokens, "
        f"the model holds 512: prompt '{'p ' * 39}p…', completion '{'c' * 79}…'"
    )


def test_every_step_is_named_in_its_error():
    def fail(*arguments, **columns):
        raise OSError("down")

    cases = {
        "reward 'fail'": {"scorer": fail},
        "reward 'Broken'": {"scorer": Broken()},
        "calibration": {"scorer": values, "calibration": fail},
        "filter 'safe'": {"scorer": values, "filters": [Filter("safe", fail)]},
    }
    for name, settings in cases.items():
        with pytest.raises(
            RewardError,
            match=rf"^the {name} failed for one of completions 0 to 1: OSError: down: the first is prompt 'p0'",
        ):
            ComposedReward(**settings)(**texts(2), scores=[1.0, 2.0])


def test_the_error_of_a_reward_within_another_is_passed_on_unchanged():
    inner = ComposedReward({"judge": lambda completions, **columns: [float("nan")] * len(completions)})
    with pytest.raises(RewardError) as alone:
        inner(**texts(2))
    with pytest.raises(RewardError) as nested:
        call_reward(ComposedReward({"rm": inner}), *texts(2).values())
    assert str(nested.value) == str(alone.value)


@pytest.mark.parametrize(
    ("bad", "shown"),
    [
        (None, "None"), (float("nan"), "nan"), (np.float32("inf"), r"np.float32\(inf\)"), ("0.5", "'0.5'"),
        ([0.5], r"\[0.5\]"), (torch.tensor(float("-inf")), r"tensor\(-inf\)"), (torch.ones(2), "tensor"),
    ],
)  # fmt: skip
def test_what_is_no_finite_number_is_shown_with_its_sample(bad, shown):
    with pytest.raises(
        RewardError, match=f"^the judge returned {shown}.* for completion 1; wanted one finite number: prompt 'p1'"
    ):
        Samples(**texts(2)).checked([1.0, bad], name="judge")


@pytest.mark.parametrize(
    ("returned", "got"),
    [([1.0], "1 values"), (None, "NoneType"), (1.0, "float"), ("ab", "str"), (np.array(1.0), "ndarray"), ({}, "dict")],
)
def test_what_is_no_list_of_that_length_is_refused(returned, got):
    with pytest.raises(RewardError, match=f"^the judge returned {got} for 2 completions; wanted a list of one number"):
        Samples(**texts(2)).checked(returned, name="judge")


@pytest.mark.parametrize(
    "returned",
    [[1, 0.5], (np.float32(1), np.int64(0) + 0.5), torch.tensor([1, 0.5], dtype=torch.bfloat16),
     [torch.tensor([1.0]), torch.tensor(0.5)], np.array([1, 0.5]), [True, 0.5]],
)  # fmt: skip
def test_numbers_of_every_kind_are_taken(returned):
    rewards = Samples(**texts(2)).checked(returned, name="judge")
    assert rewards.dtype == np.float64
    assert rewards.tolist() == [1.0, 0.5]


def test_a_filter_says_yes_or_no():
    reward = ComposedReward(values, filters=[Filter("safe", lambda **columns: [0.7])])
    with pytest.raises(RewardError, match=r"the filter 'safe' returned 0.7 for completion 0; wanted True \(blocked\)"):
        reward(**texts(1), scores=[1.0])
    unsure = ComposedReward(values, filters=[Filter("safe", lambda **columns: [None])])
    with pytest.raises(RewardError, match="the filter 'safe' returned None"):
        unsure(**texts(1), scores=[1.0])


def test_prompts_and_completions_are_as_many():
    for scorer in (values, TwoHeads()):
        with pytest.raises(RewardError, match="got 1 prompts and 2 completions for the reward"):
            ComposedReward(scorer)(["a"], ["b", "c"], scores=[1.0, 2.0])


# abstention


def unless(word):
    """A scorer that says 2 of each completion but those with a word, from which it abstains."""
    return lambda completions, **columns: [None if word in text else 2.0 for text in completions]


def test_a_completion_that_no_scorer_judges_has_no_reward_and_no_part_in_the_rest():
    logged = {}
    reward = ComposedReward(
        unless("c0"), calibration=AffineReward(1.0, 2.0), length_penalty=LengthPenalty(1, 0.25), normalise="std",
        clip=(-9.0, 0.2),
    )  # fmt: skip
    got = reward(**texts(3), completion_ids=[[1], [1], [1, 1]], log_metric=logged.__setitem__)
    # of 0.5 and 0.25 the standard deviation is 0.125
    assert got == [None, 0.2, 0.2] and reward.moments_.count == 2
    assert {name: part.tolist()[1:] for name, part in reward.parts_.items()} == {
        "score": [2.0, 2.0], "calibrated": [0.5, 0.5], "length_penalty": [0.0, 0.25], "normalised": [4.0, 2.0],
        "clipped": [1.0, 1.0], "reward": [0.2, 0.2],
    }  # fmt: skip
    silent = {name for name, part in reward.parts_.items() if np.isnan(part[0])}
    assert silent == {"score", "calibrated", "normalised", "clipped", "reward"}
    assert logged["ComposedReward/normalised"] == 3.0 and logged["ComposedReward/length_penalty"] == 0.25 / 3


def test_the_others_speak_for_a_scorer_that_abstains():
    reward = ComposedReward({"a": unless("c0"), "b": unless("c1")}, weights={"a": 1.0, "b": 10.0})
    assert reward(**texts(3)) == [20.0, 2.0, 22.0]
    assert ComposedReward({"a": unless("c0"), "b": unless("c")})(**texts(2)) == [None, 2.0]
    assert ComposedReward({"within": ComposedReward(unless("c0"))})(**texts(2)) == [None, 2.0]


def test_a_filter_blocks_what_no_scorer_judges():
    empty = ComposedReward(lambda completions, **columns: [None] * 2, filters=[empty_filter(-3.0)])
    assert empty(["p", "p"], ["", "a"]) == [-3.0, None]


def test_a_step_that_may_not_abstain_is_told():
    with pytest.raises(RewardError, match="the calibration returned None for completion 0; wanted one finite number"):
        ComposedReward(values, calibration=lambda scores: [None] * len(scores))(**texts(1), scores=[1.0])
    with pytest.raises(RewardError, match="the reward 'ComposedReward' returned None for completion 1; wanted one"):
        call_reward(ComposedReward(unless("c1")), *texts(2).values())  # as PPO does


def test_the_log_has_as_many_figures_where_all_abstain():
    logged = {}
    assert ComposedReward(unless("c"), normalise="std")(**texts(2), log_metric=logged.__setitem__) == [None, None]
    assert set(logged) == {f"ComposedReward/{part}" for part in ("score", "normalised", "reward")}
    assert all(np.isnan(value) for value in logged.values())


# with TRL's trainers, and in several processes


ONE_STEP = dict(max_steps=1, logging_steps=1, report_to="none", use_cpu=True, bf16=False,
                gradient_checkpointing=False, save_strategy="no", beta=0.0)  # fmt: skip


def new_host_trainer(trainer_class, args, tokenizer, reward, prompts):
    """One of TRL's trainers with a tiny policy."""
    policy = make_tiny_llama(tokenizer, hidden_size=32, num_hidden_layers=1)
    return trainer_class(policy, reward_funcs=reward, args=args, train_dataset=prompts, processing_class=tokenizer)


@pytest.mark.integration
@pytest.mark.parametrize(("trainer_class", "config_class"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)])
def test_trl_trainers_leave_out_what_no_scorer_judges(tmp_path, trainer_class, config_class):
    torch.manual_seed(0)
    tokenizer = make_tiny_tokenizer(["red green blue", "one two three"])
    seen = []

    def ranks(prompts, completions, **columns):
        """The place among the answers to a prompt; nothing of all to "one", nor of the first to "two"."""
        seen.append(prompts)
        places = [(prompt, prompts[:row].count(prompt)) for row, prompt in enumerate(prompts)]
        return [None if prompt == "one" or (prompt, place) == ("two", 0) else float(place) for prompt, place in places]

    reward = ComposedReward(ranks)
    args = config_class(
        str(tmp_path), per_device_train_batch_size=12, num_generations=4, max_completion_length=4, **ONE_STEP
    )
    asked = Dataset.from_dict({"prompt": ["one", "two", "three"]})
    trainer = new_host_trainer(trainer_class, args, tokenizer, reward, asked)
    trainer.train()
    (prompts,) = seen
    assert all(prompts[row] == prompts[row - row % 4] for row in range(12)), "a group stands together, whole"
    advantages = dict(zip(prompts[::4], np.reshape(list(trainer._logs["advantages"]), (3, 4)), strict=True))
    assert advantages["one"].tolist() == [0.0] * 4
    assert advantages["two"][0] == 0.0 and advantages["two"][2] == pytest.approx(0.0, abs=1e-6)
    assert advantages["two"][1] == pytest.approx(-advantages["two"][3]) and advantages["two"][3] > 0.5
    assert advantages["three"].argsort().tolist() == [0, 1, 2, 3]
    logged = trainer.state.log_history[0]
    assert logged["rewards/ComposedReward/mean"] == pytest.approx((1 + 2 + 3 + 0 + 1 + 2 + 3) / 7)
    assert logged["ComposedReward/score"] == pytest.approx(12 / 7)


@pytest.mark.integration
@pytest.mark.parametrize(("trainer_class", "config_class"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)])
@pytest.mark.parametrize("action", ["replace", "penalise", "block"])
def test_trl_trainers_learn_from_what_a_guard_leaves(tmp_path, trainer_class, config_class, action):
    torch.manual_seed(0)
    tokenizer = make_tiny_tokenizer(["red green blue", "one two three"])

    class First(Scorer):
        """1 of the first of four answers to a prompt, whatever it says."""

        def score(self, conversations):
            return np.array([float(row % 4 == 0) for row in range(len(conversations))], dtype=np.float32)

    def places(completions, **columns):
        return [float(row % 4) for row in range(len(completions))]

    reward = ComposedReward(places, filters=[Filter("first", Guard(First(), 0.5).flags, -9.0, action)])
    args = config_class(
        str(tmp_path), per_device_train_batch_size=4, num_generations=4, max_completion_length=4, **ONE_STEP
    )
    trainer = new_host_trainer(trainer_class, args, tokenizer, reward, Dataset.from_dict({"prompt": ["one"]}))
    trainer.train()
    advantages = list(trainer._logs["advantages"])
    if action == "block":
        assert advantages[0] == 0.0 and advantages[2] == pytest.approx(0.0, abs=1e-6)
        assert advantages[1] == pytest.approx(-advantages[3]) and advantages[3] > 0.5
    else:
        assert advantages[0] < -1.0 and min(advantages[1:]) > 0.0
    logged = trainer.state.log_history[0]
    assert logged["ComposedReward/first"] == 0.25
    wanted = {"replace": (-9 + 1 + 2 + 3) / 4, "penalise": (-9 + 1 + 2 + 3) / 4, "block": 2.0}[action]
    assert logged["rewards/ComposedReward/mean"] == pytest.approx(wanted)


@pytest.mark.integration
@pytest.mark.parametrize(("trainer_class", "config_class"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)])
@pytest.mark.parametrize("chat", [False, True])
def test_trl_trainers_take_it_as_a_reward_function(tmp_path, trainer_class, config_class, chat):
    torch.manual_seed(0)
    tokenizer = make_tiny_tokenizer(["red green blue", "one two three"])
    prompts = ["red green", "one two"]
    rows = [{"prompt": [{"role": "user", "content": text}] if chat else text} for text in prompts]
    seen = []

    def distinct(prompts, completions, completion_ids, scores, **columns):
        seen.append(type(completions[0]))
        return [score + len(set(ids)) for score, ids in zip(scores, completion_ids, strict=True)]

    reward = ComposedReward(
        distinct, calibration=AffineReward(0.0, 4.0), length_penalty=LengthPenalty(2, 0.1), normalise="std",
        filters=[truncated_filter(end_token_ids=[tokenizer.eos_token_id]), empty_filter()], clip=(-3, 3),
    )  # fmt: skip
    args = config_class(
        str(tmp_path), per_device_train_batch_size=4, num_generations=2, max_completion_length=6, **ONE_STEP
    )
    prompts = Dataset.from_list([{**row, "scores": 1.0} for row in rows])
    trainer = new_host_trainer(trainer_class, args, tokenizer, reward, prompts)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert seen == [list if chat else str]
    assert logged["rewards/ComposedReward/mean"] == pytest.approx(reward.parts_["reward"].mean(), rel=1e-5)
    assert logged["ComposedReward/truncated"] == reward.parts_["truncated"].mean()
    assert reward.moments_.count == 4


@pytest.mark.integration
def test_a_scorer_gives_what_trl_gives_the_model_itself(tmp_path, new_model, tokenizer):
    scorer = RewardScorer(new_model(), tokenizer, progress=False)
    trainer = GRPOTrainer(
        make_tiny_llama(tokenizer, hidden_size=32, num_hidden_layers=1),
        reward_funcs=[new_model(), ComposedReward(scorer)],
        args=GRPOConfig(
            str(tmp_path), per_device_train_batch_size=12, num_generations=4, max_completion_length=8, max_steps=1,
            report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False, save_strategy="no",
        ),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in WORDS]),
        processing_class=tokenizer,
        reward_processing_classes=[tokenizer, None],
    )  # fmt: skip
    trainer.train()
    theirs, ours = trainer._logs["rewards"].values()
    assert len(set(ours)) > 6
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


TWO_PROCESSES = """
import json
import torch
from rmtrl.ppo.rewards import ComposedReward

torch.distributed.init_process_group("gloo")
rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
assert size == 2
reward = ComposedReward(lambda scores, **columns: scores, normalise="mean_std", clip=(-2, 2))
got = []
for batch in {batches!r}:
    own = batch[rank::2]
    rewards = reward(prompts=["p"] * len(own), completions=["c"] * len(own), scores=own)
    both = [None, None]
    torch.distributed.all_gather_object(both, (rewards, reward.state_dict()))
    got.append(both)
reward.update_moments = False
if rank == 0:  # no process waits for another
    reward(prompts=["p"], completions=["c"], scores=[1.0])
    print("REWARDS", json.dumps(got))
torch.distributed.destroy_process_group()
"""


@pytest.mark.integration
def test_two_processes_normalise_as_one_with_the_same_batches(tmp_path):
    batches = [list(np.random.default_rng(size).normal(3.0, 2.0, size).tolist()) for size in (8, 5, 1)]
    script = tmp_path / "normalise.py"
    script.write_text(TWO_PROCESSES.format(batches=batches))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("REWARDS"))
    one = ComposedReward(values, normalise="mean_std", clip=(-2, 2))
    for batch, both in zip(batches, json.loads(line.removeprefix("REWARDS ")), strict=True):
        expected = one(**texts(len(batch)), scores=batch)
        for rank, (rewards, state) in enumerate(both):
            np.testing.assert_allclose(rewards, expected[rank::2], rtol=1e-12)
            assert state == both[0][1]
            assert state == pytest.approx(one.state_dict(), rel=1e-12)


# what the trainer makes of a reward


def test_the_scale_of_the_trainer_keeps_the_parts():
    given = ComposedReward(values, filters=[empty_filter(-1.0)], calibration=AffineReward(1.0, 2.0))
    scaled = training_reward(given, clip=(-1.0, 1.0), normalise="mean_std")
    assert scaled(**texts(2), scores=[3.0, 7.0]) == [-1.0, 1.0]  # calibrated 1 and 3
    assert {name: part.tolist() for name, part in scaled.parts_.items()} == {
        "score": [3.0, 7.0], "calibrated": [1.0, 3.0], "empty": [0.0, 0.0], "normalised": [-1.0, 1.0],
        "clipped": [0.0, 0.0], "reward": [-1.0, 1.0],
    }  # fmt: skip
    assert (given.clip, given.normalise, given.moments_.count) == (None, False, 0)


def test_a_clip_within_is_kept_and_comes_before_the_scale():
    given = ComposedReward(values, filters=[empty_filter(-1.0)], clip=(0.0, 5.0))
    scaled = training_reward(given, clip=None, normalise="mean_std")
    assert scaled(**texts(2), scores=[3.0, 7.0]) == [-1.0, 1.0]  # 3 and 5
    parts = {name: part.tolist() for name, part in scaled.parts_.items()}
    assert parts["score"] == [3.0, 7.0]
    assert parts["empty"] == [0.0, 0.0]
    assert parts["clipped"] == [0.0, 1.0]
    assert scaled.unscaled()(**texts(2), scores=[3.0, 7.0]) == [3.0, 7.0]


def test_a_reward_that_is_to_be_clipped_after_its_own_normalisation_is():
    scaled = training_reward(ComposedReward(values, normalise="std"), clip=(-1.5, 1.5), normalise=False)
    assert scaled(**texts(2), scores=[10.0, 30.0]) == [1.0, 1.5]


def test_a_reward_without_a_scale_is_used_as_it_is():
    assert training_reward(values, clip=None, normalise=False) is values


def test_log_metric_of_a_data_set_is_no_way_to_log():
    with pytest.raises(UsageError, match="log_metric .* got list"):
        ComposedReward(values)(**texts(1), scores=[1.0], log_metric=[1])


@pytest.mark.parametrize("depth", [1, 2])
def test_a_model_named_within_is_loaded_once(monkeypatch, depth):
    loaded = []
    monkeypatch.setattr(
        "rmtrl.reward.remote.RewardScorer.from_pretrained", lambda path, **settings: loaded.append(path) or Length()
    )
    reward = ComposedReward("folder", clip=(0, 1))
    for _ in range(depth):
        reward = ComposedReward(reward, calibration=AffineReward(0.0, 1.0), clip=(0, 1))
    for _ in range(3):  # as evaluations do
        assert reward.unscaled()(**texts(2)) == [4.0, 4.0]
    assert reward(**texts(2)) == [1.0, 1.0]
    assert loaded == ["folder"]
