"""Put the stand-ins where vLLM looks for the kernels, where the kernels are those known here.

Known is a kernel whose syntax tree, and that of the functions it calls, is vLLM 0.32.0's. Any
other goes on being interpreted: slower, and right.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import inspect
import logging
import textwrap
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any, Final

from kiln_vllm_cpu_shims.kernels.standin import StandIn
from kiln_vllm_cpu_shims.post_import import when_imported

INTERPRETER: Final = "triton.runtime.interpreter"
OVERFLOW_CHECKS: Final = "sanitize_overflow"

logger = logging.getLogger("vllm.kiln.cpu_shims")


@dataclasses.dataclass(frozen=True)
class Known:
    """A kernel of vLLM 0.32.0 and what stands in for it."""

    places: tuple[str, ...]
    """Where its module has it; the first names it."""
    digest: str
    """:func:`digest` of it and its callees, with CPython 3.11's ``ast``."""
    standin: str
    """The function beside this module: its module and name."""
    callees: tuple[str, ...] = ()


KERNELS: Final = {
    "vllm.v1.attention.backends.mla.sparse_swa": (
        Known(
            ("_compute_swa_indices_and_lens_kernel", "ComputeSWAIndicesAndLensKernel.kernel"),
            "8fe1a44bd63fc810347eacf3351a1a2c89ea668cffc896b2e8aaac68590fb9e0",
            "sparse_attention.compute_swa_indices_and_lens",
        ),
    ),
    "vllm.v1.attention.backends.mla.compressor_utils": (
        Known(
            ("CompressedSlotMappingKernel.kernel",),
            "4b3b8b155081f419851a35d230c4a34b9e45719be89859ae6f46da3f371a4d8d",
            "sparse_attention.compressed_slot_mapping",
        ),
    ),
    "vllm.v1.worker.gpu.block_table": (
        Known(
            ("_gather_block_tables_kernel",),
            "5c017027d0f6d927c2b8d8031a7675d25d36453ad645e70870c6f4f420dbdff5",
            "block_tables.gather_block_tables",
            callees=("_load_ptr",),
        ),
        Known(
            ("_compute_slot_mappings_kernel",),
            "3ef099016bb43815f84606f7e2e872215d323330195ec72f411f900be73120f7",
            "block_tables.compute_slot_mappings",
            callees=("_load_ptr",),
        ),
    ),
    "vllm.v1.worker.utils": (
        Known(
            ("_zero_kv_blocks_kernel",),
            "5af731a8a0b5c8ec5ed46565f1f6242830f9f90155702f336580dabc2a8f5a0e",
            "cache.zero_kv_blocks",
        ),
    ),
}


def digest(*functions: Callable[..., Any]) -> str:
    """SHA-256 over the syntax trees of the functions: parameters and body, without docstrings.

    Raises ``OSError`` where there is no source, ``SyntaxError`` where it is not one function.
    """
    hashed = hashlib.sha256()
    for function in functions:
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
        if not isinstance(node, ast.FunctionDef):
            raise SyntaxError("not a function")
        body = node.body[1:] if ast.get_docstring(node) is not None else node.body
        for part in (node.args, *body):
            hashed.update(ast.dump(part).encode() + b"\n")
    return hashed.hexdigest()


def _get(module: ModuleType, place: str) -> Any:
    return functools.reduce(getattr, place.split("."), module)


def why_unknown(module: ModuleType, known: Known) -> str | None:
    """Why the module's kernel is not the known one; ``None`` if it is."""
    interpreted = import_module(INTERPRETER).InterpretedFunction
    try:
        kernel, *others = (_get(module, place) for place in known.places)
        if type(kernel) is not interpreted:
            return f"it is a {type(kernel).__name__}"
        if any(other is not kernel for other in others):
            return f"{' and '.join(known.places)} are not one"
        callees = [kernel.fn.__globals__[name].fn for name in known.callees]
        found = digest(kernel.fn, *callees)
    except (AttributeError, KeyError) as gone:
        return f"there is none: {gone}"
    except (OSError, SyntaxError, ValueError) as unread:
        return f"its source cannot be read: {unread}"
    return None if found == known.digest else f"its source is another ({found[:12]})"


def provide(module: ModuleType) -> None:
    """Replace the module's known kernels, and log which. Does nothing the second time."""
    replaced = []
    for known in KERNELS[module.__name__]:
        name = known.places[0]
        try:
            if isinstance(_get(module, name), StandIn):
                continue
        except AttributeError:
            pass  # why_unknown says it
        why = why_unknown(module, known)
        if why is not None:
            logger.warning("kiln-cpu-shims: kernels=interpreted names=%s reason=%s", name, why)
            continue
        where, _, function = known.standin.partition(".")
        launch = getattr(import_module(f"{__package__}.{where}"), function)
        standin = StandIn(_get(module, name), launch)
        for place in known.places:
            owner, _, attribute = place.rpartition(".")
            setattr(_get(module, owner) if owner else module, attribute, standin)
        replaced.append(name)
    if replaced:
        logger.info("kiln-cpu-shims: kernels=numpy names=%s", ",".join(replaced))


def skip_overflow_checks() -> None:
    """Let the interpreter do without the checks that a compiled kernel has in debug mode alone."""
    from triton import knobs

    if getattr(knobs.runtime, "debug", False):
        return
    try:
        builder = import_module(INTERPRETER).interpreter_builder
        builder.options = dataclasses.replace(builder.options, **{OVERFLOW_CHECKS: False})
    except (AttributeError, TypeError) as unknown:
        logger.warning("kiln-cpu-shims: Triton's overflow checks stay on: %s", unknown)


def register() -> None:
    """Speed Triton's interpreter up, if it is on. May be called any number of times."""
    from triton import knobs

    if not knobs.runtime.interpret:
        return
    skip_overflow_checks()
    for name in KERNELS:
        when_imported(name, provide)
