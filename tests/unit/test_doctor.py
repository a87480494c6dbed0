"""What ``kiln doctor`` says of a machine: each lack is made (a PATH without the program, a folder of another user's, a socket that answers as an
engine would), and found, with the commands that need it and a fix. Faked is only what a test cannot make: a user, a full disk, a GPU."""

from __future__ import annotations

import json
import os
import socketserver
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import kiln.doctorengine
import kiln.doctorhost
from kiln.cli import run
from kiln.doctor import COMMANDS, Asked, Finding, asked, examine, verdicts
from kiln.doctorengine import engine_findings
from kiln.doctornetwork import _answers, _apt_places, _pip, network_findings
from kiln.engine import CONTAINERD_STORE
from kiln.errors import UsageError
from kiln.gpu import NODES
from kiln.workspace import Workspace
from tests.integration.served import served

VERSION = {"Version": "28.1.0", "ApiVersion": "1.48"}
INFO = {"DriverStatus": [["driver-type", CONTAINERD_STORE]]}


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A PATH with nothing in it but what a test puts there, on Debian, and no plugin of docker's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    for module in (kiln.doctorengine, kiln.host):
        monkeypatch.setattr(module, "buildx_plugin", lambda: None)
    monkeypatch.setattr(kiln.doctorengine, "SYSTEM_SOCKET", tmp_path / "no.sock")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    monkeypatch.setattr(kiln.doctorhost, "debian_codename", lambda: "bookworm")
    return folder


def user(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    for module in (kiln.doctorhost, kiln.doctorengine):
        monkeypatch.setattr(module.os, "geteuid", lambda: number)


def program(folder: Path, name: str, says: str = "") -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def finding(found: tuple[Finding, ...], name: str, status: str = "") -> Finding:
    (one,) = [one for one in found if one.name == name and (not status or one.status == status)]
    return one


def question(
    project: Path, tmp_path: Path, *stacks: str, commands: tuple[str, ...] = (), root: Path = Path("/")
) -> Asked:
    made = asked(Workspace(project, tmp_path / "state"), stacks, commands)
    return Asked(made.workspace, made.stacks, made.commands, root)


def needs(one: Finding) -> set[str]:
    return {command for command, _ in one.needed_by}


def test_without_git_a_stack_of_sources_cannot_be_fetched_and_the_cpu_stack_can(
    project: Path, tmp_path: Path, bare: Path
) -> None:
    both = question(project, tmp_path, "cpu", "dsv4-mhc")
    found = examine(both)
    lack = finding(found, "git")
    assert (lack.status, lack.fix) == ("missing", "apt-get install git   (as root)")
    assert set(lack.needed_by) == {(command, "dsv4-mhc") for command in ("lock", "fetch", "build")}


def test_an_old_git_cannot_pick_commits(project: Path, tmp_path: Path, bare: Path) -> None:
    program(bare, "git", "git version 2.30.2")
    picking = question(project, tmp_path, "dsv4-mhc")
    assert any(one.picks for one in picking.stacks[0].pins.components)
    assert finding(examine(picking), "git").status == "missing"
    (stack,) = picking.stacks
    plain = tuple(replace(one, picks=()) for one in stack.pins.components)
    without = replace(picking, stacks=(replace(stack, pins=replace(stack.pins, components=plain)),))
    assert finding(examine(without), "git").status == "ok"
    program(bare, "git", "git version 2.39.5")
    assert finding(examine(picking), "git").status == "ok"


@pytest.mark.parametrize(("number", "status"), [(0, "warning"), (1000, "missing")])
def test_without_mmdebstrap_root_on_debian_is_warned_and_others_lack_it(
    project: Path, tmp_path: Path, bare: Path, monkeypatch: pytest.MonkeyPatch, number: int, status: str
) -> None:
    program(bare, "apt-get")
    user(monkeypatch, number)
    found = examine(question(project, tmp_path, "cpu", "dsv4-mhc"))
    lack = finding(found, "mmdebstrap")
    assert lack.status == status
    assert set(lack.needed_by) == {("build", "cpu")}
    assert ("root" in {one.name for one in found}) == (number != 0)


@pytest.mark.parametrize(("number", "status"), [(0, "warning"), (1000, "missing")])
def test_without_docker_root_on_debian_gets_one_and_others_are_told_what_to_start(
    project: Path, tmp_path: Path, bare: Path, monkeypatch: pytest.MonkeyPatch, number: int, status: str
) -> None:
    program(bare, "apt-get")
    user(monkeypatch, number)
    lack = finding(examine(question(project, tmp_path, "cpu")), "engine")
    assert lack.status == status
    assert "dockerd, docker, docker's buildx plugin not installed" in lack.found
    assert needs(lack) == set(COMMANDS) - {"plan", "lock", "fetch"}
    assert ("kiln engine up" if number == 0 else "containerd-snapshotter") in lack.fix


def test_programs_without_a_daemon_are_enough_for_root_alone(
    project: Path, tmp_path: Path, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kiln.doctorengine, "has_docker_programs", lambda: True)
    user(monkeypatch, 0)
    assert finding(examine(question(project, tmp_path, "cpu")), "engine").status == "ok"
    user(monkeypatch, 1000)
    lack = finding(examine(question(project, tmp_path, "cpu")), "engine")
    assert lack.status == "missing"
    assert "takes root" in lack.means


def test_without_apt_nothing_is_locked_or_fetched(project: Path, tmp_path: Path, bare: Path) -> None:
    lack = finding(examine(question(project, tmp_path, "cpu")), "apt (bookworm)")
    assert lack.status == "missing"
    assert needs(lack) == {"lock", "fetch", "build"}


def test_another_python_cannot_lock_a_stack_that_pip_locks(project: Path, tmp_path: Path) -> None:
    one = question(project, tmp_path, "cpu", "dsv4-mhc")
    stacks = tuple(replace(stack, pins=replace(stack.pins, python="3.99")) for stack in one.stacks)
    lack = finding(tuple(examine(replace(one, stacks=stacks))), "python for locking")
    assert set(lack.needed_by) == {("lock", "cpu")}
    assert "PYTHON=python3.99" in lack.fix


def test_a_state_folder_of_another_user_is_named(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").mkdir()
    assert finding(examine(question(project, tmp_path, "cpu")), "state folder").status == "ok"
    user(monkeypatch, 54321)
    one = finding(examine(question(project, tmp_path, "cpu")), "state folder")
    assert one.status == "warning"
    assert "54321" in one.found


def test_a_state_folder_that_may_not_be_written_is_missing(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kiln.doctorhost.os, "access", lambda *_: False)
    one = finding(examine(question(project, tmp_path, "cpu")), "state folder")
    assert one.status == "missing"
    assert "KILN_STATE" in one.fix
    assert "plan" not in needs(one)


def test_a_long_path_is_said_before_a_private_engine_fails_on_it(project: Path, tmp_path: Path, bare: Path) -> None:
    long = tmp_path / ("x" * 100)
    made = asked(Workspace(project, long), ["cpu"], [])
    lack = finding(examine(made), "path length")
    assert lack.status == "missing"
    assert "KILN_STATE" in lack.fix


def test_another_processor_builds_nothing(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kiln.doctorhost.platform, "machine", lambda: "aarch64")
    lack = finding(examine(question(project, tmp_path, "cpu")), "machine")
    assert (lack.status, lack.found) == ("missing", "aarch64")
    assert "fetch" not in needs(lack)


GPU = "cpu_cores_count 0\nsimd_count 1216\ngfx_target_version {version}\ndrm_render_minor 128\n"


def machine(root: Path, *, flags: str = "avx2", kb: int = 99_000_000, version: int = 0) -> Path:
    """A folder that looks like a machine's root."""
    (root / "proc").mkdir(parents=True)
    (root / "proc" / "cpuinfo").write_text(f"flags : fpu {flags}\n")
    (root / "proc" / "meminfo").write_text(f"MemTotal:       {kb} kB\n")
    (root / "proc" / "filesystems").write_text("nodev\toverlay\n")
    if version:
        (root / "dev" / "dri").mkdir(parents=True)
        for name in ("kfd", "dri/renderD128"):
            (root / "dev" / name).touch()
            (root / "dev" / name).chmod(0o660)
        node = root / NODES / "1"
        node.mkdir(parents=True)
        (node / "properties").write_text(GPU.format(version=version))
    return root


@pytest.mark.parametrize(
    ("flags", "word"),
    [("avx2 avx512f avx512_bf16", "has AVX-512 BF16"), ("avx2", "avx2, no"), ("sse2", "without AVX2")],
)
def test_what_the_processor_can_do_is_said(project: Path, tmp_path: Path, flags: str, word: str) -> None:
    root = machine(tmp_path / "root", flags=flags)
    one = finding(examine(question(project, tmp_path, "cpu", root=root)), "processor")
    assert one.status == "ok"
    assert word in one.found


def test_little_memory_is_a_warning(project: Path, tmp_path: Path) -> None:
    one = finding(examine(question(project, tmp_path, "cpu", root=machine(tmp_path / "root", kb=4_000_000))), "memory")
    assert one.status == "warning"
    assert needs(one) == {"verify-generate"}


def test_a_gpu_that_fits_is_ready_and_its_groups_are_said(project: Path, tmp_path: Path) -> None:
    root = machine(tmp_path / "root", version=90402)
    found = examine(question(project, tmp_path, "dsv4-mhc", root=root))
    one = finding(found, "gpu")
    assert (one.status, one.found) == ("ok", "1 of gfx942")
    groups = finding(found, "gpu groups")
    assert groups.status == "ok"
    assert "in none of them" in groups.means


def test_a_device_file_that_its_group_may_not_open_is_named_with_the_fix(project: Path, tmp_path: Path) -> None:
    root = machine(tmp_path / "root", version=90402)
    (root / "dev" / "dri" / "renderD128").chmod(0o400)
    lack = finding(examine(question(project, tmp_path, "dsv4-mhc", root=root)), "gpu groups")
    assert lack.status == "missing"
    assert "/dev/dri/renderD128" in lack.found
    assert "/dev/kfd" not in lack.found
    assert "chmod 660 /dev/dri/renderD128" in lack.fix
    assert needs(lack) == {"verify-ops", "verify-generate"}


@pytest.mark.parametrize(
    ("owner", "group", "mode", "opens"),
    [
        (0, 0, 0o600, True),
        (0, 109, 0o060, False),  # the owner's bits count, not the group's
        (1000, 109, 0o660, True),
        (1000, 110, 0o660, False),
        (1000, 110, 0o666, True),
        (1000, 109, 0o640, False),
        (65534, 65534, 0o600, False),
    ],
)
def test_a_container_of_kilns_opens_what_its_groups_let_it_open(owner: int, group: int, mode: int, opens: bool) -> None:
    of = os.stat_result((stat.S_IFCHR | mode, 0, 0, 1, owner, group, 0, 0, 0, 0))
    assert kiln.doctorhost._opens(of, (109,)) is opens


@pytest.mark.parametrize(("version", "word"), [(0, "this machine has none"), (90010, "is gfx90a")])
def test_without_a_gpu_that_fits_only_the_static_checks_of_a_rocm_stack_are_ready(
    project: Path, tmp_path: Path, version: int, word: str
) -> None:
    asking = question(project, tmp_path, "cpu", "dsv4-mhc", root=machine(tmp_path / "root", version=version))
    found = examine(asking)
    lack = finding(found, "gpu")
    assert word in lack.found
    assert "--level static" in lack.fix
    table = verdicts(asking, found)
    assert table["verify-generate"]["dsv4-mhc"] == "missing"
    assert needs(lack) == {"verify-ops", "verify-generate"}
    assert ("verify-generate", "cpu") not in lack.needed_by


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Start something that answers on a socket as an engine would, under DOCKER_HOST, beside a client and a plugin."""
    running: list[socketserver.BaseServer] = []
    plugin = program(tmp_path, "docker-buildx", "github.com/docker/buildx 0.13.1+ds1 1.2")
    program(tmp_path, "docker")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for module in (kiln.doctorengine, kiln.engine):
        monkeypatch.setattr(module, "buildx_plugin", lambda: plugin)
    with tempfile.TemporaryDirectory(prefix="kiln-") as folder:

        def start(answers: dict[str, Any]) -> None:
            class Handler(BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    path = urlsplit(self.path).path
                    plain = "/" + path.split("/", 2)[2] if path.startswith("/v1.") else path
                    body = json.dumps(answers.get(plain, {"message": "no such thing"})).encode()
                    self.send_response(200 if plain in answers else 404)
                    self.send_header("Content-Length", str(len(body)))
                    self.send_header("Content-Type", "application/json")
                    self.end_headers()
                    self.wfile.write(body)

                def address_string(self) -> str:
                    return "somebody"

                def log_message(self, *_: object) -> None:
                    pass

            server = socketserver.ThreadingUnixStreamServer(f"{folder}/{len(running)}.sock", Handler)
            running.append(server)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            monkeypatch.setenv("DOCKER_HOST", f"unix://{folder}/{len(running) - 1}.sock")

        yield start
        for server in running:
            server.shutdown()
            server.server_close()


Daemon = Callable[[dict[str, Any]], None]


def test_a_running_engine_is_named_with_its_versions(project: Path, tmp_path: Path, daemon: Daemon) -> None:
    daemon({"/version": VERSION, "/info": INFO})
    found = tuple(engine_findings(question(project, tmp_path, "cpu")))
    assert {one.name: one.status for one in found} == {"engine": "ok", "buildkit": "ok", "buildx": "ok"}
    assert "Docker 28.1.0" in finding(found, "engine").found
    assert finding(found, "buildx").found == "0.13.1+ds1"


def test_an_engine_that_is_too_old_is_said_with_the_reason(project: Path, tmp_path: Path, daemon: Daemon) -> None:
    daemon({"/version": {"Version": "20.10", "ApiVersion": "1.41"}, "/info": INFO})
    found = tuple(engine_findings(question(project, tmp_path, "cpu")))
    assert any("too old" in one.means for one in found)
    assert not any(one.name == "buildkit" for one in found)


def test_containers_that_were_left_behind_are_counted_and_not_removed(
    project: Path, tmp_path: Path, daemon: Daemon
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "identity").write_text("abc")
    left = {"Id": "1", "Names": ["/quiet_name"], "Labels": {}}
    daemon({"/version": VERSION, "/info": INFO, "/containers/json": [left]})
    one = finding(tuple(engine_findings(question(project, tmp_path, "cpu"))), "containers")
    assert one.status == "warning"
    assert "1 of this state folder: quiet_name" in one.found
    daemon({"/version": VERSION, "/info": INFO, "/containers/json": []})
    assert finding(tuple(engine_findings(question(project, tmp_path, "cpu"))), "containers").status == "ok"


def test_a_socket_that_is_not_for_this_user_is_told_from_none(
    project: Path, tmp_path: Path, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon({"/version": VERSION, "/info": INFO})
    monkeypatch.setattr(kiln.doctorengine.os, "access", lambda *_: False)
    found = tuple(engine_findings(question(project, tmp_path, "cpu")))
    one = finding(found, "engine", "warning")
    assert "may not use" in one.found
    assert "usermod -aG" in one.fix


@pytest.fixture
def index(tmp_path: Path, project: Path) -> Iterator[str]:
    """A folder with one wheel as an index of its own, on loopback."""
    import zipfile

    folder = tmp_path / "index" / "packaging"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "packaging-99.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("packaging-99.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: packaging\nVersion: 99.0\n")
        wheel.writestr("packaging-99.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("packaging-99.0.dist-info/RECORD", "")

    with served(tmp_path / "index") as host:
        yield f"http://{host}/"


def test_an_index_that_answers_and_one_that_does_not(index: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", index)
    assert _pip() == ""
    assert _answers(index) == ""
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/")
    assert _pip()
    assert "secret" not in _pip()
    assert _answers("http://127.0.0.1:9/")


def test_mirrors_are_asked_and_a_folder_that_is_gone_is_named(
    project_copy: Path, tmp_path: Path, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", index)
    (tmp_path / "empty.sources").write_text("# no source at all\n")
    (project_copy / "kiln.toml").write_text(
        f'[mirrors]\n"https://one.example" = "{tmp_path}/gone"\n"https://two.example" = "{index}"\n'
        f'[apt-sources]\nbookworm = "{tmp_path}/empty.sources"\n'
    )
    pins = project_copy / "pins" / "cpu.toml"
    pins.write_text(pins.read_text().replace("https://download.pytorch.org/whl/cpu", index))
    found = tuple(network_findings(question(project_copy, tmp_path, "cpu")))
    assert {one.name: one.status for one in found} == {
        "network (wheels)": "ok",
        "network (pytorch-cpu)": "ok",
        "network (mirror of https://one.example)": "missing",
        "network (mirror of https://two.example)": "ok",
    }


def test_addresses_and_suites_are_read_from_sources() -> None:
    text = "Types: deb\nURIs: http://a.example/d http://b.example/d\nSuites: one two\nComponents: main\n\nTypes: deb\nURIs: file:/x\nSuites: ./\n"
    assert _apt_places(text) == [
        ("http://a.example/d", "one"),
        ("http://a.example/d", "two"),
        ("http://b.example/d", "one"),
        ("http://b.example/d", "two"),
        ("file:/x", "./"),
    ]


def test_what_is_not_asked_for_is_not_looked_at(project: Path, tmp_path: Path, bare: Path) -> None:
    found = examine(question(project, tmp_path, "cpu", commands=("plan",)))
    assert [one.name for one in found] == ["python"]


def test_the_command_ends_with_42_where_something_is_missing_and_with_0_where_nothing_is(
    project: Path, tmp_path: Path, bare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = ["--root", str(project), "--state", str(tmp_path / "state")]
    assert run([*state, "doctor", "cpu", "--for", "plan"]) == 0
    capsys.readouterr()
    assert run([*state, "--json", "doctor", "cpu", "--for", "fetch"]) == 42
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert document["schema_version"] == 1
    assert document["commands"] == {"fetch": {"cpu": "missing"}}
    assert all(one["fix"] for one in document["findings"] if one["status"] == "missing")
    assert "missing here: apt (bookworm)" in said.err
    assert not (tmp_path / "state").exists()


def test_unknown_words_are_code_2(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--root", str(project), "doctor", "cpu", "--for", "cooking"]) == 2
    assert "plan, lock, fetch" in capsys.readouterr().err
    with pytest.raises(UsageError, match="nope"):
        asked(Workspace(project, tmp_path), ["nope"], [])
