"""What an image says of itself in /app: provenance.json and the SBOM as they are rendered, and the build context that takes them into the image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from kiln.canonical import digest_of, sha256_file
from kiln.image import Image
from kiln.lockfile import Lock
from kiln.pins import Pins
from kiln.plan import Context, Unit
from kiln.workspace import Workspace

FILE = "provenance.json"
SCRIPT = "scripts/write_versions.py"


def provenance(workspace: Workspace, pins: Pins, lock: Lock, image: Image, units: Sequence[Unit]) -> str:
    """What goes into the image, as JSON: written into it beside versions.txt, with the wheels that were built added there."""
    components: dict[str, Any] = {}
    for unit in units:
        pinned, git = pins.by_name[unit.name], lock.git_of.get(unit.name)
        entry: dict[str, Any] = {"version": unit.version, "key": unit.key}
        if pinned.git:
            entry |= {"url": pinned.git, "ref": pinned.ref, "commit": git.commit if git else "unresolved"}
        if git:
            entry |= {"tree": git.tree, "picks": list(git.picks)}
            entry["submodules"] = {submodule.path: submodule.commit for submodule in git.submodules}
        components[unit.name] = entry
    data: dict[str, Any] = {
        "schema": 1,
        "stack": pins.stack,
        "image": image.name,
        "lock_sha256": lock.sha256,
        "overrides": dict(pins.overrides),
        "allowed_advisories": list(pins.allowed),
        "rehearsal": workspace.rehearsal,
        "components": components,
    }
    if pins.base:
        data |= {"base": {"reference": pins.base.reference, "rocm": pins.base.rocm}, "archs": list(pins.archs)}
    return json.dumps(data, indent=2, sort_keys=True) + "\n"


def provenance_context(workspace: Workspace, files: dict[str, str], about: str) -> Context:
    """The context of the step that writes /app: the rendered ``files``, and the script that does it."""
    digest = digest_of([sorted(files.items()), sha256_file(workspace.root / SCRIPT)])
    return Context("provenance", about, digest, scripts=(SCRIPT,), files=tuple(sorted(files.items())))
