"""Fingerprints: equal for equal content, another for anything that changes a score."""

import json
from dataclasses import replace

import pytest
from peft import LoraConfig, get_peft_model

from rmtrl.evaluation.benchmarks.base import Item
from rmtrl.evaluation.fingerprints import items_fingerprint, model_fingerprint

ITEM = Item("a", "p", "all", ("x", [{"role": "user", "content": "y"}]), {"correct": (0,)})


def test_items_of_equal_content_have_equal_fingerprints():
    same = Item("a", "p", "all", ("x", [{"content": "y", "role": "user"}]), {"correct": [0]})
    assert items_fingerprint([ITEM]) == items_fingerprint([same])


@pytest.mark.parametrize(
    "change",
    [{"id": "b"}, {"prompt_id": "q"}, {"subset": "s"}, {"candidates": ("x", "z")}, {"facts": {}}, {"excluded": "tie"}],
    ids=str,
)
def test_any_change_of_an_item_changes_the_fingerprint(change):
    assert items_fingerprint([replace(ITEM, **change)]) != items_fingerprint([ITEM])


def test_the_order_of_items_counts():
    other = replace(ITEM, id="b")
    assert items_fingerprint([ITEM, other]) != items_fingerprint([other, ITEM])


def test_a_model_is_known_by_its_weights_and_tokenizer_not_by_its_place(checkpoint, tmp_path):
    before = model_fingerprint(checkpoint)
    assert before["revision"] is None and len(before["sha256"]) == 64
    (checkpoint / "rmtrl.json").write_text("{}")
    (checkpoint / "checkpoint-4").mkdir()
    (checkpoint / "checkpoint-4" / "model.safetensors").write_bytes(b"other")
    moved = checkpoint.rename(tmp_path / "moved")
    assert model_fingerprint(moved)["sha256"] == before["sha256"]


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_another_byte_is_another_model(checkpoint, name):
    before = model_fingerprint(checkpoint)["sha256"]
    data = bytearray((checkpoint / name).read_bytes())
    data[-2] ^= 1
    (checkpoint / name).write_bytes(data)
    assert model_fingerprint(checkpoint)["sha256"] != before


def test_another_head_is_another_model(checkpoint):
    seen = set()
    for head in ({}, {"weights": [1.0, 0.5]}, {"weights": [0.5, 1.0]}, {"pooling": "mean"}):
        (checkpoint / "rmtrl.json").write_text(json.dumps({"head": head, "started": "now"}))
        seen.add(model_fingerprint(checkpoint)["sha256"])
    assert len(seen) == 4


def test_an_adapter_carries_the_fingerprint_of_its_base(checkpoint, model, tmp_path):
    model.name_or_path = model.config._name_or_path = str(checkpoint)
    adapter = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS"))
    adapter.save_pretrained(tmp_path / "adapter")
    assert model_fingerprint(tmp_path / "adapter")["base"] == model_fingerprint(checkpoint)


@pytest.mark.parametrize("named", [{"base_model_name_or_path": None}, {"base_model_name_or_path": ""}, {}], ids=str)
def test_an_adapter_on_an_unnamed_base_is_known_by_its_own_files_wherever_it_is_asked(tmp_path, monkeypatch, named):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"r": 2, **named}))
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    found = model_fingerprint("adapter")
    assert len(found["sha256"]) == 64 and found["base"] == {"sha256": None, "revision": None}
    assert model_fingerprint("") == {"sha256": None, "revision": None}


def test_a_hub_id_is_known_by_its_commit(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--a--b" / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps({}))
    (tmp_path / "models--a--b" / "refs").mkdir()
    (tmp_path / "models--a--b" / "refs" / "main").write_text("c" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert model_fingerprint("a/b") == {"revision": "c" * 40, "sha256": None}
    assert model_fingerprint("a/never-loaded") == {"revision": None, "sha256": None}
