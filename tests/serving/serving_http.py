"""What tests of the server share: it runs in this process, on a free port, and is asked over HTTP."""

import socket
import threading
from contextlib import contextmanager

import httpx

from rmtrl.serving.model import ServedModel
from rmtrl.serving.server import Server, create_app


@contextmanager
def running(served, **settings):
    """Yields a client of a server of the model; the server stops with the block."""
    served = served if isinstance(served, ServedModel) else ServedModel(served)
    server = Server(create_app(served, **settings))
    listening = socket.create_server(("127.0.0.1", 0), backlog=512)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    host, port = listening.getsockname()
    try:
        with httpx.Client(base_url=f"http://{host}:{port}", timeout=60, trust_env=False) as client:
            client.server = server
            yield client
    finally:
        server.should_exit = True
        thread.join()
