"""A reward training that turns non-finite stops, names its step, and leaves the checkpoints before it good."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification
from transformers.trainer_utils import get_last_checkpoint

from rmtrl import RewardConfig, RewardTrainer
from rmtrl.errors import ModelError


@pytest.fixture
def trainer(tmp_path, new_model, tokenizer, rows):
    def make(data=None, peft_config=None, **settings):
        usual = dict(per_device_train_batch_size=4, max_steps=8, save_steps=1, report_to="none", use_cpu=True,
                     bf16=False, gradient_checkpointing=False, disable_tqdm=True)  # fmt: skip
        args = RewardConfig(str(tmp_path / "run"), **(usual | settings))
        data = data or Dataset.from_list(rows(12))
        return RewardTrainer(
            new_model(), args, train_dataset=data, processing_class=tokenizer, peft_config=peft_config
        )

    return make


def finite(model):
    return all(bool(torch.isfinite(weight).all()) for weight in model.parameters())


@pytest.mark.parametrize("peft_config", [None, LoraConfig(r=2, target_modules=["q_proj"])], ids=["whole", "adapter"])
@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_a_run_that_diverges_says_at_which_step(trainer, peft_config, max_grad_norm):
    with pytest.raises(ModelError, match=r"step \d+: .* (is|are) not finite; .*learning_rate") as error:
        trainer(learning_rate=1e30, max_grad_norm=max_grad_norm, peft_config=peft_config).train()
    assert "\n" not in str(error.value)


def test_the_last_good_checkpoint_stays_good(trainer, tmp_path, new_model):
    run = trainer(learning_rate=1e-3)
    compute = run.compute_loss

    def broken_from_the_fourth(*args, **kwargs):
        return compute(*args, **kwargs) * (float("nan") if run.state.global_step == 3 else 1.0)

    run.compute_loss = broken_from_the_fourth
    with pytest.raises(ModelError, match="step 4: the loss is not finite"):
        run.train()
    last = get_last_checkpoint(str(tmp_path / "run"))
    assert last.endswith("checkpoint-3")
    assert finite(AutoModelForSequenceClassification.from_pretrained(last)) and finite(run.model)
    trainer(learning_rate=1e-3).train(resume_from_checkpoint=last)


def test_a_gradient_without_end_stops_before_the_weights_are_lost(trainer):
    run = trainer()
    before = [weight.clone() for weight in run.model.parameters()]
    run._clip_grad_norm = lambda model: torch.tensor(float("inf"))
    with pytest.raises(ModelError, match="step 1: the gradient norm is not finite"):
        run.train()
    assert all(torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))


def test_broken_weights_are_never_saved(trainer, tmp_path):
    run = trainer()
    run.save_model(tmp_path / "result")
    with torch.no_grad():
        run.model.score.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"after step 0: nothing is saved: the weights score.weight are not finite"):
        run.save_model(tmp_path / "result")
    assert finite(AutoModelForSequenceClassification.from_pretrained(tmp_path / "result"))


def test_a_margin_that_is_no_number_is_named(trainer, pairs):
    data = pairs.add_column("margin", [float("nan"), *[0.5] * 11])
    with pytest.raises(ModelError, match=r"step \d: the column margin, and so the loss is not finite"):
        trainer(data).train()
