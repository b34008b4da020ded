"""Messages through reading, validation, splits and files: every field stays, and what is not there stays absent."""

import copy
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from jinja2 import TemplateError

from rmtrl.data.clusters import deduplicate, prompt_text
from rmtrl.data.contamination import contamination
from rmtrl.data.messages import ROLES, TOOL_ROLES, canonical, is_blank, message_text, read_messages
from rmtrl.data.preferences import last_turn_only, read_preferences, to_normal_form
from rmtrl.data.provenance import fingerprint
from rmtrl.data.splits import make_splits
from rmtrl.data.validation import validate
from rmtrl.errors import RenderingError
from rmtrl.io import write_rows


def call(**arguments):
    return {"type": "function", "function": {"name": "weather", "arguments": arguments}}


USER = {"role": "user", "content": "What is the weather in Rome?"}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
MESSAGES = [
    {"role": "assistant", "content": None, "tool_calls": [call(city="Rome", days=1.7, deep={"a": [None, {}]})]},
    {"role": "assistant", "tool_calls": [call(city="Rome")]},
    {"role": "assistant", "content": "", "tool_calls": [call(big=12345678901234567890123, tiny=5e-324)]},
    {"role": "assistant", "content": "Sunny.", "reasoning_content": "Rome is sunny.", "name": "meteo"},
    {"role": "assistant", "content": "Sunny.", "thinking": "…", "weight": 0, "custom": {"x": [1, "2", True, None]}},
    {"role": "assistant", "content": [{"type": "text", "text": "Sunny"}, {"type": "text", "text": "."}]},
    {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": "{}"}},
]
PROMPTS = [
    [USER],
    [{"role": "developer", "content": "Be brief."}, USER],
    [USER, MESSAGES[0], {"role": "tool", "tool_call_id": "7", "name": "weather", "content": ""}],
    [{"role": "user", "content": [{"type": "text", "text": "Why?", "cache_control": {"type": "ephemeral"}}]}],
]
ANSWER = [{"role": "assistant", "content": "I do not know."}]
SEVERAL = [
    MESSAGES[1],
    {"role": "tool", "tool_call_id": "8", "content": "19 °C"},
    {"role": "assistant", "content": "19"},
]


def rows():
    answers = [*([message] for message in MESSAGES), SEVERAL]
    pairs = [{"prompt": prompt, "chosen": answer, "rejected": ANSWER} for prompt in PROMPTS for answer in answers]
    template = {"tools": TOOLS, "chat_template_kwargs": {"enable_thinking": False, "level": 0.7}}
    return [row | {"id": str(k)} | (template if k % 2 else {}) for k, row in enumerate(pairs)]


SIDES = ("prompt", "chosen", "rejected")


def sides(dataset):
    return [{name: row[name] for name in SIDES} for row in dataset]


def test_every_field_stays_through_files_validation_splits_and_data_sets(tmp_path):
    given = rows()
    wanted = [{name: row[name] for name in SIDES} for row in given]
    write_rows(tmp_path / "pairs.jsonl", given)
    pairs = read_preferences(tmp_path / "pairs.jsonl")
    assert json.dumps(sides(pairs)) == json.dumps(wanted)
    kept = validate(pairs).kept
    assert json.dumps(sides(kept)) == json.dumps(wanted) and kept["tools"][:2] == [None, TOOLS]
    assert kept["chat_template_kwargs"][:2] == [{}, {"enable_thinking": False, "level": 0.7}]
    write_rows(tmp_path / "kept.jsonl", kept)
    again = read_preferences(tmp_path / "kept.jsonl")
    assert json.dumps(sides(again)) == json.dumps(wanted) and fingerprint(again) == fingerprint(pairs)
    parts = make_splits(kept, ratios=(0.5, 0.0, 0.0, 0.5)).as_dict().values()
    by_id = {row["id"]: row for part in parts for row in part}
    assert json.dumps([{name: by_id[row["id"]][name] for name in SIDES} for row in given]) == json.dumps(wanted)
    assert json.dumps(sides(to_normal_form(again))) == json.dumps(wanted)


def test_the_command_writes_every_field(rmtrl, tmp_path):
    write_rows(tmp_path / "pairs.jsonl", rows())
    code, stdout, _ = rmtrl("data", "validate", tmp_path / "pairs.jsonl", "--out", tmp_path / "out.jsonl", "--json")
    assert code == 0 and json.loads(stdout)["kept"] == len(rows())
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert json.dumps(sides(written)) == json.dumps(sides(rows()))


def test_the_last_turn_keeps_its_fields(tmp_path):
    turns = [USER, MESSAGES[3], *PROMPTS[2]]
    pair = {"prompt": turns, "chosen": [MESSAGES[0]], "rejected": ANSWER}
    write_rows(tmp_path / "pairs.jsonl", [pair])
    cut = last_turn_only(read_preferences(tmp_path / "pairs.jsonl"))
    assert cut[0]["prompt"] == PROMPTS[2] and "name" not in cut[0]["prompt"][0]


def test_a_table_that_fills_absent_fields_with_null_says_the_same(tmp_path):
    tools = [{"type": "function", "function": {"name": f"f{k}", **({"strict": True} if k else {})}} for k in range(2)]
    given = [
        {"prompt": [USER], "chosen": [MESSAGES[3]], "rejected": ANSWER, "tools": tools},
        {"prompt": [USER], "chosen": [{"role": "assistant", "tool_calls": [call(n=1)]}], "rejected": [MESSAGES[3]]},
        {"prompt": [USER], "chosen": [{"role": "assistant", "tool_calls": [call(m=2)]}], "rejected": ANSWER},
    ]
    table = pa.Table.from_pylist(given)  # absent fields are null there
    pq.write_table(table, tmp_path / "pairs.parquet")
    write_rows(tmp_path / "pairs.jsonl", given)
    table, lines = (read_preferences(tmp_path / f"pairs.{suffix}") for suffix in ("parquet", "jsonl"))
    assert sides(table) == sides(lines) and table["prompt_id"][:] == lines["prompt_id"][:]
    assert table["tools"][:] == lines["tools"][:] == [tools, None, None]


@pytest.mark.parametrize(("one", "other"), [(1, 2), (1, 1.5), (1, True), (1, 1.0), (1, None), ("1", 1)])
def test_calls_that_differ_in_an_argument_are_two_answers(one, other):
    answers = [{"role": "assistant", "content": None, "tool_calls": [call(n=n)]} for n in (one, other)]
    pair = {"prompt": [USER], "chosen": [answers[0]], "rejected": [answers[1]]}
    whole = {name: [USER, *pair[name]] for name in ("chosen", "rejected")}
    for row in (pair, whole):
        found = [row, row | {"rejected": [*row["rejected"][:-1], MESSAGES[3]]}]
        result = validate(to_normal_form(Dataset.from_list(found, on_mixed_types="use_json")))
        assert len(result.kept) == 2, result.reasons
    same = to_normal_form(Dataset.from_list([pair | {"rejected": pair["chosen"]}], on_mixed_types="use_json"))
    assert validate(same).reasons["identical_candidates"] == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"content": None}, "missing_field"),
        ({}, "missing_field"),
        ({"content": None, "tool_calls": []}, "missing_field"),
        ({"content": None, "reasoning_content": "Hm."}, "missing_field"),
        ({"content": ""}, "empty_response"),
        ({"content": []}, "empty_response"),
        ({"content": [{"type": "text", "text": " "}, {"type": "text", "text": ""}]}, "empty_response"),
        ({"content": None, "tool_calls": [call(n=1)]}, None),
        ({"tool_calls": [call(n=1)]}, None),
        ({"content": "", "tool_calls": [call(n=1)]}, None),
        ({"content": [{"type": "image", "url": "u"}]}, None),
    ],
)
def test_an_answer_is_empty_where_it_says_nothing(tmp_path, answer, reason):
    pair = {"prompt": [USER], "chosen": [{"role": "assistant"} | answer], "rejected": ANSWER}
    good = {"prompt": [USER], "chosen": [MESSAGES[5]], "rejected": ANSWER}
    write_rows(tmp_path / "pairs.jsonl", [pair, good])
    result = validate(read_preferences(tmp_path / "pairs.jsonl", faulty="keep"))
    assert result.rejects["reason"][:] == ([reason] if reason else []) and len(result.kept) == 1 + (reason is None)


@pytest.mark.parametrize("role", sorted(TOOL_ROLES))
def test_a_tool_may_speak_before_the_answer_and_within_it(role):
    told = {"role": role, "content": "19"}
    prompts = [[USER], [USER, MESSAGES[1], told]]
    answers = [ANSWER, [MESSAGES[0], told, {"role": "assistant", "content": "19"}]]
    found = [{"prompt": prompt, "chosen": answers[1], "rejected": answers[0]} for prompt in prompts]
    assert len(validate(to_normal_form(Dataset.from_list(found, on_mixed_types="use_json"))).kept) == 2
    bad = [{"prompt": [USER], "chosen": [MESSAGES[1], told], "rejected": ANSWER}]  # nobody answers in the end
    assert validate(to_normal_form(Dataset.from_list(bad, on_mixed_types="use_json"))).reasons["bad_roles"] == 1


def test_the_same_messages_under_other_tools_or_another_system_prompt_are_another_prompt(tmp_path):
    row = {"prompt": [USER], "chosen": [MESSAGES[3]], "rejected": ANSWER}
    turned = row | {"chosen": row["rejected"], "rejected": row["chosen"]}
    system = [{"role": "system", "content": "Lie."}]
    template = {"tools": TOOLS, "chat_template_kwargs": {"enable_thinking": False}}
    given = [row, turned | {"prompt": system + row["prompt"]}, *(turned | {n: v} for n, v in template.items())]
    given += [given[2] | {"tools": json.dumps(TOOLS)}]  # as text, tools are the same tools
    write_rows(tmp_path / "pairs.jsonl", given)
    pairs = read_preferences(tmp_path / "pairs.jsonl")
    assert len(set(pairs["prompt_id"])) == 4 and pairs["prompt_id"][2] == pairs["prompt_id"][4]
    result = validate(pairs)
    assert {name: n for name, n in result.reasons.items() if n} == {"duplicate_pair": 1} and len(result.kept) == 4
    found = deduplicate(result.kept)
    assert len(found.kept) == 4 and len(set(found.clustered["cluster_id"])) == 1  # no split parts them


def test_text_of_messages_holds_parts_and_calls():
    assert message_text(MESSAGES[5]) == "Sunny." and message_text(MESSAGES[0]) == ""
    assert prompt_text([USER, MESSAGES[5]]) == f"{USER['content']}\nSunny."
    texts = {prompt_text([USER, {"role": "assistant", "tool_calls": [call(n=n)]}]) for n in range(3)}
    assert len(texts) == 3 and all("weather" in text for text in texts)


def test_calls_alone_are_no_shared_answer():
    answers = [[{"role": "assistant", "content": None, "tool_calls": [call(n=n, note="a " * 20)]}] for n in range(4)]
    sets = [[{"prompt": f"question {k}?", "chosen": answers[k], "rejected": answers[k + 1]}] for k in (0, 2)]
    given = [[row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows] for rows in sets]
    pairs = [to_normal_form(Dataset.from_list(rows, on_mixed_types="use_json")) for rows in given]
    report = contamination(pairs[0], {"e": pairs[1]})
    assert report.evaluations["e"].overlaps["response"].count == 0


def test_null_fields_are_as_good_as_absent_and_numbers_are_told_apart():
    assert canonical([{"role": "user", "name": None}]) == canonical([{"role": "user"}])
    assert len({canonical(call(n=n)) for n in (1, 1.0, True, "1")}) == 4
    assert is_blank({"role": "user", "content": " \n"}) and not is_blank(MESSAGES[1])


def test_messages_of_sharegpt_are_read():
    talk = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Hi", "weight": 1},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"n": 1}}'},
        {"from": "observation", "value": "2"},
        {"from": "gpt", "value": "Two."},
    ]
    read = read_messages("conversations", copy.deepcopy(talk))
    assert [m["role"] for m in read] == ["system", "user", "assistant", "tool", "assistant"] and read[1]["weight"] == 1
    assert read[2]["tool_calls"] == [{"type": "function", "function": {"name": "f", "arguments": {"n": 1}}}]
    assert all("from" not in m and m["role"] in ROLES for m in read)


# ---- rendering


class StrictTokenizer:
    """Refuses system messages and two user turns in a row, as some templates do; a word is a token."""

    eos_token, chat_template = "<end>", "strict"

    def __call__(self, texts, add_special_tokens):
        return {"input_ids": [text.split() for text in texts]}

    def apply_chat_template(self, messages, tokenize, tools=(), **variables):
        roles = [message["role"] for message in messages]
        if "system" in roles:
            raise TemplateError("System role not supported")
        if any(a == b == "user" for a, b in zip(roles, roles[1:], strict=False)):
            raise TemplateError("Conversation roles must alternate user/assistant")
        said = [message.get("content") + "" for message in messages]
        return " ".join([*said, *(tool["function"]["name"] for tool in tools or ()), *variables])


def chat(*prompt, **more):
    turns = [{"role": role, "content": content} for role, content in prompt]
    return {"prompt": turns, "chosen": [{"role": "assistant", "content": "a b"}], "rejected": ANSWER} | more


def test_what_a_template_refuses_is_counted_with_its_words(tmp_path):
    given = [
        chat(("user", "one")),
        chat(("system", "Be brief."), ("user", "two")),
        chat(("user", "three"), ("user", "three")),
        {**chat(("user", "four")), "chosen": [MESSAGES[0]]},
    ]
    write_rows(tmp_path / "pairs.jsonl", given)
    pairs = read_preferences(tmp_path / "pairs.jsonl", faulty="keep")
    for length in (None, 100):
        result = validate(pairs, tokenizer=StrictTokenizer(), max_length=length)
        assert result.reasons["unrenderable"] == 3 and len(result.kept) == 1
        faults = result.rejects["fault"]
        assert faults[0] == "unrenderable: row 2: TemplateError: System role not supported"
        assert "row 3" in faults[1] and "must alternate" in faults[1] and "row 4: TypeError" in faults[2]
    assert "fault" not in validate(pairs).rejects.column_names and len(validate(pairs).kept) == 4
    with pytest.raises(RenderingError, match="no chat template"):
        validate(pairs, tokenizer=type("Bare", (), {"chat_template": None})())


def test_tools_and_template_variables_count_as_tokens(tmp_path):
    row = chat(("user", "one two"))
    given = [row, row | {"tools": TOOLS * 3}, row | {"chat_template_kwargs": {"x": 1, "y": 2}}]
    write_rows(tmp_path / "pairs.jsonl", given)
    pairs = read_preferences(tmp_path / "pairs.jsonl")
    kept = {n: len(validate(pairs, tokenizer=StrictTokenizer(), max_length=n).kept) for n in (5, 6, 7, 8, 9)}
    assert kept == {5: 0, 6: 1, 7: 1, 8: 2, 9: 3}


def test_the_command_counts_what_the_template_refuses(rmtrl, tokenizer, tmp_path):
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{{ m.content }}{% endfor %}"
    )
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    write_rows(tmp_path / "pairs.jsonl", [chat(("user", "one")), chat(("system", "s"), ("user", "two"))])
    files = ("--rejects", tmp_path / "rejects.jsonl", "--tokenizer", tmp_path / "tokenizer")
    code, stdout, _ = rmtrl("data", "validate", tmp_path / "pairs.jsonl", *files, "--json")
    assert code == 0 and json.loads(stdout)["reasons"]["unrenderable"] == 1
    (reject,) = map(json.loads, (tmp_path / "rejects.jsonl").read_text().splitlines())
    assert reject["prompt"][0]["content"] == "s" and "row 2" in reject["fault"] and "System role" in reject["fault"]


@pytest.mark.parametrize("name", [*(role.title() for role in sorted(ROLES)), "USER", "System", "GPT", "Human"])
def test_speakers_are_read_in_capitals_too(name):
    (role,) = (message["role"] for message in read_messages("prompt", [{"from": name, "value": "Hi"}]))
    assert role in ROLES
