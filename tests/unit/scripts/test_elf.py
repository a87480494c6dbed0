"""Reading ELF files and GPU code, on real ones that Debian's hipcc made and on what damage makes of them."""

from __future__ import annotations

import ctypes
import hashlib
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from .conftest import load

HIP = Path(__file__).parents[2] / "rehearsal" / "hip"
elf: ModuleType = load("elf")

BOTH = (HIP / "module_both.so").read_bytes()
COMPRESSED = (HIP / "module_compressed.so").read_bytes()
HOST = (HIP / "host_only.so").read_bytes()
BUNDLE = bytes(elf.Elf(BOTH).section(".hip_fatbin"))
CODE = BUNDLE[0x1000 : 0x1000 + 5504]  # the code object for gfx942, where the bundle's first real entry says it is


def bundle(*entries: tuple[str, bytes]) -> bytes:
    """A plain offload bundle, its contents right behind its header."""
    place = 32 + sum(24 + len(name) for name, _ in entries)
    head, body = elf.BUNDLE_MAGIC + struct.pack("<Q", len(entries)), b""
    for name, content in entries:
        head += struct.pack("<QQQ", place + len(body), len(content), len(name)) + name.encode()
        body += content
    return head + body


def packed(content: bytes, version: int, method: int, stream: bytes | None = None, **instead: int) -> bytes:
    """A compressed bundle of any version; ``instead`` puts other numbers into its header."""
    stream = zlib.compress(content) if stream is None else stream
    size = instead.get("size", len(content))
    check = instead.get("check", struct.unpack("<Q", hashlib.md5(content).digest()[:8])[0])  # noqa: S324 - the format's
    total = instead.get("total", len(stream) + {1: 20, 2: 24, 3: 32}.get(version, 24))
    form, numbers = {1: ("<I", (size,)), 3: ("<QQ", (total, size))}.get(version, ("<II", (total, size)))
    head = struct.pack("<4sHH", b"CCOB", version, method) + struct.pack(form, *numbers)
    return head + struct.pack("<Q", check) + stream


def zstd(content: bytes) -> bytes:
    library = ctypes.CDLL("libzstd.so.1")
    room = ctypes.create_string_buffer(len(content) + 1024)
    library.ZSTD_compress.restype = ctypes.c_size_t
    size = library.ZSTD_compress(room, ctypes.c_size_t(len(room)), content, ctypes.c_size_t(len(content)), 3)
    return room.raw[:size]


def targets(source: Any) -> list[tuple[str, str, str]]:
    return [(one.named, one.features, one.processor) for one in elf.code_objects(source)]


def test_reads_what_readelf_reads() -> None:
    file = elf.Elf(BOTH)
    assert (file.type, file.machine) == (3, elf.EM_X86_64)
    assert file.needed == ("libamdhip64.so.6", "libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6")
    assert file.version_needs == {
        "libamdhip64.so.6": ("hip_4.2",),
        "libc.so.6": ("GLIBC_2.14", "GLIBC_2.2.5"),
        "libgcc_s.so.1": ("GCC_3.0",),
        "libstdc++.so.6": ("CXXABI_1.3", "CXXABI_1.3.9", "GLIBCXX_3.4", "GLIBCXX_3.4.21"),
    }
    assert "__hipRegisterFatBinary" in file.undefined
    assert "kiln_add" in file.defined
    assert not set(file.undefined) & set(file.defined)
    assert (file.soname, file.rpath, file.runpath) == (None, (), ())
    assert file.build_id is not None
    assert len(file.build_id) == 40
    assert [one.name for one in file.sections if "hip" in one.name] == [".hip_fatbin", ".hipFatBinSegment"]
    assert file.section(".nothing") is None


def test_reads_names_and_folders() -> None:
    file = elf.Elf(HOST)
    assert (file.soname, file.rpath, file.runpath) == ("libhost_only.so.1", (), ("$ORIGIN/../lib/torch",))
    assert file.defined == ("kiln_answer",)
    older = bytearray(HOST)
    place = HOST.index(struct.pack("<Q", 29), file.segments[2].offset)
    older[place : place + 8] = struct.pack("<Q", 15)
    assert elf.Elf(bytes(older)).rpath == ("$ORIGIN/../lib/torch",)


def test_needs_are_read_without_section_headers() -> None:
    blind = bytearray(BOTH)
    blind[0x28:0x30] = bytes(8)  # e_shoff
    blind[0x3C:0x40] = bytes(4)  # e_shnum, e_shstrndx
    file = elf.Elf(bytes(blind))
    assert file.sections == ()
    assert file.version_needs == elf.Elf(BOTH).version_needs
    with pytest.raises(elf.CannotLookError, match="no section headers"):
        _ = file.defined


@pytest.mark.parametrize(
    ("name", "archs", "compressed"),
    [
        ("module_both", ["gfx942", "gfx950"], False),
        ("module_gfx942", ["gfx942"], False),
        ("module_compressed", ["gfx942", "gfx950"], True),
        ("host_only", [], False),
    ],
)
def test_code_objects_of_what_hipcc_made(name: str, archs: list[str], compressed: bool) -> None:
    found = elf.code_objects(HIP / f"{name}.so")
    assert [one.processor for one in found] == archs
    for one in found:
        assert one.entry == f"hipv4-amdgcn-amd-amdhsa--{one.processor}"
        assert (one.features, one.size, one.compressed, one.disagrees) == ("", 5504, compressed, False)


def test_code_objects_outside_a_library() -> None:
    assert targets(BUNDLE) == [("gfx942", "", "gfx942"), ("gfx950", "", "gfx950")]
    assert targets(CODE) == [("", "", "gfx942")]


def test_several_bundles_with_zeros_between() -> None:
    one = bundle(("host-x86_64-unknown-linux-gnu-", b""), ("hip-amdgcn-amd-amdhsa-gfx942:sramecc+:xnack-", CODE))
    assert targets(one + bytes(4000) + BUNDLE + packed(one, 2, 0) + bytes(7)) == [
        ("gfx942", ":sramecc+:xnack-", "gfx942"),
        ("gfx942", "", "gfx942"),
        ("gfx950", "", "gfx950"),
        ("gfx942", ":sramecc+:xnack-", "gfx942"),
    ]


def test_an_entry_without_content_promises_nothing() -> None:
    assert targets(bundle(("hipv4-amdgcn-amd-amdhsa--gfx950", b""), ("host-x86_64", b"x"))) == []


def test_a_disagreement_of_id_and_flags_shows() -> None:
    (found,) = elf.code_objects(bundle(("hipv4-amdgcn-amd-amdhsa--gfx950", CODE)))
    assert (found.named, found.processor, found.disagrees) == ("gfx950", "gfx942", True)
    unknown = CODE[:0x30] + b"\xfe" + CODE[0x31:]
    (found,) = elf.code_objects(bundle(("hipv4-amdgcn-amd-amdhsa--gfx942", unknown)))
    assert (found.processor, found.disagrees) == ("0xfe", True)


@pytest.mark.parametrize(
    ("flag", "name"), [(0x3F, "gfx90a"), (0x4C, "gfx942"), (0x4F, "gfx950"), (0x5F, "gfx9-4-generic")]
)
def test_processors(flag: int, name: str) -> None:
    code = CODE[:0x30] + bytes([flag]) + CODE[0x31:]
    (found,) = elf.code_objects(bundle((f"hipv4-amdgcn-amd-amdhsa--{name}", code)))
    assert (found.named, found.processor) == (name, name)


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("method", [0, 1])
def test_all_compressed_layouts(version: int, method: int) -> None:
    # The ends are found from the header or, in version 1, from the stream: a second bundle follows at once.
    one = packed(BUNDLE, version, method, zstd(BUNDLE) if method else None)
    assert targets(one + one) == [("gfx942", "", "gfx942"), ("gfx950", "", "gfx950")] * 2


@pytest.mark.parametrize(
    ("damaged", "said"),
    [
        (packed(BUNDLE, 4, 0), "version 4"),
        (packed(BUNDLE, 2, 2), "method 2"),
        (packed(BUNDLE, 2, 0, total=10**6), "outside of"),
        (packed(BUNDLE, 2, 0, total=23), "outside of"),
        (packed(BUNDLE, 3, 0, size=1 << 60), "said to hold"),
        (packed(BUNDLE, 3, 0, size=len(BUNDLE) + 1), "holds 17792"),
        (packed(BUNDLE, 3, 0, size=len(BUNDLE) - 1), "holds 17792"),
        (packed(BUNDLE, 3, 1, zstd(BUNDLE), size=len(BUNDLE) - 1), "zstd"),
        (packed(BUNDLE, 3, 0, zlib.compress(BUNDLE)[:-9]), "does not end"),
        (packed(BUNDLE, 3, 0, check=1), "checksum"),
        (packed(BUNDLE, 1, 0, b"nothing"), "said to hold|does not decompress"),
        (packed(BUNDLE, 1, 1, b"no frame, as long as need be"), "no whole zstd frame"),
        (packed(HOST, 2, 0), "no offload bundle"),
        (bundle(("hipv4-amdgcn-amd-amdhsa--gfx942", HOST)), "machine 0x3e"),
        (bundle(("hipv4-amdgcn-amd-amdhsa--gfx942", b"text")), "no code object"),
        (bundle(("hipv4-amdgcn-amd-amdhsa--gfx942", CODE[:-1])), "outside of"),
        (bundle(("hipv4-nvptx64-nvidia-cuda--sm_90", CODE)), "names no AMD GPU"),
        (bundle() + b"rest", "no offload bundle"),
        (elf.BUNDLE_MAGIC + struct.pack("<Q", 1 << 40), "entries"),
        (elf.BUNDLE_MAGIC + struct.pack("<QQQQ", 1, 0, 0, 1 << 40), "characters"),
        (elf.BUNDLE_MAGIC + struct.pack("<QQQQ", 1, 1 << 62, 1 << 62, 0), "outside of"),
        (elf.BUNDLE_MAGIC, "outside of"),
    ],
)
def test_a_damaged_bundle_is_named(damaged: bytes, said: str) -> None:
    with pytest.raises(elf.MalformedError, match=said):
        elf.code_objects(damaged)


@pytest.mark.parametrize("content", [b"", b"\x7fEL", b"not an ELF file at all", b"\x7fELF\x01\x01\x01" + bytes(60)])
def test_what_is_no_such_file(content: bytes) -> None:
    with pytest.raises(elf.NotElfError):
        elf.code_objects(content)


def test_without_libzstd_nobody_claims_to_have_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(elf.ctypes, "CDLL", missing)
    with pytest.raises(elf.CannotLookError, match=r"libzstd\.so\.1 isn't here"):
        elf.code_objects(COMPRESSED)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(elf.CannotLookError, match="could not be read"):
        elf.code_objects(tmp_path / "nothing.so")
    with pytest.raises(elf.CannotLookError, match="could not be read"):
        elf.code_objects(tmp_path)


def look_at_all(content: bytes) -> None:
    """Ask for everything; nothing but the module's own error may come out."""
    with suppress(elf.ElfError):
        file = elf.Elf(content)
        for name in ("needed", "soname", "rpath", "runpath", "version_needs", "undefined", "defined", "build_id"):
            with suppress(elf.ElfError):
                getattr(file, name)
        for one in file.sections:
            with suppress(elf.ElfError):
                file.section(one.name)
    with suppress(elf.ElfError):
        elf.code_objects(content)


@given(st.binary(max_size=400))
@example(b"\x7fELF\x02\x01\x01")
def test_random_bytes(content: bytes) -> None:
    for head in (b"", b"\x7fELF\x02\x01\x01", elf.BUNDLE_MAGIC, b"CCOB\1\0\0\0", b"CCOB\2\0\1\0", b"CCOB\3\0\1\0"):
        look_at_all(head + content)


# Where the numbers are: headers and tables, not the padding and machine code between them.
PLACES = st.one_of(st.integers(0, 0x240), st.integers(0x2A0, 0xC00), st.integers(0x3000, 0x3100), st.integers(0, 40000))
EDGES = st.one_of(
    st.sampled_from([b"\0" * 8, b"\xff" * 8, b"\xff", b"\0", b"\x80", struct.pack("<Q", 1 << 63), b"\xff\xff\xff\x7f"]),
    st.binary(min_size=1, max_size=8),
)


@given(st.sampled_from([BOTH, COMPRESSED, HOST]), st.lists(st.tuples(PLACES, EDGES), min_size=1, max_size=6))
def test_mutated_libraries(content: bytes, changes: list[tuple[int, bytes]]) -> None:
    damaged = bytearray(content)
    for place, edge in changes:
        place %= len(content) - 8
        damaged[place : place + len(edge)] = edge
    look_at_all(bytes(damaged))


@given(st.sampled_from([BOTH, COMPRESSED, HOST, BUNDLE, CODE]), st.integers(0, 40000))
def test_cut_libraries(content: bytes, length: int) -> None:
    look_at_all(content[: length % len(content)])
