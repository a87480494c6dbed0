"""The kinds of difference between two images: one table of what each is, what it usually comes of, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What was seen to differ. Nothing is called by a kind that was not shown by the bytes."""

    ADDED = "added"
    REMOVED = "removed"
    MTIME = "mtime"
    MODE = "mode"
    SETGID = "setgid"
    OWNER = "owner"
    ORDER = "order"
    TYPE = "type"
    LINK = "link"
    XATTR = "xattr"
    TAR_FORM = "tar-form"
    COMPRESSION = "compression"
    PYC = "pyc"
    RECORD = "record"
    UV_CACHE = "uv_cache"
    ZIP_TIME = "zip-time"
    ZIP_ORDER = "zip-order"
    GZIP_TIME = "gzip-time"
    ARCHIVE_MEMBER = "archive-member"
    TIMESTAMP = "timestamp"
    RANDOM_ID = "random-id"
    BUILD_PATH = "build-path"
    HOST_NAME = "host-name"
    BUILD_ID = "build-id"
    LINE_ORDER = "line-order"
    LOCALE_ORDER = "locale-order"
    DIRECTORY_ORDER = "directory-order"
    HASH_ORDER = "hash-order"
    LINK_ORDER = "link-order"
    CONTENT = "content"


@dataclass(frozen=True)
class About:
    """What a kind is, what it usually comes of, and what to do about it: a sentence each."""

    what: str
    cause: str
    fix: str


ABOUT: dict[Kind, About] = {
    Kind.ADDED: About(
        "Only the second image has the file.",
        "Another version of what was installed, or a step that leaves a file behind only sometimes (a cache, a lock, a log).",
        "Remove what the step leaves behind, or pin what it installs.",
    ),
    Kind.REMOVED: About(
        "Only the first image has the file.",
        "Another version of what was installed, or a step that leaves a file behind only sometimes (a cache, a lock, a log).",
        "Remove what the step leaves behind, or pin what it installs.",
    ),
    Kind.MTIME: About(
        "The time of the file differs.",
        "The file was written by the build, and its time is the hour of that build.",
        "Give every file of the stage one time (touch --no-dereference --date=@EPOCH) as its last step.",
    ),
    Kind.MODE: About(
        "The permission bits differ.",
        "The umask of whoever built: group and other bits come and go with it.",
        "Set the umask in the recipe, or lay the files down with install --mode.",
    ),
    Kind.SETGID: About(
        "A folder has the setgid bit on one side.",
        "The build ran below a folder that has the bit, and new folders inherit it.",
        "Build below a folder without the bit, or take it away (chmod g-s) before the copy.",
    ),
    Kind.OWNER: About(
        "The owner or the group differs, by number or by name.",
        "The build ran as another user, or users were made in another order and so got other numbers.",
        "Build as root with fixed numbers, and copy with --chown.",
    ),
    Kind.ORDER: About(
        "The tar has the same members in another order.",
        "The folder was packed in the order in which the file system listed it.",
        "Sort the names before packing (tar --sort=name, sorted(os.listdir())).",
    ),
    Kind.TYPE: About(
        "A file is of another type (file, folder, link, device).",
        "Another version of what was installed, or a link that a tool follows or copies as its options say.",
        "Look at the step that lays the file down.",
    ),
    Kind.LINK: About(
        "A link points elsewhere, or hard links are told otherwise.",
        "The name of a build folder in a link, or copying that broke up hard links.",
        "Make links relative, and copy with hard links kept.",
    ),
    Kind.XATTR: About(
        "Extended attributes differ.",
        "The file system of one machine keeps them and the other's does not (security labels, capabilities).",
        "Set them in the recipe or leave them out when packing.",
    ),
    Kind.TAR_FORM: About(
        "The members are the same, and the tar around them is written otherwise (format, names, padding, further records).",
        "Another program or version packed it.",
        "Build both with the same builder.",
    ),
    Kind.COMPRESSION: About(
        "The same tar, compressed otherwise.",
        "Another compressor, level or version of it.",
        "Build both with the same builder and compression settings.",
    ),
    Kind.PYC: About(
        "A file of Python bytecode differs: in its header, or in its code.",
        "The header has the time of the source; the code of another source, Python or path.",
        "Leave bytecode out, or compile with --invalidation-mode unchecked-hash after the times were set.",
    ),
    Kind.RECORD: About(
        "The list of files of an installed wheel (RECORD) differs.",
        "A file that it lists differs, or the installer wrote one of its own.",
        "See the other files of that wheel; take the line of a removed file out as well.",
    ),
    Kind.UV_CACHE: About(
        "uv's note of where it installed a wheel from differs.",
        "It holds the time of the wheel's file.",
        "Delete uv_cache.json and its line of RECORD after installing.",
    ),
    Kind.ZIP_TIME: About(
        "The members of a zip have other times.",
        "It was packed without SOURCE_DATE_EPOCH, from files with the hour of the build.",
        "Set SOURCE_DATE_EPOCH for what packs it.",
    ),
    Kind.ZIP_ORDER: About(
        "A zip has the same members in another order.",
        "It was packed in the order in which the file system listed the folder.",
        "Sort the names before packing.",
    ),
    Kind.GZIP_TIME: About(
        "The header of a gzip differs: its time, or the name of the file.",
        "gzip writes the time and the name of what it packs.",
        "Pack with gzip -n (Python: mtime=0).",
    ),
    Kind.ARCHIVE_MEMBER: About(
        "A member of an archive inside the image differs.",
        "What was packed differed already.",
        "Look at the member named.",
    ),
    Kind.TIMESTAMP: About(
        "Only dates, hours or seconds since 1970 differ.",
        "The build wrote down when it ran.",
        "Set SOURCE_DATE_EPOCH, or take the line out.",
    ),
    Kind.RANDOM_ID: About(
        "Only uuids or long hexadecimal tokens differ.",
        "A random identifier, or a checksum or commit of something that differs itself.",
        "Seed or fix the identifier; where it is a checksum, look for what it is of.",
    ),
    Kind.BUILD_PATH: About(
        "Absolute paths of build folders differ.",
        "The build ran in a folder of another name and wrote that down.",
        "Build in a fixed folder, or map it away (-ffile-prefix-map, --remap-path-prefix).",
    ),
    Kind.HOST_NAME: About(
        "Only the name of a machine differs.",
        "The build wrote down where it ran.",
        "Build in a container with a fixed host name, or take the line out.",
    ),
    Kind.BUILD_ID: About(
        "The build id of an ELF file differs.",
        "The linker hashes what it links, also what is stripped later (paths in debug information).",
        "Mend what else differs; where nothing does, link with --build-id=none or the same paths.",
    ),
    Kind.LINE_ORDER: About(
        "A text has the same lines, or the same data, in another order.",
        "A hash seed, the order of a folder, or the order in which parallel jobs ended: the bytes do not tell which.",
        "Sort with LC_ALL=C before writing.",
    ),
    Kind.LOCALE_ORDER: About(
        "A list is sorted by bytes on one side and as people sort on the other.",
        "sort ran in another locale.",
        "Set LC_ALL=C for the step.",
    ),
    Kind.DIRECTORY_ORDER: About(
        "A list of files that lie in the layer has another order, and neither is sorted.",
        "The folder was listed in the order of the file system.",
        "Sort the list with LC_ALL=C.",
    ),
    Kind.HASH_ORDER: About(
        "A set that Python printed has its elements in another order.",
        "PYTHONHASHSEED differs from run to run.",
        "Set PYTHONHASHSEED=0, or write sorted(the_set).",
    ),
    Kind.LINK_ORDER: About(
        "A program or archive holds the same symbols or objects in another order.",
        "Objects were linked in the order in which parallel jobs or a folder's listing gave them.",
        "Sort the objects on the link line.",
    ),
    Kind.CONTENT: About(
        "The bytes differ in a way that is none of the others.",
        "Another input, or something that this comparison does not know.",
        "Look at both files (--inside shows them where diffoscope is installed).",
    ),
}


@dataclass(frozen=True, order=True)
class Finding:
    """One kind of difference that was shown, and what was seen."""

    kind: Kind
    detail: str


@dataclass(frozen=True)
class Hints:
    """What the caller knows of the two builds, beyond the images: host names, build folders, times (seconds since 1970) near which a number is a time."""

    hosts: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    times: tuple[int, ...] = ()


def table() -> str:
    """The kinds as a Markdown table: docs/diff.md has it, and a test compares."""
    rows = [f"| `{kind}` | {about.what} | {about.cause} | {about.fix} |" for kind, about in ABOUT.items()]
    return "\n".join(["| kind | what differs | usual cause | what to do |", "| --- | --- | --- | --- |", *rows])


# What of a comparison is about form alone: the same files with the same contents, modes and owners are in both.
SEMANTIC = frozenset({"mtime", "order", "tar-form", "compression", "history", "created"})
# Words for several kinds at once, and the plurals that people type.
GROUPS: dict[str, frozenset[str]] = {
    "mtimes": frozenset({"mtime"}),
    "modes": frozenset({"mode", "setgid"}),
    "owners": frozenset({"owner"}),
    "times": frozenset({"mtime", "zip-time", "gzip-time", "timestamp", "created"}),
    "semantic": SEMANTIC,
}
# Fields of the configuration and the manifest that have names of their own; every other is named as it is written there, in small letters.
FIELDS = [
    "annotations",
    "author",
    "architecture",
    "cmd",
    "created",
    "entrypoint",
    "env",
    "exposedports",
    "history",
    "labels",
    "layers",
    "manifest",
    "os",
    "rootfs",
    "stopsignal",
    "user",
    "variant",
    "volumes",
    "workingdir",
]


def ignorable() -> list[str]:
    """Every word that --ignore takes."""
    return sorted({*(str(kind) for kind in Kind), *FIELDS, *GROUPS})


def ignored(words: tuple[str, ...] | frozenset[str]) -> frozenset[str]:
    """The kinds and fields that ``words`` name, with groups taken apart. The caller has checked that they are known."""
    return frozenset(one for word in words for one in GROUPS.get(word, frozenset({word})))
