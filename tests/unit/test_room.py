"""Room on the disk: asked for before anything starts, told with numbers, and refused where it is not there."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

import kiln.room
from kiln.cli import run
from kiln.engine import Engine
from kiln.errors import DiskFullError
from kiln.fetch import missing_of
from kiln.lockfile import Lock
from kiln.pins import Pins
from kiln.plan import ROOTFS
from kiln.records import Built, Layer, components_of
from kiln.render import Rendered
from kiln.room import (
    HARDLY,
    ROOTFS_TIMES,
    TIMES,
    Need,
    build_needs,
    data_root,
    fetch_need,
    hardly_any,
    require_room,
    to_build,
)
from kiln.store import Store
from kiln.workspace import Workspace

ENGINE = Engine("unix:///nowhere", "28", "1.48", private=False)


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The free bytes of every disk, to be set."""
    left = [1000]
    monkeypatch.setattr(kiln.room.shutil, "disk_usage", lambda _: Usage(5000, 4000, left[0]))
    return left


def test_what_fits_is_fine_and_one_byte_more_is_not(tmp_path: Path, free: list[int]) -> None:
    require_room([Need(tmp_path, 1000, "all of it")])
    with pytest.raises(DiskFullError):
        require_room([Need(tmp_path, 1001, "all of it")])


def test_needs_on_one_disk_add_up_and_are_told_with_numbers_and_the_way_out(tmp_path: Path, free: list[int]) -> None:
    free[0] = 3_000_000
    with pytest.raises(DiskFullError) as caught:
        require_room([Need(tmp_path / "not" / "there", 2_000_000, "the files"), Need(tmp_path, 2_500_000, "the build")])
    said = str(caught.value)
    for words in (
        "2.0 MB  the files",
        "2.5 MB  the build",
        "3.0 MB  1.5 MB are missing",
        "kiln gc",
        "nothing was started",
    ):
        assert words in said


def test_the_real_disk_is_asked(tmp_path: Path) -> None:
    require_room([Need(tmp_path, 1, "a byte")])
    with pytest.raises(DiskFullError):
        require_room([Need(tmp_path, shutil.disk_usage(tmp_path).total + 1, "more than the disk has")])


def test_nothing_to_do_needs_no_room(tmp_path: Path, free: list[int]) -> None:
    free[0] = 0
    require_room([Need(tmp_path, 0, "nothing")])


def test_what_is_missing_of_a_lock_has_the_locks_sizes(toy_lock: Lock, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    missing = missing_of(toy_lock, store)
    assert fetch_need(store.folder, missing).size == sum(entry.size for entry in toy_lock.entries())
    here = missing[0]
    store.path(here.sha256).parent.mkdir(parents=True)
    store.path(here.sha256).write_bytes(b"x" * here.size)
    assert missing_of(toy_lock, store) == missing[1:]


def test_fetching_is_refused_before_anybody_is_asked(
    toy: Workspace, capsys: pytest.CaptureFixture[str], free: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kiln.fetch.download", lambda *_: pytest.fail("asked"))
    monkeypatch.setattr("kiln.fetch.Apt", lambda *_: pytest.fail("asked"))
    assert run(["--quiet", "--root", str(toy.root), "--state", str(toy.state), "fetch", "toy"]) == 23
    said = capsys.readouterr().err
    assert "kiln gc" in said
    assert "files to fetch, by the lock's sizes" in said


def built(rendered: Rendered, pins: Pins, layers: dict[str, int]) -> Built:
    found = tuple(Layer(name, "sha256:x", "sha256:y", size) for name, size in layers.items())
    return Built("toy-serving", rendered.key, "sha256:z", "r", 1.0, found, components_of(rendered, pins))


def test_a_component_counts_with_its_last_layer_and_else_with_its_inputs(
    rendered: Rendered, toy_pins: Pins, toy_lock: Lock
) -> None:
    record = built(rendered, toy_pins, {"base": 5000})
    sizes = to_build(rendered, toy_pins, toy_lock, [record], ())
    assert sizes["base"] == 5000
    assert sizes["app"] == sum(wheel.size for wheel in toy_lock.wheels_of("app"))
    assert sizes[ROOTFS] == sum(deb.size for deb in toy_lock.debs)


def test_what_the_engine_has_needs_no_room(rendered: Rendered, toy_pins: Pins, toy_lock: Lock) -> None:
    keys = set(built(rendered, toy_pins, {}).keys.values())
    assert to_build(rendered, toy_pins, toy_lock, [], keys) == {}


def test_a_build_is_judged_on_the_disks_of_the_state_folder_and_of_the_engine(
    rendered: Rendered, toy_pins: Pins, toy_lock: Lock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kiln.room, "get_json", lambda *_: {"DockerRootDir": str(tmp_path / "docker")})
    state, engine = build_needs(tmp_path, ENGINE, rendered, toy_pins, toy_lock, [], ())
    sizes = to_build(rendered, toy_pins, toy_lock, [], ())
    assert (state.folder, state.size) == (tmp_path, ROOTFS_TIMES * sizes[ROOTFS])
    assert (engine.folder, engine.size) == (tmp_path / "docker", TIMES * sum(sizes.values()))
    assert "estimated" in engine.what


@pytest.mark.parametrize("answer", [None, {}, {"DockerRootDir": ""}, {"DockerRootDir": "/nowhere/at/all"}])
def test_an_engine_whose_disk_cannot_be_seen_is_not_judged(
    answer: dict[str, str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kiln.room, "get_json", lambda *_: answer)
    assert data_root(ENGINE) is None


def test_a_file_that_is_locked_just_now_counts_as_nothing(toy_lock: Lock, tmp_path: Path) -> None:
    unmeasured = replace(toy_lock, debs=(), wheels=tuple(replace(wheel, size=0) for wheel in toy_lock.wheels))
    assert fetch_need(tmp_path, missing_of(unmeasured, Store(tmp_path))).size == 0


def test_a_disk_that_is_as_good_as_full_is_found_and_one_with_room_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hardly_any([tmp_path / "not" / "there", None]) == []

    class Told(NamedTuple):
        f_bavail: int = HARDLY // 4096 - 1
        f_frsize: int = 4096

    monkeypatch.setattr(os, "statvfs", lambda _: Told())
    assert hardly_any([tmp_path, None]) == [tmp_path]
