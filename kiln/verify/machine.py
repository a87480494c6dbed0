"""What this machine can do for a check: whether it has the GPUs. Apart from the checks, so that asking costs nothing."""

from __future__ import annotations

from kiln.gpu import gpus, unfit


def lacking_here(needs: str, archs: tuple[str, ...] = ()) -> str:
    """What serving with an image (with GPU code for ``archs``) needs and this machine has not, in a sentence; nothing where it has it."""
    return unfit(gpus(), archs) if needs == "gpu" else ""
