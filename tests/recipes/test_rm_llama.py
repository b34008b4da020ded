"""The reward recipe as people run it: what it writes, two processes, a kill, wandb, and input it cannot use."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments

from rmtrl import RewardConfig, RewardScorer
from rmtrl.data.preferences import read_preferences
from rmtrl.data.synthetic import make_preferences
from rmtrl.errors import DataError, UsageError
from rmtrl.launch import checkpoint_to_resume, push_records, report_run, start_stage
from rmtrl.launch.pairs import RewardRecipeArguments, read_pairs

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.integration


def read(path):
    return json.loads(Path(path).read_text())


def losses(folder, key="loss"):
    return {entry["step"]: entry[key] for entry in read(folder / "trainer_state.json")["log_history"] if key in entry}


def test_a_run_leaves_a_checkpoint_its_record_and_its_figures(recipe, capsys):
    output = recipe()
    metrics, record = read(output / "metrics.json"), read(output / "rmtrl.json")
    accuracy = metrics["test"]["accuracy"]
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"] and accuracy["n"] > 0
    assert {"rendering", "data", "splits", "seeds", "config", "environment", "seconds", "figures"} <= set(record)
    assert record["data"]["n"] == record["data"]["kept"] + record["data"]["rejected"]
    assert sum(split["pairs"] for split in record["splits"].values()) == record["data"]["kept"]
    assert len((output / "rejects.jsonl").read_text().splitlines()) == record["data"]["rejected"]
    assert not output.with_name("rm.partial").exists()
    tested = read_preferences(str(output / "test.jsonl"))
    assert len(tested) == record["splits"]["test"]["pairs"] == accuracy["n"]
    worst = [json.loads(line) for line in (output / "worst_pairs.jsonl").read_text().splitlines()]
    margins = [row["scores"][0] - row["scores"][1] for row in worst]
    assert margins == sorted(margins) and all(margin < 0 for margin in margins)
    assert len(worst) == round((1 - accuracy["value"]) * accuracy["n"])
    assert "ready to train a policy" in output.with_name("report.html").read_text()
    assert "Intended use" in (output / "README.md").read_text()
    said = capsys.readouterr().out
    assert "test accuracy" in said and "length alone" in said and "next" in said
    assert "against the majority of 5 votes" in said and metrics["test"]["ceiling"]["votes_a_pair"].keys() == {"5"}
    assert metrics["test"]["closed"]["value"] < 1
    assert str(output) in said


def test_the_bar_of_a_quick_training_ends_its_line(recipe, monkeypatch, capsys):
    monkeypatch.setattr("transformers.trainer_callback.tqdm", partial(tqdm, delay=60))
    recipe(disable_tqdm="false")
    bars = capsys.readouterr().err.rpartition("4/4")[2].splitlines(keepends=True)
    assert bars[0].endswith("\n")


def test_the_checkpoint_loads_without_rmtrl_and_scores_the_same(recipe, tmp_path):
    output = recipe()
    texts = ["What is this? Good.", "Bad answer"]
    (tmp_path / "plain.py").write_text(
        "import sys, json, torch\n"
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n"
        "model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).eval()\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "assert not any(name.startswith('rmtrl') for name in sys.modules)\n"
        "with torch.no_grad():\n"
        "    ids = [tokenizer(t + tokenizer.eos_token, return_tensors='pt') for t in json.loads(sys.argv[2])]\n"
        "    print(json.dumps([model(**i).logits.item() for i in ids]))\n"
    )
    command = [sys.executable, tmp_path / "plain.py", output, json.dumps(texts)]
    plain = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    np.testing.assert_allclose(RewardScorer.from_pretrained(output).score(texts), plain, atol=1e-6)


def test_two_processes_evaluate_like_one(launch, start, tmp_path):
    launcher = (str(Path(sys.executable).parent / "accelerate"), "launch", "--config_file",
                str(ROOT / "recipes" / "accelerate" / "cpu_2proc.yaml"))  # fmt: skip
    same = {"model_name_or_path": start / "rm", "learning_rate": 0.0, "max_steps": 2, "n_prompts": 75}
    same["train_sampling_strategy"] = "random"  # grouping by length orders the rows by batch size
    one, two = tmp_path / "one", tmp_path / "two"
    single = launch(**same, per_device_train_batch_size=8, output_dir=one)
    for run in (single, launch(launcher=launcher, **same, per_device_train_batch_size=4, output_dir=two)):
        out, err = run.communicate(timeout=400)
        assert run.returncode == 0, err[-2000:]
    assert read(two / "rmtrl.json")["processes"] == 2 and read(one / "rmtrl.json")["processes"] == 1
    assert read(one / "rmtrl.json")["splits"]["validation"]["pairs"] % 8, "the last batch must be partial"
    logs = [read(folder / "trainer_state.json")["log_history"] for folder in (one, two)]
    assert [set(entry) for entry in logs[0]] == [set(entry) for entry in logs[1]]
    found = set()
    for a, b in zip(*logs, strict=True):
        for key in {key for key in a if "second" not in key and "runtime" not in key and key != "total_flos"}:
            assert a[key] == pytest.approx(b[key], abs=1e-6), key
            found.add(key)
    wanted = {"loss", "accuracy", "margin_std", "length_spearman", "center_loss"}
    assert wanted | {f"eval_{key}" for key in wanted} <= found
    for split in ("validation", "test"):
        a, b = (read(f / "metrics.json")[split] for f in (one, two))
        for name in ("accuracy", "loss", "margin", "length_accuracy"):
            for end in ("value", "low", "high"):
                assert a[name][end] == pytest.approx(b[name][end], abs=1e-6)


def test_a_killed_run_resumes_exactly(launch, tmp_path):
    flags = {"max_steps": 24, "save_steps": 4, "eval_steps": 4, "save_total_limit": 2, "early_stopping_patience": 0}
    whole = launch(**flags, output_dir=tmp_path / "whole")
    killed = launch(**flags, output_dir=tmp_path / "killed")
    wait_for(tmp_path / "killed.partial" / "checkpoint-8" / "trainer_state.json", killed)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed").exists()
    resumed = launch(**flags, output_dir=tmp_path / "killed", resume_from_checkpoint="true")
    for run in (whole, resumed):
        _, err = run.communicate(timeout=400)
        assert run.returncode == 0, err[-2000:]
    expected, got = losses(tmp_path / "whole"), losses(tmp_path / "killed")
    assert set(expected) == set(got) == set(range(1, 25))
    for key in ("loss", "grad_norm", "eval_loss", "num_tokens"):
        expected, got = losses(tmp_path / "whole", key), losses(tmp_path / "killed", key)
        assert got == pytest.approx(expected, rel=1e-6)


HEARS_CTRL_C = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs start with it ignored
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def test_an_interrupted_run_says_what_stays_and_goes_on(launch, tmp_path):
    flags = {"max_steps": 24, "early_stopping_patience": 0}
    running = launch(launcher=(sys.executable, "-c", HEARS_CTRL_C), **flags)
    wait_for(tmp_path / "rm.partial" / "checkpoint-2" / "trainer_state.json", running)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=400)
    said = "finished checkpoints stay; the same command with --resume_from_checkpoint true goes on from the newest"
    assert running.returncode == 130 and err.splitlines()[-1] == f"rm_llama: interrupted; {said}"
    assert "Traceback" not in err and not (tmp_path / "rm").exists()
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm.partial" / "checkpoint-2").num_labels == 1
    resumed = launch(**flags, resume_from_checkpoint="true")
    _, err = resumed.communicate(timeout=400)
    assert resumed.returncode == 0, err[-2000:]
    assert set(losses(tmp_path / "rm")) == set(range(1, 25))


def test_a_checkpoint_with_half_a_state_is_not_finished(tmp_path):
    for step, text in ((4, "{}"), (8, '{"epoch": 1.'), (12, "")):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(text)
    args = RewardConfig(tmp_path, resume_from_checkpoint="true", report_to="none")
    assert checkpoint_to_resume(args) == str(tmp_path / "checkpoint-4")
    with pytest.raises(DataError, match="not a finished checkpoint"):
        checkpoint_to_resume(RewardConfig(tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-8")))


def wait_for(path, process, seconds=300):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1][-2000:]
        time.sleep(0.02)


def test_callbacks_reach_an_offline_wandb_run(recipe, monkeypatch, tmp_path):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    output = recipe(report_to="wandb")
    try:
        logged = dict(wandb.run.summary)
    finally:
        wandb.finish()
    scalars = {
        "margin_std",
        "margin_min",
        "margin_max",
        "length_spearman",
        "length_accuracy",
        "center_mean",
        "center_loss",
    }
    assert {f"train/{key}" for key in scalars} | {f"eval/{key}" for key in scalars} <= set(logged)
    for key in ("train/margin_histogram", "eval/margin_histogram", "train/reward_histogram", "eval/reward_histogram"):
        assert logged[key]["_type"] == "histogram"
    history = read(output / "trainer_state.json")["log_history"]
    assert not any("histogram" in key for entry in history for key in entry)
    assert any("eval_margin_std" in entry for entry in history)


def test_a_wandb_run_gets_the_report_and_a_reference_to_the_model(monkeypatch, tmp_path):
    import wandb

    logged = []

    class Run:
        id = "abc"
        log_artifact = staticmethod(logged.append)

    (tmp_path / "rm").mkdir()
    (tmp_path / "rm" / "metrics.json").write_text('{"schema": "rmtrl/reward-metrics/1", "test": {}}')
    monkeypatch.setattr(wandb, "run", Run)
    report_run(tmp_path / "rm")
    model, report = logged
    assert (model.type, report.type) == ("model", "report")
    assert list(report.manifest.entries) == ["report.html"]
    (entry,) = model.manifest.entries.values()  # named, not sent
    assert entry.ref == (tmp_path / "rm" / "metrics.json").resolve().as_uri() and entry.local_path is None


def test_a_run_that_cannot_be_reported_says_why_and_goes_on(tmp_path, capsys):
    (tmp_path / "rm").mkdir()
    report_run(tmp_path / "rm")
    assert "warning: no report: " in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "metrics.json").write_text('{"schema": "rmtrl/reward-metrics/1", "test": {}}')
    report_run(tmp_path / "mine")  # no name of a stage: a run of its own
    assert (tmp_path / "mine" / "report.html").is_file()


def test_an_earlier_run_is_kept_and_a_folder_that_cannot_be_is_refused(capsys, tmp_path):
    args = TrainingArguments(str(tmp_path / "rm"), use_cpu=True, report_to="none")
    start_stage(args, "rmtrl/reward-model/1")
    assert not capsys.readouterr().err
    (tmp_path / "rm").mkdir()
    (tmp_path / "rm" / "rmtrl.json").write_text('{"schema": "rmtrl/reward-model/1"}')
    start_stage(args, "rmtrl/reward-model/1")
    assert f"is kept in {tmp_path / '.rm.old'}" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    args.output_dir = str(tmp_path / "file" / "rm")
    with pytest.raises(UsageError, match="cannot write output_dir .*; give another --output_dir"):
        start_stage(args, "rmtrl/reward-model/1")


def test_card_and_records_follow_the_weights_to_the_hub(monkeypatch, tmp_path):
    sent = []
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", lambda self, **given: sent.append(given))
    args = TrainingArguments(str(tmp_path / "rm"), use_cpu=True, report_to="none")
    final, _ = start_stage(args, "rmtrl/reward-model/1")
    trainer = SimpleNamespace(args=args, hub_model_id="me/rm")
    push_records(trainer, final)
    assert not sent and args.hub_model_id is None
    args.push_to_hub = True
    start_stage(args, "rmtrl/reward-model/1")
    assert args.hub_model_id == "rm"  # not rm.partial
    push_records(trainer, final)
    assert sent[0]["repo_id"] == "me/rm" and sent[0]["folder_path"] == final
    assert "README.md" in sent[0]["allow_patterns"] and not any("jsonl" in own for own in sent[0]["allow_patterns"])


def test_an_adapter_run_scores_through_its_folder(recipe):
    output = recipe(use_peft="true", lora_r=2, lora_target_modules="all-linear")
    scorer = RewardScorer.from_pretrained(output)
    assert scorer.score(["Good."]).shape == (1,)


def test_a_new_run_replaces_the_old_folder_only_when_finished(recipe, pairs_file, capsys):
    output = recipe()
    before = (output / "rmtrl.json").read_text()
    with pytest.raises(SystemExit):
        recipe(dataset_name="nowhere.jsonl")
    assert (output / "rmtrl.json").read_text() == before


def test_a_folder_of_something_else_is_never_replaced(recipe, tmp_path, capsys):
    thesis = tmp_path / "outputs" / "rm" / "thesis.txt"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("years of work")
    with pytest.raises(SystemExit) as stop:
        recipe()
    assert stop.value.code == 2 and thesis.read_text() == "years of work"
    assert "holds something other" in capsys.readouterr().err


def test_a_fresh_run_forgets_the_checkpoints_of_an_unfinished_one(recipe, tmp_path):
    stale = tmp_path / "outputs" / "rm.partial" / "checkpoint-999"
    stale.mkdir(parents=True)
    (stale / "trainer_state.json").write_text("{}")
    output = recipe()
    assert not list(output.glob("checkpoint-999")) and list(output.glob("checkpoint-*"))


def test_annotators_with_a_habit_are_asked_for_by_a_flag(tmp_path):
    config = RewardConfig(str(tmp_path), report_to="none", use_cpu=True)
    plain, habit = (read_pairs(RewardRecipeArguments(n_prompts=60, unsafe_habit=habit), config) for habit in (0, 1.5))
    assert habit.to_list() == make_preferences(60, 0, unsafe_habit=1.5).to_list() != plain.to_list()


def test_a_run_without_evaluation_trains(recipe):
    output = recipe(eval_strategy="no", load_best_model_at_end="false")
    assert read(output / "metrics.json")["test"]["accuracy"]["n"] > 0


# Input it cannot use: one line, exit code 2, nothing written


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


GOOD = {"prompt": "Say good.", "chosen": " good", "rejected": " bad"}


@pytest.fixture
def bad(tmp_path, start, pairs_file):
    """Flags of each case and what the line says."""
    plain = tmp_path / "plain"
    tokenizer = AutoTokenizer.from_pretrained(start / "rm")
    tokenizer.chat_template = None
    tokenizer.save_pretrained(plain)
    AutoModelForSequenceClassification.from_pretrained(start / "rm").save_pretrained(plain)
    (tmp_path / "empty.jsonl").touch()
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{oops\n" * 3)
    return {
        "missing file": ({"dataset_name": tmp_path / "none.jsonl"}, "no such file"),
        "unknown columns": ({"dataset_name": write(tmp_path / "c.jsonl", {"text": "a"})}, "fit no known form"),
        "empty set": ({"dataset_name": tmp_path / "empty.jsonl"}, "is empty"),
        "broken lines": ({"dataset_name": broken}, "row 1"),
        "all rejected": ({"dataset_name": write(tmp_path / "r.jsonl", GOOD | {"rejected": " good"})}, "were rejected"),
        "no chat template": ({"dataset_name": pairs_file, "model_name_or_path": plain}, "no chat template"),
        "all too long": ({"max_length": 3}, "too_long"),
        "missing model": ({"model_name_or_path": tmp_path / "nowhere"}, "no model at"),
        "unknown flag": ({"learning_rat": 1}, "learning_rat"),
        "bad value": ({"split_seed": "x"}, "split_seed"),
        "nothing to resume": ({"resume_from_checkpoint": "true"}, "no finished checkpoint"),
        "no such checkpoint": ({"resume_from_checkpoint": tmp_path / "nowhere"}, "not a finished checkpoint"),
        "bad ratios": ({"split_ratios": 2}, "ratios"),
    }


CASES = ["missing file", "unknown columns", "empty set", "broken lines", "all rejected", "no chat template",
         "all too long", "missing model", "unknown flag", "bad value", "nothing to resume",
         "no such checkpoint", "bad ratios"]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_exit_code_2(recipe, bad, case, capsys, tmp_path):
    assert set(CASES) == set(bad)
    flags, says = bad[case]
    with pytest.raises(SystemExit) as stop:
        recipe(**flags)
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert stop.value.code == 2
    assert len(lines) == 1 and says in lines[0]
    assert not list(tmp_path.glob("outputs/*"))


def test_exit_code_of_the_process_is_2_without_traceback(launch, tmp_path):
    run = launch(dataset_name=tmp_path / "none.jsonl")
    _, err = run.communicate(timeout=200)
    assert run.returncode == 2
    assert "rm_llama: error: no such file" in err and "Traceback" not in err


def test_our_line_comes_first_under_accelerate(launch, tmp_path):
    accelerate = str(Path(sys.executable).parent / "accelerate")
    launcher = (accelerate, "launch", "--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no")
    run = launch(launcher=(*launcher, "--dynamo_backend", "no"), dataset_name=tmp_path / "none.jsonl")
    _, err = run.communicate(timeout=200)
    assert run.returncode != 0
    assert "rm_llama: error: no such file" in err.split("Traceback")[0]
