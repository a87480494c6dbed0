"""The whole file system: privileges, secrets, certificates, caches, proxies."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from inspection.image import MOST, SMALL, Image

_SECRET_NAMES: Final = re.compile(r"^(id_(rsa|dsa|ecdsa|ed25519)|\.?_?netrc|\.git-credentials|\.(bash|python|zsh)_history|\.dockercfg)$")
_CONFIGURED: Final = re.compile(r"^(\.npmrc|\.pypirc|pip\.conf|pip\.ini|uv\.toml|\.curlrc|\.wgetrc|\.gitconfig|gitconfig)$")
_LOGIN: Final = re.compile(rb"://[^/\s:@\"'{}<>$]+:[^/\s@\"'{}<>$]+@|^\s*(?:password|_auth(?:Token)?|//\S+:_authToken)\s*[=:]\s*\S", re.MULTILINE)
_KEY: Final = re.compile(
    rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----(?:\\n|\\r|\s)+(?:[A-Za-z0-9-]+: ?[^\n]*\s+)*[A-Za-z0-9+/=]{32}"
)
_TOKENS: Final = (
    (b"AKIA", "AWS access key", re.compile(rb"(?<![A-Za-z0-9/+])AKIA[0-9A-Z]{16}(?![A-Za-z0-9/+=])")),
    (b"aws_secret", "AWS secret key", re.compile(rb"aws_secret_access_key[\"']?\s*[=:]\s*[\"']?[A-Za-z0-9/+]{40}\b", re.IGNORECASE)),
    (b"ghp_", "GitHub token", re.compile(rb"\bghp_[A-Za-z0-9]{36}\b")),
    (b"github_pat_", "GitHub token", re.compile(rb"\bgithub_pat_[A-Za-z0-9_]{60,}")),
    (b"glpat-", "GitLab token", re.compile(rb"\bglpat-[A-Za-z0-9_-]{20,}\b")),
    (b"hf_", "Hugging Face token", re.compile(rb"\bhf_[A-Za-z]{34}\b")),
)
_BINARY: Final = re.compile(r"\.(so(\.[0-9]+)*|pyc|png|jpg|jpeg|gif|gz|xz|zip|whl|a|o|bin|mo|ttf|woff2?|h|hpp|cuh|pyi)$")
_PROXY_NAME: Final = re.compile(r"^(https?|ftp|all|no|rsync)_proxy$", re.IGNORECASE)
_SECRET_NAME: Final = re.compile(r"(^|_)(TOKEN|SECRETS?|PASSWORD|PASSWD|APIKEY|API_KEY|CREDENTIALS?|ACCESS_KEY|PRIVATE_KEY|AUTH)(_ID)?$", re.IGNORECASE)
_ASSIGNED: Final = re.compile(r"^\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(?!\s*$|[\"']{2}\s*$)", re.MULTILINE)
_SHELL_FILES: Final = ("etc/environment", "etc/profile", "etc/profile.d/*", "etc/bash.bashrc", "root/.bashrc", "root/.profile", "root/.bash_profile")
_APT_PROXY: Final = re.compile(r"^\s*Acquire::[^\s]*Proxy[^\s]*\s+\"[^\"]+\"|^\s*Proxy\s+\"[^\"]+\"", re.IGNORECASE | re.MULTILINE)
_CERTIFICATE: Final = re.compile(rb"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)
# Where builds leave what nobody needs at run time; all below is left over, but for what the second entry names.
_LEFT_OVER: Final = (
    ("tmp", ""), ("var/tmp", ""), ("root/.cache", ""), ("home/*/.cache", ""), ("root/.local/share/uv", ""), ("root/.npm", ""),
    ("var/cache/apt", "archives|archives/lock|archives/partial"), ("var/lib/apt/lists", "lock|partial|auxfiles"), ("root/.ccache", ""),
)  # fmt: skip
# What the container engine puts over the image in every container.
_ENGINE: Final = {"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/proc", "/sys", "/dev"}


@dataclass
class Found:
    """What a walk over all files comes to."""

    files: int = 0
    setuid: list[dict[str, str]] = field(default_factory=list)
    world_writable: list[str] = field(default_factory=list)
    secrets: list[dict[str, str]] = field(default_factory=list)
    unseen: list[dict[str, str]] = field(default_factory=list)


def files(image: Image) -> dict[str, Any]:
    """The whole file system: privileges, secrets, certificates of somebody's own, caches, proxies."""
    found = Found()
    for path in _walk(image, str(image.root), found):
        found.files += 1
        _permissions(image, path, found)
    over = sorted(one for one in image.mounts if one not in _ENGINE and not one.startswith(("/proc/", "/sys/", "/dev/")))
    own = str(Path(__file__).resolve().parents[1])  # the folder of scripts is mounted
    return {
        "files": found.files,
        "setuid": found.setuid,
        "world_writable": found.world_writable[:MOST],
        "secrets": sorted(found.secrets, key=lambda one: one["path"])[:MOST],
        "certificates": _certificates(image),
        "left_over": _left_over(image),
        "proxies": _proxies(image),
        "variables": _variables(image),
        "unseen": found.unseen[:MOST] + [{"path": one, "why": "something is mounted over it"} for one in over if one != own],
    }


def _walk(image: Image, folder: str, found: Found) -> Iterator[os.DirEntry[str]]:
    try:
        entries = sorted(os.scandir(folder), key=lambda one: one.name)
    except OSError as error:
        found.unseen.append({"path": image.shown(folder), "why": error.strerror or str(error)})
        return
    for entry in entries:
        if entry.path in image.mounts:
            continue
        yield entry
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(image, entry.path, found)


def _permissions(image: Image, entry: os.DirEntry[str], found: Found) -> None:
    try:
        said = entry.stat(follow_symlinks=False)
    except OSError as error:
        found.unseen.append({"path": image.shown(entry.path), "why": error.strerror or str(error)})
        return
    shown = image.shown(entry.path)
    if stat.S_ISLNK(said.st_mode):
        return
    if stat.S_ISREG(said.st_mode) and said.st_mode & (stat.S_ISUID | stat.S_ISGID):
        mode = f"{stat.S_IMODE(said.st_mode):04o}"
        found.setuid.append({"path": shown, "mode": mode, "package": image.packaged.get(shown, "")})
    sticky = stat.S_ISDIR(said.st_mode) and said.st_mode & stat.S_ISVTX
    if said.st_mode & stat.S_IWOTH and not sticky and (stat.S_ISREG(said.st_mode) or stat.S_ISDIR(said.st_mode)):
        found.world_writable.append(shown)
    kind = _secret(entry, said, shown, found)
    if kind:
        found.secrets.append({"path": shown, "kind": kind})


def _secret(entry: os.DirEntry[str], said: os.stat_result, shown: str, found: Found) -> str:
    """What kind of secret a file looks like; its content goes nowhere."""
    name = entry.name
    if name == ".git":
        return "git repository"
    if not stat.S_ISREG(said.st_mode) or not said.st_size:
        return ""
    if _SECRET_NAMES.match(name) or (name == "credentials" and "/.aws/" in shown):
        return "file of that name"
    if said.st_size > SMALL or _BINARY.search(name):
        return ""
    try:
        with open(entry.path, "rb", buffering=0) as file:  # noqa: PTH123 - a Path costs as much as reading the file
            content = file.read()
    except OSError as error:
        found.unseen.append({"path": shown, "why": error.strerror or str(error)})
        return ""
    if (_CONFIGURED.match(name) or "/etc/apt/" in shown) and _LOGIN.search(content):
        return "login"
    if name == "config.json" and "/.docker/" in shown and b'"auth"' in content:
        return "login"
    return _written_down(content)


def _written_down(content: bytes) -> str:
    if b"PRIVATE KEY" in content and _KEY.search(content):
        return "private key"
    for begin, kind, pattern in _TOKENS:
        # Documentation has keys that say what they are: AKIAIOSFODNN7EXAMPLE.
        if begin in content and any(b"EXAMPLE" not in one[0].upper() for one in pattern.finditer(content)):
            return kind
    return ""


def _certificates(image: Image) -> list[str]:
    """Authorities that no Debian package brought: files of their own, and what the bundle has beyond those of the packages."""
    found = []
    for place in ("usr/local/share/ca-certificates", "etc/pki/ca-trust/source/anchors"):
        found += [image.shown(one) for one in sorted(image.path(place).rglob("*")) if one.is_file()]
    known = set()
    for one in sorted(image.path("usr/share/ca-certificates").rglob("*.crt")):
        if image.shown(one) in image.packaged:
            known |= _certificates_in(one)
        else:
            found.append(image.shown(one))
    for one in sorted(image.path("etc/ssl/certs").glob("*")):
        if one.is_file() and image.shown(one) not in image.packaged and _certificates_in(one) - known:
            found.append(image.shown(one))
    return found[:MOST]


def _certificates_in(path: Path) -> set[bytes]:
    try:
        return {b"".join(one.split()) for one in _CERTIFICATE.findall(path.read_bytes())}
    except OSError:
        return set()


def _left_over(image: Image) -> list[str]:
    found = []
    for place, but in _LEFT_OVER:
        for folder in sorted(image.root.glob(place)):
            if str(folder) in image.mounts or not folder.is_dir():
                continue
            for one in _listed(folder):
                inside = one.relative_to(folder).as_posix()
                if not re.fullmatch(but, inside) and str(one) not in image.mounts:
                    found.append(image.shown(one))
    return found[:MOST]


def _listed(folder: Path) -> list[Path]:
    """What lies in a folder, and in the folders in it."""
    try:
        return sorted(inner for one in folder.iterdir() for inner in (one, *(one.iterdir() if one.is_dir() else ())))
    except OSError:  # the walk over everything has said so already
        return []


def _proxies(image: Image) -> list[dict[str, str]]:
    """Settings of the machine that built the image: proxies, by file and name."""
    found = []
    for place in _SHELL_FILES:
        for path in sorted(image.root.glob(place)):
            names = _ASSIGNED.findall(_readable(path))
            found += [{"path": image.shown(path), "name": one} for one in names if _PROXY_NAME.match(one)]
    for path in sorted((*image.root.glob("etc/apt/apt.conf"), *image.root.glob("etc/apt/apt.conf.d/*"))):
        if _APT_PROXY.search(_readable(path)):
            found.append({"path": image.shown(path), "name": "Acquire::Proxy"})
    for place in ("etc/pip.conf", "root/.config/pip/pip.conf", "root/.pip/pip.conf", "etc/gitconfig", "root/.gitconfig"):
        for name in re.findall(r"^\s*(proxy|index-url|extra-index-url|trusted-host)\s*=", _readable(image.path(place)), re.MULTILINE):
            found.append({"path": f"/{place}", "name": name})
    return found


def _readable(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _variables(image: Image) -> list[str]:
    """The names of variables of the container's first process that say how a network is reached, or hold a secret."""
    if not image.alive:
        return []
    try:
        pairs = Path("/proc/1/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        pairs = [f"{name}={value}" for name, value in os.environ.items()]
    names = sorted(name for name, _, value in (one.partition("=") for one in pairs) if value)
    return [one for one in names if _PROXY_NAME.match(one) or _SECRET_NAME.search(one)]
