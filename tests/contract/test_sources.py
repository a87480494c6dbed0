"""Fetching and keeping sources, and taking symbols out of them: offline, on archives and modules made here."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kiln.uv import SourceDistribution
from tests.contract import sources
from tests.contract.mutate import mutations
from tests.contract.sources import ContractError, Release, cached, fetch, keep, keep_pins, tree_sha256, wanted


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A source distribution with two files of the package that matter, one that pins are read from, and two that do not matter."""
    path = tmp_path / "vllm-9.0.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in (
            "vllm/envs.py",
            "vllm/models/deepseek_v4/amd/model.py",
            "vllm/models/deepseek_v4/amd/mono/x.py",
            "setup.py",
            "docker/Dockerfile.rocm_base",
        ):
            member = tarfile.TarInfo(f"vllm-9.0/{name}")
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    return path


@pytest.fixture
def offered(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Release:
    """That archive as an index offers it, with a cache of the test's own."""
    data = archive.read_bytes()
    sha256 = sources._sha256(data)
    answer = SourceDistribution(archive.name, f"somewhere/{archive.name}", sha256, len(data), "")

    def download(_offered: SourceDistribution, target: Path) -> None:
        target.write_bytes(archive.read_bytes())

    monkeypatch.setattr(sources, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(sources, "_offered", lambda _version: answer)
    monkeypatch.setattr(sources, "_download", download)
    return Release("9.0", archive.name, sha256, len(data))


def test_only_the_files_that_matter_are_kept(archive: Path, tmp_path: Path) -> None:
    keep(archive, tmp_path / "kept")
    assert sorted(path.relative_to(tmp_path / "kept").as_posix() for path in (tmp_path / "kept").rglob("*.py")) == [
        "envs.py",
        "models/deepseek_v4/amd/model.py",
    ]
    keep_pins(archive, tmp_path / "pins")
    assert [path.name for path in (tmp_path / "pins").rglob("*") if path.is_file()] == ["Dockerfile.rocm_base"]
    assert wanted("models/deepseek_v4/amd/dspark.py")
    assert not wanted("models/deepseek_v4/amd/mono/x.py")


def test_a_release_is_fetched_once_and_known_by_its_bytes(offered: Release) -> None:
    assert not cached(offered)
    fetch(offered)
    assert cached(offered)
    known = replace(offered, kept=tree_sha256(offered.folder), pins=tree_sha256(offered.pins_folder))
    assert cached(known)
    assert not (offered.pins_folder / "envs.py").exists()
    (offered.folder / "envs.py").write_text("changed", encoding="utf-8")
    with pytest.raises(ContractError, match="has other bytes than were fetched"):
        cached(known)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"sha256": "0" * 64}, "offers vllm-9.0.tar.gz with another sha256"),
        ({"size": 1}, "is not the file that releases.toml names"),
        ({"kept": "0" * 64}, "other files were kept"),
        ({"pins": "0" * 64}, "other files were kept"),
    ],
)
def test_what_is_not_the_tables_is_not_kept(offered: Release, changed: dict[str, Any], words: str) -> None:
    wrong = replace(offered, **changed)
    with pytest.raises(ContractError, match=words):
        fetch(wrong)
    assert not wrong.folder.exists()


def test_a_truncated_download_is_not_kept(offered: Release, archive: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-1])
    with pytest.raises(ContractError, match=r"is not the file that releases\.toml names: try again"):
        fetch(offered)
    assert not cached(offered)


MODULE = """
from other import FLAG, more

VALUE: int = 1

def alone():
    return VALUE

class One:
    def __init__(self):
        self.own = FLAG

    def method(self):
        return self.own
"""


@pytest.mark.parametrize("symbol", ["FLAG", "VALUE", "alone", "One", "One.method", "One.own"])
def test_a_symbol_goes_or_changes_its_name_and_nothing_else_does(symbol: str) -> None:
    name = symbol.rpartition(".")[2]
    texts = dict(mutations(MODULE, symbol))
    assert len(texts) == 3
    assert f"{name}_renamed" not in texts["removed"]
    assert texts["renamed where it is defined"].count(f"{name}_renamed") == 1
    assert texts["renamed everywhere in the module"].count(f"{name}_renamed") >= 1
    for other in {"more", "VALUE", "alone", "method", "own"} - {name, "method" if symbol == "One" else ""}:
        assert other in texts["renamed everywhere in the module"]


def test_a_symbol_that_is_not_there_cannot_be_taken_out() -> None:
    with pytest.raises(AssertionError, match=r"One\.other is defined 0 times"):
        list(mutations(MODULE, "One.other"))
