"""Ask a running server every question of ``answers.json`` and report what it said.

Runs inside the serving container, with the standard library alone, against the server on the
same host:

    python ask_server.py --answers DIR/answers.json [--port N]

It waits for ``/health``, then asks greedily: the first prompt alone, through ``/v1/completions``;
then all prompts at once, each through that and through ``/v1/chat/completions``, and the first
once more, so that the server has to batch them. With eight prompts a step then has 17 rows when
it decodes and more than 64 when it reads the prompts: wrong mHC kernels were right for 16 and
fewer. It asks for token ids and log probabilities too, so that two settings of a
server can be compared token for token. It judges nothing but each answer's equality: whether a wrong answer matters is for the caller, who
reads the JSON document on standard output::

    {"schema_version": 1, "ready_seconds": 1.2, "model": "...", "vllm_version": "...",
     "answers": [{"id": "...", "api": "completions", "expected": "...", "got": "...",
                  "token_ids": [...], "lead": 9.8, "tops": [[["It", -0.1], ["A", -9.9]], ...],
                  "exact": true, "seconds": 0.4, "error": null}],
     "exact": 18, "total": 18, "error": null}

``api`` is ``completions``, ``completions-batch``, ``chat-batch`` or ``completions-twin``. ``lead`` is the
smallest gap between the log probabilities of a chosen token and the next best, and ``tops`` the two
best tokens at each place with theirs; both are ``null`` where the server did not tell. ``exact`` means: the same text, ended by the model (not by a limit), and
the same token ids where the server told them.

Exit status: 0 every question was asked and answered somehow; 2 usage, or unreadable answers
file (no JSON then); 3 the server never became ready, or died; 4 it talked garbage, answered
with an error, or ran out of time. After 3 and 4 the document holds what there was.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

SCHEMA_VERSION: Final = 1
MAX_RESPONSE_BYTES: Final = 1 << 20
APIS: Final = ("completions", "chat")
SPARE_TOKENS: Final = 8  # a wrong answer may be longer than the right one; let it show
READY_POLL_SECONDS: Final = 0.25
HTTP_OK: Final = 200

EXIT_OK: Final = 0
EXIT_GONE: Final = 3
EXIT_PROTOCOL: Final = 4


class AskError(Exception):
    """A request got no usable response; the message says why."""


class GoneError(AskError):
    """Nobody listens, or the connection broke before a whole response came."""


class GarbageError(AskError):
    """A response came that is not what the API promises, an HTTP error status included."""


class TooSlowError(AskError):
    """The whole response was not there in time."""


@dataclass(frozen=True)
class Prompt:
    """One question of ``answers.json``."""

    id: str
    prompt: str
    messages: list[dict[str, str]]
    answer: str
    token_ids: list[int]


@dataclass(frozen=True)
class Quiz:
    """The part of ``answers.json`` that asking needs."""

    prompts: list[Prompt]
    chat_template_kwargs: dict[str, Any]


@dataclass
class Answer:
    """What one question got; ``error`` is set where nothing usable came."""

    id: str
    api: str
    expected: str
    got: str | None = None
    token_ids: list[int] | None = None
    lead: float | None = None
    tops: list[list[tuple[str, float]]] | None = None
    exact: bool = False
    seconds: float | None = None
    error: str | None = None


@dataclass
class Report:
    """The document on standard output, but for its counts."""

    ready_seconds: float | None = None
    model: str | None = None
    vllm_version: str | None = None
    answers: list[Answer] = field(default_factory=list)
    error: str | None = None

    def document(self, total: int) -> dict[str, Any]:
        """The JSON document; ``total`` counts the questions meant to be asked."""
        return {
            "schema_version": SCHEMA_VERSION,
            "ready_seconds": self.ready_seconds,
            "model": self.model,
            "vllm_version": self.vllm_version,
            "answers": [asdict(answer) for answer in self.answers],
            "exact": sum(answer.exact for answer in self.answers),
            "total": total,
            "error": self.error,
        }


def read_quiz(text: str) -> Quiz:
    """Parse ``answers.json``. Raises ``ValueError`` where it is not what it should be."""
    try:
        document = json.loads(text)
        version = document["schema_version"]
        if version != SCHEMA_VERSION:
            raise ValueError(f"schema_version is {version!r}, not {SCHEMA_VERSION}")
        names = ("id", "prompt", "messages", "answer", "token_ids")
        prompts = [Prompt(**{name: one[name] for name in names}) for one in document["prompts"]]
        quiz = Quiz(prompts, dict(document.get("chat_template_kwargs") or {}))
    except (KeyError, TypeError) as error:
        raise ValueError(f"not an answers file: {error!r}") from error
    if not prompts:
        raise ValueError("no prompts in it")
    return quiz


@contextmanager
def _cut_off(connection: socket.socket, seconds: float) -> Iterator[threading.Event]:
    """Shut ``connection`` after ``seconds``, whatever it is doing; sets the event if it had to.

    A socket's own timeout starts anew with every byte, so a server that drips never meets it.
    """
    late = threading.Event()

    def cut() -> None:
        late.set()
        with suppress(OSError):  # already closed: nothing left to cut
            connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


class Server:
    """The server under test; every request is bounded in time and in size."""

    def __init__(self, host: str, port: int, timeout: float) -> None:
        self.host, self.port, self.timeout = host, port, timeout

    def request(
        self, path: str, body: Mapping[str, Any] | None = None, timeout: float | None = None
    ) -> tuple[int, bytes]:
        """GET ``path``, or POST ``body`` to it as JSON; return the status and the whole body.

        Raises :class:`GoneError`, :class:`TooSlowError` (after ``timeout`` seconds in all) or
        :class:`GarbageError` (not HTTP, or a body over ``MAX_RESPONSE_BYTES``).
        """
        limit = self.timeout if timeout is None else timeout
        connection = http.client.HTTPConnection(self.host, self.port, timeout=limit)
        try:
            connection.connect()
            with _cut_off(connection.sock, limit) as late:
                try:
                    return self._exchange(connection, path, body)
                finally:
                    # Cut off, a response may look like one that ended.
                    if late.is_set():
                        raise TooSlowError(f"no whole response within {limit:g} s")
        except TimeoutError:
            raise TooSlowError(f"no response within {limit:g} s") from None
        except (OSError, http.client.RemoteDisconnected, http.client.IncompleteRead) as error:
            raise GoneError(f"the connection failed: {error!r}") from error
        except (http.client.HTTPException, ValueError) as error:
            raise GarbageError(f"not an HTTP response: {error!r}") from error
        finally:
            connection.close()

    def _exchange(
        self, connection: http.client.HTTPConnection, path: str, body: Mapping[str, Any] | None
    ) -> tuple[int, bytes]:
        payload = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Connection": "close"}
        connection.request("GET" if body is None else "POST", path, payload, headers)
        response = connection.getresponse()
        data = response.read(MAX_RESPONSE_BYTES + 1)
        if len(data) > MAX_RESPONSE_BYTES:
            raise GarbageError(f"a response of more than {MAX_RESPONSE_BYTES} bytes")
        declared = response.getheader("Content-Length")
        if declared is not None and len(data) < int(declared):
            raise http.client.IncompleteRead(data, int(declared) - len(data))
        return response.status, data

    def ask_json(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """As :meth:`request`, for a JSON object. Raises :class:`GarbageError` for anything else."""
        status, data = self.request(path, body)
        if status != HTTP_OK:
            raise GarbageError(f"{path} answered {status}: {_shown(data)}")
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            raise GarbageError(f"{path} did not answer with JSON: {_shown(data)}") from None
        if not isinstance(document, dict):
            raise GarbageError(f"{path} did not answer with a JSON object: {_shown(data)}")
        return document

    def healthy(self, timeout: float) -> bool:
        """Whether ``/health`` says so within ``timeout`` seconds."""
        try:
            return self.request("/health", timeout=timeout)[0] == HTTP_OK
        except AskError:
            return False

    def wait_until_ready(self, seconds: float) -> float:
        """Wait for ``/health``; return how long it took. Raises :class:`GoneError` after ``seconds``."""
        start = time.monotonic()
        while True:
            left = seconds - (time.monotonic() - start)
            if left <= 0:
                raise GoneError(f"the server was not ready within {seconds:g} s")
            if self.healthy(min(self.timeout, left)):
                return time.monotonic() - start
            time.sleep(min(READY_POLL_SECONDS, left))


def _shown(data: bytes) -> str:
    """The beginning of a response, fit for a message."""
    return repr(data[:200].decode("utf-8", "replace"))


def request_body(api: str, prompt: Prompt, model: str, quiz: Quiz) -> dict[str, Any]:
    """The greedy request for ``prompt`` through ``completions`` or ``chat``."""
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": len(prompt.token_ids) + SPARE_TOKENS,
        "temperature": 0,
        "seed": 0,
        "stream": False,
        "return_token_ids": True,
    }
    if api == "chat":
        return body | {
            "messages": prompt.messages,
            "chat_template_kwargs": quiz.chat_template_kwargs,
            "logprobs": True,
            "top_logprobs": 2,
        }
    # The prompt spells its special tokens out, the one at the beginning included.
    return body | {"prompt": prompt.prompt, "add_special_tokens": False, "logprobs": 2}


def read_answer(api: str, document: Mapping[str, Any], answer: Answer, prompt: Prompt) -> None:
    """Fill ``answer`` from a response. Raises :class:`GarbageError` where no text is in it."""
    try:
        choice = document["choices"][0]
        got = choice["message"]["content"] if api == "chat" else choice["text"]
        finished = choice["finish_reason"]
    except (KeyError, IndexError, TypeError) as error:
        raise GarbageError(f"no answer in the response: {error!r}") from error
    if not isinstance(got, str):
        raise GarbageError(f"the answer is not a text: {_shown(repr(got).encode())}")
    answer.got = got
    token_ids = choice.get("token_ids")
    if isinstance(token_ids, list) and all(isinstance(token, int) for token in token_ids):
        answer.token_ids = token_ids
    answer.tops = best_two(choice.get("logprobs"))
    gaps = [two[0][1] - two[1][1] for two in answer.tops or [] if len(two) > 1]
    answer.lead = round(min(gaps), 4) if gaps else None
    same_tokens = answer.token_ids is None or answer.token_ids == prompt.token_ids
    answer.exact = got == prompt.answer and finished == "stop" and same_tokens


def best_two(logprobs: object) -> list[list[tuple[str, float]]] | None:
    """The two best tokens at each place and their log probabilities; ``None`` if not told.

    Takes both APIs' forms: ``{"top_logprobs": [{token: logprob}]}`` of completions, and
    ``{"content": [{"top_logprobs": [{"token": ..., "logprob": ...}]}]}`` of chat.
    """
    try:
        if not isinstance(logprobs, dict):
            return None
        chat = logprobs.get("content")
        if chat is None:
            places = [list(place.items()) for place in logprobs["top_logprobs"]]
        else:
            places = [[(top["token"], top["logprob"]) for top in place["top_logprobs"]] for place in chat]
        return [
            sorted(((str(token), round(float(value), 4)) for token, value in tops), key=lambda top: -top[1])[:2]
            for tops in places
        ]
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


class Asker:
    """Asks all questions and keeps account of what went wrong."""

    def __init__(self, server: Server, quiz: Quiz, report: Report, total_seconds: float) -> None:
        self.server, self.quiz, self.report = server, quiz, report
        self._end = time.monotonic() + total_seconds
        self._lost = threading.Event()

    def ask(self, api: str, label: str, prompt: Prompt) -> Answer:
        """Ask one question; what goes wrong is in the answer's ``error``."""
        answer = Answer(prompt.id, label, prompt.answer)
        if self._lost.is_set() or time.monotonic() > self._end:
            answer.error = "not asked: " + ("the server died" if self._lost.is_set() else "no time")
            return answer
        path = "/v1/chat/completions" if api == "chat" else "/v1/completions"
        start = time.monotonic()
        try:
            body = request_body(api, prompt, self.report.model or "", self.quiz)
            read_answer(api, self.server.ask_json(path, body), answer, prompt)
        except AskError as error:
            answer.error = f"{type(error).__name__}: {error}"
            # Nothing more can be learnt from a server that is gone.
            if not self.server.healthy(self.server.timeout):
                self._lost.set()
        answer.seconds = round(time.monotonic() - start, 3)
        return answer

    def ask_all(self) -> int:
        """Ask the first question alone, then all of them at once; return the status."""
        first = self.quiz.prompts[0]
        self.report.answers.append(self.ask("completions", "completions", first))
        at_once = [(api, f"{api}-batch", prompt) for api in APIS for prompt in self.quiz.prompts]
        at_once.append(("completions", "completions-twin", first))
        with ThreadPoolExecutor(max_workers=len(at_once)) as pool:
            self.report.answers += pool.map(lambda question: self.ask(*question), at_once)
        errors = [answer.error for answer in self.report.answers if answer.error]
        if not errors:
            return EXIT_OK
        self.report.error = f"{len(errors)} questions got no answer; the first: {errors[0]}"
        return EXIT_GONE if self._lost.is_set() else EXIT_PROTOCOL


def run(
    server: Server, quiz: Quiz, *, ready_seconds: float, total_seconds: float
) -> tuple[int, dict[str, Any]]:
    """Wait for the server and ask everything; return the exit status and the document."""
    report = Report()
    try:
        report.ready_seconds = round(server.wait_until_ready(ready_seconds), 3)
        report.model = str(server.ask_json("/v1/models")["data"][0]["id"])
        report.vllm_version = str(server.ask_json("/version")["version"])
        status = Asker(server, quiz, report, total_seconds).ask_all()
    except GoneError as error:
        report.error, status = f"GoneError: {error}", EXIT_GONE
    except (AskError, KeyError, IndexError, TypeError) as error:
        report.error, status = f"{type(error).__name__}: {error}", EXIT_PROTOCOL
    return status, report.document(total=2 + len(APIS) * len(quiz.prompts))


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Ask a server the questions of answers.json.")
    parser.add_argument("--answers", type=Path, required=True, metavar="FILE")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--ready-timeout", type=float, default=300.0, metavar="SECONDS")
    parser.add_argument("--request-timeout", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("--total-timeout", type=float, default=300.0, metavar="SECONDS")
    args = parser.parse_args(argv)
    try:
        quiz = read_quiz(args.answers.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        parser.error(f"{args.answers}: {error}")
    status, document = run(
        Server(args.host, args.port, args.request_timeout),
        quiz,
        ready_seconds=args.ready_timeout,
        total_seconds=args.total_timeout,
    )
    print(json.dumps(document, ensure_ascii=False))
    return status


if __name__ == "__main__":
    sys.exit(main())
