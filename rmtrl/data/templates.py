"""What the chat template of a tokenizer makes of messages: one text, whichever form of content the template reads."""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError

from rmtrl.data.messages import message_text
from rmtrl.errors import RenderingError
from rmtrl.types import Chat, Message

# a template is somebody else's program
TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError)


def check_chat_template(tokenizer: Any) -> None:
    """Raises if a tokenizer cannot render message lists.

    Raises:
        RenderingError: If it has no chat template.
    """
    if not tokenizer.chat_template:
        raise RenderingError(
            "got conversational data (message lists) but the tokenizer has no chat template; set chat_template_path, "
            "or give the data as strings"
        )


def rendered(tokenizer: Any, messages: list[Message], **settings: Any) -> str:
    """Returns what the chat template makes of messages; what it raises is one of `TEMPLATE_ERRORS`."""
    reads_text, reads_parts = _reads(tokenizer, tokenizer.chat_template)
    if any(isinstance(m.get("content"), list) for m in messages) or not reads_text:
        messages = in_parts(messages) if reads_parts else in_text(messages)
    return _apply(tokenizer, messages, **settings)


def in_parts(messages: list[Message]) -> list[Message]:
    """Returns messages with their text as the one part of their content, which templates of vision models read."""
    return messages[:0] + [
        m | {"content": [{"type": "text", "text": m["content"]}]} if isinstance(m.get("content"), str) else m
        for m in messages
    ]


def in_text(messages: list[Message]) -> list[Message]:
    """Returns messages with their text parts as text; other parts stay, for the template to refuse."""
    return messages[:0] + [m | {"content": message_text(m)} if _is_text(m.get("content")) else m for m in messages]


def _is_text(content: Any) -> bool:
    return isinstance(content, list) and all(isinstance(p, str) or p.get("type", "text") == "text" for p in content)


@lru_cache(maxsize=64)
def _reads(tokenizer: Any, chat_template: Any) -> tuple[bool, bool]:
    """Returns whether a template writes content that is text, and content that is parts."""

    def reads(form: Callable[[list[Message]], list[Message]]) -> bool:
        said = ("Why so?", "Because.")
        chat = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), said, strict=True)]
        try:
            text = _apply(tokenizer, form(chat))
        except TEMPLATE_ERRORS:
            return False
        return all(own in text for own in said) and not re.search("[\"']type[\"']", text)  # printed

    return reads(list) or not reads(in_parts), reads(in_parts)


def _apply(tokenizer: Any, chat: list[Message], **settings: Any) -> str:
    variables: dict[str, Any] = (
        {"tools": chat.tools or None, **chat.chat_template_kwargs} if isinstance(chat, Chat) else {}
    )
    # a null is not there: printed, it would be a word
    messages = [{key: value for key, value in message.items() if value is not None} for message in chat]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, **variables, **settings))
