"""The figures, one function for each name: what Kiln does beside what a person would do by hand, in turns, in the same run."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from kiln.engine import image_digest
from kiln.image import read_images
from kiln.layers import manifest_text
from kiln.lockentries import Wheel
from kiln.lockfile import dump_lock, read_lock
from kiln.pins import read_pins
from kiln.rootfs import rootfs_key
from kiln.wheels import requirements_text, target_options
from kiln.workspace import Workspace
from tests.bench import plain, stacks
from tests.bench.lab import PROJECT, STACK, BenchError, Lab, Timed
from tests.bench.results import Figure, Runs

# The bump of one leaf component: another version of the pure-Python wheel that the component is named after. Each run takes one that the engine never saw.
BUMPED = "transformers"
BUMPED_TO = ("5.20.0", "5.20.1", "5.20.2", "5.21.0", "5.21.1", "5.22.0", "5.22.1")
# What may come with a component's layer: what the image says of itself, its configuration and its manifest.
BESIDE_THE_LAYER = 64 * 1024
SIZES = (10, 100, 1000)
BY_HAND = "docker buildx build --load of the plain Dockerfile"


def scale(lab: Lab) -> list[Figure]:
    """Plan and render of invented stacks, the start of Python in it; compared with the stack of a tenth of the size, ten times."""
    start = [lab.kiln("--version") for _ in range(lab.runs)]
    figures = [_figure("start", "kiln --version", start)]
    done: dict[tuple[str, int], list[Timed]] = {}
    for size in SIZES:
        root = lab.folder / f"synthetic-{size}"
        shutil.rmtree(root, ignore_errors=True)
        stacks.write_stack(root, size)
        for verb in ("plan", "render"):
            done[verb, size] = [lab.kiln(verb, stacks.STACK, root=root) for _ in range(lab.runs)]
    for (verb, size), runs in done.items():
        smaller = done.get((verb, size // 10))
        other = (
            Runs(f"ten times kiln {verb}, {size // 10} components", tuple(10 * run.seconds for run in smaller))
            if smaller
            else None
        )
        figures.append(_figure(f"{verb}-{size}", f"kiln {verb}, {size} components", runs, other))
    return figures


def fetch(lab: Lab) -> list[Figure]:
    """A lock whose files are all there, beside pip on a folder that holds all wheels."""
    lab.fill_store()
    folder = lab.folder / "fetched"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    wheels = list({wheel.file: wheel for wheel in lab.lock.wheels}.values())
    for wheel in wheels:
        (folder / wheel.file).hardlink_to(lab.store.path(wheel.sha256))
    wanted = folder / "requirements.txt"
    wanted.write_text(requirements_text(wheels), encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    pip += ["--require-hashes", f"--find-links={folder}", f"--dest={folder}", f"--requirement={wanted}"]
    pip += target_options(lab.pins)
    ours, theirs = [], []
    for _ in range(lab.runs):
        ours.append(lab.kiln("fetch", STACK))
        theirs.append(lab.run(pip).seconds)
    other = Runs(
        "pip download --no-index --require-hashes into the folder that holds them (the wheels alone)", tuple(theirs)
    )
    return [_figure("fetch-again", f"kiln fetch {STACK}, all there", ours, other)]


def cold(lab: Lab) -> list[Figure]:
    """A build with nothing cached; Kiln and the plain Dockerfile in turns."""
    _fill(lab)
    context = _plain_context(lab)
    ours, theirs = [], []
    for number in range(lab.runs):
        lab.console.step(f"cold builds: round {number + 1} of {lab.runs}")
        lab.forget()
        ours.append(lab.kiln("build", STACK, engine=True))
        lab.forget()
        theirs.append(_plain_build(lab, context).seconds)
    other = Runs(f"{BY_HAND}, nothing cached", tuple(theirs))
    figure = _figure("cold-build", f"kiln build {STACK}, nothing cached, store filled", ours, other)
    return [replace(figure, most_ratio=0.75)]


def noop(lab: Lab) -> list[Figure]:
    """`kiln image` with nothing changed, beside a plain build of which every step is cached."""
    lab.fill_store()
    # A report is about a digest, wherever it was made: what the checkout verified before need not be verified again.
    reports = PROJECT / ".kiln" / "reports"
    if reports.is_dir():
        shutil.copytree(reports, lab.state / "reports", dirs_exist_ok=True)
    lab.kiln("image", STACK, engine=True)
    context = _plain_context(lab)
    _plain_build(lab, context)
    ours, theirs = [], []
    for _ in range(lab.runs):
        run = lab.kiln("image", STACK, engine=True)
        if "is built and verified already" not in run.log:
            raise BenchError(f"this was no no-op:\n{run.log}")
        ours.append(run)
        theirs.append(_plain_build(lab, context).seconds)
    other = Runs(f"{BY_HAND}, all cached", tuple(theirs))
    figure = _figure("no-op", f"kiln image {STACK}, nothing changed", ours, other)
    return [replace(figure, most_ratio=1.0)]


def bump(lab: Lab) -> list[Figure]:
    """One leaf component at versions that were never built, on top of a whole build; Kiln and the plain Dockerfile in turns."""
    if lab.runs > len(BUMPED_TO):
        raise BenchError(f"{lab.runs} runs of a bump need as many versions, and {len(BUMPED_TO)} are named")
    _fill(lab)
    context = _plain_context(lab)
    lab.forget()
    lab.console.step("what is bumped is built first, by either side")
    lab.kiln("build", STACK, engine=True)
    (record,) = (lab.state / "builds").glob("*.json")
    key = record.stem.rpartition("-")[2]
    _plain_build(lab, context)
    bench = _Bumps(lab, context, key, _blobs(lab))
    for number, version in enumerate(BUMPED_TO[: lab.runs]):
        lab.console.step(f"bump to {version}: round {number + 1} of {lab.runs}")
        bench.round(version)
    return bench.figures()


@dataclass
class _Bumps:
    """Rounds of bumps from the build ``key`` and the plain image of ``blobs``, and what was measured in them."""

    lab: Lab
    context: Path
    key: str
    blobs: dict[str, int]
    ours: list[Timed] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    pulled: list[int] = field(default_factory=list)
    plain_pulled: list[int] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)
    rebuilt: set[str] = field(default_factory=set)

    def round(self, version: str) -> None:
        lab = self.lab
        project = bumped_project(lab, version)
        self.ours.append(lab.kiln("build", STACK, root=project, engine=True))
        (image,) = lab.pins.images
        log = (lab.state / "logs" / f"build-{image}.log").read_text(encoding="utf-8")
        self.rebuilt |= carried_out(log) & lab.pins.by_name.keys()
        cost = lab.json("plan", STACK, "--pull-cost", f"{self.key}..current", root=project)
        assert isinstance(cost, dict)
        self.pulled.append(cost["bytes"])
        self.layers.append(next(layer["size"] for layer in cost["layers"] if layer["component"] == BUMPED))
        workspace = Workspace(project, lab.state)
        pins = read_pins(workspace, STACK)
        plain.set_wheels(self.context, pins, read_lock(workspace, pins), lab.store)
        self.theirs.append(_plain_build(lab, self.context).seconds)
        self.plain_pulled.append(sum(size for digest, size in _blobs(lab).items() if digest not in self.blobs))

    def figures(self) -> list[Figure]:
        about = f"{BUMPED} {', '.join(BUMPED_TO[: self.lab.runs])}"
        layer = round(median(self.layers))
        facts = {"components rebuilt": sorted(self.rebuilt), "target: components rebuilt": 1, "layer": layer}
        seconds = _figure(
            "bump", f"kiln build {STACK}, {about}", self.ours, Runs(f"{BY_HAND}, {about}", tuple(self.theirs))
        )
        pulled = Runs("kiln plan --pull-cost", tuple(self.pulled))
        other = Runs("the layers of the plain image that the one before it has not", tuple(self.plain_pulled))
        # Of pairs that each differ by no more than that, the medians do not either.
        most = layer + BESIDE_THE_LAYER
        return [
            replace(seconds, most=15.0, most_ratio=0.1, facts=facts),
            Figure("bump-pull", "bytes", pulled, other, None, most, 0.1, {"layer": layer}),
        ]


def _fill(lab: Lab) -> None:
    lab.fill_store()
    # The root file system is made before: both sides begin with its tar.
    if lab.store.made(_rootfs(lab)) is None:
        lab.kiln("build", STACK, engine=True)


def carried_out(log: str) -> set[str]:
    """The stages of which BuildKit carried a RUN step out, as its plain log says, without ``-wheels`` (a component's first stage)."""
    steps = dict(re.findall(r"^#(\d+) \[(\S+) +\d+/\d+\] RUN", log, re.MULTILINE))
    done = set(re.findall(r"^#(\d+) DONE", log, re.MULTILINE))
    return {stage.removesuffix("-wheels") for number, stage in steps.items() if number in done}


def bumped_project(lab: Lab, version: str) -> Path:
    """A copy of the project with one wheel of that version in pins and lock, and that wheel in the store."""
    project = lab.folder / "bumped"
    shutil.rmtree(project, ignore_errors=True)
    for name in ("pins", "images", "templates", "plugins", "scripts"):
        shutil.copytree(
            PROJECT / name, project / name, ignore=shutil.ignore_patterns("__pycache__", ".*_cache", "*.pyc")
        )
    workspace = Workspace(project, lab.state)
    old = next(wheel for wheel in lab.lock.wheels if wheel.name == BUMPED)
    path = workspace.pins_file(STACK)
    path.write_text(
        path.read_text(encoding="utf-8").replace(f'"{BUMPED}=={old.version}"', f'"{BUMPED}=={version}"'),
        encoding="utf-8",
    )
    new = _download(lab, old, version)
    wheels = tuple(new if wheel is old else wheel for wheel in lab.lock.wheels)
    lock = replace(lab.lock, wheels=wheels, pins_sha256=read_pins(workspace, STACK).sha256)
    workspace.lock_file(STACK).write_text(dump_lock(lock), encoding="utf-8")
    return project


def _download(lab: Lab, old: Wheel, version: str) -> Wheel:
    """The other version of a wheel, from the user's own index, into the store."""
    folder = lab.folder / f"bump-wheel-{version}"
    if not list(folder.glob("*.whl")):
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        lab.run([*pip, f"--dest={folder}", "--only-binary=:all:", f"{BUMPED}=={version}"])
    (file,) = folder.glob("*.whl")
    if not file.name.endswith("-none-any.whl"):
        raise BenchError(f"{file.name} is not a pure-Python wheel")
    copied = Path(shutil.copyfile(file, lab.folder / file.name))
    size = copied.stat().st_size
    return replace(old, version=version, file=file.name, sha256=lab.store.add_made(copied), size=size)


def _rootfs(lab: Lab) -> str:
    return rootfs_key(lab.workspace, lab.pins, lab.lock)


def _plain_context(lab: Lab) -> Path:
    folder = lab.folder / "plain"
    shutil.rmtree(folder, ignore_errors=True)
    rootfs = lab.store.made(_rootfs(lab))
    if rootfs is None:
        raise BenchError("the root file system is not in the store")
    (image,) = read_images(lab.workspace, lab.pins)
    plain.write_context(folder, PROJECT, lab.pins, lab.lock, image, lab.store, rootfs)
    return folder


def _plain_build(lab: Lab, context: Path) -> Timed:
    # Without an attestation, so that the name points to the image itself; without a network, which this engine has none of.
    words = ["--builder=default", "--load", "--provenance=false", "--network=none", f"--tag={plain.TAG}"]
    return lab.docker("buildx", "build", *words, ".", cwd=context)


def _blobs(lab: Lab) -> dict[str, int]:
    """What a node would download of the plain image: each blob's digest and size."""
    digest = image_digest(lab.engine, plain.TAG)
    assert digest is not None
    text = manifest_text(lab.engine, plain.TAG, digest)
    manifest = json.loads(text)
    return {one["digest"]: one["size"] for one in (manifest["config"], *manifest["layers"])} | {digest: len(text)}


def _figure(name: str, about: str, runs: list[Timed], other: Runs | None = None) -> Figure:
    memory = max((run.memory for run in runs if run.memory is not None), default=None)
    return Figure(name, "seconds", Runs(about, tuple(run.seconds for run in runs)), other, memory)


# By the names that the command line takes.
FIGURES: dict[str, Callable[[Lab], list[Figure]]] = {
    "scale": scale,
    "fetch": fetch,
    "no-op": noop,
    "cold": cold,
    "bump": bump,
}
