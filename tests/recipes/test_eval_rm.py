"""The evaluation recipe as people run it: unseen pairs of the embedded world, other benchmarks, bad settings."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from rmtrl.data.synthetic import GoldScorer, make_preferences
from rmtrl.evaluation.benchmarks.results import result_of
from rmtrl.evaluation.items import score_items

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.integration


@pytest.fixture
def evaluate(monkeypatch, start, tmp_path):
    """Runs `recipes/eval_rm.py` in this process; returns the output folder."""

    def run(**flags):
        output = tmp_path / "outputs" / "eval"
        flags = {"model_name_or_path": start / "rm", "output_dir": output, "n_prompts": 60, "n_unseen": 80} | flags
        benchmarks = flags.pop("benchmarks", None)
        arguments = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
        named = ["--benchmarks", *map(str, benchmarks)] if benchmarks else []
        monkeypatch.setattr(sys, "argv", ["eval_rm.py", *arguments, *named])
        runpy.run_path(str(ROOT / "recipes" / "eval_rm.py"), run_name="__main__")
        return output

    return run


@pytest.fixture(scope="module")
def recipe():
    return runpy.run_path(str(ROOT / "recipes" / "eval_rm.py"), run_name="recipe")


def embedded(recipe, **settings):
    arguments = recipe["EvalRecipeArguments"]("m", "o", **settings)
    return recipe["EmbeddedWorld"](arguments)


def test_a_run_leaves_scores_and_figures(evaluate, capsys):
    output = evaluate()
    result = json.loads((output / "embedded" / "result.json").read_text())
    assert result["overall"]["low"] <= result["overall"]["value"] <= result["overall"]["high"]
    assert result["n_rows"] == len((output / "embedded" / "scores.jsonl").read_text().splitlines()) > 40
    assert json.loads((output / "results.json").read_text())["schema"] == "rmtrl/evaluation/1"
    said = capsys.readouterr().out
    assert "overall" in said and "section" in said and "1 benchmark: fewer than 3" in said


def test_no_prompt_of_training_is_evaluated_on(recipe):
    items = embedded(recipe, n_prompts=300, n_unseen=300).read()
    trained = {prompt[-1]["content"] for prompt in make_preferences(300, 0)["prompt"]}
    prompts = {item.candidates[0][0]["content"] for item in items}
    assert prompts and not prompts & trained


def test_the_gold_score_is_right_on_every_pair(recipe):
    world = embedded(recipe, n_prompts=60, n_unseen=200)
    items = world.read()
    scores = [own for window in score_items(GoldScorer(), items) for own in window]
    result = result_of(world, items, scores)
    assert result.overall.value == 1.0 and result.n_missing == 0 and len(result.sections) > 5


def test_other_benchmarks_stand_beside_the_embedded_one(evaluate, tmp_path, rows):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "benchmark.yaml").write_text("name: mine\nkind: made up\nrule: pairs\nsubsets:\n  all: all.jsonl\n")
    (folder / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(10)))
    output = evaluate(benchmarks=["embedded", folder])
    (run,) = json.loads((output / "results.json").read_text())["models"]
    assert list(run["benchmarks"]) == ["embedded", "mine"] and run["average"]["n"] > 10


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"seed": 0}, "would be those of training"),
        ({"benchmarks": ["nobench"]}, "no benchmark 'nobench'"),
        ({"model_name_or_path": "nowhere"}, "no reward model at"),
        ({"batch_tokens": "x"}, "batch_tokens"),
        ({"oops": 1}, "oops"),
    ],
    ids=str,
)
def test_bad_settings_are_one_line_and_exit_code_2(evaluate, capsys, flags, says, tmp_path):
    with pytest.raises(SystemExit) as stop:
        evaluate(**flags)
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert stop.value.code == 2 and len(lines) == 1 and says in lines[0]
    assert not (tmp_path / "outputs").exists()
