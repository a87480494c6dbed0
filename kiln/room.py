"""Whether there is room for what is about to be fetched or built: asked before anything starts, for a full disk is found out after an hour otherwise.

What is missing of a lock has the lock's sizes. What a build takes is estimated, per component that is to be built: the compressed layer that it became
the last time (build records), or else its locked inputs, which are about as large, times ``TIMES``. Sources and base images have no size in a lock: they
are not counted, so what is refused here would not have fitted, and what is let through may still not fit.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
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

MORE_ROOM = """see what is not needed any more, and remove it: kiln gc --dry-run, kiln gc, kiln gc --engine
or put Kiln's files on a larger disk with KILN_STATE=/path"""
# Measured in the engine that had built the CPU image from nothing (Docker 28's overlay snapshots, November 2026), in MB for the layers' 258 (triton), 166 (torch),
# 242 (vllm-needs) and 125 (vllm): the files three times, in the stage, in the layer and in the image as it is unpacked (997, 748, 814 and 467 each time), the wheels as
# BuildKit was sent them (273, 194, 253, 127), and the layers packed. That is 13.7, 15.7, 12.1 and 13.3 times the packed layer: the least of them is asked for, since a
# refusal should be right. Of ROCm's layers it is not measured.
TIMES = 12
# The root file system is 33 MB packed and 103 MB of files: those, and the tar of them.
ROOTFS_TIMES = 6
# Logs and Python's bytecode take this much in a minute.
HARDLY = 16 << 20


@dataclass(frozen=True)
class Need:
    """So many bytes, below which folder (it need not be there yet), and what for."""

    folder: Path
    size: int
    what: str


@dataclass(frozen=True)
class Disk:
    """A disk, and all that is needed on it."""

    needs: tuple[Need, ...]
    free: int

    @property
    def size(self) -> int:
        """The bytes that are needed."""
        return sum(need.size for need in self.needs)

    @property
    def shown(self) -> str:
        """What is needed for what, a line each."""
        return "\n".join(f"needed  {megabytes(need.size):>9}  {need.what}" for need in self.needs)


def disks(needs: Sequence[Need]) -> list[Disk]:
    """The disks on which something is needed, each with its free room. A disk that cannot be asked is left out."""
    found: dict[int, tuple[Path, list[Need]]] = {}
    for need in needs:
        if need.size and (there := _nearest(need.folder)):
            found.setdefault(there.stat().st_dev, (there, []))[1].append(need)
    return [Disk(tuple(wanted), shutil.disk_usage(there).free) for there, wanted in found.values()]


def require_room(needs: Sequence[Need]) -> None:
    """Raise DiskFullError, with the numbers, where a disk has less room than is needed on it."""
    for disk in disks(needs):
        if disk.size <= disk.free:
            continue
        lacking = megabytes(disk.size - disk.free)
        raise DiskFullError(
            f"there is too little room on the disk that holds {disk.needs[0].folder}, so nothing was started",
            why=f"{disk.shown}\nfree    {megabytes(disk.free):>9}  {lacking} are missing",
            fix=f"{MORE_ROOM}; then run the same command again",
        )


def hardly_any(folders: Iterable[Path | None]) -> list[Path]:
    """The folders whose disk has next to no room left: what was written there just now may be half of it."""
    found = []
    for folder in folders:
        if folder and (there := _nearest(folder)):
            told = os.statvfs(there)
            if told.f_bavail * told.f_frsize < HARDLY:
                found.append(folder)
    return found


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
    return needs_of(to_build(rendered, pins, lock, records, here), state, data_root(engine))


def needs_of(sizes: Mapping[str, int], state: Path, folder: Path | None) -> list[Need]:
    """The same for components with the sizes that ``to_build`` gives; ``folder`` is the engine's, None where it is not known."""
    # The tar, and the folder that it is packed from.
    needs = [Need(state, ROOTFS_TIMES * sizes.get(ROOTFS, 0), "the root file system while it is made, estimated")]
    if folder:
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
