"""What a model cannot take is said when the trainer is made; what it can take is not in the way."""

import copy

import numpy as np
import pytest
import torch
from architectures import small_model
from datasets import Dataset
from templates import NAMES, tokenizer_of
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rmtrl import RewardConfig, RewardScorer, RewardTrainer
from rmtrl.errors import ModelError, RenderingError


@pytest.fixture
def trainer(tmp_path, new_model, tokenizer, pairs):
    def make(model=None, data=pairs, tokenizer=tokenizer, **settings):
        usual = dict(per_device_train_batch_size=4, max_steps=2, save_strategy="no", report_to="none", use_cpu=True,
                     bf16=False, gradient_checkpointing=False, disable_tqdm=True, learning_rate=1e-3)  # fmt: skip
        args = RewardConfig(str(tmp_path / "run"), **(usual | settings))
        return RewardTrainer(model or new_model(), args, train_dataset=data, processing_class=tokenizer)

    return make


def classifier(kind, tokenizer, **settings):
    shape = dict(num_labels=1, vocab_size=len(tokenizer), max_position_embeddings=512)
    return small_model(AutoModelForSequenceClassification, kind, **(shape | settings))


def scored(run, data):
    """Rewards that the saved model gives, scorer by scorer: ours and plain transformers, chosen then rejected."""
    run.save_model()
    folder = run.args.output_dir
    texts = [row["prompt"] + row[side] for side in ("chosen", "rejected") for row in data]
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        plain = [model(**tokenizer(t + tokenizer.eos_token, return_tensors="pt")).logits.item() for t in texts]
    return RewardScorer.from_pretrained(folder, progress=False).score(texts), np.array(plain)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "roberta"])
def test_a_pad_token_without_embedding_is_replaced_by_one_that_has(trainer, tokenizer, pairs, kind, capsys):
    model = classifier(kind, tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<|later|>"})
    run = trainer(model)
    assert "pad token is '<|pad|>': the model has no embedding of '<|later|>'" in capsys.readouterr().err
    run.train()
    assert run.model.get_input_embeddings().num_embeddings == len(tokenizer) - 1
    ours, plain = scored(run, pairs)
    np.testing.assert_allclose(ours, plain, atol=1e-5)
    np.testing.assert_allclose(run.predict(pairs).predictions.T.ravel(), plain, atol=1e-5)


def test_a_token_that_the_model_has_no_embedding_of_is_named_before_a_step(trainer, tokenizer, model, rows):
    tokenizer.add_tokens(["<new>"])
    trainer(model)  # no pair holds it
    data = Dataset.from_list([*rows(3), rows(1)[0] | {"rejected": " <new>"}])
    n = model.get_input_embeddings().num_embeddings
    wanted = rf"the train set has token {n} \('<new>'\), the model has {n} embeddings"
    with pytest.raises(ModelError, match=wanted) as error:
        trainer(model, data)
    assert "\n" not in str(error.value)
    with pytest.raises(ModelError, match="the test set has token"):
        trainer(model).predict(data)


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "opt"])
def test_pairs_longer_than_the_positions_are_named_before_a_step(trainer, tokenizer, rows, kind):
    model = classifier(kind, tokenizer, max_position_embeddings=40)
    data = Dataset.from_list([*rows(3), rows(1)[0] | {"chosen": " good" * 50}])
    limit = 39 if kind == "roberta" else 40
    said = f"1 of 4 pairs of the train set are longer than the model's {limit} positions .* set max_length={limit}"
    with pytest.raises(ModelError, match=said):
        trainer(model, data)
    run = trainer(model, data, max_length=limit)
    run.train()
    assert run.dropped_pairs["train"] == 1
    assert np.isnan(run.predict(data).predictions).any(axis=1).tolist() == [False, False, False, True]


@pytest.mark.parametrize(("kind", "says"), [("llama", True), ("deberta-v2", False), ("bloom", False), ("t5", False)])
def test_pairs_are_trained_on_where_positions_do_not_end(trainer, tokenizer, rows, kind, says, caplog):
    data = Dataset.from_list([*rows(3), rows(1)[0] | {"chosen": " good" * 50}])
    run = trainer(classifier(kind, tokenizer, max_position_embeddings=40), data, max_steps=1)
    assert ("1 of 4 pairs of the train set are longer than the model's 40 positions" in caplog.text) is says
    run.train()


@pytest.mark.parametrize("kind", ["t5", "mt5", "bart"])
def test_encoder_decoders_train_on_rows_with_any_number_of_end_tokens(trainer, tokenizer, rows, kind):
    data = Dataset.from_list([row | {"prompt": row["prompt"] + "<|end|>" * (i % 3)} for i, row in enumerate(rows(12))])
    run = trainer(classifier(kind, tokenizer), data)
    run.train()
    ours, plain = scored(run, data)
    np.testing.assert_allclose(ours, plain, atol=1e-5)
    np.testing.assert_allclose(run.predict(data).predictions.T.ravel(), plain, atol=1e-5)


# A start token before the one that the tokenizer adds


@pytest.fixture
def starting(tokenizer):
    """A tokenizer that opens every text with a start token."""
    tokenizer.bos_token = "<|user|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|user|> $A", special_tokens=[("<|user|>", tokenizer.bos_token_id)]
    )
    return tokenizer


@pytest.fixture
def rendered(rows):
    """Pairs whose texts hold a start token already, but for two."""
    return Dataset.from_list([row | {"prompt": "<|user|>" * (i > 1) + row["prompt"]} for i, row in enumerate(rows(8))])


SAID = "with '<|user|>' twice: the text holds the start token and the tokenizer adds another"


def test_a_second_start_token_is_said_at_the_start_and_scored_as_it_was_trained(trainer, starting, rendered, caplog):
    run = trainer(data=rendered, tokenizer=starting)
    assert caplog.text.count(f"6 pairs of the train set start {SAID}") == 1
    run.train()
    ours, plain = scored(run, rendered)
    np.testing.assert_allclose(ours, plain, atol=1e-5)
    np.testing.assert_allclose(run.predict(rendered).predictions.T.ravel(), plain, atol=1e-5)
    other = RewardScorer(run.model, starting, progress=False)  # nothing says that it was trained so
    with pytest.raises(RenderingError, match="conversation 0 starts") as error:
        other.score([rendered[2]["prompt"]])
    assert SAID in str(error.value)


def test_a_second_start_token_is_refused_where_bad_pairs_are(trainer, starting, rendered, rows):
    with pytest.raises(RenderingError, match="6 pairs of the train set start"):
        trainer(data=rendered, tokenizer=starting, pair_validation="raise")
    trainer(data=Dataset.from_list(rows(8)), tokenizer=starting, pair_validation="raise")


def test_templates_that_write_the_start_token_themselves_are_not_blamed(trainer, new_model, chats, caplog):
    tokenizers = {name: copy.deepcopy(tokenizer_of(name)) for name in NAMES}
    writes = [own for own in tokenizers.values() if own.bos_token and "bos_token" in own.chat_template]
    assert len(writes) >= 15
    for tokenizer in writes:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{tokenizer.bos_token} $A", special_tokens=[(tokenizer.bos_token, tokenizer.bos_token_id)]
        )
        model = new_model(vocab_size=len(tokenizer), max_position_embeddings=2048)
        trainer(model, chats, tokenizer, max_length=None)
    assert "twice" not in caplog.text
