"""`rmtrl overopt`: what becomes of gold when samples are chosen by the proxy, from a file of scored samples."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmtrl.cli.console import Json, Map, print_json
from rmtrl.errors import DataError, UsageError

if TYPE_CHECKING:
    from datasets import Dataset

    from rmtrl.evaluation.overoptimization import Samples

_COLUMNS = ("prompt_id", "proxy", "gold")
_MORE = ("domain", "step", "kl", "truncated")
_NUMBER, _NAME, _FLAG = (
    ("int", "uint", "float", "double", "null"),
    ("int", "uint", "string", "large_string"),
    ("bool",),
)
_SCORE = (*_NUMBER, *_FLAG)  # correctness, true or false, counts as 1 and 0
_KINDS = dict.fromkeys(("proxy", "gold"), _SCORE) | dict.fromkeys(("step", "kl"), _NUMBER) | {
    "prompt_id": _NAME, "domain": _NAME, "truncated": _FLAG,
}  # fmt: skip
_WANTED = {
    _NUMBER: "a number",
    _SCORE: "a number, or true or false,",
    _NAME: "a text or a whole number",
    _FLAG: "true or false",
}


def overopt(
    samples: Annotated[
        str, typer.Argument(help="Samples, one a line: prompt_id, proxy, gold, and domain, step, kl if known.")
    ],
    n_max: Annotated[int | None, typer.Option(help="Largest n; the fewest samples of a prompt by default.")] = None,
    held_out: Annotated[
        list[str] | None, typer.Option(help="A domain the proxy was not trained on; may be repeated.")
    ] = None,
    n_resamples: Annotated[int, typer.Option(help="Bootstrap resamples over prompts.", min=100)] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.", min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for overoptimization.json and .png.")] = None,
    columns: Map = None,
    as_json: Json = False,
) -> None:
    """Measure overoptimization: best-of-n curves of proxy and gold, the degree gamma, peak and drawdown."""
    from rmtrl.data.provenance import environment, fingerprint
    from rmtrl.evaluation.overoptimization import measure_overoptimization
    from rmtrl.evaluation.overoptimization.measure import report, verdict

    rows = read_rows(samples, columns)
    result = measure_overoptimization(
        to_samples(rows, samples), n_max=n_max, held_out=held_out or (), n_resamples=n_resamples, seed=seed
    )
    whole = {
        **result.as_dict(),
        "verdict": verdict(result.whole),
        "data": {"source": samples, "rows": len(rows), "fingerprint": fingerprint(rows)},
        "settings": {"held_out": held_out or [], "n_resamples": n_resamples, "seed": seed},
        "environment": environment(),
    }
    if out is not None:
        _write(out, whole, result)
    if as_json:
        print_json(whole)
    else:
        print(report(result))


def read_rows(source: str, columns: list[str] | None) -> "Dataset":
    """Returns the columns that are used, renamed.

    Raises:
        DataError: If the file cannot be read, or lacks a column.
        UsageError: If a renaming is not of the form new=old, or its old column is none of the file.
    """
    from rmtrl.data.loading import load_rows

    rows = load_rows(source)
    for entry in columns or ():
        new, _, old = entry.partition("=")
        if not (new and old):
            raise UsageError(f"got --map {entry}; wanted new=old, for example --map proxy=score")
        if old not in rows.column_names:
            raise UsageError(f"got --map {entry}; {source} has the columns {', '.join(rows.column_names)}")
        rows = rows.remove_columns([new] if new in rows.column_names and new != old else [])
        rows = rows.rename_column(old, new) if new != old else rows
    missing = [name for name in _COLUMNS if name not in rows.column_names]
    if missing:
        raise DataError(
            f"{source} has no column {missing[0]} but {', '.join(rows.column_names)}; wanted prompt_id, proxy and "
            f"gold: rename with --map {missing[0]}=…"
        )
    return rows.select_columns([name for name in (*_COLUMNS, *_MORE) if name in rows.column_names])


def to_samples(rows: "Dataset", source: str) -> "Samples":
    """Returns the samples of a file's rows.

    Raises:
        DataError: If a score is no number or a prompt has no name; and as [`Samples`] says.
    """
    import numpy as np

    from rmtrl.evaluation.overoptimization import Samples

    frame = rows.with_format(None).to_pandas()
    values: dict[str, Any] = {}
    for name in rows.column_names:
        kind, column = str(getattr(rows.features[name], "dtype", "list")), frame[name]
        if not kind.startswith(_KINDS[name]):
            got = next(value for value in column if value is not None)
            raise DataError(f"{source} has the {name} {str(got)[:40]!r}; wanted {_WANTED[_KINDS[name]]} in every row")
        if name in ("proxy", "gold", "kl"):
            values[name] = column.to_numpy(dtype=np.float64, na_value=np.nan)
        elif column.isna().any():
            raise DataError(f"{source} has {int(column.isna().sum()):,} rows without {name}; name it in every row")
        else:
            values[name] = column.to_numpy(dtype=str) if name in ("prompt_id", "domain") else column.to_numpy()
    return Samples(**values)


def _write(out: Path, whole: dict[str, Any], result: Any) -> None:
    from rmtrl.io import write_json
    from rmtrl.reporting.plots import overoptimization_plot, save_figure

    png = out / "overoptimization.png"
    try:
        save_figure(overoptimization_plot(result.whole), png, dpi=150)
    except OSError as error:
        raise DataError(f"cannot write into {out}: {error.strerror or error}; give another folder") from error
    write_json(png.with_suffix(".json"), whole)
