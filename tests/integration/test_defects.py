"""The corpus (docs/corpus.md): every defect is caught by the check that is there for it, and no clean variant is blamed.

Every defect of an operator, a server, a log and a wheel is tried, and two of each check and base of an image's, for which its files are read; all of them
with FULL=1, and by `make corpus`. The rows marked `toy` are tried a second time, on the toy image through `kiln verify` as a person would: its exit code and what
it prints; one defect and one clean variant, all with FULL=1.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping

import pytest

from tests.conftest import FULL
from tests.corpus.cases import Case, CorpusError, read_corpus
from tests.corpus.images import BASES, Images
from tests.corpus.runner import Lookers, Row, run_cases, sample
from tests.integration.conftest import REPOSITORY, Project

pytestmark = pytest.mark.engine
CASES = read_corpus() if FULL else sample(read_corpus())
TOY = [case for case in CASES if case.data.get("toy")]
TOY = TOY if FULL else [next(case for case in TOY if case.clean is clean) for clean in (False, True)]
RIGHT = 'ENTRYPOINT ["standin-serve"]'


@pytest.fixture(scope="module")
def rows(engine_host: str) -> Mapping[str, Row]:
    """Every case looked at once, two at a time; the bases are built where they are not."""
    os.environ.setdefault("DOCKER_HOST", engine_host)
    for base, (stack, rehearsal, _) in BASES.items():
        try:
            Images().base(base)
        except CorpusError:
            _build(stack, rehearsal=rehearsal)
    with Lookers(CASES).working() as look:
        return {case.path: row for case, row in zip(CASES, run_cases(CASES, look), strict=True)}


def _build(stack: str, *, rehearsal: bool) -> None:
    words = ["build", stack]
    if rehearsal:
        from tests.rehearsal.standins import make_standins

        words = ["rehearse", stack, "--standins", str(make_standins(REPOSITORY / ".kiln" / "standins"))]
    done = subprocess.run(
        [sys.executable, "-m", "kiln", *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.path)
def test_every_case_ends_as_it_must(rows: Mapping[str, Row], case: Case) -> None:
    row = rows[case.path]
    assert row.good, f"{row.trouble}: {row.message}"


@pytest.fixture(scope="module")
def good(base_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The toy project with a state folder of its own: its record of what was built is about to lie."""
    root = tmp_path_factory.mktemp("defects") / "toy"
    shutil.copytree(base_project.root, root, symlinks=True, ignore=shutil.ignore_patterns("engine", "store"))
    return Project(root, root / "state", base_project.host)


def docker(project: Project, *words: str) -> str:
    done = subprocess.run(
        ["docker", *words], env=project.environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def verified(project: Project, reference: str) -> tuple[int, dict[str, dict[str, str]], str]:
    done = project.kiln("--json", "verify", reference, "--level", "static")
    checks = {check["id"]: check for check in json.loads(done.out)[0]["checks"]} if done.out else {}
    return done.code, checks, done.err


@pytest.mark.parametrize("case", TOY, ids=lambda case: case.name)
def test_kiln_verify_says_so_and_ends_with_its_code(good: Project, case: Case) -> None:
    (record,) = (good.state / "builds").glob("**/*.json")
    built = json.loads(record.read_text(encoding="utf-8"))["reference"]
    container = docker(
        good, "create", "--network=none", "--entrypoint=sh", built, "-ec", case.data.get("shell", "true")
    )
    try:
        docker(good, "start", "--attach", container)
        changes = [word for one in (RIGHT, case.data.get("change")) if one for word in ("--change", one)]
        docker(good, "commit", *changes, container, "kiln-defect:1")
        code, checks, err = verified(good, "kiln-defect:1")
    finally:
        docker(good, "rm", "--force", container)
        subprocess.run(
            ["docker", "rmi", "--force", "kiln-defect:1"], env=good.environment, capture_output=True, check=False
        )
    if case.clean:
        assert code == 0, err
        assert "fail" not in {check["status"] for check in checks.values()}
        assert checks["packages.wheels"]["status"] == "pass"
    else:
        assert code == 61, err
        assert checks[case.check]["status"] == "fail", checks[case.check]
        assert case.says in checks[case.check]["summary"]
        assert f"{case.check}: " in err
