"""`rmtrl gate` and `rmtrl fresh …`: whether a reward model is fit to train a policy, and how it does on it."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmtrl.cli.console import (
    Json,
    print_json,
    print_table,
    read_rows,
)
from rmtrl.errors import DataError, UsageError
from rmtrl.io import read_object, read_text, write_json, write_row_files, write_rows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rmtrl.evaluation.evidence import Evidence, Origin

fresh = typer.Typer(help="Judge a reward model on what the policy writes now.", no_args_is_help=True)

_OWN = ("metrics.json", "rmtrl.json")  # written with the weights, so those of the reward model's own folder
_MEASURED = ("calibration.json", "audit.json", "overoptimization.json", "fresh.json", "lineage.json")
_ORIGIN = ("config.json", "adapter_config.json", "rmtrl.json", "tokenizer.json")


def gate(
    run: Annotated[Path, typer.Argument(help="Folder of a run or a reward model, or a file of evidence.")],
    thresholds: Annotated[Path | None, typer.Option(help="YAML file of thresholds; the package's by default.")] = None,
    policy: Annotated[
        str | None, typer.Option(help="Policy to train: folder or hub id; the run's own sft folder by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say whether a reward model is ready to train a policy on, one reason a line; exit code 1 when it is not."""
    from rmtrl.evaluation.gate import Thresholds, default_thresholds, judge

    wanted = Thresholds.from_yaml(read_text(thresholds)) if thresholds else default_thresholds()
    evidence = _gather(run, policy)
    decision = judge(evidence, wanted)
    if as_json:
        print_json({**decision.as_dict(), "run": str(run), "thresholds": str(thresholds or "default"),
                    "evidence": evidence.as_dict()})  # fmt: skip
    else:
        print(*decision.reasons, sep="\n")
        for name in decision.not_asked:
            print(f"{'-':<8} {name:<24} not asked")
        print("ready" if decision.ready else "not ready")
    if not decision.ready:
        raise typer.Exit(1)


def _gather(run: Path, policy: str | None) -> "Evidence":
    """Returns the evidence of a file, or of the files in a run's folder and its reward model's."""
    from dataclasses import replace

    from rmtrl.evaluation.evidence import Evidence, collect, compare_origins
    from rmtrl.evaluation.fingerprints import model_fingerprint, stored_fingerprint

    model = run / "rm" if (run / "rm").is_dir() else run
    if run.is_dir():
        looked = [(folder, name) for folder in (run, model) for name in _MEASURED] + [(model, name) for name in _OWN]
        files = {name: read_object(folder / name) for folder, name in looked if (folder / name).is_file()}
        if not files:
            raise DataError(
                f"{run} holds none of {', '.join((*_OWN, *_MEASURED))}; give the folder of a run or of a reward model"
            )
        # hashing the weights takes a while: only where there is something to compare it with
        named = any(stored_fingerprint(stored) for stored in files.values())
        evidence = collect(files, model_fingerprint(model) if named else None)
        own = next((path for path in (run / "sft", model.parent / "sft") if path.is_dir()), None)
        policy = policy or (str(own) if own else None)
        if policy is None:
            return evidence
    else:
        evidence = Evidence.from_dict(read_object(run))
        if policy is None:
            return evidence
        raise UsageError(f"got --policy and the evidence file {run}; state the lineage in the file, or give a folder")
    lineage = compare_origins(read_origin(str(model)), read_origin(policy))
    return replace(evidence, lineage=replace(lineage, source=policy))


def read_origin(name: str, deep: int = 8) -> "Origin":
    """Returns where a model comes from, as far as the folders of its ancestors stand on this machine."""
    from rmtrl.evaluation.evidence import origin, parents

    folder = Path(name)
    files = {file: read_object(folder / file) for file in _ORIGIN if (folder / file).is_file()}
    known = str(folder.resolve()) if folder.is_dir() else name
    ancestors = [read_origin(parent, deep - 1) for parent in parents(files) if parent != name and deep]
    return origin(known, files, ancestors)


@fresh.command("sample")
def sample(
    generations: Annotated[Path, typer.Argument(help="The policy's text, a line `prompt`, `completions` (a list).")],
    out: Annotated[Path, typer.Option(help="Write the pairs to judge here, one a line.")],
    key: Annotated[Path, typer.Option(help="Write here what stood where; keep it from those who judge.")],
    n: Annotated[int, typer.Option(help="Pairs to draw, one a prompt.")] = 200,
    policy: Annotated[str, typer.Option(help="Name of the policy, for the record.")] = "",
    model: Annotated[
        str | None, typer.Option(help="The policy itself, to answer a file of prompts twice each; folder or hub id.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="With --model: longest completion.", min=1)] = 256,
    temperature: Annotated[float, typer.Option(help="With --model: temperature of the sampling.", min=0)] = 1.0,
    seed: Annotated[int, typer.Option(help="Another seed draws others.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Draw pairs of the policy's completions for blind review."""
    from rmtrl.evaluation.fresh import generated, is_judged, sample_review

    _check_paths(inputs=(generations,), outputs=(out, key))
    judged = [row for row in read_rows(out) if is_judged(row)] if out.is_file() else []
    if judged:
        raise UsageError(f"{out} holds {len(judged):,} verdicts; import them, or name another file")
    rows = read_rows(generations)
    if model is not None:
        from rmtrl.generation import TransformersGenerator
        from rmtrl.types import Chat

        wrong = [number for number, row in enumerate(rows, 1) if not isinstance(row.get("prompt"), str | list)]
        if wrong:
            raise DataError(f"{generations} line {wrong[0]} has no prompt; wanted a text or messages")
        settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature}
        policy_model = TransformersGenerator.from_pretrained(model, **settings)
        rows = generated(policy_model, [Chat.of(row["prompt"], row) for row in rows], seed=seed)
    review = sample_review(rows, n, seed=seed, policy=policy or model or "")
    write_row_files({out: review.rows, key: [review.key]})
    cut = sum(row.get("truncated_a", False) or row.get("truncated_b", False) for row in review.rows)
    counts = {"pairs": len(review.rows), "skipped": sum(review.key["skipped"].values()), "truncated": cut}
    if as_json:
        print_json({"schema": "rmtrl/fresh-sample/1", **counts, "reasons": review.key["skipped"], "review": str(out),
                    "key": str(key)})  # fmt: skip
    else:
        print_table({**counts, "to judge": f"{out}: put a, b or tie into verdict, a name into reviewer", "key": key})


@fresh.command("import")
def import_(
    review: Annotated[Path, typer.Argument(help="The judged pairs.")],
    key: Annotated[Path, typer.Option(help="The key that was written with them.")],
    by: Annotated[str, typer.Option(help="Who judged: human or model. The gate counts humans only.")],
    out: Annotated[Path, typer.Option(help="Write the verdicts here, one a line.")],
    reviewer: Annotated[str, typer.Option(help="Name for lines that give none.")] = "",
    allow_missing: Annotated[
        bool, typer.Option(help="Take a review that is not complete; what lacks is counted.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check a review against its key and take over its verdicts."""
    from collections import Counter

    from rmtrl.evaluation.fresh import import_verdicts

    _check_paths(inputs=(review, key), outputs=(out,))
    found = import_verdicts(
        read_rows(review), read_object(key), reviewed_by=by, reviewer=reviewer, allow_missing=allow_missing
    )
    write_rows(out, found.rows)
    counts = Counter(row["verdict"] for row in found.rows)
    result = {"verdicts": len(found.rows), "missing": found.missing, **{v: counts[v] for v in ("a", "b", "tie")}}
    if as_json:
        print_json({"schema": "rmtrl/fresh-verdicts/1", **result, "reviewed_by": by, "out": str(out)})
    else:
        print_table({**result, "reviewed by": by, "written to": out})


@fresh.command("score")
def score(
    verdicts: Annotated[Path, typer.Argument(help="Verdicts, as `rmtrl fresh import` writes them.")],
    model: Annotated[str | None, typer.Option(help="Checkpoint folder or hub id of a reward model.")] = None,
    scores: Annotated[Path | None, typer.Option(help='Scores instead: {"id", "scores": [a, b]} a line.')] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write fresh.json here; the gate reads it in a run's folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Report how often a reward model orders fresh pairs as the reviewers did."""
    from rmtrl.evaluation.fingerprints import model_fingerprint
    from rmtrl.evaluation.fresh import check_verdicts, score_verdicts

    if (model is None) == (scores is None):
        raise UsageError("wanted either --model or --scores, and one of them")
    _check_paths(inputs=(verdicts, *([scores] if scores else [])), outputs=(out,) if out else ())
    rows = read_rows(verdicts)
    check_verdicts(rows)
    found = _stored(scores, [str(row["id"]) for row in rows]) if scores else _scored(str(model), rows, verdicts)
    result = score_verdicts(rows, *found.T)
    named = model_fingerprint(model) if model and out else None
    stored = {**result.as_dict(), "model": model or str(scores), "model_fingerprint": named}
    if out is not None:
        write_json(out, stored)
    if as_json:
        print_json(stored)
    else:
        print_table(
            {"accuracy": result.accuracy, "reviewed by": result.reviewed_by, "pairs": result.pairs,
             "judged a tie": result.ties, "truncated": result.truncated, "equal scores": result.tied_scores,
             "a preferred": f"{result.a_preferred:.3f}"} | ({"written to": out} if out else {})
        )  # fmt: skip
    if result.reviewed_by != "human":
        print("rmtrl: warning: a model judged these pairs; the gate takes them for no evidence", file=sys.stderr)


def _scored(model: str, rows: Sequence[Mapping[str, Any]], verdicts: Path) -> "NDArray[np.float64]":
    """Returns the scores of both sides, `(N, 2)`."""
    import numpy as np

    from rmtrl.evaluation.scoring import check_rendered, conversation, score_conversations
    from rmtrl.reward.scorer import RewardScorer

    scorer = RewardScorer.from_pretrained(model)
    whole = [conversation(row, side) for row in rows for side in ("a", "b")]
    places = [f"{verdicts} row {number}" for number in range(1, len(rows) + 1) for _ in "ab"]
    scores = score_conversations(scorer, whole)
    check_rendered(scorer, whole, np.isfinite(scores), places)
    for index in np.flatnonzero(np.isnan(scores)).tolist():
        raise DataError(f"{places[index]} is longer than the model's {scorer.most_tokens} tokens; leave it out")
    return scores.reshape(-1, 2)


def _stored(path: Path, ids: Sequence[str]) -> "NDArray[np.float64]":
    import numpy as np

    from rmtrl.evaluation.scoring import read_pair_scores

    found = read_pair_scores(path)
    absent = [id for id in ids if not np.isfinite(found.get(id, np.nan)).all()]
    if absent:
        raise DataError(f"{path} has no scores of {len(absent):,} verdicts, the first is of {absent[0]!r}; score all")
    return np.array([found[id] for id in ids])


def _check_paths(*, inputs: Sequence[Path], outputs: Sequence[Path]) -> None:
    taken = {path.resolve() for path in inputs}
    for path in outputs:
        if path.resolve() in taken:
            raise UsageError(f"{path} is given twice; an output needs a name of its own")
        taken.add(path.resolve())
