"""DeepSeek V4's operators in PyTorch, for processors that vLLM's compiled ones do not run on.

vLLM 0.32.0 compiles them into ``vllm/_C.abi3.so`` alone, which it loads where the processor has
AVX-512 BF16; the libraries for other processors (``_C_AVX2``, ``_C_AVX512``) lack them, so the
server dies while it loads the weights. :mod:`.registration` puts these in their place.

The operators compute in float32 and round where the compiled ones round what they return or store.
They need no instruction set, and they are made for small models: plain tensor code, a float32 copy
of a packed weight, nothing fused.

Nothing here but :mod:`.registration` is imported where the compiled operators are there.
"""
