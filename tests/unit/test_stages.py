"""Which components can be taken from a cache, as the Dockerfiles have it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kiln.console import Console
from kiln.errors import CacheEntryError, RenderError
from kiln.records import Layer
from kiln.render import Rendered
from kiln.restored import EMPTY, Entry, Given, spared, unneeded_contexts, write_bake_file
from kiln.session import Choice, Session
from kiln.stages import Graph, Use, read_graph, restorable
from kiln.store import Store
from kiln.workspace import Workspace

ROOT = Path(__file__).parents[2]


def images(stack: str) -> tuple[Rendered, ...]:
    workspace = Workspace(ROOT, ROOT / ".kiln")
    session = Session(workspace, Store(workspace.state / "store"), Console(quiet=True))
    return session.ready(stack, Choice(), refuse=False)[2]


@pytest.fixture(scope="module")
def cpu() -> tuple[Rendered, ...]:
    return images("cpu")


@pytest.fixture(scope="module")
def rocm() -> tuple[Rendered, ...]:
    return images("dsv4-mhc")


def every(found: tuple[Rendered, ...]) -> set[tuple[str, str]]:
    return {(one.image.name, unit.name) for one in found for unit in one.units}


def test_components_of_wheels_can_stand_in_for_their_stages(cpu: tuple[Rendered, ...]) -> None:
    taken, refused = restorable(cpu, every(cpu))
    assert [name for _, name in taken] == ["torch", "triton", "vllm-needs", "vllm", "transformers"]
    assert refused == {
        ("cpu-serving", "plugins"): "versions needs /wheels of plugins-wheels, which only building it leaves"
    }


def test_what_stands_in_spares_its_inputs_and_nothing_else(cpu: tuple[Rendered, ...]) -> None:
    given = Given({}, unneeded_contexts(cpu, [("cpu-serving", "torch")]))
    assert given.unneeded == {("cpu-serving", "wheels-torch")}
    assert spared(cpu, given) == {"torch"}
    assert unneeded_contexts(cpu, []) == frozenset()


def test_a_component_whose_wheels_are_asked_for_is_built(rocm: tuple[Rendered, ...]) -> None:
    """/app/versions.txt names the wheels that were built, so who is compiled for the image must be compiled."""
    taken, refused = restorable(rocm[:1], every(rocm[:1]))
    assert {name for _, name in taken} >= {"cpython", "base-needs", "flydsl"}
    assert {name for _, name in refused} == {
        *("triton", "torch", "torchvision", "torchaudio", "flash-attention", "mori", "amd-smi", "aiter")
    }
    assert refused["rocm-base", "torch"] == "versions needs /wheels of torch-wheels, which only building it leaves"


def test_what_nothing_needs_is_not_asked_for(rocm: tuple[Rendered, ...]) -> None:
    """build-tools has no layer in the image: it is needed for what is compiled, and where nothing is it would not be."""
    taken, _ = restorable(rocm, every(rocm))
    graph = read_graph(rocm)
    reached = graph.reached(taken)
    assert ("rocm-base", "wheels-base-needs") not in reached
    assert ("rocm-base", "source-torch") in reached
    assert set(graph.reached()) > set(reached)


def test_all_contexts_and_stages_of_both_images_are_reached(rocm: tuple[Rendered, ...]) -> None:
    reached = read_graph(rocm).reached()
    for one in rocm:
        for context in one.contexts:
            assert (one.image.name, context.name) in reached
    assert ("rocm-base", "aiter-wheels") in reached


def test_a_stage_that_begins_from_a_component_needs_all_of_it() -> None:
    start, part, other = ("i", "i"), ("i", "part"), ("i", "other")
    graph = Graph(
        start, {start: (Use(part, start, "/out/"), Use(other, start, "/out/")), other: (Use(part, other, ""),)}
    )
    assert graph.reached([part])[part] == (Use(part, start, "/out/"), Use(part, other, ""))
    assert part in graph.reached([other])
    assert Use(part, other, "") not in graph.reached([other])[part]


def test_the_bake_file_names_what_stands_in_and_empties_what_is_not_needed(
    rocm: tuple[Rendered, ...], tmp_path: Path
) -> None:
    import json

    workspace = Workspace(ROOT, tmp_path)
    node = ("rocm-base", "base-needs")
    given = Given({}, unneeded_contexts(rocm, [node]))
    text = (tmp_path / write_bake_file(workspace, rocm, given, {node: "oci-layout://x@sha256:1"})).read_text()
    targets = json.loads(text)["target"]
    assert targets["rocm-base"]["contexts"] == {"base-needs": "oci-layout://x@sha256:1", "wheels-base-needs": EMPTY}
    # The stage is a context of the other image's.
    assert targets["rocm-serving"]["contexts"] == {"base-needs": "oci-layout://x@sha256:1"}
    assert (tmp_path / EMPTY).is_dir()


def test_an_entry_must_become_the_layer_that_it_has() -> None:
    layer = Layer("torch", "sha256:1", "sha256:2", 3)
    given = Given({("cpu", "torch"): Entry("host/name:torch-1", layer)}, frozenset())
    given.require_layers("cpu", [layer])
    with pytest.raises(CacheEntryError) as caught:
        given.require_layers("cpu", [Layer("torch", "sha256:9", "sha256:2", 3)])
    assert caught.value.why == "host/name:torch-1\nexpected sha256:1\ngot      sha256:9"


def test_a_mount_that_is_not_understood_is_no_guess(cpu: tuple[Rendered, ...]) -> None:
    from dataclasses import replace

    files = dict(cpu[0].files)
    files["Dockerfile"] = files["Dockerfile"].replace(
        "--mount=type=bind,from=wheels-torch", "--mount=type=cache,id=x", 1
    )
    with pytest.raises(RenderError, match="type=cache"):
        read_graph([replace(cpu[0], files=tuple(files.items()))])
