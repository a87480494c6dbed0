"""What lies between two commits of a repository, as far as it concerns who builds it: commits, build files, requirements, submodules."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from kiln.errors import SourceError, UpstreamError
from kiln.git import GitCache
from kiln.gitexport import GITLINK
from kiln.gitrun import Repository

# Of the commits between, so many are named: the newest.
SUBJECTS = 12
_NAMES = re.compile(
    r"(setup\.(py|cfg)|pyproject\.toml|\.gitmodules|CMakeLists\.txt|.*\.cmake|Dockerfile.*|Makefile|build[^/]*\.(sh|py)|MANIFEST\.in)"
)
# Whatever lies at the top of a source in one of these decides what is built, or in what.
_FOLDERS = ("docker", "cmake", "requirements")
_NOTHING = "0" * 40


@dataclass(frozen=True)
class Commits:
    """The commits that the later source has and the earlier has not (``between``), and the other way round (``left``); the subjects of
    the newest of those between. ``unknown`` says why none of it is known."""

    between: int = 0
    left: int = 0
    subjects: tuple[str, ...] = ()
    unknown: str = ""


@dataclass(frozen=True)
class Touched:
    """A build file that differs, with its lines added and removed (None: it is no text), and the requirements in it that came and went."""

    path: str
    added: int | None
    removed: int | None
    came: tuple[str, ...] = ()
    went: tuple[str, ...] = ()


@dataclass(frozen=True)
class Relinked:
    """A submodule whose commit differs; an empty one is a submodule that is not there."""

    path: str
    was: str
    now: str


@dataclass(frozen=True)
class SourceChange:
    """What differs between two commits of a repository; ``other`` is how many files differ that decide nothing of how it is built."""

    commits: Commits
    files: tuple[Touched, ...] = ()
    submodules: tuple[Relinked, ...] = ()
    other: int = 0


def compare(cache: GitCache, url: str, before: str, after: str) -> SourceChange:
    """What differs between two commits. Raises SourceError where one is not there, UpstreamError where nobody answers.

    A history that cannot be had is no error: the files are compared all the same.
    """
    try:
        commits = _commits(cache.history_of(url, before, after), before, after)
    except (SourceError, UpstreamError) as error:
        commits = Commits(unknown=error.why.splitlines()[-1] if error.why else error.what)
    repository = cache.source_of(url, before, after)
    found = _differences(repository, before, after)
    submodules = tuple(
        Relinked(path, was if was_mode == GITLINK else "", now if now_mode == GITLINK else "")
        for path, (was_mode, was, now_mode, now) in found.items()
        if GITLINK in (was_mode, now_mode)
    )
    built = [path for path in found if is_build_file(path)]
    lines = _lines(repository, before, after, built)
    files = []
    for path in built:
        _, was, _, now = found[path]
        old, new = (requirement_lines(path, _blob(repository, sha)) for sha in (was, now))
        came, went = (tuple(line for line in one if line not in other) for one, other in ((new, old), (old, new)))
        files.append(Touched(path, *lines.get(path, (None, None)), came, went))
    return SourceChange(commits, tuple(files), submodules, len(found) - len(built) - len(submodules))


def is_build_file(path: str) -> bool:
    """Whether a file of a source, by its path, says how the source is built or what it wants. What CI systems read is not of them."""
    parts = PurePosixPath(path).parts
    if any(part.startswith(".") for part in parts[:-1]):
        return False
    named = _NAMES.fullmatch(parts[-1]) or re.fullmatch(r"(.*[-_])?requirements.*\.(txt|in)", parts[-1])
    return bool(named) or (len(parts) > 1 and parts[0] in _FOLDERS)


def requirement_lines(path: str, data: bytes) -> tuple[str, ...]:
    """The requirements in a requirements file or a pyproject.toml, without comments; of any other file none.

    What a setup.py requires is known when it runs, so its lines are counted and not read.
    """
    name, text = PurePosixPath(path).name, data.decode(errors="replace")
    if name == "pyproject.toml":
        try:
            table = tomllib.loads(text)
            wanted = [
                *table.get("build-system", {}).get("requires", ()),
                *table.get("project", {}).get("dependencies", ()),
            ]
        except (ValueError, TypeError, AttributeError, RecursionError):
            return ()
        return tuple(dict.fromkeys(plain(one) for one in wanted if isinstance(one, str)))
    if name.endswith((".txt", ".in")) and "requirements" in path:
        lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines())
        return tuple(dict.fromkeys(plain(line) for line in lines if line))
    return ()


def plain(text: str) -> str:
    """Somebody else's text in one line, with nothing in it that a terminal would act on."""
    return "".join(sign if sign.isprintable() else " " for sign in text).strip()


def _commits(history: Repository, before: str, after: str) -> Commits:
    roots = set(history.text("rev-list", "--max-parents=0", before, after).split())
    if not history.cut_off().isdisjoint(roots):
        return Commits(unknown="the history that the upstream (or its mirror) has is cut off")
    left, between = history.text("rev-list", "--left-right", "--count", f"{before}...{after}").split()
    said = history.text("log", f"--max-count={SUBJECTS}", "--format=%s", f"{before}..{after}").splitlines()
    return Commits(int(between), int(left), tuple(map(plain, said)))


def _differences(repository: Repository, before: str, after: str) -> dict[str, tuple[str, str, str, str]]:
    """Every path that differs: mode and id before, mode and id after."""
    words = iter(
        repository.text("diff-tree", "-r", "-z", "--raw", "--no-abbrev", "--no-renames", before, after).split("\0")
    )
    found = {}
    for described, path in zip(words, words, strict=False):
        was_mode, now_mode, was, now, _ = described.removeprefix(":").split()
        found[path] = (was_mode, was, now_mode, now)
    return found


def _lines(
    repository: Repository, before: str, after: str, paths: Iterable[str]
) -> dict[str, tuple[int | None, int | None]]:
    """Of each path the lines added and removed."""
    wanted = list(paths)
    if not wanted:
        return {}
    said = repository.text("diff-tree", "-r", "-z", "--numstat", "--no-renames", before, after, "--", *wanted)
    found: dict[str, tuple[int | None, int | None]] = {}
    for line in said.split("\0"):
        if line:
            added, removed, path = line.split("\t", 2)
            found[path] = (int(added), int(removed)) if added != "-" else (None, None)
    return found


def _blob(repository: Repository, sha: str) -> bytes:
    return b"" if sha == _NOTHING or repository.kind(sha) != "blob" else repository.read("cat-file", "blob", sha)
