"""Pins out of a vLLM's own files: what they say, what stays open, and what is refused because it is not where it is expected."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
import tomllib
from pathlib import Path

import pytest

from kiln.cli import run
from kiln.config import Config
from kiln.console import Console
from kiln.derive import Asked, asked_nobody, asking
from kiln.deriving import derive_pins
from kiln.errors import PinsError, UnknownLayoutError, UpstreamError, UsageError
from kiln.git import GitCache
from kiln.pins import read_pins
from kiln.session import Session
from kiln.store import Store
from kiln.vllmfiles import archive_files, given_revision, revision_of
from kiln.vllmpins import read_said
from kiln.workspace import Workspace
from tests.unit.derivations import small_vllm

BASE = "docker/Dockerfile.rocm_base"
KERNELS = "cmake/external_projects/triton_kernels.cmake"
Files = dict[str, bytes]


@pytest.fixture
def files() -> Files:
    return small_vllm()


@pytest.fixture
def session(project_copy: Path, tmp_path: Path, console: Console) -> Session:
    workspace = Workspace(project_copy, tmp_path / "state")
    return Session(workspace, Store(workspace.state / "store"), console)


def written(files: Files, folder: Path) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def packed(files: Files, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz") as tar:
        for path, data in files.items():
            member = tarfile.TarInfo(f"vllm-0.25.0/{path}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return archive


def changed(files: Files, path: str, old: str, new: str) -> Files:
    text = files[path].decode()
    assert old in text
    return {**files, path: text.replace(old, new).encode()}


def test_each_value_is_read_with_its_file_and_line(files: Files) -> None:
    said = read_said(files.get)
    assert (said.base.text, said.base.where) == ("rocm/dev-ubuntu-22.04:7.2.3-complete", f"{BASE}:1")
    assert (said.archs.text, said.python.text) == ("gfx942;gfx950", "3.12")
    assert {name: source.ref.text for name, source in said.sources.items()} == {
        "triton": "0f380657",
        "torch": "d0c8b1f3",
        "torchvision": "v0.24.1",
        "torchaudio": "v2.9.0",
        "flash-attention": "0e60e394",
        "mori": "v1.1.0",
        "aiter": "v0.1.16.post2",
    }
    assert said.sources["aiter"].git.text == "https://github.com/ROCm/aiter"
    assert [pick.text for pick in said.sources["triton"].picks] == ["https://github.com/triton-lang/triton@555d04f"]
    assert (said.kernels.git.text, said.kernels.ref.text) == ("https://github.com/triton-lang/triton", "v3.5.1")


def test_requirements_of_one_name_are_one_with_the_stricter_bounds(files: Files) -> None:
    needs = read_said(files.get).needs
    assert needs["packaging"].text == "packaging>=24.2,<30"
    assert needs["packaging"].where == "requirements/common.txt:3, requirements/rocm.txt:2"
    assert needs["mistral-common"].text == "mistral-common[image]>=1.11.2"
    assert needs["runai-model-streamer"].text == "runai-model-streamer[gcs,s3]==0.15.7"
    assert "six" in needs
    assert "never" not in needs


def test_another_python_than_the_source_takes_is_said(files: Files) -> None:
    beside = read_said(changed(files, BASE, "PYTHON_VERSION=3.12", "PYTHON_VERSION=3.15").get).beside
    assert f"pyproject.toml asks for Python <3.15,>=3.10, and {BASE}:19 has 3.15" in beside


def test_what_only_a_shell_can_expand_is_left_in_a_package_and_refused_in_a_pick(files: Files) -> None:
    said = read_said(changed(files, BASE, "git curl python${PYTHON_VERSION}", "git python${PYTHON_VERSION%.*}").get)
    assert said.packages == ("git", "python${PYTHON_VERSION%.*}", "strace")
    with pytest.raises(UnknownLayoutError, match=f"{BASE}:28 cannot be read"):
        read_said(changed(files, BASE, "cherry-pick 555d04f", "cherry-pick ${TRITON_BRANCH%x}").get)


def test_a_pick_without_a_comment_is_of_the_same_repository(files: Files) -> None:
    said = read_said(changed(files, BASE, "# https://github.com/triton-lang/triton/pull/8991\n", "").get)
    assert [pick.text for pick in said.sources["triton"].picks] == ["https://github.com/ROCm/triton@555d04f"]


def test_what_upstream_builds_beside_is_said(files: Files) -> None:
    beside = "\n".join(read_said(files.get).beside)
    assert "docker/Dockerfile.rocm:3 builds NIXL at 231d5675, which Kiln has no component for" in beside
    assert "checks out 2d73be3 in stage build_rest" in beside
    assert "builds AITER with PREBUILD_KERNELS=1 AITER_USE_SYSTEM_TRITON=1" in beside
    assert "builds with packaging cmake<4" in beside


def test_the_kernels_that_the_serving_image_brings_are_taken(files: Files) -> None:
    commit = "ab" * 20
    stage = "FROM base AS kernels\nARG C\nADD https://codeload.github.com/ROCm/triton/tar.gz/${C} /t\n"
    serving = f"ARG C={commit}\n" + files["docker/Dockerfile.rocm"].decode() + stage
    kernels = read_said({**files, "docker/Dockerfile.rocm": serving.encode()}.get).kernels
    assert (kernels.git.text, kernels.ref.text) == ("https://github.com/ROCm/triton", commit)
    other = serving.replace("ADD https://codeload.github.com", "ENV TRITON_KERNELS_SRC_DIR=/t\nADD https://elsewhere")
    with pytest.raises(UnknownLayoutError, match="line 8, sets TRITON_KERNELS_SRC_DIR, and no ADD"):
        read_said({**files, "docker/Dockerfile.rocm": other.encode()}.get)


def test_of_the_kernels_in_cmake_those_for_rocm_are_taken(files: Files) -> None:
    branches = (
        'if (VLLM_TARGET_DEVICE STREQUAL "rocm")\n set(TRITON_GIT "https://github.com/ROCm/triton.git")\n set(TRITON_KERNELS_TAG "abc")\n'
        'else()\n set(TRITON_GIT "https://github.com/triton-lang/triton.git")\n set(TRITON_KERNELS_TAG "v3.5.1")\nendif()\n'
    )
    path = KERNELS
    kernels = read_said({**files, path: branches.encode()}.get).kernels
    assert (kernels.git.text, kernels.ref.text, kernels.ref.where) == (
        "https://github.com/ROCm/triton",
        "abc",
        f"{path}:3",
    )
    with pytest.raises(UnknownLayoutError, match="one TRITON_KERNELS_TAG for ROCm"):
        read_said({**files, path: branches.replace("VLLM_TARGET_DEVICE", "OTHER").encode()}.get)


@pytest.mark.parametrize("arg", ["TRITON_BRANCH", "PYTORCH_REPO", "FA_BRANCH", "AITER_BRANCH", "MORI_REPO"])
@pytest.mark.parametrize("how", ["renamed", "emptied"])
def test_an_arg_that_is_not_there_is_named_with_its_file(files: Files, arg: str, how: str) -> None:
    new = f"ARG {arg}=''\nARG OTHER_{arg}=" if how == "emptied" else f"ARG OTHER_{arg}="
    with pytest.raises(UnknownLayoutError, match=f"{BASE} has no ARG {arg} with a value"):
        read_said(changed(files, BASE, f"ARG {arg}=", new).get)


@pytest.mark.parametrize(
    ("path", "old", "new", "words"),
    [
        (BASE, "ARG BASE_IMAGE=", "ARG IMAGE=", f"{BASE}, line 17, cannot be read"),
        (BASE, "ENV AITER_ROCM_ARCH", "ENV ROCM_ARCH", f"{BASE} has no ARG or ENV AITER_ROCM_ARCH"),
        (BASE, "ARG PYTHON_VERSION=3.12", "ARG PYTHON=3.12", f"{BASE} has no ARG or ENV PYTHON_VERSION"),
        (BASE, "PYTHON_VERSION=3.12", "PYTHON_VERSION=three", "PYTHON_VERSION is 'three'"),
        (BASE, " AS base", " AS first", "has no stage 'base'"),
        (BASE, "git checkout ${MORI_BRANCH}", "git checkout main", "sets ARG MORI_BRANCH and checks it out nowhere"),
        (BASE, "build_aiter\nARG AITER_BRANCH\n", "build_aiter\n", "which stage build_aiter does not declare"),
        ("requirements/rocm.txt", "-r common.txt", "-r other.txt", "requirements/rocm.txt includes a file"),
        ("requirements/common.txt", "numpy", "num py", "requirements/common.txt:2 is no requirement"),
        ("requirements/common.txt", "numpy", f"numpy>={'9' * 5000}", "requirements/common.txt:2 is no requirement"),
        ("pyproject.toml", "[project]", "[project", "pyproject.toml is not TOML"),
        ("pyproject.toml", "<3.15", "<#.15", "pyproject.toml has no requires-python that can be read"),
    ],
)
def test_another_layout_is_refused_by_its_name(files: Files, path: str, old: str, new: str, words: str) -> None:
    with pytest.raises(UnknownLayoutError) as caught:
        read_said(changed(files, path, old, new).get)
    assert words in caught.value.what


@pytest.mark.parametrize("path", sorted(small_vllm().keys() - {"PKG-INFO"}))
def test_a_file_that_is_not_there_is_named(files: Files, path: str) -> None:
    with pytest.raises(UnknownLayoutError) as caught:
        read_said({name: data for name, data in files.items() if name != path}.get)
    assert path in caught.value.what + caught.value.why


def test_a_base_of_wheels_is_passed_over_for_the_one_that_is_built(files: Files) -> None:
    wheels = b'ARG BASE_IMAGE=ubuntu:22.04\nARG TORCH_VERSION=2.13.0+rocm10.0.0\nARG AITER_BRANCH="v9"\nFROM ${BASE_IMAGE} AS base\n'
    both = {
        **files,
        BASE: wheels,
        "docker/Dockerfile.rocm_72_base": files[BASE],
        "docker/Dockerfile.rocm_72": files["docker/Dockerfile.rocm"],
    }
    said = read_said(both.get)
    assert said.base.where == "docker/Dockerfile.rocm_72_base:1"
    assert "PyTorch 2.13.0+rocm10.0.0 as wheels on ubuntu:22.04, AITER v9" in said.beside[0]
    with pytest.raises(UnknownLayoutError, match=r"has no docker/Dockerfile\.rocm_72_base"):
        read_said({**files, BASE: wheels}.get)


def test_pins_are_written_as_far_as_they_are_known(session: Session, files: Files, tmp_path: Path) -> None:
    folder = written(files, tmp_path / "vllm")
    text, data = derive_pins(session, "", folder, "new-one", "dsv4-mhc", asked_nobody())
    assert (
        "new-one.toml is written; `kiln lock new-one` refuses it until there is a value for components.flydsl.wheels"
        in text
    )
    path = session.workspace.pins_file("new-one")
    assert [(item["path"], item["needed"]) for item in data["open"]] == [
        ("python.as-of", False),
        ("components.flydsl.wheels", True),
    ]
    # The pins say themselves that they are not whole.
    with pytest.raises(PinsError, match="1 problem") as caught:
        read_pins(session.workspace, "new-one")
    assert "components.flydsl: give one of wheels" in caught.value.why
    lines = path.read_text(encoding="utf-8").splitlines()
    filled = ['wheels = ["flydsl==0.1.8"]' if line.startswith("# OPEN: wheels = …") else line for line in lines]
    path.write_text("\n".join(filled), encoding="utf-8")
    pins, pattern = read_pins(session.workspace, "new-one"), read_pins(session.workspace, "dsv4-mhc")
    assert [(item.name, item.recipe, item.on) for item in pins.components] == [
        (item.name, item.recipe, item.on) for item in pattern.components
    ]
    named = pins.by_name
    assert (named["aiter"].ref, named["aiter"].version) == ("v0.1.16.post2", "0.1.16.post2")
    assert (named["torch"].ref, named["torch"].version) == ("d0c8b1f3", "2.11.0+gitd0c8b1f")
    assert (named["triton"].version, [pick.ref for pick in named["triton"].picks]) == ("", ["555d04f"])
    assert named["triton"].archives == pattern.by_name["triton"].archives
    assert (named["vllm"].git, named["vllm"].ref) == ("https://github.com/vllm-project/vllm", "v0.25.0")
    assert named["vllm"].version == "0.25.0"
    # The same commit in fewer digits is the one that is known already.
    assert named["flash-attention"] == pattern.by_name["flash-attention"]
    assert pins.base == pattern.base
    assert named["vllm-needs"].requires == (
        "mistral-common[image]>=1.11.2",
        "numpy",
        "packaging>=24.2,<30",
        "pillow",
        "regex",
        "runai-model-streamer[gcs,s3]==0.15.7",
        "six>=1.16.0",
    )
    assert 'ref = "v0.1.16.post2" # docker/Dockerfile.rocm_base:12' in lines
    assert '    "numpy", # requirements/common.txt:2' in lines


def test_what_is_said_of_them_is_what_a_person_must_know(session: Session, files: Files, tmp_path: Path) -> None:
    folder = written(changed(files, BASE, "v0.1.16.post2", "v0.1.13.post1"), tmp_path / "vllm")
    text, data = derive_pins(session, "", folder, "", "dsv4-mhc", asked_nobody("no network"))
    assert not session.workspace.pins_file("derived").exists()
    assert data["differences"]["components.aiter.ref"] == "v0.1.14 -> v0.1.13.post1"
    assert data["differences"]["components.flydsl.wheels"] == "flydsl==0.1.7 -> open"
    assert "without anthropic>=0.71.0" in data["differences"]["components.vllm-needs.requires"]
    assert "components.tilelang.wheels" not in data["differences"]
    names = {"triton", "torch", "torchvision", "torchaudio", "mori", "aiter", "vllm-triton-kernels", "vllm"}
    assert {item["path"] for item in data["unresolved"]} == {f"components.{name}.ref" for name in names}
    assert ("aiter-mhc-race", "refuse") in [(item["id"], item["effect"]) for item in data["advisories"]]
    beside = "\n".join(data["beside"])
    assert "components.build-tools has cmake>=3.26.1,<4 as dsv4-mhc has; this vLLM asks for cmake>=3.26.1,<5" in beside
    assert "its build asks for odd-tool, which no component names" in beside
    assert (
        "requirements.txt of AITER v0.1.13.post1 was not read: base-needs and build-tools are as dsv4-mhc has them"
        in beside
    )
    assert "its base image installs python3.12 strace, which" in beside
    assert "rocm-base" in beside
    # What is printed is the pins, and all else as their comments.
    assert tomllib.loads(text)["components"]["aiter"]["ref"] == "v0.1.13.post1"
    assert "#   components.aiter.ref: https://github.com/ROCm/aiter@v0.1.13.post1 (no network)" in text


def opened(session: Session, files: Files, folder: Path) -> tuple[set[str], dict[str, object]]:
    """What stays open, and the values."""
    _, data = derive_pins(session, "", written(files, folder), "", "dsv4-mhc", asked_nobody())
    values = {path: item["value"] for path, item in data["pins"].items()}
    paths = {item["path"] for item in data["open"]}
    assert not paths & values.keys()
    return paths, values


def test_a_commit_that_is_named_twice_has_all_its_digits(session: Session, files: Files, tmp_path: Path) -> None:
    full = "0f380657" + "ab" * 16
    kernels = f'set(TRITON_KERNELS_TAG "{full}")\nset(TRITON_GIT "https://github.com/ROCm/triton.git")\n'
    _, values = opened(session, {**files, KERNELS: kernels.encode()}, tmp_path / "vllm")
    assert values["components.triton.ref"] == full
    # One of another repository is another commit, whatever its digits.
    elsewhere = kernels.replace("ROCm", "triton-lang")
    _, values = opened(session, {**files, KERNELS: elsewhere.encode()}, tmp_path / "other")
    assert values["components.triton.ref"] == "0f380657"


def test_another_base_image_has_no_digest_that_anybody_knows(session: Session, files: Files, tmp_path: Path) -> None:
    other = changed(files, BASE, "dev-ubuntu-22.04:7.2.3-complete", "dev-ubuntu-24.04:7.3.1")
    left, values = opened(session, other, tmp_path / "vllm")
    assert (values["base.rocm"], values["ubuntu.suite"], values["python.glibc"]) == ("7.3.1", "noble", "2.39")
    assert "base.digest" in left


def test_a_base_image_with_a_digest_keeps_it(session: Session, files: Files, tmp_path: Path) -> None:
    digest = "sha256:" + "d" * 64
    other = changed(files, BASE, "7.2.3-complete", f"7.2.3-complete@{digest}")
    left, values = opened(session, other, tmp_path / "vllm")
    assert "base.digest" not in left
    assert (values["base.tag"], values["base.digest"]) == ("7.2.3-complete", digest)


def test_a_base_of_another_distribution_leaves_open_what_follows(
    session: Session, files: Files, tmp_path: Path
) -> None:
    other = changed(files, BASE, "rocm/dev-ubuntu-22.04:7.2.3-complete", "almalinux")
    left, values = opened(session, other, tmp_path / "vllm")
    assert {"base.tag", "base.rocm", "base.digest", "ubuntu.suite", "python.glibc"} <= left
    assert values["base.image"] == "docker.io/library/almalinux"


@pytest.mark.parametrize(
    ("path", "old", "new", "left"),
    [
        (BASE, "PYTHON_VERSION=3.12", "PYTHON_VERSION=3.13", "components.cpython.ref"),
        (BASE, " # release/2.11 as of some day", "", "components.torch.version"),
        ("requirements/rocm.txt", "tilelang==0.1.10", "tilelang>=0.1.10", "components.tilelang.wheels"),
        ("requirements/rocm.txt", "tilelang==0.1.10\n", "", "components.tilelang.wheels"),
    ],
)
def test_what_no_file_says_is_open(
    session: Session, files: Files, tmp_path: Path, path: str, old: str, new: str, left: str
) -> None:
    assert left in opened(session, changed(files, path, old, new), tmp_path / "vllm")[0]


@pytest.mark.parametrize(
    ("path", "old", "new", "unreadable"),
    [
        (BASE, "7.2.3-complete", "latest", {"base.rocm"}),
        (BASE, ":7.2.3-complete", "", {"base.rocm", "base.tag"}),
        (BASE, "dev-ubuntu-22.04", "dev-debian", {"ubuntu.suite", "python.glibc"}),
        (BASE, "PYTHON_VERSION=3.12", "PYTHON_VERSION=3.13", {"components.cpython.ref"}),
        (BASE, " # release/2.11 as of some day", "", set()),
        ("requirements/rocm.txt", "tilelang==0.1.10\n", "", {"components.tilelang.wheels"}),
    ],
)
def test_what_is_said_to_be_needed_is_what_pins_are_refused_without(
    session: Session, files: Files, tmp_path: Path, path: str, old: str, new: str, unreadable: set[str]
) -> None:
    folder = written(changed(files, path, old, new), tmp_path / "vllm")
    text, data = derive_pins(session, "", folder, "", "dsv4-mhc", asked_nobody())
    needed = {item["path"] for item in data["open"] if item["needed"]}
    assert needed == unreadable | {"components.flydsl.wheels"}
    session.workspace.pins_file("derived").write_text(text, encoding="utf-8")
    with pytest.raises(PinsError) as caught:
        read_pins(session.workspace, "derived")
    # Of a component it is said what it lacks, of a table which key.
    assert {line.split(":")[0] for line in caught.value.why.splitlines()} == {
        item.rpartition(".")[0] if item.startswith("components.") else item for item in needed
    }


def test_a_flydsl_that_vllm_names_is_taken(session: Session, files: Files, tmp_path: Path) -> None:
    other = changed(files, "requirements/rocm.txt", "tilelang==", "flydsl==0.2.0\ntilelang==")
    left, values = opened(session, other, tmp_path / "vllm")
    assert "components.flydsl.wheels" not in left
    assert values["components.flydsl.wheels"] == ["flydsl==0.2.0"]


REQUIREMENTS = "pandas==3.0.3\nflydsl==0.2.3  # for AOT\npackaging>=24.2,<30\npsutil\npytest==9.0.3\n"


@pytest.fixture
def upstream(tmp_path: Path) -> tuple[Config, str]:
    """A mirror with AITER's repository and nothing else, and the commit of its tag."""
    work = tmp_path / "aiter"
    work.mkdir()
    (work / "requirements.txt").write_text(REQUIREMENTS, encoding="utf-8")
    git = ["git", "-C", str(work), "-c", "user.name=x", "-c", "user.email=x@y.z"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"], ["tag", "v0.1.16.post2"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    return Config((("https://github.com/ROCm/aiter", str(work)), ("https:/", str(tmp_path / "nothing"))), ()), commit


def test_where_upstream_answers_commits_and_flydsl_are_known(
    session: Session, files: Files, tmp_path: Path, upstream: tuple[Config, str]
) -> None:
    config, commit = upstream
    asked = asking(GitCache(tmp_path / "git", config), config)
    only_git = Asked(asked.commit, asked_nobody().digest, asked.file)
    _, data = derive_pins(session, "", written(files, tmp_path / "vllm"), "", "dsv4-mhc", only_git)
    assert data["commits"] == {"aiter": commit}
    assert data["pins"]["components.flydsl.wheels"]["value"] == ["flydsl==0.2.3"]
    # What AITER asks for and nothing that is carried has; packaging has these bounds in vLLM's requirements.
    assert [line for line in data["beside"] if "AITER v0" in line] == [
        "components.base-needs has pandas as dsv4-mhc has; AITER asks for pandas==3.0.3 (requirements.txt of AITER v0.1.16.post2)",
        "requirements.txt of AITER v0.1.16.post2 asks for pytest==9.0.3, which no component names",
    ]
    assert "components.aiter.ref" not in [item["path"] for item in data["unresolved"]]


def test_a_ref_that_upstream_does_not_have_is_told_and_stops_nothing(
    session: Session, files: Files, tmp_path: Path, upstream: tuple[Config, str]
) -> None:
    config, _ = upstream
    asked = asking(GitCache(tmp_path / "git", config), config)
    folder = written(changed(files, BASE, "v0.1.16.post2", "v0.1.99"), tmp_path / "vllm")
    _, data = derive_pins(session, "", folder, "", "dsv4-mhc", Asked(asked.commit, asked_nobody().digest, asked.file))
    why = {item["path"]: item["why"] for item in data["unresolved"]}
    assert "has no tag or branch 'v0.1.99'" in why["components.aiter.ref"]
    assert data["pins"]["components.aiter.ref"]["value"] == "v0.1.99"


def test_a_revision_is_read_out_of_git(session: Session, tmp_path: Path, upstream: tuple[Config, str]) -> None:
    config, commit = upstream
    git = GitCache(tmp_path / "git", config)
    found = revision_of("https://github.com/ROCm/aiter@v0.1.16.post2", git, session.store)
    assert (found.ref, found.commit, found.version) == ("v0.1.16.post2", commit, "0.1.16.post2")
    assert found.released.endswith("Z")
    assert found.read("requirements.txt") == REQUIREMENTS.encode()
    assert found.read("nothing") is None
    with pytest.raises(UpstreamError, match=r"is no release of vLLM's own"):
        revision_of("https://github.com/somebody/vllm@v0.25.0", git, session.store)
    for wrong in ("git@github.com:ROCm/aiter@v1", "https://github.com/ROCm/aiter@", "x@v1"):
        with pytest.raises(UsageError, match="is neither REF nor URL@REF"):
            revision_of(wrong, git, session.store)


def test_where_the_repository_is_not_reached_a_release_is_read_out_of_its_source_distribution(
    session: Session, files: Files, tmp_path: Path, links: Path
) -> None:
    packed(files, links / "vllm-0.25.0.tar.gz")
    sha256 = hashlib.sha256((links / "vllm-0.25.0.tar.gz").read_bytes()).hexdigest()
    git = GitCache(tmp_path / "git", Config((("https:/", str(tmp_path / "nothing")),), ()))
    found = revision_of("v0.25.0", git, session.store)
    assert (found.ref, found.version, found.commit, found.released) == ("v0.25.0", "0.25.0", "", "")
    assert found.origin == f"the source distribution vllm-0.25.0.tar.gz (sha256 {sha256})"
    assert found.instead.startswith("the repository is not reached: ")
    assert read_said(found.read) == read_said(files.get)
    # It is in the store now, and the index is asked for its name alone.
    assert session.store.path(sha256).is_file()
    assert revision_of("v0.25.0", git, session.store).origin == found.origin


def test_a_source_distribution_is_read_as_a_folder_is(files: Files, tmp_path: Path) -> None:
    archive = packed({**files, "vllm/envs.py": b"x", "docker/Dockerfile.cpu": b"x"}, tmp_path / "vllm-0.25.0.tar.gz")
    assert archive_files(archive) == files
    revision = given_revision(archive, "")
    assert (revision.ref, revision.version) == ("v0.25.0", "0.25.0")
    archive.write_bytes(archive.read_bytes()[:200])
    with pytest.raises(UsageError, match="is no source distribution"):
        archive_files(archive)


def test_files_that_are_not_named_must_say_which_vllm_they_are(files: Files, tmp_path: Path) -> None:
    folder = written(files, tmp_path / "vllm")
    with pytest.raises(UsageError, match=r"is vLLM 0\.25\.0, not v0\.26\.0"):
        given_revision(folder, "v0.26.0")
    (folder / "PKG-INFO").unlink()
    with pytest.raises(UsageError, match="does not say which vLLM it is"):
        given_revision(folder, "")
    named = given_revision(folder, f"https://github.com/Fangzhou-Ai/vllm@{'5c' * 20}")
    assert (named.git, named.ref, named.version) == ("https://github.com/Fangzhou-Ai/vllm", "5c" * 20, "")
    with pytest.raises(UsageError, match="does not exist"):
        given_revision(tmp_path / "nothing", "")
    with pytest.raises(UsageError, match="holds no source of vLLM"):
        given_revision(tmp_path, "")


@pytest.mark.parametrize(
    ("name", "against", "words"),
    [
        ("dsv4-mhc", "dsv4-mhc", "is there already"),
        ("../x", "dsv4-mhc", "is no name"),
        ("", "cpu", "is no pattern"),
        ("", "nothing", "there is no stack"),
    ],
)
def test_a_stack_that_cannot_be_made_is_refused(
    session: Session, files: Files, tmp_path: Path, name: str, against: str, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        derive_pins(session, "", written(files, tmp_path / "vllm"), name, against, asked_nobody())


def test_the_command_needs_a_revision(real: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--root", str(real.root), "--state", str(real.state), "pins", "derive"]) == 2
    assert "--vllm v0.29.0" in capsys.readouterr().err


def test_the_command_ends_with_83_for_another_layout(
    session: Session, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(changed(files, BASE, "ARG AITER_BRANCH=", "ARG AITER_REF="), tmp_path / "vllm")
    place = ["--root", str(session.workspace.root), "--state", str(session.workspace.state)]
    assert run([*place, "pins", "derive", "--source", str(folder)]) == 83
    assert "docker/Dockerfile.rocm_base has no ARG AITER_BRANCH with a value" in capsys.readouterr().err


def test_the_command_prints_json(
    session: Session,
    files: Files,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KILN_MIRRORS", f"https://github.com={tmp_path}/nothing docker.io=127.0.0.1:1/nothing")
    folder = written(files, tmp_path / "vllm")
    place = ["--root", str(session.workspace.root), "--state", str(session.workspace.state)]
    assert run([*place, "--quiet", "--json", "pins", "derive", "--source", str(folder)]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["schema_version"] == 1
    assert data["vllm"]["ref"] == "v0.25.0"
