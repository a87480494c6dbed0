"""A server in front of a real one that breaks what it is told to break: the next answers to the requests that a rule matches."""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, get_args

from tests.integration.served import running

Fault = Literal[
    "429", "500", "502", "reset", "stall", "truncated", "wrong-bytes", "wrong-digest-header", "expired-token"
]
FAULTS: tuple[Fault, ...] = get_args(Fault)
_HOP = {"connection", "transfer-encoding", "keep-alive", "proxy-connection"}


@dataclass
class Rule:
    """Break the first ``times`` answers to requests whose ``METHOD path`` matches."""

    matches: str
    fault: Fault
    times: int = 1
    hits: int = 0


@dataclass
class Proxy:
    """Where the real server is and where this one is; what to break; and every request, as ``METHOD path status``."""

    target: str
    host: str = ""
    rules: list[Rule] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    stall_seconds: float = 3.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def break_next(self, matches: str, fault: Fault, times: int = 1) -> Rule:
        """A rule from now on."""
        rule = Rule(matches, fault, times)
        self.rules.append(rule)
        return rule

    def fault_of(self, request: str) -> Fault | None:
        """What to do to this request; counted."""
        with self.lock:
            for rule in self.rules:
                if rule.hits < rule.times and re.search(rule.matches, request):
                    rule.hits += 1
                    return rule.fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def handle(self) -> None:
        """As its base has it; but who begins with TLS is told at once that this is none, as Go's servers tell, for engines then go on in plain HTTP."""
        if self.connection.recv(1, socket.MSG_PEEK) == b"\x16":
            self.connection.recv(1 << 16)
            self.connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\nno TLS here")
            return
        super().handle()

    def handle_any(self) -> None:
        """Answer one request: through to the real server and back, or broken on the way."""
        # A body that came is taken in any case: the connection goes on.
        body = self._body()
        request = f"{self.command} {self.path}"
        if self.path.startswith("/kiln-token"):
            self._send(200, {"Content-Type": "application/json"}, b'{"token": "fresh"}')
            return
        fault = self.proxy.fault_of(request)
        self.proxy.seen.append(f"{request} {fault or ''}".strip())
        if fault in ("429", "500", "502"):
            self._send(int(fault), {"Retry-After": "1"} if fault == "429" else {}, b"{}")
        elif fault == "expired-token":
            challenge = f'Bearer realm="http://{self.proxy.host}/kiln-token",service="s",scope="repository:x:pull,push"'
            self._send(401, {"WWW-Authenticate": challenge}, b'{"errors": [{"code": "UNAUTHORIZED"}]}')
        elif fault == "reset":
            # Zero seconds to linger: the kernel sends a reset in place of an end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
        elif fault == "stall":
            time.sleep(self.proxy.stall_seconds)
            self.close_connection = True
        else:
            self._forward(body, fault)

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _forward(self, body: bytes, fault: Fault | None) -> None:
        headers = {key: value for key, value in self.headers.items() if key.lower() not in _HOP}
        headers.pop("Content-Length", None)
        with closing(HTTPConnection(self.proxy.target, timeout=60)) as there:
            there.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
            answer = there.getresponse()
            # A HEAD's length is of what it does not send.
            data, sent = answer.read(), self._headers(answer)
        if fault == "wrong-digest-header":
            sent["Docker-Content-Digest"] = "sha256:" + "0" * 64
        if fault == "wrong-bytes" and data:
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]
        self._send(answer.status, sent, data, cut=fault == "truncated")

    def _headers(self, answer: HTTPResponse) -> dict[str, str]:
        found = {key: value for key, value in answer.getheaders() if key.lower() not in _HOP}
        if place := found.get("Location"):
            found["Location"] = place.replace(self.proxy.target, self.proxy.host)
        return found

    def _send(self, status: int, headers: dict[str, str], data: bytes, *, cut: bool = False) -> None:
        self.send_response(status)
        if self.command != "HEAD":
            headers = {**headers, "Content-Length": str(len(data))}
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = handle_any  # noqa: N815 - the names that http.server calls

    def log_message(self, *_: object) -> None:
        return


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A client that hangs up is what many of these faults make it do."""


@contextmanager
def proxy_of(target: str) -> Iterator[Proxy]:
    """A proxy in front of ``target`` (host:port), on a free port of loopback."""
    made = Proxy(target)
    with running(_Server(("127.0.0.1", 0), type("Bound", (_Handler,), {"proxy": made}))) as made.host:
        yield made
