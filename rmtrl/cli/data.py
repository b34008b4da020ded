"""`rmtrl data …`: check, clean and split preference data before training."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rmtrl.cli import duplicates
from rmtrl.cli.console import (
    Data,
    Json,
    Map,
    Split,
    load_tokenizer,
    print_json,
    print_table,
    read_pairs,
)
from rmtrl.errors import DataError, UsageError
from rmtrl.io import check_output, write_row_files

if TYPE_CHECKING:
    from rmtrl.data.validation import ValidationResult

app = typer.Typer(help="Check preference data before training.", no_args_is_help=True)


@app.command()
def validate(
    data: Data,
    tokenizer: Annotated[str | None, typer.Option(help="Tokenizer folder or hub id, to count tokens.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest side, in tokens.")] = None,
    ties: Annotated[str, typer.Option(help="`drop` rejects ties, `keep` leaves them.")] = "drop",
    out: Annotated[Path | None, typer.Option(help="Write the kept pairs here, as jsonl.")] = None,
    rejects: Annotated[Path | None, typer.Option(help="Write the rejected pairs and reasons here, as jsonl.")] = None,
    strict: Annotated[bool, typer.Option(help="Exit with 1 if any pair is rejected.")] = False,
    columns: Map = None,
    split: Split = "train",
    as_json: Json = False,
) -> None:
    """Count which pairs can be trained on and why the others cannot."""
    from rmtrl.data.validation import validate as validate_pairs

    if ties not in ("drop", "keep"):
        raise UsageError(f"got --ties {ties}; wanted drop or keep")
    check_output(rejects, [data], flag="--rejects")
    if max_length is not None and tokenizer is None:
        raise UsageError("got --max-length without --tokenizer; tokens can only be counted with one")
    if out is not None and rejects is not None and out.resolve() == rejects.resolve():
        raise UsageError(f"got {out} for both --out and --rejects; give two files")
    result = validate_pairs(
        read_pairs(data, split, columns, faulty="keep"),
        ties=ties,  # type: ignore[arg-type]
        tokenizer=None if tokenizer is None else load_tokenizer(tokenizer),
        max_length=max_length,
    )
    counts = result.as_dict()
    files = {out: result.kept if len(result.kept) else None, rejects: result.rejects}
    write_row_files({path: rows for path, rows in files.items() if path is not None and rows is not None})
    if not len(result.kept):
        raise DataError(f"none of the {result.n:,} pairs of {data} can be used: {_why(result)}")
    if as_json:
        print_json({"schema": "rmtrl/validation/1", "data": data, **counts})
    else:
        reasons = {f"rejected: {reason}": count for reason, count in counts["reasons"].items() if count}
        print_table({"pairs": counts["n"], "kept": counts["kept"], "rejected": counts["rejected"], **reasons,
                      "tie rate": f"{counts['tie_rate']:.3f}", "prompts": counts["groups"]})  # fmt: skip
    for warning in counts["warnings"]:
        print(f"rmtrl: warning: {warning}", file=sys.stderr)
    if strict and len(result.rejects):
        raise typer.Exit(1)


def _why(result: "ValidationResult") -> str:
    """Returns the reasons and the first fault that has words of its own."""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in result.reasons.items() if count)
    faults = result.rejects["fault"] if "fault" in result.rejects.column_names else []
    first = next((f"; the first: {fault}" for fault in faults if fault), "")
    return "; ".join([f"{reasons}{first}", *result.warnings])


app.command()(duplicates.dedup)
app.command()(duplicates.contamination)
