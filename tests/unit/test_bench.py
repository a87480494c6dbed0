"""The benchmark's own arithmetic, files and drawing. What it measures is no test's affair."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiln.console import Console
from kiln.lockfile import Lock, read_lock
from kiln.pins import Pins, read_pins
from kiln.render import Rendered, render
from kiln.store import Store
from tests.bench import docs, plain, stacks
from tests.bench import lab as lab_module
from tests.bench.figures import carried_out
from tests.bench.lab import BenchError, Lab
from tests.bench.plot import draw
from tests.bench.results import Figure, Machine, Runs, document, read_document, table

MACHINE = Machine("A Processor <fast>", 2, 8 << 30, "6.1", "3.11.2", "26.1.5", "0.13.1", 0.5)
COLD = Figure("cold", "seconds", Runs("kiln", (9.0, 1.0, 2.0)), Runs("hand", (8.0, 4.0)), 50 << 20, None, 0.4, {"n": 1})
PULL = Figure("pull", "bytes", Runs("kiln", (5e6,)), Runs("hand", (1e8,)), None, 4e6, 0.1)
ALONE = Figure("start", "seconds", Runs("kiln --version", (0.25,)))


def test_a_figure_has_the_medians_and_their_ratio() -> None:
    assert (COLD.kiln.median, COLD.other and COLD.other.median, COLD.ratio) == (2.0, 6.0, pytest.approx(1 / 3))
    assert (ALONE.ratio, ALONE.met) == (None, None)


def test_a_target_is_met_where_every_bound_holds() -> None:
    assert COLD.met is True
    assert replace(COLD, most_ratio=0.3).met is False
    assert replace(COLD, most=2.0).met is True
    assert replace(COLD, most=1.9).met is False
    assert PULL.met is False
    # A ratio that was not measured meets nothing.
    assert replace(ALONE, most_ratio=1.0).met is False


def test_the_document_is_read_as_it_was_written(tmp_path: Path) -> None:
    data = document([COLD, PULL, ALONE], MACHINE, "abc", "2026-11-24T00:00:00Z")
    file = tmp_path / "results.json"
    file.write_text(json.dumps(data))
    figures, read = read_document(file)
    assert figures == [COLD, PULL, ALONE]
    assert read == data
    assert data["figures"][0]["ratio"] == COLD.ratio
    assert data["figures"][0]["compared"] == {"about": "hand", "runs": [8.0, 4.0], "median": 6.0}
    assert data["machine"]["cpu"] == MACHINE.cpu
    file.write_text('{"schema": 2}')
    with pytest.raises(ValueError, match="schema 2"):
        read_document(file)


def test_the_table_has_a_row_for_each_figure() -> None:
    rows = table([COLD, PULL, ALONE]).splitlines()[2:]
    assert rows == [
        "| cold | 2.00 s | 6.00 s | 0.333 | 3 / 2 | 50 MiB | ratio at most 0.4: met |",
        "| pull | 5.0 MB | 100.0 MB | 0.050 | 1 / 1 |  | at most 4.0 MB, ratio at most 0.1: missed |",
        "| start | 0.25 s |  |  | 1 |  |  |",
    ]


def test_the_plot_is_the_same_bytes_each_time_and_holds_every_run() -> None:
    text = draw([COLD, PULL, ALONE], "A <machine>")
    assert draw([COLD, PULL, ALONE], "A <machine>") == text
    svg = ET.fromstring(text)  # noqa: S314 - our own text
    name = "{http://www.w3.org/2000/svg}"
    texts = ["".join(one.itertext()) for one in svg.iter(f"{name}text")]
    assert "A <machine>" in texts
    assert {"cold", "start", "2.00 s", "6.00 s", "0.25 s", "0.1 s", "10 s"} <= set(texts)
    # Bytes have no place on an axis of seconds.
    assert "pull" not in texts
    runs = [one for one in svg.iter(f"{name}path") if one.get("class") == "run"]
    assert len(runs) == 3 + 2 + 1
    widths = {
        one.get("class"): float(one.get("width", 0)) for one in svg.iter(f"{name}rect") if one.get("height") == "15"
    }
    assert widths["bar1"] > widths["bar0"] > 0


@given(st.lists(st.floats(0.001, 1e5), min_size=1, max_size=6), st.lists(st.floats(0.001, 1e5), min_size=1, max_size=6))
def test_every_run_lies_within_the_drawing(ours: list[float], theirs: list[float]) -> None:
    svg = ET.fromstring(draw([Figure("f", "seconds", Runs("", tuple(ours)), Runs("", tuple(theirs)))], "t"))  # noqa: S314
    for one in svg.iter("{http://www.w3.org/2000/svg}path"):
        if one.get("class") == "run":
            assert 230 <= float(one.get("d", "")[1:].split()[0]) <= 760


def test_a_plot_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no figure in seconds"):
        draw([PULL], "t")


def test_the_page_takes_the_measured_part_in(project: Path) -> None:
    data = document([COLD, ALONE], MACHINE, "abc", "2026-11-24T00:00:00Z")
    text = docs.PAGE.read_text(encoding="utf-8")
    once = docs.page(text, data)
    assert docs.page(once, data) == once
    assert table([COLD, ALONE]) in once
    assert "A Processor <fast>, 2 cores, 8 GiB; load 0.5" in once
    assert once.startswith(text[: text.index("<!-- measured -->")])


def test_what_is_published_is_what_was_measured() -> None:
    if not docs.RESULTS.is_file():
        assert "Not measured on a quiet machine yet." in docs.PAGE.read_text(encoding="utf-8")
        return
    data = json.loads(docs.RESULTS.read_text(encoding="utf-8"))
    text = docs.PAGE.read_text(encoding="utf-8")
    assert docs.page(text, data) == text
    assert docs.PLOT.read_text(encoding="utf-8") == docs.drawn(data)


@pytest.mark.parametrize("count", [1, 7])
def test_an_invented_stack_is_planned_and_rendered_like_any_other(tmp_path: Path, count: int) -> None:
    workspace = stacks.write_stack(tmp_path / "project", count)
    pins = read_pins(workspace, stacks.STACK)
    (rendered,) = render(workspace, pins, read_lock(workspace, pins))
    assert [unit.name for unit in rendered.units] == stacks.component_names(count)
    assert len({unit.key for unit in rendered.units}) == count
    assert all(len(unit.inputs) == stacks.WHEELS_EACH for unit in rendered.units)


def test_the_plain_dockerfile_is_what_a_person_would_write(toy_pins: Pins, rendered: Rendered) -> None:
    assert plain.dockerfile(toy_pins, rendered.image) == (
        "FROM scratch\n"
        "ADD rootfs.tar /\n"
        "RUN --mount=type=bind,source=build,target=/build \\\n"
        "    /build/uv pip install --quiet --no-cache --no-index --no-deps --find-links=/build/wheels --python=/usr/bin/python3.11 --break-system-packages"
        " --requirement=/build/requirements.txt\n"
        "RUN --mount=type=bind,source=build,target=/build,readwrite \\\n"
        "    /build/uv pip install --quiet --no-cache --no-index --no-deps --find-links=/build/wheels --python=/usr/bin/python3.11 --break-system-packages"
        " /build/plugins/toy-plugin\n"
        'ENV PLAIN="C.UTF-8"\n'
        'ENV QUOTED="a \\"quoted\\" word, a $dollar and a back\\\\slash"\n'
        "WORKDIR /srv\n"
        "USER 1000:1000\n"
        'ENTRYPOINT ["toy", "serve"]\n'
    )


def test_a_bump_of_the_plain_folder_exchanges_one_wheel(toy_pins: Pins, toy_lock: Lock, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    folder = tmp_path / "plain"
    (folder / "build" / "wheels").mkdir(parents=True)
    for wheel in toy_lock.wheels:
        path = store.path(wheel.sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wheel.file)
    plain.set_wheels(folder, toy_pins, toy_lock, store)
    first = {path.name for path in (folder / "build" / "wheels").iterdir()}
    assert first == {wheel.file for wheel in toy_lock.wheels if wheel.component != "tools"}
    app = next(wheel for wheel in toy_lock.wheels if wheel.name == "toy-app")
    new = replace(app, version="3.0", file="toy_app-3.0-py3-none-any.whl")
    bumped = replace(toy_lock, wheels=tuple(new if wheel is app else wheel for wheel in toy_lock.wheels))
    plain.set_wheels(folder, toy_pins, bumped, store)
    second = {path.name for path in (folder / "build" / "wheels").iterdir()}
    assert second ^ first == {app.file, new.file}
    wanted = (folder / "build" / "requirements.txt").read_text()
    assert "toy-app==3.0 " in wanted
    assert "toy-app==2.0 " not in wanted


def test_only_steps_that_were_carried_out_count() -> None:
    log = """#7 [transformers 1/1] RUN --network=none uv
#8 [torch 1/1] RUN --network=none uv
#8 CACHED
#9 [plugins-wheels 1/1] RUN --network=none flit
#7 0.401 installing
#7 DONE 3.1s
#9 DONE 0.2s
#10 [cpu-serving 2/9] COPY --link --from=torch /out/ /
#10 DONE 0.1s
"""
    assert carried_out(log) == {"transformers", "plugins"}


def test_kilns_own_memory_is_measured_and_its_result_passed_on(project: Path, tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, project / "tests" / "bench" / "measured.py", tmp_path / "memory", *words]
        return subprocess.run(
            argv, capture_output=True, text=True, check=False, cwd=project, env={"PYTHONPATH": str(project)}
        )

    done = run("--version")
    assert (done.returncode, done.stdout.startswith("kiln, version")) == (0, True)
    assert 5 << 20 < int((tmp_path / "memory").read_text()) < 500 << 20
    (tmp_path / "memory").unlink()
    assert run("no-such-command").returncode == 2
    assert (tmp_path / "memory").is_file()


def test_an_unknown_figure_is_refused(project: Path) -> None:
    argv = [sys.executable, "-m", "tests.bench", "nonsense"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=project)
    assert done.returncode == 2
    assert "no such figure: nonsense" in done.stderr


def test_a_disk_that_could_be_filled_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(tmp_path / "bench", 1, Console(quiet=True))
    monkeypatch.setattr(lab_module, "ROOM", 0)
    lab.require_room()
    monkeypatch.setattr(lab_module, "ROOM", 1e18)
    with pytest.raises(BenchError, match="GB left: name another"):
        _ = lab.engine
    assert not (lab.state / "engine").exists()
