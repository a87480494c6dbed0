"""Bumps: one component of a stack at another release. In: pins, lock, a ref. Out: all that it changes, and then, if it is wanted, pins, lock, rendered files
and one commit. What is shown is what is written: nothing is resolved a second time in between."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from kiln.advisories import Finding, enforce, read_advisories
from kiln.changes import differences
from kiln.errors import HostError, SourceError, UncommittedError, UpstreamError, UsageError
from kiln.gitcompare import SourceChange, compare
from kiln.lock import lock_changes, resolve_lock
from kiln.lockentries import Git, Unresolved
from kiln.lockfile import Lock, dump_lock, lock_path, parse_lock
from kiln.newest import Newest, newest_tag, newest_wheel
from kiln.overrides import apply_choices, save
from kiln.pins import ComponentPins, Pins
from kiln.process import Finished, run
from kiln.pullcost import CURRENT, PullCost, pull_cost
from kiln.records import all_records, components_of
from kiln.render import Rendered, check_rendered, render, write_rendered
from kiln.session import Choice, Session
from kiln.store import write_whole
from kiln.workspace import Workspace


@dataclass(frozen=True)
class Bump:
    """One component at another release, resolved and written nowhere.

    ``was`` and ``now`` are refs of a source (``commits``: what they were peeled to, "" where the lock has none) or versions of a wheel. ``source`` is None
    for a wheel, and where ``unknown`` says why. ``rebuild`` names image, component and why; ``pull`` is the last image's.
    """

    stack: str
    component: str
    url: str
    was: str
    now: str
    commits: tuple[str, str]
    passed_over: tuple[tuple[str, str], ...]
    source: SourceChange | None
    unknown: str
    entered: tuple[Finding, ...]
    left: tuple[Finding, ...]
    allowed: tuple[str, ...]
    opened: tuple[Unresolved, ...]
    locked: tuple[str, ...]
    rebuild: tuple[tuple[str, str, tuple[str, ...]], ...]
    pull: PullCost | None
    pull_unknown: str
    pins: Pins
    lock: Lock


@dataclass(frozen=True)
class Unmoved:
    """A component that stays where it is, and why."""

    component: str
    ref: str
    why: str
    passed_over: tuple[tuple[str, str], ...] = ()


def bumpable(pins: Pins) -> list[str]:
    """The components that have a release to choose, in the order of the pins."""
    return [component.name for component in pins.components if component.git or component.wheels]


def propose(session: Session, stack: str, name: str, to: str, allow: Collection[str]) -> Bump | Unmoved:
    """What it means to take ``name`` to the ref or version ``to``, or (empty) to its newest release. Writes nothing outside the state folder.

    Raises UsageError for a name that has nothing to bump, AdvisoryError where the result is a refused combination that ``allow`` does not name,
    RefNotFoundError, UpstreamError, ResolveError, MovedRefError, and what reading pins and lock raises.
    """
    pins = session.pins(stack, Choice())
    component = _component(pins, name)
    lock = session.lock(pins)
    images = render(session.workspace, pins, lock)
    newest = Newest(to) if to else _newest(session, pins, lock, images, component, allow)
    was = _ref(component)
    if not newest.ref:
        return Unmoved(name, was, newest.why, newest.passed_over)
    chosen = apply_choices(pins, [f"{name}={newest.ref}"])
    if not chosen.overrides:
        return Unmoved(name, was, "the pins say so already")
    session.early_refusal(chosen, allow)
    session.console.step(f"resolving {name} {_ref(chosen.by_name[name])} for {stack}")
    upstreams = session.upstreams_of(chosen)
    found = resolve_lock(session.workspace, chosen, lock, session.store, session.console, upstreams)
    # Why an entry stays open is told anew at every try, in this machine's words: it is no part of the bump.
    known = {(entry.kind, entry.name, entry.ref): entry for entry in lock.unresolved}
    still = tuple(known.get((entry.kind, entry.name, entry.ref), entry) for entry in found.unresolved)
    # As a file holds it, in its order: what is rendered from it is rendered from the file again.
    text = dump_lock(replace(found, unresolved=still))
    resolved = parse_lock(text, session.workspace.shown(session.workspace.lock_file(stack)))
    if component.git and name not in resolved.git_of:
        (entry,) = (entry for entry in resolved.unresolved if (entry.kind, entry.name) == ("git", name))
        raise UpstreamError(f"{component.git} {newest.ref} could not be resolved", why=entry.reason)
    rendered = render(session.workspace, chosen, resolved)
    before = session.findings(pins, lock, images, ask=True)
    after = session.findings(chosen, resolved, rendered, ask=True)
    allowed = enforce(after, allow, _known_advisories(session)) if pins.base else ()
    commits = (_commit_of(lock, name), _commit_of(resolved, name))
    source, unknown = _source(session, component, *commits)
    pull, pull_unknown = _pull(session.workspace, images, chosen, rendered)
    return Bump(
        stack,
        name,
        component.git,
        was,
        _ref(chosen.by_name[name]),
        commits,
        newest.passed_over,
        source,
        unknown,
        _without(after, before),
        _without(before, after),
        allowed,
        tuple(entry for entry in resolved.unresolved if (entry.kind, entry.name, entry.ref) not in known),
        tuple(_other_changes(lock, resolved, name)),
        tuple(_rebuilt(pins, images, rendered)),
        pull,
        pull_unknown,
        chosen,
        resolved,
    )


def _component(pins: Pins, name: str) -> ComponentPins:
    names = bumpable(pins)
    if name in names:
        return pins.by_name[name]
    near = difflib.get_close_matches(name, names, 3)
    raise UsageError(
        f"{pins.stack!r} has no component {name!r} that has a release to choose",
        why=(f"Near: {', '.join(near)}. " if near else "") + f"It has: {', '.join(names)}.",
        fix="name one of these; another base image is chosen with: kiln lock STACK --set base=TAG --save",
    )


def _ref(component: ComponentPins) -> str:
    """What a component is pinned to: a ref, or its first wheel's version."""
    return component.ref or component.wheels[0].partition("==")[2]


def _commit_of(lock: Lock, name: str) -> str:
    return lock.git_of[name].commit if name in lock.git_of else ""


def _other_changes(lock: Lock, resolved: Lock, name: str) -> Iterator[str]:
    """What else changes in the lock, but for what is open: that is told apart."""
    old, new = (replace(one, gits=_others(one, name), unresolved=()) for one in (lock, resolved))
    yield from lock_changes(old, new)


def _others(lock: Lock, name: str) -> tuple[Git, ...]:
    return tuple(git for git in lock.gits if git.component != name)


def _newest(
    session: Session,
    pins: Pins,
    lock: Lock,
    images: Sequence[Rendered],
    component: ComponentPins,
    allow: Collection[str],
) -> Newest:
    if not component.git:
        return newest_wheel(pins, component)
    session.console.step(f"asking {component.git} for its releases")
    tags = session.git.tags(component.git)

    def refused(tag: str) -> str:
        """As the whole stack would be judged with the component at that tag; its recipes and settings are those of now."""
        git = Git(component.name, component.git, tag, tags[tag], "")
        trial = replace(lock, gits=(*_others(lock, component.name), git))
        found = session.findings(apply_choices(pins, [f"{component.name}={tag}"]), trial, images, ask=True)
        ids = [one.advisory.id for one in found if one.effect == "refuse" and one.advisory.id not in allow]
        return f"refused by advisory {', '.join(ids)}" if ids else ""

    return newest_tag(component, tags, refused)


def _known_advisories(session: Session) -> list[str]:
    return [advisory.id for advisory in read_advisories(session.workspace)]


def _without(findings: Sequence[Finding], others: Sequence[Finding]) -> tuple[Finding, ...]:
    """Those that the others have not, or have with another effect."""
    known = {(one.advisory.id, one.effect) for one in others}
    return tuple(one for one in findings if (one.advisory.id, one.effect) not in known)


def _source(session: Session, component: ComponentPins, before: str, after: str) -> tuple[SourceChange | None, str]:
    if not component.git:
        return None, ""
    if not before:
        return None, f"{component.ref} is not resolved in the lock, so there is nothing to compare with"
    try:
        return compare(session.git, component.git, before, after), ""
    except (SourceError, UpstreamError) as error:
        return None, " ".join(filter(None, (error.what, error.why)))


def _rebuilt(
    pins: Pins, images: Sequence[Rendered], rendered: Sequence[Rendered]
) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Image, component and reasons of everything whose build key is another now."""
    made = {(one.image.name, part.name): part for one in images for part in components_of(one, pins)}
    for one in rendered:
        for unit in one.units:
            old = made.get((one.image.name, unit.name))
            if old is None:
                yield one.image.name, unit.name, ("is new",)
            elif old.key != unit.key:
                yield one.image.name, unit.name, differences(old, unit)


def _pull(
    workspace: Workspace, images: Sequence[Rendered], chosen: Pins, rendered: Sequence[Rendered]
) -> tuple[PullCost | None, str]:
    """What a node downloads that goes from the last image of now to the bumped one; or why nobody knows."""
    records = all_records(workspace)
    old = next((one for one in records if one.key == images[-1].key), None)
    if old is None:
        return None, f"{images[-1].image.name} of the pins of now was not built here"
    keys = {made.name: made.key for one in rendered for made in components_of(one, chosen)}
    try:
        return pull_cost(workspace, f"{old.digest}..{CURRENT}", records, rendered, keys), ""
    except UsageError as error:
        return None, error.what


def changed_paths(workspace: Workspace, pins: Pins) -> list[Path]:
    """What a bump writes: pins, lock, and the folders of the stack's images."""
    folders = [workspace.image_folder(image) for image in pins.images]
    return [workspace.pins_file(pins.stack), workspace.lock_file(pins.stack), *folders]


def require_clean(session: Session, stack: str) -> None:
    """Raise UncommittedError where a commit of a bump would take along what somebody else wrote, UsageError where this is no git checkout,
    RenderStaleError where the committed Dockerfiles are old already."""
    workspace = session.workspace
    pins = session.pins(stack, Choice())
    if _git(workspace, "rev-parse", "--is-inside-work-tree").code != 0:
        raise UsageError(
            f"{workspace.root} is no git checkout, so a bump cannot be committed", fix="add --no-commit, or --dry-run"
        )
    paths = [str(path) for path in changed_paths(workspace, pins)]
    status = _git(workspace, "status", "--porcelain=v1", "--untracked-files=all", "--", *paths)
    if status.code != 0:
        raise HostError("git could not say what is committed", why=status.tail())
    if status.output.strip():
        raise UncommittedError(
            "files that a bump writes have uncommitted changes",
            why=status.output.rstrip(),
            fix="commit them or put them aside (git stash), then run the same command again; or leave the commit to yourself: --no-commit",
        )
    check_rendered(render(workspace, pins, session.lock(pins)), workspace)


def write(session: Session, bump: Bump, message: str | None) -> tuple[list[Path], str]:
    """Write pins, lock and rendered files, and commit them with ``message`` (None: do not). Returns the files and the commit ("": none).

    Where anything fails, the files are as they were. Raises HostError with git's own words, DiskFullError.
    """
    workspace = session.workspace
    with _restored_on_failure(changed_paths(workspace, bump.pins)):
        save(workspace, bump.pins)
        pins = session.pins(bump.stack, Choice())
        lock = replace(bump.lock, pins_sha256=pins.sha256)
        written = [workspace.pins_file(bump.stack), lock_path(workspace, pins)]
        write_whole(written[1], dump_lock(lock))
        written += write_rendered(render(workspace, pins, lock), workspace.root / "images")
        return written, "" if message is None else _commit(workspace, pins, message)


def _commit(workspace: Workspace, pins: Pins, message: str) -> str:
    paths = [str(path) for path in changed_paths(workspace, pins)]
    steps = (
        ("add", "--all", "--", *paths),
        # What else is staged stays staged.
        ("commit", "--quiet", "--cleanup=verbatim", f"--message={message}", "--only", "--", *paths),
    )
    for words in steps:
        done = _git(workspace, *words)
        if done.code != 0:
            _git(workspace, "reset", "--quiet", "--", *paths)
            raise HostError(
                "git did not make the commit of the bump",
                why=done.tail(),
                fix="nothing was changed. Mend what git says, or leave the commit to yourself: --no-commit",
            )
    return _git(workspace, "rev-parse", "HEAD").output.strip()


def _git(workspace: Workspace, *words: str) -> Finished:
    return run(["git", "-C", workspace.root, *words])


@contextmanager
def _restored_on_failure(paths: Sequence[Path]) -> Iterator[None]:
    """Put files, and all files of folders, back to what they were if something is raised."""
    kept = {path: path.read_bytes() for path in _files(paths)}
    try:
        yield
    except BaseException:
        for path in _files(paths):
            if path not in kept:
                path.unlink()
        for path, data in kept.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        raise


def _files(paths: Sequence[Path]) -> list[Path]:
    return [file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
