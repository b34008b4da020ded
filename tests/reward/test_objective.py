import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from rmtrl import RewardConfig, RewardTrainer
from rmtrl.errors import DataError
from rmtrl.reward.losses import attributes_loss, bce_loss, bradley_terry_loss, mse_loss, tie_loss

PREFERENCES = [1.0, 0.5, 0.8, 1.0, 0.6, 1.0, 0.5, 0.75, 1.0, 1.0, 0.5, 0.9]
LOSSES = {
    "bradley_terry": {},
    "smoothed": {"label_smoothing": 0.1},
    "soft": {"soft_labels": True},
    "soft, smoothed, centred": {"soft_labels": True, "label_smoothing": 0.1, "center_rewards_coefficient": 0.01},
    "weighted": {"use_weights": True},
    "rated": {"margin_per_rating": 1 / 3},
    "rao_kupper": {"loss_type": "rao_kupper"},
    "davidson": {"loss_type": "davidson"},
    "davidson, soft": {"loss_type": "davidson", "soft_labels": True, "tie_parameter": 0.7},
    "mse": {"loss_type": "mse"},
    "bce": {"loss_type": "bce", "soft_labels": True},
    "members": {"n_heads": 3, "soft_labels": True},
    "attributes": {"loss_type": "attributes", "attribute_weights": {"usefulness": 0.5, "safety": 0.5}},
}


@pytest.fixture
def labelled(pairs):
    scores = [{"usefulness": i / 12, "safety": None if i % 2 else 0.5} for i in range(12)]
    columns = {
        "preference": PREFERENCES,
        "weight": [float(1 + i % 5) for i in range(12)],
        "rating_gap": [float(i % 4) for i in range(12)],
        "chosen_scores": scores,
        "rejected_scores": scores[::-1],
    }
    for name, values in columns.items():
        pairs = pairs.add_column(name, values)
    return pairs


@pytest.fixture
def make(tmp_path, new_model, tokenizer, labelled):
    def trainer(data=labelled, **settings):
        defaults = {"per_device_train_batch_size": 4, "report_to": "none", "bf16": False, "save_strategy": "no",
                    "learning_rate": 1e-2, "logging_steps": 1, "num_train_epochs": 1}  # fmt: skip
        args = RewardConfig(str(tmp_path / "rm"), **(defaults | settings))
        return RewardTrainer(new_model(), args, train_dataset=data, processing_class=tokenizer)

    return trainer


def losses_of(trainer):
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("settings", LOSSES.values(), ids=LOSSES)
def test_every_loss_is_the_same_with_shared_prompts(make, settings):
    # plain gradient descent: Adam would turn the rounding of a gradient near 0 into a step
    shared, padded = (make(shared_prefix=way, optim="sgd", **settings) for way in (True, False))
    np.testing.assert_allclose(losses_of(shared), losses_of(padded), atol=2e-6)
    for ours, theirs in zip(shared.model.parameters(), padded.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=0)


def expected_loss(name, chosen, rejected, labelled, kept):
    label = torch.tensor(PREFERENCES, dtype=torch.float64)[kept]
    margin = chosen - rejected
    if name == "soft":
        return bradley_terry_loss(margin, label)
    if name == "smoothed":
        return bradley_terry_loss(margin, label_smoothing=0.1)
    if name == "weighted":
        weight = torch.tensor(labelled["weight"], dtype=torch.float64)
        return bradley_terry_loss(margin) * weight[kept] / weight[kept].mean()
    if name == "rated":
        return bradley_terry_loss(margin, shift=torch.tensor(labelled["rating_gap"], dtype=torch.float64)[kept] / 3)
    hard = (torch.sign(label - 0.5) + 1) / 2
    if name == "mse":
        return mse_loss(chosen, rejected, hard)
    if name == "bce":
        return bce_loss(chosen, rejected, label)
    return tie_loss(margin, label, loss_type="davidson", tie_parameter=0.7)


@pytest.mark.parametrize("name", ["smoothed", "soft", "weighted", "rated", "mse", "bce", "davidson, soft"])
def test_the_loss_of_a_pair_is_that_of_the_formula(make, labelled, name):
    trainer = make(**LOSSES[name])
    kept = [i for i, p in enumerate(PREFERENCES) if p != 0.5 or trainer.args.knows_ties]
    rewards = torch.tensor(trainer.predict(labelled.select(kept)).predictions, dtype=torch.float64)
    expected = expected_loss(name, rewards[:, 0], rewards[:, 1], labelled, kept)
    np.testing.assert_allclose(trainer.pairs_.loss, expected, atol=1e-5)


def test_attributes_are_regressed_on_what_was_judged(make, labelled):
    trainer = make(**LOSSES["attributes"])
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(12)])
    targets = batch["targets"]
    assert targets.shape == (24, 2)
    assert torch.isnan(targets[1, 1]) and targets[2, 0] == pytest.approx(2 / 12)
    outputs = torch.rand(24, 2)
    *_, losses = trainer._objective.losses(outputs, batch, sound=torch.ones(12, dtype=torch.bool), training=False)
    both = attributes_loss(outputs, targets)
    torch.testing.assert_close(losses, (both[:12] + both[12:]) / 2)


def test_ties_are_left_out_and_counted_where_the_loss_has_no_place_for_them(make, capsys):
    trainer = make()
    assert trainer.dropped_ties == {"train": 3}
    assert len(trainer.train_dataset) == 9
    assert "3 ties (preference ½) of the train set are left out" in capsys.readouterr().err
    assert len(make(soft_labels=True).train_dataset) == 12
    with pytest.raises(DataError, match="3 of 12 pairs of the train set are ties"):
        make(ties="raise")


def test_ties_are_predicted_and_count_in_no_accuracy(make, labelled):
    trainer = make(loss_type="davidson")
    output = trainer.predict(labelled)
    assert output.predictions.shape == (12, 2)
    assert output.metrics["test_ties"] == 3
    decided = np.array(PREFERENCES) != 0.5
    wins = output.predictions[decided, 0] > output.predictions[decided, 1]
    assert output.metrics["test_accuracy"] == pytest.approx(wins.mean())


@pytest.mark.parametrize(
    ("settings", "column"),
    [
        ({"soft_labels": True}, "preference"),
        ({"loss_type": "davidson"}, "preference"),
        ({"use_weights": True}, "weight"),
        ({"margin_per_rating": 1.0}, "rating_gap"),
        ({"loss_type": "attributes", "attribute_weights": {"usefulness": 1.0}}, "chosen_scores"),
    ],
)
def test_a_missing_column_is_one_line(make, pairs, settings, column):
    with pytest.raises(DataError, match=f"has no column .*{column}"):
        make(data=pairs, **settings)


def test_numbers_out_of_range_are_one_line(make, labelled):
    wrong = labelled.remove_columns("preference").add_column("preference", [1.0] * 5 + [float("nan")] + [1.0] * 6)
    with pytest.raises(DataError, match="preference of pair 5 of the train set is nan"):
        make(data=wrong, soft_labels=True)
    unknown = {"loss_type": "attributes", "attribute_weights": {"wit": 1.0}}
    with pytest.raises(DataError, match="judged on wit .found: safety, usefulness"):
        make(**unknown)
    with pytest.raises(DataError, match="and margin_per_rating makes another"):
        make(data=labelled.add_column("margin", [1.0] * 12), margin_per_rating=1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_type": "dpo"}, "`loss_type` must be one of"),
        ({"label_smoothing": 0.5}, "from 0 to below ½"),
        ({"label_smoothing_factor": 0.1}, "set `label_smoothing`"),
        ({"loss_type": "mse", "label_smoothing": 0.1}, "belong to bradley_terry, not mse"),
        ({"tie_parameter": 1.0}, "belongs to rao_kupper and davidson"),
        ({"loss_type": "attributes"}, "go together"),
        ({"loss_type": "attributes", "attribute_weights": {"a": 0.5}}, "must sum to 1"),
        ({"loss_type": "attributes", "attribute_weights": "usefulness=1"}, "must be JSON"),
        ({"n_heads": 0}, "`n_heads` must be 1 or more"),
        ({"head": "deep"}, "`head` must be one of"),
    ],
)
def test_settings_that_cannot_be_used_are_one_line(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        RewardConfig(str(tmp_path), **settings)


def test_the_tie_parameter_is_fitted_saved_and_resumed(tmp_path, make, labelled):
    class Interrupted(Exception):
        pass

    class Stop(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 4:
                raise Interrupted

    settings = {"loss_type": "davidson", "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3}
    whole = make(**settings)
    whole.train()
    assert whole.tie_parameter_ != 1.0
    broken = make(**settings)
    broken.add_callback(Stop())
    with pytest.raises(Interrupted):
        broken.train()
    again = make(**settings)
    again.train(resume_from_checkpoint=str(tmp_path / "rm" / "checkpoint-3"))
    assert again.tie_parameter_ == whole.tie_parameter_
    np.testing.assert_allclose(again.predict(labelled).predictions, whole.predict(labelled).predictions, atol=1e-6)


def test_bootstrap_follows_the_pair_and_not_its_place(make):
    trainer = make(n_heads=3, soft_labels=True)
    rows = [trainer.train_dataset[i] for i in range(4)]
    first, second = trainer.data_collator(rows)["bootstrap"], trainer.data_collator(rows[::-1])["bootstrap"]
    torch.testing.assert_close(first, second.flip(0))
    assert first.shape == (4, 3) and (first > 0).all() and first.std() > 0.3


def test_plain_settings_leave_the_columns_alone(make, labelled, pairs):
    decided = [i for i, preference in enumerate(PREFERENCES) if preference != 0.5]
    assert losses_of(make(data=labelled.select(decided))) == losses_of(make(data=pairs.select(decided)))


def test_votes_for_rejected_are_refused_or_turn_the_pair_round(make, labelled):
    turned = labelled.remove_columns("preference").add_column("preference", [1 - p for p in PREFERENCES])
    with pytest.raises(DataError, match="preference of pair 0 of the train set is below ½"):
        make(data=turned)
    trainer, other = make(loss_type="mse"), make(loss_type="mse")
    first, second = trainer.predict(labelled).metrics, other.predict(turned).metrics
    assert first["test_accuracy"] == pytest.approx(1 - second["test_accuracy"])
    assert first["test_margin"] == pytest.approx(-second["test_margin"])


def test_a_column_that_is_no_share_of_votes_is_not_read(make, labelled, capsys):
    named = labelled.remove_columns("preference").add_column("preference", ["left"] * 12)
    assert len(make(data=named).train_dataset) == 12
    assert "is no share of votes ('left') and is not read" in capsys.readouterr().err
    with pytest.raises(DataError, match="preference of pair 0 of the train set is 'left'"):
        make(data=named, soft_labels=True)


def test_the_mean_weight_is_that_of_the_training_set_alone(tmp_path, new_model, tokenizer, labelled):
    heavy = labelled.remove_columns("weight").add_column("weight", [100.0] * 12)
    args = RewardConfig(str(tmp_path), use_weights=True, report_to="none", bf16=False)
    trainer = RewardTrainer(
        new_model(), args, train_dataset=labelled, eval_dataset={"train": heavy}, processing_class=tokenizer
    )
    wanted = np.mean([weight for weight, p in zip(labelled["weight"], PREFERENCES, strict=True) if p != 0.5])
    assert trainer._objective.mean_weight == pytest.approx(wanted)
    trainer.predict(heavy, metric_key_prefix="train")
    assert trainer._objective.mean_weight == pytest.approx(wanted)


def test_a_streamed_set_that_cannot_serve_is_one_line(make, labelled):
    streamed = labelled.to_iterable_dataset()
    for settings in ({"use_weights": True}, {"ties": "raise"}):
        with pytest.raises(DataError, match="is streamed"):
            make(data=streamed, max_steps=1, **settings)
    losses_of(make(data=streamed, max_steps=2, soft_labels=True))
    wrong = labelled.remove_columns("preference").add_column("preference", [5.0] * 12).to_iterable_dataset()
    with pytest.raises(DataError, match="preference 5.0; wanted a number from 0 to 1"):
        make(data=wrong, max_steps=1, soft_labels=True).train()


def test_rewards_are_predicted_of_sets_without_labels(make, pairs):
    trainer = make(**LOSSES["attributes"])
    assert np.isfinite(trainer.predict(pairs).predictions).all()
    assert np.isfinite(make(use_weights=True).predict(pairs).predictions).all()


@pytest.mark.parametrize("scores", [0.4, [0.1, 0.2], "high"])
def test_scores_of_another_form_are_one_line(make, labelled, scores):
    wrong = labelled.remove_columns("chosen_scores").add_column("chosen_scores", [scores] * 12)
    with pytest.raises(DataError, match="wanted scores by criterion"):
        make(data=wrong, **LOSSES["attributes"])


def test_margins_that_are_no_numbers_are_one_line(make, pairs):
    with pytest.raises(DataError, match="column margin of the train set holds what is no number"):
        make(data=pairs.add_column("margin", [1.0] * 11 + [None]))


def test_the_best_checkpoint_brings_its_tie_parameter(tmp_path, new_model, tokenizer, labelled):
    args = RewardConfig(
        str(tmp_path), loss_type="davidson", report_to="none", bf16=False, num_train_epochs=4, learning_rate=1e-1,
        per_device_train_batch_size=4, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
        load_best_model_at_end=True, metric_for_best_model="eval_loss", greater_is_better=True,
    )  # fmt: skip
    trainer = RewardTrainer(
        new_model(), args, train_dataset=labelled, eval_dataset=labelled, processing_class=tokenizer
    )
    trainer.train()
    record = json.loads((Path(trainer.state.best_model_checkpoint) / "rmtrl.json").read_text())
    assert trainer.state.best_global_step < trainer.state.global_step
    assert trainer.tie_parameter_ == record["tie_parameter"]


def test_the_tie_parameter_does_not_see_the_micro_batch(make):
    settings = {"loss_type": "davidson", "num_train_epochs": 4, "optim": "sgd"}
    whole = make(per_device_train_batch_size=4, **settings)
    parts = make(per_device_train_batch_size=2, gradient_accumulation_steps=2, **settings)
    whole.train()
    parts.train()
    assert parts.tie_parameter_ == pytest.approx(whole.tie_parameter_, abs=1e-5)
