"""Hooks that wait for a module's import."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path

import pytest

from .standin import PACKAGES, PLUGINS, Tree

MODULE = "vllm.models.deepseek_v4.cpu.cpu_mla"


def test_both_packages_carry_the_same_file() -> None:
    files = [*PLUGINS.glob("*/*/post_import.py")]
    assert sorted(f.parent.name for f in files) == sorted(PACKAGES)
    assert len({f.read_bytes() for f in files}) == 1


@pytest.mark.parametrize("package", PACKAGES)
def test_hook_runs_at_import_and_not_before(tree: Tree, package: str) -> None:
    when_imported = importlib.import_module(f"{package}.post_import").when_imported
    seen: list[str] = []
    when_imported(MODULE, lambda module: seen.append(module.__name__))
    assert seen == []
    assert MODULE not in sys.modules
    module = importlib.import_module(MODULE)
    assert seen == [MODULE]
    # Whoever reads the module's source afterwards must not meet the hook's loader.
    assert "build_tile_scheduler" in inspect.getsource(module)
    assert type(module.__loader__).__module__ == "_frozen_importlib_external"
    assert Path(str(module.__file__)).is_relative_to(tree.root)


def test_hook_runs_at_once_on_an_imported_module(tree: Tree) -> None:
    when_imported = importlib.import_module("kiln_vllm_mhc_switch.post_import").when_imported
    importlib.import_module(MODULE)
    seen: list[str] = []
    when_imported(MODULE, lambda module: seen.append(module.__name__))
    assert seen == [MODULE]


def test_two_hooks_on_one_module_both_run(tree: Tree) -> None:
    when_imported = importlib.import_module("kiln_vllm_mhc_switch.post_import").when_imported
    seen: list[int] = []
    for number in (1, 2):
        when_imported(MODULE, lambda _, number=number: seen.append(number))
    importlib.import_module(MODULE)
    assert sorted(seen) == [1, 2]


def test_what_a_hook_raises_comes_out_of_the_import(tree: Tree) -> None:
    when_imported = importlib.import_module("kiln_vllm_mhc_switch.post_import").when_imported

    def hook(module: object) -> None:
        raise RuntimeError("no")

    when_imported(MODULE, hook)
    with pytest.raises(RuntimeError, match="no"):
        importlib.import_module(MODULE)
    assert MODULE not in sys.modules


def test_a_module_that_does_not_exist_still_does_not(tree: Tree) -> None:
    when_imported = importlib.import_module("kiln_vllm_mhc_switch.post_import").when_imported
    when_imported("vllm.nowhere", lambda _: None)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("vllm.nowhere")
