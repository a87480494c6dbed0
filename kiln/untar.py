"""Laying the files of a tar below a folder, the same on every Python: 3.11.2, which is Debian 12's, has none of tarfile's filters yet."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

from kiln.errors import SourceError


def unpack(archive: Path, folder: Path) -> None:
    """Lay the files of ``archive`` below ``folder``; nobody but the owner may write to them. Links may lead anywhere, and nothing is written through one.

    Raises SourceError where a file would lie outside.
    """
    with tarfile.open(archive) as tar:
        # What a newer Python would do by itself is done here.
        tar.extraction_filter = lambda member, _: member
        tar.extractall(folder, _inside(tar, folder.resolve()))  # noqa: S202


def _inside(tar: tarfile.TarFile, folder: Path) -> Iterator[tarfile.TarInfo]:
    """One member after the other: each is looked at when those before it are there, links among them."""
    for member in tar:
        names = [member.name, member.linkname] if member.islnk() else [member.name]
        for name in names:
            if not (folder / name).resolve().is_relative_to(folder):
                raise SourceError(f"{member.name} of a tar would lie outside of {folder}")
        member.mode &= 0o755
        yield member
