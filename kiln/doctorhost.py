"""What ``kiln doctor`` finds on the machine itself: programs, the state folder, processor, memory, GPUs."""

from __future__ import annotations

import grp
import importlib.util
import os
import platform
import pwd
import re
import shutil
import sys
from collections.abc import Collection, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from kiln import __version__
from kiln.apt import debian_codename, sources_for
from kiln.config import read_config
from kiln.console import megabytes
from kiln.doctor import COMMANDS, DOWNLOADS, VERIFY, Asked, Finding, Pairs
from kiln.errors import HostError
from kiln.gpu import Devices, devices, gpus, unfit
from kiln.process import run

# Debian 12's git has it; what picks commits onto a source needs it (kiln/gitpick.py).
GIT_WITH_PICKS = (2, 38)
WRITING = (*DOWNLOADS, *VERIFY)


def host_findings(question: Asked) -> Iterator[Finding]:
    """One finding for each thing of the machine that some command needs."""
    yield from _python(question)
    yield from _git(question)
    yield from _apt(question)
    yield from _rootfs(question)
    yield _state(question)
    yield _platform(question)
    yield from _cpu(question)
    yield from _memory(question)
    yield from _gpu(question)


def _python(question: Asked) -> Iterator[Finding]:
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    yield Finding("python", "ok", f"{platform.python_version()}, kiln {__version__}", question.of(COMMANDS))
    # pip judges markers for the Python it runs on, and locks a stack that makes its own root file system (kiln/wheels.py).
    for stack in question.stacks:
        if stack.own_root and stack.pins.python != running:
            yield Finding(
                "python for locking",
                "missing",
                f"kiln runs on {running}, and {stack.name} is locked by Python {stack.pins.python}",
                question.of(["lock"], [stack]),
                "pip would lock the dependencies of another Python",
                f"rm -r .kiln/venv && make PYTHON=python{stack.pins.python} tools",
            )
    parts, absent = [], []
    for name in ("pip", "uv"):
        try:
            parts.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            absent.append(name)
    if "pip" not in absent and importlib.util.find_spec("pip") is None:
        absent.append("pip")
    yield Finding(
        "pip and uv",
        "missing" if absent else "ok",
        f"{', '.join(absent)} is not in kiln's environment" if absent else ", ".join(parts),
        question.of(DOWNLOADS),
        "wheels cannot be resolved or downloaded" if absent else "",
        "rm -r .kiln/venv && make tools" if absent else "",
    )


def _git(question: Asked) -> Iterator[Finding]:
    pairs = question.of(DOWNLOADS, [stack for stack in question.stacks if stack.with_sources])
    if not pairs:
        return
    if not shutil.which("git"):
        means = "sources are locked and fetched with git"
        yield Finding("git", "missing", "there is no git", pairs, means, install("git"))
        return
    said = run(["git", "--version"], timeout=20).output.strip()
    picking = [stack for stack in question.stacks if any(one.picks for one in stack.pins.components)]
    number = re.search(r"(\d+)\.(\d+)", said)
    if picking and number and (int(number[1]), int(number[2])) < GIT_WITH_PICKS:
        means = "commits are picked onto a source with git 2.38's merge-tree"
        yield Finding("git", "missing", said, question.of(DOWNLOADS, picking), means, "install git 2.38 or newer")
    else:
        yield Finding("git", "ok", said.removeprefix("git version "), pairs)


def _apt(question: Asked) -> Iterator[Finding]:
    config = dict(read_config(question.workspace).apt_sources)
    for stack in question.stacks:
        wanted = stack.pins.packages
        name, pairs = f"apt ({wanted.suite})", question.of(DOWNLOADS, [stack])
        try:
            sources_for(wanted.suite, wanted.distribution, config)
        except HostError as error:
            means = f"{error.what}; what is in the store already is not asked for again"
            yield Finding(name, "missing", "no apt sources for it", pairs, means, error.fix)
            continue
        if shutil.which("apt-get"):
            yield Finding(name, "ok", f"sources for {wanted.distribution.title()} {wanted.suite}", pairs)
        else:
            means = "packages are locked and fetched with apt"
            yield Finding(name, "missing", "there is no apt-get", pairs, means, "run kiln on Debian, or install apt")


def _rootfs(question: Asked) -> Iterator[Finding]:
    pairs = question.of(["build"], [stack for stack in question.stacks if stack.own_root])
    if not pairs:
        return
    if shutil.which("mmdebstrap"):
        said = run(["mmdebstrap", "--version"], timeout=20).output.strip()
        yield Finding("mmdebstrap", "ok", said.removeprefix("mmdebstrap "), pairs)
    elif installs_itself():
        means = "kiln installs Debian's when it first builds"
        yield Finding("mmdebstrap", "warning", "not installed", pairs, means, install("mmdebstrap"))
    else:
        means = "it makes the images' root file system"
        yield Finding("mmdebstrap", "missing", "not installed", pairs, means, install("mmdebstrap"))
    if os.geteuid() != 0:
        means = "mmdebstrap sets owners and runs maintainer scripts in a chroot, which takes root"
        yield Finding("root", "missing", f"this is user {_user(os.geteuid())}", pairs, means, "run kiln as root")


def _state(question: Asked) -> Finding:
    state = question.workspace.state
    there, pairs = existing(state), question.of(WRITING)
    if not os.access(there, os.W_OK | os.X_OK):
        fix = f"put kiln's files elsewhere: export KILN_STATE=/var/tmp/kiln; or give yourself the folder: chown -R {_user(os.geteuid())} {there}"
        return Finding("state folder", "missing", f"{there} may not be written to", pairs, f"it is {state}", fix)
    owner = there.stat().st_uid
    if there == state and owner != os.geteuid():
        return Finding(
            "state folder",
            "warning",
            f"{state} is {_user(owner)}'s, and this is {_user(os.geteuid())}",
            pairs,
            "what one user writes there the other cannot replace",
            f"run kiln as {_user(owner)}, or use a folder of your own: export KILN_STATE=/var/tmp/kiln-{_user(os.geteuid())}",
        )
    return Finding("state folder", "ok", f"{state}" + ("" if there == state else ", not made yet"), pairs)


def _platform(question: Asked) -> Finding:
    machine = platform.machine()
    pairs = question.of(("build", *VERIFY))
    if machine in ("x86_64", "amd64"):
        return Finding("machine", "ok", f"{machine}, {os.cpu_count()} processors", pairs)
    means = "the images are for linux/amd64; building or running them by emulation was never tried"
    return Finding("machine", "missing", machine, pairs, means, "use an x86-64 machine")


def _cpu(question: Asked) -> Iterator[Finding]:
    served = [stack for stack in question.stacks if stack.pins.target == "cpu"]
    pairs = question.of(("verify-ops", "verify-generate"), served)
    try:
        flags = set((question.root / "proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        yield Finding("processor", "warning", "/proc/cpuinfo cannot be read", pairs, "what it can do is not known")
        return
    if "avx512_bf16" in flags:
        yield Finding("processor", "ok", "has AVX-512 BF16: vLLM's compiled operators run", pairs)
    else:
        best = next((name for name in ("avx512f", "avx2") if name in flags), "x86-64 without AVX2")
        means = "PyTorch operators stand in for vLLM's compiled ones, and the check says so; nothing needs to be done"
        yield Finding("processor", "ok", f"{best}, no AVX-512 BF16", pairs, means)


def _memory(question: Asked) -> Iterator[Finding]:
    for stack in question.stacks:
        if stack.on_gpu and unfit(gpus(question.root), stack.pins.archs, question.root):
            continue  # nothing is served here, whatever the memory
        wanted = max((image.memory for image in stack.images if image.settings), default=0)
        pairs = question.of(["verify-generate"], [stack])
        try:
            text = (question.root / "proc/meminfo").read_text(encoding="utf-8")
            total = int(re.findall(r"^MemTotal:\s+(\d+) kB", text, re.MULTILINE)[0]) << 10
        except (OSError, IndexError):
            continue
        found = f"{megabytes(total)}; a server of {stack.name} may take {megabytes(wanted)}"
        if total >= wanted:
            yield Finding("memory", "ok", found, pairs)
        else:
            means = "the kernel may end the server while it is looked at; how much less is enough is not known"
            yield Finding("memory", "warning", found, pairs, means, "verify on a machine with more memory")


def _gpu(question: Asked) -> Iterator[Finding]:
    found = gpus(question.root)
    for stack in question.stacks:
        if not stack.on_gpu:
            continue
        pairs = question.of(("verify-ops", "verify-generate"), [stack])
        why = unfit(found, stack.pins.archs, question.root)
        if why:
            means = "the checks that need one are skipped here, and fail with --require"
            fix = f"verify on a machine with {' or '.join(stack.pins.archs)}; here: kiln verify {stack.name} --level static"
            if "shows no GPU" in why:
                fix = f"load the driver (modprobe amdgpu), or give this container the GPUs; {fix}"
            yield Finding("gpu", "missing", why, pairs, means, fix)
            continue
        given = devices(found, question.root)
        assert given is not None, "there are GPUs"
        archs = ", ".join(sorted({gpu.arch for gpu in found}))
        yield Finding("gpu", "ok", f"{len(found)} of {archs}", pairs)
        yield _gpu_groups(question, given, pairs)


def _gpu_groups(question: Asked, given: Devices, pairs: Pairs) -> Finding:
    """Whether a container that has no right of root's, only the devices and their groups, may open every device file."""
    shut = [file for file in given.files if not _opens((question.root / file.lstrip("/")).stat(), given.groups)]
    groups = ", ".join(_group(number) for number in given.groups) or "root's alone"
    if shut:
        means = (
            "kiln's containers get the groups of these files and no other right, so they may not read and write them"
        )
        fix = f"chgrp render {' '.join(shut)} && chmod 660 {' '.join(shut)}   (as root; for good: a udev rule)"
        return Finding("gpu groups", "missing", f"{', '.join(shut)}: closed to its group", pairs, means, fix)
    means = "kiln gives its containers these groups, so you need be in none of them; your own programs (rocminfo) ask for it"
    return Finding("gpu groups", "ok", groups, pairs, means)


def _opens(of: os.stat_result, groups: Collection[int]) -> bool:
    """Whether a process of root's with these groups and without capabilities may read and write a file."""
    if of.st_uid == 0:
        return of.st_mode & 0o600 == 0o600
    if of.st_gid in (0, *groups):
        return of.st_mode & 0o060 == 0o060
    return of.st_mode & 0o006 == 0o006


def existing(path: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(one for one in (path, *path.parents) if one.is_dir())


def installs_itself() -> bool:
    """Whether Kiln would install a program by itself: on Debian, as root."""
    return os.geteuid() == 0 and debian_codename() is not None and shutil.which("apt-get") is not None


def install(package: str) -> str:
    """How a person installs it."""
    if debian_codename():
        return f"apt-get install {package}   (as root)"
    return f"install {package} with your system's package manager"


def _group(number: int) -> str:
    try:
        return f"{grp.getgrgid(number).gr_name} ({number})"
    except KeyError:
        return str(number)


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
