"""A machine that has nothing: Debian 12 with git, make and Python in a folder, with processes and mounts of its own.

It is entered by pivot_root, since containers cannot be started from a chroot. Its first process has a pid namespace and a mount namespace, so everything that
runs or is mounted in it ends with that process, and that one ends with the test's, however this ends. Its kernel, clock and network are this machine's. Lent to it
is how this machine reaches Debian and PyPI: sources and settings of apt, pip's settings with the folders that they name, certificates, proxies.
"""

from __future__ import annotations

import ast
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from configparser import RawConfigParser
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kiln.apt import sources_for
from kiln.console import Console
from kiln.host import ensure_mmdebstrap

SUITE = "bookworm"
# What the README says that a machine has beforehand, beside the packages that Debian requires of any.
HAS = ("git", "make", "python3")
_LENT = ("etc/hosts", "etc/resolv.conf", "etc/apt/auth.conf.d", "etc/apt/keyrings", "etc/apt/trusted.gpg.d")
_CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
# Where Debian takes a machine's own from when the package ca-certificates comes, which writes the file anew.
_OWN_CERTIFICATES = "usr/local/share/ca-certificates/lent.crt"
_VARIABLES = ("PIP_", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
HOME = "/root"
_LOGIN = {"HOME": HOME, "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
# The words are the root and what is bound into it, as SOURCE:TARGET. The first process says its pid on this machine, and looks after orphans as an init does.
_ENTER = """set -eu
read -r pid _ </proc/self/stat
root=$1
shift
mount --make-rprivate /
mount --bind "$root" "$root"
cd "$root"
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mount -t tmpfs tmpfs run
for bound; do
    mkdir -p ".${bound#*:}"
    mount --bind "${bound%:*}" ".${bound#*:}"
done
pivot_root . mnt
cd /
umount --lazy /mnt
echo "$pid"
while :; do
    sleep 60 &
    wait $!
done
"""


@dataclass(frozen=True)
class Ran:
    """How a command on the machine ended, what it wrote, and how long it took."""

    code: int
    out: str
    err: str
    seconds: float


@dataclass(frozen=True)
class Machine:
    """A machine while it runs: its root as seen from here, the pid of its first process, and where it writes down what its commands say."""

    root: Path
    pid: int
    log: Path

    def run(self, script: str, *, cwd: str = HOME, timeout: float = 3600, **variables: str) -> Ran:
        """Run lines of bash's as somebody does who has just logged in there as root."""
        lent = {key: value for key, value in os.environ.items() if key.upper().startswith(_VARIABLES)}
        inside = ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--"]
        with self.log.open("a+", encoding="utf-8") as log:
            log.write(f"$ {script}\n")
            log.flush()
            begin, started = log.tell(), time.monotonic()
            done = subprocess.run(
                [*inside, "bash", "-c", 'cd "$0" && exec bash -euo pipefail -c "$1"', cwd, script],
                env=lent | _LOGIN | variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                timeout=timeout,
                check=False,
            )
            seconds = time.monotonic() - started
            log.seek(begin)
            said = log.read()
            log.write(f"{done.stdout}({seconds:.0f} s, exit code {done.returncode})\n")
        return Ran(done.returncode, done.stdout, said, seconds)

    def must(self, script: str, *, cwd: str = HOME, timeout: float = 3600, **variables: str) -> Ran:
        """The same, of what must end well."""
        ran = self.run(script, cwd=cwd, timeout=timeout, **variables)
        assert ran.code == 0, f"{script}: ended with {ran.code}\n{ran.out[-2000:]}\n{ran.err[-4000:]}"
        return ran


def make_root(root: Path, state: Path) -> None:
    """Debian's root file system with :data:`HAS`, and what is lent to it in files. ``state`` is where kiln's apt keeps its lists."""
    ensure_mmdebstrap(state, Console(quiet=True))
    sources = root.with_name("debian.sources")
    sources.write_text(sources_for(SUITE), encoding="utf-8")
    words = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(HAS)}", SUITE, str(root), str(sources)]
    subprocess.run(words, check=True, timeout=900)
    # Proxies and the like. Not the files themselves: this machine's have hooks for what is installed here.
    settings = subprocess.run(
        ["apt-config", "dump", "--format", '%F "%v";%n', "Acquire"], check=True, capture_output=True, text=True
    )
    (root / "etc/apt/apt.conf.d/99lent").write_text(settings.stdout, encoding="utf-8")
    ours = RawConfigParser()
    for name, value in _pip_settings():
        section, _, key = name.partition(".")
        if not ours.has_section(section):
            ours.add_section(section)
        ours.set(section, key, value)
    with (root / "etc/pip.conf").open("w", encoding="utf-8") as file:
        ours.write(file)
    for source in [*(Path("/") / name for name in (*_LENT, _CERTIFICATES)), *filter(Path.is_file, _named_by_pip())]:
        target = root / source.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        elif source.is_file():
            shutil.copyfile(source, target)
    if (root / _CERTIFICATES).is_file():
        (root / _OWN_CERTIFICATES).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / _CERTIFICATES, root / _OWN_CERTIFICATES)


def _pip_settings() -> list[tuple[str, str]]:
    """What pip's files say here, all of them taken together. What the environment says is lent with the environment."""
    words = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    shown = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()
    pairs = [line.partition("=") for line in shown if not line.startswith(":env:")]
    return [(name, str(ast.literal_eval(value))) for name, _, value in pairs]


def _named_by_pip() -> list[Path]:
    """The files and folders of this machine that pip's settings name: mirrors in folders. An index's pages speak of files beside it."""
    variables = [value for key, value in os.environ.items() if key.startswith("PIP_")]
    words = [word for value in (*(value for _, value in _pip_settings()), *variables) for word in value.split()]
    folders = {Path(word.removeprefix("file://")).parent for word in words if word.startswith("file:///")}
    return sorted(path for path in folders | {Path(word) for word in words if word.startswith("/")} if path.exists())


@contextmanager
def machine(root: Path, log: Path, bound: Mapping[Path, str]) -> Iterator[Machine]:
    """The machine with this root runs; at the end nothing of it does, and the root is removed. ``bound`` are folders of ours, and where it has them."""
    lent = {path: str(path) for path in _named_by_pip() if path.is_dir()}
    words = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child"]
    words += ["sh", "-c", _ENTER, "sh", str(root), *(f"{ours}:{its}" for ours, its in {**lent, **bound}.items())]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        with process.stdout as said:
            pid = int(said.readline() or 0)
        assert pid, "the machine did not start; what it wrote is above"
        first = os.pidfd_open(pid)
        try:
            yield Machine(root, pid, log)
        finally:
            process.kill()
            # The first process goes with it, and counts as ended when all others of its namespace have.
            select.select([first], [], [], 60)
            os.close(first)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(root)
