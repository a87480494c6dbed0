"""One stack, made ready for a command: its pins with what the command line chose, its lock, and what the advisories say of them.

The stages do not know each other; this is where a command gets them in their order.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from kiln.config import Config, read_config
from kiln.console import Console
from kiln.errors import LockMissingError, LockStaleError, SourceError, UnresolvedError, UpstreamError, UsageError
from kiln.gpu import gpus
from kiln.levels import SETTING_OF
from kiln.lockentries import BaseImage
from kiln.lockfile import Lock, read_lock
from kiln.overrides import apply_choices
from kiln.pins import Pins, read_pins
from kiln.store import Store, write_whole
from kiln.workspace import Workspace

if TYPE_CHECKING:
    from kiln.advisories import Finding
    from kiln.builders import Builder
    from kiln.cache import Cache
    from kiln.engine import Engine
    from kiln.fetch import Fetched
    from kiln.git import GitCache
    from kiln.lockrocm import Upstreams
    from kiln.records import Built
    from kiln.render import Rendered

REACH_SECONDS = 5.0


@dataclass(frozen=True)
class Choice:
    """What the command line says beside the stack's name: refs to take instead of the pins', advisories to go past, a checkpoint to serve, builders."""

    sets: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    model: str = ""
    builder: str = ""


@dataclass(frozen=True)
class Session:
    """The workspace at work on a stack. What is given beside the first three is a rehearsal's, in place of what is found otherwise."""

    workspace: Workspace
    store: Store
    console: Console
    standin_base: str = ""
    given_engine: Engine | None = None
    given_config: Config | None = None
    given_git: GitCache | None = None

    @cached_property
    def config(self) -> Config:
        """Mirrors and apt sources, from kiln.toml and the environment."""
        return self.given_config or read_config(self.workspace)

    @cached_property
    def git(self) -> GitCache:
        """The cache of git repositories."""
        from kiln.git import GitCache

        return self.given_git or GitCache(self.workspace.state / "git", self.config)

    @cached_property
    def engine(self) -> Engine:
        """The container engine; one is started where there is none. Raises HostError, EngineError."""
        from kiln.engine import ensure_engine

        return self.given_engine or ensure_engine(self.workspace.state, self.console)

    @cached_property
    def cache(self) -> Cache | None:
        """The component cache in a registry; None where none is set."""
        from kiln.cache import Cache
        from kiln.registryclient import Repository

        if not self.config.cache:
            return None
        return Cache(self.workspace, self.store, self.engine, self.console, Repository(self.config.cache))

    def pins(self, stack: str, choice: Choice) -> Pins:
        """The pins of a stack with the command line's choices. Raises PinsError, UsageError."""
        return apply_choices(read_pins(self.workspace, stack), choice.sets)

    def lock(self, pins: Pins) -> Lock:
        """The lock of these pins. With choices that were never locked, they are resolved now, and what they leave alone stays as it is locked.

        Raises LockMissingError, LockStaleError, LockInvalidError, and what resolving raises.
        """
        try:
            return read_lock(self.workspace, pins)
        except (LockMissingError, LockStaleError):
            if not pins.overrides:
                raise
        from kiln.lock import make_lock

        self.console.step(f"resolving {', '.join(f'{name}={ref}' for name, ref in pins.overrides)}")
        make_lock(self.workspace, pins, self.store, self.console, self.upstreams_of(pins))
        return read_lock(self.workspace, pins)

    def upstreams_of(self, pins: Pins) -> Upstreams | None:
        """Whom locking these pins asks beside pip and apt: nobody for a cpu stack."""
        from kiln.lockrocm import Upstreams

        if not pins.base:
            return None
        return Upstreams(self.config, self.git, self.package_status)

    def package_status(self, image: BaseImage, pull: bool) -> bytes:
        """What dpkg says is installed in the base image (or in its stand-in); it is pulled if it may be. Raises UpstreamError."""
        from kiln.baseimage import base_name, ensure_base, package_status
        from kiln.engine import find_engine, image_digest

        if self.standin_base:
            return package_status(self.engine, self.standin_base)
        if pull:
            return package_status(self.engine, ensure_base(self.engine, self.config, image, self.console, self.store))
        found, _ = find_engine(self.workspace.state)
        if found is None or image_digest(found, base_name(image.digest)) != image.digest:
            raise UpstreamError(
                "the base image, which has packages already, is not in the engine, and its registry does not answer"
            )
        return package_status(found, base_name(image.digest))

    def early_refusal(self, pins: Pins, allow: Collection[str]) -> None:
        """Raise AdvisoryError where the pins alone, nothing asked and nothing fetched, are known to be bad."""
        from kiln.advisories import enforce, read_advisories

        if pins.target != "rocm":
            return
        advisories = read_advisories(self.workspace)
        findings = [finding for finding in self.findings(pins, None, ()) if finding.decided_by != "unknown"]
        enforce(findings, allow, [advisory.id for advisory in advisories])

    def findings(
        self, pins: Pins, lock: Lock | None, images: Sequence[Rendered], *, ask: bool = False, model: str = ""
    ) -> tuple[Finding, ...]:
        """What the advisories say of these pins, this lock, these recipes, and a checkpoint that is to be served (a folder).

        A source's history decides where it is in the cache; ``ask`` fetches it where it is not.
        """
        from kiln.advisories import judge, read_advisories
        from kiln.advisory_rules import SWITCH_PLUGIN, Facts
        from kiln.git import GitCache

        if pins.target != "rocm":
            return ()
        commits = {git.component: git.commit for git in lock.gits} if lock else {}
        refs = {name: item.ref for name, item in pins.by_name.items()}
        environment = {key: value for rendered in images for key, value in rendered.image.env}
        urls = {name: item.git for name, item in pins.by_name.items()}
        facts = Facts(
            aiter_ref=refs.get("aiter", ""),
            aiter_commit=commits.get("aiter", ""),
            vllm_ref=refs.get("vllm", ""),
            vllm_commit=commits.get("vllm", ""),
            rocm=pins.base.rocm if pins.base else "",
            archs=pins.archs,
            switch_plugin=any(SWITCH_PLUGIN in item.sources for item in pins.components),
            recipes={unit.name: unit.stage for rendered in images for unit in rendered.units},
            environment=environment,
            hidden_size=_size(model, "hidden_size"),
            hc_mult=_size(model, "hc_mult"),
        )
        # Stand-ins have no history of AITER's or vLLM's: there the refs decide, by the table.
        if lock and self.standin_base:
            facts = replace(facts, aiter_commit="", vllm_commit="")
        elif lock:
            cache = self.git if ask else GitCache(self.workspace.state / "git", self.config, offline=True)

            def file_at(name: str, commit: str, path: str) -> bytes | None:
                try:
                    return cache.file_at(urls[name], commit, path)
                except (UpstreamError, SourceError):
                    return None

            facts = replace(
                facts, contains=lambda name, *commits: cache.contains(urls[name], *commits), file_at=file_at
            )
        return judge(read_advisories(self.workspace), facts)

    def unsafe_here(self, pins: Pins, lock: Lock, images: Sequence[Rendered], allow: Collection[str]) -> dict[str, str]:
        """The mHC backends that are known to give wrong results on this machine's GPUs, with the advisory's word; none where there is no GPU."""
        archs = tuple(sorted({gpu.arch for gpu in gpus()} & set(pins.archs)))
        return self.unsafe_on(archs, pins, lock, images, allow)

    def unsafe_on(
        self,
        archs: tuple[str, ...],
        pins: Pins,
        lock: Lock | None,
        images: Sequence[Rendered],
        allow: Collection[str] = (),
    ) -> dict[str, str]:
        """The same for GPUs of ``archs``. Without the lock the pins' refs alone decide, so the answer is the same on every machine."""
        from kiln.advisory_rules import RevisionRule

        found = self.findings(replace(pins, archs=archs), lock, images) if archs else ()
        return {
            finding.advisory.rule.path: f"advisory {finding.advisory.id}: {finding.because}"
            for finding in found
            if isinstance(finding.advisory.rule, RevisionRule)
            and finding.advisory.rule.path in SETTING_OF
            and finding.advisory.severity == "wrong-results"
            and finding.advisory.id not in allow
        }

    def ready(
        self, stack: str, choice: Choice, *, refuse: bool = True
    ) -> tuple[Pins, Lock, tuple[Rendered, ...], tuple[Finding, ...]]:
        """Pins, lock, rendered images and findings of a stack. Raises AdvisoryError (with ``refuse``) where a finding is not allowed."""
        from kiln.advisories import enforce, read_advisories
        from kiln.render import render

        pins = self.pins(stack, choice)
        if refuse:
            self.early_refusal(pins, choice.allow)
        lock = self.lock(pins)
        images = render(self.workspace, pins, lock)
        findings = self.findings(pins, lock, images, model=choice.model)
        if pins.target == "rocm":
            ids = [advisory.id for advisory in read_advisories(self.workspace)]
            applying = enforce(findings, choice.allow if refuse else ids, ids)
            allowed = tuple(name for name in applying if name in choice.allow)
            if allowed:
                pins = replace(pins, allowed=allowed)
                images = render(self.workspace, pins, lock)
        return pins, lock, images, findings

    def require_resolved(self, pins: Pins, lock: Lock) -> None:
        """Raise UnresolvedError naming everything that is open, whom one cannot reach from here, and the ways on."""
        if not lock.unresolved:
            return
        silent = self._unreachable(pins, lock)
        try:
            lock.require_resolved()
        except UnresolvedError as error:
            if not silent:
                raise
            why = (
                "not reached from this machine:\n"
                + "\n".join(f"  {line}" for line in silent)
                + "\n\nopen:\n"
                + _indented(error.why)
            )
            fix = (
                "either name a mirror or a local clone for what is not reached (kiln.toml [mirrors] or KILN_MIRRORS, see docs/mirrors.md) and run\n"
                f"  kiln lock {pins.stack}\n"
                "or build the stack that needs none of it, on any machine:\n"
                "  make image STACK=cpu"
            )
            raise UnresolvedError(error.what, why=why, fix=fix) from None

    def _unreachable(self, pins: Pins, lock: Lock) -> list[str]:
        """Whom of those that the open entries need one cannot reach now, a line each; every host is asked once, all at the same time."""
        from concurrent.futures import ThreadPoolExecutor
        from urllib.parse import urlsplit

        from kiln.errors import KilnError
        from kiln.registry import tag_digest

        open_names = {entry.name for entry in lock.unresolved}
        urls = [item.git for item in pins.components if item.git and item.name in open_names]
        hosts: dict[str, str] = {}
        for url in urls:
            hosts.setdefault(urlsplit(self.config.mirrored(url)).netloc or self.config.mirrored(url), url)

        def registry() -> str:
            assert pins.base is not None, "only a stack on a base image has open entries"
            try:
                tag_digest(self.config, pins.base.image, pins.base.tag)
            except KilnError as error:
                return f"{pins.base.image} ({error.why or error.what})"
            return ""

        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(self.git.reachable, url, REACH_SECONDS) for url in hosts.values()]
            base = pool.submit(registry)
            found = [f"{host} ({reason})" for host, job in zip(hosts, asked, strict=True) if (reason := job.result())]
            return found + ([base.result()] if base.result() else [])

    def base_override(self, pins: Pins, lock: Lock, builder: Builder) -> tuple[str, ...]:
        """Have the base image in the engine, and a bake file that says under which name; in a rehearsal that is the stand-in's.

        A builder elsewhere does not see the engine: it pulls the base image itself, by its digest, from where this site reads it.
        """
        from kiln.baseimage import ensure_base

        if not pins.base:
            return ()
        (image,) = lock.images
        if builder.name:
            name = f"{self.config.mirrored(image.name)}@{image.digest}"
        else:
            name = self.standin_base or ensure_base(self.engine, self.config, image, self.console, self.store)
        # BuildKit looks for a context under the reference's short form, in which Docker Hub has no host.
        reference = pins.base.reference.removeprefix("docker.io/")
        exchanged = {"target": {one: {"contexts": {reference: f"docker-image://{name}"}} for one in pins.images[:1]}}
        write_whole(self.workspace.state / "base.json", json.dumps(exchanged, indent=2) + "\n")
        return ("base.json",)

    def fetch(self, pins: Pins, lock: Lock) -> Fetched:
        """Every input of the lock into the store: files, then sources."""
        from kiln.fetch import fetch, fetch_sources

        done = fetch(pins, lock, self.store, self.workspace.state / "apt", self.console, self.config)
        fetch_sources(lock, self.store, self.git, self.console)
        return done


def _size(model: str, name: str) -> int:
    """A size that the kernels care about, from a checkpoint's config.json; 0 where there is none to read."""
    try:
        return int(json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))[name]) if model else 0
    except (OSError, ValueError, TypeError, KeyError):
        return 0


@dataclass(frozen=True)
class BuiltStack:
    """A stack whose images are in the engine."""

    pins: Pins
    lock: Lock
    engine: Engine
    rendered: tuple[Rendered, ...]
    images: tuple[Built, ...]


def build_stack(
    session: Session, stack: str, choice: Choice, image: str = ""
) -> tuple[tuple[Finding, ...], BuiltStack]:
    """The images of a stack in the engine, built where they are not; ``image`` names one to end with.

    Raises what the stages raise; UnresolvedError and AdvisoryError before anything is fetched or started.
    """
    from kiln.ready import build_images

    pins, lock, images, findings = session.ready(stack, choice)
    for finding in findings:
        session.console.note(f"advisory {finding.advisory.id}: {finding.because}")
    session.require_resolved(pins, lock)
    if image:
        names = [rendered.image.name for rendered in images]
        if image not in names:
            raise UsageError(
                f"{stack!r} has no image {image!r}", why=f"It has {', '.join(names)}.", fix="name one of them"
            )
        chosen = next(rendered for rendered in images if rendered.image.name == image)
        images = tuple(rendered for rendered in images if rendered.image.name in (*chosen.parents, image))
    built, new = build_images(session, pins, lock, images, choice.builder or session.config.builder)
    if new and session.cache and session.config.cache_push:
        session.cache.share(pins, new)
    return findings, BuiltStack(pins, lock, session.engine, images, tuple(built))


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
