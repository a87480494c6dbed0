"""Tidying up: what is named stays, what is not goes, whatever happens half way."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiln.cli import run
from kiln.errors import LockInvalidError, PinsError
from kiln.fetch import source_key
from kiln.housekeeping import Found, in_use, look, remove
from kiln.kept import CHOICE_DAYS, DAY, kept
from kiln.lockentries import Deb, Git, Wheel
from kiln.lockfile import Lock, dump_lock
from kiln.model import SCRIPTS, model_key
from kiln.pins import Pins
from kiln.records import Built, record_file, write_record
from kiln.render import Rendered
from kiln.rootfs import rootfs_key
from kiln.store import Store
from kiln.workspace import Workspace

DIGEST, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def blob(store: Store, data: bytes) -> str:
    """A blob in the store, by its sha256."""
    sha256 = hashlib.sha256(data).hexdigest()
    store.path(sha256).parent.mkdir(parents=True, exist_ok=True)
    store.path(sha256).write_bytes(data)
    return sha256


def bare(root: Path) -> Workspace:
    """A project without a stack: only what names things lies in it."""
    (root / "pins").mkdir(parents=True)
    (root / "scripts").mkdir()
    for name in SCRIPTS:
        (root / "scripts" / name).write_text("")
    return Workspace(root, root / ".kiln")


def stored(store: Store) -> set[str]:
    return {path.name for path in (store.folder / "sha256").glob("*/*")}


def notes(store: Store) -> set[str]:
    return {path.name for path in (store.folder / "made").glob("*")}


def bytes_on_disk(folder: Path) -> int:
    """The bytes in all files below a folder, each inode once."""
    found = [path.lstat() for path in folder.rglob("*") if not path.is_dir()]
    return sum({one.st_ino: one.st_size for one in found}.values())


def clean(workspace: Workspace) -> Found:
    """Look and remove everything that was found."""
    found = look(workspace)
    assert remove(found.items) == []
    return found


ROLES = ("deb", "wheel", "release", "note", "old note", "nothing", "linked", "linked deb")


@given(st.lists(st.lists(st.sampled_from(ROLES), max_size=12), min_size=1, max_size=4), st.booleans())
def test_every_named_blob_stays_and_no_other_whatever_the_locks_are(stacks: list[list[str]], twice: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        workspace = bare(Path(folder) / "project")
        store = Store(workspace.state / "store")
        named, unnamed, named_notes, old_notes = set(), set(), set(), set()
        for number, roles in enumerate(stacks):
            debs, wheels, gits = [], [], []
            for place, role in enumerate(roles):
                data = f"{number} {place}".encode() * (place + 1)
                sha256 = blob(store, data)
                name = f"x{number}-{place}"
                (named if role in ("deb", "wheel", "release", "note", "linked deb") else unnamed).add(sha256)
                if role in ("deb", "linked deb"):
                    debs.append(Deb(name, "1", "all", f"pool/{name}_1_all.deb", sha256, len(data)))
                if role == "wheel":
                    file = f"x{number}_{place}-1-py3-none-any.whl"
                    wheels.append(Wheel("c", name, "1", file, sha256, len(data)))
                if role == "release":
                    (workspace.root / "releases").mkdir(exist_ok=True)
                    (workspace.root / "releases" / f"{name}.toml").write_text(f'layers = ["sha256:{sha256}"]\n')
                if role == "note":
                    git = Git(name, "https://example.invalid/x", "v1", "1" * 40, f"{number:020x}{place:020x}")
                    gits.append(git)
                    store.remember(source_key(git), sha256)
                    named_notes.add(source_key(git))
                if role == "old note":
                    store.remember(sha256, sha256)
                    old_notes.add(sha256)
                if role.startswith("linked"):
                    (workspace.state / "contexts" / name).mkdir(parents=True)
                    os.link(store.path(sha256), workspace.state / "contexts" / name / "file")
            lock = Lock(f"s{number}", "0" * 64, tuple(debs), tuple(wheels), gits=tuple(gits))
            (workspace.root / "pins" / f"s{number}.lock.toml").write_text(dump_lock(lock))
        before = bytes_on_disk(workspace.root)
        found = clean(workspace)
        assert stored(store) == named
        assert notes(store) == named_notes
        assert not list((workspace.state / "contexts").glob("*"))
        assert sum(row.frees for row in found.rows()) == before - bytes_on_disk(workspace.root)
        assert {item.path.name for item in found.items if item.kind == "stored files"} == unnamed
        assert {item.path.name for item in found.items if item.kind == "notes"} == old_notes
        if twice:
            assert clean(workspace).items == ()


def test_a_blob_that_a_context_links_to_frees_nothing_while_the_context_stays(tmp_path: Path) -> None:
    workspace = bare(tmp_path / "project")
    store = Store(workspace.state / "store")
    sha256 = blob(store, b"x" * 1000)
    os.link(store.path(sha256), tmp_path / "elsewhere")
    (row,) = look(workspace).rows()
    assert (row.kind, row.items, row.size, row.frees) == ("stored files", 1, 1000, 0)
    (tmp_path / "elsewhere").unlink()
    (row,) = look(workspace).rows()
    assert row.frees == 1000


@pytest.fixture
def built(toy: Workspace, toy_pins: Pins, toy_lock: Lock, rendered: Rendered) -> Workspace:
    """The toy with what a build and a verification leave, of now and of earlier."""
    state = toy.state
    write_record(toy, Built("toy-serving", rendered.key, DIGEST, "kiln/toy-serving:1", 1.0))
    write_record(toy, Built("toy-serving", "0" * 64, OTHER, "kiln/toy-serving:0", 1.0))
    for context in rendered.contexts:
        (state / context.folder).mkdir(parents=True)
    for folder in (
        "contexts/old-0123",
        "renders/toy-serving",
        "renders/gone",
        "bytecode/toy-serving",
        "bytecode/gone",
        "proofs",
    ):
        (state / folder).mkdir(parents=True)
        (state / folder / "file").write_text("x")
    (state / "bytecode" / "toy-serving" / "digest").write_text(DIGEST)
    (state / "bytecode" / "gone" / "digest").write_text(OTHER)
    (state / "reports").mkdir()
    for digest in (DIGEST, OTHER):
        (state / "reports" / f"{digest.replace(':', '-')}.json").write_text("{}")
        (state / "reports" / f"{digest.replace(':', '-')}-static.json").write_text("{}")
        (state / "proofs" / f"toy-{digest[-16:]}.json").write_text(json.dumps({"images": [{"digest": digest}]}))
    (state / "reports" / "mine.html").write_text("a person's own")
    store = Store(state / "store")
    for key in (rootfs_key(toy, toy_pins, toy_lock), model_key(toy), "f" * 64):
        store.remember(key, blob(store, key.encode()))
    return toy


def gone(workspace: Workspace) -> set[str]:
    return {str(item.path.relative_to(workspace.state)) for item in clean(workspace).items}


def test_what_the_pins_and_the_lock_make_now_stays(built: Workspace, rendered: Rendered) -> None:
    removed = gone(built)
    other = hashlib.sha256(("f" * 64).encode()).hexdigest()
    assert removed == {
        f"store/sha256/{other[:2]}/{other}",
        "store/made/" + "f" * 64,
        "contexts/old-0123",
        "renders/gone",
        "builds/toy-serving-0000000000000000.json",
        "bytecode/gone",
        f"proofs/toy-{OTHER[-16:]}.json",
        f"reports/{OTHER.replace(':', '-')}.json",
        f"reports/{OTHER.replace(':', '-')}-static.json",
    }
    assert record_file(built, "toy-serving", rendered.key).is_file()
    assert (built.state / "reports" / "mine.html").is_file()
    assert (built.state / rendered.contexts[0].folder).is_dir()
    assert not list(built.state.rglob("tmp-*"))


def test_what_a_release_names_stays(built: Workspace) -> None:
    (built.root / "releases").mkdir()
    (built.root / "releases" / "toy.toml").write_text(f'digest = "{OTHER}"\n')
    removed = gone(built)
    assert not any(OTHER[-16:] in path or "0000000000000000" in path for path in removed)
    assert "bytecode/gone" not in removed
    assert "contexts/old-0123" in removed


def test_where_the_lock_is_not_current_nothing_that_was_built_goes(built: Workspace) -> None:
    pins = built.root / "pins" / "toy.toml"
    pins.write_text(pins.read_text().replace("2020-02-02T02:02:02Z", "2021-02-02T02:02:02Z"))
    found = look(built)
    assert found.items == ()
    assert "made from other pins" in found.left_alone[0]


@pytest.mark.parametrize(
    ("file", "text", "error"),
    [("toy.lock.toml", "schema = 1\n[[deb]]\n", LockInvalidError), ("toy.toml", "schema = 7\n", PinsError)],
)
def test_where_what_names_things_cannot_be_read_nothing_goes(
    built: Workspace, file: str, text: str, error: type[Exception]
) -> None:
    (built.root / "pins" / file).write_text(text)
    with pytest.raises(error):
        look(built)


def test_a_lock_of_other_choices_names_things_until_it_is_old(tmp_path: Path) -> None:
    workspace = bare(tmp_path / "project")
    store = Store(workspace.state / "store")
    sha256 = blob(store, b"of another tag")
    lock = Lock("s", "0" * 64, (Deb("x", "1", "all", "pool/x_1_all.deb", sha256, 14),), ())
    path = workspace.lock_file("s", "1" * 64)
    path.parent.mkdir()
    path.write_text(dump_lock(lock))
    assert look(workspace).items == ()
    later = time.time() + (CHOICE_DAYS + 1) * DAY
    assert {item.kind for item in look(workspace, now=later).items} == {"stored files", "locks of choices"}


def test_a_rehearsal_has_names_of_its_own(tmp_path: Path) -> None:
    workspace = bare(tmp_path / "project")
    state = workspace.state / "rehearsal"
    stores = Store(workspace.state / "store"), Store(state / "store")
    _, sha256 = (blob(store, b"a stand-in") for store in stores)
    (state / "locks").mkdir()
    lock = Lock("s", "0" * 64, (Deb("x", "1", "all", "pool/x_1_all.deb", sha256, 10),), ())
    (state / "locks" / "s.lock.toml").write_text(dump_lock(lock))
    clean(workspace)
    assert [stored(store) for store in stores] == [set(), {sha256}]


def test_what_came_lately_is_left_alone_if_that_is_wanted(tmp_path: Path) -> None:
    workspace = bare(tmp_path / "project")
    blob(Store(workspace.state / "store"), b"x")
    assert look(workspace, days=2).items == ()
    assert len(look(workspace, days=2, now=time.time() + 3 * DAY).items) == 1


def test_what_killed_runs_left_goes_and_what_may_be_in_use_does_not(tmp_path: Path) -> None:
    workspace = bare(tmp_path / "project")
    state = workspace.state
    for folder in (
        "contexts/tmp-gc-1",
        "git/tmp-2",
        "repro/one",
        "restored/torch",
        "scratch/diff-1",
        "tools/.lm-eval-1",
        "builds",
    ):
        (state / folder).mkdir(parents=True)
    ended = subprocess.Popen(["true"])
    ended.wait()
    (state / "builds" / f".a.json.{ended.pid}").write_text("half")
    (state / "builds" / f".b.json.{os.getpid()}").write_text("being written")
    with (state / "repro" / "one" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = look(workspace)
        assert "outlived its parent" in found.left_alone[0]
        assert {str(item.path.relative_to(state)) for item in found.items} == {
            "contexts/tmp-gc-1",
            "git/tmp-2",
            "restored",
            "tools/.lm-eval-1",
            f"builds/.a.json.{ended.pid}",
        }
    assert {item.path.name for item in look(workspace, now=time.time() + 2 * DAY).items} >= {"repro", "diff-1"}


def test_a_folder_with_a_disk_in_it_is_in_use() -> None:
    assert "a disk is mounted in it" in in_use(Path("/dev"))


def test_a_record_that_is_too_young_to_go_keeps_its_image(built: Workspace) -> None:
    assert look(built).digests == {DIGEST}
    assert look(built, days=1).digests == {DIGEST, OTHER}


def test_an_empty_state_folder_is_nothing_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = bare(tmp_path / "project")
    assert run(["--quiet", "--root", str(workspace.root), "gc", "--yes"]) == 0
    assert "nothing in the state folder is without a name" in capsys.readouterr().out


def gc(workspace: Workspace, *words: str) -> int:
    json_word = ["--json"] if "--json" in words else []
    rest = [word for word in words if word != "--json"]
    return run(["--quiet", *json_word, "--root", str(workspace.root), "--state", str(workspace.state), "gc", *rest])


@pytest.mark.parametrize("words", [[], ["--dry-run"], ["--dry-run", "--yes"], ["--json"]])
def test_without_a_yes_it_only_shows(built: Workspace, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    def state() -> set[Path]:
        return {path for path in built.state.rglob("*") if path.name != "lock"}

    before = state()
    assert gc(built, *words) == 0
    said = capsys.readouterr().out
    assert state() == before
    if "--json" in words:
        answer = json.loads(said)
        assert answer["removed"] is False
        assert {row["kind"] for row in answer["kinds"]} >= {"stored files", "contexts", "reports"}
    else:
        assert "nothing was removed" in said
        assert "stored files" in said


def test_with_a_yes_it_removes_and_says_how_much(built: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert gc(built, "--yes") == 0
    assert "are free again" in capsys.readouterr().out
    assert not (built.state / "contexts" / "old-0123").exists()
    assert look(built).items == ()


def test_what_cannot_be_removed_is_named(
    built: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refuse)
        assert gc(built, "--yes") == 40
    assert "Operation not permitted" in capsys.readouterr().err
    assert gc(built, "--yes") == 0


@pytest.mark.parametrize(("answer", "removes"), [("n", False), ("", False), ("y", True)])
def test_at_a_terminal_it_shows_and_asks(built: Workspace, answer: str, removes: bool) -> None:
    leader, terminal = os.openpty()
    process = command(built, stdin=terminal, more=())
    os.close(terminal)
    os.write(leader, f"{answer}\n".encode())
    out, err = process.communicate(timeout=60)
    os.close(leader)
    assert process.returncode == 0
    assert "stored files" in err
    assert "remove all of it? [y/N]" in err
    assert out.startswith("removed; " if removes else "nothing was removed")
    assert (built.state / "contexts" / "old-0123").exists() is not removes


def command(
    workspace: Workspace, stdin: int = subprocess.DEVNULL, more: tuple[str, ...] = ("--yes",)
) -> subprocess.Popen[str]:
    words = ["--root", str(workspace.root), "--state", str(workspace.state), "gc", *more]
    project = Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        [sys.executable, "-m", "kiln", *words],
        cwd=project,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_it_waits_for_whoever_holds_the_state_folder(built: Workspace) -> None:
    with built.exclusive(print):
        process = command(built)
        assert process.stderr is not None
        assert "waiting for it" in process.stderr.readline()
        assert (built.state / "contexts" / "old-0123").exists()
    assert process.wait(timeout=60) == 0
    process.communicate()
    assert not (built.state / "contexts" / "old-0123").exists()


@contextmanager
def stopped_half_way(workspace: Workspace, until: Path) -> Iterator[None]:
    """A real gc that is killed as soon as ``until`` is gone."""
    process = command(workspace)
    try:
        deadline = time.monotonic() + 60
        while until.exists() and time.monotonic() < deadline:
            pass
        assert not until.exists()
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    yield


def test_killed_half_way_nothing_named_is_gone_and_no_folder_is_torn(built: Workspace, rendered: Rendered) -> None:
    store = Store(built.state / "store")
    stays = stored(store) - {item.path.name for item in look(built).items}
    for number in range(20):
        folder = built.state / "contexts" / f"old-{number:04}"
        folder.mkdir()
        for file in range(100):
            (folder / f"{file}").write_text("x")
    with stopped_half_way(built, built.state / "contexts" / "old-0003"):
        assert stored(store) >= stays
        assert all(len(list(one.iterdir())) in (1, 100) for one in (built.state / "contexts").glob("old-*"))
        assert all((built.state / context.folder).is_dir() for context in rendered.contexts)
    clean(built)
    assert look(built).items == ()
    assert stored(store) == stays
    assert not list(built.state.rglob("tmp-*"))


def test_kept_names_what_a_person_would_look_for(built: Workspace, rendered: Rendered) -> None:
    names = kept(built)
    assert names.images == {"toy-serving"}
    assert names.digests == {DIGEST}
    assert names.records == {record_file(built, "toy-serving", rendered.key).name}
