"""The README on a bare machine: what it says is done as it stands, and another bare machine pulls what came of it. ``make newcomer``.

Both machines are Debian 12 with git, make and Python and nothing else (``bare.py``). Nothing of Kiln's is shared with this checkout or between them: neither the content store nor
wheels, engine or environments; everything is downloaded. They share the commits, in a repository that both clone from and the first pushes to, and the registry, as two people
do. That the whole is cold is why it takes some fifteen minutes of two cores, and why `make test` has it with FULL=1 alone.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from kiln.console import Console
from kiln.cosign import Cosign
from kiln.host import ENGINE_PACKAGES, ensure_cosign
from tests import manual
from tests.conftest import FULL, PROJECT
from tests.e2e.bare import HOME, Machine, Ran, machine, make_root
from tests.integration.registry import Registry, registry_in
from tests.integration.release.conftest import make_keys

pytestmark = pytest.mark.skipif(not FULL, reason="everything from nothing takes some fifteen minutes: make newcomer")
README = (PROJECT / "README.md").read_text(encoding="utf-8")
SAYS = "On a bare Debian 12 machine with Python 3.11, as root, with nothing installed but git and make:\n\n"
CLONE = f"{HOME}/kiln"
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
    block = README.partition(SAYS)[2].partition("\n```\n")[0]
    commands = [line.partition("#")[0].strip() for line in block.splitlines()[1:]]
    return [command for command in commands if command != "make test"]


def manuals(begin: str) -> str:
    """The command that begins so, as the page about publishing has it."""
    blocks = manual.read_blocks(PROJECT / "docs" / "publish.md")
    return next(line for block in blocks for line in block.text.splitlines() if line.startswith(begin))


def asked_for(bare: Machine) -> set[str]:
    """The packages that were asked for there, by whom it may be; what they depend on is not among them."""
    return set(bare.must("apt-mark showmanual").out.split())


def namespaces() -> list[Path]:
    """The mount namespace of every process that is not dead."""
    found = []
    for link in Path("/proc").glob("[0-9]*/ns/mnt"):
        with suppress(OSError):
            found.append(link.readlink())
    return found


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Gigabytes: not where pytest keeps the folders of earlier runs. One run at a time; what a killed one left is removed first."""
    made = PROJECT / ".kiln" / "newcomer"
    made.parent.mkdir(exist_ok=True)
    with made.with_suffix(".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        yield made
        shutil.rmtree(made)


@pytest.fixture(scope="module")
def log(folder: Path) -> Path:
    """What the machines' commands said, to be followed while they run. It stays."""
    path = folder.with_suffix(".log")
    path.write_text("", encoding="utf-8")
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


def copied(root: Path, name: str) -> Path:
    """Another root file system, as new."""
    # Not shutil's copytree: it would read device nodes to their end.
    subprocess.run(["cp", "--archive", root, root.with_name(name)], check=True, timeout=300)
    return root.with_name(name)


@contextmanager
def cloned(root: Path, origin: Path, log: Path) -> Iterator[Machine]:
    """A machine with the clone that the README is read in; its engine is stopped at the end."""
    with machine(root, log, {origin: ORIGIN}) as bare:
        bare.must(f"git clone --quiet {ORIGIN} {CLONE}")
        try:
            yield bare
        finally:
            bare.run("make engine-down", cwd=CLONE)


@pytest.fixture(scope="module")
def first(root: Path, origin: Path, log: Path) -> Iterator[First]:
    """The README is followed."""
    with cloned(copied(root, "first"), origin, log) as bare:
        before = asked_for(bare)
        ran = {command: bare.run(command, cwd=CLONE) for command in readme_commands()}
        yield First(bare, ran, before, asked_for(bare))


@pytest.fixture(scope="module")
def published(first: First, registry: Registry, folder: Path) -> str:
    """The image of the first machine is published as the manual says, with a key that its people have, and the record is pushed. Returns the digest."""
    keys = make_keys(Cosign(ensure_cosign(PROJECT / ".kiln", Console(quiet=True))), folder / "keys")
    shutil.copy(keys / "cosign.key", first.machine.root / CLONE.removeprefix("/"))
    command = manuals("make publish STACK=cpu").replace("registry.example", registry.host)
    done = first.machine.must(command, cwd=CLONE)
    somebody = "-c user.name=Somebody -c user.email=somebody@example.org"
    first.machine.must(
        f"git add releases; git {somebody} commit --quiet --message=Release; git push --quiet", cwd=CLONE
    )
    return digest_in(done.out)


@pytest.fixture(scope="module")
def second(published: str, root: Path, origin: Path, log: Path) -> Iterator[Machine]:
    """Another machine, which has the commits."""
    with cloned(copied(root, "second"), origin, log) as bare:
        yield bare


def digest_in(text: str) -> str:
    """The one digest that a text speaks of, in whichever way."""
    (found,) = {digest.replace("-", ":") for digest in re.findall(r"sha256[:-][0-9a-f]{64}", text)}
    return found


def test_nothing_of_a_machine_is_left_when_what_is_done_there_fails(root: Path, log: Path) -> None:
    place, seen = copied(root, "third"), []

    def fails() -> None:
        with machine(place, log, {}) as bare:
            seen.append(Path(f"/proc/{bare.pid}/ns/mnt").readlink())
            bare.must("mount -t tmpfs tmpfs /media; setsid sleep 1000 >/dev/null 2>&1 &")
            assert namespaces().count(seen[0]) > 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert seen[0] not in namespaces()
    assert not place.exists()
    assert str(place) not in Path("/proc/self/mountinfo").read_text(encoding="utf-8")


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
    done = second.must(manuals("make pull STACK=cpu"), cwd=CLONE)
    assert digest_in(done.out) == published == digest_in(README)
    (line,) = re.findall(r"^run it: +(.+)$", done.out, re.MULTILINE)
    assert "usage: vllm serve" in second.must(line).out
