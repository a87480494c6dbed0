"""Judging what was seen in an image: a sound document passes every rule, and each rule fails on the one thing that it is for."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from kiln.git import Submodule
from kiln.lockentries import Git
from kiln.lockfile import Lock
from kiln.verify import inspect, signatures, symbols
from kiln.verify.checks import Outcome

COMMIT, OTHER, TREE = "a" * 40, "b" * 40, "c" * 40
AITER = Git("aiter", "https://x/aiter", "v0.1.14", COMMIT, TREE, (Submodule("3rdparty/ck", "https://x/ck", OTHER),))
LOCK = Lock("dsv4-mhc", "p", (), (), gits=(AITER,))
LABELS = {
    "io.kiln.component.aiter.commit": COMMIT,
    "io.kiln.component.aiter": "v0.1.14",
    "io.kiln.component.needs": "2 wheels",
    "io.kiln.stack": "dsv4-mhc",
}
MODULE = "/site/aiter/jit/module_mhc.so"


def call(callee: str, verdict: str = "fits", why: str = "") -> dict[str, Any]:
    return {
        "file": "/site/vllm/_aiter_ops.py",
        "line": 7,
        "in": "ops.run",
        "callee": callee,
        "verdict": verdict,
        "why": why,
    }


def distribution(name: str, version: str, **more: Any) -> dict[str, Any]:
    sound = {"debian": False, "editable": False, "direct_url": "", "commit": "", "site": "/site", "requires": []}
    return {"name": name, "version": version, **sound, **more}


@pytest.fixture
def doc() -> dict[str, Any]:
    """What the script says of a sound image."""
    component = {
        "commit": COMMIT,
        "tree": TREE,
        "picks": [],
        "submodules": {"3rdparty/ck": OTHER},
        "version": "v0.1.14",
    }
    component["wheels"] = [{"file": "amd_aiter-0.1.14-cp312-cp312-linux_x86_64.whl", "sha256": "x", "size": 1}]
    said = {
        "lock_sha256": LOCK.sha256,
        "rehearsal": False,
        "base": {"rocm": "7.2.3"},
        "components": {"aiter": component, "needs": {"version": "2 wheels"}},
    }
    sections: dict[str, Any] = {
        "distributions": {
            "distributions": [distribution("amd-aiter", "0.1.14"), distribution("toy", "1.0"), distribution("six", "1", debian=True)],
            "files": 9, "problems": [], "problem_count": 0, "unowned": [], "unowned_count": 0,
        },
        "requirements": {"rules": "packaging", "judged": 3, "problems": [], "problem_count": 0},
        "libraries": {
            "interpreter": "/usr/bin/python3.12", "files": 2, "judged": 2, "other": {}, "problems": [], "problem_count": 0,
            "absent_drivers": {"libcuda.so.1": ["/site/t.so"]}, "unjudged_symbols": {}, "loaded_before": {},
            "needs": {"GLIBC": ["2.34", "/site/a.so"]}, "provides": {"GLIBC": "2.35"},
        },
        "app": {"versions": {"AITER_COMMIT": COMMIT, "AITER_BRANCH": "v0.1.14"}, "provenance": said, "trouble": ""},
        "files": {
            "files": 5, "setuid": [{"path": "/usr/bin/su", "mode": "4755", "package": "util-linux"}], "world_writable": [],
            "secrets": [], "certificates": [], "left_over": [], "proxies": [], "variables": [], "unseen": [],
        },
        "switch": {"variable": "VLLM_X", "vllm": "/site/vllm", "envs": True, "in_vllm": True, "readers": ["/site/vllm/models/m.py"], "plugins": []},
        "calls": {"installed": {"aiter": True, "tilelang": True}, "files": [], "calls": [call("aiter.ops.mhc.mhc_pre"), call("tilelang.language.x", "unknown")]},
        "mhc_module": {
            "aiter": True, "path": MODULE, "there": True, "sha256": "x", "size": 1, "init": ["PyInit_module_mhc"], "exported": [],
            "code": [{"named": one, "processor": one} for one in ("gfx942", "gfx950")],
        },
    }  # fmt: skip
    document = {"schema_version": 1, **{name: {"looked": True, **found} for name, found in sections.items()}}
    return json.loads(json.dumps(document))  # as it comes out of a container


JUDGES: dict[str, Callable[[Any], Outcome]] = {
    "distributions": lambda doc: inspect.distributions(doc, {"toy": "1.0"}, ("amd-aiter",)),
    "requirements": lambda doc: inspect.requirements(doc, {"TorchVision": "text serving never imports it"}),
    "libraries": lambda doc: symbols.libraries(doc, {"GLIBC": "2.35"}, may_lack=symbols.OF_THE_MACHINE),
    "app": lambda doc: inspect.provenance(doc, LOCK, LABELS),
    "files": inspect.files,
    "switch": lambda doc: inspect.switch(doc, needed=True),
    "calls": signatures.signatures,
    "mhc_module": lambda doc: symbols.mhc_module(doc, ("gfx942", "gfx950")),
}


@pytest.mark.parametrize("name", JUDGES)
def test_a_sound_image_passes(doc: dict[str, Any], name: str) -> None:
    outcome = JUDGES[name](doc)
    assert (outcome.status, "\n" in outcome.summary) == ("pass", False), outcome.summary
    json.dumps(outcome.evidence)


@pytest.mark.parametrize("name", JUDGES)
def test_what_was_not_looked_at_is_no_pass(doc: dict[str, Any], name: str) -> None:
    found = dict(doc)
    del found[name]
    assert JUDGES[name](found).status == "error"
    found[name] = {"looked": False, "why": "the disk is gone"}
    assert (JUDGES[name](found).status, "the disk is gone" in JUDGES[name](found).summary) == ("error", True)
    found[name] = {"looked": False, "why": "vLLM is not installed", "nothing": True}
    assert JUDGES[name](found) == Outcome("skip", "vLLM is not installed")


def problem(kind: str, what: str = "libx.so", file: str = "/site/a.so") -> dict[str, Any]:
    return {"problems": [{"file": file, "kind": kind, "what": what}], "problem_count": 1}


def unmet(needs: str, why: str = "is not installed", extra: str = "") -> dict[str, Any]:
    return {
        "problems": [{"distribution": "toy 1.0", "extra": extra, "needs": needs, "problem": why}],
        "problem_count": 1,
    }


PLUGIN = {
    "distribution": "kiln-vllm-mhc-switch",
    "name": "kiln_mhc_switch",
    "target": "k.plugin:register",
    "there": True,
    "broken": {"cpu": "", "rocm": ""},
}
WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    # the section, what is otherwise in it, the status, words of the summary
    ("distributions", {"distributions": []}, "error", "no distributions at all"),
    ("distributions", {"distributions": [distribution("toy", "1.0")]}, "fail", "amd-aiter: built from source, is missing"),
    ("distributions", {"distributions": [distribution("amd-aiter", "1"), distribution("toy", "2")]}, "fail", "toy: expected '1.0', found '2'"),
    ("distributions", {"distributions": [distribution("amd-aiter", "1"), *[distribution("toy", "1.0")] * 2]}, "fail", "toy: installed more than once"),
    ("distributions", {"distributions": [distribution("amd-aiter", "1", editable=True, direct_url="file:///src"), distribution("toy", "1.0")]}, "fail", "editable, from file:///src"),
    ("distributions", {"problems": [{"distribution": "toy 1.0", "file": "toy.py", "problem": "is missing"}], "problem_count": 30}, "fail", "and 10 more"),
    ("distributions", {"unowned": ["/site/x.pth"], "unowned_count": 1}, "fail", "/site/x.pth: no distribution's RECORD names it"),
    ("requirements", unmet("other>=2"), "fail", "toy 1.0 needs other>=2: is not installed"),
    ("requirements", unmet("other>=2", "other 1 is installed", "fast"), "fail", "toy 1.0[fast] needs other>=2: other 1 is installed"),
    ("requirements", unmet("torchvision; python_version > '3'"), "pass", "1 left out by the pins"),
    ("requirements", unmet("torchvision>2", "torchvision 1 is installed"), "fail", "torchvision 1 is installed"),
    ("requirements", {"judged": 0}, "pass", "0 requirements are met"),
    ("libraries", problem("missing-library"), "fail", "/site/a.so: needs libx.so, which is nowhere"),
    ("libraries", problem("undefined", "at::x"), "fail", "wants symbols that nothing it needs defines: at::x"),
    ("libraries", problem("version", "libc.so.6 of this image has no GLIBC_2.38"), "fail", "no GLIBC_2.38: it was built on a newer system"),
    ("libraries", problem("unreadable", "permission denied"), "error", "/site/a.so: permission denied"),
    ("libraries", problem("damaged", "it is cut"), "fail", "/site/a.so: it is cut: its component must be built"),
    ("libraries", problem("missing-library", "libtbb.so.12", "/site/numba/np/ufunc/tbbpool.cpython-312-x86_64-linux-gnu.so"), "pass", "2 libraries"),
    ("libraries", problem("undefined", "x", "/site/numba/np/ufunc/tbbpool.cpython-312-x86_64-linux-gnu.so"), "fail", "wants symbols"),
    ("libraries", {"needs": {"GLIBC": ["2.36", "/site/a.so"]}}, "fail", "/site/a.so: needs GLIBC_2.36, at most GLIBC_2.35"),
    ("libraries", {"needs": {"GLIBC": ["2.4", "/site/a.so"]}}, "pass", "GLIBC_2.4"),
    ("libraries", {"absent_drivers": {"libamdhip64.so.6": ["/site/a.so"]}}, "fail", "/site/a.so: needs libamdhip64.so.6, which is nowhere"),
    ("libraries", {"interpreter": ""}, "error", "the program that runs Python was not found"),
    ("files", {"setuid": [{"path": "/opt/x", "mode": "4755", "package": ""}]}, "fail", "/opt/x: has the mode 4755"),
    ("files", {"world_writable": ["/opt/x"]}, "fail", "/opt/x: everybody may write it"),
    ("files", {"world_writable": ["/usr/local/.lock"]}, "fail", "/usr/local/.lock: everybody may write it"),
    ("files", {"secrets": [{"path": "/opt/x.pem", "kind": "private key"}]}, "fail", "/opt/x.pem: looks like a secret (private key)"),
    ("files", {"certificates": ["/usr/local/share/ca-certificates/x.crt"]}, "fail", "x.crt: is an authority"),
    ("files", {"left_over": ["/tmp/x"]}, "fail", "/tmp/x: is left over"),
    ("files", {"proxies": [{"path": "/etc/environment", "name": "http_proxy"}]}, "fail", "/etc/environment: sets http_proxy"),
    ("files", {"variables": ["HF_TOKEN"]}, "fail", "HF_TOKEN: is a variable of the first process"),
    ("files", {"unseen": [{"path": "/tmp", "why": "something is mounted over it"}]}, "error", "/tmp: could not look: something is mounted"),
    ("switch", {"in_vllm": False}, "fail", "/site/vllm/envs.py does not define VLLM_X, and kiln-vllm-mhc-switch is not installed"),
    ("switch", {"in_vllm": False, "plugins": [PLUGIN | {"broken": {"cpu": "", "rocm": "no HAS_X"}}]}, "fail", "does not hold with this vLLM: no HAS_X"),
    ("switch", {"plugins": [{**PLUGIN, "there": False}]}, "fail", "k.plugin:register of kiln-vllm-mhc-switch is not in the image"),
    ("switch", {"readers": []}, "fail", "/site/vllm/envs.py defines VLLM_X, and no model code of this vLLM asks for it"),
    ("switch", {"in_vllm": False, "envs": False}, "error", "/site/vllm/envs.py is not there"),
    ("calls", {"calls": [call("aiter.ops.mhc.mhc_pre", "misfit", "it has no argument x")]}, "fail", "_aiter_ops.py:7 in ops.run: aiter.ops.mhc.mhc_pre: misfit: it has no argument x"),
    ("calls", {"calls": [call("vllm.ops.mhc_pre", "misfit"), call("aiter.ops.mhc.mhc_pre")]}, "fail", "vllm.ops.mhc_pre: misfit"),
    ("calls", {"calls": [call("aiter.ops.mhc.mhc_pre", "unknown", "it is handed to wrap")]}, "error", "handed to wrap"),
    ("calls", {"calls": [call("aiter.ops.mhc.mhc_new", "guarded"), call("aiter.ops.mhc.mhc_pre")]}, "pass", "1 calls to AITER's mHC"),
    ("calls", {"calls": []}, "error", "no call of vLLM's to AITER's mHC was found"),
    ("calls", {"installed": {"aiter": False, "tilelang": False}, "calls": [call("aiter.ops.mhc.mhc_pre", "absent")]}, "skip", "AITER is not in the image"),
    ("mhc_module", {"there": False, "instead": ["module_mhc.so.bak"]}, "fail", f"{MODULE} is missing (beside it: module_mhc.so.bak)"),
    ("mhc_module", {"aiter": False}, "skip", "AITER is not in the image"),
    ("mhc_module", {"code": [{"named": "gfx942", "processor": "gfx942"}]}, "fail", f"{MODULE}: has no code for gfx950, only for gfx942"),
    ("mhc_module", {"code": []}, "fail", "only for no GPU"),
    ("mhc_module", {"code": [{"named": "gfx950", "processor": "gfx942"}]}, "fail", "its code for gfx950 is for gfx942"),
    ("mhc_module", {"init": []}, "fail", "defines no PyInit_module_mhc"),
    ("mhc_module", {"init": [], "exported": ["mhc_pre"]}, "pass", "gfx942 gfx950"),
    ("mhc_module", {"trouble": "it is cut", "cannot_look": False}, "fail", f"{MODULE}: it is cut"),
    ("mhc_module", {"trouble": "no libzstd", "cannot_look": True}, "error", f"{MODULE}: no libzstd"),
    ("app", {"provenance": None}, "fail", "/app/provenance.json is missing"),
    ("app", {"versions": None}, "fail", "/app/versions.txt is missing"),
    ("app", {"versions": {"AITER_COMMIT": OTHER}}, "fail", "AITER_COMMIT is b"),
    ("app", {"trouble": "Expecting value"}, "fail", "cannot be read: Expecting value"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "otherwise", "status", "words"), WRONG, ids=[f"{one[0]}-{one[3][:40]}" for one in WRONG]
)
def test_each_rule(doc: dict[str, Any], name: str, otherwise: dict[str, Any], status: str, words: str) -> None:
    doc[name] |= otherwise
    outcome = JUDGES[name](doc)
    assert (outcome.status, words in outcome.summary) == (status, True), outcome.summary
    json.dumps(outcome.evidence)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("commit", OTHER, "aiter: commit: expected 'aaaa"),
        ("tree", OTHER, "aiter: tree"),
        ("picks", ["https://x@" + OTHER], "aiter: picks"),
        ("submodules", {}, "aiter: submodules"),
        (
            "wheels",
            [{"file": "amd_aiter-0.1.16-cp312-cp312-linux_x86_64.whl"}],
            "was built, installed is amd-aiter 0.1.14",
        ),
    ],
)
def test_commits_are_those_of_the_lock_whatever_the_version(
    doc: dict[str, Any], key: str, value: Any, words: str
) -> None:
    doc["app"]["provenance"]["components"]["aiter"][key] = value
    outcome = JUDGES["app"](doc)
    assert (outcome.status, words in outcome.summary) == ("fail", True), outcome.summary


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("lock_sha256", "0" * 64, "lock_sha256 of /app/provenance.json"),
        ("rehearsal", True, "rehearsal of /app/provenance.json: True"),
        ("components", {"sneaked": {"commit": OTHER}}, "is of no source in the lock"),
    ],
)
def test_the_image_is_of_this_lock(doc: dict[str, Any], key: str, value: Any, words: str) -> None:
    doc["app"]["provenance"][key] = value
    outcome = JUDGES["app"](doc)
    assert (outcome.status, words in outcome.summary) == ("fail", True), outcome.summary


def test_the_labels_have_the_same_commits(doc: dict[str, Any]) -> None:
    outcome = inspect.provenance(doc, LOCK, {"io.kiln.component.aiter.commit": OTHER})
    assert (outcome.status, "the label of aiter: expected" in outcome.summary) == ("fail", True)
    outcome = inspect.provenance(doc, LOCK, {})
    assert (outcome.status, "is missing" in outcome.summary) == ("fail", True)


def test_the_labels_have_the_same_versions(doc: dict[str, Any]) -> None:
    doc["app"]["provenance"]["components"]["torch"] = {"version": "2.13.0"}
    assert inspect.provenance(doc, LOCK, {**LABELS, "io.kiln.component.torch": "2.13.0"}).status == "pass"
    outcome = inspect.provenance(doc, LOCK, {**LABELS, "io.kiln.component.torch": "2.14.0"})
    assert (outcome.status, "the label of torch: expected '2.13.0'" in outcome.summary) == ("fail", True)
    outcome = inspect.provenance(doc, LOCK, LABELS)
    assert (outcome.status, "the label of torch: '2.13.0' is missing" in outcome.summary) == ("fail", True)


def test_a_stack_without_sources_has_it_too(doc: dict[str, Any]) -> None:
    doc["app"] |= {"provenance": None, "versions": None}
    assert inspect.provenance(doc, Lock("cpu", "p", (), ()), {}).status == "fail"


def test_the_plugin_switches_on_a_cpu(doc: dict[str, Any]) -> None:
    doc["app"]["provenance"] = None
    doc["switch"] |= {"in_vllm": False, "plugins": [PLUGIN]}
    assert inspect.switch(doc, needed=True).status == "pass"
    doc["switch"]["plugins"] = [PLUGIN | {"broken": {"cpu": "UnknownVllmCodeError: it is not there", "rocm": ""}}]
    outcome = inspect.switch(doc, needed=True)
    assert outcome.status == "fail"
    assert "does not hold with this vLLM: UnknownVllmCodeError: it is not there" in outcome.summary
    doc["switch"]["plugins"] = [PLUGIN | {"broken": {"cpu": "", "rocm": "the GPU's code is no matter here"}}]
    assert inspect.switch(doc, needed=True).status == "pass"
    doc["switch"]["plugins"] = []
    assert inspect.switch(doc, needed=False).status == "skip"
    assert inspect.switch(doc, needed=True).status == "fail"


def test_the_plugin_switches_on_rocm(doc: dict[str, Any]) -> None:
    cpu_alone = PLUGIN | {"broken": {"cpu": "the CPU's code is no matter here", "rocm": ""}}
    unknown = PLUGIN | {"broken": {"cpu": "", "rocm": "UnknownVllmCodeError: it is not there"}}
    doc["switch"] |= {"in_vllm": False, "plugins": [cpu_alone]}
    assert inspect.switch(doc, needed=True).status == "pass"
    doc["switch"]["plugins"] = [unknown]
    assert inspect.switch(doc, needed=True).status == "fail"
    # A vLLM that has the switch itself is left alone, known or not.
    doc["switch"]["in_vllm"] = True
    assert inspect.switch(doc, needed=True).status == "pass"
    # A stand-in for vLLM has no sources that the plugin could know.
    doc["switch"] |= {"in_vllm": False, "envs": False}
    doc["app"]["provenance"]["rehearsal"] = True
    assert inspect.switch(doc, needed=True).status == "skip"
    doc["switch"]["plugins"] = [unknown | {"there": False}]
    assert inspect.switch(doc, needed=True).status == "fail"


def test_a_rehearsal_lacks_what_a_stand_in_cannot_have(doc: dict[str, Any]) -> None:
    doc["app"]["provenance"]["rehearsal"] = True
    sound = copy.deepcopy(doc)
    doc["switch"] |= {"in_vllm": False, "envs": False}
    doc["calls"]["calls"] = []
    doc["mhc_module"]["init"] = []
    doc["requirements"]["judged"] = 0
    assert {name: JUDGES[name](doc).status for name in ("switch", "calls", "mhc_module", "requirements")} == {
        "switch": "skip", "calls": "skip", "mhc_module": "pass", "requirements": "pass",
    }  # fmt: skip
    # What was wrong in a real image stays wrong in a rehearsal.
    sound["mhc_module"]["code"] = []
    sound["calls"]["calls"] = [call("aiter.ops.mhc.mhc_pre", "misfit")]
    assert {name: JUDGES[name](sound).status for name in ("calls", "mhc_module")} == {
        "calls": "fail",
        "mhc_module": "fail",
    }


def test_what_is_allowed_is_said_with_its_reason(doc: dict[str, Any]) -> None:
    doc["files"]["left_over"] = ["/var/lib/apt/lists/x"]
    outcome = inspect.files(doc, {"/var/lib/apt/lists/*": "the base image's"})
    assert (outcome.status, outcome.evidence["allowed"]) == ("pass", ["/var/lib/apt/lists/x: the base image's"])
    assert inspect.files(doc).status == "fail"
    doc["calls"]["calls"].append(call("aiter.ops.mhc.mhc_new", "misfit", "has no mhc_new"))
    outcome = signatures.signatures(doc, {"aiter.ops.mhc.mhc_new": "vLLM asks first"})
    assert (outcome.status, "(vLLM asks first)" in outcome.evidence["allowed"][0]) == ("pass", True)


def test_a_long_list_is_cut_and_its_end_is_what_to_do() -> None:
    text = inspect.listed([str(one) for one in range(50)], "Do this.", 70).splitlines()
    assert (len(text), text[-2], text[-1]) == (inspect.SHOWN + 2, "and 50 more", "Do this.")


def test_requirements_of_no_distribution_prove_nothing(doc: dict[str, Any]) -> None:
    found = {**doc, "distributions": {**doc["distributions"], "distributions": []}}
    assert JUDGES["requirements"](found).status == "error"
