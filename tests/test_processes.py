"""Processes of one launch: they know what the first finds, wait for each other, and stop where one stops."""

import os
import subprocess
import sys
import threading

import pytest
from torch.distributed import HashStore

from rmtrl import processes
from rmtrl.errors import ProcessError
from rmtrl.processes import _Launched


def together(world, act):
    """What a function returns, or raises, on each of several processes, which here are threads."""
    store, found = HashStore(), {}

    def run(rank):
        process = _Launched(store, rank, world)
        try:
            found[rank] = act(process)
        except ProcessError as error:
            found[rank] = error
        finally:
            process.over.set()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [found[rank] for rank in range(world)]


def test_all_know_what_the_first_found_and_it_waits_for_all():
    come = []

    def act(process):
        found = [process.first(lambda n=n: [process.rank, n]) for n in range(2)]
        come.append(process.rank)
        process.gather()
        return found, len(come)

    results = together(3, act)
    assert [found for found, _ in results] == [[[0, 0], [0, 1]]] * 3 and results[0][1] == 3


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_where_one_stops_the_others_stop_and_say_why(failing):
    def act(process):
        if process.rank == failing:
            process.stop(ValueError("row 3 is bad"))
            raise ProcessError("mine")
        if process.rank:
            process.first(bool)
        process.gather()
        process.first(bool)

    found = [str(error) for error in together(3, act)]
    assert found.pop(failing) == "mine" and set(found) == {f"process {failing} stopped: ValueError: row 3 is bad"}


def test_a_process_that_gives_no_sign_stops_the_others_and_one_that_works_long_does_not(monkeypatch):
    monkeypatch.setattr(processes, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(processes, "SILENT_SECONDS", 1.0)

    def works(process):
        if process.rank:
            threading.Event().wait(2.5)
        process.gather()

    def dies(process):
        if process.rank == 0:
            process.gather()

    assert together(2, works) == [None, None]
    assert "process 1 has given no sign for 1 seconds" in str(together(2, dies)[0])


def test_one_process_alone_needs_no_launcher(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with processes.all_processes() as process:
        assert (process.rank, process.world, process.first(lambda: 3)) == (0, 1, 3)
        process.gather()


def test_a_world_without_a_meeting_place_is_one_line():
    code = "from rmtrl.processes import all_processes\nwith all_processes(): pass"
    world = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | world, capture_output=True, text=True, timeout=120
    )
    assert done.stderr.splitlines()[-1].startswith("rmtrl.errors.ProcessError: the 2 processes do not meet: ")
    assert "accelerate launch" in done.stderr.splitlines()[-1]
