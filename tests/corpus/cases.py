"""What the corpus holds, read from the TOML files beside this one and from logs/cases.toml."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FIXTURES = HERE / "fixtures"
HIP = HERE.parent / "rehearsal" / "hip"
KINDS = ("image", "operator", "server", "log", "wheel")
# What a case of each kind may say beside its name, its check and the words of that check's message.
_OWN = {
    "image": {"shell", "change", "lay", "locked", "another-digest", "reorder", "only", "passes", "toy"},
    "operator": {"edits"},
    "server": {"mode", "opt-in"},
    "log": {"file", "setting", "environment", "cache", "workers", "module-path"},
    "wheel": {
        "files",
        "metadata",
        "record",
        "version",
        "distribution",
        "build",
        "tag",
        "arguments",
        "log",
        "again",
        "raw",
        "link",
    },
}


class CorpusError(Exception):
    """The corpus itself is wrong, or what it needs is not here; the text says what to do."""


@dataclass(frozen=True)
class Case:
    """One case. ``check`` is empty for a clean variant; a defect's check must end as ``status`` and its message hold ``says``.

    ``base`` is what the defect is laid on, ``data`` what is done, in the words of its kind."""

    kind: str
    base: str
    name: str
    check: str = ""
    says: str = ""
    status: str = "fail"
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong here, and no check may say so."""
        return not self.check

    @property
    def path(self) -> str:
        """How a filter and a test name it."""
        return f"{self.kind}/{self.base}/{self.name}"


def read_corpus(folder: Path = HERE) -> list[Case]:
    """Every case, kind by kind. Raises CorpusError listing all that is wrong with the files."""
    found: list[Case] = []
    wrong: list[str] = []
    for path in sorted(folder.glob("*.toml")):
        try:
            found += _read(path, wrong)
        except (KeyError, TypeError, tomllib.TOMLDecodeError) as error:
            wrong.append(f"{path.name}: {type(error).__name__}: {error}")
    if (folder / "logs" / "cases.toml").is_file():
        found += read_logs(folder)
    seen: set[str] = set()
    for case in found:
        wrong += [f"{case.path}: is there twice"] if case.path in seen else []
        seen.add(case.path)
    if wrong:
        raise CorpusError("the corpus is wrong:\n" + "\n".join(f"  {line}" for line in wrong))
    return sorted(found, key=lambda case: KINDS.index(case.kind))


def _read(path: Path, wrong: list[str]) -> list[Case]:
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    kind, base = document.pop("kind"), document.pop("base")
    if kind not in KINDS:
        wrong.append(f"{path.name}: kind {kind!r} is unknown; known: {', '.join(KINDS)}")
        return []
    defects, clean = document.pop("defect", []), document.pop("clean", [])
    wrong += [f"{path.name}: {key} is unknown" for key in document]
    made = []
    for row, keys in [(row, {"name", "check", "says", "status"}) for row in defects] + [
        (row, {"name"}) for row in clean
    ]:
        name = row["name"]
        wrong += [f"{path.name}: {name}: {key} is unknown" for key in sorted(row.keys() - keys - _OWN[kind])]
        if "check" in keys and not (row.get("check") and row.get("says")):
            wrong.append(f"{path.name}: {name}: a defect names its check, and what that says")
            continue
        data = {key: value for key, value in row.items() if key in _OWN[kind]}
        made.append(Case(kind, base, name, row.get("check", ""), row.get("says", ""), row.get("status", "fail"), data))
    return made


def read_logs(folder: Path = HERE) -> list[Case]:
    """The logs: one whose verdict is a pass is a clean variant. A check that could not look (``error``) is no pass either."""
    rows = tomllib.loads((folder / "logs" / "cases.toml").read_text(encoding="utf-8"))["case"]
    found = []
    for row in rows:
        check = f"serve.{'default' if row['setting'] == 'aiter' else 'tilelang'}.path"
        passes = row["verdict"] == "pass"
        data = {key: value for key, value in row.items() if key in _OWN["log"]}
        found.append(
            Case(
                "log",
                row["setting"],
                row["name"],
                "" if passes else check,
                "" if passes else row["says"],
                row["verdict"],
                data,
            )
        )
    return found


def fixture(name: str) -> bytes:
    """A file of fixtures/, or with ``hip:`` one of the rehearsal's libraries with GPU code."""
    folder, colon, file = name.rpartition(":")
    return (HIP if folder == "hip" and colon else FIXTURES).joinpath(file).read_bytes()
