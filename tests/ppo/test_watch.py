"""The evaluations of PPO in TRL's other trainers: what they see, what they leave alone, and who may end a run."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import LlamaForCausalLM
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from rmtrl import OveroptimizationCallback
from rmtrl.errors import UsageError
from rmtrl.ppo.verdicts import Labels
from rmtrl.ppo.watch import PolicyWatch, evaluation_config, policy_evaluator
from rmtrl.tiny import make_tiny_llama

PROMPTS = Dataset.from_dict({"prompt": ["red", "green", "blue", "one", "two", "three", "sun", "moon"]})
KINDS = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}


def first(completion_ids, **columns):
    return [ids[0] / 100 for ids in completion_ids]


class Falling:
    """A judge that likes each evaluation less, and some prompts less than others."""

    def __init__(self):
        self.evaluations = 0

    def __call__(self, completions, **columns):
        self.evaluations += 1
        return [-self.evaluations * (1 + row / 100) for row in range(len(completions))]


@pytest.fixture
def policy_folder(tokenizer, tmp_path):
    """The folder of a tiny policy, from which TRL's trainers load its reference."""
    torch.manual_seed(0)
    make_tiny_llama(tokenizer, hidden_size=32, num_hidden_layers=1).save_pretrained(tmp_path / "start")
    return tmp_path / "start"


@pytest.fixture
def make_trainer(tokenizer, policy_folder, tmp_path):
    """Makes a small trainer, and the watch of it where `judges` are given."""

    def make(kind="grpo", *, judges=None, callbacks=(), peft_config=None, **settings):
        trainer_class, config_class = KINDS[kind]
        defaults = dict(
            per_device_train_batch_size=4, num_generations=4, max_completion_length=5, max_steps=3, beta=0.1,
            logging_steps=1, learning_rate=0.01, report_to="none", use_cpu=True, bf16=False, save_strategy="no",
            gradient_checkpointing=False, disable_tqdm=True, per_device_eval_batch_size=8,
        )  # fmt: skip
        if judges is not None:
            defaults |= dict(eval_strategy="steps", eval_steps=1, eval_on_start=True)
        args = config_class(str(tmp_path / kind), **defaults | settings)
        evaluation = evaluation_config(args, response_length=5, num_eval_generations=2)
        policy = LlamaForCausalLM.from_pretrained(policy_folder)
        trainer = trainer_class(
            policy, first, args, PROMPTS, PROMPTS, processing_class=tokenizer, callbacks=list(callbacks),
            peft_config=peft_config,
        )  # fmt: skip
        if judges is not None:
            judged = {"reward": first, "eval_dataset": PROMPTS, "eval_scorers": judges}
            trainer.watch = PolicyWatch(trainer, evaluation, **judged)
        return trainer

    return make


def rows(trainer, key):
    return [row for row in trainer.state.log_history if key in row]


@pytest.mark.integration
@pytest.mark.parametrize("kind", KINDS)
def test_training_is_the_same_whether_it_is_watched_or_not(make_trainer, kind):
    (alone := make_trainer(kind)).train()
    (watched := make_trainer(kind, judges={})).train()
    timed = ("step_time", "runtime", "per_second", "flos")
    for expected, got in zip(rows(alone, "grad_norm"), rows(watched, "grad_norm"), strict=True):
        same = {key: value for key, value in expected.items() if not key.endswith(timed)}
        assert {"reward", "loss", "kl", "num_tokens"} <= set(same) and same == {key: got[key] for key in same}
    assert [row["step"] for row in rows(watched, "eval_reward")] == [0, 1, 2, 3]
    assert not any("rewards/first/mean" in row for row in rows(watched, "eval_reward"))


@pytest.mark.integration
def test_the_policy_in_training_is_what_is_evaluated(make_trainer, tokenizer):
    trainer = make_trainer(judges={})
    trainer.train()
    last, start = rows(trainer, "eval_reward")[-1], rows(trainer, "eval_reward")[0]
    assert start["eval_kl"] == 0 and last["eval_kl"] != 0 and last["eval_reward_gain"] != 0
    fresh = policy_evaluator(trainer, trainer.watch.evaluator.args, reward=first, eval_dataset=PROMPTS)
    again = fresh.predict(PROMPTS, metric_key_prefix="eval").metrics
    assert again["eval_reward"] == last["eval_reward"] and again["eval_length_tokens"] == last["eval_length_tokens"]


@pytest.mark.integration
@pytest.mark.parametrize(("action", "steps"), [("stop", 1), ("warn", 3)])
def test_a_judge_that_falls_alone_ends_the_training(make_trainer, action, steps):
    watch = OveroptimizationCallback("gold", action=action)
    trainer = make_trainer(judges={"gold": Falling()}, callbacks=[watch], learning_rate=0.0)
    trainer.train()
    assert trainer.state.global_step == steps
    alarms = [row["eval_overoptimization_alarm"] for row in rows(trainer, "eval_overoptimization_alarm")]
    assert alarms == [0.0] + [1.0] * steps


@pytest.mark.integration
@pytest.mark.parametrize("kind", KINDS)
def test_verdicts_end_the_training_and_a_resumed_run_keeps_them(make_trainer, kind, tmp_path):
    asked = []

    def worse(prompts, now, reference):
        asked.extend(prompts)
        return [0.0] * len(prompts)

    def train(resume=None):
        labels = Labels(worse, per_look=2, rounds=1, alpha=0.5)
        settings = dict(save_strategy="steps", save_steps=1, max_steps=6, learning_rate=0.1)
        watch = OveroptimizationCallback(labels=labels, action="stop")
        trainer = make_trainer(kind, judges={}, callbacks=[watch], **settings)
        trainer.train(resume_from_checkpoint=resume)
        return trainer.state.global_step, labels.evidence["eval"]

    steps, whole = train()
    assert 1 < steps < 6 and whole.alarm and whole.n_labels == len(asked) == len(set(asked))
    assert set(asked) <= set(PROMPTS["prompt"])
    assert train(str(tmp_path / kind / "checkpoint-1")) == (steps, whole)


@pytest.mark.integration
def test_the_best_checkpoint_may_be_a_judges(make_trainer):
    trainer = make_trainer(
        judges={"gold": Falling()}, save_strategy="steps", save_steps=1, load_best_model_at_end=True,
        metric_for_best_model="eval_gold", greater_is_better=True, eval_on_start=False,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_global_step == 1


@pytest.mark.integration
def test_an_adapter_is_switched_off_for_the_reference(make_trainer):
    trainer = make_trainer(judges={}, peft_config=LoraConfig(r=2, task_type="CAUSAL_LM"))
    trainer.train()
    seen = rows(trainer, "eval_kl")
    assert seen[0]["eval_kl"] == 0 and seen[-1]["eval_kl"] != 0
    assert list(trainer.model.peft_config) == ["default"]


def test_weights_across_processes_are_refused(make_trainer):
    trainer = make_trainer()
    trainer.is_fsdp_enabled = True
    with pytest.raises(UsageError, match="each process holds it whole; launch with DDP"):
        policy_evaluator(
            trainer, evaluation_config(trainer.args, response_length=5), reward=first, eval_dataset=PROMPTS
        )


@pytest.mark.integration
def test_dpo_keeps_its_own_evaluation(tokenizer, policy_folder, tmp_path):
    pairs = Dataset.from_dict({"prompt": ["red"] * 4, "chosen": [" green"] * 4, "rejected": [" blue"] * 4})
    args = DPOConfig(
        str(tmp_path / "dpo"), max_steps=2, per_device_train_batch_size=2, learning_rate=0.01, report_to="none",
        use_cpu=True, bf16=False, save_strategy="no", gradient_checkpointing=False, disable_tqdm=True,
    )  # fmt: skip
    evaluation = evaluation_config(args, response_length=5)
    policy = LlamaForCausalLM.from_pretrained(policy_folder)
    trainer = DPOTrainer(policy, None, args, train_dataset=pairs, eval_dataset=pairs, processing_class=tokenizer)
    evaluator = policy_evaluator(trainer, evaluation, reward=first, eval_dataset=PROMPTS)
    assert evaluator.ref_model is trainer.ref_model
    start = evaluator.predict(PROMPTS).metrics
    trainer.train()
    assert start["test_kl"] == 0 and evaluator.predict(PROMPTS).metrics["test_kl"] != 0
    assert "eval_rewards/accuracies" in trainer.evaluate()
