"""Which component each layer of an image of Kiln's is: its labels name the components, and the committed Dockerfile has their order."""

from __future__ import annotations

import re
from pathlib import Path

from kiln.errors import KilnError
from kiln.ociimage import OciImage
from kiln.render import LABEL, lines_with_layers
from kiln.workspace import Workspace

_FINAL = re.compile(r"^FROM (?P<base>\S+) AS (?P<name>\S+)$", re.MULTILINE)


def layer_names(root: Path | None, image: OciImage) -> tuple[str, ...]:
    """The component of every layer, '' for those of a base image; nothing where the image or this project does not say.

    Nothing is guessed: where the Dockerfile has other components than the image's labels, or more layers than the image, the order is not known.
    """
    labels = (image.config.get("config") or {}).get("Labels") or {}
    title = str(labels.get("org.opencontainers.image.title", ""))
    about = [key.removeprefix(f"{LABEL}.component.") for key in labels if key.startswith(f"{LABEL}.component.")]
    # A component's commit, submodules and so on have labels below its own.
    said = {name for name in about if "." not in name}
    if not said or not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", title):
        return ()
    try:
        folder = Workspace.find(root, None).root / "images"
        names, whole = _names(folder, title)
    except (KilnError, OSError):
        return ()
    missing = len(image.layers) - len(names)
    if not said <= set(names) or missing < 0 or (whole and missing):
        return ()
    return ("",) * missing + names


def _names(folder: Path, title: str) -> tuple[tuple[str, ...], bool]:
    """The components of an image's Dockerfile, and those of the image that it stands on; and whether nothing lies below these."""
    text = (folder / title / "Dockerfile").read_text(encoding="utf-8")
    last = list(_FINAL.finditer(text))[-1]
    own = lines_with_layers(text[last.end() :])
    if last["base"] == "scratch":
        return own, True
    if (folder / last["base"] / "Dockerfile").is_file():
        below, whole = _names(folder, last["base"])
        # Every image has a layer of that name; the upper one is the one that is looked at.
        return (*(f"{last['base']} {name}" if name in own else name for name in below), *own), whole
    return own, False
