"""What is signed beside a published image: its SBOM, its provenance and its verification report. In: pins, lock, report; out: predicates.

Provenance is SLSA's (https://slsa.dev/provenance/v1); the SBOM is CycloneDX, the very file in the image; the report is Kiln's own document.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kiln import __version__
from kiln.canonical import canonical_json
from kiln.engine import Engine
from kiln.errors import AttestationError, ReleaseRecordError
from kiln.lockfile import Lock
from kiln.pins import Pins
from kiln.records import Built
from kiln.registryclient import digest_of_bytes
from kiln.releases import Checked, Release
from kiln.render import LABEL, Rendered

# cosign's words for what it knows, and an address of ours for what it does not.
SBOM, PROVENANCE, REPORT = "cyclonedx", "slsaprovenance1", "urn:io.kiln:verification-report:v1"
BUILD_TYPE, BUILDER = "urn:io.kiln:build:v1", "urn:io.kiln:builder"


def provenance(pins: Pins, lock: Lock, rendered: Rendered, built: Built, engine: Engine) -> dict[str, Any]:
    """How an image came to be, as SLSA's predicate: what was asked for, the build keys, every input that has a digest, and who built.

    ``engine`` is the one that holds the image; a build that came out of the component cache was made by another, and says so.
    """
    levels = {
        name.removeprefix(f"{LABEL}.component.").removesuffix(".reproducible"): level
        for name, level in rendered.labels
        if name.startswith(f"{LABEL}.component.") and name.endswith(".reproducible")
    }
    return {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {
                "stack": pins.stack,
                "image": rendered.image.name,
                "platform": pins.platform,
                "overrides": dict(pins.overrides),
                "allowedAdvisories": list(pins.allowed),
            },
            "internalParameters": {
                "key": rendered.key,
                "componentKeys": dict(built.keys),
                "reproducible": levels,
                "sourceDateEpoch": pins.epoch,
                "fromCache": sorted(built.restored),
            },
            "resolvedDependencies": _inputs(pins, lock),
        },
        "runDetails": {
            "builder": {"id": BUILDER, "version": {"kiln": __version__, "docker": engine.version}},
            "metadata": {"invocationId": rendered.key},
        },
    }


def _inputs(pins: Pins, lock: Lock) -> list[dict[str, Any]]:
    """The lock and the pins, the base image, and every commit; wheels and packages stand in the SBOM, with their hashes."""
    found: list[dict[str, Any]] = [
        {"name": f"pins/{pins.stack}.lock.toml", "digest": {"sha256": lock.sha256}},
        {"name": f"pins/{pins.stack}.toml", "digest": {"sha256": pins.sha256}},
    ]
    found += [
        {"name": image.reference, "digest": {"sha256": image.digest.removeprefix("sha256:")}} for image in lock.images
    ]
    found += [{"name": git.component, "uri": git.url, "digest": {"gitCommit": git.commit}} for git in lock.gits]
    return found


def released(
    rendered: Rendered,
    pins: Pins,
    lock: Lock,
    built: Built,
    report: Mapping[str, Any],
    repository: str,
    tag: str,
    date: str,
) -> Release:
    """The entry of the record for an image and what is signed beside it."""
    held = [unit for unit in rendered.units if unit.name in rendered.image.components]
    return Release(
        rendered.image.name,
        built.digest,
        repository,
        tag,
        date,
        rendered.key,
        lock.sha256,
        report_digest(report),
        sum({layer.digest: layer.size for layer in built.layers}.values()) + built.described,
        checked(report),
        {unit.name: unit.version for unit in held},
        dict(pins.overrides),
        pins.allowed,
    )


def report_digest(report: Any) -> str:
    """The sha256 of a report's content, however it is laid out."""
    return digest_of_bytes(canonical_json(_plain(report))).removeprefix("sha256:")


def _plain(found: Any) -> Any:
    """The same with whole numbers written in one way: what passes through cosign comes back with 1 in place of 1.0."""
    if isinstance(found, dict):
        return {key: _plain(value) for key, value in found.items()}
    if isinstance(found, list):
        return [_plain(value) for value in found]
    return int(found) if isinstance(found, float) and found.is_integer() else found


def checked(report: Mapping[str, Any]) -> Checked:
    """A report in short."""
    summary = report["summary"]
    gpus = report["environment"]["gpu"]
    hardware = ", ".join(f"{gpus.count(arch)} x {arch}" for arch in sorted(set(gpus))) if gpus else "a processor"
    return Checked(
        summary["pass"], summary["fail"], summary["error"], summary["skip"], report["scope"]["level"], hardware
    )


def compare(
    place: str, digest: str, sbom: Any, made: Any, report: Any, labels: Mapping[str, str], release: Release | None
) -> dict[str, Any]:
    """What the three signed statements say of an image, where they agree with each other, with its labels and with the record; for a person to read.

    Raises AttestationError where the statements do not fit the image, ReleaseRecordError where the record says something else.
    """
    try:
        inputs = {one["name"]: one["digest"] for one in made["buildDefinition"]["resolvedDependencies"]}
        asked = made["buildDefinition"]["externalParameters"]
        said = {
            "stack": asked["stack"],
            "image": asked["image"],
            "lock": inputs[f"pins/{asked['stack']}.lock.toml"]["sha256"],
            "key": made["buildDefinition"]["internalParameters"]["key"],
            "overrides": dict(asked["overrides"]),
            "allowed": list(asked["allowedAdvisories"]),
            "builder": made["runDetails"]["builder"]["version"],
        }
        of_report = (report["subject"]["manifest_digest"], report["lock"]["sha256"], report["stack"])
        short = checked(report)
        repeated = {one["name"]: one["value"] for one in sbom["metadata"]["component"]["properties"]}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AttestationError(f"what is signed beside {place} is not what kiln signs", why=repr(error)) from error
    for what, found, expected in (
        ("the report's image", of_report[0], digest),
        ("the report's lock", of_report[1], said["lock"]),
        ("the report's stack", of_report[2], said["stack"]),
        ("the image's own lock", labels.get(f"{LABEL}.lock.sha256"), said["lock"]),
        ("the image's own stack", labels.get(f"{LABEL}.stack"), said["stack"]),
        ("the SBOM's lock", repeated.get(f"{LABEL}.lock.sha256"), said["lock"]),
        ("the SBOM's image", sbom["metadata"]["component"].get("name"), said["image"]),
    ):
        if found != expected:
            raise AttestationError(
                f"what is signed beside {place} does not fit together",
                why=f"{what}: {found}\nthe provenance: {expected}",
            )
    if release:
        for name, recorded, signed in (
            ("digest", release.digest, digest),
            ("image", release.image, said["image"]),
            ("lock", release.lock, said["lock"]),
            ("key", release.key, said["key"]),
            ("report", release.report, report_digest(report)),
            ("checked", release.checked, short),
            ("overrides", dict(release.overrides), said["overrides"]),
            ("allowed", list(release.allowed), said["allowed"]),
        ):
            if recorded != signed:
                raise ReleaseRecordError(
                    f"the record of releases says something else of {place} than what was signed",
                    why=f"{name}: recorded {recorded}\n{' ' * len(name)}  signed   {signed}",
                    fix="restore the file from git; if it is committed so, somebody changed it by hand",
                )
    return {**said, "checked": short}


def text_of(predicate: Any) -> str:
    """A predicate as the text of a file."""
    return json.dumps(predicate, indent=1, ensure_ascii=False) + "\n"
