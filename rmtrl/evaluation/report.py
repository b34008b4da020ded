"""What a person reads of an evaluation: each result in full, models and published rows side by side, warnings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import yaml

from rmtrl.evaluation.benchmarks.results import BenchmarkResult, in_words
from rmtrl.metrics import combined_estimate
from rmtrl.types import Estimate

Results = Mapping[str, Mapping[str, BenchmarkResult]]
"""Results by model and benchmark."""

_ENOUGH = 3  # benchmarks, below which nothing is said of other domains
_MIXED = "mixed"  # the kind of benchmarks that hold several kinds
_OVERALL = "overall"


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
    text = (resources.files("rmtrl.evaluation") / "published.yaml").read_text(encoding="utf-8")
    return tuple(
        PublishedFigure(model, benchmark, figure or _OVERALL, round(value / 100, 4), table["source"])
        for table in yaml.safe_load(text)
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
) -> str:
    """Returns the whole text: every result, the table of models and published rows, warnings.

    Args:
        results (`Results`): Results by model and benchmark.
        selected_on (`Mapping[str, Sequence[str]]`): The benchmarks that chose each model's checkpoint.
        unscored (`Mapping[str, Mapping[str, str]]`): Why a benchmark has no result, by model and benchmark.
    """
    parts = [
        "\n".join(_result_lines(model, result, chose=name in selected_on.get(model, ())))
        for model, own in results.items()
        for name, result in own.items()
    ]
    if table := _side_by_side(results, unscored):
        parts.append("\n".join(table))
    return "\n\n".join([*parts, *(f"warning: {line}" for line in warnings(results, selected_on, unscored))])


def _missing(result: BenchmarkResult) -> str:
    return f"{result.n_missing:,} of {result.n_scored + result.n_missing:,} rows"


def _result_lines(model: str, result: BenchmarkResult, *, chose: bool) -> list[str]:
    mark = "  (chose this checkpoint)" if chose else ""
    rows = [("model", model), ("overall", f"{result.overall}{mark}")]
    if result.n_missing:
        low, high = result.bounds
        rows += [
            ("missing", f"{_missing(result)}{in_words(result.missing_reasons)}"),
            ("", f"with these all wrong {low:.3f}, all right {high:.3f}"),
            ("", _listed(result.missing_ids, result.n_missing)),
        ]
    rows += [("excluded", f"{count:,} rows: {reason}") for reason, count in result.excluded.items()]
    rows += [
        ("incomplete", f"{name}: {part['scored']:,} of {part['expected']:,} rows scored, {part['got']:,} read")
        for name, part in result.missing_parts.items()
    ]
    groups = {"section": result.sections, "average": result.others, "subset": result.subsets}
    if set(result.subsets) == set(result.sections):
        del groups["subset"]
    for kind, figures in groups.items():
        width = max(map(len, figures), default=0)
        rows += [(kind, f"{name:<{width}}  {estimate}") for name, estimate in figures.items()]
    rows += [("rule", result.rule), ("ties", result.ties)]
    return [result.name, *(f"  {label:<12}{text}" for label, text in rows)]


def _listed(ids: Sequence[str], count: int) -> str:
    shown = ", ".join(ids[:5])
    return f"{shown} and {count - 5:,} more" if count > 5 else shown


def _side_by_side(results: Results, unscored: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Returns models and published rows in one table, a column a figure; empty for one figure that stands alone."""
    names = dict.fromkeys(name for table in (results, unscored) for own in table.values() for name in own)
    rows = published_rows(results)
    shown = [(name, figure) for name in names for figure in
             dict.fromkeys([_OVERALL, *(row.figure for row in rows if row.benchmark == name)])]  # fmt: skip
    if len(results) == len(shown) == 1 and not rows:
        return []
    theirs = list(dict.fromkeys(row.model for row in rows))
    columns = [["model", *results, *(["highest"] if len(results) > 1 else []), *(f"{model} *" for model in theirs)]]
    for name, figure in shown:
        cells = [_cell(own.get(name), figure, name in unscored.get(model, {})) for model, own in results.items()]
        ours = {model: _figure(own[name], figure) for model, own in results.items() if name in own}
        known = {row.model: f"{row.value:.3f}" for row in rows if (row.benchmark, row.figure) == (name, figure)}
        title = name if figure == _OVERALL else f"{name}, {figure}"
        columns.append([title, *cells, *_highest(ours, len(results)), *(known.get(model, "") for model in theirs)])
    common, means = averages(results)
    if means:
        cells = [f"{estimate:.3f}" for estimate in means.values()]
        columns.append([f"average of {len(common)}", *cells, *_highest(means, len(results)), *[""] * len(theirs)])
    widths = [max(map(len, column)) for column in columns]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in zip(*columns, strict=True)]
    sources = "; ".join(dict.fromkeys(row.source for row in rows))
    return [*lines, f"* published, not run here: {sources}"] if rows else lines


def _figure(result: BenchmarkResult, figure: str) -> Estimate | None:
    return result.overall if figure == _OVERALL else result.others.get(figure)


def _cell(result: BenchmarkResult | None, figure: str, unscored: bool) -> str:
    """Returns the cell of a model and a figure; only that of the overall figure says why there is none."""
    found = result and _figure(result, figure)
    if result is None or found is None:
        return "" if figure != _OVERALL else "not scorable" if unscored else "not run"
    return f"{found:.3f}" + " incomplete" * (figure == _OVERALL and bool(result.missing_parts))


def _highest(ours: Mapping[str, Estimate | None], models: int) -> list[str]:
    """Returns the cell that names the best of several models, no cell where there is one."""
    values = {model: estimate.value for model, estimate in ours.items() if estimate is not None}
    return [", ".join(m for m, v in values.items() if v == max(values.values()))] if models > 1 else []
