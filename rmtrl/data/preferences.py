"""Reads preference data, in TRL's forms and in those of common public sets, into one normal form.

The normal form has the columns `id`, `prompt_id`, `domain`, `source`, `prompt`, `chosen` and `rejected`; the last
three are all strings or all message lists. `preference` (1: chosen wins, ½: tie, or a vote share), `weight` (votes),
`rating_gap` and `margin` stand beside them where the input has them, so do `chosen_scores` and `rejected_scores` (0–1
by criterion, as a list of `criterion` and `score`), `prompt_rejected` where the two sides of a pair
answer different prompts, `fault` where rows that cannot be read are kept. Messages keep every field, as JSON; `tools`
and `chat_template_kwargs` go with their row, and so does every column that no form reads.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, ReadInstruction, config
from tqdm.auto import tqdm

from rmtrl.data.messages import is_filled, without_fillings
from rmtrl.data.reading.labels import label_notes
from rmtrl.data.reading.layouts import is_pair
from rmtrl.data.reading.loading import load_rows, text_files
from rmtrl.data.reading.normal_form import arrow_table
from rmtrl.data.reading.prompts import HUMAN, TALKS
from rmtrl.data.reading.row_reader import Facts, Faulty, Reread, RowReader
from rmtrl.data.reading.writing import write_normal
from rmtrl.errors import DataError, UsageError
from rmtrl.io import LARGE_ROWS, RawRow, read_rows, table_columns
from rmtrl.types import Conversation

logger = logging.getLogger(__name__)


def read_preferences(
    source: str | Path,
    *,
    split: str = "train",
    name: str | None = None,
    columns: Mapping[str, str] | None = None,
    faulty: Faulty = "raise",
) -> Dataset:
    """Returns the preference pairs of a file, a folder, a saved dataset or a hub set, in the normal form.

    JSON and CSV files are read row by row: a broken row is one row, whatever is wrong with it. A JSON file holds one
    object a line, or one document: a list of rows or an object that holds them.

    Args:
        source (`str` or `Path`): A jsonl, json, parquet or csv file (also .gz), a folder of such files, a folder
            written by `save_to_disk`, or a hub id of the form `owner/name`.
        split (`str`): Split to read where the source has several; a single file is one split by any name.
        name (`str`, *optional*): Configuration of a hub set.
        columns (`Mapping[str, str]`, *optional*): Columns to rename before reading, new name to old name.
        faulty (`str`): What becomes of a row that cannot be read: `"raise"` stops there; `"keep"` returns it as a
            row of nulls whose `fault` says why and where, for [`~rmtrl.data.validation.validate`] to count. It also
            says what is to be said of the file, in `info.description`, which else is logged as a warning.

    Raises:
        DataError: If the source is missing, unreadable as a whole, empty or of no known form, or under `"raise"` has
            a row that cannot be read; the message names file and row.

    Example:

    ```python
    >>> pairs = read_preferences("pairs.jsonl", columns={"prompt": "question"})
    >>> pairs.column_names[:4]
    ['id', 'prompt_id', 'domain', 'source']
    ```
    """
    files = text_files(source, split=split, name=name)
    if not files:
        called = Path(source).name if Path(source).expanduser().exists() else str(source)
        return to_normal_form(load_rows(source, split=split, name=name), columns, source=called, faulty=faulty)
    called = Path(source).expanduser().name.encode(errors="replace").decode()
    state = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    path = _cache_file(state, columns, called, faulty)
    pairs = _normal_form(lambda: read_rows(files, is_row=is_pair), columns, source=called, faulty=faulty, path=path)
    return _sliced(pairs, split) if "[" in split else pairs


def to_normal_form(
    dataset: Dataset,
    columns: Mapping[str, str] | None = None,
    *,
    source: str = "unknown",
    faulty: Faulty = "raise",
) -> Dataset:
    """Returns the pairs of `dataset` in the normal form; the form of the input is recognised by its columns.

    Accepts TRL's standard, conversational and implicit-prompt forms, the annotation form (`left`, `right`, `label`)
    and the public sets listed in `rmtrl.data.reading.layouts.LAYOUTS`. `prompt + chosen` is the chosen text of the
    input, byte for byte. `id` falls back to the row number, `domain` to "unknown", `prompt_id` to a hash of the prompt
    without case and spacing. Where text and message lists are mixed, rows of the rarer form cannot be read.

    Args:
        dataset (`Dataset`): Pairs in any of the accepted forms.
        columns (`Mapping[str, str]`, *optional*): Columns to rename first, new name to old name.
        source (`str`): What to write into `source` where the input has no such column, and to call it in errors.
        faulty (`str`): What becomes of a row that cannot be read, as in [`read_preferences`].

    Raises:
        DataError: If the set is empty or its columns fit no known form, or under `"raise"` if a cell is null or of
            the wrong type.

    Example:

    ```python
    >>> to_normal_form(Dataset.from_list([{"chosen": "The sky is blue.", "rejected": "The sky is green."}]))[0]
    {'id': '0', 'prompt_id': '…', 'prompt': 'The sky is', 'chosen': ' blue.', 'rejected': ' green.', …}
    ```
    """

    filled = {name: feature for name, feature in dataset.features.items() if name in TALKS and is_filled(feature)}

    def told(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return batch | {name: without_fillings(batch[name], [own]) for name, own in filled.items()}

    def rows() -> Iterator[RawRow]:
        batches = map(told, dataset.with_format(None).iter(1000))
        cells = (dict(zip(batch, row, strict=True)) for batch in batches for row in zip(*batch.values(), strict=True))
        shown = tqdm(cells, "Reading pairs", len(dataset), disable=len(dataset) < LARGE_ROWS)
        return ((f"row {number}", row) for number, row in enumerate(shown, 1))

    # what is held in memory stays there
    path = _cache_file(dataset._fingerprint, columns, source, faulty) if dataset.cache_files else None
    try:
        return _normal_form(rows, columns, source=source, faulty=faulty, path=path)
    except UnicodeDecodeError as error:  # text is decoded as rows are read
        raise DataError(f"{source} is not UTF-8 text ({error.reason}); save it as UTF-8") from error


def _cache_file(*state: object) -> Path:
    """Returns where the normal form of a source in this state is kept; it is written anew at every reading."""
    return Path(config.HF_DATASETS_CACHE) / "rmtrl" / f"{hashlib.sha256(repr(state).encode()).hexdigest()[:16]}.arrow"


def _normal_form(
    rows: Callable[[], Iterator[RawRow]],
    columns: Mapping[str, str] | None,
    *,
    source: str,
    faulty: Faulty,
    path: Path | None,
) -> Dataset:
    if faulty not in ("raise", "keep"):
        raise UsageError(f"faulty is {faulty!r}; wanted 'raise' or 'keep'")
    facts, pairs = Facts(), None
    while pairs is None:
        reader = RowReader(source, columns or {}, faulty, facts)
        try:
            pairs = write_normal(reader, rows(), path)
        except Reread as known:
            facts = known.facts
            continue
        facts = reader.found()
        pairs = pairs if replace(facts, kinds={}) == reader.used() else None
    notes = _notes(reader)
    if faulty == "keep":
        pairs.info.description = "\n".join(notes)
    else:
        for note in notes:
            logger.warning(note)
    return pairs


def _notes(reader: RowReader) -> list[str]:
    """Returns what a person would not expect: prompts that stand in no column, and text that nothing reads."""
    notes = label_notes(reader.source, reader.sides, reader.judged)
    if reader.n_invented and not reader.facts.texts:
        notes.append(f"{reader.source} has no prompts: what both sides of a pair begin with is taken for the prompt")
    if reader.texts:
        unread = ", ".join(sorted(reader.texts))
        notes.append(f"{reader.source}, unread columns: {unread} (text; --map prompt=COLUMN where it is the prompt)")
    return notes


def _sliced(pairs: Dataset, split: str) -> Dataset:
    name = split.split("[")[0]
    try:
        (part,) = ReadInstruction.from_spec(split).to_absolute({name: len(pairs)})
    except (AssertionError, ValueError) as error:
        raise UsageError(f"got split {split}; wanted one slice such as {name}[:1000] or {name}[:10%]") from error
    return pairs.select(range(*slice(part.from_, part.to).indices(len(pairs))))


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

    column = Features({"prompt": dataset.features["prompt"]})

    def cut(table: pa.Table) -> pa.Table:
        prompts = table_columns(table.select(["prompt"]))["prompt"]
        cut = arrow_table([{"prompt": _last_turn(prompt)} for prompt in prompts], column)
        return table.set_column(table.column_names.index("prompt"), "prompt", cut["prompt"])

    options = {"features": dataset.features, "load_from_cache_file": False, "desc": "Cutting prompts"}
    return dataset.with_format("arrow").map(cut, batched=True, **options).with_format(None)


def _last_turn(prompt: Conversation | None) -> Conversation | None:
    if prompt is None:  # a row that could not be read
        return None
    if isinstance(prompt, str):
        return prompt[max(prompt.rfind(HUMAN), 0) :]
    users = [index for index, message in enumerate(prompt) if message.get("role") == "user"]
    start = users[-1] if users else 0
    return [m for m in prompt[:start][:1] if m.get("role") in ("system", "developer")] + prompt[start:]
