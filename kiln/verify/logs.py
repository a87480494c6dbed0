"""Reading a server's log: one piece of text a process and place, from lines as engines, vLLM and progress bars leave them.

Nothing here is kept longer than a line, so a log of any length can be read.

What a line may look like:

* vLLM writes ``(NAME pid=N) `` before every line of a process, in colour or not (``vllm/utils/system_utils.py``, ``_add_prefix``). The name grows
  while a worker starts, from ``Worker`` to ``Worker_TP0``, so a process is its pid. Ray adds ``, ip=…`` and stands behind another prefix.
* Engines and ``docker compose`` put times and names in front.
* Progress bars go back to the beginning of their line with a carriage return, and two processes may write into one line.
* With ``AITER_LOG_MORE`` a message of AITER's has a line of its own, after one that names its process (``aiter/__init__.py``, v0.1.14).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["imported", "builds", "tilelang", "kiln"]

# A log has as many processes and proofs as its writers like; what is kept of it has a limit, and so has what one line may take.
PROCESSES, ENTRIES, LINES, WIDTH = 1024, 32, 256, 400

_ANSI = re.compile(r"\x1b\[[0-9;:?]*[A-Za-z]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_PREFIX = re.compile(r"\(([A-Za-z][\w.-]{0,63}) pid=(\d{1,10})((?:, ?ip=[\w.:]{1,64})?)\) ?", re.ASCII)
_HEADER = re.compile(r"\[aiter [A-Z]{1,10}\] \d{4}-\d\d-\d\d [\d:.,]{1,20} - ([\w.-]{1,64}):(\d{1,10}) - ", re.ASCII)

_FINDS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("imported", re.compile(r"import \[module_mhc\] under (\S*module_mhc\.so)")),
    (
        "builds",
        re.compile(r"((?:start |finish |failed jit )?build \[module_mhc\](?:, cost [\d.]{1,12}\s?s)?)"),
    ),
    ("builds", re.compile(r"(waiting for baton release at) \S*module_mhc(?!\w)")),
    # The end of a compile has a line too, which stays where the one of its beginning was cut.
    (
        "tilelang",
        re.compile(r"TileLang (?:begins|completes) to compile kernel `(mhc_(?:fused|pre|post)\w*|hc_prenorm_gemm\w*)"),
    ),
    ("kiln", re.compile(r"(kiln-mhc: (?:ran )?path=.*)")),
)
# What is left of a proof that another process wrote into, or that the log ends in. Looked for where there is no whole one.
_TORN = re.compile(r"import \[module_m(?:hc?)?$|import \[module_mhc\]|module_mhc\] under \S*module_mhc\.so")
RANK = re.compile(r"_(?:DP|PP|TP|PCP|EP)?\d+")
_SWAP = re.compile(r"Replacing existing|Installing triton via")
# As vLLM prints its configuration ("tensor_parallel_size=8") and the arguments that it was given ("'tensor_parallel_size': 8").
_PARALLEL = re.compile(r"(tensor|pipeline|data)_parallel_size'?[=:] ?(\d{1,5})(?!\d)")
_WORLD = re.compile(r"\bworld[_ ]size[= ](\d{1,5})(?!\d)")
_BUILDER = re.compile(r"\[pid=(\d{1,10}) pname=([\w.-]{1,64})\] ", re.ASCII)


@dataclass(frozen=True)
class Piece:
    """What one process wrote into one line. ``name`` is "" where nothing says who it was; ``pid`` then is "" too."""

    number: int
    name: str
    pid: str
    text: str


def pieces(lines: Iterable[str]) -> Iterator[Piece]:
    """The pieces of a log, cleaned of colours and of characters that no report can hold. An item may hold several lines."""
    number = 0
    header: tuple[str, str] | None = None
    for item in lines:
        for line in item.removesuffix("\n").split("\n"):
            number += 1
            said = None
            for name, pid, text in _parts(line):
                if found := _HEADER.search(text):
                    said = (name, pid) if pid else (found[1], found[2])
                elif not pid and header:
                    name, pid = header
                yield Piece(number, name, pid, text)
            header = said


def _parts(line: str) -> Iterator[tuple[str, str, str]]:
    """Who wrote what in one line: name, pid, text. What follows a carriage return is of who wrote before it, unless it says otherwise."""
    name = pid = ""
    for part in line.split("\r"):
        text = part
        if not part.isprintable():
            text = _CONTROL.sub("", _ANSI.sub("", part))
        place = 0
        for prefix in _PREFIX.finditer(text):
            if before := text[place : prefix.start()].strip():
                yield name, pid, before
            name, pid, place = prefix[1], prefix[2] + prefix[3], prefix.end()
        if rest := text[place:].strip():
            yield name, pid, rest
        elif pid:
            yield name, pid, ""  # a process that wrote an empty line is there all the same


@dataclass
class Process:
    """A process while the log is read."""

    name: str
    found: dict[Kind, list[str]] = field(
        default_factory=lambda: {"imported": [], "builds": [], "tilelang": [], "kiln": []}
    )
    at: list[tuple[Kind, int]] = field(default_factory=list)

    def add(self, kind: Kind, entry: str, number: int) -> bool:
        """Keep an entry; False where it says nothing new: a kernel's second line, or more of a kind than anyone reads."""
        entries = self.found[kind]
        if len(entries) == ENTRIES or (kind == "tilelang" and entry in entries):
            return False
        entries.append(entry[:WIDTH])
        self.at.append((kind, number))
        return True


class Reader:
    """What is known so far; ``take`` adds a piece."""

    def __init__(self) -> None:
        self.processes: dict[str, Process] = {}
        self.lines: list[tuple[int, str]] = []
        self.swaps: list[int] = []
        self.torn: list[int] = []
        self.degrees: dict[str, int] = {}
        self.world = self.total = 0
        self.crowded = False

    def take(self, piece: Piece) -> None:
        """Look at one more piece."""
        self.total, text = piece.number, piece.text
        if "Worker" in piece.name or piece.name.startswith("EngineCore"):
            self._process(piece)
        if "mhc" in text or "hc_prenorm" in text or "[module_m" in text:
            self._prove(piece)
        if "_size" in text or "world size" in text:
            for degree, size in _PARALLEL.findall(text):
                self.degrees[degree] = max(self.degrees.get(degree, 1), int(size))
            self.world = max([self.world, *map(int, _WORLD.findall(text))])
        if _SWAP.search(text):
            self._keep(self.swaps, piece)

    def _process(self, piece: Piece) -> Process | None:
        process = self.processes.get(piece.pid)
        if process is None:
            if len(self.processes) == PROCESSES:
                self.crowded = True
                return None
            process = self.processes[piece.pid] = Process(piece.name)
        # The name grows while a worker starts: "Worker", then "Worker_TP0".
        if len(RANK.findall(piece.name)) > len(RANK.findall(process.name)):
            process.name = piece.name
        return process

    def _prove(self, piece: Piece) -> None:
        if not piece.pid and (builder := _BUILDER.search(piece.text)):
            piece = Piece(piece.number, builder[2], builder[1], piece.text)
        found = [(kind, match[1]) for kind, pattern in _FINDS for match in pattern.finditer(piece.text)]
        if not found:
            if _TORN.search(piece.text):
                self._keep(self.torn, piece)
            return
        process = self._process(piece)
        if process and any([process.add(kind, entry, piece.number) for kind, entry in found]):  # noqa: C419 - add all of them
            self._line(piece)

    def _keep(self, numbers: list[int], piece: Piece) -> None:
        if len(numbers) < ENTRIES:
            numbers.append(piece.number)
            self._line(piece)

    def _line(self, piece: Piece) -> None:
        if len(self.lines) < LINES:
            prefix = f"({piece.name} pid={piece.pid}) " if piece.pid else ""
            self.lines.append((piece.number, f"{prefix}{piece.text}"[:WIDTH]))

    def expected(self) -> int:
        """The largest number of workers that any line speaks of; 0 where none does."""
        product = 1
        for size in self.degrees.values():
            product *= size
        return max(product if self.degrees else 0, self.world)
