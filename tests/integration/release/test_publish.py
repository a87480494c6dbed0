"""Publishing to a real registry and pulling from it: cosign signs and verifies, and whatever was tampered with is refused by name."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from kiln.cosign import Cosign
from kiln.errors import BeingPublishedError
from kiln.publishlock import TAG, publishing
from kiln.registryclient import Manifest, Repository
from kiln.releases import read_releases
from kiln.workspace import Workspace
from tests.conftest import FULL
from tests.integration.conftest import Project
from tests.integration.registry import Registry
from tests.integration.release.conftest import Home, make_keys, no_image, publish, repository
from tests.integration.release.proxy import proxy_of

pytestmark = pytest.mark.engine


def overwrite(registry: Registry, digest: str, *, at: int = -1) -> None:
    """Other bytes of the same length under a blob's name, as somebody does who can write to the registry's disk."""
    path = registry.blob_file(digest)
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


def attachment(registry: Registry, home: Home, suffix: str) -> Manifest:
    return repository(registry).manifest(f"{home.digest.replace(':', '-')}.{suffix}")


def test_a_release_is_pulled_by_a_machine_that_has_nothing_and_runs(machine: Project, home: Home) -> None:
    done = machine.kiln("--json", "pull", "toy")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["digest"] == home.digest
    assert found["release"]["tag"] == home.tag
    assert found["signed"]["checked"]["failed"] == 0
    assert "looking at what is signed" in done.err
    ran = subprocess.run(
        ["docker", "run", "--rm", "--network=none", "--entrypoint=python3", found["place"], "-c", "import idna"],
        env=machine.environment,
        check=False,
        capture_output=True,
    )
    assert ran.returncode == 0, ran.stderr
    told = machine.kiln("pull", "toy")
    assert told.code == 0
    for word in ("checks      ", "passed up to generate, on a processor", "signed      signature", "components  "):
        assert word in told.out
    by_name = machine.kiln("pull", found["place"])
    assert by_name.code == 0, by_name.err
    assert f"release {home.tag}" in by_name.out


def test_cosign_itself_verifies_what_was_published(registry: Registry, home: Home, cosign: Cosign) -> None:
    place = f"{registry.host}/kiln/toy@{home.digest}"
    trusted = ["--key", str(home.keys / "cosign.pub"), "--insecure-ignore-tlog=true"]
    done = subprocess.run([cosign.program, "verify", *trusted, place], capture_output=True, text=True, check=True)
    assert home.digest in done.stdout
    found = {}
    for kind in ("cyclonedx", "slsaprovenance1", "urn:io.kiln:verification-report:v1"):
        done = subprocess.run(
            [cosign.program, "verify-attestation", *trusted, "--type", kind, place],
            capture_output=True,
            text=True,
            check=True,
        )
        statement = json.loads(base64.b64decode(json.loads(done.stdout)["payload"]))
        assert statement["subject"][0]["digest"]["sha256"] == home.digest.removeprefix("sha256:")
        found[statement["predicateType"]] = statement["predicate"]
    assert found["https://cyclonedx.org/bom"]["bomFormat"] == "CycloneDX"
    made = found["https://slsa.dev/provenance/v1"]
    assert made["buildDefinition"]["externalParameters"]["stack"] == "toy"
    report = found["urn:io.kiln:verification-report:v1"]
    assert report["subject"]["manifest_digest"] == home.digest


def test_only_version_tags_and_attachments_have_names(registry: Registry, home: Home) -> None:
    attached = {f"{home.digest.replace(':', '-')}.{suffix}" for suffix in ("sig", "att")}
    assert set(repository(registry).tags()) == {home.tag, *attached, TAG}


def test_publishing_again_sends_and_signs_nothing(publisher: Project, registry: Registry, home: Home) -> None:
    before, record = set(registry.folder.rglob("data")), (publisher.root / "releases" / "toy.toml").read_bytes()
    done = publish(publisher, registry.host, home.report, home.keys)
    assert done.code == 0, done.err
    assert "signed and attested already" in done.err
    assert "blobs to send" not in done.err
    # The lock's own tag is written: to take it and to give it back.
    new = set(registry.folder.rglob("data")) - before
    assert all(b"io.kiln.publisher" in path.read_bytes() for path in new)
    assert (publisher.root / "releases" / "toy.toml").read_bytes() == record


def test_moving_tags_move_together_or_not_at_all(publisher: Project, registry: Registry, home: Home) -> None:
    there = repository(registry)
    older = Manifest(b'{"schemaVersion":2,"mediaType":"%s","config":%s,"layers":[]}' % manifest_parts(there), OCI)
    there.put_manifest("latest", older)
    refused = publish(publisher, registry.host, home.report, home.keys, "--tag", "latest")
    assert refused.code == 75, refused.err
    assert "points to an image that this project did not publish" in refused.err
    with proxy_of(registry.host) as proxy:
        proxy.break_next(r"PUT /v2/kiln/toy/manifests/nightly$", "500", times=99)
        point_to(publisher, proxy.host, registry)
        words = ("--tag", "latest", "--tag", "nightly", "--backwards")
        failed = publish(publisher, proxy.host, home.report, home.keys, *words)
    assert failed.code == 15, failed.err
    assert there.digest_of("latest") == older.digest
    assert there.digest_of("nightly") is None
    assert there.digest_of(f"was-latest-{older.digest[7:19]}") == older.digest
    moved = publish(
        publisher, registry.host, home.report, home.keys, "--tag", "latest", "--tag", "nightly", "--backwards"
    )
    assert moved.code == 0, moved.err
    assert there.digest_of("latest") == there.digest_of("nightly") == home.digest


OCI = "application/vnd.oci.image.manifest.v1+json"


def manifest_parts(there: Repository) -> tuple[bytes, bytes]:
    digest = there.upload(b"{}")
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": 2}
    return OCI.encode(), json.dumps(config).encode()


def point_to(project: Project, host: str, registry: Registry) -> None:
    path = project.root / "releases" / "toy.toml"
    path.write_text(path.read_text().replace(registry.host, host))


def test_a_version_tag_that_is_another_image_is_not_overwritten(
    publisher: Project, registry: Registry, home: Home
) -> None:
    there = repository(registry)
    other = Manifest(b'{"schemaVersion":2,"mediaType":"%s","config":%s,"layers":[]}' % manifest_parts(there), OCI)
    there.put_manifest(home.tag, other)
    done = publish(publisher, registry.host, home.report, home.keys)
    assert done.code == 73, done.err
    assert there.digest_of(home.tag) == other.digest


def test_a_moving_tag_needs_every_required_check(publisher: Project, registry: Registry, home: Home) -> None:
    report = json.loads(home.report.read_text())
    for check in report["checks"]:
        if check["id"] == "serve.agree":
            check["status"] = "skip"
    report["summary"] |= {"pass": report["summary"]["pass"] - 1, "skip": report["summary"]["skip"] + 1}
    skipped = publisher.root / "skipped.json"
    skipped.write_text(json.dumps(report))
    done = publish(publisher, registry.host, skipped, home.keys, "--tag", "latest")
    assert done.code == 75, done.err
    assert "serve.agree: skip" in done.err
    assert repository(registry).digest_of("latest") is None


def test_a_tampered_layer_is_refused(machine: Project, registry: Registry, home: Home) -> None:
    manifest = repository(registry).manifest(home.digest).table
    overwrite(registry, manifest["layers"][-2]["digest"])
    done = machine.kiln("pull", "toy")
    assert done.code == 65, done.err
    assert "a layer of" in done.err
    assert no_image(machine)


def test_a_tampered_manifest_is_refused(machine: Project, registry: Registry, home: Home) -> None:
    path = registry.blob_file(home.digest)
    path.write_bytes(path.read_bytes().replace(b"zstd", b"gzip"))
    done = machine.kiln("pull", "toy")
    assert done.code == 21, done.err
    assert "the manifest" in done.err
    assert no_image(machine)


def test_a_signature_of_another_key_is_refused(
    machine: Project, registry: Registry, home: Home, cosign: Cosign, tmp_path: Path
) -> None:
    keys = make_keys(cosign, tmp_path / "theirs")
    done = machine.kiln("pull", "toy", "--verify-key", str(keys / "cosign.pub"))
    assert done.code == 71, done.err
    assert "is not signed by the key" in done.err
    # And one that was changed where it lies.
    table = attachment(registry, home, "sig").table
    signature = table["layers"][0]["annotations"]["dev.cosignproject.cosign/signature"]
    other = base64.b64encode(hashlib.sha256(b"other").digest() * 2).decode()
    text = json.dumps(table).replace(signature, other)
    repository(registry).put_manifest(f"{home.digest.replace(':', '-')}.sig", Manifest(text.encode(), OCI))
    done = machine.kiln("pull", "toy")
    assert done.code == 71, done.err
    assert no_image(machine)


def test_a_tampered_report_is_refused(machine: Project, registry: Registry, home: Home) -> None:
    there, tag = repository(registry), f"{home.digest.replace(':', '-')}.att"
    table = there.manifest(tag).table
    for layer in table["layers"]:
        envelope = json.loads(there.blob(layer["digest"]))
        statement = json.loads(base64.b64decode(envelope["payload"]))
        if "verification-report" in statement["predicateType"]:
            statement["predicate"]["summary"]["fail"] = 7
            envelope["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
            data = json.dumps(envelope).encode()
            layer |= {"digest": there.upload(data), "size": len(data)}
    there.put_manifest(tag, Manifest(json.dumps(table).encode(), OCI))
    done = machine.kiln("pull", "toy")
    assert done.code == 72, done.err
    assert "verification-report" in done.err
    assert no_image(machine)


@pytest.mark.parametrize("what", ["failed", "lock", "overrides"])
def test_a_record_that_was_changed_by_hand_is_refused(machine: Project, what: str) -> None:
    path = machine.root / "releases" / "toy.toml"
    before = path.read_text()
    after = {
        "failed": before.replace("failed = 0", "failed = 3"),
        "lock": before.replace(f'lock = "{machine.lock.sha256}"', f'lock = "{"0" * 64}"'),
        "overrides": before + '[release.overrides]\n"small" = "9"\n',
    }[what]
    assert after != before
    path.write_text(after)
    done = machine.kiln("pull", "toy", "--latest")
    assert done.code == 70, done.err
    assert "says something else" in done.err
    assert no_image(machine)


def test_nothing_prebuilt_names_the_nearest_and_the_build_command(publisher: Project, home: Home) -> None:
    path = publisher.root / "releases" / "toy.toml"
    path.write_text(path.read_text().replace(f'lock = "{publisher.lock.sha256}"', f'lock = "{"0" * 64}"'))
    done = publisher.kiln("pull", "toy")
    assert done.code == 76, done.err
    assert f"nearest: {home.tag}" in done.err
    assert "kiln image toy" in done.err
    path.unlink()
    done = publisher.kiln("pull", "toy")
    assert done.code == 76, done.err
    assert "was never published" in done.err


def test_a_bare_tag_is_refused_with_the_digest_to_paste(publisher: Project, registry: Registry, home: Home) -> None:
    done = publisher.kiln("pull", f"{registry.host}/kiln/toy:{home.tag}")
    assert done.code == 2, done.err
    assert f"kiln pull {registry.host}/kiln/toy@{home.digest}" in done.err


def test_of_two_publishers_one_wins_and_the_other_is_told(publisher: Project, registry: Registry, home: Home) -> None:
    with publishing(repository(registry), settle=0.2):
        told = publish(publisher, registry.host, home.report, home.keys)
    assert told.code == 74, told.err
    assert "somebody else publishes" in told.err
    assert publish(publisher, registry.host, home.report, home.keys).code == 0


def test_never_two_hold_a_repository(registry: Registry) -> None:
    inside, most, won, told = [0], [0], [0], [0]
    guard = threading.Lock()

    def one() -> None:
        try:
            with publishing(repository(registry), settle=0.8):
                with guard:
                    inside[0] += 1
                    most[0], won[0] = max(most[0], inside[0]), won[0] + 1
                time.sleep(0.3)
                with guard:
                    inside[0] -= 1
        except BeingPublishedError:
            with guard:
                told[0] += 1

    threads = [threading.Thread(target=one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1
    assert won[0] >= 1
    assert won[0] + told[0] == 6


def test_a_killed_publisher_loses_nothing_and_the_next_run_completes(
    publisher: Project, registry: Registry, home: Home, tmp_path: Path
) -> None:
    """Killed again and again at a first publication: no tag before everything is there, and the next run ends well. Twice in a row, four times with FULL=1."""
    shutil.rmtree(registry.folder / "docker")
    (publisher.root / "releases" / "toy.toml").unlink()
    words = ["--to", f"{registry.host}/kiln", "--key", str(home.keys / "cosign.key"), "--report", str(home.report)]
    for seconds in (1.5, 3.5, 5.0, 6.5) if FULL else (2.5, 5.0):
        process = subprocess.Popen(
            publisher.command("publish", "toy", "--take-over", *words),
            env=publisher.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(seconds)
        process.kill()
        process.wait()
        names = set(repository(registry).tags())
        if home.tag in names:
            assert {f"{home.digest.replace(':', '-')}.{suffix}" for suffix in ("sig", "att")} <= names
    done = publisher.kiln("--json", "publish", "toy", "--take-over", *words)
    assert done.code == 0, done.err
    assert repository(registry).digest_of(home.tag) == home.digest
    assert len(read_releases(Workspace(publisher.root, publisher.state), "toy")) == 1
