"""The manual as the tests read it: README.md and docs/, their blocks of code, what each block needs, and how one is run."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
# What a block needs that not every machine has. docs/index.md explains the words; all but the first say why no test runs the block.
NEEDS = ("image", "engine", "gpu", "network", "registry", "time", "yours")
LANGUAGES = ("sh", "console", "text", "toml", "json", "yaml", "python")
COMMANDS = ("sh", "console")
_FENCE = re.compile(r'```(?P<language>[a-z]*)(?: title="needs: (?P<needs>[a-z ]+)")?$')
_SECONDS = re.compile(r"(?:\\ )*[0-9]+\\\.[0-9](?=\\ s)")


@dataclass(frozen=True)
class Block:
    """A block of code: where it begins, its language, what it needs, and its lines."""

    page: str
    line: int
    language: str
    needs: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages(root: Path = PROJECT) -> list[Path]:
    """README.md and every page of docs/."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def split(text: str, page: str = "") -> tuple[list[Block], list[str]]:
    """The blocks of a page, and its other lines. Raises ValueError where a fence is not closed or says something that is not understood."""
    blocks: list[Block] = []
    prose: list[str] = []
    begun: tuple[int, str, tuple[str, ...]] | None = None
    inside: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if begun and line == "```":
            blocks.append(Block(page, *begun, "\n".join(inside) + "\n"))
            begun, inside = None, []
        elif begun:
            inside.append(line)
        elif line.lstrip().startswith(("```", "~~~")):
            fence = _FENCE.match(line)
            if not fence:
                raise ValueError(f"{page}:{number}: this fence is not understood: {line}")
            begun = (number, fence["language"], tuple((fence["needs"] or "").split()))
        else:
            prose.append(line)
    if begun:
        raise ValueError(f"{page}:{begun[0]}: this block has no end")
    return blocks, prose


def read_blocks(path: Path) -> list[Block]:
    """The blocks of a page of the project."""
    return split(path.read_text(encoding="utf-8"), str(path.relative_to(PROJECT)))[0]


def said(shown: str, output: str) -> bool:
    """Whether a program wrote what the manual shows. There `…` is any text, alone on a line any lines; seconds are never compared."""
    pattern = ""
    for line in shown.splitlines():
        if line.strip() == "…":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += _SECONDS.sub(" *[0-9.]+", re.escape(line.rstrip()).replace("…", ".*")) + r"[ ]*\n"
    lines = "".join(f"{line.rstrip()}\n" for line in output.strip("\n").rstrip().splitlines())
    return re.fullmatch(pattern, lines) is not None


def run(block: Block, folder: Path, environment: dict[str, str], timeout: float = 120) -> None:
    """Run a block as a person does who pastes it into a shell in ``folder``. Raises AssertionError where a command fails, or says something else than is shown."""

    def shell(text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )

    if block.language == "sh":
        done = shell(block.text)
        assert done.returncode == 0, f"{block}: ended with {done.returncode}\n{done.stdout[-3000:]}"
        return
    for session in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, shown = session.partition("\n")
        output = shell(command).stdout
        assert said(shown.rstrip("\n") + "\n", output), f"{block}: `{command}` said\n{output[-3000:]}"


def environment(bin_folder: Path, **more: str) -> dict[str, str]:
    """A shell's variables in which `kiln` is the one in ``bin_folder``, and no setting of make's or Kiln's is there."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("KILN_", "MAKE", "MFLAGS"))}
    return kept | {"PATH": f"{bin_folder}:{os.environ['PATH']}"} | more
