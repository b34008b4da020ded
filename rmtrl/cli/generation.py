"""`rmtrl rerank`: the best of several answers by a reward model, given in a file or sampled from a policy."""

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmtrl.cli.console import Json, Model, print_json, print_table, source_rows
from rmtrl.errors import DataError, UsageError
from rmtrl.io import write_rows
from rmtrl.types import Chat

if TYPE_CHECKING:
    from rmtrl.evaluation.policy import Ranked
    from rmtrl.types import Conversation

_WINDOW_CANDIDATES = 1000  # scored at a time: enough to find rows of like length, little to hold


def rerank(
    data: Annotated[
        str, typer.Argument(help="Prompts, one a line: prompt, and candidates (a list) without --policy.")
    ],
    model: Model,
    out: Annotated[Path, typer.Option(help="Write one line a prompt here: best, its index, scores, candidates.")],
    policy: Annotated[
        str | None, typer.Option(help="Checkpoint folder or hub id of a policy that makes the candidates.")
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Candidates to sample of each prompt.", min=1)] = 8,
    max_new_tokens: Annotated[int, typer.Option(help="Longest candidate to sample.", min=1)] = 256,
    temperature: Annotated[float, typer.Option(help="Temperature of the sampling.", min=0)] = 1.0,
    top_p: Annotated[float, typer.Option(help="Probability mass to sample from.")] = 1.0,
    batch_size: Annotated[int, typer.Option(help="Candidates to sample at a time.", min=1)] = 32,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Choose the best of several answers by a reward model."""
    from rmtrl.metrics import mean_estimate
    from rmtrl.reward.scorer import RewardScorer

    rows = [
        read_row(place, row, str(n), candidates=policy is None) for n, (place, row) in enumerate(source_rows(data))
    ]
    generate = None
    if policy is not None:
        from rmtrl.generation import TransformersGenerator

        generator = TransformersGenerator.from_pretrained(
            policy, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, batch_size=batch_size,
            progress=False,
        )  # fmt: skip
        _check_form(policy, generator.tokenizer.chat_template, rows)

        def generate(prompts: "Sequence[Conversation]") -> list[list[str]]:
            return [[made.text for made in own] for own in generator.generate(prompts, n, seed=seed)]

    ranked: list[Ranked] = []
    write_rows(out, _lines(RewardScorer.from_pretrained(model, progress=False), rows, generate, n, ranked))
    known = [own.scores[own.scores == own.scores] for own in ranked if own.index is not None]
    figures = {
        "gain": mean_estimate([own.max() - own.mean() for own in known], proportion=False),
        "best": mean_estimate([own.max() for own in known], proportion=False),
    }
    counts = {
        "n": len(rows),
        "candidates": sum(len(own.candidates) for own in ranked),
        "too_long": sum(int((own.scores != own.scores).sum()) for own in ranked),
        "unranked": len(rows) - len(known),
    }
    if as_json:
        print_json({"schema": "rmtrl/rerank/1", "model": model, "policy": policy, "data": data, "out": str(out),
                    **counts, **{name: estimate.as_dict() for name, estimate in figures.items()}})  # fmt: skip
    else:
        print_table({
            "prompts": counts["n"], "candidates": counts["candidates"], "too long": counts["too_long"],
            "score of the best": figures["best"], "best above the mean": figures["gain"], "written to": out,
        })  # fmt: skip
    if counts["unranked"]:
        print(f"rmtrl: warning: {counts['unranked']:,} prompts have no candidate that the model holds; their best is "
              "null", file=sys.stderr)  # fmt: skip


def read_row(place: str, row: dict[str, Any], fallback_id: str, *, candidates: bool) -> dict[str, Any]:
    """Returns a line's id, its place, its prompt with the row's tools and template variables, and its candidates.

    Raises:
        DataError: If the line lacks one, or has another form.
    """
    from rmtrl.data.normal_form import TEMPLATE

    prompt, own = row.get("prompt"), row.get("candidates")
    if not prompt or not isinstance(prompt, str | list):
        raise DataError(f"{place} has the prompt {str(prompt)[:40]!r}; wanted a text or messages")
    if candidates and (not isinstance(own, list) or not own or not all(isinstance(one, str | list) for one in own)):
        raise DataError(
            f"{place} has the candidates {str(own)[:40]!r}; wanted a list of texts, or --policy to sample them"
        )
    name = row.get("id")
    return {"id": fallback_id if name is None else name, "place": place, "prompt": Chat.of(prompt, row),
            "candidates": own if candidates else None,
            "given": {name: row[name] for name in TEMPLATE if row.get(name)}}  # fmt: skip


def _check_form(policy: str, template: Any, rows: Sequence[dict[str, Any]]) -> None:
    if not template and any(not isinstance(row["prompt"], str) for row in rows):
        raise UsageError(f"{policy} has no chat template and the prompts are messages; give prompts as text")


def _lines(
    scorer: Any,
    rows: Sequence[dict[str, Any]],
    generate: "Callable[[Sequence[Conversation]], list[list[str]]] | None",
    n: int,
    ranked: "list[Ranked]",
) -> Iterator[dict[str, Any]]:
    """Yields a line a prompt, window by window, and gathers what was ranked."""
    import numpy as np
    from tqdm.auto import tqdm

    from rmtrl.evaluation.policy import best_of_n
    from rmtrl.evaluation.scoring import check_rendered, joined

    most = n if generate else max(len(row["candidates"]) for row in rows)
    size = max(1, _WINDOW_CANDIDATES // most)
    with tqdm(total=len(rows), desc="Reranking", unit="prompt", delay=2) as progress:
        for start in itertools.count(0, size):
            window = rows[start : start + size]
            if not window:
                break
            prompts = [row["prompt"] for row in window]
            candidates = generate(prompts) if generate else [row["candidates"] for row in window]
            for row, own in zip(window, best_of_n(scorer, prompts, candidates), strict=True):
                whole = [joined(row["prompt"], candidate) for candidate in own.candidates]
                check_rendered(scorer, whole, np.isfinite(own.scores), [row["place"]] * len(whole))
                ranked.append(own)
                yield {"id": row["id"], "prompt": row["prompt"], **row["given"], "best": own.best, "index": own.index,
                       "scores": own.scores.tolist(), "candidates": list(own.candidates)}  # fmt: skip
            progress.update(len(window))
    if all(own.index is None for own in ranked):
        raise DataError(f"none of the {len(rows):,} prompts has a candidate that the model holds")
