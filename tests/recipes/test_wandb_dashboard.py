"""The wandb workspace: laid out without being sent, from keys that a run logs."""

import json
import runpy
from pathlib import Path

import pytest
from transformers.integrations.integration_utils import rewrite_logs

from rmtrl.errors import UsageError

DASHBOARD = runpy.run_path(str(Path(__file__).parents[2] / "recipes" / "wandb_dashboard.py"), run_name="dashboard")


def logged(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return {key for row in history for key in rewrite_logs(row)}


@pytest.mark.integration
def test_the_panels_of_a_reward_model_are_keys_that_its_recipe_logs(recipe):
    keys = [key for panel in DASHBOARD["REWARD_MODEL"].values() for key in panel]
    own = {key for key in keys if "calibration" not in key}
    assert len(own) > 10 and own <= logged(recipe())


def test_the_interval_of_an_accuracy_holds_it():
    assert DASHBOARD["interval"]("eval/accuracy") == ["eval/accuracy", "eval/accuracy_low", "eval/accuracy_high"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pydantic's, at its import
def test_the_workspace_holds_every_panel_and_is_not_sent():
    pytest.importorskip("wandb_workspaces")
    made = DASHBOARD["workspace"]("me", "mine", judge="judge")
    spec = json.loads(made._to_model().model_dump_json(by_alias=True))
    panels = {section["name"]: section["panels"] for section in spec["spec"]["section"]["panelBankConfig"]["sections"]}
    titles = [panel["config"]["chartTitle"] for panel in panels["reward model"]]
    assert titles == list(DASHBOARD["REWARD_MODEL"])
    last = panels["policy"][-1]["config"]
    assert (last["xAxis"], last["metrics"]) == ("eval/kl", ["eval/reward_gain", "eval/judge_gain"])


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb_workspaces.reports.v2", None)
    monkeypatch.setitem(__import__("sys").modules, "wandb_workspaces", None)
    with pytest.raises(UsageError, match=r"pip install 'rmtrl\[dashboard\]'"):
        DASHBOARD["workspace"]("me", "mine")
