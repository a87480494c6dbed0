"""Which checks an image must have passed. Apart from the checks themselves, so that asking costs no SDK."""

from __future__ import annotations

from kiln.render import Rendered


def required_checks(rendered: Rendered, *, release: bool = False) -> list[str]:
    """The ids that a report must hold, all passed, before an image counts as verified; no other check of it may have failed.

    An image that needs a GPU counts as built well without one; for a ``release`` that tags may move to, it must have run on one.
    """
    runs = release or rendered.image.needs != "gpu"
    settings = rendered.image.settings if runs else ()
    ids = [
        "image.digest",
        "image.config",
        "image.labels",
        "packages.debian",
        "packages.wheels",
        "packages.requirements",
    ]
    ids += ["libraries.resolve", "files.clean", "image.provenance", "image.sbom"]
    if runs and rendered.image.backends:
        ids += [*(f"ops.{backend}" for backend in rendered.image.backends), "ops.race"]
    ids += [f"serve.{setting.name}.{what}" for setting in settings for what in ("answers", "path")]
    return [*ids, "serve.agree"] if len(settings) > 1 else ids
