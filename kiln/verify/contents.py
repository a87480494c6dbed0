"""Static checks of what lies in the image, file by file: scripts/inspect_image.py looks, once; the judges are in ``inspect``, ``symbols``, ``signatures``."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from docker.errors import APIError

from kiln.containers import Ended, container, wait
from kiln.verify import inspect, symbols
from kiln.verify.checks import Check, Outcome, Subject
from kiln.verify.signatures import signatures

# Every file of a ROCm image is hashed: tens of gigabytes. The cpu image takes 12 s.
SECONDS = 900
MEMORY = 2 << 30
# 128 and SIGKILL's number: a person's, the kernel's for want of memory, or the engine's.
KILLED = 137


class Inspection:
    """What is in the image, looked at once, when the first check asks."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._found: dict[str, Any] | None = None
        self._trouble = ""

    def get(self) -> dict[str, Any]:
        """The document of scripts/inspect_image.py. Raises LookupError with what the container said where there is none."""
        if self._found is None and not self._trouble:
            self._look()
        if self._found is None:
            raise LookupError(self._trouble)
        return self._found

    def _look(self) -> None:
        try:
            ended = self._ended()
        except APIError as error:
            # No Python in it, or one for another processor: the container does not start, and one that did not start once never will.
            self._trouble = f"no program of the image could be started: {error.explanation or error}"
            return
        try:
            found = json.loads(ended.stdout) if ended.code == 0 else None
        except ValueError:
            found = None
        if isinstance(found, dict):
            self._found = found
            return
        how = {None: f"did not end within {SECONDS} s", KILLED: "was killed"}.get(
            ended.code, f"ended with {ended.code}"
        )
        self._trouble = f"scripts/inspect_image.py {how}: {ended.stderr.strip()[-600:] or 'it said nothing'}"

    def _ended(self) -> Ended:
        subject = self._subject
        with container(
            subject.client,
            subject.built.reference,
            entrypoint=["python3"],
            command=["-B", "/kiln/scripts/inspect_image.py"],
            mounts={subject.workspace.root / "scripts": "/kiln/scripts"},
            memory=MEMORY,
            # Not read-only: that would lay a file system over /tmp, and hide what the image has there. The script writes nothing.
            read_only=False,
        ) as started:
            return wait(started, SECONDS)


def content_checks(subject: Subject, seen: Inspection) -> list[Check]:
    """The checks of what lies in the image; those of AITER and vLLM where the image or one below it has them."""
    pins, lock = subject.pins, subject.lock
    has = set(subject.components or subject.image.components)
    wheels = {wheel.name: wheel.version for name in has for wheel in lock.wheels_of(name)}
    left_out = dict(pair for component in pins.components for pair in component.without)
    # A real ROCm image has ROCm's libraries; a rehearsal has stand-ins for the compilers alone.
    drivers = (*symbols.OF_THE_MACHINE, *symbols.OF_ROCM)
    may_lack = symbols.OF_THE_MACHINE if pins.target == "rocm" and not subject.workspace.rehearsal else drivers

    def check(id_: str, about: str, judge: Callable[[dict[str, Any]], Outcome]) -> Check:
        return Check(id_, "static", about, lambda: judge(seen.get()))

    checks = [
        check(
            "packages.wheels",
            "the Python distributions are the locked ones, no more and no less, each file as its RECORD says",
            lambda found: inspect.distributions(found, wheels, subject.source_wheels),
        ),
        check(
            "packages.requirements",
            "every requirement of every distribution is met, but for those that the pins leave out",
            lambda found: inspect.requirements(found, left_out),
        ),
        check(
            "libraries.resolve",
            "every compiled library finds the libraries, symbols and versions that it needs",
            lambda found: symbols.libraries(found, {"GLIBC": pins.glibc}, may_lack=may_lack),
        ),
        check(
            "files.clean",
            "no secret, authority, proxy, cache, setuid or world-writable file that nobody asked for",
            inspect.files,
        ),
        check(
            "image.provenance",
            "the versions and commits that the image says it was built from are the lock's and its labels'",
            lambda found: inspect.provenance(found, lock, dict(subject.labels)),
        ),
    ]
    if "aiter" in has:
        checks.append(
            check(
                "libraries.mhc",
                "AITER's module_mhc is prebuilt, loads by its name and has code for every GPU architecture that is pinned",
                lambda found: symbols.mhc_module(found, pins.archs),
            )
        )
    if subject.image.settings:
        checks.append(
            check(
                "vllm.switch",
                "this vLLM knows the variable that chooses the mHC path",
                lambda found: inspect.switch(found, needed=True),
            )
        )
    if subject.image.settings and "aiter" in has:
        checks.append(
            check(
                "vllm.calls",
                "the calls that this vLLM makes into AITER's and TileLang's mHC functions fit those that are installed",
                signatures,
            )
        )
    return checks
