"""What a person sees while Kiln works: plain lines on stderr, one line that renews itself on a terminal, results on stdout."""

from __future__ import annotations

import os
import sys
import threading
import time


class Console:
    """Progress and notes. Lines go to stderr, so that stdout holds the result alone."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        # Some CI systems give their jobs a terminal and keep what it shows as a log, in which nothing is replaced in place.
        in_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
        self._terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not in_ci
        self._colour = self._terminal and not os.environ.get("NO_COLOR")
        self._lock = threading.Lock()
        self._started = time.monotonic()

    def step(self, text: str) -> None:
        """A stage begins, or something worth a line happened."""
        if not self.quiet:
            self._line(f"{self._bold('kiln')} {self._clock()} {text}")

    def note(self, text: str) -> None:
        """A detail below the current step."""
        if not self.quiet:
            self._line(f"           {text}")

    def warn(self, text: str) -> None:
        """Something that a person must see, even where no progress is wanted."""
        self._line(
            "\n".join(
                ("warning: " if not number else "         ") + line for number, line in enumerate(text.splitlines())
            )
        )

    def progress(self, text: str) -> None:
        """The state of a long step: replaced in place on a terminal, left out elsewhere (see ``Meter`` for plain logs)."""
        if self._terminal and not self.quiet:
            with self._lock:
                # A terminal that somebody made for a program need not say how wide it is.
                width = max(20, (os.get_terminal_size(sys.stderr.fileno()).columns or 80) - 1)
                sys.stderr.write(f"\r\x1b[K           {text}"[: width + 4])
                sys.stderr.flush()

    @property
    def on_terminal(self) -> bool:
        """Whether lines can be replaced in place."""
        return self._terminal

    def _line(self, text: str) -> None:
        with self._lock:
            clear = "\r\x1b[K" if self._terminal else ""
            sys.stderr.write(f"{clear}{text}\n")
            sys.stderr.flush()

    def _clock(self) -> str:
        seconds = int(time.monotonic() - self._started)
        return f"{seconds // 60:02d}:{seconds % 60:02d}"

    def _bold(self, text: str) -> str:
        return f"\x1b[1m{text}\x1b[0m" if self._colour else text


class Meter:
    """Counts files and bytes of a long step and says how far it is: in place on a terminal, every few seconds in a log."""

    LOG_EVERY = 5.0

    def __init__(self, console: Console, verb: str, files: int, size: int) -> None:
        self._console = console
        self._verb = verb
        self._files, self._size = files, size
        self._files_done, self._bytes_done = 0, 0
        self._began = self._said = time.monotonic()
        self._lock = threading.Lock()

    def add(self, files: int, size: int) -> None:
        """``files`` more are done, ``size`` bytes in all."""
        with self._lock:
            self._files_done += files
            self._bytes_done += size
            now = time.monotonic()
            if self._console.on_terminal:
                self._console.progress(self._text(now))
            elif now - self._said > self.LOG_EVERY:
                self._said = now
                self._console.note(self._text(now))

    def _text(self, now: float) -> str:
        # The size of what is being locked for the first time is not known yet.
        of = f" of {megabytes(self._size)}" if self._size else ""
        rate = self._bytes_done / max(now - self._began, 0.001)
        return f"{self._verb} {self._files_done}/{self._files} files, {megabytes(self._bytes_done)}{of}, {megabytes(int(rate))}/s"


def megabytes(size: int) -> str:
    """A size in bytes as people read it (decimal megabytes)."""
    return f"{size / 1e6:.1f} MB" if size < 1e8 else f"{size / 1e6:.0f} MB"
