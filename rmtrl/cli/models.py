"""`rmtrl inspect`, `score`, `compare` and `rerank`: a reward model used from the command line."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rmtrl.cli import options as opt
from rmtrl.cli.console import check_outputs, notes_of, read_pairs, show
from rmtrl.errors import DataError, UsageError
from rmtrl.io import file_sha256, write_rows
from rmtrl.processes import all_processes

if TYPE_CHECKING:
    from rmtrl.evaluation.policy import Asked, PolicyResult, Ranked
    from rmtrl.generation import TransformersGenerator


def inspect(
    data: opt.Data,
    model: opt.Model,
    row: Annotated[int, typer.Option(help="Row of the data, from 0.")] = 0,
    side: Annotated[Literal["chosen", "rejected"], typer.Option(help="Answer to show.")] = "chosen",
    columns: opt.Map = None,
    split: opt.Split = "train",
    as_json: opt.Json = False,
) -> None:
    """Show the tokens a reward model sees of one response, and the position that is scored."""
    from rmtrl.evaluation.scoring import check_rendered, conversation
    from rmtrl.reward.scorer import RewardScorer

    pairs = read_pairs(data, split, columns)
    if not 0 <= row < len(pairs):
        raise UsageError(f"got --row {row}; {data} has rows 0 to {len(pairs) - 1}")
    scorer = RewardScorer.from_pretrained(model)
    whole = conversation(pairs[row], side)
    check_rendered(scorer, [whole], f"{data}, --row {row}")
    ids = scorer.encode(whole)
    position, reward = scorer.scored_position(ids), float(scorer.score_ids([ids])[0])
    tokens = list(enumerate(zip(ids, scorer.tokenizer.convert_ids_to_tokens(ids), strict=True)))
    listed = [{"position": place, "id": id, "token": token} for place, (id, token) in tokens]
    lines = [f"{i:>6}  {id:>7}  {token!r}{'   <- scored here' * (i == position)}" for i, (id, token) in tokens]
    found = {"tokens": listed, "scored_position": position, "reward": reward}
    about = {"schema": "rmtrl/inspection/1", "model": model, "data": data, "row": row, "side": side}
    show(about | found, as_json, words="\n".join([*lines, f"reward {reward:.4f}"]))


def score(
    data: opt.Data,
    model: opt.Model,
    out: opt.Rows,
    columns: opt.Map = None,
    split: opt.Split = "train",
    as_json: opt.Json = False,
) -> None:
    """Score both answers of every pair and write the scores, a line a pair."""
    import numpy as np

    from rmtrl.data.provenance import fingerprint
    from rmtrl.evaluation.fingerprints import model_fingerprint
    from rmtrl.evaluation.parts import Parts
    from rmtrl.evaluation.scoring import ScoredPairs, pair_lines, pair_windows
    from rmtrl.metrics import mean_estimate, pair_wins
    from rmtrl.reward.remote import load_scorer

    check_outputs([data], {"--out": out})
    with all_processes() as process:
        pairs = read_pairs(data, split, columns)
        scorer = load_scorer(model, progress=False)
        key = {"model": model_fingerprint(model), "data": fingerprint(pairs)}
        scores: list[list[float | None]] = []

        def kept(lines: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
            for line in lines:
                scores.append(line["scores"])
                yield line
            if all(own[0] is None for own in scores):
                raise DataError(f"all {len(pairs):,} pairs of {data} are longer than the model holds")

        score, windows = partial(pair_lines, scorer, pairs, data), pair_windows(len(pairs))
        Parts(out, windows, score, key, data, process).write(kept)
        if process.rank:
            return
    scored = ScoredPairs(pairs, np.array(scores, dtype=float))
    whole = scored.where(scored.whole)
    too_long = len(scored) - len(whole)
    accuracy = mean_estimate(pair_wins(*whole.scores.T), whole.pairs["prompt_id"])
    result = {"model": model, "data": data, "n": len(pairs), "too_long": too_long, "accuracy": accuracy}
    said = f"{too_long:,} pairs are longer than the model's {scorer.most_tokens or 0:,} tokens; their scores are null"
    warnings = [said] if too_long else []
    shown = {"schema": "rmtrl/scores/1", **result, "warnings": [*notes_of(pairs), *warnings]}
    show(shown, as_json, words=result | {"scores": out}, warnings=warnings)


def compare(
    data: Annotated[str, typer.Argument(help="Prompts, one a line: prompt, and reference for a --metric.")],
    policy: Annotated[
        list[str], typer.Option(help="Checkpoint folder or hub id of a policy; may be repeated, in their order.")
    ],
    model: opt.AnyModel = None,
    metric: Annotated[
        Literal["exact_match", "word_f1"] | None, typer.Option(help="Compare with references instead of a --model.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="The policy that the others are compared with; the first by default.")
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Completions to sample of each prompt.", min=1)] = 1,
    max_new_tokens: opt.NewTokens = 256,
    temperature: opt.Temperature = 1.0,
    batch_size: Annotated[int, typer.Option(help="Completions to sample at a time.", min=1)] = 32,
    out: opt.AnyRows = None,
    strict: Annotated[bool, typer.Option(help="Exit with 1 if a policy surely scores below the baseline.")] = False,
    seed: opt.RandomSeed = 0,
    as_json: opt.Json = False,
) -> None:
    """Compare policies, such as the checkpoints of a run, on the same prompts by a reward model or by references."""
    from rmtrl.evaluation.fingerprints import model_fingerprint
    from rmtrl.evaluation.policy import METRICS, compare_policies, evaluate_policies, policy_lines, read_prompts
    from rmtrl.models import load_tokenizer
    from rmtrl.reward.remote import load_scorer

    if (model is None) == (metric is None):
        raise UsageError("wanted either --model or --metric, and one of them")
    if twice := [own for own, count in Counter(policy).items() if count > 1]:
        raise UsageError(f"got --policy {twice[0]} twice; name each policy once")
    for own in policy:  # each is there before the first is asked
        load_tokenizer(own, kind="language model")
    if baseline is not None and baseline not in policy:
        raise UsageError(f"got --baseline {baseline}; wanted one of the policies: {', '.join(policy)}")
    check_outputs([data, *policy], {"--out": out})
    asked = read_prompts(data, candidates=False)
    if metric and (without := [one.place for one in asked if one.reference is None]):
        raise UsageError(f"got --metric {metric} and {len(without):,} prompts without reference, first {without[0]}")
    judge = METRICS[metric] if metric else load_scorer(str(model), progress=False)
    sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature, "batch_size": batch_size}
    given: dict[str, Any] = {"n": n, "seed": seed, "references": [one.reference or "" for one in asked]}
    results: dict[str, PolicyResult] = {}
    for name in policy:  # one is in memory at a time
        generator = _generator(name, asked, sampling)
        results |= evaluate_policies({name: generator}, [one.prompt for one in asked], judge, **given)
    compared = compare_policies(results, baseline)
    if out is not None:
        write_rows(out, policy_lines(asked, results))
    named = {own: model_fingerprint(own) for own in (*policy, model) if own is not None}
    read = {
        "data": data,
        "prompts": len(asked),
        "data_sha256": file_sha256(Path(data)) if Path(data).is_file() else None,
    }
    origin = {"model": model, "metric": metric, **read, "fingerprints": named, "baseline": baseline or policy[0]}
    whole = {"policies": results, "compared": compared, "sampling": {**sampling, "n": n, "seed": seed}}
    rows = [
        {"policy": name, "score": own.mean, "above the baseline": (gain := compared.get(name)) and gain.difference,
         "wins": gain and gain.win_rate, "length, chars": own.length_chars, "truncated": own.truncated}
        for name, own in results.items()
    ]  # fmt: skip
    words = {"prompts": len(asked), "policies": rows, "out": out}
    show({"schema": "rmtrl/comparison/1", **origin, **whole, "out": out and str(out)}, as_json, words=words)
    if strict and any(own.difference.high < 0 for own in compared.values()):
        raise typer.Exit(1)


def _generator(policy: str, asked: "Sequence[Asked]", settings: dict[str, Any]) -> "TransformersGenerator":
    """Returns a policy that can answer what is asked."""
    from rmtrl.generation import TransformersGenerator

    generator = TransformersGenerator.from_pretrained(policy, progress=False, **settings)
    if not generator.tokenizer.chat_template and any(not isinstance(one.prompt, str) for one in asked):
        raise UsageError(f"{policy} has no chat template and the prompts are messages; give prompts as text")
    return generator


def rerank(
    data: Annotated[
        str, typer.Argument(help="Prompts, one a line: prompt, and candidates (a list) without --policy.")
    ],
    model: opt.Model,
    out: opt.Rows,
    policy: Annotated[
        str | None, typer.Option(help="Checkpoint folder or hub id of a policy that makes the candidates.")
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Candidates to sample of each prompt.", min=1)] = 8,
    max_new_tokens: opt.NewTokens = 256,
    temperature: opt.Temperature = 1.0,
    top_p: Annotated[float, typer.Option(help="Probability mass to sample from.")] = 1.0,
    batch_size: Annotated[int, typer.Option(help="Candidates to sample at a time.", min=1)] = 32,
    seed: opt.RandomSeed = 0,
    as_json: opt.Json = False,
) -> None:
    """Choose the best of several answers by a reward model."""
    from rmtrl.evaluation.policy import read_prompts
    from rmtrl.evaluation.policy import rerank as ranked_prompts
    from rmtrl.metrics import mean_estimate
    from rmtrl.reward.remote import load_scorer

    check_outputs([data], {"--out": out})
    asked = read_prompts(data, candidates=policy is None)
    sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "batch_size": batch_size}
    generator = None if policy is None else _generator(policy, asked, sampling)
    scorer = load_scorer(model, progress=False)
    ranked: list[Ranked] = []

    def lines() -> Iterator[dict[str, Any]]:
        for one, own in ranked_prompts(scorer, asked, generator, n=n, seed=seed):
            ranked.append(own)
            yield one.line(own)

    write_rows(out, lines())
    known = [own.scores[own.scores == own.scores] for own in ranked if own.index is not None]
    unranked = len(asked) - len(known)
    counts = {
        "n": len(asked),
        "candidates": sum(len(own.candidates) for own in ranked),
        "too_long": sum(int((own.scores != own.scores).sum()) for own in ranked),
        "unranked": unranked,
    }
    best = mean_estimate([own.max() for own in known], proportion=False)
    gain = mean_estimate([own.max() - own.mean() for own in known], proportion=False)
    origin = {"model": model, "policy": policy, "data": data, "out": str(out)}
    said = f"{unranked:,} prompts have no candidate that the model holds; their best is null"
    whole = {"schema": "rmtrl/rerank/1", **origin, **counts, "gain": gain, "best": best}
    words = counts | {"score of the best": best, "best above the mean": gain, "out": out}
    show(whole, as_json, words=words, warnings=[said] if unranked else [])
