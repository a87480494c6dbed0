"""Stand-ins for everything that the ROCm stacks take from upstreams: small, real in kind, made here and nowhere else.

Real git repositories with the refs that the pins name, submodules and build entry points; real wheels and Debian packages that hold nothing;
shared objects with real GPU code (``hip/``); and a base image made of the same Debian packages as the cpu stack's. ``kiln rehearse`` builds the
very same rendered files from them.

    python tests/rehearsal/standins.py FOLDER
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from kiln.canonical import digest_of, tree_digest
from kiln.console import Console
from kiln.engine import Engine, ensure_engine
from kiln.fetch import fetch
from kiln.host import ensure_mmdebstrap
from kiln.lockfile import Lock, dump_lock, read_lock
from kiln.lockrocm import wheel_root
from kiln.pins import Pins, read_pins
from kiln.rootfs import make_rootfs, place_file
from kiln.store import Store
from kiln.workspace import Workspace

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
STACK, UPSTREAM = "dsv4-mhc", "dsv4-mhc-upstream"
STACKS = (STACK, UPSTREAM)
EPOCH = 1_780_000_000
AITERS = ("v0.1.13", "v0.1.14", "v0.1.16.post2")
# The pull request that each commit is of which the pins pick.
FIXES = {"555d04f": "8991", "dd998b6": "9541"}
# What builds the stand-ins' wheels must be real; every other wheel holds nothing.
REAL_WHEELS = ("setuptools", "wheel", "packaging", "uv", "flit-core")
Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Made:
    """A commit that was made: its repository's upstream URL and its id."""

    url: str
    commit: str


class Repositories:
    """Git repositories below one folder, each at its upstream's host and path; names, dates and ids are the same wherever they are made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def commit(
        self,
        url: str,
        files: Files,
        *,
        tags: tuple[str, ...] = (),
        annotated: bool = False,
        submodules: Mapping[str, Made] | None = None,
        on: str = "",
        message: str = "",
    ) -> Made:
        """One commit with exactly these files, after ``on`` (a commit id) or as the first; tags name it."""
        path = self.folder / url.removeprefix("https://").removesuffix(".git")
        if not path.is_dir():
            path.mkdir(parents=True)
            self._git(path, "init", "--quiet", "--initial-branch=main")
        self._git(path, "read-tree", "--empty")
        modules = ""
        for place, made in (submodules or {}).items():
            modules += f'[submodule "{place}"]\n\tpath = {place}\n\turl = {made.url}\n'
            self._git(path, "update-index", "--add", "--cacheinfo", f"160000,{made.commit},{place}")
        everything = {**files, **({".gitmodules": modules.encode()} if modules else {})}
        for name, data in everything.items():
            blob = self._git(path, "hash-object", "-w", "--stdin", data=data)
            mode = "100755" if data.startswith(b"#!") else "100644"
            self._git(path, "update-index", "--add", "--cacheinfo", f"{mode},{blob},{name}")
        tree = self._git(path, "write-tree")
        parent = ["-p", on] if on else []
        commit = self._git(path, "commit-tree", tree, *parent, "-m", message or f"stand-in {' '.join(tags)}".strip())
        self._git(path, "update-ref", "refs/heads/main", commit)
        for tag in tags:
            named = commit
            if annotated:
                text = f"object {commit}\ntype commit\ntag {tag}\ntagger stand-in <standin@example.invalid> {EPOCH} +0000\n\nstand-in\n"
                named = self._git(path, "hash-object", "-w", "-t", "tag", "--stdin", data=text.encode())
            self._git(path, "update-ref", f"refs/tags/{tag}", named)
        return Made(url, commit)

    @staticmethod
    def _git(path: Path, *words: str, data: bytes = b"") -> str:
        who = {
            f"GIT_{role}_{what}": value
            for role in ("AUTHOR", "COMMITTER")
            for what, value in (("NAME", "stand-in"), ("EMAIL", "standin@example.invalid"), ("DATE", f"{EPOCH} +0000"))
        }
        done = subprocess.run(
            ["git", "-C", str(path), *words],
            input=data,
            capture_output=True,
            check=True,
            env={**os.environ, **who, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"},
        )
        return done.stdout.decode().strip()


def source(name: str) -> dict[str, bytes]:
    """The files of ``sources/<name>`` and the shared objects that its setup.py packs."""
    folder = HERE / "sources" / name
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    for made, called in (("module_both", "both"), ("module_gfx942", "gfx942"), ("host_only", "host_only")):
        files[f"device-code/{called}.so"] = (HERE / "hip" / f"{made}.so").read_bytes()
    return files


def standin_tag(ref: str) -> str:
    """The tag that stands for a ref that the pins name: for a commit's full id another one, for nobody can make a commit with a given id."""
    return f"standin-{ref}" if re.fullmatch(r"[0-9a-f]{40}", ref) else ref


def make_repositories(folder: Path, pins: Pins, aiter_fault: str = "") -> None:
    """Every repository that a stack's pins name, with the refs that they name, and AITER's at two more tags."""
    repositories = Repositories(folder)
    commit = repositories.commit
    url = {name: component.git for name, component in pins.by_name.items()}
    ref = {name: component.ref for name, component in pins.by_name.items()}

    def library(address: str) -> Made:
        return commit(address, {"README": f"stand-in for {address.removeprefix('https://')}\n".encode()})

    picks = pins.by_name["triton"].picks
    commit(url["cpython"], source("cpython"), tags=(ref["cpython"],), annotated=True)
    wants = {"version": pins.by_name["triton"].version or "3.6.0", "fixes": [FIXES[one.ref] for one in picks]}
    base = {**source("triton"), "wants.json": json.dumps(wants).encode()}
    commit(url["triton"], base, tags=(standin_tag(ref["triton"]),))
    kernels = pins.by_name["vllm-triton-kernels"]
    if (kernels.git, kernels.ref) != (url["triton"], ref["triton"]):
        commit(kernels.git, source("triton"), tags=(standin_tag(kernels.ref),))
    place = "python/triton/fixes.py"
    for pick in picks:
        line = f"FIX_{FIXES[pick.ref]} = ".encode()
        fixed = base[place].replace(line + b"0", line + b"1")
        first = commit(pick.git, source("triton"))
        commit(pick.git, {**source("triton"), place: fixed}, tags=(pick.ref,), on=first.commit)

    asmjit = library("https://github.com/asmjit/asmjit")
    fbgemm = commit(
        "https://github.com/pytorch/fbgemm", {"README": b"stand-in\n"}, submodules={"external/asmjit": asmjit}
    )
    commit(
        url["torch"], source("pytorch"), tags=(standin_tag(ref["torch"]),), submodules={"third_party/fbgemm": fbgemm}
    )
    commit(url["torchvision"], source("vision"), tags=(ref["torchvision"],))
    commit(url["torchaudio"], source("audio"), tags=(ref["torchaudio"],))
    composable = library("https://github.com/ROCm/composable_kernel")
    cutlass = library("https://github.com/NVIDIA/cutlass")
    both = {"csrc/composable_kernel": composable, "csrc/cutlass": cutlass}
    commit(
        url["flash-attention"], source("flash-attention"), tags=(standin_tag(ref["flash-attention"]),), submodules=both
    )
    modules = {
        f"3rdparty/{name}": library(f"https://github.com/standin/{name}") for name in ("msgpack-c", "spdlog", "spdk")
    }
    commit(url["mori"], source("mori"), tags=(ref["mori"],), submodules=modules)
    commit(url["vllm"], source("vllm"), tags=(standin_tag(ref["vllm"]),))

    (flydsl,) = pins.by_name["flydsl"].wheels
    kernel_sources, before = source("aiter"), ""
    kernel_sources["requirements.txt"] += f"{flydsl}\n".encode()
    if aiter_fault:
        kernel_sources["FAULT"] = aiter_fault.encode()
    # A tag is there once: where two stacks name the same, the one that was made first stands.
    for tag in AITERS if pins.stack == STACK else (ref["aiter"],):
        files = {**kernel_sources, "aiter/release.py": f'TAG = "{tag}"\n'.encode()}
        made = commit(
            url["aiter"],
            files,
            tags=(tag,),
            annotated=tag == "v0.1.14",
            submodules={"3rdparty/composable_kernel": composable},
            on=before,
        )
        before = made.commit


def move_tag(folder: Path, pins: Pins, tag: str) -> str:
    """What happened to AITER's v0.1.12: the tag names another commit now. Returns that commit."""
    files = {**source("aiter"), "aiter/release.py": b'TAG = "moved"\n'}
    kernels = Repositories(folder).commit(
        "https://github.com/ROCm/composable_kernel", {"README": b"stand-in for github.com/ROCm/composable_kernel\n"}
    )
    return (
        Repositories(folder)
        .commit(pins.by_name["aiter"].git, files, tags=(tag,), submodules={"3rdparty/composable_kernel": kernels})
        .commit
    )


def make_archives(folder: Path) -> None:
    """LLVM as a tar with one folder at its top, and a JSON library as a zip, at the places that their addresses end with."""
    version = (HERE / "sources/triton/cmake/llvm-hash.txt").read_text().strip()
    (folder / "llvm").mkdir(parents=True)
    with tarfile.open(folder / "llvm" / f"llvm-{version:.8}-ubuntu-x64.tar.gz", "w:gz") as tar:
        data = b"#!/bin/sh\necho stand-in for mlir-opt\n"
        entry = tarfile.TarInfo(f"llvm-{version:.8}-ubuntu-x64/bin/mlir-opt")
        entry.size, entry.mode, entry.mtime = len(data), 0o755, EPOCH
        tar.addfile(entry, io.BytesIO(data))
    release = folder / "json" / (HERE / "sources/triton/cmake/json-version.txt").read_text().strip()
    release.mkdir(parents=True)
    with zipfile.ZipFile(release / "include.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo("include/nlohmann/json.hpp"), "// stand-in\n")


def make_wheel(folder: Path, name: str, version: str) -> Path:
    """A wheel that installs a distribution of that name and version, and nothing in it."""
    safe = name.replace("-", "_")
    info = f"{safe}-{version}.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: stand-in\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: standins\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text)}\n"
    files[f"{info}/RECORD"] = record + f"{info}/RECORD,,\n"
    path = folder / f"{safe}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, text in files.items():
            archive.writestr(zipfile.ZipInfo(inside), text)
    return path


def make_wheels(folder: Path, workspace: Workspace, pins: Pins, lock: Lock, store: Store, console: Console) -> Lock:
    """A wheel for every one that the real lock names; returns a lock with those, in which nothing else is locked yet."""
    folder.mkdir(parents=True, exist_ok=True)
    real = tuple(wheel for wheel in lock.wheels if wheel.name in REAL_WHEELS)
    fetch(pins, Lock(pins.stack, "", (), real), store, workspace.state / "apt", console)
    wheels = []
    for wheel in lock.wheels:
        if wheel in real:
            if not (folder / wheel.file).exists():
                place_file(store.check(wheel.sha256, wheel.label), folder / wheel.file)
            wheels.append(wheel)
        else:
            path = make_wheel(folder, wheel.name, wheel.version)
            data = path.read_bytes()
            wheels.append(
                replace(wheel, file=path.name, sha256=hashlib.sha256(data).hexdigest(), size=len(data), index="")
            )
    return Lock(pins.stack, "", (), tuple(wheels), roots=(("wheels", wheel_root(pins)),))


def make_packages(folder: Path, names: Iterable[str]) -> None:
    """A flat repository with a Debian package of each name, each with a file that says so."""
    folder.mkdir(parents=True)
    index = []
    for name in names:
        tree = folder / "tree"
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "usr/share/standins").mkdir(parents=True)
        (tree / "usr/share/standins" / name).write_text(f"stand-in for {name}\n")
        control = f"Package: {name}\nVersion: 9999-standin\nArchitecture: amd64\nMaintainer: stand-in <standin@example.invalid>\nDescription: stand-in\n"
        (tree / "DEBIAN/control").write_text(control)
        deb = folder / f"{name}_9999-standin_amd64.deb"
        subprocess.run(
            ["dpkg-deb", "--build", "--root-owner-group", "-Zgzip", str(tree), str(deb)],
            check=True,
            capture_output=True,
            env={**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH)},
        )
        shutil.rmtree(tree)
        data = deb.read_bytes()
        index.append(
            f"{control}Filename: ./{deb.name}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n"
        )
    (folder / "Packages").write_text("\n".join(index))


def make_base(folder: Path, workspace: Workspace, store: Store, engine: Engine, console: Console) -> dict[str, str]:
    """The stand-in for ROCm's image: the cpu stack's Debian, and the few files of /opt/rocm that the recipes touch."""
    pins = read_pins(workspace, "cpu")
    lock = read_lock(workspace, pins)
    ensure_mmdebstrap(workspace.state, console)
    fetch(pins, Lock("cpu", "", lock.debs, ()), store, workspace.state / "apt", console)
    rootfs = make_rootfs(workspace, pins, lock, store, console)
    context = folder / "context"
    overlay = context / "overlay"
    shutil.copytree(HERE / "sources/amd_smi", overlay / "opt/rocm/share/amd_smi")
    for path, text in {
        "opt/rocm/.info/version": "7.2.3\n",
        "opt/rocm/bin/hipcc": "#!/bin/sh\necho 'this is a stand-in for hipcc' >&2\nexit 1\n",
        "opt/rocm/llvm/bin/README": "stand-in\n",
        # Debian's Python reads dist-packages; what is installed as for CPython lies in site-packages.
        "usr/lib/python3/dist-packages/standin.pth": "/usr/local/lib/python3.11/site-packages\n",
        "usr/bin/make": (HERE / "make.py").read_text(),
    }.items():
        (overlay / path).parent.mkdir(parents=True, exist_ok=True)
        (overlay / path).write_text(text)
        (overlay / path).chmod(0o755)
    place_file(store.check(rootfs, "the root file system"), context / "rootfs.tar")
    (context / "Dockerfile").write_text(
        "FROM scratch\nADD rootfs.tar /\nCOPY overlay/ /\nENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
    )
    archive, metadata = folder / "base.tar", folder / "metadata.json"
    words = [
        "docker",
        "buildx",
        "build",
        "--builder=default",
        "--quiet",
        "--provenance=false",
        f"--metadata-file={metadata}",
    ]
    words += [
        f"--build-arg=SOURCE_DATE_EPOCH={EPOCH}",
        f"--output=type=oci,dest={archive},rewrite-timestamp=true",
        str(context),
    ]
    environment = {**os.environ, **engine.environment}
    subprocess.run(words, check=True, env=environment, stdout=subprocess.DEVNULL)
    digest = json.loads(metadata.read_text())["containerimage.digest"]
    shutil.rmtree(context)
    return {"archive": "base/base.tar", "digest": digest, "name": f"kiln/standin-base:{digest[7:19]}"}


def make_standins(
    folder: Path,
    stacks: tuple[str, ...] = STACKS,
    *,
    aiter_fault: str = "",
    also: Callable[[Path, Pins], object] | None = None,
    like: Path | None = None,
) -> Path:
    """The stand-ins of ``stacks`` in ``folder``; nothing is done where they are there and were made by this very code from these very pins.

    ``aiter_fault`` is what AITER's stand-in does wrong (see its setup.py); ``also`` changes what was made, in the end;
    ``like`` is a folder of stand-ins whose base image, which a fault does not touch, is taken over.
    """
    console = Console()
    workspace = Workspace(REPOSITORY, Path(os.environ.get("KILN_STATE", REPOSITORY / ".kiln")))
    store = Store(workspace.state / "store")
    pinned = [read_pins(workspace, stack) for stack in stacks]
    locks = [read_lock(workspace, pins) for pins in pinned]
    key = digest_of(
        [
            tree_digest(HERE),
            [pins.sha256 for pins in pinned],
            [lock.sha256 for lock in locks],
            aiter_fault,
            read_lock(workspace, read_pins(workspace, "cpu")).sha256,
        ]
    )
    note = folder / "made-from"
    if also is None and note.is_file() and note.read_text() == key:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "locks").mkdir(parents=True)
    console.step(f"making stand-ins for the upstreams of {', '.join(stacks)} in {workspace.shown(folder)}")
    make_archives(folder / "archives")
    for pins, lock in zip(pinned, locks, strict=True):
        make_repositories(folder / "repositories", pins, aiter_fault)
        seed = make_wheels(folder / "wheels", workspace, pins, lock, store, console)
        (folder / "locks" / f"{pins.stack}.lock.toml").write_text(dump_lock(seed))
    make_packages(folder / "packages", dict.fromkeys(name for pins in pinned for name in pins.packages.packages))
    if like:
        base = json.loads((like / "standins.json").read_text())["base"]
        shutil.copytree(like / "base", folder / "base")
    else:
        base = make_base(folder / "base", workspace, store, ensure_engine(workspace.state, console), console)
    (folder / "standins.json").write_text(json.dumps({"base": base}, indent=2) + "\n")
    (folder / "apt.sources").write_text(
        f"Types: deb\nURIs: file:{folder.absolute()}/packages\nSuites: ./\nTrusted: yes\n"
    )
    (folder / "pip.conf").write_text(f"[global]\nno-index = true\nfind-links = {folder.absolute()}/wheels\n")
    (folder / "kiln.toml").write_text(
        "[mirrors]\n"
        '"https://github.com/" = "repositories/github.com"\n'
        '"https://github.com/nlohmann/json/releases/download/" = "archives/json"\n'
        '"https://oaitriton.blob.core.windows.net/public/llvm-builds/" = "archives/llvm"\n'
        '"docker.io/rocm/" = "127.0.0.1:9/rocm/"\n\n'
        "[apt-sources]\n"
        + "".join(f'{suite} = "apt.sources"\n' for suite in sorted({pins.packages.suite for pins in pinned}))
    )
    if also:
        also(folder, pinned[0])
    note.write_text(key)
    return folder


if __name__ == "__main__":
    make_standins(Path(sys.argv[1]))
