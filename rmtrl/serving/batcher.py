"""Requests that come within a few milliseconds are scored together, by the one thread that owns the model."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from rmtrl.errors import DataError, RmtrlError
from rmtrl.serving.model import Scored, ServedModel

logger = logging.getLogger(__name__)


class Full(RmtrlError):
    """More conversations wait than may."""


@dataclass
class _Job:
    """The conversations of one request, and where their scores go."""

    given: Sequence[Any]
    answer: Future[Scored] = field(default_factory=Future)
    encoded: list[tuple[Any, int]] = field(default_factory=list)


class Batcher:
    """
    Scores what requests bring, with a call of the scorer for all that wait.

    A first request is kept waiting for others up to `wait_seconds`, or until `token_budget` tokens have come; prompts
    that several share are then computed once. A score does not depend on what it is scored with. Where a call fails,
    each request of it is scored alone, and only that which fails alone is told.

    Args:
        served ([`ServedModel`]): The model; nothing else may use it meanwhile.
        token_budget (`int`): Tokens after which a call waits for no more requests.
        wait_seconds (`float`): Longest wait for others.
        most_waiting (`int`): Conversations that may wait, those being scored among them.
        watch (`Callable[[list[int]], None]`, *optional*): Told the tokens of the conversations of each call.

    Example:

    ```python
    >>> with Batcher(ServedModel.from_pretrained("outputs/tiny/rm")) as batcher:
    ...     batcher.submit(["Hi. Hello!"]).result().scores.shape
    (1,)
    ```
    """

    def __init__(
        self, served: ServedModel, *, token_budget: int = 8192, wait_seconds: float = 0.004, most_waiting: int = 4096,
        watch: Callable[[list[int]], None] = lambda n_tokens: None,
    ) -> None:  # fmt: skip
        self.served = served
        self.token_budget = token_budget
        self.wait_seconds = wait_seconds
        self.most_waiting = most_waiting
        self.watch = watch
        self.waiting = 0
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="rmtrl-scorer", daemon=True)

    def __enter__(self) -> "Batcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._jobs.put(None)
        self._thread.join()

    def submit(self, conversations: Sequence[Any]) -> "Future[Scored]":
        """Returns where the scores of the conversations will be; cancelled before its turn, a request costs nothing.

        Args:
            conversations: As [`ServedModel.encode`] takes them.

        Raises:
            Full: If too many wait.
            DataError: If these alone are more than may wait.
        """
        n = len(conversations)
        if n > self.most_waiting:
            raise DataError(f"got {n:,} conversations in one request; wanted at most {self.most_waiting:,}")
        with self._lock:
            if self.waiting + n > self.most_waiting:
                raise Full(f"{self.waiting:,} conversations wait, of at most {self.most_waiting:,}; come again")
            self.waiting += n
        job = _Job(conversations)
        job.answer.add_done_callback(lambda _: self._leave(n))
        self._jobs.put(job)
        return job.answer

    def _leave(self, n: int) -> None:
        with self._lock:
            self.waiting -= n

    def _work(self) -> None:
        open = True
        while open:
            jobs, open = self._gather()
            if taken := [job for job in jobs if job.answer.set_running_or_notify_cancel()]:
                self._answer(taken)

    def _gather(self) -> tuple[list[_Job], bool]:
        """Returns requests to score together, encoded, and whether more may come."""
        jobs: list[_Job] = []
        n_tokens, until = 0, float("inf")
        while n_tokens < self.token_budget:
            try:
                job = self._jobs.get(timeout=max(until - time.monotonic(), 0) if jobs else None)
            except queue.Empty:
                break
            if job is None:
                return jobs, False
            if not job.answer.cancelled() and self._encode(job):
                until = min(until, time.monotonic() + self.wait_seconds)
                jobs.append(job)
                n_tokens += sum(n for _, n in job.encoded)
        return jobs, True

    def _encode(self, job: _Job) -> bool:
        """Returns whether the conversations of a request can be scored; where not, it is told why."""
        try:
            job.encoded = self.served.encode(job.given)
        except Exception as error:
            if job.answer.set_running_or_notify_cancel():
                job.answer.set_exception(error)
            return False
        return True

    def _answer(self, jobs: list[_Job]) -> None:
        encoded = [own for job in jobs for own in job.encoded]
        try:
            scored = self.served.score(encoded)
        except Exception as error:
            if len(jobs) == 1:
                logger.exception("a request failed")
                jobs[0].answer.set_exception(error)
            for job in jobs if len(jobs) > 1 else []:
                self._answer([job])
            return
        self.watch(scored.n_tokens)
        start = 0
        for job in jobs:
            job.answer.set_result(scored.part(start, start + len(job.encoded)))
            start += len(job.encoded)
