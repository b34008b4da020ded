import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtrl.tiny import make_tiny_llama, make_tiny_tokenizer

TOKENIZER = make_tiny_tokenizer(["What is the capital of France?", "The capital of France is Paris."] * 3, 300)


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_any_text_survives_encoding(text):
    for special in TOKENIZER.all_special_tokens:
        text = text.replace(special, "")
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text


def test_template_ends_every_turn_and_opens_the_answer():
    user, assistant = {"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}
    assert (
        TOKENIZER.apply_chat_template([user, assistant], tokenize=False)
        == "<|user|>Hi.<|end|><|assistant|>Hello.<|end|>"
    )
    opened = TOKENIZER.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    assert opened == "<|user|>Hi.<|end|><|assistant|>"


def test_special_tokens_are_single_and_padding_is_not_the_end():
    ids = TOKENIZER("<|pad|><|user|><|assistant|><|end|>")["input_ids"]
    assert ids == [0, 1, 2, 3]
    assert (TOKENIZER.pad_token_id, TOKENIZER.eos_token_id) == (0, 3)


@pytest.mark.parametrize(("hidden_size", "num_hidden_layers"), [(64, 1), (160, 2)])
def test_llama_fits_the_tokenizer(hidden_size, num_hidden_layers):
    model = make_tiny_llama(TOKENIZER, hidden_size=hidden_size, num_hidden_layers=num_hidden_layers)
    assert model.config.vocab_size == len(TOKENIZER)
    assert model.config.pad_token_id == TOKENIZER.pad_token_id
    assert model.num_parameters() < 1.2e6
