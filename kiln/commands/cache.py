"""Commands about the component cache in a registry (docs/cache.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kiln.commands.context import SET, STACK, Context
from kiln.errors import CacheEntryError, UpstreamError, UsageError
from kiln.session import Choice

# The no-op must be fast: what only some commands need is loaded by those commands.
if TYPE_CHECKING:
    from kiln.cache import Cache


@click.group()
def cache() -> None:
    """The component cache: a repository in a registry that holds what was built, by build key."""


@cache.command("push")
@STACK
@SET
@click.pass_obj
def cache_push(context: Context, stack: str, sets: tuple[str, ...]) -> None:
    """Push what this engine has built of STACK: its images, and each component by its build key. Sends nothing that is there.

    Example: kiln cache push cpu
    """
    from kiln.build import known_build

    found = _required(context)
    with context.working():
        pins, _, images, _ = context.session.ready(stack, Choice(sets), refuse=False)
        built = [
            (rendered, one)
            for rendered in images
            if (one := known_build(context.workspace, rendered, context.session.engine))
        ]
        if not built:
            raise UsageError(f"nothing of {stack!r} is built here", fix=f"build it first: kiln build {stack}")
        new = found.push(pins, built)
    place = found.repository.place
    lines = [f"{place}:{tag}" for tag in new] or [f"{place} has all of it already"]
    context.result("\n".join(lines), {"repository": place, "new": new})


@cache.command("ls")
@STACK
@SET
@click.pass_obj
def cache_ls(context: Context, stack: str, sets: tuple[str, ...]) -> None:
    """Say of each component of STACK where it is: in the engine, in the registry, or nowhere.

    Example: kiln cache ls dsv4-mhc
    """
    from kiln.cache import in_engine

    found = _required(context)
    _, _, images, _ = context.session.ready(stack, Choice(sets), refuse=False)
    here = in_engine(context.workspace, context.session.engine)
    rows = []
    for rendered in images:
        for unit in rendered.units:
            if unit.name in rendered.layers:
                row = {"image": rendered.image.name, "component": unit.name, "key": unit.key}
                rows.append({**row, "engine": unit.key in here, **in_registry(found, unit.name, unit.key)})
    lines = [
        f"{row['component']:20} key {str(row['key'])[:16]}  "
        + (", ".join(place for place in ("engine", "registry") if row[place]) or "nowhere")
        + (f": {row['problem']}" if row["problem"] else "")
        for row in rows
    ]
    context.result("\n".join(lines), {"repository": found.repository.place, "components": rows})


def in_registry(found: Cache, component: str, key: str) -> dict[str, object]:
    """Whether the registry has a component, and what is wrong with its entry or with the registry."""
    try:
        return {"registry": found.has(component, key), "problem": ""}
    except (CacheEntryError, UpstreamError) as error:
        return {"registry": False, "problem": error.what}


def _required(context: Context) -> Cache:
    found = context.session.cache
    if found is None:
        raise UsageError(
            "no component cache is set",
            fix='name a repository: KILN_CACHE=host/name, or [cache] registry = "host/name" in kiln.toml; see docs/cache.md',
        )
    return found


COMMANDS = (cache,)
