"""What lies in Kiln's own engine and is not named any more: images under Kiln's names, and BuildKit's cache. Another's engine is left alone."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from kiln.console import megabytes
from kiln.engine import Engine, PrivateEngine, image_digest, probe
from kiln.errors import EngineError
from kiln.process import run
from kiln.unixhttp import get_json

# The names that kiln.build and kiln.baseimage give; whoever called an image otherwise wants to keep it.
_OWN = re.compile(r"kiln/[a-z0-9][a-z0-9._-]*:[0-9a-f]{16}")
# The engine adds up what its images and its cache take, file by file.
COUNT_SECONDS = 300
PRUNE_SECONDS = 1800


@dataclass(frozen=True)
class EngineFound:
    """Images that no current record names (reference and size; layers that they share with others are in it), and the size of BuildKit's cache."""

    images: tuple[tuple[str, int], ...]
    cache: int

    def text(self) -> str:
        """For people."""
        lines = [f"engine: image {name}, {megabytes(size)} (less what it shares)" for name, size in self.images]
        return "\n".join([*lines, f"engine: BuildKit's cache, {megabytes(self.cache)}"])


def own_engine(state: Path) -> Engine | None:
    """The private engine of a state folder, where it runs; whatever other engine builds here is not asked."""
    private = PrivateEngine(state)
    found = probe(private.host, private=True) if private.pid() else None
    return found if isinstance(found, Engine) else None


def look_in_engine(engine: Engine, digests: Collection[str], bases: Collection[str]) -> EngineFound:
    """What of the engine is not named: images whose digest is none of ``digests`` (base images: of ``bases``). Raises EngineError where it does not say."""
    # The version is named: later ones answer in another form.
    answer = get_json(engine.socket, "/v1.45/system/df?type=image&type=build-cache", timeout=COUNT_SECONDS)
    if answer is None:
        raise EngineError("the engine does not say what it holds", fix="kiln engine status")
    named = {f"kiln/base:{digest.removeprefix('sha256:')[:16]}" for digest in bases}
    images = [
        (str(reference), int(image.get("Size") or 0))
        for image in answer.get("Images") or []
        for reference in image.get("RepoTags") or []
        if _OWN.fullmatch(str(reference)) and reference not in named
    ]
    unnamed = [(name, size) for name, size in sorted(images) if image_digest(engine, name) not in digests]
    cache = sum(int(one.get("Size") or 0) for one in answer.get("BuildCache") or [] if not one.get("InUse"))
    return EngineFound(tuple(unnamed), cache)


def remove_from_engine(engine: Engine, found: EngineFound, days: int = 0) -> list[str]:
    """Remove these images, and BuildKit's cache as far as it was not used within the last ``days``; returns what could not be, a line each."""
    failed = []
    for name, _ in found.images:
        done = run(["docker", "image", "rm", name], env=engine.environment)
        if done.code != 0:
            failed.append(f"{name}: {done.tail(1)}")
    since = ["--filter", f"until={24 * days}h"] if days else []
    done = run(
        ["docker", "builder", "prune", "--all", "--force", *since], env=engine.environment, timeout=PRUNE_SECONDS
    )
    if done.code != 0:
        failed.append(f"BuildKit's cache: {done.tail(1)}")
    return failed
