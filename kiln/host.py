"""Programs that Kiln needs on the machine itself. On Debian as root they are installed, after saying so; elsewhere a message
says what to install. What installs is loaded when it must: a command that has nothing to do asks here too, and must be fast."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kiln.console import Console
from kiln.errors import HostError

# Debian 13's Docker is the first of Debian's with BuildKit 0.13: Debian 12's own knows no SOURCE_DATE_EPOCH.
ENGINE_SUITE = "trixie"
ENGINE_PACKAGES = ("docker.io", "docker-cli", "docker-buildx")
_POLICY = Path("/usr/sbin/policy-rc.d")


def ensure_mmdebstrap(state: Path, console: Console) -> None:
    """Make sure that mmdebstrap is there. Raises HostError with what to install where Kiln may not."""
    if shutil.which("mmdebstrap"):
        return
    from kiln.apt import Apt

    codename = _may_install("mmdebstrap", "it makes the root file system of the images")
    console.step("installing Debian's mmdebstrap (makes the images' root file system) with this machine's apt")
    apt = Apt(state / "apt" / f"host-{codename}", codename, "amd64", real_status=True)
    apt.update()
    apt.install(["mmdebstrap"])


def ensure_docker(state: Path, console: Console) -> None:
    """Make sure that dockerd, docker and its buildx plugin are there, new enough. Raises HostError as above."""
    if has_docker_programs():
        return
    from kiln.apt import Apt

    codename = _may_install("Docker >= 26 with its buildx plugin", "BuildKit builds the images")
    console.step(f"installing {', '.join(ENGINE_PACKAGES)} from Debian {ENGINE_SUITE} with this machine's apt")
    console.note("apt keeps its lists for this under .kiln; /etc/apt is not touched, and no service is started")
    apt = Apt(state / "apt" / f"engine-{ENGINE_SUITE}", ENGINE_SUITE, "amd64", base_suite=codename, real_status=True)
    apt.prefer_base()
    apt.update()
    with _no_services():
        apt.install([f"{package}/{ENGINE_SUITE}" for package in ENGINE_PACKAGES])


def ensure_cosign(state: Path, console: Console) -> Path:
    """Where cosign is: on the PATH, or Debian's, unpacked below ``state`` with nothing installed. Raises HostError, FetchError, ResolveError."""
    if found := find_cosign(state):
        return found
    from kiln.apt import Apt, debian_codename

    codename = debian_codename()
    if codename is None or not shutil.which("apt-get"):
        raise HostError(
            "cosign is not on this machine",
            why="It signs what is published, and checks signatures. Kiln unpacks it by itself only on Debian.",
            fix="install cosign 2 with your system's package manager, then run the same command again",
        )
    root = _cosign_root(state)
    console.step(f"unpacking Debian {ENGINE_SUITE}'s cosign into {root}; nothing is installed")
    apt = Apt(state / "apt" / f"tools-{ENGINE_SUITE}", ENGINE_SUITE, "amd64", base_suite=codename)
    apt.prefer_base()
    apt.update()
    # One Go program: it needs the C library alone, which every machine has.
    apt.unpack([deb for deb in apt.resolve(["cosign"]) if deb.name == "cosign"], root)
    return cosign_below(state)


def find_cosign(state: Path) -> Path | None:
    """Where cosign is, on the PATH or unpacked below ``state`` before; None where it is not there yet."""
    if found := shutil.which("cosign"):
        return Path(found)
    program = cosign_below(state)
    return program if program.is_file() else None


def cosign_below(state: Path) -> Path:
    """Where Kiln unpacks cosign, or did."""
    return _cosign_root(state) / "usr" / "bin" / "cosign"


def _cosign_root(state: Path) -> Path:
    return state / "tools" / f"cosign-{ENGINE_SUITE}"


def has_docker_programs() -> bool:
    """Whether dockerd, the docker client and a buildx plugin are installed."""
    return all(shutil.which(name) for name in ("dockerd", "docker")) and buildx_plugin() is not None


def buildx_plugin() -> Path | None:
    """Where the buildx plugin lies, or None."""
    home = Path(os.environ.get("DOCKER_CONFIG", Path.home() / ".docker"))
    places = [
        home,
        *map(Path, ("/usr/local/lib/docker", "/usr/local/libexec/docker", "/usr/lib/docker", "/usr/libexec/docker")),
    ]
    return next((path for place in places if (path := place / "cli-plugins" / "docker-buildx").is_file()), None)


def _may_install(what: str, why: str) -> str:
    """The Debian release to install on. Raises HostError with instructions where this is not Debian, or not root."""
    from kiln.apt import debian_codename

    codename = debian_codename()
    if codename is None or not shutil.which("apt-get"):
        raise HostError(
            f"{what} is not on this machine",
            why=f"kiln needs it: {why}. It installs it by itself only on Debian.",
            fix=f"install {what} with your system's package manager, then run the same command again",
        )
    if os.geteuid() != 0:
        raise HostError(
            f"{what} is not on this machine",
            why=f"kiln needs it: {why}. Only root can install it.",
            fix=f"run the same command as root, or install {what} yourself",
        )
    return codename


@contextmanager
def _no_services() -> Iterator[None]:
    """Let no package start a system service: the engine that Kiln runs is its own. A policy that is there already stays."""
    if _POLICY.exists():
        yield
        return
    _POLICY.write_text("#!/bin/sh\n# Put here by kiln while it installs packages.\nexit 101\n", encoding="utf-8")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink(missing_ok=True)
