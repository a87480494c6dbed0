"""One way to read an image, wherever it lies: a folder or an archive in OCI's layout, or the engine's own. In: its name; out: manifest, config, tars.

Every blob is compared with its digest while it is read. Of an image nothing is unpacked to the disk; one of the engine's is first saved, as docker saves it,
into a scratch file that goes with the reader.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self

from kiln.config import Config
from kiln.console import Console
from kiln.engine import Engine, image_document
from kiln.errors import EngineError, ImageDamagedError, UsageError
from kiln.named import in_engine
from kiln.ocistream import Hashed, Tar, tar_stream
from kiln.process import run
from kiln.registryclient import INDEXES
from kiln.store import disk_full_is_an_error

SAVE_SECONDS = 3600
# A manifest or a configuration that is larger is none; a layer's size is bounded by nothing.
DOCUMENT_LIMIT = 8 << 20
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Blobs(Protocol):
    """Where the blobs of an image lie."""

    def open(self, path: str) -> BinaryIO:
        """The file of the layout at ``path``. Raises ImageDamagedError where there is none."""


class _Folder:
    """A folder in OCI's layout."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, path: str) -> BinaryIO:
        """As Blobs has it."""
        try:
            return (self._folder / path).open("rb")
        except OSError as error:
            raise ImageDamagedError(f"{self._folder} has no {path}", why=error.strerror or str(error)) from error


class _Archive:
    """A tar of a layout. Where its files lie in it is noted once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with tarfile.open(path, "r:") as tar:
                self._files = {one.name.removeprefix("./"): (one.offset_data, one.size) for one in tar if one.isreg()}
        except (OSError, tarfile.TarError) as error:
            raise ImageDamagedError(f"{path} is no tar that can be read", why=str(error)) from error

    def open(self, path: str) -> BinaryIO:
        """As Blobs has it."""
        if path not in self._files:
            raise ImageDamagedError(f"{self._path} has no {path}")
        offset, size = self._files[path]
        stream = self._path.open("rb")
        stream.seek(offset)
        return _Bounded(stream, size)  # type: ignore[return-value]


class _Bounded:
    """A part of an open file: ``size`` bytes from where it stands."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self._left = stream, size

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes more."""
        data = self._stream.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


@dataclass(frozen=True)
class Layer:
    """A layer as the manifest and the configuration name it: ``digest`` is of the blob, ``diff_id`` of the tar in it."""

    digest: str
    size: int
    media_type: str
    diff_id: str


@dataclass(frozen=True)
class OciImage:
    """An image that can be read: ``digest`` is its manifest's, ``name`` what it was asked for by."""

    name: str
    digest: str
    manifest: dict[str, Any]
    config: dict[str, Any]
    layers: tuple[Layer, ...]
    blobs: Blobs

    @contextmanager
    def open_layer(self, index: int, *, check: bool = True) -> Iterator[Tar]:
        """The tar of layer ``index``, as a stream; left in order, it is read to its end and compared (``check=False``: not again).

        Raises ImageDamagedError where a blob is missing or wrong.
        """
        layer = self.layers[index]
        what = f"layer {index + 1} of {self.name}"
        with (
            self.blobs.open(_place(layer.digest, what)) as blob,
            tar_stream(blob, layer.digest, layer.size, layer.media_type, layer.diff_id, what, check=check) as stream,
        ):
            yield Tar(stream, what)


def _place(digest: str, what: str) -> str:
    if not _DIGEST.fullmatch(digest):
        raise ImageDamagedError(f"{what} has no sha256 digest: {digest[:80]!r}")
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def read_layout(path: Path, name: str = "", *, wanted: str = "") -> OciImage:
    """The one image in a layout: a folder, or a tar of one. ``wanted`` is a digest where there are several.

    Raises UsageError where it is no layout or an index of several platforms, ImageDamagedError where a part is missing or wrong.
    """
    name = name or str(path)
    if path.is_dir() and not (path / "index.json").is_file():
        raise UsageError(f"{path} is no image", why="A folder with an image in it has an index.json (OCI's layout).")
    blobs: Blobs = _Folder(path) if path.is_dir() else _Archive(path)
    with blobs.open("index.json") as stream:
        index = _document(stream.read(DOCUMENT_LIMIT), f"the index of {name}")
    found = _chosen(blobs, name, index, wanted)
    manifest = _blob(blobs, found, f"the manifest of {name}")
    config = _blob(blobs, _entry(manifest.get("config"), f"the manifest of {name}"), f"the configuration of {name}")
    return OciImage(name, found["digest"], manifest, config, _layers(manifest, config, name), blobs)


def _chosen(blobs: Blobs, name: str, index: dict[str, Any], wanted: str) -> dict[str, Any]:
    """The descriptor of the one image of an index, or of those that it names."""
    listed = index.get("manifests")
    entries = [_entry(one, f"the index of {name}") for one in (listed if isinstance(listed, list) else [])]
    entries = [one for one in entries if wanted in ("", one["digest"])] or entries
    # An attestation says that its platform is unknown.
    images = {one["digest"]: one for one in entries if _table(one, "platform").get("os") != "unknown"}
    if not images:
        raise UsageError(f"{name} holds no image")
    if len(images) > 1:
        raise UsageError(
            f"{name} is an index of {len(images)} images",
            why="\n".join(f"{_platform(one)}: {digest}" for digest, one in images.items()),
            fix="name one of them by its digest, or make an archive of that one alone",
        )
    (found,) = images.values()
    if found.get("mediaType") in INDEXES:
        return _chosen(blobs, name, _blob(blobs, found, f"the index of {name}"), "")
    return found


def _platform(entry: dict[str, Any]) -> str:
    platform, annotations = _table(entry, "platform"), _table(entry, "annotations")
    return "/".join(str(platform[key]) for key in ("os", "architecture", "variant") if key in platform) or str(
        annotations.get("io.containerd.image.name", "no platform")
    )


def _table(entry: dict[str, Any], key: str) -> dict[str, Any]:
    """The table at ``key`` of a descriptor; an empty one where something else or nothing is there."""
    found = entry.get(key)
    return found if isinstance(found, dict) else {}


def _entry(found: Any, what: str) -> dict[str, Any]:
    if not isinstance(found, dict) or not isinstance(found.get("digest"), str):
        raise ImageDamagedError(f"{what} has an entry without a digest")
    return found


def _blob(blobs: Blobs, entry: dict[str, Any], what: str) -> dict[str, Any]:
    """A JSON document of a layout, compared with its digest."""
    with blobs.open(_place(entry["digest"], what)) as stream:
        hashed = Hashed(stream, entry["digest"], what)
        data = hashed.read(DOCUMENT_LIMIT) or b""
        while len(data) < DOCUMENT_LIMIT and (more := hashed.read(DOCUMENT_LIMIT - len(data))):
            data += more
        hashed.check()
    return _document(data, what)


def _document(data: bytes, what: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ImageDamagedError(f"{what} is no JSON", why=str(error)) from error
    if not isinstance(found, dict):
        raise ImageDamagedError(f"{what} is no JSON object")
    return found


def _layers(manifest: dict[str, Any], config: dict[str, Any], name: str) -> tuple[Layer, ...]:
    listed = manifest.get("layers")
    entries = [_entry(one, f"the manifest of {name}") for one in (listed if isinstance(listed, list) else [])]
    rootfs = config.get("rootfs")
    named = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    diff_ids = named if isinstance(named, list) else []
    if len(diff_ids) != len(entries):
        raise ImageDamagedError(
            f"{name} has {len(entries)} layers in its manifest and {len(diff_ids)} in its configuration"
        )
    return tuple(
        Layer(one["digest"], _size(one), str(one.get("mediaType", "")), str(diff_id))
        for one, diff_id in zip(entries, diff_ids, strict=True)
    )


def _size(entry: dict[str, Any]) -> int:
    size = entry.get("size", 0)
    if not isinstance(size, int) or size < 0:
        raise ImageDamagedError(f"the layer {entry['digest'][:80]} has no size that a layer can have: {size!r}"[:200])
    return size


@dataclass(frozen=True)
class Reader:
    """Reads images by what people call them. ``engine`` is asked for when a name is no file; what it saves lies below ``scratch``."""

    scratch: Path
    engine: Callable[[], Engine]
    config: Callable[[], Config]
    console: Console
    command: str = "kiln diff"

    def digest(self, text: str) -> str:
        """The manifest digest of an image, without saving it where the engine can be asked; '' where only reading it says.

        Raises as ``read`` does.
        """
        if Path(text).exists():
            return read_layout(Path(text)).digest
        descriptor = self._descriptor(self._reference(text))
        return "" if descriptor.get("mediaType") in INDEXES else str(descriptor.get("digest", ""))

    def read(self, *texts: str) -> list[OciImage]:
        """The images that ``texts`` name: folders, archives, or images of the engine (or a registry's, by digest), which are saved once and together.

        Raises UsageError for what names none or several, UpstreamError where no registry has it, EngineError where the engine does not hand it out,
        ImageDamagedError where it is not whole.
        """
        references = {text: self._reference(text) for text in texts if not Path(text).exists()}
        archive = self._saved(list(references.values())) if references else Path()
        return [
            read_layout(archive, text, wanted=str(self._descriptor(references[text]).get("digest", "")))
            if text in references
            else read_layout(Path(text))
            for text in texts
        ]

    def _reference(self, text: str) -> str:
        return in_engine(self.engine(), self.config(), text, self.console, command=self.command)

    def _descriptor(self, reference: str) -> dict[str, Any]:
        """What the engine's name points to: a manifest, or an index."""
        document = image_document(self.engine(), reference) or {}
        return document.get("Descriptor") or {"digest": document.get("Id", "")}

    def _saved(self, references: list[str]) -> Path:
        """An archive of images of the engine; what they have in common is in it once."""
        self.console.step(f"reading {', '.join(references)} out of the engine")
        archive = self.scratch / f"images-{sum(1 for _ in self.scratch.iterdir())}.tar"
        words: list[str | Path] = ["docker", "save", "--output", archive, *references]
        with disk_full_is_an_error(self.scratch):
            done = run(words, env=self.engine().environment, timeout=SAVE_SECONDS)
        if done.code != 0:
            raise EngineError(f"the engine does not hand out {', '.join(references)}", why=done.tail(3))
        return archive
