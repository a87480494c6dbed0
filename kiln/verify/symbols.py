"""Judging the libraries that ``scripts/inspect_image.py`` saw: they load, on this image's C library, and AITER's has the GPUs' code."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any

from kiln.verify.checks import Outcome, errored, failed, passed, skipped
from kiln.verify.inspect import Document, is_rehearsal, listed, section

# What the machine with the device brings into the container.
OF_THE_MACHINE = ("libcuda", "libnvidia-ml", "libnvcuvid", "libze_loader")
# What ROCm brings: a ROCm image has it, a rehearsal and a CPU image do not.
OF_ROCM = ("libamdhip64", "libhsa-runtime64", "libhiprtc", "libamd_comgr", "librocm_smi64", "libamd_smi")

# Libraries that their own packages do without, each with the reason. Patterns, as a shell has them.
OPTIONAL: Mapping[str, str] = {
    "*/numba/np/ufunc/tbbpool.*": "numba's threads on TBB: it takes OpenMP's or its own where this one does not load",
}

_WHAT_TO_DO = {
    "missing-library": "needs {what}, which is nowhere in the image: add the component or package that has it",
    "undefined": "wants symbols that nothing it needs defines: {what}. It was built against something else than what is installed: build it again",
    "version": "{what}: it was built on a newer system: build it on the base image, or pin a wheel for an older one",
    "damaged": "{what}: its component must be built or fetched again",
    "unreadable": "{what}",
}


def libraries(
    doc: Document,
    ceilings: Mapping[str, str] | None = None,
    *,
    may_lack: Collection[str] = (*OF_THE_MACHINE, *OF_ROCM),
    optional: Mapping[str, str] | None = None,
) -> Outcome:
    """Every library finds what it needs, every symbol is defined by somebody, and nothing wants a newer C library than there is.

    ``ceilings`` are the newest versions that may be needed (``{"GLIBC": "2.35"}``), ``may_lack`` the drivers that may be absent (by
    their names without ``.so``), ``optional`` the libraries that need not load.
    """
    found = section(doc, "libraries")
    if isinstance(found, Outcome):
        return found
    if not found["interpreter"] and found["judged"]:
        return errored("the program that runs Python was not found in the image, so symbols could not be judged")
    known = OPTIONAL if optional is None else optional
    wrong: list[str] = []
    waived: list[str] = []
    blind: list[str] = []
    for one in found["problems"]:
        line = f"{one['file']}: {_WHAT_TO_DO[one['kind']].format(what=one['what'])}"
        reason = next((reason for pattern, reason in known.items() if fnmatchcase(one["file"], pattern)), "")
        if reason and one["kind"] == "missing-library":
            waived.append(f"{line} ({reason})")
        else:
            (blind if one["kind"] == "unreadable" else wrong).append(line)
    for name, needing in sorted(found["absent_drivers"].items()):
        if name.partition(".so")[0] not in may_lack:
            wrong.append(f"{needing[0]}: needs {name}, which is nowhere in the image: the base image should have it")
    wrong += _above(found["needs"], ceilings or {})
    evidence = _evidence(found, waived)
    if wrong:
        hidden = found["problem_count"] - len(found["problems"])
        return failed(
            listed(
                [*wrong, *blind], "What does not load here does not load anywhere.", len(wrong) + len(blind) + hidden
            ),
            **evidence,
        )
    if blind:
        return errored(listed(blind, "What cannot be read was not judged."), **evidence)
    newest = ", ".join(f"{family}_{version}" for family, (version, _) in sorted(found["needs"].items()))
    absent = f"; absent drivers: {', '.join(sorted(found['absent_drivers']))}" if found["absent_drivers"] else ""
    return passed(f"{found['judged']} libraries find all they need ({newest or 'no versions'}){absent}", **evidence)


def _above(needs: Mapping[str, list[str]], ceilings: Mapping[str, str]) -> list[str]:
    return [
        f"{needs[family][1]}: needs {family}_{needs[family][0]}, at most {family}_{ceiling} may be needed: build it on the base image"
        for family, ceiling in sorted(ceilings.items())
        if family in needs and _numbers(needs[family][0]) > _numbers(ceiling)
    ]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _evidence(found: Mapping[str, Any], waived: list[str]) -> dict[str, Any]:
    return {
        "needs": {family: f"{version} ({file})" for family, (version, file) in sorted(found["needs"].items())},
        "provides": found["provides"],
        "absent_drivers": found["absent_drivers"],
        "unjudged_symbols": found["unjudged_symbols"],
        "found_among_the_loaded": sorted(found["loaded_before"]),
        "not_for_this_machine": found["other"],
        "optional": waived,
    }


def mhc_module(doc: Document, archs: Collection[str]) -> Outcome:
    """AITER's prebuilt module_mhc.so is there, has code for every GPU that was pinned, and loads under its name."""
    found = section(doc, "mhc_module")
    if isinstance(found, Outcome):
        return found
    if not found["aiter"]:
        return skipped("AITER is not in the image")
    path = found["path"]
    if not found["there"]:
        beside = f" (beside it: {', '.join(found['instead'])})" if found.get("instead") else ""
        return failed(
            f"{path} is missing{beside}: AITER was built without it and would compile it at the first request. Build with PREBUILD_KERNELS=1"
            " where torch can be imported"
        )
    if found.get("trouble"):
        said = f"{path}: {found['trouble']}"
        return errored(said) if found.get("cannot_look") else failed(f"{said}: build AITER again")
    seen = sorted({one["processor"] for one in found["code"]})
    evidence = {"sha256": found["sha256"], "size": found["size"], "archs": seen, "init": found["init"]}
    wrong = [
        f"{path}: has no code for {arch}, only for {' '.join(seen) or 'no GPU'}: set GPU_ARCHS when AITER is built"
        for arch in sorted(set(archs) - set(seen))
    ]
    wrong += [
        f"{path}: its code for {one['named']} is for {one['processor']}: build AITER again"
        for one in found["code"]
        if one["named"] and one["named"] != one["processor"]
    ]
    loads = bool(found["init"] or found["exported"])
    if not loads and not is_rehearsal(doc):
        wrong.append(
            f"{path}: defines no PyInit_module_mhc, so Python does not load it under its name: build AITER again"
        )
    if wrong:
        return failed("\n".join(wrong), **evidence)
    stand_in = "" if loads else "; a rehearsal's stand-in, which is no Python module"
    return passed(f"{path} has code for {' '.join(seen)}{stand_in}", **evidence)
