"""Wheels through pip: resolving requirements to exact files, and downloading locked ones.

Everything goes through ``python -m pip`` of Kiln's own tool environment, so that indexes, mirrors, proxies, certificates
and credentials are those of the user's pip configuration and never pass through Kiln.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from kiln.errors import FetchError, HashMismatchError, HostError, ResolveError
from kiln.lockentries import Wheel
from kiln.pins import Pins
from kiln.process import Finished, run

_PIP = (sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check")
_PIP_ENV = {"PIP_NO_COLOR": "1", "PIP_PROGRESS_BAR": "off", "PYTHONWARNINGS": "ignore", "LC_ALL": "C.UTF-8"}


@dataclass(frozen=True)
class Resolved:
    """One distribution that pip chose: what it is, which wheel, where that lies and what it requires in its turn."""

    name: str
    version: str
    url: str
    sha256: str
    requires: tuple[Requirement, ...]

    @property
    def file(self) -> str:
        """The wheel's file name."""
        return _unquote(self.url.rsplit("/", 1)[-1].split("#")[0])


def target_options(pins: Pins) -> list[str]:
    """pip's options for the image's Python and C library instead of this machine's.

    pip compares platform tags literally, so every manylinux tag up to the image's glibc is named (PEP 600, and the three
    older names that PEP 600 maps to glibc 2.5, 2.12 and 2.17).
    """
    major, newest = (int(part) for part in pins.glibc.split("."))
    tags = [f"manylinux_{major}_{minor}_x86_64" for minor in range(newest, 4, -1)]
    tags += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]
    options = ["--only-binary=:all:", "--implementation=cp", f"--python-version={pins.python}"]
    options += [f"--platform={tag}" for tag in tags]
    return options


def resolve(pins: Pins, requirements: Sequence[str], indexes: Sequence[str] = ()) -> dict[str, Resolved]:
    """What pip would install for ``requirements`` on the image's Python, by canonical name. Nothing is installed.

    Raises ResolveError with pip's own words where there is no such version or versions contradict each other, HostError
    where this Python cannot decide for the image's (pip evaluates environment markers for the Python it runs on; with ``--no-deps`` there are none).
    """
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    if running != pins.python and "--no-deps" not in requirements:
        raise HostError(
            f"`kiln lock` for this stack needs Python {pins.python}, and kiln runs on {running}",
            why="pip evaluates environment markers for the Python that it runs on, so another one would lock other dependencies.",
            fix=f"remove .kiln/venv and make it again with Python {pins.python}: make PYTHON=python{pins.python} tools",
        )
    options = ["--dry-run", "--ignore-installed", "--quiet", "--target=unused", "--report=-", *target_options(pins)]
    options += [f"--extra-index-url={url}" for url in indexes]
    done = run([*_PIP, "install", *options, *requirements], env=_PIP_ENV, split=True, timeout=1800)
    if done.code != 0:
        raise ResolveError(
            "pip found no set of wheels for the pins",
            why=_pip_errors(done),
            fix="correct the pins, or the index that pip is configured for (`pip config list`)",
        )
    return resolved(done.output)


def resolved(report: str) -> dict[str, Resolved]:
    """What pip's report (``pip install --report``) says it chose, by canonical name. Raises ResolveError where it is no such report."""
    try:
        return {item.name: item for item in map(_resolved, json.loads(report)["install"])}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ResolveError(
            "what pip chose cannot be read",
            why=repr(error),
            fix="see whether another pip is configured, or a broken index",
        ) from error


def _resolved(item: Mapping[str, Any]) -> Resolved:
    metadata, source = item["metadata"], item["download_info"]
    hashes = source.get("archive_info", {}).get("hashes", {})
    return Resolved(
        name=str(canonicalize_name(metadata["name"])),
        version=metadata["version"],
        url=source["url"],
        sha256=hashes.get("sha256", ""),
        requires=tuple(Requirement(text) for text in metadata.get("requires_dist", [])),
    )


def download(pins: Pins, wheels: Sequence[Wheel], folder: Path, index: str = "") -> dict[str, Path]:
    """Download locked wheels into ``folder``; returns their paths by sha256. ``index`` is an extra index to ask.

    pip compares the hashes itself; the store does it once more. Raises HashMismatchError naming the wheel whose bytes
    differ, FetchError where pip cannot get it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = folder / "requirements.txt"
    wanted.write_text(requirements_text(wheels), encoding="utf-8")
    options = [
        "--no-deps",
        "--require-hashes",
        "--no-cache-dir",
        f"--dest={folder}",
        f"--requirement={wanted}",
        *target_options(pins),
    ]
    if index:
        options.append(f"--extra-index-url={index}")
    # pip unpacks beside the target, so a full disk is the target's disk and nothing is copied between disks.
    done = run([*_PIP, "download", *options], env={**_PIP_ENV, "TMPDIR": str(folder)}, timeout=3600)
    if done.code != 0:
        _explain_download(done, wheels)
    files = {(_identity(path.name)): path for path in folder.glob("*.whl")}
    return {wheel.sha256: files[_identity(wheel.file)] for wheel in wheels if _identity(wheel.file) in files}


def requirements_text(wheels: Iterable[Wheel]) -> str:
    """The wheels as a requirements file with hashes: what pip downloads by, and what the image's stages install by."""
    return "".join(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n" for wheel in wheels)


def _explain_download(done: Finished, wheels: Sequence[Wheel]) -> None:
    text = done.output
    if mismatch := re.search(r"Expected sha256 ([0-9a-f]{64})\n\s*Got\s+([0-9a-f]{64})", text):
        expected, got = mismatch.groups()
        culprit = next((wheel.label for wheel in wheels if wheel.sha256 == expected), "a wheel")
        origin = next(
            (
                line.strip()
                for line in reversed(text[: mismatch.start()].splitlines())
                if re.search(r"\bfrom (https?|file):", line)
            ),
            "",
        )
        origin = origin or next(
            (line.strip() for line in text.splitlines() if re.match(r"\s*(Downloading|Processing|Looking in) ", line)),
            "pip's index",
        )
        raise HashMismatchError(
            f"{culprit} is not the file that the lock names",
            why=f"expected sha256 {expected}\ngot      sha256 {got}\nfrom     {origin}",
        )
    names = ", ".join(wheel.label for wheel in wheels)
    raise FetchError(
        f"pip could not download {names}",
        why=_pip_errors(done),
        fix="see where pip looks with `pip config list`; a mirror or proxy set there is used. Then run the same command again: what is already stored stays",
    )


def _pip_errors(done: Finished) -> str:
    text = (done.errors or done.output).strip()
    errors = [
        line
        for line in text.splitlines()
        if line.startswith("ERROR") or "conflict" in line.lower() or "depends on" in line
    ]
    return "\n".join(errors[:20]) or done.tail(12)


def _identity(file: str) -> tuple[str, str, str]:
    """What makes a wheel's file name the same for pip: indexes differ in how they spell name and version."""
    name, version, build, tags = parse_wheel_filename(file)
    return str(name), str(version), f"{build}{sorted(map(str, tags))}"


def _unquote(text: str) -> str:
    from urllib.parse import unquote

    return unquote(text)
