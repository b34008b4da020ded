"""The error tree, and the one place where an error becomes a line for people and exit code 2.

Every message says what was got, what was wanted and the mend, in one line. Errors of rmtrl are also `ValueError`s,
which is what TRL raises in the same places.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterable, Iterator


class RmtrlError(ValueError):
    """Input that rmtrl cannot use. The message is one line for the person who ran the command.

    `index` is the place in its batch of the sample that is to blame, where one is.
    """

    def __init__(self, message: str = "", *, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


class UsageError(RmtrlError):
    """A flag, a setting or a configuration file that cannot be used."""


class DataError(RmtrlError):
    """A data set that is missing, empty, unreadable or of the wrong form."""


class InvalidPairError(DataError):
    """A preference pair that failed validation where the policy is to raise."""


class SplitLeakageError(DataError):
    """A prompt that stands in two splits."""


class ModelError(RmtrlError):
    """A model or tokenizer that is missing or of the wrong kind."""


class FreshHeadError(ModelError):
    """A checkpoint without a trained score head: its scores would be random numbers."""


class RenderingError(ModelError):
    """Text that cannot be rendered, or not as the reward model saw it in training (template, tokens, length)."""


class RewardError(RmtrlError):
    """A reward that failed, or returned something that is not one finite number a completion."""


class ProcessError(RmtrlError):
    """Another process of the launch that has stopped, or does not see what this one sees."""


@contextlib.contextmanager
def placed(place: str) -> Iterator[None]:
    """Names the place of what a [`DataError`] of this block is of."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{place}: {error}") from error


def near(name: str, known: Iterable[str]) -> list[str]:
    """Returns the known names, three at most, that one which is none may stand for: spelt alike, or its end or start.

    Example:

    ```python
    >>> near("RewardTrainr", ["RewardTrainer", "Scorer"]), near("metrics", ["Scorer"])
    (['RewardTrainer'], [])
    ```
    """
    import difflib

    lower = {own.lower(): own for own in known}
    if name.lower() in lower:
        return [lower[name.lower()]]
    ends = [(low, *sorted((low, name.lower()), key=len)) for low in lower]
    parts = [lower[low] for low, short, long in ends if low[1:] and (long.startswith(short) or long.endswith(short))]
    spelt = [lower[low] for low in difflib.get_close_matches(name.lower(), lower)]
    return list(dict.fromkeys([*spelt, *parts]))[:3]


@contextlib.contextmanager
def extra(name: str, what: str) -> Iterator[None]:
    """Turns the want of a package of an extra into one line that says what to install.

    Args:
        name (`str`): Name of the extra.
        what (`str`): What needs it, to open the line.

    Example:

    ```python
    >>> with extra("remote", "a judge"):
    ...     import httpx
    ```
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "rmtrl":
            raise
        raise UsageError(f"{what} needs {error.name}; pip install 'rmtrl[{name}]'") from error


class Interrupted(BaseException):
    """The person or the system asked to stop, by a signal. No `Exception`: nothing on the way may swallow it."""


@contextlib.contextmanager
def exit_on_error(program: str, kept: str = "earlier outputs are as they were") -> Iterator[None]:
    """Turns an `RmtrlError` into one line on stderr and exit code 2; any other exception passes through.

    An interruption is one line too, of the first process, and exit code 130 (Ctrl-C) or 128 + the signal's number.

    Args:
        program (`str`): Name that opens the line, as in `rm_llama: error: …`.
        kept (`str`): What an interruption leaves, and how to go on.

    Example:

    ```python
    >>> with exit_on_error("rm_llama"):
    ...     main()
    ```
    """
    try:
        yield
    except RmtrlError as error:
        rank = int(os.environ.get("RANK", "0"))
        where = f" [rank {rank}]" if rank else ""
        print(f"{program}{where}: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    except (KeyboardInterrupt, Interrupted) as stop:
        if os.environ.get("RANK", "0") == "0":
            print(f"\n{program}: interrupted; {kept}", file=sys.stderr, flush=True)
        raise SystemExit(128 + (stop.args or (signal.SIGINT,))[0]) from None
