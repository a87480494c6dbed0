"""The no-op: what a finished run leaves, and everything that makes it worthless."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import kiln.engine
from kiln.engine import Engine
from kiln.proof import FOLDERS, Reported, inputs_digest, proven, remember
from kiln.workspace import Workspace

DIGEST = "sha256:" + "a" * 64
ENGINE = Engine("unix:///nowhere", "28", "1.48", private=False)
CHOICES = ((), (), "tiny", "")


@pytest.fixture
def checkout(tmp_path: Path) -> Workspace:
    for name in FOLDERS:
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "inner" / "file.toml").write_text(f"{name} = 1\n")
    return Workspace(tmp_path, tmp_path / ".kiln")


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    found: dict[str, str | None] = {"kiln/toy:1": DIGEST}
    monkeypatch.setattr(kiln.engine, "image_digest", lambda _engine, reference: found.get(reference))
    return found


@pytest.fixture
def known(checkout: Workspace, held: dict[str, str | None]) -> Callable[[], list[Reported] | None]:
    path = checkout.state / "reports" / "report.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"summary": {"pass": 1}}))
    made = Reported("kiln/toy:1", DIGEST, "a 1", {"summary": {"pass": 1}}, path)
    remember(checkout, "toy", CHOICES, inputs_digest(checkout, "toy", CHOICES), [made])
    return lambda: proven(checkout, ENGINE, "toy", CHOICES, inputs_digest(checkout, "toy", CHOICES))


def test_the_same_inputs_image_and_report_are_nothing_to_do(known: Callable[[], list[Reported] | None]) -> None:
    found = known()
    assert found is not None
    assert [(one.reference, one.digest, one.held, one.report) for one in found] == [
        ("kiln/toy:1", DIGEST, "a 1", {"summary": {"pass": 1}})
    ]


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("change", ["bytes", "name", "executable", "new", "gone"])
def test_any_change_of_a_file_is_something_to_do(
    checkout: Workspace, known: Callable[[], list[Reported] | None], folder: str, change: str
) -> None:
    path = checkout.root / folder / "inner" / "file.toml"
    if change == "bytes":
        # Of the same length and time: neither is looked at.
        stat = path.stat()
        path.write_text(f"{folder} = 2\n")

        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif change == "name":
        path.rename(path.with_name("other.toml"))
    elif change == "executable":
        path.chmod(0o755)
    elif change == "new":
        path.with_name("second.toml").write_text("")
    else:
        path.unlink()
    assert known() is None


def test_a_configuration_that_appears_counts(checkout: Workspace, known: Callable[[], list[Reported] | None]) -> None:
    (checkout.root / "kiln.toml").write_text("[mirrors]\n")
    assert known() is None


@pytest.mark.parametrize("other", [None, "sha256:" + "b" * 64])
def test_an_image_that_is_gone_or_another_is_something_to_do(
    held: dict[str, str | None], known: Callable[[], list[Reported] | None], other: str | None
) -> None:
    held["kiln/toy:1"] = other
    assert known() is None


def test_a_report_that_was_edited_or_lost_is_something_to_do(
    checkout: Workspace, known: Callable[[], list[Reported] | None]
) -> None:
    path = checkout.state / "reports" / "report.json"
    path.write_text(json.dumps({"summary": {"pass": 2}}))
    assert known() is None
    path.unlink()
    assert known() is None


def test_other_choices_and_other_stacks_have_proofs_of_their_own(
    checkout: Workspace, known: Callable[[], list[Reported] | None]
) -> None:
    assert known()
    other = (("aiter=v1",), (), "tiny", "")
    assert proven(checkout, ENGINE, "toy", other, inputs_digest(checkout, "toy", other)) is None
    assert inputs_digest(checkout, "toy", CHOICES) != inputs_digest(checkout, "cpu", CHOICES)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"inputs": 1, "images": []}'])
def test_a_proof_that_cannot_be_read_proves_nothing(
    checkout: Workspace, known: Callable[[], list[Reported] | None], text: str
) -> None:
    (proof,) = (checkout.state / "proofs").iterdir()
    proof.write_text(text)
    assert known() is None


def test_what_the_no_op_loads_is_little(real: Workspace) -> None:
    """No SDK, no template engine, no lock reader on the way of a run that has nothing to do."""
    code = (
        "import sys; from kiln.commands import cli; cli.get_command(None, 'image');"
        "import kiln.engine, kiln.proof, kiln.verify.report; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=real.root, check=True, capture_output=True, text=True)
    heavy = {
        "docker",
        "jinja2",
        "requests",
        "jsonschema",
        "tomlkit",
        "packaging",
        "zstandard",
        "kiln.session",
        "kiln.lockfile",
    }
    assert not heavy & set(done.stdout.split())
