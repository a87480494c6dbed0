"""Image registries: which digest a tag points to now."""

from __future__ import annotations

from kiln.config import Config
from kiln.errors import RefNotFoundError, UpstreamError
from kiln.registryclient import Repository


def tag_digest(config: Config, image: str, tag: str) -> str:
    """The digest (``sha256:…``) that ``tag`` of ``image`` (host/name) points to; a mirror is asked in its place where one is set.

    Raises UpstreamError where the registry does not answer, AccessDeniedError where it wants a login, RefNotFoundError with near tags where it
    has no such tag.
    """
    repository = Repository(config.mirrored(image))
    digest = repository.digest_of(tag)
    if digest is None:
        raise RefNotFoundError(
            f"{repository.place} has no tag {tag!r}",
            why=_near(repository, tag),
            fix="name a tag that is there: --set base=TAG",
        )
    return digest


def _near(repository: Repository, tag: str) -> str:
    import difflib

    try:
        tags = repository.tags()
    except UpstreamError:
        return ""
    near = difflib.get_close_matches(tag, tags, 5)
    return f"Near: {', '.join(near)}." if near else f"It has {len(tags)} others, none of them near."
