"""What a benchmark is: a declaration of files, columns, parts and weights, such as those of `benchmarks.yaml`.

Rows are read into items, scores of an item's candidates become credits in parts, and means of parts become figures.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import numpy as np
from numpy.typing import NDArray

from rmtrl.data.loading import load_rows
from rmtrl.data.normal_form import prompt_hash
from rmtrl.errors import DataError
from rmtrl.evaluation.scoring import SIDES, joined
from rmtrl.io import TABLES, read_sound_rows, suffix_of
from rmtrl.types import Chat, Conversation, Message

Floats = NDArray[np.float64]

Scores = Sequence[Floats | None]
"""Scores of each item's candidates, in their order; `None` where the item could not be scored."""

Weights = Mapping[str, float] | Sequence[str]
"""Parts of a section: with the weight of each, or weighted by what they hold."""

_FORMATS = (".json", ".jsonl", ".ndjson", ".parquet", *TABLES)


@dataclass(frozen=True)
class Item:
    """One row of a benchmark.

    Args:
        id (`str`): Name of the row, of which the benchmark has one.
        prompt_id (`str`): Prompt; items of one prompt are resampled together.
        subset (`str`): The smallest part that the benchmark reports.
        candidates (`tuple[Conversation, ...]`): Whole conversations, prompt included, in the order of their scores.
        facts (`Mapping[str, Any]`): What the rule needs to know besides, such as which candidates are correct.
        excluded (`str`): Why the rule leaves the row out, such as a tie of the annotators; empty where it counts. Such
            a row needs no score.
        own_id (`str`): Name of the row in the benchmark's own files, where that is not `id`; rows may share it.
    """

    id: str
    prompt_id: str
    subset: str
    candidates: tuple[Conversation, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    excluded: str = ""
    own_id: str = ""


class Credit(NamedTuple):
    """What one item adds to the mean of one part, such as a subset; NaN where the item was not scored."""

    part: str
    prompt_id: str
    value: float


@dataclass(frozen=True)
class Figure:
    """A mean of credits, or an average of such means.

    Args:
        value (`float` or `(R,)` array): The number; or many, the sample's first.
        n (`int`): Credits or items behind it.
    """

    value: Any
    n: int


@dataclass(frozen=True)
class Figures:
    """The benchmark's own aggregates, from the means of its parts.

    Args:
        overall ([`Figure`], *optional*): The number that the benchmark reports; None where no part has a mean.
        sections (`Mapping[str, Figure]`): Its sections, those without a mean left out.
        others (`Mapping[str, Figure]`): Further averages that readers compare with, by name.
    """

    overall: Figure | None
    sections: Mapping[str, Figure]
    others: Mapping[str, Figure] = field(default_factory=dict)


def average(figures: Iterable[Figure | None], weights: Iterable[float] | None = None) -> Figure | None:
    """Returns Σ w · value / Σ w with the summed n, over the figures that exist; equal weights where none are given.

    Example:

    ```python
    >>> average([Figure(1.0, 30), Figure(0.5, 10)], weights=[30, 10])
    Figure(value=0.875, n=40)
    ```
    """
    figures = list(figures)
    shares = [1.0] * len(figures) if weights is None else weights
    present = [(share, figure) for share, figure in zip(shares, figures, strict=True) if figure is not None]
    if not present:
        return None
    total = sum(share * figure.value for share, figure in present)
    return Figure(total / sum(share for share, _ in present), sum(figure.n for _, figure in present))


def pooled(parts: Mapping[str, Figure], names: Iterable[str]) -> Figure | None:
    """Returns the mean over all credits of the named parts (the micro average), those absent left out."""
    present = [parts[name] for name in names if name in parts]
    return average(present, [figure.n for figure in present])


def named(figures: Mapping[str, Figure | None]) -> dict[str, Figure]:
    """Returns the figures that exist."""
    return {name: figure for name, figure in figures.items() if figure is not None}


class Row(NamedTuple):
    """A row of a benchmark's files.

    Args:
        place (`str`): Where it stands, for messages.
        cells (`dict[str, Any]`): Its columns.
        of (`str`): The set that its file or split is; empty where the benchmark has no sets.
        number (`int`): Its number within the set, from 1.
    """

    place: str
    cells: dict[str, Any]
    of: str = ""
    number: int = 0

    def cell(self, name: str) -> Any:
        """Returns a cell that the benchmark needs.

        Raises:
            DataError: If the row has no such column, or null in it.
        """
        if self.cells.get(name) is None:
            has = ", ".join(key for key, value in self.cells.items() if value is not None) or "nothing"
            raise DataError(f"{self.place} has no {name}; it has {has[:200]}")
        return self.cells[name]

    def wrong(self, name: str, wanted: str) -> DataError:
        """Returns the error of a cell that is not what is wanted."""
        value = self.cells[name]
        shown = value if isinstance(value, str) else str(value)[:40]
        return DataError(f"{self.place}: {name} is {shown!r}; {wanted}")

    def text(self, name: str) -> str:
        """Returns a cell that must be text."""
        value = self.cell(name)
        if not isinstance(value, str):
            raise self.wrong(name, "wanted text")
        return value

    def listed(self, name: str, kind: Any, wanted: str) -> list[Any]:
        """Returns a cell that must be a list of values of one kind."""
        value = self.cell(name)
        if not isinstance(value, list) or not all(isinstance(each, kind) for each in value):
            raise self.wrong(name, f"wanted a list of {wanted}")
        return value

    def texts(self, name: str, count: int | None = None) -> list[str]:
        """Returns a cell that must be a list of texts, of `count` of them where that is given."""
        value = self.listed(name, str, "texts")
        if not value or count not in (None, len(value)):
            raise DataError(f"{self.place}: {name} holds {len(value)} texts; wanted {count or 'one or more'}")
        return value

    def answer(self, name: str) -> Conversation:
        """Returns a cell that must be text or messages; keys that are null for other rows' sake are left out."""
        value = self.cell(name)
        if isinstance(value, str):
            return value
        if not isinstance(value, list) or not value or not all(map(_is_message, value)):
            raise self.wrong(name, "wanted text or messages with role and content")
        return [{key: own for key, own in turn.items() if own is not None or key == "content"} for turn in value]

    def prompt(self, name: str = "prompt") -> list[Message]:
        """Returns a prompt as messages, one user turn where it is text, with the row's tools and variables."""
        value = self.answer(name)
        turns = [{"role": "user", "content": value}] if isinstance(value, str) else value
        return Chat.of(turns, self.cells)  # type: ignore[return-value]


def _is_message(turn: Any) -> bool:
    if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
        return False
    return isinstance(turn.get("content", 0), str | list | None)


def file_rows(path: Path, of: str = "") -> list[Row]:
    """Returns the rows of one file: a JSON list, JSON lines, parquet or CSV.

    Raises:
        DataError: If there is no such file, or a line of it is broken.
    """
    if not path.is_file():
        raise DataError(f"no such file: {path}; give a benchmark as NAME=PATH")
    if suffix_of(path) == ".parquet":
        return split_rows(path, of=of)
    return [Row(place, cells, of) for place, cells in read_sound_rows(path, wanted="give the benchmark's own file")]


def split_rows(source: str | Path, split: str = "train", name: str | None = None, *, of: str = "") -> list[Row]:
    """Returns the rows of a split on the hub, or of a folder that was downloaded from there or saved."""
    rows = load_rows(source, split=split, name=name).to_list()
    return [Row(f"{source} row {number}", cells, of) for number, cells in enumerate(rows, 1)]


def folder_files(path: Path) -> list[Path]:
    """Returns the data files of a folder and of the folders in it, sorted; `path` itself where it is a file.

    Raises:
        DataError: If there is neither, or the folder holds no data.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"no such file or folder: {path}; give a benchmark as NAME=PATH")
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and suffix_of(file) in _FORMATS]
    if not files:
        raise DataError(f"{path} holds no file of a known format; wanted {', '.join(_FORMATS)}, each also .gz")
    return files


def named_after(file: Path, names: Mapping[str, str], folders: int = 1) -> str | None:
    """Returns the set whose name a file, or one of the `folders` it lies in, is named after; None where none is.

    Example:

    ```python
    >>> named_after(Path("data/PPE-MBPP-Plus-Best-of-K/train.jsonl"), {"math": "MATH", "code": "MBPP-Plus"})
    'code'
    ```
    """
    places = (file.name, *(folder.name for folder in file.parents[:folders]))
    return next((of for place in places for of, name in names.items() if _letters(name) in _letters(place)), None)


def _letters(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


class Benchmark:
    """A benchmark: how its rows are read and how its scores are turned into figures.

    As it stands, it holds rows of pairs: an item is right where its correct candidate scores above every other, and
    wrong on a tie; a section is a weighted mean of subsets. Subclasses replace a method where theirs is another rule.
    [`rmtrl.evaluation.benchmarks.results.result_of`] adds intervals, bounds and what is missing.

    Args:
        declared: What is set in place of the attributes of the class; `rmtrl/evaluation/benchmarks.yaml` says what
            each is for.
    """

    name: str
    rule: str  # the rule in one sentence, with the version of the official code
    ties: str = "a tie is wrong"
    # What decides who is right. Benchmarks of one kind say nothing of a shift of domain:
    # "instruction following", "verified correctness", "human preference", "safety", "mixed" (several of these)
    kind: str
    source: str
    expected: Mapping[str, int] = {}
    takes_failed: bool = False

    # where rows are
    hub: Mapping[str, Sequence[str]] = {}
    by_name: bool = False

    # columns of a row
    id: str = "id"
    prompt: str = "prompt"
    answers: Sequence[str] = SIDES
    subset: str = "subset"
    starts: Mapping[str, str] = {}
    correct: tuple[str, Mapping[str, int | str]] = ("", {})
    facts: Sequence[str] = ()

    # figures
    sections: Mapping[str, Weights] = {}
    section_weights: Mapping[str, float] = {}
    overall: str = "sections"
    others: Mapping[str, str | Sequence[str]] = {}
    lowest: Mapping[str, float] = {}  # the least credit in a part, where it is not 0; the most is 1

    def __init__(self, **declared: Any) -> None:
        if unknown := sorted(declared.keys() - get_type_hints(type(self)).keys()):
            raise DataError(f"the benchmark {declared.get('name')} declares {', '.join(unknown)}; it has no such key")
        vars(self).update(declared)

    def read(self, path: str | None = None) -> list[Item]:
        """Returns the items from a local file or folder in the original layout, or from the hub.

        Raises:
            DataError: If the source is missing or a row lacks what the benchmark needs; the message names the row.
        """
        items: list[Item] = []
        numbers, ids = Counter[str](), Counter[str]()
        for row in self.hub_rows() if path is None else self.local_rows(Path(path).expanduser()):
            numbers[row.of] += 1
            item = self.item(row._replace(number=numbers[row.of]))
            ids[item.id] += 1
            items.append(item if ids[item.id] == 1 else self.repeated(row, item, ids[item.id]))
        return items

    def hub_rows(self) -> Iterable[Row]:
        """Yields the rows on the hub."""
        for of, place in self.hub.items():
            try:
                yield from split_rows(*place, of=of)
            except DataError as error:
                why = str(error).rpartition("from the hub: ")[2]
                said = f"{place[0]} cannot be loaded from the hub ({why}); download it and give NAME=PATH"
                raise DataError(said) from error

    def local_rows(self, path: Path) -> Iterable[Row]:
        """Returns the rows of a file, of the split of a folder, or of its files by what they are named after."""
        if path.is_file() and "" in self.hub or not path.exists():
            return file_rows(path)
        return self._named_rows(path) if self.by_name else split_rows(path, self.hub[""][1])

    def _named_rows(self, path: Path) -> Iterable[Row]:
        names, found = {of: place[1] for of, place in self.hub.items()}, dict[str, Path]()
        for file in folder_files(path):
            of = named_after(file, names, folders=len(names) > 1)
            if of is not None and found.setdefault(of, file) != file:
                raise DataError(f"{file} is another file of the set {of or names[of]}; give one file a set")
        if not found or ("" in names and "" not in found):
            wanted = names.get("") or f"one of {', '.join(names)}"
            raise DataError(f"{path} is or holds no file named after {wanted}; give NAME=PATH of such a file")
        return (row for of in sorted(found, key=bool) for row in file_rows(found[of], of))

    def item(self, row: Row) -> Item:
        """Returns the item of a row."""
        prompt, answers, correct = row.prompt(self.prompt), map(row.answer, self.answers), self._correct(row)
        right, why = (0, correct) if isinstance(correct, str) else (correct, "")
        facts = {"correct": (right,), **{name: row.cells.get(name) for name in self.facts}}
        return replace(made_item(self.id_of(row), prompt, self.subset_of(row), answers, facts), excluded=why)

    def id_of(self, row: Row) -> str:
        """Returns the name of a row: its id, or its number where it is of a set."""
        return f"{row.of}/{row.number}" if row.of else str(row.cell(self.id))

    def repeated(self, row: Row, item: Item, times: int) -> Item:
        """Returns an item whose id stands above too: with a mark, since a published file is not ours to mend."""
        return replace(item, id=f"{item.id}#{times}")

    def subset_of(self, row: Row) -> str:
        """Returns the subset of a row."""
        subset = row.of or row.text(self.subset)
        if self.starts:
            subset = next((own for start, own in self.starts.items() if subset.startswith(start)), "")
            if not subset:
                raise row.wrong(self.subset, f"wanted one that starts with {', '.join(self.starts)}")
        if self.expected and subset not in self.expected:
            raise DataError(f"{row.place}: {self.name} has no subset {subset!r}, but {', '.join(self.expected)}")
        return subset

    def _correct(self, row: Row) -> int | str:
        """Returns which answer is right, or why the row is left out."""
        column, answers = self.correct
        if not column:
            return 0
        if (value := str(row.cell(column))) not in answers:
            *others, last = answers
            raise row.wrong(column, f"wanted {', '.join(others)} or {last}")
        return answers[value]

    def credits(self, items: Sequence[Item], scores: Scores) -> list[Credit]:
        """Returns the credits that the scores earn: items without scores give credits of value NaN."""
        return [
            Credit(part, item.prompt_id, math.nan if own is None else value)
            for item, own in zip(items, scores, strict=True)
            for part, value in self.earned(item, np.zeros(len(item.candidates)) if own is None else own)
        ]

    def earned(self, item: Item, scores: Floats) -> Iterable[tuple[str, float]]:
        """Returns the parts that an item enters, whatever its scores, and its credit in each."""
        correct, own = item.facts["correct"], scores.tolist()
        wrong = [score for index, score in enumerate(own) if index not in correct]
        return [(self.part_of(item), float(max(own[index] for index in correct) > max(wrong)))]

    def part_of(self, item: Item) -> str:
        """Returns the part that an item enters: its subset, or `subset/…` where that has parts."""
        return item.subset

    def figures(self, parts: Mapping[str, Figure]) -> Figures:
        """Returns the aggregates from the mean and the number of credits of every part that has a credit.

        A mean is a number, or an array whose first is the sample's. The figures are sums of means, none with a
        negative weight.
        """
        sections = named({name: _section(parts, weights) for name, weights in self.sections.items()})

        def mean(of: str | Sequence[str]) -> Figure | None:
            if of == "parts":
                return average(parts.get(name) for name in self.expected)
            if of == "rows":
                return pooled(parts, parts)
            own = [name for name in sections if of == "sections" or name in of]
            return average([sections[name] for name in own], [self.section_weights.get(name, 1.0) for name in own])

        return Figures(mean(self.overall), sections, named({name: mean(of) for name, of in self.others.items()}))

    def is_subset(self, part: str) -> bool:
        """Returns whether a part is reported among the subsets, rather than only used by the figures."""
        return True


def made_item(
    id: str, prompt: list[Message], subset: str, answers: Iterable[Conversation], facts: Mapping[str, Any] = {},
    own_id: str = "",
) -> Item:  # fmt: skip
    """Returns the item of a prompt and its answers; items of one prompt have one `prompt_id`."""
    candidates = tuple(joined(prompt, answer) for answer in answers)
    return Item(id, prompt_hash(prompt), subset, candidates, facts, own_id=own_id)


def _section(parts: Mapping[str, Figure], weights: Weights) -> Figure | None:
    if isinstance(weights, Mapping):
        return average([parts.get(name) for name in weights], weights.values())
    return pooled(parts, [part for name in weights for part in parts if part == name or part.startswith(f"{name}/")])
