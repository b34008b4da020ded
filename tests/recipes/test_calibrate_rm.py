"""The calibration recipe on a run that the reward recipe left."""

import json
import runpy
import shutil
import sys
import warnings
from pathlib import Path

import pytest

from rmtrl import RewardScorer
from rmtrl.calibration.calibration import read_calibration
from rmtrl.data.synthetic.gold import GOLD_WEIGHTS
from rmtrl.evaluation.fingerprints import model_fingerprint

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.integration


@pytest.fixture
def calibrate(monkeypatch):
    """Runs `recipes/calibrate_rm.py` in this process."""

    def run(folder, *arguments):
        monkeypatch.setattr(sys, "argv", ["calibrate_rm.py", "--run", str(folder), *map(str, arguments)])
        monkeypatch.chdir(ROOT)
        runpy.run_path(str(ROOT / "recipes" / "calibrate_rm.py"), run_name="__main__")

    return run


@pytest.fixture
def judged(pairs_file, start):
    """The pairs as the starting model would judge them, three times in four; so it needs no training."""
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    rows = [{name: row[name] for name in ("prompt", "chosen", "rejected", "domain")} for row in rows]
    scorer = RewardScorer.from_pretrained(start / "rm")
    for i, row in enumerate(rows):
        first, second = scorer.score([row["prompt"] + row[side] for side in ("chosen", "rejected")])
        if (first > second) != bool(i % 4):
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    pairs_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"dataset_name": pairs_file, "model_name_or_path": start / "rm", "learning_rate": 0.0}


def test_a_run_is_calibrated_on_its_own_calibration_split(recipe, calibrate, judged, tmp_path, capsys):
    run = recipe(**judged)
    record = json.loads((run / "rmtrl.json").read_text())
    capsys.readouterr()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FutureWarning)
        calibrate(run, "--export", tmp_path / "exported")
    assert not [one for one in caught if "gradient_checkpointing" in str(one.message)]
    stored = read_calibration(run, model_fingerprint=model_fingerprint(run))
    assert stored.model_fingerprint["sha256"]
    made = json.loads((run / "calibration.json").read_text())["made"]
    assert made["settings"]["run"] == str(run) and made["environment"]["trl"] and made["time"].startswith("20")
    assert stored.data == {name: record["splits"][name] for name in ("calibration", "test")}
    assert stored.n == record["splits"]["calibration"]["pairs"]
    assert stored.test_before["nll"].n == record["splits"]["test"]["pairs"]
    test = json.loads((run / "metrics.json").read_text())["test"]
    assert stored.test_before["nll"].value == pytest.approx(test["loss"]["value"], abs=1e-4)
    assert (run / "plots" / "reliability.png").read_bytes().startswith(b"\x89PNG")
    assert read_calibration(tmp_path / "exported").temperature.temperature_ == pytest.approx(1)
    captured = capsys.readouterr()
    said = captured.out.splitlines()
    assert "Flattening" not in captured.err
    assert len(said) <= 12 and any(" -> " in line for line in said) and any("at this n" in line for line in said)


@pytest.mark.parametrize(
    "settings",
    [
        {"n_heads": 3},
        {"loss_type": "attributes", "attribute_weights": json.dumps(dict(GOLD_WEIGHTS))},
        {"use_peft": "true", "lora_r": 2, "lora_target_modules": "all-linear"},
    ],
    ids=["members", "attributes", "adapter"],
)
def test_a_run_with_another_head_or_an_adapter_is_calibrated(recipe, calibrate, settings):
    run = recipe(**settings)
    calibrate(run)
    stored = read_calibration(run, model_fingerprint=model_fingerprint(run))
    splits = json.loads((run / "rmtrl.json").read_text())["splits"]
    assert (stored.n, stored.test_before["nll"].n) == (splits["calibration"]["pairs"], splits["test"]["pairs"])
    assert stored.within_prompt_std.value > 0


def test_a_run_whose_data_has_changed_is_refused(recipe, calibrate, pairs_file, capsys):
    run = recipe(dataset_name=pairs_file)
    lines = pairs_file.read_text().splitlines(keepends=True)
    pairs_file.write_text("".join(lines[5:]))
    with pytest.raises(SystemExit) as stop:
        calibrate(run)
    last = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and "split rebuilt from" in last and "differs from that of the run" in last
    assert not (run / "calibration.json").exists()


def test_a_folder_that_is_no_run_is_refused(calibrate, start, tmp_path, capsys):
    shutil.copytree(start / "rm", tmp_path / "other")
    for folder, said in ((tmp_path / "nothing", "no finished run at"), (tmp_path / "other", "no finished run at")):
        with pytest.raises(SystemExit) as stop:
            calibrate(folder)
        assert stop.value.code == 2 and said in capsys.readouterr().err
    (tmp_path / "other" / "rmtrl.json").write_text('{"schema": "rmtrl/checkpoint/1"}')
    with pytest.raises(SystemExit):
        calibrate(tmp_path / "other")
    assert "is not a run of this recipes/rm_llama.py" in capsys.readouterr().err
