"""Compares preference pairs with the design they were collected for: domains, response mix, annotators, languages.

A design is a small YAML file; presets stand in `rmtrl/data/designs`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from datasets import Dataset
from scipy import stats

from rmtrl.data.normal_form import as_number
from rmtrl.data.splits import groups_of
from rmtrl.errors import UsageError
from rmtrl.types import Estimate

_SHARE_TOLERANCE = 0.05  # a response mix within five points of the design meets it


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
    preset = resources.files("rmtrl.data") / "designs" / f"{name}.yaml"
    path = Path(name).expanduser()
    presets = sorted(f.name.removesuffix(".yaml") for f in (resources.files("rmtrl.data") / "designs").iterdir())
    if not preset.is_file() and not path.is_file():
        raise UsageError(f"no design {name}; give {', '.join(presets)} or a YAML file")
    try:
        settings = yaml.safe_load(preset.read_text() if preset.is_file() else path.read_text(encoding="utf-8"))
        return _checked(Design(**settings))
    except (yaml.YAMLError, TypeError, ValueError) as error:
        known = ", ".join(Design.__dataclass_fields__)
        raise UsageError(f"{name} is not a design ({' '.join(str(error).split())}); its keys are {known}") from error


def _checked(design: Design) -> Design:
    wanted: dict[str, Any] = {
        "prompts": int, "responses": int, "annotators_per_item": int, "domains": (int, list), "criteria": list,
        "likert": list, "sources": dict, "languages": dict, "agreement": (int, float),
    }  # fmt: skip
    for name, kind in wanted.items():
        value = getattr(design, name)
        if value is not None and not isinstance(value, kind):
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

    def as_dict(self) -> dict[str, Any]:
        """Returns the comparison as a plain dictionary, ready for JSON."""
        return {"met": self.met, **asdict(self)}


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
    counts = {name: _counted(pairs, name) for name in ("domain", "source", "language") if name in pairs.column_names}
    if sources is not None:
        counts["source"] = dict(sources)
    shares = {name: _shares(values) for name, values in counts.items()}
    checks = [
        *_at_least("prompts", _distinct(pairs, "prompt_id"), design.prompts),
        *_at_least("responses", _distinct(pairs, "chosen", "rejected"), design.responses),
        *_domains(counts["domain"], design.domains),
        *_mix("source", shares.get("source", {}), design.sources),
        *_mix("language", shares.get("language", {}), design.languages),
        *_annotators(np.fromiter(judgments_per_item, int), design.annotators_per_item),
        *_criteria(set(criteria), design.criteria),
    ]
    sizes = np.array(list(counts["domain"].values()), float)
    balance = float(stats.entropy(sizes) / np.log(len(sizes))) if len(sizes) > 1 else 1.0
    return Coverage(tuple(checks), counts, shares, _prevalence(pairs), round(balance, 6))


def _prevalence(pairs: Dataset) -> dict[str, float]:
    if "sampling_weight" not in pairs.column_names:
        return {}
    batches = pairs.select_columns(["domain", "sampling_weight"]).with_format(None).iter(1000)
    cells = [cell for b in batches for cell in zip(b["domain"], b["sampling_weight"], strict=True)]
    weights: Counter[str] = Counter()
    for domain, weight in dict(zip(groups_of(pairs), cells, strict=True)).values():
        weights[domain] += as_number("sampling_weight", weight) or 0  # type: ignore[assignment]
    whole = sum(weights.values())
    return {domain: round(weight / whole, 6) for domain, weight in sorted(weights.items())} if whole else {}


def _counted(pairs: Dataset, column: str) -> dict[str, int]:
    values = Counter(str(v) for batch in pairs.select_columns([column]).iter(1000) for v in batch[column])
    return dict(sorted(values.items(), key=lambda item: (-item[1], item[0])))


def _distinct(pairs: Dataset, *columns: str) -> int:
    batches = pairs.select_columns(list(columns)).iter(1000)
    return len({str(value) for batch in batches for column in columns for value in batch[column]})


def _shares(counts: Mapping[str, int]) -> dict[str, Estimate]:
    n = sum(counts.values())
    shares = {}
    for name, count in counts.items():
        exact = stats.binomtest(count, n).proportion_ci(0.95)
        shares[name] = Estimate(count / n, float(exact.low), float(exact.high), n, method="exact binomial")
    return shares


def _check(name: str, got: Any, wanted: Any, met: bool) -> dict[str, Any]:
    return {"name": name, "got": got, "wanted": wanted, "met": met}


def _at_least(name: str, got: int, wanted: int | None) -> list[dict[str, Any]]:
    return [_check(name, got, wanted, got >= wanted)] if wanted else []


def _domains(counts: Mapping[str, int], wanted: int | list[str] | None) -> list[dict[str, Any]]:
    if not wanted:
        return []
    if isinstance(wanted, int):
        present = len([name for name in counts if name != "unknown"])
        return [_check("domains", present, wanted, present >= wanted)]
    present = len(set(wanted) & set(counts))
    absent = [name for name in wanted if name not in counts]
    return [_check("domains", present, len(wanted), not absent) | {"absent": absent}]


def _mix(column: str, shares: Mapping[str, Estimate], wanted: Mapping[str, float]) -> list[dict[str, Any]]:
    checks = []
    for name, share in wanted.items():
        got = shares[name].value if name in shares else 0.0
        checks.append(_check(f"{column} {name}", round(got, 4), share, abs(got - share) <= _SHARE_TOLERANCE))
    return checks


def _annotators(judgments: np.ndarray, wanted: int | None) -> list[dict[str, Any]]:
    if not wanted:
        return []
    if len(judgments) == 0:
        return [_check("annotators per item", None, wanted, False)]
    enough = float((judgments >= wanted).mean())
    figures = {"median": float(np.median(judgments)), "most": int(judgments.max()), "share_with_enough": enough}
    return [_check("annotators per item", int(judgments.min()), wanted, enough == 1.0) | figures]


def _criteria(rated: set[str], wanted: list[str]) -> list[dict[str, Any]]:
    if not wanted:
        return []
    present = [name for name in wanted if name in rated]
    return [_check("criteria", present, wanted, present == wanted)]
