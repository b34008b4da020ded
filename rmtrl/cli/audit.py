"""`rmtrl audit`: does a reward model pay for length, or for other things that make no answer better?"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmtrl.cli.console import (
    Data,
    Json,
    Map,
    named_numbers,
    print_json,
    print_table,
    read_pairs,
)
from rmtrl.errors import DataError, UsageError
from rmtrl.io import read_object, write_json

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from numpy.typing import NDArray

    from rmtrl.evaluation.audit import LengthAudit
    from rmtrl.evaluation.probes import Probe
    from rmtrl.reward.scorer import RewardScorer
    from rmtrl.types import Estimate


def audit(
    data: Data,
    model: Annotated[str | None, typer.Option(help="Checkpoint folder or hub id of a reward model.")] = None,
    scores: Annotated[Path | None, typer.Option(help="Scores of the pairs, as `rmtrl score` writes them.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for audit.json and plots.")] = None,
    probes: Annotated[bool, typer.Option(help="Also edit answers and see what it does; needs --model.")] = True,
    probe_rows: Annotated[int, typer.Option(help="Chosen answers to edit, drawn at random.", min=2)] = 200,
    target_mix: Annotated[
        str | None,
        typer.Option(help="Mix of domains to report accuracy for: name=weight,name=weight, or a JSON file of them."),
    ] = None,
    strict: Annotated[bool, typer.Option(help="Exit with 1 if convicted.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the draws.", min=0)] = 0,
    columns: Map = None,
    split: Annotated[str, typer.Option(help="Split to audit, where the data has several.")] = "test",
    as_json: Json = False,
) -> None:
    """Say whether a reward model pays for length, and what edits that improve nothing do to its rewards."""
    from rmtrl.evaluation.audit import CONVICTED, audit_length
    from rmtrl.evaluation.scoring import ScoredPairs

    if (model is None) == (scores is None):
        raise UsageError("wanted either --model or --scores, and one of them")
    mix = _target_mix(target_mix)
    pairs = read_pairs(data, split, columns)
    scorer, unit = None, "characters"
    if scores is not None:
        scored = ScoredPairs.of_file(scores, pairs)
    else:
        from rmtrl.reward.scorer import RewardScorer

        scorer, unit = RewardScorer.from_pretrained(str(model), progress=False), "tokens"
        scored = ScoredPairs.of_model(scorer, pairs, data)
    kept, sides, counts = _kept(scored.pairs, scored.scores, len(pairs))
    chosen, rejected = (_lengths(kept[side], scorer) for side in ("chosen", "rejected"))
    found = audit_length(sides[0], sides[1], chosen, rejected, kept["prompt_id"], unit=unit, seed=seed)
    domains, reweighted = _by_domain(kept, sides, seed), _reweighted(kept, sides, mix, seed)
    tried = _probed(scorer, kept, probe_rows, seed) if probes and scorer is not None else []
    whole = {**found.as_dict(), **_origin(model, scores, data, split, pairs), **counts, "seed": seed}
    whole["domains"] = {name: estimate.as_dict() for name, estimate in domains.items()}
    whole["reweighted"] = reweighted and {"target_mix": mix, "accuracy": reweighted.as_dict()}
    whole["probes"] = [one.as_dict() for one in tried]
    if out is not None:
        _write(out, whole, found, sides, [chosen, rejected])
    if as_json:
        print_json(whole)
    else:
        _print(found, domains, reweighted, tried, counts | ({"written to": out} if out else {}))
    if counts["without_scores"]:
        print(f"rmtrl: warning: {counts['without_scores']:,} pairs have no scores and were left out", file=sys.stderr)
    if strict and found.verdict.verdict == CONVICTED:
        raise typer.Exit(1)


def _origin(
    model: str | None, scores: Path | None, data: str, split: str, pairs: "Dataset"
) -> dict[str, dict[str, Any] | None]:
    """Returns what the audit is an audit of: model, file of scores, data, each with what tells it from another."""
    import hashlib

    from rmtrl.data.provenance import fingerprint
    from rmtrl.evaluation.fingerprints import model_fingerprint

    stored = None
    if scores is not None:
        stored = {"source": str(scores), "sha256": hashlib.sha256(scores.read_bytes()).hexdigest()}
    named = None if Path(data).is_file() else split  # a file is one split by any name
    return {
        "model": None if model is None else {"name": model, **model_fingerprint(model)},
        "scores": stored,
        "data": {"source": data, "split": named, "rows": len(pairs), "fingerprint": fingerprint(pairs)},
    }


def _kept(
    pairs: "Dataset", scores: "NDArray[np.float64]", n: int
) -> tuple["Dataset", "NDArray[np.float64]", dict[str, int]]:
    """Returns the pairs with scores and a better side, their scores `(2, N)`, and how many of n were left out."""
    import numpy as np

    whole = np.isfinite(scores).all(axis=1)
    ties = np.array(pairs["preference"] if "preference" in pairs.column_names else [1.0] * len(pairs)) == 0.5
    index = np.flatnonzero(whole & ~ties)
    counts = {"without_scores": n - int(whole.sum()), "ties_left_out": int((whole & ties).sum())}
    if not len(index):
        raise DataError(
            f"none of the {n:,} pairs can be audited: {counts['without_scores']:,} have no scores, "
            f"{counts['ties_left_out']:,} are ties"
        )
    return pairs.select(index), scores[index].T, counts


def _by_domain(pairs: "Dataset", scores: "NDArray[np.float64]", seed: int) -> "dict[str, Estimate]":
    from rmtrl.metrics import domain_accuracy, pair_wins

    return domain_accuracy(pair_wins(*scores), pairs["domain"], pairs["prompt_id"], seed=seed)


def _target_mix(given: str | None) -> dict[str, float] | None:
    """Returns the weight of each domain, written out or in a JSON file."""
    import math

    found = read_object(Path(given)) if given and Path(given).is_file() else named_numbers("--target-mix", given)
    for name, weight in (found or {}).items():
        if type(weight) not in (int, float) or not (math.isfinite(weight) and weight >= 0):
            raise UsageError(f"--target-mix: {name} has the weight {weight!r}; wanted a number of 0 or more")
    return found


def _reweighted(
    pairs: "Dataset", scores: "NDArray[np.float64]", mix: dict[str, float] | None, seed: int
) -> "Estimate | None":
    """Returns the accuracy that the pairs would have if their domains were mixed as in `mix`."""
    from rmtrl.metrics import pair_wins, reweighted_estimate

    if mix is None:
        return None
    try:
        return reweighted_estimate(pair_wins(*scores), pairs["domain"], mix, pairs["prompt_id"], seed=seed)
    except ValueError as error:
        raise UsageError(f"--target-mix: {error}") from error


def _lengths(responses: Sequence[Any], scorer: "RewardScorer | None") -> list[int]:
    """Returns the length of each response alone: in the model's tokens, without a model in characters."""
    from rmtrl.data.messages import conversation_text

    texts = [conversation_text(response) for response in responses]
    if scorer is None:
        return [len(text) for text in texts]
    return [len(ids) for ids in scorer.tokenizer(texts, add_special_tokens=False)["input_ids"]]


def _probed(scorer: "RewardScorer", pairs: "Dataset", n: int, seed: int) -> "list[Probe]":
    from rmtrl.evaluation.probes import probe
    from rmtrl.types import Chat

    drawn = pairs.shuffle(seed=seed).select(range(min(n, len(pairs))))
    sides = ([Chat.of(row["prompt"], row) for row in drawn], list(drawn["chosen"]))
    settings: dict[str, Any] = {"prompt_ids": list(drawn["prompt_id"]), "seed": seed}
    return probe(scorer, *sides, end_token=True, **settings)


def _write(
    out: Path,
    whole: Mapping[str, Any],
    found: "LengthAudit",
    scores: "NDArray[np.float64]",
    lengths: Sequence[Sequence[int]],
) -> None:
    import numpy as np

    from rmtrl.reporting.plots import margin_against_length, reward_against_length, save_figure

    length = np.array(lengths)
    figures = {
        "reward_against_length": reward_against_length(found.curve, scores.ravel(), length.ravel(), unit=found.unit),
        "margin_against_length": margin_against_length(scores[0] - scores[1], length[0] - length[1], unit=found.unit),
    }
    try:
        for name, figure in figures.items():
            save_figure(figure, out / "plots" / f"{name}.png")
    except OSError as error:
        raise DataError(f"cannot write to {out}: {error.strerror}; give another folder") from error
    write_json(out / "audit.json", whole)


def _print(
    found: "LengthAudit", domains: "Mapping[str, Estimate]", reweighted: "Estimate | None", tried: "Sequence[Probe]",
    more: Mapping[str, Any],
) -> None:  # fmt: skip
    head = {"pairs": found.n, "prompts": found.prompts, "lengths in": found.unit, **more}
    by_domain = {f"accuracy, {name}": estimate for name, estimate in domains.items()} if len(domains) > 1 else {}
    by_domain |= {"accuracy, target mix": reweighted} if reweighted else {}
    for rows in (head, {**found.figures, **by_domain}):
        print_table({name.replace("_", " "): value for name, value in rows.items()})
        print()
    if tried:
        print("edits: mean change in standard deviations of the rewards; share raised; verdict")
        width = max(len(one.name) for one in tried)
        for one in tried:
            change = "" if one.effect is None else f"{one.effect:+.2f}  {one.raised.value if one.raised else 0:4.0%}"
            print(f"{one.name:<{width}}  {change:<30}  {one.verdict}")
        print()
    print(f"length: {found.verdict.verdict}")
    for reason in found.verdict.reasons:
        print(f"- {reason}")
