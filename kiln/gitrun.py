"""Running git: bounded, never asking a person, and deaf to what would make its answer depend on the place it runs in."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiln.errors import HostError, SourceError
from kiln.process import end_group, raise_if_disk_full, telling, without_credentials

LOCAL_SECONDS = 3600.0
# Proxies, credentials and certificates of the user's own git configuration hold; what could run a program or change bytes does not.
_SETTINGS = (
    "protocol.file.allow=always",
    "protocol.ext.allow=never",
    "core.hooksPath=/dev/null",
    "core.attributesFile=/dev/null",
    "gc.auto=0",
    "maintenance.auto=false",
    "safe.directory=*",
    # Loose objects are written one by one: a killed fetch could leave a commit without its files. A pack is whole or absent.
    "fetch.unpackLimit=1",
    "transfer.unpackLimit=1",
    # A server that sends nothing at all for five minutes sends nothing any more. One that packs says so every few seconds.
    "http.lowSpeedLimit=1",
    "http.lowSpeedTime=300",
    "merge.renames=true",
    "merge.renameLimit=10000",
    "merge.directoryRenames=false",
    "merge.renormalize=false",
)
# What a git that calls us (a hook, an alias) leaves in the environment, and what would make git see other objects.
_FOREIGN = (
    "GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX", "GIT_NAMESPACE",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_GRAFT_FILE", "GIT_SHALLOW_FILE", "GIT_REPLACE_REF_BASE", "GIT_ATTR_SOURCE",
    "GIT_DEFAULT_HASH", "GIT_QUARANTINE_PATH", "GIT_CONFIG", "SSH_ASKPASS",
)  # fmt: skip
# Only commands that are meant to may reach a host: a git that misses an object of a partial repository asks for it by itself.
_OFFLINE = {"GIT_ALLOW_PROTOCOL": ""}
_ALWAYS = {
    "LC_ALL": "C.UTF-8",
    "LANGUAGE": "",
    "GIT_TERMINAL_PROMPT": "0",
    "SSH_ASKPASS_REQUIRE": "never",
    "GCM_INTERACTIVE": "never",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_LITERAL_PATHSPECS": "1",
}
# git ends many failures with these, which say less than the line before them.
_CHATTER = ("Please make sure you have the correct access rights", "and the repository exists.")
_SUMMARY = "fatal: Could not read from remote repository."


@dataclass(frozen=True)
class Answer:
    """What git left: its exit code, its output as bytes, its complaints."""

    code: int
    out: bytes
    err: str
    timed_out: bool = False

    @property
    def why(self) -> str:
        """The one line of git's complaints that says most."""
        lines = [line.strip() for line in self.err.splitlines() if line.strip() and line.strip() not in _CHATTER]
        return shown(([line for line in lines if line != _SUMMARY] or lines or [f"git ended with {self.code}"])[-1])


def shown(address: str) -> str:
    """``address`` (or a line that holds one) for people and logs: without the credentials that a URL may carry."""
    return without_credentials(address)


def git_command(folder: Path) -> list[str]:
    """How every git command on the bare repository ``folder`` begins."""
    return ["git", f"--git-dir={folder}", *(word for setting in _SETTINGS for word in ("-c", setting))]


def git_environment(extra: Mapping[str, str], *, online: bool = False) -> dict[str, str]:
    """The whole environment of a git command; only one that is ``online`` can ask a host."""
    kept = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
    return {**kept, **_ALWAYS, **({} if online else _OFFLINE), **extra}


@dataclass(frozen=True)
class Repository:
    """One bare repository; ``extra`` is added to the environment of every command on it."""

    folder: Path
    extra: tuple[tuple[str, str], ...] = ()

    def ask(self, *words: str, data: bytes = b"", seconds: float = LOCAL_SECONDS, online: bool = False) -> Answer:
        """Run a git command to its end, at most ``seconds``. Whether it failed is for the caller to judge."""
        if shutil.which("git") is None:
            raise HostError("the program 'git' is not on this machine", fix="install git")
        with telling(["git", f"--git-dir={self.folder}", *words]) as ended:
            process: subprocess.Popen[Any] = subprocess.Popen(
                [*git_command(self.folder), *words],
                env=git_environment(dict(self.extra), online=online),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # A group without a terminal: git's helpers end with it, and ssh has nowhere to ask.
                start_new_session=True,
            )
            with process:
                try:
                    out, err = process.communicate(data, timeout=seconds)
                except subprocess.TimeoutExpired:
                    end_group(process)
                    return Answer(124, b"", f"no answer within {seconds:.0f} s", timed_out=True)
                except BaseException:
                    end_group(process)
                    raise
            ended(process.returncode)
        answer = Answer(process.returncode, out, err.decode(errors="replace"))
        if answer.code != 0:
            raise_if_disk_full(answer.err)
        return answer

    def read(self, *words: str, data: bytes = b"") -> bytes:
        """The output of a command that only fails where the repository is damaged (SourceError)."""
        answer = self.ask(*words, data=data)
        if answer.code != 0:
            raise SourceError(
                f"git could not read its own repository {self.folder}",
                why=f"git {' '.join(words)}\n{answer.why}",
                fix="delete that folder: it is fetched anew",
            )
        return answer.out

    def text(self, *words: str, data: bytes = b"") -> str:
        """``read`` as text without the line end."""
        return self.read(*words, data=data).decode("utf-8", "surrogateescape").strip()

    def ready(self) -> None:
        """Make the repository if it is not there yet."""
        if not (self.folder / "objects" / "info").is_dir():
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            # No template: nobody's sample or site hooks get in.
            self.read("init", "--bare", "--quiet", "--template=", "--object-format=sha1")

    def kind(self, name: str) -> str:
        """``commit``, ``tree``, ``blob`` or ``tag``; "" where there is no such object."""
        answer = self.ask("cat-file", "-t", name)
        return answer.out.decode().strip() if answer.code == 0 else ""

    def has(self, commit: str) -> bool:
        """Whether the repository has this commit."""
        return self.kind(commit) == "commit"

    def cut_off(self) -> frozenset[str]:
        """The commits whose parents were left out when they were fetched."""
        try:
            return frozenset((self.folder / "shallow").read_text(encoding="ascii").split())
        except FileNotFoundError:
            return frozenset()

    def reading(self, scratch: Path, others: Sequence[Repository]) -> Repository:
        """This repository, also seeing the objects of ``others``, and writing its own into ``scratch``."""
        folders = [self.folder / "objects", *(other.folder / "objects" for other in others)]
        quoted = (str(folder).replace("\\", "\\\\").replace('"', '\\"') for folder in folders)
        alternates = ":".join(f'"{folder}"' for folder in quoted)
        return Repository(
            self.folder,
            (("GIT_OBJECT_DIRECTORY", str(scratch)), ("GIT_ALTERNATE_OBJECT_DIRECTORIES", alternates)),
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the repository alone for a fetch, cleared of what a killed fetch left in it."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with self.folder.with_name(f"{self.folder.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.ready()
            left = [self.folder / "shallow.lock", self.folder / "packed-refs.lock"]
            left += [*(self.folder / "refs").rglob("*.lock"), *(self.folder / "objects" / "pack").glob("tmp_*")]
            for path in left:
                path.unlink(missing_ok=True)
            yield
