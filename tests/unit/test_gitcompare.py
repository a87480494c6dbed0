"""What lies between two commits: which files decide a build, which requirements came and went, and histories that cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiln.config import Config
from kiln.errors import SourceError
from kiln.git import GitCache
from kiln.gitcompare import Commits, Relinked, Touched, compare, is_build_file, plain, requirement_lines
from tests.aiter import git
from tests.rehearsal.standins import Repositories

URL = "https://git.invalid/one"


@pytest.mark.parametrize(
    "path",
    [
        "setup.py", "pyproject.toml", "requirements.txt", "requirements-triton.txt", "dev_requirements.txt", "requirements/rocm.txt",
        "CMakeLists.txt", "csrc/CMakeLists.txt", ".gitmodules", "docker/Dockerfile.rocm", "docker/run.sh", "cmake/llvm-hash.txt",
        "scripts/build_wheel.sh", "MANIFEST.in", "a/b.cmake", "Dockerfile",
    ],
)  # fmt: skip
def test_files_that_decide_a_build(path: str) -> None:
    assert is_build_file(path)


@pytest.mark.parametrize(
    "path",
    [
        ".github/workflows/build.yaml", ".github/requirements/ci.txt", ".github/scripts/build.sh", "README.md", "aiter/setup_ops.py",
        "docs/requirements.md", "csrc/kernels/mhc.cu", "docker", "tests/test_setup.py",
    ],
)  # fmt: skip
def test_files_that_do_not(path: str) -> None:
    assert not is_build_file(path)


def test_requirements_without_comments() -> None:
    text = b"# all\n numpy>=2  # why\n\n-r common.txt\nnumpy>=2\nflydsl==0.2.0\n"
    assert requirement_lines("requirements/rocm.txt", text) == ("numpy>=2", "-r common.txt", "flydsl==0.2.0")


def test_requirements_of_a_pyproject() -> None:
    text = b'[build-system]\nrequires = ["wheel"]\n[project]\ndependencies = ["numpy>=2", 3]\n'
    assert requirement_lines("pyproject.toml", text) == ("wheel", "numpy>=2")


@pytest.mark.parametrize("text", [b"[[", b"build-system = 3", b"project = []", b"[project]\ndependencies = 4"])
def test_of_a_pyproject_that_is_none_nothing_is_said(text: bytes) -> None:
    assert requirement_lines("pyproject.toml", text) == ()


@given(st.sampled_from(["pyproject.toml", "requirements.txt", "setup.py"]), st.binary(max_size=200))
def test_whatever_a_file_holds_it_is_read_and_harmless(path: str, data: bytes) -> None:
    assert all(line.isprintable() for line in requirement_lines(path, data))


@given(st.text(max_size=50))
def test_a_plain_text_has_nothing_that_a_terminal_acts_on(text: str) -> None:
    assert plain(text).isprintable()


@pytest.fixture
def repositories(tmp_path: Path) -> Repositories:
    return Repositories(tmp_path / "hub")


@pytest.fixture
def cache(tmp_path: Path, repositories: Repositories) -> GitCache:
    return GitCache(tmp_path / "cache", Config((("https://git.invalid", str(repositories.folder / "git.invalid")),)))


def test_files_come_change_and_go(repositories: Repositories, cache: GitCache) -> None:
    sub = repositories.commit("https://git.invalid/sub", {"s": b"1"})
    old = {"setup.py": b"1\n", "setup.cfg": b"\0\1", "code.c": b"1", "docker/Dockerfile": b"FROM a\nRUN b\n"}
    first = repositories.commit(URL, old, submodules={"third/gone": sub}).commit
    second = repositories.commit(
        URL, {"setup.py": b"1\n", "setup.cfg": b"\0\2", "code.c": b"2", "requirements.txt": b"numpy\n"},
        submodules={"third/new": sub}, on=first, message="all of it",
    ).commit  # fmt: skip
    found = compare(cache, URL, first, second)
    assert found.commits == Commits(1, 0, ("all of it",))
    assert found.files == (
        Touched(".gitmodules", 2, 2),
        Touched("docker/Dockerfile", 0, 2),
        Touched("requirements.txt", 1, 0, ("numpy",), ()),
        Touched("setup.cfg", None, None),
    )
    assert found.submodules == (Relinked("third/gone", sub.commit, ""), Relinked("third/new", "", sub.commit))
    assert found.other == 1


def test_a_commit_that_is_nowhere_is_an_error(repositories: Repositories, cache: GitCache) -> None:
    first = repositories.commit(URL, {"a": b"1"}).commit
    with pytest.raises(SourceError, match="has no commit"):
        compare(cache, URL, first, "f" * 40)


def test_a_history_that_is_cut_off_counts_nothing(repositories: Repositories, cache: GitCache, tmp_path: Path) -> None:
    first = repositories.commit(URL, {"setup.py": b"1\n"}).commit
    second = repositories.commit(URL, {"setup.py": b"2\n"}, on=first).commit
    third = repositories.commit(URL, {"setup.py": b"3\n"}, on=second).commit
    whole = repositories.folder / "git.invalid" / "one"
    shallow = whole.with_name("shallow")
    git(tmp_path, "clone", "--quiet", "--bare", "--depth=2", f"file://{whole}", str(shallow))
    found = compare(cache, "https://git.invalid/shallow", second, third)
    assert "cut off" in found.commits.unknown
    assert found.files == (Touched("setup.py", 1, 1),)
