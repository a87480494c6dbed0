"""Running other programs: output kept, time bounded, children never left behind."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kiln.errors import DiskFullError, HostError

# Who is told of every program that runs (--verbose): the command line puts its console here, for what runs programs knows no console.
told: list[Callable[[str], None]] = []


def without_credentials(text: str) -> str:
    """``text`` for people and logs: without the name and password that an address in it may carry."""
    return re.sub(r"(?<=://)[^/@\s]+@", "", text)


@contextmanager
def telling(argv: Sequence[str | Path]) -> Iterator[Callable[[int | None], None]]:
    """Tell of a program when it starts and when it is over; its exit code is given to what is returned."""
    ended: list[int | None] = []
    began = time.monotonic()
    for tell in told:
        tell(f"run   {without_credentials(shlex.join(str(word) for word in argv))}")
    try:
        yield ended.append
    finally:
        how = f"ended with {ended[0]}" if ended else "was broken off"
        for tell in told:
            tell(f"      {Path(str(argv[0])).name} {how} after {time.monotonic() - began:.2f} s")


@dataclass(frozen=True)
class Finished:
    """What a program left: its exit code and its output (stdout and stderr together unless ``split``)."""

    argv: tuple[str, ...]
    code: int
    output: str
    errors: str = ""

    def tail(self, lines: int = 15) -> str:
        """The last lines of the output, for an error message."""
        return "\n".join((self.output + self.errors).strip().splitlines()[-lines:])


def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    alone: bool = False,
    cwd: Path | None = None,
    timeout: float = 600,
    split: bool = False,
) -> Finished:
    """Run ``argv`` to its end, at most ``timeout`` seconds; ``env`` is added to the environment, or with ``alone`` is all of it but the PATH.

    Raises HostError where the program is missing or outlasts its time, DiskFullError where it says that the disk is full.
    A program that merely fails is for the caller to judge.
    """
    words = tuple(str(word) for word in argv)
    if shutil.which(words[0]) is None:
        raise HostError(
            f"the program {words[0]!r} is not on this machine", why=f"kiln needs it to run: {' '.join(words[:4])}…"
        )
    with (
        telling(words) as ended,
        subprocess.Popen(
            words,
            env={**({"PATH": os.environ["PATH"]} if alone else os.environ), **(env or {})},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if split else subprocess.STDOUT,
            text=True,
            errors="replace",
            # A group of its own, so that what the program starts in its turn can be ended with it.
            start_new_session=True,
        ) as process,
    ):
        try:
            output, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            end_group(process)
            raise HostError(
                f"{words[0]} did not finish within {timeout:.0f} s", why=f"It was ended. The command: {' '.join(words)}"
            ) from None
        except BaseException:
            end_group(process)
            raise
        ended(process.returncode)
    finished = Finished(words, process.returncode, output, errors or "")
    if process.returncode != 0:
        raise_if_disk_full(finished.output + finished.errors)
    return finished


def end_group(process: subprocess.Popen[str]) -> None:
    """End a process started in a session of its own, and its children: politely, then firmly."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            continue
        return


def raise_if_disk_full(text: str) -> None:
    """Raise DiskFullError if ``text`` (a program's output) says that the disk is full."""
    for line in text.splitlines():
        # The system's word, which programs in Go write small; and apt's own.
        if "no space left on device" in line.lower() or "You don't have enough free space" in line:
            raise DiskFullError("the disk is full", why=line.strip())
