"""What ``kiln doctor --network`` finds: whether those that would be asked answer now, each through the client that would ask (pip, apt, git).

Only that somebody answers is looked at; whether they have what a lock names is for ``kiln fetch``.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import requests

from kiln.apt import sources_for
from kiln.config import Config, read_config
from kiln.doctor import DOWNLOADS, Asked, Finding, Pairs, Stack, Status
from kiln.errors import HostError, KilnError, RefNotFoundError
from kiln.fetch import short_reason
from kiln.git import GitCache
from kiln.gitrun import shown
from kiln.process import run
from kiln.registry import tag_digest
from kiln.registryclient import Repository

SECONDS = 5.0
# Small, pinned by every stack's tools, and old: an index that mirrors anything has it.
WELL_KNOWN = "packaging"
_APT_HELPER = Path("/usr/lib/apt/apt-helper")
_MIRROR = "name a mirror in kiln.toml ([mirrors]) or in KILN_MIRRORS, see docs/mirrors.md"


@dataclass(frozen=True)
class _Question:
    """One that is asked: by which name people know it, by whom it is needed, and how (an empty answer is a good one)."""

    name: str
    whom: str
    needed_by: Pairs
    ask: Callable[[], str]
    fix: str
    lacking: Status = "missing"


def network_findings(question: Asked) -> Iterator[Finding]:
    """One finding for each index, source, host and mirror, all asked at the same time."""
    config = read_config(question.workspace)
    with tempfile.TemporaryDirectory(prefix="kiln-doctor-") as folder, ThreadPoolExecutor(8) as pool:
        questions = list(_questions(question, config, Path(folder)))
        answers = [pool.submit(one.ask) for one in questions]
        for one, answer in zip(questions, answers, strict=True):
            why, name = answer.result(), f"network ({one.name})"
            if not why:
                yield Finding(name, "ok", f"{one.whom} answers", one.needed_by)
            else:
                yield Finding(name, one.lacking, f"{one.whom} does not answer", one.needed_by, why, one.fix)


def _questions(question: Asked, config: Config, folder: Path) -> Iterator[_Question]:
    fix = "pip config list   (set index-url, proxy or cert there)"
    yield _Question("wheels", "the index that pip is configured for", question.of(DOWNLOADS), _pip, fix)
    for name, url in sorted({pair for stack in question.stacks for pair in stack.pins.indexes}):
        pairs = question.of(DOWNLOADS, [stack for stack in question.stacks if (name, url) in stack.pins.indexes])
        fix = "offer its files on the index that pip is configured for, which is asked first"
        yield _Question(name, _host(url), pairs, partial(_answers, url), fix, "warning")
    for stack in question.stacks:
        yield from _upstreams(stack, question.of(DOWNLOADS, [stack]), config, folder)
    for prefix, replacement in config.mirrors:
        name, pairs, fix = (
            f"mirror of {shown(prefix)}",
            question.of(DOWNLOADS),
            "correct it in kiln.toml or KILN_MIRRORS",
        )
        if replacement.startswith("/"):
            yield _Question(name, replacement, pairs, partial(_there, Path(replacement)), fix)
        elif replacement.startswith(("http://", "https://")):
            yield _Question(name, _host(replacement), pairs, partial(_answers, replacement), fix)
    if config.cache:
        fix = "docker login HOST, where it wants one; or leave it out for now: KILN_CACHE="
        ask = partial(_cache, config.cache)
        yield _Question("component cache", config.cache, question.of(["build"]), ask, fix, "warning")


def _upstreams(stack: Stack, pairs: Pairs, config: Config, folder: Path) -> Iterator[_Question]:
    """Those whom locking and fetching one stack asks beside the indexes."""
    wanted = stack.pins.packages
    fix = "set the machine's proxy for apt, or name a sources file in kiln.toml ([apt-sources])"
    try:
        places = _apt_places(sources_for(wanted.suite, wanted.distribution, dict(config.apt_sources)))
    except HostError:
        places = []  # said by the finding about apt's sources
    for number, (uri, suite) in enumerate(places):
        ask = partial(_apt, uri, suite, folder / f"{wanted.suite}-{number}")
        yield _Question("packages", f"apt's source for {suite}", pairs, ask, fix)
    git = GitCache(folder / "git", config)
    # One repository of each host stands for all of them.
    hosts = {_host(config.mirrored(one.git)): one.git for one in reversed(stack.pins.components) if one.git}
    for host, url in sorted(hosts.items()):
        yield _Question("sources", host, pairs, partial(git.reachable, url, SECONDS), _MIRROR)
    if base := stack.pins.base:
        ask = partial(_registry, config, base.image, base.tag)
        yield _Question("base image", config.mirrored(base.image), pairs, ask, _MIRROR)


def _pip() -> str:
    words = (
        sys.executable,
        "-m",
        "pip",
        "--no-input",
        "--disable-pip-version-check",
        "--no-cache-dir",
        f"--timeout={SECONDS:.0f}",
        "--retries=0",
    )
    with tempfile.TemporaryDirectory(prefix="kiln-doctor-") as folder:
        try:
            done = run(
                [*words, "download", "--quiet", "--no-deps", "--only-binary=:all:", f"--dest={folder}", WELL_KNOWN],
                timeout=8 * SECONDS,
            )
        except HostError as error:
            return error.what
    return "" if done.code == 0 else shown(done.tail(1))


def _answers(url: str) -> str:
    """Whether a web server answers with anything but an error of its own."""
    try:
        status = requests.head(url, timeout=SECONDS, allow_redirects=True).status_code
    except requests.RequestException as error:
        return shown(short_reason(error))
    return "" if status < 500 and status != 407 else f"it answers with HTTP status {status}"


def _there(path: Path) -> str:
    return "" if path.exists() else "there is no such file or folder"


def _apt_places(sources: str) -> list[tuple[str, str]]:
    """The addresses and suites of deb822 stanzas: what of them matters here."""
    found = []
    for stanza in sources.split("\n\n"):
        fields = dict(
            line.split(":", 1) for line in stanza.splitlines() if ":" in line and not line.startswith((" ", "\t", "#"))
        )
        uris, suites = fields.get("URIs", "").split(), fields.get("Suites", "").split()
        found += [(uri, suite) for uri in uris for suite in suites]
    return list(dict.fromkeys(found))


def _apt(uri: str, suite: str, file: Path) -> str:
    """Whether apt, with the machine's proxies and logins, gets the file that says what a suite has."""
    if not _APT_HELPER.exists():
        return f"apt's own helper ({_APT_HELPER}) is not here to ask"
    options = [
        f"-oAcquire::{key}" for key in (f"http::Timeout={SECONDS:.0f}", f"https::Timeout={SECONDS:.0f}", "Retries=0")
    ]
    # A suite that ends in a slash is a flat repository's folder.
    place = f"{uri.rstrip('/')}/{suite}" if suite.endswith("/") else f"{uri.rstrip('/')}/dists/{suite}/"
    try:
        done = run([_APT_HELPER, *options, "download-file", f"{place}InRelease", file], timeout=8 * SECONDS)
    except HostError as error:
        return error.what
    return "" if done.code == 0 else shown(done.tail(1))


def _registry(config: Config, image: str, tag: str) -> str:
    try:
        tag_digest(config, image, tag)
    except RefNotFoundError:
        return ""  # it answers; that it lacks the tag is for `kiln lock`
    except KilnError as error:
        return error.why or error.what
    return ""


def _cache(place: str) -> str:
    try:
        Repository(place).digest_of("latest")
    except KilnError as error:
        return error.why or error.what
    return ""


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2] or url
