"""The sources, or why these tests are skipped: ``make contract`` fetches all of them, ``make test`` those of a few releases, and there they must be."""

from __future__ import annotations

import os

import pytest

from tests.contract.sources import Release, cached, releases

# The versions that must be there; ``1``: all of them.
REQUIRED = os.environ.get("KILN_CONTRACT", "").split()


def have(*wanted: Release) -> None:
    """Skip where sources are not in the cache; where they were to be fetched, that is a failure."""
    lacking = [one.version for one in wanted if not cached(one)]
    if lacking:
        why = f"the sources of vLLM {', '.join(lacking)} are not in .kiln/contract: run `make contract`"
        if "1" in REQUIRED or set(lacking) & set(REQUIRED):
            pytest.fail(why)
        pytest.skip(why)


@pytest.fixture(scope="session")
def need_sources() -> None:
    """Skip where not all releases' sources are there."""
    have(*releases())
