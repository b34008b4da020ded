"""What to collect: a design and how pairs compare with it, samples across domains, variants to annotate anew.

A design is a small YAML file; presets stand in `rmtrl/data/designs`.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import yaml
from datasets import Dataset, concatenate_datasets
from scipy import special

from rmtrl.data.messages import message_text
from rmtrl.data.normal_form import as_number, dataset_of
from rmtrl.data.splits import cells, counted, groups_of, seeded_hash, with_column
from rmtrl.errors import DataError, UsageError
from rmtrl.metrics import binomial_estimate
from rmtrl.types import Conversation, Estimate

Edit = Callable[[str], str]
_SHARE_TOLERANCE = 0.05  # a response mix within five points of the design meets it
_SIDES = {"prompt": ("prompt",), "responses": ("chosen", "rejected"), "both": ("prompt", "chosen", "rejected")}


@dataclass(frozen=True)
class Design:
    """What a data set was planned to hold; a field that is None, 0 or empty is not compared.

    Args:
        prompts (`int`, *optional*): Distinct prompts.
        responses (`int`, *optional*): Distinct responses.
        annotators_per_item (`int`, *optional*): Judgments of each item.
        domains (`int` or `list[str]`, *optional*): Number of domains, or their names.
        criteria (`list[str]`): Criteria that are rated.
        likert (`list[int]`): Ends of the rating scale.
        sources (`dict[str, float]`): Share of the rows by source.
        languages (`dict[str, float]`): Share of the rows by language.
        agreement (`float`, *optional*): Krippendorff's alpha to reach.
    """

    prompts: int | None = None
    responses: int | None = None
    annotators_per_item: int | None = None
    domains: int | list[str] | None = None
    criteria: list[str] = field(default_factory=list)
    likert: list[int] = field(default_factory=list)
    sources: dict[str, float] = field(default_factory=dict)
    languages: dict[str, float] = field(default_factory=dict)
    agreement: float | None = None


def read_design(name: str | Path) -> Design:
    """Returns the design of a preset (`blueprint`, `benchmark`) or of a YAML file.

    Raises:
        UsageError: If there is no such preset or file, or it has a key that a design does not know.

    Example:

    ```python
    >>> read_design("blueprint").prompts
    15000
    ```
    """
    folder, path = resources.files("rmtrl.data") / "designs", Path(name).expanduser()
    presets = {file.name.removesuffix(".yaml"): file for file in folder.iterdir()}
    if str(name) not in presets and not path.is_file():
        raise UsageError(f"no design {name}; give {', '.join(sorted(presets))} or a YAML file")
    try:
        settings = yaml.safe_load(presets.get(str(name), path).read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise TypeError("it holds no keys and values")
        return _checked(Design(**settings))
    except (yaml.YAMLError, TypeError, ValueError) as error:
        known = ", ".join(Design.__dataclass_fields__)
        raise UsageError(f"{name} is not a design ({' '.join(str(error).split())}); its keys are {known}") from error


def _checked(design: Design) -> Design:
    wanted: dict[str, Any] = {
        "prompts": int, "responses": int, "annotators_per_item": int, "domains": (int, list), "criteria": list,
        "likert": list, "sources": dict, "languages": dict, "agreement": (int, float),
    }  # fmt: skip
    for name, value in vars(design).items():
        if value is not None and not isinstance(value, wanted[name]):
            raise TypeError(f"{name} is {value!r}")
    for name, share in (*design.sources.items(), *design.languages.items()):
        if not isinstance(share, int | float):
            raise TypeError(f"the share of {name} is {share!r}")
    return design


@dataclass(frozen=True)
class Coverage:
    """How a data set compares with its design.

    Args:
        checks (`tuple[dict]`): One a figure: `name`, `got`, `wanted`, `met`.
        counts (`dict[str, dict[str, int]]`): Rows by domain, source and language.
        shares (`dict[str, dict[str, Estimate]]`): The same as shares of the rows, with exact binomial intervals.
        prevalence (`dict[str, float]`): Share of the prompts by domain, each weighted by its `sampling_weight`: what a
            sample stands for. Empty where the pairs have no such column.
        balance (`float`): Entropy of the domains over that of equal domains: 1 where all are equally large.
    """

    checks: tuple[dict[str, Any], ...]
    counts: dict[str, dict[str, int]]
    shares: dict[str, dict[str, Estimate]]
    prevalence: dict[str, float]
    balance: float

    @property
    def met(self) -> bool:
        """Whether every figure of the design is reached."""
        return all(check["met"] for check in self.checks)


def coverage(
    pairs: Dataset,
    design: Design,
    *,
    judgments_per_item: Iterable[int] = (),
    criteria: Iterable[str] = (),
    sources: Mapping[str, int] | None = None,
) -> Coverage:
    """Returns how pairs compare with a design.

    Args:
        pairs (`Dataset`): Pairs in the normal form; a column `language` is counted where there is one.
        design ([`Design`]): What was planned.
        judgments_per_item (`Iterable[int]`): Annotations of each item, where they are known.
        criteria (`Iterable[str]`): Criteria that were rated.
        sources (`Mapping[str, int]`, *optional*): Responses by source; the `source` column of the pairs by default.

    Example:

    ```python
    >>> coverage(pairs, read_design("blueprint")).checks[0]
    {'name': 'prompts', 'got': 2000, 'wanted': 15000, 'met': False}
    ```
    """
    counts: dict[str, dict[str, int]] = {}
    for name in ("domain", "source", "language"):
        if name in pairs.column_names:
            counts[name] = counted(_values(pairs, name))
    if sources is not None:
        counts["source"] = dict(sources)
    shares = {
        name: {value: binomial_estimate(count, sum(values.values())) for value, count in values.items()}
        for name, values in counts.items()
    }
    sizes = np.array(list(counts["domain"].values()), float)
    balance = float(special.entr(sizes / sizes.sum()).sum() / np.log(len(sizes))) if len(sizes) > 1 else 1.0
    checks = tuple(_checks(design, pairs, shares, np.fromiter(judgments_per_item, int), set(criteria)))
    return Coverage(checks, counts, shares, _prevalence(pairs), round(balance, 6))


def _prevalence(pairs: Dataset) -> dict[str, float]:
    if "sampling_weight" not in pairs.column_names:
        return {}
    weights = [as_number("sampling_weight", weight) or 0.0 for weight in _values(pairs, "sampling_weight")]
    table = pd.DataFrame({"group": groups_of(pairs), "domain": list(_values(pairs, "domain")), "weight": weights})
    by_domain = table.drop_duplicates("group", keep="last").groupby("domain").weight.sum()
    whole = by_domain.sum()
    return (by_domain / whole).round(6).to_dict() if whole else {}


def _values(pairs: Dataset, *columns: str) -> Iterator[Any]:
    return (value for row in cells(pairs, *columns) for value in row)


def _checks(
    design: Design, pairs: Dataset, shares: Mapping[str, Any], judgments: np.ndarray, rated: set[str]
) -> Iterator[dict[str, Any]]:
    """Yields each planned figure: what there is, what was wanted, and whether that is met."""

    def check(name: str, got: Any, wanted: Any, met: bool, **more: Any) -> dict[str, Any]:
        return {"name": name, "got": got, "wanted": wanted, "met": met, **more}

    sizes = {"prompts": (["prompt_id"], design.prompts), "responses": (["chosen", "rejected"], design.responses)}
    for name, (columns, least) in sizes.items():
        if least:
            got = len(set(map(str, _values(pairs, *columns))))
            yield check(name, got, least, got >= least)
    if isinstance(design.domains, int) and design.domains:
        got = len(shares["domain"].keys() - {"unknown"})
        yield check("domains", got, design.domains, got >= design.domains)
    elif named := design.domains:
        absent = [name for name in named if name not in shares["domain"]]
        yield check("domains", len(named) - len(absent), len(named), not absent, absent=absent)
    for column, mix in (("source", design.sources), ("language", design.languages)):
        for name, share in mix.items():
            found = shares.get(column, {}).get(name)
            part = found.value if found else 0.0
            yield check(f"{column} {name}", round(part, 4), share, abs(part - share) <= _SHARE_TOLERANCE)
    if wanted := design.annotators_per_item:
        spread = {}
        if len(judgments):
            spread = {"median": float(np.median(judgments)), "most": int(judgments.max()),
                      "share_with_enough": float((judgments >= wanted).mean())}  # fmt: skip
        least = int(judgments.min()) if len(judgments) else None
        yield check("annotators per item", least, wanted, (least or 0) >= wanted, **spread)
    if design.criteria:
        present = [criterion for criterion in design.criteria if criterion in rated]
        yield check("criteria", present, design.criteria, present == design.criteria)


# ---- samples


@dataclass(frozen=True)
class Sample:
    """Sampled pairs and what was drawn of each domain.

    Args:
        pairs (`Dataset`): Rows of the drawn prompts, with `sampling_weight`: weighted by it, a figure over the sample
            stands for the stated prevalence again.
        drawn (`dict[str, dict]`): By domain: `available` and `drawn` prompts, the `weight` of each, and the `pairs`
            that are rows of the sample. A prompt of several domains counts as the first of them by name.
        replaced (`int`): Rows that came with another `sampling_weight`.
    """

    pairs: Dataset
    drawn: dict[str, dict[str, Any]]
    replaced: int = 0


def allocate(
    n: int, available: Mapping[str, int], prevalence: Mapping[str, float], stress: Mapping[str, float]
) -> dict[str, int]:
    """Returns how many of n prompts each domain gives: by prevalence × stress factor, after Sainte-Laguë.

    The k-th prompt of a domain has the claim weight / (k − ½), and the n largest claims are met.

    Args:
        n (`int`): Prompts to draw.
        available (`Mapping[str, int]`): Prompts of each domain; none gives more, and what it lacks goes to the others.
        prevalence (`Mapping[str, float]`): Weight of each domain, of any sum.
        stress (`Mapping[str, float]`): Factor for domains to draw more of; 1 where absent.

    Example:

    ```python
    >>> allocate(100, {"chat": 500, "medicine": 500}, {"chat": 9, "medicine": 1}, {"medicine": 3})
    {'chat': 75, 'medicine': 25}
    ```
    """
    weights = {name: prevalence.get(name, 0.0) * stress.get(name, 1.0) for name in available}
    claims = [(-weights[name] / (k + 0.5), name) for name, most in available.items() for k in range(most)]
    met = Counter(name for claim, name in sorted(claims)[:n] if claim)
    return {name: met[name] for name in available}


def sample_by_domain(
    dataset: Dataset,
    n: int,
    *,
    prevalence: Mapping[str, float] | None = None,
    stress: Mapping[str, float] | None = None,
    seed: int = 0,
) -> Sample:
    """Returns about n prompts with all their rows, drawn from the domains by prevalence.

    Args:
        dataset (`Dataset`): Pairs in the normal form.
        n (`int`): Prompts to draw.
        prevalence (`Mapping[str, float]`, *optional*): Weight of each domain in the population; the data's own by
            default.
        stress (`Mapping[str, float]`, *optional*): Factor by which to draw more of a high-stakes domain.
        seed (`int`): Another seed draws others.

    Raises:
        UsageError: If a weight or factor is negative or not finite.
        DataError: If a named domain does not occur, or n is below 1 or above the number of prompts.

    Example:

    ```python
    >>> sample_by_domain(pairs, 100, stress={"medicine": 3.0}).drawn["medicine"]["drawn"]
    14
    ```
    """
    stress = stress or {}
    rows = pd.DataFrame(cells(dataset, "prompt_id", "domain"), columns=["prompt_id", "domain"])
    prompts = rows.groupby("prompt_id").min()
    available = prompts.domain.value_counts().sort_index().to_dict()
    weights = dict(prevalence) if prevalence else {name: float(count) for name, count in available.items()}
    _check_weights(n, available, weights, stress, set(rows.domain))
    wanted = allocate(n, available, weights, stress)
    prompts["place"] = [seeded_hash(seed, prompt_id) for prompt_id in prompts.index]
    prompts = prompts.sort_values("place")
    taken = prompts[prompts.groupby("domain").cumcount() < prompts.domain.map(wanted)]
    total, drawn = sum(weights.get(name, 0.0) for name in available), len(taken)
    weight = {name: (weights.get(name, 0.0) / total) / (n / drawn) if n else 0.0 for name, n in wanted.items()}
    kept = rows[rows.prompt_id.isin(taken.index)]
    weights_of_rows = kept.prompt_id.map(taken.domain.map(weight)).tolist()
    sampled, replaced = with_column(dataset.select(kept.index), "sampling_weight", weights_of_rows)
    written = kept.domain.value_counts().to_dict()
    table = pd.DataFrame({"available": available, "drawn": wanted, "pairs": written, "weight": weight}).fillna(0)
    table = table.astype({"available": int, "drawn": int, "pairs": int}).round(6).sort_index()
    return Sample(sampled, table.to_dict("index"), replaced)


def _check_weights(
    n: int, available: Mapping[str, int], weights: Mapping[str, float], stress: Mapping[str, float], domains: set[str]
) -> None:
    unknown = sorted((set(weights) | set(stress)) - set(available))
    if beside := [name for name in unknown if name in domains]:
        raise DataError(f"no prompt counts as {', '.join(beside)}, which stands beside {', '.join(sorted(available))}")
    if unknown:
        raise DataError(f"no pair has the domain {', '.join(unknown)}; the data has {', '.join(sorted(available))}")
    for name, value in (*weights.items(), *stress.items()):
        if not 0 <= value < math.inf:
            said = "negative" if value < 0 else value
            raise UsageError(f"the weight of {name} is {said}; wanted a finite number of 0 or more")
    possible = sum(count for name, count in available.items() if weights.get(name, 0) * stress.get(name, 1) > 0)
    if not 1 <= n <= possible:
        raise DataError(f"got {n} prompts to draw; wanted 1 to {possible}, which is what the domains hold")


# ---- variants


def augment(dataset: Dataset, name: str, edit: Edit, *, of: Literal["prompt", "responses", "both"]) -> Dataset:
    """Returns the pairs followed by a variant of each one that `edit` changes.

    A variant keeps `prompt_id` (and `cluster_id`), so that no split can part it from its original; it has the label of
    the original only until somebody looks: `needs_annotation` is true, and `rmtrl data validate` says how many are.

    Args:
        dataset (`Dataset`): Pairs in the normal form.
        name (`str`): Name of the variant; `id` becomes `<id>~<name>` and `variant_of` the original's id.
        edit (`Callable[[str], str]`): Returns another wording of a text; the same text where it has none.
        of (`str`): What to edit: `"prompt"` (its last message), `"responses"` (both) or `"both"`.

    Raises:
        DataError: If a row has this variant already, or `edit` returns no text.

    Example:

    ```python
    >>> augment(pairs, "lower", str.lower, of="prompt")[-1]["needs_annotation"]
    True
    ```
    """
    if "needs_annotation" not in dataset.column_names:
        dataset = dataset.add_column("needs_annotation", [False] * len(dataset))
        dataset = dataset.add_column("variant_of", [""] * len(dataset))
    ids = set(dataset["id"][:])
    variants: list[dict[str, Any]] = []
    for row in dataset:
        edited = {side: _edited(row[side], edit) for side in _SIDES[of]}
        if all(edited[side] == row[side] for side in edited):
            continue
        id = f"{row['id']}~{name}"
        if id in ids:
            raise DataError(f"row {row['id']} has the variant {name} already; give another name")
        variants.append({**row, **edited, "id": id, "variant_of": row["id"], "needs_annotation": True})
    return concatenate_datasets([dataset, dataset_of(variants, dataset.features)])


def _edited(side: Conversation, edit: Edit) -> Conversation:
    text = side if isinstance(side, str) else message_text(side[-1])
    edited = edit(text)
    if not isinstance(edited, str):
        raise DataError(f"the edit returned {type(edited).__name__} for {text[:40]!r}; wanted a string")
    if isinstance(side, str) or edited == text:
        return edited if isinstance(side, str) else side
    return [*side[:-1], {**side[-1], "content": edited}]
