"""Every command and Python block of README.md and of the guides: read here, run by `make docs`.

A document runs as a reader would run it, from its first block to its last, at the root of a copy of the project. A
fence with more than its language, as in "```bash needs a GPU", says why its block can only be read.
"""

import ast
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "examples").rglob("README.md"))]
MOST_UNRUN, MOST_LINES_OF_README = 8, 200
SHOWN = {"", "json", "yaml", "text"}  # not run: what a command prints, what a file holds
FENCE = re.compile(r"^```(bash|python)[ \t]*([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A block of a document, the reason why it is not run, and its line."""

    language: str
    reason: str
    text: str
    line: int


def name(path):
    return "README" if path.parent == ROOT else str(path.parent.relative_to(ROOT))


def blocks(path):
    text = path.read_text()
    return [Block(*found.groups(), text[: found.start()].count("\n") + 1) for found in FENCE.finditer(text)]


def script(path, folder):
    """Returns the bash script of a document; it stops at the first line that fails."""
    lines = []
    for block in blocks(path):
        if block.reason:
            continue
        commands = block.text.replace("\\\n", " ").splitlines()
        if block.language == "python":
            file = folder / f"block_{block.line}.py"
            file.write_text(block.text)
            commands = [f"python {file}"]
        for command in commands:
            if command.strip() and not command.startswith("#"):
                # a check that fails ends with 1, as documented; a crash too, but with a traceback
                least = 1 if command.startswith("rmtrl ") else 0
                said = shlex.quote(f"line {block.line}: {command}")
                lines += [f"echo {said}", command, f"code=$?; [ $code -le {least} ] || exit $code"]
    return "\n".join(lines)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_every_block_can_be_read(path):
    for block in blocks(path):
        if block.language == "python":
            ast.parse(block.text)
        else:
            read = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True)
            assert read.returncode == 0, f"line {block.line}: {read.stderr}"


def test_commands_and_python_say_so():
    for path in DOCUMENTS:
        opened = re.findall(r"^```(\w*)", path.read_text(), re.MULTILINE)[::2]
        assert set(opened) <= SHOWN | {"bash", "python"}, path


def test_few_blocks_are_only_read():
    unrun = [(name(path), block.line, block.reason) for path in DOCUMENTS for block in blocks(path) if block.reason]
    assert len(unrun) <= MOST_UNRUN, unrun
    assert all(reason.startswith("needs ") for _, _, reason in unrun), unrun


def test_the_readme_is_short_and_leads_to_every_guide():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= MOST_LINES_OF_README
    assert [name(path) for path in DOCUMENTS[1:] if f"({name(path)}/README.md)" not in readme] == []


def test_links_lead_somewhere():
    for path in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path}: {target}"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project's files, with its virtual environment and the outputs that stand there."""
    copy = tmp_path_factory.mktemp("documents") / "rmtrl"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, text=True, capture_output=True, check=True)
    for line in listed.stdout.splitlines():
        if (ROOT / line).is_file():
            (copy / line).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / line, copy / line)
    (copy / ".venv").symlink_to(ROOT / ".venv")
    if (ROOT / "outputs").is_dir():
        shutil.copytree(ROOT / "outputs", copy / "outputs")
    return copy


@pytest.mark.documents
@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_every_block_runs(path, project, tmp_path):
    assert (project / "outputs" / "tiny" / "ppo").is_dir(), (
        "run `make docs`, which makes what the documents start from"
    )
    here = Path(sys.executable).parent
    env = os.environ | {"PATH": f"{here}:{os.environ['PATH']}", "PYTHONPATH": str(project), "HF_HUB_OFFLINE": "1"}
    with (tmp_path / "said").open("w+") as said:
        started = subprocess.Popen(
            ["bash", "-c", script(path, tmp_path)], cwd=project, env=env, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            code = started.wait(timeout=900)
        finally:
            with suppress(ProcessLookupError):  # a server that the document started
                os.killpg(started.pid, signal.SIGKILL)
        said.seek(0)
        text = said.read()
    assert code == 0 and "Traceback" not in text, text[-4000:]
