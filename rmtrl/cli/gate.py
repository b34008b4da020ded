"""`rmtrl gate` and `rmtrl fresh …`: whether a reward model is fit to train a policy, and how it does on it."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from rmtrl.cli import options as opt
from rmtrl.cli.console import check_model_or_scores, check_outputs, read_rows, show
from rmtrl.errors import UsageError
from rmtrl.io import read_object, read_text, write_json, write_row_files, write_rows
from rmtrl.types import json_ready

fresh = typer.Typer(name="fresh", help="Judge a reward model on what the policy writes now.", no_args_is_help=True)


def gate(
    run: Annotated[Path, typer.Argument(help="Folder of a run or a reward model, or a file of evidence.")],
    thresholds: Annotated[Path | None, typer.Option(help="YAML file of thresholds; the package's by default.")] = None,
    policy: Annotated[
        str | None, typer.Option(help="Policy to train: folder or hub id; the run's own sft folder by default.")
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Say whether a reward model is ready to train a policy on, one reason a line; exit code 1 when it is not."""
    from rmtrl.evaluation.evidence import gather
    from rmtrl.evaluation.gate import Thresholds, default_thresholds, judge

    wanted = Thresholds.from_yaml(read_text(thresholds)) if thresholds else default_thresholds()
    evidence = gather(run, policy)
    decision = judge(evidence, wanted)
    origin = {"run": str(run), "thresholds": str(thresholds or "default"), "evidence": evidence.as_dict()}
    unknown = run.is_dir() and any(reason.unknown for reason in decision.reasons)
    how = f"\n`rmtrl report {run}` says how to measure what has no evidence" if unknown else ""
    show({**json_ready(decision), **origin}, as_json, words=f"{decision}{how}")
    if not decision.ready:
        raise typer.Exit(1)


@fresh.command("sample")
def sample(
    generations: Annotated[
        Path, typer.Argument(help="The policy's answers, a line a prompt: `prompt`, `completions`.")
    ],
    out: Annotated[Path, typer.Option(help="Write the pairs to judge here, one a line.")],
    key: Annotated[Path, typer.Option(help="Write here which answer stood at a and b; keep it from reviewers.")],
    n: Annotated[
        int | None, typer.Option("--n", help="Pairs to draw, one a prompt; 200 by default, or all where fewer.", min=1)
    ] = None,
    policy: Annotated[str, typer.Option(help="Name of the policy, for the record.")] = "",
    model: Annotated[
        str | None, typer.Option(help="The policy itself, to answer a file of prompts twice each; folder or hub id.")
    ] = None,
    max_new_tokens: opt.NewTokens = 256,
    temperature: opt.Temperature = 1.0,
    seed: opt.RandomSeed = 0,
    as_json: opt.Json = False,
) -> None:
    """Draw pairs of the policy's completions for blind review."""
    from rmtrl.evaluation.fresh import PAIRS, generated, is_judged, sample_review

    check_outputs([generations], {"--out": out, "--key": key})
    if judged := [row for row in read_rows(out) if is_judged(row)] if out.is_file() else []:
        raise UsageError(f"{out} holds {len(judged):,} verdicts; import them, or name another file")
    if model is None:
        rows = read_rows(generations)
    else:
        from rmtrl.evaluation.policy import read_prompts
        from rmtrl.generation import TransformersGenerator

        prompts = [asked.prompt for asked in read_prompts(str(generations), candidates=False)]
        settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature}
        rows = generated(TransformersGenerator.from_pretrained(model, **settings), prompts, seed=seed)
    review = sample_review(rows, n, seed=seed, policy=policy or model or "")
    write_row_files({out: review.rows, key: [review.key]})
    reasons = review.key["skipped"]
    cut = sum(row.get("truncated_a", False) or row.get("truncated_b", False) for row in review.rows)
    counts = {"pairs": len(review.rows), "skipped": sum(reasons.values()), "truncated": cut, "reasons": reasons}
    files = {"review": str(out), "key": str(key)}
    todo = {"to judge": f"{out}: put a, b or tie into verdict, a name into reviewer", "key": key}
    fewer = (
        f"all {len(review.rows):,} prompts with two different completions are drawn, fewer than {PAIRS}, the default"
    )
    warnings = [fewer] if n is None and len(review.rows) < PAIRS else []
    show({"schema": "rmtrl/fresh-sample/1", **counts, **files}, as_json, words=counts | todo, warnings=warnings)


@fresh.command("import")
def import_(
    review: Annotated[Path, typer.Argument(help="The judged pairs.")],
    key: Annotated[Path, typer.Option(help="The key that was written with them.")],
    by: Annotated[Literal["human", "model"], typer.Option(help="Who judged. The gate counts humans only.")],
    out: opt.Rows,
    reviewer: Annotated[str, typer.Option(help="Name of the reviewer, for rows that give none.")] = "",
    allow_missing: Annotated[
        bool, typer.Option(help="Accept a review with pairs that nobody judged; they are counted.")
    ] = False,
    as_json: opt.Json = False,
) -> None:
    """Check a review against its key and take over its verdicts."""
    from rmtrl.evaluation.fresh import import_verdicts

    check_outputs([review, key], {"--out": out})
    found = import_verdicts(
        read_rows(review), read_object(key), reviewed_by=by, reviewer=reviewer, allow_missing=allow_missing
    )
    write_rows(out, found.rows)
    counts = Counter(row["verdict"] for row in found.rows)
    result = {"verdicts": len(found.rows), "missing": found.missing, **{v: counts[v] for v in ("a", "b", "tie")}}
    show({"schema": "rmtrl/fresh-verdicts/1", **result, "reviewed_by": by, "out": str(out)}, as_json)


@fresh.command("score")
def score(
    verdicts: Annotated[Path, typer.Argument(help="Verdicts, as `rmtrl fresh import` writes them.")],
    model: opt.AnyModel = None,
    scores: opt.Scores = None,
    out: Annotated[
        Path | None, typer.Option(help="Write fresh.json here; the gate reads it in a run's folder.")
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Report how often a reward model orders fresh pairs as the reviewers did."""
    from rmtrl.evaluation.fingerprints import model_fingerprint
    from rmtrl.evaluation.fresh import check_verdicts, model_scores, score_verdicts, stored_scores

    check_model_or_scores(model, scores)
    check_outputs([verdicts, scores], {"--out": out})
    rows = read_rows(verdicts)
    check_verdicts(rows)
    if scores is not None:
        found = stored_scores(rows, scores)
    else:
        from rmtrl.reward.remote import load_scorer

        found = model_scores(rows, load_scorer(str(model)), source=str(verdicts))
    result = score_verdicts(rows, *found.T)
    named = model_fingerprint(model) if model and out else None
    stored = {"schema": "rmtrl/fresh/1", **asdict(result), "model": model or str(scores), "model_fingerprint": named}
    if out is not None:
        write_json(out, stored)
    said = "a model judged these pairs; the gate takes them for no evidence"
    show(stored, as_json, words=stored | {"out": out}, warnings=[said] if result.reviewed_by != "human" else [])
