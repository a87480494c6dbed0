"""What ``kiln doctor`` finds of the container engine: which one would be used, its versions, and containers that were left behind."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from kiln.doctor import ON_ENGINE, VERIFY, Asked, Finding, Pairs
from kiln.doctorhost import installs_itself
from kiln.engine import SOCKET_PATH_LIMIT, Engine, PrivateEngine, find_engine
from kiln.errors import EngineError
from kiln.host import ENGINE_PACKAGES, ENGINE_SUITE, buildx_plugin, has_docker_programs
from kiln.process import run

SYSTEM_SOCKET = Path("/var/run/docker.sock")
_GIVEN = (
    'start a Docker >= 26 with the containerd image store (daemon.json: {"features": {"containerd-snapshotter": true}})'
)


def engine_findings(question: Asked) -> Iterator[Finding]:
    """The engine, or what stands in the way of one; then what lies in it."""
    # A stack on a base image reads that image's packages when it is locked.
    pairs = question.of(ON_ENGINE) + question.of(["lock"], [stack for stack in question.stacks if not stack.own_root])
    if not pairs:
        return
    engine, unfit = find_engine(question.workspace.state)
    yield from _refused(pairs)
    for other in unfit:
        yield Finding("engine", "warning" if engine else "ok", f"{other.host} is not used", pairs, other.why)
    if engine is None:
        yield _none_up(pairs)
        yield from _private_possible(question, pairs)
        return
    store = "containerd image store"
    yield Finding("engine", "ok", f"{engine.described}, {store}", pairs)
    # Debian builds Docker without BuildKit's version in it: the API stands for it (kiln/engine.py).
    yield Finding("buildkit", "ok", f"0.13 or newer, by the engine's API {engine.api}", question.of(["build"]))
    yield _buildx(question)
    yield from _left_over(question, engine)


def _buildx(question: Asked) -> Finding:
    plugin = buildx_plugin()
    assert plugin is not None, "an engine without the plugin is unfit"
    said = run([plugin, "version"], timeout=20).output.split()
    return Finding("buildx", "ok", said[1] if len(said) > 1 else "of unknown version", question.of(["build"]))


def _refused(pairs: Pairs) -> Iterator[Finding]:
    """A socket that is there and not for this user: to a question over it that looks like no engine at all."""
    named = os.environ.get("DOCKER_HOST", f"unix://{SYSTEM_SOCKET}")
    socket = Path(named.removeprefix("unix://"))
    if named.startswith("unix://") and socket.is_socket() and not os.access(socket, os.R_OK | os.W_OK):
        fix = f'usermod -aG {socket.group()} "$USER"   (as root; then log in again)'
        yield Finding("engine", "warning", f"this user may not use {socket}", pairs, "it is passed over", fix)


def _none_up(pairs: Pairs) -> Finding:
    if has_docker_programs() and os.geteuid() == 0:
        return Finding(
            "engine", "ok", "none is up", pairs, "kiln starts a private one when it needs one", "kiln engine up"
        )
    if has_docker_programs():
        return Finding(
            "engine",
            "missing",
            "none is up",
            pairs,
            "starting a private one takes root",
            f"{_GIVEN}, or run kiln as root",
        )
    absent = [name for name in ("dockerd", "docker") if not shutil.which(name)]
    absent += [] if buildx_plugin() else ["docker's buildx plugin"]
    found = f"none is up, and {', '.join(absent)} not installed"
    if installs_itself():
        means = f"kiln installs {', '.join(ENGINE_PACKAGES)} of Debian {ENGINE_SUITE} and starts a private one when it needs one"
        return Finding("engine", "warning", found, pairs, means, "kiln engine up")
    return Finding(
        "engine",
        "missing",
        found,
        pairs,
        "kiln installs one by itself only on Debian, as root",
        f"{_GIVEN}, with its buildx plugin",
    )


def _private_possible(question: Asked, pairs: Pairs) -> Iterator[Finding]:
    """What a private engine asks of the machine; a given one has it already."""
    longest = PrivateEngine(question.workspace.state).folder / "exec" / "containerd" / "containerd-debug.sock"
    if len(str(longest)) > SOCKET_PATH_LIMIT:
        yield Finding(
            "path length",
            "missing",
            f"{len(str(longest))} characters to containerd's socket, and the kernel allows {SOCKET_PATH_LIMIT}",
            pairs,
            "a private engine cannot start there",
            "put kiln's files into a shorter path: export KILN_STATE=/var/tmp/kiln",
        )
    try:
        known = (question.root / "proc/filesystems").read_text(encoding="utf-8").split()
    except OSError:
        known = []
    if "overlay" not in known:
        means = "containers' file systems lie on one another by it"
        yield Finding(
            "overlayfs", "warning", "the kernel does not list it", pairs, means, "modprobe overlay   (as root)"
        )


def _left_over(question: Asked, engine: Engine) -> Iterator[Finding]:
    """Containers of this state folder. Its identity is read and not made: a folder without one has left none behind."""
    identity = question.workspace.state / "identity"
    if not identity.is_file():
        return
    from kiln.containers import LABEL, connect

    pairs = question.of(VERIFY)
    try:
        with connect(engine) as client:
            label = f"{LABEL}={identity.read_text(encoding='utf-8')}"
            left = client.api.containers(all=True, filters={"label": label})
    except EngineError as error:
        yield Finding("containers", "warning", "the engine does not list them", pairs, re.sub(r"\s+", " ", error.why))
        return
    if left:
        names = ", ".join(str(name).lstrip("/") for one in left for name in one["Names"])
        means = "kiln is verifying now, or a run was killed; the next verification removes what was left"
        yield Finding(
            "containers",
            "warning",
            f"{len(left)} of this state folder: {names}",
            pairs,
            means,
            "wait for it, or: kiln verify STACK",
        )
    else:
        yield Finding("containers", "ok", "none left behind", pairs)
