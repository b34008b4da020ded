"""What the policy recipes share: prompts and splits, the policy, its reward and its judges, and what came of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, Trainer
from trl import ModelConfig, ScriptArguments, get_quantization_config

from rmtrl.calibration.calibration import FILE, read_calibration
from rmtrl.data.synthetic import make_preferences
from rmtrl.data.synthetic.gold import GOLD_WEIGHTS, GoldScorer
from rmtrl.errors import DataError
from rmtrl.evaluation.fingerprints import model_fingerprint
from rmtrl.io import read_text, replace_folder, write_json
from rmtrl.launch import model_init_kwargs, read_rows, report_run
from rmtrl.metrics import mean_estimate
from rmtrl.monitoring.rules import Policy
from rmtrl.ppo.config import PPOConfig
from rmtrl.ppo.models import load_policy as load_language_policy
from rmtrl.ppo.rewards import ComposedReward, Filter, LengthPenalty
from rmtrl.reward.remote import load_scorer
from rmtrl.types import Estimate, Guard, Scorer, checkpoint_of, json_ready


@dataclass
class PolicyRecipeArguments(ScriptArguments):
    """What a policy recipe is told besides TRL's arguments; it takes `trust_remote_code` from those where they say."""

    dataset_name: str | None = field(
        default="embedded", metadata={"help": "`embedded`, a .json(l) file, a folder or a hub id with `prompt`."}
    )
    n_prompts: int = field(default=1500, metadata={"help": "Prompts of the embedded world to train on, about."})
    n_validation: int = field(default=200, metadata={"help": "Prompts that watch the run."})
    n_test: int = field(default=400, metadata={"help": "Prompts that report it."})
    split_seed: int = field(default=0, metadata={"help": "Seed of the splits and of the embedded prompts."})
    judge_model_path: str | None = field(
        default=None, metadata={"help": "A reward model that watches beside the reward; the embedded world has gold."}
    )
    calibrated: bool = field(default=True, metadata={"help": "Use calibration.json beside the reward model, if any."})
    pessimism: float = field(default=0.0, metadata={"help": "Standard deviations taken off an uncertain reward."})
    length_penalty: float = field(default=0.0, metadata={"help": "Taken off a token beyond length_free_tokens."})
    length_free_tokens: int = field(default=256, metadata={"help": "Tokens without length penalty."})
    guard_policy: str | None = field(
        default=None, metadata={"help": "A policy file of `rmtrl guard`: what its guards flag is penalised."}
    )
    guard_penalty: float = field(default=1.0, metadata={"help": "Taken off an answer for each guard that flags it."})
    overoptimization: str = field(
        default="warn", metadata={"help": "When a judge falls while the reward rises: warn or stop.",
                                  "choices": ["warn", "stop"]}
    )  # fmt: skip
    trust_remote_code: bool = field(default=False, init=False)


@dataclass
class PPORecipeArguments(PolicyRecipeArguments):
    """What the PPO recipe is told besides TRL's arguments."""

    trust_remote_code: bool = field(default=False, metadata={"help": "Whether to run model code from the hub."})


def read_prompt_splits(recipe: PolicyRecipeArguments) -> dict[str, Dataset]:
    """Returns the prompts to train on, to watch the run with and to report it with; no prompt stands in two.

    Raises:
        DataError: If they cannot be read, or are too few.
    """
    if recipe.dataset_name == "embedded":  # anew: some the reward model may have been trained on, as in practice
        wanted = recipe.n_prompts + recipe.n_validation + recipe.n_test
        rows = make_preferences(wanted, 1000 + recipe.split_seed).select_columns(["prompt", "domain"])
    else:
        rows = read_rows(recipe)
        answers = [column for column in ("chosen", "rejected", "completion") if column in rows.column_names]
        rows = rows.remove_columns(answers)
    if "prompt" not in rows.column_names:
        raise DataError(f"{recipe.dataset_name} has the columns {', '.join(rows.column_names)}; wanted `prompt`")
    different = pd.Series(map(repr, rows["prompt"])).drop_duplicates().index
    order = np.random.default_rng(recipe.split_seed).permutation(different)
    held_out = recipe.n_validation + recipe.n_test
    if len(order) <= held_out:
        raise DataError(
            f"{recipe.dataset_name} has {len(order):,} different prompts, and {held_out:,} are to be held out; lower "
            "n_validation and n_test"
        )
    validation, test, train = np.split(order, [recipe.n_validation, held_out])
    parts = {"train": train, "validation": validation, "test": test}
    return {name: rows.select(np.sort(part)) for name, part in parts.items()}


def load_policy(model_args: ModelConfig, *, trust_remote_code: bool = False) -> "PreTrainedModel | PeftModel":
    """Returns the language model that the flags name.

    Raises:
        ModelError: If there is none.
    """
    settings = model_init_kwargs(model_args) | {"quantization_config": get_quantization_config(model_args)}
    settings |= {"adapted": bool(model_args.use_peft), "trust_remote_code": trust_remote_code}
    return load_language_policy(str(model_args.model_name_or_path), **settings)


def make_reward(
    recipe: PolicyRecipeArguments, args: PPOConfig, *, filters: Sequence[Filter | Guard] = ()
) -> ComposedReward:
    """Returns the reward model as a reward: calibrated where a calibration of these weights stands beside it.

    Raises:
        ModelError: If there is no reward model.
        DataError: If the calibration is of another model, or the file of guards cannot be read.
        UsageError: If a guard of it cannot be used.
    """
    path = str(args.reward_model_path)
    scorer: Any = path  # for the trainer to put on the policy's backbone
    if not args.one_backbone:
        scorer = load_scorer(path, trust_remote_code=recipe.trust_remote_code, progress=False)
    calibration, folder = None, checkpoint_of(path)
    if recipe.calibrated and folder and (Path(folder) / FILE).is_file():
        calibration = read_calibration(folder, model_fingerprint=model_fingerprint(path))
    penalty = LengthPenalty(recipe.length_free_tokens, recipe.length_penalty) if recipe.length_penalty else None
    guards = Policy.from_yaml(read_text(Path(recipe.guard_policy))).guards if recipe.guard_policy else {}
    own = [Filter(name, guard.flags, -recipe.guard_penalty, "penalise") for name, guard in guards.items()]
    settings: dict[str, Any] = {"calibration": calibration, "pessimism": recipe.pessimism, "filters": [*filters, *own]}
    return ComposedReward(scorer, length_penalty=penalty, **settings)


def judges(recipe: PolicyRecipeArguments) -> dict[str, Scorer]:
    """Returns the scorers that watch beside the reward: another reward model, and gold in the embedded world."""
    found: dict[str, Scorer] = {}
    if recipe.dataset_name == "embedded":
        found["gold"] = GoldScorer()
        found |= {f"gold_{criterion}": GoldScorer({criterion: 1.0}) for criterion in GOLD_WEIGHTS}
    if recipe.judge_model_path:
        settings: dict[str, Any] = {"trust_remote_code": recipe.trust_remote_code, "progress": False}
        found["judge"] = load_scorer(recipe.judge_model_path, **settings)
    return found


def paired_figures(
    start: Sequence[Mapping[str, Any]], end: Sequence[Mapping[str, Any]], n: int
) -> dict[str, dict[str, Estimate]]:
    """Returns each figure of a policy at the start, at the end, and its gain paired by prompt.

    Args:
        start, end (`Sequence[Mapping]`): `samples_` of the trainer: n responses to each prompt, which stand together.
        n (`int`): Responses to each prompt.
    """
    figures = {}
    for name in [name for name, value in start[0].items() if isinstance(value, float)]:
        before, after = (np.array([row[name] for row in rows]).reshape(-1, n).mean(1) for rows in (start, end))
        columns = {"start": before, "end": after, "gain": after - before}
        figures[name] = {which: mean_estimate(column, proportion=False) for which, column in columns.items()}
    return figures


def finish_stage(
    trainer: Trainer, final: Path, record: Mapping[str, Any], samples: Mapping[str, Sequence[Mapping[str, Any]]],
    n: int, **more: Any,
) -> None:  # fmt: skip
    """Writes what came of a policy's training, puts the folder in place and prints the figures on test prompts.

    Args:
        trainer ([`~transformers.Trainer`]): Its output folder holds the policy.
        final (`Path`): Where the folder belongs.
        record (`Mapping`): What `rmtrl.json` holds; its `schema` names the stage.
        samples (`Mapping`): Rows of the policy's `start` and `test`, n a prompt; see [`paired_figures`].
        n (`int`): Responses to each prompt.
        more: What else `metrics.json` holds.
    """
    folder, figures = Path(str(trainer.args.output_dir)), paired_figures(samples["start"], samples["test"], n)
    metrics = {"schema": record["schema"].replace("/1", "-metrics/1"), "test": figures} | more
    write_json(folder / "metrics.json", json_ready(metrics))
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples["test"]))
    write_json(folder / "rmtrl.json", {**record, "figures": {"chosen on": "validation", "reported on": "test"}})
    replace_folder(folder, final, keep=True)
    print(summary(str(final), figures))
    report_run(final)


def summary(folder: str, figures: Mapping[str, Mapping[str, Estimate]]) -> str:
    """Returns the figures on test prompts as a table, and names what did not move."""
    lines = [f"{folder}: test prompts", f"  {'':<18} {'start':>8} {'end':>8}  gain, paired by prompt"]
    for name, figure in figures.items():
        start, end, gain = (figure[which] for which in ("start", "end", "gain"))
        moved = gain.low > 0 or gain.high < 0
        lines.append(
            f"  {name:<18} {start.value:8.3f} {end.value:8.3f}  {gain:+.3f}" + ("" if moved else "  (not told from 0)")
        )
    return "\n".join([*lines, f"  n = {gain.n:,} prompts; 95 % intervals"])
