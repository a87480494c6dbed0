"""What the image says of itself in /app."""

from __future__ import annotations

import json
from typing import Any

from inspection.image import Image


def app(image: Image) -> dict[str, Any]:
    """/app/versions.txt and /app/provenance.json, None where there is none."""
    versions, provenance = image.path("/app/versions.txt"), image.path("/app/provenance.json")
    found: dict[str, Any] = {"versions": None, "provenance": None, "trouble": ""}
    try:
        if versions.is_file():
            lines = versions.read_text(encoding="utf-8").splitlines()
            found["versions"] = dict(line.split(": ", 1) if ": " in line else (line, "") for line in lines if line)
        if provenance.is_file():
            found["provenance"] = json.loads(provenance.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        found["trouble"] = str(error)
    return found
