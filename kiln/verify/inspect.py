"""Judging what ``scripts/inspect_image.py`` saw in an image: what is installed, the files, the switch, and what the image says of itself.

Pure functions of its document, an Outcome each. Libraries are judged in ``kiln.verify.symbols``, calls in ``kiln.verify.signatures``.
A section that is not there, or could not look, is an error and no pass.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from kiln.lockfile import Lock
from kiln.verify.checks import Outcome, differing, errored, failed, passed, skipped

Document = Mapping[str, Any]

LABEL = "io.kiln"
PLUGIN = "kiln-vllm-mhc-switch"
SHOWN = 20


def section(doc: Document, name: str) -> dict[str, Any] | Outcome:
    """One section of the document, or the outcome where there is nothing in it to judge."""
    found = doc.get(name)
    if not isinstance(found, dict):
        return errored(f"the image was not asked about {name}: run scripts/inspect_image.py without --only")
    if found.get("looked"):
        return found
    why = str(found.get("why") or "it does not say why")
    return skipped(why) if found.get("nothing") else errored(f"could not look at {name}: {why}")


def listed(lines: Iterable[str], fix: str, total: int = 0) -> str:
    """Problems, one a line, cut where nobody would read on, and what to do about them."""
    every = list(lines)
    more = max(total, len(every)) - SHOWN
    return "\n".join([*every[:SHOWN], *([f"and {more} more"] if more > 0 else []), fix])


def is_rehearsal(doc: Document) -> bool:
    """Whether the image says that it was made of stand-ins."""
    return _own(doc).get("rehearsal") is True


def is_rocm(doc: Document) -> bool:
    """Whether the image says that it stands on a ROCm base image."""
    return bool((_own(doc).get("base") or {}).get("rocm"))


def _own(doc: Document) -> dict[str, Any]:
    app = doc.get("app")
    found = app.get("provenance") if isinstance(app, dict) else None
    return found if isinstance(found, dict) else {}


def distributions(doc: Document, expected: Mapping[str, str], built: Collection[str] = ()) -> Outcome:
    """The distributions are ``expected`` (versions by name) and those that were ``built`` from source, each file as its RECORD says."""
    found = section(doc, "distributions")
    if isinstance(found, Outcome):
        return found
    own = [one for one in found["distributions"] if not one["debian"]]
    if not own:
        return errored("the image lists no distributions at all")
    seen = {one["name"]: one["version"] for one in own}
    wrong = [
        f"{name}: installed more than once"
        for name, count in sorted(Counter(one["name"] for one in own).items())
        if count > 1
    ]
    wrong += [f"{name}: built from source, is missing" for name in sorted(built) if name not in seen]
    wrong += differing(dict(expected), {name: version for name, version in seen.items() if name not in built})
    wrong += [
        f"{one['name']}: is installed editable, from {one['direct_url']}; build a wheel of it"
        for one in own
        if one["editable"]
    ]
    wrong += [f"{one['file']} of {one['distribution']}: {one['problem']}" for one in found["problems"]]
    wrong += [f"{path}: no distribution's RECORD names it" for path in found["unowned"]]
    if wrong:
        total = (
            len(wrong)
            - len(found["problems"])
            - len(found["unowned"])
            + found["problem_count"]
            + found["unowned_count"]
        )
        fix = "Files must come from the locked wheels alone: remove the step that writes or changes them after they were installed."
        return failed(listed(wrong, fix, total), problems=wrong)
    return passed(
        f"{len(own)} distributions, {found['files']} files as their RECORDs say, no other beside them",
        distributions=[f"{name} {version}" for name, version in sorted(seen.items())],
        files=found["files"],
        commits={one["name"]: one["commit"] for one in own if one["commit"]},
    )


def requirements(doc: Document, left_out: Mapping[str, str] | None = None) -> Outcome:
    """Every requirement of every distribution is met. ``left_out`` are the names that the pins leave out, each with the reason."""
    found = section(doc, "requirements")
    if isinstance(found, Outcome):
        return found
    known = {str(canonicalize_name(name)): reason for name, reason in (left_out or {}).items()}
    waived: list[str] = []
    wrong: list[str] = []
    for one in found["problems"]:
        reason = known.get(_required(one["needs"]), "") if one["problem"] == "is not installed" else ""
        extra = f"[{one['extra']}]" if one["extra"] else ""
        line = f"{one['distribution']}{extra} needs {one['needs']}: {one['problem']}"
        (waived if reason else wrong).append(f"{line} ({reason})" if reason else line)
    if wrong or found["problem_count"] > len(found["problems"]):
        fix = "Lock the stack again (kiln lock), or say in the component's [without] why it is left out."
        return failed(listed(wrong, fix, found["problem_count"] - len(waived)), problems=wrong, left_out=waived)
    if not (doc.get("distributions") or {}).get("distributions"):
        return errored("the image lists no distributions at all, so no requirement was read")
    tail = f", {len(waived)} left out by the pins" if waived else ""
    return passed(
        f"{found['judged'] - len(waived)} requirements are met{tail}", left_out=waived, judged_with=found["rules"]
    )


def _required(text: str) -> str:
    try:
        return canonicalize_name(Requirement(text).name)
    except InvalidRequirement:
        return ""


def files(doc: Document, allowed: Mapping[str, str] | None = None) -> Outcome:
    """No file has rights, secrets or settings that an image must not carry. ``allowed``: patterns of paths and variables, with reasons."""
    found = section(doc, "files")
    if isinstance(found, Outcome):
        return found
    judged = _Files(allowed or {})
    judged.look(found)
    evidence = {
        "setuid": [f"{one['path']} {one['mode']} {one['package'] or 'of no package'}" for one in found["setuid"]],
        "allowed": judged.allowed,
    }
    unseen = [
        f"{one['path']}: could not look: {one['why']}" for one in found["unseen"] if not judged.knows(one["path"])
    ]
    if judged.lines:
        return failed(
            listed([*judged.lines, *unseen], "The recipe or the base image brings it."),
            problems=judged.lines,
            unseen=unseen,
            **evidence,
        )
    if unseen:
        return errored(
            listed(unseen, "Look as root, with no file system mounted over a folder of the image."),
            unseen=unseen,
            **evidence,
        )
    return passed(
        f"{found['files']} files; setuid: {len(found['setuid'])}, all of Debian packages"
        if found["setuid"]
        else f"{found['files']} files",
        **evidence,
    )


_FILES = {
    "world_writable": "everybody may write it; take that right away, or give a folder its sticky bit",
    "certificates": "is an authority that no Debian package brought; such belong to the machine that runs the image",
    "left_over": "is left over from the build; remove it in the step that makes it",
    "variables": "is a variable of the first process: a proxy or a credential; take it out of the image or the engine",
}


class _Files:
    """What is wrong with files so far, and what was let pass with which reason."""

    def __init__(self, known: Mapping[str, str]) -> None:
        self._known = known
        self.lines: list[str] = []
        self.allowed: list[str] = []

    def look(self, found: Mapping[str, Any]) -> None:
        """Judge all that was found."""
        for one in found["setuid"]:
            # What a package of the distribution brings is the distribution's decision; it is listed for whoever wants to know.
            if not one["package"]:
                self.wrong(
                    one["path"], f"has the mode {one['mode']} and is of no Debian package; take its setuid bit away"
                )
        for one in found["secrets"]:
            self.wrong(one["path"], f"looks like a secret ({one['kind']}); keep it out of the build, and exchange it")
        for one in found["proxies"]:
            self.wrong(one["path"], f"sets {one['name']}, which is the building machine's affair; remove it")
        for key, what in _FILES.items():
            for path in found[key]:
                self.wrong(path, what)

    def knows(self, path: str) -> str:
        """The reason why a path is let pass, if it is."""
        return next((reason for pattern, reason in self._known.items() if fnmatchcase(path, pattern)), "")

    def wrong(self, path: str, what: str) -> None:
        """Note a problem, unless it is allowed."""
        if reason := self.knows(path):
            self.allowed.append(f"{path}: {reason}")
        else:
            self.lines.append(f"{path}: {what}")


def switch(doc: Document, *, needed: bool) -> Outcome:
    """Something in the image knows the variable that chooses the mHC path, and acts on it: vLLM itself, or the plugin, which must know the sources
    that it hooks on the image's platform."""
    found = section(doc, "switch")
    if isinstance(found, Outcome):
        return found
    variable, envs = found["variable"], f"{found['vllm']}/envs.py"
    plugins = [one for one in found["plugins"] if one["distribution"] == PLUGIN]
    evidence = {
        "in_vllm": found["in_vllm"],
        "readers": found["readers"],
        "plugins": [one["target"] for one in found["plugins"]],
    }
    gone = [
        f"{one['target']} of {PLUGIN} is not in the image; install the plugin anew"
        for one in plugins
        if not one["there"]
    ]
    platform = "rocm" if is_rocm(doc) else "cpu"
    unknown = [
        f"{PLUGIN} does not hold with this vLLM: {one['broken'][platform]}"
        for one in plugins
        if one["broken"][platform]
    ]
    # On ROCm the plugin leaves a vLLM alone that has the switch itself; a rehearsal's vLLM has no sources.
    if platform == "rocm" and (found["in_vllm"] or (is_rehearsal(doc) and not found["envs"])):
        unknown = []
    if gone or unknown:
        return failed("\n".join(gone + unknown), **evidence)
    if found["in_vllm"]:
        if not found["readers"]:
            return failed(f"{envs} defines {variable}, and no model code of this vLLM asks for it", **evidence)
        return passed(f"{envs} defines {variable}; {', '.join(found['readers'])} asks for it", **evidence)
    if plugins and not (is_rehearsal(doc) and not found["envs"]):
        return passed(f"{PLUGIN} is installed and knows this vLLM: {plugins[0]['target']}", **evidence)
    if not needed:
        return skipped(f"nothing in the image knows {variable}, and no setting of it needs that", **evidence)
    if not found["envs"] and is_rehearsal(doc):
        return skipped("a rehearsal: the stand-in for vLLM has no envs.py", **evidence)
    if not found["envs"]:
        return errored(f"{envs} is not there, so whether vLLM knows {variable} cannot be said", **evidence)
    lacking = f"{PLUGIN} is not installed: pin a vLLM that has the switch, or add the plugin"
    return failed(f"{envs} does not define {variable}, and {lacking}", **evidence)


def provenance(doc: Document, lock: Lock, labels: Mapping[str, str]) -> Outcome:
    """What the image says of itself (/app/provenance.json, /app/versions.txt) is what the lock says and what the labels say.

    Commits are compared, not versions: a tag that moved keeps its version.
    """
    found = section(doc, "app")
    if isinstance(found, Outcome):
        return found
    if found["trouble"]:
        return failed(f"/app/provenance.json or /app/versions.txt cannot be read: {found['trouble']}")
    said = found["provenance"]
    if said is None:
        return failed("/app/provenance.json is missing: the recipe's last step (scripts/write_versions.py) did not run")
    wrong: list[str] = []
    if said.get("lock_sha256") != lock.sha256:
        wrong.append(f"lock_sha256 of /app/provenance.json: expected {lock.sha256}, found {said.get('lock_sha256')}")
    rehearsal = labels.get(f"{LABEL}.rehearsal") == "true"
    if (said.get("rehearsal") is True) != rehearsal:
        wrong.append(f"rehearsal of /app/provenance.json: {said.get('rehearsal')}, but the labels say {rehearsal}")
    components = said.get("components") or {}
    for name, entry in sorted(components.items()):
        wrong += _component(name, entry, lock)
    wrong += _labelled(components, labels)
    wrong += _versions(components, found["versions"])
    wrong += _wheels(components, doc)
    commits = {name: entry["commit"] for name, entry in sorted(components.items()) if entry.get("commit")}
    if wrong:
        fix = (
            "The image was not built from this lock: build it again (kiln build), or verify it with the lock it names."
        )
        return failed(listed(wrong, fix), commits=commits)
    said_of = {name: entry.get("version") for name, entry in sorted(components.items())}
    return passed(
        f"{len(said_of)} components, {len(commits)} commits are those of the lock {lock.sha256[:16]}…",
        commits=commits,
        versions=said_of,
    )


def _component(name: str, entry: Mapping[str, Any], lock: Lock) -> list[str]:
    """A component's source against the lock's."""
    git = lock.git_of.get(name)
    if git is None:
        return [f"{name}: commit {entry['commit']} is of no source in the lock"] if entry.get("commit") else []
    expected = {
        "commit": git.commit,
        "tree": git.tree,
        "picks": list(git.picks),
        "submodules": {submodule.path: submodule.commit for submodule in git.submodules},
    }
    seen = {key: entry.get(key) for key in expected}
    return [f"{name}: {line}" for line in differing(expected, seen)]


def _labelled(components: Mapping[str, Any], labels: Mapping[str, str]) -> list[str]:
    """The labels name the same components, in the same versions and (where they are built from a repository) at the same commits."""
    wrong = []
    for key, pattern in (("version", r"([^.]+)"), ("commit", r"([^.]+)\.commit")):
        found = ((re.fullmatch(rf"{re.escape(LABEL)}\.component\.{pattern}", one), labels[one]) for one in labels)
        marked = {match[1]: value for match, value in found if match}
        seen = {name: entry[key] for name, entry in components.items() if entry.get(key)}
        wrong += [f"the label of {line}" for line in differing(seen, marked)]
    return wrong


def _versions(components: Mapping[str, Any], versions: Mapping[str, str] | None) -> list[str]:
    """The commits in versions.txt are some component's: people grep that file, so it must not say something else."""
    if versions is None:
        return ["/app/versions.txt is missing"]
    commits = {entry.get("commit") for entry in components.values()}
    return [
        f"/app/versions.txt: {key} is {value}, which is no component's commit"
        for key, value in sorted(versions.items())
        if key.endswith("_COMMIT") and value not in commits
    ]


def _wheels(components: Mapping[str, Any], doc: Document) -> list[str]:
    """What is installed is what was built: a wheel's version in provenance.json against the distribution's."""
    found = section(doc, "distributions")
    if isinstance(found, Outcome):
        return []
    installed = {one["name"]: one["version"] for one in found["distributions"]}
    wrong = []
    for component, entry in sorted(components.items()):
        for wheel in entry.get("wheels") or []:
            name, version, *_ = parse_wheel_filename(wheel["file"])
            if installed.get(name) != str(version):
                wrong.append(
                    f"{component}: {wheel['file']} was built, installed is {name} {installed.get(name, 'nowhere')}"
                )
    return wrong
