"""Splitting, coverage, sampling and the embedded world from the command line."""

import gzip
import hashlib
import json

import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard

from rmtrl.data.design import augment
from rmtrl.data.preferences import read_preferences
from rmtrl.data.splits import check_overlap
from rmtrl.io import write_rows


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


def test_an_unsafe_habit_is_told_and_recorded(rmtrl, world, tmp_path):
    folder, plain = world
    arguments = ("--out", tmp_path / "habit", "--prompts", 300, "--unsafe-habit", 1.5, "--json")
    code, out, _ = rmtrl("data", "synthesize", *arguments)
    assert code == 0 and json.loads(out)["unsafe_habit"] == 1.5 and "unsafe_habit" not in plain
    step = json.loads((tmp_path / "habit" / "manifest.json").read_text())["steps"][0]
    assert step["unsafe_habit"] == 1.5
    assert lines(folder / "prompts.jsonl")[:300] == lines(tmp_path / "habit" / "prompts.jsonl")[:300]
    assert lines(folder / "pairs.jsonl") != lines(tmp_path / "habit" / "pairs.jsonl")


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


def test_a_folder_of_splits_has_a_card_by_which_every_split_but_the_sealed_one_is_loaded(rmtrl, world, tmp_path):
    folder, _ = world
    arguments = (
        "--out",
        tmp_path / "s",
        "--sealed",
        "0.1",
        "--holdout-domains",
        "geography",
        "--licence",
        "CC-BY-4.0",
    )
    found = json.loads(
        rmtrl("data", "split", folder / "pairs.jsonl", *arguments, "--notes", "of our own", "--json")[1]
    )
    card = DatasetCard.load(tmp_path / "s" / "README.md")
    assert card.data.license_name == "CC-BY-4.0" and "of our own" in card.text
    assert "sealed" in card.text and "do not publish" in card.text
    loaded = load_dataset(str(tmp_path / "s"))
    assert set(loaded) == set(found["splits"]) - {"sealed"}
    for name, own in loaded.items():
        record = found["splits"][name]
        assert len(own) == record["rows"] == len(read_preferences(tmp_path / "s", split=name))
        assert (
            f"| {name} | {record['rows']} | {record['prompts']} | " in card.text and record["fingerprint"] in card.text
        )
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    assert "README.md" in manifest["files"]


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

    monkeypatch.setattr("rmtrl.data.publishing.manifest", interrupted)
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
        (("synthesize", "--out", "OUT", "--prompts", "0"), "wanted a number greater than or equal to 3"),
        (("synthesize", "--out", "OUT", "--unsafe-habit", "-1"), "got the unsafe habit -1.0; wanted a finite number"),
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


# ---- columns that one command writes and the next reads


def passed_on(rmtrl, tmp_path, rows):
    """Writes rows, sends them through validation and returns the file that it wrote."""
    write_rows(tmp_path / "rows.jsonl", rows)
    assert rmtrl("data", "validate", tmp_path / "rows.jsonl", "--out", tmp_path / "clean.jsonl")[0] == 0
    return tmp_path / "clean.jsonl"


def numbered(n, **columns):
    row = {"domain": "d", "chosen": "a b", "rejected": "c"}
    return [
        row | {"id": f"r{k}", "prompt": f"question {k} of {k * k}?"} | {c: f(k) for c, f in columns.items()}
        for k in range(n)
    ]


def homes(folder):
    return {row["id"]: path.name for path in folder.glob("*.jsonl") for row in lines(path)}


def test_clusters_that_dedup_found_are_what_split_keeps_together(rmtrl, tmp_path):
    rows = numbered(40, prompt=lambda k: f"please tell me all about number {k // 2} now" + " please" * (k % 2))
    write_rows(tmp_path / "rows.jsonl", rows)
    out = tmp_path / "clustered.jsonl"
    dedup = ("data", "dedup", tmp_path / "rows.jsonl", "--threshold", "0.5", "--keep", "all", "--out", out)
    assert rmtrl(*dedup)[0] == 0
    clusters = {row["id"]: row["cluster_id"] for row in lines(out)}
    assert len(set(clusters.values())) < 40
    clean = passed_on(rmtrl, tmp_path, lines(out))
    assert {row["id"]: row["cluster_id"] for row in lines(clean)} == clusters
    for ids, group in ((str, "cluster_id"), (lambda value: None, "prompt_id")):
        given = [row | {"cluster_id": ids(row["cluster_id"])} for row in lines(clean)]
        write_rows(tmp_path / "given.jsonl", given)
        split = ("data", "split", tmp_path / "given.jsonl", "--out", tmp_path / "splits")
        code, stdout, _ = rmtrl(*split, "--ratios", 0.5, 0, 0, 0.5, "--json")
        assert code == 0 and json.loads(stdout)["grouped_by"] == "cluster_id"
        home = homes(tmp_path / "splits")
        if group == "cluster_id":
            assert len({(clusters[id], name) for id, name in home.items()}) == len(set(clusters.values()))
        assert len(home) == 40


def test_languages_reach_coverage_and_its_rates(rmtrl, tmp_path):
    rows = numbered(40, language=lambda k: "de" if k % 4 == 0 else "en", source=lambda k: f"s{k % 2}", licence=str)
    clean = passed_on(rmtrl, tmp_path, rows)
    (tmp_path / "design.yaml").write_text("languages: {de: 0.25, en: 0.75}\n")
    code, stdout, _ = rmtrl("data", "coverage", clean, "--design", tmp_path / "design.yaml", "--strict", "--json")
    found = json.loads(stdout)
    assert code == 0 and found["met"] and found["counts"]["language"] == {"en": 30, "de": 10}
    rates = found["preference_rates"]
    assert (rates["language"]["de"]["n"], rates["source"]["s1"]["n"]) == (10, 20)
    assert rates["language"]["en"]["longer_chosen"]["value"] == 1
    assert lines(clean)[3]["licence"] == "3"


def test_weights_of_a_sample_give_back_the_prevalence(rmtrl, tmp_path):
    rows = numbered(120, domain=lambda k: "health" if k % 6 == 0 else "chat")
    write_rows(tmp_path / "rows.jsonl", rows)
    sample = ("data", "sample", tmp_path / "rows.jsonl", "--size", 40, "--stress", "health=4")
    code, _, err = rmtrl(*sample, "--out", tmp_path / "sample.jsonl")
    assert code == 0 and "warning" not in err
    clean = passed_on(rmtrl, tmp_path, lines(tmp_path / "sample.jsonl"))
    found = json.loads(rmtrl("data", "coverage", clean, "--json")[1])
    assert found["prevalence"] == {"chat": pytest.approx(5 / 6, abs=1e-5), "health": pytest.approx(1 / 6, abs=1e-5)}
    assert found["shares"]["domain"]["health"]["value"] > 0.4
    again = ("data", "sample", clean, "--size", 10, "--out", tmp_path / "again.jsonl")
    code, _, err = rmtrl(*again)
    assert code == 0 and "rmtrl: warning: sampling_weight of the data is replaced by that of this draw (" in err
    assert all(row["sampling_weight"] < 1.5 for row in lines(tmp_path / "again.jsonl"))


def test_variants_are_announced_and_stay_with_their_original(rmtrl, tmp_path):
    write_rows(tmp_path / "rows.jsonl", numbered(30))
    variants = augment(read_preferences(tmp_path / "rows.jsonl"), "loud", str.upper, of="responses")
    write_rows(tmp_path / "variants.jsonl", variants)
    clean = tmp_path / "clean.jsonl"
    code, stdout, stderr = rmtrl("data", "validate", tmp_path / "variants.jsonl", "--out", clean, "--json")
    said = "30 pairs are variants with the label of their original: have them annotated"
    assert code == 0 and json.loads(stdout)["warnings"] == [said] and said in stderr
    rows = lines(clean)
    assert [row["needs_annotation"] for row in rows] == [False] * 30 + [True] * 30
    assert {row["variant_of"] for row in rows[30:]} == {row["id"] for row in rows[:30]}
    assert rmtrl("data", "split", clean, "--out", tmp_path / "splits")[0] == 0
    home = homes(tmp_path / "splits")
    assert len(home) == 60 and all(home[row["variant_of"]] == home[row["id"]] for row in rows[30:])


def test_every_column_of_the_user_passes_every_command(rmtrl, tmp_path):
    own = {
        "text": lambda k: f"note {k}",
        "count": lambda k: k,
        "share": lambda k: k / 7,
        "flag": lambda k: k % 2 == 0,
        "mixed": lambda k: [k, "1", None, {"a": 1.7, "b": 10**25}, 0.5, True][k % 6],
        "huge": lambda k: 10**30,
        "nothing": lambda k: None,
        "rare": lambda k: "late" if k == 29 else None,
        "reason": lambda k: "theirs",
    }
    rows = numbered(30, **own)
    rows[3] |= {"chosen": rows[3]["rejected"]}
    write_rows(tmp_path / "rows.jsonl", rows)
    wanted = {row["id"]: {name: row[name] for name in own} for row in rows}

    def columns(path, but=()):
        found = lines(path)
        assert found
        for row in found:
            kept = {name: value for name, value in wanted[row["id"]].items() if name not in but}
            assert json.dumps({name: row[name] for name in kept}) == json.dumps(kept)
        return len(found)

    clean, rejects, out = (tmp_path / f"{name}.jsonl" for name in ("clean", "rejects", "out"))
    assert rmtrl("data", "validate", tmp_path / "rows.jsonl", "--out", clean, "--rejects", rejects)[0] == 0
    assert columns(clean) == 29 and columns(rejects, but=["reason"]) == 1
    assert rmtrl("data", "dedup", clean, "--out", out)[0] == 0 and columns(out)
    assert rmtrl("data", "sample", clean, "--size", 9, "--out", out)[0] == 0 and columns(out) == 9
    assert rmtrl("data", "contamination", clean, rejects, "--out", out)[0] == 0 and columns(out) == 29
    assert rmtrl("data", "split", clean, "--out", tmp_path / "splits")[0] == 0
    assert sum(columns(path) for path in (tmp_path / "splits").glob("*.jsonl")) == 29


def test_validating_in_place_keeps_what_cannot_be_read_as_it_was_given(rmtrl, tmp_path):
    data, rejects = tmp_path / "m.jsonl", tmp_path / "r.jsonl"
    sound = {"prompt": "a?", "chosen": "yes", "rejected": "no"}
    wrong = {"prompt": "z?", "chosen": 5, "rejected": "no", "note": "precious", "reason": "mine"}
    broken = '{"prompt": "y?", "chosen": "a"'
    text = "".join(f"{line}\n" for line in (json.dumps(sound), json.dumps(wrong), broken, b"caf\xe9".decode("latin1")))
    data.write_text(text, encoding="latin1")
    code, _, stderr = rmtrl("data", "validate", data, "--out", data)
    assert code == 2 and len(stderr.splitlines()) == 1 and data.read_text(encoding="latin1") == text
    assert rmtrl("data", "validate", data, "--out", data, "--rejects", rejects)[0] == 0
    (kept,), (first, second, third) = lines(data), lines(rejects)
    assert kept["chosen"] == "yes" and "row_given" not in kept and "fault" not in kept
    given = {"prompt": "z?", "chosen": 5, "rejected": "no", "note": "precious", "reason_given": "mine"}
    assert first.items() >= given.items() and first["reason"] == "unreadable" and "row 2: " in first["fault"]
    assert second["row_given"] == broken and third["row_given"] == "caf\\xe9"
    assert rmtrl("data", "validate", rejects, "--rejects", tmp_path / "again.jsonl")[0] == 2
    assert lines(tmp_path / "again.jsonl")[0].items() >= (given | {"reason": "unreadable"}).items()
