"""Invented CPU stacks of any size, for what plans and renders: nothing in them exists, so nothing of them can be fetched or built."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path

from kiln.lockentries import Deb, Wheel
from kiln.lockfile import Lock, dump_lock
from kiln.pins import read_pins
from kiln.workspace import Workspace

PROJECT = Path(__file__).resolve().parents[2]
STACK, IMAGE = "synthetic", "synthetic-serving"
# What a component of the stack `cpu` holds on average is more (25), a component with one wheel is the usual one.
WHEELS_EACH = 3
DEBS = 90

_PINS = """schema = 1

[stack]
name = "synthetic"
about = "{count} invented components"
target = "cpu"
platform = "linux/amd64"
images = ["synthetic-serving"]
epoch = 2026-11-01T00:00:00Z

[python]
version = "3.11"
glibc = "2.36"

[debian]
suite = "bookworm"
architecture = "amd64"
packages = ["python3"]

{components}
[tools]
wheels = ["uv==0.13.8"]
"""
_COMPONENT = """[components.{name}]
recipe = "wheels"
about = "invented component {name}"
wheels = ["{name}==1.{number}"]

"""
_IMAGE = """[image]
name = "synthetic-serving"
about = "an image that nobody builds"
target = "cpu"
template = "serving.Dockerfile.j2"
components = {components}

[runtime]
entrypoint = ["true"]
user = "0:0"
workdir = "/"

[runtime.env]
LANG = "C.UTF-8"

[reproducible]
default = "same-digest"
[verify]
serve = []
memory-gib = 1
start-seconds = 1
answer-seconds = 1

[verify.settings.default]
about = "nothing set"
path = "unfused"
"""


def component_names(count: int) -> list[str]:
    """What the components of a stack of this size are called."""
    return [f"component-{number}" for number in range(count)]


def write_stack(root: Path, count: int) -> Workspace:
    """A project in ``root`` with a stack of ``count`` components of invented wheels and the product's own templates."""
    names = component_names(count)
    for folder in ("pins", f"images/{IMAGE}"):
        (root / folder).mkdir(parents=True)
    for folder in ("templates", "scripts"):
        shutil.copytree(PROJECT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    components = "".join(_COMPONENT.format(name=name, number=number) for number, name in enumerate(names))
    workspace = Workspace(root, root / ".kiln")
    workspace.pins_file(STACK).write_text(_PINS.format(count=count, components=components), encoding="utf-8")
    image = workspace.image_folder(IMAGE) / "image.toml"
    image.write_text(_IMAGE.format(components=json.dumps(names)), encoding="utf-8")
    pins = read_pins(workspace, STACK)
    wheels = [
        _wheel(name, name if number == 0 else f"{name}-needs-{number}", f"1.{position}" if number == 0 else "0.1")
        for position, name in enumerate(names)
        for number in range(WHEELS_EACH)
    ]
    debs = tuple(_deb(f"package-{number}") for number in range(DEBS))
    lock = Lock(STACK, pins.sha256, debs, (*wheels, _wheel("tools", "uv", "0.13.8")))
    workspace.lock_file(STACK).write_text(dump_lock(lock), encoding="utf-8")
    return workspace


def _wheel(component: str, name: str, version: str) -> Wheel:
    file = f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    return Wheel(component, name, version, file, _invented(file), 1000)


def _deb(name: str) -> Deb:
    return Deb(name, "1.0-1", "amd64", f"pool/main/p/{name}/{name}_1.0-1_amd64.deb", _invented(name), 1000)


def _invented(text: str) -> str:
    return sha256(text.encode()).hexdigest()
