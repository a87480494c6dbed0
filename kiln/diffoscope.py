"""diffoscope, where somebody installed it: what it shows of two versions of a file, within a time. Kiln needs it for nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

from kiln.console import Console
from kiln.difflayer import Show
from kiln.difftext import shown_text
from kiln.errors import HostError
from kiln.process import run

SECONDS = 60
LINES = 60


def diffoscope(console: Console) -> Show | None:
    """The function that shows two files; None, and a note, where diffoscope is not here."""
    if not shutil.which("diffoscope"):
        console.note("diffoscope is not installed on this machine, so no file is shown from inside")
        return None
    return _show


def _show(path: str, one: Path, other: Path) -> str:
    """At most ``LINES`` lines of its text. It ends with 1 where the files differ; anything else is told as it is."""
    # By its own name, so that diffoscope knows what it is by it as well.
    name = path.rpartition("/")[2] or "file"
    places = []
    for side, file in (("a", one), ("b", other)):
        folder = file.parent / f"{file.name}-{side}"
        folder.mkdir()
        places.append(folder / name.replace("\\", "_")[:200])
        places[-1].hardlink_to(file)
    try:
        done = run(["diffoscope", "--text", "-", "--no-progress", *places], timeout=SECONDS, split=True)
        lines = [shown_text(line.replace("\t", "    ")) for line in done.output.splitlines()]
        if done.code not in (0, 1):
            lines = [f"diffoscope ended with {done.code}: {shown_text(done.tail(1))}"]
    except HostError as error:
        lines = [error.what]
    finally:
        for place in places:
            shutil.rmtree(place.parent)
    return "\n".join(lines[:LINES] + (["…"] if len(lines) > LINES else []))
