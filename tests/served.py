"""Servers for what asks them: `rmtrl serve` in a process of its own, and any function behind HTTP in this one."""

import json
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace


@contextmanager
def running(folder, *options):
    """Yields the `url` and the `process` of a server of a folder, which ends with the block."""
    command = [sys.executable, "-m", "rmtrl", "serve", "--model", str(folder), "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            found = next(
                filter(None, (re.search(r"is served at (http://\S+)", line) for line in process.stderr)), None
            )
            assert found, f"rmtrl serve ended with {process.wait()}"
            yield SimpleNamespace(url=found[1], process=process)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


@contextmanager
def servers():
    """Yields a function that serves another, `answer(path, body) -> object or (status, object, headers)`."""
    started = []

    def start(answer):
        def reply(self, body):
            calls.append(SimpleNamespace(path=self.path, body=body, headers=dict(self.headers)))
            told = answer(self.path, body)
            status, told, headers = told if isinstance(told, tuple) else (200, told, {})
            data = told if isinstance(told, bytes) else json.dumps(told).encode()
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(data))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            log_message = lambda self, *given: None  # noqa: E731

            def do_GET(self):
                reply(self, None)

            def do_POST(self):
                reply(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        calls = []
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        started.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}", calls=calls, server=server)

    yield start
    for server in started:
        server.shutdown()
        server.server_close()
