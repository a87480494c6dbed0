"""Whether what a lock names is still so: blobs as they are stored, and with the network what every upstream says today.

Nothing is changed but one thing: a damaged blob goes, so that the next fetch brings it anew. Who could not be asked is told apart from who said yes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import requests

from kiln.apt import Apt, sources_for
from kiln.canonical import sha256_file
from kiln.errors import (
    FetchError,
    HostError,
    KilnError,
    MovedRefError,
    RefNotFoundError,
    ResolveError,
    StoreDamagedError,
    UpstreamError,
    VanishedError,
)
from kiln.fetch import short_reason
from kiln.lockentries import Archive, Deb, Git, Wheel
from kiln.lockfile import TOOLS, Lock
from kiln.pins import Pins
from kiln.registry import tag_digest
from kiln.registryclient import Repository
from kiln.session import Session
from kiln.store import Store
from kiln.uv import offered_files
from kiln.wheels import resolve

State = Literal["same", "moved", "vanished", "changed", "damaged", "not stored", "not asked"]
# As they are shown: the worst first.
STATES: tuple[State, ...] = ("moved", "vanished", "changed", "damaged", "not asked", "not stored", "same")
# Of those that are as they should be, people want the number alone.
_COUNTED = ("same", "not stored")
# What uv says where every index answered and one version is in none of them; where it was not to ask, it says so below.
_GONE, _OFFLINE = "No solution found", "network was disabled"


@dataclass(frozen=True)
class Checked:
    """One thing that a lock names, and how it is today; ``locked`` and ``now`` are what tells it from others, ``why`` the rest."""

    kind: str
    name: str
    state: State
    locked: str = ""
    now: str = ""
    why: str = ""


def verify_stored(lock: Lock, store: Store) -> list[Checked]:
    """Every file of the lock that the store has, with its bytes compared with its sha256. A damaged one is removed."""
    found: list[Checked] = []
    for entry in {entry.sha256: entry for entry in lock.entries()}.values():
        state: State = "not stored"
        why = ""
        if store.path(entry.sha256).is_file():
            try:
                store.check(entry.sha256, entry.label)
                state = "same"
            except StoreDamagedError as error:
                state, why = "damaged", error.why
        found.append(Checked("stored file", entry.label, state, entry.sha256, why=why))
    return found


def verify_online(session: Session, pins: Pins, lock: Lock) -> list[Checked]:
    """What the upstreams say of everything that the lock names. Raises nothing for an upstream that does not answer: that is ``not asked``."""
    return list(_Asking(session, pins, lock).all())


class _Asking:
    """One round of questions; a host that was silent once is not asked again."""

    def __init__(self, session: Session, pins: Pins, lock: Lock) -> None:
        self.session, self.pins, self.lock = session, pins, lock
        self.config, self.cache = session.config, session.git
        self._silent: dict[str, str] = {}

    def all(self) -> Iterator[Checked]:
        for entry in self.lock.unresolved:
            yield Checked(entry.kind, f"{entry.name} {entry.ref}", "not asked", why="the lock has not resolved it")
        yield from self._image()
        for git in self.lock.gits:
            self.session.console.step(f"asking for {git.label}")
            yield from self._git(git)
        for archive in self.lock.archives:
            question = partial(self._archive, archive)
            yield self._asked("archive", archive.label, archive.sha256, archive.url, question)
        self.session.console.step(f"asking for {len(self.lock.wheels)} wheels and {len(self.lock.debs)} packages")
        yield from self._wheels()
        yield from self._debs()

    def _asked(self, kind: str, name: str, locked: str, url: str, question: Callable[[], Checked]) -> Checked:
        """The answer to a question, or that there was none, and why."""
        place = self.config.mirrored(url)
        # A folder of this machine is silent by itself alone.
        host = urlsplit(place).netloc if "://" in place else "" if place.startswith("/") else place.split("/", 1)[0]
        if reason := self._silent.get(host):
            return Checked(kind, name, "not asked", locked, why=reason)
        try:
            return question()
        except UpstreamError as error:
            reason = _last(error)
            reason = f"{host} does not answer ({reason})" if host else reason
            if host:
                self._silent[host] = reason
            return Checked(kind, name, "not asked", locked, why=reason)

    def _image(self) -> Iterator[Checked]:
        for image in self.lock.images:

            def question(name: str = image.name, tag: str = image.tag, digest: str = image.digest) -> Checked:
                called = f"{name}:{tag}"
                try:
                    now = tag_digest(self.config, name, tag)
                except RefNotFoundError as error:
                    return Checked("image", called, "vanished", digest, why=error.what)
                if Repository(self.config.mirrored(name)).digest_of(digest) is None:
                    return Checked("image", called, "vanished", digest, now, "no image has the locked digest any more")
                return Checked("image", called, "same" if now == digest else "moved", digest, now)

            yield self._asked("image", f"{image.name}:{image.tag}", image.digest, image.name, question)

    def _git(self, git: Git) -> Iterator[Checked]:
        name = f"{git.component} {git.url}"
        by_commit = git.commit.startswith(git.ref)

        def named() -> Checked:
            called = f"{name} {git.ref}"
            try:
                now = self.cache.resolve(git.url, git.ref)
            except RefNotFoundError as error:
                return Checked("git ref", called, "vanished", git.commit, why=f"{error.what}; {self._still(git)}")
            if now == git.commit:
                return Checked("git ref", called, "same", git.commit, now)
            return Checked("git ref", called, "moved", git.commit, now, self._still(git))

        if by_commit:
            yield self._commit("git commit", name, git.url, git.commit)
        else:
            yield self._asked("git ref", f"{name} {git.ref}", git.commit, git.url, named)
        for sub in git.submodules:
            yield self._commit("submodule", f"{git.component} {sub.path} {sub.url}", sub.url, sub.commit)
        for pick in git.picks:
            url, _, commit = pick.rpartition("@")
            yield self._commit("pick", f"{git.component} {url}", url, commit)

    def _still(self, git: Git) -> str:
        try:
            offered = self.cache.offers(git.url, git.commit)
        except UpstreamError as error:
            return f"whether the locked commit is still there is not known: {error.what}"
        words = {True: "is still there", False: "is gone", None: "may be there or not: the host hands out tips alone"}
        return f"the locked commit {words[offered]}"

    def _commit(self, kind: str, name: str, url: str, commit: str) -> Checked:
        def question() -> Checked:
            offered = self.cache.offers(url, commit)
            if offered is None:
                why = "its host hands out no commit but the tips of branches and tags"
                return Checked(kind, name, "not asked", commit, why=why)
            return Checked(kind, name, "same" if offered else "vanished", commit)

        return self._asked(kind, name, commit, url, question)

    def _archive(self, archive: Archive) -> Checked:
        """By its bytes where it lies on this machine; elsewhere by its size, for nobody announces the checksum of a download."""
        place = self.config.mirrored(archive.url)
        if "://" not in place:
            found = sha256_file(Path(place)) if Path(place).is_file() else ""
            state: State = "same" if found == archive.sha256 else "changed" if found else "vanished"
            return Checked("archive", archive.label, state, archive.sha256, found)
        try:
            answer = requests.head(place, allow_redirects=True, timeout=(10, 60))
        except requests.RequestException as error:
            raise UpstreamError(f"{place} was not reached", why=short_reason(error)) from error
        if answer.status_code in (404, 410):
            return Checked(
                "archive", archive.label, "vanished", archive.sha256, why=f"HTTP status {answer.status_code}"
            )
        if answer.status_code >= 400:
            raise UpstreamError(f"{place} was not looked at", why=f"HTTP status {answer.status_code}")
        size = answer.headers.get("Content-Length", "")
        if size.isdigit() and int(size) != archive.size:
            return Checked(
                "archive", archive.label, "changed", archive.sha256, why=f"{archive.size} bytes are {size} now"
            )
        return Checked(
            "archive", archive.label, "same", archive.sha256, why="by its size" if size else "by its address"
        )

    def _wheels(self) -> Iterator[Checked]:
        groups: dict[tuple[bool, str], list[Wheel]] = {}
        for wheel in self.lock.wheels:
            # The tools may be other versions of what the components hold.
            groups.setdefault((wheel.component == TOOLS, wheel.index), []).append(wheel)
        for wheels in groups.values():
            for wheel, first in zip(wheels, self._offered(wheels), strict=True):
                yield first if first.state in ("same", "not asked") else self._asked_again(wheel, first)

    def _asked_again(self, wheel: Wheel, first: Checked) -> Checked:
        """A second word on a wheel that is not there as it was: pip's, and that of the index that the pins name beside."""
        # Of several indexes with one version uv reads the first, pip all.
        try:
            found = resolve(self.pins, [f"{wheel.name}=={wheel.version}", "--no-deps"])[wheel.name].sha256
        except (ResolveError, KeyError):
            found = ""
        if found == wheel.sha256:
            return replace(first, state="same", now=found, why="")
        index = dict(self.pins.indexes).get(wheel.index)
        return next(iter(self._offered([wheel], index))) if index else first

    def _offered(self, wheels: Sequence[Wheel], index: str = "") -> Iterator[Checked]:
        """Of each wheel what the index says; where one that is gone spoils the answer for all, by halves."""
        try:
            offered = offered_files(self.pins, wheels, index)
        except (ResolveError, HostError) as error:
            if _GONE not in error.why or _OFFLINE in error.why:
                reason = _last(error)
                yield from (Checked("wheel", one.label, "not asked", one.sha256, why=reason) for one in wheels)
            elif len(wheels) == 1:
                why = f"the index has no {wheels[0].name} {wheels[0].version} for the stack's Python"
                yield Checked("wheel", wheels[0].label, "vanished", wheels[0].sha256, why=why)
            else:
                half = len(wheels) // 2
                yield from self._offered(wheels[:half], index)
                yield from self._offered(wheels[half:], index)
            return
        for wheel in wheels:
            now = offered.get(wheel.name, {}).get(wheel.file)
            if now is None and wheel.sha256 in offered.get(wheel.name, {}).values():
                now = wheel.sha256
            state: State = "vanished" if now is None else "same" if now == wheel.sha256 else "changed"
            why = "the index has the version without this file" if now is None else ""
            yield Checked("wheel", wheel.label, state, wheel.sha256, now or "", why)

    def _debs(self) -> Iterator[Checked]:
        debs, wanted = self.lock.debs, self.pins.packages
        if not debs:
            return
        try:
            sources = sources_for(wanted.suite, wanted.distribution, dict(self.config.apt_sources))
            apt = Apt(
                self.session.workspace.state / "apt" / wanted.suite,
                wanted.suite,
                wanted.architecture,
                sources=sources,
            )
            apt.update()
            offered = {(one.name, one.version, one.architecture): one for one in apt.offered(deb.name for deb in debs)}
        except (FetchError, HostError) as error:
            reason = _last(error)
            yield from (Checked("package", deb.label, "not asked", deb.sha256, why=reason) for deb in debs)
            return
        for deb in debs:
            yield _package(deb, offered.get((deb.name, deb.version, deb.architecture)))


def _last(error: KilnError) -> str:
    """The line of an error's reasons that says most of why nobody answered."""
    return (error.why or error.what).strip().splitlines()[-1].strip()


def _package(deb: Deb, offered: Deb | None) -> Checked:
    if offered is None:
        why = "no configured source offers this version any more"
        return Checked("package", deb.label, "vanished", deb.sha256, why=why)
    state: State = "same" if offered.sha256 == deb.sha256 else "changed"
    return Checked("package", deb.label, state, deb.sha256, offered.sha256)


def text(stack: str, found: Sequence[Checked]) -> list[str]:
    """For people: what is not as it was, each by itself; who could not be asked, by reason; and how many are as they were."""
    lines = [f"{stack}: {len(found)} looked at"]
    for state in STATES:
        of_state = [one for one in found if one.state == state]
        if not of_state:
            continue
        lines.append(f"  {state}: {len(of_state)}")
        if state == "not asked":
            for reason in dict.fromkeys(one.why for one in of_state):
                lines.append(f"    {reason}:")
                lines += [f"      {one.kind} {one.name}" for one in of_state if one.why == reason]
        elif state not in _COUNTED:
            lines += [f"    {line}" for one in of_state for line in _described(one)]
    return lines


def _described(one: Checked) -> list[str]:
    lines = [f"{one.kind} {one.name}" + (f": {one.why.splitlines()[0]}" if one.why else "")]
    return lines + ([f"  locked {one.locked}", f"  now    {one.now}"] if one.now and one.now != one.locked else [])


def judge_checked(results: Mapping[str, Sequence[Checked]]) -> None:
    """Raise for the worst that was found: MovedRefError, VanishedError (gone, or other bytes), StoreDamagedError, UpstreamError (nothing of these, but
    somebody was not asked)."""
    found = [one for group in results.values() for one in group]

    def of(*states: State) -> tuple[int, str]:
        those = [one for one in found if one.state in states]
        return len(those), "\n".join(line for one in those for line in _described(one))

    stacks = " ".join(results)
    verdicts: tuple[tuple[type[KilnError], tuple[State, ...], str, str], ...] = (
        (
            MovedRefError,
            ("moved",),
            "{} of what is locked points elsewhere today",
            "nothing was changed: the lock still names what you built with. Find out why it moved before you trust it; then: kiln lock STACK --accept-moved NAME",
        ),
        (VanishedError, ("vanished", "changed"), "{} of what is locked is gone upstream, or has other bytes", ""),
        (
            StoreDamagedError,
            ("damaged",),
            "{} of the stored files is damaged",
            f"it was removed: kiln fetch {stacks.split()[0]} brings it anew (if this happens twice, check the disk)",
        ),
    )
    for error, states, what, fix in verdicts:
        count, why = of(*states)
        if count:
            raise error(what.format(count), why=why, fix=fix)
    count, _ = of("not asked")
    if count:
        raise UpstreamError(
            f"{count} of what is locked could not be asked for, so nobody knows whether it is still there",
            why="They are listed above, with the reasons. All that was asked for is as it was locked.",
        )
