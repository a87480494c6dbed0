"""What the image says of itself in /app."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from inspection.image import Image

LARGEST: Final = 16 << 20


def app(image: Image) -> dict[str, Any]:
    """/app/versions.txt and /app/provenance.json, None where there is none; the SBOM as it lies there, to the byte."""
    versions, provenance, sbom = (image.path(f"/app/{name}") for name in ("versions.txt", "provenance.json", "sbom.cdx.json"))
    found: dict[str, Any] = {"versions": None, "provenance": None, "sbom": None, "trouble": ""}
    try:
        if versions.is_file():
            lines = versions.read_text(encoding="utf-8").splitlines()
            found["versions"] = dict(line.split(": ", 1) if ": " in line else (line, "") for line in lines if line)
        if provenance.is_file():
            found["provenance"] = json.loads(provenance.read_text(encoding="utf-8"))
        if sbom.is_file():
            # Not as text: that would make one line end of another. One that is larger than any of ours is not read.
            found["sbom"] = _read(sbom).decode()
    except (OSError, ValueError) as error:
        found["trouble"] = str(error)
    return found


def _read(path: Path) -> bytes:
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes")
    return path.read_bytes()
