"""What a PPO checkpoint holds: the policy as any Hugging Face model, the value model beside it, and the run's state.

The host's own files (optimizer, scheduler, random state, trainer state, which is written last) stand with them.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from peft.utils import load_peft_weights
from safetensors.torch import load_model as load_module
from safetensors.torch import save_model as save_module
from transformers import PreTrainedModel, Trainer

from rmtrl.data.provenance import write_json
from rmtrl.errors import ModelError
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
    _save(model.policy, folder, _under(weights, "policy."))
    value = model.value_model
    inner = value.model if isinstance(value, SequenceValue) else value
    _save(inner, folder / VALUE, _under(weights, "value_model.model." if inner is not value else "value_model."))
    trainer.processing_class.save_pretrained(folder)
    torch.save(trainer.args, folder / "training_args.bin")
    if with_state:
        write_json(folder / STATE, state(trainer))


def _under(weights: dict[str, Any] | None, prefix: str) -> dict[str, Any] | None:
    if weights is None:
        return None
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}


def _save(model: Any, folder: Path, weights: dict[str, Any] | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, PeftModel):
        model.save_pretrained(str(folder), state_dict=weights, selected_adapters=[model.active_adapter])
    elif isinstance(model, PreTrainedModel):
        model.save_pretrained(folder, state_dict=weights)
    else:
        save_module(model, str(folder / "model.safetensors"))


def load_models(trainer: "PPOTrainer", folder: Path) -> None:
    """Loads the weights of policy and value model from a checkpoint.

    Raises:
        ModelError: If there are none, or they are of another shape or kind of model.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    value = model.value_model
    try:
        _load(trainer, model.policy, folder)
        _load(trainer, value.model if isinstance(value, SequenceValue) else value, folder / VALUE)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(
            f"{folder} is no checkpoint of this run: {str(error).splitlines()[0]}; give one that was written with the "
            "same policy, value model and adapter"
        ) from error


def _load(trainer: "PPOTrainer", model: Any, folder: Path) -> None:
    if isinstance(model, PeftModel):
        adapter = str(model.active_adapter)
        own = folder if adapter == "default" else folder / adapter
        if not own.is_dir():
            raise OSError(f"no adapter in {own}")
        loaded: Any = set_peft_model_state_dict(model, load_peft_weights(str(own), device="cpu"), adapter_name=adapter)
        if loaded.unexpected_keys:
            raise ValueError(f"unexpected weights {loaded.unexpected_keys[0]}")
    elif isinstance(model, PreTrainedModel):
        Trainer._load_from_checkpoint(trainer, str(folder), model=model)
    else:
        load_module(model, str(folder / "model.safetensors"))


def state(trainer: "PPOTrainer") -> dict[str, Any]:
    """Returns what a resumed run needs beside weights and optimizer, ready for JSON."""
    return {
        "schema": "rmtrl/ppo-state/1",
        "batch_size": trainer.batch_size,
        "kl_controller": trainer.kl_controller.state_dict(),
        "reward": trainer.reward.state_dict() if hasattr(trainer.reward, "state_dict") else {},
        "metrics": dict(trainer._metrics),
    }


def load_state(folder: str, trainer: "PPOTrainer") -> None:
    """Restores KL controller, running moments of the reward, and figures not yet logged.

    Raises:
        ModelError: If the checkpoint has none, or is of a run with another batch.
    """
    file = Path(folder) / STATE
    if not file.is_file():
        raise ModelError(f"{folder} holds no {STATE}; give a checkpoint that PPOTrainer wrote during training")
    stored = json.loads(file.read_text(encoding="utf-8"))
    if stored["batch_size"] != trainer.batch_size:
        raise ModelError(
            f"{folder} was written with {stored['batch_size']} episodes a batch and this run has "
            f"{trainer.batch_size}; resume with the same batch"
        )
    trainer.kl_controller.load_state_dict(stored["kl_controller"])
    if stored["reward"]:
        trainer.reward.load_state_dict(stored["reward"])  # type: ignore[attr-defined]
    trainer._metrics.update(stored["metrics"])
