import gzip
import json
import subprocess
import sys

import pandas as pd
import pytest
from datasets import Dataset, DatasetDict, load_dataset

from rmtrl.data import loading as files_of
from rmtrl.data.preferences import last_turn_only, read_preferences, to_normal_form
from rmtrl.data.validation import validate
from rmtrl.errors import DataError, UsageError

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
    assert row == PAIR | {"id": "0", "domain": "unknown", "source": "mine", "length": 3}


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


def pandalm(*votes, **more):
    row = {"idx": 7, "instruction": "Shorten.", "input": "A long text.", "response1": "b", "response2": "a"}
    return row | {f"annotator{number}": vote for number, vote in enumerate(votes, 1)} | more


@pytest.mark.parametrize(
    ("votes", "chosen", "preference"),
    [
        ((1, 1, 1), "b", 1.0),
        ((2, 2, 0), "a", 5 / 6),
        ((1, 2, 2), "a", 2 / 3),
        ((0, 1, 2), "b", 0.5),
        ((0, 0, 1), "b", 2 / 3),
    ],
)
def test_pandalm_votes_become_a_share(votes, chosen, preference):
    row = normal(pandalm(*votes))[0]
    assert (row["id"], row["prompt"], row["chosen"]) == ("7", "Shorten.\n\nA long text.", chosen)
    assert row["preference"] == pytest.approx(preference) and row["weight"] == 3
    assert normal(pandalm(*votes, input=""))[0]["prompt"] == "Shorten."


def test_pandalm_knows_no_fourth_vote():
    with pytest.raises(DataError, match="label '3' is none of 1, 2, 0"):
        normal(pandalm(1, 2, 3))


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


@pytest.mark.parametrize(
    "name",
    ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.csv.gz", "a.parquet", "a.tsv", "a.tsv.gz", "semicolons.csv"],
)
def test_every_format_reads_the_same(tmp_path, name):
    rows = [PAIR, {"prompt": "p", "chosen": "NA", "rejected": ""}]
    path = tmp_path / name
    if name.endswith(".parquet"):
        Dataset.from_list(rows).to_parquet(path)
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows, indent=1))
    elif ".csv" in name:
        mark = ";" if "semicolons" in name else ","
        write_lines(path, f"prompt{mark}chosen{mark}rejected", *(mark.join(row.values()) for row in rows))
    elif ".tsv" in name:
        write_lines(path, "prompt\tchosen\trejected", *("\t".join(row.values()) for row in rows))
    else:
        write_lines(path, *map(json.dumps, rows))
    pairs = read_preferences(path)
    assert pairs.select_columns(list(PAIR))[:] == files_of.load_rows(path)[:] == Dataset.from_list(rows)[:]
    assert set(pairs["source"]) == {name}


def test_the_last_suffix_counts_in_any_case(tmp_path):
    write_lines(tmp_path / "from.csv.JSONL", json.dumps(PAIR))
    assert read_preferences(tmp_path / "from.csv.JSONL")[0]["chosen"] == PAIR["chosen"]


def test_folder_is_read_by_split(tmp_path):
    write_lines(tmp_path / "train.jsonl", json.dumps(PAIR))
    write_lines(tmp_path / "test.jsonl", json.dumps(PAIR), json.dumps(PAIR))
    assert len(read_preferences(tmp_path)) == 1
    assert len(read_preferences(tmp_path, split="test")) == 2


@pytest.mark.parametrize("stray", ["train_x.py", "test_notes.txt", "README.md", "test.md5", "scripts/test/run.py"])
@pytest.mark.parametrize("data", ["pairs.jsonl", "pairs.csv", "pairs.parquet", "part.jsonl.gz"])
def test_a_stray_file_in_a_folder_hides_no_data(tmp_path, data, stray, caplog, capfd):
    (tmp_path / stray).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / stray).write_text("hi\n")
    _write_pairs(tmp_path / data, PAIR)
    assert [row["chosen"] for row in read_preferences(tmp_path)] == [PAIR["chosen"]]
    assert "Repo card" not in caplog.text + capfd.readouterr().err
    with pytest.raises(DataError, match="no split test; it has train"):
        read_preferences(tmp_path, split="test")


def _write_pairs(path, row):
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(json.dumps(row).encode()))
    elif "json" in path.suffix:
        path.write_text(json.dumps(row))
    else:
        frame = pd.DataFrame([row])
        frame.to_csv(path, index=False) if path.suffix == ".csv" else frame.to_parquet(path)


@pytest.mark.parametrize("names", [("a.jsonl", "b.csv"), ("a.csv", "b.json", "c.jsonl"), ("train.jsonl", "train.csv")])
def test_a_folder_of_text_in_two_formats_is_read_whole(tmp_path, names):
    for name in names:
        _write_pairs(tmp_path / name, PAIR)
    assert len(read_preferences(tmp_path)) == len(names)


@pytest.mark.parametrize("names", [("a.jsonl", "b.parquet"), ("a.csv", "b.parquet"), ("train.parquet", "train.jsonl")])
def test_a_folder_with_tables_and_text_names_what_would_be_left_out(tmp_path, names):
    for name in names:
        _write_pairs(tmp_path / name, PAIR)
    with pytest.raises(DataError, match=rf"{tmp_path.name} holds files of .*(a|b|train)\.\w+ would be left out"):
        read_preferences(tmp_path)


def test_a_folder_whose_readme_names_its_files_is_read_by_it(tmp_path):
    _write_pairs(tmp_path / "a.jsonl", PAIR), _write_pairs(tmp_path / "b.jsonl", PAIR)
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: one\n  data_files: b.jsonl\n---\nhi\n")
    assert len(read_preferences(tmp_path)) == len(read_preferences(tmp_path, name="one")) == 1


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


def test_a_folder_without_data_is_one_quick_line(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "notes.txt").write_text("")
    monkeypatch.setattr(files_of, "load_dataset_builder", None)  # it looks at every file for minutes
    with pytest.raises(DataError, match="holds no file of a known format; wanted .jsonl"):
        read_preferences(tmp_path)


GOOD = json.dumps(PAIR)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([GOOD, GOOD[:40], GOOD], "row 2 is not JSON"),
        ([GOOD, "", " \t", "3"], "row 2 is not a JSON object"),
        ([GOOD, GOOD, GOOD.replace('"Blue."', "null")], "row 3: column chosen is null or absent"),
        ([GOOD, GOOD.replace('"Blue."', "4")], "row 2: chosen is of type int"),
        ([GOOD, '{"prompt": "p", "rejected": "r"}'], "row 2: column chosen is null or absent"),
        ([], "is empty"),
        (["", "  "], "is empty"),
        (['{"text": "t", "label": 1}'], "columns text, label fit no known form.*--map new=old"),
        (["[", GOOD + ",", GOOD + ",", "["], r"a list that is not JSON \(.*line 4"),
        (["\x00\x01PK", "\x02"], "row 1 is not JSON"),
    ],
)
def test_broken_file_names_file_and_row(tmp_path, lines, said):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=said) as caught:
        read_preferences(path)
    assert "pairs.jsonl" in str(caught.value) and "\n" not in str(caught.value)


# rows that cannot be read


def kept_faults(path, **options):
    pairs = read_preferences(path, faulty="keep", **options)
    return pairs["fault"][:] if "fault" in pairs.column_names else [None] * len(pairs)


def said(role, content):
    return [{"role": role, "content": content}]


TALK = json.dumps({"prompt": said("user", "q"), "chosen": said("assistant", "a"), "rejected": said("assistant", "b")})


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (GOOD[:40], "unreadable: row 2 is not JSON"),
        (GOOD + GOOD, "unreadable: row 2 is not JSON"),
        ("[1, 2]", "unreadable: row 2 is not a JSON object"),
        ("null", "unreadable: row 2 is not a JSON object"),
        ("[" * 5000, "unreadable: row 2 is not JSON"),
        ("9" * 5000, "unreadable: row 2 is not JSON"),
        (GOOD.replace("sky", "\x01"), "unreadable: row 2 is not JSON"),
        (GOOD.replace("sky", "\x00"), "unreadable: row 2 is not JSON"),
        (GOOD.replace("sky", "\\ud800"), "unreadable: row 2 holds half of a surrogate pair"),
        (GOOD.replace("rejected", "chosen"), "unreadable: row 2 is not JSON that can be read ('chosen' stands twice"),
        (GOOD.replace('"Blue."', "true"), "unreadable: row 2: chosen is of type bool"),
        (GOOD.replace('"Blue."', '["Blue."]'), "unreadable: row 2: chosen is of type list"),
        (GOOD.replace('"Blue."', '{"a": [{}]}'), "unreadable: row 2: chosen is of type dict"),
        (GOOD[:-1] + ', "preference": 7}', "unreadable: row 2: preference is 7"),
        (GOOD[:-1] + ', "preference": NaN}', "unreadable: row 2: preference is nan"),
        (GOOD[:-1] + ', "margin": "wide"}', "unreadable: row 2: margin is of type str"),
        (GOOD[:-1] + ', "margin": true}', "unreadable: row 2: margin is of type bool"),
        (GOOD[:-1] + ', "a\\u0000": 1}', "unreadable: row 2: the name of column 'a\\x00' holds a null character"),
        (TALK, "unreadable: row 2: text and message lists are mixed"),
        (GOOD.replace('"Blue."', "null"), "missing_field: row 2: column chosen is null or absent"),
        ('{"prompt": "p", "rejected": "r"}', "missing_field: row 2: column chosen is null or absent"),
        ('{"chosen": "c", "rejected": "r"}', "missing_field: row 2: column prompt is null or absent"),
        ("{}", "missing_field: row 2"),
    ],
    ids=lambda value: value[:60],
)
def test_a_row_that_cannot_be_read_stands_there_with_its_fault(tmp_path, line, fault):
    path = write_lines(tmp_path / "pairs.jsonl", GOOD, line, GOOD)
    pairs = read_preferences(path, faulty="keep")
    assert pairs["fault"][0] is pairs["fault"][2] is None
    assert pairs["fault"][1].startswith(fault)
    assert pairs[1]["prompt"] is pairs[1]["chosen"] is pairs[1]["rejected"] is None
    assert validate(pairs).rejects["reason"][:].count(fault.split(":")[0]) == 1
    with pytest.raises(DataError, match="row 2"):
        read_preferences(path)


def test_what_the_last_row_says_counts_for_the_first(tmp_path):
    plain = [json.dumps(PAIR | {"own": number}) for number in range(300)]
    (tmp_path / "pairs.jsonl").write_text(
        "\n".join([*plain, json.dumps(PAIR | {"own": "text", "system": "Be kind."})])
    )
    pairs = read_preferences(tmp_path / "pairs.jsonl")
    assert pairs[0]["prompt"] == said("user", PAIR["prompt"]) and pairs[0]["own"] == 0
    assert pairs[300]["prompt"][0] == said("system", "Be kind.")[0] and pairs[300]["own"] == "text"


def test_a_clean_file_has_no_fault_column(tmp_path):
    path = write_lines(tmp_path / "pairs.jsonl.gz", GOOD, GOOD)
    assert read_preferences(path, faulty="keep")[:] == read_preferences(path)[:]
    assert "fault" not in read_preferences(path, faulty="keep").column_names


@pytest.mark.parametrize(("lines", "faults"), [([GOOD, TALK, TALK], [0]), ([TALK, GOOD], [1]), ([GOOD, TALK], [1])])
def test_the_form_of_most_rows_is_read_and_the_first_decides_a_tie(tmp_path, lines, faults):
    found = kept_faults(write_lines(tmp_path / "pairs.jsonl", *lines))
    assert [row for row, fault in enumerate(found) if fault] == faults


def test_implicit_prompts_stay_implicit_beside_one_row_with_a_prompt(tmp_path):
    implicit = '{"chosen": "It is red.", "rejected": "It is blue."}'
    path = write_lines(tmp_path / "pairs.jsonl", GOOD, implicit, implicit)
    pairs = read_preferences(path, faulty="keep")
    assert pairs["prompt"][:] == [PAIR["prompt"], "It is", "It is"]


def test_a_line_that_is_not_utf8_costs_that_line(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(
        f"\ufeff{GOOD}\r\n".encode() + GOOD.replace("sky", "é").encode("latin-1") + b"\r\n\r\n" + TALK.encode()
    )
    assert [fault and fault[:25] for fault in kept_faults(path)] == [
        None, "unreadable: row 2 is not ", "unreadable: row 3: text a",
    ]  # fmt: skip


def test_a_row_of_five_million_characters_is_read(tmp_path):
    path = write_lines(tmp_path / "pairs.jsonl", json.dumps(PAIR | {"chosen": "x" * 5_000_000}), GOOD)
    assert [len(text) for text in read_preferences(path)["chosen"]] == [5_000_000, 5]


@pytest.mark.parametrize(
    "document",
    [[PAIR, None, PAIR], {"data": [PAIR, 3, PAIR], "version": "1"}, {"a": PAIR, "b": {}, "c": PAIR}],
    ids=["list", "field", "by name"],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_one_document_is_read_row_by_row(tmp_path, document, indent):
    (tmp_path / "pairs.json").write_text(json.dumps(document, indent=indent))
    faults = kept_faults(tmp_path / "pairs.json")
    assert [fault is None for fault in faults] == [True, False, True] and "row 2" in faults[1]


def test_a_pretty_printed_row_is_read(tmp_path):
    (tmp_path / "pairs.json").write_text(json.dumps(PAIR, indent=4))
    assert read_preferences(tmp_path / "pairs.json")[0]["chosen"] == PAIR["chosen"]


def test_dates_and_numbers_in_text_stay_as_they_are_written(tmp_path):
    row = {"id": "2020-01-01", "prompt": "2020-01-02", "chosen": "2020-01-03", "rejected": "2020-01-04"}
    found = read_preferences(write_lines(tmp_path / "pairs.jsonl", json.dumps(row)))
    assert found.select_columns(list(row))[0] == row
    numbers = write_lines(
        tmp_path / "pairs.csv", "id,prompt,chosen,rejected,margin", "007,2+2,4,5.0,1e3", "008,1+1,2,3,"
    )
    found = read_preferences(numbers)
    assert found[0]["id"] == "007" and found["chosen"][:] == ["4", "2"] and found["rejected"][0] == "5.0"
    assert found["margin"][:] == [1000.0, None]


def test_broken_rows_of_csv_cost_themselves(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_bytes(b'prompt,chosen,rejected\np,"a\nb",c\np,a,b,c\np,a\n\np,\xff,b\nq,a,b\n')
    assert [fault and fault[:38] for fault in kept_faults(path)] == [
        None,
        "unreadable: row 2 has 4 cells where th",
        "missing_field: row 3: column rejected ",
        "unreadable: row 4 is not UTF-8 text; s",
        None,
    ]


def test_folder_of_csv_reads_na_as_a_word_and_names_the_file_of_a_fault(tmp_path):
    write_lines(tmp_path / "train-a.csv", "prompt,chosen,rejected", "p,NA,null")
    write_lines(tmp_path / "train-b.csv", "prompt,chosen,rejected", "p,a,b,c")
    pairs = read_preferences(tmp_path, faulty="keep")
    assert (pairs[0]["chosen"], pairs[0]["rejected"]) == ("NA", "null")
    assert pairs[1]["fault"].startswith("unreadable: train-b.csv, row 1 has 4 cells")
    with pytest.raises(DataError, match="no split test; it has train"):
        read_preferences(tmp_path, split="test")


def test_null_cells_of_a_table_are_missing_fields(tmp_path):
    rows = [PAIR, PAIR | {"prompt": None}, PAIR | {"chosen": None}]
    Dataset.from_list(rows).to_parquet(tmp_path / "some.parquet")
    result = validate(read_preferences(tmp_path / "some.parquet", faulty="keep"))
    assert (len(result.kept), result.reasons["missing_field"]) == (1, 2)
    assert "column prompt is null" in result.rejects["fault"][0] and "fault" not in result.kept.column_names
    result = validate(normal(*(row | {"prompt": None} for row in rows), faulty="keep"))
    assert (result.n, result.reasons["missing_field"], result.groups, result.domains) == (3, 3, 0, {})


@pytest.mark.parametrize(("margin", "reasons"), [("0.5", {}), ('"abc"', {"unreadable": 1}),
                                                 ("NaN", {"non_finite_margin": 1})])  # fmt: skip
def test_a_margin_that_is_absent_is_no_fault_and_is_counted(tmp_path, margin, reasons):
    sound = [json.dumps(PAIR | {"prompt": f"question {i}"}) for i in range(100)]
    row = f'{{"margin": {margin}, "prompt": "p", "chosen": "a", "rejected": "b"}}'
    result = validate(read_preferences(write_lines(tmp_path / "pairs.jsonl", *sound, row), faulty="keep"))
    assert len(result.kept) == 101 - sum(reasons.values())
    assert {reason: n for reason, n in result.reasons.items() if n} == reasons
    assert any(said.startswith("100 pairs have no margin") for said in result.warnings)


def test_a_slice_of_a_split_is_read(tmp_path):
    path = write_lines(tmp_path / "pairs.jsonl", *(json.dumps(PAIR | {"id": str(i)}) for i in range(10)))
    assert read_preferences(path, split="train[2:4]")["id"][:] == ["2", "3"]
    assert len(read_preferences(path, split="train[:50%]")) == 5


def test_a_broken_archive_is_one_error(tmp_path):
    path = write_lines(tmp_path / "pairs.jsonl.gz", *[GOOD] * 5000)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="pairs.jsonl.gz cannot be read after row"):
        read_preferences(path, faulty="keep")


def test_reading_twice_leaves_the_first_reading_alone(tmp_path):
    path = write_lines(tmp_path / "pairs.jsonl", GOOD)
    first = read_preferences(path)
    write_lines(path, TALK, TALK)
    assert len(read_preferences(path)) == 2 and first[0]["prompt"] == PAIR["prompt"]


def test_wrong_policy_is_said():
    with pytest.raises(UsageError, match="'raise' or 'keep'"):
        normal(PAIR, faulty="drop")


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


def test_pandalm_reads_whole(real_data):
    result = validate(read_preferences(real_data / "pandalm" / "testset-v1-first500.json", faulty="keep"), ties="keep")
    assert result.n == 500 and result.reasons["unreadable"] == 6  # six answers are the JSON value true, not text
    assert set(result.kept["weight"]) == {3.0}
    assert {round(share * 6) for share in result.kept["preference"]} == {3, 4, 5, 6}


def test_a_preference_below_one_half_swaps_the_sides():
    row = {"prompt": "p ", "chosen": "a", "rejected": "b"}
    pairs = to_normal_form(Dataset.from_list([row | {"preference": 0.2}, row | {"preference": 1.0}]))
    assert (pairs[0]["chosen"], pairs[0]["rejected"], pairs[0]["preference"]) == ("b", "a", 0.8)
    assert pairs[1]["chosen"] == "a"
    with pytest.raises(DataError, match="share from 0 to 1"):
        to_normal_form(Dataset.from_list([row | {"preference": 7.0}]))


def test_criterion_scores_are_read_and_follow_their_side(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": "a", "chosen": "b", "rejected": "c", "chosen_scores": {"wit": 1}, "rejected_scores": {"wit": None}},
        {"prompt": "a", "chosen": "b", "rejected": "c", "preference": 0.0, "chosen_scores": {"wit": 0.2}},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = read_preferences(path)
    assert pairs["chosen_scores"] == [[{"criterion": "wit", "score": 1.0}], None]
    assert pairs["rejected_scores"][1] == [{"criterion": "wit", "score": 0.2}]
    assert read_preferences(path)[:] == pairs[:]
    again = tmp_path / "again.jsonl"
    pairs.to_json(again)
    assert read_preferences(again)["chosen_scores"] == pairs["chosen_scores"]


def test_criterion_scores_of_another_form_are_one_line(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c", "chosen_scores": 0.4}) + "\n")
    with pytest.raises(DataError, match="wanted scores by criterion"):
        read_preferences(path)
