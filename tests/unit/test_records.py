"""Build records: what they hold, what a plan reads out of them, and what a pull costs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiln.changes import SHOWN, Known, differences, kept_components
from kiln.console import Console
from kiln.errors import UsageError
from kiln.image import read_image
from kiln.lockentries import Archive, Git, Wheel
from kiln.lockfile import read_lock
from kiln.pins import Pins
from kiln.plan import Context, Unit
from kiln.pullcost import PullCost, pull_cost
from kiln.records import Built, Layer, Made, all_records, components_of, read_record, record_file, write_record
from kiln.render import Rendered, layer_names, render
from kiln.session import Choice, Session
from kiln.store import Store
from kiln.workspace import Workspace

LAYERS = ("rootfs", "base", "needs", "app", "plugins", "versions", "workdir")


def layer(name: str, number: int, size: int = 100) -> Layer:
    return Layer(name, f"sha256:{number:064x}", f"sha256:{number + 1000:064x}", size)


def built_of(rendered: Rendered, pins: Pins, number: int = 0, changed: tuple[str, ...] = ("versions",)) -> Built:
    """A record as a build of it leaves it; layers called ``changed`` are those of this ``number`` alone."""
    layers = tuple(
        layer(name, position + 1 + (100 * (number + 1) if name in changed else 0), 10**position)
        for position, name in enumerate(rendered.layers)
    )
    reference = f"kiln/{rendered.image.name}:{rendered.key[:16]}"
    digest = f"sha256:{number + 77:064x}"
    return Built(
        rendered.image.name, rendered.key, digest, reference, 1.5, layers, components_of(rendered, pins), 5000 + number
    )


@pytest.fixture
def record(rendered: Rendered, toy_pins: Pins) -> Built:
    return built_of(rendered, toy_pins)


def test_the_layers_of_an_image_are_called_by_the_lines_of_its_last_stage(rendered: Rendered) -> None:
    assert rendered.layers == LAYERS


def test_the_layers_of_the_rocm_images_are_called_so_too(real: Workspace, console: Console) -> None:
    session = Session(real, Store(real.state / "store"), console)
    base, serving = session.ready("dsv4-mhc", Choice(), refuse=False)[2]
    own = [[unit.name for unit in one.units if unit.name in one.image.components] for one in (base, serving)]
    assert base.layers == ("packages", *own[0], "versions", "workdir")
    assert serving.layers == (*base.layers, *own[1], "versions", "workdir")


def test_a_working_folder_that_is_the_root_makes_no_layer(toy: Workspace, toy_pins: Pins) -> None:
    image = read_image(toy, toy_pins, "toy-serving")
    text = "FROM a AS toy-serving\nCOPY --link --from=b /out/ /\nENV X=1 \\\n    COPY=2\nWORKDIR /\nUSER 0:0\n"
    assert layer_names(text, image) == ("b",)
    assert layer_names(text.replace("WORKDIR /", "WORKDIR /srv"), image) == ("b", "workdir")


def test_a_record_is_read_as_it_was_written(toy: Workspace, record: Built) -> None:
    write_record(toy, record)
    assert read_record(record_file(toy, record.image, record.key)) == record
    assert record.keys["app"] == next(made.key for made in record.components if made.name == "app")
    assert json.loads(record_file(toy, record.image, record.key).read_text())["layers"][0] == {
        "component": "rootfs",
        "digest": record.layers[0].digest,
        "diff_id": record.layers[0].diff_id,
        "size": 1,
    }


def test_the_newest_record_comes_first_and_what_is_none_is_passed_over(toy: Workspace, record: Built) -> None:
    older = replace(record, key="0" * 64)
    for one, time in ((record, 2_000), (older, 1_000)):
        write_record(toy, one)
        os.utime(record_file(toy, one.image, one.key), (time, time))
    (toy.state / "builds" / "broken.json").write_text('{"layers": 3}')
    (toy.state / "builds" / "list.json").write_text("[]")
    assert all_records(toy) == [record, older]


@given(st.recursive(st.none() | st.integers() | st.text(), lambda t: st.lists(t) | st.dictionaries(st.text(), t)))
def test_whatever_stands_in_a_record_is_read_or_passed_over(
    tmp_path_factory: pytest.TempPathFactory, data: object
) -> None:
    file = tmp_path_factory.mktemp("r") / "record.json"
    file.write_text(json.dumps({"layers": data, "components": data, "image": "a"}))
    assert read_record(file) is None


# --- why it is to be built -------------------------------------------------------------------------------------------

WHEEL = Wheel("app", "toy-app", "2.0", "toy_app-2.0-py3-none-any.whl", "aa" * 32, 10)
GIT = Git("app", "https://git.example.invalid/app", "v1", "1" * 40, "2" * 40)
SETTINGS = (("platform", "linux/amd64"), ("epoch", "1"), ("builder", "b"))
CONTEXT = Context("wheels-app", "", "d1", wheels=(WHEEL,))
UNIT = Unit("app", "", "RUN one", (CONTEXT,), "k1", "2.0", on=(("rootfs", "r"), ("triton", "t")), settings=SETTINGS)
MADE = Made(UNIT.name, UNIT.key, UNIT.parts, UNIT.inputs)


def with_wheels(*wheels: Wheel) -> Unit:
    return replace(UNIT, contexts=(replace(CONTEXT, digest="d2", wheels=wheels),))


@pytest.mark.parametrize(
    ("unit", "said"),
    [
        (replace(UNIT, stage="RUN two"), ("its recipe's text changed",)),
        (with_wheels(replace(WHEEL, version="2.1", sha256="bb" * 32)), ("wheel toy-app 2.0 -> 2.1",)),
        (with_wheels(replace(WHEEL, sha256="bb" * 32)), ("wheel toy-app 2.0: aaaaaaaaaaaa -> bbbbbbbbbbbb",)),
        (with_wheels(WHEEL, replace(WHEEL, name="more")), ("wheel more 2.0 is new",)),
        (with_wheels(), ("wheel toy-app 2.0 is gone",)),
        (replace(UNIT, on=(("rootfs", "r"), ("triton", "t2"))), ("builds on triton, which changed",)),
        (replace(UNIT, on=(("rootfs", "r2"), ("triton", "t"))), ("builds on the root file system, which changed",)),
        (replace(UNIT, settings=(*SETTINGS[:2], ("builder", "c"))), ("the builder's settings changed",)),
        (replace(UNIT, settings=(("epoch", "2"), *SETTINGS[::2])), ("the stack's time (epoch) changed",)),
        (replace(UNIT, contexts=(replace(CONTEXT, digest="d2"),)), ("what is in wheels-app changed",)),
        (replace(UNIT, key="k2"), ("its key is made of other parts than it was",)),
    ],
)
def test_the_input_that_changed_is_named(unit: Unit, said: tuple[str, ...]) -> None:
    assert differences(MADE, unit) == said


def test_a_source_is_named_by_ref_and_commit() -> None:
    def unit(git: Git, *archives: Archive) -> Unit:
        contexts = (Context("source-app", "", git.digest, git=git), Context("archives-app", "", "x", archives=archives))
        return replace(UNIT, contexts=contexts)

    archive = Archive("app", "llvm", "https://x.example.invalid/l.tar.gz", "cc" * 32, 1)
    before = unit(GIT, archive)
    made = Made("app", "k", before.parts, before.inputs)
    name = "source git.example.invalid/app"
    assert differences(made, unit(replace(GIT, ref="v2", commit="3" * 40, tree="4" * 40), archive)) == (
        f"{name} v1 (111111111111) -> v2 (333333333333)",
    )
    # A tag that was moved.
    assert differences(made, unit(replace(GIT, commit="3" * 40, tree="4" * 40), archive)) == (
        f"{name} v1: 111111111111 -> 333333333333",
    )
    assert differences(made, unit(GIT, replace(archive, sha256="dd" * 32)))[0] == (
        "archive llvm: cccccccccccc -> dddddddddddd"
    )
    assert differences(made, unit(replace(GIT, left_out=("third",)), archive)) == ("what is in source-app changed",)


def test_the_parts_of_a_key_tell_every_key_from_another(rendered: Rendered, toy: Workspace, toy_pins: Pins) -> None:
    """What the key is made of is what ``parts`` names: an edit that moves one moves the other, and the reason can be told."""
    before = {made.name: made for made in components_of(rendered, toy_pins)}
    (toy.root / "plugins" / "toy-plugin" / "more.py").write_text("")
    template = toy.root / "templates" / "components" / "cpu" / "wheels.j2"
    template.write_text(template.read_text().replace("FROM rootfs", "# edited\nFROM rootfs"))
    after = render(toy, toy_pins, read_lock(toy, toy_pins))[0]
    for unit in after.units:
        assert unit.key != before[unit.name].key
        assert differences(before[unit.name], unit) == (
            ("the files of plugins/toy-plugin changed",) if unit.name == "plugins" else ("its recipe's text changed",)
        )


def test_a_component_is_where_the_engine_holds_it(rendered: Rendered, record: Built) -> None:
    other = replace(record, digest="sha256:" + "9" * 64, reference="kiln/toy-serving:other")

    def kept(held: Callable[[Built], bool] | None, *records: Built) -> set[tuple[str | None, tuple[str, ...]]]:
        found = kept_components([rendered], Known(records, held))["toy-serving"]
        assert [one.component for one in found] == [unit.name for unit in rendered.units]
        return {(one.image, one.reasons) for one in found}

    assert kept(lambda _: True, record) == {(record.reference, ())}
    assert kept(lambda one: one is other, record, other) == {("kiln/toy-serving:other", ())}
    assert kept(lambda _: True) == {("", ("never built here",))}
    gone = f"the engine no longer holds {record.reference}, which has it"
    assert kept(lambda _: False, record, other) == {("", (gone,))}
    unsure = f"built here, in {record.reference}; no engine is up to say whether it still has it"
    assert kept(None, record) == {(None, (unsure,))}
    (image,) = kept_components([rendered], Known([record], None)).values()
    assert {(one.state, one.described) for one in image} == {("unknown", f"unknown: {unsure}")}
    old = Built(record.image, "0" * 64, record.digest, record.reference, 1.0)
    assert kept(lambda _: True, old) == {("", ("no record says what it was built of before",))}


def test_every_image_is_asked_for_once(rendered: Rendered, record: Built) -> None:
    asked: list[Built] = []
    kept_components([rendered], Known([record], lambda one: not asked.append(one)))
    assert asked == [record]


def test_a_line_for_people_is_no_list_of_hundreds(record: Built) -> None:
    wheels = tuple(replace(WHEEL, name=f"new-{number}") for number in range(30))
    old = replace(record, components=(MADE,))
    (kept,) = [Known([old], lambda _: True).kept(record.image, replace(with_wheels(*wheels), key="k2"))]
    assert len(kept.reasons) == 31
    assert kept.described.startswith("to build: wheel new-0 2.0 is new; ")
    assert kept.described.endswith(f"; and {31 - SHOWN} more")


# --- what a pull costs -----------------------------------------------------------------------------------------------


@pytest.fixture
def bumped(record: Built) -> Built:
    """The same image with another `app`: as its build would leave it."""
    layers = tuple(
        layer(one.component, 900 + n, 7) if one.component in ("app", "versions") else one
        for n, one in enumerate(record.layers)
    )
    components = tuple(replace(made, key="f" * 64) if made.name == "app" else made for made in record.components)
    key, digest = "abcdef" + "0" * 58, "sha256:" + "e" * 64
    return replace(
        record, key=key, digest=digest, layers=layers, reference="kiln/toy-serving:abcdef", components=components
    )


def cost(
    toy: Workspace, rendered: Rendered, pins: Pins, span: str, *records: Built, keys: dict[str, str] | None = None
) -> PullCost:
    known = {made.name: made.key for made in components_of(rendered, pins)}
    return pull_cost(toy, span, records, [rendered], {**known, **(keys or {})})


def test_a_bump_costs_its_layers_and_the_description(
    toy: Workspace, rendered: Rendered, toy_pins: Pins, record: Built, bumped: Built
) -> None:
    for start in (record.reference, record.digest, record.digest[:20], record.digest[7:], record.key[:8]):
        found = cost(toy, rendered, toy_pins, f"{start}..{bumped.key[:6]}", record, bumped)
        assert [one.component for one in found.new] == ["app", "versions"]
        assert found.size == 7 + 7 + bumped.described
        assert found.unknown == ()
    assert found.data()["complete"] is True
    assert f"{found.size:,} bytes" in found.text()
    assert "5 layers" in found.text()
    nothing = cost(toy, rendered, toy_pins, f"..{record.key}", record, bumped)
    assert nothing.size == sum(one.size for one in record.layers) + record.described
    same = cost(toy, rendered, toy_pins, f"{record.key}..{record.reference}", record, bumped)
    assert (same.size, same.new, same.unknown) == (0, (), ())


def test_what_the_pins_say_now_is_taken_from_its_record(
    toy: Workspace, rendered: Rendered, toy_pins: Pins, record: Built, bumped: Built
) -> None:
    found = cost(toy, rendered, toy_pins, f"{bumped.key[:6]}..current", record, bumped)
    assert found.end.digest == record.digest
    assert found.size == sum(one.size for one in record.layers if one.component in ("app", "versions")) + 5000
    back = cost(toy, rendered, toy_pins, f"current..{bumped.key[:6]}", record, bumped)
    assert back.size == 14 + bumped.described


def test_what_was_not_built_is_said_to_be_unknown(
    toy: Workspace, rendered: Rendered, toy_pins: Pins, bumped: Built
) -> None:
    """`app` is another than in the only record, and nobody has built this one."""
    found = cost(toy, rendered, toy_pins, f"{bumped.key}..current", bumped)
    assert found.unknown == ("app", "versions", "workdir", "manifest and configuration")
    assert (found.size, found.new) == (0, ())
    assert found.data()["complete"] is False
    assert "at least 0 bytes" in found.text()
    assert "not known before it is built: app, versions, workdir, manifest and configuration" in found.text()
    fresh = cost(toy, rendered, toy_pins, "..current", bumped)
    assert fresh.size == sum(one.size for one in bumped.layers if one.component in (*LAYERS[:3], "plugins"))


def test_a_layer_that_is_there_twice_is_downloaded_once(
    toy: Workspace, rendered: Rendered, toy_pins: Pins, record: Built
) -> None:
    twice = replace(record, layers=(*record.layers, replace(record.layers[3], component="again")))
    assert cost(toy, rendered, toy_pins, f"..{record.key}", twice).size == 1111111 + record.described


@pytest.mark.parametrize("span", ["", "current", "current..current", "..", "a..", "nobody..current", "..ffffffff"])
def test_what_names_no_two_images_is_refused(
    toy: Workspace, rendered: Rendered, toy_pins: Pins, record: Built, span: str
) -> None:
    with pytest.raises(UsageError):
        cost(toy, rendered, toy_pins, span, record)


def test_a_beginning_that_two_images_share_is_refused(
    toy: Workspace, rendered: Rendered, toy_pins: Pins, record: Built
) -> None:
    other = replace(record, digest="sha256:" + "5" * 64)
    with pytest.raises(UsageError, match="more than one image"):
        cost(toy, rendered, toy_pins, f"..{record.key[:8]}", record, other)


def test_a_record_of_an_older_kiln_is_named_with_what_to_do(
    toy: Workspace, rendered: Rendered, toy_pins: Pins, record: Built
) -> None:
    with pytest.raises(UsageError) as raised:
        cost(toy, rendered, toy_pins, f"..{record.key}", replace(record, layers=()))
    assert f"{record.image}-{record.key[:16]}.json" in raised.value.fix
