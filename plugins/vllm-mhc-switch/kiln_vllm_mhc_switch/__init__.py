"""The switch ``VLLM_ROCM_USE_TILELANG_MHC`` for vLLM releases that do not have it.

Nothing runs on import: vLLM finds :func:`kiln_vllm_mhc_switch.plugin.register` through its
entry point.
"""

__version__ = "0.1.0"
