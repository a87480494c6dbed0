"""The one site-configuration file, ``kiln.toml``, and the environment: where this site reads what upstreams publish.

What stands here decides where bytes come from, never which bytes: pins and locks name upstream addresses, and every byte is
compared with what the lock names wherever it came from.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kiln.errors import PinsError, UsageError
from kiln.tomlread import Problems, read_table
from kiln.workspace import Workspace

CONFIG_FILE = "kiln.toml"
_MANUAL = "docs/mirrors.md"
_CACHE_MANUAL = "docs/cache.md"
_SCALE_MANUAL = "docs/scale.md"
# The engine, where builders are named.
ENGINE_BUILDER = "default"


@dataclass(frozen=True)
class Config:
    """What a site sets: mirrors (prefix and replacement, longest prefix first), apt sources (suite and absolute path), the repository
    (host/name) in which components are kept, with whether every build is pushed there, and the builders (names with commas between them)."""

    mirrors: tuple[tuple[str, str], ...] = ()
    apt_sources: tuple[tuple[str, str], ...] = ()
    cache: str = ""
    cache_push: bool = False
    builder: str = ""

    def mirrored(self, url: str) -> str:
        """``url`` (of a repository, a file or an image) with the longest matching prefix replaced, or unchanged.

        A prefix matches whole path components only. A trailing slash or ``.git`` makes no difference to the match.
        """
        for prefix, replacement in self.mirrors:
            rest = _rest(url, prefix)
            if rest is None or ".." in rest.split("/"):
                continue
            if not _is_local(replacement):
                return replacement if rest in ("", ".git") else replacement.rstrip("/") + rest
            found = _local(Path(replacement), rest)
            if found is not None:
                return found
        return url


def without_git(url: str) -> str:
    """``url`` without a trailing slash and ``.git``: two spellings of one repository become one."""
    return url.rstrip("/").removesuffix(".git").rstrip("/")


def read_config(workspace: Workspace, environ: Mapping[str, str] | None = None) -> Config:
    """The settings of this site: ``kiln.toml`` in the project (or the file that ``KILN_CONFIG`` names), ``KILN_MIRRORS``, ``KILN_CACHE``, ``KILN_BUILDER``.

    Raises PinsError naming every problem of the file, UsageError where the environment is wrong.
    """
    environ = os.environ if environ is None else environ
    named = environ.get("KILN_CONFIG")
    path = Path(named).expanduser().absolute() if named else workspace.root / CONFIG_FILE
    if named and not path.is_file():
        raise UsageError(f"KILN_CONFIG names {named}, which is not a file", fix=f"correct or unset it; see {_MANUAL}")
    read = _read_file(path, workspace.shown(path)) if path.is_file() else Config()
    mirrors, cache = dict(read.mirrors), environ.get("KILN_CACHE")
    if cache and (wrong := no_repository(cache)):
        raise UsageError(f"KILN_CACHE names {cache!r}, which {wrong}", fix=f"correct or unset it; see {_CACHE_MANUAL}")
    builder = environ.get("KILN_BUILDER")
    if builder and (wrong := no_builders(builder)):
        raise UsageError(
            f"KILN_BUILDER names {builder!r}, which {wrong}", fix=f"correct or unset it; see {_SCALE_MANUAL}"
        )
    mirrors |= _from_environment(environ.get("KILN_MIRRORS", ""), path.parent)
    return Config(
        tuple(sorted(mirrors.items(), key=lambda item: (-len(item[0]), item[0]))),
        tuple(sorted(read.apt_sources)),
        # Set and empty, it switches the cache off.
        read.cache if cache is None else cache,
        read.cache_push,
        read.builder if builder is None else builder,
    )


def _read_file(path: Path, shown: str) -> Config:
    problems = Problems(shown)
    mirrors: dict[str, str] = {}
    apt_sources: dict[str, str] = {}
    try:
        table = read_table(path, shown, problems)
        for prefix, replacement in table.strings("mirrors").items():
            where = f'mirrors."{prefix}"'
            # What is not a string was noted, and reads as "".
            if wrong := _wrong(prefix, replacement):
                problems.add(where, wrong)
            elif without_git(prefix) in mirrors:
                problems.add(where, "stands for the same as another key (a trailing / or .git makes no difference)")
            else:
                mirrors[without_git(prefix)] = _placed(prefix, replacement, path.parent)
        for suite, source in table.strings("apt-sources").items():
            if not source:
                problems.add(f"apt-sources.{suite}", "is empty; give the path of a deb822 sources file")
            apt_sources[suite] = str(_absolute(source, path.parent))
        cached = table.table("cache", required=False)
        cache = cached.text("registry", "", check=no_repository)
        push = cached.flag("push")
        if push and not cache:
            problems.add("cache.push", "there is no registry to push to; give cache.registry")
        cached.done()
        building = table.table("build", required=False)
        builder = building.text("builder", "", check=no_builders)
        building.done()
        table.done()
        problems.raise_if_any()
    except PinsError as error:
        raise PinsError(error.what, why=error.why, fix=f"edit {shown}; the format is described in {_MANUAL}") from error
    return Config(tuple(mirrors.items()), tuple(apt_sources.items()), cache, push, builder)


def no_repository(text: str) -> str | None:
    """What is wrong with the address of a repository, or None."""
    if re.fullmatch(r"[\w.-]+(:\d+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+", text):
        return None
    return "is no repository; give host/name, without a scheme, a tag or a digest"


def no_builders(text: str) -> str | None:
    """What is wrong with a list of builders' names, or None."""
    if re.fullmatch(r"[A-Za-z0-9][\w.+-]*( *, *[A-Za-z0-9][\w.+-]*)*", text):
        return None
    return "is no list of builders; give names as `docker buildx ls` has them, with commas between them"


def _from_environment(text: str, folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in text.split():
        prefix, equals, replacement = pair.partition("=")
        wrong = _wrong(prefix, replacement) if equals else "it has no ="
        if wrong:
            raise UsageError(
                f"KILN_MIRRORS holds {pair!r}, which is not prefix=replacement",
                why=wrong,
                fix=f"give pairs separated by blanks or line ends; see {_MANUAL}",
            )
        found[without_git(prefix)] = _placed(prefix, replacement, folder)
    return found


def _wrong(prefix: str, replacement: str) -> str:
    if not without_git(prefix) or without_git(prefix).endswith(":"):
        return "the prefix is empty: everything would match"
    if any(character.isspace() for character in prefix):
        return "the prefix holds a blank"
    return "" if replacement.strip() else "the replacement is empty; give an address or a folder"


def _placed(prefix: str, replacement: str, folder: Path) -> str:
    """The replacement, absolute where it is a path of this machine."""
    replacement = replacement.strip()
    # An image prefix has no scheme either, so behind one only what cannot be a registry is a path.
    is_path = "://" not in replacement and not _is_scp(replacement) if "://" in prefix else False
    if is_path or replacement.startswith(("/", "~", ".")):
        return str(_absolute(replacement, folder))
    return replacement


def _absolute(path: str, folder: Path) -> Path:
    # Normalised by hand: resolve() would follow symbolic links, and a person wants to see the path that was written.
    return Path(os.path.normpath(folder / Path(path).expanduser()))


def _is_scp(address: str) -> bool:
    """Whether this is ssh's short form, ``user@host:path``."""
    host, colon, _ = address.partition(":")
    return bool(colon) and "@" in host and "/" not in host


def _is_local(replacement: str) -> bool:
    return replacement.startswith("/")


def _rest(url: str, prefix: str) -> str | None:
    """What follows ``prefix`` in ``url``, or None where it does not match at a boundary."""
    plain = without_git(prefix)
    if without_git(url) == plain:
        return ""
    if not plain or not url.startswith(plain):
        return None
    rest = url[len(plain) :]
    # An image's name ends at its tag or digest. In a URL, or right behind a host, a colon begins a port.
    ends = ("/", ":", "@") if "://" not in plain and "/" in plain else ("/",)
    return rest if rest.startswith(ends) else None


def _local(folder: Path, rest: str) -> str | None:
    """The path below a local mirror, or None where the mirror is a single repository and more than that is asked for."""
    inside = without_git(rest).strip("/")
    if not inside:
        return str(folder)
    if _is_repository(folder):
        return None
    path = folder / inside
    bare = path.with_name(path.name + ".git")
    return str(bare if bare.exists() and not path.exists() else path)


def _is_repository(folder: Path) -> bool:
    return (folder / ".git").exists() or ((folder / "HEAD").is_file() and (folder / "objects").is_dir())
