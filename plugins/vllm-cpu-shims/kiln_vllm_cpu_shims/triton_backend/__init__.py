"""A Triton backend named ``cpu`` that offers Triton's interpreter and nothing else.

Triton's wheels carry no CPU backend, and vLLM on a CPU switches Triton off where no backend has
that name (``vllm/triton_utils/importing.py``), after which DeepSeek V4's metadata kernels are
missing. Triton's own interpreter can run them, so all that lacks is the name. Triton imports
``compiler`` and ``driver`` from the entry point's package and takes the one concrete class of
each.
"""
