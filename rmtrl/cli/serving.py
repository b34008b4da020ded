"""`rmtrl serve`: a reward model behind HTTP."""

import os
import socket
import sys
from typing import Annotated

import typer

from rmtrl.cli import options as opt
from rmtrl.errors import UsageError


def serve(
    model: opt.Model,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any that is free.", min=0, max=65535)] = 8000,
    name: Annotated[str | None, typer.Option(help="What answers call the model; its path by default.")] = None,
    token_budget: Annotated[int, typer.Option(help="Tokens scored together.", min=1)] = 8192,
    wait_ms: Annotated[float, typer.Option(help="How long a request waits for others, in milliseconds.", min=0)] = 4,
    max_tokens: Annotated[int | None, typer.Option(help="Longest conversation to take.", min=1)] = None,
    max_waiting: Annotated[int, typer.Option(help="Conversations that may wait; more are told 429.", min=1)] = 4096,
    max_body_mb: Annotated[int, typer.Option(help="Largest body, in MB; larger ones are told 413.", min=1)] = 16,
    timeout: Annotated[float, typer.Option(help="Seconds to make an answer in; else 503.", min=0.001)] = 120,
    api_key_env: Annotated[
        str | None, typer.Option(help="Environment variable with the key, or keys by commas, that requests must bear.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where to score; the accelerator by default.")] = None,
) -> None:
    """Serve a reward model over HTTP, in its own form and in those of vLLM, OpenRLHF, slime, LLaMA-Factory and TEI."""
    try:
        from rmtrl.serving.model import ServedModel
        from rmtrl.serving.server import Server, create_app
    except ModuleNotFoundError as error:
        raise UsageError(f"rmtrl serve needs {error.name}; pip install 'rmtrl[serve]'") from error
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
