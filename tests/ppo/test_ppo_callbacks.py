"""What callbacks receive of an evaluation, what an evaluation remembers, and the watch for overoptimization."""

import json
import logging
import math

import numpy as np
import pytest
import statsmodels.api
from datasets import Dataset
from scipy.stats import studentized_range, tukey_hsd
from transformers import TrainerControl, TrainerState

from rmtrl.errors import UsageError
from rmtrl.metrics import mean_estimate
from rmtrl.ppo.evaluation import PolicyEvaluation, PPOCallback, Progress, PromptMeans
from rmtrl.ppo.overoptimization import (
    OveroptimizationCallback,
    change_estimate,
    simultaneous_level,
    too_few,
)

RNG = np.random.default_rng(0)


def length(completion_ids, **columns):
    return [float(len(ids)) for ids in completion_ids]


def brevity(completion_ids, **columns):
    return [-float(len(ids)) for ids in completion_ids]


def token_gold(completion_ids, **columns):
    return [float(sum(ids) % 5) for ids in completion_ids]


class Recorder(PPOCallback):
    def __init__(self):
        self.seen = []

    def on_policy_evaluation(self, args, state, control, *, evaluation):
        self.seen.append(evaluation)
        return {"seen": float(len(self.seen))}


class Watched:
    """The watch over a run of evaluations, without a trainer."""

    def __init__(self, callback, new_config, **settings):
        self.callback, self.progress, self.step = callback, None, 0
        self.args = new_config(**({"eval_strategy": "steps", "eval_steps": 1} | settings))
        self.state, self.control = TrainerState(), TrainerControl()
        self.state.eval_steps, self.state.max_steps = 1, 5

    def see(self, **by_prompt):
        arrays = {name: np.asarray(values, float) for name, values in by_prompt.items()}
        usual = {name: np.ones(len(arrays["reward"])) for name in ("kl", "length_tokens")}
        now, scores = PromptMeans(self.step, usual | arrays), [n for n in arrays if n in ("reward", "gold", "model")]
        first = Progress(1, 1, now, dict.fromkeys(scores, now))
        self.progress = first if self.progress is None else self.progress.after(now)
        logs = self.callback.on_policy_evaluation(
            self.args, self.state, self.control, evaluation=PolicyEvaluation("eval", {}, now, self.progress)
        )
        self.state.log_history.append({"step": self.step} | {f"eval_{name}": value for name, value in logs.items()})
        self.step += 1
        return logs

    @property
    def stopped(self):
        return self.control.should_training_stop


@pytest.fixture
def watched(new_config):
    """A function that makes a watched run."""
    return lambda judge="gold", *, run=None, **settings: Watched(
        OveroptimizationCallback(judge, **settings), new_config, **(run or {})
    )


# the statistics


def test_the_level_is_tukeys():
    assert simultaneous_level(2) == pytest.approx(0.95)  # one pair
    # tables of the studentised range: 3.633 at four means and 95 %
    assert simultaneous_level(4) == pytest.approx(math.erf(3.633 / 2), abs=2e-5)
    levels = [simultaneous_level(n) for n in range(2, 30)]
    assert levels == sorted(levels)
    groups = RNG.normal(size=(4, 5000))
    scale = math.sqrt(groups.var(axis=1, ddof=1).mean() / 5000)
    q = abs(groups[0].mean() - groups[1].mean()) / scale
    assert tukey_hsd(*groups).pvalue[0, 1] == pytest.approx(studentized_range.sf(q, 4, np.inf), abs=1e-3)


def test_a_change_has_students_interval():
    changes = np.array([0.5, 1.0, 0.0, 1.5, 1.0, 0.5])
    ours = change_estimate(changes, level=0.95)
    theirs = statsmodels.api.OLS(changes, np.ones(6)).fit()
    assert ours.value == 0.75
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.conf_int()[0]))
    assert change_estimate(3 * changes).high == pytest.approx(3 * ours.high)


def test_few_prompts_prove_nothing():
    assert (change_estimate([-1.0] * 5).low, change_estimate([-1.0] * 5).high) == (-math.inf, math.inf)
    assert change_estimate([-1.0] * 6).high == -1.0
    assert [too_few(n, simultaneous_level(20)) for n in (12, 13)] == [True, False]
    assert math.isinf(change_estimate([1.0]).high)


# what an evaluation remembers


def test_every_evaluation_reaches_a_callback_with_its_set(new_trainer, prompts):
    recorder = Recorder()
    trainer = new_trainer(
        eval_dataset={"a": prompts.select(range(3)), "b": prompts.select(range(3, 8))}, callbacks=[recorder],
        eval_scorers={"gold": token_gold}, num_eval_generations=2,
    )  # fmt: skip
    metrics = trainer.evaluate()
    a, b = recorder.seen
    assert (a.prefix, b.prefix, metrics["eval_a_seen"], metrics["eval_b_seen"]) == ("eval_a", "eval_b", 1.0, 2.0)
    assert set(b.now.by_prompt) == {"reward", "gold", "kl", "length_tokens", "truncated", "within_prompt_std"}
    for name, values in b.now.by_prompt.items():
        assert values.shape == (5,)
        assert values.mean() == pytest.approx(b.figures[name].value) == pytest.approx(metrics[f"eval_b_{name}"])
    rewards = np.array([row["reward"] for row in trainer.samples_["eval_b"]]).reshape(5, 2)
    np.testing.assert_array_equal(b.now.by_prompt["reward"], rewards.mean(1))
    np.testing.assert_array_equal(b.now.by_prompt["within_prompt_std"], rewards.std(1))


def test_gains_are_those_of_the_same_prompts_since_the_first_evaluation(new_trainer, prompts):
    recorder = Recorder()
    trainer = new_trainer(
        eval_dataset=prompts, eval_scorers={"gold": token_gold}, callbacks=[recorder], eval_strategy="steps",
        eval_steps=1, eval_on_start=True, learning_rate=0.02, max_steps=3, lr_scheduler_type="constant",
    )  # fmt: skip
    trainer.train()
    assert [evaluation.now.step for evaluation in recorder.seen] == [0, 1, 2, 3]
    rows = [row for row in trainer.state.log_history if "eval_reward" in row]
    assert [rows[0][f"eval_{name}_gain_high"] for name in ("reward", "gold", "length_tokens")] == [0, 0, 0]
    first, last = recorder.seen[0].now, recorder.seen[-1].now
    for name in ("reward", "gold", "length_tokens"):
        expected = mean_estimate(last.by_prompt[name] - first.by_prompt[name], proportion=False)
        assert recorder.seen[-1].figures[f"{name}_gain"] == expected
        for end in ("low", "high"):
            assert rows[-1][f"eval_{name}_gain_{end}"] == getattr(expected, end)
        assert rows[-1][f"eval_{name}_gain"] == pytest.approx(rows[-1][f"eval_{name}"] - rows[0][f"eval_{name}"])
    assert any(rows[-1][f"eval_{name}_gain"] for name in ("reward", "gold"))
    best = recorder.seen[-1].progress.best
    for name in ("reward", "gold"):
        means = [evaluation.now.mean(name) for evaluation in recorder.seen]
        assert best[name].step == int(np.argmax(means))
        np.testing.assert_array_equal(best[name].by_prompt["kl"], recorder.seen[best[name].step].now.by_prompt["kl"])


def test_a_resumed_run_compares_with_the_same_evaluations(new_trainer, prompts, tmp_path):
    settings = dict(
        eval_dataset=prompts, eval_scorers={"gold": token_gold}, eval_strategy="steps", eval_steps=1, save_steps=2,
        save_strategy="steps", max_steps=3, learning_rate=0.02, num_eval_generations=3,
    )  # fmt: skip
    whole, resumed = new_trainer(**settings), new_trainer(**settings)
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert resumed.evaluation_state() == whole.evaluation_state()
    assert resumed.progress_["eval"].start.step == 1
    assert resumed.progress_["eval"].n_evaluations == 3
    stored = json.loads((tmp_path / "out" / "checkpoint-3" / "ppo_state.json").read_text())["evaluation"]
    assert stored == whole.evaluation_state()
    one, other = (
        next(row for row in reversed(trainer.state.log_history) if "eval_reward" in row)
        for trainer in (whole, resumed)
    )
    assert {key: one[key] for key in one if "gain" in key} == {key: other[key] for key in other if "gain" in key}


@pytest.mark.parametrize("other", ["prompts", "scorers"])
def test_another_evaluation_set_starts_anew_with_one_warning(new_trainer, prompts, caplog, other):
    first = new_trainer(eval_dataset=prompts, eval_scorers={"gold": token_gold})
    first.evaluate()
    changed = {"prompts": dict(eval_dataset=prompts.select(range(5)), eval_scorers={"gold": token_gold}),
               "scorers": dict(eval_dataset=prompts, eval_scorers={"judge": token_gold})}[other]  # fmt: skip
    second = new_trainer(**changed)
    second.load_evaluation_state(json.loads(json.dumps(first.evaluation_state())))
    with caplog.at_level(logging.WARNING):
        metrics = [second.evaluate() for _ in range(2)]
    assert [row["eval_reward_gain"] for row in metrics] == [0.0, 0.0]
    assert second.progress_["eval"].n_evaluations == 2
    assert len([record for record in caplog.records if "gains start anew" in record.message]) == 1


# the watch

FALL = np.linspace(-1.5, -0.5, 40)  # of the judge, prompt by prompt
NOISE = np.tile([-1.0, 0.9], 20)


def test_a_fall_of_the_judge_while_the_proxy_rises_is_said_once_with_its_figures(watched, caplog):
    run = watched()
    zero, kl = np.zeros(40), np.ones(40)
    assert run.see(reward=zero, gold=zero, kl=kl)["overoptimization_alarm"] == 0.0
    assert run.see(reward=zero + 1, gold=zero + 0.5, kl=2 * kl)["gold_since_best"] == 0.0
    with caplog.at_level(logging.WARNING):
        logs = run.see(reward=1 - FALL, gold=0.5 + FALL, kl=9 * kl)
        run.see(reward=1 - FALL, gold=0.5 + FALL, kl=10 * kl)
    assert (logs["overoptimization_suspected"], logs["overoptimization_alarm"]) == (1.0, 1.0)
    expected = change_estimate(FALL, level=simultaneous_level(5))
    assert logs["gold_since_best"] == pytest.approx(-1.0)
    assert (logs["gold_since_best_low"], logs["gold_since_best_high"]) == pytest.approx((expected.low, expected.high))
    (record,) = caplog.records
    for part in ("from step 1 to 2", "gold -1 (99.36 % interval -1.1", "n = 40", "reward +1 (95 % interval",
                 "KL 2.00 then and 9.00 now", "gold was best at step 1"):  # fmt: skip
        assert part in record.message
    assert "\n" not in record.message
    assert "training ends" not in record.message
    assert not run.stopped


@pytest.mark.parametrize(
    ("reward", "gold"),
    [
        (FALL, FALL),  # both fall: training goes wrong, but not by optimizing the proxy
        (-FALL, -FALL),
        (-FALL, 0 * FALL),
        (-FALL, NOISE),  # its mean is below 0
    ],
)
def test_what_is_no_overoptimization_is_silent(watched, caplog, reward, gold):
    run = watched(action="stop")
    run.see(reward=0 * FALL, gold=0 * FALL)
    assert run.see(reward=reward, gold=gold)["overoptimization_alarm"] == 0.0
    assert not run.stopped
    assert not caplog.records


def test_patience_counts_evaluations_in_a_row_and_outlives_a_resume(watched, caplog):
    run = watched(action="stop", patience=2)
    zero = 0 * FALL
    for gold, alarm in ((zero, 0), (FALL, 0), (NOISE, 0), (FALL, 0)):
        assert run.see(reward=zero, gold=gold)["overoptimization_alarm"] == alarm
    assert not caplog.records
    run.callback = OveroptimizationCallback(action="stop", patience=2)  # as a resumed run's is
    assert run.see(reward=zero, gold=FALL)["overoptimization_alarm"] == 1.0
    assert run.stopped
    assert "training ends" in caplog.records[0].message


def test_the_best_checkpoint_is_named(watched, caplog, tmp_path):
    (tmp_path / "out" / "checkpoint-1").mkdir(parents=True)
    run = watched()
    run.see(reward=0 * FALL, gold=0 * FALL)
    run.see(reward=0 * FALL, gold=0 * FALL + 1)
    run.see(reward=0 * FALL, gold=FALL)
    assert caplog.records[0].message.endswith(f"gold was best at step 1, saved as {tmp_path / 'out' / 'checkpoint-1'}")


@pytest.mark.parametrize("n_prompts", [16, 60])
def test_runs_without_a_change_seldom_raise_an_alarm(watched, n_prompts):
    rng, alarms = np.random.default_rng(n_prompts), 0
    runs = 150
    for _ in range(runs):
        run = watched(action="stop", n_evaluations=20)
        for _ in range(20):
            run.see(reward=rng.normal(size=n_prompts), gold=rng.normal(size=n_prompts))
        alarms += run.stopped
    assert alarms / runs <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / runs)


def test_the_level_follows_the_evaluations_planned(watched, new_config):
    for settings, state, planned in [
        (dict(eval_strategy="steps", eval_steps=5), (20, 5, 3), 4),
        (dict(eval_strategy="steps", eval_steps=5, eval_on_start=True), (20, 5, 3), 5),
        (dict(eval_strategy="epoch"), (20, 500, 3), 3),
        (dict(eval_strategy="no"), (20, 500, 3), 2),
    ]:
        run = watched(run=settings)
        run.state.max_steps, run.state.eval_steps, run.state.num_train_epochs = state
        run.see(reward=0 * FALL, gold=0 * FALL)
        logs = run.see(reward=0 * FALL, gold=FALL)
        expected = change_estimate(FALL, level=simultaneous_level(planned))
        assert logs["gold_since_best_high"] == pytest.approx(expected.high)


def test_too_few_prompts_are_said_and_raise_no_alarm(watched, caplog):
    run = watched(action="stop", n_evaluations=20)
    assert "gold_since_best_low" not in run.see(reward=np.zeros(12), gold=np.zeros(12))
    assert "12 prompts are too few to find a fall; evaluate on 13 or more" in caplog.records[0].message
    assert run.see(reward=np.zeros(12), gold=np.zeros(12) - 1)["overoptimization_alarm"] == 0.0
    caplog.clear()
    run = watched(action="stop", n_evaluations=20)
    run.see(reward=np.zeros(13), gold=np.zeros(13))
    assert run.see(reward=np.zeros(13), gold=np.zeros(13) - 1)["overoptimization_alarm"] == 1.0
    assert "too few" not in caplog.text


# without a judge


def test_without_a_judge_a_collapsed_spread_is_a_weak_sign(watched, caplog):
    run = watched(None)
    spread = np.linspace(0.8, 1.2, 40)
    run.see(reward=0 * spread, within_prompt_std=spread)
    assert run.see(reward=0 * spread, within_prompt_std=0.55 * spread)["overoptimization_alarm"] == 0.0
    assert run.see(reward=0 * spread, within_prompt_std=0.1 * spread)["overoptimization_alarm"] == 1.0
    assert "a weak sign of overoptimization, from the proxy alone, from step 0 to 2" in caplog.text
    assert "fell from 1 to 0.1" in caplog.text


def test_without_a_judge_a_gain_that_goes_with_length_is_a_weak_sign(watched, caplog):
    noise, grown = np.random.default_rng(2).normal(size=(2, 40))
    grown, zero = 5 + 2 * grown, np.zeros(40)
    for gain, alarm in (
        (3 * grown + noise, 1.0),
        (0.1 * grown + 9 + noise, 0.0),
        (-3 * grown + noise, 0.0),
        (zero, 0.0),
    ):
        run = watched(None)
        run.see(reward=zero, length_tokens=zero + 10)
        assert run.see(reward=gain, length_tokens=grown + 10)["overoptimization_alarm"] == alarm
    assert caplog.text.count("goes with length") == 1
    run = watched(None)
    run.see(reward=zero, length_tokens=zero + 10)
    assert (
        run.see(reward=zero + 1, length_tokens=zero + 11)["overoptimization_alarm"] == 0.0
    )  # nothing tells them apart


def test_another_scorer_may_stand_for_the_proxy(watched):
    run = watched(proxy="model")
    run.see(reward=0 * FALL, model=0 * FALL, gold=0 * FALL)
    assert run.see(reward=FALL, model=-FALL, gold=FALL)["overoptimization_alarm"] == 1.0


def test_settings_that_cannot_be_used_are_named(watched):
    with pytest.raises(UsageError, match="`action` must be 'warn' or 'stop', got 'halt'"):
        OveroptimizationCallback(action="halt")
    with pytest.raises(UsageError, match="`patience` must be 1 or more, got 0"):
        OveroptimizationCallback(patience=0)
    with pytest.raises(UsageError, match="got 'gold' to watch, and an evaluation scores reward; name one"):
        watched().see(reward=0 * FALL)


# in training


@pytest.fixture
def length_run(new_trainer, rows):
    """A function that trains for length, watched by a judge."""

    def train(judge, **settings):
        prompts = Dataset.from_dict({"prompt": [row["prompt"] for row in rows(24)]})
        usual = dict(
            reward_model=length, eval_scorers={"gold": judge}, train_dataset=prompts, eval_dataset=prompts,
            eval_strategy="steps", eval_steps=4, eval_on_start=True, max_steps=24, learning_rate=0.02, kl_coef=0.0,
            lr_scheduler_type="constant", gradient_accumulation_steps=8, num_mini_batches=2, num_eval_generations=2,
            per_device_eval_batch_size=16, callbacks=[OveroptimizationCallback(action="stop")],
        )  # fmt: skip
        trainer = new_trainer(**(usual | settings))
        trainer.train()
        return trainer

    return train


def test_a_judge_that_contradicts_the_proxy_stops_the_training(length_run, caplog):
    trainer = length_run(brevity)
    assert 0 < trainer.state.global_step < 24
    row = [row for row in trainer.state.log_history if "eval_gold" in row][-1]
    assert row["eval_overoptimization_alarm"] == 1.0
    assert row["eval_gold_gain_high"] < 0 < row["eval_reward_gain_low"]
    assert "eval: overoptimization from step 0 to" in caplog.text
    assert "gold was best at step 0; training ends" in caplog.text


def test_a_judge_that_agrees_is_silent(length_run, caplog):
    trainer = length_run(length, max_steps=8)
    assert trainer.state.global_step == 8
    rows = [row for row in trainer.state.log_history if "eval_gold" in row]
    assert [row["eval_overoptimization_alarm"] for row in rows] == [0.0] * 3
    assert rows[-1]["eval_gold_gain_low"] > 0
    assert "overoptimization" not in caplog.text
