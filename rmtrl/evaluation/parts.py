"""Rows scored a window at a time into files of their own, by any number of processes, then put together.

The windows follow from the rows alone and each is scored by itself, so the whole is the same bytes whoever scores
which, and however often a run is killed.
"""

import socket
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from rmtrl.errors import DataError, ProcessError
from rmtrl.io import Row, read_object, read_sound_rows, write_json, write_rows
from rmtrl.processes import ALONE, Process, until


@dataclass(frozen=True)
class Parts:
    """A file of scored rows in the making: each window a file in `<path>.parts`, put in place whole.

    Args:
        path (`Path`): File to write, in a folder that all processes see.
        windows (`Sequence[range]`): Places of the rows that are scored together.
        score (`Callable`): Returns the rows of a window.
        key (`Mapping[str, Any]`): What decides the scores, in JSON values; windows of an earlier run count under an
            equal one.
        name, unit (`str`): What is scored, and what a row is, for the bar and for what is said on stderr.
        process ([`~rmtrl.processes.Process`]): This one of those that share the windows.

    Example:

    ```python
    >>> Parts(Path("scores.jsonl"), windows(items), score, key={"model": "…"}, name="llmbar", unit="item").write()
    ```
    """

    path: Path
    windows: Sequence[range]
    score: Callable[[range], Iterable[Mapping[str, Any]]]
    key: Mapping[str, Any]
    name: str
    unit: str
    process: Process = ALONE

    def write(self, through: Callable[[Iterator[Row]], Iterator[Row]] = iter) -> None:
        """Scores what is left and, on the first process, writes all rows in order.

        Args:
            through (`Callable`): Passes the rows on their way into the file, which stays as it was if it raises.

        Raises:
            ProcessError: If another process stops, does not see the folder, or has other rows or another model.
            DataError: If the file cannot be written.
        """
        if self.process.rank:
            self._score_left()
            return
        write_rows(self.path, through(self._rows()))
        self._clear()

    @property
    def folder(self) -> Path:
        """Where the windows are."""
        return self.path.with_name(f"{self.path.name}.parts")

    @property
    def _files(self) -> list[Path]:
        return [self.folder / f"{n}.jsonl" for n in range(len(self.windows))]

    def _rows(self) -> Iterator[Row]:
        self._score_left()
        until(lambda: all(file.is_file() for file in self._files))
        yield from (row for file in self._files for _, row in read_sound_rows(file))

    def _score_left(self) -> None:
        """Scores this process's share of the windows that are left; the first waits for the others'."""
        process, about = self.process, self.folder / "key.json"
        run, left = process.first(self._prepare)
        if not until(lambda: stored(about) == {"key": self.key, "run": run}):
            got = f"process {process.rank} on {socket.gethostname()} does not find its own model and rows in {about}"
            raise ProcessError(f"{got}; give all processes the same, and --out on a disk that all machines share")
        own, files = left[process.rank :: process.world], self._files
        size, title = sum(len(self.windows[n]) for n in own), f"Scoring {self.name}"
        with tqdm(total=size, desc=title, unit=self.unit, delay=2, disable=process.rank > 0) as bar:
            for n in own:
                write_rows(files[n], self.score(self.windows[n]))
                process.check()
                bar.update(len(self.windows[n]))
        process.gather()

    def _prepare(self) -> tuple[str, list[int]]:
        """Returns a name for this run, which it leaves beside the windows, and the windows that are to be scored."""
        about, run = self.folder / "key.json", uuid.uuid4().hex
        if self.folder.exists() and stored(about).get("key") != self.key:
            say(f"{self.name}: {again(self.folder)}")
            self._clear()
        left = [n for n, part in enumerate(self.windows) if _n_lines(self._files[n]) != len(part)]
        n_rows = sum(map(len, self.windows))
        if done := n_rows - sum(len(self.windows[n]) for n in left):
            counted = f"{done:,} of {n_rows:,} {self.unit}s"
            say(f"{self.name}: {counted} were scored by an earlier run; it goes on from there")
        write_json(about, {"key": self.key, "run": run})
        return run, left

    def _clear(self) -> None:
        for file in (*self.folder.glob("*[0-9].jsonl*"), self.folder / "key.json"):
            file.unlink(missing_ok=True)
        with suppress(OSError):  # it is not there, or holds what is not ours
            self.folder.rmdir()


def say(line: str) -> None:
    print(f"rmtrl: {line}", file=sys.stderr)


def again(folder: Path) -> str:
    return f"the scores in {folder} are of another model, rendering or data; scoring starts again"


def stored(file: Path) -> dict[str, Any]:
    """Returns what a file says of the scores beside it, nothing where it is missing or broken."""
    try:
        return read_object(file)
    except DataError:
        return {}


def _n_lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.is_file() else 0
