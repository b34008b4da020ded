"""The front door: help in the order of a project, names that were meant, doctor, recipes."""

import json
import subprocess
import sys
import urllib.error
from importlib import metadata
from pathlib import Path

import pytest

from rmtrl import __version__, cli, processes
from rmtrl.cli import setup

RECIPES = Path(__file__).parents[1] / "recipes"


def test_help_shows_every_command_in_the_panel_and_order_of_a_project(rmtrl):
    code, out, err = rmtrl("--help")
    assert (code, err) == (0, "")
    wanted = []
    for panel, commands in cli.PANELS.items():
        wanted += [panel, *(getattr(own, "__name__", None) or own.info.name for own in commands)]
    words = iter(out.replace("─", " ").replace("│", " ").split())
    assert all(word in words for word in wanted)  # in this order: each is looked for behind the one before
    assert list(cli.PANELS) == ["Data", "Train", "Judge", "Use", "Watch"]


def test_version(rmtrl):
    assert rmtrl("--version") == (0, f"rmtrl {__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("scor", "rmtrl score"), ("eval x", "rmtrl evaluate"), ("validate pairs.jsonl", "rmtrl data validate"),
        ("agreement x", "rmtrl annotations agreement"), ("train", "rmtrl recipes copy"), ("dat", "rmtrl data"),
        ("benchmark", "rmtrl evaluate"), ("red-team", "rmtrl redteam"), ("version", "rmtrl --version"),
        ("overoptimization x", "rmtrl overopt"), ("compare x --reference y", "--metric"),
        ("data valid", "rmtrl data validate"), ("score x --output y", "--out"),
        ("score --data x", "DATA without a flag"),
        ("guard x --policy y", "--rules"), ("audit x --checkpoint y", "--model"), ("audit x --jsn", "--json"),
        ("rerank x --temp 0", "--temperature"),
    ],
)  # fmt: skip
def test_a_misspelt_word_is_answered_with_the_right_one(rmtrl, words, meant):
    code, out, err = rmtrl(*words.split())
    assert (code, out) == (2, "") and err.count("\n") == 1 and err.startswith("rmtrl: error: No such ")
    assert f"; did you mean {meant}" in err and "Did you" not in err


@pytest.mark.parametrize("words", ["nosuch", "data nosuch", "score x --bogus"])
def test_a_word_that_is_like_none_is_no_riddle(rmtrl, words):
    assert "did you mean" not in rmtrl(*words.split())[2]


def test_help_imports_nothing_that_counts():
    """What its time is made of: no numpy, and typer's own libraries."""
    check = "import sys, rmtrl.cli; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    out = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True).stdout.split()
    assert not {"numpy", "pandas", "scipy", "pyarrow", "datasets", "torch", "yaml", "huggingface_hub"} & set(out)


def test_recipes_are_copied_whole_and_over_nothing(rmtrl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = rmtrl("recipes", "copy", "--json")
    found = json.loads(out)
    files = {path.relative_to(RECIPES).as_posix() for path in RECIPES.rglob("*") if path.suffix in (".py", ".yaml")}
    assert code == 0 and set(found["files"]) == files and len(files) > 25
    for name in files:
        assert (tmp_path / "recipes" / name).read_bytes() == (RECIPES / name).read_bytes()
    (tmp_path / "mine").mkdir()
    assert rmtrl("recipes", "copy", "mine")[0] == 0 and (tmp_path / "mine" / "rm_llama.py").is_file()
    (tmp_path / "mine" / "rm_llama.py").write_text("changed")
    code, out, err = rmtrl("recipes", "copy", "mine")
    assert (code, out) == (2, "") and "mine exists and is not empty; name a new folder" in err
    assert (tmp_path / "mine" / "rm_llama.py").read_text() == "changed"


def test_recipes_of_a_wheel_stand_in_the_package(rmtrl, tmp_path, monkeypatch):
    packed = tmp_path / "rmtrl" / "_recipes"
    packed.mkdir(parents=True)
    (packed / "rm_llama.py").write_text("packed")
    monkeypatch.setattr("rmtrl.__file__", str(tmp_path / "rmtrl" / "__init__.py"))
    assert rmtrl("recipes", "copy", tmp_path / "own")[0] == 0
    assert (tmp_path / "own" / "rm_llama.py").read_text() == "packed"


class Package:
    """What is known of an installed package."""

    def __init__(self, version, requires=(), extras=()):
        self.version, self.requires = version, list(requires)
        self.metadata = {"Provides-Extra": list(extras)}
        self.metadata = type("Metadata", (dict,), {"get_all": dict.get})(self.metadata)


@pytest.fixture
def installed(monkeypatch):
    """A function that says which packages are installed, and what rmtrl requires."""

    def given(requires, extras, **versions):
        known = {name: Package(version) for name, version in versions.items()}
        known["rmtrl"] = Package("0.1.0", requires, extras)
        monkeypatch.setattr(metadata, "distributions", lambda name: iter([known[name]] if name in known else []))

    return given


REQUIRES = ["trl>=1.12", "numpy>=2", 'httpx>=0.28; extra == "remote"', 'fastapi; extra == "serve"',
            'pytest; extra == "dev"', 'tomli; python_version < "3"']  # fmt: skip


def test_doctor_names_what_is_missing_and_the_line_that_brings_it(rmtrl, installed, monkeypatch):
    monkeypatch.setattr(setup, "_hub", lambda: {"offline": False, "reachable": True, "said": "answers"})
    installed(REQUIRES, ["remote", "serve", "dev"], trl="1.12.0", numpy="2.1", httpx="0.20")
    code, out, _ = rmtrl("doctor", "--json")
    found = json.loads(out)
    assert code == 0 and found["ready"] is True and found["problems"] == []
    assert found["extras_missing"] == {
        "remote": {"missing": ["httpx 0.20, wanted >=0.28"], "install": "pip install 'rmtrl[remote]'"},
        "serve": {"missing": ["fastapi"], "install": "pip install 'rmtrl[serve]'"},
    }
    assert "pip install 'rmtrl[serve]'" in rmtrl("doctor")[1]


def test_doctor_exits_with_1_where_rmtrl_cannot_run(rmtrl, installed):
    installed(REQUIRES, ["remote", "serve", "dev"], trl="1.2.0")
    code, out, _ = rmtrl("doctor", "--json")
    assert code == 1 and json.loads(out)["problems"] == ["trl 1.2.0, wanted >=1.12", "numpy"]


@pytest.mark.parametrize(("devices", "bf16"), [([], False), ([], True), (["NVIDIA H100, 80 GiB"], True)])
def test_doctor_says_what_falls_back(rmtrl, monkeypatch, devices, bf16):
    monkeypatch.setattr(processes, "machine", lambda: {"device": "cpu", "devices": devices, "bf16": bf16})
    said = json.loads(rmtrl("doctor", "--json")[1])["falls_back"]
    assert any("no accelerator" in own for own in said) is not devices
    assert any("no bf16" in own for own in said) is not bf16


def answers(code):
    def urlopen(request, timeout):
        if isinstance(code, int):
            raise urllib.error.HTTPError(request.full_url, code, "", {}, None)
        raise urllib.error.URLError(code)

    return urlopen


@pytest.mark.parametrize(("code", "reachable"), [(403, True), ("no route", False)])
def test_doctor_asks_the_hub_unless_told_not_to(monkeypatch, code, reachable):
    monkeypatch.setattr("urllib.request.urlopen", answers(code))
    assert setup._hub()["reachable"] is None  # as these tests run offline
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    found = setup._hub()
    assert found["reachable"] is reachable and (reachable or "does not answer: no route" in found["said"])


def test_the_machine_is_told_by_torch():
    found = processes.machine()
    assert set(found) == {"device", "devices", "bf16"} and isinstance(found["bf16"], bool)
    assert (found["device"] == "cpu") is (found["devices"] == [])
