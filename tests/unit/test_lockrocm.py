"""Locking a ROCm stack, from small repositories on this machine: what is resolved, what stays, what is open, and what is refused."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

import kiln.lockrocm
from kiln.config import Config
from kiln.console import Console
from kiln.errors import HashMismatchError, MovedRefError, RefNotFoundError, ResolveError, SourceError, UpstreamError
from kiln.git import GitCache, Submodule
from kiln.lock import make_lock
from kiln.lockentries import BaseImage, Deb, Unresolved, Wheel
from kiln.lockfile import TOOLS, Lock, dump_lock, parse_lock
from kiln.lockrocm import Upstreams, lock_rocm
from kiln.overrides import apply_choices
from kiln.pins import Pins, read_pins
from kiln.store import Store
from kiln.workspace import Workspace

GIT, DEEP, FILES = "https://example.invalid", "https://deep.invalid", "https://files.invalid"
IMAGE, TAG = "registry.invalid/rocm/base", "7.2.3"
DIGEST, OTHER_DIGEST = f"sha256:{'5' * 64}", f"sha256:{'6' * 64}"
LLVM = "0123456789abcdef"

PINS = """\
schema = 1
[stack]
name = "small"
about = "a small stack"
target = "rocm"
platform = "linux/amd64"
images = ["small-base"]
epoch = 2026-11-01T00:00:00Z
archs = ["gfx942"]
[python]
version = "3.12"
glibc = "2.35"
as-of = 2026-05-30T00:00:00Z
[base]
image = "registry.invalid/rocm/base"
tag = "7.2.3"
rocm = "7.2.3"
[ubuntu]
suite = "jammy"
architecture = "amd64"
packages = ["curl"]
[components.needs]
recipe = "wheels"
about = "what the others need"
requires = ["numpy", "einops>=0.8"]
[components.flydsl]
recipe = "wheels"
about = "a pinned wheel"
wheels = ["flydsl==0.1.7"]
[components.late]
recipe = "wheels"
about = "the last that holds what its requirements resolve to"
requires = ["pandas"]
[components.compiler]
recipe = "triton"
about = "a branch's commit with a pick and two files"
git = "https://example.invalid/compiler"
ref = "{compiler}"
picks = ["https://example.invalid/compiler@{pick}"]
provides = ["triton"]
[components.compiler.archives.llvm]
url = "https://files.invalid/llvm-{{version:.8}}.tar.gz"
version-from = "cmake/llvm-hash.txt"
[components.compiler.archives.plain]
url = "https://files.invalid/plain.zip"
[components.kernels]
recipe = "aiter"
about = "a tag with submodules"
git = "https://example.invalid/kernels"
ref = "v1"
version = "1.0"
provides = ["amd-aiter"]
[components.kernels.without-submodules]
"third/unwanted" = "nobody reads it"
[tools]
wheels = ["uv==0.13.8"]
"""

# What the index has: version and needs.
INDEX = {
    "numpy": ("2.0", []),
    "einops": ("0.8.1", []),
    "pandas": ("3.0", ["numpy", "dateutil"]),
    "dateutil": ("2.9", []),
    "flydsl": ("0.1.7", ["numpy", "jinja"]),
    "jinja": ("3.1", []),
    "uv": ("0.13.8", []),
}


class Repo:
    """A repository that a test fills; made where there is none yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.exists():
            folder.mkdir(parents=True)
            self.git("init", "-q", "-b", "main", "--template=")

    def git(self, *words: str) -> str:
        who = {
            f"GIT_{role}_{what}": value
            for role in ("AUTHOR", "COMMITTER")
            for what, value in (("NAME", "T"), ("EMAIL", "t@example.com"), ("DATE", "1700000000 +0000"))
        }
        argv = ["git", "-c", "commit.gpgSign=false", "-c", "tag.gpgSign=false", "-c", "gc.auto=0", *words]
        return subprocess.run(
            argv, cwd=self.folder, env={**os.environ, **who}, capture_output=True, check=True, text=True
        ).stdout.strip()

    def commit(self, files: dict[str, str] | None = None) -> str:
        for name, text in (files or {}).items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(text)
        if files:
            self.git("add", "--", *files)
        self.git("commit", "-q", "--allow-empty", "-m", "change")
        return self.git("rev-parse", "HEAD")

    def link(self, path: str, url: str, commit: str) -> None:
        with (self.folder / ".gitmodules").open("a") as stream:
            stream.write(f'[submodule "{path}"]\n\tpath = {path}\n\turl = {url}\n')
        self.git("add", ".gitmodules")
        self.git("update-index", "--add", "--cacheinfo", f"160000,{commit},{path}")


@dataclass
class Site:
    """Everything that locking asks, on this machine: repositories, files, a registry, an engine, apt and an index of wheels."""

    workspace: Workspace
    hub: Path
    deep: Path
    files: Path
    pinned: Path
    commits: dict[str, str] = field(default_factory=dict)
    digest: str | None = DIGEST
    status: bytes | None = b"Package: base-files\n"
    asked: list[tuple[list[str], list[str], list[str], str]] = field(default_factory=list)
    statuses: list[tuple[BaseImage, bool]] = field(default_factory=list)

    @property
    def config(self) -> Config:
        return Config(((GIT, str(self.hub)), (DEEP, str(self.deep)), (FILES, str(self.files))))

    def pins(self) -> Pins:
        return read_pins(self.workspace, "small")

    def edit(self, old: str, new: str) -> Pins:
        text = self.pinned.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in the pins"
        self.pinned.write_text(text.replace(old, new), encoding="utf-8")
        return self.pins()

    def upstreams(self, config: Config | None = None) -> Upstreams:
        config = config or self.config
        return Upstreams(config, GitCache(self.workspace.state / "git", config, ask_seconds=20), self.package_status)

    def package_status(self, image: BaseImage, may_pull: bool) -> bytes:
        self.statuses.append((image, may_pull))
        if self.status is None:
            raise UpstreamError("the base image is not in the engine")
        return self.status

    @property
    def store(self) -> Store:
        return Store(self.workspace.state / "store")

    def lock(
        self,
        old: Lock | None = None,
        pins: Pins | None = None,
        *,
        moved: Iterable[str] = (),
        upgrade: bool = False,
        config: Config | None = None,
    ) -> Lock:
        console = Console(quiet=True)
        return lock_rocm(
            self.workspace,
            pins or self.pins(),
            old,
            self.upstreams(config),
            self.store,
            console,
            moved_is_fine=list(moved),
            upgrade=upgrade,
        )

    def repo(self, name: str) -> Repo:
        return Repo(self.hub / name)

    def away(self, folder: Path) -> Path:
        """Nobody answers for ``folder`` any more; what is returned brings it back by ``rename``."""
        return folder.rename(folder.with_name(f"{folder.name}-away"))

    def all_away(self, *, forget: bool = True) -> None:
        """Nobody answers at all; and (with ``forget``) nothing is in the caches, as on a new machine."""
        for folder in (self.hub, self.deep, self.files):
            self.away(folder)
        self.digest = self.status = None
        if forget:
            shutil.rmtree(self.workspace.state)


def wheel(name: str, version: str) -> Wheel:
    return Wheel(
        "", name, version, f"{name}-{version}-py3-none-any.whl", hashlib.sha256(name.encode()).hexdigest(), len(name)
    )


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Repositories and files as every test finds them, and their commits; each test gets a copy, which is quicker than making them."""
    folder = tmp_path_factory.mktemp("upstreams")
    hub, deep, files = folder / "hub", folder / "deep", folder / "files"
    files.mkdir()
    (files / f"llvm-{LLVM[:8]}.tar.gz").write_bytes(b"llvm")
    (files / "plain.zip").write_bytes(b"plain")
    inner = Repo(deep / "inner").commit({"i": "inner"})
    ck = Repo(deep / "ck")
    ck.link("inner", f"{DEEP}/inner", inner)
    ck_commit = ck.commit({"c": "ck"})
    kernels = Repo(hub / "kernels")
    kernels.link("third/ck", f"{DEEP}/ck", ck_commit)
    kernels.link("third/unwanted", f"{DEEP}/unwanted", inner)
    first = kernels.commit({"k": "1"})
    kernels.git("tag", "-a", "-m", "one", "v1")
    compiler = Repo(hub / "compiler")
    base = compiler.commit({"a": "1\n", "cmake/llvm-hash.txt": f"{LLVM}\n"})
    compiler.git("checkout", "-q", "-b", "fix")
    fix = compiler.commit({"fix": "fixed\n"})
    second_fix = compiler.commit({"fix2": "fixed too\n"})
    compiler.git("checkout", "-q", "main")
    commits = {"kernels": first, "compiler": base, "fix": fix, "fix2": second_fix, "ck": ck_commit, "inner": inner}
    return folder, commits


@pytest.fixture
def site(made_once: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "nobody"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    upstreams, commits = made_once
    for name in ("hub", "deep", "files"):
        shutil.copytree(upstreams / name, tmp_path / name)
    pinned = tmp_path / "project" / "pins" / "small.toml"
    pinned.parent.mkdir(parents=True)
    pinned.write_text(PINS.format(compiler=commits["compiler"], pick=commits["fix"][:9]), encoding="utf-8")
    workspace = Workspace(tmp_path / "project", tmp_path / "state")
    made = Site(workspace, tmp_path / "hub", tmp_path / "deep", tmp_path / "files", pinned, dict(commits))

    def tag_digest(_config: Config, image: str, tag: str) -> str:
        assert (image, tag.split("-")[0][:1]) == (IMAGE, "7")
        if made.digest is None:
            raise UpstreamError("the registry does not answer", why="Connection refused")
        return made.digest

    def resolve_for(
        _pins: Pins,
        requirements: Sequence[str],
        *,
        absent: Iterable[str] = (),
        constraints: Sequence[str] = (),
        as_of: str = "",
    ) -> dict[str, Wheel]:
        made.asked.append((list(requirements), list(absent), list(constraints), as_of))
        todo = [text.split("=")[0].split(">")[0] for text in requirements]
        found: dict[str, Wheel] = {}
        while todo:
            name = todo.pop()
            version, needs = INDEX[name]
            found[name] = wheel(name, version)
            todo += [need for need in needs if need not in found]
        return found

    class Apt:
        """Stands in for apt: one package, of a version that tells whether the base image was looked at."""

        def __init__(self, _folder: Path, suite: str, architecture: str, *, status: bytes, sources: str) -> None:
            assert (suite, architecture, status, sources) == ("jammy", "amd64", made.status, "sources")

        def update(self) -> None:
            return

        def resolve(self, packages: Sequence[str]) -> list[Deb]:
            return [Deb(name, "1", "amd64", f"pool/{name}_1_amd64.deb", "7" * 64, 1) for name in packages]

    monkeypatch.setattr(kiln.lockrocm, "tag_digest", tag_digest)
    monkeypatch.setattr(kiln.lockrocm, "resolve_for", resolve_for)
    monkeypatch.setattr(kiln.lockrocm, "Apt", Apt)
    monkeypatch.setattr(kiln.lockrocm, "sources_for", lambda *_: "sources")
    return made


def kinds(lock: Lock) -> list[tuple[str, str]]:
    return sorted((entry.kind, entry.name) for entry in lock.unresolved)


# everything answers


def test_everything_is_resolved(site: Site) -> None:
    pins, lock = site.pins(), site.lock()
    assert lock.unresolved == ()
    lock.require_resolved()
    assert (lock.stack, lock.pins_sha256) == ("small", pins.sha256)
    assert lock.images == (BaseImage(IMAGE, TAG, DIGEST),)
    assert [deb.name for deb in lock.debs] == ["curl"]
    assert site.statuses == [(lock.images[0], True)]
    kernels = lock.git_of["kernels"]
    # The tag is annotated: what is locked is the commit that it names, not the tag's own object.
    assert kernels.commit == site.commits["kernels"] != site.repo("kernels").git("rev-parse", "v1")
    assert kernels.tree == site.repo("kernels").git("rev-parse", "v1^{tree}")
    assert kernels.submodules == (
        Submodule("third/ck", f"{DEEP}/ck", site.commits["ck"]),
        Submodule("third/ck/inner", f"{DEEP}/inner", site.commits["inner"]),
    )
    assert kernels.left_out == ("third/unwanted",)
    assert (kernels.url, kernels.ref) == (f"{GIT}/kernels", "v1")
    assert parse_lock(dump_lock(lock), "small.lock.toml").sha256 == lock.sha256


def test_picks_are_locked_by_their_whole_commits_and_are_in_the_tree(site: Site) -> None:
    compiler = site.lock().git_of["compiler"]
    assert compiler.picks == (f"{GIT}/compiler@{site.commits['fix']}",)
    assert compiler.commit == site.commits["compiler"]
    # The pick was made on this very commit, so the result is its tree.
    assert compiler.tree == site.repo("compiler").git("rev-parse", f"{site.commits['fix']}^{{tree}}")


def test_archives_are_named_by_the_source_and_measured(site: Site) -> None:
    lock = site.lock()
    found = {archive.name: (archive.url, archive.sha256, archive.size) for archive in lock.archives}
    assert found == {
        "llvm": (f"{FILES}/llvm-{LLVM[:8]}.tar.gz", hashlib.sha256(b"llvm").hexdigest(), 4),
        "plain": (f"{FILES}/plain.zip", hashlib.sha256(b"plain").hexdigest(), 5),
    }
    assert [site.store.path(archive.sha256).read_bytes() for archive in lock.archives] == [b"llvm", b"plain"]


def test_every_wheel_is_in_one_component(site: Site) -> None:
    lock = site.lock()
    shares = {name: [one.name for one in lock.wheels_of(name)] for name in ("needs", "flydsl", "late", TOOLS)}
    # What flydsl needs and nobody holds goes with the last that may hold anything; what is above stays above.
    assert shares == {
        "needs": ["einops", "numpy"],
        "flydsl": ["flydsl"],
        "late": ["dateutil", "pandas", "jinja"],
        TOOLS: ["uv"],
    }


def test_wheels_are_asked_for_together_without_what_is_built_and_as_of_the_pinned_time(site: Site) -> None:
    site.lock()
    everything, absent, constraints, as_of = site.asked[0]
    assert everything == ["numpy", "einops>=0.8", "flydsl==0.1.7", "pandas"]
    assert absent == ["amd-aiter", "triton"]
    assert (constraints, as_of) == ([], "2026-05-30T00:00:00Z")
    # Whoever asks later gets the versions that were chosen for all.
    assert all("pandas==3.0" in asked[2] for asked in site.asked[1:-1])
    assert site.asked[-1][0] == ["uv==0.13.8"]


def test_what_a_pinned_wheel_needs_is_locked_also_where_no_component_has_requirements(site: Site) -> None:
    site.edit('requires = ["numpy", "einops>=0.8"]', 'wheels = ["einops==0.8.1"]')
    lock = site.lock(pins=site.edit('requires = ["pandas"]', 'wheels = ["pandas==3.0"]'))
    assert {one.name for one in lock.wheels} == {"einops", "flydsl", "pandas", "uv", "numpy", "jinja", "dateutil"}


# again


def test_a_second_run_gives_the_same_lock(site: Site) -> None:
    first = site.lock()
    asked = len(site.asked)
    second = site.lock(first)
    assert dump_lock(second) == dump_lock(first)
    assert len(site.asked) == asked, "wheels were resolved anew although nothing asks for it"
    assert len(site.statuses) == 1


def test_a_run_from_nothing_gives_the_same_lock(site: Site) -> None:
    first = site.lock()
    shutil.rmtree(site.workspace.state)
    assert dump_lock(site.lock()) == dump_lock(first)


def test_upgrading_resolves_wheels_and_packages_anew(site: Site) -> None:
    first = site.lock()
    asked = len(site.asked)
    assert dump_lock(site.lock(first, upgrade=True)) == dump_lock(first)
    assert len(site.asked) > asked
    assert len(site.statuses) == 2


def test_an_archive_that_is_locked_is_not_downloaded_again(site: Site) -> None:
    first = site.lock()
    (site.files / "plain.zip").write_bytes(b"changed upstream")
    assert site.lock(first).archives == first.archives


def test_an_archive_with_a_published_checksum_must_have_it(site: Site) -> None:
    good = hashlib.sha256(b"plain").hexdigest()
    pins = site.edit('plain.zip"', f'plain.zip"\nsha256 = "{good}"')
    assert site.lock(pins=pins).archives[1].sha256 == good
    pins = site.edit(good, "0" * 64)
    with pytest.raises(HashMismatchError, match="plain"):
        site.lock(pins=pins)


# nobody answers


def test_where_nobody_answers_all_is_open_with_its_reason(site: Site) -> None:
    site.all_away(forget=False)
    lock = site.lock()
    assert (lock.gits, lock.images, lock.debs, lock.archives) == ((), (), (), ())
    assert kinds(lock) == [
        ("archive", "compiler"),
        ("archive", "compiler"),
        ("git", "compiler"),
        ("git", "kernels"),
        ("image", IMAGE),
        ("packages", "ubuntu jammy"),
    ]
    assert [entry for entry in lock.unresolved if not entry.reason.strip()] == []
    by_kind = {(entry.kind, entry.ref): entry for entry in lock.unresolved}
    assert "Connection refused" in by_kind["image", TAG].reason
    assert by_kind["git", f"{GIT}/kernels@v1"].name == "kernels"
    assert parse_lock(dump_lock(lock), "small.lock.toml").sha256 == lock.sha256


def test_what_is_open_is_written_alike_every_time(site: Site) -> None:
    site.all_away(forget=False)
    first = site.lock()
    assert dump_lock(site.lock(first)) == dump_lock(first)


def test_what_was_open_is_resolved_when_it_answers(site: Site) -> None:
    whole = site.lock()
    shutil.rmtree(site.workspace.state)
    places = [(folder, site.away(folder)) for folder in (site.hub, site.deep, site.files)]
    site.digest = site.status = None
    partial = site.lock()
    assert partial.unresolved
    for place, away in places:
        away.rename(place)
    site.digest, site.status = DIGEST, b"Package: base-files\n"
    assert dump_lock(site.lock(partial)) == dump_lock(whole)


@pytest.mark.parametrize("forget", [False, True], ids=["with the caches", "on a new machine"])
def test_where_nobody_answers_what_was_locked_stays(site: Site, forget: bool) -> None:
    first = site.lock()
    site.all_away(forget=forget)
    second = site.lock(first)
    assert second.unresolved == ()
    assert dump_lock(second) == dump_lock(first)


def test_a_silent_host_is_asked_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing listens on port 9 of this machine; unlike a folder it is a host, of which more repositories may be wanted.
    config = Config(((GIT, "http://127.0.0.1:9"), (DEEP, str(site.deep)), (FILES, str(site.files))))
    pins = site.edit(site.commits["compiler"], "main")
    asked: list[str] = []
    original = GitCache.resolve

    def resolve(self: GitCache, url: str, ref: str) -> str:
        asked.append(url)
        return original(self, url, ref)

    monkeypatch.setattr(GitCache, "resolve", resolve)
    lock = site.lock(pins=pins, config=config)
    assert len(asked) == 1
    reasons = {entry.name: entry.reason for entry in lock.unresolved if entry.kind == "git"}
    assert set(reasons) == {"compiler", "kernels"}
    # The second's reason may not name the first's address.
    assert "kernels" not in reasons["compiler"]
    assert "compiler" not in reasons["kernels"]
    assert all("127.0.0.1:9" in reason for reason in reasons.values())


def test_what_answers_is_resolved_beside_what_does_not(site: Site) -> None:
    site.away(site.hub / "compiler")
    lock = site.lock()
    assert list(lock.git_of) == ["kernels"]
    assert kinds(lock) == [("archive", "compiler"), ("git", "compiler")]
    # The file whose address the source does not name is had all the same.
    assert [archive.name for archive in lock.archives] == ["plain"]
    (archive,) = [entry for entry in lock.unresolved if entry.kind == "archive"]
    assert archive.ref.startswith("llvm: ")
    assert "cmake/llvm-hash.txt" in archive.reason


def test_a_file_that_nobody_has_is_open_alone(site: Site) -> None:
    (site.files / "plain.zip").unlink()
    lock = site.lock()
    assert kinds(lock) == [("archive", "compiler")]
    assert [archive.name for archive in lock.archives] == ["llvm"]


def test_packages_wait_for_the_engine_alone(site: Site) -> None:
    site.status = None
    lock = site.lock()
    assert kinds(lock) == [("packages", "ubuntu jammy")]
    assert lock.debs == ()
    assert "packages" not in dict(lock.roots)
    site.status = b"x"
    later = site.lock(lock)
    assert later.unresolved == ()
    assert later.debs


def test_a_registry_that_did_not_answer_is_not_pulled_from(site: Site) -> None:
    pins = site.edit('rocm = "7.2.3"', f'rocm = "7.2.3"\ndigest = "{DIGEST}"')
    site.digest = None
    site.lock(pins=pins)
    assert site.statuses == [(BaseImage(IMAGE, TAG, DIGEST), False)]


def test_an_upgrade_without_the_engine_does_not_lose_the_packages(site: Site) -> None:
    first = site.lock()
    site.status = None
    assert site.lock(first, upgrade=True).debs == first.debs


# submodules


def test_where_a_submodules_host_is_silent_the_first_level_is_kept_and_open(site: Site) -> None:
    whole = site.lock()
    shutil.rmtree(site.workspace.state)
    away = site.away(site.deep)
    partial = site.lock()
    kernels = partial.git_of["kernels"]
    assert kernels.submodules == (Submodule("third/ck", f"{DEEP}/ck", site.commits["ck"]),)
    (entry,) = partial.unresolved
    assert (entry.kind, entry.name, entry.ref) == ("submodule", "kernels", f"third/ck@{site.commits['ck']}")
    assert "submodules of its own" in entry.reason
    assert f"{DEEP}/ck" in entry.reason
    # As long as it is silent, the lock stays to the byte.
    assert dump_lock(site.lock(partial)) == dump_lock(partial)
    away.rename(site.deep)
    assert dump_lock(site.lock(partial)) == dump_lock(whole)


def test_an_open_submodule_of_a_pinned_commit_is_looked_up_later(site: Site) -> None:
    pins = site.edit('ref = "v1"', f'ref = "{site.commits["kernels"]}"')
    away = site.away(site.deep)
    partial = site.lock(pins=pins)
    assert kinds(partial) == [("submodule", "kernels")]
    away.rename(site.deep)
    later = site.lock(partial, pins=pins)
    assert later.unresolved == ()
    assert [sub.path for sub in later.git_of["kernels"].submodules] == ["third/ck", "third/ck/inner"]


def test_an_open_submodule_stays_open_where_even_its_parent_is_silent(site: Site) -> None:
    site.away(site.deep)
    partial = site.lock()
    site.away(site.hub)
    shutil.rmtree(site.workspace.state / "git")
    later = site.lock(partial)
    assert [entry for entry in later.unresolved if entry.kind == "submodule"] == list(partial.unresolved)
    assert later.gits == partial.gits


def test_a_submodule_commit_that_is_gone_is_an_error(site: Site) -> None:
    shutil.rmtree(site.deep / "ck")
    Repo(site.deep / "ck").commit({"other": "x"})
    with pytest.raises(SourceError, match="third/ck"):
        site.lock()


# what moved


def moved(site: Site) -> str:
    kernels = site.repo("kernels")
    commit = kernels.commit({"k": "2"})
    kernels.git("tag", "-f", "-a", "-m", "moved", "v1")
    return commit


def test_a_moved_tag_is_refused_with_both_commits(site: Site) -> None:
    first = site.lock()
    now = moved(site)
    with pytest.raises(MovedRefError) as caught:
        site.lock(first)
    assert caught.value.exit_code == 17
    assert f"{GIT}/kernels v1" in caught.value.what
    assert caught.value.why.splitlines() == [f"locked {site.commits['kernels']}", f"now    {now}"]
    assert "--accept-moved kernels" in caught.value.fix


def test_a_moved_tag_changes_no_file(site: Site) -> None:
    path, changes = make_lock(site.workspace, site.pins(), site.store, Console(quiet=True), site.upstreams())
    assert changes
    before = path.read_bytes()
    moved(site)
    with pytest.raises(MovedRefError):
        make_lock(site.workspace, site.pins(), site.store, Console(quiet=True), site.upstreams())
    assert path.read_bytes() == before


def test_a_moved_tag_can_be_accepted_by_name_alone(site: Site) -> None:
    first = site.lock()
    now = moved(site)
    with pytest.raises(MovedRefError):
        site.lock(first, moved=["compiler"])
    second = site.lock(first, moved=["kernels"])
    assert second.git_of["kernels"].commit == now
    assert replace(second, gits=()) == replace(first, gits=())
    assert second.git_of["compiler"] == first.git_of["compiler"]


def test_a_tag_that_was_never_locked_may_point_anywhere(site: Site) -> None:
    now = moved(site)
    assert site.lock().git_of["kernels"].commit == now


def test_a_moved_tag_of_the_base_image_is_refused_and_can_be_accepted(site: Site) -> None:
    first = site.lock()
    site.digest = OTHER_DIGEST
    with pytest.raises(MovedRefError) as caught:
        site.lock(first)
    assert caught.value.why.splitlines() == [f"locked {DIGEST}", f"now    {OTHER_DIGEST}"]
    second = site.lock(first, moved=["base"])
    assert second.images == (BaseImage(IMAGE, TAG, OTHER_DIGEST),)


def test_a_pinned_digest_holds_whatever_the_tag_says(site: Site) -> None:
    pins = site.edit('rocm = "7.2.3"', f'rocm = "7.2.3"\ndigest = "{OTHER_DIGEST}"')
    assert site.lock(pins=pins).images == (BaseImage(IMAGE, TAG, OTHER_DIGEST),)
    site.digest = None
    assert site.lock(pins=pins).images == (BaseImage(IMAGE, TAG, OTHER_DIGEST),)


# what does not exist


@pytest.mark.parametrize("ref", ["v9", "f" * 40, "abcdef0"])
def test_a_ref_that_does_not_exist_is_an_error(site: Site, ref: str) -> None:
    pins = site.edit('ref = "v1"', f'ref = "{ref}"')
    with pytest.raises(RefNotFoundError) as caught:
        site.lock(pins=pins)
    assert f"{GIT}/kernels" in caught.value.what
    assert ref in caught.value.what


def test_a_pick_that_does_not_exist_is_an_error(site: Site) -> None:
    pins = site.edit(site.commits["fix"][:9], "f" * 40)
    with pytest.raises(RefNotFoundError, match="f" * 40):
        site.lock(pins=pins)


@pytest.mark.parametrize("content", [None, "", "\n", "  \n\n"], ids=["no file", "empty", "a line end", "blanks"])
def test_a_file_that_names_no_version_is_an_error(site: Site, content: str | None) -> None:
    compiler = site.repo("compiler")
    if content is None:
        compiler.git("rm", "-q", "cmake/llvm-hash.txt")
        commit = compiler.commit()
    else:
        commit = compiler.commit({"cmake/llvm-hash.txt": content})
    pins = site.edit(site.commits["compiler"], commit)
    with pytest.raises(SourceError) as caught:
        site.lock(pins=pins)
    assert "cmake/llvm-hash.txt" in caught.value.what
    assert "components.compiler.archives.llvm" in caught.value.fix


def test_wheels_that_contradict_each_other_are_an_error(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> dict[str, Wheel]:
        raise ResolveError("uv found no set of wheels for the pins")

    monkeypatch.setattr(kiln.lockrocm, "resolve_for", refuse)
    with pytest.raises(ResolveError):
        site.lock()


# changed pins


def entries(lock: Lock) -> dict[str, object]:
    """What is locked, by a name each."""
    found: dict[str, object] = {f"git {git.component}": git for git in lock.gits}
    found |= {f"archive {archive.name}": archive for archive in lock.archives}
    found |= {f"wheel {one.name}": one for one in lock.wheels}
    return (
        found | {f"deb {deb.name}": deb for deb in lock.debs} | {f"image {image.name}": image for image in lock.images}
    )


def differing(one: Lock, other: Lock) -> set[str]:
    before, after = entries(one), entries(other)
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


Change = Callable[[Site], Pins]


def another_pick(site: Site) -> Pins:
    return site.edit(site.commits["fix"][:9], site.commits["fix2"])


def no_pick(site: Site) -> Pins:
    return site.edit(f'picks = ["{GIT}/compiler@{site.commits["fix"][:9]}"]\n', "")


def another_tag(site: Site) -> Pins:
    site.repo("kernels").commit({"k": "2"})
    site.repo("kernels").git("tag", "v2")
    return site.edit('ref = "v1"', 'ref = "v2"')


def nothing_left_out(site: Site) -> Pins:
    unwanted = Repo(site.deep / "unwanted")
    unwanted.git("fetch", "-q", str(site.deep / "inner"), site.commits["inner"])
    unwanted.git("reset", "-q", "--hard", site.commits["inner"])
    return site.edit('[components.kernels.without-submodules]\n"third/unwanted" = "nobody reads it"\n', "")


def another_llvm(site: Site) -> Pins:
    (site.files / "llvm-ffffffff.tar.gz").write_bytes(b"newer llvm")
    commit = site.repo("compiler").commit({"cmake/llvm-hash.txt": "ffffffff0000\n"})
    return site.edit(site.commits["compiler"], commit)


def another_address(site: Site) -> Pins:
    (site.files / "other.zip").write_bytes(b"other")
    return site.edit("plain.zip", "other.zip")


def no_archive(site: Site) -> Pins:
    return site.edit(f'[components.compiler.archives.plain]\nurl = "{FILES}/plain.zip"\n', "")


def more_packages(site: Site) -> Pins:
    return site.edit('packages = ["curl"]', 'packages = ["curl", "git"]')


def fewer_wheels(site: Site) -> Pins:
    return site.edit('requires = ["numpy", "einops>=0.8"]', 'requires = ["numpy"]')


CHANGES: list[tuple[Change, set[str]]] = [
    (another_pick, {"git compiler"}),
    (no_pick, {"git compiler"}),
    (another_tag, {"git kernels"}),
    (nothing_left_out, {"git kernels"}),
    (another_llvm, {"git compiler", "archive llvm"}),
    (another_address, {"archive plain"}),
    (no_archive, {"archive plain"}),
    (more_packages, {"deb git"}),
    (fewer_wheels, {"wheel einops"}),
]


@pytest.mark.parametrize(("change", "changed"), CHANGES, ids=[change.__name__ for change, _ in CHANGES])
def test_changed_pins_change_only_what_they_are_about(site: Site, change: Change, changed: set[str]) -> None:
    first = site.lock()
    pins = change(site)
    second = site.lock(first, pins=pins)
    assert second.unresolved == ()
    assert differing(first, second) == changed
    # What comes of an old lock is what would have come of none.
    shutil.rmtree(site.workspace.state)
    assert dump_lock(second) == dump_lock(site.lock(pins=pins))


def test_where_nobody_answers_what_changed_is_open_and_the_rest_stays(site: Site) -> None:
    first = site.lock()
    site.all_away(forget=False)
    pins = site.edit('ref = "v1"', 'ref = "v2"')
    second = site.lock(first, pins=pins)
    assert differing(first, second) == {"git kernels"}
    assert [(entry.kind, entry.name, entry.ref) for entry in second.unresolved] == [
        ("git", "kernels", f"{GIT}/kernels@v2")
    ]


def test_an_override_of_one_component_leaves_the_other_entries_as_they_were(site: Site) -> None:
    quiet = Console(quiet=True)
    path, _ = make_lock(site.workspace, site.pins(), site.store, quiet, site.upstreams())
    committed = path.read_bytes()
    site.repo("kernels").commit({"k": "2"})
    site.repo("kernels").git("tag", "v2")
    # Nobody answers for anything else, and nobody needs to.
    site.away(site.hub / "compiler")
    site.digest = site.status = None
    pins = apply_choices(site.pins(), ["kernels=v2"])
    chosen, changes = make_lock(site.workspace, pins, site.store, quiet, site.upstreams())
    assert chosen.parent == site.workspace.state / "locks"
    assert path.read_bytes() == committed
    first, second = (parse_lock(one.read_text(encoding="utf-8"), "x") for one in (path, chosen))
    assert differing(first, second) == {"git kernels"}
    assert second.unresolved == ()
    assert second.pins_sha256 == pins.sha256
    assert [line.split()[:3] for line in changes] == [["~", "kernels", "v1"]]


def test_an_entry_that_is_open_says_what_it_is_for() -> None:
    entry = Unresolved("git", "kernels", "https://example.invalid/kernels@v1", "nobody answers")
    assert entry.label.split() == ["git", "kernels", "https://example.invalid/kernels@v1"]
