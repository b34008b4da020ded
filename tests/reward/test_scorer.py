"""One text, one score: whatever the batch, the order, the neighbours and the way the model is used."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    pipeline,
)

from rmtrl import RewardConfig, RewardScorer, RewardTrainer
from rmtrl.data.preferences import last_turn_only, read_preferences
from rmtrl.data.validation import validate
from rmtrl.errors import DataError, FreshHeadError, ModelError, RenderingError, UsageError
from rmtrl.reward.rendering import Rendering, choose_pad_token, encode
from rmtrl.tiny import make_tiny_tokenizer


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
    rendering = asdict(Rendering.of(tokenizer, max_length=64))
    (tmp_path / "rm" / "rmtrl.json").write_text(json.dumps({"schema": 1, "rendering": rendering}))
    return tmp_path / "rm"


def test_score_is_that_of_the_plain_forward(scorer, texts, model, tokenizer):
    with torch.no_grad():
        plain = [model(torch.tensor([tokenizer(text + "<|end|>")["input_ids"]])).logits.item() for text in texts]
    scores = scorer.score(texts)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, plain, atol=1e-5)


def test_score_does_not_depend_on_batch_size_order_or_neighbours(model, tokenizer, texts):
    alone = RewardScorer(model, tokenizer, batch_size=1, shared_prefix=False).score(texts)
    for settings in ({}, {"batch_size": 3}, {"batch_tokens": 64}):
        np.testing.assert_allclose(RewardScorer(model, tokenizer, **settings).score(texts), alone, atol=1e-5)
    order = np.random.default_rng(0).permutation(len(texts))
    np.testing.assert_allclose(
        RewardScorer(model, tokenizer).score([texts[i] for i in order]), alone[order], atol=1e-5
    )


def test_no_conversations_give_no_scores(scorer):
    assert scorer.score([]).shape == (0,)


def test_a_scorer_is_a_trl_reward_function(scorer, chats):
    prompts, completions = chats["prompt"], chats["chosen"]
    rewards = scorer(prompts=list(prompts), completions=list(completions), trainer_state=None)
    np.testing.assert_allclose(rewards, scorer.score([p + c for p, c in zip(prompts, completions, strict=True)]))
    assert scorer.__name__ == "RewardScorer"


def test_a_folder_stands_for_its_model_and_tokenizer(checkpoint, scorer, texts):
    wanted = scorer.score(texts)
    for own in (RewardScorer(checkpoint), RewardScorer(str(checkpoint), device="cpu", dtype="float32", batch_size=3)):
        np.testing.assert_allclose(own(texts), wanted, atol=1e-5)
    assert RewardScorer(checkpoint, batch_size=3).batch_size == 3
    with pytest.raises(ModelError, match="there is no such folder"):
        RewardScorer(checkpoint.parent / "nowhere")
    with pytest.raises(ModelError, match="there is no such folder, and the hub cannot be reached"):
        RewardScorer("outputs/nowhere")
    with pytest.raises(ModelError, match=f"the folder has none itself, and {checkpoint} has one"):
        RewardScorer(checkpoint.parent)
    with pytest.raises(UsageError, match="RewardScorer takes no max_len; what loads: device, dtype"):
        RewardScorer(checkpoint, max_len=5)


@pytest.mark.parametrize("given", [None, 123, {"prompt": "a"}])
def test_what_is_no_list_of_conversations_is_one_line(scorer, given):
    with pytest.raises(DataError, match="got .*; wanted a list of conversations"):
        scorer.score(given)


def test_a_model_that_is_loaded_needs_its_tokenizer_and_no_settings_to_load_one(model, tokenizer):
    with pytest.raises(UsageError, match=r"no tokenizer with a model .* RewardScorer\(model, tokenizer\)"):
        RewardScorer(model)
    with pytest.raises(UsageError, match="got device with a model that is loaded"):
        RewardScorer(model, tokenizer, device="cpu")


def test_encode_is_the_tokenisation_of_trl(tmp_path, model, tokenizer, pairs, chats):
    args = RewardConfig(str(tmp_path), bf16=False, report_to="none")
    for data in (pairs, chats):
        trainer = RewardTrainer(model, args, train_dataset=data, processing_class=tokenizer)
        ours = [encode(tokenizer, row["prompt"] + row["chosen"]) for row in data]
        assert ours == trainer.train_dataset["chosen_ids"][:]


def margins_by_route(folder, base, tokenizer, rows):
    """Margins of the rows by every way a reward model is used: each must give the same numbers."""
    args = RewardConfig(str(folder / "t"), bf16=False, report_to="none", max_steps=3, learning_rate=1e-2,
                        save_strategy="no", disable_tqdm=True, gradient_checkpointing=False)  # fmt: skip
    base.save_pretrained(folder / "base")
    trainer = RewardTrainer(
        AutoModelForSequenceClassification.from_pretrained(folder / "base"), args, train_dataset=rows,
        processing_class=tokenizer, peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
    )  # fmt: skip
    trainer.train()
    trainer.save_model(folder / "adapter")
    routes = {"trainer": trainer.predict(rows).predictions.T.ravel()}
    texts = [row["prompt"] + row[side] for side in ("chosen", "rejected") for row in rows]
    routes["adapter"] = RewardScorer.from_pretrained(folder / "adapter").score(texts)
    merged = trainer.model.merge_and_unload()
    merged.save_pretrained(folder / "merged")
    tokenizer.save_pretrained(folder / "merged")
    routes["merged"] = RewardScorer.from_pretrained(folder / "merged").score(texts)
    ended = [text + tokenizer.eos_token for text in texts]
    pipe = pipeline("text-classification", str(folder / "merged"), function_to_apply="none")
    routes["pipeline"] = np.array([row["score"] for row in pipe(ended, batch_size=4)])
    plain = AutoModelForSequenceClassification.from_pretrained(folder / "merged").eval()
    with torch.no_grad():
        routes["forward"] = np.array([plain(**tokenizer(text, return_tensors="pt")).logits.item() for text in ended])
    return {name: rewards[: len(rows)] - rewards[len(rows) :] for name, rewards in routes.items()}


def test_parity_of_forward_pipeline_scorer_trainer_and_merged_adapter(tmp_path, model, tokenizer, pairs):
    margins = margins_by_route(tmp_path, model, tokenizer, pairs)
    for name, margin in margins.items():
        np.testing.assert_allclose(margin, margins["forward"], atol=2e-5, err_msg=name)


@pytest.mark.integration
def test_not_one_of_200_real_pairs_flips(tmp_path, real_data, new_model):
    rows = last_turn_only(read_preferences(real_data / "hh-rlhf" / "harmless-base-test.jsonl.gz"))
    rows = validate(rows).kept.select(range(200))
    tokenizer = make_tiny_tokenizer([row["prompt"] + row["chosen"] for row in rows], 2000)
    model = new_model(vocab_size=len(tokenizer), max_position_embeddings=2048)
    margins = margins_by_route(tmp_path, model, tokenizer, rows)
    assert (np.abs(margins["forward"]) > 0).all()
    for name, margin in margins.items():
        assert (np.sign(margin) == np.sign(margins["forward"])).all(), name
        np.testing.assert_allclose(margin, margins["forward"], atol=1e-4, err_msg=name)


def test_checkpoint_scores_the_same_in_plain_transformers(checkpoint, texts):
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    with torch.no_grad():
        plain = [model(**tokenizer(text + "<|end|>", return_tensors="pt")).logits.item() for text in texts]
    scorer = RewardScorer.from_pretrained(checkpoint, batch_size=1, shared_prefix=False)
    np.testing.assert_allclose(scorer.score(texts), plain, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")  # PEFT saves the grown embeddings, as it should
@pytest.mark.parametrize("kind", ["modernbert", "deberta", "gpt2"])
def test_adapters_of_other_architectures_score_the_same_after_reload(tmp_path, tokenizer, pairs, kind):
    torch.manual_seed(0)
    size = len(tokenizer)
    if kind == "gpt2":  # one special token, so that a pad token is added and the embeddings grow
        tokenizer = type(tokenizer)(tokenizer_object=without_pad(tokenizer), eos_token="<|end|>")
        size = len(tokenizer)
        base = GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=2, n_positions=128))
    elif kind == "modernbert":
        shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
        base = ModernBertForMaskedLM(ModernBertConfig(vocab_size=size, pad_token_id=0, **shape))
    else:
        shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
        base = DebertaV2ForMaskedLM(DebertaV2Config(vocab_size=size, pad_token_id=0, **shape))
    base.save_pretrained(tmp_path / "base")
    args = RewardConfig(str(tmp_path / "t"), bf16=False, report_to="none", max_steps=2, save_strategy="no",
                        disable_tqdm=True, gradient_checkpointing=False)  # fmt: skip
    trainer = RewardTrainer(
        str(tmp_path / "base"), args, train_dataset=pairs, processing_class=tokenizer,
        peft_config=LoraConfig(r=2, target_modules="all-linear", fan_in_fan_out=kind == "gpt2"),
    )  # fmt: skip
    trainer.train()
    trainer.save_model(tmp_path / "adapter")
    scorer = RewardScorer.from_pretrained(tmp_path / "adapter")
    scores = scorer.score([row["prompt"] + row["chosen"] for row in pairs])
    np.testing.assert_allclose(scores, trainer.predict(pairs).predictions[:, 0], atol=1e-5)


def without_pad(tokenizer):
    """The same tokeniser with the end as its only special token."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] == "<|end|>"]
    for name in ("<|pad|>", "<|user|>", "<|assistant|>"):
        state["model"]["vocab"][f"x{name[2]}x{name[3]}x"] = state["model"]["vocab"].pop(name)
    return Tokenizer.from_str(json.dumps(state))


def test_the_models_own_pad_token_is_used_where_the_tokenizer_has_none(model, tokenizer, texts):
    expected = RewardScorer(model, tokenizer).score(texts)
    tokenizer.pad_token = None
    np.testing.assert_allclose(RewardScorer(model, tokenizer).score(texts), expected, atol=1e-5)


@pytest.mark.parametrize("wrong", ["good red", [{"role": "user", "content": "good"}], [None], [[]], [3]], ids=str)
def test_what_is_not_a_list_of_conversations_is_a_clear_error(scorer, wrong):
    with pytest.raises(DataError, match="conversation"):
        scorer.score(wrong)


# Planted faults


def test_a_fresh_head_is_refused(tmp_path, model, tokenizer):
    LlamaForCausalLM(model.config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(FreshHeadError, match="no trained score head"):
        RewardScorer.from_pretrained(tmp_path)


def test_an_adapter_without_its_head_is_refused(tmp_path, model, tokenizer):
    LlamaForCausalLM(model.config).save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
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


def test_holds_tells_what_fits_the_positions(scorer):
    long = "red " * (scorer.most_tokens + 1)
    assert scorer.holds(["red one", long, "blue"]).tolist() == [True, False, True]
    with pytest.raises(DataError, match="conversation 1 has"):
        scorer.score(["red one", long])
