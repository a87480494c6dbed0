"""The AMD GPUs of this machine, and what a container needs of it to use them: device files and groups, and no privilege beside them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

KFD = "/dev/kfd"
NODES = "sys/class/kfd/kfd/topology/nodes"
# RCCL exchanges data between the workers of one container through shared memory; Docker's own 64 MiB end a server with several GPUs.
SHARED_MEMORY = "16g"


@dataclass(frozen=True)
class Gpu:
    """One GPU: its architecture as compilers name it (``gfx942``) and its device file."""

    arch: str
    render: str


@dataclass(frozen=True)
class Devices:
    """What a container is given to use GPUs: device files, and the groups that may open them, by number (their names differ between systems)."""

    files: tuple[str, ...]
    groups: tuple[int, ...]


def arch_name(version: int) -> str:
    """The name of ``gfx_target_version``: decimal major * 10000 + minor * 100 + stepping, of which the last two become hexadecimal digits.

    90402 is gfx942, 90010 gfx90a, 120001 gfx1201 (Linux: drivers/gpu/drm/amd/amdkfd, kfd_topology.c; LLVM: AMDGPU processors).
    """
    return f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"


def gpus(root: Path = Path("/")) -> tuple[Gpu, ...]:
    """The GPUs that ROCm's kernel driver shows, in its order; none where there is no driver. Raises nothing: a node that cannot be read is no GPU."""
    found = []
    nodes = [path for path in (root / NODES).glob("*") if path.name.isdigit()]
    for node in sorted(nodes, key=lambda path: int(path.name)):
        try:
            text = (node / "properties").read_text(encoding="utf-8")
        except OSError:
            # A node of another container's: the kernel lists it and lets nobody read it.
            continue
        has = {name: int(value) for name, value in re.findall(r"^(\w+) (\d+)$", text, re.MULTILINE)}
        # A processor is a node too, with no SIMD units.
        if has.get("simd_count") and has.get("gfx_target_version"):
            found.append(Gpu(arch_name(has["gfx_target_version"]), f"/dev/dri/renderD{has.get('drm_render_minor', 0)}"))
    return tuple(found)


def devices(found: tuple[Gpu, ...], root: Path = Path("/")) -> Devices | None:
    """What a container needs to use these GPUs, or None where there is none to use. Raises OSError where a device file is gone."""
    if not found:
        return None
    files = (KFD, *sorted({gpu.render for gpu in found}))
    groups = {(root / file.lstrip("/")).stat().st_gid for file in files}
    return Devices(files, tuple(sorted(groups - {0})))


def unfit(found: tuple[Gpu, ...], archs: tuple[str, ...], root: Path = Path("/")) -> str:
    """Why GPU checks cannot be made here for an image with code for ``archs``, in a sentence; nothing where they can."""
    if not (root / KFD.lstrip("/")).exists():
        return f"serving with this image needs an AMD GPU ({KFD}), and this machine has none"
    if not found:
        return f"there is {KFD}, but ROCm's kernel driver shows no GPU in /{NODES}"
    other = sorted({gpu.arch for gpu in found} - set(archs))
    if other:
        return f"this machine's GPU is {', '.join(other)}, and the image has code for {', '.join(archs)}"
    lost = sorted({gpu.render for gpu in found if not (root / gpu.render.lstrip("/")).exists()})
    if lost:
        return f"the driver shows a GPU at {', '.join(lost)}, and that device file is not there"
    return ""
