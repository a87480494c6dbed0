"""What Kiln asks pip, and what it makes of pip's answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import kiln.wheels
from kiln.errors import FetchError, HashMismatchError, HostError, ResolveError
from kiln.lockentries import Wheel
from kiln.pins import Pins
from kiln.process import Finished
from kiln.wheels import _explain_download, _identity, download, requirements_text, resolve, target_options

RIGHT, OTHER = "1" * 64, "2" * 64
TOY = Wheel("app", "toy-app", "2.0+cpu", "toy_app-2.0+cpu-py3-none-any.whl", RIGHT, 10)
SECOND = Wheel("app", "second", "1", "second-1-py3-none-any.whl", "3" * 64, 10)

MISMATCH = f"""Looking in indexes: https://mirror.example.invalid/simple
Collecting toy-app==2.0+cpu (from -r /tmp/requirements.txt (line 1))
  Downloading https://mirror.example.invalid/packages/toy_app-2.0%2Bcpu-py3-none-any.whl (1.0 MB)
ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have updated the package versions, please update the hashes. Otherwise, examine the package contents carefully; someone may have tampered with them.
    toy-app==2.0+cpu from https://mirror.example.invalid/packages/toy_app-2.0%2Bcpu-py3-none-any.whl (from -r /tmp/requirements.txt (line 1)):
        Expected sha256 {RIGHT}
             Got        {OTHER}
"""
ABSENT = """Looking in indexes: https://mirror.example.invalid/simple
ERROR: Could not find a version that satisfies the requirement toy-app==2.0+cpu (from versions: 1.0, 1.1)
ERROR: No matching distribution found for toy-app==2.0+cpu
"""
UNREACHABLE = """WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError': /simple/toy-app/
ERROR: Could not install packages due to an OSError: HTTPSConnectionPool(host='mirror.example.invalid', port=443): Max retries exceeded
"""


def finished(output: str, code: int = 1, errors: str = "") -> Finished:
    return Finished(("pip",), code, output, errors)


def test_a_mismatch_names_the_wheel_both_hashes_and_the_origin() -> None:
    with pytest.raises(HashMismatchError) as caught:
        _explain_download(finished(MISMATCH), [SECOND, TOY])
    assert caught.value.what == "toy_app-2.0+cpu-py3-none-any.whl is not the file that the lock names"
    assert f"expected sha256 {RIGHT}" in caught.value.why
    assert f"got      sha256 {OTHER}" in caught.value.why
    assert "from     toy-app==2.0+cpu from https://mirror.example.invalid/packages/" in caught.value.why
    assert "nothing was stored" in caught.value.fix


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (ABSENT, "No matching distribution found for toy-app==2.0+cpu"),
        (UNREACHABLE, "Max retries exceeded"),
        ("pip fell over\n", "pip fell over"),
    ],
)
def test_other_failures_are_told_in_pips_own_words(text: str, word: str) -> None:
    with pytest.raises(FetchError) as caught:
        _explain_download(finished(text), [TOY])
    assert TOY.file in caught.value.what
    assert word in caught.value.why
    assert "pip config list" in caught.value.fix


def test_requirements_name_version_and_hash() -> None:
    assert (
        requirements_text([TOY, SECOND])
        == f"toy-app==2.0+cpu --hash=sha256:{RIGHT}\nsecond==1 --hash=sha256:{'3' * 64}\n"
    )
    assert requirements_text([]) == ""


def test_pip_is_asked_for_the_images_python_and_glibc(toy_pins: Pins) -> None:
    options = target_options(toy_pins)
    assert "--python-version=3.11" in options
    assert "--only-binary=:all:" in options
    assert "--platform=manylinux_2_36_x86_64" in options
    assert "--platform=manylinux_2_17_x86_64" in options
    assert "--platform=manylinux2014_x86_64" in options
    assert "--platform=manylinux_2_37_x86_64" not in options


def test_how_an_index_spells_a_file_does_not_matter() -> None:
    assert _identity("Toy.App-2.0-py3-none-any.whl") == _identity("toy_app-2.0-py3-none-any.whl")
    assert _identity("toy-1-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.whl") == _identity(
        "toy-1-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"
    )
    different = [
        "toy-1-py3-none-any.whl",
        "toy-2-py3-none-any.whl",
        "toys-1-py3-none-any.whl",
        "toy-1-7-py3-none-any.whl",
        "toy-1-cp311-none-any.whl",
        "toy-1+cpu-py3-none-any.whl",
    ]
    assert len({_identity(file) for file in different}) == len(different)


class Pip:
    """Stands in for ``kiln.process.run``."""

    def __init__(self, output: str = "", code: int = 0, files: Sequence[str] = ()) -> None:
        self.answer, self.files, self.calls = finished(output, code), files, []

    def run(self, argv: Sequence[Any], **options: Any) -> Finished:
        self.calls.append([str(word) for word in argv])
        for word in self.calls[-1]:
            if word.startswith("--dest="):
                for file in self.files:
                    (Path(word.removeprefix("--dest=")) / file).write_text(file)
        return self.answer


def test_a_download_is_by_hash_without_dependencies_and_without_an_index_of_kilns(
    toy_pins: Pins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = Pip(files=["Toy_App-2.0+cpu-py3-none-any.whl"])
    monkeypatch.setattr(kiln.wheels, "run", pip.run)
    paths = download(toy_pins, [TOY, SECOND], tmp_path / "new")
    assert paths == {RIGHT: tmp_path / "new" / "Toy_App-2.0+cpu-py3-none-any.whl"}
    (argv,) = pip.calls
    assert argv[0] == sys.executable
    assert {"--require-hashes", "--no-deps"} <= set(argv)
    assert not [word for word in argv if "index-url" in word]
    assert (tmp_path / "new" / "requirements.txt").read_text() == requirements_text([TOY, SECOND])


def test_an_index_of_the_pins_is_added_to_the_users_own(
    toy_pins: Pins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = Pip()
    monkeypatch.setattr(kiln.wheels, "run", pip.run)
    download(toy_pins, [TOY], tmp_path, "https://wheels.example.invalid/simple")
    assert "--extra-index-url=https://wheels.example.invalid/simple" in pip.calls[0]
    assert not [word for word in pip.calls[0] if word.startswith("--index-url")]


@pytest.fixture
def same_python(toy_pins: Pins) -> Pins:
    """The toy's pins for the Python that runs the tests, which is the only one that may resolve."""
    return replace(toy_pins, python=f"{sys.version_info.major}.{sys.version_info.minor}")


def test_pips_report_becomes_exact_wheels(same_python: Pins, monkeypatch: pytest.MonkeyPatch) -> None:
    item = {
        "metadata": {"name": "Toy.App", "version": "2.0+cpu", "requires_dist": ["second>=1 ; python_version > '3'"]},
        "download_info": {
            "url": "https://mirror.example.invalid/toy_app-2.0%2Bcpu-py3-none-any.whl#sha256=x",
            "archive_info": {"hashes": {"sha256": RIGHT}},
        },
    }
    monkeypatch.setattr(kiln.wheels, "run", Pip(json.dumps({"install": [item]})).run)
    found = resolve(same_python, ["toy-app"])["toy-app"]
    assert (found.version, found.file, found.sha256) == ("2.0+cpu", "toy_app-2.0+cpu-py3-none-any.whl", RIGHT)
    assert [need.name for need in found.requires] == ["second"]


def test_pins_that_contradict_each_other_are_told_in_pips_words(
    same_python: Pins, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "noise\nERROR: Cannot install toy-app==2.0 and second==1 because these package versions have conflicting dependencies.\n    toy-app 2.0 depends on second==2\n"
    monkeypatch.setattr(kiln.wheels, "run", Pip(text, code=1).run)
    with pytest.raises(ResolveError) as caught:
        resolve(same_python, ["toy-app"])
    assert "toy-app 2.0 depends on second==2" in caught.value.why
    assert "noise" not in caught.value.why


def test_another_python_may_not_resolve(toy_pins: Pins) -> None:
    with pytest.raises(HostError, match=r"needs Python 2\.7"):
        resolve(replace(toy_pins, python="2.7"), ["toy-app"])


def test_without_dependencies_any_python_may_ask(toy_pins: Pins, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = Pip('{"install": []}')
    monkeypatch.setattr(kiln.wheels, "run", pip.run)
    assert resolve(replace(toy_pins, python="2.7"), ["toy-app", "--no-deps"]) == {}
