"""Building: what is told of BuildKit's output, and how build contexts are laid out."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

import kiln.build
from kiln.build import BuildWatcher, known_build, lay_out, reference_of, short_step
from kiln.console import Console
from kiln.engine import Engine
from kiln.errors import DiskFullError, EngineError, StoreDamagedError
from kiln.lockentries import Wheel
from kiln.lockfile import Lock
from kiln.pins import Pins
from kiln.plan import Context
from kiln.process import raise_if_disk_full
from kiln.records import Built
from kiln.render import Rendered, render
from kiln.store import Store, content_time, write_whole
from kiln.workspace import Workspace

LOG = """#0 building with "default" instance using docker driver

#1 [internal] load build definition from Dockerfile
#1 transferring dockerfile: 9.81kB done
#1 DONE 0.0s

#5 [rootfs 1/1] ADD --link rootfs.tar /
#5 CACHED

#6 [tools 1/1] RUN --network=none --mount=type=bind,from=wheels-tools,target=/wheels     for wheel in /wheels/*.whl; do python3.11 -m zipfile --extract "$wheel"
#6 0.401 extracting
#6 DONE 1.2s

#7 [base 1/1] RUN --network=none     --mount=type=bind,from=wheels-base,target=/wheels     /tools/uv pip install --quiet
#8 [app 1/1] RUN --network=none     --mount=type=bind,from=wheels-app,target=/wheels     /tools/uv pip install --quiet
#7 0.512 resolving the base
#8 0.612 error: Failed to install: toy_app-2.0-py3-none-any.whl (toy-app==2.0)
#8 0.613   Caused by: the zip archive is broken
#7 0.700 CANCELED
#8 ERROR: process "/bin/sh -c /tools/uv pip install" did not complete successfully: exit code: 2

#7 CANCELED
------
 > [app 1/1] RUN --network=none     --mount=type=bind,from=wheels-app,target=/wheels:
0.613   Caused by: the zip archive is broken
------
ERROR: target toy-serving: failed to solve: process "/bin/sh -c /tools/uv pip install" did not complete successfully: exit code: 2
"""


def watched(log: str, console: Console | None = None) -> BuildWatcher:
    watcher = BuildWatcher(console or Console(quiet=True))
    for line in log.splitlines():
        watcher.line(line)
    return watcher


def test_the_failing_step_is_named_and_its_own_lines_are_kept() -> None:
    watcher = watched(LOG)
    assert watcher.failure.startswith("the build step app: RUN")
    assert watcher.tail().splitlines() == [
        "error: Failed to install: toy_app-2.0-py3-none-any.whl (toy-app==2.0)",
        "  Caused by: the zip archive is broken",
    ]


def test_only_the_last_lines_of_a_long_step_are_kept() -> None:
    noise = "\n".join(f"#8 0.5 line {number}" for number in range(500))
    tail = watched(LOG.replace("#8 0.612", f"{noise}\n#8 0.612")).tail().splitlines()
    assert len(tail) == 20
    assert tail[-1] == "  Caused by: the zip archive is broken"


def test_headers_that_buildkit_repeats_are_no_lines_of_the_step() -> None:
    header = next(line for line in LOG.splitlines() if line.startswith("#8 ["))
    tail = watched(LOG.replace("#8 0.613", f"#8 ...\n\n{header}\n#8 0.613")).tail()
    assert "RUN" not in tail
    assert "..." not in tail.splitlines()


def test_without_a_failing_step_the_last_lines_are_told() -> None:
    watcher = watched("#1 [internal] load\nERROR: no such builder\n")
    assert watcher.failure == ""
    assert watcher.tail().splitlines()[-1] == "ERROR: no such builder"


def test_a_build_that_works_has_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    good = LOG[: LOG.index("#7")] + "#9 exporting to oci image format\n#9 exporting layers 2.0s done\n#9 DONE 3.0s\n"
    assert watched(good, Console()).failure == ""
    said = capsys.readouterr().err
    assert "tools: done 1.2s" in said
    assert "tools: done 1.2s" in said
    assert said.count("packing the layers") == 1


@pytest.mark.parametrize(
    ("text", "short"),
    [
        (
            "[app 1/1] RUN --network=none     --mount=type=bind,from=x,target=/wheels     cd /wheels && make",
            "app: RUN cd /wheels && make",
        ),
        ("[linux/amd64 app  3/12] COPY --link --from=base /out/ /", "app: COPY --from=base /out/ /"),
        ("[internal] load build definition", "[internal] load build definition"),
        ("exporting to image", "exporting to image"),
    ],
)
def test_a_step_is_called_as_people_call_it(text: str, short: str) -> None:
    assert short_step(text) == short


def test_a_long_step_is_cut_to_a_line() -> None:
    assert len(short_step("[app 1/1] RUN " + "word " * 100)) <= 88


@pytest.mark.parametrize(
    "line", ["cp: error writing 'x': No space left on device", "E: You don't have enough free space in /x."]
)
def test_a_full_disk_in_a_programs_output_is_told_as_such(line: str) -> None:
    with pytest.raises(DiskFullError) as caught:
        raise_if_disk_full(f"before\n  {line}\nafter")
    assert caught.value.why == line


@pytest.fixture
def store(toy: Workspace) -> Store:
    return Store(toy.state / "store")


def stored(store: Store, file: str) -> Wheel:
    """A wheel in the store whose bytes are its file name."""
    source = store.folder / file
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text(file)
    return Wheel("app", file.split("-")[0], "1", file, store.add_made(source), len(file))


def test_a_context_of_wheels_holds_them_and_their_requirements(toy: Workspace, store: Store) -> None:
    wheels = (stored(store, "one-1-py3-none-any.whl"), stored(store, "two-1-py3-none-any.whl"))
    folder = lay_out(toy, Context("wheels-app", "", "d" * 64, wheels=wheels), store, "")
    assert sorted(path.name for path in folder.iterdir()) == [
        "one-1-py3-none-any.whl",
        "requirements.txt",
        "two-1-py3-none-any.whl",
    ]
    times = {path.name: path.stat().st_mtime for path in (folder, *folder.iterdir())}
    assert times.pop("requirements.txt") == times.pop(folder.name) == content_time("d" * 64)
    assert times == {wheel.file: content_time(wheel.sha256) for wheel in wheels}
    assert lay_out(toy, Context("wheels-app", "", "d" * 64, wheels=wheels), store, "") == folder


def test_a_damaged_wheel_is_found_even_where_the_context_is_there(toy: Workspace, store: Store) -> None:
    wheel = stored(store, "one-1-py3-none-any.whl")
    context = Context("wheels-app", "", "d" * 64, wheels=(wheel,))
    lay_out(toy, context, store, "")
    store.path(wheel.sha256).write_text("ONE-1-py3-none-any.whl")
    with pytest.raises(StoreDamagedError, match="one-1-py3"):
        lay_out(toy, context, store, "")


def test_a_context_that_somebody_changed_is_laid_out_anew(toy: Workspace, store: Store) -> None:
    wheel = stored(store, "one-1-py3-none-any.whl")
    context = Context("wheels-app", "", "d" * 64, wheels=(wheel,))
    placed = lay_out(toy, context, store, "") / wheel.file
    placed.unlink()
    placed.write_text("something else")
    lay_out(toy, context, store, "")
    assert placed.read_text() == wheel.file


def test_a_context_of_sources_leaves_caches_and_tests_out(toy: Workspace, store: Store) -> None:
    plugin = toy.root / "plugins" / "toy-plugin"
    for name in ("__pycache__", "tests", ".ruff_cache"):
        (plugin / name).mkdir()
    folder = lay_out(toy, Context("source-plugins", "", "e" * 64, sources=("plugins/toy-plugin",)), store, "")
    assert sorted(path.name for path in (folder / "toy-plugin").iterdir()) == ["pyproject.toml", "toy_plugin.py"]
    assert {path.stat().st_mtime for path in folder.rglob("*")} == {content_time("e" * 64)}


def test_the_main_context_is_the_root_file_system(toy: Workspace, store: Store) -> None:
    rootfs = stored(store, "rootfs")
    folder = lay_out(toy, Context("rootfs", "", "f" * 64), store, rootfs.sha256)
    assert hashlib.sha256((folder / "rootfs.tar").read_bytes()).hexdigest() == rootfs.sha256


ENGINE = Engine("unix:///nowhere", "28", "1.48", private=False)
DIGEST = "sha256:" + "a" * 64


@pytest.fixture
def rendered(toy: Workspace, toy_pins: Pins, toy_lock: Lock) -> Rendered:
    return render(toy, toy_pins, toy_lock)[0]


def test_an_image_is_known_only_where_key_and_digest_hold(
    toy: Workspace, rendered: Rendered, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = {"digest": DIGEST}
    monkeypatch.setattr(kiln.build, "image_digest", lambda _engine, _reference: held["digest"])
    built = Built(rendered.image.name, rendered.key, DIGEST, reference_of(rendered), 1.0)
    assert known_build(toy, rendered, ENGINE) is None
    record = toy.state / "builds" / f"toy-serving-{rendered.key[:16]}.json"
    write_whole(record, json.dumps(built.__dict__))
    assert known_build(toy, rendered, ENGINE) == built
    held["digest"] = "sha256:" + "b" * 64
    assert known_build(toy, rendered, ENGINE) is None
    held["digest"] = DIGEST
    write_whole(record, json.dumps(replace(built, key="0" * 64).__dict__))
    assert known_build(toy, rendered, ENGINE) is None
    write_whole(record, "{}")
    assert known_build(toy, rendered, ENGINE) is None


def test_an_engine_that_holds_another_image_than_was_built_is_an_error(
    toy: Workspace,
    toy_pins: Pins,
    toy_lock: Lock,
    rendered: Rendered,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kiln.build, "make_rootfs", lambda *_: "")
    monkeypatch.setattr(kiln.build, "lay_out", lambda *_: tmp_path)
    monkeypatch.setattr(kiln.build, "_bake", lambda *_: {rendered.image.name: {"containerimage.digest": DIGEST}})
    monkeypatch.setattr(kiln.build, "image_digest", lambda _engine, _reference: "sha256:" + "b" * 64)
    with pytest.raises(EngineError, match=DIGEST):
        kiln.build.build(toy, toy_pins, toy_lock, rendered, Store(tmp_path / "store"), ENGINE, Console(quiet=True))


def test_a_step_is_spoken_of_once_it_takes_time_and_one_from_the_cache_is_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    watcher = BuildWatcher(Console())
    for line in ("#6 [a 1/1] RUN --network=none one", "#7 [b 1/1] RUN --network=none two", "#7 CACHED", "#6 0.1 words"):
        watcher.line(line)
    assert capsys.readouterr().err == ""
    watcher.tick(time.monotonic() + 2)
    assert capsys.readouterr().err.split() == ["a:", "RUN", "one"]
    watcher.tick(time.monotonic() + 4)
    watcher.line("#6 DONE 4.0s")
    assert capsys.readouterr().err.split() == ["a:", "done", "4.0s"]
    assert watcher.cached == 1
