"""A benchmark of your own: a folder with `benchmark.yaml` and files of pairs or of best-of-k rows.

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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rmtrl.errors import DataError
from rmtrl.evaluation.benchmarks.base import Figure, Figures, Item, average, named, pooled
from rmtrl.evaluation.benchmarks.pairs import STRICT, StrictBest, weighted_sections
from rmtrl.evaluation.benchmarks.rows import Placed, answered, cell, file_rows, prompt_key, prompt_of, reply, texts
from rmtrl.evaluation.scoring import SIDES
from rmtrl.types import Conversation

_RULES = {
    "pairs": "chosen must score above rejected",
    "best_of": "the best of the correct candidates must score above every other",
}
_KEYS = {"name": str, "kind": str, "rule": str, "subsets": dict, "sections": dict}


class UserBenchmark(StrictBest):
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
        self.name, self.kind, self._form = settings["name"], settings["kind"], settings["rule"]
        self.subsets: dict[str, str] = settings["subsets"]
        self.sections: dict[str, dict[str, float]] = settings["sections"]
        overall = "the mean of the sections" if self.sections else "the mean over all rows"
        self.rule = f"{_RULES[self._form]}; overall is {overall}"
        self.ties = STRICT

    def read(self, path: str | None = None) -> list[Item]:
        folder = self.folder if path is None else Path(path).expanduser()
        items, seen = [], set()
        for subset, file in self.subsets.items():
            for number, placed in enumerate(file_rows(folder / file), 1):
                item = self._item(placed, subset, f"{subset}/{number}")
                if item.id in seen:
                    raise DataError(f"{placed[0]}: the id {item.id!r} stands twice; ids of a benchmark must differ")
                seen.add(item.id)
                items.append(item)
        return items

    def _item(self, placed: Placed, subset: str, fallback_id: str) -> Item:
        prompt, own_id = prompt_of(placed), placed[1].get("id")
        candidates: Sequence[Conversation]
        id = fallback_id if own_id is None else str(own_id)
        if self._form == "pairs":
            candidates, correct = [reply(placed, side) for side in SIDES], [0]
        else:
            candidates, correct = texts(placed, "candidates"), cell(placed, "correct")
            known = isinstance(correct, list) and all(type(i) is int and 0 <= i < len(candidates) for i in correct)
            if not known or not 0 < len(set(correct)) < len(candidates):
                raise DataError(
                    f"{placed[0]}: correct is {str(correct)[:40]}; wanted indices from 0 to {len(candidates) - 1}, "
                    "one at least and not all of them"
                )
        return Item(id, prompt_key(prompt), subset, answered(prompt, candidates), {"correct": tuple(correct)})

    def figures(self, parts: Mapping[str, Figure]) -> Figures:
        rows = pooled(parts, self.subsets)
        if not self.sections:
            return Figures(rows, {})
        sections = named(weighted_sections(parts, self.sections))
        return Figures(average(sections.values()), sections, named({"all rows": rows}))


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, but a key that stands twice is an error, not the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if len(set(map(str, keys))) < len(keys):
            raise yaml.YAMLError(f"a key stands twice in {', '.join(map(str, keys))}")
        return super().construct_mapping(node, deep)


def _settings(path: Path) -> dict[str, Any]:
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} is {str(found)[:40]!r}; wanted keys {', '.join(_KEYS)}")
    settings: dict[str, Any] = {"sections": {}, **found}
    for key, value in settings.items():
        if key not in _KEYS:
            raise DataError(f"{path} has the key {key!r}; wanted {', '.join(_KEYS)}")
        if not isinstance(value, _KEYS[key]):
            raise DataError(f"{path}: {key} is {str(value)[:40]!r}; wanted a {_KEYS[key].__name__}")
    absent = [key for key in _KEYS if key not in settings]
    if absent:
        raise DataError(f"{path} has no {', '.join(absent)}; wanted keys {', '.join(_KEYS)}")
    _check(path, settings)
    return settings


def _check(path: Path, settings: Mapping[str, Any]) -> None:
    if not re.fullmatch(r"\w([\w.-]*\w)?", settings["name"]):
        raise DataError(
            f"{path}: name is {settings['name']!r}; wanted letters and digits, dots and hyphens between them only"
        )
    if settings["rule"] not in _RULES:
        raise DataError(f"{path}: rule is {settings['rule']!r}; wanted {' or '.join(_RULES)}")
    subsets = settings["subsets"]
    if not subsets or not all(isinstance(text, str) for text in (*subsets, *subsets.values())):
        raise DataError(f"{path}: subsets is {subsets}; wanted a file for every subset, both as text")
    for section, weights in settings["sections"].items():
        if not isinstance(section, str) or not isinstance(weights, dict) or not weights:
            raise DataError(f"{path}: section {section} is {weights!r}; wanted a weight for each of its subsets")
        for subset, weight in weights.items():
            if subset not in settings["subsets"]:
                raise DataError(f"{path}: section {section} has the subset {subset!r}, which has no file")
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
                raise DataError(f"{path}: the weight of {subset} in {section} is {weight!r}; wanted a number above 0")
