"""What every recipe does before and after its stage: read the settings, stage the folder, write the record."""

import math
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from accelerate import Accelerator
from datasets import Dataset
from transformers import ProgressCallback, Trainer, TrainingArguments
from trl import ModelConfig, ScriptArguments, TrlParser

from rmtrl.data.loading import load_rows
from rmtrl.data.provenance import environment
from rmtrl.errors import DataError, RmtrlError, UsageError
from rmtrl.io import former_folder, read_object
from rmtrl.processes import cpu_has_bf16
from rmtrl.reporting.cards import write_card
from rmtrl.reporting.report import read_run, write_report

RESUMES = "finished checkpoints stay; the same command with --resume_from_checkpoint true goes on from the newest"
"""What an interruption of training leaves."""
_LARGE_PARAMETERS = 100_000_000
_USUAL = {
    "num_train_epochs": (1, 3),
    "weight_decay": (0.01, 0.1),
    "max_grad_norm": (1.0, 1.0),
    "global batch": (32, 128),
    "warmup_steps": (0.05, 0.1),
}


def parse_recipe(dataclass_types: Sequence[Any], default_config: Path) -> tuple[Any, ...]:
    """Returns one instance of each dataclass, from the default configuration, `--config` and the flags, in that order.

    Without `--config` the recipe runs its default. On a machine without accelerator `use_cpu` is set, without which
    TRL's configurations refuse their own defaults, and on a CPU without bf16 arithmetic bf16 is off, where the
    dataclasses have them.

    Args:
        dataclass_types: As in [`~trl.TrlParser`].
        default_config (`Path`): YAML file used when no `--config` is given.

    Raises:
        UsageError: If a file, a name or a value cannot be used.
    """
    arguments = sys.argv[1:]
    if not {"--config", "-h", "--help"} & set(arguments):
        arguments = ["--config", str(default_config), *arguments]
    if not torch.accelerator.is_available():
        known = {setting.name for kind in dataclass_types for setting in fields(kind)}
        needed = {"use_cpu": "true"} | ({} if cpu_has_bf16() else {"bf16": "false"})
        arguments = [*(f"--{name}={value}" for name, value in needed.items() if name in known), *arguments]
    try:
        return tuple(_Parser(dataclass_types, allow_abbrev=False).parse_args_and_config(arguments))
    except UsageError:
        raise
    except (ValueError, OSError, yaml.YAMLError) as error:
        raise UsageError(f"{error}; see --help for the settings") from error


class _Parser(TrlParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see --help for the settings")  # argparse would print hundreds of lines of usage


def read_rows(recipe: ScriptArguments) -> Dataset:
    """Returns the rows of the file, folder or hub id that `dataset_name` names, of its training split."""
    return load_rows(str(recipe.dataset_name), split=recipe.dataset_train_split, name=recipe.dataset_config)


def evaluate_often(args: TrainingArguments, n_pairs: int) -> None:
    """Sets the evaluation interval to `eval_steps` of the run, at most 500 steps, where `eval_steps` is a share.

    Checkpoints are saved as often, so that the best one can be kept.
    """
    if args.eval_strategy != "steps" or args.eval_steps is None or args.eval_steps >= 1:
        return
    steps = args.max_steps if args.max_steps > 0 else math.ceil(n_pairs / global_batch(args)) * args.num_train_epochs
    args.eval_steps = args.save_steps = max(1, min(500, round(steps * args.eval_steps)))


def global_batch(args: TrainingArguments) -> int:
    """Returns the rows of one optimizer step over all processes."""
    return int(args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size)


def unusual_settings(args: TrainingArguments, *, n_parameters: int, adapter: bool) -> list[str]:
    """Returns a note for each setting outside the range usual for reward models of 0.1 billion parameters or more.

    Learning rate 5e-6 to 5e-5 for full fine-tuning and 5e-5 to 5e-4 for adapters, 32 to 128 pairs a step, 1 to 3
    epochs, warm-up 5 to 10 % of the run, weight decay 0.01 to 0.1, gradients clipped at 1.
    """
    if n_parameters < _LARGE_PARAMETERS:
        return []
    kind, rate = ("adapters", (5e-5, 5e-4)) if adapter else ("full fine-tuning", (5e-6, 5e-5))
    ranges = _USUAL | {"learning_rate": rate}
    if args.warmup_steps >= 1:  # steps, not a share of the run
        del ranges["warmup_steps"]
    got = vars(args) | {"global batch": global_batch(args)}
    return [
        f"{name} is {got[name]:g}; {low:g} to {high:g} is usual for {kind} of a reward model"
        for name, (low, high) in ranges.items()
        if not low <= got[name] <= high
    ]


def start_stage(args: TrainingArguments, schema: str, **needed: str | None) -> tuple[Path, str | None]:
    """Returns the folder that a run is for, and the checkpoint that it goes on from; see [`checkpoint_to_resume`].

    The run trains in `<folder>.partial`, which replaces the folder when finished; an earlier run stays as
    `.NAME.old`.

    Args:
        args ([`~transformers.TrainingArguments`]): Its `output_dir` is set.
        schema (`str`): Schema of the stage's `rmtrl.json`: only a folder of the same stage may be replaced.
        needed: Models that the run starts from, by the names of their flags.

    Raises:
        UsageError: If a model is not named, or the folder holds anything else or cannot be written.
        DataError: If there is no such checkpoint.
    """
    for name, model in needed.items():
        if model is None:
            raise UsageError(f"got no {name}; give --{name} (recipes/sft_llama.py and rm_llama.py make one)")
    final = Path(str(args.output_dir).removesuffix(".partial"))
    record = final / "rmtrl.json"
    stands = read_object(record).get("schema") if record.is_file() else None
    if final.exists() and stands != schema and (not final.is_dir() or any(final.iterdir())):
        raise UsageError(
            f"output_dir {final} holds something other than an earlier run of this stage, which this run would "
            "replace; give another --output_dir"
        )
    above = next(own for own in final.absolute().parents if own.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(
            f"cannot write output_dir {final}: {above} is no folder to write in; give another --output_dir"
        )
    if stands and args.process_index == 0:
        kept = former_folder(final)
        print(f"{final} holds an earlier run: once this one is done, that is kept in {kept}", file=sys.stderr)
    args.output_dir = f"{final}.partial"
    args.hub_model_id = args.hub_model_id or (final.name if args.push_to_hub else None)
    return final, checkpoint_to_resume(args)


def prepare_folder(trainer: Trainer, resume: str | None) -> None:
    """Makes the folder of a run that is about to train, whose processes have to see it and to save whole models in it.

    Checkpoints of an earlier, unfinished run are deleted, so that none is resumed later. The bar of the training ends
    its line.

    Args:
        trainer ([`~transformers.Trainer`]): Its `output_dir` is the folder.
        resume (`str`, *optional*): The checkpoint that the run goes on from: then all stay.

    Raises:
        UsageError: On every process, if the model would not be saved whole or a machine does not see the folder.
    """
    accelerator, folder = trainer.accelerator, Path(str(trainer.args.output_dir))
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(_Progress)
    if why := _why_not_saved(accelerator):
        raise UsageError(f"the trained model would not be saved: {why} in the file given to accelerate launch")
    seen = folder / ".seen"
    if accelerator.is_main_process:
        for checkpoint in folder.glob("checkpoint-*") if resume is None else ():
            shutil.rmtree(checkpoint)
        seen.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()
    n_seeing = int(accelerator.gather(torch.tensor([int(seen.is_dir())], device=accelerator.device)).sum())
    if accelerator.is_main_process:
        seen.rmdir()
    if n_seeing < accelerator.num_processes:
        raise UsageError(
            f"{n_seeing} of {accelerator.num_processes} processes see output_dir {folder.resolve()} of the first "
            "machine; give a folder on a disk that all machines share"
        )


class _Progress(ProgressCallback):
    """The host's, whose bar is left without the end of its line where training is over before a bar is due."""

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        super().on_train_begin(*args, **kwargs)
        if self.training_bar is not None:
            self.training_bar.delay = 0  # the first log shows it anyway


def _why_not_saved(accelerator: Accelerator) -> str | None:
    fsdp, zero = (getattr(accelerator.state, f"{name}_plugin", None) for name in ("fsdp", "deepspeed"))
    if fsdp is not None and "FULL" not in str(fsdp.state_dict_type):
        return "set fsdp_state_dict_type to FULL_STATE_DICT"
    settings = {} if zero is None else zero.deepspeed_config["zero_optimization"]
    if settings.get("stage") == 3 and not settings.get("stage3_gather_16bit_weights_on_model_save"):
        return "set zero3_save_16bit_model to true"
    return None


def checkpoint_to_resume(args: TrainingArguments) -> str | None:
    """Returns the checkpoint that `--resume_from_checkpoint` names; `true` is the newest that was written to its end.

    The trainer state is the last file of a checkpoint, so a kill while saving leaves none, or a part of one.

    Raises:
        DataError: If there is none.
    """
    given = str(args.resume_from_checkpoint or "false")
    if given.lower() == "false":
        return None
    if given.lower() != "true":
        if not _is_finished(Path(given)):
            raise DataError(f"{given} is not a finished checkpoint; give one, or `true` for the newest")
        return given
    finished = [path for path in Path(str(args.output_dir)).glob("checkpoint-*") if _is_finished(path)]
    if not finished:
        raise DataError(
            f"no finished checkpoint in {args.output_dir} to resume from; start without --resume_from_checkpoint"
        )
    return str(max(finished, key=lambda path: int(path.name.split("-")[1])))


def _is_finished(checkpoint: Path) -> bool:
    try:
        read_object(checkpoint / "trainer_state.json")
    except DataError:
        return False
    return True


def model_init_kwargs(model_args: ModelConfig) -> dict[str, Any]:
    """Returns the keyword arguments of `from_pretrained` that the flags of `ModelConfig` ask for."""
    given = {"revision": model_args.model_revision, "dtype": model_args.dtype}
    attention = model_args.attn_implementation
    return given if attention is None else {**given, "attn_implementation": attention}


def n_parameters(trainer: Trainer) -> int:
    """Returns the weights of a trainer's model, also of those that ZeRO-3 has spread over processes."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    spread = (weight.ds_numel - weight.numel() for weight in model.parameters() if hasattr(weight, "ds_numel"))
    return int(model.num_parameters() + sum(spread))


STAGES = ("sft", "rm", "ppo", "grpo", "dpo", "eval", "monitor")
"""Names of folders that belong to the run they stand in."""


def report_run(folder: Path) -> None:
    """Writes the report and the reward model's card of the run that a finished stage belongs to, or says why not.

    An open wandb run gets the report and a reference to the stage's folder as artifacts.

    Args:
        folder (`Path`): The stage's; one of another name than [`STAGES`] is a run of its own.
    """
    try:
        run = read_run(folder.parent if folder.name in STAGES else folder)
        page = write_report(run)
        write_card(run)
    except RmtrlError as error:
        print(f"warning: no report: {error}", file=sys.stderr)
        return
    print(f"report: {page}")
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        report, stage = (wandb.Artifact(f"{wandb.run.id}-{kind}", type=kind) for kind in ("report", "model"))
        report.add_file(str(page))
        stage.add_reference(folder.resolve().as_uri(), checksum=False)
        for artifact in (stage, report):
            wandb.run.log_artifact(artifact)


def push_records(trainer: Trainer, folder: Path) -> None:
    """Sends card, records and plots of a finished stage to the hub, where the trainer has sent the weights."""
    from huggingface_hub import HfApi

    if trainer.args.push_to_hub:
        HfApi(token=trainer.args.hub_token).upload_folder(
            repo_id=str(trainer.hub_model_id), folder_path=folder, allow_patterns=["README.md", "*.json", "plots/*"],
            commit_message="Figures and card", revision=trainer.args.hub_revision,
        )  # fmt: skip


def stage_record(
    trainer: Trainer, recipe: Any, model_args: ModelConfig, *, final: Path, started: float, training: dict[str, float]
) -> dict[str, Any]:
    """Returns what every stage writes into `rmtrl.json`: settings, seeds, versions, processes and times.

    Args:
        trainer ([`~transformers.Trainer`]): The trainer, after training.
        recipe: The recipe's own arguments, a dataclass.
        model_args ([`~trl.ModelConfig`]): The model's arguments.
        final (`Path`): The folder the run is for.
        started (`float`): `time.time()` at the start.
        training (`dict[str, float]`): Metrics that `train()` returned.
    """
    args = trainer.args
    return {
        "model": {**asdict(model_args), "parameters": n_parameters(trainer)},
        "seeds": {"initialisation": args.seed, "sampling": args.seed if args.data_seed is None else args.data_seed},
        "recipe": asdict(recipe),
        "config": args.to_dict() | {"output_dir": str(final)},
        "processes": trainer.accelerator.num_processes,
        "best_step": trainer.state.best_global_step,
        "started": datetime.fromtimestamp(started, timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 1),
        "training": training,
        "environment": environment(),
    }
