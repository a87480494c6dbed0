"""One spelling for data that is hashed, and the hashes themselves."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def canonical_json(data: Any) -> bytes:
    """``data`` as JSON with sorted keys, no spaces and plain ASCII: the same bytes on every machine."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str).encode("ascii")


def digest_of(data: Any) -> str:
    """The sha256 (64 hex digits) of ``data`` in its canonical spelling."""
    return hashlib.sha256(canonical_json(data)).hexdigest()


def sha256_file(path: Path) -> str:
    """The sha256 (64 hex digits) of a file, read as a stream. Raises OSError where it cannot be read."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tree_digest(folder: Path) -> str:
    """The sha256 over the names, executable bits and bytes of every file below ``folder``, in name order.

    Caches that Python and its tools leave behind do not count.
    """
    entries = [
        (path.relative_to(folder).as_posix(), bool(path.stat().st_mode & 0o100), sha256_file(path))
        for path in tree_files(folder)
    ]
    return digest_of(entries)


def tree_files(folder: Path) -> list[Path]:
    """The files below ``folder`` that count as source, sorted by their path."""
    skipped = {"__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", "tests", "dist"}
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not skipped & set(path.relative_to(folder).parts) and path.suffix != ".pyc"
    )
