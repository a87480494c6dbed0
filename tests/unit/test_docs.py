"""The manual: every block of commands is run by a test or says what it needs, no link leads nowhere, and every page is in the site's contents."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml

from tests.commands import called, unknown
from tests.manual import COMMANDS, LANGUAGES, NEEDS, PROJECT, Block, environment, pages, read_blocks, run, said, split

BLOCKS = [block for page in pages() for block in read_blocks(page)]
COMMAND_BLOCKS = [block for block in BLOCKS if block.language in COMMANDS]
OFFLINE = sorted({block.page for block in COMMAND_BLOCKS if not block.needs})
_LINK = re.compile(r"!?\[[^\]]*\]\((?P<to>[^)\s]+)\)")


# --- blocks of code


def test_every_block_says_its_language_and_needs_what_the_manual_explains() -> None:
    assert [str(one) for one in BLOCKS if one.language not in LANGUAGES] == []
    assert [str(one) for one in BLOCKS if set(one.needs) - set(NEEDS)] == []
    assert [str(one) for one in BLOCKS if one.needs and one.language not in COMMANDS] == []


def test_the_manual_explains_what_a_block_can_need() -> None:
    text = (PROJECT / "docs" / "index.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([a-z]+)` \|", text, re.MULTILINE) == list(NEEDS)


def test_no_code_stands_outside_a_fence_where_no_test_would_see_it() -> None:
    for page in pages():
        prose = split(page.read_text(encoding="utf-8"))[1]
        hidden = [
            after
            for before, after in zip(["", *prose], prose, strict=False)
            if not before.strip() and after.startswith(("    ", "\t"))
        ]
        assert hidden == [], page


@pytest.mark.parametrize("text", ["```sh\nx\n", "~~~\nx\n~~~\n", "```sh needs=gpu\nx\n```\n", "  ```sh\nx\n  ```\n"])
def test_a_fence_that_the_tests_would_misread_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not understood|no end"):
        split(text)


@pytest.mark.parametrize("block", COMMAND_BLOCKS, ids=str)
def test_what_is_called_in_a_block_is_there(block: Block) -> None:
    """Also in those that no test runs: the shell's own grammar, kiln's commands and options, make's targets and variables."""
    commands = re.findall(r"^\$ (.*)$", block.text, re.MULTILINE) if block.language == "console" else [block.text]
    assert commands, block
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    for text in commands:
        assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0, block
        assert [words for words in called(text) if unknown(words)] == [], block
        for words in re.findall(r"^(?:[A-Z_]+=\S+ )*make (?:-s )?([^#|\n]*)", text, re.MULTILINE):
            for word in re.findall(r"(?:[^\s']|'[^']*')+", words):
                if ">" in word:
                    continue
                name, is_set, _ = word.partition("=")
                known = rf"\$\({name}\b" if is_set else rf"(?m)^{name}:"
                assert re.search(known, makefile), f"{block}: make knows no {word}"


READERS: dict[str, Callable[[str], object]] = {
    "toml": tomllib.loads,
    "json": json.loads,
    "yaml": yaml.safe_load,
    "python": ast.parse,
}


@pytest.mark.parametrize("block", [one for one in BLOCKS if one.language in READERS], ids=str)
def test_a_document_that_is_shown_can_be_read(block: Block) -> None:
    READERS[block.language](block.text)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `kiln` that runs the code of the checkout it is called in."""
    folder = tmp_path_factory.mktemp("bin")
    kiln = folder / "kiln"
    kiln.write_text(f'#!/bin/sh\nexec {sys.executable} -m kiln "$@"\n')
    kiln.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def new_checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout's files, and nothing that was made in it; compiled, so that not every page does it again."""
    folder = tmp_path_factory.mktemp("new") / "checkout"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=PROJECT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in names:
        if name and (PROJECT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(PROJECT / name, folder / name)
    subprocess.run([sys.executable, "-m", "compileall", "-q", "kiln"], cwd=folder, check=True)
    return folder


@pytest.mark.parametrize("page", OFFLINE)
def test_the_blocks_of_a_page_work_one_after_the_other_in_a_new_checkout(
    page: str, programs: Path, new_checkout: Path, tmp_path: Path
) -> None:
    checkout = tmp_path / "checkout"
    shutil.copytree(new_checkout, checkout)
    # The tests' own Python is `python`, too, and sees the checkout's modules first. Nobody listens where the network would be.
    nobody = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    found = environment(programs, HOME=str(tmp_path), PYTHONPATH=str(checkout), **nobody)
    found["PATH"] = f"{programs}:{Path(sys.executable).parent}:{found['PATH']}"
    found.pop("PYTHONDONTWRITEBYTECODE", None)
    for block in read_blocks(PROJECT / page):
        if block.language in COMMANDS and not block.needs:
            run(block, checkout, found)


def test_a_block_that_fails_or_says_something_else_is_seen(programs: Path, tmp_path: Path) -> None:
    found = environment(programs)
    run(Block("x", 1, "console", (), "$ echo a 1.5 s; echo b; echo c >&2\na 2.0 s\n…\n"), tmp_path, found)
    for text in ("$ echo a\nb\n", "$ echo a; echo b\na\n", "$ true\na\n"):
        with pytest.raises(AssertionError, match="said"):
            run(Block("x", 1, "console", (), text), tmp_path, found)
    with pytest.raises(AssertionError, match="ended with 1"):
        run(Block("x", 1, "sh", (), "false | cat\ntrue\n"), tmp_path, found)


def test_the_server_is_started_as_the_images_gates_start_it() -> None:
    image = tomllib.loads((PROJECT / "images" / "rocm-serving" / "image.toml").read_text(encoding="utf-8"))
    blocks = read_blocks(PROJECT / "docs" / "running.md")
    line = next(block.text for block in blocks if block.text.startswith("docker run") and "--device" in block.text)
    words = shlex.split(line.replace("\\\n", " "))
    assert words[words.index("/model") + 1 :] == image["verify"]["gates"]["serve"]
    pod = next(yaml.safe_load(block.text) for block in blocks if block.language == "yaml")
    (container,) = pod["spec"]["containers"]
    split_up = [part for word in container["args"][1:] for part in word.split("=", 1)]
    assert split_up == image["verify"]["gates"]["serve"]


def test_the_pod_is_valid_by_kubernetes_own_schema() -> None:
    blocks = read_blocks(PROJECT / "docs" / "running.md")
    pod = next(yaml.safe_load(block.text) for block in blocks if block.language == "yaml")
    version = kubernetes_validate.latest_version()
    kubernetes_validate.validate(pod, version, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**pod, "spec": {**pod["spec"], "nodeSelectors": {}}}, version, strict=True)


def test_what_is_shown_is_compared_line_by_line() -> None:
    assert said("one …\n…\nlast\n", "one 2\nmore\n\nlast\n")
    assert not said("one …\nlast\n", "one 2\nmore\nlast\n")
    assert not said("took 1.5 s, 3 files\n", "took 9.0 s, 4 files\n")


# --- links


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    found: dict[str, int] = {}
    names = set()
    for line in split(text)[1]:
        if heading := re.match(r"#{1,6} +(.*?)(?: #+)?$", line):
            shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
            name = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
            count = found.get(name, 0)
            found[name] = count + 1
            names.add(f"{name}-{count}" if count else name)
    return names


def links(text: str) -> list[str]:
    """Where the links of a page lead, those in code left out."""
    return [found["to"] for found in _LINK.finditer(re.sub(r"`[^`\n]+`", "``", "\n".join(split(text)[1])))]


def dead(page: Path) -> list[str]:
    """The links of a page that lead nowhere."""
    wrong = []
    for link in links(page.read_text(encoding="utf-8")):
        parts = urlsplit(link)
        if parts.scheme:
            if parts.scheme != "https" or "." not in parts.netloc:
                wrong.append(link)
            continue
        target = (page.parent / parts.path).resolve() if parts.path else page
        if not target.is_file() or (
            parts.fragment and parts.fragment not in anchors(target.read_text(encoding="utf-8"))
        ):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_no_link_leads_nowhere(page: Path) -> None:
    assert dead(page) == []


def test_a_link_that_leads_nowhere_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One `two`: three/four\n\n# One\n\n# One\n\n[a](#one-two-threefour) [b](#one-1) [c](page.md) `[d](e)`\n"
    )
    assert dead(page) == []
    page.write_text(
        "# One\n\n[a](#two) [b](other.md) ![c](c.png) [d](page.md#one-1) [e](https://nowhere) [f](http://a.example/)\n"
    )
    assert dead(page) == ["#two", "other.md", "c.png", "page.md#one-1", "https://nowhere", "http://a.example/"]


# --- the site


def named(entry: Any) -> list[str]:
    """The pages in a part of the site's contents."""
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [page for part in parts for page in named(part)]


def test_every_page_is_in_the_sites_contents_once() -> None:
    site = yaml.safe_load((PROJECT / "mkdocs.yml").read_text(encoding="utf-8"))
    written = [page.relative_to(PROJECT / "docs").as_posix() for page in pages()[1:]]
    assert sorted(named(site["nav"])) == sorted(written), "add the page to nav in mkdocs.yml"


def test_the_way_in_leads_to_every_page() -> None:
    linked = {link.split("#")[0] for link in links((PROJECT / "docs" / "index.md").read_text(encoding="utf-8"))}
    written = {page.relative_to(PROJECT / "docs").as_posix() for page in pages()[1:]}
    assert sorted(written - linked - {"index.md"}) == [], "add a line to docs/index.md"


def test_a_page_has_one_title() -> None:
    for page in pages():
        assert len([line for line in split(page.read_text(encoding="utf-8"))[1] if line.startswith("# ")]) == 1, page
