"""A benchmark of your own: a folder with files of rows and a `benchmark.yaml`.

```yaml
name: my-benchmark
kind: instruction following        # what decides who is right
rule: pairs                        # rows {prompt, chosen, rejected}; or best_of: {prompt, candidates, correct};
                                   # and tools, chat_template_kwargs where the prompt has them
subsets:                           # file of each subset
  short: short.jsonl
  long: long.jsonl
sections:                          # optional: weights of the subsets in each section
  all: {short: 1, long: 2}
```
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rmtrl.errors import DataError, placed
from rmtrl.evaluation.benchmarks.base import Benchmark, Item, Row, file_rows, made_item
from rmtrl.evaluation.scoring import is_number
from rmtrl.io import parsed_yaml, read_text

_RULES = {
    "pairs": "chosen must score above rejected",
    "best_of": "the best of the correct candidates must score above every other",
}
_KEYS = {"name": str, "kind": str, "rule": str, "subsets": dict, "sections": dict}


class UserBenchmark(Benchmark):
    """A benchmark from a folder of your own; overall is the mean of its sections, or of all rows without sections.

    Args:
        folder (`str` or `Path`): Folder with `benchmark.yaml`.

    Raises:
        DataError: If the file is missing, or has a key that is unknown, absent or of the wrong form.

    Example:

    ```python
    >>> UserBenchmark("examples/benchmark").name
    'kitchen'
    ```
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self.source = str(folder)
        settings = _settings(self.folder / "benchmark.yaml")
        self.name, self.kind, self.form = settings["name"], settings["kind"], settings["rule"]
        self.subsets, self.sections = settings["subsets"], settings["sections"]
        self.overall, mean = ("sections", "of the sections") if self.sections else ("rows", "over all rows")
        self.others = {"all rows": "rows"} if self.sections else {}
        self.rule = f"{_RULES[self.form]}; overall is the mean {mean}"

    def hub_rows(self) -> Iterable[Row]:
        return self.local_rows(self.folder)

    def local_rows(self, path: Path) -> Iterator[Row]:
        for subset, file in self.subsets.items():
            yield from file_rows(path / file, subset)

    def id_of(self, row: Row) -> str:
        own = row.cells.get("id")
        return super().id_of(row) if own is None else str(own)

    def repeated(self, row: Row, item: Item, times: int) -> Item:
        raise DataError(f"{row.place}: the id {item.id!r} stands twice; ids of a benchmark must differ")

    def item(self, row: Row) -> Item:
        if self.form == "pairs":
            return super().item(row)
        candidates, correct = row.texts("candidates"), row.cell("correct")
        known = isinstance(correct, list) and all(type(i) is int and 0 <= i < len(candidates) for i in correct)
        if not known or not 0 < len(set(correct)) < len(candidates):
            last = len(candidates) - 1
            raise row.wrong("correct", f"wanted indices from 0 to {last}, one at least and not all of them")
        return made_item(self.id_of(row), row.prompt(), row.of, candidates, {"correct": tuple(correct)})


def _settings(path: Path) -> dict[str, Any]:
    """Returns what `benchmark.yaml` holds, checked."""
    text = read_text(path)
    with placed(str(path)):
        found = parsed_yaml(text)
    for fault in _faults(found):
        raise DataError(f"{path}{fault}")
    return {"sections": {}, **found}


def _faults(settings: Any) -> Iterator[str]:
    """Yields what is wrong with the settings, the first fault first; what follows it takes that for mended."""
    wanted = f"wanted keys {', '.join(_KEYS)}"
    if not isinstance(settings, dict):
        yield f" is {str(settings)[:40]!r}; {wanted}"
    if absent := [key for key in _KEYS if key not in (*settings, "sections")]:
        yield f" has no {', '.join(absent)}; {wanted}"
    for key, value in settings.items():
        if key not in _KEYS:
            yield f" has the key {key!r}; wanted {', '.join(_KEYS)}"
        elif not isinstance(value, _KEYS[key]):
            yield f": {key} is {str(value)[:40]!r}; wanted a {_KEYS[key].__name__}"
    name, rule, subsets = settings["name"], settings["rule"], settings["subsets"]
    if not re.fullmatch(r"\w([\w.-]*\w)?", name):
        yield f": name is {name!r}; wanted letters and digits, dots and hyphens between them only"
    if rule not in _RULES:
        yield f": rule is {rule!r}; wanted {' or '.join(_RULES)}"
    if not subsets or not all(isinstance(text, str) for text in (*subsets, *subsets.values())):
        yield f": subsets is {subsets}; wanted a file for every subset, both as text"
    for section, weights in settings.get("sections", {}).items():
        weighed = isinstance(weights, dict) and weights and all(is_number(w) and w > 0 for w in weights.values())
        if not weighed or not isinstance(section, str) or not set(weights) <= set(subsets):
            yield f": section {section} is {weights!r}; wanted a number above 0 for each of some of {list(subsets)}"
