"""The labelled answers and what the documents say of the embedded guards on them."""

import hashlib
import json
import re
import runpy
from pathlib import Path

import pytest

from rmtrl.io import read_text
from rmtrl.monitoring.guardrails import read_answers, screen
from rmtrl.monitoring.rules import Policy

EXAMPLE = Path(__file__).parents[2] / "examples" / "guardrails"
ROWS = [json.loads(line) for line in (EXAMPLE / "labelled.jsonl").read_text(encoding="utf-8").splitlines()]
GUARDS = Policy.from_yaml(read_text(EXAMPLE / "policy.yaml")).guards


@pytest.fixture(scope="module")
def measured():
    return runpy.run_path(str(EXAMPLE / "measure.py"))["measure"]("report")


def test_there_are_enough_and_every_guard_has_both_kinds_in_both_halves():
    assert len(ROWS) >= 300 and len({row["id"] for row in ROWS}) == len(ROWS)
    for half in ("look", "report"):
        for name in GUARDS:
            labels = [row["labels"][name] for row in ROWS if row["half"] == half and name in row["labels"]]
            assert labels.count(1) >= 6 and labels.count(0) >= 6, (half, name)


def test_the_halves_are_by_a_fixed_key():
    for row in ROWS:
        even = int(hashlib.sha256(row["id"].encode()).hexdigest(), 16) % 2 == 0
        assert row["half"] == ("look" if even else "report")


def test_nothing_in_it_has_the_form_of_a_key_of_a_provider():
    text = (EXAMPLE / "labelled.jsonl").read_text(encoding="utf-8")
    assert not re.search(
        r"\b(ghp_|gho_|glpat-|AKIA|ASIA|xox[abp]-|sk_live|rk_live|sk-[A-Za-z0-9]{20}|AIza|SG\.)", text
    )


def test_the_table_in_the_documents_is_what_the_guards_do(measured):
    said = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    for name, (cells, _) in measured.items():
        row = f"| {name} | {' | '.join(cells)} |"
        assert row in said, "put what `python examples/guardrails/measure.py` prints into its README.md"


def test_the_number_of_rows_in_the_documents_is_right():
    assert f"holds {len(ROWS)} answers" in (EXAMPLE / "README.md").read_text(encoding="utf-8")


def test_the_example_finds_what_it_was_written_for():
    found = screen(GUARDS, read_answers(str(EXAMPLE / "answers.jsonl")), limit=0.1)
    assert {(row["id"], row["guard"]) for row in found.findings} == {
        ("2", "house rules"), ("4", "secrets"), ("5", "personal data"), ("7", "toxicity"), ("9", "house rules"),
        ("10", "refusals"), ("11", "factuality"),
    }  # fmt: skip
    assert not found.passed
