"""Shims that let vLLM serve DeepSeek V4 on a CPU with the stock Triton and vLLM wheels.

Nothing here runs on import: Triton finds :mod:`kiln_vllm_cpu_shims.triton_backend` and vLLM
finds :func:`kiln_vllm_cpu_shims.plugin.register` through their entry points.
"""

__version__ = "0.1.0"
