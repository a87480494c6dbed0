"""Where the bake step runs: in the engine, or on a buildx builder that a site has made elsewhere (docs/scale.md).

Of a builder elsewhere Kiln asks nothing but the bake step. It has no store that this machine could look into: what it builds comes back as an archive
in OCI's layout and is loaded into the engine, which must then hold the digest that the builder reported.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kiln.config import ENGINE_BUILDER
from kiln.engine import Engine
from kiln.errors import BuilderLostError, BuildersDifferError, EngineError, HostError, UsageError
from kiln.pins import Pins
from kiln.plan import builder as settings
from kiln.process import run
from kiln.records import Built

ASK_SECONDS = 120
LOAD_SECONDS = 6 * 3600
# What buildx ends with where the builder is gone. What a failed step said stands in lines that begin otherwise.
_LOST = re.compile(
    r"^ERROR: .*(code = Unavailable|failed to receive status|connection re(fused|set)|Cannot connect to the Docker daemon|no such host)",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Builder:
    """A builder by buildx's name for it; without one, the engine itself."""

    name: str = ""

    @property
    def described(self) -> str:
        """As people call it."""
        return f"the builder {self.name!r}" if self.name else "the engine"

    @cached_property
    def docker(self) -> tuple[str, ...]:
        """The docker command that knows it: buildx takes the builder of a docker context only where docker is told of the context as well."""
        known = self.name and run(["docker", "context", "inspect", self.name], timeout=ASK_SECONDS).code == 0
        return ("docker", f"--context={self.name}") if known else ("docker",)

    def environment(self, engine: Engine) -> dict[str, str]:
        """The variables for docker's programs. A builder elsewhere was made with the user's own, and is found with them."""
        return {} if self.name else engine.environment

    def output(self, pins: Pins, archive: Path) -> str:
        """What the image is put out as: the settings are those of the bake file, and so is the digest."""
        options = ",".join(f"{key}={value}" for key, value in {**settings(pins), "type": "oci"}.items())
        # In quotes: buildx reads this as CSV, and a path may have a comma in it.
        return f'{options},"dest={archive}"'

    def require(self) -> None:
        """Raise BuilderLostError where it does not answer, UsageError where there is none of that name."""
        said = self._inspected()
        if "no builder" in said:
            raise UsageError(
                f"there is no buildx builder and no docker context {self.name!r}",
                fix="docker buildx ls lists the builders; docs/scale.md says how to make one",
            )
        if not _runs(said):
            raise BuilderLostError(f"{self.described} does not answer", why="\n".join(said.strip().splitlines()[-3:]))

    def is_lost(self, log: str) -> bool:
        """Whether a build that failed, with this log, failed because the builder went away."""
        return bool(self.name) and bool(_LOST.search(log) or not _runs(self._inspected()))

    def _inspected(self) -> str:
        try:
            return run([*self.docker, "buildx", "inspect", "--bootstrap", self.name], timeout=ASK_SECONDS).output
        except HostError as error:
            return error.what


ENGINE = Builder()


def builders_of(names: str) -> tuple[Builder, ...]:
    """The builders of a list of names, in its order; the engine alone where it is empty, and where it is called by ``default``."""
    listed = [name.strip() for name in names.split(",")] if names else [ENGINE_BUILDER]
    return tuple(dict.fromkeys(Builder("" if name == ENGINE_BUILDER else name) for name in listed))


def load_archive(engine: Engine, builder: Builder, archive: Path) -> None:
    """Put what a builder sent back into the engine. Raises EngineError where the engine does not take it."""
    done = run(["docker", "load", "--quiet", "--input", archive], env=engine.environment, timeout=LOAD_SECONDS)
    if done.code != 0:
        raise EngineError(f"the engine did not take what {builder.described} built", why=done.tail(3))


def require_same(builder: Builder, before: Built | None, key: str, digest: str, shown: str) -> None:
    """Raise BuildersDifferError where another builder made another image of the same build key: ``before`` is the record of that, and ``shown`` its place."""
    if before is None or before.key != key or before.pulled:
        return
    if before.builder != builder.name and before.digest != digest:
        raise BuildersDifferError(
            f"{builder.described} made another image of {before.image} than {Builder(before.builder).described} did",
            why=f"build key {key[:16]}\n{before.builder or 'engine'}: {before.digest}\n{builder.name or 'engine'}: {digest}",
            fix="use builders of one BuildKit release (docker buildx inspect NAME); `kiln diff` says what differs. "
            f"To go on with the new one, remove the record of the other: {shown}",
        )


def _runs(said: str) -> bool:
    return bool(re.search(r"^Status:\s+running", said, re.MULTILINE))
