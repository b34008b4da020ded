"""Layouts of public sets and of people's own files: each is read as the pair that its makers mean."""

import json

import pytest
from datasets import Dataset

from rmtrl.data import layouts
from rmtrl.data.preferences import read_preferences
from rmtrl.data.validation import validate
from rmtrl.errors import DataError
from rmtrl.io import write_rows

Q, C, R = "What is two plus two?", "It is four.", "It is five."


def said(*turns):
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": roles[role], "content": content} for role, content in turns]


def shared(*turns):
    names = {"s": "system", "u": "human", "a": "gpt"}
    return [{"from": names[role], "value": content} for role, content in turns]


ONE, TALK = said(("u", Q)), said(("u", Q), ("a", C))
TEXTS = {"chosen": C, "rejected": R}
LISTS = {"chosen": said(("a", C)), "rejected": said(("a", R))}
WHOLE = {"chosen": said(("u", Q), ("a", C)), "rejected": said(("u", Q), ("a", R))}
SINGLE = {"chosen": said(("a", C))[0], "rejected": said(("a", R))[0]}
SHARED = {"chosen": shared(("a", C))[0], "rejected": shared(("a", R))[0]}
SYSTEM = said(("s", "Be brief."), ("u", Q))
EARLIER = said(("u", "Hi"), ("a", "Hello."), ("u", Q))
TRANSCRIPT = f"\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: {Q}\n\nAssistant:"

LAYOUTS = {
    # name: (row, prompt)
    "TRL standard": ({"prompt": Q, **TEXTS}, Q),
    "TRL conversational": ({"prompt": ONE, **LISTS}, ONE),
    "TRL implicit, messages (Skywork-Reward-Preference)": (WHOLE, ONE),
    "UltraFeedback binarized": ({"prompt": Q, "prompt_id": "7", **WHOLE, "messages": TALK, "score_chosen": 8.5,
                                 "score_rejected": 7.5}, ONE),
    "Tülu 3 preference mixture": ({"id": "t", "source": "tulu", "prompt": Q, **WHOLE, "chosen_rating": 4.5,
                                   "rejected_rating": 4.0, "chosen_model": "m1", "rejected_model": "m2"}, ONE),
    "orpo-dpo-mix": ({"source": "Airoboros", **WHOLE, "prompt": Q, "question": Q}, ONE),
    "dpo-mix-7k": ({"dataset": "capybara", **WHOLE, "chosen_rating": 5.0, "rejected_rating": 4.0}, ONE),
    "Argilla UltraFeedback": ({"source": "e", "instruction": Q, "chosen_response": C, "rejected_response": R,
                               "chosen_avg_rating": 5.0, "rejected_avg_rating": 4.0, "chosen_model": "m"}, Q),
    "Intel orca_dpo_pairs": ({"system": "Be brief.", "question": Q, **TEXTS}, SYSTEM),
    "orca_dpo_pairs without a system message": ({"system": "", "question": Q, **TEXTS}, Q),
    "distilabel orca": ({"system": "Be brief.", "input": Q, **TEXTS, "rating": [9, 8], "status": "unchanged"}, SYSTEM),
    "truthy-dpo": ({"id": "1", "source": "t", "system": "Be brief.", "prompt": Q, **TEXTS}, SYSTEM),
    "py-dpo": ({"prompt": Q, **TEXTS}, Q),
    "LLaMA-Factory alpaca ranking": ({"instruction": Q, "input": "", **TEXTS}, Q),
    "LLaMA-Factory alpaca ranking, input": ({"instruction": "Add.", "input": "2 2", **TEXTS}, "Add.\n\n2 2"),
    "LLaMA-Factory alpaca ranking, history": ({"instruction": Q, "history": [["Hi", "Hello."]], **TEXTS}, EARLIER),
    "LLaMA-Factory alpaca ranking, all": (
        {"instruction": Q, "input": "", "system": "Be brief.", "history": [["Hi", "Hello."]], **TEXTS},
        SYSTEM[:1] + EARLIER,
    ),
    "LLaMA-Factory sharegpt ranking": ({"conversations": shared(("u", Q)), **SHARED}, ONE),
    "LLaMA-Factory sharegpt ranking, system": (
        {"conversations": shared(("u", Q)), "system": "Be brief.", "tools": "[]", **SHARED}, SYSTEM),
    "LLaMA-Factory openai ranking": ({"messages": SYSTEM, **SINGLE}, SYSTEM),
    "ShareGPT DPO, sides in full": (
        {"chosen": shared(("u", Q), ("a", C)), "rejected": shared(("u", Q), ("a", R))}, ONE),
    "ShareGPT DPO, text sides": ({"conversations": shared(("s", "Be brief."), ("u", Q)), **TEXTS}, SYSTEM),
    "messages and one message a side": ({"messages": ONE, **SINGLE}, ONE),
    "messages and lists": ({"messages": EARLIER, **LISTS}, EARLIER),
    "messages and text": ({"messages": EARLIER, **TEXTS}, EARLIER),
    "messages that hold the chosen answer": ({"messages": TALK, **LISTS}, ONE),
    "messages and whole conversations": ({"messages": TALK, **WHOLE}, ONE),
    "conversation (Capybara)": ({"conversation": ONE, **LISTS}, ONE),
    "history as messages": ({"history": EARLIER[:2], "prompt": Q, **TEXTS}, EARLIER),
    "query": ({"query": Q, **TEXTS}, Q),
    "question": ({"question": Q, **TEXTS}, Q),
    "one message a side": ({"prompt": Q, **SINGLE}, ONE),
    "the same system message twice": ({"system": "Be brief.", "prompt": SYSTEM, **LISTS}, SYSTEM),
    "HelpSteer2": ({"prompt": Q, "response_1": C, "response_2": R, "preference_strength": -2}, Q),
    "HelpSteer3": ({"context": ONE, "response1": C, "response2": R, "overall_preference": -2}, ONE),
    "SHP": ({"history": Q, "human_ref_A": C, "human_ref_B": R, "labels": 1}, Q),
    "PKU-SafeRLHF": ({"prompt": Q, "response_0": R, "response_1": C, "better_response_id": 1}, Q),
    "Nectar": ({"prompt": Q, "answers": [{"answer": C, "rank": 1.0}, {"answer": R, "rank": 2.0}]}, Q),
    "LLMBar": ({"input": Q, "output_1": C, "output_2": R, "label": 1}, Q),
    "JudgeBench": ({"question": Q, "response_A": R, "response_B": C, "label": "B>A"}, Q),
    "messages as JSON text": (
        {"prompt": json.dumps(ONE), **{name: json.dumps(side) for name, side in LISTS.items()}}, ONE),
    "whole conversations as JSON text": ({name: json.dumps(side) for name, side in WHOLE.items()}, ONE),
    "ShareGPT as JSON text": (
        {"conversations": json.dumps(shared(("u", Q))),
         **{name: json.dumps([side]) for name, side in SHARED.items()}}, ONE),
    "HelpSteer3, context as JSON text": (
        {"context": json.dumps(ONE), "response1": C, "response2": R, "overall_preference": -2}, ONE),
    "transcripts under a system message": (
        {"system": "Be brief.", **{name: f"{TRANSCRIPT} {side}" for name, side in TEXTS.items()}},
        SYSTEM[:1] + EARLIER),
    "a transcript as prompt under a system message": (
        {"system": "Be brief.", "prompt": TRANSCRIPT, "chosen": f" {C}", "rejected": f" {R}"}, SYSTEM[:1] + EARLIER),
    "transcripts after a history": (
        {"history": [["Hi", "Hello."]],
         **{name: f"\n\nHuman: {Q}\n\nAssistant: {side}" for name, side in TEXTS.items()}}, EARLIER),
    "one message a side as JSON text": (
        {"prompt": Q, **{name: json.dumps(side) for name, side in SINGLE.items()}}, ONE),
    "one message a side as JSON text, ShareGPT": (
        {"prompt": json.dumps(shared(("u", Q))), **{name: json.dumps(side) for name, side in SHARED.items()}}, ONE),
    "messages as Python prints them": (
        {"prompt": repr(ONE), **{name: repr(side) for name, side in LISTS.items()}}, ONE),
    "whole conversations as Python prints them": ({name: repr(side) for name, side in WHOLE.items()}, ONE),
    "ShareGPT as Python prints it": (
        {"conversations": repr(shared(("u", Q))), **{name: repr([side]) for name, side in SHARED.items()}}, ONE),
    "history as JSON text": ({"history": '[["Hi", "Hello."]]', "prompt": Q, **TEXTS}, EARLIER),
    "history as Python prints it": ({"history": "[('Hi', 'Hello.')]", "prompt": Q, **TEXTS}, EARLIER),
    "history of lists as Python prints it": ({"history": "[['Hi', 'Hello.']]", "prompt": Q, **TEXTS}, EARLIER),
    "an empty history as JSON text": ({"history": "[]", "prompt": Q, **TEXTS}, Q),
    "history as JSON text of messages": ({"history": json.dumps(EARLIER[:2]), "prompt": Q, **TEXTS}, EARLIER),
    "system_prompt": ({"system_prompt": "Be brief.", "prompt": Q, **TEXTS}, SYSTEM),
    "prompt and input": ({"prompt": "Add.", "input": "2 2", **TEXTS}, "Add.\n\n2 2"),
    "question and input": ({"question": "Add.", "input": "2 2", "left": R, "right": C, "label": "right"},
                           "Add.\n\n2 2"),
    "prompt that holds its input": ({"prompt": "Add: 2 2", "input": "2 2", **TEXTS}, "Add: 2 2"),
    "prompt beside an instruction and its input": ({"prompt": Q, "instruction": "Add.", "input": "2 2", **TEXTS}, Q),
    "prompt of messages beside an input": ({"prompt": ONE, "input": "2 2", **LISTS}, ONE),
    "annotation": ({"question": Q, "left": R, "right": C, "label": "right"}, Q),
    "annotation by letters": ({"question": Q, "left": R, "right": C, "label": "B"}, Q),
    "two answers and a winner": ({"prompt": Q, "response_a": R, "response_b": C, "winner": "B"}, Q),
    "two answers and a label": ({"question": Q, "answer_a": C, "answer_b": R, "label": " a "}, Q),
    "two answers, the model preferred": ({"prompt": Q, "response_A": R, "response_B": C, "preferred": "model_b"}, Q),
    "JudgeBench by letters": ({"question": Q, "response_A": C, "response_B": R, "label": "A"}, Q),
    "annotation with two prompts": (
        {"prompt_left": Q, "prompt_right": Q, "response_left": C, "response_right": R, "label": "left"}, Q),
}  # fmt: skip


def test_how_many_layouts():
    assert len(LAYOUTS) == 70


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_read_as_its_makers_mean_it(tmp_path, name):
    row, prompt = LAYOUTS[name]
    write_rows(tmp_path / "pairs.jsonl", [row])
    result = validate(read_preferences(tmp_path / "pairs.jsonl"))
    assert len(result.kept) == 1, (result.reasons, result.rejects[:])
    (pair,) = result.kept
    assert pair["prompt"] == prompt
    sides = [pair["chosen"], pair["rejected"]]
    assert sides == ([C, R] if isinstance(prompt, str) else [LISTS["chosen"], LISTS["rejected"]])
    write_rows(tmp_path / "again.jsonl", result.kept)
    assert read_preferences(tmp_path / "again.jsonl")[:] == result.kept[:]


def notes(path):
    return validate(read_preferences(path, faulty="keep")).warnings


def read(path, *rows, **options):
    write_rows(path, rows)
    return read_preferences(path, faulty="keep", **options)


def test_text_becomes_messages_throughout_where_a_row_has_a_system_message(tmp_path):
    rows = [{"prompt": Q, "system": system, **TEXTS} for system in ("", "Be brief.", None)]
    pairs = read(tmp_path / "pairs.jsonl", *rows, {"prompt": Q, **TEXTS})
    assert [len(prompt) for prompt in pairs["prompt"]] == [1, 2, 1, 1] and "system" not in pairs.column_names
    assert len(read_preferences(tmp_path / "pairs.jsonl")) == 4


def test_rows_under_different_system_prompts_neither_repeat_nor_contradict_each_other(tmp_path):
    turned = {"chosen": R, "rejected": C}
    given = [("Be right.", TEXTS), ("Be wrong.", turned), ("Be short.", TEXTS)]
    pairs = read(tmp_path / "pairs.jsonl", *({"system": system, "question": Q, **sides} for system, sides in given))
    result = validate(pairs)
    assert len(result.kept) == 3 and len(set(pairs["prompt_id"])) == 3


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_messages_in_the_cells_of_a_table_are_read_and_other_json_stays_text(tmp_path, suffix):
    cells = {"prompt": json.dumps(ONE), **{name: json.dumps(side) for name, side in LISTS.items()}}
    getattr(Dataset.from_list([cells]), f"to_{suffix}")(tmp_path / f"pairs.{suffix}")
    (pair,) = read_preferences(tmp_path / f"pairs.{suffix}")
    assert pair["prompt"] == ONE and pair["chosen"] == LISTS["chosen"]
    for text in ('["a", "b"]', '[{"a": 1}]', "[]", "[{", json.dumps(ONE)):  # an answer of one side alone is an answer
        (pair,) = read(tmp_path / "pairs.jsonl", {"prompt": Q, "chosen": text, "rejected": R})
        assert (pair["prompt"], pair["chosen"], pair["rejected"]) == (Q, text, R)


def test_text_that_nothing_reads_is_named(tmp_path, caplog):
    row = {"prompt": Q, **TEXTS, "notes": "two words", "tag": "word", "language": "en GB", "n": 3}
    pairs = read(tmp_path / "pairs.jsonl", row)
    (note,) = notes(tmp_path / "pairs.jsonl")
    assert note.startswith("pairs.jsonl, unread columns: notes (text;") and not caplog.records
    assert pairs[0]["notes"] == "two words"  # it rides along all the same
    read_preferences(tmp_path / "pairs.jsonl")
    assert [record.getMessage() for record in caplog.records] == [note]


def test_single_words_are_text_too_but_for_the_names_of_bookkeeping(tmp_path):
    own = {"asked": "Why?", "tag": "word", "model": "m", "chosen_model": "m", "id_of_item": "x", "split": "a",
           "category": "chat", "origin_id": "7"}  # fmt: skip
    read(tmp_path / "pairs.jsonl", {"prompt": Q, **TEXTS} | own)
    (note,) = notes(tmp_path / "pairs.jsonl")
    assert note.startswith("pairs.jsonl, unread columns: asked, id_of_item (text;")
    sides = {"chosen": "The sky is blue.", "rejected": "The sky is red."}
    result = validate(read(tmp_path / "pairs.jsonl", sides | {"asked": "Sky?"}))
    assert result.reasons["missing_field"] == 1 and "in asked; name the prompt with" in result.rejects["fault"][0]


def test_a_prompt_is_made_up_only_where_the_file_has_no_other_text(tmp_path):
    sides = {"chosen": "The sky is blue.", "rejected": "The sky is red."}
    pairs = read(tmp_path / "pairs.jsonl", sides | {"model": "m"})
    assert pairs["prompt"][:] == ["The sky is"] and "has no prompts" in notes(tmp_path / "pairs.jsonl")[0]
    for rows in ([sides | {"asked": Q}, sides], [sides, sides | {"asked": Q}]):  # of the file, not of the row
        result = validate(read(tmp_path / "pairs.jsonl", *rows))
        assert result.reasons["missing_field"] == 2 and "in asked; name the prompt with" in result.rejects["fault"][0]
        with pytest.raises(DataError, match="--map prompt=COLUMN"):
            read_preferences(tmp_path / "pairs.jsonl")
        assert read(tmp_path / "pairs.jsonl", rows[0] | {"asked": Q}, columns={"prompt": "asked"})["prompt"][:] == [Q]


def test_transcripts_are_no_made_up_prompts(tmp_path):
    head = "\n\nHuman: Hi\n\nAssistant:"
    read(tmp_path / "pairs.jsonl", {"chosen": f"{head} a", "rejected": f"{head} b", "notes": "a note"})
    assert [note for note in notes(tmp_path / "pairs.jsonl") if "no prompts" in note] == []


def test_real_sets_are_read_whole_and_say_what_they_do_not_read(real_data):
    found = {}
    for path in ("hh-rlhf/harmless-base-test.jsonl.gz", "llmbar", "judgebench/gpt.jsonl.gz",
                 "pandalm/testset-v1-first500.json"):  # fmt: skip
        result = validate(read_preferences(real_data / path, faulty="keep"))
        found[path.split("/")[0]] = (result.n, result.warnings)
    assert {name: n for name, (n, _) in found.items()} == {
        "hh-rlhf": 2312, "llmbar": 419, "judgebench": 350, "pandalm": 500}  # fmt: skip
    assert not any("no prompts" in note for _, notes in found.values() for note in notes)


def test_a_file_of_which_no_row_can_be_used_is_one_line(rmtrl, tmp_path):
    rejects = tmp_path / "rejects.jsonl"
    for rows, why in (
        ([{"prompt": Q, "chosen": C, "rejected": C}] * 2, "2 identical_candidates"),
        (
            [{"prompt": Q, "chosen": C, "rejected": 3, "more": "some text"}],
            "1 unreadable; the first: unreadable: row 1",
        ),
        ([{"asked": Q, **TEXTS}], "1 missing_field; the first: missing_field: row 1: no prompt, but text"),
    ):
        write_rows(tmp_path / "pairs.jsonl", rows)
        files = ("--out", tmp_path / "out.jsonl", "--rejects", rejects)
        code, stdout, stderr = rmtrl("data", "validate", tmp_path / "pairs.jsonl", *files)
        assert code == 2 and stdout == "" and len(stderr.splitlines()) == 1 and f"can be used: {why}" in stderr
        assert ("unread columns: more (text" in stderr) == ("more" in rows[0])
        assert not (tmp_path / "out.jsonl").exists() and len(rejects.read_text().splitlines()) == len(rows)


@pytest.mark.parametrize("text", ['{"a": 1}', '{"role": "user"}', "{'role': 'user', 'content': ", "[{'a': 1}]"])
def test_other_json_on_both_sides_stays_text(tmp_path, text):
    (pair,) = read(tmp_path / "pairs.jsonl", {"prompt": Q, "chosen": text, "rejected": text + " "})
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == (Q, text, text + " ")


@pytest.mark.parametrize("column", ["messages", "conversations", "conversation", "talk"])
@pytest.mark.parametrize("talk", [EARLIER, shared(("u", "good day"))])
@pytest.mark.parametrize("pair", [{"prompt": Q, **TEXTS}, {"prompt": ONE, **LISTS}])
def test_messages_beside_a_prompt_ride_along_and_are_named(rmtrl, tmp_path, column, talk, pair):
    write_rows(tmp_path / "pairs.jsonl", [pair | {column: talk}])
    code, _, stderr = rmtrl("data", "validate", tmp_path / "pairs.jsonl", "--out", tmp_path / "out.jsonl")
    (row,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert code == 0 and row[column] == talk and f"unread columns: {column} (text" in stderr


@pytest.mark.parametrize("prompt", ["Another question?", said(("u", "Another question?"))])
@pytest.mark.parametrize("sides", [WHOLE, {name: repr(side) for name, side in WHOLE.items()}])
def test_a_prompt_that_whole_conversations_contradict_is_a_mismatch(tmp_path, prompt, sides):
    result = validate(read(tmp_path / "pairs.jsonl", {"prompt": prompt, **sides}, {"prompt": Q.upper(), **WHOLE}))
    assert result.reasons["context_mismatch"] == 1 and result.kept["prompt"][:] == [ONE]


@pytest.mark.parametrize("pairs_of_two", [("prompt", "input"), ("question", "input"), ("system_prompt", "prompt")])
def test_rows_that_differ_in_a_part_of_the_prompt_do_not_contradict_each_other(tmp_path, pairs_of_two):
    first, second = pairs_of_two
    rows = [{first: a, second: b, **sides} for a, b, sides in (
        ("Do.", "x", TEXTS), ("Do.", "y", {"chosen": R, "rejected": C}), ("Be.", "x", {"chosen": R, "rejected": C}),
    )]  # fmt: skip
    assert len(validate(read(tmp_path / "pairs.jsonl", *rows)).kept) == 3


@pytest.mark.parametrize("column", ["fault", "reason"])
def test_columns_named_as_ours_ride_along(rmtrl, tmp_path, column):
    own = {column: "engine light is on"}
    write_rows(
        tmp_path / "pairs.jsonl", [{"prompt": Q, **TEXTS} | own, {"prompt": Q, "chosen": 3, "rejected": R} | own]
    )
    files = ("--out", tmp_path / "out.jsonl", "--rejects", tmp_path / "rejects.jsonl")
    code, _, stderr = rmtrl("data", "validate", tmp_path / "pairs.jsonl", *files)
    (kept,), (reject,) = (map(json.loads, file.read_text().splitlines()) for file in files[1::2])
    assert code == 0 and kept[column] == own[column] and f"unread columns: {column} (text" in stderr
    assert reject[f"{column}_given"] == own[column]
    assert reject["reason"] == "unreadable" and reject["fault"].startswith("unreadable: row 2")
    write_rows(tmp_path / "pairs.jsonl", [reject | {"prompt": Q, **TEXTS}, kept])
    assert len(read_preferences(tmp_path / "pairs.jsonl")) == 2


# ---- labels


def mission(id, chosen="A", rejected="B", right="p", label="chosen"):
    return {"id": id, "prompt_left": "p", "prompt_right": right, "chosen": chosen, "rejected": rejected,
            "label": label}  # fmt: skip


FOUR = [mission("a"), mission("b", rejected="A"), mission("c", right="q"), mission("d", label="tie")]


@pytest.mark.parametrize("good", ["chosen", "left", "Chosen", 1, 0])
@pytest.mark.parametrize("other", ["tie", "abstain"])
def test_one_good_row_and_one_of_each_fault(rmtrl, tmp_path, good, other):
    rows = [row | {"label": other if row["label"] == "tie" else good} for row in FOUR]
    write_rows(tmp_path / "four.jsonl", rows)
    code, stdout, _ = rmtrl("data", "validate", tmp_path / "four.jsonl", "--out", tmp_path / "out.jsonl", "--json")
    counts = {reason: n for reason, n in json.loads(stdout)["reasons"].items() if n}
    assert code == 0 and counts == {"identical_candidates": 1, "context_mismatch": 1, "tie_or_abstention": 1}
    (kept,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert (kept["id"], kept["prompt"], kept["chosen"], kept["rejected"]) == ("a", "p", "A", "B")


@pytest.mark.parametrize("label", ["rejected", "right"])
def test_a_label_for_the_rejected_side_turns_the_pair_once(tmp_path, label):
    pairs = read(tmp_path / "pairs.jsonl", mission("a", label=label), mission("b", right="q", label=label))
    assert (pairs["chosen"][0], pairs["rejected"][0]) == ("B", "A")
    assert (pairs["prompt"][1], pairs["prompt_rejected"][1]) == ("q", "p")  # each side keeps its prompt
    write_rows(tmp_path / "again.jsonl", pairs)
    assert read_preferences(tmp_path / "again.jsonl")["chosen"][:] == ["B", "B"]


def test_numbers_that_may_mean_either_side_are_not_read(tmp_path):
    path = tmp_path / "pairs.jsonl"
    result = validate(read(path, mission("a", label=1), mission("b", label=0), mission("c")))
    assert result.kept["id"][:] == ["c"] and "label holds 0, 1 beside" in result.rejects["fault"][0]
    with pytest.raises(DataError, match="--map preference=label where 1 means chosen"):
        read_preferences(path)
    assert read_preferences(path, columns={"preference": "label"}, faulty="keep")["chosen"][:2] == ["A", "B"]


def side_by_side(label):
    return {"prompt": "p", "left": "A", "right": "B", "label": label}


@pytest.mark.parametrize("codes", [(1, 2), (0, 1, 2), (-1, 0, 1), ("1", "2"), (1.0, 2.0), (1, 0.5)])
def test_zero_and_one_are_read_only_where_no_other_number_stands_in_the_column(tmp_path, codes):
    for order in (codes, codes[::-1]):
        rows = [side_by_side(code) for code in order]
        result = validate(read(tmp_path / "pairs.jsonl", *rows, side_by_side("left")))
        assert result.reasons["unreadable"] == len(codes) and len(result.kept) == 1
        assert all("not 0 (left) and 1 (right) alone" in fault for fault in result.rejects["fault"])
        with pytest.raises(DataError, match="not 0 .left. and 1 .right. alone"):
            read_preferences(tmp_path / "pairs.jsonl")


def test_zero_and_one_alone_are_left_and_right(tmp_path):
    rows = [side_by_side(label) for label in (0, 1, "0", "1", 1.0, "tie", "left")]
    pairs = read(tmp_path / "pairs.jsonl", *rows)
    assert "".join(pairs["chosen"]) == "ABABBAA" and pairs["preference"][5] == 0.5


def test_a_label_of_another_kind_is_the_users_own(tmp_path):
    rows = [{"prompt": Q, **TEXTS, "label": label} for label in ("safe", 3, None)]
    pairs = read(tmp_path / "pairs.jsonl", *rows)
    assert pairs["chosen"][:] == [C, C, C] and pairs["label"][:] == ["safe", 3, None]


def test_a_label_that_is_missing_is_a_missing_field(tmp_path):
    result = validate(read(tmp_path / "pairs.jsonl", mission("a"), mission("b", label=None)))
    assert result.reasons["missing_field"] == 1 and result.kept["id"][:] == ["a"]


FORMS = {
    "left and right": {"prompt": Q, "left": C, "right": R, "label": "left"},
    "chosen and rejected": {"prompt": Q, **TEXTS, "label": "chosen"},
    "two prompts": mission("a"),
    **{name: LAYOUTS[name][0] for name in (
        "HelpSteer2", "HelpSteer3", "SHP", "PKU-SafeRLHF", "LLMBar", "JudgeBench")},
}  # fmt: skip


@pytest.mark.parametrize("blank", ["", " ", None])
@pytest.mark.parametrize("name", FORMS)
def test_a_blank_label_is_a_missing_field(tmp_path, name, blank):
    row = FORMS[name]
    judge = next(n for n in row if n in ("label", "labels", "preference_strength", "overall_preference",
                                         "better_response_id"))  # fmt: skip
    result = validate(read(tmp_path / "pairs.jsonl", row, row | {judge: blank}))
    assert result.reasons["missing_field"] == 1 and len(result.kept) == 1


def test_a_label_beside_another_verdict_rides_along(tmp_path):
    row = {"prompt": Q, "response_1": C, "response_2": R, "preference_strength": -2, "label": "left"}
    assert read(tmp_path / "pairs.jsonl", row)["label"][:] == ["left"]


@pytest.mark.parametrize("other", ["B", "2", 2, True, "better"])
def test_beside_a_verdict_another_value_of_label_is_unreadable(tmp_path, other):
    row = {"prompt": Q, **TEXTS}
    for word in ("left", "right", "Chosen", "rejected", "tie", "abstain"):
        rows = [row | {"label": label} for label in (other, word, other)]
        for order in (rows, rows[::-1]):
            result = validate(read(tmp_path / "pairs.jsonl", *order), ties="keep")
            assert result.reasons["unreadable"] == 2
            assert "is none of chosen, left" in "".join(filter(None, result.rejects["fault"]))
            with pytest.raises(DataError, match="is none of chosen, left"):
                read_preferences(tmp_path / "pairs.jsonl")


@pytest.mark.parametrize("labels", [("A", "B"), (1, 2), ("1", "0"), (True, False), ("safe", "not safe")])
def test_a_label_without_a_verdict_rides_along_and_is_named(tmp_path, labels):
    pairs = read(tmp_path / "pairs.jsonl", *({"prompt": Q, **TEXTS, "label": label} for label in labels))
    assert pairs["chosen"][:] == [C, C] and pairs["label"][:] == list(labels)
    (note,) = notes(tmp_path / "pairs.jsonl")
    assert note.startswith("pairs.jsonl: label is not read")


@pytest.mark.parametrize(("code", "side"), [(0, "left"), (1, "right"), ("1", "right"), (1.0, "right")])
def test_one_number_alone_is_read_and_said(tmp_path, code, side):
    read(tmp_path / "pairs.jsonl", side_by_side(code), side_by_side("tie"), side_by_side(code))
    (note,) = [note for note in notes(tmp_path / "pairs.jsonl") if "label" in note]
    assert f"every number in label is {float(code):g}, read as {side}" in note and "write left, right or tie" in note
    read(tmp_path / "pairs.jsonl", side_by_side(0), side_by_side(1))
    assert not [note for note in notes(tmp_path / "pairs.jsonl") if "label" in note]


def test_a_column_that_a_declared_set_names_is_read(tmp_path, monkeypatch):
    declared = layouts._declared("one", "two", ["won"], outcomes={"1": 1.0, "2": 0.0}, domain="field")
    monkeypatch.setitem(layouts.LAYOUTS, "declared", declared)
    row = {"prompt": Q, "one": "yes", "two": "no", "won": "1", "field": "law", "more": "text"}
    pairs = read(tmp_path / "pairs.jsonl", row)
    (note,) = notes(tmp_path / "pairs.jsonl")
    assert pairs["domain"][:] == ["law"] and "unread columns: more (text" in note and "field" not in pairs.column_names
