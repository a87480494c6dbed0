"""Sources out of git: refs resolved to commits, submodules, picks and history, through the ``git`` program alone.

Every upstream address goes through ``Config.mirrored`` when it is asked; what is kept and shown is the upstream's own. The
cache holds nothing but what upstreams sent, so it may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from kiln.config import Config, without_git
from kiln.errors import RefNotFoundError, SourceError, UpstreamError
from kiln.gitexport import GITLINK, Entry, entries, write_tree
from kiln.gitpick import near_names, pick_onto, submodule_urls
from kiln.gitrun import Answer, Repository, shown
from kiln.store import disk_full_is_an_error

Picks = Sequence[tuple[str, str]]
_COMMIT = re.compile(r"[0-9a-fA-F]{40}")
_ABBREVIATED = re.compile(r"[0-9a-fA-F]{7,39}")
# git's own number for no limit. Unlike --unshallow it may be said of whole histories, and unlike no depth at all it takes over
# where a shallow upstream is cut off (without, a fetch that leaves files out asks for the missing parents, without end).
_EVERYTHING = "--depth=2147483647"
# Histories lie in repositories of their own: they hold commits without files, the others files without history.
_HISTORY = "-history"
# What git says of a transfer that broke off or brought something else: the server does hand out what was asked for.
_BROKEN = re.compile(
    r"RPC failed; (curl|HTTP (429|5))|early EOF|unexpected disconnect|invalid index-pack output|bad pack"
)
_ALL_REFS = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")


@dataclass(frozen=True)
class Submodule:
    """A submodule at any depth: its path from the top, its absolute upstream URL, the commit that its parent names."""

    path: str
    url: str
    commit: str


@dataclass(frozen=True)
class GitSource:
    """What a lock says of one git source; ``picks`` are (url, commit), applied in order; ``tree`` is the result's tree id."""

    url: str
    ref: str
    commit: str
    submodules: tuple[Submodule, ...] = ()
    picks: tuple[tuple[str, str], ...] = ()
    tree: str = ""


class GitCache:
    """Bare repositories in one folder, one an upstream URL, made on demand; any number of processes may use it at once."""

    def __init__(
        self,
        folder: Path,
        config: Config,
        *,
        ask_seconds: float = 60,
        fetch_seconds: float = 3600,
        offline: bool = False,
    ) -> None:
        """``offline`` asks nobody: what is not in the cache is UpstreamError, or not known."""
        self.folder = folder
        self.config = config
        self._ask_seconds = ask_seconds
        self._fetch_seconds = fetch_seconds
        self._offline = offline

    def resolve(self, url: str, ref: str) -> str:
        """The commit that ``ref`` names now: a tag (peeled), else a branch, a full commit, or 7 to 39 digits of one.

        Raises RefNotFoundError (naming near matches, or the candidates of an ambiguous abbreviation) and UpstreamError.
        """
        if _COMMIT.fullmatch(ref):
            if not self._bring(url, ref.lower()):
                raise RefNotFoundError(
                    f"{shown(url)} has no commit {ref}", fix="correct the commit, or name the repository that has it"
                )
            return ref.lower()
        names = (f"refs/tags/{ref}^{{}}", f"refs/tags/{ref}", f"refs/heads/{ref}")
        found = self._remote_refs(url, *names)
        for name in names:
            if name in found:
                return found[name]
        if _ABBREVIATED.fullmatch(ref):
            return self._unabbreviated(url, ref.lower())
        near = near_names(ref, self._ref_names(url))
        raise RefNotFoundError(
            f"{shown(url)} has no tag or branch {ref!r}",
            why=f"near to it: {', '.join(near)}" if near else "Nothing there has a name like it.",
            fix="correct the ref where it is pinned" + (f"; did you mean {near[0]}?" if near else ""),
        )

    def gitlinks(
        self, url: str, commit: str, without: Collection[str] = (), *, picks: Picks = ()
    ) -> tuple[Submodule, ...]:
        """The submodules that the commit (with ``picks``) itself names, sorted by path; no submodule's host is asked."""
        with self._tree(url, commit, picks) as (repository, tree):
            return self._links(repository, tree, url, "", without)

    def submodules(
        self, url: str, commit: str, without: Collection[str] = (), *, picks: Picks = ()
    ) -> tuple[Submodule, ...]:
        """All submodules, theirs too, sorted by path; ``without`` names paths that are left out with all below them.

        Raises SourceError where a gitlink has no URL or a submodule's repository has not its commit, UpstreamError where a
        submodule's host does not answer (``gitlinks`` says what is known without).
        """
        found: list[Submodule] = []
        waiting = list(self.gitlinks(url, commit, without, picks=picks))
        while waiting:
            link = waiting.pop()
            found.append(link)
            repository = self._bring_submodule(link, url)
            waiting += self._links(repository, link.commit, link.url, f"{link.path}/", without)
        return tuple(sorted(found, key=lambda link: link.path))

    def tree(self, url: str, commit: str, picks: Picks = ()) -> str:
        """The git tree id of ``commit`` with ``picks`` ((url, commit) each) applied in order; no date or name enters it."""
        with self._tree(url, commit, picks) as (_, tree):
            return tree

    def export(self, source: GitSource, folder: Path, without: Collection[str] = ()) -> None:
        """Write all files of ``source`` into ``folder`` (new or empty), byte for byte as git stores them, submodules too.

        ``without`` names submodules that become empty folders. Modes are 0644, 0755 and symbolic links; times are the
        caller's affair. Raises SourceError where the tree or a submodule is not what ``source`` says.
        """
        known = {link.path: link for link in source.submodules}
        left_out = _paths(without)

        def fill(entry: Entry, place: Path, prefix: str) -> None:
            path = prefix + entry.name
            if path in left_out:
                return
            link = known.get(path)
            if link is None or link.commit != entry.sha:
                raise SourceError(
                    f"the submodule {path} of {shown(source.url)} is not the one that is locked",
                    why=f"locked  {link.commit if link else 'nothing'}\nin git  {entry.sha}",
                    fix="run `kiln lock` again, or leave the submodule out (without)",
                )
            repository = self._bring_submodule(link, source.url)
            write_tree(repository, link.commit, place, lambda inner, at: fill(inner, at, f"{path}/"))

        with self._tree(source.url, source.commit, source.picks) as (repository, tree):
            if source.tree and source.tree != tree:
                raise SourceError(
                    f"{shown(source.url)} at {source.commit} is not the tree that is locked",
                    why=f"locked  {source.tree}\nmade    {tree}",
                    fix="run `kiln lock` again if pins changed; otherwise find out why it differs before you trust it",
                )
            with disk_full_is_an_error(folder):
                write_tree(repository, tree, folder, lambda entry, at: fill(entry, at, ""))

    def contains(self, url: str, commit: str, ancestor: str) -> bool | None:
        """Whether ``commit`` is, or comes after, ``ancestor``; None where the history that would say so cannot be had."""
        history = self._repository(url, _HISTORY)
        for refs in ((), _ALL_REFS, (f"+{commit}:refs/kiln/{commit}",)):
            if refs:
                try:
                    self._fetch_history(url, refs)
                except UpstreamError:
                    return None
            if not history.has(commit):
                continue
            # What is cut off can hide an ancestor but never invent one: yes is certain at once, no only with all parents there.
            if history.ask("merge-base", "--is-ancestor", ancestor, commit).code == 0:
                return True
            if history.cut_off().isdisjoint(history.text("rev-list", "--max-parents=0", commit).split()):
                return False
        return None

    def file_at(self, url: str, commit: str, path: str) -> bytes | None:
        """The bytes of a file of ``commit``, or None where it has no such file."""
        if {"", ".", ".."} & set(path.split("/")):
            return None
        with self._tree(url, commit) as (repository, tree):
            listed = repository.read("ls-tree", "-z", "--full-tree", tree, "--", path).split(b"\0")
            for line in listed:
                described, _, name = line.partition(b"\t")
                if name == path.encode("utf-8", "surrogateescape") and b" blob " in described:
                    return repository.read("cat-file", "blob", described.decode("ascii").split()[2])
        return None

    def date(self, url: str, commit: str) -> str:
        """When a commit was committed, in UTC (2026-05-30T00:00:00Z)."""
        seconds = int(self._needed(url, commit).text("show", "--no-patch", "--format=%ct", commit))
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def tags(self, url: str) -> dict[str, str]:
        """Every tag that the upstream has now, with the commit that it names. Raises UpstreamError."""
        found = self._remote_refs(url, only=("--tags",))
        names = [name.removeprefix("refs/tags/") for name in found if not name.endswith("^{}")]
        return {name: found.get(f"refs/tags/{name}^{{}}", found[f"refs/tags/{name}"]) for name in names}

    def offers(self, url: str, commit: str) -> bool | None:
        """Whether the upstream hands out this commit now, whatever the cache holds; None where it answers and hands out nothing but the tips of
        its branches and tags. Raises UpstreamError."""
        if commit in self._remote_refs(url).values():
            return True
        with tempfile.TemporaryDirectory(prefix="tmp-", dir=self.folder) as scratch:
            empty = Repository(Path(scratch) / "empty.git")
            empty.ready()
            wanted = [f"+{commit}:refs/kiln/{commit}"]
            answer = self._fetch(empty, url, ["--depth=1", "--filter=tree:0"], wanted)
            if answer.code != 0 and "filter" in answer.err:
                answer = self._fetch(empty, url, ["--depth=1"], wanted)
        if answer.code == 0:
            return True
        if "not our ref" in answer.err:
            return False
        if "unadvertised object" in answer.err:
            return None
        raise self._no_answer(url, answer)

    def source_of(self, url: str, *commits: str) -> Repository:
        """A repository with the files of all of ``commits``, for reading. Raises SourceError where one is not there, UpstreamError."""
        return [self._needed(url, commit) for commit in commits][-1]

    def history_of(self, url: str, *commits: str) -> Repository:
        """A repository with the histories of ``commits``, without files, for reading. Raises SourceError where one is not there, UpstreamError."""
        history = self._repository(url, _HISTORY)
        # Whole repositories are large: these commits alone are asked for, unless the server hands out no commit by its name.
        if not all(map(history.has, commits)):
            try:
                self._fetch_history(url, [f"+{commit}:refs/kiln/{commit}" for commit in commits])
            except UpstreamError:
                self._fetch_history(url, _ALL_REFS)
        if missing := [commit for commit in commits if not history.has(commit)]:
            raise SourceError(f"{shown(url)} has no commit {missing[0]}", fix="correct the commit")
        return history

    def reachable(self, url: str, seconds: float) -> str:
        """ "" if the upstream (or its mirror) answers within ``seconds``, else why not, in one line."""
        answer = self._ls_remote(url, seconds, "HEAD")
        if answer.code == 0:
            return ""
        target = self.config.mirrored(url)
        return answer.why if target == url else f"{answer.why} (mirror: {shown(target)})"

    def _repository(self, url: str, purpose: str = "") -> Repository:
        plain = without_git(url)
        readable = re.sub(r"[^A-Za-z0-9.]+", "-", shown(plain).partition("://")[2] or plain).strip("-.")[-60:]
        name = f"{readable}-{hashlib.sha256(plain.encode()).hexdigest()[:12]}{purpose}.git"
        repository = Repository(self.folder / name)
        if not (repository.folder / "objects" / "info").is_dir():
            with repository.locked():
                pass
        return repository

    def _may_ask(self, url: str) -> None:
        if self._offline:
            raise UpstreamError(f"{shown(url)} is not in the cache, and nobody is asked now")

    def _no_answer(self, url: str, answer: Answer) -> UpstreamError:
        target = self.config.mirrored(url)
        mirrored = f" (mirrored: {shown(target)})" if target != url else ""
        return UpstreamError(f"{shown(url)}{mirrored} could not be read", why=answer.why)

    def _serve(self, url: str) -> tuple[str, ...]:
        """The option that a repository of this machine is asked with."""
        target = self.config.mirrored(url)
        if "://" in target and not target.startswith("file://"):
            return ()
        # git forgets its settings before it serves another local repository, whose owner and settings need not be ours.
        settings = ("safe.directory=*", "uploadpack.allowFilter=true", "uploadpack.allowAnySHA1InWant=true")
        return (" ".join(["--upload-pack=git", *(f'-c "{setting}"' for setting in settings), "upload-pack"]),)

    def _ls_remote(self, url: str, seconds: float, *patterns: str, only: Sequence[str] = ()) -> Answer:
        self._may_ask(url)
        words = ("ls-remote", "--quiet", *only, *self._serve(url), "--", self.config.mirrored(url), *patterns)
        return self._repository(url).ask(*words, seconds=seconds, online=True)

    def _remote_refs(self, url: str, *patterns: str, only: Sequence[str] = ()) -> dict[str, str]:
        answer = self._ls_remote(url, self._ask_seconds, *patterns, only=only)
        if answer.code != 0:
            raise self._no_answer(url, answer)
        pairs = (line.split("\t", 1) for line in answer.out.decode("utf-8", "surrogateescape").splitlines())
        return {name: sha for sha, name in (pair for pair in pairs if len(pair) == 2)}

    def _ref_names(self, url: str) -> list[str]:
        found = self._remote_refs(url, only=("--tags", "--heads"))
        return [re.sub(r"^refs/(tags|heads)/", "", name) for name in found if not name.endswith("^{}")]

    def _unabbreviated(self, url: str, digits: str) -> str:
        repository = self._repository(url, _HISTORY)
        self._fetch_history(url, _ALL_REFS)
        candidates = repository.text("rev-parse", f"--disambiguate={digits}").split()
        commits = sorted(name for name in candidates if repository.has(name))
        if len(commits) == 1:
            return commits[0]
        if commits:
            raise RefNotFoundError(
                f"{digits} is ambiguous in {shown(url)}",
                why="commits that begin with it:\n" + "\n".join(commits[:10]),
                fix="give all 40 digits of the one you mean",
            )
        near = near_names(digits, self._ref_names(url))
        raise RefNotFoundError(
            f"{shown(url)} has no tag or branch {digits!r}, and no commit on a branch or tag that begins with it",
            why=f"near to it: {', '.join(near)}" if near else "",
            fix="correct the ref, or give all 40 digits of the commit",
        )

    def _bring(self, url: str, commit: str, *, parents: bool = False) -> bool:
        """Have ``commit`` (and its parents) in the cache; False where the upstream answers and does not have it."""
        repository = self._repository(url)

        def there() -> bool:
            return repository.has(commit) and not (parents and commit in repository.cut_off())

        if there():
            return True
        with repository.locked():
            if there():
                return True
            depth = f"--depth={2 if parents else 1}"
            answer = self._fetch(repository, url, [depth], [f"+{commit}:refs/kiln/{commit}"])
            if answer.code == 0:
                return there()
            # A server that hands out commits by name says so of one that it does not have. Others refuse the question as such.
            if "not our ref" in answer.err:
                return False
            if answer.timed_out or _BROKEN.search(answer.err) or self.reachable(url, self._ask_seconds):
                raise self._no_answer(url, answer)
            answer = self._fetch(repository, url, [_EVERYTHING, "--prune"], _ALL_REFS)
            if answer.code != 0:
                raise self._no_answer(url, answer)
        return there()

    def _fetch_history(self, url: str, refs: Sequence[str]) -> None:
        """Fetch ``refs`` with all their commits, and only those where the server can. Raises UpstreamError."""
        history = self._repository(url, _HISTORY)
        prune = ["--prune"] if refs == _ALL_REFS else []
        with history.locked():
            answer = self._fetch(history, url, [_EVERYTHING, "--filter=tree:0", *prune], refs)
            if answer.code != 0 and "filter" in answer.err:
                answer = self._fetch(history, url, [_EVERYTHING, *prune], refs)
        if answer.code != 0:
            raise self._no_answer(url, answer)

    def _fetch(self, repository: Repository, url: str, options: Sequence[str], refs: Sequence[str]) -> Answer:
        self._may_ask(url)
        # The address has a name while git runs, for git leaves nothing out of what it fetches from a nameless path.
        return repository.ask(
            "-c", f"remote.kiln.url={self.config.mirrored(url)}", "fetch", "--quiet", "--force", "--no-tags",
            "--no-recurse-submodules", "--no-write-fetch-head", "--no-auto-maintenance", *options, *self._serve(url),
            "kiln", *refs, seconds=self._fetch_seconds, online=True,
        )  # fmt: skip

    def _needed(self, url: str, commit: str, *, parents: bool = False) -> Repository:
        if not self._bring(url, commit, parents=parents):
            raise SourceError(
                f"{shown(url)} has no commit {commit}",
                why="Its host answers, and does not have it: it may have been removed upstream.",
                fix="pin another commit, or name a mirror that has it in kiln.toml ([mirrors])",
            )
        return self._repository(url)

    def _bring_submodule(self, link: Submodule, parent: str) -> Repository:
        try:
            found = self._bring(link.url, link.commit)
        except UpstreamError as error:
            raise UpstreamError(
                f"the submodule {link.path} of {shown(parent)}: {error.what}", why=error.why, fix=error.fix
            ) from error
        if not found:
            raise SourceError(
                f"a submodule commit is missing: {link.path} of {shown(parent)}",
                why=f"{shown(link.url)}\nhas no commit {link.commit}",
                fix="pin a ref whose submodules are all published, leave the submodule out, or name a mirror that has the commit",
            )
        return self._repository(link.url)

    @contextmanager
    def _tree(self, url: str, commit: str, picks: Picks = ()) -> Iterator[tuple[Repository, str]]:
        """The tree of ``commit`` with ``picks``, and a repository to read it from."""
        base = self._needed(url, commit)
        tree = base.text("rev-parse", f"{commit}^{{tree}}")
        if not picks:
            yield base, tree
            return
        others = [self._needed(pick_url, pick, parents=True) for pick_url, pick in picks]
        # What picking makes is written aside: the caches hold upstream commits only, so an abbreviation finds no other.
        with tempfile.TemporaryDirectory(prefix="tmp-", dir=self.folder) as scratch:
            bench = base.reading(Path(scratch), others)
            for pick_url, pick in picks:
                tree = pick_onto(bench, tree, shown(pick_url), pick)
            yield bench, tree

    def _links(
        self, repository: Repository, tree: str, url: str, prefix: str, without: Collection[str]
    ) -> tuple[Submodule, ...]:
        found = entries(repository, tree)
        left_out = _paths(without)
        links = [entry for entry in found if entry.mode == GITLINK and prefix + entry.name not in left_out]
        if not links:
            return ()
        urls = submodule_urls(repository, found, url)
        for entry in links:
            if entry.name not in urls:
                raise SourceError(
                    f"the submodule {prefix}{entry.name} has no URL",
                    why=f"{shown(url)} names commit {entry.sha} there, and its .gitmodules says nothing of it.",
                    fix="leave the submodule out (without), or pin a commit where upstream mended it",
                )
        return tuple(
            Submodule(prefix + entry.name, urls[entry.name], entry.sha) for entry in sorted(links, key=lambda e: e.path)
        )


def _paths(names: Collection[str]) -> frozenset[str]:
    return frozenset(name.strip("/") for name in names)
