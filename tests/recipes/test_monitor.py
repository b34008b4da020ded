"""The monitoring recipe as a scheduler runs it: nothing new, answers that changed, a guard above its limit."""

import json
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.integration
POLICY = """schema: rmtrl/guard-policy/1
guards:
  house rules:
    kind: rules
    rules: [{name: no shouting, pattern: '!!!'}]
"""


@pytest.fixture
def monitor(monkeypatch, start, tmp_path):
    """Runs `recipes/monitor.py` in this process; returns the exit code and the output folder."""

    def run(**flags):
        output, policy = tmp_path / "outputs" / "monitor", tmp_path / "policy.yaml"
        policy.write_text(POLICY)
        given = {"model_name_or_path": start / "rm", "output_dir": output, "policy": policy, "n_prompts": 60} | flags
        arguments = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        monkeypatch.setattr(sys, "argv", ["monitor.py", *arguments])
        monkeypatch.chdir(ROOT)
        try:
            runpy.run_path(str(ROOT / "recipes" / "monitor.py"), run_name="__main__")
        except SystemExit as stop:
            return stop.code, output
        return 0, output

    return run


def test_a_world_that_stays_the_same_raises_no_alarm_and_the_next_one_is_added(monitor, capsys):
    code, output = monitor()
    found = json.loads((output / "monitor.json").read_text())
    assert code == 0 and found["schema"] == "rmtrl/monitor/1" and found["alarms"] == []
    assert {own["name"] for own in found["drift"]["columns"]} == {
        "score", "length_chars", "domain", "guard house rules"
    }  # fmt: skip
    assert found["guards"]["n"] >= 60 and found["benchmarks"]["kitchen"]["n"] == 7
    assert "no drift shown" in capsys.readouterr().out
    assert monitor()[0] == 0
    lines = [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and lines[0]["p"] == lines[1]["p"] == found["drift"]["p"]


def test_answers_that_changed_alarm_and_are_named(monitor, capsys):
    _, output = monitor()
    rows = [json.loads(line) for line in (output / "reference.jsonl").read_text().splitlines()]
    for row in rows:
        row["response"][0]["content"] = 3 * row["response"][0]["content"] + "!!!"
    changed = output / "changed.jsonl"
    changed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    capsys.readouterr()
    code, _ = monitor(reference=output / "reference.jsonl", current=changed, guard_limit=0.5)
    found = json.loads((output / "monitor.json").read_text())
    assert code == 1 and found["alarms"] == ["drift", "guards"]
    assert "length_chars" in capsys.readouterr().out.split("corrected p")[0]


def test_a_benchmark_below_its_minimum_alarms(monitor):
    code, output = monitor(minimum_accuracy=1.01)
    assert code == 1 and json.loads((output / "monitor.json").read_text())["alarms"] == ["kitchen"]


def test_a_broken_history_is_found_before_the_work(monitor, capsys, tmp_path):
    output = tmp_path / "outputs" / "monitor"
    output.mkdir(parents=True)
    (output / "history.jsonl").write_text("{half")
    code, _ = monitor()
    assert code == 2 and "history.jsonl row 1" in capsys.readouterr().err
    assert [file.name for file in output.iterdir()] == ["history.jsonl"]


def test_a_history_that_cannot_be_kept_hides_no_alarm(monitor, capsys, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.write", full)
    assert monitor(minimum_accuracy=1.01)[0] == 1
    assert "warning: cannot write" in capsys.readouterr().err


def test_one_side_alone_is_bad_usage(monitor, capsys):
    code, output = monitor(reference="a.jsonl")
    assert code == 2 and "give both" in capsys.readouterr().err and not output.exists()
