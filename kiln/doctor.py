"""What this machine has and lacks for each command: looked at, never changed. Nothing is installed, started, made or written.

A command can be ready for one stack and not for another: a GPU is wanted by the checks of a ROCm image, the file system's tools by a stack that
makes its own. So each finding names the pairs of command and stack that it is about, and a pair is as good as the worst that was found of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from kiln.image import Image, read_images
from kiln.pins import Pins, read_pins
from kiln.workspace import Workspace

Status: TypeAlias = Literal["ok", "warning", "missing"]
WORST: tuple[Status, ...] = ("missing", "warning", "ok")
# As people speak of them: `verify` by level, since each level asks more of the machine.
COMMANDS = ("plan", "lock", "fetch", "build", "verify-static", "verify-ops", "verify-generate", "publish", "pull")
VERIFY = ("verify-static", "verify-ops", "verify-generate")
ON_ENGINE = ("build", *VERIFY, "publish", "pull")
DOWNLOADS = ("lock", "fetch", "build")

Pairs: TypeAlias = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what was found, what that means, the fix (something to type), and for which commands of which stacks it counts."""

    name: str
    status: Status
    found: str
    needed_by: Pairs
    means: str = ""
    fix: str = ""

    def data(self, stacks: Sequence[str]) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "name": self.name,
            "status": self.status,
            "found": self.found,
            "means": self.means,
            "fix": self.fix,
            "needed_by": [
                {"command": command, "stacks": [stack for stack in stacks if (command, stack) in self.needed_by]}
                for command in COMMANDS
                if any((command, stack) in self.needed_by for stack in stacks)
            ],
        }


@dataclass(frozen=True)
class Stack:
    """A stack as far as it asks something of a machine."""

    pins: Pins
    images: tuple[Image, ...]

    @property
    def name(self) -> str:
        """As it is typed."""
        return self.pins.stack

    @property
    def own_root(self) -> bool:
        """Whether it makes its root file system itself, and stands on no image."""
        return self.pins.base is None

    @property
    def with_sources(self) -> bool:
        """Whether git is asked for something of it."""
        return any(component.git for component in self.pins.components)

    @property
    def on_gpu(self) -> bool:
        """Whether one of its images can be served on a GPU alone."""
        return any(image.needs == "gpu" for image in self.images)


@dataclass(frozen=True)
class Asked:
    """What is looked at, and for what: the project, its stacks, the commands; ``root`` is the machine's root, another one in tests."""

    workspace: Workspace
    stacks: tuple[Stack, ...]
    commands: tuple[str, ...] = COMMANDS
    root: Path = Path("/")

    def of(self, commands: Iterable[str], stacks: Iterable[Stack] | None = None) -> Pairs:
        """The pairs of these commands, where they are asked for, with these stacks (all)."""
        wanted = [command for command in commands if command in self.commands]
        return tuple((command, one.name) for command in wanted for one in (self.stacks if stacks is None else stacks))


def asked(workspace: Workspace, names: Sequence[str], commands: Sequence[str]) -> Asked:
    """The question: these stacks, or all of the project's, and these commands, or all. Raises UsageError, PinsError."""
    pins = [read_pins(workspace, name) for name in names or workspace.stacks()]
    stacks = tuple(Stack(one, read_images(workspace, one)) for one in pins)
    return Asked(workspace, stacks, tuple(command for command in COMMANDS if not commands or command in commands))


def examine(question: Asked, *, network: bool = False) -> tuple[Finding, ...]:
    """Everything that was found, of what the commands that are asked for need; ``network`` asks the upstreams and mirrors too."""
    from kiln.doctorengine import engine_findings
    from kiln.doctorhost import host_findings
    from kiln.doctorrelease import release_findings
    from kiln.doctorroom import room_findings

    found = [
        *host_findings(question),
        *engine_findings(question),
        *room_findings(question),
        *release_findings(question),
    ]
    if network:
        from kiln.doctornetwork import network_findings

        found += network_findings(question)
    return tuple(finding for finding in found if finding.needed_by)


def verdicts(question: Asked, found: Sequence[Finding]) -> dict[str, dict[str, Status]]:
    """For each command, for each stack: the worst that was found of what it needs."""
    return {
        command: {stack.name: _worst(found, (command, stack.name)) for stack in question.stacks}
        for command in question.commands
    }


def _worst(found: Sequence[Finding], pair: tuple[str, str]) -> Status:
    statuses = {finding.status for finding in found if pair in finding.needed_by}
    return next((status for status in WORST if status in statuses), "ok")
