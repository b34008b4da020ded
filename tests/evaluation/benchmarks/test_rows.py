import pytest
from datasets import Dataset

from rmtrl.errors import DataError
from rmtrl.evaluation.benchmarks import benchmark
from rmtrl.evaluation.benchmarks.base import file_rows, folder_files

ROW = {"prompt": "p", "chosen": "c", "rejected": "r", "subset": "hep-go", "id": 7}


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.jsonl.gz", "rows.json.gz"])
def test_every_form_of_json_is_read(write, name):
    path = write(name, [ROW, {**ROW, "id": 8}])
    assert [row.cells for row in file_rows(path)] == [ROW, {**ROW, "id": 8}]
    assert [row.place for row in file_rows(path)] == [f"{path} row 1", f"{path} row 2"]


def test_parquet_and_a_folder_from_the_hub_are_read(tmp_path):
    Dataset.from_list([ROW]).to_parquet(tmp_path / "data" / "filtered-00000-of-00001.parquet")
    Dataset.from_list([ROW] * 2).to_parquet(tmp_path / "data" / "raw-00000-of-00001.parquet")
    assert len(benchmark("rewardbench").read(str(tmp_path))) == 1
    assert len(benchmark("rewardbench").read(str(tmp_path / "data" / "raw-00000-of-00001.parquet"))) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": 1}\n{"id": \n', "rows.jsonl row 2 is not JSON"),
        ('[{"id": 1}', "rows.jsonl, a list that is not JSON"),
        ('{"id": 1}\n3\n', "rows.jsonl row 2 is not a JSON object; give the benchmark's own file"),
        ("\n", "rows.jsonl is empty; give the benchmark's own file"),
    ],
)
def test_a_broken_line_is_named(tmp_path, text, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        file_rows(path)


def test_a_broken_archive_and_an_absent_file_are_named(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(b"\x1f\x8b broken")
    with pytest.raises(DataError, match="rows.jsonl.gz cannot be read"):
        file_rows(path)
    with pytest.raises(DataError, match="no such file: .*absent.json; give a benchmark as NAME=PATH"):
        file_rows(tmp_path / "absent.json")
    with pytest.raises(DataError, match="no such file or folder"):
        folder_files(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no file of a known format"):
        folder_files(tmp_path / "empty")


def test_repeated_ids_are_numbered(write):
    path = write("rows.jsonl", [{**ROW, "id": id} for id in (7, 8, 7, 7)])
    assert [item.id for item in benchmark("rewardbench").read(str(path))] == ["7", "8", "7#2", "7#3"]
