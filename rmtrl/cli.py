"""The `rmtrl` command: one thin function a command; JSON on stdout with `--json`, a table for people without.

Exit code 0: done. 1: the check that was asked for failed. 2: bad usage or input, one line on stderr.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmtrl.errors import DataError, UsageError, exit_on_error

if TYPE_CHECKING:
    from datasets import Dataset

app = typer.Typer(help="Reward models you can trust.", no_args_is_help=True, add_completion=False)
data_app = typer.Typer(help="Check preference data before training.", no_args_is_help=True)
app.add_typer(data_app, name="data")

Data = Annotated[str, typer.Argument(help="File (jsonl, json, parquet, csv, also .gz), folder or hub id.")]
Map = Annotated[list[str] | None, typer.Option("--map", help="Rename a column: new=old; may be repeated.")]
Split = Annotated[str, typer.Option(help="Split to read, where the data has several.")]
Model = Annotated[str, typer.Option(help="Checkpoint folder or hub id of a reward model or adapter.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def main() -> None:
    """Runs the command line; an input error is one line on stderr and exit code 2."""
    with exit_on_error("rmtrl"):
        app()


@data_app.command()
def validate(
    data: Data,
    tokenizer: Annotated[str | None, typer.Option(help="Tokenizer folder or hub id, to count tokens.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest side, in tokens.")] = None,
    ties: Annotated[str, typer.Option(help="`drop` rejects ties, `keep` leaves them.")] = "drop",
    out: Annotated[Path | None, typer.Option(help="Write the kept pairs here, as jsonl.")] = None,
    rejects: Annotated[Path | None, typer.Option(help="Write the rejected pairs and reasons here, as jsonl.")] = None,
    strict: Annotated[bool, typer.Option(help="Exit with 1 if any pair is rejected.")] = False,
    columns: Map = None,
    split: Split = "train",
    as_json: Json = False,
) -> None:
    """Count which pairs can be trained on and why the others cannot."""
    from rmtrl.data.validation import validate as validate_pairs

    if ties not in ("drop", "keep"):
        raise UsageError(f"got --ties {ties}; wanted drop or keep")
    if max_length is not None and tokenizer is None:
        raise UsageError("got --max-length without --tokenizer; tokens can only be counted with one")
    result = validate_pairs(
        _read(data, split, columns),
        ties=ties,  # type: ignore[arg-type]
        tokenizer=None if tokenizer is None else _tokenizer(tokenizer),
        max_length=max_length,
    )
    for path, rows in ((out, result.kept), (rejects, result.rejects)):
        if path is not None:
            _write_jsonl(path, rows)
    counts = result.as_dict()
    if as_json:
        _print_json({"schema": "rmtrl/validation/1", "data": data, **counts})
    else:
        reasons = {f"rejected: {reason}": count for reason, count in counts["reasons"].items() if count}
        _print_table({"pairs": counts["n"], "kept": counts["kept"], "rejected": counts["rejected"], **reasons,
                      "tie rate": f"{counts['tie_rate']:.3f}", "prompts": counts["groups"]})  # fmt: skip
    for warning in counts["warnings"]:
        print(f"rmtrl: warning: {warning}", file=sys.stderr)
    if strict and len(result.rejects):
        raise typer.Exit(1)


@app.command()
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
    pairs = _read(data, split, columns)
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
        _print_json({"schema": "rmtrl/inspection/1", "model": model, "data": data, "row": row, "side": side,
                     "tokens": listed, "scored_position": position, "reward": reward})  # fmt: skip
        return
    for index, (token_id, token) in enumerate(zip(ids, tokens, strict=True)):
        print(f"{index:>6}  {token_id:>7}  {token!r}{'   <- scored here' if index == position else ''}")
    print(f"reward {reward:.4f}")


@app.command()
def score(
    data: Data,
    model: Model,
    out: Annotated[Path, typer.Option(help="Write one line a pair here: id and scores of chosen, rejected.")],
    columns: Map = None,
    split: Split = "train",
    as_json: Json = False,
) -> None:
    """Score both sides of every pair."""
    from rmtrl.metrics import mean_estimate, pair_wins
    from rmtrl.reward.scorer import RewardScorer

    pairs = _read(data, split, columns)
    scorer = RewardScorer.from_pretrained(model)
    sides = [row["prompt"] + row[side] for side in ("chosen", "rejected") for row in pairs]
    scores = scorer.score(sides).reshape(2, -1).T
    lines = ({"id": i, "scores": [float(s) for s in row]} for i, row in zip(pairs["id"], scores, strict=True))
    _write_jsonl(out, lines)
    accuracy = mean_estimate(pair_wins(*scores.T), pairs["prompt_id"][:])
    if as_json:
        _print_json({"schema": "rmtrl/scores/1", "model": model, "data": data, "accuracy": accuracy.as_dict()})
    else:
        _print_table({"pairs": len(pairs), "accuracy": accuracy, "scores": out})


def _read(data: str, split: str, columns: list[str] | None) -> "Dataset":
    from rmtrl.data.preferences import read_preferences

    wrong = [entry for entry in columns or () if "=" not in entry]
    if wrong:
        raise UsageError(f"got --map {wrong[0]}; wanted new=old, for example --map chosen=good_answer")
    return read_preferences(data, split=split, columns=dict(entry.split("=", 1) for entry in columns or ()))


def _tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"no tokenizer at {path}: {str(error).splitlines()[0]}") from error


def _write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    beside = path.with_name(f".{path.name}.new")
    try:
        with beside.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        beside.replace(path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error
    finally:
        beside.unlink(missing_ok=True)


def _print_json(value: Mapping[str, Any]) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def _print_table(rows: Mapping[str, Any]) -> None:
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {f'{value:,}' if isinstance(value, int) else value}")
