"""The real sources of vLLM's releases: fetched by checksum, the few files that matter kept where git does not look."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import tempfile
import tomllib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from kiln.errors import KilnError
from kiln.uv import SourceDistribution, download_source, source_distribution
from kiln.vllmfiles import archive_files

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]
CACHE = PROJECT / ".kiln" / "contract"
KEPT = (
    "envs.py",
    "_aiter_ops.py",
    "platforms/rocm.py",
    "utils/import_utils.py",
    "model_executor/custom_op.py",
    "model_executor/layers/mhc.py",
    "models/deepseek_v4/cpu/model.py",
    "models/deepseek_v4/amd/*.py",
)


class ContractError(Exception):
    """The sources are not there, or not those that the table names; the message says what to do."""


@dataclass(frozen=True)
class Release:
    """A row of releases.toml: the source distribution, what is kept of it, and whether the switch is for it."""

    version: str
    file: str
    sha256: str
    size: int
    kept: str = ""
    pins: str = ""
    supported: bool = True

    @property
    def folder(self) -> Path:
        """The package ``vllm`` in the cache."""
        return CACHE / self.version / "vllm"

    @property
    def pins_folder(self) -> Path:
        """The files that pins are read from (`kiln pins derive`), as they lie in the source."""
        return CACHE / self.version / "pins"


def releases() -> list[Release]:
    """Every release of the table, the oldest first."""
    return [Release(**row) for row in tomllib.loads((HERE / "releases.toml").read_text(encoding="utf-8"))["release"]]


def cached(release: Release) -> bool:
    """Whether what is kept of a release lies in the cache, unchanged. Raises ContractError where it was changed."""
    if not (release.folder.is_dir() and release.pins_folder.is_dir()):
        return False
    for folder, wanted_sha256 in ((release.folder, release.kept), (release.pins_folder, release.pins)):
        if wanted_sha256 and (found := tree_sha256(folder)) != wanted_sha256:
            raise ContractError(
                f"{folder} has other bytes than were fetched ({found}): remove that folder, and run `make contract` again"
            )
    return True


def fetch(release: Release) -> None:
    """Download a source distribution from the index that pip is configured for, compare it, and keep what matters.

    Raises ContractError where the index has no such file or it is another one.
    """
    offered = _offered(release.version)
    if offered.sha256 != release.sha256:
        raise ContractError(
            f"the index offers {release.file} with another sha256 than releases.toml has: {offered.sha256}"
        )
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="fetch-") as name:
        archive = Path(name, "sdist.tar.gz")
        _download(offered, archive)
        if archive.stat().st_size != release.size or _sha256(archive.read_bytes()) != release.sha256:
            raise ContractError(
                f"what was downloaded as {release.file} is not the file that releases.toml names: try again"
            )
        keep(archive, Path(name, "vllm"))
        keep_pins(archive, Path(name, "pins"))
        for folder, wanted_sha256 in (("vllm", release.kept), ("pins", release.pins)):
            if wanted_sha256 and (found := tree_sha256(Path(name, folder))) != wanted_sha256:
                raise ContractError(
                    f"of {release.file} other files were kept than releases.toml says ({found}): tests/contract/sources.py was changed, or it is wrong"
                )
        shutil.rmtree(release.folder.parent, ignore_errors=True)
        release.folder.parent.mkdir()
        Path(name, "vllm").rename(release.folder)
        Path(name, "pins").rename(release.pins_folder)


def unlisted(version: str) -> Release:
    """A release that the table does not have, as the index offers it. Raises ContractError where there is no such release."""
    offered = _offered(version)
    return Release(version, offered.file, offered.sha256, offered.size)


def keep(archive: Path, folder: Path) -> None:
    """Take the files that matter out of a source distribution."""
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts[1:]
            if member.isfile() and parts[:1] == ("vllm",) and wanted("/".join(parts[1:])):
                target = folder.joinpath(*parts[1:])
                target.parent.mkdir(parents=True, exist_ok=True)
                stream = tar.extractfile(member)
                target.write_bytes(stream.read() if stream else b"")


def keep_pins(archive: Path, folder: Path) -> None:
    """Take the files that pins are read from out of a source distribution."""
    for name, data in archive_files(archive).items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def wanted(path: str) -> bool:
    """Whether a file of the package matters; ``*`` stops at a folder."""
    return any(fnmatchcase(path, one) and path.count("/") == one.count("/") for one in KEPT)


def tree_sha256(folder: Path) -> str:
    """One checksum for names and bytes of all files in a folder."""
    lines = (
        f"{path.relative_to(folder).as_posix()} {_sha256(path.read_bytes())}\n"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )
    return _sha256("".join(lines).encode())


def _offered(version: str) -> SourceDistribution:
    """The source distribution of a release, from the index that pip is configured for."""
    try:
        return source_distribution("vllm", version)
    except KilnError as error:
        raise ContractError(f"{error.what}: {error.why}") from error


def _download(offered: SourceDistribution, target: Path) -> None:
    try:
        download_source(offered, target)
    except KilnError as error:
        raise ContractError(f"{error.what}: {error.why}. Run the same command again") from error


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
