"""Site settings: which address is read instead of which, and every mistake of kiln.toml at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiln.config import Config, read_config, without_git
from kiln.errors import PinsError, UsageError
from kiln.workspace import Workspace

HUB = "https://github.com/ROCm"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "pins").mkdir()
    return Workspace(tmp_path, tmp_path / ".kiln")


def config(workspace: Workspace, text: str = "", **environ: str) -> Config:
    if text:
        (workspace.root / "kiln.toml").write_text(text)
    return read_config(workspace, environ)


def bare(path: Path) -> Path:
    (path / "objects").mkdir(parents=True)
    (path / "HEAD").write_text("ref: refs/heads/main\n")
    return path


def test_without_a_file_nothing_is_set(workspace: Workspace) -> None:
    found = config(workspace)
    assert found == Config((), ())
    assert found.mirrored(f"{HUB}/aiter.git") == f"{HUB}/aiter.git"


def test_one_repository_is_mirrored_exactly(workspace: Workspace) -> None:
    found = config(workspace, f'[mirrors]\n"{HUB}/aiter" = "https://git.example.com/aiter.git"\n')
    for url in (f"{HUB}/aiter", f"{HUB}/aiter/", f"{HUB}/aiter.git", f"{HUB}/aiter.git/"):
        assert found.mirrored(url) == "https://git.example.com/aiter.git"
    for url in (f"{HUB}/aiter-extra", f"{HUB}/aiter-extra.git", f"{HUB}/aiter.github", f"{HUB}/aite", HUB):
        assert found.mirrored(url) == url


@pytest.mark.parametrize("prefix", [HUB, f"{HUB}/", f"{HUB}//"])
@pytest.mark.parametrize("replacement", ["https://git.example.com/rocm", "https://git.example.com/rocm/"])
def test_a_prefix_stands_for_all_below(workspace: Workspace, prefix: str, replacement: str) -> None:
    found = config(workspace, f'[mirrors]\n"{prefix}" = "{replacement}"\n')
    assert found.mirrored(f"{HUB}/aiter.git") == "https://git.example.com/rocm/aiter.git"
    assert found.mirrored(f"{HUB}/a/b/c") == "https://git.example.com/rocm/a/b/c"
    assert found.mirrored("https://github.com/ROCmSoftware/x") == "https://github.com/ROCmSoftware/x"


def test_a_git_ending_of_the_prefix_does_not_matter(workspace: Workspace) -> None:
    found = config(workspace, f'[mirrors]\n"{HUB}/aiter.git" = "https://git.example.com/a"\n')
    assert found.mirrored(f"{HUB}/aiter") == "https://git.example.com/a"


def test_the_longest_prefix_wins(workspace: Workspace) -> None:
    text = f'[mirrors]\n"https://github.com" = "https://all"\n"{HUB}/aiter" = "https://one"\n"{HUB}" = "https://some"\n'
    found = config(workspace, text)
    assert [prefix for prefix, _ in found.mirrors] == [f"{HUB}/aiter", HUB, "https://github.com"]
    assert found.mirrored(f"{HUB}/aiter.git") == "https://one"
    assert found.mirrored(f"{HUB}/ck") == "https://some/ck"
    assert found.mirrored("https://github.com/x/y") == "https://all/x/y"


def test_a_folder_of_clones(workspace: Workspace) -> None:
    found = config(workspace, f'[mirrors]\n"{HUB}/" = "clones"\n')
    folder = workspace.root / "clones"
    assert found.mirrored(f"{HUB}/aiter.git") == str(folder / "aiter")
    bare(folder / "aiter.git")
    assert found.mirrored(f"{HUB}/aiter") == str(folder / "aiter.git")
    (folder / "aiter" / ".git").mkdir(parents=True)
    assert found.mirrored(f"{HUB}/aiter.git") == str(folder / "aiter")


def test_one_local_repository_is_nothing_but_itself(workspace: Workspace) -> None:
    path = bare(workspace.root / "aiter")
    found = config(workspace, f'[mirrors]\n"{HUB}/aiter" = "./aiter"\n')
    assert found.mirrored(f"{HUB}/aiter.git") == str(path)
    assert found.mirrored(f"{HUB}/aiter/archive/v1.tar.gz") == f"{HUB}/aiter/archive/v1.tar.gz"


def test_paths_start_from_the_file_and_home(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(workspace.root / "me"))
    (workspace.root / "site").mkdir()
    (workspace.root / "site" / "our.toml").write_text(
        '[mirrors]\n"https://a/" = "../clones"\n"https://b/" = "~/clones"\n[apt-sources]\ntrixie = "t.sources"\n'
    )
    found = read_config(workspace, {"KILN_CONFIG": str(workspace.root / "site" / "our.toml")})
    assert found.mirrored("https://a/x") == str(workspace.root / "clones" / "x")
    assert found.mirrored("https://b/x") == str(workspace.root / "me" / "clones" / "x")
    assert found.apt_sources == (("trixie", str(workspace.root / "site" / "t.sources")),)


def test_no_url_leads_out_of_a_folder(workspace: Workspace) -> None:
    found = config(workspace, f'[mirrors]\n"{HUB}/" = "clones"\n')
    assert found.mirrored(f"{HUB}/../../secret") == f"{HUB}/../../secret"


def test_images_and_archives(workspace: Workspace) -> None:
    text = (
        '[mirrors]\n"docker.io/" = "registry.example.com/hub"\n'
        '"docker.io/rocm/dev" = "other.example.com/dev"\n"https://files.example.org/" = "https://cache.example.com/f/"\n'
    )
    found = config(workspace, text)
    assert found.mirrored("docker.io/rocm/dev-ubuntu-22.04:7") == "registry.example.com/hub/rocm/dev-ubuntu-22.04:7"
    assert found.mirrored("docker.io/rocm/dev:7@sha256:00") == "other.example.com/dev:7@sha256:00"
    assert found.mirrored("https://files.example.org/a/b.tar.gz") == "https://cache.example.com/f/a/b.tar.gz"
    assert found.mirrored("docker.io:5000/rocm/dev") == "docker.io:5000/rocm/dev"


def test_ssh_is_not_a_path(workspace: Workspace) -> None:
    found = config(workspace, f'[mirrors]\n"{HUB}/" = "git@git.example.com:rocm"\n')
    assert found.mirrored(f"{HUB}/aiter.git") == "git@git.example.com:rocm/aiter.git"


def test_the_environment_wins(workspace: Workspace) -> None:
    text = f'[mirrors]\n"{HUB}/aiter" = "https://file"\n"https://x/" = "https://file-x"\n'
    found = config(workspace, text, KILN_MIRRORS=f"{HUB}/aiter.git=https://env?a=b\n https://y/=clones ")
    assert found.mirrored(f"{HUB}/aiter") == "https://env?a=b"
    assert found.mirrored("https://x/1") == "https://file-x/1"
    assert found.mirrored("https://y/1") == str(workspace.root / "clones" / "1")


@pytest.mark.parametrize("value", ["nothing", "=there", "https://a/=", "https://a/=b https://", "https://=x"])
def test_a_wrong_environment_is_named(workspace: Workspace, value: str) -> None:
    with pytest.raises(UsageError, match="KILN_MIRRORS") as caught:
        config(workspace, KILN_MIRRORS=value)
    assert caught.value.why


def test_a_named_file_must_be_there(workspace: Workspace) -> None:
    with pytest.raises(UsageError, match="KILN_CONFIG"):
        config(workspace, KILN_CONFIG="missing.toml")


def test_every_problem_of_the_file_at_once(workspace: Workspace) -> None:
    text = (
        '[mirrors]\n"https://a" = 1\n"https://b" = ""\n"" = "x"\n"https://c" = "x"\n"https://c.git" = "y"\n"a b" = "x"\n'
        '[apt-sources]\nbookworm = ""\n[mirror]\n'
    )
    with pytest.raises(PinsError) as caught:
        config(workspace, text)
    for part in ("https://a", "https://b", "is empty", "https://c.git", "a blank", "bookworm", "mirror: unknown key"):
        assert part in caught.value.why
    assert "docs/mirrors.md" in caught.value.fix


def test_not_toml(workspace: Workspace) -> None:
    with pytest.raises(PinsError, match="not TOML") as caught:
        config(workspace, "[mirrors\n")
    assert "docs/mirrors.md" in caught.value.fix


NAMES = st.text("ab-.", min_size=1, max_size=4).filter(lambda name: not name.endswith(".git") and ".." not in name)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(lambda names: "https://h/" + "/".join(names))


@given(PATHS, PATHS)
def test_only_whole_components_match(url: str, prefix: str) -> None:
    mirrored = Config(((prefix, "https://m"),)).mirrored(url)
    inside = without_git(url).split("/")[: len(without_git(prefix).split("/"))] == without_git(prefix).split("/")
    assert (mirrored != url) == inside
    if inside:
        assert mirrored == "https://m" + url.removeprefix(prefix)


@given(st.text())
def test_without_rules_nothing_changes(url: str) -> None:
    assert Config().mirrored(url) == url


def test_a_cache_is_named_in_the_file_or_in_the_environment(workspace: Workspace) -> None:
    text = '[cache]\nregistry = "registry.example.com:5000/team/kiln-cache"\npush = true\n'
    found = config(workspace, text)
    assert (found.cache, found.cache_push) == ("registry.example.com:5000/team/kiln-cache", True)
    assert config(workspace, KILN_CACHE="127.0.0.1:5000/x").cache == "127.0.0.1:5000/x"
    # For one run without it.
    assert config(workspace, KILN_CACHE="").cache == ""
    (workspace.root / "kiln.toml").unlink()
    assert (config(workspace).cache, config(workspace).cache_push) == ("", False)


@pytest.mark.parametrize(
    "place",
    ["registry.example.com", "https://registry.example.com/x", "host/name:tag", "host/Name", "host/a@b", "host/a/"],
)
def test_what_is_no_repository(workspace: Workspace, place: str) -> None:
    with pytest.raises(UsageError, match="KILN_CACHE"):
        config(workspace, KILN_CACHE=place)
    with pytest.raises(PinsError) as caught:
        config(workspace, f'[cache]\nregistry = "{place}"\n')
    assert "cache.registry" in caught.value.why


def test_pushing_needs_somewhere_to_push_to(workspace: Workspace) -> None:
    with pytest.raises(PinsError) as caught:
        config(workspace, "[cache]\npush = true\n")
    assert "cache.push" in caught.value.why


def test_builders_are_named_in_the_file_or_in_the_environment(workspace: Workspace) -> None:
    assert config(workspace, '[build]\nbuilder = "farm, default"\n').builder == "farm, default"
    assert config(workspace, KILN_BUILDER="near").builder == "near"
    # For one run without them.
    assert config(workspace, KILN_BUILDER="").builder == ""
    (workspace.root / "kiln.toml").unlink()
    assert config(workspace).builder == ""


@pytest.mark.parametrize("names", ["a,", ",a", "a b", "-a", "a;b", "tcp://host:1", "a,,b", " "])
def test_what_is_no_list_of_builders(workspace: Workspace, names: str) -> None:
    with pytest.raises(UsageError, match="KILN_BUILDER"):
        config(workspace, KILN_BUILDER=names)
    with pytest.raises(PinsError) as caught:
        config(workspace, f'[build]\nbuilder = "{names}"\n')
    assert "build.builder" in caught.value.why
