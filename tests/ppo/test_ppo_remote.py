"""PPO and GRPO against a reward model in another process, and against a server that dies."""

import shutil

import numpy as np
import ppo_runs
import pytest
import served
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
from trl import GRPOConfig, GRPOTrainer

from rmtrl import ComposedReward, PPOConfig, PPOTrainer, RemoteScorer, RewardScorer
from rmtrl.calibration import calibrate
from rmtrl.data.synthetic import make_preferences
from rmtrl.errors import RewardError
from rmtrl.evaluation.fingerprints import model_fingerprint
from rmtrl.io import write_json
from rmtrl.launch.policy import PPORecipeArguments, make_reward
from rmtrl.ppo.reward_model import TokenReward
from rmtrl.tiny import make_tiny_tokenizer

pytestmark = pytest.mark.integration

USUAL = dict(bf16=False, use_cpu=True, report_to="none", gradient_checkpointing=False, disable_tqdm=True,
             logging_steps=1, save_strategy="no", max_steps=2, learning_rate=1e-3)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Prompts of the embedded world, a tokenizer for it and the folder of a tiny reward model."""
    rows, folder = make_preferences(40, 0), tmp_path_factory.mktemp("world") / "rm"
    tokenizer = make_tiny_tokenizer([m["content"] for row in rows for m in row["prompt"] + row["chosen"]], 600)
    model(tokenizer, LlamaForSequenceClassification, num_labels=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return rows.select_columns(["prompt"]), tokenizer, folder


def model(tokenizer, kind, **settings):
    torch.manual_seed(0)
    shape = dict(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                 num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2,
                 pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
                 bos_token_id=None)  # fmt: skip
    return kind(LlamaConfig(**(shape | settings)))


def of_ppo(folder, reward, world):
    """The rewards of every sample of a PPO run, and its log."""
    prompts, tokenizer, _ = world
    args = PPOConfig(str(folder), response_length=8, per_device_train_batch_size=4, gradient_accumulation_steps=2,
                     num_sample_generations=0, num_mini_batches=1, **USUAL)  # fmt: skip
    torch.manual_seed(1)
    value = ppo_runs.Value(len(tokenizer))
    trainer = PPOTrainer(args, tokenizer, model(tokenizer, LlamaForCausalLM), reward_model=reward,
                         train_dataset=prompts, value_model=value)  # fmt: skip
    judge, rewards = trainer.reward, []
    trainer.reward = lambda **given: rewards.append(judge(**given)) or rewards[-1]
    trainer.train()
    assert isinstance(judge, TokenReward) and judge.route == "ids"
    return np.concatenate(rewards), ppo_runs.figures(trainer.state.log_history[:-1])


def of_grpo(folder, reward, world):
    """The rewards of every sample of a GRPO run, and its log."""
    prompts, tokenizer, _ = world
    args = GRPOConfig(str(folder), max_completion_length=8, per_device_train_batch_size=4, num_generations=4, **USUAL)
    reward, rewards = ComposedReward(reward), []

    def judged(**given):
        rewards.append(reward(**given))
        return rewards[-1]

    trainer = GRPOTrainer(model=model(tokenizer, LlamaForCausalLM), reward_funcs=judged, args=args,
                          train_dataset=prompts, processing_class=tokenizer)  # fmt: skip
    trainer.train()
    return np.concatenate(rewards), ppo_runs.figures(trainer.state.log_history[:-1])


@pytest.mark.parametrize("train", [of_ppo, of_grpo])
def test_a_served_reward_trains_as_the_reward_model_in_the_process(train, world, tmp_path):
    folder = world[-1]
    own, log = train(tmp_path, str(folder), world)
    with served.running(folder) as server:
        theirs, other = train(tmp_path, f"{server.url}#{folder}", world)
    assert len(own) >= 8 and np.ptp(own) > 0.1 and np.abs(own - theirs).max() < 1e-5
    for row, twin in zip(log, other, strict=True):
        names = {name for name in row if isinstance(row[name], float) and "time" not in name}
        assert len(names) > 5 and all(row[name] == pytest.approx(twin[name], abs=1e-4) for name in names)


def test_a_server_that_dies_stops_training_and_a_checkpoint_goes_on(tmp_path, monkeypatch):
    """Six updates, a checkpoint each; the server is lost in the fourth."""
    monkeypatch.setenv("TQDM_DISABLE", "1")
    tokenizer = ppo_runs.new_tokenizer()
    folder = tmp_path / "rm"
    model(tokenizer, LlamaForSequenceClassification, num_labels=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = {"save_strategy": "steps", "save_steps": 1, "kind": "module"}
    whole = ppo_runs.new_trainer(tmp_path / "whole", reward=RewardScorer.from_pretrained(folder), **settings)
    whole.train()
    with served.running(folder) as server:
        remote = RemoteScorer(f"{server.url}#{folder}", attempts=3, most_wait=0.01)
        score_ids = remote.score_ids

        def score(sequences):
            if trainer.state.global_step == 3:
                server.process.kill()
                server.process.wait()
            return score_ids(sequences)

        remote.score_ids = score
        trainer = ppo_runs.new_trainer(tmp_path / "run", reward=remote, **settings)
        with pytest.raises(RewardError, match=r"in 3 tries, at last \w+Error"):
            trainer.train()
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))[-1] == "checkpoint-3"
    with served.running(folder) as server:
        again = ppo_runs.new_trainer(tmp_path / "run", reward=f"{server.url}#{folder}", **settings)
        again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 6
    one, other = (ppo_runs.figures(run.state.log_history[:-1]) for run in (whole, again))
    for row, twin in zip(one, other, strict=True):
        assert all(row[name] == pytest.approx(twin[name], abs=1e-4) for name in row if isinstance(row[name], float))


def test_a_recipe_takes_a_url_and_the_calibration_beside_the_checkpoint_it_names(world, tmp_path):
    folder = tmp_path / "rm"
    shutil.copytree(world[-1], folder)
    scores = np.random.default_rng(0).normal(size=(2, 200))
    found = calibrate(scores[0] + 1, scores[1], [str(n) for n in range(200)])
    write_json(folder / "calibration.json", found.with_data({}, model_fingerprint(folder)).as_dict())
    prompts, completions = list(world[0]["prompt"])[:3], [[{"role": "assistant", "content": "Yes."}]] * 3

    def reward(path):
        args = PPOConfig(str(tmp_path / "run"), reward_model_path=str(path), bf16=False, use_cpu=True)
        return make_reward(PPORecipeArguments(), args)

    with served.running(folder) as server:
        made = reward(f"{server.url}#{folder}")
        assert isinstance(made.scorer, RemoteScorer)
        theirs = made(prompts=prompts, completions=completions)
    own = reward(folder)
    assert own(prompts=prompts, completions=completions) == pytest.approx(theirs, abs=1e-5)
    assert np.abs(own.parts_["calibrated"] - own.parts_["score"]).max() > 1e-3
