"""What a checkpoint's configuration says to other tools."""

import json

import numpy as np
import pytest
from transformers import AutoConfig, AutoModelForSequenceClassification, pipeline

from rmtrl import RewardConfig, RewardScorer, RewardTrainer

IDENTITY = "torch.nn.modules.linear.Identity"


def trained(folder, model, tokenizer, rows, **settings):
    args = RewardConfig(str(folder / "t"), bf16=False, report_to="none", max_steps=1, save_strategy="no",
                        disable_tqdm=True, gradient_checkpointing=False, **settings)  # fmt: skip
    trainer = RewardTrainer(model, args, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    trainer.save_model(folder / "rm")
    return folder / "rm"


def test_other_tools_give_the_raw_reward_of_a_trained_model(tmp_path, model, tokenizer, pairs):
    folder = trained(tmp_path, model, tokenizer, pairs)
    config = json.loads((folder / "config.json").read_text())
    assert config["problem_type"] == "regression"
    assert config["sentence_transformers"] == {"activation_fn": IDENTITY}
    texts = [text + tokenizer.eos_token for text in pairs["prompt"]]
    wanted = RewardScorer.from_pretrained(folder, progress=False).score(texts)
    pipe = pipeline("text-classification", str(folder))
    np.testing.assert_allclose([pipe(text)[0]["score"] for text in texts], wanted, atol=1e-5)
    assert (wanted < 0).any() or (wanted > 1).any()  # no sigmoid of anything
    cross_encoder = pytest.importorskip("sentence_transformers").CrossEncoder(str(folder), device="cpu")
    assert type(cross_encoder.get_default_activation_fn()).__name__ == "Identity"


def test_several_labels_stay_several_labels(tmp_path, model, tokenizer, pairs):
    rows = pairs.add_column("chosen_scores", [{"a": 1.0, "b": 0.0}] * len(pairs))
    rows = rows.add_column("rejected_scores", [{"a": 0.0, "b": 0.5}] * len(pairs))
    weights = {"a": 0.5, "b": 0.5}
    folder = trained(tmp_path, model, tokenizer, rows, loss_type="attributes", attribute_weights=weights)
    config = AutoConfig.from_pretrained(folder)
    assert config.num_labels == 2 and config.problem_type is None and not hasattr(config, "sentence_transformers")


def test_an_older_checkpoint_scores_as_before_and_is_marked_when_saved_again(checkpoint, tmp_path):
    assert AutoConfig.from_pretrained(checkpoint).problem_type is None
    texts = ["red green ?", "blue moon sea"]
    scorer = RewardScorer.from_pretrained(checkpoint, progress=False)
    scorer.model.save_pretrained(tmp_path / "again")
    scorer.tokenizer.save_pretrained(tmp_path / "again")
    assert AutoConfig.from_pretrained(tmp_path / "again").problem_type == "regression"
    again = RewardScorer.from_pretrained(tmp_path / "again", progress=False)
    np.testing.assert_array_equal(again.score(texts), scorer.score(texts))


def test_transformers_own_loss_of_one_label_is_that_of_before(checkpoint, tmp_path, tokenizer):
    import torch

    batch = tokenizer("red green", return_tensors="pt") | {"labels": torch.tensor([0.5])}
    losses = [
        AutoModelForSequenceClassification.from_pretrained(checkpoint, problem_type=kind)(**batch).loss.item()
        for kind in (None, "regression")
    ]
    assert losses[0] == losses[1]
