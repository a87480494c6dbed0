"""Laying out a tar: what is in it lies below the folder, whatever its names say."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from kiln.errors import SourceError
from kiln.untar import unpack


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode = kind, link, mode
    made.size = 4 if kind == tarfile.REGTYPE else 0
    return made


def archive(folder: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(folder / "some.tar", "w") as tar:
        for one in members:
            tar.addfile(one, io.BytesIO(b"text") if one.isfile() else None)
    return folder / "some.tar"


def test_files_folders_and_links_are_laid_out_and_only_the_owner_may_write(tmp_path: Path) -> None:
    unpack(
        archive(
            tmp_path,
            member("a", tarfile.DIRTYPE, mode=0o775),
            member("a/file", mode=0o4777),
            member("a/away", tarfile.SYMTYPE, "/nowhere"),
            member("same", tarfile.LNKTYPE, "a/file", mode=0o4777),
        ),
        tmp_path / "out",
    )
    out = tmp_path / "out"
    assert (out / "same").read_text() == (out / "a/file").read_text() == "text"
    assert str((out / "a/away").readlink()) == "/nowhere"
    assert [(out / name).stat().st_mode & 0o7777 for name in ("a", "a/file")] == [0o755, 0o755]


@pytest.mark.parametrize(
    "members",
    [
        [member("../escaped")],
        [member("/escaped")],
        [member("a", tarfile.SYMTYPE, ".."), member("a/escaped")],
        [member("a", tarfile.SYMTYPE, "../escaped"), member("a")],
        [member("a", tarfile.LNKTYPE, "../kept"), member("a")],
    ],
    ids=["up", "absolute", "through a link", "over a link", "a hard link"],
)
def test_a_file_that_would_lie_outside_is_refused(members: list[tarfile.TarInfo], tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    packed = archive(tmp_path, *members)
    with pytest.raises(SourceError, match="outside"):
        unpack(packed, tmp_path / "out")
    assert not (tmp_path / "escaped").exists()
    assert (tmp_path / "kept").read_text() == "kept"
