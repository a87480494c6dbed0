"""Containers that Kiln runs to look at an image or to make something with it: no network, bounded, always removed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import requests
from docker.models.containers import Container
from docker.types import LogConfig, Mount

from kiln.engine import Engine
from kiln.errors import EngineError
from kiln.gpu import SHARED_MEMORY, Devices
from kiln.process import raise_if_disk_full

# Everything a container says is kept up to here: enough for any honest log, little enough for any disk.
LOG_BYTES = 64 << 20
# On every container of Kiln's: the state folder that it belongs to. Others may run theirs in the same engine.
LABEL = "io.kiln.owner"


@dataclass(frozen=True)
class Ended:
    """How a container ended: its exit code (None: it was stopped for lack of time) and what it said."""

    code: int | None
    stdout: str
    stderr: str


class Client(docker.DockerClient):
    """A client of an engine that knows whose containers it makes."""

    owner = ""


@contextmanager
def connect(engine: Engine, owner: str = "") -> Iterator[Client]:
    """A client of the engine, for the state folder ``owner`` (``Workspace.identity``). Raises EngineError where the engine refuses or breaks off,
    DiskFullError where it has no room."""
    client = Client(base_url=engine.host, timeout=120)
    client.owner = owner
    try:
        yield client
    except (docker.errors.DockerException, requests.exceptions.ConnectionError) as error:
        raise_if_disk_full(str(error))
        raise EngineError(
            "the container engine refused or broke off",
            why=str(error),
            fix="kiln engine status; its log is .kiln/engine/dockerd.log where kiln started it",
        ) from error
    finally:
        client.close()


@contextmanager
def container(
    client: Client,
    image: str,
    *,
    command: Sequence[str],
    entrypoint: Sequence[str] | None = None,
    env: Mapping[str, str] | None = None,
    mounts: Mapping[Path, str] | None = None,
    writable: Mapping[Path, str] | None = None,
    memory: int = 4 << 30,
    read_only: bool = False,
    gpus: Devices | None = None,
) -> Iterator[Container]:
    """A started container of ``image`` without a network; removed at the end, whatever happens.

    ``mounts`` are read-only folders of this machine by their place in the container, ``writable`` are others. ``memory``
    is its limit in bytes, swap included. ``gpus`` are the devices it may use.
    """
    binds = [Mount(place, str(path), type="bind", read_only=True) for path, place in (mounts or {}).items()]
    binds += [Mount(place, str(path), type="bind") for path, place in (writable or {}).items()]
    options: dict[str, Any] = {"entrypoint": list(entrypoint)} if entrypoint is not None else {}
    if gpus:
        options["devices"] = [f"{file}:{file}:rw" for file in gpus.files]
        options["group_add"] = [str(group) for group in gpus.groups]
    created = client.containers.create(
        image,
        list(command),
        environment=dict(env or {}),
        mounts=binds,
        network_mode="none",
        # What docker's configuration says of proxies would become variables of every container.
        use_config_proxy=False,
        mem_limit=memory,
        memswap_limit=memory,
        pids_limit=4096,
        shm_size=SHARED_MEMORY if gpus else "2g",
        ipc_mode="private",
        read_only=read_only,
        tmpfs={"/tmp": "size=1g"} if read_only else None,  # noqa: S108
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        labels={LABEL: client.owner},
        log_config=LogConfig(type="json-file", config={"max-size": str(LOG_BYTES // 2), "max-file": "2"}),
        **options,
    )
    try:
        created.start()
        yield created
    finally:
        created.remove(force=True, v=True)


def wait(started: Container, seconds: float) -> Ended:
    """Wait for a container to end by itself, at most ``seconds``; then it is killed and its code is None."""
    try:
        code: int | None = int(started.wait(timeout=seconds)["StatusCode"])
    except (requests.exceptions.ReadTimeout, requests.exceptions.ConnectionError):
        code = None
        started.kill()
    return Ended(code, said(started, stderr=False), said(started, stdout=False))


def said(started: Container, *, stdout: bool = True, stderr: bool = True, limit: int = LOG_BYTES) -> str:
    """What a container wrote so far, at most ``limit`` bytes of it."""
    parts: list[bytes] = []
    size = 0
    for part in started.logs(stdout=stdout, stderr=stderr, stream=True, follow=False):
        parts.append(part)
        size += len(part)
        if size > limit:
            break
    return b"".join(parts)[:limit].decode(errors="replace")


def remove_left_over(client: Client) -> int:
    """Remove containers that a killed run of the same state folder left behind; returns how many. Whoever calls holds the folder alone."""
    left = client.containers.list(all=True, filters={"label": f"{LABEL}={client.owner}"})
    for old in left:
        old.remove(force=True, v=True)
    return len(left)
