"""The checkpoint that an image is tried with: a tiny DeepSeek V4 made by ``scripts/make_tiny_model.py``, or one of the user's.

The tiny one is made inside the built image, without a network, once: training is seeded, but nothing promises the same
bytes on another machine, so the result is kept in the store by its sha256 and named in every report. It is never part of an image.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiln.canonical import digest_of, sha256_file
from kiln.console import Console
from kiln.containers import Client, container, wait
from kiln.errors import ModelError
from kiln.store import Store, disk_full_is_an_error
from kiln.untar import unpack
from kiln.workspace import Workspace

SCRIPTS = ("make_tiny_model.py", "tiny_texts.py")
MAKE_SECONDS = 900
MAKE_MEMORY = 12 << 30
# Weights beyond this are named by their size in the report, not by a hash: hashing 800 GB takes longer than checking.
HASH_LIMIT = 8 << 30


@dataclass(frozen=True)
class Model:
    """A checkpoint ready to be served: its folder, what identifies it, and what its maker measured (None for the user's own)."""

    folder: Path
    identity: str
    origin: str
    made: dict[str, Any] | None


def model_key(workspace: Workspace, *, wrong_answers: bool = False) -> str:
    """Under which key the store remembers the tiny checkpoint: over the scripts that make it, and how they are called."""
    scripts = [sha256_file(workspace.root / "scripts" / name) for name in SCRIPTS]
    return digest_of({"scripts": scripts, "options": _options(wrong_answers)})


def _options(wrong_answers: bool) -> list[str]:
    return ["--wrong-answers"] if wrong_answers else []


@contextmanager
def tiny_model(
    workspace: Workspace,
    client: Client,
    reference: str,
    store: Store,
    console: Console,
    *,
    wrong_answers: bool = False,
) -> Iterator[Model]:
    """The tiny checkpoint, unpacked for as long as it is used; made with the image ``reference`` if it is not in the store.

    ``wrong_answers`` is the one trained on other answers, for trying the check itself. Raises ModelError.
    """
    options = _options(wrong_answers)
    key = model_key(workspace, wrong_answers=wrong_answers)
    sha256 = store.made(key)
    if sha256 is None:
        sha256 = _make(workspace, client, reference, store, console, options)
        store.remember(key, sha256)
    archive = store.check(sha256, "the tiny model")
    with store.scratch() as folder, disk_full_is_an_error(folder):
        unpack(archive, folder)
        # The container's user may be another than ours.
        folder.chmod(0o755)
        yield Model(
            folder / "model",
            f"sha256:{sha256}",
            "scripts/make_tiny_model.py" + "".join(f" {option}" for option in options),
            json.loads((folder / "made.json").read_text(encoding="utf-8")),
        )


def _make(
    workspace: Workspace,
    client: Client,
    reference: str,
    store: Store,
    console: Console,
    options: list[str],
) -> str:
    console.step("making the tiny DeepSeek V4 (once: trained inside the image, then kept in the store)")
    with store.scratch() as scratch:
        out = scratch / "model"
        out.mkdir()
        scratch.chmod(0o755)
        command = ["/kiln/scripts/make_tiny_model.py", "--out", "/out", *options]
        with container(
            client,
            reference,
            entrypoint=["python3"],
            command=command,
            mounts={workspace.root / "scripts": "/kiln/scripts"},
            writable={out: "/out"},
            memory=MAKE_MEMORY,
            env={"HOME": "/tmp"},  # noqa: S108
        ) as started:
            ended = wait(started, MAKE_SECONDS)
        if ended.code != 0:
            why = (
                f"it did not finish within {MAKE_SECONDS} s"
                if ended.code is None
                else f"it ended with exit code {ended.code}"
            )
            raise ModelError(
                "the tiny model could not be made",
                why=f"{why}; its last lines:\n" + "\n".join(ended.stderr.strip().splitlines()[-12:]),
                fix="run the same command again; if it stays, bring a checkpoint with --model",
            )
        try:
            made = json.loads(ended.stdout.strip().splitlines()[-1])
        except (ValueError, IndexError) as error:
            raise ModelError("the tiny model's maker did not say what it made", why=str(error)) from error
        console.note(
            f"{made['parameters'] / 1e6:.1f} M parameters, {made['steps']} steps, {made['seconds']} s; smallest lead {made['min_margin']} (needs {made['threshold']})"
        )
        (scratch / "made.json").write_text(json.dumps(made, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        archive = scratch / "model.tar"
        with disk_full_is_an_error(scratch), tarfile.open(archive, "w", format=tarfile.USTAR_FORMAT) as tar:
            for name in ("made.json", "model"):
                tar.add(scratch / name, name, filter=_neutral)
        return store.add_made(archive)


def _neutral(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """The member without the owner and the time of this machine."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    member.mode = 0o755 if member.isdir() else 0o644
    return member


def given_model(folder: Path) -> Model:
    """A checkpoint of the user's own: a folder with config.json, weights and answers.json (see docs/verify.md).

    Raises ModelError naming what is missing.
    """
    missing = [name for name in ("config.json", "answers.json") if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{folder} is no checkpoint that can be checked",
            why=f"it has no {' and no '.join(missing)}",
            fix="give a folder with the model and an answers.json that says what it must answer (docs/verify.md)",
        )
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    named = [
        (
            path.relative_to(folder).as_posix(),
            sha256_file(path) if path.stat().st_size <= HASH_LIMIT else path.stat().st_size,
        )
        for path in files
    ]
    return Model(folder.resolve(), f"files-sha256:{digest_of(named)}", "given with --model", None)
