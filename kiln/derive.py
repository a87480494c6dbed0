"""Deriving a stack's pins from a vLLM revision's own files, on the pattern of another stack. In: the files and that stack. Out: pins as text, and what to know of them.

The pattern gives what vLLM's files do not speak of: which components there are, their recipes, Kiln's own choices. What neither of the two says and
nobody could be asked stays open: its line is there, commented out, with the reason. Without most of them `kiln lock` refuses the pins.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from kiln.config import Config
from kiln.derivedtext import Derived, Open, Unresolved, lookup
from kiln.errors import RefNotFoundError, ResolveError, SourceError, UpstreamError, UsageError
from kiln.git import GitCache
from kiln.overrides import version_of
from kiln.registry import tag_digest
from kiln.requirements import requirements_in
from kiln.vllmfiles import REACH_SECONDS, Revision, why_silent
from kiln.vllmpins import ARGS, Found, Needed, Said, Source

# Pins are read without these, and without a component's version.
_OPTIONAL = ("base.digest", "python.as-of")
# Ubuntu's releases by the names that images have: code name and glibc.
UBUNTU = {"22.04": ("jammy", "2.35"), "24.04": ("noble", "2.39")}
TILELANG = ("tilelang", "apache-tvm-ffi")
NEEDED = ("vllm", "vllm-needs", "vllm-triton-kernels", "tilelang", "flydsl", "cpython", *ARGS)
_COMMIT = re.compile(r"[0-9a-f]{7,40}")
_EXACT = re.compile(r"[\w.-]+==[^,*]+")
_RELEASE = re.compile(r"release/(\d+\.\d+)\b")


@dataclass(frozen=True)
class Asked:
    """Whom deriving asks: for the commit of a ref (url, ref), the digest of an image's tag (image, tag), a file of a commit (url, commit, path).

    The first two give the answer, or "" and why there is none.
    """

    commit: Callable[[str, str], tuple[str, str]]
    digest: Callable[[str, str], tuple[str, str]]
    file: Callable[[str, str, str], bytes | None]


@dataclass
class _Deriving:
    """One run: what is derived so far."""

    pattern: str
    raw: Mapping[str, Any]
    revision: Revision
    said: Said
    asked: Asked
    out: Derived
    changed: set[str] = field(default_factory=set)

    def put(self, path: str, value: Any, where: str) -> None:
        self.out.values[path] = value
        self.out.origins[path] = where

    def leave(self, path: str, what: str, how: str) -> None:
        self.out.values.pop(path, None)
        optional = path in _OPTIONAL or (path.startswith("components.") and path.endswith(".version"))
        self.out.open[path] = Open(path, what, how, needed=not optional)

    def drop(self, path: str) -> None:
        """Leave a key of the pattern out: this stack has none."""
        self.out.dropped.add(path)

    def unresolved(self, name: str, git: str, ref: str, commit: str, why: str) -> None:
        """Note that no commit is known for a ref that is none itself, and why."""
        if not commit and not re.fullmatch(r"[0-9a-f]{40}", ref):
            path = f"components.{name}.ref"
            self.out.unresolved[path] = Unresolved(path, f"{git}@{ref}", why)

    def old(self, path: str) -> Any:
        return lookup(self.raw, path)


def derive(stack: str, pattern: str, raw: Mapping[str, Any], revision: Revision, said: Said, asked: Asked) -> Derived:
    """The pins ``stack`` of a revision, on the pattern of the stack ``pattern``, whose pins file is ``raw``. Raises UsageError for a pattern that is none."""
    lacking = sorted(set(NEEDED) - set(raw.get("components", {})))
    if raw.get("stack", {}).get("target") != "rocm" or lacking:
        raise UsageError(
            f"{pattern!r} is no pattern for pins of vLLM's ROCm images",
            why=f"It lacks {', '.join(lacking)}." if lacking else "Its target is not rocm.",
            fix="name a stack like dsv4-mhc: --against dsv4-mhc",
        )
    run = _Deriving(pattern, raw, revision, said, asked, Derived(stack, pattern, raw, revision))
    _stack(run)
    _base(run)
    for name, source in said.sources.items():
        _source(run, name, source)
    _source(run, "vllm-triton-kernels", said.kernels)
    _versions(run)
    _vllm(run)
    _aiter(run)
    _wheels(run)
    _carried(run)
    run.out.beside += said.beside
    return run.out


def _stack(run: _Deriving) -> None:
    said = run.said
    run.put("stack.name", run.out.stack, "")
    run.put("stack.about", f"vLLM {run.revision.ref} on ROCm, with what its own files pin", "")
    archs = [arch for arch in re.split(r"[;,\s]+", said.archs.text) if arch]
    run.put("stack.archs", archs, f"{said.archs.where} AITER_ROCM_ARCH")
    run.put("python.version", said.python.text, f"{said.python.where} PYTHON_VERSION")
    if said.python.text != run.old("python.version"):
        how = f"find the newest release of CPython {said.python.text} and write it in"
        for key in ("ref", "version"):
            run.leave(f"components.cpython.{key}", "vLLM's files name no patch release of Python", how)
    if run.revision.released:
        run.put("python.as-of", run.revision.released, "when this revision was released")
    else:
        how = "write the day of the release; without it, requirements without an upper bound get what is newest when it is locked"
        run.leave("python.as-of", "what was read does not say when it was released", how)


def _base(run: _Deriving) -> None:
    reference, _, digest = run.said.base.text.partition("@")
    image, colon, tag = reference.rpartition(":")
    where = f"{run.said.base.where} BASE_IMAGE"
    if not colon or "/" in tag:
        image, tag = reference, ""
    first = image.split("/")[0]
    if "/" not in image or not ("." in first or ":" in first):
        image = f"docker.io/{image}" if "/" in image else f"docker.io/library/{image}"
    run.put("base.image", image, where)
    run.put("base.tag", tag, where)
    if not tag:
        run.leave("base.tag", f"{where} names no tag", "write the tag that was the newest when it was released")
    rocm = re.match(r"(\d+(\.\d+)+)", tag)
    if rocm:
        run.put("base.rocm", rocm[1], f"{where}: its tag")
    else:
        run.leave("base.rocm", f"the tag {tag!r} does not begin with a version", "write the version of the ROCm in it")
    same = (image, tag) == (run.old("base.image"), run.old("base.tag"))
    found, why = ("", "") if digest else run.asked.digest(image, tag)
    if digest:
        run.put("base.digest", digest, where)
    elif found:
        run.put("base.digest", found, "the registry, now")
    elif same and run.old("base.digest"):
        run.put(
            "base.digest",
            run.old("base.digest"),
            f"as in {run.pattern}, which has the same image and tag; {where} has none",
        )
    else:
        how = f"kiln lock, where the registry is reached, or docker buildx imagetools inspect {image}:{tag}"
        run.leave("base.digest", f"upstream names a tag alone, and the registry was not to be had: {why}", how)
    ubuntu = re.search(r"ubuntu[-:]?(\d\d\.\d\d)", image + ":" + tag)
    if ubuntu and ubuntu[1] in UBUNTU:
        suite, glibc = UBUNTU[ubuntu[1]]
        run.put("ubuntu.suite", suite, f"{where}: Ubuntu {ubuntu[1]}")
        run.put("python.glibc", glibc, f"{where}: Ubuntu {ubuntu[1]}'s; wheels for newer ones are refused")
    else:
        for path in ("ubuntu.suite", "python.glibc"):
            run.leave(
                path,
                f"{image}:{tag} names no release of Ubuntu that Kiln knows",
                "look into the image: /etc/os-release, ldd --version",
            )


def _source(run: _Deriving, name: str, source: Source) -> None:
    """Repository, ref and picks of one component. What is the pattern's in other digits stays as it is there: it is resolved already."""
    at = f"components.{name}"
    old_git, old_ref = run.old(f"{at}.git"), run.old(f"{at}.ref")
    ref, where = source.ref.text, source.ref.where
    same = source.git.text == old_git and (ref == old_ref or _begins(ref, old_ref))
    run.put(f"{at}.git", source.git.text, source.git.where)
    kernels = run.said.kernels
    if not same and source.git.text == kernels.git.text and ref != kernels.ref.text and _begins(ref, kernels.ref.text):
        # Triton is named twice, once with all its digits.
        ref, where = kernels.ref.text, f"{where}: {ref}, all its digits in {kernels.ref.where}"
    commit, why = run.asked.commit(source.git.text, ref)
    if commit:
        run.out.commits[name] = commit
    if same and ref != old_ref:
        ref = old_ref
        run.put(f"{at}.ref", ref, f"{where}: {source.ref.text}, all its digits as in {run.pattern}")
    elif _COMMIT.fullmatch(ref) and commit and commit != ref:
        ref = commit
        run.put(f"{at}.ref", ref, f"{where}: {source.ref.text}, all its digits from the repository")
    else:
        run.put(f"{at}.ref", ref, where + (f" ({source.ref.note})" if source.ref.note else ""))
    run.unresolved(name, source.git.text, ref, commit, why)
    if name != "vllm-triton-kernels":
        _picks(run, at, source.picks)
    if not same:
        run.changed.add(name)
        about = re.split("[,:]", run.old(f"{at}.about"))[0]
        run.put(f"{at}.about", f"{about}: {source.git.text.partition('.com/')[2]} at {source.ref.text}", "")


def _begins(ref: str, old: str | None) -> bool:
    return bool(old and _COMMIT.fullmatch(ref) and _COMMIT.fullmatch(old) and old.startswith(ref))


def _picks(run: _Deriving, at: str, picks: Sequence[Found]) -> None:
    if picks:
        run.put(f"{at}.picks", [pick.text for pick in picks], picks[0].where)
    elif run.old(f"{at}.picks"):
        run.drop(f"{at}.picks")


def _versions(run: _Deriving) -> None:
    """The version that each source is built as: a tag's own, the pattern's where the ref is the pattern's, PyTorch's by the comment behind its commit."""
    for name, source in run.said.sources.items():
        at = f"components.{name}"
        pinned, ref = run.old(f"{at}.version"), source.ref
        if not pinned or name not in run.changed:
            continue
        if run.old(f"{at}.version-in-source"):
            # Nobody can tell its build; what it is shows when it is built.
            run.drop(f"{at}.version")
        elif not _COMMIT.fullmatch(ref.text):
            run.put(f"{at}.version", version_of(pinned, ref.text), f"{ref.where}: its tag")
        elif (release := _RELEASE.search(ref.note)) and name == "torch":
            where = f"{ref.where}: the branch in its comment, and the commit, as upstream's wheels are called"
            run.put(f"{at}.version", f"{release[1]}.0+git{ref.text[:7]}", where)
        else:
            how = f"read version.txt, or what says it, at {ref.text} of {source.git.text}; without it, the build is told no version"
            run.leave(f"{at}.version", f"a commit says no version, and {ref.where} has no comment that does", how)


def _vllm(run: _Deriving) -> None:
    revision, at = run.revision, "components.vllm"
    run.put(f"{at}.git", revision.git, "the repository that was asked for")
    run.put(f"{at}.ref", revision.ref, "the revision that was asked for")
    version = revision.version or version_of(run.old(f"{at}.version") or "0", revision.ref)
    where = "PKG-INFO, or the tag" if revision.version else "no release: development, with the commit"
    run.put(f"{at}.version", version, where)
    run.put(f"{at}.about", f"vLLM {revision.ref}", "")
    if revision.commit:
        run.out.commits["vllm"] = revision.commit
    run.unresolved("vllm", revision.git, revision.ref, revision.commit, revision.instead)


def _aiter(run: _Deriving) -> None:
    """What AITER's own requirements say and vLLM's files do not: FlyDSL's version, and what the carried components have otherwise."""
    source, path = run.said.sources["aiter"], "components.flydsl.wheels"
    file = f"requirements.txt of AITER {source.ref.text}"
    asked = _aiters_own(run, source) if "aiter" in run.changed else {}
    flydsl = asked.get("flydsl")
    if needed := run.said.needs.get("flydsl"):
        _exact(run, path, [needed])
    elif flydsl and _EXACT.fullmatch(text := f"flydsl{flydsl.specifier}"):
        run.put(path, [text], file)
    elif "aiter" in run.changed:
        why = "it names no exact one" if asked else "that was not read"
        how = f"read requirements.txt at {source.ref.text} of {source.git.text}"
        run.leave(path, f"AITER {source.ref.text} names its FlyDSL in its own requirements.txt, and {why}", how)
    if "aiter" in run.changed and not asked:
        run.out.beside.append(
            f"{file} was not read: base-needs and build-tools are as {run.pattern} has them, and may be other than it asks"
        )
    _against(run, {name: (str(one), one.specifier, file) for name, one in asked.items() if name != "flydsl"}, "AITER")
    if missing := sorted(str(one) for name, one in asked.items() if not _named(run, name)):
        run.out.beside.append(f"{file} asks for {', '.join(missing)}, which no component names")


def _aiters_own(run: _Deriving, source: Source) -> dict[str, Requirement]:
    """The requirements in AITER's own file by name; none where it is not reached."""
    commit = run.out.commits.get("aiter", "")
    found: dict[str, Requirement] = {}
    with suppress(ResolveError):
        for one in requirements_in(
            "aiter", "requirements.txt", lambda at: run.asked.file(source.git.text, commit, at) if commit else None
        ):
            found[str(canonicalize_name(one.name))] = one
    return found


def _exact(run: _Deriving, path: str, needs: Sequence[Needed]) -> None:
    loose = [need for need in needs if not _EXACT.fullmatch(need.text)]
    if loose:
        run.leave(
            path,
            f"{loose[0].where} asks for {loose[0].text}, which is no exact version",
            "choose one, and write name==version",
        )
    else:
        run.put(path, [need.text for need in needs], ", ".join(need.where for need in needs))


def _wheels(run: _Deriving) -> None:
    """TileLang's wheels, and all else that vLLM requires and nothing of the stack provides."""
    needs = run.said.needs
    tilelang = [needs[name] for name in TILELANG if name in needs]
    if "tilelang" in needs:
        _exact(run, "components.tilelang.wheels", tilelang)
    else:
        run.leave(
            "components.tilelang.wheels",
            "requirements/rocm.txt names no tilelang",
            "this vLLM may have no TileLang path: docs/switch.md",
        )
    built = {
        str(canonicalize_name(name)) for item in run.raw["components"].values() for name in item.get("provides", [])
    }
    kept = [need for name, need in needs.items() if name not in {*built, *TILELANG, "flydsl"}]
    run.out.lines["components.vllm-needs.requires"] = {need.text: need.where for need in kept}
    run.put("components.vllm-needs.requires", [need.text for need in kept], "")


def _carried(run: _Deriving) -> None:
    """Say where what is carried over from the pattern speaks against what this revision asks for."""
    known = {**run.said.build_needs, **run.said.needs}
    _against(run, {name: (need.text, need.specifiers, need.where) for name, need in known.items()}, "this vLLM")
    if missing := [name for name in run.said.build_needs if not _named(run, name)]:
        run.out.beside.append(f"its build asks for {', '.join(missing)}, which no component names")
    there = set(run.old("ubuntu.packages") or ())
    if left := [name for name in run.said.packages if name not in there]:
        run.out.beside.append(f"its base image installs {' '.join(left)}, which ubuntu.packages does not have")
    run.out.beside.append(
        f"images = {run.old('stack.images')} are {run.pattern}'s own: give this stack image folders of its own before it is rendered"
    )


def _against(run: _Deriving, asked: Mapping[str, tuple[str, SpecifierSet, str]], who: str) -> None:
    """Say which requirements of the pattern ``who`` asks for with other bounds; ``asked`` are text, bounds and place by name."""
    for name, item in run.raw["components"].items():
        for text in item.get("requires", ()) if name != "vllm-needs" else ():
            carried = Requirement(text)
            called = str(canonicalize_name(carried.name))
            wanted, bounds, where = asked.get(called, ("", SpecifierSet(), ""))
            # What is carried without bounds has those of vllm-needs, for all is resolved together.
            held = run.said.needs.get(called) if not carried.specifier else None
            if bounds and bounds not in (carried.specifier, held and held.specifiers):
                run.out.beside.append(
                    f"components.{name} has {text} as {run.pattern} has; {who} asks for {wanted} ({where})"
                )


def _named(run: _Deriving, name: str) -> bool:
    """Whether a component of the derived pins names a distribution, or builds it."""
    texts = [
        text
        for component, item in run.raw["components"].items()
        for key in ("requires", "wheels", "provides")
        for text in (item.get(key, ()) if component != "vllm-needs" else ())
    ]
    return name in {*run.said.needs, *(str(canonicalize_name(Requirement(text).name)) for text in texts)}


def asking(git: GitCache, config: Config) -> Asked:
    """Ask the upstreams or their mirrors, a host that is silent once. A ref that they do not have is an answer too: deriving only tells."""
    silent: dict[str, str] = {}

    def commit(url: str, ref: str) -> tuple[str, str]:
        host = urlsplit(config.mirrored(url)).netloc or config.mirrored(url)
        if host not in silent:
            silent[host] = why_silent(git.reachable(url, REACH_SECONDS))
        if silent[host]:
            return "", silent[host]
        try:
            return git.resolve(url, ref), ""
        except (UpstreamError, RefNotFoundError, SourceError) as error:
            return "", error.what

    def digest(image: str, tag: str) -> tuple[str, str]:
        try:
            return tag_digest(config, image, tag), ""
        except (UpstreamError, RefNotFoundError) as error:
            return "", (error.why or error.what).splitlines()[0]

    def file(url: str, commit: str, path: str) -> bytes | None:
        try:
            return git.file_at(url, commit, path)
        except (UpstreamError, SourceError):
            return None

    return Asked(commit, digest, file)


def asked_nobody(why: str = "nobody was asked") -> Asked:
    """Ask nobody: what the files do not say is open."""
    return Asked(lambda _url, _ref: ("", why), lambda _image, _tag: ("", why), lambda _url, _commit, _path: None)
