"""Git sources: refs, submodules, picks, history and files, from small repositories on this machine."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest

from kiln.config import Config
from kiln.errors import HostError, RefNotFoundError, SourceError, UpstreamError
from kiln.git import GitCache, GitSource, Submodule
from kiln.gitpick import absolute_url, near_names
from kiln.gitrun import Repository

HUB = "https://git.invalid/rocm"
FAR = "f" * 40


class Upstream:
    """A repository that a test fills; `git` runs in its work tree."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.git("init", "-q", "-b", "main")

    def git(self, *words: str, data: bytes | None = None, **env: str) -> str:
        done = subprocess.run(
            ["git", "-c", "commit.gpgSign=false", *words], cwd=self.folder, capture_output=True, check=True, input=data,
            env={
                **os.environ, "GIT_AUTHOR_NAME": "T", "GIT_AUTHOR_EMAIL": "t@example.com", "GIT_COMMITTER_NAME": "T",
                "GIT_COMMITTER_EMAIL": "t@example.com", "GIT_AUTHOR_DATE": "1700000000 +0000",
                "GIT_COMMITTER_DATE": "1700000000 +0000", **env,
            },
        )  # fmt: skip
        return done.stdout.decode(errors="surrogateescape").strip()

    def commit(self, files: dict[str, str | bytes] | None = None, message: str = "change", **env: str) -> str:
        for name, data in (files or {}).items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data.encode() if isinstance(data, str) else data)
        self.git("add", "-A")
        return self.committed(message, **env)

    def committed(self, message: str = "change", **env: str) -> str:
        self.git("commit", "-q", "--allow-empty", "-m", message, **env)
        return self.git("rev-parse", "HEAD")

    def link(self, path: str, commit: str, url: str | None) -> None:
        if url:
            with (self.folder / ".gitmodules").open("a") as stream:
                stream.write(f'[submodule "{path}"]\n\tpath = {path}\n\turl = {url}\n')
            self.git("add", ".gitmodules")
        self.git("update-index", "--add", "--cacheinfo", f"160000,{commit},{path}")


@pytest.fixture(autouse=True)
def _no_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "nobody"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    return tmp_path / "hub"


@pytest.fixture
def upstream(hub: Path) -> Upstream:
    return Upstream(hub / "aiter")


@pytest.fixture
def cache(tmp_path: Path, hub: Path) -> GitCache:
    return GitCache(tmp_path / "cache", Config(((HUB, str(hub)),)), ask_seconds=20)


URL = f"{HUB}/aiter.git"


def files(folder: Path) -> dict[bytes, tuple[int, bytes]]:
    """Path to mode and bytes; a link has mode 0 and its target, a folder a slash."""
    found = {}
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        name = os.fsencode(path.relative_to(folder))
        if stat.S_ISLNK(mode):
            found[name] = (0, os.fsencode(path.readlink()))
        else:
            found[name] = (stat.S_IMODE(mode), b"/" if stat.S_ISDIR(mode) else path.read_bytes())
    return found


# refs


def test_tags_and_branches(upstream: Upstream, cache: GitCache) -> None:
    first = upstream.commit({"a": "1"})
    upstream.git("tag", "v1")
    upstream.git("tag", "-a", "-m", "x", "v1-annotated")
    upstream.git("tag", "-a", "-m", "y", "twice", "v1-annotated")
    second = upstream.commit({"a": "2"})
    assert cache.resolve(URL, "v1") == first
    assert cache.resolve(URL, "v1-annotated") == first
    assert cache.resolve(URL, "twice") == first
    assert cache.resolve(URL, "main") == second


def test_a_tag_comes_before_a_branch_and_a_commit_before_all(upstream: Upstream, cache: GitCache) -> None:
    first, second = upstream.commit({"a": "1"}), upstream.commit({"a": "2"})
    upstream.git("tag", "both", first)
    upstream.git("branch", "both", second)
    upstream.git("update-ref", f"refs/tags/{second}", first)
    assert cache.resolve(URL, "both") == first
    assert cache.resolve(URL, second) == second
    assert cache.resolve(URL, second.upper()) == second


def test_a_moved_tag_is_seen(upstream: Upstream, cache: GitCache) -> None:
    first = upstream.commit({"a": "1"})
    upstream.git("tag", "v1")
    assert cache.resolve(URL, "v1") == first
    second = upstream.commit({"a": "2"})
    upstream.git("tag", "-f", "v1")
    assert cache.resolve(URL, "v1") == second


def test_an_abbreviated_commit(upstream: Upstream, cache: GitCache) -> None:
    first = upstream.commit({"a": "1"})
    upstream.commit({"a": "2"})
    assert cache.resolve(URL, first[:9]) == first
    third = upstream.commit({"a": "3"})
    assert cache.resolve(URL, third[:7].upper()) == third
    tree = upstream.git("rev-parse", "HEAD^{tree}")
    with pytest.raises(RefNotFoundError, match="begins with it"):
        cache.resolve(URL, tree[:12])


def test_an_ambiguous_abbreviation_lists_the_candidates(
    upstream: Upstream, cache: GitCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = upstream.commit({"a": "1"}), upstream.commit({"a": "2"})
    real = Repository.text

    # Two commits with seven digits in common take longer to find than a test may.
    def text(self: Repository, *words: str, data: bytes = b"") -> str:
        return f"{first}\n{second}" if words[1].startswith("--disambiguate") else real(self, *words, data=data)

    monkeypatch.setattr(Repository, "text", text)
    with pytest.raises(RefNotFoundError, match="ambiguous") as caught:
        cache.resolve(URL, "0000000")
    assert first in caught.value.why
    assert second in caught.value.why


def test_an_unknown_full_commit(upstream: Upstream, cache: GitCache) -> None:
    upstream.commit({"a": "1"})
    upstream.git("tag", "-a", "-m", "x", "v1")
    for name in (FAR, upstream.git("rev-parse", "v1")):
        with pytest.raises(RefNotFoundError, match=name):
            cache.resolve(URL, name)


def test_near_matches_are_named(upstream: Upstream, cache: GitCache) -> None:
    upstream.commit({"a": "1"})
    for name in ("v0.1.1", "v0.1.4", "v0.1.13.post1", "v0.1.14", "v0.1.14.post1", "v0.1.15", "nightly"):
        upstream.git("tag", name)
    upstream.git("branch", "release/v0.1.14")
    for asked, first in (
        ("v0.1.41", "v0.1.14"),
        ("v0.1.14-post1", "v0.1.14.post1"),
        ("0.1.14", "v0.1.14"),
        ("nightl", "nightly"),
    ):
        with pytest.raises(RefNotFoundError) as caught:
            cache.resolve(URL, asked)
        assert URL in caught.value.what
        assert caught.value.why.removeprefix("near to it: ").split(", ")[0] == first
        assert first in caught.value.fix
        assert len(caught.value.why.split(", ")) <= 5


def test_versions_next_to_the_one_asked_for_are_near() -> None:
    assert near_names("v3.0.0", ["v1.0.0", "v2.9.12", "v4.1", "other-3.0.1"])[:2] == ["v2.9.12", "v4.1"]
    assert near_names("zzz", ["v1", "main"]) == []


# upstreams that do not answer


@pytest.mark.parametrize("ref", ["v1", "abcdef1", FAR])
def test_a_missing_repository(hub: Path, cache: GitCache, ref: str) -> None:
    hub.mkdir()
    with pytest.raises(UpstreamError) as caught:
        cache.resolve(URL, ref)
    assert URL in caught.value.what
    assert str(hub / "aiter") in caught.value.what
    assert "does not appear to be a git repository" in caught.value.why
    assert "\n" not in caught.value.why
    assert "docs/mirrors.md" in caught.value.fix


def test_an_unreachable_host_without_its_password(tmp_path: Path) -> None:
    cache = GitCache(tmp_path / "cache", Config())
    url = "http://me:secret@127.0.0.1:9/x.git"
    with pytest.raises(UpstreamError) as caught:
        cache.resolve(url, "v1")
    assert "127.0.0.1" in caught.value.why
    assert "secret" not in str(caught.value)
    assert "secret" not in cache.reachable(url, 5)
    assert cache.reachable(url, 5)
    assert [path for path in (tmp_path / "cache").iterdir() if "secret" in path.name] == []


def test_a_host_that_never_answers_is_left_in_time(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/x.git"
        cache = GitCache(tmp_path / "cache", Config(), ask_seconds=1, fetch_seconds=1)
        begun = time.monotonic()
        assert "within 1 s" in cache.reachable(url, 1)
        with pytest.raises(UpstreamError, match="could not be read") as caught:
            cache.resolve(url, "v1")
        assert "within 1 s" in caught.value.why
        with pytest.raises(UpstreamError):
            cache.resolve(url, FAR)
        assert time.monotonic() - begun < 15


def test_reachable(upstream: Upstream, cache: GitCache) -> None:
    assert cache.reachable(URL, 20) == ""
    assert "ck" in cache.reachable(f"{HUB}/ck", 20)


def test_no_git_at_all(cache: GitCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(HostError, match="git"):
        cache.resolve(URL, "v1")


def test_a_server_that_hands_out_no_commits_by_name(
    upstream: Upstream, cache: GitCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = upstream.commit({"a": "1"}), upstream.commit({"a": "2"})
    monkeypatch.setattr(GitCache, "_serve", lambda *_: ())
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "protocol.version")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "0")
    assert cache.resolve(URL, first) == first
    assert cache.file_at(URL, first, "a") == b"1"
    assert cache.contains(URL, second, first) is True
    assert cache.contains(URL, first, second) is False
    with pytest.raises(RefNotFoundError):
        cache.resolve(URL, FAR)


def test_the_surroundings_do_not_matter(
    upstream: Upstream, cache: GitCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = upstream.commit({"a": "1"})
    upstream.git("tag", "v1")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", str(tmp_path / "elsewhere"))
    monkeypatch.chdir(upstream.folder)
    assert cache.resolve(URL, "v1") == first
    assert cache.file_at(URL, first, "a") == b"1"
    assert not (tmp_path / "elsewhere").exists()


def test_what_a_killed_fetch_left_is_cleared(upstream: Upstream, cache: GitCache) -> None:
    first, second = upstream.commit({"a": "1"}), upstream.commit({"a": "2"})
    cache.resolve(URL, first)
    (folder,) = (cache.folder).glob("*.git")
    (folder / "shallow.lock").touch()
    assert cache.resolve(URL, second) == second


def test_two_at_once(upstream: Upstream, cache: GitCache) -> None:
    commits = [upstream.commit({"a": str(number)}) for number in range(4)]
    found: list[str] = []
    threads = [threading.Thread(target=lambda c=c: found.append(cache.resolve(URL, c))) for c in commits]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(commits)


# submodules


@pytest.fixture
def nested(hub: Path, upstream: Upstream) -> tuple[str, tuple[Submodule, ...]]:
    """aiter holds 3rdparty/ck (relative URL), which holds deps/inner (relative too); and other (absolute)."""
    inner, ck, other = Upstream(hub / "inner"), Upstream(hub / "ck"), Upstream(hub / "other")
    in_inner, in_other = inner.commit({"i": "inner"}), other.commit({"o": "other"})
    ck.link("deps/inner", in_inner, "./../inner.git")
    in_ck = ck.committed()
    upstream.link("3rdparty/ck", in_ck, "../ck.git")
    upstream.link("other", in_other, f"{HUB}/other")
    (upstream.folder / "a").write_text("a")
    upstream.git("add", "a")
    return (
        upstream.committed(),
        (
            Submodule("3rdparty/ck", f"{HUB}/ck.git", in_ck),
            Submodule("3rdparty/ck/deps/inner", f"{HUB}/inner.git", in_inner),
            Submodule("other", f"{HUB}/other", in_other),
        ),
    )


def test_submodules(cache: GitCache, nested: tuple[str, tuple[Submodule, ...]]) -> None:
    commit, links = nested
    assert cache.submodules(URL, commit) == links
    assert cache.gitlinks(URL, commit) == (links[0], links[2])
    assert cache.submodules(URL, commit, without=["3rdparty/ck/deps/inner/"]) == (links[0], links[2])
    assert cache.submodules(URL, commit, without=["3rdparty/ck"]) == (links[2],)
    assert cache.gitlinks(URL, commit, {"other", "3rdparty/ck"}) == ()


def test_submodules_are_exported_in_their_places(
    cache: GitCache, nested: tuple[str, tuple[Submodule, ...]], tmp_path: Path
) -> None:
    commit, links = nested
    cache.export(GitSource(URL, "main", commit, links), tmp_path / "out")
    assert (tmp_path / "out/3rdparty/ck/deps/inner/i").read_text() == "inner"
    assert (tmp_path / "out/other/o").read_text() == "other"
    cache.export(GitSource(URL, "main", commit, links[2:]), tmp_path / "less", without=["3rdparty/ck"])
    assert list((tmp_path / "less/3rdparty/ck").iterdir()) == []


@pytest.mark.parametrize("change", ["unlisted", "other commit"])
def test_a_submodule_that_is_not_locked_is_refused(
    cache: GitCache, nested: tuple[str, tuple[Submodule, ...]], tmp_path: Path, change: str
) -> None:
    commit, links = nested
    some = links[:2] if change == "unlisted" else (*links[:2], Submodule("other", f"{HUB}/other", commit))
    with pytest.raises(SourceError, match="other"):
        cache.export(GitSource(URL, "main", commit, some), tmp_path / "out")


def test_a_missing_submodule_commit(hub: Path, upstream: Upstream, cache: GitCache, tmp_path: Path) -> None:
    Upstream(hub / "ck").commit({"c": "c"})
    upstream.link("ck", FAR, "../ck")
    commit = upstream.committed()
    with pytest.raises(SourceError, match="a submodule commit is missing: ck") as caught:
        cache.submodules(URL, commit)
    assert f"{HUB}/ck" in caught.value.why
    assert FAR in caught.value.why
    links = cache.gitlinks(URL, commit)
    assert links == (Submodule("ck", f"{HUB}/ck", FAR),)
    with pytest.raises(SourceError, match="a submodule commit is missing"):
        cache.export(GitSource(URL, "main", commit, links), tmp_path / "out")


def test_a_submodule_host_that_does_not_answer(upstream: Upstream, cache: GitCache) -> None:
    upstream.link("ck", FAR, "../nowhere")
    with pytest.raises(UpstreamError, match="the submodule ck of"):
        cache.submodules(URL, upstream.committed())


def test_a_gitlink_without_a_url(upstream: Upstream, cache: GitCache) -> None:
    upstream.link("lost", FAR, None)
    commit = upstream.committed()
    with pytest.raises(SourceError, match="the submodule lost has no URL"):
        cache.submodules(URL, commit)
    assert cache.submodules(URL, commit, without=["lost"]) == ()


def test_a_broken_gitmodules(upstream: Upstream, cache: GitCache) -> None:
    upstream.link("ck", FAR, "../ck")
    (upstream.folder / ".gitmodules").write_text("[submodule \n")
    upstream.git("add", ".gitmodules")
    with pytest.raises(SourceError, match="cannot be read"):
        cache.gitlinks(URL, upstream.committed())


@pytest.mark.parametrize(
    ("url", "parent", "expected"),
    [
        ("../ck", "https://h/ROCm/aiter", "https://h/ROCm/ck"),
        ("../ck.git", "https://h/ROCm/aiter.git/", "https://h/ROCm/ck.git"),
        ("../../other/ck", "https://h/ROCm/aiter", "https://h/other/ck"),
        ("../../../../ck", "https://h/ROCm/aiter", "https://h/ck"),
        ("./ck", "https://h/aiter", "https://h/aiter/ck"),
        ("./../ck", "https://h/ROCm/aiter", "https://h/ROCm/ck"),
        ("../ck/", "/srv/git/aiter", "/srv/git/ck"),
        ("git@h:ROCm/ck.git", "https://x/y", "https://h/ROCm/ck.git"),
        ("ssh://git@h:22/ROCm/ck", "https://x/y", "https://h/ROCm/ck"),
        ("http://h:8080/ck", "https://x/y", "http://h:8080/ck"),
        ("/srv/ck", "/srv/aiter", "/srv/ck"),
    ],
)
def test_submodule_urls_are_made_absolute(url: str, parent: str, expected: str) -> None:
    assert absolute_url(url, parent) == expected


@pytest.mark.parametrize("url", ["/etc", "file:///etc", "ext::sh -c x", "--upload-pack=x", "ftp://h/x"])
def test_a_commit_cannot_make_us_read_this_machine(url: str) -> None:
    with pytest.raises(SourceError, match="not read"):
        absolute_url(url, "https://h/x")


# picks


def test_picks_apply_and_depend_on_contents_alone(
    upstream: Upstream, cache: GitCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join(f"{n}\n" for n in range(20))
    base = upstream.commit({"a": text, "gone": "x"})
    upstream.git("checkout", "-q", "-b", "fix")
    (upstream.folder / "gone").unlink()
    one = upstream.commit({"a": text.replace("3\n", "three\n", 1), "new": "n"})
    two = upstream.commit({"a": (upstream.folder / "a").read_text().replace("12\n", "twelve\n")})
    upstream.git("checkout", "-q", "main")
    target = upstream.commit({"b": "b"})
    upstream.git("cherry-pick", one, two)
    wanted = upstream.git("rev-parse", "HEAD^{tree}")
    picks = ((URL, one), (URL, two))
    assert cache.tree(URL, target, picks) == wanted
    assert cache.tree(URL, target) == upstream.git("rev-parse", f"{target}^{{tree}}")
    assert cache.tree(URL, base, ((URL, one),)) == upstream.git("rev-parse", f"{one}^{{tree}}")
    for name, value in (("TZ", "Asia/Tokyo"), ("GIT_AUTHOR_NAME", "Else"), ("GIT_COMMITTER_DATE", "2001-01-01")):
        monkeypatch.setenv(name, value)
    (tmp_path / "mine").write_text(
        "[merge]\n\tconflictStyle = diff3\n[user]\n\tname = Else\n[core]\n\tautocrlf = true\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "mine"))
    other = GitCache(tmp_path / "other", cache.config)
    assert other.tree(URL, target, picks) == wanted
    cache.export(GitSource(URL, "main", target, picks=picks, tree=wanted), tmp_path / "out")
    assert (tmp_path / "out/new").read_text() == "n"
    assert not (tmp_path / "out/gone").exists()
    assert "three" in (tmp_path / "out/a").read_text()
    # Nothing of the merge stays in the cache.
    assert not list(cache.folder.glob("tmp-*"))


def test_the_same_change_of_another_person_gives_the_same_tree(hub: Path, upstream: Upstream, cache: GitCache) -> None:
    base = upstream.commit({"a": "1\n2\n3\n4\n5\n6\n"})
    picks = []
    for who, date in (("A", "1600000000 +0100"), ("B", "1710000000 -0500")):
        upstream.git("checkout", "-q", base)
        picks.append(upstream.commit({"a": "1\n2\n3\n4\n5\nsix\n"}, who, GIT_AUTHOR_NAME=who, GIT_COMMITTER_DATE=date))
    upstream.git("checkout", "-q", base)
    target = upstream.commit({"a": "one\n2\n3\n4\n5\n6\n"})
    assert picks[0] != picks[1]
    assert len({cache.tree(URL, target, ((URL, pick),)) for pick in picks}) == 1


def test_a_pick_from_another_repository(hub: Path, upstream: Upstream, cache: GitCache, tmp_path: Path) -> None:
    base = upstream.commit({"a": "1"})
    fork = Upstream(hub / "fork")
    fork.git("fetch", "-q", str(upstream.folder), base)
    fork.git("checkout", "-q", base)
    pick = fork.commit({"f": "fork"})
    fork.commit({"g": "later"})
    picks = ((f"{HUB}/fork", pick),)
    tree = cache.tree(URL, base, picks)
    cache.export(GitSource(URL, "main", base, picks=picks, tree=tree), tmp_path / "out")
    assert sorted(files(tmp_path / "out")) == [b"a", b"f"]


def test_a_pick_that_brings_a_submodule(hub: Path, upstream: Upstream, cache: GitCache) -> None:
    base = upstream.commit({"a": "1"})
    commit = Upstream(hub / "ck").commit({"c": "c"})
    upstream.link("ck", commit, "../ck")
    pick = upstream.committed()
    assert cache.submodules(URL, base) == ()
    assert cache.submodules(URL, base, picks=((URL, pick),)) == (Submodule("ck", f"{HUB}/ck", commit),)


def test_a_conflicting_pick(upstream: Upstream, cache: GitCache) -> None:
    upstream.commit({"a": "1\n", "b c": "1\n"})
    pick = upstream.commit({"a": "2\n", "b c": "2\n"})
    target = upstream.commit({"a": "3\n", "b c": "3\n"})
    with pytest.raises(SourceError, match=f"the pick {pick} of {URL} does not apply") as caught:
        cache.tree(URL, target, ((URL, pick),))
    assert caught.value.why.splitlines() == ["conflicts in:", "  a", "  b c"]


def test_a_merge_is_not_picked_and_a_missing_pick_is_named(upstream: Upstream, cache: GitCache) -> None:
    base = upstream.commit({"a": "1"})
    upstream.git("checkout", "-q", "-b", "side")
    upstream.commit({"b": "1"})
    upstream.git("checkout", "-q", "main")
    upstream.commit({"c": "1"})
    upstream.git("merge", "-q", "--no-ff", "-m", "m", "side")
    with pytest.raises(SourceError, match="is a merge"):
        cache.tree(URL, base, ((URL, upstream.git("rev-parse", "HEAD")),))
    with pytest.raises(SourceError, match="has no commit"):
        cache.tree(URL, base, ((URL, FAR),))


def test_a_first_commit_can_be_picked_and_an_applied_one_changes_nothing(upstream: Upstream, cache: GitCache) -> None:
    first = upstream.commit({"a": "1"})
    upstream.git("checkout", "-q", "--orphan", "alone")
    upstream.git("rm", "-rqf", ".")
    alone = upstream.commit({"z": "1"})
    picked = cache.tree(URL, first, ((URL, alone),))
    assert picked not in (cache.tree(URL, first), cache.tree(URL, alone))
    assert cache.tree(URL, first, ((URL, alone), (URL, alone))) == picked


# export


def test_export_is_what_git_stores(upstream: Upstream, cache: GitCache, tmp_path: Path) -> None:
    big = bytes(range(256)) * 20000
    odd = b"d\xff\xfe/new\nline \r\"'\t\\"
    placed = upstream.folder / os.fsdecode(odd)
    placed.parent.mkdir()
    placed.write_bytes(b"odd")
    (upstream.folder / "link").symlink_to("../../../outside")
    (upstream.folder / "absolute").symlink_to("/nowhere/at/all")
    (upstream.folder / "run.sh").write_text("#!/bin/sh\n")
    (upstream.folder / "run.sh").chmod(0o755)
    given: dict[str, str | bytes] = {
        "empty": b"",
        "big": big,
        "crlf.txt": b"a\r\nb\r\n",
        "deep/er/f": "x",
        "-n": "dash",
    }
    given["version"] = "$Format:%H$ $Id$\n"
    given["lfs.bin"] = "version https://git-lfs.github.com/spec/v1\n"
    upstream.git("config", "core.autocrlf", "false")
    upstream.commit(given)
    # The attributes come last, so that git stores what they would have changed.
    attributes = "* text eol=crlf\nversion export-subst ident\nempty export-ignore\nlfs.bin filter=lfs\n"
    (upstream.folder / ".gitattributes").write_text(attributes)
    upstream.git("-c", "core.safecrlf=false", "add", ".gitattributes")
    commit = upstream.committed()
    stored = {
        line.partition("\t")[2]: line.split()[2]
        for line in upstream.git("ls-tree", "-r", "-z", commit).split("\0")
        if line
    }
    old = os.umask(0o077)
    try:
        cache.export(GitSource(URL, "main", commit, tree=cache.tree(URL, commit)), tmp_path / "one")
    finally:
        os.umask(old)
    cache.export(GitSource(URL, "main", commit), tmp_path / "two")
    found = files(tmp_path / "one")
    assert found == files(tmp_path / "two")
    assert found[odd] == (0o644, b"odd")
    assert found[b"big"] == (0o644, big)
    assert found[b"empty"] == (0o644, b"")
    assert found[b"crlf.txt"] == (0o644, b"a\r\nb\r\n")
    assert found[b"version"][1] == b"$Format:%H$ $Id$\n"
    assert found[b"run.sh"][0] == 0o755
    assert found[b"link"] == (0, b"../../../outside")
    assert found[b"absolute"] == (0, b"/nowhere/at/all")
    assert found[b"deep/er"] == (0o755, b"/")
    assert {os.fsencode(name) for name in stored} == {name for name, (_, data) in found.items() if data != b"/"}


def test_another_tree_than_the_locked_one(upstream: Upstream, cache: GitCache, tmp_path: Path) -> None:
    commit = upstream.commit({"a": "1"})
    with pytest.raises(SourceError, match="not the tree") as caught:
        cache.export(GitSource(URL, "main", commit, tree="0" * 40), tmp_path / "out")
    assert "0" * 40 in caught.value.why
    assert cache.tree(URL, commit) in caught.value.why
    assert not (tmp_path / "out").exists()


def test_export_does_not_write_over_files(upstream: Upstream, cache: GitCache, tmp_path: Path) -> None:
    commit = upstream.commit({"a": "1"})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError):
        cache.export(GitSource(URL, "main", commit), tmp_path / "out")
    assert not (tmp_path / "victim").exists()


def crafted(upstream: Upstream, *entries: tuple[str, bytes, str]) -> str:
    """A commit of a tree that git itself would not make."""
    raw = b"".join(mode.encode() + b" " + name + b"\0" + bytes.fromhex(sha) for mode, name, sha in entries)
    tree = upstream.git("hash-object", "-t", "tree", "-w", "--literally", "--stdin", data=raw)
    commit = upstream.git("commit-tree", "-m", "x", tree)
    upstream.git("update-ref", "refs/heads/bad", commit)
    return commit


@pytest.mark.parametrize("name", [b"..", b".", b".git", b".GIT"])
def test_dangerous_names_are_refused(upstream: Upstream, cache: GitCache, tmp_path: Path, name: bytes) -> None:
    blob = upstream.git("hash-object", "-w", "--stdin", data=b"x")
    commit = crafted(upstream, ("100644", name, blob))
    with pytest.raises(SourceError, match="never written"):
        cache.export(GitSource(URL, "bad", commit), tmp_path / "out")


def test_a_link_is_never_followed(upstream: Upstream, cache: GitCache, tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    points = upstream.git("hash-object", "-w", "--stdin", data=os.fsencode(tmp_path / "victim"))
    blob = upstream.git("hash-object", "-w", "--stdin", data=b"x")
    inside = upstream.git("mktree", data=f"100644 blob {blob}\tf\n".encode())
    commit = crafted(upstream, ("120000", b"a", points), ("40000", b"a", inside))
    with pytest.raises(SourceError, match="below what is not a folder"):
        cache.export(GitSource(URL, "bad", commit), tmp_path / "out")
    commit = crafted(upstream, ("120000", b"a", points), ("100644", b"a", blob))
    with pytest.raises(SourceError, match="twice"):
        cache.export(GitSource(URL, "bad", commit), tmp_path / "out2")
    assert list((tmp_path / "victim").iterdir()) == []


# history and single files


def test_contains(upstream: Upstream, cache: GitCache, tmp_path: Path) -> None:
    first = upstream.commit({"a": "1"})
    upstream.git("checkout", "-q", "-b", "old")
    side = upstream.commit({"a": "side"})
    upstream.git("checkout", "-q", "main")
    last = upstream.commit({"a": "2"})
    cache.file_at(URL, last, "a")  # a shallow fetch before must not matter
    assert cache.contains(URL, last, first) is True
    assert cache.contains(URL, last, last) is True
    assert cache.contains(URL, last, side) is False
    assert cache.contains(URL, first, last) is False
    assert cache.contains(URL, last, FAR) is False
    assert cache.contains(URL, FAR, first) is None
    # What is known stays known when the upstream goes away.
    upstream.folder.rename(tmp_path / "away")
    assert cache.contains(URL, last, first) is True
    assert cache.contains(URL, last, FAR) is False


def test_contains_for_a_commit_on_no_branch(upstream: Upstream, cache: GitCache) -> None:
    first = upstream.commit({"a": "1"})
    loose = upstream.commit({"a": "2"})
    upstream.git("reset", "-q", "--hard", first)
    assert cache.contains(URL, loose, first) is True
    assert cache.contains(URL, loose, FAR) is False


def test_a_shallow_upstream_never_says_no(upstream: Upstream, hub: Path, cache: GitCache) -> None:
    first, _ = upstream.commit({"a": "1"}), upstream.commit({"a": "2"})
    last = upstream.commit({"a": "3"})
    shallow = hub / "shallow"
    subprocess.run(["git", "clone", "-q", "--depth=1", upstream.folder.as_uri(), str(shallow)], check=True)
    url = f"{HUB}/shallow"
    assert cache.contains(url, last, first) is None
    assert cache.contains(url, last, FAR) is None
    assert cache.contains(url, last, last) is True
    with pytest.raises(RefNotFoundError):
        cache.resolve(url, first[:10])
    # With the history there, the same cache gives the answer.
    subprocess.run(["git", "fetch", "-q", "--unshallow"], cwd=shallow, check=True)
    assert cache.contains(url, last, first) is True
    assert cache.contains(url, last, FAR) is False


def test_contains_does_not_know_without_an_answer(hub: Path, cache: GitCache) -> None:
    hub.mkdir()
    assert cache.contains(URL, FAR, FAR) is None


def test_files_of_a_commit(upstream: Upstream, cache: GitCache) -> None:
    commit = upstream.commit({"dir/f": b"\x00\r\n", "*": "star", "f": "x"})
    assert cache.file_at(URL, commit, "dir/f") == b"\x00\r\n"
    assert cache.file_at(URL, commit, "*") == b"star"
    for path in ("dir", "dir/", "missing", "../f", "di*/f"):
        assert cache.file_at(URL, commit, path) is None
    with pytest.raises(SourceError, match="has no commit"):
        cache.file_at(URL, FAR, "f")


# what an upstream has now


def test_all_tags_with_the_commits_that_they_name(upstream: Upstream, cache: GitCache) -> None:
    first = upstream.commit({"a": "1"})
    upstream.git("tag", "v1")
    second = upstream.commit({"a": "2"})
    upstream.git("tag", "-a", "-m", "x", "v2")
    assert cache.tags(URL) == {"v1": first, "v2": second}


def test_a_commit_is_offered_whatever_the_cache_holds(upstream: Upstream, cache: GitCache) -> None:
    first, second = upstream.commit({"a": "1"}), upstream.commit({"a": "2"})
    assert cache.offers(URL, first) is True
    assert cache.offers(URL, second) is True
    assert cache.offers(URL, FAR) is False
    assert cache.resolve(URL, first) == first
    shutil.rmtree(upstream.folder)
    Upstream(upstream.folder).commit({"b": "begun anew"})
    assert cache.resolve(URL, first) == first, "the cache has it"
    assert cache.offers(URL, first) is False


def test_whether_a_commit_is_offered_is_an_error_where_nobody_answers(cache: GitCache) -> None:
    with pytest.raises(UpstreamError):
        cache.offers(URL, FAR)


def test_histories_of_two_commits_lie_in_one_repository(upstream: Upstream, cache: GitCache) -> None:
    first, second = upstream.commit({"a": "1"}), upstream.commit({"a": "2"}, "the second")
    history = cache.history_of(URL, first, second)
    assert history.text("log", "--format=%s", f"{first}..{second}") == "the second"
    with pytest.raises(SourceError, match=FAR):
        cache.history_of(URL, first, FAR)
