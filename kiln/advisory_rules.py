"""The rules of advisories: what a judgement may rest on, and how each kind of rule comes to one.

A rule is a list of conditions. Each of them holds, does not hold, or is not known; a rule applies where all hold, does not
apply where one does not, and is *unknown* otherwise. Whether a revision has a mark (a fix, a defect, a switch) is decided by
the first that can: the fetched history (ancestry), the source text at the commit, the table of known revisions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from packaging.version import Version

Effect = Literal["refuse", "warn"]
DecidedBy = Literal["history", "source", "table", "facts", "unknown"]
MhcPath = Literal["", "aiter", "tilelang", "switch"]

SHOWN = {"aiter": "AITER", "vllm": "vLLM"}
# What the Python of the rules asks for by name.
VLLM_MARKS = ("aiter-mhc", "aiter-mhc-by-variable", "tilelang-switch", "hc-mult-check")
MHC_ARCHS = ("gfx942", "gfx950")
# The folder of the plugin that brings the switch to a vLLM without it: a stack that pins it has the switch.
SWITCH_PLUGIN = "plugins/vllm-mhc-switch"
_FULL = re.compile(r"[0-9a-f]{40}")
_STRENGTH: tuple[DecidedBy, ...] = ("table", "source", "history")


def _no_history(component: str, commit: str, ancestor: str) -> bool | None:  # noqa: ARG001
    return None


def _no_source(component: str, commit: str, path: str) -> bytes | None:  # noqa: ARG001
    return None


@dataclass(frozen=True)
class Facts:
    """Everything that a judgement may rest on. A fact that is left at its default is not known.

    No advisory on a component applies where neither its ref nor its commit is given. An empty ``environment`` is not known;
    one that is not empty is all of it, and then also says which path the image takes.
    """

    aiter_ref: str = ""
    aiter_commit: str = ""
    vllm_ref: str = ""
    vllm_commit: str = ""
    rocm: str = ""
    archs: tuple[str, ...] = ()
    mhc_default: str = "aiter"
    tilelang_opt_in: bool = True
    switch_plugin: bool = False
    recipes: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    hidden_size: int = 0
    hc_mult: int = 0
    contains: Callable[[str, str, str], bool | None] = _no_history
    file_at: Callable[[str, str, str], bytes | None] = _no_source

    def ref_of(self, component: str) -> str:
        """The component's ref as it was pinned, or ""."""
        return (self.aiter_ref if component == "aiter" else self.vllm_ref).strip()

    def commit_of(self, component: str) -> str:
        """The component's commit: as locked, or the pinned ref where that is a commit in full; else ""."""
        locked = (self.aiter_commit if component == "aiter" else self.vllm_commit).strip().lower()
        ref = self.ref_of(component).lower()
        return locked or (ref if _FULL.fullmatch(ref) else "")

    def shown(self, component: str) -> str:
        """The component as a person would name it: ``AITER v0.1.14 (bd0534e9630f)``."""
        ref, commit = self.ref_of(component), self.commit_of(component)[:12]
        named = ref if ref and not _FULL.fullmatch(ref.lower()) else ""
        return " ".join(filter(None, (SHOWN[component], named, f"({commit})" if named and commit else commit)))


@dataclass(frozen=True)
class Decision:
    """Whether one condition holds (None: not known), what said so, and the sentence for the reader."""

    holds: bool | None
    by: DecidedBy
    because: str
    why_unknown: str = ""


@dataclass(frozen=True)
class Verdict:
    """What a rule says where it applies."""

    effect: Effect
    because: str
    decided_by: DecidedBy


@dataclass(frozen=True)
class Mark:
    """Something that a revision of a component has or lacks: a fix, a defect, a switch.

    A commit has it that contains any of ``commits``; or whose ``file`` matches ``present`` and not ``absent``.
    """

    name: str
    about: str
    commits: tuple[str, ...] = ()
    file: str = ""
    present: str = ""
    absent: str = ""

    def in_source(self, text: str) -> bool | None:
        """Whether ``text`` shows the mark; None where it shows neither the one nor the other."""
        if self.absent and re.search(self.absent, text):
            return False
        if re.search(self.present, text):
            return True
        return None if self.absent else False


@dataclass(frozen=True)
class Revision:
    """A line of the table of known revisions. ``commit`` may be the beginning of one, or "" where only names are known."""

    names: tuple[str, ...]
    commit: str
    has: frozenset[str]
    unknown: frozenset[str]


def ref_key(ref: str) -> str:
    """What two spellings of one tag have in common: ``v0.1.13-rc5``, ``0.1.13rc5`` and ``refs/tags/v0.1.13-rc5`` are the same."""
    bare = ref.strip().lower().removeprefix("refs/tags/")
    try:
        return str(Version(bare))
    except ValueError:
        return bare


@dataclass(frozen=True)
class Known:
    """The marks and the known revisions of one component."""

    component: str
    marks: Mapping[str, Mark]
    revisions: tuple[Revision, ...]

    def revision(self, ref: str, commit: str) -> Revision | None:
        """The line of the table for ``commit``; for the tag ``ref`` only where no commit is known, for a tag can move."""
        if commit:
            return next((line for line in self.revisions if line.commit and commit.startswith(line.commit)), None)
        key = ref_key(ref)
        return next((line for line in self.revisions if key in map(ref_key, line.names)), None) if ref else None

    def decide(self, name: str, facts: Facts) -> Decision:
        """Whether the revision in ``facts`` has the mark ``name``."""
        mark, shown, commit = self.marks[name], facts.shown(self.component), facts.commit_of(self.component)

        def found(holds: bool, by: DecidedBy, how: str) -> Decision:
            return Decision(holds, by, f"{shown} {'has' if holds else 'lacks'} {name} ({mark.about}): {how}")

        if commit and mark.commits:
            answers = [facts.contains(self.component, commit, ancestor) for ancestor in mark.commits]
            wanted = " or ".join(ancestor[:12] for ancestor in mark.commits)
            if True in answers:
                return found(True, "history", f"its history holds {wanted}")
            if None not in answers:
                return found(False, "history", f"its history does not hold {wanted}")
        source = facts.file_at(self.component, commit, mark.file) if commit and mark.file else None
        holds = None if source is None else mark.in_source(source.decode(errors="replace"))
        if holds is not None:
            return found(holds, "source", f"its {mark.file} says so")
        if commit in mark.commits:
            return found(True, "table", "it is the very commit that brings it")
        line = self.revision(facts.ref_of(self.component), commit)
        if line and name not in line.unknown:
            return found(name in line.has, "table", "the table of known revisions says so")
        whether = f"{shown} cannot be shown to have {name} ({mark.about}), nor to lack it"
        return Decision(None, "unknown", whether, self._why(facts))

    def _why(self, facts: Facts) -> str:
        ref, commit = facts.ref_of(self.component), facts.commit_of(self.component)
        named = self.revision(ref, "")
        online = "its history is not here. `kiln lock`, where the network reaches upstream, decides by ancestry"
        if commit and named and named.commit:
            return f"The tag {ref} was {named.commit[:12]} when the table was made, so it has moved; {online}"
        newest = self._newest()
        if _version(ref) > newest:
            return f"It is newer than the newest in the table ({newest}), so nothing is known of it; {online}"
        return f"It is not in the table of known revisions and {online}"

    def _newest(self) -> Version:
        return max((_version(name) for line in self.revisions for name in line.names), default=_version(""))


def _version(ref: str) -> Version:
    try:
        return Version(ref_key(ref))
    except ValueError:
        return Version("0.dev0")


Catalogue = Mapping[str, Known]


def default_path(known: Catalogue, facts: Facts) -> str:
    """The mHC path that the image takes when the operator sets nothing: ``aiter`` or ``tilelang``."""
    if facts.ref_of("vllm") or facts.vllm_commit:
        has = {name: known["vllm"].decide(name, facts).holds for name in VLLM_MARKS}
        if has["aiter-mhc"] is False and not facts.switch_plugin:
            return "tilelang"
        env = facts.environment
        if env and has["aiter-mhc-by-variable"] and not _on(env.get("VLLM_ROCM_USE_AITER", "")):
            return "tilelang"
        if (has["tilelang-switch"] or facts.switch_plugin) and _on(env.get("VLLM_ROCM_USE_TILELANG_MHC", "")):
            return "tilelang"
    return facts.mhc_default


def _path_effect(path: MhcPath, known: Catalogue, facts: Facts) -> Effect | None:
    """What a rule on this path means for the image; None where the image has no such path."""
    default = default_path(known, facts)
    match path:
        case "aiter":
            can = default == "aiter" or known["vllm"].decide("aiter-mhc", facts).holds is not False
            return "refuse" if can else None
        case "tilelang":
            return "refuse" if default == "tilelang" else "warn" if facts.tilelang_opt_in else None
        case "switch":
            return "refuse" if facts.tilelang_opt_in and not facts.switch_plugin else None
        case "":
            return "refuse"


def _on(value: str) -> bool:
    return value.strip().lower() in ("1", "true")


@dataclass(frozen=True, kw_only=True)
class _Rule:
    known: Catalogue = field(repr=False, compare=False)
    effect: Effect = "refuse"

    def _marks(self, component: str, has: Iterable[str], lacks: Iterable[str], facts: Facts) -> list[Decision]:
        found = [self.known[component].decide(name, facts) for name in has]
        for name in lacks:
            decision = self.known[component].decide(name, facts)
            holds = None if decision.holds is None else not decision.holds
            found.append(replace(decision, holds=holds))
        return found

    def _verdict(self, decisions: list[Decision], effect: Effect = "refuse") -> Verdict | None:
        if any(decision.holds is False for decision in decisions):
            return None
        telling = [decision for decision in decisions if decision.holds is None] or decisions
        used = {decision.by for decision in telling}
        weakest: DecidedBy = next((by for by in ("unknown", *_STRENGTH) if by in used), "facts")
        because = "; ".join(dict.fromkeys(decision.because for decision in telling))
        because = ". ".join(dict.fromkeys(filter(None, (because, *(decision.why_unknown for decision in telling)))))
        return Verdict("warn" if "warn" in (self.effect, effect) else "refuse", because, weakest)


@dataclass(frozen=True, kw_only=True)
class RevisionRule(_Rule):
    """A revision of ``component`` that has and lacks certain marks, on certain ROCm versions, archs and mHC paths; ``plugin``: only where the
    image's switch is the plugin's."""

    component: str
    has: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    rocm: tuple[str, ...] = ()
    archs: tuple[str, ...] = ()
    path: MhcPath = ""
    plugin: bool = False

    def judge(self, facts: Facts) -> Verdict | None:
        """The verdict on ``facts``; None where the rule does not apply."""
        if not (facts.ref_of(self.component) or facts.commit_of(self.component)) or self.plugin > facts.switch_plugin:
            return None
        effect = _path_effect(self.path, self.known, facts)
        if effect is None:
            return None
        decisions = self._marks(self.component, self.has, self.lacks, facts)
        if self.rocm:
            decisions.append(_rocm(self.rocm, facts.rocm))
        if self.archs:
            decisions.append(_archs(self.archs, facts.archs))
        if self.path == "tilelang":
            taken = "the path that the image takes when nothing is set" if effect == "refuse" else "an opt-in here"
            decisions.append(Decision(True, "facts", f"tilelang is {taken}"))
        return self._verdict(decisions, effect)


def _rocm(wanted: tuple[str, ...], given: str) -> Decision:
    found = re.match(r"\s*v?(\d+(?:\.\d+)*)", given)
    version = found[1] if found else ""
    if version in wanted:
        return Decision(True, "facts", f"ROCm is {version}")
    if not version or any(full.startswith(f"{version}.") for full in wanted):
        said = f"is given as {version}, which may be it" if version else "of the image is not known"
        return Decision(None, "unknown", f"it is known to be bad on ROCm {', '.join(wanted)}, and the ROCm {said}")
    return Decision(False, "facts", f"ROCm is {version}")


def _archs(wanted: tuple[str, ...], given: tuple[str, ...]) -> Decision:
    if not given:
        return Decision(None, "unknown", f"it is known to be bad on {', '.join(wanted)}, and the archs are not known")
    hit = [arch for arch in given if arch in wanted]
    return Decision(bool(hit), "facts", f"the image is for {', '.join(hit or given)}")


@dataclass(frozen=True, kw_only=True)
class RecipeRule(_Rule):
    """A recipe whose text matches a pattern, sets a variable, or fails to set one. ``recipes``: which; empty: all."""

    recipes: tuple[str, ...] = ()
    matches: str = ""
    sets: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()
    component: str = ""
    has: tuple[str, ...] = ()

    def judge(self, facts: Facts) -> Verdict | None:
        """The verdict on ``facts``; None where the rule does not apply."""
        wanted = {name: text for name, text in facts.recipes.items() if not self.recipes or name in self.recipes}
        found = [reason for name in sorted(wanted) if (reason := self._look(name, wanted[name]))]
        if not found or (self.has and not (facts.ref_of(self.component) or facts.commit_of(self.component))):
            return None
        decisions = self._marks(self.component, self.has, (), facts)
        return self._verdict([*decisions, Decision(True, "facts", "; ".join(found))])

    def _look(self, name: str, text: str) -> str:
        if any(variable_values(text, variable) for variable in self.unless):
            return ""
        if self.matches and (hit := re.search(self.matches, commands(text))):
            return f"the recipe of {name} says `{' '.join(hit[0].split())}`"
        for setting in self.sets:
            variable, _, value = setting.partition("=")
            if value in variable_values(text, variable):
                return f"the recipe of {name} sets {setting}"
        for setting in self.lacks:
            variable, _, value = setting.partition("=")
            given = variable_values(text, variable)
            if set(given) != {value}:
                said = f"sets {variable} to {', '.join(map(repr, given))}" if given else "does not set it"
                return f"the recipe of {name} needs {setting} and {said}"
        return ""


def commands(text: str) -> str:
    """A recipe without comments, each command on one line."""
    kept = [re.sub(r"\s#\s.*", "", line) for line in text.splitlines() if not line.lstrip().startswith("#")]
    return re.sub(r"\\[ \t]*\n", " ", "\n".join(kept))


def variable_values(text: str, name: str) -> tuple[str, ...]:
    """Every value that a recipe gives to the environment variable ``name``, in order."""
    assigned = re.compile(
        rf"""(?:^|(?<=[\s;&|(])){re.escape(name)}=("[^"\n]*"|'[^'\n]*'|[^\s;&|)]*)|^\s*ENV\s+{re.escape(name)}\s+(.*)$""",
        re.MULTILINE | re.IGNORECASE,
    )
    return tuple(
        (hit[1] if hit[1] is not None else hit[2]).strip().strip("\"'") for hit in assigned.finditer(commands(text))
    )


@dataclass(frozen=True, kw_only=True)
class EnvironmentRule(_Rule):
    """An image whose runtime environment sets one of these: ``NAME``, whatever its value, or ``NAME=VALUE``."""

    sets: tuple[str, ...] = ()

    def judge(self, facts: Facts) -> Verdict | None:
        """The verdict on ``facts``; None where the rule does not apply."""
        for setting in self.sets:
            name, is_exact, value = setting.partition("=")
            if name in facts.environment and (not is_exact or facts.environment[name] == value):
                return self._verdict([Decision(True, "facts", f"the image sets {name}={facts.environment[name]}")])
        return None


@dataclass(frozen=True, kw_only=True)
class ShapeRule(_Rule):
    """A model whose shape vLLM sends to AITER's mHC kernels and they do not take."""

    def judge(self, facts: Facts) -> Verdict | None:
        """The verdict on ``facts``; None where the rule does not apply."""
        if facts.hidden_size <= 0 or _path_effect("aiter", self.known, facts) is None:
            return None
        if not any((facts.ref_of("aiter"), facts.commit_of("aiter"), facts.ref_of("vllm"), facts.commit_of("vllm"))):
            return None
        if facts.hidden_size % 256:  # vLLM does not choose AITER for it
            return None
        if facts.hc_mult not in (0, 4):
            if (facts.ref_of("vllm") or facts.commit_of("vllm")) and self.known["vllm"].decide(
                "hc-mult-check", facts
            ).holds:
                return None
            return self._verdict([Decision(True, "facts", f"hc_mult is {facts.hc_mult} and AITER's mHC takes 4 alone")])
        troubles = [
            f"hidden size {facts.hidden_size} on {arch}: {trouble}"
            for arch in facts.archs or MHC_ARCHS
            if (trouble := hidden_size_trouble(facts.hidden_size, arch))
        ]
        return self._verdict([Decision(True, "facts", "; ".join(troubles))]) if troubles else None


def hidden_size_trouble(hidden: int, arch: str) -> str:
    """Which of AITER's host checks a model of this hidden size fails on ``arch``; "" where it passes all of them."""
    if hidden <= 0 or hidden % 256:
        return "the hidden size must be a positive multiple of 256"
    if hidden < 2 * 256:
        return "mhc_pre needs at least 512: two blocks of 256"
    block = 1024 if arch != "gfx942" and hidden % 1024 == 0 else 512 if hidden % 512 == 0 else 256
    return f"mhc_post takes blocks of {block} for it and needs at least {2 * block}" if hidden < 2 * block else ""


Rule = RevisionRule | RecipeRule | EnvironmentRule | ShapeRule
