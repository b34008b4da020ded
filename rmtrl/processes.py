"""The processes of one launch that share work: what the first finds all know, and where one stops all do.

They agree through the store that `accelerate launch` and `torchrun` give them, also from several machines.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from threading import Event, Thread
from typing import Any, TypeVar

from rmtrl.errors import ProcessError

SILENT_SECONDS, BEAT_SECONDS = 180.0, 5.0
"""How long a process may give no sign of life to the others, and how often it gives one."""

T = TypeVar("T")


class Process:
    """A process and its place among those of its launch; as it stands, one that is alone and does all the work.

    Example:

    ```python
    >>> with all_processes() as process:
    ...     for row in rows[process.rank :: process.world]:
    ...         score(row)
    ...     process.gather()
    ```
    """

    rank, world = 0, 1

    def first(self, find: Callable[[], T]) -> T:
        """Returns, on every process, what the first one finds: a JSON value."""
        return find()

    def gather(self) -> None:
        """Waits, on the first process, until all have come here."""

    def check(self) -> None:
        """Raises `ProcessError` where another process has stopped; so do `first` and `gather`."""


ALONE = Process()


class _Launched(Process):
    """One of several processes, with the store of their launch."""

    def __init__(self, store: Any, rank: int, world: int) -> None:
        self._store, self.rank, self.world = store, rank, world
        self.over, self._places = Event(), count()
        self._beats: dict[int, tuple[int, float]] = {}
        store.set(f"here {rank}", "")
        store.wait([f"here {other}" for other in range(world)])
        Thread(target=self._live, daemon=True).start()

    def first(self, find: Callable[[], T]) -> T:
        place = f"place {next(self._places)}"
        if self.rank == 0:
            self._store.set(place, json.dumps(find()))
        self._wait([place])
        return json.loads(self._store.get(place))

    def gather(self) -> None:
        names = [f"place {next(self._places)} {rank}" for rank in range(self.world)]
        self._store.set(names[self.rank], "")
        if self.rank == 0:
            self._wait(names)

    def check(self) -> None:
        if self._store.check(["stopped"]):
            raise ProcessError(self._store.get("stopped").decode())
        for rank in range(self.world):
            beat, now = self._store.add(f"beats {rank}", 0), time.monotonic()
            if beat != self._beats.get(rank, (None,))[0]:
                self._beats[rank] = beat, now
            elif now - self._beats[rank][1] > SILENT_SECONDS:
                raise ProcessError(f"process {rank} has given no sign for {SILENT_SECONDS:.0f} seconds; start again")

    def stop(self, error: BaseException) -> None:
        """Tells the others that this process stops, and why; the first to say so is heard."""
        self._store.compare_set("stopped", "", f"process {self.rank} stopped: {type(error).__name__}: {error}")

    def _live(self) -> None:
        with suppress(RuntimeError):  # the store goes with the first process
            while not self.over.wait(BEAT_SECONDS):
                self._store.add(f"beats {self.rank}", 1)

    def _wait(self, names: list[str]) -> None:
        while not self._store.check(names):
            self.check()
            time.sleep(0.1)


@contextmanager
def all_processes() -> Iterator[Process]:
    """Yields this process's place among those of its launch; its device is its own from here on.

    The block ends when all have come to its end; where one raises, all others raise `ProcessError`.

    Raises:
        ProcessError: If the processes do not meet, or another one stops.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) == 1:
        yield ALONE
        return
    import torch
    from torch.distributed import DistError
    from torch.distributed.rendezvous import rendezvous

    if torch.accelerator.is_available() and (n := torch.accelerator.device_count()) > 1:
        torch.get_device_module().set_device(int(os.environ.get("LOCAL_RANK", "0")) % n)
    try:
        process = _Launched(*next(iter(rendezvous("env://"))))
    except (DistError, ValueError) as error:
        said = f"the {os.environ['WORLD_SIZE']} processes do not meet: {str(error).splitlines()[0]}"
        raise ProcessError(f"{said}; start all with accelerate launch or torchrun") from error
    try:
        yield process
        process.first(bool)
        process.gather()  # the first, which may hold the store, goes last
    except DistError as error:
        raise ProcessError("the launcher or process 0 has stopped; run it again: it goes on") from error
    except BaseException as error:
        with suppress(DistError):
            process.stop(error)
        raise
    finally:
        process.over.set()


def until(shown: Callable[[], bool], *, seconds: float = 60.0) -> bool:
    """Returns whether something shows within a time; a shared disk may show a new file late."""
    end = time.monotonic() + seconds
    while not (found := shown()) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def cpu_has_bf16() -> bool:
    """Returns whether this processor computes in bf16, not only stores it."""
    import torch

    return any(torch.cpu.get_capabilities().get(name) for name in ("amx_bf16", "avx512_bf16"))


def machine() -> dict[str, Any]:
    """Returns the accelerators that this process sees, with their memory, and whether they, or the CPU, have bf16."""
    import torch

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    bf16 = torch.cuda.is_bf16_supported() if cards else cpu_has_bf16() if found is None else False
    devices = [f"{card.name}, {card.total_memory / 2**30:.0f} GiB" for card in cards] or [str(found)] * bool(found)
    return {"device": found.type if found else "cpu", "devices": devices, "bf16": bf16}
