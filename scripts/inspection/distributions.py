"""What is installed, whether its files are what RECORD says, and the files that nobody owns."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from inspection.image import DEBIAN, LIBRARY, MOST, SMALL, Image, NothingToSeeError

_UNHASHED: Final = re.compile(r"(^|/)[^/]+\.dist-info/RECORD(\.jws|\.p7s)?$|\.pyc$")


@dataclass
class Distribution:
    """One installed distribution: where its .dist-info (or .egg-info) is, and what that says."""

    site: Path
    info: Path
    said: metadata.Distribution
    name: str
    version: str

    @property
    def text(self) -> str:
        """How the document calls it."""
        return f"{self.name} {self.version}"


def canonical(name: str) -> str:
    """A distribution's name as all its spellings compare (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed(image: Image) -> list[Distribution]:
    """Every distribution, by name. One whose metadata says no name is named after its folder."""
    if not image.sites:
        raise NothingToSeeError("this image's Python has no folder for distributions")
    found = []
    for site in image.sites:
        for info in sorted((*site.glob("*.dist-info"), *site.glob("*.egg-info"))):
            said = metadata.PathDistribution(info)
            headers = said.metadata
            found.append(
                Distribution(
                    site, info, said, canonical(headers["Name"] or info.stem), str(headers["Version"] or "unknown")
                )
            )
    return sorted(found, key=lambda one: (one.name, str(one.site)))


def distributions(image: Image) -> dict[str, Any]:
    """What is installed, whether its files are what RECORD says, and what lies beside them that nobody owns."""
    listed, problems, owned = [], [], set()
    jobs: list[tuple[Distribution, str, str, str, str]] = []
    for one in installed(image):
        listed.append(_described(image, one))
        rows, wrong = _record(one)
        problems += wrong
        for name, digest, size in rows:
            path = os.path.normpath(f"{one.site}/{name}")
            owned.add(path)
            jobs.append((one, name, path, digest, size))
    # Hashing lets go of the interpreter, so the large ones cost nothing beside the many small ones, which never would.
    large = [job for job in jobs if job[4].isdigit() and int(job[4]) > SMALL]
    with ThreadPoolExecutor(max_workers=2) as pool:
        results = pool.map(lambda job: _differs(*job), large)
        problems += [found for job in jobs if not (job[4].isdigit() and int(job[4]) > SMALL) if (found := _differs(*job))]
        problems += [found for found in results if found]
    unowned = [path for site in image.sites for path in _unowned(image, site, owned)]
    return {
        "distributions": listed,
        "files": len(jobs),
        "problems": sorted(problems, key=lambda one: (one["distribution"], one["file"]))[:MOST],
        "problem_count": len(problems),
        "unowned": unowned[:MOST],
        "unowned_count": len(unowned),
    }


def _described(image: Image, one: Distribution) -> dict[str, Any]:
    try:
        direct = json.loads(one.said.read_text("direct_url.json") or "{}")
    except ValueError:
        direct = {"url": "unreadable"}
    points = [f"{point.group}: {point.name} = {point.value}" for point in one.said.entry_points if "vllm" in point.group]
    return {
        "name": one.name,
        "version": one.version,
        "site": image.shown(one.site),
        "debian": image.shown(one.site) == DEBIAN,
        "requires": one.said.requires or [],
        "requires_python": one.said.metadata["Requires-Python"] or "",
        "direct_url": direct.get("url", ""),
        "commit": (direct.get("vcs_info") or {}).get("commit_id", ""),
        "editable": bool((direct.get("dir_info") or {}).get("editable")),
        "entry_points": sorted(points),
    }


def _record(one: Distribution) -> tuple[list[tuple[str, str, str]], list[dict[str, str]]]:
    """The rows of RECORD. Debian's own Python packages have none: dpkg knows their files."""
    said = one.said.read_text("RECORD")
    if said is None:
        if one.info.suffix == ".egg-info" or str(one.site).endswith("/python3/dist-packages"):
            return [], []
        return [], [_wrong(one, "RECORD", "is missing")]
    rows, wrong = [], []
    for row in csv.reader(said.splitlines()):
        if len(row) == 3 and row[0] and not row[0].startswith("/"):
            rows.append((row[0], row[1], row[2]))
        elif row:
            wrong.append(_wrong(one, "RECORD", f"has a line that is no path, hash and size: {','.join(row)[:80]}"))
    return rows, wrong


def _wrong(one: Distribution, file: str, problem: str) -> dict[str, str]:
    return {"distribution": one.text, "file": file, "problem": problem}


def _differs(one: Distribution, name: str, path: str, said: str, length: str) -> dict[str, str] | None:
    """How a file differs from its line of RECORD, if it does. A hash is taken of what is small, and of every library."""
    try:
        size = os.stat(path).st_size  # noqa: PTH116 - here and below: a Path costs as much as the file
        if _UNHASHED.search(name):
            return None
        if not said:
            return _wrong(one, name, "has no hash in RECORD")
        if length and length != str(size):
            return _wrong(one, name, f"has {size} bytes, RECORD says {length}")
        if size > SMALL and not LIBRARY.search(name):
            return None
        kind, _, wanted = said.partition("=")
        digest = hashlib.new(kind)
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            while piece := file.read(SMALL):
                digest.update(piece)
    except FileNotFoundError:
        return _wrong(one, name, "is missing")
    except (OSError, ValueError) as error:
        return _wrong(one, name, f"could not be looked at: {error}")
    found = base64.urlsafe_b64encode(digest.digest()).rstrip(b"=").decode()
    return None if found == wanted.rstrip("=") else _wrong(one, name, "has another hash than RECORD says")


def _unowned(image: Image, site: Path, owned: set[str]) -> list[str]:
    """Files below a site-packages that no RECORD and no Debian package names. Bytecode is made by looking, and means nothing."""
    if image.shown(site) == DEBIAN:
        return []
    left = []
    for folder, folders, files in os.walk(site):
        folders[:] = sorted(one for one in folders if one != "__pycache__" and not one.endswith(".egg-info"))
        paths = (f"{folder}/{one}" for one in sorted(files) if not one.endswith(".pyc"))
        left += [image.shown(one) for one in paths if one not in owned and image.shown(one) not in image.packaged]
    return left
