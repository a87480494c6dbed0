"""The SBOM: valid CycloneDX, complete, the same every time; and each way in which an image can differ from it is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from kiln.cli import run
from kiln.git import Submodule
from kiln.lockentries import Archive, Deb, Git
from kiln.lockfile import TOOLS, Lock, read_lock
from kiln.pins import Pins, read_pins
from kiln.render import Rendered, render
from kiln.sbom import git_purl, purl
from kiln.verify.checks import Outcome
from kiln.verify.sbom import materials
from kiln.workspace import Workspace

COMMIT, OTHER = "a" * 40, "b" * 40


def rendered_of(
    real: Workspace, stack: str, change: Callable[[Lock], Lock] = lambda lock: lock
) -> tuple[Rendered, ...]:
    pins = read_pins(real, stack)
    return render(real, pins, change(read_lock(real, pins)))


def resolved(lock: Lock) -> Lock:
    """The ROCm stack's lock as it is where every host answers: each kind of input is there, with invented checksums."""
    gits = {git.component: git for git in lock.gits}
    for number, entry in enumerate(one for one in lock.unresolved if one.kind == "git"):
        url, _, ref = entry.ref.rpartition("@")
        gits[entry.name] = Git(entry.name, url, ref, f"{number:x}" * 40, f"{number + 1:x}" * 40)
    picked = replace(gits["vllm"], picks=(f"https://example.invalid/fork@{OTHER}",))
    elsewhere = Submodule("third/party", "https://git.example.invalid/group/sub/party.git", COMMIT)
    gits |= {"vllm": picked, "mori": replace(gits["mori"], submodules=(*gits["mori"].submodules, elsewhere))}
    archive = Archive("triton", "llvm", "https://example.invalid/llvm-1+2.tar.gz", "c" * 64, 1)
    deb = Deb("libx", "1:2.0~rc1-3ubuntu4", "amd64", "pool/main/libx/libx_2.0_amd64.deb", "d" * 64, 1)
    return replace(lock, gits=tuple(gits.values()), archives=(archive,), debs=(deb,), unresolved=())


def documents(real: Workspace) -> list[str]:
    every = (*rendered_of(real, "cpu"), *rendered_of(real, "dsv4-mhc"), *rendered_of(real, "dsv4-mhc", resolved))
    assert len(every) == 5
    return [one.sbom for one in every]


def entries(text: str) -> dict[str, dict[str, Any]]:
    return {one["bom-ref"]: one for one in json.loads(text)["components"]}


def test_every_sbom_is_valid_cyclonedx(real: Workspace) -> None:
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert [validator.validate_str(text) for text in documents(real)] == [None] * 5
    broken = documents(real)[0].replace('"type": "library"', '"type": "books"', 1)
    assert validator.validate_str(broken) is not None


def test_every_package_url_is_spelled_as_its_rules_say(real: Workspace) -> None:
    urls = [one["purl"] for text in documents(real) for one in entries(text).values() if "purl" in one]
    assert len(urls) > 400
    assert [one for one in urls if PackageURL.from_string(one).to_string() != one] == []


def test_nothing_in_it_moves(real: Workspace) -> None:
    first, second = documents(real), documents(real)
    assert first == second
    for text in first:
        document = json.loads(text)
        assert document["metadata"]["timestamp"] == "2026-11-01T00:00:00Z"
        assert "serialNumber" not in document
        references = [one["bom-ref"] for one in document["components"]]
        assert references == sorted(set(references))
        hung = [one for entry in document["dependencies"] for one in (entry["ref"], *entry["dependsOn"])]
        assert set(hung) <= {*references, "image"}


def test_every_input_of_the_lock_is_listed_once_with_its_checksum(real: Workspace) -> None:
    pins = read_pins(real, "cpu")
    lock = read_lock(real, pins)
    found = entries(rendered_of(real, "cpu")[0].sbom)
    hashes = sorted(one["hashes"][0]["content"] for one in found.values() if "hashes" in one)
    assert hashes == sorted(one.sha256 for one in lock.entries())
    assert {name for name, one in found.items() if one.get("scope") == "excluded"} == {
        f"wheel/tools/{wheel.name}" for wheel in lock.wheels_of(TOOLS)
    }
    assert found["wheel/torch/torch"]["purl"] == "pkg:pypi/torch@2.13.0%2Bcpu"
    assert found["plugin/plugins/vllm"]["version"] == "0.32.0+cpu"
    assert found["deb/libc6"]["purl"].startswith("pkg:deb/debian/libc6@")


def test_sources_are_listed_with_all_that_belongs_to_them(real: Workspace) -> None:
    _, serving = rendered_of(real, "dsv4-mhc", resolved)
    found = entries(serving.sbom)
    assert found["source/aiter"]["purl"].startswith("pkg:github/rocm/aiter@bd0534e")
    assert found["source/mori/third/party"]["purl"] == (
        f"pkg:generic/party@{COMMIT}?vcs_url=git%2Bhttps://git.example.invalid/group/sub/party.git%40{COMMIT}"
    )
    assert found["source/vllm"]["pedigree"]["commits"] == [{"uid": OTHER, "url": "https://example.invalid/fork"}]
    assert found["archive/triton/llvm"]["hashes"][0]["content"] == "c" * 64
    assert found["built/vllm/vllm"]["version"] == "0.22.1.dev0+g5cb4ba95c758"
    assert "version" not in found["built/triton/triton-kernels"]
    assert found["deb/libx"]["purl"] == "pkg:deb/ubuntu/libx@1:2.0~rc1-3ubuntu4?arch=amd64&distro=jammy"
    assert found["base"]["purl"].startswith("pkg:oci/dev-ubuntu-22.04@sha256:b64aecbe")
    # Built with, and in no image; and what vLLM takes in at the build is in the image.
    assert {name.split("/")[1] for name, one in found.items() if one.get("scope") == "excluded"} == {
        "build-tools",
        TOOLS,
    }
    hung = {one["ref"]: one["dependsOn"] for one in json.loads(serving.sbom)["dependencies"]}
    assert "source/vllm-triton-kernels" in hung["image"]
    assert hung["built/aiter/amd-aiter"] == ["source/aiter"]
    assert hung["source/triton"] == ["archive/triton/llvm"]


def test_what_is_open_says_so(real: Workspace) -> None:
    base, _ = rendered_of(real, "dsv4-mhc")
    document = json.loads(base.sbom)
    said = [one["value"] for one in document["metadata"]["component"]["properties"] if one["name"].endswith("resolved")]
    assert len(said) == len(read_lock(real, read_pins(real, "dsv4-mhc")).unresolved)
    assert "version" not in entries(base.sbom)["source/cpython"]


def test_a_bump_of_a_wheel_changes_its_line_and_those_that_name_the_lock(toy: Workspace, toy_pins: Pins) -> None:
    lock = read_lock(toy, toy_pins)
    victim = lock.wheels_of("app")[0]
    other = replace(lock, wheels=tuple(replace(w, version="2.1") if w is victim else w for w in lock.wheels))
    before, after = (render(toy, toy_pins, one)[0].sbom.splitlines() for one in (lock, other))
    changed = [line for line in after if line not in before]
    assert [line.partition(":")[0] for line in changed] == ['"metadata"', '{"type"']


def test_addresses_become_package_urls() -> None:
    assert git_purl("https://github.com/ROCm/AITER.git", COMMIT) == f"pkg:github/rocm/aiter@{COMMIT}"
    assert git_purl("https://github.com/a/b/c", COMMIT).startswith("pkg:generic/c@")
    assert purl("generic", "", "x y", "", {"b": "1&2", "a": ""}) == "pkg:generic/x%20y?b=1%262"


def test_the_command_prints_the_very_bytes(
    toy: Workspace, toy_pins: Pins, toy_lock: Lock, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    words = ["--root", str(toy.root), "--state", str(toy.state), "sbom", "toy"]
    assert run(words) == 0
    expected = render(toy, toy_pins, toy_lock)[0].sbom
    assert capfdbinary.readouterr().out == expected.encode()
    out = toy.root / "out" / "sbom.json"
    assert run([*words, "--image", "toy-serving", "--out", str(out)]) == 0
    assert out.read_bytes() == expected.encode()
    assert run([*words, "--image", "other"]) == 2
    assert b"no image 'other'" in capfdbinary.readouterr().err


# --- the check ---


@pytest.fixture(scope="module")
def image(project: Path) -> Rendered:
    return rendered_of(Workspace(project, project / "never-made"), "dsv4-mhc", resolved)[1]


@pytest.fixture
def doc(image: Rendered) -> dict[str, Any]:
    """What scripts/inspect_image.py sees in an image that is as its SBOM says."""
    listed = entries(image.sbom)
    inside = {name: one for name, one in listed.items() if one.get("scope") != "excluded"}
    kinds = ("wheel/", "built/", "plugin/")
    distributions = [
        {"name": one["name"], "version": one.get("version", "7"), "debian": False}
        for name, one in inside.items()
        if name.startswith(kinds)
    ]
    versions = {
        "BASE_IMAGE": f"{listed['base']['name']}:7.2.3-complete@sha256:{listed['base']['hashes'][0]['content']}"
    }
    for key, name in (("AITER", "source/aiter"), ("VLLM", "source/vllm")):
        versions |= {
            f"{key}_REPO": listed[name]["externalReferences"][0]["url"],
            f"{key}_COMMIT": listed[name]["version"],
        }
    found = {
        "app": {"versions": versions, "provenance": {}, "sbom": image.sbom, "trouble": ""},
        "packages": {"packages": [["libx", "1:2.0~rc1-3ubuntu4"], ["of-the-base", "1"]]},
        "distributions": {"distributions": [*distributions, {"name": "six", "version": "1", "debian": True}]},
    }
    return json.loads(json.dumps({name: {"looked": True, **one} for name, one in found.items()}))


def judged(doc: dict[str, Any], image: Rendered, **labels: str) -> Outcome:
    return materials(doc, image.sbom, dict(image.labels) | labels, on_a_base=True)


def test_an_image_that_is_as_listed_passes(doc: dict[str, Any], image: Rendered) -> None:
    outcome = judged(doc, image)
    assert outcome.status == "pass", outcome.summary
    assert outcome.evidence["listed"]["wheel"] > 150


def test_what_was_not_looked_at_is_no_pass(doc: dict[str, Any], image: Rendered) -> None:
    for name in ("app", "packages", "distributions"):
        assert judged({**doc, name: {"looked": False, "why": "gone"}}, image).status == "error"
        assert judged({key: one for key, one in doc.items() if key != name}, image).status == "error"


class Sections:
    """The parts of a document that are changed here."""

    def __init__(self, doc: dict[str, Any]) -> None:
        self.app = doc["app"]
        self.debs = doc["packages"]["packages"]
        self.wheels = doc["distributions"]["distributions"]


Change = Callable[[Sections], object]
WRONG: list[tuple[str, Change, str]] = [
    ("no SBOM", lambda s: s.app.update(sbom=None), "sbom.cdx.json is missing"),
    ("no JSON", lambda s: s.app.update(sbom="{"), "no SBOM as kiln writes it: JSONDecodeError"),
    ("no SBOM inside", lambda s: s.app.update(sbom="[]"), "no SBOM as kiln writes it"),
    ("too deep", lambda s: s.app.update(sbom="[" * 100_000), "no SBOM as kiln writes it"),
    ("another byte", lambda s: s.app.update(sbom=s.app["sbom"] + "\n"), "not the rendered one to the byte"),
    ("a line end", lambda s: s.app.update(sbom=s.app["sbom"].replace("\n", "\r\n")), "not the rendered one"),
    (
        "another version in it",
        lambda s: s.app.update(sbom=s.app["sbom"].replace('"version": "3.29.0"', '"version": "3.29.1"')),
        "distribution filelock: expected '3.29.1', found '3.29.0'",
    ),
    ("another distribution", lambda s: s.wheels.append(dict(s.wheels[0], name="sneaked")), "distribution sneaked"),
    ("a distribution less", lambda s: s.wheels.pop(0), "is missing"),
    (
        "a built one less",
        lambda s: s.wheels.remove(next(o for o in s.wheels if o["name"] == "amdsmi")),
        "amdsmi: '' is missing",
    ),
    ("another version", lambda s: s.wheels[-2].update(version="0"), "found '0'"),
    ("another version of a package", lambda s: s.debs[0].__setitem__(1, "9"), "package libx: expected"),
    ("a package less", lambda s: s.debs.pop(0), "package libx: '1:2.0~rc1-3ubuntu4' is missing"),
    ("no versions.txt", lambda s: s.app.update(versions=None), "/app/versions.txt is missing"),
    (
        "a commit of another repository",
        lambda s: s.app["versions"].update(VLLM_COMMIT=s.app["versions"]["AITER_COMMIT"]),
        "/app/versions.txt: VLLM_COMMIT is bd0534e",
    ),
    (
        "a version of nothing",
        lambda s: s.app["versions"].update(TORCH_VERSION="1"),
        "TORCH_VERSION is 1, which is no component's version",
    ),
    ("another base", lambda s: s.app["versions"].update(BASE_IMAGE="x@sha256:0"), "the base image is x@sha256:0"),
]


@pytest.mark.parametrize(("change", "words"), [one[1:] for one in WRONG], ids=[one[0] for one in WRONG])
def test_each_difference_is_found(doc: dict[str, Any], image: Rendered, change: Change, words: str) -> None:
    change(Sections(doc))
    outcome = judged(doc, image)
    assert (outcome.status, words in outcome.summary) == ("fail", True), outcome.summary
    json.dumps(outcome.evidence)


@pytest.mark.parametrize(
    ("label", "value", "words"),
    [
        ("io.kiln.lock.sha256", "0" * 64, "label io.kiln.lock.sha256: expected"),
        ("io.kiln.component.torch", "3.0", "label io.kiln.component.torch: expected"),
        ("io.kiln.component.aiter.commit", OTHER, "and the SBOM has aiter at bd0534e"),
        ("io.kiln.more", "1", "label io.kiln.more: '1' is not expected"),
        ("org.opencontainers.image.title", "other", "by its label the image is another"),
        ("org.opencontainers.image.base.digest", "sha256:0", "the base image is sha256:b64aecbe"),
    ],
)
def test_each_label_that_differs_is_found(
    doc: dict[str, Any], image: Rendered, label: str, value: str, words: str
) -> None:
    outcome = judged(doc, image, **{label: value})
    assert (outcome.status, words in outcome.summary) == ("fail", True), outcome.summary


def test_a_stack_whose_components_have_no_key_has_an_empty_versions_txt(rendered: Rendered) -> None:
    kinds = ("wheel/", "built/", "plugin/")
    inside = {name: one for name, one in entries(rendered.sbom).items() if one.get("scope") != "excluded"}
    wheels = [{**one, "debian": False} for name, one in inside.items() if name.startswith(kinds)]
    debs = [[one["name"], one["version"]] for name, one in inside.items() if name.startswith("deb/")]
    doc = {
        "app": {"looked": True, "versions": {}, "sbom": rendered.sbom},
        "packages": {"looked": True, "packages": debs},
        "distributions": {"looked": True, "distributions": wheels},
    }
    outcome = materials(doc, rendered.sbom, dict(rendered.labels), on_a_base=False)
    assert outcome.status == "pass", outcome.summary


def test_without_a_base_image_every_package_must_be_listed(doc: dict[str, Any], image: Rendered) -> None:
    outcome = materials(doc, image.sbom, dict(image.labels), on_a_base=False)
    assert "package of-the-base: '1' is not expected" in outcome.summary


def test_an_sbom_that_was_edited_with_the_rest_is_not_the_rendered_one(doc: dict[str, Any], image: Rendered) -> None:
    """All in the image agrees; that it is what the lock says, the rendered bytes alone prove."""
    app, packages = Sections(doc).app, Sections(doc).debs
    app["sbom"] = app["sbom"].replace("1:2.0~rc1-3ubuntu4", "1:2.0~rc1-3ubuntu5")
    packages[0][1] = "1:2.0~rc1-3ubuntu5"
    outcome = judged(doc, image)
    assert outcome.status == "fail"
    assert all("rendered" in line or "is missing" in line for line in outcome.evidence["problems"])
