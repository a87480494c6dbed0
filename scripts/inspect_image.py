"""Look into this image and say what is there, as one JSON document on standard output. It judges nothing: kiln/verify/inspect.py does.

Runs inside an image, on Python 3.10 or newer, with the standard library and ``elf.py`` and ``inspection/`` beside it; writes
nothing, imports nothing of what it looks at (``packaging`` apart, which knows the rules of versions) and opens no connection:

    python3 inspect_image.py [--root /] [--only SECTION ...]

Every section is ``{"looked": true, ...}``, or ``{"looked": false, "why": "..."}`` where it could not look. No secret is ever
written down: of a file that looks like one its path and its kind, of a variable its name.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from inspection.calls import calls
from inspection.distributions import distributions
from inspection.files import files
from inspection.image import Image, NothingToSeeError
from inspection.libraries import libraries
from inspection.mhc_module import mhc_module
from inspection.packages import packages
from inspection.provenance import app
from inspection.requirements import requirements
from inspection.switch import switch

SECTIONS: Final[dict[str, Callable[[Image], dict[str, Any]]]] = {
    "packages": packages,
    "distributions": distributions,
    "requirements": requirements,
    "libraries": libraries,
    "app": app,
    "files": files,
    "switch": switch,
    "calls": calls,
    "mhc_module": mhc_module,
}


def look(image: Image, wanted: Iterable[str]) -> dict[str, Any]:
    """The whole document. A section that fails says so; the others look all the same."""
    document: dict[str, Any] = {"schema_version": 1, "python": platform.python_version()}
    document["sites"] = [image.shown(one) for one in image.sites]
    seconds: dict[str, float] = {}
    for name in wanted:
        began = time.monotonic()
        try:
            document[name] = {"looked": True, **SECTIONS[name](image)}
        except NothingToSeeError as error:
            document[name] = {"looked": False, "why": str(error), "nothing": True}
        except Exception as error:  # noqa: BLE001 - whatever it was, the document says that nothing was seen
            document[name] = {"looked": False, "why": f"{type(error).__name__}: {error}"[:500]}
        seconds[name] = round(time.monotonic() - began, 2)
    return document | {"seconds": seconds, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


def main(argv: list[str] | None = None) -> int:
    """Print the document."""
    parser = argparse.ArgumentParser(description="Look into this image; print one JSON document.", allow_abbrev=False)
    parser.add_argument("--root", default="/", help="where the image's files are")
    parser.add_argument("--only", choices=sorted(SECTIONS), action="append", help="this section, and others named so")
    arguments = parser.parse_args(argv)
    image = Image.at(arguments.root)
    print(json.dumps(look(image, arguments.only or SECTIONS), sort_keys=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
