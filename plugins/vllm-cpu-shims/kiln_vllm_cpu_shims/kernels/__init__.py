"""Five of vLLM's bookkeeping kernels in numpy, in the place of Triton's interpretation of them.

Triton's interpreter runs a kernel's Python once per program with an object per value: a
millisecond for what is a few additions. While tokens are decoded these five were 78 % of a
worker's time. Each stand-in does in a few array operations what all programs of one launch do,
with the same types and so the same wrapping, and touches the same memory.

:mod:`.registration` puts them in place, and only where vLLM has the code that they were written
after; nothing else here is imported before one is.
"""
