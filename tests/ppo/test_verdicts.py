"""Verdicts on a policy in training: whom they ask, what they prove, what a checkpoint keeps, and people's files."""

import json
import logging

import numpy as np
import pytest
from datasets import Dataset
from transformers import TrainerControl, TrainerState
from typer.testing import CliRunner

from rmtrl import Scorer
from rmtrl.cli import app
from rmtrl.errors import UsageError
from rmtrl.io import read_rows, write_rows
from rmtrl.metrics.anytime import spread, wagered
from rmtrl.ppo.evaluation import PolicyEvaluation, Progress, PromptMeans
from rmtrl.ppo.overoptimization import OveroptimizationCallback
from rmtrl.ppo.verdicts import Evidence, Labels

P = 400


class Run:
    """The watch over a run without a trainer; an answer is its quality, as text."""

    def __init__(self, new_config, labels, **settings):
        self.callback = OveroptimizationCallback(labels=labels, **settings)
        self.args, self.state, self.control = new_config(), TrainerState(), TrainerControl()
        self.key = 1

    def see(self, step, quality, prefix="eval"):
        now = PromptMeans(step, {"reward": np.zeros(P)})
        progress = Progress(self.key, 1, now, {"reward": now})
        answers = [str(own) for own in np.broadcast_to(quality, P)]
        found = PolicyEvaluation(prefix, {}, now, progress, [f"prompt {i}" for i in range(P)], answers)
        logs = self.callback.on_policy_evaluation(self.args, self.state, self.control, evaluation=found)
        self.state.log_history.append({"step": step} | {f"{prefix}_{name}": value for name, value in logs.items()})
        return logs

    @property
    def stopped(self):
        return self.control.should_training_stop


@pytest.fixture
def new_run(new_config):
    """A function that makes a watched run."""
    return lambda labels, **settings: Run(new_config, labels, **settings)


class Asked:
    """Labels that compare qualities and remember what they were asked."""

    def __init__(self):
        self.seen = []

    def __call__(self, prompts, now, reference):
        self.seen += prompts
        return [0.5 + 0.5 * np.sign(float(a) - float(b)) for a, b in zip(now, reference, strict=True)]


def test_a_policy_that_is_worse_than_its_start_is_found_and_stopped(new_run, caplog):
    asked = Asked()
    run = new_run(Labels(asked, per_look=4, rounds=1), action="stop")
    assert run.see(0, 5)["labels"] == 0 and not asked.seen
    capitals = []
    with caplog.at_level(logging.WARNING):
        for step in range(1, 10):
            capitals.append(run.see(step, 4)["labels_capital"])
            if run.stopped:
                break
    expected = wagered(spread(), np.zeros(4 * len(capitals))).sum(-1)[3::4]
    np.testing.assert_allclose(capitals, expected)
    assert capitals[-2] < 20 <= capitals[-1]
    (record,) = caplog.records
    n = 4 * len(capitals)
    assert record.message.startswith(
        f"eval: the policy is worse than that of step 0: of {n} verdicts on the two 0 won"
    )
    assert f"{n} lost; capital {capitals[-1]:.3g}, 20 comes up in 5 % at most" in record.message
    assert record.message.endswith("; training ends")


def test_each_prompt_is_asked_once_and_equal_answers_never(new_run):
    asked = Asked()
    run = new_run(Labels(asked, per_look=50, budget=P))
    run.see(0, 5)
    some_equal = np.where(np.arange(P) % 2, 5, 6)
    logs = [run.see(step, some_equal) for step in range(1, 12)]
    assert len(asked.seen) == len(set(asked.seen)) == P // 2
    assert all(int(prompt.split()[1]) % 2 == 0 for prompt in asked.seen)
    assert logs[-1]["labels"] == P // 2 and logs[-1]["labels_won"] == logs[-1]["labels_tied"] == P // 2
    assert logs[3]["labels_won"] + logs[3]["labels_tied"] == 200


def test_the_order_of_prompts_is_the_seeds(new_run):
    orders = []
    for seed in (0, 0, 1):
        asked = Asked()
        run = new_run(Labels(asked, seed=seed))
        run.see(0, 5)
        run.see(1, 6)
        orders.append(asked.seen)
    assert orders[0] == orders[1] != orders[2] and len(orders[0]) == 10


def test_a_look_asks_again_where_the_capital_leans_against_the_policy(new_run):
    falls, gains = Asked(), Asked()
    for labels, quality in ((falls, 4), (gains, 6)):
        run = new_run(Labels(labels, per_look=3, rounds=2))
        run.see(0, 5)
        run.see(1, quality)
    assert (len(falls.seen), len(gains.seen)) == (6, 3)


def test_after_an_alarm_nobody_is_asked_and_each_look_says_so_in_the_log(new_run, caplog):
    asked = Asked()
    run = new_run(Labels(asked))
    run.see(0, 5)
    alarms = [run.see(step, 4)["overoptimization_alarm"] for step in range(1, 5)]
    assert alarms == [1.0] * 4 and not run.stopped
    assert len(asked.seen) < 40
    assert len(caplog.records) == 1


def test_the_budget_ends_the_questions_with_one_line(new_run, caplog):
    asked = Asked()
    run = new_run(Labels(asked, budget=20))
    run.see(0, 5)
    logs = [run.see(step, 6) for step in range(1, 6)]
    assert len(asked.seen) == 20 == logs[-1]["labels"] == logs[1]["labels"]
    (record,) = caplog.records
    assert "these verdicts are the last: 20 of 20 labels, 20 of 400 prompts, each once" in record.message


def test_the_reference_moves_at_a_named_step_if_the_policy_is_ahead(new_run, caplog):
    run = new_run(Labels(Asked(), references=(2, 4, 5), per_look=2, rounds=1))
    quality = [5, 6, 7, 6, 6, 8]  # at 4 it is behind its reference, that of 2; at 5 ahead again
    with caplog.at_level(logging.WARNING):
        logs = [run.see(step, own) for step, own in enumerate(quality)]
    assert [own["labels_reference_step"] for own in logs] == [0, 0, 2, 2, 2, 5]
    assert [own["labels_won"] for own in logs] == [0, 2, 0, 0, 0, 0]
    assert logs[4]["labels_lost"] == 4
    before = wagered(spread(), np.ones(4))[-1].sum()
    assert logs[2]["labels_capital"] == pytest.approx(before)
    said = "the reference is now the policy of step 2 (4 more verdicts won than lost)"
    assert f"{said}; {5 * before:.2g} of the 5 % for false alarms are left" in caplog.records[0].message


def test_a_step_between_two_looks_counts_at_the_next(new_run):
    run = new_run(Labels(Asked(), references=(15,)))
    assert [run.see(step, step)["labels_reference_step"] for step in (0, 10, 20, 30)] == [0, 0, 20, 20]


def test_a_capital_above_one_is_cut_when_the_reference_moves(new_run):
    """So what the new reference needs is its own evidence: the bound is for all references together."""
    run = new_run(Labels(Asked(), references=(3,), per_look=3, rounds=1))
    run.see(0, 5)
    capital = run.see(1, 4)["labels_capital"]
    assert 1 < capital < 20
    own = run.callback.labels.evidence["eval"]
    own.lead = 1.0
    run.callback.labels.per_look = 1
    assert run.see(3, 5.0)["labels_capital"] == pytest.approx(1.0)


def test_a_fall_below_a_checkpoint_is_found_above_the_start(new_run):
    for references, found in (((), False), ((5,), True)):
        run = new_run(Labels(Asked(), references=references), action="stop")
        for step, quality in enumerate([0, 1, 2, 3, 4, 5, 4, 3, 2, 1]):
            run.see(step, quality)
        assert run.stopped is found


@pytest.mark.parametrize("gain", [0, 5])
def test_runs_that_are_never_worse_seldom_raise_an_alarm(new_run, gain):
    """Flat, or a gain and then a plateau, with chances to move the reference and to ask again."""
    rng, runs = np.random.default_rng(gain), 150

    def noisy(prompts, now, reference):
        ahead = (float(now[0].split()[0]) - float(reference[0].split()[0])) / 20
        return (rng.random(len(now)) < 0.5 + ahead).astype(float)

    alarms = 0
    for _ in range(runs):
        run = new_run(Labels(noisy, references=(3, 6, 9), per_look=6))
        for step in range(12):
            run.see(step, f"{min(step, gain)} of {step}")
        alarms += bool(run.callback.labels.evidence["eval"].alarm)
    assert alarms / runs <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / runs)


def test_what_has_no_verdict_is_no_evidence(new_run):
    run = new_run(Labels(lambda prompts, now, reference: [None, float("nan"), *[0.0] * (len(prompts) - 2)],
                         rounds=1))  # fmt: skip
    run.see(0, 5)
    logs = run.see(1, 6)
    assert (logs["labels"], logs["labels_lost"], logs["labels_won"], logs["labels_tied"]) == (10, 8, 0, 0)
    assert logs["labels_capital"] == pytest.approx(wagered(spread(), np.zeros(8))[-1].sum())


def test_a_scorer_gives_verdicts_by_its_higher_score(new_run):
    class Parsed(Scorer):
        def __call__(self, prompts, completions, **columns):
            return [float(own) for own in completions]

    run = new_run(Labels(Parsed(), rounds=1))
    run.see(0, 5)
    logs = run.see(1, np.where(np.arange(P) % 4, 4, 6))
    won = logs["labels_won"]
    assert 0 < won < 10 and logs["labels_lost"] == 10 - won


def test_a_judge_is_asked_for_comparisons(new_run, monkeypatch):
    from rmtrl import JudgeScorer
    from rmtrl.reward.judge import Preferences

    judge = JudgeScorer("http://127.0.0.1:9/v1", "judge")
    seen = {}

    def compare(prompts, first, second):
        seen.update(first=first, second=second)
        return Preferences(np.array([0.0] * 9 + [np.nan]), None, None, 1)

    monkeypatch.setattr(judge, "compare", compare)
    run = new_run(Labels(judge, rounds=1))
    run.see(0, 5)
    assert run.see(1, 6)["labels_lost"] == 9
    assert seen == {"first": ["6"] * 10, "second": ["5"] * 10}


def test_sets_have_evidence_of_their_own(new_run):
    run = new_run(Labels(Asked()))
    for prefix, quality in (("eval_a", 4), ("eval_b", 6)):
        run.see(0, 5, prefix)
        run.see(1, quality, prefix)
    capital = {name: own.capital for name, own in run.callback.labels.evidence.items()}
    assert capital["eval_a"] > 20 and capital["eval_b"] < 1


def test_other_prompts_have_another_reference(new_run, caplog):
    run = new_run(Labels(Asked()))
    run.see(0, 5)
    run.see(1, 6)
    run.key = 2
    logs = run.see(2, 4)
    assert logs["labels_reference_step"] == 2 and logs["labels_won"] == 0
    assert "other prompts or scorers than before" in caplog.text


def test_a_resumed_watch_goes_on_with_the_evidence(new_run):
    """Also where a second watch of the same class stands beside it, whose state is none."""
    whole, first, second = (new_run(Labels(Asked(), references=(2,))) for _ in range(3))
    quality = [5, 6, 7, 6, 7, 5, 6, 5]
    logs = [whole.see(step, own) for step, own in enumerate(quality)]
    for step in range(4):
        first.see(step, quality[step])
    stored = json.loads(json.dumps([first.callback.state(), OveroptimizationCallback().state()]))
    second.state.stateful_callbacks["OveroptimizationCallback"] = stored
    second.callback.on_train_begin(second.args, second.state, second.control)
    assert [second.see(step, quality[step]) for step in range(4, 8)] == logs[4:]


def test_a_checkpoint_without_the_watch_does_not_end_the_run(new_run):
    run = new_run(Labels(Asked()))
    run.callback.on_train_begin(run.args, run.state, run.control)
    assert set(run.state.stateful_callbacks) == {"OveroptimizationCallback"}
    assert run.callback.labels.evidence == {}


def test_settings_that_the_host_brings_back_are_all_there():
    kept = OveroptimizationCallback("judge", action="stop", patience=3, proxy="model", n_evaluations=7)
    again = OveroptimizationCallback.from_state(kept.state())
    assert (again.judge, again.action, again.patience, again.proxy, again.n_evaluations) == (
        "judge", "stop", 3, "model", 7)  # fmt: skip
    with pytest.raises(UsageError, match="restore_callback_states_from_checkpoint cannot bring one back"):
        OveroptimizationCallback.from_state(OveroptimizationCallback(labels=Asked()).state())


@pytest.mark.parametrize(
    "settings", [dict(per_look=0), dict(rounds=0), dict(budget=0), dict(alpha=0), dict(alpha=1.0)]
)
def test_settings_that_cannot_be_used_are_named(settings):
    with pytest.raises(UsageError, match="wanted 1 or more of each, and alpha"):
        Labels(Asked(), **settings)


def test_labels_of_another_kind_or_number_are_named(new_run):
    with pytest.raises(UsageError, match="got int for labels; wanted a scorer, a function or a folder"):
        Labels(3)
    run = new_run(Labels(lambda prompts, now, reference: [1.0]))
    run.see(0, 5)
    with pytest.raises(UsageError, match="the labels returned 1 verdicts for 10 prompts"):
        run.see(1, 6)
    run = new_run(Labels(lambda prompts, now, reference: [3.0] * len(prompts)))
    run.see(0, 5)
    with pytest.raises(UsageError, match="got the verdict 3; wanted 1 for better"):
        run.see(1, 6)


# people


def judge_as(folder, better):
    """Fills in a review as a person would who sees the texts alone, and imports it."""
    rows = [row for _, row in read_rows_of(folder / "review.jsonl")]
    for row in rows:
        row["verdict"], row["reviewer"] = better(row), "ann"
    write_rows(folder / "judged.jsonl", rows)
    flags = ["--key", str(folder / "key.json"), "--by", "human", "--out", str(folder / "verdicts.jsonl")]
    result = CliRunner().invoke(app, ["fresh", "import", str(folder / "judged.jsonl"), *flags])
    assert result.exit_code == 0, result.output


def read_rows_of(path):
    return list(read_rows([path]))


def higher(row):
    a, b = float(row["a"]), float(row["b"])
    return "tie" if a == b else "a" if a > b else "b"


def test_people_judge_blind_and_their_verdicts_count_when_they_come(new_run, tmp_path):
    run = new_run(Labels(tmp_path / "labels", per_look=30))
    run.see(0, 5)
    assert run.see(10, 6)["labels"] == 30
    folder = tmp_path / "labels" / "eval" / "step-10"
    rows = [row for _, row in read_rows_of(folder / "review.jsonl")]
    assert {(row["a"], row["b"]) for row in rows} == {("5", "6"), ("6", "5")}  # which side is which is drawn
    logs = run.see(20, 4)
    assert logs["labels_won"] == logs["labels_lost"] == 0
    judge_as(folder, higher)
    logs = run.see(30, 4)
    assert (logs["labels"], logs["labels_won"], logs["labels_lost"]) == (90, 30, 0)
    judge_as(tmp_path / "labels" / "eval" / "step-20", higher)
    logs = run.see(40, 4)
    assert (logs["labels_won"], logs["labels_lost"]) == (30, 30)
    again = run.see(50, 4)
    assert again["labels_lost"] == 30  # each file counts once


def test_a_review_that_stands_is_left_as_it_is(new_run, tmp_path):
    for quality in (6, 7):
        run = new_run(Labels(tmp_path))
        run.see(0, 5)
        run.see(10, quality)
    rows = read_rows_of(tmp_path / "eval" / "step-10" / "review.jsonl")
    texts = {row[side] for _, row in rows for side in "ab"}
    assert texts == {"5", "6"}


def test_several_reviewers_of_a_pair_are_one_verdict(new_run, tmp_path):
    run = new_run(Labels(tmp_path, per_look=3))
    run.see(0, 5)
    run.see(10, 6)
    folder = tmp_path / "eval" / "step-10"
    judge_as(folder, higher)
    rows = [row for _, row in read_rows_of(folder / "verdicts.jsonl")]
    other = [row | {"reviewer": "bob", "verdict": "tie"} for row in rows]
    write_rows(folder / "verdicts.jsonl", [*rows, *other])
    expected = wagered(spread(), [0.75] * 3)[-1].sum()
    assert run.see(20, 6)["labels_capital"] == pytest.approx(expected)


def test_verdicts_that_cannot_be_read_wait_and_are_said(new_run, tmp_path, caplog):
    run = new_run(Labels(tmp_path, per_look=3))
    run.see(0, 5)
    run.see(10, 6)
    folder = tmp_path / "eval" / "step-10"
    write_rows(folder / "verdicts.jsonl", [{"id": "fresh-0001", "verdict": "maybe"}])
    assert run.see(20, 6)["labels_won"] == 0
    assert "is not counted until it is mended" in caplog.text and "row 1 is no verdict on a pair" in caplog.text
    (folder / "verdicts.jsonl").unlink()
    judge_as(folder, higher)
    assert run.see(30, 6)["labels_won"] == 3


# in training


def test_a_run_of_ppo_is_stopped_by_labels_and_resumes_with_its_evidence(new_trainer, rows, tmp_path):
    def worse(prompts, now, reference):
        return [0.0] * len(prompts)

    def length(completion_ids, **columns):
        return [float(len(ids)) for ids in completion_ids]

    prompts = Dataset.from_dict({"prompt": [row["prompt"] for row in rows(24)]})
    settings = dict(
        reward_model=length, train_dataset=prompts, eval_dataset=prompts, eval_strategy="steps", eval_steps=4,
        eval_on_start=True, max_steps=24, learning_rate=0.02, kl_coef=0.0, lr_scheduler_type="constant",
        gradient_accumulation_steps=8, num_mini_batches=2, num_eval_generations=2, per_device_eval_batch_size=16,
        save_strategy="steps", save_steps=4,
    )  # fmt: skip

    def train(resume=None, **more):
        labels = Labels(worse, per_look=4, rounds=1)
        watch = OveroptimizationCallback(labels=labels, action="stop")
        trainer = new_trainer(callbacks=[watch], **settings | more)
        trainer.train(resume_from_checkpoint=resume)
        return trainer, labels.evidence["eval"]

    trainer, whole = train()
    assert 0 < trainer.state.global_step < 24 and whole.alarm
    resumed, again = train(str(tmp_path / "out" / "checkpoint-8"))
    assert resumed.state.global_step == trainer.state.global_step
    assert again == whole and isinstance(again, Evidence)
