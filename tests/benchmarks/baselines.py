"""Explicit reward model, DPO or GRPO? Three ways from one supervised start, on the same pairs and prompts.

    python tests/benchmarks/baselines.py 1 2 3 [--save] [--folder outputs/baselines]

Each seed is a world of its own: other pairs, splits and prompts, another reward model, other samples; the supervised
start is that of `make sft`. Every stage is its recipe with no setting but the seed. Policies are judged on 400 prompts
that no training had, two answers each, by gold; the answers of the start are the same for all. Seconds are those of
the stages that a way needs beyond the start, one after another, of the seed that took the fewest: the least disturbed.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from workloads import machine
from worlds import ROOT, START, over_seeds, say, short, table, write_section

from rmtrl.types import Estimate

RM = ("rm_llama", "calibrate_rm")
WAYS = {  # name: stages before, its recipe
    "reward model, PPO": (RM, "ppo_llama"),
    "reward model, GRPO": (RM, "grpo_llama"),
    "DPO": ((), "dpo_llama"),
}
FIGURES = ("gold", "gold_usefulness", "gold_factuality", "gold_safety", "gold_alignment", "kl", "length_tokens")
ENDS = ("start", "end")


def stage(recipe: str, folder: Path, *flags: str) -> dict:
    """Runs a recipe where its folder does not stand yet; returns its record and its figures."""
    last = {"calibrate_rm": "calibration.json", "sft_llama": "rmtrl.json"}
    done = folder / last.get(recipe, "metrics.json")
    if not done.exists():
        say(f"{folder.name}: {recipe} {' '.join(flags)}")
        out = ["--run", folder] if recipe == "calibrate_rm" else ["--output_dir", folder]
        run = [sys.executable, ROOT / "recipes" / f"{recipe}.py", *map(str, out), *flags]
        finished = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
        if finished.returncode:
            raise SystemExit(finished.stderr[-2000:])
    files = {name: folder / f"{name}.json" for name in ("rmtrl", "metrics")}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def run_seed(seed: int, folder: Path) -> dict[str, dict]:
    """Returns the record and figures of each stage of a seed."""
    seeds = ["--seed", str(seed), "--split_seed", str(seed)]
    rm = folder / f"{seed}-rm"
    found = {"rm": stage("rm_llama", rm, *seeds)}
    stage("calibrate_rm", rm)
    for name, (before, recipe) in WAYS.items():
        own = folder / f"{seed}-{name.split()[-1].lower()}"
        found[name] = stage(recipe, own, *seeds, "--reward_model_path", str(rm))  # which judges DPO's answers, no more
        found[name]["seconds"] = found[name]["rmtrl"]["seconds"] + bool(before) * found["rm"]["rmtrl"]["seconds"]
    return found


def figure(runs: list[dict[str, dict]], way: str, name: str, which: str = "gain") -> Estimate:
    """Returns the mean over seeds of a figure on test prompts; of one seed, what that seed says."""
    own = [run[way]["metrics"]["test"][name][which] for run in runs]
    return Estimate(**own[0]) if len(own) == 1 else over_seeds([value["value"] for value in own])


def seconds(runs: list[dict[str, dict]], way: str) -> str:
    return f"{min(run[way]['seconds'] for run in runs):.0f}"


def rows(runs: list[dict[str, dict]]) -> list[str]:
    """Lines of the two tables."""
    heading = ["way", "gold", "usefulness", "factuality", "safety", "alignment", "KL, nats", "length, tokens", "s"]
    body = []
    for way in WAYS:
        gains = [short(figure(runs, way, name), sign=name != "kl", digits=1 if name == FIGURES[-1] else 3)
                 for name in FIGURES]  # fmt: skip
        body.append([way, *gains, seconds(runs, way)])
    judged = [
        [way, short(figure(runs, way, "reward"), sign=True), *(short(figure(runs, way, "gold", w)) for w in ENDS)]
        for way in WAYS
    ]
    said = "What the reward model says of the same answers, and gold at both ends:"
    columns = ["way", "gain in calibrated reward", *(f"gold at the {which}" for which in ENDS)]
    return [*table(heading, body), "", said, "", *table(columns, judged), "", accuracies(runs)]


def accuracies(runs: list[dict[str, dict]]) -> str:
    """Returns a line on how often each judge of pairs prefers the chosen answer of the test pairs."""
    cells = {"the reward model": [run["rm"]["metrics"]["test"]["accuracy"] for run in runs],
             "DPO's implied reward": [run["DPO"]["metrics"]["pairs"]["accuracy"] for run in runs]}  # fmt: skip
    said = [f"{name} {short(Estimate(**own[0]) if len(own) == 1 else over_seeds([one['value'] for one in own]))}"
            for name, own in cells.items()]  # fmt: skip
    return f"Accuracy on the same test pairs: {', '.join(said)}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seeds", type=int, nargs="+")
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "baselines")
    parser.add_argument("--save", action="store_true", help="put the figures into examples/ppo_grpo_dpo/README.md")
    arguments = parser.parse_args()
    if not (START / "config.json").exists():
        raise SystemExit(f"no supervised start at {START}; run make sft")
    runs = [run_seed(seed, arguments.folder) for seed in arguments.seeds]
    n = len(runs)
    kind = f"means of {n} seeds, 95 % intervals by t over seeds" if n > 1 else "one seed, 95 % intervals over prompts"
    command = f"`tests/benchmarks/baselines.py {' '.join(map(str, arguments.seeds))}`"
    lines = [f"{command}; {machine()}. Gains since the start on 400 test prompts, {kind}.", "", *rows(runs)]
    write_section("Figures", lines, save=arguments.save, path=ROOT / "examples" / "ppo_grpo_dpo" / "README.md")


if __name__ == "__main__":
    main()
