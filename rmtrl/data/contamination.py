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
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
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
from rmtrl.data.splits import cells
from rmtrl.errors import UsageError
from rmtrl.metrics import binomial_estimate
from rmtrl.types import Estimate, json_ready

KINDS = ("exact", "near", "ngram", "response")
_EXAMPLES = 3


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
        return dict(json_ready({"n": self.n, "prompts": self.prompts, **self.overlaps, "rows": self.rows}))


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
class _Matches:
    """The evaluation texts found, the training texts they were found in, and the first partner of one found."""

    asked: AbstractSet[str]
    learnt: AbstractSet[str]
    partner: Callable[[str], str]


def contamination(
    train: Dataset, evaluations: Mapping[str, Dataset], *, threshold: float = 0.8, ngram: int = 13
) -> ContaminationReport:
    """Returns the overlap of each evaluation set with the training data, and the training data without it.

    The unit is the evaluation prompt, found if one of its rows is. Prompts of fewer than `ngram` words are judged by
    `exact` and `near` alone, and answers of fewer words are not judged: short ones coincide by chance.

    Args:
        train (`Dataset`): Training pairs in the normal form.
        evaluations (`Mapping[str, Dataset]`): Evaluation pairs in the normal form, by name.
        threshold (`float`): Jaccard index from which two prompts are near-duplicates, from 0.5 to 1.
        ngram (`int`): Length of the word run, in words.

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
    prompts, answers = _distinct(pd.concat(asked.values()))
    learnt_prompts, learnt_answers = _distinct(learnt)
    exact = prompts & learnt_prompts
    near, skipped = _near(sorted(prompts), sorted(learnt_prompts), threshold)
    runs = _word_runs(prompts, learnt_prompts, learnt.text.unique(), ngram)
    answered = {answer for answer in answers & learnt_answers if _words(answer) >= ngram}
    matches = {
        "exact": _Matches(exact, exact, str),
        "near": replace(near, asked=near.asked - exact),  # what is equal is not counted again as near
        "ngram": runs,
        "response": _Matches(answered, answered, str),
    }
    written = learnt.drop_duplicates("text").set_index("text").written
    results = {name: _judge(texts, matches, ngram, written) for name, texts in asked.items()}
    known = {"prompt": exact | near.learnt | runs.learnt, "answer": answered | runs.learnt}
    touched = [text in known[kind] for kind, text in zip(learnt.kind, learnt.text, strict=True)]
    clean = np.setdiff1d(np.arange(len(train)), learnt.row[touched].astype(int))
    return ContaminationReport(results, len(train), train.select(clean), skipped)


def _read(dataset: Dataset, name: str) -> pd.DataFrame:
    """Returns one row a text: number and ids of its row, kind (prompt or answer), as written and normalised."""
    rows = cells(dataset, "id", "prompt_id", "prompt", "chosen", "rejected", without=f"{name} lacks")
    texts = [
        (number, id, prompt_id, "prompt" if side == 0 else "answer", prompt_text(conversation))
        for number, (id, prompt_id, *conversations) in enumerate(rows)
        for side, conversation in enumerate(conversations)
    ]
    table = pd.DataFrame(texts, columns=["row", "id", "prompt_id", "kind", "written"], dtype=object)
    return table.assign(text=pd.Series(map(normalize_text, table.written), dtype=object))


def _distinct(texts: pd.DataFrame) -> tuple[set[str], set[str]]:
    """Returns the distinct normalised prompts and answers."""
    is_prompt = texts.kind == "prompt"
    return set(texts.text[is_prompt]), set(texts.text[~is_prompt])


# ---- what is found


def _near(prompts: Sequence[str], known: Sequence[str], threshold: float) -> tuple[_Matches, int]:
    """Returns the prompts that are nearly equal to another one, and the comparisons left out."""
    both = [*known, *sorted(set(prompts).difference(known))]
    row_of = {text: row for row, text in enumerate(both)}
    sets = shingle_sets(both, reference=len(known))
    sides = np.zeros((2, len(both)), bool)
    sides[0, [row_of[prompt] for prompt in prompts]] = True
    sides[1, : len(known)] = True
    labels, skipped = linked(sets, threshold, sides)
    found = np.bincount(labels, minlength=len(both))[labels] > 1

    def partner(prompt: str) -> str:
        others = np.array([row for row in range(len(known)) if row != row_of[prompt]], int)
        return both[others[are_near(sets, np.full(len(others), row_of[prompt]), others, threshold)][0]]

    asked, learned = ({both[row] for row in np.flatnonzero(found & side)} for side in sides)
    return _Matches(asked, learned, partner), skipped


def _word_runs(prompts: Collection[str], known: Collection[str], texts: Collection[str], n: int) -> _Matches:
    """Returns the prompts with a run of words that one of the training texts has, too; template is of `known`."""
    wanted = {run for prompt in prompts for run in _runs(prompt, n)}
    counts = Counter(run for text in known for run in wanted.intersection(_runs(text, n)))
    template = {run for run, count in counts.items() if 2 * count > len(known) >= TEMPLATE_TEXTS}
    first: dict[tuple[str, ...], str] = {}  # the smallest training text of each run
    found = set()
    for text in tqdm(texts, desc="Searching word runs", unit="text", delay=1):
        for run in wanted.intersection(_runs(text, n, template)):
            first[run] = min(text, first.get(run, text))
            found.add(text)
    hits = {prompt: [first[run] for run in _runs(prompt, n, template) if run in first] for prompt in prompts}
    partner = {prompt: min(texts) for prompt, texts in hits.items() if texts}
    return _Matches(partner.keys(), found, partner.__getitem__)


def _runs(text: str, n: int, template: AbstractSet[tuple[str, ...]] = frozenset()) -> list[tuple[str, ...]]:
    """Returns the runs of n words that have no word in common with a template run."""
    words = text.split(" ")
    runs = list(zip(*(words[start:] for start in range(n)), strict=False))
    if not template:
        return runs
    touched = {near for at, run in enumerate(runs) if run in template for near in range(at - n + 1, at + n)}
    return [run for at, run in enumerate(runs) if at not in touched]


def _words(text: str) -> int:
    return text.count(" ") + 1


# ---- counts


def _judge(texts: pd.DataFrame, matches: Mapping[str, _Matches], ngram: int, written: pd.Series) -> Contamination:
    long = texts.text.map(_words) >= ngram

    def example(hit: Any) -> dict[str, str]:
        asked, learnt = shorten_pair(hit.written, written[matches[hit.by].partner(hit.text)])
        return {"prompt_id": hit.prompt_id, "evaluation": asked, "train": learnt}

    def overlap(hits: pd.DataFrame, n: int) -> Overlap:
        hits = hits.sort_values("prompt_id")
        examples = [example(hit) for hit in hits.head(_EXAMPLES).itertuples()]
        return Overlap(len(hits), n, binomial_estimate(len(hits), n) if n else None, hits.prompt_id.tolist(), examples)

    overlaps: dict[str, Overlap] = {}
    found = []
    for by in KINDS:
        own = texts[texts.kind == ("answer" if by == "response" else "prompt")]
        judged = own[long[own.index]] if by in ("ngram", "response") else own
        found.append(judged[judged.text.isin(matches[by].asked)].drop_duplicates("prompt_id").assign(by=by))
        overlaps[by] = overlap(found[-1], judged.prompt_id.nunique())
    any_found = pd.concat(found).drop_duplicates("prompt_id")  # the example of the plainest kind stays
    prompts = texts.prompt_id.nunique()
    overlaps["any"] = overlap(any_found, prompts)
    rows = texts.drop_duplicates("row")
    return Contamination(len(rows), prompts, overlaps, rows.id[rows.prompt_id.isin(any_found.prompt_id)].tolist())
