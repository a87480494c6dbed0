"""What containerd keeps of a pull that brought wrong bytes: a small blob whose bytes were changed on the way it neither takes nor fetches again.

It says "unexpected commit digest" at every pull from then on, until a day has passed (seen with 1.7.24; a layer it does fetch again). In an engine of Kiln's own that
remainder is removed; another's is not Kiln's to touch.
"""

from __future__ import annotations

import re
import shutil

from kiln.engine import Engine
from kiln.layers import content_folders
from kiln.process import Finished, run

_TORN = re.compile(r"unexpected commit digest sha256:[0-9a-f]{64}, expected (sha256:[0-9a-f]{64})")


def docker_pull(engine: Engine, place: str, seconds: float) -> Finished:
    """``docker pull``; once more where what an earlier one left was in the way."""
    words = ["docker", "pull", "--quiet", place]
    done = run(words, env=engine.environment, timeout=seconds)
    if done.code != 0 and forget_torn(engine, done.output):
        done = run(words, env=engine.environment, timeout=seconds)
        forget_torn(engine, done.output)
    return done


def forget_torn(engine: Engine, said: str) -> bool:
    """Remove what the engine keeps of the blobs that it says came with wrong bytes; whether there was any."""
    wrong = set(_TORN.findall(said)) if engine.private else set()
    found = False
    for blobs in content_folders(engine) if wrong else ():
        for ref in (blobs.parent.parent / "ingest").glob("*/ref"):
            if any(digest in ref.read_text(encoding="utf-8", errors="replace") for digest in wrong):
                shutil.rmtree(ref.parent, ignore_errors=True)
                found = True
    return found
