"""Scores the items of a benchmark with any scorer, window by window; what cannot be scored whole is missing."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from rmtrl.data.messages import message_text
from rmtrl.data.reading.prompts import ASSISTANT, HUMAN
from rmtrl.errors import RmtrlError, UsageError
from rmtrl.evaluation.benchmarks.base import Item
from rmtrl.evaluation.scoring import TokenScorer, unrendered
from rmtrl.types import Conversation, Scorer, checked_scores, failed_at

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
    starts, held = [0], 0
    for index, item in enumerate(items):
        if held >= size:
            starts.append(index)
            held = 0
        held += len(item.candidates)
    return [range(*ends) for ends in zip(starts, [*starts[1:], len(items)], strict=True) if ends[0] < ends[1]]


def score_items(
    scorer: Scorer,
    items: Sequence[Item],
    *,
    done: int = 0,
    window: int = WINDOW_CONVERSATIONS,
    name: str = "items",
    progress: bool = True,
) -> Iterator[list[ItemScores]]:
    """Yields the scores of each window of items, in the order of the items.

    A conversation is scored whole or not at all: an item with a candidate that the scorer does not hold is `None`, and
    so is one that the benchmark's rule leaves out.

    Args:
        scorer ([`~rmtrl.types.Scorer`]): Anything that scores conversations.
        items (`Sequence[Item]`): All items of the benchmark.
        done (`int`): Items already scored; windows that end within them are left out.
        window (`int`): Conversations scored at a time.
        name (`str`): What is scored, for the bar.
        progress (`bool`): Whether a pass of more than two seconds shows a bar on stderr.

    Raises:
        RmtrlError: Of the scorer's own kind, if the scorer refuses an item.
        ModelError: If the scorer returns another number of scores, or one that is no finite number.
        RuntimeError: If the scorer fails otherwise. Each names the item where the error's `index` does, else the
            first and the last of the window; nothing is scored again.

    Example:

    ```python
    >>> for scores in score_items(scorer, items):
    ...     print(sum(own is None for own in scores), "missing")
    ```
    """
    ahead = [part for part in windows(items, window) if part.stop > done]
    settings = {"desc": f"Scoring {name}", "unit": "item", "delay": 2, "disable": not progress}
    with tqdm(total=len(items), initial=ahead[0].start if ahead else len(items), **settings) as bar:
        for part in ahead:
            yield _score_window(scorer, [items[i] for i in part])
            bar.update(len(part))


def missing_reasons(
    scorer: TokenScorer, items: Sequence[Item], scores: Sequence[ItemScores], most_tokens: int | None
) -> dict[str, int]:
    """Returns why items have no score, with the number of them.

    Args:
        scorer ([`~rmtrl.evaluation.scoring.TokenScorer`]): The reward model.
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


def _score_window(scorer: Scorer, items: Sequence[Item]) -> list[ItemScores]:
    counted = [item for item in items if not item.excluded]
    held = iter(_asked(scorer.holds, counted))
    fits = [item for item in counted if all([next(held) for _ in item.candidates])]  # a list: every answer is taken
    scores = _asked(lambda given: checked_scores(scorer.score(given), len(given)), fits)
    each = np.split(np.asarray(scores, dtype=np.float64), np.cumsum([len(item.candidates) for item in fits])[:-1])
    known = {item.id: own for item, own in zip(fits, each, strict=False)}
    return [known.get(item.id) for item in items]


def _asked(ask: Callable[[list[Conversation]], Any], items: Sequence[Item]) -> Any:
    """Returns what a scorer says of the items' candidates; an error names its item, or the first and the last."""
    given = [(item.id, conversation) for item in items for conversation in item.candidates]
    try:
        return ask([conversation for _, conversation in given]) if given else []
    except Exception as error:  # whatever a scorer of any make raises: it is named and passed on
        own = [given[index][0] for index in failed_at(error, len(given))]
        where = f"item {own[0]}" if own[0] == own[-1] else f"one of the items {own[0]} to {own[-1]}"
        if isinstance(error, RmtrlError):
            raise type(error)(f"{where}: {error}") from error
        raise RuntimeError(f"scoring stopped at {where}: {type(error).__name__}: {error}") from error
