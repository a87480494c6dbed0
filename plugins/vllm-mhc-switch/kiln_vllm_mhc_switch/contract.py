"""The static question whether this package knows a vLLM, for whoever looks at files and runs nothing.

``python -m kiln_vllm_mhc_switch.contract PLATFORM FOLDER [VERSION]``, with the folder of the package
``vllm``, ends with 0 where it does, and else with 1 and the reason as the last line of stderr.
"""

from __future__ import annotations

import sys
from pathlib import Path

from kiln_vllm_mhc_switch.errors import UnknownVllmCodeError


def check(platform: str, folder: Path, version: str) -> None:
    """Raise ``UnknownVllmCodeError`` unless the vLLM in ``folder`` is known on ``cpu`` or ``rocm``.

    The parts for one platform are imported for that one alone. Raises ValueError for another.
    """
    if platform == "cpu":
        from kiln_vllm_mhc_switch.platforms import cpu_source

        path = folder.joinpath(*cpu_source.MODULE.split(".")[1:]).with_suffix(".py")
        if not path.is_file():
            raise UnknownVllmCodeError(cpu_source.MODULE, version, "the module is not there")
        cpu_source.check_source(path.read_text(encoding="utf-8"), version)
    elif platform == "rocm":
        from kiln_vllm_mhc_switch.platforms import rocm_source
        from kiln_vllm_mhc_switch.platforms.sources import Sources

        rocm_source.check(Sources((folder,), version))
    else:
        raise ValueError(f"no such platform: {platform}")


if __name__ == "__main__":
    try:
        check(sys.argv[1], Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "in the image")
    except UnknownVllmCodeError as error:
        sys.exit(f"UnknownVllmCodeError: {error}")
