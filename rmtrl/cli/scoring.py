"""`rmtrl inspect` and `rmtrl score`: a reward model used from the command line."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmtrl.cli.console import Data, Json, Map, Model, Split, print_json, print_table, read_pairs
from rmtrl.errors import UsageError
from rmtrl.io import write_rows

if TYPE_CHECKING:
    from datasets import Dataset

    from rmtrl.reward.scorer import RewardScorer


def inspect(
    data: Data,
    model: Model,
    row: Annotated[int, typer.Option(help="Row of the data, from 0.")] = 0,
    side: Annotated[str, typer.Option(help="`chosen` or `rejected`.")] = "chosen",
    columns: Map = None,
    split: Split = "train",
    as_json: Json = False,
) -> None:
    """Show the tokens a reward model sees of one response, and the position that is scored."""
    from rmtrl.evaluation.scoring import check_rendered, conversation
    from rmtrl.reward.scorer import RewardScorer

    if side not in ("chosen", "rejected"):
        raise UsageError(f"got --side {side}; wanted chosen or rejected")
    pairs = read_pairs(data, split, columns)
    if not 0 <= row < len(pairs):
        raise UsageError(f"got --row {row}; {data} has rows 0 to {len(pairs) - 1}")
    scorer = RewardScorer.from_pretrained(model)
    whole = conversation(pairs[row], side)
    check_rendered(scorer, [whole], scorer.holds([whole]), [f"{data}, --row {row}"])
    ids = scorer.encode(whole)
    position, reward = scorer.scored_position(ids), float(scorer.score_ids([ids])[0])
    tokens = scorer.tokenizer.convert_ids_to_tokens(ids)
    if as_json:
        listed = [
            {"position": i, "id": j, "token": token} for i, (j, token) in enumerate(zip(ids, tokens, strict=True))
        ]
        print_json({"schema": "rmtrl/inspection/1", "model": model, "data": data, "row": row, "side": side,
                     "tokens": listed, "scored_position": position, "reward": reward})  # fmt: skip
        return
    for index, (token_id, token) in enumerate(zip(ids, tokens, strict=True)):
        print(f"{index:>6}  {token_id:>7}  {token!r}{'   <- scored here' if index == position else ''}")
    print(f"reward {reward:.4f}")


def score(
    data: Data,
    model: Model,
    out: Annotated[Path, typer.Option(help="Write one line a pair here: id and scores of chosen, rejected.")],
    columns: Map = None,
    split: Split = "train",
    as_json: Json = False,
) -> None:
    """Score both sides of every pair; memory does not grow with the file."""
    from rmtrl.metrics import mean_estimate
    from rmtrl.reward.scorer import RewardScorer

    pairs = read_pairs(data, split, columns)
    scorer = RewardScorer.from_pretrained(model, progress=False)
    wins: list[float] = []
    prompts: list[str] = []
    write_rows(out, scored(scorer, pairs, data, wins, prompts))
    too_long = len(pairs) - len(wins)
    accuracy = mean_estimate(wins, prompts)
    if as_json:
        print_json({"schema": "rmtrl/scores/1", "model": model, "data": data, "n": len(pairs), "too_long": too_long,
                    "accuracy": accuracy.as_dict()})  # fmt: skip
    else:
        print_table({"pairs": len(pairs), "too long": too_long, "accuracy": accuracy, "scores": out})
    if too_long:
        said = f"{too_long:,} pairs are longer than the model's {scorer.most_tokens:,} tokens; their scores are null"
        print(f"rmtrl: warning: {said}", file=sys.stderr)


def scored(
    scorer: "RewardScorer", pairs: "Dataset", data: str, wins: list[float], prompts: list[str]
) -> Iterator[dict[str, Any]]:
    """Yields a line of scores a pair, window by window, and gathers who won under which prompt."""
    import numpy as np

    from rmtrl.evaluation.scoring import score_pairs
    from rmtrl.metrics import pair_wins

    names = iter(pairs.select_columns(["id", "prompt_id"]))
    for scores in score_pairs(scorer, pairs, data):
        for own, row in zip(scores, names):  # noqa: B905 - a window of the names
            if np.isfinite(own).all():
                wins.append(float(pair_wins(*own)))
                prompts.append(row["prompt_id"])
            yield {"id": row["id"], "scores": own.tolist()}
