"""The page of a run: what it says, where a part is missing, and text that would break out of it."""

import html
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer

from rmtrl.cli import app
from rmtrl.errors import DataError, UsageError
from rmtrl.evaluation.gate import Thresholds, default_thresholds
from rmtrl.evaluation.scoring import WORST
from rmtrl.io import read_object, write_rows
from rmtrl.reporting.report import read_run, render, write_report

EASY = Thresholds.from_yaml(
    "{schema: rmtrl/thresholds/1, checks: {overlap: {maximum: 0}, test_accuracy: {minimum: 0.5}}}"
)
STRICT = Thresholds({name: replace(check, otherwise="stop") for name, check in default_thresholds().checks.items()})

ROOT = Path(__file__).parents[2]
PARTS = ["checks", "trained", "accuracy", "reliability", "margins", "length", "probes", "benchmarks", "best-of-n",
         "policy", "watch", "pairs", "provenance"]  # fmt: skip


class Page(HTMLParser):
    """The elements, their attributes and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.said, self.text = [], [], text
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.said.append(data)

    @property
    def words(self):
        return re.sub(r" ([;:.,])", r"\1", " ".join(" ".join(self.said).split()))

    def part(self, start, end):
        """The words between two headings, by their ids."""
        return Page(self.text.split(f'id="{start}"')[1].split(f'id="{end}"')[0]).words

    def parts(self):
        return [attrs["id"] for tag, attrs in self.elements if tag == "h2"]


def figure(value):
    return {"value": value, "low": value - 0.01, "high": value + 0.01, "n": 900}


def page_of(folder, **settings):
    return Page(write_report(read_run(folder, **settings)).read_text(encoding="utf-8"))


def test_the_verdict_comes_first_and_provenance_last(whole_run):
    page = page_of(whole_run)
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert ids[:2] == ["verdict", "answer"] and page.parts()[-1] == "provenance"
    assert page.parts() == PARTS
    assert "is this reward model ready to train a policy on?" in page.words


def test_every_part_shows_the_figures_of_its_file(whole_run):
    page = page_of(whole_run)
    test = read_object(whole_run / "rm/metrics.json")["test"]
    said = page.part("accuracy", "reliability")
    for name in ("accuracy", "length_accuracy"):
        own = test[name]
        assert f"{100 * own['value']:.1f} % [{100 * own['low']:.1f}, {100 * own['high']:.1f}], n = 240" in said
    assert "ceiling: the most that these labels allow 91.3 % [88.0, 92.0], n = 900" in said
    assert all(domain in said for domain in ("cooking", "law", "sports"))
    calibration = read_object(whole_run / "rm/calibration.json")
    assert f"{calibration['test_after']['ece']['value']:.3f}" in page.part("reliability", "margins")
    assert f"{test['margin']['value']:.3f}" in page.part("margins", "length")
    audit = read_object(whole_run / "rm/audit.json")
    assert audit["verdict"] in page.part("length", "probes") and "filler" in page.part("probes", "benchmarks")
    assert "llmbar" in page.part("benchmarks", "best-of-n") and "66.7 %" in page.part("benchmarks", "best-of-n")
    overopt = read_object(whole_run / "rm/overoptimization.json")
    assert overopt["verdict"] in page.part("best-of-n", "policy")
    gain = read_object(whole_run / "ppo/metrics.json")["test"]["gold"]["gain"]
    assert f"{gain['value']:.3f} [{gain['low']:.3f}, {gain['high']:.3f}]" in page.part("policy", "watch")
    assert "secrets" in page.part("watch", "pairs") and "Alarm" in page.part("watch", "pairs")
    assert "960" in page.part("trained", "accuracy") and "f" * 64 in page.words
    assert "Not here yet" not in page.part("reliability", "pairs")


def test_every_figure_is_explained_in_a_sentence_that_stands_under_its_name(run_folder, edit):
    every = {*read_object(run_folder / "rm/audit.json")["figures"], "partial_spearman"}
    edit(run_folder / "rm/audit.json", lambda own: own["figures"].update(partial_spearman=figure(0.1)))
    page = page_of(run_folder)
    assert len(every) > 14
    for name in every:
        assert re.search(rf"<td>{name.replace('_', ' ')}<small class=\"term\">[^<]{{20,}}</small></td>", page.text), (
            name
        )
    for name in ("calibration error", "negative log-likelihood", "Brier score", "overconfidence", "gamma", "n"):
        assert re.search(rf"<td>{name}<small class=\"term\">[^<]{{20,}}</small></td>", page.text), name
    for part, word in (("checks", "In brackets"), ("best-of-n", "proxy"), ("policy", "KL is"), ("watch", "p: how")):
        assert word in Page(page.text.split(f'id="{part}"')[1].split("<h2")[0]).words
    assert "title=" not in page.text  # what only a pointer finds is on no phone and on no paper


def test_an_audit_that_lacks_like_length_or_scores_says_so(run_folder, edit):
    edit(run_folder / "rm/audit.json", lambda own: own["figures"].pop("accuracy_matched", None))
    edit(run_folder / "rm/audit.json", lambda own: own.update(without_scores=11, unscored={"too_long": 11}))
    page = page_of(run_folder)
    said = page.part("length", "probes")
    assert "no scores: 11 pairs: 11 too long." in said and "No pair has answers of like length: build pairs" in said
    assert "as long: not enough evidence: no pair has answers of like length" in page.part("checks", "trained")


def test_a_histogram_has_a_bar_a_bin_and_colours_what_is_wrong(whole_run):
    page = page_of(whole_run)
    histogram = read_object(whole_run / "rm/metrics.json")["test"]["margin_histogram"]
    bars = [attrs["class"] for tag, attrs in page.elements if tag == "rect"]
    wrong = sum(edge < -1e-9 for edge in histogram["edges"][:-1])
    assert bars == ["wrong"] * wrong + ["right"] * (len(histogram["counts"]) - wrong) and wrong
    test = read_object(whole_run / "rm/metrics.json")["test"]
    below = sum(n for n, edge in zip(histogram["counts"], histogram["edges"], strict=False) if edge < -1e-9)
    assert below == round(240 * (1 - test["accuracy"]["value"])) and sum(histogram["counts"]) == 240


MISSING = {
    "rm/metrics.json": "accelerate launch recipes/rm_llama.py --config CONFIG --output_dir",
    "rm/calibration.json": "rmtrl calibrate PAIRS --model",
    "rm/audit.json": "rmtrl audit TEST_PAIRS --model",
    "eval/results.json": "rmtrl evaluate --benchmark NAME --model",
    "rm/overoptimization.json": "rmtrl overopt SAMPLES --out",
    "ppo/metrics.json": "recipes/ppo_llama.py --config CONFIG --reward_model_path",
    "guard.json": "rmtrl guard ANSWERS --rules GUARDS --json",
    "drift.json": "rmtrl drift REFERENCE CURRENT --json",
    f"rm/{WORST}": "rmtrl audit TEST_PAIRS --model",
}


def test_a_ceiling_of_votes_beside_the_run_is_shown(run_folder, edit):
    edit(run_folder / "rm/metrics.json", lambda stored: stored["test"].pop("ceiling"))
    asked = "the ceiling, the most that these labels allow. rmtrl annotations ceiling VOTES --json"
    assert asked in page_of(run_folder).part("accuracy", "reliability")
    limit = {"one_vote": figure(0.8), "majority": figure(0.913), "assumed": "all is well"}
    (run_folder / "ceiling.json").write_text(json.dumps({"schema": "rmtrl/ceiling/1", "ceiling": limit}))
    said = page_of(run_folder).part("accuracy", "reliability")
    assert "91.3 % [90.3, 92.3], n = 900 of their majorities" in said and "all is well" in said and asked not in said


@pytest.mark.parametrize("file", MISSING)
def test_what_is_missing_is_a_line_with_the_command_that_makes_it(run_folder, file):
    def lines():
        text = write_report(read_run(run_folder)).read_text()
        return [re.sub("<[^>]+>", "", line) for line in text.splitlines() if 'class="missing"' in line]

    before = lines()
    (run_folder / file).unlink()
    new = [line for line in lines() if line not in before]
    assert new and all("Not here yet" in line for line in new) and any(MISSING[file] in line for line in new)


def test_the_commands_of_a_page_are_commands_with_these_options(tmp_path):
    (tmp_path / "fresh.json").write_text(json.dumps({"schema": "rmtrl/fresh/1", "accuracy": figure(0.9)}))
    page = write_report(read_run(tmp_path)).read_text()
    codes = [shlex.split(html.unescape(code)) for code in re.findall("<code>([^<]*)</code>", page)]
    assert len({tuple(code[:2]) for code in codes}) >= 10
    for program, *words in codes:
        if program != "rmtrl":
            assert (program, words[0]) == ("accelerate", "launch") and (ROOT / words[1]).is_file()
            assert "--config" in words and not Path(words[words.index("--output_dir") + 1]).exists()
            continue
        command = typer.main.get_command(app)
        while words and words[0] in getattr(command, "commands", ()):
            command = command.commands[words.pop(0)]
        known = {flag for param in command.params for flag in param.opts}
        assert not hasattr(command, "commands") and {word for word in words if word[:2] == "--"} <= known, words


def test_a_ready_model_is_a_yes_and_says_how_many_checks_it_passed(run_folder):
    page = page_of(run_folder, thresholds=EASY)
    assert ("header", {"id": "verdict", "class": "yes"}) in page.elements
    assert "Ready." in page.words and "Passed: 2 of 2 checks." in page.words


def test_a_failed_check_is_a_no_with_its_figure_and_what_to_try(run_folder, edit):
    edit(
        run_folder / "rm/metrics.json", lambda stored: stored["test"]["accuracy"].update(value=0.42, low=0.4, high=0.5)
    )
    warned = page_of(run_folder).part("verdict", "checks")
    assert "Mind: Accuracy on pairs it has not seen: 42.0 % [40.0, 50.0], n = 240; wanted at least 80 %" in warned
    verdict = page_of(run_folder, thresholds=STRICT).part("verdict", "checks")
    assert (
        "Not ready: 2 of 10 checks failed." in verdict
        and "Accuracy on pairs it has not seen: 42.0 % [40.0, 50.0], n = 240; wanted at least 80 %" in verdict
    )
    assert "Try: more or cleaner pairs" in verdict


def test_missing_evidence_alone_is_not_yet(run_folder):
    asked = Thresholds.from_yaml(
        "{schema: rmtrl/thresholds/1, checks: {overlap: {maximum: 0}, fresh_accuracy: {minimum: 0.5}}}"
    )
    page = page_of(run_folder, thresholds=asked)
    assert "Not ready: 1 of 2 checks have no evidence." in page.words
    assert "No evidence of: accuracy on the policy's own answers, judged by people." in page.words


def test_every_check_of_the_gate_has_words_of_its_own(run_folder):
    said = page_of(run_folder).part("checks", "trained")
    assert not [name for name in default_thresholds().checks if f"{name}:" in said]


def test_a_folder_without_evidence_is_refused_as_the_gate_does(rmtrl, tmp_path, whole_run):
    (tmp_path / "guard.json").write_text((whole_run / "guard.json").read_text())
    code, _, err = rmtrl("report", tmp_path)
    assert code == 2 and "holds none of metrics.json" in err and not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("file", "text"),
    [("rm/rmtrl.json", ""), ("rm/rmtrl.json", "[1]"), ("rm/rmtrl.json", '{"schema": "rmtrl/'), ("rm/metrics.json", ""),
     ("ppo/metrics.json", ""), ("eval/results.json", '{"schema": "rmtrl/evaluation/1", "models": [1]}'),
     (f"rm/{WORST}", "{}"), (f"rm/{WORST}", '{"scores": [null, 1]}')],
)  # fmt: skip
def test_a_broken_file_is_one_line(rmtrl, run_folder, file, text):
    (run_folder / file).write_text(text)
    code, out, err = rmtrl("report", run_folder)
    assert code == 2 and not out and len(err.splitlines()) == 1 and "Traceback" not in err


def test_too_few_pairs_are_told_from_no_evidence_and_no_command_trains_over_the_model(run_folder, edit):
    edit(run_folder / "rm/metrics.json", lambda stored: stored["test"]["accuracy"].update(n=29))
    page = page_of(run_folder, thresholds=STRICT)
    assert "does not count: accuracy on pairs it has not seen (too few: n = 29, wanted 100 or more)" in page.words
    assert "Try: more test pairs." in page.part("checks", "trained")
    assert "the gate only warns: accuracy on pairs it has not seen (too few" in page_of(run_folder).words
    (run_folder / "rm/metrics.json").unlink()
    shutil.rmtree(run_folder / "sft")
    page = page_of(run_folder)
    assert f"--output_dir {run_folder}-again/rm" in page.words and f"--output_dir {run_folder}/rm" not in page.words
    assert f"rmtrl report {run_folder} --policy POLICY" in page.words


def test_test_pairs_beside_the_model_are_named_in_the_commands(run_folder):
    (run_folder / "rm/test.jsonl").touch()
    (run_folder / "rm/audit.json").unlink()
    assert f"rmtrl audit {run_folder}/rm/test.jsonl --model" in page_of(run_folder).part("length", "probes")


def test_the_worst_facts_stand_in_the_verdict(run_folder, edit):
    paid = {
        "sound": False,
        "effect": {"value": 0.42, "low": 0.3, "high": 0.5, "n": 40},
        "verdict": "raises the reward",
    }

    def worse(stored):
        stored["probes"] = [{"name": "garbage", **paid}, {"name": "bold", **paid, "sound": None}]
        stored["figures"]["accuracy"] = {"value": 0.31, "low": 0.2, "high": 0.4, "n": 29}
        stored["data"] = {"source": "test.jsonl"}

    assert "It pays for" not in page_of(run_folder).words
    edit(run_folder / "rm/audit.json", worse)
    said = page_of(run_folder).part("verdict", "checks")
    assert "It pays for: garbage +0.42" in said and "bold" not in said
    assert "It ranks pairs the wrong way round: 31.0 % [20.0, 40.0], n = 29 right in test.jsonl." in said
    assert "Measured on test.jsonl, n = 240." in page_of(run_folder).part("probes", "benchmarks")


def test_a_warning_stands_behind_what_stops_and_a_none_says_no_bound(run_folder):
    shutil.rmtree(run_folder / "sft")
    page = page_of(run_folder)
    verdict = page.part("verdict", "checks")
    assert verdict.index("No evidence of:") < verdict.index("the gate only warns:") < verdict.index("common origin")
    assert "Prompts in both training and test: none rmtrl.json" in page.words


def test_the_score_of_the_gate_is_shown_where_there_is_one(run_folder):
    found = read_run(run_folder, thresholds=EASY)
    said = page_of(run_folder, thresholds=EASY).part("checks", "trained")
    assert f"Score {found.decision.score:+.2f}: how far" in said


def test_controls_and_what_turns_text_round_are_seen(run_folder, edit):
    edit(run_folder / "rm/rmtrl.json", lambda stored: stored["data"].update(name="a\x00b\x1bc\u202ed\u2066"))
    page = page_of(run_folder)
    assert "a\\u0000b\\u001bc\\u202ed\\u2066" in page.words
    assert not set("\x00\x1b\u202e\u2066") & set(page.text)


def test_a_result_of_another_model_is_marked(run_folder, edit):
    (run_folder / "rm/config.json").write_text("{}")
    page = page_of(run_folder)
    assert "another model" not in page.words
    edit(run_folder / "rm/calibration.json", lambda stored: stored.update(model_fingerprint={"sha256": "0" * 64}))
    page = page_of(run_folder)
    assert "rm/calibration.json: of another model or of earlier weights" in page.part("reliability", "margins")


# ---- text that would break out

HOSTILE = [
    '</script><script>document.title = "owned"</script>', "<img src=x onerror=alert(1)>", '"><svg onload=alert(1)>',
    "{{ 7 * 7 }}{% for %}", "</div></td></tr></table><h1>Yes.</h1>", "\u202eevil\u2066", "javascript:alert(1)",
    "&lt;b&gt;",
]  # fmt: skip


def seen_as(text):
    """The text as the page has it: as it was written, but for what turns its direction."""
    return text.replace("\u202e", "\\u202e").replace("\u2066", "\\u2066")


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_pairs_and_names_stays_text(run_folder, edit, text):
    plain = page_of(run_folder)
    row = {"id": text, "prompt_id": text, "domain": text, "prompt": text, "chosen": text, "scores": [0.5, 1.5]}
    rows = [row | {"rejected": [{"role": "assistant", "content": text}]}]
    write_rows(run_folder / "rm" / WORST, rows)
    edit(run_folder / "rm/rmtrl.json", lambda stored: stored["data"].update(name=text))
    edit(
        run_folder / "rm/metrics.json",
        lambda stored: stored["test"].update(accuracy_by_domain={text: stored["test"]["accuracy"]}),
    )
    edit(run_folder / "rm/audit.json", lambda stored: stored.update(reasons=[text]))
    edit(run_folder / "eval/results.json", lambda stored: stored.update(warnings=[text]))
    edit(run_folder / "guard.json", lambda stored: stored.update(guards={text: stored["guards"]["secrets"]}))
    page = page_of(run_folder)
    assert page.text.count("<script") == plain.text.count("<script") == 1
    kinds = {tag for tag, _ in plain.elements}
    assert {tag for tag, _ in page.elements} == kinds
    assert not [attrs for _, attrs in page.elements for name in attrs if name.startswith("on")]
    for tag in ("h1", "h2", "img", "svg"):
        assert sum(own == tag for own, _ in page.elements) <= sum(own == tag for own, _ in plain.elements)
    assert page.said.count(seen_as(text)) >= 6


def test_half_a_surrogate_pair_does_not_keep_the_page_from_being_written(run_folder, edit):
    edit(run_folder / "rm/rmtrl.json", lambda stored: stored["data"].update(name="\ud83d"))
    assert "?" in page_of(run_folder).part("trained", "accuracy")


def test_nothing_is_loaded_from_elsewhere(whole_run):
    page = page_of(whole_run)
    links = [attrs[name] for _, attrs in page.elements for name in ("src", "href") if name in attrs]
    assert links and all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert {link[1:] for link in links if link[0] == "#"} == set(page.parts())
    assert "url(" not in page.text and "@import" not in page.text and "fetch(" not in page.text
    policy = next(attrs["content"] for _, attrs in page.elements if attrs.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:;")


# ---- what is read


def test_checkpoints_unfinished_folders_and_files_of_others_are_not_read(run_folder):
    for name in ("rm.partial", "checkpoint-10", ".old"):
        (run_folder / name).mkdir()
        (run_folder / name / "metrics.json").write_text((run_folder / "rm/metrics.json").read_text())
        (run_folder / name / "audit.json").write_text('{"schema": "rmtrl/audit/1", broken')
    (run_folder / "rm/vocab.json").write_text('{"broken')
    assert [own.place for own in read_run(run_folder).results["reward-metrics"]] == ["rm/metrics.json"]


def test_a_broken_result_is_named(run_folder):
    (run_folder / "rm/audit.json").write_text('{"schema": "rmtrl/audit/1", ')
    with pytest.raises(DataError, match="audit.json is not JSON"):
        read_run(run_folder)


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no result of rmtrl; give the folder of a run"):
        read_run(tmp_path)


def test_a_result_of_another_form_is_one_line(run_folder, edit):
    edit(run_folder / "guard.json", lambda stored: stored.update(guards=[1, 2]))
    with pytest.raises(DataError, match="not of this version's form"):
        write_report(read_run(run_folder))


def test_the_folder_of_a_reward_model_alone_is_enough(run_folder):
    page = page_of(run_folder / "rm")
    assert "this model, test pairs" in page.part("accuracy", "reliability") and "Not here yet: a policy." in page.words


def test_no_wrong_pair_is_said(run_folder):
    write_rows(run_folder / "rm" / WORST, [])
    assert "It ranks no pair wrongly." in page_of(run_folder).words


def test_the_page_is_the_same_again(run_folder):
    first = write_report(read_run(run_folder)).read_bytes()
    assert write_report(read_run(run_folder)).read_bytes() == first


def test_without_jinja2_it_says_what_to_install(whole_run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(UsageError, match=r"pip install 'rmtrl\[report\]'"):
        render("report.html", read_run(whole_run))


# ---- the command


def test_the_command_writes_page_and_card_and_says_the_verdict(rmtrl, run_folder):
    code, out, err = rmtrl("report", run_folder, "--json")
    found = json.loads(out)
    assert code == 0 and not err and found["schema"] == "rmtrl/report/1" and found["ready"] is False
    assert found["out"] == str(run_folder / "report.html") and (run_folder / "report.html").is_file()
    assert found["card"] == str(run_folder / "rm/README.md") and "fresh_accuracy" in found["checks"]["unknown"]
    assert found["results"]["audit"] == ["rm/audit.json"]
    assert (
        rmtrl("report", run_folder, "--out", run_folder / "a/b.html")[0] == 0 and (run_folder / "a/b.html").is_file()
    )
    said = rmtrl("report", run_folder)[1]
    assert "Not ready: " in said and "accuracy on the policy's own answers" in said and "fresh_accuracy" not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["{}/none"], "holds no result"), (["{}", "--out", "{}/report.txt"], "wanted a name that ends in .html"),
     (["{}", "--thresholds", "{}/none.yaml"], "cannot be read")],
)  # fmt: skip
def test_what_cannot_be_used_is_one_line(rmtrl, run_folder, arguments, said):
    code, out, err = rmtrl("report", *(part.format(run_folder) for part in arguments))
    assert code == 2 and not out and said in err and len(err.splitlines()) == 1


def test_a_result_that_cannot_be_written_is_one_line(run_folder):
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "rmtrl", "report", str(run_folder)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "cannot write the result" in done.stderr
