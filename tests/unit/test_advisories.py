"""Advisories: which combinations are refused, what the person is told, and what the file may say."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiln.advisories import Advisory, Facts, Finding, enforce, hidden_size_trouble, judge, read_advisories, table
from kiln.advisory_rules import commands, ref_key, variable_values
from kiln.errors import AdvisoryError, PinsError, UsageError
from kiln.workspace import Workspace

PROJECT = Path(__file__).resolve().parents[2]
ADVISORIES = read_advisories(Workspace(PROJECT, PROJECT / ".kiln"))
IDS = [advisory.id for advisory in ADVISORIES]

FIX = "b639cb63bcac4672dce33a731fad042a65cb3649"
BEFORE_FIX = "3805812c1b1f834b3a810ba4ce2ce1f9405e7584"
AFTER_FIX = "e09effa244751440ef602021fd3fe2baf5a851d6"
PRE_RMS = "79624295c8b713a646d91c742694fd2cbb1139c0"
RMS_FIX = "1be6aee67b7cf9e0e90daccc700f763043a99f5d"
BEFORE_RMS_FIX = "43f8a567e36ecc63323631b325e04faf5184a33f"
AFTER_RMS_FIX = "b0adff0d164170c446c9573b4e47f596cdc108ac"
SWAP = "446ed170baa06790934a88f1c0284ffe5ec39ae4"
V0_1_13_POST1 = "3a38da3991275e02e98a7906b7503b7087d67be3"
V0_1_14 = "bd0534e9630f8f142f51689f5808c627460e35bf"
V0_1_15 = "8ddfc7510536d61f4e1863e9cf91c495be1f8c2c"
V0_1_16 = "0730b33fcfa51aebaf934a56684cc88c934f311b"
FORK = "5cb4ba95c75842e01af97b5d8c03b67048fb3a97"
EARLIER_FORK = "90f1c6a6cd7e8ab0ce076d6d9fe2cc89c815666e"
UPSTREAM_MHC = "ed41aa270a9e01320e55ff9a069a826acb764101"
GUARD = "89accad2cc9685bbd813ec0efab316b36cf123ca"
NOWHERE = "0123456789abcdef0123456789abcdef01234567"

RACE, RMS, TILELANG, TRITON = "aiter-mhc-race", "aiter-mhc-rocm723", "tilelang-mhc-gfx942", "aiter-triton-swap"
SHAPE, SWITCH, CLONE = "aiter-mhc-hidden-size", "vllm-no-mhc-switch", "git-clone-branch-sha"
JIT, PRECOMPILED, OPT_IN = "aiter-jit-dir", "vllm-use-precompiled", "tilelang-plugin-gfx942"

# What a commit contains, of the commits that the rules ask for. The first is the line of ROCm/aiter's main branch.
ANCESTORS = {
    BEFORE_FIX: set(),
    FIX: {FIX},
    AFTER_FIX: {FIX},
    PRE_RMS: {FIX, SWAP, PRE_RMS},
    BEFORE_RMS_FIX: {FIX, SWAP, PRE_RMS},
    RMS_FIX: {FIX, SWAP, PRE_RMS, RMS_FIX},
    AFTER_RMS_FIX: {FIX, SWAP, PRE_RMS, RMS_FIX},
    V0_1_13_POST1: set(),
    V0_1_14: {FIX, SWAP},
    V0_1_15: {FIX, SWAP, PRE_RMS},
    GUARD: {GUARD},
    FORK: {FORK},
    UPSTREAM_MHC: {GUARD, UPSTREAM_MHC},
}


def history(component: str, commit: str, ancestor: str) -> bool | None:
    assert component in ("aiter", "vllm")
    return None if commit not in ANCESTORS else ancestor in ANCESTORS[commit]


GUARDED = "void store() {\n  if ( lane_id < mfma_m && (row < m_oob)) { out[row] = v; }\n}\n"
UNGUARDED = "void store() {\n  if ((warp_id * mfma_m + lane_id < m_oob)) { out[row] = v; }\n}\n"
PARTIAL = "float s_pre_rms_partial[8];\n"
HALF = PARTIAL + "if(warp_id < hc_mult3_reduce_warp_num && more) { }\n"
WHOLE = PARTIAL + "if(warp_id < hc_mult3_reduce_warp_num) { }\n"


def source(kernel: str | None, setup: str | None = None) -> Callable[[str, str, str], bytes | None]:
    """A source tree of two files."""

    def file_at(component: str, commit: str, path: str) -> bytes | None:
        assert re.fullmatch(r"[0-9a-f]{40}", commit)
        text = {"csrc/kernels/mhc_kernels.cu": kernel, "setup.py": setup}[path] if component == "aiter" else None
        return None if text is None else text.encode()

    return file_at


# The default stack, with both archs, sound but for the warning that its opt-in earns on gfx942.
STACK = Facts(
    aiter_ref="v0.1.14",
    aiter_commit=V0_1_14,
    vllm_ref=FORK,
    vllm_commit=FORK,
    rocm="7.2.3",
    archs=("gfx942", "gfx950"),
    recipes={
        "aiter": "FROM base\nENV AITER_USE_SYSTEM_TRITON=1\nRUN python3 setup.py bdist_wheel\n",
        "vllm": "FROM base\nRUN python3 setup.py bdist_wheel\n",
    },
    environment={"VLLM_ROCM_USE_AITER": "1"},
)
GFX950 = replace(STACK, archs=("gfx950",))


def kernels(ref: str = "", commit: str = "", **more: object) -> Facts:
    return replace(GFX950, aiter_ref=ref, aiter_commit=commit, **more)


def vllm(ref: str = "", commit: str = "", **more: object) -> Facts:
    return replace(STACK, vllm_ref=ref, vllm_commit=commit, **more)


def recipe(text: str, name: str = "aiter", **more: object) -> Facts:
    return replace(GFX950, recipes={name: text}, **more)


RACY = ["v0.1.10", "v0.1.10.post1", "v0.1.10.post2", "v0.1.10.post3", "v0.1.11", "v0.1.11.post1", "v0.1.12"]
RACY += ["v0.1.12.post1", "v0.1.12.post2", "v0.1.13.dev0", "v0.1.13-rc1", "v0.1.13-rc2", "v0.1.13-rc3", "v0.1.13-rc4"]
RACY += ["v0.1.13-rc5", "v0.1.13", "v0.1.13.post1"]
RMS_BAD = ["v0.1.15-rc0", "v0.1.15", "v0.1.15.post1", "v0.1.15.post2", "v0.1.15.post3"]
SOUND = ["v0.1.14-rc0", "v0.1.14", "v0.1.14.post1", "v0.1.16"]
SOUND += [f"v0.1.16.post{number}" for number in range(1, 7)]
SOUND += ["v0.1.17-rc0", "v0.1.17", "v0.1.17-longctx", "v0.1.18", "v0.1.19", "v0.1.19.post1", "v0.1.19.post2"]
SOUND += ["v0.1.20", "v0.1.20.post1"]

# name: facts, refused, warned
CASES: dict[str, tuple[Facts, list[str], list[str]]] = {
    "the default stack": (STACK, [], [TILELANG]),
    "the default stack for gfx950": (GFX950, [], []),
    "the default stack with its history": (replace(STACK, contains=history), [], [TILELANG]),
    "nothing known": (Facts(), [], []),
    "a stack without AITER and vLLM": (
        Facts(recipes={"torch": "RUN uv pip install"}, environment={"LANG": "C"}),
        [],
        [],
    ),
    # AITER by tag, offline
    **{f"AITER {tag}": (kernels(tag), [RACE], []) for tag in RACY},
    **{f"AITER {tag} on ROCm 7.2.3": (kernels(tag), [RMS], []) for tag in RMS_BAD},
    **{f"AITER {tag} on ROCm 7.2.3": (kernels(tag), [], []) for tag in SOUND},
    **{
        f"AITER v0.1.15.post3 on ROCm {rocm}": (kernels("v0.1.15.post3", rocm=rocm), [], [])
        for rocm in ("7.2.2", "7.2.4", "7.14", "7.2.30", "10.0.0")
    },
    "AITER v0.1.15 on the image tag of ROCm 7.2.3": (kernels("v0.1.15", rocm="7.2.3-complete"), [RMS], []),
    "AITER v0.1.15 on ROCm 7.2, of which patch is not known": (kernels("v0.1.15", rocm="7.2"), [RMS], []),
    "AITER v0.1.15 on a ROCm that is not known": (kernels("v0.1.15", rocm=""), [RMS], []),
    "AITER v0.1.14 on a ROCm that is not known": (kernels("v0.1.14", rocm=""), [], []),
    "AITER v0.1.13 on ROCm 7.2.2": (kernels("v0.1.13", rocm="7.2.2"), [RACE], []),
    "a tag without its v": (kernels("0.1.13"), [RACE], []),
    "a tag as a ref": (kernels("refs/tags/v0.1.14"), [], []),
    "a release candidate as pip spells it": (kernels("0.1.13rc5"), [RACE], []),
    **{f"AITER {tag}, newer than the table": (kernels(tag), [RACE, RMS], []) for tag in ("v0.1.21.post1", "v0.1.26")},
    "AITER v0.1.26 on ROCm 7.2.4": (kernels("v0.1.26", rocm="7.2.4"), [RACE], []),
    "an AITER branch": (kernels("main", rocm="7.2.4"), [RACE], []),
    "a short commit": (kernels("bd0534e", rocm="7.2.4"), [RACE], []),
    "a word that is no version": (kernels("v0.1.14-oops", rocm="7.2.4"), [RACE], []),
    # AITER by commit: the table
    "the commit of v0.1.14 alone": (kernels(commit=V0_1_14), [], []),
    "the commit of v0.1.14 as the ref": (kernels(V0_1_14.upper()), [], []),
    "the commit of v0.1.13.post1": (kernels(commit=V0_1_13_POST1), [RACE], []),
    "the tag v0.1.14 moved to a racy commit": (kernels("v0.1.14", V0_1_13_POST1), [RACE], []),
    "the tag v0.1.13 moved to a sound commit": (kernels("v0.1.13", V0_1_14), [], []),
    "the tag v0.1.14 moved to an unknown commit": (kernels("v0.1.14", NOWHERE, rocm="7.2.4"), [RACE], []),
    # AITER by commit: the history
    "just before the race fix": (kernels(commit=BEFORE_FIX, contains=history), [RACE], []),
    "the race fix itself": (kernels(commit=FIX, contains=history), [], []),
    "just after the race fix": (kernels(commit=AFTER_FIX, contains=history), [], []),
    "the commit that brings the partial sums": (kernels(commit=PRE_RMS, contains=history), [RMS], []),
    "just before the 7.2.3 fix": (kernels(commit=BEFORE_RMS_FIX, contains=history), [RMS], []),
    "just before the 7.2.3 fix, on 7.2.2": (kernels(commit=BEFORE_RMS_FIX, contains=history, rocm="7.2.2"), [], []),
    "the 7.2.3 fix itself": (kernels(commit=RMS_FIX, contains=history), [], []),
    "just after the 7.2.3 fix": (kernels(commit=AFTER_RMS_FIX, contains=history), [], []),
    "a commit that the history does not hold": (kernels(commit=NOWHERE, contains=history, rocm="7.2.4"), [RACE], []),
    # AITER by commit: the source
    "unguarded source": (kernels(commit=NOWHERE, file_at=source(UNGUARDED, "")), [RACE], []),
    "guarded source, no partial sums": (kernels(commit=NOWHERE, file_at=source(GUARDED, "")), [], []),
    "both stores": (kernels(commit=NOWHERE, file_at=source(GUARDED + UNGUARDED, "")), [RACE], []),
    "neither store": (kernels(commit=NOWHERE, file_at=source("int main;", "")), [RACE], []),
    "no such source": (kernels(commit=NOWHERE, file_at=source(None), rocm="7.2.4"), [RACE], []),
    "guarded, half of the warp": (kernels(commit=NOWHERE, file_at=source(GUARDED + HALF, "")), [RMS], []),
    "guarded, half of the warp, 7.2.4": (kernels(commit=NOWHERE, file_at=source(GUARDED + HALF), rocm="7.2.4"), [], []),
    "guarded, the whole warp": (kernels(commit=NOWHERE, file_at=source(GUARDED + WHOLE, "")), [], []),
    "guarded, partial sums of another make": (kernels(commit=NOWHERE, file_at=source(GUARDED + PARTIAL)), [RMS], []),
    # vLLM
    **{
        f"vLLM {tag}": (vllm(tag, mhc_default="tilelang"), [TILELANG, SWITCH], [])
        for tag in ("v0.22.0", "v0.22.1", "v0.23.0")
    },
    **{f"vLLM v0.{minor}.0": (vllm(f"v0.{minor}.0"), [SWITCH], []) for minor in range(24, 34)},
    **{
        f"vLLM v0.{minor}.0 with the plugin": (vllm(f"v0.{minor}.0", switch_plugin=True), [], [OPT_IN])
        for minor in range(25, 34)
    },
    "vLLM v0.24.0 with the plugin": (vllm("v0.24.0", switch_plugin=True), [], []),
    "vLLM v0.28.0 with the plugin for gfx950": (vllm("v0.28.0", switch_plugin=True, archs=("gfx950",)), [], []),
    "vLLM v0.28.0 with the plugin, and the opt-in set in the image": (
        vllm("v0.28.0", switch_plugin=True, environment={"VLLM_ROCM_USE_TILELANG_MHC": "1"}),
        [OPT_IN],
        [],
    ),
    "the fork with the plugin, which leaves it alone": (replace(STACK, switch_plugin=True), [], [TILELANG]),
    "a vLLM that is not known with the plugin": (vllm("v0.40.0", switch_plugin=True), [], [TILELANG, OPT_IN]),
    "vLLM v0.23.0 for gfx950": (
        vllm("v0.23.0", mhc_default="tilelang", archs=("gfx950",)),
        [SWITCH],
        [],
    ),
    "vLLM v0.23.0 said to take aiter": (vllm("v0.23.0"), [TILELANG, SWITCH], []),
    "vLLM v0.23.0 with the plugin": (vllm("v0.23.0", switch_plugin=True), [], [TILELANG]),
    "vLLM v0.24.0 has no aiter path to race": (
        vllm("v0.24.0", aiter_ref="v0.1.13.post1", aiter_commit=""),
        [SWITCH],
        [],
    ),
    "vLLM v0.24.0 with the plugin races": (
        vllm("v0.24.0", aiter_ref="v0.1.13.post1", aiter_commit="", switch_plugin=True),
        [RACE],
        [],
    ),
    "vLLM v0.25.0 on June's AITER": (vllm("v0.25.0", aiter_ref="v0.1.13.post1", aiter_commit=""), [RACE, SWITCH], []),
    "the upstream commit on June's AITER": (
        vllm(commit=UPSTREAM_MHC, aiter_ref="v0.1.13.post1", aiter_commit=""),
        [RACE, SWITCH],
        [],
    ),
    "the upstream commit": (vllm(commit=UPSTREAM_MHC), [SWITCH], []),
    "the upstream commit with its history": (vllm(commit=UPSTREAM_MHC, contains=history), [SWITCH], []),
    "an image that does not offer the opt-in": (vllm(commit=UPSTREAM_MHC, tilelang_opt_in=False), [], []),
    "a release by the beginning of its commit": (vllm("v0.25.0", "dd10e03f9" + "0" * 31), [SWITCH], []),
    "a release whose tag moved": (vllm("v0.24.0", NOWHERE), [SWITCH], [TILELANG]),
    "the earlier fork": (vllm(commit=EARLIER_FORK), [SWITCH], [TILELANG]),
    "the guard alone": (vllm(commit=GUARD, contains=history), [SWITCH], []),
    "a vLLM that is not known": (vllm("v0.40.0"), [SWITCH], [TILELANG]),
    "the fork without VLLM_ROCM_USE_AITER": (replace(STACK, environment={"LANG": "C"}), [TILELANG], []),
    "the fork without VLLM_ROCM_USE_AITER, with its history": (
        replace(STACK, environment={"LANG": "C"}, contains=history),
        [TILELANG],
        [],
    ),
    "the fork with the switch on": (
        replace(STACK, environment={"VLLM_ROCM_USE_AITER": "1", "VLLM_ROCM_USE_TILELANG_MHC": "true"}),
        [TILELANG],
        [],
    ),
    "the fork with tilelang by default": (replace(STACK, mhc_default="tilelang"), [TILELANG], []),
    "the fork with tilelang by default, for gfx950": (replace(GFX950, mhc_default="tilelang"), [], []),
    "the fork for gfx942 alone": (replace(STACK, archs=("gfx942",)), [], [TILELANG]),
    "the fork without the opt-in": (replace(STACK, tilelang_opt_in=False), [], []),
    "the fork for archs that are not known": (replace(STACK, archs=()), [], [TILELANG]),
    # recipes
    "AITER's recipe does not set the variable": (recipe("RUN python3 setup.py bdist_wheel"), [TRITON], []),
    "AITER's recipe sets it to 0": (recipe("ENV AITER_USE_SYSTEM_TRITON=0"), [TRITON], []),
    "AITER's recipe sets it and takes it back": (
        recipe("ENV AITER_USE_SYSTEM_TRITON=1\nENV AITER_USE_SYSTEM_TRITON=0"),
        [TRITON],
        [],
    ),
    "AITER's recipe sets it in a comment": (recipe("# ENV AITER_USE_SYSTEM_TRITON=1\nRUN make"), [TRITON], []),
    "AITER's recipe sets it for one command": (recipe("RUN AITER_USE_SYSTEM_TRITON='1' python3 setup.py"), [], []),
    "AITER v0.1.13 needs no such variable": (
        recipe("RUN make", aiter_ref="v0.1.13", aiter_commit=""),
        [RACE],
        [],
    ),
    "an AITER that is not known needs it": (
        recipe("RUN make", aiter_ref="v0.1.26", aiter_commit="", rocm="7.2.4"),
        [RACE, TRITON],
        [],
    ),
    "setup.py knows the variable": (
        recipe("RUN make", aiter_commit=NOWHERE, file_at=source(GUARDED, "os.environ['AITER_USE_SYSTEM_TRITON']")),
        [TRITON],
        [],
    ),
    "setup.py does not know it": (recipe("RUN make", aiter_commit=NOWHERE, file_at=source(GUARDED, "")), [], []),
    "another recipe without the variable": (recipe("RUN make", name="triton"), [], []),
    "git clone --branch": (
        recipe("RUN git clone --recursive \\\n    --branch v1.1.0 https://x/y.git", "mori"),
        [CLONE],
        [],
    ),
    "git clone -b": (recipe("RUN cd x && git clone -b main https://x/y.git", "mori"), [CLONE], []),
    "git -C … clone --branch=": (recipe("RUN git -C /src clone --branch=main https://x/y.git", "mori"), [CLONE], []),
    "git clone and checkout": (
        recipe("RUN git clone --bare --no-tags https://x/y.git && git checkout -B b " + NOWHERE, "mori"),
        [],
        [],
    ),
    "git clone --branch in a comment": (recipe("# not: git clone --branch main https://x\nRUN make", "mori"), [], []),
    "git branch after clone": (recipe("RUN git clone https://x/y.git; git branch -b x", "mori"), [], []),
    "precompiled": (recipe("ENV VLLM_USE_PRECOMPILED=1", "vllm"), [PRECOMPILED], []),
    "precompiled by an argument": (recipe('ARG VLLM_USE_PRECOMPILED="true"', "vllm"), [PRECOMPILED], []),
    "precompiled, off": (recipe("ENV VLLM_USE_PRECOMPILED=0", "vllm"), [], []),
    "precompiled from a checked wheel": (
        recipe("ENV VLLM_USE_PRECOMPILED=1 VLLM_PRECOMPILED_WHEEL_LOCATION=/in/vllm.whl", "vllm"),
        [],
        [],
    ),
    "the JIT folder": (
        replace(GFX950, environment={"VLLM_ROCM_USE_AITER": "1", "AITER_JIT_DIR": "/tmp/jit"}),
        [JIT],
        [],
    ),
    # models
    "hidden 256": (replace(GFX950, hidden_size=256), [SHAPE], []),
    "hidden 512": (replace(GFX950, hidden_size=512, hc_mult=4), [SHAPE], []),
    "hidden 768": (replace(STACK, hidden_size=768, hc_mult=4), [], [TILELANG]),
    "hidden 1024 on gfx950": (replace(GFX950, hidden_size=1024), [SHAPE], []),
    "hidden 1024 on gfx942": (replace(STACK, archs=("gfx942",), hidden_size=1024), [], [TILELANG]),
    "hidden 1024 on both": (replace(STACK, hidden_size=1024), [SHAPE], [TILELANG]),
    "hidden 1024 on archs that are not known": (replace(GFX950, archs=(), hidden_size=1024), [SHAPE], [TILELANG]),
    "hidden 1280": (replace(GFX950, hidden_size=1280, hc_mult=4), [], []),
    "hidden 8, which vLLM does not send to AITER": (replace(GFX950, hidden_size=8), [], []),
    "hc_mult 2": (replace(GFX950, hidden_size=4096, hc_mult=2), [SHAPE], []),
    "hc_mult 2, where vLLM checks": (vllm("v0.29.0", switch_plugin=True, hidden_size=4096, hc_mult=2), [], [OPT_IN]),
    "hidden 256 where vLLM has no aiter path": (vllm("v0.24.0", hidden_size=256), [SWITCH], []),
    "a model and no component": (Facts(hidden_size=256), [], []),
}


@pytest.mark.parametrize(("facts", "refused", "warned"), CASES.values(), ids=CASES)
def test_what_a_combination_is_told(facts: Facts, refused: list[str], warned: list[str]) -> None:
    found = judge(ADVISORIES, facts)
    assert [finding.advisory.id for finding in found if finding.effect == "refuse"] == refused
    assert [finding.advisory.id for finding in found if finding.effect == "warn"] == warned
    assert all(finding.because for finding in found)


def only(facts: Facts, name: str) -> Finding:
    return next(finding for finding in judge(ADVISORIES, facts) if finding.advisory.id == name)


@pytest.mark.parametrize(
    ("facts", "name", "by", "says"),
    [
        (kernels(commit=V0_1_13_POST1, contains=history, file_at=source(GUARDED)), RACE, "history", "b639cb63bcac"),
        (kernels(commit=V0_1_14, file_at=source(UNGUARDED)), RACE, "source", "mhc_kernels.cu"),
        (kernels(commit=V0_1_13_POST1), RACE, "table", "table of known revisions"),
        (kernels("v0.1.13"), RACE, "table", "AITER v0.1.13 lacks"),
        (kernels(commit=V0_1_13_POST1, file_at=source("int main;")), RACE, "table", "(mHC's sum of squares"),
        (kernels("v0.1.26"), RACE, "unknown", "newer than the newest in the table (0.1.20.post1)"),
        (kernels("v0.1.26"), RACE, "unknown", "kiln lock"),
        (kernels("v0.1.14", NOWHERE), RACE, "unknown", "The tag v0.1.14 was bd0534e9630f"),
        (kernels("main"), RACE, "unknown", "not in the table"),
        (kernels("v0.1.15", rocm="7.2"), RMS, "unknown", "7.2, which may be it"),
        (kernels("v0.1.15"), RMS, "table", "ROCm is 7.2.3"),
        (kernels(commit=BEFORE_RMS_FIX, contains=history), RMS, "history", "1be6aee67b7c"),
        (STACK, TILELANG, "table", "tilelang is an opt-in here"),
        (replace(STACK, archs=()), TILELANG, "unknown", "archs are not known"),
        (recipe("RUN git clone -b x y"), CLONE, "facts", "`git clone -b`"),
        (replace(GFX950, hidden_size=512), SHAPE, "facts", "hidden size 512 on gfx950: mhc_post"),
        (replace(GFX950, environment={"AITER_JIT_DIR": "/x"}), JIT, "facts", "AITER_JIT_DIR=/x"),
    ],
)
def test_what_decided_it(facts: Facts, name: str, by: str, says: str) -> None:
    finding = only(facts, name)
    assert finding.decided_by == by
    assert says in finding.because


@pytest.mark.parametrize(
    ("hidden", "gfx942", "gfx950"),
    [
        (0, False, False),
        (-256, False, False),
        (256, False, False),
        (512, False, False),
        (768, True, True),
        (1000, False, False),
        (1024, True, False),
        (1280, True, True),
        (1536, True, True),
        (1792, True, True),
        (2048, True, True),
        (2304, True, True),
        (2560, True, True),
        (4096, True, True),
        (5120, True, True),
        (7168, True, True),
    ],
)
def test_the_hidden_sizes_that_aiter_takes(hidden: int, gfx942: bool, gfx950: bool) -> None:
    assert (hidden_size_trouble(hidden, "gfx942") == "") is gfx942
    assert (hidden_size_trouble(hidden, "gfx950") == "") is gfx950


# --- enforce


def test_nothing_refused_is_nothing_raised() -> None:
    assert enforce((), (), IDS) == ()
    assert enforce(judge(ADVISORIES, STACK), (), IDS) == ()


def test_a_refusal_says_all_that_a_person_needs() -> None:
    with pytest.raises(AdvisoryError) as caught:
        enforce(judge(ADVISORIES, vllm("v0.25.0", aiter_ref="v0.1.13.post1", aiter_commit="")), (), IDS)
    text = str(caught.value)
    assert caught.value.exit_code == 19
    assert f"2 advisories apply: {RACE}, {SWITCH}" in text
    advisory = ADVISORIES[IDS.index(RACE)]
    for part in (advisory.title, advisory.symptom, advisory.instead, *advisory.evidence):
        assert part in text
    assert "AITER v0.1.13.post1 lacks race-fix" in text
    assert f"ALLOW_ADVISORY={RACE},{SWITCH}" in text
    assert f"--allow-advisory {RACE} --allow-advisory {SWITCH}" in text


def test_one_allowed_and_one_not_is_refused_for_the_other() -> None:
    findings = judge(ADVISORIES, vllm("v0.25.0", aiter_ref="v0.1.13.post1", aiter_commit=""))
    with pytest.raises(AdvisoryError, match=r"1 advisory applies: vllm-no-mhc-switch\n"):
        enforce(findings, [RACE], IDS)
    assert enforce(findings, [SWITCH, RACE, JIT], IDS) == (RACE, SWITCH)


def test_what_could_not_be_shown_is_refused_and_allowed_the_same_way() -> None:
    findings = judge(ADVISORIES, kernels("v0.1.26", rocm="7.2.4"))
    with pytest.raises(AdvisoryError, match=RACE) as caught:
        enforce(findings, [], IDS)
    assert "decided by: unknown" in caught.value.why
    assert enforce(findings, [RACE], IDS) == (RACE,)


def test_an_allowed_warning_is_returned() -> None:
    assert enforce(judge(ADVISORIES, STACK), [TILELANG], IDS) == (TILELANG,)


def test_an_allowed_id_that_does_not_apply_is_not_returned() -> None:
    assert enforce(judge(ADVISORIES, STACK), [RACE], IDS) == ()


@pytest.mark.parametrize(
    ("name", "says"), [("aiter-mhc-rase", f"Did you mean {RACE}"), ("zzz", "Known: "), ("", "Known: ")]
)
def test_an_unknown_id_is_answered(name: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        enforce(judge(ADVISORIES, kernels("v0.1.13")), [name], IDS)
    assert repr(name) in caught.value.what
    assert caught.value.why.startswith(says)


# --- the file


def test_the_real_advisories_are_read() -> None:
    assert IDS == [RACE, RMS, TILELANG, OPT_IN, TRITON, SHAPE, SWITCH, CLONE, JIT, PRECOMPILED]
    assert {advisory.id: advisory.severity for advisory in ADVISORIES}[RACE] == "wrong-results"


def test_every_commit_of_the_table_of_aiter_is_whole() -> None:
    rule = ADVISORIES[0].rule
    lines = rule.known["aiter"].revisions
    assert len(lines) == 38
    assert all(re.fullmatch(r"[0-9a-f]{40}", line.commit) for line in lines)
    named = {name: line.commit for line in lines for name in line.names}
    assert len(named) == 41
    assert named["v0.1.13"] == named["v0.1.13-rc5"]
    assert named["v0.1.14"] == V0_1_14


def test_the_manual_holds_the_table() -> None:
    manual = (PROJECT / "docs" / "advisories.md").read_text(encoding="utf-8")
    assert table(ADVISORIES) in manual


def test_a_line_in_a_cell_does_not_break_the_table() -> None:
    odd = replace(ADVISORIES[0], symptom="one\ntwo | three")
    assert "one two \\| three" in table([odd])
    assert table([odd]).count("\n") == 3


TOY = """\
schema = 1

[aiter.marks.fix]
about = "it is mended"
commits = ["1111111111111111111111111111111111111111"]
file = "a.cu"
present = 'good'
absent = 'bad'

[[aiter.revisions]]
names = ["v1.0"]
commit = "2222222222222222222222222222222222222222"
has = ["fix"]

[[aiter.revisions]]
names = ["v0.9"]
commit = "333333333"
unknown = ["fix"]

[vllm.marks]
aiter-mhc = { about = "a" }
aiter-mhc-by-variable = { about = "b" }
tilelang-switch = { about = "c" }
hc-mult-check = { about = "d" }

[[vllm.revisions]]
names = ["v2.0"]

[[advisories]]
id = "toy-bad"
title = "The toy is bad"
severity = "slow"
scope = "Every toy."
symptom = "It is slow."
instead = "another toy"
evidence = ["toy #1"]
[advisories.rule]
kind = "revision"
component = "aiter"
lacks = ["fix"]
rocm = ["7.2.3"]
archs = ["gfx950"]

[[advisories]]
id = "toy-recipe"
title = "The recipe is bad"
severity = "crash"
scope = "Every recipe."
symptom = "It stops."
instead = "another recipe"
evidence = ["toy #2"]
rule = { kind = "recipe", recipes = ["toy"], sets = ["TOY=1"], effect = "warn" }

[[advisories]]
id = "toy-env"
title = "The environment is bad"
severity = "irreproducible"
scope = "Every image."
symptom = "It differs."
instead = "nothing"
evidence = ["toy #3"]
rule = { kind = "environment", sets = ["TOY=2"] }
"""


def toy(folder: Path, text: str = TOY) -> tuple[Advisory, ...]:
    (folder / "pins").mkdir(exist_ok=True)
    (folder / "pins" / "advisories.toml").write_text(text, encoding="utf-8")
    return read_advisories(Workspace(folder, folder / "state"))


def test_the_toy_advisories_judge(tmp_path: Path) -> None:
    advisories = toy(tmp_path)
    facts = Facts(
        aiter_ref="v0.9", rocm="7.2.3", archs=("gfx950",), recipes={"toy": "ENV TOY 1"}, environment={"TOY": "2"}
    )
    found = [(finding.advisory.id, finding.effect, finding.decided_by) for finding in judge(advisories, facts)]
    assert found == [("toy-bad", "refuse", "unknown"), ("toy-recipe", "warn", "facts"), ("toy-env", "refuse", "facts")]
    sound = Facts(aiter_ref="v1.0", recipes={"toy": "ENV TOY 2", "other": "ENV TOY 1"}, environment={"TOY": "1"})
    assert judge(advisories, sound) == ()
    assert judge(advisories, replace(facts, aiter_commit="1" * 40, recipes={}, environment={})) == ()


BASIC = 'rule = { kind = "recipe", recipes = ["toy"], sets = ["TOY=1"], effect = "warn" }'
ENV = 'rule = { kind = "environment", sets = ["TOY=2"] }'
WRONG = {
    "no schema": ("schema = 1\n", "", "schema"),
    "another schema": ("schema = 1\n", "schema = 2\n", "schema"),
    "an unknown table": ("schema = 1\n", "schema = 1\n[tritn]\n", "tritn"),
    "a mark without words": ('about = "it is mended"', 'about = " "', "aiter.marks.fix.about"),
    "a mark with a capital": ("[aiter.marks.fix]", "[aiter.marks.Fix]", "aiter.marks.Fix"),
    "a short commit of a mark": (
        '["1111111111111111111111111111111111111111"]',
        '["1111111"]',
        "aiter.marks.fix.commits",
    ),
    "a file without a pattern": ("present = 'good'\nabsent = 'bad'\n", "", "aiter.marks.fix"),
    "absent alone": ("file = \"a.cu\"\npresent = 'good'\n", "", "aiter.marks.fix"),
    "a pattern that is none": ("present = 'good'", "present = '(good'", "aiter.marks.fix.present"),
    "an unknown key of a mark": ('file = "a.cu"', 'file = "a.cu"\nflie = "b"', "aiter.marks.fix.flie"),
    "a mark that is missing": ('hc-mult-check = { about = "d" }\n', "", "vllm.marks.hc-mult-check"),
    "revisions that are no array": ("[[vllm.revisions]]", "[vllm.revisions]", "vllm.revisions"),
    "no revisions": ('[[vllm.revisions]]\nnames = ["v2.0"]\n', "", "vllm.revisions"),
    "a revision without name and commit": (
        'names = ["v0.9"]\ncommit = "333333333"\n',
        "",
        "aiter.revisions.2",
    ),
    "a commit that is too short": ('"333333333"', '"3333"', "aiter.revisions.3333.commit"),
    "a commit in capitals": ('"333333333"', '"ABCDEF012"', "aiter.revisions.ABCDEF012.commit"),
    "a name twice": ('names = ["v0.9"]', 'names = ["1.0"]', "aiter.revisions"),
    "a commit twice": ('"333333333"', '"2222222222222222222222222222222222222222"', "aiter.revisions"),
    "has what is no mark": ('has = ["fix"]', 'has = ["fxi"]', f"aiter.revisions.{'2' * 40}.has"),
    "unknown what is no mark": ('unknown = ["fix"]', 'unknown = ["fxi"]', "aiter.revisions.333333333.unknown"),
    "has and unknown": ('unknown = ["fix"]', 'unknown = ["fix"]\nhas = ["fix"]', "aiter.revisions.333333333"),
    "an unknown key of a revision": ('names = ["v0.9"]', 'names = ["v0.9"]\nx = 1', "aiter.revisions.333333333.x"),
    "no advisory": (TOY[TOY.index("[[advisories]]") :], "", "advisories"),
    "no id": ('id = "toy-bad"\n', "", "advisories.1.id"),
    "an id with a blank": ('id = "toy-bad"', 'id = "toy bad"', "advisories.toy bad.id"),
    "an id that is a number": ('id = "toy-bad"', "id = 7", "advisories.1.id"),
    "an id twice": ('id = "toy-recipe"', 'id = "toy-bad"', "advisories"),
    "no title": ('title = "The toy is bad"\n', "", "advisories.toy-bad.title"),
    "an empty symptom": ('symptom = "It is slow."', 'symptom = ""', "advisories.toy-bad.symptom"),
    "no scope": ('scope = "Every toy."\n', "", "advisories.toy-bad.scope"),
    "no instead": ('instead = "another toy"\n', "", "advisories.toy-bad.instead"),
    "an unknown severity": ('severity = "slow"', 'severity = "bad"', "advisories.toy-bad.severity"),
    "no evidence": ('evidence = ["toy #1"]', "evidence = []", "advisories.toy-bad.evidence"),
    "evidence that is a number": ('evidence = ["toy #1"]', 'evidence = ["toy #1", 1]', "advisories.toy-bad.evidence"),
    "an unknown key of an advisory": (
        'severity = "slow"',
        'severity = "slow"\nsince = "x"',
        "advisories.toy-bad.since",
    ),
    "no rule": (ENV + "\n", "", "advisories.toy-env.rule"),
    "an unknown kind": ('kind = "environment"', 'kind = "magic"', "advisories.toy-env.rule.kind"),
    "an unknown effect": ('effect = "warn"', 'effect = "shout"', "advisories.toy-recipe.rule.effect"),
    "an unknown key of a rule": ('rocm = ["7.2.3"]', 'rcom = ["7.2.3"]', "advisories.toy-bad.rule.rcom"),
    "an unknown component": ('component = "aiter"', 'component = "itera"', "advisories.toy-bad.rule.component"),
    "a rule on no mark": ('lacks = ["fix"]\n', "", "advisories.toy-bad.rule"),
    "a rule on what is no mark": ('lacks = ["fix"]', 'lacks = ["fix", "x"]', "advisories.toy-bad.rule.lacks"),
    "a ROCm without its patch": ('rocm = ["7.2.3"]', 'rocm = ["7.2"]', "advisories.toy-bad.rule.rocm"),
    "an arch that is none": ('archs = ["gfx950"]', 'archs = ["mi355"]', "advisories.toy-bad.rule.archs"),
    "an unknown path": ('lacks = ["fix"]', 'lacks = ["fix"]\npath = "cuda"', "advisories.toy-bad.rule.path"),
    "a recipe rule without anything": (', sets = ["TOY=1"]', "", "advisories.toy-recipe.rule"),
    "a recipe rule with two things": (
        'sets = ["TOY=1"]',
        'sets = ["TOY=1"], matches = "x"',
        "advisories.toy-recipe.rule",
    ),
    "a pattern of a recipe that is none": (
        'sets = ["TOY=1"]',
        'matches = "[x"',
        "advisories.toy-recipe.rule.matches",
    ),
    "a setting without a value": ('"TOY=1"', '"TOY"', "advisories.toy-recipe.rule.sets"),
    "all recipes should set it": (
        'recipes = ["toy"], sets',
        "lacks",
        "advisories.toy-recipe.rule",
    ),
    "a component without has": (
        'kind = "recipe"',
        'kind = "recipe", component = "aiter"',
        "advisories.toy-recipe.rule",
    ),
    "no variable": ('sets = ["TOY=2"]', "sets = []", "advisories.toy-env.rule.sets"),
    "a variable that is none": ('"TOY=2"', '"toy 2"', "advisories.toy-env.rule.sets"),
    "a key of another kind": (ENV, 'rule = { kind = "shape", sets = ["X"] }', "advisories.toy-env.rule.sets"),
}


@pytest.mark.parametrize(("old", "new", "key"), WRONG.values(), ids=WRONG)
def test_a_mistake_is_named_with_its_key(tmp_path: Path, old: str, new: str, key: str) -> None:
    assert TOY.count(old) == 1, f"the example {old!r} is not once in the toy's advisories"
    with pytest.raises(PinsError) as caught:
        toy(tmp_path, TOY.replace(old, new))
    assert key in [line.partition(": ")[0] for line in caught.value.why.splitlines()]
    assert "docs/advisories.md" in caught.value.fix


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    text = TOY.replace('"slow"', '"bad"').replace('"gfx950"', '"mi355"').replace("schema = 1", "schema = 3")
    with pytest.raises(PinsError, match="3 problems"):
        toy(tmp_path, text)


def test_a_missing_file_and_one_that_is_not_toml_are_named(tmp_path: Path) -> None:
    with pytest.raises(PinsError, match="is not TOML"):
        toy(tmp_path, "= nothing")
    (tmp_path / "pins" / "advisories.toml").unlink()
    with pytest.raises(PinsError, match=r"advisories\.toml does not exist") as caught:
        read_advisories(Workspace(tmp_path, tmp_path / "state"))
    assert "docs/advisories.md" in caught.value.fix


# --- recipes


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("ENV A=1", ("1",)),
        ("ENV B=2 A=1 C=3", ("1",)),
        ('ENV A="1"', ("1",)),
        ("ENV A 1", ("1",)),
        ("ARG A=1", ("1",)),
        ("RUN export A=1 && make", ("1",)),
        ("RUN (A=1; make)", ("1",)),
        ("RUN B=2 \\\n    A=1 \\\n    make", ("1",)),
        ("RUN B=2 \\\n# a comment\n    A=1 make", ("1",)),
        ("ENV A=1\nENV A=0", ("1", "0")),
        ("ENV A=", ("",)),
        ("# ENV A=1", ()),
        ("RUN make # A=1", ()),
        ("ENV BA=1 A_=1", ()),
        ("RUN cmake -DA=1", ()),
        ("RUN echo ${A:-1}", ()),
    ],
)
def test_the_values_of_a_variable(text: str, values: tuple[str, ...]) -> None:
    assert variable_values(text, "A") == values


# --- properties


words = st.one_of(
    st.text(max_size=30),
    st.from_regex(r"v?0\.1\.\d{1,2}(\.post\d|-rc\d|rc\d|\.dev\d)?(\+[a-z]+)?", fullmatch=True),
    st.from_regex(r"[0-9a-f]{7,40}", fullmatch=True),
)
anything = st.builds(
    Facts,
    aiter_ref=words,
    aiter_commit=words,
    vllm_ref=words,
    vllm_commit=words,
    rocm=words,
    archs=st.lists(words, max_size=3).map(tuple),
    mhc_default=st.sampled_from(["aiter", "tilelang"]),
    tilelang_opt_in=st.booleans(),
    switch_plugin=st.booleans(),
    recipes=st.dictionaries(st.sampled_from(["aiter", "vllm"]), st.text(max_size=80)),
    environment=st.dictionaries(words, words, max_size=3),
    hidden_size=st.integers(-1024, 8192),
    hc_mult=st.integers(-1, 8),
)


@given(words)
def test_any_ref_has_a_key_of_its_own_and_the_key_is_its_own_key(ref: str) -> None:
    assert ref_key(ref_key(ref)) == ref_key(ref)
    assert ref_key(f"  {ref} ") == ref_key(ref)


@given(anything)
def test_judging_never_raises_and_is_deterministic(facts: Facts) -> None:
    found = judge(ADVISORIES, facts)
    assert judge(ADVISORIES, facts) == found
    ids = [finding.advisory.id for finding in found]
    assert ids == [name for name in IDS if name in ids]
    assert enforce(found, IDS, IDS) == tuple(sorted(ids))


@given(anything, st.sampled_from(RACY + RMS_BAD + SOUND))
def test_a_known_tag_decides_whatever_else_is_given(facts: Facts, tag: str) -> None:
    found = judge(ADVISORIES, replace(facts, aiter_ref=tag, aiter_commit="", vllm_ref="v0.25.0", vllm_commit=""))
    assert any(finding.advisory.id == RACE for finding in found) is (tag in RACY)


@given(st.text(max_size=200))
def test_any_text_is_a_recipe(text: str) -> None:
    assert commands(text).count("\n") <= text.count("\n") + len(text)
    assert variable_values(text + "\nENV A=1", "A")[-1:] in (("1",), ())


@given(st.integers(1, 64), st.sampled_from(["gfx942", "gfx950"]))
def test_a_hidden_size_from_2048_on_is_always_taken(blocks: int, arch: str) -> None:
    assert hidden_size_trouble(2048 + 256 * (blocks - 1), arch) == ""
