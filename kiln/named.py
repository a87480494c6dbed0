"""An image that somebody names: one of the engine's, or one in a registry by its digest; and which image of which stack it says it is."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from kiln.config import Config
from kiln.console import Console
from kiln.engine import Engine, image_digest, image_document
from kiln.errors import ForeignImageError, KilnError, UpstreamError, UsageError
from kiln.process import run
from kiln.registry import tag_digest
from kiln.registryclient import INDEXES
from kiln.render import LABEL
from kiln.torn import docker_pull

PULL_SECONDS = 2 * 3600
ASK_SECONDS = 60
# distribution's grammar of references, as far as it tells one part from another: [host[:port]/]name[:tag][@digest].
REFERENCE = re.compile(
    r"(?P<name>(?:[A-Za-z0-9.-]+(?::[0-9]+)?/)?[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Named:
    """An image in the engine: the name to run it by, its manifest digest, and what it says of itself.

    ``stack`` and ``image`` are those of its labels; ``sets`` and ``allow`` what was chosen when it was built; ``rehearsal`` whether from stand-ins.
    """

    reference: str
    digest: str
    stack: str
    image: str
    sets: tuple[str, ...]
    allow: tuple[str, ...]
    rehearsal: bool


def find_image(
    engine: Engine, config: Config, text: str, console: Console, *, stack: str = "", image: str = ""
) -> Named:
    """The image that ``text`` names, pulled where the engine has it not and the name has a digest.

    ``stack`` and ``image`` say what it is to be compared with, whatever its labels say. Raises UsageError for what is no reference and for a tag of
    a registry (with the digest that it points to), UpstreamError where no registry has it, ForeignImageError where it is not Kiln's.
    """
    reference = in_engine(engine, config, text, console)
    document = image_document(engine, reference) or {}
    media = str((document.get("Descriptor") or {}).get("mediaType", ""))
    if media in INDEXES:
        raise UsageError(
            f"{text} is an index: several platforms, or an image with attestations beside it",
            why="What is verified is one platform's image, by its own manifest's digest.",
            fix=f"docker buildx imagetools inspect {text} lists them",
        )
    labels: dict[str, Any] = (document.get("Config") or {}).get("Labels") or {}
    said_stack, said_image = labels.get(f"{LABEL}.stack", ""), labels.get("org.opencontainers.image.title", "")
    if not (stack and image) and not (said_stack and said_image):
        raise ForeignImageError(
            f"{text} is not an image that kiln built",
            why=f"It has no label {LABEL}.stack that names its pins.",
            fix="compare it all the same: kiln verify IMAGE --as STACK/IMAGE",
        )
    return Named(
        reference,
        image_digest(engine, reference) or "",
        stack or said_stack,
        image or said_image,
        tuple(str(labels.get(f"{LABEL}.overrides", "")).split()),
        tuple(str(labels.get(f"{LABEL}.advisories.allowed", "")).split()),
        labels.get(f"{LABEL}.rehearsal") == "true",
    )


def in_engine(engine: Engine, config: Config, text: str, console: Console, *, command: str = "kiln verify") -> str:
    """The reference by which the engine has the image that ``text`` names, whoever built it; pulled where it has it not and the name has a digest.

    ``command`` is what the messages tell to type. Raises UsageError for what is no reference and for a tag of a registry (with the digest that it points
    to), UpstreamError where no registry has it.
    """
    found = REFERENCE.fullmatch(text)
    if not found and not _DIGEST.fullmatch(text):
        raise UsageError(
            f"{text!r} is no stack and no image",
            why="An image is named as docker names it: name:tag, or host/name@sha256:… .",
            fix=f"{command} --help says what it takes; docker image ls has the names of images",
        )
    if image_document(engine, text) is not None:
        return text
    name, wanted = (found["name"], (found["tag"], found["digest"])) if found else ("", ("", text))
    return _pulled(engine, config, name, wanted, console, command)


def _pulled(
    engine: Engine, config: Config, name: str, wanted: tuple[str | None, str | None], console: Console, command: str
) -> str:
    """The reference of an image that was pulled by its digest."""
    tag, digest = wanted
    shown = name + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")
    host = name.partition("/")[0]
    if not name or not (digest or "." in host or ":" in host or host == "localhost"):
        raise UsageError(
            f"the engine has no image {shown}",
            why="It is no stack of this project either.",
            fix="docker image ls shows what it has; kiln build STACK builds; host/name@sha256:… is pulled",
        )
    if not digest:
        try:
            now = tag_digest(config, name, tag or "latest")
        except KilnError as error:
            raise UpstreamError(
                f"{shown} is not in the engine, and a tag is not verified", why=error.why or error.what
            ) from error
        raise UsageError(
            f"{shown} is a tag, and a tag can move between the check and the use",
            why=f"It points to {now} now.",
            fix=f"{command} {name}@{now}",
        )
    place = f"{config.mirrored(name)}@{_of_platform(engine, f'{config.mirrored(name)}@{digest}', digest)}"
    console.step(f"pulling {place}")
    done = docker_pull(engine, place, PULL_SECONDS)
    if done.code != 0:
        raise UpstreamError(f"{place} could not be pulled", why=done.tail(3))
    return place


def _of_platform(engine: Engine, place: str, digest: str) -> str:
    """The digest of the platform's manifest where ``place`` is an index with one image in it, beside attestations; else ``digest``.

    Asked through buildx, which signs in as docker's own configuration says.
    """
    done = run(
        ["docker", "buildx", "imagetools", "inspect", "--raw", place],
        env=engine.environment,
        timeout=ASK_SECONDS,
        split=True,
    )
    try:
        listed = json.loads(done.output).get("manifests", []) if done.code == 0 else []
        images = [one for one in listed if one.get("platform", {}).get("os") not in (None, "unknown")]
    except (ValueError, AttributeError):
        return digest
    if len(images) > 1:
        shown = "\n".join(
            f"{one['platform'].get('os')}/{one['platform'].get('architecture')}: {one['digest']}" for one in images
        )
        raise UsageError(
            f"{place} is an index of {len(images)} images", why=shown, fix="name one of them by its digest"
        )
    return str(images[0]["digest"]) if images else digest
