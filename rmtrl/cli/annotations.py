"""`rmtrl annotations …`: how far annotators agree, scores of items, preference pairs."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmtrl.cli.console import Json, named_numbers, print_json, print_table
from rmtrl.errors import DataError, UsageError
from rmtrl.io import write_row_files

if TYPE_CHECKING:
    from rmtrl.data.annotations.aggregation import ItemScores
    from rmtrl.data.annotations.agreement import Agreement
    from rmtrl.data.annotations.pairs import PairSet
    from rmtrl.data.annotations.reading import Annotations

app = typer.Typer(help="Check and combine human judgments.", no_args_is_help=True)

Files = Annotated[list[Path], typer.Argument(help="Judgments, one a line (jsonl, json, csv, parquet, also .gz).")]
Likert = Annotated[str, typer.Option(help="Ends of the rating scale, low,high.")]
Criteria = Annotated[
    str | None, typer.Option(help="Columns that are criteria: usefulness,safety. Those that hold numbers if absent.")
]
Rejects = Annotated[Path | None, typer.Option(help="Write what cannot be used here, with reasons, as jsonl.")]
Weights = Annotated[
    str | None, typer.Option(help="Weights of the criteria, summing to 1: usefulness=0.5,safety=0.5. Equal if absent.")
]
AnnotatorWeights = Annotated[str | None, typer.Option(help="Weights of annotators, 1 if not named: ann=0.5,bo=2.")]
Alpha = Annotated[float, typer.Option(help="Share of the criterion score in the final score; the rest is Borda.")]
Quorum = Annotated[int, typer.Option(help="Fewest annotators an item needs.")]

ITEMS_SHOWN = 20
UNBALANCED = 0.8  # share of the votes on one side from which chance-corrected figures suffer
_ONLY_FOR = {"votes": ("min_votes",), "ratings": ("weights", "alpha", "quorum", "score", "min_gap")}


@app.command()
def agreement(
    files: Files,
    scale: Annotated[str, typer.Option(help="nominal, ordinal or interval, for ratings.")] = "ordinal",
    by: Annotated[str, typer.Option(help="criterion, or domain,criterion.")] = "criterion",
    target: Annotated[float, typer.Option(help="Alpha below which a slice is listed.", min=-1, max=1)] = 0.6,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    likert: Likert = "1,5",
    criteria: Criteria = None,
    rejects: Rejects = None,
    as_json: Json = False,
) -> None:
    """Report how far annotators agree, with 95 % intervals, and what is below target."""
    from rmtrl.data.annotations.agreement import agreement as measure
    from rmtrl.data.annotations.agreement import below_target

    _check_outputs(files, {"--rejects": rejects})
    annotations = _read(files, likert, criteria)
    results = measure(annotations, scale=scale, by=[name.strip() for name in by.split(",")], seed=seed)  # type: ignore[arg-type]
    below = below_target(results, target)
    _write({rejects: annotations.rejects})
    _warn_of_sides(annotations)
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
    criteria: Criteria = None,
    rejects: Rejects = None,
    as_json: Json = False,
) -> None:
    """Score items by criterion and by votes, blend the two, rank them within each prompt."""
    from rmtrl.data.annotations.aggregation import aggregate as score_items

    _check_outputs(files, {"--out": out, "--rejects": rejects})
    annotations = _read(files, likert, criteria)
    scores = score_items(
        annotations, weights=named_numbers("--weights", weights), alpha=alpha, quorum=quorum, tolerance=tolerance,
        annotator_weights=named_numbers("--annotator-weights", annotator_weights), seed=seed,
        tie_breaks=[name.strip() for name in tie_breaks.split(",")],
    )  # fmt: skip
    rows = scores.rows()
    _write({out: rows, rejects: annotations.rejects})
    if as_json:
        settings = {"weights": scores.weights, "alpha": alpha, "quorum": quorum, "seed": seed}
        items = {"items": rows} if out is None else {"out": str(out)}
        print_json(_report("aggregation", files, annotations) | settings | {"counts": scores.counts} | items)
    else:
        print_table(_counts(annotations) | {name.replace("_", " "): n for name, n in scores.counts.items()})
        if out is None:
            _print_items(scores)


@app.command()
def pairs(
    context: typer.Context,
    files: Files,
    source: Annotated[str | None, typer.Option("--from", help="votes or ratings; votes where there are any.")] = None,
    disputed: Annotated[
        str, typer.Option(help="Pairs on which judgments differ: adjudicate, weight (kept, by vote share) or slice.")
    ] = "adjudicate",
    min_votes: Annotated[int, typer.Option(help="Fewest votes a pair needs.")] = 2,
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
    criteria: Criteria = None,
    rejects: Rejects = None,
    as_json: Json = False,
) -> None:
    """Make preference pairs from votes or ratings; set disputed ones apart."""
    from rmtrl.data.annotations.aggregation import aggregate as score_items
    from rmtrl.data.annotations.pairs import pairs_from_ratings, pairs_from_votes
    from rmtrl.data.annotations.reading import with_texts
    from rmtrl.data.loading import load_rows

    if source not in (None, "votes", "ratings"):
        raise UsageError(f"got --from {source}; wanted votes or ratings")
    texts = [Path(name) for name in (prompts, responses) if name is not None]
    _check_outputs([*files, *texts], {"--out": out, "--review": review, "--rejects": rejects})
    annotations = with_texts(
        _read(files, likert, criteria),
        prompts=None if prompts is None else load_rows(prompts),
        responses=None if responses is None else load_rows(responses),
    )
    found = [name for name in ("votes", "ratings") if len(getattr(annotations, name).annotator)]
    both, source = source is None and len(found) > 1, source or found[0]
    _check_options(context, source)
    trust = named_numbers("--annotator-weights", annotator_weights)
    if source == "votes":
        made = pairs_from_votes(annotations, disputed=disputed, min_votes=min_votes, annotator_weights=trust)  # type: ignore[arg-type]
    else:
        shares = named_numbers("--weights", weights)
        scores = score_items(annotations, weights=shares, alpha=alpha, quorum=quorum, annotator_weights=trust)
        made = pairs_from_ratings(annotations, scores, score=score, min_gap=min_gap, disputed=disputed)  # type: ignore[arg-type]
    _check_any(made, min_votes)
    _write({out: made.pairs, review: made.review, rejects: annotations.rejects})
    if both:
        print("rmtrl: the data holds votes and ratings; votes are used (--from ratings for the others)",
              file=sys.stderr)  # fmt: skip
    if as_json:
        settings: dict[str, Any] = {"from": source, "disputed": disputed}
        settings |= {"min_votes": min_votes} if source == "votes" else {"min_gap": min_gap}
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


def _check_outputs(inputs: Sequence[Path], outputs: Mapping[str, Path | None]) -> None:
    taken: dict[Path, str] = {}
    for flag, path in outputs.items():
        if path is None:
            continue
        if path.resolve() in {name.resolve() for name in inputs}:
            raise UsageError(f"got {flag} {path}, which is read; give another file")
        if (other := taken.setdefault(path.resolve(), flag)) != flag:
            raise UsageError(f"got {path} for both {other} and {flag}; give two files")


def _check_options(context: typer.Context, source: str) -> None:
    other = "ratings" if source == "votes" else "votes"
    given = [
        f"--{name.replace('_', '-')}"
        for name in _ONLY_FOR[other]
        if (where := context.get_parameter_source(name)) is not None and where.name == "COMMANDLINE"
    ]
    if given:
        verb = "is" if len(given) == 1 else "are"
        raise UsageError(f"{', '.join(given)} {verb} for --from {other}; these pairs are made from {source}")


def _check_any(made: "PairSet", min_votes: int) -> None:
    counts = made.counts
    if counts["kept"] or counts["review"]:
        return
    textless, few = counts["missing_text"], counts.get("too_few_votes", 0)
    if textless > few:
        cause = f"{textless:,} of {counts['n']:,} have no text; give --prompts and --responses"
    elif few:
        got = f"{few:,} of {counts['n']:,} have {made.most_votes} at most, wanted {min_votes}"
        cause = f"{got}: too few votes; lower --min-votes or get more votes"
    else:
        cause = "no prompt has two items with a score and the quorum; lower --quorum or give more ratings"
    raise DataError(f"no pair can be made: {cause}")


def _write(files: Mapping[Path | None, Iterable[Mapping[str, Any]]]) -> None:
    write_row_files({path: rows for path, rows in files.items() if path is not None})


def _read(files: Sequence[Path], likert: str, criteria: str | None) -> "Annotations":
    from rmtrl.data.annotations.reading import read_annotations

    try:
        low, high = (float(end) for end in likert.split(","))
    except ValueError as error:
        raise UsageError(f"got --likert {likert}; wanted low,high, for example 1,5") from error
    names = None if criteria is None else [name.strip() for name in criteria.split(",")]
    annotations = read_annotations(files, likert=(low, high), criteria=names)
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


def _report(name: str, files: Sequence[Path], annotations: "Annotations") -> dict[str, Any]:
    return {"schema": f"rmtrl/{name}/1", "data": [str(file) for file in files], **annotations.as_dict()}


def _counts(annotations: "Annotations") -> dict[str, Any]:
    reasons = {f"rejected: {reason}": count for reason, count in annotations.reasons.items() if count}
    names = ("n", "kept", "ratings", "votes", "annotators")
    counts = {name: count for name, count in annotations.as_dict().items() if name in names}
    return {"judgments": counts.pop("n")} | counts | reasons


def _print_items(scores: "ItemScores") -> None:
    shown = scores.rows()[:ITEMS_SHOWN]
    print("\nfinal score and rank within the prompt")
    print_table({f"{row['prompt_id']}, {row['item_id']}": _place(row) for row in shown})
    if len(scores.items) > len(shown):
        print(f"{len(scores.items) - len(shown):,} more; see --out or --json")


def _place(row: Mapping[str, Any]) -> str:
    score = "none" if row["final"] is None else f"{row['final']:.3f}"
    place = "excluded" if row["excluded"] else f"rank {row['rank']}"
    return f"{score}, {place}{', flagged' if row['flagged'] else ''}"


def _warn_of_sides(annotations: "Annotations") -> None:
    choice = annotations.votes.choice
    for code, side in enumerate(("first", "last")):
        share = float((choice == code).mean()) if len(choice) else 0.0
        if share > UNBALANCED:
            print(
                f"rmtrl: warning: sides are unbalanced: {share * 100:.0f} % of the votes are for the item whose id "
                f"sorts {side}; chance-corrected figures are low for that reason",
                file=sys.stderr,
            )


def _print_agreement(result: "Agreement", below: bool, target: float) -> None:
    verdict = f"; below the target of {target:g}" if below else ""
    print(f"\n{result.criterion}{f', {result.domain}' if result.domain else ''}: {result.interpretation}{verdict}")
    names = {"alpha": f"  alpha, {result.scale}", "fleiss": "  Fleiss' kappa", "cohen": "  Cohen's kappa, mean",
             "ac1": "  Gwet's AC1", "brennan_prediger": "  Brennan-Prediger", "raw": "  raw agreement"}  # fmt: skip
    pairs = {f"  Cohen's kappa, {a} and {b}": estimate for (a, b), estimate in result.cohen_pairs.items()}
    shown = {names[name]: estimate for name, estimate in result.coefficients.items()} | pairs
    print_table({name: "undefined" if estimate is None else estimate for name, estimate in shown.items()})
