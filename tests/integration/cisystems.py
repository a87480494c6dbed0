"""What a CI system does with a rendered job file, as far as it is more than the job's own shell: the checkout, what one job hands to the next, conditions.

The commands are taken out of the file and run by bash as that system runs them. What stands for the system is here: GitHub's expressions, artifacts and files
that steps write to; Buildkite's agent, a program that keeps annotations and artifacts in a folder; the mounts of a Kubernetes Job, as folders.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tests.integration.conftest import REPOSITORY
from tests.integration.registry import Registry

# Nobody's own settings, and no make around this one.
_NOT_A_MACHINES = ("KILN_", "DOCKER_HOST", "MAKE", "MFLAGS", "BUILDKITE", "GITHUB", "PYTEST")
_AGENT = """#!/bin/sh
set -eu
case "$1 ${2:-}" in
"annotate "*) { echo "$*"; cat; } >> "$AGENT_FOLDER/annotations" ;;
"artifact download") cp -R "$ARTIFACTS/." . ;;
*) echo "the agent has no $1" >&2; exit 1 ;;
esac
"""


@dataclass
class Ended:
    """How a job ended: its exit code, and what it printed."""

    code: int
    out: str


@dataclass
class Workspace:
    """The clone that jobs run in, one after another, each as on a machine of its own: ``fresh`` leaves what is committed, and Kiln's tools alone, which the next
    job would make the same again from hashes. ``store`` is a store with the inputs that the next job's machine has, if it has any.
    """

    folder: Path
    environment: dict[str, str]
    artifacts: Path
    store: Path | None = None

    def fresh(self) -> None:
        """As a checkout leaves it."""
        if (self.folder / ".kiln" / "venv" / ".made-from").exists():
            assert self.bash(".kiln/venv/bin/kiln --quiet engine down", {}).code == 0
        assert self.bash("git clean -ffdxq -e .kiln/venv", {}).code == 0
        if self.store:
            words = ["cp", "--archive", "--reflink=auto", self.store, self.folder / ".kiln" / "store"]
            (self.folder / ".kiln").mkdir(exist_ok=True)
            subprocess.run(words, check=True)
            self.store = None

    def bash(
        self,
        script: str,
        env: Mapping[str, str],
        *,
        options: str = "-e",
        cwd: Path | None = None,
        words: Sequence[str] = (),
    ) -> Ended:
        """Run a script as a step of a job."""
        plain = {key: value for key, value in os.environ.items() if not key.startswith(_NOT_A_MACHINES)}
        done = subprocess.run(
            ["bash", options, "-c", script, "bash", *words],
            cwd=cwd or self.folder,
            env={**plain, **self.environment, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1200,
            check=False,
        )
        assert "Traceback" not in done.stdout, done.stdout
        return Ended(done.returncode, done.stdout)

    def kiln(self, *words: str) -> Ended:
        """The clone's own kiln."""
        return self.bash('exec .kiln/venv/bin/kiln "$@"', {}, words=words)

    def keep(self, found: Path, name: str = "") -> None:
        """Take files out of a job, for those that come after it."""
        if found.is_dir():
            shutil.copytree(found, self.artifacts / name, dirs_exist_ok=True)
        elif found.is_file():
            target = self.artifacts / name / found.relative_to(self.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(found, target)


def commit(root: Path, message: str) -> str:
    """Commit everything in a folder; returns the commit's id."""
    who = {f"GIT_{role}_{what}": "somebody" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    run = partial(subprocess.run, cwd=root, check=True, capture_output=True, text=True, env={**os.environ, **who})
    run(["git", "init", "--quiet", "--initial-branch=main"])
    run(["git", "add", "--all"])
    run(["git", "commit", "--quiet", f"--message={message}"])
    return str(run(["git", "rev-parse", "HEAD"]).stdout.strip())


def copy_tracked(root: Path) -> None:
    """What is tracked in this checkout, as it lies there, in a folder of its own."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (REPOSITORY / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, root / name)


def environment_of(registry: Registry, keys: Path) -> dict[str, str]:
    """What is set for a pipeline that publishes."""
    return {
        "KILN_CACHE": f"{registry.host}/team/cache",
        "KILN_PUBLISH_TO": f"{registry.host}/kiln",
        "KILN_SIGN_KEY": str(keys / "cosign.key"),
        "COSIGN_PASSWORD": "",
    }


@dataclass
class GitHub:
    """A workflow file and the jobs of it that were run."""

    workspace: Workspace
    stack: str
    summary: str = ""
    _paths: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        file = self.workspace.folder / "ci" / "jobs" / "github" / f"kiln-{self.stack}.yml"
        self.document: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
        # What stands between ${{ and }}, and what it is.
        given = self.workspace.environment
        self.known = {f"vars.{name}": value for name, value in given.items()}
        self.known["secrets.COSIGN_PASSWORD"] = given["COSIGN_PASSWORD"]
        # A job sees of it what the file hands on.
        self.workspace.environment = {name: given[name] for name in given.keys() & {"DOCKER_HOST"}}
        self.known["inputs.gates && '--level gates' || ''"] = ""
        self.known |= {f"matrix.own_model && vars.KILN_{what} || ''": "" for what in ("MODEL", "DATA")}

    def filled(self, text: object) -> str:
        """With every expression as it is here; one that is not known is an error."""
        return re.sub(r"\$\{\{ *(.*?) *\}\}", lambda match: self.known[match[1]], str(text))

    def run(self, name: str, **matrix: object) -> Ended:
        """Run a job: its steps until one fails, and after that those that run always."""
        job = self.document["jobs"][name]
        self.known |= {f"matrix.{key}": str(value) for key, value in matrix.items()}
        self.workspace.fresh()
        self._paths, ended = [], Ended(0, "")
        for step in job["steps"]:
            if ended.code and step.get("if") != "always()":
                continue
            found = self._step(step, {**self.document["env"], **job.get("env", {}), **step.get("env", {})})
            ended = Ended(ended.code or found.code, ended.out + found.out)
        return ended

    def _step(self, step: dict[str, Any], env: Mapping[str, object]) -> Ended:
        if "run" not in step:
            self._action(step)
            return Ended(0, "")
        files = {name: self.workspace.folder / ".git" / name.lower() for name in ("GITHUB_OUTPUT", "GITHUB_PATH")}
        files["GITHUB_STEP_SUMMARY"] = self.workspace.folder / ".git" / "summary"
        for path in files.values():
            path.write_text("")
        given = {key: self.filled(value) for key, value in env.items()} | {
            key: str(path) for key, path in files.items()
        }
        paths = ":".join([*reversed(self._paths), os.environ["PATH"]])
        ended = self.workspace.bash(step["run"], {**given, "CI": "true", "PATH": paths})
        self.summary += files["GITHUB_STEP_SUMMARY"].read_text(encoding="utf-8")
        self._paths += files["GITHUB_PATH"].read_text(encoding="utf-8").split()
        for key, value in re.findall(
            r"^(\w+)<<END\n(.*?)\nEND$", files["GITHUB_OUTPUT"].read_text(), re.DOTALL | re.MULTILINE
        ):
            self.known[f"needs.build.outputs.{key}"] = value
        return ended

    def _action(self, step: dict[str, Any]) -> None:
        given, folder = step.get("with", {}), self.workspace.folder
        action = step["uses"].partition("@")[0]
        if action == "actions/upload-artifact":
            self.workspace.keep(folder / given["path"], self.filled(given["name"]))
        elif action == "actions/download-artifact":
            for one in self.workspace.artifacts.glob(given.get("pattern") or given["name"]):
                shutil.copytree(one, folder / given["path"], dirs_exist_ok=True)
        else:
            assert action == "actions/checkout", action


@dataclass
class Buildkite:
    """A pipeline file; its steps are run by their keys."""

    workspace: Workspace
    stack: str

    def __post_init__(self) -> None:
        file = self.workspace.folder / "ci" / "jobs" / "buildkite" / f"{self.stack}.yml"
        steps = yaml.safe_load(file.read_text(encoding="utf-8"))["steps"]
        self.steps: dict[str, Any] = {step["key"]: step for step in steps if "key" in step}
        self.agent = self.workspace.folder.parent / "agent"
        self.agent.mkdir(exist_ok=True)
        (self.agent / "buildkite-agent").write_text(_AGENT)
        (self.agent / "buildkite-agent").chmod(0o755)

    @property
    def annotations(self) -> str:
        """What steps said with ``buildkite-agent annotate``."""
        return (self.agent / "annotations").read_text(encoding="utf-8")

    def run(self, key: str) -> Ended:
        """Run a step's commands, as the agent joins them, and keep its artifacts."""
        self.workspace.fresh()
        step = self.steps[key]
        env = {"BUILDKITE": "true", "CI": "true", "AGENT_FOLDER": str(self.agent)}
        env["ARTIFACTS"] = str(self.workspace.artifacts)
        env["PATH"] = f"{self.agent}:{os.environ['PATH']}"
        # `pipeline upload` takes $$ for a dollar that is the shell's.
        ended = self.workspace.bash("\n".join(step["commands"]).replace("$$", "$"), env)
        for pattern in step.get("artifact_paths", []):
            for path in self.workspace.folder.glob(pattern):
                self.workspace.keep(path)
        return ended

    def tried_again(self, key: str, code: int) -> bool:
        """Whether the pipeline has a step that ended so run once more."""
        return code in [rule["exit_status"] for rule in self.steps[key]["retry"]["automatic"]]


def run_job(workspace: Workspace, file: Path, values: Mapping[str, str], volumes: Mapping[str, Path]) -> Ended:
    """Run the container of a Kubernetes Job here: ``values`` are the config map's, and a folder stands for each volume, wherever it is mounted."""
    spec = yaml.safe_load(file.read_text(encoding="utf-8"))["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    mounts = {one["mountPath"]: str(volumes[one["name"]] / one.get("subPath", "")) for one in container["volumeMounts"]}

    def there(text: str) -> str:
        return re.sub(r"(?<![\w/.])/(kiln|reports)\b", lambda match: mounts[match[0]], text)

    for folder in mounts.values():
        Path(folder).mkdir(parents=True, exist_ok=True)
    env = {
        one["name"]: values[one["valueFrom"]["configMapKeyRef"]["key"]] if "valueFrom" in one else there(one["value"])
        for one in container["env"]
    }
    assert container["command"] == ["bash", "-euc"]
    place = Path(there(container["workingDir"]))
    return workspace.bash(there(container["args"][0]), env, options="-eu", cwd=place)
