"""Splitting, coverage, sampling and the embedded world from the command line."""

import gzip
import hashlib
import json

import pytest

from rmtrl.data.preferences import read_preferences
from rmtrl.data.splits import check_overlap


@pytest.fixture
def world(rmtrl, tmp_path):
    code, out, _ = rmtrl("data", "synthesize", "--out", tmp_path / "world", "--prompts", 300, "--json")
    assert code == 0
    return tmp_path / "world", json.loads(out)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def digests(folder, names):
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


DATA_FILES = ["prompts.jsonl", "responses.jsonl", "annotations.jsonl", "pairs.jsonl", "evaluation.jsonl", "gold.jsonl",
              "truth.json"]  # fmt: skip


def test_the_world_is_written_whole_and_again_to_the_byte(rmtrl, world, tmp_path):
    folder, result = world
    assert {path.name for path in folder.iterdir()} == {*DATA_FILES, "manifest.json"}
    assert result["rows"]["prompts"] == 306 == len(lines(folder / "prompts.jsonl"))
    judgments = lines(folder / "annotations.jsonl")
    assert sum("choice" in row for row in judgments) == 5 * sum(
        1 for row in judgments if "choice" in row and row["annotator"] == "careful"
    )
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {name: part["sha256"] for name, part in manifest["files"].items()} == digests(folder, DATA_FILES)
    assert rmtrl("data", "synthesize", "--out", tmp_path / "again", "--prompts", 300)[0] == 0
    assert digests(folder, DATA_FILES) == digests(tmp_path / "again", DATA_FILES)


def test_splits_share_no_prompt_and_no_near_duplicate(rmtrl, world, tmp_path):
    folder, _ = world
    out = tmp_path / "splits"
    arguments = ("--out", out, "--sealed", "0.1", "--holdout-domains", "geography,physics", "--json")
    code, stdout, _ = rmtrl("data", "split", folder / "pairs.jsonl", *arguments)
    record = json.loads(stdout)
    assert code == 0 and not any(record["overlap"].values())
    parts = {path.name.split(".")[0]: read_preferences(path) for path in out.glob("*.jsonl*")}
    assert set(parts) == {"train", "validation", "calibration", "test", "sealed", "spillover"}
    check_overlap(parts)
    assert sum(map(len, parts.values())) == len(read_preferences(folder / "pairs.jsonl")) == record["input"]["rows"]
    home = {row["prompt_id"]: name for name, part in parts.items() for row in part}
    planted = json.loads((folder / "truth.json").read_text())["near_duplicate_prompts"]
    assert planted and all(home[original] == home[twin] for original, twin in planted)
    assert not {"geography", "physics"} & {d for name in parts if name != "spillover" for d in parts[name]["domain"]}
    assert record["splits"]["train"]["rows"] == len(parts["train"])


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(rmtrl, world, tmp_path):
    folder, _ = world
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        code, *_ = rmtrl("data", "split", folder / "pairs.jsonl", "--out", tmp_path / name, "--seed", seed,
                         "--sealed", "0.1")  # fmt: skip
        assert code == 0
    names = ["train.jsonl", "validation.jsonl", "calibration.jsonl", "test.jsonl", "sealed.jsonl.gz", "splits.json"]
    assert digests(tmp_path / "a", names) == digests(tmp_path / "b", names)
    assert digests(tmp_path / "a", names) != digests(tmp_path / "c", names)
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["inputs"]["steps"][0]["command"] == "rmtrl data synthesize"


def test_every_opening_of_the_sealed_split_is_counted(rmtrl, world, tmp_path):
    folder, _ = world
    out = tmp_path / "splits"
    split = ("data", "split", folder / "pairs.jsonl", "--out", out, "--sealed", "0.1")
    rmtrl(*split)
    for purpose in ("final figure", "second look"):
        code, stdout, _ = rmtrl(
            "data", "unseal", out, "--purpose", purpose, "--out", tmp_path / "open.jsonl", "--json"
        )
        assert code == 0
    assert [opening["purpose"] for opening in json.loads(stdout)["openings"]] == ["final figure", "second look"]
    assert (tmp_path / "open.jsonl").read_bytes() == gzip.decompress((out / "sealed.jsonl.gz").read_bytes())
    rmtrl(*split)  # made anew, it is still known to have been opened
    code, stdout, _ = rmtrl("data", "unseal", out, "--purpose", "third", "--out", tmp_path / "open.jsonl", "--json")
    assert len(json.loads(stdout)["openings"]) == 3


def test_a_failed_split_leaves_the_earlier_one(rmtrl, world, tmp_path, monkeypatch):
    folder, _ = world
    out = tmp_path / "splits"
    rmtrl("data", "split", folder / "pairs.jsonl", "--out", out)
    before = digests(out, ["train.jsonl", "splits.json", "manifest.json"])

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("rmtrl.data.provenance.manifest", interrupted)
    assert rmtrl("data", "split", folder / "pairs.jsonl", "--out", out, "--seed", 5)[0] == 130
    assert before == digests(out, ["train.jsonl", "splits.json", "manifest.json"])
    assert not list(tmp_path.glob(".splits*"))


def test_coverage_names_the_annotator_who_loves_length(rmtrl, world):
    folder, _ = world
    arguments = ("--annotations", folder / "annotations.jsonl", "--responses", folder / "responses.jsonl")
    code, stdout, stderr = rmtrl("data", "coverage", folder / "pairs.jsonl", *arguments, "--json")
    result = json.loads(stdout)
    assert code == 0 and result["flagged"] == {"long-winded": ["prefers_longer"]}
    assert "annotator long-winded prefers longer" in stderr
    met = {check["name"]: check["met"] for check in result["checks"]}
    assert met == {"prompts": False, "domains": True, "source human": True, "source generated": True,
                   "annotators per item": True, "criteria": True}  # fmt: skip
    assert rmtrl("data", "coverage", folder / "pairs.jsonl", *arguments, "--strict")[0] == 1


def test_a_sample_draws_more_of_a_stressed_domain(rmtrl, world, tmp_path):
    folder, _ = world
    code, stdout, _ = rmtrl("data", "sample", folder / "pairs.jsonl", "--size", 60, "--stress", "health=4", "--out",
                            tmp_path / "sample.jsonl", "--json")  # fmt: skip
    domains = json.loads(stdout)["domains"]
    assert code == 0 and domains["health"]["drawn"] > 2 * domains["physics"]["drawn"]
    assert len({row["prompt_id"] for row in lines(tmp_path / "sample.jsonl")}) == 60


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("split", "PAIRS", "--out", "OUT", "--holdout-domains", "magic"), "no pair has the domain magic"),
        (("split", "PAIRS", "--out", "OUT", "--ratios", "1", "1", "0", "0"), "wanted four shares"),
        (("split", "PAIRS", "--out", "OUT", "--sealed", "2"), "got sealed 2.0"),
        (("split", "PAIRS", "--out", "OUT", "--stratify", "colour"), "got --stratify colour"),
        (("split", "PAIRS", "--out", "FULL"), "exists and holds no splits.json"),
        (("unseal", "OUT", "--purpose", "x", "--out", "OPEN"), "has no sealed split"),
        (("coverage", "PAIRS", "--design", "nothing"), "no design nothing"),
        (("sample", "PAIRS", "--size", "10", "--stress", "health", "--out", "OPEN"), "wanted name=number"),
        (("sample", "PAIRS", "--size", "100000", "--out", "OPEN"), "wanted 1 to"),
        (("synthesize", "--out", "OUT", "--annotators", "9"), "give a number from 1 to 5"),
        (("synthesize", "--out", "OUT", "--prompts", "0"), "give 1 or more"),
        (("synthesize", "--out", "FULL"), "exists and holds no truth.json"),
    ],
)
def test_what_cannot_be_used_is_one_line(rmtrl, world, tmp_path, arguments, said):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("keep me")
    paths = {"PAIRS": world[0] / "pairs.jsonl", "OUT": tmp_path / "out", "FULL": tmp_path / "full",
             "OPEN": tmp_path / "open.jsonl"}  # fmt: skip
    code, stdout, stderr = rmtrl("data", *(paths.get(argument, argument) for argument in arguments))
    errors = [line for line in stderr.splitlines() if line.startswith("rmtrl: error:")]
    assert code == 2 and stdout == "" and len(errors) == 1 and said in errors[0]
    assert not (tmp_path / "out").exists() and not (tmp_path / "open.jsonl").exists()
    assert (tmp_path / "full" / "precious.txt").read_text() == "keep me"


def test_an_opening_that_fails_is_not_counted_and_leaves_nothing(rmtrl, world, tmp_path):
    folder, _ = world
    out = tmp_path / "splits"
    rmtrl("data", "split", folder / "pairs.jsonl", "--out", out, "--sealed", "0.1")
    for target in (tmp_path, tmp_path / "splits" / "train.jsonl" / "x.jsonl"):
        assert rmtrl("data", "unseal", out, "--purpose", "x", "--out", target)[0] == 2
    whole = (out / "sealed.jsonl.gz").read_bytes()
    (out / "sealed.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    code, _, stderr = rmtrl("data", "unseal", out, "--purpose", "x", "--out", tmp_path / "open.jsonl")
    assert code == 2 and "cannot open" in stderr
    assert not (out / "sealed_openings.json").exists() and not (tmp_path / "open.jsonl").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_file_in_the_way_of_a_new_folder_is_no_obstacle(rmtrl, tmp_path):
    (tmp_path / ".world.new").write_text("left behind")
    assert rmtrl("data", "synthesize", "--out", tmp_path / "world", "--prompts", 20)[0] == 0


@pytest.mark.parametrize("text", ["{bad", "[1]", '{"schema": "another program"}'])
def test_a_foreign_manifest_beside_the_data_is_left_alone(rmtrl, world, tmp_path, text):
    folder, _ = world
    (folder / "manifest.json").write_text(text)
    assert rmtrl("data", "split", folder / "pairs.jsonl", "--out", tmp_path / "splits")[0] == 0
    assert json.loads((tmp_path / "splits" / "manifest.json").read_text())["inputs"] is None
