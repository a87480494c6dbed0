"""Overrides: what the command line chooses instead of the pins (``--set NAME=REF``). In: pins and choices. Out: pins.

They live as long as the command, unless they are saved: then they are written into the pins file, comments and all else kept.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import replace

import packaging.version

from kiln.canonical import digest_of
from kiln.errors import UsageError
from kiln.pins import BasePins, ComponentPins, Pins, bad_arch
from kiln.store import write_whole
from kiln.workspace import Workspace

BASE, ARCHS = "base", "archs"
_COMMIT = re.compile(r"[0-9a-f]{7,40}")


def parse_choice(text: str) -> tuple[str, str]:
    """``NAME=REF`` as (name, ref). Raises UsageError where it is not of that form."""
    name, equals, ref = (part.strip() for part in text.partition("="))
    if not name or not equals or not ref or any(sign in ref for sign in " \t\n'\"\\"):
        raise UsageError(f"{text!r} is not NAME=REF", fix="write, for example, --set aiter=v0.1.14")
    return name.lower(), ref


def apply_choices(pins: Pins, choices: Sequence[str]) -> Pins:
    """The pins with every choice (``NAME=REF``) applied; a choice that says what the pins say changes nothing.

    NAME is a component with a tag, a commit or a version to choose, ``base`` (a tag, with or without @digest) or ``archs`` (separated
    by commas or semicolons). Raises UsageError for a name that has nothing to choose, with the nearest that has.
    """
    changed: dict[str, str] = {}
    said: dict[str, str] = {}
    result = pins
    for name, ref in map(parse_choice, choices):
        if said.setdefault(name, ref) != ref:
            raise UsageError(f"{name} is set twice, to {said[name]} and to {ref}", fix="set it once")
        chosen = _apply(result, name, ref)
        if chosen != result:
            changed[name] = ref
        result = chosen
    overrides = tuple(sorted(changed.items()))
    return replace(result, sha256=digest_of([pins.sha256, overrides]), overrides=overrides) if overrides else pins


def _apply(pins: Pins, name: str, ref: str) -> Pins:
    if name == BASE and pins.base:
        return replace(pins, base=_base(pins.base, ref))
    if name == ARCHS and pins.target == "rocm":
        archs = tuple(dict.fromkeys(part for part in re.split(r"[;,]", ref) if part))
        if wrong := [trouble for arch in archs if (trouble := bad_arch(arch))] or (not archs and ["names none"]):
            raise UsageError(f"archs={ref}: {wrong[0]}", fix="write, for example, --set archs=gfx942,gfx950")
        return replace(pins, archs=archs)
    names = {component.name for component in pins.components if component.git or component.wheels}
    if name not in names:
        open_names = sorted(names | ({BASE, ARCHS} if pins.base else set()))
        near = difflib.get_close_matches(name, open_names, 3)
        raise UsageError(
            f"{pins.stack!r} has nothing called {name!r} to set",
            why=(f"Near: {', '.join(near)}. " if near else "") + f"What can be set: {', '.join(open_names)}.",
            fix="name one of these: --set NAME=REF",
        )
    components = tuple(_component(item, ref) if item.name == name else item for item in pins.components)
    return replace(pins, components=components)


def _base(base: BasePins, ref: str) -> BasePins:
    tag, _, digest = ref.partition("@")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", tag):
        raise UsageError(
            f"base={ref}: {tag!r} is no tag", fix="write TAG or TAG@sha256:…; the repository is the pins' affair"
        )
    if digest and not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise UsageError(f"base={ref}: {digest!r} is no digest", fix="write TAG or TAG@sha256:…")
    if tag == base.tag and digest in ("", base.digest):
        return base
    version = re.match(r"(\d+(\.\d+)+)", tag)
    return replace(base, tag=tag, digest=digest, rocm=version[1] if version else base.rocm)


def _component(component: ComponentPins, ref: str) -> ComponentPins:
    if component.git:
        if ref == component.ref:
            return component
        told = version_of(component.version, ref)
        unknown = component.version_in_source and ".dev0+" in told
        return replace(component, ref=ref, version="" if unknown else told)
    first, *rest = component.wheels
    name = first.partition("==")[0].strip()
    try:
        version = packaging.version.Version(ref.removeprefix("v"))
    except ValueError:
        raise UsageError(
            f"{component.name}={ref}: a wheel is chosen by its version", fix="write, for example, 0.1.10"
        ) from None
    return replace(component, wheels=(f"{name}=={version}", *rest))


def version_of(pinned: str, ref: str) -> str:
    """The version that a source at another ref is built as: the tag's, or for a commit the pinned one with the commit in it.

    Nothing is known of a commit's place among the releases, so its version only has to be unlike theirs (PEP 440: a development
    release, with the commit as local part). Empty where the pins give none.
    """
    if not pinned:
        return ""
    if not _COMMIT.fullmatch(ref):
        try:
            return str(packaging.version.Version(ref.removeprefix("v")))
        except ValueError:
            cleaned = re.sub(r"[^a-z0-9]+", ".", ref.lower()).strip(".") or "ref"
            return f"{packaging.version.Version(pinned).base_version}.dev0+{cleaned}"
    return f"{packaging.version.Version(pinned).base_version}.dev0+g{ref[:12]}"


def save(workspace: Workspace, pins: Pins) -> list[str]:
    """Write the overrides of ``pins`` into the pins file; returns what was changed, a line each.

    The file keeps its comments and its order; ``kiln.pins`` reads it afterwards as the same pins without overrides.
    """
    import tomlkit

    path = workspace.pins_file(pins.stack)
    document = tomlkit.parse(path.read_text(encoding="utf-8"))
    lines = []

    def put(table: str, key: str, value: object) -> None:
        target = document
        for part in table.split("."):
            target = target[part]
        old = target.get(key)
        if value in ("", None):
            target.pop(key, None)
        elif old != value:
            target[key] = value
        if old != value:
            lines.append(f"{table}.{key}: {old} -> {value}")

    for name, _ in pins.overrides:
        if name == BASE and pins.base:
            put("base", "tag", pins.base.tag)
            put("base", "digest", pins.base.digest)
            put("base", "rocm", pins.base.rocm)
        elif name == ARCHS:
            put("stack", "archs", list(pins.archs))
        else:
            component = pins.by_name[name]
            if component.git:
                put(f"components.{name}", "ref", component.ref)
                put(f"components.{name}", "version", component.version)
            else:
                put(f"components.{name}", "wheels", list(component.wheels))
    write_whole(path, tomlkit.dumps(document))
    return lines
