"""Every architecture that can be made small: one text, one score; its limits and no others; its chance in training."""

import logging

import numpy as np
import pytest
import torch
from architectures import EOS, POSITIONS, classifiers, language_models, small_config, small_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl.trainer.utils import disable_dropout_in_model

from rmtrl import RewardScorer
from rmtrl.errors import DataError
from rmtrl.models import position_limit
from rmtrl.reward.shared_prefix import has_dropout

# these want more than text: boxes of a page
MORE_THAN_TEXT = {"layoutlmv3", "lilt"}
END_TO_END = {"bart", "bigbird_pegasus", "mbart", "mt5", "mvp", "plbart", "t5", "t5gemma", "umt5"}
ENDLESS = {"bloom", "deberta-v2", "falcon", "funnel", "jamba", "mpt", "mt5", "t5", "umt5", "xlnet"}


def models():
    """Name and model of each architecture that takes text alone."""
    for kind in classifiers():
        if kind not in MORE_THAN_TEXT:
            yield kind, small_model(AutoModelForSequenceClassification, kind, num_labels=1)


def texts():
    """Token ids with an end token or several, of one start and of others; CANINE takes no fewer than 16."""
    rng = np.random.default_rng(0)

    def ids(n):
        return rng.integers(5, 300, n).tolist()

    start = ids(20)
    candidates = [[*start, *ids(n), EOS] for n in (1, 3, 3, 9, 20)]
    others = [[*ids(n), EOS] for n in (15, 17, 23, 33, 40, 60)]
    return [*candidates, *others, [*ids(9), EOS, *ids(9), EOS], [*ids(8), EOS, *ids(3), EOS, *ids(20), EOS]]


def alone(model, rows):
    with torch.no_grad():
        return np.array([model(input_ids=torch.tensor([ids])).logits.item() for ids in rows])


def test_every_architecture_scores_a_text_as_plain_transformers_does_whatever_stands_beside_it(tokenizer):
    rows, wrong, seen = texts(), {}, set()
    order = np.random.default_rng(1).permutation(len(rows))
    for kind, model in models():
        expected = alone(model, rows)
        scorer = RewardScorer(model, tokenizer)
        got = np.stack([scorer.score_ids(rows), scorer.score_ids([rows[i] for i in order])[np.argsort(order)]])
        apart = np.abs(got - expected).max() / max(1.0, np.abs(expected).max())
        seen.add(kind)
        if not apart <= 1e-5:
            wrong[kind] = apart
    assert not wrong
    assert len(seen) >= 60 and seen >= END_TO_END - {"t5gemma"} | ENDLESS - {"falcon", "funnel", "jamba"}


def test_a_limit_of_positions_is_the_one_that_the_model_has():
    wrong = {}
    for kind, model in models():
        limit = position_limit(model)
        held = limit or 3 * POSITIONS
        for n, fits in ((held, True), (held + 1, limit is None)):
            try:
                alone(model, [[*range(5, 4 + n), EOS]])
            except (IndexError, RuntimeError) as error:
                if fits:
                    wrong[kind] = f"{n} tokens: {error}"
        if (limit is None) != (kind in ENDLESS):
            wrong[kind] = f"limit {limit}"
    assert not wrong


@pytest.mark.parametrize("kind", ["deberta-v2", "t5", "xlnet", "bloom"])
def test_texts_are_not_refused_for_a_limit_that_the_model_has_not(tokenizer, kind):
    model = small_model(AutoModelForSequenceClassification, kind, num_labels=1)
    long = [[*range(5, 5 + 2 * POSITIONS), EOS]]
    np.testing.assert_allclose(RewardScorer(model, tokenizer).score_ids(long), alone(model, long), atol=1e-5)


@pytest.mark.parametrize("kind", ["roberta", "bert", "gpt2", "llama"])
def test_a_text_longer_than_the_positions_is_refused_before_the_model_is_asked(tokenizer, kind):
    model = small_model(AutoModelForSequenceClassification, kind, num_labels=1)
    limit = position_limit(model)
    assert limit == (POSITIONS - 1 if kind == "roberta" else POSITIONS)
    with pytest.raises(DataError, match=f"conversation 1 has {limit + 1} tokens, the model holds {limit}"):
        RewardScorer(model, tokenizer).score_ids([[5], [*range(5, 5 + limit), EOS]])


def test_encoder_decoders_are_batched_by_their_end_tokens(tokenizer, caplog):
    model = small_model(AutoModelForSequenceClassification, "t5", num_labels=1)
    calls = []
    model.register_forward_pre_hook(
        lambda model, args, inputs: calls.append(len(inputs["input_ids"])), with_kwargs=True
    )
    scorer = RewardScorer(model, tokenizer)
    scorer.score_ids([[7, EOS]])
    calls.clear()
    with caplog.at_level(logging.WARNING):
        scorer.score_ids([[*[7] * n, EOS] for n in range(20, 25)] + [[7, EOS, *[7] * n, EOS] for n in range(20, 25)])
    assert sorted(calls) == [5, 5]
    assert scorer.scored_position([7, EOS, 8, EOS, 9]) == 3


def test_rows_whose_padding_is_seen_stand_beside_rows_of_their_length(tokenizer, caplog):
    model = small_model(AutoModelForSequenceClassification, "fnet", num_labels=1)
    scorer = RewardScorer(model, tokenizer)
    with caplog.at_level(logging.WARNING):
        scorer.score_ids([[7, EOS], [7, 8, EOS]])
        scorer.score_ids([[7, EOS]])
    assert caplog.text.count("only texts of one length are scored together: scores of padded rows differ") == 1


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "roberta", "t5"])
def test_a_pad_token_that_the_model_has_no_embedding_of_pads_nothing(tokenizer, kind):
    model = small_model(AutoModelForSequenceClassification, kind, num_labels=1, vocab_size=len(tokenizer))
    expected = alone(model, texts())
    tokenizer.add_special_tokens({"pad_token": "<|later|>"})
    assert tokenizer.pad_token_id >= model.get_input_embeddings().num_embeddings
    np.testing.assert_allclose(RewardScorer(model, tokenizer).score_ids(texts()), expected, atol=1e-5)


def test_a_tokenizer_larger_than_the_model_is_said_at_once_and_its_texts_are_refused(tokenizer, model, caplog):
    with caplog.at_level(logging.WARNING):
        RewardScorer(model, tokenizer)
    assert "embeddings" not in caplog.text
    tokenizer.add_tokens(["<new>"])
    with caplog.at_level(logging.WARNING):
        scorer = RewardScorer(model, tokenizer)
    n = model.get_input_embeddings().num_embeddings
    assert f"the model has {n} embeddings and the tokenizer 1 tokens beyond them, '<new>' among them" in caplog.text
    with pytest.raises(DataError, match=rf"conversation 1 has token {n} \('<new>'\), the model has {n} embeddings"):
        scorer.score(["red", "<new>"])
    assert scorer.score(["red"]).shape == (1,)


def test_chance_in_training_is_seen_in_every_language_model():
    ids, unseen, imagined, seen = torch.tensor([[*range(5, 30), EOS]]), {}, set(), set()
    for kind in language_models():
        default = small_config(kind).to_dict()
        names = [n for n, v in default.items() if "drop" in n and type(v) in (int, float)]
        for settings in ({}, dict.fromkeys(names, 0.0), *({name: 0.4} for name in names)):
            try:
                model = small_model(AutoModelForCausalLM, kind, **settings)
                plain = model(input_ids=ids).logits
            except Exception:  # a setting or a size that the architecture refuses
                continue
            disable_dropout_in_model(model.train())  # as TRL does by default; it knows modules alone
            differ = any((model(input_ids=ids).logits - plain).abs().max() > 1e-5 for _ in range(4))
            seen.add(kind)
            if differ and not has_dropout(model):
                unseen[kind] = settings
            if has_dropout(model) and not differ and not settings:
                imagined.add(kind)
    assert not unseen
    assert imagined <= {"gpt_neox_japanese"}  # its configuration says so, and its modules are off
    assert len(seen) >= 60 and seen >= {"opt", "biogpt", "xglm", "gpt2", "llama", "bloom", "falcon"}


@pytest.mark.parametrize("kind", ["gpt2", "bert", "opt"])
def test_dropout_that_is_left_on_is_seen(kind):
    model = small_model(AutoModelForSequenceClassification, kind, num_labels=1)
    assert has_dropout(model)
    disable_dropout_in_model(model)
    assert has_dropout(model) is (kind == "opt")
