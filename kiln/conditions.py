"""The conditions under which `kiln repro` builds: what two builds have different, on this machine and inside every build step.

What a step sees (clock, host name, processors, file mode mask) is set where it is made: BuildKit calls ``runc``, and a small program of that name
that comes first on the daemon's path changes the step's configuration (OCI runtime specification, config.json) and hands it on.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kiln.apt import Apt, debian_codename
from kiln.console import Console
from kiln.errors import KilnError
from kiln.process import run

# BuildKit gives every step a /dev of its own in memory; what is mounted there leaves nothing in a layer.
_CLOCK = "/dev/kiln-clock.so"
_RUNC = """#!/bin/sh
# Written by `kiln repro`: changes what a build step sees, then calls the real runc.
set -eu
PATH=${{PATH#*:}}
bundle= before=
for word; do
    [ "$before" = --bundle ] && bundle=$word
    case $word in --bundle=*) bundle=${{word#--bundle=}} ;; esac
    before=$word
done
[ -z "$bundle" ] || sed -i {edits} "$bundle/config.json"
exec {prefix}runc "$@"
"""
# Sparse: what a build takes of it is what it writes.
_IMAGE_BYTES = 200 << 30


@dataclass(frozen=True)
class Conditions:
    """One build's conditions. ``shift`` is added to the clock, in days; ``processors`` is how many a build may use (0: all)."""

    name: str
    timezone: str
    locale: str
    umask: int
    hash_seed: str
    shift: int
    host_name: str
    processors: int
    other_folder: bool
    other_disk: bool

    def described(self) -> dict[str, str]:
        """What is set, for people."""
        return {
            "folder": "a copy of the checkout" if self.other_folder else "the checkout",
            "disk": "a new ext4 of its own" if self.other_disk else "the state folder's",
            "TZ": self.timezone,
            "locale": self.locale,
            "umask": f"{self.umask:03o}",
            "hash seed": self.hash_seed,
            "date": f"{self.shift:+d} days" if self.shift else "today",
            "host name": self.host_name,
            "processors": str(self.processors or os.cpu_count()),
        }


FIRST = Conditions("1", "UTC", "C.UTF-8", 0o022, "0", 0, "kiln-one", 0, other_folder=False, other_disk=False)
SECOND = Conditions("2", "XXX-13:45", "C", 0o077, "4242", 400, "other-host", 1, other_folder=True, other_disk=True)


def fake_clock(tools: Path, console: Console) -> Path:
    """libfaketime, unpacked below ``tools``. Raises FetchError, ResolveError, HostError where it cannot be had."""
    folder = tools / "faketime"
    found = next(folder.rglob("libfaketimeMT.so.1"), None) if folder.is_dir() else None
    if found:
        return found
    console.step("unpacking Debian's libfaketime: the second build has another date")
    codename = debian_codename() or ""
    apt = Apt(tools / "apt-faketime", codename, "amd64")
    apt.update()
    apt.unpack([deb for deb in apt.resolve(["libfaketime"]) if deb.name == "libfaketime"], folder)
    return next(folder.rglob("libfaketimeMT.so.1"))


def write_runc(folder: Path, conditions: Conditions, clock: Path | None) -> Path:
    """The program ``runc`` for a daemon's path; returns the folder that it lies in. ``clock`` must be visible to the daemon under its path."""
    edits = [
        f's|"hostname":"[^"]*"|"hostname":"{conditions.host_name}"|',
        rf's|"user":{{"uid":[0-9]*,"gid":[0-9]*|&,"umask":{conditions.umask}|',
        f's|"env":\\[|&"PYTHONHASHSEED={conditions.hash_seed}",|',
    ]
    if clock:
        variables = {"LD_PRELOAD": _CLOCK, "FAKETIME": f"{conditions.shift:+d}d", "NO_FAKE_STAT": "1"}
        listed = "".join(f'"{name}={value}",' for name, value in variables.items())
        mount = f'{{"destination":"{_CLOCK}","type":"bind","source":"{clock}","options":["bind","ro"]}},'
        edits += [f's|"env":\\[|&{listed}|', f's|{{"destination":"/dev/mqueue"|{mount}&|']
    prefix = f"taskset -c 0-{conditions.processors - 1} " if conditions.processors else ""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "runc"
    program.write_text(
        _RUNC.format(edits=" ".join(f"-e {shlex.quote(edit)}" for edit in edits), prefix=prefix), encoding="utf-8"
    )
    program.chmod(0o755)
    return folder


def host_environment(conditions: Conditions, clock: Path | None) -> dict[str, str]:
    """The variables of the programs that run on this machine itself."""
    found = {
        "TZ": conditions.timezone,
        "LC_ALL": conditions.locale,
        "LANG": conditions.locale,
        "PYTHONHASHSEED": conditions.hash_seed,
    }
    if clock and conditions.shift:
        found |= {"LD_PRELOAD": str(clock), "FAKETIME": f"{conditions.shift:+d}d", "NO_FAKE_STAT": "1"}
    return found


@contextmanager
def disk(folder: Path, wanted: bool, missing: dict[str, str]) -> Iterator[Path]:
    """``folder``, on a file system of its own where that is ``wanted`` and possible: a new ext4 hashes names with another seed, so folders list their
    files in another order. Why it was not possible is put into ``missing``."""
    folder.mkdir(parents=True, exist_ok=True)
    if not wanted:
        yield folder
        return
    image = folder.with_suffix(".ext4")
    try:
        with image.open("wb") as stream:
            stream.truncate(_IMAGE_BYTES)
        made = run(["mkfs.ext4", "-q", "-O", "^has_journal", image])
        mounted = run(["mount", "-o", "loop", image, folder]) if made.code == 0 else made
    except (KilnError, OSError) as error:
        missing["disk"] = str(error).splitlines()[0]
        image.unlink(missing_ok=True)
        yield folder
        return
    if mounted.code != 0:
        missing["disk"] = mounted.tail(1)
        image.unlink(missing_ok=True)
        yield folder
        return
    try:
        yield folder
    finally:
        # A daemon that died left its mounts below; what is still open keeps the disk until it is closed.
        run(["umount", "--recursive", "--lazy", folder])
        image.unlink(missing_ok=True)


def copy_checkout(root: Path, state: Path, target: Path) -> Path:
    """The project's files, without its state folder, in another folder, with the times and the mask of now. Returns ``target``."""
    patterns = shutil.ignore_patterns(".git", ".kiln*", "__pycache__", ".*_cache", ".hypothesis")

    def ignored(folder: str, names: list[str]) -> set[str]:
        return patterns(folder, names) | {name for name in names if Path(folder, name) == state}

    shutil.copytree(root, target, ignore=ignored, copy_function=shutil.copyfile, symlinks=True)
    for path in target.rglob("*"):
        source = root / path.relative_to(target)
        if path.is_file() and not path.is_symlink():
            # Who checks out under this mask gets these modes; whether a file is executable is git's to say.
            path.chmod(0o700 if source.stat().st_mode & 0o100 else 0o600)
    return target
