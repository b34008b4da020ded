"""Lays out a wandb workspace for what the recipes log: the reward model in one section, the policy in the other.

    python recipes/wandb_dashboard.py ENTITY PROJECT
    python recipes/wandb_dashboard.py ENTITY PROJECT --judge judge

Needs `pip install 'rmtrl[dashboard]'` and an account; prints the address. `--judge` names the scorer that watches the
policy beside the reward: `gold` in the embedded world, `judge` with `judge_model_path`.
"""

import argparse
from typing import TYPE_CHECKING

from rmtrl.errors import UsageError, exit_on_error

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

STEP = "train/global_step"


def interval(name: str) -> list[str]:
    return [name, f"{name}_low", f"{name}_high"]


# title and keys of each panel
REWARD_MODEL = {
    "accuracy, with its 95 % interval": interval("eval/accuracy"),
    "accuracy beside length alone": ["eval/accuracy", "eval/length_accuracy"],
    "loss": ["train/loss", "eval/loss"],
    "margin": ["eval/margin", "eval/margin_std"],
    "length gap: accuracy where chosen is longer, less where it is shorter": ["eval/length_gap"],
    "centre of the rewards": ["eval/center_mean", "eval/center_std"],
    "calibration": [f"train/calibration/{name}_{when}" for name in ("ece", "nll") for when in ("before", "after")],
}


def policy_panels(judge: str) -> dict[str, list[str]]:
    return {
        "reward (proxy), with its 95 % interval": interval("eval/reward"),
        f"{judge}, with its 95 % interval": interval(f"eval/{judge}"),
        "KL to the reference (nats a response)": ["train/objective/kl_k1", *interval("eval/kl")],
        "length (tokens)": interval("eval/length_tokens"),
        "entropy (nats a token)": ["train/policy/entropy_avg"],
        "overoptimization": ["eval/overoptimization_suspected", "eval/overoptimization_alarm"],
    }


def workspace(entity: str, project: str, *, judge: str = "gold") -> "Workspace":
    """Returns the workspace, not sent."""
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ModuleNotFoundError as error:
        raise UsageError(f"a dashboard needs {error.name}; pip install 'rmtrl[dashboard]'") from error
    sections = {"reward model": REWARD_MODEL, "policy": policy_panels(judge)}
    lines = {
        name: [wr.LinePlot(title=title, x=STEP, y=list(keys)) for title, keys in panels.items()]
        for name, panels in sections.items()
    }
    gains = [f"eval/{name}_gain" for name in ("reward", judge)]
    lines["policy"] += [wr.LinePlot(title="gain of proxy and judge against KL", x="eval/kl", y=gains)]
    return ws.Workspace(
        entity=entity, project=project, name="rmtrl",
        sections=[ws.Section(name=name, panels=panels, is_open=True) for name, panels in lines.items()],
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("entity", help="wandb user or team")
    parser.add_argument("project", help="wandb project that the recipes log to")
    parser.add_argument("--judge", default="gold", help="scorer that watches beside the reward")
    given = parser.parse_args()
    print(workspace(given.entity, given.project, judge=given.judge).save().url)


if __name__ == "__main__":
    with exit_on_error("wandb_dashboard"):
        main()
