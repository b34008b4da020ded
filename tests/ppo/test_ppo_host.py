"""What the host's own loop does for every trainer it does for PPO: schedulers, optimizers, events, counts, epochs."""

import math

import ppo_runs
import pytest
import torch
from transformers import TrainerCallback


class ScheduleFree(torch.optim.SGD):
    """An optimizer with two sets of weights, as those without schedule have; a step is taken at one of them alone."""

    mode = "none"

    def train(self):
        self.mode = "train"

    def eval(self):
        self.mode = "eval"

    def step(self, closure=None):
        assert self.mode == "train"
        return super().step(closure)


def test_an_optimizer_without_schedule_trains_and_evaluates_at_its_own_weights(new_trainer, prompts):
    trainer = new_trainer(max_steps=2, eval_strategy="steps", eval_steps=1, eval_dataset=prompts.select(range(2)))
    optimizer = ScheduleFree(trainer.model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    trainer.optimizer, trainer.lr_scheduler = optimizer, scheduler
    seen, sample = [], trainer.sample

    def record(*arguments):
        seen.append(optimizer.mode)
        return sample(*arguments)

    trainer.sample = record
    trainer.train()
    assert seen == ["train", "eval", "train", "eval"]


def test_a_plateau_of_the_reward_lowers_the_learning_rate(new_trainer, prompts, logs):
    trainer = new_trainer(
        max_steps=4, lr_scheduler_type="reduce_lr_on_plateau", eval_strategy="steps", eval_steps=1,
        eval_dataset=prompts.select(range(2)), load_best_model_at_end=True, save_strategy="steps", save_steps=1,
        lr_scheduler_kwargs={"patience": 0, "factor": 0.5, "mode": "max"},
        reward_model=lambda completions, **columns: [0.0] * len(completions),
    )  # fmt: skip
    trainer.train()
    assert [row["lr"] for row in logs(trainer)] == [1e-3, 1e-3, 5e-4, 2.5e-4]


def test_operations_are_six_a_weight_and_token(new_trainer):
    trainer = new_trainer(max_steps=3)
    tokens, update = [], trainer.update

    def count(experience, *, step):
        tokens.append(2 * sum(experience.rollout.episodes.lengths))  # two passes over the batch
        return update(experience, step=step)

    trainer.update = count
    trainer.train()
    weights = sum(weight.numel() for weight in trainer.model.parameters())
    assert trainer.state.total_flos == 6 * weights * sum(tokens) > 0


class Epochs(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.seen.append([])

    def on_step_end(self, args, state, control, **kwargs):
        self.seen[-1].append((state.global_step, state.epoch))


@pytest.mark.parametrize("resumed_from", [None, 3, 5])
def test_an_epoch_ends_with_the_update_that_takes_its_last_prompt(tmp_path, resumed_from):
    """Eight of thirteen prompts an update: the epochs of eight updates hold 2, 2, 1, 2 and 1 of them."""
    settings = dict(max_steps=8, num_ppo_epochs=1, num_mini_batches=1, response_length=2, logging_steps=8)
    settings |= dict(ignore_data_skip=resumed_from == 3)
    settings |= dict(save_strategy="steps", save_steps=resumed_from) if resumed_from else {}
    epochs, trainer = Epochs(), ppo_runs.new_trainer(tmp_path, **settings)
    if resumed_from is not None:
        trainer.train()
        trainer = ppo_runs.new_trainer(tmp_path, **settings)
    trainer.add_callback(epochs)
    trainer.train(resume_from_checkpoint=resumed_from and str(tmp_path / f"checkpoint-{resumed_from}"))
    wanted = [[1, 2], [3, 4], [5], [6, 7], [8]]
    rest = [[step for step in own if step > (resumed_from or 0)] for own in wanted]
    assert [[step for step, _ in own] for own in epochs.seen] == [own for own in rest if own]
    assert all(math.isclose(epoch, step * 8 / 13) for own in epochs.seen for step, epoch in own)
    assert trainer.state.num_train_epochs == 5
