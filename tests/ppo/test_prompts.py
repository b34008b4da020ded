"""Prompts in each of their forms, and a line for what is no prompt."""

import logging

import pytest
import torch
from datasets import Dataset
from tokenizers.processors import TemplateProcessing

from rmtrl.errors import DataError, RenderingError
from rmtrl.generation import TransformersGenerator
from rmtrl.ppo.prompts import read_prompts
from rmtrl.ppo.rollout import Episodes, score_episodes


def read(tokenizer, max_length=None, **columns):
    return read_prompts(Dataset.from_dict(columns), tokenizer, max_length=max_length)


def test_text_is_taken_as_rendered(tokenizer):
    found = read(tokenizer, prompt=["sun moon ?", "<|user|>red<|end|><|assistant|>"])
    assert found.prompts == ["sun moon ?", "<|user|>red<|end|><|assistant|>"]
    assert found.ids == tokenizer(found.prompts)["input_ids"]
    assert tokenizer.eos_token_id in found.ids[1]
    assert len(found) == 2


def test_messages_go_through_the_template_with_its_generation_prompt(tokenizer):
    chat = [{"role": "user", "content": "sun ?"}]
    found = read(tokenizer, prompt=[chat])
    assert tokenizer.decode(found.ids[0]) == "<|user|>sun ?<|end|><|assistant|>"
    assert found.prompts == [chat]


def test_an_answer_begun_is_continued(tokenizer):
    chat = [{"role": "user", "content": "sun ?"}, {"role": "assistant", "content": "good"}]
    assert tokenizer.decode(read(tokenizer, prompt=[chat]).ids[0]) == "<|user|>sun ?<|end|><|assistant|>good"


def test_token_ids_are_taken_as_they_stand_less_their_padding(tokenizer):
    assert read(tokenizer, input_ids=[[5, 6], [7]]).ids == [[5, 6], [7]]
    end = tokenizer.eos_token_id
    found = read(tokenizer, input_ids=[[end, end, 5, end], [6, 7, 8, 9]], attention_mask=[[0, 0, 1, 1], [1] * 4])
    assert found.ids == [[5, end], [6, 7, 8, 9]]
    assert found.prompts == tokenizer.batch_decode(found.ids, skip_special_tokens=True)
    assert found.rows.column_names == []


def test_token_ids_may_be_tensors(tokenizer):
    data = Dataset.from_dict({"input_ids": [[5, 6, 7]], "attention_mask": [[0, 1, 1]]}).with_format("torch")
    assert isinstance(data[0]["input_ids"], torch.Tensor)
    assert read_prompts(data, tokenizer, max_length=None).ids == [[6, 7]]


def test_over_long_prompts_are_left_out_counted_and_told(tokenizer, caplog):
    texts = ["sun", "sun moon sea one two three", "red"]
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    with caplog.at_level(logging.WARNING):
        found = read(tokenizer, lengths[0], prompt=texts, answer=["a", "b", "c"])
    kept = [row for row, n in enumerate(lengths) if n <= lengths[0]]
    assert found.prompts == [texts[row] for row in kept]
    assert len(kept) < 3
    assert f"{3 - len(kept)} of 3 train prompts are over {lengths[0]} tokens and left out" in caplog.text
    assert found.columns(range(len(kept))) == {"answer": ["abc"[row] for row in kept]}


def test_other_columns_are_given_by_row(tokenizer):
    found = read(tokenizer, prompt=["sun", "moon", "sea"], answer=["a", "b", "c"], n=[1, 2, 3])
    assert found.columns([2, 0, 2]) == {"answer": ["c", "a", "c"], "n": [3, 1, 3]}
    assert read(tokenizer, prompt=["sun"]).columns([0]) == {}


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (dict(text=["sun"]), "the train data has the columns text; wanted `prompt`"),
        (dict(prompt=["sun", "  "]), "prompt 1 is empty; a policy has nothing to continue"),
        (dict(prompt=["sun", ""]), "prompt 1 is empty"),
        (dict(prompt=["sun", None]), "prompt 1 is None; wanted text or messages"),
        (dict(prompt=[3, 4]), "prompt 0 is 3; wanted text or messages"),
        (dict(prompt=[[]]), "prompt 0 has no message with content"),
        (dict(prompt=[[{"role": "user", "content": " "}]]), "prompt 0 has no message with content"),
        (dict(prompt=[["sun"]]), "prompt 0 is ['sun']; wanted text or messages"),
        (dict(prompt=[[{"content": "sun"}]]), "prompt 0 is [{'content': 'sun'}]; wanted text or messages"),
        (dict(input_ids=[[5], []]), "prompt 1 of the train data is empty"),
        (dict(input_ids=[[5, 6]], attention_mask=[[0, 0]]), "prompt 0 of the train data is empty"),
        (dict(input_ids=[[5, 6]], attention_mask=[[1]]), "prompt 0 has 2 input_ids and an attention_mask of 1"),
        (dict(input_ids=[[5, -100]]), "prompt 0 has input_ids below 0; leave labels' -100 out"),
        (dict(input_ids=[[5], None]), "prompt 1 has the input_ids None; wanted a list of token ids"),
        (dict(prompt=[[{"role": "assistant", "content": "sun"}]]), "prompt 0 ends in an assistant's message"),
        (dict(input_ids=["sun"]), "prompt 0 has the input_ids sun; wanted a list of token ids"),
        (dict(input_ids=[[5.5]]), "prompt 0 has the input_ids [5.5]; wanted a list of token ids"),
        (dict(input_ids=[[[5]]]), "prompt 0 has the input_ids [[5]]; wanted a list of token ids"),
        (dict(prompt=["sun"], completions=["a"]), "has a column 'completions', which is a reward's own argument"),
        (dict(prompt=["sun moon sea red"]), "none of the 1 prompts of the train data has at most 2 tokens"),
    ],
)
def test_what_is_no_prompt_is_told_in_one_line(tokenizer, columns, line):
    with pytest.raises(DataError) as stop:
        read(tokenizer, 2 if "none of" in line else None, **columns)
    assert line in str(stop.value)
    assert "\n" not in str(stop.value)


def test_a_list_is_no_data_set_and_neither_is_an_empty_one(tokenizer):
    with pytest.raises(DataError, match="got list as train data; wanted a datasets.Dataset of prompts"):
        read_prompts([{"prompt": "sun"}], tokenizer, max_length=None)
    with pytest.raises(DataError, match="the train data holds no prompt"):
        read_prompts(Dataset.from_dict({"prompt": []}), tokenizer, max_length=None)


def test_messages_need_a_template(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(RenderingError, match="chat template"):
        read(tokenizer, prompt=[[{"role": "user", "content": "sun"}]])


def test_an_answer_begun_is_one_message_with_its_completion_to_a_reward(tokenizer):
    turns = [{"role": "user", "content": "sun ?"}, {"role": "assistant", "content": "good"}]
    found = read(tokenizer, prompt=[turns, turns[:1]])
    seen = []

    def reward(prompts, completions, **columns):
        seen.extend(zip(prompts, completions, strict=True))
        return [0.0] * len(prompts)

    ids = tokenizer(" bad")["input_ids"]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    score_episodes(reward, tokenizer, found, Episodes([0, 1], found.ids, [ids, ids], [True, True]), [0, 1])
    assert seen == [
        (turns[:1], [{"role": "assistant", "content": "good" + text}]),
        (turns[:1], [{"role": "assistant", "content": text}]),
    ]


def test_rendered_text_has_one_start_token(tokenizer, new_policy):
    start = tokenizer.convert_tokens_to_ids("<|user|>")
    tokenizer.bos_token = "<|user|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        "<|user|> $A", special_tokens=[("<|user|>", start)]
    )
    plain, rendered = read(tokenizer, prompt=["sun moon", "<|user|>sun moon"]).ids
    assert plain == rendered and plain.count(start) == 1
    generator = TransformersGenerator(new_policy(), tokenizer)
    assert generator.encode("sun moon") == generator.encode("<|user|>sun moon") == plain


def test_a_template_that_fails_is_told_in_one_line(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(RenderingError, match="the chat template fails on prompt 0: roles must alternate; give roles"):
        read(tokenizer, prompt=[[{"role": "user", "content": "sun"}]])
    tokenizer.chat_template = "{% for turn in messages %}{{ '<|user|>' + turn['content'] }}{% endfor %}"
    with pytest.raises(RenderingError, match="the chat template fails on prompt 0: can only concatenate str"):
        read(tokenizer, prompt=[[{"role": "user", "content": [{"type": "image"}]}]])
