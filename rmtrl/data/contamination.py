"""Contamination: which prompts and answers of evaluation sets already stand in the training data.

Four kinds of overlap are counted, all on normalised text (see `clusters.py`): equal prompts, nearly equal prompts
(Jaccard), a run of n words of the prompt found in a training prompt or response, and an answer found word for word as
a training response. The word run is the check of GPT-3 (Brown et al. 2020, https://huggingface.co/papers/2005.14165,
appendix C), with n = 13.

Template is not overlap: of 20 distinct training prompts or more, shingles that more than half of them have are left
out of the Jaccard index, and word runs that touch a run more than half of them have do not count.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from tqdm.auto import tqdm

from rmtrl.data.clusters import (
    TEMPLATE_TEXTS,
    are_near,
    linked,
    normalize_text,
    prompt_text,
    shingle_sets,
    shorten_pair,
)
from rmtrl.errors import DataError, UsageError
from rmtrl.metrics import binomial_estimate
from rmtrl.types import Estimate, json_ready

KINDS = ("exact", "near", "ngram", "response")
_EXAMPLES = 3
_COLUMNS = ("id", "prompt_id", "prompt", "chosen", "rejected")


@dataclass(frozen=True)
class Overlap:
    """The evaluation prompts that one kind of check found in training.

    Args:
        count (`int`): Prompts found.
        n (`int`): Prompts that could be judged: all, or those with a text of at least `ngram` words.
        share ([`Estimate`], *optional*): count / n with its exact binomial interval; None where n is 0.
        prompt_ids (`list[str]`): The prompts found, sorted.
        examples (`list[dict[str, str]]`): A few, as `prompt_id`, `evaluation` and `train` text, cut around their
            first difference.
    """

    count: int
    n: int
    share: Estimate | None
    prompt_ids: list[str]
    examples: list[dict[str, str]]


@dataclass(frozen=True)
class Contamination:
    """The overlap of one evaluation set with the training data.

    Args:
        n (`int`): Rows of the evaluation set.
        prompts (`int`): Its distinct `prompt_id`s.
        overlaps (`dict[str, Overlap]`): By kind: `exact` (the prompt), `near` (Jaccard ≥ threshold, not exact),
            `ngram` (word run of the prompt), `response` (an answer verbatim) and `any` of them.
        rows (`list[str]`): `id` of every row whose prompt was found by any kind.
    """

    n: int
    prompts: int
    overlaps: dict[str, Overlap]
    rows: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields as a plain dictionary, ready for JSON."""
        overlaps = {kind: json_ready(overlap) for kind, overlap in self.overlaps.items()}
        return {"n": self.n, "prompts": self.prompts, **overlaps, "rows": self.rows}


@dataclass(frozen=True)
class ContaminationReport:
    """What training data and evaluation sets have in common.

    Args:
        evaluations (`dict[str, Contamination]`): By name of the evaluation set.
        n (`int`): Training rows.
        clean (`Dataset`): The training rows without those that any check found.
        skipped (`int`): Comparisons of prompts left out to bound the cost, as in `Duplicates`.
    """

    evaluations: dict[str, Contamination]
    n: int
    clean: Dataset
    skipped: int

    @property
    def found(self) -> bool:
        """Whether any prompt of any evaluation set was found in training."""
        return any(result.overlaps["any"].count for result in self.evaluations.values())


@dataclass(frozen=True)
class _Texts:
    """The normalised texts of a preference set, one entry a row, and how they are written."""

    ids: list[str]
    prompt_ids: list[str]
    prompts: list[str]
    responses: list[tuple[str, str]]
    written: dict[str, str]


@dataclass(frozen=True)
class _Matches:
    """The evaluation texts found, the training texts they were found in, and the first partner of one found."""

    asked: AbstractSet[str]
    learnt: AbstractSet[str]
    partner: Callable[[str], str]


def contamination(
    train: Dataset,
    evaluations: Mapping[str, Dataset],
    *,
    threshold: float = 0.8,
    ngram: int = 13,
    progress: bool = True,
) -> ContaminationReport:
    """Returns the overlap of each evaluation set with the training data, and the training data without it.

    The unit is the evaluation prompt, found if one of its rows is. Prompts of fewer than `ngram` words are judged by
    `exact` and `near` alone, and answers of fewer words are not judged: short ones coincide by chance.

    Args:
        train (`Dataset`): Training pairs in the normal form.
        evaluations (`Mapping[str, Dataset]`): Evaluation pairs in the normal form, by name.
        threshold (`float`): Jaccard index from which two prompts are near-duplicates, from 0.5 to 1.
        ngram (`int`): Length of the word run, in words.
        progress (`bool`): Whether to show progress on stderr.

    Raises:
        DataError: If a set lacks a column of the normal form.
        UsageError: If `threshold` is outside [0.5, 1], `ngram` is below 2 or there is no evaluation set.

    Example:

    ```python
    >>> report = contamination(train, {"test": test})
    >>> print(report.evaluations["test"].overlaps["exact"].share)
    0.025 [0.005, 0.071] (n = 120)
    ```
    """
    if ngram < 2 or not evaluations:
        raise UsageError(
            f"got ngram {ngram} and {len(evaluations)} evaluation sets; wanted 2 words and one set or more"
        )
    learnt = _read(train, "the training set")
    asked = {name: _read(dataset, name) for name, dataset in evaluations.items()}
    prompts = sorted({prompt for texts in asked.values() for prompt in texts.prompts})
    answers = {answer for texts in asked.values() for sides in texts.responses for answer in sides}
    answered = answers.intersection(side for sides in learnt.responses for side in sides)
    near, skipped = _near(prompts, learnt, threshold, progress)
    matches = {
        "exact": _verbatim(set(prompts).intersection(learnt.prompts)),
        "near": near,
        "ngram": _word_runs(prompts, learnt, ngram, progress),
        "response": _verbatim({answer for answer in answered if _long(answer, ngram)}),
    }
    results = {name: _judge(texts, matches, ngram, learnt.written) for name, texts in asked.items()}
    return ContaminationReport(results, len(train), train.select(_untouched(learnt, matches)), skipped)


def _read(dataset: Dataset, name: str) -> _Texts:
    missing = [column for column in _COLUMNS if column not in dataset.column_names]
    if missing:
        raise DataError(f"{name} lacks {', '.join(missing)}; wanted the normal form, see to_normal_form")
    texts = _Texts([], [], [], [], {})

    def plain(conversation: Any) -> str:
        text = prompt_text(conversation)
        key = normalize_text(text)
        texts.written.setdefault(key, text)
        return key

    for batch in dataset.select_columns(list(_COLUMNS)).with_format(None).iter(batch_size=1000):
        texts.ids.extend(batch["id"])
        texts.prompt_ids.extend(batch["prompt_id"])
        texts.prompts.extend(map(plain, batch["prompt"]))
        texts.responses.extend(zip(map(plain, batch["chosen"]), map(plain, batch["rejected"]), strict=True))
    return texts


# ---- what is found


def _verbatim(texts: AbstractSet[str]) -> _Matches:
    return _Matches(texts, texts, str)


def _near(prompts: Sequence[str], learnt: _Texts, threshold: float, progress: bool) -> tuple[_Matches, int]:
    """Returns the prompts that are nearly but not wholly equal, and the comparisons left out."""
    known = sorted(set(learnt.prompts))
    both = known + sorted(set(prompts).difference(known))
    row_of = {text: row for row, text in enumerate(both)}
    sets = shingle_sets(both, reference=len(known))
    sides = np.zeros((2, len(both)), bool)
    sides[0, [row_of[prompt] for prompt in prompts]] = True
    sides[1, : len(known)] = True
    labels, skipped = linked(sets, threshold, sides, progress=progress)
    found = np.bincount(labels, minlength=len(both))[labels] > 1

    def partner(prompt: str) -> str:
        others = np.array([row for row in range(len(known)) if row != row_of[prompt]], int)
        return both[others[are_near(sets, np.full(len(others), row_of[prompt]), others, threshold)][0]]

    asked, learned = ({both[row] for row in np.flatnonzero(found & side)} for side in sides)
    return _Matches(asked, learned, partner), skipped


def _word_runs(prompts: Sequence[str], learnt: _Texts, n: int, progress: bool) -> _Matches:
    wanted = {run for prompt in prompts for run in _runs(prompt, n)}
    template = _template_runs(set(learnt.prompts), wanted, n)
    first: dict[tuple[str, ...], str] = {}  # the smallest training text of each run
    found = set()
    texts = dict.fromkeys([*learnt.prompts, *(side for sides in learnt.responses for side in sides)])
    for text in tqdm(texts, desc="Searching word runs", unit="text", delay=1, disable=not progress):
        for run in wanted.intersection(_runs(text, n, template)):
            first[run] = min(text, first.get(run, text))
            found.add(text)
    hits = {prompt: [first[run] for run in _runs(prompt, n, template) if run in first] for prompt in prompts}
    partner = {prompt: min(texts) for prompt, texts in hits.items() if texts}
    return _Matches(partner.keys(), found, partner.__getitem__)


def _template_runs(texts: Collection[str], wanted: set[tuple[str, ...]], n: int) -> set[tuple[str, ...]]:
    if len(texts) < TEMPLATE_TEXTS:
        return set()
    counts = Counter(run for text in texts for run in wanted.intersection(_runs(text, n)))
    return {run for run, count in counts.items() if 2 * count > len(texts)}


def _runs(text: str, n: int, template: AbstractSet[tuple[str, ...]] = frozenset()) -> list[tuple[str, ...]]:
    """Returns the runs of n words that have no word in common with a template run."""
    words = text.split(" ")
    runs = list(zip(*(words[start:] for start in range(n)), strict=False))
    if not template:
        return runs
    touched = {near for at, run in enumerate(runs) if run in template for near in range(at - n + 1, at + n)}
    return [run for at, run in enumerate(runs) if at not in touched]


def _long(text: str, n: int) -> bool:
    return text.count(" ") + 1 >= n


# ---- counts


def _judge(texts: _Texts, matches: Mapping[str, _Matches], ngram: int, written: Mapping[str, str]) -> Contamination:
    def example(kind: str, text: str) -> list[str]:
        return shorten_pair(texts.written[text], written[matches[kind].partner(text)])

    overlaps: dict[str, Overlap] = {}
    found: dict[str, tuple[str, str]] = {}  # kind and evaluation text of each prompt
    for kind in KINDS:
        units = texts.responses if kind == "response" else [(prompt,) for prompt in texts.prompts]
        judged: set[str] = set()
        hits: dict[str, tuple[str, str]] = {}
        for prompt_id, unit in zip(texts.prompt_ids, units, strict=True):
            if kind in ("exact", "near") or any(_long(text, ngram) for text in unit):
                judged.add(prompt_id)
            for text in unit:
                # what is equal is not counted again as near
                if text in matches[kind].asked and not (kind == "near" and text in matches["exact"].asked):
                    hits.setdefault(prompt_id, (kind, text))
        overlaps[kind] = _overlap(hits, len(judged), example)
        found = hits | found  # the example of the plainest kind stays
    prompts = len(set(texts.prompt_ids))
    overlaps["any"] = _overlap(found, prompts, example)
    rows = [id for id, prompt_id in zip(texts.ids, texts.prompt_ids, strict=True) if prompt_id in found]
    return Contamination(len(texts.ids), prompts, overlaps, rows)


def _overlap(hits: Mapping[str, tuple[str, str]], n: int, example: Callable[[str, str], list[str]]) -> Overlap:
    share, ids = binomial_estimate(len(hits), n) if n else None, sorted(hits)
    shown = [(id, *example(*hits[id])) for id in ids[:_EXAMPLES]]
    examples = [{"prompt_id": id, "evaluation": asked, "train": learnt} for id, asked, learnt in shown]
    return Overlap(len(hits), n, share, ids, examples)


def _untouched(learnt: _Texts, matches: Mapping[str, _Matches]) -> list[int]:
    """Returns the training rows in whose texts nothing was found."""
    prompts = {text for kind in ("exact", "near", "ngram") for text in matches[kind].learnt}
    answers = {*matches["ngram"].learnt, *matches["response"].learnt}
    return [
        row
        for row, (prompt, sides) in enumerate(zip(learnt.prompts, learnt.responses, strict=True))
        if prompt not in prompts and not answers.intersection(sides)
    ]
