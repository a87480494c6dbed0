"""``make contract``: fetch the releases' sources, ask the switch about each, run their dispatch, and write the page with the table.

python -m tests.contract                    all releases of releases.toml
python -m tests.contract --fetch VERSION …  only the sources of these
python -m tests.contract --vllm VERSION     one release, in the table or not: does the switch hold, and if not, which symbol is it?
"""

from __future__ import annotations

import argparse
import sys

from kiln.errors import KilnError
from kiln.store import write_whole
from tests.contract import table
from tests.contract.sources import PROJECT, ContractError, Release, cached, fetch, releases, unlisted

sys.path.insert(0, str(PROJECT / "plugins" / "vllm-mhc-switch"))
from kiln_vllm_mhc_switch import contract
from kiln_vllm_mhc_switch.errors import UnknownVllmCodeError


def main(argv: list[str] | None = None) -> int:
    """Run it and return the exit code: 0 all holds, 1 the switch does not hold, 2 the sources could not be had."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.contract", description="The mHC switch against the sources of vLLM's releases."
    )
    parser.add_argument("--fetch", nargs="+", metavar="VERSION", help="only fetch the sources of these releases")
    parser.add_argument("--vllm", metavar="VERSION", help="only this release, for example 0.34.0")
    arguments = parser.parse_args(argv)
    known = {one.version: one for one in releases()}
    try:
        chosen = [known.get(arguments.vllm) or unlisted(arguments.vllm)] if arguments.vllm else list(known.values())
        if arguments.fetch:
            chosen = [one for one in chosen if one.version in arguments.fetch]
        for one in chosen:
            if not cached(one):
                fetch(one)
        if arguments.fetch:
            return 0
        held = [_held(one) for one in chosen]
        if arguments.vllm:
            return 0 if held[0] else 1
        if held != [one.supported for one in chosen]:
            print(
                "error: the switch does not hold with the releases that releases.toml says are supported, and no others",
                file=sys.stderr,
            )
            return 1
        write_whole(table.DOCUMENT, table.document({one.version: table.run(one) for one in table.tabled()}))
    except (ContractError, KilnError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {table.DOCUMENT.relative_to(PROJECT)}")
    return 0


def _held(release: Release) -> bool:
    """Whether the switch knows a release on ROCm; a line for each platform."""
    said = {}
    for platform in ("rocm", "cpu"):
        try:
            contract.check(platform, release.folder, release.version)
            said[platform] = ""
        except UnknownVllmCodeError as error:
            said[platform] = str(error).split(". It knows")[0]
        print(f"vLLM {release.version} on {platform}: {said[platform] or 'the switch holds'}")
    return not said["rocm"]


if __name__ == "__main__":
    sys.exit(main())
