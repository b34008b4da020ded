"""The hook after training, on a real trainer."""

import json

import numpy as np
import pytest
from datasets import Dataset

from rmtrl import RewardConfig, RewardScorer, RewardTrainer
from rmtrl.calibration.calibration import read_calibration
from rmtrl.calibration.callback import CalibrationCallback
from rmtrl.errors import DataError


def with_prompts(rows, start, **columns):
    made = Dataset.from_list(rows).add_column("prompt_id", [f"p{start + i // 2}" for i in range(len(rows))])
    for name, values in columns.items():
        made = made.add_column(name, values)
    return made


@pytest.fixture
def sets(rows):
    domains = {"domain": ["a", "b"] * 12}
    return with_prompts(rows(24, seed=1), 0, **domains), with_prompts(rows(10, seed=2), 100)


@pytest.fixture
def trained(model, tokenizer, pairs, tmp_path):
    def run(callback_sets, **settings):
        defaults = dict(output_dir=str(tmp_path), max_steps=4, learning_rate=1e-3, report_to="none", use_cpu=True,
                        bf16=False, per_device_train_batch_size=4, disable_tqdm=True, logging_steps=2,
                        gradient_checkpointing=False, save_strategy="no")  # fmt: skip
        trainer = RewardTrainer(
            model, RewardConfig(**(defaults | settings)), train_dataset=pairs, eval_dataset=pairs,
            processing_class=tokenizer,
        )  # fmt: skip
        callback = CalibrationCallback(trainer, *callback_sets)
        trainer.add_callback(callback)
        trainer.train()
        return trainer, callback

    return run


def test_the_file_stands_beside_the_checkpoint_and_the_figures_in_the_log(trained, sets, tmp_path):
    trainer, callback = trained(sets)
    stored = read_calibration(tmp_path)
    assert stored.as_dict() == callback.calibration_.as_dict()
    assert stored.n == 24 and stored.prompts == 12 and set(stored.domains) == {"a", "b"}
    assert stored.data["calibration"]["pairs"] == 24 and stored.data["test"]["pairs"] == 10
    logged = next(entry for entry in trainer.state.log_history if "calibration/temperature" in entry)
    assert logged["calibration/temperature"] == stored.temperature.temperature_
    for name in ("ece", "nll", "brier"):
        assert logged[f"calibration/{name}_before"] == stored.test_before[name].value
        assert logged[f"calibration/{name}_after"] == stored.test_after[name].value
    assert callback.dropped_ == {"calibration": 0, "calibration_test": 0}


def test_what_is_calibrated_are_the_scores_of_the_model_as_it_was_trained(trained, sets, tmp_path):
    trainer, _ = trained(sets[:1])
    calibration = read_calibration(tmp_path)
    scorer = RewardScorer(trainer.model, trainer.processing_class)
    texts = [row["prompt"] + row[side] for side in ("chosen", "rejected") for row in sets[0]]
    chosen, rejected = scorer.score(texts).reshape(2, -1).astype(float)
    assert calibration.mean_reward == pytest.approx(np.concatenate([chosen, rejected]).mean(), abs=1e-5)
    nll = np.logaddexp(0, rejected - chosen).mean()
    assert calibration.before["nll"].value == pytest.approx(nll, abs=1e-5) and calibration.test_before is None


def test_the_best_checkpoint_is_what_is_calibrated(trained, sets, tmp_path):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1,
                "load_best_model_at_end": True, "metric_for_best_model": "eval_loss",
                "greater_is_better": True, "learning_rate": 1e-2}  # fmt: skip
    trainer, _ = trained(sets[:1], **settings)  # the worst one counts as best: the first step's, not the last's
    assert trainer.state.best_global_step < 4
    best = RewardScorer.from_pretrained(trainer.state.best_model_checkpoint, device="cpu")
    texts = [row["prompt"] + row[side] for side in ("chosen", "rejected") for row in sets[0]]
    assert read_calibration(tmp_path).mean_reward == pytest.approx(best.score(texts).mean(), abs=1e-5)


def test_votes_are_used_and_pairs_over_the_limit_are_counted(trained, rows, tmp_path):
    long = [{**row, "chosen": row["chosen"] + " yes" * 60} if i < 3 else row for i, row in enumerate(rows(24, seed=1))]
    votes = [0.5 if i % 2 else 1.0 for i in range(24)]
    _, callback = trained((with_prompts(long, 0, preference=votes),), max_length=60)
    assert callback.dropped_ == {"calibration": 3} and callback.calibration_.n == 21
    assert callback.calibration_.before["agreement"].n < 21  # ties cannot be ranked rightly


def test_a_prompt_in_both_sets_is_an_error(trained, sets):
    with pytest.raises(DataError, match="in both calibration and test"):
        trained((sets[0], sets[0]))


def test_a_calibration_that_makes_the_test_pairs_surely_worse_is_a_warning(
    trained, rows, tmp_path, caplog, monkeypatch
):
    from rmtrl.calibration import callback

    made = iter(
        [np.tile([[0.2, 0.0]], (80, 1)), np.tile([[0.0, 5.0]], (80, 1))]
    )  # right and unsure, then wrong and sure
    made = iter([scores * np.where(np.arange(80) % 8, 1, -1)[:, None] for scores in made])
    monkeypatch.setattr(callback.CalibrationCallback, "_scores", lambda self, rows, name: (*next(made).T, rows))
    trained((with_prompts(rows(80, seed=1), 0), with_prompts(rows(80, seed=2), 100)))
    said = [record.getMessage() for record in caplog.records if record.name == callback.__name__]
    assert len(said) == 1 and said[0].startswith("calibration made the test pairs surely worse: NLL rises by ")
    assert json.loads((tmp_path / "calibration.json").read_text())["made_worse"] is True


def test_the_evaluations_pairs_stay(trained, sets):
    trainer, _ = trained(sets, eval_strategy="steps", eval_steps=2)
    assert len(trainer.pairs_) == 12
    assert json.dumps(trainer.state.log_history)
