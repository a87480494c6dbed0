"""Serving with the image as an operator would: its own entry point on a checkpoint, asked through its HTTP API.

The container has no network: what asks (``scripts/ask_server.py``) runs inside it, over loopback. Everything is bounded:
the start, each answer, the whole, the memory and the log.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any, cast

from docker.errors import APIError
from docker.models.containers import Container

from kiln.containers import container, said
from kiln.image import Image, Setting
from kiln.model import Model
from kiln.verify.checks import Subject

PORT = 8000


@dataclass(frozen=True)
class Served:
    """What one run of the server left: the answers, the whole log, and why there are no answers where there are none."""

    setting: Setting
    document: dict[str, Any]
    log: str
    trouble: str
    seconds: float
    timing: dict[str, float] = field(default_factory=dict)


def serve(subject: Subject, model: Model, setting: Setting) -> Served:
    """Start the server with one setting, ask every question, and end it. Raises EngineError where there is no container."""
    began = time.monotonic()
    command = ["/model", f"--port={PORT}", "--host=127.0.0.1", *subject.image.serve]
    mounts = {model.folder: "/model", subject.workspace.root / "scripts": "/kiln/scripts"}
    with container(
        subject.client,
        subject.built.reference,
        command=command,
        # The log is read while the server still runs: nothing that proves a path may wait in a buffer.
        env={"PYTHONUNBUFFERED": "1", **dict(setting.env)},
        mounts=mounts,
        memory=subject.image.memory,
        gpus=subject.gpus,
    ) as server:
        code, document, words = _ask(server, subject.image)
        log = said(server)
        ending = _ending(server)
    if ending:
        trouble = f"the server {ending}; its last lines:\n{_tail(log)}"
    elif code is None:
        trouble = f"the questions were not done within {subject.image.start_seconds + subject.image.answer_seconds} s; the server's last lines:\n{_tail(log)}"
    elif code != 0:
        trouble = f"{document.get('error') or words.strip()[-400:] or f'ask_server.py ended with {code}'}; the server's last lines:\n{_tail(log)}"
    else:
        trouble = ""
    seconds = round(time.monotonic() - began, 1)
    return Served(
        setting, document, log, trouble, seconds, {"ready": float(document.get("ready_seconds") or 0), "whole": seconds}
    )


def _ask(server: Container, image: Image) -> tuple[int | None, dict[str, Any], str]:
    """Run the questions inside the container; the exit code is None where they did not end in time."""
    command = [
        "python3",
        "/kiln/scripts/ask_server.py",
        "--answers=/model/answers.json",
        f"--port={PORT}",
        f"--ready-timeout={image.start_seconds}",
        f"--request-timeout={image.answer_seconds}",
        f"--total-timeout={image.answer_seconds}",
    ]
    outcome: list[tuple[int | None, bytes, bytes]] = []

    def ask() -> None:
        # The engine has no limit on an exec's time; the thread's join has. A container that ended ends the exec too.
        try:
            done = server.exec_run(command, demux=True)
            stdout, stderr = cast("tuple[bytes | None, bytes | None]", done.output)
            outcome.append((done.exit_code, stdout or b"", stderr or b""))
        except APIError as error:
            outcome.append((1, b"", str(error).encode()))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    deadline = time.monotonic() + image.start_seconds + image.answer_seconds + 15
    while thread.is_alive() and time.monotonic() < deadline:
        thread.join(0.5)
        if _ending(server):
            thread.join(5)
            break
    if not outcome:
        return None, {}, ""
    code, stdout, stderr = outcome[0]
    try:
        document = json.loads(stdout)
    except ValueError:
        document = {}
    return code, document if isinstance(document, dict) else {}, stderr.decode(errors="replace")


def _ending(server: Container) -> str:
    """How the server ended, or nothing while it runs."""
    server.reload()
    state = server.attrs["State"]
    if state.get("Running"):
        return ""
    return (
        "was killed for using too much memory"
        if state.get("OOMKilled")
        else f"ended by itself with exit code {state.get('ExitCode')}"
    )


def _tail(log: str, lines: int = 12) -> str:
    return "\n".join(log.strip().splitlines()[-lines:])
