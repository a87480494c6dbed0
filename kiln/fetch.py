"""The stage *fetch*: lock in, content store filled. The only stage, besides lock, that talks to the package registries.

Downloads go in small groups, several at once; each file that arrived and is right is in the store at once, so an
interrupted fetch goes on where it stopped. The registries' own clients (pip, apt) do the talking.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import requests

from kiln.apt import Apt, sources_for
from kiln.canonical import digest_of, sha256_file
from kiln.config import Config
from kiln.console import Console, Meter, megabytes
from kiln.errors import FetchError, HashMismatchError, KilnError, UpstreamError
from kiln.git import GitCache
from kiln.lockentries import Archive, Deb, Entry, Git, Wheel
from kiln.lockfile import Lock
from kiln.pins import Pins
from kiln.room import fetch_need, require_room
from kiln.store import BLOB_TIME, Store, disk_full_is_an_error
from kiln.wheels import download

# One pip costs about half a second to start; a group this large makes that cheap, and losing one costs little.
GROUP_FILES = 12
GROUP_BYTES = 48_000_000
# Two pips saturate two cores (unpacking metadata, hashing); more hosts gain nothing from more than a handful.
WORKERS = max(2, min(6, os.cpu_count() or 2))


@dataclass(frozen=True)
class Fetched:
    """What a fetch did: files and bytes that were missing and came, and all that the lock names."""

    new_files: int
    new_bytes: int
    files: int
    size: int


NOTHING_SET = Config((), ())


def fetch(
    pins: Pins, lock: Lock, store: Store, apt_folder: Path, console: Console, config: Config = NOTHING_SET
) -> Fetched:
    """Bring every input of the lock into the store. Where nothing is missing, nothing is asked of the network.

    Wheels whose size is 0 are being locked just now: they are taken at the size they have (see ``sizes``).
    Raises DiskFullError before anything is asked for where there is no room for it; HashMismatchError, FetchError, DiskFullError later, and what
    arrived before stays in the store.
    """
    entries = {entry.sha256: entry for entry in lock.entries()}
    missing = missing_of(lock, store)
    size = sum(entry.size for entry in entries.values())
    if not missing:
        console.step(f"fetched already: {len(entries)} files, {megabytes(size)}, nothing to download")
        return Fetched(0, 0, len(entries), size)
    missing_size = sum(entry.size for entry in missing) if all(entry.size for entry in missing) else 0
    console.step(
        f"fetching {len(missing)} of {len(entries)} files" + (f", {megabytes(missing_size)}" if missing_size else "")
    )
    require_room([fetch_need(store.folder, missing)])
    meter = Meter(console, "fetched", len(missing), missing_size)
    with store.scratch() as scratch, disk_full_is_an_error(store.folder), ThreadPoolExecutor(WORKERS) as pool:
        jobs: list[Future[None]] = []
        debs = [entry for entry in missing if isinstance(entry, Deb)]
        if debs:
            jobs.append(pool.submit(_fetch_debs, pins, debs, store, apt_folder, scratch / "debs", meter, config))
        archives = [entry for entry in missing if isinstance(entry, Archive)]
        jobs += [pool.submit(_fetch_archive, config, archive, store, scratch, meter) for archive in archives]
        wheels = [entry for entry in missing if isinstance(entry, Wheel)]
        for number, group in enumerate(_groups(wheels)):
            jobs.append(pool.submit(_fetch_wheels, pins, group, store, scratch / str(number), meter))
        finish(jobs, pool)
    return Fetched(len(missing), sum(store.path(entry.sha256).stat().st_size for entry in missing), len(entries), size)


def finish(jobs: Sequence[Future[None]], pool: ThreadPoolExecutor) -> None:
    """Wait for all jobs; at the first failure drop those that have not begun and raise it."""
    try:
        done, _ = wait(jobs, return_when=FIRST_EXCEPTION)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    failed = [error for job in done if (error := job.exception())]
    if failed:
        pool.shutdown(wait=True, cancel_futures=True)
        # A wrong file says more than the connection that broke beside it.
        raise min(
            failed, key=lambda error: (not isinstance(error, HashMismatchError), not isinstance(error, KilnError))
        )


def sizes(store: Store, wheels: Sequence[Wheel]) -> dict[str, int]:
    """The sizes in bytes of stored wheels, by sha256."""
    return {wheel.sha256: store.path(wheel.sha256).stat().st_size for wheel in wheels}


def missing_of(lock: Lock, store: Store) -> list[Entry]:
    """The files of a lock that the store has not, each once."""
    entries = {entry.sha256: entry for entry in lock.entries()}
    return [entry for entry in entries.values() if not _stored(store, entry)]


def _stored(store: Store, entry: Deb | Wheel | Archive) -> bool:
    return store.has(entry.sha256, entry.size) if entry.size else store.path(entry.sha256).is_file()


def _groups(wheels: Sequence[Wheel]) -> Iterator[list[Wheel]]:
    """Wheels in groups for one pip each: of one index, at most so many files and bytes; the largest first."""
    for index in sorted({wheel.index for wheel in wheels}):
        group: list[Wheel] = []
        for wheel in sorted(
            (wheel for wheel in wheels if wheel.index == index), key=lambda wheel: (-wheel.size, wheel.file)
        ):
            if group and (len(group) == GROUP_FILES or sum(other.size for other in group) + wheel.size > GROUP_BYTES):
                yield group
                group = []
            group.append(wheel)
        if group:
            yield group


def _fetch_wheels(pins: Pins, wheels: list[Wheel], store: Store, folder: Path, meter: Meter) -> None:
    try:
        paths = download(pins, wheels, folder)
    except (FetchError, HashMismatchError) as first:
        if len(wheels) > 1:
            # One bad file fails pip's whole call: ask for each alone, so that the right ones get in and the bad one is named.
            for number, wheel in enumerate(wheels):
                _fetch_wheels(pins, [wheel], store, folder / str(number), meter)
            return
        if not wheels[0].index:
            raise
        # The index from the pins comes second: the user's own may be a mirror that has the file, or the only way out.
        try:
            paths = download(pins, wheels, folder / "index", dict(pins.indexes)[wheels[0].index])
        except FetchError:
            # A wrong file in the user's own index says more than an extra index that does not answer.
            if isinstance(first, HashMismatchError):
                raise first from None
            raise
    for wheel in wheels:
        path = paths.get(wheel.sha256)
        if path is None:
            raise FetchError(
                f"pip downloaded something else than {wheel.label}",
                why=f"in its folder: {', '.join(sorted(p.name for p in folder.glob('*.whl')))}",
            )
        size = wheel.size or path.stat().st_size
        store.add(path, sha256=wheel.sha256, size=size, label=wheel.label, origin="pip's configured index")
        meter.add(1, size)


def _fetch_debs(
    pins: Pins, debs: list[Deb], store: Store, apt_folder: Path, folder: Path, meter: Meter, config: Config
) -> None:
    wanted_from = pins.packages
    sources = sources_for(wanted_from.suite, wanted_from.distribution, dict(config.apt_sources))
    apt = Apt(apt_folder / wanted_from.suite, wanted_from.suite, wanted_from.architecture, sources=sources)
    apt.update(frozen=True)
    wanted = {deb.sha256: deb for deb in debs}
    for path in apt.download(debs, folder):
        found = sha256_file(path)
        deb = wanted.pop(found, None) or _same_package(path, wanted)
        if deb is not None:
            store.add(path, sha256=deb.sha256, size=deb.size, label=deb.label, origin="apt's configured sources")
            meter.add(1, deb.size)
    if wanted:
        raise FetchError("apt did not bring all packages", why="\n".join(deb.label for deb in wanted.values()))


def _same_package(path: Path, wanted: dict[str, Deb]) -> Deb | None:
    """The locked package that a file with other bytes claims to be: by its file name, which apt makes of name and version."""
    name, version, architecture = path.stem.replace("%3a", ":").rsplit("_", 2)
    return next(
        (deb for deb in wanted.values() if (deb.name, deb.version, deb.architecture) == (name, version, architecture)),
        None,
    )


def download_archive(config: Config, url: str, path: Path) -> None:
    """Download one file, from a mirror where one is set. Raises UpstreamError where nobody answers with it."""
    place = config.mirrored(url)
    if "://" not in place:
        if not Path(place).is_file():
            raise UpstreamError(f"the mirror has no {url}", why=f"{place} is no file")
        path.write_bytes(Path(place).read_bytes())
        return
    try:
        with requests.get(place, stream=True, timeout=(10, 120)) as answer:
            answer.raise_for_status()
            with path.open("wb") as stream:
                for block in answer.iter_content(1 << 20):
                    stream.write(block)
    except requests.RequestException as error:
        raise UpstreamError(f"{place} could not be downloaded", why=short_reason(error)) from error


def _fetch_archive(config: Config, archive: Archive, store: Store, folder: Path, meter: Meter) -> None:
    path = folder / f"{archive.component}-{archive.name}"
    try:
        download_archive(config, archive.url, path)
    except UpstreamError as error:
        raise FetchError(error.what, why=error.why, fix=error.hint) from error
    store.add(path, sha256=archive.sha256, size=archive.size, label=archive.label, origin=config.mirrored(archive.url))
    meter.add(1, archive.size)


def source_key(git: Git) -> str:
    """Under which key the store remembers the tar of a source."""
    return digest_of(["source", 1, git.digest])


def fetch_sources(lock: Lock, store: Store, cache: GitCache, console: Console) -> int:
    """Bring every source of the lock into the store, each as a tar whose bytes depend on its files alone; returns how many were missing.

    Raises UpstreamError where a repository does not answer, SourceError where it has not what the lock names.
    """
    missing = [git for git in lock.gits if store.made(source_key(git)) is None]
    for number, git in enumerate(missing, 1):
        console.step(f"fetching source {number} of {len(missing)}: {git.label}, {len(git.submodules)} submodules")
        with store.scratch() as scratch, disk_full_is_an_error(store.folder):
            cache.export(git.source, scratch / "source", git.left_out)
            pack(scratch / "source", scratch / "source.tar")
            store.remember(source_key(git), store.add_made(scratch / "source.tar"))
    return len(missing)


def pack(folder: Path, target: Path) -> None:
    """A tar of ``folder``: names in order, one time, no owner, modes 0644 and 0755, so that equal trees give equal bytes."""
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape") as tar:
        for name, path in sorted((os.fsencode(path.relative_to(folder)), path) for path in folder.rglob("*")):
            # Names are bytes; what this machine's locale makes of them must not reach the archive.
            entry = tar.gettarinfo(path, arcname=name.decode("utf-8", "surrogateescape"))
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            entry.mtime = BLOB_TIME
            entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
            # A hard link would name another file's place; a copy says the same.
            if path.is_file() and not path.is_symlink():
                entry.type, entry.linkname, entry.size = tarfile.REGTYPE, "", path.stat().st_size
                with path.open("rb") as stream:
                    tar.addfile(entry, stream)
            else:
                tar.addfile(entry)


def short_reason(error: Exception) -> str:
    """What went wrong with a request, without the wrapping of the library."""
    text = str(error.args[0] if error.args else error)
    found = re.search(r"(Failed to resolve '[^']+'|Connection refused|timed out|certificate verify failed[^)]*)", text)
    return found[1] if found else text[:200]
