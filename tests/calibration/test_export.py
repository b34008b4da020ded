"""A checkpoint whose own scores are calibrated, read by plain transformers."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification

from rmtrl import RewardScorer
from rmtrl.calibration.calibration import calibrate, read_calibration
from rmtrl.calibration.export import export_temperature
from rmtrl.errors import DataError, ModelError, UsageError
from rmtrl.io import write_json
from rmtrl.reward.heads import Head, draw_head, install_head
from rmtrl.reward.rendering import Rendering

TEXTS = ["red green ? good blue", "one two ? bad", "sun moon sea ? yes thanks"]


def plain_scores(folder):
    """Scores by transformers alone."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(text + (tokenizer.eos_token or ""), return_tensors="pt") for text in TEXTS]
    with torch.no_grad():
        return np.array(
            [model(**{k: v for k, v in one.items() if k != "token_type_ids"}).logits.item() for one in ids]
        )


def calibration_of(mean=0.0):
    rng = np.random.default_rng(0)
    margins = np.where(rng.random(200) < 0.75, 1, -1) * rng.exponential(3, 200)
    return calibrate(mean + margins / 2, mean - margins / 2, [f"p{i}" for i in range(200)])


@pytest.fixture
def checkpoint(model, tokenizer, tmp_path):
    folder = tmp_path / "rm"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rendering = asdict(Rendering.of(tokenizer, max_length=64))
    write_json(folder / "rmtrl.json", {"schema": "rmtrl/checkpoint/1", "rendering": rendering})
    write_json(folder / "calibration.json", calibration_of().as_dict())
    return folder


@pytest.fixture
def encoder(tokenizer, tmp_path):
    """A model whose head has a bias."""
    folder = tmp_path / "encoder"
    torch.manual_seed(0)
    shape = dict(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                 num_attention_heads=2, num_labels=1, pad_token_id=tokenizer.pad_token_id)  # fmt: skip
    made = BertForSequenceClassification(BertConfig(**shape, max_position_embeddings=64))
    torch.nn.init.constant_(made.classifier.bias, 0.7)
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_plain_transformers_gives_score_over_temperature(checkpoint, tmp_path):
    t = read_calibration(checkpoint).temperature.temperature_
    export_temperature(checkpoint, tmp_path / "out")
    np.testing.assert_allclose(plain_scores(tmp_path / "out"), plain_scores(checkpoint) / t, atol=1e-6)
    np.testing.assert_allclose(
        RewardScorer.from_pretrained(tmp_path / "out").score(TEXTS), plain_scores(tmp_path / "out"), atol=1e-6
    )


def test_the_stored_calibration_is_that_of_the_new_scores(checkpoint, tmp_path):
    before = read_calibration(checkpoint)
    after = export_temperature(checkpoint, tmp_path / "out")
    stored = read_calibration(tmp_path / "out")
    assert stored.as_dict() == after.as_dict() and stored.temperature.temperature_ == pytest.approx(1)
    margins = np.linspace(-5, 5, 11)
    t = before.temperature.temperature_
    np.testing.assert_allclose(stored.isotonic.predict_proba(margins / t), before.isotonic.predict_proba(margins))
    record = json.loads((tmp_path / "out" / "rmtrl.json").read_text())
    assert record["calibrated"]["scale"] == pytest.approx(1 / t) and "rendering" in record
    again = export_temperature(tmp_path / "out", tmp_path / "twice")
    assert again.exported["scale"] == pytest.approx(1 / t) and again.model_fingerprint is None


def test_a_head_with_a_bias_can_be_centred(encoder, tmp_path):
    calibration = calibration_of(mean=2.0)
    export_temperature(encoder, tmp_path / "out", calibration=calibration, centre=True)
    t = calibration.temperature.temperature_
    expected = (plain_scores(encoder) - calibration.mean_reward) / t
    np.testing.assert_allclose(plain_scores(tmp_path / "out"), expected, atol=1e-6)
    assert read_calibration(tmp_path / "out").mean_reward == pytest.approx(0)
    export_temperature(encoder, tmp_path / "scaled", calibration=calibration)
    np.testing.assert_allclose(plain_scores(tmp_path / "scaled"), plain_scores(encoder) / t, atol=1e-6)


HEADS = {
    "members": Head(members=3),
    "members with biases": Head("mlp", members=2),
    "attributes": Head(criteria=("helpful", "short"), weights=(0.7, 0.3)),
    "attributes with biases": Head("mlp", criteria=("helpful", "short"), weights=(0.7, 0.3)),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_of_several_outputs_gives_the_calibrated_reward(checkpoint, model, tmp_path, kind):
    head = HEADS[kind]
    install_head(model, head)
    draw_head(model, torch.Generator().manual_seed(0))
    model.config.num_labels = len(head.criteria) or 1
    model.save_pretrained(checkpoint)
    record = json.loads((checkpoint / "rmtrl.json").read_text())
    write_json(checkpoint / "rmtrl.json", record | {"head": asdict(head)})
    calibration, centre = calibration_of(mean=2.0), head.kind == "mlp"
    before = RewardScorer.from_pretrained(checkpoint).score(TEXTS)
    export_temperature(checkpoint, tmp_path / "out", calibration=calibration, centre=centre)
    after = RewardScorer.from_pretrained(tmp_path / "out").score(TEXTS)
    expected = (before - calibration.mean_reward * centre) / calibration.temperature.temperature_
    np.testing.assert_allclose(after, expected, atol=1e-6)


def test_a_head_without_bias_cannot_be_centred(checkpoint, tmp_path):
    with pytest.raises(ModelError, match="no bias"):
        export_temperature(checkpoint, tmp_path / "out", calibration=calibration_of(mean=2.0), centre=True)
    assert not (tmp_path / "out").exists()


def test_an_adapter_stays_an_adapter(checkpoint, new_model, tokenizer, tmp_path):
    base = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    adapted = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"]))
    folder = tmp_path / "adapter"
    adapted.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    calibration = calibration_of()
    before = RewardScorer.from_pretrained(folder).score(TEXTS)
    export_temperature(folder, tmp_path / "out", calibration=calibration)
    after = RewardScorer.from_pretrained(tmp_path / "out").score(TEXTS)
    np.testing.assert_allclose(after, before / calibration.temperature.temperature_, atol=1e-6)
    assert (tmp_path / "out" / "adapter_config.json").exists()
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_only_an_earlier_export_is_replaced(checkpoint, tmp_path):
    with pytest.raises(UsageError, match="something other than an earlier export"):
        export_temperature(checkpoint, checkpoint)
    assert (checkpoint / "model.safetensors").exists()
    export_temperature(checkpoint, tmp_path / "out")
    export_temperature(checkpoint, tmp_path / "out")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="something other"):
        export_temperature(checkpoint, tmp_path / "file")


def test_a_bound_is_not_exported_and_neither_is_nothing(checkpoint, encoder, tmp_path):
    perfect = calibrate([1.0, 2.0], [0.0, 0.0], ["a", "b"])
    with pytest.raises(UsageError, match="not a measurement"):
        export_temperature(checkpoint, tmp_path / "out", calibration=perfect)
    with pytest.raises(DataError, match="no calibration: .* cannot be read"):
        export_temperature(encoder, tmp_path / "out")
