"""What a person reads of an evaluation: each result in full, models side by side, published rows, warnings."""

import math
from collections.abc import Mapping, Sequence

from rmtrl.evaluation.benchmarks.results import BenchmarkResult, in_words
from rmtrl.evaluation.published import PublishedFigure, published
from rmtrl.types import Estimate

Results = Mapping[str, Mapping[str, BenchmarkResult]]
"""Results by model and benchmark."""

_ENOUGH = 3  # benchmarks, below which nothing is said of other domains
_MIXED = "mixed"  # the kind of benchmarks that hold several kinds


def average(estimates: Sequence[Estimate]) -> Estimate:
    """Returns the plain mean of figures of different benchmarks.

    Benchmarks are taken as independent, so the half widths add in squares: low = mean − √Σ(valueᵢ − lowᵢ)² / k.

    Args:
        estimates (`Sequence[Estimate]`): One figure a benchmark.

    Example:

    ```python
    >>> print(average([Estimate(0.8, 0.7, 0.9, 100), Estimate(0.6, 0.6, 0.6, 50)]))
    0.700 [0.650, 0.750] (n = 150)
    ```
    """
    k = len(estimates)
    mean = sum(estimate.value for estimate in estimates) / k
    low, high = (math.sqrt(sum((e.value - end) ** 2 for e, end in zip(estimates, ends, strict=True))) / k
                 for ends in ([e.low for e in estimates], [e.high for e in estimates]))  # fmt: skip
    n = sum(estimate.n for estimate in estimates)
    return Estimate(mean, mean - low, mean + high, n, estimates[0].level, f"mean of {k} independent benchmarks")


def averages(results: Results) -> tuple[list[str], dict[str, Estimate]]:
    """Returns the benchmarks that all models have, and each model's average over them; none for fewer than two."""
    common = [name for name in next(iter(results.values())) if all(name in own for own in results.values())]
    if len(common) < 2:
        return common, {}
    return common, {model: average([own[name].overall for name in common]) for model, own in results.items()}


def warnings(
    results: Results, selected_on: Mapping[str, Sequence[str]], unscored: Mapping[str, Mapping[str, str]] = {}
) -> list[str]:
    """Returns what the figures do not show, a line each.

    Args:
        results (`Results`): Results by model and benchmark.
        selected_on (`Mapping[str, Sequence[str]]`): The benchmarks that chose each model's checkpoint.
        unscored (`Mapping[str, Mapping[str, str]]`): Why a benchmark has no result, by model and
            benchmark.
    """
    found = []
    # variants of one benchmark have one source, and count once
    kinds = {result.source: result.kind for own in results.values() for result in own.values()}
    if len(kinds) < _ENOUGH:
        found.append(
            f"{len(kinds)} benchmark{'s' * (len(kinds) > 1)}: fewer than {_ENOUGH} say nothing of a shift of domain"
        )
    elif len(set(kinds.values())) == 1 and _MIXED not in kinds.values():
        found.append(
            f"all {len(kinds)} benchmarks are of one kind ({next(iter(kinds.values()))}): that is no shift of domain"
        )
    for model, own in results.items():
        found += [
            f"{name} chose the checkpoint of {model}: its figure is too high for a test"
            for name in own
            if name in selected_on.get(model, ())
        ]
        found += [
            f"{name}, {model}: {_missing(result)} have no score{in_words(result.missing_reasons)}"
            for name, result in own.items()
            if result.n_missing
        ]
        found += [
            f"{name}, {model}: incomplete, it lacks rows of {_listed(list(parts), len(parts))}"
            for name, result in own.items()
            if (parts := result.missing_parts)
        ]
        found += [f"{name}, {model}: not scorable: {why}" for name, why in unscored.get(model, {}).items()]
    return found


def published_rows(results: Results) -> list[PublishedFigure]:
    """Returns the published figures of the benchmarks that were run."""
    return [row for name in dict.fromkeys(n for own in results.values() for n in own) for row in published(name)]


def report(
    results: Results,
    selected_on: Mapping[str, Sequence[str]],
    unscored: Mapping[str, Mapping[str, str]] = {},
) -> str:
    """Returns the whole text: every result, the table of models and benchmarks, published rows, warnings.

    Args:
        results (`Results`): Results by model and benchmark.
        selected_on (`Mapping[str, Sequence[str]]`): The benchmarks that chose each model's checkpoint.
        unscored (`Mapping[str, Mapping[str, str]]`): Why a benchmark has no result, by model and
            benchmark.
    """
    parts = [
        "\n".join(_result_lines(model, result, chose=name in selected_on.get(model, ())))
        for model, own in results.items()
        for name, result in own.items()
    ]
    if len(results) > 1 or len(_names(results, unscored)) > 1:
        parts.append("\n".join(_side_by_side(results, unscored)))
    if beside := _published_lines(results):
        parts.append("\n".join(beside))
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


def _names(results: Results, unscored: Mapping[str, Mapping[str, str]]) -> list[str]:
    return list(dict.fromkeys(name for table in (results, unscored) for own in table.values() for name in own))


def _side_by_side(results: Results, unscored: Mapping[str, Mapping[str, str]]) -> list[str]:
    names = _names(results, unscored)
    common, means = averages(results)
    head = ["model", *names, *([f"average of {len(common)}"] if means else [])]
    rows = [
        [model, *(_result_cell(own.get(name), name in unscored.get(model, {})) for name in names),
         *([_cell(means[model])] if means else [])]
        for model, own in results.items()
    ]  # fmt: skip
    if len(results) > 1:
        rows.append(["highest", *(_highest({m: own[name].overall for m, own in results.items() if name in own})
                                  for name in names), *([_highest(means)] if means else [])])  # fmt: skip
    return _table([head, *rows])


def _result_cell(result: BenchmarkResult | None, unscored: bool) -> str:
    if result is None:
        return "not scorable" if unscored else "not run"
    return _cell(result.overall) + " incomplete" * bool(result.missing_parts)


def _highest(figures: Mapping[str, Estimate]) -> str:
    if not figures:
        return ""
    best = max(estimate.value for estimate in figures.values())
    return ", ".join(model for model, estimate in figures.items() if estimate.value == best)


def _published_lines(results: Results) -> list[str]:
    """Returns our figures and the published ones in one table, a column a figure; empty where none is published."""
    names = list(dict.fromkeys(name for own in results.values() for name in own))
    rows = [row for name in names for row in published(name)]
    columns = sorted(
        {(row.benchmark, row.figure) for row in rows}, key=lambda c: (names.index(c[0]), c[1] != "overall")
    )
    if not columns:
        return []
    table = [["model", *(name if figure == "overall" else f"{name}, {figure}" for name, figure in columns)]]
    for model, own in results.items():
        table.append([model, *(_cell(_figure(own.get(name), figure)) for name, figure in columns)])
    for model in dict.fromkeys(row.model for row in rows):
        theirs = {(row.benchmark, row.figure): row for row in rows if row.model == model}
        table.append([f"{model} *", *(f"{theirs[key].value:.3f}" if key in theirs else "" for key in columns)])
    sources = "; ".join(dict.fromkeys(row.source for row in rows))
    return [*_table(table), f"* published, not run here: {sources}"]


def _figure(result: BenchmarkResult | None, figure: str) -> Estimate | None:
    if result is None:
        return None
    return result.overall if figure == "overall" else result.others.get(figure)


def _cell(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
