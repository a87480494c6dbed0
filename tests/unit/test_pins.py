"""Pins: what a person may write, and what they are told where they may not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kiln.errors import PinsError, UsageError
from kiln.image import read_image, read_images
from kiln.pins import Pins, read_pins
from kiln.workspace import Workspace

Edit = Callable[[str, str], None]


@pytest.fixture
def edit(toy: Workspace) -> Edit:
    """Replace a part of the toy's pins by another."""

    def replace(old: str, new: str) -> None:
        path = toy.pins_file("toy")
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"the example {old!r} is not once in the toy's pins"
        path.write_text(text.replace(old, new), encoding="utf-8")

    return replace


def test_the_real_pins_are_read(real: Workspace) -> None:
    pins = read_pins(real, "cpu")
    assert pins.stack == "cpu"
    assert pins.images == ("cpu-serving",)
    assert pins.epoch > 0
    assert {component.recipe for component in pins.components} == {"wheels", "plugins"}


def test_the_toy_pins_are_read(toy_pins: Pins) -> None:
    assert list(toy_pins.by_name) == ["base", "needs", "app", "plugins"]
    assert toy_pins.by_name["app"].without == (("toy-audio", "nobody listens"),)
    assert toy_pins.by_name["needs"].dependencies_of == "app"
    assert toy_pins.epoch == 1580608922


WRONG = {
    "no schema": ("schema = 1\n", "", "schema"),
    "another schema": ("schema = 1\n", "schema = 2\n", "schema"),
    "schema is a truth value": ("schema = 1\n", "schema = true\n", "schema"),
    "no stack name": ('name = "toy"\n', "", "stack.name"),
    "a capital in the name": ('name = "toy"', 'name = "Toy"', "stack.name"),
    "the name of another file": ('name = "toy"', 'name = "other"', "stack.name"),
    "unknown target": ('target = "cpu"', 'target = "cuda"', "stack.target"),
    "bad platform": ("linux/amd64", "linux/arm64", "stack.platform"),
    "naive epoch": ("2020-02-02T02:02:02Z", "2020-02-02T02:02:02", "stack.epoch"),
    "epoch as a number": ("2020-02-02T02:02:02Z", "1580608922", "stack.epoch"),
    "unknown key": ('target = "cpu"', 'target = "cpu"\ncolour = "red"', "stack.colour"),
    "unknown table": ("[tools]", "[extras]\nx = 1\n\n[tools]", "extras"),
    "python with three parts": ('version = "3.11"', 'version = "3.11.2"', "python.version"),
    "glibc as a number": ('glibc = "2.36"', "glibc = 2.36", "python.glibc"),
    "a number among the packages": ('"python3", "tzdata"', '"python3", 7', "debian.packages"),
    "a lower bound": ("toy-base==1.0+cpu", "toy-base>=1.0", "components.base.wheels"),
    "a wildcard": ("toy-base==1.0+cpu", "toy-base==1.*", "components.base.wheels"),
    "no version": ("toy-base==1.0+cpu", "toy-base", "components.base.wheels"),
    "two versions": ("toy-base==1.0+cpu", "toy-base==1.0,==1.1", "components.base.wheels"),
    "three equal signs": ("toy-base==1.0+cpu", "toy-base===1.0", "components.base.wheels"),
    "a marker": ("toy-base==1.0+cpu", "toy-base==1.0 ; python_version > '3'", "components.base.wheels"),
    "an address": ("toy-base==1.0+cpu", "toy-base @ file:///toy.whl", "components.base.wheels"),
    "no requirement at all": ("toy-base==1.0+cpu", "=== no ===", "components.base.wheels"),
    "an inexact tool": ("uv==0.13.8", "uv~=0.13", "tools.wheels"),
    "unknown recipe": ('recipe = "plugins"', 'recipe = "RPM"', "components.plugins.recipe"),
    "wheels and dependencies-of": (
        'dependencies-of = "app"',
        'dependencies-of = "app"\nwheels = ["toy-x==1"]',
        "components.needs",
    ),
    "neither wheels nor dependencies-of": ('dependencies-of = "app"\n', "", "components.needs"),
    "dependencies of nobody": (
        'dependencies-of = "app"',
        'dependencies-of = "ghost"',
        "components.needs.dependencies-of",
    ),
    "an index that is not listed": ('index = "extra"', 'index = "missing"', "components.base.index"),
    "an index that nobody uses": (
        "[indexes]\n",
        '[indexes]\nspare = "https://spare.example.invalid/"\n',
        "indexes.spare",
    ),
    "plugins without sources": ('sources = ["plugins/toy-plugin"]\n', "", "components.plugins"),
    "plugins with wheels": ('recipe = "plugins"', 'recipe = "plugins"\nwheels = ["toy-x==1"]', "components.plugins"),
    "a component with a capital": ("[components.base]", "[components.Base]", "components.Base"),
    "an unknown key in a component": ('index = "extra"', 'index = "extra"\nindexx = "extra"', "components.base.indexx"),
    "no image": ('images = ["toy-serving"]', "images = []", "stack.images"),
    "an image twice": ('images = ["toy-serving"]', 'images = ["toy-serving", "toy-serving"]', "stack.images"),
    "a reason that is no text": (
        'toy-audio = "nobody listens"',
        "toy-audio = true",
        "components.app.without.toy-audio",
    ),
}


@pytest.mark.parametrize(("old", "new", "key"), WRONG.values(), ids=WRONG)
def test_a_mistake_is_named_with_its_key(toy: Workspace, edit: Edit, old: str, new: str, key: str) -> None:
    edit(old, new)
    with pytest.raises(PinsError) as caught:
        read_pins(toy, "toy")
    assert key in [line.partition(": ")[0] for line in caught.value.why.splitlines()]


@pytest.mark.parametrize("name", ["rootfs", "tools", "toy-serving"])
def test_a_component_may_not_take_the_name_of_another_build_stage(toy: Workspace, edit: Edit, name: str) -> None:
    edit("[components.base]", f"[components.{name}]")
    with pytest.raises(PinsError, match=f"components.{name}"):
        read_pins(toy, "toy")


def test_all_mistakes_are_named_at_once(toy: Workspace, edit: Edit) -> None:
    edit("linux/amd64", "linux/arm64")
    edit("uv==0.13.8", "uv")
    edit('index = "extra"', 'index = "missing"')
    with pytest.raises(PinsError) as caught:
        read_pins(toy, "toy")
    keys = [line.partition(":")[0] for line in caught.value.why.splitlines()]
    assert sorted(keys) == ["components.base.index", "indexes.extra", "stack.platform", "tools.wheels"]
    assert "4 problems" in caught.value.what


@pytest.mark.parametrize("data", [b"= nothing", b"name = 'unfinished", b"\xff\xfe"])
def test_what_is_not_toml_is_said_to_be_none(toy: Workspace, data: bytes) -> None:
    toy.pins_file("toy").write_bytes(data)
    with pytest.raises(PinsError, match="is not TOML"):
        read_pins(toy, "toy")


def test_an_unknown_stack_is_answered_with_the_known_ones(toy: Workspace) -> None:
    with pytest.raises(UsageError) as caught:
        read_pins(toy, "nope")
    assert "'nope'" in caught.value.what
    assert "toy" in caught.value.why


def test_the_checksum_ignores_how_the_file_is_written(toy: Workspace, toy_pins: Pins, edit: Edit) -> None:
    edit("[python]\n", "\n\n# a comment\n[python]   # and another\n\n")
    edit('"python3", "tzdata"', '\n  "python3",\n  "tzdata",\n')
    assert read_pins(toy, "toy").sha256 == toy_pins.sha256


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2020-02-02T02:02:02Z", "2020-02-02T02:02:03Z"),
        ("1.0+cpu", "1.1+cpu"),
        ("nobody listens", "nobody hears"),
        ('"python3", "tzdata"', '"python3"'),
        ("wheels.example", "wheel.example"),
        ("0.13.8", "0.13.9"),
    ],
)
def test_the_checksum_changes_with_every_value(toy: Workspace, toy_pins: Pins, edit: Edit, old: str, new: str) -> None:
    edit(old, new)
    assert read_pins(toy, "toy").sha256 != toy_pins.sha256


def edit_image(toy: Workspace, old: str, new: str) -> None:
    path = toy.image_folder("toy-serving") / "image.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_an_image_is_read(toy: Workspace, toy_pins: Pins) -> None:
    image = read_image(toy, toy_pins, "toy-serving")
    assert image.entrypoint == ("toy", "serve")
    assert image.memory == 1 << 30
    assert [(setting.name, setting.path, setting.env) for setting in image.settings] == [
        ("default", "unfused", ()),
        ("tilelang", "fused", (("TOY_FUSED", "1"),)),
    ]


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('target = "cpu"', 'target = "rocm"', "image.target"),
        ('name = "toy-serving"', 'name = "toy"', "image.name"),
        ('"plugins"]', '"plugins", "ghost"]', "image.components"),
        ('user = "1000:1000"\n', "", "runtime.user"),
        ("memory-gib = 1", 'memory-gib = "1"', "verify.memory-gib"),
        ('path = "fused"', 'path = "fused"\npaht = "x"', "verify.settings.tilelang.paht"),
        ("[runtime]", "[extra]\n[runtime]", "extra"),
        # A cpu image has no GPU architectures to tell anybody.
        ("[runtime]", '[runtime]\narch-variables = ["GPU_ARCHS"]', "runtime.arch-variables"),
    ],
)
def test_a_mistake_in_an_image_is_named_with_its_key(
    toy: Workspace, toy_pins: Pins, old: str, new: str, key: str
) -> None:
    edit_image(toy, old, new)
    with pytest.raises(PinsError) as caught:
        read_image(toy, toy_pins, "toy-serving")
    assert key in [line.partition(": ")[0] for line in caught.value.why.splitlines()]


def test_a_missing_image_description_is_named(toy: Workspace, toy_pins: Pins) -> None:
    (toy.image_folder("toy-serving") / "image.toml").unlink()
    with pytest.raises(PinsError, match=r"toy-serving/image\.toml does not exist"):
        read_image(toy, toy_pins, "toy-serving")


def test_a_component_in_no_image_is_a_mistake(toy: Workspace, toy_pins: Pins) -> None:
    edit_image(toy, '"base", ', "")
    with pytest.raises(PinsError, match="pins base, and no image"):
        read_images(toy, toy_pins)
