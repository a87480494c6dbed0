"""Writing a git tree out byte for byte: what git stores, with no filter, line-end rule, substitution or hook in between."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

from kiln.errors import SourceError
from kiln.gitrun import Repository, git_command, git_environment

GITLINK = "160000"
_SYMLINK = "120000"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Entry:
    """One file, symbolic link or submodule of a tree; ``path`` in git's own bytes."""

    mode: str
    sha: str
    path: bytes

    @property
    def name(self) -> str:
        """The path as text; bytes that are not UTF-8 survive as surrogates."""
        return self.path.decode("utf-8", "surrogateescape")


def entries(repository: Repository, tree: str) -> list[Entry]:
    """Everything in ``tree``, at any depth, in git's order."""
    found = []
    for line in repository.read("ls-tree", "-r", "-z", "--full-tree", tree).split(b"\0"):
        if line:
            described, _, path = line.partition(b"\t")
            mode, _, sha = described.decode("ascii").split()
            found.append(Entry(mode, sha, path))
    return found


def write_tree(repository: Repository, tree: str, folder: Path, submodule: Callable[[Entry, Path], None]) -> None:
    """Write all files of ``tree`` into ``folder``, which is new or empty; ``submodule`` fills the folder of each gitlink."""
    found = entries(repository, tree)
    _refuse_dangerous(found)
    _folder(os.fsencode(folder), b"")
    with _blobs(repository) as copy:
        for entry in found:
            _folder(os.fsencode(folder), os.path.dirname(entry.path))  # noqa: PTH120 - bytes, which a Path does not take
            target = os.path.join(os.fsencode(folder), entry.path)  # noqa: PTH118
            if entry.mode == GITLINK:
                _folder(os.fsencode(folder), entry.path)
                submodule(entry, Path(os.fsdecode(target)))
            elif entry.mode == _SYMLINK:
                _write_link(target, entry, copy)
            else:
                _write_file(target, entry, copy)


def _refuse_dangerous(found: list[Entry]) -> None:
    """A tree is somebody else's data: no path in it may lead out of the folder, nor through a link that it brings itself."""
    leaves = set()
    for entry in found:
        parts = entry.path.split(b"/")
        if {b"", b".", b".."} & set(parts) or b".git" in (part.lower() for part in parts):
            raise SourceError(
                f"the tree holds the path {entry.name!a}, which is never written", fix="pin another commit"
            )
        if entry.path in leaves:
            raise SourceError(f"the tree holds the path {entry.name!a} twice", fix="pin another commit")
        leaves.add(entry.path)
    for entry in found:
        parts = entry.path.split(b"/")
        if any(b"/".join(parts[:count]) in leaves for count in range(1, len(parts))):
            raise SourceError(
                f"the tree holds {entry.name!a} below what is not a folder in it", fix="pin another commit"
            )


def _folder(top: bytes, path: bytes) -> None:
    """Make ``path`` below ``top``; every folder with the same mode, whatever the user's umask is."""
    whole = os.path.join(top, path) if path else top  # noqa: PTH118
    if os.path.isdir(whole):  # noqa: PTH112
        return
    if path:
        _folder(top, os.path.dirname(path))  # noqa: PTH120
        os.mkdir(whole)  # noqa: PTH102
    else:
        Path(os.fsdecode(whole)).mkdir(parents=True)
    os.chmod(whole, 0o755)  # noqa: PTH101, S103 - as any source tree


def _write_file(target: bytes, entry: Entry, copy: Callable[[str, IO[bytes]], None]) -> None:
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(handle, "wb") as stream:  # noqa: PTH123 - a handle, not a path
        copy(entry.sha, stream)
        os.fchmod(handle, 0o755 if int(entry.mode, 8) & 0o100 else 0o644)


def _write_link(target: bytes, entry: Entry, copy: Callable[[str, IO[bytes]], None]) -> None:
    held = BytesIO()
    copy(entry.sha, held)
    points_at = held.getvalue()
    if not points_at or b"\0" in points_at:
        raise SourceError(f"the symbolic link {entry.name!a} points at nothing", fix="pin another commit")
    os.symlink(points_at, target)  # noqa: PTH211


@contextmanager
def _blobs(repository: Repository) -> Iterator[Callable[[str, IO[bytes]], None]]:
    """One git process that hands out blobs: a function that copies the blob of an id to a stream."""
    process = subprocess.Popen(
        [*git_command(repository.folder), "cat-file", "--batch"],
        env=git_environment(dict(repository.extra)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    asked, told = process.stdin, process.stdout
    assert asked is not None
    assert told is not None

    def copy(sha: str, stream: IO[bytes]) -> None:
        asked.write(sha.encode() + b"\n")
        asked.flush()
        header = told.readline().decode("ascii", "replace").split()
        if len(header) != 3 or header[1] != "blob":
            raise SourceError(
                f"a file of the commit is missing in {repository.folder}",
                why=" ".join(header) or "git ended",
                fix="delete that folder: it is fetched anew",
            )
        left = int(header[2])
        while left:
            piece = told.read(min(left, _CHUNK))
            if not piece:
                raise SourceError(f"git ended while it read {sha} in {repository.folder}", fix="run the command again")
            stream.write(piece)
            left -= len(piece)
        told.read(1)

    try:
        yield copy
    finally:
        process.kill()
        process.wait()
        asked.close()
        told.close()
