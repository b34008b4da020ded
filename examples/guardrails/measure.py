"""Precision and recall of every embedded guard on labelled answers, as a table for README.md.

python examples/guardrails/measure.py            # the half that no rule was written from
python examples/guardrails/measure.py look       # the other half, with every mistake on it
"""

import sys
from pathlib import Path

import numpy as np

from rmtrl.io import read_sound_rows, read_text
from rmtrl.metrics import binomial_estimate
from rmtrl.monitoring.guardrails import read_answers, severities_of
from rmtrl.monitoring.rules import Policy

HERE = Path(__file__).parent


def share(part: int, whole: int) -> str:
    return f"{binomial_estimate(part, whole):.2f} ({part}/{whole})" if whole else "none"


def measure(half: str) -> dict[str, tuple[list[str], list[str]]]:
    """Returns for each guard the cells of its row, and the ids of the answers it is wrong about."""
    policy = Policy.from_yaml(read_text(HERE / "policy.yaml"))
    halves = {str(row["id"]): row["half"] for _, row in read_sound_rows(HERE / "labelled.jsonl")}
    answers = [
        own for own in read_answers(str(HERE / "labelled.jsonl"), list(policy.guards)) if halves[own.id] == half
    ]
    table = {}
    for name, guard in policy.guards.items():
        rows = [own for own in answers if name in own.labels]
        flags, harmful = severities_of(guard, rows) > guard.threshold, np.array([own.labels[name] for own in rows])
        hits, n, found = int((flags & harmful).sum()), int(harmful.sum()), int(flags.sum())
        cells = [str(n), str(len(rows) - n), share(hits, found), share(hits, n), share(found - hits, len(rows) - n)]
        table[name] = (cells, [own.id for own, wrong in zip(rows, flags != harmful, strict=True) if wrong])
    return table


def main(half: str = "report") -> None:
    print("| guard | harmful | harmless | precision | recall | false positives |\n|---|---|---|---|---|---|")
    found = measure(half)
    for name, (cells, _) in found.items():
        print(f"| {name} | {' | '.join(cells)} |")
    if half == "look":
        for name, (_, wrong) in found.items():
            print(f"{name}: {', '.join(wrong) or 'no mistake'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
