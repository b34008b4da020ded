"""RM-Bench: three styles of a right answer against three styles of a wrong one, in four domains.

Liu et al. 2024, https://huggingface.co/papers/2410.16184; code https://github.com/THU-KEG/RM-Bench
(`compute_accuracy` in `scripts/utils.py`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rmtrl.errors import DataError
from rmtrl.evaluation.benchmarks.base import Benchmark, Credit, Figure, Figures, Item, Scores, average, named, pooled
from rmtrl.evaluation.benchmarks.pairs import with_distinct_ids
from rmtrl.evaluation.benchmarks.rows import (
    Placed,
    answered,
    cell,
    file_rows,
    folder_files,
    hub_rows,
    prompt_key,
    prompt_of,
    texts,
)

_SUBSETS = {"chat": 129, "code": 228, "math": 529, "safety-refuse": 284, "safety-response": 157}
_DOMAINS = ("chat", "code", "math", "safety")
_LEVELS = ("hard", "normal", "easy")


class RMBench(Benchmark):
    """RM-Bench, from `total_dataset.json`, a domain's own file, or a folder of either."""

    name = "rm-bench"
    rule = (
        "of the 3 by 3 comparisons of styles, hard are those where the wrong answer has the richer style, normal the "
        "same, easy the plainer; overall is the mean over chat, code, math and safety of the mean of the three"
    )
    ties = "a tie is wrong"
    kind = "mixed"
    source = "THU-KEG/RM-Bench"
    expected = _SUBSETS

    def read(self, path: str | None = None) -> list[Item]:
        rows = hub_rows(self.source, split="train") if path is None else list(_local(Path(path).expanduser()))
        return with_distinct_ids(_item(placed) for placed in rows)

    def credits(self, items: Sequence[Item], scores: Scores) -> list[Credit]:
        found = []
        for item, own in zip(items, scores, strict=True):
            values = dict.fromkeys(_LEVELS, math.nan) if own is None else levels(own)
            found += [Credit(f"{item.subset}/{name}", item.prompt_id, value) for name, value in values.items()]
        return found

    def figures(self, parts: Mapping[str, Figure]) -> Figures:
        cells = {domain: {level: _merged(parts, domain, level) for level in _LEVELS} for domain in _DOMAINS}
        sections = named({domain: _mean_of_levels(named(own)) for domain, own in cells.items()})
        by_level = {level: average(named({d: own[level] for d, own in cells.items()}).values()) for level in _LEVELS}
        return Figures(average(sections.values()), sections, named(by_level))


def _merged(parts: Mapping[str, Figure], domain: str, level: str) -> Figure | None:
    return pooled(parts, [f"{subset}/{level}" for subset in _SUBSETS if subset.startswith(domain)])


def _mean_of_levels(own: Mapping[str, Figure]) -> Figure | None:
    mean = average(own.values())
    return None if mean is None else Figure(mean.value, own["normal"].n)  # the three levels are of the same rows


def levels(scores: NDArray[np.float64]) -> dict[str, float]:
    """Returns the share of right comparisons of each level, from the scores of three right and three wrong answers.

    With M[i, j] = 1 where right answer i scores above wrong answer j, styles ordered concise, detailed, detailed with
    markdown: hard is the mean above the diagonal, normal on it, easy below it.

    Args:
        scores (`(6,)` array): Scores of chosen, then rejected.

    Example:

    ```python
    >>> levels(np.array([1.0, 2.0, 3.0, 0.5, 1.5, 2.5]))
    {'hard': 0.0, 'normal': 1.0, 'easy': 1.0}
    ```
    """
    wins = (scores[:3, None] > scores[None, 3:]).astype(np.float64)
    return {
        "hard": float(np.triu(wins, 1).sum() / 3),
        "normal": float(np.diag(wins).mean()),
        "easy": float(np.tril(wins, -1).sum() / 3),
    }


def _local(path: Path) -> Iterator[Placed]:
    files = folder_files(path)
    total = [file for file in files if file.name.startswith("total_dataset")]
    for file in total or files:
        domain = next((name for name in _SUBSETS if file.name.startswith(name)), None)
        for place, row in file_rows(file):
            if not row.get("domain") and domain is None:
                raise DataError(f"{place} has no domain; name the file after it: {', '.join(_SUBSETS)}")
            yield place, {**row, "domain": row.get("domain") or domain}


def _item(placed: Placed) -> Item:
    domain, prompt = str(cell(placed, "domain")), prompt_of(placed)
    if domain not in _SUBSETS:
        raise DataError(f"{placed[0]}: domain is {domain!r}; wanted one of {', '.join(_SUBSETS)}")
    candidates = answered(prompt, [*texts(placed, "chosen", 3), *texts(placed, "rejected", 3)])
    own_id = str(cell(placed, "id"))
    return Item(f"{domain}/{own_id}", prompt_key(prompt), domain, candidates, own_id=own_id)
