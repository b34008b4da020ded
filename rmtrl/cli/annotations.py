"""`rmtrl annotations …`: how far annotators agree, scores of items, preference pairs."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmtrl.cli.console import Json, print_json, print_table, write_jsonl, write_jsonl_files
from rmtrl.errors import DataError, UsageError

if TYPE_CHECKING:
    from rmtrl.data.annotations.agreement import Agreement
    from rmtrl.data.annotations.tables import Annotations

app = typer.Typer(help="Check and combine human judgments.", no_args_is_help=True)

Files = Annotated[list[Path], typer.Argument(help="Judgments, one a line (jsonl, json, csv, parquet, also .gz).")]
Likert = Annotated[str, typer.Option(help="Ends of the rating scale, low,high.")]
Rejects = Annotated[Path | None, typer.Option(help="Write what cannot be used here, with reasons, as jsonl.")]
Weights = Annotated[
    str | None, typer.Option(help="Weights of the criteria, summing to 1: usefulness=0.5,safety=0.5. Equal if absent.")
]
AnnotatorWeights = Annotated[str | None, typer.Option(help="Weights of annotators, 1 if not named: ann=0.5,bo=2.")]
Alpha = Annotated[float, typer.Option(help="Share of the criterion score in the final score; the rest is Borda.")]
Quorum = Annotated[int, typer.Option(help="Fewest annotators an item needs.")]


@app.command()
def agreement(
    files: Files,
    scale: Annotated[str, typer.Option(help="nominal, ordinal or interval, for ratings.")] = "ordinal",
    by: Annotated[str, typer.Option(help="criterion, or domain,criterion.")] = "criterion",
    target: Annotated[float, typer.Option(help="Alpha below which a slice is listed.")] = 0.6,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    likert: Likert = "1,5",
    rejects: Rejects = None,
    as_json: Json = False,
) -> None:
    """Report how far annotators agree, with 95 % intervals, and what is below target."""
    from rmtrl.data.annotations.agreement import agreement as measure
    from rmtrl.data.annotations.agreement import below_target

    annotations = _read(files, likert, rejects)
    results = measure(annotations, scale=scale, by=[name.strip() for name in by.split(",")], seed=seed)  # type: ignore[arg-type]
    below = below_target(results, target)
    if as_json:
        print_json(
            _report("agreement", files, annotations)
            | {"scale": scale, "target": target, "seed": seed, "results": [result.as_dict() for result in results]}
            | {"below_target": [{"criterion": r.criterion, "domain": r.domain, "alpha": r.alpha} for r in below]}
        )
        return
    print_table(_counts(annotations))
    for result in results:
        _print_agreement(result, result in below, target)


@app.command()
def aggregate(
    files: Files,
    weights: Weights = None,
    alpha: Alpha = 0.6,
    quorum: Quorum = 3,
    annotator_weights: AnnotatorWeights = None,
    tie_breaks: Annotated[
        str, typer.Option(help="Rules in order: wins, top_criterion, criterion, variance, seeded.")
    ] = "wins,top_criterion,seeded",
    tolerance: Annotated[float, typer.Option(help="Final scores this near are a tie.")] = 1e-9,
    seed: Annotated[int, typer.Option(help="Seed of the rule `seeded`.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Write the scores of the items here, as jsonl, instead of into the JSON.")
    ] = None,
    likert: Likert = "1,5",
    rejects: Rejects = None,
    as_json: Json = False,
) -> None:
    """Score items by criterion and by votes, blend the two, rank them within each prompt."""
    from rmtrl.data.annotations.aggregation import aggregate as score_items

    annotations = _read(files, likert, rejects)
    scores = score_items(
        annotations, weights=_numbers("--weights", weights), alpha=alpha, quorum=quorum, tolerance=tolerance,
        annotator_weights=_numbers("--annotator-weights", annotator_weights), seed=seed,
        tie_breaks=[name.strip() for name in tie_breaks.split(",")],
    )  # fmt: skip
    rows = scores.rows()
    if out is not None:
        write_jsonl(out, rows)
    if as_json:
        settings = {"weights": scores.weights, "alpha": alpha, "quorum": quorum, "seed": seed}
        items = {"items": rows} if out is None else {"out": str(out)}
        print_json(_report("aggregation", files, annotations) | settings | {"counts": scores.counts} | items)
    else:
        print_table(_counts(annotations) | {name.replace("_", " "): n for name, n in scores.counts.items()})


@app.command()
def pairs(
    files: Files,
    source: Annotated[str | None, typer.Option("--from", help="votes or ratings; votes where there are any.")] = None,
    disputed: Annotated[
        str, typer.Option(help="Pairs on which votes differ: adjudicate, weight (by vote share) or slice.")
    ] = "adjudicate",
    min_votes: Annotated[int, typer.Option(help="Fewest votes a pair needs.")] = 1,
    min_gap: Annotated[float, typer.Option(help="Difference of scores, 0–1, under which ratings tie.")] = 0.05,
    score: Annotated[str, typer.Option(help="Score to compare: final or criterion.")] = "final",
    weights: Weights = None,
    alpha: Alpha = 0.6,
    quorum: Quorum = 1,
    annotator_weights: AnnotatorWeights = None,
    out: Annotated[Path | None, typer.Option(help="Write the pairs here, as jsonl.")] = None,
    review: Annotated[Path | None, typer.Option(help="Write the disputed pairs here, as jsonl.")] = None,
    responses: Annotated[str | None, typer.Option(help="Texts by item_id and prompt_id.")] = None,
    prompts: Annotated[str | None, typer.Option(help="Texts by prompt_id.")] = None,
    likert: Likert = "1,5",
    rejects: Rejects = None,
    as_json: Json = False,
) -> None:
    """Make preference pairs from votes or ratings; set disputed ones apart."""
    from rmtrl.data.annotations.aggregation import aggregate as score_items
    from rmtrl.data.annotations.pairs import pairs_from_ratings, pairs_from_votes
    from rmtrl.data.annotations.texts import with_texts
    from rmtrl.data.reading.loading import load_rows

    if source not in (None, "votes", "ratings"):
        raise UsageError(f"got --from {source}; wanted votes or ratings")
    annotations = with_texts(
        _read(files, likert, rejects),
        prompts=None if prompts is None else load_rows(prompts),
        responses=None if responses is None else load_rows(responses),
    )
    source = source or ("votes" if len(annotations.votes.pair) else "ratings")
    if source == "votes":
        made = pairs_from_votes(annotations, disputed=disputed, min_votes=min_votes)  # type: ignore[arg-type]
    else:
        trust = _numbers("--annotator-weights", annotator_weights)
        criteria = _numbers("--weights", weights)
        scores = score_items(annotations, weights=criteria, alpha=alpha, quorum=quorum, annotator_weights=trust)
        made = pairs_from_ratings(annotations, scores, score=score, min_gap=min_gap)  # type: ignore[arg-type]
    wanted = ((out, made.pairs), (review, made.review))
    write_jsonl_files({path: rows for path, rows in wanted if path is not None})
    if as_json:
        settings = {"from": source} | ({"disputed": disputed} if source == "votes" else {"min_gap": min_gap})
        print_json(_report("pairs", files, annotations) | settings | {"counts": made.counts})
    else:
        named = {f"pairs: {name.replace('_', ' ')}": count for name, count in made.counts.items()}
        print_table(_counts(annotations) | named)
    if made.counts["missing_text"]:
        print(
            f"rmtrl: warning: {made.counts['missing_text']:,} pairs have no text and are left out; give --responses "
            "and --prompts",
            file=sys.stderr,
        )


def _read(files: Sequence[Path], likert: str, rejects: Path | None) -> "Annotations":
    from rmtrl.data.annotations.forms import read_annotations

    try:
        low, high = (float(end) for end in likert.split(","))
    except ValueError as error:
        raise UsageError(f"got --likert {likert}; wanted low,high, for example 1,5") from error
    annotations = read_annotations(files, likert=(low, high))
    if rejects is not None:
        write_jsonl(rejects, annotations.rejects)
    if not annotations.kept:
        most = max(annotations.reasons, key=lambda reason: annotations.reasons[reason])
        raise DataError(
            f"none of the {annotations.n} lines of {', '.join(map(str, files))} is a judgment (mostly {most}); wanted "
            "item_id, prompt_id, annotator and scores, or prompt_id, annotator, a, b and choice"
        )
    if annotations.conflicts:
        print(f"rmtrl: warning: {annotations.conflicts:,} lines give another domain or text than an earlier line; the "
              "first counts", file=sys.stderr)  # fmt: skip
    return annotations


def _numbers(flag: str, text: str | None) -> dict[str, float] | None:
    if text is None:
        return None
    try:
        return {name.strip(): float(value) for name, value in (part.rsplit("=", 1) for part in text.split(","))}
    except ValueError as error:
        raise UsageError(f"got {flag} {text}; wanted name=number,name=number") from error


def _report(name: str, files: Sequence[Path], annotations: "Annotations") -> dict[str, Any]:
    return {"schema": f"rmtrl/{name}/1", "data": [str(file) for file in files], **annotations.as_dict()}


def _counts(annotations: "Annotations") -> dict[str, Any]:
    reasons = {f"rejected: {reason}": count for reason, count in annotations.reasons.items() if count}
    names = ("n", "kept", "ratings", "votes", "annotators")
    counts = {name: count for name, count in annotations.as_dict().items() if name in names}
    return {"judgments": counts.pop("n")} | counts | reasons


def _print_agreement(result: "Agreement", below: bool, target: float) -> None:
    verdict = f"; below the target of {target:g}" if below else ""
    print(f"\n{result.criterion}{f', {result.domain}' if result.domain else ''}: {result.interpretation}{verdict}")
    names = {"alpha": f"  alpha, {result.scale}", "fleiss": "  Fleiss' kappa", "cohen": "  Cohen's kappa, mean",
             "ac1": "  Gwet's AC1", "brennan_prediger": "  Brennan-Prediger", "raw": "  raw agreement"}  # fmt: skip
    pairs = {f"  Cohen's kappa, {a} and {b}": estimate for (a, b), estimate in result.cohen_pairs.items()}
    shown = {names[name]: estimate for name, estimate in result.coefficients.items()} | pairs
    print_table({name: "undefined" if estimate is None else estimate for name, estimate in shown.items()})
