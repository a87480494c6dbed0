"""One question to an engine over its socket, without loading an SDK: what the commands that do nothing need to be fast."""

from __future__ import annotations

import http
import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class _SocketConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket instead of a host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def get_json(path: Path, url: str, timeout: float = 10) -> dict[str, Any] | None:
    """The JSON object that the server on socket ``path`` answers to GET ``url``; None where it does not answer with one."""
    connection = _SocketConnection(path, timeout)
    try:
        connection.request("GET", url)
        response = connection.getresponse()
        body = json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    return body if response.status == 200 and isinstance(body, dict) else None


@contextmanager
def get_stream(path: Path, url: str, timeout: float) -> Iterator[http.client.HTTPResponse]:
    """What the server on socket ``path`` answers to GET ``url``, to be read as far as it is wanted. Raises OSError where it refuses or does not answer."""
    connection = _SocketConnection(path, timeout)
    try:
        connection.request("GET", url)
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            raise OSError(f"{url}: {response.status} {response.reason}")
        yield response
    except http.client.HTTPException as error:
        raise OSError(f"{url}: {error}") from error
    finally:
        connection.close()
