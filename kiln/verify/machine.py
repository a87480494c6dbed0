"""What this machine can do for a check: its GPU, its processor. Apart from the checks, so that asking costs nothing."""

from __future__ import annotations

from pathlib import Path

from kiln.gpu import gpus, unfit


def lacking_here(needs: str, archs: tuple[str, ...] = ()) -> str:
    """What serving with an image (with GPU code for ``archs``) needs and this machine has not, in a sentence; nothing where it has it."""
    if needs == "gpu":
        return unfit(gpus(), archs)
    if needs == "avx512_bf16" and needs not in processor_flags():
        return (
            "serving with this image needs a processor with AVX-512 BF16 (Intel Sapphire Rapids, AMD Zen 4, or newer): "
            "the operators of DeepSeek V4 in vLLM's CPU build are compiled for nothing less, and this machine's has it not"
        )
    return ""


def processor_flags() -> set[str]:
    """The instruction sets of this machine's first processor, as Linux names them."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return set(next((line.partition(":")[2] for line in text.splitlines() if line.startswith("flags")), "").split())
