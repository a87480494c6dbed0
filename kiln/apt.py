"""Debian packages through apt: resolving names to exact packages, and downloading locked ones.

Kiln runs the machine's own apt with a state folder of its own: the machine's package lists, status and configuration are
read at most, never written. Mirrors, proxies and credentials are those of the machine's apt configuration; where its
sources are for another Debian release, the release's name in them is exchanged.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from kiln.errors import FetchError, HostError, ResolveError
from kiln.lockentries import Deb
from kiln.process import Finished, run
from kiln.store import write_whole

_APT_ENV = {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}


def debian_codename() -> str | None:
    """The code name of the Debian release this machine runs, or None on any other system."""
    return codename_of("debian")


def codename_of(distribution: str) -> str | None:
    """The code name of the release of ``distribution`` (debian, ubuntu) that this machine runs, or None where it runs another."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return None
    return release.get("VERSION_CODENAME") if release.get("ID") == distribution else None


def sources_for(suite: str, distribution: str = "debian", named: Mapping[str, str] | None = None) -> str:
    """The machine's own apt sources with every suite turned to ``suite``, as deb822 and one-line files joined by name.

    A sources file that kiln.toml names for the suite (``named``: suite to path) or ``KILN_APT_SOURCES`` names for Debian is used as it is
    instead. Raises HostError on a machine whose apt sources are not the distribution's.
    """
    given = (named or {}).get(suite) or (os.environ.get("KILN_APT_SOURCES") if distribution == "debian" else "")
    if given:
        if not Path(given).is_file():
            raise HostError(
                f"there is no apt sources file {given}", fix="correct KILN_APT_SOURCES or [apt-sources] in kiln.toml"
            )
        return Path(given).read_text(encoding="utf-8")
    codename = codename_of(distribution)
    if codename is None or shutil.which("apt-get") is None:
        way = (
            f"name a deb822 sources file for it in kiln.toml: [apt-sources] {suite} = '/path/to/{distribution}.sources'"
        )
        raise HostError(
            f"this machine's apt sources are not {distribution.title()}'s",
            why=f"kiln gets {distribution.title()}'s packages ({suite}) through apt, and derives the sources from the machine's own.",
            fix=f"run on {distribution.title()}, or install apt and {way}"
            + ("; or in KILN_APT_SOURCES" if distribution == "debian" else ""),
        )
    found: list[str] = []
    for path in sorted(Path("/etc/apt").glob("sources.list.d/*.sources")):
        found += [
            _retarget(stanza, codename, suite) for stanza in re.split(r"\n\s*\n", path.read_text(encoding="utf-8"))
        ]
    for path in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt").glob("sources.list.d/*.list"))]:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        found += [_one_line(line, codename, suite) for line in lines]
    stanzas = [stanza for stanza in found if stanza]
    if not stanzas:
        raise HostError(
            f"no apt source of this machine offers {codename}",
            why="kiln derives its own sources from the machine's and found none in /etc/apt.",
            fix="name a deb822 sources file with KILN_APT_SOURCES=/path/to/debian.sources",
        )
    return "\n\n".join(dict.fromkeys(stanzas)) + "\n"


def _retarget(stanza: str, codename: str, suite: str) -> str:
    """A deb822 stanza for the other suite, or nothing if it is no binary source of this machine's release."""
    lines = [line for line in stanza.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    fields = dict(line.split(":", 1) for line in lines if ":" in line and not line[0].isspace())
    suites = fields.get("Suites", "").split()
    wanted = [
        name.replace(codename, suite, 1) for name in suites if name == codename or name.startswith(f"{codename}-")
    ]
    if (
        "deb" not in fields.get("Types", "").split()
        or not wanted
        or fields.get("Enabled", "yes").strip().lower() == "no"
    ):
        return ""
    changed = {"Types": "deb", "Suites": " ".join(wanted)}
    return "\n".join(
        f"{line.split(':', 1)[0]}: {changed[line.split(':', 1)[0]]}" if line.split(":", 1)[0] in changed else line
        for line in lines
    )


def _one_line(line: str, codename: str, suite: str) -> str:
    """A one-line source as a deb822 stanza for the other suite, or nothing if it is no binary source of this release."""
    match = re.fullmatch(
        r"deb\s+(?:\[(?P<options>[^]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>.+)",
        line.split("#")[0].strip(),
    )
    if not match or not (match["suite"] == codename or match["suite"].startswith(f"{codename}-")):
        return ""
    stanza = [
        "Types: deb",
        f"URIs: {match['uri']}",
        f"Suites: {match['suite'].replace(codename, suite, 1)}",
        f"Components: {match['components']}",
    ]
    for option in (match["options"] or "").split():
        key, _, value = option.partition("=")
        if key.lower() in ("signed-by", "trusted", "arch"):
            stanza.append(f"{'Architectures' if key.lower() == 'arch' else key.title()}: {value.replace(',', ' ')}")
    return "\n".join(stanza)


class Apt:
    """The machine's apt with its own sources, lists and an empty package status, all under ``folder``."""

    def __init__(
        self,
        folder: Path,
        suite: str,
        architecture: str,
        *,
        base_suite: str = "",
        real_status: bool = False,
        status: bytes | None = None,
        sources: str = "",
    ) -> None:
        """``base_suite`` is a second suite to take dependencies from; ``real_status`` is for installing on this machine; ``status`` is what
        another system (a base image) has installed, as its dpkg says; ``sources`` are used in place of the machine's."""
        self.folder = folder
        self.suite = suite
        self._sources = sources
        self._on_a_base = status is not None
        self.base_suite = base_suite
        for needed in ("lists/partial", "cache/archives/partial", "sources.d", "preferences.d"):
            (folder / needed).mkdir(parents=True, exist_ok=True)
        if not real_status:
            (folder / "status").write_bytes(status or b"")
        self._options = {
            "Dir::Etc::sourcelist": "/dev/null",
            "Dir::Etc::sourceparts": str(folder / "sources.d"),
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": str(folder / "preferences.d"),
            "Dir::State::lists": str(folder / "lists"),
            "Dir::Cache": str(folder / "cache"),
            "APT::Install-Recommends": "false",
            "APT::Architecture": architecture,
            "APT::Architectures": architecture,
            # Downloads run as root into folders that the user _apt may not enter; that is meant.
            "APT::Sandbox::User": "root",
        }
        if not real_status:
            self._options |= {"Dir::State": str(folder), "Dir::State::status": str(folder / "status")}

    def _call(self, program: str, *words: str, cwd: Path | None = None, timeout: float = 1800) -> Finished:
        options = [f"-o{key}={value}" for key, value in self._options.items()]
        return run([program, *options, *words], env=_APT_ENV, cwd=cwd, timeout=timeout)

    def update(self, *, frozen: bool = False) -> None:
        """Get the package lists. ``frozen`` accepts lists that have expired (snapshots): right where a sha256 decides anyway.

        Raises FetchError with apt's own words.
        """
        write_whole(self.folder / "sources.d" / "kiln.sources", self._sources or sources_for(self.suite))
        if self.base_suite:
            write_whole(self.folder / "sources.d" / "base.sources", sources_for(self.base_suite))
        options = ["-oAcquire::Check-Valid-Until=false", "-oAcquire::Check-Date=false"] if frozen else []
        done = self._call("apt-get", "update", "-q", "-oAPT::Update::Error-Mode=any", *options)
        if done.code != 0:
            raise FetchError(
                f"apt could not get the package lists of {self.suite}",
                why=_apt_errors(done),
                fix="check the machine's apt sources (/etc/apt), proxies and network; then run the same command again",
            )

    def resolve(self, packages: Sequence[str]) -> list[Deb]:
        """The essential packages (unless there is a base that has them), ``packages`` and all they depend on, exactly.

        apt itself is left out: nothing in an image asks for it, and it would drag in keys, gnutls and perl. Raises ResolveError with
        apt's own words.
        """
        essential = [] if self._on_a_base else ["?essential?not(?exact-name(apt))"]
        done = self._call("apt-get", "install", "--simulate", "-q", *essential, *packages)
        if done.code != 0:
            raise ResolveError(
                f"apt cannot install the pinned packages of {self.suite}",
                why=_apt_errors(done),
                fix="correct the packages in the pins",
            )
        chosen = re.findall(r"^Inst (\S+) (?:\[\S+\] )?\((\S+) .*\[(\S+)\]\)", done.output, re.MULTILINE)
        shown = self._call(
            "apt-cache", "show", "--no-all-versions", *(f"{name}={version}" for name, version, _ in chosen)
        )
        debs = [_deb(stanza) for stanza in shown.output.split("\n\n") if stanza.startswith("Package:")]
        by_name = {(deb.name, deb.version): deb for deb in debs}
        missing = [f"{name} {version}" for name, version, _ in chosen if (name, version) not in by_name]
        if missing or (not chosen and not self._on_a_base):
            raise ResolveError("apt chose packages that it does not describe", why="\n".join(missing) or done.tail())
        return [by_name[name, version] for name, version, _ in chosen]

    def offered(self, names: Iterable[str]) -> list[Deb]:
        """Every version of these packages that the configured sources offer; of a name that none of them has, nothing.

        Raises FetchError where apt cannot read its lists.
        """
        shown = self._call("apt-cache", "show", *names)
        if shown.code != 0 and "No packages found" not in shown.output:
            raise FetchError(f"apt could not say what {self.suite} offers", why=_apt_errors(shown))
        return [_deb(stanza) for stanza in shown.output.split("\n\n") if stanza.startswith("Package:")]

    def download(self, debs: Sequence[Deb], folder: Path) -> list[Path]:
        """Download locked packages into ``folder``; returns the files. Raises FetchError naming what is no longer offered."""
        folder.mkdir(parents=True, exist_ok=True)
        done = self._call(
            "apt-get",
            "download",
            "-q",
            *(
                f"{deb.name}:{deb.architecture}={deb.version}"
                if deb.architecture != "all"
                else f"{deb.name}={deb.version}"
                for deb in debs
            ),
            cwd=folder,
        )
        if done.code != 0:
            gone = re.findall(r"Version '(\S+)' for '(\S+)' was not found|Unable to locate package (\S+)", done.output)
            names = "\n".join(f"{name or other} {version}".strip() for version, name, other in gone)
            raise FetchError(
                "apt could not download the locked Debian packages",
                why=f"no longer offered by the configured sources:\n{names}" if names else _apt_errors(done),
                fix="point the machine's apt sources at a mirror or snapshot that still has them, or lock the versions that are offered now: kiln lock STACK",
            )
        return sorted(folder.glob("*.deb"))

    def unpack(self, debs: Sequence[Deb], folder: Path) -> Path:
        """Download packages and lay their files below ``folder``, with nothing installed: whole, or not there at all. Returns it.

        Raises FetchError, HostError.
        """
        files = self.download(debs, self.folder / "unpacked")
        beside = folder.with_name(f".{folder.name}")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        # base-files brings the links from /bin and /lib to below /usr: what comes before it would make folders of them.
        for file in sorted(files, key=lambda path: not path.name.startswith("base-files_")):
            if (done := run(["dpkg-deb", "--extract", file, beside])).code != 0:
                raise HostError(f"{file.name} could not be unpacked", why=done.tail())
        shutil.rmtree(self.folder / "unpacked")
        return beside.replace(folder)

    def install(self, packages: Sequence[str]) -> None:
        """Install ``name`` or ``name/suite`` on this machine (root only). Raises HostError with apt's own words."""
        # Another apt may be at work (a timer's, or another kiln's): it is waited for.
        patient = "-oDPkg::Lock::Timeout=300"
        done = self._call("apt-get", "install", "-y", "-q", "--no-install-recommends", patient, *packages)
        if done.code != 0:
            raise HostError(
                f"apt could not install {' '.join(packages)}",
                why=_apt_errors(done),
                fix="install them yourself, then run the same command again",
            )

    def prefer_base(self) -> None:
        """Let packages come from ``suite`` only where they are asked for by name: everything else stays with ``base_suite``."""
        write_whole(
            self.folder / "preferences.d" / "kiln", f"Package: *\nPin: release n={self.suite}*\nPin-Priority: 100\n"
        )


def _deb(stanza: str) -> Deb:
    fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line and not line[0].isspace())
    return Deb(
        fields["Package"],
        fields["Version"],
        fields["Architecture"],
        fields["Filename"],
        fields["SHA256"],
        int(fields["Size"]),
    )


def _apt_errors(done: Finished) -> str:
    errors = [
        line
        for line in done.output.splitlines()
        if line.startswith(("E:", "Err:", "W: Failed")) or "unmet" in line or "Depends:" in line
    ]
    return "\n".join(errors[:20]) or done.tail(12)
