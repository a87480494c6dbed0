"""Which component a layer is: told by the committed Dockerfiles, and by nothing where they are another image's."""

from __future__ import annotations

from pathlib import Path

import pytest

from kiln.image import read_image
from kiln.layernames import layer_names
from kiln.ociimage import read_layout
from kiln.pins import read_pins
from kiln.workspace import Workspace
from tests.images import Entry, layer, write_layout


def names(root: Path, place: Path, title: str, components: tuple[str, ...], layers: int) -> tuple[str, ...]:
    labels = {f"io.kiln.component.{name}": "1" for name in components} | {"org.opencontainers.image.title": title}
    made = [layer(Entry(f"f{number}")) for number in range(layers)]
    return layer_names(root, read_layout(write_layout(place / "image", made, {"config": {"Labels": labels}})))


def components(real: Workspace, stack: str, image: str) -> tuple[str, ...]:
    return read_image(real, read_pins(real, stack), image).components


def test_the_layers_of_the_cpu_image(real: Workspace, tmp_path: Path) -> None:
    own = components(real, "cpu", "cpu-serving")
    assert names(real.root, tmp_path, "cpu-serving", own, len(own) + 2) == ("rootfs", *own, "versions")


@pytest.mark.parametrize("more", [1, 3])
def test_another_number_of_layers_is_another_image(real: Workspace, tmp_path: Path, more: int) -> None:
    own = components(real, "cpu", "cpu-serving")
    assert names(real.root, tmp_path, "cpu-serving", own, len(own) + more) == ()


def test_another_component_is_another_image(real: Workspace, tmp_path: Path) -> None:
    own = (*components(real, "cpu", "cpu-serving"), "elsewhere")
    assert names(real.root, tmp_path, "cpu-serving", own, len(own) + 1) == ()


def test_layers_of_a_base_image_have_no_name(real: Workspace, tmp_path: Path) -> None:
    own = components(real, "dsv4-mhc", "rocm-serving")
    found = names(real.root, tmp_path, "rocm-serving", own, 40)
    assert found[-len(own) - 2 :] == (*own, "versions", "workdir")
    assert found[:5] == ("",) * 5
    assert {"aiter", "torch", "rocm-base versions"} <= set(found)


@pytest.mark.parametrize("title", ["debian", "../cpu-serving", ""])
def test_an_image_that_is_not_here(real: Workspace, tmp_path: Path, title: str) -> None:
    assert names(real.root, tmp_path, title, ("torch",), 3) == ()
