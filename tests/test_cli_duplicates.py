"""`rmtrl data dedup` and `rmtrl data contamination`: JSON that stays, files, exit codes, one line for bad input."""

import json

import pytest

ROWS = [
    {"id": "0", "prompt_id": "a", "prompt": "one two three four five", "chosen": "yes", "rejected": "no"},
    {"id": "1", "prompt_id": "b", "prompt": "one two three four five six", "chosen": "yes", "rejected": "no"},
    {"id": "2", "prompt_id": "c", "prompt": "something else", "chosen": "yes", "rejected": "no"},
]


@pytest.fixture
def write(tmp_path):
    def to_file(name, rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return to_file


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_dedup_counts_and_writes_the_representatives(rmtrl, write, tmp_path):
    data, out = write("data.jsonl", ROWS), tmp_path / "out.jsonl"
    code, stdout, _ = rmtrl("data", "dedup", data, "--out", out, "--json")
    assert code == 0
    assert json.loads(stdout) == {
        "schema": "rmtrl/dedup/1", "data": str(data), "threshold": 0.8, "n": 3, "prompts": 3, "exact": 0, "near": 1,
        "clusters": 1, "largest": 2, "kept": 2, "dropped": 1, "skipped_comparisons": 0,
        "examples": [["one two three four five", "one two three four five six"]],
        "warnings": [],
    }  # fmt: skip
    assert [(row["id"], row["cluster_id"]) for row in lines(out)] == [("0", "a"), ("2", "c")]


def test_dedup_warns_of_a_cluster_of_most_prompts(rmtrl, write):
    rows = [ROWS[0] | {"id": str(i), "prompt_id": str(i)} for i in range(12)]
    code, stdout, stderr = rmtrl("data", "dedup", write("data.jsonl", rows), "--json")
    warnings = json.loads(stdout)["warnings"]
    assert code == 0 and len(warnings) == 1 and "holds 12 of 12 prompts" in warnings[0]
    assert [line for line in stderr.splitlines() if "warning" in line] == [f"rmtrl: warning: {warnings[0]}"]


@pytest.mark.parametrize("command", ["dedup {data}", "contamination {data} {other}", "contamination {other} {data}"])
@pytest.mark.parametrize("spelt", ["{folder}/data.jsonl", "{folder}/../{name}/data.jsonl", "{folder}/link.jsonl"])
def test_no_input_is_overwritten(rmtrl, write, tmp_path, command, spelt):
    data, other = write("data.jsonl", ROWS), write("other.jsonl", ROWS[2:])
    (tmp_path / "link.jsonl").symlink_to(data)
    before = data.read_bytes()
    out = spelt.format(folder=tmp_path, name=tmp_path.name)
    code, _, stderr = rmtrl("data", *command.format(data=data, other=other).split(), "--out", out)
    assert code == 2 and "is read as input" in stderr.splitlines()[-1] and data.read_bytes() == before


def test_no_file_of_an_input_folder_is_overwritten(rmtrl, write):
    data = write("data.jsonl", ROWS)
    code, _, stderr = rmtrl("data", "dedup", data.parent, "--out", data)
    assert code == 2 and "is read as input" in stderr.splitlines()[-1]


def test_dedup_keeps_all_rows_where_asked(rmtrl, write, tmp_path):
    out = tmp_path / "out.jsonl"
    assert rmtrl("data", "dedup", write("data.jsonl", ROWS), "--out", out, "--keep", "all")[0] == 0
    assert [row["cluster_id"] for row in lines(out)] == ["a", "a", "c"]


def test_dedup_says_where_clusters_of_the_data_are_replaced(rmtrl, write, tmp_path):
    own = [row | {"cluster_id": name} for row, name in zip(ROWS, ("x", "y", None), strict=True)]
    code, stdout, stderr = rmtrl("data", "dedup", write("data.jsonl", own), "--out", tmp_path / "out.jsonl", "--json")
    said = "cluster_id of the data is replaced by the clusters found here (2 rows had another)"
    assert code == 0 and json.loads(stdout)["warnings"] == [said] and said in stderr
    assert [row["cluster_id"] for row in lines(tmp_path / "out.jsonl")] == ["a", "c"]
    assert rmtrl("data", "dedup", tmp_path / "out.jsonl")[2].count("warning") == 0  # found again


def test_dedup_prints_a_table_for_people(rmtrl, write):
    code, stdout, _ = rmtrl("data", "dedup", write("data.jsonl", ROWS), "--threshold", "0.9")
    assert code == 0 and "near-duplicates" in stdout


def test_contamination_reports_every_set(rmtrl, write, tmp_path):
    train, out = write("train.jsonl", ROWS[:1] + ROWS[2:]), tmp_path / "clean.jsonl"
    near, apart = write("near.jsonl", ROWS[1:2]), write("apart.jsonl", [ROWS[0] | {"prompt": "wholly new words"}])
    code, stdout, _ = rmtrl("data", "contamination", train, near, apart, "--out", out, "--json")
    report = json.loads(stdout)
    assert code == 0 and report["schema"] == "rmtrl/contamination/1"
    assert (report["n"], report["kept"], report["dropped"], report["found"]) == (2, 1, 1, True)
    assert report["skipped_comparisons"] == 0
    assert [(each["data"], each["near"]["count"], each["any"]["count"]) for each in report["evaluations"]] == [
        (str(near), 1, 1), (str(apart), 0, 0),
    ]  # fmt: skip
    assert report["evaluations"][0]["rows"] == ["1"] and report["evaluations"][0]["near"]["share"]["n"] == 1
    assert [row["id"] for row in lines(out)] == ["2"]


def test_strict_exits_with_1_where_something_is_found(rmtrl, write):
    train, near = write("train.jsonl", ROWS[:1]), write("near.jsonl", ROWS[1:2])
    apart = write("apart.jsonl", ROWS[2:])
    code, stdout, _ = rmtrl("data", "contamination", train, near, "--strict")
    assert code == 1 and "one two three four five six" in stdout
    assert rmtrl("data", "contamination", train, near)[0] == 0
    assert rmtrl("data", "contamination", train, apart, "--strict")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["dedup", "none.jsonl"], "no such file"),
        (["dedup", "{data}", "--threshold", "0.3"], "from 0.5 to 1"),
        (["dedup", "{data}", "--keep", "some"], "representatives or all"),
        (["dedup", "{data}", "--out", "{data}/out.jsonl"], "cannot write"),
        (["contamination", "{data}", "none.jsonl"], "no such file"),
        (["contamination", "{data}", "{data}", "{data}"], "twice"),
        (["contamination", "{data}", "{data}", "--ngram", "1"], "got ngram 1"),
        (["contamination", "{data}", "{data}", "--threshold", "2"], "from 0.5 to 1"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_exit_code_2(rmtrl, write, arguments, says):
    data = write("data.jsonl", ROWS)
    code, _, stderr = rmtrl("data", *[argument.format(data=data) for argument in arguments])
    last = stderr.strip().splitlines()[-1]
    assert code == 2 and last.startswith("rmtrl: error: ") and says in last and "Traceback" not in stderr
