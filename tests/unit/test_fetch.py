"""Fetching: only what is missing, in small groups, the user's own index first, and the wrong file named alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import kiln.fetch
from kiln.console import Console
from kiln.errors import FetchError, HashMismatchError, KilnError
from kiln.fetch import GROUP_BYTES, GROUP_FILES, _groups, fetch
from kiln.lockentries import Deb, Wheel
from kiln.lockfile import Lock
from kiln.pins import Pins
from kiln.store import Store


def wheel(number: int, *, index: str = "", size: int = 0) -> Wheel:
    """A wheel whose bytes are its file name."""
    file = f"toy{number}-1-py3-none-any.whl"
    return Wheel("app", f"toy{number}", "1", file, hashlib.sha256(file.encode()).hexdigest(), size or len(file), index)


class Pip:
    """Stands in for ``kiln.wheels.download``: writes the files, or fails as it does."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], str]] = []
        self.wrong: set[str] = set()
        self.absent: set[str] = set()
        self.changed: set[str] = set()

    def download(self, _pins: Pins, wheels: Sequence[Wheel], folder: Path, index: str = "") -> dict[str, Path]:
        self.calls.append(([one.name for one in wheels], index))
        folder.mkdir(parents=True, exist_ok=True)
        for one in wheels:
            if one.name in self.wrong:
                raise HashMismatchError(f"{one.label} is not the file that the lock names")
            if one.name in self.absent and not index:
                raise FetchError(f"pip could not download {', '.join(other.label for other in wheels)}")
        for one in wheels:
            (folder / one.file).write_bytes(b"changed" if one.name in self.changed else one.file.encode())
        return {one.sha256: folder / one.file for one in wheels}


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Pip:
    fake = Pip()
    monkeypatch.setattr(kiln.fetch, "download", fake.download)
    return fake


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def run(pins: Pins, wheels: Sequence[Wheel], store: Store) -> kiln.fetch.Fetched:
    return fetch(
        pins, Lock(pins.stack, pins.sha256, (), tuple(wheels)), store, store.folder / "apt", Console(quiet=True)
    )


def test_what_is_missing_is_fetched_and_then_nothing(toy_pins: Pins, pip: Pip, store: Store) -> None:
    wheels = [wheel(number) for number in range(5)]
    done = run(toy_pins, wheels, store)
    assert (done.new_files, done.files) == (5, 5)
    assert done.new_bytes == done.size == sum(one.size for one in wheels)
    pip.calls.clear()
    assert run(toy_pins, wheels, store).new_files == 0
    assert pip.calls == []


def test_only_what_is_missing_is_asked_for(toy_pins: Pins, pip: Pip, store: Store) -> None:
    wheels = [wheel(number) for number in range(5)]
    run(toy_pins, wheels[:3], store)
    pip.calls.clear()
    run(toy_pins, wheels, store)
    assert sorted(name for names, _ in pip.calls for name in names) == ["toy3", "toy4"]


def test_a_file_of_another_size_in_the_store_is_fetched_anew(toy_pins: Pins, pip: Pip, store: Store) -> None:
    one = wheel(1)
    run(toy_pins, [one], store)
    store.path(one.sha256).chmod(0o644)
    store.path(one.sha256).write_bytes(b"short")
    assert run(toy_pins, [one], store).new_files == 1
    assert store.check(one.sha256, one.label)


def test_one_wheel_in_two_components_is_fetched_once(toy_pins: Pins, pip: Pip, store: Store) -> None:
    assert run(toy_pins, [wheel(1), replace(wheel(1), component="tools")], store).files == 1
    assert len(pip.calls) == 1


def test_groups_hold_so_many_files_and_bytes_of_one_index() -> None:
    wheels = [wheel(number, size=1) for number in range(30)]
    wheels += [wheel(100 + number, size=GROUP_BYTES // 3) for number in range(7)]
    wheels += [wheel(200, size=GROUP_BYTES * 5), wheel(300, index="extra", size=1)]
    groups = list(_groups(wheels))
    assert sorted(one.file for group in groups for one in group) == sorted(one.file for one in wheels)
    for group in groups:
        assert len(group) <= GROUP_FILES
        assert len(group) == 1 or sum(one.size for one in group) <= GROUP_BYTES
        assert len({one.index for one in group}) == 1


def test_groups_do_not_depend_on_the_order_of_the_lock() -> None:
    wheels = [wheel(number, size=number % 7 + 1) for number in range(40)]
    assert list(_groups(wheels)) == list(_groups(wheels[::-1]))


def test_one_wrong_wheel_is_named_and_the_right_ones_are_kept(toy_pins: Pins, pip: Pip, store: Store) -> None:
    wheels = [wheel(number) for number in range(5)]
    pip.wrong = {"toy4"}
    with pytest.raises(HashMismatchError, match=r"^error: toy4-1-py3-none-any\.whl is not"):
        run(toy_pins, wheels, store)
    assert [store.has(one.sha256, one.size) for one in wheels] == [True, True, True, True, False]


def test_bytes_that_pip_let_pass_are_compared_again(toy_pins: Pins, pip: Pip, store: Store) -> None:
    pip.changed = {"toy1"}
    with pytest.raises(HashMismatchError) as caught:
        run(toy_pins, [wheel(1)], store)
    assert wheel(1).sha256 in caught.value.why
    assert not store.path(wheel(1).sha256).exists()


def test_the_extra_index_is_asked_second_and_only_where_it_is_needed(toy_pins: Pins, pip: Pip, store: Store) -> None:
    pip.absent = {"toy2"}
    run(toy_pins, [wheel(1, index="extra"), wheel(2, index="extra")], store)
    url = dict(toy_pins.indexes)["extra"]
    assert pip.calls[0][1] == ""
    assert [names for names, index in pip.calls if index == url] == [["toy2"]]
    assert pip.calls.index((["toy2"], "")) < pip.calls.index((["toy2"], url))


def test_a_wheel_without_an_extra_index_is_not_looked_for_there(toy_pins: Pins, pip: Pip, store: Store) -> None:
    pip.absent = {"toy2"}
    with pytest.raises(FetchError, match="toy2"):
        run(toy_pins, [wheel(1), wheel(2)], store)
    assert {index for _, index in pip.calls} == {""}
    assert store.path(wheel(1).sha256).is_file()


def test_a_wrong_file_says_more_than_a_broken_connection(toy_pins: Pins, pip: Pip, store: Store) -> None:
    pip.wrong, pip.absent = {"toy1"}, {"toy2"}
    with pytest.raises(KilnError):
        run(toy_pins, [wheel(1, size=GROUP_BYTES), wheel(2, size=GROUP_BYTES)], store)
    assert list((store.folder).glob("tmp-*")) == []


def test_a_wheel_that_is_being_locked_is_taken_at_its_size(toy_pins: Pins, pip: Pip, store: Store) -> None:
    run(toy_pins, [replace(wheel(1), size=0)], store)
    assert kiln.fetch.sizes(store, [wheel(1)]) == {wheel(1).sha256: wheel(1).size}


class FakeApt:
    """Stands in for ``kiln.apt.Apt``: brings packages whose bytes are their names, except for one."""

    def __init__(self, _folder: Path, suite: str, architecture: str, *, sources: str) -> None:
        assert (suite, architecture) == ("bookworm", "amd64")
        assert "bookworm" in sources

    def update(self, *, frozen: bool) -> None:
        assert frozen

    def download(self, debs: Sequence[Deb], folder: Path) -> list[Path]:
        folder.mkdir(parents=True)
        for deb in debs:
            if deb.name != "absent":
                path = folder / f"{deb.name}_{deb.version.replace(':', '%3a')}_{deb.architecture}.deb"
                path.write_bytes(b"other bytes" if deb.name == "changed" else deb.name.encode())
        return sorted(folder.glob("*.deb"))


def deb(name: str) -> Deb:
    return Deb(
        name, "1:2.0-1", "amd64", f"pool/{name}_2.0-1_amd64.deb", hashlib.sha256(name.encode()).hexdigest(), len(name)
    )


@pytest.mark.parametrize(("other", "error"), [("changed", HashMismatchError), ("absent", FetchError)])
def test_a_package_that_is_wrong_or_missing_is_named(
    toy_pins: Pins, store: Store, monkeypatch: pytest.MonkeyPatch, other: str, error: type[KilnError]
) -> None:
    monkeypatch.setattr(kiln.fetch, "Apt", FakeApt)
    with pytest.raises(error, match=f"{other} 1:2.0-1 \\(amd64\\)"):
        fetch(toy_pins, Lock("toy", "", (deb("bash"), deb(other)), ()), store, store.folder, Console(quiet=True))
    assert store.has(deb("bash").sha256, 4)
    assert not store.path(deb(other).sha256).exists()
