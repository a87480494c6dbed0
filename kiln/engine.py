"""The container engine: one that is there already, or a private one that Kiln starts, and stops by its own pid.

A Docker that is reachable is used when it has BuildKit >= 0.13 (Docker 26) and the containerd image store (only that one
keeps manifest digests). Else, on Debian as root, a daemon of Kiln's own runs with everything it has below ``.kiln/engine``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kiln.console import Console
from kiln.errors import EngineError, HostError
from kiln.host import buildx_plugin, ensure_docker
from kiln.process import raise_if_disk_full
from kiln.unixhttp import get_json

# Docker 26.0 carries BuildKit 0.13, the first whose OCI exporter honours SOURCE_DATE_EPOCH throughout. Debian builds its
# Docker without BuildKit's own version in it, so the engine's API version stands for it: 1.45 is Docker 26.0's.
MINIMUM_API = (1, 45)
CONTAINERD_STORE = "io.containerd.snapshotter.v1"
# Containerd's limit for the path of a socket, a little below the kernel's; its own is the longest in the engine's folder.
SOCKET_PATH_LIMIT = 104
START_SECONDS = 60


@dataclass(frozen=True)
class Engine:
    """A usable engine: where it listens, its version, and whether Kiln started it."""

    host: str
    version: str
    api: str
    private: bool

    @property
    def socket(self) -> Path:
        """The socket that it listens on."""
        return Path(self.host.removeprefix("unix://"))

    @property
    def environment(self) -> dict[str, str]:
        """The variables that make docker's own programs use this engine, and this engine alone."""
        return {"DOCKER_HOST": self.host, "DOCKER_CONTEXT": "", "BUILDX_BUILDER": "default"}

    @property
    def described(self) -> str:
        """One line for people."""
        return f"Docker {self.version} at {self.host}" + (" (private, started by kiln)" if self.private else "")


@dataclass(frozen=True)
class Unfit:
    """An engine that answers but cannot be used, and why."""

    host: str
    why: str


class PrivateEngine:
    """A daemon that Kiln runs for one state folder. ``launcher`` are words before dockerd's own, ``path`` is a folder whose programs it takes first."""

    def __init__(
        self, state: Path, *, folder: Path | None = None, launcher: Sequence[str] = (), path: Path | None = None
    ) -> None:
        self.folder = folder or state / "engine"
        self._launcher, self._path = launcher, path
        self._process: subprocess.Popen[bytes] | None = None
        self.socket = self.folder / "docker.sock"
        self.pid_file = self.folder / "docker.pid"
        self.log = self.folder / "dockerd.log"

    @property
    def host(self) -> str:
        """The address, as DOCKER_HOST takes it."""
        return f"unix://{self.socket}"

    def pid(self) -> int | None:
        """The daemon's pid if it runs: the process must be a dockerd on this very folder, not one that got an old number."""
        try:
            pid = int(self.pid_file.read_text(encoding="utf-8"))
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        return pid if str(self.folder / "data").encode() in words else None

    def start(self, console: Console) -> None:
        """Start the daemon and wait until it answers. Raises EngineError with the end of its log where it does not, DiskFullError where
        that says so."""
        longest = self.folder / "exec" / "containerd" / "containerd-debug.sock"
        if len(str(longest)) > SOCKET_PATH_LIMIT:
            raise EngineError(
                f"the path of the engine's socket is too long: {longest}",
                why=f"The kernel allows {SOCKET_PATH_LIMIT} characters.",
                fix="put kiln's files into a shorter path: KILN_STATE=/var/tmp/kiln",
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        configuration = self.folder / "daemon.json"
        configuration.write_text(json.dumps({"features": {"containerd-snapshotter": True}}), encoding="utf-8")
        words = [
            *self._launcher,
            "dockerd",
            "--config-file",
            configuration,
            "--data-root",
            self.folder / "data",
            "--exec-root",
            self.folder / "exec",
        ]
        words += ["--pidfile", self.pid_file, "--host", self.host]
        # Nothing that Kiln builds or runs has a network, so the machine's bridges and firewall stay as they are.
        words += ["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"]
        console.step(f"starting a private Docker daemon below {self.folder} (stop it with: kiln engine down)")
        environment = {**os.environ, "PATH": f"{self._path}:{os.environ['PATH']}"} if self._path else None
        with self.log.open("ab") as log:
            self._process = process = subprocess.Popen(
                [str(word) for word in words],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if isinstance(probe(self.host, private=True), Engine):
                return
            if process.poll() is not None:
                break
            time.sleep(0.1)
        self.stop()
        tail = "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:])
        raise_if_disk_full(tail)
        raise EngineError(
            "the private Docker daemon did not start",
            why=tail,
            fix=f"the whole log: {self.log}. Containers need cgroups and overlayfs; inside another container that means a privileged one",
        )

    def stop(self) -> bool:
        """Stop the daemon, by its own pid; returns whether one ran. Raises EngineError where it will not go."""
        ran = self._stop()
        # One that this process started is its child, and stays in the table of processes until somebody asks how it ended.
        if self._process:
            self._process.terminate()
            self._process.wait()
            self._process = None
        return ran

    def _stop(self) -> bool:
        pid = self.pid()
        if pid is None:
            return False
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            if self.pid() is None or _is_zombie(pid):
                return True
            time.sleep(0.1)
        raise EngineError(
            f"the private Docker daemon (pid {pid}) did not stop within 40 s",
            fix=f"see {self.log}; stop it with: kill -9 {pid}",
        )


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def probe(host: str, *, private: bool = False) -> Engine | Unfit | None:
    """The engine at ``host`` if it can be used, why not if it answers, None if nothing answers there."""
    if not host.startswith("unix://"):
        return Unfit(host, "only engines on a local socket (unix://) are supported so far")
    socket = Path(host.removeprefix("unix://"))
    version = get_json(socket, "/version")
    info = get_json(socket, "/info") if version else None
    if not version or not info:
        return None
    api = str(version.get("ApiVersion", "0"))
    if not re.fullmatch(r"\d+(\.\d+)+", api):
        return Unfit(host, f"what answers there is no Docker (API version {api!r})")
    if tuple(int(part) for part in api.split(".")) < MINIMUM_API:
        return Unfit(host, f"Docker {version.get('Version')} is too old: its BuildKit is older than 0.13 (Docker 26)")
    if [CONTAINERD_STORE] not in [status[1:] for status in info.get("DriverStatus") or []]:
        return Unfit(
            host,
            f"Docker {version.get('Version')} does not use the containerd image store, which alone keeps manifest digests",
        )
    return Engine(host, str(version.get("Version")), api, private)


def find_engine(state: Path) -> tuple[Engine | None, list[Unfit]]:
    """The engine to use if one is up: the one that DOCKER_HOST names or the system's, else Kiln's own; and those that are unfit."""
    private = PrivateEngine(state)
    named = os.environ.get("DOCKER_HOST")
    candidates = [named] if named else ["unix:///var/run/docker.sock"]
    unfit: list[Unfit] = []
    for host in candidates:
        found = probe(host, private=host == private.host)
        if isinstance(found, Engine):
            if buildx_plugin() is not None and shutil.which("docker"):
                return found, unfit
            found = Unfit(host, "the docker client or its buildx plugin is not installed")
        if isinstance(found, Unfit):
            unfit.append(found)
    if private.pid() is not None:
        found = probe(private.host, private=True)
        if isinstance(found, Engine):
            return found, unfit
    return None, unfit


def ensure_engine(state: Path, console: Console) -> Engine:
    """A usable engine; a private one is installed and started where there is none.

    Raises HostError or EngineError saying what to install where Kiln cannot.
    """
    engine, unfit = find_engine(state)
    if engine is not None:
        return engine
    for other in unfit:
        console.note(f"{other.host} is left alone: {other.why}")
    try:
        ensure_docker(state, console)
    except HostError as error:
        reasons = "\n".join(f"{other.host}: {other.why}" for other in unfit)
        raise HostError(
            error.what,
            why="\n".join(filter(None, [error.why, reasons])),
            fix=error.fix
            + '\nA Docker >= 26 with the containerd image store (daemon.json: {"features": {"containerd-snapshotter": true}}) and the buildx plugin is used as it is.',
        ) from error
    if os.geteuid() != 0:
        raise HostError(
            "starting a private Docker daemon needs root",
            fix="run the same command as root, or start a Docker >= 26 with the containerd image store yourself",
        )
    private = PrivateEngine(state)
    private.start(console)
    engine, _ = find_engine(state)
    if engine is None:
        raise EngineError("the private Docker daemon started and does not answer", fix=f"see {private.log}")
    return engine


def image_document(engine: Engine, reference: str) -> dict[str, Any] | None:
    """What the engine says of an image: configuration, platform, digest; None where it has no such image."""
    return get_json(engine.socket, f"/images/{reference}/json")


def image_digest(engine: Engine, reference: str) -> str | None:
    """The manifest digest of an image in the engine, or None where it has no such image.

    With the containerd image store, an image's id is the digest of what the name points to: the manifest, for an image
    without attestations. The engine's descriptor says which it is.
    """
    found = image_document(engine, reference)
    if not found or "Id" not in found:
        return None
    descriptor: dict[str, Any] = found.get("Descriptor") or {}
    return str(descriptor.get("digest") or found["Id"])


def status(state: Path) -> dict[str, Any]:
    """What is there, as data: the engine that would be used, and every one that is unfit with its reason."""
    engine, unfit = find_engine(state)
    return {
        "engine": asdict(engine) if engine else None,
        "unfit": [asdict(other) for other in unfit],
        "private": {"pid": PrivateEngine(state).pid(), "folder": str(PrivateEngine(state).folder)},
    }
