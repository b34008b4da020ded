"""`rmtrl annotations …`: JSON that stays, files that are written whole, one line for input it cannot use."""

import json
from pathlib import Path

import pytest

from rmtrl.data.preferences import read_preferences
from rmtrl.data.validation import validate

EXAMPLE = Path(__file__).parents[1] / "examples" / "annotations.jsonl"
LINES = [json.loads(line) for line in EXAMPLE.read_text().splitlines()]


@pytest.fixture
def file(tmp_path):
    def write(rows, name="judgments.jsonl"):
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return write


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_agreement_reports_every_slice(rmtrl):
    code, stdout, stderr = rmtrl(
        "annotations", "agreement", EXAMPLE, "--by", "domain,criterion", "--scale", "interval", "--json"
    )
    report = json.loads(stdout)
    assert code == 0 and stderr == "" and report["schema"] == "rmtrl/agreement/1"
    assert (report["n"], report["kept"], report["rejected"], report["reasons"]["abstention"]) == (31, 30, 1, 1)
    assert len(report["results"]) == 9 and report["target"] == 0.6
    whole = {result["criterion"]: result for result in report["results"] if result["domain"] is None}
    assert (whole["vote"]["scale"], whole["usefulness"]["scale"]) == ("nominal", "interval")
    for name in ("alpha", "fleiss", "cohen", "ac1", "raw"):
        assert set(whole["vote"][name]) == {"value", "low", "high", "n", "level", "method"}
    assert {"criterion": "vote", "domain": None, "alpha": whole["vote"]["alpha"]["value"]} in report["below_target"]


def test_agreement_for_people(rmtrl):
    code, stdout, _ = rmtrl("annotations", "agreement", EXAMPLE, "--target", "0.5")
    assert code == 0 and "vote: not reliable" in stdout and "below the target of 0.5" in stdout
    assert "Cohen's kappa, ann and bo" in stdout


def test_rejects_are_written_with_their_reasons(rmtrl, file, tmp_path):
    path, rejects = file([*LINES, '{"item_id": ', {"prompt": "?"}]), tmp_path / "rejects.jsonl"
    code, stdout, _ = rmtrl("annotations", "agreement", path, "--rejects", rejects, "--json")
    report = json.loads(stdout)
    assert code == 0 and report["n"] == report["kept"] + report["rejected"] == 33
    assert [(row["row"], row["reason"]) for row in rows_of(rejects)] == [
        (31, "abstention"), (32, "broken_json"), (33, "unknown_form")]  # fmt: skip


def test_aggregate_scores_items(rmtrl, tmp_path):
    weights = ("--weights", "usefulness=0.4,factuality=0.6")
    code, stdout, _ = rmtrl("annotations", "aggregate", EXAMPLE, *weights, "--alpha", "0.6", "--quorum", "3", "--json")
    report = json.loads(stdout)
    assert code == 0 and report["schema"] == "rmtrl/aggregation/1" and report["counts"]["items"] == 8
    items = {item["item_id"]: item for item in report["items"]}
    best = items["geo-1-a"]
    assert best["criteria"]["factuality"] == 1 and best["criteria"]["usefulness"] == pytest.approx(11 / 12)
    assert best["final"] == pytest.approx(0.6 * (0.6 + 0.4 * 11 / 12) + 0.4) and best["rank"] == 1
    assert rmtrl("annotations", "aggregate", EXAMPLE, *weights, "--out", tmp_path / "items.jsonl")[0] == 0
    assert rows_of(tmp_path / "items.jsonl") == report["items"]


def test_aggregate_for_people(rmtrl):
    code, stdout, _ = rmtrl("annotations", "aggregate", EXAMPLE, "--quorum", "4")
    assert code == 0 and stdout.split("excluded")[1].split()[0] == "8"


def test_pairs_of_votes_can_be_read_and_validated(rmtrl, tmp_path):
    out, review = tmp_path / "pairs.jsonl", tmp_path / "review.jsonl"
    code, stdout, _ = rmtrl("annotations", "pairs", EXAMPLE, "--out", out, "--review", review, "--json")
    report = json.loads(stdout)
    assert code == 0 and (report["schema"], report["from"]) == ("rmtrl/pairs/1", "votes")
    assert (report["counts"]["n"], report["counts"]["kept"], report["counts"]["review"]) == (4, 2, 2)
    assert len(validate(read_preferences(out)).kept) == 2 and len(rows_of(review)) == 2


def test_pairs_of_ratings(rmtrl, tmp_path):
    out = tmp_path / "pairs.jsonl"
    code, stdout, _ = rmtrl(
        "annotations", "pairs", EXAMPLE, "--from", "ratings", "--score", "criterion", "--out", out, "--json"
    )
    assert code == 0 and json.loads(stdout)["counts"]["n"] == 3
    assert min(read_preferences(out)["rating_gap"]) == pytest.approx(1 / 24)  # chickpeas: ⅓ of a step on one of two


def test_texts_come_from_files_and_missing_ones_are_counted(rmtrl, file, tmp_path):
    votes = [{"prompt_id": p, "annotator": "ann", "a": "x", "b": "y", "choice": "a"} for p in ("p", "q")]
    prompts = file([{"prompt_id": p, "prompt": f"{p}?", "domain": "law", "source": "web"} for p in "pq"], "p.jsonl")
    responses = file([{"prompt_id": "p", "item_id": i, "response": f"answer {i}"} for i in "xy"], "r.jsonl")
    out = tmp_path / "out" / "pairs.jsonl"
    texts = ("--prompts", prompts, "--responses", responses)
    code, stdout, stderr = rmtrl("annotations", "pairs", file(votes), *texts, "--out", out, "--json")
    assert code == 0 and json.loads(stdout)["counts"]["missing_text"] == 1 and "1 pairs have no text" in stderr
    (row,) = rows_of(out)
    assert (row["prompt"], row["chosen"], row["domain"], row["source"]) == ("p?", "answer x", "law", "web")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("agreement", "nowhere.jsonl"), "no such file"),
        (("agreement", EXAMPLE, "--scale", "ratio"), "nominal, ordinal, interval"),
        (("agreement", EXAMPLE, "--by", "source"), "by source"),
        (("agreement", EXAMPLE, "--likert", "5"), "--likert 5"),
        (("aggregate", EXAMPLE, "--weights", "usefulness=0.3"), "sum to 0.3"),
        (("aggregate", EXAMPLE, "--weights", "usefulness"), "name=number"),
        (("pairs", EXAMPLE, "--from", "guesses"), "votes or ratings"),
        (("pairs", EXAMPLE, "--disputed", "drop"), "adjudicate, weight, slice"),
        (("pairs", EXAMPLE.with_name("pairs.jsonl")), "none of the"),
        (("pairs", EXAMPLE, "--prompts", EXAMPLE.with_name("pairs.jsonl")), "no column prompt_id"),
    ],
)
def test_what_cannot_be_used_is_one_line(rmtrl, arguments, said):
    code, stdout, stderr = rmtrl("annotations", *arguments)
    assert code == 2 and stdout == "" and said in stderr and len(stderr.splitlines()) == 1


def test_a_failed_run_leaves_the_earlier_output(rmtrl, file, tmp_path):
    out = tmp_path / "pairs.jsonl"
    assert rmtrl("annotations", "pairs", EXAMPLE, "--out", out)[0] == 0
    before = out.read_bytes()
    assert rmtrl("annotations", "pairs", file(['{"broken"']), "--out", out)[0] == 2
    assert out.read_bytes() == before and not list(tmp_path.glob(".*"))
