"""A look inside two versions of a file: every kind, and beside it a near miss that must not be called so."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable

import pytest

from kiln.diffinside import Inside
from kiln.diffkinds import Hints, Kind

NOW = 1793491200
HINTS = Hints(times=(NOW,))
UUIDS = "8e8ab1ca-32ca-4ac7-bb43-0d7e5c1b6a11", "c0ffee00-32ca-4ac7-bb43-0d7e5c1b6a12"


def kinds(
    path: str, a: bytes | str, b: bytes | str, hints: Hints = HINTS, exists: Callable[[str], bool] = lambda _: False
) -> set[Kind]:
    one, other = (side.encode() if isinstance(side, str) else side for side in (a, b))
    found = Inside(hints, exists).look(path, one, other)
    assert found
    return {each.kind for each in found}


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        # times
        ("built 2026-11-01T00:00:00Z ok", "built 2026-11-02 03:04:05.123+01:00 ok", Kind.TIMESTAMP),
        ("Sun Nov  1 00:00:00 UTC 2026", "Mon Nov  2 10:11:12 UTC 2026", Kind.TIMESTAMP),
        ("Sun, 01 Nov 2026 00:00:00 +0000", "Mon, 02 Nov 2026 00:00:00 +0000", Kind.TIMESTAMP),
        ('__DATE__ "Nov  1 2026"', '__DATE__ "Nov 12 2026"', Kind.TIMESTAMP),
        ("at 20261101T000000Z", "at 20261102T101112Z", Kind.TIMESTAMP),
        (f"t={NOW}", f"t={NOW + 86400}", Kind.TIMESTAMP),
        (f"t={NOW}.25 ms={NOW}123", f"t={NOW + 5}.25 ms={NOW + 5}123", Kind.TIMESTAMP),
        ("1.2.3", "1.2.4", Kind.CONTENT),
        ("2026-13-01", "2026-13-02", Kind.CONTENT),
        ("built 2026-11-01 with 1.2", "built 2026-11-02 with 1.3", Kind.CONTENT),
        ("n=1234567890", "n=1234567891", Kind.CONTENT),  # seconds of 2009: no time near these builds
        ("price 12:99", "price 12:98", Kind.CONTENT),
        # identifiers
        (f"id: {UUIDS[0]}", f"id: {UUIDS[1]}", Kind.RANDOM_ID),
        ("key 0a1b2c3d4e5f6071", "key ffeeddccbbaa9988", Kind.RANDOM_ID),
        ("word deadbeef", "word cafebabe", Kind.CONTENT),
        ("n 123456789012345", "n 123456789012346", Kind.CONTENT),
        ("key 0a1b2c3d4e5f6071", "key ffeeddccbbaa99887766", Kind.CONTENT),  # one of another length is of another sort
        # build folders
        ('dir "/build/one/src/main.c"', 'dir "/build/other/src/main.c"', Kind.BUILD_PATH),
        ("prefix=/opt/a/lib/x.so", "prefix=/opt/b/lib/x.so", Kind.BUILD_PATH),
        ("cd /tmp/tmpx7a9", "cd /tmp/tmpq2f4", Kind.BUILD_PATH),
        ("#!/usr/bin/python3.11", "#!/usr/bin/python3.12", Kind.CONTENT),
        ("see https://a.example/x/y", "see https://b.example/x/y", Kind.CONTENT),
        # machines
        ("HOSTNAME=build-1\nrest", "HOSTNAME=build-2\nrest", Kind.HOST_NAME),
        ('"host": "n1"', '"host": "n2"', Kind.HOST_NAME),
        ("Linux n1 6.1.0 #1", "Linux node-22 6.1.0 #1", Kind.HOST_NAME),
        ("(root@buildkitsandbox) gcc", "(root@n2) gcc", Kind.HOST_NAME),
        ("ghost: casper", "ghost: marley", Kind.CONTENT),
        ("name n1 is here", "name n2 is here", Kind.CONTENT),
        ("hostname: n1 port: 1", "hostname: n2 port: 2", Kind.CONTENT),
        # order
        ("b\na\nC\n", "a\nC\nb\n", Kind.LINE_ORDER),
        ("B\nC\na\n", "a\nB\nC\n", Kind.LOCALE_ORDER),
        ("_B\nc\nd\n", "c\n_B\nd\n", Kind.LINE_ORDER),
        ("a\nb\n", "a\nb\nb\n", Kind.CONTENT),
        ("{'b', 'a', 'c'} end", "{'a', 'c', 'b'} end", Kind.HASH_ORDER),
        ("{'b', 'a'}", "{'a', 'd'}", Kind.CONTENT),
        ("{'b': 1, 'a': 2}", "{'a': 2, 'b': 1}", Kind.CONTENT),  # a dict keeps the order in which it was filled: no set
        ('{"b": 1, "a": [1, 2]}', '{"a": [1, 2], "b": 1}', Kind.LINE_ORDER),
        ('{"a": [1, 2]}', '{"a": [2, 1]}', Kind.CONTENT),
        ("x = 1\n", "x = 2\n", Kind.CONTENT),
        ("x\n", "x\r\n", Kind.CONTENT),
    ],
)  # fmt: skip
def test_texts(a: str, b: str, expected: Kind) -> None:
    assert kinds("etc/some.txt", a, b) == {expected}
    assert kinds("etc/some.txt", b, a) == {expected}
    if expected not in (Kind.LINE_ORDER, Kind.LOCALE_ORDER, Kind.HASH_ORDER):
        # Between long texts that both have.
        around = "common line\n" * 2000
        assert kinds("etc/some.txt", f"{around}{a}\n{around}", f"{around}{b}\n{around}") == {expected}


def test_several_kinds_in_one_text() -> None:
    text = "built {} by {} in {}\n"
    one = text.format("2026-11-01", UUIDS[0], "/build/a/src/x.c")
    other = text.format("2026-11-02", UUIDS[1], "/build/b/src/x.c")
    assert kinds("f", one, other) == {Kind.TIMESTAMP, Kind.RANDOM_ID, Kind.BUILD_PATH}
    assert kinds("f", one, other + "and more") == {Kind.CONTENT}


def test_what_the_caller_knows() -> None:
    assert kinds("f", "by alpha on it", "by beta on it") == {Kind.CONTENT}
    assert kinds("f", "by alpha on it", "by beta on it", Hints(hosts=("alpha", "beta"))) == {Kind.HOST_NAME}
    assert kinds("f", "by alphabet on it", "by beta on it", Hints(hosts=("alpha", "beta"))) == {Kind.CONTENT}
    assert kinds("f", "in /x/one/a", "in /y/two/b") == {Kind.CONTENT}
    assert kinds("f", "in /x/one/a", "in /y/two/b", Hints(paths=("/x/one", "/y/two"))) == {Kind.BUILD_PATH}


def test_a_list_of_files_that_are_there() -> None:
    there = {"usr/lib/b", "usr/lib/a", "usr/lib/c"}.__contains__
    one, other = "./usr/lib/b\n./usr/lib/a\n./usr/lib/c\n", "./usr/lib/c\n./usr/lib/b\n./usr/lib/a\n"
    assert kinds("list", one, other, exists=there) == {Kind.DIRECTORY_ORDER}
    assert kinds("list", one, other) == {Kind.LINE_ORDER}
    assert kinds("list", "".join(sorted(one.splitlines(True))), other, exists=there) == {Kind.LINE_ORDER}


def test_the_name_of_the_machine_in_its_own_file() -> None:
    assert kinds("etc/hostname", "alpha\n", "beta\n") == {Kind.HOST_NAME}
    assert kinds("srv/hostname", "alpha\n", "beta\n") == {Kind.CONTENT}


DIST = "usr/lib/python3/dist-packages/x-1.dist-info"


def test_files_of_a_wheel_that_was_installed() -> None:
    one, other = "x.py,sha256=aa,1\nx/y.py,,\n", "x.py,sha256=bb,1\nx/y.py,,\n"
    assert kinds(f"{DIST}/RECORD", one, other) == {Kind.RECORD}
    detail = Inside(HINTS).look(f"{DIST}/RECORD", one.encode(), other.encode())[0].detail
    assert detail == "-x.py,sha256=aa,1; +x.py,sha256=bb,1"
    assert kinds(f"{DIST}/RECORD", "a,,\nb,,\nC,,\n", "b,,\na,,\nC,,\n") == {Kind.RECORD, Kind.LINE_ORDER}
    assert kinds("srv/RECORD", one, other) == {Kind.CONTENT}
    cached = [json.dumps({"timestamp": {"secs_since_epoch": NOW + n}}) for n in (0, 5)]
    assert kinds(f"{DIST}/uv_cache.json", *cached) == {Kind.UV_CACHE}
    assert kinds("srv/uv_cache.json", *cached) == {Kind.TIMESTAMP}


def pyc(flags: int, time: int, code: bytes, magic: bytes = b"\xa7\x0d\r\n") -> bytes:
    return magic + b"".join(number.to_bytes(4, "little") for number in (flags, time, 77)) + code


@pytest.mark.parametrize(
    ("one", "other", "says"),
    [
        (pyc(0, 1, b"code"), pyc(0, 2, b"code"), "header: the source's time 1 / 2"),
        (pyc(0, 1, b"code"), pyc(1, 9, b"code"), "header: checked by time / by hash, never looked at"),
        (pyc(1, 1, b"code"), pyc(1, 9, b"code"), "header: the hash of the source"),
        (pyc(0, 1, b"code"), pyc(0, 1, b"cxde"), "code: the first byte that differs at 17"),
        (pyc(0, 1, b"code"), pyc(0, 1, b"code", b"\xcb\x0d\r\n"), "header: made by another Python (magic 3495 / 3531)"),
    ],
)
def test_bytecode(one: bytes, other: bytes, says: str) -> None:
    (found,) = Inside(HINTS).look("a/__pycache__/m.cpython-311.pyc", one, other)
    assert (found.kind, found.detail) == (Kind.PYC, says)
    assert kinds("a/m.bin", one, other) == {Kind.CONTENT}
    assert kinds("a/m.pyc", b"no bytecode", b"nor this one") == {Kind.CONTENT}


def made_zip(*members: tuple[str, bytes, int], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content, second in members:
            archive.writestr(zipfile.ZipInfo(name, (2026, 11, 1, 0, 0, second)), content, method)
    return out.getvalue()


A, B, C = ("a.py", b"a = 1\n", 0), ("b.py", b"b = 1\n", 0), ("c.py", b"c = 2\n", 0)


def test_zips() -> None:
    later = ("b.py", B[1], 10)
    assert kinds("x.whl", made_zip(A, B), made_zip(A, later)) == {Kind.ZIP_TIME}
    assert kinds("x.whl", made_zip(A, B), made_zip(B, A)) == {Kind.ZIP_ORDER}
    assert kinds("x.whl", made_zip(A, B), made_zip(later, A)) == {Kind.ZIP_ORDER, Kind.ZIP_TIME}
    assert kinds("x.whl", made_zip(A, B), made_zip(A, B, C)) == {Kind.ARCHIVE_MEMBER}
    assert kinds("x.whl", made_zip(A, B), made_zip(A, C, B)) == {
        Kind.ARCHIVE_MEMBER
    }  # an added member is no other order
    assert kinds("x.whl", made_zip(A, B), made_zip(A, ("b.py", b"b = 2\n", 0))) == {Kind.ARCHIVE_MEMBER, Kind.CONTENT}
    assert kinds("x.whl", made_zip(A, B), made_zip(A, B, method=zipfile.ZIP_STORED)) == {Kind.CONTENT}
    built = [("b.py", f"# {UUIDS[n]}\n".encode(), 0) for n in (0, 1)]
    assert kinds("x.jar", made_zip(A, built[0]), made_zip(A, built[1])) == {Kind.ARCHIVE_MEMBER, Kind.RANDOM_ID}
    assert kinds("x.whl", b"PK\x03\x04rubbish", b"PK\x03\x04other") == {Kind.CONTENT}


def made_gzip(content: bytes, time: int = 0, name: str = "", level: int = 9) -> bytes:
    out = io.BytesIO()
    with gzip.GzipFile(name, "wb", level, out, time) as packed:
        packed.write(content)
    return out.getvalue()


def test_gzips() -> None:
    text = b"line of a manual\n" * 100
    assert kinds("x.gz", made_gzip(text, 1), made_gzip(text, 2)) == {Kind.GZIP_TIME}
    assert kinds("x.gz", made_gzip(text, name="a.txt"), made_gzip(text)) == {Kind.GZIP_TIME}
    assert kinds("x.gz", made_gzip(text, level=1), made_gzip(text, level=9)) == {Kind.CONTENT}
    assert kinds("x.gz", made_gzip(text), made_gzip(text + b"x")) == {Kind.ARCHIVE_MEMBER, Kind.CONTENT}
    assert kinds("x.gz", made_gzip(b"at 2026-11-01", 1), made_gzip(b"at 2026-11-02", 2)) == {
        Kind.GZIP_TIME, Kind.ARCHIVE_MEMBER, Kind.TIMESTAMP
    }  # fmt: skip
    assert kinds("x.gz", made_gzip(text)[:-3] + b"abc", made_gzip(text)) == {Kind.CONTENT}


def made_tar(*members: tuple[str, bytes, int]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content, time in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), time
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def test_tars() -> None:
    assert kinds("x.tar", made_tar(A, B), made_tar(A, ("b.py", B[1], 5))) == {Kind.ARCHIVE_MEMBER}
    assert kinds("x.tar", made_tar(A, B), made_tar(B, A)) == {Kind.ARCHIVE_MEMBER}
    assert kinds("x.tar", made_tar(A, B), made_tar(A, B) + bytes(10240)) == {Kind.CONTENT}
    stamped = [made_tar(("log", f"on 2026-11-0{n}\n".encode(), 0)) for n in (1, 2)]
    assert kinds("x.tar", *stamped) == {Kind.ARCHIVE_MEMBER, Kind.TIMESTAMP}
    assert kinds("x.tgz", made_gzip(stamped[0]), made_gzip(stamped[1])) == {Kind.ARCHIVE_MEMBER, Kind.TIMESTAMP}


def made_ar(*members: tuple[str, bytes, int]) -> bytes:
    """As GNU ar writes it: a table of symbols first, which differs with the order of the members."""
    table = b"".join(name.encode() for name, _, _ in members)
    out = [b"!<arch>\n"]
    for name, content, time in (("", table, 0), *members):
        out.append(f"{name + '/':16}{time:<12}{0:<6}{0:<6}{'644':8}{len(content):<10}`\n".encode() + content)
        out.append(b"\n" * (len(content) % 2))
    return b"".join(out)


def test_static_libraries() -> None:
    a, b = ("a.o", b"\x7fELF-a", 0), ("b.o", b"\x7fELF-bb", 0)
    assert kinds("libx.a", made_ar(a, b), made_ar(b, a)) == {Kind.LINK_ORDER}
    assert kinds("libx.a", made_ar(a, b), made_ar(a, ("b.o", b[1], 9))) == {Kind.ARCHIVE_MEMBER}
    assert kinds("libx.a", made_ar(a, b), made_ar(a, ("b.o", b"\x7fELF-cc", 0))) == {Kind.ARCHIVE_MEMBER, Kind.CONTENT}
    assert kinds("libx.a", made_ar(a), made_ar(a, b)) == {Kind.ARCHIVE_MEMBER}


def test_other_bytes() -> None:
    head = b"\0\1\2 header \0" * 50
    assert kinds("x.bin", head + b"2026-11-01\0" + head, head + b"2026-11-09\0" + head) == {Kind.TIMESTAMP}
    assert kinds("x.bin", head + b"\1", head + b"\2") == {Kind.CONTENT}
    assert kinds("x.so", b"\x7fELF\x02\x01 cut", b"\x7fELF\x02\x01 off") == {Kind.CONTENT}
