"""Splits preference pairs by prompt, so that no prompt is both trained on and measured on.

Prompts that are nearly the same count as one where the pairs have the column `cluster_id`, which
[`rmtrl.data.clusters.with_clusters`] adds.
"""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from datasets import Dataset

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


@dataclass(frozen=True)
class Holdout:
    """Pairs to train on and the pairs held out of training.

    Args:
        train (`Dataset`): Rows that are not held out.
        evaluation (`Dataset`): Rows that are.
    """

    train: Dataset
    evaluation: Dataset

    def overlap(self) -> list[str]:
        """Returns the `prompt_id`s on both sides, sorted; empty when prompts are what is held out."""
        return sorted({*_column(self.train, "prompt_id")} & {*_column(self.evaluation, "prompt_id")})


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
    >>> splits = make_splits(pairs, seed=0)
    >>> splits.sizes()
    {'train': 1619, 'validation': 231, 'calibration': 231, 'test': 231}
    ```
    """
    if len(ratios) != len(SPLITS) or min(ratios) < 0 or not math.isclose(sum(ratios), 1, abs_tol=1e-6):
        raise UsageError(f"got ratios {tuple(ratios)}; wanted four shares ({', '.join(SPLITS)}) with sum 1")
    if not 0 <= sealed < 1:
        raise UsageError(f"got sealed {sealed}; wanted a share of the rows from 0 to below 1")
    groups = groups_of(dataset)
    wanted_domains = [holdout_domains] if isinstance(holdout_domains, str) else holdout_domains
    held = _groups_of_domains(dataset, groups, wanted_domains) if wanted_domains else set()
    rows = Counter(group for group in groups if group not in held)
    domains = dict.fromkeys(rows, "")
    if stratify is not None:  # a prompt of several domains counts for the first by name, whatever the order of rows
        named = sorted(set(zip(groups, _column(dataset, stratify), strict=True)), reverse=True)
        domains = {group: domain for group, domain in named if group in rows}
    order = {group: _hash(seed, group) for group in rows}
    shares = (*((1 - sealed) * ratio for ratio in ratios), sealed)
    home = _assigned(rows, domains, order, shares)
    if train_size is not None:
        _cap_train(home, rows, order, train_size)
    filled = set(home.values())
    empty = [name for index, name in enumerate((*SPLITS, "sealed")) if shares[index] > 0 and index not in filled]
    if empty:
        wanted = math.ceil(1 / min(share for share in shares if share > 0))
        kind = "clusters of near-duplicate prompts" if group_column(dataset) == "cluster_id" else "prompts"
        raise DataError(f"{len(rows)} {kind} leave {', '.join(empty)} empty; wanted about {wanted}, or other ratios")
    indices: list[list[int]] = [[] for _ in range(6)]
    for row, group in enumerate(groups):
        indices[home.get(group, 5)].append(row)
    train, validation, calibration, test, closed, spilled = (dataset.select(chosen) for chosen in indices)
    return Splits(
        train, validation, calibration, test, closed if sealed else None, spilled if holdout_domains else None
    )


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


def holdout(
    dataset: Dataset, values: Collection[str], *, column: Literal["prompt_id", "domain"] = "prompt_id"
) -> Holdout:
    """Returns the pairs split into those to train on and those of the prompts, or domains, held out.

    Args:
        dataset (`Dataset`): Pairs in the normal form.
        values (`Collection[str]`): Prompts (or domains) that training must not see.
        column (`str`): `"domain"` holds out whole domains, to measure what carries over to unseen ones.

    Raises:
        DataError: If a value does not occur, or nothing is left to train on.

    Example:

    ```python
    >>> held = holdout(pairs, ["support-17"])
    >>> len(held.train), len(held.evaluation), held.overlap()
    (2, 2, [])
    ```
    """
    found = _column(dataset, column)
    wanted = {values} if isinstance(values, str) else set(values)
    unknown = wanted - set(found)
    if unknown:
        raise DataError(f"no pair has {column} {', '.join(sorted(unknown)[:5])}; wanted values that occur in the data")
    if wanted >= set(found):
        raise DataError(f"every {column} is held out, so no pair is left to train on; hold out fewer")
    train = [row for row, value in enumerate(found) if value not in wanted]
    evaluation = [row for row, value in enumerate(found) if value in wanted]
    return Holdout(dataset.select(train), dataset.select(evaluation))


def _groups_of_domains(dataset: Dataset, groups: list[str], wanted: Collection[str]) -> set[str]:
    domains = _column(dataset, "domain")
    unknown = set(wanted) - set(domains)
    if unknown:
        found = ", ".join(sorted(set(domains))[:30])
        raise DataError(f"no pair has the domain {', '.join(sorted(unknown))}; the data has {found}")
    held = {group for group, domain in zip(groups, domains, strict=True) if domain in wanted}
    if held >= set(groups):
        raise DataError("every domain is held out, so no pair is left to train on; hold out fewer")
    return held


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


def _assigned(
    rows: Mapping[str, int], domains: Mapping[str, str], order: Mapping[str, str], ratios: tuple[float, ...]
) -> dict[str, int]:
    """Returns the split of each prompt, as an index into `SPLITS`."""
    by_domain: dict[str, list[str]] = defaultdict(list)
    for prompt_id in sorted(rows, key=order.__getitem__):
        by_domain[domains[prompt_id]].append(prompt_id)
    home: dict[str, int] = {}
    lacking = [0.0] * len(ratios)  # rows by which each split is below its share of the domains so far
    for domain in sorted(by_domain):
        size = sum(rows[prompt_id] for prompt_id in by_domain[domain])
        lacking = [lack + ratio * size for lack, ratio in zip(lacking, ratios, strict=True)]
        for prompt_id in by_domain[domain]:
            home[prompt_id] = max(range(len(ratios)), key=lacking.__getitem__)
            lacking[home[prompt_id]] -= rows[prompt_id]
    return home


def _cap_train(home: dict[str, int], rows: Mapping[str, int], order: Mapping[str, str], train_size: int) -> None:
    train, test = SPLITS.index("train"), SPLITS.index("test")
    prompts = sorted((prompt_id for prompt_id in home if home[prompt_id] == train), key=order.__getitem__)
    available = sum(rows[prompt_id] for prompt_id in prompts)
    if available < train_size:
        raise DataError(f"train_size is {train_size} but train's share is {available} rows; raise its ratio")
    left = train_size
    for prompt_id in prompts:
        if rows[prompt_id] <= left:
            left -= rows[prompt_id]
        else:
            home[prompt_id] = test


def _hash(seed: int, prompt_id: str) -> str:
    return hashlib.sha256(f"{seed}:{prompt_id}".encode("utf-8", "surrogatepass")).hexdigest()


def _column(dataset: Dataset, name: str) -> list[str]:
    if name not in dataset.column_names:
        raise DataError(f"got pairs without {name}; wanted the normal form, see to_normal_form")
    # in batches: going through `dataset[name]` is slow after a select
    batches = dataset.select_columns([name]).with_format(None).iter(batch_size=1000)
    return [value for batch in batches for value in batch[name]]
