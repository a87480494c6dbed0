"""Static checks: the image is what the pins and the lock say, seen from its configuration and from inside, nothing served."""

from __future__ import annotations

from typing import Any

from kiln.engine import image_digest, image_document
from kiln.verify.checks import Check, Outcome, Subject, differing, errored, failed, passed
from kiln.verify.contents import Inspection, content_checks
from kiln.verify.inspect import Document, section
from kiln.verify.sbom import materials


def static_checks(subject: Subject, seen: Inspection | None = None) -> list[Check]:
    """All static checks of an image; ``seen`` looks into it, once, when the first of them asks."""
    seen = seen or Inspection(subject)
    return [
        Check("image.digest", "static", "the engine holds the very image that was built", lambda: digest(subject)),
        Check(
            "image.config",
            "static",
            "entry point, user, folder, platform and environment are as image.toml says",
            lambda: config(subject),
        ),
        Check(
            "image.labels", "static", "the labels name this lock and these component versions", lambda: labels(subject)
        ),
        Check(
            "packages.debian",
            "static",
            "the Debian packages in the image are the locked ones, no more and no less",
            lambda: debian(subject, seen.get()),
        ),
        Check(
            "image.sbom",
            "static",
            "the SBOM in the image is the rendered one, and lists what is there: distributions, packages, commits",
            lambda: materials(seen.get(), subject.sbom, _labels(subject), on_a_base=bool(subject.pins.base)),
        ),
        *content_checks(subject, seen),
    ]


def digest(subject: Subject) -> Outcome:
    """The manifest digest in the engine against the one that BuildKit reported."""
    found = image_digest(subject.engine, subject.built.reference)
    if found != subject.built.digest:
        return failed(f"{subject.built.reference} is {found}, built was {subject.built.digest}", found=found)
    return passed(subject.built.digest)


def _config(subject: Subject) -> dict[str, Any]:
    found = image_document(subject.engine, subject.built.reference)
    if not found:
        raise LookupError(f"the engine has no image {subject.built.reference}")
    return found


def config(subject: Subject) -> Outcome:
    """The image's configuration against image.toml."""
    found = _config(subject)
    settings = found.get("Config") or {}
    environment = dict(item.split("=", 1) for item in settings.get("Env") or [])
    environment.pop("PATH", None)
    if subject.pins.base:
        # The base image brings variables of its own; what is ours must be among them.
        environment = {name: value for name, value in environment.items() if name in dict(subject.image.env)}
    operating_system, architecture = subject.pins.platform.split("/")
    expected = {
        "entry point": list(subject.image.entrypoint) or None,
        "command": list(subject.image.command) or None,
        "user": subject.image.user,
        "folder": subject.image.workdir,
        "platform": f"{operating_system}/{architecture}",
        "environment": dict(subject.image.env),
    }
    seen = {
        "entry point": settings.get("Entrypoint"),
        "command": settings.get("Cmd") or None,
        "user": settings.get("User"),
        "folder": settings.get("WorkingDir"),
        "platform": f"{found.get('Os')}/{found.get('Architecture')}",
        "environment": environment,
    }
    wrong = differing(expected, seen)
    return (
        failed("\n".join(wrong))
        if wrong
        else passed(
            f"{' '.join(subject.image.entrypoint or subject.image.command)} as {subject.image.user}, {len(environment)} variables",
            **seen,
        )
    )


def _labels(subject: Subject) -> dict[str, str]:
    return (_config(subject).get("Config") or {}).get("Labels") or {}


def labels(subject: Subject) -> Outcome:
    """The image's labels against what the lock and the pins render to."""
    seen = _labels(subject)
    if subject.pins.base:
        # Labels of the base image stay; none of them is ours to judge.
        seen = {
            name: value for name, value in seen.items() if name in dict(subject.labels) or name.startswith("io.kiln.")
        }
    wrong = differing(dict(subject.labels), seen)
    return (
        failed("\n".join(wrong))
        if wrong
        else passed(f"{len(seen)} labels; lock {subject.lock.sha256[:16]}…", labels=dict(sorted(seen.items())))
    )


def debian(subject: Subject, doc: Document) -> Outcome:
    """The Debian packages inside against the lock's."""
    found = section(doc, "packages")
    if isinstance(found, Outcome):
        return found
    seen = dict(found["packages"])
    if not seen:
        return errored("the image lists no packages at all")
    expected = {deb.name: deb.version for deb in subject.lock.debs}
    if subject.pins.base:
        # The base image has packages of its own; those that were laid on it must be there as locked.
        wrong = differing(expected, {name: version for name, version in seen.items() if name in expected})
    else:
        wrong = differing(expected, seen)
    return (
        failed("\n".join(wrong))
        if wrong
        else passed(f"{len(seen)} packages", packages=[f"{name} {version}" for name, version in sorted(seen.items())])
    )
