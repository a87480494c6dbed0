"""The README on a bare machine: what it says is done as it stands, and another bare machine pulls what came of it. ``make newcomer``.

Both machines are Debian 12 with git, make and Python and nothing else (``bare.py``). Nothing of Kiln's is shared with this checkout or between them: neither the content store nor
wheels, engine or environments; everything is downloaded. They share the commits, in a repository that both clone from and the first pushes to, and the registry, as two people
do. That the whole is cold is why it takes some fifteen minutes of two cores, and why `make test` has it with FULL=1 alone.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kiln.console import Console
from kiln.cosign import Cosign
from kiln.host import ENGINE_PACKAGES, ensure_cosign
from tests import manual
from tests.conftest import FULL, PROJECT
from tests.e2e.bare import Machine, Ran, machine, make_root
from tests.integration.registry import Registry, registry_in
from tests.integration.release.conftest import make_keys

pytestmark = pytest.mark.skipif(not FULL, reason="everything from nothing takes some fifteen minutes: make newcomer")
README = (PROJECT / "README.md").read_text(encoding="utf-8")
SAYS = "On a bare Debian 12 machine with Python 3.11, as root, with nothing installed but git and make:\n\n"
CLONE = "/root/kiln"
ORIGIN = "/srv/kiln.git"
INSTALLED = {"python3-venv", "mmdebstrap", *ENGINE_PACKAGES}


@dataclass(frozen=True)
class First:
    """The machine on which the README was followed: how its commands ended, and what was installed before and after."""

    machine: Machine
    ran: dict[str, Ran]
    before: set[str]
    after: set[str]


def readme_commands() -> list[str]:
    """What the README says to run on such a machine, but for `make test`, which is where this runs."""
    block = README.partition(SAYS)[2].partition("\n\n")[0]
    commands = [line.partition("#")[0].strip() for line in block.splitlines()]
    return [command for command in commands if command != "make test"]


def page_command(page: str, begin: str, **words: str) -> str:
    """The command of a page of the manual that begins so, with a place of ours for an example's."""
    lines = [line for block in manual.read_blocks(PROJECT / "docs" / page) for line in block.text.splitlines()]
    command = next(line for line in lines if line.startswith(begin))
    for example, ours in words.items():
        assert example.replace("_", ".") in command
        command = command.replace(example.replace("_", "."), ours)
    return command


def asked_for(bare: Machine) -> set[str]:
    """The packages that were asked for there, by whom it may be; what they depend on is not among them."""
    return set(bare.must("apt-mark showmanual").out.split())


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Gigabytes: not where pytest keeps the folders of earlier runs. What a killed run left is removed first."""
    made = PROJECT / ".kiln" / "newcomer"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def log() -> Path:
    """What the machines' commands said, to be followed while they run. It stays."""
    path = PROJECT / ".kiln" / "newcomer.log"
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    return path


@pytest.fixture(scope="module")
def root(folder: Path) -> Path:
    make_root(folder / "root", PROJECT / ".kiln")
    return folder / "root"


@pytest.fixture(scope="module")
def origin(folder: Path) -> Path:
    """What people clone: the commits of this checkout."""
    words = ["git", "-c", "advice.detachedHead=false", "clone", "--quiet", "--bare", "--no-local"]
    subprocess.run([*words, PROJECT, folder / "kiln.git"], check=True, timeout=120)
    return folder / "kiln.git"


@pytest.fixture(scope="module")
def registry(folder: Path) -> Iterator[Registry]:
    """A registry that both reach."""
    with registry_in(folder / "registry") as made:
        yield made


@contextmanager
def cloned(root: Path, origin: Path, log: Path) -> Iterator[Machine]:
    """A machine with the clone that the README is read in, and no engine left running at its end."""
    with machine(root, log, {origin: ORIGIN}) as bare:
        bare.must(f"git clone --quiet {ORIGIN} {CLONE}")
        try:
            yield bare
        finally:
            bare.run("make engine-down", cwd=CLONE)


@pytest.fixture(scope="module")
def first(root: Path, origin: Path, folder: Path, log: Path) -> Iterator[First]:
    """The README is followed."""
    # Not shutil's copytree: it would read device nodes to their end.
    subprocess.run(["cp", "--archive", root, folder / "first"], check=True, timeout=300)
    with cloned(folder / "first", origin, log) as bare:
        before = asked_for(bare)
        ran = {command: bare.run(command, cwd=CLONE) for command in readme_commands()}
        yield First(bare, ran, before, asked_for(bare))


@pytest.fixture(scope="module")
def published(first: First, registry: Registry, folder: Path) -> str:
    """The image of the first machine is published as the manual says, with a key that its people have, and the record is pushed. Returns the digest."""
    keys = make_keys(Cosign(ensure_cosign(PROJECT / ".kiln", Console(quiet=True))), folder / "keys")
    shutil.copy(keys / "cosign.key", first.machine.root / CLONE.removeprefix("/"))
    command = page_command("publish.md", "make publish STACK=cpu", registry_example=registry.host)
    done = first.machine.must(command, cwd=CLONE)
    somebody = "-c user.name=Somebody -c user.email=somebody@example.org"
    first.machine.must(
        f"git add releases; git {somebody} commit --quiet --message=Release; git push --quiet", cwd=CLONE
    )
    return digest_in(done.out)


@pytest.fixture(scope="module")
def second(published: str, root: Path, origin: Path, log: Path) -> Iterator[Machine]:
    """Another machine, which has the commits."""
    with cloned(root, origin, log) as bare:
        yield bare


def digest_in(text: str) -> str:
    """The one digest that a text speaks of, in whichever way."""
    (found,) = {digest.replace("-", ":") for digest in re.findall(r"sha256[:-][0-9a-f]{64}", text)}
    return found


@pytest.mark.parametrize("command", readme_commands())
def test_what_the_readme_says_ends_well(first: First, command: str) -> None:
    assert first.ran[command].code == 0, first.ran[command].err[-4000:]
    assert "Traceback" not in first.ran[command].err


def test_the_image_is_the_one_that_the_readme_names(first: First) -> None:
    done = first.ran["make image STACK=cpu"]
    assert digest_in(done.out) == digest_in(README)
    assert done.out.split()[-5:] == ["checks", "20", "of", "20", "passed"]


def test_nothing_is_installed_but_what_is_said(first: First) -> None:
    assert first.after - first.before == INSTALLED
    said = "".join(ran.err for ran in first.ran.values())
    assert all(package in said for package in INSTALLED)


def test_another_bare_machine_pulls_the_image_and_runs_it(first: First, second: Machine, published: str) -> None:
    done = second.must(page_command("publish.md", "make pull STACK=cpu"), cwd=CLONE)
    assert digest_in(done.out) == published == digest_in(README)
    (line,) = re.findall(r"^run it: +(.+)$", done.out, re.MULTILINE)
    assert "usage: vllm serve" in second.must(line).out
