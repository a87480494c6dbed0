"""Reading images: every form that they come in, and every way in which one can be wrong."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from kiln.errors import ImageDamagedError, UsageError
from kiln.ociimage import OciImage, read_layout
from tests.images import (
    MEDIA,
    Entry,
    Made,
    archive,
    blob,
    digest,
    folder,
    layer,
    make_tar,
    put,
    write_index,
    write_layout,
)

FILES = [folder("etc"), Entry("etc/a", b"one\n"), Entry("b", b"x" * 3_000_000)]


def contents(image: OciImage, index: int = 0) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with image.open_layer(index) as tar:
        for member in tar.members():
            pieces: list[bytes] = []
            tar.content(member, pieces.append)
            found[member.name] = b"".join(pieces)
    return found


@pytest.mark.parametrize("compression", ["", "gzip", "zstd"])
@pytest.mark.parametrize("form", ["folder", "archive"])
def test_a_layer_is_read_as_it_was_packed(tmp_path: Path, compression: str, form: str) -> None:
    place = write_layout(tmp_path / "image", [layer(*FILES, compression=compression)])
    image = read_layout(place if form == "folder" else archive(place, tmp_path / "image.tar"))
    assert contents(image) == {entry.path: entry.content for entry in FILES}
    assert image.digest == digest(blob(place, image.digest).read_bytes())
    assert image.layers[0].diff_id == digest(make_tar(FILES))


def test_a_gzip_of_several_members_is_one_stream(tmp_path: Path) -> None:
    tar = make_tar(FILES)
    made = Made(tar, "gzip")
    parts = gzip.compress(tar[:1000], mtime=0) + gzip.compress(tar[1000:], mtime=0)
    place = write_layout(tmp_path / "image", [made])
    entry = put(place, parts, MEDIA + "+gzip")
    manifest = json.loads(blob(place, read_layout(place).digest).read_bytes()) | {"layers": [entry]}
    write_index(place, [put(place, json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")])
    assert contents(read_layout(place)) == {entry.path: entry.content for entry in FILES}


@pytest.mark.parametrize("tar", [b"", bytes(1024), bytes(10240)])
def test_a_layer_with_nothing_in_it(tmp_path: Path, tar: bytes) -> None:
    assert contents(read_layout(write_layout(tmp_path / "image", [Made(tar, "gzip")]))) == {}


def test_hostile_names_are_names(tmp_path: Path) -> None:
    hostile = [Entry("../../etc/passwd", b"x"), Entry("/etc/shadow", b"y"), Entry("a\x1b[31m\n", b"z")]
    image = read_layout(write_layout(tmp_path / "in" / "image", [layer(*hostile)]))
    assert contents(image) == {entry.path: entry.content for entry in hostile}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize("compression", ["", "gzip", "zstd"])
@pytest.mark.parametrize("what", ["another byte", "cut", "missing"])
def test_a_wrong_blob_is_an_error_of_its_own(tmp_path: Path, what: str, compression: str) -> None:
    place = write_layout(tmp_path / "image", [layer(*FILES, compression=compression)])
    image = read_layout(place)
    path = blob(place, image.layers[0].digest)
    data = path.read_bytes()
    if what == "missing":
        path.unlink()
    else:
        middle = len(data) // 2
        path.write_bytes(
            data[:middle] if what == "cut" else data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        )
    says = "has no blobs/" if what == "missing" else "does not have the bytes that it is named after"
    with pytest.raises(ImageDamagedError, match=says):
        contents(image)


def test_a_wrong_blob_is_seen_where_nobody_read_to_its_end(tmp_path: Path) -> None:
    place = write_layout(tmp_path / "image", [layer(*FILES, compression="")])
    image = read_layout(place)
    path = blob(place, image.layers[0].digest)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ImageDamagedError), image.open_layer(0) as tar:
        next(tar.members())


@pytest.mark.parametrize("part", ["manifest", "config"])
def test_a_wrong_document_is_an_error(tmp_path: Path, part: str) -> None:
    place = write_layout(tmp_path / "image", [layer(*FILES)])
    image = read_layout(place)
    name = image.digest if part == "manifest" else image.manifest["config"]["digest"]
    blob(place, name).write_bytes(blob(place, name).read_bytes() + b" ")
    with pytest.raises(ImageDamagedError, match="named after"):
        read_layout(place)


def test_a_tar_that_the_configuration_does_not_name(tmp_path: Path) -> None:
    wrong = {"rootfs": {"type": "layers", "diff_ids": [digest(b"another")]}}
    image = read_layout(write_layout(tmp_path / "image", [layer(*FILES)], wrong))
    with pytest.raises(ImageDamagedError, match="the tar in layer 1"):
        contents(image)


@pytest.mark.parametrize(
    ("tar", "why"),
    [
        (make_tar(FILES)[:2000], "ends"),
        (make_tar(FILES)[:-12000], "ends"),
        (make_tar(FILES)[:1536] + b"rubbish" * 200, "checksum|bad|header"),
        (b"no tar at all" * 100, "checksum|bad|header"),
    ],
)
def test_a_layer_that_is_no_whole_tar(tmp_path: Path, tar: bytes, why: str) -> None:
    """Its digest is right: it was packed like that. What comes after the damage must not be taken for nothing."""
    image = read_layout(write_layout(tmp_path / "image", [Made(tar, "gzip")]))
    with pytest.raises(ImageDamagedError, match="is no whole tar") as caught:
        contents(image)
    assert caught.value.why


def test_a_header_that_claims_gigabytes_takes_none(tmp_path: Path) -> None:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 8 << 30
    image = read_layout(write_layout(tmp_path / "image", [Made(info.tobuf(tarfile.GNU_FORMAT) + bytes(10240), "gzip")]))
    with pytest.raises(ImageDamagedError, match="is no whole tar"):
        contents(image)


def test_bytes_that_are_not_what_the_media_type_says(tmp_path: Path) -> None:
    place = write_layout(tmp_path / "image", [layer(*FILES, compression="")])
    manifest = json.loads(blob(place, read_layout(place).digest).read_bytes())
    manifest["layers"][0]["mediaType"] = MEDIA + "+zstd"
    write_index(place, [put(place, json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")])
    with pytest.raises(ImageDamagedError, match="said to be zstd"):
        contents(read_layout(place))


def test_of_an_index_with_attestations_the_image_is_taken(tmp_path: Path) -> None:
    place = write_layout(tmp_path / "image", [layer(*FILES)])
    image = read_layout(place)
    entry = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": image.digest, "size": 1}
    other = put(place, b"{}", entry["mediaType"]) | {"platform": {"os": "unknown", "architecture": "unknown"}}
    index = {"schemaVersion": 2, "manifests": [entry | {"platform": {"os": "linux"}}, other]}
    write_index(place, [put(place, json.dumps(index).encode(), "application/vnd.oci.image.index.v1+json")])
    assert read_layout(place).digest == image.digest


def test_an_index_of_several_platforms_is_refused_with_their_names(tmp_path: Path) -> None:
    place = write_layout(tmp_path / "image", [layer(*FILES)])
    entry = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 1}
    entries = [
        entry | {"digest": digest(name.encode()), "platform": {"os": "linux", "architecture": name}}
        for name in ("amd64", "arm64")
    ]
    write_index(place, entries)
    with pytest.raises(UsageError, match="is an index of 2 images") as caught:
        read_layout(place)
    assert f"linux/arm64: {digest(b'arm64')}" in caught.value.why


@pytest.mark.parametrize("what", ["an empty folder", "a text"])
def test_what_is_no_layout_is_said_so(tmp_path: Path, what: str) -> None:
    path = tmp_path / "thing"
    if what == "a text":
        path.write_text("nothing")
    else:
        path.mkdir()
    with pytest.raises((UsageError, ImageDamagedError), match="is no"):
        read_layout(path)


def test_a_layer_of_any_size_takes_little_memory(tmp_path: Path, project: Path) -> None:
    """20,000 files and one of 120 MB, compared in a process of its own: its peak is the kernel's own figure (ru_maxrss would have the parent's in it)."""
    for side, mtime in (("a", 1), ("b", 2)):
        files = [
            Entry(f"usr/lib/dist-packages/package-{n % 500}/module-{n}.py", b"abc\n", mtime=mtime if n % 2 == 0 else 0)
            for n in range(20_000)
        ]
        big = Entry("big", bytes([mtime]) * 120_000_000)
        tar = make_tar([*files, big], tarfile.GNU_FORMAT)
        write_layout(tmp_path / side, [Made(tar, "zstd", level=1)])
    (tmp_path / "scratch").mkdir()
    code = (
        "import sys; from pathlib import Path; from kiln.console import Console;"
        "from kiln.diff import Options, compare; from kiln.ociimage import read_layout;"
        "images = [read_layout(Path(path)) for path in sys.argv[1:3]];"
        "found = compare(*images, Path(sys.argv[3]), Console(quiet=True), Options());"
        "print(found.files, len(found.layers[0].files), Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a", tmp_path / "b", tmp_path / "scratch"],
        cwd=project,
        capture_output=True,
        text=True,
        check=True,
    )
    files_found, listed, peak = map(int, done.stdout.split())
    assert (files_found, listed) == (10_001, 10_000)
    assert peak < 100 * 1024
    assert list((tmp_path / "scratch").iterdir()) == []
