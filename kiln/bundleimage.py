"""A bundle of an image: a release with what is signed beside it, for a machine without a network (form: ``kiln.bundletar``).

There cosign itself verifies it, with the key and without asking anybody; then it goes into the engine under the digest that was signed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, BinaryIO

from kiln.bundletar import Bundled, Member, read_members, text_of
from kiln.errors import AttestationError, BundleInvalidError, ImageDamagedError, RefNotFoundError, SignatureError
from kiln.imageparts import Parts, fetch_parts, given, keep_manifests, lay_out, load, parts_of
from kiln.named import REFERENCE
from kiln.publish import looked_at
from kiln.pull import Pulled
from kiln.registryclient import SMALL, Repository
from kiln.store import Store

if TYPE_CHECKING:
    from kiln.config import Config
    from kiln.console import Console
    from kiln.cosign import Cosign, Trusted
    from kiln.engine import Engine
    from kiln.releases import Release

KIND = "image"
# cosign's words for what is what in a layout; the tags beside an image end with the last letters of each.
_COSIGN = "dev.cosignproject.cosign/"
_BESIDE = {"sigs": "sig", "atts": "att"}


@dataclass(frozen=True)
class ImageIndex:
    """What a bundle says of itself: the stack, where the image was published (``host/name@digest``), the digests of the image, its signatures and its
    attestations, the manifests of all three, and the blobs."""

    stack: str
    place: str
    images: dict[str, str]
    manifests: tuple[str, ...]
    members: tuple[Member, ...]

    @property
    def base_images(self) -> tuple[str, ...]:
        """None: an image is whole."""
        return ()

    def text(self) -> bytes:
        """The bytes of the index, the same wherever they are made."""
        return text_of(KIND, self)


def parsed(data: dict[str, Any], members: tuple[Member, ...]) -> ImageIndex:
    """An index of what was read; what it raises means that it is none (``bundletar.read_head``)."""
    images = {str(kind): str(digest) for kind, digest in data["images"].items()}
    manifests = tuple(map(str, data["manifests"]))
    "".join(manifests).encode()
    return ImageIndex(str(data["stack"]), str(data["place"]), images, manifests, members)


def fetch_image(stack: str, release: Release, config: Config, store: Store, console: Console) -> ImageIndex:
    """Have a release in the store, with what is signed beside it; the index of its bundle. Raises what ``imageparts.fetch_parts`` raises, SignatureError,
    AttestationError."""
    repository = Repository(config.mirrored(release.repository))
    digests = {"image": release.digest}
    for kind, suffix in _BESIDE.items():
        tag = f"{release.digest.replace(':', '-')}.{suffix}"
        try:
            digests[kind] = repository.manifest(tag).digest
        except RefNotFoundError as error:
            raise (SignatureError if kind == "sigs" else AttestationError)(
                f"{release.place} has nothing signed beside it", why=f"{repository.place} has no {tag}"
            ) from error
    return index_of(
        stack, release.place, {kind: fetch_parts(repository, one, store, console) for kind, one in digests.items()}
    )


def index_of(stack: str, place: str, parts: dict[str, Parts]) -> ImageIndex:
    """The index of the bundle of an image (`image`), its signatures (`sigs`) and its attestations (`atts`), all of them in the store."""
    manifests = tuple(text for one in parts.values() for text in one.texts)
    members = {member.sha256: member for kind, one in parts.items() for member in one.members(kind)}
    return ImageIndex(
        stack,
        place,
        {kind: one.digest for kind, one in parts.items()},
        manifests,
        tuple(members[name] for name in sorted(members)),
    )


@dataclass(frozen=True)
class Unpacker:
    """Everything that taking an image out of a bundle needs."""

    engine: Engine
    store: Store
    console: Console
    cosign: Cosign
    trusted: Trusted

    def read(self, index: ImageIndex, stream: BinaryIO, release: Release | None) -> tuple[Bundled, Pulled]:
        """Have the image in the engine, if it is signed, attested, and what the record (``release``) says. Until then nothing but the store has anything of it.

        Raises BundleInvalidError, HashMismatchError, ImageDamagedError, SignatureError, AttestationError, ReleaseRecordError, EngineError, DiskFullError.
        """
        parts = require_whole(index)
        missing = read_members(index, stream, self.store, self.console)
        for one in parts.values():
            keep_manifests(one, self.store)
        self.console.step(f"looking at what is signed of {index.place}")
        labels = self._labels(parts["image"])
        with self.store.scratch() as scratch:
            laid = {f"{_COSIGN}{kind}": one for kind, one in parts.items()}
            lay_out(scratch / "layout", self.store, laid, "kind")
            said = looked_at(
                replace(self.cosign, layout=scratch / "layout"), self.trusted, index.place, labels, release
            )
        repository, _, digest = index.place.partition("@")
        name = f"{repository}:sha256-{digest[7:23]}"
        self.console.step(f"taking {name} into the engine")
        load(self.engine, self.store, parts["image"], name)
        size = sum(member.size for member in index.members)
        new = sum(missing.values())
        return Bundled(index.stack, len(index.members), size, len(missing), new, ()), Pulled(name, digest, labels, said)

    def _labels(self, image: Parts) -> dict[str, str]:
        digest = str(json.loads(list(image.manifests.values())[-1])["config"]["digest"])
        try:
            if image.blobs[digest] > SMALL:
                raise ValueError(f"it has {image.blobs[digest]} bytes")
            path = self.store.check(digest.removeprefix("sha256:"), "the image's configuration")
            return dict(json.loads(path.read_text(encoding="utf-8"))["config"]["Labels"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ImageDamagedError("the image's configuration is none", why=repr(error)) from error


def require_whole(index: ImageIndex) -> dict[str, Parts]:
    """The image, its signatures and its attestations; BundleInvalidError where the bundle holds more or less than these."""
    try:
        parts = {kind: parts_of(index.images[kind], given(index.manifests)) for kind in ("image", *_BESIDE)}
    except (KeyError, ImageDamagedError) as error:
        raise BundleInvalidError(
            "the bundle holds no image with its signatures and attestations", why=str(error)
        ) from error
    named = REFERENCE.fullmatch(index.place)
    if index != index_of(index.stack, index.place, parts) or not named or named["digest"] != parts["image"].digest:
        raise BundleInvalidError(
            "the bundle holds something else than its image is made of", why="more or less, or another order"
        )
    return parts
