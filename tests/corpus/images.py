"""Images: a layer on one that was built, with one thing in it that is wrong (or harmless), looked at by the static checks."""

from __future__ import annotations

import io
import json
import re
import subprocess
import tarfile
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from kiln.build import known_build
from kiln.console import Console
from kiln.containers import Client, container, wait
from kiln.engine import Engine, find_engine, image_digest
from kiln.lockentries import Wheel
from kiln.lockfile import Lock, read_lock
from kiln.pins import read_pins
from kiln.render import render
from kiln.verify.checks import Check, Outcome, Subject, run_checks
from kiln.verify.contents import MEMORY, SECONDS
from kiln.verify.run import subject_of
from kiln.verify.static import static_checks
from kiln.workspace import Workspace
from tests.corpus.cases import Case, CorpusError, fixture
from tests.corpus.reorder import reordered

REPOSITORY = Path(__file__).parents[2]
# The stack of each base, whether it is the rehearsal's, and what makes it.
BASES = {
    "cpu-serving": ("cpu", False, "make image STACK=cpu"),
    "rocm-base": ("dsv4-mhc", True, "make rehearse"),
    "rocm-serving": ("dsv4-mhc", True, "make rehearse"),
}
# What containerd says of an image whose manifest and configuration have not the same number of layers.
BROKEN = "mismatched image rootfs and manifest layers"
# What a check reads of scripts/inspect_image.py's document: for a defect, only that is looked at. Any other check gets all of it.
SECTIONS = {
    "packages.debian": ("packages",),
    "packages.wheels": ("distributions",),
    "packages.requirements": ("requirements",),
    "libraries.resolve": ("libraries",),
    "files.clean": ("files",),
    "image.provenance": ("app", "distributions"),
    "image.sbom": ("app", "distributions", "packages"),
    "libraries.mhc": ("mhc_module", "app"),
    "vllm.switch": ("switch", "app"),
    "vllm.calls": ("calls", "app"),
}
SHELL_SECONDS = 300


class Images:
    """The bases that are in the engine, and what comes of laying cases on them."""

    def __init__(self, workspace: Workspace | None = None) -> None:
        self.workspace = workspace or Workspace.find(REPOSITORY)
        self._bases: dict[str, Subject] = {}
        self._lock = threading.Lock()
        engine, _ = find_engine(self.workspace.state)
        if engine is None:
            raise CorpusError(
                "no container engine is up: make image STACK=cpu starts one, and builds what this looks at"
            )
        self.engine: Engine = engine
        self.client = Client(base_url=engine.host, timeout=120)
        self.client.owner = self.workspace.identity

    def base(self, name: str) -> Subject:
        """A base by its name. Raises CorpusError saying what makes it, where it is not in the engine."""
        with self._lock:
            if name not in self._bases:
                self._bases[name] = self._subject(name)
            return self._bases[name]

    def _subject(self, name: str) -> Subject:
        """What ``kiln verify`` makes of a built image before it looks."""
        if name not in BASES:
            raise CorpusError(f"{name} is no base; known: {', '.join(BASES)}")
        stack, rehearsal, how = BASES[name]
        apart = self.workspace.state / "rehearsal"
        workspace = Workspace(self.workspace.root, apart, apart / "locks") if rehearsal else self.workspace
        if not workspace.lock_file(stack).is_file():
            raise CorpusError(f"{name} was never built here: run `{how}` first")
        pins = read_pins(workspace, stack)
        lock = read_lock(workspace, pins)
        stack_images = render(workspace, pins, lock)
        rendered = next(one for one in stack_images if one.image.name == name)
        built = known_build(workspace, rendered, self.engine)
        if built is None:
            raise CorpusError(f"{name} is not in the engine as the pins are now: run `{how}` first")
        return subject_of(workspace, pins, lock, rendered, stack_images, built, self.engine, self.client)

    def look(self, case: Case) -> dict[str, Outcome]:
        """Lay the case on its base, and what the static checks say: of a defect the check that must see it, of a clean variant all of them."""
        found = self._look(case)
        if any(BROKEN in outcome.summary for outcome in found.values()):
            # Seen once in 700 rows, with BuildKit 0.13 and two rows at a time: the thin image itself was put out broken, before anything looked at it.
            found = self._look(case)
        return found

    def _look(self, case: Case) -> dict[str, Outcome]:
        base = self.base(case.base)
        with self._made(base, case) as reference:
            digest = image_digest(self.engine, reference) or ""
            # The one place that says "take this for the image that was built".
            taken = replace(base.built, reference=reference, digest=digest)
            if case.data.get("another-digest"):
                taken = replace(taken, digest=base.built.digest)
            subject = replace(base, built=taken, lock=_locked(base.lock, case.data.get("locked", {})))
            checks = chosen(subject, [case.check] if case.check else case.data.get("only", []))
            return {result.id: result.outcome for result in run_checks(checks, Console(quiet=True))}

    @contextmanager
    def _made(self, base: Subject, case: Case) -> Iterator[str]:
        """The image of a case, by a name that goes when this ends."""
        reference = f"kiln-corpus:{re.sub('[^a-z0-9]+', '-', case.name.lower())[:60]}-{uuid.uuid4().hex[:8]}"
        try:
            if swap := case.data.get("reorder"):
                saved = subprocess.run(
                    ["docker", "save", base.built.reference],
                    env=self.engine.environment,
                    capture_output=True,
                    check=True,
                ).stdout
                self._docker("load", "--quiet", data=reordered(saved, swap, reference))
            else:
                self._laid(base, case, reference)
            yield reference
        finally:
            subprocess.run(
                ["docker", "rmi", "--force", reference], env=self.engine.environment, capture_output=True, check=False
            )

    def _laid(self, base: Subject, case: Case, reference: str) -> None:
        # BuildKit sees what a step wrote; `docker commit` looks for it in two whole trees, which takes ten times as long on 4 GB.
        words = ["buildx", "build", "--builder=default", "--quiet", "--provenance=false", "--tag", reference, "-"]
        self._docker(*words, data=_context(base.built.reference, case.data))

    def _docker(self, *words: str, data: bytes | None = None) -> str:
        done = subprocess.run(
            ["docker", *words],
            env=self.engine.environment,
            input=data,
            capture_output=True,
            timeout=SHELL_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise CorpusError(
                f"docker {words[0]} ended with {done.returncode}: {done.stderr.decode(errors='replace').strip()[-400:]}"
            )
        return done.stdout.decode().strip()


def chosen(subject: Subject, names: Sequence[str]) -> list[Check]:
    """The checks that are named, looking at no more than they read; without names, every static check."""
    if not names:
        return static_checks(subject)
    sections = sorted({section for name in names for section in SECTIONS.get(name, ())})
    partial = sections and all(name in SECTIONS for name in names)
    checks = static_checks(subject, Partial(subject, sections) if partial else None)  # type: ignore[arg-type]
    return [one for one in checks if one.id in names]


class Partial:
    """In place of ``kiln.verify.contents.Inspection``: the same script in the same kind of container, asked for some sections alone."""

    def __init__(self, subject: Subject, sections: Sequence[str]) -> None:
        self._subject, self._sections = subject, sections

    def get(self) -> dict[str, Any]:
        """The document; a section that was not asked for is not in it, and its check would end as an error."""
        command = [
            "-B",
            "/kiln/scripts/inspect_image.py",
            *(word for one in self._sections for word in ("--only", one)),
        ]
        scripts = {self._subject.workspace.root / "scripts": "/kiln/scripts"}
        reference = self._subject.built.reference
        with container(
            self._subject.client, reference, entrypoint=["python3"], command=command, mounts=scripts, memory=MEMORY
        ) as started:
            ended = wait(started, SECONDS)
        if ended.code != 0:
            raise LookupError(f"scripts/inspect_image.py ended with {ended.code}: {ended.stderr.strip()[-600:]}")
        return dict(json.loads(ended.stdout))


def _locked(lock: Lock, versions: Mapping[str, str]) -> Lock:
    """The lock with other versions of some wheels, or with wheels more."""
    wheels = [replace(wheel, version=versions.get(wheel.name, wheel.version)) for wheel in lock.wheels]
    known = {wheel.name for wheel in wheels}
    component = next(wheel.component for wheel in reversed(lock.wheels) if wheel.component != "tools")
    more = [
        Wheel(component, name, version, f"{name}.whl", "0" * 64, 1)
        for name, version in versions.items()
        if name not in known
    ]
    return replace(lock, wheels=(*wheels, *more)) if versions else lock


def _context(reference: str, data: Mapping[str, Any]) -> bytes:
    """A build context as a tar: files of fixtures, and a Dockerfile that lays them down, runs the shell and changes the configuration."""
    changes = data.get("change", [])
    lines, files = [f"FROM {reference}"], {}
    for number, (place, name) in enumerate(data.get("lay", {}).items()):
        files[f"lay{number}"] = fixture(name)
        lines.append(f"COPY --chmod=644 lay{number} /{place.lstrip('/')}")
    if "shell" in data:
        lines.append(f"RUN --network=none {json.dumps(['sh', '-ec', data['shell']])}")
    lines += [changes] if isinstance(changes, str) else changes
    # An image with nothing new in it would be the base itself, by the base's digest.
    lines += [] if len(lines) > 1 else ["RUN --network=none true"]
    files["Dockerfile"] = ("\n".join(lines) + "\n").encode()
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o644
            archive.addfile(info, io.BytesIO(content))
    return made.getvalue()
