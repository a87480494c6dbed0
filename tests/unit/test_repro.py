"""What `kiln repro` makes of the records of several builds, and the program that changes what a step sees."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kiln.conditions import FIRST, SECOND, copy_checkout, host_environment, write_runc
from kiln.diff import Diff, LayerDifference, Side
from kiln.diffkinds import Finding, Kind
from kiln.difflayer import FileDifference
from kiln.engine import Engine
from kiln.lockfile import Lock
from kiln.render import Rendered
from kiln.repro import Asked, Outcome, compared

ENGINE = Engine("unix:///nowhere", "26", "1.45", private=True)


def outcome(rendered: Rendered, name: str, builder: str, digest: str, **layers: str) -> Outcome:
    record = {
        "image": rendered.image.name,
        "digest": digest,
        "layers": [
            {"component": component, "digest": layers.get(component, f"{component} 1"), "diff_id": "", "size": 1}
            for component in rendered.image.components
        ],
    }
    return Outcome(name, builder, FIRST.described(), (record,), 1.0, ENGINE)


def differing(component: str, *kinds: Kind, hidden: int = 0) -> Diff:
    files = tuple(FileDifference(f"usr/{kind}", "changed", (Finding(kind, ""),)) for kind in kinds)
    # The name is what people read; the digest says which layer it is.
    layer = LayerDifference("", 1, 1, f"{component} 1", "another", (), files, len(files) + hidden, 9)
    return Diff(Side("a", "1"), Side("b", "2"), layers=(layer,))


@pytest.mark.parametrize(
    ("difference", "level"),
    [
        ((Kind.MTIME, Kind.ORDER), "same-content"),
        ((Kind.MTIME, Kind.CONTENT), "pure-render"),
        ((Kind.MODE,), "pure-render"),
    ],
)
def test_levels_are_what_the_builds_show(
    rendered: Rendered, toy_lock: Lock, difference: tuple[Kind, ...], level: str
) -> None:
    name, *others = rendered.image.components
    one = outcome(rendered, "1", "Docker 26", "d1")
    two = outcome(rendered, "2", "Docker 26", "d2", **{name: "another"})
    (found,) = compared([one, two], [rendered], toy_lock, lambda *_: differing(name, *difference))
    assert {component: measured for component, _, measured in found.components} == {
        name: level,
        **dict.fromkeys(others, "same-digest"),
    }
    assert found.broken_claims == (f"{rendered.image.name}, {name}: claimed same-digest, measured {level}",)
    assert "DIFFERENT digests" in found.text()
    assert json.loads(json.dumps(found.data()))["differences"][0]["build"] == "2"


def test_of_a_list_that_was_cut_short_nothing_is_known(rendered: Rendered, toy_lock: Lock) -> None:
    name = rendered.image.components[0]
    two = outcome(rendered, "2", "Docker 26", "d2", **{name: "another"})
    cut = differing(name, Kind.MTIME, hidden=1)
    (found,) = compared([outcome(rendered, "1", "Docker 26", "d1"), two], [rendered], toy_lock, lambda *_: cut)
    assert {component: measured for component, _, measured in found.components}[name] == "pure-render"


def test_the_same_digests_are_not_compared(rendered: Rendered, toy_lock: Lock) -> None:
    builds = [outcome(rendered, name, f"Docker {name}", "d1") for name in ("26", "28")]

    def nobody(*_: Any) -> Diff:
        raise AssertionError("there is nothing to compare")

    (found,) = compared(builds, [rendered], toy_lock, nobody)
    assert {measured for _, _, measured in found.components} == {"across-builders"}
    assert found.broken_claims == ()


def test_every_condition_is_another_one() -> None:
    one, two = FIRST.described(), SECOND.described()
    # With one processor on the machine there is none to take away.
    assert [name for name in one if one[name] == two[name] and name != "processors"] == []


CONFIG = (
    '{"process":{"user":{"uid":0,"gid":0,"additionalGids":[0]},"args":["sh"],"env":["PATH=/bin"]},"hostname":"buildkitsandbox",'
    '"mounts":[{"destination":"/proc","type":"proc"},{"destination":"/dev/mqueue","type":"mqueue"}]}'
)


def test_a_steps_configuration_is_changed_and_handed_on(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "config.json").write_text(CONFIG)
    first = write_runc(tmp_path / "first", SECOND, tmp_path / "clock.so")
    real = tmp_path / "real"
    real.mkdir()
    (real / "runc").write_text('#!/bin/sh\necho "$@"\n')
    (real / "runc").chmod(0o755)
    done = subprocess.run(
        ["runc", "--log", "x", "run", "--bundle", str(bundle), "id"],
        env={**os.environ, "PATH": f"{first}:{real}:{os.environ['PATH']}"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["--log", "x", "run", "--bundle", str(bundle), "id"]
    found = json.loads((bundle / "config.json").read_text())
    assert found["hostname"] == SECOND.host_name
    assert found["process"]["user"] == {"uid": 0, "gid": 0, "umask": 0o077, "additionalGids": [0]}
    env = dict(item.split("=", 1) for item in found["process"]["env"])
    assert env == {
        "PATH": "/bin",
        "PYTHONHASHSEED": "4242",
        "LD_PRELOAD": "/dev/kiln-clock.so",
        "FAKETIME": "+400d",
        "NO_FAKE_STAT": "1",
    }
    mounts = [mount["destination"] for mount in found["mounts"]]
    assert mounts == ["/proc", "/dev/kiln-clock.so", "/dev/mqueue"]


def test_without_a_clock_the_date_is_left_alone(tmp_path: Path) -> None:
    text = (write_runc(tmp_path, SECOND, None) / "runc").read_text()
    assert "FAKETIME" not in text
    assert "FAKETIME" not in host_environment(SECOND, None)


def test_a_copy_has_no_state_folder_and_the_mask_of_now(tmp_path: Path) -> None:
    root = tmp_path / "project"
    (root / "state" / "store").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / "pins").mkdir()
    (root / "pins" / "toy.toml").write_text("x = 1\n")
    (root / "run").write_text("#!/bin/sh\n")
    (root / "run").chmod(0o755)
    target = copy_checkout(root, root / "state", root / "state" / "copy")
    assert sorted(path.relative_to(target).as_posix() for path in target.rglob("*")) == ["pins", "pins/toy.toml", "run"]
    assert (target / "pins" / "toy.toml").stat().st_mode & 0o777 == 0o600
    assert (target / "run").stat().st_mode & 0o777 == 0o700


def test_what_is_run_is_a_kiln_of_its_own(tmp_path: Path) -> None:
    words = Asked("cpu", ("--set", "x=1")).command(tmp_path, tmp_path / "s")
    assert words[1:] == [
        "-m",
        "kiln",
        "--json",
        "--root",
        str(tmp_path),
        "--state",
        str(tmp_path / "s"),
        "build",
        "cpu",
        "--set",
        "x=1",
    ]
    words = Asked("dsv4-mhc", standins=tmp_path).command(tmp_path, tmp_path / "s")
    assert words[-5:] == ["rehearse", "dsv4-mhc", "--standins", str(tmp_path), "--no-verify"]
