"""The image that is looked at, and what all that look at it share."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

SMALL: Final = 1 << 20  # files up to here are hashed and searched; of others, libraries are hashed
MOST: Final = 200  # entries of any list that grows with what is wrong: a document that nobody can read helps nobody
DEBIAN: Final = "/usr/lib/python3/dist-packages"
LIBRARY: Final = re.compile(r"\.so(\.[0-9]+)*$")


class NothingToSeeError(Exception):
    """A section cannot look; the text says why."""


@dataclass
class Image:
    """The file system that is looked at; ``alive`` where it is the one this process runs on."""

    root: Path
    alive: bool = False
    sites: list[Path] = field(default_factory=list)

    @classmethod
    def at(cls, root: str) -> Image:
        """The image below ``root``, and the folders that its Python finds distributions in."""
        image = cls(Path(root).resolve(), alive=Path(root).resolve() == Path("/"))
        if image.alive:
            found = [Path(one) for one in sys.path if one.endswith("-packages")]
        else:
            below = ("usr/lib/python3*", "usr/local/lib/python3*", "opt/*/lib/python3*")
            found = [one for place in below for one in sorted(image.root.glob(f"{place}/*-packages"))]
        image.sites = list(dict.fromkeys(one.resolve() for one in found if one.is_dir()))
        return image

    def path(self, inside: str) -> Path:
        """Where a path of the image lies."""
        return self.root / inside.lstrip("/")

    def shown(self, path: Path | str) -> str:
        """A path as the image has it."""
        text, root = os.fspath(path), "" if self.alive else str(self.root)
        if not text.startswith(f"{root}/"):  # a link led out of a tree that is only looked at
            return text if text != root else "/"
        return text[len(root) :]

    @cached_property
    def mounts(self) -> set[str]:
        """What lies over the image here: nothing below it is the image's."""
        if not self.alive:
            return set()
        try:
            lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
        except OSError:
            return {"/proc", "/sys", "/dev"}
        return {line.split()[4] for line in lines} - {"/"}

    @cached_property
    def packaged(self) -> dict[str, str]:
        """Every file that a Debian package brought, and which."""
        owners: dict[str, str] = {}
        merged = [one for one in ("bin", "sbin", "lib", "lib64") if self.path(one).is_symlink()]
        for listing in sorted(self.path("var/lib/dpkg/info").glob("*.list")):
            name = listing.name.removesuffix(".list").partition(":")[0]
            for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
                first = line.strip("/").partition("/")[0]
                owners[f"/usr{line}" if first in merged else line] = name
        return owners
