"""Messages as people write them: read without losing a field, compared, and their text."""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rmtrl.errors import DataError
from rmtrl.types import Conversation, Message

TOOL_ROLES = frozenset({"tool", "function", "ipython", "observation", "tool_response"})
ROLES = frozenset({"system", "developer", "user", "assistant"}) | TOOL_ROLES
"""Who speaks in the chat templates at hand; what a tool returned has several names."""

CALLS = ("tool_calls", "function_call")
"""Fields by which an answer without text still says something."""

_SPEAKERS = {
    "human": "user",
    **dict.fromkeys(("gpt", "chatgpt", "model", "bot", "bing", "bard", "function_call"), "assistant"),
    **dict.fromkeys(("observation", "function_response", "tool_response"), "tool"),
}


def read_messages(name: str, value: Any) -> list[Message]:
    """Returns a list of messages, or a single one, with every field as it stands.

    Messages of ShareGPT's form, `from` and `value`, become `role` and `content`; a `function_call` among them becomes
    tool calls. A missing role or content is of no wrong type: the validator counts it.

    Raises:
        DataError: If it is anything else.

    Example:

    ```python
    >>> read_messages("prompt", [{"from": "human", "value": "Why?", "weight": 1}])
    [{'role': 'user', 'content': 'Why?', 'weight': 1}]
    ```
    """
    if isinstance(value, list) and all(map(_is_plain, value)):
        return value
    given = [value] if isinstance(value, dict) and ("role" in value or "from" in value) else value
    if not isinstance(given, list) or not all(map(_is_message, given)):
        raise DataError(
            f"{name} is of type {type(value).__name__} ({str(value)[:40]!r}); "
            "wanted text or a list of messages with role and content"
        )
    return [_of_sharegpt(message) if "from" in message and "role" not in message else message for message in given]


def listed_messages(text: str) -> list[Message]:
    """Returns the messages of a list of objects with role and content (or `from`, `value`), or of one, else none."""
    found = written_value(text)
    found = [found] if isinstance(found, dict) else found
    forms = ({"role", "content"}, {"from", "value"}, *({"role", name} for name in CALLS))
    known = isinstance(found, list) and all(
        isinstance(message, dict) and any(form <= message.keys() for form in forms) for message in found
    )
    return found if known else []


def written_value(text: str) -> Any:
    """Returns the value of a JSON text, or of a list of objects or lists as Python prints it; None for other text."""
    for parsed in (parsed_json, _printed):
        try:
            return parsed(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            pass
    return None


def parsed_json(text: str) -> Any:
    """Returns the value of a JSON text; half of a surrogate pair in it is an error like any other."""
    return _encodable(json.loads(text))


def _printed(text: str) -> Any:
    if not re.match(r"\s*\[\s*[{\[(]", text):
        raise ValueError("no list of objects or lists")
    return _encodable(ast.literal_eval(text.strip()))


def _encodable(value: Any) -> Any:
    json.dumps(value, ensure_ascii=False).encode()
    return value


def _is_plain(value: Any) -> bool:
    return type(value) is dict and type(value.get("content")) is type(value.get("role")) is str


def _is_message(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    content = value.get("content", value.get("value"))
    parts = content if isinstance(content, list) else []
    return (
        isinstance(value.get("role", value.get("from")), str | None)
        and isinstance(content, str | list | None)
        and all(isinstance(part, str | dict) for part in parts)
    )


def _of_sharegpt(message: Message) -> Message:
    speaker = message["from"]
    lowered = str(speaker).lower()
    rest = {key: value for key, value in message.items() if key not in ("from", "value")}
    read = {"role": _SPEAKERS.get(lowered, lowered if lowered in ROLES else speaker), "content": message.get("value")}
    if lowered == "function_call" and (calls := _calls(message.get("value"))):
        read |= {"content": "", "tool_calls": calls}
    return read | rest


def _calls(text: Any) -> list[dict[str, Any]]:
    try:
        called = json.loads(text)
    except (TypeError, ValueError):
        return []  # a call in words
    called = called if isinstance(called, list) else [called]
    named = all(isinstance(call, dict) and "name" in call for call in called)
    return [{"type": "function", "function": call} for call in called] if named else []


def message_text(message: Mapping[str, Any]) -> str:
    """Returns the text of a message: its content, or the text parts of its content joined.

    Example:

    ```python
    >>> message_text({"role": "user", "content": [{"type": "text", "text": "Why"}, {"type": "text", "text": "?"}]})
    'Why?'
    ```
    """
    content = message.get("content")
    if not isinstance(content, list):
        return content or ""
    return "".join(part if isinstance(part, str) else str(part.get("text") or "") for part in content)


def says(message: Mapping[str, Any]) -> bool:
    """Returns whether a message has content, be it empty, or a call in its place."""
    return message.get("content") is not None or any(map(message.get, CALLS))


def is_blank(message: Mapping[str, Any]) -> bool:
    """Returns whether a message says nothing: no text but spaces, no part that is not text, no call."""
    if any(map(message.get, CALLS)):
        return False
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    text_only = all(isinstance(part, str) or part.get("type", "text") == "text" for part in parts)
    return text_only and not message_text(message).strip()


def conversation_text(conversation: Conversation) -> str:
    """Returns all that a conversation says: a string as it is, the texts and calls of messages one a line."""
    if isinstance(conversation, str):
        return conversation
    said = ([message_text(m)] + [canonical(m[name]) for name in CALLS if m.get(name)] for m in conversation)
    return "\n".join("\n".join(lines if lines[0] else lines[1:]) for lines in said)


def canonical(value: Any) -> str:
    """Returns a string that is equal for equal values only: text as it is, else JSON with sorted keys.

    Fields of a message that are null are as good as absent; numbers that Python takes for equal (1, 1.0, true) differ.

    Example:

    ```python
    >>> canonical([{"content": "Hi", "role": "user", "name": None}])
    '[{"content": "Hi", "role": "user"}]'
    ```
    """
    if isinstance(value, str):
        return value
    return _ENCODER.encode([_told(item) for item in value] if isinstance(value, list) else _told(value))


_ENCODER = json.JSONEncoder(sort_keys=True, ensure_ascii=False, default=str)


def _told(value: Any) -> Any:
    if not isinstance(value, dict) or None not in value.values():
        return value
    return {key: field for key, field in value.items() if field is not None}


def same(first: Any, second: Any) -> bool:
    """Returns whether two conversations, or two messages, are the same in every field."""
    if first is second or type(first) is not type(second) or isinstance(first, str):
        return bool(first == second)
    contents = [_contents(value) for value in (first, second)]
    return contents[0] == contents[1] and canonical(first) == canonical(second)


def _contents(value: Any) -> list[Any]:
    """Returns what most often tells two conversations apart, and costs little to compare."""
    return [item.get("content") for item in (value if isinstance(value, list) else [value])]


def shared_prefix_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Returns how many characters, or tokens, two texts begin with alike.

    Example:

    ```python
    >>> shared_prefix_length([1, 2, 3, 4], [1, 2, 5])
    2
    ```
    """
    low, high = 0, min(len(first), len(second))
    while low < high:  # halving, on equality of slices, runs at C speed; a loop over tokens does not
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[low:middle] == second[low:middle] else (low, middle - 1)
    return low


def is_filled(feature: Any) -> bool:
    """Whether a feature holds objects with the same keys in every row, absent ones null; JSON is kept as it is."""
    if isinstance(feature, dict):
        return True
    return (inner := _inner(feature)) is not None and is_filled(inner)


def without_fillings(value: Any, feature: Any) -> Any:
    """Returns a value of a filled feature without the keys that are null there and not in every row.

    A key that is null in every row was written as null: nothing else would have made the key.
    """
    if isinstance(value, Mapping):
        known = feature if isinstance(feature, dict) else {}
        kept = {key: item for key, item in value.items() if item is not None or _is_null(known.get(key))}
        return {key: without_fillings(item, known.get(key)) for key, item in kept.items()}
    return [without_fillings(item, _inner(feature)) for item in value] if isinstance(value, list) else value


def _inner(feature: Any) -> Any:
    return feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)


def _is_null(feature: Any) -> bool:
    return getattr(feature, "dtype", None) == "null"


def half_character(given: Sequence[Any]) -> int | None:
    """Returns the place of the first conversation with a lone surrogate, which UTF-8 cannot hold; None: none has one.

    Example:

    ```python
    >>> half_character(["a", "\\ud83d"])
    1
    ```
    """
    texts = (json.dumps([own, getattr(own, "__dict__", {})], ensure_ascii=False, default=repr) for own in given)
    return next((index for index, text in enumerate(texts) if re.search("[\ud800-\udfff]", text)), None)
