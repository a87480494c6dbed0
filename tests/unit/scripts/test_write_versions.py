"""/app/versions.txt and /app/provenance.json, from what the lock says and what was built."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[3] / "scripts" / "write_versions.py"


def provenance(**components: Any) -> dict[str, Any]:
    return {"schema": 1, "base": {"reference": "host/name:tag@sha256:0", "rocm": "7.2.3"}, "components": components}


def source(name: str) -> dict[str, str]:
    return {"ref": "v1", "url": f"https://example.invalid/{name}", "commit": name[0] * 40}


def write(folder: Path, data: dict[str, Any], *words: str) -> tuple[str, dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    (folder / "provenance.json").write_text(json.dumps(data))
    (folder / "sbom.cdx.json").write_bytes(b'{"a":\r\n1}')
    out = folder / "out"
    command = [
        sys.executable,
        str(SCRIPT),
        f"--said={folder}",
        f"--wheels={folder}/wheels",
        f"--out={out}",
        *words,
    ]
    subprocess.run(command, check=True)
    return (out / "versions.txt").read_text(), json.loads((out / "provenance.json").read_text())


def test_the_keys_are_those_that_people_grep(tmp_path: Path) -> None:
    text, _ = write(
        tmp_path / "a", provenance(vllm=source("vllm"), aiter=source("aiter"), cpython=source("cpython"), needs={})
    )
    assert text.splitlines() == [
        "BASE_IMAGE: host/name:tag@sha256:0",
        "AITER_BRANCH: v1",
        "AITER_REPO: https://example.invalid/aiter",
        f"AITER_COMMIT: {'a' * 40}",
        "VLLM_BRANCH: v1",
        "VLLM_REPO: https://example.invalid/vllm",
        f"VLLM_COMMIT: {'v' * 40}",
    ]


def test_what_was_built_is_measured(tmp_path: Path) -> None:
    wheels = tmp_path / "a" / "wheels" / "aiter"
    wheels.mkdir(parents=True)
    (wheels / "amd_aiter-0.1.14-py3-none-any.whl").write_bytes(b"wheel")
    (wheels / "build.log").write_text("no wheel")
    _, data = write(tmp_path / "a", provenance(aiter=source("aiter"), torch=source("torch")))
    built = {"file": "amd_aiter-0.1.14-py3-none-any.whl", "sha256": hashlib.sha256(b"wheel").hexdigest(), "size": 5}
    assert data["components"]["aiter"]["wheels"] == [built]
    assert "wheels" not in data["components"]["torch"]


def test_the_parents_entries_stay(tmp_path: Path) -> None:
    write(tmp_path / "base", provenance(aiter=source("aiter")))
    text, data = write(tmp_path / "serving", provenance(vllm=source("vllm")), f"--parent={tmp_path}/base/out")
    assert set(data["components"]) == {"aiter", "vllm"}
    assert "AITER_BRANCH: v1\n" in text
    assert "VLLM_BRANCH: v1\n" in text


def test_a_wheel_from_an_index_has_its_version_alone_and_the_sbom_stays_as_it_is(tmp_path: Path) -> None:
    data = provenance(torch={"version": "2.13.0+cpu", "key": "k"}, needs={"version": "108 wheels", "key": "k"})
    del data["base"]
    text, _ = write(tmp_path / "a", data)
    assert text == "PYTORCH_VERSION: 2.13.0+cpu\n"
    assert (tmp_path / "a" / "out" / "sbom.cdx.json").read_bytes() == b'{"a":\r\n1}'
