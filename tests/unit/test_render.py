"""Rendering: what may stand in a Dockerfile, which mistakes are found, and what moves which build key."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from kiln.errors import PinsError, RenderError, RenderStaleError
from kiln.lockentries import Wheel
from kiln.lockfile import Lock, read_lock
from kiln.pins import Pins, read_pins
from kiln.plan import component_version
from kiln.render import Rendered, check_rendered, render, write_rendered
from kiln.workspace import Workspace


@pytest.fixture
def rendered(toy: Workspace, toy_pins: Pins, toy_lock: Lock) -> Rendered:
    (one,) = render(toy, toy_pins, toy_lock)
    return one


def keys(toy: Workspace, pins: Pins, lock: Lock) -> dict[str, str]:
    (one,) = render(toy, pins, lock)
    return {"image": one.key, **{unit.name: unit.key for unit in one.units}}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


def other_wheel(lock: Lock, component: str) -> Lock:
    """The lock with other bytes for one wheel of a component."""
    victim = lock.wheels_of(component)[0]
    return replace(
        lock, wheels=tuple(replace(wheel, sha256="ef" * 32) if wheel is victim else wheel for wheel in lock.wheels)
    )


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def commands(dockerfile: str) -> list[str]:
    """The instructions of a Dockerfile: comments gone, continued lines joined."""
    lines = "\n".join(line for line in dockerfile.splitlines() if not line.startswith("#"))
    return [line for line in lines.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.fixture(scope="module")
def real_dockerfile(project: Path) -> str:
    real = Workspace(project, project / "never-made")
    pins = read_pins(real, "cpu")
    (one,) = render(real, pins, read_lock(real, pins))
    return one.dockerfile


def test_no_step_has_a_network(rendered: Rendered, real_dockerfile: str) -> None:
    for dockerfile in (rendered.dockerfile, real_dockerfile):
        steps = [line for line in commands(dockerfile) if line.startswith("RUN")]
        assert len(steps) > 3
        assert [line for line in steps if not line.startswith("RUN --network=none ")] == []


def test_every_stage_is_built_on_a_stage_of_the_file(rendered: Rendered, real_dockerfile: str) -> None:
    for dockerfile in (rendered.dockerfile, real_dockerfile):
        known = {"scratch"}
        for line in commands(dockerfile):
            if match := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
                assert match[1] in known
                known.add(match[2])
        assert len(known) > 4


@pytest.mark.parametrize(
    "word", ["curl", "wget", "git clone", "git+", "apt-get", "http://", "https://", "latest", "ADD http"]
)
def test_nothing_is_downloaded_in_a_build(rendered: Rendered, real_dockerfile: str, word: str) -> None:
    for dockerfile in (rendered.dockerfile, real_dockerfile):
        assert word not in "\n".join(commands(dockerfile))


def test_every_file_gets_the_one_time(rendered: Rendered, toy_pins: Pins) -> None:
    installs = [line for line in commands(rendered.dockerfile) if "uv pip install" in line]
    assert len(installs) == 4
    assert all(
        line.endswith(f"find /out -exec touch --no-dereference --date=@{toy_pins.epoch} {{}} +") for line in installs
    )


def test_one_layer_a_component_in_the_order_of_the_image(rendered: Rendered) -> None:
    copies = [line for line in commands(rendered.dockerfile) if line.startswith("COPY")]
    # What the image says of itself comes last: it changes with every component, and is small.
    assert copies == [f"COPY --link --from={name} /out/ /" for name in ("base", "needs", "app", "plugins", "versions")]


def test_requirements_are_what_the_lock_says(rendered: Rendered, toy_lock: Lock) -> None:
    files = dict(rendered.files)
    assert sorted(name for name in files if name.startswith("requirements/")) == [
        f"requirements/{name}.txt" for name in ("app", "base", "needs", "tools")
    ]
    assert files["requirements/needs.txt"].splitlines() == [
        f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}" for wheel in toy_lock.wheels_of("needs")
    ]


@pytest.mark.parametrize("component", ["base", "needs", "app"])
def test_another_wheel_changes_its_component_and_the_image_alone(
    toy: Workspace, toy_pins: Pins, toy_lock: Lock, component: str
) -> None:
    before = keys(toy, toy_pins, toy_lock)
    assert changed(before, keys(toy, toy_pins, other_wheel(toy_lock, component))) == {component, "image"}


@pytest.mark.parametrize("what", ["epoch", "tools", "deb", "platform"])
def test_what_everything_is_built_with_changes_everything(
    toy: Workspace, toy_pins: Pins, toy_lock: Lock, what: str
) -> None:
    before = keys(toy, toy_pins, toy_lock)
    pins, lock = toy_pins, toy_lock
    if what == "epoch":
        pins = replace(pins, epoch=pins.epoch + 1)
    elif what == "platform":
        pins = replace(pins, platform="linux/arm64")
    elif what == "tools":
        lock = other_wheel(lock, "tools")
    else:
        lock = replace(lock, debs=(replace(lock.debs[0], sha256="ef" * 32), *lock.debs[1:]))
    assert changed(before, keys(toy, pins, lock)) == set(before)


def test_an_edit_of_a_plugin_changes_the_plugins_and_the_image_alone(
    toy: Workspace, toy_pins: Pins, toy_lock: Lock
) -> None:
    before = keys(toy, toy_pins, toy_lock)
    (toy.root / "plugins" / "toy-plugin" / "toy_plugin.py").write_text("EDITED = True\n")
    assert changed(before, keys(toy, toy_pins, toy_lock)) == {"plugins", "image"}


def test_a_plugin_file_that_may_be_run_is_another_plugin(toy: Workspace, toy_pins: Pins, toy_lock: Lock) -> None:
    before = keys(toy, toy_pins, toy_lock)
    (toy.root / "plugins" / "toy-plugin" / "toy_plugin.py").chmod(0o755)
    assert changed(before, keys(toy, toy_pins, toy_lock)) == {"plugins", "image"}


@pytest.mark.parametrize("left", ["__pycache__/x.pyc", "tests/test_x.py", "dist/x.whl", ".pytest_cache/x"])
def test_what_tools_leave_in_a_plugin_changes_nothing(
    toy: Workspace, toy_pins: Pins, toy_lock: Lock, left: str
) -> None:
    before = keys(toy, toy_pins, toy_lock)
    path = toy.root / "plugins" / "toy-plugin" / left
    path.parent.mkdir()
    path.write_text("left here")
    assert keys(toy, toy_pins, toy_lock) == before


def test_the_recipe_of_the_root_file_system_changes_everything(toy: Workspace, toy_pins: Pins, toy_lock: Lock) -> None:
    before = keys(toy, toy_pins, toy_lock)
    edit(toy.root / "templates" / "rootfs" / "customize.sh", "set -eu", "set -eux")
    assert changed(before, keys(toy, toy_pins, toy_lock)) == set(before)


def test_a_recipe_changes_the_components_that_are_made_with_it(toy: Workspace, toy_pins: Pins, toy_lock: Lock) -> None:
    before = keys(toy, toy_pins, toy_lock)
    edit(toy.root / "templates" / "components" / "cpu" / "plugins.j2", "mkdir /wheels", "mkdir -p /wheels")
    assert changed(before, keys(toy, toy_pins, toy_lock)) == {"plugins", "image"}


def test_a_setting_of_the_image_changes_the_image_alone(toy: Workspace, toy_pins: Pins, toy_lock: Lock) -> None:
    before = keys(toy, toy_pins, toy_lock)
    edit(toy.image_folder("toy-serving") / "image.toml", 'PLAIN = "C.UTF-8"', 'PLAIN = "C"')
    assert changed(before, keys(toy, toy_pins, toy_lock)) == {"image"}


def test_where_the_project_lies_changes_nothing(toy: Workspace, toy_pins: Pins, toy_lock: Lock, tmp_path: Path) -> None:
    before = render(toy, toy_pins, toy_lock)
    moved = toy.root.rename(tmp_path / "elsewhere")
    assert render(Workspace(moved, tmp_path / "other-state"), toy_pins, toy_lock) == before
    assert str(tmp_path) not in "".join(text for _, text in before[0].files)


def test_a_component_is_called_by_the_version_of_its_wheel(toy_pins: Pins, toy_lock: Lock) -> None:
    assert component_version(toy_pins, toy_lock, "app", "") == "2.0"
    assert component_version(toy_pins, toy_lock, "needs", "") == "2 wheels"
    assert component_version(toy_pins, toy_lock, "plugins", "0123456789abcdef") == "source 0123456789ab"


@pytest.mark.parametrize("spelled", ["Toy_App==2.0", "toy.app == 2.0", "toy-app[extra]==2.0"])
def test_however_the_pins_spell_its_name(toy_pins: Pins, toy_lock: Lock, spelled: str) -> None:
    pins = replace(
        toy_pins,
        components=tuple(replace(one, wheels=(spelled,)) if one.name == "app" else one for one in toy_pins.components),
    )
    assert component_version(pins, toy_lock, "app", "") == "2.0"


def test_labels_name_the_stack_the_lock_and_the_versions(rendered: Rendered, toy_lock: Lock) -> None:
    labels = dict(rendered.labels)
    assert labels["io.kiln.stack"] == "toy"
    assert labels["io.kiln.lock.sha256"] == toy_lock.sha256
    assert labels["io.kiln.component.base"] == "1.0+cpu"
    assert list(labels) == sorted(labels)


def test_a_variable_that_no_template_uses_is_named(toy: Workspace, toy_pins: Pins, toy_lock: Lock) -> None:
    edit(toy.root / "templates" / "serving.Dockerfile.j2", "USER {{ image.user }}\n", "")
    with pytest.raises(RenderError, match=r"uses image\.user"):
        render(toy, toy_pins, toy_lock)


@pytest.mark.parametrize("template", ["serving.Dockerfile.j2", "components/cpu/wheels.j2"])
def test_a_variable_that_is_not_there_is_named(toy: Workspace, toy_pins: Pins, toy_lock: Lock, template: str) -> None:
    with (toy.root / "templates" / template).open("a") as stream:
        stream.write("{{ stack.colour }}\n")
    with pytest.raises(RenderError, match="'colour'") as caught:
        render(toy, toy_pins, toy_lock)
    assert f"templates/{template}" in caught.value.what


def test_a_missing_template_is_named(toy: Workspace, toy_pins: Pins, toy_lock: Lock) -> None:
    edit(toy.image_folder("toy-serving") / "image.toml", "serving.Dockerfile.j2", "missing.j2")
    with pytest.raises(RenderError, match=r"there is no template templates/missing\.j2"):
        render(toy, toy_pins, toy_lock)


@pytest.mark.parametrize("text", ["{% if %}", "{{ 1 +", "{{ stack.name | no_such_filter }}", "{% for x in contexts %}"])
def test_a_template_that_is_none_is_named_with_its_line(
    toy: Workspace, toy_pins: Pins, toy_lock: Lock, text: str
) -> None:
    path = toy.root / "templates" / "serving.Dockerfile.j2"
    path.write_text(f"line one\n{text}\n")
    with pytest.raises(RenderError) as caught:
        render(toy, toy_pins, toy_lock)
    assert caught.value.what == "templates/serving.Dockerfile.j2 is no valid template"
    assert re.match(r"line \d: ", caught.value.why)


def test_a_source_that_is_no_project_is_named(toy: Workspace, toy_pins: Pins, toy_lock: Lock) -> None:
    (toy.root / "plugins" / "toy-plugin" / "pyproject.toml").unlink()
    with pytest.raises(PinsError, match=r"components\.plugins\.sources: plugins/toy-plugin"):
        render(toy, toy_pins, toy_lock)


@pytest.fixture
def committed(toy: Workspace, rendered: Rendered) -> Path:
    """The toy with its rendered files in place; returns the image's folder."""
    write_rendered((rendered,), toy.root / "images")
    return toy.image_folder("toy-serving")


def test_files_that_are_current_pass(toy: Workspace, rendered: Rendered, committed: Path) -> None:
    check_rendered((rendered,), toy)


def test_an_edit_by_hand_is_shown(toy: Workspace, rendered: Rendered, committed: Path) -> None:
    edit(committed / "Dockerfile", "WORKDIR /srv", "WORKDIR /tmp")
    with pytest.raises(RenderStaleError) as caught:
        check_rendered((rendered,), toy)
    assert "-WORKDIR /tmp" in caught.value.why
    assert "+WORKDIR /srv" in caught.value.why


def test_a_missing_and_a_stray_file_are_found(toy: Workspace, rendered: Rendered, committed: Path) -> None:
    (committed / "requirements" / "app.txt").rename(committed / "requirements" / "old.txt")
    with pytest.raises(RenderStaleError) as caught:
        check_rendered((rendered,), toy)
    assert "requirements/app.txt" in caught.value.why
    assert "requirements/old.txt is no longer rendered" in caught.value.why


@pytest.mark.parametrize(("old", "new"), [(b'serve"]\n', b'serve"]'), (b"\n", b"\r\n")])
def test_a_difference_in_line_ends_alone_is_one_too(
    toy: Workspace, rendered: Rendered, committed: Path, old: bytes, new: bytes
) -> None:
    path = committed / "Dockerfile"
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(RenderStaleError):
        check_rendered((rendered,), toy)


def test_an_empty_component_is_a_context_of_no_wheels(toy: Workspace, toy_pins: Pins, toy_lock: Lock) -> None:
    lock = replace(toy_lock, wheels=tuple[Wheel, ...](wheel for wheel in toy_lock.wheels if wheel.component != "needs"))
    (one,) = render(toy, toy_pins, lock)
    assert "requirements/needs.txt" not in dict(one.files)
