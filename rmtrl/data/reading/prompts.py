"""What was asked: a prompt in whichever column it stands, and what stands before it in columns of its own."""

import re
from functools import lru_cache
from itertools import chain
from typing import Any

from rmtrl.data.messages import listed_messages, read_messages, same
from rmtrl.errors import DataError
from rmtrl.io import Row
from rmtrl.types import Message

_ASKED = (("prompt_left", "prompt_right"), ("prompt",), ("messages",), ("conversations",), ("conversation",),
          ("question",), ("query",), ("instruction", "input"), ("instruction",), ("input",))  # fmt: skip


TALKS = {"chosen", "rejected", "left", "right", "response_left", "response_right", "context", "history", "tools",
         "prompt_rejected", "chat_template_kwargs", *chain(*_ASKED)}  # fmt: skip
"""Columns that may hold messages."""


HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
"""What opens a turn in a transcript, as in hh-rlhf."""

_PAIRED = (("chosen", "rejected"), ("left", "right"), ("response_left", "response_right"))


def with_messages(row: Row) -> Row:
    """Returns a row with the messages that stand in its cells as JSON text; of answers only where both are such."""
    texts = {
        name: row[name] for name in TALKS.intersection(row) if isinstance(row[name], str) and "[" in row[name][:9]
    }
    found = {name: messages for name, text in texts.items() if (messages := listed_messages(text))}
    for sides in _PAIRED:
        if len(found.keys() & sides) == 1:
            found = {name: messages for name, messages in found.items() if name not in sides}
    return row | found if found else row


def transcript_turns(text: str) -> list[Message]:
    """Returns the turns of a transcript that asks for an answer, as in hh-rlhf; none where the text is no such."""
    if HUMAN not in text or not text.rstrip().endswith(ASSISTANT):
        return []
    before, *parts = re.split(f"({HUMAN}|{ASSISTANT})", text)
    roles = {HUMAN: "user", ASSISTANT: "assistant"}
    said = [("system", before), *((roles[mark], part) for mark, part in zip(parts[::2], parts[1::2], strict=True))]
    return [{"role": role, "content": part.strip()} for role, part in said if part.strip()]


@lru_cache(maxsize=1024)
def prompt_columns(names: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the columns that a prompt is read from, the first of those known; none where there is none."""
    return next((columns for columns in _ASKED if set(columns) <= set(names)), ())


def asked(row: Row) -> tuple[Any, Any]:
    """Returns the prompt of a row, None where it has none, and the prompt of the right side where that differs."""
    found = [side_of(name, row[name]) for name in prompt_columns(tuple(row))]
    if len(found) < 2:
        return (found[0] if found else None), None
    if "prompt_left" in row:
        return found[0], None if same(*found) else found[1]
    return "\n\n".join(text for text in found if text), None


def before(row: Row) -> list[Message]:
    """Returns what stands before the prompt in columns of its own: a system message, and earlier turns.

    `history` holds messages, or pairs of what the user and the assistant said.
    """
    system, history = row.get("system"), row.get("history")
    said = [{"role": "system", "content": system}] if isinstance(system, str) and system.strip() else []
    if not isinstance(history, list):
        return said
    if any(isinstance(turn, dict) for turn in history):
        return said + read_messages("history", history)
    if not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise DataError(f"history is {str(history)[:40]!r}; wanted messages, or pairs of what user and assistant said")
    roles = ("user", "assistant")
    return said + [{"role": role, "content": text} for turn in history for role, text in zip(roles, turn, strict=True)]


def side_of(name: str, value: Any) -> Any:
    """Returns a cell as text or as messages, None where it is empty."""
    return value if value is None or isinstance(value, str) else read_messages(name, value)
