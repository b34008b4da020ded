"""The command line: JSON that stays, exit codes, one line for input it cannot use."""

import json
import subprocess
import sys

import numpy as np
import pytest
from transformers import LlamaForCausalLM

from rmtrl import RewardScorer, cli

PAIRS = [{"id": f"p{i}", "prompt": f"{i} ?", "chosen": " good one", "rejected": " bad two three"} for i in range(6)]


@pytest.fixture
def rmtrl(monkeypatch, capsys):
    """Runs the command in this process; returns exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["rmtrl", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def pairs_file(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*PAIRS, PAIRS[0], PAIRS[1] | {"chosen": ""}]))
    return path


@pytest.fixture
def checkpoint(tmp_path, model, tokenizer):
    model.save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    return tmp_path / "rm"


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
        (["score", "{pairs}", "--model", "{rm}", "--out", "{missing}/s.jsonl"], "cannot write"),
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
    lines = [line for line in stderr.splitlines() if line.startswith("rmtrl: error:")]
    assert code == 2 and len(lines) == 1 and says in lines[0]
    assert stdout == "" and set(tmp_path.rglob("*")) == before


def test_the_installed_command_starts_quickly_and_says_what_it_can(tmp_path):
    check = "import sys, rmtrl.cli; sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'trl')))"
    assert subprocess.run([sys.executable, "-c", check], cwd=tmp_path).returncode == 0
