"""Verification in CI: the matrix of what is to be looked at where, and the job files of each CI system, rendered from it. Pure, as all rendering is.

A cell is one job: an image, looked at up to a level, with one mHC setting, on one kind of machine. What needs no GPU runs on the processor that the
stack is for. A cell is there only where somebody can look: an image without a server is looked at as it lies, and a setting that an advisory calls
wrong on a GPU is not served on it.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jinja2

from kiln.errors import RenderError, RenderStaleError, UsageError, error_classes
from kiln.gpu import SHARED_MEMORY, gpus
from kiln.image import Image
from kiln.levels import LEVELS, SETTING_OF, Level
from kiln.pins import Pins
from kiln.workspace import Workspace

JOBS = Path("ci") / "jobs"
TEMPLATES = Path("templates") / "ci"
# What a job file has where nobody said which image: a digest that no image has, on a host that nobody has (RFC 2606).
NOBODY = "registry.example/kiln"
NO_DIGEST = "sha256:" + "0" * 64
# A pull, and all checks of an image as it lies: a bound, not a measurement.
GROUND_SECONDS = 3600
# An architecture as platforms call it, and as CI systems label their machines.
MACHINES = {"amd64": "x64"}
_BACKEND_OF = {setting: backend for backend, setting in SETTING_OF.items()}


@dataclass(frozen=True)
class Cell:
    """One job. ``setting`` is ``both`` where all are looked at and compared, or none is served; ``seconds`` and
    ``memory_gib`` (of its server) bound it; ``own_model``: it wants real weights."""

    stack: str
    image: str
    arch: str
    setting: str
    level: Level
    gpu: bool
    seconds: int
    memory_gib: int = 1
    own_model: bool = False
    # Where only one setting may be served, what compares the two is skipped, and no failure.
    alone: bool = False

    @property
    def require(self) -> Level:
        """The level up to which nothing may be skipped."""
        return "generate" if self.alone else self.level

    @property
    def id(self) -> str:
        """Its name: one for each cell of a project, and a label that Kubernetes takes."""
        parts = (self.image, self.arch, "" if self.setting == "both" else self.setting, self.level)
        return "-".join(filter(None, parts))

    @property
    def backend(self) -> str:
        """The setting as ``kiln verify --backend`` takes it."""
        return _BACKEND_OF.get(self.setting, "both")

    @property
    def minutes(self) -> int:
        """The bound, as CI systems count."""
        return -(-self.seconds // 60)

    @property
    def labels(self) -> list[str]:
        """The labels of a machine that can run it: GitHub's own for the rest, the GPU's architecture where one is needed."""
        return ["self-hosted", "linux", *([self.arch] if self.gpu else [MACHINES.get(self.arch, self.arch)])]

    def covers(self, other: Cell) -> bool:
        """Whether it makes every check that another one makes, on the same kind of machine. What is measured with real weights is apart."""
        if (
            self == other
            or "gates" in (self.level, other.level)
            or (self.image, self.arch) != (other.image, other.arch)
        ):
            return False
        wide_enough = self.setting in ("both", other.setting) or other.level == "static"
        return wide_enough and LEVELS.index(other.level) <= LEVELS.index(self.level)

    def data(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "id": self.id,
            "stack": self.stack,
            "image": self.image,
            "arch": self.arch,
            "setting": self.setting,
            "backend": self.backend,
            "level": self.level,
            "require": self.require,
            "gpu": self.gpu,
            "own_model": self.own_model,
            "minutes": self.minutes,
            "labels": self.labels,
        }


@dataclass(frozen=True)
class Matrix:
    """The cells of one stack, and those that are left out, with the reason."""

    stack: str
    cells: tuple[Cell, ...]
    left_out: tuple[tuple[Cell, str], ...] = ()

    def only(self, levels: Sequence[str]) -> Matrix:
        """Those of these levels; of all where none is given."""
        return Matrix(
            self.stack,
            tuple(cell for cell in self.cells if not levels or cell.level in levels),
            tuple(pair for pair in self.left_out if not levels or pair[0].level in levels),
        )

    def fewest(self) -> Matrix:
        """Without the cells whose checks another one makes too: what job files run."""
        cells = tuple(cell for cell in self.cells if not any(other.covers(cell) for other in self.cells))
        return replace(self, cells=cells)


def matrix(pins: Pins, images: Sequence[Image], unsafe: Mapping[str, Mapping[str, str]]) -> Matrix:
    """The cells of a stack. ``unsafe`` are, for an architecture, the mHC backends that are known to be wrong on it, with the reason."""
    cells: list[Cell] = []
    left_out: list[tuple[Cell, str]] = []
    for image in images:
        for cell in _cells(pins, image):
            bad = unsafe.get(cell.arch, {}) if cell.level != "static" else {}
            wrong = {
                setting: bad[backend]
                for setting, backend in _BACKEND_OF.items()
                if backend in bad and cell.setting in (setting, "both")
            }
            if not wrong:
                cells.append(cell)
                continue
            left_out.append((cell, next(iter(wrong.values()))))
            # The gates compare both settings; what they measure of one is worth having where the other must not be served.
            rest = [setting.name for setting in image.settings if setting.name not in wrong]
            if cell.level == "gates" and len(rest) == 1:
                cells.append(replace(cell, setting=rest[0], alone=True))
    return Matrix(pins.stack, tuple(cells), tuple(left_out))


def _cells(pins: Pins, image: Image) -> Iterator[Cell]:
    from kiln.verify.ops import SECONDS_ON_GPU, SECONDS_ON_PROCESSOR

    processor, on_gpu = pins.platform.rpartition("/")[2], image.needs == "gpu"
    yield Cell(pins.stack, image.name, processor, "both", "static", gpu=False, seconds=GROUND_SECONDS)
    ops = len(image.backends) * (SECONDS_ON_GPU if on_gpu else SECONDS_ON_PROCESSOR)
    for arch in pins.archs if on_gpu else (processor,):
        for setting in image.settings:
            place = (pins.stack, image.name, arch, setting.name)
            seconds = GROUND_SECONDS + ops
            if image.backends:
                yield Cell(*place, "ops", on_gpu, seconds, image.memory >> 30)
            served = image.start_seconds + image.answer_seconds
            yield Cell(*place, "generate", on_gpu, seconds + served, image.memory >> 30)
        if len(image.settings) > 1:
            seconds = GROUND_SECONDS + ops + len(image.settings) * (image.start_seconds + image.answer_seconds)
            yield Cell(pins.stack, image.name, arch, "both", "generate", on_gpu, seconds, image.memory >> 30)
        if gates := image.gates:
            each = gates.start_seconds + gates.accuracy.seconds + gates.sweep.seconds
            seconds = GROUND_SECONDS + ops + len(image.settings) * (image.start_seconds + image.answer_seconds + each)
            own = gates.accuracy.task != "answers"
            place = (pins.stack, image.name, arch, "both")
            yield Cell(*place, "gates", on_gpu, seconds, max(image.memory, gates.memory) >> 30, own)


def read_cells(path: Path) -> tuple[Cell, ...]:
    """The cells of a matrix as ``kiln ci matrix --json`` printed it. Raises UsageError where it is none."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["matrix"]["include"]
        cells = [
            Cell(
                **{key: row[key] for key in ("stack", "image", "arch", "setting", "level", "gpu", "own_model")},
                seconds=60 * row["minutes"],
                alone=row["require"] != row["level"],
            )
            for row in rows
        ]
        wrong = [row["id"] for row, cell in zip(rows, cells, strict=True) if cell.data() != row]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        wrong, cells = [repr(error)], []
    if wrong or not cells:
        raise UsageError(
            f"{path} is no matrix of cells",
            why="\n".join(map(str, wrong[:10])) or "There is no cell in it.",
            fix="write it anew: kiln ci matrix STACK --level static --level generate --fewest --json > FILE",
        )
    return tuple(cells)


def runs_here(cell: Cell, root: Path = Path("/")) -> bool:
    """Whether this machine has the GPU that a cell needs, if it needs one."""
    return not cell.gpu or cell.arch in {gpu.arch for gpu in gpus(root)}


def find_cell(matrices: Sequence[Matrix], name: str) -> Cell:
    """The cell of that name. Raises UsageError; where the cell is left out, with the reason."""
    for found in matrices:
        for cell in found.cells:
            if cell.id == name:
                return cell
        for cell, why in found.left_out:
            if cell.id == name:
                raise UsageError(
                    f"the cell {name} is left out of the matrix",
                    why=why,
                    fix="kiln ci matrix lists those that are there",
                )
    known = [cell.id for found in matrices for cell in found.cells]
    near = difflib.get_close_matches(name, known, 3)
    raise UsageError(
        f"there is no cell {name!r}", why=f"Near: {', '.join(near)}." if near else "", fix="kiln ci matrix lists them"
    )


@dataclass(frozen=True)
class Wanted:
    """What a person fills in for one cluster: images by name (``host/name@sha256:…``), the runner's image, how many GPUs a node has."""

    images: Mapping[str, str] = field(default_factory=dict)
    runner: str = f"{NOBODY}/runner@{NO_DIGEST}"
    gpus: int = 8

    def image(self, name: str) -> str:
        """The image to look at, by its digest."""
        return self.images.get(name, f"{NOBODY}/{name}@{NO_DIGEST}")


_BY_DIGEST = re.compile(r"[\w.-]+(:\d+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+@sha256:[0-9a-f]{64}")


def by_digest(text: str) -> str:
    """An image's place, as ``host/name@sha256:…``. Raises UsageError for any other: what is verified must not move."""
    if not _BY_DIGEST.fullmatch(text):
        raise UsageError(f"{text!r} is not an image by its digest", fix="write HOST/NAME@sha256:… with all 64 digits")
    return text


def render_jobs(workspace: Workspace, found: Matrix, wanted: Wanted) -> dict[str, str]:
    """The job files of one stack, for all systems: text by path below ``ci/jobs``. Raises RenderError."""
    codes = sorted(cls.exit_code for cls in error_classes() if cls.transient)
    given: dict[str, Any] = {"stack": found.stack, "wanted": wanted, "codes": codes, "shared": SHARED_MEMORY}
    checks, gates = found.only(["static", "generate"]).fewest(), found.only(["gates"])
    given["images"] = tuple(dict.fromkeys(cell.image for cell in checks.cells))
    files: dict[str, tuple[str, dict[str, Any]]] = {
        f"github/kiln-{found.stack}.yml": ("github.yml.j2", {"gates": gates.cells}),
        f"buildkite/{found.stack}.yml": ("buildkite.yml.j2", {"cells": checks.cells, "gates": gates.cells}),
        f"machine/{found.stack}.sh": ("machine.sh.j2", {}),
    }
    for folder, cells in (("checks", checks.cells), ("gates", gates.cells)):
        place = f"kubernetes/{found.stack}-{folder}"
        images = sorted({cell.image for cell in cells})
        files[f"{place}/kustomization.yaml"] = ("kustomization.yaml.j2", {"cells": cells, "images": images})
        for cell in cells:
            files[f"{place}/{cell.id}.yaml"] = ("job.yaml.j2", {"cell": cell})
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(workspace.root / TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - no page: YAML and shell, of names that the pins' own checks let through
    )
    try:
        return {path: environment.get_template(name).render({**given, **more}) for path, (name, more) in files.items()}
    except jinja2.TemplateError as error:
        raise RenderError(
            f"a template in {TEMPLATES} does not render", why=str(error), fix="mend the template"
        ) from error


def check_jobs(folder: Path, files: Mapping[str, str], stacks: Sequence[str]) -> None:
    """Compare the job files in ``folder`` with what renders now, and look for such as no stack renders. Raises RenderStaleError."""
    stale = [
        path
        for path, text in files.items()
        if not (folder / path).is_file() or (folder / path).read_bytes() != text.encode()
    ]
    stale += [f"{path} (no longer rendered)" for path in strays(folder, files)]
    if stale:
        raise RenderStaleError(
            "the job files are not what renders now",
            why="\n".join(stale),
            fix=f"kiln ci render {' '.join(stacks)}, look at the difference, and commit it".replace("  ", " "),
        )


def strays(folder: Path, files: Mapping[str, str]) -> list[str]:
    """Files in the folders of rendered ones that are not rendered."""
    there = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return sorted(set(there) - set(files))
