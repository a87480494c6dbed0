"""The rendered job files, run: every command of theirs as it stands in them, on real engines, with a real registry and cosign. What stands for the CI systems
themselves is in cisystems.py.

The stack is `toy`, rendered from the same templates, its one cell static: green, and with an image that is wrong. tests/e2e/test_github_jobs.py does the same
with `cpu` and a real vLLM. The ROCm stacks' cells need a GPU that nobody here has; what needs none, their matrix and their files, is in tests/unit/test_ci.py.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kiln.cosign import Cosign
from tests.conftest import FULL
from tests.integration.cisystems import Buildkite, GitHub, Workspace, commit, copy_tracked, environment_of, run_job
from tests.integration.conftest import Project
from tests.integration.registry import Registry, registry_in
from tests.integration.release.conftest import cosign, make_keys

pytestmark = pytest.mark.engine
__all__ = ["cosign"]
CELL = "toy-amd64-static"


@pytest.fixture(scope="module")
def keys(cosign: Cosign, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_keys(cosign, tmp_path_factory.mktemp("signing") / "keys")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with registry_in(tmp_path / "registry") as made:
        yield made


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder whose path leaves room for an engine's sockets."""
    with tempfile.TemporaryDirectory(prefix="kiln-ci-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def source(place: Path, base_project: Project) -> Path:
    """A repository with what is tracked here and the stack `toy`, with an image that serves nothing: its job files are rendered and committed."""
    root = place / "source"
    copy_tracked(root)
    shutil.copytree(base_project.root / "standin", root / "standin")
    for name in ("pins/toy.toml", "pins/toy.lock.toml"):
        shutil.copy(base_project.root / name, root / name)
    (root / "images" / "toy").mkdir()
    described = (base_project.root / "images" / "toy" / "image.toml").read_text().partition("[verify]")[
        0
    ] + "[verify]\n"
    described = described.replace("entrypoint =", "command =").replace("serving.Dockerfile.j2", "toy.Dockerfile.j2")
    (root / "images" / "toy" / "image.toml").write_text(described)
    template = (root / "templates" / "serving.Dockerfile.j2").read_text()
    (root / "templates" / "toy.Dockerfile.j2").write_text(template.rstrip() + '\nCMD ["standin-serve"]\n')
    done = Project(root, place / "state", base_project.host).kiln("ci", "render", "toy")
    assert done.code == 0, done.err
    commit(root, "toy")
    return root


@pytest.fixture(scope="module")
def clone(source: Path, place: Path) -> Path:
    subprocess.run(["git", "clone", "--quiet", source, place / "w"], check=True)
    return place / "w"


@pytest.fixture
def workspace(
    clone: Path, base_project: Project, registry: Registry, keys: Path, tmp_path: Path
) -> Iterator[Workspace]:
    """A runner's clone; the first job's machine has the inputs, and all of them the suite's engine."""
    subprocess.run(["git", "reset", "--quiet", "--hard", "origin/main"], cwd=clone, check=True)
    (tmp_path / "kept").mkdir()
    environment = {**environment_of(registry, keys), "DOCKER_HOST": base_project.host}
    made = Workspace(clone, environment, tmp_path / "kept", base_project.state / "store")
    yield made
    made.fresh()
    shutil.rmtree(clone.parent / "agent", ignore_errors=True)


def be_careless(workspace: Workspace) -> None:
    """A commit that makes what no check of an image may let through: a setuid program that nobody asked for."""
    recipe, step = workspace.folder / "templates" / "toy.Dockerfile.j2", '&& {{ macros.one_time("/out") }}'
    mine = "/out/usr/local/bin/mine"
    text = recipe.read_text()
    assert text.count(step) == 1
    planted = f"&& mkdir -p /out/usr/local/bin && cp /bin/true {mine} && chmod 4755 {mine} {step}"
    recipe.write_text(text.replace(step, planted))
    commit(workspace.folder, "careless")


def status_of(workspace: Workspace) -> str:
    """What the merged report says of the one check that sees it."""
    merged = json.loads(next(workspace.artifacts.rglob("merged/toy.json")).read_text())
    return next(check["status"] for check in merged["checks"] if check["id"] == "files.clean")


def test_githubs_jobs_end_with_a_signed_release(workspace: Workspace, registry: Registry) -> None:
    """With FULL=1 each on a machine with an engine of its own that has nothing, and is stopped at its end; else all ask the suite's."""
    if FULL:
        del workspace.environment["DOCKER_HOST"]
    jobs = GitHub(workspace, "toy")
    built = jobs.run("build")
    assert built.code == 0, built.out
    (cell,) = json.loads(jobs.known["needs.build.outputs.matrix"])["matrix"]["include"]
    assert cell["id"] == CELL
    for name, matrix in (("verify", cell), ("report", {}), ("publish", {})):
        done = jobs.run(name, **matrix)
        assert done.code == 0, done.out
        assert name != "verify" or "pulling toy from the cache" in done.out
        assert not (workspace.folder / ".kiln" / "engine" / "docker.pid").exists()
    assert jobs.summary.count("files.clean") >= 2
    assert (workspace.artifacts / f"report-{CELL}" / CELL / "toy.xml").is_file()
    assert status_of(workspace) == "pass"
    assert "[[release]]" in (workspace.artifacts / "releases" / "toy.toml").read_text()
    shutil.copytree(workspace.artifacts / "releases", workspace.folder / "releases", dirs_exist_ok=True)
    pulled = workspace.kiln("pull", "toy")
    assert pulled.code == 0, pulled.out


def test_a_bad_cell_of_githubs_says_so_everywhere_and_cannot_be_published(workspace: Workspace) -> None:
    be_careless(workspace)
    jobs = GitHub(workspace, "toy")
    assert jobs.run("build").code == 0
    verified = jobs.run("verify", id=CELL, image="toy")
    assert verified.code == 61, verified.out
    assert "::error" in verified.out
    assert "/usr/local/bin/mine" in jobs.summary
    assert jobs.run("report").code == 61
    assert status_of(workspace) == "fail"
    # GitHub does not start it after that; if it did:
    published = jobs.run("publish")
    assert published.code == 75, published.out


def test_buildkites_steps_publish_what_a_kubernetes_job_then_looks_at(
    workspace: Workspace, source: Path, registry: Registry
) -> None:
    pipeline = Buildkite(workspace, "toy")
    for key in ("build-toy", CELL, "report-toy", "publish-toy"):
        done = pipeline.run(key)
        assert done.code == 0, done.out
    assert f"annotate --context {CELL} --style success" in pipeline.annotations
    assert (workspace.artifacts / "reports" / CELL / "toy.xml").is_file()
    assert status_of(workspace) == "pass"
    record = (workspace.artifacts / "releases" / "toy.toml").read_text()
    digest = record.partition("sha256:")[2][:64]
    code, report = in_kubernetes(workspace, source, f"{registry.host}/kiln/toy@sha256:{digest}")
    assert code == 0, report
    assert report["subject"]["manifest_digest"] == f"sha256:{digest}"


def test_a_bad_cell_of_buildkites_is_final_and_kubernetes_says_the_same_of_that_image(
    workspace: Workspace, source: Path
) -> None:
    """Kubernetes with FULL=1: the Job's way is gone above."""
    be_careless(workspace)
    pipeline = Buildkite(workspace, "toy")
    assert pipeline.run("build-toy").code == 0
    assert pipeline.run(CELL).code == 61
    assert not pipeline.tried_again(CELL, 61)
    assert f"annotate --context {CELL} --style error" in pipeline.annotations
    assert "/usr/local/bin/mine" in pipeline.annotations
    assert pipeline.run("report-toy").code == 61
    assert status_of(workspace) == "fail"
    if not FULL:
        return
    digest = json.loads((workspace.artifacts / "reports" / CELL / "toy.json").read_text())["subject"]["manifest_digest"]
    code, report = in_kubernetes(workspace, source, f"{workspace.environment['KILN_CACHE']}@{digest}")
    assert code == 61
    failed = {check["id"] for check in report["checks"] if check["status"] == "fail"}
    assert "files.clean" in failed


def in_kubernetes(workspace: Workspace, source: Path, image: str) -> tuple[int, dict[str, object]]:
    """The cell's Job on a node that has nothing, with an engine of its own; its code and its report."""
    revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=source, check=True, capture_output=True, text=True)
    values = {"repository": str(source), "revision": revision.stdout.strip(), "image-toy": image}
    with tempfile.TemporaryDirectory(prefix="kiln-k8s-") as folder:
        volumes = {name: Path(folder) / name for name in ("work", "reports")}
        node = Workspace(volumes["work"] / "checkout", {}, workspace.artifacts)
        file = workspace.folder / "ci" / "jobs" / "kubernetes" / "toy-checks" / f"{CELL}.yaml"
        try:
            done = run_job(node, file, values, volumes)
            (report,) = volumes["reports"].rglob("*.json")
            return done.code, json.loads(report.read_text())
        finally:
            # With its container a Job's engine ends too.
            node.environment["KILN_STATE"] = str(volumes["work"] / "state")
            assert node.kiln("engine", "down").code == 0


def test_a_registry_that_gives_no_answer_is_no_verdict_and_is_tried_again(
    workspace: Workspace, registry: Registry
) -> None:
    registry.stop()
    pipeline = Buildkite(workspace, "toy")
    done = pipeline.run("build-toy")
    assert done.code == 15, done.out
    assert pipeline.tried_again("build-toy", 15)


def test_the_script_for_one_machine_builds_looks_and_reports(workspace: Workspace) -> None:
    del workspace.environment["KILN_CACHE"]
    workspace.fresh()
    done = workspace.bash("ci/jobs/machine/toy.sh", {})
    assert done.code == 0, done.out
    assert {path.name for path in (workspace.folder / "reports" / CELL).iterdir()} == {"toy.json", "toy.xml"}
