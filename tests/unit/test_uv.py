"""Resolving with uv: tags as packaging has them, pip's settings in uv's words, and uv itself on a folder of two wheels."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import packaging._manylinux
import pytest
from packaging.tags import Tag, parse_tag

import kiln.uv
from kiln.errors import FetchError, ResolveError
from kiln.lockentries import Wheel
from kiln.pins import Pins, read_pins
from kiln.pinscheck import _GONE, _OFFLINE
from kiln.process import Finished
from kiln.uv import (
    _as_pip_is_configured,
    _best_wheel,
    download_source,
    install_locked,
    offered_files,
    resolve_for,
    source_distribution,
    wheel_tags,
)
from kiln.workspace import Workspace


@pytest.fixture
def pins(project: Path, tmp_path: Path) -> Pins:
    return replace(read_pins(Workspace(project, tmp_path), "dsv4-mhc"), python="3.12", glibc="2.35")


# tags


def rank(pins: Pins, text: str) -> int:
    """Where a wheel's tag stands, 0 the best; -1 where it does not fit."""
    tags = wheel_tags(pins)
    return min((tags.index(tag) for tag in parse_tag(text) if tag in tags), default=-1)


@pytest.mark.parametrize("glibc", [(2, 17), (2, 28), (2, 35), (2, 39)])
def test_platforms_stand_in_the_order_that_packaging_has_them_in(
    pins: Pins, monkeypatch: pytest.MonkeyPatch, glibc: tuple[int, int]
) -> None:
    # What packaging itself would say on a machine with that glibc.
    monkeypatch.setattr(packaging._manylinux, "_get_glibc_version", lambda: glibc)
    monkeypatch.setattr(packaging._manylinux, "_have_compatible_abi", lambda *_: True)
    expected = [name for name in packaging._manylinux.platform_tags(["x86_64"]) if name.startswith("manylinux")]
    tags = wheel_tags(replace(pins, glibc=f"{glibc[0]}.{glibc[1]}"))
    found = [tag.platform for tag in tags if (tag.interpreter, tag.abi) == ("cp312", "cp312")]
    assert found == [*expected, "linux_x86_64"]


def test_the_best_wheel_is_the_nearest(pins: Pins) -> None:
    best_first = [
        "cp312-cp312-manylinux_2_35_x86_64",
        "cp312-cp312-manylinux_2_28_x86_64",
        "cp312-cp312-manylinux_2_17_x86_64",
        "cp312-cp312-manylinux2014_x86_64",
        "cp312-cp312-manylinux_2_5_x86_64",
        "cp312-cp312-linux_x86_64",
        "cp312-abi3-manylinux_2_35_x86_64",
        "cp312-none-manylinux_2_17_x86_64",
        "cp311-abi3-manylinux_2_28_x86_64",
        "cp38-abi3-manylinux_2_28_x86_64",
        "py312-none-manylinux_2_28_x86_64",
        "py3-none-manylinux_2_28_x86_64",
        "cp312-none-any",
        "py312-none-any",
        "py3-none-any",
        "py30-none-any",
    ]
    ranks = [rank(pins, text) for text in best_first]
    assert -1 not in ranks
    assert ranks == sorted(ranks)
    assert len(set(ranks)) == len(ranks)


@pytest.mark.parametrize(
    "text",
    [
        "cp312-cp312-manylinux_2_36_x86_64",
        "cp312-cp312-manylinux_2_17_aarch64",
        "cp312-cp312-musllinux_1_2_x86_64",
        "cp312-cp312-macosx_11_0_arm64",
        "cp312-cp312-win_amd64",
        "cp311-cp311-manylinux_2_17_x86_64",
        "cp313-cp313-manylinux_2_17_x86_64",
        "cp313-abi3-manylinux_2_17_x86_64",
        "cp312-cp312t-manylinux_2_17_x86_64",
        "cp311-none-any",
        "pp310-pypy310_pp73-manylinux_2_17_x86_64",
        "py313-none-any",
        "py2-none-any",
        "cp312-cp312-manylinux_2_4_x86_64",
    ],
)
def test_what_does_not_fit(pins: Pins, text: str) -> None:
    assert rank(pins, text) == -1


def test_tags_are_of_the_stacks_python_and_not_of_this_one(pins: Pins) -> None:
    for version in ("3.11", "3.12", "3.13"):
        own = f"cp{version.replace('.', '')}"
        tags = wheel_tags(replace(pins, python=version))
        assert tags[0] == Tag(own, own, "manylinux_2_35_x86_64")
        assert len(set(tags)) == len(tags)


# choosing


def offered(*files: str, sha256: str = "1" * 64, **more: Any) -> dict[str, Any]:
    wheels = [
        {"url": f"https://index.invalid/{file}", "hashes": {"sha256": sha256}, "size": 5, **more} for file in files
    ]
    return {"name": "Toy_App", "version": "1.0", "wheels": wheels}


def best(pins: Pins, package: dict[str, Any]) -> str:
    return _best_wheel(package, {tag: number for number, tag in enumerate(wheel_tags(pins))}).file


NATIVE, ABI3, PURE = (
    "toy_app-1.0-cp312-cp312-manylinux_2_28_x86_64.whl",
    "toy_app-1.0-cp39-abi3-manylinux_2_17_x86_64.whl",
    "toy_app-1.0-py3-none-any.whl",
)
ARM, NEWER = "toy_app-1.0-cp312-cp312-manylinux_2_28_aarch64.whl", "toy_app-1.0-cp312-cp312-manylinux_2_39_x86_64.whl"
OLDER = "toy_app-1.0-cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        ((PURE, ABI3, NATIVE), NATIVE),
        ((PURE, ABI3), ABI3),
        ((ARM, NEWER, PURE), PURE),
        ((OLDER, NATIVE), NATIVE),
        ((NATIVE, OLDER), NATIVE),
        ((ARM, OLDER, NEWER), OLDER),
        (("toy_app-1.0-py2.py3-none-any.whl",), "toy_app-1.0-py2.py3-none-any.whl"),
        # A build number alone tells these two apart; the choice may not depend on the index's order.
        (("toy_app-1.0-2-py3-none-any.whl", "toy_app-1.0-1-py3-none-any.whl"), "toy_app-1.0-1-py3-none-any.whl"),
        (("toy_app-1.0-1-py3-none-any.whl", "toy_app-1.0-2-py3-none-any.whl"), "toy_app-1.0-1-py3-none-any.whl"),
    ],
)
def test_the_wheel_that_fits_best_is_chosen(pins: Pins, files: tuple[str, ...], chosen: str) -> None:
    assert best(pins, offered(*files)) == chosen


def test_what_is_read_of_a_wheel(pins: Pins) -> None:
    order = {tag: number for number, tag in enumerate(wheel_tags(pins))}
    found = _best_wheel(offered(PURE), order)
    assert (found.component, found.name, found.version, found.size, found.index) == ("", "toy-app", "1.0", 5, "")
    local = offered("toy_app-1.0%2Bcpu-py3-none-any.whl#sha256=abc")
    del local["wheels"][0]["size"]
    found = _best_wheel(local, order)
    assert (found.file, found.size) == ("toy_app-1.0+cpu-py3-none-any.whl", 0)
    assert _best_wheel(offered("x", name=PURE), order).file == PURE


@pytest.mark.parametrize(
    "package",
    [
        offered(ARM, NEWER),
        offered(PURE, hashes={}),
        offered(PURE, hashes={"md5": "1" * 32}),
        offered(),
        {"name": "toy-app", "version": "1.0"},
    ],
    ids=["other machines", "no hash", "another hash", "no wheels", "an sdist alone"],
)
def test_where_none_fits_it_is_an_error_that_lists_what_is_offered(pins: Pins, package: dict[str, Any]) -> None:
    with pytest.raises(ResolveError) as caught:
        best(pins, package)
    assert "1.0 has no wheel with a sha256" in caught.value.what
    for wheel in package.get("wheels", []):
        assert wheel["url"].rsplit("/", 1)[-1] in caught.value.why
    if not package.get("wheels"):
        assert "nothing" in caught.value.why


# pip's settings

Listed = Callable[[str], tuple[list[str], dict[str, str]]]


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Listed:
    """What becomes of this output of ``pip config list``."""

    def translated(output: str) -> tuple[list[str], dict[str, str]]:
        def run(argv: list[str], **_: object) -> Finished:
            assert argv[1:] == ["-m", "pip", "config", "list"]
            return Finished(tuple(argv), 0, output)

        monkeypatch.setattr(kiln.uv, "run", run)
        return _as_pip_is_configured()

    return translated


ONE, TWO, THREE = "https://one.invalid/simple", "https://two.invalid/simple", "https://three.invalid/simple"


@pytest.mark.parametrize(
    ("output", "options"),
    [
        ("", []),
        (f"global.index-url='{ONE}'\n", [f"--default-index={ONE}"]),
        (f'global.index-url="{ONE}"\n', [f"--default-index={ONE}"]),
        (f"global.extra-index-url='{ONE}'\n", [f"--index={ONE}"]),
        # Several in a file stand on lines of their own, which pip prints as a backslash and an n.
        (f"global.extra-index-url='\\n{ONE}\\n{TWO}'\n", [f"--index={ONE}", f"--index={TWO}"]),
        (f"global.extra-index-url='{ONE} {TWO}'\n", [f"--index={ONE}", f"--index={TWO}"]),
        (f"global.find-links='{ONE}\\n{TWO}'\n", [f"--find-links={ONE}", f"--find-links={TWO}"]),
        (f"global.index-url='{ONE}'\n:env:.index-url='{TWO}'\n", [f"--default-index={TWO}"]),
        (
            f"global.extra-index-url='{TWO}'\nglobal.index-url='{ONE}'\n",
            [f"--index={TWO}", f"--default-index={ONE}"],
        ),
        ("global.trusted-host='a.invalid b.invalid'\n", ["--allow-insecure-host=a.invalid", "--allow-insecure-host=b.invalid"]),
        (f"global.index-url='{ONE}?a=b&c=d'\n", [f"--default-index={ONE}?a=b&c=d"]),
        ("global.index-url='https://me:pa$$word@one.invalid/simple'\n", ["--default-index=https://me:pa$$word@one.invalid/simple"]),
        ("global.timeout='60'\nglobal.retries='3'\ninstall.user='true'\nfreeze.all='1'\n", []),
        ("no equals sign\n=\n", []),
        (f"global.no-index='true'\nglobal.index-url='{ONE}'\nglobal.find-links='{TWO}'\n", [f"--find-links={TWO}", "--no-index"]),
        (f":env:.no-index='1'\nglobal.extra-index-url='{ONE}'\n", ["--no-index"]),
        (f"global.no-index='false'\nglobal.index-url='{ONE}'\n", [f"--default-index={ONE}"]),
        (f"global.no-index='0'\nglobal.index-url='{ONE}'\n", [f"--default-index={ONE}"]),
        # As pip reads truth (its strtobool).
        ("global.no-index='y'\n", ["--no-index"]),
        ("global.no-index='T'\n", ["--no-index"]),
        # Not an index: it stays where there is none.
        (f"global.no-index='yes'\nglobal.find-links='{ONE}?index=x'\n", [f"--find-links={ONE}?index=x", "--no-index"]),
    ],
)  # fmt: skip
def test_indexes_and_folders(listed: Listed, output: str, options: list[str]) -> None:
    assert listed(output) == (options, {})


def test_a_folder_that_is_not_there_is_passed_over_as_pip_does(listed: Listed, tmp_path: Path) -> None:
    there, gone = tmp_path / "there", tmp_path / "gone"
    there.mkdir()
    places = [str(there), str(gone), there.as_uri(), gone.as_uri(), ONE]
    options, _ = listed(f"global.find-links='{chr(92)}n'\n:env:.find-links='{' '.join(places)}'\n")
    assert options == [f"--find-links={place}" for place in (there, there.as_uri(), ONE)]
    options, _ = listed(f"global.extra-index-url='{gone} {there}'\n")
    assert options == [f"--index={there}"]


def test_a_certificate_and_a_proxy_go_into_the_environment(listed: Listed) -> None:
    options, environment = listed(
        "global.cert='/etc/ca.pem'\n:env:.cert='/mine/ca.pem'\nglobal.proxy='http://proxy.invalid:8080'\n"
    )
    assert options == []
    proxy = "http://proxy.invalid:8080"
    assert environment == {"SSL_CERT_FILE": "/mine/ca.pem", "HTTPS_PROXY": proxy, "HTTP_PROXY": proxy}


def test_a_certificate_in_a_folder_with_a_blank(listed: Listed) -> None:
    assert listed("global.cert='/my certs/ca.pem'\n")[1] == {"SSL_CERT_FILE": "/my certs/ca.pem"}


def test_pips_own_listing_is_understood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not a recorded listing but the one of the pip that is here: a file with several lines, and the environment above it."""
    (tmp_path / "pip.conf").write_text(
        f"[global]\nindex-url = {ONE}\nextra-index-url =\n    {TWO}\n    {THREE}\ncert = /etc/ca.pem\n",
        encoding="utf-8",
    )
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "none"))
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_INDEX_URL", "https://environment.invalid/simple")
    options, environment = _as_pip_is_configured()
    assert [option for option in options if "index" in option] == [
        f"--index={TWO}",
        f"--index={THREE}",
        "--default-index=https://environment.invalid/simple",
    ]
    assert environment["SSL_CERT_FILE"] == "/etc/ca.pem"


# uv's answers


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """uv exchanged at its boundary: what it was asked is kept, with the files it would have read."""
    calls: list[dict[str, Any]] = []

    def run(argv: list[Any], *, cwd: Path | None = None, **more: Any) -> Finished:
        if cwd is None:
            return Finished(tuple(argv), 0, f"global.index-url='{ONE}'\nglobal.cert='/ca.pem'\n")
        files = {path.name: path.read_text(encoding="utf-8") for path in cwd.iterdir()}
        calls.append({"argv": [str(word) for word in argv], "files": files, **more})
        package = f'[[packages]]\nname = "Toy_App"\nversion = "1.0"\nwheels = [{{url = "https://one.invalid/{PURE}", size = 3, hashes = {{sha256 = "{"1" * 64}"}}}}]\n'
        (cwd / "pylock.toml").write_text(f'lock-version = "1.0"\n{package}', encoding="utf-8")
        return Finished(tuple(map(str, argv)), 0, "")

    monkeypatch.setattr(kiln.uv, "run", run)
    return calls


def test_what_uv_is_asked(pins: Pins, asked: list[dict[str, Any]]) -> None:
    found = resolve_for(
        pins, ["toy-app", "x>=1"], absent=["torch", "aiter"], constraints=["y==2"], as_of="2026-05-30T00:00:00Z"
    )
    assert [(name, wheel.file, wheel.size) for name, wheel in found.items()] == [("toy-app", PURE, 3)]
    (call,) = asked
    assert call["files"]["wanted.in"] == "toy-app\nx>=1\n"
    assert call["files"]["constraints.txt"] == "y==2\n"
    assert call["files"]["absent.txt"] == "aiter ; sys_platform == 'never'\ntorch ; sys_platform == 'never'\n"
    wanted = {
        "--no-config",
        "--only-binary=:all:",
        "--python-version=3.12",
        "--python-platform=x86_64-manylinux_2_35",
        "--exclude-newer=2026-05-30T00:00:00Z",
    }
    assert wanted | {f"--default-index={ONE}"} <= set(call["argv"])
    assert call["env"] == {"SSL_CERT_FILE": "/ca.pem"}


def test_what_uv_is_asked_of_exact_versions(pins: Pins, asked: list[dict[str, Any]]) -> None:
    wheel = Wheel("", "toy-app", "1.0", PURE, "1" * 64, 3)
    assert offered_files(pins, [wheel], TWO) == {"toy-app": {PURE: "1" * 64}}
    (call,) = asked
    assert call["files"]["wanted.in"] == "toy-app==1.0\n"
    # What an earlier question was answered is no answer to this one.
    assert {"--no-deps", "--no-cache", f"--index={TWO}"} <= set(call["argv"])


def test_without_a_time_the_newest_is_taken(pins: Pins, asked: list[dict[str, Any]]) -> None:
    resolve_for(pins, ["toy-app"])
    assert not [word for word in asked[0]["argv"] if "exclude-newer" in word]


def test_uvs_own_words_are_the_reason(pins: Pins, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "error: No solution found\n  cause: Because toy-app==2 was not found"

    def run(argv: list[Any], *, cwd: Path | None = None, **_: Any) -> Finished:
        return Finished(tuple(map(str, argv)), 0 if cwd is None else 1, "" if cwd is None else words)

    monkeypatch.setattr(kiln.uv, "run", run)
    with pytest.raises(ResolveError) as caught:
        resolve_for(pins, ["toy-app==2"])
    assert caught.value.exit_code == 14
    assert caught.value.why == words


# uv itself


def make_wheel(folder: Path, name: str, version: str, *needs: str) -> str:
    """A wheel with nothing in it but its name and its needs; returns its sha256."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    about = f"{name}-{version}.dist-info"
    metadata = "".join(f"Requires-Dist: {need}\n" for need in needs)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{metadata}")
        archive.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{about}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_markers_are_judged_for_the_stacks_python_and_what_is_absent_is_never_resolved(pins: Pins, links: Path) -> None:
    needs = (
        "helper; python_version >= '3.12'",
        "older; python_version < '3.12'",
        "built-here>=2",
        "windows-only; sys_platform == 'win32'",
    )
    sums = {"asker": make_wheel(links, "asker", "1.0", *needs), "helper": make_wheel(links, "helper", "2.0")}
    # It is there, and may not be taken all the same.
    make_wheel(links, "built_here", "3.0")
    found = resolve_for(pins, ["asker"], absent=["built-here"])
    assert {name: wheel.sha256 for name, wheel in found.items()} == sums
    assert [wheel.version for wheel in found.values()] == ["1.0", "2.0"]
    # For an older Python the other need holds, and nobody has it.
    with pytest.raises(ResolveError, match="uv found no set") as caught:
        resolve_for(replace(pins, python="3.11"), ["asker"], absent=["built-here"])
    assert "older" in caught.value.why


def test_constraints_hold(pins: Pins, links: Path) -> None:
    make_wheel(links, "helper", "1.0")
    make_wheel(links, "helper", "2.0")
    assert resolve_for(pins, ["helper"])["helper"].version == "2.0"
    assert resolve_for(pins, ["helper"], constraints=["helper==1.0"])["helper"].version == "1.0"
    with pytest.raises(ResolveError):
        resolve_for(pins, ["helper==2.0"], constraints=["helper==1.0"])


def test_what_an_index_has_of_a_version_is_said_and_a_version_that_is_gone_is_an_error(pins: Pins, links: Path) -> None:
    sha256 = make_wheel(links, "helper", "1.0", "nobody-has-this")
    there = Wheel("", "helper", "1.0", "helper-1.0-py3-none-any.whl", sha256, 1)
    assert offered_files(pins, [there]) == {"helper": {there.file: sha256}}
    with pytest.raises(ResolveError) as caught:
        offered_files(pins, [there, Wheel("", "gone", "1.0", "gone-1.0-py3-none-any.whl", sha256, 1)])
    # By these words kiln tells a version that is gone from an index that did not answer.
    assert _GONE in caught.value.why
    assert _OFFLINE not in caught.value.why


def test_a_source_distribution_is_found_and_brought(links: Path, tmp_path: Path) -> None:
    archive = links / "helper-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, text in {
            "PKG-INFO": "Metadata-Version: 2.1\nName: helper\nVersion: 1.0\n",
            "pyproject.toml": "",
        }.items():
            member = tarfile.TarInfo(f"helper-1.0/{name}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    make_wheel(links, "helper", "1.0")
    found = source_distribution("helper", "1.0")
    assert (found.file, found.sha256) == (archive.name, hashlib.sha256(archive.read_bytes()).hexdigest())
    download_source(found, tmp_path / "brought")
    assert (tmp_path / "brought").read_bytes() == archive.read_bytes()
    with pytest.raises(FetchError, match=r"helper-1.0.tar.gz could not be downloaded"):
        download_source(replace(found, url="https://127.0.0.1:1/helper-1.0.tar.gz"), tmp_path / "nothing")


def test_a_release_without_a_source_distribution_is_an_error(links: Path) -> None:
    make_wheel(links, "helper", "1.0")
    with pytest.raises(ResolveError, match=r"has no source distribution with a sha256 of helper 1\.0"):
        source_distribution("helper", "1.0")
    with pytest.raises(ResolveError, match=r"has no helper 2\.0, or does not answer") as caught:
        source_distribution("helper", "2.0")
    assert _GONE in caught.value.why


def test_when_a_source_distribution_was_uploaded_is_what_the_index_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: list[Any], *, cwd: Path | None = None, **_: Any) -> Finished:
        if cwd:
            sdist = '{url = "https://one.invalid/a%2Bb-1.0.tar.gz#x", size = 3, upload-time = 2026-05-30T02:00:00+02:00, hashes = {sha256 = "1"}}'
            (cwd / "pylock.toml").write_text(f'[[packages]]\nname = "a"\nsdist = {sdist}\n', encoding="utf-8")
        return Finished(tuple(map(str, argv)), 0, "")

    monkeypatch.setattr(kiln.uv, "run", run)
    found = source_distribution("a", "1.0")
    assert (found.file, found.size, found.uploaded) == ("a+b-1.0.tar.gz", 3, "2026-05-30T00:00:00Z")


def test_nothing_but_what_is_absent_resolves_to_nothing(pins: Pins, links: Path) -> None:
    assert resolve_for(pins, ["built-here"], absent=["built-here"]) == {}
    shutil.rmtree(links)
    assert resolve_for(pins, [], absent=["built-here"]) == {}


def test_a_locked_wheel_is_installed_into_a_folder_for_another_python(links: Path, tmp_path: Path) -> None:
    sha256 = make_wheel(links, "helper", "1.0", "nobody-has-this")
    wanted = tmp_path / "wanted.txt"
    wanted.write_text(
        f"helper==1.0 --hash=sha256:{sha256}\nolder==1 ; python_version < '3.12' --hash=sha256:{'0' * 64}\n"
    )
    install_locked(wanted, tmp_path / "there", python="3.12", glibc="2.35")
    assert (tmp_path / "there" / "helper-1.0.dist-info" / "METADATA").is_file()


@pytest.mark.parametrize("line", ["helper==1.0 --hash=sha256:" + "0" * 64, "helper==1.0"])
def test_a_wheel_with_another_hash_or_none_is_not_installed(links: Path, tmp_path: Path, line: str) -> None:
    make_wheel(links, "helper", "1.0")
    wanted = tmp_path / "wanted.txt"
    wanted.write_text(f"{line}\n")
    with pytest.raises(ResolveError, match="could not be installed"):
        install_locked(wanted, tmp_path / "there", python="3.12", glibc="2.35")
    assert not (tmp_path / "there" / "helper-1.0.dist-info").exists()
