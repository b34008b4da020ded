"""One text, one score: whatever the batch, the order, the neighbours and the way the model is used."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaForCausalLM, pipeline

from rmtrl import RewardConfig, RewardScorer, RewardTrainer
from rmtrl.errors import DataError, FreshHeadError, ModelError, RenderingError
from rmtrl.reward.rendering import Rendering, choose_pad_token, encode


@pytest.fixture
def scorer(model, tokenizer):
    return RewardScorer(model, tokenizer)


@pytest.fixture
def texts(rows):
    return [row["prompt"] + row[side] for row in rows(20) for side in ("chosen", "rejected")]


@pytest.fixture
def checkpoint(tmp_path, model, tokenizer):
    model.save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    rendering = Rendering.of(tokenizer, max_length=64).as_dict()
    (tmp_path / "rm" / "rmtrl.json").write_text(json.dumps({"schema": 1, "rendering": rendering}))
    return tmp_path / "rm"


def test_score_is_that_of_the_plain_forward(scorer, texts, model, tokenizer):
    with torch.no_grad():
        plain = [model(torch.tensor([tokenizer(text + "<|end|>")["input_ids"]])).logits.item() for text in texts]
    scores = scorer.score(texts)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, plain, atol=1e-5)


def test_score_does_not_depend_on_batch_size_order_or_neighbours(model, tokenizer, texts):
    alone = RewardScorer(model, tokenizer, batch_size=1).score(texts)
    for settings in ({}, {"batch_size": 3}, {"batch_tokens": 64}):
        np.testing.assert_allclose(RewardScorer(model, tokenizer, **settings).score(texts), alone, atol=1e-5)
    order = np.random.default_rng(0).permutation(len(texts))
    np.testing.assert_allclose(
        RewardScorer(model, tokenizer).score([texts[i] for i in order]), alone[order], atol=1e-5
    )


def test_batches_hold_every_row_once_within_the_budget(model, tokenizer):
    lengths = np.random.default_rng(0).integers(1, 100, 200).tolist()
    batches = RewardScorer(model, tokenizer, batch_tokens=256, batch_size=7)._batches(lengths)
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    assert all(len(b) <= 7 and len(b) * max(lengths[i] for i in b) <= 256 for b in batches)


def test_no_conversations_give_no_scores(scorer):
    assert scorer.score([]).shape == (0,)


def test_a_scorer_is_a_trl_reward_function(scorer, chats):
    prompts, completions = chats["prompt"], chats["chosen"]
    rewards = scorer(prompts=list(prompts), completions=list(completions), trainer_state=None)
    np.testing.assert_allclose(rewards, scorer.score([p + c for p, c in zip(prompts, completions, strict=True)]))
    assert scorer.__name__ == "RewardScorer"


def test_encode_is_the_tokenisation_of_trl(tmp_path, model, tokenizer, pairs, chats):
    args = RewardConfig(str(tmp_path), bf16=False, report_to="none")
    for data in (pairs, chats):
        trainer = RewardTrainer(model, args, train_dataset=data, processing_class=tokenizer)
        ours = [encode(tokenizer, row["prompt"] + row["chosen"]) for row in data]
        assert ours == trainer.train_dataset["chosen_ids"][:]


def test_parity_of_forward_pipeline_scorer_trainer_and_merged_adapter(tmp_path, new_model, tokenizer, pairs, texts):
    args = RewardConfig(str(tmp_path / "t"), bf16=False, report_to="none", max_steps=3, learning_rate=1e-2,
                        save_strategy="no", disable_tqdm=True, gradient_checkpointing=False)  # fmt: skip
    base = new_model()
    base.save_pretrained(tmp_path / "base")
    trainer = RewardTrainer(
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "base"), args, train_dataset=pairs,
        processing_class=tokenizer, peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
    )  # fmt: skip
    trainer.train()
    trainer.save_model(tmp_path / "adapter")
    evaluated = trainer.predict(pairs).predictions.T.ravel()
    texts = [row["prompt"] + row[side] for side in ("chosen", "rejected") for row in pairs]

    np.testing.assert_allclose(RewardScorer.from_pretrained(tmp_path / "adapter").score(texts), evaluated, atol=1e-5)
    merged = trainer.model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    np.testing.assert_allclose(RewardScorer.from_pretrained(tmp_path / "merged").score(texts), evaluated, atol=1e-5)
    pipe = pipeline("text-classification", str(tmp_path / "merged"), function_to_apply="none")
    piped = [row["score"] for row in pipe([text + "<|end|>" for text in texts], batch_size=4)]
    np.testing.assert_allclose(piped, evaluated, atol=1e-5)


def test_checkpoint_scores_the_same_in_plain_transformers(checkpoint, texts):
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    with torch.no_grad():
        plain = [model(**tokenizer(text + "<|end|>", return_tensors="pt")).logits.item() for text in texts]
    np.testing.assert_allclose(RewardScorer.from_pretrained(checkpoint).score(texts), plain, atol=1e-6)


# Planted faults


def test_a_fresh_head_is_refused(tmp_path, model, tokenizer):
    LlamaForCausalLM(model.config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(FreshHeadError, match="no trained score head"):
        RewardScorer.from_pretrained(tmp_path)


def test_an_adapter_without_its_head_is_refused(tmp_path, model, tokenizer):
    model.save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    get_peft_model(base, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    with pytest.raises(FreshHeadError, match="adapter"):
        RewardScorer.from_pretrained(tmp_path / "adapter")


def test_two_labels_are_refused(tmp_path, new_model, tokenizer):
    new_model(num_labels=2).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="2 labels"):
        RewardScorer.from_pretrained(tmp_path)


def test_no_model_is_a_clear_error(tmp_path):
    with pytest.raises(ModelError, match="no reward model at"):
        RewardScorer.from_pretrained(tmp_path / "nowhere")


def test_a_double_start_token_is_caught(tokenizer, model):
    from tokenizers.processors import TemplateProcessing

    tokenizer.bos_token = "<|user|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|user|> $A", special_tokens=[("<|user|>", tokenizer.bos_token_id)]
    )
    scorer = RewardScorer(model, tokenizer)
    scorer.score(["good"])
    with pytest.raises(RenderingError, match="twice"):
        scorer.score(["<|user|>good"])


def test_pad_equal_to_end_is_caught(checkpoint):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(RenderingError, match="pad_token_id"):
        RewardScorer.from_pretrained(checkpoint, tokenizer=tokenizer)


def test_another_template_is_caught(checkpoint):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.chat_template += " "
    with pytest.raises(RenderingError, match="chat_template"):
        RewardScorer.from_pretrained(checkpoint, tokenizer=tokenizer)


def test_messages_without_template_are_a_clear_error(model, tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(RenderingError, match="no chat template"):
        RewardScorer(model, tokenizer).score([[{"role": "user", "content": "good"}]])


def test_nothing_is_truncated(scorer):
    with pytest.raises(DataError, match=r"conversation 1 has .* tokens, the model holds 256"):
        scorer.score(["good", "good " * 400])


def test_a_score_that_is_no_number_raises(new_model, tokenizer):
    model = new_model()
    torch.nn.init.constant_(model.score.weight, float("nan"))
    with pytest.raises(ModelError, match="nan"):
        RewardScorer(model, tokenizer).score(["good"])


def test_pad_token_is_chosen_among_existing_ones_or_added(tokenizer):
    assert choose_pad_token(tokenizer) == "<|pad|>"
    size = len(tokenizer)
    bare = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|end|>")
    assert choose_pad_token(bare) == "<|pad|>" and len(bare) == size
