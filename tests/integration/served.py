"""What tests serve on loopback: a folder over HTTP or HTTPS, and an index of wheels to serve so."""

from __future__ import annotations

import hashlib
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import ThreadingTCPServer

from kiln.lockentries import Deb, Wheel
from tests.integration.conftest import Project


@contextmanager
def running(server: ThreadingTCPServer) -> Iterator[str]:
    """A server on loopback while it is used; its host and port."""
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def served(folder: Path, certificate: Path | None = None, key: Path | None = None) -> Iterator[str]:
    """A folder over HTTP, or with a certificate and its key over HTTPS; its host and port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    with running(server) as host:
        yield host


def lay_archive(folder: Path, project: Project, debs: Sequence[Deb]) -> str:
    """A flat package archive of packages that a project's store has, below ``folder``; what apt's sources say of it, but for its host."""
    folder.mkdir()
    stanzas = []
    for deb in debs:
        name = f"{deb.name}_{deb.architecture}.deb"
        shutil.copy(project.blob(deb.sha256), folder / name)
        control = subprocess.run(["dpkg-deb", "--field", folder / name], capture_output=True, text=True, check=True)
        stanzas.append(f"{control.stdout}Filename: ./{name}\nSize: {deb.size}\nSHA256: {deb.sha256}\n")
    packages = "\n".join(stanzas).encode()
    (folder / "Packages").write_bytes(packages)
    digest = hashlib.sha256(packages).hexdigest()
    (folder / "Release").write_text(
        f"Suite: stable\nDate: Sun, 01 Nov 2026 00:00:00 UTC\nSHA256:\n {digest} {len(packages)} Packages\n"
    )
    return "Types: deb\nURIs: http://{host}/\nSuites: ./\nTrusted: yes\n"


def lay_index(folder: Path, project: Project, wheels: Sequence[Wheel]) -> Path:
    """An index (below ``folder``/simple) of wheels that a project's store has."""
    for wheel in wheels:
        page = folder / "simple" / wheel.name
        page.mkdir(parents=True, exist_ok=True)
        shutil.copy(project.blob(wheel.sha256), page / wheel.file)
        (page / "index.html").write_text(f'<a href="{wheel.file}#sha256={wheel.sha256}">{wheel.file}</a>')
    return folder
