"""Auditing a stack: every input that could change without its pins or its lock changing. Looks at both and at the rendered Dockerfiles."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from kiln.errors import MutableInputError
from kiln.lockfile import Lock
from kiln.pins import Pins
from kiln.render import Rendered

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# What fetches something from wherever it is today, in a build step.
_FETCHING = re.compile(
    r"\b(curl|wget|git\s+(clone|fetch|submodule)|(apt|apt-get|aptitude)\s+(-o\s+\S+\s+|-\S+\s+)*(install|update|upgrade)|add-apt-repository"
    r"|npm\s+(-\S+\s+)*(install|ci)|cargo\s+(-\S+\s+)*install)\b"
)
# A here-document, as a word of its own: `<<EOF`, `<<-"EOF"`, `3<<EOF`. `1<<3` in arithmetic and `<<<text` are none.
_HEREDOC = re.compile(r"\d*<<-?['\"]?([^<'\"\s]+)['\"]?")
_PIP = re.compile(r"\bpip3?\s+(install|download|wheel)\b")


@dataclass(frozen=True)
class Audit:
    """What an audit found: how many inputs were looked at, which can change, and which are not known yet."""

    stack: str
    inputs: int
    mutable: tuple[str, ...]
    unresolved: tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            f"{self.stack}: {self.inputs} inputs looked at, {len(self.mutable)} mutable, {len(self.unresolved)} unresolved"
        ]
        lines += [f"  mutable     {text}" for text in self.mutable]
        lines += [f"  unresolved  {text}" for text in self.unresolved]
        return "\n".join(lines)


def audit(pins: Pins, lock: Lock, images: tuple[Rendered, ...]) -> Audit:
    """Look at every input of a stack. What is unresolved is listed apart: nothing can be built from it, so it cannot change either."""
    open_names = {(entry.kind, entry.name) for entry in lock.unresolved}
    mutable = [*_base(pins, lock, open_names), *_sources(pins, lock, open_names), *_files(lock)]
    for rendered in images:
        mutable += [
            f"{rendered.image.name}: {text}" for text in dockerfile_problems(rendered.dockerfile, _contexts(rendered))
        ]
    inputs = len(lock.entries()) + len(lock.gits) + len(lock.images) + sum(len(git.submodules) for git in lock.gits)
    return Audit(
        pins.stack, inputs, tuple(mutable), tuple(f"{entry.label}: {entry.reason}" for entry in lock.unresolved)
    )


def judge_audit(result: Audit, stack: str) -> None:
    """Raise MutableInputError where an input can change."""
    if result.mutable:
        raise MutableInputError(
            f"{len(result.mutable)} inputs of {stack!r} can change without its pins or its lock changing",
            why="\n".join(result.mutable),
            fix="pin them: a tag with its commit or digest, a file with its sha256 (docs/pins.md)",
        )


def _base(pins: Pins, lock: Lock, open_names: set[tuple[str, str]]) -> Iterator[str]:
    if pins.base is None:
        return
    digests = [image.digest for image in lock.images if image.name == pins.base.image and image.tag == pins.base.tag]
    if not digests and ("image", pins.base.image) not in open_names:
        yield f"base image {pins.base.reference}: the lock has no digest for it"
    # The Dockerfile names the pins' digest; without one it would name a tag.
    if digests and not pins.base.digest:
        yield f"base image {pins.base.reference}: its digest is in the lock and not in the pins, so the Dockerfile names a tag; pin {digests[0]}"


def _sources(pins: Pins, lock: Lock, open_names: set[tuple[str, str]]) -> Iterator[str]:
    for component in pins.components:
        if not component.git or ("git", component.name) in open_names:
            continue
        git = lock.git_of.get(component.name)
        if git is None:
            yield f"{component.name}: {component.git}@{component.ref} has no commit in the lock"
            continue
        commits = {"commit": git.commit, "tree": git.tree, **{sub.path: sub.commit for sub in git.submodules}}
        for what, commit in commits.items():
            if not _COMMIT.fullmatch(commit):
                yield f"{component.name}: {what} {commit!r} is not 40 digits"
        known = {archive.name for archive in lock.archives_of(component.name)}
        known |= {
            entry.ref.partition(":")[0]
            for entry in lock.unresolved
            if (entry.kind, entry.name) == ("archive", component.name)
        }
        for archive in component.archives:
            if archive.name not in known:
                yield f"{component.name}: the archive {archive.name} has no sha256 in the lock"


def _files(lock: Lock) -> Iterator[str]:
    for entry in lock.entries():
        if not _SHA256.fullmatch(entry.sha256) or entry.size <= 0:
            yield f"{entry.label}: sha256 {entry.sha256!r}, {entry.size} bytes"


def _contexts(rendered: Rendered) -> set[str]:
    return {context.name for context in rendered.contexts}


def dockerfile_problems(text: str, contexts: set[str]) -> list[str]:
    """What in a Dockerfile can bring other bytes tomorrow, a line each: images without a digest, steps with a network, downloads."""
    problems: list[str] = []
    stages = {"scratch", *contexts}
    for instruction in _instructions(text):
        word, _, rest = instruction.partition(" ")
        word, words = word.upper(), rest.split()
        if word == "FROM":
            parts = [part for part in words if not part.startswith("--")]
            problems += _reference(parts[0] if parts else "nothing", stages, "FROM")
            stages |= set(parts[-1:])
        sources = re.findall(r"--from=(\S+)", rest) if word in ("COPY", "ADD") else []
        sources += re.findall(r"--mount=\S*?\bfrom=([^,\s]+)", rest)
        for source in sources:
            problems += _reference(source, stages, f"{word} from")
        if (
            word == "ADD"
            and any("://" in part or part.startswith("git@") for part in words)
            and "--checksum=" not in rest
        ):
            problems.append(f"ADD of an address without a checksum: {rest[:80]}")
        if word == "RUN":
            options = list(itertools.takewhile(lambda part: part.startswith("--"), words))
            if "--network=none" not in options:
                problems.append(f"a RUN step may use the network: {rest[:80]}")
            if found := _FETCHING.search(rest):
                problems.append(f"a RUN step fetches something: {found[0]}")
            if _PIP.search(rest) and "--no-index" not in rest:
                problems.append(f"a RUN step lets pip ask an index: {rest[:80]}")
    return problems


def _reference(name: str, stages: set[str], where: str) -> list[str]:
    pinned = name in stages or re.search(r"@sha256:[0-9a-f]{64}$", name)
    return [] if pinned else [f"{where} {name}: neither a stage or context of this build nor an image by digest"]


def _instructions(text: str) -> list[str]:
    """The instructions of a Dockerfile, each on one line; comments and the bodies of here-documents are left out."""
    found: list[str] = []
    lines = iter(text.splitlines())
    for line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        whole = line
        while whole.rstrip().endswith("\\"):
            following = next(lines, None)
            if following is None:
                break
            # Comments and empty lines within a continued instruction are passed over, as Docker does.
            if following.strip() and not following.lstrip().startswith("#"):
                whole = whole.rstrip()[:-1] + " " + following.strip()
        found.append(" ".join(whole.split()))
        words = whole.split()
        for marker in [match[1] for word in words if (match := _HEREDOC.fullmatch(word))]:
            for body in lines:
                if body.strip() == marker:
                    break
    return found
