"""Bundles: the same lock gives the same bytes, and nothing but these bytes gets into a store."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kiln.room
from kiln import bundle
from kiln.bundle import Index, make_index, read_bundle
from kiln.bundletar import INDEX, header_of, read_head, write_bundle
from kiln.cli import run
from kiln.console import Console
from kiln.errors import (
    BundleForeignError,
    BundleInvalidError,
    DiskFullError,
    FetchError,
    HashMismatchError,
    SourceError,
    StoreDamagedError,
)
from kiln.fetch import source_key
from kiln.lockentries import Git
from kiln.lockfile import Lock, dump_lock
from kiln.pins import Pins
from kiln.store import Store
from kiln.workspace import Workspace

PROJECT = Path(__file__).resolve().parents[2]
QUIET = Console(quiet=True)
GIT = Git("app", "https://example.invalid/app", "v1", "1" * 40, "2" * 40)


def read_index(stream: BinaryIO) -> Index:
    return read_head(stream, {bundle.KIND: bundle.parsed})


def blob(store: Store, data: bytes) -> tuple[str, int]:
    sha256 = hashlib.sha256(data).hexdigest()
    store.path(sha256).parent.mkdir(parents=True, exist_ok=True)
    store.path(sha256).write_bytes(data)
    return sha256, len(data)


@dataclass(frozen=True)
class Site:
    """A project whose locked inputs are in its store: files of all sizes that matter in a tar, and a source."""

    workspace: Workspace
    pins: Pins
    lock: Lock
    store: Store

    @property
    def index(self) -> Index:
        return make_index(self.workspace, self.pins, self.lock, self.store)

    def bundle(self, out: Path) -> bytes:
        write_bundle(self.index, self.store, out, QUIET)
        return out.read_bytes()

    def read(self, data: bytes, store: Store) -> object:
        stream = io.BytesIO(data)
        return read_bundle(self.workspace, self.pins, self.lock, read_index(stream), stream, store, QUIET)

    def kiln(self, state: Path, *words: str | Path) -> int:
        return run(["--quiet", "--root", str(self.workspace.root), "--state", str(state), *map(str, words)])


@pytest.fixture
def site(toy: Workspace, toy_pins: Pins, toy_lock: Lock) -> Site:
    store = Store(toy.state / "store")
    sizes = [0, 1, 511, 512, 513, 70_000, 1 << 20, (1 << 20) + 1]
    entries = [blob(store, bytes([number]) * sizes[number % 8] + bytes([number])) for number in range(40)]
    debs = tuple(
        replace(deb, sha256=sha256, size=size) for deb, (sha256, size) in zip(toy_lock.debs, entries, strict=False)
    )
    wheels = tuple(
        replace(wheel, sha256=sha256, size=size)
        for wheel, (sha256, size) in zip(toy_lock.wheels, entries[len(debs) :], strict=False)
    )
    lock = replace(toy_lock, debs=debs, wheels=wheels, gits=(GIT,))
    store.remember(source_key(GIT), blob(store, b"a source's tar")[0])
    toy.lock_file("toy").write_text(dump_lock(lock))
    return Site(toy, toy_pins, lock, store)


def blobs(store: Store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (store.folder / "sha256").glob("*/*")}


def test_a_bundle_holds_what_the_lock_names_and_a_store_gets_all_of_it(site: Site, tmp_path: Path) -> None:
    data = site.bundle(tmp_path / "out.tar")
    other = Store(tmp_path / "other")
    done = site.read(data, other)
    assert (done.new_files, done.files) == (len(site.index.members), len(site.index.members))  # type: ignore[attr-defined]
    named = {entry.sha256 for entry in site.lock.entries()} | {site.store.made(source_key(GIT))}
    assert set(blobs(other)) == named
    assert all(hashlib.sha256(text).hexdigest() == name for name, text in blobs(other).items())
    assert other.made(source_key(GIT)) == site.store.made(source_key(GIT))


def test_the_same_lock_gives_the_same_bytes(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = site.bundle(tmp_path / "a.tar")
    other = Store(tmp_path / "other")
    site.read(first, other)
    os.utime(other.path(site.lock.debs[0].sha256))
    monkeypatch.setattr(os, "umask", lambda _: 0)
    again = replace(
        site, store=other, lock=replace(site.lock, wheels=site.lock.wheels[::-1], debs=site.lock.debs[::-1])
    )
    assert again.bundle(tmp_path / "b.tar") == first


def test_it_is_a_tar_like_any_other(site: Site, tmp_path: Path) -> None:
    site.bundle(tmp_path / "out.tar")
    with tarfile.open(tmp_path / "out.tar") as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == [INDEX, *(member.name for member in site.index.members)]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.type) for m in members} == {
        (0, 0, 0, "", "", 0o644, b"0")
    }
    listed = subprocess.run(["tar", "-tf", tmp_path / "out.tar"], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == [member.name for member in members]
    assert listed.stderr == ""


@pytest.mark.parametrize("size", [0, 8**11 - 1, 8**11, 3 << 40])
def test_sizes_beyond_eight_gigabytes_are_written_as_tar_reads_them(size: int) -> None:
    found = tarfile.TarInfo.frombuf(header_of("sha256/x", size), "ascii", "strict")
    assert (found.name, found.size) == ("sha256/x", size)


def test_what_the_store_has_is_passed_over(site: Site, tmp_path: Path) -> None:
    data = site.bundle(tmp_path / "out.tar")
    cut = data[: len(data) // 2]
    other = Store(tmp_path / "other")
    with pytest.raises(BundleInvalidError, match="cut off"):
        site.read(cut, other)
    before = {path: path.stat().st_ino for path in (other.folder / "sha256").glob("*/*")}
    assert before
    done = site.read(data, other)
    assert done.new_files == len(site.index.members) - len(before)  # type: ignore[attr-defined]
    assert {path: path.stat().st_ino for path in before} == before
    assert site.read(data, other).new_files == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("where", [0, 1, 100, 511, 512, 600, 2048, -1, -512, -1024, -1025, -1536])
def test_a_bundle_that_is_cut_off_anywhere_is_refused(site: Site, tmp_path: Path, where: int) -> None:
    data = site.bundle(tmp_path / "out.tar")
    full = Store(tmp_path / "full")
    site.read(data, full)
    for store in (Store(tmp_path / "empty"), full):
        with pytest.raises(BundleInvalidError):
            site.read(data[:where], store)


def test_wrong_bytes_are_named_and_not_stored(site: Site, tmp_path: Path) -> None:
    data = bytearray(site.bundle(tmp_path / "out.tar"))
    member = max(site.index.members, key=lambda one: one.size)
    place = data.index(member.name.encode(), 512 + len(site.index.text())) + 512
    data[place] ^= 1
    other = Store(tmp_path / "other")
    with pytest.raises(HashMismatchError) as caught:
        site.read(bytes(data), other)
    assert member.label in caught.value.what
    assert "the bundle" in caught.value.why
    assert member.sha256 not in blobs(other)
    assert not list(other.folder.glob("tmp-*"))


def put(data: bytes, site: Site, name: str, content: bytes, kind: bytes = b"0") -> bytes:
    """The bundle with another member in the place of its first file, as an attacker would write it."""
    header = bytearray(header_of("x", len(content)))
    header[:100] = name.encode().ljust(100, b"\0")
    header[156:157] = kind
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    start = data.index(b"sha256/", 512 + len(site.index.text()))
    return data[:start] + bytes(header) + content.ljust(-(-len(content) // 512) * 512, b"\0") + data[start:]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../../etc/passwd", b"0"),
        ("/etc/passwd", b"0"),
        ("sha256/" + "0" * 64, b"0"),
        ("index.json", b"0"),
        ("sha256/link", b"2"),
        ("sha256/hard", b"1"),
        ("sha256/device", b"3"),
        ("././@PaxHeader", b"x"),
        ("././@LongLink", b"L"),
    ],
)
def test_a_member_that_is_not_in_the_index_is_refused_whatever_it_is_called(
    site: Site, tmp_path: Path, name: str, kind: bytes
) -> None:
    data = put(site.bundle(tmp_path / "out.tar"), site, name, b"planted", kind)
    other = Store(tmp_path / "other")
    with pytest.raises(BundleInvalidError) as caught:
        site.read(data, other)
    assert name in caught.value.why
    assert not any(b"planted" in text for text in blobs(other).values())
    assert {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")} <= {"out.tar", "other", "toy", "state"}


def test_something_after_the_end_is_refused(site: Site, tmp_path: Path) -> None:
    data = site.bundle(tmp_path / "out.tar")
    with pytest.raises(BundleInvalidError, match="no bundle holds"):
        site.read(data + b"x", Store(tmp_path / "other"))


def with_index(data: bytes, site: Site, **changed: object) -> bytes:
    """The bundle with another index, in the right form."""
    old, new = site.index.text(), json.loads(site.index.text())
    new |= changed
    text = (json.dumps(new, indent=1, sort_keys=True) + "\n").encode()
    end = 512 + -(-len(old) // 512) * 512
    return header_of(INDEX, len(text)) + text.ljust(-(-len(text) // 512) * 512, b"\0") + data[end:]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"kind": "another"}, "of the kind 'another'"),
        ({"schema": 1}, "schema '1'"),
        ({"members": "none"}, "cannot be read"),
        ({"members": [{"name": "sha256/x", "sha256": "x", "size": 1, "label": "", "source": ""}]}, "cannot be read"),
        ({"files": []}, "cannot be read"),
        ({"files": {"\x1b[2J": "0" * 64}}, "no bundle holds"),
        ({"more": 1}, "not as kiln writes it"),
        ({"members": []}, "something else than its lock names"),
    ],
)
def test_an_index_of_another_kind_or_form_is_refused(
    site: Site, tmp_path: Path, changed: dict[str, object], words: str
) -> None:
    data = with_index(site.bundle(tmp_path / "out.tar"), site, **changed)
    with pytest.raises(BundleInvalidError, match=words):
        site.read(data, Store(tmp_path / "other"))


@pytest.mark.parametrize("change", ["twice", "foreign", "renamed", "order", "no source"])
def test_an_index_that_is_not_what_the_lock_names_is_refused(site: Site, tmp_path: Path, change: str) -> None:
    data = site.bundle(tmp_path / "out.tar")
    members = json.loads(site.index.text())["members"]
    if change == "twice":
        members.append(members[0])
    elif change == "foreign":
        members.append({"name": "sha256/" + "f" * 64, "sha256": "f" * 64, "size": 1, "label": "x", "source": ""})
    elif change == "renamed":
        members[0]["label"] = "\x1b[2Jharmless"
    elif change == "order":
        members.reverse()
    else:
        members = [one for one in members if not one["source"]]
    with pytest.raises(BundleInvalidError, match="something else than its lock names") as caught:
        site.read(with_index(data, site, members=members), Store(tmp_path / "other"))
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"x", bytes(512), bytes(5120), b"PK\x03\x04" + bytes(2000)])
def test_what_is_no_bundle_is_said_to_be_none(site: Site, tmp_path: Path, data: bytes) -> None:
    with pytest.raises(BundleInvalidError, match="this file is no bundle"):
        site.read(data, Store(tmp_path / "other"))


def test_an_index_that_would_fill_the_memory_is_not_read(site: Site, tmp_path: Path) -> None:
    with pytest.raises(BundleInvalidError, match="no bundle"):
        site.read(header_of(INDEX, 1 << 30), Store(tmp_path / "other"))


def test_a_bundle_of_another_lock_is_refused_and_nothing_is_stored(site: Site, tmp_path: Path) -> None:
    data = site.bundle(tmp_path / "out.tar")
    other = Store(tmp_path / "other")
    bumped = replace(site.lock, debs=site.lock.debs[1:])
    with pytest.raises(BundleForeignError) as caught:
        replace(site, lock=bumped).read(data, other)
    assert site.lock.sha256 in caught.value.why
    assert bumped.sha256 in caught.value.why
    assert blobs(other) == {}


def test_a_source_that_was_fetched_here_is_not_replaced(site: Site, tmp_path: Path) -> None:
    data = site.bundle(tmp_path / "out.tar")
    other = Store(tmp_path / "other")
    own = blob(other, b"another tar")[0]
    other.remember(source_key(GIT), own)
    with pytest.raises(BundleInvalidError, match="not the one that was fetched here"):
        site.read(data, other)
    assert other.made(source_key(GIT)) == own


def _accepted(site: Site, data: bytes, store: Store) -> bool:
    try:
        site.read(data, store)
    except (BundleInvalidError, BundleForeignError, HashMismatchError):
        return False
    return True


@pytest.fixture
def small(site: Site, tmp_path: Path) -> tuple[Site, bytes]:
    """A bundle of small files, in which most places are headers, the index or padding."""
    lock = replace(site.lock, debs=tuple(one for one in site.lock.debs if one.size < 1000), wheels=())
    own = replace(site, lock=lock)
    return own, own.bundle(tmp_path / "small.tar")


def test_no_changed_byte_gets_in(small: tuple[Site, bytes]) -> None:
    site, data = small
    checksums = json.loads(site.index.text())["files"].values()
    harmless = {
        place for text in checksums for place in range(data.index(text.encode()), data.index(text.encode()) + 64)
    }

    @given(st.integers(0, len(data) - 1), st.integers(1, 255))
    def changed(place: int, difference: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            store = Store(Path(folder))
            wrong = data[:place] + bytes([data[place] ^ difference]) + data[place + 1 :]
            # The checksums of the pins and the lock as files are for a person to know: what they mean is compared by the two others.
            assert not _accepted(site, wrong, store) or place in harmless
            names = {member.sha256 for member in site.index.members}
            assert all(
                name in names and hashlib.sha256(text).hexdigest() == name for name, text in blobs(store).items()
            )

    changed()


def test_a_missing_or_damaged_file_makes_no_bundle(site: Site, tmp_path: Path) -> None:
    wheel = max(site.lock.wheels, key=lambda one: one.size)
    path = site.store.path(wheel.sha256)
    index = site.index
    path.chmod(0o644)
    path.write_bytes(b"x" * wheel.size)
    with pytest.raises(StoreDamagedError, match=wheel.label):
        write_bundle(index, site.store, tmp_path / "out.tar", QUIET)
    with pytest.raises(FetchError, match=wheel.label):
        write_bundle(index, site.store, tmp_path / "out.tar", QUIET)
    assert [one.name for one in tmp_path.iterdir() if "out.tar" in one.name] == []
    (site.store.folder / "made" / source_key(GIT)).unlink()
    with pytest.raises(SourceError):
        assert site.index


def test_what_a_killed_run_left_beside_is_written_over(site: Site, tmp_path: Path) -> None:
    left = tmp_path / ".out.tar.part"
    left.write_bytes(b"half" * 1_000_000)
    assert site.bundle(tmp_path / "out.tar") == site.bundle(tmp_path / "again.tar")
    assert not left.exists()


def test_a_bundle_that_is_killed_while_it_is_written_is_none_and_the_next_is_whole(site: Site, tmp_path: Path) -> None:
    whole, out = site.bundle(tmp_path / "whole.tar"), tmp_path / "out.tar"
    words = [
        "--root",
        str(site.workspace.root),
        "--state",
        str(site.workspace.state),
        "bundle",
        "toy",
        "--out",
        str(out),
    ]
    command = [sys.executable, "-m", "kiln", "--quiet", *words]
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL)
    part, deadline = tmp_path / ".out.tar.part", time.monotonic() + 60
    while not part.exists() and process.poll() is None and time.monotonic() < deadline:
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists() or out.read_bytes() == whole
    assert subprocess.run(command, cwd=PROJECT, stdout=subprocess.DEVNULL, check=False).returncode == 0
    assert out.read_bytes() == whole
    assert not part.exists()


def test_where_there_is_no_room_nothing_is_written(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = site.bundle(tmp_path / "out.tar")
    monkeypatch.setattr(kiln.room.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    for refused in (lambda: site.bundle(tmp_path / "new.tar"), lambda: site.read(data, Store(tmp_path / "other"))):
        with pytest.raises(DiskFullError, match="too little room"):
            refused()
    assert not (tmp_path / "new.tar").exists()
    assert not (tmp_path / "other").exists()


def test_from_one_checkout_to_another_without_a_network(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "toy.tar"
    assert site.kiln(site.workspace.state, "bundle", "toy", "--out", out) == 0
    said = capsys.readouterr().out
    sha256 = hashlib.sha256(out.read_bytes()).hexdigest()
    assert f"sha256 {sha256}" in said
    away = tmp_path / "away"
    assert site.kiln(away, "unbundle", out, "--sha256", "0" * 64) == 21
    assert site.kiln(away, "unbundle", out, "--sha256", sha256) == 0
    assert f"{len(site.index.members)} new" in capsys.readouterr().out
    # No pip, no apt, no git: whatever asked for anything would fail.
    words = ["--json", "--root", str(site.workspace.root), "--state", str(away), "fetch", "toy"]
    environment = {"PATH": "/nowhere", "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [sys.executable, "-m", "kiln", *words], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["new_files"] == 0


def test_another_stack_and_another_lock_are_refused_by_the_command(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "toy.tar"
    data = site.bundle(out)
    out.write_bytes(with_index(data, site, stack="../other"))
    assert site.kiln(tmp_path / "away", "unbundle", out) == 27
    assert "'../other'" in capsys.readouterr().err
    out.write_bytes(data)
    site.workspace.lock_file("toy").write_text(dump_lock(replace(site.lock, gits=())))
    assert site.kiln(tmp_path / "away", "unbundle", out) == 27
    assert not (tmp_path / "away" / "store").exists()


def test_a_comment_in_the_pins_is_told_and_refuses_nothing(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "toy.tar"
    site.bundle(out)
    pins = site.workspace.pins_file("toy")
    pins.write_text(pins.read_text() + "# another\n")
    assert site.kiln(tmp_path / "away", "unbundle", out) == 0
    assert "pins/toy.toml is not the file that it was" in capsys.readouterr().err


@pytest.mark.parametrize("moment", range(4))
def test_killed_at_any_moment_it_goes_on_where_it_stopped(site: Site, tmp_path: Path, moment: int) -> None:
    out, away = tmp_path / "toy.tar", tmp_path / "away"
    site.bundle(out)
    words = ["--quiet", "--root", str(site.workspace.root), "--state", str(away), "unbundle", str(out)]
    process = subprocess.Popen([sys.executable, "-m", "kiln", *words], cwd=PROJECT)
    folder, deadline = away / "store" / "sha256", time.monotonic() + 60
    while len(list(folder.glob("*/*"))) < 3 * moment and process.poll() is None and time.monotonic() < deadline:
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert all(hashlib.sha256(text).hexdigest() == name for name, text in blobs(Store(away / "store")).items())
    assert site.kiln(away, "unbundle", out) == 0
    assert len(blobs(Store(away / "store"))) == len(site.index.members)
    assert not list((away / "store").glob("tmp-*"))
