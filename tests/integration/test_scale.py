"""Several machines on one: two engines of their own as builders, and cells. What is killed in the middle is missing nowhere in the result."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kiln.console import Console
from kiln.engine import PrivateEngine
from kiln.lockfile import dump_lock
from kiln.pins import read_pins
from kiln.records import Built, all_records
from kiln.workspace import Workspace
from tests.integration.conftest import Project, model_folder

pytestmark = pytest.mark.engine
SWITCH = "VLLM_ROCM_USE_TILELANG_MHC"
# What the check of the switch looks at in vLLM, so that no check of the stand-in is skipped: a cell that skips one is an error.
VLLM = {
    "pyproject.toml": """
[build-system]
requires = ["flit_core==3.12.0"]
build-backend = "flit_core.buildapi"
[project]
name = "standin-vllm"
version = "0.1.0"
description = "What of vLLM says that it knows the switch"
[tool.flit.module]
name = "vllm"
""",
    "vllm/__init__.py": '"""A stand-in."""\n',
    "vllm/envs.py": f'environment_variables = {{"{SWITCH}": lambda: False}}\n',
    "vllm/models/deepseek_v4.py": f"from vllm import envs\n\nenvs.{SWITCH}\n",
}


@pytest.fixture
def project(project: Project) -> Project:
    """The toy project with the switch in it, and with steps that no BuildKit has seen and that take a while."""
    for name, text in VLLM.items():
        file = project.root / "standin-vllm" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    lock, pins = project.lock, project.root / "pins" / "toy.toml"
    pins.write_text(pins.read_text().replace('["standin"]', '["standin", "standin-vllm"]'))
    sha256 = read_pins(Workspace(project.root, project.state), "toy").sha256
    project.lock_file.write_text(dump_lock(replace(lock, pins_sha256=sha256)))
    macros = project.root / "templates" / "macros.j2"
    slow = f": {uuid.uuid4()} && sleep 2 && /tools/uv pip install"
    macros.write_text(macros.read_text().replace("/tools/uv pip install", slow))
    return project


class Buildkit(socketserver.BaseRequestHandler):
    """The BuildKit in an engine, on a port of loopback as a daemon of its own would listen."""

    def handle(self) -> None:
        with socket.socket(socket.AF_UNIX) as engine:
            engine.connect(str(self.server.engine))  # type: ignore[attr-defined]
            engine.sendall(b"POST /grpc HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += engine.recv(1)
            assert b" 101 " in head.splitlines()[0], head
            back = threading.Thread(target=self.pass_on, args=(engine, self.request), daemon=True)
            back.start()
            self.pass_on(self.request, engine)
            back.join()

    def pass_on(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            # Whoever went first is not told off.
            pass


@pytest.fixture
def builders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[PrivateEngine]]:
    """Two engines with nothing in them as builders: `one` is a docker context, `two` buildx's remote driver through TCP."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    # The sockets below it must stay short.
    folder = Path(tempfile.mkdtemp(prefix="kiln-"))
    # What a daemon mounted stays where it is killed; in a place of its own it goes with its processes.
    apart = ["unshare", "--mount", "--propagation", "private"]
    engines = [PrivateEngine(folder, folder=folder / name, launcher=apart) for name in ("one", "two")]
    port = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Buildkit)
    port.daemon_threads = True
    port.engine = engines[1].socket  # type: ignore[attr-defined]
    threading.Thread(target=port.serve_forever, daemon=True).start()
    try:
        for engine in engines:
            engine.start(Console(quiet=True))
        place = f"tcp://127.0.0.1:{port.server_address[1]}"
        for words in (
            ["docker", "context", "create", "one", f"--docker=host={engines[0].host}"],
            ["docker", "buildx", "create", "--name=two", "--driver=remote", place],
        ):
            subprocess.run(words, check=True, capture_output=True)
        yield engines
    finally:
        port.shutdown()
        port.server_close()
        for engine in engines:
            engine.stop()
        shutil.rmtree(folder)


def record(project: Project) -> Built:
    return all_records(Workspace(project.root, project.state))[0]


def killed(
    project: Project, words: tuple[str, ...], moment: Callable[[], object], kill: Callable[[int], object]
) -> str:
    """Run a command, kill something (it is given the command's pid) once the moment has come, and return what the command said on standard error."""
    with subprocess.Popen(
        project.command(*words),
        env=project.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not moment():
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        kill(process.pid)
        said = process.communicate(timeout=300)[1]
    assert "Traceback" not in said
    return f"{process.returncode}\n{said}"


def test_a_builder_and_a_cell_are_killed_and_the_image_is_the_same_and_the_report_whole(
    project: Project, builders: list[PrivateEngine], tmp_path: Path
) -> None:
    lose_a_builder(project, builders[0])
    lose_a_cell(project, tmp_path)


def lose_a_builder(project: Project, one: PrivateEngine) -> None:
    """The first builder is killed, the second goes on; the engine itself makes the same image."""
    log = project.state / "logs" / "build-toy.log"
    log.write_text("")

    def kill(_: int) -> None:
        pid = one.pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    said = killed(project, ("build", "toy", "--builder", "one,two"), lambda: "sleep 2" in log.read_text(), kill)
    assert said.startswith("0\n"), said
    assert "the builder 'one' went away while it built toy" in said
    assert "the builder 'two' goes on" in said
    elsewhere = record(project)
    assert elsewhere.builder == "two"
    assert {layer.component for layer in elsewhere.layers} >= {"small", "server"}
    # Nothing but the record knows of it: without that, the one that is gone is asked, and then the engine itself.
    (project.state / "builds" / f"toy-{elsewhere.key[:16]}.json").unlink()
    lost = project.kiln("build", "toy", "--builder", "one")
    assert lost.code == 85, lost.err
    assert "'one' does not answer" in lost.err
    here = project.kiln("build", "toy", "--builder", "one,default")
    assert here.code == 0, here.err
    assert record(project).builder == ""
    assert record(project).digest == elsewhere.digest
    assert record(project).layers == elsewhere.layers
    assert not list((project.state / "store").glob("tmp-*"))


def lose_a_cell(project: Project, tmp_path: Path) -> None:
    """One of three cells is killed, and is an error in the merged report until it is made again."""
    model, digest = model_folder(tmp_path / "model"), record(project).digest
    cells = [f"toy-amd64-{rest}" for rest in ("static", "default-generate", "tilelang-generate")]
    listed = json.loads(project.kiln("--json", "ci", "matrix", "toy").out)
    listed["matrix"]["include"] = [row for row in listed["matrix"]["include"] if row["id"] in cells]
    matrix = tmp_path / "matrix.json"
    matrix.write_text(json.dumps(listed))
    owner = Workspace(project.root, project.state).identity
    looking = ["docker", "ps", "--quiet", f"--filter=label=io.kiln.owner={owner}"]

    def words(cell: str) -> tuple[str, ...]:
        return ("ci", "verify", cell, "--reports", str(tmp_path / "reports" / cell), "--model", str(model))

    def merged() -> tuple[int, dict[str, dict[str, object]]]:
        reports = [str(file) for file in (tmp_path / "reports").glob("*/toy.json")]
        out = tmp_path / "merged.json"
        done = project.kiln("report", "merge", *reports, "--matrix", str(matrix), "--out", str(out))
        document = json.loads(out.read_text())
        assert document["subject"]["manifest_digest"] == digest
        assert list(document["cells"]) == cells
        return done.code, document["cells"]

    said = killed(
        project,
        words(cells[1]),
        lambda: subprocess.run(looking, env=project.environment, capture_output=True, check=True).stdout,
        lambda pid: os.kill(pid, signal.SIGKILL),
    )
    assert said.startswith(f"-{signal.SIGKILL}\n"), said
    for cell in (cells[0], cells[2]):
        done = project.kiln(*words(cell))
        assert done.code == 0, done.err
    code, found = merged()
    assert code == 62
    assert [found[cell]["status"] for cell in cells] == ["pass", "error", "pass"]
    assert found[cells[1]]["report"] is None
    again = project.kiln(*words(cells[1]))
    assert again.code == 0, again.err
    code, found = merged()
    assert code == 0
    assert {str(one["status"]) for one in found.values()} == {"pass"}
