"""`rmtrl data coverage` and `rmtrl data sample`: a data set against its design, and a sample across domains."""

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmtrl.cli.console import Data, Json, Map, Split, print_json, print_table, read_pairs
from rmtrl.errors import DataError

if TYPE_CHECKING:
    from rmtrl.data.annotations.bias import AnnotatorBias


def coverage(
    data: Data,
    design: Annotated[str, typer.Option(help="A preset (blueprint, benchmark) or a YAML file.")] = "blueprint",
    annotations: Annotated[
        list[Path] | None, typer.Option(help="Annotation file, for judgments per item and biases; may be repeated.")
    ] = None,
    responses: Annotated[
        Path | None, typer.Option(help="File with item_id, prompt_id, source, response: response mix and lengths.")
    ] = None,
    strict: Annotated[bool, typer.Option(help="Exit with 1 where the design is not met or a bias is found.")] = False,
    columns: Map = None,
    split: Split = "train",
    as_json: Json = False,
) -> None:
    """Compare pairs with the design they were collected for, and look for biases of domains and annotators."""
    from rmtrl.data.annotations.bias import preference_rates, vote_bias
    from rmtrl.data.annotations.reading import read_annotations
    from rmtrl.data.design import coverage as compare
    from rmtrl.data.design import read_design
    from rmtrl.data.loading import load_rows

    plan = read_design(design)
    pairs = read_pairs(data, split, columns)
    texts = list(load_rows(responses)) if responses else []
    judged = read_annotations(annotations) if annotations else None
    per_item = [] if judged is None else _judgments_per_item(judged)
    result = compare(
        pairs,
        plan,
        judgments_per_item=per_item,
        criteria=() if judged is None else judged.criteria,
        sources=Counter(str(row.get("source", "unknown")) for row in texts) or None,
    )
    given = (_response(number, row) for number, row in enumerate(texts, 1))
    biases = [] if judged is None else vote_bias(judged, dict(given))
    flagged = {bias.annotator: list(bias.flags) for bias in biases if bias.flags}
    if as_json:
        rates = {
            column: {value: {key: getattr(rate, "as_dict", lambda rate=rate: rate)() for key, rate in figures.items()}
                     for value, figures in values.items()}
            for column, values in preference_rates(pairs).items()
        }  # fmt: skip
        print_json(
            {"schema": "rmtrl/coverage/1", "data": data, "design": design, "n": len(pairs), **result.as_dict(),
             "preference_rates": rates, "annotators": [bias.as_dict() for bias in biases], "flagged": flagged}
        )  # fmt: skip
    else:
        lines = {c["name"]: f"{c['got']} of {c['wanted']}{'' if c['met'] else '   <- not met'}" for c in result.checks}
        print_table({"pairs": len(pairs), **lines, "balance of domains": f"{result.balance:.3f}"})
        for bias in biases:
            print(f"{bias.annotator}: first side {bias.first}{_longer(bias)}")
    if biases and all(bias.longer is None for bias in biases):
        print("rmtrl: warning: lengths of the answers are unknown; give --responses", file=sys.stderr)
    for annotator, flags in flagged.items():
        print(f"rmtrl: warning: annotator {annotator} {', '.join(flags).replace('_', ' ')}", file=sys.stderr)
    if strict and (flagged or not result.met):
        raise typer.Exit(1)


def _judgments_per_item(judged: Any) -> list[int]:
    from rmtrl.data.annotations.reading import ITEM

    if len(judged.ratings):
        return list(judged.ratings.groupby(ITEM).annotator.nunique())
    return list(judged.votes.pair.value_counts())


def _longer(bias: "AnnotatorBias") -> str:
    if bias.longer is None:
        return ""
    above = "" if bias.longer_excess is None else f", above the others {bias.longer_excess}"
    return f", longer side {bias.longer}{above}"


def _response(number: int, row: dict[str, Any]) -> tuple[tuple[str, str], Any]:
    from rmtrl.data.annotations.reading import as_text

    missing = [name for name in ("item_id", "prompt_id", "response") if row.get(name) is None]
    if missing:
        raise DataError(f"row {number} of --responses has no {', '.join(missing)}; wanted item_id, "
                        "prompt_id and response")  # fmt: skip
    try:
        return (str(row["prompt_id"]), str(row["item_id"])), as_text(row["response"])
    except DataError as error:
        raise DataError(f"the response in row {number} of --responses: {error}") from error
