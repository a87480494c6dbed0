"""Every error that Kiln raises on purpose: one class, one exit code, and three answers for the person who reads it.

The library raises these and never exits; ``kiln.cli`` alone turns them into a message and an exit code. The table in
``docs/exit-codes.md`` is generated from this module (``kiln exit-codes``) and a test compares the two.
"""

from __future__ import annotations

from typing import ClassVar


class KilnError(Exception):
    """Something Kiln did not foresee went wrong."""

    exit_code: ClassVar[int] = 1
    hint: ClassVar[str] = ""
    # Whether the same command may well go through a moment later, with nothing changed: what a CI system may try again by itself.
    transient: ClassVar[bool] = False

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        """``what`` happened, ``why`` it did, and the ``fix``: what the reader should do next (default: the class's hint)."""
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = fix or self.hint

    def __str__(self) -> str:
        """The message as the command line prints it: what, why and fix, a paragraph each."""
        lines = [f"error: {self.what}"]
        if self.why:
            lines += ["", _indent(self.why)]
        if self.fix:
            lines += ["", "what to do:", _indent(self.fix)]
        return "\n".join(lines)


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" if line else "" for line in text.strip("\n").splitlines())


class UsageError(KilnError):
    """The command line asks for something that does not exist or does not fit together."""

    exit_code = 2
    hint = "see `kiln --help`"


class PinsError(KilnError):
    """A file that people write (pins, image.toml) does not say what it must; every problem is listed at once."""

    exit_code = 10


class LockMissingError(KilnError):
    """A stack has pins but no lock, and nothing is built without one."""

    exit_code = 11


class LockStaleError(KilnError):
    """The lock was made from other pins than those that are there now."""

    exit_code = 12


class LockInvalidError(KilnError):
    """The lock is not a lock that Kiln wrote: not TOML, another schema, or an entry that cannot be right."""

    exit_code = 13


class ResolveError(KilnError):
    """The pins could not be resolved to exact files: no such version, or versions that contradict each other."""

    exit_code = 14


class UpstreamError(KilnError):
    """An upstream (a git host, an image registry) could not be asked, so what depends on its answer stays unknown."""

    exit_code = 15
    transient = True
    hint = "name a mirror in kiln.toml ([mirrors]) or in KILN_MIRRORS, see docs/mirrors.md; or try again where the network reaches it"


class AccessDeniedError(UpstreamError):
    """A registry wants a login, or does not let this one do what was asked."""

    exit_code = 25
    transient = False
    hint = "log in as somebody who may: docker login HOST"


class RefNotFoundError(KilnError):
    """A pinned or asked for ref (tag, branch, commit) does not exist in its repository or registry."""

    exit_code = 16


class MovedRefError(KilnError):
    """A tag points elsewhere than it did when it was locked. Nothing was changed."""

    exit_code = 17


class UnresolvedError(KilnError):
    """The lock has entries that could not be resolved yet, and nothing is built from a guess."""

    exit_code = 18


class AdvisoryError(KilnError):
    """The pins are a combination that is known to be bad."""

    exit_code = 19


class FetchError(KilnError):
    """A locked input could not be downloaded: nobody offers it, or nobody answers."""

    exit_code = 20
    transient = True


class HashMismatchError(KilnError):
    """A downloaded file is not the one that the lock names. It was not stored."""

    exit_code = 21
    hint = (
        "nothing was stored. If the index or mirror changed the file, find out why before you trust it; "
        "if the lock was edited, restore it from version control or run `kiln lock` again"
    )


class StoreDamagedError(KilnError):
    """A file in the content store no longer has the bytes it is named after."""

    exit_code = 22


class DiskFullError(KilnError):
    """There is no room left on the disk that Kiln writes to."""

    exit_code = 23
    hint = "free some room (`df -h`), or put Kiln's files elsewhere with KILN_STATE=/path; then run the same command again: it goes on where it stopped"


class SourceError(KilnError):
    """A locked source cannot be made whole: a commit or a submodule commit that no repository has, or another tree than the lock names."""

    exit_code = 24


class CacheEntryError(KilnError):
    """An entry of the component cache is not what its key stands for: changed, mixed up or made by somebody else. It was not used."""

    exit_code = 26
    hint = "find out who wrote to the cache's repository; remove the entry there, and push a right one: kiln cache push STACK"


class BundleForeignError(KilnError):
    """A bundle was made for another stack or another lock than those of this checkout. Nothing was stored."""

    exit_code = 27
    hint = "check out the revision that the bundle was made in, or make another here, where there is a network: kiln bundle STACK"


class BundleInvalidError(KilnError):
    """A file is no bundle, is cut off, or holds something else than its lock names. What is stored of it is right."""

    exit_code = 28
    hint = (
        "copy it again and compare its sha256 with what `kiln bundle` printed; `kiln unbundle` goes on where it stopped"
    )


class RenderError(KilnError):
    """A template uses something that is not there, or something pinned is used nowhere."""

    exit_code = 30


class RenderStaleError(KilnError):
    """The committed Dockerfiles are not what the pins, the lock and the templates render to."""

    exit_code = 31


class MutableInputError(KilnError):
    """A stack has an input that can change without its pins or its lock changing."""

    exit_code = 32


class HostError(KilnError):
    """The machine lacks something that Kiln needs, and Kiln cannot or must not install it."""

    exit_code = 40


class EngineError(KilnError):
    """The container engine cannot be reached, started or used."""

    exit_code = 41
    transient = True


class LackingError(KilnError):
    """The machine was looked at, and lacks something that a command which was asked about needs."""

    exit_code = 42
    hint = "each line above that says `missing` names its fix; then look again: kiln doctor"


class BuildError(KilnError):
    """A step of the image build failed."""

    exit_code = 50


class ModelError(KilnError):
    """The checkpoint that the image is to serve could not be made or is not one that can be checked."""

    exit_code = 60


class VerifyFailedError(KilnError):
    """The image was looked at and is wrong: at least one check failed."""

    exit_code = 61


class VerifyIncompleteError(KilnError):
    """The image could not be fully looked at: a check ended in an error, or no check ran at all."""

    exit_code = 62


class ReportInvalidError(KilnError):
    """A file is no report, or not one as Kiln writes it: it cannot be read, has another shape, or disagrees with itself."""

    exit_code = 63
    hint = "make it again: kiln verify STACK"


class ForeignImageError(KilnError):
    """An image does not say that Kiln built it, or names pins that this project does not have."""

    exit_code = 64


class ImageDamagedError(KilnError):
    """An image cannot be read: a part of it is missing, cut off, or does not have the bytes that it is named after."""

    exit_code = 65
    hint = "make the copy again (docker save, or the build that wrote it); if this happens twice, check the disk"


class DifferentError(KilnError):
    """Two images that were compared are not the same."""

    exit_code = 66
    hint = "docs/diff.md says what each kind of difference usually comes of"


class ReleaseRecordError(KilnError):
    """The file of releases is not one that Kiln wrote, or says something else of an image than what was signed with it."""

    exit_code = 70


class SignatureError(KilnError):
    """An image has no signature of the key that was asked for."""

    exit_code = 71
    hint = "do not run it. Was it published with another key, or did somebody else write to the registry?"


class AttestationError(KilnError):
    """What is signed beside an image (SBOM, provenance, verification report) is missing, or speaks of another image."""

    exit_code = 72
    hint = "do not run it. Publish it anew if it is yours"


class TagTakenError(KilnError):
    """A tag that never moves points to another image already."""

    exit_code = 73


class BeingPublishedError(KilnError):
    """Somebody else publishes to the same repository at this moment."""

    exit_code = 74
    transient = True
    hint = "run the same command again when they are done"


class NotReleasableError(KilnError):
    """An image did not pass what the tag stands for, so the tag was not moved."""

    exit_code = 75


class NotPublishedError(KilnError):
    """No release has these pins."""

    exit_code = 76


class UncommittedError(KilnError):
    """A bump would commit files that have uncommitted changes of somebody's. Nothing was changed."""

    exit_code = 80


class VanishedError(KilnError):
    """An upstream no longer has something that a lock names, or has other bytes under its name."""

    exit_code = 81
    hint = (
        "what is in the store and in a bundle (`kiln bundle STACK`) stays usable: keep it. Find out why it went before you "
        "trust what is there in its place; then pin something else: kiln pins bump COMPONENT"
    )


class BumpsFailedError(KilnError):
    """Of several bumps some could not be made; the others are."""

    exit_code = 82


class UnknownLayoutError(KilnError):
    """The files of a vLLM revision are not laid out as Kiln knows them: a file, an ARG or a line that the pins are read from is missing."""

    exit_code = 83
    hint = "nothing is guessed: read that file, and write the pins by hand (docs/pins.md), or name another revision (docs/derive.md)"


class BuilderLostError(KilnError):
    """A builder did not answer, or went away in the middle of a build, and no other was named that does. Nothing was recorded."""

    exit_code = 85
    transient = True
    hint = "run the same command again when it is back, or name another beside it: --builder NAME,OTHER (docs/scale.md)"


class BuildersDifferError(KilnError):
    """Two builders made different images of the very same inputs. The second is not recorded."""

    exit_code = 86


class InterruptedByUserError(KilnError):
    """Stopped by Ctrl-C or a termination signal."""

    exit_code = 130
    hint = "run the same command again: it goes on where it stopped"


def error_classes() -> list[type[KilnError]]:
    """All error classes, ordered by exit code."""
    found: list[type[KilnError]] = [KilnError]
    for cls in found:
        found.extend(cls.__subclasses__())
    return sorted(found, key=lambda cls: cls.exit_code)
