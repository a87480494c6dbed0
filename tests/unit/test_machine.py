"""What a machine can do for a check, and what becomes of the checks that it cannot do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import kiln.verify.machine
from kiln.console import Console
from kiln.image import read_images
from kiln.pins import read_pins
from kiln.verify.checks import run_checks
from kiln.verify.generate import unserved_checks
from kiln.verify.machine import lacking_here
from kiln.workspace import Workspace

CPUINFO = "processor\t: 0\nmodel name\t: a processor\nflags\t\t: fpu avx2 avx512f {more}\n\nprocessor\t: 1\nflags\t\t: avx512_bf16\n"


def with_files(monkeypatch: pytest.MonkeyPatch, folder: Path, more: str = "", *, gpu: bool = False) -> None:
    """A machine with this processor, and with a GPU or without."""
    (folder / "proc").mkdir()
    (folder / "dev").mkdir()
    (folder / "proc" / "cpuinfo").write_text(CPUINFO.format(more=more))
    if gpu:
        (folder / "dev" / "kfd").touch()
    monkeypatch.setattr(kiln.verify.machine, "Path", lambda path: folder / str(path).lstrip("/"))


@pytest.mark.parametrize(
    ("needs", "more", "gpu", "word"),
    [
        ("", "", False, ""),
        ("gpu", "", False, "/dev/kfd"),
        ("avx512_bf16", "avx512_bf16", False, ""),
        ("avx512_bf16", "avx512_bf160", False, "AVX-512 BF16"),
        ("avx512_bf16", "", True, "AVX-512 BF16"),
    ],
)
def test_what_is_lacking_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, needs: str, more: str, gpu: bool, word: str
) -> None:
    with_files(monkeypatch, tmp_path, more, gpu=gpu)
    assert word in lacking_here(needs)
    assert bool(lacking_here(needs)) == bool(word)


@pytest.mark.parametrize(("needs", "status"), [("gpu", "skip"), ("avx512_bf16", "error")])
def test_a_check_that_could_not_be_done_is_not_passed(real: Workspace, needs: str, status: str) -> None:
    (image,) = read_images(real, read_pins(real, "cpu"))
    results = run_checks(unserved_checks(replace(image, needs=needs), "it lacks something"), Console(quiet=True))
    assert [result.id for result in results] == [
        "serve.default.answers",
        "serve.default.path",
        "serve.tilelang.answers",
        "serve.tilelang.path",
    ]
    assert {(result.outcome.status, result.outcome.summary) for result in results} == {(status, "it lacks something")}
