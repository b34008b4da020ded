"""`rmtrl inspect` and `rmtrl score`: a reward model used from the command line."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmtrl.cli.console import Data, Json, Map, Model, Split, print_json, print_table, read_pairs, write_jsonl
from rmtrl.errors import DataError, UsageError

if TYPE_CHECKING:
    from datasets import Dataset

    from rmtrl.reward.scorer import RewardScorer

_WINDOW_PAIRS = 1000  # scored at a time: enough to find rows of like length, little to hold


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
    from rmtrl.reward.scorer import RewardScorer

    if side not in ("chosen", "rejected"):
        raise UsageError(f"got --side {side}; wanted chosen or rejected")
    pairs = read_pairs(data, split, columns)
    if not 0 <= row < len(pairs):
        raise UsageError(f"got --row {row}; {data} has rows 0 to {len(pairs) - 1}")
    scorer = RewardScorer.from_pretrained(model)
    ids = scorer.encode(pairs[row]["prompt"] + pairs[row][side])
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
    write_jsonl(out, scored(scorer, pairs, wins, prompts))
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
    scorer: "RewardScorer", pairs: "Dataset", wins: list[float], prompts: list[str]
) -> Iterator[dict[str, Any]]:
    """Yields a line of scores a pair, window by window, and gathers who won under which prompt."""
    from tqdm.auto import tqdm

    from rmtrl.metrics import pair_wins
    from rmtrl.reward.rendering import encode_all

    with tqdm(total=len(pairs), desc="Scoring", unit="pair", delay=2) as progress:
        for window in pairs.select_columns(["id", "prompt_id", "prompt", "chosen", "rejected"]).iter(_WINDOW_PAIRS):
            sides = zip(2 * window["prompt"], window["chosen"] + window["rejected"], strict=True)
            ids = encode_all(scorer.tokenizer, [prompt + side for prompt, side in sides])
            half, limit = len(ids) // 2, scorer.most_tokens
            fits = [k for k in range(half) if limit is None or max(len(ids[k]), len(ids[half + k])) <= limit]
            scores = scorer.score_ids([ids[side + k] for side in (0, half) for k in fits]).reshape(2, -1)
            wins += pair_wins(*scores).tolist()
            prompts += [window["prompt_id"][k] for k in fits]
            known = dict(zip(fits, scores.T.tolist(), strict=True))
            yield from ({"id": id, "scores": known.get(k, [None, None])} for k, id in enumerate(window["id"]))
            progress.update(half)
    if not wins:
        raise DataError(f"all {len(pairs):,} pairs are longer than the model's {scorer.most_tokens} tokens")
