"""Texts for judgments, from the annotation lines or files beside them, and the rows of pairs written with them."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from datasets import Dataset, Features, List, Value

from rmtrl.data.annotations.tables import Annotations, Item
from rmtrl.data.messages import read_messages, says
from rmtrl.data.reading.normal_form import ExactJson
from rmtrl.errors import DataError
from rmtrl.types import Conversation

VOTE_COUNTS = ("votes_a", "votes_b", "votes_tie")
_TEXT, _NUMBER = Value("string"), Value("float64")
_NAMES = ("id", "prompt_id", "domain", "source")


def as_text(value: Any) -> Conversation | None:
    """Returns a text or message list as it is, and a number or truth value as its text: "4" and "True" are answers.

    Raises:
        DataError: If it is anything else, or a message has neither content nor calls.

    Example:

    ```python
    >>> as_text(4)
    '4'
    ```
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return str(value)
    messages = read_messages("text", value)
    if not messages or not all(message.get("role") and says(message) for message in messages):
        raise DataError(f"got {str(value)[:40]!r}; wanted text or a list of messages with role and content")
    return messages


def with_texts(
    annotations: Annotations, *, prompts: Dataset | None = None, responses: Dataset | None = None
) -> Annotations:
    """Returns the annotations with texts, domains and sources where they lack them.

    Args:
        annotations ([`Annotations`]): The judgments.
        prompts (`Dataset`, *optional*): `prompt_id`, `prompt` and perhaps `domain` and `source`.
        responses (`Dataset`, *optional*): `item_id`, `prompt_id` and `response`.

    Raises:
        DataError: If a column is missing or a text is neither text nor a list of messages.

    Example:

    ```python
    >>> annotations = with_texts(annotations, prompts=load_rows("prompts.jsonl"))
    ```
    """
    texts, answers = dict(annotations.prompts), dict(annotations.responses)
    domains, sources = dict(annotations.domains), dict(annotations.sources)
    for row in _rows("prompts", prompts, ("prompt_id", "prompt")):
        prompt_id = str(row["prompt_id"])
        _add(texts, prompt_id, row["prompt"])
        if prompt_id in domains and row.get("domain") and domains[prompt_id] == "unknown":
            domains[prompt_id] = str(row["domain"])
        if prompt_id in sources and row.get("source"):
            sources[prompt_id] = str(row["source"])
    for row in _rows("responses", responses, ("item_id", "prompt_id", "response")):
        _add(answers, (str(row["prompt_id"]), str(row["item_id"])), row["response"])
    return replace(annotations, prompts=texts, responses=answers, domains=domains, sources=sources)


def _add(texts: dict[Any, Conversation], key: Any, value: Any) -> None:
    try:
        text = as_text(value)
    except DataError as error:
        raise DataError(f"the text of {key}: {error}") from error
    if text is not None:
        texts.setdefault(key, text)


def _rows(name: str, dataset: Dataset | None, needed: Sequence[str]) -> Iterable[Any]:
    if dataset is None:
        return ()
    missing = [column for column in needed if column not in dataset.column_names]
    if missing:
        found = ", ".join(dataset.column_names)
        raise DataError(f"the {name} have no column {', '.join(missing)}; they have {found}")
    return dataset


class PairWriter:
    """Writes the rows of pairs; all texts become message lists as soon as one of them is.

    Args:
        annotations ([`Annotations`]): The judgments, with the texts.
    """

    def __init__(self, annotations: Annotations) -> None:
        self.annotations = annotations
        known = (*annotations.prompts.values(), *annotations.responses.values())
        self.messages = any(isinstance(text, list) for text in known)
        form = List(ExactJson()) if self.messages else _TEXT
        names = dict.fromkeys(_NAMES, _TEXT)
        pair = names | dict.fromkeys(("prompt", "chosen", "rejected"), form) | {"preference": _NUMBER}
        label = {"route": _TEXT, "agreement": _NUMBER}
        self.vote_features = Features(pair | {"weight": _NUMBER} | label)
        self.rating_features = Features(pair | {"rating_gap": _NUMBER, "route": _TEXT})
        sides = {"prompt": form, "a": _TEXT, "b": _TEXT, "response_a": form, "response_b": form}
        self.rated_review_features = Features(names | sides | {"route": _TEXT})
        self.review_features = Features(names | sides | label | dict.fromkeys(VOTE_COUNTS, Value("int64")))

    def has(self, first: Item, second: Item) -> bool:
        """Returns whether the texts of prompt and both answers are known."""
        known = self.annotations
        return first[0] in known.prompts and first in known.responses and second in known.responses

    def pair(self, first: Item, second: Item, share: float) -> dict[str, Any]:
        """Returns the pair with the side of the larger share as chosen."""
        chosen, rejected = (first, second) if share >= 0.5 else (second, first)
        sides = {"chosen": self._response(chosen), "rejected": self._response(rejected)}
        return self._names(first, second) | sides | {"preference": max(share, 1 - share)}

    def side_by_side(self, first: Item, second: Item) -> dict[str, Any]:
        """Returns the two answers without a label, for a person to judge."""
        sides = {"response_a": self._response(first), "response_b": self._response(second)}
        return self._names(first, second) | {"a": first[1], "b": second[1]} | sides

    def _names(self, first: Item, second: Item) -> dict[str, Any]:
        known, prompt_id = self.annotations, first[0]
        return {
            "id": f"{prompt_id}:{first[1]}:{second[1]}",
            "prompt_id": prompt_id,
            "domain": known.domains[prompt_id],
            "source": known.sources[prompt_id],
            "prompt": self._form(known.prompts[prompt_id], "user"),
        }

    def _response(self, item: Item) -> Conversation:
        return self._form(self.annotations.responses[item], "assistant")

    def _form(self, text: Conversation, role: str) -> Conversation:
        return [{"role": role, "content": text}] if self.messages and isinstance(text, str) else text
