"""Writes /app of an image: versions.txt and provenance.json, what the lock says with the wheels that were really built beside it, and the SBOM.

Runs in a build step, on the image's own Python, with the standard library alone. versions.txt has the keys that vLLM's own images have
(``AITER_BRANCH: v0.1.14``), which people grep, and for each also the commit; what is a wheel from an index has its version alone
(``PYTORCH_VERSION: 2.13.0+cpu``). provenance.json has everything. The SBOM is laid down as it was rendered.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

# The keys of docker/Dockerfile.rocm_base in vLLM v0.23.0, one for vLLM itself, and one for what else people ask of the CPU image.
KEYS = {
    "triton": "TRITON",
    "torch": "PYTORCH",
    "torchvision": "PYTORCH_VISION",
    "torchaudio": "PYTORCH_AUDIO",
    "flash-attention": "FA",
    "aiter": "AITER",
    "mori": "MORI",
    "transformers": "TRANSFORMERS",
    "vllm": "VLLM",
}


def main() -> None:
    """Read what the lock says and what was built, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--said", type=Path, required=True, help="the folder of provenance.json and sbom.cdx.json: what the lock says of this image")
    parser.add_argument(
        "--wheels", type=Path, required=True, help="a folder a component, with the wheels that were built"
    )
    parser.add_argument("--parent", type=Path, help="/app of the image that this one stands on")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    provenance = json.loads((arguments.said / "provenance.json").read_text(encoding="utf-8"))
    for name, component in provenance["components"].items():
        if built := built_wheels(arguments.wheels / name):
            component["wheels"] = built
    if arguments.parent:
        parent = json.loads((arguments.parent / "provenance.json").read_text(encoding="utf-8"))
        provenance["components"] = {**parent["components"], **provenance["components"]}
    lines = versions(provenance)
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(provenance, indent=2, sort_keys=True) + "\n"
    (arguments.out / "provenance.json").write_text(text, encoding="utf-8")
    (arguments.out / "versions.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (arguments.out / "sbom.cdx.json").write_bytes((arguments.said / "sbom.cdx.json").read_bytes())


def built_wheels(folder: Path) -> list[dict[str, Any]]:
    """File name, sha256 and size in bytes of every wheel in ``folder``; nothing where there is no such folder."""
    return [
        {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size": path.stat().st_size}
        for path in sorted(folder.glob("*.whl"))
    ]


def versions(provenance: dict[str, Any]) -> list[str]:
    """The lines of versions.txt, the base image first, then the components in the order of ``KEYS``."""
    lines = [f"BASE_IMAGE: {provenance['base']['reference']}"] if "base" in provenance else []
    for name, key in KEYS.items():
        component = provenance["components"].get(name)
        if component and "commit" not in component:
            lines.append(f"{key}_VERSION: {component['version']}")
        elif component:
            lines += [
                f"{key}_BRANCH: {component['ref']}",
                f"{key}_REPO: {component['url']}",
                f"{key}_COMMIT: {component['commit']}",
            ]
    return lines


if __name__ == "__main__":
    main()
