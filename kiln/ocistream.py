"""The bytes of an image's blobs: compared with their digest while they are read, unpacked as they come, and a tar's members one at a time.

Nothing here holds a layer in memory or lays it on the disk.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, Protocol, cast

import zstandard

from kiln.errors import ImageDamagedError

CHUNK = 1 << 20
# zstd's own limit for a stream; more would let one layer take more memory than Kiln promises to.
ZSTD_WINDOW = 1 << 27
# A header of a tar (a long name, pax records) that is larger than this is no header.
HEADER_LIMIT = 1 << 22
GZIP, ZSTD, PLAIN = "gzip", "zstd", ""


class Readable(Protocol):
    """What bytes are read from."""

    def read(self, size: int, /) -> bytes | None:
        """At most ``size`` bytes more; none at the end."""


class Hashed(io.RawIOBase):
    """A stream of ``size`` bytes of ``raw`` whose sha256 is made while it is read. ``check`` reads what is left and compares."""

    def __init__(self, raw: Readable, digest: str, what: str, size: int | None = None) -> None:
        self._raw, self._digest, self._what, self._size = raw, digest, what, size
        self._hash, self._read = hashlib.sha256(), 0

    def readable(self) -> bool:
        """It is read, and nothing else."""
        return True

    def readinto(self, buffer: object) -> int:
        """As io.RawIOBase has it."""
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        if self._size is not None:
            view = view[: max(self._size - self._read, 0)]
        data = (self._raw.read(len(view)) or b"") if len(view) else b""
        view[: len(data)] = data
        self._hash.update(data)
        self._read += len(data)
        return len(data)

    def check(self) -> None:
        """Read to the end. Raises ImageDamagedError where the bytes are not those that the digest names."""
        while self.read(CHUNK):
            pass
        found = f"sha256:{self._hash.hexdigest()}"
        if found != self._digest:
            cut = self._size is not None and self._read < self._size
            raise ImageDamagedError(
                f"{self._what} does not have the bytes that it is named after",
                why=f"expected {self._digest}\ngot      {found}"
                + (f"\nIt ends after {self._read} of {self._size} bytes." if cut else ""),
            )


class _Unpacked(io.RawIOBase):
    """A gzip stream (of any number of members), unpacked as it is read."""

    def __init__(self, raw: io.RawIOBase, what: str) -> None:
        self._raw, self._what = raw, what
        self._inflate = zlib.decompressobj(31)
        self._waiting, self._ended = b"", False

    def readable(self) -> bool:
        """It is read, and nothing else."""
        return True

    def readinto(self, buffer: object) -> int:
        """As io.RawIOBase has it. Raises ImageDamagedError where the bytes are no gzip, or end too early."""
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        while len(view):
            if not self._waiting:
                self._waiting = self._raw.read(CHUNK) or b""
                if not self._waiting:
                    if not self._ended:
                        raise ImageDamagedError(f"{self._what} ends in the middle of its gzip stream")
                    return 0
            if self._ended:
                self._inflate, self._ended = zlib.decompressobj(31), False
            try:
                data = self._inflate.decompress(self._waiting, len(view))
            except zlib.error as error:
                raise ImageDamagedError(
                    f"{self._what} is not the gzip that it is said to be", why=str(error)
                ) from error
            self._ended = self._inflate.eof
            self._waiting = self._inflate.unused_data if self._ended else self._inflate.unconsumed_tail
            if data:
                view[: len(data)] = data
                return len(data)
        return 0


def compression_of(media_type: str, begins: bytes) -> str:
    """How a layer is compressed: by its first bytes, since a media type is only what somebody wrote beside it.

    Raises ImageDamagedError where it says another compression than the bytes have, or one that Kiln does not read.
    """
    seen = GZIP if begins[:2] == b"\x1f\x8b" else ZSTD if begins[:4] == b"\x28\xb5\x2f\xfd" else PLAIN
    said = ZSTD if media_type.endswith("+zstd") else GZIP if media_type.endswith(("+gzip", ".gzip")) else PLAIN
    if said not in (PLAIN, seen):
        raise ImageDamagedError(
            f"a layer is said to be {said}, and its bytes are not", why=f"Its media type: {media_type}"
        )
    return seen


@contextmanager
def tar_stream(
    blob: BinaryIO, digest: str, size: int, media_type: str, diff_id: str, what: str, *, check: bool = True
) -> Iterator[BinaryIO]:
    """The tar of a layer, of which ``blob`` is the compressed bytes. Its end compares the blob's digest and the tar's.

    ``check=False`` is for who was told already that it is right and stops in the middle. Raises ImageDamagedError.
    """
    peek = blob.read(4)
    packed = Hashed(_Again(peek, blob), digest, what, size)
    kind = compression_of(media_type, peek)
    raw: Readable = packed
    if kind == GZIP:
        raw = _Unpacked(packed, what)
    elif kind == ZSTD:
        raw = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).stream_reader(
            cast("BinaryIO", packed), read_across_frames=True
        )
    plain = Hashed(raw, diff_id, f"the tar in {what}")
    stream = io.BufferedReader(plain, CHUNK)
    try:
        yield stream
        if check:
            plain.check()
            packed.check()
    except (ImageDamagedError, zstandard.ZstdError) as error:
        # What a wrong blob unpacks to matters less than that it is the wrong blob.
        packed.check()
        if isinstance(error, ImageDamagedError):
            raise
        raise ImageDamagedError(f"{what} is not the zstd that it is said to be", why=str(error)) from error


class _Again(io.RawIOBase):
    """A stream whose first bytes were read already."""

    def __init__(self, begins: bytes, rest: BinaryIO) -> None:
        self._begins, self._rest = begins, rest

    def read(self, size: int = -1, /) -> bytes:
        """As io.RawIOBase has it."""
        if self._begins:
            taken, self._begins = self._begins[:size], self._begins[size:]
            return taken
        return self._rest.read(size)


class _Forward(io.RawIOBase):
    """A stream that knows where it is and seeks forward alone: what tarfile needs to read headers."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw, self._place = raw, 0

    def read(self, size: int = -1, /) -> bytes:
        """As io.RawIOBase has it, but never more than a header can have at once."""
        if not 0 <= size <= HEADER_LIMIT:
            raise tarfile.ReadError(f"a header of {size} bytes")
        data = self._raw.read(size)
        self._place += len(data)
        return data

    def tell(self) -> int:
        """Where it is."""
        return self._place

    def seek(self, place: int, whence: int = io.SEEK_SET, /) -> int:
        """Go on to ``place``. Raises tarfile.ReadError where the stream ends before it."""
        if whence != io.SEEK_SET or place < self._place:
            raise tarfile.ReadError("a header that points back")
        while self._place < place:
            if not self.read(min(CHUNK, place - self._place)):
                raise tarfile.ReadError(f"ends at {self._place}, and a member goes on to {place}")
        return place


class Tar:
    """The members of a tar that is read as a stream, with nothing kept of those that went by."""

    def __init__(self, stream: BinaryIO, what: str) -> None:
        self._what = what
        self._stream = _Forward(stream)

    def members(self) -> Iterator[tarfile.TarInfo]:
        """Every member, in the tar's order; ``content`` reads that of the last one. Raises ImageDamagedError where it is no whole tar."""
        with self._damage():
            if not (first := self._first()):
                return
            tar, member = first
        while True:
            yield member
            with self._damage():
                self._stream.seek(tar.offset)
                try:
                    member = tarfile.TarInfo.fromtarfile(tar)
                except (tarfile.EOFHeaderError, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
                    return

    def _first(self) -> tuple[tarfile.TarFile, tarfile.TarInfo] | None:
        try:
            tar = tarfile.TarFile(fileobj=self._stream, mode="r", encoding="utf-8", errors="surrogateescape")
        except tarfile.ReadError as error:
            # A layer that changes nothing: two blocks of zeros, or no byte at all.
            if str(error) == "empty file":
                return None
            raise
        tar.members.clear()  # type: ignore[attr-defined]
        return (tar, tar.firstmember) if tar.firstmember else None  # type: ignore[attr-defined]

    def content(self, member: tarfile.TarInfo, take: Callable[[bytes], object]) -> None:
        """Give the bytes of the member that was yielded last to ``take``, a piece at a time."""
        if not member.isreg():
            return
        if member.issparse():
            raise ImageDamagedError(
                f"{self._what} has a sparse file: {member.name!r}", why="No engine writes these into a layer."
            )
        with self._damage():
            self._stream.seek(member.offset_data)
            left = member.size
            while left:
                data = self._stream.read(min(CHUNK, left))
                if not data:
                    raise tarfile.ReadError(f"ends {left} bytes before the end of {member.name!r}")
                left -= len(data)
                take(data)

    @contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except (tarfile.TarError, ValueError, OverflowError, EOFError, IndexError) as error:
            raise ImageDamagedError(f"{self._what} is no whole tar", why=str(error) or type(error).__name__) from error
