"""Items of a benchmark scored with any scorer, window by window, and their scores in files.

A conversation is scored whole or not at all: an item with a candidate that the scorer does not hold is missing. A file
has one line an item, candidates in the benchmark's order, null where an item was not scored:
`{"id": …, "scores": […]}`. A run that is killed goes on where it stopped.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from rmtrl.data.layouts import ASSISTANT, HUMAN
from rmtrl.data.messages import message_text
from rmtrl.errors import DataError, UsageError
from rmtrl.evaluation.benchmarks.base import Item, Scores
from rmtrl.evaluation.parts import Parts
from rmtrl.evaluation.scoring import is_number, score_whole, unrendered
from rmtrl.io import read_sound_rows
from rmtrl.processes import ALONE, Process
from rmtrl.types import Conversation, Scorer

if TYPE_CHECKING:
    from rmtrl.reward.scorer import ModelScorer

WINDOW_CONVERSATIONS = 500
"""Scored at a time: enough to find rows of like length, little to lose when a run is killed."""

ItemScores = NDArray[np.float64] | None
"""Scores of one item's candidates in their order; `None` where a candidate is not held or the item does not count."""

TEXT_FORMS = {
    "plain": {"user": "\n\n", "assistant": "\n\n", "system": "\n\n"},
    "transcript": {"user": f"{HUMAN} ", "assistant": f"{ASSISTANT} ", "system": "\n\n"},
}
"""What stands before a turn of each role, for models that were trained on text without a chat template."""


def as_text(items: Sequence[Item], form: str) -> list[Item]:
    """Returns the items with their candidates as text, for a model whose tokenizer has no chat template.

    Args:
        items (`Sequence[Item]`): Items whose candidates are message lists; those that are text stay as they are.
        form (`str`): `"plain"`, turns with a blank line between, or `"transcript"`, turns after `Human:` and
            `Assistant:` as in hh-rlhf.

    Raises:
        UsageError: If there is no such form, or a message has another role than system, user and assistant.

    Example:

    ```python
    >>> item = Item("a", "a", "all", ([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}],))
    >>> as_text([item], "transcript")[0].candidates
    ('\\n\\nHuman: Hi\\n\\nAssistant: Yes?',)
    ```
    """
    if form not in TEXT_FORMS:
        raise UsageError(f"got the text form {form!r}; wanted {' or '.join(TEXT_FORMS)}")
    return [replace(item, candidates=tuple(_text(own, form, item.id) for own in item.candidates)) for item in items]


def _text(conversation: Conversation, form: str, id: str) -> str:
    if isinstance(conversation, str):
        return conversation
    try:
        text = "".join(TEXT_FORMS[form][turn["role"]] + message_text(turn) for turn in conversation)
    except KeyError as error:
        raise UsageError(
            f"item {id} has a turn of the role {error}; the text form {form} has no place for it"
        ) from error
    return text.removeprefix("\n\n") if form == "plain" else text


def windows(items: Sequence[Item], size: int = WINDOW_CONVERSATIONS) -> list[range]:
    """Returns the ranges of items that are scored together: at least `size` conversations each but the last.

    They follow from the items alone, so a resumed run forms the batches of the run that was stopped.

    Example:

    ```python
    >>> items = [Item(str(i), str(i), "all", ("a", "b")) for i in range(5)]
    >>> windows(items, 4)
    [range(0, 2), range(2, 4), range(4, 5)]
    ```
    """
    parts, start, held = [], 0, 0
    for index, item in enumerate(items, 1):
        held += len(item.candidates)
        if held >= size or index == len(items):
            parts.append(range(start, index))
            start, held = index, 0
    return parts


def score_window(scorer: Scorer, items: Sequence[Item]) -> list[ItemScores]:
    """Returns the scores of items that are scored together; see [`score_items`]."""
    counted = [item for item in items if not item.excluded]
    groups, ids = [item.candidates for item in counted], [item.id for item in counted]
    scores = iter(score_whole(scorer, groups, ids, kind="item"))
    return [None if item.excluded else next(scores) for item in items]


def score_items(
    scorer: Scorer, items: Sequence[Item], *, name: str = "items", progress: bool = True
) -> Iterator[list[ItemScores]]:
    """Yields the scores of each window of items, in the order of the items.

    A conversation is scored whole or not at all: an item with a candidate that the scorer does not hold is `None`, and
    so is one that the benchmark's rule leaves out.

    Args:
        scorer ([`~rmtrl.types.Scorer`]): Anything that scores conversations.
        items (`Sequence[Item]`): All items of the benchmark.
        name (`str`): What is scored, for the bar.
        progress (`bool`): Whether a pass of more than two seconds shows a bar on stderr.

    Raises:
        RmtrlError: As [`~rmtrl.evaluation.scoring.score_whole`]; it names the item.

    Example:

    ```python
    >>> for scores in score_items(scorer, items):
    ...     print(sum(own is None for own in scores), "missing")
    ```
    """
    with tqdm(total=len(items), desc=f"Scoring {name}", unit="item", delay=2, disable=not progress) as bar:
        for part in windows(items):
            yield score_window(scorer, [items[i] for i in part])
            bar.update(len(part))


def missing_reasons(
    scorer: "ModelScorer", items: Sequence[Item], scores: Sequence[ItemScores], most_tokens: int | None
) -> dict[str, int]:
    """Returns why items have no score, with the number of them.

    Args:
        scorer ([`~rmtrl.reward.scorer.ModelScorer`]): The reward model.
        items (`Sequence[Item]`): All items of the benchmark.
        scores (`Sequence` of arrays or None): Their scores.
        most_tokens (`int`, *optional*): Tokens that the model holds.

    Example:

    ```python
    >>> missing_reasons(scorer, items, scores, scorer.most_tokens)
    {"longer than the model's 512 tokens": 3, 'cannot be rendered: System role not supported': 1}
    ```
    """
    too_long = f"longer than the model's {most_tokens:,} tokens" if most_tokens else "not held by the model"
    missing = [item for item, own in zip(items, scores, strict=True) if own is None and not item.excluded]
    errors = [next(filter(None, (unrendered(scorer, c) for c in item.candidates)), None) for item in missing]
    said = [" ".join(str(error.__cause__ or error).split()) if error else "" for error in errors]
    return dict(Counter(f"cannot be rendered: {text}" if text else too_long for text in said))


# ---- files

_FAILED = "$ERROR$"  # as in PPE's own files
_FORM = 'wanted one line an item, such as {"id": "a", "scores": [1.5, 0.2]}'


def read_scores(path: str | Path, items: Sequence[Item]) -> list[ItemScores]:
    """Returns the scores of a file in the order of the items; an item the file lacks, or has null for, is `None`.

    An item is named by its id, by its subset and its id, or by its id in the benchmark's own files where only one item
    has it.

    The word `$ERROR$` stands for a judge's failure on one candidate, −∞, which some benchmarks allow. Lines of
    JudgeBench's own files, `{"pair_id", "score_A", "score_B"}`, are read too.

    Raises:
        DataError: If there is no such file, it is empty, a line is not of the form, an id is unknown or stands twice,
            the number of scores is not that of the candidates, or a score is NaN or beyond a float.

    Example:

    ```python
    >>> scores = read_scores("scores.jsonl", items)
    ```
    """
    known: dict[str, list[Item]] = {}
    for item in items:
        for name in {item.own_id or item.id.removeprefix(f"{item.subset}/"), f"{item.subset}/{item.id}"}:
            known.setdefault(name, []).append(item)
    known |= {item.id: [item] for item in items}
    found: dict[str, ItemScores] = {}
    for place, line in read_sound_rows(Path(path), wanted=_FORM):
        row = _row(place, line)
        own = known.get(id := str(row["id"]), [])
        if not own:
            raise DataError(f"{place}: the benchmark has no item {id!r}; its ids are like {items[0].id!r}")
        if len(own) > 1:
            which = " and ".join(item.id for item in own[:3])
            raise DataError(f"{place}: the id {id!r} is of {which}; give the whole id")
        if own[0].id in found:
            raise DataError(f"{place}: the item {own[0].id!r} stands twice; keep one of the lines")
        found[own[0].id] = _scores_in(row, own[0], place)
    return [found.get(item.id) for item in items]


def _row(place: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a line with `id` and `scores`, those of JudgeBench's own files too."""
    if {"pair_id", "score_A", "score_B"} <= set(row):
        return {"id": row["pair_id"], "scores": [row["score_A"], row["score_B"]]}
    if not {"id", "scores"} <= set(row):
        raise DataError(f"{place} is {json.dumps(row)[:60]}; {_FORM}")
    return row


def _scores_in(row: Mapping[str, Any], item: Item, place: str) -> ItemScores:
    """Returns the scores of a line that is of this item; None where it has null."""
    values = row["scores"]
    if values is None or (isinstance(values, list) and values and all(value is None for value in values)):
        return None
    if not isinstance(values, list) or len(values) != len(item.candidates):
        got = f"{len(values)} scores" if isinstance(values, list) else f"the scores {str(values)[:40]!r}"
        raise DataError(f"{place}: {got} for {item.id!r}; wanted {len(item.candidates)}, one a candidate, or null")
    numbers = [-math.inf if value == _FAILED else value for value in values]
    if not all(value == -math.inf or is_number(value) for value in numbers):
        raise DataError(f"{place}: the scores of {item.id!r} are {str(values)[:60]}; wanted numbers, or null for all")
    return np.array(numbers, dtype=np.float64)


def score_lines(items: Sequence[Item], scores: Scores) -> Iterator[dict[str, Any]]:
    """Yields the line of each item as a dictionary, in the form that [`read_scores`] reads."""
    for item, own in zip(items, scores, strict=True):
        values = None if own is None else [score if math.isfinite(score) else _FAILED for score in own.tolist()]
        yield {"id": item.id, "scores": values}


def score_into(
    path: Path,
    scorer: Scorer,
    items: Sequence[Item],
    *,
    key: Mapping[str, Any],
    name: str = "items",
    process: Process = ALONE,
) -> list[ItemScores]:
    """Returns the scores of all items and leaves them in a file; what a killed run left there is not scored again.

    Windows of items are scored into [parts][rmtrl.evaluation.parts.Parts] of the file.

    Args:
        path (`Path`): File to write.
        scorer ([`~rmtrl.types.Scorer`]): Anything that scores conversations.
        items (`Sequence[Item]`): All items of the benchmark.
        key (`Mapping[str, Any]`): Fingerprints of model and benchmark, rendering; JSON values.
        name (`str`): What is scored, for the bar and for what is said on stderr.
        process ([`~rmtrl.processes.Process`]): This one of those that share the work; any but the first returns no
            scores.

    Raises:
        DataError: If the file cannot be written.
        ProcessError: As [`~rmtrl.evaluation.parts.Parts.write`].

    Example:

    ```python
    >>> scores = score_into(Path("scores.jsonl"), scorer, items, key={"model": "…", "benchmark": "…"})
    ```
    """

    def score(part: range) -> Iterator[dict[str, Any]]:
        own = [items[i] for i in part]
        return score_lines(own, score_window(scorer, own))

    Parts(path, windows(items), score, json.loads(json.dumps(key)), name, process).write()
    if process.rank:
        return []
    return [_scores_in(row, item, place) for item, (place, row) in zip(items, read_sound_rows(path), strict=True)]
