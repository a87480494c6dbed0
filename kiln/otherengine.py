"""An engine of another Debian suite, in a root file system of its own: to see whether another BuildKit builds the same.

Its packages are unpacked, not installed: nothing of this machine changes, and Docker's programs of two releases need two C libraries.
"""

from __future__ import annotations

from pathlib import Path

from kiln.apt import Apt
from kiln.console import Console
from kiln.engine import PrivateEngine
from kiln.host import ENGINE_PACKAGES

# The daemon sees its own root, and below it this machine's devices, processes and the one folder that holds all of its files, under the same path.
# BuildKit remounts the root, so that must be a mount.
_ENTER = """
root=$1 folder=$2; shift 2
mount --bind "$root" "$root"
mount --bind "$folder" "$root$folder"
for place in dev proc sys; do mount --rbind "/$place" "$root/$place"; done
mount -t tmpfs none "$root/run"
exec chroot "$root" "$@"
"""


def unpack_docker(folder: Path, suite: str, console: Console) -> Path:
    """The root file system with Docker of a Debian suite, below ``folder``; made where it is not there. Raises FetchError, ResolveError, HostError."""
    root = folder / f"docker-{suite}"
    if root.is_dir():
        return root
    console.step(f"unpacking Docker of Debian {suite} into {root}; nothing is installed")
    apt = Apt(folder / f"apt-{suite}", suite, "amd64")
    apt.update()
    return apt.unpack(apt.resolve(ENGINE_PACKAGES), root)


def other_engine(root: Path, folder: Path, path: Path | None = None) -> PrivateEngine:
    """The daemon of that root file system, with its data below ``folder``; ``path`` (below ``folder``) has programs that it takes first."""
    (root / folder.relative_to("/")).mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    launcher = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", _ENTER, "sh", str(root), str(folder)]
    return PrivateEngine(folder, folder=folder, launcher=launcher, path=path)
