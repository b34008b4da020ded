"""The benchmarks that come along, by name."""

from pathlib import Path

from rmtrl.errors import DataError, UsageError
from rmtrl.evaluation.benchmarks.base import Benchmark
from rmtrl.evaluation.benchmarks.own_rules import OWN
from rmtrl.evaluation.benchmarks.user import UserBenchmark
from rmtrl.io import packaged

_DECLARED = packaged("rmtrl.evaluation", "benchmarks.yaml")
_PUBLIC = {name: OWN.get(name, Benchmark)(name=name, **declared) for name, declared in _DECLARED.items()}

NAMES = tuple(_PUBLIC)
"""Names that [`benchmark`] knows."""


def benchmark(name: str) -> Benchmark:
    """Returns the benchmark of that name, or the one of your own in that folder.

    Args:
        name (`str`): One of `NAMES`, or a folder with a `benchmark.yaml`.

    Raises:
        UsageError: If there is neither.
        DataError: If the folder's `benchmark.yaml` cannot be used.

    Example:

    ```python
    >>> benchmark("rm-bench").source
    'THU-KEG/RM-Bench'
    ```
    """
    if name in _PUBLIC:
        return _PUBLIC[name]
    if (Path(name).expanduser() / "benchmark.yaml").is_file():
        own = UserBenchmark(name)
        if own.name in NAMES:
            raise DataError(f"{name} is named {own.name}, which is another benchmark; give it a name of its own")
        return own
    raise UsageError(f"no benchmark {name!r}; wanted {', '.join(NAMES)}, or a folder with a benchmark.yaml")
