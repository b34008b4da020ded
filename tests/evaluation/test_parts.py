"""Windows of rows scored by any number of processes: the bytes of one, after any kill, or one line."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from test_processes import together

from rmtrl.errors import ProcessError
from rmtrl.evaluation import parts
from rmtrl.evaluation.parts import Parts

ROOT = Path(__file__).parents[2]
WINDOWS = [range(start, min(start + 3, 20)) for start in range(0, 20, 3)]


class Thirds:
    """A third of each place, which JSON has to keep to the last digit; notes the windows it is asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, part):
        self.asked.append(part)
        return [{"id": place, "scores": [place / 3, None]} for place in part]


def write(path, score, process, **key):
    Parts(path, WINDOWS, score, {"model": "m"} | key, "mine", process).write()


@pytest.fixture
def whole(tmp_path):
    Parts(tmp_path / "whole.jsonl", WINDOWS, Thirds(), {}, "mine").write()
    return (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize("world", [1, 2, 3, 9])
def test_any_number_of_processes_writes_the_bytes_of_one(tmp_path, whole, world):
    scorers = [Thirds() for _ in range(world)]
    together(world, lambda process: write(tmp_path / "s.jsonl", scorers[process.rank], process))
    assert (tmp_path / "s.jsonl").read_bytes() == whole and whole.count(b"\n") == 20
    assert sorted((part for own in scorers for part in own.asked), key=WINDOWS.index) == WINDOWS
    assert max(len(own.asked) for own in scorers) == -(-len(WINDOWS) // world)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "s.jsonl", "s.jsonl.key", "whole.jsonl", "whole.jsonl.key",
    ]  # fmt: skip


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1), (3, 2)])
def test_a_run_that_stopped_goes_on_with_another_number_of_processes(tmp_path, whole, capsys, first, second):
    class Stops(Thirds):
        def __call__(self, part):
            if part.start >= 9:
                raise ProcessError("stopped")
            return super().__call__(part)

    def stop(process):
        try:
            write(tmp_path / "s.jsonl", Stops(), process)
        except ProcessError as error:
            getattr(process, "stop", print)(error)

    if first == 1:
        stop(parts.ALONE)
    else:
        together(first, stop)
    n_before = sum(map(len, WINDOWS)) - sum(
        len(WINDOWS[n]) for n in range(7) if not (tmp_path / "s.jsonl.parts" / f"{n}.jsonl").exists()
    )
    assert 0 < n_before <= 9 and not (tmp_path / "s.jsonl").exists()
    scorers = [Thirds() for _ in range(second)]
    together(second, lambda process: write(tmp_path / "s.jsonl", scorers[process.rank], process))
    assert (tmp_path / "s.jsonl").read_bytes() == whole
    assert sum(len(part) for own in scorers for part in own.asked) == 20 - n_before
    assert f"mine: {n_before} of 20 rows were scored by an earlier run" in capsys.readouterr().err


def test_a_process_with_another_folder_model_or_data_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "until", partial(parts.until, seconds=0.2))

    def another_folder(process):
        write(tmp_path / f"{process.rank}.jsonl", Thirds(), process)

    def another_model(process):
        write(tmp_path / "s.jsonl", Thirds(), process, model=process.rank)

    for act, file in ((another_folder, "1.jsonl"), (another_model, "s.jsonl")):

        def told(process, act=act):
            try:
                act(process)
            except ProcessError as error:
                process.stop(error)
                raise

        first, second = map(str, together(2, told))
        assert "does not find its model and rows in " in second and f"{file}.key;" in second
        assert (
            "--out on a disk that all machines share" in second
            and first == f"process 1 stopped: ProcessError: {second}"
        )
        assert not (tmp_path / file).exists()


def test_what_is_not_ours_stays_in_the_folder_of_the_windows(tmp_path):
    folder = tmp_path / "s.jsonl.parts"
    folder.mkdir()
    (folder / "mine.txt").touch()
    write(tmp_path / "s.jsonl", Thirds(), parts.ALONE)
    assert [file.name for file in folder.iterdir()] == ["mine.txt"]


# ---- real processes


def jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"id": f"r{n}", **row}) + "\n" for n, row in enumerate(rows)))
    return path


DRIVER = """
import os, signal, sys, time
from pathlib import Path

from rmtrl import cli, processes
from rmtrl.evaluation import scoring
from rmtrl.reward.scorer import RewardScorer

processes.SILENT_SECONDS, processes.BEAT_SECONDS, scoring._WINDOW_PAIRS = 8, 1, 10
kill, count, *sys.argv[1:] = sys.argv[1:]
out = Path(sys.argv[sys.argv.index("--out") + 1])
score, rank = RewardScorer.score, os.environ["RANK"]

def counted(self, conversations):
    if kill == rank:
        while not (out.parent / f"{out.name}.parts" / "0.jsonl").exists():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)
    with open(f"{count}{rank}", "a") as file:
        file.write(f"{len(conversations)}\\n")
    return score(self, conversations)

RewardScorer.score = counted
sys.argv[0] = "rmtrl"
cli.main()
"""


def launched(*arguments, world=2, timeout=240):
    """Exit codes and what was printed of processes that no launcher watches over, as on several machines."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(world)}
    place["WANDB_MODE"] = "online"  # transformers says on stdout that it is offline, where the driver imports it
    command = [sys.executable, "-c", DRIVER, *map(str, arguments)]
    started = [
        subprocess.Popen(
            command, env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    try:
        printed = [process.communicate(timeout=timeout) for process in started]
    finally:
        for process in started:
            process.kill()
    return [process.returncode for process in started], *zip(*printed, strict=True)


@pytest.mark.integration
def test_a_process_killed_in_the_middle_stops_the_other_and_the_next_run_goes_on(
    rmtrl, tmp_path, checkpoint, rows, monkeypatch
):  # fmt: skip
    monkeypatch.setattr("rmtrl.evaluation.scoring._WINDOW_PAIRS", 10)
    data, out, one = jsonl(tmp_path / "pairs.jsonl", rows(23)), tmp_path / "two.jsonl", tmp_path / "one.jsonl"
    command = ["score", data, "--model", checkpoint, "--json", "--out"]
    code, stdout, _ = rmtrl(*command, one)
    assert code == 0
    codes, printed, said = launched("1", tmp_path / "killed", *command, out)
    assert codes == [2, -signal.SIGKILL] and printed[0] == "" and not out.exists()
    assert said[0].splitlines()[-1].startswith("rmtrl: error: process 1 has given no sign for 8 seconds")
    shutil.copytree(tmp_path / "two.jsonl.parts", tmp_path / "alone.jsonl.parts")
    shutil.copy(tmp_path / "two.jsonl.key", tmp_path / "alone.jsonl.key")
    codes, printed, said = launched("nobody", tmp_path / "count", *command, out)
    assert codes == [0, 0], said
    assert out.read_bytes() == one.read_bytes() and json.loads(printed[0]) == json.loads(stdout) and printed[1] == ""
    assert "13 of 23 rows were scored by an earlier run" in said[0] and "rmtrl" not in said[1]
    counted = {file.name: file.read_text().split() for file in (*tmp_path.glob("killed?"), *tmp_path.glob("count?"))}
    assert counted == {"killed0": ["20", "6"], "count0": ["20"]}
    code, stdout, said = rmtrl(*command, tmp_path / "alone.jsonl")
    assert code == 0 and (tmp_path / "alone.jsonl").read_bytes() == one.read_bytes() and "13 of 23 rows" in said


LAUNCHER = """
import os, signal, sys
from torch.distributed import TCPStore

store = TCPStore("127.0.0.1", int(sys.argv[1]), 2, True, wait_for_workers=False)
store.set("here 0", "")
store.wait(["beats 1"])
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.integration
def test_the_end_of_the_process_with_the_store_is_one_line_that_says_how_to_go_on(tmp_path, checkpoint, rows):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = ["score", jsonl(tmp_path / "pairs.jsonl", rows(23)), "--model", checkpoint, "--out", tmp_path / "out"]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}
    with subprocess.Popen([sys.executable, "-c", LAUNCHER, port]):
        done = subprocess.run(
            [sys.executable, "-m", "rmtrl", *map(str, command)], env=os.environ | place, capture_output=True,
            text=True, timeout=240,
        )  # fmt: skip
    assert done.returncode == 2 and "c10d" not in done.stderr and "frame #" not in done.stderr, done.stderr
    said = "rmtrl [rank 1]: error: the launcher or process 0 has stopped; run it again: it goes on"
    assert done.stderr.splitlines()[-1] == said


def without_times(text):
    return re.sub(r'"(started|seconds)": [^\n]*', "", text)


@pytest.mark.integration
def test_accelerate_launch_evaluates_as_one_process_does(rmtrl, tmp_path, checkpoint, rows):
    benchmarks = []
    for name, n in (("seven", 7), ("many", 300)):
        jsonl(tmp_path / name / "short.jsonl", rows(n, seed=n))
        (tmp_path / name / "benchmark.yaml").write_text(
            f"name: {name}\nkind: made up\nrule: pairs\nsubsets:\n  short: short.jsonl\n"
        )
        benchmarks += ["--benchmark", str(tmp_path / name)]
    command = ["evaluate", "--model", str(checkpoint), *benchmarks, "--json", "--out"]
    code, stdout, stderr = rmtrl(*command, tmp_path / "one")
    assert code == 0, stderr
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--config_file",
              str(ROOT / "recipes" / "accelerate" / "cpu_2proc.yaml"), "-m", "rmtrl"]  # fmt: skip
    done = subprocess.run(
        [*launch, *command, str(tmp_path / "two")], env=os.environ | {"TQDM_DELAY": "0"}, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Loading weights: 100%") == 1  # bars are the first process's
    assert without_times(done.stdout) == without_times(stdout) and json.loads(done.stdout)
    written = [
        sorted(file.relative_to(tmp_path / run) for file in (tmp_path / run).rglob("*")) for run in ("one", "two")
    ]
    assert written[0] == written[1] and len(written[0]) == 9
    for file in written[0]:
        one, two = ((tmp_path / run / file) for run in ("one", "two"))
        assert one.is_dir() or without_times(one.read_text()) == without_times(two.read_text()), one
