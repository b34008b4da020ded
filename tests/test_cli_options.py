"""Every option of every command with values it cannot take: a result, or one line and exit code 2; nothing else."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification
from typer.main import get_command

from rmtrl.cli import app
from rmtrl.tiny import make_tiny_llama, make_tiny_tokenizer

EXAMPLES = Path(__file__).parents[1] / "examples"
FREE = {"--notes", "--licence", "--purpose", "--reviewer", "--split", "--from-split"}  # a file is a split by any name
NAMES = {("fresh sample", "--policy"), ("report", "--policy")}  # for the record; a hub id, of which little is known
OUTPUTS = {"--out", "--history", "--rejects", "--export", "--key", "--review", "--fitted"}


def commands(command, path=()):
    """The commands by their words."""
    if not hasattr(command, "commands"):
        return {" ".join(path): command}
    return {
        words: own for name, inner in command.commands.items() for words, own in commands(inner, (*path, name)).items()
    }


COMMANDS = commands(get_command(app))


def kind_of(param):
    descriptor = getattr(param, "type_descriptor", None)  # typer's own, or the type of click before it
    return (descriptor.annotation.__name__ if descriptor else type(param.type).__name__.lower()).removesuffix(
        "paramtype"
    )


def options(words):
    """The options that take a value, with what kind of value it is."""
    params = [param for param in COMMANDS[words].params if param.opts[0].startswith("--") and param.name != "help"]
    return {param.opts[0]: kind_of(param) for param in params if not kind_of(param).startswith("bool")}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with something for every command to work on."""
    folder = tmp_path_factory.mktemp("world")
    tokenizer = make_tiny_tokenizer(["red blue sun moon sea good bad one"] * 20, vocab_size=320)
    policy = make_tiny_llama(tokenizer, hidden_size=32)
    config = LlamaConfig(**{**policy.config.to_dict(), "num_labels": 1, "pad_token_id": tokenizer.pad_token_id})
    for name, own in (("rm", LlamaForSequenceClassification(config)), ("policy", policy)):
        own.save_pretrained(folder / name), tokenizer.save_pretrained(folder / name)
    rows = [{"id": str(i), "prompt_id": f"p{i // 2}", "domain": "ab"[i % 2], "prompt": f"red {i // 2} sun moon ?",
             "chosen": f" good {i}", "rejected": f" bad one {i}"} for i in range(40)]  # fmt: skip
    write(folder / "pairs.jsonl", rows), write(folder / "set" / "test.jsonl", rows)
    other = [row | {"prompt_id": f"q{i}", "prompt": f"blue {i} sea ?"} for i, row in enumerate(rows)]
    write(folder / "other.jsonl", other)
    scores = [{"id": str(i), "scores": [i % 7 / 3, i % 3]} for i in range(40)]
    write(folder / "scores.jsonl", scores)
    write(folder / "prompts.jsonl", [{"prompt": f"red {i} ?", "candidates": [" good", " bad"]} for i in range(3)])
    write(folder / "references.jsonl", [{"prompt": f"red {i} ?", "reference": "blue"} for i in range(3)])
    said = ["Yes", "Sorry, but I can't help with that."]
    answers = [{"prompt": f"red {i} ?", "safe": i % 2, "completion": said[i % 3 > 0], "refused": i % 3 > 0}
               for i in range(12)]  # fmt: skip
    write(folder / "answers.jsonl", answers), write(folder / "labels.jsonl", answers)
    write(folder / "asked.jsonl", [{"prompt": f"red {i} ?", "safe": i % 2} for i in range(3)])
    write(folder / "generations.jsonl", [{"prompt": f"red {i} ?", "completions": [" a", " b"]} for i in range(3)])
    torch.manual_seed(0)
    samples = [{"prompt_id": f"p{i // 8}", "proxy": torch.rand(()).item(), "gold": torch.rand(()).item(),
                "domain": "ab"[i // 8 % 2]} for i in range(64)]  # fmt: skip
    write(folder / "samples.jsonl", samples)
    write(folder / "evidence.json", [{"schema": "rmtrl/evidence/1", "test_accuracy": {"value": 0.9, "n": 200}}])
    write(folder / "units.jsonl", [{"unit": f"u{i}"} for i in range(60)])
    write(folder / "mine" / "all.jsonl", [{"prompt": "red ?", "chosen": "good", "rejected": "bad", "id": "0"}])
    settings = {"name": "mine", "kind": "made up", "rule": "pairs", "subsets": {"all": "all.jsonl"}}
    write(folder / "mine" / "benchmark.yaml", [settings])
    write(folder / "guards.json", [{"schema": "rmtrl/guard-policy/1", "guards": {"secrets": {}}}])
    write(folder / "labelled.jsonl", [{"prompt": f"moon {i}", "response": "good", "label": 0} for i in range(40)])
    (folder / "run").mkdir()
    write(folder / "run" / "fresh.json", [{"schema": "rmtrl/fresh/1", "accuracy": {"value": 0.9, "n": 200}}])
    write(folder / "item.jsonl", [{"id": "0", "scores": [1, 0]}])
    shutil.copy(EXAMPLES / "annotations.jsonl", folder)
    return folder


BASES = {
    "gate": ["evidence.json"],
    "inspect": ["pairs.jsonl --model rm"],
    "score": ["pairs.jsonl --model rm --out OUT"],
    "calibrate": ["pairs.jsonl --scores scores.jsonl", "pairs.jsonl --model rm"],
    "evaluate": ["--benchmark mine --scores item.jsonl", "--benchmark mine --model rm"],
    "audit": ["pairs.jsonl --scores scores.jsonl", "pairs.jsonl --model rm --probe-rows 2"],
    "overopt": ["samples.jsonl --n-resamples 100"],
    "guard": [
        "generations.jsonl --rules guards.json",
        "generations.jsonl --rules guards.json --fit labelled.jsonl --false-positive-rate 0.05 --fitted OUT",
    ],
    "compare": [
        "prompts.jsonl --policy policy --model rm --max-new-tokens 2 --out OUT",
        "references.jsonl --policy policy --metric word_f1 --max-new-tokens 2 --baseline policy",
    ],
    "doctor": [""],
    "recipes copy": ["OUT"],
    "rerank": ["prompts.jsonl --model rm --policy policy --n 2 --max-new-tokens 2 --out OUT"],
    "drift": ["pairs.jsonl other.jsonl"],
    "redteam": [
        "--policy answers.jsonl --before answers.jsonl --judge-labels labels.jsonl",
        "--policy policy --attack plain --requests 1 --max-new-tokens 2 --out OUT",
        "--policy policy --prompts asked.jsonl --k 2 --max-new-tokens 2",
    ],
    "data validate": ["pairs.jsonl"],
    "data dedup": ["pairs.jsonl"],
    "data contamination": ["pairs.jsonl other.jsonl"],
    "data split": ["pairs.jsonl --out OUT"],
    "data unseal": ["splits --purpose test --out OUT"],
    "data coverage": ["pairs.jsonl"],
    "data sample": ["pairs.jsonl --size 4 --out OUT"],
    "data synthesize": ["--out OUT --prompts 20"],
    "annotations agreement": ["annotations.jsonl"],
    "annotations aggregate": ["annotations.jsonl"],
    "annotations ceiling": ["annotations.jsonl --accuracy 0.7 --n 50 --delta 0.1 --differ 0.4"],
    "annotations pairs": ["annotations.jsonl"],
    "report": ["run"],
    "fresh sample": [
        "generations.jsonl --out OUT --key KEY --n 2",
        "prompts.jsonl --out OUT --key KEY --n 2 --model policy --max-new-tokens 8",
    ],
    "fresh import": ["review.jsonl --key key.json --by human --out OUT"],
    "fresh score": ["verdicts.jsonl --scores verdict_scores.jsonl"],
    "abtest plan": ["--baseline 0.5 --effect 0.2"],
    "abtest assign": ["plan.json units.jsonl --out OUT"],
    "abtest analyse": ["plan.json arms.jsonl outcomes.jsonl"],
}


@pytest.fixture
def run(rmtrl, world, monkeypatch, tmp_path):
    """Runs a command in the world's folder, an option of it replaced or added; outputs go elsewhere."""
    monkeypatch.chdir(world)
    runs = itertools.count()

    def command(words, base, *option):
        folder = tmp_path / str(next(runs))
        given = base.replace("OUT", str(folder / "out")).replace("KEY", str(folder / "key")).split()
        if option and option[0] in given:
            at = given.index(option[0])
            del given[at : at + 2]
        return rmtrl(*words.split(), *given, *option)

    return command


@pytest.fixture
def made(run, rmtrl, world, monkeypatch):
    """The files that commands make for one another."""
    if (world / "arms.jsonl").exists():
        return
    monkeypatch.chdir(world)
    assert rmtrl("abtest", "plan", "--baseline", 0.5, "--effect", 0.4, "--out", "plan.json")[0] == 0
    assert rmtrl("abtest", "assign", "plan.json", "units.jsonl", "--out", "arms.jsonl")[0] == 0
    write(world / "outcomes.jsonl", [{"unit": f"u{i}", "success": i % 2, "violation": 0} for i in range(60)])
    assert (
        rmtrl("fresh", "sample", "generations.jsonl", "--out", "review.jsonl", "--key", "key.json", "--n", 3)[0] == 0
    )
    review = [json.loads(line) for line in (world / "review.jsonl").read_text().splitlines()]
    write(world / "review.jsonl", [row | {"verdict": "a", "reviewer": "ann"} for row in review])
    taken = ("fresh", "import", "review.jsonl", "--key", "key.json", "--by", "human", "--out", "verdicts.jsonl")
    assert rmtrl(*taken)[0] == 0
    write(world / "verdict_scores.jsonl", [{"id": row["id"], "scores": [1, 0]} for row in review])
    assert rmtrl("data", "split", "pairs.jsonl", "--out", "splits", "--sealed", 0.2)[0] == 0


def test_every_command_works_with_what_is_given_here(run, made):
    others = {"serve", "parity", "merge"}  # with servers and adapters of their own: each has its tests
    assert set(BASES) == set(COMMANDS) - others
    for words, bases in BASES.items():
        for base in bases:
            code, _, err = run(words, base)
            assert code in (0, 1), f"{words} {base}: {err}"


# what programs read: a key may come, none goes
KEYS = {
    "rmtrl/abtest-assignment/1": "control new out plan repeated_ids schema treatment units",
    "rmtrl/abtest-plan/1": (
        "alpha baseline block bounds critical_values discordant effect hash n paired power safety_alpha "
        "safety_maximum schema seed"
    ),
    "rmtrl/abtest/1": "balance_p counts decision looks plan rates reason schema violations",
    "rmtrl/aggregation/1": (
        "alpha annotators conflicts counts criteria data items kept n pairs quorum ratings reasons rejected "
        "schema seed votes weights"
    ),
    "rmtrl/agreement/1": (
        "annotators below_target conflicts criteria data items kept n pairs ratings reasons rejected results "
        "scale schema seed target votes"
    ),
    "rmtrl/audit/1": (
        "ceiling curve data domains figures model n probes prompts reasons reweighted schema scores seed "
        "ties_left_out unit unscored verdict without_scores"
    ),
    "rmtrl/calibration/1": (
        "after after_is before data domains dropped exported isotonic kind made made_worse mean_reward model "
        "model_fingerprint n nll_change prompts reason reward_range schema temperature temperature_estimate "
        "test_after test_before warnings within_prompt_std"
    ),
    "rmtrl/ceiling/1": (
        "accuracy alpha annotators ceiling closed conflicts criteria data delta differ items kept n other_family "
        "pairs pairs_needed power ratings reasons rejected schema votes"
    ),
    "rmtrl/comparison/1": (
        "baseline compared data data_sha256 fingerprints metric model out policies prompts sampling schema"
    ),
    "rmtrl/contamination/1": "dropped evaluations found kept n ngram schema skipped_comparisons threshold train",
    "rmtrl/coverage/1": (
        "annotators balance checks counts data design flagged judgments met n preference_rates prevalence "
        "schema shares"
    ),
    "rmtrl/dedup/1": (
        "clusters data dropped exact examples kept largest n near prompts schema skipped_comparisons "
        "threshold warnings"
    ),
    "rmtrl/doctor/1": "device extras_missing falls_back hub problems ready schema versions",
    "rmtrl/drift/1": (
        "accuracy alarm alpha columns data expected_accuracy n_permutations not_compared p schema seed "
        "shared_prompts time warnings"
    ),
    "rmtrl/evaluation/1": "average_over models published schema seconds started warnings",
    "rmtrl/fresh-sample/1": "key pairs reasons review schema skipped truncated",
    "rmtrl/fresh-verdicts/1": "a b missing out reviewed_by schema tie verdicts",
    "rmtrl/fresh/1": (
        "a_preferred accuracy model model_fingerprint pairs policy reviewed_by reviewers schema tied_scores "
        "ties truncated"
    ),
    "rmtrl/gate/1": "evidence not_asked ready reasons run schema score thresholds",
    "rmtrl/guard/1": "findings fit fits flagged guards limit n passed policy prompts responses schema skipped",
    "rmtrl/inspection/1": "data model reward row schema scored_position side tokens",
    "rmtrl/overoptimization/1": (
        "convention data domains environment held_out n_samples notes rl samples_per_prompt schema settings "
        "steps verdict whole"
    ),
    "rmtrl/pairs/1": (
        "annotators conflicts counts criteria data disputed from items kept min_votes n pairs ratings reasons "
        "rejected schema votes"
    ),
    "rmtrl/recipes/1": "files out schema",
    "rmtrl/redteam/1": (
        "before beyond_k blank changes counted data guards judge k missing policies prompts rates requests "
        "sampling schema seed warnings"
    ),
    "rmtrl/report/1": "card checks out ready results run schema",
    "rmtrl/rerank/1": "best candidates data gain model n out policy schema too_long unranked",
    "rmtrl/sample/1": "data domains n out schema seed",
    "rmtrl/scores/1": "accuracy data model n schema too_long warnings",
    "rmtrl/sealed-openings/1": "openings out schema",
    "rmtrl/splits/1": "grouped_by input out overlap schema settings splits",
    "rmtrl/validation/1": "data domains groups kept n reasons rejected schema tie_rate warnings",
    "rmtrl/world/1": "annotators clean out prompts rows schema seed",
}


@pytest.mark.parametrize("words", sorted(BASES))
def test_json_has_the_keys_that_programs_read(run, made, words):
    for base in BASES[words]:
        found = json.loads(run(words, base, "--json")[1])
        assert list(found)[0] == "schema" and " ".join(sorted(found)) == KEYS[found["schema"]], (base, found["schema"])


BAD = {"int": ["x", "1.5", "-3", "0"], "float": ["x", "nan", "inf", "-3"]}  # that are numbers may be allowed
NEVER = {"x", "1.5", "nan", "no/such/thing", "pairs.jsonl/x"}


def bad_values(flag, kind):
    return ["pairs.jsonl/x"] if flag in OUTPUTS else BAD.get(kind, ["no/such/thing", ""])


@pytest.mark.parametrize("words", sorted(BASES))
def test_a_bad_value_of_an_option_is_one_line_and_exit_code_2(run, made, words):
    wrong = []
    for base, (flag, kind) in itertools.product(BASES[words], options(words).items()):
        for value in bad_values(flag, kind):
            code, out, err = run(words, base, flag, value)
            lines = [line for line in err.splitlines() if line.startswith("rmtrl: error:")]
            refused = code == 2 and len(lines) == 1 and not out and "Traceback" not in err and "─" not in err
            if not refused and (
                code not in (0, 1) or (value in NEVER and flag not in FREE and (words, flag) not in NAMES)
            ):
                wrong.append(f"{base} {flag} {value!r}: {code} {out[:60]!r} {err[-300:]!r}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("words", sorted(BASES))
def test_a_missing_input_is_one_line_that_names_it(run, made, words):
    for base in BASES[words]:
        for name in [word for word in base.split() if word.endswith((".jsonl", ".json"))]:
            code, out, err = run(words, base.replace(name, "no-such.jsonl", 1))
            *_, last = err.splitlines()
            assert code == 2 and not out and last.startswith("rmtrl: error:") and "no-such.jsonl" in last, (base, err)


WRITES = [(words, flag) for words in sorted(COMMANDS) for flag in sorted(OUTPUTS & set(options(words)))]
WRITES.remove(("fresh import", "--key"))  # which it reads
WRITES.remove(("merge", "--out"))  # its input is an adapter: tests/reward/test_merging.py
IN_FOLDER = {("evaluate", "--out"): "mine/scores.jsonl", ("audit", "--out"): "audit.json",
             ("overopt", "--out"): "overoptimization.json", ("data split", "--out"): "train.jsonl"}  # fmt: skip
READ = {"data unseal": ["splits/train.jsonl"]}  # in a folder
MORE = {"calibrate": ["pairs.jsonl --scores scores.jsonl --test more.jsonl --test-data other.jsonl"],
        "annotations pairs": ["annotations.jsonl --prompts more.jsonl --responses other.jsonl"]}  # fmt: skip


def test_every_option_that_writes_is_known_as_one():
    for words, command in COMMANDS.items():
        said = {param.opts[0] for param in command.params if (getattr(param, "help", "") or "").startswith("Write")}
        assert said <= OUTPUTS, words


@pytest.mark.parametrize(("words", "flag"), WRITES)
def test_no_output_takes_the_place_of_an_input(rmtrl, world, made, monkeypatch, tmp_path, words, flag):
    folder = tmp_path / "copy"
    shutil.copytree(world, folder)
    shutil.copy(folder / "scores.jsonl", folder / "more.jsonl")
    monkeypatch.chdir(folder)
    for base in [*BASES[words], *MORE.get(words, [])]:
        if flag == "--export" and "--model" not in base:
            continue
        files = [word for word in base.split() if word.endswith((".jsonl", ".json"))]
        for name in files or READ.get(words, []):
            given, target = base, name
            if place := IN_FOLDER.get((words, flag)):
                given, target = base.replace(name, f"results/{place}", 1), "results"
                (folder / "results" / place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(name, folder / "results" / place)
            given = given.replace(f"{flag} OUT", "").replace(f"{flag} KEY", "").replace("OUT", "o").replace("KEY", "k")
            before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
            code, out, err = rmtrl(*words.split(), *given.split(), flag, target)
            assert code == 2 and not out, (given, err)
            assert f"got {flag} " in err and "which is read as input" in err and "; give another file" in err
            assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("words", ["data dedup made.jsonl", "score made.jsonl --model rm --out OUT",
                                   "data validate made.jsonl", "data split made.jsonl --out OUT",
                                   "data coverage made.jsonl"])  # fmt: skip
def test_what_is_to_be_said_of_a_file_is_a_warning(rmtrl, world, monkeypatch, tmp_path, words):
    rows = [{"chosen": f"red {i} moon good", "rejected": f"red {i} moon bad"} for i in range(8)]
    write(world / "made.jsonl", rows)
    monkeypatch.chdir(world)
    code, out, err = rmtrl(*words.replace("OUT", str(tmp_path / "out")).split(), "--json")
    said = "made.jsonl has no prompts: what both sides of a pair begin with is taken for the prompt"
    assert code == 0 and err.count(f"rmtrl: warning: {said}\n") == err.count(said) == 1
    if words.split()[1] in ("dedup", "validate") or words.startswith("score"):
        assert said in json.loads(out)["warnings"]


@pytest.mark.parametrize("words", sorted(BASES))
def test_a_model_or_tokenizer_at_no_folder_is_said_so(run, made, words):
    for flag in {"--model", "--tokenizer", "--policy"} & set(options(words)):
        for base, path in itertools.product(BASES[words], ("/nosuch", "/no/such/folder")):
            if flag in base and words != "guard":  # whose policy is a file
                code, out, err = run(words, base, flag, path)
                assert code == 2 and not out and f"at {path}: there is no such folder; give" in err, (base, err)


@pytest.mark.parametrize(
    ("words", "said"),
    [("data validate pairs.jsonl --tokenizer /nosuch", "no tokenizer at /nosuch: there is no such folder"),
     ("data validate pairs.jsonl --tokenizer rm --max-length 0", "got --max-length 0; "),
     ("data validate pairs.jsonl --tokenizer rm --max-length -3", "got --max-length -3; "),
     ("data split pairs.jsonl --out o --ratios 0.7,0.1,0.1,0.1", "requires 4 arguments, apart by spaces"),
     ("data coverage pairs.jsonl --design table.csv", "table.csv is not a design (it holds no keys and values)"),
     ("audit pairs.jsonl --scores scores.jsonl --target-mix no.json", "got --target-mix no.json; there is no such"),
     ("data sample pairs.jsonl --size 4 --out o --stress no.json", "got --stress no.json; there is no such file"),
     ("annotations agreement no.jsonl", "no such file: no.jsonl; give a file of judgments"),
     ("annotations pairs no.jsonl", "no such file: no.jsonl; give a file of judgments"),
     ("overopt empty.jsonl", "empty.jsonl is empty; wanted rows"),
     ("fresh sample generations.jsonl --out o --key k --n 200", "got 200 pairs to draw (--n); wanted 1 to 3")],
)  # fmt: skip
def test_a_line_names_what_is_wrong(rmtrl, world, monkeypatch, words, said):
    monkeypatch.chdir(world)
    (world / "table.csv").write_text("a,b\n1,2\n"), (world / "empty.jsonl").write_text("")
    code, out, err = rmtrl(*words.split())
    assert code == 2 and not out and said in err and "hub id of the form" not in err and "**" not in err


@pytest.mark.parametrize(
    ("words", "said"),
    [("score", "Missing argument"), ("score x --bogus", "--bogus"), ("nosuch", "nosuch"),
     ("rerank x --model y --out z --n 0", "got --n 0; "), ("abtest plan", "Missing option"),
     ("abtest assign a b c --out d", "unexpected extra argument")],
)  # fmt: skip
def test_what_the_command_line_cannot_read_is_one_line(rmtrl, words, said):
    code, out, err = rmtrl(*words.split())
    assert (code, out) == (2, "") and err.count("\n") == 1 and said in err
    assert err.startswith("rmtrl: error: ") and "; see rmtrl" in err and err.endswith(" --help\n")


@pytest.mark.parametrize("words", sorted(COMMANDS.keys() - {"score", "evaluate"}))
def test_a_command_that_does_not_share_its_work_refuses_several_processes(rmtrl, monkeypatch, words):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, stdout, stderr = rmtrl(*words.split())
    assert (code, stdout) == (2, "") and len(stderr.splitlines()) == 1
    assert f"rmtrl {words.split()[0]} is for one process and was started in 2" in stderr
