"""The sources, or why these tests are skipped: ``make contract`` fetches them, and there they must be."""

from __future__ import annotations

import os

import pytest

from tests.contract.sources import cached, releases


@pytest.fixture(scope="session")
def need_sources() -> None:
    """Skip where the releases' sources are not in the cache; under ``make contract`` that is a failure."""
    lacking = [one.version for one in releases() if not cached(one)]
    if lacking:
        why = f"the sources of vLLM {', '.join(lacking)} are not in .kiln/contract: run `make contract`"
        if os.environ.get("KILN_CONTRACT"):
            pytest.fail(why)
        pytest.skip(why)
