"""An answer as guards read it: disguises taken off with every place kept, and patterns that cannot run on for ever.

Zero-width characters, full-width letters, stacked accents and letters of other scripts that look Latin hide words from
a pattern. Each text is read twice where it has any of these, once with only the invisible taken out and once folded
to plain letters, so that a pattern in Greek or with accents finds its words too.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import regex
from numpy.typing import NDArray

from rmtrl.data.layouts import ASSISTANT, COLUMNS, asked, before, with_messages
from rmtrl.data.messages import conversation_text, message_text, read_messages
from rmtrl.errors import DataError, UsageError
from rmtrl.io import Row, packaged
from rmtrl.types import Conversation, Finding, Message, Scorer, shorten

PATTERN_SECONDS, ANSWER_SECONDS = 0.5, 2.0
"""What one pattern, and all patterns of one guard, may take for one answer: processor time, not that of the wall."""

LONGEST_CHARS = 1_000_000
"""What is read of one answer, in characters; what follows is found as not read."""

NOT_JUDGED = 2.0
"""The severity of what nobody has judged: above every threshold of a severity in [0, 1]."""

_MOST_PLACES = 10_000  # that one pattern finds in one answer

WORDS: dict[str, Any] = packaged("rmtrl.monitoring", "guardrails.yaml")
"""Word lists, patterns and look-alikes; the file says what each part of it is for."""


@dataclass(frozen=True)
class Graded(Finding):
    """A finding with its severity: in [0, 1], or [`NOT_JUDGED`] for text that no pattern has judged."""

    severity: float = 1.0


class Clock:
    """What is left of the time for one answer, and the patterns that ran out of theirs."""

    def __init__(self) -> None:
        self.end = time.thread_time() + ANSWER_SECONDS
        self.ran_out: list[Pattern] = []

    @property
    def left(self) -> float:
        """Seconds of processor time left, 0 or more."""
        return max(0.0, self.end - time.thread_time())


@dataclass(frozen=True)
class Reading:
    """A text without its disguises, and where each of its characters stood.

    Args:
        text (`str`): What patterns read.
        starts, ends (`(len(text),)` arrays, *optional*): Where the original of each character begins and ends; as they
            are where nothing was changed.
    """

    text: str
    starts: NDArray[np.int64] | None = None
    ends: NDArray[np.int64] | None = None

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Returns where `text[start:end]` stands in the original."""
        if self.starts is None or self.ends is None or not len(self.starts):
            return start, end
        first = int(self.starts[min(start, len(self.starts) - 1)])
        return first, int(self.ends[end - 1]) if end > start else first


def readings(text: str) -> list[Reading]:
    """Returns a text with the invisible taken out, and where that says something else, folded to plain letters too.

    Example:

    ```python
    >>> [own.text for own in readings("p\\u200bаssword")]  # with a Cyrillic а
    ['pаssword', 'password']
    ```
    """
    text = text[:LONGEST_CHARS]
    if text.isascii() and not _IGNORED.search(text):
        return [Reading(text)]
    parts = [(m.start(), m.end(), m[0]) for m in _CLUSTER.finditer(text)]
    shown, folded = _read(parts, _shown), _read(parts, _folded)
    return [shown] if folded.text == shown.text else [shown, folded]


_CLUSTER = regex.compile(r"\P{M}\p{M}{1,8}|.", regex.DOTALL)  # more accents than 8 are sorted in quadratic time
_IGNORED = regex.compile(r"(?![\t\n\r])[\p{Cc}\p{Cf}\p{Cs}\p{Default_Ignorable_Code_Point}\u2800]+")
_LIKE = str.maketrans({char: plain for plain, alike in WORDS["alike"].items() for char in alike})


@lru_cache(maxsize=100_000)
def _shown(cluster: str) -> str:
    """Returns what a cluster is read as without what is not seen."""
    shown = unicodedata.normalize("NFKC", _IGNORED.sub("", cluster))
    return str(unicodedata.decimal(shown)) if shown.isdecimal() and len(shown) == 1 else shown


@lru_cache(maxsize=100_000)
def _folded(cluster: str) -> str:
    """Returns the plain letters that a cluster looks like."""
    plain = unicodedata.normalize("NFKD", _shown(cluster)).translate(_LIKE)
    return "".join(char for char in plain if not unicodedata.combining(char))


def _read(parts: Sequence[tuple[int, int, str]], read: Callable[[str], str]) -> Reading:
    pieces = [read(cluster) for _, _, cluster in parts]
    lengths = [len(piece) for piece in pieces]
    starts, ends = (np.repeat([part[end] for part in parts], lengths) for end in (0, 1))
    return Reading("".join(pieces), starts, ends)


class Pattern:
    """A pattern of the `regex` package by its name, whose time is bounded as that of Python's `re` cannot be."""

    def __init__(self, name: str, source: str, flags: int = regex.IGNORECASE) -> None:
        self.name, self.source = name, source
        try:
            self.compiled = regex.compile(source, flags)
        except (regex.error, RecursionError, OverflowError, TypeError) as error:
            said = f"{name} has the pattern {shorten(str(source))!r}: {error}; wanted a regular expression"
            raise UsageError(said) from error

    def spans(self, read: Sequence[Reading], clock: Clock, group: int = 0) -> dict[tuple[int, int], str]:
        """Returns where the pattern, or a group of it, stands in the original, and what is read there.

        Where the time runs out, or there are more places than anyone would read, the clock keeps the pattern, and
        nothing is returned.
        """
        try:
            found = ((own, match) for own in read for match in self._matches(own.text, clock))
            return {own.span(*match.span(group)): match[group] for own, match in found if match[group] is not None}
        except TimeoutError:
            clock.ran_out += [self] if clock.left or not clock.ran_out else []
            return {}

    def _matches(self, text: str, clock: Clock) -> Iterator[Any]:
        end = time.thread_time() + min(PATTERN_SECONDS, clock.left)
        places = self.compiled.finditer(text, timeout=max(0.0, end - time.thread_time()))
        for number, match in enumerate(places):
            yield match
            if time.thread_time() > end or number >= _MOST_PLACES:
                raise TimeoutError


def last_answer(conversation: Conversation) -> tuple[str, str]:
    """Returns what was asked and the text of the last answer.

    A string is an answer whole, but where it is a transcript as in hh-rlhf, its last turn.

    Example:

    ```python
    >>> last_answer([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}])
    ('Hi', 'Hello!')
    ```
    """
    if isinstance(conversation, str):
        asked, mark, answer = conversation.rpartition(ASSISTANT)
        return asked, answer[1:] if mark and answer[:1] == " " else answer
    spoke = [i for i, message in enumerate(conversation) if message.get("role") == "assistant"]
    if not spoke:
        return conversation_text(conversation), ""
    return conversation_text(conversation[: spoke[-1]]), message_text(conversation[spoke[-1]])


ANSWERED: list[str] = COLUMNS["answered"]
"""Columns that may hold an answer, or several."""


def row_answers(row: Row) -> list[str] | None:
    """Returns the texts of a row's answers, from the first column of [`ANSWERED`] that is not null; None without one.

    A cell is a text, messages, of which the assistant's last is the answer, or a list of either.

    Raises:
        DataError: If it is anything else.

    Example:

    ```python
    >>> row_answers({"completions": ["Hello!", [{"role": "assistant", "content": "Hi."}]]})
    ['Hello!', 'Hi.']
    ```
    """
    column = next((name for name in ANSWERED if row.get(name) is not None), None)
    return None if column is None else _texts(column, row[column])


def asked_and_answered(row: Row) -> tuple[list[Message], list[str] | None]:
    """Returns what was asked in a row and its [`row_answers`], where it has none the last message of its talk.

    Raises:
        DataError: If the prompt or an answer is of another form.
    """
    row = with_messages(row, [name for name in (*ANSWERED, *_TALKS) if name in row])
    given, answers = asked(row)[0] or "", row_answers(row)
    prompt = before(row) + (messages_of(given) if isinstance(given, str) else read_messages("prompt", given))
    if answers is None and prompt and prompt[-1].get("role") == "assistant":
        *prompt, last = prompt
        answers = None if last.get("content") is None else [message_text(last)]
    return prompt, answers


_TALKS = ("prompt", "messages", "conversations", "conversation", "history")


def _texts(column: str, value: Any) -> list[str]:
    if isinstance(value, list) and not any(isinstance(one, dict) for one in value):
        return [text for one in value for text in _texts(column, one)]
    return [value if isinstance(value, str) else last_answer(read_messages(column, value))[1]]


def messages_of(prompt: Conversation) -> list[Message]:
    """Returns a prompt as messages: text is what the user says, and an empty one says nothing."""
    return prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}] if prompt else []


def truth(name: str, value: Any) -> bool:
    """Returns what a cell says, yes or no.

    Raises:
        DataError: If it says neither.
    """
    if (text := str(value).strip().lower().removesuffix(".0")) not in _TRUTH:
        raise DataError(f"{name} is {str(value)[:40]!r}; wanted true or false")
    return _TRUTH[text]


_TRUTH = dict.fromkeys(("true", "1", "yes"), True) | dict.fromkeys(("false", "0", "no"), False)


class RuleScorer(Scorer):
    """A scorer whose severity, in [0, 1], is that of the gravest thing it finds in an answer: 0 where it finds none.

    An answer that it cannot judge whole and in time has a severity of 2, so that it passes at no threshold.
    Subclasses define [`RuleScorer.found`].
    """

    def found(self, asked: str, answer: str, reference: str, clock: Clock) -> Iterator[Graded]:
        """Yields what is wrong with an answer; the reference is empty where its row has none."""
        raise NotImplementedError

    def applies(self, asked: str, reference: str) -> bool:
        """Returns whether there is anything to judge an answer by; where not, it counts in no rate."""
        return True

    def findings(self, conversation: Conversation, *, reference: Any = None, **columns: Any) -> list[Finding]:
        """Returns what is wrong with the last answer and where, in order."""
        return list(self._graded(*last_answer(conversation), reference))

    def score(self, conversations: Sequence[Conversation]) -> NDArray[np.float32]:
        """Returns the severity of each last answer, `(N,)` float32."""
        return np.array([self._severity(*last_answer(own), None) for own in conversations], np.float32)

    def score_completions(
        self, prompts: Sequence[Conversation], completions: Sequence[Conversation], *,
        reference: Sequence[Any] | None = None, **columns: Any,
    ) -> list[float]:  # fmt: skip
        """Returns the severity of each completion, each beside its reference where there are any."""
        asked = map(conversation_text, prompts)
        answers = (own if isinstance(own, str) else last_answer(own)[1] for own in completions)
        references = [None] * len(completions) if reference is None else reference
        return [self._severity(*row) for row in zip(asked, answers, references, strict=True)]

    def _severity(self, asked: str, answer: str, reference: Any) -> float:
        return max((own.severity for own in self._graded(asked, answer, reference)), default=0.0)

    def _graded(self, asked: str, answer: str, reference: Any) -> list[Graded]:
        clock = Clock()
        found = [own for own in self.found(asked, answer, str(reference or ""), clock) if own.severity > 0]
        for pattern in clock.ran_out:
            said = f"not judged: {pattern.name} took over {PATTERN_SECONDS:g} s or found over {_MOST_PLACES:,} places"
            said = f"{said} with the pattern {shorten(pattern.source)!r}"
            found.append(Graded(0, len(answer), said, NOT_JUDGED))
        if len(answer) > LONGEST_CHARS:
            said = f"not judged: only the first {LONGEST_CHARS:,} characters are read"
            found.append(Graded(LONGEST_CHARS, len(answer), said, NOT_JUDGED))
        return sorted(set(found), key=lambda own: (own.start, own.end, own.reason))
