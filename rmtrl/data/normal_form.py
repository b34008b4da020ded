"""One row of the normal form: what a layout read of a row comes in, and goes out completed, checked and as Arrow."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetInfo, Features, Json, List, Value

from rmtrl.data.messages import canonical, message_text, parsed_json, read_messages
from rmtrl.errors import DataError
from rmtrl.io import Row
from rmtrl.types import Chat, Conversation

NUMBERS = ("preference", "weight", "rating_gap", "margin")
SCORES = ("chosen_scores", "rejected_scores")
TEMPLATE = ("tools", "chat_template_kwargs")
OPTIONAL = (*NUMBERS, *SCORES, "prompt_rejected", "fault")
"""Columns left out where the input has nothing for them."""

ROW_GIVEN = "row_given"
"""The column that holds a row that cannot be read as it was given, beside its `fault`."""

NAMES = ("id", "prompt_id", "domain", "source", "prompt", "chosen", "rejected", *OPTIONAL)


class MissingCellError(DataError):
    """A row without a cell that its form needs."""

    @classmethod
    def of(cls, columns: Iterable[str]) -> "MissingCellError":
        """Returns the error of a row without cells in these columns."""
        return cls(f"column {', '.join(columns)} is null or absent; fill the cell or leave the row out")


def as_number(name: str, value: Any) -> float | None:
    """Returns a cell as a number, None where it is empty.

    Raises:
        DataError: If it is neither a number nor the text of one.
    """
    if value is None or value == "":
        return None
    try:
        if not isinstance(value, bool):
            return float(value)
    except OverflowError:  # an integer of more than 308 digits
        return math.inf if value > 0 else -math.inf
    except (TypeError, ValueError):
        pass
    raise DataError(f"{name} is of type {type(value).__name__} ({str(value)[:40]!r}); wanted a number")


class ExactJson(Json):
    """The JSON feature of datasets, which on its own reads 1.7 as 1.7000000000000002, made exact."""

    def encode_example(self, example_data: Any) -> str | None:
        return None if example_data is None else as_json(example_data)

    def decode_example(self, example_data: Any, token_per_repo_id: Any = None) -> Any:
        return None if example_data is None else json.loads(example_data)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Json)

    __hash__ = None  # type: ignore[assignment]


_ENCODER = json.JSONEncoder(ensure_ascii=False, default=str)


def as_json(value: Any) -> str:
    """Returns a value as it stands in a JSON column; what JSON has no form for (a date) as text."""
    return _ENCODER.encode(value)


def features(conversational: bool, others: Mapping[str, Any] | None = None) -> Features:
    """Returns the columns of the normal form, with prompts as text or as message lists, and what rides along."""
    text = List(ExactJson()) if conversational else Value("string")
    names = dict.fromkeys(("id", "prompt_id", "domain", "source"), Value("string"))
    sides = dict.fromkeys(("prompt", "chosen", "rejected", "prompt_rejected"), text)
    scores = dict.fromkeys(SCORES, [{"criterion": Value("string"), "score": Value("float64")}])
    numbers = dict.fromkeys(NUMBERS, Value("float64"))
    return Features({**names, **sides, **numbers, **scores, "fault": Value("string"), **(others or {})})


def arrow_table(rows: Iterable[Mapping[str, Any]], columns: Features) -> pa.Table:
    """Returns rows as an Arrow table of these columns, JSON to the letter; an absent cell is null."""
    rows, schema = list(rows), columns.arrow_schema
    cells = {name: [row.get(name) for row in rows] for name in schema.names}
    if given := cells.get("chat_template_kwargs"):
        cells["chat_template_kwargs"] = [value or {} for value in given]  # TRL unpacks what stands there
    arrays = [_array(values, schema.field(name).type) for name, values in cells.items()]
    return pa.Table.from_arrays(arrays, schema=schema)


def dataset_of(rows: Iterable[Mapping[str, Any]], columns: Features) -> Dataset:
    """Returns rows as a data set in memory, as [`arrow_table`] does."""
    return Dataset(arrow_table(rows, columns), info=DatasetInfo(features=columns))


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    if isinstance(kind, pa.JsonType):
        return pa.array([None if value is None else as_json(value) for value in values], pa.string()).cast(kind)
    if pa.types.is_list(kind) and isinstance(kind.value_type, pa.JsonType):
        texts = [None if side is None else [as_json(message) for message in side] for side in values]
        return pa.array(texts, pa.list_(pa.string())).cast(kind)
    return pa.array(values, kind)


def normal_row(pair: Row, row: Row, fallback_id: str, source: str) -> Row:
    """Returns what a layout read of a row, completed and checked.

    Raises:
        DataError: If a cell is null or of the wrong type.
    """
    prompt = _conversation("prompt", pair["prompt"])
    sides = {name: _like(prompt, name, pair[name]) for name in ("chosen", "rejected")}
    other = pair.get("prompt_rejected")
    other = None if other is None else _conversation("prompt of the rejected side", other)
    if other is not None and isinstance(other, list) != isinstance(prompt, list):
        raise DataError("one prompt is text, the other a message list; use one form for both sides")
    template = {name: _template(name, row[name]) for name in TEMPLATE if name in row}

    named = row | {name: value for name, value in pair.items() if value is not None and value != ""}
    scores = {name: _scores(name, pair[name]) for name in SCORES if name in pair}
    rest = {"prompt": prompt, **sides, "prompt_rejected": other, **scores, **template}
    return _named(named, Chat.of(prompt, template) if template else prompt, fallback_id, source) | rest


def text_row(row: Row, fallback_id: str, source: str) -> Row | None:
    """Returns the normal form of a row of prompt, chosen and rejected alone, None where one is not plain text."""
    sides = prompt, chosen, rejected = row["prompt"], row["chosen"], row["rejected"]
    if not (type(prompt) is type(chosen) is type(rejected) is str):
        return None
    if any(side.lstrip()[:1] in ("[", "{") for side in sides):  # messages, it may be
        return None
    named = _named(row, prompt, fallback_id, source)
    named["prompt"], named["chosen"], named["rejected"] = sides
    return named


def _named(row: Row, prompt: Conversation, fallback_id: str, source: str) -> Row:
    """Returns the names and numbers of a row."""
    id, prompt_id, domain, of = row.get("id"), row.get("prompt_id"), row.get("domain"), row.get("source")
    named: Row = {
        "id": fallback_id if id is None or id == "" else str(id),
        "prompt_id": prompt_hash(prompt) if prompt_id is None or prompt_id == "" else str(prompt_id),
        "domain": "unknown" if domain is None or domain == "" else str(domain),
        "source": source if of is None or of == "" else str(of),
    }
    for name in NUMBERS:
        if name in row:
            named[name] = as_number(name, row[name])
    return named


def _template(name: str, value: Any) -> Any:
    """Returns a variable of the chat template, given as JSON or as its text; no kwargs are {}, as TRL needs them."""
    try:
        value = (parsed_json(value) if value.strip() else None) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is {value[:40]!r}; wanted JSON") from error
    wanted = list if name == "tools" else dict
    if not isinstance(value, wanted | None):
        raise DataError(f"{name} is of type {type(value).__name__} ({str(value)[:40]!r}); wanted a {wanted.__name__}")
    return {} if value is None and wanted is dict else value


def _scores(name: str, value: Any) -> list[Row] | None:
    """Returns criterion scores, given as an object or as they stand in the normal form, one entry a criterion."""
    scores = criterion_scores(name, value).items()
    named = [{"criterion": str(key), "score": as_number(f"{name} {key}", score)} for key, score in scores]
    return None if value is None else named


def criterion_scores(name: str, value: Any) -> dict[str, Any]:
    """Returns scores by criterion, given as such or as they stand in the normal form; none where null.

    Raises:
        DataError: If they are given otherwise; the message has their `name`.
    """
    if isinstance(value, list) and all(isinstance(entry, dict) and "criterion" in entry for entry in value):
        value = {entry["criterion"]: entry.get("score") for entry in value}
    if not isinstance(value, dict | None):
        raise DataError(f'{name} is {str(value)[:40]!r}; wanted scores by criterion, such as {{"usefulness": 0.8}}')
    return value or {}


def _conversation(name: str, value: Any) -> Conversation:
    if value is None:
        raise MissingCellError.of([name])
    return value if isinstance(value, str) else read_messages(name, value)


def _like(prompt: Conversation, name: str, value: Any) -> Conversation:
    """Returns a response in the form of its prompt: one assistant message where the prompt is a message list."""
    response = _conversation(name, value)
    if isinstance(prompt, list) and isinstance(response, str):
        return [{"role": "assistant", "content": response}]
    if isinstance(prompt, str) and isinstance(response, list):
        raise DataError(f"{name} is a message list but its prompt is a string; wanted one form for both")
    return response


def prompt_hash(prompt: Conversation) -> str:
    """Returns a hash of a prompt that is blind to case and spacing of its text.

    Whatever else its messages hold counts, and so do the tools and template variables of a [`~rmtrl.types.Chat`].
    """
    if isinstance(prompt, str):
        key = _plain(prompt)
    else:
        turns = [[message.get("role"), _plain(message_text(message)), *_beside(message)] for message in prompt]
        template = [canonical(value) for value in (getattr(prompt, name, None) for name in TEMPLATE) if value]
        key = json.dumps(turns + template, ensure_ascii=False)
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _beside(message: Mapping[str, Any]) -> list[str]:
    """Returns what a message holds beside role and text, as one string or none."""
    rest = {name: value for name, value in message.items() if name not in ("role", "content") and value}
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    if other := [part for part in parts if isinstance(part, dict) and "text" not in part]:
        rest["parts"] = other
    return [canonical(rest)] if rest else []
