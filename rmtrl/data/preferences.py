"""Reads preference data, in TRL's forms and in those of common public sets, into one normal form.

The normal form has the columns `id`, `prompt_id`, `domain`, `source`, `prompt`, `chosen` and `rejected`; the last
three are all strings or all message lists. `preference` (1: chosen wins, ½: tie, or a vote share), `weight` (votes),
`rating_gap` and `margin` stand beside them where the input has them, `prompt_rejected` where the two sides of a pair
answer different prompts.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value

from rmtrl.data.layouts import HUMAN, LAYOUTS, Layout, Row
from rmtrl.data.loading import load_rows
from rmtrl.errors import DataError
from rmtrl.types import Conversation

_NUMBERS = ("preference", "weight", "rating_gap", "margin")


def read_preferences(
    source: str | Path, *, split: str = "train", name: str | None = None, columns: Mapping[str, str] | None = None
) -> Dataset:
    """Returns the preference pairs of a file, a folder, a saved dataset or a hub set, in the normal form.

    Args:
        source (`str` or `Path`): A jsonl, json, parquet or csv file (also .gz), a folder of such files, a folder
            written by `save_to_disk`, or a hub id of the form `owner/name`.
        split (`str`): Split to read where the source has several; a single file is one split by any name.
        name (`str`, *optional*): Configuration of a hub set.
        columns (`Mapping[str, str]`, *optional*): Columns to rename before reading, new name to old name.

    Raises:
        DataError: If the source is missing, broken, empty or of no known form; the message names file and row.

    Example:

    ```python
    >>> pairs = read_preferences("pairs.jsonl", columns={"prompt": "question"})
    >>> pairs.column_names[:4]
    ['id', 'prompt_id', 'domain', 'source']
    ```
    """
    path = Path(source).expanduser()
    dataset = load_rows(source, split=split, name=name)
    try:
        return to_normal_form(dataset, columns, source=path.name if path.exists() else str(source))
    except UnicodeDecodeError as error:  # text is decoded as rows are read
        raise DataError(f"{source} is not UTF-8 text ({error.reason}); save it as UTF-8") from error


def to_normal_form(dataset: Dataset, columns: Mapping[str, str] | None = None, *, source: str = "unknown") -> Dataset:
    """Returns the pairs of `dataset` in the normal form; the form of the input is recognised by its columns.

    Accepts TRL's standard, conversational and implicit-prompt forms, the annotation form (`left`, `right`, `label`)
    and the public sets listed in `rmtrl.data.layouts.LAYOUTS`. `prompt + chosen` is the chosen text of the input,
    byte for byte. `id` falls back to the row number, `domain` to "unknown", `prompt_id` to a hash of the prompt
    without case and spacing.

    Args:
        dataset (`Dataset`): Pairs in any of the accepted forms.
        columns (`Mapping[str, str]`, *optional*): Columns to rename first, new name to old name.
        source (`str`): What to write into `source` where the input has no such column, and to call it in errors.

    Raises:
        DataError: If the set is empty, its columns fit no known form, or a cell is null or of the wrong type.

    Example:

    ```python
    >>> to_normal_form(Dataset.from_list([{"chosen": "The sky is blue.", "rejected": "The sky is green."}]))[0]
    {'id': '0', 'prompt_id': '…', 'prompt': 'The sky is', 'chosen': ' blue.', 'rejected': ' green.', …}
    ```
    """
    dataset = _renamed(dataset, columns or {}, source)
    needed, layout = _layout_of(dataset, source)
    if len(dataset) == 0:
        raise DataError(f"{source} holds no rows; a preference set needs at least one pair")
    conversational = isinstance(_normal_rows(dataset[0], 0, needed, layout, source)[0]["prompt"], list)

    def convert(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        normal = []
        for index, values in zip(indices, zip(*batch.values(), strict=True), strict=True):
            normal += _normal_rows(dict(zip(batch, values, strict=True)), index, needed, layout, source)
            if isinstance(normal[-1]["prompt"], list) != conversational:
                raise DataError(
                    f"{source}, row {index + 1}: text and message lists are mixed; use one form for all rows"
                )
        return {name: [row[name] for row in normal] for name in features}

    features = _features(conversational)
    # no cached result: datasets keys it by the name of our function, not by what this version of it does
    normal = dataset.map(
        convert, batched=True, with_indices=True, remove_columns=dataset.column_names, features=features,
        load_from_cache_file=False, desc="Reading pairs",
    )  # fmt: skip
    unused = [
        name
        for name in (*_NUMBERS, "prompt_rejected")
        if name not in dataset.column_names and normal.data.column(name).null_count == len(normal)
    ]
    return normal.remove_columns(unused)


def last_turn_only(dataset: Dataset) -> Dataset:
    """Returns the pairs with each prompt cut to its last human turn; ids and `prompt_id` stay as they were.

    Transcripts are cut to the last `Human:` turn, message lists to the last user message and what follows it, with a
    leading system message kept. A prompt without such a turn stays whole.

    Args:
        dataset (`Dataset`): Pairs in the normal form.

    Example:

    ```python
    >>> last_turn_only(pairs)[0]["prompt"]
    '\\n\\nHuman: And in French?\\n\\nAssistant:'
    ```
    """

    def cut(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"prompt": [_last_turn(prompt) for prompt in batch["prompt"]]}

    options = {"features": dataset.features, "load_from_cache_file": False, "desc": "Cutting prompts"}
    return dataset.map(cut, batched=True, **options)


def _last_turn(prompt: Conversation) -> Conversation:
    if isinstance(prompt, str):
        return prompt[max(prompt.rfind(HUMAN), 0) :]
    users = [index for index, message in enumerate(prompt) if message["role"] == "user"]
    start = users[-1] if users else 0
    return [m for m in prompt[:start][:1] if m["role"] in ("system", "developer")] + prompt[start:]


def _layout_of(dataset: Dataset, source: str) -> tuple[list[str], Layout]:
    for columns, layout in LAYOUTS.values():
        if columns <= set(dataset.column_names):
            return sorted(columns | ({"prompt"} & set(dataset.column_names))), layout
    forms = "; ".join(f"{name} ({', '.join(sorted(columns))})" for name, (columns, _) in LAYOUTS.items())
    found = ", ".join(dataset.column_names) or "none"
    raise DataError(f"{source}: columns {found} fit no known form: {forms}; rename yours with --map new=old")


def _renamed(dataset: Dataset, columns: Mapping[str, str], source: str) -> Dataset:
    missing = [old for old in columns.values() if old not in dataset.column_names]
    if missing:
        found = ", ".join(dataset.column_names)
        raise DataError(f"{source} has no column {', '.join(missing)} to rename; it has {found} (--map takes new=old)")
    replaced = [new for new in columns if new in dataset.column_names and new not in columns.values()]
    return dataset.remove_columns(replaced).rename_columns({old: new for new, old in columns.items()})


# ---- rows of the normal form


def _features(conversational: bool) -> Features:
    text = [{"role": Value("string"), "content": Value("string")}] if conversational else Value("string")
    names = dict.fromkeys(("id", "prompt_id", "domain", "source"), Value("string"))
    sides = dict.fromkeys(("prompt", "chosen", "rejected", "prompt_rejected"), text)
    return Features({**names, **sides, **dict.fromkeys(_NUMBERS, Value("float64"))})


def _normal_rows(row: Row, index: int, needed: list[str], layout: Layout, source: str) -> list[Row]:
    try:
        null = [name for name in needed if row[name] is None]
        if null:
            raise DataError(f"column {', '.join(null)} is null; fill the cell or leave the row out")
        pairs = layout(row)
        return [
            _normal(pair, row, str(index) if len(pairs) == 1 else f"{index}-{k}", source)
            for k, pair in enumerate(pairs)
        ]
    except (DataError, TypeError, KeyError, ValueError) as error:
        said = error if isinstance(error, DataError) else f"cell of the wrong type ({type(error).__name__}: {error})"
        raise DataError(f"{source}, row {index + 1}: {said}") from error


def _normal(pair: Row, row: Row, fallback_id: str, source: str) -> Row:
    prompt = _conversation("prompt", pair["prompt"])
    sides = {name: _like(prompt, name, pair[name]) for name in ("chosen", "rejected")}
    other = pair.get("prompt_rejected")

    def first_of(name: str, fallback: str | None) -> str | None:
        found = [value for value in (pair.get(name), row.get(name)) if value is not None and value != ""]
        return str(found[0]) if found else fallback

    return {
        "id": first_of("id", fallback_id),
        "prompt_id": first_of("prompt_id", None) or _prompt_hash(prompt),
        "domain": first_of("domain", "unknown"),
        "source": first_of("source", source),
        "prompt": prompt,
        **sides,
        "prompt_rejected": None if other is None else _conversation("prompt of the rejected side", other),
        **{name: _number(name, pair.get(name, row.get(name))) for name in _NUMBERS},
    }


def _conversation(name: str, value: Any) -> Conversation:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(_is_message(message) for message in value):
        return [{"role": message["role"], "content": message["content"]} for message in value]
    raise DataError(f"{name} is {_named(value)}; wanted a string or a list of messages with role and content as text")


def _is_message(value: Any) -> bool:
    # a null is of the right type: the validator counts it as a missing field
    return isinstance(value, dict) and all(isinstance(value.get(key, 0), str | None) for key in ("role", "content"))


def _like(prompt: Conversation, name: str, value: Any) -> Conversation:
    """Returns a response in the form of its prompt: one assistant message where the prompt is a message list."""
    response = _conversation(name, value)
    if isinstance(prompt, list) and isinstance(response, str):
        return [{"role": "assistant", "content": response}]
    if isinstance(prompt, str) and isinstance(response, list):
        raise DataError(f"{name} is a message list but its prompt is a string; wanted one form for both")
    return response


def _named(value: Any) -> str:
    return "null" if value is None else f"of type {type(value).__name__} ({str(value)[:40]!r})"


def _number(name: str, value: Any) -> float | None:
    if value is None or value == "":
        return None
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} is {_named(value)}; wanted a number") from error


def _prompt_hash(prompt: Conversation) -> str:
    def plain(text: str | None) -> str:
        return " ".join((text or "").casefold().split())

    if isinstance(prompt, str):
        key = plain(prompt)
    else:
        key = json.dumps([[message["role"], plain(message["content"])] for message in prompt], ensure_ascii=False)
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:16]
