"""Judge the wheels that a component's recipe has just built, before anything is installed from them.

Runs inside a build stage, on Python 3.10 or newer, with the standard library and ``elf.py`` beside it:

    python check_wheel.py --wheels DIR --component aiter --distribution amd-aiter --version 0.1.14
        --holds 'aiter/jit/module_mhc.so' --device-code 'aiter/jit/*.so' --archs 'gfx942;gfx950' [--only-archs]
        --glibc 2.35 --glibcxx 3.4.30 --min-bytes 1000000 --log build.log --log-must-not 'REGEX' ...
        --installed triton==3.4.0 --report report.json

Every check runs, and every problem is named, one line each. In a pattern ``*`` stays within a folder and ``**`` does
not; it is compared with the place where a file will be installed, below site-packages.

Exit status: 0 all is well; 1 something is wrong; 2 usage, or nothing is wrong as far as one could look, and somewhere
one could not.
"""

from __future__ import annotations

import argparse
import base64
import csv
import email.parser
import hashlib
import io
import json
import re
import stat
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import elf

EXIT_WRONG: Final = 1
EXIT_UNKNOWN: Final = 2
MAX_MEMBER_BYTES: Final = 1 << 32
SHOWN_CHARACTERS: Final = 200  # of a line or name that somebody else wrote

_LIBRARY: Final = re.compile(r"\.so(\.[0-9]+)*$")
# What zipfile lets through when an archive is damaged or made for a reader that Python is not.
_UNREADABLE: Final = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError)
_WHEEL_NAME: Final = re.compile(r"(?P<name>[^-]+)-(?P<version>[^-]+)(-[0-9][^-]*)?-[^-]+-[^-]+-[^-]+\.whl")
_UNHASHED: Final = re.compile(r"[^/]+\.dist-info/RECORD(\.jws|\.p7s)?")  # they can't hold their own hash
_SPREAD: Final = re.compile(r"^[^/]+\.data/(?:purelib|platlib)/")
# What a C library promises beyond plain versions: the release that brought it (glibc's NEWS).
_GLIBC_FEATURES: Final = {"ABI_DT_RELR": "2.36", "ABI_GNU_TLS": "2.42", "ABI_GNU2_TLS": "2.42"}


@dataclass(order=True, frozen=True)
class Problem:
    """One thing that is not as it should be."""

    where: str
    what: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}: expected {self.expected}, found {self.found}"


@dataclass
class Findings:
    """What was seen so far; ``unknown`` is where one could not look, and why."""

    problems: set[Problem] = field(default_factory=set)
    unknown: set[tuple[str, str]] = field(default_factory=set)
    wheels: list[dict[str, object]] = field(default_factory=list)
    held: dict[str, int] = field(default_factory=dict)
    device_code: dict[str, list[str]] = field(default_factory=dict)
    needs: dict[str, str] = field(default_factory=dict)

    @property
    def result(self) -> str:
        """In a report's words: what is wrong stays wrong, however much else could not be looked at."""
        return "fail" if self.problems else "error" if self.unknown else "pass"

    def wrong(self, where: str, what: str, expected: str, found: str) -> None:
        """Add a problem; text from outside is cut and kept on its line."""
        clean = (re.sub(r"[\x00-\x1f\x7f]", "?", one)[:SHOWN_CHARACTERS] for one in (where, what, expected, found))
        self.problems.add(Problem(*clean))


def canonical(name: str) -> str:
    """A distribution's name as all its spellings compare (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def plain_version(version: str) -> str:
    """A version as its spellings compare: ``v1.0+A_b`` is ``1.0+a.b`` (PEP 440, local versions and leading v)."""
    public, plus, local = version.strip().lower().partition("+")
    return public.removeprefix("v") + plus + re.sub(r"[-_]", ".", local)


def same_version(wanted: str, found: str) -> bool:
    """Whether it is that version, or a local build of it where no local version was wanted."""
    wanted, found = plain_version(wanted), plain_version(found)
    return found == wanted or ("+" not in wanted and found.partition("+")[0] == wanted)


def matches(path: str, pattern: str) -> bool:
    """Whether the pattern means that path: ``*`` within one folder, ``**`` any number of folders."""
    return _matches(path.split("/"), pattern.split("/"))


def _matches(parts: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return _matches(parts, patterns[1:]) or (bool(parts) and _matches(parts[1:], patterns))
    return bool(parts) and fnmatchcase(parts[0], patterns[0]) and _matches(parts[1:], patterns[1:])


def numbers(version: str) -> tuple[int, ...]:
    """``2.35`` so that it compares as versions do; empty where it is no such version."""
    return tuple(int(one) for one in version.split(".")) if re.fullmatch(r"[0-9]+(\.[0-9]+)*", version) else ()


def check_wheel(path: Path, wanted: argparse.Namespace, findings: Findings) -> None:
    """Everything that one wheel says by itself."""
    where = path.name
    name = _WHEEL_NAME.fullmatch(where)
    if not name:
        findings.wrong(where, "file name", "name-version-python-abi-platform.whl", where)
        return
    findings.wheels.append(
        {
            "file": where,
            "distribution": canonical(name["name"]),
            "version": name["version"],
            "size": path.stat().st_size,
            "sha256": _sha256(path),
        }
    )
    version = wanted.versions.get(canonical(name["name"]))
    if version and not same_version(version, name["version"]):
        findings.wrong(where, "version in the file name", version, name["version"])
    digests: dict[str, tuple[str, int]] = {}
    information: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            check_names(where, archive.infolist(), findings)
            for info in archive.infolist():
                if not info.is_dir():
                    digests[info.filename] = _read_member(archive, info, wanted, findings)
                    if re.fullmatch(r"[^/]+\.dist-info/(METADATA|RECORD)", info.filename):
                        information[info.filename] = archive.read(info)
    except (*_UNREADABLE, OSError) as error:
        findings.wrong(where, "archive", "a readable zip archive", str(error) or type(error).__name__)
        return  # what else is missing would be for this reason
    check_metadata(where, information, name, wanted, findings)
    check_record(where, information, digests, findings)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def check_names(where: str, members: Iterable[zipfile.ZipInfo], findings: Findings) -> None:
    """No member that an installer could write anywhere but below its own folder."""
    seen: set[str] = set()
    for info in members:
        name = info.filename
        if name.startswith("/") or re.match(r"[A-Za-z]:", name) or "\\" in name or ".." in name.split("/"):
            findings.wrong(where, "path in the archive", "relative, without '..'", name)
        if stat.S_ISLNK(info.external_attr >> 16):
            findings.wrong(where, "file in the archive", "no symbolic link", name)
        if name in seen:
            findings.wrong(where, "file in the archive", "each once", f"{name} again")
        seen.add(name)


def _read_member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, wanted: argparse.Namespace, findings: Findings
) -> tuple[str, int]:
    """A member's digest as RECORD writes it, and its size; on the way it is judged for what it is."""
    with archive.open(info) as member:
        head = member.read(1 << 20)
        digest, size = hashlib.sha256(head), len(head)
        installed = _SPREAD.sub("", info.filename)
        library = bool(_LIBRARY.search(info.filename))
        device = any(matches(installed, pattern) for pattern in wanted.device_code)
        whole = library or device or head.startswith(b"\x7fELF")
        if whole and info.file_size > MAX_MEMBER_BYTES:
            findings.unknown.add((installed, f"it has more than {MAX_MEMBER_BYTES} bytes"))
            whole = False
        pieces = [head]
        while piece := member.read(1 << 20):
            digest.update(piece)
            size += len(piece)
            if whole:
                pieces.append(piece)
    findings.held[installed] = max(size, findings.held.get(installed, 0))
    if whole:
        content = b"".join(pieces)
        check_elf(installed, content, wanted, findings, library=library)
        if device:
            check_device_code(installed, content, wanted, findings)
    return "sha256=" + base64.urlsafe_b64encode(digest.digest()).rstrip(b"=").decode(), size


def check_elf(where: str, content: bytes, wanted: argparse.Namespace, findings: Findings, *, library: bool) -> None:
    """A library is one for this machine, asks for no newer C or C++ library, and looks for none where it was built."""
    try:
        file = elf.Elf(content)
        for folder in (*file.rpath, *file.runpath):
            if re.match(r"(/var)?/tmp(/|$)", folder):
                findings.wrong(where, "folder to look for libraries in", "none of the build", folder)
        needs = file.version_needs if file.machine == elf.EM_X86_64 else {}
    except elf.NotElfError as error:
        if library:
            findings.wrong(where, "library", "an x86-64 ELF file", str(error))
        return
    except elf.ElfError as error:
        findings.wrong(where, "ELF file", "one that can be read", str(error))
        return
    if library and file.machine != elf.EM_X86_64:
        findings.wrong(where, "machine of the library", f"x86-64 ({elf.EM_X86_64})", str(file.machine))
    for version in sorted({one for versions in needs.values() for one in versions}):
        check_need(where, version, wanted, findings)


def check_need(where: str, need: str, wanted: argparse.Namespace, findings: Findings) -> None:
    """One symbol version, such as GLIBC_2.34, is not above its ceiling."""
    family, _, version = need.partition("_")
    ceiling = {"GLIBC": wanted.glibc, "GLIBCXX": wanted.glibcxx}.get(family)
    if family not in {"GLIBC", "GLIBCXX", "CXXABI"}:
        return
    if family == "GLIBC":
        version = _GLIBC_FEATURES.get(version, version)
    if numbers(version) > numbers(findings.needs.get(family, "")):
        findings.needs[family] = version
    # A name that is no version, such as GLIBC_PRIVATE, is promised by no release.
    if ceiling and not () < numbers(version) <= numbers(ceiling):
        findings.wrong(where, f"needs {need}", f"at most {family}_{ceiling}", need)


def check_device_code(where: str, content: bytes, wanted: argparse.Namespace, findings: Findings) -> None:
    """A library with GPU code has it for all archs, and what its bundle promises is what the code is."""
    archs = " ".join(wanted.archs)
    try:
        elf.Elf(content)  # a bundle on its own would be taken for device code, and nothing would load it
        found = elf.code_objects(content)
    except elf.CannotLookError as error:
        findings.unknown.add((where, str(error)))
        return
    except elf.ElfError as error:
        findings.wrong(where, "device code", archs, str(error))
        return
    for one in found:
        if one.disagrees:
            findings.wrong(where, f"device code of {one.entry}", one.named + " in its e_flags", one.processor)
    processors = {one.processor for one in found}
    findings.device_code[where] = sorted(processors)
    shown = " ".join(sorted(processors)) or "none"
    for arch in wanted.archs:
        if arch not in processors:
            findings.wrong(where, "device code", arch, shown)
    if wanted.only_archs and processors - set(wanted.archs):
        findings.wrong(where, "device code", f"only {archs}", shown)


def check_metadata(
    where: str,
    information: dict[str, bytes],
    name: re.Match[str],
    wanted: argparse.Namespace,
    findings: Findings,
) -> None:
    """One .dist-info, and in it the name and version that the file name has."""
    said = _information(where, information, "METADATA", findings)
    if said is None:
        return
    headers = email.parser.BytesParser().parsebytes(said, headersonly=True)
    inside, version = str(headers["Name"]), str(headers["Version"])
    if canonical(inside) != canonical(name["name"]):
        findings.wrong(where, "Name in METADATA", f"{name['name']}, as the file name has", inside)
    if plain_version(version) != plain_version(name["version"]):
        findings.wrong(where, "Version in METADATA", f"{name['version']}, as the file name has", version)
    expected = wanted.versions.get(canonical(name["name"]))
    if expected and not same_version(expected, version):
        findings.wrong(where, "Version in METADATA", expected, version)


def _information(where: str, information: dict[str, bytes], file: str, findings: Findings) -> bytes | None:
    found = sorted(one for one in information if one.endswith(f"/{file}"))
    if len(found) == 1:
        return information[found[0]]
    findings.wrong(where, file, "one in one .dist-info", " ".join(found) or "none")
    return None


def check_record(
    where: str, information: dict[str, bytes], digests: dict[str, tuple[str, int]], findings: Findings
) -> None:
    """RECORD lists every file, and no other, with its sha256 and size (the wheel format, "The .dist-info directory")."""
    said = _information(where, information, "RECORD", findings)
    if said is None:
        return
    try:
        rows = [row for row in csv.reader(io.StringIO(said.decode("utf-8"), newline="")) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        findings.wrong(where, "RECORD", "a table in UTF-8", str(error))
        return
    listed: set[str] = set()
    for row in rows:
        if len(row) != 3 or row[0] in listed:
            findings.wrong(where, "line of RECORD", "path, hash, size; a path once", ",".join(row))
        elif row[0] not in digests:
            findings.wrong(where, "file that RECORD lists", row[0], "no such file")
        elif not _UNHASHED.fullmatch(row[0]):
            _check_line(where, row, digests[row[0]], findings)
        listed.add(row[0])
    for name in sorted(set(digests) - listed):
        if not _UNHASHED.fullmatch(name):
            findings.wrong(where, "RECORD", f"a line for {name}", "none")


def _check_line(where: str, row: list[str], seen: tuple[str, int], findings: Findings) -> None:
    (name, said, length), (digest, size) = row, seen
    if digest != said.rstrip("="):
        findings.wrong(where, f"hash of {name}", said or "a sha256 in RECORD", digest)
    if str(size) != length:
        findings.wrong(where, f"size of {name}", length or "a size in RECORD", str(size))


def check_set(wanted: argparse.Namespace, findings: Findings) -> None:
    """What the wheels hold together: the distributions, the files that must be there, their size."""
    where = str(wanted.wheels)
    built = [str(one["distribution"]) for one in findings.wheels]
    for name in sorted({canonical(one) for one in wanted.distribution} | set(built)):
        expected = "one wheel" if name in {canonical(one) for one in wanted.distribution} else "none"
        if (built.count(name) == 1) != (expected == "one wheel"):
            findings.wrong(where, f"wheels of {name}", expected, str(built.count(name)))
    for pattern in wanted.holds:
        found = {name: size for name, size in findings.held.items() if matches(name, pattern)}
        if not any(found.values()):
            findings.wrong(where, pattern, "a file that is not empty", f"{len(found)} empty" if found else "none")
    for pattern in wanted.device_code:
        if not any(matches(name, pattern) for name in findings.held):
            findings.wrong(where, f"{pattern}, for its device code", "a file", "none")
    total = sum(int(str(one["size"])) for one in findings.wheels)
    if total < wanted.min_bytes:
        findings.wrong(where, "size of all wheels", f"{wanted.min_bytes} bytes or more", f"{total} bytes")


def check_log(wanted: argparse.Namespace, findings: Findings) -> None:
    """The build said nothing that it must not say; the first line of each kind is named."""
    for path in wanted.log:
        try:
            with path.open(encoding="utf-8", errors="replace") as log:
                first = _first_lines(log, wanted.log_must_not)
        except OSError as error:
            findings.unknown.add((str(path), f"the build log could not be read: {error.strerror}"))
            continue
        for pattern, (number, line) in first.items():
            findings.wrong(f"{path}:{number}", "the build log", f"no line with {pattern.pattern}", line)


def _first_lines(log: Iterator[str], patterns: list[re.Pattern[str]]) -> dict[re.Pattern[str], tuple[int, str]]:
    first: dict[re.Pattern[str], tuple[int, str]] = {}
    for number, line in enumerate(log, 1):
        for pattern in patterns:
            if pattern not in first and pattern.search(line):
                first[pattern] = (number, line.strip())
    return first


def check_installed(wanted: argparse.Namespace, findings: Findings) -> None:
    """This interpreter still has what it had before the build."""
    for name, version in wanted.installed:
        try:
            found = str(metadata.version(name))
        except (metadata.PackageNotFoundError, KeyError):
            found = "not installed"
        if plain_version(found) != plain_version(version):
            findings.wrong(name, "version installed in this Python", version, found)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Judge the wheels that a recipe has just built.", allow_abbrev=False)
    lists: dict[str, Any] = {"action": "extend", "nargs": "+", "default": []}

    def pair(text: str) -> tuple[str, str]:
        name, equals, version = text.partition("==")
        if not (name and equals and version):
            raise argparse.ArgumentTypeError(f"{text!r} is not NAME==VERSION")
        return name, version

    def ceiling(text: str) -> str:
        if not numbers(text):
            raise argparse.ArgumentTypeError(f"{text!r} is not a version of numbers and dots")
        return text

    def regex(text: str) -> re.Pattern[str]:
        try:
            return re.compile(text)
        except re.error as error:
            raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from error

    def archs(text: str) -> list[str]:
        return sorted({one.strip() for one in re.split(r"[;,]", text) if one.strip()})

    parser.add_argument("--wheels", type=Path, required=True, help="the folder with the wheels, and no others")
    parser.add_argument("--component", required=True, help="what was built; its distribution, where none is named")
    parser.add_argument("--distribution", metavar="NAME", help="what must be there, one wheel each", **lists)
    parser.add_argument("--version", help="of the first; 0.1.14 means 0.1.14+anything too")
    parser.add_argument("--holds", metavar="PATTERN", help="at least one file that is not empty", **lists)
    parser.add_argument("--device-code", metavar="PATTERN", help="libraries with GPU code for all archs", **lists)
    parser.add_argument("--archs", type=archs, default=[], help="gfx942;gfx950")
    parser.add_argument("--only-archs", action="store_true", help="and for no other")
    parser.add_argument("--glibc", type=ceiling, help="the newest GLIBC_ version a file may need")
    parser.add_argument("--glibcxx", type=ceiling, help="the newest GLIBCXX_ version a file may need")
    parser.add_argument("--min-bytes", type=int, default=0, help="of all wheels together, as they lie on disk")
    parser.add_argument("--log", metavar="FILE", type=Path, help="what the build said", **lists)
    parser.add_argument("--log-must-not", metavar="REGEX", type=regex, help="no line may match", **lists)
    parser.add_argument("--installed", metavar="NAME==VERSION", type=pair, help="exactly that, in this Python", **lists)
    parser.add_argument("--report", type=Path, help="write what was found there, as JSON")
    wanted = parser.parse_args(argv)
    if bool(wanted.device_code) != bool(wanted.archs) or (wanted.only_archs and not wanted.archs):
        parser.error("--device-code and --archs go together")
    if bool(wanted.log) != bool(wanted.log_must_not):
        parser.error("--log and --log-must-not go together")
    wanted.distribution = wanted.distribution or [wanted.component]
    wanted.versions = {canonical(wanted.distribution[0]): wanted.version}
    return wanted


def main(argv: list[str] | None = None) -> int:
    """Run all checks, say what they found, and return the exit status."""
    wanted = _arguments(argv)
    findings = Findings()
    try:
        wheels = sorted(one for one in wanted.wheels.iterdir() if one.name.endswith(".whl"))
    except OSError as error:
        findings.unknown.add((str(wanted.wheels), f"the folder could not be read: {error.strerror}"))
    else:
        for path in wheels:
            check_wheel(path, wanted, findings)
        check_set(wanted, findings)
    check_log(wanted, findings)
    check_installed(wanted, findings)

    if wanted.report:
        document = {
            "schema_version": 1,
            "component": wanted.component,
            "result": findings.result,
            "wheels": findings.wheels,
            "device_code": findings.device_code,
            "needs": findings.needs,
            "problems": [asdict(one) for one in sorted(findings.problems)],
            "could_not_look": [{"where": where, "why": why} for where, why in sorted(findings.unknown)],
        }
        try:
            wanted.report.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        except OSError as error:
            findings.unknown.add((str(wanted.report), f"the report could not be written: {error.strerror}"))
    for problem in sorted(findings.problems):
        print(f"wrong: {problem}", file=sys.stderr)
    for where, why in sorted(findings.unknown):
        print(f"could not look: {where}: {why}", file=sys.stderr)
    print(f"{wanted.component}: {findings.result}: {_summary(findings)}")
    return {"fail": EXIT_WRONG, "error": EXIT_UNKNOWN, "pass": 0}[findings.result]


def _summary(findings: Findings) -> str:
    if findings.problems or findings.unknown:
        return f"{len(findings.problems)} wrong, {len(findings.unknown)} could not be looked at"
    parts = [f"{one['file']} ({one['size']} bytes)" for one in findings.wheels] + [f"{len(findings.held)} files"]
    if findings.device_code:
        archs = sorted({arch for found in findings.device_code.values() for arch in found})
        parts.append(f"device code for {' '.join(archs)} in {len(findings.device_code)}")
    return ", ".join(parts + [f"{family}_{version}" for family, version in sorted(findings.needs.items())])


if __name__ == "__main__":
    sys.exit(main())
