"""What a person would write by hand for the content of the CPU image: one plain Dockerfile, one step that installs every wheel.

It is as good as such a Dockerfile gets: the same locked wheels, the same uv, wheels mounted and not copied into a layer. What it lacks is what Kiln is for:
a layer a component.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

from kiln.image import Image
from kiln.lockfile import TOOLS, Lock
from kiln.pins import Pins
from kiln.store import Store
from kiln.wheels import requirements_text

TAG = "bench/plain"


def dockerfile(pins: Pins, image: Image) -> str:
    """The Dockerfile's text."""
    sources = [source for component in pins.components for source in component.sources]
    plugins = " ".join(f"/build/{source}" for source in sources)
    install = f"/build/uv pip install --quiet --no-cache --no-index --no-deps --find-links=/build/wheels --python=/usr/bin/python{pins.python} --break-system-packages"
    lines = [
        "FROM scratch",
        "ADD rootfs.tar /",
        "RUN --mount=type=bind,source=build,target=/build \\",
        f"    {install} --requirement=/build/requirements.txt",
        *(
            ["RUN --mount=type=bind,source=build,target=/build,readwrite \\", f"    {install} {plugins}"]
            if plugins
            else []
        ),
        *(f"ENV {name}={json.dumps(value)}" for name, value in image.env),
        f"WORKDIR {image.workdir}",
        f"USER {image.user}",
        f"ENTRYPOINT {json.dumps(list(image.entrypoint))}",
    ]
    return "\n".join(lines) + "\n"


def write_context(folder: Path, root: Path, pins: Pins, lock: Lock, image: Image, store: Store, rootfs: str) -> None:
    """Lay out the folder that the Dockerfile is built in: hard links to the store's files, and the project's own plugins."""
    build = folder / "build"
    (build / "wheels").mkdir(parents=True)
    (folder / "Dockerfile").write_text(dockerfile(pins, image), encoding="utf-8")
    _link(store.path(rootfs), folder / "rootfs.tar")
    for component in pins.components:
        for source in component.sources:
            ignored = shutil.ignore_patterns("__pycache__", "tests", "dist")
            shutil.copytree(root / source, build / source, ignore=ignored)
    for wheel in lock.wheels_of(TOOLS):
        path = store.path(wheel.sha256)
        if wheel.name == "uv":
            _unpack_uv(path, build / "uv")
        else:
            _link(path, build / "wheels" / wheel.file)
    set_wheels(folder, pins, lock, store)


def set_wheels(folder: Path, pins: Pins, lock: Lock, store: Store) -> None:
    """Have the folder hold the lock's wheels and no others, as a person's edit of requirements.txt would leave it."""
    build = folder / "build"
    wanted = {wheel.file: wheel for component in pins.components for wheel in lock.wheels_of(component.name)}
    tools = {wheel.file for wheel in lock.wheels_of(TOOLS)}
    for old in (build / "wheels").iterdir():
        if old.name not in wanted and old.name not in tools:
            old.unlink()
    for file, wheel in wanted.items():
        if not (build / "wheels" / file).exists():
            _link(store.path(wheel.sha256), build / "wheels" / file)
    (build / "requirements.txt").write_text(requirements_text(wanted.values()), encoding="utf-8")


def _unpack_uv(wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as files:
        name = next(name for name in files.namelist() if name.endswith(".data/scripts/uv"))
        target.write_bytes(files.read(name))
    target.chmod(0o755)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
