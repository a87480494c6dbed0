"""Wheels, logs and servers: what needs no image, and is judged by the very code that judges the real ones."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kiln.image import Setting
from kiln.verify import generate
from kiln.verify.checks import Outcome
from kiln.verify.evidence import judge_path, read_evidence
from kiln.verify.serve import Served
from tests.corpus.cases import HERE, Case, fixture

REPOSITORY = HERE.parents[1]
STANDIN = REPOSITORY / "tests" / "integration" / "standin" / "standin_server.py"
SERVER_SECONDS = 5
SETTINGS = (
    Setting("default", "nothing set", (), "unfused"),
    Setting("tilelang", "the opt-in", (("VLLM_ROCM_USE_TILELANG_MHC", "1"),), "fused"),
)


# --- logs ---


def look_at_log(case: Case) -> dict[str, Outcome]:
    """What kiln.verify.evidence makes of a log, under the name of the check that asks it."""
    data = case.data
    text = (HERE / "logs" / data["file"]).read_bytes().decode(errors="replace")
    evidence = read_evidence(
        re.findall(r"[^\n]*\n|[^\n]+", text),
        data.get("environment", {}),
        workers=data.get("workers", 0),
        tilelang_cache=data["cache"],
    )
    name = "default" if data["setting"] == "aiter" else "tilelang"
    return {f"serve.{name}.path": judge_path(evidence, data["setting"], module_path=data.get("module-path", ""))}


# --- wheels ---


def look_at_wheel(case: Case) -> dict[str, Outcome]:
    """Make the wheel and have scripts/check_wheel.py judge it, as a build stage does."""
    with tempfile.TemporaryDirectory(prefix="kiln-corpus-") as folder:
        wheels = Path(folder) / "wheels"
        wheels.mkdir()
        for changes in ({}, *case.data.get("again", [])):
            make_wheel(wheels, {**case.data, **changes})
        words = [
            sys.executable,
            str(REPOSITORY / "scripts" / "check_wheel.py"),
            "--wheels",
            str(wheels),
            "--component=aiter",
        ]
        words += ["--distribution=amd-aiter", *case.data.get("arguments", [])]
        if "log" in case.data:
            log = Path(folder) / "build.log"
            log.write_text(case.data["log"], encoding="utf-8")
            words += ["--log", str(log)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    lines = done.stderr.replace(f"{folder}/", "") or done.stdout
    status = {0: "pass", 1: "fail", 2: "error"}.get(done.returncode, "error")
    return {"check_wheel": Outcome(status, lines.strip() or f"ended with {done.returncode}")}  # type: ignore[arg-type]


def make_wheel(folder: Path, data: Mapping[str, Any]) -> None:
    """A wheel of AITER's form as ``data`` has it: the members, METADATA, and edits of the RECORD that would be right."""
    name, version = data.get("distribution", "amd_aiter"), data.get("version", "0.1.14+g1234")
    build = f"-{data['build']}" if "build" in data else ""
    path = folder / f"{name}-{version}{build}-{data.get('tag', 'cp312-cp312-linux_x86_64')}.whl"
    if "raw" in data:
        path.write_bytes(data["raw"].encode())
        return
    given = data.get("files", {"aiter/__init__.py": "# aiter\n", "aiter/jit/module_mhc.so": "hip:module_both.so"})
    files = {place: _content(what) for place, what in given.items()}
    info = f"{name}-{version}.dist-info"
    said = data.get("metadata", f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n")
    files[f"{info}/METADATA"] = said.encode()
    lines = [f"{place},sha256={_digest(content)},{len(content)}" for place, content in files.items()]
    record = "\n".join([*lines, f"{info}/RECORD,,"]) + "\n"
    for old, new in data.get("record", {}).items():
        if old != "order" and old not in record:
            raise ValueError(f"RECORD has no {old!r} to exchange")
        record = "".join(reversed(record.splitlines(keepends=True))) if old == "order" else record.replace(old, new, 1)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for place, content in files.items():
            entry = zipfile.ZipInfo(place)
            entry.external_attr = ((stat.S_IFLNK if place == data.get("link") else stat.S_IFREG) | 0o644) << 16
            archive.writestr(entry, content)
        archive.writestr(f"{info}/RECORD", record)


def _content(what: str) -> bytes:
    """A member: text, or ``hip:FILE`` and ``fixture:FILE``, with ``|old|new`` for bytes that are exchanged in it."""
    place, *exchanged = what.split("|")
    kind, _, file = place.partition(":")
    if kind not in ("hip", "fixture"):
        return what.encode()
    data = fixture(place.removeprefix("fixture:"))
    if exchanged:
        old, new = (one.encode() for one in exchanged)
        if old not in data or len(old) != len(new):
            raise ValueError(f"{file} has no {old!r} that could become {new!r}")
        data = data.replace(old, new)
    return data


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


# --- servers ---


def look_at_server(case: Case) -> dict[str, Outcome]:
    """Serve with the stand-in, misbehaving as the case says, and what the generate checks make of its answers and its log.

    ``mode`` is the stand-in's; ``opt-in`` is what is exchanged in the code of the server with the opt-in, where the two are to part.
    """
    runs = [
        _served(setting, case.data["mode"], case.data.get("opt-in", {}) if setting.name == "tilelang" else {})
        for setting in SETTINGS
    ]
    outcomes: dict[str, Outcome] = {}
    for run in runs:
        outcomes[f"serve.{run.setting.name}.answers"] = generate.answers(run)
        outcomes[f"serve.{run.setting.name}.path"] = generate.path(run)
    return {**outcomes, "serve.agree": generate.agree(runs)}


def _served(setting: Setting, mode: str, exchanged: Mapping[str, str]) -> Served:
    """One run, on this machine instead of in a container; how it ended is told as kiln.verify.serve tells it."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kiln-corpus-") as folder:
        _questions(Path(folder))
        with _server(Path(folder), setting, mode, exchanged) as (server, port, log):
            words = [sys.executable, str(REPOSITORY / "scripts" / "ask_server.py"), f"--answers={folder}/answers.json"]
            words += [
                f"--port={port}",
                *(f"--{what}-timeout={SERVER_SECONDS}" for what in ("ready", "request", "total")),
            ]
            asked = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
            code = server.poll()
        said = log.read_text(encoding="utf-8", errors="replace")
    try:
        document = json.loads(asked.stdout)
    except ValueError:
        document = {}
    trouble = ""
    if code is not None:
        trouble = f"the server ended by itself with exit code {code}; its last lines:\n{said}"
    elif asked.returncode != 0:
        trouble = f"{document.get('error') or asked.stderr.strip()}; the server's last lines:\n{said}"
    return Served(setting, document, said, trouble, round(time.monotonic() - began, 1))


@contextmanager
def _server(
    folder: Path, setting: Setting, mode: str, exchanged: Mapping[str, str]
) -> Iterator[tuple[subprocess.Popen[bytes], int, Path]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = folder / "server.log"
    code = STANDIN.read_text(encoding="utf-8")
    # The stand-in is made for a container of its own, where its port is always free.
    for old, new in {"8000": str(port), **exchanged}.items():
        if old not in code:
            raise ValueError(f"{STANDIN.name} has no {old!r} to exchange")
        code = code.replace(old, new)
    environment = {**os.environ, "STANDIN": mode, "PYTHONUNBUFFERED": "1", **dict(setting.env)}
    with log.open("wb") as written:
        process = subprocess.Popen(
            [sys.executable, "-c", f"{code}\nmain()\n", str(folder)], stdout=written, stderr=written, env=environment
        )
    try:
        yield process, port, log
    finally:
        process.kill()
        process.wait()


def _questions(folder: Path) -> None:
    prompts: list[dict[str, Any]] = [
        {
            "id": f"q{n}",
            "prompt": f"Question {n}?",
            "messages": [{"role": "user", "content": f"Question {n}?"}],
            "answer": f"Answer {n}.",
            "token_ids": [n, n + 1, 0],
        }
        for n in range(3)
    ]
    text = json.dumps({"schema_version": 1, "model_name": "standin", "prompts": prompts})
    (folder / "answers.json").write_text(text, encoding="utf-8")
