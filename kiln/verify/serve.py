"""Serving with the image as an operator would: its own entry point on a checkpoint, asked through its HTTP API.

The container has no network: what asks (``scripts/ask_server.py``, ``scripts/run_gate.py``) runs inside it, over loopback. Everything is bounded:
the start, each answer, the whole, the memory and the log.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from docker.errors import APIError
from docker.models.containers import Container

from kiln.containers import container, said
from kiln.image import Setting
from kiln.model import Model
from kiln.verify.checks import Subject

PORT = 8000
# A server's whole log, start-up and all, is below 1 MiB. Of one that writes without end the engine keeps 64 MiB, and not its beginning.
LOG_LIMIT = 16 << 20


@dataclass(frozen=True)
class Served:
    """What one run of the server left: the answers, the whole log, and why there are no answers where there are none."""

    setting: Setting
    document: dict[str, Any]
    log: str
    trouble: str
    seconds: float
    timing: dict[str, float] = field(default_factory=dict)

    @property
    def flooded(self) -> bool:
        """Whether the server wrote more than is read: what proves a path may be lost then."""
        # In bytes, as it was cut: a log may hold signs of several.
        return len(self.log.encode()) >= LOG_LIMIT


@dataclass(frozen=True)
class Executed:
    """What a command beside the server left; its exit code is None where it did not end in time."""

    code: int | None
    stdout: str
    stderr: str

    def document(self) -> dict[str, Any]:
        """The JSON object on standard output; empty where there is none."""
        try:
            found = json.loads(self.stdout)
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}


class Server:
    """A server that was started in a container of its own. Whether it is ready yet is for what is run beside it to find out."""

    def __init__(self, container: Container) -> None:
        self._container = container

    def execute(self, command: Sequence[str], seconds: float) -> Executed:
        """Run a command beside the server, for at most ``seconds``; it is given up where the server ends meanwhile."""
        outcome: list[Executed] = []

        def run() -> None:
            # The engine has no limit on an exec's time; the thread's join has. A container that ended ends the exec too.
            try:
                done = self._container.exec_run(list(command), demux=True)
                stdout, stderr = cast("tuple[bytes | None, bytes | None]", done.output)
                outcome.append(Executed(done.exit_code, _text(stdout), _text(stderr)))
            except APIError as error:
                outcome.append(Executed(1, "", str(error)))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        deadline = time.monotonic() + seconds
        while thread.is_alive() and time.monotonic() < deadline:
            thread.join(0.5)
            if self.ending():
                thread.join(5)
                break
        if outcome and outcome[0].code != 0:
            self._settle()
        return outcome[0] if outcome else Executed(None, "", "")

    def _settle(self, seconds: float = 3.0) -> None:
        """Give the engine time to notice an end: what ran beside a server that died ends first, and looks as if it had failed by itself."""
        deadline = time.monotonic() + seconds
        while not self.ending() and time.monotonic() < deadline:
            time.sleep(0.2)

    def ending(self) -> str:
        """How the server ended, or nothing while it runs."""
        self._container.reload()
        state = self._container.attrs["State"]
        if state.get("Running"):
            return ""
        return (
            "was killed for using too much memory"
            if state.get("OOMKilled")
            else f"ended by itself with exit code {state.get('ExitCode')}"
        )

    def log(self) -> str:
        """What the server said so far, at most ``LOG_LIMIT`` bytes of it."""
        return said(self._container, limit=LOG_LIMIT)


@contextmanager
def serving(
    subject: Subject,
    folder: Path,
    setting: Setting,
    *,
    arguments: Sequence[str],
    memory: int,
    mounts: Mapping[Path, str] | None = None,
) -> Iterator[Server]:
    """A server of the checkpoint in ``folder``, started with one setting, and ended at the end. Raises EngineError where there is no container.

    ``arguments`` come after the image's own entry point, ``memory`` is in bytes, ``mounts`` are more folders to read.
    """
    shared, variables = subject.shared()
    with container(
        subject.client,
        subject.built.reference,
        command=["/model", f"--port={PORT}", "--host=127.0.0.1", *arguments],
        # The log is read while the server still runs: nothing that proves a path may wait in a buffer.
        env={"PYTHONUNBUFFERED": "1", **variables, **dict(setting.env)},
        mounts={folder: "/model", subject.workspace.root / "scripts": "/kiln/scripts", **(mounts or {})},
        writable=shared,
        memory=memory,
        gpus=subject.gpus,
    ) as started:
        yield Server(started)


def serve(subject: Subject, model: Model, setting: Setting) -> Served:
    """Start the server with one setting, ask every question, and end it. Raises EngineError where there is no container."""
    began = time.monotonic()
    image = subject.image
    # Real weights need what their measuring needs: several GPUs, memory and time.
    real = image.gates if model.made is None else None
    arguments, memory, start_seconds = (
        (real.serve, real.memory, real.start_seconds) if real else (image.serve, image.memory, image.start_seconds)
    )
    command = [
        "python3",
        "/kiln/scripts/ask_server.py",
        "--answers=/model/answers.json",
        f"--port={PORT}",
        f"--ready-timeout={start_seconds}",
        f"--request-timeout={image.answer_seconds}",
        f"--total-timeout={image.answer_seconds}",
    ]
    seconds_at_most = start_seconds + image.answer_seconds
    with serving(subject, model.folder, setting, arguments=arguments, memory=memory) as server:
        asked = server.execute(command, seconds_at_most + 15)
        log = server.log()
        ending = server.ending()
    document = asked.document()
    if ending:
        trouble = f"the server {ending}; its last lines:\n{tail(log)}"
    elif asked.code is None:
        trouble = f"the questions were not done within {seconds_at_most} s; the server's last lines:\n{tail(log)}"
    elif asked.code != 0:
        words = document.get("error") or asked.stderr.strip()[-400:] or f"ask_server.py ended with {asked.code}"
        trouble = f"{words}; the server's last lines:\n{tail(log)}"
    else:
        trouble = ""
    seconds = round(time.monotonic() - began, 1)
    return Served(
        setting, document, log, trouble, seconds, {"ready": float(document.get("ready_seconds") or 0), "whole": seconds}
    )


def tail(log: str, lines: int = 12) -> str:
    """The last lines of a log, for a message."""
    return "\n".join(log.strip().splitlines()[-lines:])


def _text(output: bytes | None) -> str:
    return (output or b"").decode(errors="replace")
