"""The real sources of vLLM's releases: fetched by checksum, the few files that matter kept where git does not look."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import tempfile
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import requests

from kiln.process import run
from kiln.uv import _as_pip_is_configured, _uv

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
    supported: bool = True

    @property
    def folder(self) -> Path:
        """The package ``vllm`` in the cache."""
        return CACHE / self.version / "vllm"


def releases() -> list[Release]:
    """Every release of the table, the oldest first."""
    return [Release(**row) for row in tomllib.loads((HERE / "releases.toml").read_text(encoding="utf-8"))["release"]]


def cached(release: Release) -> bool:
    """Whether what is kept of a release lies in the cache, unchanged. Raises ContractError where it was changed."""
    if not release.folder.is_dir():
        return False
    if release.kept and (found := tree_sha256(release.folder)) != release.kept:
        raise ContractError(
            f"{release.folder} has other bytes than were fetched ({found}): remove that folder, and run `make contract` again"
        )
    return True


def fetch(release: Release) -> None:
    """Download a source distribution from the index that pip is configured for, compare it, and keep what matters.

    Raises ContractError where the index has no such file or it is another one.
    """
    offered = _offered(release.version)
    if offered["hashes"]["sha256"] != release.sha256:
        raise ContractError(
            f"the index offers {release.file} with another sha256 than releases.toml has: {offered['hashes']['sha256']}"
        )
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="fetch-") as name:
        archive = Path(name, "sdist.tar.gz")
        _download(offered["url"], archive)
        if archive.stat().st_size != release.size or _sha256(archive.read_bytes()) != release.sha256:
            raise ContractError(
                f"what was downloaded as {release.file} is not the file that releases.toml names: try again"
            )
        keep(archive, Path(name, "vllm"))
        if release.kept and (found := tree_sha256(Path(name, "vllm"))) != release.kept:
            raise ContractError(
                f"of {release.file} other files were kept than releases.toml says ({found}): tests/contract/sources.py was changed, or it is wrong"
            )
        shutil.rmtree(release.folder.parent, ignore_errors=True)
        release.folder.parent.mkdir()
        Path(name, "vllm").rename(release.folder)


def unlisted(version: str) -> Release:
    """A release that the table does not have, as the index offers it. Raises ContractError where there is no such release."""
    offered = _offered(version)
    return Release(version, offered["url"].rpartition("/")[2], offered["hashes"]["sha256"], offered["size"])


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


def wanted(path: str) -> bool:
    """Whether a file of the package matters; ``*`` stops at a folder."""
    return any(fnmatchcase(path, one) and path.count("/") == one.count("/") for one in KEPT)


def tree_sha256(folder: Path) -> str:
    """One checksum for names and bytes of all files in a folder."""
    lines = (
        f"{path.relative_to(folder).as_posix()} {_sha256(path.read_bytes())}\n" for path in sorted(folder.rglob("*.py"))
    )
    return _sha256("".join(lines).encode())


def _offered(version: str) -> dict[str, Any]:
    """The source distribution of a release as uv finds it, with pip's configuration."""
    options, environment = _as_pip_is_configured()
    with tempfile.TemporaryDirectory(prefix="kiln-contract-") as name:
        Path(name, "wanted.in").write_text(f"vllm=={version}\n", encoding="utf-8")
        uv: Iterable[str] = (
            "pip",
            "compile",
            "--quiet",
            "--no-config",
            "--no-progress",
            "--color=never",
            "--no-deps",
            "--format=pylock.toml",
        )
        target = ("--python-version=3.12", "--python-platform=x86_64-unknown-linux-gnu", "--output-file=pylock.toml")
        done = run([_uv(), *uv, *target, *options, "wanted.in"], env=environment, cwd=Path(name), timeout=600)
        if done.code != 0:
            raise ContractError(
                f"the index that pip is configured for has no vLLM {version}, or does not answer: {done.tail(3)}"
            )
        (package,) = tomllib.loads(Path(name, "pylock.toml").read_text(encoding="utf-8"))["packages"]
    if "sdist" not in package:
        raise ContractError(f"vLLM {version} has no source distribution on the index")
    return dict(package["sdist"])


def _download(url: str, target: Path) -> None:
    environment = _as_pip_is_configured()[1]
    try:
        with (
            requests.get(url, stream=True, timeout=180, verify=environment.get("SSL_CERT_FILE", True)) as answer,
            target.open("wb") as out,
        ):
            answer.raise_for_status()
            for part in answer.iter_content(1 << 20):
                out.write(part)
    except requests.RequestException as error:
        raise ContractError(
            f"a source distribution could not be downloaded: {type(error).__name__}. Run the same command again"
        ) from error


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
