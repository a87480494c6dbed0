"""Which GPUs a machine has, what a container is given of them, and why an image cannot be served: from folders that look like a machine's."""

from __future__ import annotations

from pathlib import Path

import pytest

from kiln.gpu import NODES, Devices, Gpu, arch_name, devices, gpus, unfit

PROCESSOR = "cpu_cores_count 64\nsimd_count 0\ngfx_target_version 0\ndrm_render_minor 0\n"
GPU = "cpu_cores_count 0\nsimd_count 1216\ngfx_target_version {version}\ndrm_render_minor {minor}\nlocal_mem_size 0\n"


def machine(root: Path, *versions: int, kfd: bool = True, render: bool = True) -> Path:
    """A machine with a processor's node and one for each GPU, the nodes numbered as the kernel does."""
    (root / "dev" / "dri").mkdir(parents=True)
    if kfd:
        (root / "dev" / "kfd").touch()
    texts = [PROCESSOR, *(GPU.format(version=version, minor=128 + place) for place, version in enumerate(versions))]
    for number, text in enumerate(texts):
        node = root / NODES / str(number)
        node.mkdir(parents=True)
        (node / "properties").write_text(text)
        if number and render:
            (root / "dev" / "dri" / f"renderD{127 + number}").touch()
    return root


@pytest.mark.parametrize(
    ("version", "name"),
    [
        (90402, "gfx942"),
        (90500, "gfx950"),
        (90010, "gfx90a"),
        (90008, "gfx908"),
        (110003, "gfx1103"),
        (120001, "gfx1201"),
    ],
)
def test_the_kernels_number_is_the_compilers_name(version: int, name: str) -> None:
    assert arch_name(version) == name


def test_processors_are_no_gpus_and_numbers_are_in_order(tmp_path: Path) -> None:
    found = gpus(machine(tmp_path, *[90402] * 11))
    assert len(found) == 11
    assert found[0] == Gpu("gfx942", "/dev/dri/renderD128")
    assert [gpu.render for gpu in found] == [f"/dev/dri/renderD{128 + number}" for number in range(11)]


def test_a_node_that_cannot_be_read_is_no_gpu(tmp_path: Path) -> None:
    root = machine(tmp_path, 90402, 90402)
    (root / NODES / "1" / "properties").unlink()
    assert gpus(root) == (Gpu("gfx942", "/dev/dri/renderD129"),)


def test_without_the_driver_there_is_none(tmp_path: Path) -> None:
    assert gpus(tmp_path) == ()
    assert devices((), tmp_path) is None


def test_a_container_is_given_the_files_and_their_groups_by_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = machine(tmp_path, 90402, 90402)
    stat = Path.stat

    class Owned:
        def __init__(self, group: int) -> None:
            self.st_gid = group

    owners = {"kfd": 44, "renderD128": 992, "renderD129": 0}
    monkeypatch.setattr(Path, "stat", lambda path, **_: Owned(owners[path.name]) if path.name in owners else stat(path))
    given = devices(gpus(root), root)
    # The group 0 is the container's user's own.
    assert given == Devices(("/dev/kfd", "/dev/dri/renderD128", "/dev/dri/renderD129"), (44, 992))


@pytest.mark.parametrize(
    ("versions", "kfd", "render", "word"),
    [
        ((), False, True, "this machine has none"),
        ((90402,), False, True, "this machine has none"),
        ((), True, True, "shows no GPU"),
        ((90010,), True, True, "is gfx90a, and the image has code for gfx942, gfx950"),
        ((90402, 110000), True, True, "gfx1100"),
        ((90402,), True, False, "/dev/dri/renderD128, and that device file is not there"),
        ((90402,), True, True, ""),
        ((90500, 90500), True, True, ""),
    ],
)
def test_why_an_image_cannot_be_served_is_said(
    tmp_path: Path, versions: tuple[int, ...], kfd: bool, render: bool, word: str
) -> None:
    root = machine(tmp_path, *versions, kfd=kfd, render=render)
    said = unfit(gpus(root), ("gfx942", "gfx950"), root)
    assert word in said
    assert bool(said) == bool(word)
