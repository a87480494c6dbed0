"""What an image is: the components in it, how it starts, and the checks that hold for it. In: ``images/<image>/image.toml``."""

from __future__ import annotations

from dataclasses import dataclass

from kiln.canonical import digest_of
from kiln.errors import PinsError
from kiln.gates import Gates, read_gates
from kiln.pins import Pins
from kiln.reproducible import LEVELS
from kiln.tomlread import Problems, read_table
from kiln.workspace import Workspace

NEEDS = ("gpu",)
# Those of scripts/check_mhc.py that are an image's own operators, and not the check's.
BACKENDS = ("aiter", "cpu", "tilelang", "torch")


@dataclass(frozen=True)
class Setting:
    """One way to serve with the image: the variables it sets and the mHC path that must then run."""

    name: str
    about: str
    env: tuple[tuple[str, str], ...]
    path: str


@dataclass(frozen=True)
class Image:
    """One image as a person described it. ``parent`` is the image that it stands on, where it stands on another of the stack's.

    ``serve`` are the arguments that the smoke test adds to the entry point; ``memory`` is the server's limit in bytes, and the seconds bound
    its start and all its answers together. ``needs`` says what of the machine serving takes, if it is anything (``NEEDS``). ``backends`` are the
    implementations of the mHC operators in it that are compared with the mathematics (``BACKENDS``), ``gates`` what is measured of it with real
    weights, ``reproducible`` how far each component is claimed to be the same again. ``arch_variables`` are set to
    the architectures of a ROCm stack."""

    name: str
    about: str
    template: str
    components: tuple[str, ...]
    entrypoint: tuple[str, ...]
    user: str
    workdir: str
    env: tuple[tuple[str, str], ...]
    serve: tuple[str, ...]
    memory: int
    start_seconds: int
    answer_seconds: int
    settings: tuple[Setting, ...]
    sha256: str
    command: tuple[str, ...] = ()
    parent: str = ""
    needs: str = ""
    backends: tuple[str, ...] = ()
    gates: Gates | None = None
    reproducible: tuple[tuple[str, str], ...] = ()
    arch_variables: tuple[str, ...] = ()


def read_image(workspace: Workspace, pins: Pins, name: str) -> Image:
    """The description of an image of the stack. Raises PinsError listing everything that is wrong with it."""
    path = workspace.image_folder(name) / "image.toml"
    shown = workspace.shown(path)
    problems = Problems(shown)
    top = read_table(path, shown, problems)
    image, runtime, verify = top.table("image"), top.table("runtime"), top.table("verify")
    settings = []
    group = verify.table("settings", required=False)
    for setting_name in group.names():
        table = group.table(setting_name)
        settings.append(
            Setting(setting_name, table.text("about"), tuple(sorted(table.strings("env").items())), table.text("path"))
        )
        table.done()
    described = Image(
        name=image.text("name"),
        about=image.text("about"),
        template=image.text("template"),
        components=image.texts("components"),
        entrypoint=runtime.texts("entrypoint", ()),
        user=runtime.text("user"),
        workdir=runtime.text("workdir"),
        env=tuple(runtime.strings("env").items()),
        # An image that serves nothing has no server to bound.
        serve=verify.texts("serve", None if settings else ()),
        memory=verify.number("memory-gib", None if settings else 1) << 30,
        start_seconds=verify.number("start-seconds", None if settings else 1),
        answer_seconds=verify.number("answer-seconds", None if settings else 1),
        settings=tuple(settings),
        sha256=digest_of(top.data),
        command=runtime.texts("command", ()),
        parent=image.text("parent", ""),
        needs=verify.text("needs", "", check=lambda text: None if text in NEEDS else f"known: {', '.join(NEEDS)}"),
        backends=verify.texts("backends", ()),
        gates=read_gates(verify.table("gates"), problems) if "gates" in verify.names() else None,
        reproducible=_claims(top.strings("reproducible"), image.texts("components"), problems),
        arch_variables=runtime.texts("arch-variables", ()),
    )
    if described.gates and len(settings) != 2:
        problems.add("verify.gates", f"compare two settings, and [verify.settings] has {len(settings)}")
    if bool(described.entrypoint) != bool(settings) or bool(described.entrypoint) == bool(described.command):
        problems.add(
            "runtime", "give an entrypoint (and [verify.settings] to serve with), or a command where nothing is served"
        )
    if described.parent and described.parent not in pins.images[: pins.images.index(name)]:
        problems.add("image.parent", f"{described.parent!r} is no image before this one in the stack {pins.stack!r}")
    if image.text("target") != pins.target:
        problems.add("image.target", f"is not the target of the stack, {pins.target!r}")
    if described.name != name:
        problems.add("image.name", f"is {described.name!r}, but the folder is images/{name}")
    for component in described.components:
        if component not in pins.by_name:
            problems.add("image.components", f"the stack {pins.stack!r} pins no component {component!r}")
    _known_backends(described.backends, problems)
    _arch_variables(described, pins, problems)
    for table in (image, runtime, verify, top):
        table.done()
    problems.raise_if_any()
    return described


def _claims(claims: dict[str, str], components: tuple[str, ...], problems: Problems) -> tuple[tuple[str, str], ...]:
    """What is claimed of the components by name, and of all others (``default``)."""
    if "default" not in claims:
        problems.add(
            "reproducible.default", "is missing: the level that is claimed of the components that are not named"
        )
    for component, level in claims.items():
        if level not in LEVELS:
            problems.add(f"reproducible.{component}", f"{level!r} is no level; known: {', '.join(LEVELS)}")
        if component not in ("default", *components):
            problems.add(f"reproducible.{component}", "is no component of the image")
    return tuple(claims.items())


def _known_backends(backends: tuple[str, ...], problems: Problems) -> None:
    for unknown in sorted(set(backends) - set(BACKENDS)):
        problems.add("verify.backends", f"{unknown!r} is unknown; known: {', '.join(BACKENDS)}")


def _arch_variables(image: Image, pins: Pins, problems: Problems) -> None:
    if bool(image.arch_variables) != (pins.target == "rocm" and not image.parent):
        problems.add(
            "runtime.arch-variables", "name variables for the image that a ROCm stack stands on, and only there"
        )


def read_images(workspace: Workspace, pins: Pins) -> tuple[Image, ...]:
    """All images of a stack. Raises PinsError also where the stack pins a component that no image holds."""
    images = tuple(read_image(workspace, pins, name) for name in pins.images)
    used = {name for image in images for name in image.components} | {
        name for item in pins.components for name in item.on
    }
    unused = [component.name for component in pins.components if component.name not in used]
    if unused:
        raise PinsError(
            f"pins/{pins.stack}.toml pins {', '.join(unused)}, and no image of the stack holds it",
            why="Nothing is built on it either.",
            fix="name it in an image's components, or remove the pin",
        )
    return images


def chain(images: tuple[Image, ...], name: str) -> tuple[Image, ...]:
    """The image called ``name`` and those it stands on, the lowest first."""
    by_name = {image.name: image for image in images}
    found = [by_name[name]]
    while found[0].parent:
        found.insert(0, by_name[found[0].parent])
    return tuple(found)
