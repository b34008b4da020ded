"""Rows as conversations, and their scores from a model or a file: joined in one way for every command."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from rmtrl.data.provenance import fingerprint
from rmtrl.errors import DataError, RenderingError, RmtrlError
from rmtrl.io import read_sound_rows
from rmtrl.types import Chat, Conversation, Scorer, checked_scores, failed_at

if TYPE_CHECKING:
    from datasets import Dataset

    from rmtrl.reward.scorer import ModelScorer

SIDES = ("chosen", "rejected")
TESTED, WORST = "test.jsonl", "worst_pairs.jsonl"
_WINDOW_PAIRS = 1000  # scored at a time: enough to find rows of like length, little to hold
_FORM = 'wanted {"id": "a", "scores": [1.5, 0.2]} a line, chosen first, both finite or null'
_LARGEST = sys.float_info.max

Floats = NDArray[np.float64]


def joined(prompt: Conversation, completion: Conversation) -> Conversation:
    """Returns the conversation of a prompt and its completion; a [`~rmtrl.types.Chat`] stays one.

    Raises:
        DataError: If the prompt is a string and the completion a message list.

    Example:

    ```python
    >>> joined([{"role": "user", "content": "Hi"}], "Hello!")[-1]
    {'role': 'assistant', 'content': 'Hello!'}
    ```
    """
    if isinstance(prompt, str):
        if isinstance(completion, str):
            return prompt + completion
        raise DataError(f"got the prompt {prompt[:40]!r} as text and its completion as messages; wanted one form")
    return prompt + ([{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion)


def conversation(row: Mapping[str, Any], side: str) -> Conversation:
    """Returns the prompt of a row and what answers it, with the row's `tools` and `chat_template_kwargs`.

    Args:
        row (`Mapping[str, Any]`): A row with the column `prompt`.
        side (`str`): Column of the answer.

    Example:

    ```python
    >>> conversation({"prompt": "Is the sky blue?", "chosen": " Yes.", "rejected": " No."}, "chosen")
    'Is the sky blue? Yes.'
    ```
    """
    return joined(Chat.of(row["prompt"], row), row[side])


def unrendered(scorer: "ModelScorer", conversation: Conversation) -> RenderingError | None:
    """Returns why a conversation that is not held cannot be rendered; None where it can, and is too long."""
    try:
        scorer.encode(conversation)
    except RenderingError as error:
        return error
    return None


def check_rendered(scorer: "ModelScorer", conversations: Iterable[Conversation], place: str) -> None:
    """Raises where one of the conversations, which the scorer does not hold, cannot be rendered, and says where it is.

    Args:
        scorer ([`~rmtrl.reward.scorer.ModelScorer`]): A reward model.
        conversations (`Iterable[Conversation]`): What the scorer does not hold.
        place (`str`): Where they stand.

    Raises:
        RenderingError: With the place and what the template says.
    """
    for error in filter(None, (unrendered(scorer, own) for own in conversations)):
        raise RenderingError(f"{place}: {error}") from error


def score_conversations(scorer: Scorer, conversations: Sequence[Conversation]) -> Floats:
    """Returns one score a conversation, `(N,)` float64; NaN where the scorer does not hold it.

    Raises:
        ModelError: If the scorer returns another number of scores, or one that is no finite number.
    """
    numbers = list(map(str, range(len(conversations))))
    found = score_whole(scorer, [[own] for own in conversations], numbers, kind="conversation")
    return np.array([np.nan if own is None else own[0] for own in found])


@dataclass(frozen=True)
class ScoredPairs:
    """Pairs with the scores of both sides, from a model or a file.

    Args:
        pairs ([`~datasets.Dataset`]): N pairs in the normal form; of scores without pairs their ids alone, each a
            prompt of its own.
        scores (`(N, 2)` array): Of chosen and rejected; both NaN where there are none.
        named (`bool`): Whether pairs were given, and with them their prompts, domains and labels.

    Example:

    ```python
    >>> scored = ScoredPairs.of_file(Path("scores.jsonl"), read_preferences("pairs.jsonl"))
    >>> kept = scored.where(scored.whole)
    >>> chosen, rejected = kept.scores.T
    ```
    """

    pairs: "Dataset"
    scores: Floats
    named: bool = True

    @classmethod
    def of_model(cls, scorer: Any, pairs: "Dataset", source: str) -> "ScoredPairs":
        """Returns all pairs with what a reward model gives them; see [`score_pairs`] for what it raises."""
        return cls(pairs, score_pairs(scorer, pairs, source))

    @classmethod
    def of_file(cls, path: Path, pairs: "Dataset | None" = None) -> "ScoredPairs":
        """Returns the pairs that a file of scores has a line for.

        Raises:
            DataError: As [`read_pair_scores`], if ids of the pairs are not unique, or the file has one that is none.
        """
        found = read_pair_scores(path)
        if pairs is None:
            from datasets import Dataset

            ids = list(found)
            return cls(Dataset.from_dict({"id": ids, "prompt_id": ids}), np.array(list(found.values())), named=False)
        known = pairs["id"]
        if twice := len(pairs) - len(set(known)):
            raise DataError(f"{twice:,} ids of the pairs are not unique; scores cannot be told apart")
        if unknown := found.keys() - set(known):
            raise DataError(
                f"{path} has scores of {min(unknown)!r}, which is none of the pairs; name the pairs it scored"
            )
        index = [i for i, id in enumerate(known) if id in found]
        return cls(pairs.select(index), np.array([found[known[i]] for i in index]))

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def whole(self) -> NDArray[np.bool_]:
        """Which pairs have scores, `(N,)`."""
        return np.asarray(np.isfinite(self.scores).all(axis=1))

    @property
    def fingerprint(self) -> dict[str, str]:
        """The `fingerprint` of the pairs, nothing of pairs that were not given."""
        return {"fingerprint": fingerprint(self.pairs)} if self.named else {}

    def where(self, mask: NDArray[np.bool_]) -> "ScoredPairs":
        """Returns the pairs at which `mask` is true."""
        return replace(self, pairs=self.pairs.select(np.flatnonzero(mask)), scores=self.scores[mask])

    def column(self, name: str) -> list[Any] | None:
        """Returns a column of the pairs, None where they have none of this name."""
        return list(self.pairs[name]) if name in self.pairs.column_names else None

    def worst(self, n: int = 100) -> list[dict[str, Any]]:
        """Returns the rows of the pairs that are ranked most wrongly, at most n, each with its `scores`; no ties."""
        margins = self.scores[:, 0] - self.scores[:, 1]
        wrong = np.flatnonzero((margins < 0) & (np.array(self.column("preference") or [1.0] * len(self)) != 0.5))
        wrong = wrong[np.argsort(margins[wrong], kind="stable")][:n]
        rows = zip(self.pairs.select(wrong), self.scores[wrong].tolist(), strict=True)
        return [{**row, "scores": scores} for row, scores in rows]


def score_pairs(
    scorer: Any, rows: "Dataset | Sequence[Mapping[str, Any]]", source: str, *, sides: tuple[str, str] = SIDES
) -> Floats:
    """Returns the scores of both sides, `(N, 2)`; both NaN where one side is too long.

    Args:
        scorer ([`~rmtrl.reward.scorer.ModelScorer`]): A reward model.
        rows ([`~datasets.Dataset`] or rows): Pairs with a prompt, in the order of their file.
        source (`str`): Their file, to name a row.
        sides (`tuple[str, str]`): Columns of the answers.

    Raises:
        RenderingError: If a side cannot be rendered; it names file and row.
        ModelError: If a score is no finite number.
    """
    ahead, scores = iter(rows), [np.empty((0, 2))]
    with tqdm(total=len(rows), desc="Scoring", unit="pair", delay=2) as progress:
        for part in pair_windows(len(rows)):
            scores.append(_window_scores(scorer, islice(ahead, len(part)), source, part, sides))
            progress.update(len(part))
    return np.concatenate(scores)


def pair_windows(n: int) -> list[range]:
    """Returns the places of n pairs, those together that are scored together."""
    return [range(start, min(start + _WINDOW_PAIRS, n)) for start in range(0, n, _WINDOW_PAIRS)]


def _window_scores(
    scorer: Any, rows: Iterable[Mapping[str, Any]], source: str, part: range, sides: tuple[str, str] = SIDES
) -> Floats:
    """Returns the scores of the pairs at the places of a window, `(n, 2)`."""
    whole = [[conversation(row, side) for side in sides] for row in rows]
    numbers = [str(place + 1) for place in part]
    found = score_whole(scorer, whole, numbers, kind=f"{source} row")
    for number, pair, own in zip(numbers, whole, found, strict=True):
        check_rendered(scorer, pair if own is None else [], f"{source} row {number}")
    return np.array([[np.nan, np.nan] if own is None else own for own in found])


def score_whole(
    scorer: Scorer, groups: Sequence[Sequence[Conversation]], names: Sequence[str], *, kind: str
) -> list[Floats | None]:
    """Returns the scores of each group of conversations; None where the scorer does not hold one of them.

    Args:
        scorer ([`~rmtrl.types.Scorer`]): Anything that scores conversations.
        groups (`Sequence[Sequence[Conversation]]`): What is scored whole or not at all: pairs, candidates of an item.
        names (`Sequence[str]`): Name of each group.
        kind (`str`): What a group is, in one word.

    Raises:
        RmtrlError: Of the scorer's own kind, if the scorer refuses a conversation.
        ModelError: If the scorer returns another number of scores, or one that is no finite number.
        RuntimeError: If the scorer fails otherwise. Each names the group where the error's `index` does, else the
            first and the last; nothing is scored again.
    """
    named = list(zip(names, groups, strict=True))
    held = iter(_asked(scorer.holds, named, kind))
    fits = [all([next(held) for _ in group]) for group in groups]  # a list: every answer is taken
    given = [own for own, fit in zip(named, fits, strict=True) if fit]
    scores = iter(_asked(lambda whole: checked_scores(scorer.score(whole), len(whole)), given, kind))
    return [np.array([next(scores) for _ in group]) if fit else None for group, fit in zip(groups, fits, strict=True)]


def _asked(
    ask: Callable[[list[Conversation]], Any], named: Sequence[tuple[str, Sequence[Conversation]]], kind: str
) -> Any:
    """Returns what a scorer says of the conversations of named groups; an error names its group."""
    given = [(name, conversation) for name, group in named for conversation in group]
    try:
        return ask([conversation for _, conversation in given]) if given else []
    except Exception as error:  # whatever a scorer of any make raises: it is named and passed on
        own = [given[index][0] for index in failed_at(error, len(given))]
        where = f"{kind} {own[0]}" if own[0] == own[-1] else f"one of the {kind}s {own[0]} to {own[-1]}"
        if isinstance(error, RmtrlError):
            raise type(error)(f"{where}: {error}") from error
        raise RuntimeError(f"scoring stopped at {where}: {type(error).__name__}: {error}") from error


def pair_lines(scorer: Any, pairs: "Dataset", source: str, part: range) -> Iterator[dict[str, Any]]:
    """Yields the line of each pair of a window, as [`read_pair_scores`] takes it; see [`score_pairs`] for errors."""
    rows = pairs.select(part)
    for id, scores in zip(rows["id"], _window_scores(scorer, rows, source, part).tolist(), strict=True):
        yield {"id": id, "scores": scores}


def read_pair_scores(path: Path) -> dict[str, Floats]:
    """Returns the scores of chosen and rejected by id, `(2,)`, both NaN for a pair without.

    Raises:
        DataError: If the file cannot be read or is empty, a line is of another form, or an id stands twice.
    """
    found: dict[str, Floats] = {}
    for place, row in read_sound_rows(path, wanted=_FORM):
        id, scores = row.get("id"), row.get("scores", "")
        scores = [None, None] if scores is None else scores
        given = isinstance(scores, list) and len(scores) == 2 and all(map(is_number, scores))
        if type(id) not in (str, int) or not (given or scores == [None, None]):
            raise DataError(f"{place}: {json.dumps(row)[:60]!r} is no line of scores; {_FORM}")
        if str(id) in found:
            raise DataError(f"{place}: {str(id)!r} stands twice; wanted a line a pair")
        found[str(id)] = np.array(scores, dtype=np.float64)
    return found


def is_number(value: Any) -> bool:
    """Returns whether a value is a finite number; true and false are none."""
    # compared, not converted: an integer may be too large for a float
    return type(value) in (int, float) and -_LARGEST <= value <= _LARGEST
