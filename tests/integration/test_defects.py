"""Seeded defects: a layer on a good image with one fault in it, and the check that must name it; and clean variants that no check may blame."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass

import pytest

from tests.integration.conftest import Project

pytestmark = pytest.mark.engine
P = "/usr/local/lib/python3.11/dist-packages"
RIGHT = 'ENTRYPOINT ["standin-serve"]'


@dataclass(frozen=True)
class Fault:
    """What is done to the image (in a shell inside, or to its configuration), and which check must say which words."""

    name: str
    check: str
    words: str
    shell: str = "true"
    change: str = ""


FAULTS = (
    Fault("a changed file", "packages.wheels", "idna/core.py", f"echo '# changed' >> {P}/idna/core.py"),
    Fault("a missing file", "packages.wheels", "idna/core.py", f"rm {P}/idna/core.py"),
    Fault("a file of nobody's", "packages.wheels", "extra.py", f"echo 'x = 1' > {P}/idna/extra.py"),
    Fault("a distribution without its metadata", "packages.wheels", "idna", f"rm -r {P}/idna-*.dist-info"),
    Fault("another version", "packages.wheels", "idna", f"sed -i 's/^Version: .*/Version: 0.1/' {P}/idna-*/METADATA"),
    Fault(
        "a distribution twice",
        "packages.wheels",
        "idna: installed more than once",
        f"cp -r {P}/idna-*.dist-info {P}/idna-0.1.dist-info",
    ),
    Fault(
        "a distribution too much",
        "packages.wheels",
        "surplus",
        f"mkdir {P}/surplus-1.dist-info; printf 'Metadata-Version: 2.1\\nName: surplus\\nVersion: 1\\n' > {P}/surplus-1.dist-info/METADATA",
    ),
    Fault(
        "an editable install",
        "packages.wheels",
        "editable",
        f'''printf '{{"url": "file:///src", "dir_info": {{"editable": true}}}}' > "$(echo {P}/idna-*.dist-info)/direct_url.json"''',
    ),
    Fault(
        "an unmet requirement",
        "packages.requirements",
        "no-such-thing",
        f"sed -i '/^Version/a Requires-Dist: no-such-thing>=2' {P}/packaging-*/METADATA",
    ),
    Fault(
        "a requirement of another version",
        "packages.requirements",
        "idna",
        f"sed -i '/^Version/a Requires-Dist: idna>=99' {P}/packaging-*/METADATA",
    ),
    Fault(
        "a cut library",
        "libraries.resolve",
        "cut.so",
        f"head -c 3000 /usr/lib/x86_64-linux-gnu/libexpat.so.1 > {P}/idna/cut.so",
    ),
    Fault(
        "a library whose library is gone",
        "libraries.resolve",
        "libq.so.6",
        f"sed 's/libc.so.6/libq.so.6/' /usr/lib/x86_64-linux-gnu/libexpat.so.1 > {P}/idna/lacks.so",
    ),
    Fault(
        "a setuid program", "files.clean", "mine", "cp /bin/true /usr/local/bin/mine; chmod 4755 /usr/local/bin/mine"
    ),
    Fault(
        "a setgid program", "files.clean", "mine", "cp /bin/true /usr/local/bin/mine; chmod 2755 /usr/local/bin/mine"
    ),
    Fault("a world-writable file", "files.clean", "/etc/open", "touch /etc/open; chmod 666 /etc/open"),
    Fault("uv's lock", "files.clean", "/usr/local/.lock", "touch /usr/local/.lock; chmod 666 /usr/local/.lock"),
    Fault("a world-writable folder", "files.clean", "/opt/open", "mkdir /opt/open; chmod 777 /opt/open"),
    Fault("a netrc", "files.clean", ".netrc", "echo 'machine a login b password c' > ~/.netrc"),
    Fault(
        "a private key",
        "files.clean",
        "id_ed25519",
        "mkdir -p ~/.ssh; echo '-----BEGIN OPENSSH PRIVATE KEY-----' > ~/.ssh/id_ed25519",
    ),
    Fault("a pip cache", "files.clean", ".cache", "mkdir -p ~/.cache/pip/http; echo x > ~/.cache/pip/http/a"),
    Fault(
        "a proxy of apt's",
        "files.clean",
        "99proxy",
        "mkdir -p /etc/apt/apt.conf.d; echo 'Acquire::http::Proxy \"http://proxy:3128\";' > /etc/apt/apt.conf.d/99proxy",
    ),
    Fault("a log of the build", "files.clean", "/tmp/build.log", "echo x > /tmp/build.log"),
    Fault("a proxy for everything", "files.clean", "http_proxy", change="ENV http_proxy=http://proxy:3128"),
    Fault("a token", "files.clean", "HF_TOKEN", change="ENV HF_TOKEN=hf_abcdefghijklmnop"),
    Fault(
        "another version of a package",
        "packages.debian",
        "expected",
        "sed -i '0,/^Version: /s/^Version: .*/&+other/' /var/lib/dpkg/status",
    ),
    Fault(
        "a package too much",
        "packages.debian",
        "surplus",
        "printf '\\nPackage: surplus\\nStatus: install ok installed\\nVersion: 1\\nArchitecture: all\\nMaintainer: a\\nDescription: b\\n' >> /var/lib/dpkg/status",
    ),
    Fault("no SBOM", "image.sbom", "is missing", "rm /app/sbom.cdx.json"),
    Fault("another SBOM", "image.sbom", "to the byte", "sed -i 's/idna/idnb/' /app/sbom.cdx.json"),
    Fault(
        "a distribution that the SBOM does not list",
        "image.sbom",
        "distribution sneaked",
        f"mkdir {P}/sneaked-1.dist-info; printf 'Name: sneaked\\nVersion: 1\\n' > {P}/sneaked-1.dist-info/METADATA",
    ),
    Fault("a version of nothing", "image.sbom", "TORCH_VERSION", "echo 'TORCH_VERSION: 1' >> /app/versions.txt"),
    Fault("no provenance", "image.provenance", "provenance.json is missing", "rm /app/provenance.json"),
    Fault(
        "other versions than the labels have",
        "image.provenance",
        "the label of small",
        "sed -i 's/.version.: ./&9/' /app/provenance.json",
    ),
    Fault("another lock's label", "image.labels", "io.kiln.lock.sha256", change="LABEL io.kiln.lock.sha256=0"),
    Fault("a label too much", "image.labels", "not expected", change="LABEL maintainer=somebody"),
    Fault("another entry point", "image.config", "entry point", change='ENTRYPOINT ["sh"]'),
    Fault("another user", "image.config", "user", change="USER 1000:1000"),
    Fault("another folder", "image.config", "folder", change="WORKDIR /opt"),
    Fault("another variable", "image.config", "TOY", change="ENV TOY=2"),
    Fault("a variable too much", "image.config", "MORE", change="ENV MORE=1"),
)

CLEAN = {
    "nothing changed": "true",
    "a layer with notes": "mkdir -p /opt/notes; echo 'read me' > /opt/notes/README",
    "other times": f"touch -d 2020-01-01 {P}/idna/core.py",
    "bytecode": f"python3 -m compileall -q {P}/idna",
    "a link within": "ln -s /opt /srv/opt",
    "an empty log": ": > /var/log/lastlog",
    "a user": "echo 'server:x:1000:1000::/nonexistent:/usr/sbin/nologin' >> /etc/passwd",
}


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


def looked_at(project: Project, shell: str, change: str) -> tuple[int, dict[str, dict[str, str]], str]:
    """Lay the change on the image, have Kiln take the result for the image it built, and verify it."""
    (record,) = (project.state / "builds").glob("**/*.json")
    original = record.read_text(encoding="utf-8")
    built = json.loads(original)
    container = docker(project, "create", "--network=none", "--entrypoint=sh", built["reference"], "-ec", shell)
    try:
        docker(project, "start", "--attach", container)
        changes = [word for one in (RIGHT, change) if one for word in ("--change", one)]
        docker(project, "commit", *changes, container, "kiln-defect:1")
        inspected = json.loads(docker(project, "image", "inspect", "kiln-defect:1"))[0]
        digest = inspected.get("Descriptor", {}).get("digest") or inspected["RepoDigests"][0].partition("@")[2]
        record.write_text(json.dumps({**built, "reference": "kiln-defect:1", "digest": digest}), encoding="utf-8")
        done = project.kiln("--json", "verify", "toy", "--level", "static")
    finally:
        record.write_text(original, encoding="utf-8")
        docker(project, "rm", "--force", container)
        subprocess.run(
            ["docker", "rmi", "--force", "kiln-defect:1"], env=project.environment, capture_output=True, check=False
        )
    checks = {check["id"]: check for check in json.loads(done.out)[0]["checks"]} if done.out else {}
    return done.code, checks, done.err


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_defect_is_caught_by_the_check_that_is_there_for_it(good: Project, fault: Fault) -> None:
    code, checks, err = looked_at(good, fault.shell, fault.change)
    assert code == 61, err
    assert checks[fault.check]["status"] == "fail", checks[fault.check]
    assert fault.words in checks[fault.check]["summary"]
    assert f"{fault.check}: " in err


@pytest.mark.parametrize("shell", CLEAN.values(), ids=CLEAN.keys())
def test_a_clean_variant_is_not_blamed(good: Project, shell: str) -> None:
    code, checks, err = looked_at(good, shell, "")
    assert code == 0, err
    assert "fail" not in {check["status"] for check in checks.values()}
    assert checks["packages.wheels"]["status"] == "pass"
