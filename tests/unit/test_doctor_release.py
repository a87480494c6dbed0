"""What ``kiln doctor`` says of cosign, of the logins in docker's configuration, and of the room that each command takes. No secret is ever in it."""

from __future__ import annotations

import base64
import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

import kiln.doctorrelease
import kiln.doctorroom
import kiln.engine
from kiln.cli import run
from kiln.doctor import Asked, Finding, asked
from kiln.doctorrelease import release_findings
from kiln.doctorroom import room_findings
from kiln.fetch import missing_of
from kiln.host import cosign_below
from kiln.lockfile import read_lock
from kiln.room import TIMES
from kiln.store import Store
from kiln.workspace import Workspace
from tests.unit.test_doctor import finding, needs, program

Usage = namedtuple("Usage", "total used free")  # noqa: PYI024 - as shutil's is


def question(project: Path, tmp_path: Path, *stacks: str, commands: tuple[str, ...] = ()) -> Asked:
    return asked(Workspace(project, tmp_path / "state"), stacks, commands)


def found(project: Path, tmp_path: Path, *stacks: str, commands: tuple[str, ...] = ()) -> tuple[Finding, ...]:
    return tuple(release_findings(question(project, tmp_path, *stacks, commands=commands)))


@pytest.fixture(autouse=True)
def nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A PATH with nothing on it, no engine, and no configuration of docker's or Kiln's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    for name in ("KILN_CACHE", "KILN_PUBLISH_TO", "KILN_MIRRORS", "KILN_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    return folder


# --- cosign


@pytest.mark.parametrize(
    ("says", "status", "word"),
    [
        ("GitVersion:    v2.5.0", "ok", "2.5.0"),
        ("GitVersion:    devel", "ok", "of unknown version"),
        ("GitVersion:    v1.13.6", "missing", "1.13.6"),
        ("GitVersion:    v3.0.2", "warning", "3.0.2"),
    ],
)
def test_cosign_on_the_path_is_judged_by_its_version(
    project: Path, tmp_path: Path, nothing: Path, says: str, status: str, word: str
) -> None:
    where = program(nothing, "cosign", says)
    one = finding(found(project, tmp_path, "cpu"), "cosign")
    assert one.status == status
    assert word in one.found
    assert str(where) in one.found
    assert needs(one) == {"publish", "pull"}
    assert bool(one.fix) == (status != "ok")


def test_a_cosign_that_does_not_run_is_missing(project: Path, tmp_path: Path, nothing: Path) -> None:
    program(nothing, "cosign").write_text("#!/bin/sh\necho no such loader >&2\nexit 127\n")
    one = finding(found(project, tmp_path, "cpu"), "cosign")
    assert (one.status, one.means) == ("missing", "no such loader")


def test_without_cosign_debian_gets_one_and_others_are_told_to_install_it(
    project: Path, tmp_path: Path, nothing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kiln.doctorrelease, "debian_codename", lambda: "bookworm")
    one = finding(found(project, tmp_path, "cpu"), "cosign")
    assert (one.status, one.found) == ("missing", "there is no cosign")
    assert "install cosign 2" in one.fix
    program(nothing, "apt-get")
    one = finding(found(project, tmp_path, "cpu"), "cosign")
    assert one.status == "warning"
    assert "nothing is installed" in one.means


def test_the_cosign_that_kiln_unpacked_is_told_from_another(project: Path, tmp_path: Path) -> None:
    place = cosign_below(tmp_path / "state")
    place.parent.mkdir(parents=True)
    place.touch()
    one = finding(found(project, tmp_path, "cpu"), "cosign")
    assert one.status == "ok"
    assert "unpacked by kiln" in one.found


def test_who_neither_publishes_nor_pulls_needs_no_cosign(project: Path, tmp_path: Path) -> None:
    assert found(project, tmp_path, "cpu", commands=("build", "verify-generate")) == ()


# --- logins

Configure = Callable[[object], None]


@pytest.fixture
def configure(tmp_path: Path) -> Configure:
    """Write docker's configuration."""

    def write(said: object) -> None:
        (tmp_path / "docker").mkdir(exist_ok=True)
        text = said if isinstance(said, str) else json.dumps(said)
        (tmp_path / "docker" / "config.json").write_text(text)

    return write


@pytest.mark.parametrize("how", [{"credsStore": "keep"}, {"credHelpers": {"r.example": "keep"}}])
def test_a_credential_helper_that_is_not_there_is_missing(
    project: Path,
    tmp_path: Path,
    nothing: Path,
    configure: Configure,
    monkeypatch: pytest.MonkeyPatch,
    how: dict[str, object],
) -> None:
    monkeypatch.setenv("KILN_PUBLISH_TO", "r.example/kiln")
    configure(how)
    lack = finding(found(project, tmp_path, "cpu"), "login (r.example)")
    assert (lack.status, needs(lack)) == ("missing", {"publish"})
    assert "install docker-credential-keep" in lack.fix
    program(nothing, "docker-credential-keep").write_text("#!/bin/sh\nexit 99\n")
    assert finding(found(project, tmp_path, "cpu"), "login (r.example)").status == "ok"


def test_a_helper_of_another_registry_is_no_business_of_this_one(
    project: Path, tmp_path: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KILN_CACHE", "r.example/cache")
    configure({"credHelpers": {"other.example": "gone"}})
    one = finding(found(project, tmp_path, "cpu"), "login (r.example)")
    assert (one.status, one.found, needs(one)) == ("ok", "none", {"build"})


def test_a_stored_login_is_found_and_its_password_is_never_said(
    project: Path,
    tmp_path: Path,
    configure: Configure,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("KILN_PUBLISH_TO", "r.example/kiln")
    secret = base64.b64encode(b"somebody:sesame-42").decode()
    configure({"auths": {"r.example": {"auth": secret}}})
    assert finding(found(project, tmp_path, "cpu"), "login (r.example)").status == "ok"
    # Nor where the file is wrong, in the words of what read it.
    for said in ({"auths": {"r.example": {"auth": "sesame-42"}}}, {"auths": {"r.example": "sesame-42"}}):
        configure(said)
        one = finding(found(project, tmp_path, "cpu"), "docker logins")
        assert one.status == "warning"
        state = ["--root", str(project), "--state", str(tmp_path / "state")]
        run([*state, "--json", "doctor", "cpu", "--for", "publish"])
        printed = capsys.readouterr()
        assert "docker logins" in printed.out
        assert "sesame" not in printed.out + printed.err
        assert secret not in printed.out + printed.err


def test_who_publishes_without_a_login_is_warned_and_loopback_needs_none(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KILN_PUBLISH_TO", "r.example/kiln")
    one = finding(found(project, tmp_path, "cpu"), "login (r.example)")
    assert (one.status, one.fix) == ("warning", "docker login r.example")
    monkeypatch.setenv("KILN_PUBLISH_TO", "127.0.0.1:5000/kiln")
    assert finding(found(project, tmp_path, "cpu"), "login (127.0.0.1:5000)").status == "ok"


def test_the_base_images_registry_is_asked_for_by_the_stack_that_stands_on_it(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = finding(found(project, tmp_path, "cpu", "dsv4-mhc"), "login (docker.io)")
    assert set(one.needed_by) == {("lock", "dsv4-mhc"), ("build", "dsv4-mhc")}
    assert one.fix == "docker login"
    monkeypatch.setenv("KILN_MIRRORS", "docker.io=mirror.example/hub")
    names = [one.name for one in found(project, tmp_path, "dsv4-mhc")]
    assert "login (mirror.example)" in names
    assert "login (docker.io)" not in names


# --- room


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The free bytes of every disk, to be set."""
    left = [10**15]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2 * 10**15, 10**15, left[0]))
    return left


def rooms(asking: Asked) -> dict[str, Finding]:
    return {one.found.partition(" ")[0]: one for one in room_findings(asking)}


def test_each_command_has_the_room_that_it_takes(project: Path, tmp_path: Path, free: list[int]) -> None:
    asking = question(project, tmp_path, "cpu")
    table = rooms(asking)
    assert {name: one.status for name, one in table.items()} == {"fetch": "ok", "build": "ok", "verify": "ok"}
    assert needs(table["verify"]) == {"verify-static", "verify-ops", "verify-generate"}
    (stack,) = asking.stacks
    lock = read_lock(asking.workspace, stack.pins)
    size = sum(entry.size for entry in missing_of(lock, Store(tmp_path / "state" / "store")))
    # The files fit, and what is built of them does not.
    free[0] = size
    table = rooms(asking)
    assert {name: one.status for name, one in table.items()} == {"fetch": "ok", "build": "missing", "verify": "ok"}
    assert "not begun" in table["build"].means
    assert "kiln gc" in table["build"].fix
    assert "KILN_STATE" in table["build"].fix
    free[0] = size - 1
    assert rooms(asking)["fetch"].status == "missing"
    # The estimate is the one that the build itself makes: the files, and so many times their size.
    free[0] = size * (TIMES + 1) - 1
    assert rooms(asking)["build"].status == "missing"


def test_what_a_lock_does_not_know_the_size_of_is_said(project: Path, tmp_path: Path, free: list[int]) -> None:
    table = rooms(question(project, tmp_path, "dsv4-mhc"))
    assert "sizes are not known" in table["build"].means
    assert needs(table["build"]) == {"build"}


def test_without_a_lock_it_is_said_that_nothing_is_known(project_copy: Path, tmp_path: Path, free: list[int]) -> None:
    (project_copy / "pins" / "cpu.lock.toml").unlink()
    (one, verify) = room_findings(question(project_copy, tmp_path, "cpu"))
    assert (one.status, one.found) == ("warning", "how much is taken is not known")
    assert "kiln lock cpu" in one.fix
    assert needs(verify) == {"verify-static", "verify-ops", "verify-generate"}


def test_what_is_not_asked_for_is_not_measured(project: Path, tmp_path: Path) -> None:
    assert list(room_findings(question(project, tmp_path, "cpu", commands=("plan", "lock", "publish")))) == []
