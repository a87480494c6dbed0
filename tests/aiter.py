"""A stand-in for AITER's repository with its real tag names, and a copy of the project whose lock and advisories speak of the stand-in's commits."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from kiln.lockfile import Lock, dump_lock, parse_lock, read_lock
from kiln.pins import read_pins
from kiln.render import render, write_rendered
from kiln.workspace import Workspace
from tests.rehearsal.standins import Repositories

STACK = "dsv4-mhc"
AITER, KERNELS = "https://github.com/ROCm/aiter", "https://github.com/ROCm/composable_kernel.git"
# The commits of the real repository that the advisories ask for.
RACE_FIX = "b639cb63bcac4672dce33a731fad042a65cb3649"
PRE_RMS = "79624295c8b713a646d91c742694fd2cbb1139c0"
PRE_RMS_FIX = "1be6aee67b7cf9e0e90daccc700f763043a99f5d"
TRITON_SWAP = "446ed170baa06790934a88f1c0284ffe5ec39ae4"
_FOLDERS = ("pins", "images", "templates", "plugins", "scripts")


@dataclass(frozen=True)
class Hub:
    """Where the stand-ins lie, below their hosts; and the commits, by tag or by the commit of the real repository that each stands for."""

    folder: Path
    commits: Mapping[str, str]

    @property
    def mirrors(self) -> str:
        """KILN_MIRRORS: the stand-ins, and nobody else that answers."""
        return f"https://github.com/={self.folder / 'github.com'} docker.io/=127.0.0.1:9/"


def make_hub(folder: Path) -> Hub:
    """AITER's stand-in: releases in one line, but v0.1.18, which comes off v0.1.15 and lacks the fix that v0.1.16.post2 has."""
    repositories = Repositories(folder)
    old = repositories.commit(KERNELS, {"ck.hpp": b"// one\n"})
    new = repositories.commit(KERNELS, {"ck.hpp": b"// two\n"}, on=old.commit)
    files = {
        "setup.py": b"import os\nfrom setuptools import setup\nsetup()\n",
        "pyproject.toml": b'[build-system]\nrequires = ["setuptools", "flydsl==0.1.7"]\n',
        "requirements.txt": b"# what AITER wants\npybind11>=3.0.1\nflydsl==0.1.7\n",
        "csrc/kernels/mhc_kernels.cu": b"// no kernel\n",
        ".github/workflows/build.yaml": b"on: push\n",
    }
    later = {
        **files,
        "setup.py": b"import os\nfrom setuptools import setup\n\nsetup(ext_modules=[])\n",
        "pyproject.toml": b'[build-system]\nrequires = ["setuptools", "flydsl==0.2.0", "psutil"]\n',
        "requirements.txt": b"pybind11>=3.0.1\nflydsl==0.2.0\n",
        ".github/workflows/build.yaml": b"on: [push]\n",
    }
    commits: dict[str, str] = {}
    above = ""

    def add(name: str, message: str, files: Mapping[str, bytes], kernels: str, on: str, *, tag: bool = True) -> str:
        nonlocal above
        links = {"3rdparty/composable_kernel": replace(old, commit=kernels)}
        tags = (name,) if tag else ()
        changing = {**files, "aiter/release.txt": f"{name}\n".encode()}
        made = repositories.commit(
            AITER, changing, tags=tags, annotated=tag, submodules=links, on=on or above, message=message
        )
        commits[name] = above = made.commit
        return made.commit

    add("v0.1.13", "Release 0.1.13", files, old.commit, "")
    add(RACE_FIX, "mHC: one lane stores a row's sum of squares (#3033)", files, old.commit, "", tag=False)
    add("v0.1.14", "Release 0.1.14", files, old.commit, "")
    add(PRE_RMS, "mhc_pre_big_fuse adds partial sums (#3237)", files, old.commit, "", tag=False)
    late = add("v0.1.15", "Release 0.1.15", files, old.commit, "")
    add(PRE_RMS_FIX, "mhc_pre_big_fuse: every lane takes part\x1b[2J (#3417)", later, new.commit, "", tag=False)
    good = add("v0.1.16.post2", "Release 0.1.16.post2", later, new.commit, "")
    add("v0.1.17-longctx", "Long contexts", later, new.commit, good)
    add("v0.1.18", "Release 0.1.18, from the branch of 0.1.15", files, old.commit, late)
    add("v0.1.19-rc0", "Candidate of 0.1.19", later, new.commit, good)
    return Hub(folder, commits)


def make_project(project: Path, folder: Path, hub: Hub) -> Workspace:
    """A checkout (git) of the project whose lock names the stand-in's v0.1.14."""
    for name in _FOLDERS:
        shutil.copytree(project / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    workspace = Workspace(folder, folder / ".kiln")
    known = folder / "pins" / "advisories.toml"
    text = known.read_text(encoding="utf-8")
    for real in (RACE_FIX, PRE_RMS, PRE_RMS_FIX):
        text = text.replace(real, hub.commits[real])
    known.write_text(text.replace(TRITON_SWAP, hub.commits[RACE_FIX]), encoding="utf-8")
    path = workspace.lock_file(STACK)
    path.write_text(dump_lock(_as_standin(parse_lock(path.read_text(encoding="utf-8"), ""), hub)), encoding="utf-8")
    pins = read_pins(workspace, STACK)
    write_rendered(render(workspace, pins, read_lock(workspace, pins)), folder / "images")
    (folder / ".gitignore").write_text("/.kiln/\n__pycache__/\n", encoding="utf-8")
    git(folder, "init", "--quiet", "--initial-branch=main", "--template=")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message=as it was")
    return workspace


def _as_standin(lock: Lock, hub: Hub) -> Lock:
    source = hub.folder / "github.com" / "ROCm" / "aiter"
    commit = hub.commits["v0.1.14"]
    link = git(source, "rev-parse", f"{commit}:3rdparty/composable_kernel")
    old = lock.git_of["aiter"]
    there = replace(
        old,
        commit=commit,
        tree=git(source, "rev-parse", f"{commit}^{{tree}}"),
        submodules=tuple(replace(one, commit=link) for one in old.submodules),
    )
    return replace(
        lock,
        gits=tuple(there if one.component == "aiter" else one for one in lock.gits),
        unresolved=tuple(one for one in lock.unresolved if one.name != "aiter"),
    )


def git(folder: Path, *words: str) -> str:
    """What git says, run in ``folder`` as nobody in particular."""
    who = {
        f"GIT_{role}_{what}": text
        for role in ("AUTHOR", "COMMITTER")
        for what, text in (("NAME", "T"), ("EMAIL", "t@example.com"))
    }
    done = subprocess.run(
        ["git", "-c", "commit.gpgSign=false", *words],
        cwd=folder,
        env={**os.environ, **who, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"},
        capture_output=True,
        check=True,
    )
    return done.stdout.decode().strip()
