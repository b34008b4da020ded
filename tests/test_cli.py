"""The command line: JSON that stays, exit codes, one line for input it cannot use."""

import gzip
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from transformers import LlamaForCausalLM

from rmtrl import RewardScorer

PAIRS = [{"id": f"p{i}", "prompt": f"{i} ?", "chosen": " good one", "rejected": " bad two three"} for i in range(6)]


@pytest.fixture
def pairs_file(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*PAIRS, PAIRS[0], PAIRS[1] | {"chosen": ""}]))
    return path


def test_validate_counts_every_row(rmtrl, pairs_file, tmp_path):
    out, rejects = tmp_path / "kept.jsonl", tmp_path / "rejects.jsonl"
    code, stdout, _ = rmtrl("data", "validate", pairs_file, "--json", "--out", out, "--rejects", rejects)
    counts = json.loads(stdout)
    assert code == 0 and (counts["n"], counts["kept"], counts["rejected"]) == (8, 6, 2)
    assert counts["reasons"]["duplicate_pair"] == counts["reasons"]["empty_response"] == 1
    assert len(out.read_text().splitlines()) == 6
    assert {json.loads(line)["reason"] for line in rejects.read_text().splitlines()} == {
        "duplicate_pair",
        "empty_response",
    }


def test_strict_exits_with_1_where_a_pair_is_rejected(rmtrl, pairs_file):
    assert rmtrl("data", "validate", pairs_file, "--strict")[0] == 1


def test_validate_prints_all_counts_for_machines_and_people(rmtrl, tmp_path):
    row = {"prompt_left": "p", "prompt_right": "p", "response_left": "x", "response_right": "y", "label": "left"}
    rows = [
        row | {"id": "a"},
        row | {"id": "b", "response_right": "x"},
        row | {"id": "c", "prompt_right": "another"},
        row | {"id": "d", "label": "tie"},
        row | {"id": "d", "label": "up"},
    ]
    path = tmp_path / "annotations.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in rows) + "{broken\n")
    code, stdout, stderr = rmtrl("data", "validate", path, "--json", "--rejects", tmp_path / "new" / "rejects.jsonl")
    counts = json.loads(stdout)
    nonzero = {reason: count for reason, count in counts.pop("reasons").items() if count}
    assert code == 0 and nonzero == {
        "unreadable": 2, "context_mismatch": 1, "identical_candidates": 1, "tie_or_abstention": 1,
    }  # fmt: skip
    warning = "1 duplicate ids: scores and rejects cannot be told apart by id"
    assert counts == {
        "schema": "rmtrl/validation/1", "data": str(path), "n": 6, "kept": 1, "rejected": 5, "tie_rate": 1 / 6,
        "groups": 1, "domains": {"unknown": 1}, "warnings": [warning],
    }  # fmt: skip
    assert stderr == f"rmtrl: warning: {warning}\n"
    rejects = [json.loads(line) for line in (tmp_path / "new" / "rejects.jsonl").read_text().splitlines()]
    assert [reject["id"] for reject in rejects] == ["b", "c", "d", "d", "5"]
    assert rejects[3]["fault"] == "unreadable: row 5: label 'up' is none of left, right, tie, abstain, a, b"
    assert rejects[4]["fault"].startswith("unreadable: row 6 is not JSON")
    table = rmtrl("data", "validate", path)[1]
    assert "unreadable " in table and "tie rate" in table and "{" not in table


def test_output_has_no_nan_and_may_replace_its_input(rmtrl, pairs_file, tmp_path):
    rows = [PAIRS[0] | {"margin": 1.5}, PAIRS[1] | {"margin": float("nan")}]
    pairs_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / ".pairs.jsonl.new").write_text("left by a killed run")
    assert rmtrl("data", "validate", pairs_file, "--out", pairs_file, "--rejects", tmp_path / "rejects.jsonl")[0] == 0
    assert [json.loads(line)["margin"] for line in pairs_file.read_text().splitlines()] == [1.5]
    reject = (tmp_path / "rejects.jsonl").read_text()
    assert "NaN" not in reject and json.loads(reject)["margin"] is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.jsonl", "rejects.jsonl"]


def test_only_long_passes_show_progress_and_on_stderr(rmtrl, pairs_file, monkeypatch):
    assert rmtrl("data", "validate", pairs_file, "--json")[2].count("\r") == 0
    monkeypatch.setattr("rmtrl.io.LARGE_BYTES", 1)
    monkeypatch.setattr("rmtrl.data.validation.LARGE_ROWS", 1)
    _, stdout, stderr = rmtrl("data", "validate", pairs_file, "--json")
    assert json.loads(stdout)["n"] == 8 and "Reading pairs" in stderr and "Validating" in stderr


STOPS_WHILE_WRITING = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
import rmtrl.cli, rmtrl.io as io

lines, count = io._lines, 0
def slow(rows):
    global count
    count += 1
    if count == 2:  # the kept rows are complete, the rejects begin
        print("writing", file=sys.__stdout__, flush=True)
        time.sleep(60)
    return lines(rows)

io._lines = slow
sys.argv[0] = "rmtrl"
rmtrl.cli.main()
"""


@pytest.mark.integration
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_an_interruption_leaves_the_earlier_output(rmtrl, pairs_file, tmp_path, number, code):
    outputs = out, rejects = tmp_path / "kept.jsonl", tmp_path / "rejects.jsonl"
    for path in outputs:
        path.write_text("earlier\n")
    command = ["data", "validate", str(pairs_file), "--out", str(out), "--rejects", str(rejects)]
    child = subprocess.Popen(
        [sys.executable, "-c", STOPS_WHILE_WRITING, *command],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    with child:
        assert child.stdout.readline() == "writing\n"
        child.send_signal(number)
        stderr = child.stderr.read()
    assert child.returncode == code
    assert stderr == ("" if number == signal.SIGKILL else "\nrmtrl: interrupted; earlier outputs are as they were\n")
    assert [path.read_text() for path in outputs] == ["earlier\n"] * 2
    left = {path.name for path in tmp_path.iterdir()} - {"pairs.jsonl", out.name, rejects.name}
    assert left == ({".kept.jsonl.new", ".rejects.jsonl.new"} if number == signal.SIGKILL else set())
    assert rmtrl(*command)[0] == 0  # what a kill left behind is in nobody's way
    assert len(out.read_text().splitlines()) == 6 and len(list(tmp_path.iterdir())) == 3


def test_inspect_marks_the_scored_position(rmtrl, pairs_file, checkpoint):
    code, stdout, _ = rmtrl("inspect", pairs_file, "--model", checkpoint, "--row", 2, "--side", "rejected", "--json")
    shown = json.loads(stdout)
    assert code == 0
    assert shown["scored_position"] == len(shown["tokens"]) - 1
    assert shown["tokens"][-1]["token"] == "<|end|>"
    score = RewardScorer.from_pretrained(checkpoint).score(["2 ? bad two three"])[0]
    assert shown["reward"] == pytest.approx(float(score), abs=1e-6)
    assert "<- scored here" in rmtrl("inspect", pairs_file, "--model", checkpoint)[1]


def test_score_writes_a_line_a_pair(rmtrl, pairs_file, checkpoint, tmp_path):
    code, stdout, _ = rmtrl("score", pairs_file, "--model", checkpoint, "--out", tmp_path / "s.jsonl", "--json")
    lines = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert code == 0 and [line["id"] for line in lines][:3] == ["p0", "p1", "p2"]
    wanted = RewardScorer.from_pretrained(checkpoint).score(["0 ? good one", "0 ? bad two three"])
    np.testing.assert_allclose(lines[0]["scores"], wanted, atol=1e-5)
    assert json.loads(stdout)["accuracy"]["n"] == 8


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["data", "validate", "none.jsonl"], "no such file"),
        (["data", "validate", "{columns}"], "fit no known form"),
        (["data", "validate", "{empty}"], "is empty"),
        (["data", "validate", "{pairs}", "--map", "chosen"], "new=old"),
        (["data", "validate", "{pairs}", "--max-length", "4"], "--tokenizer"),
        (["data", "validate", "{pairs}", "--ties", "maybe"], "drop or keep"),
        (["inspect", "none.jsonl", "--model", "{rm}"], "no such file"),
        (["inspect", "{pairs}", "--model", "{missing}"], "no reward model at"),
        (["inspect", "{pairs}", "--model", "{fresh}"], "no trained score head"),
        (["inspect", "{pairs}", "--model", "{rm}", "--row", "99"], "rows 0 to 7"),
        (["inspect", "{chats}", "--model", "{plain}"], "no chat template"),
        (["inspect", "{long}", "--model", "{rm}"], "the model holds 256"),
        (["score", "{pairs}", "--model", "{rm}", "--out", "{pairs}/s.jsonl"], "cannot write"),
        (["data", "validate", "{pairs}", "--out", "{rm}"], "it exists and is not a file"),
        (["data", "validate", "{pairs}", "--out", "{missing}/a", "--rejects", "{missing}/a"], "give two files"),
        (["data", "validate", "{broken}"], "row 1 is not JSON"),
        (["data", "validate", "{pairs}.txt"], "no such file"),
        (["data", "validate", "{notes}"], "not of a known format"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_exit_code_2(
    rmtrl, tmp_path, pairs_file, checkpoint, model, tokenizer, chats, arguments, says
):
    places = {"pairs": pairs_file, "rm": checkpoint, "missing": tmp_path / "nowhere"}
    for name, rows in {
        "columns": [{"text": "a"}],
        "empty": [],
        "long": [PAIRS[0] | {"chosen": " good" * 400}],
    }.items():
        places[name] = tmp_path / f"{name}.jsonl"
        places[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    places["broken"], places["notes"] = tmp_path / "broken.jsonl", tmp_path / "notes.txt"
    places["broken"].write_bytes(b"\x00\x01")
    places["notes"].write_text("a\n")
    places["chats"] = tmp_path / "chats.jsonl"
    chats.to_json(places["chats"])
    places["fresh"], places["plain"] = tmp_path / "fresh", tmp_path / "plain"
    LlamaForCausalLM(model.config).save_pretrained(places["fresh"])
    tokenizer.save_pretrained(places["fresh"])
    tokenizer.chat_template = None
    model.save_pretrained(places["plain"])
    tokenizer.save_pretrained(places["plain"])
    before = set(tmp_path.rglob("*"))
    code, stdout, stderr = rmtrl(*[argument.format(**places) for argument in arguments])
    lines = stderr.splitlines()
    if arguments[0] != "data":  # loading a model shows its progress
        lines = [line for line in lines if line.startswith("rmtrl: error:")]
    assert code == 2 and len(lines) == 1 and lines[0].startswith("rmtrl: error:") and says in lines[0]
    assert stdout == "" and set(tmp_path.rglob("*")) == before


def test_the_installed_command_starts_quickly_and_says_what_it_can(tmp_path):
    check = "import sys, rmtrl.cli; sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'trl')))"
    assert subprocess.run([sys.executable, "-c", check], cwd=tmp_path).returncode == 0


def test_a_pair_too_long_for_the_model_is_counted_and_the_rest_is_scored(rmtrl, checkpoint, tmp_path):
    rows = [*PAIRS, {"id": "long", "prompt": "one " * 400, "chosen": "good", "rejected": "bad"}]
    data, out = tmp_path / "long.jsonl", tmp_path / "scores.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, stdout, stderr = rmtrl("score", data, "--model", checkpoint, "--out", out, "--json")
    assert code == 0 and json.loads(stdout)["too_long"] == 1 and "1 pairs are longer" in stderr
    scores = {line["id"]: line["scores"] for line in map(json.loads, out.read_text().splitlines())}
    assert scores["long"] == [None, None] and len(scores) == 7 and None not in scores["p0"]
    data.write_text(json.dumps(rows[-1]) + "\n")
    code, _, stderr = rmtrl("score", data, "--model", checkpoint, "--out", out)
    assert code == 2 and "all 1 pairs of" in stderr and len(out.read_text().splitlines()) == 7


def test_what_a_library_prints_is_no_part_of_the_result(rmtrl, monkeypatch):
    from rmtrl.cli import data

    read_pairs = data.read_pairs

    def noisy(*args, **kwargs):
        print("[INFO] a library starts")
        return read_pairs(*args, **kwargs)

    monkeypatch.setattr(data, "read_pairs", noisy)
    code, stdout, stderr = rmtrl("data", "validate", "examples/pairs.jsonl", "--json")
    assert (code, json.loads(stdout)["schema"]) == (0, "rmtrl/validation/1")
    assert "[INFO] a library starts" in stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["data", "synthesize", "--out", "w", "--prompts", "0"], "--prompts 0; wanted a number "),
        (["data", "dedup", "x", "--threshold", "x"], "--threshold x; wanted a number; see rmtrl data dedup"),
        (["inspect", "x", "--model", "m", "--row", "x"], "got --row x; wanted a whole number; see rmtrl inspect"),
        (["data", "split", "x", "--ratios", "1,2"], "4 arguments, apart by spaces; see rmtrl data split --help"),
        (["score", "x", "--out"], "requires an argument; see rmtrl score --help"),
        (["--nothing"], "see rmtrl --help"),
        (["gate", "nope"], "nope cannot be read: No such file or directory; name one that can"),
        (["gate", "{rows}"], "Extra data: line 2 column 1 (char 12); wanted one JSON object"),
        (["data", "validate", "{cut}"], "ended before the end-of-stream marker was reached; copy it anew"),
        (["data", "validate", "{bad}"], "or copy it anew"),
        (["data", "validate", "{rows}"], "wanted prompt, chosen and rejected: add --map"),
        (["data", "validate", "{judged}"], "=FIRST --map response_b=SECOND --map winner=my_label (rmtrl"),
        (["data", "validate", "{good}"], "add --map chosen=good --map rejected=bad (a recipe takes"),
        (["data", "validate", "{good}", "--map", "good=chosen"], "no column chosen to rename; it has question"),
        (["data", "validate", "{good}", "--map", "good=chosen"], "(--map takes new=old: --map chosen=good)"),
        (["data", "validate", "{good}", "--map", "chosen=good,rejected=bad"], "--map chosen=good --map rejected=bad"),
        (["data", "validate", "{semicolons}"], "has 4 cells where the header has 3; quote cells that hold a ;"),
        (["audit", "m", "{good}"], "a model is named with --model; see rmtrl audit --help"),
        (["env"], "did you mean rmtrl doctor"),
    ],
)  # fmt: skip
def test_a_line_says_what_was_given_what_is_wanted_and_the_mend(rmtrl, tmp_path, arguments, said):
    (tmp_path / "rows.jsonl").write_text('{"id": "a"}\n' * 2)
    (tmp_path / "bad.parquet").write_text("bad")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(bytes(range(256)) * 99)[:200])
    (tmp_path / "good.jsonl").write_text('{"question": "a?", "good": "b", "bad": "c"}\n')
    (tmp_path / "rows.csv").write_text("prompt;chosen;rejected\na?;b; and c;d\n")
    (tmp_path / "judged.csv").write_text("prompt,mine,theirs,my_label\na?,b,c,A\n")
    files = {"good": tmp_path / "good.jsonl", "semicolons": tmp_path / "rows.csv", "judged": tmp_path / "judged.csv"}
    files |= {"rows": tmp_path / "rows.jsonl", "bad": tmp_path / "bad.parquet", "cut": tmp_path / "cut.jsonl.gz"}
    code, _, stderr = rmtrl(*(argument.format(**files) for argument in arguments))
    assert code == 2 and said in stderr and len(stderr.splitlines()) == 1 and len(stderr) < 400
