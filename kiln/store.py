"""The content store: files named by their sha256. What is in it is right; what is not right does not get in.

A blob is written beside its place, compared with the sha256 and the size that the lock names, and renamed into place: a
process killed at any moment leaves either the whole right file or none.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kiln.canonical import sha256_file
from kiln.errors import DiskFullError, HashMismatchError, StoreDamagedError

# Blobs are hard-linked into build contexts, and BuildKit compares times: every blob has the same one, for ever.
BLOB_TIME = 946684800  # 2000-01-01T00:00:00Z
_TIMES = 20 * 365 * 86400


class Store:
    """A content store in one folder; any number of processes may use it at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, sha256: str) -> Path:
        """Where the blob with this sha256 lies, or would lie."""
        return self.folder / "sha256" / sha256[:2] / sha256

    def has(self, sha256: str, size: int) -> bool:
        """Whether the blob is there with its size (its bytes are compared by ``check``, where they are about to be used)."""
        try:
            return self.path(sha256).stat().st_size == size
        except OSError:
            return False

    def check(self, sha256: str, label: str) -> Path:
        """The path of a blob whose bytes were just compared with its name.

        Raises StoreDamagedError where they differ or it is missing; a damaged blob is removed, so that the next fetch
        brings it anew.
        """
        path = self.path(sha256)
        found = sha256_file(path) if path.is_file() else "no file"
        if found == sha256:
            return path
        path.unlink(missing_ok=True)
        raise StoreDamagedError(
            f"{label} in the content store is damaged",
            why=f"expected sha256 {sha256}\ngot             {found}\nfile            {path}",
            fix="the damaged file was removed: run the same command again and it is fetched anew (if this happens twice, check the disk)",
        )

    def add(self, source: Path, *, sha256: str, size: int, label: str, origin: str) -> Path:
        """Move ``source`` into the store if it is the file that is wanted.

        ``label`` and ``origin`` (where it came from) are for the message. Raises HashMismatchError where the bytes differ,
        in which case nothing is stored and ``source`` is removed; DiskFullError where there is no room.
        """
        found, found_size = sha256_file(source), source.stat().st_size
        if (found, found_size) != (sha256, size):
            source.unlink()
            raise HashMismatchError(
                f"{label} is not the file that the lock names",
                why=f"expected sha256 {sha256}, {size} bytes\ngot      sha256 {found}, {found_size} bytes\nfrom     {origin}",
            )
        with disk_full_is_an_error(self.folder):
            return self._place(source, sha256)

    def add_made(self, source: Path) -> str:
        """Move a file that Kiln made itself into the store; returns its sha256."""
        sha256 = sha256_file(source)
        with disk_full_is_an_error(self.folder):
            self._place(source, sha256)
        return sha256

    def _place(self, source: Path, sha256: str) -> Path:
        target = self.path(sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.stat().st_dev != target.parent.stat().st_dev:
            with self.scratch() as folder:
                copied = Path(shutil.copyfile(source, folder / "blob"))
                source.unlink()
                return self._rename(copied, target)
        return self._rename(source, target)

    @staticmethod
    def _rename(source: Path, target: Path) -> Path:
        source.chmod(0o444)
        os.utime(source, (content_time(target.name),) * 2)
        with source.open("rb") as stream:
            os.fsync(stream.fileno())
        source.replace(target)
        return target

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder on the store's own disk, removed at the end: what is made in it can be renamed into place."""
        with disk_full_is_an_error(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix="tmp-", dir=self.folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def made(self, key: str) -> str | None:
        """The sha256 of what was made under ``key`` (see ``remember``), or None where it is unknown or gone."""
        try:
            sha256, size = (self.folder / "made" / key).read_text(encoding="utf-8").split()
            return sha256 if self.has(sha256, int(size)) else None
        except (OSError, ValueError):
            return None

    def remember(self, key: str, sha256: str) -> None:
        """Note that making what ``key`` stands for gave this blob."""
        note = self.folder / "made" / key
        write_whole(note, f"{sha256} {self.path(sha256).stat().st_size}\n")


def content_time(digest: str) -> int:
    """A time (in 2000 to 2019) for a file or folder that is named by its ``digest`` in hex: other contents, another time.

    BuildKit sends a file of a build context again only where its size or its time differs from what it was sent under that context's name before, by any
    build of that engine (fsutil's comparison of metadata). With one time for all, an edit that keeps the size would not arrive. No image has this time: every
    recipe gives what it lays down the stack's own.
    """
    return BLOB_TIME + int(digest[:12], 16) % _TIMES


def no_room(error: BaseException) -> bool:
    """Whether an error is the operating system's 'no space left'."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def disk_full_is_an_error(folder: Path) -> Iterator[None]:
    """Turn the operating system's 'no space left' into DiskFullError naming ``folder``."""
    try:
        yield
    except OSError as error:
        if no_room(error):
            raise DiskFullError(f"the disk that holds {folder} is full", why=str(error)) from error
        raise


def write_whole(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` so that a reader sees the old file or the new one, never a part."""
    data = text.encode()
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with disk_full_is_an_error(path.parent):
        try:
            try:
                beside.write_bytes(data)
            except FileNotFoundError:
                path.parent.mkdir(parents=True, exist_ok=True)
                beside.write_bytes(data)
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
