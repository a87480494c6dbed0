"""Say what is installed in this image, as one JSON document on standard output.

Runs inside an image, with the standard library alone:

    {"python": "3.11.2", "distributions": [["name", "version"], ...], "debs": [["name", "version"], ...]}

Distribution names are normalised as packaging does it (PEP 503); both lists are sorted. A distribution that is there
twice appears twice.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
from importlib import metadata


def distributions() -> list[list[str]]:
    """Every distribution that this Python finds, Debian's own Python packages left out (they are listed as packages)."""
    return sorted(
        [re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower(), one.version]
        for one in metadata.distributions()
        if "/usr/lib/python3" not in str(one.locate_file(""))
    )


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
    print(json.dumps({"python": platform.python_version(), "distributions": distributions(), "debs": debs()}))
