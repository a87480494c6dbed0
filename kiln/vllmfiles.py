"""The files of a vLLM revision that its pins are read from: out of git, or out of the release's source distribution, or out of a folder."""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.parser import BytesHeaderParser
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from kiln.errors import UpstreamError, UsageError
from kiln.git import GitCache
from kiln.store import Store
from kiln.uv import download_source, source_distribution

UPSTREAM = "https://github.com/vllm-project/vllm"
KERNELS_FILE = "cmake/external_projects/triton_kernels.cmake"
WANTED = (
    "docker/Dockerfile.rocm*",
    "requirements/*.txt",
    "requirements/build/*.txt",
    "pyproject.toml",
    KERNELS_FILE,
    "PKG-INFO",
)
REACH_SECONDS = 5.0
_TAG = re.compile(r"v(\d+(\.\d+)+(\.?(post|rc)\d+)?)")
# The largest of them has 50 kB.
_LARGEST = 4 << 20
Read = Callable[[str], bytes | None]


@dataclass(frozen=True)
class Revision:
    """A vLLM revision: where it is from, what it is called, and its files.

    ``origin`` says what was read, ``instead`` why it was not the repository. ``commit`` and ``released`` (a time in UTC) are "" where that does not say.
    """

    git: str
    ref: str
    version: str
    commit: str
    released: str
    origin: str
    read: Read
    instead: str = ""


def revision_of(ref: str, git: GitCache, store: Store) -> Revision:
    """The revision ``REF`` (or ``URL@REF``) out of git; where its host is not reached, a release's files out of its source distribution.

    Raises UsageError for what is neither, RefNotFoundError, UpstreamError where neither is there, HashMismatchError.
    """
    url, name = _named(ref)
    silent = git.reachable(url, REACH_SECONDS)
    if not silent:
        commit = git.resolve(url, name)
        tagged = _TAG.fullmatch(name)
        return Revision(
            url,
            name if tagged else commit,
            tagged[1] if tagged else "",
            commit,
            git.date(url, commit),
            f"the repository {url} at {commit}",
            lambda path: git.file_at(url, commit, path),
        )
    tagged = _TAG.fullmatch(name)
    if url != UPSTREAM or not tagged:
        raise UpstreamError(
            f"{url} is not reached, and {name} is no release of vLLM's own whose source distribution could be read instead",
            why=silent,
            fix="name a mirror (docs/mirrors.md), or give the files: --source FOLDER, --source FILE.tar.gz",
        )
    offered = source_distribution("vllm", tagged[1])
    if not store.path(offered.sha256).is_file():
        with store.scratch() as scratch:
            download_source(offered, scratch / "sdist")
            size = offered.size or (scratch / "sdist").stat().st_size
            store.add(scratch / "sdist", sha256=offered.sha256, size=size, label=offered.file, origin=offered.url)
    files = archive_files(store.check(offered.sha256, offered.file))
    origin = f"the source distribution {offered.file} (sha256 {offered.sha256})"
    instead = f"the repository is not reached: {why_silent(silent)}"
    return Revision(url, name, tagged[1], "", offered.uploaded, origin, files.get, instead)


def given_revision(source: Path, ref: str) -> Revision:
    """The revision whose files lie in a folder or in a source distribution. ``ref`` is what it is called, "" for what its PKG-INFO says.

    Raises UsageError where that is no vLLM, or says no version and no ``ref`` does.
    """
    if source.is_dir():
        files = {path: (source / path).read_bytes() for path in _folder_files(source)}
    elif source.is_file():
        files = archive_files(source)
    else:
        raise UsageError(f"{source} does not exist", fix="give --source a folder or a source distribution (.tar.gz)")
    if "pyproject.toml" not in files:
        raise UsageError(f"{source} holds no source of vLLM", why="It has no pyproject.toml.", fix="unpack it anew")
    url, name = _named(ref) if ref else (UPSTREAM, "")
    version = BytesHeaderParser().parsebytes(files.get("PKG-INFO", b"")).get("Version", "")
    if not version and not name:
        raise UsageError(
            f"{source} does not say which vLLM it is",
            why="It has no PKG-INFO, which source distributions have.",
            fix="name the revision as well: --vllm v0.29.0, or --vllm URL@COMMIT",
        )
    tagged = _TAG.fullmatch(name)
    if version and tagged and tagged[1] != version:
        raise UsageError(f"{source} is vLLM {version}, not {name}", fix="correct --vllm or --source")
    version = version or (tagged[1] if tagged else "")
    return Revision(url, name or f"v{version}", version, "", "", f"{source.name}, as it was given", files.get)


def _named(ref: str) -> tuple[str, str]:
    """Repository and ref of ``REF`` or ``URL@REF``. Raises UsageError."""
    url, at, name = ref.rpartition("@")
    if not name or (at and not url.startswith("https://")):
        raise UsageError(
            f"--vllm {ref}: this is neither REF nor URL@REF with an https URL",
            fix="write v0.29.0, or https://github.com/OWNER/vllm@COMMIT; mirrors and local clones go into kiln.toml (docs/mirrors.md)",
        )
    return url or UPSTREAM, name


def why_silent(answer: str) -> str:
    """git's words for why a host is silent, without the one repository that was asked for."""
    return re.sub(r"^fatal: unable to access '[^']*': ", "", answer)


def archive_files(path: Path) -> dict[str, bytes]:
    """The files that matter of a source distribution, by their path in it. Raises UsageError where it is none."""
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                name = "/".join(PurePosixPath(member.name).parts[1:])
                stream = (
                    tar.extractfile(member) if member.isfile() and member.size <= _LARGEST and wanted(name) else None
                )
                if stream:
                    files[name] = stream.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UsageError(
            f"{path.name} is no source distribution", why=str(error), fix="give a .tar.gz, whole"
        ) from error
    return files


def wanted(path: str) -> bool:
    """Whether pins are read from a file of the source; ``*`` stops at a folder."""
    return any(fnmatchcase(path, one) and path.count("/") == one.count("/") for one in WANTED)


def _folder_files(folder: Path) -> Iterator[str]:
    for pattern in WANTED:
        for path in folder.glob(pattern):
            if path.is_file():
                yield path.relative_to(folder).as_posix()
