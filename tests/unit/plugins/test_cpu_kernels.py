"""Which of vLLM's kernels are replaced, and how a stand-in is launched; what each does to memory is tests/integration/test_cpu_kernels.py's."""

from __future__ import annotations

import ast
import importlib
import logging
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from .standin import PLUGINS, Tree

MODULE = "vllm.kernels"
FILE = "vllm/kernels.py"
SOURCE = '''
from triton.runtime.interpreter import InterpretedFunction as jit


@jit
def _help(a):
    return a + 1


@jit
def _first_kernel(
    a_ptr,  # one
    b,
):
    """Says what it does."""
    a_ptr.append(("upstream", _help.fn(b)))


class Owner:
    kernel = staticmethod(_first_kernel)

    @staticmethod
    @jit
    def second(a_ptr, SIZE):
        a_ptr.append(("upstream", SIZE))
'''
FIRST, SECOND = "_first_kernel", "Owner.second"


@pytest.fixture
def registration(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The registration, knowing two kernels of a module that is not imported yet, and their stand-ins."""
    tree.write(FILE, SOURCE)
    module = importlib.import_module("kiln_vllm_cpu_shims.kernels.registration")
    tree.write("known_kernels.py", SOURCE)
    known = importlib.import_module("known_kernels")
    monkeypatch.delitem(sys.modules, "known_kernels")
    kernels = (
        module.Known(
            (FIRST, "Owner.kernel"),
            module.digest(known._first_kernel.fn, known._help.fn),
            "mine.first",
            callees=("_help",),
        ),
        module.Known((SECOND,), module.digest(known.Owner.second.fn), "mine.second"),
    )
    monkeypatch.setattr(module, "KERNELS", {MODULE: kernels})
    mine = ModuleType("kiln_vllm_cpu_shims.kernels.mine")
    mine.first = lambda grid, a: a.a_ptr.append(("ours", grid, a.b))  # type: ignore[attr-defined]
    mine.second = lambda grid, a: a.a_ptr.append(("ours", grid, a.SIZE))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, mine.__name__, mine)
    return module


def register() -> None:
    """What vLLM does with the entry point."""
    importlib.import_module("kiln_vllm_cpu_shims.plugin").register()


def who(kernel: Any, **arguments: Any) -> str:
    written: list[tuple[str, ...]] = []
    kernel[(3,)](written, **arguments)
    return written[0][0]


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message for message in caplog.messages if "kernels=" in message]


def test_known_kernels_are_replaced_wherever_they_are(
    tree: Tree, registration: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "vllm.kiln"):
        register()
        assert MODULE not in sys.modules
        module = importlib.import_module(MODULE)
    assert lines(caplog) == ["kiln-cpu-shims: kernels=numpy names=_first_kernel,Owner.second"]
    assert module.Owner.kernel is module._first_kernel
    assert module.Owner().kernel is module._first_kernel
    assert who(module._first_kernel, b=1) == "ours"
    assert who(module.Owner().second, SIZE=1) == "ours"


@pytest.mark.parametrize(
    ("old", "new", "name", "reason"),
    [
        ("SIZE))", "SIZE + 1))", SECOND, "its source is another"),
        ("def second(a_ptr, SIZE)", "def second(a_ptr, SIZE, other=None)", SECOND, "its source is another"),
        ("return a + 1", "return a + 2", FIRST, "its source is another"),
        ("_help", "_assist", FIRST, "there is none: '_help'"),
        ("def second(", "def third(", SECOND, "there is none: type object 'Owner' has no attribute 'second'"),
        ("    @jit\n", "", SECOND, "it is a function"),
        ("staticmethod(_first_kernel)", "jit(_first_kernel.fn)", FIRST, "are not one"),
    ],
    ids=["body", "parameters", "callee", "no callee", "absent", "not interpreted", "another in the class"],
)
def test_another_kernel_is_left_and_said_and_the_other_replaced(
    tree: Tree,
    registration: ModuleType,
    caplog: pytest.LogCaptureFixture,
    old: str,
    new: str,
    name: str,
    reason: str,
) -> None:
    tree.replace(FILE, old, new)
    register()
    with caplog.at_level(logging.INFO, "vllm.kiln"):
        module = importlib.import_module(MODULE)
    left, replaced = lines(caplog)
    other = SECOND if name == FIRST else FIRST
    assert left.startswith(f"kiln-cpu-shims: kernels=interpreted names={name} reason=")
    assert reason in left
    assert replaced == f"kiln-cpu-shims: kernels=numpy names={other}"
    if name == FIRST:
        assert who(module._first_kernel, b=1) == who(module.Owner.kernel, b=1) == "upstream"
    else:
        assert who(module._first_kernel, b=1) == "ours"


def test_words_about_a_kernel_do_not_make_it_another(tree: Tree, registration: ModuleType) -> None:
    tree.replace(FILE, '    """Says what it does."""\n', "    # a comment\n")
    tree.replace(FILE, "    a_ptr,  # one\n    b,\n", "a_ptr, b")
    register()
    assert who(importlib.import_module(MODULE)._first_kernel, b=1) == "ours"


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("vllm/platforms.py", "device_type = 'cpu'", "device_type = 'cuda'"),
        ("triton/knobs.py", "interpret=True", "interpret=False"),
    ],
    ids=["another platform", "no interpreter"],
)
def test_nothing_happens_elsewhere(
    tree: Tree, registration: ModuleType, caplog: pytest.LogCaptureFixture, path: str, old: str, new: str
) -> None:
    tree.replace(path, old, new)
    with caplog.at_level(logging.INFO, "vllm.kiln"):
        register()
        module = importlib.import_module(MODULE)
    assert who(module._first_kernel, b=1) == who(module.Owner.second, SIZE=1) == "upstream"
    assert lines(caplog) == []
    assert importlib.import_module("triton.runtime.interpreter").interpreter_builder.options.sanitize_overflow


def test_loading_twice_or_after_the_import_is_the_same(
    tree: Tree, registration: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    module = importlib.import_module(MODULE)
    upstream = module._first_kernel
    with caplog.at_level(logging.INFO, "vllm.kiln"):
        register()
        register()
    assert module._first_kernel.kernel is upstream
    assert len(lines(caplog)) == 1


def test_overflow_checks_go_off_and_nothing_else(tree: Tree) -> None:
    register()
    options = importlib.import_module("triton.runtime.interpreter").interpreter_builder.options
    assert (options.arch, options.sanitize_overflow) == ("interpreted", False)


def test_overflow_checks_stay_in_tritons_debug_mode(tree: Tree) -> None:
    tree.replace("triton/knobs.py", "interpret=True", "interpret=True, debug=True")
    register()
    assert importlib.import_module("triton.runtime.interpreter").interpreter_builder.options.sanitize_overflow


def test_an_interpreter_without_that_option_is_said_and_left(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    tree.replace("triton/runtime/interpreter.py", "    sanitize_overflow: bool = True\n", "")
    register()
    assert [m for m in caplog.messages if "Triton's overflow checks stay on" in m]


def test_every_stand_in_is_a_function_of_the_package() -> None:
    package = PLUGINS / "vllm-cpu-shims/kiln_vllm_cpu_shims/kernels"
    source = (package / "registration.py").read_text(encoding="utf-8")
    named = [
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.partition(".")[0] in {"cache", "block_tables", "sparse_attention"}
    ]
    assert len(named) == 5
    for name in named:
        module, _, function = name.partition(".")
        assert f"def {function}(grid: Grid, a: SimpleNamespace) -> None:" in (package / f"{module}.py").read_text()


@pytest.fixture
def launched(tree: Tree) -> tuple[Any, list[tuple[Any, SimpleNamespace]], list[Any]]:
    """A stand-in, its launches, and upstream's."""
    module = importlib.import_module("kiln_vllm_cpu_shims.kernels.standin")
    interpreter = importlib.import_module("triton.runtime.interpreter")
    ours: list[tuple[Any, SimpleNamespace]] = []
    theirs: list[Any] = []

    def kernel(a_ptr, b):
        theirs.append((a_ptr, b))

    def launch(grid: Any, arguments: SimpleNamespace) -> None:
        if arguments.b == "uncovered":
            raise module.NotCoveredError
        ours.append((grid, arguments))

    return module.StandIn(interpreter.InterpretedFunction(kernel), launch), ours, theirs


def test_a_launch_binds_as_tritons_does(launched: Any) -> None:
    standin, ours, theirs = launched
    for grid in ((2, 3), [2, 3], lambda arguments: (arguments["b"], 3)):
        standin[grid](1, b=2, num_warps=4)
    assert ours == [((2, 3), SimpleNamespace(a_ptr=1, b=2))] * 3
    assert (standin.arg_names, standin.__name__, theirs) == (("a_ptr", "b"), "kernel", [])


def test_warming_up_launches_nothing(launched: Any) -> None:
    standin, ours, theirs = launched
    standin.warmup(1, b=2, grid=(1,))
    standin.run(1, b=2, grid=(1,), warmup=True)
    assert (ours, theirs) == ([], [])


def test_what_is_not_covered_goes_to_the_kernel(launched: Any) -> None:
    standin, ours, theirs = launched
    standin[(1,)](1, b="uncovered", num_warps=4)
    assert (ours, theirs) == ([], [(1, "uncovered")])


@pytest.mark.parametrize(("args", "kwargs"), [((1,), {}), ((1, 2), {"b": 2}), ((1, 2, 3), {})])
def test_wrong_arguments_are_refused(launched: Any, args: tuple[int, ...], kwargs: dict[str, int]) -> None:
    with pytest.raises(TypeError, match="kernel: too many, twice or not given"):
        launched[0][(1,)](*args, **kwargs)
