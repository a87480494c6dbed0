"""Real git behind HTTP: ``git http-backend``, for the programs that a person runs it with are not there (a CGI server)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.integration.served import running

# Of the names that CGI has for headers, those that git reads.
_HEADERS = {
    "Content-Type": "CONTENT_TYPE",
    "Content-Length": "CONTENT_LENGTH",
    "Content-Encoding": "HTTP_CONTENT_ENCODING",
    "Git-Protocol": "GIT_PROTOCOL",
}
PERSON = {
    "GIT_AUTHOR_NAME": "nobody", "GIT_AUTHOR_EMAIL": "nobody@example.invalid", "GIT_AUTHOR_DATE": "2026-11-01T00:00:00Z",
    "GIT_COMMITTER_NAME": "nobody", "GIT_COMMITTER_EMAIL": "nobody@example.invalid", "GIT_COMMITTER_DATE": "2026-11-01T00:00:00Z",
    "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull,
}  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path

    def answer(self) -> None:
        """One request through the program, and its answer back."""
        path, _, query = self.path.partition("?")
        asked = {name: value for key, name in _HEADERS.items() if (value := self.headers.get(key))}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        done = subprocess.run(
            ["git", "http-backend"],
            input=body,
            capture_output=True,
            check=False,
            env={
                **os.environ,
                **PERSON,
                **asked,
                "GIT_PROJECT_ROOT": str(self.folder),
                "GIT_HTTP_EXPORT_ALL": "1",
                "REQUEST_METHOD": self.command,
                "PATH_INFO": path,
                "QUERY_STRING": query,
            },
        )
        head, _, data = done.stdout.partition(b"\r\n\r\n")
        lines = [line.split(": ", 1) for line in head.decode().splitlines()]
        status = next((value for name, value in lines if name == "Status"), "200 OK")
        self.send_response(int(status.split()[0]))
        for name, value in lines:
            if name != "Status":
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = answer  # noqa: N815 - the names that http.server calls

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def git_server(folder: Path) -> Iterator[str]:
    """The repositories below ``folder`` over git's own HTTP protocol; host and port."""
    with running(ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"folder": folder}))) as host:
        yield host


def git(folder: Path, *words: str) -> str:
    """A git command of a person's own, in ``folder``."""
    command = ["git", "-c", "protocol.file.allow=always", *words]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **PERSON}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def make_upstream(folder: Path) -> tuple[str, str]:
    """Two repositories, ``source`` with ``module`` as its submodule, a history each and a branch beside it; the commits that are wanted of both."""
    commits = []
    for name in ("module", "source"):
        made = folder / name
        made.mkdir(parents=True)
        git(made, "init", "--quiet", "--initial-branch=main")
        for number in range(3):
            (made / "file").write_text(f"{name} {number}\n")
            # Enough that an answer that is cut in the middle is cut in its pack.
            (made / "data").write_bytes(os.urandom(20_000))
            git(made, "add", ".")
            git(made, "commit", "--quiet", "--message", f"{name} {number}")
        if name == "source":
            git(made, "submodule", "--quiet", "add", "../module", "module")
            git(made, "commit", "--quiet", "--message", "with its module")
        commits.append(git(made, "rev-parse", "HEAD"))
    for made in (folder / "module", folder / "source"):
        (made / "file").write_text("later\n")
        git(made, "commit", "--quiet", "--message", "later", "file")
        git(made, "config", "uploadpack.allowAnySHA1InWant", "true")
        git(made, "config", "uploadpack.allowFilter", "true")
    return commits[1], commits[0]
