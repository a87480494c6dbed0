"""GitHub's jobs for the cpu stack, every command as it stands in the rendered file: from the build to the signed release, on the engine that `make image` built with.

That engine carried out the steps already, and the inputs are the checkout's: what is new is the way through the registry, a real vLLM in the verification job, the
merged report and cosign. What fails on purpose, and the other systems, is in tests/integration/test_ci_jobs.py.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

import pytest

from kiln.cosign import Cosign
from tests.integration.cisystems import GitHub, Workspace, commit, copy_tracked, environment_of
from tests.integration.conftest import REPOSITORY, engine_host
from tests.integration.registry import registry_in
from tests.integration.release.conftest import cosign, make_keys

pytestmark = pytest.mark.engine
__all__ = ["cosign", "engine_host"]


def test_they_end_with_a_release_that_is_pulled(engine_host: str, cosign: Cosign, tmp_path: Path) -> None:
    subprocess.run(["make", "--silent", "image", "STACK=cpu"], cwd=REPOSITORY, check=True, capture_output=True)
    keys = make_keys(cosign, tmp_path / "keys")
    (tmp_path / "kept").mkdir()
    with tempfile.TemporaryDirectory(prefix="kiln-ci-") as folder, registry_in(tmp_path / "registry") as registry:
        clone = Path(folder) / "w"
        copy_tracked(clone)
        commit(clone, "as it is here")
        environment = {**environment_of(registry, keys), "DOCKER_HOST": engine_host}
        workspace = Workspace(clone, environment, tmp_path / "kept", REPOSITORY / ".kiln" / "store")
        jobs = GitHub(workspace, "cpu")
        built = jobs.run("build")
        assert built.code == 0, built.out
        (cell,) = json.loads(jobs.known["needs.build.outputs.matrix"])["matrix"]["include"]
        for name, matrix in (("verify", cell), ("report", {}), ("publish", {})):
            done = jobs.run(name, **matrix)
            assert done.code == 0, done.out
        merged = json.loads((workspace.artifacts / "merged" / "cpu-serving.json").read_text())
        found = {check["id"]: check["status"] for check in merged["checks"]}
        assert {found[f"serve.{one}.answers"] for one in ("default", "tilelang")} == {found["serve.agree"]} == {"pass"}
        assert merged["subject"]["manifest_digest"] in (REPOSITORY / "README.md").read_text()
        assert merged["subject"]["manifest_digest"] in (workspace.artifacts / "releases" / "cpu.toml").read_text()
