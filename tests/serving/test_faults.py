"""What a server cannot answer it says in one line with the right status; it goes on, and loses nothing taken."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from serving_http import running

from rmtrl import RewardScorer
from rmtrl.errors import ModelError
from rmtrl.serving.model import ServedModel

ONE = {"conversations": ["one two three ?"]}


class Held(ServedModel):
    """A model that scores when it is let, and notes what it was asked."""

    def __init__(self, scorer):
        super().__init__(scorer)
        self.go, self.calls = threading.Event(), []

    def score(self, encoded):
        self.calls.append(len(encoded))
        assert self.go.wait(30)
        return super().score(encoded)


@pytest.fixture
def scorer(model, tokenizer):
    return RewardScorer(model, tokenizer, progress=False)


@pytest.fixture
def held(scorer):
    return Held(scorer)


def until(shown, seconds=20):
    end = time.monotonic() + seconds
    while not shown():
        assert time.monotonic() < end
        time.sleep(0.01)


def said(answer, status, kind, words):
    """The answer is one line of this kind."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error", "type"} and body["type"] == kind
    assert words in body["error"] and "\n" not in body["error"]


# ---- what was sent


@pytest.mark.parametrize(
    ("body", "status", "kind", "words"),
    [
        (b'{"conversations": [', 400, "malformed", "the body is no JSON: "),
        (b"\xff\xfe", 400, "malformed", ""),
        (b"[" * 100_000, 400, "malformed", ""),
        (b"", 422, "invalid", "the body"),
        (b"[]", 422, "invalid", "the body"),
        (b'{"conversation": ["a"]}', 422, "invalid", "got the field 'conversation', which /score does not know"),
        (b"{}", 422, "invalid", "one of the three"),
        (b'{"conversations": ["a"], "token_ids": [[1]]}', 422, "invalid", "one of the three"),
        (b'{"prompt": "a"}', 422, "invalid", "one of the three"),
        (b'{"conversations": [3]}', 422, "invalid", "conversations.0"),
        (b'{"conversations": [[]]}', 422, "invalid", "conversation 0"),
        (b'{"conversations": [[{"role": "user", "content": null}]]}', 422, "invalid", "no content"),
        (b'{"conversations": [[{"content": "a"}]]}', 422, "invalid", "role"),
        (b'{"conversations": ["a", "\\ud800"]}', 422, "invalid", "conversation 1 holds half a character"),
        (b'{"conversations": [[{"role": "user", "content": [{"type": "text", "text": "\\ud800"}]}]]}',
         422, "invalid", ""),
        (b'{"conversations": [[{"role": "\\udfff", "content": "a"}]]}', 422, "invalid", ""),
        (b'{"token_ids": [[]]}', 422, "invalid", "conversation 0 is empty"),
        (b'{"token_ids": [[99999]]}', 422, "invalid", "token 99,999"),
        (b'{"token_ids": [[-1]]}', 422, "invalid", "greater than or equal to 0"),
        (b'{"token_ids": [[1e400]]}', 422, "invalid", ""),
        (b'{"token_ids": [[true]]}', 422, "invalid", ""),
        (b'{"prompt": "a", "candidates": [[{"role": "user", "content": "b"}]]}', 422, "invalid", "both in one form"),
        (b'{"prompt": [{"role": "user", "content": "a"}], "candidates": ["b"], "chat_template_kwargs": '
         b'{"chat_template": "x"}}', 422, "invalid", "'chat_template', which is no variable"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_one_line(scorer, body, status, kind, words):
    with running(scorer) as client:
        answer = client.post("/score", content=body, headers={"Content-Type": "application/json"})
        said(answer, status, kind, words)
        assert client.post("/score", json=ONE).status_code == 200


def test_a_body_that_is_not_said_to_be_json(scorer):
    with running(scorer) as client:
        said(client.post("/score", content=json.dumps(ONE)), 422, "invalid", "application/json")
        said(client.get("/nowhere"), 404, "not_found", "")
        said(client.get("/score"), 405, "not_allowed", "")


def test_a_conversation_too_long_is_refused_and_nothing_is_cut(scorer):
    long = " ".join(["red"] * 300)
    with running(scorer) as client:
        said(
            client.post("/score", json={"conversations": ["red", long]}),
            422,
            "invalid",
            "conversation 1 has 600 tokens; wanted at most 256",
        )
    with running(ServedModel(scorer, max_tokens=5)) as client:
        said(client.post("/score", json=ONE | {"conversations": ["red " * 9]}), 422, "invalid", "wanted at most 5")


def test_a_body_over_the_limit(scorer):
    with running(scorer, most_bytes=1000) as client:
        said(client.post("/score", content=b"x" * 1001), 413, "too_large", "larger than 1,000 bytes")
        said(client.post("/score", content=iter([b"x" * 600] * 200)), 413, "too_large", "1,000")  # in chunks
        assert client.post("/score", json=ONE).status_code == 200


def test_a_body_that_does_not_come(scorer):
    with running(scorer, read_seconds=0.3) as client:
        with socket.create_connection((client.base_url.host, client.base_url.port)) as slow:
            slow.sendall(b"POST /score HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{")
            assert slow.recv(4096).startswith(b"HTTP/1.1 408 ")
        assert client.post("/score", json=ONE).status_code == 200


# ---- who may ask


def test_keys(scorer):
    with running(scorer, keys=["first", "sécond"]) as client:
        for given in (None, "", "first", "Bearer", "Bearer firs", "Bearer first2"):
            headers = {} if given is None else {"Authorization": given}
            answer = client.post("/score", json=ONE, headers=headers)
            said(answer, 401, "unauthorized", "Authorization: Bearer KEY")
            assert ("got a wrong key" if given else "got no key") in answer.text
            assert answer.headers["www-authenticate"] == "Bearer" and "first" not in answer.text
        for key in ("first", "sécond"):
            headers = {"Authorization": f"Bearer {key}".encode()}
            assert client.post("/score", json=ONE, headers=headers).status_code == 200
        assert client.post("/score", json=ONE, headers={"Authorization": "bearer first"}).status_code == 200
        assert client.get("/health").status_code == 200
        assert client.get("/info").status_code == client.get("/metrics").status_code == 401


# ---- too many, too slow


def test_a_full_queue_says_when_to_come_again(held):
    with running(held, most_waiting=4) as client, ThreadPoolExecutor(4) as pool:
        said(client.post("/score", json={"conversations": ["a"] * 5}), 422, "invalid", "wanted at most 4")
        first = [pool.submit(client.post, "/score", json={"conversations": ["a"] * 2}) for _ in range(2)]
        until(lambda: "rmtrl_waiting 4.0" in client.get("/metrics").text)
        answer = client.post("/score", json=ONE)
        said(answer, 429, "overloaded", "4 conversations wait, of at most 4")
        assert int(answer.headers["retry-after"]) >= 1
        held.go.set()
        assert all(own.result().status_code == 200 for own in first)
        assert client.post("/score", json=ONE).status_code == 200


def test_an_answer_that_takes_too_long(held):
    with running(held, answer_seconds=0.3) as client:
        answer = client.post("/score", json=ONE)
        said(answer, 503, "unavailable", "no answer within 0.3 seconds")
        assert "retry-after" in answer.headers
        held.go.set()
        until(lambda: client.post("/score", json=ONE).status_code == 200)
        assert "rmtrl_waiting 0.0" in client.get("/metrics").text


def test_a_client_that_goes_takes_its_request_with_it(held):
    with running(held, wait_seconds=0) as client:
        body = json.dumps(ONE).encode()
        head = b"POST /score HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        gone = [socket.create_connection((client.base_url.host, client.base_url.port)) for _ in range(3)]
        for one in gone:
            one.sendall(head % len(body) + body)
            until(lambda: held.calls == [1])  # the first is being scored, alone
        until(lambda: "rmtrl_waiting 3.0" in client.get("/metrics").text)
        for one in gone:
            one.close()
        until(lambda: 'rmtrl_requests_total{path="/score",status="499"} 3.0' in client.get("/metrics").text)
        held.go.set()
        assert client.post("/score", json=ONE).status_code == 200
        assert held.calls == [1, 1]  # what waited behind the first was not scored
        until(lambda: "rmtrl_waiting 0.0" in client.get("/metrics").text)


def test_a_client_that_goes_in_the_middle_of_its_body(scorer):
    with running(scorer) as client:
        with socket.create_connection((client.base_url.host, client.base_url.port)) as one:
            one.sendall(b"POST /score HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{")
        assert client.post("/score", json=ONE).status_code == 200


# ---- a model that fails


def test_a_request_that_fails_takes_no_other_with_it(scorer):
    class Broken(Held):
        def score(self, encoded):
            if any(len(ids) > 20 for ids, _ in encoded):
                self.calls.append(len(encoded))
                raise ModelError("the reward model returned nan for conversation 0")
            return super().score(encoded)

    broken, long = Broken(scorer), {"conversations": ["red " * 30]}
    broken.go.set()
    with running(broken, wait_seconds=0.5) as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda body: client.post("/score", json=body), [ONE, ONE, long, ONE]))
    assert [answer.status_code for answer in answers] == [200, 200, 500, 200]
    assert "scores" not in answers[2].json() and "returned nan" in answers[2].json()["error"]
    assert max(broken.calls) > 1  # they came together


def test_the_folder_of_the_model_may_go(checkpoint):
    served = ServedModel.from_pretrained(checkpoint, device="cpu")
    wanted = served.scorer.score(ONE["conversations"])
    shutil.rmtree(checkpoint)
    with running(served) as client:
        assert client.post("/score", json=ONE).json()["scores"] == pytest.approx(wanted, abs=1e-5)
        assert client.get("/info").json()["model"] == str(checkpoint)


# ---- how it stops


def test_while_it_drains_what_was_taken_is_answered_and_what_comes_is_refused(held):
    with running(held) as client, ThreadPoolExecutor(4) as pool:
        taken = [pool.submit(client.post, "/score", json=ONE) for _ in range(3)]
        until(lambda: "rmtrl_waiting 3.0" in client.get("/metrics").text)
        client.server.handle_exit(signal.SIGTERM, None)
        said(client.post("/score", json=ONE), 503, "unavailable", "the server is stopping")
        health = client.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "draining"})
        held.go.set()
        assert [own.result().status_code for own in taken] == [200] * 3
        assert {own.result().headers["connection"] for own in taken} == {health.headers["connection"]} == {"close"}
        until(lambda: client.server.should_exit or not client.server.started or not client.server.gate.active)


@pytest.mark.integration
def test_sigterm_under_load_loses_nothing_and_ends_with_0(checkpoint):
    """32 clients ask without end; each gets scores, or 503, or no connection, and never half an answer."""
    command = [sys.executable, "-m", "rmtrl", "serve", "--model", str(checkpoint), "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        load_and_stop(process)


def load_and_stop(process):
    url = next(line for line in process.stderr if " is served at " in line).split(" is served at ")[1].strip()
    statuses, broken = [], []

    def ask():
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            while True:
                try:
                    answer = client.post("/score", json=ONE)
                except httpx.ConnectError:
                    return
                except httpx.TransportError as error:  # a request on a connection that was idle when it closed
                    broken.append(repr(error))
                    return
                statuses.append(answer.status_code)
                assert answer.status_code == 503 or len(answer.json()["scores"]) == 1

    clients = [threading.Thread(target=ask) for _ in range(32)]
    for client in clients:
        client.start()
    until(lambda: len(statuses) > 100, seconds=60)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    for client in clients:
        client.join(30)
    assert set(statuses) <= {200, 503} and statuses.count(200) > 100
    assert not [error for error in broken if "without sending a complete message body" in error], broken
    assert process.stderr.read() == ""
