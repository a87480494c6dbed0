"""vLLM's way in: the entry point ``kiln_cpu_shims`` of group ``vllm.general_plugins``.

vLLM calls :func:`register` in every process (server, engine, workers, model inspection), before
any model is built, and lets what it raises end the process. What a plugin's *import* raises vLLM
only logs; so this module imports nothing of vLLM's at its top.
"""

from __future__ import annotations

import logging

from kiln_vllm_cpu_shims import tile_scheduler
from kiln_vllm_cpu_shims.kernels import registration as kernels
from kiln_vllm_cpu_shims.operators import registration
from kiln_vllm_cpu_shims.post_import import when_imported

# vLLM's log handler takes records of loggers below "vllm".
logger = logging.getLogger("vllm.kiln.cpu_shims")


def require_interpreter() -> None:
    """Raise ``RuntimeError`` where Triton has this package's backend but its interpreter is off.

    vLLM would find the backend, keep Triton on, and die in the first kernel.
    """
    from triton import knobs
    from triton.backends import backends

    backend = backends.get("cpu")
    if backend is None or not backend.compiler.__module__.startswith(f"{__package__}."):
        return
    if not knobs.runtime.interpret:
        raise RuntimeError(
            "kiln-vllm-cpu-shims gives vLLM Triton's interpreter on a CPU, but the interpreter is "
            "off: set TRITON_INTERPRET=1 in the environment of the server"
        )


def register() -> None:
    """Apply the shims on vLLM's CPU platform; do nothing on any other.

    Idempotent. Raises ``RuntimeError`` (or :class:`tile_scheduler.UnknownVllmCodeError`, which is
    one) where a shim cannot work.
    """
    import vllm
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    require_interpreter()
    when_imported(registration.MODULE, registration.provide)
    kernels.register()
    version = str(vllm.__version__)
    source = tile_scheduler.read_source(vllm, version)
    if not tile_scheduler.needs_mending(source, version):
        logger.info(
            "kiln-cpu-shims: %s of vLLM %s needs no mending", tile_scheduler.SYMBOL, version
        )
        return
    when_imported(tile_scheduler.MODULE, tile_scheduler.mend)
