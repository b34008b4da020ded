"""What an evaluation's figures are of: the reward before it is scaled, judges by their own names, all sets."""

import numpy as np
import pytest
from datasets import Dataset

from rmtrl.errors import RewardError, UsageError
from rmtrl.metrics.ranks import correlation_estimate
from rmtrl.ppo.rewards import ComposedReward, truncated_filter
from rmtrl.types import Scorer


class Words(Scorer):
    def score(self, conversations):
        return np.array([len(str(conversation)) for conversation in conversations], dtype=np.float32)


def length_reward(completion_ids, **columns):
    return [float(len(ids)) for ids in completion_ids]


@pytest.fixture
def held_out(rows):
    return Dataset.from_dict({"prompt": [row["prompt"] for row in rows(8, 5)]})


def composed(**settings):
    return ComposedReward(length_reward, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        lambda: dict(normalize_rewards=True),
        lambda: dict(normalize_rewards=True, reward_clip_range=(-0.1, 0.1)),
        lambda: dict(reward_clip_range=(-0.1, 0.1)),
        lambda: dict(reward_model=composed(normalise="mean_std", clip=(-0.1, 0.1))),
        lambda: dict(reward_model=composed(clip=(-0.1, 0.1)), normalize_rewards=True),
    ],
)
def test_the_reward_is_evaluated_before_it_is_normalised_and_clipped(new_trainer, held_out, settings):
    trainer = new_trainer(
        eval_dataset=held_out, eval_strategy="steps", eval_steps=1, eval_on_start=True, learning_rate=0.0, max_steps=2,
        **({"reward_model": length_reward} | settings()),
    )  # fmt: skip
    trainer.train()
    found = [row for row in trainer.state.log_history if "eval_reward" in row]
    assert len(found) == 3
    assert all(row["eval_reward"] == row["eval_length_tokens"] > 1 for row in found)
    assert all(row["eval_reward_gain"] == row["eval_reward_gain_low"] == 0.0 for row in found)  # nothing is learned
    assert max(abs(row["objective/scores"]) for row in trainer.state.log_history if "objective/scores" in row) < 1


def test_a_normalised_judge_is_not_moved_by_what_it_judges(new_trainer, held_out):
    judge = composed(normalise="mean_std")
    trainer = new_trainer(eval_dataset=held_out, eval_scorers={"gold": judge})
    metrics = [trainer.evaluate() for _ in range(2)]
    assert metrics[0]["eval_gold"] == metrics[1]["eval_gold"] == metrics[0]["eval_length_tokens"]
    assert judge.moments_.count == 0


def test_an_evaluation_that_fails_leaves_the_reward_as_it_was(new_trainer, held_out, logs):
    def fragile(completion_ids, **columns):
        if fragile.broken:
            raise OSError("down")
        return length_reward(completion_ids)

    fragile.broken = True
    trainer = new_trainer(reward_model=ComposedReward(fragile, normalise="std"), eval_dataset=held_out, max_steps=1)
    with pytest.raises(RewardError, match="OSError: down"):
        trainer.evaluate()
    fragile.broken = False
    trainer.train()
    assert trainer.reward.moments_.count == 4


TAKEN = ["reward", "kl", "length_tokens", "truncated", "within_prompt_std", "score_length_correlation", "prompt",
         "completion", "runtime", "samples_per_second", "gold_gain", "gold_low", "gold_high"]  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_a_judge_takes_no_name_of_a_figure(new_trainer, held_out, name):
    with pytest.raises(UsageError, match=f"eval_scorers: the name '{name}' is that of a figure .*; give another"):
        new_trainer(eval_dataset=held_out, eval_scorers={name: length_reward})


def test_every_name_of_a_figure_is_known(new_trainer, held_out):
    trainer = new_trainer(eval_dataset=held_out, num_eval_generations=2)
    names = {name.removeprefix("eval_") for name in trainer.evaluate()} | set(trainer.samples_["eval"][0])
    for name in names - {"epoch", "global_step"}:
        with pytest.raises(UsageError, match="is that of a figure"):
            new_trainer(eval_scorers={name: length_reward})


def test_the_interval_of_the_correlation_with_length_is_over_prompts(new_trainer, held_out):
    trainer = new_trainer(eval_dataset=held_out, num_eval_generations=4, response_length=12)
    trainer.evaluate()
    rows, found = trainer.samples_["eval"], trainer.evaluation_["eval_score_length_correlation"]
    reward, length = (np.array([row[name] for row in rows]) for name in ("reward", "length_tokens"))
    expected = correlation_estimate(reward, length, [row["prompt"] for row in rows], kind="pearson")
    assert found.value == pytest.approx(np.corrcoef(reward, length)[0, 1], abs=1e-9)
    assert (found.n, found.low, found.high) == (
        8,
        pytest.approx(expected.low, abs=0.1),
        pytest.approx(expected.high, abs=0.1),
    )
    assert "by prompt" in found.method


def test_the_same_response_several_times_does_not_narrow_the_interval(new_trainer, held_out):
    widths = []
    for n in (1, 4):
        trainer = new_trainer(eval_dataset=held_out, num_eval_generations=n, response_length=12)
        sample = trainer.sample

        def same(prompts, indices, keys, sample=sample):
            return sample(prompts, indices, [index + 100 for index in indices])

        trainer.sample = same
        trainer.evaluate()
        found = trainer.evaluation_["eval_score_length_correlation"]
        widths.append(found.high - found.low)
    assert widths[1] == pytest.approx(widths[0])


def test_the_table_of_every_set_is_logged(new_trainer, held_out):
    seen = []
    trainer = new_trainer(eval_dataset={"easy": held_out.select(range(2)), "hard": held_out})
    trainer.log_table = lambda rows, name: seen.append((name, len(rows)))
    trainer.evaluate()
    trainer.evaluate(held_out.select(range(3)))
    assert seen == [("eval_easy_completions", 2), ("eval_hard_completions", 8), ("eval_completions", 3)]


def test_predictions_are_of_one_set(new_trainer, held_out):
    with pytest.raises(UsageError, match="predict takes one data set, got a dict of 1; call it for each"):
        new_trainer().predict({"easy": held_out})


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ({}, True),
        (dict(missing_eos_penalty=1.0), False),
        (dict(missing_eos_score=-1.0), False),
        (dict(filters=[truncated_filter()]), False),
        (dict(scorer=length_reward), False),
    ],
)
def test_text_rewards_of_responses_cut_off_are_warned_of(new_trainer, caplog, settings, warned):
    from rmtrl.ppo import rollout

    rollout.logger.warning_once.cache_clear()
    settings = {"scorer": Words(), "filters": ()} | settings
    reward = ComposedReward(settings.pop("scorer"), filters=settings.pop("filters"))
    trainer = new_trainer(reward_model=reward, response_length=2, max_steps=2, **settings)
    trainer.train()
    assert caplog.text.count("a response was cut off at response_length") == warned
