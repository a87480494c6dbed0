"""Writes /app/versions.txt and /app/provenance.json of an image: what the lock says, with the wheels that were really built beside it.

Runs in a build step, on the image's own Python, with the standard library alone. versions.txt has the keys that vLLM's own images have
(``AITER_BRANCH: v0.1.14``), which people grep, and for each also the commit; provenance.json has everything.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

# The keys of docker/Dockerfile.rocm_base in vLLM v0.23.0, and one for vLLM itself.
KEYS = {
    "triton": "TRITON",
    "torch": "PYTORCH",
    "torchvision": "PYTORCH_VISION",
    "torchaudio": "PYTORCH_AUDIO",
    "flash-attention": "FA",
    "aiter": "AITER",
    "mori": "MORI",
    "vllm": "VLLM",
}


def main() -> None:
    """Read what the lock says and what was built, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--provenance", type=Path, required=True, help="what the lock says of this image")
    parser.add_argument(
        "--wheels", type=Path, required=True, help="a folder a component, with the wheels that were built"
    )
    parser.add_argument("--parent", type=Path, help="/app of the image that this one stands on")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    provenance = json.loads(arguments.provenance.read_text(encoding="utf-8"))
    for name, component in provenance["components"].items():
        if built := built_wheels(arguments.wheels / name):
            component["wheels"] = built
    lines = versions(provenance)
    if arguments.parent:
        parent = json.loads((arguments.parent / "provenance.json").read_text(encoding="utf-8"))
        provenance["components"] = {**parent["components"], **provenance["components"]}
        lines = versions(provenance)
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(provenance, indent=2, sort_keys=True) + "\n"
    (arguments.out / "provenance.json").write_text(text, encoding="utf-8")
    (arguments.out / "versions.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def built_wheels(folder: Path) -> list[dict[str, Any]]:
    """File name, sha256 and size in bytes of every wheel in ``folder``; nothing where there is no such folder."""
    return [
        {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size": path.stat().st_size}
        for path in sorted(folder.glob("*.whl"))
    ]


def versions(provenance: dict[str, Any]) -> list[str]:
    """The lines of versions.txt, the base image first, then the components in the order of ``KEYS``."""
    lines = [f"BASE_IMAGE: {provenance['base']['reference']}"]
    for name, key in KEYS.items():
        component = provenance["components"].get(name)
        if component:
            lines += [
                f"{key}_BRANCH: {component['ref']}",
                f"{key}_REPO: {component['url']}",
                f"{key}_COMMIT: {component['commit']}",
            ]
    return lines


if __name__ == "__main__":
    main()
