"""Watches a policy and its reward model in one call, for a scheduler: benchmarks, guards and drift.

    python recipes/monitor.py
    python recipes/monitor.py --reference release.jsonl --current today.jsonl --policy guards.yaml

`reference` are answers of a time that was good, `current` those of now: rows with a prompt and a response; by default
both are of the embedded world. The reward model scores both, the guards of `policy` screen both, and scores, lengths,
domains and guards go into one test of drift. Writes `<output_dir>/`: `monitor.json`, a line in `history.jsonl`,
`benchmarks/`. Exit code 1: drift, a guard flags more than `guard_limit`, or a benchmark is surely below its minimum.
"""

import rmtrl.quiet  # isort: skip  # noqa: F401
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from rmtrl import RewardScorer
from rmtrl.data.synthetic import make_preferences
from rmtrl.errors import DataError, UsageError, exit_on_error
from rmtrl.evaluation.fingerprints import model_fingerprint
from rmtrl.evaluation.run import evaluate, read_tasks, summary
from rmtrl.evaluation.scoring import score_conversations
from rmtrl.io import append_row, file_sha256, read_text, write_json, write_rows
from rmtrl.launch import parse_recipe, report_run
from rmtrl.monitoring.drift import drift
from rmtrl.monitoring.guardrails import read_answers, screen, severities_of
from rmtrl.monitoring.rules import Policy
from rmtrl.reporting.tables import table
from rmtrl.types import json_ready

TINY = Path(__file__).parent / "configs" / "tiny" / "monitor.yaml"


@dataclass
class MonitorRecipeArguments:
    model_name_or_path: str = field(metadata={"help": "Checkpoint folder or hub id of the reward model."})
    output_dir: str = field(metadata={"help": "Folder for results and their history."})
    policy: str | None = field(default=None, metadata={"help": "YAML file of guards, as `rmtrl guard` takes it."})
    reference: str | None = field(default=None, metadata={"help": "Answers that were good: file, folder, hub id."})
    current: str | None = field(default=None, metadata={"help": "Answers of now."})
    benchmarks: list[str] = field(default_factory=list, metadata={"help": "NAME or NAME=PATH as in `rmtrl evaluate`."})
    minimum_accuracy: float = field(default=0.0, metadata={"help": "Least overall figure of a benchmark."})
    guard_limit: float = field(default=1.0, metadata={"help": "Largest share of current answers a guard may flag."})
    alpha: float = field(default=0.05, metadata={"help": "Rate of false alarms of drift."})
    n_permutations: int = field(default=999, metadata={"help": "Permutations of prompts."})
    n_prompts: int = field(default=300, metadata={"help": "Embedded prompts on each side."})
    reference_seed: int = field(default=1000, metadata={"help": "Seed of the embedded reference."})
    current_seed: int = field(default=2000, metadata={"help": "Seed of the embedded current side."})
    seed: int = field(default=0, metadata={"help": "Seed of the permutations."})
    text: str | None = field(default=None, metadata={"help": "For a model without chat template; `rmtrl evaluate`."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Whether to run model code from the hub."})
    use_cpu: bool = field(default=False, metadata={"help": "Score on the CPU even where there is an accelerator."})


def embedded_answers(file: Path, n_prompts: int, seed: int) -> str:
    pairs = make_preferences(n_prompts, seed, clean=True)
    names = ("id", "prompt", "domain")
    write_rows(file, ({name: pair[name] for name in names} | {"response": pair["chosen"]} for pair in pairs))
    return str(file)


def watched(scorer: RewardScorer, guards: dict[str, Any], answers: list[Any]) -> dict[str, np.ndarray]:
    flagged = {name: severities_of(guard, answers) > guard.threshold for name, guard in guards.items()}
    return {
        "prompt_id": np.array([own.prompt_id for own in answers]),
        "score": score_conversations(scorer, [own.conversation for own in answers]),
        "length_chars": np.array([len(own.text) for own in answers], float),
        "domain": np.array([own.domain for own in answers]),
        **{f"guard {name}": flags for name, flags in flagged.items()},
    }


def main() -> None:
    started = time.time()
    (recipe,) = parse_recipe((MonitorRecipeArguments,), TINY)
    if (recipe.reference is None) != (recipe.current is None):
        raise UsageError("got one of reference and current; give both, or neither for the embedded world")
    out, tasks = Path(recipe.output_dir), read_tasks(recipe.benchmarks)
    append_row(out / "history.jsonl")  # tried before the work
    settings = {"device": "cpu" if recipe.use_cpu else None, "trust_remote_code": recipe.trust_remote_code}
    guards = Policy.from_yaml(read_text(Path(recipe.policy))).guards if recipe.policy else {}
    sources = {"reference": recipe.reference, "current": recipe.current}
    for name, source in sources.items():
        seed = getattr(recipe, f"{name}_seed")
        sources[name] = source or embedded_answers(out / f"{name}.jsonl", recipe.n_prompts, seed)

    answers = {name: read_answers(source) for name, source in sources.items()}
    scorer = RewardScorer.from_pretrained(recipe.model_name_or_path, progress=False, **settings)
    sides = [watched(scorer, guards, own) for own in answers.values()]
    changed = drift(*sides, alpha=recipe.alpha, n_permutations=recipe.n_permutations, seed=recipe.seed)
    screened = screen(guards, answers["current"], limit=recipe.guard_limit)
    results = {}
    if tasks:
        run = evaluate(recipe.model_name_or_path, tasks, out / "benchmarks", text=recipe.text, **settings)
        summary([run], out / "benchmarks", started=started)
        results = {name: own.overall for name, own in run.results.items()}
    below = [name for name, figure in results.items() if figure.high < recipe.minimum_accuracy]

    alarms = [*["drift"] * changed.alarm, *["guards"] * (not screened.passed), *below]
    known = {"model": {"name": recipe.model_name_or_path, **model_fingerprint(recipe.model_name_or_path)}}
    known["data"] = {s: file_sha256(Path(s)) if Path(s).is_file() else None for s in sources.values()}
    verdict = {"schema": "rmtrl/monitor/1", "time": datetime.now(timezone.utc).isoformat(), "alarms": alarms, **known}
    found = {"drift": changed, "guards": screened, "benchmarks": results, "settings": vars(recipe)}
    write_json(out / "monitor.json", json_ready({**verdict, **found}))
    print(table({"alarms": ", ".join(alarms) or "none", **changed.words}))
    print(table({"guards, current": screened.words, "benchmarks": results, "out": str(out / "monitor.json")}))
    for warning in (*changed.warnings, *screened.warnings):
        print(f"warning: {warning}", file=sys.stderr)
    try:
        append_row(out / "history.jsonl", json_ready({**verdict, "p": changed.p, "benchmarks": results}))
    except DataError as error:  # which hides no alarm
        if not alarms:
            raise
        print(f"warning: {error}", file=sys.stderr)
    report_run(out)
    if alarms:
        raise SystemExit(1)


if __name__ == "__main__":
    with exit_on_error("monitor"):
        main()
