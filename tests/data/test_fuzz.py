"""Broken input of every kind: never anything but a result or one line, and never a row that is not counted."""

import gzip
import json
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rmtrl import cli
from rmtrl.data.preferences import read_preferences
from rmtrl.data.validation import REASONS, validate
from rmtrl.errors import DataError
from rmtrl.io import write_rows

FUZZ = settings(
    derandomize=True,
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

TEXT = st.text(max_size=12)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
MESSAGE = st.fixed_dictionaries({"role": SCALAR, "content": SCALAR}) | st.fixed_dictionaries({"role": TEXT}) | SCALAR
GARBAGE = st.recursive(
    SCALAR | MESSAGE | st.just([]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
NAMES = [
    "id", "prompt_id", "domain", "source", "prompt", "prompt_rejected", "chosen", "rejected", "preference", "weight",
    "margin", "rating_gap", "score_chosen", "score_rejected", "fault", "left", "right", "label", "response1",
    "response2", "context", "overall_preference", "instruction", "input", "annotator1", "annotator2", "annotator3",
]  # fmt: skip
ROW = st.dictionaries(st.sampled_from(NAMES), GARBAGE, max_size=8)
PAIR_OF_GARBAGE = st.fixed_dictionaries({"prompt": GARBAGE, "chosen": GARBAGE, "rejected": GARBAGE})
ANNOTATION = st.fixed_dictionaries({"prompt": TEXT, "left": GARBAGE, "right": GARBAGE, "label": SCALAR})


def said(role, content):
    return [{"role": role, "content": content}]


def good(number, text=True):
    row = {"prompt": f"good {number}?", "chosen": f"yes {number}", "rejected": f"no {number}"}
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return row | {"id": f"good{number}"} if text else {name: said(roles[name], row[name]) for name in row}


def dumped(row):
    return json.dumps(row).encode()


GOOD = st.integers(0, 10**9).map(good).map(dumped)
HOSTILE = st.sampled_from(
    [
        b"{", b"}", b"[", b"[1]", b"3", b"null", b'"text"', b"NaN", b"{}", b"{]", b"\x00", b"\xff\xfe{",
        b'{"prompt": "\x01", "chosen": "a", "rejected": "b"}', b"\xed\xa0\x80",
        b'{"prompt": "\\ud800", "chosen": "a", "rejected": "b"}',
        b'{"prompt": "p", "chosen": "a", "chosen": "b", "rejected": "c"}', b"[" * 3000, b"9" * 5000, b"\xef\xbb\xbf{}",
        b'{"prompt": "p", "chosen": "a", "rejected": "b", "margin": -Infinity}', b'{"a":' * 3000,
        b'{"prompt": "p", "chosen": "a", "rejected": "b", "margin": 1' + b"0" * 400 + b"}",
        dumped(good(1, text=False)), dumped(good(2) | {"chosen": "x" * 5_000_000}), dumped({"rows": [good(3)]}),
        dumped({"prompt": "p", "answers": []}), dumped({"prompt": None, "chosen": None, "rejected": None}),
    ]
)  # fmt: skip
BLANK = st.sampled_from([b"", b" ", b"\t", b"\r"])
BYTES = st.binary(max_size=40).map(lambda value: value.replace(b"\n", b""))
CUT = st.tuples(GOOD, st.integers(1, 60)).map(lambda pair: pair[0][: pair[1]])
SPLICED = st.tuples(GOOD, st.integers(1, 60), BYTES).map(
    lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] :]
)
LINE = GOOD | HOSTILE | BLANK | BYTES | CUT | SPLICED | (ROW | PAIR_OF_GARBAGE | ANNOTATION).map(dumped)


@pytest.fixture
def read(tmp_path):
    """Writes lines to a file and returns what validation says of it, and the lines that are not blank."""

    def run(lines, name="pairs.jsonl", ties="drop"):
        text = b"\n".join(lines)
        (tmp_path / name).write_bytes(gzip.compress(text, 1) if name.endswith(".gz") else text)
        rows = [line for line in text.split(b"\n") if line and not line.isspace()]
        return validate(read_preferences(tmp_path / name, faulty="keep"), ties=ties), rows

    return run


def assert_all_counted(result, n):
    assert result.n == n == len(result.kept) + len(result.rejects) == len(result.kept) + sum(result.reasons.values())
    assert set(result.rejects["reason"]) <= set(REASONS)
    unread = [row for row in result.rejects if row.get("fault") is not None]
    assert all(row["fault"].startswith(f"{row['reason']}: row ") for row in unread)
    assert result.reasons["unreadable"] <= len(unread)


@FUZZ
@given(lines=st.lists(LINE, max_size=8), place=st.integers(0, 8), gz=st.booleans())
def test_every_line_of_a_broken_file_is_counted_and_good_rows_are_kept(read, lines, place, gz):
    mine = [dumped(good(10**10 + number)) for number in range(len(lines) + 1)]  # text is the form of most rows
    lines = [*lines[:place], *mine, *lines[place:]]
    result, rows = read(lines, "pairs.jsonl.gz" if gz else "pairs.jsonl")
    assert_all_counted(result, len(rows))
    assert {json.loads(line)["id"] for line in mine} <= set(result.kept["id"])


@FUZZ
@given(lines=st.lists(LINE, max_size=6), ties=st.sampled_from(["drop", "keep"]))
def test_a_file_of_anything_is_counted_or_refused_in_one_line(read, lines, ties):
    try:
        result, rows = read(lines, ties=ties)
    except DataError as error:
        assert str(error) and "\n" not in str(error)[:-1]
        return
    if len(rows) > 1:  # a single line may be a document of several rows
        assert_all_counted(result, len(rows))


@FUZZ
@given(document=st.lists(ROW | PAIR_OF_GARBAGE | SCALAR, max_size=5), indent=st.sampled_from([None, 2]))
def test_every_row_of_a_document_is_counted(read, document, indent):
    document = [*document, good(1)]
    result, _ = read([json.dumps(document, indent=indent).encode()], "pairs.json")
    assert_all_counted(result, len(document))


@FUZZ
@given(cells=st.lists(st.lists(BYTES, min_size=1, max_size=5), max_size=5))
def test_a_csv_file_of_anything_is_counted_or_refused(read, cells):
    try:
        result, _ = read([b"prompt,chosen,rejected", b"p,a,b", *(b",".join(row) for row in cells)], "pairs.csv")
    except DataError:
        return
    assert_all_counted(result, result.n)
    assert result.n >= 1


@settings(FUZZ, max_examples=40)
@given(lines=st.lists(LINE, max_size=5))
def test_the_command_ends_with_counts_or_with_one_line(tmp_path, capsys, lines):
    path, out, rejects = (tmp_path / name for name in ("pairs.jsonl", "out.jsonl", "rejects.jsonl"))
    path.write_bytes(b"\n".join(lines))
    before, sys.argv = sys.argv, ["rmtrl", "data", "validate", str(path), "--json"]
    sys.argv += ["--out", str(out), "--rejects", str(rejects)]
    try:
        with pytest.raises(SystemExit) as stop:
            cli.main()
    finally:
        sys.argv = before
    shown = capsys.readouterr()
    if stop.value.code:
        assert stop.value.code == 2 and shown.out == "" and len(shown.err.splitlines()) == 1
        return
    counts = json.loads(shown.out)
    written = [file.read_bytes().count(b"\n") for file in (out, rejects)]
    assert [counts["kept"], counts["rejected"]] == written and counts["n"] == sum(written)


NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
FREE = st.sampled_from(["a", "b ", "é", "", "a.b", "x/y", "cluster_id", "label", "answers", "reason", "tools"])
CALL = st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": TEXT, "arguments": JSON})})
FIELDS = st.dictionaries(TEXT.filter(lambda name: name not in ("role", "content", "from")), JSON, max_size=3)
ANSWER = st.fixed_dictionaries({"role": st.just("assistant"), "tool_calls": st.lists(CALL, min_size=1, max_size=2)})
CHAT = st.fixed_dictionaries({"fields": FIELDS, "answer": ANSWER, "template": st.dictionaries(TEXT, JSON, max_size=2)})


@settings(FUZZ, max_examples=50)
@given(own=st.lists(st.dictionaries(FREE, JSON, max_size=5), min_size=1, max_size=4), chat=st.none() | CHAT)
def test_what_nobody_reads_survives_to_the_letter(tmp_path, own, chat):
    rows = [{name: value for name, value in row.items() if name != "tools"} | good(k) for k, row in enumerate(own)]
    if chat:
        for row in rows:
            row["prompt"] = [{"role": "user", "content": row["prompt"]} | chat["fields"]]
            row["chosen"] = [chat["answer"], *said("tool", ""), *said("assistant", row["chosen"])]
            row["rejected"] = [{**said("assistant", row["rejected"])[0], "thinking": chat["fields"]}]
            row |= {"chat_template_kwargs": chat["template"], "tools": [chat["fields"]]}
    read = rows
    for name in ("first.jsonl", "second.jsonl"):
        write_rows(tmp_path / name, read)
        result = validate(read_preferences(tmp_path / name, faulty="keep"))
        assert len(result.kept) == len(rows), result.rejects[:]
        write_rows(tmp_path / "kept.jsonl", result.kept)
        read = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().split("\n")[:-1]]
        for before, after in zip(rows, read, strict=True):
            assert dumped({key: after[key] for key in before}) == dumped(before)
            assert all(after[key] is None for row in rows for key in row if key not in before)
