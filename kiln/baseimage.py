"""The image that a ROCm stack stands on: pulled by digest, from a mirror where one is set, and asked what packages it has."""

from __future__ import annotations

import io
import tarfile

from docker import DockerClient
from docker.errors import DockerException, NotFound

from kiln.config import Config
from kiln.console import Console
from kiln.containers import connect
from kiln.engine import Engine, image_digest
from kiln.errors import UpstreamError
from kiln.imageparts import held_parts, load
from kiln.lockentries import BaseImage
from kiln.process import run
from kiln.store import Store
from kiln.torn import docker_pull

STATUS = "/var/lib/dpkg/status"
PULL_SECONDS = 6 * 3600


def base_name(digest: str) -> str:
    """The name that the base image has in the engine: one that no registry has, with its digest in it."""
    return f"kiln/base:{digest.removeprefix('sha256:')[:16]}"


def ensure_base(engine: Engine, config: Config, image: BaseImage, console: Console, store: Store | None = None) -> str:
    """Make sure that the engine holds the base image by its digest, under the name that is returned: out of the store, where a bundle brought it, or pulled.

    Raises UpstreamError where nobody has it, EngineError where the engine does not take it.

    BuildKit takes an image of the engine only by a tag; a reference with a digest it looks for in the registry. The tag is compared with the
    digest here, each time.
    """
    name = base_name(image.digest)
    if image_digest(engine, name) == image.digest:
        return name
    if store and (parts := held_parts(store, image.digest)):
        console.step(f"taking the base image {image.reference} out of the store")
        load(engine, store, parts, name)
        return name
    place = f"{config.mirrored(image.name)}@{image.digest}"
    console.step(f"pulling the base image {place}")
    done = docker_pull(engine, place, PULL_SECONDS)
    if done.code != 0:
        raise UpstreamError(f"the base image {image.name}:{image.tag} could not be pulled", why=done.tail(3))
    run(["docker", "tag", place, name], env=engine.environment)
    if image_digest(engine, name) != image.digest:
        raise UpstreamError(
            f"the engine pulled {place} and holds another image", why=f"{name} is {image_digest(engine, name)}"
        )
    return name


def package_status(engine: Engine, reference: str) -> bytes:
    """What dpkg says is installed in an image that the engine holds. Raises UpstreamError where it holds no such file."""
    with connect(engine) as client:
        return read_file(client, reference, STATUS)


def read_file(client: DockerClient, reference: str, path: str) -> bytes:
    """One file of an image, without starting it. Raises UpstreamError where the image or the file is not there."""
    try:
        made = client.containers.create(reference, command=["true"], network_mode="none")
    except DockerException as error:
        raise UpstreamError(f"{reference} is not in the engine", why=str(error)) from error
    try:
        blocks, _ = made.get_archive(path)
        with tarfile.open(fileobj=io.BytesIO(b"".join(blocks))) as tar:
            member = tar.extractfile(tar.getmembers()[0])
            return member.read() if member else b""
    except NotFound as error:
        raise UpstreamError(f"{reference} has no {path}", why="It is no image of Debian's or Ubuntu's kind.") from error
    finally:
        made.remove(force=True)
