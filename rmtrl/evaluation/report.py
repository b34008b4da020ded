"""What a person reads of an evaluation: each result in full, models and published rows side by side, warnings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from rmtrl.evaluation.benchmarks.results import BenchmarkResult, in_words
from rmtrl.io import packaged
from rmtrl.metrics import combined_estimate
from rmtrl.types import Estimate

Results = Mapping[str, Mapping[str, BenchmarkResult]]
"""Results by model and benchmark."""

_ENOUGH = 3  # benchmarks, below which nothing is said of other domains
_MIXED = "mixed"  # the kind of benchmarks that hold several kinds
_OVERALL, _HIGHEST = "overall", "highest"


@dataclass(frozen=True)
class PublishedFigure:
    """A figure that was published, not run here.

    Args:
        model (`str`): The public model.
        benchmark (`str`): Name of the benchmark, as [`rmtrl.evaluation.benchmarks.benchmark`] knows it.
        figure (`str`): `overall`, or the name of the average it is.
        value (`float`): The figure, as a share.
        source (`str`): Where it stands.
    """

    model: str
    benchmark: str
    figure: str
    value: float
    source: str


def _read_published() -> tuple[PublishedFigure, ...]:
    return tuple(
        PublishedFigure(model, benchmark, figure or _OVERALL, round(value / 100, 4), table["source"])
        for table in packaged("rmtrl.evaluation", "published.yaml")
        for model, values in table["models"].items()
        for (benchmark, _, figure), value in zip((n.partition("/") for n in table["figures"]), values, strict=True)
    )


PUBLISHED = _read_published()


def published(benchmark: str) -> list[PublishedFigure]:
    """Returns what is known to be published for a benchmark, the highest figure first.

    Example:

    ```python
    >>> published("rmb")[0].model
    'Skywork-Reward-V2-Qwen3-1.7B'
    ```
    """
    return sorted((row for row in PUBLISHED if row.benchmark == benchmark), key=lambda row: -row.value)


def averages(results: Results) -> tuple[list[str], dict[str, Estimate]]:
    """Returns the benchmarks that all models have, and each model's average over them; none for fewer than two."""
    common = [name for name in next(iter(results.values())) if all(name in own for own in results.values())]
    k = len(common)
    if k < 2:
        return common, {}
    settings = {"weights": [1 / k] * k, "method": f"mean of {k} independent benchmarks"}
    figures = {model: [own[name].overall for name in common] for model, own in results.items()}
    return common, {model: combined_estimate(own, **settings) for model, own in figures.items()}  # type: ignore[arg-type]


def warnings(
    results: Results, selected_on: Mapping[str, Sequence[str]], unscored: Mapping[str, Mapping[str, str]] = {}
) -> list[str]:
    """Returns what the figures do not show, a line each.

    Args:
        results (`Results`): Results by model and benchmark.
        selected_on (`Mapping[str, Sequence[str]]`): The benchmarks that chose each model's checkpoint.
        unscored (`Mapping[str, Mapping[str, str]]`): Why a benchmark has no result, by model and benchmark.
    """
    found = []
    # variants of one benchmark have one source, and count once
    kinds = {result.source: result.kind for own in results.values() for result in own.values()}
    if len(kinds) < _ENOUGH:
        plural = "s" * (len(kinds) > 1)
        found.append(f"{len(kinds)} benchmark{plural}: fewer than {_ENOUGH} say nothing of a shift of domain")
    elif len(set(kinds.values())) == 1 and _MIXED not in kinds.values():
        kind = next(iter(kinds.values()))
        found.append(f"all {len(kinds)} benchmarks are of one kind ({kind}): that is no shift of domain")
    for model, own in results.items():
        for name, result in own.items():
            if name in selected_on.get(model, ()):
                found.append(f"{name} chose the checkpoint of {model}: its figure is too high for a test")
            if result.n_missing:
                found.append(f"{name}, {model}: {_missing(result)} have no score{in_words(result.missing_reasons)}")
            if parts := list(result.missing_parts):
                found.append(f"{name}, {model}: incomplete, it lacks rows of {_listed(parts, len(parts))}")
        found += [f"{name}, {model}: not scorable: {why}" for name, why in unscored.get(model, {}).items()]
    return found


def published_rows(results: Results) -> list[PublishedFigure]:
    """Returns the published figures of the benchmarks that were run."""
    return [row for name in dict.fromkeys(n for own in results.values() for n in own) for row in published(name)]


def report(
    results: Results, selected_on: Mapping[str, Sequence[str]], unscored: Mapping[str, Mapping[str, str]] = {}
) -> dict[str, Any]:
    """Returns what people read: every result, the table of models and published rows, warnings.

    Args:
        results (`Results`): Results by model and benchmark.
        selected_on (`Mapping[str, Sequence[str]]`): The benchmarks that chose each model's checkpoint.
        unscored (`Mapping[str, Mapping[str, str]]`): Why a benchmark has no result, by model and benchmark.
    """
    whole = {
        f"{name} of {model}": _whole(model, result, name in selected_on.get(model, ()))
        for model, own in results.items()
        for name, result in own.items()
    }
    return {**whole, **_side_by_side(results, unscored), "warning": warnings(results, selected_on, unscored)}


def _missing(result: BenchmarkResult) -> str:
    return f"{result.n_missing:,} of {result.n_scored + result.n_missing:,} rows"


def _whole(model: str, result: BenchmarkResult, chose: bool) -> dict[str, Any]:
    low, high = result.bounds
    missing = {
        "missing": f"{_missing(result)}{in_words(result.missing_reasons)}",
        "bounds": f"with these all wrong {low:.3f}, all right {high:.3f}",
        "missing rows": _listed(result.missing_ids, result.n_missing),
    }
    return {
        "model": model, "overall": f"{result.overall}{'  (chose this checkpoint)' * chose}",
        **(missing if result.n_missing else {}),
        "rule": result.rule, "ties": result.ties, "excluded rows": result.excluded,
        "incomplete": result.missing_parts, "sections": result.sections, "averages": result.others,
        "subsets": {} if set(result.subsets) == set(result.sections) else result.subsets,
    }  # fmt: skip


def _listed(ids: Sequence[str], count: int) -> str:
    shown = ", ".join(ids[:5])
    return f"{shown} and {count - 5:,} more" if count > 5 else shown


def _side_by_side(results: Results, unscored: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Returns models and published rows in one table, a column a figure; nothing for one figure that stands alone."""
    names = dict.fromkeys(name for table in (results, unscored) for own in table.values() for name in own)
    theirs = published_rows(results)
    shown = [(name, figure) for name in names for figure in
             dict.fromkeys([_OVERALL, *(row.figure for row in theirs if row.benchmark == name)])]  # fmt: skip
    if len(results) == len(shown) == 1 and not theirs:
        return {}
    public = dict.fromkeys(f"{row.model} *" for row in theirs)
    table = pd.DataFrame(index=pd.Index([*results, *([_HIGHEST] if len(results) > 1 else []), *public], name="model"))
    for name, figure in shown:
        ours = {model: _figure(own[name], figure) for model, own in results.items() if name in own}
        cells = {m: _cell(own.get(name), figure, name in unscored.get(m, {})) for m, own in results.items()}
        known = {f"{r.model} *": f"{r.value:.3f}" for r in theirs if (r.benchmark, r.figure) == (name, figure)}
        title = name if figure == _OVERALL else f"{name}, {figure}"
        table[title] = pd.Series(cells | known | {_HIGHEST: _highest(ours)})
    common, means = averages(results)
    if means:
        cells = {model: f"{estimate:.3f}" for model, estimate in means.items()}
        table[f"average of {len(common)}"] = pd.Series(cells | {_HIGHEST: _highest(means)})
    sources = list(dict.fromkeys(row.source for row in theirs))
    return {"models": table.fillna("").reset_index().to_dict("records"), "* published, not run here": sources}


def _figure(result: BenchmarkResult, figure: str) -> Estimate | None:
    return result.overall if figure == _OVERALL else result.others.get(figure)


def _cell(result: BenchmarkResult | None, figure: str, unscored: bool) -> str:
    """Returns the cell of a model and a figure; only that of the overall figure says why there is none."""
    found = result and _figure(result, figure)
    if result is None or found is None:
        return "" if figure != _OVERALL else "not scorable" if unscored else "not run"
    return f"{found:.3f}" + " incomplete" * (figure == _OVERALL and bool(result.missing_parts))


def _highest(ours: Mapping[str, Estimate | None]) -> str:
    values = {model: estimate.value for model, estimate in ours.items() if estimate is not None}
    return ", ".join(model for model, value in values.items() if value == max(values.values()))
