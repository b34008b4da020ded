"""`rmtrl annotations …`: how far annotators agree, scores of items, preference pairs."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rmtrl.cli import options as opt
from rmtrl.cli.console import check_outputs, show, words
from rmtrl.errors import DataError, UsageError
from rmtrl.io import write_row_files

if TYPE_CHECKING:
    from rmtrl.data.annotations.reading import Annotations

app = typer.Typer(name="annotations", help="Check and combine human judgments.", no_args_is_help=True)

Files = Annotated[list[Path], typer.Argument(help="Judgments, one a line (jsonl, json, csv, tsv, parquet, also .gz).")]
Likert = Annotated[str, typer.Option(help="Ends of the rating scale, low,high.")]
Criteria = Annotated[
    str | None, typer.Option(help="Columns that are criteria: usefulness,safety; by default those of numbers.")
]
Weights = Annotated[
    opt.Numbers | None,
    opt.numbers("Weights of the criteria, summing to 1: usefulness=0.5,safety=0.5. Equal if absent."),
]
AnnotatorWeights = Annotated[opt.Numbers | None, opt.numbers("Weights of annotators, 1 if not named: ann=0.5,bo=2.")]
Alpha = Annotated[float, typer.Option(help="Share of the criterion score in the final score; the rest is Borda.")]
Quorum = Annotated[int, typer.Option(help="Fewest annotators an item needs.")]

_ONLY_FOR = {"votes": ("min_votes",), "ratings": ("weights", "alpha", "quorum", "score", "min_gap")}
_PLACE = ("final", "rank", "excluded", "flagged")


@app.command()
def agreement(
    files: Files,
    scale: Annotated[
        Literal["nominal", "ordinal", "interval"], typer.Option(help="Scale of the ratings.")
    ] = "ordinal",
    by: Annotated[str, typer.Option(help="criterion, or domain,criterion.")] = "criterion",
    target: Annotated[float, typer.Option(help="Alpha below which a slice is listed.", min=-1, max=1)] = 0.6,
    seed: opt.Seed = 0,
    likert: Likert = "1,5",
    criteria: Criteria = None,
    rejects: opt.Rejects = None,
    as_json: opt.Json = False,
) -> None:
    """Report how far annotators agree, with 95 % intervals, and what is below target."""
    from rmtrl.data.annotations.agreement import agreement as measure
    from rmtrl.data.annotations.agreement import below_target, side_warnings

    check_outputs(files, {"--rejects": rejects})
    annotations = read_judgments(files, likert, criteria)
    results = measure(annotations, scale=scale, by=words(by), seed=seed)
    below = [{"criterion": r.criterion, "domain": r.domain, "alpha": r.alpha} for r in below_target(results, target)]
    write_row_files({rejects: annotations.rejects})
    shown: dict[str, Any] = {
        f"{own.criterion}{f', {own.domain}' if own.domain else ''}: {own.interpretation}": own.coefficients
        | {f"Cohen's kappa, {a} and {b}": kappa for (a, b), kappa in own.cohen_pairs.items()}
        for own in results
    }
    settings = {"scale": scale, "target": target, "seed": seed, "results": [own.as_dict() for own in results]}
    shown[f"below the target of {target:g}"] = below
    _show("agreement", files, annotations, settings | {"below_target": below}, as_json, words=shown,
          warnings=side_warnings(annotations))  # fmt: skip


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
    seed: opt.Seed = 0,
    out: opt.AnyRows = None,
    likert: Likert = "1,5",
    criteria: Criteria = None,
    rejects: opt.Rejects = None,
    as_json: opt.Json = False,
) -> None:
    """Score items by criterion and by votes, blend the two, rank them within each prompt."""
    from rmtrl.data.annotations.aggregation import aggregate as score_items

    check_outputs(files, {"--out": out, "--rejects": rejects})
    annotations = read_judgments(files, likert, criteria)
    scores = score_items(
        annotations, weights=weights, alpha=alpha, quorum=quorum, tolerance=tolerance, seed=seed,
        annotator_weights=annotator_weights, tie_breaks=words(tie_breaks),
    )  # fmt: skip
    rows = scores.rows()
    write_row_files({out: rows, rejects: annotations.rejects})
    settings = {"weights": scores.weights, "alpha": alpha, "quorum": quorum, "seed": seed, "counts": scores.counts}
    items: dict[str, Any] = {"items": rows} if out is None else {"out": str(out)}
    places = [
        {"item": f"{row['prompt_id']}, {row['item_id']}", **{name: row[name] for name in _PLACE}} for row in rows
    ]
    shown = scores.counts | ({"items and their ranks": places} if out is None else {"out": out})
    _show("aggregation", files, annotations, settings | items, as_json, words=shown)


@app.command()
def pairs(
    context: typer.Context,
    files: Files,
    source: Annotated[
        Literal["votes", "ratings"] | None,
        typer.Option("--from", help="Make pairs from these; votes where there are any."),
    ] = None,
    disputed: Annotated[
        Literal["adjudicate", "weight", "slice"],
        typer.Option(help="Pairs on which judgments differ: adjudicate, weight (kept, by vote share) or slice."),
    ] = "adjudicate",
    min_votes: Annotated[int, typer.Option(help="Fewest votes a pair needs.")] = 2,
    min_gap: Annotated[float, typer.Option(help="Difference of scores, 0–1, under which ratings tie.")] = 0.05,
    score: Annotated[Literal["final", "criterion"], typer.Option(help="Score to compare.")] = "final",
    weights: Weights = None,
    alpha: Alpha = 0.6,
    quorum: Quorum = 1,
    annotator_weights: AnnotatorWeights = None,
    out: opt.AnyRows = None,
    review: Annotated[Path | None, typer.Option(help="Write the disputed pairs here, as jsonl.")] = None,
    responses: Annotated[str | None, typer.Option(help="Texts by item_id and prompt_id.")] = None,
    prompts: Annotated[str | None, typer.Option(help="Texts by prompt_id.")] = None,
    likert: Likert = "1,5",
    criteria: Criteria = None,
    rejects: opt.Rejects = None,
    as_json: opt.Json = False,
) -> None:
    """Make preference pairs from votes or ratings; set disputed ones apart."""
    from rmtrl.data.annotations.aggregation import aggregate as score_items
    from rmtrl.data.annotations.pairs import pairs_from_ratings, pairs_from_votes
    from rmtrl.data.annotations.reading import with_texts
    from rmtrl.data.loading import load_rows

    texts = {"prompts": prompts, "responses": responses}
    named = [*map(str, files), *(name for name in texts.values() if name)]
    check_outputs(named, {"--out": out, "--review": review, "--rejects": rejects})
    annotations = read_judgments(files, likert, criteria)
    annotations = with_texts(annotations, **{name: load_rows(file) for name, file in texts.items() if file})
    votes = len(annotations.votes) > 0 if source is None else source == "votes"
    used = ["the data holds votes and ratings; votes are used (--from ratings for the others)"]
    _check_options(context, "votes" if votes else "ratings")
    settings: dict[str, Any] = {"from": "votes" if votes else "ratings", "disputed": disputed}
    if votes:
        settings["min_votes"] = min_votes
        made = pairs_from_votes(
            annotations, disputed=disputed, min_votes=min_votes, annotator_weights=annotator_weights
        )
    else:
        settings["min_gap"] = min_gap
        scores = score_items(
            annotations, weights=weights, alpha=alpha, quorum=quorum, annotator_weights=annotator_weights
        )
        made = pairs_from_ratings(annotations, scores, score=score, min_gap=min_gap, disputed=disputed)
    if made.why_none:
        raise DataError(f"no pair can be made: {made.why_none}")
    write_row_files({out: made.pairs, review: made.review, rejects: annotations.rejects})
    both = source is None and votes and len(annotations.ratings)
    _show("pairs", files, annotations, settings | {"counts": made.counts}, as_json, words={"pairs": made.counts},
          warnings=[*(used if both else ()), *made.warnings])  # fmt: skip


@app.command()
def ceiling(
    files: Files,
    accuracy: Annotated[
        float | None, typer.Option(help="A model's accuracy against the majority of these votes.", min=0, max=1)
    ] = None,
    n: Annotated[int | None, typer.Option("--n", help="Pairs that the accuracy is of.", min=1)] = None,
    delta: Annotated[float | None, typer.Option(help="Say how many pairs tell models this far apart.")] = None,
    differ: Annotated[
        float | None, typer.Option(help="Share of pairs on which the two choose differently; it needs no labels.")
    ] = None,
    alpha: Annotated[float, typer.Option(help="Chance of finding a difference where there is none.")] = 0.05,
    power: Annotated[float, typer.Option(help="Chance of finding this one.")] = 0.8,
    rejects: opt.Rejects = None,
    as_json: opt.Json = False,
) -> None:
    """Report the highest accuracy that any model could reach against these votes, and how near to it one is."""
    from rmtrl.metrics import binomial_estimate
    from rmtrl.metrics.ceiling import Votes, accuracy_ceiling, better_family
    from rmtrl.metrics.trials import independent_discordance, paired_n

    check_outputs(files, {"--rejects": rejects})
    if (accuracy is None) != (n is None):
        raise UsageError("got one of --accuracy and --n; wanted both, the accuracy and the pairs it is of, or neither")
    if differ is None and delta is not None and accuracy is not None:
        differ = independent_discordance(accuracy, delta)
    if (delta is None) != (differ is None):
        raise UsageError("got --delta or --differ alone; wanted both, or --delta with --accuracy and --n")
    needed = None if delta is None or differ is None else math.ceil(paired_n(differ, delta, alpha=alpha, power=power))
    own = None if accuracy is None or n is None else binomial_estimate(accuracy * n, n)
    annotations = read_judgments(files)
    votes = annotations.votes
    if votes.empty:
        raise DataError("got no votes, and ratings have no ceiling; wanted lines with annotator, a, b and choice")
    patterns, prompts = Votes.of(votes.pair, votes.annotator, votes.choice), votes.groupby("pair").prompt_id.first()
    found, other = accuracy_ceiling(patterns, prompts), accuracy_ceiling(patterns, prompts, family="sides")
    closed = own and found.closed_by(own)
    write_row_files({rejects: annotations.rejects})
    gap = {"accuracy": own, "closed": closed, "delta": delta, "differ": differ, "alpha": alpha, "power": power}
    result = {"ceiling": found, "other_family": other, **gap, "pairs_needed": needed}
    shown: dict[str, Any] = {"ceiling": str(found)}
    if found.majority:
        shown |= {
            "taken for granted": found.assumed,
            "other ceiling": str(other),
            "taken for granted there": other.assumed,
        }
    shown |= {"of the way from a coin to it": closed, f"pairs to tell models {delta} apart": needed}
    _show("ceiling", files, annotations, result, as_json, words=shown, warnings=better_family(found, other))


def _check_options(context: typer.Context, source: str) -> None:
    """Raises where an option was given that only the other judgments know."""
    other = "ratings" if source == "votes" else "votes"
    sources = {f"--{name.replace('_', '-')}": context.get_parameter_source(name) for name in _ONLY_FOR[other]}
    given = [flag for flag, where in sources.items() if where is not None and where.name == "COMMANDLINE"]
    if given:
        verb = "is" if len(given) == 1 else "are"
        raise UsageError(f"{', '.join(given)} {verb} for --from {other}; these pairs are made from {source}")


def read_judgments(files: Sequence[Path], likert: str = "1,5", criteria: str | None = None) -> "Annotations":
    """Returns the judgments of files; raises where none can be used."""
    from rmtrl.data.annotations.reading import read_annotations

    try:
        low, high = (float(end) for end in likert.split(","))
    except ValueError as error:
        raise UsageError(f"got --likert {likert}; wanted low,high, for example 1,5") from error
    annotations = read_annotations(files, likert=(low, high), criteria=None if criteria is None else words(criteria))
    if not annotations.kept:
        most = max(annotations.reasons, key=lambda reason: annotations.reasons[reason])
        first = next(reject for reject in annotations.rejects if reject["reason"] == most)
        raise DataError(
            f"none of the {annotations.n} lines of {', '.join(map(str, files))} is a judgment (mostly {most}, as row "
            f"{first['row']}: {first['line'][:80]}); wanted item_id, prompt_id, annotator and scores, "
            "or prompt_id, annotator, a, b and choice"
        )
    return annotations


def _show(
    name: str, files: Sequence[Path], annotations: "Annotations", result: Mapping[str, Any], as_json: bool, *,
    words: dict[str, Any], warnings: Iterable[str] = (),
) -> None:  # fmt: skip
    """Shows a result behind the counts of the judgments, and for people `words` behind the most telling of them."""
    counts = annotations.as_dict()
    whole = {"schema": f"rmtrl/{name}/1", "data": [str(file) for file in files], **counts, **result}
    shown = {key: counts[key] for key in ("n", "kept", "ratings", "votes", "annotators", "reasons")} | words
    show(whole, as_json, words=shown, warnings=[*annotations.warnings, *warnings])
