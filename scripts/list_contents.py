"""Say which Debian packages are installed in this image, as one JSON document on standard output.

Runs inside an image, with the standard library alone: {"debs": [["name", "version"], ...]}, sorted.
"""

from __future__ import annotations

import json
import subprocess


def debs() -> list[list[str]]:
    """Every Debian package that is installed."""
    said = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${Package} ${Version} ${db:Status-Status}\n"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    rows = [line.split() for line in said.splitlines()]
    return sorted([name, version] for name, version, status in rows if status == "installed")


if __name__ == "__main__":
    print(json.dumps({"debs": debs()}))
