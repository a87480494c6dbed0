"""The ``tree`` fixture: the stand-in for vLLM, torch and Triton, made importable."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .standin import FAKED, FILES, PLUGINS, Tree


def _forget() -> None:
    for name in list(sys.modules):
        if name.split(".")[0] in FAKED:
            del sys.modules[name]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tree]:
    """The stand-in on ``sys.path``, beside the two plugin packages; nothing imported yet."""
    made = Tree(tmp_path / "site")
    for path, text in FILES.items():
        made.write(path, text)
    for project in ("vllm-cpu-shims", "vllm-mhc-switch"):
        monkeypatch.syspath_prepend(PLUGINS / project)
    monkeypatch.syspath_prepend(made.root)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delenv("VLLM_ROCM_USE_TILELANG_MHC", raising=False)
    _forget()
    yield made
    _forget()
