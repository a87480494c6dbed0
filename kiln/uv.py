"""Resolving wheels for another Python than the one that Kiln runs on, with uv.

pip judges environment markers for the Python that it runs on; uv judges them for the Python that it is told. It does not read pip's
configuration, so what that says of indexes, certificates and find-links is handed to it here: mirrors are set in one place.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import sysconfig
import tempfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import requests
from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

from kiln.errors import FetchError, ResolveError
from kiln.lockentries import Wheel
from kiln.pins import Pins
from kiln.process import run


def resolve_for(
    pins: Pins,
    requirements: Sequence[str],
    *,
    absent: Iterable[str] = (),
    constraints: Sequence[str] = (),
    as_of: str = "",
) -> dict[str, Wheel]:
    """The wheels that ``requirements`` resolve to on the stack's Python and glibc, by canonical name; no component is set in them yet.

    ``absent`` are distributions that nobody may resolve: they are built from source. Wheels that appeared after ``as_of`` (a time in UTC) are
    passed over. A wheel whose size its index does not say has size 0.
    Raises ResolveError with uv's own words.
    """
    # A requirement under a marker that never holds: uv takes it in the place of every other one of that name.
    never = [f"{one} ; sys_platform == 'never'" for one in sorted(absent)]
    packages = _compiled(pins, requirements, _dated(requirements, as_of), constraints, never)
    order = {tag: rank for rank, tag in enumerate(wheel_tags(pins))}
    return {wheel.name: wheel for wheel in (_best_wheel(package, order) for package in packages)}


def offered_files(pins: Pins, wheels: Sequence[Wheel], index: str = "") -> dict[str, dict[str, str]]:
    """What the indexes have now of exactly these versions: by canonical name, the wheels' file names and the sha256 of each.

    Each distribution may be there once; ``index`` is asked beside pip's. Raises ResolveError with uv's own words, also where one version is gone.
    """
    options = ["--no-deps", "--no-cache", *([f"--index={index}"] if index else [])]
    packages = _compiled(pins, [f"{wheel.name}=={wheel.version}" for wheel in wheels], options)
    return {
        str(canonicalize_name(package["name"])): {
            _file(item): item.get("hashes", {}).get("sha256", "") for item in package.get("wheels", [])
        }
        for package in packages
    }


def _compiled(
    pins: Pins,
    requirements: Sequence[str],
    extra: Sequence[str],
    constraints: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """The packages of the lock file (PEP 751) that uv makes of requirements for the stack's Python and glibc. Raises ResolveError."""
    return _pylock(
        {"wanted.in": requirements, "constraints.txt": constraints, "absent.txt": overrides},
        [
            *("--only-binary=:all:", "--index-strategy=unsafe-best-match"),
            f"--python-version={pins.python}",
            f"--python-platform=x86_64-manylinux_{pins.glibc.replace('.', '_')}",
            *extra,
            *("--override=absent.txt", "--constraint=constraints.txt"),
        ],
        "uv found no set of wheels for the pins",
    )


def _pylock(files: Mapping[str, Sequence[str]], extra: Sequence[str], failed: str) -> list[dict[str, Any]]:
    """The packages of the lock file that uv makes of ``wanted.in``, one of ``files``. Raises ResolveError with what ``failed`` says and uv's own words."""
    with tempfile.TemporaryDirectory(prefix="kiln-uv-") as name:
        folder = Path(name)
        for file, lines in files.items():
            (folder / file).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        options, environment = _as_pip_is_configured()
        done = run(
            [
                _uv(),
                *("pip", "compile", "--quiet", "--no-config", "--no-progress", "--color=never", "--format=pylock.toml"),
                *extra,
                "--output-file=pylock.toml",
                *options,
                "wanted.in",
            ],
            env=environment,
            cwd=folder,
            timeout=1800,
        )
        if done.code != 0:
            raise ResolveError(
                failed,
                why=done.tail(20),
                fix="correct the pins, or the index that pip is configured for (`pip config list`)",
            )
        found: list[dict[str, Any]] = tomllib.loads((folder / "pylock.toml").read_text(encoding="utf-8")).get(
            "packages", []
        )
        return found


def install_locked(requirements: Path, target: Path, *, python: str, glibc: str) -> None:
    """Install a file of wheels with their hashes into a folder, for another Python than this one. Raises ResolveError with uv's own words."""
    options, environment = _as_pip_is_configured()
    done = run(
        [
            _uv(),
            *("pip", "install", "--quiet", "--no-config", "--no-progress", "--color=never", "--no-deps"),
            *("--only-binary=:all:", "--require-hashes", "--index-strategy=unsafe-best-match", "--link-mode=copy"),
            f"--python-version={python}",
            f"--python-platform=x86_64-manylinux_{glibc.replace('.', '_')}",
            f"--target={target}",
            f"--requirements={requirements}",
            *options,
        ],
        env=environment,
        timeout=1800,
    )
    if done.code != 0:
        raise ResolveError(
            f"the wheels of {requirements.name} could not be installed",
            why=done.tail(20),
            fix="see what pip is configured for (`pip config list`), and run the same command again",
        )


@dataclass(frozen=True)
class SourceDistribution:
    """A release's source distribution, as an index offers it; ``uploaded`` is when (UTC), "" where the index does not say."""

    file: str
    url: str
    sha256: str
    size: int
    uploaded: str


def source_distribution(name: str, version: str) -> SourceDistribution:
    """The source distribution of a release, from the index that pip is configured for. Raises ResolveError where it has none."""
    (package,) = _pylock(
        {"wanted.in": [f"{name}=={version}"]},
        ["--no-deps", "--python-version=3.12", "--python-platform=x86_64-unknown-linux-gnu"],
        f"the index that pip is configured for has no {name} {version}, or does not answer",
    )
    offered = package.get("sdist")
    if not offered or "sha256" not in offered.get("hashes", {}):
        raise ResolveError(f"the index has no source distribution with a sha256 of {name} {version}")
    uploaded = offered.get("upload-time")
    return SourceDistribution(
        file=unquote(str(offered["url"]).split("#")[0].rsplit("/", 1)[-1]),
        url=offered["url"],
        sha256=offered["hashes"]["sha256"],
        size=int(offered.get("size", 0)),
        uploaded=uploaded.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if isinstance(uploaded, datetime) else "",
    )


def download_source(offered: SourceDistribution, target: Path) -> None:
    """Bring a source distribution, with the certificates that pip is configured for. What comes is for the caller to compare. Raises FetchError."""
    address = urlsplit(offered.url)
    if address.scheme == "file":
        # A folder that pip is configured for (find-links) is an index too.
        shutil.copyfile(unquote(address.path), target)
        return
    environment = _as_pip_is_configured()[1]
    try:
        verify = environment.get("SSL_CERT_FILE", True)
        with requests.get(offered.url, stream=True, timeout=(10, 180), verify=verify) as answer:
            answer.raise_for_status()
            with target.open("wb") as out:
                for part in answer.iter_content(1 << 20):
                    out.write(part)
    except requests.RequestException as error:
        raise FetchError(f"{offered.file} could not be downloaded", why=type(error).__name__) from error


def _dated(requirements: Sequence[str], as_of: str) -> list[str]:
    """uv's options that pass over what appeared after ``as_of``, but for what is asked for by an exact version: somebody chose that."""
    if not as_of:
        return []
    exact = [parsed.name for parsed in map(Requirement, requirements) if str(parsed.specifier).startswith("==")]
    return [f"--exclude-newer={as_of}", *(f"--exclude-newer-package={name}=2999-01-01T00:00:00Z" for name in exact)]


def wheel_tags(pins: Pins) -> list[Tag]:
    """The tags of wheels that fit the stack's Python and glibc, the best first (PEP 425, PEP 600)."""
    major, newest = (int(part) for part in pins.glibc.split("."))
    platforms = [f"manylinux_{major}_{minor}_x86_64" for minor in range(newest, 4, -1)]
    for old, new in (("manylinux2014", "2_17"), ("manylinux2010", "2_12"), ("manylinux1", "2_5")):
        platforms.insert(platforms.index(f"manylinux_{new}_x86_64") + 1, f"{old}_x86_64")
    platforms.append("linux_x86_64")
    version = tuple(int(part) for part in pins.python.split("."))
    interpreter = f"cp{pins.python.replace('.', '')}"
    return [*cpython_tags(version, platforms=platforms), *compatible_tags(version, interpreter, platforms)]


def _best_wheel(package: Mapping[str, Any], order: Mapping[Tag, int]) -> Wheel:
    """The wheel of a package that fits best. Raises ResolveError where none does or it has no sha256."""
    fitting: list[tuple[int, str, Wheel]] = []
    for item in package.get("wheels", []):
        file = _file(item)
        tags = parse_wheel_filename(file)[3]
        rank = min((order[tag] for tag in tags if tag in order), default=None)
        sha256 = item.get("hashes", {}).get("sha256")
        if rank is not None and sha256:
            name = str(canonicalize_name(package["name"]))
            fitting.append((rank, file, Wheel("", name, package["version"], file, sha256, int(item.get("size", 0)))))
    if not fitting:
        raise ResolveError(
            f"{package['name']} {package.get('version')} has no wheel with a sha256 for the stack's Python",
            why=f"Offered: {', '.join(str(item.get('url', '')).rsplit('/', 1)[-1] for item in package.get('wheels', [])) or 'nothing'}.",
            fix="pin another version of what needs it",
        )
    return min(fitting, key=lambda one: one[:2])[2]


def _file(item: Mapping[str, Any]) -> str:
    """The file name of a wheel in uv's lock file."""
    return str(item.get("name") or unquote(str(item["url"]).split("#")[0].rsplit("/", 1)[-1]))


def _uv() -> Path:
    """uv of Kiln's own tool environment."""
    return Path(sysconfig.get_path("scripts")) / "uv"


def _as_pip_is_configured() -> tuple[list[str], dict[str, str]]:
    """pip's configuration (files and environment) in uv's words: options and environment."""
    done = run([sys.executable, "-m", "pip", "config", "list"], env={"PIP_DISABLE_PIP_VERSION_CHECK": "1"}, split=True)
    values: dict[str, str] = {}
    for line in done.output.splitlines():
        key, equals, value = line.partition("=")
        # Later lines (the environment's) win over earlier ones (files).
        if equals and key.rsplit(".", 1)[-1] in (
            "index-url",
            "extra-index-url",
            "find-links",
            "cert",
            "trusted-host",
            "proxy",
            "no-index",
        ):
            values[key.rsplit(".", 1)[-1]] = _unquoted(value)
    options = [f"--find-links={link}" for link in values.get("find-links", "").split() if _exists(link)]
    options += [f"--index={url}" for url in values.get("extra-index-url", "").split() if _exists(url)]
    options += [f"--default-index={url}" for url in values.get("index-url", "").split()[:1]]
    options += [f"--allow-insecure-host={host}" for host in values.get("trusted-host", "").split()]
    if values.get("no-index", "").lower() in ("1", "true", "yes", "on", "y", "t"):
        options = [option for option in options if not option.startswith(("--index=", "--default-index="))]
        options.append("--no-index")
    environment = {}
    if values.get("cert"):
        environment["SSL_CERT_FILE"] = values["cert"]
    if values.get("proxy"):
        environment |= {"HTTPS_PROXY": values["proxy"], "HTTP_PROXY": values["proxy"]}
    return options, environment


def _exists(place: str) -> bool:
    """pip passes over a folder that is not there; for uv it would be an error."""
    path = Path(place.removeprefix("file://"))
    return "://" in place.removeprefix("file://") or path.exists()


def _unquoted(value: str) -> str:
    """A value as ``pip config list`` prints it: in quotes, with ``\\n`` between several."""
    words = shlex.split(value)
    return " ".join(word.replace("\\n", " ") for word in words).strip()
