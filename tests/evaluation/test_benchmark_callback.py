"""A benchmark during training: right figures in the log, training undisturbed, and a record of what it decided."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from rmtrl import RewardConfig, RewardScorer, RewardTrainer
from rmtrl.evaluation.benchmarks.base import Benchmark, Item
from rmtrl.evaluation.callback import BenchmarkCallback
from rmtrl.evaluation.fingerprints import items_fingerprint


class Words(Benchmark):
    """Pairs of words, in two sections."""

    name, rule, kind, source = "words", "the first must score above the second", "made up", "here"

    def figures(self, parts):
        from rmtrl.evaluation.benchmarks.base import Figures, pooled

        return Figures(pooled(parts, parts), dict(parts))


def made_items(rows):
    return [
        Item(str(n), str(n), ("odd", "even")[n % 2], (row["prompt"] + row["chosen"], row["prompt"] + row["rejected"]),
             {"correct": (0,)})
        for n, row in enumerate(rows(40, seed=5))
    ]  # fmt: skip


@pytest.fixture(scope="module")
def items(rows):
    return made_items(rows)


@pytest.fixture(scope="module")
def train_in(rows, model_and_tokenizer):
    """Trains six steps in a folder; returns the trainer."""

    def run(folder, *callbacks, eval_dataset=None, **settings):
        settings = {
            "max_steps": 6, "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2,
            "per_device_train_batch_size": 4, "learning_rate": 1e-2, "disable_tqdm": True,
        } | settings  # fmt: skip
        args = RewardConfig(str(folder / "run"), bf16=False, report_to="none", **settings)
        model, tokenizer = model_and_tokenizer(attention_dropout=0.1)
        pairs = Dataset.from_list(rows(12))
        trainer = RewardTrainer(
            model, args, train_dataset=pairs, eval_dataset=eval_dataset or pairs, processing_class=tokenizer,
            callbacks=list(callbacks),
        )  # fmt: skip
        trainer.train()
        return trainer

    return run


@pytest.fixture
def train(train_in, tmp_path):
    return partial(train_in, tmp_path)


@pytest.fixture(scope="module")
def run(train_in, tmp_path_factory, items):
    """Folder, trainer and callback of one run with a benchmark, which its tests only look at."""
    folder, callback = tmp_path_factory.mktemp("words"), BenchmarkCallback(Words(), items)
    return folder, train_in(folder, callback), callback


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def accuracy(scorer, items):
    return np.mean([np.diff(scorer.score(list(item.candidates)))[0] < 0 for item in items])


def test_each_evaluation_logs_the_figures_of_the_model_as_it_then_is(run, items):
    folder, trainer, _ = run
    figures = logged(trainer, "eval_words")
    assert len(figures) == 3 and len(logged(trainer, "eval_words/odd")) == 3
    for step, figure in zip((2, 4, 6), figures, strict=True):
        scorer = RewardScorer.from_pretrained(folder / "run" / f"checkpoint-{step}", progress=False)
        assert figure == pytest.approx(accuracy(scorer, items))
        odd = logged(trainer, "eval_words/odd")[step // 2 - 1]
        assert odd == pytest.approx(accuracy(scorer, [item for item in items if item.subset == "odd"]))


@pytest.mark.parametrize(
    "settings", [{"n_heads": 2}, {"head": "mlp", "head_dropout": 0.2}, {"pooling": "mean"}], ids=str
)
def test_heads_of_every_kind_are_scored_as_their_checkpoint_is(train, items, tmp_path, settings):
    trainer = train(BenchmarkCallback(Words(), items), max_steps=2, **settings)
    scorer = RewardScorer.from_pretrained(tmp_path / "run" / "checkpoint-2", progress=False)
    assert logged(trainer, "eval_words")[-1] == pytest.approx(accuracy(scorer, items))


def test_training_is_the_same_with_and_without(train, run):
    without, beside = train(), run[1]
    for key in ("loss", "grad_norm", "eval_loss", "eval_accuracy"):
        assert logged(without, key) == logged(beside, key)


def test_the_mode_of_the_model_stays_as_it_was(run):
    _, trainer, callback = run
    for training in (True, False):
        trainer.model.train(training)
        callback.on_rewards(trainer.args, trainer.state, trainer.control, pairs=trainer.pairs_, prefix="eval_")
        assert trainer.model.training is training


def test_nothing_is_scored_in_training_and_prediction(run, pairs):
    _, trainer, _ = run
    assert not any("words" in key for entry in trainer.state.log_history for key in entry if "eval" not in key)
    assert "test_words" not in trainer.predict(pairs).metrics


def test_it_evaluates_without_training_and_with_several_sets(train, items, pairs):
    trainer = train(BenchmarkCallback(Words(), items), eval_dataset={"a": pairs, "b": pairs}, max_steps=2)
    metrics = trainer.evaluate()
    assert metrics["eval_a_words"] == metrics["eval_b_words"] == logged(trainer, "eval_a_words")[-1]


def test_it_can_choose_the_checkpoint_and_is_recorded_there(train, items, tmp_path):
    trainer = train(
        BenchmarkCallback(Words(), items),
        metric_for_best_model="words",
        load_best_model_at_end=True,
        learning_rate=0.1,
    )
    figures = logged(trainer, "eval_words")
    assert trainer.state.best_metric == max(figures)
    assert trainer.state.best_global_step == 2 * (1 + figures.index(max(figures)))
    for step in (2, 4, 6):
        record = json.loads((tmp_path / "run" / f"checkpoint-{step}" / "rmtrl.json").read_text())
        assert record["selected_on"] == [{"benchmark": "words", "fingerprint": items_fingerprint(items)}]
        assert "rendering" in record


def test_a_benchmark_that_chose_nothing_is_not_recorded(train, items, tmp_path):
    train(
        BenchmarkCallback(Words(), items), metric_for_best_model="accuracy", load_best_model_at_end=True, max_steps=2
    )
    assert "selected_on" not in json.loads((tmp_path / "run" / "checkpoint-2" / "rmtrl.json").read_text())


@pytest.mark.parametrize(
    ("metric", "chooses"),
    [("words", True), ("eval_words", True), ("words/odd", True), ("eval_a_words", True), ("eval_keywords", False),
     ("accuracy", False), (None, False)],
)  # fmt: skip
def test_the_metric_decides_whether_it_chooses(metric, chooses, items, tmp_path):
    args = RewardConfig(str(tmp_path), report_to="none", metric_for_best_model=metric)
    assert BenchmarkCallback(Words(), items).selects(args) is chooses


def test_items_that_are_all_too_long_stop_the_run(train, items):
    long = [replace(item, candidates=("one " * 400, "two " * 400)) for item in items]
    with pytest.raises(ValueError, match="none of the 40 rows of words has scores"):
        train(BenchmarkCallback(Words(), long))


TWO_PROCESSES = """
import json, sys
from datasets import Dataset
from rmtrl import RewardConfig, RewardScorer, RewardTrainer
sys.path[:0] = [{tests!r}, {here!r}]
from conftest import WORDS, make_model, make_tiny_tokenizer, text_rows
from test_benchmark_callback import BenchmarkCallback, Words, made_items
scored, score = [0], RewardScorer.score
def counting(self, conversations):
    scored[0] += len(conversations)
    return score(self, conversations)
RewardScorer.score = counting
tokenizer = make_tiny_tokenizer([" ".join(WORDS)] * 20, vocab_size=320)
data, items = Dataset.from_list(text_rows(12)), made_items(text_rows)
args = RewardConfig({out!r}, bf16=False, use_cpu=True, report_to="none", disable_tqdm=True)
callbacks = [BenchmarkCallback(Words(), items[:39]), BenchmarkCallback(Words(), items[:1], name="alone")]
trainer = RewardTrainer(make_model(tokenizer), args, train_dataset=data, eval_dataset=data,
                        processing_class=tokenizer, callbacks=callbacks)
figures = trainer.evaluate()
accelerator = trainer.accelerator
with open({out!r} + f"/{{accelerator.process_index}}.json", "w") as file:
    json.dump([accelerator.num_processes, scored[0], figures["eval_words"], figures["eval_alone"]], file)
"""


@pytest.mark.integration
def test_processes_share_the_rows_and_agree_on_the_figures(tmp_path, new_model, tokenizer, items):
    script, here = tmp_path / "evaluate.py", Path(__file__).parent
    script.write_text(TWO_PROCESSES.format(tests=str(here.parent), here=str(here), out=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*command, str(script)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    scorer = RewardScorer(new_model(), tokenizer, progress=False)
    assert first[2:] == second[2:] == pytest.approx([accuracy(scorer, items[:39]), accuracy(scorer, items[:1])])
    assert first[:2] == [2, 2 * (20 + 1)] and second[:2] == [2, 2 * 19]  # one item is nothing to share
