"""What ``kiln doctor`` finds of what publishing and pulling need beside an engine: cosign, and docker's logins. No secret is read out, and no helper run."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiln.apt import debian_codename
from kiln.config import read_config
from kiln.doctor import Asked, Finding, Pairs
from kiln.errors import ReleaseRecordError
from kiln.host import ENGINE_SUITE, cosign_below, find_cosign
from kiln.process import run
from kiln.registryclient import HUB, is_loopback
from kiln.releases import read_releases

TRIED_COSIGN = "2.5.0"


def release_findings(question: Asked) -> Iterator[Finding]:
    """cosign, where somebody publishes or pulls, and the login of each registry that a command would ask."""
    yield from _cosign(question)
    hosts = _hosts(question)
    if hosts:
        logins = _logins()
        if logins.wrong:
            everybody = tuple(dict.fromkeys(pair for pairs in hosts.values() for pair in pairs))
            means = "no login of it is used"
            fix = f"correct {logins.file}, or move it away and log in again: docker login HOST"
            yield Finding("docker logins", "warning", logins.wrong, everybody, means, fix)
        for host, pairs in hosts.items():
            yield _login(host, pairs, logins)


def _cosign(question: Asked) -> Iterator[Finding]:
    pairs = question.of(("publish", "pull"))
    if not pairs:
        return
    program = find_cosign(question.workspace.state)
    better = "install cosign 2 with your system's package manager, or put the program on the PATH"
    if program is None:
        if debian_codename() and shutil.which("apt-get"):
            means = f"kiln unpacks Debian {ENGINE_SUITE}'s below its state folder when it first signs or checks; nothing is installed"
            yield Finding("cosign", "warning", "not on the PATH", pairs, means, f"nothing; or {better}")
        else:
            means = "signatures are made and checked with it; kiln unpacks it by itself only on Debian"
            yield Finding("cosign", "missing", "there is no cosign", pairs, means, better)
        return
    if program == cosign_below(question.workspace.state):
        # Debian builds it without a version in it.
        yield Finding("cosign", "ok", f"Debian {ENGINE_SUITE}'s, unpacked by kiln: {program}", pairs)
        return
    said = run([program, "version"], timeout=20)
    number = re.search(r"GitVersion:\s+v?((\d+)\.\S+)", said.output)
    if said.code != 0:
        yield Finding("cosign", "missing", f"{program} does not run", pairs, said.tail(1), better)
    elif number is None:
        means = f"it does not say which version it is; {TRIED_COSIGN} is what was tried"
        yield Finding("cosign", "ok", f"{program}, of unknown version", pairs, means)
    elif number[2] == "2":
        yield Finding("cosign", "ok", f"{number[1]}, {program}", pairs)
    elif int(number[2]) < 2:
        means = "kiln signs and checks with options that cosign 2 was the first to have"
        yield Finding("cosign", "missing", f"{number[1]}, {program}", pairs, means, better)
    else:
        means = f"only cosign 2 was tried ({TRIED_COSIGN})"
        yield Finding("cosign", "warning", f"{number[1]}, {program}", pairs, means, better)


def _hosts(question: Asked) -> dict[str, Pairs]:
    """The registries that are known by name, and who would ask them: the cache, base images, recorded releases, and where things are published to."""
    config = read_config(question.workspace)
    wanted: list[tuple[str, Pairs]] = []
    for stack in question.stacks:
        if stack.pins.base:
            wanted.append((config.mirrored(stack.pins.base.image), question.of(("lock", "build"), [stack])))
        try:
            releases = read_releases(question.workspace, stack.name)
        except ReleaseRecordError:
            # kiln pull says what is wrong with it.
            releases = ()
        wanted += [(config.mirrored(one.repository), question.of(["pull"], [stack])) for one in releases]
    wanted.append((config.cache, question.of(["build"])))
    wanted.append((os.environ.get("KILN_PUBLISH_TO", ""), question.of(["publish"])))
    found: dict[str, Pairs] = {}
    for place, pairs in wanted:
        host = place.partition("/")[0]
        if host and pairs:
            found[host] = tuple(dict.fromkeys((*found.get(host, ()), *pairs)))
    return found


@dataclass(frozen=True)
class _Logins:
    """Docker's configuration as far as it is about logins, and what is wrong with it."""

    file: Path
    known: Any = None
    wrong: str = ""


def _logins() -> _Logins:
    """Docker's configuration, read as kiln reads it when a registry asks (kiln/registryclient.py)."""
    from docker import auth
    from docker.errors import DockerException

    file = Path(os.environ.get("DOCKER_CONFIG", Path.home() / ".docker")) / "config.json"
    try:
        return _Logins(file, auth.load_config())
    except (DockerException, OSError, ValueError, AttributeError) as error:
        # The SDK's words have what it could not read in them: that may be a password.
        return _Logins(file, wrong=f"{file} cannot be read ({type(error).__name__})")


def _login(host: str, pairs: Pairs, logins: _Logins) -> Finding:
    name = f"login ({host})"
    log_in = f"docker login {'' if host == HUB else host}".strip()
    if logins.known is not None:
        from docker import auth

        helper = logins.known.get_credential_store(host)
        if helper and not shutil.which(f"docker-credential-{helper}"):
            means = "docker, cosign and kiln ask it before they ask this registry, and fail where it is not there"
            fix = f"install docker-credential-{helper}; or take it out of credHelpers and credsStore in {logins.file}, and: {log_in}"
            return Finding(name, "missing", f"there is no docker-credential-{helper}", pairs, means, fix)
        if helper:
            means = "whether it has a login for this registry was not asked"
            return Finding(name, "ok", f"docker-credential-{helper}, as {logins.file} says", pairs, means)
        if auth.AuthConfig({"auths": logins.known.auths}).resolve_authconfig(host):
            return Finding(name, "ok", f"a login is in {logins.file}", pairs)
    if is_loopback(host):
        return Finding(name, "ok", "none, and the registry is on this machine", pairs)
    if any(command == "publish" for command, _ in pairs):
        means = "registries take nothing from somebody whom they do not know"
        return Finding(name, "warning", "none", pairs, means, log_in)
    return Finding(name, "ok", "none", pairs, "that will do where the registry lets everybody read", log_in)
