"""Which tests may not run beside each other when `make test` shares them among workers (tests/conftest.py)."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.conftest import CHECKOUT, NEITHER, PROJECT, group_of


@pytest.mark.parametrize(
    ("file", "group"),
    [
        ("e2e/test_cpu_image.py", "checkout"),
        ("rehearsal/test_rehearsal.py", "checkout"),
        ("integration/test_defects.py", "checkout"),
        ("integration/test_build.py", "toy"),
        ("integration/release/test_publish.py", "toy"),
        ("integration/test_page.py", "integration/test_page"),
        ("unit/test_store.py", "unit/test_store"),
    ],
)
def test_tests_that_share_a_state_folder_are_one_group(file: str, group: str) -> None:
    assert group_of(PROJECT / "tests" / file) == group


def test_every_name_that_is_told_apart_is_there() -> None:
    assert all(list((PROJECT / "tests").rglob(f"{name}*")) for name in CHECKOUT | NEITHER)


def test_a_group_is_all_on_one_worker() -> None:
    words = ["-v", "-n", "2", "--dist", "loadscope", "-p", "no:cacheprovider"]
    files = ["tests/unit/test_console.py", "tests/unit/test_stages.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, *files],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    ran = re.findall(r"^\[(gw\d)\] .*PASSED (\S+)::", done.stdout, re.MULTILINE)
    assert len(ran) > 8
    assert len(set(ran)) == len(files)
