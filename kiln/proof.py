"""What a finished `kiln image` leaves behind, so that the next one can show at once that there is nothing to do.

Rendering is pure, so the same files and choices give the same build keys, and nothing has to be planned to know that they are the same. What can
change by itself is asked every time: whether the engine holds the very digest, and whether the report is the one that was judged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiln.canonical import digest_of, sha256_file, tree_digest
from kiln.store import write_whole
from kiln.workspace import Workspace

if TYPE_CHECKING:
    from kiln.engine import Engine

# What of a checkout decides what an image is and what is looked at, Kiln's own code among it.
FOLDERS = ("images", "kiln", "pins", "plugins", "scripts", "templates")
FILES = ("kiln.toml", "requirements/tools.txt", "requirements/gates.txt")


@dataclass(frozen=True)
class Reported:
    """An image with its report, as a person is shown them: ``held`` are its components with their versions."""

    reference: str
    digest: str
    held: str
    report: dict[str, Any]
    path: Path


def inputs_digest(workspace: Workspace, stack: str, choices: Sequence[object]) -> str:
    """The sha256 over every file of the checkout that what comes out depends on, and over what the command line chose. Raises OSError."""
    root = workspace.root
    folders = {name: tree_digest(root / name) for name in FOLDERS}
    files = {name: sha256_file(root / name) for name in FILES if (root / name).is_file()}
    return digest_of([stack, choices, folders, files])


def _file(workspace: Workspace, stack: str, choices: Sequence[object]) -> Path:
    return workspace.state / "proofs" / f"{stack}-{digest_of(choices)[:16]}.json"


def remember(
    workspace: Workspace, stack: str, choices: Sequence[object], inputs: str, images: Sequence[Reported]
) -> None:
    """Keep what was shown of good images that were made from ``inputs``."""
    shown = [
        {
            **{key: value for key, value in asdict(one).items() if key not in ("report", "path")},
            "report": one.path.name,
            "report_sha256": sha256_file(one.path),
        }
        for one in images
    ]
    write_whole(_file(workspace, stack, choices), json.dumps({"inputs": inputs, "images": shown}, indent=2) + "\n")


def proven(
    workspace: Workspace, engine: Engine, stack: str, choices: Sequence[object], inputs: str
) -> list[Reported] | None:
    """The images of a stack where nothing is to be done: the same inputs, the very digests in the engine, the reports that were judged; else None."""
    from kiln.engine import image_digest

    try:
        known = json.loads(_file(workspace, stack, choices).read_text(encoding="utf-8"))
        if known["inputs"] != inputs or not known["images"]:
            return None
        found = []
        for one in known["images"]:
            path = workspace.state / "reports" / one["report"]
            text = path.read_bytes()
            if hashlib.sha256(text).hexdigest() != one["report_sha256"]:
                return None
            if image_digest(engine, one["reference"]) != one["digest"]:
                return None
            found.append(Reported(one["reference"], one["digest"], one["held"], json.loads(text), path))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found
