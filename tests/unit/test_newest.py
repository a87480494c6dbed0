"""Which release is the newest: tags as people write them, what is passed over, and wheels by the index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

import kiln.newest
from kiln.newest import Newest, newest_tag, newest_wheel, pinned_release
from kiln.pins import ComponentPins, Pins, read_pins
from kiln.workspace import Workspace

AITER = ComponentPins("aiter", "aiter", "kernels", git="https://git.invalid/aiter", ref="v0.1.14", version="0.1.14")
REAL = (
    "v0.1.13", "v0.1.13-rc5", "v0.1.14", "v0.1.14-rc0", "v0.1.15", "v0.1.16", "v0.1.16.post2", "v0.1.17-longctx", "v0.1.17-rc0",
    "v0.1.13.dev0", "nightly", "ciflow/0.1.99", "20260101", "v2", "1234567",
)  # fmt: skip


def fine(_tag: str) -> str:
    return ""


def test_the_newest_release_is_taken_and_newer_candidates_are_named() -> None:
    assert newest_tag(AITER, REAL, fine) == Newest(
        "v0.1.16.post2",
        (("v0.1.17-longctx", "is no version (PEP 440)"), ("v0.1.17-rc0", "a release candidate")),
    )


def test_a_refused_release_is_passed_over_with_the_reason() -> None:
    found = newest_tag(AITER, REAL, lambda tag: "refused by advisory x" if tag.startswith("v0.1.16") else "")
    assert found.ref == "v0.1.15"
    assert ("v0.1.16", "refused by advisory x") in found.passed_over
    assert ("v0.1.16.post2", "refused by advisory x") in found.passed_over


def test_the_order_of_versions_is_not_that_of_their_letters() -> None:
    assert newest_tag(AITER, ["v0.1.9", "v0.1.100", "v0.1.20"], fine).ref == "v0.1.100"


def test_where_all_newer_are_refused_nothing_is_taken() -> None:
    found = newest_tag(AITER, REAL, lambda _: "bad")
    assert (found.ref, found.why) == ("", "every newer release was passed over")
    assert len(found.passed_over) == 5


def test_where_none_is_newer_that_is_said() -> None:
    assert newest_tag(AITER, ["v0.1.13", "v0.1.14", "v0.1.14-rc0"], fine) == Newest("", (), "there is no newer release")


def test_a_commit_lies_at_the_version_that_the_pins_give() -> None:
    vllm = replace(AITER, ref="5cb4ba95c75842e01af97b5d8c03b67048fb3a97", version="0.22.1.dev0+g5cb4ba95c758")
    assert pinned_release(vllm) == Version("0.22.1.dev0+g5cb4ba95c758")
    assert newest_tag(vllm, ["v0.22.0", "v0.22.1", "v0.21.9"], fine).ref == "v0.22.1"


def test_of_a_commit_without_a_version_nothing_is_said_to_be_newer() -> None:
    found = newest_tag(replace(AITER, ref="0e60e39473e8df549a20fb5353760f7a65b30e2d", version=""), ["v9.9"], fine)
    assert found.ref == ""
    assert "no release of 0e60e39473e8" in found.why


def test_tags_with_a_word_before_the_version_are_of_one_kind_with_the_pinned_one() -> None:
    named = replace(AITER, ref="rocm-7.2.3", version="")
    assert newest_tag(named, ["rocm-7.3.0", "therock-9.0", "v7.2.4"], fine).ref == "rocm-7.3.0"


@given(
    st.lists(
        st.from_regex(
            r"v?[0-9]{1,2}\.[0-9]{1,2}(\.[0-9]{1,2})?((-?rc|\.post|\.dev)[0-9])?|[a-z0-9./-]{1,9}", fullmatch=True
        )
    )
)
def test_what_is_taken_is_a_release_newer_than_the_pinned_one_and_none_above_it_is(tags: list[str]) -> None:
    found = newest_tag(AITER, tags, fine)
    releases = []
    for tag in tags:
        try:
            version = Version(tag)
        except ValueError:
            continue
        if version > Version("0.1.14") and not version.is_prerelease and "." in tag:
            releases.append(version)
    if found.ref:
        assert Version(found.ref) == max(releases)
    else:
        assert releases == []


# wheels


@pytest.fixture
def rocm(project: Path, tmp_path: Path) -> Pins:
    return read_pins(Workspace(project, tmp_path), "dsv4-mhc")


@pytest.fixture
def cpu(project: Path, tmp_path: Path) -> Pins:
    return read_pins(Workspace(project, tmp_path), "cpu")


@pytest.mark.parametrize(
    ("offered", "expected"),
    [
        ("0.1.11", Newest("0.1.11")),
        ("0.1.10", Newest("", (), "the newest that the stack's Python can take is 0.1.10")),
        ("0.1.9", Newest("", (), "the newest that the stack's Python can take is 0.1.9")),
    ],
)
def test_the_first_wheel_of_a_component_is_looked_up_for_the_stacks_python(
    rocm: Pins, monkeypatch: pytest.MonkeyPatch, offered: str, expected: Newest
) -> None:
    asked: list[Any] = []

    def resolve(pins: Pins, requirements: Sequence[str], _indexes: Sequence[str]) -> dict[str, Any]:
        asked.append((pins.python, requirements))
        return {"tilelang": SimpleNamespace(version=offered)}

    tilelang = replace(rocm.by_name["tilelang"], wheels=("tilelang==0.1.10", "apache-tvm-ffi==0.1.10"))
    monkeypatch.setattr(kiln.newest, "resolve", resolve)
    assert newest_wheel(rocm, tilelang) == expected
    assert asked == [("3.12", ["tilelang", "--no-deps"])]


@pytest.mark.parametrize(
    ("of_pip", "of_index", "expected"),
    [
        ("2.14.0+cpu", "", Newest("2.14.0+cpu")),
        ("2.14.0", "2.14.0+cpu", Newest("2.14.0+cpu")),
        (
            "2.15.0",
            "2.15.0",
            Newest(
                "",
                (("2.15.0", "is another build, and of +cpu no index that answered has it"),),
                "every newer release was passed over",
            ),
        ),
    ],
)
def test_a_build_of_its_own_kind_is_looked_for_on_the_index_of_the_pins(
    cpu: Pins, monkeypatch: pytest.MonkeyPatch, of_pip: str, of_index: str, expected: Newest
) -> None:
    def resolve(_pins: Pins, requirements: Sequence[str], indexes: Sequence[str]) -> dict[str, Any]:
        assert requirements == ["torch", "--no-deps"]
        return {"torch": SimpleNamespace(version=of_index if indexes else of_pip)}

    monkeypatch.setattr(kiln.newest, "resolve", resolve)
    torch = replace(cpu.by_name["torch"], wheels=("torch==2.13.0+cpu",))
    assert newest_wheel(cpu, torch) == expected
