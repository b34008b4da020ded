"""The pairs of a reward recipe: read, validated and split, the same again from the record of a run."""

from collections import defaultdict
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import trl
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import ScriptArguments

from rmtrl.data.clusters import with_clusters
from rmtrl.data.preferences import last_turn_only, read_preferences
from rmtrl.data.provenance import fingerprint
from rmtrl.data.splits import Splits, check_overlap, make_splits
from rmtrl.data.synthetic import make_preferences, make_world
from rmtrl.data.validation import ValidationResult, validate
from rmtrl.errors import DataError, UsageError
from rmtrl.io import read_object
from rmtrl.metrics.ceiling import Ceiling, ceiling_of_cells
from rmtrl.reward.config import RewardConfig

SCHEMA = "rmtrl/reward-model/1"


@dataclass
class RewardRecipeArguments(ScriptArguments):
    """What a recipe is told of its pairs, besides TRL's arguments."""

    dataset_name: str | None = field(
        default="embedded", metadata={"help": "`embedded`, a file, a folder or a hub id of preference pairs."}
    )
    n_prompts: int = field(default=2000, metadata={"help": "Prompts of the embedded world."})
    unsafe_habit: float = field(
        default=0.0, metadata={"help": "What unsafe instructions are worth to annotators of the embedded world."}
    )
    last_turn_only: bool = field(default=False, metadata={"help": "Cut prompts to their last human turn."})
    split_ratios: list[float] = field(
        default_factory=lambda: [0.7, 0.1, 0.1, 0.1],
        metadata={"help": "Shares of train, validation, calibration and test."},
    )
    near_duplicates: float = field(
        default=0.8, metadata={"help": "Prompts at least this alike (Jaccard) stay in one split; 0: equal ones only."}
    )
    holdout_domains: list[str] | None = field(
        default=None, metadata={"help": "Domains kept out of all splits: spillover, to see what carries over."}
    )
    train_size: int | None = field(default=None, metadata={"help": "Pairs to train on; the rest joins test."})
    split_seed: int = field(default=0, metadata={"help": "Seed of the splits and of the embedded data."})
    early_stopping_patience: int = field(default=3, metadata={"help": "Evaluations without gain; 0: never stop."})


def read_pairs(recipe: RewardRecipeArguments, args: RewardConfig) -> Dataset:
    """Returns the pairs of the embedded world, or of a file, folder or hub id, with what cannot be read."""
    if recipe.dataset_name == "embedded":
        return make_preferences(
            recipe.n_prompts, recipe.split_seed, criteria=args.loss_type == "attributes",
            unsafe_habit=recipe.unsafe_habit,
        )  # fmt: skip
    pairs = read_preferences(
        str(recipe.dataset_name), split=recipe.dataset_train_split, name=recipe.dataset_config,
        faulty="keep",  # what cannot be read is counted too
    )  # fmt: skip
    return last_turn_only(pairs) if recipe.last_turn_only else pairs


def label_ceiling(recipe: RewardRecipeArguments, pairs: Dataset) -> Ceiling:
    """Returns the highest accuracy any model could reach against labels of pairs, ties and rejects among them.

    The votes behind the labels are those of the embedded world, or stand in the column `votes_by_annotator`.
    """
    if recipe.dataset_name == "embedded":
        points, given = {"a": 1.0, "b": 0.0, "tie": 0.5}, defaultdict[tuple[str, ...], dict[str, float]](dict)
        for vote in make_world(recipe.n_prompts, seed=recipe.split_seed, unsafe_habit=recipe.unsafe_habit).votes:
            given[vote["prompt_id"], vote["a"], vote["b"]][vote["annotator"]] = points[vote["choice"]]
        return ceiling_of_cells(list(given.values()), [prompt_id for prompt_id, *_ in given])
    cells = pairs["votes_by_annotator"] if "votes_by_annotator" in pairs.column_names else None
    return ceiling_of_cells(cells, list(map(str, pairs["prompt_id"])))  # a row that cannot be read has no prompt


def checked_splits(
    pairs: Dataset, recipe: RewardRecipeArguments, tokenizer: PreTrainedTokenizerBase, args: RewardConfig
) -> tuple[ValidationResult, Splits]:
    """Returns what validation found, and the splits of what it kept.

    Raises:
        DataError: If no pair is kept.
        UsageError: If the shares leave no validation or no test pairs.
    """
    valid = validate(
        pairs, tokenizer=tokenizer, max_length=args.max_length, ties="keep" if args.knows_ties else "drop"
    )
    if len(valid.kept) == 0:
        raise DataError(f"all {valid.n:,} pairs of {recipe.dataset_name} were rejected: {valid.why}; mend the data")
    kept = with_clusters(valid.kept, threshold=recipe.near_duplicates) if recipe.near_duplicates else valid.kept
    if len(recipe.split_ratios) != 4:
        raise UsageError(f"got split_ratios {recipe.split_ratios}; wanted four shares with sum 1")
    train, validation, calibration, test = recipe.split_ratios
    splits = make_splits(
        kept, ratios=(train, validation, calibration, test), seed=recipe.split_seed, train_size=recipe.train_size,
        holdout_domains=recipe.holdout_domains or (),
    )  # fmt: skip
    check_overlap(splits.as_dict())
    if not (len(splits.validation) and len(splits.test)):
        raise UsageError(f"split_ratios {recipe.split_ratios} leave no validation or no test pairs; both are needed")
    return valid, splits


def read_record(run: Path) -> dict[str, Any]:
    """Returns the `rmtrl.json` of a finished run.

    Raises:
        DataError: If the folder holds none, or one of another recipe.
    """
    try:
        record = read_object(run / "rmtrl.json")
    except DataError as error:
        raise DataError(f"no finished run at {run}: {error}; train one with recipes/rm_llama.py") from error
    known = {field.name for field in fields(RewardRecipeArguments)}
    if record.get("schema") != SCHEMA or not set(record.get("recipe", ())) <= known:
        raise DataError(f"{run} is not a run of this recipes/rm_llama.py; use rmtrl calibrate")
    return record


def held_out(record: dict[str, Any], tokenizer: PreTrainedTokenizerBase, run: Path) -> tuple[Dataset, Dataset]:
    """Returns the calibration and the test split of a run, the same rows in the same order.

    Raises:
        DataError: If they cannot be rebuilt as they were, or are empty.
    """
    recipe = RewardRecipeArguments(**record["recipe"])
    own = {field.name for field in fields(RewardConfig)} - {field.name for field in fields(trl.RewardConfig)}
    args = RewardConfig(
        str(run), report_to="none", **{n: v for n, v in record["config"].items() if n in own | {"max_length"}}
    )
    _, splits = checked_splits(read_pairs(recipe, args), recipe, tokenizer, args)
    for name, rows in (("calibration", splits.calibration), ("test", splits.test)):
        if fingerprint(rows) != record["splits"][name]["fingerprint"]:
            raise DataError(
                f"the {name} split rebuilt from {recipe.dataset_name} differs from that of the run in {run}: data or "
                "code changed since; train again, or calibrate with rmtrl calibrate on pairs the model has not seen"
            )
        if len(rows) == 0:
            raise DataError(f"the run in {run} left no {name} pairs; train with a share for it in split_ratios")
    return splits.calibration, splits.test
