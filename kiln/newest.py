"""The newest release of a component: which tags of its repository are releases, or what its index has; and what was passed over, and why."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from kiln.errors import ResolveError
from kiln.pins import ComponentPins, Pins
from kiln.wheels import resolve


@dataclass(frozen=True)
class Newest:
    """The ref to go to ("": none, and ``why``), and the newer ones that were passed over, with the reason of each."""

    ref: str
    passed_over: tuple[tuple[str, str], ...] = ()
    why: str = ""


def pinned_release(component: ComponentPins) -> Version | None:
    """The release that a component is pinned to, or that its pinned commit lies next to; None where the pins do not say."""
    return _release(component.ref, _words(component.ref)) or (Version(component.version) if component.version else None)


def newest_tag(component: ComponentPins, tags: Iterable[str], refused: Callable[[str], str]) -> Newest:
    """The newest release (PEP 440) among a repository's tags that is newer than the pinned one; ``refused`` says why a tag is not to be
    taken, or nothing. Release candidates and development releases are passed over, and tags that begin as a release's and are none."""
    pinned = pinned_release(component)
    if pinned is None:
        return Newest("", (), f"the pins give no release of {component.ref[:12]}, so none can be said to be newer")
    words = _words(component.ref)
    releases: list[tuple[Version, str]] = []
    passed: list[tuple[Version, str, str]] = []
    for tag in tags:
        version = _release(tag, words)
        begins = re.match(rf"(?:{re.escape(words)}|v?)(\d+(?:\.\d+)+)", tag)
        if version is None:
            if begins and Version(begins[1]) > pinned:
                passed.append((Version(begins[1]), tag, "is no version (PEP 440)"))
        elif version > pinned and version.is_prerelease:
            kind = "a development release" if version.is_devrelease else "a release candidate"
            passed.append((version, tag, kind))
        elif version > pinned:
            releases.append((version, tag))
    chosen: tuple[Version, str] | None = None
    for version, tag in sorted(releases, reverse=True):
        if reason := refused(tag):
            passed.append((version, tag, reason))
        else:
            chosen = (version, tag)
            break
    newer = tuple((tag, why) for version, tag, why in sorted(passed, reverse=True) if not chosen or version > chosen[0])
    if chosen:
        return Newest(chosen[1], newer)
    return Newest("", newer, "every newer release was passed over" if newer else "there is no newer release")


def newest_wheel(pins: Pins, component: ComponentPins) -> Newest:
    """The newest release of a wheel component's first wheel that the stack's Python can take, by the indexes that pip is configured for.

    Raises ResolveError with pip's own words.
    """
    wanted = Requirement(component.wheels[0])
    (pinned,) = (Version(one.version) for one in wanted.specifier)
    index = dict(pins.indexes).get(component.index)
    found = _on_index(pins, wanted.name, [])
    if index and Version(found).local != pinned.local:
        found = _on_index(pins, wanted.name, [index])
    newest = Version(found)
    if newest <= pinned:
        return Newest("", (), f"the newest that the stack's Python can take is {found}")
    if newest.local != pinned.local:
        return Newest(
            "",
            ((found, f"is another build, and of +{pinned.local} no index that answered has it"),),
            "every newer release was passed over",
        )
    return Newest(found)


def _on_index(pins: Pins, name: str, indexes: list[str]) -> str:
    found = resolve(pins, [name, "--no-deps"], indexes).get(str(canonicalize_name(name)))
    if found is None:
        raise ResolveError(f"pip says nothing of {name}", fix="see what pip is configured for (`pip config list`)")
    return found.version


def _words(ref: str) -> str:
    """What stands before the version in a tag: ``v`` in most, a name in some."""
    return "" if re.fullmatch(r"[0-9a-f]{7,40}", ref) else re.sub(r"\d.*", "", ref)


def _release(tag: str, words: str) -> Version | None:
    bare = tag.removeprefix(words) if words and tag.startswith(words) else tag.removeprefix("v")
    # A commit's digits can read as a version; no release has one number alone.
    if not re.match(r"\d+\.\d", bare):
        return None
    try:
        return Version(bare)
    except ValueError:
        return None
