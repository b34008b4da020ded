"""What stands before the routes of a server: keys, limits on bodies, clients that go, the drain, and the metrics."""

import asyncio
import hmac
import time
from collections.abc import Sequence
from typing import Any

from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from pydantic import BaseModel

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
            if self.draining and message["type"] == "http.response.start":  # no request comes on a closing connection
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
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
            got = "a wrong key" if dict(scope["headers"]).get(b"authorization") else "no key"
            line = f"got {got}; wanted one of this server's as 'Authorization: Bearer KEY'"
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
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        given = given if scheme.lower() == b"bearer" else b""
        matches = [hmac.compare_digest(given, key) for key in self.keys]  # of all: no early end
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
