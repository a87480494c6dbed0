"""Bumps against a stand-in for AITER's repository with its real tag names: what is shown, what is written, what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import kiln.bump
import kiln.newest
from kiln.cli import run
from kiln.errors import ResolveError
from kiln.lockentries import Wheel
from kiln.lockfile import Lock, dump_lock, parse_lock, read_lock
from kiln.pins import Pins, read_pins
from kiln.records import Built, Layer, components_of, write_record
from kiln.render import render
from kiln.workspace import Workspace
from tests.aiter import AITER, KERNELS, STACK, Hub, git, make_hub, make_project
from tests.rehearsal.standins import Repositories

GOLDEN = Path(__file__).parents[1] / "golden" / "bump"
GOOD, BAD = "v0.1.16.post2", "v0.1.15"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    return make_hub(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def made(project: Path, hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The project as every test finds it. Who writes into it takes a copy."""
    return make_project(project, tmp_path_factory.mktemp("project") / "kiln", hub)


@pytest.fixture(autouse=True)
def _only_the_standins_answer(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("NAME", "T"), ("EMAIL", "t@example.com")):
        for role in ("AUTHOR", "COMMITTER"):
            monkeypatch.setenv(f"GIT_{role}_{name}", value)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("KILN_MIRRORS", hub.mirrors)


def kiln_in(workspace: Workspace, *words: str) -> int:
    return run(["--quiet", "--root", str(workspace.root), "--state", str(workspace.state), *words])


@pytest.fixture
def own(made: Workspace, tmp_path: Path) -> Workspace:
    """A copy of the project that may be written into."""
    root = shutil.copytree(made.root, tmp_path / "kiln", symlinks=True)
    return Workspace(root, root / ".kiln")


def is_golden(name: str, text: str, update: bool) -> None:
    if update:
        (GOLDEN / name).parent.mkdir(exist_ok=True)
        (GOLDEN / name).write_text(text, encoding="utf-8")
    assert text == (GOLDEN / name).read_text(encoding="utf-8"), "meant? pytest tests/unit/test_bump.py --update-golden"


# what is shown


def test_the_newest_release_is_shown_with_what_was_passed_over_and_nothing_is_written(
    made: Workspace, capsys: pytest.CaptureFixture[str], update_golden: bool
) -> None:
    head = git(made.root, "rev-parse", "HEAD")
    assert kiln_in(made, "pins", "bump", "aiter", "--dry-run") == 0
    said = capsys.readouterr().out
    is_golden("dry-run.txt", said, update_golden)
    # One subject would clear the screen.
    assert "\x1b" not in said
    assert git(made.root, "status", "--porcelain") == ""
    assert git(made.root, "rev-parse", "HEAD") == head


def test_a_program_is_told_all_of_it(made: Workspace, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert kiln_in(made, "pins", "bump", "aiter", "--to", GOOD, "--dry-run", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    (bump,) = document["bumps"]
    assert bump["from"] == {"ref": "v0.1.14", "commit": hub.commits["v0.1.14"]}
    assert bump["to"] == {"ref": GOOD, "commit": hub.commits[GOOD]}
    assert bump["source"]["commits"]["between"] == 4
    assert {one["path"]: (one["added"], one["removed"]) for one in bump["source"]["files"]} == {
        "pyproject.toml": (1, 1),
        "requirements.txt": (1, 2),
        "setup.py": (2, 1),
    }
    assert [one["path"] for one in bump["source"]["submodules"]] == ["3rdparty/composable_kernel"]
    # The workflow and the file with the release's name.
    assert bump["source"]["other"] == 2
    assert [(one["image"], one["component"]) for one in bump["rebuild"]] == [("rocm-base", "aiter")]
    assert [one["ref"] for one in bump["opened"]] == ["flydsl==0.2.0"]
    assert (bump["files"], bump["commit"], bump["pull"]) == ([], None, None)
    assert "was not built here" in bump["pull_unknown"]


def test_of_what_was_built_here_the_bytes_to_pull_are_known_but_for_what_is_rebuilt(
    own: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    pins = read_pins(own, STACK)
    images = render(own, pins, read_lock(own, pins))
    made = tuple(part for one in images for part in components_of(one, pins))
    layers = tuple(Layer(part.name, f"sha256:{number:064x}", "", 1000) for number, part in enumerate(made))
    write_record(
        own, Built("rocm-serving", images[-1].key, f"sha256:{'f' * 64}", "kiln/rocm-serving:1", 1.0, layers, made)
    )
    assert kiln_in(own, "pins", "bump", "aiter", "--to", GOOD, "--dry-run", "--json") == 0
    pull = json.loads(capsys.readouterr().out)["bumps"][0]["pull"]
    assert (pull["bytes"], pull["complete"]) == (0, False)
    assert "aiter" in pull["unknown"]
    assert "vllm" not in pull["unknown"]


def test_a_wheel_goes_to_another_version_and_the_lock_says_what_comes_with_it(
    own: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def resolve_lock(_workspace: Workspace, _pins: Pins, old: Lock, *_: object) -> Lock:
        def newer(one: Wheel) -> Wheel:
            return replace(one, version="0.1.11", file=one.file.replace("0.1.10", "0.1.11"), sha256="7" * 64)

        return replace(old, wheels=tuple(newer(one) if one.name == "tilelang" else one for one in old.wheels))

    monkeypatch.setattr(kiln.bump, "resolve_lock", resolve_lock)
    assert kiln_in(own, "pins", "bump", "tilelang", "--to", "v0.1.11") == 0
    said = capsys.readouterr().out
    assert said.startswith("tilelang 0.1.10 -> 0.1.11 (dsv4-mhc)\nadvisories entered: none\n")
    assert "in the lock:\n  ~ tilelang 0.1.10 " in said
    assert "rocm-serving: tilelang (wheel tilelang 0.1.10 -> 0.1.11)" in said
    assert git(own.root, "log", "-1", "--format=%s") == "dsv4-mhc: tilelang 0.1.10 -> 0.1.11"
    assert 'wheels = ["tilelang==0.1.11", "apache-tvm-ffi==0.1.10"]' in own.pins_file(STACK).read_text(encoding="utf-8")


# what is written


def test_a_bump_is_one_commit_of_pins_lock_and_rendered_files_with_a_message_that_says_it_all(
    own: Workspace, hub: Hub, update_golden: bool
) -> None:
    before = own.pins_file(STACK).read_text(encoding="utf-8")
    (own.root / "scripts" / "notes").write_text("somebody's own", encoding="utf-8")
    git(own.root, "add", "scripts/notes")
    assert kiln_in(own, "pins", "bump", "aiter", "--to", GOOD) == 0
    is_golden("message.txt", git(own.root, "log", "-1", "--format=%B") + "\n", update_golden)
    changed = git(own.root, "show", "--name-only", "--format=").splitlines()
    assert {"pins/dsv4-mhc.toml", "pins/dsv4-mhc.lock.toml", "images/rocm-base/Dockerfile"} <= set(changed)
    assert all(name.startswith(("pins/dsv4-mhc.", "images/rocm-")) for name in changed)
    # What was staged by somebody else still is, and is in no commit.
    assert git(own.root, "status", "--porcelain") == "A  scripts/notes"
    after = own.pins_file(STACK).read_text(encoding="utf-8")
    assert after == before.replace('ref = "v0.1.14"\nversion = "0.1.14"', f'ref = "{GOOD}"\nversion = "0.1.16.post2"')
    lock = read_lock(own, read_pins(own, STACK))
    assert lock.git_of["aiter"].commit == hub.commits[GOOD]
    assert [one.ref for one in lock.unresolved if one.name == "aiter"] == ["flydsl==0.2.0"]
    # Those that were open before are told of in the words that were committed, and not by which mirror was in vain.
    assert str(hub.folder) not in own.lock_file(STACK).read_text(encoding="utf-8")
    assert kiln_in(own, "render", STACK, "--check") == 0


def test_without_a_commit_the_files_are_left_to_the_reader(own: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    head = git(own.root, "rev-parse", "HEAD")
    own.pins_file(STACK).write_text(own.pins_file(STACK).read_text(encoding="utf-8") + "# mine\n", encoding="utf-8")
    assert kiln_in(own, "pins", "bump", "aiter", "--to", GOOD, "--no-commit") == 0
    assert "written, not committed" in capsys.readouterr().out
    assert git(own.root, "rev-parse", "HEAD") == head
    assert own.pins_file(STACK).read_text(encoding="utf-8").endswith("# mine\n")
    assert kiln_in(own, "lock", STACK, "--check") == 0
    # From there to a release off another branch, which lacks commits.
    assert (
        kiln_in(own, "pins", "bump", "aiter", "--to", "v0.1.18", "--dry-run", "--allow-advisory", "aiter-mhc-rocm723")
        == 0
    )
    assert f"1 commit between; 2 of those of {GOOD} are not in v0.1.18" in capsys.readouterr().out


def test_files_with_somebodys_changes_are_not_committed(own: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    path = own.image_folder("rocm-serving") / "image.toml"
    path.write_text(path.read_text(encoding="utf-8") + "# mine\n", encoding="utf-8")
    pinned = own.pins_file(STACK).read_bytes()
    assert kiln_in(own, "pins", "bump", "aiter", "--to", GOOD) == 80
    assert "images/rocm-serving/image.toml" in capsys.readouterr().err
    assert own.pins_file(STACK).read_bytes() == pinned


def test_rendered_files_that_are_old_already_are_told_before(
    own: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    path = own.root / "images" / "rocm-serving" / "Dockerfile"
    path.write_text(path.read_text(encoding="utf-8") + "# old\n", encoding="utf-8")
    git(own.root, "commit", "--quiet", "--all", "--message=old")
    assert kiln_in(own, "pins", "bump", "aiter", "--to", GOOD) == 31
    assert "kiln render" in capsys.readouterr().err


def test_a_commit_that_git_refuses_leaves_everything_as_it_was(
    own: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    hook = own.root / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho no commits today >&2\nexit 1\n", encoding="utf-8")
    hook.chmod(0o755)
    head = git(own.root, "rev-parse", "HEAD")
    assert kiln_in(own, "pins", "bump", "aiter", "--to", GOOD) == 40
    assert "no commits today" in capsys.readouterr().err
    assert git(own.root, "status", "--porcelain") == ""
    assert git(own.root, "rev-parse", "HEAD") == head


def test_outside_a_checkout_the_way_on_is_named(own: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(own.root / ".git")
    assert kiln_in(own, "pins", "bump", "aiter", "--to", GOOD) == 2
    assert "--no-commit" in capsys.readouterr().err


# advisories


def test_a_bump_to_a_known_bad_release_is_refused_with_the_advisory(
    own: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kiln_in(own, "pins", "bump", "aiter", "--to", BAD) == 19
    said = capsys.readouterr()
    assert "aiter-mhc-rocm723" in said.err
    assert "mhc_pre_big_fuse is inaccurate" in said.err
    assert git(own.root, "status", "--porcelain") == ""


def test_an_allowed_advisory_is_entered_and_the_next_bump_leaves_it(own: Workspace) -> None:
    assert kiln_in(own, "pins", "bump", "aiter", "--to", BAD, "--allow-advisory", "aiter-mhc-rocm723") == 0
    entered = git(own.root, "log", "-1", "--format=%B")
    assert "advisories entered:\n  aiter-mhc-rocm723 (refuse): AITER v0.1.15" in entered
    assert "advisories left: none" in entered
    assert "allowed by whoever made this bump: aiter-mhc-rocm723" in entered
    assert kiln_in(own, "pins", "bump", "aiter", "--to", GOOD) == 0
    left = git(own.root, "log", "-1", "--format=%B")
    assert "advisories entered: none" in left
    assert "advisories left:\n  aiter-mhc-rocm723 (refuse): AITER v0.1.15" in left


def test_with_the_advisory_allowed_the_newest_is_the_newest(
    made: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("pins", "bump", "aiter", "--dry-run", "--json", "--allow-advisory", "aiter-mhc-rocm723")
    assert kiln_in(made, *words) == 0
    assert json.loads(capsys.readouterr().out)["bumps"][0]["to"]["ref"] == "v0.1.18"


# what is asked for and is not there


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("aiterr",), 2, "Near: aiter"),
        (("base",), 2, "kiln lock STACK --set base=TAG --save"),
        (("aiter", "--to", "v0.1.16.post9"), 16, GOOD),
        (("mori", "--to", "v9.9.9"), 15, "mori v9.9.9 could not be resolved"),
        ((), 2, "--all"),
        (("--all", "--to", GOOD), 2, "--all"),
        (("aiter", "--all"), 2, "--all"),
    ],
)
def test_what_cannot_be_bumped_is_told(
    made: Workspace, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, said: str
) -> None:
    assert kiln_in(made, "pins", "bump", "--dry-run", *words) == code
    assert said in capsys.readouterr().err


def test_a_component_that_is_there_already_stays(made: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert kiln_in(made, "pins", "bump", "aiter", "--to", "v0.1.14") == 0
    assert capsys.readouterr().out == "aiter stays at v0.1.14: the pins say so already\n"


def test_all_moves_what_has_a_newer_release_and_tells_of_the_rest(
    own: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def newest_wheel(_pins: Pins, component: kiln.newest.ComponentPins) -> kiln.newest.Newest:
        if component.name == "flydsl":
            raise ResolveError("uv found no set of wheels for the pins", why="flydsl is nowhere")
        return kiln.newest.Newest("", (), "the newest that the stack's Python can take is 0.1.10")

    monkeypatch.setattr("kiln.bump.newest_wheel", newest_wheel)
    assert kiln_in(own, "pins", "bump", "--all") == 82
    said = capsys.readouterr()
    assert f"aiter: v0.1.14 -> {GOOD}: committed as {git(own.root, 'rev-parse', 'HEAD')}" in said.out
    assert "tilelang stays at 0.1.10: the newest" in said.out
    assert "flydsl: failed: uv found no set of wheels" in said.out
    # No mirror has them, and nothing here reaches their host.
    assert "torch: failed: https://github.com/ROCm/pytorch" in said.out
    assert "flydsl is nowhere" in said.err
    assert git(own.root, "log", "--format=%s").splitlines() == [f"dsv4-mhc: aiter v0.1.14 -> {GOOD}", "as it was"]
    assert git(own.root, "status", "--porcelain") == ""


# upstreams asked again


@pytest.fixture
def moved(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub in a copy that a test may change: where AITER's repository lies in it."""
    copy = Hub(shutil.copytree(hub.folder, tmp_path / "hub"), hub.commits)
    monkeypatch.setenv("KILN_MIRRORS", copy.mirrors)
    return copy.folder / "github.com" / "ROCm" / "aiter"


@pytest.fixture
def aiter_alone(own: Workspace) -> Workspace:
    """The project with a lock of AITER's source alone: nobody else need answer."""
    lock = parse_lock(own.lock_file(STACK).read_text(encoding="utf-8"), "")
    alone = replace(lock, wheels=(), debs=(), images=(), unresolved=(), gits=(lock.git_of["aiter"],))
    own.lock_file(STACK).write_text(dump_lock(alone), encoding="utf-8")
    return own


def test_upstreams_that_say_what_they_said_are_a_pass(
    aiter_alone: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kiln_in(aiter_alone, "pins", "verify", STACK, "--online") == 0
    assert capsys.readouterr().out == f"{STACK}: 2 looked at\n  same: 2\n"


def test_a_tag_that_moved_is_reported_with_both_commits(
    aiter_alone: Workspace, hub: Hub, moved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    git(moved, "tag", "--force", "v0.1.14", hub.commits[BAD])
    assert kiln_in(aiter_alone, "pins", "verify", STACK, "--online") == 17
    said = capsys.readouterr()
    for text in (said.out, said.err):
        assert f"git ref aiter {AITER} v0.1.14: the locked commit is still there" in text
        assert f"locked {hub.commits['v0.1.14']}" in text
        assert f"now    {hub.commits[BAD]}" in text


def test_a_tag_and_a_submodules_commit_that_vanished_are_reported(
    aiter_alone: Workspace, hub: Hub, moved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    git(moved, "tag", "--delete", "v0.1.14")
    shutil.rmtree(moved.with_name("composable_kernel"))
    Repositories(moved.parents[2]).commit(KERNELS, {"ck.hpp": b"// begun anew\n"})
    assert kiln_in(aiter_alone, "pins", "verify", STACK, "--online", "--json") == 81
    found = json.loads(capsys.readouterr().out)["stacks"][STACK]
    assert [(one["kind"], one["state"]) for one in found] == [("git ref", "vanished"), ("submodule", "vanished")]
    assert "the locked commit is still there" in found[0]["why"]


def test_who_cannot_be_asked_is_listed_apart_and_is_no_pass(
    aiter_alone: Workspace, moved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(moved.with_name("composable_kernel"))
    assert kiln_in(aiter_alone, "pins", "verify", STACK, "--online") == 15
    said = capsys.readouterr()
    assert "  same: 1\n" in said.out
    assert "  not asked: 1\n" in said.out
    assert "submodule aiter 3rdparty/composable_kernel" in said.out
    assert "1 of what is locked could not be asked for" in said.err


def test_what_the_lock_has_not_resolved_was_not_asked_for(made: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    unresolved = parse_lock(made.lock_file(STACK).read_text(encoding="utf-8"), "").unresolved
    assert unresolved
    assert kiln_in(made, "pins", "verify", STACK) == 0
    assert "no upstream was asked; --online asks them" in capsys.readouterr().out
