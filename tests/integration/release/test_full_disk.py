"""A disk that is full at every stage: a clear error, nothing wrong or torn, and the next run, with room, completes.

Everything that Kiln and its engine write lies on a small disk. A command runs whole, to know how much it takes; then again with a part of that free, by chance. Whether
there is room is not asked (``unit/test_room.py``): the disk fills after that, as it does beside another program. Once a stage in CI, six times with FULL=1.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kiln.canonical import sha256_file
from kiln.lockfile import dump_lock
from kiln.releases import read_releases
from kiln.store import Store
from kiln.workspace import Workspace
from tests.integration.conftest import IMAGE, Project, Ran, model_folder
from tests.integration.registry import Registry
from tests.integration.release.conftest import (
    FULL,
    SEED,
    Home,
    engine_in,
    point_record,
    sound,
    tried,
    whole_or_nameless,
)
from tests.integration.release.test_kills import containers
from tests.integration.served import lay_archive, lay_index, served

pytestmark = pytest.mark.engine
TIMES = 6 if FULL else 1
BLIND = """
import shutil, sys
asked = shutil.disk_usage
shutil.disk_usage = lambda path: asked(path)._replace(free=1 << 60)
from kiln.cli import main
main()
"""


@dataclass(frozen=True)
class Small:
    """A small disk, with a project and its engine on it."""

    place: Path
    project: Project

    def used(self) -> int:
        return shutil.disk_usage(self.place).used

    @contextmanager
    def watched(self) -> Iterator[list[int]]:
        """How much is used, asked for again and again: what lies there for a while must fit too."""
        found, over = [self.used()], threading.Event()

        def watch() -> None:
            while not over.wait(0.02):
                found.append(self.used())

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield found
        finally:
            over.set()
            thread.join()

    def leave(self, free: int) -> None:
        """Fill the disk, but for so many bytes."""
        with (self.place / "filled").open("wb") as stream:
            for _ in range(20):
                # The engine writes when it likes, too: what was free a moment ago need not be.
                with suppress(OSError):
                    os.posix_fallocate(stream.fileno(), 0, max(shutil.disk_usage(self.place).free - free, 1))
                    return
                time.sleep(0.1)
        pytest.fail("the disk could not be filled")

    def make_room(self) -> None:
        (self.place / "filled").unlink()

    def run(self, project: Project, words: tuple[str, ...], env: dict[str, str]) -> Ran:
        command = project.command(*words)
        command[1:3] = ["-c", BLIND]
        temporary = self.place / "tmp"
        temporary.mkdir(exist_ok=True)
        done = subprocess.run(
            command,
            env={**project.environment, **env, "TMPDIR": str(temporary)},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Ran(done.returncode, done.stdout, done.stderr)

    def filled_and_completed(
        self,
        words: tuple[str, ...],
        prepare: Callable[[int], object],
        look: Callable[[], object],
        env: dict[str, str] | None = None,
        project: Project | None = None,
    ) -> None:
        """Run a command whole once, to know what it takes; then with too little; then with room again."""
        on, env = project or self.project, env or {}
        prepare(0)
        before = self.used()
        with self.watched() as most:
            done = self.run(on, words, env)
        assert done.code == 0, done.err
        takes = max(most) - before
        parts = random.Random(f"{SEED} full {words[0]}")  # noqa: S311
        for number in range(1, TIMES + 1):
            prepare(number)
            part = parts.uniform(0, 0.8)
            self.leave(int(part * takes))
            try:
                done = self.run(on, words, env)
                tried[f"full disk {words[0]}"] += 1
                assert done.code == 23, (part, takes, done.code, done.err)
                assert "what to do" in done.err
                look()
            finally:
                self.make_room()
            done = self.run(on, words, env)
            assert done.code == 0, (part, takes, done.err)
            look()


@pytest.fixture(scope="module")
def small(home: Home) -> Iterator[Small]:
    # The sockets below it must stay short.
    place = Path(tempfile.mkdtemp(prefix="kiln-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3g", "kiln-small", place], check=True)
    try:
        shutil.copytree(home.project.root, place / "toy", symlinks=True, ignore=shutil.ignore_patterns("state"))
        shutil.copytree(home.project.state / "store", place / "s" / "store")
        with engine_in(place / "toy", place / "s") as project:
            assert project.kiln("build", "toy").code == 0
            yield Small(place, project)
    finally:
        subprocess.run(["umount", place], check=True)
        place.rmdir()


def test_render(small: Small) -> None:
    folder = small.project.root / "images" / "toy"

    def forget(_: int) -> None:
        for path in folder.rglob("*"):
            if path.is_file() and path.name != "image.toml":
                path.unlink()

    whole: dict[str, bytes] = {}

    def look() -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                assert whole.setdefault(path.name, path.read_bytes()) == path.read_bytes()

    small.filled_and_completed(("render", "toy"), forget, look)
    assert small.project.kiln("render", "toy", "--check").code == 0


def test_lock(small: Small, tmp_path: Path) -> None:
    project, lock = small.project, small.project.lock
    sources = lay_archive(tmp_path / "archive", project, lock.debs)
    index = lay_index(tmp_path / "index", project, list({wheel.name: wheel for wheel in lock.wheels}.values()))
    old = dump_lock(replace(lock, wheels=lock.wheels[1:]))
    before: list[bytes] = []

    def forget(_: int) -> None:
        before.append(project.lock_file.read_bytes())
        project.lock_file.write_text(old)
        shutil.rmtree(project.state / "apt", ignore_errors=True)
        for wheel in lock.wheels:
            Store(project.state / "store").path(wheel.sha256).unlink(missing_ok=True)

    def look() -> None:
        # What the whole run wrote lay there the second time.
        assert project.lock_file.read_bytes() in (old.encode(), before[1])
        sound(Store(project.state / "store"))

    with served(tmp_path / "archive") as host, served(index) as there:
        (tmp_path / "sources").write_text(sources.format(host=host))
        asked = {
            "KILN_APT_SOURCES": str(tmp_path / "sources"),
            "PIP_INDEX_URL": f"http://{there}/simple",
            "PIP_CONFIG_FILE": os.devnull,
        }
        small.filled_and_completed(("lock", "toy"), forget, look, asked)
    assert {wheel.sha256 for wheel in project.lock.wheels} == {wheel.sha256 for wheel in lock.wheels}
    project.lock_file.write_text(dump_lock(lock))


def test_fetch(small: Small, tmp_path: Path) -> None:
    project = small.project
    store, wheels = Store(project.state / "store"), project.lock.wheels_of("small")
    index = lay_index(tmp_path / "index", project, wheels)

    def forget(_: int) -> None:
        for wheel in wheels:
            store.path(wheel.sha256).unlink(missing_ok=True)

    with served(index) as host:
        asked = {"PIP_INDEX_URL": f"http://{host}/simple", "PIP_CONFIG_FILE": os.devnull}
        small.filled_and_completed(("fetch", "toy"), forget, lambda: sound(store), asked)


def test_build(small: Small) -> None:
    """A component that has a few megabytes of which little can be packed away; with FULL=1 the root file system is made anew each time."""
    project = small.project
    recipe, store = project.root / "images" / "toy" / "image.toml", Store(project.state / "store")

    def another(number: int) -> None:
        recipe.write_text(IMAGE.replace('TOY = "1"', f'TOY = "full {number}"'))
        (project.root / "standin" / "noise.py").write_text(f"NOISE = {os.urandom(2_000_000).hex()!r}\n")
        if FULL:
            shutil.rmtree(store.folder / "made", ignore_errors=True)

    def look() -> None:
        sound(store)
        for path in (project.state / "builds").glob("*.json"):
            json.loads(path.read_text())

    small.filled_and_completed(("build", "toy"), another, look)
    recipe.write_text(IMAGE)
    (project.root / "standin" / "noise.py").unlink()
    assert project.kiln("build", "toy").code == 0


def test_verify(small: Small, tmp_path: Path) -> None:
    project, model = small.project, model_folder(tmp_path / "model")
    reports = project.state / "reports"

    def forget(_: int) -> None:
        for name in ("reports", "bytecode", "proofs", "logs"):
            shutil.rmtree(project.state / name, ignore_errors=True)

    def look() -> None:
        for path in reports.glob("*.json"):
            json.loads(path.read_text())
        assert containers(project) == []

    small.filled_and_completed(("verify", "toy", "--model", str(model)), forget, look)
    assert len(list(reports.iterdir())) == 1


def test_publish(small: Small, home: Home, registry: Registry) -> None:
    project, record = small.project, small.project.root / "releases" / "toy.toml"

    def forget(_: int) -> None:
        shutil.rmtree(registry.folder / "docker", ignore_errors=True)
        record.unlink(missing_ok=True)

    def look() -> None:
        whole_or_nameless(registry, home)
        assert len(read_releases(Workspace(project.root, project.state), "toy")) <= 1

    key = str(home.keys / "cosign.key")
    words = ("publish", "toy", "--to", f"{registry.host}/kiln", "--key", key, "--report", str(home.report))
    small.filled_and_completed((*words, "--tag", "latest", "--take-over"), forget, look)
    assert record.read_text().count("[[release]]") == 1


def test_pull(small: Small, home: Home, registry: Registry) -> None:
    (small.project.root / "releases" / "toy.toml").write_bytes(
        (home.project.root / "releases" / "toy.toml").read_bytes()
    )
    point_record(small.project, registry)
    place = f"{registry.host}/kiln/toy@{home.digest}"
    with engine_in(small.project.root, small.place / "m") as machine:

        def forget(_: int) -> None:
            subprocess.run(["docker", "image", "rm", place], env=machine.environment, capture_output=True, check=False)
            settled(small)

        small.filled_and_completed(("pull", "toy"), forget, lambda: None, project=machine)


def settled(small: Small) -> None:
    """Wait until the engine has thrown away what an image left: it does so in its own time."""
    before = -1
    while before != (before := small.used()):
        time.sleep(1)


def test_bundle_and_unbundle(small: Small) -> None:
    out, away = small.place / "toy.tar", replace(small.project, state=small.place / "u")
    whole: set[str] = set()

    def look() -> None:
        if out.exists():
            whole.add(sha256_file(out))
        assert len(whole) <= 1
        assert not list(small.place.glob(".*.part"))

    small.filled_and_completed(("bundle", "toy", "--out", str(out)), lambda _: out.unlink(missing_ok=True), look)

    def forget(_: int) -> None:
        shutil.rmtree(away.state, ignore_errors=True)

    store = Store(away.state / "store")
    small.filled_and_completed(("unbundle", str(out)), forget, lambda: sound(store), project=away)
    assert json.loads(away.kiln("--json", "fetch", "toy").out)["new_files"] == 0
    forget(0)
