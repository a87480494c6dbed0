"""Which checks an image must have passed. Apart from the checks themselves, so that asking costs no SDK."""

from __future__ import annotations

from kiln.render import Rendered


def required_checks(rendered: Rendered) -> list[str]:
    """The ids that a report must hold, all passed, before an image counts as verified; no other check of it may have failed."""
    # An image that needs a GPU counts as built well without one; what it must pass before it is published is a matter of publishing.
    settings = () if rendered.image.needs == "gpu" else rendered.image.settings
    ids = [
        "image.digest",
        "image.config",
        "image.labels",
        "packages.debian",
        "packages.wheels",
        "packages.requirements",
    ]
    ids += ["libraries.resolve", "files.clean", "image.provenance", "image.sbom"]
    if rendered.image.needs != "gpu" and rendered.image.backends:
        ids += [*(f"ops.{backend}" for backend in rendered.image.backends), "ops.race"]
    ids += [f"serve.{setting.name}.{what}" for setting in settings for what in ("answers", "path")]
    return [*ids, "serve.agree"] if len(settings) > 1 else ids
