"""Evaluation in training: figures against brute force, the same noise twice, judges and sets by name."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from rmtrl.errors import DataError, RewardError
from rmtrl.generation import sampling_key


def length_reward(completion_ids, **columns):
    return [float(len(ids)) for ids in completion_ids]


@pytest.fixture
def held_out(rows):
    return Dataset.from_dict({"prompt": [row["prompt"] for row in rows(8, 5)]})


def test_figures_are_means_over_fresh_responses(new_trainer, new_policy, held_out):
    trainer = new_trainer(
        eval_dataset=held_out, ref_model=new_policy(seed=7), eval_scorers={"gold": length_reward},
        per_device_eval_batch_size=3, response_length=12,
    )  # fmt: skip
    metrics, rows = trainer.evaluate(), trainer.samples_["eval"]
    for name in ("reward", "gold", "kl", "length_tokens", "truncated"):
        values = [row[name] for row in rows]
        assert metrics[f"eval_{name}"] == pytest.approx(np.mean(values), abs=1e-4)
        assert metrics[f"eval_{name}_low"] <= metrics[f"eval_{name}"] <= metrics[f"eval_{name}_high"]
        assert trainer.evaluation_[f"eval_{name}"].n == 8
    assert metrics["eval_gold"] == metrics["eval_length_tokens"]
    correlation = np.corrcoef([row["reward"] for row in rows], [row["length_tokens"] for row in rows])[0, 1]
    assert metrics["eval_score_length_correlation"] == pytest.approx(correlation, abs=1e-3)
    assert [row["prompt"] for row in rows] == held_out["prompt"]
    kls = []
    for index, row in enumerate(rows):
        episodes = trainer.sample(
            trainer.eval_prompts["eval"], [index], [sampling_key(trainer.args.seed, "evaluation", index)]
        )
        answer = episodes.completion_ids[0]
        ids = torch.tensor([episodes.prompt_ids[0] + answer])
        with torch.no_grad():
            policy, reference = (
                (model(ids).logits[0, -len(answer) - 1 : -1] / 0.7).log_softmax(1)[range(len(answer)), answer].sum()
                for model in (trainer.model.policy, trainer.ref_model)
            )
        kls.append(float(policy - reference))
        assert row["kl"] == pytest.approx(kls[-1], abs=1e-3)
    assert metrics["eval_kl"] == pytest.approx(np.mean(kls), abs=1e-4)


def test_two_evaluations_differ_by_the_policy_alone(new_trainer, held_out):
    trainer = new_trainer(eval_dataset=held_out, learning_rate=0.05)
    first = trainer.evaluate()
    torch.rand(5)
    timed = ("runtime", "per_second")
    again = trainer.evaluate()
    assert {k: v for k, v in first.items() if not k.endswith(timed)} == {
        k: v for k, v in again.items() if not k.endswith(timed)
    }
    trainer.train()
    assert trainer.evaluate()["eval_kl"] != first["eval_kl"] == 0.0


def test_an_evaluation_leaves_the_run_as_it_was(new_trainer, held_out, logs):
    runs = []
    for strategy in ("no", "steps"):
        trainer = new_trainer(eval_dataset=held_out, eval_strategy=strategy, eval_steps=1, normalize_rewards=True)
        trainer.train()
        runs.append([(row["loss"], row["objective/scores"]) for row in logs(trainer)])
    assert runs[0] == runs[1]


def test_each_set_has_figures_under_its_name(new_trainer, held_out):
    sets = {"easy": held_out.select(range(2)), "hard": held_out.select(range(2, 8))}
    trainer = new_trainer(eval_dataset=sets, eval_scorers={"gold": length_reward}, eval_strategy="steps", max_steps=1)
    metrics = trainer.evaluate()
    assert {"eval_easy_reward", "eval_hard_reward", "eval_easy_gold", "eval_hard_kl_low"} <= set(metrics)
    assert (trainer.evaluation_["eval_easy_reward"].n, trainer.evaluation_["eval_hard_reward"].n) == (2, 6)
    assert "eval_reward" not in metrics
    trainer.train()
    assert any("eval_hard_reward" in row for row in trainer.state.log_history)


def test_several_responses_to_a_prompt_are_averaged_before_the_interval(new_trainer, held_out):
    trainer = new_trainer(eval_dataset=held_out, num_eval_generations=3)
    metrics, rows = trainer.evaluate(), trainer.samples_["eval"]
    rewards = np.array([row["reward"] for row in rows]).reshape(8, 3)
    assert len({row["prompt"] for row in rows[:3]}) == 1
    assert metrics["eval_reward"] == pytest.approx(rewards.mean(), abs=1e-4)
    assert metrics["eval_within_prompt_std"] == pytest.approx(rewards.std(1).mean(), abs=1e-4)
    assert trainer.evaluation_["eval_reward"].n == 8


def test_another_set_and_prefix_may_be_given(new_trainer, held_out):
    trainer = new_trainer()
    metrics = trainer.evaluate(held_out.select(range(3)), metric_key_prefix="test")
    assert metrics["test_length_tokens"] > 0
    assert not any(name.startswith("eval") for name in metrics)
    with pytest.raises(DataError, match="nothing to evaluate on; give eval_dataset"):
        trainer.evaluate()


def test_predictions_are_the_texts_of_the_responses(new_trainer, held_out):
    trainer = new_trainer(eval_dataset=held_out)
    output = trainer.predict(held_out)
    assert output.label_ids is None
    trainer.evaluate()
    assert output.predictions.tolist() == [row["completion"] for row in trainer.samples_["eval"]]
    assert output.metrics["test_reward"] == trainer.evaluation_["eval_reward"].value


def test_a_response_that_is_cut_off_is_penalised_as_in_training(new_trainer, held_out):
    figures = []
    for penalty in (None, 100.0):
        trainer = new_trainer(eval_dataset=held_out, missing_eos_penalty=penalty, response_length=3)
        figures.append(trainer.evaluate())
    share = figures[0]["eval_truncated"]
    assert share > 0
    assert figures[1]["eval_reward"] == pytest.approx(figures[0]["eval_reward"] - 100 * share, abs=1e-3)


def test_a_judge_that_fails_stops_the_evaluation(new_trainer, held_out):
    trainer = new_trainer(eval_dataset=held_out, eval_scorers={"gold": lambda completions, **columns: [None] * 8})
    with pytest.raises(RewardError, match="None for completion 0"):
        trainer.evaluate()


def test_tables_of_responses_are_kept_as_often_as_asked(new_trainer):
    seen = []
    trainer = new_trainer(num_sample_generations=2, max_steps=6)
    trainer.log_table = lambda rows, name: seen.append((trainer.state.global_step, name, len(rows)))
    trainer.train()
    assert seen == [(1, "completions", 4), (4, "completions", 4)]
    assert set(trainer.samples_["train"][0]) == {"prompt", "completion", "reward"}


def test_chat_samples_show_the_last_message(new_trainer):
    chats = Dataset.from_list([{"prompt": [{"role": "user", "content": "sun ?"}]}] * 4)
    trainer = new_trainer(train_dataset=chats, eval_dataset=chats)
    trainer.evaluate()
    assert trainer.samples_["eval"][0]["prompt"] == "sun ?"
