"""The record of releases, what may be released, what is signed, and which release has the pins."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiln.attest import checked, compare, provenance, released, report_digest
from kiln.cosign import statements
from kiln.engine import Engine
from kiln.errors import (
    AttestationError,
    NotPublishedError,
    NotReleasableError,
    ReleaseRecordError,
    UsageError,
)
from kiln.lockfile import Lock
from kiln.pins import Pins
from kiln.publish import Candidate, require_cells, require_releasable, version_tag
from kiln.pull import choose, recorded, require_digest
from kiln.records import Built
from kiln.releases import Checked, Release, dump, read_releases, record, releases_file
from kiln.render import Rendered
from kiln.verify.checks import Outcome, Result, Subject
from kiln.verify.report import make_report
from kiln.verify.required import required_checks
from kiln.workspace import Workspace

DIGEST = "sha256:" + "ab" * 32
CHECKED = Checked(20, 0, 0, 1, "generate", "a processor")
RELEASE = Release(
    "toy-serving",
    DIGEST,
    "registry.example/kiln/toy-serving",
    "v1-abc",
    "2026-11-25T10:00:00+00:00",
    "c" * 64,
    "d" * 64,
    "e" * 64,
    830_000_000,
    CHECKED,
    {"vllm": "0.32.0", "aiter": "v0.1.14"},
    {},
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
NAMES = st.dictionaries(TEXT, TEXT, max_size=4)


@given(TEXT, TEXT, TEXT, NAMES, NAMES, st.lists(TEXT, max_size=3), st.integers(0, 10**15))
def test_what_is_recorded_is_read_again(
    tmp_path_factory: pytest.TempPathFactory,
    tag: str,
    place: str,
    hardware: str,
    components: dict[str, str],
    overrides: dict[str, str],
    allowed: list[str],
    size: int,
) -> None:
    workspace = Workspace(tmp_path_factory.mktemp("any"), tmp_path_factory.mktemp("state"))
    one = replace(
        RELEASE,
        tag=tag,
        repository=place,
        size=size,
        checked=replace(CHECKED, hardware=hardware),
        components=components,
        overrides=overrides,
        allowed=tuple(allowed),
    )
    path = releases_file(workspace, "toy")
    path.parent.mkdir()
    path.write_text(dump("toy", [one, RELEASE]), encoding="utf-8")
    assert read_releases(workspace, "toy") == (one, RELEASE)


def test_an_image_of_a_repository_is_recorded_once_with_its_first_date(toy: Workspace) -> None:
    assert read_releases(toy, "toy") == ()
    record(toy, "toy", RELEASE)
    record(toy, "toy", replace(RELEASE, date="2027-01-01T00:00:00+00:00", checked=replace(CHECKED, skipped=0)))
    (known,) = read_releases(toy, "toy")
    assert known.date == RELEASE.date
    assert known.checked.skipped == 0
    record(toy, "toy", replace(RELEASE, repository="other.example/kiln/toy"))
    assert len(read_releases(toy, "toy")) == 2


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ('digest = "sha256:', 'digest = "sha512:', "not a digest"),
        ("schema = 1", "schema = 2", "schema"),
        ('stack = "toy"', 'stack = "other"', "stack"),
        ("size = 830000000", "size = true", "size"),
        ("passed = 20, ", "", "passed"),
        ("[[release]]", '[[release]]\nmore = "x"', "unknown key"),
        ("[[release]]", "[[release", "not TOML"),
    ],
)
def test_a_record_that_kiln_did_not_write_is_refused(toy: Workspace, old: str, new: str, word: str) -> None:
    text = dump("toy", [RELEASE])
    assert old in text
    releases_file(toy, "toy").parent.mkdir(exist_ok=True)
    releases_file(toy, "toy").write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ReleaseRecordError) as caught:
        read_releases(toy, "toy")
    assert word in caught.value.what + caught.value.why


@pytest.fixture
def report(subject: Subject, rendered: Rendered) -> dict[str, Any]:
    from datetime import UTC, datetime

    results = [
        Result(name, "static", "about", Outcome("pass", "well"), 0.5)
        for name in required_checks(rendered, release=True)
    ]
    return make_report(subject, results, {}, "", datetime.now(UTC))


@pytest.fixture
def built(subject: Subject) -> Built:
    return subject.built


def candidate(rendered: Rendered, built: Built, report: dict[str, Any], **statuses: str) -> Candidate:
    for check in report["checks"]:
        check["status"] = statuses.get(check["id"].replace(".", "_"), check["status"])
    return Candidate(rendered, built, report)


def test_a_moving_tag_needs_every_check_and_a_version_tag_that_none_failed(
    rendered: Rendered, built: Built, report: dict[str, Any], toy_pins: Pins
) -> None:
    required = required_checks(rendered, release=True)
    require_releasable(candidate(rendered, built, report), required, ["latest"], toy_pins)
    one = candidate(rendered, built, report, files_clean="skip")
    require_releasable(one, required, [], toy_pins)
    with pytest.raises(NotReleasableError, match="latest stands for") as caught:
        require_releasable(one, required, ["latest"], toy_pins)
    assert "files.clean: skip" in caught.value.why
    report["checks"] = [check for check in report["checks"] if check["id"] != "files.clean"]
    with pytest.raises(NotReleasableError) as caught:
        require_releasable(one, required, ["latest"], toy_pins)
    assert "files.clean: not in the report" in caught.value.why


@pytest.mark.parametrize("status", ["fail", "error"])
def test_what_failed_is_not_published_at_all(
    rendered: Rendered, built: Built, report: dict[str, Any], toy_pins: Pins, status: str
) -> None:
    one = candidate(rendered, built, report, image_config=status)
    with pytest.raises(NotReleasableError, match="did not pass its verification"):
        require_releasable(one, [], [], toy_pins)


@pytest.mark.parametrize("choice", [{"overrides": (("aiter", "main"),)}, {"allowed": ("bad-one",)}])
def test_a_moving_tag_stands_for_the_pins_alone(
    rendered: Rendered, built: Built, report: dict[str, Any], toy_pins: Pins, choice: dict[str, Any]
) -> None:
    one, chosen = candidate(rendered, built, report), replace(toy_pins, **choice)
    require_releasable(one, [], [], chosen)
    with pytest.raises(NotReleasableError, match="a choice beside them"):
        require_releasable(one, [], ["latest"], chosen)


def test_a_gpu_image_is_released_only_with_what_ran_on_one(rendered: Rendered) -> None:
    on_gpu = replace(rendered, image=replace(rendered.image, needs="gpu"))
    assert not any(name.startswith("serve.") for name in required_checks(on_gpu))
    assert required_checks(on_gpu, release=True) == required_checks(rendered)


def celled(one: Candidate, **cells: tuple[str, bool]) -> Candidate:
    """The candidate with a merged report of these cells: their status, and whether they were asked for."""
    found = {name: {"status": status, "required": asked} for name, (status, asked) in cells.items()}
    return replace(one, report={**one.report, "cells": found})


def test_where_cells_are_required_each_of_them_must_have_passed(
    rendered: Rendered, built: Built, report: dict[str, Any]
) -> None:
    one = candidate(rendered, built, report)
    require_cells(celled(one, a=("pass", True), b=("pass", True), more=("pass", False)), ["a", "b"])
    require_cells(one, [])
    for there, said in (
        ({"a": ("pass", True), "b": ("error", True)}, "b: error"),
        ({"a": ("pass", True), "b": ("fail", True)}, "b: fail"),
        ({"a": ("pass", True)}, "b: not in the report"),
        # What passes where nobody asked for it may have skipped what a cell must not.
        ({"a": ("pass", True), "b": ("pass", False)}, "b: pass, in a merge that did not ask for it"),
    ):
        with pytest.raises(NotReleasableError, match="1 of 2 cells") as caught:
            require_cells(celled(one, **there), ["a", "b"])
        assert said in caught.value.why
        assert built.digest in caught.value.why
    with pytest.raises(NotReleasableError, match="2 of 2 cells"):
        require_cells(one, ["a", "b"])


def test_the_version_tag_is_the_leads_version_and_the_build_key(rendered: Rendered, toy_pins: Pins) -> None:
    assert version_tag(toy_pins, rendered) == f"toy-{rendered.key[:16]}"
    for version, tag in (("0.32.0", "v0.32.0"), ("v0.1.14", "v0.1.14"), ("1.0+cpu", "v1.0-cpu")):
        one = replace(rendered, units=(replace(rendered.units[0], name="vllm", version=version),))
        pins = replace(toy_pins, components=())
        assert version_tag(pins, one) == f"{tag}-{rendered.key[:16]}"


@pytest.fixture
def signed(rendered: Rendered, built: Built, report: dict[str, Any], toy_pins: Pins, toy_lock: Lock) -> dict[str, Any]:
    """What is signed beside an image, and the record of it."""
    engine = Engine("unix:///nowhere", "28", "1.48", private=False)
    made = provenance(toy_pins, toy_lock, rendered, built, engine)
    release = released(rendered, toy_pins, toy_lock, built, report, "registry.example/toy", "v1", "2026-11-25")
    return {
        "place": f"registry.example/toy@{built.digest}",
        "digest": built.digest,
        "sbom": json.loads(rendered.sbom),
        "made": json.loads(json.dumps(made)),
        "report": report,
        "labels": dict(rendered.labels),
        "release": release,
    }


def test_what_fits_together_is_told(signed: dict[str, Any], toy_lock: Lock) -> None:
    said = compare(**signed)
    assert said["lock"] == toy_lock.sha256
    assert said["checked"] == checked(signed["report"])
    assert compare(**{**signed, "release": None}) == said


@pytest.mark.parametrize(
    "path", ["report.subject.manifest_digest", "report.lock.sha256", "report.stack", "sbom.metadata.component.name"]
)
def test_a_statement_about_another_image_is_refused(signed: dict[str, Any], path: str) -> None:
    *way, last = path.split(".")
    table = signed
    for step in way:
        table = table[step]
    table[last] = "other"
    with pytest.raises(AttestationError, match="does not fit together"):
        compare(**{**signed, "release": None})


def test_labels_of_another_image_are_refused(signed: dict[str, Any]) -> None:
    signed["labels"]["io.kiln.lock.sha256"] = "0" * 64
    with pytest.raises(AttestationError, match="does not fit together"):
        compare(**signed)


@pytest.mark.parametrize("what", ["sbom", "made", "report"])
@pytest.mark.parametrize("junk", [None, 3, [], {}, {"subject": 1}, "text"])
def test_a_statement_of_another_form_is_refused(signed: dict[str, Any], what: str, junk: object) -> None:
    with pytest.raises(AttestationError):
        compare(**{**signed, what: junk})


@pytest.mark.parametrize(
    "change",
    [
        {"lock": "0" * 64},
        {"key": "0" * 64},
        {"report": "0" * 64},
        {"image": "other"},
        {"digest": "sha256:" + "0" * 64},
        {"overrides": {"vllm": "9"}},
        {"allowed": ("x",)},
        {"checked": replace(CHECKED, passed=99)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_record_that_says_something_else_is_refused(signed: dict[str, Any], change: dict[str, Any]) -> None:
    with pytest.raises(ReleaseRecordError, match="says something else"):
        compare(**{**signed, "release": replace(signed["release"], **change)})


def test_a_report_is_the_same_whatever_wrote_its_numbers() -> None:
    assert report_digest({"a": [1.0, 2.5]}) == report_digest({"a": [1, 2.5]})
    assert report_digest({"a": 1}) != report_digest({"a": 2})


def envelope(predicate: object, digest: str = DIGEST) -> str:
    statement = {"subject": [{"digest": {"sha256": digest.removeprefix("sha256:")}}], "predicate": predicate}
    return json.dumps({"payload": base64.b64encode(json.dumps(statement).encode()).decode()})


def test_every_statement_of_a_kind_is_read() -> None:
    assert statements(f"{envelope(1)}\n{envelope({'a': 2})}\n", f"x/y@{DIGEST}") == [1, {"a": 2}]


@pytest.mark.parametrize(
    "output", ["", "{}", "no json", '{"payload": "!"}', '{"payload": "e30="}', envelope(1, "sha256:" + "0" * 64)]
)
def test_what_is_no_statement_of_this_image_is_refused(output: str) -> None:
    with pytest.raises(AttestationError):
        statements(output, f"x/y@{DIGEST}")


def test_the_release_with_the_same_lock_is_chosen_the_newest_of_them(toy_pins: Pins) -> None:
    newer, other = replace(RELEASE, tag="newer"), replace(RELEASE, tag="other", lock="0" * 64)
    chosen = choose([RELEASE, newer, other], toy_pins, "toy-serving", "d" * 64, {})
    assert chosen is newer
    assert choose([RELEASE, newer, other], toy_pins, "toy-serving", "", {}, latest=True) is other


def test_a_chosen_version_picks_the_release_that_has_it(toy_pins: Pins) -> None:
    asked = replace(toy_pins, overrides=(("aiter", "v0.1.14"),))
    later = replace(RELEASE, components={"aiter": "v0.1.16"}, tag="later")
    assert choose([RELEASE, later], asked, "toy-serving", "", {}) is RELEASE


def test_nothing_prebuilt_names_the_nearest_and_how_to_build(toy_pins: Pins) -> None:
    far = replace(RELEASE, components={"vllm": "9", "aiter": "v9"}, tag="far")
    with pytest.raises(NotPublishedError) as caught:
        choose([RELEASE, far], toy_pins, "toy-serving", "0" * 64, {"vllm": "0.32.0", "aiter": "v0.1.16"})
    assert "nearest: v1-abc" in caught.value.why
    assert "aiter: v0.1.14, wanted v0.1.16" in caught.value.why
    assert "make image STACK=toy" in caught.value.fix
    with pytest.raises(NotPublishedError, match="was never published"):
        choose([], toy_pins, "toy-serving", "", {})


@pytest.mark.parametrize("text", ["toy", "no such", "a/b:c/d", "host/UPPER"])
def test_what_is_neither_a_stack_nor_an_image_is_refused(text: str) -> None:
    from kiln.config import Config

    with pytest.raises(UsageError):
        require_digest(Config(), text)


def test_an_image_by_its_digest_is_found_in_the_record() -> None:
    mirror = replace(RELEASE, repository="mirror.example/toy")
    everything = {"toy": [RELEASE, mirror], "cpu": []}
    assert recorded(everything, RELEASE.repository, DIGEST) is RELEASE
    assert recorded(everything, "unknown.example/toy", DIGEST) is mirror
    assert recorded(everything, RELEASE.repository, "sha256:" + "0" * 64) is None
