"""Builders elsewhere: how they are named and asked, when one counts as lost, and who goes on then."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import kiln.builders
import kiln.ready
from kiln.build import bake_argv
from kiln.builders import ENGINE, Builder, builders_of, load_archive, require_same
from kiln.cli import run as run_cli
from kiln.console import Console
from kiln.engine import Engine
from kiln.errors import BuilderLostError, BuildError, BuildersDifferError, EngineError, HostError, UsageError
from kiln.lockfile import Lock
from kiln.pins import Pins
from kiln.process import Finished
from kiln.ready import build_images
from kiln.records import Built
from kiln.render import Rendered
from kiln.session import Session
from tests.unit.conftest import DIGEST

OTHER = "sha256:" + "b" * 64
RUNS = "Name:   farm\nDriver: remote\n\nNodes:\nName:   farm0\nStatus: running\n"
GONE = "Name:   farm\nDriver: remote\n\nNodes:\nName:   farm0\nError:  Cannot connect to the Docker daemon\n"
NONE = 'ERROR: no builder "farm" found\n'
LOCAL = Engine("unix:///run/own.sock", "28", "1.48", private=False)


def answering(monkeypatch: pytest.MonkeyPatch, said: str, *, context: bool = False, code: int = 0) -> list[list[str]]:
    """Have docker say this of every builder; what it was asked is in the list."""
    asked: list[list[str]] = []

    def run(argv: Any, **_: object) -> Finished:
        asked.append([str(word) for word in argv])
        if argv[1] == "context":
            return Finished(tuple(argv), 0 if context else 1, "")
        return Finished(tuple(argv), code, said)

    monkeypatch.setattr(kiln.builders, "run", run)
    return asked


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("", [""]),
        ("default", [""]),
        ("farm", ["farm"]),
        ("farm, near,default", ["farm", "near", ""]),
        ("farm,farm", ["farm"]),
    ],
)
def test_builders_are_taken_in_the_order_in_which_they_are_named(names: str, found: list[str]) -> None:
    assert [builder.name for builder in builders_of(names)] == found


def test_a_name_that_is_none_is_refused_by_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["build", "cpu", "--builder", "tcp://farm:1234"]) == 2
    assert "docs/scale.md" in capsys.readouterr().err


def test_a_builder_elsewhere_sends_an_archive_with_the_bake_files_own_settings(
    rendered: Rendered, toy_pins: Pins, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, RUNS)
    output = Builder("farm").output(toy_pins, Path("/a,b/image.tar"))
    target = json.loads(dict(rendered.files)["docker-bake.json"])["target"]["toy-serving"]
    assert output == target["output"][0].replace("type=image", "type=oci") + ',"dest=/a,b/image.tar"'
    argv = bake_argv(rendered, (), Builder("farm"), output)
    assert argv[:4] == ["docker", "buildx", "bake", "--builder=farm"]
    assert f"--set=toy-serving.output={output}" in argv
    assert not any(".output=" in word for word in bake_argv(rendered))


def test_a_docker_context_is_named_to_docker_as_well(rendered: Rendered, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, RUNS, context=True)
    assert bake_argv(rendered, (), Builder("farm"))[:5] == [
        "docker",
        "--context=farm",
        "buildx",
        "bake",
        "--builder=farm",
    ]


def test_only_the_engine_is_reached_by_the_engines_own_variables() -> None:
    assert ENGINE.environment(LOCAL) == LOCAL.environment
    assert Builder("farm").environment(LOCAL) == {}


def test_a_builder_that_runs_is_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answering(monkeypatch, RUNS)
    Builder("farm").require()
    assert asked[-1] == ["docker", "buildx", "inspect", "--bootstrap", "farm"]


def test_a_builder_that_nobody_made_is_a_slip_of_the_fingers(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, NONE, code=1)
    with pytest.raises(UsageError, match="farm"):
        Builder("farm").require()


def test_a_builder_that_does_not_answer_is_lost_with_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, GONE)
    with pytest.raises(BuilderLostError) as caught:
        Builder("farm").require()
    assert "Cannot connect" in caught.value.why
    assert caught.value.transient


def test_a_builder_that_never_answers_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> Finished:
        raise HostError("docker did not finish within 120 s")

    monkeypatch.setattr(kiln.builders, "run", run)
    monkeypatch.setattr(Builder, "docker", ("docker",))
    with pytest.raises(BuilderLostError) as caught:
        Builder("farm").require()
    assert "120 s" in caught.value.why


@pytest.mark.parametrize(
    ("log", "said", "lost"),
    [
        ("ERROR: failed to receive status: rpc error: code = Unavailable desc = error reading\n", RUNS, True),
        ("ERROR: target toy: failed to solve: process did not complete successfully: exit code: 2\n", RUNS, False),
        ("ERROR: target toy: failed to solve: process did not complete successfully: exit code: 2\n", GONE, True),
        # A step may say what it likes.
        ("#7 0.5 ERROR: rpc error: code = Unavailable\nERROR: exit code: 1\n", RUNS, False),
    ],
)
def test_a_step_that_fails_is_no_lost_builder(log: str, said: str, lost: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, said)
    assert Builder("farm").is_lost(log) is lost
    # Without its engine there is nobody to go on with.
    assert ENGINE.is_lost(log) is False


def test_an_engine_that_does_not_take_the_archive_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, "invalid tar header", code=1)
    with pytest.raises(EngineError, match="'farm'") as caught:
        load_archive(LOCAL, Builder("farm"), Path("image.tar"))
    assert "invalid tar header" in caught.value.why


def test_two_builders_that_make_different_images_of_one_key_are_an_error_with_both_digests() -> None:
    before = Built("toy", "1" * 64, DIGEST, "kiln/toy:1", 1.0)
    with pytest.raises(BuildersDifferError) as caught:
        require_same(Builder("farm"), before, before.key, OTHER, ".kiln/builds/toy.json")
    assert DIGEST in caught.value.why
    assert OTHER in caught.value.why
    assert ".kiln/builds/toy.json" in caught.value.fix
    require_same(Builder("farm"), before, before.key, DIGEST, "")
    require_same(Builder("farm"), before, "2" * 64, OTHER, "")
    require_same(Builder("farm"), None, before.key, OTHER, "")
    # One that came out of a cache says nothing of who built it; one builder alone may forget what it built.
    require_same(Builder("farm"), replace(before, pulled=True), before.key, OTHER, "")
    require_same(Builder("farm"), replace(before, builder="farm"), before.key, OTHER, "")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Exception | None]:
    """What building on each builder ends with; an image that was built is noted."""
    ends: dict[str, Exception | None] = {}

    def build_one(_s: object, _p: object, _l: object, rendered: Rendered, _below: object, builder: Builder) -> Built:
        if error := ends.get(builder.name):
            raise error
        return Built(rendered.image.name, rendered.key, DIGEST, "", 1.0, builder=builder.name)

    monkeypatch.setattr(kiln.ready, "build_one", build_one)
    monkeypatch.setattr(kiln.ready, "known_build", lambda *_: None)
    return ends


def made(rendered: Rendered, pins: Pins, lock: Lock, names: str) -> list[str]:
    session = cast("Session", SimpleNamespace(workspace=None, engine=None, cache=None, console=Console(quiet=True)))
    built, new = build_images(session, pins, lock, [rendered], names)
    assert [one for _, one in new] == built
    return [one.builder for one in built]


def test_where_a_builder_is_lost_the_next_one_goes_on(
    rendered: Rendered,
    toy_pins: Pins,
    toy_lock: Lock,
    asked: dict[str, Exception | None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked["farm"] = BuilderLostError("the builder 'farm' went away", why="EOF")
    assert made(rendered, toy_pins, toy_lock, "farm,near,default") == ["near"]
    assert "'farm' went away" in capsys.readouterr().err
    asked["near"] = BuilderLostError("the builder 'near' does not answer")
    assert made(rendered, toy_pins, toy_lock, "farm,near,default") == [""]


def test_where_all_are_lost_each_is_named(
    rendered: Rendered, toy_pins: Pins, toy_lock: Lock, asked: dict[str, Exception | None]
) -> None:
    asked |= {name: BuilderLostError(f"the builder {name!r} went away", why=f"EOF of {name}") for name in ("a", "b")}
    with pytest.raises(BuilderLostError) as caught:
        made(rendered, toy_pins, toy_lock, "a,b")
    assert "'b'" in caught.value.what
    for word in ("'a'", "EOF of a", "'b'", "EOF of b"):
        assert word in caught.value.why


def test_a_step_that_fails_fails_on_one_builder_alone(
    rendered: Rendered, toy_pins: Pins, toy_lock: Lock, asked: dict[str, Exception | None]
) -> None:
    asked["farm"] = BuildError("the build step app failed")
    with pytest.raises(BuildError):
        made(rendered, toy_pins, toy_lock, "farm,near")


@pytest.mark.parametrize(
    ("parent_by", "builder", "again"),
    [("", "", False), ("farm", "farm", False), ("", "farm", True), ("farm", "", True), ("near", "farm", True)],
)
def test_what_is_built_on_is_built_by_the_same_builder(
    rendered: Rendered,
    toy_pins: Pins,
    toy_lock: Lock,
    asked: dict[str, Exception | None],
    monkeypatch: pytest.MonkeyPatch,
    parent_by: str,
    builder: str,
    again: bool,
) -> None:
    """BuildKit packs what it has not exported itself as it likes: a parent from elsewhere would have other layers in the child."""
    assert not asked
    child = replace(rendered, image=replace(rendered.image, name="child"), parents=(rendered.image.name,))
    parent = Built(rendered.image.name, rendered.key, DIGEST, "", 1.0, builder=parent_by)
    monkeypatch.setattr(
        kiln.ready, "known_build", lambda _w, one, _e: parent if one.image.name == parent.image else None
    )
    session = cast("Session", SimpleNamespace(workspace=None, engine=None, cache=None, console=Console(quiet=True)))
    _, new = build_images(session, toy_pins, toy_lock, [rendered, child], builder)
    names = [one.image for _, one in new]
    assert names == ([parent.image, "child"] if again else ["child"])
