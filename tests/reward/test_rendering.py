"""What reaches a chat template, what does not come back as text, and who says so."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Json, List, Value
from routes import QUIET, make_model, turn
from templates import NAMES, tokenizer_of

from rmtrl import ComposedReward, RewardConfig, RewardScorer, RewardTrainer
from rmtrl.data.preferences import to_normal_form
from rmtrl.data.templates import in_parts
from rmtrl.data.validation import validate
from rmtrl.errors import RenderingError
from rmtrl.ppo.prompts import read_prompts
from rmtrl.reward.checkpoint import stored_rendering
from rmtrl.reward.rendering import Rendering, encode, encode_all, encode_prompt, values_of
from rmtrl.types import Chat

ASK, YES, NO = [turn("user", "is the sun red ?")], [turn("assistant", "yes.")], [turn("assistant", "no.")]
SIDES = {"prompt": ASK, "chosen": YES}
_X = {"type": "object", "properties": {"x": {"type": "string", "description": "moon"}}}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "the sea", "parameters": _X}}]


def call(**arguments):
    """An answer that is a call alone."""
    return [{"role": "assistant", "content": None, "tool_calls": [
        {"type": "function", "function": {"name": "f", "arguments": arguments}}]}]  # fmt: skip


def columns(**given):
    plain = dict.fromkeys(("prompt", "chosen", "rejected"), List(Json()))
    return Dataset.from_dict(given, features=Features({name: plain.get(name, Json()) for name in given}))


def trained(folder, name, data, **settings):
    tokenizer = tokenizer_of(name)
    args = RewardConfig(str(folder), max_length=None, max_steps=1, learning_rate=0.0, **QUIET | settings)
    return RewardTrainer(make_model(tokenizer, num_labels=1), args, train_dataset=data, processing_class=tokenizer)


def renders(tokenizer, conversation):
    try:
        return tuple(encode(tokenizer, conversation))
    except RenderingError:
        return None


def plain(model, tokenizer, conversation, **variables):
    ids = tokenizer.apply_chat_template(list(conversation), return_tensors="pt", return_dict=True, **variables)
    with torch.no_grad():
        return float(model(input_ids=ids["input_ids"]).logits[0, 0])


@pytest.mark.parametrize("name", NAMES)
def test_tools_and_variables_reach_every_template_that_reads_them(name, tmp_path):
    tokenizer = tokenizer_of(name)
    bare = renders(tokenizer, ASK + YES)
    for variables in (
        {"tools": TOOLS},
        {"chat_template_kwargs": {"enable_thinking": False, "reasoning_effort": "low"}},
    ):
        given = {"tools": None, "chat_template_kwargs": {}} | variables
        conversation = Chat(ASK, **given) + YES
        try:
            wanted = tokenizer.apply_chat_template(
                ASK + YES, tools=given["tools"], **given["chat_template_kwargs"], return_dict=True
            )["input_ids"]
        except Exception:  # a template that takes parts, or no tools
            continue
        if not name.startswith(("llava", "idefics", "smolvlm")):
            assert encode(tokenizer, conversation) == wanted
    reads_tools = renders(tokenizer, Chat(ASK, tools=TOOLS) + YES) != bare
    assert reads_tools == ("tools" in tokenizer.chat_template)


def test_how_many_templates_tell_two_calls_apart():
    """Two calls that differ in an argument are two answers wherever a template writes calls at all."""
    writes = [name for name in NAMES if "tool_calls" in tokenizer_of(name).chat_template and "r1_distill" not in name]
    asked = Chat(ASK, tools=TOOLS)
    found = {name: [renders(tokenizer_of(name), asked + call(x=x)) for x in ("sun", "moon")] for name in writes}
    fails = [name for name, (one, _) in found.items() if one is None]
    assert all(name.startswith("deepseekv3") for name in fails), "these ask for a content that is null"
    assert all(one != two for one, two in found.values() if one is not None)
    assert len(found) - len(fails) >= 37


@pytest.mark.parametrize("name", NAMES)
def test_the_absence_of_content_is_never_a_word(name):
    tokenizer = tokenizer_of(name)
    for message in ({"role": "assistant", "content": None}, {"role": "assistant"}):
        with pytest.raises(RenderingError, match="message 1 of conversation 0 has no content"):
            encode(tokenizer, [*ASK, message])
    ids = renders(tokenizer, ASK + call(x="sun"))
    assert ids is None or "None" not in tokenizer.decode(list(ids))


def test_nothing_is_printed_for_a_message_without_content(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }}{% endfor %}"
    assert tokenizer.decode(encode(tokenizer, ASK + call(x="sun"))) == "user is the sun red ?assistant "


def test_a_conversation_that_no_template_takes_is_named(tmp_path):
    tokenizer = tokenizer_of("gemma")
    scorer = RewardScorer(make_model(tokenizer, num_labels=1), tokenizer, progress=False)
    wrong = [turn("system", "be good"), *ASK, *YES]
    for bad in (wrong, ASK + ASK + YES):
        with pytest.raises(RenderingError, match="the chat template fails on conversation 1: ") as stop:
            scorer.score([ASK + YES, bad])
        assert stop.value.index == 1 and "\n" not in str(stop.value)
        assert scorer.holds([ASK + YES, bad]).tolist() == [True, False]
    data = columns(prompt=[ASK, wrong[:2]], chosen=[YES, YES], rejected=[NO, NO])
    with pytest.raises(RenderingError, match="chosen of pair 1: .*System role not supported"):
        trained(tmp_path, "gemma", data)
    with pytest.raises(RenderingError, match="the chat template fails on prompt 1"):
        read_prompts(columns(prompt=[ASK, wrong[:2]]), tokenizer, max_length=None)


@pytest.mark.parametrize("form", ["objects", "JSON text"])
def test_columns_of_a_row_reach_training_and_scoring(tmp_path, form):
    tokenizer = tokenizer_of("qwen3")
    tools = [TOOLS if form == "objects" else json.dumps(TOOLS), None]
    variables = [{}, {"enable_thinking": False}]
    data = columns(prompt=[ASK, ASK], chosen=[YES, call(x="sun")], rejected=[NO, call(x="moon")], tools=tools,
                   chat_template_kwargs=variables)  # fmt: skip
    trainer = trained(tmp_path, "qwen3", data)
    rewards = trainer.predict(data).predictions
    scorer = RewardScorer(trainer.model, tokenizer, progress=False)
    rows = [Chat.of(row["prompt"], row) for row in data]
    for side, column in (("chosen", 0), ("rejected", 1)):
        whole = [prompt + answer for prompt, answer in zip(rows, data[side], strict=True)]
        np.testing.assert_allclose(scorer.score(whole), rewards[:, column], atol=1e-5)
        given = [{"tools": TOOLS}, {"enable_thinking": False}]
        wanted = [plain(trainer.model, tokenizer, c, **own) for c, own in zip(whole, given, strict=True)]
        np.testing.assert_allclose(rewards[:, column], wanted, atol=1e-5)
        asked = {"prompts": data["prompt"], "completions": data[side], "tools": data["tools"]}
        for reward in (scorer, ComposedReward(scorer)):
            got = reward(**asked, chat_template_kwargs=data["chat_template_kwargs"])
            np.testing.assert_allclose(got, rewards[:, column], atol=1e-5)
    assert abs(rewards[0, 0] - scorer.score([ASK + YES])[0]) > 1e-3, "tools must matter"
    prompts = read_prompts(
        data.select_columns(["prompt", "tools", "chat_template_kwargs"]), tokenizer, max_length=None
    )
    assert prompts.ids == [encode_prompt(tokenizer, row) for row in rows]
    assert [prompt.tools for prompt in prompts.prompts] == [TOOLS, None]
    assert trainer.predict(data).predictions.tolist() == rewards.tolist()


def test_what_every_pair_had_is_rendered_with_every_conversation(tmp_path):
    data = columns(prompt=[ASK, ASK], chosen=[YES, YES], rejected=[NO, NO], tools=[TOOLS, TOOLS])
    trainer = trained(tmp_path, "qwen3", data)
    trainer.save_model(str(tmp_path / "rm"))
    assert stored_rendering(tmp_path / "rm").tools == TOOLS
    scorer = RewardScorer.from_pretrained(tmp_path / "rm", progress=False)
    wanted = trainer.predict(data).predictions[0, 0]
    for conversation in (ASK + YES, Chat(ASK, tools=TOOLS) + YES):
        assert float(scorer.score([conversation])[0]) == pytest.approx(wanted, abs=1e-5)
    assert trainer.predict(data.remove_columns("tools")).predictions[0, 0] == pytest.approx(wanted, abs=1e-6)
    stored = asdict(stored_rendering(tmp_path / "rm"))
    assert Rendering(**stored).tools == TOOLS


def test_keys_that_arrow_filled_in_are_not_there(tmp_path):
    """A struct column has every key in every row: templates ask whether a key is there."""
    tokenizer = tokenizer_of("llama3_1")
    given = [ASK, ASK + call(x="sun") + [{"role": "tool", "name": "f", "content": "red"}]]
    data = Dataset.from_dict({"prompt": given, "chosen": [YES, YES], "rejected": [NO, NO]})
    assert "tool_calls" in data[0]["prompt"][0] and "tool_calls" not in values_of(data, "prompt")[0][0]
    wanted = RewardScorer(make_model(tokenizer, num_labels=1), tokenizer, progress=False).score(
        [prompt + YES for prompt in given]
    )
    got = trained(tmp_path, "llama3_1", data).predict(data).predictions[:, 0]
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert read_prompts(data.select_columns("prompt"), tokenizer, max_length=None).ids == [
        encode_prompt(tokenizer, prompt) for prompt in given
    ]


@pytest.mark.parametrize("name", NAMES)
def test_text_in_parts_is_the_same_text(name):
    """Some templates print a list of parts as it is, and some pass over it; none may see it that does not read it."""
    tokenizer = tokenizer_of(name)
    whole = encode(tokenizer, ASK + YES)
    for places in ((0,), (1,), (0, 1)):
        mixed = [in_parts([m])[0] if place in places else m for place, m in enumerate(ASK + YES)]
        assert encode(tokenizer, mixed) == whole
    assert "is the sun red ?" in tokenizer.decode(whole) and "yes." in tokenizer.decode(whole)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", ["prompt", "chosen", "both"])
def test_validation_counts_the_tokens_of_parts_as_they_are_scored(name, where):
    tokenizer = tokenizer_of(name)
    prompt, chosen = (in_parts(side) if where in (own, "both") else side for own, side in SIDES.items())
    length = len(encode(tokenizer, prompt + chosen))
    row = {"id": "a", "prompt_id": "g", "domain": "d", "prompt": prompt, "chosen": chosen, "rejected": NO}
    pairs = to_normal_form(Dataset.from_list([row], features=Features({
        name: List(Json()) if isinstance(value, list) else Value("string") for name, value in row.items()
    })))  # fmt: skip
    assert len(validate(pairs, tokenizer=tokenizer).kept) == 1
    assert len(validate(pairs, tokenizer=tokenizer, max_length=length).kept) == 1
    assert validate(pairs, tokenizer=tokenizer, max_length=length - 1).reasons["too_long"] == 1


def test_a_null_that_every_row_has_was_written(tmp_path):
    """Only a key that some rows lack was filled in."""
    tokenizer = tokenizer_of("qwen3")
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"x": {"type": "string", "default": None}}}}]
    data = Dataset.from_dict({"prompt": [ASK] * 2, "chosen": [YES] * 2, "rejected": [NO] * 2, "tools": [tools] * 2})
    assert values_of(data, "tools") == [tools] * 2
    trainer = trained(tmp_path, "qwen3", data)
    assert trainer.train_dataset["chosen_ids"][0] == encode(tokenizer, Chat(ASK, tools=tools) + YES)


def test_no_tools_can_be_said(tmp_path):
    rendering = Rendering.of(tokenizer_of("qwen3"), max_length=None, tools=TOOLS)
    assert rendering.completed(ASK).tools == TOOLS
    assert not rendering.completed(Chat(ASK, tools=[])).tools
    assert encode(tokenizer_of("qwen3"), Chat(ASK, tools=[])) == encode(tokenizer_of("qwen3"), ASK)


def test_text_and_parts_are_one_text():
    tokenizer = tokenizer_of("gemma3")
    parts = [{"role": "user", "content": [{"type": "text", "text": ASK[0]["content"]}]}]
    assert encode_all(tokenizer, [parts + YES, ASK + YES])[0] == encode(tokenizer, ASK + YES)
    text = Dataset.from_dict({"prompt": ["sun"]}, features=Features({"prompt": Value("string")}))
    assert values_of(text, "prompt") == ["sun"]
