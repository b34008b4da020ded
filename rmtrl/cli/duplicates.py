"""`rmtrl data dedup` and `rmtrl data contamination`: prompts that stand in the data more than once."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from rmtrl.cli.console import Data, Json, Map, Split, print_json, print_table, read_pairs
from rmtrl.errors import UsageError
from rmtrl.io import check_output, write_rows

Threshold = Annotated[float, typer.Option(help="Jaccard index from which two prompts are near-duplicates.")]


def dedup(
    data: Data,
    threshold: Threshold = 0.8,
    out: Annotated[Path | None, typer.Option(help="Write the rows here, as jsonl with cluster_id.")] = None,
    keep: Annotated[str, typer.Option(help="Rows to write: `representatives` (a prompt a cluster) or `all`.")] = (
        "representatives"
    ),
    columns: Map = None,
    split: Split = "train",
    as_json: Json = False,
) -> None:
    """Find prompts that are equal or nearly so, and keep one of each cluster."""
    from rmtrl.data.clusters import deduplicate

    if keep not in ("representatives", "all"):
        raise UsageError(f"got --keep {keep}; wanted representatives or all")
    check_output(out, [data])
    result = deduplicate(read_pairs(data, split, columns), threshold=threshold)
    if out is not None:
        write_rows(out, result.clustered if keep == "all" else result.kept)
    counts = result.as_dict()
    for warning in result.warnings:
        print(f"rmtrl: warning: {warning}", file=sys.stderr)
    if as_json:
        print_json({"schema": "rmtrl/dedup/1", "data": data, "threshold": threshold, **counts})
        return
    print_table({"pairs": counts["n"], "prompts": counts["prompts"], "exact duplicates": counts["exact"],
                 "near-duplicates": counts["near"], "clusters": counts["clusters"],
                 "largest cluster": counts["largest"], "pairs of representatives": counts["kept"],
                 "comparisons skipped": counts["skipped_comparisons"]})  # fmt: skip
    for first, second in counts["examples"]:
        print(f"\n  {first}\n  {second}")


def contamination(
    train: Annotated[str, typer.Argument(help="Training data: file, folder or hub id.")],
    evaluations: Annotated[list[str], typer.Argument(metavar="EVAL...", help="Evaluation sets, one or more.")],
    threshold: Threshold = 0.8,
    ngram: Annotated[int, typer.Option(help="Length of a word run that counts as overlap, in words.")] = 13,
    strict: Annotated[bool, typer.Option(help="Exit with 1 if anything is found.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the training rows without those found, as jsonl.")] = None,
    columns: Map = None,
    split: Split = "train",
    as_json: Json = False,
) -> None:
    """Count the evaluation prompts and answers that stand in the training data."""
    from rmtrl.data.contamination import contamination as find_contamination

    if len(set(evaluations)) < len(evaluations):
        raise UsageError(f"got {max(evaluations, key=evaluations.count)} twice; give every evaluation set once")
    check_output(out, [train, *evaluations])
    sets = {name: read_pairs(name, split, columns) for name in evaluations}
    report = find_contamination(read_pairs(train, split, columns), sets, threshold=threshold, ngram=ngram)
    if out is not None:
        write_rows(out, report.clean)
    kept = len(report.clean)
    if as_json:
        results = [{"data": name, **result.as_dict()} for name, result in report.evaluations.items()]
        print_json({"schema": "rmtrl/contamination/1", "train": train, "n": report.n, "kept": kept,
                     "dropped": report.n - kept, "skipped_comparisons": report.skipped,
                     "threshold": threshold, "ngram": ngram, "found": report.found,
                     "evaluations": results})  # fmt: skip
    else:
        print_table({"training pairs": report.n, "untouched": kept, "comparisons skipped": report.skipped})
        for name, result in report.evaluations.items():
            print(f"\n{name}: {result.n:,} pairs, {result.prompts:,} prompts")
            print_table({f"  {kind}": f"{overlap.count:,}, share {overlap.share or 'unknown: all too short'}"
                         for kind, overlap in result.overlaps.items()})  # fmt: skip
            for example in result.overlaps["any"].examples:
                print(f"\n  evaluation: {example['evaluation']}\n  train:      {example['train']}")
    if strict and report.found:
        raise typer.Exit(1)
