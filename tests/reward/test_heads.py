import json
import subprocess
import sys
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BitsAndBytesConfig,
)

from rmtrl import RewardConfig, RewardScorer, RewardTrainer
from rmtrl.errors import ModelError
from rmtrl.reward.checkpoint import check_loaded
from rmtrl.reward.heads import Head, RewardHead, draw_head, last_layers, scale_head

SCORES = {"usefulness": 0.7, "safety": 0.3}


@pytest.fixture
def chat_tokenizer(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {{ eos_token }}{% endfor %}"
    tokenizer.chat_template += "{% if add_generation_prompt %}assistant: {% endif %}"
    return tokenizer


@pytest.fixture
def base(tmp_path, model, chat_tokenizer):
    """A folder with a language model's backbone, which has no score head."""
    folder = tmp_path / "base"
    model.save_pretrained(folder)
    chat_tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def scored_chats(chats):
    one = [{"usefulness": i / 12, "safety": 1.0} for i in range(12)]
    other = [{"usefulness": 0.1, "safety": None if i % 3 else 0.5} for i in range(12)]
    return chats.add_column("chosen_scores", one).add_column("rejected_scores", other)


def train(folder, start, tokenizer, data, *, peft_config=None, quantization_config=None, **settings):
    args = RewardConfig(
        str(folder), max_steps=1, learning_rate=1e-2, per_device_train_batch_size=4, report_to="none", bf16=False,
        save_strategy="no", **settings,
    )  # fmt: skip
    trainer = RewardTrainer(
        start, args, train_dataset=data, processing_class=tokenizer, peft_config=peft_config,
        quantization_config=quantization_config,
    )  # fmt: skip
    trainer.before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    trainer.save_model()
    rewards = trainer.predict(data).predictions
    return trainer, rewards


def reloaded(folder, data, **settings):
    scorer = RewardScorer.from_pretrained(folder, progress=False, **settings)
    prompts = data["prompt"]
    sides = [[p + c for p, c in zip(prompts, data[side], strict=True)] for side in ("chosen", "rejected")]
    return scorer, np.stack([scorer.score(side) for side in sides], axis=1)


@pytest.mark.parametrize("adapter", ["whole", "lora"])
@pytest.mark.parametrize("trainable_layers", [None, 1, 0])
@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("kind", ["linear", "mlp", "members", "attributes", "mlp attributes"])
def test_every_head_trains_saves_and_reloads(
    tmp_path, base, chat_tokenizer, scored_chats, kind, pooling, trainable_layers, adapter
):
    settings = {
        "linear": {},
        "mlp": {"head": "mlp", "head_dropout": 0.1},
        "members": {"n_heads": 3},
        "attributes": {"loss_type": "attributes", "attribute_weights": SCORES},
        "mlp attributes": {"loss_type": "attributes", "attribute_weights": SCORES, "head": "mlp"},
    }[kind]
    lora = LoraConfig(r=4, task_type="SEQ_CLS", target_modules=["q_proj"]) if adapter == "lora" else None
    trainer, rewards = train(
        tmp_path / "rm", base, chat_tokenizer, scored_chats, peft_config=lora, pooling=pooling,
        trainable_layers=trainable_layers, **settings,
    )  # fmt: skip
    scorer, again = reloaded(tmp_path / "rm", scored_chats)
    np.testing.assert_allclose(again, rewards, atol=2e-6)
    assert np.unique(rewards).size > 2
    assert scorer.head == trainer._objective.head
    for name, parameter in trainer.model.named_parameters():
        if trainable_layers == 0 and "score" not in name:
            assert not parameter.requires_grad, name
        if trainable_layers == 1 and ("layers.0." in name or "embed" in name):
            assert not parameter.requires_grad, name
    trained = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, trainer.before[n])}
    assert moved <= trained
    assert any("score" in name for name in moved)
    assert any("layers.1." in name for name in moved) == (trainable_layers != 0)
    assert any("layers.0." in name for name in moved) == (trainable_layers is None)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.usefixtures("four_bit_in_float32")
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_quantised_models_train_save_and_reload(tmp_path, base, chat_tokenizer, chats, kind, pooling):
    four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    lora = LoraConfig(r=4, task_type="SEQ_CLS", target_modules=["q_proj"])
    trainer, rewards = train(
        tmp_path / "rm", base, chat_tokenizer, chats, peft_config=lora, quantization_config=four_bit, head=kind,
        pooling=pooling, gradient_checkpointing=False,
    )  # fmt: skip
    assert all(layer.weight.is_floating_point() for layer in last_layers(trainer.model))
    _, again = reloaded(tmp_path / "rm", chats, quantization_config=four_bit)
    np.testing.assert_allclose(again, rewards, atol=2e-3)  # TRL trains the adapter of a quantised model in bf16


def test_attributes_load_in_plain_transformers_and_give_their_parts(tmp_path, base, chat_tokenizer, scored_chats):
    _, rewards = train(
        tmp_path / "rm", base, chat_tokenizer, scored_chats, loss_type="attributes", attribute_weights=SCORES
    )
    scorer, again = reloaded(tmp_path / "rm", scored_chats)
    conversations = [p + c for p, c in zip(scored_chats["prompt"], scored_chats["chosen"], strict=True)]
    parts = scorer.parts(conversations)
    assert list(parts) == ["usefulness", "safety"]
    np.testing.assert_allclose(0.7 * parts["usefulness"] + 0.3 * parts["safety"], rewards[:, 0], atol=2e-6)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    assert plain.config.attribute_weights == SCORES
    assert plain.config.id2label == {0: "usefulness", 1: "safety"}
    ids = torch.tensor([scorer.encode(conversations[0])])
    with torch.no_grad():
        logits = plain(input_ids=ids).logits[0]
    np.testing.assert_allclose(logits, [parts["usefulness"][0], parts["safety"][0]], atol=2e-6)


@pytest.mark.parametrize("settings", [{"head": "mlp"}, {"pooling": "mean"}, {"n_heads": 2}])
def test_other_tools_stop_at_a_head_of_ours(tmp_path, base, chat_tokenizer, chats, settings, capsys):
    train(tmp_path / "rm", base, chat_tokenizer, chats, **settings)
    assert "loads in rmtrl.RewardScorer and in no other tool" in capsys.readouterr().err
    code = (
        "import sys; from transformers import AutoModelForSequenceClassification as A\n"
        "A.from_pretrained(sys.argv[1]); assert not any(name.startswith('rmtrl') for name in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "rm")], capture_output=True, text=True)
    assert done.returncode != 0
    assert "mismatch" in done.stderr


def test_a_custom_head_goes_on_from_its_checkpoint(tmp_path, base, chat_tokenizer, chats):
    _, rewards = train(tmp_path / "first", base, chat_tokenizer, chats, head="mlp")
    args = RewardConfig(str(tmp_path / "second"), head="mlp", report_to="none", bf16=False, max_steps=1)
    trainer = RewardTrainer(str(tmp_path / "first"), args, train_dataset=chats, processing_class=chat_tokenizer)
    np.testing.assert_allclose(trainer.predict(chats).predictions, rewards, atol=1e-6)


def test_mean_pooling_reads_the_last_message_alone(tmp_path, base, chat_tokenizer, chats):
    train(tmp_path / "rm", base, chat_tokenizer, chats, pooling="mean")
    scorer, _ = reloaded(tmp_path / "rm", chats)
    conversation = chats[0]["prompt"] + chats[0]["chosen"]
    ids = scorer.encode(conversation)
    start = len(
        chat_tokenizer.apply_chat_template(conversation[:-1], add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
    )
    with torch.no_grad():
        states = scorer.model.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    head = scorer.model.score.members[0]
    expected = head(states[start:].mean(dim=0))
    assert scorer.score([conversation])[0] == pytest.approx(expected.item(), abs=1e-5)


def test_members_are_told_apart_and_their_mean_is_the_reward(tmp_path, base, chat_tokenizer, chats):
    train(tmp_path / "rm", base, chat_tokenizer, chats, n_heads=4)
    scorer, rewards = reloaded(tmp_path / "rm", chats)
    outputs = scorer.outputs([p + c for p, c in zip(chats["prompt"], chats["chosen"], strict=True)])
    assert outputs.shape == (12, 4)
    assert (outputs.std(axis=1) > 1e-4).all()
    np.testing.assert_allclose(outputs.mean(axis=1), rewards[:, 0], atol=1e-6)


def test_dropout_of_the_head_survives_disable_dropout_and_sleeps_in_evaluation(tmp_path, base, chat_tokenizer, chats):
    trainer, _ = train(tmp_path / "rm", base, chat_tokenizer, chats, head_dropout=0.5, disable_dropout=True)
    batch = torch.randn(64, 32)
    layer = last_layers(trainer.model)[0]
    layer.train()
    assert not torch.equal(layer(batch), layer(batch))
    layer.eval()
    assert torch.equal(layer(batch), layer(batch))
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    assert torch.equal(plain.score.weight, layer.weight)


def test_drawn_heads_have_the_stated_spread(new_model):
    model = new_model(hidden_size=256, num_attention_heads=4, num_key_value_heads=4)
    draw_head(model)
    assert model.score.weight.std().item() == pytest.approx(257**-0.5, rel=0.15)


def test_features_are_what_the_reward_is_linear_in(model, tokenizer):
    scorer = RewardScorer(model, tokenizer, progress=False)
    texts = ["red one", "red one good", "blue", "sun moon sea sun moon", "sun moon sea yes"] * 3
    features = scorer.features(texts)
    assert features.shape == (15, 32)
    np.testing.assert_allclose(features @ model.score.weight.detach().numpy()[0], scorer.score(texts), atol=1e-5)


def test_scaling_the_head_scales_the_score(model, tokenizer, new_model):
    texts = ["red one", "blue good"]
    before = RewardScorer(model, tokenizer, progress=False).score(texts)
    scale_head(model, 1 / 2.5)
    np.testing.assert_allclose(RewardScorer(model, tokenizer, progress=False).score(texts), before / 2.5, rtol=1e-6)
    with pytest.raises(ModelError, match="no bias"):
        scale_head(model, 1.0, 0.5)


def test_an_encoder_takes_an_mlp_head_and_refuses_to_pool(tmp_path, tokenizer, pairs):
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        num_labels=1, pad_token_id=tokenizer.pad_token_id, max_position_embeddings=64,
    )  # fmt: skip
    start = tmp_path / "bert"
    BertForSequenceClassification(config).save_pretrained(start)
    tokenizer.save_pretrained(start)
    _, rewards = train(tmp_path / "rm", str(start), tokenizer, pairs, head="mlp", trainable_layers=1)
    _, again = reloaded(tmp_path / "rm", pairs)
    np.testing.assert_allclose(again, rewards, atol=2e-6)
    with pytest.raises(ModelError, match="pools its tokens"):
        train(tmp_path / "no", str(start), tokenizer, pairs, pooling="mean")


def test_more_layers_than_there_are_is_one_line(tmp_path, base, chat_tokenizer, chats):
    with pytest.raises(ModelError, match="trainable_layers=3; .* has 2 layers"):
        train(tmp_path / "rm", base, chat_tokenizer, chats, trainable_layers=3)


def test_a_head_is_stored_as_it_is(tmp_path, base, chat_tokenizer, chats):
    train(tmp_path / "rm", base, chat_tokenizer, chats, head="mlp", head_dropout=0.2)
    stored = json.loads((tmp_path / "rm" / "rmtrl.json").read_text())["head"]
    assert Head.from_dict(stored) == Head("mlp", "last", 0.2)


def test_a_mean_without_its_tokens_is_refused():
    with pytest.raises(ModelError, match="must be told which"):
        RewardHead(4, Head(pooling="mean"))(torch.zeros(1, 3, 4))


def test_text_is_averaged_whole(tmp_path, base, tokenizer):
    rows = [{"prompt": "red ", "chosen": "good one", "rejected": "bad"}] * 4
    _, rewards = train(tmp_path / "rm", base, tokenizer, Dataset.from_list(rows), pooling="mean")
    scorer = RewardScorer.from_pretrained(tmp_path / "rm")
    np.testing.assert_allclose(scorer.score(["red good one", "red bad"]), rewards[0], atol=2e-6)


def test_a_head_of_another_kind_is_not_lost_in_silence(tmp_path, base, chat_tokenizer, chats, scored_chats):
    train(tmp_path / "members", base, chat_tokenizer, chats, n_heads=3)
    with pytest.raises(ModelError, match="has another head .linear, last, members 3. than the one to train"):
        train(tmp_path / "no", str(tmp_path / "members"), chat_tokenizer, chats)
    held = RewardScorer.from_pretrained(tmp_path / "members").model
    with pytest.raises(ModelError, match="has another head"):
        train(tmp_path / "no", held, chat_tokenizer, chats)
    attributes = {"loss_type": "attributes", "attribute_weights": SCORES}
    train(tmp_path / "criteria", base, chat_tokenizer, scored_chats, **attributes)
    turned = attributes | {"attribute_weights": dict(reversed(SCORES.items()))}
    with pytest.raises(ModelError, match="in that order of criteria"):
        train(tmp_path / "no", str(tmp_path / "criteria"), chat_tokenizer, scored_chats, **turned)
    model = RewardScorer.from_pretrained(tmp_path / "criteria").model
    train(tmp_path / "again", model, chat_tokenizer, scored_chats, **attributes)


def test_a_head_on_a_model_object_follows_the_seed(tmp_path, new_model, chat_tokenizer, chats):
    drawn = []
    for name in ("a", "b"):
        torch.rand(3)
        args = RewardConfig(str(tmp_path / name), head="mlp", report_to="none", bf16=False, seed=7)
        trainer = RewardTrainer(new_model(), args, train_dataset=chats, processing_class=chat_tokenizer)
        drawn.append(trainer.model.score.members[0][0].weight)
        torch.rand(5)
    assert torch.equal(*drawn)


def test_the_head_alone_is_trained_at_zero_layers(tmp_path, base, chat_tokenizer, chats):
    trainer, _ = train(tmp_path / "rm", base, chat_tokenizer, chats, trainable_layers=0)
    assert [name for name, p in trainer.model.named_parameters() if p.requires_grad] == ["score.weight"]


def test_a_head_of_a_later_version_is_read_and_one_of_an_unknown_kind_refused():
    head = Head(kind="mlp", criteria=("a", "b"), weights=(0.5, 0.5), width=48)
    assert Head.from_dict(json.loads(json.dumps(asdict(head) | {"norm": "rms"}))) == head
    assert Head.from_dict({"kind": "mlp"}) == Head(kind="mlp", width=256)  # what an earlier one wrote
    with pytest.raises(ModelError, match="pooling 'attention'; a later rmtrl reads it"):
        Head.from_dict({"pooling": "attention"})


def test_a_checkpoint_says_how_wide_its_mlp_is(tmp_path, base, chat_tokenizer, chats):
    _, rewards = train(tmp_path / "run", base, chat_tokenizer, chats, head="mlp")
    record = json.loads((tmp_path / "run" / "rmtrl.json").read_text())
    assert record["head"]["width"] == 256
    assert RewardHead(64, Head(kind="mlp", width=48))(torch.zeros(1, 64)).shape == (1, 1)
    assert RewardHead(64, Head(kind="mlp", width=48)).members[0][0].out_features == 48
    np.testing.assert_allclose(reloaded(tmp_path / "run", chats)[1], rewards, atol=1e-5)


def test_weights_of_4_bits_that_fsdp_does_not_spread_are_refused(model):
    fsdp = SimpleNamespace(fsdp_plugin=SimpleNamespace(cpu_ram_efficient_loading=False))
    for storage in ("bfloat16", "uint8"):
        model.config.quantization_config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_storage=storage)
        check_loaded(model, SimpleNamespace(state=SimpleNamespace()))
        if storage == "bfloat16":
            check_loaded(model, SimpleNamespace(state=fsdp))
    with pytest.raises(ModelError, match="set bnb_4bit_quant_storage to bfloat16"):
        check_loaded(model, SimpleNamespace(state=fsdp))
