"""Rows and objects of files, and files that are put in place whole."""

import json
import math
import os
import subprocess
import sys

import pytest
from datasets import Dataset

from rmtrl.errors import DataError
from rmtrl.io import append_row, read_object, read_rows, replacing, write_json, write_rows
from rmtrl.types import json_ready

ROWS = [{"a": 1, "b": [{"c": None}]}, {"a": math.inf}]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_rows_are_read_as_they_were_written(tmp_path, name):
    assert write_rows(tmp_path / name, ROWS) == 2
    before = (tmp_path / name).read_bytes()
    assert list(read_rows([tmp_path / name])) == [("row 1", ROWS[0]), ("row 2", {"a": None})]
    write_rows(tmp_path / name, ROWS)
    assert (tmp_path / name).read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_a_row_is_added_whole_or_not_at_all(tmp_path, name, monkeypatch):
    file = tmp_path / name
    for row in ROWS:
        append_row(file, row)
    append_row(file, {"a": 3})
    assert [row for _, row in read_rows([file])] == [ROWS[0], {"a": None}, {"a": 3}]
    before = file.read_bytes()
    with monkeypatch.context() as patched, pytest.raises(DataError, match="cannot write"):
        write = os.write
        patched.setattr("os.write", lambda to, line: write(to, line[:3]))  # the disk is full
        append_row(file, {"a": 4})
    assert file.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "broken.jsonl").write_text('{"a": 1}\n{"a"')
    with pytest.raises(DataError, match="broken.jsonl row 2"):
        append_row(tmp_path / "broken.jsonl", {"a": 2})
    (tmp_path / "cut.jsonl").write_text('{"a": 1}')
    with pytest.raises(DataError, match="cut.jsonl ends without a line break"):
        append_row(tmp_path / "cut.jsonl", {"a": 2})
    with pytest.raises(DataError, match="name it .jsonl"):
        append_row(tmp_path / "rows.csv", {"a": 2})
    (tmp_path / "empty.jsonl").touch()
    append_row(tmp_path / "empty.jsonl", {"a": 1})
    assert (tmp_path / "empty.jsonl").read_text() == '{"a": 1}\n'


def test_without_a_row_a_file_is_only_tried(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n')
    append_row(tmp_path / "rows.jsonl")
    assert (tmp_path / "rows.jsonl").read_text() == '{"a": 1}\n'
    (tmp_path / "rows.jsonl").write_text('{"a"\n')
    with pytest.raises(DataError, match="rows.jsonl row 1"):
        append_row(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match="cannot write"):
        append_row(tmp_path)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_rows_of_many_writers_are_all_kept(tmp_path, name):
    code = (
        "import sys; from rmtrl.io import append_row\nfor i in range(20): append_row(sys.argv[1], {'a': 'x' * 9000})"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, tmp_path / name]) for _ in range(4)]
    assert [own.wait() for own in writers] == [0] * 4
    assert [row for _, row in read_rows([tmp_path / name])] == [{"a": "x" * 9000}] * 80


def test_a_data_set_is_written_as_its_rows_are(tmp_path):
    rows = [
        {"a 50%s": text, "b": number, "c": parts, "d": [text]}
        for text, number, parts in [
            ("x\ny", 1.7, {"k": 1, "l": "\u2028"}),
            (None, math.nan, None),
            ("{", 1e300, {"k": 2}),
        ]
    ]
    write_rows(tmp_path / "rows.jsonl", Dataset.from_list(rows))
    lines = [json.dumps(json_ready(row), ensure_ascii=False) for row in Dataset.from_list(rows)]
    assert (tmp_path / "rows.jsonl").read_text() == "".join(f"{line}\n" for line in lines)


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    ("document", "is_row", "rows"),
    [
        (ROWS[:1], bool, ROWS[:1]),
        (ROWS[0], bool, ROWS[:1]),
        ({"rows": ROWS[:1], "n": 1}, bool, [{"rows": ROWS[:1], "n": 1}]),
        ({"rows": ROWS[:1], "n": 1}, lambda row: "a" in row, ROWS[:1]),
        ({"x": ROWS[0], "y": {}}, lambda row: "a" in row, [ROWS[0], {}]),
    ],
)
def test_a_document_is_rows_by_the_predicate_given(tmp_path, indent, document, is_row, rows):
    (tmp_path / "d.json").write_text(json.dumps(document, indent=indent))
    assert [row for _, row in read_rows([tmp_path / "d.json"], is_row=is_row)] == rows


def test_a_broken_line_is_one_row_that_says_where_and_how_it_begins(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a": \n\n{"a": 2}\n')
    (tmp_path / "b.csv").write_text("a,b\n1,2,3\n")
    found = list(read_rows([tmp_path / "a.jsonl", tmp_path / "b.csv"]))
    assert [where for where, _ in found] == ["a.jsonl, row 1", "a.jsonl, row 2", "a.jsonl, row 3", "b.csv, row 1"]
    assert found[1][1].startswith("is not JSON") and found[1][1].endswith("""'{"a":'""")
    assert found[3][1].startswith("has 3 cells")


@pytest.mark.parametrize(("text", "said"), [("[1]", "no JSON object"), ("{", "is not JSON"), (None, "cannot be read")])
def test_what_is_no_object_is_one_line(tmp_path, text, said):
    if text is not None:
        (tmp_path / "o.json").write_text(text)
    with pytest.raises(DataError, match=f"o.json.*{said}"):
        read_object(tmp_path / "o.json")


def test_what_cannot_be_written_leaves_what_was_there(tmp_path):
    write_json(tmp_path / "o.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "o.json", {"a": math.nan})
    with pytest.raises(DataError, match="exists and is not a file"):
        write_json(tmp_path, {})
    assert read_object(tmp_path / "o.json") == {"a": 1} and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["rows.parquet", "rows.csv", "rows.csv.gz"])
def test_rows_are_not_written_under_a_name_that_says_another_form(tmp_path, name):
    with pytest.raises(DataError, match="one a line; name it .jsonl"):
        write_rows(tmp_path / name, [{"a": 1}])
    assert not list(tmp_path.iterdir())


def test_a_folder_in_the_way_of_a_file_stays(tmp_path):
    (tmp_path / ".metrics.json.new").mkdir()
    (tmp_path / ".metrics.json.new" / "precious").write_text("keep me")
    with pytest.raises(DataError, match="cannot write"):
        write_json(tmp_path / "metrics.json", {"n": 1})
    assert (tmp_path / ".metrics.json.new" / "precious").read_text() == "keep me"


def test_a_folder_takes_its_place_whole_or_not_at_all(tmp_path):
    for text in ("first", "second"):
        with replacing(tmp_path / "run", folder=True) as beside:
            (beside / "file").write_text(text)
    with pytest.raises(KeyError), replacing(tmp_path / "run", folder=True) as beside:
        (beside / "file").write_text("third")
        raise KeyError
    assert (tmp_path / "run" / "file").read_text() == "second" and len(list(tmp_path.iterdir())) == 1
