"""A real registry (Debian's docker-registry) on loopback, for the tests that need one."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from tests.integration.conftest import REPOSITORY

CONFIG = """
version: 0.1
log: {{level: warn}}
storage: {{filesystem: {{rootdirectory: {folder}}}, cache: {{}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


@dataclass
class Registry:
    """A registry that runs, and its folder."""

    folder: Path
    host: str
    process: subprocess.Popen[bytes] | None = None

    def blob_file(self, digest: str) -> Path:
        sha256 = digest.removeprefix("sha256:")
        return self.folder / "docker/registry/v2/blobs/sha256" / sha256[:2] / sha256 / "data"

    def start(self) -> None:
        program = shutil.which("docker-registry") or shutil.which(REPOSITORY / ".kiln" / "tools" / "docker-registry")
        assert program, "there is no docker-registry; get one: make registry"
        configuration = self.folder.with_suffix(".yml")
        configuration.write_text(CONFIG.format(folder=self.folder, port=self.host.rpartition(":")[2]))
        with self.folder.with_suffix(".log").open("ab") as log:
            self.process = subprocess.Popen([program, "serve", configuration], stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                if requests.get(f"http://{self.host}/v2/", timeout=5).ok:
                    return
            except requests.ConnectionError:
                time.sleep(0.05)
        pytest.fail(self.folder.with_suffix(".log").read_text())

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait(timeout=20)
            self.process = None


@contextmanager
def registry_in(folder: Path) -> Iterator[Registry]:
    """A registry with its files in ``folder``, for as long as it is used."""
    made = Registry(folder, f"127.0.0.1:{free_port()}")
    made.start()
    try:
        yield made
    finally:
        made.stop()


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])
