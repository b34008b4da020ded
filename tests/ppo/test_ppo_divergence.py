"""A run that diverges ends with a line that says so, and no figure is dropped in silence."""

import pytest
import torch

from rmtrl.errors import ModelError, RewardError


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_a_run_that_diverges_says_so(new_trainer, max_grad_norm):
    trainer = new_trainer(learning_rate=1e25, max_grad_norm=max_grad_norm, max_steps=6, num_ppo_epochs=4)
    with pytest.raises(ModelError, match=r"update \d+: .* (is|are) not finite; .*learning_rate") as error:
        trainer.train()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("which", ["policy", "reference", "value model"])
def test_figures_of_a_broken_model_are_named(new_trainer, which):
    trainer = new_trainer()
    models = {"policy": trainer.model.policy, "reference": trainer.ref_model, "value model": trainer.model.value_model}
    generate = trainer.generate
    with torch.no_grad():
        weight = [w for w in models[which].parameters() if w.ndim == 2][-1]
        weight.fill_(float("nan"))
    trainer.generate = lambda prompt_ids, keys: (
        [[5, 6]] * len(prompt_ids) if which == "policy" else generate(prompt_ids, keys)
    )
    with pytest.raises(ModelError, match=f"update 1: .* of the {which} are not finite"):
        trainer.train()


def test_a_gradient_without_end_stops_before_the_weights_are_lost(new_trainer):
    trainer = new_trainer()
    before = [weight.clone() for weight in trainer.model.parameters()]
    trainer.accelerator.clip_grad_norm_ = lambda weights, limit: torch.tensor(float("inf"))
    with pytest.raises(ModelError, match="update 1: the gradient norm is not finite"):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def test_a_reward_too_large_for_float32_is_shown_with_its_sample(new_trainer):
    def huge(completions, **columns):
        return [0.0] * (len(completions) - 1) + [-1e300]

    with pytest.raises(
        RewardError, match=r"reward 'huge' gave -1e\+300 for completion 3; wanted .* float32 .*: prompt"
    ):
        new_trainer(reward_model=huge).train()


def test_only_what_is_undefined_is_left_out(new_trainer, logs):
    trainer = new_trainer(reward_model=lambda completions, **columns: [1.0] * len(completions), max_steps=1)
    trainer.train()
    row = logs(trainer)[0]
    assert "objective/score_length_correlation" not in row  # the score does not vary
    assert row["objective/scores_std"] == 0.0


@pytest.mark.parametrize("which", ["policy", "value_model"])
def test_broken_weights_are_never_saved(new_trainer, tmp_path, which):
    trainer = new_trainer()
    trainer.save_model(tmp_path / "result")
    written = {path: path.read_bytes() for path in (tmp_path / "result").rglob("*.safetensors")}
    with torch.no_grad():
        next(getattr(trainer.model, which).parameters())[0] = float("nan")
    with pytest.raises(ModelError, match=rf"after update 0: nothing is saved: the weights {which}\..* are not finite"):
        trainer.save_model(tmp_path / "result")
    assert written == {path: path.read_bytes() for path in (tmp_path / "result").rglob("*.safetensors")}
