"""`rmtrl evaluate`: what it writes, how it goes on, tables of models, and input it cannot use."""

import json
import shutil

import numpy as np
import pytest
from transformers import LlamaForCausalLM

from rmtrl import RewardScorer
from rmtrl.evaluation.benchmarks import benchmark
from rmtrl.evaluation.fingerprints import items_fingerprint
from rmtrl.evaluation.run import evaluate, read_tasks


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_benchmark(folder, rows, name="mine", kind="made up"):
    write(folder / "short.jsonl", *({"id": f"{name}-{n}", **row} for n, row in enumerate(rows)))
    (folder / "benchmark.yaml").write_text(
        f"name: {name}\nkind: {kind}\nrule: pairs\nsubsets:\n  short: short.jsonl\n"
    )
    return folder


@pytest.fixture
def mine(tmp_path, rows):
    """A benchmark of 30 pairs, one of them longer than the model."""
    return make_benchmark(
        tmp_path / "mine", [*rows(29), {"prompt": "one " * 400, "chosen": "good", "rejected": "bad"}]
    )


@pytest.fixture
def checkpoint(tmp_path, model, tokenizer):
    model.save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    return tmp_path / "rm"


def conversations(mine):
    for row in map(json.loads, (mine / "short.jsonl").read_text().splitlines()):
        prompt = {"role": "user", "content": row["prompt"]}
        yield [[prompt, {"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")]


def test_a_model_is_scored_and_what_it_made_is_written(rmtrl, mine, checkpoint, tmp_path):
    out = tmp_path / "out"
    code, stdout, stderr = rmtrl("evaluate", "--model", checkpoint, "--benchmark", mine, "--out", out, "--json")
    whole = json.loads(stdout)
    assert code == 0 and whole["schema"] == "rmtrl/evaluation/1"
    assert json.loads((out / "results.json").read_text()) == whole
    (run,) = whole["models"]
    written = json.loads((out / "mine" / "result.json").read_text())
    assert run["benchmarks"]["mine"] == written
    lines = [json.loads(line) for line in (out / "mine" / "scores.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"mine-{n}" for n in range(30)] and lines[29]["scores"] is None
    scorer = RewardScorer.from_pretrained(checkpoint, progress=False)
    wanted = [scorer.score(pair) for pair in list(conversations(mine))[:29]]
    np.testing.assert_allclose([line["scores"] for line in lines[:29]], wanted, atol=1e-5)
    wins = np.mean([chosen > rejected for chosen, rejected in wanted])
    assert written["overall"]["value"] == pytest.approx(wins) and written["overall"]["n"] == 29
    assert written["overall"]["low"] <= wins <= written["overall"]["high"]
    assert (written["n_scored"], written["n_missing"], written["missing_ids"]) == (29, 1, ["mine-29"])
    assert written["missing_reasons"] == {"longer than the model's 256 tokens": 1}
    assert written["bounds"] == pytest.approx([wins * 29 / 30, (wins * 29 + 1) / 30])
    assert written["data"]["rows"] == 30 and len(written["data"]["fingerprint"]) == 64
    assert len(written["model"]["sha256"]) == 64 and written["environment"]["transformers"] and written["rule"]
    assert {"started", "seconds", "rendering", "selected_on", "ties", "sections", "subsets"} <= set(written)
    assert any("fewer than 3" in line for line in whole["warnings"])


def test_a_second_run_takes_the_stored_scores_of_the_same_model_only(rmtrl, mine, checkpoint, new_model, tmp_path):
    command = ["evaluate", "--model", checkpoint, "--benchmark", mine, "--out", tmp_path / "out"]
    first, again = rmtrl(*command), rmtrl(*command)
    assert first[1] == again[1] and "were scored by an earlier run" in again[2] + first[2]
    assert "were scored" not in first[2]
    before = (tmp_path / "out" / "mine" / "scores.jsonl").read_text()
    new_model(initializer_range=0.5).save_pretrained(checkpoint)
    assert "starts again" in rmtrl(*command)[2]
    assert (tmp_path / "out" / "mine" / "scores.jsonl").read_text() != before


def test_stored_scores_are_judged_without_a_model(rmtrl, mine, tmp_path):
    rows = [{"id": f"mine-{n}", "scores": [1.0, float(n % 4 == 0) * 2]} for n in range(24)]
    scores = write(tmp_path / "scores.jsonl", *rows)
    code, stdout, _ = rmtrl("evaluate", "--scores", scores, "--benchmark", mine, "--out", tmp_path / "o", "--json")
    (run,) = json.loads(stdout)["models"]
    result = run["benchmarks"]["mine"]
    assert code == 0 and result["overall"]["value"] == 0.75 and result["n_missing"] == 6
    assert run["model"]["name"] == str(scores) and len(run["model"]["scores_sha256"]) == 64
    assert len((tmp_path / "o" / "mine" / "scores.jsonl").read_text().splitlines()) == 30


def test_stored_scores_never_pass_for_those_of_a_model(rmtrl, mine, checkpoint, tmp_path):
    out = tmp_path / "out"
    rmtrl("evaluate", "--model", checkpoint, "--benchmark", mine, "--out", out)
    model_scores = (out / "mine" / "scores.jsonl").read_text()
    rows = [{"id": f"mine-{n}", "scores": [1.0, 2.0]} for n in range(30)]
    rmtrl("evaluate", "--scores", write(tmp_path / "s.jsonl", *rows), "--benchmark", mine, "--out", out)
    assert (out / "mine" / "scores.jsonl").read_text() != model_scores
    rmtrl("evaluate", "--model", checkpoint, "--benchmark", mine, "--out", out)
    assert (out / "mine" / "scores.jsonl").read_text() == model_scores


def test_models_and_benchmarks_make_a_table(
    rmtrl, mine, checkpoint, new_model, rows, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "deep" / "rm"
    new_model(initializer_range=0.5).save_pretrained(other)
    tokenizer.save_pretrained(other)
    second = make_benchmark(tmp_path / "b", rows(20, seed=1), "second")
    command = ["evaluate", "--model", "rm", "--model", "deep/rm", "--benchmark", mine, "--benchmark", second,
               "--out", tmp_path / "out"]  # fmt: skip
    code, stdout, _ = rmtrl(*command)
    head = next(line for line in stdout.splitlines() if line.startswith("model ") and "average" in line)
    assert code == 0 and head.split() == ["model", "mine", "second", "average", "of", "2"]
    assert len(list((tmp_path / "out").rglob("scores.jsonl"))) == 4
    runs = json.loads((tmp_path / "out" / "results.json").read_text())["models"]
    for run in runs:
        values = [result["overall"]["value"] for result in run["benchmarks"].values()]
        assert run["average"]["value"] == pytest.approx(np.mean(values)) and run["average"]["n"] == 49
    assert runs[0]["benchmarks"]["mine"]["model"]["sha256"] != runs[1]["benchmarks"]["mine"]["model"]["sha256"]


@pytest.mark.parametrize(
    "record",
    [
        {"selected_on": [{"benchmark": "mine", "fingerprint": "f"}]},
        {"selected_on": [{"benchmark": "dev", "fingerprint": "{fingerprint}"}]},
        {"config": {"metric_for_best_model": "eval_mine/a"}},
        {"config": {"metric_for_best_model": "eval_some_set_mine"}},
    ],
    ids=["by the callback", "under another name", "by the recipe", "with several sets"],
)
@pytest.mark.parametrize("folder", [".", "checkpoint-8"])
def test_a_benchmark_that_chose_the_checkpoint_is_marked(rmtrl, mine, checkpoint, record, folder):
    (checkpoint / folder).mkdir(exist_ok=True)
    record = json.dumps(record).replace("{fingerprint}", items_fingerprint(benchmark(str(mine)).read()))
    (checkpoint / folder / "rmtrl.json").write_text(record)
    command = ["evaluate", "--model", checkpoint, "--benchmark", mine]
    assert "(chose this checkpoint)" in rmtrl(*command)[1]
    whole = json.loads(rmtrl(*command, "--json")[1])
    assert whole["models"][0]["selected_on"] == ["mine"] and whole["models"][0]["benchmarks"]["mine"]["selected_on"]


def test_a_model_without_chat_template_is_told_how_to_read_text(rmtrl, mine, checkpoint, tokenizer):
    tokenizer.chat_template = None
    (checkpoint / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(checkpoint)
    code, _, stderr = rmtrl("evaluate", "--model", checkpoint, "--benchmark", mine)
    assert code == 2 and "no chat template; say how its training text looked" in stderr
    code, stdout, _ = rmtrl("evaluate", "--model", checkpoint, "--benchmark", mine, "--text", "plain", "--json")
    result = json.loads(stdout)["models"][0]["benchmarks"]["mine"]
    assert code == 0 and result["rendering"]["text"] == "plain" and result["n_scored"] == 29


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--model (once or more) or --scores"),
        (["--model", "{rm}", "--scores", "{scores}"], "one of the two"),
        (["--scores", "{scores}", "--benchmark", "llmbar"], "a file of scores is of one"),
        (["--model", "{rm}", "--benchmark", "nobench"], "no benchmark 'nobench'"),
        (["--model", "{rm}", "--benchmark", "llmbar="], "NAME or NAME=PATH"),
        (["--model", "{rm}", "--benchmark", "judgebench={nowhere}"], "no such file"),
        (["--model", "{rm}", "--benchmark", "judgebench={empty}"], "is empty; give the benchmark's own file"),
        (["--model", "{rm}", "--benchmark", "{mine}"], "mine is given twice"),
        (["--model", "{nowhere}"], "no reward model at"),
        (["--model", "{fresh}"], "no trained score head"),
        (["--model", "{rm}", "--device", "tpu"], "no device tpu: "),
        (["--model", "{rm}", "--text", "markdown"], "wanted plain or transcript"),
        (["--model", "{rm}", "--out", "{scores}"], "cannot write"),
        (["--scores", "{nowhere}"], "cannot be read: No such file"),
        (["--scores", "{empty}"], "is empty"),
        (["--scores", "{unknown}"], "no item 'z'"),
        (["--scores", "{short}"], "1 scores for 'mine-0'; wanted 2"),
        (["--scores", "{none}"], "none of the 30 rows of mine has scores"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_exit_code_2(rmtrl, mine, checkpoint, model, tokenizer, tmp_path, arguments, says):
    places = {"mine": mine, "rm": checkpoint, "nowhere": tmp_path / "nowhere", "fresh": tmp_path / "fresh"}
    for name, id, scores in (("scores", "mine-0", [1, 2]), ("unknown", "z", [1, 2]), ("short", "mine-0", [1]),
                             ("none", "mine-0", None)):  # fmt: skip
        places[name] = write(tmp_path / f"{name}.jsonl", {"id": id, "scores": scores})
    places["empty"] = write(tmp_path / "empty.jsonl")
    LlamaForCausalLM(model.config).save_pretrained(places["fresh"])
    tokenizer.save_pretrained(places["fresh"])
    before = set(tmp_path.rglob("*"))
    command = ["evaluate", "--benchmark", mine, *(argument.format(**places) for argument in arguments)]
    if "--benchmark" in arguments and "{mine}" not in arguments and "--scores" not in arguments:
        del command[1:3]
    code, stdout, stderr = rmtrl(*command)
    lines = [line for line in stderr.splitlines() if line.startswith("rmtrl: error:")]
    assert code == 2 and len(lines) == 1 and says in lines[0] and "Traceback" not in stderr
    assert stdout == "" and set(tmp_path.rglob("*")) == before


def test_scores_of_another_precision_are_not_reused(mine, checkpoint, tmp_path, capsys):
    tasks = read_tasks([str(mine)])
    for dtype in ("auto", "bfloat16", "bfloat16"):
        run = evaluate(str(checkpoint), tasks, tmp_path / "out", dtype=dtype)
    said = capsys.readouterr().err.splitlines()
    assert ["starts again" in line for line in said if line.startswith("rmtrl: mine")] == [True, False]
    assert run.model["dtype"] == run.records["mine"]["model"]["dtype"] == "bfloat16"


@pytest.mark.parametrize("again", ["{}", "/{}", "{}/"])
def test_a_model_that_is_named_twice_is_refused(rmtrl, mine, checkpoint, tmp_path, again):
    models = ["--model", checkpoint, "--model", again.format(checkpoint)]
    code, _, stderr = rmtrl("evaluate", *models, "--benchmark", mine, "--out", tmp_path / "out")
    assert code == 2 and "name each" in stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flag", "value", "says"), [("--model", "nowhere", "no reward model at"), ("--device", "tpu", "no device tpu")]
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(rmtrl, mine, checkpoint, monkeypatch, flag, value, says):
    monkeypatch.setattr("rmtrl.reward.scorer.load_reward_model", pytest.fail)
    code, _, stderr = rmtrl("evaluate", "--model", checkpoint, "--benchmark", mine, flag, value)
    assert code == 2 and says in stderr


def test_a_benchmark_that_cannot_be_scored_does_not_cost_the_others(rmtrl, mine, checkpoint, tmp_path):
    long = make_benchmark(tmp_path / "b", [{"prompt": "one " * 400, "chosen": "a", "rejected": "b"}], "long")
    out = tmp_path / "out"
    command = ["evaluate", "--model", checkpoint, "--benchmark", long, "--benchmark", mine, "--out", out]
    code, stdout, _ = rmtrl(*command, "--json")
    (run,) = json.loads(stdout)["models"]
    assert code == 0 and list(run["benchmarks"]) == ["mine"] and run["average"] is None
    assert "none of the 1 rows of long has scores" in run["not_scorable"]["long"]
    assert json.loads((out / "long" / "result.json").read_text())["overall"] is None
    assert "not scorable" in rmtrl(*command)[1]
    code, _, stderr = rmtrl("evaluate", "--model", checkpoint, "--benchmark", long)
    assert code == 2 and "none of the 1 rows of long has scores" in stderr


STRICT = (  # as the templates of Gemma and Mistral are
    "{% for message in messages %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% if message.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<{{ message.role }}>{{ message.content }}{{ eos_token }}{% endfor %}"
)


def test_a_row_that_the_chat_template_refuses_is_missing_with_its_reason(rmtrl, mine, checkpoint, tokenizer, tmp_path):
    def turns(*roles):
        return [{"role": role, "content": "sun ?"} for role in roles]

    tokenizer.chat_template = STRICT
    tokenizer.save_pretrained(checkpoint)
    refused = [turns("system", "user"), turns("user", "user"), turns("user", "user")]
    rows = [json.loads(line) for line in (mine / "short.jsonl").read_text().splitlines()]
    rows = [row | {"prompt": prompt} for row, prompt in zip(rows, refused, strict=False)] + rows[3:]
    write(mine / "short.jsonl", *rows)
    command = ["evaluate", "--model", checkpoint, "--benchmark", mine, "--out", tmp_path / "out"]
    code, stdout, stderr = rmtrl(*command, "--json")
    assert code == 0, stderr
    result = json.loads(stdout)["models"][0]["benchmarks"]["mine"]
    assert (result["n_scored"], result["n_missing"]) == (26, 4)
    assert result["missing_ids"] == ["mine-0", "mine-1", "mine-2", "mine-29"]
    assert result["missing_reasons"] == {
        "cannot be rendered: Conversation roles must alternate user/assistant": 3,
        "longer than the model's 256 tokens": 1,
    }
    said = "4 of 30 rows: 3 cannot be rendered: Conversation roles must alternate user/assistant; 1 longer than"
    again = rmtrl(*command)  # from the stored scores
    assert again[0] == 0 and said in again[1] and "were scored by an earlier run" in again[2]
    write(mine / "short.jsonl", *rows[:3])
    code, _, stderr = rmtrl("evaluate", "--model", checkpoint, "--benchmark", mine)
    assert code == 2 and "none of the 3 rows of mine has scores: 3 cannot be rendered" in stderr


def test_the_benchmark_that_is_given_twice_is_named(rmtrl, mine, checkpoint, rows, tmp_path):
    other = make_benchmark(tmp_path / "other", rows(3), "other")
    copy = shutil.copytree(mine, tmp_path / "copy")
    for given in ([mine, copy, other], [mine, other, copy], [other, mine, copy]):
        flags = [flag for folder in given for flag in ("--benchmark", folder)]
        code, _, stderr = rmtrl("evaluate", "--model", checkpoint, *flags)
        assert code == 2 and f"the benchmark mine is given twice, as {mine} and {copy};" in stderr


def test_a_judge_s_failures_are_read_where_the_benchmark_allows_them(rmtrl, tmp_path):
    row = {"prompt": "p", "response_1": "a", "response_2": "b", "language": "English"}
    rows = [{**row, "question_id": str(n), "winner": "model_a"} for n in range(3)]
    data = write(tmp_path / "human.jsonl", *rows)
    lines = [{"id": str(n), "scores": [1.0, failed]} for n, failed in enumerate(["$ERROR$", -np.inf, 2.0])]
    scores = write(tmp_path / "scores.jsonl", *lines)
    code, stdout, _ = rmtrl("evaluate", "--scores", scores, "--benchmark", f"ppe-preference={data}", "--json")
    result = json.loads(stdout)["models"][0]["benchmarks"]["ppe-preference"]
    assert code == 0 and result["n_scored"] == 3 and result["overall"]["value"] == pytest.approx(2 / 3)


def test_a_model_with_two_labels_is_refused(rmtrl, mine, new_model, tokenizer, tmp_path):
    new_model(num_labels=2).save_pretrained(tmp_path / "two")
    tokenizer.save_pretrained(tmp_path / "two")
    code, _, stderr = rmtrl("evaluate", "--model", tmp_path / "two", "--benchmark", mine)
    errors = [line for line in stderr.splitlines() if "error:" in line]
    assert code == 2 and len(errors) == 1 and "label" in errors[0]


def test_scores_stored_by_others_give_the_published_table(rmtrl, real_data):
    folder = real_data / "judgebench"
    for model, table in (("Skywork-Reward-Llama-3.1-8B", [59.09, 64.29, 76.79, 50.00, 62.29]),
                         ("internlm2-7b-reward", [56.49, 61.22, 71.43, 50.00, 59.43])):  # fmt: skip
        scores = folder / f"scores-{model}.jsonl"
        data = folder / "gpt.jsonl.gz"
        code, stdout, _ = rmtrl("evaluate", "--scores", scores, "--benchmark", f"judgebench={data}", "--json")
        result = json.loads(stdout)["models"][0]["benchmarks"]["judgebench"]
        got = [*(result["sections"][name]["value"] for name in ("knowledge", "reasoning", "math", "coding")),
               result["overall"]["value"]]  # fmt: skip
        assert code == 0 and [round(100 * value, 2) for value in got] == table


def test_bare_ids_of_a_benchmark_are_read_in_stored_scores(rmtrl, real_data, tmp_path):
    data = real_data / "rm-bench" / "safety-response.json.gz"
    items = benchmark("rm-bench").read(str(data))
    found = []
    for pairs in ([(item.id, item) for item in items], [(int(item.own_id), item) for item in items]):
        rows = [{"id": id, "scores": [len(c[-1]["content"]) for c in own.candidates]} for id, own in pairs]
        scores = write(tmp_path / "scores.jsonl", *rows)
        code, stdout, stderr = rmtrl("evaluate", "--scores", scores, "--benchmark", f"rm-bench={data}", "--json")
        assert code == 0, stderr
        found.append(json.loads(stdout)["models"][0]["benchmarks"]["rm-bench"]["overall"])
    assert found[0] == found[1]


def test_a_moved_model_keeps_its_scores(rmtrl, mine, checkpoint, tmp_path):
    rmtrl("evaluate", "--model", checkpoint, "--benchmark", mine, "--out", tmp_path / "out")
    moved = shutil.move(checkpoint, tmp_path / "moved")
    stderr = rmtrl("evaluate", "--model", moved, "--benchmark", mine, "--out", tmp_path / "out")[2]
    assert "were scored by an earlier run" in stderr


def test_results_in_a_folder_of_rows_that_are_read_are_refused(rmtrl, mine, checkpoint, tmp_path):
    before = sorted(mine.iterdir())
    for out in (mine, mine / "results"):
        code, stdout, stderr = rmtrl("evaluate", "--model", checkpoint, "--benchmark", mine, "--out", out)
        assert (code, stdout) == (2, "") and len(stderr.splitlines()) == 1
        assert f"got --out {out}/" in stderr and f"which is read as input {mine}" in stderr
    assert sorted(mine.iterdir()) == before
