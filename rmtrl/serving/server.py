"""The server: its routes, what it says of whatever goes wrong, and how it stops."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from rmtrl import __version__
from rmtrl.errors import DataError, RenderingError, RmtrlError
from rmtrl.serving import protocols as forms
from rmtrl.serving.batcher import Batcher, Full
from rmtrl.serving.gate import Fault, Gate, Metrics, fault
from rmtrl.serving.model import Rendered, Scored, ServedModel
from rmtrl.types import shorten


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
        wanted = "leave it out" if first["type"] == "none_required" else first["msg"].removeprefix("Value error, ")
        return fault(422, f"{shorten(where)}: got {shorten(repr(first['input']))}; {wanted}")

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
        super().__init__(
            uvicorn.Config(
                gate, ws="none", log_level="warning", access_log=False, timeout_graceful_shutdown=10,
                timeout_keep_alive=75,  # longer than clients keep a connection: it is not closed under a request
            )
        )  # fmt: skip
        self.gate = gate

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.gate.draining  # asked twice
        self.should_exit = self.should_exit or self.gate.draining
        self.gate.draining = True

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or (self.gate.draining and not self.gate.active)
