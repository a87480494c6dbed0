"""The root file system: locked Debian packages in, one tar out, the same to the byte wherever and whenever it is made.

mmdebstrap does the work, on this machine and without any network: its only source is a folder of the locked packages.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from kiln.canonical import digest_of
from kiln.console import Console
from kiln.errors import BuildError, HostError
from kiln.lockentries import Deb
from kiln.lockfile import Lock
from kiln.pins import Pins
from kiln.process import run
from kiln.store import Store
from kiln.workspace import Workspace

HOOK = "templates/rootfs/customize.sh"
# Manual pages and translations are for people at a terminal; copyright files stay, the licences ask for them.
OPTIONS = (
    "--mode=root",
    "--variant=essential",
    "--format=tar",
    "--skip=output/dev,cleanup",
    "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
)


def rootfs_key(workspace: Workspace, pins: Pins, lock: Lock) -> str:
    """The build key of the root file system: everything that decides its bytes."""
    return digest_of(
        {
            "recipe": (workspace.root / HOOK).read_text(encoding="utf-8"),
            "options": OPTIONS,
            "suite": pins.packages.suite,
            "packages": pins.packages.packages,
            "epoch": pins.epoch,
            "debs": sorted((deb.file, deb.sha256) for deb in lock.debs),
        }
    )


def make_rootfs(workspace: Workspace, pins: Pins, lock: Lock, store: Store, console: Console) -> str:
    """The sha256 of the root file system's tar in the store; made if this key was not made before.

    Raises HostError where mmdebstrap cannot run, StoreDamagedError where a package in the store is not what it was,
    BuildError with the last lines where mmdebstrap fails.
    """
    key = rootfs_key(workspace, pins, lock)
    if made := store.made(key):
        return made
    if os.geteuid() != 0:
        raise HostError(
            "making the root file system needs root",
            why="mmdebstrap sets owners and runs maintainer scripts in a chroot.",
            fix="run the same command as root",
        )
    console.step(f"making the root file system: {len(lock.debs)} packages of Debian {pins.packages.suite}")
    with store.scratch() as scratch:
        repository = scratch / "repository"
        _write_repository(repository, pins, lock.debs, store)
        # mmdebstrap extracts into TMPDIR and drops privileges for downloads: the way there must be open.
        scratch.chmod(0o755)
        out = scratch / "rootfs.tar"
        done = run(
            [
                "mmdebstrap",
                *OPTIONS,
                f"--architectures={pins.packages.architecture}",
                f"--include={','.join(pins.packages.packages)}",
                f"--customize-hook={workspace.root / HOOK}",
                pins.packages.suite,
                out,
                f"deb [trusted=yes] copy:{repository} ./",
            ],
            # All that it is given: maintainer scripts run with it. Python's settings decided whether Debian's helpers were compiled as they were
            # imported or on purpose, which makes other bytes.
            env={
                "SOURCE_DATE_EPOCH": str(pins.epoch),
                "LC_ALL": "C.UTF-8",
                "TZ": "UTC",
                "TMPDIR": str(scratch),
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            alone=True,
            timeout=900,
        )
        if done.code != 0:
            raise BuildError(
                "mmdebstrap could not make the root file system",
                why=done.tail(20),
                fix="if a package is missing, lock again: kiln lock " + pins.stack,
            )
        sha256 = store.add_made(out)
    store.remember(key, sha256)
    return sha256


def _write_repository(folder: Path, pins: Pins, debs: tuple[Deb, ...], store: Store) -> None:
    """A flat package repository of exactly the locked packages."""
    folder.mkdir()
    stanzas = []
    for deb in debs:
        path = store.check(deb.sha256, deb.label)
        place_file(path, folder / deb.file)
        control = run(["dpkg-deb", "--field", folder / deb.file]).output.strip()
        stanzas.append(f"{control}\nFilename: ./{deb.file}\nSize: {deb.size}\nSHA256: {deb.sha256}\n")
    (folder / "Packages").write_text("\n".join(stanzas), encoding="utf-8")
    # apt finds the essential packages by the release's code name.
    (folder / "Release").write_text(
        f"Codename: {pins.packages.suite}\nSuite: {pins.packages.suite}\nArchitectures: {pins.packages.architecture}\n",
        encoding="utf-8",
    )


def place_file(source: Path, target: Path) -> None:
    """Put a stored blob where a tool wants it: a hard link where the disk allows it, else a copy with the blob's time."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        shutil.copystat(source, target)
