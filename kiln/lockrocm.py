"""Locking a ROCm stack: sources by peeled commit, the base image by digest, archives and wheels by sha256.

What cannot be asked for now stays as it was locked before, or becomes an ``unresolved`` entry with the reason: nothing is guessed. What was
locked before and is still pinned stays untouched, with one exception that is an error: a tag that points elsewhere today.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import TypeVar
from urllib.parse import urlsplit

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kiln.apt import Apt, sources_for
from kiln.canonical import digest_of, sha256_file
from kiln.config import Config
from kiln.console import Console
from kiln.errors import HostError, MovedRefError, SourceError, UpstreamError
from kiln.fetch import download_archive, fetch, sizes
from kiln.git import GitCache, Submodule
from kiln.lockentries import Archive, BaseImage, Deb, Git, Unresolved, Wheel
from kiln.lockfile import TOOLS, Lock
from kiln.pins import ArchivePin, ComponentPins, Pins
from kiln.registry import tag_digest
from kiln.requirements import unmet
from kiln.store import Store
from kiln.uv import resolve_for
from kiln.workspace import Workspace

BASE = "base"
T = TypeVar("T")


@dataclass(frozen=True)
class Upstreams:
    """Whom locking asks: git, mirrors, and ``status``, which gives the base image's package status (dpkg's) or raises UpstreamError; whether it
    may pull the image for that is said with it."""

    config: Config
    git: GitCache
    status: Callable[[BaseImage, bool], bytes]


def lock_rocm(
    workspace: Workspace,
    pins: Pins,
    old: Lock | None,
    upstreams: Upstreams,
    store: Store,
    console: Console,
    *,
    moved_is_fine: Collection[str] = (),
    upgrade: bool = False,
) -> Lock:
    """The lock of these pins, as far as it can be resolved now.

    ``old`` is the lock that there was; ``moved_is_fine`` names components whose tags may point elsewhere than in it; ``upgrade`` resolves wheels
    and packages anew although nothing asks for it. Raises MovedRefError with both commits, RefNotFoundError, ResolveError, SourceError.
    """
    locking = _Locking(
        pins, old or Lock(pins.stack, "", (), ()), upstreams, store, console, frozenset(moved_is_fine), upgrade
    )
    console.step(f"resolving the base image and {sum(bool(c.git) for c in pins.components)} sources")
    image = locking.image()
    gits = locking.gits()
    archives = locking.archives(gits)
    wheels = locking.wheels(workspace)
    locking.compare(gits, wheels)
    debs = locking.debs(workspace, image)
    return Lock(
        pins.stack,
        pins.sha256,
        debs,
        wheels,
        archives,
        gits,
        (image,) if image else (),
        tuple(locking.unresolved),
        tuple(sorted(locking.roots.items())),
    )


class _Locking:
    """One run of locking: what is open, and which hosts did not answer, so that none is asked twice in vain."""

    def __init__(
        self,
        pins: Pins,
        old: Lock,
        upstreams: Upstreams,
        store: Store,
        console: Console,
        moved_is_fine: frozenset[str],
        upgrade: bool,
    ) -> None:
        self.pins, self.old, self.upstreams, self.store, self.console = pins, old, upstreams, store, console
        self.moved_is_fine, self.upgrade = moved_is_fine, upgrade
        self.unresolved: list[Unresolved] = []
        self.roots: dict[str, str] = {}
        self._silent: dict[str, str] = {}

    def image(self) -> BaseImage | None:
        base = self.pins.base
        assert base is not None, "a ROCm stack has a base image"
        known = base.digest or next(
            (old.digest for old in self.old.images if (old.name, old.tag) == (base.image, base.tag)), ""
        )
        try:
            found = self._ask(base.image, lambda: tag_digest(self.upstreams.config, base.image, base.tag))
        except UpstreamError as error:
            if known:
                return BaseImage(base.image, base.tag, known)
            self._open("image", base.image, base.tag, error)
            return None
        if known and found != known:
            if not base.digest and BASE not in self.moved_is_fine:
                raise _moved(f"{base.image}:{base.tag}", known, found, BASE, self.pins.stack)
            self.console.note(f"{base.image}:{base.tag} is {found} today; the pinned digest {known[:19]}… stays")
        return BaseImage(base.image, base.tag, base.digest or found)

    def gits(self) -> tuple[Git, ...]:
        return tuple(git for component in self.pins.components if component.git and (git := self._git(component)))

    def _git(self, component: ComponentPins) -> Git | None:
        """The source of one component; where nobody answers, what was locked of it before, if it is still pinned so."""
        old = self.old.git_of.get(component.name)
        left_out = tuple(path for path, _ in component.without_submodules)
        if old and (old.url, old.ref, old.left_out) != (component.git, component.ref, left_out):
            old = None
        if old and not _same_picks(old, component):
            old = None
        if old and old.ref == old.commit and not self._open_before(component.name):
            # A commit is what it is: there is nothing to ask.
            return old
        git, cache = component.git, self.upstreams.git
        try:
            commit = self._ask(git, lambda: cache.resolve(git, component.ref))
            if old and commit != old.commit and component.name not in self.moved_is_fine:
                raise _moved(f"{git} {component.ref}", old.commit, commit, component.name, self.pins.stack)
            if old and commit == old.commit and not self._open_before(component.name):
                return old
            picks = tuple(
                (pick.git, self._ask(pick.git, lambda pick=pick: cache.resolve(pick.git, pick.ref)))  # type: ignore[misc]
                for pick in component.picks
            )
            tree = cache.tree(git, commit, picks)
            submodules = self._submodules(component, commit, left_out, picks)
        except UpstreamError as error:
            if old:
                self.unresolved += [
                    entry for entry in self.old.unresolved if entry.name == component.name and entry.kind == "submodule"
                ]
                return old
            self._open("git", component.name, f"{git}@{component.ref}", error)
            return None
        self.console.note(f"{component.name:18} {component.ref[:18]:18} {commit}")
        named = tuple(f"{url}@{picked}" for url, picked in picks)
        return Git(component.name, git, component.ref, commit, tree, submodules, named, left_out)

    def _open_before(self, name: str) -> bool:
        return any(entry.kind == "submodule" and entry.name == name for entry in self.old.unresolved)

    def _submodules(
        self, component: ComponentPins, commit: str, left_out: tuple[str, ...], picks: tuple[tuple[str, str], ...]
    ) -> tuple[Submodule, ...]:
        cache = self.upstreams.git
        links = cache.gitlinks(component.git, commit, left_out, picks=picks)
        try:
            if not links:
                return ()
            for link in links:
                if reason := self._silent.get(self._host_of(link.url)):
                    raise UpstreamError(f"{self._host_of(link.url)} does not answer", why=reason)
            # Whichever of their hosts is silent, the first link's is remembered: most repositories have all of theirs on one.
            return self._ask(links[0].url, lambda: cache.submodules(component.git, commit, left_out, picks=picks))
        except UpstreamError as error:
            # The first level is written in the commit itself; whether those have submodules of their own is not known.
            for link in links:
                self._open(
                    "submodule",
                    component.name,
                    f"{link.path}@{link.commit}",
                    error,
                    "whether it has submodules of its own is not known",
                )
            return links

    def archives(self, gits: tuple[Git, ...]) -> tuple[Archive, ...]:
        sources = {git.component: git for git in gits}
        return tuple(
            archive
            for component in self.pins.components
            for pin in component.archives
            if (archive := self._archive(component, pin, sources.get(component.name)))
        )

    def _archive(self, component: ComponentPins, pin: ArchivePin, git: Git | None) -> Archive | None:
        old = next((a for a in self.old.archives if (a.component, a.name) == (component.name, pin.name)), None)
        try:
            if pin.version_from and not git:
                raise UpstreamError(
                    f"{pin.version_from} of the source names a part of its address, and the source is not resolved"
                )
            version = ""
            if pin.version_from and git:
                version = self._version_in(git, pin)
            url = pin.url.format(version=version)
            if old and old.url == url and pin.sha256 in ("", old.sha256):
                return old
            return self._ask(url, lambda: self._download(component.name, pin, url))
        except UpstreamError as error:
            if old and git and git == self.old.git_of.get(component.name) and _could_be(old, pin):
                return old
            self._open("archive", component.name, f"{pin.name}: {pin.url}", error)
            return None

    def _version_in(self, git: Git, pin: ArchivePin) -> str:
        """The first line of the file of a source that names a version. Raises UpstreamError, SourceError where there is no such line."""
        text = self._ask(git.url, lambda: self.upstreams.git.file_at(git.url, git.commit, pin.version_from))
        lines = (text or b"").decode(errors="replace").strip().splitlines()
        if not lines:
            raise SourceError(
                f"{git.label}: {pin.version_from} names no version of {pin.name}",
                why="It is empty." if text is not None else "The source has no such file.",
                fix=f"correct components.{git.component}.archives.{pin.name} in the pins",
            )
        return lines[0].strip()

    def _download(self, component: str, pin: ArchivePin, url: str) -> Archive:
        with self.store.scratch() as scratch:
            path = scratch / "archive"
            download_archive(self.upstreams.config, url, path)
            size, sha256 = path.stat().st_size, pin.sha256 or sha256_file(path)
            self.store.add(path, sha256=sha256, size=size, label=f"{component}: {pin.name}", origin=url)
        self.console.note(f"{component}: {pin.name} {sha256[:16]}… {size} bytes")
        return Archive(component, pin.name, url, sha256, size)

    def wheels(self, workspace: Workspace) -> tuple[Wheel, ...]:
        holders = [component for component in self.pins.components if component.holds_wheels]
        absent, as_of = _absent(self.pins), self.pins.as_of
        root = wheel_root(self.pins)
        self.roots["wheels"] = root
        if dict(self.old.roots).get("wheels") == root and not self.upgrade:
            return self.old.wheels
        self.console.step(f"resolving the wheels of {', '.join(item.name for item in holders)}")
        # All together first, so that there is one version of everything; then who brings what.
        everything = [text for item in holders for text in (*item.wheels, *item.requires)]
        chosen = resolve_for(self.pins, everything, absent=absent, as_of=as_of)
        pinned = [f"{wheel.name}=={wheel.version}" for wheel in chosen.values()]
        taken: set[str] = set()
        shares: list[Wheel] = []
        named = {str(canonicalize_name(Requirement(text).name)) for item in holders for text in item.wheels}
        for item in holders:
            if item.wheels:
                names = {str(canonicalize_name(Requirement(text).name)) for text in item.wheels}
            else:
                names = (
                    set(resolve_for(self.pins, item.requires, absent=absent, constraints=pinned, as_of=as_of)) - named
                )
            shares += [replace(chosen[name], component=item.name) for name in sorted(names - taken)]
            taken |= names
        # What only a pinned wheel needs goes with the last component that may hold anything, or else with the last of all.
        last = [item.name for item in sorted(holders, key=lambda item: bool(item.requires))][-1:]
        shares += [replace(chosen[name], component=last[0]) for name in sorted(chosen.keys() - taken)]
        shares += [replace(wheel, component=TOOLS) for wheel in resolve_for(self.pins, self.pins.tools).values()]
        self.console.note(f"{len(shares)} wheels")
        unmeasured = [wheel for wheel in shares if not wheel.size]
        fetch(
            self.pins,
            Lock(self.pins.stack, "", (), tuple(unmeasured)),
            self.store,
            workspace.state / "apt",
            self.console,
        )
        measured = sizes(self.store, unmeasured)
        return tuple(replace(wheel, size=wheel.size or measured[wheel.sha256]) for wheel in shares)

    def compare(self, gits: tuple[Git, ...], wheels: tuple[Wheel, ...]) -> None:
        """Where a source wants another wheel than the locked one, that wheel is open: somebody must choose. A source that is not here says
        nothing."""
        cache = self.upstreams.git
        for git in gits:

            def read(path: str, git: Git = git) -> bytes | None:
                return cache.file_at(git.url, git.commit, path)

            try:
                self.unresolved += unmet(self.pins, git.component, read, wheels)
            except UpstreamError:
                continue

    def debs(self, workspace: Workspace, image: BaseImage | None) -> tuple[Deb, ...]:
        wanted = self.pins.packages
        root = digest_of([image.digest if image else "", wanted.suite, wanted.packages])
        if dict(self.old.roots).get("packages") == root and not self.upgrade:
            self.roots["packages"] = root
            return self.old.debs
        what = f"{wanted.distribution} {wanted.suite}"
        about = f"{len(wanted.packages)} packages by name"
        try:
            if image is None:
                raise UpstreamError("what the base image has already is not known while its digest is not")
            # A registry that did not answer just now would not answer the engine either.
            status = self.upstreams.status(image, self._host_of(image.name) not in self._silent)
            sources = sources_for(wanted.suite, wanted.distribution, dict(self.upstreams.config.apt_sources))
            apt = Apt(
                workspace.state / "apt" / f"{wanted.suite}-base",
                wanted.suite,
                wanted.architecture,
                status=status,
                sources=sources,
            )
            apt.update()
            self.console.step(f"resolving {len(wanted.packages)} packages of {what} on the base image")
            debs = tuple(apt.resolve(wanted.packages))
        except (UpstreamError, HostError) as error:
            if dict(self.old.roots).get("packages") == root:
                self.console.note(f"the packages of {what} stay as they are locked: {error.what}")
                self.roots["packages"] = root
                return self.old.debs
            self._open("packages", what, about, error)
            return ()
        self.roots["packages"] = root
        self.console.note(f"{len(debs)} packages")
        return debs

    def _ask(self, url: str, question: Callable[[], T]) -> T:
        """Ask an upstream, unless its host was silent before in this run. Raises UpstreamError."""
        host = self._host_of(url)
        if reason := self._silent.get(host):
            raise UpstreamError(f"{host} does not answer", why=reason)
        try:
            return question()
        except UpstreamError as error:
            if not host:
                raise
            # git names the repository in its message, which says nothing of the next one on the same host.
            reason = re.sub(r"^fatal: unable to access '[^']*': ", "", (error.why or error.what).splitlines()[-1])
            self._silent[host] = reason
            raise UpstreamError(f"{host} does not answer", why=reason) from error

    def _host_of(self, url: str) -> str:
        return _host(self.upstreams.config.mirrored(url))

    def _open(self, kind: str, name: str, ref: str, error: UpstreamError | HostError, what: str = "") -> None:
        because = error.what + (f" ({error.why.splitlines()[-1]})" if error.why else "")
        reason = f"{what}: {because}" if what else because
        self.unresolved.append(Unresolved(kind, name, ref, reason))


def _absent(pins: Pins) -> list[str]:
    """The distributions that are built from source, so that no index may bring them."""
    return sorted({name for component in pins.components for name in component.provides})


def wheel_root(pins: Pins) -> str:
    """The checksum over everything in the pins that decides which wheels are chosen."""
    asked = [(item.name, item.wheels, item.requires) for item in pins.components if item.holds_wheels]
    return digest_of([asked, pins.tools, _absent(pins), pins.python, pins.glibc, pins.as_of])


def _same_picks(old: Git, component: ComponentPins) -> bool:
    """Whether what was picked is still what is pinned; a ref that is not the beginning of the commit's id is asked again."""
    picked = [pick.rpartition("@") for pick in old.picks]
    pinned = component.picks
    return len(picked) == len(pinned) and all(
        url == pin.git and commit.startswith(pin.ref) for (url, _, commit), pin in zip(picked, pinned, strict=True)
    )


def _could_be(old: Archive, pin: ArchivePin) -> bool:
    """Whether a locked archive's address is one that the pin's can become."""
    pattern = re.sub(r"\\\{version[^}]*\}", "[^/]+", re.escape(pin.url))
    return pin.sha256 in ("", old.sha256) and re.fullmatch(pattern, old.url) is not None


def _host(url: str) -> str:
    """The host of an address, or nothing for a path on this machine."""
    return urlsplit(url).netloc if "://" in url else url.split("/", 1)[0]


def _moved(what: str, was: str, now: str, name: str, stack: str) -> MovedRefError:
    return MovedRefError(
        f"{what} points elsewhere than it did when it was locked",
        why=f"locked {was}\nnow    {now}",
        fix="nothing was changed: the lock still names what you built with. Find out why it moved before you trust it "
        f"(AITER's v0.1.12 moved, and the images built from it were wrong); then: kiln lock {stack} --accept-moved {name}",
    )
