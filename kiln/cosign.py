"""cosign, as it is: it signs, attests and verifies; what is in an attestation is for ``kiln.attest``.

Its form in a registry is the one that every registry can keep: tags ``sha256-….sig`` and ``sha256-….att`` beside the image. Signatures by a key
(a file, or a key manager's address) are written to no public log unless that is asked for; keyless ones always are, for nothing else says when they were made.
"""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiln.errors import AttestationError, HostError, SignatureError, UpstreamError
from kiln.process import Finished, run

SECONDS = 300
# A registry that is busy or breaks off is asked again: what cosign does once it can do twice.
TRIES, WAIT_SECONDS = 3, 2.0
# Its words for: what is there is not signed so. Anything else went wrong on the way.
_UNSIGNED = (
    "no matching signatures",
    "no signatures found",
    "no matching attestations",
    "no attestations found",
    "none of the attestations matched",
    "none of the expected identities matched",
    "invalid signature",
    "failed to verify signature",
    "no valid signature",
    "crypto/rsa: verification error",
    "could not verify",
    "payload hash",
)
_GONE = ("MANIFEST_UNKNOWN", "NAME_UNKNOWN", "manifest unknown")
_DENIED = ("UNAUTHORIZED", "DENIED", "401", "403")


@dataclass(frozen=True)
class Signer:
    """Who signs: ``key`` is what cosign takes (a file, ``env://NAME``, a key manager's URI); empty: keyless, as cosign does it."""

    key: str = ""
    log: bool = False

    @property
    def words(self) -> list[str]:
        """cosign's options."""
        return ["--yes", *(["--key", self.key, f"--tlog-upload={str(self.log).lower()}"] if self.key else [])]


@dataclass(frozen=True)
class Trusted:
    """Whose signatures count: a public ``key``, or the identity and issuer of a certificate (keyless). ``log``: they must be in the public log."""

    key: str = ""
    identity: str = ""
    issuer: str = ""
    log: bool = False

    @property
    def words(self) -> list[str]:
        """cosign's options."""
        if not self.key:
            return ["--certificate-identity", self.identity, "--certificate-oidc-issuer", self.issuer]
        return ["--key", self.key, *([] if self.log else ["--insecure-ignore-tlog=true"])]

    @property
    def shown(self) -> str:
        """For messages."""
        return f"the key {self.key}" if self.key else f"{self.identity} of {self.issuer}"


@dataclass(frozen=True)
class Cosign:
    """The program. Every method raises UpstreamError where the registry does not do its part.

    ``layout``: what is verified lies in this folder, in OCI's layout with cosign's annotations, and nobody is asked.
    """

    program: Path
    layout: Path | None = None

    def public_key(self, signer: Signer) -> str:
        """The public half of the signer's key, as PEM. Raises SignatureError where there is none to be had."""
        done = self._run(["public-key", "--key", signer.key])
        if done.code != 0:
            raise SignatureError(
                f"{signer.key} is no key that cosign can use",
                why=_why(done),
                fix="make one: cosign generate-key-pair; its password is read from COSIGN_PASSWORD",
            )
        return done.output

    def sign(self, place: str, signer: Signer) -> None:
        """Sign the image at ``place`` (host/name@digest)."""
        self._must(["sign", *signer.words, place], f"{place} could not be signed")

    def attest(self, place: str, signer: Signer, kind: str, predicate: Path) -> None:
        """Sign a statement about the image, in place of an older one of the same kind."""
        words = ["attest", *signer.words, "--replace", "--type", kind, "--predicate", str(predicate), place]
        self._must(words, f"the attestation {kind} of {place} could not be made")

    def verify(self, place: str, trusted: Trusted) -> None:
        """Raise SignatureError unless the image has a signature of somebody who is trusted."""
        done = self._asked(["verify", *trusted.words, *self._of(place)])
        if done.code != 0:
            raise SignatureError(f"{place} is not signed by {trusted.shown}", why=_why(done))

    def attested(self, place: str, trusted: Trusted, kind: str) -> list[Any]:
        """The predicates of the statements of one kind that somebody trusted signed of the image. Raises AttestationError where there are none."""
        done = self._asked(["verify-attestation", *trusted.words, "--type", kind, *self._of(place)])
        if done.code != 0:
            raise AttestationError(f"{place} has no attestation {kind} of {trusted.shown}", why=_why(done))
        return statements(done.output, place)

    def _of(self, place: str) -> list[str]:
        return ["--offline", "--local-image", str(self.layout)] if self.layout else [place]

    def _must(self, words: list[str], what: str) -> None:
        done = self._asked(words)
        if done.code != 0:
            raise SignatureError(what, why=_why(done), fix="see what cosign says; COSIGN_PASSWORD unlocks a key file")

    def _asked(self, words: list[str]) -> Finished:
        """Run to an answer: what went wrong on the way is tried again, and raised."""
        done = self._run(words)
        for attempt in range(TRIES - 1):
            if not _on_the_way(done):
                return done
            time.sleep(WAIT_SECONDS * 2**attempt)
            done = self._run(words)
        if _on_the_way(done):
            raise UpstreamError(
                "the registry did not do what cosign asked of it",
                why=_why(done),
                fix="log in as somebody who may (docker login), or try again later",
            )
        return done

    def _run(self, words: list[str]) -> Finished:
        try:
            return run([self.program, *words], env=_environment(), timeout=SECONDS, split=True)
        except HostError as error:
            raise UpstreamError("cosign did not come to an end", why=error.why or error.what) from error


def statements(output: str, place: str) -> list[Any]:
    """The predicates in what ``cosign verify-attestation`` prints: one DSSE envelope a line. Raises AttestationError where that is not so.

    That a statement speaks of the image cosign has checked; it is looked at here again, for it is what everything below rests on.
    """
    digest = place.rpartition("@sha256:")[2]
    found = []
    try:
        for line in filter(str.strip, output.splitlines()):
            statement = json.loads(base64.b64decode(json.loads(line)["payload"]))
            if [one["digest"]["sha256"] for one in statement["subject"]] != [digest]:
                raise AttestationError(f"an attestation beside {place} speaks of another image")
            found.append(statement["predicate"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise AttestationError(f"an attestation of {place} cannot be read", why=str(error)) from error
    if not found:
        raise AttestationError(f"{place} has no attestation")
    return found


def _on_the_way(done: Finished) -> bool:
    """Whether cosign failed for the registry's sake, or the way there, and not for what it found."""
    said = done.output + done.errors
    if done.code == 0 or any(word in said for word in (*_UNSIGNED, *_GONE)):
        return False
    words = (*_DENIED, "connection", "timeout", "EOF", "status code", "TOOMANYREQUESTS", "no such host", "deadline")
    return any(word in said for word in words)


def _why(done: Finished) -> str:
    """What cosign says went wrong, without its warnings and what it says twice."""
    lines = (done.output + done.errors).strip().splitlines()
    told = [
        line for line in lines if line.strip() and not line.startswith(("WARNING:", "error during command execution"))
    ]
    return "\n".join(list(dict.fromkeys(told))[-4:])


def _environment() -> Mapping[str, str]:
    # Without one, a key file asks at a terminal that is not there.
    return {"COSIGN_PASSWORD": os.environ.get("COSIGN_PASSWORD", ""), "SIGSTORE_NO_CACHE": "true"}
