"""Twelve things that make builds differ, each really made twice by the tool that makes it, packed, and called by its name.

Made up where a machine does not do it on demand: the order in which a file system lists a folder. Where a tool is missing (gcc, a right to
change the host name) that plant is skipped; its kind is tested on made-up files in test_diffinside.py all the same.
"""

from __future__ import annotations

import compileall
import os
import py_compile
import shutil
import subprocess
import sys
import tarfile
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from kiln.console import Console
from kiln.diff import Options, compare
from kiln.diffkinds import Finding, Kind
from kiln.ociimage import read_layout
from kiln.uv import _uv
from tests.images import EPOCH, Made, write_layout

C_CODE = {
    "alpha": "int alpha(int x) { return x * 3 + 1; }\n",
    "beta": 'int beta(int x) { return x * x - 7; }\nconst char words[] = "beta\'s own words";\n',
    "gamma": "int gamma_(int x) { return x ^ 0x55; }\n",
}


def packed(root: Path, *, reverse: bool = False) -> Made:
    """A folder as a layer, with its own modes: names sorted, or the other way round."""
    out = root.with_suffix(".tar")
    with tarfile.open(out, "w") as tar:
        for path in sorted(root.rglob("*"), reverse=reverse):
            info = tar.gettarinfo(path, path.relative_to(root).as_posix())
            info.mtime = EPOCH
            info.uid = info.gid = 0
            info.uname = info.gname = ""
            if path.is_file():
                with path.open("rb") as stream:
                    tar.addfile(info, stream)
            else:
                tar.addfile(info)
    return Made(out.read_bytes(), "gzip")


Found = dict[str, set[Kind]]


@pytest.fixture
def found(tmp_path: Path) -> Callable[..., Found]:
    """Plant something twice, the second time as another build does; the kinds of every file, those of the whole tar under ''."""

    def make(plant: Callable[[Path, bool], None], **words: bool) -> Found:
        sides = []
        for name, again in (("one", False), ("two", True)):
            root = tmp_path / name
            root.mkdir()
            plant(root, again)
            made = packed(root, **{key: value and again for key, value in words.items()})
            sides.append(read_layout(write_layout(tmp_path / f"image-{name}", [made])))
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        diff = compare(*sides, scratch, Console(quiet=True), Options())
        (part,) = diff.layers
        return {"": kinds(part.findings)} | {file.path: kinds(file.findings) for file in part.files}

    return make


def kinds(findings: tuple[Finding, ...]) -> set[Kind]:
    return {one.kind for one in findings}


def tool(*words: str | Path, cwd: Path | None = None, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_timestamp(found: Callable[..., Found]) -> None:
    def plant(root: Path, again: bool) -> None:
        stamp = tool("date", "-d", f"@{EPOCH + again * 86400}", LC_ALL="C")
        (root / "build-info").write_text(f"built: {stamp}epoch: {EPOCH + again * 86400}\n")

    assert found(plant) == {"": set(), "build-info": {Kind.TIMESTAMP}}


def test_a_random_id(found: Callable[..., Found]) -> None:
    def plant(root: Path, again: bool) -> None:
        (root / "machine-id").write_text(f"{uuid.uuid4().hex}\n")
        (root / "instance").write_text(f"id = {uuid.uuid4()}\n")

    assert found(plant) == {"": set(), "machine-id": {Kind.RANDOM_ID}, "instance": {Kind.RANDOM_ID}}


def needs_gcc() -> None:
    if not shutil.which("gcc"):
        pytest.skip("no gcc on this machine")


@pytest.mark.parametrize("folders", [("build-1", "build-2"), ("b", "a-longer-folder")])
def test_a_build_path(found: Callable[..., Found], tmp_path: Path, folders: tuple[str, str]) -> None:
    """In the debug information of a library, and in its strings (__FILE__)."""
    needs_gcc()

    def plant(root: Path, again: bool) -> None:
        place = tmp_path / folders[again] / "src"
        place.mkdir(parents=True)
        (place / "alpha.c").write_text("const char *where(void) { return __FILE__; }\n")
        tool("gcc", "-g", "-shared", "-fPIC", "-nostdlib", "-o", root / "libalpha.so", place / "alpha.c")

    seen = found(plant)["libalpha.so"]
    assert Kind.BUILD_PATH in seen
    # One of another length moves what stands behind it: that much is told as it is, and as no more.
    assert seen <= {Kind.BUILD_PATH, Kind.BUILD_ID, *([] if len(folders[0]) == len(folders[1]) else [Kind.CONTENT])}


def test_another_constant_is_no_build_path(found: Callable[..., Found], tmp_path: Path) -> None:
    needs_gcc()

    def plant(root: Path, again: bool) -> None:
        (tmp_path / "alpha.c").write_text(f"int alpha(int x) {{ return x + {7 + again}; }}\n")
        tool("gcc", "-g", "-shared", "-fPIC", "-nostdlib", "-o", root / "libalpha.so", "alpha.c", cwd=tmp_path)

    seen = found(plant)["libalpha.so"]
    assert Kind.CONTENT in seen
    assert seen <= {Kind.CONTENT, Kind.BUILD_ID}


def test_the_order_of_a_folder(found: Callable[..., Found]) -> None:
    """In the tar, and in a list of files that was written without sorting."""

    def plant(root: Path, again: bool) -> None:
        names = [f"module_{name}.py" for name in ("b", "a", "d", "c")]
        for name in names:
            (root / name).write_text(f"{name}\n")
        (root / "files.txt").write_text("".join(f"{name}\n" for name in (names if again else [*names[2:], *names[:2]])))

    assert found(plant, reverse=True) == {"": {Kind.ORDER}, "files.txt": {Kind.DIRECTORY_ORDER}}


@pytest.mark.parametrize("hashed", [False, True])
def test_bytecode(found: Callable[..., Found], hashed: bool) -> None:
    """Compiled twice, with another time of the source: the header's time differs, and with hashes nothing does."""

    def plant(root: Path, again: bool) -> None:
        source = root / "module.py"
        source.write_text("def answer():\n    return 42\n")
        os.utime(source, (EPOCH + again * 60, EPOCH + again * 60))
        mode = py_compile.PycInvalidationMode
        compileall.compile_dir(
            root, quiet=2, stripdir=str(root), invalidation_mode=mode.UNCHECKED_HASH if hashed else mode.TIMESTAMP
        )
        (root / "other").write_text(str(again))

    name = f"__pycache__/module.cpython-{sys.version_info[0]}{sys.version_info[1]}.pyc"
    seen = found(plant)
    assert seen.get(name) == (None if hashed else {Kind.PYC})


def test_uvs_note(found: Callable[..., Found], tmp_path: Path) -> None:
    """Installed twice from a wheel whose file has another time, as a build context's has."""
    wheel = tmp_path / "small-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("small.py", "x = 1\n")
        archive.writestr("small-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: small\nVersion: 1\n")
        archive.writestr("small-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("small-1.dist-info/RECORD", "small.py,,\nsmall-1.dist-info/RECORD,,\n")

    def plant(root: Path, again: bool) -> None:
        os.utime(wheel, (EPOCH + again, EPOCH + again))
        words = ("--quiet", "--no-config", "--offline", "--no-cache", "--no-deps", "--link-mode=copy")
        tool(_uv(), "pip", "install", *words, "--python", sys.executable, "--target", root, wheel)
        (root / ".lock").unlink(missing_ok=True)

    seen = found(plant)
    assert seen["small-1.dist-info/uv_cache.json"] == {Kind.UV_CACHE}
    assert seen.keys() <= {"", "small-1.dist-info/uv_cache.json", "small-1.dist-info/RECORD"}
    assert seen.get("small-1.dist-info/RECORD", {Kind.RECORD}) >= {Kind.RECORD}


def test_a_list_sorted_in_another_locale(found: Callable[..., Found], tmp_path: Path) -> None:
    """By sort(1): by bytes, and without regard to case, which is what en_US makes of such names and every machine can do."""
    names = tmp_path / "names"
    names.write_text("beta\nAlpha\nalpha2\nGamma\ndelta\nBeta2\n")

    def plant(root: Path, again: bool) -> None:
        (root / "sorted").write_text(tool("sort", *(["-f"] if again else []), names, LC_ALL="C"))

    assert found(plant) == {"": set(), "sorted": {Kind.LOCALE_ORDER}}


@pytest.mark.parametrize(("options", "expected"), [((), {Kind.GZIP_TIME}), (("-n",), None)])
def test_the_time_in_a_gzip(found: Callable[..., Found], options: tuple[str, ...], expected: set[Kind] | None) -> None:
    def plant(root: Path, again: bool) -> None:
        (root / "manual.1").write_text("a manual\n" * 50)
        os.utime(root / "manual.1", (EPOCH + again * 60, EPOCH + again * 60))
        tool("gzip", *options, root / "manual.1")
        (root / "other").write_text(str(again))

    seen = found(plant)
    assert seen.get("manual.1.gz") == expected
    assert seen["other"] == {Kind.CONTENT}


def test_the_umask(found: Callable[..., Found]) -> None:
    def plant(root: Path, again: bool) -> None:
        tool("sh", "-c", f"umask {'002' if again else '022'}; mkdir folder; echo x > folder/file", cwd=root)

    assert found(plant) == {"": set(), "folder": {Kind.MODE}, "folder/file": {Kind.MODE}}


def test_a_folder_with_setgid(found: Callable[..., Found]) -> None:
    def plant(root: Path, again: bool) -> None:
        root.chmod(0o2755 if again else 0o755)
        tool("sh", "-c", "umask 022; mkdir -p a/b; echo x > a/b/file", cwd=root)

    assert found(plant) == {"": set(), "a": {Kind.SETGID}, "a/b": {Kind.SETGID}}


def test_the_name_of_the_machine(found: Callable[..., Found]) -> None:
    """As uname and the environment of a build tell it."""

    def named(name: str) -> str:
        script = f"hostname {name} && echo HOSTNAME=$(hostname) && uname -a"
        done = subprocess.run(["unshare", "--uts", "sh", "-c", script], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"the name of a machine cannot be changed here: {done.stderr.strip()}")
        return done.stdout

    def plant(root: Path, again: bool) -> None:
        (root / "config.log").write_text("configure was run\n" + named("builder-22" if again else "builder-1"))

    assert found(plant) == {"": set(), "config.log": {Kind.HOST_NAME}}


@pytest.mark.parametrize("linked", ["library", "archive"])
def test_the_order_of_parallel_jobs(found: Callable[..., Found], tmp_path: Path, linked: str) -> None:
    needs_gcc()
    for name, code in C_CODE.items():
        (tmp_path / f"{name}.c").write_text(code)
        tool("gcc", "-O2", "-fPIC", "-c", f"{name}.c", cwd=tmp_path)

    def plant(root: Path, again: bool) -> None:
        objects = [f"{name}.o" for name in (("gamma", "alpha", "beta") if again else C_CODE)]
        if linked == "archive":
            tool("ar", "rcD", root / "libx", *objects, cwd=tmp_path)
        else:
            tool("gcc", "-shared", "-nostdlib", "-o", root / "libx", *objects, cwd=tmp_path)

    seen = found(plant)["libx"]
    assert Kind.LINK_ORDER in seen
    assert seen <= {Kind.LINK_ORDER, Kind.BUILD_ID}


def test_another_order_does_not_hide_another_constant(found: Callable[..., Found], tmp_path: Path) -> None:
    """The same symbols with the same sizes in another order, and a number in one of them that is another."""
    needs_gcc()

    def plant(root: Path, again: bool) -> None:
        for name, code in C_CODE.items():
            (tmp_path / f"{name}.c").write_text(code.replace("- 7", "- 9") if again else code)
            tool("gcc", "-O2", "-fPIC", "-c", f"{name}.c", cwd=tmp_path)
        objects = [f"{name}.o" for name in (("gamma", "alpha", "beta") if again else C_CODE)]
        tool("gcc", "-shared", "-nostdlib", "-o", root / "libx", *objects, cwd=tmp_path)

    assert found(plant)["libx"] >= {Kind.LINK_ORDER, Kind.CONTENT}


@pytest.mark.parametrize("linked", ["library", "archive"])
def test_another_function_is_no_other_order(found: Callable[..., Found], tmp_path: Path, linked: str) -> None:
    needs_gcc()

    def plant(root: Path, again: bool) -> None:
        for name, code in C_CODE.items():
            (tmp_path / f"{name}.c").write_text(code.replace("x * 3 + 1", "x * 3 + 1 - (x >> 2)") if again else code)
            tool("gcc", "-O2", "-fPIC", "-c", f"{name}.c", cwd=tmp_path)
        objects = [f"{name}.o" for name in C_CODE]
        if linked == "archive":
            tool("ar", "rcD", root / "libx", *objects, cwd=tmp_path)
        else:
            tool("gcc", "-shared", "-nostdlib", "-o", root / "libx", *objects, cwd=tmp_path)

    seen = found(plant)["libx"]
    assert Kind.LINK_ORDER not in seen
    assert Kind.CONTENT in seen


def test_a_build_id_alone(found: Callable[..., Found], tmp_path: Path) -> None:
    """What is left of two build folders after stripping: the id, which was made before."""
    needs_gcc()

    def plant(root: Path, again: bool) -> None:
        place = tmp_path / f"build-{again + 1}"
        place.mkdir()
        (place / "alpha.c").write_text(C_CODE["alpha"])
        tool("gcc", "-g", "-shared", "-fPIC", "-nostdlib", "-Wl,--build-id", "-o", root / "libx.so", place / "alpha.c")
        tool("strip", root / "libx.so")

    assert found(plant) == {"": set(), "libx.so": {Kind.BUILD_ID}}
