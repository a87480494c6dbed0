"""Whether there is room for what is about to be fetched or built: asked before anything starts, for a full disk is found out after an hour otherwise.

What is missing of a lock has the lock's sizes. What a build takes is estimated, per component that is to be built: the compressed layer that it became
the last time (build records), or else its locked inputs, which are about as large, times ``TIMES``. Sources and base images have no size in a lock: they
are not counted, so what is refused here would not have fitted, and what is let through may still not fit.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kiln.console import megabytes
from kiln.engine import Engine
from kiln.errors import DiskFullError
from kiln.lockentries import Entry
from kiln.lockfile import Lock
from kiln.pins import Pins
from kiln.plan import ROOTFS, Context
from kiln.records import Built, components_of
from kiln.unixhttp import get_json

if TYPE_CHECKING:
    from kiln.render import Rendered

# On the engine's disk there are the inputs that BuildKit was sent, the files of the stage, the files of the layer, and the layer packed. For the CPU stack's
# 0.83 GB of layers that is 0.90 GB of wheels, twice the 3.13 GB that these unpack to, and 0.83 GB: ten times, where nothing is shared. Somewhat less is
# asked for, since a refusal should be right.
TIMES = 8


@dataclass(frozen=True)
class Need:
    """So many bytes, below which folder (it need not be there yet), and what for."""

    folder: Path
    size: int
    what: str


def require_room(needs: Sequence[Need]) -> None:
    """Raise DiskFullError, with the numbers, where a disk has less room than is needed on it. A disk that cannot be asked is not judged."""
    disks: dict[int, list[Need]] = {}
    for need in needs:
        if need.size and (there := _nearest(need.folder)):
            disks.setdefault(there.stat().st_dev, []).append(need)
    for wanted in disks.values():
        place = wanted[0].folder
        there = _nearest(place)
        free = shutil.disk_usage(there).free if there else 0
        size = sum(need.size for need in wanted)
        if size <= free:
            continue
        lines = [f"needed  {megabytes(need.size):>9}  {need.what}" for need in wanted]
        raise DiskFullError(
            f"there is too little room on the disk that holds {place}, so nothing was started",
            why="\n".join([*lines, f"free    {megabytes(free):>9}  {megabytes(size - free)} are missing"]),
            fix="see what is not needed any more, and remove it: kiln gc --dry-run, kiln gc, kiln gc --engine\n"
            "or put Kiln's files on a larger disk with KILN_STATE=/path; then run the same command again",
        )


def _nearest(folder: Path) -> Path | None:
    """The folder, or the nearest one above it that is there and may be looked at."""
    return next((one for one in (folder, *folder.absolute().parents) if os.access(one, os.F_OK)), None)


def fetch_need(folder: Path, missing: Sequence[Entry]) -> Need:
    """What these missing inputs take in the store: each is moved there and not copied. One whose size is not known yet counts as nothing."""
    return Need(folder, sum(entry.size for entry in missing), f"{len(missing)} files to fetch, by the lock's sizes")


def build_needs(
    state: Path,
    engine: Engine,
    rendered: Rendered,
    pins: Pins,
    lock: Lock,
    records: Sequence[Built],
    here: Collection[str],
) -> list[Need]:
    """What building an image takes: in the state folder for the root file system, and in the engine. ``here`` are the keys of components that it has."""
    sizes = to_build(rendered, pins, lock, records, here)
    # The tar, and the folder that it is packed from.
    needs = [Need(state, TIMES * sizes.get(ROOTFS, 0), "the root file system while it is made, estimated")]
    if folder := data_root(engine):
        what = f"building {', '.join(sizes)} in the engine, estimated as {TIMES} times their {megabytes(sum(sizes.values()))}"
        needs.append(Need(folder, TIMES * sum(sizes.values()), what))
    return needs


def to_build(
    rendered: Rendered, pins: Pins, lock: Lock, records: Sequence[Built], here: Collection[str]
) -> dict[str, int]:
    """The components of an image that are to be built, each with the size of its layer as the newest record has it, or with that of its locked inputs."""
    known: dict[str, int] = {}
    for record in records:
        for layer in record.layers:
            known.setdefault(layer.component, layer.size)
    keys = {made.name: made.key for made in components_of(rendered, pins)}
    inputs = {unit.name: sum(_locked(context) for context in unit.contexts) for unit in rendered.units}
    if not pins.base:
        inputs[ROOTFS] = sum(deb.size for deb in lock.debs)
    return {name: known.get(name) or size for name, size in inputs.items() if keys[name] not in here}


def _locked(context: Context) -> int:
    files: tuple[Entry, ...] = (*context.wheels, *context.debs, *context.archives)
    return sum(file.size for file in files)


def data_root(engine: Engine) -> Path | None:
    """The folder where the engine keeps images and its cache; None where it does not say, or lies where this machine sees no such folder."""
    root = (get_json(engine.socket, "/info") or {}).get("DockerRootDir")
    return Path(root) if root and os.access(Path(root).parent, os.F_OK) else None
