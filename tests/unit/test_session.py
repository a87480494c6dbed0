"""A stack made ready: choices, refusals, and what is said of inputs that are open."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import kiln.registry
from kiln.builders import Builder
from kiln.cli import run
from kiln.config import Config
from kiln.console import Console
from kiln.errors import AdvisoryError, LockMissingError, UnresolvedError, UpstreamError, UsageError
from kiln.session import Choice, Session, build_stack
from kiln.store import Store
from kiln.workspace import Workspace

NOWHERE = Config((("https://github.com/", "/nowhere/"), ("docker.io/", "127.0.0.1:9/")))


@pytest.fixture
def session(real: Workspace) -> Session:
    """The real project, from which no upstream can be reached."""
    return Session(real, Store(real.state / "store"), Console(quiet=True), given_config=NOWHERE)


def test_open_inputs_build_nothing_and_are_all_named_with_the_ways_on(session: Session) -> None:
    with pytest.raises(UnresolvedError) as caught:
        build_stack(session, "dsv4-mhc", Choice(("aiter=v0.1.14",)))
    lock = session.lock(session.pins("dsv4-mhc", Choice()))
    assert lock.unresolved
    for entry in lock.unresolved:
        assert entry.label in caught.value.why
    assert "/nowhere/" in caught.value.why
    assert "127.0.0.1:9" in caught.value.why or "docker.io" in caught.value.why
    for way in ("kiln lock dsv4-mhc", "KILN_MIRRORS", "make image STACK=cpu"):
        assert way in caught.value.fix
    assert not (session.workspace.state / "contexts").exists()


def test_a_known_bad_tag_is_refused_before_anybody_is_asked(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kiln.registry, "tag_digest", lambda *_: pytest.fail("asked"))
    with pytest.raises(AdvisoryError, match="aiter-mhc-race"):
        build_stack(session, "dsv4-mhc", Choice(("aiter=v0.1.13.post1",)))


def test_a_known_bad_tag_that_is_allowed_is_asked_for(session: Session) -> None:
    with pytest.raises(UnresolvedError) as caught:
        build_stack(session, "dsv4-mhc", Choice(("aiter=v0.1.13.post1",), ("aiter-mhc-race",)))
    assert "aiter@v0.1.13.post1" in caught.value.why


def test_a_stack_that_pins_the_plugin_has_the_switch(session: Session) -> None:
    """Without it the advisory that asks for the switch refuses upstream's release."""
    pins = session.pins("dsv4-mhc-upstream", Choice())
    (warned,) = session.findings(pins, None, ())
    assert (warned.advisory.id, warned.effect, warned.decided_by) == ("tilelang-plugin-gfx942", "warn", "table")
    without = replace(pins, components=tuple(item for item in pins.components if not item.sources))
    (refused,) = session.findings(without, None, ())
    assert (refused.advisory.id, refused.effect) == ("vllm-no-mhc-switch", "refuse")


def test_the_plugins_opt_in_is_unsafe_on_gfx942_alone(session: Session) -> None:
    pins = session.pins("dsv4-mhc-upstream", Choice())
    assert set(session.unsafe_on(("gfx942",), pins, None, ())) == {"tilelang"}
    assert session.unsafe_on(("gfx950",), pins, None, ()) == {}


@pytest.mark.parametrize(("tag", "id_"), [("v0.1.13.post1", "aiter-mhc-race"), ("v0.1.15.post3", "aiter-mhc-rocm723")])
def test_upstreams_release_refuses_an_aiter_that_is_known_to_be_bad(session: Session, tag: str, id_: str) -> None:
    with pytest.raises(AdvisoryError, match=id_):
        session.ready("dsv4-mhc-upstream", Choice((f"aiter={tag}",)))


def test_an_advisory_that_nobody_wrote_cannot_be_allowed(session: Session) -> None:
    with pytest.raises(UsageError, match="aiter-mhc-rac"):
        session.ready("dsv4-mhc", Choice(allow=("aiter-mhc-rac",)))


def test_a_checkpoint_that_the_kernels_cannot_take_is_refused(session: Session, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 512, "hc_mult": 4}))
    with pytest.raises(AdvisoryError, match="aiter-mhc-hidden-size"):
        session.ready("dsv4-mhc", Choice(model=str(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 7168, "hc_mult": 4}))
    session.ready("dsv4-mhc", Choice(model=str(tmp_path)))


def test_a_choice_is_locked_apart_and_the_committed_lock_stays(session: Session) -> None:
    committed = session.workspace.lock_file("dsv4-mhc").read_bytes()
    pins = session.pins("dsv4-mhc", Choice(("archs=gfx950",)))
    lock = session.lock(pins)
    assert lock.pins_sha256 == pins.sha256
    assert [path.name for path in (session.workspace.state / "locks").iterdir()] == [
        f"dsv4-mhc-{pins.sha256[:16]}.lock.toml"
    ]
    assert session.workspace.lock_file("dsv4-mhc").read_bytes() == committed
    # Another arch is no other source: what was locked stays.
    assert lock.git_of["aiter"].commit == "bd0534e9630f8f142f51689f5808c627460e35bf"


def test_a_stack_without_a_lock_is_not_locked_by_the_way(session: Session, toy: Workspace) -> None:
    toy.lock_file("toy").unlink()
    apart = Session(toy, session.store, session.console)
    with pytest.raises(LockMissingError):
        apart.lock(apart.pins("toy", Choice()))


def test_the_base_images_packages_are_unknown_while_nobody_has_it(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kiln.engine.find_engine", lambda _: (None, []))
    (image,) = session.lock(session.pins("dsv4-mhc", Choice())).images
    with pytest.raises(UpstreamError, match="not in the engine"):
        session.package_status(image, pull=False)


def test_an_image_that_the_stack_has_not_is_answered_with_those_it_has(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "require_resolved", lambda *_: None)
    with pytest.raises(UsageError, match="rocm-bas'") as caught:
        build_stack(session, "dsv4-mhc", Choice(), "rocm-bas")
    assert "rocm-base, rocm-serving" in caught.value.why


def test_a_builder_elsewhere_pulls_the_base_image_itself_by_its_digest_from_the_mirror(session: Session) -> None:
    """No engine is asked: there is none here, and ``session.engine`` would start one."""
    pins = session.pins("dsv4-mhc", Choice())
    lock = session.lock(pins)
    assert pins.base is not None
    (file,) = session.base_override(pins, lock, Builder("farm"))
    (image,) = lock.images
    (contexts,) = json.loads((session.workspace.state / file).read_text())["target"].values()
    ((reference, place),) = contexts["contexts"].items()
    assert reference == pins.base.reference.removeprefix("docker.io/")
    assert place == f"docker-image://127.0.0.1:9/{image.name.removeprefix('docker.io/')}@{image.digest}"


def test_rendering_a_choice_into_images_is_refused(project_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--root", str(project_copy), "render", "dsv4-mhc", "--set", "archs=gfx950"]) == 2
    assert "--out" in capsys.readouterr().err


def test_the_audit_of_the_real_stacks_finds_nothing_mutable(
    project_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for stack in ("cpu", "dsv4-mhc", "dsv4-mhc-upstream"):
        assert run(["--root", str(project_copy), "pins", "audit", stack]) == 0
        assert ", 0 mutable, " in capsys.readouterr().out


def test_what_another_image_is_to_be_built_on_is_built_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """BuildKit packs the layers of a parent that it did not export itself in another way, and the image on it would have another digest."""
    from types import SimpleNamespace

    import kiln.ready
    from kiln.ready import found
    from kiln.records import Built

    def image(name: str, *parents: str) -> Any:
        return SimpleNamespace(image=SimpleNamespace(name=name), key="a" * 64, parents=parents)

    def one(name: str, pulled: bool) -> Built:
        return Built(name, "a" * 64, "sha256:1", name, 1.0, pulled=pulled)

    here: dict[str, Built] = {}
    there = {"base", "serving"}
    monkeypatch.setattr(kiln.ready, "known_build", lambda _workspace, rendered, _engine: here.get(rendered.image.name))
    cache = SimpleNamespace(
        image=lambda rendered, _: one(rendered.image.name, True) if rendered.image.name in there else None
    )
    session: Any = SimpleNamespace(workspace=None, engine=None, cache=cache, console=Console(quiet=True))
    images = (image("base"), image("serving", "base"))
    pins: Any = None
    assert set(found(session, pins, images)) == {"base", "serving"}
    there.remove("serving")
    assert found(session, pins, images) == {}
    here["base"] = one("base", pulled=True)
    assert found(session, pins, images) == {}
    here["base"] = one("base", pulled=False)
    assert set(found(session, pins, images)) == {"base"}
