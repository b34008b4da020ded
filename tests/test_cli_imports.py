"""A command that loads no model starts at once: neither torch nor a plot is imported for it, nor, unless it fits a
calibrator, scikit-learn."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
COMMANDS = """
data synthesize --out world --prompts 60
data validate pairs.jsonl --out clean.jsonl
data split clean.jsonl --out splits
data dedup clean.jsonl
data contamination clean.jsonl {examples}/pairs.jsonl
data coverage world/pairs.jsonl --annotations world/annotations.jsonl
annotations agreement world/annotations.jsonl
annotations aggregate world/annotations.jsonl
annotations pairs {examples}/annotations.jsonl --out agreed.jsonl
annotations ceiling {examples}/annotations.jsonl
calibrate clean.jsonl --scores scores.jsonl --out calibration.json
audit clean.jsonl --scores scores.jsonl
overopt samples.jsonl
fresh sample answers.jsonl --out review.jsonl --key key.jsonl --n 10
gate evidence.json
report .
abtest plan --baseline 0.5 --effect 0.25 --out plan.json
abtest assign plan.json units.jsonl --out assigned.jsonl
abtest analyse plan.json assigned.jsonl outcomes.jsonl
guard {examples}/guardrails/answers.jsonl --rules {examples}/guardrails/policy.yaml
redteam --out asked.jsonl
redteam --policy asked-and-answered.jsonl
drift pairs.jsonl clean.jsonl --scores scores.jsonl scores.jsonl --calibration calibration.json
recipes copy recipes
"""
RUN = """
import json, sys
from rmtrl import cli
loaded = {}
for command in json.load(sys.stdin):
    before = set(sys.modules)
    sys.argv = ["rmtrl", *command.split(), "--json"]
    try:
        cli.main()
    except SystemExit as stop:
        heavy = {"torch", "transformers", "sklearn", "matplotlib"} & (set(sys.modules) - before)
        loaded[command] = [stop.code or 0, sorted(heavy)]
print(json.dumps(loaded), file=sys.stderr)
"""


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """The exit code of each command and what was imported by then; all run in one process, in order."""
    folder = tmp_path_factory.mktemp("commands")
    numbers = range(120)
    pair = {"domain": "colours", "chosen": "good", "rejected": "rather bad"}
    write(folder / "pairs.jsonl", [pair | {"id": f"p{i}", "prompt": f"red {i} ?"} for i in numbers])
    write(folder / "scores.jsonl", [{"id": f"p{i}", "scores": [i % 7, i % 5]} for i in numbers])
    write(folder / "samples.jsonl", [{"prompt_id": f"p{i // 8}", "proxy": i % 7, "gold": i % 5} for i in numbers])
    write(folder / "answers.jsonl", [{"prompt": f"red {i} ?", "completions": ["one", "two"]} for i in numbers])
    write(folder / "units.jsonl", [{"unit": f"u{i}"} for i in numbers])
    write(folder / "outcomes.jsonl", [{"unit": f"u{i}", "success": i % 2} for i in numbers])
    asked = [{"prompt": f"red {i} ?", "safe": i % 2 == 0, "completion": "one two"} for i in numbers]
    write(folder / "asked-and-answered.jsonl", asked)
    (folder / "evidence.json").write_text(json.dumps({"schema": "rmtrl/evidence/1"}))
    (folder / "rm").mkdir()
    (folder / "rm" / "metrics.json").write_text(json.dumps({"schema": "rmtrl/reward-metrics/1"}))
    commands = json.dumps([command.format(examples=EXAMPLES) for command in COMMANDS.strip().split("\n")])
    ran = subprocess.run([sys.executable, "-c", RUN], input=commands, cwd=folder, capture_output=True, text=True)
    return json.loads(ran.stderr.splitlines()[-1])


def test_each_of_them_runs(loaded):
    assert len(loaded) == len(COMMANDS.strip().split("\n"))
    assert {command: code for command, (code, _) in loaded.items() if code not in (0, 1)} == {}


def test_none_imports_what_models_and_plots_need(loaded):
    assert {command.split()[0]: heavy for command, (_, heavy) in loaded.items() if heavy} == {"calibrate": ["sklearn"]}
