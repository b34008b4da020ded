"""`rmtrl serve`, `parity` and `merge`: a reward model behind HTTP, one served elsewhere, one for other servers."""

import os
import socket
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rmtrl.cli import options as opt
from rmtrl.cli.console import read_pairs, show
from rmtrl.errors import UsageError, extra
from rmtrl.types import is_url, json_ready


def serve(
    model: Annotated[str, typer.Option(help="Folder or hub id of a reward model or adapter.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any that is free.", min=0, max=65535)] = 8000,
    name: Annotated[str | None, typer.Option(help="What answers call the model; its path by default.")] = None,
    token_budget: Annotated[int, typer.Option(help="Most tokens scored together.", min=1)] = 8192,
    wait_ms: Annotated[float, typer.Option(help="How long a request waits for others, in milliseconds.", min=0)] = 4,
    max_tokens: Annotated[int | None, typer.Option(help="Longest conversation, in tokens.", min=1)] = None,
    max_waiting: Annotated[int, typer.Option(help="Conversations that may wait; more get a 429.", min=1)] = 4096,
    max_body_mb: Annotated[int, typer.Option(help="Largest request, in MB; larger ones get a 413.", min=1)] = 16,
    timeout: Annotated[float, typer.Option(help="Seconds that an answer may take; then a 503.", min=0.001)] = 120,
    api_key_env: Annotated[
        str | None,
        typer.Option(help="Environment variable that holds the key, or keys apart by commas, to ask for."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where to score; the accelerator by default.")] = None,
) -> None:
    """Serve a reward model over HTTP, in its own form and in those of vLLM, OpenRLHF, slime, LLaMA-Factory and TEI."""
    with extra("serve", "rmtrl serve"):
        from rmtrl.serving.model import ServedModel
        from rmtrl.serving.server import Server, create_app
    if is_url(model):
        raise UsageError(f"got --model {model}; rmtrl serve serves a folder or a hub id")
    keys = _keys(api_key_env)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise UsageError(f"cannot listen on {host}:{port}: {error.strerror}; give another --host or --port") from error
    with listening:
        served = ServedModel.from_pretrained(
            model, name=name, max_tokens=max_tokens, device=device, batch_tokens=token_budget
        )
        gate = create_app(
            served, keys=keys, token_budget=token_budget, wait_seconds=wait_ms / 1000, most_waiting=max_waiting,
            most_bytes=max_body_mb << 20, answer_seconds=timeout,
        )  # fmt: skip
        host, port = listening.getsockname()[:2]
        print(f"rmtrl: {served.name} is served at http://{host}:{port}", file=sys.stderr, flush=True)
        Server(gate).run(sockets=[listening])


def _keys(variable: str | None) -> list[str]:
    """Returns the keys that an environment variable holds."""
    if variable is None:
        return []
    keys = [key.strip() for key in os.environ.get(variable, "").split(",") if key.strip()]
    if not keys:
        raise UsageError(f"got --api-key-env {variable}, which is not set or empty; put the key there")
    return keys


def parity(
    data: opt.Data,
    model: Annotated[str, typer.Option(help="Checkpoint folder or hub id of the reward model that should be served.")],
    url: Annotated[str, typer.Option(help="URL of the server; its path says what it speaks, as in RemoteScorer.")],
    rows: Annotated[int, typer.Option(help="Pairs to compare, the first ones.", min=1)] = 200,
    tolerance: Annotated[float, typer.Option(help="Largest difference of scores that counts as equal.", min=0)] = 1e-5,
    api_key_env: Annotated[str, typer.Option(help="Environment variable with the server's key.")] = "RMTRL_API_KEY",
    columns: opt.Map = None,
    split: opt.Split = "train",
    as_json: opt.Json = False,
) -> None:
    """Say whether a server gives a reward model's own scores, and what it probably does to the texts where not."""
    from rmtrl.evaluation.parity import compare
    from rmtrl.reward.remote import RemoteScorer
    from rmtrl.reward.scorer import RewardScorer

    pairs = read_pairs(data, split, columns)
    pairs = pairs.select(range(min(rows, len(pairs))))

    def load(dtype: str) -> RewardScorer:
        return RewardScorer.from_pretrained(model, dtype=dtype, progress=False)

    served = RemoteScorer(url, model=model, api_key_env=api_key_env, checks=False)
    other = (served.other_model() or ("",))[0]
    found = compare(load("float32"), served, pairs, tolerance=tolerance, rounded=load, other=other)
    whole: dict[str, Any] = json_ready(found) | {"model": model, "url": url, "data": data}
    verdict = "equal" if found.equal else f"not equal: {', '.join(found.causes) or 'for no reason that is known'}"
    words = {name: getattr(found, name) for name in ("n", "not_held", "largest_difference", "flipped", "unexplained")}
    small = {name: f"{words[name]:.2g}" for name in ("largest_difference", "unexplained")}
    show(whole, as_json, words={"verdict": verdict, **words, **small})
    if not found.equal:
        raise typer.Exit(1)


def merge(
    adapter: Annotated[str, typer.Argument(help="Folder or hub id of a reward model that is an adapter.")],
    out: Annotated[Path, typer.Option(help="Folder to write, or an earlier merge to replace.")],
    dtype: Annotated[str, typer.Option(help="Type of the weights, such as float32; auto keeps the base's.")] = "auto",
    tolerance: Annotated[
        float, typer.Option(help="Largest difference that is equal; relative above 1.", min=0)
    ] = 1e-4,
    as_json: opt.Json = False,
) -> None:
    """Write base and adapter as one plain checkpoint, in place once its scores are proven equal."""
    from rmtrl.reward.merging import merge_adapter

    off = merge_adapter(adapter, out, tolerance=tolerance, dtype=dtype)
    show({"schema": "rmtrl/merged/1", "adapter": adapter, "out": str(out), "difference": off}, as_json)
