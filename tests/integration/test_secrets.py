"""A build behind a proxy that wants a password, with an index that only a private authority vouches for: nothing of the three gets into what Kiln makes."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer

import pytest
import zstandard

from kiln.engine import PrivateEngine
from tests.integration.conftest import REPOSITORY, Project, model_folder
from tests.integration.served import lay_index, running, served

pytestmark = pytest.mark.engine
USER, PASSWORD = "kiln-user-7f3a", "kiln-password-91bc"
# A name that nobody resolves but the proxy: who gets there got there through it.
INDEX = "index.kiln.invalid"


@dataclass
class Proxy:
    """A proxy that wants a password and knows the way to one host; what it was asked for."""

    host: str = ""
    let_in: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


@contextmanager
def proxy_to(index: str) -> Iterator[Proxy]:
    made = Proxy()
    wanted = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            line = self.rfile.readline().decode()
            headers = {}
            while (header := self.rfile.readline().decode().strip()) != "":
                name, _, value = header.partition(":")
                headers[name.lower()] = value.strip()
            if headers.get("proxy-authorization") != f"Basic {wanted}":
                made.refused.append(line.strip())
                self.wfile.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n")
                return
            made.let_in.append(line.strip())
            if not line.startswith(f"CONNECT {INDEX}:443 "):
                self.wfile.write(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
                return
            with closing(socket.create_connection(("127.0.0.1", int(index.rpartition(":")[2])))) as there:
                self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
                back = threading.Thread(target=_pour, args=(there, self.connection), daemon=True)
                back.start()
                _pour(self.connection, there)
                back.join(5)

    with running(ThreadingTCPServer(("127.0.0.1", 0), Handler)) as made.host:
        yield made


def _pour(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return


def openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True)


def authority(folder: Path) -> tuple[Path, Path, Path]:
    """A private authority's certificate, and a certificate with its key that it signed for the index."""
    ca, ca_key, certificate, key, asked = (
        folder / name for name in ("ca.pem", "ca.key", "index.pem", "index.key", "asked")
    )
    new = ("req", "-newkey", "rsa:2048", "-nodes")
    openssl(*new, "-x509", "-days", "30", "-subj", "/CN=kiln-private-authority", "-keyout", ca_key, "-out", ca)
    openssl(*new, "-subj", f"/CN={INDEX}", "-keyout", key, "-out", asked)
    names = folder / "names"
    names.write_text(f"subjectAltName=DNS:{INDEX}\n")
    openssl("x509", "-req", "-in", asked, "-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-days", "30", "-extfile", names, "-out", certificate)  # fmt: skip
    return ca, certificate, key


def test_neither_credential_nor_authority_nor_proxy_gets_into_what_is_made(
    base_project: Project, tmp_path: Path
) -> None:
    root, state = tmp_path / "toy", Path(tempfile.mkdtemp(prefix="kiln-"))
    shutil.copytree(base_project.root, root, ignore=shutil.ignore_patterns("state"))
    shutil.copytree(base_project.state / "store", state / "store")
    project = Project(root, state, PrivateEngine(state).host)
    wheels = [wheel for wheel in project.lock.wheels if wheel.component != "tools"]
    index = lay_index(tmp_path / "index", project, wheels)
    for wheel in wheels:
        project.blob(wheel.sha256).unlink()
    ca, certificate, key = authority(tmp_path)
    with served(index, certificate, key) as host, proxy_to(host) as proxy:
        address = f"http://{USER}:{PASSWORD}@{proxy.host}"
        docker = tmp_path / "docker"
        docker.mkdir()
        # As people set it for docker's own builds: it goes into every build and every container unless somebody sees to it.
        (docker / "config.json").write_text(
            json.dumps({"proxies": {"default": {"httpProxy": address, "httpsProxy": address}}})
        )
        behind = {
            "PIP_INDEX_URL": f"https://{INDEX}/simple",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_CERT": str(ca),
            "REQUESTS_CA_BUNDLE": str(ca),
            "SSL_CERT_FILE": str(ca),
            "DOCKER_CONFIG": str(docker),
            **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), address),
        }
        said = [run(project, behind, "engine", "up")]
        try:
            said += [
                run(project, behind, "fetch", "toy"),
                run(project, behind, "build", "toy"),
                run(project, behind, "verify", "toy", "--model", str(model_folder(tmp_path / "model"))),
            ]
            assert any(INDEX in line for line in proxy.let_in)
            saved = tmp_path / "image.tar"
            reference = json.loads(next((state / "builds").glob("*.json")).read_text())["reference"]
            subprocess.run(
                ["docker", "save", "-o", saved, reference],
                check=True,
                env={**os.environ, "DOCKER_HOST": project.host},
            )
        finally:
            down = project.kiln("engine", "down")
        assert down.code == 0, down.err
    needles = [
        USER.encode(),
        PASSWORD.encode(),
        base64.b64encode(f"{USER}:{PASSWORD}".encode()),
        f"{proxy.host}".encode(),
        b"kiln-private-authority",
        # A line from the middle of the certificate.
        ca.read_bytes().splitlines()[8],
    ]
    # That looking finds what is there: the authority's own file has the last of them.
    assert found_in(ca.read_bytes(), needles) == needles[-1:]
    for text in said:
        assert not found_in(text.encode(), needles)
    layers = 0
    with tarfile.open(saved) as archive:
        for entry in archive:
            if entry.isreg():
                data = archive.extractfile(entry).read()  # type: ignore[union-attr]
                if data[:4] == b"\x28\xb5\x2f\xfd":
                    data, layers = zstandard.ZstdDecompressor().decompressobj().decompress(data), layers + 1
                assert not found_in(data, needles), entry.name
    assert layers >= 4
    looked = 0
    for path in state.rglob("*"):
        # The engine's own files are the image's, which were looked at above, and its log, which is looked at.
        if path.is_file() and not path.is_symlink() and (state / "engine" / "data") not in path.parents:
            looked += 1
            assert not found_in(path.read_bytes(), needles), path
    assert looked > 20
    shutil.rmtree(state)


def run(project: Project, behind: dict[str, str], *words: str) -> str:
    done = subprocess.run(
        project.command(*words),
        env={**project.environment, **behind},
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def found_in(data: bytes, needles: list[bytes]) -> list[bytes]:
    return [needle for needle in needles if needle in data]
