"""`rmtrl annotations …`: JSON that stays, files that are written whole, one line for input it cannot use."""

import json
import re
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
    assert code == 0 and "vote: too few items to tell" in stdout and "below the target of 0.5" in stdout
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


def test_aggregate_shows_people_the_first_items(rmtrl, file, tmp_path):
    arguments = ("annotations", "aggregate", EXAMPLE, "--weights", "usefulness=0.6,factuality=0.4")
    code, stdout, _ = rmtrl(*arguments)
    assert code == 0 and re.search(r"^geo-1, geo-1-a +0\.970 +1 ", stdout, re.M) and "more" not in stdout
    assert "geo-1-a" not in rmtrl(*arguments, "--out", tmp_path / "items.jsonl")[1]
    rows = [{"item_id": f"i{k:02}", "prompt_id": "p", "annotator": "ann", "safety": 3} for k in range(23)]
    stdout = rmtrl("annotations", "aggregate", file(rows), "--quorum", "1")[1]
    assert "p, i19" in stdout and "p, i20" not in stdout and "3 more; see --json" in stdout


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
    code, stdout, stderr = rmtrl("annotations", "pairs", file(votes), *texts, "--min-votes", 1, "--out", out, "--json")
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
        (("aggregate", EXAMPLE, "--seed", "-1"), "seed is -1"),
        (("agreement", EXAMPLE, "--seed", "-1"), "seed is -1"),
        (("aggregate", EXAMPLE, "--tolerance", "nan"), "tolerance is nan"),
        (("agreement", EXAMPLE, "--criteria", "beauty"), "no ratings of beauty"),
        (("aggregate", EXAMPLE, "--criteria", "beauty"), "no ratings of beauty"),
        (("pairs", EXAMPLE, "--criteria", "beauty"), "no ratings of beauty"),
        (("pairs", EXAMPLE, "--from", "votes", "--weights", "usefulness=1"), "--weights is for --from ratings"),
        (("pairs", EXAMPLE, "--from", "votes", "--alpha", "0.6"), "--alpha is for --from ratings"),
        (("pairs", EXAMPLE, "--from", "votes", "--quorum", "2"), "--quorum is for --from ratings"),
        (("pairs", EXAMPLE, "--from", "votes", "--score", "final", "--min-gap", "0"), "--score, --min-gap are for"),
        (("pairs", EXAMPLE, "--from", "ratings", "--min-votes", "2"), "--min-votes is for --from votes"),
        (("pairs", EXAMPLE, "--from", "votes", "--annotator-weights", "eve=2"), "no judgments by eve"),
        (("pairs", EXAMPLE, "--from", "guesses"), "votes or ratings"),
        (("pairs", EXAMPLE, "--disputed", "drop"), "adjudicate, weight, slice"),
        (("pairs", EXAMPLE.with_name("pairs.jsonl")), "none of the"),
        (("pairs", EXAMPLE, "--prompts", EXAMPLE.with_name("pairs.jsonl")), "has no prompt_id"),
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


@pytest.mark.parametrize("command", ["agreement", "aggregate", "pairs"])
def test_an_output_is_neither_an_input_nor_another_output(rmtrl, file, tmp_path, command):
    path, spare = file(LINES), tmp_path / "spare.jsonl"
    (tmp_path / "link.jsonl").symlink_to(path)
    cases = [(f"--rejects {tmp_path / 'link.jsonl'}", "is read")]
    if command != "agreement":
        cases += [(f"--out {path}", "is read"), (f"--out {spare} --rejects {spare}", "for both --out and --rejects")]
    if command == "pairs":
        cases += [(f"--out {spare} --review {spare}", "for both --out and --review")]
        cases += [(f"--prompts {spare} --review {spare}", "is read")]
    before = path.read_bytes()
    for options, said in cases:
        code, stdout, stderr = rmtrl("annotations", command, path, *options.split())
        assert code == 2 and said in stderr and len(stderr.splitlines()) == 1
        assert path.read_bytes() == before and not spare.exists()


@pytest.mark.parametrize(
    "arguments",
    [("aggregate", "--weights", "nope=1"), ("agreement", "--scale", "ratio"), ("pairs", "--disputed", "x")],
)
def test_a_command_that_fails_writes_no_rejects(rmtrl, tmp_path, arguments):
    command, *options = arguments
    rejects = tmp_path / "rejects.jsonl"
    assert rmtrl("annotations", command, EXAMPLE, *options, "--rejects", rejects)[0] == 2
    assert not rejects.exists()


def test_pairs_without_any_result_is_an_error_that_names_the_cause(rmtrl, file, tmp_path):
    vote = {"prompt_id": "p", "a": "x", "b": "y", "choice": "a"}
    votes = [vote | {"annotator": name} for name in ("ann", "bo")]
    rating = {"prompt_id": "p", "item_id": "x", "annotator": "ann", "safety": 3}
    for rows, options, said in (
        (votes, (), "no text; give --prompts and --responses"),
        (votes[:1], (), "1 of 1 have too few votes; lower --min-votes or get more votes"),
        ([rating], (), "no prompt has two items with a score"),
        ([rating, rating | {"item_id": "y"}], ("--quorum", 2), "lower --quorum"),
    ):
        out, rejects = tmp_path / "pairs.jsonl", tmp_path / "rejects.jsonl"
        code, stdout, stderr = rmtrl(
            "annotations", "pairs", file(rows), *options, "--out", out, "--rejects", rejects
        )  # fmt: skip
        assert code == 2 and stdout == "" and said in stderr and len(stderr.splitlines()) == 1
        assert not out.exists() and not rejects.exists()


def test_pairs_say_which_form_was_used(rmtrl):
    assert "holds votes and ratings; votes are used" in rmtrl("annotations", "pairs", EXAMPLE)[2]
    assert rmtrl("annotations", "pairs", EXAMPLE, "--from", "votes")[2] == ""


def test_annotator_weights_count_for_votes(rmtrl, tmp_path):
    out = tmp_path / "pairs.jsonl"
    options = ("--disputed", "weight", "--annotator-weights", "ann=3", "--out", out)
    assert rmtrl("annotations", "pairs", EXAMPLE, "--from", "votes", *options)[0] == 0
    assert {row["weight"] for row in rows_of(out)} == {5.0}
    assert [row["preference"] for row in rows_of(out)] == pytest.approx([4 / 5, 3.5 / 5, 1, 1])


def test_named_columns_are_the_criteria(rmtrl):
    for command in ("agreement", "aggregate", "pairs"):
        stdout = rmtrl("annotations", command, EXAMPLE, "--criteria", "usefulness", "--json")[1]
        assert json.loads(stdout)["criteria"] == ["usefulness"]


def test_votes_nearly_all_on_one_side_are_noted(rmtrl, file):
    votes = [
        {"prompt_id": f"p{k}", "annotator": name, "a": "x", "b": "y", "choice": "b" if k == 0 else "a"}
        for k in range(10)
        for name in ("ann", "bo")
    ]
    said = "sides are unbalanced: 90 % of the votes are for the item whose id sorts first"
    assert said in rmtrl("annotations", "agreement", file(votes))[2]
    assert "unbalanced" not in rmtrl("annotations", "agreement", file(votes[:8]))[2]


@pytest.fixture
def cover(rmtrl, file):
    """Runs coverage on votes of fair annotators, who see sides in either order, and one who always votes for a."""

    def run(*options, texts=True):
        rows = []
        for k in range(60):
            for n, name in enumerate(("ann", "bo", "always-a")):
                a, b = ("x", "y") if (k + n) % 2 else ("y", "x")
                choice = "a" if name == "always-a" or a == "x" else "b"
                lengths = {"response_a": a * (9 if a == "x" else 5), "response_b": b * (9 if b == "x" else 5)}
                rows.append({"prompt_id": f"p{k}", "annotator": name, "a": a, "b": b, "choice": choice}
                            | (lengths if texts else {}))  # fmt: skip
        pairs = EXAMPLE.with_name("pairs.jsonl")
        return rmtrl("data", "coverage", pairs, "--annotations", file(rows), *options)

    return run


def test_coverage_names_who_votes_for_the_side_shown_first(cover):
    code, stdout, _ = cover("--json")
    report = json.loads(stdout)
    assert code == 0
    assert {
        name: [flag for flag in flags if flag in ("prefers_first", "prefers_second")]
        for name, flags in report["flagged"].items()
    } == {"always-a": ["prefers_first"], "ann": [], "bo": []}
    found = {one["annotator"]: one for one in report["annotators"]}
    assert found["ann"]["longer"]["value"] == 1 and found["always-a"]["longer"]["value"] == 0.5
    assert found["ann"]["agreement"]["value"] == 0.75  # always with bo, with the third on every other pair


def test_coverage_says_where_lengths_are_unknown(cover):
    code, stdout, stderr = cover(texts=False)
    assert code == 0 and "None" not in stdout and re.search(r"^always-a ", stdout, re.M)
    assert "lengths of the answers are unknown; give --responses" in stderr


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"source": "human"}, "has no item_id, prompt_id, response"),
        ({"item_id": "x", "prompt_id": "p0", "response": None}, "has no response"),
        ({"item_id": "x", "prompt_id": "p0", "response": []}, "wanted text"),
        ({"item_id": "x", "prompt_id": "p0", "response": {"text": "x"}}, "wanted text"),
    ],
)
def test_responses_that_cannot_be_used_are_one_line(cover, file, row, said):
    code, stdout, stderr = cover("--responses", file([row], "responses.jsonl"))
    assert code == 2 and stdout == "" and said in stderr and len(stderr.splitlines()) == 1


def test_coverage_takes_lengths_from_responses_with_numbers_for_ids(rmtrl, file):
    votes = [{"prompt_id": "7", "annotator": name, "a": "1", "b": "2", "choice": "a"} for name in ("ann", "bo")]
    texts = [{"prompt_id": 7, "item_id": 1, "response": "long"}, {"prompt_id": 7, "item_id": 2, "response": "no"}]
    arguments = ("--annotations", file(votes), "--responses", file(texts, "responses.jsonl"), "--json")
    stdout = rmtrl("data", "coverage", EXAMPLE.with_name("pairs.jsonl"), *arguments)[1]
    assert [one["longer"]["value"] for one in json.loads(stdout)["annotators"]] == [1, 1]


def test_coverage_refuses_judgments_none_of_which_can_be_used_and_counts_some(rmtrl, file):
    pairs = file([{"prompt": "p", "chosen": "yes", "rejected": "no"}], "pairs.jsonl")
    broken = file(["{not json"] * 12, "broken.jsonl")
    code, _, stderr = rmtrl("data", "coverage", pairs, "--annotations", broken)
    assert code == 2 and "none of the 12 lines of" in stderr and len(stderr.splitlines()) == 1
    mixed = file([*LINES, "{not json"], "mixed.jsonl")
    code, stdout, stderr = rmtrl("data", "coverage", pairs, "--annotations", mixed, "--json")
    judgments = json.loads(stdout)["judgments"]
    assert code == 0 and (judgments["n"], judgments["rejected"]) == (32, 2)
    assert "2 of the 32 judgments cannot be used (1 broken_json, 1 abstention)" in stderr


@pytest.fixture
def votes(file):
    """Three annotators on 100 pairs: 70 unanimous, ten on which each alone is of another mind."""

    def write(names=("ann", "bo", "cy"), name="votes.jsonl"):
        alone = [None] * 70 + [0] * 10 + [1] * 10 + [2] * 10
        rows = [
            {"prompt_id": f"p{i}", "annotator": who, "a": "x", "b": "y", "choice": "b" if one == j else "a"}
            for i, one in enumerate(alone) for j, who in enumerate(names)
        ]  # fmt: skip
        return file(rows, name)

    return write


def test_ceiling_reports_both_families_the_gap_and_the_pairs_needed(rmtrl, votes):
    asked = ("--accuracy", 0.7, "--n", 400, "--delta", 0.1, "--differ", 0.4)
    code, stdout, stderr = rmtrl("annotations", "ceiling", votes(), *asked, "--json")
    report = json.loads(stdout)
    assert code == 0 and stderr == "" and report["schema"] == "rmtrl/ceiling/1" and report["kept"] == 300
    found, other = report["ceiling"], report["other_family"]
    assert set(found["majority"]) == {"value", "low", "high", "n", "level", "method"} and found["majority"]["n"] == 100
    assert found["majority"]["value"] < other["majority"]["value"] and found["votes_a_pair"] == {"3": 100}
    assert report["accuracy"]["value"] == 0.7
    assert report["closed"]["value"] == pytest.approx(0.2 / (found["majority"]["value"] - 0.5))
    assert report["closed"]["low"] < report["closed"]["value"] < report["closed"]["high"]
    assert report["pairs_needed"] == 312  # Connor's 311.6


def test_ceiling_without_how_often_models_differ_takes_independent_ones(rmtrl, votes):
    stdout = rmtrl("annotations", "ceiling", votes(), "--accuracy", 0.7, "--n", 400, "--delta", 0.05, "--json")[1]
    report = json.loads(stdout)
    assert report["differ"] == pytest.approx(0.7 * 0.25 + 0.3 * 0.75) and report["pairs_needed"] > 1000


def test_ceiling_for_people(rmtrl, votes):
    code, stdout, _ = rmtrl("annotations", "ceiling", votes(), "--accuracy", 0.7, "--n", 400)
    assert code == 0 and re.search(
        r"^ceiling +0\.\d{3} \[.*against the majority of 3 votes, .* against one$", stdout, re.M
    )
    assert max(map(len, re.findall(r"^.*?(?=  )", stdout, re.M))) < 40
    assert "taken for granted" in stdout and "of the way from a coin to it" in stdout and "None" not in stdout


def test_one_vote_a_pair_says_no_evidence(rmtrl, votes):
    code, stdout, _ = rmtrl("annotations", "ceiling", votes(["ann"]), "--accuracy", 0.7, "--n", 400)
    assert code == 0 and "no evidence: a ceiling shows only where" in stdout and "of the way" not in stdout
    report = json.loads(rmtrl("annotations", "ceiling", votes(["ann"]), "--json")[1])
    assert report["ceiling"]["majority"] is None and report["closed"] is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--accuracy", 0.7), "wanted both, the accuracy and the pairs it is of"),
        (("--delta", 0.1), "got --delta or --differ alone"),
        (("--differ", 0.1), "got --delta or --differ alone"),
        (("--delta", 0.5, "--differ", 0.1), "got the effect 0.5 and 0.1 discordant pairs"),
        (("--delta", 0, "--differ", 0.1), "got the effect 0"),
    ],
)
def test_what_ceiling_cannot_use_is_one_line(rmtrl, votes, options, said):
    code, stdout, stderr = rmtrl("annotations", "ceiling", votes(), *options)
    assert code == 2 and stdout == "" and said in stderr and len(stderr.splitlines()) == 1


def test_ratings_have_no_ceiling(rmtrl, file):
    code, _, stderr = rmtrl("annotations", "ceiling", file([row for row in LINES if "item_id" in row]))
    assert code == 2 and "got no votes, and ratings have no ceiling" in stderr and len(stderr.splitlines()) == 1
