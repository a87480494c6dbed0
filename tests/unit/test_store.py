"""The content store: what is right gets in whole, what is wrong does not get in at all."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from kiln.errors import DiskFullError, HashMismatchError, StoreDamagedError
from kiln.store import BLOB_TIME, Store, content_time, write_whole

DATA = b"what the lock names"
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "download"
    path.write_bytes(DATA)
    return path


def add(store: Store, source: Path, *, sha256: str = SHA256, size: int = len(DATA)) -> Path:
    return store.add(source, sha256=sha256, size=size, label="toy.whl", origin="the index")


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_right_file_is_moved_in(store: Store, source: Path) -> None:
    path = add(store, source)
    assert path == store.path(SHA256)
    assert path.read_bytes() == DATA
    assert not source.exists()
    assert store.has(SHA256, len(DATA))
    assert not store.has(SHA256, len(DATA) + 1)
    assert store.check(SHA256, "toy.whl") == path


def test_blobs_are_read_only_and_have_the_time_of_their_contents(store: Store, source: Path) -> None:
    found = add(store, source).stat()
    assert found.st_mode & 0o777 == 0o444
    assert found.st_mtime == content_time(SHA256)


def test_other_contents_have_another_time_and_none_is_of_the_future() -> None:
    times = [content_time(hashlib.sha256(bytes([number])).hexdigest()) for number in range(256)]
    assert len(set(times)) == 256
    assert all(BLOB_TIME <= moment < 1577836800 for moment in times)


def test_adding_the_same_file_twice_is_fine(store: Store, source: Path) -> None:
    add(store, source)
    source.write_bytes(DATA)
    assert add(store, source).read_bytes() == DATA


def test_other_bytes_are_refused_and_removed(store: Store, source: Path) -> None:
    source.write_bytes(b"what somebody else put there")
    with pytest.raises(HashMismatchError) as caught:
        add(store, source)
    got = hashlib.sha256(b"what somebody else put there").hexdigest()
    message = str(caught.value)
    assert "toy.whl" in message
    assert f"expected sha256 {SHA256}" in message
    assert f"got      sha256 {got}" in message
    assert "from     the index" in message
    assert not source.exists()
    assert files(store.folder) == []


def test_another_size_is_refused(store: Store, source: Path) -> None:
    with pytest.raises(HashMismatchError, match=f"{len(DATA)} bytes"):
        add(store, source, size=len(DATA) + 1)
    assert not source.exists()
    assert files(store.folder) == []


def test_a_flipped_byte_is_found_and_the_file_removed(store: Store, source: Path) -> None:
    path = add(store, source)
    path.chmod(0o644)
    path.write_bytes(b"W" + DATA[1:])
    with pytest.raises(StoreDamagedError) as caught:
        store.check(SHA256, "toy.whl")
    assert "toy.whl" in caught.value.what
    assert SHA256 in caught.value.why
    assert not path.exists()


def test_a_missing_file_is_damage_too(store: Store) -> None:
    with pytest.raises(StoreDamagedError, match="no file"):
        store.check(SHA256, "toy.whl")


def test_a_file_from_another_disk_is_copied_in(store: Store, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_stat = Path.stat

    def stat(path: Path, **options: bool) -> os.stat_result:
        found = real_stat(path, **options)
        if path != source:
            return found
        values = list(found)
        values[2] += 1  # st_dev
        return os.stat_result(values)

    monkeypatch.setattr(Path, "stat", stat)
    assert add(store, source).read_bytes() == DATA
    assert not source.exists()
    assert files(store.folder) == [store.path(SHA256)]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_and_leaves_no_part(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(_path: Path, _target: Path) -> Path:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(DiskFullError) as caught:
            add(store, source)
    assert str(store.folder) in caught.value.what
    assert "KILN_STATE" in caught.value.fix
    assert files(store.folder) == []
    assert not store.has(SHA256, len(DATA))


def test_other_troubles_of_the_disk_stay_what_they_are(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(_path: Path, _target: Path) -> Path:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(Path, "replace", denied)
    with pytest.raises(PermissionError):
        add(store, source)


@pytest.mark.parametrize("what", ["scratch", "remember", "write_whole"])
def test_a_disk_too_full_for_a_folder_is_said_too(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    add(store, source)
    actions = {
        "scratch": lambda: store.scratch().__enter__(),
        "remember": lambda: store.remember("key", SHA256),
        "write_whole": lambda: write_whole(store.folder / "new" / "file", "text"),
    }

    def full(_path: Path, *_args: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(DiskFullError):
        actions[what]()


def test_what_was_made_is_remembered_by_its_key(store: Store, source: Path) -> None:
    assert store.made("key") is None
    assert store.add_made(source) == SHA256
    store.remember("key", SHA256)
    assert store.made("key") == SHA256
    store.path(SHA256).unlink()
    assert store.made("key") is None


@pytest.mark.parametrize("note", ["", "one", "one two", "\x00"])
def test_a_damaged_note_is_as_good_as_none(store: Store, note: str) -> None:
    (store.folder / "made").mkdir(parents=True)
    (store.folder / "made" / "key").write_text(note)
    assert store.made("key") is None


def test_working_folders_go_even_when_the_work_fails(store: Store) -> None:
    def work() -> None:
        with store.scratch() as folder:
            folders.append(folder)
            (folder / "part").write_text("half")
            raise RuntimeError

    folders: list[Path] = []
    with pytest.raises(RuntimeError):
        work()
    assert [folder.exists() for folder in folders] == [False]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_whole(path, "old")

    def full(_path: Path, _target: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(DiskFullError):
            write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
