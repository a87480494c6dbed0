"""What Kiln works out itself about a git source: near names of a ref, URLs of submodules, a commit picked onto a tree."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from packaging.version import Version

from kiln.errors import HostError, SourceError
from kiln.gitexport import Entry
from kiln.gitrun import Repository, shown

_NEAR = 5
# Whoever and whenever: a made commit only carries a tree to the merge, and nobody ever sees it.
_NOBODY = (
    ("GIT_AUTHOR_NAME", "kiln"), ("GIT_AUTHOR_EMAIL", "kiln"), ("GIT_AUTHOR_DATE", "@0 +0000"),
    ("GIT_COMMITTER_NAME", "kiln"), ("GIT_COMMITTER_EMAIL", "kiln"), ("GIT_COMMITTER_DATE", "@0 +0000"),
)  # fmt: skip


def near_names(ref: str, names: Sequence[str]) -> list[str]:
    """Up to five of ``names`` that somebody who wrote ``ref`` may have meant, the likeliest first."""
    swapped = [name for name in names if sorted(name) == sorted(ref)]
    alike = difflib.get_close_matches(ref, names, n=_NEAR)
    found = dict.fromkeys([*_same_version(ref, names), *swapped, *_neighbours(ref, names), *alike])
    return list(found)[:_NEAR]


def _version(name: str) -> Version | None:
    digits = re.search(r"\d.*", name)
    try:
        return Version(digits[0]) if digits else None
    except ValueError:
        return None


def _versions(names: Sequence[str]) -> list[tuple[Version, str]]:
    found = ((_version(name), name) for name in names)
    return sorted((version, name) for version, name in found if version is not None)


def _same_version(ref: str, names: Sequence[str]) -> list[str]:
    wanted = _version(ref)
    same = [name for version, name in _versions(names) if wanted is not None and version == wanted]
    return sorted(same, key=lambda name: -difflib.SequenceMatcher(None, ref, name).ratio())


def _neighbours(ref: str, names: Sequence[str]) -> list[str]:
    """The versions just below and just above, from those that are written with the same words around them."""
    wanted, shape = _version(ref), re.sub(r"\d.*", "", ref)
    if wanted is None:
        return []
    known = _versions([name for name in names if re.sub(r"\d.*", "", name) == shape])
    below = [name for version, name in known if version < wanted]
    above = [name for version, name in known if version > wanted]
    return [*below[-1:], *above[:1]]


def submodule_urls(repository: Repository, found: Sequence[Entry], parent: str) -> dict[str, str]:
    """Path to absolute URL, as the .gitmodules among ``found`` has them; ``parent`` is what relative ones start from."""
    modules = [entry for entry in found if entry.path == b".gitmodules" and entry.mode.startswith("100")]
    if not modules:
        return {}
    answer = repository.ask("config", "--blob", modules[0].sha, "--list", "-z")
    if answer.code != 0:
        raise SourceError(
            f"the .gitmodules of {shown(parent)} cannot be read", why=answer.why, fix="pin another commit"
        )
    said: dict[str, dict[str, str]] = {}
    for item in answer.out.decode("utf-8", "surrogateescape").split("\0"):
        key, _, value = item.partition("\n")
        if key.startswith("submodule."):
            name, _, what = key.removeprefix("submodule.").rpartition(".")
            said.setdefault(name, {})[what] = value
    return {
        one["path"].strip("/"): absolute_url(one["url"], parent)
        for one in said.values()
        if one.get("path") and one.get("url")
    }


def absolute_url(url: str, parent: str) -> str:
    """A submodule's URL made absolute, and ssh made https: a build reads, and needs nobody's key for what is public."""
    if url.startswith(("./", "../")):
        return _relative(url, parent)
    if "://" not in url and (ssh := re.fullmatch(r"(?:[^@/]+@)?([^:/]+):(?![/:])(.+)", url)):
        return f"https://{ssh[1]}/{ssh[2]}"
    parts = urlsplit(url)
    if parts.scheme in ("ssh", "git") and parts.hostname:
        return f"https://{parts.hostname}{parts.path}"
    # A commit must not make us read folders of this machine, unless it came from one itself.
    if parts.scheme not in ("http", "https") and not _is_local(parent):
        raise SourceError(
            f"a submodule of {shown(parent)} has a URL that is not read: {url!r}",
            why="Submodules are read over https, or from an address relative to their parent's.",
            fix="leave the submodule out (without), or pin another commit",
        )
    return url


def _is_local(url: str) -> bool:
    return url.startswith(("/", ".", "file:"))


def _relative(url: str, parent: str) -> str:
    scheme, found, rest = parent.rpartition("://")
    base, words = rest.rstrip("/").split("/"), url.split("/")
    while words and words[0] in (".", ".."):
        # The host is the first word of a URL, and nothing lies above it.
        if words.pop(0) == ".." and len(base) > 1:
            base.pop()
    return scheme + found + "/".join([*base, *(word for word in words if word)])


def pick_onto(repository: Repository, tree: str, url: str, pick: str) -> str:
    """The tree that results from applying what ``pick`` (a commit that ``repository`` sees) changed onto ``tree``."""
    raw = repository.read("cat-file", "commit", pick).decode("utf-8", "replace")
    parents = re.findall(r"^parent ([0-9a-f]{40})$", raw.partition("\n\n")[0], re.MULTILINE)
    if len(parents) > 1:
        raise SourceError(
            f"the pick {pick} of {url} is a merge",
            why="What a merge changed depends on which parent it is compared with.",
            fix="pick the commits that it merged, one by one",
        )
    before = f"{parents[0]}^{{tree}}" if parents else repository.text("mktree")
    nobody = Repository(repository.folder, (*repository.extra, *_NOBODY))

    def commit(of: str, *parent: str) -> str:
        words = [word for name in parent for word in ("-p", name)]
        return nobody.text("commit-tree", nobody.text("rev-parse", of), *words)

    # Commits made for the purpose, for `merge-tree --merge-base` is younger (git 2.40) than what Debian 12 has.
    common = commit(before)
    ours, theirs = commit(tree, common), commit(f"{pick}^{{tree}}", common)
    answer = nobody.ask("merge-tree", "--write-tree", "-z", "--name-only", "--no-messages", ours, theirs)
    if answer.code not in (0, 1) or not re.match(rb"[0-9a-f]{40}\0", answer.out):
        raise HostError(
            "git could not apply a pick",
            why=f"{pick} of {url}: {answer.why}",
            fix="git 2.38 or newer is needed (`git --version`)",
        )
    made, *files = answer.out.decode("utf-8", "surrogateescape").split("\0")
    if answer.code == 1:
        named = sorted({name for name in files if name})
        raise SourceError(
            f"the pick {pick} of {url} does not apply",
            why="\n".join(["conflicts in:", *(f"  {ascii(n) if not n.isprintable() else n}" for n in named)]),
            fix="pick what it builds on before it, or a version of it that was made for this commit",
        )
    return made
