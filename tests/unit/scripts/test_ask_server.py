"""Asking a server, against stand-ins that answer rightly, wrongly, late, too much or not at all."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ANSWERS: dict[str, Any] = {
    "schema_version": 1,
    "model_name": "tiny",
    "chat_template_kwargs": {"thinking": False},
    "prompts": [
        {
            "id": name,
            "prompt": f"<User>{name}?",
            "messages": [{"role": "user", "content": f"{name}?"}],
            "answer": f"It is {name}.",
            "token_ids": [5, 6, number, 1],
            "margin": 3.0,
        }
        for number, name in enumerate(("one", "two", "three"))
    ],
}


def right(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """What a good server says to a good request."""
    asked = body["messages"][0]["content"] if "chat" in path else body["prompt"]
    prompt = next(p for p in ANSWERS["prompts"] if p["id"] in asked)
    choice: dict[str, Any] = {"finish_reason": "stop", "token_ids": prompt["token_ids"]}
    if "chat" in path:
        assert body["chat_template_kwargs"] == {"thinking": False}
        choice["message"] = {"role": "assistant", "content": prompt["answer"]}
        choice["logprobs"] = {
            "content": [{"top_logprobs": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -3.0}]}] * 4
        }
    else:
        assert body["add_special_tokens"] is False
        choice["text"] = prompt["answer"]
        choice["logprobs"] = {"top_logprobs": [{"a": -4.5, "b": -0.5}] * 4}
    assert body["temperature"] == 0
    return {"choices": [choice]}


Reply = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Health, models and version as vLLM has them; the rest is up to the test's ``reply``."""

    reply: Reply
    stand_in: StandIn

    def do_GET(self) -> None:
        if self.path == "/health":
            self.send(b"", 200 if self.stand_in.healthy else 503)
        elif self.path == "/v1/models":
            self.send(json.dumps({"data": [{"id": "tiny"}]}).encode())
        elif self.path == "/version":
            self.send(json.dumps({"version": "0.32.0"}).encode())
        else:
            self.send(b"{}", 404)

    def do_POST(self) -> None:
        self.stand_in.enter()
        try:
            type(self).reply(self)
        finally:
            self.stand_in.leave()

    def body(self) -> dict[str, Any]:
        """The request's JSON."""
        loaded = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert isinstance(loaded, dict)
        return loaded

    def send(self, data: bytes, status: int = 200) -> None:
        """Answer with ``data``."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its base's name
        """Stay quiet."""


class StandIn(ThreadingHTTPServer):
    """A server whose health and concurrency a test can see."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, reply: Reply) -> None:
        handler = type("TestHandler", (Handler,), {"reply": staticmethod(reply), "stand_in": self})
        super().__init__(("127.0.0.1", 0), handler)
        self.healthy = True
        self.lock = threading.Lock()
        self.now = self.most = self.requests = 0

    def enter(self) -> None:
        """Count one request in."""
        with self.lock:
            self.now += 1
            self.requests += 1
            self.most = max(self.most, self.now)

    def leave(self) -> None:
        """Count one request out."""
        with self.lock:
            self.now -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Broken pipes are what some tests want."""


@contextmanager
def standing_in(reply: Reply) -> Iterator[StandIn]:
    """Run a stand-in for the test."""
    server = StandIn(reply)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ask(
    ask_server: ModuleType,
    server: StandIn,
    *,
    timeout: float = 2.0,
    ready: float = 2.0,
    total: float = 10.0,
) -> tuple[int, dict[str, Any]]:
    """Run the whole thing against ``server``; the document goes through JSON."""
    status, document = ask_server.run(
        ask_server.Server("127.0.0.1", server.server_address[1], timeout),
        ask_server.read_quiz(json.dumps(ANSWERS)),
        ready_seconds=ready,
        total_seconds=total,
    )
    loaded = json.loads(json.dumps(document))
    assert set(loaded) == {
        "schema_version",
        "ready_seconds",
        "model",
        "vllm_version",
        "answers",
        "exact",
        "total",
        "error",
    }
    return status, loaded


def test_a_right_server(ask_server: ModuleType) -> None:
    def reply(handler: Handler) -> None:
        data = right(handler.path, handler.body())
        time.sleep(0.05)
        handler.send(json.dumps(data).encode())

    with standing_in(reply) as server:
        status, document = ask(ask_server, server)
    assert status == 0
    assert (document["exact"], document["total"], document["error"]) == (8, 8, None)
    assert (document["model"], document["vllm_version"]) == ("tiny", "0.32.0")
    assert document["ready_seconds"] < 1
    assert [a["api"] for a in document["answers"]] == [
        "completions",
        *["completions-batch"] * 3,
        *["chat-batch"] * 3,
        "completions-twin",
    ]
    assert {a["lead"] for a in document["answers"] if "chat" in a["api"]} == {2.5}
    assert {a["lead"] for a in document["answers"] if "compl" in a["api"]} == {4.0}
    first = document["answers"][0]
    assert first["id"] == "one"
    assert first["got"] == first["expected"] == "It is one."
    assert first["token_ids"] == [5, 6, 0, 1]
    assert server.most == 7, "the batch was asked at once"


def wrong_text(choice: dict[str, Any]) -> None:
    """Another text."""
    choice["text"] = "It is not."


def wrong_tokens(choice: dict[str, Any]) -> None:
    """The same text from other tokens."""
    choice["token_ids"] = [5, 6, 7, 1]


def no_end(choice: dict[str, Any]) -> None:
    """The same text, cut off by a limit."""
    choice["finish_reason"] = "length"


@pytest.mark.parametrize("spoil", [wrong_text, wrong_tokens, no_end])
def test_a_wrong_server_is_asked_all_the_same(ask_server: ModuleType, spoil: Callable[[dict[str, Any]], None]) -> None:
    def reply(handler: Handler) -> None:
        data = right(handler.path, handler.body())
        if "chat" not in handler.path:
            spoil(data["choices"][0])
        handler.send(json.dumps(data).encode())

    with standing_in(reply) as server:
        status, document = ask(ask_server, server)
    assert status == 0
    assert (document["exact"], document["total"], document["error"]) == (3, 8, None)
    assert all(a["exact"] == ("chat" in a["api"]) for a in document["answers"])


def test_a_server_without_token_ids_or_logprobs(ask_server: ModuleType) -> None:
    def reply(handler: Handler) -> None:
        data = right(handler.path, handler.body())
        del data["choices"][0]["token_ids"]
        data["choices"][0]["logprobs"] = None
        handler.send(json.dumps(data).encode())

    with standing_in(reply) as server:
        status, document = ask(ask_server, server)
    assert (status, document["exact"]) == (0, 8)
    assert {(a["token_ids"], a["lead"]) for a in document["answers"]} == {(None, None)}


def hang(handler: Handler) -> None:
    """Say nothing."""
    time.sleep(3)


def drip_headers(handler: Handler) -> None:
    """A header that never ends, one byte at a time."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    for _ in range(60):
        handler.wfile.write(b"x")
        time.sleep(0.05)


def drip_body(handler: Handler) -> None:
    """A body that never ends, one byte at a time."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(60):
        handler.wfile.write(b" ")
        time.sleep(0.05)


@pytest.mark.parametrize("reply", [hang, drip_headers, drip_body])
def test_a_hanging_server_is_cut_off(ask_server: ModuleType, reply: Reply) -> None:
    with standing_in(reply) as server:
        start = time.monotonic()
        status, document = ask(ask_server, server, timeout=0.2, total=0.1)
        took = time.monotonic() - start
    assert status == 4
    assert took < 2.5
    assert len(document["answers"]) == document["total"] == 8
    assert document["exact"] == 0
    assert document["answers"][0]["error"].startswith("TooSlowError: no ")
    assert document["answers"][-1]["error"] == "not asked: no time"
    assert document["error"].startswith("8 questions got no answer; the first: TooSlowError")


def raw(data: bytes) -> Reply:
    """A reply of exactly these bytes on the wire."""

    def reply(handler: Handler) -> None:
        handler.body()
        handler.wfile.write(data)

    return reply


def sent(document: object, status: int = 200) -> Reply:
    """A reply of well-formed HTTP with this JSON in it."""

    def reply(handler: Handler) -> None:
        handler.body()
        handler.send(json.dumps(document).encode(), status)

    return reply


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), "not an HTTP response"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n{}"), ""),
        (raw(b"HTTP/1.1 200 OK\r\n\r\n<html>"), "did not answer with JSON: '<html>'"),
        (raw(b"HTTP/1.1 200 OK\r\n\r\n\xff\xfe"), "did not answer with JSON"),
        (raw(b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 100_000), "did not answer with JSON"),
        (raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500), "not an HTTP response"),
        (sent([1]), "did not answer with a JSON object"),
        (sent({}), "no answer in the response"),
        (sent({"choices": []}), "no answer in the response"),
        (sent({"choices": [{"text": None, "finish_reason": "stop"}]}), ""),
        (sent({"error": "EngineDeadError"}, 500), 'answered 500: \'{"error": "EngineDeadError"}\''),
    ],
)
def test_garbage_is_an_error_for_that_question(ask_server: ModuleType, reply: Reply, error: str) -> None:
    with standing_in(reply) as server:
        status, document = ask(ask_server, server)
    assert status == 4
    assert document["exact"] == 0
    assert all(a["error"].startswith("GarbageError: ") for a in document["answers"])
    assert error in document["answers"][0]["error"]


def test_an_oversized_response_is_not_read_to_its_end(ask_server: ModuleType) -> None:
    written = [0]

    def reply(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(1000):
            written[0] += handler.wfile.write(b" " * (1 << 16))

    with standing_in(reply) as server:
        status, document = ask(ask_server, server, total=5)
    assert status == 4
    assert "more than 1048576 bytes" in document["answers"][0]["error"]
    assert written[0] < 8 * (32 << 20)


def test_a_server_that_dies_is_asked_no_further(ask_server: ModuleType) -> None:
    def reply(handler: Handler) -> None:
        data = right(handler.path, handler.body())
        if handler.stand_in.requests < 1:
            handler.send(json.dumps(data).encode())
            return
        handler.stand_in.healthy = False
        handler.connection.shutdown(socket.SHUT_RDWR)

    with standing_in(reply) as server:
        status, document = ask(ask_server, server)
    assert status == 3
    assert server.requests == 1
    assert document["exact"] == 0
    assert len(document["answers"]) == document["total"] == 8
    assert document["answers"][0]["error"].startswith("GoneError: the connection failed")
    assert document["answers"][1]["error"] == "not asked: the server died"


def test_half_a_response_is_no_response(ask_server: ModuleType) -> None:
    reply = raw(b'HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{"choices": []}')
    with standing_in(reply) as server:
        status, document = ask(ask_server, server)
    assert status == 4, "it is still healthy, so it did not die"
    assert document["answers"][0]["error"].startswith("GoneError: the connection failed: IncompleteRead")


def test_a_server_that_is_never_ready(ask_server: ModuleType) -> None:
    with standing_in(hang) as server:
        server.healthy = False
        status, document = ask(ask_server, server, ready=0.4)
    assert status == 3
    assert document["answers"] == []
    assert document["total"] == 8
    assert document["ready_seconds"] is None
    assert "not ready within 0.4 s" in document["error"]


def test_nobody_listens(ask_server: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        (tmp_path / "answers.json").write_text(json.dumps(ANSWERS), encoding="utf-8")
        argv = ["--answers", str(tmp_path / "answers.json"), "--ready-timeout", "0.3"]
        assert ask_server.main([*argv, "--port", str(held.getsockname()[1])]) == 3
    document = json.loads(capsys.readouterr().out)
    assert document["error"].startswith("GoneError: the server was not ready")


def test_a_server_that_becomes_ready(ask_server: ModuleType) -> None:
    def reply(handler: Handler) -> None:
        handler.send(json.dumps(right(handler.path, handler.body())).encode())

    with standing_in(reply) as server:
        server.healthy = False
        timer = threading.Timer(0.4, lambda: setattr(server, "healthy", True))
        timer.start()
        status, document = ask(ask_server, server)
    assert status == 0
    assert 0.3 < document["ready_seconds"] < 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"schema_version": 2, "prompts": []}',
        '{"schema_version": 1, "prompts": []}',
        '{"schema_version": 1, "prompts": [{"id": "x"}]}',
    ],
)
def test_an_unreadable_answers_file_is_a_usage_error(
    ask_server: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    path = tmp_path / "answers.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as caught:
        ask_server.main(["--answers", str(path)])
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert str(path) in captured.err


@pytest.mark.parametrize(
    ("logprobs", "tops"),
    [
        (None, None),
        ({}, None),
        ({"top_logprobs": None}, None),
        ({"top_logprobs": []}, []),
        ({"top_logprobs": [{"a": -1}]}, [[("a", -1.0)]]),
        ({"top_logprobs": [{"a": -1, "b": -3, "c": -2.5}]}, [[("a", -1.0), ("c", -2.5)]]),
        ({"content": [{"top_logprobs": [{"token": "a", "logprob": "x"}]}]}, None),
        ({"content": [{"top_logprobs": [{"logprob": -1}]}]}, None),
        (
            {"content": [{"top_logprobs": [{"token": "a", "logprob": -2}, {"token": "b", "logprob": -1}]}]},
            [[("b", -1.0), ("a", -2.0)]],
        ),
    ],
)
def test_the_best_two(ask_server: ModuleType, logprobs: object, tops: object) -> None:
    assert ask_server.best_two(logprobs) == tops
