"""Splits preference pairs by prompt, so that no prompt is both trained on and measured on.

Prompts that are nearly the same count as one where the pairs have the column `cluster_id`, which
[`rmtrl.data.clusters.with_clusters`] adds.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from datasets import Dataset
from numpy.typing import NDArray

from rmtrl.errors import DataError, SplitLeakageError, UsageError

SPLITS = ("train", "validation", "calibration", "test")


@dataclass(frozen=True)
class Splits:
    """Sets of pairs without a prompt in common.

    Args:
        train (`Dataset`): What the model learns from.
        validation (`Dataset`): What checkpoints and early stopping are chosen on.
        calibration (`Dataset`): What calibrators are fitted on.
        test (`Dataset`): What figures are reported on.
        sealed (`Dataset`, *optional*): What is opened for a final figure only, each time counted.
        spillover (`Dataset`, *optional*): Domains that the other sets have not, to measure what carries over.
    """

    train: Dataset
    validation: Dataset
    calibration: Dataset
    test: Dataset
    sealed: Dataset | None = None
    spillover: Dataset | None = None

    def as_dict(self) -> dict[str, Dataset]:
        """Returns the splits that there are by name, in the order of the fields."""
        sets = {name: getattr(self, name) for name in (*SPLITS, "sealed", "spillover")}
        return {name: dataset for name, dataset in sets.items() if dataset is not None}

    def sizes(self) -> dict[str, int]:
        """Returns the rows of each split."""
        return {name: len(dataset) for name, dataset in self.as_dict().items()}

    def overlap(self) -> dict[str, int]:
        """Returns how many prompts, or clusters of prompts, every two splits share (`"train/test"`); all are 0."""
        return {pair: len(values) for pair, values in _shared(self.as_dict()).items()}


def make_splits(
    dataset: Dataset,
    *,
    ratios: tuple[float, float, float, float] = (0.7, 0.1, 0.1, 0.1),
    stratify: Literal["domain"] | None = "domain",
    seed: int = 0,
    train_size: int | None = None,
    sealed: float = 0.0,
    holdout_domains: Collection[str] = (),
) -> Splits:
    """Returns train, validation, calibration and test sets; all rows of a prompt are in one of them.

    A prompt is a `prompt_id`, or, where the pairs have that column, a `cluster_id` (near-duplicates are one prompt).
    Within a domain, prompts are ordered by a hash of (seed, prompt_id) and each goes to the split that is furthest
    below its share of the rows so far; what a domain leaves over is made up in the next. So every domain and the whole
    are within about one prompt's rows of the ratios, even where a domain has a single prompt. Unlike scikit-learn's
    StratifiedGroupKFold, which shuffles positions and knows only equal folds, the result is the same on every machine
    and for every order of the rows.

    Args:
        dataset (`Dataset`): Pairs in the normal form.
        ratios (`tuple[float, ...]`): Shares of train, validation, calibration and test, with sum 1. A share of 0
            leaves that split empty: `(0.8, 0.0, 0.0, 0.2)` is the 80/20 split.
        stratify (`str`, *optional*): `"domain"` to have every domain in proportion in each split, `None` for not.
        seed (`int`): Another seed orders the prompts otherwise.
        train_size (`int`, *optional*): Rows to train on; the rest of train's share joins test. Whole prompts are
            taken, in the order of their hashes, so train has exactly this many rows where prompts have one row each.
        sealed (`float`): Share of the rows set aside first, as a fifth split; the ratios are shares of the rest.
        holdout_domains (`Collection[str]`): Domains that none of these splits may hold; their rows, with every row of
            a prompt that has one of them, are the split `spillover`.

    Raises:
        UsageError: If the ratios are not four shares with sum 1, or `sealed` is not a share below 1.
        DataError: If there are too few prompts to fill the splits, fewer rows than `train_size`, or a domain to hold
            out does not occur.

    Example:

    ```python
    >>> splits = make_splits(pairs, ratios=(0.4, 0.2, 0.2, 0.2), seed=0)
    >>> splits.sizes()
    {'train': 16, 'validation': 8, 'calibration': 8, 'test': 8}
    ```
    """
    check_dataset(dataset)
    if len(ratios) != len(SPLITS) or min(ratios) < 0 or not math.isclose(sum(ratios), 1, abs_tol=1e-6):
        raise UsageError(f"got ratios {tuple(ratios)}; wanted four shares ({', '.join(SPLITS)}) with sum 1")
    if not 0 <= sealed < 1:
        raise UsageError(f"got sealed {sealed}; wanted a share of the rows from 0 to below 1")
    shares = np.array([*((1 - sealed) * ratio for ratio in ratios), sealed])
    rows = pd.DataFrame({"group": groups_of(dataset), "domain": _column(dataset, stratify) if stratify else ""})
    held = set()
    if holdout_domains:
        domains = pd.Series(_column(dataset, "domain"))
        held = set(rows.group[domains.isin(_held_out(domains, holdout_domains))])
    # a prompt of several domains counts for the first by name, whatever the order of rows
    prompts = rows[~rows.group.isin(held)].groupby("group").domain.agg(n="size", domain="min")
    prompts["place"] = [seeded_hash(seed, group) for group in prompts.index]
    prompts = prompts.sort_values(["domain", "place"])
    home = _assigned(prompts, shares)
    if train_size is not None:
        home |= _beyond(train_size, prompts[[home[group] == 0 for group in prompts.index]].sort_values("place"))
    filled = set(home.values())
    empty = [name for index, name in enumerate((*SPLITS, "sealed")) if shares[index] > 0 and index not in filled]
    if empty:
        wanted = math.ceil(1 / min(shares[shares > 0]))
        kind = "clusters of near-duplicate prompts" if group_column(dataset) == "cluster_id" else "prompts"
        raise DataError(
            f"{len(prompts)} {kind} leave {', '.join(empty)} empty; wanted about {wanted}, or other ratios"
        )
    place = np.array([home.get(group, 5) for group in rows.group])
    train, validation, calibration, test, closed, spilled = (
        dataset.select(np.flatnonzero(place == k)) for k in range(6)
    )
    return Splits(
        train, validation, calibration, test, closed if sealed else None, spilled if holdout_domains else None
    )


def check_dataset(pairs: Any) -> None:
    """Raises for what is no data set, such as the name of a file."""
    if not isinstance(pairs, Dataset):
        wanted = f"read_preferences({pairs!r})" if isinstance(pairs, str) else "Dataset.from_list(...)"
        raise DataError(f"got a {type(pairs).__name__}; wanted a data set of pairs: {wanted}")


def group_column(dataset: Dataset) -> str:
    """Returns the column whose values no two splits may share: `cluster_id` where there is one, else `prompt_id`."""
    return "cluster_id" if "cluster_id" in dataset.column_names else "prompt_id"


def groups_of(dataset: Dataset) -> list[str]:
    """Returns the group of each row: its cluster as text, its prompt where it has none."""
    prompts = _column(dataset, "prompt_id")
    if group_column(dataset) == "prompt_id":
        return prompts
    clusters = _column(dataset, "cluster_id")
    return [p if c is None or c == "" else str(c) for p, c in zip(prompts, clusters, strict=True)]


def check_overlap(splits: Mapping[str, Dataset]) -> None:
    """Raises if a `prompt_id` is in two of the splits.

    Args:
        splits (`Mapping[str, Dataset]`): Splits by name, for example `splits.as_dict()` or sets from several files.

    Raises:
        SplitLeakageError: If two splits share a prompt; names them, the number of prompts and one of them.

    Example:

    ```python
    >>> check_overlap({"train": train, "test": train})
    SplitLeakageError: 2 prompts are in both train and test, for example access-09; split …
    ```
    """
    for key, shared in _shared(splits).items():
        if shared:
            a, b = key.split("/")
            count = f"{len(shared)} prompts are" if len(shared) > 1 else "1 prompt is"
            raise SplitLeakageError(
                f"{count} in both {a} and {b}, for example {min(shared)}; split by prompt with make_splits or "
                "rmtrl data split"
            )


def _held_out(domains: pd.Series, values: Collection[str]) -> set[str]:
    """Returns the domains to hold out, which all occur and are not all there are."""
    wanted, known = {values} if isinstance(values, str) else set(values), set(domains)
    if unknown := wanted - known:
        few = ", ".join(sorted(known)[:30])
        raise DataError(f"no pair has the domain {', '.join(sorted(unknown)[:5])}; the data has {few}")
    if wanted >= known:
        raise DataError("every domain is held out, so no pair is left to train on; hold out fewer")
    return wanted


def _shared(splits: Mapping[str, Dataset]) -> dict[str, set[str]]:
    """Returns what every two splits share, by prompt and, where both have clusters, by cluster."""
    shared: dict[str, set[str]] = {}
    for column in ("prompt_id", "cluster_id"):
        values = {
            name: set(groups_of(d) if column == "cluster_id" else _column(d, column))
            for name, d in splits.items()
            if column == "prompt_id" or column in d.column_names
        }
        for a, b in combinations(values, 2):
            shared[f"{a}/{b}"] = shared.get(f"{a}/{b}", set()) | (values[a] & values[b])
    return shared


def _assigned(prompts: pd.DataFrame, shares: NDArray[np.float64]) -> dict[str, int]:
    """Returns the split of each prompt, as an index into `shares`."""
    home: dict[str, int] = {}
    lacking = np.zeros(len(shares))  # rows by which each split is below its share of the domains so far
    for _, own in prompts.groupby("domain"):
        lacking += shares * own.n.sum()
        for group, n in own.n.items():
            home[group] = int(lacking.argmax())
            lacking[home[group]] -= n
    return home


def _beyond(train_size: int, train: pd.DataFrame) -> dict[str, int]:
    """Returns the prompts of train that go to test, so that it has at most this many rows."""
    available, left = train.n.sum(), train_size
    if available < train_size:
        raise DataError(f"train_size is {train_size} but train's share is {available} rows; raise its ratio")
    moved = {}
    for group, n in train.n.items():
        if n <= left:
            left -= n
        else:
            moved[group] = SPLITS.index("test")
    return moved


def seeded_hash(seed: int, prompt_id: str) -> str:
    """Returns the text by which prompts are put in an order that is arbitrary but the same on every machine."""
    return hashlib.sha256(f"{seed}:{prompt_id}".encode("utf-8", "surrogatepass")).hexdigest()


def cells(dataset: Dataset, *names: str, without: str = "got pairs without") -> Iterator[tuple[Any, ...]]:
    """Yields these columns row by row, in batches: going through `dataset[name]` is slow after a select.

    Raises:
        DataError: If a column is missing; `without` says of what.
    """
    if missing := [name for name in names if name not in dataset.column_names]:
        raise DataError(f"{without} {', '.join(missing)}; wanted the normal form, see to_normal_form")
    for batch in dataset.select_columns(list(names)).with_format(None).iter(batch_size=1000):
        yield from zip(*(batch[name] for name in names), strict=True)


def counted(values: Iterable[Any]) -> dict[str, int]:
    """Returns how often each value occurs, the most frequent first, ties by name."""
    return dict(sorted(Counter(map(str, values)).items(), key=lambda item: (-item[1], item[0])))


def with_column(dataset: Dataset, name: str, values: Sequence[Any] | pa.Array) -> tuple[Dataset, int]:
    """Returns the rows with a column in the last place, and how many of them had another value there."""
    before = dataset[name][:] if name in dataset.column_names else [None] * len(dataset)
    replaced = sum(old not in (None, "") and str(old) != str(new) for old, new in zip(before, values, strict=True))
    others = [column for column in dataset.column_names if column != name]
    return dataset.select_columns(others).add_column(name, values), replaced


def _column(dataset: Dataset, name: str) -> list[str]:
    return [value for (value,) in cells(dataset, name)]
