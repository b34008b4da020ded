"""Reading judgments: what is kept, what is left out and why."""

import csv
import gzip
import json
import math
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rmtrl.data.annotations.aggregation import aggregate
from rmtrl.data.annotations.agreement import agreement
from rmtrl.data.annotations.pairs import DISPUTED, pairs_from_ratings, pairs_from_votes
from rmtrl.data.annotations.reading import REASONS, read_annotations, with_texts
from rmtrl.data.preferences import to_normal_form
from rmtrl.errors import DataError, UsageError

EXAMPLE = Path(__file__).parents[3] / "examples" / "annotations.jsonl"
RATING = {"item_id": "i", "prompt_id": "p", "annotator": "ann", "domain": "law", "source": "s", "usefulness": 4}
VOTE = {"prompt_id": "p", "annotator": "ann", "a": "x", "b": "y", "choice": "a"}


@pytest.fixture
def read(tmp_path):
    """Reads rows (dictionaries, or lines as they are) from a file."""

    def write_and_read(*rows, name="judgments.jsonl", **options):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogatepass")
        return read_annotations([tmp_path / name], **options)

    return write_and_read


def write_as(path, rows):
    from datasets import Dataset

    if ".json" in path.name:
        path.write_text(json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows)))
    elif ".csv" in path.name:
        with (gzip.open if path.suffix == ".gz" else open)(path, "wt", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        texts = [{n: str(v) if n.startswith("response") else v for n, v in row.items()} for row in rows]
        Dataset.from_list(texts).to_parquet(path)


def reasons(annotations):
    return {reason: count for reason, count in annotations.reasons.items() if count}


def test_example_file_holds_both_kinds():
    annotations = read_annotations([EXAMPLE])
    assert (annotations.n, annotations.kept, reasons(annotations)) == (31, 30, {"abstention": 1})
    assert annotations.criteria == ("factuality", "usefulness")
    assert (len(annotations.ratings), len(annotations.votes.pair), annotations.votes.pair.nunique()) == (18, 12, 4)
    assert annotations.annotators == ("ann", "bo", "chi")
    assert annotations.domains["geo-1"] == "geography" and annotations.conflicts == 0


def test_columns_hold_what_the_lines_say(read):
    second = RATING | {"item_id": "h", "usefulness": None, "safety": 2.5, "weight": 3}
    annotations = read(RATING, second)
    ratings = annotations.ratings
    assert annotations.criteria == ("safety", "usefulness")
    np.testing.assert_array_equal(ratings[["safety", "usefulness"]], [[2.5, math.nan], [math.nan, 4]])
    assert ratings.weight.tolist() == [3, 1] and ratings.item_id.tolist() == ["h", "i"]  # sorted by item


def test_order_of_the_sides_does_not_matter(read):
    turned = VOTE | {"annotator": "bo", "a": "y", "b": "x", "choice": "b"}
    tie = VOTE | {"annotator": "chi", "a": "y", "b": "x", "choice": " TIE "}
    votes = read(VOTE, turned, tie).votes
    assert votes.pair.nunique() == 1 and votes.choice.tolist() == [0, 0, 2]
    assert votes.swapped.tolist() == [False, True, True]  # what was shown first is still known


@pytest.mark.parametrize(
    ("a", "b", "choice", "code"),
    [("C", "A", "A", 0), ("C", "A", "C", 1), ("C", "A", "a", 1), ("x", "y", "A", 0), ("x", "y", "y", 1),
     ("b", "a", "a", 1)],
)  # fmt: skip
def test_a_choice_is_a_side_or_the_id_of_an_item(read, a, b, choice, code):
    assert read(VOTE | {"a": a, "b": b, "choice": choice}).votes.choice.tolist() == [code]


def test_an_item_id_may_come_again_under_another_prompt(read):
    annotations = read(VOTE, VOTE | {"prompt_id": "q", "choice": "b"})
    assert annotations.items == (("p", "x"), ("p", "y"), ("q", "x"), ("q", "y"))
    assert annotations.votes.choice.tolist() == [0, 1]


def test_the_order_of_the_lines_does_not_matter(tmp_path):
    lines = EXAMPLE.read_text().splitlines()
    random.Random(1).shuffle(lines)
    (tmp_path / "shuffled.jsonl").write_text("\n".join(lines))
    one, other = read_annotations([EXAMPLE]), read_annotations([tmp_path / "shuffled.jsonl"])
    assert (one.items, one.annotators, one.prompts, one.responses) == (
        other.items, other.annotators, other.prompts, other.responses)  # fmt: skip
    for table in ("ratings", "votes"):
        pd.testing.assert_frame_equal(getattr(one, table), getattr(other, table))


FAULTS = [
    ('{"item_id": "i", ', "broken_json"),
    ("[1, 2]", "broken_json"),
    ("1" * 5000, "broken_json"),
    ("[" * 100_000, "broken_json"),
    ('{"item_id": "\\ud800", "prompt_id": "p", "annotator": "ann", "usefulness": 3}', "broken_json"),
    ({"prompt": "p", "chosen": "c", "rejected": "r"}, "unknown_form"),
    ({name: value for name, value in RATING.items() if name != "prompt_id"}, "missing_field"),
    (VOTE | {"choice": None}, "missing_field"),
    (VOTE | {"annotator": ""}, "missing_field"),
    (RATING | {"item_id": ["i"]}, "wrong_type"),
    (RATING | {"response": {"text": "x"}}, "wrong_type"),
    (VOTE | {"choice": "left"}, "unknown_choice"),
    (VOTE | {"choice": ["a"]}, "unknown_choice"),
    (VOTE | {"b": "x"}, "same_item"),
    (VOTE | {"weight": 0}, "bad_weight"),
    (RATING | {"weight": "heavy"}, "bad_weight"),
    (RATING | {"usefulness": "good"}, "non_numeric_score"),
    (RATING | {"usefulness": True}, "non_numeric_score"),
    (RATING | {"usefulness": math.nan}, "non_finite_score"),
    (RATING | {"usefulness": 10**400}, "non_finite_score"),
    (RATING | {"usefulness": 44}, "score_off_scale"),
    (RATING | {"usefulness": None}, "no_score"),
    (VOTE | {"choice": "abstain"}, "abstention"),
    (RATING | {"annotator": "first", "usefulness": 1}, "duplicate_judgment"),
    (VOTE | {"annotator": "first", "a": "y", "b": "x"}, "duplicate_judgment"),
]


@pytest.mark.parametrize(("row", "reason"), FAULTS, ids=[f"{k}-{reason}" for k, (_, reason) in enumerate(FAULTS)])
def test_a_faulty_line_is_counted_with_its_reason(read, row, reason):
    annotations = read(RATING | {"annotator": "first"}, VOTE | {"annotator": "first"}, row)
    assert (annotations.n, annotations.kept, reasons(annotations)) == (3, 2, {reason: 1})
    (reject,) = annotations.rejects
    assert (reject["file"], reject["row"], reject["reason"]) == ("judgments.jsonl", 3, reason) and reject["line"]


def test_every_reason_has_a_test():
    assert {reason for _, reason in FAULTS} == set(REASONS)


def test_of_a_repeated_judgment_the_first_counts(read):
    annotations = read(RATING, RATING | {"usefulness": 1})
    assert annotations.ratings.usefulness.tolist() == [4.0]


def test_criteria_may_come_on_lines_of_their_own(read):
    line = {name: value for name, value in RATING.items() if name != "usefulness"}
    annotations = read(RATING, line | {"safety": 5}, line | {"safety": 4})
    assert (annotations.kept, reasons(annotations)) == (2, {"duplicate_judgment": 1})


def test_text_columns_are_no_criteria(read):
    assert read(RATING | {"note": "well put"}).criteria == ("usefulness",)


def test_columns_about_the_judging_are_criteria_only_where_named(read):
    row = RATING | {"seconds": 77, "line": 3, "confidence": 2, "safety": 5}
    annotations = read(row)
    assert annotations.kept == 1 and annotations.criteria == ("safety", "usefulness")
    named = read(row, criteria=["confidence", "safety"])
    assert named.ratings.columns[4:].tolist() == ["confidence", "safety"] and named.ratings.safety.tolist() == [5]
    with pytest.raises(UsageError, match="no ratings of beauty.*confidence, line, safety, seconds, usefulness"):
        read(row, criteria=["beauty"])


def test_another_scale_can_be_given(read):
    assert read(RATING | {"usefulness": 90}, likert=(0, 100)).kept == 1
    with pytest.raises(UsageError, match="lower one first"):
        read(RATING, likert=(5, 1))


def test_a_line_of_another_domain_still_gives_its_texts(read):
    annotations = read(RATING, RATING | {"annotator": "bo", "domain": "art", "prompt": "Why?", "response": "one"})
    assert annotations.conflicts == 1 and annotations.domains == {"p": "law"}
    assert annotations.prompts == {"p": "Why?"} and annotations.responses == {("p", "i"): "one"}


def test_conflicting_texts_are_counted_and_the_first_counts(read):
    other = RATING | {"annotator": "bo", "response": "two", "domain": "art"}
    annotations = read(RATING | {"response": "one"}, other)
    assert annotations.conflicts == 1 and annotations.kept == 2
    assert annotations.responses == {("p", "i"): "one"} and annotations.domains == {"p": "law"}


PANDALM = {"idx": 7, "instruction": "Add.", "input": "2 2", "response1": 4, "response2": "five", "annotator1": 1,
           "annotator2": 2, "annotator3": 0}  # fmt: skip


def test_pandalm_lines_are_a_vote_an_annotator(tmp_path):
    (tmp_path / "test.json").write_text(json.dumps([PANDALM, PANDALM | {"idx": 8, "annotator2": 3}]))
    annotations = read_annotations([tmp_path / "test.json"])
    assert (annotations.n, annotations.kept, reasons(annotations)) == (6, 5, {"unknown_choice": 1})
    assert annotations.votes.choice.tolist() == [0, 1, 2, 0, 2]
    (prompt_id,) = annotations.prompts
    assert annotations.prompts[prompt_id] == "Add.\n\n2 2"
    assert annotations.responses[prompt_id, "7-1"] == "4"
    from datasets import Dataset

    pair = Dataset.from_list([{"prompt": "add.  2 2", "chosen": "4", "rejected": "5"}])
    assert prompt_id == to_normal_form(pair)[0]["prompt_id"]


@pytest.mark.parametrize("name", ["p.json", "p.jsonl", "p.csv", "p.csv.gz", "p.parquet"])
@pytest.mark.parametrize("empty", ["", " "])
def test_a_vote_on_an_empty_answer_counts(tmp_path, name, empty):
    rows = [PANDALM | {"idx": 7, "response1": empty}, PANDALM | {"idx": 8, "response1": "four", "response2": empty}]
    write_as(tmp_path / name, [row | {"input": ""} for row in rows])
    annotations = read_annotations([tmp_path / name])
    assert (annotations.n, annotations.kept) == (6, 6)
    (prompt_id,) = annotations.prompts
    assert annotations.responses[prompt_id, "7-1"] == annotations.responses[prompt_id, "8-2"] == empty
    assert agreement(annotations, n_resamples=5)[0].judgments == 6
    assert pairs_from_votes(annotations, disputed="weight").counts["missing_text"] == 0


@pytest.mark.parametrize("name", ["v.jsonl", "v.csv", "v.parquet"])
def test_a_vote_with_an_empty_answer_or_an_empty_prompt_is_a_vote(tmp_path, name):
    votes = [VOTE | {"prompt": "Why?", "response_a": "Because.", "response_b": ""}]
    write_as(tmp_path / name, [*votes, votes[0] | {"annotator": "bo"}])
    annotations = read_annotations([tmp_path / name])
    assert annotations.kept == 2 and annotations.responses == {("p", "x"): "Because.", ("p", "y"): ""}
    assert pairs_from_votes(annotations).counts["kept"] == 1
    write_as(tmp_path / "empty.jsonl", [PANDALM | {"instruction": "", "input": ""}])
    assert read_annotations([tmp_path / "empty.jsonl"]).kept == 3


def test_no_real_vote_is_lost_in_any_format(real_data, tmp_path):
    path = real_data / "pandalm" / "testset-v1-first500.json"
    rows = json.loads(path.read_text())
    assert sum(not (str(row["response1"]).strip() and str(row["response2"]).strip()) for row in rows) == 8
    for name in ("p.jsonl", "p.csv", "p.parquet"):
        write_as(tmp_path / name, [row | {n: str(row[n]) for n in ("response1", "response2")} for row in rows])
        annotations = read_annotations([tmp_path / name])
        assert annotations.kept == 1500 and pairs_from_votes(annotations).counts["n"] == 500


def test_broken_pandalm_lines_are_counted_by_annotator(read):
    without = {name: value for name, value in PANDALM.items() if name != "idx"}
    nobody = {name: value for name, value in PANDALM.items() if not name.startswith("annotator")}
    assert reasons(read(PANDALM, without, nobody)) == {"missing_field": 4}


@pytest.mark.parametrize("name", ["j.jsonl.gz", "j.json", "j.csv", "j.parquet"])
def test_other_formats_read_the_same(tmp_path, name):
    from datasets import Dataset

    rows = [RATING | {"item_id": "007"}, VOTE, VOTE | {"annotator": "bo", "choice": "tie"}]
    path = tmp_path / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows, indent=1))
    else:
        names = {name: None for row in rows for name in row}
        dataset = Dataset.from_list([names | row for row in rows])
        dataset.to_csv(path) if name.endswith(".csv") else dataset.to_parquet(path)
    annotations = read_annotations([path])
    assert (annotations.n, annotations.kept) == (3, 3)
    assert ("p", "007") in annotations.items and annotations.ratings.usefulness.tolist() == [4.0]


def test_several_files_are_one_set(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(RATING))
    (tmp_path / "b.jsonl").write_text("\n\n" + json.dumps(VOTE) + "\n")
    annotations = read_annotations([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])
    assert (len(annotations.ratings), len(annotations.votes.pair)) == (1, 1)


def test_missing_and_empty_files_raise(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_annotations([tmp_path / "none.jsonl"])
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="is empty"):
        read_annotations([tmp_path / "empty.jsonl"])
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(json.dumps(RATING).encode())[:-9])
    with pytest.raises(DataError, match="cannot be read"):
        read_annotations([tmp_path / "cut.jsonl.gz"])


def test_messages_in_judgments_keep_every_field(read):
    answers = [
        [{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"n": n}}}]}]
        for n in (1, 1.7)
    ]
    texts = {"prompt": [{"role": "user", "content": "Call f.", "name": "ann"}]}
    vote = VOTE | texts | {"response_a": answers[0], "response_b": answers[1]}
    annotations = read(vote, vote | {"annotator": "bo"})
    assert annotations.kept == 2
    (pair,) = pairs_from_votes(annotations).pairs
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == (texts["prompt"], *answers)


def test_texts_come_from_other_files(read):
    from datasets import Dataset

    annotations = read(VOTE | {"response_a": "in the line"})
    prompts = Dataset.from_list([{"prompt_id": "p", "prompt": "Why?", "domain": "law", "source": "web"}])
    responses = Dataset.from_list([{"prompt_id": "p", "item_id": i, "response": f"answer {i}"} for i in "xyz"])
    full = with_texts(annotations, prompts=prompts, responses=responses)
    assert full.prompts == {"p": "Why?"} and full.domains == {"p": "law"} and full.sources == {"p": "web"}
    assert (full.responses["p", "x"], full.responses["p", "y"]) == ("in the line", "answer y")
    with pytest.raises(DataError, match="row 1 of the responses has no response; wanted item_id, prompt_id, response"):
        with_texts(annotations, responses=prompts.rename_column("prompt", "item_id"))


CELLS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.sampled_from(["a", "b", "tie", "p"]),
    st.lists(st.integers(), max_size=2),
)  # fmt: skip
NAMES = st.sampled_from([*RATING, *VOTE, *PANDALM, "weight", "prompt", "response", "safety"])
LINES = st.one_of(
    st.text(max_size=30),
    st.dictionaries(NAMES, CELLS, max_size=9).map(json.dumps),
    st.dictionaries(NAMES, CELLS, max_size=3).map(lambda cells: json.dumps(RATING | cells)),
    st.dictionaries(NAMES, CELLS, max_size=3).map(lambda cells: json.dumps(VOTE | cells)),
    st.dictionaries(NAMES, CELLS, max_size=2).map(lambda cells: json.dumps(PANDALM | cells)),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINES, min_size=1, max_size=8))
def test_no_line_stops_the_reading_and_none_is_lost(tmp_path, lines):
    (tmp_path / "fuzz.jsonl").write_bytes("\n".join(lines).encode("utf-8", "surrogatepass") + b"\n" + b'{"a": "\xff"}')
    annotations = read_annotations([tmp_path / "fuzz.jsonl"])
    assert annotations.kept == len(annotations.ratings) + len(annotations.votes.pair)
    assert annotations.rejected == sum(annotations.reasons.values()) == annotations.n - annotations.kept
    assert annotations.n >= 1
    json.dumps([annotations.as_dict(), annotations.rejects], ensure_ascii=False).encode("utf-8")
    results = agreement(annotations, by=("domain",), n_resamples=5)
    scores = aggregate(annotations, quorum=2)
    made = [pairs_from_votes(annotations, disputed=way) for way in DISPUTED if len(annotations.votes.pair)]
    made += [pairs_from_ratings(annotations, scores)] if scores.table.final.notna().any() else []
    rows = [result.as_dict() for result in results] + scores.rows() + [row for one in made for row in one.pairs]
    json.dumps(rows, ensure_ascii=False, allow_nan=False).encode("utf-8")


def test_a_byte_order_mark_costs_no_line(tmp_path):
    (tmp_path / "marked.jsonl").write_text(json.dumps(RATING), encoding="utf-8-sig")
    assert read_annotations([tmp_path / "marked.jsonl"]).kept == 1
