"""What a PPO checkpoint holds: the policy as any Hugging Face model, the value model beside it, and the run's state.

The host's own files (optimizer, scheduler, random state, trainer state, which is written last) stand with them.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from peft.utils import load_peft_weights
from safetensors import SafetensorError
from safetensors.torch import load_model as load_module
from safetensors.torch import save_model as save_module
from transformers import PreTrainedModel
from transformers.trainer import TRAINER_STATE_NAME

from rmtrl.errors import ModelError
from rmtrl.io import write_json
from rmtrl.ppo.backbone import SharedValue, load_adapter, under
from rmtrl.ppo.models import SequenceValue

if TYPE_CHECKING:
    from rmtrl.ppo.trainer import PPOTrainer

VALUE, STATE = "value_model", "ppo_state.json"


def save(trainer: "PPOTrainer", folder: Path, *, with_state: bool) -> None:
    """Writes policy, tokenizer and value model, and with `with_state` what a resumed run needs besides.

    Args:
        trainer ([`PPOTrainer`]): The trainer.
        folder (`Path`): Where to.
        with_state (`bool`): Whether this is a checkpoint of a run.
    """
    sharded = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped) if sharded else None
    if not trainer.args.should_save:
        return
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    _save(model.policy, folder, under(weights, "policy."))
    value = model.value_model
    if isinstance(value, SharedValue):
        value.save_pretrained(folder / VALUE, weights)
    else:
        inner = value.model if isinstance(value, SequenceValue) else value
        _save(inner, folder / VALUE, under(weights, "value_model.model." if inner is not value else "value_model."))
    trainer.processing_class.save_pretrained(folder)
    torch.save(trainer.args, folder / "training_args.bin")
    if with_state:
        write_json(folder / STATE, state(trainer))


def _save(model: Any, folder: Path, weights: dict[str, Any] | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, PeftModel):
        model.save_pretrained(str(folder), state_dict=weights, selected_adapters=[model.active_adapter])
    elif isinstance(model, PreTrainedModel):
        model.save_pretrained(folder, state_dict=weights)
    else:
        save_module(model, str(folder / "model.safetensors"))


def to_resume(trainer: "PPOTrainer", given: "str | Path | bool") -> str:
    """Returns the checkpoint to resume from; `True` is the newest in `output_dir` that was written to its end.

    Args:
        trainer ([`PPOTrainer`]): The trainer.
        given (`str`, `Path` or `True`): A checkpoint, or the newest.

    Raises:
        ModelError: If there is none, or the run cannot go on from it.
    """
    if isinstance(given, bool):
        finished = [folder for folder in Path(str(trainer.args.output_dir)).glob("checkpoint-*") if _state(folder)]
        if not finished:
            raise ModelError(
                f"no finished checkpoint in {trainer.args.output_dir}; train without resume_from_checkpoint"
            )
        given = max(finished, key=lambda folder: int(folder.name.rpartition("-")[2]))
    folder = Path(given)
    if not (stored := _state(folder)):
        raise ModelError(
            f"{folder} is no checkpoint that PPOTrainer wrote to its end; give one, or True for the newest"
        )
    if stored["batch_size"] != trainer.batch_size:
        raise ModelError(
            f"{folder} was written with {stored['batch_size']} episodes a batch and this run has "
            f"{trainer.batch_size}; resume with the same batch"
        )
    for name, value in _settings(trainer).items():
        if value != (was := stored["run"][name]):
            raise ModelError(f"{folder} was written with {name} {was} and this run has {value}; resume with the same")
    if bool(stored["reward"]) != bool(_reward_state(trainer)):
        raise ModelError(f"{folder} was written with another kind of reward; resume with the same reward settings")
    if not trainer.is_deepspeed_enabled and not any(folder.glob("optimizer*")):
        raise ModelError(
            f"{folder} holds no optimizer state (save_only_model=True?): no run can go on from it; "
            "start a new one with this folder as model"
        )
    return str(folder)


def _state(folder: Path) -> dict[str, Any]:
    """What the checkpoint holds beside the host's files; nothing if it was not written to its end."""
    try:
        json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))  # the last file to be written
        return dict(json.loads((folder / STATE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def load_models(trainer: "PPOTrainer", folder: Path) -> None:
    """Loads the weights of policy and value model from a checkpoint.

    Raises:
        ModelError: If there are none, or they are of another shape or kind of model.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    value = model.value_model
    try:
        _load(model.policy, folder)
        _load(value.model if isinstance(value, SequenceValue) else value, folder / VALUE)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"{folder} is no checkpoint of this run: {' '.join(str(error).split())[:200]}; give one that was written "
            "with the same policy, value model and adapter"
        ) from error


def _load(model: Any, folder: Path) -> None:
    if isinstance(model, PeftModel):
        adapter = str(model.active_adapter)
        _load_adapter(model, adapter, folder if adapter == "default" else folder / adapter)
    elif isinstance(model, SharedValue):
        model.load_pretrained(folder)
    elif isinstance(model, PreTrainedModel):
        if not (folder / "config.json").is_file():
            raise OSError(f"no model in {folder}")
        model.load_state_dict(type(model).from_pretrained(folder).state_dict())
    else:
        load_module(model, str(folder / "model.safetensors"))


def _load_adapter(model: PeftModel, adapter: str, folder: Path) -> None:
    if not (folder / "adapter_config.json").is_file():
        raise OSError(f"no adapter in {folder}")
    load_adapter(model, adapter, load_peft_weights(str(folder), device="cpu"))


def state(trainer: "PPOTrainer") -> dict[str, Any]:
    """Returns what a resumed run needs beside weights and optimizer, ready for JSON."""
    return {
        "schema": "rmtrl/ppo-state/1",
        "batch_size": trainer.batch_size,
        "run": _settings(trainer) | {"reference": _reference(trainer)},
        **carried(trainer),
        "last_log": {"step": trainer._globalstep_last_logged, "loss_since": float(trainer._tr_loss)},
        "metrics": dict(trainer._metrics),
        "evaluation": trainer.evaluation_state(),
    }


def _settings(trainer: "PPOTrainer") -> dict[str, Any]:
    """Returns what the episodes of a run follow from, ready for JSON."""
    args, prompts = trainer.args, trainer.train_prompts
    return {
        "seed": args.seed,
        "data_seed": args.data_seed,
        "num_generations": args.num_generations,
        "prompts": f"{len(prompts)} ({prompts.digest:x})",  # how many, and a digest of their tokens
    }


def _reference(trainer: "PPOTrainer") -> str | None:
    """Returns a digest of the reference's weights, some numbers of each; none where they are spread over processes."""
    if trainer.ref_model is None and (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):
        return None
    model = trainer.accelerator.unwrap_model(trainer.model).policy if trainer.ref_model is None else trainer.ref_model
    digest = hashlib.blake2b(digest_size=8)
    for name, weight in model.named_parameters():
        if not weight.requires_grad:  # those of a policy that trains are no part of it
            numbers = weight.detach().flatten()[:: max(1, weight.numel() // 64)]
            digest.update(name.encode() + numbers.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def carried(trainer: "PPOTrainer") -> dict[str, Any]:
    """Returns what a run changes beside weights: KL coefficient and moments of the reward."""
    return {"kl_controller": trainer.kl_controller.state_dict(), "reward": _reward_state(trainer)}


def load_carried(trainer: "PPOTrainer", stored: dict[str, Any]) -> None:
    """Restores what [`carried`] returned."""
    trainer.kl_controller.load_state_dict(stored["kl_controller"])
    if stored["reward"]:
        trainer.reward.load_state_dict(stored["reward"])  # type: ignore[attr-defined]


def _reward_state(trainer: "PPOTrainer") -> dict[str, Any]:
    return dict(trainer.reward.state_dict()) if hasattr(trainer.reward, "state_dict") else {}


def load_state(folder: str, trainer: "PPOTrainer") -> None:
    """Restores KL controller, running moments of the reward, and figures not yet logged.

    Raises:
        ModelError: If the reference is another.
    """
    stored = _state(Path(folder))
    if stored["run"]["reference"] != _reference(trainer):
        raise ModelError(
            f"{folder} was written with another reference; resume with the model that the run started from, and the "
            "same ref_model"
        )
    load_carried(trainer, stored)
    trainer._globalstep_last_logged = stored["last_log"]["step"]
    trainer._tr_loss += stored["last_log"]["loss_since"]
    trainer._total_loss_scalar -= stored["last_log"]["loss_since"]  # of updates before this run's first
    trainer._metrics.update(stored["metrics"])
    trainer.load_evaluation_state(stored["evaluation"])
