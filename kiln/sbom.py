"""The SBOM of an image: what the pins and the lock say is in it, as CycloneDX 1.6. Rendered, laid into the image as it is, and compared there.

Pure, as all rendering is: its time is the stack's one time, it has no serial number, and no registry's host is named: wheels and packages
are named by purl. What is in the image and what it was only built with are told apart by ``scope``.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any
from urllib.parse import quote

from packaging.utils import canonicalize_name

from kiln.canonical import tree_digest
from kiln.image import Image
from kiln.lockentries import Archive, Deb, Git, Wheel
from kiln.lockfile import TOOLS, Lock
from kiln.pins import ComponentPins, Pins
from kiln.workspace import Workspace

FILE = "sbom.cdx.json"
# Names of properties: which of the stack's components something belongs to, and what CycloneDX has no word for.
COMPONENT, REF, TREE, FOLDER, UNRESOLVED = (
    f"io.kiln:{name}" for name in ("component", "ref", "tree", "folder", "unresolved")
)
# What the references of entries begin with. The distributions that Python finds in the image are those of the first three.
WHEEL, BUILT, PLUGIN, DEB, SOURCE, ARCHIVE, BASE = "wheel", "built", "plugin", "deb", "source", "archive", "base"
DISTRIBUTIONS = (WHEEL, BUILT, PLUGIN)

_Entry = dict[str, Any]


def sbom(
    workspace: Workspace,
    pins: Pins,
    lock: Lock,
    image: Image,
    units: Iterable[str],
    held: Iterable[str],
    labels: Sequence[tuple[str, str]],
) -> str:
    """The SBOM as the text of its file.

    ``units`` are the components that the image or one that it stands on was built from, ``held`` those of them that it holds; ``labels`` are
    the image's own, which the SBOM repeats, so that whoever has one of the two can tell whether it is the other's.
    """
    parts = _Parts(workspace, pins, lock, frozenset(held))
    entries = parts.entries(units)
    document: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(pins.epoch, UTC).isoformat().replace("+00:00", "Z"),
            # Not which version of it: that decides nothing here, and would be another layer with every version.
            "tools": {"components": [{"type": "application", "name": "kiln"}]},
            "component": {
                "type": "container",
                "bom-ref": "image",
                "name": image.name,
                "description": image.about,
                "properties": [
                    *(_property(name, value) for name, value in labels if name.startswith("io.kiln.")),
                    *(_property(UNRESOLVED, " ".join(one.label.split())) for one in lock.unresolved),
                ],
            },
        },
        "components": entries,
        "dependencies": _dependencies(entries),
    }
    if pins.base:
        # What is in the base image beside what we lay on it, its maker alone can say.
        document["compositions"] = [{"aggregate": "unknown", "assemblies": [BASE]}]
    return _text(document)


def _text(document: dict[str, Any]) -> str:
    """The document with every entry on a line of its own: what a bump changes are the lines of what was bumped."""
    parts = []
    for key, value in document.items():
        if isinstance(value, list):
            shown = "[\n" + ",\n".join(json.dumps(one, ensure_ascii=False) for one in value) + "\n]"
        else:
            shown = json.dumps(value, ensure_ascii=False)
        parts.append(f'"{key}": {shown}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


@dataclass(frozen=True)
class _Parts:
    """Where the entries come from."""

    workspace: Workspace
    pins: Pins
    lock: Lock
    held: frozenset[str]

    def entries(self, units: Iterable[str]) -> list[_Entry]:
        """Every entry, by its reference."""
        found: list[_Entry] = [self._deb(deb) for deb in self.lock.debs]
        found += self._base()
        for name in dict.fromkeys((*units, TOOLS)):
            found += [self._wheel(wheel) for wheel in self.lock.wheels_of(name)]
            if component := self.pins.by_name.get(name):
                found += self._sources(component)
        return sorted(found, key=lambda entry: str(entry["bom-ref"]))

    @cached_property
    def _distro(self) -> str:
        return self.pins.packages.distribution

    def _deb(self, deb: Deb) -> _Entry:
        qualifiers = {"arch": deb.architecture, "distro": self.pins.packages.suite}
        return _entry(
            "library",
            f"{DEB}/{deb.name}",
            deb.name,
            deb.version,
            purl=purl("deb", self._distro, deb.name, deb.version, qualifiers),
            sha256=deb.sha256,
        )

    def _base(self) -> list[_Entry]:
        base = self.pins.base
        if base is None:
            return []
        last = base.image.rpartition("/")[2].lower()
        qualifiers = {"repository_url": base.image, "tag": base.tag}
        return [
            _entry(
                "container",
                BASE,
                base.image,
                base.tag,
                purl=purl("oci", "", last, base.digest, qualifiers) if base.digest else "",
                sha256=base.digest.removeprefix("sha256:"),
            )
        ]

    def _wheel(self, wheel: Wheel) -> _Entry:
        return _entry(
            "library",
            f"{WHEEL}/{wheel.component}/{wheel.name}",
            wheel.name,
            wheel.version,
            purl=purl("pypi", "", str(canonicalize_name(wheel.name)), wheel.version),
            sha256=wheel.sha256,
            properties=[(COMPONENT, wheel.component)],
            # The build tools, and wheels that only other components were built with.
            scope="required" if wheel.component in self.held else "excluded",
        )

    def _sources(self, component: ComponentPins) -> list[_Entry]:
        """What of a component is built: its source with all that belongs to it, and the distributions that are made of it."""
        found = [self._plugin(component.name, folder) for folder in component.sources]
        git = self.lock.git_of.get(component.name)
        if component.git:
            found += self._git(component, git)
            found += [self._archive(archive) for archive in self.lock.archives_of(component.name)]
        for number, name in enumerate(component.provides):
            # The build is told a version, or the pins say which; of what else it makes the version is known when it is made.
            version = component.version if number == 0 else ""
            found.append(
                _entry(
                    "library",
                    f"{BUILT}/{component.name}/{name}",
                    name,
                    version,
                    purl=purl("pypi", "", name, version, {"vcs_url": f"git+{git.url}@{git.commit}"})
                    if git and version
                    else "",
                    properties=[(COMPONENT, component.name)],
                )
            )
        return found

    def _plugin(self, component: str, folder: str) -> _Entry:
        """A distribution that is built from a folder of this project. It has no purl: no registry has it."""
        path = self.workspace.root / folder
        project = tomllib.loads((path / "pyproject.toml").read_text(encoding="utf-8")).get("project", {})
        name = str(canonicalize_name(project["name"]))
        properties = [(COMPONENT, component), (FOLDER, folder), (TREE, f"sha256:{tree_digest(path)}")]
        return _entry(
            "library", f"{PLUGIN}/{component}/{name}", name, str(project.get("version", "")), properties=properties
        )

    def _git(self, component: ComponentPins, git: Git | None) -> list[_Entry]:
        name = component.name
        if git is None:
            properties = [(COMPONENT, name), (REF, component.ref), (UNRESOLVED, "true")]
            return [_entry("library", f"{SOURCE}/{name}", name, "", vcs=component.git, properties=properties)]
        source = _entry(
            "library",
            f"{SOURCE}/{name}",
            name,
            git.commit,
            purl=git_purl(git.url, git.commit),
            vcs=git.url,
            properties=[(COMPONENT, name), (REF, git.ref), (TREE, f"git:{git.tree}")],
        )
        if git.picks:
            picked = [pick.rpartition("@") for pick in git.picks]
            source["pedigree"] = {"commits": [{"uid": commit, "url": url} for url, _, commit in picked]}
        return [source] + [
            _entry(
                "library",
                f"{SOURCE}/{name}/{submodule.path}",
                submodule.path.rpartition("/")[2],
                submodule.commit,
                purl=git_purl(submodule.url, submodule.commit),
                vcs=submodule.url,
                properties=[(COMPONENT, name), (FOLDER, submodule.path)],
            )
            for submodule in git.submodules
        ]

    def _archive(self, archive: Archive) -> _Entry:
        qualifiers = {"checksum": f"sha256:{archive.sha256}", "download_url": archive.url}
        return _entry(
            "file",
            f"{ARCHIVE}/{archive.component}/{archive.name}",
            archive.file,
            "",
            purl=purl("generic", "", archive.name, "", qualifiers),
            sha256=archive.sha256,
            properties=[(COMPONENT, archive.component)],
        )


def _entry(
    kind: str,
    reference: str,
    name: str,
    version: str,
    *,
    purl: str = "",
    sha256: str = "",
    vcs: str = "",
    properties: Sequence[tuple[str, str]] = (),
    scope: str = "required",
) -> _Entry:
    """One component of CycloneDX; what is empty is left out."""
    entry: _Entry = {"type": kind, "bom-ref": reference, "name": name}
    if version:
        entry["version"] = version
    if scope != "required":
        entry["scope"] = scope
    if sha256:
        entry["hashes"] = [{"alg": "SHA-256", "content": sha256}]
    if purl:
        entry["purl"] = purl
    if vcs:
        entry["externalReferences"] = [{"type": "vcs", "url": vcs}]
    if properties:
        entry["properties"] = [_property(*one) for one in properties]
    return entry


def _property(name: str, value: str) -> dict[str, str]:
    return {"name": name, "value": value}


def _dependencies(entries: Sequence[_Entry]) -> list[dict[str, Any]]:
    """What hangs on what: the image on all that is in it, what is built on its source, a source on what belongs to it."""
    references = {str(entry["bom-ref"]): None for entry in entries}
    inside = [str(entry["bom-ref"]) for entry in entries if entry.get("scope") != "excluded"]
    own = [one for one in inside if not one.startswith((f"{SOURCE}/", f"{ARCHIVE}/"))]
    found = {"image": own}
    # What belongs to each source, by its component.
    parts: dict[str, list[str]] = {}
    for reference in references:
        kind, _, rest = reference.partition("/")
        if kind in (SOURCE, ARCHIVE) and "/" in rest:
            parts.setdefault(rest.partition("/")[0], []).append(reference)
    for reference in references:
        kind, _, rest = reference.partition("/")
        component = rest.partition("/")[0]
        if kind == BUILT:
            below = [f"{SOURCE}/{component}"]
        elif kind == SOURCE and rest == component:
            below = parts.get(component, [])
        else:
            continue
        if known := [one for one in below if one in references]:
            found[reference] = known
    # A source that nothing is built of by name (CPython, kernels that vLLM takes in) is in the image as a whole.
    reached = {one for below in found.values() for one in below}
    found["image"] = sorted({*own, *(one for one in inside if one not in reached)})
    return [{"ref": reference, "dependsOn": below} for reference, below in sorted(found.items())]


def purl(kind: str, namespace: str, name: str, version: str, qualifiers: dict[str, str] | None = None) -> str:
    """A package URL in its canonical spelling."""
    words = [_quoted(word) for word in (*namespace.split("/"), name) if word]
    text = f"pkg:{kind}/{'/'.join(words)}" + (f"@{_quoted(version)}" if version else "")
    pairs = [f"{key}={_quoted(value, '/')}" for key, value in sorted((qualifiers or {}).items()) if value]
    return text + (f"?{'&'.join(pairs)}" if pairs else "")


def _quoted(text: str, also: str = "") -> str:
    return quote(text, safe=f":{also}")


def git_purl(url: str, commit: str) -> str:
    """A commit of a repository as a package URL: GitHub's own kind where it is there, else the general one with the address."""
    address = url.removesuffix(".git").removesuffix("/")
    host, _, path = address.partition("://")[2].partition("/")
    owner, _, name = path.rpartition("/")
    if host == "github.com" and owner and "/" not in owner:
        return purl("github", owner.lower(), name.lower(), commit)
    return purl("generic", "", address.rpartition("/")[2], commit, {"vcs_url": f"git+{url}@{commit}"})
