import hashlib
import json
import math
import os
import sys

import pytest
from datasets import Dataset, load_from_disk

from rmtrl.data.provenance import environment, fingerprint
from rmtrl.errors import DataError
from rmtrl.io import replace_folder, write_json

ROWS = [{"id": str(i), "n": i, "chosen": [{"role": "user", "content": f"é{i}"}]} for i in range(2500)]


def folder(path, content):
    path.mkdir()
    (path / "file").write_text(content)
    return path


def test_fingerprint_is_of_the_content_alone(tmp_path):
    dataset = Dataset.from_list(ROWS)
    dataset.save_to_disk(tmp_path / "saved")
    reordered = dataset.select_columns(["n", "chosen", "id"])
    shuffled_back = dataset.select(range(2499, -1, -1)).select(range(2499, -1, -1))
    same = {fingerprint(d) for d in (dataset, load_from_disk(tmp_path / "saved"), reordered, shuffled_back)}
    assert len(same) == 1


def test_fingerprint_is_the_same_on_every_machine():
    by_hand = hashlib.sha256(b'["id","n"]' + b'["a",1],["b",null],').hexdigest()
    assert fingerprint(Dataset.from_dict({"n": [1, None], "id": ["a", "b"]})) == by_hand


@pytest.mark.parametrize("change", [ROWS[:-1], ROWS[::-1], [{**ROWS[0], "n": 7}, *ROWS[1:]]])
def test_fingerprint_sees_a_changed_row(change):
    assert fingerprint(Dataset.from_list(change)) != fingerprint(Dataset.from_list(ROWS))


def test_environment_names_versions_and_nothing_of_the_place():
    found = environment()
    assert found["python"] == sys.version.split()[0] and found["datasets"] and found["rmtrl"]
    assert os.getcwd() not in json.dumps(found)


def test_json_keeps_order_and_replaces_whole(tmp_path):
    path = tmp_path / "new" / "metrics.json"
    write_json(path, {"z": 1})
    write_json(path, {"z": 2, "a": "é"})
    assert path.read_text(encoding="utf-8") == '{\n  "z": 2,\n  "a": "é"\n}\n'
    with pytest.raises(ValueError):
        write_json(path, {"z": math.nan})
    assert json.loads(path.read_text()) == {"z": 2, "a": "é"}
    assert os.listdir(path.parent) == ["metrics.json"]


def test_folder_takes_the_place_of_the_old(tmp_path):
    final = folder(tmp_path / "final", "old")
    replace_folder(folder(tmp_path / "new", "new"), final)
    assert (final / "file").read_text() == "new" and os.listdir(tmp_path) == ["final"]
    replace_folder(folder(tmp_path / "new", "newer"), final, keep=True)
    assert (tmp_path / ".final.old" / "file").read_text() == "new" and (final / "file").read_text() == "newer"
    replace_folder(folder(tmp_path / "new", "newest"), final, keep=True)
    assert (tmp_path / ".final.old" / "file").read_text() == "newer" and (final / "file").read_text() == "newest"
    replace_folder(folder(tmp_path / "new", "first"), tmp_path / "other")
    assert (tmp_path / "other" / "file").read_text() == "first"


def test_failed_replacement_leaves_the_old(tmp_path, monkeypatch):
    final, new = folder(tmp_path / "final", "old"), folder(tmp_path / "new", "new")
    with pytest.raises(DataError, match="is not a folder"):
        replace_folder(tmp_path / "absent", final)
    rename = os.rename

    def fail_on_new(source, target):
        if source == new:
            raise OSError("no space")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_on_new)
    with pytest.raises(OSError, match="no space"):
        replace_folder(new, final)
    assert (final / "file").read_text() == "old"
