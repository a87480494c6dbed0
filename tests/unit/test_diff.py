"""Comparing images: that every difference is found where it is, and nothing else; the layers, the configuration, what is left out, the command."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kiln.cli import run
from kiln.console import Console
from kiln.diff import Diff, Options, compare
from kiln.diffkinds import ABOUT, Kind, table
from kiln.diffreport import report
from kiln.errors import DifferentError, ImageDamagedError
from kiln.ociimage import read_layout
from tests.images import EPOCH, Entry, Made, archive, blob, folder, layer, make_tar, write_layout

FILES = (folder("etc"), Entry("etc/a", b"one\n"), Entry("etc/b", b"two\n"), Entry("etc/c", b"three\n"))


class Pair:
    """Two images side by side."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def images(self, a: list[Made], b: list[Made], config: Any = None, other: Any = None) -> tuple[Path, Path]:
        return write_layout(self.place / "a", a, config), write_layout(self.place / "b", b, other)

    def diff(self, a: list[Made], b: list[Made], config: Any = None, other: Any = None, **options: Any) -> Diff:
        paths = self.images(a, b, config, other)
        (self.place / "scratch").mkdir()
        found = compare(*map(read_layout, paths), self.place / "scratch", Console(quiet=True), Options(**options))
        assert list((self.place / "scratch").iterdir()) == []
        assert json.loads(json.dumps(found.data()))["same"] == found.same
        assert report(found)
        return found

    def files(self, a: tuple[Entry, ...], b: tuple[Entry, ...], **options: Any) -> Diff:
        return self.diff([layer(*a)], [layer(*b)], **options)


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


def kinds(found: Diff) -> dict[str, set[Kind]]:
    return {file.path: {one.kind for one in file.findings} for part in found.layers for file in part.files}


def test_the_same_manifest_is_the_same_image_at_once(pair: Pair, tmp_path: Path) -> None:
    a, b = pair.images([layer(*FILES)], [layer(*FILES)])
    blob(b, read_layout(b).layers[0].digest).unlink()  # not even looked at
    found = compare(read_layout(a), read_layout(b), tmp_path, Console(quiet=True), Options())
    assert (found.identical, found.same, found.files) == (True, True, 0)


SAME = Entry("f", b"x\n")
# What differs of one member, what it is called, and words of what is told.
HEADERS: list[tuple[Entry, Entry, Kind, str]] = [
    (SAME, Entry("f", b"x\n", mtime=EPOCH + 1), Kind.MTIME, f"{EPOCH} / {EPOCH + 1}"),
    (Entry("f", mtime=5.25, pax={"mtime": "5.25"}), Entry("f", mtime=5), Kind.MTIME, "5.25 / 5"),
    (SAME, Entry("f", b"x\n", mode=0o664), Kind.MODE, "0644 / 0664: only bits that a umask takes (020)"),
    (Entry("f", mode=0o777), Entry("f", mode=0o755), Kind.MODE, "only bits that a umask takes (022)"),
    (SAME, Entry("f", b"x\n", mode=0o755), Kind.MODE, "0644 / 0755"),
    (folder("f"), folder("f", mode=0o2755), Kind.SETGID, "0755 / 2755"),
    (Entry("f", mode=0o755), Entry("f", mode=0o2755), Kind.MODE, "0755 / 2755"),
    (SAME, Entry("f", b"x\n", uid=1000, gid=100), Kind.OWNER, "0:0 / 1000:100"),
    (SAME, Entry("f", b"x\n", uname="root"), Kind.OWNER, "names : / root:"),
    (SAME, Entry("f", type=tarfile.SYMTYPE, link="x"), Kind.TYPE, "file / symbolic link"),
    (
        Entry("f", type=tarfile.SYMTYPE, link="/a"),
        Entry("f", type=tarfile.SYMTYPE, link="/b"),
        Kind.LINK,
        "/a / /b",
    ),
    (SAME, Entry("f", b"x\n", pax={"SCHILY.xattr.user.a": "1"}), Kind.XATTR, "none / user.a=1"),
    (SAME, Entry("f", b"x\n", pax={"KILN.other": "1"}), Kind.TAR_FORM, "KILN.other=1"),
    (SAME, Entry("./f", b"x\n"), Kind.TAR_FORM, "name=./f"),
]


@pytest.mark.parametrize(
    ("one", "other", "kind", "says"), HEADERS, ids=lambda value: value if isinstance(value, Kind) else ""
)
def test_what_a_header_shows(pair: Pair, one: Entry, other: Entry, kind: Kind, says: str) -> None:
    found = pair.files((*FILES, one), (*FILES, other))
    assert kind in kinds(found)["f"]
    assert kinds(found).keys() == {"f"}
    if kind is not Kind.TYPE:
        assert kinds(found)["f"] == {kind}
    ((difference,),) = [part.files for part in found.layers]
    assert any(says in one.detail for one in difference.findings)


def test_a_umask_neither_gives_nor_touches_the_owner(pair: Pair) -> None:
    found = pair.files(
        (Entry("f", mode=0o620), Entry("g", mode=0o600)), (Entry("f", mode=0o602), Entry("g", mode=0o400))
    )
    assert kinds(found) == {"f": {Kind.MODE}, "g": {Kind.MODE}}
    assert [one.detail for file in found.layers[0].files for one in file.findings] == ["0620 / 0602", "0600 / 0400"]


def test_added_and_removed(pair: Pair) -> None:
    found = pair.files((*FILES, Entry("old", b"12345")), (*FILES, Entry("new")))
    assert kinds(found) == {"new": {Kind.ADDED}, "old": {Kind.REMOVED}}
    assert [file.change for file in found.layers[0].files] == ["added", "removed"]
    assert (found.files, found.layers[0].members) == (2, 5)


def test_another_order_is_that_and_no_file(pair: Pair) -> None:
    found = pair.files(FILES, (FILES[0], *reversed(FILES[1:])))
    assert [one.kind for one in found.layers[0].findings] == [Kind.ORDER]
    assert (found.files, kinds(found)) == (0, {})


def test_an_added_file_in_the_middle_is_no_other_order(pair: Pair) -> None:
    found = pair.files(FILES, (FILES[0], Entry("etc/aa"), *FILES[1:]))
    assert found.layers[0].findings == ()
    assert kinds(found) == {"etc/aa": {Kind.ADDED}}


def test_a_name_that_a_tar_has_twice(pair: Pair) -> None:
    found = pair.files((SAME, Entry("f", b"2\n")), (SAME, Entry("f", b"3\n")))
    assert kinds(found) == {"f (entry 2 of this name)": {Kind.CONTENT}}


def test_hostile_names_are_told_and_gone_to_by_nobody(pair: Pair, tmp_path: Path) -> None:
    names = ("../../outside", f"{tmp_path}/absolute", "red\x1b[31m\n")
    found = pair.files(tuple(Entry(name, b"1") for name in names), tuple(Entry(name, b"2") for name in names))
    assert found.files == 3
    assert "\x1b" not in report(found)
    assert "red\\x1b[31m\\n" in kinds(found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "scratch"]


@pytest.mark.parametrize(
    "other", [Made(make_tar(FILES), "gzip", 1), Made(make_tar(FILES), "zstd"), Made(make_tar(FILES))]
)
def test_another_compression_is_that_alone(pair: Pair, other: Made) -> None:
    found = pair.diff([layer(*FILES)], [other])
    assert [one.kind for one in found.layers[0].findings] == [Kind.COMPRESSION]
    assert found.files == 0


def test_a_compression_that_hides_another_tar_is_seen(tmp_path: Path) -> None:
    """Both configurations name the same tar; only reading tells that one of them lies."""
    a = read_layout(write_layout(tmp_path / "a", [layer(*FILES)]))
    liar = read_layout(write_layout(tmp_path / "b", [layer(SAME)], {"rootfs": a.config["rootfs"]}))
    with pytest.raises(ImageDamagedError, match="the tar in layer 1"):
        compare(a, liar, tmp_path, Console(quiet=True), Options())


def test_another_form_of_the_tar_is_no_file(pair: Pair) -> None:
    found = pair.diff([Made(make_tar(FILES, tarfile.PAX_FORMAT))], [Made(make_tar(FILES) + bytes(10240))])
    assert [one.kind for one in found.layers[0].findings] == [Kind.TAR_FORM]
    assert found.files == 0


CONFIG: dict[str, Any] = {"Env": ["A=1", "B=2"], "Labels": {"x": "1"}, "Entrypoint": ["vllm", "serve"]}


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"config": CONFIG | {"Env": ["A=2", "B=2"]}}, {"env.A": "env"}),
        ({"config": CONFIG | {"Env": ["B=2", "A=1"]}}, {"env (order)": "env"}),
        ({"config": CONFIG | {"Labels": {"x": "1", "y": "2"}}}, {"label.y": "labels"}),
        ({"config": CONFIG | {"Entrypoint": ["sh"]}}, {"Entrypoint": "entrypoint"}),
        ({"config": CONFIG | {"Cmd": ["sh"]}}, {"Cmd": "cmd"}),
        ({"created": "2026-11-01T00:00:01Z"}, {"created": "created"}),
        ({"history": [{"created_by": "RUN x"}]}, {"history[1].created_by": "history"}),
        ({"history": [{"created_by": "COPY step-0 /"}, {"empty_layer": True}]}, {"history[2]": "history"}),
        ({"architecture": "arm64"}, {"architecture": "architecture"}),
        ({"author": "x"}, {"author": "author"}),
    ],
)
def test_every_field_is_named_and_can_be_ignored(pair: Pair, change: dict[str, Any], fields: dict[str, str]) -> None:
    found = pair.diff([layer(*FILES)], [layer(*FILES)], {"config": CONFIG}, {"config": CONFIG} | change)
    assert {one.field: one.group for one in found.fields} == fields
    assert found.layers == ()
    read = (read_layout(pair.place / "a"), read_layout(pair.place / "b"))
    left = compare(*read, pair.place, Console(quiet=True), Options(ignore=frozenset(fields.values())))
    assert (left.same, left.identical, dict(left.ignored)) == (True, False, dict.fromkeys(fields.values(), 1))


def test_documents_that_say_the_same_in_other_bytes(pair: Pair) -> None:
    """The configuration's keys in another order: no field differs, and the digests do."""
    found = pair.diff(
        [layer(*FILES)], [layer(*FILES)], {"config": CONFIG, "z": 1, "y": 1}, {"config": CONFIG, "y": 1, "z": 1}
    )
    assert [one.field for one in found.fields] == ["manifest (spelling)"]
    assert not found.same


def test_layers_are_matched_by_what_is_in_them(pair: Pair) -> None:
    made = [layer(Entry(f"f{n}", b"x")) for n in range(4)]
    found = pair.diff(made, [made[0], layer(Entry("new", b"x")), *made[1:]], {"history": []}, {"history": []})
    assert [(part.name, part.place_a, part.place_b) for part in found.layers] == [("layer 2", None, 2)]
    assert [one.kind for one in found.layers[0].findings] == [Kind.ADDED]


def test_layers_are_matched_by_their_components(pair: Pair) -> None:
    """aiter is in both, at other places and with other files: without names it would be compared with another component."""
    a = [layer(Entry("torch")), layer(Entry("aiter", b"1"))]
    b = [layer(Entry("aiter", b"2")), layer(Entry("torch"))]
    names = {"a": ("torch", "aiter"), "b": ("aiter", "torch")}
    found = pair.diff(a, b, {"history": []}, {"history": []}, names=lambda image: names[Path(image.name).name])
    assert [(part.name, part.place_a, part.place_b, list(kinds(found))) for part in found.layers] == [
        ("aiter", 2, 1, ["aiter"])
    ]


def test_a_layer_without_a_component_is_called_by_its_step(pair: Pair) -> None:
    found = pair.files((Entry("f", b"1"),), (Entry("f", b"2"),))
    assert found.layers[0].name == "layer 1 (COPY step-0 /)"


def test_what_is_ignored_is_counted_and_said(pair: Pair) -> None:
    later = tuple(Entry(one.path, one.content, one.type, one.mode, EPOCH + 9) for one in FILES)
    found = pair.files(FILES, (*later[:-1], Entry("etc/c", b"other\n", mtime=EPOCH + 9)), ignore=frozenset({"mtimes"}))
    assert kinds(found) == {"etc/c": {Kind.CONTENT}}
    assert (found.same, found.files) == (False, 1)
    assert dict(found.ignored) == {"mtime": 4}
    assert dict(found.kinds) == {Kind.CONTENT: 1}


def test_more_files_than_are_listed_are_counted(pair: Pair) -> None:
    a = tuple(Entry(f"{n:03}", b"1") for n in range(300))
    b = tuple(Entry(f"{n:03}", b"2") for n in range(300))
    found = pair.files(a, b, listed=250)
    assert (found.files, len(found.layers[0].files), dict(found.kinds)) == (300, 250, {Kind.CONTENT: 300})
    shown = report(found)
    assert shown.count("\n  changed ") == 200
    assert "and 100 more files" in shown


PATHS = st.sampled_from([f"{top}/{name}" for top in ("a", "b", "usr/lib") for name in ("x", "y", "z.py", "é", "w w")])
ENTRIES = st.builds(
    lambda content, mode, mtime, uid: (content, mode, mtime, uid),
    st.binary(max_size=40),
    st.sampled_from([0o644, 0o755, 0o600]),
    st.integers(0, 3),
    st.integers(0, 1),
)
TREES = st.dictionaries(PATHS, ENTRIES, max_size=12)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TREES, TREES, st.randoms(use_true_random=False))
def test_exactly_the_files_that_differ_are_named(tmp_path_factory: Any, one: Any, other: Any, dice: Any) -> None:
    both = {path: dice.choice([one.get(path), found]) or found for path, found in other.items()}
    pair = Pair(tmp_path_factory.mktemp("trees"))

    def entries(tree: Any) -> tuple[Entry, ...]:
        names = list(tree)
        dice.shuffle(names)
        return tuple(
            Entry(name, tree[name][0], mode=tree[name][1], mtime=tree[name][2], uid=tree[name][3]) for name in names
        )

    found = pair.files(entries(one), entries(both))
    differing = {path for path in one.keys() | both.keys() if one.get(path) != both.get(path)}
    assert set(kinds(found)) == differing
    assert found.files == len(differing)
    for path in differing & one.keys() & both.keys():
        expected = {
            kind for kind, at in ((Kind.MODE, 1), (Kind.MTIME, 2), (Kind.OWNER, 3)) if one[path][at] != both[path][at]
        }
        assert kinds(found)[path] & {Kind.MODE, Kind.MTIME, Kind.OWNER} == expected
        assert bool(kinds(found)[path] - expected) == (one[path][0] != both[path][0])


def test_the_command_says_what_differs_and_ends_so(
    pair: Pair, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    a, b = pair.images([layer(*FILES)], [layer(*FILES[:-1], Entry("etc/c", b"other\n"))])
    packed = archive(b, tmp_path / "b.tar")
    assert run(["-q", "diff", str(a), str(packed)]) == DifferentError.exit_code
    out = capsys.readouterr()
    assert "changed  etc/c\n" in out.out
    assert f"{packed} differ: 1 file in 1 layer" in out.err
    assert run(["-q", "diff", str(b), str(packed)]) == 0
    assert capsys.readouterr().out == f"identical: {read_layout(b).digest}\n"
    assert run(["-q", "diff", "--json", str(a), str(b)]) == DifferentError.exit_code
    data = json.loads(capsys.readouterr().out)
    assert data["kinds"] == {"content": 1}
    assert data["layers"][0]["files"][0]["path"] == "etc/c"


def test_the_command_leaves_out_what_it_is_told_to(
    pair: Pair, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    later = tuple(Entry(one.path, one.content, one.type, one.mode, EPOCH + 9) for one in FILES)
    a, b = pair.images([layer(*FILES)], [layer(*reversed(later))], None, {"created": "2026-11-02T00:00:00Z"})
    assert run(["diff", "--semantic", str(a), str(b)]) == 0
    assert "the same but for created (1), mtime (4), order (1)" in capsys.readouterr().err
    assert run(["-q", "diff", "--ignore", "mtimes,order", str(a), str(b)]) == DifferentError.exit_code
    assert run(["-q", "diff", "--ignore", "mtimes,order", "--ignore", "created", str(a), str(b)]) == 0
    capsys.readouterr()
    assert run(["diff", "--ignore", "mtimez", str(a), str(b)]) == 2
    assert "does not know mtimez" in capsys.readouterr().err


def test_the_manual_has_every_kind(project: Path) -> None:
    assert set(ABOUT) == set(Kind)
    assert table() in (project / "docs" / "diff.md").read_text(encoding="utf-8")
