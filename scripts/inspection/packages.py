"""The packages of the distribution that are installed, as dpkg's own list has them."""

from __future__ import annotations

from typing import Any

from inspection.image import Image


def packages(image: Image) -> dict[str, Any]:
    """Name and version of every package that is installed, sorted. Read from the list itself: nothing is run."""
    status = image.path("/var/lib/dpkg/status")
    if not status.is_file():
        return {"packages": []}
    # The paragraphs of a control file: ``Name: value``, continued by lines that begin with a space.
    paragraphs = status.read_text(encoding="utf-8").split("\n\n")
    found = [dict(line.split(": ", 1) for line in one.splitlines() if ": " in line and not line[0].isspace()) for one in paragraphs]
    installed = [one for one in found if one.get("Status", "").split()[-1:] == ["installed"]]
    return {"packages": sorted([one["Package"], one["Version"]] for one in installed)}
