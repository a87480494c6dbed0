"""What containerd keeps of a blob that came with wrong bytes goes, and nothing else does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kiln import torn
from kiln.engine import Engine

WRONG, OTHER = "sha256:" + "ab" * 32, "sha256:" + "cd" * 32
SAID = f'failed commit on ref "manifest-{WRONG}": commit failed: unexpected commit digest {OTHER}, expected {WRONG}: failed precondition'
ENGINE = Engine("unix:///nowhere", "26", "1.45", private=True)


@pytest.fixture
def ingest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, digest in (("one", WRONG), ("two", OTHER)):
        (tmp_path / "ingest" / name).mkdir(parents=True)
        (tmp_path / "ingest" / name / "ref").write_text(f"moby/5/manifest-{digest}")
    monkeypatch.setattr(torn, "content_folders", lambda _: [tmp_path / "blobs" / "sha256", tmp_path / "none" / "x"])
    return tmp_path / "ingest"


def test_the_blob_that_is_named_goes(ingest: Path) -> None:
    assert torn.forget_torn(ENGINE, SAID)
    assert [path.name for path in ingest.iterdir()] == ["two"]
    assert not torn.forget_torn(ENGINE, SAID)


def test_another_error_removes_nothing(ingest: Path) -> None:
    assert not torn.forget_torn(ENGINE, f"failed to copy {WRONG}: connection reset")
    assert len(list(ingest.iterdir())) == 2


def test_an_engine_of_somebody_elses_is_left_alone(ingest: Path) -> None:
    assert not torn.forget_torn(replace(ENGINE, private=False), SAID)
    assert len(list(ingest.iterdir())) == 2
