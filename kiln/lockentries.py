"""What a lock is made of: one entry an input, by what never changes. ``kiln.lockfile`` puts them together."""

from __future__ import annotations

from dataclasses import dataclass

from kiln.canonical import digest_of
from kiln.git import GitSource, Submodule


@dataclass(frozen=True)
class Deb:
    """One Debian package, by name, version, architecture, its path in the pool, sha256 and size in bytes."""

    name: str
    version: str
    architecture: str
    pool: str
    sha256: str
    size: int

    @property
    def file(self) -> str:
        """The file name, as the pool has it."""
        return self.pool.rsplit("/", 1)[-1]

    @property
    def label(self) -> str:
        """How messages call it."""
        return f"{self.name} {self.version} ({self.architecture})"


@dataclass(frozen=True)
class Wheel:
    """One wheel, by name, version, file name, sha256 and size in bytes; ``component`` is what it goes into.

    ``index`` is empty for the user's own index, else the name of an extra index in the pins.
    """

    component: str
    name: str
    version: str
    file: str
    sha256: str
    size: int
    index: str = ""

    @property
    def label(self) -> str:
        """How messages call it."""
        return self.file


@dataclass(frozen=True)
class Archive:
    """One file that a component's build wants: name, where it is from, sha256 and size in bytes."""

    component: str
    name: str
    url: str
    sha256: str
    size: int

    @property
    def file(self) -> str:
        """The file name, as its address ends."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def label(self) -> str:
        """How messages call it."""
        return f"{self.component}: {self.file}"


@dataclass(frozen=True)
class Git:
    """The source of one component: the pinned ref, the commit it was peeled to, every submodule's commit, the commits picked on top
    (``url@commit``) and the git tree that all of that makes. ``left_out`` are submodule paths that nobody wants."""

    component: str
    url: str
    ref: str
    commit: str
    tree: str
    submodules: tuple[Submodule, ...] = ()
    picks: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """How messages call it."""
        return f"{self.component} {self.ref}" + ("" if self.ref == self.commit else f" ({self.commit[:12]})")

    @property
    def source(self) -> GitSource:
        """What ``kiln.git`` exports."""
        picks = tuple((url, commit) for url, _, commit in (pick.rpartition("@") for pick in self.picks))
        return GitSource(self.url, self.ref, self.commit, self.submodules, picks, self.tree)

    @property
    def digest(self) -> str:
        """The sha256 over everything that decides the source's bytes."""
        return digest_of([self.tree, sorted((s.path, s.commit) for s in self.submodules), sorted(self.left_out)])


@dataclass(frozen=True)
class BaseImage:
    """The image that a stack stands on: repository, the tag it was found under, and its digest."""

    name: str
    tag: str
    digest: str

    @property
    def reference(self) -> str:
        """What an engine pulls."""
        return f"{self.name}:{self.tag}@{self.digest}"


@dataclass(frozen=True)
class Unresolved:
    """An input that could not be resolved: what kind, for which component, what the pins say of it, and why it is open."""

    kind: str
    name: str
    ref: str
    reason: str

    @property
    def label(self) -> str:
        """How messages call it."""
        return f"{self.kind:9} {self.name}  {self.ref}"


Entry = Deb | Wheel | Archive
