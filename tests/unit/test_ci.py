"""The matrix of an image's checks, and the job files that are rendered from it: each valid by its system's own schema, none stale, none with a command
that is not there. The one-machine script is run, with a `kiln` in its place that fails where a test wants it to."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kubernetes_validate
import pytest
import yaml

import kiln.commands.verify
from kiln.ci import NO_DIGEST, Cell, Matrix, by_digest, find_cell, matrix, runs_here
from kiln.cli import run
from kiln.errors import UsageError, error_classes
from kiln.gpu import NODES
from kiln.image import read_images
from kiln.pins import read_pins
from kiln.proof import Reported
from kiln.workspace import Workspace
from tests.commands import called, unknown

PROJECT = Path(__file__).parents[2]
JOBS = PROJECT / "ci" / "jobs"
BIN = Path(sys.executable).parent
GITHUB = sorted((JOBS / "github").glob("*.yml"))
BUILDKITE = sorted((JOBS / "buildkite").glob("*.yml"))
SCRIPTS = sorted((JOBS / "machine").glob("*.sh"))
KUBERNETES = sorted(JOBS.glob("kubernetes/*/*.yaml"))
CLUSTER_JOBS = [path for path in KUBERNETES if path.name != "kustomization.yaml"]
KUSTOMIZATIONS = [path for path in KUBERNETES if path.name == "kustomization.yaml"]
# Written by another part of the project and named in the files already.
DIGEST = "sha256:" + "ab" * 32


def cells(project: Path, stack: str, unsafe: dict[str, dict[str, str]] | None = None) -> Matrix:
    workspace = Workspace(project, project / "unused")
    pins = read_pins(workspace, stack)
    return matrix(pins, read_images(workspace, pins), unsafe or {})


def ids(found: Matrix) -> list[str]:
    return [cell.id for cell in found.cells]


# --- the matrix


def test_the_cpu_stack_is_looked_at_on_its_processor(project: Path) -> None:
    assert ids(cells(project, "cpu")) == [
        "cpu-serving-amd64-static",
        "cpu-serving-amd64-default-ops",
        "cpu-serving-amd64-default-generate",
        "cpu-serving-amd64-tilelang-ops",
        "cpu-serving-amd64-tilelang-generate",
        "cpu-serving-amd64-generate",
        "cpu-serving-amd64-gates",
    ]


def test_the_fewest_cells_make_all_checks(project: Path) -> None:
    assert ids(cells(project, "cpu").fewest()) == ["cpu-serving-amd64-generate", "cpu-serving-amd64-gates"]
    found = cells(project, "dsv4-mhc", {"gfx942": {"tilelang": "it is wrong"}}).only(["static", "ops", "generate"])
    few = found.fewest()
    assert ids(few) == [
        "rocm-base-amd64-static",
        "rocm-serving-amd64-static",
        "rocm-serving-gfx942-default-generate",
        "rocm-serving-gfx950-generate",
    ]
    assert all(any(one == cell or one.covers(cell) for one in few.cells) for cell in found.cells)


def test_an_image_without_a_server_has_the_static_cell_alone(project: Path) -> None:
    found = cells(project, "dsv4-mhc")
    assert [cell.id for cell in found.cells if cell.image == "rocm-base"] == ["rocm-base-amd64-static"]
    assert {cell.arch for cell in found.cells if cell.gpu} == {"gfx942", "gfx950"}
    assert not any(cell.gpu for cell in found.cells if cell.level == "static")


def test_a_backend_that_is_wrong_on_a_gpu_is_left_out_there_with_the_reason(project: Path) -> None:
    found = cells(project, "dsv4-mhc", {"gfx942": {"tilelang": "it is wrong"}})
    assert {(cell.id, why) for cell, why in found.left_out} == {
        ("rocm-serving-gfx942-tilelang-ops", "it is wrong"),
        ("rocm-serving-gfx942-tilelang-generate", "it is wrong"),
        ("rocm-serving-gfx942-generate", "it is wrong"),
        ("rocm-serving-gfx942-gates", "it is wrong"),
    }
    assert "rocm-serving-gfx950-tilelang-generate" in ids(found)
    # What can be measured of the other setting is; what compares the two is skipped, and must not fail for it.
    (alone,) = [cell for cell in found.cells if cell.id == "rocm-serving-gfx942-default-gates"]
    assert (alone.backend, alone.level, alone.require) == ("aiter", "gates", "generate")
    with pytest.raises(UsageError, match="left out") as caught:
        find_cell([found], "rocm-serving-gfx942-tilelang-generate")
    assert caught.value.why == "it is wrong"


def test_where_both_backends_are_wrong_only_the_static_cells_are_left(project: Path) -> None:
    bad = {"tilelang": "one", "aiter": "other"}
    found = cells(project, "dsv4-mhc", {"gfx942": bad, "gfx950": bad})
    assert ids(found) == ["rocm-base-amd64-static", "rocm-serving-amd64-static"]


def test_the_advisories_of_the_real_pins_decide(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--root", str(project), "--state", str(tmp_path / "state")]
    assert run([*place, "-q", "ci", "matrix", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == 1
    assert "rocm-serving-gfx942-tilelang-generate" in [one["id"] for one in document["left_out"]]
    # The fork has no guard on gfx942; upstream's switch is the plugin's, which refuses TileLang there.
    for image, advisory in (
        ("rocm-serving", "tilelang-mhc-gfx942"),
        ("rocm-upstream-serving", "tilelang-plugin-gfx942"),
    ):
        reasons = [one["reason"] for one in document["left_out"] if one["image"] == image]
        assert len(reasons) == 4
        assert all(advisory in reason for reason in reasons)
    names = [one["id"] for one in document["matrix"]["include"]]
    assert len(names) == len(set(names))
    # As Kubernetes takes names and labels.
    assert all(re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name) for name in names)
    assert not (tmp_path / "state").exists()


def test_levels_are_picked_and_names_are_printed_one_a_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--root", str(project), "-q", "ci", "matrix", "cpu", "--level", "static", "--level", "gates"]) == 0
    assert capsys.readouterr().out.split() == ["cpu-serving-amd64-static", "cpu-serving-amd64-gates"]


def test_a_machine_runs_the_cells_of_its_own_gpu(tmp_path: Path) -> None:
    cell = Cell("s", "i", "gfx942", "default", "generate", gpu=True, seconds=61)
    assert not runs_here(cell, tmp_path)
    assert runs_here(replace(cell, gpu=False), tmp_path)
    (tmp_path / NODES / "1").mkdir(parents=True)
    (tmp_path / NODES / "1" / "properties").write_text(
        "simd_count 304\ngfx_target_version 90402\ndrm_render_minor 128\n"
    )
    assert runs_here(cell, tmp_path)
    assert not runs_here(replace(cell, arch="gfx950"), tmp_path)
    assert cell.minutes == 2


def test_a_cell_that_is_not_there_is_named_with_near_ones(project: Path) -> None:
    with pytest.raises(UsageError, match="no cell 'cpu-serving-amd64-statik'") as caught:
        find_cell([cells(project, "cpu")], "cpu-serving-amd64-statik")
    assert "cpu-serving-amd64-static" in caught.value.why


@pytest.mark.parametrize(
    "text", ["", "kiln/x:tag", "kiln/x", f"kiln/x@{DIGEST[:-1]}", f"kiln/X@{DIGEST}", f"x@{DIGEST}", f"h/x@{DIGEST}\n"]
)
def test_what_is_verified_in_a_cluster_is_named_by_its_digest(text: str) -> None:
    with pytest.raises(UsageError, match="not an image by its digest"):
        by_digest(text)
    assert by_digest(f"registry.example:5000/a/b@{DIGEST}")


# --- one cell


def test_a_cell_is_verified_in_the_words_of_verify(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heard: dict[str, Any] = {}
    monkeypatch.setattr(kiln.commands.verify.verify, "callback", lambda **words: heard.update(words))
    place = ["--root", str(project), "--state", str(tmp_path / "state"), "ci", "verify"]
    assert run([*place, "rocm-serving-gfx950-tilelang-generate", "--reports", str(tmp_path)]) == 0
    assert (heard["target"], heard["image_name"], heard["as_"]) == ("dsv4-mhc", "rocm-serving", "")
    assert (heard["backend"], heard["level"], heard["require"]) == ("tilelang", "generate", "generate")
    assert (heard["model"], heard["reports"], heard["sets"]) == ("tiny", tmp_path, ())
    reference = f"registry.example/kiln/x@{DIGEST}"
    assert run([*place, "rocm-base-amd64-static", "--image", reference]) == 0
    assert (heard["target"], heard["image_name"], heard["as_"]) == (reference, "", "dsv4-mhc/rocm-base")
    assert run([*place, "rocm-base-amd64-static", "--image", "registry.example/kiln/x:latest"]) == 2
    assert run([*place, "no-such-cell"]) == 2


def test_verify_takes_one_image_of_a_stack_and_no_other(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--root", str(project), "--state", str(tmp_path / "state"), "verify"]
    assert run([*place, "dsv4-mhc", "--image", "cpu-serving"]) == 2
    assert "one of: rocm-base, rocm-serving" in capsys.readouterr().err
    assert run([*place, f"registry.example/x@{DIGEST}", "--image", "rocm-base"]) == 2
    assert "--as STACK/IMAGE" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["verify", "cpu"], ["ci", "verify", "cpu-serving-amd64-static"]], ids=" ".join)
def test_verify_writes_the_reports_where_it_is_told_before_it_judges_them(
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
) -> None:
    path = project / "tests" / "golden" / "reports" / "failed.json"
    report = json.loads(path.read_text(encoding="utf-8"))

    image = SimpleNamespace(image=SimpleNamespace(name="cpu-serving"))

    class Ready:
        rendered, images = (image,), (None,)

    monkeypatch.setattr(kiln.commands.verify, "of_stack", lambda *_: Ready)
    monkeypatch.setattr(kiln.commands.verify, "look", lambda *_: Reported("kiln/x:1", DIGEST, "all", report, path))
    place = ["--root", str(project), "--state", str(tmp_path / "state"), *words]
    assert run([*place, "--reports", str(tmp_path / "reports"), "--json"]) == 61
    assert json.loads(capsys.readouterr().out) == [report]
    written = tmp_path / "reports" / f"{report['subject']['image']}.json"
    assert written.read_bytes() == path.read_bytes()


# --- the files


def test_the_committed_files_are_what_renders(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--root", str(project), "-q", "ci", "render", "--check"]) == 0
    assert run(["--root", str(project), "-q", "ci", "render", "cpu", "--check"]) == 0


def test_a_file_that_was_edited_is_missing_or_is_rendered_no_more_is_named(
    project_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--root", str(project_copy), "-q", "ci", "render"]
    assert run(place) == 0
    jobs = project_copy / "ci" / "jobs"
    assert os.access(jobs / "machine" / "cpu.sh", os.X_OK)
    (jobs / "machine" / "cpu.sh").write_text("exit 0\n")
    (jobs / "github" / "kiln-cpu.yml").unlink()
    stray = jobs / "kubernetes" / "cpu-checks" / "old.yaml"
    stray.write_text("gone\n")
    capsys.readouterr()
    assert run([*place, "--check"]) == 31
    said = capsys.readouterr().err
    assert "machine/cpu.sh\n" in said
    assert "github/kiln-cpu.yml\n" in said
    assert "kubernetes/cpu-checks/old.yaml (no longer rendered)" in said
    # Another stack's files are no business of this one's check, and are left alone.
    assert run([*place, "dsv4-mhc"]) == 0
    assert (jobs / "machine" / "cpu.sh").read_text() == "exit 0\n"
    assert run(place) == 0
    assert not stray.exists()
    assert run([*place, "--check"]) == 0


def test_a_cluster_gets_its_images_by_digest_in_another_folder(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--root", str(project), "-q", "ci", "render", "dsv4-mhc"]
    given = ["--image", f"rocm-serving=r.example/x@{DIGEST}", "--runner", f"r.example/runner@{DIGEST}", "--gpus", "4"]
    assert run([*place, *given]) == 2
    assert run([*place, *given, "--out", str(tmp_path)]) == 0
    folder = tmp_path / "kubernetes" / "dsv4-mhc-checks"
    said = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert f"image-rocm-serving=r.example/x@{DIGEST}" in said["configMapGenerator"][0]["literals"]
    assert said["images"] == [{"name": "kiln-runner", "newName": "r.example/runner", "digest": DIGEST}]
    job = yaml.safe_load((folder / "rocm-serving-gfx942-default-generate.yaml").read_text())
    assert job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"] == {"amd.com/gpu": 4}
    assert run([*place, "--out", str(tmp_path), "--image", f"cpu-serving=r.example/x@{DIGEST}"]) == 2
    assert run([*place, "--out", str(tmp_path), "--image", "rocm-serving=r.example/x:latest"]) == 2
    assert run([*place, "--out", str(tmp_path), "--check"]) == 2


@pytest.mark.parametrize(
    ("schema", "files"),
    [("vendor.github-workflows", GITHUB), ("vendor.buildkite", BUILDKITE)],
    ids=["github", "buildkite"],
)
def test_files_are_valid_by_their_systems_own_schema(schema: str, files: list[Path], tmp_path: Path) -> None:
    assert len(files) == len(Workspace(PROJECT, PROJECT / "unused").stacks())
    check = [str(BIN / "check-jsonschema"), "--builtin-schema", schema]
    done = subprocess.run([*check, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    broken = tmp_path / "broken.yml"
    broken.write_text(files[0].read_text().replace("  - label:", "  - lable:").replace("runs-on:", "runs-off:"))
    assert subprocess.run([*check, broken], capture_output=True, check=False).returncode == 1


@pytest.mark.parametrize("path", CLUSTER_JOBS, ids=lambda path: path.stem)
def test_jobs_are_valid_by_kubernetes_own_schema(path: Path) -> None:
    job = yaml.safe_load(path.read_text(encoding="utf-8"))
    version = kubernetes_validate.latest_version()
    kubernetes_validate.validate(job, version, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**job, "spec": {**job["spec"], "completion": 1}}, version, strict=True)


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=lambda path: path.parent.name)
def test_a_kustomization_names_every_job_of_its_folder_and_what_they_read(path: Path) -> None:
    said = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert sorted(said["resources"]) == sorted(one.name for one in path.parent.glob("*.yaml") if one != path)
    keys = {literal.partition("=")[0] for literal in said["configMapGenerator"][0]["literals"]}
    for name in said["resources"]:
        spec = yaml.safe_load((path.parent / name).read_text(encoding="utf-8"))["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        assert container["image"] in {one["name"] for one in said["images"]}
        read = {one["valueFrom"]["configMapKeyRef"]["key"] for one in container["env"] if "valueFrom" in one}
        assert read <= keys
        assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in spec["volumes"]}
    assert all(
        literal.endswith(NO_DIGEST) for literal in said["configMapGenerator"][0]["literals"] if "image-" in literal
    )


def test_gpus_are_asked_for_by_the_cells_that_need_them_alone() -> None:
    for path in CLUSTER_JOBS:
        spec = yaml.safe_load(path.read_text(encoding="utf-8"))["spec"]["template"]["spec"]
        limits = spec["containers"][0]["resources"].get("limits", {})
        on_gpu = "-gfx" in path.stem
        assert ("amd.com/gpu" in limits) == on_gpu
        assert ("io.kiln/arch" in spec["nodeSelector"]) == on_gpu


def test_only_what_has_nothing_to_do_with_the_image_is_tried_again() -> None:
    codes = sorted(cls.exit_code for cls in error_classes() if cls.transient)
    assert codes == [15, 20, 41, 74, 85]
    for path in BUILDKITE:
        for step in yaml.safe_load(path.read_text(encoding="utf-8"))["steps"]:
            if "key" in step:
                assert [rule["exit_status"] for rule in step["retry"]["automatic"]] == [-1, *codes]
    for path in CLUSTER_JOBS:
        rules = yaml.safe_load(path.read_text(encoding="utf-8"))["spec"]["podFailurePolicy"]["rules"]
        assert [rule["onExitCodes"]["values"] for rule in rules if rule["action"] == "FailJob"] == [codes]


def test_actions_are_pinned_by_a_whole_commit() -> None:
    used = [
        line.split("uses:")[1].split()[0]
        for path in GITHUB
        for line in path.read_text().splitlines()
        if "uses:" in line
    ]
    assert used
    assert [one for one in used if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", one)] == []


def test_publishing_waits_for_every_cell() -> None:
    for path in GITHUB:
        jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
        assert set(jobs["publish"]["needs"]) == set(jobs) - {"publish"}
        assert "always()" not in jobs["publish"]["if"]
    for path in BUILDKITE:
        steps = yaml.safe_load(path.read_text(encoding="utf-8"))["steps"]
        assert steps[-2] == "wait"
        assert steps[-1]["key"] == f"publish-{path.stem}"
        assert not any("soft_fail" in step or step.get("allow_dependency_failure") for step in steps if step != "wait")


def test_each_image_is_published_with_the_merged_report_of_all_its_cells() -> None:
    images = {
        "cpu": ["cpu-serving"],
        "dsv4-mhc": ["rocm-base", "rocm-serving"],
        "dsv4-mhc-upstream": ["rocm-upstream-base", "rocm-upstream-serving"],
    }
    merged, published = [], []
    for name, text in SHELL:
        stack = name.partition(".yml")[0].removeprefix("kiln-")
        for words in called(text):
            if words[:2] == ["report", "merge"]:
                merged.append((name, words[words.index("--image") + 1], words[words.index("--out") + 1]))
            if words[0] == "publish":
                given = [words[place + 1] for place, word in enumerate(words) if word == "--report"]
                assert given == [f"merged/{image}.json" for image in images[stack]]
                assert words[words.index("--require-cells") + 1] == "generate"
                published.append(name)
    assert len(published) == len(GITHUB) + len(BUILDKITE)
    assert all(out == f"merged/{image}.json" for _, image, out in merged)
    assert len(merged) == 2 * sum(map(len, images.values()))


def test_the_cells_are_merged_whatever_became_of_them() -> None:
    for path in GITHUB:
        job = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]["report"]
        assert job["if"] == "always() && needs.build.result == 'success'"
    for path in BUILDKITE:
        steps = yaml.safe_load(path.read_text(encoding="utf-8"))["steps"]
        assert steps[-4] == {"wait": None, "continue_on_failure": True}
        assert steps[-3]["key"] == f"report-{path.stem}"


def test_the_pipelines_of_all_stacks_fit_into_one_build() -> None:
    keys = [
        step["key"]
        for path in BUILDKITE
        for step in yaml.safe_load(path.read_text(encoding="utf-8"))["steps"]
        if "key" in step
    ]
    assert len(keys) == len(set(keys)) > 2


def shell() -> Iterator[tuple[str, str]]:
    """Every piece of shell in the files, as the system would run it, with where it stands."""
    for path in GITHUB:
        for name, job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].items():
            for number, step in enumerate(job["steps"]):
                if "run" in step:
                    # What GitHub fills in before it runs anything comes in through the environment here.
                    assert "${{" not in step["run"]
                    yield f"{path.name}-{name}-{number}", step["run"]
    for path in BUILDKITE:
        for step in yaml.safe_load(path.read_text(encoding="utf-8"))["steps"]:
            if "key" in step:
                yield f"{path.name}-{step['key']}", "\n".join(step["commands"]).replace("$$", "$")
    for path in CLUSTER_JOBS:
        spec = yaml.safe_load(path.read_text(encoding="utf-8"))["spec"]["template"]["spec"]
        yield path.stem, spec["containers"][0]["args"][0]
    for path in SCRIPTS:
        yield path.name, path.read_text(encoding="utf-8")


SHELL = list(shell())


def test_every_piece_of_shell_is_whole_and_shellcheck_finds_nothing(tmp_path: Path) -> None:
    for name, text in SHELL:
        script = tmp_path / f"{name}.sh"
        script.write_text(text if text.startswith("#!") else f"#!/bin/bash -eu\n{text}\n")
    scripts = sorted(tmp_path.glob("*.sh"))
    assert len(scripts) == len(SHELL)
    for script in scripts:
        done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    done = subprocess.run([BIN / "shellcheck", *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("name", "text"), SHELL, ids=[name for name, _ in SHELL])
def test_every_kiln_that_is_called_is_there_with_the_options_that_it_is_given(name: str, text: str) -> None:
    for words in called(text):
        assert unknown(words) == [], f"{name}: kiln {' '.join(words)}"


def test_the_calls_that_matter_are_found() -> None:
    seen = {" ".join(words[:2]) for _, text in SHELL for words in called(text)}
    assert {"ci matrix", "ci verify", "cache push", "engine down"} <= seen
    assert any(word.startswith("publish") for word in seen)


# --- the one-machine script, run


FAKE = """#!/bin/sh
echo "kiln $*" >> calls
case "$1 $2" in
"ci matrix") printf 'one\\ntwo\\nthree-gates\\n' ;;
"ci verify") mkdir -p "reports/$3"; echo '{}' > "reports/$3/x.json"; exit "$(cat "fails-$3" 2>/dev/null || echo 0)" ;;
"doctor "*) exit "$(cat fails-doctor 2>/dev/null || echo 0)" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder in which ``make tools`` makes a kiln that notes its words, and fails where a file says so."""
    (tmp_path / "Makefile").write_text(
        "tools:\n\t@mkdir -p .kiln/venv/bin && cp fake .kiln/venv/bin/kiln && chmod +x .kiln/venv/bin/kiln\n"
    )
    (tmp_path / "fake").write_text(FAKE)
    return tmp_path


def ended(checkout: Path, script: Path, **env: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        ["bash", script],
        env={"PATH": os.environ["PATH"], "KILN_CHECKOUT": str(checkout), **env},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, (checkout / "calls").read_text().splitlines()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_script_looks_with_every_cell_and_ends_well(checkout: Path, script: Path) -> None:
    code, calls = ended(checkout, script)
    assert code == 0
    stack = script.stem
    assert calls[:3] == [
        f"kiln doctor {stack} --for build --for verify-generate",
        f"kiln build {stack}",
        f"kiln ci matrix {stack} --here --fewest --level static --level generate",
    ]
    assert [call for call in calls if "ci verify" in call] == [
        f"kiln ci verify {cell} --reports reports/{cell}" for cell in ("one", "two", "three-gates")
    ]
    assert "kiln report reports/two/x.json --format junit --out reports/two/x.xml" in calls


def test_a_bad_cell_does_not_hide_the_others_and_its_code_is_the_end(checkout: Path) -> None:
    (checkout / "fails-one").write_text("61")
    (checkout / "fails-two").write_text("62")
    code, calls = ended(checkout, SCRIPTS[0])
    assert code == 61
    assert sum("ci verify" in call for call in calls) == 3
    assert sum("report" in call.split()[1] for call in calls) == 3


def test_a_machine_that_lacks_something_builds_nothing(checkout: Path) -> None:
    (checkout / "fails-doctor").write_text("42")
    code, calls = ended(checkout, SCRIPTS[0])
    assert code == 42
    assert len(calls) == 1


def test_the_gates_get_the_model_and_nothing_else_does(checkout: Path) -> None:
    _, calls = ended(checkout, SCRIPTS[0], KILN_GATES="1", KILN_MODEL="/a b", KILN_DATA="/d")
    assert any(call.endswith("--level generate --level gates") for call in calls)
    assert [call for call in calls if "--model" in call] == [
        "kiln ci verify three-gates --reports reports/three-gates --model /a b --data /d"
    ]
