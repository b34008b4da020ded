"""The server: its routes, its limits with their status codes, its metrics, and how it stops."""

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from rmtrl import __version__
from rmtrl.errors import DataError, RenderingError, RmtrlError
from rmtrl.serving import protocols as forms
from rmtrl.serving.batcher import Batcher, Full
from rmtrl.serving.model import Rendered, Scored, ServedModel
from rmtrl.types import shorten

_CODES = {
    400: "malformed", 401: "unauthorized", 404: "not_found", 405: "not_allowed", 408: "timeout", 413: "too_large",
    422: "invalid", 429: "overloaded", 500: "failed", 503: "unavailable",
}  # fmt: skip
_OPEN = ("/health",)  # asks for no key
_WHILE_DRAINING = ("/health", "/metrics", "/info")


class Fault(BaseModel):
    """What went wrong, in one line, and of what kind it is."""

    error: str
    type: str


def fault(status: int, line: str) -> JSONResponse:
    """Returns an error as it is answered."""
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 503: {"Retry-After": "1"}}.get(status)
    line = " ".join(line.split()).encode("utf-8", "replace").decode()
    return JSONResponse({"error": line, "type": _CODES.get(status, "invalid")}, status, headers)


class Metrics:
    """The server's figures for Prometheus, in a registry of their own."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        self.requests = Counter("rmtrl_requests", "Requests answered.", ["path", "status"], registry=own)
        self.seconds = Histogram("rmtrl_request_seconds", "From head to answer.", ["path"], registry=own)
        self.conversations = Counter("rmtrl_conversations", "Conversations scored.", registry=own)
        self.tokens = Counter("rmtrl_tokens", "Tokens scored.", registry=own)
        self.together = Histogram(
            "rmtrl_scored_together", "Conversations of a call.", buckets=[2**i for i in range(13)], registry=own
        )
        self.waiting = Gauge("rmtrl_waiting", "Conversations that wait or are being scored.", registry=own)

    def scored(self, n_tokens: list[int]) -> None:
        """Counts a call of the scorer."""
        self.conversations.inc(len(n_tokens))
        self.tokens.inc(sum(n_tokens))
        self.together.observe(len(n_tokens))


class Gate:
    """What stands before the routes: keys, limits on bodies, clients that go, requests that come while it drains.

    Args:
        app: The application behind.
        metrics ([`Metrics`]): Told of each request.
        keys (`Sequence[str]`): One of which a request must bear, where there are any.
        most_bytes (`int`): Largest body.
        read_seconds (`float`): Longest time for a body to come.
    """

    def __init__(
        self, app: Any, metrics: Metrics, *, keys: Sequence[str], most_bytes: int, read_seconds: float
    ) -> None:  # fmt: skip
        self.app, self.metrics = app, metrics
        self.keys = [key.encode() for key in keys]
        self.most_bytes, self.read_seconds = most_bytes, read_seconds
        self.draining = False
        self.active = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, started, known = 0, time.perf_counter(), {getattr(route, "path", "") for route in self.app.routes}

        async def sent(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        self.active += 1
        try:
            await self._pass(scope, receive, sent)
        finally:
            self.active -= 1
            path = scope["path"] if scope["path"] in known else "other"
            self.metrics.requests.labels(path, status or 499).inc()  # 499: the client is gone
            self.metrics.seconds.labels(path).observe(time.perf_counter() - started)

    async def _pass(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers a request that must not pass, and passes on the others with their whole body."""
        if self.draining and scope["path"] not in _WHILE_DRAINING:
            await fault(503, "the server is stopping; ask another, or come again")(scope, receive, send)
        elif not self._has_key(dict(scope["headers"]), scope["path"]):
            line = "got no key of this server; wanted it as 'Authorization: Bearer KEY'"
            await fault(401, line)(scope, receive, send)
        else:
            try:
                body = await asyncio.wait_for(self._body(receive), self.read_seconds)
            except asyncio.TimeoutError:
                line = f"the body did not come within {self.read_seconds:g} seconds"
                await fault(408, line)(scope, receive, send)
                return
            if body is not None and len(body) > self.most_bytes:
                line = f"the body is larger than {self.most_bytes:,} bytes; send it in parts"
                await fault(413, line)(scope, receive, send)
            elif body is not None:
                await self._until_gone(scope, body, receive, send)

    def _has_key(self, headers: dict[bytes, bytes], path: str) -> bool:
        given = headers.get(b"authorization", b"")
        matches = [hmac.compare_digest(given, b"Bearer " + key) for key in self.keys]  # of all: no early end
        return any(matches) or not self.keys or path in _OPEN

    async def _body(self, receive: Any) -> bytes | None:
        """Returns the body, of a larger one a byte more than the limit; `None` where it breaks off."""
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part, more = message.get("body", b""), message.get("more_body", False)
            if size <= self.most_bytes:
                parts.append(part)
            size += len(part)
        return b"".join(parts)[: self.most_bytes + 1]

    async def _until_gone(self, scope: Any, body: bytes, receive: Any, send: Any) -> None:
        """Runs the routes; a client that goes takes its request with it."""
        given = False

        async def replayed() -> Any:
            nonlocal given
            if given:
                await asyncio.Event().wait()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        answering = asyncio.ensure_future(self.app(scope, replayed, send))
        gone = asyncio.ensure_future(receive())
        try:
            await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                answering.cancel()
            await asyncio.wait({answering})
        finally:
            gone.cancel()
            answering.cancel()
        if not answering.cancelled():
            answering.result()


def create_app(
    served: ServedModel, *, keys: Sequence[str] = (), token_budget: int = 8192, wait_seconds: float = 0.004,
    most_waiting: int = 4096, most_bytes: int = 16 << 20, read_seconds: float = 30.0, answer_seconds: float = 120.0,
) -> Gate:  # fmt: skip
    """Returns the application, for uvicorn or any other ASGI server; its model is of one process.

    Args:
        served ([`ServedModel`]): The model.
        keys (`Sequence[str]`): One of which a request must bear; none: open to all.
        token_budget, wait_seconds, most_waiting: As in [`~rmtrl.serving.batcher.Batcher`].
        most_bytes (`int`): Largest body.
        read_seconds, answer_seconds (`float`): Longest time for a body to come, and for an answer to be made.

    Example:

    ```python
    >>> uvicorn.run(create_app(ServedModel.from_pretrained("outputs/tiny/rm")))
    ```
    """
    metrics = Metrics()
    batcher = Batcher(
        served, token_budget=token_budget, wait_seconds=wait_seconds, most_waiting=most_waiting, watch=metrics.scored
    )
    metrics.waiting.set_function(lambda: batcher.waiting)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with batcher:
            yield

    responses: dict[int | str, dict[str, Any]] = {
        status: {"model": Fault} for status in (400, 401, 408, 413, 422, 429, 503)
    }
    app = FastAPI(
        title="rmtrl", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, responses=responses
    )
    gate = Gate(app, metrics, keys=keys, most_bytes=most_bytes, read_seconds=read_seconds)

    async def ask(conversations: Sequence[Any]) -> Scored:
        answer = asyncio.wrap_future(batcher.submit(conversations))
        try:
            return await asyncio.wait_for(answer, answer_seconds)
        except asyncio.TimeoutError:
            raise HTTPException(503, f"no answer within {answer_seconds:g} seconds; come again") from None

    _add_own(app, served, ask)
    _add_others(app, served, ask)
    _add_state(app, served, gate)
    _add_faults(app)
    return gate


Ask = Callable[[Sequence[Any]], Any]


def _add_own(app: FastAPI, served: ServedModel, ask: Ask) -> None:
    """Adds `/score` and `/rank`."""

    @app.post("/score", response_model=forms.Scores)
    async def score(form: forms.ScoreRequest) -> JSONResponse:
        """Score conversations, the candidates of a prompt, or token ids."""
        return JSONResponse(forms.scores_of(await ask(form.asked()), served))

    @app.post("/rank", response_model=forms.Ranks)
    async def rank(form: forms.RankRequest) -> JSONResponse:
        """Put the candidates of a prompt in order, best first."""
        return JSONResponse(forms.ranks_of(await ask(forms.joined(form, form.prompt, form.candidates))))


def _add_others(app: FastAPI, served: ServedModel, ask: Ask) -> None:
    """Adds the routes that other servers and trainers have."""

    def told(content: Any, activates: bool) -> JSONResponse:
        return JSONResponse(content, headers={"X-Rmtrl-Activation": "sigmoid" if activates else "none"})

    @app.post("/pooling")
    @app.post("/v1/classify")
    @app.post("/classify")
    async def vllm(form: forms.VLLMRequest, request: Request) -> JSONResponse:
        """vLLM's: the raw reward in `probs` or `data`, its sigmoid with `use_activation: true`."""
        scored, pooling = await ask(form.asked()), request.url.path.endswith("/pooling")
        values = forms.activated(scored, form.activates)
        return told(forms.vllm_answer(values, scored, served, pooling=pooling), form.activates)

    @app.post("/get_reward")
    async def get_reward(form: forms.OpenRLHFRequest) -> JSONResponse:
        """OpenRLHF's remote URL."""
        rewards = (await ask([Rendered(text) for text in form.query])).scores.tolist()
        return JSONResponse({"rewards": rewards, "scores": rewards, "extra_logs": {}})

    @app.post("/slime")
    async def slime(form: forms.SlimeRequest) -> JSONResponse:
        """slime's `--rm-url`: the reward and nothing else."""
        return JSONResponse((await ask(form.asked())).scores.tolist()[0])

    @app.post("/v1/score/evaluation")
    async def evaluation(form: forms.LlamaFactoryRequest) -> JSONResponse:
        """LLaMA-Factory's reward model of type `api`."""
        scores = (await ask([Rendered(text) for text in form.messages])).scores.tolist()
        about = {"id": "scoreval-rmtrl", "object": "score.evaluation", "model": served.name}
        return JSONResponse(about | {"scores": scores})

    @app.post("/predict")
    async def predict(form: forms.PredictRequest) -> JSONResponse:
        """text-embeddings-inference's: the sigmoid, the raw reward with `raw_scores: true`."""
        values = forms.activated(await ask(form.asked()), not form.raw_scores)
        return told(forms.predictions_of(form, values), not form.raw_scores)


def _add_state(app: FastAPI, served: ServedModel, gate: Gate) -> None:
    """Adds what is asked of the server itself."""
    info = served.info()

    @app.get("/health")
    async def health() -> JSONResponse:
        """Say whether requests are taken."""
        return JSONResponse({"status": "draining" if gate.draining else "ok"}, 503 if gate.draining else 200)

    @app.get("/info")
    async def about() -> JSONResponse:
        """Say what is served."""
        return JSONResponse(info)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def figures() -> Response:
        """Give the server's figures for Prometheus."""
        return Response(generate_latest(gate.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_faults(app: FastAPI) -> None:
    """Makes one line of whatever goes wrong."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        found = error.errors()
        broken = next((own for own in found if own["type"] == "json_invalid"), None)
        if broken:
            return fault(400, f"the body is no JSON: {broken['ctx']['error']} at byte {broken['loc'][-1]}")
        unknown = [".".join(map(str, own["loc"][1:])) for own in found if own["type"] == "extra_forbidden"]
        if unknown:
            return fault(422, f"got the field {shorten(unknown[0])!r}, which {request.url.path} does not know")
        first = max(found, key=lambda own: len(own["loc"]))
        if isinstance(first["input"], bytes):
            return fault(422, "the body is not said to be JSON; send it with 'Content-Type: application/json'")
        where = ".".join(map(str, first["loc"][1:])) or "the body"
        return fault(422, f"{shorten(where)}: got {shorten(repr(first['input']))}; {first['msg']}")

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        return fault(error.status_code, str(error.detail))

    @app.exception_handler(RmtrlError)
    async def failed(request: Request, error: RmtrlError) -> JSONResponse:
        statuses = {Full: 429, DataError: 422, RenderingError: 422}
        return fault(next((s for kind, s in statuses.items() if isinstance(error, kind)), 500), str(error))

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        return fault(500, f"{type(error).__name__}: {error}")


class Server(uvicorn.Server):
    """uvicorn, which on SIGTERM or SIGINT answers what it has taken, refuses what comes, and ends well.

    Args:
        gate ([`Gate`]): The application, see [`create_app`].

    Example:

    ```python
    >>> Server(create_app(served)).run(sockets=[socket.create_server(("127.0.0.1", 8000))])
    ```
    """

    def __init__(self, gate: Gate) -> None:
        super().__init__(uvicorn.Config(gate, log_level="warning", access_log=False, timeout_graceful_shutdown=10))
        self.gate = gate

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.gate.draining  # asked twice
        self.should_exit = self.should_exit or self.gate.draining
        self.gate.draining = True

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or (self.gate.draining and not self.gate.active)
