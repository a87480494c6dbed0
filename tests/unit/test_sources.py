"""Sources and archives: packed so that equal trees give equal bytes, fetched once, and downloaded from where the site says."""

from __future__ import annotations

import hashlib
import io
import os
import random
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kiln.config import Config
from kiln.console import Console
from kiln.errors import FetchError, HashMismatchError, SourceError, UpstreamError
from kiln.fetch import download_archive, fetch, fetch_sources, pack, source_key
from kiln.git import GitCache, Submodule
from kiln.lockentries import Archive, Git
from kiln.lockfile import Lock
from kiln.pins import Pins
from kiln.store import BLOB_TIME, Store

# packing

ODD = ["ä.txt", "with blank", "-dash", "new\nline", "tab\t", "\udcff\udcfe", "quote'\"", "x" * 200, "*", "back\\slash"]


def fill(folder: Path, order: random.Random) -> None:
    """A tree with files of all kinds, made in an order that is the dice's."""
    files: list[tuple[str, bytes, bool]] = [
        ("a/b/c/deep", b"deep", False),
        ("a/run.sh", b"#!/bin/sh\n", True),
        ("empty", b"", False),
        ("big", bytes(range(256)) * 5000, False),
        *((f"odd/{name}", os.fsencode(name), False) for name in ODD),
        (f"{'long/' * 40}file", b"long", False),
        ("a.b", b"sorts between a and a/", False),
    ]
    links = [
        ("link", "a/run.sh"),
        ("a/up", "../../outside"),
        ("absolute", "/nowhere"),
        ("to-folder", "a"),
        ("far", "y" * 150),
    ]
    order.shuffle(files)
    order.shuffle(links)
    folder.mkdir()
    for name, target in links:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(target)
    for name, data, executable in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        if executable:
            path.chmod(path.stat().st_mode | 0o111)
        os.utime(path, (order.randrange(10**9), order.randrange(10**9)))
    (folder / "hollow").mkdir()


def packed(folder: Path) -> bytes:
    target = folder.with_name(f"{folder.name}.tar")
    pack(folder, target)
    return target.read_bytes()


def test_equal_trees_give_equal_bytes(tmp_path: Path) -> None:
    found = set()
    for number, umask in enumerate((0o022, 0o077, 0o002)):
        before = os.umask(umask)
        try:
            fill(tmp_path / f"tree{number}", random.Random(number))  # noqa: S311 - dice of a test
            found.add(packed(tmp_path / f"tree{number}"))
        finally:
            os.umask(before)
    assert len(found) == 1


def test_everything_is_in_it_as_it_was(tmp_path: Path) -> None:
    fill(tmp_path / "tree", random.Random(0))  # noqa: S311
    packed(tmp_path / "tree")
    with tarfile.open(tmp_path / "tree.tar") as tar:
        members = {member.name: member for member in tar.getmembers()}
        for name, member in members.items():
            path = tmp_path / "tree" / name
            assert (member.uid, member.gid, member.uname, member.gname, member.mtime) == (0, 0, "", "", BLOB_TIME)
            if member.issym():
                assert member.linkname == os.readlink(path)  # noqa: PTH115 - the text, as it stands
            elif member.isfile():
                data = tar.extractfile(member)
                assert data is not None
                assert data.read() == path.read_bytes()
                assert member.mode == (0o755 if name == "a/run.sh" else 0o644)
            else:
                assert (member.isdir(), member.mode) == (True, 0o755)
        assert list(members) == sorted(members, key=os.fsencode)
    assert set(members) == {str(path.relative_to(tmp_path / "tree")) for path in (tmp_path / "tree").rglob("*")}
    assert {"hollow", "to-folder", "odd/ä.txt", "odd/\udcff\udcfe"} <= set(members)
    # Below a link to a folder there is nothing.
    assert not [name for name in members if name.startswith("to-folder/")]


@pytest.mark.parametrize("change", ["bytes", "name", "executable", "link", "folder"])
def test_another_tree_gives_other_bytes(tmp_path: Path, change: str) -> None:
    for name in ("one", "other"):
        fill(tmp_path / name, random.Random(0))  # noqa: S311
    other = tmp_path / "other"
    if change == "bytes":
        (other / "empty").write_bytes(b"x")
    elif change == "name":
        (other / "empty").rename(other / "Empty")
    elif change == "executable":
        (other / "empty").chmod(0o755)
    elif change == "link":
        (other / "link").unlink()
        (other / "link").symlink_to("a/run")
    else:
        (other / "hollow").rmdir()
    assert packed(tmp_path / "one") != packed(other)


def test_two_names_of_one_file_are_two_files_with_its_bytes(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_bytes(b"the same")
    (tmp_path / "one" / "b").hardlink_to(tmp_path / "one" / "a")
    (tmp_path / "other" / "b").write_bytes(b"the same")
    assert packed(tmp_path / "one") == packed(tmp_path / "other")
    with tarfile.open(tmp_path / "one.tar") as tar:
        data = tar.extractfile("b")
        assert data is not None
        assert data.read() == b"the same"


def test_the_language_of_the_machine_changes_no_byte(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    for name in ("ä.txt", "plain", "\udcff"):
        (tmp_path / "tree" / name).write_text("x")
    code = (
        "import sys; from pathlib import Path; from kiln.fetch import pack; pack(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    found = []
    for number, settings in enumerate(
        ({"LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
    ):
        target = tmp_path / f"{number}.tar"
        subprocess.run(
            [sys.executable, "-c", code, tmp_path / "tree", target], env={**os.environ, **settings}, check=True
        )
        found.append(target.read_bytes())
    assert found[0] == found[1]


def test_an_empty_folder_is_an_empty_tar(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    data = packed(tmp_path / "none")
    assert data.strip(b"\0") == b""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == []


# sources

URL = "https://git.invalid/hub"


class Repo:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.git("init", "-q", "-b", "main")

    def git(self, *words: str) -> str:
        who = {f"GIT_{role}_{what}": "t@example.com" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        done = subprocess.run(
            ["git", "-c", "commit.gpgSign=false", *words],
            cwd=self.folder,
            env={**os.environ, **who},
            capture_output=True,
            check=True,
            text=True,
        )
        return done.stdout.strip()

    def commit(self, **files: str) -> str:
        for name, text in files.items():
            (self.folder / name).write_text(text)
            self.git("add", name)
        self.git("commit", "-q", "--allow-empty", "-m", "change")
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "nobody"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    return tmp_path / "hub"


@pytest.fixture
def cache(hub: Path, tmp_path: Path) -> GitCache:
    return GitCache(tmp_path / "cache", Config(((URL, str(hub)),)), ask_seconds=20)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def lock(hub: Path) -> Lock:
    """Two sources: one plain, one with a submodule and one that is left out."""
    plain = Repo(hub / "plain")
    commit = plain.commit(a="a")
    inner = Repo(hub / "inner").commit(i="inner")
    outer = Repo(hub / "outer")
    (outer.folder / ".gitmodules").write_text(
        "".join(f'[submodule "{name}"]\n\tpath = {name}\n\turl = {URL}/inner\n' for name in ("sub", "unwanted"))
    )
    outer.git("add", ".gitmodules")
    for name in ("sub", "unwanted"):
        outer.git("update-index", "--add", "--cacheinfo", f"160000,{inner},{name}")
    top = outer.commit(o="outer")
    gits = (
        Git("plain", f"{URL}/plain", "main", commit, plain.git("rev-parse", "HEAD^{tree}")),
        Git(
            "outer",
            f"{URL}/outer",
            "main",
            top,
            outer.git("rev-parse", "HEAD^{tree}"),
            (Submodule("sub", f"{URL}/inner", inner),),
            (),
            ("unwanted",),
        ),
    )
    return Lock("small", "0" * 64, (), (), (), gits)


def names(store: Store, git: Git) -> list[str]:
    sha256 = store.made(source_key(git))
    assert sha256 is not None
    with tarfile.open(store.check(sha256, git.label)) as tar:
        return tar.getnames()


def test_sources_are_in_the_store_with_their_submodules(lock: Lock, store: Store, cache: GitCache) -> None:
    assert fetch_sources(lock, store, cache, Console(quiet=True)) == 2
    assert names(store, lock.git_of["plain"]) == ["a"]
    assert names(store, lock.git_of["outer"]) == [".gitmodules", "o", "sub", "sub/i", "unwanted"]
    assert not list(store.folder.glob("tmp-*"))


def test_what_was_fetched_is_not_fetched_twice(
    lock: Lock, store: Store, cache: GitCache, hub: Path, tmp_path: Path
) -> None:
    fetch_sources(lock, store, cache, Console(quiet=True))
    # Neither upstream nor the cache is there any more.
    hub.rename(tmp_path / "away")
    nobody = GitCache(tmp_path / "other", cache.config, offline=True)
    assert fetch_sources(lock, store, nobody, Console(quiet=True)) == 0
    # A source whose bytes are the same is the same source, whatever it is called.
    renamed = replace(lock, gits=(replace(lock.gits[0], component="other", ref="v1"), lock.gits[1]))
    assert fetch_sources(renamed, store, nobody, Console(quiet=True)) == 0


def test_only_what_is_missing_is_fetched(lock: Lock, store: Store, cache: GitCache) -> None:
    fetch_sources(replace(lock, gits=lock.gits[:1]), store, cache, Console(quiet=True))
    assert fetch_sources(lock, store, cache, Console(quiet=True)) == 1
    sha256 = store.made(source_key(lock.gits[0]))
    assert sha256 is not None
    # What is gone from the store comes back as it was.
    store.path(sha256).unlink()
    assert fetch_sources(lock, store, cache, Console(quiet=True)) == 1
    assert store.made(source_key(lock.gits[0])) == sha256


def test_two_machines_make_the_same_blob(lock: Lock, store: Store, cache: GitCache, tmp_path: Path) -> None:
    other = Store(tmp_path / "other-store")
    fetch_sources(lock, store, cache, Console(quiet=True))
    before = os.umask(0o077)
    try:
        fetch_sources(lock, other, GitCache(tmp_path / "other", cache.config), Console(quiet=True))
    finally:
        os.umask(before)
    for git in lock.gits:
        assert store.made(source_key(git)) == other.made(source_key(git)) is not None


def test_another_tree_than_the_locked_one_is_not_stored(lock: Lock, store: Store, cache: GitCache) -> None:
    wrong = replace(lock.gits[0], tree="f" * 40)
    with pytest.raises(SourceError, match="not the tree"):
        fetch_sources(replace(lock, gits=(wrong,)), store, cache, Console(quiet=True))
    assert store.made(source_key(wrong)) is None
    assert not list(store.folder.glob("tmp-*"))


def test_what_came_before_a_failure_stays(lock: Lock, store: Store, cache: GitCache) -> None:
    wrong = replace(lock.gits[1], tree="f" * 40)
    with pytest.raises(SourceError):
        fetch_sources(replace(lock, gits=(lock.gits[0], wrong)), store, cache, Console(quiet=True))
    assert store.made(source_key(lock.gits[0]))


def test_without_an_upstream_it_is_an_upstreams_error(
    lock: Lock, store: Store, cache: GitCache, hub: Path, tmp_path: Path
) -> None:
    hub.rename(tmp_path / "away")
    with pytest.raises(UpstreamError, match=f"{URL}/plain"):
        fetch_sources(lock, store, cache, Console(quiet=True))


# archives

DATA = bytes(range(256)) * 3000
FILES = "https://files.invalid"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that has one file, knows where another went, and breaks off in the middle of a third; its address."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = {"/there": 200, "/broken": 200, "/moved": 302, "/busy": 503}.get(self.path, 404)
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/there")
            self.send_header("Content-Length", str(len(DATA) if status == 200 else 0))
            self.end_headers()
            if status == 200:
                self.wfile.write(DATA if self.path == "/there" else DATA[:1000])

        def log_message(self, *_: object) -> None:
            return

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{made.server_port}"
    finally:
        made.shutdown()
        made.server_close()
        thread.join()


def test_a_file_of_a_mirror_on_this_machine(tmp_path: Path) -> None:
    (tmp_path / "mirror" / "a").mkdir(parents=True)
    (tmp_path / "mirror" / "a" / "x.zip").write_bytes(DATA)
    config = Config(((FILES, str(tmp_path / "mirror")),))
    download_archive(config, f"{FILES}/a/x.zip", tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == DATA
    for missing in ("a/y.zip", "a"):
        with pytest.raises(UpstreamError) as caught:
            download_archive(config, f"{FILES}/{missing}", tmp_path / "none")
        assert f"{FILES}/{missing}" in caught.value.what
        assert str(tmp_path / "mirror" / missing) in caught.value.why
        assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["there", "moved"])
def test_a_file_of_a_server(server: str, tmp_path: Path, name: str) -> None:
    download_archive(Config(), f"{server}/{name}", tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == DATA
    download_archive(Config(((FILES, server),)), f"{FILES}/{name}", tmp_path / "mirrored")
    assert (tmp_path / "mirrored").read_bytes() == DATA


@pytest.mark.parametrize(("name", "why"), [("nowhere", "404"), ("busy", "503"), ("broken", "")])
def test_a_file_that_a_server_does_not_give(server: str, tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(UpstreamError) as caught:
        download_archive(Config(((FILES, server),)), f"{FILES}/{name}", tmp_path / "got")
    # Who was asked is named, which is the mirror.
    assert f"{server}/{name}" in caught.value.what
    assert why in caught.value.why
    assert caught.value.why


def test_a_server_that_is_not_there(server: str, tmp_path: Path) -> None:
    port = server.rpartition(":")[2]
    with pytest.raises(UpstreamError) as caught:
        # The fixture's port on another address of this machine, where nobody listens.
        download_archive(Config(), f"http://127.0.0.2:{port}/there", tmp_path / "got")
    assert caught.value.why == "Connection refused"


def archive(name: str, data: bytes = DATA, url: str = "there") -> Archive:
    return Archive("compiler", name, f"{FILES}/{url}", hashlib.sha256(data).hexdigest(), len(data))


def test_archives_of_a_lock_come_into_the_store(server: str, toy_pins: Pins, store: Store, tmp_path: Path) -> None:
    lock = Lock("small", "0" * 64, (), (), (archive("llvm"),))
    config = Config(((FILES, server),))
    done = fetch(toy_pins, lock, store, tmp_path / "apt", Console(quiet=True), config)
    assert (done.new_files, done.new_bytes) == (1, len(DATA))
    assert store.check(lock.archives[0].sha256, "llvm").read_bytes() == DATA
    # Nobody is asked a second time.
    assert (
        fetch(toy_pins, lock, store, tmp_path / "apt", Console(quiet=True), Config(((FILES, "/nowhere"),))).new_files
        == 0
    )


def test_an_archive_with_other_bytes_is_not_stored(server: str, toy_pins: Pins, store: Store, tmp_path: Path) -> None:
    lock = Lock("small", "0" * 64, (), (), (archive("llvm", b"as it was locked"),))
    with pytest.raises(HashMismatchError) as caught:
        fetch(toy_pins, lock, store, tmp_path / "apt", Console(quiet=True), Config(((FILES, server),)))
    assert "compiler: there" in caught.value.what
    assert f"{server}/there" in caught.value.why
    assert not store.path(lock.archives[0].sha256).exists()


def test_an_archive_that_nobody_has_is_a_fetch_error_with_a_way_on(
    server: str, toy_pins: Pins, store: Store, tmp_path: Path
) -> None:
    lock = Lock("small", "0" * 64, (), (), (archive("llvm", url="nowhere"),))
    with pytest.raises(FetchError) as caught:
        fetch(toy_pins, lock, store, tmp_path / "apt", Console(quiet=True), Config(((FILES, server),)))
    assert caught.value.exit_code == 20
    assert "404" in caught.value.why
    assert "kiln.toml" in caught.value.fix
