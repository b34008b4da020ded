"""What a PPO checkpoint holds: the policy as any Hugging Face model, the value model beside it, and the run's state.

The host's own files (optimizer, scheduler, random state, trainer state, which is written last) stand with them.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.utils import load_peft_weights
from safetensors import SafetensorError
from safetensors.torch import load_model as load_module
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.trainer import TRAINER_STATE_NAME

from rmtrl.errors import ModelError
from rmtrl.io import write_json
from rmtrl.ppo.backbone import SharedValue, load_adapter, under
from rmtrl.ppo.models import PolicyAndValue, SequenceValue

_VALUE, _STATE, _SCHEMA = "value_model", "ppo_state.json", "rmtrl/ppo-state/1"


@dataclass(frozen=True)
class RunState:
    """What a run needs beside its models and the host's files to go on as the same run, in plain JSON values.

    Args:
        batch_size (`int`): Episodes an update.
        run (`dict`): What its episodes follow from: seeds, responses a prompt, and digests of prompts and reference.
        kl_controller, reward (`dict`): State of the KL coefficient, and of the reward where it has one.
        last_log (`dict`): The `step` of the last log, and the sum of the losses since.
        metrics (`dict[str, list[float]]`): Figures of the updates since the last log.
        evaluation (`dict`): The evaluations that later ones are compared with.
    """

    batch_size: int
    run: dict[str, Any]
    kl_controller: dict[str, float]
    reward: dict[str, Any]
    last_log: dict[str, Any]
    metrics: dict[str, list[float]]
    evaluation: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Writes the state into a checkpoint."""
        write_json(folder / _STATE, {"schema": _SCHEMA} | asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "RunState | None":
        """Returns the state in a checkpoint; `None` if it was not written to its end."""
        try:
            json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))  # the last file to be written
            stored = json.loads((folder / _STATE).read_text(encoding="utf-8"))
            return cls(**{name: value for name, value in stored.items() if name != "schema"})
        except (OSError, ValueError, TypeError):
            return None

    def check_same_run(self, now: "RunState", folder: str) -> None:
        """Raises if a run that is in the state `now` cannot go on from this one.

        Raises:
            ModelError: Naming what differs.
        """
        if self.batch_size != now.batch_size:
            raise ModelError(
                f"{folder} was written with {self.batch_size} episodes a batch and this run has {now.batch_size}; "
                "resume with the same batch"
            )
        for name, value in now.run.items():
            if name != "reference" and value != (was := self.run[name]):
                raise ModelError(
                    f"{folder} was written with {name} {was} and this run has {value}; resume with the same"
                )
        if bool(self.reward) != bool(now.reward):
            raise ModelError(f"{folder} was written with another kind of reward; resume with the same reward settings")

    def check_same_reference(self, now: "RunState", folder: str) -> None:
        """Raises `ModelError` if the reference is another; told after the models are known to be the run's."""
        if self.run["reference"] != now.run["reference"]:
            raise ModelError(
                f"{folder} was written with another reference; resume with the model that the run started from, and "
                "the same ref_model"
            )


def find_checkpoint(given: "str | Path | bool", output_dir: str) -> tuple[str, RunState]:
    """Returns the checkpoint to resume from, and its state; `True` is the newest that was written to its end.

    Raises:
        ModelError: If there is none.
    """
    if isinstance(given, bool):
        finished = [folder for folder in Path(output_dir).glob("checkpoint-*") if RunState.read(folder)]
        if not finished:
            raise ModelError(f"no finished checkpoint in {output_dir}; train without resume_from_checkpoint")
        given = max(finished, key=lambda folder: int(folder.name.rpartition("-")[2]))
    state = RunState.read(Path(given))
    if state is None:
        raise ModelError(
            f"{given} is no checkpoint that PPOTrainer wrote to its end; give one, or True for the newest"
        )
    return str(given), state


def check_optimizer(folder: str) -> None:
    """Raises `ModelError` if a checkpoint holds no optimizer state, so that no run can go on from it."""
    if not any(path.name.startswith(("optimizer", "global_step")) for path in Path(folder).iterdir()):
        raise ModelError(
            f"{folder} holds no optimizer state (save_only_model=True?): no run can go on from it; "
            "start a new one with this folder as model"
        )


def reference_digest(model: Any) -> str:
    """Returns a digest of the weights of a model that are not trained, some numbers of each."""
    digest = hashlib.blake2b(digest_size=8)
    for name, weight in model.named_parameters():
        if not weight.requires_grad:  # those of a policy that trains are no part of it
            numbers = weight.detach().flatten()[:: max(1, weight.numel() // 64)]
            digest.update(name.encode() + numbers.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def save_models(model: PolicyAndValue, folder: Path, weights: dict[str, Any] | None = None) -> None:
    """Writes policy and value model.

    Args:
        model ([`PolicyAndValue`]): Both.
        folder (`Path`): Where to: the policy; the value model in a folder within.
        weights (`dict`, *optional*): Their weights by name, where they are spread over processes.
    """
    for part, place, prefix in _parts(model, folder):
        place.mkdir(parents=True, exist_ok=True)
        own = under(weights, prefix)
        if isinstance(part, SharedValue):
            part.save_pretrained(place, weights)
        elif isinstance(part, PeftModel):
            part.save_pretrained(str(place), state_dict=own, selected_adapters=[part.active_adapter])
        elif isinstance(part, PreTrainedModel):
            part.save_pretrained(place, state_dict=own)
        else:
            kept = dict((*part.named_parameters(), *part.named_buffers()))  # of tied weights one
            held = {n: w.clone().contiguous() for n, w in (own or part.state_dict()).items() if n in kept}
            save_file(held, place / "model.safetensors", metadata={"format": "pt"})


def _parts(model: PolicyAndValue, folder: Path) -> list[tuple[Any, Path, str]]:
    """Returns policy and value model with the folder that each stands in and what opens its weights' names."""
    value, opening = model.value_model, "value_model."
    if isinstance(value, SequenceValue):
        value, opening = value.model, "value_model.model."
    return [(model.policy, folder, "policy."), (value, folder / _VALUE, opening)]


def load_models(model: PolicyAndValue, folder: Path) -> None:
    """Loads the weights of policy and value model from a checkpoint.

    Raises:
        ModelError: If there are none, or they are of another shape or kind of model.
    """
    try:
        for part, place, _ in _parts(model, folder):
            _load(part, place)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"{folder} is no checkpoint of this run: {' '.join(str(error).split())[:200]}; give one that was written "
            "with the same policy, value model and adapter"
        ) from error


def _load(model: Any, folder: Path) -> None:
    if isinstance(model, PeftModel):
        adapter = str(model.active_adapter)
        folder = folder if adapter == "default" else folder / adapter
        if not (folder / "adapter_config.json").is_file():
            raise OSError(f"no adapter in {folder}")
        load_adapter(model, adapter, load_peft_weights(str(folder), device="cpu"))
    elif isinstance(model, SharedValue):
        model.load_pretrained(folder)
    elif isinstance(model, PreTrainedModel):
        if not (folder / "config.json").is_file():
            raise OSError(f"no model in {folder}")
        model.load_state_dict(type(model).from_pretrained(folder).state_dict())
    else:
        load_module(model, str(folder / "model.safetensors"))
