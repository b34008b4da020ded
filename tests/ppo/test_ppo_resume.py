"""A run that is killed and resumed is the run that was not; and what a checkpoint is worth without its run."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import ppo_runs
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, TrainerCallback

from rmtrl.errors import ModelError, UsageError
from rmtrl.ppo.rewards import ComposedReward

# every part of a run that could be forgotten has a state of its own here
RUN = dict(
    reward=ppo_runs.noisy_reward, normalize_rewards=True, kl_target=2.0, kl_horizon=50, logging_steps=3, save_steps=2,
    save_strategy="steps", eval_strategy="steps", eval_steps=2, load_best_model_at_end=True, max_steps=8,
    metric_for_best_model="eval_reward", num_generations=2, gradient_accumulation_steps=2,
)  # fmt: skip
KINDS = ["full", "lora", "module", "backbone"]
DRAW = random.Random()  # a new draw every time


def resumed_difference(tmp_path, how, **settings):
    whole = ppo_runs.result(tmp_path / "whole", folder=str(tmp_path / "a"), **RUN, **settings)
    codes, _, printed = ppo_runs.run(tmp_path / "killed", folder=str(tmp_path / "b"), **RUN, **settings, **how)
    assert codes == [-9], printed[0][-2000:]
    resumed = ppo_runs.result(tmp_path / "resumed", folder=str(tmp_path / "b"), resume=True, **RUN, **settings)
    assert len(resumed["sampled"]) < len(whole["sampled"])
    assert whole["sampled"][-len(resumed["sampled"]) :] == resumed["sampled"]
    return ppo_runs.largest_difference(whole, resumed)


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["full", *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS[1:])])
def test_a_run_killed_at_any_step_goes_on_as_the_same_run(tmp_path, kind):
    step = DRAW.randint(3, 8)
    difference = resumed_difference(tmp_path, dict(kill_at_step=step), kind=kind, ignore_data_skip=kind == "lora")
    print(f"killed at step {step}: {difference}")
    assert difference <= 1e-6


@pytest.mark.integration
def test_a_checkpoint_that_was_being_written_is_passed_over(tmp_path):
    number = DRAW.randint(1, 6)  # of a checkpoint's files that Python opens
    difference = resumed_difference(tmp_path, dict(kill_at_file=(4, number)), kind="full")
    print(f"killed at file {number}: {difference}")
    assert difference <= 1e-6


def saved(folder, **settings):
    trainer = ppo_runs.new_trainer(folder, **(dict(save_strategy="steps", save_steps=1, max_steps=2) | settings))
    trainer.train()
    return trainer


def weights(trainer):
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder with the checkpoints of a short run of each kind."""
    folder = tmp_path_factory.mktemp("runs")
    for kind in KINDS:
        saved(folder / kind, kind=kind)
    return folder


@pytest.mark.parametrize("broken", ["", '{"global_step": 2,', None])
def test_true_takes_the_newest_that_is_whole(checkpoints, tmp_path, broken):
    shutil.copytree(checkpoints / "full", tmp_path / "full")
    file = tmp_path / "full" / "checkpoint-2" / "trainer_state.json"
    file.unlink() if broken is None else file.write_text(broken)
    trainer = ppo_runs.new_trainer(tmp_path / "full", max_steps=1)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 1
    with pytest.raises(ModelError, match="checkpoint-2 is no checkpoint that PPOTrainer wrote to its end"):
        trainer.train(resume_from_checkpoint=str(file.parent))


@pytest.mark.parametrize("kind", KINDS)
def test_after_its_end_a_run_is_resumed_to_its_end(checkpoints, tmp_path, kind):
    shutil.copytree(checkpoints / kind, tmp_path / kind)
    before = sorted(tmp_path.rglob("*"))
    trainer = ppo_runs.new_trainer(tmp_path / kind, kind=kind, max_steps=2)
    fresh = weights(trainer)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 2
    assert sum("objective/kl" in row for row in trainer.state.log_history) == 2
    assert sorted(tmp_path.rglob("*")) == before
    twin = saved(tmp_path / "twin", kind=kind)
    assert any((weight != fresh[name]).any() for name, weight in weights(twin).items())
    for name, weight in weights(twin).items():
        assert torch.equal(weight, trainer.model.get_parameter(name))


def other_targets(folder, **settings):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "o_proj"])
    model = get_peft_model(ppo_runs.new_policy(ppo_runs.new_tokenizer()), config)
    return ppo_runs.new_trainer(folder, policy=model, **settings)


def other_model(**shape):
    def make(folder, **settings):
        return ppo_runs.new_trainer(folder, policy=ppo_runs.new_policy(ppo_runs.new_tokenizer(), **shape), **settings)

    return make


UNFINISHED = "no checkpoint that PPOTrainer wrote to its end"
WRONG = {
    "a folder that is not there": ("nowhere", ppo_runs.new_trainer, {}, UNFINISHED),
    "a model": ("full/checkpoint-2/value_model", ppo_runs.new_trainer, {}, UNFINISHED),
    "fewer layers": ("full", other_model(num_hidden_layers=2), {}, "Missing key"),
    "another width": ("full", other_model(hidden_size=8), {}, "size mismatch"),
    "an adapter for a model": ("lora", ppo_runs.new_trainer, {}, "no model in"),
    "a model for an adapter": ("full", ppo_runs.new_trainer, {"kind": "lora"}, "no adapter in"),
    "an adapter elsewhere": ("lora", other_targets, {}, "is in one of the two adapters alone"),
    "another value model": ("full", ppo_runs.new_trainer, {"kind": "module"}, "Missing key"),
    "a module as value model": ("module", ppo_runs.new_trainer, {}, "no model in .*value_model"),
    "another batch": ("full", ppo_runs.new_trainer, {"gradient_accumulation_steps": 2}, "8 episodes a batch .* 4;"),
    "another reward": ("full", ppo_runs.new_trainer, {"normalize_rewards": True}, "another kind of reward"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_resumed_is_named_in_a_line(checkpoints, tmp_path, case):
    given, make, settings, message = WRONG[case]
    folder = checkpoints / given
    folder = folder / "checkpoint-2" if (folder / "checkpoint-2").is_dir() else folder
    trainer = make(tmp_path / "out", **settings)
    with pytest.raises(ModelError, match=message) as error:
        trainer.train(resume_from_checkpoint=str(folder))
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


def test_without_a_checkpoint_there_is_nothing_to_resume(tmp_path):
    with pytest.raises(ModelError, match="no finished checkpoint in .*out; train without"):
        ppo_runs.new_trainer(tmp_path / "out").train(resume_from_checkpoint=True)


def test_a_broken_weight_file_is_named_in_a_line(checkpoints, tmp_path):
    shutil.copytree(checkpoints / "module" / "checkpoint-2", tmp_path / "c")
    file = tmp_path / "c" / "value_model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ModelError, match="no checkpoint of this run"):
        ppo_runs.new_trainer(tmp_path / "out", kind="module").train(resume_from_checkpoint=str(tmp_path / "c"))


def test_models_saved_alone_are_no_run_to_go_on_with(tmp_path):
    saved(tmp_path / "out", save_only_model=True)
    with pytest.raises(ModelError, match="holds no optimizer state .save_only_model=True"):
        ppo_runs.new_trainer(tmp_path / "out").train(resume_from_checkpoint=True)
    AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "checkpoint-2")


def test_only_so_many_checkpoints_are_kept(tmp_path):
    saved(tmp_path / "out", max_steps=4, save_total_limit=2)
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]


@pytest.mark.parametrize("kind", ["full", "lora", "module"])
def test_saved_models_load_as_any_other(tmp_path, kind):
    trainer = saved(tmp_path / "run", kind=kind, save_strategy="no")
    trainer.save_model(str(tmp_path / "saved"))
    ids = torch.tensor([[5, 6, 7, 8]])
    mask, own = torch.ones_like(ids), trainer.model
    policy = (
        PeftModel.from_pretrained(ppo_runs.new_policy(trainer.processing_class), tmp_path / "saved")
        if kind == "lora"
        else AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    )
    assert not (tmp_path / "saved" / "ppo_state.json").exists()
    own.eval()
    with torch.no_grad():
        assert torch.equal(policy.eval()(ids).logits, own.policy(ids).logits)
        if kind == "module":
            value = ppo_runs.Value(len(trainer.processing_class))
            load_model(value, str(tmp_path / "saved" / "value_model" / "model.safetensors"))
            assert torch.equal(value(ids, mask), own.value_model(ids, mask))
            return
        if kind == "full":
            value = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved" / "value_model")
        else:
            fresh = ppo_runs.new_trainer(tmp_path / "fresh", kind=kind).model.value_model.model.unload()
            value = PeftModel.from_pretrained(fresh, tmp_path / "saved" / "value_model")
        expected = own.value_model(ids, mask)[:, -1:]
        assert expected.abs().max() > 1e-4
        torch.testing.assert_close(value.eval()(input_ids=ids, attention_mask=mask).logits, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_policy_and_its_value_model_are_loaded_at_the_end(tmp_path, kind):
    seen = {}

    def reward(completions, **columns):
        return [[0, 1, 2, 0][len(seen)]] * len(completions)  # as many steps were taken

    trainer = ppo_runs.new_trainer(
        tmp_path / "out", kind=kind, reward=reward, max_steps=3, save_strategy="steps", save_steps=1, eval_steps=1,
        eval_strategy="steps", load_best_model_at_end=True, metric_for_best_model="eval_reward", warmup_steps=0,
    )  # fmt: skip
    trainer.add_callback(_Keep(trainer, seen))
    trainer.train()
    assert trainer.state.best_global_step == 2
    now = weights(trainer)
    assert any((now[name] != seen[3][name]).any() for name in now if "value_model" in name)
    assert any((now[name] != seen[3][name]).any() for name in now if "policy" in name)
    assert all(torch.equal(now[name], seen[2][name]) for name in now)


class _Keep(TrainerCallback):
    def __init__(self, trainer, seen):
        self.trainer, self.seen = trainer, seen

    def on_step_end(self, args, state, control, **kwargs):
        self.seen[state.global_step] = weights(self.trainer)


def test_state_is_plain_json(checkpoints):
    stored = json.loads(Path(checkpoints / "full" / "checkpoint-2" / "ppo_state.json").read_text())
    assert stored["schema"] == "rmtrl/ppo-state/1"
    assert stored["last_log"] == {"step": 2, "loss_since": 0.0}


OTHERS = {
    "seed": (dict(seed=5), "seed 42 and this run has 5"),
    "data seed": (dict(data_seed=5), "data_seed None and this run has 5"),
    "responses to a prompt": (dict(num_generations=2), "num_generations 1 and this run has 2"),
    "prompts": ({}, r"prompts 13 \(\S+\) and this run has 13 "),
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_run_is_not_gone_on_with(checkpoints, tmp_path, case):
    settings, message = OTHERS[case]
    trainer = ppo_runs.new_trainer(tmp_path / "out", **settings)
    if case == "prompts":
        trainer.train_prompts = replace(trainer.train_prompts, ids=[ids[::-1] for ids in trainer.train_prompts.ids])
    with pytest.raises(ModelError, match=f"checkpoint-2 was written with {message}"):
        trainer.train(resume_from_checkpoint=str(checkpoints / "full" / "checkpoint-2"))


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_another_reference_is_refused(checkpoints, tmp_path, kind):
    policy = ppo_runs.new_policy(ppo_runs.new_tokenizer())
    with torch.no_grad():
        policy.model.norm.weight.mul_(1.01)
    trainer = ppo_runs.new_trainer(tmp_path / "out", kind=kind, policy=policy)
    with pytest.raises(ModelError, match="checkpoint-2 was written with another reference"):
        trainer.train(resume_from_checkpoint=str(checkpoints / kind / "checkpoint-2"))


def test_a_second_run_starts_from_the_same_state(tmp_path):
    settings = dict(kl_target=0.001, kl_horizon=50, normalize_rewards=True, max_steps=2)
    trainer = ppo_runs.new_trainer(tmp_path / "out", **settings)
    for _ in range(2):
        trainer.train()
        rows = [row for row in trainer.state.log_history if "objective/kl_coef" in row]
        assert rows[0]["objective/kl_coef"] == trainer.args.kl_coef != trainer.kl_controller.kl_coef
        assert trainer.reward.moments_.count == 2 * 8


def test_two_runs_with_one_reward_do_not_meet(tmp_path):
    reward = ComposedReward(ppo_runs.token_reward, normalise="mean_std")
    logs = []
    for name in ("a", "b"):
        trainer = ppo_runs.new_trainer(tmp_path / name, reward=reward, max_steps=2)
        trainer.train()
        assert trainer.reward.moments_.count == 2 * 8
        logs.append(ppo_runs.figures(trainer.state.log_history[:-1]))
    assert logs[0] == logs[1]
    assert reward.moments_.count == 0


def test_a_batch_size_found_by_trial_is_refused(tmp_path):
    with pytest.raises(UsageError, match="auto_find_batch_size .* per_device_train_batch_size .*accumulation"):
        ppo_runs.new_trainer(tmp_path / "out", auto_find_batch_size=True)
