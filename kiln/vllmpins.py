"""What a vLLM revision's own files pin: the ARGs and recipe lines of its Dockerfiles, its requirements. In: the files. Out: values, each with its place.

Nothing has a default here. Where a file, an ARG or a line is not where it is expected, that is an error which names it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from kiln.dockerfile import Dockerfile, Instruction, Stage, Value, evaluated, parse_dockerfile, words
from kiln.errors import ResolveError, UnknownLayoutError
from kiln.requirements import holds, requirement_lines
from kiln.vllmfiles import KERNELS_FILE, Read

# vLLM has had its ROCm 7.2 images under the second name since the first became ROCm 10 from wheels.
BASE_FILES = ("docker/Dockerfile.rocm_base", "docker/Dockerfile.rocm_72_base")
# The ARG that only the layout has in which PyTorch comes as wheels.
WHEELS_ARG = "TORCH_VERSION"
ARGS = {
    "triton": "TRITON",
    "torch": "PYTORCH",
    "torchvision": "PYTORCH_VISION",
    "torchaudio": "PYTORCH_AUDIO",
    "flash-attention": "FA",
    "mori": "MORI",
    "aiter": "AITER",
}
BUILD_FILE = "requirements/build/rocm.txt"
_KERNELS_DIR, _KERNELS_ARG = "TRITON_KERNELS_SRC_DIR", "ROCM_TRITON_KERNELS_COMMIT"
_PULL = re.compile(r"https://github\.com/([\w.-]+/[\w.-]+)/pull/\d+")
_CHECKOUT = re.compile(r"git\s+checkout\s+(?:-\S+\s+)*([^\s;&|]+)")
_BRANCH = re.compile(r"git\s+clone\s[^;&|]*?(?:--branch|-b)[ =]([^\s;&|]+)")
_PICK = re.compile(r"git\s+cherry-pick\s+(?:-\S+\s+)*([^\s;&|]+)")
_INSTALL = re.compile(r"apt-get\s+(?:-\S+\s+)*install\s([^;&|]*)")
_KERNELS_TAG = re.compile(r'set\s*\(\s*(?:DEFAULT_)?TRITON_KERNELS_TAG\s+"([^"]+)"')
_KERNELS_URL = re.compile(r'set\s*\(\s*TRITON_GIT\s+"(https://[^"]+)"')
_KERNELS_ROCM = re.compile(r'if\s*\(\s*VLLM_TARGET_DEVICE\s+STREQUAL\s+"rocm"\s*\)')
_TARBALL = re.compile(r"https://codeload\.github\.com/([\w.-]+/[\w.-]+)/tar\.gz/([0-9a-f]{40})")
_AITER_SETTING = re.compile(r"\b(?:PREBUILD_KERNELS|AITER_[A-Z_]+|GPU_ARCHS)=\S+")
_UPGRADED = re.compile(r"pip install -U ([^;&|]*)")
QUOTES = "\"'"
_OTHER = re.compile(r"[A-Z0-9_]+_(BRANCH|COMMIT|REF|TAG)")


@dataclass(frozen=True)
class Found:
    """A value, the file and line that it stands in, and the comment behind it."""

    text: str
    where: str
    note: str = ""


@dataclass(frozen=True)
class Source:
    """A source that is built: repository, ref, and the commits (URL@COMMIT) picked on top."""

    git: Found
    ref: Found
    picks: tuple[Found, ...] = ()


@dataclass(frozen=True)
class Needed:
    """A requirement of vLLM on the image's Python, as one writes it into pins, and where it stands."""

    name: str
    text: str
    specifiers: SpecifierSet
    where: str


@dataclass(frozen=True)
class Said:
    """All that a revision's files say."""

    base: Found
    python: Found
    archs: Found
    sources: Mapping[str, Source]
    kernels: Source
    needs: Mapping[str, Needed]
    build_needs: Mapping[str, Needed]
    packages: tuple[str, ...]
    # What upstream builds or sets that these values do not hold, a line each.
    beside: tuple[str, ...]


def read_said(read: Read) -> Said:
    """What the files of a revision say; ``read`` gives one, or None. Raises UnknownLayoutError naming the file and what it lacks."""
    beside: list[str] = []
    base = _base_file(read, beside)
    serving = _dockerfile(read, base.file.removesuffix("_base"))
    stage = base.stage("base")
    python = _set(base, stage, "PYTHON_VERSION")
    if not re.fullmatch(r"\d{1,3}\.\d{1,3}", python.text):
        raise UnknownLayoutError(
            f"{python.where}: PYTHON_VERSION is {python.text!r}", why="A version such as 3.12 is expected."
        )
    sources = {name: _source(base, arg) for name, arg in ARGS.items()}
    if not (requires := _requires_python(read)).contains(f"{python.text}.99"):
        beside.append(f"pyproject.toml asks for Python {requires}, and {python.where} has {python.text}")
    beside += _beside(base, serving)
    return Said(
        base=_global(base, "BASE_IMAGE"),
        python=python,
        archs=_set(base, stage, "AITER_ROCM_ARCH"),
        sources=sources,
        kernels=_kernels(read, serving),
        needs=_needs(read, "requirements/rocm.txt", python.text),
        build_needs=_needs(read, BUILD_FILE, python.text),
        packages=tuple(_packages(stage)),
        beside=tuple(beside),
    )


def _dockerfile(read: Read, path: str) -> Dockerfile:
    return parse_dockerfile(_text(read, path), path)


def _text(read: Read, path: str) -> str:
    data = read(path)
    if data is None:
        raise UnknownLayoutError(f"this vLLM has no {path}")
    return data.decode("utf-8", "replace")


def _base_file(read: Read, beside: list[str]) -> Dockerfile:
    first = _dockerfile(read, BASE_FILES[0])
    if WHEELS_ARG not in first.args or "PYTORCH_BRANCH" in first.args:
        return first
    if read(BASE_FILES[1]) is None:
        raise UnknownLayoutError(
            f"{first.file} takes PyTorch from wheels (ARG {WHEELS_ARG}), and this vLLM has no {BASE_FILES[1]}",
            why="Kiln's recipes build PyTorch from source, on an image that has ROCm.",
            fix="name a revision that has one of the two: docs/derive.md",
        )
    beside.append(
        f"{first.file} has another layout (PyTorch {first.args[WHEELS_ARG].text} as wheels on {first.args['BASE_IMAGE'].text}, "
        f"AITER {first.args['AITER_BRANCH'].text}), which Kiln has no recipes for: {BASE_FILES[1]} was read"
        if {"BASE_IMAGE", "AITER_BRANCH"} <= first.args.keys()
        else f"{first.file} has another layout, which Kiln has no recipes for: {BASE_FILES[1]} was read"
    )
    return _dockerfile(read, BASE_FILES[1])


def _found(file: str, value: Value) -> Found:
    return Found(value.text.strip(), f"{file}:{value.line}", value.note)


def _lacks(file: str, name: str, there: Mapping[str, Value], kind: str = "ARG") -> UnknownLayoutError:
    return UnknownLayoutError(
        f"{file} has no {kind} {name} with a value", why=f"What it sets: {', '.join(there) or 'nothing'}."
    )


def _global(file: Dockerfile, name: str) -> Found:
    value = file.args.get(name)
    if value is None or not value.text.strip():
        raise _lacks(file.file, name, file.args)
    return _found(file.file, value)


def _set(file: Dockerfile, stage: Stage, name: str) -> Found:
    """A variable of a stage, or the ARG of that name above the first stage."""
    there = {**file.args, **stage.variables()}
    if name not in there or not there[name].text.strip():
        raise _lacks(file.file, name, there, "ARG or ENV")
    return _found(file.file, there[name])


def _source(file: Dockerfile, arg: str) -> Source:
    """The source of ``ARG_REPO`` at ``ARG_BRANCH``, and what is picked onto it by the RUN that checks it out."""
    repo, ref = _global(file, f"{arg}_REPO"), _global(file, f"{arg}_BRANCH")
    git = Found(_without_git(repo.text), repo.where)
    for stage in file.stages:
        for run in _runs(stage):
            if any(_names(word, f"{arg}_BRANCH") for word in _checked_out(run)):
                if f"{arg}_BRANCH" not in stage.args:
                    raise UnknownLayoutError(
                        f"{file.file}, line {run.line}, uses {arg}_BRANCH, which stage {stage.name} does not declare"
                    )
                return Source(git, ref, tuple(_picks(file.file, git.text, stage, run)))
    raise UnknownLayoutError(
        f"{file.file} sets ARG {arg}_BRANCH and checks it out nowhere",
        why=f"No RUN says `git checkout ${{{arg}_BRANCH}}` or `git clone --branch ${{{arg}_BRANCH}}`.",
    )


def _picks(file: str, git: str, stage: Stage, run: Instruction) -> Iterator[Found]:
    repositories = {repository for comment in run.comments for repository in _PULL.findall(comment)}
    # A comment that names pull requests of one repository says where the commits are from; without, they are the source's own.
    url = f"https://github.com/{repositories.pop()}" if len(repositories) == 1 else git
    known = {name: value.text for name, value in stage.variables().items()}
    for word in _PICK.findall(run.text):
        yield Found(f"{url}@{_expanded(word, known, f'{file}:{run.line}')}", f"{file}:{run.line}")


def _expanded(text: str, known: Mapping[str, str], where: str) -> str:
    """All words of a text with their variables' values. Raises UnknownLayoutError for what a Dockerfile does not have."""
    try:
        return " ".join(evaluated(word, known) for word in words(text))
    except ValueError as error:
        raise UnknownLayoutError(f"{where} cannot be read", why=str(error)) from error


def _runs(stage: Stage) -> Iterator[Instruction]:
    return (one for one in stage.instructions if one.keyword == "RUN")


def _checked_out(run: Instruction) -> list[str]:
    return [*_CHECKOUT.findall(run.text), *_BRANCH.findall(run.text)]


def _names(word: str, variable: str) -> bool:
    return word.strip(QUOTES) in (f"${variable}", f"${{{variable}}}")


def _without_git(url: str) -> str:
    return url.rstrip("/").removesuffix(".git")


def _packages(stage: Stage) -> Iterator[str]:
    known = {name: value.text for name, value in stage.variables().items()}
    seen: set[str] = set()
    for run in _runs(stage):
        for listed in _INSTALL.findall(run.text):
            for word in listed.split():
                try:
                    name = evaluated(word, known)
                except ValueError:
                    # The shell can do more with a variable than a Dockerfile; its text says enough here.
                    name = word
                if not word.startswith("-") and name not in seen:
                    seen.add(name)
                    yield name


def _kernels(read: Read, serving: Dockerfile) -> Source:
    """Triton's kernels, which vLLM's build copies: those that the serving image's build brings itself, else the tag that CMake would clone."""
    for stage in serving.stages:
        known = {name: value.text for name, value in stage.variables().items()}
        for one in stage.instructions:
            where = f"{serving.file}:{one.line}"
            if one.keyword == "ADD" and (hit := _TARBALL.search(_expanded(one.text, known, where))):
                return Source(Found(f"https://github.com/{hit[1]}", where), Found(hit[2], where))
    if own := next((stage.env[_KERNELS_DIR] for stage in serving.stages if _KERNELS_DIR in stage.env), None):
        raise UnknownLayoutError(
            f"{serving.file}, line {own.line}, sets {_KERNELS_DIR}, and no ADD brings a commit of Triton's from GitHub"
        )
    text = _text(read, KERNELS_FILE)
    # From 0.27 on there is a branch for ROCm.
    rocm = _KERNELS_ROCM.search(text)
    begin = rocm.end() if rocm else 0
    tag, url = _KERNELS_TAG.search(text, begin), _KERNELS_URL.search(text, begin)
    if not tag or not url or (not rocm and len(_KERNELS_TAG.findall(text)) > 1):
        raise UnknownLayoutError(f"{KERNELS_FILE} does not set TRITON_GIT and one TRITON_KERNELS_TAG for ROCm")

    def found(hit: re.Match[str]) -> Found:
        return Found(_without_git(hit[1]), f"{KERNELS_FILE}:{text.count(chr(10), 0, hit.start(1)) + 1}")

    return Source(found(url), found(tag))


def _needs(read: Read, path: str, python: str) -> dict[str, Needed]:
    """The requirements of a file and of those that it includes, those of one name as one, sorted by name."""
    _text(read, path)
    found: dict[str, list[tuple[Requirement, str]]] = {}
    try:
        for line in requirement_lines("vllm", path, read):
            if line.text.startswith("-"):
                continue
            where = f"{line.file}:{line.number}"
            try:
                requirement = _requirement(line.text)
            except InvalidRequirement as error:
                raise UnknownLayoutError(f"{where} is no requirement: {line.text[:100]!r}", why=str(error)) from error
            if holds(requirement, python):
                found.setdefault(str(canonicalize_name(requirement.name)), []).append((requirement, where))
    except ResolveError as error:
        raise UnknownLayoutError(f"{path} includes a file that this vLLM does not have", why=error.what) from error
    return {name: _together(name, found[name]) for name in sorted(found)}


def _requirement(text: str) -> Requirement:
    # The longest of vLLM's has 150 characters; Python makes no number of more than 4300 digits.
    if len(text) > 1000:
        raise InvalidRequirement("it is longer than 1000 characters")
    return Requirement(text)


def _together(name: str, found: list[tuple[Requirement, str]]) -> Needed:
    extras = sorted({str(canonicalize_name(extra)) for requirement, _ in found for extra in requirement.extras})
    where = ", ".join(dict.fromkeys(place for _, place in found))
    named = name + (f"[{','.join(extras)}]" if extras else "")
    if url := next((requirement.url for requirement, _ in found if requirement.url), None):
        return Needed(name, f"{named} @ {url}", SpecifierSet(), where)
    bounds: dict[str, set[str]] = {}
    for requirement, _ in found:
        for one in requirement.specifier:
            bounds.setdefault(one.operator, set()).add(one.version)
    # Of two lower bounds the higher holds, of two upper ones the lower.
    for operator, strictest in ((">=", max), (">", max), ("<", min), ("<=", min)):
        if len(bounds.get(operator, ())) > 1:
            bounds[operator] = {strictest(bounds[operator], key=Version)}
    order = (">=", ">", "~=", "===", "==", "<", "<=", "!=")
    parts = [operator + version for operator in order for version in sorted(bounds.get(operator, ()), key=_sortable)]
    return Needed(name, named + ",".join(parts), SpecifierSet(",".join(parts)), where)


def _sortable(version: str) -> list[tuple[int, str]]:
    return [(int(part) if part.isdecimal() else -1, part) for part in version.split(".")]


def _requires_python(read: Read) -> SpecifierSet:
    try:
        project = tomllib.loads(_text(read, "pyproject.toml")).get("project", {})
        return SpecifierSet(str(project.get("requires-python", ""))[:1000] if isinstance(project, dict) else "")
    except InvalidSpecifier as error:
        raise UnknownLayoutError("pyproject.toml has no requires-python that can be read", why=str(error)) from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UnknownLayoutError("pyproject.toml is not TOML", why=str(error)) from error


def _beside(base: Dockerfile, serving: Dockerfile) -> Iterator[str]:
    """What the two Dockerfiles build or check out that no component of Kiln's stands for, and how AITER is built."""
    ours = {f"{arg}_BRANCH" for arg in ARGS.values()} | {"VLLM_BRANCH", _KERNELS_ARG}
    for file in (base, serving):
        own = [(name, value) for stage in file.stages for name, value in stage.args.items()]
        for name, value in dict([*file.args.items(), *own]).items():
            if _OTHER.fullmatch(name) and name not in ours and value.text:
                yield f"{file.file}:{value.line} builds {name.rpartition('_')[0]} at {value.text}, which Kiln has no component for"
    for stage in base.stages:
        for run in _runs(stage):
            yield from _recipe_lines(f"{base.file}:{run.line}", stage.name, run.text)


def _recipe_lines(where: str, stage: str, text: str) -> Iterator[str]:
    for word in _CHECKOUT.findall(text):
        if "$" not in word and word != "FETCH_HEAD":
            yield f"{where} checks out {word} in stage {stage}, which Kiln's recipes do not"
    if stage == "build_aiter" and (settings := _AITER_SETTING.findall(text)):
        yield f"{where} builds AITER with {' '.join(settings)}; Kiln's recipe: templates/components/rocm/aiter.j2"
    if stage == "base":
        for line in _UPGRADED.findall(text):
            yield f"{where} builds with {' '.join(word.strip(QUOTES) for word in line.split())}"
