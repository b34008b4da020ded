"""PPE, Preference Proxy Evaluations: human preferences, and correctness over 32 responses a prompt.

Frick et al. 2024, https://huggingface.co/papers/2410.14872; code https://github.com/lmarena/PPE.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rmtrl.errors import DataError
from rmtrl.evaluation.benchmarks.base import Benchmark, Credit, Figure, Figures, Item, Scores, average, named
from rmtrl.evaluation.benchmarks.pairs import STRICT, StrictBest, with_distinct_ids
from rmtrl.evaluation.benchmarks.rows import (
    Placed,
    Row,
    answered,
    cell,
    file_rows,
    folder_files,
    hub_rows,
    local_rows,
    prompt_key,
    prompt_of,
    text,
)


class PPEPreference(StrictBest):
    """PPE's human preferences: accuracy on the pairs where the human named a winner."""

    name = "ppe-preference"
    rule = "the response the human preferred must score above the other; pairs that the human tied are left out"
    kind = "human preference"
    source = "lmarena-ai/PPE-Human-Preference-V1"
    expected = {"human preference": 16038}
    takes_failed = True

    def read(self, path: str | None = None) -> list[Item]:
        rows = hub_rows(self.source, split="test") if path is None else local_rows(path, "test")
        return with_distinct_ids(_preference_item(placed) for placed in rows)

    def figures(self, parts: Mapping[str, Figure]) -> Figures:
        return Figures(parts.get("human preference"), {})


def _preference_item(placed: Placed) -> Item:
    winner, prompt = text(placed, "winner"), prompt_of(placed)
    if winner not in ("model_a", "model_b") and not winner.startswith("tie"):
        raise DataError(f"{placed[0]}: winner is {winner!r}; wanted model_a, model_b or tie")
    facts = {"language": placed[1].get("language"), "correct": (1 if winner == "model_b" else 0,)}
    candidates = answered(prompt, [text(placed, "response_1"), text(placed, "response_2")])
    excluded = "tied by the human" if winner.startswith("tie") else ""
    id = str(cell(placed, "question_id"))
    return Item(id, prompt_key(prompt), "human preference", candidates, facts, excluded)


_DOMAINS = {"MMLU-Pro": 512, "MATH": 512, "GPQA": 512, "MBPP-Plus": 507, "IFEval": 512}


class PPECorrectness(Benchmark):
    """PPE's five correctness sets, from files or folders named after them.

    Overall is the mean over the domains of the accuracy on `sampled_conflict_pairs` (indices from 0; a pair that the
    set holds twice counts twice). Besides, for every domain: `auc`, the area under the ROC curve of score against
    correctness within a prompt, averaged over prompts that have both right and wrong responses; and the expected
    correctness of the highest of k random responses, its maximum over k and its value at the last k. These follow the
    paper's text: the official code of the two was not at hand.
    """

    name = "ppe-correctness"
    rule = (
        "the right response of each conflict pair must score above the wrong one; overall is the mean of the domains"
    )
    ties = STRICT
    kind = "verified correctness"
    source = "lmarena-ai/PPE-*-Best-of-K"
    expected = _DOMAINS
    takes_failed = True

    def read(self, path: str | None = None) -> list[Item]:
        if path is None:
            found = {d: hub_rows(f"lmarena-ai/PPE-{d}-Best-of-K", split="train") for d in _DOMAINS}
            return with_distinct_ids(_correctness_item(placed, d) for d, rows in found.items() for placed in rows)
        files = folder_files(Path(path).expanduser())
        pairs = [(placed, _domain_of(file)) for file in files for placed in file_rows(file)]
        return with_distinct_ids(_correctness_item(placed, domain) for placed, domain in pairs)

    def credits(self, items: Sequence[Item], scores: Scores) -> list[Credit]:
        return [credit for item, own in zip(items, scores, strict=True) for credit in _credits(item, own)]

    def figures(self, parts: Mapping[str, Figure]) -> Figures:
        sections = named({domain: parts.get(domain) for domain in _DOMAINS})
        others: dict[str, Figure] = {}
        for kind in ("auc", "best of k, max", "best of k, end"):
            own = named({f"{domain} {kind}": _other(parts, domain, kind) for domain in _DOMAINS})
            others |= own | named({kind: average(own.values())})
        return Figures(average(sections.values()), sections, others)

    def is_subset(self, part: str) -> bool:
        return part in _DOMAINS


def _credits(item: Item, scores: "NDArray[np.float64] | None") -> Iterator[Credit]:
    labels, pairs = np.array(item.facts["labels"]), item.facts["pairs"]
    missing = scores is None
    values = np.full(len(labels), math.nan) if scores is None else scores
    for right, wrong in pairs:
        yield Credit(item.subset, item.prompt_id, math.nan if missing else float(values[right] > values[wrong]))
    if labels.any() and not labels.all():
        yield Credit(f"{item.subset}/auc", item.prompt_id, math.nan if missing else auc(values, labels))
    curve = [math.nan] * len(labels) if missing else best_of_k(values, labels).tolist()
    for k, value in enumerate(curve, 1):
        yield Credit(f"{item.subset}/best of {k}", item.prompt_id, value)


def _other(parts: Mapping[str, Figure], domain: str, kind: str) -> Figure | None:
    if kind == "auc":
        return parts.get(f"{domain}/auc")
    curve = [parts[name] for k in range(1, len(parts) + 1) if (name := f"{domain}/best of {k}") in parts]
    if not curve:
        return None
    return max(curve, key=lambda point: point.value) if kind == "best of k, max" else curve[-1]


def auc(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> float:
    """Returns the share of (right, wrong) pairs in which the right one scores higher, ties one half.

    Example:

    ```python
    >>> auc(np.array([3.0, 1.0, 2.0]), np.array([True, False, True]))
    1.0
    ```
    """
    ranks = stats.rankdata(scores)
    right = int(labels.sum())
    return float((ranks[labels].sum() - right * (right + 1) / 2) / (right * (len(labels) - right)))


def best_of_k(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Returns the expected correctness of the highest of k responses drawn without repetition, for k = 1 … n, `(n,)`.

    Σ_j C(n − j, k − 1) / C(n, k) · label of the j-th highest; equal scores share the mean of their labels.

    Example:

    ```python
    >>> best_of_k(np.array([3.0, 2.0, 1.0]), np.array([True, False, False])).round(3).tolist()
    [0.333, 0.667, 1.0]
    ```
    """
    _, group = np.unique(-scores, return_inverse=True)
    means = np.bincount(group, weights=labels) / np.bincount(group)
    ordered: NDArray[np.float64] = means[np.sort(group)] @ _chances(len(scores))
    return ordered


@lru_cache(maxsize=64)
def _chances(n: int) -> NDArray[np.float64]:
    """Returns the chance that the j-th highest of n is the highest of k, `(n, n)`: rows j, columns k."""
    return np.array([[math.comb(n - j, k - 1) / math.comb(n, k) for k in range(1, n + 1)] for j in range(1, n + 1)])


def _domain_of(file: Path) -> str:
    for part in (file.name, *(parent.name for parent in file.parents[:2])):
        plain = re.sub(r"[^a-z]", "", part.lower())
        for domain in _DOMAINS:
            if re.sub(r"[^a-z]", "", domain.lower()) in plain:
                return domain
    raise DataError(f"{file} is not named after a domain of PPE; wanted one of {', '.join(_DOMAINS)} in its name")


def _correctness_item(placed: Placed, domain: str) -> Item:
    place, row = placed
    prompt, labels = prompt_of(placed), [bool(label) for label in _numbers(placed, "scores")]
    names = sorted((name for name in row if re.fullmatch(r"response_\d+", name)), key=lambda name: int(name[9:]))
    if len(names) != len(labels) or not names:
        raise DataError(f"{place} has {len(names)} responses and {len(labels)} scores; wanted one score a response")
    facts = {"labels": labels, "pairs": list(_conflicts(place, row, labels))}
    own_id, candidates = str(cell(placed, "question_id")), answered(prompt, [text(placed, n) for n in names])
    return Item(f"{domain}/{own_id}", f"{domain}/{prompt_key(prompt)}", domain, candidates, facts, own_id=own_id)


def _numbers(placed: Placed, name: str) -> list[float]:
    value = cell(placed, name)
    if not isinstance(value, list) or not all(isinstance(each, bool | int | float) for each in value):
        raise DataError(f"{placed[0]}: {name} is {str(value)[:40]!r}; wanted a list of true and false")
    return value


def _conflicts(place: str, row: Row, labels: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Yields the indices of the right and the wrong response of every conflict pair."""
    pairs = cell((place, row), "sampled_conflict_pairs")
    if not isinstance(pairs, list):
        raise DataError(f"{place}: sampled_conflict_pairs is {str(pairs)[:40]!r}; wanted a list of pairs")
    for pair in pairs:
        known = isinstance(pair, list) and all(type(i) is int and 0 <= i < len(labels) for i in pair)
        if not known or len(pair) != 2:
            raise DataError(f"{place}: the conflict pair {pair} is not two indices from 0 to {len(labels) - 1}")
        if labels[pair[0]] == labels[pair[1]]:
            raise DataError(
                f"{place}: the conflict pair {pair} is of two {'right' if labels[pair[0]] else 'wrong'} ones"
            )
        yield (pair[0], pair[1]) if labels[pair[0]] else (pair[1], pair[0])
