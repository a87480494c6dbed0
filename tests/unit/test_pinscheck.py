"""Whether what a lock names is still so: blobs, archives, wheels, packages and the base image, with what upstreams say put in their mouths."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

import kiln.pinscheck
from kiln.config import Config
from kiln.console import Console
from kiln.errors import (
    FetchError,
    HostError,
    MovedRefError,
    RefNotFoundError,
    ResolveError,
    StoreDamagedError,
    UpstreamError,
    VanishedError,
)
from kiln.lockentries import Archive, BaseImage, Deb, Unresolved, Wheel
from kiln.lockfile import TOOLS, Lock
from kiln.pinscheck import Checked, State, judge_checked, text, verify_online, verify_stored
from kiln.session import Choice, Session
from kiln.store import Store
from kiln.workspace import Workspace

DIGEST, OTHER = f"sha256:{'5' * 64}", f"sha256:{'6' * 64}"
NO_SOLUTION = "error: No solution found when resolving dependencies\n  cause: "
EMPTY = Lock("dsv4-mhc", "", (), ())


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def wheel(name: str, component: str = "needs", index: str = "", version: str = "1.0") -> Wheel:
    return Wheel(component, name, version, f"{name}-{version}-py3-none-any.whl", sha(name), 1, index)


@pytest.fixture
def session(real: Workspace, tmp_path: Path) -> Session:
    config = Config((("https://files.invalid/", str(tmp_path / "files")),))
    return Session(real, Store(real.state / "store"), Console(quiet=True), given_config=config)


def online(session: Session, lock: Lock) -> list[Checked]:
    return verify_online(session, session.pins("dsv4-mhc", Choice()), lock)


def states(found: Iterable[Checked]) -> dict[str, str]:
    return {one.name: one.state for one in found}


# what is stored


def test_stored_files_are_compared_with_their_names_and_a_damaged_one_goes(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for content in ("good", "bad"):
        (tmp_path / content).write_text(content)
        store.add_made(tmp_path / content)
    place = store.path(sha("bad"))
    place.chmod(0o644)
    place.write_text("BAD")
    lock = replace(
        EMPTY,
        archives=tuple(
            Archive("c", one, f"https://x.invalid/{one}", sha(one), len(one)) for one in ("good", "bad", "far")
        ),
    )
    assert states(verify_stored(lock, store)) == {"c: good": "same", "c: bad": "damaged", "c: far": "not stored"}
    assert not place.exists()


# archives


def archive(name: str, content: str = "") -> Archive:
    return Archive("c", name, f"https://files.invalid/{name}", sha(content or name), len(content or name))


def test_archives_of_a_local_mirror_are_compared_by_their_bytes(session: Session, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    for name in ("same.zip", "changed.zip"):
        (tmp_path / "files" / name).write_text("same.zip")
    found = online(
        session, replace(EMPTY, archives=tuple(archive(name) for name in ("same.zip", "changed.zip", "gone.zip")))
    )
    assert states(found) == {"c: same.zip": "same", "c: changed.zip": "changed", "c: gone.zip": "vanished"}


@pytest.mark.parametrize(
    ("status", "size", "state"),
    [
        (200, "5", "same"),
        (200, "", "same"),
        (200, "6", "changed"),
        (404, "", "vanished"),
        (410, "", "vanished"),
        (403, "", "not asked"),
        (503, "", "not asked"),
    ],
)
def test_archives_elsewhere_are_compared_by_what_the_host_says_of_them(
    session: Session, monkeypatch: pytest.MonkeyPatch, status: int, size: str, state: State
) -> None:
    def head(*_: Any, **__: Any) -> Any:
        return SimpleNamespace(status_code=status, headers={"Content-Length": size} if size else {})

    monkeypatch.setattr(requests, "head", head)
    far = replace(archive("five", "12345"), url="https://elsewhere.invalid/five")
    (found,) = online(session, replace(EMPTY, archives=(far,)))
    assert found.state == state


def test_a_host_that_was_silent_is_not_asked_again(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def head(url: str, **_: Any) -> Any:
        asked.append(url)
        raise requests.ConnectionError("Connection refused")

    monkeypatch.setattr(requests, "head", head)
    far = tuple(replace(archive(name), url=f"https://elsewhere.invalid/{name}") for name in ("one", "two"))
    found = online(session, replace(EMPTY, archives=far))
    assert [(one.state, "Connection refused" in one.why) for one in found] == [("not asked", True)] * 2
    assert asked == ["https://elsewhere.invalid/one"]


# wheels


class Index:
    """An index of wheels: what it has, by name and file; it says of nothing where one that is asked for is not there, as uv does."""

    def __init__(self, *wheels: Wheel) -> None:
        self.files = {one.name: {one.file: one.sha256} for one in wheels}
        self.asked: list[tuple[list[str], str]] = []

    def __call__(self, _pins: Any, wheels: Sequence[Wheel], index: str) -> dict[str, dict[str, str]]:
        self.asked.append(([one.name for one in wheels], index))
        if missing := [one.name for one in wheels if one.name not in self.files]:
            raise ResolveError("uv found no set", why=f"{NO_SOLUTION}Because there is no version of {missing[0]}==1.0")
        return {one.name: self.files[one.name] for one in wheels}


def test_wheels_that_are_gone_or_changed_are_found_among_those_that_are_not(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = [wheel(name) for name in ("a", "b", "c", "d", "e")]
    index = Index(*wheels)
    del index.files["d"]
    index.files["b"] = {wheels[1].file: sha("other")}
    index.files["e"] = {"e-1.0-py3-none-manylinux_2_17_x86_64.whl": sha("other")}
    monkeypatch.setattr(kiln.pinscheck, "offered_files", index)
    monkeypatch.setattr(kiln.pinscheck, "resolve", lambda *_: {})
    found = online(session, replace(EMPTY, wheels=tuple(wheels)))
    assert [one.state for one in found] == ["same", "changed", "same", "vanished", "vanished"]
    assert found[1].now == sha("other")
    assert "the version without this file" in found[4].why


def test_a_wheel_that_an_index_spells_otherwise_is_the_same(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index(wheel("a"))
    index.files["a"] = {"A-1.0.0-py3-none-any.whl": sha("a")}
    monkeypatch.setattr(kiln.pinscheck, "offered_files", index)
    assert states(online(session, replace(EMPTY, wheels=(wheel("a"),)))) == {"a-1.0-py3-none-any.whl": "same"}


def test_tools_are_asked_for_apart(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = (wheel("a"), wheel("a", TOOLS, version="2.0"))
    index = Index(*wheels)
    index.files["a"] = {one.file: one.sha256 for one in wheels}
    monkeypatch.setattr(kiln.pinscheck, "offered_files", index)
    assert {one.state for one in online(session, replace(EMPTY, wheels=wheels))} == {"same"}
    assert index.asked == [(["a"], ""), (["a"], "")]


@pytest.mark.parametrize(
    ("has", "state"), [("", "same"), ("https://extra.invalid/simple", "same"), ("neither", "vanished")]
)
def test_the_index_of_the_pins_is_asked_where_the_users_own_has_not_the_wheel(
    session: Session, monkeypatch: pytest.MonkeyPatch, has: str, state: State
) -> None:
    wanted, asked = wheel("b", index="extra"), []

    def offered_files(_pins: Any, _wheels: Sequence[Wheel], index: str) -> dict[str, dict[str, str]]:
        asked.append(index)
        if index != has:
            raise ResolveError("uv found no set", why=f"{NO_SOLUTION}Because there is no version of b==1.0")
        return {"b": {wanted.file: wanted.sha256}}

    monkeypatch.setattr(kiln.pinscheck, "offered_files", offered_files)
    monkeypatch.setattr(kiln.pinscheck, "resolve", lambda *_: {})
    pins = replace(session.pins("dsv4-mhc", Choice()), indexes=(("extra", "https://extra.invalid/simple"),))
    (found,) = verify_online(session, pins, replace(EMPTY, wheels=(wanted,)))
    assert found.state == state
    assert asked == ([""] if not has else ["", "https://extra.invalid/simple"])


@pytest.mark.parametrize(("chosen", "state"), [(sha("a"), "same"), (sha("other"), "vanished")])
def test_a_wheel_that_pip_sees_and_uv_does_not_is_there(
    session: Session, monkeypatch: pytest.MonkeyPatch, chosen: str, state: State
) -> None:
    index = Index(wheel("a"))
    index.files["a"] = {"a-1.0-py3-none-manylinux_2_17_x86_64.whl": sha("another index's")}
    monkeypatch.setattr(kiln.pinscheck, "offered_files", index)
    monkeypatch.setattr(kiln.pinscheck, "resolve", lambda *_: {"a": SimpleNamespace(sha256=chosen)})
    (found,) = online(session, replace(EMPTY, wheels=(wheel("a"),)))
    assert found.state == state


@pytest.mark.parametrize(
    ("why", "reason"),
    [
        ("error: Request failed after 3 retries\n  cause: dns error: no such host", "cause: dns error: no such host"),
        (
            f"{NO_SOLUTION}Because a was not found in the cache\n\nhint: the network was disabled",
            "hint: the network was disabled",
        ),
        ("error: something that uv never said before", "error: something that uv never said before"),
    ],
)
def test_where_no_index_answered_nothing_is_said_to_be_gone_and_none_is_asked_twice(
    session: Session, monkeypatch: pytest.MonkeyPatch, why: str, reason: str
) -> None:
    asked: list[int] = []

    def silent(_pins: Any, wheels: Sequence[Wheel], _index: str) -> dict[str, dict[str, str]]:
        asked.append(len(wheels))
        raise ResolveError("uv found no set of wheels for the pins", why=why)

    monkeypatch.setattr(kiln.pinscheck, "offered_files", silent)
    found = online(session, replace(EMPTY, wheels=(wheel("a"), wheel("b"))))
    assert [(one.state, one.why) for one in found] == [("not asked", reason)] * 2
    assert asked == [2]


# packages


def deb(name: str, version: str = "1", content: str = "") -> Deb:
    return Deb(name, version, "amd64", f"pool/{name}_{version}_amd64.deb", sha(content or name), 1)


@pytest.fixture
def apt(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """apt, with ``offers`` in its sources, or ``fails`` in place of an answer."""
    made = SimpleNamespace(offers=[], fails=None)

    class Apt:
        def __init__(self, *_: Any, **__: Any) -> None:
            return

        def update(self) -> None:
            if made.fails:
                raise made.fails

        def offered(self, names: Iterable[str]) -> list[Deb]:
            wanted = set(names)
            return [one for one in made.offers if one.name in wanted]

    monkeypatch.setattr(kiln.pinscheck, "Apt", Apt)
    monkeypatch.setattr(kiln.pinscheck, "sources_for", lambda *_: "")
    return made


def test_packages_that_are_no_longer_offered_are_told(session: Session, apt: SimpleNamespace) -> None:
    apt.offers = [deb("a"), deb("b", content="other"), deb("c", "2"), deb("z")]
    found = online(session, replace(EMPTY, debs=(deb("a"), deb("b"), deb("c"), deb("d"))))
    assert [one.state for one in found] == ["same", "changed", "vanished", "vanished"]


@pytest.mark.parametrize(
    "error",
    [FetchError("no lists", why="E: Could not resolve"), HostError("this machine's apt sources are not Ubuntu's")],
)
def test_packages_without_an_answer_were_not_asked_for(
    session: Session, apt: SimpleNamespace, error: Exception
) -> None:
    apt.fails = error
    found = online(session, replace(EMPTY, debs=(deb("a"), deb("b"))))
    assert {one.state for one in found} == {"not asked"}
    assert all(one.why in str(error) for one in found)


# the base image


@pytest.mark.parametrize(
    ("tag", "blob", "state"),
    [
        (DIGEST, DIGEST, "same"),
        (OTHER, DIGEST, "moved"),
        (OTHER, None, "vanished"),
        (RefNotFoundError("no tag"), DIGEST, "vanished"),
        (UpstreamError("silent"), DIGEST, "not asked"),
    ],
)
def test_the_base_images_tag_is_compared_with_the_locked_digest(
    session: Session, monkeypatch: pytest.MonkeyPatch, tag: str | Exception, blob: str | None, state: State
) -> None:
    def tag_digest(*_: Any) -> str:
        if isinstance(tag, Exception):
            raise tag
        return tag

    monkeypatch.setattr(kiln.pinscheck, "tag_digest", tag_digest)
    monkeypatch.setattr(kiln.pinscheck, "Repository", lambda _: SimpleNamespace(digest_of=lambda _: blob))
    (found,) = online(session, replace(EMPTY, images=(BaseImage("registry.invalid/base", "7", DIGEST),)))
    assert (found.state, found.locked) == (state, DIGEST)


# the verdict


def result(*found: State) -> dict[str, list[Checked]]:
    return {
        "small": [Checked("wheel", f"w{number}", state, "locked", why="because") for number, state in enumerate(found)]
    }


@pytest.mark.parametrize(
    ("found", "error"),
    [
        (("same", "moved", "vanished", "damaged", "not asked"), MovedRefError),
        (("vanished", "damaged", "not asked"), VanishedError),
        (("changed", "not asked"), VanishedError),
        (("damaged", "not asked"), StoreDamagedError),
        (("same", "not asked", "not stored"), UpstreamError),
    ],
)
def test_the_worst_decides(found: tuple[State, ...], error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        judge_checked(result(*found))
    assert type(caught.value) is error


def test_what_is_as_it_was_and_what_is_not_stored_is_a_pass() -> None:
    judge_checked(result("same", "not stored"))


def test_what_was_not_asked_stands_apart_by_reason(session: Session) -> None:
    lock = replace(EMPTY, unresolved=(Unresolved("git", "torch", "https://x.invalid@v1", "silent"),))
    assert text("small", [*online(session, lock), *result("same", "moved", "same")["small"]]) == [
        "small: 4 looked at",
        "  moved: 1",
        "    wheel w1: because",
        "  not asked: 1",
        "    the lock has not resolved it:",
        "      git torch https://x.invalid@v1",
        "  same: 2",
    ]
