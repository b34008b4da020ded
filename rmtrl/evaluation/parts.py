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

from rmtrl.errors import ProcessError
from rmtrl.io import Row, file_sha256, read_object, read_sound_rows, write_json, write_rows
from rmtrl.processes import ALONE, Process, until


@dataclass(frozen=True)
class Parts:
    """A file of scored rows in the making: each window a file in `<path>.parts`, put in place whole.

    `<path>.key` says what they are scores of and stays with the finished file, which is not scored again.

    Args:
        path (`Path`): File to write, in a folder that all processes see.
        windows (`Sequence[range]`): Places of the rows that are scored together.
        score (`Callable`): Returns the rows of a window.
        key (`Mapping[str, Any]`): What decides the scores, in JSON values; an earlier run counts under an equal one.
        name (`str`): What is scored, for the bar and for what is said on stderr.
        process ([`~rmtrl.processes.Process`]): This one of those that share the windows.

    Example:

    ```python
    >>> Parts(Path("scores.jsonl"), windows(items), score, {"model": "…", "benchmark": "…"}, "llmbar").write()
    ```
    """

    path: Path
    windows: Sequence[range]
    score: Callable[[range], Iterable[Mapping[str, Any]]]
    key: Mapping[str, Any]
    name: str
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
            list(self._rows())
            return
        write_rows(self.path, through(self._rows()))
        write_json(self._beside("key"), {"key": self.key, "sha256": file_sha256(self.path)})
        self._clear()

    @property
    def _files(self) -> list[Path]:
        return [self._beside("parts") / f"{n}.jsonl" for n in range(len(self.windows))]

    def _beside(self, ending: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{ending}")

    def _stored(self) -> dict[str, Any]:
        return read_object(file) if (file := self._beside("key")).is_file() else {}

    def _rows(self) -> Iterator[Row]:
        """Scores this process's share of what is left; yields all rows, on the first process, when all have theirs."""
        process, files, about = self.process, self._files, self._beside("key")
        run, whole, left = process.first(self._prepare)
        if not until(lambda: self._stored().items() >= {"key": self.key, "run": run}.items()):
            got = f"process {process.rank} on {socket.gethostname()} does not find its model and rows in {about}"
            raise ProcessError(f"{got}; give all processes the same, and --out on a disk that all machines share")
        own = left[process.rank :: process.world]
        size, title = sum(len(self.windows[n]) for n in own), f"Scoring {self.name}"
        with tqdm(total=size, desc=title, unit="row", delay=2, disable=process.rank > 0) as bar:
            for n in own:
                write_rows(files[n], self.score(self.windows[n]))
                process.check()
                bar.update(len(self.windows[n]))
        process.gather()
        if process.rank == 0:
            files = [self.path] if whole else files
            until(lambda: all(file.is_file() for file in files))
            yield from (row for file in files for _, row in read_sound_rows(file))

    def _prepare(self) -> tuple[str, bool, list[int]]:
        """Returns a name for this run, left with the key, whether the file is whole, and the windows to score."""
        stored, run = self._stored(), uuid.uuid4().hex
        if stored.get("key") != self.key:
            if stored or self.path.exists():
                self._say(f"the scores in {self.path} are of another model, rendering or data; scoring starts again")
            self._clear()
            stored = {"key": self.key}
        whole = self.path.is_file() and file_sha256(self.path) == stored.get("sha256")
        counts = [_n_lines(file) for file in self._files]
        left = [] if whole else [n for n, part in enumerate(self.windows) if counts[n] != len(part)]
        n_rows = sum(map(len, self.windows))
        if done := n_rows - sum(len(self.windows[n]) for n in left):
            self._say(f"{done:,} of {n_rows:,} rows were scored by an earlier run, of the same model and data")
        write_json(self._beside("key"), stored | {"run": run})
        return run, whole, left

    def _clear(self) -> None:
        for file in self._beside("parts").glob("*[0-9].jsonl*"):
            file.unlink()
        with suppress(OSError):  # it is not there, or holds what is not ours
            self._beside("parts").rmdir()

    def _say(self, line: str) -> None:
        print(f"rmtrl: {self.name}: {line}", file=sys.stderr)


def _n_lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.is_file() else 0
