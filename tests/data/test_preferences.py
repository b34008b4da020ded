import gzip
import json
import subprocess
import sys

import pytest
from datasets import Dataset, DatasetDict, load_dataset

from rmtrl.data.preferences import last_turn_only, read_preferences, to_normal_form
from rmtrl.data.validation import validate
from rmtrl.errors import DataError

PAIR = {"prompt": "What colour is the sky?", "chosen": "Blue.", "rejected": "Green."}
HEAD = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: How are you?\n\nAssistant:"


def normal(*rows, **options):
    return to_normal_form(Dataset.from_list(list(rows)), **options)


def messages(*contents, first="user"):
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


def write_lines(path, *lines):
    text = "\n".join(lines) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


# forms


def test_standard_form_gets_names_and_nothing_made_up():
    row = normal(PAIR | {"length": 3}, source="mine")[0]
    assert row.pop("prompt_id") == normal({**PAIR, "prompt": " what COLOUR is  the sky?"})[0]["prompt_id"]
    assert row == PAIR | {"id": "0", "domain": "unknown", "source": "mine"}


def test_given_names_and_numbers_are_kept():
    given = {"id": "7", "prompt_id": "p", "domain": "sky", "source": "s", "weight": 2.0, "margin": -1.5}
    assert normal(PAIR | given)[0] == PAIR | given


def test_normal_form_read_again_is_the_same():
    once = normal(PAIR, {"prompt": "a", "chosen": "b", "rejected": "c"}, source="s")
    assert to_normal_form(once)[:] == once[:]


def test_implicit_prompt_of_text_ends_at_a_whole_word():
    row = normal({"chosen": "The sky is blueish.", "rejected": "The sky is black."})[0]
    assert (row["prompt"], row["chosen"], row["rejected"]) == ("The sky is", " blueish.", " black.")


def test_implicit_prompt_of_a_transcript_is_all_up_to_the_last_assistant():
    pairs = normal({"chosen": HEAD + " Well.", "rejected": HEAD + " Bad."})
    assert pairs[0]["prompt"] == HEAD and pairs[0]["chosen"] == " Well."
    assert "prompt_rejected" not in pairs.column_names


def test_transcripts_with_different_prompts_keep_both():
    other = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Who are you?\n\nAssistant:"
    pairs = normal({"chosen": HEAD + " x", "rejected": HEAD + " y"}, {"chosen": HEAD + " x", "rejected": other + " y"})
    assert pairs["prompt_rejected"][:] == [None, other]
    assert pairs[1]["prompt"] == HEAD and pairs[1]["rejected"] == " y"


def test_answer_in_several_turns_does_not_change_the_prompt():
    row = normal({"chosen": HEAD + " One.\n\nAssistant: Two.", "rejected": HEAD + " Three."})[0]
    assert row["prompt"] == HEAD and row["chosen"] == " One.\n\nAssistant: Two."


def test_implicit_prompt_of_messages_is_the_shared_head():
    pairs = normal({"chosen": messages("q", "a", "r", "b"), "rejected": messages("q", "a", "r", "c")})
    assert pairs[0]["prompt"] == messages("q", "a", "r")
    assert pairs[0]["chosen"] == messages("b", first="assistant")


def test_last_message_is_never_part_of_the_prompt():
    pairs = normal({"chosen": messages("q", "a"), "rejected": messages("q", "a")})
    assert pairs[0]["prompt"] == messages("q")
    assert validate(pairs).reasons["identical_candidates"] == 1


def test_messages_with_another_user_turn_are_a_mismatch():
    pairs = normal({"chosen": messages("q", "a"), "rejected": messages("p", "a")})
    assert pairs[0]["prompt_rejected"] == messages("p")
    assert validate(pairs).reasons["context_mismatch"] == 1


@pytest.mark.parametrize("prompt", ["q", messages("q")])
@pytest.mark.parametrize("repeated", [True, False])
def test_responses_as_messages_may_or_may_not_repeat_the_prompt(prompt, repeated):
    sides = [messages("q", side) if repeated else messages(side, first="assistant") for side in ("a", "b")]
    row = normal({"prompt": prompt, "chosen": sides[0], "rejected": sides[1]})[0]
    assert row["prompt"] == messages("q") and row["chosen"] == messages("a", first="assistant")


@pytest.mark.parametrize(
    ("label", "chosen", "preference"),
    [
        ("left", "L", 1.0),
        ("right", "R", 1.0),
        ("tie", "L", 0.5),
        ("abstain", "L", 0.5),
        ("0", "L", 1.0),
        ("1", "R", 1.0),
    ],
)
def test_annotation_labels(label, chosen, preference):
    row = normal(
        {"prompt_left": "p", "prompt_right": "p", "response_left": "L", "response_right": "R", "label": label}
    )[0]
    assert (row["chosen"], row["preference"]) == (chosen, preference)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "p", "response_1": "b", "response_2": "a", "preference_strength": 2}, ("p", "a", "b", 1.0, 2.0)),
        ({"prompt": "p", "response_1": "a", "response_2": "b", "preference_strength": 0}, ("p", "a", "b", 0.5, 0.0)),
        ({"history": "p", "human_ref_A": "b", "human_ref_B": "a", "labels": 0}, ("p", "a", "b", 1.0, None)),
        ({"prompt": "p", "response_0": "b", "response_1": "a", "better_response_id": 1}, ("p", "a", "b", 1.0, None)),
        ({"input": "p", "output_1": "b", "output_2": "a", "label": 2}, ("p", "a", "b", 1.0, None)),
        ({"question": "p", "response_A": "b", "response_B": "a", "label": "B>A"}, ("p", "a", "b", 1.0, None)),
    ],
)
def test_public_layouts_are_known_by_their_columns(row, expected):
    found = normal(row)[0]
    assert (
        *(found[name] for name in ("prompt", "chosen", "rejected", "preference")),
        found.get("rating_gap"),
    ) == expected


def test_helpsteer3_context_makes_message_lists():
    row = normal({"context": messages("q"), "response1": "b", "response2": "a", "overall_preference": 3})[0]
    assert row["chosen"] == messages("a", first="assistant") and row["rating_gap"] == 3


def test_nectar_pairs_the_best_answer_with_each_other():
    answers = [{"answer": "b", "rank": 2.0}, {"answer": "a", "rank": 1.0}, {"answer": "c", "rank": 3.0}]
    pairs = normal({"prompt": "p", "answers": answers})
    assert list(zip(pairs["id"], pairs["chosen"], pairs["rejected"], strict=True)) == [
        ("0-0", "a", "b"),
        ("0-1", "a", "c"),
    ]
    assert len(set(pairs["prompt_id"])) == 1


def test_columns_are_renamed_new_from_old():
    row = {"question": "q", "good": "a", "bad": "b"}
    pairs = normal(row, columns={"prompt": "question", "chosen": "good", "rejected": "bad"})
    assert pairs[0]["chosen"] == "a"
    swapped = normal(PAIR, columns={"chosen": "rejected", "rejected": "chosen"})
    assert swapped[0]["chosen"] == PAIR["rejected"]


def test_last_turn_only_keeps_ids():
    pairs = normal({"chosen": HEAD + " x", "rejected": HEAD + " y"})
    cut = last_turn_only(pairs)
    assert cut[0]["prompt"] == "\n\nHuman: How are you?\n\nAssistant:"
    assert cut["prompt_id"][:] == pairs["prompt_id"][:]


def test_last_turn_only_keeps_a_system_message():
    system = [{"role": "system", "content": "Be brief."}]
    prompt = system + messages("q", "a", "r")
    cut = last_turn_only(normal({"prompt": prompt, "chosen": "x", "rejected": "y"}))
    assert cut[0]["prompt"] == system + messages("r")


# files


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.csv.gz", "a.parquet"])
def test_every_format_reads_the_same(tmp_path, name):
    rows = [PAIR, {"prompt": "p", "chosen": "NA", "rejected": ""}]
    path = tmp_path / name
    if name.endswith(".parquet"):
        Dataset.from_list(rows).to_parquet(path)
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows, indent=1))
    elif ".csv" in name:
        write_lines(path, "prompt,chosen,rejected", *(",".join(row.values()) for row in rows))
    else:
        write_lines(path, *map(json.dumps, rows))
    pairs = read_preferences(path)
    assert pairs.select_columns(list(PAIR))[:] == Dataset.from_list(rows)[:]
    assert set(pairs["source"]) == {name}


def test_folder_is_read_by_split(tmp_path):
    write_lines(tmp_path / "train.jsonl", json.dumps(PAIR))
    write_lines(tmp_path / "test.jsonl", json.dumps(PAIR), json.dumps(PAIR))
    assert len(read_preferences(tmp_path)) == 1
    assert len(read_preferences(tmp_path, split="test")) == 2


def test_saved_dataset_is_read(tmp_path):
    DatasetDict(train=Dataset.from_list([PAIR])).save_to_disk(tmp_path / "saved")
    assert len(read_preferences(tmp_path / "saved")) == 1
    with pytest.raises(DataError, match="no split test; it has train"):
        read_preferences(tmp_path / "saved", split="test")


def test_missing_file_says_what_to_give():
    with pytest.raises(
        DataError, match="no such file or folder: pairs.jsonl; give a path or a hub id of the form owner/"
    ):
        read_preferences("pairs.jsonl")
    with pytest.raises(DataError, match="cannot be loaded from the hub"):
        read_preferences("nobody/nothing")


GOOD = json.dumps(PAIR)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([GOOD, GOOD[:40], GOOD], "row 2 is not JSON"),
        ([GOOD, "3"], "row 2 is not a JSON object"),
        ([GOOD, GOOD, GOOD.replace('"Blue."', "null")], "row 3: column chosen is null"),
        ([GOOD, GOOD.replace('"Blue."', "4")], "row 2: chosen is of type int"),
        ([GOOD, '{"prompt": "p", "rejected": "r"}'], "row 2: column chosen is null"),
        ([], "is empty"),
        (['{"text": "t", "label": 1}'], "columns text, label fit no known form.*--map new=old"),
    ],
)
def test_broken_file_names_file_and_row(tmp_path, lines, said):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=said) as caught:
        read_preferences(path)
    assert "pairs.jsonl" in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_label_names_the_row():
    row = {"left": "a", "right": "b", "prompt": "p", "label": "up"}
    with pytest.raises(DataError, match="row 1: label 'up' is none of left, right, tie, abstain"):
        normal(row)


def test_reading_imports_neither_torch_nor_trl():
    code = "import sys, rmtrl.data.preferences, rmtrl.data.validation, rmtrl.data.splits, rmtrl.data.provenance\n"
    code += "assert not {'torch', 'trl', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# real data


def test_hh_rlhf_as_counted(real_data):
    path = real_data / "hh-rlhf" / "harmless-base-test.jsonl.gz"
    pairs = read_preferences(path)
    raw = load_dataset("json", data_files=str(path), split="train")
    assert [p + c for p, c in zip(pairs["prompt"], pairs["chosen"], strict=True)] == raw["chosen"][:]
    assert len(pairs) == 2312 and len(set(pairs["prompt_id"])) == 2310
    result = validate(pairs)
    assert result.reasons["context_mismatch"] == 4 and result.reasons["empty_response"] == 4


def test_llmbar_and_judgebench_read_whole(real_data):
    assert sum(len(read_preferences(path)) for path in (real_data / "llmbar").glob("*.json")) == 419
    assert len(read_preferences(real_data / "llmbar")) == 419
    judged = read_preferences(real_data / "judgebench" / "gpt.jsonl.gz")
    assert len(judged) == 350 and "mmlu-pro-law" in judged["domain"][:]


def test_a_preference_below_one_half_swaps_the_sides():
    row = {"prompt": "p ", "chosen": "a", "rejected": "b"}
    pairs = to_normal_form(Dataset.from_list([row | {"preference": 0.2}, row | {"preference": 1.0}]))
    assert (pairs[0]["chosen"], pairs[0]["rejected"], pairs[0]["preference"]) == ("b", "a", 0.8)
    assert pairs[1]["chosen"] == "a"
    with pytest.raises(DataError, match="share from 0 to 1"):
        to_normal_form(Dataset.from_list([row | {"preference": 7.0}]))
