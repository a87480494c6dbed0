"""The tool environment: killed half way or made twice at a time, it comes out whole. A small project with a wheel of its own stands for the real one."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "ci" / "make-venv"
PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n[project]\nname = "mine"\nversion = "1"\n'
# Builds the project's own wheel; where the test says so it stops half way and says that it is there.
BACKEND = """
import time, zipfile
from pathlib import Path

def build_editable(folder, config_settings=None, metadata_directory=None):
    Path("half-way").write_text("")
    while Path("stop-half-way").exists():
        time.sleep(0.02)
    with zipfile.ZipFile(Path(folder) / "mine-1-py3-none-any.whl", "w") as wheel:
        for name, text in {wheel_files}.items():
            wheel.writestr(name, text)
    return "mine-1-py3-none-any.whl"
"""
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def files_of(name: str) -> dict[str, str]:
    """What a wheel of one module is made of."""
    files = {
        f"{name}.py": "VALUE = 1\n",
        f"{name}-1.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n",
        f"{name}-1.dist-info/WHEEL": WHEEL,
    }
    lines = [
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip('=')},{len(text)}"
        for path, text in files.items()
    ]
    return {**files, f"{name}-1.dist-info/RECORD": "\n".join([*lines, f"{name}-1.dist-info/RECORD,,", ""])}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    (root / "pyproject.toml").write_text(PYPROJECT)
    (root / "backend.py").write_text(BACKEND.replace("{wheel_files}", repr(files_of("mine"))))
    wheel = root / "wheels" / "other-1-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files_of("other").items():
            archive.writestr(name, text)
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (root / "requirements.txt").write_text(f"other==1 --hash=sha256:{sha256}\n")
    return root


Start = Callable[[], "subprocess.Popen[str]"]


@pytest.fixture
def start(project: Path) -> Iterator[Start]:
    """Start the real script; each run has a process group of its own, and is gone at the end."""
    running: list[subprocess.Popen[str]] = []
    places = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(project / "wheels"), "PYTHON": sys.executable}

    def run() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [SCRIPT, "venv", "requirements.txt"],
            cwd=project,
            env={**os.environ, **places},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        running.append(process)
        return process

    yield run
    (project / "stop-half-way").unlink(missing_ok=True)
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 240
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.02)


def half_way(project: Path, start: Start) -> subprocess.Popen[str]:
    """A run that stands still where its pip has the one wheel installed and the other not."""
    (project / "stop-half-way").touch()
    (project / "half-way").unlink(missing_ok=True)
    process = start()
    wait_for(project / "half-way")
    return process


def is_whole(project: Path) -> bool:
    words = "import mine, other, pip; assert mine.VALUE == other.VALUE == 1"
    return subprocess.run([project / "venv" / "bin" / "python", "-c", words], check=False).returncode == 0


def test_what_a_killed_run_leaves_is_no_environment_and_the_next_run_makes_one(project: Path, start: Start) -> None:
    killed = half_way(project, start)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (project / "venv" / ".made-from").exists()
    (project / "stop-half-way").unlink()
    assert start().wait() == 0
    assert is_whole(project)
    # And what is whole is left alone.
    made = (project / "venv" / "pyvenv.cfg").stat().st_ino
    again = start()
    assert again.communicate()[1] == ""
    assert (project / "venv" / "pyvenv.cfg").stat().st_ino == made


def test_a_pip_that_outlives_its_killed_parent_is_waited_for(project: Path, start: Start) -> None:
    killed = half_way(project, start)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    second = start()
    assert second.stderr is not None
    assert "waiting for it" in second.stderr.readline()
    (project / "half-way").unlink()
    (project / "stop-half-way").unlink()
    assert second.wait() == 0
    assert is_whole(project)


def test_of_two_runs_at_the_same_time_one_makes_it_and_the_other_waits(project: Path, start: Start) -> None:
    first = half_way(project, start)
    second = start()
    assert second.stderr is not None
    assert "waiting for it" in second.stderr.readline()
    (project / "half-way").unlink()
    (project / "stop-half-way").unlink()
    assert (first.wait(), second.wait()) == (0, 0)
    assert not (project / "half-way").exists(), "the second run made it once more"
    assert is_whole(project)


def test_an_environment_that_is_being_replaced_does_not_pass_for_a_whole_one(project: Path, start: Start) -> None:
    assert start().wait() == 0
    stamp = (project / "venv" / ".made-from").read_text()
    before = (project / "requirements.txt").read_text()
    (project / "requirements.txt").write_text(before + "# another\n")
    killed = half_way(project, start)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    (project / "requirements.txt").write_text(before)
    assert not (project / "venv" / ".made-from").exists()
    (project / "stop-half-way").unlink()
    assert start().wait() == 0
    assert (project / "venv" / ".made-from").read_text() == stamp
    assert is_whole(project)
