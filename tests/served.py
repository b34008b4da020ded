"""`rmtrl serve` in a process of its own, for what asks it."""

import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace


@contextmanager
def running(folder, *options):
    """Yields the `url` and the `process` of a server of a folder, which ends with the block."""
    command = [sys.executable, "-m", "rmtrl", "serve", "--model", str(folder), "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            found = next(
                filter(None, (re.search(r"is served at (http://\S+)", line) for line in process.stderr)), None
            )
            assert found, f"rmtrl serve ended with {process.wait()}"
            yield SimpleNamespace(url=found[1], process=process)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)
