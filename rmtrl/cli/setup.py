"""`rmtrl doctor` and `recipes copy`: what this machine has, and the scripts of every stage to start from."""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

import rmtrl
from rmtrl.cli import options as opt
from rmtrl.cli.console import show
from rmtrl.errors import UsageError
from rmtrl.io import replacing

recipes = typer.Typer(
    name="recipes", help="Take the script of every stage, with configurations.", no_args_is_help=True
)

_HUB_SECONDS = 3.0


@recipes.command()
def copy(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Folder to make.")] = Path("recipes"),
    as_json: opt.Json = False,
) -> None:
    """Copy the recipes and their configurations into a folder, to run and to change."""
    package = Path(rmtrl.__file__).parent
    source = next(path for path in (package / "_recipes", package.parent / "recipes") if path.is_dir())  # wheel, clone
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not empty; name a new folder: nothing is overwritten")
    with replacing(folder, folder=True) as beside:
        shutil.copytree(source, beside, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    words = {"recipes": [name for name in files if name.endswith(".py")], "written to": folder}
    words["first"] = f"accelerate launch --num_processes 1 {folder / 'sft_llama.py'}"
    show({"schema": "rmtrl/recipes/1", "out": str(folder), "files": files}, as_json, words=words)


def doctor(as_json: opt.Json = False) -> None:
    """Say what this machine has, what is missing, and what is done instead; exit code 1 where rmtrl cannot run."""
    from rmtrl.data.provenance import environment
    from rmtrl.processes import machine

    device, hub, wanting = machine(), _hub(), _wanting()
    problems = wanting.pop("", [])
    missing = {name: {"missing": said, "install": f"pip install 'rmtrl[{name}]'"} for name, said in wanting.items()}
    found = {"ready": not problems, "problems": problems, "device": device, "hub": hub, "versions": environment()}
    found |= {"falls_back": _fallbacks(device, hub), "extras_missing": missing}
    shown = {name: f"{', '.join(own['missing'])}; {own['install']}" for name, own in missing.items()}
    words = {"ready": found["ready"], **device, "hub": hub["said"], "problems": problems}
    words |= {"falls back": found["falls_back"], "extras missing": shown, "versions": found["versions"]}
    show({"schema": "rmtrl/doctor/1", **found}, as_json, words=words)
    if problems:
        raise typer.Exit(1)


def _wanting() -> dict[str, list[str]]:
    """Returns what of rmtrl's requirements is absent or of another version, by extra; "" are those without one."""
    from importlib import metadata

    from packaging.requirements import Requirement

    about = next(iter(metadata.distributions(name="rmtrl")), None)
    extras = ["", *(about.metadata.get_all("Provides-Extra") or ())] if about else []
    wanting: dict[str, list[str]] = {}
    for wanted in map(Requirement, (about.requires or ()) if about else ()):
        extra = next((name for name in extras if not wanted.marker or wanted.marker.evaluate({"extra": name})), "dev")
        installed = next(iter(metadata.distributions(name=wanted.name)), None)
        if extra != "dev" and not (installed and wanted.specifier.contains(installed.version, prereleases=True)):
            said = f"{wanted.name} {installed.version}, wanted {wanted.specifier}" if installed else wanted.name
            wanting.setdefault(extra, []).append(said)
    return wanting


def _hub() -> dict[str, Any]:
    """Returns whether the hub can be asked, and in words."""
    import urllib.error
    import urllib.request

    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return {"offline": True, "reachable": None, "said": "not asked, HF_HUB_OFFLINE is set"}
    try:
        urllib.request.urlopen(urllib.request.Request(ENDPOINT, method="HEAD"), timeout=_HUB_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # which is an answer
    except OSError as error:
        reason = getattr(error, "reason", error)
        return {"offline": False, "reachable": False, "said": f"{ENDPOINT} does not answer: {reason}"}
    return {"offline": False, "reachable": True, "said": f"{ENDPOINT} answers"}


def _fallbacks(device: dict[str, Any], hub: dict[str, Any]) -> list[str]:
    """Returns what is done in place of what this machine or its packages lack, in words."""
    from importlib import metadata

    from packaging.version import Version

    cores, trl = os.cpu_count(), metadata.version("trl") if find_spec("trl") else "0"
    had = {
        f"no accelerator: all runs on {cores} CPU cores, for which recipes/configs/tiny is made": device["devices"],
        "no bf16 arithmetic: the recipes compute in float32": device["bf16"],
        "no hub: models and data are read from folders and the cache; HF_HUB_OFFLINE=1 spares the tries": (
            hub["reachable"]
        ),
        f"TRL {trl} has no PPOTrainer: rmtrl's stands on transformers' Trainer": Version(trl) < Version("1.13.dev0"),
        "no vLLM: policies are sampled with transformers' generate": find_spec("vllm"),
    }
    return [said for said, has in had.items() if not has]
