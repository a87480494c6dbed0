"""The stage *lock*: pins in, lock out. Asks pip and apt what the pins resolve to, downloads it, and measures what came.

Hashes and sizes are taken from the files themselves; the hash that the index names is compared with them, and a
disagreement is an error. What was downloaded goes into the content store, so that the first fetch has nothing to do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kiln.apt import Apt, sources_for
from kiln.config import read_config
from kiln.console import Console
from kiln.errors import LockInvalidError, ResolveError
from kiln.fetch import fetch, sizes
from kiln.lockentries import Deb, Wheel
from kiln.lockfile import TOOLS, Lock, dump_lock, lock_path, parse_lock
from kiln.lockrocm import Upstreams, lock_rocm
from kiln.pins import ComponentPins, Pins
from kiln.store import Store, write_whole
from kiln.wheels import Resolved, resolve
from kiln.workspace import Workspace

# The environment that requirements are judged for: the image's, not this machine's.
_MARKERS = {
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "os_name": "posix",
    "implementation_name": "cpython",
}


def make_lock(
    workspace: Workspace,
    pins: Pins,
    store: Store,
    console: Console,
    upstreams: Upstreams | None = None,
    *,
    moved_is_fine: Collection[str] = (),
    upgrade: bool = False,
) -> tuple[Path, list[str]]:
    """Resolve the pins, write the lock and return its path and what changed in it (empty: it was current to the byte).

    ``upstreams``, ``moved_is_fine`` and ``upgrade`` are for a ROCm stack (see ``kiln.lockrocm``). Raises ResolveError, FetchError,
    HashMismatchError, DiskFullError.
    """
    old = _old_lock(workspace, pins)
    new = resolve_lock(workspace, pins, old, store, console, upstreams, moved_is_fine=moved_is_fine, upgrade=upgrade)
    text = dump_lock(new)
    path = lock_path(workspace, pins)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return path, []
    changes = lock_changes(old, new)
    write_whole(path, text)
    return path, changes or ["written anew: the pins' checksum or the format changed, no input did"]


def resolve_lock(
    workspace: Workspace,
    pins: Pins,
    old: Lock | None,
    store: Store,
    console: Console,
    upstreams: Upstreams | None = None,
    *,
    moved_is_fine: Collection[str] = (),
    upgrade: bool = False,
) -> Lock:
    """What the pins resolve to now, written nowhere; ``old`` is the lock that there was. Raises as ``make_lock`` does."""
    if upstreams:
        return lock_rocm(workspace, pins, old, upstreams, store, console, moved_is_fine=moved_is_fine, upgrade=upgrade)
    return _lock_cpu(workspace, pins, old, store, console)


def _lock_cpu(workspace: Workspace, pins: Pins, old: Lock | None, store: Store, console: Console) -> Lock:
    console.step(f"resolving {len(pins.packages.packages)} Debian packages of {pins.packages.suite} and what they need")
    debs = resolve_debs(workspace, pins)
    console.note(f"{len(debs)} packages")
    console.step(
        "resolving the wheels of "
        + ", ".join(component.name for component in pins.components if component.recipe == "wheels")
    )
    resolved = resolve_components(pins)
    console.note(f"{sum(map(len, resolved.values()))} wheels")
    known = {wheel.sha256: wheel.size for wheel in (old.wheels if old else ())}
    wheels = tuple(_wheel(pins, component, item, known) for component, items in resolved.items() for item in items)
    unmeasured = Lock(pins.stack, pins.sha256, tuple(debs), wheels)
    fetch(pins, unmeasured, store, workspace.state / "apt", console)
    measured = sizes(store, wheels)
    return replace(unmeasured, wheels=tuple(replace(wheel, size=measured[wheel.sha256]) for wheel in wheels))


def resolve_debs(workspace: Workspace, pins: Pins) -> list[Deb]:
    """The Debian packages of the root file system, exactly."""
    wanted = pins.packages
    sources = sources_for(wanted.suite, wanted.distribution, dict(read_config(workspace).apt_sources))
    apt = Apt(workspace.state / "apt" / wanted.suite, wanted.suite, wanted.architecture, sources=sources)
    apt.update()
    return apt.resolve(wanted.packages)


def resolve_components(pins: Pins) -> dict[str, list[Resolved]]:
    """The wheels of every component, each wheel in exactly one.

    Components are resolved together, so that there is one version of everything, and then share out what was chosen in
    the order of the pins: a component takes what it names, and what that needs and nobody above it took. Where another
    component has ``dependencies-of``, that one takes the dependencies instead.
    """
    wheel_components = [component for component in pins.components if component.recipe == "wheels"]
    roots = [Requirement(text) for component in wheel_components for text in component.wheels]
    urls = dict(pins.indexes)
    extra = [urls[component.index] for component in wheel_components if component.index]
    try:
        chosen = _resolve_without(pins, wheel_components, [])
    except ResolveError:
        # An index from the pins is asked only where the user's own has no answer: mirrors and air gaps come first.
        if not extra:
            raise
        chosen = _resolve_without(pins, wheel_components, extra)
    left_out = {name for component in wheel_components for name, _ in component.without}
    delegated = {
        component.dependencies_of: component.name for component in wheel_components if component.dependencies_of
    }
    shares: dict[str, list[Resolved]] = {component.name: [] for component in wheel_components}
    taken: set[str] = set()
    for component in wheel_components:
        named = [str(canonicalize_name(Requirement(text).name)) for text in component.wheels]
        if component.dependencies_of:
            reserved = {str(canonicalize_name(root.name)) for root in roots}
            source = pins.by_name[component.dependencies_of]
            names = (
                _closure(chosen, [str(canonicalize_name(Requirement(text).name)) for text in source.wheels], left_out)
                - reserved
            )
        elif component.name in delegated:
            names = set(named)
        else:
            names = _closure(chosen, named, left_out)
        shares[component.name] = [chosen[name] for name in sorted(names - taken)]
        taken |= names
    tools = resolve(pins, pins.tools)
    shares[TOOLS] = [tools[name] for name in sorted(tools)]
    return shares


def _resolve_without(pins: Pins, components: list[ComponentPins], indexes: list[str]) -> dict[str, Resolved]:
    """Resolve all components at once, with the dependencies that the pins leave out never entering the resolution."""
    requirements: list[str] = []
    kept_apart: dict[str, Resolved] = {}
    for component in components:
        if not component.without:
            requirements += component.wheels
            continue
        # pip cannot leave a dependency out, so the component's own wheels are looked up alone and their needs named in their place.
        alone = resolve(pins, [*component.wheels, "--no-deps"], indexes)
        kept_apart |= alone
        left_out = {name for name, _ in component.without}
        needs = [need for item in alone.values() for need in item.requires if _applies(need, pins)]
        unknown = left_out - {str(canonicalize_name(need.name)) for need in needs}
        if unknown:
            raise ResolveError(
                f"components.{component.name}.without names {min(unknown)!r}, which {', '.join(component.wheels)} does not require",
                fix=f"remove it from pins/{pins.stack}.toml",
            )
        requirements += [_plain(need) for need in needs if str(canonicalize_name(need.name)) not in left_out]
    return kept_apart | resolve(pins, requirements, indexes)


def _closure(chosen: Mapping[str, Resolved], names: list[str], left_out: set[str]) -> set[str]:
    """``names`` and everything among ``chosen`` that they need, extras included."""
    todo = [(name, frozenset[str]()) for name in names]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        item = todo.pop()
        if item in seen:
            continue
        seen.add(item)
        name, extras = item
        for need in chosen[name].requires:
            needed = str(canonicalize_name(need.name))
            if needed in chosen and needed not in left_out and any(_holds(need, extra) for extra in ("", *extras)):
                todo.append((needed, frozenset(need.extras)))
    return {name for name, _ in seen}


def _applies(need: Requirement, pins: Pins) -> bool:
    return _holds(need, "", pins.python)


def _holds(need: Requirement, extra: str, python: str = "") -> bool:
    environment = {**_MARKERS, "extra": extra}
    if python:
        environment["python_version"] = python
    return need.marker is None or need.marker.evaluate(environment)


def _plain(need: Requirement) -> str:
    """The requirement without its marker, which was judged already."""
    bare = Requirement(str(need))
    bare.marker = None
    return str(bare)


def _wheel(pins: Pins, component: str, item: Resolved, known_sizes: Mapping[str, int]) -> Wheel:
    if not item.sha256:
        raise ResolveError(
            f"the index names no sha256 for {item.file}", fix="use an index that does (PEP 503 or PEP 691 with hashes)"
        )
    pinned = pins.by_name.get(component)
    named = {canonicalize_name(Requirement(text).name) for text in pinned.wheels} if pinned else set()
    index = pinned.index if pinned and item.name in named else ""
    return Wheel(component, item.name, item.version, item.file, item.sha256, known_sizes.get(item.sha256, 0), index)


def _old_lock(workspace: Workspace, pins: Pins) -> Lock | None:
    """What was locked before: for these very pins, for an earlier state of them, or (with overrides) without the overrides."""
    for path in (lock_path(workspace, pins), workspace.lock_file(pins.stack)):
        try:
            return parse_lock(path.read_text(encoding="utf-8"), "")
        except (OSError, UnicodeDecodeError, LockInvalidError):
            continue
    return None


def lock_changes(old: Lock | None, new: Lock) -> list[str]:
    """What differs between two locks, a line each, sorted: the body of a commit message."""
    before, after = _facts(old) if old else {}, _facts(new)
    lines = []
    for key in sorted(before.keys() | after.keys()):
        was, now = before.get(key), after.get(key)
        if was != now:
            sign = "~" if was and now else "+" if now else "-"
            lines.append(f"{sign} {key[1]} " + " -> ".join(text for text in (was, now) if text))
    return lines


def _facts(lock: Lock) -> dict[tuple[str, str], str]:
    """What a lock says of every input, in a line each; the key is its kind and its name."""
    facts = {("Deb", deb.name): f"{deb.version} {deb.sha256[:12]}" for deb in lock.debs}
    facts |= {("Wheel", wheel.name): f"{wheel.version} {wheel.sha256[:12]}" for wheel in lock.wheels}
    facts |= {("Archive", f"{one.component} {one.name}"): f"{one.url} {one.sha256[:12]}" for one in lock.archives}
    facts |= {("Image", image.name): f"{image.tag} {image.digest}" for image in lock.images}
    for git in lock.gits:
        facts["Git", git.component] = f"{git.ref} {git.commit}"
        facts |= {("Git", f"{git.component} {sub.path}"): sub.commit for sub in git.submodules}
    return facts | {("Open", f"{one.name} {one.ref}"): f"unresolved: {one.reason}" for one in lock.unresolved}
