"""Unit tests of the vLLM plugins; offline, without vLLM, torch or Triton."""
