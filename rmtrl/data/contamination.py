"""Contamination: which prompts and answers of evaluation sets already stand in the training data.

Four kinds of overlap are counted, all on normalised text (see `dedup.py`): equal prompts, nearly equal prompts
(Jaccard), a run of n words of the prompt found in a training prompt or response, and an answer found word for word as
a training response. The word run is the check of GPT-3 (Brown et al. 2020, https://huggingface.co/papers/2005.14165,
appendix C), with n = 13.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from scipy import stats
from tqdm.auto import tqdm

from rmtrl.data.dedup import prompt_text, shorten
from rmtrl.data.shingles import Shingles, near_pairs, normalize_text
from rmtrl.errors import DataError, UsageError
from rmtrl.types import Estimate

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
        examples (`list[dict[str, str]]`): A few, as `prompt_id`, `evaluation` and `train` text, cut short.
    """

    count: int
    n: int
    share: Estimate | None
    prompt_ids: list[str]
    examples: list[dict[str, str]]

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields as a plain dictionary, ready for JSON."""
        return vars(self) | {"share": None if self.share is None else self.share.as_dict()}


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
        overlaps = {kind: overlap.as_dict() for kind, overlap in self.overlaps.items()}
        return {"n": self.n, "prompts": self.prompts, **overlaps, "rows": self.rows}


@dataclass(frozen=True)
class ContaminationReport:
    """What training data and evaluation sets have in common.

    Args:
        evaluations (`dict[str, Contamination]`): By name of the evaluation set.
        n (`int`): Training rows.
        clean (`Dataset`): The training rows without those that any check found.
    """

    evaluations: dict[str, Contamination]
    n: int
    clean: Dataset

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


def contamination(
    train: Dataset,
    evaluations: Mapping[str, Dataset],
    *,
    threshold: float = 0.8,
    ngram: int = 13,
    seed: int = 0,
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
        seed (`int`): Seed of the hash functions.
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
    partners = {
        "exact": {prompt: {prompt} for prompt in set(prompts).intersection(learnt.prompts)},
        "near": _near_partners(prompts, learnt, threshold, seed, progress),
        "ngram": _ngram_partners(prompts, learnt, ngram, progress),
        "response": {
            answer: {answer}
            for answer in answers.intersection(side for sides in learnt.responses for side in sides)
            if _long(answer, ngram)
        },
    }
    results = {name: _judge(texts, partners, ngram, learnt.written) for name, texts in asked.items()}
    return ContaminationReport(results, len(train), train.select(_untouched(learnt, partners)))


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


# ---- evaluation text -> training texts it was found in


def _near_partners(
    prompts: Sequence[str], learnt: _Texts, threshold: float, seed: int, progress: bool
) -> dict[str, set[str]]:
    both = [*prompts, *sorted(set(learnt.prompts).difference(prompts))]
    known = set(learnt.prompts)
    shingles = Shingles(both, threshold, seed)
    partners = defaultdict(set)
    train_rows = np.array([row for row, text in enumerate(both) if text in known], np.int64)
    for left, right in near_pairs(shingles, np.arange(len(prompts)), train_rows, progress):
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            if a != b:
                partners[both[a]].add(both[b])
    return dict(partners)


def _ngram_partners(prompts: Sequence[str], learnt: _Texts, n: int, progress: bool) -> dict[str, set[str]]:
    asking = defaultdict(list)
    for prompt in prompts:
        for run in set(_runs(prompt, n)):
            asking[run].append(prompt)
    partners = defaultdict(set)
    texts = dict.fromkeys([*learnt.prompts, *(side for sides in learnt.responses for side in sides)])
    for text in tqdm(texts, desc="Searching word runs", unit="text", delay=1, disable=not progress):
        for run in asking.keys() & _runs(text, n):
            for prompt in asking[run]:
                partners[prompt].add(text)
    return dict(partners)


def _runs(text: str, n: int) -> Iterator[tuple[str, ...]]:
    words = text.split(" ")
    return zip(*(words[start:] for start in range(n)), strict=False)


def _long(text: str, n: int) -> bool:
    return text.count(" ") + 1 >= n


# ---- counts


def _judge(
    texts: _Texts, partners: Mapping[str, Mapping[str, set[str]]], ngram: int, written: Mapping[str, str]
) -> Contamination:
    overlaps: dict[str, Overlap] = {}
    found: dict[str, tuple[str, str]] = {}
    for kind in KINDS:
        units = texts.responses if kind == "response" else [(prompt,) for prompt in texts.prompts]
        judged: set[str] = set()
        hits: dict[str, tuple[str, str]] = {}
        for prompt_id, unit in zip(texts.prompt_ids, units, strict=True):
            if kind in ("exact", "near") or any(_long(text, ngram) for text in unit):
                judged.add(prompt_id)
            for text in unit:
                # what is equal is not counted again as near
                if text in partners[kind] and not (kind == "near" and text in partners["exact"]):
                    hits.setdefault(prompt_id, (texts.written[text], written[min(partners[kind][text])]))
        overlaps[kind] = _overlap(hits, len(judged))
        found = hits | found  # the example of the plainest kind stays
    prompts = len(set(texts.prompt_ids))
    overlaps["any"] = _overlap(found, prompts)
    rows = [id for id, prompt_id in zip(texts.ids, texts.prompt_ids, strict=True) if prompt_id in found]
    return Contamination(len(texts.ids), prompts, overlaps, rows)


def _overlap(hits: Mapping[str, tuple[str, str]], n: int) -> Overlap:
    share, ids = None, sorted(hits)
    if n:
        interval = stats.binomtest(len(hits), n).proportion_ci()
        share = Estimate(len(hits) / n, float(interval.low), float(interval.high), n, 0.95, "exact binomial")
    examples = [
        {"prompt_id": id, "evaluation": shorten(hits[id][0]), "train": shorten(hits[id][1])} for id in ids[:_EXAMPLES]
    ]
    return Overlap(len(hits), n, share, ids, examples)


def _untouched(learnt: _Texts, partners: Mapping[str, Mapping[str, set[str]]]) -> list[int]:
    """Returns the training rows in whose texts nothing was found."""
    prompts = {text for kind in ("exact", "near") for texts in partners[kind].values() for text in texts}
    anywhere = {text for texts in partners["ngram"].values() for text in texts}
    answers = anywhere | {text for texts in partners["response"].values() for text in texts}
    return [
        row
        for row, (prompt, sides) in enumerate(zip(learnt.prompts, learnt.responses, strict=True))
        if prompt not in prompts and prompt not in anywhere and not answers.intersection(sides)
    ]
