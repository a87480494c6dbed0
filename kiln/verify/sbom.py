"""Judging the SBOM in an image: it is the one that was rendered, and what it lists is what is found there, in the labels and in versions.txt."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from kiln import sbom
from kiln.verify.checks import Outcome, differing, failed, passed
from kiln.verify.inspect import LABEL, Document, listed, section

PLACE = f"/app/{sbom.FILE}"
_FIX = "Build the image again (kiln build); what is laid on it afterwards, its SBOM does not know."


def materials(doc: Document, rendered: str, labels: Mapping[str, str], *, on_a_base: bool) -> Outcome:
    """The SBOM in the image against ``rendered``, against what was found beside it, and against the image's own labels.

    ``on_a_base``: packages that the SBOM does not list are the base image's, which alone knows them.
    """
    found = section(doc, "app")
    packages, distributions = section(doc, "packages"), section(doc, "distributions")
    for one in (found, packages, distributions):
        if isinstance(one, Outcome):
            return one
    assert isinstance(found, dict)
    assert isinstance(packages, dict)
    assert isinstance(distributions, dict)
    text = found.get("sbom")
    if text is None:
        return failed(f"{PLACE} is missing\n{_FIX}")
    try:
        seen = _Listed(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return failed(f"{PLACE} is no SBOM as kiln writes it: {type(error).__name__}: {error}"[:500])
    wrong = _as_rendered(text, rendered)
    wrong += _distributions(seen, distributions["distributions"])
    wrong += _packages(seen, dict(packages["packages"]), on_a_base=on_a_base)
    wrong += _labels(seen, labels)
    wrong += ["/app/versions.txt is missing"] if found["versions"] is None else _versions(seen, found["versions"])
    counts = {kind: len(seen.of(kind)) for kind in (sbom.WHEEL, sbom.BUILT, sbom.PLUGIN, sbom.DEB, sbom.SOURCE)}
    if wrong:
        return failed(listed(wrong, _FIX), problems=wrong, listed=counts)
    total = sum(len(seen.of(kind)) for kind in sbom.DISTRIBUTIONS)
    return passed(
        f"{total} distributions, {len(seen.of(sbom.DEB))} packages and {len(seen.of(sbom.SOURCE))} sources are listed, and are there",
        listed=counts,
    )


class _Listed:
    """What an SBOM lists of the image itself. Raises KeyError, TypeError or AttributeError where it is not shaped as Kiln's are."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.image: dict[str, Any] = document["metadata"]["component"]
        self.said = {one["name"]: one["value"] for one in self.image["properties"]}
        self._entries = {
            str(one["bom-ref"]): one for one in document["components"] if one.get("scope", "required") != "excluded"
        }

    def of(self, kind: str) -> dict[str, dict[str, Any]]:
        """The entries of a kind, by what follows it in their references."""
        begins = f"{kind}/"
        return {key.removeprefix(begins): one for key, one in self._entries.items() if key.startswith(begins)}

    @property
    def base(self) -> dict[str, Any] | None:
        """The image that this one stands on."""
        return self._entries.get(sbom.BASE)


def _as_rendered(text: str, rendered: str) -> list[str]:
    """The lines of the SBOM that are not those that were rendered: one is one entry."""
    if text == rendered:
        return []
    here, there = text.splitlines(), rendered.splitlines()
    return [
        f"{PLACE} is not the rendered one to the byte",
        *(f"  {_short(line)} is not in the rendered one" for line in _without(here, there) if line),
        *(f"  {_short(line)} is missing" for line in _without(there, here)),
    ]


def _without(lines: Iterable[str], others: Iterable[str]) -> list[str]:
    known = {line.rstrip(",") for line in others}
    return [line for line in lines if line.rstrip(",") not in known]


def _short(line: str) -> str:
    return line if len(line) <= 160 else line[:159] + "…"


def _distributions(seen: _Listed, found: list[dict[str, Any]]) -> list[str]:
    here = {one["name"]: str(one["version"]) for one in found if not one["debian"]}
    said: dict[str, str] = {}
    twice: list[str] = []
    for kind in sbom.DISTRIBUTIONS:
        for one in seen.of(kind).values():
            name = str(one["name"])
            if name in said:
                twice.append(f"{PLACE} lists the distribution {name} twice")
            # A version that is known only when it is built: its name alone is listed.
            said[name] = str(one.get("version") or here.get(name, ""))
    return [*twice, *(f"distribution {line}" for line in differing(said, here))]


def _packages(seen: _Listed, found: dict[str, str], *, on_a_base: bool) -> list[str]:
    said = {str(one["name"]): str(one["version"]) for one in seen.of(sbom.DEB).values()}
    if on_a_base:
        found = {name: version for name, version in found.items() if name in said}
    return [f"package {line}" for line in differing(said, found)]


def _labels(seen: _Listed, labels: Mapping[str, str]) -> list[str]:
    """The labels are repeated in the SBOM, and its sources and base image are those that they name."""
    own = {key: value for key, value in labels.items() if key.startswith(f"{LABEL}.")}
    said = {key: value for key, value in seen.said.items() if key.startswith(f"{LABEL}.")}
    wrong = [f"label {line}" for line in differing(said, own)]
    sources = {name: one.get("version", "") for name, one in seen.of(sbom.SOURCE).items() if "/" not in name}
    for key, commit in own.items():
        name = key.removeprefix(f"{LABEL}.component.").removesuffix(".commit")
        if key.endswith(".commit") and sources.get(name) != commit:
            wrong.append(f"label {key}: {commit}, and the SBOM has {name} at {sources.get(name) or 'no commit'}")
    if seen.image["name"] != labels.get("org.opencontainers.image.title"):
        wrong.append(f"the SBOM is of {seen.image['name']!r}, by its label the image is another")
    base = _digest(seen.base)
    labelled = labels.get("org.opencontainers.image.base.digest", "") if seen.base else ""
    if base != labelled:
        wrong.append(f"the base image is {base or 'none'} in the SBOM and {labelled or 'none'} in the label")
    return wrong


def _digest(base: Mapping[str, Any] | None) -> str:
    hashes = (base or {}).get("hashes") or []
    return f"sha256:{hashes[0]['content']}" if hashes else ""


def _versions(seen: _Listed, versions: Mapping[str, str]) -> list[str]:
    """What versions.txt says is listed: a commit with its repository, a version of a wheel, the base image."""
    sources = {(one["externalReferences"][0]["url"], one.get("version")) for one in seen.of(sbom.SOURCE).values()}
    known = {value for key, value in seen.said.items() if key.startswith(f"{LABEL}.component.")}
    wrong = []
    for key, value in sorted(versions.items()):
        pair = (versions.get(f"{key.removesuffix('_COMMIT')}_REPO"), value)
        if key.endswith("_COMMIT") and pair not in sources:
            wrong.append(f"/app/versions.txt: {key} is {value} of {pair[0]}, which the SBOM does not list")
        elif key.endswith("_VERSION") and value not in known:
            wrong.append(f"/app/versions.txt: {key} is {value}, which is no component's version in the SBOM")
    digest, said = _digest(seen.base), versions.get("BASE_IMAGE", "")
    if said.partition("@")[2] != digest:
        wrong.append(
            f"/app/versions.txt: the base image is {said or 'not named'}, and {digest or 'there is none'} in the SBOM"
        )
    return wrong
