"""`rmtrl data …`: check, clean, split, sample and make preference data before training."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from rmtrl.cli import options as opt
from rmtrl.cli.annotations import read_judgments
from rmtrl.cli.console import check_outputs, notes_of, read_pairs, show
from rmtrl.errors import DataError, UsageError
from rmtrl.io import write_row_files, write_rows

app = typer.Typer(name="data", help="Check preference data before training.", no_args_is_help=True)

Threshold = Annotated[float, typer.Option(help="Jaccard index from which two prompts are near-duplicates.")]
Folder = Annotated[Path, typer.Option(help="Folder to write: a file a set, and what rebuilds them.")]


@app.command()
def validate(
    data: opt.Data,
    tokenizer: Annotated[str | None, typer.Option(help="Tokenizer folder or hub id, to count tokens.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest side, in tokens.", min=1)] = None,
    ties: Annotated[Literal["drop", "keep"], typer.Option(help="`drop` rejects ties, `keep` leaves them.")] = "drop",
    out: Annotated[
        Path | None, typer.Option(help="Write the rows here, as jsonl; with --rejects it may replace the data itself.")
    ] = None,
    rejects: opt.Rejects = None,
    strict: opt.Strict = False,
    columns: opt.Map = None,
    split: opt.Split = "train",
    as_json: opt.Json = False,
) -> None:
    """Count which pairs can be trained on and why the others cannot."""
    from rmtrl.data.preferences import as_given, with_given_names
    from rmtrl.data.validation import validate as validate_pairs

    if max_length is not None and tokenizer is None:
        raise UsageError(f"--max-length {max_length} counts tokens; give --tokenizer too")
    check_outputs([data], {"--rejects": rejects} if rejects else {"--out": out})
    check_outputs([], {"--out": out, "--rejects": rejects})  # the kept pairs may replace the data beside their rejects
    loaded = None
    if tokenizer is not None:
        from rmtrl.models import load_tokenizer

        loaded = load_tokenizer(tokenizer, kind="tokenizer")
    pairs = read_pairs(data, split, columns, faulty="keep")
    result = validate_pairs(pairs, ties=ties, tokenizer=loaded, max_length=max_length)
    kept = with_given_names(result.kept)
    write_row_files({out if len(kept) else None: kept, rejects: as_given(result.rejects)})
    if not len(result.kept):
        raise DataError(f"none of the {result.n:,} pairs of {data} can be used: {result.why}")
    show({"schema": "rmtrl/validation/1", "data": data, **result.as_dict()}, as_json, warnings=result.warnings)
    if strict and len(result.rejects):
        raise typer.Exit(1)


@app.command()
def dedup(
    data: opt.Data,
    threshold: Threshold = 0.8,
    out: opt.AnyRows = None,
    keep: Annotated[
        Literal["representatives", "all"], typer.Option(help="Rows to write: those of a prompt a cluster, or all.")
    ] = "representatives",
    columns: opt.Map = None,
    split: opt.Split = "train",
    as_json: opt.Json = False,
) -> None:
    """Find prompts that are equal or nearly so, and keep one of each cluster."""
    from rmtrl.data.clusters import deduplicate

    check_outputs([data], {"--out": out})
    pairs = read_pairs(data, split, columns)
    result = deduplicate(pairs, threshold=threshold)
    write_row_files({out: result.clustered if keep == "all" else result.kept})
    counts = {"schema": "rmtrl/dedup/1", "data": data, "threshold": threshold, **result.as_dict()}
    counts["warnings"] = [*notes_of(pairs), *result.warnings]
    show(counts, as_json, warnings=result.warnings)


@app.command()
def contamination(
    train: Annotated[str, typer.Argument(help="Training data: file, folder or hub id.")],
    evaluations: Annotated[list[str], typer.Argument(metavar="EVAL...", help="Evaluation sets, one or more.")],
    threshold: Threshold = 0.8,
    ngram: Annotated[int, typer.Option(help="Length of a word run that counts as overlap, in words.")] = 13,
    strict: opt.Strict = False,
    out: opt.AnyRows = None,
    columns: opt.Map = None,
    split: opt.Split = "train",
    as_json: opt.Json = False,
) -> None:
    """Count the evaluation prompts and answers that stand in the training data."""
    from rmtrl.data.contamination import contamination as find_contamination

    if len(set(evaluations)) < len(evaluations):
        raise UsageError(f"got {max(evaluations, key=evaluations.count)} twice; give every evaluation set once")
    check_outputs([train, *evaluations], {"--out": out})
    sets = {name: read_pairs(name, split, columns) for name in evaluations}
    report = find_contamination(read_pairs(train, split, columns), sets, threshold=threshold, ngram=ngram)
    write_row_files({out: report.clean})
    kept = len(report.clean)
    counts = {"n": report.n, "kept": kept, "dropped": report.n - kept, "skipped_comparisons": report.skipped}
    settings = {"threshold": threshold, "ngram": ngram, "found": report.found}
    results = [{"data": name, **result.as_dict()} for name, result in report.evaluations.items()]
    shown = counts | {name: result.overlaps for name, result in report.evaluations.items()}
    whole = {"schema": "rmtrl/contamination/1", "train": train, **counts, **settings, "evaluations": results}
    show(whole, as_json, words=shown)
    if strict and report.found:
        raise typer.Exit(1)


@app.command()
def split(
    data: opt.Data,
    out: Folder,
    ratios: Annotated[
        tuple[float, float, float, float], typer.Option(help="Shares of train, validation, calibration and test.")
    ] = (0.7, 0.1, 0.1, 0.1),
    stratify: Annotated[
        Literal["domain", "none"], typer.Option(help="`domain`: each in proportion in every split.")
    ] = "domain",
    holdout_domains: Annotated[str, typer.Option(help="Domains kept out of all splits, as spillover: a,b")] = "",
    sealed: Annotated[float, typer.Option(help="Share set aside, compressed, whose openings are counted.")] = 0.0,
    near_duplicates: Annotated[
        float | None,
        typer.Option(
            help="Prompts at least this alike (Jaccard) count as one; 0: only equal ids do. "
            "0.8 where the data has no cluster_id, which else says what counts as one."
        ),
    ] = None,
    seed: opt.Seed = 0,
    licence: Annotated[str, typer.Option(help="Licence and limits of use, for the manifest.")] = "",
    notes: Annotated[str, typer.Option(help="Curator's notes, for the manifest.")] = "",
    columns: opt.Map = None,
    from_split: opt.Split = "train",
    as_json: opt.Json = False,
) -> None:
    """Split pairs by prompt, near-duplicates together, and publish the splits with what rebuilds them."""
    from rmtrl.data.publishing import publish_splits

    check_outputs([data], {"--out": out}, into="--out")
    record = publish_splits(
        read_pairs(data, from_split, columns), out, source=data, ratios=ratios, stratify=stratify,
        holdout_domains=holdout_domains, sealed=sealed, near_duplicates=near_duplicates, seed=seed, licence=licence,
        notes=notes,
    )  # fmt: skip
    show({**record, "out": str(out)}, as_json)


@app.command()
def unseal(
    folder: Annotated[Path, typer.Argument(help="Folder written by `rmtrl data split --sealed`.")],
    purpose: Annotated[str, typer.Option(help="Why it is opened; kept with the count.")],
    out: opt.Rows,
    as_json: opt.Json = False,
) -> None:
    """Open the sealed split for a final figure; every opening is counted and kept with its purpose."""
    from rmtrl.data.publishing import unseal as open_sealed

    check_outputs([folder], {"--out": out})
    show({**open_sealed(folder, out, purpose=purpose), "out": str(out)}, as_json)


@app.command()
def coverage(
    data: opt.Data,
    design: Annotated[str, typer.Option(help="A preset (blueprint, benchmark) or a YAML file.")] = "blueprint",
    annotations: Annotated[
        list[Path] | None, typer.Option(help="Annotation file, for judgments per item and biases; may be repeated.")
    ] = None,
    responses: Annotated[
        Path | None, typer.Option(help="File with item_id, prompt_id, source, response: response mix and lengths.")
    ] = None,
    strict: Annotated[bool, typer.Option(help="Exit with 1 where the design is not met or a bias is found.")] = False,
    columns: opt.Map = None,
    split: opt.Split = "train",
    as_json: opt.Json = False,
) -> None:
    """Compare pairs with the design they were collected for, and look for biases of domains and annotators."""
    from rmtrl.data.annotations.bias import preference_rates, vote_bias
    from rmtrl.data.annotations.reading import judgments_per_item, with_texts
    from rmtrl.data.design import coverage as compare
    from rmtrl.data.design import read_design
    from rmtrl.data.loading import load_rows

    plan = read_design(design)
    pairs = read_pairs(data, split, columns)
    texts = list(load_rows(responses)) if responses else []
    sources = Counter(str(row.get("source", "unknown")) for row in texts) or None
    known: dict[str, Any] = {}
    biases, judgments = [], None
    if annotations:
        judged = with_texts(read_judgments(annotations), responses=texts)
        known = {"judgments_per_item": judgments_per_item(judged), "criteria": judged.criteria}
        biases, judgments = vote_bias(judged), judged.as_dict()
    result = compare(pairs, plan, sources=sources, **known)
    flagged = {bias.annotator: bias.flags for bias in biases if bias.flags}
    about = {"schema": "rmtrl/coverage/1", "data": data, "design": design, "n": len(pairs), "met": result.met}
    more = {"preference_rates": preference_rates(pairs), "annotators": biases, "flagged": flagged}
    found = {**about, **asdict(result), **more, "judgments": judgments}
    shown = {name: found[name] for name in ("n", "met", "balance", "checks", "annotators")}
    warnings = [f"annotator {name} {', '.join(flags).replace('_', ' ')}" for name, flags in flagged.items()]
    if biases and all(bias.longer is None for bias in biases):
        warnings.insert(0, "lengths of the answers are unknown; give --responses")
    if judgments and judgments["rejected"]:
        why = ", ".join(f"{count:,} {reason}" for reason, count in judgments["reasons"].items() if count)
        warnings.append(f"{judgments['rejected']:,} of the {judgments['n']:,} judgments cannot be used ({why})")
    show(found, as_json, words=shown, warnings=warnings)
    if strict and (flagged or not result.met):
        raise typer.Exit(1)


@app.command()
def sample(
    data: opt.Data,
    size: Annotated[int, typer.Option(help="Prompts to draw, each with all its pairs.")],
    out: opt.Rows,
    prevalence: Annotated[
        opt.Numbers | None, opt.numbers("Weight of each domain: chat=9,law=1; the data's own where absent.")
    ] = None,
    stress: Annotated[opt.Numbers | None, opt.numbers("Factor for high-stakes domains: medicine=3,law=2.")] = None,
    seed: opt.Seed = 0,
    columns: opt.Map = None,
    split: opt.Split = "train",
    as_json: opt.Json = False,
) -> None:
    """Draw prompts across domains by prevalence, more of the domains where mistakes cost most."""
    from rmtrl.data.design import sample_by_domain

    check_outputs([data], {"--out": out})
    drawn = sample_by_domain(read_pairs(data, split, columns), size, prevalence=prevalence, stress=stress, seed=seed)
    n = write_rows(out, drawn.pairs)
    counts = {"schema": "rmtrl/sample/1", "data": data, "n": n, "seed": seed, "domains": drawn.drawn}
    said = f"sampling_weight of the data is replaced by that of this draw ({drawn.replaced:,} rows had another)"
    show({**counts, "out": str(out)}, as_json, warnings=[said] if drawn.replaced else [])


@app.command()
def synthesize(
    out: Folder,
    prompts: Annotated[int, typer.Option(help="Number of prompts.", min=3)] = 15000,
    annotators: Annotated[int, typer.Option(help="Number of simulated annotators, at most 5.")] = 5,
    seed: opt.Seed = 0,
    clean: Annotated[bool, typer.Option(help="Plant no defects; label by the gold score.")] = False,
    unsafe_habit: Annotated[
        float, typer.Option(help="What unsafe instructions are worth to annotators; the best refusal is 1.")
    ] = 0.0,
    as_json: opt.Json = False,
) -> None:
    """Write the embedded world: prompts, responses, annotations, pairs, an evaluation set, gold scores, the truth."""
    from rmtrl.data.publishing import publish_world

    show(
        publish_world(out, prompts=prompts, annotators=annotators, seed=seed, clean=clean, unsafe_habit=unsafe_habit),
        as_json,
    )
