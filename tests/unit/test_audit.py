"""The audit: whatever could change without pins or lock changing is named, and nothing else is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kiln.audit import Audit, audit, dockerfile_problems, judge_audit
from kiln.errors import MutableInputError
from kiln.git import Submodule
from kiln.lockentries import Archive, BaseImage, Git, Unresolved, Wheel
from kiln.lockfile import Lock, read_lock
from kiln.pins import Pins, read_pins
from kiln.render import Rendered, render
from kiln.workspace import Workspace

DIGEST = "sha256:" + "5" * 64
PINNED = f"registry.invalid/base:7@{DIGEST}"
GOOD = f"""\
# syntax is BuildKit's own
FROM {PINNED} AS base
FROM scratch AS empty
FROM base AS tools
RUN --network=none --mount=type=bind,from=wheels-tools,target=/w pip install --no-index --find-links=/w uv
FROM --platform=linux/amd64 parent AS app
COPY --link --from=tools /out /
COPY --from=wheels-tools a b
ADD rootfs.tar /
ADD --checksum={DIGEST} https://files.invalid/x.tar /x
ENV A=1
RUN --network=none true
"""
CONTEXTS = {"wheels-tools", "parent"}


def test_the_example_has_no_problem() -> None:
    assert dockerfile_problems(GOOD, CONTEXTS) == []


# A line more, and a word of what is said of it.
WRONG = {
    "FROM a tag": ("FROM debian:12", "FROM debian:12"),
    "FROM a name alone": ("FROM debian", "FROM debian"),
    "FROM a tag under a name": ("FROM debian:12 AS mine", "FROM debian:12"),
    "FROM a tag for a platform": ("FROM --platform=linux/amd64 debian:12 AS mine", "FROM debian:12"),
    "FROM half a digest": ("FROM debian@sha256:55", "FROM debian@sha256:55"),
    "FROM a digest and more": (f"FROM {PINNED}0", "FROM registry.invalid"),
    "FROM a variable": ("FROM ${BASE}", "FROM ${BASE}"),
    "from in small letters": ("from debian:12", "debian:12"),
    "COPY from an image": ("COPY --from=debian:12 /a /b", "COPY from debian:12"),
    "COPY from nobody": ("COPY --link --from=ghost /a /b", "COPY from ghost"),
    "ADD from an image": ("ADD --from=debian:12 /a /b", "ADD from debian:12"),
    "a mount from an image": ("RUN --network=none --mount=type=bind,from=debian:12,target=/a true", "RUN from debian:12"),
    "a mount whose image stands first": ("RUN --network=none --mount=from=debian:12,target=/a true", "RUN from debian:12"),
    "a mount whose image stands last": ("RUN --network=none --mount=type=cache,target=/a,from=debian:12 true", "RUN from debian:12"),
    "the second of two mounts": (
        "RUN --network=none --mount=type=bind,from=parent,target=/a --mount=type=bind,from=debian:12,target=/b true",
        "RUN from debian:12",
    ),
    "RUN with a network": ("RUN true", "may use the network"),
    "RUN with the default network": ("RUN --network=default true", "may use the network"),
    "RUN with the host's network": ("RUN --network=host true", "may use the network"),
    "run in small letters": ("run true", "may use the network"),
    "RUN that only says so": ("RUN echo --network=none", "may use the network"),
    "RUN with mounts that only says so": ("RUN --mount=type=cache,target=/a make --network=none", "may use the network"),
    "curl": ("RUN --network=none curl -O https://files.invalid/x", "curl"),
    "curl in an exec form": ('RUN --network=none ["curl", "https://files.invalid/x"]', "curl"),
    "wget": ("RUN --network=none cd /tmp && wget https://files.invalid/x", "wget"),
    "git clone": ("RUN --network=none git  clone https://git.invalid/x", "git clone"),
    "git fetch": ("RUN --network=none git fetch origin", "git fetch"),
    "git submodule": ("RUN --network=none git submodule update --init", "git submodule"),
    "apt-get update": ("RUN --network=none apt-get update", "apt-get update"),
    "apt-get install": ("RUN --network=none apt-get install curlew", "apt-get install"),
    "apt-get with options": ("RUN --network=none apt-get -y install make", "apt-get"),
    "apt-get with two options": ("RUN --network=none apt-get -qq -o Dpkg::Use-Pty=0 update", "apt-get"),
    "apt": ("RUN --network=none apt install make", "apt install"),
    "apt with options": ("RUN --network=none apt -y install make", "apt"),
    "a PPA": ("RUN --network=none add-apt-repository ppa:x/y", "add-apt-repository"),
    "npm": ("RUN --network=none npm install x", "npm install"),
    "cargo": ("RUN --network=none cargo install x", "cargo install"),
    "pip": ("RUN --network=none pip install uv", "pip ask an index"),
    "pip3": ("RUN --network=none pip3 install uv", "pip ask an index"),
    "pip of a Python": ("RUN --network=none python3 -m pip download uv", "pip ask an index"),
    "pip of uv": ("RUN --network=none uv pip install uv", "pip ask an index"),
    "pip wheel": ("RUN --network=none pip wheel .", "pip ask an index"),
    "ADD of an address": ("ADD https://files.invalid/x.tar /x", "without a checksum"),
    "ADD of an unencrypted address": ("ADD http://files.invalid/x.tar /x", "without a checksum"),
    "ADD of a repository": ("ADD https://git.invalid/x.git#v1 /x", "without a checksum"),
    "ADD of a repository over ssh": ("ADD git@git.invalid:x/y.git /x", "without a checksum"),
    "over two lines": ("RUN --network=none true && \\\n    wget https://files.invalid/x", "wget"),
    "the word over two lines": ("RUN --network=none git \\\n  clone https://git.invalid/x", "git clone"),
    "with blanks behind the backslash": ("RUN --network=none true && \\  \n    wget https://files.invalid/x", "wget"),
    "behind a comment": ("RUN --network=none true && \\\n# a word\n  # more\n    wget https://files.invalid/x", "wget"),
    "behind an empty line": ("RUN --network=none true && \\\n\n    wget https://files.invalid/x", "wget"),
    "indented": ("   RUN true", "may use the network"),
    "behind tabs": ("RUN\t--network=none\twget https://files.invalid/x", "wget"),
    "after a here-document": ("RUN --network=none <<EOF\ntrue\nEOF\nFROM debian:12", "FROM debian:12"),
    "after a quoted here-document": ("COPY <<'END' /a\nx\nEND\nFROM debian:12", "FROM debian:12"),
    "after two here-documents": ("COPY <<ONE <<TWO /a/\nx\nONE\ny\nTWO\nFROM debian:12", "FROM debian:12"),
    "after one with tabs before its end": ("RUN --network=none <<-EOF\n\ttrue\n\tEOF\nFROM debian:12", "FROM debian:12"),
    "after one with a hyphen in its end": ("RUN --network=none <<END-OF\ntrue\nEND-OF\nFROM debian:12", "FROM debian:12"),
    "after a here-string": ("RUN --network=none cat <<<word\nFROM debian:12", "FROM debian:12"),
    "after a shift": ("RUN --network=none echo $((1<<3))\nFROM debian:12", "FROM debian:12"),
    "the line that begins a here-document": ("RUN <<EOF\ntrue\nEOF", "may use the network"),
}  # fmt: skip


@pytest.mark.parametrize(("line", "word"), WRONG.values(), ids=WRONG)
def test_a_line_that_can_bring_other_bytes_is_named(line: str, word: str) -> None:
    problems = dockerfile_problems(GOOD + line + "\n", CONTEXTS)
    assert [problem for problem in problems if word in problem], problems
    # And without it there is none: what stands before is not what was found.
    assert dockerfile_problems(GOOD, CONTEXTS) == []


FINE = {
    "a stage of before": "FROM tools AS more",
    "a context": "FROM parent",
    "a mount from a context": "RUN --network=none --mount=type=bind,from=wheels-tools,target=/w true",
    "a mount without an image": "RUN --network=none --mount=type=cache,target=/root true",
    "instructions in a here-document": "RUN --network=none <<EOF\nFROM debian:12\nRUN curl x\nEOF",
    "instructions in a file": "COPY <<'EOF' /Dockerfile\nFROM debian:12\nADD https://files.invalid/x /x\nEOF",
    "a here-document that ends with tabs": "RUN --network=none <<-EOF\n\tFROM debian:12\n\tEOF",
    "a comment": "# FROM debian:12\n  # RUN curl x",
    "a comment between two lines": "RUN --network=none true \\\n# wget is not run here\n  && true",
    "a label": 'LABEL about="FROM debian:12; RUN curl x"',
    "an environment variable": "ENV FETCH=https://files.invalid/x",
    "a word that only begins like one": "RUN --network=none curlew && wgetter && git cloned && pipx install",
    "pip without an index": "RUN --network=none python3 -m pip install --no-index x",
    "pip over two lines": "RUN --network=none pip install \\\n  --no-index x",
    "flags in any order": "RUN --mount=type=cache,target=/a --network=none true",
    "nothing at the end": "RUN --network=none true \\",
}  # fmt: skip


@pytest.mark.parametrize("line", FINE.values(), ids=FINE)
def test_what_cannot_is_not(line: str) -> None:
    assert dockerfile_problems(GOOD + line + "\n", CONTEXTS) == []


def test_a_stage_is_known_from_where_it_stands_on() -> None:
    assert len(dockerfile_problems("FROM later AS now\nFROM scratch AS later\n", set())) == 1
    assert dockerfile_problems("FROM scratch AS later\nFROM later AS now\n", set()) == []


def test_every_problem_is_listed() -> None:
    text = "FROM debian:12\nRUN curl x | sh\nADD https://files.invalid/x /x\nCOPY --from=debian:13 /a /b\n"
    assert len(dockerfile_problems(text, set())) == 5


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "\\\n", "FROM\n", "RUN <<EOF\nnever ended"])
def test_what_is_hardly_a_dockerfile_ends_in_no_error(text: str) -> None:
    assert isinstance(dockerfile_problems(text, set()), list)


# pins and lock


@pytest.fixture
def pins(real: Workspace) -> Pins:
    return read_pins(real, "dsv4-mhc")


def whole_lock(pins: Pins) -> Lock:
    """A lock that has everything the pins name."""
    assert pins.base is not None
    gits = tuple(
        Git(item.name, item.git, item.ref, "1" * 40, "2" * 40, (Submodule("third", "https://git.invalid/x", "3" * 40),))
        for item in pins.components
        if item.git
    )
    archives = tuple(
        Archive(item.name, archive.name, "https://files.invalid/x.zip", "4" * 64, 1)
        for item in pins.components
        for archive in item.archives
    )
    wheels = (Wheel("flydsl", "flydsl", "1", "flydsl-1-py3-none-any.whl", "6" * 64, 1),)
    return Lock(
        pins.stack, pins.sha256, (), wheels, archives, gits, (BaseImage(pins.base.image, pins.base.tag, DIGEST),)
    )


def without_digest(pins: Pins) -> Pins:
    assert pins.base is not None
    return replace(pins, base=replace(pins.base, digest=""))


def test_a_whole_lock_has_nothing_mutable(pins: Pins) -> None:
    lock = whole_lock(pins)
    found = audit(pins, lock, ())
    assert (found.mutable, found.unresolved) == ((), ())
    assert found.inputs == 1 + len(lock.archives) + 2 * len(lock.gits) + 1
    judge_audit(found, pins.stack)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("commit", "v1"),
        ("commit", "1" * 39),
        ("tree", ""),
        ("submodules", (Submodule("third", "https://git.invalid/x", "main"),)),
    ],
)
def test_a_source_by_anything_but_commits_is_mutable(pins: Pins, name: str, value: object) -> None:
    lock = whole_lock(pins)
    changed = tuple(replace(git, **{name: value}) if git.component == "aiter" else git for git in lock.gits)  # type: ignore[arg-type]
    (line,) = audit(pins, replace(lock, gits=changed), ()).mutable
    assert line.startswith("aiter: ")


def test_a_source_that_is_not_locked_is_mutable_and_one_that_is_open_is_not(pins: Pins) -> None:
    lock = whole_lock(pins)
    less = replace(lock, gits=tuple(git for git in lock.gits if git.component != "aiter"))
    (line,) = audit(pins, less, ()).mutable
    assert line.startswith("aiter: ")
    opened = audit(pins, replace(less, unresolved=(Unresolved("git", "aiter", "v1", "nobody answers"),)), ())
    assert opened.mutable == ()
    assert "nobody answers" in opened.unresolved[0]
    # Another kind of entry of that name does not stand for the source.
    other = replace(less, unresolved=(Unresolved("archive", "aiter", "v1", "nobody answers"),))
    assert len(audit(pins, other, ()).mutable) == 1


def test_an_archive_that_is_not_locked_is_mutable_and_one_that_is_open_is_not(pins: Pins) -> None:
    lock = whole_lock(pins)
    less = replace(lock, archives=lock.archives[1:])
    (line,) = audit(pins, less, ()).mutable
    assert lock.archives[0].name in line
    opened = (Unresolved("archive", lock.archives[0].component, f"{lock.archives[0].name}: x", "nobody answers"),)
    assert audit(pins, replace(less, unresolved=opened), ()).mutable == ()


def test_an_open_archive_does_not_stand_for_another_of_its_component(pins: Pins) -> None:
    lock = whole_lock(pins)
    assert {archive.component for archive in lock.archives} == {"triton"}
    opened = (Unresolved("archive", "triton", f"{lock.archives[0].name}: x", "nobody answers"),)
    found = audit(pins, replace(lock, archives=(), unresolved=opened), ())
    assert [line for line in found.mutable if lock.archives[1].name in line]


def test_a_base_image_without_a_digest_is_mutable(pins: Pins) -> None:
    lock = whole_lock(pins)
    (line,) = audit(pins, replace(lock, images=()), ()).mutable
    assert "no digest" in line
    (line,) = audit(without_digest(pins), lock, ()).mutable
    # What to write is said.
    assert f"pin {DIGEST}" in line


def test_a_digest_of_another_tag_does_not_count(pins: Pins) -> None:
    lock = whole_lock(pins)
    other = replace(lock, images=(replace(lock.images[0], tag="other"),))
    assert len(audit(pins, other, ()).mutable) == 1


def test_a_base_image_that_is_open_is_not_mutable(pins: Pins) -> None:
    assert pins.base is not None
    opened = (Unresolved("image", pins.base.image, pins.base.tag, "nobody answers"),)
    found = audit(without_digest(pins), replace(whole_lock(pins), images=(), unresolved=opened), ())
    assert found.mutable == ()
    assert len(found.unresolved) == 1


@pytest.mark.parametrize(("name", "value"), [("sha256", ""), ("sha256", "6" * 63), ("size", 0), ("size", -1)])
def test_a_file_without_checksum_or_size_is_mutable(pins: Pins, name: str, value: object) -> None:
    lock = whole_lock(pins)
    (line,) = audit(pins, replace(lock, wheels=(replace(lock.wheels[0], **{name: value}),)), ()).mutable  # type: ignore[arg-type]
    assert lock.wheels[0].file in line


def test_what_can_change_is_an_error_that_lists_all_of_it() -> None:
    found = Audit("small", 3, ("one can", "two can"), ("three: nobody answers",))
    with pytest.raises(MutableInputError) as caught:
        judge_audit(found, "small")
    assert caught.value.exit_code == 32
    assert caught.value.why.splitlines() == ["one can", "two can"]
    assert str(found).splitlines() == [
        "small: 3 inputs looked at, 2 mutable, 1 unresolved",
        "  mutable     one can",
        "  mutable     two can",
        "  unresolved  three: nobody answers",
    ]


def test_what_is_only_open_is_no_error() -> None:
    judge_audit(Audit("small", 3, (), ("three: nobody answers",)), "small")


# the real stacks


@pytest.mark.parametrize("stack", ["dsv4-mhc", "dsv4-mhc-upstream", "cpu"])
def test_the_real_stacks_have_nothing_mutable(real: Workspace, stack: str) -> None:
    pins = read_pins(real, stack)
    lock = read_lock(real, pins)
    found = audit(pins, lock, render(real, pins, lock))
    assert found.mutable == ()
    assert found.inputs > 100


def test_a_dockerfile_of_a_real_stack_is_looked_at_with_its_own_contexts(real: Workspace) -> None:
    pins = read_pins(real, "dsv4-mhc")
    lock = read_lock(real, pins)
    base, serving = render(real, pins, lock)
    text = serving.dockerfile
    bad: Rendered = replace(
        serving,
        files=tuple(
            (name, data + "RUN curl https://files.invalid/x\n" if name == "Dockerfile" else data)
            for name, data in serving.files
        ),
    )
    assert text != bad.dockerfile
    found = audit(pins, lock, (base, bad)).mutable
    assert len(found) == 2
    assert all(line.startswith("rocm-serving: ") for line in found)
    # Without the contexts that it names, its first FROM is an image like any other.
    assert dockerfile_problems(text, set())
